//! What a trained network computes, layer by layer: probes in closed form, predictions at every layer, the weight vectors
//! that its predictions induce.

use super::recipes::{Network, Trained};
use crate::Result;
use crate::algorithms::{Predictions, Prefix};
use crate::experiments::Settings;
use crate::linalg::{Matrix, dot};
use crate::probe::LinearProbe;
use crate::tasks::Prompts;

/// Seeds of the prompts that probes are fitted on, of those that figures are about, and of those with queries.
const FIT: u64 = 1_000_003;
const TEST: u64 = 2_000_003;
const QUERIES: u64 = 3_000_017;

/// Ridge of the probes, relative to the variance of the hidden states.
const RIDGE: f64 = 1e-7;

/// Prompts that go through a network at once: what their hidden states need stays small.
const CHUNK: usize = 512;

/// A network with a linear read-out for every layer, fitted on prompts that no figure uses.
pub struct Probed<'a> {
    /// The network.
    pub network: &'a Trained,
    probes: Vec<LinearProbe>,
}

impl<'a> Probed<'a> {
    /// Fits an affine read-out to the residual stream after each block, shared by all positions, on 3000 prompts: what
    /// the paper trains for 500,000 steps (section 4.1) is a convex least-squares problem.
    ///
    /// # Errors
    /// As [`Network::hidden_states`] and [`LinearProbe::fit`].
    pub fn fit(network: &'a Trained, settings: &Settings<'_>) -> Result<Self> {
        let count = if settings.quick { 200 } else { 3000 };
        let prompts = network.protocol.sample(count, settings.seed.wrapping_add(FIT))?;
        let labels: Vec<f64> = (0..count).flat_map(|i| prompts.y(i)).copied().collect();
        let states = layer_states(&network.model, &prompts)?;
        let probes = states.iter().map(|h| LinearProbe::fit(h, &labels, RIDGE)).collect::<Result<_>>()?;
        Ok(Probed { network, probes })
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.probes.len()
    }

    /// What each layer predicts at every position: one predictor a layer.
    ///
    /// # Errors
    /// As [`Network::hidden_states`].
    pub fn predictions(&self, prompts: &Prompts) -> Result<Predictions> {
        let states = layer_states(&self.network.model, prompts)?;
        let values = self.probes.iter().zip(&states).map(|(probe, h)| probe.predict(h)).collect();
        Predictions::new(prompts.len(), prompts.context() + 1, values)
    }

    /// The weight vector that each layer's predictions induce at every prefix (`newton` eq. 7): for each layer
    /// `[batch, n + 1, d]`, zeros with no example.
    ///
    /// `prompts` have n examples and then the queries: the predictions for them after the first t examples are fitted by
    /// ⟨w̃_t, x⟩ in least squares.
    ///
    /// # Errors
    /// As [`Network::hidden_states`]; [`crate::Error::Numerical`] for fewer queries than dimensions.
    pub fn induced_weights(&self, prompts: &Prompts, n: usize) -> Result<Vec<Vec<f64>>> {
        let (batch, d) = (prompts.len(), prompts.dim());
        let queries = prompts.context() + 1 - n;
        let mut weights = vec![vec![0.0; batch * (n + 1) * d]; self.layers()];
        let solvers: Vec<Matrix> =
            (0..batch).map(|i| Matrix::from_vec(queries, d, prompts.x(i)[n * d..].to_vec())).collect::<Result<_>>()?;
        for t in 1..=n {
            let asked = with_queries(prompts, t, n)?;
            let states = layer_states_at(&self.network.model, &asked, &[t])?;
            for (layer, (probe, h)) in self.probes.iter().zip(&states).enumerate() {
                let predicted = probe.predict(h);
                for (i, predicted) in predicted.chunks(queries).enumerate() {
                    let x = &solvers[i];
                    let cross = x.transpose().mul_vec(predicted);
                    let w = x.transpose().mul(x).solve_spd(&cross)?;
                    weights[layer][(i * (n + 1) + t) * d..][..d].copy_from_slice(&w);
                }
            }
        }
        Ok(weights)
    }
}

/// The test prompts of a network's figures.
///
/// # Errors
/// As [`super::recipes::Task::sample`].
pub fn test_prompts(network: &Trained, settings: &Settings<'_>) -> Result<Prompts> {
    network.protocol.sample(if settings.quick { 64 } else { 640 }, settings.seed.wrapping_add(TEST))
}

/// Prompts of n examples followed by 10 d queries from the same law, for [`Probed::induced_weights`].
///
/// # Errors
/// As [`super::recipes::Task::sample`].
pub fn query_prompts(network: &Trained, settings: &Settings<'_>) -> Result<Prompts> {
    let protocol = &network.protocol;
    let batch = if settings.quick { 4 } else { 32 };
    let (d, points) = (protocol.dim, protocol.context + 10 * protocol.dim);
    protocol.task.sample(d, d, points - 1, batch, settings.seed.wrapping_add(QUERIES))
}

/// The first n examples of every prompt, and example n + 1 as the query.
///
/// # Errors
/// [`crate::Error::Invalid`] for more examples than there are; as [`Prompts::from_data`].
pub fn cut(prompts: &Prompts, n: usize) -> Result<Prompts> {
    if n > prompts.context() {
        return Err(crate::Error::invalid(
            "examples that are left",
            n,
            format!("at most the prompts' {}", prompts.context()),
        ));
    }
    let (batch, d) = (prompts.len(), prompts.dim());
    let x = (0..batch).flat_map(|i| &prompts.x(i)[..(n + 1) * d]).copied().collect();
    let y = (0..batch).flat_map(|i| &prompts.y(i)[..=n]).copied().collect();
    Prompts::from_data(batch, n, d, x, y)
}

/// For each prompt and each point from n on, the first t examples followed by that point.
fn with_queries(prompts: &Prompts, t: usize, n: usize) -> Result<Prompts> {
    let (batch, d) = (prompts.len(), prompts.dim());
    let queries = prompts.context() + 1 - n;
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for i in 0..batch {
        for query in prompts.x(i)[n * d..].chunks(d) {
            x.extend_from_slice(&prompts.x(i)[..t * d]);
            x.extend_from_slice(query);
            y.extend_from_slice(&prompts.y(i)[..t]);
            // The label comes after the prediction is made.
            y.push(0.0);
        }
    }
    Prompts::from_data(batch * queries, t, d, x, y)
}

/// The residual stream after each block at the tokens where predictions are read, `[batch, n + 1, width]` a layer.
///
/// # Errors
/// As [`Network::hidden_states`].
pub fn layer_states(model: &Network, prompts: &Prompts) -> Result<Vec<Vec<f32>>> {
    layer_states_at(model, prompts, &(0..=prompts.context()).collect::<Vec<_>>())
}

/// The same at these positions alone, `[batch, positions, width]` a layer.
fn layer_states_at(model: &Network, prompts: &Prompts, positions: &[usize]) -> Result<Vec<Vec<f32>>> {
    let (batch, d, n, width) = (prompts.len(), prompts.dim(), prompts.context(), model.width());
    let mut layers = vec![Vec::new(); model.layers()];
    for first in (0..batch).step_by(CHUNK) {
        let part = first..(first + CHUNK).min(batch);
        let x = part.clone().flat_map(|i| prompts.x(i)).copied().collect();
        let y = part.clone().flat_map(|i| prompts.y(i)).copied().collect();
        let piece = Prompts::from_data(part.len(), n, d, x, y)?;
        let states = model.hidden_states(&piece.interleaved()?)?;
        // The first entry is the embedding.
        for (layer, states) in layers.iter_mut().zip(&states[1..]) {
            for sequence in states.chunks(2 * (n + 1) * width) {
                positions.iter().for_each(|t| layer.extend_from_slice(&sequence[2 * t * width..][..width]));
            }
        }
    }
    Ok(layers)
}

/// Mean over the batch of the squared distance, over d, of weight vectors `[batch, n + 1, d]` from the span of the first t
/// covariates, at each t from 1 to n (`newton` B.4); and of the squared norm.
///
/// # Errors
/// As [`Prefix::spectrum`].
pub fn outside_span(weights: &[f64], prompts: &Prompts) -> Result<(Vec<f64>, Vec<f64>)> {
    let (batch, n, d) = (prompts.len(), prompts.context(), prompts.dim());
    let (mut outside, mut norm) = (vec![0.0; n], vec![0.0; n]);
    let scale = 1.0 / (batch * d) as f64;
    for i in 0..batch {
        for (t, prefix) in Prefix::all(crate::algorithms::Examples::of(prompts, i, n)?).iter().enumerate() {
            let w = &weights[(i * (n + 1) + t + 1) * d..][..d];
            let spectrum = prefix.spectrum()?;
            let mut rest = w.to_vec();
            for k in 0..spectrum.values.len() {
                let v = spectrum.vectors.row(k);
                let along = dot(w, v);
                rest.iter_mut().zip(v).for_each(|(r, v)| *r -= along * v);
            }
            outside[t] += scale * dot(&rest, &rest);
            norm[t] += scale * dot(w, w);
        }
    }
    Ok((outside, norm))
}
