//! `incontext`: which optimisation algorithm is a transformer running when it learns in context?
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
pub mod progress;
pub mod rng;
pub mod tasks;
pub mod train;

pub use error::{Error, Result};
