//! A whole causal transformer on sequences as one op: layers of softmax attention, linear attention or mesa layers, with
//! or without an embedding, positions, unit keys and an MLP (`mesa` section 2), forward and backward.
//!
//! Sixteen sequences lie side by side in every vector register ([`super::lanes`]), so key sizes of ten or twenty fill the
//! machine. A tile of sixteen runs forward and backward before the next: its activations stay in the cache.

use std::any::Any;
use std::ops::Range;
use std::sync::Mutex;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::delta_rule;
use super::lane_products::{ABOVE, Extent, OnLanes, Part, Queries, Shared, Soon, View, product, reduced_product};
use super::lanes::{Kernel, LANES, Lanes, Vector, exp, prefetch};
use super::memory::{Buffer, Piece, Pieces};
use super::mesa_layer::{self, Head, Workspace};
use super::threads::each;
use crate::error::array_len;
use crate::{Error, Result};

/// How a layer mixes tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mixer {
    /// Causal softmax attention, scores scaled by 1/√key.
    Softmax,
    /// Causal linear attention o_t = Σ_{s≤t} v_s k_sᵀ q_t, neither scaled nor normalised.
    Linear,
    /// The mesa layer: ridge regression on the tokens so far, a λ a head (see `ops::mesa_layer`).
    Mesa {
        /// γ in (0, 1]: what is left of the past after a token. 1 forgets nothing, as in all of the paper's experiments.
        forget: f64,
    },
    /// The delta rule: one step of stochastic gradient descent a token, its step size learnt, one a head (see
    /// `ops::delta_rule`).
    Delta {
        /// The proximal step in place of the explicit one.
        implicit: bool,
    },
}

impl Mixer {
    /// The name of the one number a head that it learns beside its matrices, as a logarithm.
    fn scalar(self) -> Option<&'static str> {
        match self {
            Mixer::Mesa { .. } => Some("ln_lambda"),
            Mixer::Delta { .. } => Some("ln_rate"),
            Mixer::Softmax | Mixer::Linear => None,
        }
    }

    /// γ: what is left of the past after a token.
    fn forget(self) -> f64 {
        if let Mixer::Mesa { forget } = self { forget } else { 1.0 }
    }

    /// Multiplications and additions of a head with `key` channels for one more token, its projections left out: of a mesa
    /// head u = R k, R − u uᵀ/(1 + kᵀu), S + v kᵀ, R q and S (R q); of the delta rule S k, S + d kᵀ and S q; of linear attention
    /// S + v kᵀ and S q. What grows with K alone is left out. Softmax attention has no such number: it grows with the token.
    pub fn operations(self, key: usize) -> Option<usize> {
        match self {
            Mixer::Mesa { .. } => Some(10 * key * key),
            Mixer::Delta { .. } => Some(6 * key * key),
            Mixer::Linear => Some(4 * key * key),
            Mixer::Softmax => None,
        }
    }
}

/// One layer: x + P o(q, k, v), and then x + W₂ gelu(W₁ x) if it has an MLP. No biases, no layer norm.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// How it mixes tokens.
    pub mixer: Mixer,
    /// Heads.
    pub heads: usize,
    /// Channels of a head's queries, keys and values, as they are projected.
    pub key: usize,
    /// Whether sinusoidal positions are concatenated to what queries and keys are made of.
    #[serde(default)]
    pub positions: bool,
    /// Whether queries and keys are scaled to norm 1.
    #[serde(default)]
    pub unit: bool,
    /// Whether a token's key is made of the token before it (the first one's is 0): what a copying layer below would bring
    /// about, hard-coded (`mesa` Fig. 26).
    #[serde(default)]
    pub shift: bool,
    /// ν < 2 key of the DPFP features of queries and keys (Schlag, Irie and Schmidhuber, 2021): 2 key ν products of rectified
    /// channels, made before the scaling to norm 1; none if 0. Not for softmax attention.
    #[serde(default)]
    pub features: usize,
    /// Hidden width of the MLP; none if `None`.
    #[serde(default)]
    pub mlp: Option<usize>,
}

impl Layer {
    /// A plain layer: no positions, no unit keys, no shift, no features, no MLP.
    pub fn new(mixer: Mixer, heads: usize, key: usize) -> Self {
        Layer { mixer, heads, key, positions: false, unit: false, shift: false, features: 0, mlp: None }
    }

    fn channels(&self) -> usize {
        self.heads * self.key
    }

    /// Channels of a head's queries and keys where they meet: their features, if the layer has some.
    fn mixed(&self) -> usize {
        if self.features == 0 { self.key } else { 2 * self.key * self.features }
    }

    fn query_input(&self, width: usize) -> usize {
        if self.positions { 2 * width } else { width }
    }
}

/// What a sequence transformer is made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Architecture {
    /// Channels of a token.
    pub input: usize,
    /// Channels of the residual stream: `input`, unless tokens are embedded.
    pub width: usize,
    /// Whether tokens are embedded by a matrix, and predictions read out by one; otherwise the prediction is the first
    /// `output` channels of the residual stream.
    pub embed: bool,
    /// Channels of a prediction.
    pub output: usize,
    /// The layers.
    pub layers: Vec<Layer>,
    /// After every layer the residual stream is clipped to ± this.
    pub clip: Option<f64>,
}

/// A named matrix of the parameters: where it begins, its rows and columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    /// Its name, unique in the model.
    pub name: String,
    /// Where it begins among all parameters.
    pub at: usize,
    /// Rows (outputs).
    pub rows: usize,
    /// Columns (inputs).
    pub columns: usize,
}

/// Where a layer's matrices are.
#[derive(Clone, Copy, Debug, Default)]
struct Offsets {
    q: usize,
    k: usize,
    v: usize,
    o: usize,
    scalar: usize,
    up: usize,
    down: usize,
}

impl Architecture {
    /// Whether there is such a model.
    ///
    /// # Errors
    /// [`Error::Invalid`] for sizes of 0, matrices that do not fit in memory, a residual stream that does not hold the input or the output, a γ outside
    /// (0, 1], features in a layer of softmax attention or with ν ≥ 2 key, or a clip that is not positive.
    pub fn check(&self) -> Result<()> {
        for (what, value) in [("input channels", self.input), ("width", self.width), ("output channels", self.output)] {
            if value == 0 {
                return Err(Error::invalid(what, 0, "at least 1"));
            }
        }
        if !self.embed && (self.input != self.width || self.output > self.width) {
            let given = format!("{}, input {}, output {}", self.width, self.input, self.output);
            return Err(Error::invalid("width", given, "width = input >= output without an embedding"));
        }
        array_len::<f64>("model", &[self.input.saturating_add(self.output), self.width])?;
        for layer in &self.layers {
            if layer.heads == 0 || layer.key == 0 || layer.mlp == Some(0) {
                return Err(Error::invalid(
                    "layer",
                    format!("{layer:?}"),
                    "at least one head, key channel, hidden unit",
                ));
            }
            // More than a layer's matrices have.
            array_len::<f64>("layer", &[8, layer.heads, layer.key, self.width])?;
            array_len::<f64>("layer", &[2, layer.mlp.unwrap_or(1), self.width])?;
            if let Mixer::Mesa { forget } = layer.mixer
                && !(forget > 0.0 && forget <= 1.0)
            {
                return Err(Error::invalid("forgetting factor", forget, "a number in (0, 1]"));
            }
            if layer.features > 0 {
                if layer.mixer == Mixer::Softmax {
                    return Err(Error::invalid("features", layer.features, "0 in a layer of softmax attention"));
                }
                let (what, of_head) = ("features of queries and keys", [2, layer.key, layer.features]);
                if layer.features >= layer.key.saturating_mul(2) {
                    let expected = format!("ν of at most {}, twice the key channels less one", 2 * layer.key - 1);
                    return Err(Error::invalid(what, layer.features, expected));
                }
                array_len::<Lanes<f64>>(what, &[&[layer.heads], &of_head[..]].concat())?;
                if layer.mixer.scalar().is_some() {
                    // What goes from token to token: no matrix of a head is larger.
                    array_len::<Lanes<f64>>(what, &[of_head, of_head].concat())?;
                }
            }
        }
        match self.clip {
            Some(clip) if !(clip.is_finite() && clip > 0.0) => {
                Err(Error::invalid("clip of the residual stream", clip, "a positive finite number"))
            }
            _ => Ok(()),
        }
    }

    /// The parameters' matrices, in order: embedding; of each layer W_q, W_k, W_v, P, ln λ or ln β of the heads (mesa
    /// layer, delta rule) and the MLP's two; the read-out.
    pub fn slots(&self) -> Vec<Slot> {
        let mut slots = Vec::new();
        let mut at = 0;
        let mut push = |name: String, rows: usize, columns: usize| {
            slots.push(Slot { name, at, rows, columns });
            at += rows * columns;
        };
        if self.embed {
            push("embedding".to_owned(), self.width, self.input);
        }
        for (l, layer) in self.layers.iter().enumerate() {
            let (channels, from) = (layer.channels(), layer.query_input(self.width));
            push(format!("layer{l}.query"), channels, from);
            push(format!("layer{l}.key"), channels, from);
            push(format!("layer{l}.value"), channels, self.width);
            push(format!("layer{l}.out"), self.width, channels);
            if let Some(scalar) = layer.mixer.scalar() {
                push(format!("layer{l}.{scalar}"), 1, layer.heads);
            }
            if let Some(hidden) = layer.mlp {
                push(format!("layer{l}.up"), hidden, self.width);
                push(format!("layer{l}.down"), self.width, hidden);
            }
        }
        if self.embed {
            push("readout".to_owned(), self.output, self.width);
        }
        slots
    }

    /// Number of parameters.
    pub fn parameters(&self) -> usize {
        self.slots().last().map_or(0, |s| s.at + s.rows * s.columns)
    }

    /// Channels of the last residual stream that predictions are made of.
    fn read(&self) -> usize {
        if self.embed || self.layers.is_empty() { self.width } else { self.output }
    }

    fn offsets(&self) -> Vec<Offsets> {
        let mut at = if self.embed { self.width * self.input } else { 0 };
        let mut take = |n: usize| {
            at += n;
            at - n
        };
        let of = |layer: &Layer| {
            let (channels, from) = (layer.channels(), layer.query_input(self.width));
            let mut o = Offsets {
                q: take(channels * from),
                k: take(channels * from),
                v: take(channels * self.width),
                o: take(channels * self.width),
                ..Offsets::default()
            };
            if layer.mixer.scalar().is_some() {
                o.scalar = take(layer.heads);
            }
            if let Some(hidden) = layer.mlp {
                o.up = take(hidden * self.width);
                o.down = take(hidden * self.width);
            }
            o
        };
        self.layers.iter().map(of).collect()
    }
}

/// Sequences of tokens, or of anything else with channels: `[batch, tokens, channels]`, in tiles of [`LANES`].
#[derive(Clone, Debug, PartialEq)]
pub struct LaneBatch<T> {
    batch: usize,
    tokens: usize,
    channels: usize,
    tiles: Vec<Lanes<T>>,
}

impl<T: OnLanes> LaneBatch<T> {
    /// From `[batch, tokens, channels]`, row-major.
    ///
    /// # Errors
    /// [`Error::Shape`] unless the values fill the shape, which has no side of 0; [`Error::Invalid`] if it fits in no memory.
    pub fn new<V>(batch: usize, tokens: usize, channels: usize, values: &[V]) -> Result<Self>
    where
        V: Copy + Into<f64> + Sync + 'static,
    {
        let len = array_len::<Lanes<T>>("sequences", &[batch.div_ceil(LANES), tokens, channels])?;
        if len == 0 || values.len() != batch * tokens * channels {
            return Err(Error::shape("sequences", &[values.len()], format!("[{batch}, {tokens}, {channels}], none 0")));
        }
        // A number of the same type need not become another one on the way.
        let entry = |v: &V| (v as &dyn Any).downcast_ref().copied().unwrap_or_else(|| T::of((*v).into()));
        let (mut tiles, size) = (Vec::with_capacity(len), tokens * channels);
        let places = &mut tiles.spare_capacity_mut()[..len];
        places.par_chunks_mut(size).zip(values.par_chunks(LANES * size)).for_each(|(tile, sequences)| {
            // A stretch of every sequence before the next: what is written stays in the nearest cache.
            for (k, stretch) in tile.chunks_mut(LANES).enumerate() {
                let mut block = [Lanes::zero(); LANES];
                for (lane, sequence) in sequences.chunks(size).enumerate() {
                    let values = &sequence[k * LANES..][..stretch.len()];
                    block.iter_mut().zip(values).for_each(|(lanes, v)| lanes.0[lane] = entry(v));
                }
                stretch.iter_mut().zip(block).for_each(|(place, lanes)| {
                    place.write(lanes);
                });
            }
        });
        // SAFETY: there is a tile for every sixteen sequences begun, and all entries of every tile have been written.
        unsafe { tiles.set_len(len) };
        Ok(LaneBatch { batch, tokens, channels, tiles })
    }

    /// `[batch, tokens, channels]`, row-major.
    pub fn values(&self) -> Vec<f64> {
        let size = self.tokens * self.channels;
        let of = |b: usize| self.tiles[b / LANES * size..][..size].iter().map(move |lanes| lanes.0[b % LANES].f64());
        (0..self.batch).flat_map(of).collect()
    }

    /// `[batch, tokens, channels]`.
    pub fn shape(&self) -> [usize; 3] {
        [self.batch, self.tokens, self.channels]
    }

    fn tile(&self) -> usize {
        self.tokens * self.channels
    }

    /// Zeros in the same shape.
    fn zeroed(&self) -> Self {
        Self::zeros(self.batch, self.tokens, self.channels)
    }

    fn zeros(batch: usize, tokens: usize, channels: usize) -> Self {
        LaneBatch { batch, tokens, channels, tiles: vec![Lanes::zero(); batch.div_ceil(LANES) * tokens * channels] }
    }
}

/// Predictions at every token, `[batch, tokens, output]`.
///
/// # Errors
/// As [`Architecture::check`]; [`Error::Shape`] unless parameters and tokens fit the architecture.
pub fn predict<T: OnLanes>(a: &Architecture, parameters: &[T], tokens: &LaneBatch<T>) -> Result<LaneBatch<T>> {
    fits(a, parameters, tokens)?;
    let mut out = LaneBatch::zeros(tokens.batch, tokens.tokens, a.output);
    let size = out.tile();
    out.tiles.par_chunks_mut(size).zip(tokens.tiles.par_chunks(tokens.tile())).for_each(|(out, tile)| {
        let mut pass = Pass::take(a, tokens.tokens, (Rows::all(tokens.tokens), a.read()));
        pass.forward(parameters, tile);
        out.copy_from_slice(&pass.prediction);
        pass.keep();
    });
    Ok(out)
}

/// The residual stream at every token before the first layer and after each: `layers + 1` of `[batch, tokens, width]`.
///
/// # Errors
/// As [`predict`].
pub fn residuals<T: OnLanes>(a: &Architecture, parameters: &[T], tokens: &LaneBatch<T>) -> Result<Vec<LaneBatch<T>>> {
    fits(a, parameters, tokens)?;
    let of_tiles: Vec<Vec<Vec<Lanes<T>>>> = tokens
        .tiles
        .par_chunks(tokens.tile())
        .map(|tile| {
            let mut pass = Pass::new(a, tokens.tokens, (Rows::all(tokens.tokens), a.width));
            pass.forward(parameters, tile);
            pass.x.iter().map(|x| x.to_vec()).collect()
        })
        .collect();
    let [batch, length, _] = tokens.shape();
    let stream = |l: usize| LaneBatch {
        batch,
        tokens: length,
        channels: a.width,
        tiles: of_tiles.iter().flat_map(|tile| tile[l].iter().copied()).collect(),
    };
    Ok((0..=a.layers.len()).map(stream).collect())
}

/// The attention weights of layer `layer`: for each head the mean and the standard deviation over the batch,
/// `[tokens, tokens]` each, rows attend to columns.
///
/// # Errors
/// As [`predict`]; [`Error::Invalid`] unless the layer is one of softmax attention.
pub fn attention<T: OnLanes>(
    a: &Architecture,
    parameters: &[T],
    tokens: &LaneBatch<T>,
    layer: usize,
) -> Result<Vec<(Vec<f64>, Vec<f64>)>> {
    fits(a, parameters, tokens)?;
    let wanted = a.layers.get(layer).filter(|l| l.mixer == Mixer::Softmax);
    let wanted = wanted.ok_or_else(|| Error::invalid("layer", layer, "a layer of softmax attention"))?;
    let n = tokens.tokens;
    let mut sums = vec![(vec![0.0; n * n], vec![0.0; n * n]); wanted.heads];
    for (i, tile) in tokens.tiles.chunks(tokens.tile()).enumerate() {
        let mut pass = Pass::new(a, n, (Rows::all(n), a.read()));
        pass.forward(parameters, tile);
        let present = LANES.min(tokens.batch - i * LANES);
        for (h, (sum, squares)) in sums.iter_mut().enumerate() {
            let [q, k, ..] = pass.layers[layer].head(wanted, h, [n; 2]);
            for causal in Causal::blocks(Rows::all(n)) {
                weights(&causal, wanted, &q[causal.place(wanted.key)], k, &mut pass.scores, Soon::nothing());
                for i in 0..causal.count {
                    let row = (causal.queries.first + i) * n;
                    for (t, lanes) in pass.scores[causal.row(i)].iter().enumerate() {
                        for v in &lanes.0[..present] {
                            sum[row + t] += v.f64();
                            squares[row + t] += v.f64().powi(2);
                        }
                    }
                }
            }
        }
    }
    let count = tokens.batch as f64;
    for (sum, squares) in &mut sums {
        for (m, s) in sum.iter_mut().zip(squares) {
            *m /= count;
            *s = (*s / count - *m * *m).max(0.0).sqrt();
        }
    }
    Ok(sums)
}

/// A loss with its gradient.
#[derive(Clone, Debug)]
pub struct Slope<T> {
    /// The loss.
    pub loss: f64,
    /// The gradient in the parameters.
    pub parameters: Vec<T>,
}

/// L = Σ_t w_t ‖prediction_t − target_t‖² / (2 · batch · tokens), with its gradient in the parameters; w = 1 without
/// `weights`, `[tokens]`.
///
/// # Errors
/// As [`predict`]; [`Error::Shape`] unless the targets are `[batch, tokens, output]` and there is a weight a token.
pub fn squared_loss<T: OnLanes>(
    a: &Architecture,
    parameters: &[T],
    tokens: &LaneBatch<T>,
    targets: &LaneBatch<T>,
    weights: Option<&[f64]>,
) -> Result<Slope<T>> {
    squared(a, parameters, tokens, targets, weights, None)
}

/// As [`squared_loss`], with the gradient in the tokens too.
///
/// # Errors
/// As [`squared_loss`].
pub fn squared_loss_in_tokens<T: OnLanes>(
    a: &Architecture,
    parameters: &[T],
    tokens: &LaneBatch<T>,
    targets: &LaneBatch<T>,
    weights: Option<&[f64]>,
) -> Result<(Slope<T>, LaneBatch<T>)> {
    let mut into = tokens.zeroed();
    Ok((squared(a, parameters, tokens, targets, weights, Some(&mut into))?, into))
}

fn squared<T: OnLanes>(
    a: &Architecture,
    parameters: &[T],
    tokens: &LaneBatch<T>,
    targets: &LaneBatch<T>,
    weights: Option<&[f64]>,
    into: Option<&mut LaneBatch<T>>,
) -> Result<Slope<T>> {
    let [batch, length, _] = tokens.shape();
    if let Some(w) = weights
        && w.len() != length
    {
        return Err(Error::shape("weights of the tokens", &[w.len()], format!("[{length}]")));
    }
    let all = 1.0 / (batch * length) as f64;
    let weight = |t: usize| all * weights.map_or(1.0, |w| w[t]);
    let counts = |t: &usize| weights.is_none_or(|w| w[*t] != 0.0);
    let needed = (0..length).rfind(counts).map_or(1, |last| last + 1);
    // The largest step from prediction to prediction that leaves out none with a weight. Layers that go from token to token
    // have no use for it.
    let by_token = a.layers.last().is_none_or(|layer| layer.mixer.scalar().is_some());
    let step = if by_token { 1 } else { (0..needed).filter(counts).fold(0, divisor).max(1) };
    pull(a, parameters, (tokens, needed, step), targets, into, |present, prediction, target, gradient| {
        let mut loss = 0.0;
        let of_tokens = prediction.chunks(a.output).zip(gradient.chunks_mut(a.output)).enumerate();
        for (i, (prediction, gradient)) in of_tokens {
            let w = weight(i * step);
            for ((p, g), y) in prediction.iter().zip(gradient).zip(&target[i * step * a.output..]) {
                for lane in 0..present {
                    let difference = p.0[lane] - y.0[lane];
                    g.0[lane] = T::of(w) * difference;
                    loss += 0.5 * w * difference.f64().powi(2);
                }
            }
        }
        loss
    })
}

/// The greatest common divisor; that of 0 and b is b.
fn divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { divisor(b, a % b) }
}

/// The mean over batch and tokens of the cross-entropy −Σ_c target_c ln softmax(prediction)_c, in nats, with its gradient
/// in the parameters. Targets are distributions over the output channels: unit vectors for a language model.
///
/// # Errors
/// As [`predict`]; [`Error::Shape`] unless the targets are `[batch, tokens, output]`.
pub fn cross_entropy<T: OnLanes>(
    a: &Architecture,
    parameters: &[T],
    tokens: &LaneBatch<T>,
    targets: &LaneBatch<T>,
) -> Result<Slope<T>> {
    let [batch, length, _] = tokens.shape();
    let weight = 1.0 / (batch * length) as f64;
    pull(a, parameters, (tokens, length, 1), targets, None, |present, prediction, target, gradient| {
        let mut loss = 0.0;
        let rows = prediction.chunks(a.output).zip(target.chunks(a.output)).zip(gradient.chunks_mut(a.output));
        for ((logits, target), gradient) in rows {
            let mut most = logits[0];
            for lanes in logits {
                for lane in 0..LANES {
                    if lanes.0[lane] > most.0[lane] {
                        most.0[lane] = lanes.0[lane];
                    }
                }
            }
            let mut sum = Lanes::<T>::zero();
            for (lanes, g) in logits.iter().zip(gradient.iter_mut()) {
                for lane in 0..LANES {
                    g.0[lane] = (lanes.0[lane] - most.0[lane]).exp();
                    sum.0[lane] += g.0[lane];
                }
            }
            let logarithms: Vec<f64> = sum.0.iter().zip(&most.0).map(|(s, m)| s.f64().ln() + m.f64()).collect();
            for ((logits, y), g) in logits.iter().zip(target).zip(gradient) {
                for (lane, logarithm) in logarithms.iter().enumerate().take(present) {
                    g.0[lane] = T::of(weight) * (g.0[lane] / sum.0[lane] - y.0[lane]);
                    loss += weight * y.0[lane].f64() * (logarithm - logits.0[lane].f64());
                }
                g.0[present..].fill(T::default());
            }
        }
        loss
    })
}

/// The gradients in the parameters and the tokens of Σ ⟨adjoint, prediction⟩, and that sum.
///
/// # Errors
/// As [`predict`]; [`Error::Shape`] unless the adjoints are `[batch, tokens, output]`.
pub fn pullback<T: OnLanes>(
    a: &Architecture,
    parameters: &[T],
    tokens: &LaneBatch<T>,
    adjoint: &LaneBatch<T>,
) -> Result<(Slope<T>, LaneBatch<T>)> {
    let mut into = tokens.zeroed();
    let all = (tokens, tokens.tokens, 1);
    let slope = pull(a, parameters, all, adjoint, Some(&mut into), |present, prediction, adjoint, gradient| {
        let mut sum = 0.0;
        for ((p, e), g) in prediction.iter().zip(adjoint).zip(gradient) {
            for lane in 0..present {
                g.0[lane] = e.0[lane];
                sum += (p.0[lane] * e.0[lane]).f64();
            }
        }
        sum
    })?;
    Ok((slope, into))
}

/// A tile's loss and its gradient in the predictions; the lanes that stand for no sequence keep a gradient of 0.
type TileLoss<'a, T> = dyn Fn(usize, &[Lanes<T>], &[Lanes<T>], &mut [Lanes<T>]) -> f64 + Sync + 'a;

/// The loss on the predictions at every `step`-th of the first `needed` tokens of the sequences, none of the others being part
/// of it; the gradient in the tokens goes `into` a batch like them, if there is one.
fn pull<T: OnLanes>(
    a: &Architecture,
    parameters: &[T],
    (tokens, needed, step): (&LaneBatch<T>, usize, usize),
    targets: &LaneBatch<T>,
    into: Option<&mut LaneBatch<T>>,
    loss: impl Fn(usize, &[Lanes<T>], &[Lanes<T>], &mut [Lanes<T>]) -> f64 + Sync,
) -> Result<Slope<T>> {
    fits(a, parameters, tokens)?;
    let [batch, length, _] = tokens.shape();
    if targets.shape() != [batch, length, a.output] {
        return Err(Error::shape("targets", &targets.shape(), format!("[{batch}, {length}, {}]", a.output)));
    }
    let loss: &TileLoss<'_, T> = &loss;
    let count = batch.div_ceil(LANES);
    let into: Vec<Option<&mut [Lanes<T>]>> = match into {
        Some(into) => into.tiles.chunks_mut(tokens.tile()).map(Some).collect(),
        None => (0..count).map(|_| None).collect(),
    };
    // A piece a tile, added up in the order of the tiles: the result does not depend on the number of threads.
    let of_tiles = tokens.tiles.chunks(tokens.tile()).zip(targets.tiles.chunks(targets.tile()));
    let pieces: Vec<(f64, Buffer<T>)> =
        each(into.into_iter().zip(of_tiles).enumerate(), |(i, (into, (tile, target)))| {
            let mut pass = Pass::take(a, needed, (Rows { count: needed.div_ceil(step), step }, a.read()));
            let tile = &tile[..needed * a.input];
            pass.forward(parameters, tile);
            let mut e = vec![Lanes::zero(); pass.prediction.len()];
            let value = loss(LANES.min(batch - i * LANES), &pass.prediction, target, &mut e);
            let mut sum = Buffer::take(parameters.len());
            pass.backward(parameters, tile, &e, sum.as_mut(), into);
            pass.keep();
            (value, sum)
        });
    let total = pieces.iter().map(|(value, _)| value).sum();
    let mut sum = vec![T::default(); parameters.len()];
    const STRETCH: usize = 1 << 12;
    each(sum.chunks_mut(STRETCH).enumerate(), |(k, sum)| {
        T::on_lanes(SumOfPieces { pieces: &pieces, at: k * STRETCH, sum });
    });
    Ok(Slope { loss: total, parameters: sum })
}

/// The sums of a stretch of the pieces' gradients, in double precision, in the order of the pieces.
struct SumOfPieces<'a, T: OnLanes> {
    pieces: &'a [(f64, Buffer<T>)],
    at: usize,
    sum: &'a mut [T],
}

impl<T: OnLanes> Kernel<T> for SumOfPieces<'_, T> {
    type Output = ();
    // Loops over indices: an iterator's parts may be compiled elsewhere, without the caller's instructions.
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn run<V: Vector<T>>(self) {
        let SumOfPieces { pieces, at, sum } = self;
        for start in (0..sum.len()).step_by(LANES) {
            let len = LANES.min(sum.len() - start);
            let mut exact = [0.0; LANES];
            for k in 0..pieces.len() {
                let piece = &pieces[k].1.as_ref()[at + start..][..len];
                for i in 0..len {
                    exact[i] += piece[i].f64();
                }
            }
            for i in 0..len {
                sum[start + i] = T::of(exact[i]);
            }
        }
    }
}

fn fits<T: OnLanes>(a: &Architecture, parameters: &[T], tokens: &LaneBatch<T>) -> Result<()> {
    a.check()?;
    if parameters.len() != a.parameters() {
        return Err(Error::shape("parameters", &[parameters.len()], format!("[{}]", a.parameters())));
    }
    if tokens.channels != a.input {
        return Err(Error::shape("tokens", &tokens.shape(), format!("[batch, tokens, {}]", a.input)));
    }
    Ok(())
}

/// A layer's activations.
struct Store<T: OnLanes> {
    /// x with positions beside it; empty without them.
    placed: Piece<Lanes<T>>,
    /// Queries and keys, or their features, scaled to norm 1 if the layer does that, values and outputs: a head after the
    /// other, so that what a head needs lies together and stays in the cache, `[heads, tokens, mixed]` and
    /// `[heads, tokens, key]`; queries and outputs, and what comes behind them, of the tokens that are read alone.
    q: Piece<Lanes<T>>,
    k: Piece<Lanes<T>>,
    v: Piece<Lanes<T>>,
    o: Piece<Lanes<T>>,
    /// Attention weights, `[heads, queries, tokens]`; empty if there are none or the backward pass computes them once more.
    weights: Piece<Lanes<T>>,
    /// What the features of queries and keys are made of, `[heads, tokens, key]`: their derivative asks for signs that
    /// products do not show. Empty without features.
    q_plain: Piece<Lanes<T>>,
    k_plain: Piece<Lanes<T>>,
    /// The norms that queries and keys had, `[heads, tokens]`; empty if they are not scaled.
    q_norm: Piece<Lanes<T>>,
    k_norm: Piece<Lanes<T>>,
    /// With an MLP: the residual stream before it, its hidden units before and after the non-linearity.
    middle: Piece<Lanes<T>>,
    hidden: Piece<Lanes<T>>,
    active: Piece<Lanes<T>>,
}

impl<T: OnLanes> Store<T> {
    /// Queries, keys, values and outputs of head `h`: so many tokens of queries and outputs, and of keys and values.
    fn head(&self, layer: &Layer, h: usize, [queries, keys]: [usize; 2]) -> [&[Lanes<T>]; 4] {
        let (key, mixed) = (layer.key, layer.mixed());
        [(&self.q, queries * mixed), (&self.k, keys * mixed), (&self.v, keys * key), (&self.o, queries * key)]
            .map(|(all, size)| &all[h * size..][..size])
    }
}

/// Tokens of a sequence from the first one on, `step` from one to the next.
#[derive(Clone, Copy, PartialEq)]
struct Rows {
    count: usize,
    step: usize,
}

impl Rows {
    /// One after the other.
    fn all(count: usize) -> Self {
        Rows { count, step: 1 }
    }
}

/// Causal attention of a head for some of its queries: those, which of all they are, and the tokens that the last of them sees.
#[derive(Clone, Copy)]
struct Causal {
    queries: Queries,
    from: usize,
    count: usize,
    tokens: usize,
}

/// Queries whose attention is computed at a time: their scores stay in the cache however long the sequence is.
const AT_A_TIME: usize = 64;

impl Layer {
    /// Whether the attention weights of so many queries are kept for the backward pass: where they are few, to read them again
    /// takes less time than their products and exponentials.
    fn keeps_weights(&self, queries: usize) -> bool {
        self.mixer == Mixer::Softmax && queries <= AT_A_TIME
    }
}

impl Causal {
    /// Attention of the queries of `rows`, [`AT_A_TIME`] after the other.
    fn blocks(rows: Rows) -> impl Iterator<Item = Causal> {
        (0..rows.count).step_by(AT_A_TIME).map(move |from| {
            let count = AT_A_TIME.min(rows.count - from);
            let queries = Queries { first: from * rows.step, step: rows.step };
            Causal { queries, from, count, tokens: queries.seen(count - 1) }
        })
    }

    /// Where a matrix `[all queries, channels]` has these queries.
    fn place(&self, channels: usize) -> Range<usize> {
        self.from * channels..(self.from + self.count) * channels
    }

    /// Where a matrix `[queries, tokens]` has the entries of query `i`: those of the tokens up to its own.
    fn row(&self, i: usize) -> Range<usize> {
        let at = i * self.tokens;
        at..at + self.queries.seen(i)
    }
}

/// One tile's pass through the model.
struct Pass<T: OnLanes> {
    a: Architecture,
    offsets: Vec<Offsets>,
    tokens: usize,
    /// Tokens and channels of the last residual stream that are computed.
    read: (Rows, usize),
    /// The residual stream before the first layer and after each.
    x: Vec<Piece<Lanes<T>>>,
    layers: Vec<Store<T>>,
    scores: Piece<Lanes<T>>,
    slopes: Piece<Lanes<T>>,
    /// Gradients in the residual streams after and before a layer, and between its attention and its MLP.
    residual: [Piece<Lanes<T>>; 3],
    /// Gradients in a head's output, and in its queries, keys and values, one after the other.
    adjoints: [Piece<Lanes<T>>; 2],
    /// The gradient in what a head's features are made of; empty if no layer has any.
    plain: Piece<Lanes<T>>,
    prediction: Piece<Lanes<T>>,
    places: Vec<T>,
}

/// Sinusoidal positions (Vaswani et al., base 10,000), `[tokens, width]`.
fn positions<T: OnLanes>(tokens: usize, width: usize) -> Vec<T> {
    let entry = |t: usize, c: usize| {
        let angle = t as f64 / 10_000f64.powf((c - c % 2) as f64 / width as f64);
        T::of(if c.is_multiple_of(2) { angle.sin() } else { angle.cos() })
    };
    (0..tokens * width).map(|i| entry(i / width, i % width)).collect()
}

/// Terms of a sum of products: how many, and how far a term's tokens and weights are behind those of the one before it.
#[derive(Clone, Copy)]
struct Terms {
    count: usize,
    tokens: usize,
    weights: usize,
}

/// A product that is no sum.
const ONE: Terms = Terms { count: 1, tokens: 0, weights: 0 };

/// Y = Σ X Wᵀ over the terms, or Y += that if `ADD`, for some tokens of X: `[rows, outputs]`. W is where its view says among the
/// parameters.
fn linear<T: OnLanes, const ADD: bool>(
    (rows, outputs, inputs): (Rows, usize, usize),
    (p, w): (&[T], View),
    (x, terms): (&[Lanes<T>], Terms),
    y: &mut [Lanes<T>],
    ahead: Soon<'_, T>,
) {
    let extent = Extent::new(rows.count, outputs, inputs).terms(terms.count);
    let (x, w) = ((x, View::new(0, rows.step * inputs, 1).terms(terms.tokens)), w.terms(terms.weights));
    product::<T, _, ADD>(extent, Part::All, T::of(1.0), x, (Shared(p), w), (y, View::new(0, outputs, 1)), ahead);
}

/// X = Σ Y W over the terms, or X += that if `ADD`: the adjoint of [`linear`] in X, of its first `kept` channels.
fn linear_adjoint<T: OnLanes, const ADD: bool>(
    (rows, outputs, kept): (Rows, usize, usize),
    (p, w): (&[T], View),
    (y, terms): (&[Lanes<T>], Terms),
    x: &mut [Lanes<T>],
    ahead: Soon<'_, T>,
) {
    let extent = Extent::new(rows.count, kept, outputs).terms(terms.count);
    let y = (y, View::new(0, outputs, 1).terms(terms.tokens));
    let w = View::new(w.at, w.inner, w.row).terms(terms.weights);
    let place = View::new(0, rows.step * kept, 1);
    product::<T, _, ADD>(extent, Part::All, T::of(1.0), y, (Shared(p), w), (x, place), ahead);
}

/// W = Yᵀ X over the rows and the lanes, the adjoint of [`linear`] in W.
fn linear_weights<T: OnLanes>(
    (rows, outputs, inputs): (Rows, usize, usize),
    y: &[Lanes<T>],
    x: &[Lanes<T>],
    (sum, w): (&mut [T], View),
    ahead: Soon<'_, T>,
) {
    let extent = Extent::new(outputs, inputs, rows.count);
    reduced_product(extent, (y, View::new(0, 1, outputs)), (x, View::new(0, 1, rows.step * inputs)), (sum, w), ahead);
}

/// The first channels of some tokens `from` one stream to those `to` another, as many as that has; 0 where the first has fewer.
fn copy_channels<T: OnLanes>(
    (from, channels, from_step): (&[Lanes<T>], usize, usize),
    (to, kept, to_step): (&mut [Lanes<T>], usize, usize),
) {
    let both = channels.min(kept);
    for (to, from) in to.chunks_mut(kept).step_by(to_step).zip(from.chunks(channels).step_by(from_step)) {
        to[..both].copy_from_slice(&from[..both]);
        to[both..].fill(Lanes::zero());
    }
}

/// A head's attention weights into `scores`, `[queries, tokens]`, 0 behind a query's own token.
fn weights<T: OnLanes>(
    causal: &Causal,
    layer: &Layer,
    q: &[Lanes<T>],
    k: &[Lanes<T>],
    scores: &mut [Lanes<T>],
    ahead: Soon<'_, T>,
) {
    let softmax = layer.mixer == Mixer::Softmax;
    let scale = if softmax { 1.0 / (layer.key as f64).sqrt() } else { 1.0 };
    lower(causal, layer.mixed(), T::of(scale), (q, k), scores, ahead);
    if softmax {
        T::on_lanes(Softmax { causal, scores });
    }
}

/// Softmax of the rows of a lower triangle, in place.
struct Softmax<'a, T> {
    causal: &'a Causal,
    scores: &'a mut [Lanes<T>],
}

impl<T: OnLanes> Kernel<T> for Softmax<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector<T>>(self) {
        for i in 0..self.causal.count {
            let row = self.causal.row(i);
            let row = &mut self.scores[row];
            let mut most = V::load(&row[0]);
            for lanes in row.iter() {
                most = most.max(V::load(lanes));
            }
            let mut sum = V::splat(T::default());
            for lanes in row.iter_mut() {
                let weight = exp::<T, V>(V::load(lanes).sub(most));
                sum = sum.add(weight);
                weight.store(lanes);
            }
            let inverse = V::splat(T::of(1.0)).div(sum);
            for lanes in row {
                V::load(lanes).mul(inverse).store(lanes);
            }
        }
    }
}

/// The adjoint of [`Softmax`]: w (s − Σ w s) of each row, in the place of the slopes s.
struct SoftmaxAdjoint<'a, T> {
    causal: &'a Causal,
    weights: &'a [Lanes<T>],
    slopes: &'a mut [Lanes<T>],
}

impl<T: OnLanes> Kernel<T> for SoftmaxAdjoint<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector<T>>(self) {
        for i in 0..self.causal.count {
            let row = self.causal.row(i);
            let (row, slope) = (&self.weights[row.clone()], &mut self.slopes[row]);
            let mut mean = V::splat(T::default());
            for (w, s) in row.iter().zip(slope.iter()) {
                mean = mean.add_mul(V::load(w), V::load(s));
            }
            for (w, s) in row.iter().zip(slope) {
                V::load(w).mul(V::load(s).sub(mean)).store(s);
            }
        }
    }
}

/// GELU of every hidden unit.
struct Gelu<'a, T> {
    from: &'a [Lanes<T>],
    to: &'a mut [Lanes<T>],
}

impl<T: OnLanes> Kernel<T> for Gelu<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector<T>>(self) {
        for (to, from) in self.to.iter_mut().zip(self.from) {
            gelu::<T, V>(V::load(from)).0.store(to);
        }
    }
}

/// The adjoint of [`Gelu`]: `slopes` times its derivative at `from`.
struct GeluAdjoint<'a, T> {
    from: &'a [Lanes<T>],
    slopes: &'a mut [Lanes<T>],
}

impl<T: OnLanes> Kernel<T> for GeluAdjoint<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector<T>>(self) {
        for (slope, from) in self.slopes.iter_mut().zip(self.from) {
            V::load(slope).mul(gelu::<T, V>(V::load(from)).1).store(slope);
        }
    }
}

/// `scale X Yᵀ` of queries and the tokens up to theirs, with so many channels; 0 behind those.
fn lower<T: OnLanes>(
    causal: &Causal,
    channels: usize,
    scale: T,
    (x, y): (&[Lanes<T>], &[Lanes<T>]),
    out: &mut [Lanes<T>],
    ahead: Soon<'_, T>,
) {
    let Causal { queries, count, tokens, .. } = *causal;
    let extent = Extent::new(count, tokens, channels);
    let (rows, place) = (View::new(0, channels, 1), View::new(0, tokens, 1));
    product::<T, _, false>(extent, Part::Lower(queries), scale, (x, rows), (y, rows), (out, place), ahead);
    // Nothing further behind is read.
    for i in 0..count {
        let end = causal.row(i).end;
        out[end..((i + 1) * tokens).min(end + ABOVE * queries.step)].fill(Lanes::zero());
    }
}

/// `out = scale M x`: the queries' sums over the tokens up to theirs, of so many channels.
fn mix<T: OnLanes>(
    causal: &Causal,
    channels: usize,
    scale: T,
    (m, x): (&[Lanes<T>], &[Lanes<T>]),
    out: &mut [Lanes<T>],
    ahead: Soon<'_, T>,
) {
    let Causal { queries, count, tokens, .. } = *causal;
    let extent = Extent::new(count, channels, tokens);
    let (m, x) = ((m, View::new(0, tokens, 1)), (x, View::new(0, 1, channels)));
    let out = (out, View::new(0, channels, 1));
    product::<T, _, false>(extent, Part::SumBelow(queries), scale, m, x, out, ahead);
}

/// `out += scale Mᵀ x`, the adjoint of [`mix`] in x: the tokens' sums over the queries that see them. What `out` held before
/// the first block of queries does not count.
fn mix_adjoint<T: OnLanes>(
    causal: &Causal,
    channels: usize,
    scale: T,
    (m, x): (&[Lanes<T>], &[Lanes<T>]),
    out: &mut [Lanes<T>],
    ahead: Soon<'_, T>,
) {
    let Causal { queries, count, tokens, .. } = *causal;
    let extent = Extent::new(tokens, channels, count);
    let (m, x) = ((m, View::new(0, 1, tokens)), (x, View::new(0, 1, channels)));
    let place = View::new(0, channels, 1);
    if causal.from > 0 {
        return product::<T, _, true>(extent, Part::SumFrom(queries), scale, m, x, (out, place), ahead);
    }
    out[tokens * channels..].fill(Lanes::zero());
    product::<T, _, false>(extent, Part::SumFrom(queries), scale, m, x, (out, place), ahead);
}

/// Entry `i` of r = (relu(x), relu(−x)). A NaN stays one.
#[inline(always)]
fn rectified<T: OnLanes, V: Vector<T>>(x: &[Lanes<T>], i: usize) -> V {
    let zero = V::splat(T::default());
    if i < x.len() { V::load(&x[i]).max(zero) } else { zero.sub(V::load(&x[i - x.len()])).max(zero) }
}

/// DPFP features of every token's channels: those of the j-th of so many powers are φ_j[i] = r[i] r[(i − j) mod 2 key],
/// with r as [`rectified`] has it.
struct Features<'a, T> {
    key: usize,
    powers: usize,
    from: &'a [Lanes<T>],
    to: &'a mut [Lanes<T>],
}

impl<T: OnLanes> Kernel<T> for Features<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector<T>>(self) {
        let size = 2 * self.key;
        for (x, to) in self.from.chunks(self.key).zip(self.to.chunks_mut(size * self.powers)) {
            for (j, to) in to.chunks_mut(size).enumerate() {
                let back = j + 1;
                for (i, to) in to.iter_mut().enumerate() {
                    let other = if i < back { i + size - back } else { i - back };
                    rectified::<T, V>(x, i).mul(rectified(x, other)).store(to);
                }
            }
        }
    }
}

/// The adjoint of [`Features`] at `from`: dL/dr[i] = Σ_j (e_j[i] r[i − j] + e_j[i + j] r[i + j]), indices mod 2 key, and
/// from there to x with relu's derivative, 0 at 0.
struct FeaturesAdjoint<'a, T> {
    key: usize,
    powers: usize,
    from: &'a [Lanes<T>],
    slopes: &'a [Lanes<T>],
    to: &'a mut [Lanes<T>],
}

impl<T: OnLanes> Kernel<T> for FeaturesAdjoint<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector<T>>(self) {
        let (key, size) = (self.key, 2 * self.key);
        let tokens = self.from.chunks(key).zip(self.slopes.chunks(size * self.powers));
        for ((x, slopes), to) in tokens.zip(self.to.chunks_mut(key)) {
            let slope = |i: usize| {
                let mut sum = V::splat(T::default());
                for (j, e) in slopes.chunks(size).enumerate() {
                    let by = j + 1;
                    let before = if i < by { i + size - by } else { i - by };
                    let behind = if i + by < size { i + by } else { i + by - size };
                    sum = sum.add_mul(V::load(&e[i]), rectified(x, before));
                    sum = sum.add_mul(V::load(&e[behind]), rectified(x, behind));
                }
                sum
            };
            for (i, to) in to.iter_mut().enumerate() {
                let (zero, x) = (V::splat(T::default()), V::load(&x[i]));
                let (above, below) = (x.where_positive(slope(i)), zero.sub(x).where_positive(slope(i + key)));
                above.sub(below).store(to);
            }
        }
    }
}

/// Scales each head's channels of each token to norm 1, and keeps the norms.
fn unit<T: OnLanes>(key: usize, x: &mut [Lanes<T>], norms: &mut [Lanes<T>]) {
    for (x, norm) in x.chunks_mut(key).zip(norms) {
        let mut squares = Lanes::splat(T::of(1e-12));
        for lanes in x.iter() {
            for lane in 0..LANES {
                squares.0[lane] += lanes.0[lane] * lanes.0[lane];
            }
        }
        for lane in 0..LANES {
            norm.0[lane] = T::of(squares.0[lane].f64().sqrt());
        }
        for lanes in x {
            for lane in 0..LANES {
                lanes.0[lane] /= norm.0[lane];
            }
        }
    }
}

/// The adjoint of [`unit`], in place: (e − x ⟨x, e⟩) / norm for the scaled x.
fn unit_adjoint<T: OnLanes>(key: usize, x: &[Lanes<T>], norms: &[Lanes<T>], e: &mut [Lanes<T>]) {
    for ((x, norm), e) in x.chunks(key).zip(norms).zip(e.chunks_mut(key)) {
        let mut inner = Lanes::zero();
        for (x, e) in x.iter().zip(e.iter()) {
            for lane in 0..LANES {
                inner.0[lane] += x.0[lane] * e.0[lane];
            }
        }
        for (x, e) in x.iter().zip(e) {
            for lane in 0..LANES {
                e.0[lane] = (e.0[lane] - x.0[lane] * inner.0[lane]) / norm.0[lane];
            }
        }
    }
}

/// √(2/π), and the cubic coefficient of GELU's tanh form.
const GELU: [f64; 2] = [0.797_884_560_802_865_4, 0.044_715];

/// GELU in its tanh form, and its derivative.
#[inline(always)]
fn gelu<T: OnLanes, V: Vector<T>>(x: V) -> (V, V) {
    let at = |v: f64| V::splat(T::of(v));
    let (one, square) = (at(1.0), x.mul(x));
    let inner = x.mul(at(GELU[0]).add_mul(at(GELU[0] * GELU[1]), square));
    // tanh is 1 to the last bit long before.
    let inner = inner.min(at(20.0)).max(at(-20.0));
    let tanh = one.sub(at(2.0).div(exp::<T, V>(inner.add(inner)).add(one)));
    let slope = at(GELU[0]).add_mul(at(3.0 * GELU[0] * GELU[1]), square);
    let (half, above) = (at(0.5).mul(x), one.add(tanh));
    (half.mul(above), at(0.5).mul(above).add_mul(half.mul(one.sub(tanh.mul(tanh))), slope))
}

/// What a head makes of a token.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Query,
    Key,
    Value,
}

/// Passes that are kept from step to step: fresh memory costs more than the arithmetic of a small model.
static IDLE: Mutex<Vec<Box<dyn Any + Send>>> = Mutex::new(Vec::new());

/// Where a layer's matrices are among the parameters: of a head those that make its queries, keys and values, and the
/// columns of P that its output meets.
struct Matrices {
    query: View,
    key: View,
    value: View,
    out: View,
}

impl Matrices {
    fn new(layer: &Layer, width: usize, at: Offsets, h: usize) -> Self {
        let from = layer.query_input(width);
        Matrices {
            query: View::new(at.q + h * layer.key * from, from, 1),
            key: View::new(at.k + h * layer.key * from, from, 1),
            value: View::new(at.v + h * layer.key * width, width, 1),
            out: View::new(at.o + h * layer.key, layer.channels(), 1),
        }
    }
}

impl<T: OnLanes> Pass<T> {
    /// A pass as [`Pass::new`] makes it, from those that are kept. What is kept for other models is given up.
    fn take(a: &Architecture, tokens: usize, read: (Rows, usize)) -> Box<Self> {
        let fits = |pass: &Self| pass.a == *a && pass.tokens == tokens && pass.read == read;
        let kept = IDLE.lock().ok().and_then(|mut idle| {
            idle.retain(|pass| pass.downcast_ref().is_some_and(fits));
            idle.pop()
        });
        let kept = kept.and_then(|pass| pass.downcast().ok());
        kept.unwrap_or_else(|| Box::new(Pass::new(a, tokens, read)))
    }

    /// Keeps the pass for [`Pass::take`].
    fn keep(self: Box<Self>) {
        if let Ok(mut idle) = IDLE.lock() {
            idle.push(self);
        }
    }

    /// A pass over `tokens` tokens that computes these of the last residual stream, and so many channels of it.
    fn new(a: &Architecture, tokens: usize, read: (Rows, usize)) -> Self {
        let placed = a.layers.iter().any(|l| l.positions);
        let places = if placed { positions(tokens, a.width) } else { Vec::new() };
        Pass { places, ..Pieces::of_one_buffer(|pieces| Pass::laid_out(a, tokens, read, pieces)) }
    }

    fn laid_out(
        a: &Architecture,
        tokens: usize,
        (rows, channels): (Rows, usize),
        pieces: &mut Pieces<Lanes<T>>,
    ) -> Self {
        let of = |pieces: &mut Pieces<Lanes<T>>, (l, layer): (usize, &Layer)| {
            let read = if l + 1 == a.layers.len() { rows.count } else { tokens };
            let (channels, mixed) = (layer.channels(), layer.heads * layer.mixed());
            let plain = if layer.features > 0 { channels } else { 0 };
            let (norms, hidden) = (if layer.unit { layer.heads } else { 0 }, layer.mlp.unwrap_or(0));
            Store {
                placed: pieces.take(if layer.positions { tokens * 2 * a.width } else { 0 }),
                q: pieces.take(read * mixed),
                k: pieces.take(tokens * mixed),
                v: pieces.take(tokens * channels),
                o: pieces.take(read * channels),
                weights: pieces.take(if layer.keeps_weights(read) { layer.heads * read * tokens } else { 0 }),
                q_plain: pieces.take(read * plain),
                k_plain: pieces.take(tokens * plain),
                q_norm: pieces.take(read * norms),
                k_norm: pieces.take(tokens * norms),
                middle: pieces.take(if hidden > 0 { read * a.width } else { 0 }),
                hidden: pieces.take(read * hidden),
                active: pieces.take(read * hidden),
            }
        };
        let squares =
            if a.layers.iter().any(|l| l.mixer.scalar().is_none()) { tokens * tokens.min(AT_A_TIME) } else { 0 };
        let mixed = a.layers.iter().map(Layer::mixed).max().unwrap_or(0);
        let plain = a.layers.iter().filter(|l| l.features > 0).map(|l| l.key).max().unwrap_or(0);
        let mut x: Vec<Piece<Lanes<T>>> = a.layers.iter().map(|_| pieces.take(tokens * a.width)).collect();
        x.push(pieces.take(rows.count * channels));
        Pass {
            a: a.clone(),
            offsets: a.offsets(),
            tokens,
            read: (rows, channels),
            x,
            layers: a.layers.iter().enumerate().map(|layer| of(pieces, layer)).collect(),
            scores: pieces.take(squares),
            slopes: pieces.take(squares),
            residual: std::array::from_fn(|_| pieces.take(tokens * a.width)),
            adjoints: [pieces.take(tokens * mixed), pieces.take(3 * tokens * mixed)],
            plain: pieces.take(tokens * plain),
            prediction: pieces.take(rows.count * a.output),
            places: Vec::new(),
        }
    }

    /// Tokens and channels of the residual stream after layer `l`.
    fn after(&self, l: usize) -> (Rows, usize) {
        if l + 1 == self.layers.len() { self.read } else { (Rows::all(self.tokens), self.a.width) }
    }

    fn forward(&mut self, p: &[T], tile: &[Lanes<T>]) {
        let (a, n) = (&self.a, self.tokens);
        if a.embed {
            let embedding = (Rows::all(n), a.width, a.input);
            linear::<T, false>(embedding, (p, View::new(0, a.input, 1)), (tile, ONE), &mut self.x[0], Soon::nothing());
        } else {
            self.x[0].copy_from_slice(tile);
        }
        for l in 0..self.layers.len() {
            self.layer_forward(l, p);
        }
        let (a, (rows, channels)) = (&self.a, self.read);
        let last = &self.x[a.layers.len()];
        if a.embed {
            let readout = View::new(p.len() - a.output * a.width, a.width, 1);
            let size = (Rows::all(rows.count), a.output, channels);
            linear::<T, false>(size, (p, readout), (last, ONE), &mut self.prediction, Soon::nothing());
        } else {
            copy_channels((last, channels, 1), (&mut self.prediction, a.output, 1));
        }
    }

    fn layer_forward(&mut self, l: usize, p: &[T]) {
        let (a, n, (queries, kept)) = (&self.a, self.tokens, self.after(l));
        let (all, rows) = (Rows::all(n), Rows::all(queries.count));
        let (layer, at, store, scores) = (&a.layers[l], self.offsets[l], &mut self.layers[l], &mut self.scores);
        let (width, key, from) = (a.width, layer.key, layer.query_input(a.width));
        let (before, after) = self.x.split_at_mut(l + 1);
        let (x, y) = (&before[l], &mut after[0]);
        if layer.positions {
            for (t, (placed, x)) in store.placed.chunks_mut(2 * width).zip(x.chunks(width)).enumerate() {
                placed[..width].copy_from_slice(x);
                let here = &self.places[t * width..][..width];
                placed[width..].iter_mut().zip(here).for_each(|(lanes, v)| *lanes = Lanes::splat(*v));
            }
        }
        let seen = if layer.positions { &store.placed } else { x };
        // What attention is added to: all channels before an MLP, otherwise those that are read.
        let (sum, channels) = if layer.mlp.is_some() { (&mut store.middle, width) } else { (&mut *y, kept) };
        copy_channels((x, width, queries.step), (sum, channels, 1));
        let (mixed, powers) = (layer.mixed(), layer.features);
        let head = Head { tokens: n, key: mixed, value: key };
        let mut work = layer.mixer.scalar().map(|_| Workspace::new(&head));
        let (size, of_queries) = (n * key, queries.count * key);
        for h in 0..layer.heads {
            let matrices = Matrices::new(layer, width, at, h);
            let (q, next) = store.q[h * queries.count * mixed..].split_at_mut(queries.count * mixed);
            // The next head's queries.
            let next = &next[..next.len().min(q.len())];
            let k = &mut store.k[h * n * mixed..][..n * mixed];
            let v = &mut store.v[h * size..][..size];
            let o = &mut store.o[h * of_queries..][..of_queries];
            let (to_q, to_k) = if powers > 0 {
                (&mut store.q_plain[h * of_queries..][..of_queries], &mut store.k_plain[h * size..][..size])
            } else {
                (&mut *q, &mut *k)
            };
            linear::<T, false>((queries, key, from), (p, matrices.query), (seen, ONE), to_q, Soon::all(to_k));
            linear::<T, false>((all, key, from), (p, matrices.key), (seen, ONE), to_k, Soon::all(v));
            linear::<T, false>((all, key, width), (p, matrices.value), (x, ONE), v, Soon::all(o));
            if layer.shift {
                to_k.copy_within(..size - key, key);
                to_k[..key].fill(Lanes::zero());
            }
            if powers > 0 {
                let (of_q, of_k) = (&store.q_plain[h * of_queries..], &store.k_plain[h * size..]);
                T::on_lanes(Features { key, powers, from: of_q, to: &mut *q });
                T::on_lanes(Features { key, powers, from: of_k, to: &mut *k });
            }
            if layer.unit {
                unit(mixed, q, &mut store.q_norm[h * rows.count..][..rows.count]);
                unit(mixed, k, &mut store.k_norm[h * n..][..n]);
            }
            if let Some(work) = &mut work {
                let scalar = p[at.scalar + h].exp();
                match layer.mixer {
                    Mixer::Delta { implicit } => delta_rule::forward(&head, q, k, v, scalar, implicit, work, Some(o)),
                    mixer => mesa_layer::forward(&head, q, k, v, scalar, T::of(mixer.forget()), work, o),
                }
            } else {
                let kept = store.weights.len() / layer.heads;
                for causal in Causal::blocks(queries) {
                    let scores = if kept > 0 { &mut store.weights[h * kept..][..kept] } else { &mut **scores };
                    weights(&causal, layer, &q[causal.place(mixed)], k, scores, Soon::nothing());
                    mix(&causal, key, T::of(1.0), (scores, v), &mut o[causal.place(key)], Soon::all(next));
                }
            }
        }
        // All heads at once: what they are added to is read and written once.
        let heads = Terms { count: layer.heads, tokens: of_queries, weights: key };
        linear::<T, true>(
            (rows, channels, key),
            (p, View::new(at.o, layer.channels(), 1)),
            (&store.o, heads),
            sum,
            Soon::nothing(),
        );
        if let Some(hidden) = layer.mlp {
            let [up, down] = [View::new(at.up, width, 1), View::new(at.down, hidden, 1)];
            linear::<T, false>(
                (rows, hidden, width),
                (p, up),
                (&store.middle, ONE),
                &mut store.hidden,
                Soon::nothing(),
            );
            T::on_lanes(Gelu { from: &store.hidden, to: &mut store.active });
            copy_channels((&store.middle, width, 1), (y, kept, 1));
            linear::<T, true>((rows, kept, hidden), (p, down), (&store.active, ONE), y, Soon::nothing());
        }
        if let Some(clip) = a.clip {
            let clip = T::of(clip);
            for lanes in y.iter_mut() {
                for v in &mut lanes.0 {
                    if *v > clip {
                        *v = clip;
                    } else if *v < -clip {
                        *v = -clip;
                    }
                }
            }
        }
    }

    /// Writes the gradient in the parameters, all of it, to `sum`, for the gradient `e` in the predictions, and that in the
    /// tokens if it is wanted.
    fn backward(&mut self, p: &[T], tile: &[Lanes<T>], e: &[Lanes<T>], sum: &mut [T], into: Option<&mut [Lanes<T>]>) {
        let (a, (rows, channels)) = (&self.a, self.read);
        let dy = &mut self.residual[0][..rows.count * channels];
        if a.embed {
            let readout = View::new(p.len() - a.output * a.width, a.width, 1);
            let size = (Rows::all(rows.count), a.output, channels);
            linear_weights(size, e, &self.x[a.layers.len()], (sum, readout), Soon::nothing());
            linear_adjoint::<T, false>(size, (p, readout), (e, ONE), dy, Soon::nothing());
        } else {
            copy_channels((e, a.output, 1), (dy, channels, 1));
        }
        let all = a.embed || into.is_some();
        for l in (0..self.layers.len()).rev() {
            if let Some(clip) = self.a.clip {
                let clip = T::of(clip);
                for (d, x) in self.residual[0].iter_mut().zip(self.x[l + 1].iter()) {
                    for lane in 0..LANES {
                        if x.0[lane] >= clip || x.0[lane] <= -clip {
                            d.0[lane] = T::default();
                        }
                    }
                }
            }
            self.layer_backward(l, p, sum, l > 0 || all);
        }
        let (a, dx) = (&self.a, &self.residual[0]);
        let (embedding, size) = (View::new(0, a.input, 1), (Rows::all(self.tokens), a.width, a.input));
        if a.embed {
            linear_weights(size, dx, tile, (sum, embedding), Soon::nothing());
        }
        if let Some(into) = into {
            let into = &mut into[..self.tokens * a.input];
            if a.embed {
                linear_adjoint::<T, false>(size, (p, embedding), (dx, ONE), into, Soon::nothing());
            } else {
                into.copy_from_slice(dx);
            }
        }
    }

    /// The gradient in the layer's output becomes that in its input, if that is `wanted`.
    fn layer_backward(&mut self, l: usize, p: &[T], sum: &mut [T], wanted: bool) {
        let (a, n, (queries, kept)) = (&self.a, self.tokens, self.after(l));
        let (all, rows) = (Rows::all(n), Rows::all(queries.count));
        let (layer, at, store) = (&a.layers[l], self.offsets[l], &self.layers[l]);
        let (width, key, from) = (a.width, layer.key, layer.query_input(a.width));
        let [after, before, middle] = &mut self.residual;
        let dy = &after[..rows.count * kept];
        // The gradient in what attention was added to, and its channels.
        let (dy, channels) = if let Some(hidden) = layer.mlp {
            let [up, down] = [View::new(at.up, width, 1), View::new(at.down, hidden, 1)];
            // Channels that no prediction is made of.
            sum[at.down + kept * hidden..at.down + width * hidden].fill(T::default());
            let mut dh = vec![Lanes::zero(); rows.count * hidden];
            linear_weights((rows, kept, hidden), dy, &store.active, (sum, down), Soon::nothing());
            linear_adjoint::<T, false>((rows, kept, hidden), (p, down), (dy, ONE), &mut dh, Soon::nothing());
            T::on_lanes(GeluAdjoint { from: &store.hidden, slopes: &mut dh });
            linear_weights((rows, hidden, width), &dh, &store.middle, (sum, up), Soon::nothing());
            let middle = &mut middle[..rows.count * width];
            copy_channels((dy, kept, 1), (middle, width, 1));
            linear_adjoint::<T, true>((rows, hidden, width), (p, up), (&dh, ONE), middle, Soon::nothing());
            (&*middle, width)
        } else {
            (dy, kept)
        };
        sum[at.o + channels * layer.channels()..at.o + width * layer.channels()].fill(T::default());
        let x = &self.x[l];
        let seen = if layer.positions { &store.placed } else { x };
        if wanted {
            if queries.step > 1 {
                before.fill(Lanes::zero());
            }
            copy_channels((dy, channels, 1), (before, width, queries.step));
        }
        let (mixed, powers) = (layer.mixed(), layer.features);
        let (size, of_queries) = (n * key, rows.count * key);
        let [de, adjoints] = &mut self.adjoints;
        let (de, adjoints) = (&mut de[..of_queries], &mut adjoints[..3 * n * mixed]);
        let plain = &mut self.plain;
        let head = Head { tokens: n, key: mixed, value: key };
        let mut work = layer.mixer.scalar().map(|_| Workspace::new(&head));
        // Whether a head's queries, keys and values are made of the same channels of the same tokens: what they add to the
        // gradient in those is one sum.
        let together = !layer.positions && powers == 0 && queries == all;
        for h in 0..layer.heads {
            let (dq, rest) = adjoints.split_at_mut(n * mixed);
            let (dk, dv) = rest.split_at_mut(n * mixed);
            let matrices = Matrices::new(layer, width, at, h);
            let [q, k, v, o] = store.head(layer, h, [rows.count, n]);
            let kept = store.weights.len() / layer.heads;
            let kept_weights = &store.weights[h * kept..][..kept];
            let soon = if kept > 0 {
                [Soon::all(v), Soon::seen(kept_weights, Queries { first: 0, step: queries.step }, n)]
            } else {
                [Soon::all(q), Soon::all(k)]
            };
            linear_weights((rows, channels, key), dy, o, (sum, matrices.out), soon[0]);
            linear_adjoint::<T, false>((rows, channels, key), (p, matrices.out), (dy, ONE), de, soon[1]);
            // The next head's outputs.
            let next = &store.o[(h + 1) * of_queries..][..if h + 1 < layer.heads { of_queries } else { 0 }];
            // What becomes of a gradient in queries, keys or values once it is known.
            let mut through = |sum: &mut [T], kind: Kind, d: &mut [Lanes<T>], soon: Soon<'_, T>| {
                let (w, of, made_of, inputs, mixes) = match kind {
                    Kind::Query => (matrices.query, queries, seen, from, Some((q, &store.q_norm, &store.q_plain))),
                    Kind::Key => (matrices.key, all, seen, from, Some((k, &store.k_norm, &store.k_plain))),
                    Kind::Value => (matrices.value, all, x, width, None),
                };
                let mut d = d;
                if let Some((scaled, norms, made_from)) = mixes {
                    if layer.unit {
                        unit_adjoint(mixed, scaled, &norms[h * of.count..], d);
                    }
                    if powers > 0 {
                        let (made_from, to) = (&made_from[h * of.count * key..], &mut plain[..of.count * key]);
                        T::on_lanes(FeaturesAdjoint { key, powers, from: made_from, slopes: d, to: &mut *to });
                        d = to;
                    }
                }
                if kind == Kind::Key && layer.shift {
                    d.copy_within(key.., 0);
                    d[size - key..].fill(Lanes::zero());
                }
                linear_weights((of, key, inputs), d, made_of, (sum, w), soon);
                if wanted && !together {
                    linear_adjoint::<T, true>((of, key, width), (p, w), (d, ONE), before, Soon::nothing());
                }
            };
            if let Some(work) = &mut work {
                prefetch(v);
                let scalar = p[at.scalar + h].exp();
                let into = (&mut *dq, &mut *dk, &mut *dv);
                let slope = match layer.mixer {
                    Mixer::Delta { implicit } => delta_rule::backward(&head, q, k, v, scalar, implicit, de, work, into),
                    mixer => mesa_layer::backward(&head, q, k, v, scalar, T::of(mixer.forget()), de, work, into),
                };
                sum[at.scalar + h] = T::of(scalar.f64() * slope.sum());
            } else {
                let softmax = layer.mixer == Mixer::Softmax;
                let scale = T::of(if softmax { 1.0 / (key as f64).sqrt() } else { 1.0 });
                for causal in Causal::blocks(queries) {
                    let (q, in_outputs) = (&q[causal.place(mixed)], &de[causal.place(key)]);
                    let scores = if kept > 0 {
                        kept_weights
                    } else {
                        weights(&causal, layer, q, k, &mut self.scores, Soon::all(v));
                        &*self.scores
                    };
                    lower(&causal, key, T::of(1.0), (in_outputs, v), &mut self.slopes, Soon::all(k));
                    mix_adjoint(&causal, key, T::of(1.0), (scores, in_outputs), dv, Soon::all(q));
                    if softmax {
                        T::on_lanes(SoftmaxAdjoint { causal: &causal, weights: scores, slopes: &mut self.slopes });
                    }
                    let in_queries = &mut dq[causal.place(mixed)];
                    mix(&causal, mixed, scale, (&self.slopes, k), in_queries, Soon::nothing());
                    mix_adjoint(&causal, mixed, scale, (&self.slopes, q), dk, Soon::nothing());
                }
            }
            through(sum, Kind::Value, dv, Soon::nothing());
            through(sum, Kind::Query, dq, Soon::nothing());
            through(sum, Kind::Key, dk, Soon::all(next));
            if wanted && together {
                let three = Terms { count: 3, tokens: n * mixed, weights: at.k - at.q };
                let (size, w) = ((all, key, width), matrices.query);
                linear_adjoint::<T, true>(size, (p, w), (adjoints, three), before, Soon::nothing());
            }
        }
        std::mem::swap(after, before);
    }
}
