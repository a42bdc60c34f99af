//! What Figures 1 to 5 share: distances to the identity over training, and heat maps of the learnt matrices.

use super::recipes::Trained;
use crate::Result;
use crate::compare::distance_to_identity;
use crate::figure::{Axis, Color, Heatmap, Line, Panel};
use crate::linalg::Matrix;
use crate::models::LinearTransformer;
use crate::ops::wishart::GramSamples;
use crate::tasks::{Covariance, LinearRegression, WeightPrior};

pub(super) const BLUE: Color = Color(0, 92, 175);
pub(super) const RED: Color = Color(200, 45, 35);
pub(super) const GREY: Color = Color(90, 90, 90);

/// A curve over training: mean and a band of one standard deviation over the runs.
pub(super) fn curve(
    name: &str,
    color: Color,
    runs: &[Trained],
    f: impl Fn(&LinearTransformer, &Trained) -> Result<f64>,
) -> Result<Line> {
    let curves: Vec<Vec<f64>> =
        runs.iter().map(|run| run.over_training(|model| f(model, run))).collect::<Result<_>>()?;
    let steps = runs.first().map(|r| r.steps.clone()).unwrap_or_default();
    Ok(Line::mean(name, steps, &curves).color(color))
}

/// Dist(Σ^{1/2} A_l Σ^{1/2}, I) in blue and Dist(A_l, I) in red over training.
pub(super) fn preconditioner_panel(runs: &[Trained], layer: usize) -> Result<Panel> {
    let whitened =
        |m: &LinearTransformer, run: &Trained| Ok(distance_to_identity(&m.whitened_a(layer, run.task.covariance())?));
    let raw = |m: &LinearTransformer, _: &Trained| Ok(distance_to_identity(&m.a(layer)?));
    Ok(Panel::new(format!("A_{{{layer}}}"))
        .x(Axis::linear("training step"))
        .y(Axis::linear("distance to identity").range(0.0, 1.02))
        .line(curve("Dist(Σ^{1/2} A Σ^{1/2}, I)", BLUE, runs, whitened)?)
        .line(curve("Dist(A, I)", RED, runs, raw)?))
}

/// The logarithm of the test loss over training, and the optimum.
pub(super) fn loss_panel(runs: &[Trained], optimum: f64, name: &str) -> Result<Panel> {
    let curves: Vec<Vec<f64>> = runs.iter().map(|run| run.test.iter().map(|loss| loss.ln()).collect()).collect();
    let steps = runs.first().map(|r| r.steps.clone()).unwrap_or_default();
    let line = Line::mean("ln test loss", steps, &curves).color(GREY);
    Ok(Panel::new("loss")
        .x(Axis::linear("training step"))
        .y(Axis::linear("ln loss"))
        .line(line)
        .hline(optimum.ln(), format!("{name} {:.3}", optimum.ln())))
}

/// Heat maps of every layer's Σ^{1/2} A_l Σ^{1/2}.
pub(super) fn whitened_panels(model: &LinearTransformer, covariance: &Covariance) -> Result<Vec<Panel>> {
    let panel = |l: usize| {
        let title = format!("Σ^{{1/2}} A_{{{l}}} Σ^{{1/2}}");
        Ok(Panel::new(title).heatmap(Heatmap::matrix(&model.whitened_a(l, covariance)?)))
    };
    (0..model.layers()).map(panel).collect()
}

/// Mean of the diagonal.
pub(super) fn mean_diagonal(m: &Matrix) -> f64 {
    m.trace() / m.rows() as f64
}

/// Wishart samples for the exact loss of whitened networks at context length `n`, the rare large ones among them.
pub(super) fn exact_engine(dim: usize, n: usize, samples: usize, seed: u64) -> Result<GramSamples> {
    let task = LinearRegression::new(Covariance::identity(dim)?, n, WeightPrior::Isotropic)?;
    let (grams, weights) = task.sample_gram_tails(samples, seed)?;
    GramSamples::weighted(dim, &grams, &weights)
}

/// The exact loss of a network: averaged over w⋆ and the query in closed form, over the context by samples.
pub(super) fn exact_loss(model: &LinearTransformer, covariance: &Covariance, engine: &GramSamples) -> Result<f64> {
    engine.loss(&model.whitened(covariance)?)
}
