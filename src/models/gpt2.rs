//! Transformers of GPT-2's kind: those of `newton` (section 2), and `mesa`'s attention-only stacks.
//!
//! # Training one
//! ```
//! use incontext::prelude::*;
//! use incontext::models::{Gpt2, Gpt2Config, Init};
//!
//! let task = LinearRegression::new(Covariance::identity(5)?, 10, WeightPrior::Isotropic)?;
//! let config = Gpt2Config { inputs: 5, layers: 2, ..Gpt2Config::default() }.with_width(32, 4);
//! let mut model = Gpt2::init(config, Init::FanIn, 0)?;
//! let mut adam = Adam::new(AdamConfig { rate: 1e-3, clip: Clip::Global(1.0), ..AdamConfig::default() })?;
//! for step in 0..3 {
//!     // x_1, (y_1, 0, …), x_2, …: the prediction of y_t is read at the token of x_t.
//!     let batch = task.sample(64, step)?.interleaved()?;
//!     let (loss, gradients) = model.loss_and_gradient(&batch)?;
//!     adam.step(&mut model, gradients)?;
//!     assert!(loss.is_finite());
//! }
//! let test = task.sample(10, 99)?.interleaved()?;
//! let predictions = model.predict(&test)?;
//! assert_eq!(predictions.len(), 10 * 11);
//! // The residual stream after each layer, as `transformers` gives it: 2 layers and the embedding.
//! assert_eq!(model.hidden_states(&test)?.len(), 3);
//! # Ok::<(), Error>(())
//! ```
//! A long training is a [`crate::train::Problem`] whose `gradient` is the body of that loop, run by a
//! [`crate::train::Trainer`].
//!
//! # `mesa`'s models
//! ```
//! use incontext::models::{Gpt2, Gpt2Config, Init, Positions};
//! use incontext::ops::attention::{Attention, Weights};
//! // LSA-1: tokens of 40 entries are the residual stream, linear attention of 2 heads with keys of 20, nothing else.
//! let lsa = Gpt2Config {
//!     inputs: 40,
//!     outputs: 10,
//!     layers: 1,
//!     width: 40,
//!     heads: 2,
//!     key: 20,
//!     mlp: 0,
//!     attention: Attention { weights: Weights::Linear, scaled: false, ..Attention::default() },
//!     positions: Positions::None,
//!     layer_norm: false,
//!     biases: false,
//!     read: false,
//!     clamp: Some(4.0),
//! };
//! // TF-7: read in and out, seven layers of softmax attention, sinusoids for the queries and keys of the first.
//! let tf = Gpt2Config {
//!     inputs: 10,
//!     layers: 7,
//!     heads: 4,
//!     attention: Attention::default(),
//!     positions: Positions::Sinusoidal,
//!     read: true,
//!     clamp: None,
//!     ..lsa.clone()
//! };
//! let models = (Gpt2::init(lsa, Init::Normal(2e-4), 1)?, Gpt2::init(tf, Init::Normal(0.05), 1)?);
//! assert_eq!(models.0.values().len(), 4 * 40 * 40);
//! # Ok::<(), incontext::Error>(())
//! ```

use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};

use super::SequenceModel;
use crate::ops::sequence::Architecture;
use crate::rng::{Rng, stream};
use crate::{Error, Result};

pub use crate::ops::gpt2::{Gpt2Config, Positions};

/// A transformer of GPT-2's kind. Its tensors have Hugging Face's names ([`Architecture::tensors`]).
pub type Gpt2 = SequenceModel<Gpt2Config>;

/// The law of the initial weights. Biases begin at 0 and layer norms as the identity.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// N(0, 1/fan-in), the maps into the residual stream divided by sqrt(2 layers); positions N(0, 0.02²). Below width
    /// 256 it leaves the first plateau of the loss several times sooner than GPT-2's (`newton` section 7.1).
    FanIn,
    /// GPT-2's N(0, 0.02²), the maps into the residual stream divided by sqrt(2 layers), with PyTorch's uniform law of
    /// ±1/sqrt(fan-in) for the read-in and the read-out.
    Gpt2,
    /// N(0, σ²) for all of them: `mesa` (trap 7).
    Normal(f64),
}

impl Gpt2 {
    /// A model with weights drawn from `init`, a function of `seed`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an architecture that cannot be, or a standard deviation that is not positive and finite.
    pub fn init(config: Gpt2Config, init: Init, seed: u64) -> Result<Self> {
        config.check()?;
        if let Init::Normal(std) = init
            && !(std.is_finite() && std > 0.0)
        {
            return Err(Error::invalid("initial standard deviation", std, "a positive finite number"));
        }
        let residual = 1.0 / (2.0 * config.layers as f64).sqrt();
        let mut values = Vec::new();
        for (index, entry) in config.tensors().iter().enumerate() {
            let mut rng = stream(seed, "init", index as u64);
            let len = entry.at.len();
            let mut normal = |std: f64| {
                let draw = |_| (std * <StandardNormal as Distribution<f64>>::sample(&StandardNormal, &mut rng)) as f32;
                (0..len).map(draw).collect::<Vec<f32>>()
            };
            let read = entry.name.starts_with("read_");
            let norm = entry.name.contains("ln_");
            let into_residual = if entry.name.ends_with("c_proj.weight") { residual } else { 1.0 };
            let fan_in = entry.shape[if read { entry.shape.len() - 1 } else { 0 }] as f64;
            values.extend(match init {
                _ if norm => vec![if entry.name.ends_with("weight") { 1.0 } else { 0.0 }; len],
                Init::Gpt2 if read => {
                    let fan_in = if entry.name.starts_with("read_in") { config.inputs } else { config.width };
                    let bound = 1.0 / (fan_in as f64).sqrt();
                    let mut rng = stream(seed, "init", index as u64);
                    (0..len).map(|_| rng.gen_range(-bound..bound) as f32).collect()
                }
                _ if entry.name.ends_with("bias") => vec![0.0; len],
                Init::Normal(std) => normal(std),
                Init::FanIn if entry.name != "wpe.weight" => normal(into_residual / fan_in.sqrt()),
                _ => normal(0.02 * into_residual),
            });
        }
        Gpt2::from_values(config, values)
    }
}
