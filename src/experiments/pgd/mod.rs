//! The figures of "Transformers learn to implement preconditioned gradient descent for in-context learning".

pub mod recipes;

pub use recipes::recipes;

use super::Experiment;

/// The paper's figures, in its order.
pub fn experiments() -> Vec<Experiment> {
    Vec::new()
}
