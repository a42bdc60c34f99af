//! The figures of "Transformers learn to implement preconditioned gradient descent for in-context learning".

use super::{Experiment, Recipe};

/// The paper's figures, in its order.
pub fn experiments() -> Vec<Experiment> {
    Vec::new()
}

/// The trainings behind them.
pub fn recipes() -> Vec<Recipe> {
    Vec::new()
}
