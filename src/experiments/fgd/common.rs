//! What the figures share: Bayes floors, curves over seeds, the best constant step of functional gradient descent.

use rayon::prelude::*;

use super::recipes::{DIM, TEST_SEED, Trained, kernel};
use crate::Result;
use crate::algorithms::{bayes_risk, risk};
use crate::compare::Interval;
use crate::figure::{Color, Line, Panel};
use crate::linalg::Matrix;
use crate::ops::kernel_prompts::{KernelPrompts, Labels};
use crate::tasks::{Covariance, Kernel, KernelRegression};

/// The colour of each kind of head.
pub(super) fn color(heads: &str) -> Color {
    match heads {
        "linear" => Color::BLUE,
        "ReLU" => Color::ORANGE,
        "exp" => Color::GREEN,
        "softmax" => Color::PURPLE,
        _ => Color::RED,
    }
}

/// What captions say of trainings that start from a shallower network.
pub(super) const AGAIN: &str = "at half or a quarter of the rate where that diverged or ended worse than it began";

/// Prompts of the test batch with Σ = I, their labels' covariances in double precision.
pub(super) fn test_prompts(kernel: &Kernel, n: usize, size: usize) -> Result<KernelPrompts<f64>> {
    KernelRegression::new(kernel.clone(), Covariance::identity(DIM)?, n)?.prompts(size, Labels::Covariance, TEST_SEED)
}

/// The mean of `f` of the labels' covariance of every prompt, in the order of the prompts.
pub(super) fn mean_over(prompts: &KernelPrompts<f64>, f: impl Fn(&Matrix) -> Result<f64> + Sync) -> Result<f64> {
    let covariance = |k| prompts.covariance(k).unwrap_or_else(|| Matrix::identity(prompts.context() + 1));
    let values: Vec<f64> = (0..prompts.len()).into_par_iter().map(|k| f(&covariance(k))).collect::<Result<_>>()?;
    Ok(values.iter().sum::<f64>() / values.len() as f64)
}

/// A Bayes risk of this size is what rounding leaves of 0.
const ROUNDING: f64 = 1e-12;

/// ln of the Bayes risk of the paper's kernel `name` at context length n on the test batch: exact over labels. −∞ where the
/// labels determine the function.
pub(super) fn ln_bayes(name: &str, n: usize, size: usize) -> Result<f64> {
    let risk = mean_over(&test_prompts(&kernel(name)?, n, size)?, bayes_risk)?;
    Ok(if risk > ROUNDING { risk.ln() } else { f64::NEG_INFINITY })
}

/// NaN, which a figure leaves out, for what is not finite.
pub(super) fn drawn(value: f64) -> f64 {
    if value.is_finite() { value } else { f64::NAN }
}

/// The ln test losses of some runs.
pub(super) fn losses<'a>(runs: impl Iterator<Item = &'a Trained>) -> Interval {
    Interval::of(&runs.map(Trained::ln_loss).collect::<Vec<_>>())
}

/// A line through the means over seeds, with a band of a standard deviation.
pub(super) fn line(name: &str, x: &[usize], values: &[Interval]) -> Line {
    let edge = |sign: f64| values.iter().map(move |i| i.mean + sign * i.std);
    Line::new(name, x.iter().copied(), values.iter().map(|i| i.mean))
        .band(edge(-1.0), edge(1.0))
        .color(color(name))
        .markers()
}

/// Draws the Bayes floor, dashed; where it is −∞ there is none to draw.
pub(super) fn with_bayes(panel: Panel, x: &[usize], values: &[f64]) -> Panel {
    if values.iter().all(|v| !v.is_finite()) {
        return panel;
    }
    let floor = Line::new("Bayes", x.iter().copied(), values.iter().map(|v| drawn(*v)));
    panel.line(floor.color(Color::BLACK).dashed().markers())
}

/// The ln risk of `steps` steps of functional gradient descent with the data's own kernel and the best constant step,
/// for each number of steps.
///
/// In the eigenvectors of K̂ the weights after l steps of size η are (1 − (1 − ηλ)ˡ) / λ times those of the kernel's values
/// at the query. The kernel's own matrix drives the iteration and K₊ is the covariance of the labels: they differ for a
/// kernel that is not positive semi-definite.
pub(super) fn descent(kernel: &Kernel, n: usize, steps: &[usize], size: usize) -> Result<Vec<f64>> {
    let prompts = test_prompts(kernel, n, size)?;
    // From 0.01 on by factors of 1.08: beyond 2 / λ_max, which is less than 2, the iteration diverges.
    let grid: Vec<f64> = (0..70).map(|k| 0.01 * 1.08_f64.powi(k)).collect();
    let of_prompt = |k: usize| -> Result<Vec<f64>> {
        let covariance = prompts.covariance(k).unwrap_or_else(|| Matrix::identity(n + 1));
        let gram = kernel.gram(&prompts.x(k).unwrap_or_default(), DIM)?;
        let (values, vectors) = Matrix::from_fn(n, n, |i, j| gram[(i, j)]).eigen_symmetric()?;
        let query: Vec<f64> = (0..n).map(|i| gram[(i, n)]).collect();
        let query = vectors.transpose().mul_vec(&query);
        let mut all = Vec::with_capacity(grid.len() * steps.len());
        for eta in &grid {
            for step in steps {
                let filter = |v: f64| {
                    if v.abs() < 1e-9 { eta * *step as f64 } else { (1.0 - (1.0 - eta * v).powi(*step as i32)) / v }
                };
                let filtered: Vec<f64> = values.iter().zip(&query).map(|(v, q)| filter(*v) * q).collect();
                all.push(risk(&vectors.mul_vec(&filtered), &covariance)?);
            }
        }
        Ok(all)
    };
    let risks: Vec<Vec<f64>> = (0..prompts.len()).into_par_iter().map(of_prompt).collect::<Result<_>>()?;
    let mean = |at: usize| risks.iter().map(|r| r[at]).sum::<f64>() / risks.len() as f64;
    let best = |s: usize| {
        let finite = (0..grid.len()).map(|g| mean(g * steps.len() + s)).filter(|v| v.is_finite());
        finite.fold(f64::INFINITY, f64::min).ln()
    };
    Ok((0..steps.len()).map(best).collect())
}
