//! Figures 11, 12 and 18: layers against BFGS, L-BFGS and conjugate gradient.

use serde_json::json;

use super::heat_maps::{Matches, newton_steps};
use super::matching::{Layers, Trend};
use super::paper_scale;
use crate::Result;
use crate::algorithms::{Bfgs, ConjugateGradient, Lbfgs};
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Axis, Claims, Color, Figure, Line, Panel, lesser};

/// SimE of SciPy-like BFGS with least squares at k = 1, 3, 5, 7, 9, 11 (newton.md section 7.2).
const BFGS: [f64; 6] = [0.57, 0.74, 0.81, 0.87, 0.91, 0.94];
/// SimE of exact CG with least squares at k = 1, 4, 10, 16, 20.
const CG: [f64; 5] = [0.66, 0.88, 0.965, 0.990, 0.999];
/// The last layer's column of the paper's Figure 12, every fourth step from 4 on: what its CG reached.
const PRINTED_CG: [f64; 10] = [0.878, 0.954, 0.975, 0.983, 0.987, 0.990, 0.992, 0.993, 0.994, 0.994];

/// Maps of BFGS and L-BFGS.
fn bfgs_maps(id: &str, title: &str, checkpoint: &str, settings: &Settings<'_>) -> Result<Reproduction> {
    let lbfgs = Lbfgs::new(10)?;
    let steps: Vec<usize> = (1..=25).collect();
    let by_bfgs = Matches::of(Layers::load(checkpoint, settings)?, steps.clone(), false, settings, |_| Box::new(Bfgs))?;
    let upper = [by_bfgs.map("SimE with BFGS", "BFGS steps")?, by_bfgs.paths("best-matching BFGS steps", false)];
    let falls = |m: &Matches| {
        let back = |t: &Trend| {
            let best = &t.best[t.span.0..=t.span.1];
            best.windows(2).filter(|w| w[1].row < w[0].row).count()
        };
        m.trends.iter().map(back).max().unwrap_or(0) as f64
    };
    let claims = Claims::new().at_most(
        format!("{id}.bfgs"),
        "BFGS: layers of the span at which the best step falls (worst seed)",
        falls(&by_bfgs),
        0.0,
    );
    let mut config = json!({ "checkpoint": checkpoint, "bfgs": by_bfgs.describe() });
    let by_lbfgs = by_bfgs.with(steps, false, settings, |_| Box::new(lbfgs))?;
    let claims = claims.at_most(
        format!("{id}.lbfgs"),
        "L-BFGS: layers of the span at which the best step falls (worst seed)",
        falls(&by_lbfgs),
        0.0,
    );
    config["lbfgs"] = by_lbfgs.describe();
    let [bfgs_map, bfgs_path] = upper;
    let figure = Figure::new(id, title)
        .caption(
            "BFGS with the line search of SciPy's, and L-BFGS with ten pairs, on the sum of squared residuals from 0. With exact \
             line searches both would have the iterates of CG: what differs between the maps is the line search.",
        )
        .columns(2)
        .panel(bfgs_map)
        .panel(by_lbfgs.map("SimE with L-BFGS", "L-BFGS steps")?)
        .panel(bfgs_path)
        .panel(by_lbfgs.paths("best-matching L-BFGS steps", false));
    Ok(Reproduction { figure, claims, config })
}

/// Figure 11: layers against BFGS and L-BFGS.
///
/// # Errors
/// As [`Layers::load`] and [`Matches::of`].
pub fn fig11(settings: &Settings<'_>) -> Result<Reproduction> {
    let made = bfgs_maps("newton.fig11", "Layers against BFGS and L-BFGS", "newton-s", settings)?;
    let prompts = paper_scale::isotropic(paper_scale::count(320, settings), 0.0, settings.seed)?;
    let measured = paper_scale::with_least_squares(0.0, &Bfgs, &[1, 3, 5, 7, 9, 11], &prompts)?;
    let claims = made.claims.clone().at_most(
        "newton.fig11.paper-scale",
        "d = 20: SimE of BFGS 1, 3, 5, 7, 9, 11 with least squares, largest difference from 0.57, …, 0.94",
        paper_scale::largest_gap(&measured, &BFGS),
        0.02,
    );
    Ok(Reproduction { claims, ..made })
}

/// Figure 18: the same on ill-conditioned data.
///
/// # Errors
/// As [`fig11`].
pub fn fig18(settings: &Settings<'_>) -> Result<Reproduction> {
    bfgs_maps("newton.fig18", "Layers against BFGS and L-BFGS, ill-conditioned data", "newton-s-skew", settings)
}

/// Figure 12: exact conjugate gradient, and how the paper's differs from it.
///
/// # Errors
/// As [`fig11`].
pub fn fig12(settings: &Settings<'_>) -> Result<Reproduction> {
    let networks = Layers::load("newton-s", settings)?;
    let small = networks.first().map_or(5, |l| l.prompts.dim());
    let by_newton = Matches::of(networks, newton_steps(), false, settings, |l| Box::new(l.rivals.newton.clone()))?;
    let newton = by_newton.describe();
    let steps: Vec<usize> = (0..=small + 2).collect();
    let by_cg = by_newton.with(steps, false, settings, |_| Box::new(ConjugateGradient))?;
    let prompts = paper_scale::isotropic(paper_scale::count(320, settings), 0.0, settings.seed)?;
    let all: Vec<usize> = (1..=40).collect();
    let exact = paper_scale::with_least_squares(0.0, &ConjugateGradient, &all, &prompts)?;
    let (d_plus_2, printed_at) = (exact[paper_scale::DIM + 1], (1..=10).map(|k| 4 * k).collect::<Vec<usize>>());
    let panel = Panel::new("d = 20: exact CG and the paper's")
        .x(Axis::linear("CG steps"))
        .y(Axis::linear("SimE"))
        .line(Line::new("exact CG with least squares", &all, &exact).color(Color::GREEN))
        .line(
            Line::new("printed: CG with the last layer", &printed_at, PRINTED_CG).color(Color::RED).dashed().markers(),
        );
    let figure = Figure::new("newton.fig12", "Layers against exact conjugate gradient")
        .caption(
            "Left: the layers of a transformer at d = 5 against exact CG, which the paper does not have: its iterates are least \
             squares from step d on. Middle: best steps of all seeds. Right: the paper's CG lags behind exact CG from step 8 \
             on and never arrives, so that 'transformers converge faster than CG' is a statement about an inexact CG.",
        )
        .columns(3)
        .panel(by_cg.map("SimE with exact CG", "CG steps")?)
        .panel(by_cg.paths("best-matching CG steps", false))
        .panel(panel);
    let at = |ks: [usize; 5]| ks.map(|k| exact[k - 1]);
    let lag = exact[19] - PRINTED_CG[4];
    let least = by_cg.trends.iter().fold(1.0_f64, |w, t| lesser(w, t.fit.r_squared));
    let claims = Claims::new()
        .at_most(
            "newton.fig12.exact",
            "d = 20: SimE of exact CG 1, 4, 10, 16, 20 with least squares, largest difference from 0.66, …, 0.999",
            paper_scale::largest_gap(&at([1, 4, 10, 16, 20]), &CG),
            0.01,
        )
        .at_least("newton.fig12.done", "… after d + 2 steps CG is least squares: SimE", d_plus_2, 0.9995)
        .at_least("newton.fig12.lag", "… the paper's CG lags: exact minus printed SimE at step 20", lag, 0.005)
        .at_least(
            "newton.fig12.linear",
            "not in the paper: best exact-CG steps too are linear over the layers (R², worst seed)",
            least,
            0.9,
        );
    let config = json!({
        "checkpoint": "newton-s", "cg": by_cg.describe(), "newton": newton, "exact_cg_with_least_squares": exact,
    });
    Ok(Reproduction { figure, claims, config })
}
