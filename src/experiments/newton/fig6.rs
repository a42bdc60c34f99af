//! Figure 6: how wide the residual stream has to be.

use serde_json::json;

use super::analysis::test_prompts;
use super::matching::MODEL;
use super::{paper_scale, recipes};
use crate::Result;
use crate::algorithms::{LeastSquares, Predictions};
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Axis, Claims, Extremes, Figure, Line, Panel};

/// Draws the figure and checks its claims.
///
/// # Errors
/// As [`recipes::load`].
pub fn run(settings: &Settings<'_>) -> Result<Reproduction> {
    let networks = recipes::load("newton-s-width", settings)?;
    let mut panel = Panel::new("").x(Axis::linear("examples")).y(Axis::linear("squared error / d").range(0.0, 1.2));
    let mut excess = Vec::new();
    let mut solved = Vec::new();
    for network in &networks {
        let prompts = test_prompts(network, settings)?;
        let (d, n) = (prompts.dim(), prompts.context());
        let made = network.model.predict(&prompts)?;
        let mse = Predictions::new(prompts.len(), n + 1, vec![made])?.mse(0, &prompts)?;
        let errors: Vec<f64> = mse.iter().map(|e| e / d as f64).collect();
        solved = paper_scale::errors(&LeastSquares::default(), &[0], &prompts)?.remove(0);
        let beyond = |curve: &[f64]| curve[d + 1..].iter().sum::<f64>() / (n - d) as f64;
        excess.push(beyond(&errors) - beyond(&solved));
        panel = panel.line(Line::new(format!("width {}", network.model.width()), 0..=n, errors).markers());
    }
    let positions = 0..solved.len();
    panel = panel.line(Line::new("least squares", positions, &solved).color(MODEL).dashed());
    let figure = Figure::new("newton.fig6", "How wide the residual stream has to be")
        .caption(
            "Transformers of 8 layers with one head, d = 5, of widths 0.4 d, 0.8 d, 1.6 d and 3.2 d, as in the paper (8, 16, 32 \
             and 64 at d = 20). There the widths 1.6 d and 3.2 d are at least squares; here, after some forty times fewer steps, \
             1.6 d is not.",
        )
        .panel(panel);
    // The recipe has the widths in ascending order.
    let (narrow, wide) = excess.split_at(excess.len() / 2);
    let claims = Claims::new()
        .at_most(
            "newton.fig6.wide",
            "t > d: mean excess over least squares, the larger of the two wide networks'",
            wide.iter().copied().greatest(),
            0.1,
        )
        .at_least(
            "newton.fig6.narrow",
            "… the smaller of the two narrow networks'",
            narrow.iter().copied().least(),
            0.2,
        );
    Ok(Reproduction { figure, claims, config: json!({ "checkpoint": "newton-s-width", "excess": excess }) })
}
