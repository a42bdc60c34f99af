//! A batch of sequences through a model, in parts: what is common to the fused sequence models.
//!
//! The batch is cut into parts that do not depend on the number of threads. A part goes through all layers forward and,
//! at once, backward, so that what the backward pass reads is still in the cache; its gradient in the weights is kept
//! and the parts' gradients are added in order.

use std::ops::Range;

use dfdx::prelude::{Cpu, CpuError, HasShape, Merge, NoneTape, PutTape, SplitTape, Tape, Tensor, TensorFromVec};

use super::affine::{Affine, Sizes, stride};
use super::contiguous;
use super::memory::Buffer;
use super::simd::{Job, Simd, WIDTH, dispatch};
use super::threads::each;
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

/// The architecture of a sequence model: what its tensors are, and how it runs.
pub trait Architecture: Clone + std::fmt::Debug + Send + Sync + 'static {
    /// Whether there can be such a model.
    ///
    /// # Errors
    /// [`Error::Invalid`] if not, with the size that is wrong.
    fn check(&self) -> Result<()>;

    /// The tensors of the model, in order.
    fn tensors(&self) -> Vec<Entry>;

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
    /// Lengths of the prepared weights and of the gradient.
    fn sizes(&self) -> &Sizes;
    /// Prompts that go well together: nothing is computed for nothing.
    fn group(&self) -> usize;
    /// Floats of the working memory for `prompts` prompts.
    fn workspace(&self, prompts: usize) -> usize;
    /// The affine layers, in the order of the prepared weights and of the gradient.
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
    /// The gradient in the weights for that in the predictions, into `g` or added to it.
    fn backward(&mut self, tokens: &[f32], every: usize, g: &mut [f32], add: bool);
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

/// Parts of a batch, each the work of one thread at a time: enough for a few threads, few enough to keep a gradient for
/// each. More would change the order of sums, hence the last bits of results.
pub(super) const PARTS: usize = 8;
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
        let expected = config.tensors().last().map_or(0, |e| e.at.end);
        let inputs = config.entries()[0];
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

/// The gradient of an objective in the parameters, into the zeros of `gradient`; the sum of squares, or 0; and the gradient in
/// the tokens, if asked for.
pub(crate) fn differentiate(
    config: &impl Architecture,
    params: &[f32],
    batch: Batch<'_>,
    objective: Objective<'_>,
    gradient: &mut [f32],
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
    Ok(rayon::scope(|_| {
        let prepared = prepare(network, params);
        let w = prepared.as_ref();
        let work = Work { network, w, params, batch, objective, in_tokens, entries: [inputs, outputs] };
        let parts = each(batch.parts(), |part| work.gradient(&part));
        let loss = parts.iter().map(|(loss, ..)| loss).sum();
        let tokens = in_tokens.then(|| {
            let mut all = vec![0.0; batch.batch * length * inputs];
            let sequences = parts.iter().flat_map(|(.., d)| d.chunks_exact(batch.length * inputs));
            for (to, d) in all.chunks_exact_mut(length * inputs).zip(sequences) {
                to[..d.len()].copy_from_slice(d);
            }
            all
        });
        unfold(network, params, parts.into_iter().map(|(_, g, _)| g).collect(), gradient);
        (loss, tokens)
    }))
}

/// The sum of the parts' gradients in the folded weights becomes the gradient in the parameters.
fn unfold(network: &dyn Network, params: &[f32], mut parts: Vec<Buffer>, gradient: &mut [f32]) {
    let (first, others) = parts.split_at_mut(1);
    let (mut rest, mut at) = (first[0].as_mut(), 0);
    let affines = network.affines();
    let mut work = Vec::with_capacity(affines.len());
    for (affine, tensors) in affines.iter().zip(tensors_of(&affines, gradient)) {
        let (mine, later) = std::mem::take(&mut rest).split_at_mut(affine.gradient_len());
        work.push((affine, at, mine, tensors));
        (rest, at) = (later, at + affine.gradient_len());
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
    let len = sum.len();
    let others = others.iter().map(|other| &other.as_ref()[at..at + len]).collect();
    dispatch(AddInOrder { sum, others });
}

struct AddInOrder<'a> {
    sum: &'a mut [f32],
    others: Vec<&'a [f32]>,
}

impl Job for AddInOrder<'_> {
    type Output = ();
    // Loops over indices: an iterator's parts may be compiled elsewhere, without the caller's instructions.
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn run<V: Simd>(self) {
        let AddInOrder { sum, others } = self;
        let whole = sum.len() / WIDTH;
        let vectors = &mut sum.as_chunks_mut().0[..whole];
        for v in 0..whole {
            let mut total = V::load(&vectors[v]);
            for k in 0..others.len() {
                total = total.add(V::load(&others[k].as_chunks().0[v]));
            }
            total.store(&mut vectors[v]);
        }
        for i in whole * WIDTH..sum.len() {
            for k in 0..others.len() {
                sum[i] += others[k][i];
            }
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

/// What the parts of a batch share.
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
    /// A part's loss, its gradient in the weights, and in its tokens if that was asked for.
    fn gradient(&self, part: &Range<usize>) -> (f64, Buffer, Vec<f32>) {
        let Work { network, batch, entries: [inputs, outputs], .. } = *self;
        let (count, out) = (batch.count(), stride(outputs));
        let mut gradient = Buffer::take(network.sizes().gradient);
        let (mut loss, mut d_tokens) = (0.0, Vec::new());
        for (c, chunk) in batch.chunks(part, network.group()).into_iter().enumerate() {
            let mut memory = Buffer::take(network.workspace(chunk.len()));
            let mut pass = network.pass(self.params, self.w, chunk.len(), memory.as_mut());
            let tokens = batch.tokens(&chunk, inputs);
            pass.forward(tokens, batch.every, None);
            let (predictions, d_predictions) = pass.predictions();
            let rows = chunk.start * count..chunk.end * count;
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
            pass.backward(tokens, batch.every, gradient.as_mut(), c > 0);
            if self.in_tokens {
                pass.in_tokens(&mut d_tokens);
            }
        }
        (loss, gradient, d_tokens)
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
        let (_, d) = differentiate(&config, &p, batch, Objective::Given(&e), &mut in_params, true)
            .map_err(|_| CpuError::WrongNumElements)?;
        gradients.get_or_alloc_mut(&params)?.iter_mut().zip(&in_params).for_each(|(g, v)| *g += v);
        let d = d.unwrap_or_default();
        gradients.get_or_alloc_mut(&tokens)?.iter_mut().zip(&d).for_each(|(g, v)| *g += v);
        Ok(())
    });
    Ok(out.put_tape(tape))
}
