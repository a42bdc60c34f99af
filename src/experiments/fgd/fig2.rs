//! Figure 2: test loss against depth, ReLU and exponential data, n = 14 and 6.

use serde_json::json;

use super::common::{AGAIN, descent, line, ln_bayes, losses, with_bayes};
use super::recipes::{self, ACTIVATIONS, DEPTHS};
use crate::Result;
use crate::compare::Interval;
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Axis, Claims, Color, Extremes, Figure, Line, Panel};

/// Panel (a): ReLU data, n = 14.
///
/// # Errors
/// As [`recipes::load`].
pub fn a(settings: &Settings<'_>) -> Result<Reproduction> {
    panel("fgd.fig2a", "ReLU", 14, settings)
}

/// Panel (b): exponential data, n = 14.
///
/// # Errors
/// As [`recipes::load`].
pub fn b(settings: &Settings<'_>) -> Result<Reproduction> {
    panel("fgd.fig2b", "exp", 14, settings)
}

/// Panel (c): ReLU data, n = 6.
///
/// # Errors
/// As [`recipes::load`].
pub fn c(settings: &Settings<'_>) -> Result<Reproduction> {
    panel("fgd.fig2c", "ReLU", 6, settings)
}

/// Panel (d): exponential data, n = 6.
///
/// # Errors
/// As [`recipes::load`].
pub fn d(settings: &Settings<'_>) -> Result<Reproduction> {
    panel("fgd.fig2d", "exp", 6, settings)
}

fn panel(id: &str, kernel: &str, n: usize, settings: &Settings<'_>) -> Result<Reproduction> {
    let wanted = |run: &recipes::Run| run.protocol.kernel.name() == kernel && run.protocol.context == n;
    let runs = recipes::load("fgd-depth", wanted, settings)?;
    let bayes = ln_bayes(kernel, n, if settings.quick { 4000 } else { 20_000 })?;
    let gd = descent(&recipes::kernel(kernel)?, n, &DEPTHS, if settings.quick { 300 } else { 2000 })?;
    let mut panel = Panel::new("").x(Axis::linear("layers L").ticks(DEPTHS)).y(Axis::linear("ln test loss"));
    let mut curves: Vec<(String, Vec<Interval>)> = Vec::new();
    for activation in ACTIVATIONS {
        let of = |l: usize| {
            losses(
                runs.iter().filter(|t| t.run.protocol.layers == l && t.run.protocol.heads_name() == activation.name()),
            )
        };
        let values: Vec<Interval> = DEPTHS.iter().map(|l| of(*l)).collect();
        panel = panel.line(line(activation.name(), &DEPTHS, &values));
        curves.push((activation.name().to_owned(), values));
    }
    panel = panel.line(Line::new("functional GD, best constant step", DEPTHS, &gd).color(Color::GREY).dotted());
    panel = with_bayes(panel, &DEPTHS, &vec![bayes; DEPTHS.len()]);
    let figure = Figure::new(id, format!("Depth on labels of the {kernel} kernel, n = {n}"))
        .caption(format!(
            "ln test loss, exact over labels; mean and one standard deviation over {} seeds. Up to three layers are trained at \
             once; each deeper network starts from that of one layer less, {AGAIN}. Dotted: L steps of functional gradient descent with \
             the labels' kernel and one step size; the networks have A free, and a step for each layer.",
            curves.first().and_then(|c| c.1.first()).map_or(0, |i| i.count)
        ))
        .panel(panel);
    let matching: Vec<f64> =
        curves.iter().find(|c| c.0 == kernel).map(|c| c.1.iter().map(|i| i.mean).collect()).unwrap_or_default();
    let rise = matching.windows(2).map(|w| w[1] - w[0]).greatest();
    let at = |l: usize| DEPTHS.iter().position(|d| *d == l).and_then(|k| matching.get(k)).copied().unwrap_or(f64::NAN);
    let lowest = curves.iter().flat_map(|c| c.1.iter().map(|i| i.mean)).least();
    let mut claims = Claims::new()
        .at_most(
            format!("{id}.monotone"),
            "every further layer helps the matching activation: largest change of ln loss",
            rise,
            0.0,
        )
        .at_least(format!("{id}.bayes"), "no network beats Bayes: least gap in ln loss", lowest - bayes, 0.0)
        .at_least(
            format!("{id}.better"),
            "three layers beat three steps of functional GD with one step size, in ln loss",
            gd.get(2).copied().unwrap_or(f64::NAN) - at(3),
            0.0,
        );
    if n == 14 {
        claims = if kernel == "exp" {
            claims
                .at_most(format!("{id}.approach"), "five layers are near Bayes: gap in ln loss", at(5) - bayes, 0.25)
                .at_most(
                    format!("{id}.closer"),
                    "seven layers are nearer: their gap over that of three",
                    (at(7) - bayes) / (at(3) - bayes),
                    0.5,
                )
        } else {
            claims.at_least(
                format!("{id}.indefinite"),
                "ReLU on ReLU data stays above Bayes, its kernel being indefinite: gap in ln loss at the greatest depth",
                at(7) - bayes,
                0.3,
            )
        };
    }
    let table: Vec<_> = curves
        .iter()
        .map(|(name, values)| json!({ "heads": name, "ln_loss": values.iter().map(|i| i.to_string()).collect::<Vec<_>>() }))
        .collect();
    let config = json!({
        "checkpoint": "fgd-depth", "kernel": kernel, "n": n, "L": DEPTHS, "ln_bayes": bayes, "networks": table, "functional_gd": gd,
    });
    Ok(Reproduction { figure, claims, config })
}
