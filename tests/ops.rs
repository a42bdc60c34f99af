//! The fused ops against plain dfdx twins and finite differences.

#[path = "support/instruction_sets.rs"]
mod instruction_sets;

use std::sync::Arc;

use dfdx::prelude::*;
use incontext::ops::linear_attention::{Mask, linear_attention};
use incontext::ops::linear_transformer::linear_transformer;
use incontext::ops::wishart::GramSamples;
use incontext::rng::{Rng, stream};
use incontext::tasks::{Covariance, LinearRegression, Prompts, WeightPrior};

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

type Taped3 = Tensor<(usize, usize, usize), f64, Cpu, OwnedTape<f64, Cpu>>;
type Taped2 = Tensor<(usize, usize), f64, Cpu, OwnedTape<f64, Cpu>>;

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
