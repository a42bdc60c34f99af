//! Fused forward and backward passes that stand on the dfdx tape: the only place for `unsafe`.

pub mod lanes;
pub mod linear_attention;
pub mod linear_transformer;
mod matrices;
pub mod moments;
pub mod wishart;
