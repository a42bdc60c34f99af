//! Explicit weights from the papers' theorems, in double precision.

pub mod mesa;
pub mod newton;
pub mod relu_transformer;

pub use newton::{NewtonConstruction, Signs};
pub use relu_transformer::{Averaging, Head, Layer, ReluTransformer};
