//! Figure 2: the learnt preconditioners in whitened coordinates are multiples of the identity.

use serde_json::json;

use super::distances::{mean_diagonal, whitened_panels};
use super::recipes;
use crate::algorithms::KernelPolynomial;
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Claims, Figure, greater};
use crate::{Error, Result};

/// Loads or trains the networks, draws seed 0's matrices over training and compares all seeds' with the optimum.
///
/// # Errors
/// As [`recipes::load`].
pub fn run(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("pgd-preconditioner", |_| true, settings)?;
    let first = runs.first().ok_or_else(|| Error::invalid("runs", 0, "at least 1"))?;
    let covariance = first.task.covariance();
    let frames = first.frames(24, |m| whitened_panels(m, covariance))?;
    let optimum = KernelPolynomial::new(5, 20, 3)?;
    let last = frames.len().saturating_sub(1);
    let figure = Figure::new("pgd.fig2", "The learnt preconditioners are multiples of Σ⁻¹")
        .caption(
            "Seed 0, over the training step. Which layer gets which of the three step sizes differs from seed to seed: \
             the loss does not change when layers are swapped (Lemma 4).",
        )
        .columns(3)
        .slider("training step", frames)
        .active(last);

    let (mut worst, mut off): (f64, f64) = (0.0, 0.0);
    let mut found = Vec::new();
    for run in &runs {
        let mut steps = Vec::new();
        for layer in 0..3 {
            let m = run.last()?.whitened_a(layer, run.task.covariance())?;
            steps.push(-mean_diagonal(&m));
            for i in 0..5 {
                off = (0..5).filter(|j| *j != i).fold(off, |o, j| greater(o, m[(i, j)].abs()));
            }
        }
        steps.sort_by(f64::total_cmp);
        worst = steps.iter().zip(&optimum.steps).fold(worst, |w, (a, b)| greater(w, (a / b - 1.0).abs()));
        found.push(steps);
    }
    let claims = Claims::new()
        .at_most(
            "pgd.fig2.steps",
            "the sorted step sizes are 0.42241, 0.68913, 1.71422 (worst relative error over all seeds)",
            worst,
            0.02,
        )
        .at_most("pgd.fig2.off-diagonal", "off-diagonal entries vanish (largest over all seeds)", off, 0.02);
    let config = json!({ "checkpoint": "pgd-preconditioner", "steps": found, "optimum": optimum.steps });
    Ok(Reproduction { figure, claims, config })
}
