//! The whole kernel transformer (`fgd` section 3), its loss and its gradient as one operation on the dfdx tape.
//!
//! With keys i <= n, queries j <= n+1, heads h and the activation h̃ applied to the scores,
//!
//! ```text
//! S_ij = x_iᵀ B_hᵀ C_h x_j,   H_h = h̃(S),   x_j ← x_j + (1/n) Σ_h A_h Σ_i H_ij x_i,   y_j ← y_j + (1/n) Σ_h r_h Σ_i H_ij y_i.
//! ```
//!
//! The covariates see no label. The residual of the query, \[Z_L\]_{d+1,n+1} + y_{n+1}, is therefore linear in the labels,
//! Σ_i y_i g_i, with
//!
//! ```text
//! g = (I + (1/n) Σ_h r_{0,h} H_{0,h}) … (I + (1/n) Σ_h r_{L-1,h} H_{L-1,h}) e_{n+1}
//! ```
//!
//! (H has n rows of keys; the query's row is 0), and its mean square over labels with covariance K₊ is gᵀ K₊ g. The forward
//! pass takes the covariates up, then g down; the backward pass takes the adjoint of g up, then that of the covariates down.
//! Only the column of the query matters in the last layer. Sixteen prompts go side by side (see [`super::lanes`]). Inner
//! loops count: an adapter that another codegen unit compiles would be a call in each of them.

use std::fmt;
use std::sync::Arc;

use dfdx::prelude::*;
use rayon::prelude::*;

use super::contiguous;
use super::kernel_prompts::{KernelPrompts, Labels, stride};
use super::lanes::{Kernel, LANES, Lanes, Real, Vector, dispatch, exp};
use super::symmetric::packed;
use crate::{Error, Result};

/// Parameters of every layer and head, `[layers, heads, 3d² + 1]`: A, B, C (row-major) and r.
pub type Params<T, Tp = NoneTape> = Tensor<(usize, usize, usize), T, Cpu, Tp>;

type OwnFunction = Arc<dyn Fn(f64) -> (f64, f64) + Send + Sync>;

/// What a head applies to its scores: h̃ of `fgd` section 3.
///
/// ```
/// use incontext::ops::kernel_transformer::Activation;
/// let tanh = Activation::own("tanh", |s| (s.tanh(), 1.0 - s.tanh().powi(2)));
/// assert_eq!(tanh.name(), "tanh");
/// ```
#[derive(Clone)]
pub enum Activation {
    /// S.
    Linear,
    /// max(S, 0).
    Relu,
    /// e^S.
    Exp,
    /// e^{S_ij} / Σ_{k <= n} e^{S_kj}: over the keys of a query.
    Softmax,
    /// A function of each score: see [`Activation::own`].
    Own(OwnActivation),
}

/// A function of the score with its derivative, and its name.
#[derive(Clone)]
pub struct OwnActivation {
    name: String,
    f: OwnFunction,
}

impl Activation {
    /// A function of your own: `f` gives its value and its derivative at a score.
    pub fn own(name: impl Into<String>, f: impl Fn(f64) -> (f64, f64) + Send + Sync + 'static) -> Self {
        Activation::Own(OwnActivation { name: name.into(), f: Arc::new(f) })
    }

    /// Its name, as legends show it.
    pub fn name(&self) -> &str {
        match self {
            Activation::Linear => "linear",
            Activation::Relu => "ReLU",
            Activation::Exp => "exp",
            Activation::Softmax => "softmax",
            Activation::Own(own) => &own.name,
        }
    }
}

impl fmt::Debug for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether the covariates change from layer to layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueBlock {
    /// A_l = 0: functional gradient descent, Theorem 1 of `fgd`.
    Zero,
    /// A_l is free: Theorem 2 of `fgd`.
    Free,
}

/// The scalars for which the op is compiled.
pub trait Fused: Real {
    #[doc(hidden)]
    fn passes(network: &Network<'_, Self>, prompts: &KernelPrompts<Self>, wanted: Wanted) -> Vec<Piece<Self>>;
}

macro_rules! fused {
    ($($t:ty),*) => {$(
        impl Fused for $t {
            fn passes(network: &Network<'_, Self>, prompts: &KernelPrompts<Self>, wanted: Wanted) -> Vec<Piece<Self>> {
                passes(network, prompts, wanted)
            }
        }
    )*};
}
fused!(f32, f64);

/// What the model is, apart from its parameters.
#[derive(Clone, Debug)]
pub struct Heads {
    /// The activation of each head.
    pub activations: Vec<Activation>,
    /// Whether A_l is free.
    pub values: ValueBlock,
}

/// The mean over prompts of the squared residual at the query: over labels with their covariance, or for the sampled
/// labels.
///
/// Differentiable in `params`; the gradient in A is 0 for [`ValueBlock::Zero`]. It is computed along with the loss where
/// there is a tape.
///
/// # Errors
/// [`Error::Shape`] unless `params` is `[layers, heads, 3d² + 1]` with at least one layer, one head for each activation and
/// the prompts' d; [`Error::Invalid`] for d above [`MAX_DIM`].
pub fn kernel_transformer_loss<T: Fused, Tp: Tape<T, Cpu>>(
    heads: &Heads,
    prompts: &KernelPrompts<T>,
    params: Params<T, Tp>,
) -> Result<Tensor<(), T, Cpu, Tp>> {
    let device = params.device().clone();
    let (params, mut tape) = contiguous("parameters", params)?.split_tape();
    let values = params.as_vec();
    let core = Core::new(heads, prompts, *params.shape(), &values)?;
    let wanted = if Tp::OWNS_TAPE { Wanted::Gradient } else { Wanted::Weights };
    let pieces = T::passes(&core.network(heads), prompts, wanted);
    let out = device.tensor(T::of(mean_loss(&pieces, prompts.len())));
    if Tp::OWNS_TAPE {
        let gradient = core.gradient(&values, &mean_of(&pieces, prompts.len(), |p| &p.gradient));
        let output = out.clone();
        tape.add_backward_op(move |gradients| {
            let upstream = gradients.get_or_alloc_mut(&output)?.first().map_or(0.0, |e| e.f64());
            let into = gradients.get_or_alloc_mut(&params)?;
            into.iter_mut().zip(gradient).for_each(|(g, v)| *g += T::of(upstream * v));
            Ok(())
        });
    }
    Ok(out.put_tape(tape))
}

fn mean_loss<T: Real>(pieces: &[Piece<T>], prompts: usize) -> f64 {
    pieces.iter().flat_map(|p| &p.losses).map(Lanes::sum).sum::<f64>() / prompts as f64
}

/// The mean over prompts of what the pieces have a sum of, added up in their order: it does not depend on the number of threads.
fn mean_of<T>(pieces: &[Piece<T>], prompts: usize, of: impl Fn(&Piece<T>) -> &[f64]) -> Vec<f64> {
    let scale = 1.0 / prompts as f64;
    let mut sum = vec![0.0; pieces.first().map_or(0, |p| of(p).len())];
    for piece in pieces {
        sum.iter_mut().zip(of(piece)).for_each(|(s, v)| *s += v * scale);
    }
    sum
}

/// A loss and its gradient, also in those entries of the authors' matrices that are held at 0.
///
/// Their code has whole matrices P, Q and K of (d+1)² entries in the place of blockdiag(A, r), B and C, and sets what is outside the
/// blocks to 0 after every step. There the gradient is odd in the labels: 0 in expectation, but not for sampled ones.
#[derive(Clone, Debug, PartialEq)]
pub struct WholeGradient {
    /// The loss, as [`kernel_transformer_loss`].
    pub loss: f64,
    /// Its gradient in the parameters, `[layers, heads, 3d² + 1]`.
    pub free: Vec<f64>,
    /// Its gradient in the entries held at 0, `[layers, heads, 4d]`: the last row of P and its last column, the last columns of Q
    /// and K, of each the first d entries. (In all others that are held at 0 it is 0.)
    pub held: Vec<f64>,
}

/// The loss for sampled labels and its whole gradient.
///
/// # Errors
/// As [`kernel_transformer_loss`]; [`Error::Invalid`] for prompts with the covariance of their labels.
pub fn kernel_transformer_whole_gradient<T: Fused>(
    heads: &Heads,
    prompts: &KernelPrompts<T>,
    params: &Params<T>,
) -> Result<WholeGradient> {
    if prompts.labels() != Labels::Sampled {
        return Err(Error::invalid("labels of the prompts", "their covariance", "one draw of each: Labels::Sampled"));
    }
    let values = params.as_vec();
    let core = Core::new(heads, prompts, *params.shape(), &values)?;
    let pieces = T::passes(&core.network(heads), prompts, Wanted::WholeGradient);
    let of_core = mean_of(&pieces, prompts.len(), |p| &p.gradient);
    let held = core.held(&values, &mean_of(&pieces, prompts.len(), |p| &p.held));
    Ok(WholeGradient { loss: mean_loss(&pieces, prompts.len()), free: core.gradient(&values, &of_core), held })
}

/// What [`kernel_transformer`] tells of every prompt.
#[derive(Clone, Debug)]
pub struct Residuals {
    /// g, `[batch, n+1]` row-major: the residual is Σ_i y_i g_i; the prediction is minus the part of the examples.
    pub weights: Vec<f64>,
    /// The squared residual, `[batch]`: its mean over labels, or for the sampled labels.
    pub losses: Vec<f64>,
}

/// The residual at the query of every prompt, as a function of its labels, and its square.
///
/// # Errors
/// As [`kernel_transformer_loss`].
pub fn kernel_transformer<T: Fused>(
    heads: &Heads,
    prompts: &KernelPrompts<T>,
    params: &Params<T>,
) -> Result<Residuals> {
    let values = params.as_vec();
    let core = Core::new(heads, prompts, *params.shape(), &values)?;
    let pieces = T::passes(&core.network(heads), prompts, Wanted::Weights);
    let (batch, tokens) = (prompts.len(), prompts.context() + 1);
    let losses = pieces.iter().flat_map(|p| &p.losses).flat_map(|l| l.0.map(|v| v.f64())).take(batch).collect();
    let tiles: Vec<&[Lanes<T>]> = pieces.iter().flat_map(|p| p.weights.chunks(tokens)).collect();
    let weights =
        (0..batch * tokens).map(|k| tiles[k / tokens / LANES][k % tokens].0[k / tokens % LANES].f64()).collect();
    Ok(Residuals { weights, losses })
}

/// The greatest dimension that the op is compiled for.
pub const MAX_DIM: usize = 32;

/// The parameters that the loops read: A/n, Q = BᵀC and r/n of every layer and head.
struct Core<T> {
    layers: usize,
    heads: usize,
    dim: usize,
    context: usize,
    values: Vec<T>,
}

impl<T: Fused> Core<T> {
    fn new(heads: &Heads, prompts: &KernelPrompts<T>, shape: (usize, usize, usize), values: &[T]) -> Result<Self> {
        let (layers, count, width) = shape;
        let (d, n) = (prompts.dim(), prompts.context());
        if d > MAX_DIM {
            return Err(Error::invalid("dimension d of the covariates", d, format!("at most {MAX_DIM}")));
        }
        if layers == 0 || count == 0 || count != heads.activations.len() || width != 3 * d * d + 1 {
            return Err(Error::shape(
                "parameters",
                &[layers, count, width],
                format!("[layers >= 1, {}, 3 d² + 1 = {}]", heads.activations.len(), 3 * d * d + 1),
            ));
        }
        let dd = d * d;
        let scale = 1.0 / n as f64;
        let mut core = Vec::with_capacity(layers * count * (2 * dd + 1));
        for head in values.chunks(width) {
            let (a, b, c) = (&head[..dd], &head[dd..2 * dd], &head[2 * dd..3 * dd]);
            core.extend(a.iter().map(|v| T::of(v.f64() * scale)));
            for i in 0..d {
                for j in 0..d {
                    core.push(T::of((0..d).map(|k| b[k * d + i].f64() * c[k * d + j].f64()).sum()));
                }
            }
            core.push(T::of(head[3 * dd].f64() * scale));
        }
        Ok(Core { layers, heads: count, dim: d, context: n, values: core })
    }

    fn network<'a>(&'a self, heads: &'a Heads) -> Network<'a, T> {
        Network {
            layers: self.layers,
            dim: self.dim,
            activations: &heads.activations,
            moves: heads.values == ValueBlock::Free && self.layers > 1,
            core: &self.values,
        }
    }

    /// The gradient in A, B, C and r from that in A/n, Q and r/n: B̄ = C Q̄ᵀ, C̄ = B Q̄.
    fn gradient(&self, values: &[T], core: &[f64]) -> Vec<f64> {
        let d = self.dim;
        let dd = d * d;
        let scale = 1.0 / self.context as f64;
        let mut out = Vec::with_capacity(values.len());
        for (head, core) in values.chunks(3 * dd + 1).zip(core.chunks(2 * dd + 1)) {
            let (b, c, q) = (&head[dd..2 * dd], &head[2 * dd..3 * dd], &core[dd..2 * dd]);
            out.extend(core[..dd].iter().map(|v| v * scale));
            for i in 0..d {
                out.extend((0..d).map(|j| (0..d).map(|k| c[i * d + k].f64() * q[j * d + k]).sum::<f64>()));
            }
            for i in 0..d {
                out.extend((0..d).map(|j| (0..d).map(|k| b[i * d + k].f64() * q[k * d + j]).sum::<f64>()));
            }
            out.push(core[2 * dd] * scale);
        }
        debug_assert_eq!(out.len(), self.layers * self.heads * (3 * dd + 1));
        out
    }

    /// The gradient in the entries held at 0 from that in P/n and QᵀK: of Q's last column it is C times that in the last row of
    /// QᵀK, of K's B times that in the last column.
    fn held(&self, values: &[T], core: &[f64]) -> Vec<f64> {
        let d = self.dim;
        let dd = d * d;
        let scale = 1.0 / self.context as f64;
        let mut out = Vec::with_capacity(core.len());
        for (head, core) in values.chunks(3 * dd + 1).zip(core.chunks(4 * d)) {
            let (b, c) = (&head[dd..2 * dd], &head[2 * dd..3 * dd]);
            out.extend(core[..2 * d].iter().map(|v| v * scale));
            for (matrix, slope) in [(c, &core[2 * d..3 * d]), (b, &core[3 * d..])] {
                out.extend(matrix.chunks(d).map(|row| row.iter().zip(slope).map(|(m, v)| m.f64() * v).sum::<f64>()));
            }
        }
        out
    }
}

/// What is wanted of the passes.
#[doc(hidden)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// g_0 of every prompt.
    Weights,
    /// The gradient in the parameters.
    Gradient,
    /// That in the entries held at 0 too; labels have to be sampled.
    WholeGradient,
}

/// What the passes read of a model.
#[doc(hidden)]
#[derive(Clone, Copy)]
pub struct Network<'a, T> {
    layers: usize,
    dim: usize,
    activations: &'a [Activation],
    /// Whether covariates change.
    moves: bool,
    core: &'a [T],
}

/// What comes out of some tiles.
#[doc(hidden)]
pub struct Piece<T> {
    losses: Vec<Lanes<T>>,
    weights: Vec<Lanes<T>>,
    gradient: Vec<f64>,
    held: Vec<f64>,
}

/// Tiles in a piece of work: enough to pay for a task and its room, few enough for two threads on a batch of 256.
const TILES: usize = 8;

fn passes<T: Real>(network: &Network<'_, T>, prompts: &KernelPrompts<T>, wanted: Wanted) -> Vec<Piece<T>> {
    let (tokens, labels) = (prompts.context() + 1, prompts.labels());
    let stride = stride(tokens, prompts.dim(), labels);
    prompts
        .tiles()
        .par_chunks(TILES * stride)
        .map(|tiles| dispatch(Pass { network: *network, tokens, labels, tiles, wanted }))
        .collect()
}

struct Pass<'a, T> {
    network: Network<'a, T>,
    tokens: usize,
    labels: Labels,
    tiles: &'a [Lanes<T>],
    wanted: Wanted,
}

impl<T: Real> Kernel<T> for Pass<'_, T> {
    type Output = Piece<T>;
    #[inline(always)]
    fn run<V: Vector<T>>(self) -> Piece<T> {
        if V::ROOM > 4 && self.network.dim == 5 { self.tiles::<V, 5, 5>() } else { self.tiles::<V, 0, MAX_DIM>() }
    }
}

impl<T: Real> Pass<'_, T> {
    /// D is the dimension if it is known when compiling, else 0; R is the room for one covariate.
    #[inline(always)]
    fn tiles<V: Vector<T>, const D: usize, const R: usize>(self) -> Piece<T> {
        let mut state = State::<T, D, R>::new(self.network, self.tokens);
        let stride = stride(self.tokens, self.network.dim, self.labels);
        let (core, wanted) = (self.network.core.len(), self.wanted);
        let mut gradient = vec![Lanes::zero(); if wanted == Wanted::Weights { 0 } else { core }];
        let heads = self.network.layers * self.network.activations.len();
        let mut held =
            vec![Lanes::zero(); if wanted == Wanted::WholeGradient { heads * 4 * self.network.dim } else { 0 }];
        let mut piece = Piece { losses: Vec::new(), weights: Vec::new(), gradient: Vec::new(), held: Vec::new() };
        for tile in self.tiles.chunks(stride) {
            let (x, law) = tile.split_at(self.tokens * self.network.dim);
            state.forward::<V>(x);
            piece.losses.push(state.loss::<V>(law, self.labels));
            match wanted {
                Wanted::Weights => piece.weights.extend_from_slice(&state.g[..self.tokens]),
                Wanted::Gradient => state.backward::<V>(&mut gradient, None),
                Wanted::WholeGradient => {
                    state.slots::<V>(law);
                    state.backward::<V>(&mut gradient, Some(&mut held));
                }
            }
        }
        piece.gradient = gradient.iter().map(Lanes::sum).collect();
        piece.held = held.iter().map(Lanes::sum).collect();
        piece
    }
}

/// What the passes leave of one tile.
struct State<'a, T, const D: usize, const R: usize> {
    network: Network<'a, T>,
    tokens: usize,
    /// The covariates before every layer, `[layers, n+1, d]`; of one layer if they do not move.
    x: Vec<Lanes<T>>,
    /// H of every layer and head, `[layers, heads, n+1, n]`: the keys of a query side by side.
    h: Vec<Lanes<T>>,
    /// Σ_i H_ij x_i of every layer, head and query, `[layers, heads, n+1, d]`.
    m: Vec<Lanes<T>>,
    /// g_l, the residual's weights in terms of the labels before layer l, `[layers + 1, n+1]`; the last is e_{n+1}.
    g: Vec<Lanes<T>>,
    /// Their adjoints.
    d_g: Vec<Lanes<T>>,
    /// Adjoints of the covariates before this layer and after it.
    d_x: Vec<Lanes<T>>,
    d_x_next: Vec<Lanes<T>>,
    /// Adjoint of a column of H, and its scores.
    d_h: Vec<Lanes<T>>,
    scores: Vec<Lanes<T>>,
    /// The label slots before every layer, `[layers, n+1]`, and twice the residual, if the whole gradient is wanted.
    y: Vec<Lanes<T>>,
    slope: Lanes<T>,
}

impl<'a, T: Real, const D: usize, const R: usize> State<'a, T, D, R> {
    fn new(network: Network<'a, T>, tokens: usize) -> Self {
        let (layers, heads, d) = (network.layers, network.activations.len(), network.dim);
        let zeros = |len: usize| vec![Lanes::zero(); len];
        let moving = usize::from(network.moves);
        State {
            network,
            tokens,
            x: zeros((1 + moving * (layers - 1)) * tokens * d),
            h: zeros(layers * heads * tokens * (tokens - 1)),
            m: zeros(moving * layers * heads * tokens * d),
            g: zeros((layers + 1) * tokens),
            d_g: zeros((layers + 1) * tokens),
            d_x: zeros(moving * tokens * d),
            d_x_next: zeros(moving * tokens * d),
            d_h: zeros(tokens - 1),
            scores: zeros(tokens - 1),
            y: zeros(layers * tokens),
            slope: Lanes::zero(),
        }
    }

    #[inline(always)]
    fn d(&self) -> usize {
        if D == 0 { self.network.dim } else { D }
    }

    /// A/n, Q and r/n of head `k` of all.
    #[inline(always)]
    fn core(&self, k: usize) -> (&'a [T], &'a [T], T) {
        let dd = self.d() * self.d();
        let core = &self.network.core[k * (2 * dd + 1)..][..2 * dd + 1];
        (&core[..dd], &core[dd..2 * dd], core[2 * dd])
    }

    /// Where the covariates before layer `l` begin.
    #[inline(always)]
    fn x_at(&self, l: usize) -> usize {
        if self.network.moves { l * self.tokens * self.d() } else { 0 }
    }

    /// The first query that matters in layer `l`: in the last layer, the query alone.
    #[inline(always)]
    fn first(&self, l: usize) -> usize {
        if l + 1 == self.network.layers { self.tokens - 1 } else { 0 }
    }

    #[inline(always)]
    fn forward<V: Vector<T>>(&mut self, x: &[Lanes<T>]) {
        let (d, tokens, layers, heads) = (self.d(), self.tokens, self.network.layers, self.network.activations.len());
        let n = tokens - 1;
        self.x[..tokens * d].copy_from_slice(x);
        for l in 0..layers {
            let moves = self.network.moves && l + 1 < layers;
            let (at, first) = (self.x_at(l), self.first(l));
            if moves {
                self.x.copy_within(at..at + tokens * d, at + tokens * d);
            }
            for head in 0..heads {
                let k = l * heads + head;
                let (a, q, _) = self.core(k);
                let (x, x_next) = self.x[at..].split_at_mut(tokens * d);
                for j in first..tokens {
                    let w = times::<T, V, D, R>(d, q, &load::<T, V, R>(&x[j * d..][..d]));
                    let h = &mut self.h[(k * tokens + j) * n..][..n];
                    scores::<T, V, D, R>(d, x, &w, h);
                    activate::<T, V>(&self.network.activations[head], h);
                    if moves {
                        let mut m = [V::splat(T::default()); R];
                        for i in 0..n {
                            let (h, x) = (V::load(&h[i]), &x[i * d..][..d]);
                            for k in 0..d {
                                m[k] = m[k].add_mul(h, V::load(&x[k]));
                            }
                        }
                        let moved = times::<T, V, D, R>(d, a, &m);
                        let next = &mut x_next[j * d..][..d];
                        let kept = &mut self.m[(k * tokens + j) * d..][..d];
                        for k in 0..d {
                            m[k].store(&mut kept[k]);
                            V::load(&next[k]).add(moved[k]).store(&mut next[k]);
                        }
                    }
                }
            }
        }
        self.g[layers * tokens..].fill(Lanes::zero());
        self.g[layers * tokens + n] = Lanes::splat(T::of(1.0));
        for l in (0..layers).rev() {
            let first = self.first(l);
            let (now, next) = self.g[l * tokens..].split_at_mut(tokens);
            now.copy_from_slice(&next[..tokens]);
            for head in 0..heads {
                let k = l * heads + head;
                let dd = d * d;
                let r = V::splat(self.network.core[k * (2 * dd + 1) + 2 * dd]);
                for (j, next) in next[..tokens].iter().enumerate().skip(first) {
                    let scale = r.mul(V::load(next));
                    let h = &self.h[(k * tokens + j) * n..][..n];
                    for i in 0..n {
                        V::load(&now[i]).add_mul(scale, V::load(&h[i])).store(&mut now[i]);
                    }
                }
            }
        }
    }

    /// The squared residual, and the adjoint of g_0.
    #[inline(always)]
    fn loss<V: Vector<T>>(&mut self, law: &[Lanes<T>], labels: Labels) -> Lanes<T> {
        let tokens = self.tokens;
        let (g, d_g) = (&self.g[..tokens], &mut self.d_g[..tokens]);
        let two = V::splat(T::of(2.0));
        let mut loss = V::splat(T::default());
        match labels {
            Labels::Covariance => {
                for i in 0..tokens {
                    let mut sum = V::splat(T::default());
                    for j in 0..tokens {
                        sum = sum.add_mul(V::load(&law[packed(i.max(j), i.min(j))]), V::load(&g[j]));
                    }
                    loss = loss.add_mul(sum, V::load(&g[i]));
                    sum.mul(two).store(&mut d_g[i]);
                }
            }
            Labels::Sampled => {
                let mut residual = V::splat(T::default());
                for (y, g) in law.iter().zip(g) {
                    residual = residual.add_mul(V::load(y), V::load(g));
                }
                for (y, d_g) in law.iter().zip(d_g) {
                    residual.mul(two).mul(V::load(y)).store(d_g);
                }
                loss = residual.mul(residual);
            }
        }
        let mut out = Lanes::zero();
        loss.store(&mut out);
        out
    }

    /// The label slots of sampled labels before every layer, the query's 0 before the first, and the residual.
    #[inline(always)]
    fn slots<V: Vector<T>>(&mut self, labels: &[Lanes<T>]) {
        let (tokens, layers, heads) = (self.tokens, self.network.layers, self.network.activations.len());
        let (n, width) = (tokens - 1, 2 * self.d() * self.d() + 1);
        self.y[..n].copy_from_slice(&labels[..n]);
        self.y[n] = Lanes::zero();
        for l in 0..layers - 1 {
            let (now, next) = self.y[l * tokens..].split_at_mut(tokens);
            let next = &mut next[..tokens];
            next.copy_from_slice(now);
            for k in l * heads..(l + 1) * heads {
                let r = V::splat(self.network.core[k * width + width - 1]);
                for (j, next) in next.iter_mut().enumerate() {
                    let sum = inner::<T, V>(&self.h[(k * tokens + j) * n..][..n], now);
                    V::load(next).add_mul(r, sum).store(next);
                }
            }
        }
        let residual = inner::<T, V>(labels, &self.g[..tokens]);
        residual.add(residual).store(&mut self.slope);
    }

    /// Adds the gradient of this tile in the core parameters to `gradient`, and that in the entries held at 0 (of P/n and QᵀK) to
    /// `held`, for which [`State::slots`] has to be known.
    #[inline(always)]
    fn backward<V: Vector<T>>(&mut self, gradient: &mut [Lanes<T>], mut held: Option<&mut [Lanes<T>]>) {
        let (d, tokens, layers, heads) = (self.d(), self.tokens, self.network.layers, self.network.activations.len());
        let (n, dd) = (tokens - 1, d * d);
        let width = 2 * dd + 1;
        for l in 0..layers {
            let first = self.first(l);
            let (now, next) = self.d_g[l * tokens..].split_at_mut(tokens);
            let next = &mut next[..tokens];
            next.copy_from_slice(now);
            let g_next = &self.g[(l + 1) * tokens..][..tokens];
            for head in 0..heads {
                let k = l * heads + head;
                let r = V::splat(self.network.core[k * width + 2 * dd]);
                let into = &mut gradient[k * width + 2 * dd];
                let mut d_r = V::load(into);
                for j in first..tokens {
                    let mut sum = V::splat(T::default());
                    let h = &self.h[(k * tokens + j) * n..][..n];
                    for i in 0..n {
                        sum = sum.add_mul(V::load(&h[i]), V::load(&now[i]));
                    }
                    V::load(&next[j]).add_mul(r, sum).store(&mut next[j]);
                    d_r = d_r.add_mul(sum, V::load(&g_next[j]));
                }
                d_r.store(into);
            }
        }
        for l in (0..layers).rev() {
            let first = self.first(l);
            // Whether something flows back through the covariates after this layer, and to those before it.
            let moves = self.network.moves && l + 1 < layers;
            let inside = self.network.moves && l > 0;
            if inside {
                if moves {
                    self.d_x.copy_from_slice(&self.d_x_next);
                } else {
                    self.d_x.fill(Lanes::zero());
                }
            }
            let x = &self.x[self.x_at(l)..][..tokens * d];
            let d_g = &self.d_g[l * tokens..][..n];
            let g_next = &self.g[(l + 1) * tokens..][..tokens];
            for head in 0..heads {
                let k = l * heads + head;
                let (a, q, r) = self.core(k);
                let (d_a, d_q) = gradient[k * width..][..2 * dd].split_at_mut(dd);
                for j in first..tokens {
                    let x_j = load::<T, V, R>(&x[j * d..][..d]);
                    let w = times::<T, V, D, R>(d, q, &x_j);
                    let mut t = [V::splat(T::default()); R];
                    if moves {
                        let up = load::<T, V, R>(&self.d_x_next[j * d..][..d]);
                        t = transposed_times::<T, V, D, R>(d, a, &up);
                        let m = load::<T, V, R>(&self.m[(k * tokens + j) * d..][..d]);
                        add_outer::<T, V, D, R>(d, &up, &m, d_a);
                    }
                    let h = &self.h[(k * tokens + j) * n..][..n];
                    let scale = V::splat(r).mul(V::load(&g_next[j]));
                    let d_h = &mut self.d_h[..n];
                    for i in 0..n {
                        let mut sum = scale.mul(V::load(&d_g[i]));
                        if moves {
                            let x = &x[i * d..][..d];
                            for k in 0..d {
                                sum = sum.add_mul(V::load(&x[k]), t[k]);
                            }
                        }
                        sum.store(&mut d_h[i]);
                    }
                    if let Activation::Own(_) = self.network.activations[head] {
                        scores::<T, V, D, R>(d, x, &w, &mut self.scores);
                    }
                    pull_back::<T, V>(&self.network.activations[head], h, &self.scores, d_h);
                    let mut d_w = [V::splat(T::default()); R];
                    for i in 0..n {
                        let (d_s, x) = (V::load(&d_h[i]), &x[i * d..][..d]);
                        for k in 0..d {
                            d_w[k] = d_w[k].add_mul(d_s, V::load(&x[k]));
                        }
                        if inside {
                            let h = V::load(&h[i]);
                            let d_x = &mut self.d_x[i * d..][..d];
                            for k in 0..d {
                                V::load(&d_x[k]).add_mul(d_s, w[k]).add_mul(h, t[k]).store(&mut d_x[k]);
                            }
                        }
                    }
                    add_outer::<T, V, D, R>(d, &d_w, &x_j, d_q);
                    if let Some(held) = &mut held {
                        let y = &self.y[l * tokens..][..tokens];
                        let (h_y, s_y) = (inner::<T, V>(h, &y[..n]), inner::<T, V>(d_h, &y[..n]));
                        let d_y = V::load(&self.slope).mul(V::load(&g_next[j]));
                        let (row, rest) = held[k * 4 * d..][..4 * d].split_at_mut(d);
                        let (column, rest) = rest.split_at_mut(d);
                        let (queries, keys) = rest.split_at_mut(d);
                        for c in 0..d {
                            let mut h_x = V::splat(T::default());
                            for i in 0..n {
                                h_x = h_x.add_mul(V::load(&h[i]), V::load(&x[i * d + c]));
                            }
                            V::load(&row[c]).add_mul(d_y, h_x).store(&mut row[c]);
                            if moves {
                                let up = V::load(&self.d_x_next[j * d + c]);
                                V::load(&column[c]).add_mul(up, h_y).store(&mut column[c]);
                            }
                            V::load(&queries[c]).add_mul(s_y, x_j[c]).store(&mut queries[c]);
                            V::load(&keys[c]).add_mul(d_w[c], V::load(&y[j])).store(&mut keys[c]);
                        }
                    }
                    if inside {
                        let back = transposed_times::<T, V, D, R>(d, q, &d_w);
                        let d_x = &mut self.d_x[j * d..][..d];
                        for k in 0..d {
                            V::load(&d_x[k]).add(back[k]).store(&mut d_x[k]);
                        }
                    }
                }
            }
            if inside {
                std::mem::swap(&mut self.d_x, &mut self.d_x_next);
            }
        }
    }
}

#[inline(always)]
fn inner<T: Real, V: Vector<T>>(a: &[Lanes<T>], b: &[Lanes<T>]) -> V {
    let mut sum = V::splat(T::default());
    for (a, b) in a.iter().zip(b) {
        sum = sum.add_mul(V::load(a), V::load(b));
    }
    sum
}

#[inline(always)]
fn load<T: Real, V: Vector<T>, const R: usize>(x: &[Lanes<T>]) -> [V; R] {
    let mut out = [V::splat(T::default()); R];
    for k in 0..x.len() {
        out[k] = V::load(&x[k]);
    }
    out
}

/// A shared d x d matrix times a vector.
#[inline(always)]
fn times<T: Real, V: Vector<T>, const D: usize, const R: usize>(d: usize, a: &[T], x: &[V; R]) -> [V; R] {
    let d = if D == 0 { d } else { D };
    let mut out = [V::splat(T::default()); R];
    for i in 0..d {
        for k in 0..d {
            out[i] = out[i].add_mul(V::splat(a[i * d + k]), x[k]);
        }
    }
    out
}

/// The transpose of a shared d x d matrix times a vector.
#[inline(always)]
fn transposed_times<T: Real, V: Vector<T>, const D: usize, const R: usize>(d: usize, a: &[T], x: &[V; R]) -> [V; R] {
    let d = if D == 0 { d } else { D };
    let mut out = [V::splat(T::default()); R];
    for i in 0..d {
        for k in 0..d {
            out[k] = out[k].add_mul(V::splat(a[i * d + k]), x[i]);
        }
    }
    out
}

/// `into += u vᵀ`.
#[inline(always)]
fn add_outer<T: Real, V: Vector<T>, const D: usize, const R: usize>(
    d: usize,
    u: &[V; R],
    v: &[V; R],
    into: &mut [Lanes<T>],
) {
    let d = if D == 0 { d } else { D };
    for i in 0..d {
        for k in 0..d {
            let into = &mut into[i * d + k];
            V::load(into).add_mul(u[i], v[k]).store(into);
        }
    }
}

/// S_ij = ⟨x_i, w⟩ of every key i.
#[inline(always)]
fn scores<T: Real, V: Vector<T>, const D: usize, const R: usize>(
    d: usize,
    x: &[Lanes<T>],
    w: &[V; R],
    s: &mut [Lanes<T>],
) {
    let d = if D == 0 { d } else { D };
    for i in 0..s.len() {
        let x = &x[i * d..][..d];
        let mut sum = V::splat(T::default());
        for k in 0..d {
            sum = sum.add_mul(V::load(&x[k]), w[k]);
        }
        sum.store(&mut s[i]);
    }
}

/// The scores of a query to its column of H, in place.
#[inline(always)]
fn activate<T: Real, V: Vector<T>>(activation: &Activation, s: &mut [Lanes<T>]) {
    match activation {
        Activation::Linear => {}
        Activation::Relu => {
            for s in s {
                let v = V::load(s);
                v.where_positive(v).store(s);
            }
        }
        Activation::Exp => {
            for s in s {
                exp::<T, V>(V::load(s)).store(s);
            }
        }
        Activation::Softmax => {
            let mut most = V::load(&s[0]);
            for s in &s[1..] {
                most = most.max(V::load(s));
            }
            let mut sum = V::splat(T::default());
            for s in &mut *s {
                let v = exp::<T, V>(V::load(s).sub(most));
                sum = sum.add(v);
                v.store(s);
            }
            let share = V::splat(T::of(1.0)).div(sum);
            for s in s {
                V::load(s).mul(share).store(s);
            }
        }
        Activation::Own(own) => {
            for s in s {
                *s = Lanes(s.0.map(|v| T::of((own.f)(v.f64()).0)));
            }
        }
    }
}

/// The adjoint of a column of H to that of its scores, in place; `scores` are read for an activation of the user's own.
#[inline(always)]
fn pull_back<T: Real, V: Vector<T>>(
    activation: &Activation,
    h: &[Lanes<T>],
    scores: &[Lanes<T>],
    d_h: &mut [Lanes<T>],
) {
    match activation {
        Activation::Linear => {}
        Activation::Relu => {
            for i in 0..d_h.len() {
                V::load(&h[i]).where_positive(V::load(&d_h[i])).store(&mut d_h[i]);
            }
        }
        Activation::Exp => {
            for i in 0..d_h.len() {
                V::load(&h[i]).mul(V::load(&d_h[i])).store(&mut d_h[i]);
            }
        }
        Activation::Softmax => {
            let mut mean = V::splat(T::default());
            for i in 0..d_h.len() {
                mean = mean.add_mul(V::load(&h[i]), V::load(&d_h[i]));
            }
            for i in 0..d_h.len() {
                V::load(&h[i]).mul(V::load(&d_h[i]).sub(mean)).store(&mut d_h[i]);
            }
        }
        Activation::Own(own) => {
            for (d, s) in d_h.iter_mut().zip(scores) {
                for (d, s) in d.0.iter_mut().zip(&s.0) {
                    *d = T::of(d.f64() * (own.f)(s.f64()).1);
                }
            }
        }
    }
}
