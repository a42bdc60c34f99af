//! Where prompts come from. One file a task.

pub mod covariance;
pub mod linear_regression;

pub use covariance::Covariance;
pub use linear_regression::{LinearRegression, Prompts, WeightPrior};
