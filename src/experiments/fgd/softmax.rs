//! Beyond the paper: the kernel that a trained softmax head uses, estimated from its weights on test prompts.

use serde_json::json;

use super::common::test_prompts;
use super::recipes::{self, DIM, Trained};
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Axis, Claims, Color, Extremes, Figure, Line, Panel};
use crate::linalg::Matrix;
use crate::{Error, Result};

/// Equal parts of [−1, 1] over which weights are averaged.
const BINS: usize = 20;
const CONTEXT: usize = 14;

/// The weights n H_ij of the first layer's softmax of one network, by the inner product of key and query.
struct Estimate {
    /// Middle of each part.
    s: Vec<f64>,
    /// Mean and standard deviation there.
    mean: Vec<f64>,
    deviation: Vec<f64>,
    /// e^{βs} / E e^{βs'}, with β the mean diagonal of BᵀC.
    exponential: Vec<f64>,
    beta: f64,
    /// How much of the variance of the weights the inner product explains.
    explained: f64,
    /// Mean of |H_ij − H_ji| over that of H_ij + H_ji: 0 for a symmetric kernel.
    asymmetry: f64,
}

fn estimate(run: &Trained, size: usize) -> Result<Estimate> {
    let q = run.last()?.bc(0, 0)?;
    let beta = q.trace() / DIM as f64;
    let prompts = test_prompts(&run.run.protocol.kernel, CONTEXT, size)?;
    let (mut count, mut sum, mut square) = (vec![0.0; BINS], vec![0.0; BINS], vec![0.0; BINS]);
    let (mut normaliser, mut pairs, mut skew, mut total) = (0.0, 0.0, 0.0, 0.0);
    for k in 0..prompts.len() {
        let x = prompts.x(k).unwrap_or_default();
        let row = |i: usize| &x[i * DIM..][..DIM];
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        // Column j: the softmax over the keys of query j.
        let mut h = Matrix::zeros(CONTEXT, CONTEXT + 1);
        for j in 0..=CONTEXT {
            let w = q.mul_vec(row(j));
            let e: Vec<f64> = (0..CONTEXT).map(|i| dot(row(i), &w).exp()).collect();
            let all: f64 = e.iter().sum();
            e.iter().enumerate().for_each(|(i, e)| h[(i, j)] = e / all);
        }
        for i in 0..CONTEXT {
            // The last token is a query alone, as in the prediction; it is never its own key.
            let s = dot(row(i), row(CONTEXT));
            let weight = CONTEXT as f64 * h[(i, CONTEXT)];
            let bin = (((s + 1.0) / 2.0 * BINS as f64) as usize).min(BINS - 1);
            count[bin] += 1.0;
            sum[bin] += weight;
            square[bin] += weight * weight;
            normaliser += (beta * s).exp();
            pairs += 1.0;
            for j in 0..i {
                skew += (h[(i, j)] - h[(j, i)]).abs();
                total += h[(i, j)] + h[(j, i)];
            }
        }
    }
    let at = |k: usize| -1.0 + (2.0 * k as f64 + 1.0) / BINS as f64;
    let mean: Vec<f64> = sum.iter().zip(&count).map(|(s, c)| s / c).collect();
    let within: Vec<f64> = (0..BINS).map(|k| (square[k] / count[k] - mean[k] * mean[k]).max(0.0)).collect();
    let grand = sum.iter().sum::<f64>() / pairs;
    let variance = square.iter().sum::<f64>() / pairs - grand * grand;
    let rest = within.iter().zip(&count).filter(|(_, c)| **c > 0.0).map(|(w, c)| w * c).sum::<f64>() / pairs;
    Ok(Estimate {
        s: (0..BINS).map(at).collect(),
        deviation: within.iter().map(|w| w.sqrt()).collect(),
        exponential: (0..BINS).map(|k| (beta * at(k)).exp() * pairs / normaliser).collect(),
        mean,
        beta,
        explained: 1.0 - rest / variance,
        asymmetry: skew / total,
    })
}

/// Estimates the kernel of every seed's network of Figure 1 (exponential data, n = 14) and compares it with e^{βs}.
///
/// # Errors
/// As [`recipes::load`].
pub fn run(settings: &Settings<'_>) -> Result<Reproduction> {
    let wanted = |run: &recipes::Run| {
        let p = &run.protocol;
        p.kernel.name() == "exp" && p.heads_name() == "softmax" && p.context == CONTEXT
    };
    let runs = recipes::load("fgd-context", wanted, settings)?;
    let size = if settings.quick { 1000 } else { 8000 };
    let estimates: Vec<Estimate> = runs.iter().map(|run| estimate(run, size)).collect::<Result<_>>()?;
    let first = estimates.first().ok_or_else(|| Error::invalid("runs", 0, "at least 1"))?;
    let edge = |sign: f64| first.mean.iter().zip(&first.deviation).map(move |(m, d)| m + sign * d);
    let figure = Figure::new("fgd.softmax", "The kernel that a trained softmax head uses")
        .caption(format!(
            "Weights n H of the first of three layers (seed 0, exponential data, n = 14) by the inner product of key and query: \
             mean and one standard deviation over {size} test prompts, and e^{{βs}} / E e^{{βs}} with β = {:.2}, the mean diagonal \
             of BᵀC. The band is what the normalisation does: the weight depends on the other keys, and H is not symmetric.",
            first.beta
        ))
        .panel(
            Panel::new("")
                .x(Axis::linear("inner product s = ⟨ξ_{i}, ξ_{j}⟩").range(-1.0, 1.0))
                .y(Axis::linear("weight n H"))
                .line(
                    Line::new("softmax, estimated", first.s.iter().copied(), &first.mean)
                        .band(edge(-1.0), edge(1.0))
                        .color(Color::PURPLE)
                        .markers(),
                )
                .line(Line::new("e^{βs} / E e^{βs}", first.s.iter().copied(), &first.exponential).color(Color::BLACK).dashed()),
        );
    // The slope of ln(mean weight) over s, by least squares over the parts that have weights.
    let slope = |e: &Estimate| {
        let points: Vec<(f64, f64)> =
            e.s.iter().zip(&e.mean).filter(|(_, m)| m.is_finite() && **m > 0.0).map(|(s, m)| (*s, m.ln())).collect();
        let count = points.len() as f64;
        let (x, y) = (points.iter().map(|p| p.0).sum::<f64>() / count, points.iter().map(|p| p.1).sum::<f64>() / count);
        let cross: f64 = points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum();
        cross / points.iter().map(|p| (p.0 - x).powi(2)).sum::<f64>()
    };
    let worst = estimates.iter().map(|e| (slope(e) / e.beta - 1.0).abs()).greatest();
    let explained = estimates.iter().map(|e| e.explained).least();
    let skew = estimates.iter().map(|e| e.asymmetry).greatest();
    let claims = Claims::new()
        .at_most(
            "fgd.softmax.exponential",
            "the mean weight is exponential in the inner product: slope of its logarithm against β (worst relative error)",
            worst,
            0.2,
        )
        .at_least(
            "fgd.softmax.explained",
            "the inner product explains most of a weight's variance (least of the seeds)",
            explained,
            0.5,
        )
        .at_least(
            "fgd.softmax.asymmetric",
            "but it is no kernel: |Hᵢⱼ − Hⱼᵢ| over Hᵢⱼ + Hⱼᵢ, mean (greatest of the seeds)",
            skew,
            0.01,
        );
    let table: Vec<_> = estimates
        .iter()
        .map(|e| json!({ "beta": e.beta, "slope": slope(e), "explained": e.explained, "asymmetry": e.asymmetry }))
        .collect();
    let config = json!({ "checkpoint": "fgd-context", "prompts": size, "networks": table });
    Ok(Reproduction { figure, claims, config })
}
