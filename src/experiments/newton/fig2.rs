//! Figure 2: error over the layers of a transformer, over the steps of Newton, over the steps of gradient descent.

use serde_json::json;

use super::matching::{Layers, error_panel, first};
use super::paper_scale::{self, CONTEXT, DIM};
use crate::Result;
use crate::algorithms::{Algorithm, GradientDescent};
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Axis, Claims, Extremes, Figure, Line, Panel, greater, lesser};

/// Numbers of examples in the paper's panels.
const EXAMPLES: [usize; 8] = [5, 10, 15, 20, 22, 25, 30, 35];

/// Draws the figure and checks its claims.
///
/// # Errors
/// As [`Layers::load`] and [`paper_scale::errors`].
pub fn run(settings: &Settings<'_>) -> Result<Reproduction> {
    let networks = Layers::load("newton-s", settings)?;
    let shown = first(&networks)?;
    let (newton, descent) = panels(settings)?;
    let figure = Figure::new("newton.fig2", "Error over layers, Newton steps and gradient-descent steps")
        .caption(format!(
            "Squared error over d against the depth of the computation. Left: linear probes of a transformer at d = 5, n = \
             10 (first of {} seeds). Middle and right: d = {DIM}, n = {CONTEXT}, Iterative Newton (c = 2) and gradient \
             descent (η = 0.01), exactly the paper's.",
            networks.len()
        ))
        .columns(3)
        .panel(error_panel("(a) transformer", shown, &[2, 4, 5, 6, 8, 10]))
        .panel(newton)
        .panel(descent);

    let worst = |f: &dyn Fn(&Layers) -> Result<f64>, worse: fn(f64, f64) -> f64| -> Result<f64> {
        let values = networks.iter().map(f).collect::<Result<Vec<f64>>>()?;
        Ok(values.into_iter().reduce(worse).unwrap_or(f64::NAN))
    };
    let at = |l: &Layers| l.prompts.context();
    let fall = |l: &Layers| {
        let errors = &l.errors;
        Ok(errors[l.span()?.0][at(l)] / errors[l.count() - 1][at(l)])
    };
    let claims = Claims::new()
        .at_least(
            "newton.fig2a.fall",
            "transformer, 2d examples: error of the first useful layer over the last one's (worst seed)",
            worst(&fall, lesser)?,
            10.0,
        )
        .at_least(
            "newton.fig2a.superlinear",
            "… consecutive layers at which log error falls faster than before, longest run (worst seed)",
            worst(&|l| Ok(accelerating(&l.errors.iter().map(|e| e[at(l)]).collect::<Vec<_>>()) as f64), lesser)?,
            3.0,
        )
        .at_most(
            "newton.fig2a.last",
            "… error of the last layer over d (worst seed)",
            worst(&|l| Ok(l.errors[l.count() - 1][at(l)]), greater)?,
            1e-2,
        );
    let claims = paper_claims(claims, settings)?;
    let config = json!({
        "checkpoint": "newton-s", "prompts": shown.prompts.len(), "c": 2, "eta": paper_scale::RATE,
        "transformer": networks.iter().map(|l| &l.errors).collect::<Vec<_>>(),
    });
    Ok(Reproduction { figure, claims, config })
}

/// Number of layers of the longest run over which the log of the error falls faster at each than at the one before.
fn accelerating(errors: &[f64]) -> usize {
    let slopes: Vec<f64> = errors.windows(2).map(|w| (w[1] / w[0]).ln()).collect();
    let (mut longest, mut run) = (0, 1);
    for w in slopes.windows(2) {
        run = if w[1] < w[0] { run + 1 } else { 1 };
        longest = longest.max(run);
    }
    longest
}

/// The panels of Newton and of gradient descent at the paper's size.
fn panels(settings: &Settings<'_>) -> Result<(Panel, Panel)> {
    let prompts = paper_scale::isotropic(paper_scale::count(640, settings), 0.0, settings.seed)?;
    let panel = |title: &str, algorithm: &dyn Algorithm, steps: &[usize], axis: &str| -> Result<Panel> {
        let errors = paper_scale::errors(algorithm, steps, &prompts)?;
        let mut panel = Panel::new(title).x(Axis::linear(axis)).y(Axis::log("squared error / d").range(1e-4, 1.5));
        for t in EXAMPLES {
            // Below the paper's axis the curve is round-off.
            let y = errors.iter().map(|e| if e[t] > 1e-6 { e[t] } else { f64::NAN });
            panel = panel.line(Line::new(format!("{t} examples, d = 20"), steps, y));
        }
        Ok(panel)
    };
    let newton = panel("(b) Newton", &paper_scale::newton()?, &(1..=23).collect::<Vec<_>>(), "Newton steps")?;
    let steps: Vec<usize> = (0..=32).map(|k| (5 * k).max(1)).collect();
    let plain = GradientDescent::new(vec![paper_scale::RATE])?;
    Ok((newton, panel("(c) gradient descent", &plain, &steps, "gradient-descent steps")?))
}

/// The claims at the paper's size, by the expectation over w⋆ and the query.
fn paper_claims(claims: Claims, settings: &Settings<'_>) -> Result<Claims> {
    let batches = if settings.quick { 1 } else { 60 };
    let mean = |errors: &[Vec<f64>], k: usize| errors.iter().map(|e| e[k]).sum::<f64>() / errors.len() as f64;
    let means = |errors: &[Vec<f64>]| (0..errors[0].len()).map(|k| mean(errors, k)).collect::<Vec<f64>>();
    let steps = [3, 8, 12, 15];
    let newton = paper_scale::expected_errors(30, &steps, batches, 320, settings.seed, paper_scale::newton_factor)?;
    let averages = means(&newton);
    // At k = 15 the mean is one over rare contexts: the reference is a single batch's.
    let above = newton.iter().filter(|e| e[3] >= 1.7e-4).count() as f64 / newton.len() as f64;
    let descent =
        paper_scale::expected_errors(40, &[1, 30, 80, 160], batches, 320, settings.seed, paper_scale::descent_factor)?;
    let mut claims = claims
        .at_most(
            "newton.fig2b.values",
            "Newton, 30 examples, k = 3, 8, 12: 0.37, 0.079, 0.0047 (largest relative difference)",
            paper_scale::largest_ratio(&averages[..3], &[3.7e-1, 7.9e-2, 4.7e-3]),
            0.25,
        )
        .within(
            "newton.fig2b.k15",
            "… k = 15: share of batches of 320 prompts whose mean is at least the reference batch's 1.7e-4",
            above,
            0.025,
            0.975,
        )
        .at_most(
            "newton.fig2c.values",
            "gradient descent, 40 examples, 1, 30, 80, 160 steps: 0.44, 0.0048, 1.2e-4, 2.5e-6 (largest relative difference)",
            paper_scale::largest_ratio(&means(&descent), &[4.4e-1, 4.8e-3, 1.2e-4, 2.5e-6]),
            0.3,
        );
    let all: Vec<usize> = (1..=23).collect();
    for t in [25, 30, 35] {
        let errors = paper_scale::expected_errors(t, &all, batches, 320, settings.seed, paper_scale::newton_factor)?;
        let logs: Vec<f64> = means(&errors).into_iter().take_while(|e| *e > 1e-12).map(f64::ln).collect();
        // By quarters: single late steps wiggle, when a few nearly singular S decide the mean.
        let quarter = (logs.len() - 1) / 4;
        let falls: Vec<f64> = (0..4).map(|q| logs[q * quarter] - logs[(q + 1) * quarter]).collect();
        let gain = falls.windows(2).map(|w| w[1] / w[0]).least();
        claims = claims.at_least(
            format!("newton.fig2b.superlinear{t}"),
            format!("Newton, {t} examples: fall of log error in a quarter of the steps over that in the quarter before, least"),
            gain,
            1.0,
        );
        let slopes: Vec<f64> = logs.windows(2).map(|w| w[0] - w[1]).collect();
        let growing = slopes.windows(2).filter(|w| w[1] > w[0]).count();
        claims = claims.at_least(
            format!("newton.fig2b.superlinear{t}-steps"),
            "… step by step: share of the steps in which log error falls faster than in the one before",
            growing as f64 / (slopes.len() - 1) as f64,
            1.0,
        );
    }
    Ok(claims)
}
