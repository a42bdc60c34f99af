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

/// The paper's figures, in its order.
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
    vec![
        figure("fgd.fig1a", "Loss against the context length: linear data", &["fgd-context"], fig1::a),
        figure("fgd.fig1b", "Loss against the context length: ReLU data", &["fgd-context"], fig1::b),
        figure("fgd.fig1c", "Loss against the context length: exponential data", &["fgd-context"], fig1::c),
        figure("fgd.fig2a", "Loss against depth: ReLU data, n = 14", &["fgd-depth"], fig2::a),
        figure("fgd.fig2b", "Loss against depth: exponential data, n = 14", &["fgd-depth"], fig2::b),
        figure("fgd.fig2c", "Loss against depth: ReLU data, n = 6", &["fgd-depth"], fig2::c),
        figure("fgd.fig2d", "Loss against depth: exponential data, n = 6", &["fgd-depth"], fig2::d),
        figure("fgd.fig3a", "One head and two: linear data", &["fgd-heads"], fig3::a),
        figure("fgd.fig3b", "One head and two: exponential data", &["fgd-heads"], fig3::b),
        figure("fgd.fig3c", "One head and two: the combination", &["fgd-heads"], fig3::c),
        figure("fgd.released", "The authors' released run, again", &["fgd-authors"], fig3::released),
        figure("fgd.fig4", "Theorem 1: where training rests with A = 0", &["fgd-stationary"], stationary::zero),
        figure("fgd.fig5", "Theorem 2: where training rests with A free", &["fgd-stationary"], stationary::free),
        figure("fgd.fig6", "The matrices of an exponential network", &["fgd-stationary"], stationary::matrices),
        figure("fgd.indefinite", "The ReLU kernel is not positive semi-definite", &[], indefinite::run),
        figure("fgd.matrix", "Which activation for which kernel", &["fgd-matrix"], matrix::run),
        figure("fgd.softmax", "The kernel that a trained softmax head uses", &["fgd-context"], softmax::run),
    ]
}
