//! Beyond the paper: every kernel of the labels x activation x depth x context length, as ratios to the Bayes risk.

use serde_json::json;

use super::common::ln_bayes;
use super::recipes::{self, MATRIX, heads_name, matrix_heads};
use crate::Result;
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Axis, Claims, Extremes, Figure, Frame, Heatmap, Panel};

const KERNELS: [&str; 4] = ["linear", "ReLU", "exp", "combination"];

/// Draws the matrix with a slider over depth, a row of panels a context length.
///
/// # Errors
/// As [`recipes::load`].
pub fn run(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("fgd-matrix", |_| true, settings)?;
    let (depths, lengths) = MATRIX;
    let size = if settings.quick { 4000 } else { 20_000 };
    let heads: Vec<String> = matrix_heads().iter().map(|h| heads_name(h)).collect();
    let ln_loss = |kernel: &str, name: &str, l: usize, n: usize| {
        let wanted = |t: &&recipes::Trained| {
            let p = &t.run.protocol;
            p.kernel.name() == kernel && p.heads_name() == name && p.layers == l && p.context == n
        };
        runs.iter().find(wanted).map_or(f64::NAN, recipes::Trained::ln_loss)
    };
    let mut floors = Vec::new();
    for kernel in KERNELS {
        floors.push(lengths.iter().map(|n| ln_bayes(kernel, *n, size)).collect::<Result<Vec<_>>>()?);
    }
    let map = |l: usize, n: usize, ratio: bool| {
        let at = |i: usize, j: usize| {
            let floor = floors[i][lengths.iter().position(|m| *m == n).unwrap_or(0)];
            let value = ln_loss(KERNELS[i], &heads[j], l, n);
            if !ratio {
                value
            } else if floor.is_finite() {
                (value - floor).exp()
            } else {
                f64::NAN
            }
        };
        let cells: Vec<f64> = (0..KERNELS.len() * heads.len()).map(|k| at(k / heads.len(), k % heads.len())).collect();
        let title = if ratio { format!("loss / Bayes, n = {n}") } else { format!("ln loss, n = {n}") };
        Panel::new(title)
            .x(Axis::category("activation").names(&heads))
            .y(Axis::category("kernel of the labels").names(KERNELS))
            .heatmap(Heatmap::new(KERNELS.len(), heads.len(), cells).annotate(2))
    };
    let frames = depths.map(|l| {
        let panels = lengths.iter().flat_map(|n| [map(l, *n, true), map(l, *n, false)]);
        Frame::new(format!("L = {l}"), panels.collect::<Vec<_>>())
    });
    let deepest = depths.len() - 1;
    let figure = Figure::new("fgd.matrix", "Which activation for which kernel")
        .caption(
            "Test loss of trained networks (A free, one seed), over the Bayes risk and as its logarithm, for every kernel of \
             the labels and activation. Linear labels with n >= d = 5 have a Bayes risk of 0, and no ratio.",
        )
        .columns(2)
        .slider("depth", frames)
        .active(deepest);
    let (depth, last) = (depths[deepest], lengths[lengths.len() - 1]);
    let mut claims = Claims::new();
    for kernel in ["linear", "ReLU", "exp"] {
        let matching = ln_loss(kernel, kernel, depth, last);
        let others = heads.iter().filter(|h| *h != kernel && !h.contains('+'));
        let best = others.map(|h| ln_loss(kernel, h, depth, last)).least();
        claims = claims.at_least(
            format!("fgd.matrix.{kernel}"),
            format!("{kernel} labels, L = {depth}, n = {last}: the matching single head is best, next best minus it in ln loss"),
            best - matching,
            0.0,
        );
    }
    let pair = &heads[heads.len() - 1];
    let single = heads.iter().filter(|h| !h.contains('+')).map(|h| ln_loss("combination", h, depth, last));
    claims = claims.at_least(
        "fgd.matrix.combination",
        format!("the combination, L = {depth}, n = {last}: two heads beat every single one, in ln loss"),
        single.least() - ln_loss("combination", pair, depth, last),
        0.0,
    );
    let table: Vec<_> = runs.iter().map(|t| json!([t.run.name, t.ln_loss()])).collect();
    let config = json!({ "checkpoint": "fgd-matrix", "ln_loss": table, "kernels": KERNELS, "n": lengths });
    Ok(Reproduction { figure, claims, config })
}
