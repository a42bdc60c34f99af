//! Figure 26: the algorithms compared with one another; no network is involved.

use serde_json::json;

use super::matching::{by_fifty, means_map, powers_of_two};
use super::paper_scale;
use crate::Result;
use crate::algorithms::{Bfgs, ConjugateGradient, Run, predictions};
use crate::compare::{LinearFit, Measure, Similarity};
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Axis, Claims, Figure, Line, Panel};

/// The paper's numbers: Newton k + 1 against k, from k = 1 on.
const NEIGHBOURS: [f64; 15] =
    [0.991, 0.990, 0.989, 0.989, 0.989, 0.990, 0.990, 0.992, 0.993, 0.995, 0.996, 0.997, 0.998, 0.998, 0.999];
/// … one step of gradient descent against Newton k.
const ONE_STEP: [f64; 10] = [0.974, 0.955, 0.923, 0.883, 0.838, 0.794, 0.754, 0.719, 0.691, 0.670];

/// Draws the figure and checks its claims.
///
/// # Errors
/// As [`paper_scale::similarity`].
pub fn run(settings: &Settings<'_>) -> Result<Reproduction> {
    let prompts = paper_scale::isotropic(paper_scale::count(320, settings), 0.0, settings.seed)?;
    let (newton, descent) = (paper_scale::newton()?, paper_scale::gradient_descent(settings.seed)?);
    let (steps, linear, log): (Vec<usize>, _, _) = ((1..=23).collect(), by_fifty(), powers_of_two());
    let quasi: Vec<usize> = (1..=25).collect();
    let conjugate: Vec<usize> = (1..=22).collect();
    // All at once: what the prefixes share is computed once.
    let runs = [
        Run { algorithm: &newton, at: &steps },
        Run { algorithm: &descent, at: &linear },
        Run { algorithm: &descent, at: &log },
        Run { algorithm: &Bfgs, at: &quasi },
        Run { algorithm: &ConjugateGradient, at: &conjugate },
    ];
    let made = predictions(&runs, &prompts)?;
    let residuals = made.iter().map(|m| m.residuals(&prompts)).collect::<Result<Vec<_>>>()?;
    let similarity = |rows: usize, columns: usize| {
        Similarity::of_errors(Measure::Cosine, &residuals[rows], &residuals[columns], 0..prompts.context() + 1)
    };
    let (by_step, by_power, itself) = (similarity(1, 0)?, similarity(2, 0)?, similarity(0, 0)?);
    let (by_bfgs, by_cg, power_of_cg) = (similarity(3, 0)?, similarity(4, 0)?, similarity(2, 4)?);

    let panel = |title: &str, s: &Similarity, rows: &[usize], name: &str| {
        means_map(title, &s.means(), rows, name, &steps, "Newton steps")
    };
    let best = |s: &Similarity| s.best(0, settings.seed).iter().map(|b| b.row).collect::<Vec<usize>>();
    let cg_of_newton: Vec<usize> = best(&by_cg).iter().map(|r| conjugate[*r]).collect();
    let doublings: Vec<f64> = best(&by_power).iter().map(|r| *r as f64).collect();
    let cg_doublings: Vec<f64> = best(&power_of_cg).iter().map(|r| *r as f64).collect();
    let paths = Panel::new("(d) exact CG has both signatures")
        .x(Axis::linear("Newton steps"))
        .y(Axis::linear("best step, or its log_{2}"))
        .line(Line::new("CG step", &steps, &cg_of_newton).markers())
        .line(Line::new("log_{2} of the GD step", &steps, &doublings).markers())
        .line(Line::new("log_{2} of the GD step, against CG steps", &conjugate, &cg_doublings).dashed());
    let figure = Figure::new("newton.fig26", "Algorithms against one another: gradient descent is exponentially slower than Newton")
        .caption(
            "SimE at d = 20, n = 40, 320 prompts. (a) Newton against gradient descent, (b) against itself, (c) against BFGS. \
             (d) is not in the paper: the step of exact CG that matches Newton best grows linearly too, and gradient descent \
             is exponentially slower than CG as well.",
        )
        .columns(2)
        .panel(panel("(a) gradient descent", &by_step, &linear, "gradient-descent steps"))
        .panel(panel("(b) Newton", &itself, &steps, "Newton steps"))
        .panel(panel("(c) BFGS", &by_bfgs, &quasi, "BFGS steps"))
        .panel(paths);

    let neighbours: Vec<f64> = (0..NEIGHBOURS.len()).map(|k| itself.mean(k + 1, k)).collect();
    let one_step: Vec<f64> = (0..ONE_STEP.len()).map(|k| by_step.mean(0, k)).collect();
    let numbers = |from: &[usize]| from.iter().map(|v| *v as f64).collect::<Vec<f64>>();
    // Up to where the best doubling reaches the end of the grid.
    let inside = doublings.iter().position(|d| *d >= 12.0).unwrap_or(steps.len());
    let exponential = LinearFit::of(&numbers(&steps[..inside]), &doublings[..inside]);
    // (c): the Newton step that matches BFGS best, from step 10 on.
    let newton_of_bfgs: Vec<f64> = (10..=25)
        .map(|k| {
            let row = |c: usize| by_bfgs.mean(k - 1, c);
            let best = (0..steps.len()).max_by(|a, b| row(*a).total_cmp(&row(*b))).unwrap_or(0);
            steps[best] as f64
        })
        .collect();
    let bfgs = LinearFit::of(&(10..=25).map(f64::from).collect::<Vec<_>>(), &newton_of_bfgs);
    let cg = LinearFit::of(&numbers(&steps), &numbers(&cg_of_newton));
    let claims = Claims::new()
        .at_most(
            "newton.fig26a.one-step",
            "one step of GD against Newton 1 to 10: largest difference from the printed numbers",
            paper_scale::largest_gap(&one_step, &ONE_STEP),
            0.01,
        )
        .within(
            "newton.fig26a.exponential",
            "GD steps for one more Newton step: doublings (slope of log2)",
            exponential.slope,
            0.5,
            0.6,
        )
        .at_least("newton.fig26a.linear", "… the log2 trend is a line (R²)", exponential.r_squared, 0.95)
        .at_most(
            "newton.fig26b.neighbours",
            "neighbouring Newton steps: largest difference from the printed numbers",
            paper_scale::largest_gap(&neighbours, &NEIGHBOURS),
            0.004,
        )
        .at_least(
            "newton.fig26c.linear",
            "Newton steps against BFGS steps from 10 on: a line (R²)",
            bfgs.r_squared,
            0.9,
        )
        .at_least(
            "newton.fig26d.cg",
            "not in the paper: the CG step that matches Newton k is linear in k (R²)",
            cg.r_squared,
            0.97,
        );
    let config = json!({
        "prompts": prompts.len(), "c": 2, "eta": paper_scale::RATE, "cg_of_newton": cg_of_newton, "cg_slope": cg.slope,
        "log2_gd_of_newton": doublings, "log2_gd_of_cg": cg_doublings, "newton_of_bfgs": newton_of_bfgs,
    });
    Ok(Reproduction { figure, claims, config })
}
