//! Figures.

/// A figure.
#[derive(Clone, Debug)]
pub struct Figure;
/// Claims.
#[derive(Clone, Debug)]
pub struct Claims;
