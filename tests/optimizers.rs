//! Adam against dfdx's own, SGD against its closed form, clipping and schedules against their definitions.

use dfdx::optim::{Adam as TheirAdam, Optimizer};
use dfdx::prelude::*;
use incontext::Result;
use incontext::figure::Extremes;
use incontext::models::{Parameter, Parameters, visit_tensor};
use incontext::rng::{Rng, stream};
use incontext::train::{Adam, AdamConfig, Clip, Schedule, Sgd, SgdConfig, Stateful};

/// A model of one 3 x 4 matrix.
#[derive(Clone)]
struct Matrix(Tensor<Rank2<3, 4>, f32, Cpu>);

impl Parameters for Matrix {
    fn visit(&mut self, visitor: &mut dyn FnMut(Parameter<'_>) -> Result<()>) -> Result<()> {
        visit_tensor("matrix", &mut self.0, visitor)
    }
}

fn random(seed: u64, len: usize) -> Vec<f32> {
    let mut rng = stream(seed, "optimizers", 0);
    (0..len).map(|_| rng.gen_range(-1.0..1.0)).collect()
}

fn matrix(seed: u64) -> Matrix {
    Matrix(Cpu::default().tensor_from_vec(random(seed, 12), (Const::<3>, Const::<4>)))
}

/// The gradients of the mean of (W x - y)² over a batch of vectors that changes with the step.
fn regression(w: &Tensor<Rank2<3, 4>, f32, Cpu>, step: u64) -> Gradients<f32, Cpu> {
    let x = Cpu::default().tensor_from_vec(random(100 + step, 32), (Const::<4>, Const::<8>));
    let y = Cpu::default().tensor_from_vec(random(900 + step, 24), (Const::<3>, Const::<8>));
    (w.leaky_trace().matmul(x) - y).square().mean().backward()
}

/// Gradients that are given, not computed: of Σ g_i w_i.
fn given(w: &Tensor<Rank2<3, 4>, f32, Cpu>, g: &[f32]) -> Gradients<f32, Cpu> {
    let g = Cpu::default().tensor_from_vec(g.to_vec(), (Const::<3>, Const::<4>));
    (w.leaky_trace() * g).sum().backward()
}

#[test]
fn adam_is_dfdxs_adam() {
    for (betas, decay) in [([0.9, 0.999], 0.0), ([0.99, 0.9], 0.0), ([0.9, 0.9], 0.1), ([0.0, 0.5], 0.0)] {
        let (mut ours, mut theirs) = (matrix(1), matrix(1).0);
        let start = ours.0.as_vec();
        let config = AdamConfig { rate: 0.01, betas, weight_decay: decay, ..AdamConfig::default() };
        let mut our_adam = Adam::new(config).unwrap();
        let mut their_adam = TheirAdam::new(
            &theirs,
            dfdx::tensor_ops::AdamConfig {
                lr: 0.01,
                betas,
                eps: 1e-8,
                weight_decay: (decay > 0.0).then_some(WeightDecay::Decoupled(decay)),
            },
        );
        for step in 0..200 {
            // Both take the gradient at the same point: roundings must not grow through the problem.
            let gradients = regression(&ours.0, step);
            let given = given(&theirs, &gradients.get(&ours.0).as_vec());
            our_adam.update(&mut ours, &gradients).unwrap();
            their_adam.update(&mut theirs, &given).unwrap();
            for (a, b) in ours.0.as_vec().iter().zip(theirs.as_vec()) {
                assert!((a - b).abs() <= 2e-5 * (1.0 + b.abs()), "step {step}, betas {betas:?}: {a} against {b}");
            }
        }
        let moved = ours.0.as_vec().iter().zip(start).map(|(a, b)| f64::from((a - b).abs())).greatest();
        assert!(moved > 0.1, "it moved by {moved}");
    }
}

#[test]
fn the_first_step_of_adam_is_the_rate_in_the_direction_of_the_sign() {
    let mut model = matrix(2);
    let start = model.0.as_vec();
    let g: Vec<f32> = (0..12).map(|i| if i == 0 { 0.0 } else { (i as f32 - 6.5) * 10f32.powi(i - 6) }).collect();
    let mut adam = Adam::new(AdamConfig { rate: 0.5, ..AdamConfig::default() }).unwrap();
    adam.set_rate_factor(0.5);
    let gradients = given(&model.0, &g);
    adam.update(&mut model, &gradients).unwrap();
    for ((now, before), g) in model.0.as_vec().iter().zip(&start).zip(&g) {
        let sign = if *g == 0.0 { 0.0 } else { g.signum() };
        assert!((now - (before - 0.25 * sign)).abs() < 1e-3, "{before} -> {now} for {g}");
    }
}

#[test]
fn sgd_has_its_closed_form() {
    let (rate, momentum, steps) = (0.1, 0.8_f64, 25);
    let g = random(3, 12);
    let mut model = matrix(4);
    let start = model.0.as_vec();
    let mut sgd = Sgd::new(SgdConfig { rate, momentum, clip: Clip::None }).unwrap();
    for _ in 0..steps {
        let gradients = given(&model.0, &g);
        sgd.update(&mut model, &gradients).unwrap();
    }
    // A constant gradient: the velocity after k steps is g (1 - μ^k)/(1 - μ).
    let travelled: f64 = (1..=steps).map(|k| (1.0 - momentum.powi(k)) / (1.0 - momentum)).sum();
    for ((now, before), g) in model.0.as_vec().iter().zip(&start).zip(&g) {
        let expected = f64::from(*before) - rate * travelled * f64::from(*g);
        assert!((f64::from(*now) - expected).abs() < 1e-5 * (1.0 + expected.abs()), "{now} against {expected}");
    }
    // Without momentum, on λ w²/2: w shrinks by 1 - rate λ a step.
    let mut model = matrix(5);
    let start = model.0.as_vec();
    let lambda: Vec<f32> = (0..12).map(|i| 0.2 + 0.1 * i as f32).collect();
    let mut sgd = Sgd::new(SgdConfig { rate: 0.5, momentum: 0.0, clip: Clip::None }).unwrap();
    for _ in 0..10 {
        let g: Vec<f32> = model.0.as_vec().iter().zip(&lambda).map(|(w, l)| w * l).collect();
        let gradients = given(&model.0, &g);
        sgd.update(&mut model, &gradients).unwrap();
    }
    for ((now, before), l) in model.0.as_vec().iter().zip(&start).zip(&lambda) {
        let expected = before * (1.0 - 0.5 * l).powi(10);
        assert!((now - expected).abs() < 1e-6, "{now} against {expected}");
    }
}

#[test]
fn a_restored_optimiser_continues_bit_for_bit_and_refuses_what_does_not_fit() {
    let run = |restart: Option<u64>| {
        let mut model = matrix(6);
        let config = AdamConfig { rate: 0.05, clip: Clip::Matrix(0.1), ..AdamConfig::default() };
        let mut adam = Adam::new(config).unwrap();
        let mut sgd = Sgd::new(SgdConfig { rate: 0.01, momentum: 0.9, clip: Clip::None }).unwrap();
        for step in 0..20 {
            if restart == Some(step) {
                let (adams, sgds) = (Stateful::state(&adam), sgd.state());
                adam = Adam::new(config).unwrap();
                adam.restore(step, &adams).unwrap();
                sgd = Sgd::new(SgdConfig { rate: 0.01, momentum: 0.9, clip: Clip::None }).unwrap();
                sgd.restore(step, &sgds).unwrap();
            }
            let gradients = regression(&model.0, step);
            adam.update(&mut model, &gradients).unwrap();
            let gradients = regression(&model.0, step + 50);
            sgd.update(&mut model, &gradients).unwrap();
        }
        model.0.as_vec().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    let whole = run(None);
    for step in [0, 1, 7, 19] {
        assert_eq!(run(Some(step)), whole, "restored before step {step}");
    }
    let mut adam = Adam::new(AdamConfig::default()).unwrap();
    let mut sgd = Sgd::new(SgdConfig { rate: 0.1, momentum: 0.0, clip: Clip::None }).unwrap();
    let velocity = vec![("sgd.velocity.0".to_owned(), vec![0.0; 12])];
    let message = adam.restore(1, &velocity).unwrap_err().to_string();
    assert!(message.contains("Adam"), "{message}");
    let moments: Vec<_> = ["adam.first.0", "adam.second.0"].iter().map(|n| ((*n).to_owned(), vec![0.0; 5])).collect();
    assert!(sgd.restore(1, &moments).unwrap_err().to_string().contains("SGD"));
    // The names fit, the sizes do not: the update says so and changes nothing.
    adam.restore(1, &moments).unwrap();
    sgd.restore(1, &[("sgd.velocity.0".to_owned(), vec![0.0; 13])]).unwrap();
    let mut model = matrix(7);
    let before = model.0.as_vec();
    let gradients = regression(&model.0, 0);
    assert!(adam.update(&mut model, &gradients).is_err());
    assert!(sgd.update(&mut model, &gradients).is_err());
    assert_eq!(model.0.as_vec(), before);
}

#[test]
fn clipping_limits_each_matrix_or_all_of_them_and_keeps_directions() {
    let shapes = vec![vec![2, 2, 3], vec![4]];
    let gradients = vec![random(8, 12), random(9, 4).iter().map(|v| 0.01 * v).collect::<Vec<f32>>()];
    let norm = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    let clipped = |clip: Clip| {
        let mut g = gradients.clone();
        clip.apply(&mut g, &shapes);
        g
    };
    assert_eq!(clipped(Clip::None), gradients);
    assert_eq!(clipped(Clip::Matrix(100.0)), gradients, "nothing is scaled up");
    assert_eq!(clipped(Clip::Global(100.0)), gradients);
    let same_direction = |a: &[f32], b: &[f32]| {
        let dot: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum();
        assert!((dot / (norm(a) * norm(b)) - 1.0).abs() < 1e-6);
    };
    // The last two axes are a matrix: the first tensor holds two.
    let each = clipped(Clip::Matrix(0.05));
    for (before, after) in gradients[0].chunks(6).zip(each[0].chunks(6)) {
        assert!((norm(after) - 0.05).abs() < 1e-6, "norm {}", norm(after));
        same_direction(before, after);
    }
    assert_eq!(each[1], gradients[1], "a small vector stays as it is");
    let together = clipped(Clip::Global(0.05));
    let all = |g: &[Vec<f32>]| g.concat();
    assert!((norm(&all(&together)) - 0.05).abs() < 1e-6);
    same_direction(&all(&gradients), &all(&together));
    // PyTorch's own factor: limit / (norm + 1e-6).
    let factor = (0.05 / (norm(&all(&gradients)) + 1e-6)) as f32;
    for (a, b) in all(&gradients).iter().zip(all(&together)) {
        assert_eq!((a * factor).to_bits(), b.to_bits());
    }
    let mut zero = vec![vec![0.0; 12], vec![0.0; 4]];
    Clip::Matrix(0.1).apply(&mut zero, &shapes);
    assert_eq!(zero, [vec![0.0; 12], vec![0.0; 4]]);
}

#[test]
fn schedules_are_what_they_say() {
    let steps = 1000;
    for step in [0, 1, 999, 1000] {
        assert_eq!(Schedule::Constant.at(step, steps), 1.0);
    }
    let halving = Schedule::Step { every: 100, factor: 0.5 };
    for step in 0..steps {
        assert_eq!(halving.at(step, steps), 0.5_f64.powi((step / 100) as i32));
    }
    let cosine = Schedule::Cosine { warmup: 20 };
    assert_eq!(cosine.at(0, steps), 0.05);
    assert_eq!(cosine.at(19, steps), 1.0);
    assert_eq!(cosine.at(20, steps), 1.0);
    assert!((cosine.at(510, steps) - 0.5).abs() < 1e-12, "half-way");
    assert!(cosine.at(1000, steps).abs() < 1e-12);
    for step in 20..steps {
        assert!(cosine.at(step + 1, steps) < cosine.at(step, steps), "it falls at every step");
    }
    // Beyond the end, and with more warm-up than steps, they are still numbers in [0, 1].
    for schedule in [cosine, Schedule::Cosine { warmup: 0 }, Schedule::Cosine { warmup: 5000 }, halving] {
        for step in [0, 1, 999, 1000, 5000, u64::MAX] {
            let factor = schedule.at(step, steps);
            assert!((0.0..=1.0).contains(&factor), "{schedule:?} at {step}: {factor}");
        }
    }
}
