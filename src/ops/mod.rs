//! Fused forward and backward passes that stand on the dfdx tape: the only place for `unsafe`.
//!
//! There are two ops of whole transformers, because no one layout is the fastest for both papers' sizes. [`gpt2`] has sixteen
//! neighbouring channels in a vector: matrix products over tokens by channels, with layer norms, biases and learned
//! positions; it is the faster one from width 32 on, with sixteen heads in a vector for the attention of short prompts alone.
//! [`sequence_transformer`] has sixteen sequences in a vector: heads of ten or twenty channels, recursions over tokens (mesa
//! layer, delta rule) and odd sizes waste nothing; at keys of 20 it is 1.4 times faster. Measured: benches/README.md. Their
//! parts, for other networks: [`layers`].

use dfdx::prelude::{Cpu, Dtype, ReshapeTo, Shape, Tape, Tensor};

use crate::{Error, Result};

pub(crate) mod adam;
mod affine;
pub mod attention;
mod delta_rule;
pub mod gelu;
pub mod gemm;
pub mod gpt2;
pub mod kernel_prompts;
pub mod kernel_transformer;
mod lane_attention;
pub mod lane_products;
pub mod lanes;
pub mod layer_norm;
pub mod layers;
pub mod linear_attention;
pub mod linear_transformer;
pub mod lstm;
mod matrices;
mod memory;
mod mesa_layer;
pub mod moments;
pub mod sequence;
pub mod sequence_transformer;
pub mod simd;
pub(crate) mod symmetric;
pub(crate) mod threads;
#[cfg(target_arch = "x86_64")]
mod tiles;
pub mod wishart;

/// The tensor with its entries in the order of its shape. Of a view, permuted or broadcast, dfdx keeps the gradient in the
/// order of the tensor that it is a view of.
fn contiguous<S: Shape, E: Dtype, T: Tape<E, Cpu>>(
    what: &str,
    x: Tensor<S, E, Cpu, T>,
) -> Result<Tensor<S, E, Cpu, T>> {
    x.try_contiguous().map_err(|e| Error::numerical(what, e.to_string()))
}
