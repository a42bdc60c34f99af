//! The same bits for 1, 2 and 4 threads, and for a training that was stopped and resumed.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use dfdx::prelude::*;
use incontext::algorithms::{GradientDescent, LeastSquares, losses};
use incontext::experiments::Settings;
use incontext::experiments::pgd::recipes::{Protocol, Run, exact, preconditioner, train, transform};
use incontext::models::{GeneralLinearTransformer, LinearTransformer, Parametrisation};
use incontext::ops::linear_attention::{Attend, Mask, linear_attention};
use incontext::ops::linear_transformer::{Fused, gradient_mut};
use incontext::ops::wishart::GramSamples;
use incontext::progress::{Observer, Report};
use incontext::rng::{Rng, stream};
use incontext::tasks::{Covariance, LinearRegression, WeightPrior};
use incontext::train::{Clip, History, Problem, Schedule, Sgd, SgdConfig, Trainer};
use incontext::{Error, Result};

/// `work` with 1, 2 and 4 threads; all three must give the same.
fn same_for_all_threads<T: PartialEq + Send>(what: &str, work: impl Fn() -> T + Sync) -> T {
    let with = |threads: usize| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(&work);
    let one = with(1);
    for threads in [2, 4] {
        assert!(with(threads) == one, "{what}: {threads} threads give other bits than one");
    }
    one
}

fn bits(values: &[f64]) -> Vec<u64> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn random(seed: u64, len: usize, scale: f64) -> Vec<f64> {
    let mut rng = stream(seed, "determinism", 0);
    (0..len).map(|_| scale * rng.gen_range(-1.0..1.0)).collect()
}

/// Neither the paper's dimension nor a multiple of any piece of work; several pieces.
fn task(d: usize, n: usize) -> LinearRegression {
    let eigenvalues: Vec<f64> = (0..d).map(|i| 1.0 / (1.0 + i as f64)).collect();
    let covariance = Covariance::rotated(&eigenvalues, 3).unwrap();
    LinearRegression::new(covariance, n, WeightPrior::InverseCovariance).unwrap()
}

const BATCH: usize = 2339;

#[test]
fn samplers_give_the_same_bits_for_any_number_of_threads() {
    for (d, n) in [(5, 20), (3, 2)] {
        let task = task(d, n);
        let noisy = task.clone().with_noise(0.3).unwrap();
        same_for_all_threads("prompts", || {
            let prompts = [task.sample(BATCH, 1).unwrap(), noisy.sample(BATCH, 1).unwrap()];
            prompts.map(|p| (0..BATCH).flat_map(|k| [bits(p.x(k)), bits(p.y(k))]).collect::<Vec<_>>())
        });
        same_for_all_threads("moments of prompts", || {
            let moments = task.sample(BATCH, 1).unwrap().moments::<f64>();
            (0..BATCH).map(|k| bits(&moments.prompt(k).unwrap())).collect::<Vec<_>>()
        });
        same_for_all_threads("moments", || {
            let double = task.sample_moments::<f64>(BATCH, 2).unwrap();
            let single = task.sample_moments::<f32>(BATCH, 2).unwrap();
            let single = |k| single.prompt(k).unwrap().iter().map(|v: &f32| v.to_bits()).collect::<Vec<_>>();
            (0..BATCH).map(|k| (bits(&double.prompt(k).unwrap()), single(k))).collect::<Vec<_>>()
        });
        same_for_all_threads("Gram matrices", || bits(&task.sample_gram(BATCH, 3).unwrap()));
    }
}

#[test]
fn a_larger_batch_begins_with_the_smaller_one_and_other_seeds_give_other_prompts() {
    let task = task(3, 4);
    let (small, large) = (task.sample(700, 5).unwrap(), task.sample(1500, 5).unwrap());
    assert!((0..700).all(|k| small.x(k) == large.x(k) && small.y(k) == large.y(k)));
    assert_ne!(task.sample(700, 6).unwrap().x(0), small.x(0));
    // The pieces of one batch are not copies of one another.
    assert_ne!(large.x(0), large.x(512));
    let grams = task.sample_gram(1024, 5).unwrap();
    assert_ne!(grams[..9], grams[512 * 9..][..9]);
}

fn fused<E: Fused>(d: usize, n: usize, layers: usize) -> (Vec<u64>, Vec<u64>)
where
    Cpu: Device<E>,
{
    let moments = Arc::new(task(d, n).sample_moments::<E>(BATCH, 4).unwrap());
    let values = random(1, layers * 2 * d * d, 0.3).into_iter().map(E::of).collect();
    let model = LinearTransformer::<E>::from_values(values, layers, d, Parametrisation::Transform).unwrap();
    let (loss, mut gradients) = model.loss_and_gradient(&moments).unwrap();
    let gradient: Vec<f64> = gradient_mut(&mut gradients, &model.params).unwrap().iter().map(|v| v.f64()).collect();
    (bits(&model.predict(&moments).unwrap()), bits(&[vec![loss], gradient].concat()))
}

fn attention<E: Attend>(d: usize, mask: Mask) -> Vec<u64>
where
    Cpu: Device<E>,
{
    let (n, batch, size) = (6, 300, d + 1);
    let device = Cpu::default();
    let tensor = |seed: u64| random(seed, size * size, 0.4).into_iter().map(E::of).collect::<Vec<E>>();
    let tokens = task(d, n).sample(batch, 8).unwrap().tokens::<E>();
    let z = device.tensor_from_vec(tokens, (batch, n + 1, size));
    let p = device.tensor_from_vec(tensor(2), (size, size));
    let q = device.tensor_from_vec(tensor(3), (size, size));
    let out = linear_attention(z.leaky_trace(), p.leaky_trace(), q.leaky_trace(), mask).unwrap();
    let values = out.as_vec();
    let gradients = out.square().sum().backward();
    let all = [values, gradients.get(&z).as_vec(), gradients.get(&p).as_vec(), gradients.get(&q).as_vec()];
    bits(&all.concat().iter().map(|v| v.f64()).collect::<Vec<_>>())
}

#[test]
fn ops_give_the_same_bits_for_any_number_of_threads() {
    for (d, n, layers) in [(5, 20, 3), (3, 2, 2), (7, 9, 4)] {
        same_for_all_threads("fused transformer, f32", || fused::<f32>(d, n, layers));
        same_for_all_threads("fused transformer, f64", || fused::<f64>(d, n, layers));
        same_for_all_threads("exact engine", || {
            let grams = GramSamples::new(d, &task(d, n).sample_gram(BATCH, 4).unwrap()).unwrap();
            let params = random(6, layers * 2 * d * d, 0.3);
            let (loss, gradient) = grams.loss_and_gradient(&params).unwrap();
            (bits(&grams.losses(&params).unwrap()), bits(&[vec![loss], gradient].concat()))
        });
    }
    for mask in [Mask::Context, Mask::Causal] {
        same_for_all_threads("linear attention, f32", || attention::<f32>(5, mask));
        same_for_all_threads("linear attention, f64", || attention::<f64>(2, mask));
    }
    same_for_all_threads("algorithms", || {
        let prompts = task(5, 9).sample(BATCH, 7).unwrap();
        let gd = GradientDescent::new(vec![0.02, 0.01]).unwrap();
        bits(
            &[losses(&gd, &prompts, 9, 3).unwrap(), losses(&LeastSquares::default(), &prompts, 4, 0).unwrap()].concat(),
        )
    });
    same_for_all_threads("general transformer", || {
        let corner: Vec<f64> = random(9, 36, 0.3);
        let model = GeneralLinearTransformer::<f64>::new(
            &[corner.clone(), corner.clone()],
            &[corner.clone(), corner.clone()],
            5,
            Mask::Causal,
        );
        bits(&model.unwrap().predict(&task(5, 20).sample(BATCH, 9).unwrap()).unwrap())
    });
}

fn small(protocol: Protocol) -> Run {
    let protocol = Protocol {
        batch: 700,
        resample_every: 5,
        steps: 33,
        record_every: 4,
        schedule: Schedule::Step { every: 10, factor: 0.5 },
        ..protocol
    };
    Run { name: "s1".to_owned(), protocol, seed: 1 }
}

/// Steps, measures and parameters of a history, as bits.
type HistoryBits = (Vec<u64>, Vec<(String, Vec<u64>)>, Vec<Vec<u32>>);

fn history_bits(history: &History) -> HistoryBits {
    (
        history.steps.clone(),
        history.measures.iter().map(|(name, v)| (name.clone(), bits(v))).collect(),
        history.parameters.iter().map(|p| p.iter().map(|v| v.to_bits()).collect()).collect(),
    )
}

#[test]
fn training_gives_the_same_bits_for_any_number_of_threads() {
    for protocol in [preconditioner(), transform(), exact()] {
        let run = small(protocol);
        same_for_all_threads("training", || history_bits(&train(&run, "test", None, &Settings::default()).unwrap()));
    }
}

#[test]
fn every_figure_is_the_same_for_any_number_of_threads() {
    // A claim is known by its id.
    let owners = Mutex::new(HashMap::new());
    for experiment in incontext::experiments::all() {
        same_for_all_threads(experiment.id, || {
            let settings = Settings { quick: true, seed: 3, ..Settings::default() };
            let made = (experiment.run)(&settings).unwrap_or_else(|e| panic!("{}: {e}", experiment.id));
            let measured: Vec<f64> = made.claims.iter().map(|claim| claim.measured).collect();
            for (at, claim) in made.claims.iter().enumerate() {
                let owner = (experiment.id, at);
                let known = owners.lock().unwrap().insert(claim.id.clone(), owner).unwrap_or(owner);
                assert_eq!(known, owner, "two claims are called {}", claim.id);
            }
            (made.figure.to_json().unwrap(), bits(&measured), made.config.to_string())
        });
    }
}

/// Asks for an interruption at every step at which `when` says so, once.
struct Interrupts {
    step: AtomicU64,
    at: Vec<u64>,
}

impl Observer for Interrupts {
    fn report(&self, _: &Report<'_>) {}

    fn interrupted(&self) -> bool {
        // The trainer asks once a step; a resumed run asks for the step where it stopped again.
        let step = self.step.fetch_add(1, Ordering::SeqCst);
        let stop = self.at.contains(&step);
        if stop {
            self.step.store(step, Ordering::SeqCst);
        }
        stop
    }
}

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("incontext-determinism-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn an_interrupted_training_that_is_resumed_is_the_training_that_never_stopped() {
    let folder = folder("resume");
    for (name, protocol) in [("eq8", preconditioner()), ("eq11", transform())] {
        let run = small(protocol);
        let whole = train(&run, "whole", None, &Settings::default()).unwrap();
        // At the start, beside and at a record (4, 8), between two batches (5, 10), at a change of the rate (10), at
        // the last step and after it; then at all of them one after the other.
        let all = [0, 1, 4, 5, 8, 10, 17, 32, 33];
        for stops in all.iter().map(|s| vec![*s]).chain([all.to_vec()]) {
            let state = folder.join(format!("{name}-{stops:?}.safetensors"));
            let mut stopped = 0;
            // Each process has its own observer, which interrupts it at the first stop that is still ahead.
            let resumed = loop {
                let next: Vec<u64> = stops.get(stopped).copied().into_iter().collect();
                let done = if stopped == 0 { 0 } else { stops[stopped - 1] };
                let observer = Interrupts { step: AtomicU64::new(done), at: next };
                let settings = Settings { observer: &observer, ..Settings::default() };
                match train(&run, "resumed", Some(&state), &settings) {
                    Ok(history) => break history,
                    Err(Error::Interrupted { state: words }) => {
                        assert!(words.contains(&format!("step {} of 33", stops[stopped])), "{words}");
                        stopped += 1;
                    }
                    Err(other) => panic!("{other}"),
                }
            };
            // At the end there is nothing left to interrupt.
            assert_eq!(stopped, stops.iter().filter(|s| **s < 33).count());
            assert_eq!(history_bits(&resumed), history_bits(&whole), "{name}, stopped at {stops:?}");
            // Once more: a finished training is read, not run.
            let again = train(&run, "again", Some(&state), &Settings::default()).unwrap();
            assert_eq!(history_bits(&again), history_bits(&whole));
        }
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// The same with SGD, whose state is another, and a problem of one's own.
struct Own {
    model: LinearTransformer,
}

impl Problem for Own {
    type Model = LinearTransformer;

    fn model(&mut self) -> &mut LinearTransformer {
        &mut self.model
    }

    fn gradient(&mut self, step: u64) -> Result<(f64, Gradients<f32, Cpu>)> {
        self.model.loss_and_gradient(&Arc::new(task(2, 5).sample_moments(100, step)?))
    }

    fn measure(&mut self, step: u64) -> Result<Vec<(&'static str, f64)>> {
        Ok(vec![("step", step as f64)])
    }
}

#[test]
fn sgd_with_momentum_resumes_bit_for_bit_too() {
    let folder = folder("sgd");
    let run = |state: Option<PathBuf>, stop: Vec<u64>| {
        let observer = Interrupts { step: AtomicU64::new(0), at: stop };
        let model = LinearTransformer::init(2, 2, Parametrisation::Transform, 0.01, 3)?;
        let trainer = Trainer {
            task: "own".to_owned(),
            steps: 20,
            schedule: Schedule::Cosine { warmup: 3 },
            record_at: vec![0, 7, 20],
            state,
            fingerprint: serde_json::json!("own"),
            save_every: std::time::Duration::ZERO,
            observer: &observer,
        };
        let config = SgdConfig { rate: 0.05, momentum: 0.9, clip: Clip::Global(1.0) };
        trainer.run(&mut Own { model }, &mut Sgd::new(config)?)
    };
    let whole = run(None, vec![]).unwrap();
    assert_eq!(whole.measure("step").unwrap(), [0.0, 7.0, 20.0]);
    for stop in [1, 6, 7, 8, 19] {
        let state = folder.join(format!("{stop}.safetensors"));
        assert!(matches!(run(Some(state.clone()), vec![stop]), Err(Error::Interrupted { .. })));
        let resumed = run(Some(state), vec![]).unwrap();
        assert_eq!(history_bits(&resumed), history_bits(&whole), "stopped at {stop}");
    }
    // Without a state, an interruption says that nothing was kept.
    let words = run(None, vec![4]).unwrap_err().to_string();
    assert!(words.contains("nothing was kept"), "{words}");
    std::fs::remove_dir_all(folder).unwrap();
}
