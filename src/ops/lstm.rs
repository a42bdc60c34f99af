//! Stacked LSTM layers between an affine read-in and read-out as one op (`newton` section 2).
//!
//! ```text
//! i, f, o = σ(W_i x_t + U_i h + b_i), …      g = tanh(W_g x_t + U_g h + b_g)
//! c ← f ∘ c + i ∘ g                          h ← o ∘ tanh c
//! ```
//!
//! with the gates in PyTorch's order i, f, g, o. The products with x are made for all tokens of a layer at once, those
//! with h for the prompts of a chunk side by side: rows are ordered by token, then by prompt. Nothing stands between the
//! read-in and the first layer's W: the two are one map of the tokens.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::affine::{Affine, Places, Sizes, stride};
use super::attention::MARGIN;
use super::memory::Arena;
use super::sequence::{Architecture, Entry, Layout, Network, Pass, Turn};
use super::simd::{Job, Simd, WIDTH, dispatch, vectors, vectors_mut};
use crate::error::array_len;
use crate::{Error, Result};

/// The architecture of a stack of LSTM layers.
///
/// [`Default`] is the `newton` paper's: 10 layers of width 256. Its dropout of 0.1 between layers is not here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LstmConfig {
    /// Entries of a token.
    pub inputs: usize,
    /// Entries of a prediction.
    pub outputs: usize,
    /// LSTM layers.
    pub layers: usize,
    /// Width of the read-in and of every layer.
    pub width: usize,
}

impl Default for LstmConfig {
    fn default() -> Self {
        LstmConfig { inputs: 20, outputs: 1, layers: 10, width: 256 }
    }
}

/// Places of the tensors.
struct Index {
    read_in: Places,
    /// Of each layer: from the input, from the state.
    layers: Vec<[Places; 2]>,
    read_out: Places,
}

fn layout(config: &LstmConfig, tensors: &mut Layout) -> Index {
    let LstmConfig { inputs, outputs, layers, width } = *config;
    let mut affine = |weight: fmt::Arguments<'_>, bias: fmt::Arguments<'_>, rows: usize, columns: usize| Places {
        weight: tensors.add(weight, &[rows, columns]),
        bias: tensors.add(bias, &[rows]),
    };
    let read_in = affine(format_args!("read_in.weight"), format_args!("read_in.bias"), width, inputs);
    let layers = (0..layers)
        .map(|l| {
            ["ih", "hh"].map(|from| {
                let (weight, bias) = (format_args!("lstm.weight_{from}_l{l}"), format_args!("lstm.bias_{from}_l{l}"));
                affine(weight, bias, 4 * width, width)
            })
        })
        .collect();
    let read_out = affine(format_args!("read_out.weight"), format_args!("read_out.bias"), outputs, width);
    Index { read_in, layers, read_out }
}

impl Architecture for LstmConfig {
    fn check(&self) -> Result<()> {
        let sizes = [
            ("entries of a token", self.inputs),
            ("entries of a prediction", self.outputs),
            ("layers", self.layers),
            ("width", self.width),
        ];
        if let Some((what, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(Error::invalid(*what, 0, "at least 1"));
        }
        // More than the model has of each, and with room for filling up.
        array_len::<f32>("model", &[self.layers.saturating_add(1), 16, self.width, self.width])?;
        let ends = self.inputs.saturating_add(self.outputs).saturating_add(2);
        array_len::<f32>("model", &[ends, self.width]).map(drop)
    }

    /// PyTorch's names and shapes.
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
        true
    }

    fn longest(&self) -> Option<usize> {
        None
    }

    fn largest(&self, length: usize) -> [usize; 4] {
        [self.layers, length.saturating_add(1), 8, self.width.saturating_add(64)]
    }

    fn network(&self, length: usize) -> Box<dyn Network + '_> {
        Box::new(Plan::new(self, length))
    }
}

/// Everything that follows from the architecture and the length of the sequences.
struct Plan<'a> {
    config: &'a LstmConfig,
    length: usize,
    /// For the states alone: the first layer's map begins with it.
    read_in: Places,
    layers: Vec<[Affine; 2]>,
    read_out: Affine,
    sizes: Sizes,
}

impl<'a> Plan<'a> {
    fn new(config: &'a LstmConfig, length: usize) -> Plan<'a> {
        let index = layout(config, &mut Layout::default());
        let mut sizes = Sizes::default();
        let (none, width) = (Places::default(), config.width);
        let mut layers = Vec::with_capacity(config.layers);
        for (l, [input, state]) in index.layers.iter().enumerate() {
            let input = match l {
                0 => Affine::behind_a_layer(&mut sizes, config.inputs, &index.read_in, [width, width, 4], input),
                _ => Affine::grouped(&mut sizes, width, width, 4, input),
            };
            layers.push([input, Affine::grouped(&mut sizes, width, width, 4, state)]);
        }
        let read_out = Affine::new(&mut sizes, width, config.outputs, &index.read_out, &none, true);
        Plan { config, length, read_in: index.read_in, layers, read_out, sizes }
    }

    /// From a row of units to the next, and from a row of gates.
    fn strides(&self) -> (usize, usize) {
        (stride(self.config.width), stride(4 * self.config.width.next_multiple_of(WIDTH)))
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
        // Rows of a tile of a product: a token's gates are a row for each prompt.
        8
    }

    fn affines(&self) -> Vec<&Affine> {
        let layers = self.layers.iter().flatten();
        layers.chain(std::iter::once(&self.read_out)).collect()
    }

    fn prepare_rest(&self, _: &[f32], _: &mut [f32]) {}

    fn unfold_rest(&self, _: &[f32], _: &mut [f32]) {}

    fn workspace(&self, prompts: usize) -> usize {
        let (w, q) = self.strides();
        let (rows, with_start) = (prompts * self.length, prompts * (self.length + 1));
        let padded = |n: usize| n.next_multiple_of(WIDTH) + MARGIN;
        let layer = padded(rows * q) + 2 * padded(with_start * w) + padded(rows * w);
        let ends = padded(rows * stride(self.config.inputs)) + 2 * padded(rows * stride(self.config.outputs));
        self.config.layers * layer + 2 * padded(rows * w) + 2 * padded(prompts * w) + ends
    }

    fn pass<'a>(&'a self, p: &'a [f32], w: &'a [f32], prompts: usize, memory: &'a mut [f32]) -> Box<dyn Pass + 'a> {
        let (width, q) = self.strides();
        let (rows, with_start) = (prompts * self.length, prompts * (self.length + 1));
        let mut arena = Arena(memory);
        let layers = (0..self.config.layers)
            .map(|_| Saved {
                gates: arena.take(rows * q),
                cell: arena.take(with_start * width),
                squashed: arena.take(rows * width),
                state: arena.take(with_start * width),
            })
            .collect();
        let outputs = rows * stride(self.config.outputs);
        Box::new(Run {
            plan: self,
            params: p,
            w,
            prompts,
            layers,
            tokens: arena.take(rows * stride(self.config.inputs)),
            d: arena.take(rows * width),
            d_below: arena.take(rows * width),
            d_state: arena.take(prompts * width),
            d_cell: arena.take(prompts * width),
            predictions: arena.take(outputs),
            d_predictions: arena.take(outputs),
        })
    }
}

/// What the backward pass of a layer reads; cells and states begin with the zeros before the first token.
struct Saved<'a> {
    /// After the backward pass, the gradient in what the gates are made of.
    gates: &'a mut [f32],
    cell: &'a mut [f32],
    squashed: &'a mut [f32],
    state: &'a mut [f32],
}

/// A few prompts on their way through the layers.
struct Run<'a> {
    plan: &'a Plan<'a>,
    params: &'a [f32],
    w: &'a [f32],
    prompts: usize,
    layers: Vec<Saved<'a>>,
    /// Ordered by token, then by prompt.
    tokens: &'a mut [f32],
    d: &'a mut [f32],
    d_below: &'a mut [f32],
    d_state: &'a mut [f32],
    d_cell: &'a mut [f32],
    predictions: &'a mut [f32],
    d_predictions: &'a mut [f32],
}

impl Run<'_> {
    /// Appends the read-in's rows, ordered by prompt.
    fn read_in(&self, tokens: &[f32], state: &mut Vec<f32>) {
        let LstmConfig { inputs, .. } = *self.plan.config;
        let Places { weight, bias } = &self.plan.read_in;
        let (weight, bias) = (&self.params[weight.clone()], &self.params[bias.clone()]);
        for token in tokens.chunks_exact(inputs) {
            let units = weight.chunks_exact(inputs).zip(bias);
            state.extend(units.map(|(row, b)| row.iter().zip(token).fold(*b, |sum, (w, x)| sum + w * x)));
        }
    }

    /// Appends rows ordered by token as rows ordered by prompt.
    fn keep(&self, rows: &[f32], state: &mut Vec<f32>) {
        let (width, _) = self.plan.strides();
        for p in 0..self.prompts {
            for t in 0..self.plan.length {
                state.extend_from_slice(&rows[(t * self.prompts + p) * width..][..self.plan.config.width]);
            }
        }
    }
}

impl Pass for Run<'_> {
    fn forward(&mut self, tokens: &[f32], every: usize, states: Option<&mut [Vec<f32>]>) {
        let Run { plan, w, prompts, .. } = *self;
        let (config, length) = (plan.config, plan.length);
        let (width, q) = plan.strides();
        let (rows, step, units) = (prompts * length, prompts * width, config.width.next_multiple_of(WIDTH));
        let entries = stride(config.inputs);
        for (k, token) in tokens.chunks_exact(config.inputs).enumerate() {
            let row = k % length * prompts + k / length;
            self.tokens[row * entries..][..config.inputs].copy_from_slice(token);
        }
        let mut below: (&[f32], usize) = (self.tokens, entries);
        for ([input, recurrent], saved) in plan.layers.iter().zip(&mut self.layers) {
            input.forward(w, rows, below, (saved.gates, q), false);
            saved.state[..step].fill(0.0);
            saved.cell[..step].fill(0.0);
            for t in 0..length {
                let (before, now) = saved.state.split_at_mut((t + 1) * step);
                let gates = &mut saved.gates[t * prompts * q..][..prompts * q];
                if t == 0 {
                    recurrent.forward_from_zero(w, prompts, (gates, q));
                } else {
                    recurrent.forward(w, prompts, (&before[t * step..], width), (gates, q), true);
                }
                let (cell_before, cell) = saved.cell.split_at_mut((t + 1) * step);
                dispatch(Forward {
                    units,
                    strides: (width, q),
                    gates,
                    before: &cell_before[t * step..],
                    cell: &mut cell[..step],
                    squashed: &mut saved.squashed[t * step..][..step],
                    state: &mut now[..step],
                });
            }
            below = (&saved.state[step..], width);
        }
        let (count, out) = (length.div_ceil(every), stride(config.outputs));
        for p in 0..prompts {
            let to = &mut self.predictions[p * count * out..];
            plan.read_out.forward(w, count, (&below.0[p * width..], every * step), (to, out), false);
        }
        if let Some(states) = states {
            self.read_in(tokens, &mut states[0]);
            for (saved, state) in self.layers.iter().zip(&mut states[1..]) {
                self.keep(&saved.state[step..], state);
            }
        }
    }

    fn predictions(&mut self) -> (&[f32], &mut [f32]) {
        (self.predictions, self.d_predictions)
    }

    fn backward(&mut self, _: &[f32], every: usize, turn: &Turn<'_>) {
        let Run { plan, w, prompts, .. } = *self;
        let (config, length) = (plan.config, plan.length);
        let (width, q) = plan.strides();
        let (rows, step, units) = (prompts * length, prompts * width, config.width.next_multiple_of(WIDTH));
        let (count, out) = (length.div_ceil(every), stride(config.outputs));
        let (mut d, mut d_below) = (&mut *self.d, &mut *self.d_below);
        d[..rows * width].fill(0.0);
        turn.at(plan.read_out.piece, |g, add| {
            for p in 0..prompts {
                let last = &self.layers[config.layers - 1].state[step + p * width..];
                let d_predictions = &self.d_predictions[p * count * out..];
                plan.read_out.gradient(g, count, (last, every * step), (d_predictions, out), add || p > 0);
            }
        });
        for p in 0..prompts {
            let d_predictions = &self.d_predictions[p * count * out..];
            plan.read_out.backward(w, count, (d_predictions, out), (&mut d[p * width..], every * step));
        }
        for (l, [input, recurrent]) in plan.layers.iter().enumerate().rev() {
            let (lower, upper) = self.layers.split_at_mut(l);
            let saved = &mut upper[0];
            self.d_state[..step].fill(0.0);
            self.d_cell[..step].fill(0.0);
            for t in (0..length).rev() {
                let gates = &mut saved.gates[t * prompts * q..][..prompts * q];
                dispatch(Backward {
                    units,
                    strides: (width, q),
                    gates,
                    before: &saved.cell[t * step..],
                    squashed: &saved.squashed[t * step..],
                    d_above: &d[t * step..],
                    d_state: &self.d_state[..step],
                    d_cell: &mut self.d_cell[..step],
                });
                if t > 0 {
                    recurrent.backward(w, prompts, (gates, q), (self.d_state, width));
                }
            }
            let below: (&[f32], usize) = match lower.last() {
                None => (self.tokens, stride(config.inputs)),
                Some(below) => (&below.state[step..], width),
            };
            // The two biases are added to the same rows: their gradients are one.
            let bias = turn.at(input.piece, |g, add| {
                input.gradient(g, rows, below, (saved.gates, q), add);
                input.gradient_in_bias(g).to_vec()
            });
            // The first token's state is zero.
            let later = (&saved.gates[prompts * q..], q);
            turn.at(recurrent.piece, |g, add| {
                recurrent.gradient_in_weights(g, rows - prompts, (&saved.state[step..], width), later, add);
                recurrent.gradient_in_bias(g).copy_from_slice(&bias);
            });
            if l > 0 {
                input.backward(w, rows, (saved.gates, q), (d_below, width));
                std::mem::swap(&mut d, &mut d_below);
            }
        }
    }

    fn in_tokens(&self, d_tokens: &mut Vec<f32>) {
        let (inputs, (_, q)) = (self.plan.config.inputs, self.plan.strides());
        let columns = stride(inputs);
        let mut d = vec![0.0; self.plan.length * columns];
        for p in 0..self.prompts {
            let rows = (&self.layers[0].gates[p * q..], self.prompts * q);
            self.plan.layers[0][0].backward(self.w, self.plan.length, rows, (&mut d, columns));
            d_tokens.extend(d.chunks_exact(columns).flat_map(|row| &row[..inputs]));
        }
    }
}

#[inline(always)]
fn tanh<V: Simd>(x: V) -> V {
    // 2 σ(2x) - 1.
    V::splat(-1.0).add_mul(V::splat(2.0), x.logistic(2.0))
}

/// The four gates of a row, `count` vectors each.
#[inline(always)]
fn gates_of(row: &mut [[f32; WIDTH]], count: usize) -> [&mut [[f32; WIDTH]]; 4] {
    let (i, rest) = row.split_at_mut(count);
    let (f, rest) = rest.split_at_mut(count);
    let (g, o) = rest.split_at_mut(count);
    [i, f, g, &mut o[..count]]
}

/// One token of a layer: what the gates let through. The gates' inputs become the gates.
struct Forward<'a> {
    units: usize,
    strides: (usize, usize),
    gates: &'a mut [f32],
    before: &'a [f32],
    cell: &'a mut [f32],
    squashed: &'a mut [f32],
    state: &'a mut [f32],
}

impl Job for Forward<'_> {
    type Output = ();
    // Loops over indices, here and below: an iterator's parts may be compiled elsewhere, without the caller's instructions.
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn run<V: Simd>(self) {
        let Forward { units, strides: (width, q), gates, before, cell, squashed, state } = self;
        let count = units / WIDTH;
        for row in 0..cell.len() / width {
            let [i, f, g, o] = gates_of(vectors_mut(gates, row * q, 4 * count), count);
            let before = vectors(before, row * width, count);
            let cell = vectors_mut(cell, row * width, count);
            let squashed = vectors_mut(squashed, row * width, count);
            let state = vectors_mut(state, row * width, count);
            for u in 0..count {
                let in_gate = V::load(&i[u]).logistic(1.0);
                let forget = V::load(&f[u]).logistic(1.0);
                let new = tanh(V::load(&g[u]));
                let out = V::load(&o[u]).logistic(1.0);
                let c = in_gate.mul(new).add_mul(forget, V::load(&before[u]));
                let s = tanh(c);
                in_gate.store(&mut i[u]);
                forget.store(&mut f[u]);
                new.store(&mut g[u]);
                out.store(&mut o[u]);
                c.store(&mut cell[u]);
                s.store(&mut squashed[u]);
                out.mul(s).store(&mut state[u]);
            }
        }
    }
}

/// The adjoint of [`Forward`]. The gradient in the cell is that after the token, then that before it; the gates become the gradients
/// in what they are made of.
struct Backward<'a> {
    units: usize,
    strides: (usize, usize),
    gates: &'a mut [f32],
    before: &'a [f32],
    squashed: &'a [f32],
    d_above: &'a [f32],
    d_state: &'a [f32],
    d_cell: &'a mut [f32],
}

impl Job for Backward<'_> {
    type Output = ();
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn run<V: Simd>(self) {
        let Backward { units, strides: (width, q), gates, before, squashed, d_above, d_state, d_cell } = self;
        let one = V::splat(1.0);
        let count = units / WIDTH;
        for row in 0..d_cell.len() / width {
            let [in_gate, forget, new, out] = gates_of(vectors_mut(gates, row * q, 4 * count), count);
            let before = vectors(before, row * width, count);
            let squashed = vectors(squashed, row * width, count);
            let d_above = vectors(d_above, row * width, count);
            let d_state = vectors(d_state, row * width, count);
            let d_cell = vectors_mut(d_cell, row * width, count);
            for u in 0..count {
                let [i, f, g, o] = [V::load(&in_gate[u]), V::load(&forget[u]), V::load(&new[u]), V::load(&out[u])];
                let s = V::load(&squashed[u]);
                let dh = V::load(&d_above[u]).add(V::load(&d_state[u]));
                let dc = V::load(&d_cell[u]).add_mul(dh.mul(o), one.sub(s.mul(s)));
                dc.mul(g).mul(i).mul(one.sub(i)).store(&mut in_gate[u]);
                dc.mul(V::load(&before[u])).mul(f).mul(one.sub(f)).store(&mut forget[u]);
                dc.mul(i).mul(one.sub(g.mul(g))).store(&mut new[u]);
                dh.mul(s).mul(o).mul(one.sub(o)).store(&mut out[u]);
                dc.mul(f).store(&mut d_cell[u]);
            }
        }
    }
}
