//! The fused ops against plain dfdx twins and finite differences, matrix products against plain loops.

#[path = "support/instruction_sets.rs"]
mod instruction_sets;
#[path = "support/twins.rs"]
mod twins;

use std::sync::Arc;

use dfdx::prelude::*;
use incontext::ops::attention::{Attention, Weights};
use incontext::ops::gemm::{
    Left, PANEL, Right, Start, column_sums, gemm, gemm_times, pack, pack_transposed, packed_len, transpose,
};
use incontext::ops::layers;
use incontext::ops::linear_attention::{Mask, linear_attention};
use incontext::ops::linear_transformer::linear_transformer;
use incontext::ops::simd::WIDTH;
use incontext::ops::wishart::GramSamples;
use incontext::rng::{Rng, stream};
use incontext::tasks::{Covariance, LinearRegression, Prompts, WeightPrior};
use twins::{Taped2, Taped3};

fn random(seed: u64, len: usize, scale: f64) -> Vec<f64> {
    let mut rng = stream(seed, "test", 0);
    (0..len).map(|_| scale * rng.gen_range(-1.0..1.0)).collect()
}

fn prompts(d: usize, n: usize, batch: usize) -> Prompts {
    let eigenvalues: Vec<f64> = (0..d).map(|i| 1.0 / (1.0 + i as f64)).collect();
    let covariance = Covariance::rotated(&eigenvalues, 3).unwrap();
    LinearRegression::new(covariance, n, WeightPrior::InverseCovariance).unwrap().sample(batch, 5).unwrap()
}

/// One layer written with dfdx's own operations: scores, mask, two matrix products (`pgd` eq. 3, tokens as rows).
fn twin(z: Taped3, p: Taped2, q: Taped2, mask: Mask) -> Taped3 {
    let dev = z.device().clone();
    let (batch, tokens, _) = *z.shape();
    let n = tokens - 1;
    let allowed = |i: usize, j: usize| j < n && (mask == Mask::Context || j <= i);
    let m: Vec<f64> = (0..batch * tokens * tokens)
        .map(|k| if allowed(k / tokens % tokens, k % tokens) { 1.0 / n as f64 } else { 0.0 })
        .collect();
    let m = dev.tensor_from_vec(m, (batch, tokens, tokens));
    // Row i, column j: z_jᵀ Q z_i.
    let zq = z.with_empty_tape().matmul(q.permute::<_, Axes2<1, 0>>());
    let scores = zq.matmul(z.with_empty_tape().permute::<_, Axes3<0, 2, 1>>()) * m;
    let values = scores.matmul(z.with_empty_tape());
    values.matmul(p.permute::<_, Axes2<1, 0>>()) + z
}

#[test]
fn linear_attention_equals_its_plain_twin_and_so_do_its_gradients() {
    let dev = Cpu::default();
    for mask in [Mask::Context, Mask::Causal] {
        for (d, n, batch) in [(5, 20, 7), (1, 1, 1), (3, 2, 130)] {
            let dim = d + 1;
            let z = dev.tensor_from_vec(prompts(d, n, batch).tokens::<f64>(), (batch, n + 1, dim));
            let p = dev.tensor_from_vec(random(1, dim * dim, 0.5), (dim, dim));
            let q = dev.tensor_from_vec(random(2, dim * dim, 0.5), (dim, dim));
            let fused = linear_attention(z.leaky_trace(), p.leaky_trace(), q.leaky_trace(), mask).unwrap();
            let plain = twin(z.leaky_trace(), p.leaky_trace(), q.leaky_trace(), mask);
            assert_close(&fused.as_vec(), &plain.as_vec(), 1e-12, "forward");
            let (a, b) = (fused.square().sum().backward(), plain.square().sum().backward());
            assert_close(&a.get(&z).as_vec(), &b.get(&z).as_vec(), 1e-11, "gradient in Z");
            assert_close(&a.get(&p).as_vec(), &b.get(&p).as_vec(), 1e-11, "gradient in P");
            assert_close(&a.get(&q).as_vec(), &b.get(&q).as_vec(), 1e-11, "gradient in Q");
        }
    }
}

#[test]
fn the_fused_transformer_equals_a_stack_of_plain_layers_and_so_do_its_gradients() {
    let dev = Cpu::default();
    for layers in 1..=4 {
        for (d, n, batch) in [(5, 20, 33), (2, 1, 1), (7, 4, 50)] {
            let prompts = prompts(d, n, batch);
            let values = random(9, layers * 2 * d * d, 0.4);
            let params = dev.tensor_from_vec(values.clone(), (layers, 2, d, d));
            let moments = Arc::new(prompts.moments::<f64>());
            let targets = dev.tensor_from_vec(prompts.targets(), (batch,));
            let slots = linear_transformer(&moments, params.leaky_trace()).unwrap();
            let fused_out = slots.as_vec();
            let fused = (slots + targets.clone()).square().mean();
            let fused_loss = fused.array();
            let gradient = fused.backward().get(&params).as_vec();

            // The stack: P_l = [B_l 0; 0 1], Q_l = [A_l 0; 0 0] as (d+1) x (d+1) leaves.
            let dim = d + 1;
            let block = |values: &[f64], corner: f64| {
                let mut m = vec![0.0; dim * dim];
                for i in 0..d {
                    m[i * dim..][..d].copy_from_slice(&values[i * d..][..d]);
                }
                m[dim * dim - 1] = corner;
                dev.tensor_from_vec(m, (dim, dim))
            };
            let weights: Vec<_> = (0..layers)
                .map(|l| {
                    let at = |k: usize| &values[(2 * l + k) * d * d..][..d * d];
                    (block(at(0), 1.0), block(at(1), 0.0))
                })
                .collect();
            let mut z = dev.tensor_from_vec(prompts.tokens::<f64>(), (batch, n + 1, dim)).leaky_traced();
            for (p, q) in &weights {
                z = twin(z, p.leaky_trace(), q.leaky_trace(), Mask::Context);
            }
            let index: Vec<usize> = (0..batch).map(|b| b * (n + 1) * dim + n * dim + d).collect();
            let flat = z.reshape_like(&(batch * (n + 1) * dim,));
            let index = dev.tensor_from_vec(index, (batch,));
            let out = flat.gather(index);
            assert_close(&fused_out, &out.as_vec(), 1e-11, "label slot");
            let plain = (out + targets).square().mean();
            assert!((plain.array() - fused_loss).abs() <= 1e-11 * (1.0 + fused_loss.abs()));
            let grads = plain.backward();
            for (l, (p, q)) in weights.iter().enumerate() {
                for (k, leaf) in [(0, p), (1, q)] {
                    let g = grads.get(leaf).as_vec();
                    let expected: Vec<f64> = (0..d * d).map(|i| g[i / d * dim + i % d]).collect();
                    assert_close(&gradient[(2 * l + k) * d * d..][..d * d], &expected, 1e-10, "gradient");
                }
            }
        }
    }
}

#[test]
fn the_exact_loss_is_the_mean_of_prompts_with_the_same_gram_and_its_gradient_is_right() {
    let (d, layers) = (5, 3);
    let task = LinearRegression::new(Covariance::identity(d).unwrap(), 20, WeightPrior::Isotropic).unwrap();
    let grams = GramSamples::new(d, &task.sample_gram(37, 1).unwrap()).unwrap();
    for (d, grams) in [(d, grams), {
        let task = LinearRegression::new(Covariance::identity(3).unwrap(), 2, WeightPrior::Isotropic).unwrap();
        (3, GramSamples::new(3, &task.sample_gram(5, 1).unwrap()).unwrap())
    }] {
        let params = random(4, layers * 2 * d * d, 0.3);
        let (loss, gradient) = grams.loss_and_gradient(&params).unwrap();
        let losses = grams.losses(&params).unwrap();
        assert!((losses.iter().sum::<f64>() / losses.len() as f64 - loss).abs() < 1e-12 * loss);
        let h = 1e-5;
        for k in 0..params.len() {
            let at = |step: f64| {
                let mut moved = params.clone();
                moved[k] += step;
                grams.loss_and_gradient(&moved).unwrap().0
            };
            let numeric = (at(h) - at(-h)) / (2.0 * h);
            assert!((numeric - gradient[k]).abs() < 1e-7 * (1.0 + numeric.abs()), "{k}: {numeric} {}", gradient[k]);
        }
    }
}

/// Whole numbers, so small that sums of a thousand products are exact: whatever the order of a sum, every bit of it is known.
fn whole(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = stream(seed, "whole", 0);
    (0..len).map(|_| rng.gen_range(-8..=8) as f32).collect()
}

/// A matrix with rows `stride` apart, which ends with its last entry; between the rows there is what no result may hold.
fn apart([rows, columns]: [usize; 2], stride: usize, entry: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let len = if rows == 0 { 0 } else { (rows - 1) * stride + columns };
    let at = |k: usize| if k % stride < columns { entry(k / stride, k % stride) } else { f32::NAN };
    (0..len).map(at).collect()
}

/// Entries that a product must leave as they are.
const UNTOUCHED: f32 = 7777.25;

#[test]
fn matrix_products_are_those_of_plain_loops() {
    // Sizes below, at and above those of tiles (6 x 64, 4 x 64, 8 x 48 at either place of a panel, 8 x 32 and 4 x 16), panels (32 columns), blocks of the sum (384
    // terms) and of the gathered one or two panels (128, where there are 32 rows, or 64 columns, and more); then the same of
    // tile registers (16 x 16 x 32, from 128 columns and terms on, in blocks of 32 rows and 256 terms; 1152 terms or some hundred
    // columns of what is split beforehand).
    let sizes = [
        [1, 1, 1],
        [7, 15, 3],
        [8, 32, 5],
        [8, 48, 65],
        [5, 176, 34],
        [13, 112, 20],
        [5, 17, 0],
        [9, 33, 384],
        [3, 70, 385],
        [9, 64, 127],
        [10, 65, 128],
        [14, 128, 129],
        [31, 31, 191],
        [32, 16, 192],
        [40, 100, 193],
        [37, 70, 385],
        [61, 49, 777],
        [33, 47, 1024],
        [1, 128, 128],
        [16, 144, 129],
        [45, 150, 200],
        [130, 131, 300],
        [129, 403, 1201],
    ];
    for (seed, [m, n, k]) in (0..).zip(sizes) {
        let (a, b) = (whole(4 * seed, m * k), whole(4 * seed + 1, k * n));
        let (held, bias) = (whole(4 * seed + 2, m * n), whole(4 * seed + 3, n));
        let product =
            |i: usize, j: usize| -> f64 { (0..k).map(|p| f64::from(a[i * k + p]) * f64::from(b[p * n + j])).sum() };
        let product: Vec<f64> = (0..m * n).map(|e| product(e / n, e % n)).collect();

        let by_rows = apart([m, k], k + 3, |i, p| a[i * k + p]);
        let by_terms = apart([k, m], m + 5, |p, i| a[i * k + p]);
        let scattered = apart([m, 3 * k], 3 * k + 1, |i, e| if e % 3 == 0 { a[i * k + e / 3] } else { f32::NAN });
        let lefts = [
            ("every third entry", Left { data: &scattered, row: 3 * k + 1, step: 3 }),
            ("A", Left { data: &by_rows, row: k + 3, step: 1 }),
            ("Aᵀ", Left { data: &by_terms, row: 1, step: m + 5 }),
        ];

        // Whole vectors of B are read: what fills them up must stay outside the n columns.
        let columns = n.next_multiple_of(WIDTH);
        let filled = |p: usize, j: usize| if j < n { b[p * n + j] } else { f32::NAN };
        let (near, far) = (apart([k, columns], columns, filled), apart([k, columns], 528, filled));
        let mut packed = vec![f32::NAN; packed_len(k, n)];
        pack(k, n, &b, &mut packed);
        let transposed: Vec<f32> = (0..n * k).map(|e| b[e % k * n + e / k]).collect();
        let mut packed_from_transposed = vec![f32::NAN; packed_len(k, n)];
        pack_transposed(k, n, &transposed, &mut packed_from_transposed);
        // In tiles the entries are in pieces; what they are, the products tell.
        let in_panels = packed.len() == k * n.next_multiple_of(PANEL);
        for (e, (a, b)) in packed.iter().zip(&packed_from_transposed).enumerate() {
            assert_eq!(a.to_bits(), b.to_bits(), "packed {k} x {n} and from its transpose, float {e}");
            if !in_panels {
                continue;
            }
            let (p, j) = (e % (k * PANEL) / PANEL, e / (k * PANEL) * PANEL + e % PANEL);
            let expected = if j < n { filled(p, j) } else { 0.0 };
            assert_eq!(*a, expected, "packed {k} x {n}, row {p}, column {j}");
        }
        let rights = [
            ("B", Right::rows(&near, columns)),
            ("B far apart", Right::rows(&far, 528)),
            ("B packed", Right::packed(&packed, k, n)),
            ("B packed from its transpose", Right::packed(&packed_from_transposed, k, n)),
        ];

        let filled_bias: Vec<f32> = (0..columns).map(|j| if j < n { bias[j] } else { f32::NAN }).collect();
        let with_bias = |add| Start { bias: Some(&filled_bias), add };
        for start in [Start::ZERO, Start::ADD, with_bias(false), with_bias(true)] {
            for (left_name, left) in lefts {
                for (right_name, right) in rights {
                    let stride = columns + 5;
                    // Unless it is added to, what C holds must not be read.
                    let old = |i: usize, j: usize| if start.add && j < n { held[i * n + j] } else { f32::NAN };
                    let mut c = apart([m, columns], stride, old);
                    for gap in c.chunks_mut(stride).filter(|row| row.len() == stride) {
                        gap[columns..].fill(UNTOUCHED);
                    }
                    gemm([m, n, k], left, right, start, &mut c, stride);
                    for (i, row) in c.chunks(stride).enumerate() {
                        for (j, c) in row.iter().take(n).enumerate() {
                            let from_bias = if start.bias.is_some() { f64::from(bias[j]) } else { 0.0 };
                            let from_c = if start.add { f64::from(held[i * n + j]) } else { 0.0 };
                            let expected = product[i * n + j] + from_bias + from_c;
                            assert!(
                                f64::from(*c) == expected,
                                "{left_name} times {right_name}, {m} x {n} x {k}, bias {}, add {}: entry ({i}, {j}) is {c}, \
                                 not {expected}",
                                start.bias.is_some(),
                                start.add
                            );
                        }
                        assert!(row.iter().skip(columns).all(|v| *v == UNTOUCHED), "between rows {i} and the next");
                    }
                    if start.add || start.bias.is_some() {
                        continue;
                    }
                    let factors =
                        apart([m, columns], stride, |i, j| if j < n { ((i + j) % 5) as f32 } else { f32::NAN });
                    gemm_times([m, n, k], left, right, &factors, &mut c, stride);
                    for (i, row) in c.chunks(stride).enumerate() {
                        for (j, c) in row.iter().take(n).enumerate() {
                            let expected = product[i * n + j] * ((i + j) % 5) as f64;
                            assert!(f64::from(*c) == expected, "{m} x {n} x {k}, times factors: ({i}, {j}) is {c}");
                        }
                        assert!(row.iter().skip(columns).all(|v| *v == UNTOUCHED), "between rows {i} and the next");
                    }
                }
            }
        }
    }
}

/// Numbers that need all bits of an `f32`, of very different sizes.
#[test]
fn matrix_products_err_no_more_than_sums_of_rounded_products() {
    for (seed, [m, n, k]) in (0..).zip([[60, 60, 90], [160, 144, 300], [130, 256, 1000]]) {
        let number = |seed: u64, len: usize| -> Vec<f32> {
            let sizes = random(2 * seed, len, 8.0);
            random(2 * seed + 1, len, 1.0).iter().zip(sizes).map(|(v, size)| (v * size.exp()) as f32).collect()
        };
        let (a, b) = (number(40 + 2 * seed, m * k), number(41 + 2 * seed, k * n));
        let mut packed = vec![0.0; packed_len(k, n)];
        pack(k, n, &b, &mut packed);
        let columns = n.next_multiple_of(WIDTH);
        let rows = apart([k, columns], columns, |p, j| if j < n { b[p * n + j] } else { 0.0 });
        for (name, right) in [("B", Right::rows(&rows, columns)), ("B packed", Right::packed(&packed, k, n))] {
            let mut c = vec![0.0; m * columns];
            gemm([m, n, k], Left { data: &a, row: k, step: 1 }, right, Start::ZERO, &mut c, columns);
            let (mut ours, mut rounded) = (0.0, 0.0);
            for e in 0..m * n {
                let terms = || (0..k).map(|p| (a[e / n * k + p], b[p * n + e % n]));
                let exact: f64 = terms().map(|(a, b)| f64::from(a) * f64::from(b)).sum();
                let scale = terms().map(|(a, b)| f64::from(a * b).abs()).sum::<f64>();
                ours += ((f64::from(c[e / n * columns + e % n]) - exact) / scale).powi(2);
                rounded += ((f64::from(terms().fold(0.0_f32, |sum, (a, b)| sum + a * b)) - exact) / scale).powi(2);
            }
            assert!(ours <= 1.05 * rounded, "{m} x {n} x {k}, {name}: {} times the error", (ours / rounded).sqrt());
        }
    }
}

/// What is not finite does not become finite, wherever it is.
#[test]
fn matrix_products_keep_what_is_not_finite() {
    let [m, n, k] = [130, 128, 160];
    for bad in [f32::NAN, f32::from_bits(0x7fff_ffff), f32::INFINITY, f32::NEG_INFINITY] {
        let mut a = vec![0.5; m * k];
        a[77 * k + 59] = bad;
        let b = vec![0.25; k * n];
        let mut packed = vec![0.0; packed_len(k, n)];
        pack(k, n, &b, &mut packed);
        for right in [Right::rows(&b, n), Right::packed(&packed, k, n)] {
            let mut c = vec![0.0; m * n];
            gemm([m, n, k], Left { data: &a, row: k, step: 1 }, right, Start::ZERO, &mut c, n);
            for (i, row) in c.chunks(n).enumerate() {
                assert!(row.iter().all(|c| c.is_finite() != (i == 77)), "{bad} in row 77: row {i}");
            }
        }
    }
}

#[test]
fn matrix_products_refuse_slices_that_are_too_short() {
    let [m, n, k]: [usize; 3] = [3, 20, 4];
    let columns = n.next_multiple_of(WIDTH);
    let (a, b, bias) = (vec![1.0; m * k], vec![1.0; k * columns], vec![1.0; columns]);
    let run = |[a_short, b_short, bias_short, c_short]: [usize; 4]| {
        let left = Left { data: &a[a_short..], row: k, step: 1 };
        let right = Right::rows(&b[b_short..], columns);
        let start = Start { bias: Some(&bias[bias_short..]), add: false };
        let mut c = vec![0.0; m * columns - c_short];
        std::panic::catch_unwind(move || gemm([m, n, k], left, right, start, &mut c, columns))
    };
    assert!(run([0; 4]).is_ok());
    for short in [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]] {
        assert!(run(short).is_err(), "A, B, the bias and C are short of {short:?}");
    }
    // One term of A for all, and panels one in the other, are no matrices that a tile could read.
    let odd = |step: usize, panel: usize| {
        let left = Left { data: &[1.0; 8], row: 1, step };
        let mut right = Right::rows(&[1.0; 1000], 2 * PANEL);
        right.panel = panel;
        std::panic::catch_unwind(move || {
            gemm([1, 2 * PANEL, 2], left, right, Start::ZERO, &mut [0.0; 2 * PANEL], 2 * PANEL)
        })
    };
    assert!(odd(1, PANEL).is_ok() && odd(0, PANEL).is_err() && odd(1, PANEL - 1).is_err());
    // Laid out, B is too short for all of it, and for a part that is laid out otherwise.
    for (len, [n, k]) in [(packed_len(128, 128) - 1, [128, 128]), (7000, [48, 100])] {
        let packed = vec![0.0; len];
        let product = std::panic::catch_unwind(|| {
            let (left, right) = (vec![1.0; 2 * k], Right::packed(&packed, 128, 128));
            gemm([2, n, k], Left { data: &left, row: k, step: 1 }, right, Start::ZERO, &mut vec![0.0; 2 * n], n)
        });
        assert!(product.is_err(), "{len} floats for {k} x {n}");
    }
}

#[test]
fn transposes_and_sums_of_columns_are_those_of_plain_loops() {
    for (seed, [k, n]) in (0..).zip([[1, 1], [16, 16], [15, 17], [33, 40], [50, 7], [4, 64], [70, 96]]) {
        let (from_stride, to_stride) = (k + 2, n + 3);
        let values = whole(seed, n * k);
        let from = apart([n, k], from_stride, |j, p| values[j * k + p]);
        let mut to = vec![UNTOUCHED; (k - 1) * to_stride + n];
        transpose([k, n], &from, from_stride, &mut to, to_stride);
        for (p, row) in to.chunks(to_stride).enumerate() {
            for (j, v) in row.iter().enumerate() {
                let expected = if j < n { values[j * k + p] } else { UNTOUCHED };
                assert_eq!(*v, expected, "{k} x {n}, row {p}, column {j}");
            }
        }
    }
    for (seed, [m, n]) in (20..).zip([[0_usize, 5_usize], [1, 1], [7, 16], [30, 33], [400, 50], [9, 230]]) {
        let columns = n.next_multiple_of(WIDTH);
        let (values, held) = (whole(seed, m * n), whole(seed + 20, n));
        let data = apart([m, columns], columns + 9, |i, j| if j < n { values[i * n + j] } else { f32::NAN });
        for add in [false, true] {
            let mut to: Vec<f32> = (0..columns + 1).map(|j| if add && j < n { held[j] } else { f32::NAN }).collect();
            to[columns] = UNTOUCHED;
            column_sums(m, n, &data, columns + 9, &mut to, add);
            for j in 0..n {
                let sum: f64 = (0..m).map(|i| f64::from(values[i * n + j])).sum();
                let expected = sum + if add { f64::from(held[j]) } else { 0.0 };
                assert_eq!(f64::from(to[j]), expected, "{m} x {n}, column {j}, add {add}");
            }
            assert_eq!(to[columns], UNTOUCHED);
        }
    }
}

/// Inputs of an op, and its outputs, each one entry after the other.
type Flat<T> = Tensor<(usize,), T, Cpu>;
type Taped<T> = Tensor<(usize,), T, Cpu, OwnedTape<T, Cpu>>;

fn leaves<T: Dtype>(values: &[Vec<f32>], of: impl Fn(f32) -> T) -> Vec<Flat<T>>
where
    Cpu: TensorFromVec<T>,
{
    values.iter().map(|v| Cpu::default().tensor_from_vec(v.iter().map(|v| of(*v)).collect(), (v.len(),))).collect()
}

fn doubles(x: &Flat<f32>) -> Vec<f64> {
    x.as_vec().into_iter().map(f64::from).collect()
}

/// An op in single precision has the outputs and the gradients in all inputs of its twin in double precision, and the
/// gradients are the finite differences of its own outputs, to this part of what an entry changes.
fn equals_its_twin(
    what: &str,
    lens: &[usize],
    differences: f64,
    fused: impl Fn(&[Flat<f32>]) -> Taped<f32>,
    twin: impl Fn(&[Flat<f64>]) -> Taped<f64>,
) {
    let f32s = |seed, len, scale| -> Vec<f32> { random(seed, len, scale).into_iter().map(|v| v as f32).collect() };
    let values: Vec<Vec<f32>> = (0..).zip(lens).map(|(seed, len)| f32s(seed, *len, 1.5)).collect();
    let (ours, theirs) = (leaves(&values, |v| v), leaves(&values, f64::from));
    let (out, expected) = (fused(&ours), twin(&theirs));
    assert_close(&doubles(&out.retaped::<NoneTape>()), &expected.as_vec(), 2e-6, what);

    // Twice on the tape: gradients are added to what is there.
    let coefficients = f32s(20, expected.as_vec().len(), 1.0);
    let [c] = &leaves(std::slice::from_ref(&coefficients), |v| v)[..] else { unreachable!() };
    let [c64] = &leaves(std::slice::from_ref(&coefficients), f64::from)[..] else { unreachable!() };
    let gradients = (out * fused(&ours) * c.clone()).sum().backward();
    let expected = (expected.square() * c64.clone()).sum().backward();
    for (k, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        let expected = expected.get(theirs).as_vec();
        assert_close(&doubles(&gradients.get(ours)), &expected, 3e-6, &format!("{what}: gradient in input {k}"));
    }

    let sum = |inputs: &[Flat<f32>]| -> f64 {
        let out = fused(inputs).as_vec();
        out.iter().zip(&coefficients).map(|(y, c)| f64::from(*y) * f64::from(*c)).sum()
    };
    let gradients = (fused(&ours) * c.clone()).sum().backward();
    for (k, leaf) in ours.iter().enumerate() {
        let signs = random(30 + k as u64, lens[k], 1.0);
        let moved = |step: f32| -> Vec<f32> {
            values[k].iter().zip(&signs).map(|(v, s)| v + step * s.signum() as f32).collect()
        };
        let (up, down) = (moved(1.0 / 2048.0), moved(-1.0 / 2048.0));
        let at = |moved: &Vec<f32>| {
            let mut all = values.clone();
            all[k].clone_from(moved);
            sum(&leaves(&all, |v| v))
        };
        let numeric = at(&up) - at(&down);
        let change = up.iter().zip(&down).map(|(a, b)| f64::from(a - b));
        let terms: Vec<f64> = doubles(&gradients.get(leaf)).into_iter().zip(change).map(|(g, d)| g * d).collect();
        let (sum, size) = (terms.iter().sum::<f64>(), terms.iter().map(|t| t * t).sum::<f64>().sqrt());
        let error = (sum - numeric).abs();
        assert!(error <= differences * size + 1e-6, "{what}, input {k}: {sum} against the difference {numeric}");
    }
}

#[test]
fn attention_of_every_form_equals_its_twin_and_so_do_its_gradients() {
    for form in twins::forms() {
        for [batch, tokens, heads, key] in [[2, 17, 3, 5], [1, 33, 2, 16], [1, 1, 1, 1], [3, 8, 1, 20]] {
            let (shape, len) = ((batch, tokens, 3 * heads * key), batch * tokens * heads * key);
            equals_its_twin(
                &format!("{form:?} of {batch} x {tokens} tokens, {heads} heads of {key}"),
                &[3 * len],
                // A score may be 0 between two points.
                if form.weights == Weights::Relu { 0.1 } else { 2e-3 },
                |x| {
                    let qkv = x[0].leaky_trace().reshape_like(&shape);
                    layers::attention(qkv, heads, key, form).unwrap().reshape_like(&(len,))
                },
                |x| twins::attention(x[0].leaky_trace().reshape_like(&shape), heads, key, form).reshape_like(&(len,)),
            );
        }
    }
}

#[test]
fn affine_layers_equal_their_twins_and_so_do_their_gradients() {
    for [rows, inputs, outputs] in [[1, 1, 1], [7, 5, 3], [64, 16, 32], [130, 17, 140], [9, 70, 90], [1100, 20, 9]] {
        let flat = (rows * outputs,);
        equals_its_twin(
            &format!("affine layer, {rows} x {inputs} x {outputs}"),
            &[rows * inputs, inputs * outputs, outputs],
            2e-3,
            |x| {
                let w = x[1].leaky_trace().reshape_like(&(inputs, outputs));
                let x0 = x[0].leaky_trace().reshape_like(&(rows, inputs));
                layers::affine(x0, w, x[2].leaky_trace()).unwrap().reshape_like(&flat)
            },
            |x| {
                let w = x[1].leaky_trace().reshape_like(&(inputs, outputs));
                let x0 = x[0].leaky_trace().reshape_like(&(rows, inputs));
                twins::affine(x0, w, x[2].leaky_trace()).reshape_like(&flat)
            },
        );
    }
}

#[test]
fn layer_norm_equals_its_twin_and_so_do_its_gradients() {
    for [rows, width] in [[1, 1], [7, 5], [65, 33], [3, 16], [1100, 20]] {
        let flat = (rows * width,);
        equals_its_twin(
            &format!("layer norm, {rows} x {width}"),
            &[rows * width, width, width],
            2e-3,
            |x| {
                let x0 = x[0].leaky_trace().reshape_like(&(rows, width));
                layers::layer_norm(x0, x[1].leaky_trace(), x[2].leaky_trace()).unwrap().reshape_like(&flat)
            },
            |x| {
                let x0 = x[0].leaky_trace().reshape_like(&(rows, width));
                twins::layer_norm(x0, x[1].leaky_trace(), x[2].leaky_trace()).reshape_like(&flat)
            },
        );
    }
}

#[test]
fn gelu_equals_its_twin_and_so_do_its_gradients() {
    for shape in [(1, 1), (7, 5), (300, 70)] {
        let flat = (shape.0 * shape.1,);
        equals_its_twin(
            &format!("gelu of {shape:?}"),
            &[flat.0],
            2e-3,
            |x| layers::gelu(x[0].leaky_trace().reshape_like(&shape)).unwrap().reshape_like(&flat),
            |x| twins::gelu(x[0].leaky_trace().reshape_like(&shape)).reshape_like(&flat),
        );
    }
}

#[test]
fn gelu_is_close_everywhere() {
    let mut x: Vec<f32> = (-40_000..40_000).map(|i| i as f32 / 3200.0).collect();
    x.extend([-1e4, -101.5, 77.0, 1e4, 0.0, f32::NAN]);
    let len = x.len();
    let stride = len.next_multiple_of(WIDTH);
    let mut y = x.clone();
    y.resize(stride, 0.0);
    let mut slopes = vec![0.0; stride];
    incontext::ops::gelu::gelu(len, stride, &mut y, &mut slopes);
    for i in 0..len - 1 {
        let v = f64::from(x[i]);
        let root = (2.0 / std::f64::consts::PI).sqrt();
        let (u, du) = (root * (v + 0.044_715 * v.powi(3)), root * (1.0 + 3.0 * 0.044_715 * v * v));
        let sigma = (1.0 + u.tanh()) / 2.0;
        let slope = sigma + 2.0 * v * du * sigma * (1.0 - sigma);
        assert!(
            (f64::from(y[i]) - v * sigma).abs() <= 3e-7 * v.abs().max(1.0),
            "gelu({v}) is {}, not {}",
            y[i],
            v * sigma
        );
        assert!((f64::from(slopes[i]) - slope).abs() <= 2e-6, "the slope at {v} is {}, not {slope}", slopes[i]);
    }
    assert_eq!(y[len - 2], 0.0);
    assert!(y[len - 1].is_nan() && slopes[len - 1].is_nan());
}

#[test]
fn views_of_tensors_have_their_gradients_where_they_came_from() {
    // Tokens last, as columns, and one vector for all rows: the tensors' entries are in another order, or fewer.
    let (batch, tokens, heads, key) = (2, 18, 2, 7);
    let (width, len) = (3 * heads * key, batch * tokens * heads * key);
    let form = Attention::default();
    equals_its_twin(
        "attention over columns",
        &[3 * len],
        2e-3,
        |x| {
            let qkv = x[0].leaky_trace().reshape_like(&(batch, width, tokens)).permute::<_, Axes3<0, 2, 1>>();
            layers::attention(qkv, heads, key, form).unwrap().reshape_like(&(len,))
        },
        |x| {
            let qkv = x[0].leaky_trace().reshape_like(&(batch, width, tokens)).permute::<_, Axes3<0, 2, 1>>();
            twins::attention(qkv, heads, key, form).reshape_like(&(len,))
        },
    );
    let (rows, inputs, outputs) = (70, 6, 5);
    equals_its_twin(
        "an affine layer's transposed weights, the same row again and again, one bias",
        &[inputs, inputs * outputs, 1],
        2e-3,
        |x| {
            let x0 = x[0].leaky_trace().broadcast_like::<_, Axis<0>>(&(rows, inputs));
            let w = x[1].leaky_trace().reshape_like(&(outputs, inputs)).permute::<_, Axes2<1, 0>>();
            let b = x[2].leaky_trace().reshape_like(&()).broadcast_like::<_, Axis<0>>(&(outputs,));
            layers::affine(x0, w, b).unwrap().reshape_like(&(rows * outputs,))
        },
        |x| {
            let x0 = x[0].leaky_trace().broadcast_like::<_, Axis<0>>(&(rows, inputs));
            let w = x[1].leaky_trace().reshape_like(&(outputs, inputs)).permute::<_, Axes2<1, 0>>();
            let b = x[2].leaky_trace().reshape_like(&()).broadcast_like::<_, Axis<0>>(&(outputs,));
            twins::affine(x0, w, b).reshape_like(&(rows * outputs,))
        },
    );
    equals_its_twin(
        "gelu of layer norm, columns as rows, one gain",
        &[rows * inputs, 1, inputs],
        2e-3,
        |x| {
            let x0 = x[0].leaky_trace().reshape_like(&(inputs, rows)).permute::<_, Axes2<1, 0>>();
            let gamma = x[1].leaky_trace().reshape_like(&()).broadcast_like::<_, Axis<0>>(&(inputs,));
            let y = layers::layer_norm(x0, gamma, x[2].leaky_trace()).unwrap().permute::<_, Axes2<1, 0>>();
            layers::gelu(y).unwrap().reshape_like(&(rows * inputs,))
        },
        |x| {
            let x0 = x[0].leaky_trace().reshape_like(&(inputs, rows)).permute::<_, Axes2<1, 0>>();
            let gamma = x[1].leaky_trace().reshape_like(&()).broadcast_like::<_, Axis<0>>(&(inputs,));
            let y = twins::layer_norm(x0, gamma, x[2].leaky_trace()).permute::<_, Axes2<1, 0>>();
            twins::gelu(y).reshape_like(&(rows * inputs,))
        },
    );
}

#[test]
fn views_given_to_linear_attention_and_the_linear_transformer_have_their_gradients_where_they_came_from() {
    let dev = Cpu::default();
    let (batch, tokens, dim) = (2, 4, 3);
    let z = dev.tensor_from_vec(random(1, batch * tokens * dim, 1.0), (batch, dim, tokens));
    let [p, q] = [2, 3].map(|seed| dev.tensor_from_vec(random(seed, dim * dim, 1.0), (dim, dim)));
    let views = || {
        let z = z.leaky_trace().permute::<_, Axes3<0, 2, 1>>();
        (z, p.leaky_trace().permute::<_, Axes2<1, 0>>(), q.leaky_trace().permute::<_, Axes2<1, 0>>())
    };
    let (a, b, c) = views();
    let fused = linear_attention(a, b, c, Mask::Causal).unwrap().square().sum().backward();
    let (a, b, c) = views();
    let plain = twin(a, b, c, Mask::Causal).square().sum().backward();
    assert_close(&fused.get(&z).as_vec(), &plain.get(&z).as_vec(), 1e-11, "gradient in Z");
    assert_close(&fused.get(&p).as_vec(), &plain.get(&p).as_vec(), 1e-11, "gradient in P");
    assert_close(&fused.get(&q).as_vec(), &plain.get(&q).as_vec(), 1e-11, "gradient in Q");

    let moments = Arc::new(prompts(2, 3, 5).moments::<f64>());
    let params = dev.tensor_from_vec(random(4, 8, 0.5), (1, 2, 2, 2));
    let transposed = || params.leaky_trace().permute::<_, Axes4<0, 1, 3, 2>>();
    let of_view = linear_transformer(&moments, transposed()).unwrap().square().sum().backward();
    let copy = dev.tensor_from_vec(transposed().as_vec(), (1, 2, 2, 2));
    let of_copy = linear_transformer(&moments, copy.leaky_trace()).unwrap().square().sum().backward();
    let expected = of_copy.get(&copy).permute::<_, Axes4<0, 1, 3, 2>>().as_vec();
    assert_close(&of_view.get(&params).as_vec(), &expected, 1e-12, "gradient in the parameters");
}

#[test]
fn layers_have_the_same_bits_for_every_number_of_threads() {
    let dev = Cpu::default();
    let tensor = |seed, shape: (usize, usize)| {
        let values = random(seed, shape.0 * shape.1, 1.0).into_iter().map(|v| v as f32).collect();
        dev.tensor_from_vec(values, shape)
    };
    let (rows, heads, key) = (1500, 2, 8);
    let (x, w) = (tensor(1, (rows, 16)), tensor(2, (16, 3 * heads * key)));
    let [b, gamma, beta] = [(3, 48), (4, 16), (5, 16)].map(|(seed, len)| tensor(seed, (1, len)).reshape_like(&(len,)));
    let run = || {
        let y = layers::layer_norm(x.leaky_trace(), gamma.leaky_trace(), beta.leaky_trace()).unwrap();
        let y = layers::affine(layers::gelu(y).unwrap(), w.leaky_trace(), b.leaky_trace()).unwrap();
        let y = y.reshape_like(&(3, rows / 3, 3 * heads * key));
        let y = layers::attention(y, heads, key, Attention::default()).unwrap();
        let mut all = y.as_vec();
        let g = y.square().sum().backward();
        all.extend([g.get(&x).as_vec(), g.get(&w).as_vec()].concat());
        [&b, &gamma, &beta].iter().for_each(|leaf| all.extend(g.get(*leaf).as_vec()));
        all.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    let all =
        [1, 2, 4].map(|threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run));
    assert!(all[0] == all[1] && all[1] == all[2]);
}

fn assert_close(a: &[f64], b: &[f64], tolerance: f64, what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let scale = b.iter().fold(1.0_f64, |m, v| m.max(v.abs()));
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= tolerance * scale, "{what}, entry {i}: {a} against {b}");
    }
}

#[test]
fn lesser_instruction_sets_pass_too() {
    instruction_sets::tests_pass_with_lesser_ones("lesser_instruction_sets_pass_too");
}
