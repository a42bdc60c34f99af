//! Figures 3B, 13, 4A, 4C: one layer of linear attention learns one step of gradient descent (Prop. 1), at the paper's scale.

use serde_json::json;

use super::recipes::{self, FULL, Trained};
use super::reference;
use super::weights::{block_fraction, compressed, halfway, map, mean_diagonal, products, with_products};
use crate::algorithms::sequences::{SequenceGradient, sequence_losses};
use crate::compare::Interval;
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Axis, Claims, Color, Extremes, Figure, Heatmap, Line, Panel};
use crate::models::SequenceTransformer;
use crate::tasks::{Dynamics, Trajectories};
use crate::{Error, Result};

/// Mean of a curve.
pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn test(settings: &Settings<'_>) -> Result<Trajectories> {
    Dynamics::linear(FULL.0, FULL.1)?.sample(if settings.quick { 512 } else { 4096 }, settings.seed.wrapping_add(77))
}

fn first(runs: &[Trained]) -> Result<&Trained> {
    runs.first().ok_or_else(|| Error::invalid("runs", 0, "at least 1"))
}

/// A product of weights as a heat map.
pub(super) fn product_panel(title: &str, m: &crate::linalg::Matrix, range: f64) -> Panel {
    Panel::new(title).heatmap(Heatmap::new(m.rows(), m.cols(), m.as_slice()).diverging().range(-range, range))
}

/// Figures 3B and 13: the products of the trained layer's weights.
///
/// # Errors
/// As [`recipes::load`].
pub fn weights(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("mesa-one-layer", |_| true, settings)?;
    let n = FULL.0;
    let gradient = SequenceGradient::line_searched(&test(settings)?)?;
    let (mut rates, mut fractions, mut answers) = (Vec::new(), Vec::new(), Vec::new());
    for run in &runs {
        let heads = products(&run.model)?.swap_remove(0);
        rates.push(heads.iter().map(|[kq, pv]| mean_diagonal(kq, n, 3, 2) * mean_diagonal(pv, n, 0, 2)).sum::<f64>());
        for [kq, pv] in &heads {
            answers.push(block_fraction(kq, n));
            fractions.push(block_fraction(pv, n));
        }
    }
    let mut figure = Figure::new("mesa.fig3b", "The weights of one linear layer are those of Prop. 1")
        .caption(
            "Products of the trained weights of one seed, n = 10, T = 50. Rows and columns are a token's channels: 1 to 10 the \
             output, 11 to 20 nothing, 21 to 30 s_{t}, 31 to 40 s_{t−1}. W_{K}ᵀW_{Q} (rows: key, columns: query) compares s_{t−1} of \
             the keys with s_{t} of the query; P W_{V} writes s_{t} to the output: the update of one gradient step.",
        )
        .columns(2);
    for (h, [kq, pv]) in products(&first(&runs)?.model)?.swap_remove(0).iter().enumerate() {
        figure = figure
            .panel(product_panel(&format!("W_{{K}}ᵀW_{{Q}}, head {}", h + 1), kq, 0.2))
            .panel(product_panel(&format!("P W_{{V}}, head {}", h + 1), pv, 0.2));
    }
    let worst = fractions.iter().copied().least();
    let rate = mean(&rates);
    let claims = Claims::new()
        .at_most(
            "mesa.fig3b.rate",
            "the weights' step size Σ_{h} (W_{K}ᵀW_{Q})(P W_{V}) is the line-searched η (relative gap)",
            (rate / gradient.rate - 1.0).abs(),
            0.1,
        )
        .at_least(
            "mesa.fig3b.value",
            "P W_{V} is made of multiples of the identity (least share, heads and seeds)",
            worst,
            0.75,
        )
        .at_least("mesa.fig3b.key", "… and so is W_{K}ᵀW_{Q} (mean share)", mean(&answers), 0.75);
    let config = json!({
        "checkpoint": "mesa-one-layer", "step_size": rates, "line_searched": gradient.rate, "fraction_pv": fractions,
        "fraction_kq": answers, "start": "U(-1, 1), the authors' code",
    });
    Ok(Reproduction { figure, claims, config })
}

/// The compressed model, and the one halfway between it and `model`.
pub(super) fn compress(
    trained: &SequenceTransformer,
    now: &SequenceTransformer,
    n: usize,
) -> Result<[SequenceTransformer; 2]> {
    let small = map(&products(trained)?, |m| compressed(m, n));
    Ok([with_products(trained, &small)?, with_products(trained, &halfway(&small, &products(now)?))?])
}

/// Figure 4A: losses over training, and of the interpolation.
///
/// # Errors
/// As [`recipes::load`].
pub fn training(settings: &Settings<'_>) -> Result<Reproduction> {
    let n = FULL.0;
    let runs = recipes::load("mesa-one-layer", |_| true, settings)?;
    let mesa = recipes::load("mesa-layer", |_| true, settings)?;
    let test = first(&runs)?.protocol.test()?;
    let gradient = SequenceGradient::line_searched(&test)?;
    let step = mean(&sequence_losses(&gradient, &test, None)?);
    let (mut curves, mut halves, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    for run in &runs {
        let tokens = run.tokens::<f32>(&test)?;
        let loss = |m: &SequenceTransformer| Ok(mean(&test.losses(&m.predict(&tokens)?)?));
        curves.push(run.history.measure("test")?.to_vec());
        let half: Vec<f64> =
            run.over_training.iter().map(|now| loss(&compress(&run.model, now, n)?[1])).collect::<Result<_>>()?;
        ends.push([loss(&run.model)?, loss(&compress(&run.model, &run.model, n)?[0])?, half[half.len() - 1]]);
        halves.push(half);
    }
    let steps = &first(&runs)?.history.steps;
    let mesa_curves: Vec<Vec<f64>> =
        mesa.iter().map(|run| Ok(run.history.measure("test")?.to_vec())).collect::<Result<_>>()?;
    let of_paper = |name: &str, key: &str, color| -> Result<Line> {
        let y: Vec<f64> = reference::curve(key)?.into_iter().take(21).collect();
        Ok(Line::new(name, (0..y.len()).map(|k| 100 * k), y).color(color).dotted())
    };
    let panel = Panel::new("")
        .x(Axis::linear("training step").range(0.0, 2000.0))
        .y(Axis::linear("test loss").range(0.0, 1.75))
        .line(Line::mean("LSA-1", steps, &curves).color(Color::BLUE))
        .line(Line::mean("Interp-1", steps, &halves).color(Color::ORANGE))
        .line(Line::mean("mesa layer", &first(&mesa)?.history.steps, &mesa_curves).color(Color::RED))
        .line(of_paper("paper: LSA-1", "fig4a/lsa1", Color::BLUE)?)
        .line(of_paper("paper: Interp-1", "fig4a/interpolation", Color::ORANGE)?)
        .line(of_paper("paper: mesa layer", "fig4a/mesa", Color::RED)?)
        .hline(step, format!("Prop. 1, η = {:.4}: {step:.3}", gradient.rate));
    let figure = Figure::new("mesa.fig4a", "One linear layer converges to one step of gradient descent")
        .caption(format!(
            "n = 10, T = 50, {} seeds, batch 64 (the authors: 256). Interp-1 averages the products of the weights at each step \
             with the trained ones compressed to multiples of the identity. Dotted: the authors' stored means over five networks.",
            runs.len()
        ))
        .panel(panel);
    let at = |k: usize| mean(&ends.iter().map(|e| e[k]).collect::<Vec<_>>());
    let last = |c: &[Vec<f64>]| mean(&c.iter().filter_map(|c| c.last().copied()).collect::<Vec<_>>());
    let claims = Claims::new()
        .at_most(
            "mesa.fig4a.gd",
            "LSA-1's loss is that of one step of GD (relative gap)",
            (at(0) / step - 1.0).abs(),
            0.02,
        )
        .at_most(
            "mesa.fig4a.compressed",
            "compressing the weights costs nothing (ratio of losses)",
            at(1) / at(0),
            1.02,
        )
        .at_most("mesa.fig4a.interp", "nor does the interpolation (ratio of losses)", at(2) / at(0), 1.02)
        .at_most("mesa.fig4a.mesa", "the mesa layer is far better (ratio of losses)", last(&mesa_curves) / at(0), 0.3);
    let config = json!({
        "checkpoints": ["mesa-one-layer", "mesa-layer"], "test_sequences": test.len(), "ends": ends, "gd": step,
        "eta": gradient.rate, "mesa": last(&mesa_curves),
    });
    Ok(Reproduction { figure, claims, config })
}

/// Figure 4C: the loss at every token.
///
/// # Errors
/// As [`recipes::load`].
pub fn tokens(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("mesa-one-layer", |_| true, settings)?;
    let test = test(settings)?;
    let gradient = SequenceGradient::line_searched(&test)?;
    let gd = sequence_losses(&gradient, &test, None)?;
    let curves: Vec<Vec<f64>> = runs.iter().map(|run| run.losses(&test)).collect::<Result<_>>()?;
    let tokens: Vec<usize> = (1..=FULL.1).collect();
    let line = Line::mean("LSA-1", &tokens, &curves).color(Color::BLUE);
    let ours = line.y.clone();
    let panel = Panel::new("")
        .x(Axis::linear("token t"))
        .y(Axis::linear("loss at token t").range(0.5, 1.75))
        .line(line)
        .line(Line::new("GD, 1 step", &tokens, &gd).color(Color::BLACK).dashed())
        .line(Line::new("paper: LSA-1", &tokens, reference::curve("fig4c/lsa1")?).color(Color::BLUE).dotted())
        .line(Line::new("paper: GD", &tokens, reference::curve("fig4c/gd")?).color(Color::BLACK).dotted());
    let figure = Figure::new("mesa.fig4c", "The same loss at every token")
        .caption(format!(
            "n = 10, T = 50, {} seeds; GD with η = {:.4}, line-searched. Both curves turn up again: the gradient's step grows with \
             the number of pairs, and one η has to serve all t.",
            runs.len(),
            gradient.rate
        ))
        .panel(panel);
    let worst = ours.iter().zip(&gd).map(|(a, b)| (a / b - 1.0).abs()).greatest();
    let least = (0..ours.len()).min_by(|i, j| ours[*i].total_cmp(&ours[*j])).unwrap_or(0);
    let claims = Claims::new()
        .at_most("mesa.fig4c.same", "LSA-1 and one step of GD agree at every token (worst relative gap)", worst, 0.05)
        .within("mesa.fig4c.least", "the loss is least near t = 36", (least + 1) as f64, 32.0, 40.0)
        .at_least("mesa.fig4c.turn", "and rises again: L(50) / min", ours[49] / ours[least], 1.15);
    let spread = Interval::of(&curves.iter().map(|c| mean(c)).collect::<Vec<_>>());
    let config = json!({ "checkpoint": "mesa-one-layer", "mean_loss": spread.to_string(), "gd": mean(&gd), "eta": gradient.rate });
    Ok(Reproduction { figure, claims, config })
}
