//! Adam and SGD behind dfdx's `Optimizer`, with gradient clipping and a state that can be saved.

use dfdx::optim::{Optimizer, OptimizerUpdateError};
use dfdx::prelude::{Cpu, CpuError, Gradients};
use serde::{Deserialize, Serialize};

use crate::models::{Parameters, WithGradient};
use crate::ops::adam::{Moving, Step, sum_of_squares};
use crate::ops::threads::each;
use crate::{Error, Result};

/// What is done to gradients before a step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clip {
    /// Nothing.
    None,
    /// Every matrix (the last two axes of a tensor) is scaled to Frobenius norm at most this, each on its own: what the
    /// authors of `pgd` do.
    Matrix(f64),
    /// All gradients together are scaled to norm at most this.
    Global(f64),
    /// Every entry is limited to ± this: what the authors of `mesa` do.
    Element(f64),
}

impl Clip {
    fn check(&self) -> Result<()> {
        match *self {
            Clip::None => Ok(()),
            Clip::Matrix(limit) | Clip::Global(limit) | Clip::Element(limit) => {
                positive("limit of the clipping", limit)
            }
        }
    }

    /// Clips in place; `shapes` are the tensors'.
    pub fn apply<G, S>(&self, gradients: &mut [G], shapes: &[S])
    where
        G: AsRef<[f32]> + AsMut<[f32]> + Send + Sync,
        S: AsRef<[usize]>,
    {
        match *self {
            Clip::None => {}
            Clip::Matrix(limit) => {
                for (gradient, shape) in gradients.iter_mut().zip(shapes) {
                    let size: usize = shape.as_ref().iter().rev().take(2).product();
                    for matrix in gradient.as_mut().chunks_mut(size.max(1)) {
                        if let Some(factor) = shrinking(sum_of_squares(matrix), limit) {
                            scale(matrix, factor);
                        }
                    }
                }
            }
            Clip::Global(limit) => {
                if let Some(factor) = shrinking_all(gradients.iter().map(AsRef::as_ref), limit) {
                    each(gradients.iter_mut(), |g| scale(g.as_mut(), factor));
                }
            }
            Clip::Element(limit) => {
                let limit = limit as f32;
                gradients.iter_mut().flat_map(AsMut::as_mut).for_each(|g| *g = g.clamp(-limit, limit));
            }
        }
    }
}

/// The factor that brings a norm with this square to `limit`, if it is above.
fn shrinking(square: f64, limit: f64) -> Option<f32> {
    let norm = square.sqrt();
    // The small constant is PyTorch's, kept so that the same gradient gives the same step.
    (norm > limit).then(|| (limit / (norm + 1e-6)) as f32)
}

/// The factor that brings the norm of all gradients together to `limit`, if it is above. Squares are added in the order of the
/// gradients, whichever thread was done first.
fn shrinking_all<'a>(gradients: impl IntoIterator<Item = &'a [f32]>, limit: f64) -> Option<f32> {
    shrinking(each(gradients, sum_of_squares).iter().sum(), limit)
}

fn scale(part: &mut [f32], factor: f32) {
    part.iter_mut().for_each(|g| *g *= factor);
}

/// An optimiser whose state can be saved and restored bit for bit.
pub trait Stateful {
    /// One step with these gradients, which it uses up.
    ///
    /// dfdx's [`Optimizer::update`] is the same with gradients that are lent: it takes a copy, since dfdx shows gradients only where
    /// they may be changed.
    ///
    /// # Errors
    /// [`Error::Shape`] for a model with other tensors than those of the steps before; it is then unchanged. Those of
    /// [`Parameters::update`].
    fn step<M: Parameters>(&mut self, model: &mut M, gradients: Gradients<f32, Cpu>) -> Result<()>;
    /// The base learning rate times `factor` from the next step on.
    fn set_rate_factor(&mut self, factor: f64);
    /// The learning rate of the next step.
    fn rate(&self) -> f64;
    /// The state, named.
    fn state(&self) -> Vec<(String, Vec<f32>)>;
    /// Restores what [`Stateful::state`] gave after `steps` steps.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the state is another optimiser's.
    fn restore(&mut self, steps: u64, state: &[(String, Vec<f32>)]) -> Result<()>;
}

/// Configuration of [`Adam`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct AdamConfig {
    /// Learning rate.
    pub rate: f64,
    /// Decay of the first and of the second moment.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay (AdamW); 0 is Adam.
    pub weight_decay: f64,
    /// Clipping before the step.
    pub clip: Clip,
}

impl Default for AdamConfig {
    /// PyTorch's defaults, without decay or clipping.
    fn default() -> Self {
        AdamConfig { rate: 1e-3, betas: [0.9, 0.999], epsilon: 1e-8, weight_decay: 0.0, clip: Clip::None }
    }
}

impl AdamConfig {
    /// The numbers of step `steps` (from 1) at `factor` times the rate.
    pub(super) fn step(&self, steps: u64, factor: f64) -> Step {
        let [beta1, beta2] = self.betas;
        let steps = steps.min(i32::MAX as u64) as i32;
        let rate = self.rate * factor;
        Step {
            rate: (rate / (1.0 - beta1.powi(steps))) as f32,
            correction: (1.0 / (1.0 - beta2.powi(steps)).sqrt()) as f32,
            decay: (1.0 - rate * self.weight_decay) as f32,
            betas: [beta1 as f32, beta2 as f32],
            epsilon: self.epsilon as f32,
            clipping: 1.0,
        }
    }
}

/// Adam with bias correction (Kingma and Ba, 2015) and decoupled weight decay (Loshchilov and Hutter, 2019).
///
/// Behind dfdx's own `Optimizer` trait; dfdx's Adam neither clips nor lets its moments be saved.
#[derive(Clone, Debug)]
pub struct Adam {
    config: AdamConfig,
    factor: f64,
    steps: u64,
    first: Vec<Vec<f32>>,
    second: Vec<Vec<f32>>,
}

impl Adam {
    /// An optimiser before its first step.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a rate, an epsilon or a limit that is not positive, betas outside [0, 1), or a negative
    /// decay.
    pub fn new(config: AdamConfig) -> Result<Self> {
        positive("learning rate", config.rate)?;
        positive("epsilon", config.epsilon)?;
        if let Some(bad) = config.betas.iter().find(|b| !(0.0..1.0).contains(*b)) {
            return Err(Error::invalid("beta", bad, "a number in [0, 1)"));
        }
        if !(config.weight_decay.is_finite() && config.weight_decay >= 0.0) {
            return Err(Error::invalid("weight decay", config.weight_decay, "a finite number of at least 0"));
        }
        config.clip.check()?;
        Ok(Adam { config, factor: 1.0, steps: 0, first: Vec::new(), second: Vec::new() })
    }
}

impl<M: Parameters> Optimizer<M, Cpu, f32> for Adam {
    fn update(
        &mut self,
        module: &mut M,
        gradients: &Gradients<f32, Cpu>,
    ) -> std::result::Result<(), OptimizerUpdateError<CpuError>> {
        self.step(module, gradients.clone()).map_err(device_error)
    }
}

impl Stateful for Adam {
    fn step<M: Parameters>(&mut self, model: &mut M, mut gradients: Gradients<f32, Cpu>) -> Result<()> {
        model.update(&mut gradients, &mut |mut tensors| {
            for moments in [&mut self.first, &mut self.second] {
                fit(moments, &tensors)?;
            }
            self.steps += 1;
            let mut step = self.config.step(self.steps, self.factor);
            // All inside the pool: each call of it from outside would wake a thread and wait for it.
            rayon::scope(|_| {
                if let Clip::Global(limit) = self.config.clip {
                    step.clipping = shrinking_all(tensors.iter().map(|t| &*t.gradient), limit).unwrap_or(1.0);
                } else {
                    clip(self.config.clip, &mut tensors);
                }
                let tensors = tensors.into_iter().zip(self.first.iter_mut().zip(&mut self.second));
                let pieces = tensors.flat_map(|(t, (first, second))| moving(t, first, second).pieces());
                each(pieces, |piece| piece.update(step));
            });
            Ok(())
        })
    }

    fn set_rate_factor(&mut self, factor: f64) {
        self.factor = factor;
    }

    fn rate(&self) -> f64 {
        self.config.rate * self.factor
    }

    fn state(&self) -> Vec<(String, Vec<f32>)> {
        named("adam.first", &self.first).chain(named("adam.second", &self.second)).collect()
    }

    fn restore(&mut self, steps: u64, state: &[(String, Vec<f32>)]) -> Result<()> {
        let (first, second) = state.split_at(state.len() / 2);
        if !is_named("adam.first", first) || !is_named("adam.second", second) {
            return Err(Error::invalid("optimiser state", "another optimiser's", "Adam's first and second moments"));
        }
        self.steps = steps;
        self.first = first.iter().map(|(_, m)| m.clone()).collect();
        self.second = second.iter().map(|(_, m)| m.clone()).collect();
        Ok(())
    }
}

/// Configuration of [`Sgd`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SgdConfig {
    /// Learning rate.
    pub rate: f64,
    /// Momentum: the velocity is this times itself plus the gradient.
    pub momentum: f64,
    /// Clipping before the step.
    pub clip: Clip,
}

/// Stochastic gradient descent with heavy-ball momentum.
#[derive(Clone, Debug)]
pub struct Sgd {
    config: SgdConfig,
    factor: f64,
    velocity: Vec<Vec<f32>>,
}

impl Sgd {
    /// An optimiser before its first step.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a rate or a limit that is not positive, or a momentum outside [0, 1).
    pub fn new(config: SgdConfig) -> Result<Self> {
        positive("learning rate", config.rate)?;
        if !(0.0..1.0).contains(&config.momentum) {
            return Err(Error::invalid("momentum", config.momentum, "a number in [0, 1)"));
        }
        config.clip.check()?;
        Ok(Sgd { config, factor: 1.0, velocity: Vec::new() })
    }
}

impl<M: Parameters> Optimizer<M, Cpu, f32> for Sgd {
    fn update(
        &mut self,
        module: &mut M,
        gradients: &Gradients<f32, Cpu>,
    ) -> std::result::Result<(), OptimizerUpdateError<CpuError>> {
        self.step(module, gradients.clone()).map_err(device_error)
    }
}

impl Stateful for Sgd {
    fn step<M: Parameters>(&mut self, model: &mut M, mut gradients: Gradients<f32, Cpu>) -> Result<()> {
        model.update(&mut gradients, &mut |mut tensors| {
            fit(&mut self.velocity, &tensors)?;
            clip(self.config.clip, &mut tensors);
            let (rate, momentum) = ((self.config.rate * self.factor) as f32, self.config.momentum as f32);
            for (tensor, velocity) in tensors.iter_mut().zip(&mut self.velocity) {
                for ((p, g), v) in tensor.values.iter_mut().zip(&*tensor.gradient).zip(velocity) {
                    *v = momentum * *v + g;
                    *p -= rate * *v;
                }
            }
            Ok(())
        })
    }

    fn set_rate_factor(&mut self, factor: f64) {
        self.factor = factor;
    }

    fn rate(&self) -> f64 {
        self.config.rate * self.factor
    }

    fn state(&self) -> Vec<(String, Vec<f32>)> {
        named("sgd.velocity", &self.velocity).collect()
    }

    fn restore(&mut self, _: u64, state: &[(String, Vec<f32>)]) -> Result<()> {
        if !is_named("sgd.velocity", state) {
            return Err(Error::invalid("optimiser state", "another optimiser's", "SGD's velocities"));
        }
        self.velocity = state.iter().map(|(_, v)| v.clone()).collect();
        Ok(())
    }
}

pub(super) fn named(prefix: &str, tensors: &[Vec<f32>]) -> impl Iterator<Item = (String, Vec<f32>)> {
    tensors.iter().enumerate().map(move |(i, t)| (format!("{prefix}.{i}"), t.clone()))
}

pub(super) fn is_named(prefix: &str, state: &[(String, Vec<f32>)]) -> bool {
    state.iter().enumerate().all(|(i, (name, _))| *name == format!("{prefix}.{i}"))
}

/// Zeros for tensors like these, if there is no state yet; otherwise it has to be that of such tensors.
pub(super) fn fit(state: &mut Vec<Vec<f32>>, tensors: &[WithGradient<'_>]) -> Result<()> {
    if state.is_empty() {
        *state = tensors.iter().map(|t| vec![0.0; t.values.len()]).collect();
    }
    let lengths: Vec<usize> = state.iter().map(Vec::len).collect();
    let expected: Vec<usize> = tensors.iter().map(|t| t.values.len()).collect();
    if lengths == expected { Ok(()) } else { Err(Error::shape("optimiser state", &lengths, format!("{expected:?}"))) }
}

pub(super) fn positive(what: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 { Ok(()) } else { Err(Error::invalid(what, value, "a positive finite number")) }
}

/// A tensor as Adam moves it.
pub(super) fn moving<'a>(tensor: WithGradient<'a>, first: &'a mut [f32], second: &'a mut [f32]) -> Moving<'a> {
    Moving { params: tensor.values, gradient: tensor.gradient, first, second }
}

/// Clips the tensors' gradients in place.
pub(super) fn clip(clip: Clip, tensors: &mut [WithGradient<'_>]) {
    let (mut gradients, shapes): (Vec<_>, Vec<_>) = tensors.iter_mut().map(|t| (&mut *t.gradient, t.shape)).unzip();
    clip.apply(&mut gradients, &shapes);
}

/// dfdx's trait has no room for another error: one here means tensors that do not fit the optimiser's.
pub(super) fn device_error(_: Error) -> OptimizerUpdateError<CpuError> {
    OptimizerUpdateError::DeviceError(CpuError::WrongNumElements)
}
