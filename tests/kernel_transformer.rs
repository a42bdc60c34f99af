//! The fused kernel transformer against a plain dfdx twin that works on tokens, finite differences and sampled labels.

#[path = "support/instruction_sets.rs"]
mod instruction_sets;

use dfdx::prelude::*;
use incontext::linalg::Matrix;
use incontext::models::KernelTransformer;
use incontext::ops::kernel_prompts::{KernelPrompts, Labels};
use incontext::ops::kernel_transformer::{Activation, ValueBlock};
use incontext::rng::{Rng, stream};
use incontext::tasks::{Covariance, Kernel, KernelRegression};

type Leaf = Tensor<(usize, usize), f64, Cpu>;
type Taped3 = Tensor<(usize, usize, usize), f64, Cpu, OwnedTape<f64, Cpu>>;

fn random(seed: u64, len: usize, scale: f64) -> Vec<f64> {
    let mut rng = stream(seed, "test", 0);
    (0..len).map(|_| scale * rng.gen_range(-1.0..1.0)).collect()
}

fn tanh() -> Activation {
    Activation::own("tanh", |s| (s.tanh(), 1.0 - s.tanh().powi(2)))
}

fn task(d: usize, n: usize) -> KernelRegression {
    let eigenvalues: Vec<f64> = (0..d).map(|i| 1.0 / (1.0 + i as f64)).collect();
    KernelRegression::new(Kernel::exp(0.5).unwrap(), Covariance::rotated(&eigenvalues, 3).unwrap(), n).unwrap()
}

/// A head of the twin: A, B, C as matrices and r as a matrix of one entry.
struct Head {
    leaves: [Leaf; 4],
    activation: Activation,
}

/// The mean squared residual of tokens (x, y) with the query's label hidden, layer by layer, with dfdx's operations.
fn twin(
    x: &[f64],
    y: &[f64],
    batch: usize,
    n: usize,
    d: usize,
    layers: &[Vec<Head>],
) -> Tensor<(), f64, Cpu, OwnedTape<f64, Cpu>> {
    let dev = Cpu::default();
    let tokens = n + 1;
    let constant = |of: &dyn Fn(usize) -> f64, shape: (usize, usize, usize)| {
        dev.tensor_from_vec((0..shape.0 * shape.1 * shape.2).map(of).collect::<Vec<_>>(), shape)
    };
    // Rows are keys; the query is none.
    let square = (batch, tokens, tokens);
    let keys = constant(&|k| if k / tokens % tokens < n { 1.0 } else { 0.0 }, square);
    let mean = constant(&|k| if k / tokens % tokens < n { 1.0 / n as f64 } else { 0.0 }, square);
    let query = constant(&|k| if k % tokens == n { 1.0 } else { 0.0 }, (batch, tokens, 1));
    let labels = dev.tensor_from_vec(y.to_vec(), (batch, tokens, 1));
    let mut xs: Taped3 = dev.tensor_from_vec(x.to_vec(), (batch, tokens, d)).leaky_traced();
    let mut ys: Taped3 = (labels.clone() - labels.clone() * query.clone()).leaky_traced();
    for heads in layers {
        // Reads start tapes of their own; what is carried on keeps the tape of the layers before.
        let (x_read, y_read) = (xs.with_empty_tape(), ys.with_empty_tape());
        let (mut x_next, mut y_next) = (xs, ys);
        for head in heads {
            let [a, b, c, r] = head.leaves.each_ref().map(|leaf| leaf.leaky_trace());
            let keyed = x_read.with_empty_tape().matmul(b.permute::<_, Axes2<1, 0>>());
            let queried = x_read.with_empty_tape().matmul(c.permute::<_, Axes2<1, 0>>());
            let scores = keyed.matmul(queried.permute::<_, Axes3<0, 2, 1>>());
            let h = match &head.activation {
                Activation::Linear => scores * mean.clone(),
                Activation::Relu => scores.relu() * mean.clone(),
                Activation::Exp => scores.exp() * mean.clone(),
                Activation::Softmax => {
                    let e = scores.exp() * keys.clone();
                    let sum: Tensor<(usize, usize), f64, Cpu, _> = e.with_empty_tape().sum::<_, Axis<1>>();
                    let sum = sum.broadcast_like::<_, Axis<1>>(&square);
                    e / sum * mean.clone()
                }
                Activation::Own(_) => scores.tanh() * mean.clone(),
            };
            let h = h.permute::<_, Axes3<0, 2, 1>>();
            let moved = h.with_empty_tape().matmul(x_read.with_empty_tape()).matmul(a.permute::<_, Axes2<1, 0>>());
            x_next = x_next + moved;
            y_next = y_next + h.matmul(y_read.with_empty_tape()).matmul(r);
        }
        (xs, ys) = (x_next, y_next);
    }
    // The slot of the query and its label, the others masked.
    // The tape of the covariates joins that of the labels.
    ((ys + labels) * query).square().sum() / batch as f64 + xs.sum() * 0.0
}

fn model_and_twin(
    values: &[f64],
    layers: usize,
    d: usize,
    activations: &[Activation],
) -> (KernelTransformer<f64>, Vec<Vec<Head>>) {
    let model = KernelTransformer::from_values(values.to_vec(), layers, d, activations, ValueBlock::Free).unwrap();
    let dev = Cpu::default();
    let leaf = |m: Matrix| dev.tensor_from_vec(m.as_slice().to_vec(), (m.rows(), m.cols()));
    let heads = (0..layers).map(|l| {
        let of = |(h, activation): (usize, &Activation)| Head {
            leaves: [
                leaf(model.a(l, h).unwrap()),
                leaf(model.b(l, h).unwrap()),
                leaf(model.c(l, h).unwrap()),
                dev.tensor_from_vec(vec![model.r(l, h).unwrap()], (1, 1)),
            ],
            activation: activation.clone(),
        };
        activations.iter().enumerate().map(of).collect()
    });
    let heads = heads.collect();
    (model, heads)
}

#[test]
fn the_fused_transformer_equals_its_plain_twin_and_so_do_its_gradients() {
    let heads: [&[Activation]; 6] = [
        &[Activation::Linear],
        &[Activation::Relu],
        &[Activation::Exp],
        &[Activation::Softmax],
        &[tanh()],
        &[Activation::Exp, Activation::Linear, Activation::Softmax],
    ];
    for (case, activations) in heads.into_iter().enumerate() {
        for (layers, d, n, batch) in [(1, 5, 6, 17), (3, 5, 8, 33), (4, 2, 3, 5)] {
            let values = random(case as u64, layers * activations.len() * (3 * d * d + 1), 0.7);
            let (model, leaves) = model_and_twin(&values, layers, d, activations);
            let prompts = task(d, n).sample(batch, 5).unwrap();
            let x: Vec<f64> = (0..batch).flat_map(|i| prompts.x(i).to_vec()).collect();
            let y: Vec<f64> = (0..batch).flat_map(|i| prompts.y(i).to_vec()).collect();
            let tiles = KernelPrompts::<f64>::sampled(n, d, &x, &y).unwrap();
            let (loss, gradients) = model.loss_and_gradient(&tiles).unwrap();
            let plain = twin(&x, &y, batch, n, d, &leaves);
            let what = format!("{activations:?}, {layers} layers, d = {d}, n = {n}");
            assert!((plain.array() - loss).abs() < 1e-12 * (1.0 + loss), "{what}: {} {loss}", plain.array());
            let mut theirs = plain.backward();
            let mut expected = Vec::new();
            for leaf in leaves.iter().flatten().flat_map(|head| &head.leaves) {
                expected.extend_from_slice(theirs.get_or_alloc_mut(leaf).unwrap());
            }
            assert_close(&gradients.get(&model.params).as_vec(), &expected, 1e-11, &what);

            // The prediction is that of the tokens: loss = mean (y - prediction)².
            let predictions = model.predict(&prompts).unwrap();
            let again =
                predictions.iter().zip(prompts.targets()).map(|(p, y)| (y - p).powi(2)).sum::<f64>() / batch as f64;
            assert!((again - loss).abs() < 1e-12 * (1.0 + loss), "{what}");
        }
    }
}

#[test]
fn the_loss_over_labels_is_the_quadratic_form_and_its_gradient_is_right() {
    for (kernel, activation) in [(Kernel::relu(), Activation::Exp), (Kernel::linear(), Activation::Softmax)] {
        let task = KernelRegression::new(kernel, Covariance::rotated(&[1.0, 0.25, 2.25], 1).unwrap(), 6).unwrap();
        let prompts = task.prompts::<f64>(19, Labels::Covariance, 2).unwrap();
        let values = random(8, 2 * 28, 0.8);
        let model = |values: &[f64]| {
            KernelTransformer::from_values(values.to_vec(), 2, 3, std::slice::from_ref(&activation), ValueBlock::Free)
                .unwrap()
        };
        let fixed = model(&values);
        let (loss, gradients) = fixed.loss_and_gradient(&prompts).unwrap();
        let gradient = gradients.get(&fixed.params).as_vec();
        let residuals = fixed.residuals(&prompts).unwrap();
        let forms = residuals.weights.chunks(7).enumerate().map(|(k, g)| {
            let covariance = prompts.covariance(k).unwrap();
            g.iter().zip(covariance.mul_vec(g)).map(|(g, v)| g * v).sum::<f64>()
        });
        let mean = forms.sum::<f64>() / 19.0;
        assert!((mean - loss).abs() < 1e-13 * (1.0 + loss), "{mean} {loss}");
        let h = 1e-5;
        for k in 0..values.len() {
            let at = |step: f64| {
                let mut moved = values.clone();
                moved[k] += step;
                model(&moved).loss(&prompts).unwrap()
            };
            let numeric = (at(h) - at(-h)) / (2.0 * h);
            assert!((numeric - gradient[k]).abs() < 1e-8 * (1.0 + numeric.abs()), "{k}: {numeric} {}", gradient[k]);
        }
    }
}

/// The loss of the authors' formulation, written out: whole matrices P, Q and K of (d+1)² entries, `[layers, heads, 3, (d+1)²]`, on tokens
/// z = (x, y) with the query's label hidden.
fn of_whole_matrices(whole: &[f64], activations: &[Activation], x: &[f64], y: &[f64], n: usize, d: usize) -> f64 {
    let (tokens, side) = (n + 1, d + 1);
    let mut sum = 0.0;
    for (x, y) in x.chunks(tokens * d).zip(y.chunks(tokens)) {
        let slot = |j: usize, c: usize| {
            if c < d {
                x[j * d + c]
            } else if j < n {
                y[j]
            } else {
                0.0
            }
        };
        let mut z: Vec<Vec<f64>> = (0..tokens).map(|j| (0..side).map(|c| slot(j, c)).collect()).collect();
        for heads in whole.chunks(activations.len() * 3 * side * side) {
            let before = z.clone();
            for (head, activation) in heads.chunks(3 * side * side).zip(activations) {
                let times = |m: usize, v: &[f64]| -> Vec<f64> {
                    let row = |i: usize| (0..side).map(|k| head[(m * side + i) * side + k] * v[k]).sum();
                    (0..side).map(row).collect()
                };
                let score = |i: usize, j: usize| -> f64 {
                    times(1, &before[i]).iter().zip(times(2, &before[j])).map(|(a, b)| a * b).sum()
                };
                for j in 0..tokens {
                    let scores: Vec<f64> = (0..n).map(|i| score(i, j)).collect();
                    let all: f64 = scores.iter().map(|s| s.exp()).sum();
                    for i in 0..n {
                        let h = match activation {
                            Activation::Linear => scores[i],
                            Activation::Relu => scores[i].max(0.0),
                            Activation::Exp => scores[i].exp(),
                            Activation::Softmax => scores[i].exp() / all,
                            Activation::Own(_) => scores[i].tanh(),
                        };
                        z[j].iter_mut().zip(times(0, &before[i])).for_each(|(z, v)| *z += h * v / n as f64);
                    }
                }
            }
        }
        sum += (z[n][d] + y[n]).powi(2);
    }
    sum / (y.len() / tokens) as f64
}

#[test]
fn the_whole_gradient_is_that_of_whole_matrices_with_entries_held_at_zero() {
    let (n, d, batch) = (4, 3, 5);
    let (dd, side) = (d * d, d + 1);
    for activations in
        [&[Activation::Exp][..], &[Activation::Linear], &[Activation::Softmax, Activation::Linear], &[tanh()]]
    {
        for layers in [1, 3] {
            let heads = layers * activations.len();
            let values = random(9, heads * (3 * dd + 1), 0.7);
            let model =
                KernelTransformer::from_values(values.clone(), layers, d, activations, ValueBlock::Free).unwrap();
            let (x, y) = (random(10, batch * (n + 1) * d, 1.0), random(11, batch * (n + 1), 1.0));
            let prompts = KernelPrompts::<f64>::sampled(n, d, &x, &y).unwrap();
            let whole = model.whole_gradient(&prompts).unwrap();
            let (loss, gradients) = model.loss_and_gradient(&prompts).unwrap();
            assert_eq!((whole.loss, &whole.free), (loss, &gradients.get(&model.params).as_vec()));

            let mut matrices = vec![0.0; heads * 3 * side * side];
            for (matrices, head) in matrices.chunks_mut(3 * side * side).zip(values.chunks(3 * dd + 1)) {
                for k in 0..3 * dd {
                    matrices[(k / dd * side + k % dd / d) * side + k % d] = head[k];
                }
                matrices[side * side - 1] = head[3 * dd];
            }
            let loss = |m: &[f64]| of_whole_matrices(m, activations, &x, &y, n, d);
            assert!((loss(&matrices) - whole.loss).abs() < 1e-12 * (1.0 + whole.loss));
            let (h, mut found) = (1e-5, [0, 0]);
            for k in 0..matrices.len() {
                let at = |step: f64| {
                    let mut moved = matrices.clone();
                    moved[k] += step;
                    loss(&moved)
                };
                let numeric = (at(h) - at(-h)) / (2.0 * h);
                let (head, m) = (k / (3 * side * side), k / (side * side) % 3);
                let (i, j) = (k / side % side, k % side);
                let held = |which: usize, c: usize| whole.held[head * 4 * d + which * d + c];
                let expected = match (m, i < d, j < d) {
                    (_, true, true) => whole.free[head * (3 * dd + 1) + m * dd + i * d + j],
                    (0, false, false) => whole.free[head * (3 * dd + 1) + 3 * dd],
                    (0, false, true) => held(0, j),
                    (_, true, false) => held(m + 1, i),
                    _ => 0.0,
                };
                assert!((numeric - expected).abs() < 1e-7 * (1.0 + numeric.abs()), "{k}: {numeric} {expected}");
                found[usize::from(!(i < d && j < d) && numeric.abs() > 1e-3)] += 1;
            }
            assert!(found[1] > heads * d, "entries held at 0 with a gradient: {found:?}");
        }
    }
}

#[test]
fn single_precision_is_the_same_function() {
    let task = task(5, 14);
    let (x32, x64) = (
        task.prompts::<f32>(100, Labels::Covariance, 0).unwrap(),
        task.prompts::<f64>(100, Labels::Covariance, 0).unwrap(),
    );
    let activations = [Activation::Exp, Activation::Relu];
    let values = random(3, 3 * 2 * 76, 0.5);
    let wide = KernelTransformer::from_values(values.clone(), 3, 5, &activations, ValueBlock::Free).unwrap();
    let narrow = KernelTransformer::from_values(
        values.iter().map(|v| *v as f32).collect(),
        3,
        5,
        &activations,
        ValueBlock::Free,
    )
    .unwrap();
    let (loss, gradients) = narrow.loss_and_gradient(&x32).unwrap();
    let (exact, exact_gradients) = wide.loss_and_gradient(&x64).unwrap();
    assert!((loss / exact - 1.0).abs() < 1e-4, "{loss} {exact}");
    let gradient: Vec<f64> = gradients.get(&narrow.params).as_vec().iter().map(|v| f64::from(*v)).collect();
    assert_eq!(
        narrow.gradients(&gradient).unwrap().get(&narrow.params).as_vec(),
        gradients.get(&narrow.params).as_vec()
    );
    assert_close(&gradient, &exact_gradients.get(&wide.params).as_vec(), 1e-3, "gradient");
}

fn assert_close(a: &[f64], b: &[f64], tolerance: f64, what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let scale = b.iter().fold(1e-300_f64, |m, v| m.max(v.abs()));
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= tolerance * scale, "{what}, entry {i}: {a} against {b}");
    }
}

#[test]
fn lesser_instruction_sets_pass_too() {
    instruction_sets::tests_pass_with_lesser_ones("lesser_instruction_sets_pass_too");
}
