//! Adam against dfdx's own, SGD against its closed form, Muon, clipping and schedules against their definitions.

use dfdx::optim::{Adam as TheirAdam, Optimizer};
use dfdx::prelude::*;
use incontext::Result;
use incontext::figure::Extremes;
use incontext::linalg::Matrix as Doubles;
use incontext::models::{
    Gpt2, Gpt2Config, Init, Lstm, LstmConfig, Parameter, Parameters, Positions, SequenceModel, visit_tensor,
};
use incontext::ops::sequence::Architecture;
use incontext::rng::{Rng, stream};
use incontext::train::{Adam, AdamConfig, Clip, Muon, MuonConfig, Schedule, Sgd, SgdConfig, Stateful};

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

/// A hidden matrix: the name of the tensor that it is in, its shape, and where its entry (i, j) is in the tensor.
struct Hidden {
    tensor: &'static str,
    rows: usize,
    columns: usize,
    at: Box<dyn Fn(usize, usize) -> usize>,
}

/// `count` matrices side by side in a tensor.
fn side_by_side(tensor: &'static str, rows: usize, columns: usize, count: usize) -> Vec<Hidden> {
    let matrix = |k| Hidden { tensor, rows, columns, at: Box::new(move |i, j| (i * count + k) * columns + j) };
    (0..count).map(matrix).collect()
}

/// `count` matrices one below the other in a tensor.
fn one_below_the_other(tensor: &'static str, rows: usize, columns: usize, count: usize) -> Vec<Hidden> {
    let matrix = |k| Hidden { tensor, rows, columns, at: Box::new(move |i, j| (k * rows + i) * columns + j) };
    (0..count).map(matrix).collect()
}

/// Two steps of Muon with gradients that are given, against its docstring for each of these matrices, and against Adam for
/// every tensor that has none of them.
fn muon_steps_as_it_says<C: Architecture>(start: &SequenceModel<C>, hidden: &[Hidden]) {
    let (rate, factor, momentum, weight_decay) = (0.05, 0.4, 0.9, 0.3);
    // The first gradient is clipped, the second is not: their shares in the momentum depend on it.
    let adam = AdamConfig { rate: 0.02, weight_decay: 0.1, clip: Clip::Global(5.0), ..AdamConfig::default() };
    let entries = start.config().tensors();
    let len = start.values().len();
    let g: Vec<Vec<f32>> = [1.0, 0.05]
        .into_iter()
        .zip(11..)
        .map(|(size, seed)| random(seed, len).iter().map(|g| size * g).collect())
        .collect();
    let clipped: Vec<Vec<f32>> = g
        .iter()
        .map(|g| {
            let mut tensors: Vec<Vec<f32>> = entries.iter().map(|e| g[e.at.clone()].to_vec()).collect();
            let shapes: Vec<Vec<usize>> = entries.iter().map(|e| e.shape.clone()).collect();
            adam.clip.apply(&mut tensors, &shapes);
            tensors.concat()
        })
        .collect();
    assert!(clipped[0] != g[0] && clipped[1] == g[1]);

    let (mut ours, mut theirs) = (start.clone(), start.clone());
    let mut muon = Muon::new(MuonConfig { rate, momentum, weight_decay, adam }).unwrap();
    let mut their_adam = Adam::new(adam).unwrap();
    muon.set_rate_factor(factor);
    their_adam.set_rate_factor(factor);
    assert_eq!(muon.rate(), rate * factor);
    for step in 0..2 {
        let before = ours.values();
        for (model, optimizer) in
            [(&mut ours, &mut muon as &mut dyn Optimizer<SequenceModel<C>, Cpu, f32>), (&mut theirs, &mut their_adam)]
        {
            let g = Cpu::default().tensor_from_vec(g[step].clone(), (len,));
            let gradients = (model.params().leaky_trace() * g).sum().backward();
            optimizer.update(model, &gradients).unwrap();
            // The tensor that the gradient is looked up by has the new numbers.
            assert_eq!(model.params().as_vec(), model.values());
        }
        let (after, adams) = (ours.values(), theirs.values());
        // The momentum of the docstrings, Nesterov's: the gradient and the momentum that has it in it.
        let momenta = |k: usize| {
            let [first, second] = [0, 1].map(|s| f64::from(clipped[s][k]));
            if step == 0 { first + momentum * first } else { second + momentum * (second + momentum * first) }
        };
        for entry in &entries {
            let matrices: Vec<&Hidden> = hidden.iter().filter(|h| h.tensor == entry.name).collect();
            if matrices.is_empty() {
                assert_eq!(after[entry.at.clone()], adams[entry.at.clone()], "{} moves as Adam's", entry.name);
                assert_ne!(after[entry.at.clone()], before[entry.at.clone()], "{}", entry.name);
                continue;
            }
            assert_eq!(matrices.iter().map(|h| h.rows * h.columns).sum::<usize>(), entry.at.len(), "{}", entry.name);
            for (part, Hidden { rows, columns, at, .. }) in matrices.into_iter().enumerate() {
                let what = format!("part {part} of {}, step {step}", entry.name);
                let at = |i: usize, j: usize| entry.at.start + at(i, j);
                let size = rate * factor * 0.2 * (*rows.max(columns) as f64).sqrt();
                let left = 1.0 - rate * factor * weight_decay;
                let x = Doubles::from_fn(*rows, *columns, |i, j| {
                    (f64::from(before[at(i, j)]) * left - f64::from(after[at(i, j)])) / size
                });
                let m = Doubles::from_fn(*rows, *columns, |i, j| momenta(at(i, j)));
                // Of the shape that has no more columns than rows: M = P S with P orthogonal and S positive.
                let (x, m) = if rows >= columns { (x, m) } else { (x.transpose(), m.transpose()) };
                let orthogonal = m.mul(&m.transpose().mul(&m).map_symmetric(|v| 1.0 / v.sqrt()).unwrap());
                // X has M's singular vectors just if Pᵀ X is symmetric, with X's singular values as eigenvalues, and
                // commutes with MᵀM.
                let shared = orthogonal.transpose().mul(&x);
                assert!(x.plus(-1.0, &orthogonal.mul(&shared)).norm() < 1e-4, "{what}: it leaves M's columns");
                let skew = shared.plus(-1.0, &shared.transpose()).norm();
                assert!(skew < 1e-4, "{what}: not along M's singular vectors by {skew:e}");
                let gram = m.transpose().mul(&m);
                let commutator = shared.mul(&gram).plus(-1.0, &gram.mul(&shared)).norm() / gram.norm();
                assert!(commutator < 1e-4, "{what}: other singular vectors by {commutator:e}");
                let values = shared.plus(1.0, &shared.transpose()).scaled(0.5).eigen_symmetric().unwrap().0;
                assert!(values.iter().all(|v| (0.6..1.3).contains(v)), "{what}: singular values {values:?}");
            }
        }
    }
    // What a state has of a hidden matrix is its momentum.
    let state = muon.state();
    for (k, entry) in entries.iter().enumerate().filter(|(_, e)| hidden.iter().any(|h| h.tensor == e.name)) {
        let (name, first) = &state[k];
        assert_eq!(*name, format!("muon.first.{k}"));
        for (m, at) in first.iter().zip(entry.at.clone()) {
            let expected = momentum * f64::from(clipped[0][at]) + f64::from(clipped[1][at]);
            assert!((f64::from(*m) - expected).abs() < 1e-6, "{name}: {m} against {expected}");
        }
    }
}

#[test]
fn muon_moves_hidden_matrices_orthogonally_each_on_its_own_and_the_rest_as_adam() {
    // Heads of 2 x 5 in a width of 12: no matrix of the attention is square.
    let config = Gpt2Config {
        inputs: 3,
        layers: 2,
        width: 12,
        heads: 2,
        key: 5,
        mlp: 20,
        positions: Positions::Learned(9),
        ..Gpt2Config::default()
    };
    let mut hidden = Vec::new();
    for names in [
        ["h.0.attn.c_attn.weight", "h.0.attn.c_proj.weight", "h.0.mlp.c_fc.weight", "h.0.mlp.c_proj.weight"],
        ["h.1.attn.c_attn.weight", "h.1.attn.c_proj.weight", "h.1.mlp.c_fc.weight", "h.1.mlp.c_proj.weight"],
    ] {
        let [attn, proj, fc, out] = names;
        hidden.extend(side_by_side(attn, 12, 10, 3));
        hidden.extend(side_by_side(proj, 10, 12, 1));
        hidden.extend(side_by_side(fc, 12, 20, 1));
        hidden.extend(side_by_side(out, 20, 12, 1));
    }
    muon_steps_as_it_says(&Gpt2::init(config, Init::FanIn, 1).unwrap(), &hidden);

    let recurrent = ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.weight_ih_l1", "lstm.weight_hh_l1"];
    let gates: Vec<Hidden> = recurrent.into_iter().flat_map(|name| one_below_the_other(name, 9, 9, 4)).collect();
    let config = LstmConfig { inputs: 3, outputs: 2, layers: 2, width: 9 };
    muon_steps_as_it_says(&Lstm::init(config, 1).unwrap(), &gates);
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

#[test]
fn clipping_of_entries_limits_each_of_them_alone() {
    let limit = 0.25;
    let g = [0.1, -0.1, 0.25, -0.25, 0.250_000_03, -0.3, 1e30, -1e30, 0.0, f32::MIN_POSITIVE, 7.0, -0.249_999_99];
    let expected = [0.1, -0.1, 0.25, -0.25, 0.25, -0.25, 0.25, -0.25, 0.0, f32::MIN_POSITIVE, 0.25, -0.249_999_99];
    let mut clipped = vec![g[..5].to_vec(), g[5..].to_vec()];
    Clip::Element(limit).apply(&mut clipped, &[vec![5], vec![7]]);
    assert_eq!(clipped.concat(), expected, "inside the limit nothing changes");
    // Before a step: that of SGD is the clipped gradient.
    let mut model = Matrix(Cpu::default().tensor_from_vec(vec![0.0; 12], (Const::<3>, Const::<4>)));
    let gradients = given(&model.0, &g);
    Sgd::new(SgdConfig { rate: 1.0, momentum: 0.0, clip: Clip::Element(limit) })
        .unwrap()
        .update(&mut model, &gradients)
        .unwrap();
    assert_eq!(model.0.as_vec(), expected.map(|g| -g));
    for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(Adam::new(AdamConfig { clip: Clip::Element(bad), ..AdamConfig::default() }).is_err(), "{bad}");
    }
}

/// A factor and a formula's, of steps that are compared.
fn assert_factor(schedule: Schedule, step: u64, steps: u64, expected: f64) {
    let factor = schedule.at(step, steps);
    assert!((factor - expected).abs() < 1e-15, "{schedule:?} at {step} of {steps}: {factor}, not {expected}");
}

#[test]
fn schedules_have_the_factors_of_their_formulas_at_every_corner() {
    let half_cosine = |part: f64| 0.5 * (1.0 + (std::f64::consts::PI * part).cos());
    let steps = 1000;
    for warmup in [0_u64, 1, 20, 999] {
        let (linear, cosine) = (Schedule::Linear { warmup }, Schedule::Cosine { warmup });
        linear.check().unwrap();
        cosine.check().unwrap();
        // From 0, which no step has: the first has one part of the warm-up, the last of it all.
        for step in 0..warmup {
            for schedule in [linear, cosine] {
                assert_factor(schedule, step, steps, (step + 1) as f64 / warmup as f64);
            }
        }
        for step in warmup..=steps {
            let part = (step - warmup) as f64 / (steps - warmup) as f64;
            assert_factor(linear, step, steps, 1.0 - part);
            assert_factor(cosine, step, steps, half_cosine(part));
        }
        for schedule in [linear, cosine] {
            assert_eq!(schedule.at(warmup, steps), 1.0, "{schedule:?} after its warm-up");
            for step in [steps, steps + 1, u64::MAX] {
                assert_eq!(schedule.at(step, steps), 0.0, "{schedule:?} is over");
            }
        }
    }
    assert_eq!(Schedule::Linear { warmup: 20 }.at(510, steps), 0.5, "half-way");
    // All of the training and more is warm-up.
    for step in [0, 999] {
        assert_factor(Schedule::Linear { warmup: 5000 }, step, steps, (step + 1) as f64 / 5000.0);
    }

    // The fall ends inside the training, with it, and behind it; the plateau has no step, and there is no warm-up.
    for (warmup, hold, until, floor) in [
        (10, 60, 150, 0.1),
        (10, 60, 200, 0.0),
        (10, 60, 400, 0.1),
        (10, 10, 150, 0.25),
        (0, 0, 200, 0.5),
        (0, 30, 31, 0.1),
        (5, 30, 100, 1.0),
    ] {
        let held = Schedule::Hold { warmup, hold, until, floor };
        held.check().unwrap();
        for step in (0..=200).chain([until - 1, until, until + 1, u64::MAX]) {
            let expected = if step < warmup {
                (step + 1) as f64 / warmup as f64
            } else if step <= hold {
                1.0
            } else if step < until {
                floor + (1.0 - floor) * half_cosine((step - hold) as f64 / (until - hold) as f64)
            } else {
                floor
            };
            assert_factor(held, step, 200, expected);
            assert_eq!(held.at(step, 200), held.at(step, 7), "its corners are its own, not the training's");
        }
        assert_eq!(held.at(hold, 200), 1.0);
        assert_eq!(held.at(until, 200), floor);
    }
    for (warmup, hold, until, floor) in [(11, 10, 20, 0.1), (0, 21, 20, 0.1), (0, 1, 2, -0.1), (0, 1, 2, f64::NAN)] {
        assert!(Schedule::Hold { warmup, hold, until, floor }.check().is_err(), "{warmup} {hold} {until} {floor}");
    }
}

#[test]
fn gradients_that_are_lent_and_gradients_that_are_used_up_move_alike() {
    fn check(mut optimizer: impl Optimizer<Matrix, Cpu, f32> + Stateful + Clone) {
        let (mut lent, mut used_up, mut other) = (matrix(8), matrix(8), optimizer.clone());
        for step in 0..3 {
            let gradients = regression(&lent.0, step);
            let before = gradients.get(&lent.0).as_vec();
            optimizer.update(&mut lent, &gradients).unwrap();
            // Clipped, if at all, in a copy.
            assert_eq!(gradients.get(&lent.0).as_vec(), before);
            let gradients = regression(&used_up.0, step);
            other.step(&mut used_up, gradients).unwrap();
            assert_eq!(lent.0.as_vec(), used_up.0.as_vec());
        }
    }
    let adam = AdamConfig { rate: 0.05, clip: Clip::Global(0.01), ..AdamConfig::default() };
    check(Adam::new(adam).unwrap());
    check(Sgd::new(SgdConfig { rate: 0.01, momentum: 0.9, clip: Clip::Element(0.01) }).unwrap());
    check(Muon::new(MuonConfig { adam, ..MuonConfig::default() }).unwrap());
}
