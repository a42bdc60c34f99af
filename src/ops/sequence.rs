//! A batch of sequences through a model: what is common to the fused sequence models.
//!
//! The batch is cut into chunks that do not depend on the number of threads. A chunk goes through all layers forward and,
//! at once, backward, so that what the backward pass reads is still in the cache; layer by layer its gradient in the weights is
//! added to that of the chunks before it, when these have been there ([`Turn`]).

use std::fmt;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use dfdx::prelude::{Cpu, CpuError, HasShape, Merge, NoneTape, PutTape, SplitTape, Tape, Tensor, TensorFromVec};

use super::affine::{Affine, Sizes, stride};
use super::contiguous;
use super::memory::Buffer;
use super::simd::{Job, Simd, WIDTH, dispatch};
use super::threads::{each, lock};
use crate::error::array_len;
use crate::{Error, Result};

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

/// The tensors of a model, one after the other in the vector of all parameters.
#[derive(Default)]
pub(super) struct Layout {
    entries: Option<Vec<Entry>>,
    end: usize,
}

impl Layout {
    /// Their places, names and shapes are kept; with [`Layout::default`] they are passed over, at every step of a training.
    pub(super) fn with_entries() -> Self {
        Layout { entries: Some(Vec::new()), end: 0 }
    }

    /// The place of the next tensor.
    pub(super) fn add(&mut self, name: fmt::Arguments<'_>, shape: &[usize]) -> Range<usize> {
        let at = self.end..self.end + shape.iter().product::<usize>();
        self.end = at.end;
        if let Some(entries) = &mut self.entries {
            entries.push(Entry { name: name.to_string(), shape: shape.to_vec(), at: at.clone() });
        }
        at
    }

    /// The entries of all tensors, if they are kept.
    pub(super) fn entries(self) -> Vec<Entry> {
        self.entries.unwrap_or_default()
    }

    /// Parameters of all tensors.
    pub(super) fn parameters(&self) -> usize {
        self.end
    }
}

/// The architecture of a sequence model: what its tensors are, and how it runs.
pub trait Architecture: Clone + std::fmt::Debug + Send + Sync + 'static {
    /// Whether there can be such a model.
    ///
    /// # Errors
    /// [`Error::Invalid`] if not, with the size that is wrong.
    fn check(&self) -> Result<()>;

    /// The tensors of the model, in order.
    fn tensors(&self) -> Vec<Entry>;

    /// The number of parameters, of all tensors.
    fn parameters(&self) -> usize;

    /// Entries of a token and of a prediction.
    fn entries(&self) -> [usize; 2];

    /// Whether a token's prediction depends on no later token.
    fn causal(&self) -> bool;

    /// Tokens of the longest sequence, if there is one.
    fn longest(&self) -> Option<usize>;

    /// The shape of the largest array that a pass over a sequence of `length` tokens keeps.
    fn largest(&self, length: usize) -> [usize; 4];

    #[doc(hidden)]
    fn network(&self, length: usize) -> Box<dyn Network + '_>;
}

/// A checked architecture for sequences of one length.
#[doc(hidden)]
#[allow(private_interfaces)]
pub trait Network: Sync {
    /// States of [`hidden_states`], each a row for a token.
    fn states(&self) -> usize;
    /// Lengths of the prepared weights and of the pieces of the gradient: one for each affine layer, then those of the rest.
    fn sizes(&self) -> &Sizes;
    /// Prompts that go well together: nothing is computed for nothing.
    fn group(&self) -> usize;
    /// Floats of the working memory for `prompts` prompts.
    fn workspace(&self, prompts: usize) -> usize;
    /// The affine layers, in the order of the prepared weights and of the pieces.
    fn affines(&self) -> Vec<&Affine>;
    /// What stands behind the affine layers' prepared weights.
    fn prepare_rest(&self, params: &[f32], rest: &mut [f32]);
    /// The gradient in the parameters that are not affine layers', from what stands behind the affine layers' gradients.
    fn unfold_rest(&self, g: &[f32], out: &mut [f32]);
    /// A pass of `prompts` prompts with prepared weights `w`.
    fn pass<'a>(&'a self, params: &'a [f32], w: &'a [f32], prompts: usize, memory: &'a mut [f32])
    -> Box<dyn Pass + 'a>;
}

/// A few prompts on their way through the model.
#[doc(hidden)]
pub trait Pass {
    /// Predictions at every `every`-th token of `tokens` `[prompts, length, inputs]`; appends each state's rows. Without
    /// states, a backward pass may follow.
    fn forward(&mut self, tokens: &[f32], every: usize, states: Option<&mut [Vec<f32>]>);
    /// The predictions, and room for the gradient in them: rows, whole vectors apart, prompt after prompt.
    fn predictions(&mut self) -> (&[f32], &mut [f32]);
    /// The gradient in the weights for that in the predictions. Takes its turn at every piece that there is something to add to, once
    /// each, and hands no work to the pool: a thread that waited for that could find itself at the chunk after this one.
    fn backward(&mut self, tokens: &[f32], every: usize, turn: &Turn<'_>);
    /// Appends the gradient in the tokens, after the backward pass.
    fn in_tokens(&self, d_tokens: &mut Vec<f32>);
}

/// The folded weights in the layout of the matrix products.
fn prepare(network: &dyn Network, params: &[f32]) -> Buffer {
    let mut prepared = Buffer::take(network.sizes().prepared);
    let mut rest = prepared.as_mut();
    let mut work = Vec::new();
    for affine in network.affines() {
        let (mine, later) = std::mem::take(&mut rest).split_at_mut(affine.prepared_len());
        work.push((affine, mine));
        rest = later;
    }
    each(work, |(affine, out)| affine.prepare(params, out));
    network.prepare_rest(params, rest);
    prepared
}

/// Parts of a batch, of one chunk at least, which are the work of one thread at a time: enough for a few threads. Another number
/// would change the order of sums, hence the last bits of results.
pub(super) const PARTS: usize = 8;
/// Sums of gradients, each of half of the parts: two threads begin with one each, and neither waits for the other's turn.
const SUMS: usize = 2;
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

impl<'a> Batch<'a> {
    /// Predictions of a sequence.
    fn count(&self) -> usize {
        self.length.div_ceil(self.every)
    }

    fn parts(&self) -> Vec<Range<usize>> {
        let parts = PARTS.min(self.batch);
        (0..parts).map(|p| p * self.batch / parts..(p + 1) * self.batch / parts).collect()
    }

    /// The prompts of a part that go through the layers together: whole groups, if a group is not too much.
    fn chunks(&self, part: &Range<usize>, group: usize) -> Vec<Range<usize>> {
        let most = (ROWS / self.length).max(1);
        if most >= group {
            let most = most / group * group;
            return (part.start..part.end).step_by(most).map(|start| start..part.end.min(start + most)).collect();
        }
        let count = part.len().div_ceil(most);
        (0..count).map(|c| part.start + c * part.len() / count..part.start + (c + 1) * part.len() / count).collect()
    }

    /// The same predictions from as few tokens as they need: after the last one none, if the model is causal.
    fn needed(self, config: &impl Architecture, tokens: &'a mut Vec<f32>) -> Self {
        let length = if config.causal() { (self.count() - 1) * self.every + 1 } else { self.length };
        if length == self.length {
            return self;
        }
        let inputs = config.entries()[0];
        tokens.reserve_exact(self.batch * length * inputs);
        for sequence in self.tokens.chunks_exact(self.length * inputs) {
            tokens.extend_from_slice(&sequence[..length * inputs]);
        }
        Batch { tokens, length, ..self }
    }

    fn check(&self, config: &impl Architecture, params: &[f32]) -> Result<()> {
        config.check()?;
        let (expected, inputs) = (config.parameters(), config.entries()[0]);
        if params.len() != expected {
            return Err(Error::shape("parameters", &[params.len()], format!("[{expected}]")));
        }
        if self.batch == 0 || self.length == 0 || self.every == 0 {
            let given = [self.batch, self.length, self.every];
            return Err(Error::shape("sequences", &given, "a batch, a length and a distance of predictions above 0"));
        }
        if self.tokens.len() != array_len::<f32>("tokens", &[self.batch, self.length, inputs])? {
            let expected = format!("[{}, {}, {inputs}]", self.batch, self.length);
            return Err(Error::shape("tokens", &[self.tokens.len()], expected));
        }
        if let Some(most) = config.longest()
            && self.length > most
        {
            let expected = format!("at most the model's {most} positions");
            return Err(Error::invalid("tokens of a sequence", self.length, expected));
        }
        // Where this does not wrap around, no other size does.
        array_len::<f32>("working memory of a sequence", &config.largest(self.length)).map(drop)
    }

    /// Whether there is memory for a pass.
    fn check_room(&self, network: &dyn Network) -> Result<()> {
        let group = network.group();
        let chunks = self.parts().into_iter().flat_map(|part| self.chunks(&part, group));
        let most = chunks.map(|chunk| chunk.len()).max().unwrap_or(0);
        array_len::<f32>("working memory of the sequences", &[network.workspace(most)]).map(drop)
    }

    fn tokens(&self, prompts: &Range<usize>, inputs: usize) -> &[f32] {
        let size = self.length * inputs;
        &self.tokens[prompts.start * size..prompts.end * size]
    }
}

/// Predictions, `[batch, predictions, outputs]`.
pub(crate) fn predict(config: &impl Architecture, params: &[f32], batch: Batch<'_>) -> Result<Vec<f32>> {
    batch.check(config, params)?;
    let mut tokens = Vec::new();
    let batch = batch.needed(config, &mut tokens);
    let network = &*config.network(batch.length);
    batch.check_room(network)?;
    let prepared = prepare(network, params);
    let [inputs, outputs] = config.entries();
    let size = batch.count() * outputs;
    let mut out = vec![0.0; batch.batch * size];
    let mut rest = out.as_mut_slice();
    let mut work = Vec::new();
    for part in batch.parts() {
        let (mine, later) = std::mem::take(&mut rest).split_at_mut(part.len() * size);
        work.push((part, mine));
        rest = later;
    }
    each(work, |(part, out): (Range<usize>, &mut [f32])| {
        for chunk in batch.chunks(&part, network.group()) {
            let mut memory = Buffer::take(network.workspace(chunk.len()));
            let mut pass = network.pass(params, prepared.as_ref(), chunk.len(), memory.as_mut());
            pass.forward(batch.tokens(&chunk, inputs), batch.every, None);
            let out = &mut out[(chunk.start - part.start) * size..][..chunk.len() * size];
            let from = pass.predictions().0.chunks_exact(stride(outputs));
            for (to, from) in out.chunks_exact_mut(outputs).zip(from) {
                to.copy_from_slice(&from[..outputs]);
            }
        }
    });
    Ok(out)
}

/// The states of every layer, each `[batch, length, width]`.
pub(crate) fn hidden_states(config: &impl Architecture, params: &[f32], batch: Batch<'_>) -> Result<Vec<Vec<f32>>> {
    batch.check(config, params)?;
    let network = &*config.network(batch.length);
    batch.check_room(network)?;
    let prepared = prepare(network, params);
    let parts = each(batch.parts(), |part| {
        let mut states = vec![Vec::new(); network.states()];
        for chunk in batch.chunks(&part, network.group()) {
            let mut memory = Buffer::take(network.workspace(chunk.len()));
            let mut pass = network.pass(params, prepared.as_ref(), chunk.len(), memory.as_mut());
            pass.forward(batch.tokens(&chunk, config.entries()[0]), batch.every, Some(&mut states));
        }
        states
    });
    Ok((0..network.states()).map(|l| parts.iter().flat_map(|part| &part[l]).copied().collect()).collect())
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

/// The gradient of an objective in the parameters, into the zeros that `gradient` gives, while the pass is prepared; the sum of
/// squares, or 0; and the gradient in the tokens, if asked for.
pub(crate) fn differentiate<'g>(
    config: &impl Architecture,
    params: &[f32],
    batch: Batch<'_>,
    objective: Objective<'_>,
    gradient: impl FnOnce() -> Result<&'g mut [f32]> + Send,
    in_tokens: bool,
) -> Result<(f64, Option<Vec<f32>>)> {
    batch.check(config, params)?;
    let (count, [inputs, outputs]) = (batch.count(), config.entries());
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
    let (length, mut kept) = (batch.length, Vec::new());
    let batch = batch.needed(config, &mut kept);
    let network = &*config.network(batch.length);
    batch.check_room(network)?;
    // All inside the pool: each call of it from outside would wake a thread and wait for it.
    rayon::scope(|_| {
        let (prepared, gradient) = rayon::join(|| prepare(network, params), gradient);
        let gradient = gradient?;
        let w = prepared.as_ref();
        let work = Work { network, w, params, batch, objective, in_tokens, entries: [inputs, outputs] };
        let (chunks, mut sums) = (work.chunks(), Vec::new());
        sums.resize_with(chunks.len(), || Buffer::take(network.sizes().gradient()));
        let done = work.gradient(&chunks, &mut sums);
        let loss = done.iter().map(|(loss, _)| loss).sum();
        let tokens = in_tokens.then(|| {
            let mut all = vec![0.0; batch.batch * length * inputs];
            let sequences = done.iter().flat_map(|(_, d)| d.chunks_exact(batch.length * inputs));
            for (to, d) in all.chunks_exact_mut(length * inputs).zip(sequences) {
                to[..d.len()].copy_from_slice(d);
            }
            all
        });
        unfold(network, params, sums, gradient);
        Ok((loss, tokens))
    })
}

/// The sum of the sums in the folded weights becomes the gradient in the parameters.
fn unfold(network: &dyn Network, params: &[f32], mut sums: Vec<Buffer>, gradient: &mut [f32]) {
    let (first, others) = sums.split_at_mut(1);
    let (mut rest, mut at) = (first[0].as_mut(), 0);
    let affines = network.affines();
    let mut work = Vec::with_capacity(affines.len());
    for ((affine, tensors), len) in affines.iter().zip(tensors_of(&affines, gradient)).zip(&network.sizes().pieces) {
        let (mine, later) = std::mem::take(&mut rest).split_at_mut(*len);
        work.push((affine, at, mine, tensors));
        (rest, at) = (later, at + len);
    }
    // A layer is unfolded while its sum is in the cache.
    each(work, |(affine, at, sum, tensors)| {
        add_in_order(sum, others, at);
        affine.unfold(params, sum, tensors);
    });
    add_in_order(rest, others, at);
    network.unfold_rest(rest, gradient);
}

/// The sum of the gradients of one part at least, added in the order of the parts, a piece of the gradient at a time.
pub(super) fn sum_in_order(mut parts: Vec<Buffer>) -> Buffer {
    const PIECE: usize = 1 << 14;
    let (first, others) = parts.split_at_mut(1);
    each(first[0].as_mut().chunks_mut(PIECE).enumerate(), |(k, sum)| add_in_order(sum, others, k * PIECE));
    parts.swap_remove(0)
}

/// Adds to `sum` what stands in each of `others` from `at` on.
fn add_in_order(sum: &mut [f32], others: &[Buffer], at: usize) {
    // A piece that stays in the nearest cache until all are added.
    const NEAR: usize = 1 << 12;
    for (k, sum) in sum.chunks_mut(NEAR).enumerate() {
        for other in others {
            dispatch(Add { other: &other.as_ref()[at + k * NEAR..][..sum.len()], sum });
        }
    }
}

struct Add<'a> {
    sum: &'a mut [f32],
    other: &'a [f32],
}

impl Job for Add<'_> {
    type Output = ();
    // Loops over indices: an iterator's parts may be compiled elsewhere, without the caller's instructions.
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn run<V: Simd>(self) {
        let Add { sum, other } = self;
        let whole = sum.len() / WIDTH;
        let (vectors, others) = (&mut sum.as_chunks_mut().0[..whole], &other.as_chunks().0[..whole]);
        for v in 0..whole {
            V::load(&vectors[v]).add(V::load(&others[v])).store(&mut vectors[v]);
        }
        for i in whole * WIDTH..sum.len() {
            sum[i] += other[i];
        }
    }
}

/// The tensors of every affine layer in the vector of all parameters, or of a gradient in them.
fn tensors_of<'a>(affines: &[&Affine], mut all: &'a mut [f32]) -> Vec<[&'a mut [f32]; 4]> {
    let mut tensors: Vec<[&mut [f32]; 4]> = affines.iter().map(|_| Default::default()).collect();
    let places = affines.iter().enumerate().flat_map(|(a, affine)| affine.tensors().map(|at| (at.clone(), a)));
    let mut places: Vec<(Range<usize>, [usize; 2])> =
        places.enumerate().map(|(k, (at, a))| (at, [a, k % 4])).filter(|(at, _)| !at.is_empty()).collect();
    places.sort_by_key(|(at, _)| at.start);
    let mut done = 0;
    for (at, [a, k]) in places {
        let (tensor, rest) = std::mem::take(&mut all).split_at_mut(at.end - done);
        tensors[a][k] = &mut tensor[at.start - done..];
        (all, done) = (rest, at.end);
    }
    tensors
}

/// A gradient that the chunks of some parts are added to, in their order.
struct Sum<'a> {
    pieces: Vec<Piece<'a>>,
    /// Chunks that a thread has taken.
    taken: AtomicUsize,
    /// Whether a chunk ended before it was added to all pieces, by a panic: those after it would wait for ever.
    abandoned: AtomicBool,
}

struct Piece<'a> {
    /// Chunks that were added to it.
    added: AtomicUsize,
    /// Nobody waits for the lock: that is done before.
    sum: Mutex<&'a mut [f32]>,
}

impl<'a> Sum<'a> {
    fn new(mut memory: &'a mut [f32], pieces: &[usize]) -> Self {
        let pieces = pieces.iter().map(|len| {
            let (piece, rest) = std::mem::take(&mut memory).split_at_mut(*len);
            memory = rest;
            Piece { added: AtomicUsize::new(0), sum: Mutex::new(piece) }
        });
        Sum { pieces: pieces.collect(), taken: AtomicUsize::new(0), abandoned: AtomicBool::new(false) }
    }
}

/// A chunk's turn at the pieces of its sum: it waits for those before it, at every piece anew. With more threads than sums all but
/// the first are one layer behind another, and nothing has to be summed at the end but the sums.
#[doc(hidden)]
pub struct Turn<'a> {
    sum: &'a Sum<'a>,
    chunk: usize,
}

impl Turn<'_> {
    /// Lends the piece, and says whether there is something in it to add to.
    pub(super) fn at<R>(&self, piece: usize, add: impl FnOnce(&mut [f32], bool) -> R) -> R {
        let piece = &self.sum.pieces[piece];
        while piece.added.load(Ordering::Acquire) < self.chunk {
            if self.sum.abandoned.load(Ordering::Relaxed) {
                std::panic::resume_unwind(Box::new("the gradient of the prompts before these was not completed"));
            }
            (0..32).for_each(|_| std::hint::spin_loop());
            std::thread::yield_now();
        }
        debug_assert_eq!(piece.added.load(Ordering::Relaxed), self.chunk, "a second turn at a piece");
        let result = add(&mut lock(&piece.sum), self.chunk > 0);
        piece.added.store(self.chunk + 1, Ordering::Release);
        result
    }

    /// Adds the gradient in an affine layer's weights, as [`Affine::gradient`].
    pub(super) fn gradient(&self, affine: &Affine, m: usize, x: (&[f32], usize), dy: (&[f32], usize)) {
        self.at(affine.piece, |g, add| affine.gradient(g, m, x, dy, add));
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.sum.abandoned.store(true, Ordering::Relaxed);
        }
    }
}

/// What the chunks of a batch share.
struct Work<'a> {
    network: &'a dyn Network,
    w: &'a [f32],
    params: &'a [f32],
    batch: Batch<'a>,
    objective: Objective<'a>,
    in_tokens: bool,
    entries: [usize; 2],
}

impl Work<'_> {
    /// The chunks of each sum.
    fn chunks(&self) -> Vec<Vec<Range<usize>>> {
        let (parts, group) = (self.batch.parts(), self.network.group());
        let of_sum = |parts: &[Range<usize>]| parts.iter().flat_map(|part| self.batch.chunks(part, group)).collect();
        parts.chunks(parts.len().div_ceil(SUMS)).map(of_sum).collect()
    }

    /// Of every chunk its loss, and its gradient in its tokens if that was asked for; those in the weights into the sums.
    fn gradient(&self, chunks: &[Vec<Range<usize>>], sums: &mut [Buffer]) -> Vec<(f64, Vec<f32>)> {
        let pieces = &self.network.sizes().pieces;
        let sums: Vec<Sum<'_>> = sums.iter_mut().map(|sum| Sum::new(sum.as_mut(), pieces)).collect();
        // A thread has a ticket for any chunk of a sum and takes the first that is left, so that none waits for one that nobody has.
        let tickets =
            chunks.iter().zip(&sums).enumerate().flat_map(|(s, of_sum)| of_sum.0.iter().map(move |_| (s, of_sum)));
        let mut done = each(tickets, |(s, (chunks, sum))| {
            let chunk = sum.taken.fetch_add(1, Ordering::Relaxed);
            ((s, chunk), self.gradient_of(&chunks[chunk], &Turn { sum, chunk }))
        });
        done.sort_by_key(|(place, _)| *place);
        done.into_iter().map(|(_, done)| done).collect()
    }

    fn gradient_of(&self, prompts: &Range<usize>, turn: &Turn<'_>) -> (f64, Vec<f32>) {
        let Work { network, batch, entries: [inputs, outputs], .. } = *self;
        let (count, out) = (batch.count(), stride(outputs));
        let mut memory = Buffer::take(network.workspace(prompts.len()));
        let mut pass = network.pass(self.params, self.w, prompts.len(), memory.as_mut());
        let tokens = batch.tokens(prompts, inputs);
        pass.forward(tokens, batch.every, None);
        let (predictions, d_predictions) = pass.predictions();
        let rows = prompts.start * count..prompts.end * count;
        let mut loss = 0.0;
        for ((row, prediction), d) in rows.zip(predictions.chunks(out)).zip(d_predictions.chunks_mut(out)) {
            d.fill(0.0);
            match self.objective {
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
        pass.backward(tokens, batch.every, turn);
        let mut d_tokens = Vec::new();
        if self.in_tokens {
            pass.in_tokens(&mut d_tokens);
        }
        (loss, d_tokens)
    }
}

/// All parameters of a model, one tensor after the other in the order of [`Architecture::tensors`].
pub type Params<T = NoneTape> = Tensor<(usize,), f32, Cpu, T>;
/// `[batch, tokens, entries]`.
pub type Tokens<T = NoneTape> = Tensor<(usize, usize, usize), f32, Cpu, T>;

/// A model on dfdx's tape: predictions `[batch, predictions, outputs]` at tokens 0, `every`, 2 `every`, … of
/// `tokens` `[batch, length, inputs]`. Differentiable in the parameters and in the tokens; the backward pass computes
/// the forward one anew, a few prompts at a time.
///
/// # Errors
/// [`Error::Invalid`] and [`Error::Shape`] for an architecture, parameters or tokens that do not fit.
pub fn on_tape<Tp: Tape<f32, Cpu>, Tt>(
    config: &impl Architecture,
    params: Params<Tp>,
    tokens: Tokens<Tt>,
    every: usize,
) -> Result<Tokens<Tt>>
where
    Tt: Tape<f32, Cpu> + Merge<Tp>,
{
    let (batch, length, inputs) = *tokens.shape();
    if inputs != config.entries()[0] {
        let expected = format!("[batch, length, {}]", config.entries()[0]);
        return Err(Error::shape("tokens", &[batch, length, inputs], expected));
    }
    let (params, tape_p) = contiguous("parameters", params)?.split_tape();
    let (tokens, tape_t) = contiguous("tokens", tokens)?.split_tape();
    let mut tape = tape_t.merge(tape_p);
    let (p, t) = (params.as_vec(), tokens.as_vec());
    let values = predict(config, &p, Batch { tokens: &t, batch, length, every })?;
    let out = Cpu::default()
        .try_tensor_from_vec(values, (batch, length.div_ceil(every), config.entries()[1]))
        .map_err(|e| Error::numerical("predictions", e.to_string()))?;
    let output = out.clone();
    let config = config.clone();
    tape.add_backward_op(move |gradients| {
        let e = gradients.get_or_alloc_mut(&output)?.to_vec();
        let batch = Batch { tokens: &t, batch, length, every };
        let mut in_params = vec![0.0; p.len()];
        // The forward pass has checked every shape: this cannot fail.
        let (_, d) = differentiate(&config, &p, batch, Objective::Given(&e), || Ok(&mut in_params), true)
            .map_err(|_| CpuError::WrongNumElements)?;
        gradients.get_or_alloc_mut(&params)?.iter_mut().zip(&in_params).for_each(|(g, v)| *g += v);
        let d = d.unwrap_or_default();
        gradients.get_or_alloc_mut(&tokens)?.iter_mut().zip(&d).for_each(|(g, v)| *g += v);
        Ok(())
    });
    Ok(out.put_tape(tape))
}

#[cfg(test)]
mod tests {
    use super::{Sum, Turn};

    fn value(chunk: usize) -> f32 {
        1.0 / (chunk as f32 + 1.0)
    }

    /// `chunks` threads, the last chunk's first, each adding its value to two pieces.
    fn add(chunks: usize, work: impl Fn(usize) + Sync) -> (Vec<f32>, usize) {
        let mut memory = vec![f32::NAN; 48];
        let sum = Sum::new(&mut memory, &[16, 32]);
        let ended = std::thread::scope(|scope| {
            let threads = (0..chunks).rev().map(|chunk| {
                let (sum, work) = (&sum, &work);
                scope.spawn(move || {
                    let turn = Turn { sum, chunk };
                    work(chunk);
                    for piece in [1, 0] {
                        turn.at(piece, |g, add| {
                            for g in g {
                                *g = if add { *g } else { 0.0 } + value(chunk);
                            }
                        });
                    }
                })
            });
            let threads: Vec<_> = threads.collect();
            threads.into_iter().filter_map(|thread| thread.join().ok()).count()
        });
        (memory, ended)
    }

    #[test]
    fn chunks_are_added_in_their_order_whenever_they_come() {
        let expected = (0..7).fold(0.0, |sum, chunk| sum + value(chunk));
        let otherwise = (0..7).rev().fold(0.0, |sum, chunk| sum + value(chunk));
        assert_ne!(expected, otherwise);
        for late in 0..7 {
            let pause =
                |chunk| std::thread::sleep(std::time::Duration::from_millis(if chunk == late { 20 } else { 0 }));
            assert_eq!(add(7, pause), (vec![expected; 48], 7));
        }
    }

    #[test]
    fn a_chunk_that_panics_leaves_none_waiting() {
        // Without a message on the terminal.
        let give_up = |chunk| {
            if chunk == 1 {
                std::panic::resume_unwind(Box::new("chunk 1"));
            }
        };
        assert_eq!(add(5, give_up).1, 1);
    }
}
