//! Where prompts come from. One file a task.

pub mod covariance;
pub mod dynamics;
pub mod few_shot;
pub mod ill_conditioned;
pub mod kernel;
pub mod kernel_regression;
pub mod linear_regression;
pub mod sequences;
pub mod text;
pub mod two_layer_network;

pub use covariance::Covariance;
pub use dynamics::{Dynamics, TokenKind, Trajectories};
pub use few_shot::{FewShot, FewShotPrompts, Prompt};
pub use ill_conditioned::IllConditioned;
pub use kernel::{Combination, Kernel, Profile, Term};
pub use kernel_regression::KernelRegression;
pub use linear_regression::{LinearRegression, Prompts, WeightPrior};
pub use sequences::Sequences;
pub use text::{Text, Windows};
pub use two_layer_network::{HiddenUnit, TwoLayerNetwork};
