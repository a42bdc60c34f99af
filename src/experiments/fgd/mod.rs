//! The figures of "Transformers implement functional gradient descent to learn non-linear functions in context".

mod common;
pub mod fig1;
pub mod fig2;
pub mod fig3;
pub mod indefinite;
pub mod matrix;
pub mod recipes;
pub mod softmax;
pub mod stationary;

pub use recipes::recipes;

use super::{Experiment, Reproduction, Settings};
use crate::Result;

/// The paper's figures that need no network; the others follow with their checkpoints.
pub fn experiments() -> Vec<Experiment> {
    type Run = fn(&Settings<'_>) -> Result<Reproduction>;
    let figure = |id, title, checkpoints, run: Run| Experiment {
        id,
        paper: "fgd",
        title,
        notebook: "05_functional_gradient_descent",
        checkpoints,
        run,
    };
    vec![figure("fgd.indefinite", "The ReLU kernel is not positive semi-definite", &[], indefinite::run)]
}
