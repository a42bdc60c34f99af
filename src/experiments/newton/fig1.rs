//! Figure 1: a prompt as the transformer sees it.

use serde_json::json;

use super::recipes;
use crate::Result;
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Axis, Claims, Extremes, Figure, Heatmap, Panel};

/// Draws the tokens of one prompt and checks their layout.
///
/// # Errors
/// As [`recipes::Protocol::sample`].
pub fn run(settings: &Settings<'_>) -> Result<Reproduction> {
    let protocol = recipes::small();
    let (d, n) = (protocol.dim, protocol.context);
    let prompts = protocol.sample(1, settings.seed)?;
    let sequence = prompts.interleaved()?;
    let tokens = sequence.tokens();
    let names: Vec<String> = (1..=n + 1).flat_map(|t| [format!("x_{{{t}}}"), format!("y_{{{t}}}")]).collect();
    let z: Vec<f32> = (0..d).flat_map(|i| tokens.chunks(d).map(move |token| token[i])).collect();
    let panel = Panel::new("tokens of one prompt")
        .x(Axis::category("token; ŷ_{t} is read at x_{t}"))
        .y(Axis::category("coordinate"))
        .heatmap(Heatmap::new(d, names.len(), z).labels(1..=d, &names).diverging());
    let figure = Figure::new("newton.fig1", "A prompt: covariates and labels, interleaved and padded with zeros")
        .caption(format!(
            "d = {d}, n = {n}: {} tokens of {d} entries. A label stands in the first coordinate of its token. The network \
             predicts y_{{t}} at the token of x_{{t}}, from everything before it.",
            names.len()
        ))
        .panel(panel);
    let labels = tokens.chunks(d).skip(1).step_by(2);
    let outside = labels.clone().flat_map(|y| &y[1..]).map(|v| f64::from(v.abs())).greatest();
    let gap = labels.zip(prompts.y(0)).map(|(token, y)| (f64::from(token[0]) - y).abs()).greatest();
    let claims = Claims::new()
        .equals("newton.fig1.tokens", "tokens: 2 (n + 1)", sequence.length() as f64, (2 * (n + 1)) as f64, 0.0)
        .equals("newton.fig1.entries", "entries of a token: d", sequence.inputs() as f64, d as f64, 0.0)
        .at_most("newton.fig1.padding", "largest entry of a label's token off the first coordinate", outside, 0.0)
        .at_most("newton.fig1.label", "first coordinate minus label, largest (single precision)", gap, 1e-5)
        .equals("newton.fig1.every", "tokens from one prediction to the next", sequence.every() as f64, 2.0, 0.0);
    Ok(Reproduction { figure, claims, config: json!({ "d": d, "n": n }) })
}
