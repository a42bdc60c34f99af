//! A whole transformer of GPT-2's kind as one op: read-in, blocks of attention and MLP with layer norm before each,
//! final layer norm, read-out.
//!
//! ```text
//! h ← W_in x_t + b_in + p_t
//! h ← h + Proj Attend(LN h)        h ← h + Out gelu(Fc (LN h))        for each layer
//! ŷ_t = W_out LN h_t + b_out
//! ```
//!
//! The batch is cut into parts that do not depend on the number of threads. A part goes through all layers forward and,
//! at once, backward, so that what the backward pass reads is still in the cache; its gradient in the weights is kept
//! and the parts' gradients are added in order. Layer norm's affine map and the position vectors are folded into the
//! affine layers, whose weights are laid out for the matrix products once a step.

use std::ops::Range;
use std::sync::Mutex;

use dfdx::prelude::{Cpu, CpuError, HasShape, Merge, NoneTape, PutTape, SplitTape, Tape, Tensor, TensorFromVec};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::attention::{Attention, Heads, MARGIN};
use super::gelu::{gelu, times};
use super::gemm::{Left, Right, Start, add_column_sums, gemm, pack, packed_len};
use super::layer_norm::{Rows, normalise, normalise_backward};
use super::simd::WIDTH;
use crate::error::array_len;
use crate::{Error, Result};

/// How the model knows a token's position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// Not at all, but for the causal mask.
    None,
    /// A learned vector for each of at most this many positions is added to the token's: GPT-2's.
    Learned(usize),
    /// Sinusoids of the model's width (Vaswani et al., 2017) are concatenated to what the queries and keys of the first
    /// layer are made of: `mesa` (trap 5).
    Sinusoidal,
}

/// The architecture of a transformer of GPT-2's kind.
///
/// [`Default`] is the `newton` paper's: 12 layers, width 256, 8 heads; smaller ones override what differs.
///
/// ```
/// use incontext::models::Gpt2Config;
/// let small = Gpt2Config { inputs: 5, layers: 8, ..Gpt2Config::default() }.with_width(64, 4);
/// assert_eq!((small.key, small.mlp), (16, 256));
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Gpt2Config {
    /// Entries of a token.
    pub inputs: usize,
    /// Entries of a prediction.
    pub outputs: usize,
    /// Blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Heads of a layer.
    pub heads: usize,
    /// Size of a head's queries, keys and values.
    pub key: usize,
    /// Hidden width of the MLPs; 0: no MLPs.
    pub mlp: usize,
    /// The form of attention.
    pub attention: Attention,
    /// How the model knows a token's position.
    pub positions: Positions,
    /// Whether there is layer norm.
    pub layer_norm: bool,
    /// Whether affine layers have biases.
    pub biases: bool,
    /// Whether tokens are read in and predictions read out by affine layers. Without, tokens are the residual stream
    /// (`inputs` = `width`) and its first `outputs` entries are the predictions.
    pub read: bool,
    /// The residual stream is clamped to plus and minus this after every block.
    pub clamp: Option<f32>,
}

impl Default for Gpt2Config {
    fn default() -> Self {
        Gpt2Config {
            inputs: 20,
            outputs: 1,
            layers: 12,
            width: 256,
            heads: 8,
            key: 32,
            mlp: 1024,
            attention: Attention::default(),
            positions: Positions::Learned(202),
            layer_norm: true,
            biases: true,
            read: true,
            clamp: None,
        }
    }
}

impl Gpt2Config {
    /// The same with another width and number of heads: keys of width / heads and MLPs of 4 times the width, unless
    /// there are none.
    pub fn with_width(self, width: usize, heads: usize) -> Self {
        let mlp = if self.mlp == 0 { 0 } else { 4 * width };
        Gpt2Config { width, heads, key: width / heads.max(1), mlp, ..self }
    }

    /// Whether there can be such a model.
    ///
    /// # Errors
    /// [`Error::Invalid`] if not: a size that is 0, tokens of another width than a residual stream that they are, more
    /// predictions than it has entries, a clamp that is not positive.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            ("entries of a token", self.inputs),
            ("entries of a prediction", self.outputs),
            ("layers", self.layers),
            ("width", self.width),
            ("heads", self.heads),
            ("size of keys", self.key),
        ];
        if let Some((what, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(Error::invalid(*what, 0, "at least 1"));
        }
        if self.positions == Positions::Learned(0) {
            return Err(Error::invalid("positions", 0, "at least 1"));
        }
        if !self.read && self.inputs != self.width {
            return Err(Error::invalid("entries of a token", self.inputs, format!("the width, {}", self.width)));
        }
        if !self.read && self.outputs > self.width {
            let expected = format!("at most the width, {}", self.width);
            return Err(Error::invalid("entries of a prediction", self.outputs, expected));
        }
        if let Some(clamp) = self.clamp
            && !(clamp.is_finite() && clamp > 0.0)
        {
            return Err(Error::invalid("clamp", clamp, "a positive finite number"));
        }
        // In u128 nothing here wraps around, unless a size has no array of its own.
        for size in [self.inputs, self.outputs, self.layers, self.width, self.heads, self.key, self.mlp] {
            array_len::<f32>("model", &[size])?;
        }
        let positions = if let Positions::Learned(count) = self.positions { count } else { 0 };
        let [inputs, outputs, layers, width, mlp] =
            [self.inputs, self.outputs, self.layers, self.width, self.mlp].map(|size| size as u128);
        let inner = (self.heads as u128).saturating_mul(self.key as u128);
        let block = inner.saturating_mul(6).saturating_add(2 * mlp + 10).saturating_mul(width);
        let all = (inputs + outputs + positions as u128 + 4).saturating_mul(width);
        let all = all.saturating_add(layers.saturating_mul(block.saturating_add(3 * inner + mlp)));
        array_len::<f32>("model", &[usize::try_from(all).unwrap_or(usize::MAX)]).map(drop)
    }

    /// The tensors of the model, in order, under Hugging Face's names for GPT-2; `read_in` and `read_out` are PyTorch's
    /// linear layers `[out, in]`, the others `[in, out]`.
    pub fn tensors(&self) -> Vec<Entry> {
        layout(self).0
    }
}

/// A tensor of the model in the vector of all parameters.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Where it is.
    pub at: Range<usize>,
}

/// Places of an affine layer's tensors in the parameters; empty if there is none.
#[derive(Clone, Debug, Default)]
struct Weights {
    weight: Range<usize>,
    bias: Range<usize>,
}

#[derive(Clone, Debug, Default)]
struct Index {
    read_in: Weights,
    positions: Range<usize>,
    blocks: Vec<[Weights; 6]>,
    sinusoids: Range<usize>,
    norm: Weights,
    read_out: Weights,
}

fn layout(config: &Gpt2Config) -> (Vec<Entry>, Index) {
    let mut entries: Vec<Entry> = Vec::new();
    let mut add = |wanted: bool, name: String, shape: &[usize]| -> Range<usize> {
        if !wanted {
            return 0..0;
        }
        let start = entries.last().map_or(0, |e| e.at.end);
        let at = start..start + shape.iter().product::<usize>();
        entries.push(Entry { name, shape: shape.to_vec(), at: at.clone() });
        at
    };
    let Gpt2Config { inputs, outputs, width, mlp, biases, read, .. } = *config;
    let inner = config.heads * config.key;
    let read_in = Weights {
        weight: add(read, "read_in.weight".into(), &[width, inputs]),
        bias: add(read && biases, "read_in.bias".into(), &[width]),
    };
    let mut index = Index { read_in, ..Index::default() };
    if let Positions::Learned(count) = config.positions {
        index.positions = add(true, "wpe.weight".into(), &[count, width]);
    }
    for l in 0..config.layers {
        let mut affine = |wanted: bool, bias: bool, name: &str, shape: &[usize]| Weights {
            weight: add(wanted, format!("h.{l}.{name}.weight"), shape),
            bias: add(wanted && bias, format!("h.{l}.{name}.bias"), &shape[shape.len() - 1..]),
        };
        let norm = config.layer_norm;
        let ln_1 = affine(norm, true, "ln_1", &[width]);
        let attn = affine(true, biases, "attn.c_attn", &[width, 3 * inner]);
        if l == 0 && config.positions == Positions::Sinusoidal {
            index.sinusoids = affine(true, false, "attn.c_position", &[width, 2 * inner]).weight;
        }
        let proj = affine(true, biases, "attn.c_proj", &[inner, width]);
        let ln_2 = affine(norm && mlp > 0, true, "ln_2", &[width]);
        let fc = affine(mlp > 0, biases, "mlp.c_fc", &[width, mlp]);
        let out = affine(mlp > 0, biases, "mlp.c_proj", &[mlp, width]);
        index.blocks.push([ln_1, attn, proj, ln_2, fc, out]);
    }
    index.norm = Weights {
        weight: add(config.layer_norm, "ln_f.weight".into(), &[width]),
        bias: add(config.layer_norm, "ln_f.bias".into(), &[width]),
    };
    index.read_out = Weights {
        weight: add(read, "read_out.weight".into(), &[outputs, width]),
        bias: add(read && biases, "read_out.bias".into(), &[outputs]),
    };
    (entries, index)
}

/// From a row of a matrix of `width` columns to the next: whole vectors, and no power of two, which would make the
/// rows of wide matrices compete for the same lines of the cache.
fn stride(width: usize) -> usize {
    let padded = width.next_multiple_of(WIDTH);
    if padded < 128 { padded } else { padded + WIDTH }
}

/// An affine map y = (γ ∘ x + β) W + b of the plan: where its tensors are in the parameters, where its folded and laid
/// out weights are in the prepared ones, and where its gradient is summed.
#[derive(Clone, Debug)]
struct Affine {
    rows: usize,
    columns: usize,
    at: Weights,
    norm: Weights,
    /// Whether the tensor is `[out, in]`; without a tensor, W is the identity.
    transposed: bool,
    forward: Range<usize>,
    backward: Range<usize>,
    bias: Range<usize>,
    gradient: Range<usize>,
    gradient_bias: Range<usize>,
}

impl Affine {
    fn new(plan: &mut Sizes, rows: usize, columns: usize, at: &Weights, norm: &Weights, transposed: bool) -> Affine {
        let (forward, backward) = (packed_len(rows, columns), packed_len(columns, rows));
        Affine {
            rows,
            columns,
            at: at.clone(),
            norm: norm.clone(),
            transposed,
            forward: plan.prepared(forward),
            backward: plan.prepared(backward),
            bias: plan.prepared(stride(columns)),
            gradient: plan.gradient(rows * stride(columns)),
            gradient_bias: plan.gradient(stride(columns)),
        }
    }

    fn entry(&self, params: &[f32], p: usize, j: usize) -> f32 {
        match (self.at.weight.is_empty(), self.transposed) {
            (true, _) => f32::from(u8::from(p == j)),
            (false, true) => params[self.at.weight.start + j * self.rows + p],
            (false, false) => params[self.at.weight.start + p * self.columns + j],
        }
    }

    /// γ and β at entry p.
    fn norm(&self, params: &[f32], p: usize) -> (f32, f32) {
        if self.norm.weight.is_empty() {
            (1.0, 0.0)
        } else {
            (params[self.norm.weight.start + p], params[self.norm.bias.start + p])
        }
    }

    fn prepare(&self, params: &[f32], out: &mut [f32]) {
        let base = self.forward.start;
        let (forward, rest) = out.split_at_mut(self.forward.len());
        let (backward, bias) = rest.split_at_mut(self.backward.len());
        debug_assert_eq!((self.backward.start, self.bias.end), (base + forward.len(), base + out_len(self)));
        pack(self.rows, self.columns, |p, j| self.norm(params, p).0 * self.entry(params, p, j), forward);
        pack(self.columns, self.rows, |j, p| self.norm(params, p).0 * self.entry(params, p, j), backward);
        bias.fill(0.0);
        if !self.at.bias.is_empty() {
            bias[..self.columns].copy_from_slice(&params[self.at.bias.clone()]);
        }
        if !self.norm.weight.is_empty() {
            for p in 0..self.rows {
                let beta = self.norm(params, p).1;
                for (j, bias) in bias[..self.columns].iter_mut().enumerate() {
                    *bias += beta * self.entry(params, p, j);
                }
            }
        }
    }

    /// y (+)= x W + b for `m` rows.
    fn forward(&self, w: &[f32], m: usize, x: (&[f32], usize), y: (&mut [f32], usize), add: bool) {
        let a = Left { data: x.0, row: x.1, step: 1 };
        let start = Start { bias: Some(&w[self.bias.clone()]), add };
        gemm([m, self.columns, self.rows], a, Right::packed(&w[self.forward.clone()], self.rows), start, y.0, y.1);
    }

    /// dx = dy Wᵀ for `m` rows.
    fn backward(&self, w: &[f32], m: usize, dy: (&[f32], usize), dx: (&mut [f32], usize)) {
        let a = Left { data: dy.0, row: dy.1, step: 1 };
        let b = Right::packed(&w[self.backward.clone()], self.columns);
        gemm([m, self.rows, self.columns], a, b, Start::ZERO, dx.0, dx.1);
    }

    /// Adds xᵀ dy and the column sums of dy to the gradient.
    fn gradient(&self, g: &mut [f32], m: usize, x: (&[f32], usize), dy: (&[f32], usize)) {
        let a = Left { data: x.0, row: 1, step: x.1 };
        let into = &mut g[self.gradient.clone()];
        gemm([self.rows, self.columns, m], a, Right::rows(dy.0, dy.1), Start::ADD, into, stride(self.columns));
        add_column_sums(m, self.columns, dy.0, dy.1, &mut g[self.gradient_bias.clone()]);
    }

    /// The gradient in the tensors, from the one in the folded weights (this layer's part of `g`).
    fn unfold(&self, params: &[f32], g: &[f32], out: &mut [f32]) {
        let columns = stride(self.columns);
        let bias = &g[self.gradient_bias.clone()][..self.columns];
        if !self.at.bias.is_empty() {
            out[self.at.bias.clone()].copy_from_slice(bias);
        }
        for (p, row) in g[self.gradient.clone()].chunks_exact(columns).enumerate() {
            let (gamma, beta) = self.norm(params, p);
            let (mut d_gamma, mut d_beta) = (0.0, 0.0);
            for (j, (g, b)) in row.iter().zip(bias).enumerate() {
                if !self.norm.weight.is_empty() {
                    let entry = self.entry(params, p, j);
                    d_gamma += g * entry;
                    d_beta += b * entry;
                }
                if !self.at.weight.is_empty() {
                    let at = if self.transposed { j * self.rows + p } else { p * self.columns + j };
                    out[self.at.weight.start + at] = gamma * g + beta * b;
                }
            }
            if !self.norm.weight.is_empty() {
                out[self.norm.weight.start + p] = d_gamma;
                out[self.norm.bias.start + p] = d_beta;
            }
        }
    }
}

fn out_len(affine: &Affine) -> usize {
    affine.forward.len() + affine.backward.len() + affine.bias.len()
}

/// Lengths of the prepared weights and of the gradient, growing as the plan is made.
#[derive(Default)]
struct Sizes {
    prepared: usize,
    gradient: usize,
}

impl Sizes {
    fn prepared(&mut self, len: usize) -> Range<usize> {
        let start = self.prepared;
        self.prepared += len.next_multiple_of(WIDTH);
        start..self.prepared
    }

    fn gradient(&mut self, len: usize) -> Range<usize> {
        let start = self.gradient;
        self.gradient += len.next_multiple_of(WIDTH);
        start..self.gradient
    }
}

struct Block {
    attn: Affine,
    proj: Affine,
    mlp: Option<(Affine, Affine)>,
}

/// Everything that follows from the architecture and the length of the sequences.
struct Plan<'a> {
    config: &'a Gpt2Config,
    index: Index,
    params: usize,
    length: usize,
    read_in: Affine,
    blocks: Vec<Block>,
    read_out: Affine,
    /// Gradient in the sum of read-in and position vectors, `[length, width]`, or of the sinusoids' share of queries
    /// and keys, `[length, 3 inner]`.
    position_gradient: Range<usize>,
    /// The sinusoids' share of queries and keys among the prepared weights, `[length, 3 inner]`.
    position_rows: Range<usize>,
    heads: Heads,
    sizes: Sizes,
}

impl<'a> Plan<'a> {
    fn new(config: &'a Gpt2Config, length: usize) -> Plan<'a> {
        let (entries, index) = layout(config);
        let params = entries.last().map_or(0, |e| e.at.end);
        let (width, inner) = (config.width, config.heads * config.key);
        let mut sizes = Sizes::default();
        let none = Weights::default();
        let read_in = Affine::new(&mut sizes, config.inputs, width, &index.read_in, &none, true);
        let mut blocks = Vec::with_capacity(config.layers);
        for [ln_1, attn, proj, ln_2, fc, out] in &index.blocks {
            let attn = Affine::new(&mut sizes, width, 3 * inner, attn, ln_1, false);
            let proj = Affine::new(&mut sizes, inner, width, proj, &none, false);
            let mlp = (config.mlp > 0).then(|| {
                let fc = Affine::new(&mut sizes, width, config.mlp, fc, ln_2, false);
                (fc, Affine::new(&mut sizes, config.mlp, width, out, &none, false))
            });
            blocks.push(Block { attn, proj, mlp });
        }
        let read_out = Affine::new(&mut sizes, width, config.outputs, &index.read_out, &index.norm, true);
        let (learned, sinusoidal) = match config.positions {
            Positions::None => (0, 0),
            Positions::Learned(_) => (length * stride(width), 0),
            Positions::Sinusoidal => (0, length * stride(3 * inner)),
        };
        let position_gradient = sizes.gradient(learned.max(sinusoidal));
        let position_rows = sizes.prepared(sinusoidal);
        let heads = Heads::new(config.attention, length, config.heads, config.key, stride(3 * inner), stride(inner));
        Plan {
            config,
            index,
            params,
            length,
            read_in,
            blocks,
            read_out,
            position_gradient,
            position_rows,
            heads,
            sizes,
        }
    }

    fn affines(&self) -> impl Iterator<Item = &Affine> {
        let blocks = self.blocks.iter().flat_map(|b| {
            let mlp = b.mlp.iter().flat_map(|(fc, out)| [fc, out]);
            [&b.attn, &b.proj].into_iter().chain(mlp)
        });
        std::iter::once(&self.read_in).chain(blocks).chain(std::iter::once(&self.read_out))
    }

    /// The folded weights in the layout of the matrix products.
    fn prepare(&self, params: &[f32]) -> Buffer {
        let mut prepared = Buffer::take(self.sizes.prepared);
        let mut rest = prepared.as_mut();
        let mut work = Vec::new();
        for affine in self.affines() {
            let (mine, later) = std::mem::take(&mut rest).split_at_mut(out_len(affine));
            work.push((affine, mine));
            rest = later;
        }
        work.into_par_iter().for_each(|(affine, out)| affine.prepare(params, out));
        if self.config.positions == Positions::Sinusoidal {
            let inner = self.config.heads * self.config.key;
            rest.fill(0.0);
            let weights = &params[self.index.sinusoids.clone()];
            for (t, row) in rest.chunks_exact_mut(stride(3 * inner)).take(self.length).enumerate() {
                for (c, weights) in weights.chunks_exact(2 * inner).enumerate() {
                    let s = sinusoid(t, c, self.config.width);
                    row.iter_mut().zip(weights).for_each(|(r, w)| *r += s * w);
                }
            }
        }
        prepared
    }

    /// The gradient in the parameters, from the sum of the parts' ones.
    fn unfold(&self, params: &[f32], g: &[f32], out: &mut [f32]) {
        for affine in self.affines() {
            affine.unfold(params, g, out);
        }
        let g = &g[self.position_gradient.clone()];
        match self.config.positions {
            Positions::None => {}
            Positions::Learned(_) => {
                let width = self.config.width;
                let into = out[self.index.positions.clone()].chunks_exact_mut(width);
                for (into, row) in into.zip(g.chunks_exact(stride(width))) {
                    into.copy_from_slice(&row[..width]);
                }
            }
            Positions::Sinusoidal => {
                let inner = self.config.heads * self.config.key;
                let into = out[self.index.sinusoids.clone()].chunks_exact_mut(2 * inner);
                for (c, into) in into.enumerate() {
                    for (t, row) in g.chunks_exact(stride(3 * inner)).take(self.length).enumerate() {
                        let s = sinusoid(t, c, self.config.width);
                        into.iter_mut().zip(row).for_each(|(o, r)| *o += s * r);
                    }
                }
            }
        }
    }

    /// Floats of the working memory for `prompts` prompts.
    fn workspace(&self, prompts: usize) -> usize {
        let config = self.config;
        let rows = prompts * self.length;
        let inner = config.heads * config.key;
        let (w, q, o, m) = (stride(config.width), stride(3 * inner), stride(inner), stride(config.mlp));
        let padded = |n: usize| n.next_multiple_of(WIDTH) + MARGIN;
        let mlp = if config.mlp > 0 { padded(rows * w) + padded(rows) + 2 * padded(rows * m) } else { 0 };
        let clamped = if config.clamp.is_some() { padded(rows * w) } else { 0 };
        let attention = padded(rows * q) + padded(prompts * self.heads.weights_len()) + padded(rows * o);
        let block = padded(rows * w) + padded(rows) + attention + mlp + clamped;
        let scratch = 4 * padded(rows * w) + padded(rows) + padded(rows * q) + padded(rows * o) + padded(rows * m);
        let ends = 2 * padded(rows * stride(config.outputs)) + padded(self.heads.scratch_len());
        config.layers * block + scratch + ends + 64 * MARGIN
    }
}

/// The sinusoid of Vaswani et al. (2017) of position t in entry c of `width`.
fn sinusoid(t: usize, c: usize, width: usize) -> f32 {
    let angle = t as f64 / 10_000_f64.powf((c / 2 * 2) as f64 / width as f64);
    (if c.is_multiple_of(2) { angle.sin() } else { angle.cos() }) as f32
}

/// Memory that is kept from step to step: asking the system for it anew costs as much as some layers do.
struct Buffer {
    memory: Vec<f32>,
    at: Range<usize>,
}

static POOL: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

impl Buffer {
    /// `len` floats with whatever they hold, at an address that is a multiple of 64 bytes.
    fn take(len: usize) -> Buffer {
        let kept = POOL.lock().ok().and_then(|mut pool| {
            let best = (0..pool.len()).filter(|&i| pool[i].len() >= len + WIDTH).min_by_key(|&i| pool[i].len());
            best.or_else(|| (0..pool.len()).max_by_key(|&i| pool[i].len())).map(|i| pool.swap_remove(i))
        });
        let mut memory = kept.unwrap_or_default();
        if memory.len() < len + WIDTH {
            // What it held is not needed: freed first, so that the two never exist together.
            drop(std::mem::take(&mut memory));
            memory = vec![0.0; len + WIDTH];
        }
        let offset = memory.as_ptr().align_offset(WIDTH * size_of::<f32>()).min(WIDTH);
        Buffer { memory, at: offset..offset + len }
    }

    fn as_ref(&self) -> &[f32] {
        &self.memory[self.at.clone()]
    }

    fn as_mut(&mut self) -> &mut [f32] {
        &mut self.memory[self.at.clone()]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Ok(mut pool) = POOL.lock() {
            pool.push(std::mem::take(&mut self.memory));
        }
    }
}

/// Hands out pieces of a buffer, each with a margin that may be read.
struct Arena<'a>(&'a mut [f32]);

impl<'a> Arena<'a> {
    fn take(&mut self, len: usize) -> &'a mut [f32] {
        let (piece, rest) = std::mem::take(&mut self.0).split_at_mut(len.next_multiple_of(WIDTH) + MARGIN);
        self.0 = rest;
        piece
    }
}

/// What the backward pass of a layer reads.
struct Saved<'a> {
    attn_in: &'a mut [f32],
    attn_scale: &'a mut [f32],
    qkv: &'a mut [f32],
    weights: &'a mut [f32],
    attended: &'a mut [f32],
    mlp_in: &'a mut [f32],
    mlp_scale: &'a mut [f32],
    hidden: &'a mut [f32],
    slope: &'a mut [f32],
    clamped: &'a mut [f32],
}

/// A few prompts on their way through the model.
struct Pass<'a> {
    plan: &'a Plan<'a>,
    w: &'a [f32],
    prompts: usize,
    layers: Vec<Saved<'a>>,
    x: &'a mut [f32],
    last: &'a mut [f32],
    last_scale: &'a mut [f32],
    dx: &'a mut [f32],
    d_in: &'a mut [f32],
    d_qkv: &'a mut [f32],
    d_attended: &'a mut [f32],
    d_hidden: &'a mut [f32],
    predictions: &'a mut [f32],
    d_predictions: &'a mut [f32],
    scratch: &'a mut [f32],
}

/// Receives the residual stream after each layer: the layer, and its rows.
type Watch<'a> = &'a mut dyn FnMut(usize, &[f32]);

impl<'a> Pass<'a> {
    fn new(plan: &'a Plan<'a>, w: &'a [f32], prompts: usize, memory: &'a mut [f32]) -> Pass<'a> {
        let config = plan.config;
        let rows = prompts * plan.length;
        let inner = config.heads * config.key;
        let (width, q, o, m) = (stride(config.width), stride(3 * inner), stride(inner), stride(config.mlp));
        let mlp = usize::from(config.mlp > 0);
        let mut arena = Arena(memory);
        let layers = (0..config.layers)
            .map(|_| Saved {
                attn_in: arena.take(rows * width),
                attn_scale: arena.take(rows),
                qkv: arena.take(rows * q),
                weights: arena.take(prompts * plan.heads.weights_len()),
                attended: arena.take(rows * o),
                mlp_in: arena.take(mlp * rows * width),
                mlp_scale: arena.take(mlp * rows),
                hidden: arena.take(mlp * rows * m),
                slope: arena.take(mlp * rows * m),
                clamped: arena.take(usize::from(config.clamp.is_some()) * rows * width),
            })
            .collect();
        Pass {
            plan,
            w,
            prompts,
            layers,
            x: arena.take(rows * width),
            last: arena.take(rows * width),
            last_scale: arena.take(rows),
            dx: arena.take(rows * width),
            d_in: arena.take(rows * width),
            d_qkv: arena.take(rows * q),
            d_attended: arena.take(rows * o),
            d_hidden: arena.take(mlp * rows * m),
            predictions: arena.take(rows * stride(config.outputs)),
            d_predictions: arena.take(rows * stride(config.outputs)),
            scratch: arena.take(plan.heads.scratch_len()),
        }
    }

    /// Predictions at every `every`-th token of `tokens` `[prompts, length, inputs]`.
    fn forward(&mut self, tokens: &[f32], params: &[f32], every: usize, mut watch: Option<Watch<'_>>) {
        let Pass { plan, w, prompts, .. } = *self;
        let config = plan.config;
        let (length, rows) = (plan.length, prompts * plan.length);
        let inner = config.heads * config.key;
        let (width, q, o, m) = (stride(config.width), stride(3 * inner), stride(inner), stride(config.mlp));
        let norm = Rows { width: config.width, stride: width };
        let x = &mut *self.x;
        // The position vectors first, then the tokens on top of them.
        if config.positions == Positions::None || config.positions == Positions::Sinusoidal {
            x[..rows * width].fill(0.0);
        } else {
            let positions = &params[plan.index.positions.clone()];
            for (t, x) in x[..rows * width].chunks_exact_mut(width).enumerate() {
                let at = t % length * config.width;
                x[..config.width].copy_from_slice(&positions[at..][..config.width]);
                x[config.width..].fill(0.0);
            }
        }
        plan.read_in.forward(w, rows, (tokens, config.inputs), (x, width), true);
        for (l, (block, saved)) in plan.blocks.iter().zip(&mut self.layers).enumerate() {
            if let Some(watch) = &mut watch {
                watch(l, &x[..rows * width]);
            }
            let normalised = |x: &[f32], to: &mut [f32], scale: &mut [f32]| {
                if config.layer_norm {
                    normalise(norm, &x[..rows * width], &mut to[..rows * width], scale);
                } else {
                    to[..rows * width].copy_from_slice(&x[..rows * width]);
                }
            };
            normalised(x, saved.attn_in, saved.attn_scale);
            let with_positions = l == 0 && config.positions == Positions::Sinusoidal;
            if with_positions {
                for to in saved.qkv[..rows * q].chunks_exact_mut(length * q) {
                    to.copy_from_slice(&w[plan.position_rows.clone()][..length * q]);
                }
            }
            block.attn.forward(w, rows, (saved.attn_in, width), (saved.qkv, q), with_positions);
            for p in 0..prompts {
                let weights = &mut saved.weights[p * plan.heads.weights_len()..][..plan.heads.weights_len()];
                let (qkv, out) = (&saved.qkv[p * length * q..], &mut saved.attended[p * length * o..]);
                plan.heads.forward(qkv, weights, out, self.scratch);
            }
            block.proj.forward(w, rows, (saved.attended, o), (x, width), true);
            if let Some((fc, out)) = &block.mlp {
                normalised(x, saved.mlp_in, saved.mlp_scale);
                fc.forward(w, rows, (saved.mlp_in, width), (saved.hidden, m), false);
                gelu(config.mlp, m, &mut saved.hidden[..rows * m], saved.slope);
                out.forward(w, rows, (saved.hidden, m), (x, width), true);
            }
            if let Some(clamp) = config.clamp {
                x[..rows * width].iter_mut().for_each(|x| *x = x.clamp(-clamp, clamp));
                saved.clamped[..rows * width].copy_from_slice(&x[..rows * width]);
            }
        }
        if config.layer_norm {
            normalise(norm, &x[..rows * width], &mut self.last[..rows * width], self.last_scale);
        } else {
            self.last[..rows * width].copy_from_slice(&x[..rows * width]);
        }
        if let Some(watch) = &mut watch {
            if config.layer_norm {
                for (x, last) in x.chunks_exact_mut(width).zip(self.last.chunks_exact(width)).take(rows) {
                    for c in 0..config.width {
                        let gamma = params[plan.index.norm.weight.start + c];
                        x[c] = last[c] * gamma + params[plan.index.norm.bias.start + c];
                    }
                }
            }
            watch(config.layers, &x[..rows * width]);
        }
        let (count, out) = (length.div_ceil(every), stride(config.outputs));
        for p in 0..prompts {
            let last = &self.last[p * length * width..];
            let to = &mut self.predictions[p * count * out..];
            plan.read_out.forward(w, count, (last, every * width), (to, out), false);
        }
    }

    /// Adds the gradient in the weights for that in the predictions, [`Pass::d_predictions`], to `g`.
    ///
    /// The gradient in the residual stream at the tokens is left in [`Pass::dx`].
    fn backward(&mut self, tokens: &[f32], every: usize, g: &mut [f32]) {
        let Pass { plan, w, prompts, .. } = *self;
        let config = plan.config;
        let (length, rows) = (plan.length, prompts * plan.length);
        let inner = config.heads * config.key;
        let (width, q, o, m) = (stride(config.width), stride(3 * inner), stride(inner), stride(config.mlp));
        let norm = Rows { width: config.width, stride: width };
        let (count, out) = (length.div_ceil(every), stride(config.outputs));
        let (dx, d_in) = (&mut *self.dx, &mut *self.d_in);
        dx[..rows * width].fill(0.0);
        d_in[..rows * width].fill(0.0);
        let into = if config.layer_norm { &mut *d_in } else { &mut *dx };
        for p in 0..prompts {
            let d = &self.d_predictions[p * count * out..];
            let last = &self.last[p * length * width..];
            plan.read_out.gradient(g, count, (last, every * width), (d, out));
            plan.read_out.backward(w, count, (d, out), (&mut into[p * length * width..], every * width));
        }
        if config.layer_norm {
            normalise_backward(norm, self.last, self.last_scale, &d_in[..rows * width], dx);
        }
        for (l, (block, saved)) in plan.blocks.iter().zip(&self.layers).enumerate().rev() {
            if let Some(clamp) = config.clamp {
                for (dx, x) in dx.iter_mut().zip(&saved.clamped[..rows * width]) {
                    *dx = if x.abs() < clamp { *dx } else { 0.0 };
                }
            }
            let back = |input: &[f32], scale: &[f32], d: &[f32], dx: &mut [f32]| {
                if config.layer_norm {
                    normalise_backward(norm, input, scale, &d[..rows * width], dx);
                } else {
                    dx.iter_mut().zip(&d[..rows * width]).for_each(|(x, d)| *x += d);
                }
            };
            if let Some((fc, out)) = &block.mlp {
                out.gradient(g, rows, (saved.hidden, m), (dx, width));
                out.backward(w, rows, (dx, width), (self.d_hidden, m));
                times(config.mlp, m, &mut self.d_hidden[..rows * m], saved.slope);
                fc.gradient(g, rows, (saved.mlp_in, width), (self.d_hidden, m));
                fc.backward(w, rows, (self.d_hidden, m), (d_in, width));
                back(saved.mlp_in, saved.mlp_scale, d_in, dx);
            }
            block.proj.gradient(g, rows, (saved.attended, o), (dx, width));
            block.proj.backward(w, rows, (dx, width), (self.d_attended, o));
            for p in 0..prompts {
                let weights = &saved.weights[p * plan.heads.weights_len()..][..plan.heads.weights_len()];
                let (qkv, d_out) = (&saved.qkv[p * length * q..], &self.d_attended[p * length * o..]);
                plan.heads.backward(qkv, weights, d_out, &mut self.d_qkv[p * length * q..], self.scratch);
            }
            block.attn.gradient(g, rows, (saved.attn_in, width), (self.d_qkv, q));
            block.attn.backward(w, rows, (self.d_qkv, q), (d_in, width));
            if l == 0 && config.positions == Positions::Sinusoidal {
                sum_prompts(&self.d_qkv[..rows * q], &mut g[plan.position_gradient.clone()], length * q);
            }
            back(saved.attn_in, saved.attn_scale, d_in, dx);
        }
        if matches!(config.positions, Positions::Learned(_)) {
            sum_prompts(&dx[..rows * width], &mut g[plan.position_gradient.clone()], length * width);
        }
        plan.read_in.gradient(g, rows, (tokens, config.inputs), (dx, width));
    }
}

fn sum_prompts(d: &[f32], g: &mut [f32], size: usize) {
    for d in d.chunks_exact(size) {
        g.iter_mut().zip(d).for_each(|(g, d)| *g += d);
    }
}

/// Parts of a batch, each the work of one thread at a time: enough for a few threads, few enough to keep a gradient for
/// each. More would change the order of sums, hence the last bits of results.
const PARTS: usize = 8;
/// Tokens that go through the layers together: their activations fill a good part of the second-level cache.
const ROWS: usize = 384;

/// A batch of sequences for a model.
#[derive(Clone, Copy)]
pub(crate) struct Batch<'a> {
    /// `[batch, length, inputs]`.
    pub tokens: &'a [f32],
    pub batch: usize,
    pub length: usize,
    /// Predictions are made at tokens 0, `every`, 2 `every`, ….
    pub every: usize,
}

impl Batch<'_> {
    /// Predictions of a sequence.
    fn count(&self) -> usize {
        self.length.div_ceil(self.every)
    }

    fn parts(&self) -> Vec<Range<usize>> {
        let parts = PARTS.min(self.batch);
        (0..parts).map(|p| p * self.batch / parts..(p + 1) * self.batch / parts).collect()
    }

    /// The prompts of a part that go through the layers together.
    fn chunks(&self, part: &Range<usize>) -> Vec<Range<usize>> {
        let most = (ROWS / self.length).max(1);
        let count = part.len().div_ceil(most);
        (0..count).map(|c| part.start + c * part.len() / count..part.start + (c + 1) * part.len() / count).collect()
    }

    fn check(&self, config: &Gpt2Config, params: &[f32]) -> Result<()> {
        config.check()?;
        let expected = config.tensors().last().map_or(0, |e| e.at.end);
        if params.len() != expected {
            return Err(Error::shape("parameters", &[params.len()], format!("[{expected}]")));
        }
        if self.batch == 0 || self.length == 0 || self.every == 0 {
            let given = [self.batch, self.length, self.every];
            return Err(Error::shape("sequences", &given, "a batch, a length and a distance of predictions above 0"));
        }
        if self.tokens.len() != array_len::<f32>("tokens", &[self.batch, self.length, config.inputs])? {
            let expected = format!("[{}, {}, {}]", self.batch, self.length, config.inputs);
            return Err(Error::shape("tokens", &[self.tokens.len()], expected));
        }
        match config.positions {
            Positions::Learned(most) if self.length > most => Err(Error::invalid(
                "tokens of a sequence",
                self.length,
                format!("at most the model's {most} positions"),
            )),
            _ => Ok(()),
        }
    }

    fn tokens(&self, prompts: &Range<usize>, inputs: usize) -> &[f32] {
        let size = self.length * inputs;
        &self.tokens[prompts.start * size..prompts.end * size]
    }
}

/// Predictions, `[batch, predictions, outputs]`.
pub(crate) fn predict(config: &Gpt2Config, params: &[f32], batch: Batch<'_>) -> Result<Vec<f32>> {
    batch.check(config, params)?;
    let plan = Plan::new(config, batch.length);
    let prepared = plan.prepare(params);
    let size = batch.count() * config.outputs;
    let mut out = vec![0.0; batch.batch * size];
    let mut rest = out.as_mut_slice();
    let mut work = Vec::new();
    for part in batch.parts() {
        let (mine, later) = std::mem::take(&mut rest).split_at_mut(part.len() * size);
        work.push((part, mine));
        rest = later;
    }
    work.into_par_iter().for_each(|(part, out)| {
        for chunk in batch.chunks(&part) {
            let mut memory = Buffer::take(plan.workspace(chunk.len()));
            let mut pass = Pass::new(&plan, prepared.as_ref(), chunk.len(), memory.as_mut());
            pass.forward(batch.tokens(&chunk, config.inputs), params, batch.every, None);
            let out = &mut out[(chunk.start - part.start) * size..][..chunk.len() * size];
            let from = pass.predictions.chunks_exact(stride(config.outputs));
            for (to, from) in out.chunks_exact_mut(config.outputs).zip(from) {
                to.copy_from_slice(&from[..config.outputs]);
            }
        }
    });
    Ok(out)
}

/// The residual stream before the first block and after each one, the last one after the final layer norm:
/// `layers + 1` times `[batch, length, width]`.
pub(crate) fn hidden_states(config: &Gpt2Config, params: &[f32], batch: Batch<'_>) -> Result<Vec<Vec<f32>>> {
    batch.check(config, params)?;
    let plan = Plan::new(config, batch.length);
    let prepared = plan.prepare(params);
    let parts: Vec<Vec<Vec<f32>>> = batch
        .parts()
        .into_par_iter()
        .map(|part| {
            let mut states = vec![Vec::new(); config.layers + 1];
            for chunk in batch.chunks(&part) {
                let mut memory = Buffer::take(plan.workspace(chunk.len()));
                let mut pass = Pass::new(&plan, prepared.as_ref(), chunk.len(), memory.as_mut());
                let mut watch = |layer: usize, rows: &[f32]| {
                    for row in rows.chunks_exact(stride(config.width)) {
                        states[layer].extend_from_slice(&row[..config.width]);
                    }
                };
                pass.forward(batch.tokens(&chunk, config.inputs), params, batch.every, Some(&mut watch));
            }
            states
        })
        .collect();
    Ok((0..=config.layers).map(|l| parts.iter().flat_map(|part| &part[l]).copied().collect()).collect())
}

/// Where the gradient in the predictions comes from.
#[derive(Clone, Copy)]
pub(crate) enum Objective<'a> {
    /// The sum of weight_t (ŷ - y)² over all entries of all predictions, targets `[batch, predictions, outputs]` and
    /// one weight for each prediction of a sequence.
    Squares { targets: &'a [f32], weights: &'a [f32] },
    /// It is given, `[batch, predictions, outputs]`.
    Given(&'a [f32]),
}

/// What [`differentiate`] computes.
pub(crate) struct Derivative {
    /// The sum of squares, or 0.
    pub loss: f64,
    /// The gradient in the parameters.
    pub params: Vec<f32>,
    /// The gradient in the tokens, if it was asked for.
    pub tokens: Option<Vec<f32>>,
}

/// The gradient of an objective in the parameters, and in the tokens if asked for.
pub(crate) fn differentiate(
    config: &Gpt2Config,
    params: &[f32],
    batch: Batch<'_>,
    objective: Objective<'_>,
    in_tokens: bool,
) -> Result<Derivative> {
    batch.check(config, params)?;
    let (count, outputs) = (batch.count(), config.outputs);
    let (Objective::Squares { targets: values, .. } | Objective::Given(values)) = objective;
    if values.len() != batch.batch * count * outputs {
        let expected = format!("[{}, {count}, {outputs}]", batch.batch);
        return Err(Error::shape("targets", &[values.len()], expected));
    }
    if let Objective::Squares { weights, .. } = objective
        && weights.len() != count
    {
        return Err(Error::shape("weights of the predictions", &[weights.len()], format!("[{count}]")));
    }
    let plan = Plan::new(config, batch.length);
    let prepared = plan.prepare(params);
    let parts: Vec<(f64, Buffer, Vec<f32>)> = batch
        .parts()
        .into_par_iter()
        .map(|part| part_gradient(&plan, prepared.as_ref(), params, batch, &part, objective, in_tokens))
        .collect();
    let loss = parts.iter().map(|(loss, ..)| loss).sum();
    let tokens = in_tokens.then(|| parts.iter().flat_map(|(.., d)| d).copied().collect());
    // Added in the order of the parts, a piece of the gradient at a time.
    let mut buffers: Vec<Buffer> = parts.into_iter().map(|(_, g, _)| g).collect();
    let (first, others) = buffers.split_at_mut(1);
    const PIECE: usize = 1 << 14;
    first[0].as_mut().par_chunks_mut(PIECE).enumerate().for_each(|(k, sum)| {
        for other in &*others {
            sum.iter_mut().zip(&other.as_ref()[k * PIECE..]).for_each(|(s, g)| *s += g);
        }
    });
    let mut gradient = vec![0.0; plan.params];
    plan.unfold(params, first[0].as_ref(), &mut gradient);
    Ok(Derivative { loss, params: gradient, tokens })
}

fn part_gradient(
    plan: &Plan<'_>,
    w: &[f32],
    params: &[f32],
    batch: Batch<'_>,
    part: &Range<usize>,
    objective: Objective<'_>,
    in_tokens: bool,
) -> (f64, Buffer, Vec<f32>) {
    let config = plan.config;
    let (count, outputs, out) = (batch.count(), config.outputs, stride(config.outputs));
    let mut gradient = Buffer::take(plan.sizes.gradient);
    gradient.as_mut().fill(0.0);
    let mut loss = 0.0;
    let mut d_tokens = Vec::new();
    for chunk in batch.chunks(part) {
        let mut memory = Buffer::take(plan.workspace(chunk.len()));
        let mut pass = Pass::new(plan, w, chunk.len(), memory.as_mut());
        let tokens = batch.tokens(&chunk, config.inputs);
        pass.forward(tokens, params, batch.every, None);
        let rows = chunk.start * count..chunk.end * count;
        for (r, row) in rows.enumerate() {
            let d = &mut pass.d_predictions[r * out..][..out];
            let prediction = &pass.predictions[r * out..][..outputs];
            d.fill(0.0);
            match objective {
                Objective::Given(values) => d[..outputs].copy_from_slice(&values[row * outputs..][..outputs]),
                Objective::Squares { targets, weights } => {
                    let weight = weights[row % count];
                    for ((d, y), target) in d.iter_mut().zip(prediction).zip(&targets[row * outputs..][..outputs]) {
                        let error = y - target;
                        loss += f64::from(weight) * f64::from(error).powi(2);
                        *d = 2.0 * weight * error;
                    }
                }
            }
        }
        pass.backward(tokens, batch.every, gradient.as_mut());
        if in_tokens {
            let (rows, width) = (chunk.len() * batch.length, stride(config.width));
            let columns = stride(config.inputs);
            let mut d = vec![0.0; rows * columns];
            plan.read_in.backward(w, rows, (pass.dx, width), (&mut d, columns));
            d_tokens.extend(d.chunks_exact(columns).flat_map(|row| &row[..config.inputs]));
        }
    }
    (loss, gradient, d_tokens)
}

/// All parameters of a model, one tensor after the other in the order of [`Gpt2Config::tensors`].
pub type Params<T = NoneTape> = Tensor<(usize,), f32, Cpu, T>;
/// `[batch, tokens, entries]`.
pub type Tokens<T = NoneTape> = Tensor<(usize, usize, usize), f32, Cpu, T>;

/// The transformer on dfdx's tape: predictions `[batch, predictions, outputs]` at tokens 0, `every`, 2 `every`, … of
/// `tokens` `[batch, length, inputs]`. Differentiable in the parameters and in the tokens; the backward pass computes
/// the forward one anew, a few prompts at a time.
///
/// # Errors
/// [`Error::Invalid`] and [`Error::Shape`] for an architecture, parameters or tokens that do not fit.
pub fn gpt2<Tp: Tape<f32, Cpu>, Tt>(
    config: &Gpt2Config,
    params: Params<Tp>,
    tokens: Tokens<Tt>,
    every: usize,
) -> Result<Tokens<Tt>>
where
    Tt: Tape<f32, Cpu> + Merge<Tp>,
{
    let (batch, length, inputs) = *tokens.shape();
    if inputs != config.inputs {
        let expected = format!("[batch, length, {}]", config.inputs);
        return Err(Error::shape("tokens", &[batch, length, inputs], expected));
    }
    let (params, tape_p) = params.split_tape();
    let (tokens, tape_t) = tokens.split_tape();
    let mut tape = tape_t.merge(tape_p);
    let (p, t) = (params.as_vec(), tokens.as_vec());
    let values = predict(config, &p, Batch { tokens: &t, batch, length, every })?;
    let out = Cpu::default()
        .try_tensor_from_vec(values, (batch, length.div_ceil(every), config.outputs))
        .map_err(|e| Error::numerical("predictions", e.to_string()))?;
    let output = out.clone();
    let config = config.clone();
    tape.add_backward_op(move |gradients| {
        let e = gradients.get_or_alloc_mut(&output)?.to_vec();
        let batch = Batch { tokens: &t, batch, length, every };
        // The forward pass has checked every shape: this cannot fail.
        let d =
            differentiate(&config, &p, batch, Objective::Given(&e), true).map_err(|_| CpuError::WrongNumElements)?;
        gradients.get_or_alloc_mut(&params)?.iter_mut().zip(&d.params).for_each(|(g, v)| *g += v);
        let d = d.tokens.unwrap_or_default();
        gradients.get_or_alloc_mut(&tokens)?.iter_mut().zip(&d).for_each(|(g, v)| *g += v);
        Ok(())
    });
    Ok(out.put_tape(tape))
}
