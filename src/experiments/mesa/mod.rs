//! The figures of "Uncovering mesa-optimization algorithms in Transformers".

pub mod recipes;
pub mod sensitivity;

pub use recipes::recipes;

use super::{Experiment, Reproduction, Settings};
use crate::Result;

/// The paper's figures, in its order.
pub fn experiments() -> Vec<Experiment> {
    type Run = fn(&Settings<'_>) -> Result<Reproduction>;
    let _figure = |id, title, notebook, checkpoints, run: Run| Experiment {
        id,
        paper: "mesa",
        title,
        notebook,
        checkpoints,
        run,
    };
    vec![]
}
