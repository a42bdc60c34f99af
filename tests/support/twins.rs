//! The parts of a transformer written with dfdx's own operations, in double precision: the fused ops' twins.

use dfdx::prelude::*;
use incontext::ops::attention::{Attention, Weights};

pub type Taped1 = Tensor<(usize,), f64, Cpu, OwnedTape<f64, Cpu>>;
pub type Taped2 = Tensor<(usize, usize), f64, Cpu, OwnedTape<f64, Cpu>>;
pub type Taped3 = Tensor<(usize, usize, usize), f64, Cpu, OwnedTape<f64, Cpu>>;

/// [`incontext::ops::layers::attention`]: scores of all pairs of tokens, a mask, and two matrix products for each head.
pub fn attention(qkv: Taped3, heads: usize, key: usize, form: Attention) -> Taped3 {
    let dev = qkv.device().clone();
    let (batch, tokens, _) = *qkv.shape();
    let inner = heads * key;
    // Cuts that do not overlap: dfdx writes a cut's gradient over what is there.
    let part = |qkv: Taped3, p: usize| {
        let part = qkv.slice((.., .., p * inner..(p + 1) * inner));
        part.reshape_like(&(batch, tokens, heads, key)).permute::<_, Axes4<0, 2, 1, 3>>()
    };
    let (q, k) = (part(qkv.with_empty_tape(), 0), part(qkv.with_empty_tape(), 1));
    let scores = q.matmul(k.permute::<_, Axes4<0, 1, 3, 2>>());
    let scores = if form.scaled { scores / (key as f64).sqrt() } else { scores };
    let of_pairs = |allowed: &dyn Fn(usize) -> f64, forbidden: f64| {
        let value = |k: usize| {
            let (i, j) = (k / tokens, k % tokens);
            if form.causal && j > i { forbidden } else { allowed(if form.causal { i + 1 } else { tokens }) }
        };
        let values = dev.tensor_from_vec((0..tokens * tokens).map(value).collect(), (tokens, tokens));
        values.broadcast_like::<_, Axes2<0, 1>>(&(batch, heads, tokens, tokens))
    };
    let factors = of_pairs(&|attended| if form.averaged { 1.0 / attended as f64 } else { 1.0 }, 0.0);
    let weights = match form.weights {
        Weights::Softmax => (scores + of_pairs(&|_| 0.0, -1e30)).softmax::<Axis<3>>(),
        Weights::Linear => scores * factors,
        Weights::Relu => scores.relu() * factors,
        Weights::Exp => scores.exp() * factors,
    };
    weights.matmul(part(qkv, 2)).permute::<_, Axes4<0, 2, 1, 3>>().reshape_like(&(batch, tokens, inner))
}

/// [`incontext::ops::layers::affine`].
pub fn affine(x: Taped2, w: Taped2, b: Taped1) -> Taped2 {
    let y = x.matmul(w);
    let shape = *y.shape();
    y + b.broadcast_like::<_, Axis<0>>(&shape)
}

/// [`incontext::ops::layers::layer_norm`].
pub fn layer_norm(x: Taped2, gamma: Taped1, beta: Taped1) -> Taped2 {
    let shape = *x.shape();
    x.normalize::<Axis<1>>(1e-5) * gamma.broadcast_like::<_, Axis<0>>(&shape)
        + beta.broadcast_like::<_, Axis<0>>(&shape)
}

/// [`incontext::ops::layers::gelu`].
pub fn gelu(x: Taped2) -> Taped2 {
    let u = (x.with_empty_tape() + x.with_empty_tape().powi(3) * 0.044715) * (2.0 / std::f64::consts::PI).sqrt();
    x * (u.tanh() + 1.0) * 0.5
}

/// The forms of attention, all of them.
pub fn forms() -> impl Iterator<Item = Attention> {
    [Weights::Softmax, Weights::Linear, Weights::Relu, Weights::Exp].into_iter().flat_map(|weights| {
        (0..8).map(move |k| Attention { weights, causal: k & 1 > 0, scaled: k & 2 > 0, averaged: k & 4 > 0 })
    })
}
