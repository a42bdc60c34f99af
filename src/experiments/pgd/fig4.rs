//! Figure 4: the learnt transformations B_0 and B_1 are multiples of the identity.

use serde_json::json;

use super::basins::{coefficients, minima, nearest};
use super::recipes;
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Claims, Figure, Heatmap, Panel, greater};
use crate::models::LinearTransformer;
use crate::{Error, Result};

/// Loads or trains the networks, draws seed 0's matrices over training and compares them with the nearest minimum.
///
/// # Errors
/// As [`recipes::load`].
pub fn run(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("pgd-transform", |_| true, settings)?;
    let first = runs.first().ok_or_else(|| Error::invalid("runs", 0, "at least 1"))?;
    let panels = |m: &LinearTransformer| {
        (0..2).map(|l| Ok(Panel::new(format!("B_{{{l}}}")).heatmap(Heatmap::matrix(&m.b(l)?)))).collect()
    };
    let frames = first.frames(24, panels)?;
    let last = frames.len().saturating_sub(1);
    let figure = Figure::new("pgd.fig4", "The learnt transformations of the covariates are multiples of I")
        .caption("Seed 0, over the training step. The last layer's B has no effect on the prediction.")
        .columns(2)
        .slider("training step", frames)
        .active(last);
    let (minima, _) = minima(3, 20, settings.quick, settings.seed)?;
    let (mut worst, mut found) = (0.0_f64, Vec::new());
    for run in &runs {
        let mine = coefficients(run)?;
        let (_, near, _) = nearest(&mine, &minima).ok_or_else(|| Error::numerical("minima", "none was found"))?;
        worst = mine.b.iter().zip(&near.b).fold(worst, |w, (u, v)| greater(w, (u / v - 1.0).abs()));
        found.push(mine.b);
    }
    let paper = found.iter().filter(|b| (b[0] / 0.905 - 1.0).abs() < 0.05 && (b[1] / 0.565 - 1.0).abs() < 0.05).count();
    let claims = Claims::new()
        .at_most("pgd.fig4.b", "b_0, b_1 are those of a local minimum of GD++ (worst relative error)", worst, 0.05)
        .at_least("pgd.fig4.paper", "seeds whose b are the paper's 0.905 and 0.565 within 5 %", paper as f64, 1.0);
    let config = json!({ "checkpoint": "pgd-transform", "b": found });
    Ok(Reproduction { figure, claims, config })
}
