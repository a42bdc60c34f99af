//! The parts of a transformer as ops of their own on dfdx's tape, for networks that are no [`Architecture`]: attention,
//! affine layers, layer norm and GELU, in `f32`.
//!
//! They are made of the kernels that whole models run on, and like there the backward pass computes the forward one anew
//! where that costs less than keeping what it made. Results do not depend on the number of threads: heads and rows are
//! independent of each other, and sums over rows are made in parts of fixed size. Of one prompt, heads run side by side.
//!
//! What has several of these parts is an op already, [`sequence::on_tape`] of a model with one layer: a block of GPT-2 with
//! the final layer norm behind it is [`Gpt2Config`] with one layer, `read: false` and `positions: Positions::None`, an LSTM
//! layer between read-in and read-out [`LstmConfig`]; read-in and read-out alone are [`affine`]. Where layers follow one
//! another, the model is faster than its parts: it folds layer norm's affine map into the next layer and keeps a few
//! prompts in the cache through all of them.
//!
//! [`Architecture`]: super::sequence::Architecture
//! [`sequence::on_tape`]: super::sequence::on_tape
//! [`Gpt2Config`]: super::gpt2::Gpt2Config
//! [`LstmConfig`]: super::lstm::LstmConfig

use dfdx::prelude::{
    Cpu, CpuError, Gradients, HasShape, Merge, NoneTape, PutTape, Shape, SplitTape, Tape, Tensor, TensorFromVec,
};
use rayon::prelude::*;

use super::affine::{Affine, Places, Sizes, spread_rows, stride};
use super::attention::{Attention, Heads, MARGIN};
use super::contiguous;
use super::layer_norm::{Rows, normalise, normalise_backward};
use super::memory::{Arena, Buffer};
use super::sequence::{PARTS, Tokens, sum_in_order};
use super::simd::WIDTH;
use crate::error::array_len;
use crate::{Error, Result};

/// A row of entries for each token: `[rows, entries]`; or weights, `[in, out]`.
pub type Matrix<T = NoneTape> = Tensor<(usize, usize), f32, Cpu, T>;
/// Biases or gains, `[entries]`.
pub type Vector<T = NoneTape> = Tensor<(usize,), f32, Cpu, T>;

/// Rows that are worked on together: work for a thread, and few enough to stay in its cache.
const ROWS: usize = 64;
/// Entries that are, of an op that knows no rows: whole vectors.
const PIECE: usize = 1 << 14;

/// Multi-head attention (Vaswani et al., 2017) in any [`Attention`] form: of queries, keys and values
/// `[batch, tokens, 3 heads key]`, in this order and in each of them one head after the other, the heads' outputs
/// `[batch, tokens, heads key]`.
///
/// ```
/// use dfdx::prelude::*;
/// use incontext::ops::attention::Attention;
/// use incontext::ops::layers::attention;
/// // Both keys are equal: the second token has the mean of the two values.
/// let qkv = Cpu::default().tensor_from_vec(vec![1.0, 2.0, 3.0, 4.0, 2.0, 5.0], (1, 2, 3));
/// let out = attention(qkv.leaky_trace(), 1, 1, Attention::default())?;
/// assert_eq!(out.as_vec(), [3.0, 4.0]);
/// assert_eq!(out.sum().backward().get(&qkv).as_vec()[2], 1.5);
/// # Ok::<(), incontext::Error>(())
/// ```
///
/// # Errors
/// [`Error::Invalid`] without heads or keys, or for more tokens than memory; [`Error::Shape`] for an array that is empty or
/// not of this shape.
pub fn attention<T: Tape<f32, Cpu>>(qkv: Tokens<T>, heads: usize, key: usize, form: Attention) -> Result<Tokens<T>> {
    const WHAT: &str = "queries, keys and values";
    let (batch, tokens, width) = *qkv.shape();
    for (what, size) in [("heads", heads), ("size of keys", key)] {
        if size == 0 {
            return Err(Error::invalid(what, 0, "at least 1"));
        }
    }
    let fits = heads.checked_mul(key).and_then(|inner| inner.checked_mul(3)) == Some(width);
    if batch == 0 || tokens == 0 || !fits {
        let expected = format!("[batch >= 1, tokens >= 1, 3 x {heads} heads x {key}]");
        return Err(Error::shape(WHAT, &[batch, tokens, width], expected));
    }
    array_len::<f32>(WHAT, &[batch, tokens, width])?;
    // More than a head's workspace.
    let row = tokens.saturating_mul(2).saturating_add(key.saturating_add(WIDTH).saturating_mul(16));
    array_len::<f32>("weights of a head", &[tokens.saturating_add(WIDTH), row])?;
    let split = SplitHeads::new(form, tokens, heads, key);
    let (qkv, mut tape) = contiguous(WHAT, qkv)?.split_tape();
    let values = qkv.as_vec();
    let out = tensor("heads' outputs", split.forward(&values), (batch, tokens, heads * key))?;
    let output = out.clone();
    tape.add_backward_op(move |gradients| {
        let e = gradients.get_or_alloc_mut(&output)?.to_vec();
        split.backward(&values, &e, gradients.get_or_alloc_mut(&qkv)?);
        Ok(())
    });
    Ok(out.put_tape(tape))
}

/// Attention with every head of every prompt on its own.
struct SplitHeads {
    /// One head, in rows of its own: `[3, key]` and `[key]`, so far apart.
    head: Heads,
    rows: [usize; 2],
    tokens: usize,
    heads: usize,
    key: usize,
}

impl SplitHeads {
    fn new(form: Attention, tokens: usize, heads: usize, key: usize) -> Self {
        let rows = [stride(3 * key), stride(key)];
        SplitHeads { head: Heads::new(form, tokens, 1, key, rows[0], rows[1]), rows, tokens, heads, key }
    }

    /// Floats of a head's working memory in either pass.
    fn workspace(&self) -> usize {
        let lens = [
            self.tokens * self.rows[0],
            self.head.weights_len(),
            self.tokens * self.rows[1],
            self.head.scratch_len(),
            self.tokens * self.rows[0],
        ];
        lens.map(|len| len.next_multiple_of(WIDTH) + MARGIN).iter().sum()
    }

    /// Head `piece % heads` of prompt `piece / heads`, from `[batch, tokens, parts, heads, key]` to rows `row` apart.
    fn gather(&self, piece: usize, parts: usize, all: &[f32], to: &mut [f32], row: usize) {
        let (inner, at) = (self.heads * self.key, piece % self.heads * self.key);
        let size = self.tokens * parts * inner;
        let prompt = &all[piece / self.heads * size..][..size];
        for (to, from) in to.chunks_exact_mut(row).zip(prompt.chunks_exact(parts * inner)) {
            for (to, from) in to.chunks_exact_mut(self.key).zip(from.chunks_exact(inner)) {
                to.copy_from_slice(&from[at..][..self.key]);
            }
        }
    }

    /// Adds `[batch, heads, tokens, parts, key]` to `[batch, tokens, parts, heads, key]`.
    fn scatter(&self, parts: usize, by_head: &[f32], all: &mut [f32]) {
        let row = self.heads * parts * self.key;
        all.par_chunks_mut(row).enumerate().with_min_len(ROWS).for_each(|(token, to)| {
            let (prompt, token) = (token / self.tokens, token % self.tokens);
            for (k, to) in to.chunks_exact_mut(self.key).enumerate() {
                let (part, head) = (k / self.heads, k % self.heads);
                let at = ((prompt * self.heads + head) * self.tokens + token) * parts + part;
                to.iter_mut().zip(&by_head[at * self.key..]).for_each(|(to, v)| *to += v);
            }
        });
    }

    /// A piece's queries, keys and values, its weights and its output, and memory that is left.
    fn run<'a>(&self, piece: usize, qkv: &[f32], arena: &mut Arena<'a>) -> [&'a mut [f32]; 4] {
        let own = arena.take(self.tokens * self.rows[0]);
        // No longer than a head's: the kernel takes what is left for another head's.
        let weights = &mut arena.take(self.head.weights_len())[..self.head.weights_len()];
        let out = arena.take(self.tokens * self.rows[1]);
        let scratch = arena.take(self.head.scratch_len());
        self.gather(piece, 3, qkv, own, self.rows[0]);
        self.head.forward(own, weights, out, scratch);
        [own, weights, out, scratch]
    }

    fn forward(&self, qkv: &[f32]) -> Vec<f32> {
        let mut by_head = vec![0.0; qkv.len() / 3];
        let pieces = by_head.par_chunks_mut(self.tokens * self.key).enumerate();
        pieces.for_each_init(
            || Buffer::take(self.workspace()),
            |memory, (piece, to)| {
                let [.., out, _] = self.run(piece, qkv, &mut Arena(memory.as_mut()));
                pack_rows(out, self.rows[1], to, self.key);
            },
        );
        let mut all = vec![0.0; by_head.len()];
        self.scatter(1, &by_head, &mut all);
        all
    }

    /// Adds to `d_qkv` the gradient for that in the outputs, `e`.
    fn backward(&self, qkv: &[f32], e: &[f32], d_qkv: &mut [f32]) {
        let mut by_head = vec![0.0; qkv.len()];
        let pieces = by_head.par_chunks_mut(3 * self.tokens * self.key).enumerate();
        pieces.for_each_init(
            || Buffer::take(self.workspace()),
            |memory, (piece, to)| {
                let mut arena = Arena(memory.as_mut());
                // Where the output was, its gradient goes.
                let [own, weights, d_out, scratch] = self.run(piece, qkv, &mut arena);
                let d_own = arena.take(self.tokens * self.rows[0]);
                self.gather(piece, 1, e, d_out, self.rows[1]);
                self.head.backward(own, weights, d_out, d_own, scratch);
                pack_rows(d_own, self.rows[0], to, 3 * self.key);
            },
        );
        self.scatter(3, &by_head, d_qkv);
    }
}

/// An affine layer, x W + b, of x `[rows, in]`, W `[in, out]` and b `[out]`; `[rows, out]`.
///
/// ```
/// use dfdx::prelude::*;
/// use incontext::ops::layers::affine;
/// let dev = Cpu::default();
/// let x = dev.tensor_from_vec(vec![1.0, 2.0], (1, 2));
/// let w = dev.tensor_from_vec(vec![1.0, 10.0, 2.0, 20.0], (2, 2));
/// let y = affine(x.leaky_trace(), w.leaky_trace(), dev.tensor_from_vec(vec![0.5, 0.0], (2,)))?;
/// assert_eq!(y.as_vec(), [5.5, 50.0]);
/// assert_eq!(y.sum().backward().get(&w).as_vec(), [1.0, 1.0, 2.0, 2.0]);
/// # Ok::<(), incontext::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] unless the shapes fit and have no 0; [`Error::Invalid`] if there is no memory for the result.
pub fn affine<Tx, Tw: Tape<f32, Cpu>, Tb: Tape<f32, Cpu>>(
    x: Matrix<Tx>,
    w: Matrix<Tw>,
    b: Vector<Tb>,
) -> Result<Matrix<Tx>>
where
    Tx: Tape<f32, Cpu> + Merge<Tw> + Merge<Tb>,
{
    let (rows, inputs) = some_rows(&x)?;
    let (weights_in, outputs) = *w.shape();
    if weights_in != inputs || outputs == 0 {
        return Err(Error::shape("weights", &[weights_in, outputs], format!("[{inputs}, out >= 1]")));
    }
    if *b.shape() != (outputs,) {
        return Err(Error::shape("biases", &[b.shape().0], format!("[{outputs}]")));
    }
    // Weights are laid out twice, in whole panels both times.
    array_len::<f32>("weights", &[2, inputs.saturating_add(MARGIN), outputs.saturating_add(MARGIN)])?;
    array_len::<f32>("outputs", &[rows, outputs])?;
    let (x, tape_x) = contiguous("x", x)?.split_tape();
    let (w, tape_w) = contiguous("weights", w)?.split_tape();
    let (b, tape_b) = contiguous("biases", b)?.split_tape();
    let mut tape = tape_x.merge(tape_w).merge(tape_b);
    let places = Places { weight: 0..inputs * outputs, bias: inputs * outputs..(inputs + 1) * outputs };
    let mut sizes = Sizes::default();
    let layer = Affine::new(&mut sizes, inputs, outputs, &places, &Places::default(), false);
    let (xs, params) = (x.as_vec(), [w.as_vec(), b.as_vec()].concat());
    let mut prepared = Buffer::take(sizes.prepared);
    layer.prepare(&params, prepared.as_mut());
    let [padded_in, padded_out] = [inputs, outputs].map(stride);
    let mut y = vec![0.0; rows * outputs];
    y.par_chunks_mut(ROWS * outputs).zip(xs.par_chunks(ROWS * inputs)).for_each(|(y, x)| {
        let mut padded = Buffer::take(ROWS * padded_out);
        layer.forward(prepared.as_ref(), x.len() / inputs, (x, inputs), (padded.as_mut(), padded_out), false);
        pack_rows(padded.as_ref(), padded_out, y, outputs);
    });
    let out = tensor("outputs", y, (rows, outputs))?;
    let output = out.clone();
    tape.add_backward_op(move |gradients| {
        let e = gradients.get_or_alloc_mut(&output)?.to_vec();
        let mut dx = vec![0.0; xs.len()];
        let sums = sums_over_rows([inputs, outputs], &xs, &e, &mut dx, sizes.gradient(), |x, e, dx, sums, add| {
            let rows = x.len() / inputs;
            let mut dy = Buffer::take(ROWS * padded_out);
            let mut padded = Buffer::take(ROWS * padded_in);
            spread_rows(e, outputs, dy.as_mut(), padded_out);
            layer.gradient(sums, rows, (x, inputs), (dy.as_ref(), padded_out), add);
            layer.backward(prepared.as_ref(), rows, (dy.as_ref(), padded_out), (padded.as_mut(), padded_in));
            pack_rows(padded.as_ref(), padded_in, dx, inputs);
        });
        let mut in_params = vec![0.0; params.len()];
        let (in_w, in_b) = in_params.split_at_mut(inputs * outputs);
        layer.unfold(&params, sums.as_ref(), [&mut *in_w, &mut *in_b, &mut [], &mut []]);
        add_to(gradients, &x, &dx)?;
        add_to(gradients, &w, in_w)?;
        add_to(gradients, &b, in_b)
    });
    Ok(out.put_tape(tape))
}

/// Layer norm (Ba et al., 2016) of x `[rows, width]`: every row is brought to mean 0 and variance 1, 1e-5 being added to the
/// variance, then multiplied by γ `[width]`, and β `[width]` is added.
///
/// ```
/// use dfdx::prelude::*;
/// use incontext::ops::layers::layer_norm;
/// let dev = Cpu::default();
/// let x = dev.tensor_from_vec(vec![1.0, 3.0, 5.0, 5.0], (2, 2));
/// let gamma = dev.tensor_from_vec(vec![2.0, 2.0], (2,));
/// let beta = dev.tensor_from_vec(vec![0.0, 1.0], (2,));
/// let y = layer_norm(x.leaky_trace(), gamma, beta.leaky_trace())?;
/// assert!((y.as_vec()[0] + 2.0).abs() < 1e-4 && y.as_vec()[2..] == [0.0, 1.0]);
/// assert_eq!(y.sum().backward().get(&beta).as_vec(), [2.0, 2.0]);
/// # Ok::<(), incontext::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] unless γ and β have an entry for each column and there are rows and columns.
pub fn layer_norm<Tx, Tg: Tape<f32, Cpu>, Tb: Tape<f32, Cpu>>(
    x: Matrix<Tx>,
    gamma: Vector<Tg>,
    beta: Vector<Tb>,
) -> Result<Matrix<Tx>>
where
    Tx: Tape<f32, Cpu> + Merge<Tg> + Merge<Tb>,
{
    let (rows, width) = some_rows(&x)?;
    for (name, (len,)) in [("gamma", *gamma.shape()), ("beta", *beta.shape())] {
        if len != width {
            return Err(Error::shape(name, &[len], format!("[{width}]")));
        }
    }
    let (x, tape_x) = contiguous("x", x)?.split_tape();
    let (gamma, tape_g) = contiguous("gamma", gamma)?.split_tape();
    let (beta, tape_b) = contiguous("beta", beta)?.split_tape();
    let mut tape = tape_x.merge(tape_g).merge(tape_b);
    let (xs, gains, shifts) = (x.as_vec(), gamma.as_vec(), beta.as_vec());
    let padded = Rows { width, stride: stride(width) };
    let normalised = move |x: &[f32]| {
        let (mut spread, mut normalised) = (Buffer::take(ROWS * padded.stride), Buffer::take(ROWS * padded.stride));
        let (mut scale, len) = ([0.0; ROWS], x.len() / width * padded.stride);
        spread_rows(x, width, spread.as_mut(), padded.stride);
        normalise(padded, &spread.as_ref()[..len], normalised.as_mut(), &mut scale);
        // What was spread is not needed any more: room for what the backward pass makes.
        (normalised, scale, spread)
    };
    let mut y = vec![0.0; xs.len()];
    y.par_chunks_mut(ROWS * width).zip(xs.par_chunks(ROWS * width)).for_each(|(y, x)| {
        let (normalised, ..) = normalised(x);
        for (y, x) in y.chunks_exact_mut(width).zip(normalised.as_ref().chunks_exact(padded.stride)) {
            (0..width).for_each(|c| y[c] = gains[c] * x[c] + shifts[c]);
        }
    });
    let out = tensor("outputs", y, (rows, width))?;
    let output = out.clone();
    tape.add_backward_op(move |gradients| {
        let e = gradients.get_or_alloc_mut(&output)?.to_vec();
        let mut dx = vec![0.0; xs.len()];
        let sums = sums_over_rows([width; 2], &xs, &e, &mut dx, 2 * width, |x, e, dx, sums, add| {
            let (normalised, scale, mut d) = normalised(x);
            if !add {
                sums.fill(0.0);
            }
            let (in_gamma, in_beta) = sums.split_at_mut(width);
            let rows = normalised.as_ref().chunks_exact(padded.stride).zip(d.as_mut().chunks_exact_mut(padded.stride));
            for (e, (x, d)) in e.chunks_exact(width).zip(rows) {
                for c in 0..width {
                    in_gamma[c] += e[c] * x[c];
                    in_beta[c] += e[c];
                    d[c] = e[c] * gains[c];
                }
            }
            let len = x.len() / width * padded.stride;
            let mut in_x = Buffer::take(len);
            in_x.as_mut().fill(0.0);
            normalise_backward(padded, normalised.as_ref(), &scale, &d.as_ref()[..len], in_x.as_mut());
            pack_rows(in_x.as_ref(), padded.stride, dx, width);
        });
        let (in_gamma, in_beta) = sums.as_ref().split_at(width);
        add_to(gradients, &x, &dx)?;
        add_to(gradients, &gamma, in_gamma)?;
        add_to(gradients, &beta, in_beta)
    });
    Ok(out.put_tape(tape))
}

/// GELU (Hendrycks and Gimpel, 2016) in the tanh form of GPT-2 of every entry of x `[rows, width]`:
/// x (1 + tanh(sqrt(2/π) (x + 0.044715 x³))) / 2.
///
/// ```
/// use dfdx::prelude::*;
/// use incontext::ops::layers::gelu;
/// let x = Cpu::default().tensor_from_vec(vec![0.0, 1.0, -9.0], (1, 3));
/// let y = gelu(x.leaky_trace())?;
/// assert!((y.as_vec()[1] - 0.841192).abs() < 1e-6 && y.as_vec()[2].abs() < 1e-6);
/// assert_eq!(y.sum().backward().get(&x).as_vec()[0], 0.5);
/// # Ok::<(), incontext::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] if there is no entry.
pub fn gelu<T: Tape<f32, Cpu>>(x: Matrix<T>) -> Result<Matrix<T>> {
    let shape = some_rows(&x)?;
    let (x, mut tape) = contiguous("x", x)?.split_tape();
    let mut y = x.as_vec();
    let len = y.len();
    // The last piece too has whole vectors.
    y.resize(len.next_multiple_of(WIDTH), 0.0);
    let mut slope = vec![0.0; y.len()];
    y.par_chunks_mut(PIECE).zip(slope.par_chunks_mut(PIECE)).for_each(|(y, slope)| {
        super::gelu::gelu(y.len(), y.len(), y, slope);
    });
    y.truncate(len);
    let out = tensor("outputs", y, shape)?;
    let output = out.clone();
    tape.add_backward_op(move |gradients| {
        let e = gradients.get_or_alloc_mut(&output)?.to_vec();
        slope.iter_mut().zip(e).for_each(|(slope, e)| *slope *= e);
        add_to(gradients, &x, &slope)
    });
    Ok(out.put_tape(tape))
}

/// The sizes of x, `[rows, entries]`, if there is an entry and room for them.
fn some_rows<T>(x: &Matrix<T>) -> Result<(usize, usize)> {
    let (rows, entries) = *x.shape();
    if rows == 0 || entries == 0 {
        return Err(Error::shape("x", &[rows, entries], "[rows >= 1, entries >= 1]"));
    }
    array_len::<f32>("x", &[rows, entries])?;
    Ok((rows, entries))
}

fn tensor<S: Shape>(what: &str, values: Vec<f32>, shape: S) -> Result<Tensor<S, f32, Cpu>> {
    Cpu::default().try_tensor_from_vec(values, shape).map_err(|e| Error::numerical(what, e.to_string()))
}

fn add_to<S: Shape>(
    gradients: &mut Gradients<f32, Cpu>,
    x: &Tensor<S, f32, Cpu>,
    d: &[f32],
) -> std::result::Result<(), CpuError> {
    gradients.get_or_alloc_mut(x)?.iter_mut().zip(d).for_each(|(g, d)| *g += d);
    Ok(())
}

/// Rows `stride` apart to rows one after the other.
fn pack_rows(from: &[f32], stride: usize, to: &mut [f32], width: usize) {
    for (to, from) in to.chunks_exact_mut(width).zip(from.chunks_exact(stride)) {
        to.copy_from_slice(&from[..width]);
    }
}

/// What is summed over the rows of x `[rows, in]` with gradients e `[rows, out]` in their outputs, `len` floats: `block`
/// writes it for at most [`ROWS`] rows, or adds it to what is there, and writes the gradient in x. Sums do not depend on the
/// number of threads.
fn sums_over_rows(
    [inputs, outputs]: [usize; 2],
    x: &[f32],
    e: &[f32],
    dx: &mut [f32],
    len: usize,
    block: impl Fn(&[f32], &[f32], &mut [f32], &mut [f32], bool) + Sync,
) -> Buffer {
    let part = (x.len() / inputs).div_ceil(PARTS).next_multiple_of(ROWS);
    let parts = x.par_chunks(part * inputs).zip(e.par_chunks(part * outputs)).zip(dx.par_chunks_mut(part * inputs));
    let sums = parts.map(|((x, e), dx)| {
        let mut sums = Buffer::take(len);
        let blocks = x.chunks(ROWS * inputs).zip(e.chunks(ROWS * outputs)).zip(dx.chunks_mut(ROWS * inputs));
        for (k, ((x, e), dx)) in blocks.enumerate() {
            block(x, e, dx, sums.as_mut(), k > 0);
        }
        sums
    });
    sum_in_order(sums.collect())
}
