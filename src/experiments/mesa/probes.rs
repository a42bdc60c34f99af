//! Linear probes of the residual stream, fitted on one batch and scored on another.

use rayon::prelude::*;

use super::recipes::Trained;
use crate::Result;
use crate::algorithms::sequences::InverseSeries;
use crate::linalg::Matrix;
use crate::models::SequenceTransformer;
use crate::probe::LinearProbe;
use crate::tasks::Trajectories;

/// What a probe is asked for, at token t of a sequence.
#[derive(Clone, Debug)]
pub enum Target {
    /// The next state s_{t+1}.
    Next,
    /// The preconditioned state (S_{t−1} S_{t−1}ᵀ + ridge)⁻¹ s_t, by the series that is given; sequences where its norm is more
    /// than two standard deviations above the mean are left out, as the authors do.
    Preconditioned(InverseSeries),
    /// The same for inputs that are not the states themselves: features of them, or states stacked.
    PreconditionedInput(InverseSeries, Trajectories),
    /// The state so many tokens back.
    Back(usize),
    /// What these sequences have there, so many tokens back.
    InputBack(Trajectories, usize),
}

impl Target {
    /// What it is called.
    pub fn name(&self) -> &'static str {
        match self {
            Target::Next => "the next state",
            Target::Preconditioned(_) => "the preconditioned state",
            Target::PreconditionedInput(..) => "the preconditioned input",
            Target::Back(_) => "an earlier state",
            Target::InputBack(..) => "an earlier input",
        }
    }
}

/// What came out, of each layer (0 is the input) at each token: `[layer][t]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    /// Σ_dims (probe − target)² / 2, the mean over held-out sequences: the paper's unit.
    pub absolute: Vec<Vec<f64>>,
    /// The same as a share of the target's variance: 1 is no better than a constant.
    pub relative: Vec<Vec<f64>>,
}

/// Ridge of the probes, relative to the variance of the stream.
const RIDGE: f64 = 1e-6;

/// Fits on the first half of `sequences` and scores on the second, at the tokens `at` (from 0).
///
/// # Errors
/// [`crate::Error::Shape`] for sequences of another dimension; [`crate::Error::Invalid`] for a token that they do not have.
pub fn probe(
    model: &SequenceTransformer,
    run: &Trained,
    sequences: &Trajectories,
    target: &Target,
    at: &[usize],
) -> Result<Scores> {
    Ok(probe_each(model, run, sequences, std::slice::from_ref(target), at)?.swap_remove(0))
}

/// The same for each of several targets; the network runs once.
///
/// # Errors
/// As [`probe`].
pub fn probe_each(
    model: &SequenceTransformer,
    run: &Trained,
    sequences: &Trajectories,
    targets: &[Target],
    at: &[usize],
) -> Result<Vec<Scores>> {
    let tokens = sequences.tokens();
    if let Some(beyond) = at.iter().find(|t| **t >= tokens) {
        return Err(crate::Error::invalid("token", *beyond, format!("one of 0 to {}", tokens.saturating_sub(1))));
    }
    let streams = model.residuals(&run.tokens(sequences)?)?;
    targets.iter().map(|target| of_streams(&streams, model.architecture().width, sequences, target, at)).collect()
}

fn of_streams(
    streams: &[Vec<f64>],
    width: usize,
    sequences: &Trajectories,
    target: &Target,
    at: &[usize],
) -> Result<Scores> {
    let (batch, tokens) = (sequences.len(), sequences.tokens());
    let of_token = |t: usize| -> Result<Vec<(f64, f64)>> {
        let mut targets: Vec<Vec<f64>> = (0..batch).map(|i| value(sequences, i, t, target)).collect();
        let mut kept: Vec<usize> = (0..batch).collect();
        if matches!(target, Target::Preconditioned(_) | Target::PreconditionedInput(..)) {
            let norms: Vec<f64> = targets.iter().map(|y| y.iter().map(|v| v * v).sum::<f64>().sqrt()).collect();
            let mean = norms.iter().sum::<f64>() / batch as f64;
            let sd = (norms.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / batch as f64).sqrt();
            kept.retain(|i| norms[*i] <= mean + 2.0 * sd);
            targets = kept.iter().map(|i| targets[*i].clone()).collect();
        }
        let fitted = kept.len() / 2;
        let held = (kept.len() - fitted) as f64;
        let coordinates: Vec<Vec<f64>> =
            (0..targets.first().map_or(0, Vec::len)).map(|k| targets.iter().map(|y| y[k]).collect()).collect();
        let known: Vec<&[f64]> = coordinates.iter().map(|y| &y[..fitted]).collect();
        streams
            .iter()
            .map(|stream| {
                let row = |i: &usize| stream[(i * tokens + t) * width..][..width].iter().map(|v| *v as f32);
                let hidden: Vec<f32> = kept.iter().flat_map(row).collect();
                let (fit, test) = hidden.split_at(fitted * width);
                let probes = LinearProbe::fit_each(fit, &known, RIDGE)?;
                let (mut error, mut variance) = (0.0, 0.0);
                for (probe, y) in probes.iter().zip(&coordinates) {
                    let mean = y[..fitted].iter().sum::<f64>() / fitted as f64;
                    for (p, y) in probe.predict(test).iter().zip(&y[fitted..]) {
                        error += (p - y).powi(2);
                        variance += (y - mean).powi(2);
                    }
                }
                Ok((0.5 * error / held, error / variance.max(f64::MIN_POSITIVE)))
            })
            .collect()
    };
    let all: Vec<Vec<(f64, f64)>> = at.par_iter().map(|t| of_token(*t)).collect::<Result<_>>()?;
    let layers = streams.len();
    let of = |f: fn(&(f64, f64)) -> f64| (0..layers).map(|l| all.iter().map(|s| f(&s[l])).collect()).collect();
    Ok(Scores { absolute: of(|s| s.0), relative: of(|s| s.1) })
}

/// The target at token `t` (from 0) of sequence `i`.
fn value(sequences: &Trajectories, i: usize, t: usize, target: &Target) -> Vec<f64> {
    let state = |of: &Trajectories, t: usize| of.states(i)[t * of.dim()..][..of.dim()].to_vec();
    let preconditioned = |series: &InverseSeries, of: &Trajectories| {
        let n = of.dim();
        let mut gram = Matrix::zeros(n, n);
        for s in (0..t).map(|t| state(of, t)) {
            gram = gram.plus(1.0, &Matrix::from_fn(n, n, |i, j| s[i] * s[j]));
        }
        series.iterates(&gram, &state(of, t)).pop().unwrap_or_default()
    };
    match target {
        Target::Next => state(sequences, t + 1),
        Target::Back(back) => state(sequences, t.saturating_sub(*back)),
        Target::InputBack(of, back) => state(of, t.saturating_sub(*back)),
        Target::Preconditioned(series) => preconditioned(series, sequences),
        Target::PreconditionedInput(series, of) => preconditioned(series, of),
    }
}
