//! The fused transformer and LSTM, and their gradients, against twins in plain dfdx in double precision.

#[path = "support/instruction_sets.rs"]
mod instruction_sets;
#[path = "support/twins.rs"]
mod twins;

use dfdx::prelude::*;
use incontext::models::{Gpt2, Gpt2Config, Init, Lstm, LstmConfig, Positions, SequenceModel};
use incontext::ops::attention::{Attention, Weights};
use incontext::ops::sequence::{Architecture, Entry};
use incontext::rng::{Rng, stream};
use incontext::tasks::Sequences;
use twins::{Taped1, Taped2};

fn random(seed: u64, len: usize, scale: f32) -> Vec<f32> {
    let mut rng = stream(seed, "test", 0);
    (0..len).map(|_| scale * rng.gen_range(-1.0..1.0)).collect()
}

/// A leaf of the twins: parameters, or tokens.
type Leaf<S> = Tensor<S, f64, Cpu>;

/// A model's parameters by their names, each cut out of the vector of all of them.
struct Named<'a> {
    entries: Vec<Entry>,
    all: &'a Leaf<(usize,)>,
}

impl Named<'_> {
    fn vector(&self, name: &str) -> Option<Taped1> {
        let entry = self.entries.iter().find(|e| e.name == name)?;
        Some(self.all.leaky_trace().slice((entry.at.clone(),)))
    }

    fn matrix(&self, name: &str) -> Option<Taped2> {
        let shape = self.entries.iter().find(|e| e.name == name)?.shape.clone();
        Some(self.vector(name)?.reshape_like(&(shape[0], shape[1])))
    }

    /// x W + b with W `[in, out]`; without b, if there is none.
    fn affine(&self, name: &str, x: Taped2) -> Taped2 {
        let w = self.matrix(&format!("{name}.weight")).unwrap();
        self.with_bias(&format!("{name}.bias"), x, w)
    }

    /// x Wᵀ + b with W `[out, in]`: PyTorch's.
    fn linear(&self, weight: &str, bias: &str, x: Taped2) -> Taped2 {
        let w = self.matrix(weight).unwrap();
        self.with_bias(bias, x, w.permute::<_, Axes2<1, 0>>())
    }

    fn with_bias(&self, name: &str, x: Taped2, w: Taped2) -> Taped2 {
        match self.vector(name) {
            Some(b) => twins::affine(x, w, b),
            None => x.matmul(w),
        }
    }
}

/// The transformer written with dfdx's own operations: hidden states before each layer and at the end, and the predictions
/// at every token, `[batch * tokens, outputs]`.
fn gpt2_twin(c: &Gpt2Config, params: &Leaf<(usize,)>, tokens: &Leaf<(usize, usize, usize)>) -> (Vec<Vec<f64>>, Taped2) {
    let dev = Cpu::default();
    let named = Named { entries: c.tensors(), all: params };
    let (batch, length, inputs) = *tokens.shape();
    let (rows, inner) = (batch * length, c.heads * c.key);
    // Of every prompt the same, `[length, entries]`.
    let repeated = |x: Taped2| {
        let (_, entries) = *x.shape();
        x.broadcast_like::<_, Axis<0>>(&(batch, length, entries)).reshape_like(&(rows, entries))
    };
    let norm = |name: &str, x: Taped2| match named.vector(&format!("{name}.weight")) {
        Some(gamma) => twins::layer_norm(x, gamma, named.vector(&format!("{name}.bias")).unwrap()),
        None => x,
    };
    let mut x = tokens.leaky_trace().reshape_like(&(rows, inputs));
    if c.read {
        x = named.linear("read_in.weight", "read_in.bias", x);
    }
    if let Some(positions) = named.matrix("wpe.weight") {
        x = x + repeated(positions.slice((..length, ..)));
    }
    let mut states = Vec::new();
    for l in 0..c.layers {
        states.push(x.as_vec());
        let before = norm(&format!("h.{l}.ln_1"), x.with_empty_tape());
        let mut qkv = named.affine(&format!("h.{l}.attn.c_attn"), before);
        if l == 0 && c.positions == Positions::Sinusoidal {
            let sinusoid = |k: usize| {
                let (t, e) = (k / c.width, k % c.width);
                let angle = t as f64 / 10_000_f64.powf((e / 2 * 2) as f64 / c.width as f64);
                if e % 2 == 0 { angle.sin() } else { angle.cos() }
            };
            let sinusoids = dev.tensor_from_vec((0..length * c.width).map(sinusoid).collect(), (length, c.width));
            // Queries and keys, of queries, keys and values.
            let identity = (0..6 * inner * inner).map(|k| if k / (3 * inner) == k % (3 * inner) { 1.0 } else { 0.0 });
            let identity = dev.tensor_from_vec(identity.collect(), (2 * inner, 3 * inner));
            let w = named.matrix("h.0.attn.c_position.weight").unwrap();
            qkv = qkv + repeated(sinusoids.leaky_traced().matmul(w).matmul(identity));
        }
        let qkv = qkv.reshape_like(&(batch, length, 3 * inner));
        let attended = twins::attention(qkv, c.heads, c.key, c.attention).reshape_like(&(rows, inner));
        x = x + named.affine(&format!("h.{l}.attn.c_proj"), attended);
        if c.mlp > 0 {
            let before = norm(&format!("h.{l}.ln_2"), x.with_empty_tape());
            let hidden = twins::gelu(named.affine(&format!("h.{l}.mlp.c_fc"), before));
            x = x + named.affine(&format!("h.{l}.mlp.c_proj"), hidden);
        }
        if let Some(clamp) = c.clamp {
            x = x.clamp(-f64::from(clamp), f64::from(clamp));
        }
    }
    x = norm("ln_f", x);
    states.push(x.as_vec());
    let out = if c.read { named.linear("read_out.weight", "read_out.bias", x) } else { x.slice((.., ..c.outputs)) };
    (states, out)
}

/// The LSTM written with dfdx's own operations: as [`gpt2_twin`].
fn lstm_twin(c: &LstmConfig, params: &Leaf<(usize,)>, tokens: &Leaf<(usize, usize, usize)>) -> (Vec<Vec<f64>>, Taped2) {
    let named = Named { entries: c.tensors(), all: params };
    let (batch, length, inputs) = *tokens.shape();
    let rows = batch * length;
    let by_prompt = |x: Taped2| {
        let (_, entries) = *x.shape();
        x.reshape_like(&(length, batch, entries)).permute::<_, Axes3<1, 0, 2>>().reshape_like(&(rows, entries))
    };
    // Token after token, the prompts of each side by side.
    let x = tokens.leaky_trace().permute::<_, Axes3<1, 0, 2>>().reshape_like(&(rows, inputs));
    let mut x = named.linear("read_in.weight", "read_in.bias", x);
    let mut states = vec![by_prompt(x.with_empty_tape()).as_vec()];
    for l in 0..c.layers {
        let name = |kind: &str, from: &str| format!("lstm.{kind}_{from}_l{l}");
        let (from_x, tape) = named.linear(&name("weight", "ih"), &name("bias", "ih"), x).split_tape();
        // Cut out of the parameters once: of several cuts at one place, dfdx keeps the gradient of one.
        let w = named.matrix(&name("weight", "hh")).unwrap().permute::<_, Axes2<1, 0>>();
        let (w, tape_w) = w.split_tape();
        let (b, tape_b) = named.vector(&name("bias", "hh")).unwrap().split_tape();
        let zero: Leaf<(usize, usize)> = from_x.device().zeros_like(&(batch, c.width));
        let (mut h, mut cell) = (zero.clone().put_tape(tape.merge(tape_w).merge(tape_b)), zero);
        let mut all = Vec::new();
        for t in 0..length {
            let z = from_x.leaky_trace().slice((t * batch..(t + 1) * batch, ..));
            let z = twins::affine(h, w.leaky_trace(), b.leaky_trace()) + z;
            let gate = |z: Taped2, k: usize| z.slice((.., k * c.width..(k + 1) * c.width));
            let [i, f, g] = [0, 1, 2].map(|k| gate(z.with_empty_tape(), k));
            let next = f.sigmoid() * cell.leaky_trace() + i.sigmoid() * g.tanh();
            cell = next.retaped::<NoneTape>();
            h = gate(z, 3).sigmoid() * next.tanh();
            all.push(h.with_empty_tape());
        }
        // The last one has the tape.
        all.pop();
        all.push(h);
        x = all.stack().reshape_like(&(rows, c.width));
        states.push(by_prompt(x.with_empty_tape()).as_vec());
    }
    (states, by_prompt(named.linear("read_out.weight", "read_out.bias", x)))
}

fn attention(weights: Weights, causal: bool, scaled: bool, averaged: bool) -> Attention {
    Attention { weights, causal, scaled, averaged }
}

/// Architectures that between them use every option, and sizes that fill vectors and do not.
fn cases() -> Vec<(Gpt2Config, [usize; 3])> {
    let base = Gpt2Config { inputs: 3, layers: 2, positions: Positions::Learned(30), ..Gpt2Config::default() }
        .with_width(32, 2);
    let bare = Gpt2Config {
        inputs: 12,
        outputs: 5,
        width: 12,
        heads: 3,
        key: 5,
        mlp: 0,
        attention: attention(Weights::Linear, true, false, false),
        positions: Positions::None,
        layer_norm: false,
        biases: false,
        read: false,
        ..base.clone()
    };
    let forms = twins::forms().map(|attention| {
        (Gpt2Config { attention, heads: 2, key: 6, inputs: 12, mlp: 8, layers: 1, ..bare.clone() }, [2, 9, 2])
    });
    // Enough heads to go side by side, two or three prompts of 13 a part: a last group of ten or seven.
    let side_by_side = twins::forms().map(|attention| {
        (Gpt2Config { attention, heads: 13, key: 6, inputs: 12, mlp: 8, layers: 1, ..bare.clone() }, [17, 9, 2])
    });
    let mut cases = vec![
        (base.clone(), [3, 22, 2]),
        // Wide enough for products on tile registers, those with all tokens as terms too.
        (Gpt2Config { layers: 1, ..base.clone() }.with_width(144, 3), [9, 22, 2]),
        // Wide enough that gradients in weights are summed as transposes, and no whole number of tiles.
        (Gpt2Config { layers: 1, ..base.clone() }.with_width(84, 3), [9, 5, 2]),
        // And with tokens as wide, whose rows are no whole vectors.
        (Gpt2Config { layers: 1, inputs: 70, ..base.clone() }.with_width(84, 3), [9, 5, 2]),
        (Gpt2Config { heads: 3, key: 5, width: 20, mlp: 24, outputs: 2, ..base.clone() }, [11, 7, 1]),
        (Gpt2Config { attention: attention(Weights::Softmax, false, true, false), ..base.clone() }, [2, 17, 2]),
        (
            Gpt2Config {
                attention: attention(Weights::Relu, false, true, true),
                read: false,
                inputs: 32,
                ..base.clone()
            },
            [2, 9, 1],
        ),
        (
            Gpt2Config { attention: attention(Weights::Exp, true, true, true), biases: false, ..base.clone() },
            [2, 18, 3],
        ),
        (Gpt2Config { clamp: Some(0.7), ..bare.clone() }, [3, 18, 1]),
        (Gpt2Config { clamp: Some(0.9), mlp: 20, attention: Attention::default(), ..bare.clone() }, [3, 18, 2]),
        (Gpt2Config { attention: attention(Weights::Relu, true, false, false), ..bare.clone() }, [2, 5, 1]),
        (
            Gpt2Config {
                positions: Positions::Sinusoidal,
                attention: Attention::default(),
                read: true,
                inputs: 4,
                ..bare.clone()
            },
            [2, 33, 1],
        ),
        (Gpt2Config { width: 1, heads: 1, key: 1, mlp: 1, layers: 1, inputs: 1, layer_norm: false, ..base }, [1, 1, 1]),
        (Gpt2Config { mlp: 7, attention: attention(Weights::Linear, false, true, true), ..bare.clone() }, [2, 20, 4]),
        // Side by side, with keys of more than a vector, of one, and sinusoids.
        (Gpt2Config { heads: 14, key: 20, attention: Attention::default(), ..bare.clone() }, [2, 10, 1]),
        (
            Gpt2Config {
                heads: 4,
                key: 16,
                positions: Positions::Sinusoidal,
                attention: Attention::default(),
                read: true,
                inputs: 4,
                ..bare.clone()
            },
            [64, 6, 2],
        ),
    ];
    cases.extend(forms);
    cases.extend(side_by_side);
    cases
}

fn model(config: &Gpt2Config, seed: u64) -> Gpt2 {
    let mut model = Gpt2::init(config.clone(), Init::FanIn, seed).unwrap();
    // Biases, gains and positions that are not trivial.
    for entry in config.tensors() {
        if entry.name.ends_with("bias") || entry.name.contains("ln_") || entry.name == "wpe.weight" {
            let values: Vec<f32> = random(seed + 7, entry.at.len(), 0.5);
            let shift = if entry.name.contains("ln_") && entry.name.ends_with("weight") { 1.0 } else { 0.0 };
            model.set_tensor(&entry.name, &values.iter().map(|v| v + shift).collect::<Vec<_>>()).unwrap();
        }
    }
    model
}

fn sequences([inputs, outputs]: [usize; 2], [batch, length, every]: [usize; 3]) -> Sequences {
    let tokens = random(3, batch * length * inputs, 1.5);
    let targets = random(4, batch * length.div_ceil(every) * outputs, 1.0);
    let s = Sequences::new([batch, length, inputs], tokens, outputs, targets, every).unwrap();
    let weights = random(5, s.predictions(), 1.0).iter().map(|w| f64::from(w.abs()) + 0.1).collect();
    s.with_weights(weights).unwrap()
}

fn assert_close(a: impl IntoIterator<Item = f64>, b: impl IntoIterator<Item = f64>, tolerance: f64, what: &str) {
    let (a, b): (Vec<f64>, Vec<f64>) = (a.into_iter().collect(), b.into_iter().collect());
    assert_eq!(a.len(), b.len(), "{what}");
    let scale = b.iter().fold(1.0_f64, |m, v| m.max(v.abs()));
    for (i, (a, b)) in a.iter().zip(&b).enumerate() {
        assert!((a - b).abs() <= tolerance * scale, "{what}, entry {i}: {a} against {b}");
    }
}

fn doubles(values: Vec<f32>) -> Vec<f64> {
    values.into_iter().map(f64::from).collect()
}

/// A model's predictions, hidden states, loss and gradients, in every tensor and in the tokens, are its twin's.
fn equals_its_twin<C: Architecture>(
    model: &SequenceModel<C>,
    s: &Sequences,
    twin: impl Fn(&Leaf<(usize,)>, &Leaf<(usize, usize, usize)>) -> (Vec<Vec<f64>>, Taped2),
) {
    let (config, dev) = (model.config(), Cpu::default());
    let (tokens_shape, rows) = ((s.batch(), s.length(), s.inputs()), s.batch() * s.length());
    let values = doubles(model.values());
    let params = dev.tensor_from_vec(values.clone(), (values.len(),));
    let tokens = dev.tensor_from_vec(doubles(s.tokens().to_vec()), tokens_shape);
    let (states, expected) = twin(&params, &tokens);
    let what = |what: &str| format!("{what} of {config:?}");

    for (l, (ours, theirs)) in model.hidden_states(s).unwrap().into_iter().zip(states).enumerate() {
        assert_close(doubles(ours), theirs, 3e-6, &what(&format!("layer {l}")));
    }
    // The place of each prediction's entries among those of all tokens.
    let place = |k: usize| {
        let (prediction, entry) = (k / s.outputs(), k % s.outputs());
        let (prompt, t) = (prediction / s.predictions(), prediction % s.predictions() * s.every());
        (prompt * s.length() + t) * s.outputs() + entry
    };
    let all = expected.as_vec();
    let predictions = model.predict(s).unwrap();
    let at_predictions = (0..s.targets().len()).map(|k| all[place(k)]);
    assert_close(doubles(predictions), at_predictions, 3e-6, &what("predictions"));

    // Tokens without a prediction have the weight 0.
    let (mut targets, mut weights) = (vec![0.0; all.len()], vec![0.0; all.len()]);
    for (k, y) in s.targets().iter().enumerate() {
        targets[place(k)] = f64::from(*y);
        weights[place(k)] = s.weights()[k / s.outputs() % s.predictions()] / s.batch() as f64;
    }
    let targets = dev.tensor_from_vec(targets, (rows, s.outputs()));
    let weights = dev.tensor_from_vec(weights, (rows, s.outputs()));
    let expected_loss = ((expected - targets).square() * weights).sum();
    let value = expected_loss.array();
    let expected = expected_loss.backward();
    let (loss, fused) = model.loss_and_gradient(s).unwrap();
    assert!((loss - value).abs() < 1e-5 * (1.0 + value), "{loss} against {value}, {config:?}");
    assert!((model.loss(s).unwrap() - loss).abs() < 1e-6 * (1.0 + loss));

    let tokens32 = dev.tensor_from_vec(s.tokens().to_vec(), tokens_shape);
    let out = (s.batch(), s.predictions(), s.outputs());
    let targets = dev.tensor_from_vec(s.targets().to_vec(), out);
    let weights =
        (0..s.targets().len()).map(|k| (s.weights()[k / s.outputs() % s.predictions()] / s.batch() as f64) as f32);
    let weights = dev.tensor_from_vec(weights.collect(), out);
    let predictions = model.on_tape(model.params().leaky_trace(), tokens32.leaky_trace(), s.every()).unwrap();
    let on_tape = ((predictions - targets).square() * weights).sum().backward();

    let in_tokens = doubles(on_tape.get(&tokens32).as_vec());
    assert_gradient(in_tokens, expected.get(&tokens).as_vec(), &what("tokens"));
    let in_params = expected.get(&params).as_vec();
    for gradients in [&fused, &on_tape] {
        let ours = doubles(gradients.get(&model.params()).as_vec());
        for entry in config.tensors() {
            let of = |all: &[f64]| all[entry.at.clone()].to_vec();
            assert_gradient(of(&ours), of(&in_params), &what(&entry.name));
        }
    }
}

/// A gradient in single precision is the one in double precision, to a part of the largest entry.
fn assert_gradient(ours: Vec<f64>, expected: Vec<f64>, what: &str) {
    assert_eq!(ours.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    for (i, (a, b)) in ours.iter().zip(&expected).enumerate() {
        assert!((a - b).abs() <= 1e-5 * largest + 1e-8, "{what}, entry {i}: {a} against {b}");
    }
}

#[test]
fn transformers_and_their_gradients_are_their_twins() {
    for (config, shape) in cases() {
        let twin = |params: &_, tokens: &_| gpt2_twin(&config, params, tokens);
        equals_its_twin(&model(&config, 1), &sequences(config.entries(), shape), twin);
    }
}

#[test]
fn lstms_and_their_gradients_are_their_twins() {
    for (config, shape) in [
        (LstmConfig { inputs: 3, outputs: 1, layers: 2, width: 16 }, [3, 9, 2]),
        (LstmConfig { inputs: 2, outputs: 3, layers: 3, width: 5 }, [11, 4, 1]),
        (LstmConfig { inputs: 1, outputs: 1, layers: 1, width: 1 }, [1, 1, 1]),
        // Gradients in weights are summed as transposes, with columns that fill up the gates and without.
        (LstmConfig { inputs: 3, outputs: 1, layers: 2, width: 64 }, [5, 3, 1]),
        (LstmConfig { inputs: 3, outputs: 1, layers: 2, width: 70 }, [5, 3, 1]),
    ] {
        let s = sequences(config.entries(), shape);
        equals_its_twin(&Lstm::init(config.clone(), 4).unwrap(), &s, |params, tokens| {
            lstm_twin(&config, params, tokens)
        });
    }
}

#[test]
fn a_view_of_tokens_has_its_gradient_where_it_came_from() {
    let config = LstmConfig { inputs: 2, outputs: 1, layers: 1, width: 3 };
    let model = Lstm::init(config, 4).unwrap();
    let by_entry = Cpu::default().tensor_from_vec(random(1, 24, 1.0), (3, 2, 4));
    let tokens = |x: Tensor<_, f32, Cpu, OwnedTape<f32, Cpu>>| x.permute::<(usize, usize, usize), Axes3<0, 2, 1>>();
    let copy = Cpu::default().tensor_from_vec(tokens(by_entry.leaky_trace()).as_vec(), (3, 4, 2));
    let gradients = |tokens| model.on_tape(model.params().leaky_trace(), tokens, 1).unwrap().square().sum().backward();
    let of_view = gradients(tokens(by_entry.leaky_trace())).get(&by_entry).as_vec();
    let of_copy = gradients(copy.leaky_trace()).get(&copy).permute::<_, Axes3<0, 2, 1>>();
    assert_eq!(of_view, of_copy.as_vec());
}

/// Prompt `b` of a batch, on its own.
fn prompt(s: &Sequences, b: usize) -> Sequences {
    let (tokens, targets) = (s.length() * s.inputs(), s.predictions() * s.outputs());
    let (x, y) = (s.tokens()[b * tokens..][..tokens].to_vec(), s.targets()[b * targets..][..targets].to_vec());
    let one = Sequences::new([1, s.length(), s.inputs()], x, s.outputs(), y, s.every()).unwrap();
    one.with_weights(s.weights().to_vec()).unwrap()
}

/// The gradient in the tokens of the sum of the predictions' squares.
fn gradient_in_tokens<C: Architecture>(model: &SequenceModel<C>, s: &Sequences) -> Vec<f32> {
    let tokens = Cpu::default().tensor_from_vec(s.tokens().to_vec(), (s.batch(), s.length(), s.inputs()));
    let predictions = model.on_tape(model.params().leaky_trace(), tokens.leaky_trace(), s.every()).unwrap();
    predictions.square().sum().backward().get(&tokens).as_vec()
}

/// Whatever a model says of a batch is what it says of its prompts one at a time: the loss and its gradient are means.
fn a_batch_is_its_prompts<C: Architecture>(model: &SequenceModel<C>, s: &Sequences) {
    let config = model.config();
    let (loss, gradients) = model.loss_and_gradient(s).unwrap();
    let gradient = gradients.get(&model.params()).as_vec();
    let states = model.hidden_states(s).unwrap();
    let (mut mean_loss, mut in_tokens, mut predictions) = (0.0, Vec::new(), Vec::new());
    let (mut mean, mut size) = (vec![0.0; gradient.len()], vec![0.0; gradient.len()]);
    for b in 0..s.batch() {
        let one = prompt(s, b);
        let (loss, gradients) = model.loss_and_gradient(&one).unwrap();
        mean_loss += loss / s.batch() as f64;
        for (k, g) in gradients.get(&model.params()).as_vec().into_iter().enumerate() {
            mean[k] += f64::from(g) / s.batch() as f64;
            size[k] += f64::from(g.abs()) / s.batch() as f64;
        }
        predictions.extend(model.predict(&one).unwrap());
        in_tokens.extend(gradient_in_tokens(model, &one));
        for (l, state) in model.hidden_states(&one).unwrap().into_iter().enumerate() {
            let ours = states[l][b * state.len()..][..state.len()].iter().map(|v| f64::from(*v));
            assert_close(ours, state.into_iter().map(f64::from), 1e-6, &format!("prompt {b}, layer {l} of {config:?}"));
        }
    }
    assert!((loss - mean_loss).abs() < 1e-6 * mean_loss, "{loss} against {mean_loss} ({config:?})");
    for entry in config.tensors() {
        // What one prompt contributes: the prompts' gradients are of either sign.
        let scale = size[entry.at.clone()].iter().fold(0.0_f64, |m, v| m.max(*v));
        assert!(scale > 0.0, "{} has no gradient ({config:?})", entry.name);
        for k in entry.at.clone() {
            let (ours, expected) = (f64::from(gradient[k]), mean[k]);
            assert!(
                (ours - expected).abs() <= 3e-6 * scale,
                "{}, entry {}: {ours} against {expected} ({config:?})",
                entry.name,
                k - entry.at.start
            );
        }
    }
    assert_close(doubles(model.predict(s).unwrap()), doubles(predictions), 1e-6, &format!("{config:?}"));
    assert_close(doubles(gradient_in_tokens(model, s)), doubles(in_tokens), 1e-6, &format!("tokens of {config:?}"));
}

#[test]
fn a_batch_of_several_chunks_has_the_mean_of_its_prompts_gradients() {
    // src/ops/sequence.rs cuts a batch into 8 parts, 53 prompts into parts of 6 or 7, and a part into chunks of at most 384
    // tokens, so of 3 prompts of 99 or 100: every part has two or three chunks, some of them of one size and some not.
    let shape = [53, 100, 2];
    let base = Gpt2Config { inputs: 3, layers: 2, positions: Positions::Learned(100), ..Gpt2Config::default() };
    for config in [
        base.clone().with_width(16, 2),
        Gpt2Config { attention: attention(Weights::Softmax, false, true, false), ..base.clone().with_width(20, 1) },
        Gpt2Config { positions: Positions::Sinusoidal, outputs: 2, mlp: 0, ..base.with_width(12, 3) },
    ] {
        a_batch_is_its_prompts(&model(&config, 6), &sequences(config.entries(), shape));
    }
    let config = LstmConfig { inputs: 3, outputs: 2, layers: 2, width: 20 };
    let s = sequences(config.entries(), shape);
    a_batch_is_its_prompts(&Lstm::init(config, 6).unwrap(), &s);
}

/// The bits of a loss, a gradient, predictions and hidden states.
fn bits<C: Architecture>(model: &SequenceModel<C>, s: &Sequences) -> Vec<u32> {
    let (loss, gradients) = model.loss_and_gradient(s).unwrap();
    let mut all = gradients.get(&model.params()).as_vec();
    all.push(loss as f32);
    all.extend(model.predict(s).unwrap());
    all.extend(model.hidden_states(s).unwrap().concat());
    all.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn every_number_of_threads_gives_the_same_bits() {
    let transformer = Gpt2Config { inputs: 3, layers: 2, ..Gpt2Config::default() }.with_width(32, 2);
    let recurrent = LstmConfig { inputs: 3, layers: 2, width: 16, outputs: 1 };
    let gpt2 = model(&transformer, 5);
    let lstm = Lstm::init(recurrent, 5).unwrap();
    // Fewer sequences than parts, parts of several chunks, and more threads than chunks.
    for shape in [[37, 22, 2], [1, 22, 2], [3, 22, 2], [5, 60, 2], [30, 130, 1]] {
        let s = sequences(transformer.entries(), shape);
        let all = [1, 2, 3, 4, 19].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| (bits(&gpt2, &s), bits(&lstm, &s)))
        });
        assert!(all.iter().all(|bits| *bits == all[0]), "{shape:?}");
    }
}

#[test]
fn architectures_without_some_of_their_parts_give_the_same_bits_too() {
    let whole = Gpt2Config { inputs: 8, layers: 2, ..Gpt2Config::default() }.with_width(8, 2);
    let attention = Gpt2Config { mlp: 0, layer_norm: false, read: false, positions: Positions::None, ..whole.clone() };
    let of_sinusoids = Gpt2Config { mlp: 0, positions: Positions::Sinusoidal, ..whole.clone() };
    for config in [attention, of_sinusoids, Gpt2Config { biases: false, ..whole }] {
        let (gpt2, s) = (model(&config, 5), sequences(config.entries(), [20, 40, 1]));
        let all = [1, 2, 7].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| bits(&gpt2, &s))
        });
        assert!(all[0] == all[1] && all[1] == all[2], "{config:?}");
    }
}

#[test]
fn lesser_instruction_sets_pass_too() {
    instruction_sets::tests_pass_with_lesser_ones("lesser_instruction_sets_pass_too");
}

#[test]
fn the_tensor_of_the_parameters_has_the_numbers_that_they_have_now() {
    let config = LstmConfig { inputs: 2, outputs: 1, layers: 1, width: 3 };
    let mut model = Lstm::init(config, 0).unwrap();
    let before = model.params();
    model.set_tensor("read_out.bias", &[7.0]).unwrap();
    // A clone that is made before anyone has asked.
    for model in [&model.clone(), &model] {
        assert_eq!(model.params().as_vec(), model.values());
        assert_eq!(model.params().as_vec().last(), Some(&7.0));
    }
    // A gradient in the tensor of before is one in that of now.
    let gradients = before.leaky_trace().sum().backward();
    assert!(gradients.get(&model.params()).as_vec().iter().all(|g| *g == 1.0));
    // A refused change is none.
    assert!(model.set_tensor("read_out.bias", &[f32::NAN]).is_err());
    assert_eq!(model.params().as_vec(), model.values());
}
