//! What Figures 1 to 5 share: distances to the identity over training, and heat maps of the learnt matrices.

use super::recipes::Trained;
use crate::Result;
use crate::compare::{Interval, distance_to_identity};
use crate::figure::{Axis, Color, Frame, Heatmap, Line, Panel};
use crate::linalg::Matrix;
use crate::models::LinearTransformer;
use crate::ops::wishart::GramSamples;
use crate::tasks::{Covariance, LinearRegression, WeightPrior};

pub(super) const BLUE: Color = Color(0, 92, 175);
pub(super) const RED: Color = Color(200, 45, 35);
pub(super) const GREY: Color = Color(90, 90, 90);

/// `f` of every recorded network of every run, as mean and mean ± standard deviation over the runs.
fn over_training(
    runs: &[Trained],
    f: impl Fn(&LinearTransformer, &Trained) -> Result<f64>,
) -> Result<(Vec<f64>, Vec<f64>, Vec<f64>)> {
    let (mut mean, mut low, mut high) = (Vec::new(), Vec::new(), Vec::new());
    let records = runs.iter().map(|r| r.models.len()).min().unwrap_or(0);
    for k in 0..records {
        let values: Vec<f64> = runs.iter().map(|run| f(&run.models[k], run)).collect::<Result<_>>()?;
        let interval = Interval::of(&values);
        mean.push(interval.mean);
        low.push(interval.mean - interval.std);
        high.push(interval.mean + interval.std);
    }
    Ok((mean, low, high))
}

/// A curve over training: mean and a band of one standard deviation over the runs.
pub(super) fn curve(
    name: &str,
    color: Color,
    runs: &[Trained],
    f: impl Fn(&LinearTransformer, &Trained) -> Result<f64>,
) -> Result<Line> {
    let (mean, low, high) = over_training(runs, f)?;
    let steps = runs.first().map(|r| r.steps.clone()).unwrap_or_default();
    Ok(Line::new(name, steps, mean).band(low, high).color(color))
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
    let records = runs.iter().map(|r| r.test.len()).min().unwrap_or(0);
    let at = |k: usize| Interval::of(&runs.iter().map(|r| r.test[k].ln()).collect::<Vec<_>>());
    let intervals: Vec<Interval> = (0..records).map(at).collect();
    let steps = runs.first().map(|r| r.steps.clone()).unwrap_or_default();
    let line = Line::new("ln test loss", steps, intervals.iter().map(|i| i.mean))
        .band(intervals.iter().map(|i| i.mean - i.std), intervals.iter().map(|i| i.mean + i.std))
        .color(GREY);
    Ok(Panel::new("loss")
        .x(Axis::linear("training step"))
        .y(Axis::linear("ln loss"))
        .line(line)
        .hline(optimum.ln(), format!("{name} {:.3}", optimum.ln())))
}

/// A heat map of a matrix with its entries written out.
pub(super) fn matrix_panel(title: String, matrix: &Matrix) -> Panel {
    let d = matrix.rows();
    let names: Vec<usize> = (1..=d).collect();
    let largest = matrix.as_slice().iter().fold(1e-12_f64, |m, v| m.max(v.abs()));
    Panel::new(title).heatmap(
        Heatmap::new(d, d, matrix.as_slice()).labels(&names, &names).annotate(2).diverging().range(-largest, largest),
    )
}

/// Frames over about `count` of the recorded steps, the last one included.
pub(super) fn frames(
    run: &Trained,
    count: usize,
    panels: impl Fn(&LinearTransformer) -> Result<Vec<Panel>>,
) -> Result<Vec<Frame>> {
    let last = run.models.len().saturating_sub(1);
    let every = last.div_ceil(count.max(1)).max(1);
    let mut chosen: Vec<usize> = (0..=last).rev().step_by(every).collect();
    chosen.reverse();
    chosen.into_iter().map(|k| Ok(Frame::new(run.steps[k], panels(&run.models[k])?))).collect()
}

/// Mean of the diagonal.
pub(super) fn mean_diagonal(m: &Matrix) -> f64 {
    m.trace() / m.rows() as f64
}

/// Wishart samples for the exact loss of whitened networks at context length `n`.
pub(super) fn exact_engine(dim: usize, n: usize, samples: usize, seed: u64) -> Result<GramSamples> {
    let task = LinearRegression::new(Covariance::identity(dim)?, n, WeightPrior::Isotropic)?;
    GramSamples::new(dim, &task.sample_gram(samples, seed)?)
}

/// The exact loss of a network: averaged over w⋆ and the query in closed form, over the context by samples.
pub(super) fn exact_loss(model: &LinearTransformer, covariance: &Covariance, engine: &GramSamples) -> Result<f64> {
    let losses = engine.losses(&model.whitened(covariance)?)?;
    Ok(losses.iter().sum::<f64>() / losses.len() as f64)
}
