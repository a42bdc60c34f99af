//! The trainings of `pgd` as data: the authors' protocols (pgd.md section 3), and the exact engine's (section 7).
//!
//! Prompts enter by their sufficient statistics, drawn by Bartlett's decomposition: the law is that of sampling the
//! covariates, and the loss and its gradient are those of the prompt-level transformer.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dfdx::prelude::{Cpu, Gradients};
use serde_json::json;

use crate::experiments::shipping::{self, Shipment};
use crate::experiments::{Recipe, Settings, TrainOptions};
use crate::figure::{Frame, Panel};
use crate::models::{LinearTransformer, Parametrisation};
use crate::ops::moments::Moments;
use crate::ops::wishart::GramSamples;
use crate::rng;
use crate::tasks::{Covariance, LinearRegression, WeightPrior};
use crate::train::trainer::flat;
use crate::train::{Adam, AdamConfig, Array, Checkpoint, Clip, History, Problem, Schedule, Trainer};
use crate::{Error, Result};

/// The eigenvalues of Σ in all of the paper's experiments (section 4.3).
pub const EIGENVALUES: [f64; 5] = [1.0, 1.0, 0.25, 0.0625, 1.0];

/// Where a training's gradient comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// The mean over a batch of prompts, as the authors': tokens, w⋆ and query are all sampled.
    Prompts,
    /// The mean over a batch of contexts, exact in w⋆ and in the query (pgd.md section 0, item 1): the same expected
    /// gradient with far less noise.
    Contexts,
}

/// How one network is trained.
#[derive(Clone, Debug, PartialEq)]
pub struct Protocol {
    /// Where the gradient comes from.
    pub engine: Engine,
    /// Number of layers L.
    pub layers: usize,
    /// Which blocks are free.
    pub parametrisation: Parametrisation,
    /// Eigenvalues of Σ, rotated by each seed's own orthogonal matrix; all ones leave Σ = I.
    pub eigenvalues: Vec<f64>,
    /// Context length n.
    pub context: usize,
    /// Prompts, or contexts, a step.
    pub batch: usize,
    /// Steps for which a batch is kept.
    pub resample_every: u64,
    /// The optimiser.
    pub adam: AdamConfig,
    /// The schedule of its rate.
    pub schedule: Schedule,
    /// Steps in all.
    pub steps: u64,
    /// Steps between two records of the history.
    pub record_every: u64,
    /// Record only the last so many; all if `None`.
    pub keep_last: Option<u64>,
}

/// Prompts of a test or validation batch, as in the authors' code.
const TEST_PROMPTS: usize = 20_000;
/// Seeds of the authors' test and validation batches.
const TEST_SEED: u64 = 99;
const VALIDATION_SEED: u64 = 999;
/// Standard deviation of the initial parameters.
const INIT: f64 = 1e-4;

impl Protocol {
    /// The task of the run with `seed`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for eigenvalues or a context that no task has.
    pub fn task(&self, seed: u64) -> Result<LinearRegression> {
        let covariance = if self.eigenvalues.iter().all(|v| *v == 1.0) {
            Covariance::identity(self.eigenvalues.len())?
        } else {
            Covariance::rotated(&self.eigenvalues, seed)?
        };
        LinearRegression::new(covariance, self.context, WeightPrior::InverseCovariance)
    }

    fn describe(&self, seed: u64) -> serde_json::Value {
        json!({
            "engine": format!("{:?}", self.engine), "seed": seed, "layers": self.layers, "parametrisation": format!("{:?}", self.parametrisation),
            "eigenvalues": self.eigenvalues, "n": self.context, "batch": self.batch,
            "resample_every": self.resample_every, "adam": self.adam, "schedule": self.schedule,
            "steps": self.steps, "record_every": self.record_every, "keep_last": self.keep_last, "init": INIT,
        })
    }
}

/// A run of a recipe: a name (`"s0"`, `"n12.s1"`), its protocol and its seed.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its name in the checkpoint.
    pub name: String,
    /// How it is trained.
    pub protocol: Protocol,
    /// Seed of Σ's rotation, of the initial parameters and of the batches.
    pub seed: u64,
}

/// AdamW as the authors set it, without decay.
fn adam(rate: f64, betas: [f64; 2], clip: Clip) -> AdamConfig {
    AdamConfig { rate, betas, clip, ..AdamConfig::default() }
}

/// Figures 1 and 2: three layers of preconditioned gradient descent, by the authors' protocol.
pub fn preconditioner() -> Protocol {
    Protocol {
        engine: Engine::Prompts,
        layers: 3,
        parametrisation: Parametrisation::Preconditioner,
        eigenvalues: EIGENVALUES.to_vec(),
        context: 20,
        batch: 20_000,
        resample_every: 100,
        adam: adam(0.02, [0.99, 0.9], Clip::Matrix(0.01)),
        schedule: Schedule::Step { every: 2000, factor: 0.5 },
        steps: 30_000,
        record_every: 250,
        keep_last: None,
    }
}

/// The authors' notebook 'simple demonstration', by their protocol: Σ = I, and another local minimum.
pub fn identity() -> Protocol {
    Protocol {
        parametrisation: Parametrisation::Transform,
        eigenvalues: vec![1.0; 5],
        batch: 4000,
        resample_every: 1,
        adam: adam(0.001, [0.9, 0.9], Clip::Global(1000.0)),
        schedule: Schedule::Constant,
        steps: 10_000,
        record_every: 100,
        ..preconditioner()
    }
}

/// Figures 3 to 5: three layers that also transform the covariates, by the authors' protocol.
pub fn transform() -> Protocol {
    Protocol {
        parametrisation: Parametrisation::Transform,
        adam: adam(0.1, [0.99, 0.9], Clip::Matrix(0.01)),
        schedule: Schedule::Step { every: 4000, factor: 0.5 },
        steps: 100_000,
        record_every: 500,
        ..preconditioner()
    }
}

/// Figure 6: three layers trained for a context of n examples, by the authors' protocol with half their batch, drawn anew
/// every fifth step instead of every one: a tenth of their samples.
pub fn context(n: usize) -> Protocol {
    Protocol {
        context: n,
        adam: adam(if n < 5 { 0.001 } else { 0.01 }, [0.99, 0.99], Clip::Matrix(0.001)),
        schedule: Schedule::Step { every: 2000, factor: 0.5 },
        resample_every: 5,
        steps: 8000,
        record_every: 100,
        keep_last: Some(10),
        ..transform()
    }
}

/// Figure 7: L layers, as [`transform`] in fewer steps; its networks of three layers are those of Figure 3. The authors'
/// own rate for this figure, 0.01, has not converged after their 20,000 steps.
pub fn depth(layers: usize) -> Protocol {
    let steps = 5000 * layers as u64;
    Protocol {
        layers,
        schedule: Schedule::Step { every: steps / 25, factor: 0.5 },
        steps,
        record_every: 100,
        keep_last: Some(20),
        ..transform()
    }
}

/// Three layers with B = 0 by the exact engine (pgd.md section 7): the quick way to the networks of Figure 1.
///
/// With B free it has a limit: the mean over a few hundred contexts misses the rare ones whose loss is largest, and the
/// networks that minimise it fail on them.
pub fn exact() -> Protocol {
    Protocol {
        engine: Engine::Contexts,
        batch: 512,
        resample_every: 1,
        adam: adam(0.05, [0.9, 0.99], Clip::Matrix(0.01)),
        schedule: Schedule::Cosine { warmup: 20 },
        steps: 3000,
        record_every: 50,
        ..preconditioner()
    }
}

/// The runs of every recipe of the paper, with the recipe's title.
pub fn catalogue() -> Vec<(&'static str, &'static str, Vec<Run>)> {
    let seeds = |protocol: Protocol, seeds: u64| -> Vec<Run> {
        (0..seeds).map(|seed| Run { name: format!("s{seed}"), protocol: protocol.clone(), seed }).collect()
    };
    let each = |protocols: Vec<(String, Protocol)>, seeds: u64| -> Vec<Run> {
        let of = |(name, protocol): (String, Protocol)| {
            (0..seeds).map(move |seed| Run { name: format!("{name}.s{seed}"), protocol: protocol.clone(), seed })
        };
        protocols.into_iter().flat_map(of).collect()
    };
    vec![
        ("pgd-preconditioner", "3 layers, eq. 8: Figures 1 and 2, 3 seeds", seeds(preconditioner(), 3)),
        ("pgd-transform", "3 layers, eq. 11: Figures 3 to 5, 3 seeds", seeds(transform(), 3)),
        ("pgd-identity", "3 layers, eq. 11, Σ = I: the other local minimum, 3 seeds", seeds(identity(), 3)),
        (
            "pgd-context",
            "3 layers, eq. 11, n = 2 to 20: Figure 6, 3 seeds",
            each((1..=10).map(|k| (format!("n{}", 2 * k), context(2 * k))).collect(), 3),
        ),
        (
            "pgd-depth",
            "1, 2 and 4 layers, eq. 11: Figure 7, 3 seeds",
            each([1, 2, 4].map(|l| (format!("l{l}"), depth(l))).into(), 3),
        ),
    ]
}

/// The recipes, as the command line lists them.
pub fn recipes() -> Vec<Recipe> {
    catalogue().into_iter().map(|(id, title, _)| Recipe { id, title, train: train_recipe }).collect()
}

/// The training problem of a run.
struct Training {
    model: LinearTransformer,
    task: LinearRegression,
    protocol: Protocol,
    seed: u64,
    /// The task in whitened coordinates.
    white: LinearRegression,
    /// The block of steps that the batch is for, and the batch.
    batch: Option<(u64, Batch)>,
    test: Arc<Moments<f32>>,
    validation: Arc<Moments<f32>>,
}

enum Batch {
    Prompts(Arc<Moments<f32>>),
    Contexts(GramSamples),
}

impl Problem for Training {
    type Model = LinearTransformer;

    fn model(&mut self) -> &mut LinearTransformer {
        &mut self.model
    }

    fn gradient(&mut self, step: u64) -> Result<(f64, Gradients<f32, Cpu>)> {
        let block = step / self.protocol.resample_every.max(1);
        let seed = rng::of_step(self.seed, block);
        if self.batch.as_ref().is_none_or(|(held, _)| *held != block) {
            let batch = match self.protocol.engine {
                Engine::Prompts => Batch::Prompts(Arc::new(self.task.sample_moments(self.protocol.batch, seed)?)),
                Engine::Contexts => {
                    let (grams, weights) = self.white.sample_gram_tails(self.protocol.batch, seed)?;
                    Batch::Contexts(GramSamples::weighted(self.white.dim(), &grams, &weights)?)
                }
            };
            self.batch = Some((block, batch));
        }
        match &self.batch {
            Some((_, Batch::Prompts(moments))) => self.model.loss_and_gradient(moments),
            Some((_, Batch::Contexts(grams))) => self.model.exact_loss_and_gradient(self.task.covariance(), grams),
            None => Err(Error::numerical("training", "no batch was sampled")),
        }
    }

    fn measure(&mut self, _: u64) -> Result<Vec<(&'static str, f64)>> {
        Ok(vec![("test", self.model.loss(&self.test)?), ("validation", self.model.loss(&self.validation)?)])
    }
}

/// Trains one run, keeping its state in `state`.
///
/// # Errors
/// As [`Trainer::run`].
pub fn train(run: &Run, task: &str, state: Option<&Path>, settings: &Settings<'_>) -> Result<History> {
    let protocol = &run.protocol;
    for (what, value) in [
        ("steps between two batches", Some(protocol.resample_every)),
        ("steps between two records", Some(protocol.record_every)),
        ("records kept", protocol.keep_last),
    ] {
        if value == Some(0) {
            return Err(Error::invalid(what, 0, "at least 1"));
        }
    }
    let regression = protocol.task(run.seed)?;
    let (layers, dim) = (protocol.layers, regression.dim());
    let mut problem = Training {
        model: LinearTransformer::init(layers, dim, protocol.parametrisation, INIT, run.seed)?,
        test: Arc::new(regression.sample_moments(TEST_PROMPTS, TEST_SEED)?),
        validation: Arc::new(regression.sample_moments(TEST_PROMPTS, VALIDATION_SEED)?),
        white: LinearRegression::new(Covariance::identity(dim)?, protocol.context, WeightPrior::Isotropic)?,
        task: regression,
        protocol: protocol.clone(),
        seed: run.seed,
        batch: None,
    };
    let first =
        protocol.keep_last.map_or(0, |k| protocol.steps.saturating_sub((k - 1).saturating_mul(protocol.record_every)));
    let trainer = Trainer {
        task: task.to_owned(),
        steps: protocol.steps,
        schedule: protocol.schedule,
        record_at: (first..=protocol.steps).step_by(protocol.record_every as usize).collect(),
        state: state.map(Path::to_owned),
        fingerprint: protocol.describe(run.seed),
        save_every: Duration::from_secs(10),
        observer: settings.observer,
    };
    let history = trainer.run(&mut problem, &mut Adam::new(protocol.adam)?)?;
    debug_assert_eq!(history.parameters.last(), Some(&flat(&mut problem.model)?));
    Ok(history)
}

fn train_recipe(id: &str, settings: &Settings<'_>, options: &TrainOptions) -> Result<PathBuf> {
    let (_, title, mut runs) = shipping::entry(catalogue(), id, |e| e.0)?;
    if let Some(seed) = options.seed {
        // One network for each configuration, under the seed that was asked for.
        runs.retain(|run| run.seed == 0);
        for run in &mut runs {
            run.name = run.name.replace("s0", &format!("s{seed}"));
            run.seed = seed;
        }
    }
    let shipment = Shipment::new(id, title, &settings.work, settings, options)?;
    let (mut arrays, mut described, mut losses) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut states = Vec::new();
    for run in &runs {
        let state = shipment.state(settings.work.join(format!("{id}.{}.safetensors", run.name)))?;
        let history = train(run, &format!("{id} {}", run.name), Some(&state), settings)?;
        add_history(&mut arrays, run, &history)?;
        described.insert(run.name.clone(), run.protocol.describe(run.seed));
        losses.insert(run.name.clone(), history.measure("test")?.last().copied().unwrap_or(f64::NAN));
        states.push(state);
    }
    let manifest = shipment.manifest(described);
    shipment.finish(arrays, manifest, losses, states)
}

fn add_history(arrays: &mut BTreeMap<String, Array>, run: &Run, history: &History) -> Result<()> {
    let (rows, d) = (history.steps.len(), run.protocol.eigenvalues.len());
    let shape = [rows, run.protocol.layers, 2, d, d];
    arrays.insert(format!("{}.parameters", run.name), Array::f32(&shape, history.parameters.concat())?);
    let steps = history.steps.iter().map(|s| *s as f64).collect();
    arrays.insert(format!("{}.steps", run.name), Array::f64(&[rows], steps)?);
    for name in ["test", "validation"] {
        arrays.insert(format!("{}.{name}", run.name), Array::f64(&[rows], history.measure(name)?.to_vec())?);
    }
    Ok(())
}

/// A trained run as the figures use it.
#[derive(Clone, Debug)]
pub struct Trained {
    /// The run's name, e.g. `s0`.
    pub name: String,
    /// Its task.
    pub task: LinearRegression,
    /// The recorded steps.
    pub steps: Vec<u64>,
    /// Test loss at each recorded step, on the authors' test batch (20,000 prompts, seed 99).
    pub test: Vec<f64>,
    /// Validation loss at each recorded step (seed 999).
    pub validation: Vec<f64>,
    /// The network at each recorded step.
    pub models: Vec<LinearTransformer>,
}

impl Trained {
    /// The network at the end.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a history without records.
    pub fn last(&self) -> Result<&LinearTransformer> {
        self.models.last().ok_or_else(|| Error::invalid("history", "no record", "at least one"))
    }

    /// `f` of the network at each recorded step, `[records]`.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn over_training(&self, f: impl Fn(&LinearTransformer) -> Result<f64>) -> Result<Vec<f64>> {
        self.models.iter().map(f).collect()
    }

    /// Frames for a slider over about `count` of the recorded steps, the last one included.
    ///
    /// # Errors
    /// Those of `panels`.
    pub fn frames(
        &self,
        count: usize,
        panels: impl Fn(&LinearTransformer) -> Result<Vec<Panel>>,
    ) -> Result<Vec<Frame>> {
        let last = self.models.len().saturating_sub(1);
        let every = last.div_ceil(count.max(1)).max(1);
        let mut chosen: Vec<usize> = (0..self.models.len()).rev().step_by(every).collect();
        chosen.reverse();
        chosen.into_iter().map(|k| Ok(Frame::new(self.steps[k], panels(&self.models[k])?))).collect()
    }

    /// Index of the record with the least validation loss, as the authors choose in Figures 6 and 7.
    pub fn best(&self) -> usize {
        (0..self.validation.len()).min_by(|&i, &j| self.validation[i].total_cmp(&self.validation[j])).unwrap_or(0)
    }
}

/// The trained runs of recipe `id` whose names `wanted` accepts: from the shipped checkpoint, or trained now if the
/// settings ask for it.
///
/// # Errors
/// [`Error::Unknown`] for another id, [`Error::File`] and [`Error::Corrupt`] for a checkpoint that is not there or
/// damaged; as [`train`].
pub fn load(id: &str, wanted: impl Fn(&Run) -> bool, settings: &Settings<'_>) -> Result<Vec<Trained>> {
    let (.., runs) = shipping::entry(catalogue(), id, |e| e.0)?;
    let checkpoint = shipping::checkpoint(id, settings, train_recipe)?;
    runs.iter().filter(|run| wanted(run)).map(|run| read_run(&checkpoint, run)).collect()
}

fn read_run(checkpoint: &Checkpoint, run: &Run) -> Result<Trained> {
    let task = run.protocol.task(run.seed)?;
    let (layers, d) = (run.protocol.layers, task.dim());
    let (shape, values) = checkpoint.f32(&format!("{}.parameters", run.name), &[0, layers, 2, d, d])?;
    let rows = shape[0];
    let series = |name: &str| Ok(checkpoint.f64(&format!("{}.{name}", run.name), &[rows])?.1.to_vec());
    let models = values
        .chunks(layers * 2 * d * d)
        .map(|v| LinearTransformer::from_values(v.to_vec(), layers, d, run.protocol.parametrisation))
        .collect::<Result<_>>()?;
    Ok(Trained {
        name: run.name.clone(),
        steps: series("steps")?.iter().map(|s: &f64| *s as u64).collect(),
        test: series("test")?,
        validation: series("validation")?,
        models,
        task,
    })
}
