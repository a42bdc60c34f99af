//! Fused forward and backward passes that stand on the dfdx tape: the only place for `unsafe`.

pub(crate) mod adam;
mod affine;
pub mod attention;
pub mod gelu;
pub mod gemm;
pub mod gpt2;
pub mod kernel_prompts;
pub mod kernel_transformer;
pub mod lane_products;
pub mod lanes;
pub mod layer_norm;
pub mod linear_attention;
pub mod linear_transformer;
pub mod lstm;
mod matrices;
mod mesa_layer;
pub mod moments;
pub mod sequence;
pub mod sequence_transformer;
pub mod simd;
pub(crate) mod symmetric;
pub mod wishart;
