//! Tokens that are learnt in front of a frozen network: soft prompts (`mesa` section 4.6, Figs 8 and 18).

use dfdx::prelude::{Cpu, Gradients, Tensor, TensorFromVec};
use rand_distr::{Distribution, StandardNormal};

use super::{Parameter, Parameters, gradients_of, visit_tensor};
use crate::error::{all_finite, array_len};
use crate::ops::lane_products::OnLanes;
use crate::ops::sequence_transformer::{Architecture, squared_loss_in_tokens};
use crate::rng::stream;
use crate::tasks::{FewShotPrompts, Prompt};
use crate::{Error, Result};

/// Learnt tokens, `[count, dim]`.
#[derive(Clone, Debug)]
pub struct SoftPrompt {
    tokens: Tensor<(usize, usize), f32, Cpu>,
}

impl SoftPrompt {
    /// Tokens drawn from N(0, I), as the authors begin.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no tokens or dimension 0.
    pub fn init(count: usize, dim: usize, seed: u64) -> Result<Self> {
        let mut rng = stream(seed, "soft prompt", 0);
        let draw = |_| {
            let z: f64 = StandardNormal.sample(&mut rng);
            z as f32
        };
        let len = array_len::<f32>("soft prompt", &[count, dim])?;
        SoftPrompt::from_values(count, dim, (0..len).map(draw).collect())
    }

    /// Tokens with these values, `[count, dim]` row-major.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are not so many values or none at all, [`Error::Invalid`] if one is not finite.
    pub fn from_values(count: usize, dim: usize, values: Vec<f32>) -> Result<Self> {
        if values.is_empty() || Some(values.len()) != count.checked_mul(dim) {
            return Err(Error::shape("soft prompt", &[values.len()], format!("[{count}, {dim}], none 0")));
        }
        all_finite("soft prompt", values.iter().map(|v| f64::from(*v)))?;
        let tokens = Cpu::default().try_tensor_from_vec(values, (count, dim));
        Ok(SoftPrompt { tokens: tokens.map_err(|e| Error::numerical("soft prompt", e.to_string()))? })
    }

    /// The values, `[count, dim]` row-major.
    pub fn values(&self) -> Vec<f64> {
        self.tokens.as_vec().into_iter().map(f64::from).collect()
    }

    /// `gradient` `[count, dim]`, as optimisers read it.
    ///
    /// # Errors
    /// [`Error::Shape`] if it has another number of entries.
    pub fn gradients(&self, gradient: &[f64]) -> Result<Gradients<f32, Cpu>> {
        gradients_of(&self.tokens, "soft prompt", gradient)
    }
}

impl Parameters for SoftPrompt {
    fn visit(&mut self, visitor: &mut dyn FnMut(Parameter<'_>) -> Result<()>) -> Result<()> {
        visit_tensor("tokens", &mut self.tokens, visitor)
    }
}

/// The few-shot loss of a frozen network, with its gradient in the tokens of the prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptSlope {
    /// The mean over prompts and pairs of ½‖y_i − f(x_i)‖².
    pub loss: f64,
    /// The gradient in [`Prompt::prefix`].
    pub prefix: Vec<f64>,
    /// The gradient in [`Prompt::eos`], summed over all the places where it stands.
    pub eos: Vec<f64>,
}

/// The loss of the network `a` with `parameters` on `pairs` within `prompt`, and its gradient in the prompt's tokens.
///
/// # Errors
/// [`Error::Shape`] if the network reads or predicts another dimension, or the prompt's tokens have another; as
/// [`squared_loss_in_tokens`].
pub fn prompt_gradient<T: OnLanes>(
    a: &Architecture,
    parameters: &[T],
    pairs: &FewShotPrompts,
    prompt: &Prompt,
) -> Result<PromptSlope> {
    let [batch, count, n] = pairs.shape();
    let (tokens, targets) = (pairs.tokens::<T>(prompt)?, pairs.targets::<T>(prompt)?);
    let (slope, in_tokens) = squared_loss_in_tokens(a, parameters, &tokens, &targets, Some(&pairs.weights(prompt)))?;
    let (mut prefix, mut eos) = (vec![0.0; prompt.prefix.len()], vec![0.0; prompt.eos.len()]);
    let size = pairs.length(prompt) * n;
    for gradient in in_tokens.values().chunks(size).take(batch) {
        prefix.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
        for i in 0..count {
            // The token after the pair, if there is one: `eos` is empty otherwise.
            let at = (pairs.query(prompt, i) + 2) * n;
            eos.iter_mut().zip(&gradient[at.min(size)..]).for_each(|(sum, g)| *sum += g);
        }
    }
    Ok(PromptSlope { loss: slope.loss, prefix, eos })
}
