//! A whole transformer of GPT-2's kind as one op: read-in, blocks of attention and MLP with layer norm before each,
//! final layer norm, read-out.
//!
//! ```text
//! h ← W_in x_t + b_in + p_t
//! h ← h + Proj Attend(LN h)        h ← h + Out gelu(Fc (LN h))        for each layer
//! ŷ_t = W_out LN h_t + b_out
//! ```
//!
//! Layer norm's affine map and the position vectors are folded into the affine layers (`ops::affine`); how a batch is
//! cut into parts is in [`super::sequence`].

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::affine::{Affine, Places, Sizes, stride};
use super::attention::{Attention, Heads, MARGIN};
use super::gelu::gelu;
use super::lane_attention::LaneHeads;
use super::lanes::{LANES, in_lanes, in_lanes_mut};
use super::layer_norm::{Rows, normalise, normalise_backward};
use super::memory::Arena;
use super::sequence::{Architecture, Entry, Layout, Network, Pass, Turn};
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
}

impl Architecture for Gpt2Config {
    // [`Error::Invalid`] too for tokens of another width than a residual stream that they are, more predictions than it
    // has entries, and a clamp that is not positive.
    fn check(&self) -> Result<()> {
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

    /// Hugging Face's names for GPT-2; `read_in` and `read_out` are PyTorch's linear layers `[out, in]`, the others
    /// `[in, out]`.
    fn tensors(&self) -> Vec<Entry> {
        let mut tensors = Layout::with_entries();
        layout(self, &mut tensors);
        tensors.entries()
    }

    fn parameters(&self) -> usize {
        let mut tensors = Layout::default();
        layout(self, &mut tensors);
        tensors.parameters()
    }

    fn entries(&self) -> [usize; 2] {
        [self.inputs, self.outputs]
    }

    fn causal(&self) -> bool {
        self.attention.causal
    }

    fn longest(&self) -> Option<usize> {
        match self.positions {
            Positions::Learned(most) => Some(most),
            _ => None,
        }
    }

    fn largest(&self, length: usize) -> [usize; 4] {
        [self.layers, self.heads, length, length.saturating_add(self.key.max(self.mlp)).saturating_add(64)]
    }

    fn network(&self, length: usize) -> Box<dyn Network + '_> {
        Box::new(Plan::new(self, length))
    }
}

#[derive(Clone, Debug, Default)]
struct Index {
    read_in: Places,
    positions: Range<usize>,
    blocks: Vec<[Places; 6]>,
    sinusoids: Range<usize>,
    norm: Places,
    read_out: Places,
}

fn layout(config: &Gpt2Config, tensors: &mut Layout) -> Index {
    let mut add = |wanted: bool, name: fmt::Arguments<'_>, shape: &[usize]| {
        if wanted { tensors.add(name, shape) } else { 0..0 }
    };
    let Gpt2Config { inputs, outputs, width, mlp, biases, read, .. } = *config;
    let inner = config.heads * config.key;
    let read_in = Places {
        weight: add(read, format_args!("read_in.weight"), &[width, inputs]),
        bias: add(read && biases, format_args!("read_in.bias"), &[width]),
    };
    let mut index = Index { read_in, ..Index::default() };
    if let Positions::Learned(count) = config.positions {
        index.positions = add(true, format_args!("wpe.weight"), &[count, width]);
    }
    for l in 0..config.layers {
        let mut affine = |wanted: bool, bias: bool, name: &str, shape: &[usize]| Places {
            weight: add(wanted, format_args!("h.{l}.{name}.weight"), shape),
            bias: add(wanted && bias, format_args!("h.{l}.{name}.bias"), &shape[shape.len() - 1..]),
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
    index.norm = Places {
        weight: add(config.layer_norm, format_args!("ln_f.weight"), &[width]),
        bias: add(config.layer_norm, format_args!("ln_f.bias"), &[width]),
    };
    index.read_out = Places {
        weight: add(read, format_args!("read_out.weight"), &[outputs, width]),
        bias: add(read && biases, format_args!("read_out.bias"), &[outputs]),
    };
    index
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
    length: usize,
    read_in: Affine,
    blocks: Vec<Block>,
    read_out: Affine,
    /// The piece of the gradient in the sum of read-in and position vectors, `[length, width]`, or in the sinusoids' share of
    /// queries and keys, `[length, 3 inner]`.
    of_positions: usize,
    /// The sinusoids' share of queries and keys among the prepared weights, `[length, 3 inner]`.
    position_rows: Range<usize>,
    heads: Heads,
    sizes: Sizes,
}

impl<'a> Plan<'a> {
    fn new(config: &'a Gpt2Config, length: usize) -> Plan<'a> {
        let index = layout(config, &mut Layout::default());
        let (width, inner) = (config.width, config.heads * config.key);
        let mut sizes = Sizes::default();
        let none = Places::default();
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
        let of_positions = sizes.piece(learned.max(sinusoidal));
        let position_rows = sizes.prepared(sinusoidal);
        let strides = [stride(3 * inner), stride(inner)];
        let heads = Heads::new(config.attention, length, config.heads, config.key, strides[0], strides[1]);
        Plan { config, index, length, read_in, blocks, read_out, of_positions, position_rows, heads, sizes }
    }

    fn lane_heads(&self) -> LaneHeads<'_> {
        LaneHeads(&self.heads)
    }

    /// Floats of what attention keeps of so many prompts, queries, keys and values, and weights, and of its scratch.
    fn attention_lens(&self, prompts: usize) -> [usize; 3] {
        let inner = self.config.heads * self.config.key;
        if self.lane_heads().suit(prompts) {
            let lens = [
                self.lane_heads().qkv_len(prompts),
                self.lane_heads().weights_len(prompts),
                self.lane_heads().scratch_len(),
            ];
            // One more entry: the first may begin later than the slice.
            lens.map(|len| (len + 1) * LANES)
        } else {
            let rows = prompts * self.length;
            [rows * stride(3 * inner), prompts * self.heads.weights_len(), self.heads.scratch_len()]
        }
    }

    /// The attention of so many prompts. The rows of queries, keys and values are `qkv` itself, or beside it in `rows`.
    fn attend(
        &self,
        prompts: usize,
        rows: &[f32],
        [qkv, weights]: [&mut [f32]; 2],
        out: &mut [f32],
        scratch: &mut [f32],
    ) {
        if self.lane_heads().suit(prompts) {
            let [qkv, weights, scratch] = [qkv, weights, scratch].map(in_lanes_mut);
            return self.lane_heads().forward(prompts, rows, qkv, weights, out, scratch);
        }
        let inner = self.config.heads * self.config.key;
        let of_weights = self.heads.weights_len();
        for p in 0..prompts {
            let weights = &mut weights[p * of_weights..][..of_weights];
            let rows = p * self.length;
            self.heads.forward(&qkv[rows * stride(3 * inner)..], weights, &mut out[rows * stride(inner)..], scratch);
        }
    }

    /// The adjoint of [`Plan::attend`].
    fn attend_backward(
        &self,
        prompts: usize,
        [qkv, weights]: [&[f32]; 2],
        d_out: &[f32],
        d_qkv: &mut [f32],
        scratch: &mut [f32],
    ) {
        if self.lane_heads().suit(prompts) {
            let [qkv, weights] = [qkv, weights].map(in_lanes);
            return self.lane_heads().backward(prompts, qkv, weights, d_out, d_qkv, in_lanes_mut(scratch));
        }
        let inner = self.config.heads * self.config.key;
        let of_weights = self.heads.weights_len();
        for p in 0..prompts {
            let weights = &weights[p * of_weights..][..of_weights];
            let (at, at_out) = (p * self.length * stride(3 * inner), p * self.length * stride(inner));
            self.heads.backward(&qkv[at..], weights, &d_out[at_out..], &mut d_qkv[at..], scratch);
        }
    }
}

#[allow(private_interfaces)]
impl Network for Plan<'_> {
    fn states(&self) -> usize {
        self.config.layers + 1
    }

    fn sizes(&self) -> &Sizes {
        &self.sizes
    }

    fn group(&self) -> usize {
        self.lane_heads().group()
    }

    fn affines(&self) -> Vec<&Affine> {
        let blocks = self.blocks.iter().flat_map(|b| {
            let mlp = b.mlp.iter().flat_map(|(fc, out)| [fc, out]);
            [&b.attn, &b.proj].into_iter().chain(mlp)
        });
        std::iter::once(&self.read_in).chain(blocks).chain(std::iter::once(&self.read_out)).collect()
    }

    fn prepare_rest(&self, params: &[f32], rest: &mut [f32]) {
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
    }

    fn unfold_rest(&self, g: &[f32], out: &mut [f32]) {
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

    fn workspace(&self, prompts: usize) -> usize {
        let config = self.config;
        let rows = prompts * self.length;
        let inner = config.heads * config.key;
        let (w, q, o, m) = (stride(config.width), stride(3 * inner), stride(inner), stride(config.mlp));
        let padded = |n: usize| n.next_multiple_of(WIDTH) + MARGIN;
        let mlp = if config.mlp > 0 { padded(rows * w) + padded(rows) + 2 * padded(rows * m) } else { 0 };
        let clamped = if config.clamp.is_some() { padded(rows * w) } else { 0 };
        let [qkv, weights, of_attention] = self.attention_lens(prompts);
        let attention = padded(qkv) + padded(weights) + padded(rows * o);
        let block = padded(rows * w) + padded(rows) + attention + mlp + clamped;
        let scratch = 4 * padded(rows * w) + padded(rows) + padded(rows * q) + padded(rows * o) + padded(rows * m);
        let ends = 2 * padded(rows * stride(config.outputs)) + padded(of_attention);
        config.layers * block + scratch + ends + 64 * MARGIN
    }

    fn pass<'a>(
        &'a self,
        params: &'a [f32],
        w: &'a [f32],
        prompts: usize,
        memory: &'a mut [f32],
    ) -> Box<dyn Pass + 'a> {
        Box::new(Run::new(self, params, w, prompts, memory))
    }
}

/// The sinusoid of Vaswani et al. (2017) of position t in entry c of `width`.
fn sinusoid(t: usize, c: usize, width: usize) -> f32 {
    let angle = t as f64 / 10_000_f64.powf((c / 2 * 2) as f64 / width as f64);
    (if c.is_multiple_of(2) { angle.sin() } else { angle.cos() }) as f32
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
struct Run<'a> {
    plan: &'a Plan<'a>,
    params: &'a [f32],
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

impl<'a> Run<'a> {
    fn new(plan: &'a Plan<'a>, params: &'a [f32], w: &'a [f32], prompts: usize, memory: &'a mut [f32]) -> Run<'a> {
        let config = plan.config;
        let rows = prompts * plan.length;
        let inner = config.heads * config.key;
        let (width, q, o, m) = (stride(config.width), stride(3 * inner), stride(inner), stride(config.mlp));
        let mlp = usize::from(config.mlp > 0);
        let [qkv, weights, of_attention] = plan.attention_lens(prompts);
        let mut arena = Arena(memory);
        let layers = (0..config.layers)
            .map(|_| Saved {
                attn_in: arena.take(rows * width),
                attn_scale: arena.take(rows),
                qkv: arena.take(qkv),
                weights: arena.take(weights),
                attended: arena.take(rows * o),
                mlp_in: arena.take(mlp * rows * width),
                mlp_scale: arena.take(mlp * rows),
                hidden: arena.take(mlp * rows * m),
                slope: arena.take(mlp * rows * m),
                clamped: arena.take(usize::from(config.clamp.is_some()) * rows * width),
            })
            .collect();
        Run {
            plan,
            params,
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
            scratch: arena.take(of_attention),
        }
    }
}

impl Pass for Run<'_> {
    fn forward(&mut self, tokens: &[f32], every: usize, mut states: Option<&mut [Vec<f32>]>) {
        let Run { plan, params, w, prompts, .. } = *self;
        let config = plan.config;
        let (length, rows) = (plan.length, prompts * plan.length);
        let inner = config.heads * config.key;
        let (width, q, o, m) = (stride(config.width), stride(3 * inner), stride(inner), stride(config.mlp));
        let norm = Rows { width: config.width, stride: width };
        let predicted = Predicted { prompts, length, every };
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
        let normalised = |rows: usize, x: &[f32], to: &mut [f32], scale: &mut [f32]| {
            if config.layer_norm {
                normalise(norm, &x[..rows * width], &mut to[..rows * width], scale);
            } else {
                to[..rows * width].copy_from_slice(&x[..rows * width]);
            }
        };
        let mut rows = rows;
        for (l, (block, saved)) in plan.blocks.iter().zip(&mut self.layers).enumerate() {
            if let Some(states) = &mut states {
                keep(&x[..rows * width], norm, &mut states[l]);
            }
            normalised(rows, x, saved.attn_in, saved.attn_scale);
            let with_positions = l == 0 && config.positions == Positions::Sinusoidal;
            // Room that the backward pass alone needs otherwise.
            let side_by_side = plan.lane_heads().suit(prompts);
            let qkv = if side_by_side { &mut *self.d_qkv } else { &mut *saved.qkv };
            if with_positions {
                for to in qkv[..rows * q].chunks_exact_mut(length * q) {
                    to.copy_from_slice(&w[plan.position_rows.clone()][..length * q]);
                }
            }
            block.attn.forward(w, rows, (saved.attn_in, width), (qkv, q), with_positions);
            plan.attend(prompts, self.d_qkv, [saved.qkv, saved.weights], saved.attended, self.scratch);
            if l + 1 == config.layers && states.is_none() {
                // From here on no token hears of another: only those with a prediction go on.
                predicted.gather(saved.attended, o);
                predicted.gather(x, width);
                rows = predicted.rows();
            }
            block.proj.forward(w, rows, (saved.attended, o), (x, width), true);
            if let Some((fc, out)) = &block.mlp {
                normalised(rows, x, saved.mlp_in, saved.mlp_scale);
                fc.forward(w, rows, (saved.mlp_in, width), (saved.hidden, m), false);
                gelu(config.mlp, m, &mut saved.hidden[..rows * m], saved.slope);
                out.forward(w, rows, (saved.hidden, m), (x, width), true);
            }
            if let Some(clamp) = config.clamp {
                x[..rows * width].iter_mut().for_each(|x| *x = x.clamp(-clamp, clamp));
                saved.clamped[..rows * width].copy_from_slice(&x[..rows * width]);
            }
        }
        normalised(rows, x, self.last, self.last_scale);
        if let Some(states) = states {
            if config.layer_norm {
                for (x, last) in x.chunks_exact_mut(width).zip(self.last.chunks_exact(width)).take(rows) {
                    for c in 0..config.width {
                        let gamma = params[plan.index.norm.weight.start + c];
                        x[c] = last[c] * gamma + params[plan.index.norm.bias.start + c];
                    }
                }
            }
            keep(&x[..rows * width], norm, &mut states[config.layers]);
            predicted.gather(self.last, width);
        }
        let to = (&mut *self.predictions, stride(config.outputs));
        plan.read_out.forward(w, predicted.rows(), (self.last, width), to, false);
    }

    fn predictions(&mut self) -> (&[f32], &mut [f32]) {
        (self.predictions, self.d_predictions)
    }

    fn backward(&mut self, tokens: &[f32], every: usize, turn: &Turn<'_>) {
        let Run { plan, w, prompts, .. } = *self;
        let config = plan.config;
        let length = plan.length;
        let inner = config.heads * config.key;
        let (width, q, o, m) = (stride(config.width), stride(3 * inner), stride(inner), stride(config.mlp));
        let norm = Rows { width: config.width, stride: width };
        let predicted = Predicted { prompts, length, every };
        let (dx, d_in) = (&mut *self.dx, &mut *self.d_in);
        // Until the last block's attention, the rows with a prediction alone.
        let mut rows = predicted.rows();
        let d = (&*self.d_predictions, stride(config.outputs));
        turn.gradient(&plan.read_out, rows, (self.last, width), d);
        if config.layer_norm {
            plan.read_out.backward(w, rows, d, (d_in, width));
            dx[..rows * width].fill(0.0);
            normalise_backward(norm, self.last, self.last_scale, &d_in[..rows * width], dx);
        } else {
            plan.read_out.backward(w, rows, d, (dx, width));
        }
        for (l, (block, saved)) in plan.blocks.iter().zip(&self.layers).enumerate().rev() {
            if let Some(clamp) = config.clamp {
                for (dx, x) in dx.iter_mut().zip(&saved.clamped[..rows * width]) {
                    *dx = if x.abs() < clamp { *dx } else { 0.0 };
                }
            }
            let back = |rows: usize, input: &[f32], scale: &[f32], d: &[f32], dx: &mut [f32]| {
                if config.layer_norm {
                    normalise_backward(norm, input, scale, &d[..rows * width], dx);
                } else {
                    dx.iter_mut().zip(&d[..rows * width]).for_each(|(x, d)| *x += d);
                }
            };
            if let Some((fc, out)) = &block.mlp {
                turn.gradient(out, rows, (saved.hidden, m), (dx, width));
                out.backward_times(w, rows, (dx, width), saved.slope, (self.d_hidden, m));
                turn.gradient(fc, rows, (saved.mlp_in, width), (self.d_hidden, m));
                fc.backward(w, rows, (self.d_hidden, m), (d_in, width));
                back(rows, saved.mlp_in, saved.mlp_scale, d_in, dx);
            }
            turn.gradient(&block.proj, rows, (saved.attended, o), (dx, width));
            block.proj.backward(w, rows, (dx, width), (self.d_attended, o));
            if l + 1 == config.layers {
                predicted.scatter(self.d_attended, o);
                predicted.scatter(dx, width);
                rows = prompts * length;
            }
            plan.attend_backward(prompts, [saved.qkv, saved.weights], self.d_attended, self.d_qkv, self.scratch);
            turn.gradient(&block.attn, rows, (saved.attn_in, width), (self.d_qkv, q));
            block.attn.backward(w, rows, (self.d_qkv, q), (d_in, width));
            if l == 0 && config.positions == Positions::Sinusoidal {
                turn.at(plan.of_positions, |g, add| sum_prompts(&self.d_qkv[..rows * q], g, length * q, add));
            }
            back(rows, saved.attn_in, saved.attn_scale, d_in, dx);
        }
        if matches!(config.positions, Positions::Learned(_)) {
            turn.at(plan.of_positions, |g, add| sum_prompts(&dx[..rows * width], g, length * width, add));
        }
        turn.gradient(&plan.read_in, rows, (tokens, config.inputs), (dx, width));
    }

    fn in_tokens(&self, d_tokens: &mut Vec<f32>) {
        let config = self.plan.config;
        let (rows, columns) = (self.prompts * self.plan.length, stride(config.inputs));
        let mut d = vec![0.0; rows * columns];
        self.plan.read_in.backward(self.w, rows, (self.dx, stride(config.width)), (&mut d, columns));
        d_tokens.extend(d.chunks_exact(columns).flat_map(|row| &row[..config.inputs]));
    }
}

/// The tokens 0, `every`, 2 `every`, … of prompts of `length` tokens: those with a prediction.
struct Predicted {
    prompts: usize,
    length: usize,
    every: usize,
}

impl Predicted {
    fn rows(&self) -> usize {
        self.prompts * self.length.div_ceil(self.every)
    }

    /// The row of the `i`-th of them among all tokens' rows.
    fn row(&self, i: usize) -> usize {
        let count = self.length.div_ceil(self.every);
        i / count * self.length + i % count * self.every
    }

    /// Moves their rows, `stride` apart, one after the other to the front.
    fn gather(&self, rows: &mut [f32], stride: usize) {
        for i in 0..self.rows() {
            let from = self.row(i) * stride;
            rows.copy_within(from..from + stride, i * stride);
        }
    }

    /// Moves them back; the rows between become zero.
    fn scatter(&self, rows: &mut [f32], stride: usize) {
        let mut end = self.prompts * self.length;
        for i in (0..self.rows()).rev() {
            let to = self.row(i);
            rows.copy_within(i * stride..(i + 1) * stride, to * stride);
            rows[(to + 1) * stride..end * stride].fill(0.0);
            end = to;
        }
    }
}

/// Appends rows without what fills them up.
fn keep(x: &[f32], rows: Rows, state: &mut Vec<f32>) {
    x.chunks_exact(rows.stride).for_each(|row| state.extend_from_slice(&row[..rows.width]));
}

fn sum_prompts(d: &[f32], g: &mut [f32], size: usize, add: bool) {
    if !add {
        g.fill(0.0);
    }
    for d in d.chunks_exact(size) {
        g.iter_mut().zip(d).for_each(|(g, d)| *g += d);
    }
}
