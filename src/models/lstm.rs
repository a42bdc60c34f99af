//! The LSTM of `newton` (section 2): an affine read-in, stacked layers, an affine read-out.
//!
//! ```
//! use incontext::models::{Lstm, LstmConfig};
//! use incontext::prelude::*;
//! let task = LinearRegression::new(Covariance::identity(5)?, 10, WeightPrior::Isotropic)?;
//! let model = Lstm::init(LstmConfig { inputs: 5, layers: 3, width: 64, ..LstmConfig::default() }, 0)?;
//! let (loss, gradients) = model.loss_and_gradient(&task.sample(64, 1)?.interleaved()?)?;
//! assert!(loss.is_finite());
//! # let _ = gradients;
//! # Ok::<(), Error>(())
//! ```

use super::SequenceModel;
use crate::Result;
use crate::ops::sequence::Architecture;
use crate::rng::{Rng, stream};

pub use crate::ops::lstm::LstmConfig;

/// A stack of LSTM layers. Its tensors have PyTorch's names ([`Architecture::tensors`]).
pub type Lstm = SequenceModel<LstmConfig>;

impl Lstm {
    /// A model with PyTorch's initial law, uniform in ±1/sqrt(width), ±1/sqrt(inputs) for the read-in; a function of
    /// `seed`.
    ///
    /// # Errors
    /// [`crate::Error::Invalid`] for an architecture that cannot be.
    pub fn init(config: LstmConfig, seed: u64) -> Result<Self> {
        config.check()?;
        let mut values = Vec::new();
        for (index, entry) in config.tensors().iter().enumerate() {
            let mut rng = stream(seed, "init", index as u64);
            let fan_in = if entry.name.starts_with("read_in") { config.inputs } else { config.width };
            let bound = 1.0 / (fan_in as f64).sqrt();
            values.extend(entry.at.clone().map(|_| rng.gen_range(-bound..bound) as f32));
        }
        Lstm::from_values(config, values)
    }
}
