//! Figure 3: with B free, the network learns GD++ (Theorem 4), far below preconditioned gradient descent.

use serde_json::json;

use super::basins::{coefficients, minima, nearest};
use super::distances::{BLUE, curve, exact_engine, exact_loss, loss_panel, preconditioner_panel};
use super::recipes::{self, Trained};
use crate::Result;
use crate::algorithms::KernelPolynomial;
use crate::compare::{Interval, distance_to_identity};
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Axis, Claims, Figure, Panel, greater};
use crate::models::LinearTransformer;

/// Trains or loads the networks, draws the figure and checks its claims.
///
/// # Errors
/// As [`recipes::load`].
pub fn run(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("pgd-transform", |_| true, settings)?;
    let demonstration = recipes::load("pgd-identity", |_| true, settings)?;
    let (minima, _) = minima(3, 20, settings.quick, settings.seed)?;
    let best = minima.first().map_or(f64::NAN, |m| m.1);
    let plain = KernelPolynomial::new(5, 20, 3)?.loss;
    let b_panel = |layer: usize| -> Result<Panel> {
        let f = |m: &LinearTransformer, _: &Trained| Ok(distance_to_identity(&m.b(layer)?));
        Ok(Panel::new(format!("B_{{{layer}}}"))
            .x(Axis::linear("training step"))
            .y(Axis::linear("distance to identity").range(0.0, 1.02))
            .line(curve("Dist(B, I)", BLUE, &runs, f)?))
    };
    let mut figure = Figure::new("pgd.fig3", "A 3-layer linear transformer with free B learns GD++")
        .caption(format!(
            "Distances to the identity and test loss over training, eq. 11, d = 5, n = 20 (the text says 10, the \
             authors' code 20); mean and one standard deviation over {} seeds. The lines in the loss are the best local \
             minimum of the family A = -aΣ⁻¹, B = bI, and the optimum without B (Figure 1).",
            runs.len()
        ))
        .columns(3)
        .panel(b_panel(0)?)
        .panel(b_panel(1)?)
        .panel(loss_panel(&runs, best, "best minimum")?.hline(plain.ln(), format!("without B {:.3}", plain.ln())));
    for layer in 0..3 {
        figure = figure.panel(preconditioner_panel(&runs, layer)?);
    }

    let engine = exact_engine(5, 20, if settings.quick { 20_000 } else { 200_000 }, settings.seed)?;
    let (mut distance_a, mut distance_b, mut worst) = (0.0_f64, 0.0_f64, 0.0_f64);
    let (mut tests, mut exact, mut basins) = (Vec::new(), Vec::new(), Vec::new());
    for run in &runs {
        let model = run.last()?;
        tests.push(run.test.last().copied().unwrap_or(f64::NAN).ln());
        exact.push(exact_loss(model, run.task.covariance(), &engine)?.ln());
        for layer in 0..3 {
            distance_a = greater(distance_a, distance_to_identity(&model.whitened_a(layer, run.task.covariance())?));
        }
        for layer in 0..2 {
            distance_b = greater(distance_b, distance_to_identity(&model.b(layer)?));
        }
        let found = coefficients(run)?;
        let near = nearest(&found, &minima);
        let (place, error) = (near.map(|n| n.0 + 1), near.map_or(f64::NAN, |n| n.2));
        worst = greater(worst, error);
        basins.push(json!({ "seed": run.name, "a": found.a, "b": found.b, "minimum": place, "error": error }));
    }
    let others: Vec<usize> = demonstration
        .iter()
        .map(|run| Ok(nearest(&coefficients(run)?, &minima).map_or(usize::MAX, |n| n.0)))
        .collect::<Result<_>>()?;
    let elsewhere = others.iter().filter(|place| **place > 0).count();
    let mean = Interval::of(&tests);
    let claims = Claims::new()
        .at_most("pgd.fig3.loss", "ln test loss, mean over the seeds", mean.mean, -6.5)
        .at_most("pgd.fig3.dist-a", "every whitened A becomes a multiple of I (worst of all)", distance_a, 0.1)
        .at_most("pgd.fig3.dist-b", "B_0 and B_1 become multiples of I (worst of all)", distance_b, 0.1)
        .at_most(
            "pgd.fig3.minimum",
            "the coefficients are those of a local minimum of GD++ (worst relative error)",
            worst,
            0.05,
        )
        .at_least(
            "pgd.fig3.minima",
            "there are several strict local minima: distinct ones found by BFGS",
            minima.len() as f64,
            5.0,
        )
        .equals("pgd.fig3.best", "the loss of the best of them", best, 6.84e-4, 0.03 * 6.84e-4)
        .at_least(
            "pgd.fig3.other-basin",
            "the authors' demonstration (Σ = I) ends in another minimum than the best (number of seeds)",
            elsewhere as f64,
            1.0,
        );
    let table: Vec<_> = minima.iter().map(|(m, f)| json!({ "loss": f, "a": m.a, "b": m.b })).collect();
    let config = json!({
        "checkpoints": ["pgd-transform", "pgd-identity"], "seeds": runs.len(), "ln_test_loss": mean.to_string(),
        "ln_exact_loss": Interval::of(&exact).to_string(), "networks": basins, "minima": table,
        "demonstration_minima": others.iter().map(|p| p + 1).collect::<Vec<_>>(),
    });
    Ok(Reproduction { figure, claims, config })
}
