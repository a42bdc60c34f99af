//! The trainings of `newton` as data: the paper's model and protocol at sizes that a laptop trains (newton.md section 7).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dfdx::prelude::{Cpu, Gradients};
use serde::Serialize;
use serde_json::json;

use crate::experiments::shipping::{self, Shipment};
use crate::experiments::{Recipe, Settings, TrainOptions};
use crate::models::{Gpt2, Gpt2Config, Init, Lstm, LstmConfig, Parameter, Parameters, Positions, WithGradient};
use crate::ops::attention::{Attention, Weights};
use crate::rng;
use crate::tasks::{
    Covariance, HiddenUnit, IllConditioned, LinearRegression, Prompts, Sequences, TwoLayerNetwork, WeightPrior,
};
use crate::train::{
    Adam, AdamConfig, Ahead, Array, Clip, Curriculum, History, Muon, MuonConfig, Problem, Ramp, Schedule, Trainer,
};
use crate::{Error, Result};

/// What prompts are drawn from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Task {
    /// x ~ N(0, I), labels with noise of this standard deviation.
    Linear {
        /// σ.
        noise: f64,
    },
    /// x ~ N(0, Σ), Σ with two clusters of eigenvalues of this ratio, its eigenbasis drawn anew for every batch of 64.
    Skew {
        /// κ.
        kappa: f64,
    },
    /// Labels from a random two-layer network with so many hidden units.
    Network {
        /// ReLU or tanh.
        unit: HiddenUnit,
        /// h.
        hidden: usize,
    },
}

impl Task {
    /// `batch` prompts of `context` examples whose covariates have their first `active` of `dim` coordinates free and the
    /// others 0, as in the curriculum.
    ///
    /// # Errors
    /// [`Error::Invalid`] for sizes that no task has.
    pub fn sample(&self, dim: usize, active: usize, context: usize, batch: usize, seed: u64) -> Result<Prompts> {
        if active == 0 || active > dim {
            return Err(Error::invalid("active coordinates", active, format!("1 to {dim}")));
        }
        let linear = |covariance, noise| {
            LinearRegression::new(covariance, context, WeightPrior::Isotropic)?.with_noise(noise)?.sample(batch, seed)
        };
        let prompts = match *self {
            Task::Linear { noise } => linear(Covariance::identity(active)?, noise)?,
            Task::Network { unit, hidden } => {
                TwoLayerNetwork::new(active, hidden, unit, context)?.sample(batch, seed)?
            }
            Task::Skew { kappa } if active == dim => {
                IllConditioned::two_clusters(dim, kappa, context)?.sample(batch, seed)?
            }
            Task::Skew { kappa } => {
                // Coordinates are cut off after the rotation, as in the authors' code: a corner of Σ.
                let task = IllConditioned::two_clusters(dim, kappa, context)?;
                let sigma = Covariance::rotated(task.eigenvalues(), seed)?.matrix().clone();
                let corner = crate::linalg::Matrix::from_fn(active, active, |i, j| sigma[(i, j)]);
                linear(Covariance::from_matrix(&corner)?, 0.0)?
            }
        };
        if active == dim {
            return Ok(prompts);
        }
        let pad = |x: &[f64]| x.iter().copied().chain(std::iter::repeat_n(0.0, dim - active)).collect::<Vec<f64>>();
        let x = (0..batch).flat_map(|i| prompts.x(i).chunks(active)).flat_map(pad).collect();
        let y = (0..batch).flat_map(|i| prompts.y(i)).copied().collect();
        Prompts::from_data(batch, context, dim, x, y)
    }
}

/// The architecture of a network.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Architecture {
    /// A transformer of GPT-2's kind, from fan-in initial weights.
    Gpt2(Gpt2Config),
    /// A stack of LSTM layers.
    Lstm(LstmConfig),
}

/// A network of either architecture.
#[derive(Clone, Debug)]
pub enum Network {
    /// A transformer.
    Gpt2(Gpt2),
    /// An LSTM.
    Lstm(Lstm),
}

impl Network {
    /// With initial weights from `seed`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an architecture that cannot be.
    pub fn init(architecture: &Architecture, seed: u64) -> Result<Self> {
        match architecture {
            Architecture::Gpt2(config) => Ok(Network::Gpt2(Gpt2::init(config.clone(), Init::FanIn, seed)?)),
            Architecture::Lstm(config) => Ok(Network::Lstm(Lstm::init(config.clone(), seed)?)),
        }
    }

    /// With these parameters.
    ///
    /// # Errors
    /// [`Error::Shape`] if their number is another.
    pub fn from_values(architecture: &Architecture, values: Vec<f32>) -> Result<Self> {
        match architecture {
            Architecture::Gpt2(config) => Ok(Network::Gpt2(Gpt2::from_values(config.clone(), values)?)),
            Architecture::Lstm(config) => Ok(Network::Lstm(Lstm::from_values(config.clone(), values)?)),
        }
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        match self {
            Network::Gpt2(model) => model.config().layers,
            Network::Lstm(model) => model.config().layers,
        }
    }

    /// Width of the hidden states.
    pub fn width(&self) -> usize {
        match self {
            Network::Gpt2(model) => model.config().width,
            Network::Lstm(model) => model.config().width,
        }
    }

    /// The embedded tokens, then the hidden states after each layer.
    ///
    /// # Errors
    /// As [`Gpt2::hidden_states`].
    pub fn hidden_states(&self, sequences: &Sequences) -> Result<Vec<Vec<f32>>> {
        match self {
            Network::Gpt2(model) => model.hidden_states(sequences),
            Network::Lstm(model) => model.hidden_states(sequences),
        }
    }

    /// The predictions, `[batch, n + 1]`.
    ///
    /// # Errors
    /// As [`Gpt2::predict`].
    pub fn predict(&self, prompts: &Prompts) -> Result<Vec<f64>> {
        let sequences = prompts.interleaved()?;
        let made = match self {
            Network::Gpt2(model) => model.predict(&sequences)?,
            Network::Lstm(model) => model.predict(&sequences)?,
        };
        Ok(made.into_iter().map(f64::from).collect())
    }

    fn loss_and_gradient(&self, sequences: &Sequences) -> Result<(f64, Gradients<f32, Cpu>)> {
        match self {
            Network::Gpt2(model) => model.loss_and_gradient(sequences),
            Network::Lstm(model) => model.loss_and_gradient(sequences),
        }
    }

    fn loss(&self, sequences: &Sequences) -> Result<f64> {
        match self {
            Network::Gpt2(model) => model.loss(sequences),
            Network::Lstm(model) => model.loss(sequences),
        }
    }
}

impl Parameters for Network {
    fn visit(&mut self, visitor: &mut dyn FnMut(Parameter<'_>) -> Result<()>) -> Result<()> {
        match self {
            Network::Gpt2(model) => model.visit(visitor),
            Network::Lstm(model) => model.visit(visitor),
        }
    }

    fn update(
        &mut self,
        source: &mut Gradients<f32, Cpu>,
        update: &mut dyn FnMut(Vec<WithGradient<'_>>) -> Result<()>,
    ) -> Result<()> {
        match self {
            Network::Gpt2(model) => model.update(source, update),
            Network::Lstm(model) => model.update(source, update),
        }
    }
}

/// What makes steps of gradients.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimiser {
    /// Adam, as the authors have it.
    Adam(AdamConfig),
    /// Muon for the matrices of the blocks and Adam for the rest.
    Muon(MuonConfig),
}

/// How one network is trained.
#[derive(Clone, Debug, PartialEq)]
pub struct Protocol {
    /// What prompts are drawn from.
    pub task: Task,
    /// Dimension d.
    pub dim: usize,
    /// Examples n of a prompt; a prediction is made at each and at one more covariate.
    pub context: usize,
    /// The architecture.
    pub model: Architecture,
    /// Prompts a step.
    pub batch: usize,
    /// Steps in all.
    pub steps: u64,
    /// The optimiser.
    pub optimiser: Optimiser,
    /// The schedule of its rate.
    pub schedule: Schedule,
    /// How the task grows during training: coordinates and examples together (Garg et al.).
    pub curriculum: Curriculum,
}

/// Prompts of the batch whose loss is kept in the checkpoint, and its seed.
const TEST: (usize, u64) = (2048, 99);

impl Protocol {
    /// `batch` prompts of the full task.
    ///
    /// # Errors
    /// As [`Task::sample`].
    pub fn sample(&self, batch: usize, seed: u64) -> Result<Prompts> {
        self.task.sample(self.dim, self.dim, self.context, batch, seed)
    }

    /// What a manifest says about a run of this protocol under `seed`.
    pub fn describe(&self, seed: u64) -> serde_json::Value {
        json!({
            "task": format!("{:?}", self.task), "d": self.dim, "n": self.context, "model": self.model, "seed": seed,
            "batch": self.batch, "steps": self.steps, "optimiser": self.optimiser, "schedule": self.schedule, "curriculum": self.curriculum,
        })
    }
}

/// A run of a recipe.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its name in the checkpoint, e.g. `s0`.
    pub name: String,
    /// How it is trained.
    pub protocol: Protocol,
    /// Seed of its initial weights and of its batches.
    pub seed: u64,
}

fn transformer(dim: usize, context: usize, layers: usize, width: usize, heads: usize) -> Architecture {
    let positions = Positions::Learned(2 * (context + 1));
    Architecture::Gpt2(Gpt2Config { inputs: dim, layers, positions, ..Gpt2Config::default() }.with_width(width, heads))
}

/// Coordinates from `first` to d, one more after `every` steps, and examples in proportion.
fn growing(dim: usize, context: usize, first: usize, every: u64) -> Curriculum {
    let ratio = context / dim;
    Curriculum {
        dims: Ramp { start: first, end: dim, increment: 1, every },
        points: Ramp { start: ratio * first + 1, end: context + 1, increment: ratio, every },
    }
}

fn muon(rate: f64) -> Optimiser {
    Optimiser::Muon(MuonConfig { rate, adam: adam(1e-3), ..MuonConfig::default() })
}

fn adam(rate: f64) -> AdamConfig {
    AdamConfig { rate, clip: Clip::Global(1.0), ..AdamConfig::default() }
}

/// The S setting: d = 5, n = 10, 8 layers of width 32 with 4 heads.
pub fn small() -> Protocol {
    let (dim, context) = (5, 10);
    Protocol {
        task: Task::Linear { noise: 0.0 },
        dim,
        context,
        model: transformer(dim, context, 8, 32, 4),
        batch: 64,
        steps: 12_000,
        optimiser: Optimiser::Adam(adam(2e-3)),
        schedule: Schedule::Cosine { warmup: 500 },
        curriculum: growing(dim, context, 1, 600),
    }
}

/// S in a third of the steps, with Muon, whose loss falls faster at first and ends a little higher: 1.495 after 4000 steps
/// (Adam: 1.78) and 1.465 after 8000, Adam 1.416 after 12,000.
fn short() -> Protocol {
    let s = small();
    Protocol {
        steps: 4000,
        optimiser: muon(0.02),
        schedule: Schedule::Cosine { warmup: 160 },
        curriculum: growing(s.dim, s.context, 1, 160),
        ..s
    }
}

/// S with one head of this width: such networks stay on their plateau in the short training.
fn one_head(width: usize) -> Protocol {
    Protocol { model: transformer(5, 10, 8, width, 1), ..small() }
}

/// S with 16 layers.
fn deep() -> Protocol {
    Protocol { model: transformer(5, 10, 16, 32, 4), ..small() }
}

/// S with noisy labels.
fn small_noisy(noise: f64) -> Protocol {
    Protocol { task: Task::Linear { noise }, ..small() }
}

/// S with other weights of attention; those that are no softmax are averaged over the tokens.
fn attending(weights: Weights) -> Protocol {
    let mut protocol = small();
    if let Architecture::Gpt2(config) = &mut protocol.model {
        config.attention = Attention { weights, averaged: true, ..config.attention };
    }
    protocol
}

/// S on ill-conditioned data, twice as long: after 12,000 steps its error is five times the one that gradient descent has
/// after 200.
fn small_skew(kappa: f64) -> Protocol {
    Protocol { task: Task::Skew { kappa }, steps: 24_000, ..small() }
}

/// Two-layer networks: d = 5, h = 20, n = 40.
fn two_layer(unit: HiddenUnit) -> Protocol {
    let (dim, context) = (5, 40);
    Protocol {
        task: Task::Network { unit, hidden: 20 },
        context,
        model: transformer(dim, context, 8, 32, 4),
        steps: 3000,
        curriculum: growing(dim, context, 1, 300),
        ..short()
    }
}

/// The LSTM at S: 3 layers of width 64, without a curriculum, as the authors trained theirs.
fn lstm() -> Protocol {
    let s = small();
    Protocol {
        model: Architecture::Lstm(LstmConfig { inputs: s.dim, layers: 3, width: 64, ..LstmConfig::default() }),
        curriculum: Curriculum::none(s.dim, s.context + 1),
        ..s
    }
}

/// The M setting: d = 10, n = 20, 8 layers of width 64 with 4 heads.
///
/// Loss over d in the 200 steps before 1600, 2560 and 3520 (the optimum's then: 0.27, 0.27 and 0.26): Muon at 0.005 0.41, 0.45
/// and 0.32, Adam at 0.001 0.63, 0.48 and 0.37. Muon at 0.02, S's rate, does not leave the plateau of 0.9. A curriculum that
/// begins with one coordinate leaves it while prompts are short.
pub fn medium() -> Protocol {
    let (dim, context) = (10, 20);
    Protocol {
        dim,
        context,
        model: transformer(dim, context, 8, 64, 4),
        steps: 8000,
        optimiser: muon(0.005),
        curriculum: growing(dim, context, 1, 320),
        ..short()
    }
}

/// The L setting, the paper's geometry: d = 20, n = 40, 12 layers, at width 64 with 4 heads.
pub fn large() -> Protocol {
    let (dim, context) = (20, 40);
    Protocol {
        dim,
        context,
        model: transformer(dim, context, 12, 64, 4),
        steps: 12_000,
        optimiser: muon(0.005),
        curriculum: growing(dim, context, 1, 300),
        ..short()
    }
}

/// The runs of every recipe of the paper, with the recipe's title.
pub fn catalogue() -> Vec<(&'static str, &'static str, Vec<Run>)> {
    let seeds = |protocol: Protocol, seeds: u64| -> Vec<Run> {
        (0..seeds).map(|seed| Run { name: format!("s{seed}"), protocol: protocol.clone(), seed }).collect()
    };
    let attention =
        |(name, weights): (&str, Weights)| Run { name: format!("{name}.s0"), protocol: attending(weights), seed: 0 };
    let width = |w: usize| Run { name: format!("w{w}.s0"), protocol: one_head(w), seed: 0 };
    vec![
        ("newton-s", "d = 5, n = 10, 8 layers: Figures 2 to 14 and 27", seeds(small(), 3)),
        ("newton-s-skew", "… ill-conditioned, κ = 100: Figures 4 and 15 to 18", seeds(small_skew(100.0), 1)),
        ("newton-s-noisy", "… with noise 0.1: Figure 19", seeds(small_noisy(0.1), 1)),
        ("newton-s-one-head", "… with one head: Figures 22 and 23", seeds(one_head(32), 1)),
        ("newton-s-width", "… with one head, widths 2, 4, 8 and 16: Figure 6", [2, 4, 8, 16].map(width).into()),
        ("newton-s-deep", "… with 16 layers: Figures 24 and 25", seeds(deep(), 1)),
        (
            "newton-s-attention",
            "… with linear and with ReLU attention",
            [("linear", Weights::Linear), ("relu", Weights::Relu)].map(attention).into(),
        ),
        ("newton-s-lstm", "… an LSTM of 3 layers: Figures 5 and 7, Table 1", seeds(lstm(), 1)),
        ("newton-relu", "two-layer ReLU networks, n = 40: Figure 20", seeds(two_layer(HiddenUnit::Relu), 1)),
        ("newton-tanh", "two-layer tanh networks, n = 40: Figure 21", seeds(two_layer(HiddenUnit::Tanh), 1)),
        ("newton-m", "d = 10, n = 20, 8 layers", seeds(medium(), 1)),
        ("newton-l", "the paper's d = 20, n = 40, 12 layers, at width 64", seeds(large(), 1)),
    ]
}

/// The recipes, as the command line lists them.
pub fn recipes() -> Vec<Recipe> {
    catalogue().into_iter().map(|(id, title, _)| Recipe { id, title, train: train_recipe }).collect()
}

/// The training problem of a run.
struct Training {
    model: Network,
    protocol: Protocol,
    seed: u64,
    test: Prompts,
    ahead: Ahead<Sequences>,
}

impl Problem for Training {
    type Model = Network;

    fn model(&mut self) -> &mut Network {
        &mut self.model
    }

    fn gradient(&mut self, step: u64) -> Result<(f64, Gradients<f32, Cpu>)> {
        let Training { model, protocol, seed, ahead, .. } = self;
        let Curriculum { dims, points } = protocol.curriculum;
        let draw = |step: u64| {
            let (active, context) = (dims.at(step), points.at(step).saturating_sub(1));
            let seed = rng::of_step(*seed, step);
            protocol.task.sample(protocol.dim, active, context, protocol.batch, seed)?.interleaved()
        };
        ahead.with(step, draw, |sequences| model.loss_and_gradient(sequences))?
    }

    fn measure(&mut self, _: u64) -> Result<Vec<(&'static str, f64)>> {
        Ok(vec![("test", self.model.loss(&self.test.interleaved()?)?)])
    }
}

/// Trains one run, keeping its state in `state`: the parameters at the end and the loss on a test batch.
///
/// # Errors
/// As [`Trainer::run`].
pub fn train(run: &Run, task: &str, state: Option<&Path>, settings: &Settings<'_>) -> Result<History> {
    let protocol = &run.protocol;
    let mut problem = Training {
        model: Network::init(&protocol.model, run.seed)?,
        test: protocol.sample(TEST.0, TEST.1)?,
        protocol: protocol.clone(),
        seed: run.seed,
        ahead: Ahead::default(),
    };
    let trainer = Trainer {
        task: task.to_owned(),
        steps: protocol.steps,
        schedule: protocol.schedule,
        record_at: vec![protocol.steps],
        state: state.map(Path::to_owned),
        fingerprint: protocol.describe(run.seed),
        save_every: Duration::from_secs(60),
        observer: settings.observer,
    };
    match protocol.optimiser {
        Optimiser::Adam(config) => trainer.run(&mut problem, &mut Adam::new(config)?),
        Optimiser::Muon(config) => trainer.run(&mut problem, &mut Muon::new(config)?),
    }
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
        let parameters = history.parameters.last().cloned().unwrap_or_default();
        arrays.insert(run.name.clone(), Array::f32(&[parameters.len()], parameters)?);
        described.insert(run.name.clone(), run.protocol.describe(run.seed));
        losses.insert(run.name.clone(), history.measure("test")?.last().copied());
        states.push(state);
    }
    let mut manifest = shipment.manifest(described);
    manifest["test_loss"] = json!(losses);
    shipment.finish(arrays, manifest, losses, states)
}

/// A trained network as the figures use it.
#[derive(Clone, Debug)]
pub struct Trained {
    /// The run's name, e.g. `s0`.
    pub name: String,
    /// How it was trained.
    pub protocol: Protocol,
    /// The network.
    pub model: Network,
}

/// The trained runs of recipe `id`: from the shipped checkpoint, or trained now if the settings ask for it.
///
/// # Errors
/// [`Error::Unknown`] for another id, [`Error::File`] and [`Error::Corrupt`] for a checkpoint that is not there or
/// damaged; as [`train`].
pub fn load(id: &str, settings: &Settings<'_>) -> Result<Vec<Trained>> {
    let (.., runs) = shipping::entry(catalogue(), id, |e| e.0)?;
    let checkpoint = shipping::checkpoint(id, settings, train_recipe)?;
    let read = |run: &Run| {
        let values = checkpoint.f32(&run.name, &[0])?.1.to_vec();
        let model = Network::from_values(&run.protocol.model, values)?;
        Ok(Trained { name: run.name.clone(), protocol: run.protocol.clone(), model })
    };
    // A quick look is at one network of each configuration.
    let wanted = |run: &&Run| !settings.quick || run.seed == 0;
    runs.iter().filter(wanted).map(read).collect()
}
