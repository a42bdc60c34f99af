//! Figure 5 (Appendix D): the learnt preconditioners of GD++ are multiples of Σ⁻¹ that grow with the layer.

use serde_json::json;

use super::basins::{coefficients, minima, nearest};
use super::distances::whitened_panels;
use super::recipes;
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Claims, Figure, greater};
use crate::{Error, Result};

/// Loads or trains the networks, draws seed 0's matrices over training and compares them with the nearest minimum.
///
/// # Errors
/// As [`recipes::load`].
pub fn run(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("pgd-transform", |_| true, settings)?;
    let first = runs.first().ok_or_else(|| Error::invalid("runs", 0, "at least 1"))?;
    let covariance = first.task.covariance();
    let frames = first.frames(24, |m| whitened_panels(m, covariance))?;
    let last = frames.len().saturating_sub(1);
    let figure = Figure::new("pgd.fig5", "The preconditioners of GD++ grow with the layer")
        .caption("Seed 0, over the training step. Each layer shrinks the covariates, so the next takes larger steps.")
        .columns(3)
        .slider("training step", frames)
        .active(last);
    let (minima, _) = minima(3, 20, settings.quick, settings.seed)?;
    let (mut worst, mut ordered, mut found) = (0.0_f64, 0, Vec::new());
    for run in &runs {
        let mine = coefficients(run)?;
        let (_, near, _) = nearest(&mine, &minima).ok_or_else(|| Error::numerical("minima", "none was found"))?;
        worst = mine.a.iter().zip(&near.a).fold(worst, |w, (u, v)| greater(w, (u / v - 1.0).abs()));
        ordered += usize::from(mine.a.is_sorted());
        found.push(mine.a);
    }
    let claims = Claims::new()
        .at_most("pgd.fig5.a", "a_0, a_1, a_2 are those of a local minimum of GD++ (worst relative error)", worst, 0.05)
        .at_least(
            "pgd.fig5.order",
            "fraction of seeds with ‖A_0‖ ≤ ‖A_1‖ ≤ ‖A_2‖",
            ordered as f64 / runs.len() as f64,
            1.0,
        );
    let config = json!({ "checkpoint": "pgd-transform", "a": found });
    Ok(Reproduction { figure, claims, config })
}
