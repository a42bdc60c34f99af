//! Trajectories: the fused transformer against plain formulas and finite differences, the mesa layer against ridge
//! regression, the tasks against their laws.

#[path = "support/instruction_sets.rs"]
mod instruction_sets;

use incontext::figure::Extremes;
use incontext::linalg::Matrix;
use incontext::models::SequenceTransformer;
use incontext::ops::lane_products::OnLanes;
use incontext::ops::sequence_transformer::{
    Architecture, LaneBatch, Layer, Mixer, predict, pullback, residuals, squared_loss, squared_loss_in_tokens,
};
use incontext::rng::{Rng, stream};
use incontext::tasks::dynamics::{Start, Teachers};
use incontext::tasks::{Dynamics, TokenKind};

fn random(len: usize, scale: f64, index: u64) -> Vec<f64> {
    let mut rng = stream(7, "test", index);
    (0..len).map(|_| scale * rng.gen_range(-1.0..1.0)).collect()
}

fn architectures() -> Vec<(&'static str, Architecture)> {
    let mesa = |forget| Layer::new(Mixer::Mesa { forget }, 2, 3);
    let softmax = Layer { positions: true, ..Layer::new(Mixer::Softmax, 2, 3) };
    let plain = |layers| Architecture { input: 6, width: 6, embed: false, output: 2, layers, clip: None };
    // ν = 1 to 3, with shifted keys of norm 1 and without. Keys have an even number of channels: with three of alternating
    // signs all features of ν = 1 are 0, and scaled to norm 1 they jump there.
    let powers = |mixer| {
        let of = |features| Layer { features, unit: true, shift: true, ..Layer::new(mixer, 2, 4) };
        plain(vec![of(1), of(3), Layer { unit: false, shift: false, ..of(2) }])
    };
    vec![
        ("linear", plain(vec![Layer::new(Mixer::Linear, 2, 5), Layer::new(Mixer::Linear, 1, 3)])),
        ("softmax", plain(vec![softmax, Layer::new(Mixer::Softmax, 3, 2)])),
        ("mesa", plain(vec![mesa(1.0), mesa(1.0)])),
        ("mesa that forgets", plain(vec![mesa(0.8)])),
        ("delta rule", plain(vec![Layer::new(Mixer::Delta { implicit: false }, 2, 3)])),
        ("implicit delta rule", plain(vec![Layer::new(Mixer::Delta { implicit: true }, 2, 3); 2])),
        ("clipped", Architecture { clip: Some(0.7), ..plain(vec![Layer::new(Mixer::Linear, 2, 3); 2]) }),
        ("linear with features", powers(Mixer::Linear)),
        ("mesa with features", powers(Mixer::Mesa { forget: 0.9 })),
        ("delta rule with features", powers(Mixer::Delta { implicit: false })),
        ("implicit delta rule with features", powers(Mixer::Delta { implicit: true })),
        (
            "all of it",
            Architecture {
                embed: true,
                input: 3,
                width: 7,
                output: 4,
                layers: vec![
                    Layer { mlp: Some(5), ..softmax },
                    Layer { unit: true, mlp: Some(6), ..mesa(0.95) },
                    Layer { unit: true, mlp: Some(3), ..Layer::new(Mixer::Softmax, 1, 4) },
                ],
                clip: None,
            },
        ),
    ]
}

/// Weights of the tokens `every` tokens apart, before token `needed`; 0 of the others.
fn weights(length: usize, needed: usize, every: usize) -> Vec<f64> {
    (0..length).map(|t| if t < needed && t % every == 0 { 0.5 + t as f64 } else { 0.0 }).collect()
}

/// Hands over the central differences of `loss` in every `stride`-th value.
fn differences(values: &[f64], stride: usize, loss: impl Fn(&[f64]) -> f64, mut found: impl FnMut(usize, f64)) {
    // A larger step takes rectified channels past 0.
    let h = 1e-6;
    for i in (0..values.len()).step_by(stride) {
        let moved = |by: f64| {
            let mut moved = values.to_vec();
            moved[i] += by;
            loss(&moved)
        };
        found(i, (moved(h) - moved(-h)) / (2.0 * h));
    }
}

/// A batch of tokens `[batch, length, input]` and one of targets, or of gradients in the predictions.
fn batches<T: OnLanes>(a: &Architecture, batch: usize, [tokens, targets]: [&[f64]; 2]) -> [LaneBatch<T>; 2] {
    [(tokens, a.input), (targets, a.output)]
        .map(|(values, channels)| LaneBatch::new(batch, values.len() / batch / channels, channels, values).unwrap())
}

/// Gradients of the loss in parameters and tokens are its finite differences, for every kind of layer, whether the loss is of
/// all tokens or some have no weight and are left out: the last ones, or those between.
#[test]
fn gradients_are_finite_differences() {
    let (batch, length) = (19, 6);
    let some = [(length, 1), (length - 2, 1), (length, 2), (length, 3), (1, 1)];
    let cases = architectures().into_iter().flat_map(|case| some.map(|tokens| (tokens, case.clone())));
    for (k, ((needed, every), (name, a))) in cases.enumerate() {
        let parameters = random(a.parameters(), 0.6, k as u64);
        let tokens = random(batch * length * a.input, 1.0, 100);
        let targets = LaneBatch::new(batch, length, a.output, &random(batch * length * a.output, 1.0, 101)).unwrap();
        let weights = weights(length, needed, every);
        let loss = |parameters: &[f64], tokens: &[f64]| {
            let tokens = LaneBatch::new(batch, length, a.input, tokens).unwrap();
            squared_loss_in_tokens(&a, parameters, &tokens, &targets, Some(&weights)).unwrap()
        };
        let (slope, in_tokens) = loss(&parameters, &tokens);
        let batched = LaneBatch::new(batch, length, a.input, &tokens).unwrap();
        let alone = squared_loss(&a, &parameters, &batched, &targets, Some(&weights)).unwrap();
        assert_eq!((alone.loss, alone.parameters), (slope.loss, slope.parameters.clone()), "{name}");
        let predicted = predict(&a, &parameters, &batched).unwrap().values();
        let squares = predicted
            .iter()
            .zip(targets.values())
            .enumerate()
            .map(|(i, (p, y))| weights[i / a.output % length] * (p - y).powi(2) / (2 * batch * length) as f64);
        let of_all_predictions = squares.sum::<f64>();
        assert!((of_all_predictions / slope.loss - 1.0).abs() < 1e-12, "{name}: {of_all_predictions} {}", slope.loss);
        let close = |what: &str, i: usize, numeric: f64, analytic: f64| {
            let off = (numeric - analytic).abs();
            assert!(off < 3e-6 * (1.0 + numeric.abs()), "{name} {what} {i}: {numeric} {analytic}");
        };
        differences(
            &parameters,
            3,
            |p| loss(p, &tokens).0.loss,
            |i, numeric| {
                close("parameter", i, numeric, slope.parameters[i]);
            },
        );
        let gradient = in_tokens.values();
        differences(
            &tokens,
            41,
            |t| loss(&parameters, t).0.loss,
            |i, numeric| {
                close("token entry", i, numeric, gradient[i]);
            },
        );
    }
}

/// Sequences of more tokens than attention takes at a time: gradients in parameters and tokens are finite differences, with
/// losses of all tokens and of some.
#[test]
fn long_sequences_have_these_gradients_too() {
    let (batch, length) = (2, 150);
    let quadratic = ["linear", "linear with features", "softmax", "all of it"];
    let cases = architectures().into_iter().filter(|(name, _)| quadratic.contains(name));
    for ((k, (name, a)), every) in cases.enumerate().flat_map(|case| [1, 2].map(|every| (case.clone(), every))) {
        // Linear attention sums over many tokens.
        let parameters = random(a.parameters(), if name.starts_with("linear") { 0.2 } else { 0.6 }, k as u64);
        let tokens = random(batch * length * a.input, 1.0, 100);
        let targets = LaneBatch::new(batch, length, a.output, &random(batch * length * a.output, 1.0, 101)).unwrap();
        let weights = weights(length, length, every);
        let loss = |parameters: &[f64], tokens: &[f64]| {
            let tokens = LaneBatch::new(batch, length, a.input, tokens).unwrap();
            squared_loss_in_tokens(&a, parameters, &tokens, &targets, Some(&weights)).unwrap()
        };
        let (slope, in_tokens) = loss(&parameters, &tokens);
        let close = |what: &str, i: usize, numeric: f64, analytic: &[f64]| {
            let off = (numeric - analytic[i]).abs() / analytic.iter().map(|g| g.abs()).greatest();
            assert!(off < 1e-6, "{name}, every {every}, {what} {i}: {numeric} {}", analytic[i]);
        };
        differences(
            &parameters,
            7,
            |p| loss(p, &tokens).0.loss,
            |i, numeric| {
                close("parameter", i, numeric, &slope.parameters);
            },
        );
        let in_tokens = in_tokens.values();
        differences(
            &tokens,
            97,
            |t| loss(&parameters, t).0.loss,
            |i, numeric| {
                close("token entry", i, numeric, &in_tokens);
            },
        );
    }
}

/// The f32 op on the machine's instruction set is the f64 one, with any number of threads.
#[test]
fn single_precision_agrees_with_its_twin() {
    let all = architectures();
    agrees(&all, 40, 17, &[1, 2, 3, 5]);
    // Seventeen queries, and the last of those of long sequences, come in blocks of four and five: of attention, layers that go from
    // token to token have none.
    let attends = |layer: &Layer| matches!(layer.mixer, Mixer::Softmax | Mixer::Linear);
    let attention: Vec<_> = all.into_iter().filter(|(_, a)| a.layers.iter().all(attends)).collect();
    agrees(&attention, 17, 35, &[2]);
    agrees(&attention, 3, 150, &[1, 2]);
}

fn agrees(architectures: &[(&str, Architecture)], batch: usize, length: usize, distances: &[usize]) {
    for (k, (name, a)) in architectures.iter().enumerate() {
        let parameters = random(a.parameters(), 0.4, k as u64);
        let single: Vec<f32> = parameters.iter().map(|v| *v as f32).collect();
        let tokens = random(batch * length * a.input, 1.0, 200);
        let adjoint = random(batch * length * a.output, 1.0, 201);
        let [of, to] = batches(a, batch, [&tokens, &adjoint]);
        let exact = pullback(a, &parameters, &of, &to).unwrap().0;
        let run = || {
            let [of, to] = batches(a, batch, [&tokens, &adjoint]);
            pullback(a, &single, &of, &to).unwrap().0
        };
        // What a pass leaves in the memory that the next one takes is never read: here it leaves NaN everywhere.
        let nothing = vec![f64::NAN; tokens.len()];
        let [of, to] = batches(a, batch, [&nothing, &adjoint]);
        let lost = pullback(a, &single, &of, &to).unwrap().0;
        assert!(lost.loss.is_nan());
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap().install(run);
        let two = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap().install(run);
        assert_eq!(one.parameters, two.parameters, "{name}: threads change the gradient");
        assert_eq!(one.loss, two.loss);
        let close = |exact: &[f64], single: &[f32], what: &str| {
            let scale = exact.iter().map(|v| v.abs()).greatest();
            let worst = exact.iter().zip(single).map(|(a, b)| (a - f64::from(*b)).abs()).greatest();
            assert!(worst < 1e-4 * scale, "{name}, {what}: {worst:e} of {scale:e}");
        };
        close(&exact.parameters, &one.parameters, "pullback");
        for &every in distances {
            let weights = weights(length, length - 1, every);
            let [of, to] = batches(a, batch, [&tokens, &adjoint]);
            let exact = squared_loss(a, &parameters, &of, &to, Some(&weights)).unwrap();
            let [of, to] = batches(a, batch, [&tokens, &adjoint]);
            let single = squared_loss(a, &single, &of, &to, Some(&weights)).unwrap();
            close(&exact.parameters, &single.parameters, &format!("a loss of every {every} tokens"));
        }
    }
}

/// o_t of a mesa head is V K^T (K K^T + I/λ)⁻¹ q_t with the tokens up to t, weighted by γ^(t-s) (`mesa` eq. 5).
#[test]
fn a_mesa_head_is_ridge_regression() {
    let (width, key, length, batch) = (4, 3, 9, 3);
    for forget in [1.0, 0.7] {
        let layer = Layer::new(Mixer::Mesa { forget }, 1, key);
        let a = Architecture { input: width, width, embed: false, output: width, layers: vec![layer], clip: None };
        let mut parameters = random(a.parameters(), 1.0, 3);
        let ln_lambda = a.slots().iter().find(|s| s.name == "layer0.ln_lambda").unwrap().at;
        parameters[ln_lambda] = 0.6;
        let tokens = random(batch * length * width, 1.0, 4);
        let batchwise = LaneBatch::new(batch, length, width, &tokens).unwrap();
        let out = predict(&a, &parameters, &batchwise).unwrap().values();
        let matrix = |name: &str| {
            let s = a.slots().into_iter().find(|s| s.name == name).unwrap();
            Matrix::from_vec(s.rows, s.columns, parameters[s.at..][..s.rows * s.columns].to_vec()).unwrap()
        };
        let [wq, wk, wv, p] = ["query", "key", "value", "out"].map(|n| matrix(&format!("layer0.{n}")));
        for b in 0..batch {
            let x = |t: usize| &tokens[(b * length + t) * width..][..width];
            for t in 0..length {
                let mut gram = Matrix::identity(key).scaled(forget.powi(t as i32 + 1) * (-0.6f64).exp());
                let mut cross = Matrix::zeros(key, key);
                for s in 0..=t {
                    let (k, v, w) = (wk.mul_vec(x(s)), wv.mul_vec(x(s)), forget.powi((t - s) as i32));
                    gram = gram.plus(w, &Matrix::from_fn(key, key, |i, j| k[i] * k[j]));
                    cross = cross.plus(w, &Matrix::from_fn(key, key, |i, j| v[i] * k[j]));
                }
                let solved = gram.solve_spd(&wq.mul_vec(x(t))).unwrap();
                let expected = p.mul_vec(&cross.mul_vec(&solved));
                for i in 0..width {
                    let got = out[(b * length + t) * width + i];
                    assert!((got - x(t)[i] - expected[i]).abs() < 1e-11, "γ {forget} t {t}: {got}");
                }
            }
        }
    }
}

/// o_t of a delta-rule head is S_t q_t, S_t by one step of gradient descent from S_{t−1}, or by the minimiser that the proximal
/// step is defined by, found here from its normal equations.
#[test]
fn the_delta_rule_is_a_step_of_gradient_descent_or_a_proximal_one() {
    let (width, key, length) = (4, 3, 7);
    for implicit in [false, true] {
        let layer = Layer::new(Mixer::Delta { implicit }, 1, key);
        let a = Architecture { input: width, width, embed: false, output: width, layers: vec![layer], clip: None };
        let mut parameters = random(a.parameters(), 0.7, 5);
        let slot = |name: &str| a.slots().into_iter().find(|s| s.name == name).unwrap();
        let beta = 0.4_f64;
        parameters[slot("layer0.ln_rate").at] = beta.ln();
        let tokens = random(length * width, 1.0, 6);
        let batch = LaneBatch::new(1, length, width, &tokens).unwrap();
        let out = predict(&a, &parameters, &batch).unwrap().values();
        let matrix = |name: &str| {
            let s = slot(name);
            Matrix::from_vec(s.rows, s.columns, parameters[s.at..][..s.rows * s.columns].to_vec()).unwrap()
        };
        let [wq, wk, wv, p] = ["query", "key", "value", "out"].map(|n| matrix(&format!("layer0.{n}")));
        let mut state = Matrix::zeros(key, key);
        for t in 0..length {
            let x = &tokens[t * width..][..width];
            let (q, k, v) = (wq.mul_vec(x), wk.mul_vec(x), wv.mul_vec(x));
            state = if implicit {
                // (S − S_{t−1}) + β (S k − v) kᵀ = 0, row by row.
                let system = Matrix::from_fn(key, key, |i, j| f64::from(u8::from(i == j)) + beta * k[i] * k[j]);
                let row = |i: usize| {
                    let side: Vec<f64> = (0..key).map(|j| state[(i, j)] + beta * v[i] * k[j]).collect();
                    system.solve_spd(&side).unwrap()
                };
                let rows: Vec<Vec<f64>> = (0..key).map(row).collect();
                Matrix::from_fn(key, key, |i, j| rows[i][j])
            } else {
                let image = state.mul_vec(&k);
                state.plus(beta, &Matrix::from_fn(key, key, |i, j| (v[i] - image[i]) * k[j]))
            };
            let expected = p.mul_vec(&state.mul_vec(&q));
            for i in 0..width {
                assert!((out[t * width + i] - x[i] - expected[i]).abs() < 1e-12, "implicit {implicit}, t {t}");
            }
        }
    }
}

/// Softmax and linear attention by their definitions, and the residual stream that probes read.
#[test]
fn attention_is_what_it_says() {
    let (width, key, length) = (4, 2, 5);
    let tokens = random(length * width, 1.0, 8);
    let batch = LaneBatch::new(1, length, width, &tokens).unwrap();
    for mixer in [Mixer::Softmax, Mixer::Linear] {
        let layers = vec![Layer::new(mixer, 1, key)];
        let a = Architecture { input: width, width, embed: false, output: width, layers, clip: None };
        let values = random(a.parameters(), 1.0, 9);
        let singles: Vec<f32> = values.iter().map(|v| *v as f32).collect();
        let model = SequenceTransformer::from_values(a.clone(), &singles).unwrap();
        let (kq, pv) = (model.key_query(0, 0).unwrap(), model.projected_value(0, 0).unwrap());
        let out = predict(&a, &values, &batch).unwrap().values();
        assert_eq!(residuals(&a, &values, &batch).unwrap()[1].values(), out);
        let x = |t: usize| &tokens[t * width..][..width];
        for t in 0..length {
            let dot = |s: usize| -> f64 { x(s).iter().zip(kq.mul_vec(x(t))).map(|(a, b)| a * b).sum() };
            let mut w: Vec<f64> = (0..=t).map(dot).collect();
            if mixer == Mixer::Softmax {
                w.iter_mut().for_each(|v| *v = (*v / (key as f64).sqrt()).exp());
                let sum: f64 = w.iter().sum();
                w.iter_mut().for_each(|v| *v /= sum);
            }
            for i in 0..width {
                let added: f64 = w.iter().enumerate().map(|(s, w)| w * pv.mul_vec(x(s))[i]).sum();
                assert!((out[t * width + i] - x(t)[i] - added).abs() < 1e-5, "{mixer:?}");
            }
        }
    }
}

/// DPFP features of queries and shifted keys, scaled to norm 1, and each rule for the state on top of them, written out.
#[test]
fn features_are_products_of_rectified_channels() {
    let (width, heads, key, length, batch) = (5, 2, 3, 8, 18);
    let (gamma, scalar) = (0.9, [0.3_f64, -0.5]);
    let of_token = |x: &[f64], powers: usize| {
        let r: Vec<f64> = x.iter().map(|v| v.max(0.0)).chain(x.iter().map(|v| (-v).max(0.0))).collect();
        let mut rolled = r.clone();
        let mut phi = Vec::new();
        for _ in 0..powers {
            rolled.rotate_right(1);
            phi.extend(r.iter().zip(&rolled).map(|(a, b)| a * b));
        }
        let norm = (1e-12 + phi.iter().map(|v| v * v).sum::<f64>()).sqrt();
        phi.iter().map(|v| v / norm).collect::<Vec<f64>>()
    };
    let mixers = [
        Mixer::Linear,
        Mixer::Delta { implicit: false },
        Mixer::Delta { implicit: true },
        Mixer::Mesa { forget: gamma },
    ];
    for (mixer, features) in mixers.into_iter().flat_map(|mixer| [1, 2, 3].map(|features| (mixer, features))) {
        let layer = Layer { features, unit: true, shift: true, ..Layer::new(mixer, heads, key) };
        let a = Architecture { input: width, width, embed: false, output: width, layers: vec![layer], clip: None };
        let mut parameters = random(a.parameters(), 1.0, 50 + features as u64);
        if let Some(slot) = a.slots().iter().find(|s| s.name.contains(".ln_")) {
            parameters[slot.at..][..heads].copy_from_slice(&scalar);
        }
        let matrix = |name: &str| {
            let s = a.slots().into_iter().find(|s| s.name == format!("layer0.{name}")).unwrap();
            Matrix::from_vec(s.rows, s.columns, parameters[s.at..][..s.rows * s.columns].to_vec()).unwrap()
        };
        let [wq, wk, wv, p] = ["query", "key", "value", "out"].map(matrix);
        let tokens = random(batch * length * width, 1.0, 51);
        let out = predict(&a, &parameters, &LaneBatch::new(batch, length, width, &tokens).unwrap()).unwrap().values();
        for b in 0..batch {
            let x = |t: usize| &tokens[(b * length + t) * width..][..width];
            let mixed = 2 * key * features;
            let rate = scalar.map(f64::exp);
            let mut states = [Matrix::zeros(key, mixed), Matrix::zeros(key, mixed)];
            let mut grams = rate.map(|lambda| Matrix::identity(mixed).scaled(1.0 / lambda));
            for t in 0..length {
                let mut o = Vec::new();
                for (h, (state, gram)) in states.iter_mut().zip(&mut grams).enumerate() {
                    let of_head = |m: &Matrix, x: &[f64]| m.mul_vec(x)[h * key..][..key].to_vec();
                    let before = if t == 0 { vec![0.0; key] } else { of_head(&wk, x(t - 1)) };
                    let (q, k, v) =
                        (of_token(&of_head(&wq, x(t)), features), of_token(&before, features), of_head(&wv, x(t)));
                    let image = state.mul_vec(&k);
                    let (keep, step, added) = match mixer {
                        Mixer::Delta { implicit } => {
                            let squares: f64 = k.iter().map(|v| v * v).sum();
                            let step = if implicit { rate[h] / (1.0 + rate[h] * squares) } else { rate[h] };
                            (1.0, step, v.iter().zip(&image).map(|(v, i)| v - i).collect())
                        }
                        Mixer::Mesa { forget } => (forget, 1.0, v),
                        _ => (1.0, 1.0, v),
                    };
                    *state = state.scaled(keep).plus(step, &Matrix::from_fn(key, mixed, |i, j| added[i] * k[j]));
                    *gram = gram.scaled(keep).plus(1.0, &Matrix::from_fn(mixed, mixed, |i, j| k[i] * k[j]));
                    let solves = matches!(mixer, Mixer::Mesa { .. });
                    o.extend(state.mul_vec(&if solves { gram.solve_spd(&q).unwrap() } else { q }));
                }
                for (i, added) in p.mul_vec(&o).into_iter().enumerate() {
                    let got = out[(b * length + t) * width + i] - x(t)[i];
                    assert!((got - added).abs() < 1e-10, "{mixer:?}, ν {features}, token {t}: {got} {added}");
                }
            }
        }
    }
}

/// The laws of the tasks: orthogonal steps keep the norm, contracting ones do not, the first state is what was asked for.
#[test]
fn sequences_follow_their_law() {
    let mut task = Dynamics::linear(6, 12).unwrap();
    task.noise = 0.0;
    let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let sequences = task.sample(64, 3).unwrap();
    for i in 0..64 {
        let states: Vec<&[f64]> = sequences.states(i).chunks(6).collect();
        assert!(states.iter().all(|s| (norm(s) - norm(states[0])).abs() < 1e-12));
        assert!(states[0].iter().all(|v| v.abs() <= 1.0));
    }
    // The same W for every sequence: two states determine what a third one becomes.
    let fixed = Dynamics { noise: 0.0, ..Dynamics::pool(2, 2, 1).unwrap() }.sample(3, 5).unwrap();
    let a =
        Matrix::from_vec(2, 2, vec![fixed.states(0)[0], fixed.states(1)[0], fixed.states(0)[1], fixed.states(1)[1]]);
    let c = incontext::linalg::solve(&a.unwrap(), &fixed.states(2)[..2]).unwrap();
    let next = |i: usize| &fixed.states(i)[2..4];
    for k in 0..2 {
        assert!((c[0] * next(0)[k] + c[1] * next(1)[k] - next(2)[k]).abs() < 1e-9);
    }
    let gaussian = Dynamics { start: Start::Gaussian, ..task.clone() }.sample(2000, 1).unwrap();
    let mean_square: f64 = (0..2000).map(|i| norm(&gaussian.states(i)[..6]).powi(2) / 6.0).sum::<f64>() / 2000.0;
    assert!((mean_square - 1.0).abs() < 0.05);
    // U(−1, 1) starts: predicting zero costs n/6 at every step (`mesa` section 1 of the specification).
    let zero = task.sample(4000, 9).unwrap().losses(&vec![0.0; 4000 * 12 * 6]).unwrap();
    assert!(zero.iter().all(|l| (l - 1.0).abs() < 0.03), "{zero:?}");
    // Contracting teachers have real eigenvalues in (0.3, 0.9) and one of 0.9: W from four states, then its characteristic
    // polynomial.
    let contracting =
        Dynamics { teachers: Teachers::Contracting, noise: 0.0, clip: 1e9, ..Dynamics::linear(3, 4).unwrap() };
    let shrinking = contracting.sample(20, 2).unwrap();
    for i in 0..20 {
        let s = shrinking.states(i);
        let before = Matrix::from_fn(3, 3, |t, k| s[t * 3 + k]);
        let rows: Vec<Vec<f64>> =
            (0..3).map(|k| incontext::linalg::solve(&before, &[s[3 + k], s[6 + k], s[9 + k]]).unwrap()).collect();
        let w = |i: usize, j: usize| rows[i][j];
        let minor = |i: usize, j: usize| w(i, i) * w(j, j) - w(i, j) * w(j, i);
        let trace: f64 = (0..3).map(|k| w(k, k)).sum();
        let determinant = w(0, 0) * minor(1, 2) - w(0, 1) * (w(1, 0) * w(2, 2) - w(1, 2) * w(2, 0))
            + w(0, 2) * (w(1, 0) * w(2, 1) - w(1, 1) * w(2, 0));
        let cubic = [-determinant, minor(0, 1) + minor(0, 2) + minor(1, 2), -trace, 1.0];
        let at_most = cubic.iter().rev().fold(0.0, |sum, c| sum * 0.9 + c);
        assert!(at_most.abs() < 1e-6, "{at_most}");
        let eigenvalues = incontext::linalg::real_roots(&cubic).unwrap();
        assert!(eigenvalues.iter().all(|e| *e > 0.3 - 1e-6 && *e < 0.9 + 1e-6), "{eigenvalues:?}");
    }
}

#[test]
fn nonlinear_states_have_norm_one_and_partial_ones_their_dimension() {
    let task = Dynamics { noise: 0.0, ..Dynamics::nonlinear(5, 20, 8).unwrap() };
    let s = task.sample(2, 1).unwrap();
    assert!(s.states(1).chunks(5).skip(1).all(|h| (h.iter().map(|v| v * v).sum::<f64>() - 1.0).abs() < 1e-12));
    let partial = Dynamics::partial(6, 2, 10).unwrap().sample(3, 1).unwrap();
    assert_eq!((partial.dim(), partial.states(2).len()), (2, 22));
    let stacked = partial.stacked(3).unwrap();
    assert_eq!(
        stacked.states(1)[4 * 6..][..6],
        [&partial.states(1)[8..10], &partial.states(1)[6..8], &partial.states(1)[4..6]].concat()
    );
    let inputs = partial.inputs::<f64>(TokenKind::Constructed).unwrap().values();
    assert_eq!(inputs[8 + 6..16], partial.states(0)[..2]);
}

#[test]
fn lesser_instruction_sets_pass_too() {
    instruction_sets::tests_pass_with_lesser_ones("lesser_instruction_sets_pass_too");
}
