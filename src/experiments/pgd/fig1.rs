//! Figure 1: three layers of preconditioned gradient descent learn Σ⁻¹ (Theorem 3).

use serde_json::json;

use super::distances::{exact_engine, exact_loss, loss_panel, preconditioner_panel};
use super::recipes;
use crate::Result;
use crate::algorithms::KernelPolynomial;
use crate::compare::{Interval, distance_to_identity};
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Claims, Figure, greater, lesser};

/// Trains or loads the networks, draws the figure and checks its claims.
///
/// # Errors
/// As [`recipes::load`].
pub fn run(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("pgd-preconditioner", |_| true, settings)?;
    let optimum = KernelPolynomial::new(5, 20, 3)?;
    let mut figure = Figure::new("pgd.fig1", "A 3-layer linear transformer learns Σ⁻¹ as its preconditioner")
        .caption(format!(
            "Distances to the identity and test loss over training, eq. 8, d = 5, n = 20; mean and one standard \
             deviation over {} seeds, each with its own rotation of Σ. The dashed line is the exact optimum of the \
             family A = -aΣ⁻¹.",
            runs.len()
        ))
        .columns(2);
    for layer in 0..3 {
        figure = figure.panel(preconditioner_panel(&runs, layer)?);
    }
    figure = figure.panel(loss_panel(&runs, optimum.loss, "exact optimum")?);

    let engine = exact_engine(5, 20, if settings.quick { 20_000 } else { 200_000 }, settings.seed)?;
    let mut tests = Vec::new();
    let mut exact = Vec::new();
    let (mut blue, mut red_low, mut red_high) = (0.0_f64, f64::MAX, f64::MIN);
    for run in &runs {
        let model = run.last()?;
        tests.push(run.test.last().copied().unwrap_or(f64::NAN).ln());
        exact.push(exact_loss(model, run.task.covariance(), &engine)?);
        for layer in 0..3 {
            blue = greater(blue, distance_to_identity(&model.whitened_a(layer, run.task.covariance())?));
            let red = distance_to_identity(&model.a(layer)?);
            (red_low, red_high) = (lesser(red_low, red), greater(red_high, red));
        }
    }
    let mean = Interval::of(&tests);
    let excess = Interval::of(&exact).mean / optimum.loss - 1.0;
    let claims = Claims::new()
        .within("pgd.fig1.loss", "the mean of ln test loss reaches the optimum's -2.0128", mean.mean, -2.03, -1.99)
        .at_most("pgd.fig1.blue", "whitened, every preconditioner becomes a multiple of I (worst of all)", blue, 0.02)
        .at_least("pgd.fig1.red.low", "unwhitened, none does (least distance)", red_low, 0.76)
        .at_most("pgd.fig1.red.high", "… but each is a multiple of Σ⁻¹ (greatest distance)", red_high, 0.80)
        .at_most("pgd.fig1.excess", "the exact loss is above the exact optimum by a fraction of", excess, 0.02)
        .at_most(
            "pgd.fig1.almost-zero",
            "'an almost 0 value': the plateau as a fraction of the initial loss d",
            Interval::of(&exact).mean / 5.0,
            0.01,
        );
    let config = json!({
        "checkpoint": "pgd-preconditioner", "seeds": runs.len(), "ln_test_loss": mean.to_string(),
        "exact_loss": Interval::of(&exact).to_string(), "optimum": optimum.loss,
    });
    Ok(Reproduction { figure, claims, config })
}
