//! `incontext`: which optimisation algorithm is a transformer running when it learns in context?
//!
//! A laboratory for that question: tasks that give prompts, models that learn from them, algorithms that a model may
//! be running, and the figures of the papers that compare the two. Data flows one way:
//!
//! ```text
//! task -> prompts -> (model | algorithm) -> predictions -> comparison -> Figure + Claims
//! ```
//!
//! | module | what is in it |
//! |---|---|
//! | [`tasks`] | where prompts come from: linear regression with any covariance, noise and prior; kernel regression; ill-conditioned; two-layer networks; sequences of a dynamical system; few-shot prompts; text |
//! | [`algorithms`] | what a model may be running: gradient descent, least squares, Newton, CG, (L-)BFGS, online GD, Chebyshev, heavy ball, GD++, kernel polynomials; functional GD and kernel ridge; at every prefix of a prompt; on sequences, at every token |
//! | [`models`] | transformers of linear attention, sparse and general, with any activation on the scores, and of GPT-2's kind, stacks of softmax, linear attention and mesa layers, and LSTMs, with dfdx parameters; soft prompts |
//! | [`ops`] | fused forward and backward passes on the dfdx tape, whole transformers among them; the exact loss over Wishart samples |
//! | [`compare`] | similarity of errors and of induced weights, best-matching steps with intervals, trends; intervals over seeds |
//! | [`probe`] | linear probes of hidden states in closed form |
//! | [`train`] | the trainer, Adam, SGD and Muon, clipping, schedules, curricula, checkpoints; resumable bit for bit |
//! | [`figure`] | [`figure::Figure`]: one description gives interactive Plotly, static SVG, JSON and CSV; claims; tables |
//! | [`experiments`] | the papers' figures, one file a figure, and the trainings behind them |
//! | [`progress`] | who watches long work, and how: lines in a notebook, bars in a terminal |
//! | [`linalg`] | small dense matrices: factorisations, eigenvalues, least squares, roots of polynomials |
//! | [`rng`] | random streams named by a seed, a purpose and an index |
//! | [`fs`] | files that are there whole or not at all |
//! | [`error`] | [`Error`]: what was given, what was expected, where |
//! | [`prelude`] | what a notebook imports |
//!
//! Three rules hold everywhere: errors are values and nothing panics on a user's input; every result is a function of
//! its seed, bit for bit, for any number of threads; a checkpoint is rebuilt by the command in its manifest.
//!
//! # Example
//! The one-layer transformer at the optimum of Theorem 1 of `pgd`, against the loss that the theorem states:
//!
//! ```
//! use incontext::prelude::*;
//! let task = LinearRegression::new(Covariance::identity(5)?, 20, WeightPrior::InverseCovariance)?;
//! let mut model = LinearTransformer::<f64>::zeros(1, 5, Parametrisation::Preconditioner)?;
//! model.set_steps(&[20.0 / 26.0], &[], task.covariance())?;
//! let loss = model.loss(&Arc::new(task.sample_moments(20_000, 1)?))?;
//! let claims = Claims::new().equals("tour.optimum", "one layer reaches its optimum", loss, 30.0 / 26.0, 0.05);
//! assert!(claims.all_hold());
//! # Ok::<(), Error>(())
//! ```
#![warn(missing_docs)]

pub mod algorithms;
pub mod compare;
pub mod error;
pub mod experiments;
pub mod figure;
pub mod fs;
pub mod linalg;
pub mod models;
pub mod ops;
pub mod probe;
pub mod progress;
pub mod rng;
pub mod tasks;
pub mod train;

pub use error::{Error, Result};

// A notebook that depends on this crate alone names their types through it, and so does evcxr, which writes out the
// type of every variable that it keeps.
pub use dfdx;
pub use plotly;
pub use rand;
pub use serde_json;

/// What a notebook imports: `use incontext::prelude::*;`.
///
/// [`Result`] is not in it: a cell that writes `Result<T, E>` means the standard one, and `?` in a cell needs no name.
pub mod prelude {
    pub use std::sync::Arc;
    pub use std::time::Duration;

    pub use crate::Error;
    pub use crate::algorithms::sequences::{
        FewShotPairs, InverseSeries, Pairing, RecursiveLeastSquares, SequenceAlgorithm, SequenceGradient,
        SequenceLeastSquares, SoftmaxKernel, few_shot_losses, orthogonal_floor, sequence_losses,
    };
    pub use crate::algorithms::{
        Algorithm, Examples, FunctionalGradientDescent, GdPlusPlus, GradientDescent, KernelPolynomial, KernelRidge,
        LeastSquares, LinearSmoother, SpectralMeasure, bayes_risk, losses, minimise, risk,
    };
    pub use crate::compare::{Interval, distance_to_identity};
    pub use crate::experiments::pgd::recipes;
    pub use crate::experiments::{self, Reproduction, Settings};
    pub use crate::figure::{
        Axis, Band, Bars, Claim, Claims, Color, Extremes, Figure, Frame, Heatmap, Line, Panel, Scale, Scatter, Series,
        Table, greater, lesser,
    };
    pub use crate::linalg::Matrix;
    pub use crate::models::{
        GeneralLinearTransformer, Gpt2, Gpt2Config, Init, KernelTransformer, LinearTransformer, Lstm, LstmConfig,
        Parameters, Parametrisation, Positions, SequenceTransformer, SoftPrompt,
    };
    pub use crate::ops::attention::{Attention, Weights};
    pub use crate::ops::kernel_prompts::{KernelPrompts, Labels};
    pub use crate::ops::kernel_transformer::{Activation, ValueBlock};
    pub use crate::ops::linear_attention::Mask;
    pub use crate::ops::moments::Moments;
    pub use crate::ops::sequence::Architecture;
    pub use crate::ops::wishart::GramSamples;
    pub use crate::progress::{Lines, Observer, Silent};
    pub use crate::rng::{self, Rng};
    pub use crate::tasks::{
        Combination, Covariance, Dynamics, FewShot, FewShotPrompts, Kernel, KernelRegression, LinearRegression,
        Profile, Prompt, Prompts, Sequences, Term, TokenKind, Trajectories, WeightPrior,
    };
    pub use crate::train::{
        Adam, AdamConfig, Ahead, Array, Checkpoint, Clip, Curriculum, History, Muon, MuonConfig, Problem, Ramp,
        Schedule, Sgd, SgdConfig, Stateful, Trainer,
    };
}
