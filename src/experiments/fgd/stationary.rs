//! Figures 4 to 6: where training comes to rest with Σ ≠ I. Theorem 1 (A = 0) and Theorem 2 (A free) say B_lᵀC_l ∝ Σ⁻¹ and
//! A_l ∝ I.

use serde_json::json;

use super::common::{ln_bayes, losses};
use super::recipes::{self, EIGENVALUES, Trained};
use crate::Result;
use crate::compare::distance_to_identity;
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Axis, Claims, Color, Figure, Frame, Heatmap, Line, Panel, greater};
use crate::linalg::Matrix;
use crate::models::KernelTransformer;
use crate::ops::kernel_transformer::ValueBlock;

/// The networks of the figures: the kernel of the labels and the activation.
const NETWORKS: [(&str, &str); 4] = [("exp", "exp"), ("ReLU", "ReLU"), ("linear", "linear"), ("exp", "softmax")];
const LAYERS: usize = 3;

/// Figure 4: A = 0.
///
/// # Errors
/// As [`recipes::load`].
pub fn zero(settings: &Settings<'_>) -> Result<Reproduction> {
    distances("fgd.fig4", ValueBlock::Zero, settings)
}

/// Figure 5: A free.
///
/// # Errors
/// As [`recipes::load`].
pub fn free(settings: &Settings<'_>) -> Result<Reproduction> {
    distances("fgd.fig5", ValueBlock::Free, settings)
}

fn runs_of(network: (&str, &str), values: ValueBlock, settings: &Settings<'_>) -> Result<Vec<Trained>> {
    let wanted = |run: &recipes::Run| {
        let p = &run.protocol;
        p.kernel.name() == network.0 && p.heads_name() == network.1 && p.values == values
    };
    recipes::load("fgd-stationary", wanted, settings)
}

/// A curve over training: mean and one standard deviation over the seeds.
fn curve(
    name: &str,
    color: Color,
    runs: &[Trained],
    f: impl Fn(&KernelTransformer, &Trained) -> Result<Matrix>,
) -> Result<Line> {
    let of =
        |run: &Trained| run.models.iter().map(|m| Ok(distance_to_identity(&f(m, run)?))).collect::<Result<Vec<_>>>();
    let curves: Vec<Vec<f64>> = runs.iter().map(of).collect::<Result<_>>()?;
    let steps = runs.first().map(|r| r.steps.clone()).unwrap_or_default();
    Ok(Line::mean(name, steps, &curves).color(color))
}

fn whitened(m: &KernelTransformer, run: &Trained, layer: usize) -> Result<Matrix> {
    m.whitened_bc(layer, 0, run.task.covariance())
}

fn panels(runs: &[Trained], values: ValueBlock, bayes: f64) -> Result<Vec<Panel>> {
    let distance = |title: String| {
        Panel::new(title).x(Axis::linear("training step")).y(Axis::linear("distance to identity").range(0.0, 1.02))
    };
    let mut panels = Vec::new();
    for layer in 0..LAYERS {
        panels.push(
            distance(format!("B_{{{layer}}}^{{T}}C_{{{layer}}}"))
                .line(curve("Dist(Σ^{1/2} BᵀC Σ^{1/2}, I)", Color::BLUE, runs, |m, run| whitened(m, run, layer))?)
                .line(curve("Dist(BᵀC, I)", Color::RED, runs, |m, _| m.bc(layer, 0))?),
        );
    }
    if values == ValueBlock::Free {
        // The last A has no effect on the prediction: its distance means nothing.
        for layer in 0..LAYERS - 1 {
            let a = curve("Dist(A, I)", Color::GREEN, runs, |m, _| m.a(layer, 0))?;
            panels.push(distance(format!("A_{{{layer}}}")).line(a));
        }
    }
    let curves: Vec<Vec<f64>> = runs.iter().map(|run| run.test.iter().map(|loss| loss.ln()).collect()).collect();
    let steps = runs.first().map(|r| r.steps.clone()).unwrap_or_default();
    let loss = Panel::new("loss")
        .x(Axis::linear("training step"))
        .y(Axis::linear("ln loss"))
        .line(Line::mean("ln test loss", steps, &curves).color(Color::GREY));
    let loss = if bayes.is_finite() { loss.hline(bayes, format!("Bayes {bayes:.3}")) } else { loss };
    panels.push(loss);
    Ok(panels)
}

fn distances(id: &str, values: ValueBlock, settings: &Settings<'_>) -> Result<Reproduction> {
    let (theorem, title) = match values {
        ValueBlock::Zero => (1, "With A = 0, BᵀC becomes a multiple of Σ⁻¹"),
        ValueBlock::Free => (2, "With A free, BᵀC becomes a multiple of Σ⁻¹ and A of I"),
    };
    let size = if settings.quick { 4000 } else { 20_000 };
    let (mut frames, mut claims, mut table) = (Vec::new(), Claims::new(), Vec::new());
    let mut seeds = 0;
    for network in NETWORKS {
        let runs = runs_of(network, values, settings)?;
        seeds = runs.len();
        let name = format!("{} attention, {} data", network.1, network.0);
        frames.push(Frame::new(&name, panels(&runs, values, ln_bayes(network.0, 14, size)?)?));
        // Of no network nothing is known.
        let none = if runs.is_empty() { f64::NAN } else { 0.0 };
        let (mut worst, mut worst_a, mut raw) = (none, none, Vec::new());
        for run in &runs {
            let model = run.last()?;
            for layer in 0..LAYERS {
                worst = greater(worst, distance_to_identity(&whitened(model, run, layer)?));
                raw.push(distance_to_identity(&model.bc(layer, 0)?));
                if values == ValueBlock::Free && layer + 1 < LAYERS {
                    worst_a = greater(worst_a, distance_to_identity(&model.a(layer, 0)?));
                }
            }
        }
        let key = format!("{}-{}", network.0, network.1);
        claims = claims.at_most(
            format!("{id}.{key}"),
            format!("{name}: whitened BᵀC is a multiple of I (worst of layers and seeds)"),
            worst,
            0.05,
        );
        if values == ValueBlock::Free {
            claims = claims.at_most(
                format!("{id}.{key}.a"),
                format!("{name}: A₀ and A₁ are multiples of I (worst)"),
                worst_a,
                0.05,
            );
        }
        let mean_raw = raw.iter().sum::<f64>() / raw.len().max(1) as f64;
        if network == ("exp", "exp") {
            let inverse = Matrix::diagonal(&EIGENVALUES.map(|v| 1.0 / v));
            claims = claims.equals(
                format!("{id}.raw"),
                "and BᵀC itself ends as far from I as Σ⁻¹ is (mean over layers and seeds)",
                mean_raw,
                // As it is printed; the tolerance is far above the rounding.
                (1e4 * distance_to_identity(&inverse)).round() / 1e4,
                0.02,
            );
        }
        table.push(json!({
            "network": name, "worst_whitened": worst, "worst_a": worst_a, "mean_raw": mean_raw,
            "ln_loss": losses(runs.iter()).to_string(),
        }));
    }
    let figure = Figure::new(id, title)
        .caption(format!(
            "Theorem {theorem}, L = 3, n = 14, Σ with eigenvalues 1, 1, 0.25, 2.25, 1, rotated for each of {seeds} seeds: \
             distances to the identity over training, mean and one standard deviation."
        ))
        .columns(3)
        .buttons("network", frames);
    let config = json!({ "checkpoint": "fgd-stationary", "values": format!("{values:?}"), "networks": table });
    Ok(Reproduction { figure, claims, config })
}

/// Figure 6: the learnt matrices of the exponential network with A free, over training.
///
/// # Errors
/// As [`recipes::load`].
pub fn matrices(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = runs_of(("exp", "exp"), ValueBlock::Free, settings)?;
    let mut frames = Vec::new();
    let mut off = 0.0_f64;
    for run in &runs {
        for layer in 0..LAYERS {
            let m = whitened(run.last()?, run, layer)?;
            let mean = m.trace() / m.rows() as f64;
            for i in 0..m.rows() {
                off = (0..m.cols()).filter(|j| *j != i).fold(off, |o, j| greater(o, (m[(i, j)] / mean).abs()));
            }
        }
    }
    if let Some(run) = runs.first() {
        let last = run.models.len().saturating_sub(1);
        for (k, model) in run.models.iter().enumerate().filter(|(k, _)| k % 2 == 0 || *k == last) {
            let mut panels = Vec::new();
            for layer in 0..LAYERS {
                let title = format!("Σ^{{1/2}} B_{{{layer}}}^{{T}}C_{{{layer}}} Σ^{{1/2}}");
                panels.push(Panel::new(title).heatmap(Heatmap::matrix(&whitened(model, run, layer)?)));
            }
            for layer in 0..LAYERS - 1 {
                panels.push(Panel::new(format!("A_{{{layer}}}")).heatmap(Heatmap::matrix(&model.a(layer, 0)?)));
            }
            frames.push(Frame::new(run.steps[k], panels));
        }
    }
    let active = frames.len().saturating_sub(1);
    let figure = Figure::new("fgd.fig6", "What an exponential network learns")
        .caption(
            "Seed 0, A free, exponential attention on exponential data, over the training step. The matrix of the scores in \
             whitened coordinates, and A of the layers whose A has an effect.",
        )
        .columns(3)
        .slider("training step", frames)
        .active(active);
    let claims = Claims::new().at_most(
        "fgd.fig6.off-diagonal",
        "off-diagonal entries of whitened BᵀC vanish beside the diagonal (largest over layers and seeds)",
        off,
        0.05,
    );
    let config = json!({ "checkpoint": "fgd-stationary" });
    Ok(Reproduction { figure, claims, config })
}
