//! Figures 5B, 20: least squares does not mind the dimension, a softmax kernel does.

use serde_json::json;

use super::one_layer::mean;
use super::reference;
use crate::Result;
use crate::algorithms::sequences::{Pairing, SequenceAlgorithm, SequenceLeastSquares, SoftmaxKernel, sequence_losses};
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Axis, Claims, Color, Extremes, Figure, Line, Panel, lesser};
use crate::tasks::{Dynamics, Trajectories};

/// The ridge of the authors.
pub(super) const RIDGE: f64 = 1e-3;

/// Mean loss divided by n, the authors' unit of Fig. 5B.
fn per_dimension(algorithm: &dyn SequenceAlgorithm, sequences: &Trajectories) -> Result<f64> {
    Ok(mean(&sequence_losses(algorithm, sequences, None)?) / sequences.dim() as f64)
}

/// The least loss of a softmax kernel over β in (0, `most`].
fn best_kernel(most: f64, sequences: &Trajectories) -> Result<f64> {
    let mut best = f64::INFINITY;
    for k in 1..=10 {
        best = lesser(best, per_dimension(&SoftmaxKernel { beta: most * f64::from(k) / 10.0 }, sequences)?);
    }
    Ok(best)
}

/// Of each dimension, over seeds: least squares with all pairs and with the authors', kernels with β up to 4 and to 20.
fn sweep(dims: &[usize], noise: f64, settings: &Settings<'_>) -> Result<[Vec<Vec<f64>>; 4]> {
    let mut all: [Vec<Vec<f64>>; 4] = Default::default();
    for seed in 0..3 {
        let mut curves: [Vec<f64>; 4] = Default::default();
        for &n in dims {
            let task = Dynamics { noise, ..Dynamics::linear(n, 4 * n)? };
            // Long sequences are many predictions each.
            let batch = (if settings.quick { 640 } else { 2560 } / n).max(32);
            let sequences = task.sample(batch, settings.seed.wrapping_mul(3).wrapping_add(seed))?;
            for (curve, pairing) in curves.iter_mut().zip([Pairing::All, Pairing::Dropped]) {
                curve.push(per_dimension(&SequenceLeastSquares { ridge: RIDGE, pairing }, &sequences)?);
            }
            curves[2].push(best_kernel(4.0, &sequences)?);
            curves[3].push(best_kernel(20.0, &sequences)?);
        }
        all.iter_mut().zip(curves).for_each(|(all, curve)| all.push(curve));
    }
    Ok(all)
}

const NAMES: [&str; 4] =
    ["least squares", "least squares, pair dropped", "softmax kernel, β ≤ 4", "softmax kernel, β ≤ 20"];
const COLORS: [Color; 4] = [Color::BLACK, Color::BLUE, Color::RED, Color::ORANGE];

fn panel(title: &str, dims: &[usize], curves: &[Vec<Vec<f64>>; 4]) -> Panel {
    let mut panel = Panel::new(title).x(Axis::linear("dimension n").ticks(dims)).y(Axis::linear("loss / n"));
    for ((name, color), curves) in NAMES.iter().zip(COLORS).zip(curves) {
        panel = panel.line(Line::mean(*name, dims, curves).color(color).markers());
    }
    panel
}

fn means(curves: &[Vec<f64>]) -> Vec<f64> {
    let dims = curves.first().map_or(0, Vec::len);
    (0..dims).map(|k| mean(&curves.iter().map(|c| c[k]).collect::<Vec<_>>())).collect()
}

/// Figure 5B.
///
/// # Errors
/// None at these sizes.
pub fn dimension(settings: &Settings<'_>) -> Result<Reproduction> {
    let dims: &[usize] = if settings.quick { &[4, 6, 10, 20] } else { &[4, 6, 10, 20, 40, 60] };
    let curves = sweep(dims, 0.01, settings)?;
    let table: [Vec<f64>; 2] = [reference::curve("fig5b/LSQ")?, reference::curve("fig5b/softmax_kernel")?];
    let panel = panel("", dims, &curves)
        .line(Line::new("paper: least squares", dims, &table[0][..dims.len()]).color(Color::BLUE).dotted())
        .line(Line::new("paper: softmax kernel", dims, &table[1][..dims.len()]).color(Color::RED).dotted());
    let figure = Figure::new("mesa.fig5b", "Least squares does not mind the dimension, a softmax kernel does")
        .caption(
            "T = 4n, σ = 0.01, s_{1} ~ U(−1, 1) (the code; the paper says N(0, 1)), 3 seeds, β the best of ten values. Dotted: the \
             authors' stored means. Their least squares loses the newest pair; with it the curve is lower and flatter.",
        )
        .panel(panel);
    let [all, dropped, kernel, _] = [0, 1, 2, 3].map(|k| means(&curves[k]));
    let gap = |ours: &[f64], theirs: &[f64]| ours.iter().zip(theirs).map(|(a, b)| (a / b - 1.0).abs()).greatest();
    let claims = Claims::new()
        .at_most(
            "mesa.fig5b.lsq",
            "least squares as in the code has the stored values (worst relative gap)",
            gap(&dropped, &table[0]),
            0.1,
        )
        .at_most("mesa.fig5b.kernel", "so has the kernel, β ≤ 4 (worst relative gap)", gap(&kernel, &table[1]), 0.1)
        .at_least(
            "mesa.fig5b.grows",
            "the kernel's loss grows with the dimension: n = 20 over n = 6",
            kernel[3] / kernel[1],
            1.1,
        )
        .at_most("mesa.fig5b.flat", "that of least squares does not: n = 20 over n = 6", all[3] / all[1], 1.0);
    let config = json!({ "dims": dims, "lsq": all, "lsq_code": dropped, "kernel": kernel, "ridge": RIDGE });
    Ok(Reproduction { figure, claims, config })
}

/// Figure 20: the same with more noise.
///
/// # Errors
/// None at these sizes.
pub fn noise(settings: &Settings<'_>) -> Result<Reproduction> {
    let dims: &[usize] = if settings.quick { &[4, 6, 10] } else { &[4, 6, 10, 20] };
    let mut figure = Figure::new("mesa.fig20", "The same with noisy dynamics").caption(
        "State noise of variance σ² at every step; otherwise as Figure 5B. The noise adds σ²/2 per dimension, which nothing can predict.",
    );
    let mut claims = Claims::new();
    let mut config = json!({ "dims": dims });
    for variance in [0.1_f64, 0.25, 0.5] {
        let curves = sweep(dims, variance.sqrt(), settings)?;
        let [all, _, kernel, _] = [0, 1, 2, 3].map(|k| means(&curves[k]));
        figure = figure.panel(panel(&format!("σ² = {variance}"), dims, &curves).hline(variance / 2.0, "noise"));
        let last = dims.len() - 1;
        // A ratio of losses and not of differences: with much noise the ridge of the authors overfits, and least squares begins
        // above the kernel.
        claims = claims.at_least(
            format!("mesa.fig20.{variance}"),
            format!(
                "σ² = {variance}: the kernel's loss grows faster with n than that of least squares (ratio of n = {} over n = 4)",
                dims[last]
            ),
            (kernel[last] / kernel[0]) / (all[last] / all[0]),
            1.0,
        );
        config[format!("{variance}")] = json!({ "lsq": all, "kernel": kernel });
    }
    Ok(Reproduction { figure: figure.columns(3), claims, config })
}
