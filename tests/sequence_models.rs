//! The fused transformer and LSTM against plain ones in double precision, their gradients against finite differences.

#[path = "support/instruction_sets.rs"]
mod instruction_sets;

use dfdx::prelude::*;
use incontext::models::{Gpt2, Gpt2Config, Init, Lstm, LstmConfig, Positions, SequenceModel};
use incontext::ops::attention::{Attention, Weights};
use incontext::ops::sequence::Architecture;
use incontext::rng::{Rng, stream};
use incontext::tasks::Sequences;

fn random(seed: u64, len: usize, scale: f32) -> Vec<f32> {
    let mut rng = stream(seed, "test", 0);
    (0..len).map(|_| scale * rng.gen_range(-1.0..1.0)).collect()
}

/// The transformer written down as in the papers, in double precision: parameters by name, one prompt.
struct Plain<'a> {
    config: &'a Gpt2Config,
    params: &'a [f64],
}

impl Plain<'_> {
    fn get(&self, name: &str) -> Option<&[f64]> {
        let entry = self.config.tensors().into_iter().find(|e| e.name == name)?;
        Some(&self.params[entry.at])
    }

    /// x W + b with W `[in, out]`.
    fn affine(&self, name: &str, x: &[Vec<f64>], out: usize) -> Vec<Vec<f64>> {
        let w = self.get(&format!("{name}.weight")).unwrap();
        let b = self.get(&format!("{name}.bias")).map_or(vec![0.0; out], <[f64]>::to_vec);
        x.iter()
            .map(|x| {
                (0..out).map(|j| b[j] + x.iter().enumerate().map(|(p, x)| x * w[p * out + j]).sum::<f64>()).collect()
            })
            .collect()
    }

    fn norm(&self, name: &str, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let Some(gamma) = self.get(&format!("{name}.weight")) else { return x.to_vec() };
        let beta = self.get(&format!("{name}.bias")).unwrap();
        let row = |x: &Vec<f64>| {
            let n = x.len() as f64;
            let mean = x.iter().sum::<f64>() / n;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
            x.iter().enumerate().map(|(c, x)| (x - mean) / (variance + 1e-5).sqrt() * gamma[c] + beta[c]).collect()
        };
        x.iter().map(row).collect()
    }

    fn attend(&self, qkv: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let c = self.config;
        let (k, inner, length, form) = (c.key, c.heads * c.key, qkv.len(), c.attention);
        let mut out = vec![vec![0.0; inner]; length];
        for h in 0..c.heads {
            for i in 0..length {
                let end = if form.causal { i + 1 } else { length };
                let scale = if form.scaled { 1.0 / (k as f64).sqrt() } else { 1.0 };
                let score =
                    |j: usize| (0..k).map(|a| qkv[i][h * k + a] * qkv[j][inner + h * k + a]).sum::<f64>() * scale;
                let scores: Vec<f64> = (0..end).map(score).collect();
                let total: f64 = scores.iter().map(|s| s.exp()).sum();
                for (j, s) in scores.iter().enumerate() {
                    let mut weight = match form.weights {
                        Weights::Softmax => s.exp() / total,
                        Weights::Linear => *s,
                        Weights::Relu => s.max(0.0),
                        Weights::Exp => s.exp(),
                    };
                    if form.averaged && form.weights != Weights::Softmax {
                        weight /= end as f64;
                    }
                    for a in 0..k {
                        out[i][h * k + a] += weight * qkv[j][2 * inner + h * k + a];
                    }
                }
            }
        }
        out
    }

    /// Hidden states after each layer, and the predictions at every token.
    fn run(&self, tokens: &[Vec<f64>]) -> (Vec<Vec<Vec<f64>>>, Vec<Vec<f64>>) {
        let c = self.config;
        let inner = c.heads * c.key;
        let transposed = |name: &str, x: &[Vec<f64>], out: usize| -> Vec<Vec<f64>> {
            let w = self.get(&format!("{name}.weight")).unwrap();
            let b = self.get(&format!("{name}.bias")).map_or(vec![0.0; out], <[f64]>::to_vec);
            x.iter()
                .map(|x| {
                    (0..out)
                        .map(|j| b[j] + x.iter().enumerate().map(|(p, v)| v * w[j * x.len() + p]).sum::<f64>())
                        .collect()
                })
                .collect()
        };
        let mut x = if c.read { transposed("read_in", tokens, c.width) } else { tokens.to_vec() };
        if let Some(positions) = self.get("wpe.weight") {
            for (t, x) in x.iter_mut().enumerate() {
                x.iter_mut().zip(&positions[t * c.width..]).for_each(|(x, p)| *x += p);
            }
        }
        let add = |x: &mut [Vec<f64>], y: Vec<Vec<f64>>| {
            x.iter_mut().zip(y).for_each(|(x, y)| x.iter_mut().zip(y).for_each(|(x, y)| *x += y));
        };
        let mut states = Vec::new();
        for l in 0..c.layers {
            states.push(x.clone());
            let mut qkv = self.affine(&format!("h.{l}.attn.c_attn"), &self.norm(&format!("h.{l}.ln_1"), &x), 3 * inner);
            if l == 0 && c.positions == Positions::Sinusoidal {
                let w = self.get("h.0.attn.c_position.weight").unwrap();
                for (t, row) in qkv.iter_mut().enumerate() {
                    for e in 0..c.width {
                        let angle = t as f64 / 10_000_f64.powf((e / 2 * 2) as f64 / c.width as f64);
                        let s = if e % 2 == 0 { angle.sin() } else { angle.cos() };
                        (0..2 * inner).for_each(|j| row[j] += s * w[e * 2 * inner + j]);
                    }
                }
            }
            add(&mut x, self.affine(&format!("h.{l}.attn.c_proj"), &self.attend(&qkv), c.width));
            if c.mlp > 0 {
                let mut hidden = self.affine(&format!("h.{l}.mlp.c_fc"), &self.norm(&format!("h.{l}.ln_2"), &x), c.mlp);
                for z in hidden.iter_mut().flatten() {
                    let u = (2.0 / std::f64::consts::PI).sqrt() * (*z + 0.044715 * z.powi(3));
                    *z = 0.5 * *z * (1.0 + u.tanh());
                }
                add(&mut x, self.affine(&format!("h.{l}.mlp.c_proj"), &hidden, c.width));
            }
            if let Some(clamp) = c.clamp {
                x.iter_mut().flatten().for_each(|x| *x = x.clamp(-f64::from(clamp), f64::from(clamp)));
            }
        }
        let last = self.norm("ln_f", &x);
        states.push(last.clone());
        let out = if c.read {
            transposed("read_out", &last, c.outputs)
        } else {
            last.iter().map(|x| x[..c.outputs].to_vec()).collect()
        };
        (states, out)
    }

    fn predict(&self, s: &Sequences) -> Vec<f64> {
        let prompts = s.tokens().chunks(s.length() * s.inputs());
        let predictions =
            prompts.flat_map(|prompt| self.run(&rows(prompt, s.inputs())).1.into_iter().step_by(s.every()));
        predictions.flatten().collect()
    }

    fn loss(&self, s: &Sequences) -> f64 {
        let pairs = self.predict(s).into_iter().zip(s.targets()).enumerate();
        pairs
            .map(|(k, (p, y))| s.weights()[k / s.outputs() % s.predictions()] * (p - f64::from(*y)).powi(2))
            .sum::<f64>()
            / s.batch() as f64
    }
}

fn rows(flat: &[f32], width: usize) -> Vec<Vec<f64>> {
    flat.chunks(width).map(|row| row.iter().map(|v| f64::from(*v)).collect()).collect()
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
    vec![
        (base.clone(), [3, 22, 2]),
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
        (Gpt2Config { mlp: 7, attention: attention(Weights::Linear, false, true, true), ..bare }, [2, 20, 4]),
    ]
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

fn sequences(config: &Gpt2Config, [batch, length, every]: [usize; 3]) -> Sequences {
    let tokens = random(3, batch * length * config.inputs, 1.5);
    let targets = random(4, batch * length.div_ceil(every) * config.outputs, 1.0);
    let s = Sequences::new([batch, length, config.inputs], tokens, config.outputs, targets, every).unwrap();
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

#[test]
fn predictions_and_hidden_states_equal_the_plain_transformers() {
    for (config, shape) in cases() {
        let (model, s) = (model(&config, 1), sequences(&config, shape));
        let params: Vec<f64> = model.values().iter().map(|v| f64::from(*v)).collect();
        let plain = Plain { config: &config, params: &params };
        let predictions = model.predict(&s).unwrap();
        assert_close(predictions.iter().map(|v| f64::from(*v)), plain.predict(&s), 3e-6, &format!("{config:?}"));
        let states = model.hidden_states(&s).unwrap();
        for (b, prompt) in s.tokens().chunks(s.length() * s.inputs()).enumerate() {
            let expected = plain.run(&rows(prompt, s.inputs())).0;
            for (l, expected) in expected.iter().enumerate() {
                let size = s.length() * config.width;
                let state = states[l][b * size..][..size].iter().map(|v| f64::from(*v));
                assert_close(state, expected.iter().flatten().copied(), 3e-6, &format!("layer {l} of {config:?}"));
            }
        }
    }
}

#[test]
fn the_gradient_in_every_tensor_is_that_of_finite_differences() {
    for (config, shape) in cases() {
        let (model, s) = (model(&config, 2), sequences(&config, shape));
        let params: Vec<f64> = model.values().iter().map(|v| f64::from(*v)).collect();
        let (loss, gradients) = model.loss_and_gradient(&s).unwrap();
        let expected = Plain { config: &config, params: &params }.loss(&s);
        assert!((loss - expected).abs() < 1e-5 * (1.0 + expected), "{loss} against {expected}");
        assert!((model.loss(&s).unwrap() - loss).abs() < 1e-6 * (1.0 + loss));
        let gradient = gradients.get(&model.params).as_vec();
        for entry in config.tensors() {
            // Along a random direction in this tensor.
            let direction = random(9, entry.at.len(), 1.0);
            let at = |h: f64| {
                let mut moved = params.clone();
                moved[entry.at.clone()].iter_mut().zip(&direction).for_each(|(p, d)| *p += h * f64::from(*d));
                Plain { config: &config, params: &moved }.loss(&s)
            };
            let h = 1e-6;
            let numeric = (at(h) - at(-h)) / (2.0 * h);
            let pairs = gradient[entry.at.clone()].iter().zip(&direction);
            let ours: f64 = pairs.clone().map(|(g, d)| f64::from(g * d)).sum();
            let scale: f64 = pairs.map(|(g, d)| f64::from(g * d).abs()).sum();
            assert!(
                (ours - numeric).abs() <= 2e-5 * (scale + 1e-2),
                "{}: {ours} against {numeric} ({config:?})",
                entry.name
            );
        }
    }
}

#[test]
fn on_the_tape_it_has_the_same_gradient_and_one_in_the_tokens() {
    for (config, shape) in cases() {
        let (model, s) = (model(&config, 3), sequences(&config, shape));
        let dev = Cpu::default();
        let tokens = dev.tensor_from_vec(s.tokens().to_vec(), (s.batch(), s.length(), s.inputs()));
        let out = (s.batch(), s.predictions(), s.outputs());
        let targets = dev.tensor_from_vec(s.targets().to_vec(), out);
        let weights =
            (0..s.targets().len()).map(|k| (s.weights()[k / s.outputs() % s.predictions()] / s.batch() as f64) as f32);
        let weights = dev.tensor_from_vec(weights.collect(), out);
        let predictions = model.on_tape(model.params.leaky_trace(), tokens.leaky_trace(), s.every()).unwrap();
        let gradients = ((predictions - targets).square() * weights).sum().backward();
        let (_, fused) = model.loss_and_gradient(&s).unwrap();
        let both = [&gradients, &fused].map(|g| g.get(&model.params).as_vec().into_iter().map(f64::from));
        let [a, b] = both;
        assert_close(a, b, 1e-6, &format!("{config:?}"));
        let ours = gradients.get(&tokens).as_vec();
        let params: Vec<f64> = model.values().iter().map(|v| f64::from(*v)).collect();
        for k in [0, ours.len() / 2, ours.len() - 1] {
            let at = |h: f32| {
                let mut moved = s.tokens().to_vec();
                moved[k] += h;
                let change = f64::from(moved[k]) - f64::from(s.tokens()[k]);
                let moved = Sequences::new(
                    [s.batch(), s.length(), s.inputs()],
                    moved,
                    s.outputs(),
                    s.targets().to_vec(),
                    s.every(),
                );
                let moved = moved.unwrap().with_weights(s.weights().to_vec()).unwrap();
                (Plain { config: &config, params: &params }.loss(&moved), change)
            };
            let ((up, a), (down, b)) = (at(2e-3), at(-2e-3));
            let numeric = (up - down) / (a - b);
            assert!(
                (f64::from(ours[k]) - numeric).abs() < 2e-3 * (1.0 + numeric.abs()),
                "token entry {k}: {} {numeric} {config:?}",
                ours[k]
            );
        }
    }
}

/// The LSTM written down, in double precision: hidden states of each layer and predictions at every token of a prompt.
fn plain_lstm(config: &LstmConfig, params: &[f64], tokens: &[Vec<f64>]) -> (Vec<Vec<Vec<f64>>>, Vec<Vec<f64>>) {
    let entries = config.tensors();
    let get = |name: &str| &params[entries.iter().find(|e| e.name == name).unwrap().at.clone()];
    let affine = |weight: &str, bias: &str, x: &[f64]| -> Vec<f64> {
        let (w, b) = (get(weight), get(bias));
        b.iter().zip(w.chunks(x.len())).map(|(b, w)| b + x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>()).collect()
    };
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let mut x: Vec<Vec<f64>> = tokens.iter().map(|t| affine("read_in.weight", "read_in.bias", t)).collect();
    let mut states = vec![x.clone()];
    for l in 0..config.layers {
        let h_size = config.width;
        let (mut h, mut c) = (vec![0.0; h_size], vec![0.0; h_size]);
        for x in &mut x {
            let a = affine(&format!("lstm.weight_ih_l{l}"), &format!("lstm.bias_ih_l{l}"), x);
            let b = affine(&format!("lstm.weight_hh_l{l}"), &format!("lstm.bias_hh_l{l}"), &h);
            let z: Vec<f64> = a.iter().zip(b).map(|(a, b)| a + b).collect();
            for u in 0..h_size {
                c[u] = sigmoid(z[h_size + u]) * c[u] + sigmoid(z[u]) * z[2 * h_size + u].tanh();
                h[u] = sigmoid(z[3 * h_size + u]) * c[u].tanh();
            }
            x.clone_from(&h);
        }
        states.push(x.clone());
    }
    let out = x.iter().map(|x| affine("read_out.weight", "read_out.bias", x)).collect();
    (states, out)
}

#[test]
fn the_lstm_equals_the_plain_one_and_so_do_its_gradients() {
    for (config, [batch, length, every]) in [
        (LstmConfig { inputs: 3, outputs: 1, layers: 2, width: 16 }, [3, 9, 2]),
        (LstmConfig { inputs: 2, outputs: 3, layers: 3, width: 5 }, [11, 4, 1]),
        (LstmConfig { inputs: 1, outputs: 1, layers: 1, width: 1 }, [1, 1, 1]),
    ] {
        let model = Lstm::init(config.clone(), 4).unwrap();
        let tokens = random(3, batch * length * config.inputs, 1.5);
        let targets = random(4, batch * length.div_ceil(every) * config.outputs, 1.0);
        let s = Sequences::new([batch, length, config.inputs], tokens, config.outputs, targets, every).unwrap();
        let loss = |params: &[f64]| {
            let prompts = s.tokens().chunks(length * config.inputs);
            let runs =
                prompts.flat_map(|p| plain_lstm(&config, params, &rows(p, config.inputs)).1.into_iter().step_by(every));
            let predictions: Vec<f64> = runs.flatten().collect();
            let squares = predictions.iter().zip(s.targets()).map(|(p, y)| (p - f64::from(*y)).powi(2));
            (squares.sum::<f64>() / (batch * s.predictions()) as f64, predictions)
        };
        let params: Vec<f64> = model.values().iter().map(|v| f64::from(*v)).collect();
        let predictions = model.predict(&s).unwrap();
        assert_close(predictions.iter().map(|v| f64::from(*v)), loss(&params).1, 3e-6, &format!("{config:?}"));
        let states = model.hidden_states(&s).unwrap();
        for (b, prompt) in s.tokens().chunks(length * config.inputs).enumerate() {
            for (l, expected) in plain_lstm(&config, &params, &rows(prompt, config.inputs)).0.iter().enumerate() {
                let size = length * config.width;
                let state = states[l][b * size..][..size].iter().map(|v| f64::from(*v));
                assert_close(state, expected.iter().flatten().copied(), 3e-6, &format!("layer {l} of {config:?}"));
            }
        }
        let (value, gradients) = model.loss_and_gradient(&s).unwrap();
        assert!((value - loss(&params).0).abs() < 1e-5 * (1.0 + value));
        let gradient = gradients.get(&model.params).as_vec();
        for entry in config.tensors() {
            let direction = random(9, entry.at.len(), 1.0);
            let at = |h: f64| {
                let mut moved = params.clone();
                moved[entry.at.clone()].iter_mut().zip(&direction).for_each(|(p, d)| *p += h * f64::from(*d));
                loss(&moved).0
            };
            let numeric = (at(1e-6) - at(-1e-6)) / 2e-6;
            let pairs = gradient[entry.at.clone()].iter().zip(&direction);
            let ours: f64 = pairs.clone().map(|(g, d)| f64::from(g * d)).sum();
            let scale: f64 = pairs.map(|(g, d)| f64::from(g * d).abs()).sum();
            assert!(
                (ours - numeric).abs() <= 2e-5 * (scale + 1e-2),
                "{}: {ours} against {numeric} ({config:?})",
                entry.name
            );
        }
        // On the tape, in a token entry.
        let dev = Cpu::default();
        let x = dev.tensor_from_vec(s.tokens().to_vec(), (batch, length, config.inputs));
        let y = dev.tensor_from_vec(s.targets().to_vec(), (batch, s.predictions(), config.outputs));
        let out = model.on_tape(model.params.leaky_trace(), x.leaky_trace(), every).unwrap();
        let gradients = (out - y).square().sum().backward();
        let k = s.tokens().len() / 2;
        let at = |h: f32| {
            let mut moved = s.tokens().to_vec();
            moved[k] += h;
            let moved =
                Sequences::new([batch, length, config.inputs], moved, config.outputs, s.targets().to_vec(), every)
                    .unwrap();
            let prompts = moved.tokens().chunks(length * config.inputs);
            let runs = prompts
                .flat_map(|p| plain_lstm(&config, &params, &rows(p, config.inputs)).1.into_iter().step_by(every));
            let squares = runs.flatten().zip(s.targets()).map(|(p, y)| (p - f64::from(*y)).powi(2)).sum::<f64>();
            (squares, f64::from(moved.tokens()[k]))
        };
        let ((up, a), (down, b)) = (at(1e-2), at(-1e-2));
        let numeric = (up - down) / (a - b);
        let ours = f64::from(gradients.get(&x).as_vec()[k]);
        assert!((ours - numeric).abs() < 2e-3 * (1.0 + numeric.abs()), "{ours} against {numeric}");
    }
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
    let predictions = model.on_tape(model.params.leaky_trace(), tokens.leaky_trace(), s.every()).unwrap();
    predictions.square().sum().backward().get(&tokens).as_vec()
}

/// Whatever a model says of a batch is what it says of its prompts one at a time: the loss and its gradient are means.
fn a_batch_is_its_prompts<C: Architecture>(model: &SequenceModel<C>, s: &Sequences) {
    let config = model.config();
    let (loss, gradients) = model.loss_and_gradient(s).unwrap();
    let gradient = gradients.get(&model.params).as_vec();
    let states = model.hidden_states(s).unwrap();
    let (mut mean_loss, mut in_tokens, mut predictions) = (0.0, Vec::new(), Vec::new());
    let (mut mean, mut size) = (vec![0.0; gradient.len()], vec![0.0; gradient.len()]);
    for b in 0..s.batch() {
        let one = prompt(s, b);
        let (loss, gradients) = model.loss_and_gradient(&one).unwrap();
        mean_loss += loss / s.batch() as f64;
        for (k, g) in gradients.get(&model.params).as_vec().into_iter().enumerate() {
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
    let doubles = |values: Vec<f32>| values.into_iter().map(f64::from);
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
        a_batch_is_its_prompts(&model(&config, 6), &sequences(&config, shape));
    }
    let config = LstmConfig { inputs: 3, outputs: 2, layers: 2, width: 20 };
    let s = sequences(&Gpt2Config { inputs: 3, outputs: 2, ..Gpt2Config::default() }, shape);
    a_batch_is_its_prompts(&Lstm::init(config, 6).unwrap(), &s);
}

/// The bits of a loss, a gradient, predictions and hidden states.
fn bits<C: Architecture>(model: &SequenceModel<C>, s: &Sequences) -> Vec<u32> {
    let (loss, gradients) = model.loss_and_gradient(s).unwrap();
    let mut all = gradients.get(&model.params).as_vec();
    all.push(loss as f32);
    all.extend(model.predict(s).unwrap());
    all.extend(model.hidden_states(s).unwrap().concat());
    all.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn every_number_of_threads_gives_the_same_bits() {
    let transformer = Gpt2Config { inputs: 3, layers: 2, ..Gpt2Config::default() }.with_width(32, 2);
    let recurrent = LstmConfig { inputs: 3, layers: 2, width: 16, outputs: 1 };
    let s = sequences(&transformer, [37, 22, 2]);
    let gpt2 = model(&transformer, 5);
    let lstm = Lstm::init(recurrent, 5).unwrap();
    let all = [1, 2, 4].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| (bits(&gpt2, &s), bits(&lstm, &s)))
    });
    assert!(all[0] == all[1] && all[1] == all[2]);
}

#[test]
fn lesser_instruction_sets_pass_too() {
    instruction_sets::tests_pass_with_lesser_ones("lesser_instruction_sets_pass_too");
}
