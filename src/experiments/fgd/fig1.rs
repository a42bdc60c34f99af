//! Figure 1: three layers, test loss against the context length, for each kernel of the labels and activation.

use serde_json::json;

use super::common::{line, ln_bayes, losses, with_bayes};
use super::recipes::{self, ACTIVATIONS, CONTEXTS};
use crate::Result;
use crate::compare::Interval;
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Axis, Claims, Extremes, Figure, Panel, lesser};

/// Single-seed values of ln loss at n = 6 and n = 14 of an independent implementation (fgd.md section 5.1), in the order
/// of [`ACTIVATIONS`].
const REFERENCE: [(&str, [[f64; 2]; 4]); 3] = [
    ("linear", [[-3.387, -8.239], [-1.402, -2.475], [-1.452, -2.884], [-1.418, -2.626]]),
    ("ReLU", [[-0.243, -0.344], [-0.700, -1.194], [-0.653, -1.098], [-0.481, -0.922]]),
    ("exp", [[0.412, 0.328], [-0.843, -1.765], [-1.004, -1.840], [-0.948, -1.521]]),
];

/// Panel (a): linear data.
///
/// # Errors
/// As [`recipes::load`].
pub fn a(settings: &Settings<'_>) -> Result<Reproduction> {
    panel("fgd.fig1a", "linear", settings)
}

/// Panel (b): ReLU data.
///
/// # Errors
/// As [`recipes::load`].
pub fn b(settings: &Settings<'_>) -> Result<Reproduction> {
    panel("fgd.fig1b", "ReLU", settings)
}

/// Panel (c): exponential data.
///
/// # Errors
/// As [`recipes::load`].
pub fn c(settings: &Settings<'_>) -> Result<Reproduction> {
    panel("fgd.fig1c", "exp", settings)
}

fn panel(id: &str, kernel: &str, settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("fgd-context", |run| run.protocol.kernel.name() == kernel, settings)?;
    let size = if settings.quick { 4000 } else { 20_000 };
    let bayes: Vec<f64> = CONTEXTS.iter().map(|n| ln_bayes(kernel, *n, size)).collect::<Result<_>>()?;
    let mut panel = Panel::new("").x(Axis::linear("context length n").ticks(CONTEXTS)).y(Axis::linear("ln test loss"));
    let mut curves: Vec<(String, Vec<Interval>)> = Vec::new();
    for activation in ACTIVATIONS {
        let of = |n: usize| {
            losses(
                runs.iter().filter(|t| t.run.protocol.context == n && t.run.protocol.heads_name() == activation.name()),
            )
        };
        let values: Vec<Interval> = CONTEXTS.iter().map(|n| of(*n)).collect();
        panel = panel.line(line(activation.name(), &CONTEXTS, &values));
        curves.push((activation.name().to_owned(), values));
    }
    panel = with_bayes(panel, &CONTEXTS, &bayes);
    let floor = match kernel {
        "linear" => " For n >= d = 5 noiseless labels determine the function: the Bayes loss is 0, below every axis.",
        "ReLU" => " The ReLU kernel is not positive semi-definite: labels have the covariance K₊ with |eigenvalues|.",
        _ => " The kernel of the labels is exp(½⟨u, v⟩), as in the authors' code; the paper's equation has no ½.",
    };
    let figure = Figure::new(id, format!("Three layers on labels of the {kernel} kernel"))
        .caption(format!(
            "ln test loss, exact over labels, d = 5, L = 3; mean and one standard deviation over {} seeds.{floor}",
            curves.first().and_then(|c| c.1.first()).map_or(0, |i| i.count)
        ))
        .panel(panel);

    let last = CONTEXTS.len() - 1;
    let at = |name: &str, k: usize| curves.iter().find(|c| c.0 == name).map_or(f64::NAN, |c| c.1[k].mean);
    let others = curves.iter().filter(|c| c.0 != kernel).map(|c| c.1[last].mean).least();
    let above =
        // Where Bayes predicts exactly there is nothing to beat.
        curves.iter().flat_map(|c| c.1.iter().zip(&bayes)).filter(|(_, b)| !b.is_nan()).map(|(i, b)| i.mean - b);
    let mut claims = Claims::new()
        .at_least(
            format!("{id}.matching"),
            "the matching activation is best at n = 14: next best minus it, in ln loss",
            others - at(kernel, last),
            0.0,
        )
        .at_least(format!("{id}.bayes"), "no network beats Bayes: least gap in ln loss", above.fold(99.0, lesser), 0.0);
    let reference = REFERENCE.iter().find(|r| r.0 == kernel).map_or([[f64::NAN; 2]; 4], |r| r.1);
    for (activation, values) in ACTIVATIONS.iter().zip(reference) {
        for (n, value) in [6, 14].into_iter().zip(values) {
            let Some(k) = CONTEXTS.iter().position(|c| *c == n) else { continue };
            let (name, found) = (activation.name(), at(activation.name(), k));
            let (claim, text) = (format!("{id}.{name}.n{n}"), format!("{name}, n = {n}: ln loss"));
            claims = if kernel == "linear" && name == "linear" {
                claims.at_most(claim, text, found, if n == 14 { -6.0 } else { value + 0.1 })
            } else {
                claims.equals(claim, format!("{text} of an independent implementation"), found, value, 0.1)
            };
        }
    }
    if kernel == "exp" {
        let gap =
            |n: usize| CONTEXTS.iter().position(|c| *c == n).map_or(f64::NAN, |k| at("ReLU", k) - at("softmax", k));
        claims = claims
            .at_least(format!("{id}.softmax-over-relu.n6"), "softmax beats ReLU at n = 6, in ln loss", gap(6), 0.0)
            .at_most(format!("{id}.softmax-over-relu.n14"), "and loses to it at n = 14", gap(14), 0.0);
    }
    let table: Vec<_> = curves
        .iter()
        .map(|(name, values)| json!({ "heads": name, "ln_loss": values.iter().map(|i| i.to_string()).collect::<Vec<_>>() }))
        .collect();
    let bayes: Vec<Option<f64>> = bayes.iter().map(|b| b.is_finite().then_some(*b)).collect();
    let config = json!({
        "checkpoint": "fgd-context", "kernel": kernel, "n": CONTEXTS, "ln_bayes": bayes, "networks": table, "prompts": size,
    });
    Ok(Reproduction { figure, claims, config })
}
