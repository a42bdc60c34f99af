//! The trainings of `fgd` as data: the authors' protocol (fgd.md section 3), and the exact expectation over labels
//! (section 5.1).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dfdx::prelude::{Cpu, Gradients};
use rayon::prelude::*;
use serde::Serialize;
use serde_json::json;

use crate::experiments::shipping::{self, Shipment};
use crate::experiments::{Recipe, Settings, TrainOptions};
use crate::models::KernelTransformer;
use crate::ops::kernel_prompts::{KernelPrompts, Labels};
use crate::ops::kernel_transformer::{Activation, ValueBlock};
use crate::progress::{Observer, Report};
use crate::rng;
use crate::tasks::{Combination, Covariance, Kernel, KernelRegression};
use crate::train::{Adam, AdamConfig, Array, Checkpoint, Clip, History, Problem, Schedule, Trainer};
use crate::{Error, Result};

/// The eigenvalues of Σ where it is not the identity (fgd.md section 1).
pub const EIGENVALUES: [f64; 5] = [1.0, 1.0, 0.25, 2.25, 1.0];
/// Dimension d of the paper.
pub const DIM: usize = 5;
/// The scale c of the exponential kernel exp(c⟨u, v⟩) that makes the data: the authors' code has ½, the paper's equation 1.
pub const EXP_SCALE: f64 = 0.5;

/// What a training starts from.
#[derive(Clone, Debug)]
pub enum Start {
    /// Parameters drawn from N(0, 0.1²), as the authors'.
    Random,
    /// The trained network of this protocol, of one layer less, and a layer that changes nothing yet: with r = 0 and A = 0,
    /// and the B and C of the layer below.
    Shallower(Box<Protocol>),
}

/// The authors' clipping: the gradient of layer i is scaled to norm at most limit / (from − i)² (fgd.md section 0, item 2).
///
/// The norm is that of the whole gradient, also in entries that their code sets to 0 after every step. What it has there is the noise of
/// sampled labels, and shortens the steps of what is free the more, the smaller the rest of the gradient has become.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LayerClip {
    /// The limit.
    pub limit: f64,
    /// More than the number of layers.
    pub from: u32,
}

impl LayerClip {
    /// Clips in place the gradient in the parameters, `[layers, …]`, of which `held` is the rest, `[layers, …]`.
    ///
    /// ```
    /// use incontext::experiments::fgd::recipes::LayerClip;
    /// let mut gradient = [0.0, 3.0, 0.0, 3.0];
    /// LayerClip { limit: 1.0, from: 3 }.apply(&mut gradient, &[0.0, 4.0], 2);
    /// // Layer 0: from a norm of 3 to 1/9; layer 1: from one of 5, held entries with it, to 1/4.
    /// assert!((gradient[1] - 1.0 / 9.0).abs() < 1e-12 && (gradient[3] - 0.6 / 4.0).abs() < 1e-12);
    /// ```
    pub fn apply(self, gradient: &mut [f64], held: &[f64], layers: usize) {
        let (free, rest) = (gradient.len() / layers.max(1), held.len() / layers.max(1));
        let square = |part: &[f64]| part.iter().map(|g| g * g).sum::<f64>();
        for i in 0..layers {
            let (layer, held) = (&mut gradient[i * free..][..free], &held[i * rest..][..rest]);
            let norm = (square(layer) + square(held)).sqrt();
            // Layers beyond `from` are limited as the last before it.
            let limit = self.limit / (f64::from(self.from) - i as f64).max(1.0).powi(2);
            if norm > limit {
                layer.iter_mut().for_each(|g| *g *= limit / norm);
            }
        }
    }
}

/// How one network is trained.
#[derive(Clone, Debug)]
pub struct Protocol {
    /// What the training starts from.
    pub start: Start,
    /// The kernel of the labels.
    pub kernel: Kernel,
    /// The activation of each head.
    pub heads: Vec<Activation>,
    /// Number of layers L.
    pub layers: usize,
    /// Whether A_l is free.
    pub values: ValueBlock,
    /// Eigenvalues of Σ, rotated by each seed's own orthogonal matrix; all ones leave Σ = I.
    pub eigenvalues: Vec<f64>,
    /// Context length n.
    pub context: usize,
    /// Whether losses are exact over labels, or for sampled ones as the authors'.
    pub labels: Labels,
    /// Prompts a step.
    pub batch: usize,
    /// Steps for which a batch is kept.
    pub resample_every: u64,
    /// What is done to gradients before the optimiser has them; labels have to be sampled for it.
    pub layer_clip: Option<LayerClip>,
    /// The optimiser.
    pub adam: AdamConfig,
    /// The schedule of its rate.
    pub schedule: Schedule,
    /// Steps in all.
    pub steps: u64,
    /// Steps between two records of the history; the end alone if `None`.
    pub record_every: Option<u64>,
}

/// Prompts of a test batch: twice as many as the loss's third digit needs, the labels being averaged exactly.
const TEST_PROMPTS: usize = 20_000;
/// Seed of the test batch, as the authors'.
pub const TEST_SEED: u64 = 99;
/// Standard deviation of the initial parameters, as the authors'.
const INIT: f64 = 0.1;

impl Protocol {
    /// The task of the run with `seed`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for eigenvalues or a context that no task has.
    pub fn task(&self, seed: u64) -> Result<KernelRegression> {
        let covariance = if self.eigenvalues.iter().all(|v| *v == 1.0) {
            Covariance::identity(self.eigenvalues.len())?
        } else {
            Covariance::rotated(&self.eigenvalues, seed)?
        };
        KernelRegression::new(self.kernel.clone(), covariance, self.context)
    }

    /// The activations, as legends show them.
    pub fn heads_name(&self) -> String {
        heads_name(&self.heads)
    }

    fn describe(&self, seed: u64) -> serde_json::Value {
        let start = match &self.start {
            Start::Random => json!("random"),
            Start::Shallower(below) => below.describe(seed),
        };
        let mut description = json!({
            "kernel": format!("{:?}", self.kernel), "heads": format!("{:?}", self.heads), "layers": self.layers,
            "values": format!("{:?}", self.values), "eigenvalues": self.eigenvalues, "n": self.context,
            "labels": format!("{:?}", self.labels), "batch": self.batch, "resample_every": self.resample_every,
            "adam": self.adam, "schedule": self.schedule, "steps": self.steps, "record_every": self.record_every,
            "init": INIT, "seed": seed, "start": start,
        });
        if let Some(clip) = self.layer_clip {
            description["layer_clip"] = json!(clip);
        }
        description
    }

    /// How gradients are clipped, for a manifest.
    fn clip(&self) -> String {
        self.layer_clip.map_or_else(|| format!("{:?}", self.adam.clip), |clip| format!("{clip:?}"))
    }

    /// What the training starts from, for a manifest.
    fn start(&self) -> String {
        match &self.start {
            Start::Random => "random".to_owned(),
            Start::Shallower(below) => format!("the network of {} layers", below.layers),
        }
    }
}

/// The activations of some heads, as legends show them.
pub fn heads_name(heads: &[Activation]) -> String {
    heads.iter().map(Activation::name).collect::<Vec<_>>().join(" + ")
}

/// A run of a recipe: a name (`"exp.ReLU.l3.n14.s0"`), its protocol and its seed.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its name in the checkpoint.
    pub name: String,
    /// How it is trained.
    pub protocol: Protocol,
    /// Seed of Σ's rotation, of the initial parameters and of the batches.
    pub seed: u64,
}

impl Run {
    /// The run of `protocol` with this seed, named after what it trains.
    pub fn new(protocol: Protocol, seed: u64) -> Self {
        let heads = protocol.heads_name().replace(" + ", "+");
        let values = if protocol.values == ValueBlock::Zero { ".sparse" } else { "" };
        let (kernel, l, n) = (protocol.kernel.name(), protocol.layers, protocol.context);
        Run { name: format!("{kernel}.{heads}.l{l}.n{n}{values}.s{seed}"), protocol, seed }
    }
}

/// The exact expectation over labels (fgd.md section 5.1), with Adam.
///
/// With linear attention and linear data rare prompts, whose examples nearly lie in a plane, have much of the loss: the
/// batch is larger.
pub fn exact(kernel: Kernel, heads: &[Activation], layers: usize, context: usize) -> Protocol {
    let linear = heads.iter().any(|h| matches!(h, Activation::Linear)) && kernel.name() == "linear";
    Protocol {
        start: Start::Random,
        kernel,
        heads: heads.to_vec(),
        layers,
        values: ValueBlock::Free,
        eigenvalues: vec![1.0; DIM],
        context,
        labels: Labels::Covariance,
        batch: if linear { 1024 } else { 256 },
        resample_every: 4,
        layer_clip: None,
        adam: AdamConfig { rate: 0.02, betas: [0.9, 0.98], clip: Clip::Global(1.0), ..AdamConfig::default() },
        schedule: Schedule::Cosine { warmup: 0 },
        steps: 1200,
        record_every: None,
    }
}

/// [`exact`] for any depth: a network of more than three layers starts from that of one layer less. Trained at once, Adam
/// diverges on exponential heads (fgd.md section 5.1): a layer that changes the covariates changes all scores after it.
///
/// On linear data that begins after the first layer, and every batch is large: networks that start from three layers trained
/// at once diverge, or explode on rare prompts.
pub fn deep(kernel: &Kernel, heads: &[Activation], layers: usize, context: usize) -> Protocol {
    let linear = kernel.name() == "linear";
    let mut protocol = exact(kernel.clone(), heads, layers, context);
    if linear {
        protocol.batch = 1024;
    }
    if layers > if linear { 1 } else { 3 } {
        protocol.start = Start::Shallower(Box::new(deep(kernel, heads, layers - 1, context)));
        protocol.adam.rate = 0.01;
        protocol.schedule = Schedule::Cosine { warmup: 100 };
    }
    protocol
}

/// The authors' protocol as released: 30,000 prompts with sampled labels, drawn anew every tenth of 2,100 steps, recorded
/// every 400 steps. AdamW after a clipping so far below its epsilon is layer-wise normalised gradient descent with momentum 0.9
/// and a step length of 0.1 / (9 − i)² in layer i (fgd.md section 0, item 2).
pub fn authors(kernel: Kernel, heads: &[Activation], layers: usize, context: usize) -> Protocol {
    Protocol {
        labels: Labels::Sampled,
        batch: 30_000,
        resample_every: 10,
        layer_clip: Some(LayerClip { limit: 1e-8, from: 9 }),
        adam: AdamConfig { rate: 0.1, betas: [0.9, 0.9], weight_decay: 0.0, clip: Clip::None, ..AdamConfig::default() },
        schedule: Schedule::Constant,
        steps: 2100,
        record_every: Some(400),
        ..exact(kernel, heads, layers, context)
    }
}

/// The training problem of a run.
struct Training {
    model: KernelTransformer,
    task: KernelRegression,
    protocol: Protocol,
    seed: u64,
    /// The blocks of steps that went into the network that this one starts from, had each of its layers taken as many as the
    /// last: their prompts are not drawn again.
    blocks_before: u64,
    /// The block of steps that the batch is for, and the batch.
    batch: Option<(u64, KernelPrompts<f32>)>,
    test: KernelPrompts<f64>,
}

impl Problem for Training {
    type Model = KernelTransformer;

    fn model(&mut self) -> &mut KernelTransformer {
        &mut self.model
    }

    fn gradient(&mut self, step: u64) -> Result<(f64, Gradients<f32, Cpu>)> {
        let block = self.blocks_before + step / self.protocol.resample_every.max(1);
        let batch = match self.batch.take() {
            Some((held, batch)) if held == block => batch,
            _ => {
                let seed = rng::of_step(self.seed, block);
                self.task.prompts(self.protocol.batch, self.protocol.labels, seed)?
            }
        };
        let result = match self.protocol.layer_clip {
            None => self.model.loss_and_gradient(&batch),
            Some(clip) => self.model.whole_gradient(&batch).and_then(|mut whole| {
                clip.apply(&mut whole.free, &whole.held, self.model.layers());
                Ok((whole.loss, self.model.gradients(&whole.free)?))
            }),
        };
        self.batch = Some((block, batch));
        result
    }

    fn measure(&mut self, _: u64) -> Result<Vec<(&'static str, f64)>> {
        Ok(vec![("test", double(&self.model)?.loss(&self.test)?)])
    }
}

/// The same network in double precision.
///
/// # Errors
/// As [`KernelTransformer::from_values`].
pub fn double(model: &KernelTransformer) -> Result<KernelTransformer<f64>> {
    let values = model.params.as_vec().iter().map(|v| f64::from(*v)).collect();
    KernelTransformer::from_values(values, model.layers(), model.dim(), model.activations(), model.values())
}

/// Halvings of the rate after which a training that starts from a shallower network is given up.
const HALVINGS: u32 = 6;
/// By how much such a training may end above the loss that it began with, on other prompts.
const WORSE: f64 = 1.01;
/// Seed of the prompts on which that is measured: neither trained nor tested on.
const VALIDATION_SEED: u64 = 98;

/// Trains one run, keeping its state in `state`; first, if it starts from one, the shallower network, whose state is kept
/// beside it under the run's name.
///
/// A training that starts from a shallower network and diverges, or ends worse than it began on prompts of its own, is
/// made again at half the rate: what it began with was a network of that depth too.
///
/// # Errors
/// As [`Trainer::run`]; [`Error::Numerical`] if no rate helps.
pub fn train(run: &Run, task: &str, state: Option<&Path>, observer: &dyn Observer) -> Result<History> {
    Ok(train_on(None, run, task, state, observer)?.0)
}

/// [`train`] from the history `below` of the shallower network, if that has been trained already; and the rate.
fn train_on(
    below: Option<&History>,
    run: &Run,
    task: &str,
    state: Option<&Path>,
    observer: &dyn Observer,
) -> Result<(History, f64)> {
    let (p, dim) = (&run.protocol, run.protocol.eigenvalues.len());
    let Start::Shallower(shallower) = &p.start else {
        let model = KernelTransformer::init(p.layers, dim, &p.heads, p.values, INIT, run.seed)?;
        return Ok((train_from(model, run, task, state, observer)?, p.adam.rate));
    };
    let size = |layers: usize, p: &Protocol| (layers, p.heads.len(), p.eigenvalues.len());
    if size(shallower.layers.saturating_add(1), shallower) != size(p.layers, p) {
        let given = format!("{:?}", size(shallower.layers, shallower));
        let expected = format!("one layer less than {:?}", size(p.layers, p));
        return Err(Error::invalid("layers, heads and d of the shallower network", given, expected));
    }
    let below = match below {
        Some(history) => history.parameters.last().cloned(),
        None => {
            let below = Run::new(Protocol::clone(shallower), run.seed);
            let state = state.map(|state| state.with_file_name(format!("{}.safetensors", below.name)));
            train(&below, task, state.as_deref(), observer)?.parameters.pop()
        }
    };
    let below = below.ok_or_else(|| Error::invalid("history of the shallower network", "no record", "at least one"))?;
    let model = |parameters: Vec<f32>| KernelTransformer::from_values(parameters, p.layers, dim, &p.heads, p.values);
    let start = model(with_idle_layer(&below, p.heads.len(), dim))?;
    let prompts = p.task(run.seed)?.prompts(TEST_PROMPTS, Labels::Covariance, VALIDATION_SEED)?;
    let bound = WORSE * double(&start)?.loss(&prompts)?;
    let mut last = "ended worse than it began".to_owned();
    for halvings in 0..=HALVINGS {
        let mut run = run.clone();
        run.protocol.adam.rate *= 0.5_f64.powi(halvings as i32);
        // The state is that of the first rate: the others are rare, and short enough to be made again after a break.
        let state = state.filter(|_| halvings == 0);
        match train_from(start.clone(), &run, task, state, observer) {
            Ok(history) => {
                let end = model(history.parameters.last().cloned().unwrap_or_default())?;
                if double(&end)?.loss(&prompts)? <= bound {
                    return Ok((history, run.protocol.adam.rate));
                }
            }
            Err(Error::Numerical { why, .. }) => last = why,
            Err(other) => return Err(other),
        }
    }
    let rates = format!("{} rates from {} down", HALVINGS + 1, p.adam.rate);
    let what = format!("diverges, or ends worse than it began, at {rates}; the last time: {last}");
    Err(Error::numerical(format!("training of {task}"), what))
}

/// The parameters `[layers, heads, 3d² + 1]` and one layer more, which changes nothing.
fn with_idle_layer(below: &[f32], heads: usize, dim: usize) -> Vec<f32> {
    let width = 3 * dim * dim + 1;
    let mut parameters = below.to_vec();
    // A of the last layer has had no effect so far, and no training.
    let last = parameters.len() - heads * width;
    parameters[last..].chunks_mut(width).for_each(|head| head[..dim * dim].fill(0.0));
    let mut idle = parameters[last..].to_vec();
    idle.chunks_mut(width).for_each(|head| head[width - 1] = 0.0);
    parameters.extend(idle);
    parameters
}

fn train_from(
    model: KernelTransformer,
    run: &Run,
    task: &str,
    state: Option<&Path>,
    observer: &dyn Observer,
) -> Result<History> {
    let protocol = &run.protocol;
    if protocol.resample_every == 0 || protocol.record_every == Some(0) {
        return Err(Error::invalid("steps between two batches or records", 0, "at least 1"));
    }
    let regression = protocol.task(run.seed)?;
    let blocks_before = match &protocol.start {
        Start::Random => 0,
        Start::Shallower(below) => below.layers as u64 * below.steps.div_ceil(below.resample_every),
    };
    let mut problem = Training {
        model,
        blocks_before,
        test: regression.prompts(TEST_PROMPTS, Labels::Covariance, TEST_SEED)?,
        task: regression,
        protocol: protocol.clone(),
        seed: run.seed,
        batch: None,
    };
    let record_at = match protocol.record_every {
        Some(every) => (0..=protocol.steps).step_by(every as usize).collect(),
        None => vec![protocol.steps],
    };
    let trainer = Trainer {
        task: task.to_owned(),
        steps: protocol.steps,
        schedule: protocol.schedule,
        record_at,
        state: state.map(Path::to_owned),
        fingerprint: protocol.describe(run.seed),
        save_every: Duration::from_secs(10),
        observer,
    };
    trainer.run(&mut problem, &mut Adam::new(protocol.adam)?)
}

/// The paper's kernel of this name: `linear`, `ReLU`, `exp`, `combination`; with this crate's choice where the sources
/// differ (c = ½; the combination with all coordinates).
///
/// # Errors
/// [`Error::Unknown`] for another name.
pub fn kernel(name: &str) -> Result<Kernel> {
    match name {
        "linear" => Ok(Kernel::linear()),
        "ReLU" => Ok(Kernel::relu()),
        "exp" => Kernel::exp(EXP_SCALE),
        "combination" => Ok(Kernel::combination(Combination::AllCoordinates)),
        _ => Err(Error::unknown("kernel of the paper", name, ["linear", "ReLU", "exp", "combination"])),
    }
}

/// The activations of one head each, in the order of the figures.
pub const ACTIVATIONS: [Activation; 4] = [Activation::Linear, Activation::Relu, Activation::Exp, Activation::Softmax];
/// Context lengths of Figure 1.
pub const CONTEXTS: [usize; 4] = [2, 6, 10, 14];
/// Depths of Figures 2 and 3.
pub const DEPTHS: [usize; 7] = [1, 2, 3, 4, 5, 6, 7];
/// Depths of the authors' released run.
pub const RELEASED_DEPTHS: [usize; 4] = [1, 3, 5, 7];
/// The data of Figure 3: the kernel, and the context length.
pub const HEADS_DATA: [(&str, usize); 3] = [("linear", 8), ("exp", 14), ("combination", 14)];
/// Depths and context lengths of the matrix of kernels and activations.
pub const MATRIX: ([usize; 3], [usize; 2]) = ([1, 2, 3], [6, 14]);
const SEEDS: u64 = 3;

/// The heads of Figure 3: linear, exponential, and one of each.
pub fn figure_3_heads() -> [Vec<Activation>; 3] {
    [vec![Activation::Linear], vec![Activation::Exp], vec![Activation::Linear, Activation::Exp]]
}

/// The heads of the matrix: the four single ones and the pair.
pub fn matrix_heads() -> Vec<Vec<Activation>> {
    let single = ACTIVATIONS.into_iter().map(|a| vec![a]);
    single.chain([vec![Activation::Linear, Activation::Exp]]).collect()
}

/// Figures 4 to 6: three layers with Σ ≠ I, at rest: A zero (Theorem 1) or free (Theorem 2).
pub fn stationary(kernel: Kernel, activation: Activation, values: ValueBlock) -> Protocol {
    let protocol = exact(kernel, &[activation], 3, 14);
    Protocol {
        values,
        eigenvalues: EIGENVALUES.to_vec(),
        adam: AdamConfig { rate: 0.01, ..protocol.adam },
        steps: 4000,
        record_every: Some(200),
        ..protocol
    }
}

/// The runs of every recipe of the paper, with the recipe's title.
///
/// # Errors
/// None in practice: the kernels' names and constants are this file's own.
pub fn catalogue() -> Result<Vec<(&'static str, &'static str, Vec<Run>)>> {
    let mut context = Vec::new();
    for name in ["linear", "ReLU", "exp"] {
        for activation in ACTIVATIONS {
            for n in CONTEXTS {
                context.push(exact(kernel(name)?, std::slice::from_ref(&activation), 3, n));
            }
        }
    }
    let mut depth = Vec::new();
    for name in ["ReLU", "exp"] {
        for n in [14, 6] {
            for activation in ACTIVATIONS {
                for l in DEPTHS {
                    depth.push(deep(&kernel(name)?, std::slice::from_ref(&activation), l, n));
                }
            }
        }
    }
    let (mut heads, mut released) = (Vec::new(), Vec::new());
    for of in figure_3_heads() {
        for (name, n) in HEADS_DATA {
            for l in DEPTHS {
                heads.push(deep(&kernel(name)?, &of, l, n));
            }
        }
        released.extend(RELEASED_DEPTHS.map(|l| authors(Kernel::linear(), &of, l, 8)));
    }
    let mut rest = Vec::new();
    for values in [ValueBlock::Zero, ValueBlock::Free] {
        for (name, activation) in [("linear", 0), ("ReLU", 1), ("exp", 2), ("exp", 3)] {
            rest.push(stationary(kernel(name)?, ACTIVATIONS[activation].clone(), values));
        }
    }
    let mut matrix = Vec::new();
    for name in ["linear", "ReLU", "exp", "combination"] {
        for of in matrix_heads() {
            for l in MATRIX.0 {
                for n in MATRIX.1 {
                    matrix.push(exact(kernel(name)?, &of, l, n));
                }
            }
        }
    }
    let each = |protocols: Vec<Protocol>, seeds: u64| -> Vec<Run> {
        (0..seeds).flat_map(|seed| protocols.iter().map(move |p| Run::new(p.clone(), seed))).collect()
    };
    Ok(vec![
        ("fgd-context", "3 layers, n = 2 to 14: Figure 1, 3 seeds", each(context, SEEDS)),
        ("fgd-depth", "1 to 7 layers: Figure 2, 3 seeds", each(depth, SEEDS)),
        ("fgd-heads", "one and two heads: Figure 3, 3 seeds", each(heads, SEEDS)),
        ("fgd-authors", "the authors' released run: Figure 3a, 3 seeds", each(released, SEEDS)),
        ("fgd-stationary", "3 layers, Σ ≠ I, A zero and free: Figures 4 to 6, 3 seeds", each(rest, SEEDS)),
        ("fgd-matrix", "kernels x activations x depths x context lengths", each(matrix, 1)),
    ])
}

/// The recipes, as the command line lists them.
pub fn recipes() -> Vec<Recipe> {
    let catalogue = catalogue().unwrap_or_default();
    catalogue.into_iter().map(|(id, title, _)| Recipe { id, title, train: train_recipe }).collect()
}

/// Shows the progress of many short runs as that of one piece of work.
struct Together<'a> {
    observer: &'a dyn Observer,
    task: &'a str,
    runs: u64,
    done: AtomicU64,
    begin: Instant,
}

impl Together<'_> {
    fn finished(&self, loss: f64) {
        let step = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        self.observer.report(&Report {
            task: self.task,
            step,
            of: self.runs,
            loss: Some(loss),
            elapsed: self.begin.elapsed(),
            steps_here: step,
        });
    }
}

impl Observer for Together<'_> {
    fn report(&self, _: &Report<'_>) {}

    fn interrupted(&self) -> bool {
        self.observer.interrupted()
    }
}

fn train_recipe(id: &str, settings: &Settings<'_>, options: &TrainOptions) -> Result<PathBuf> {
    let (_, title, mut runs) = shipping::entry(catalogue()?, id, |e| e.0)?;
    if let Some(seed) = options.seed {
        // One network for each configuration, under the seed that was asked for.
        runs.retain(|run| run.seed == 0);
        runs.iter_mut().for_each(|run| *run = Run::new(run.protocol.clone(), seed));
    }
    let work = settings.work.join(id);
    let shipment = Shipment::new(id, title, &work, settings, options)?;
    let together = Together {
        observer: settings.observer,
        task: id,
        runs: runs.len() as u64,
        done: AtomicU64::new(0),
        begin: shipment.begin,
    };
    // A network starts from the one before it, if from any: the catalogue goes from layer to layer. A run is small: as many
    // such rows at a time as there are threads, gathered in the order of the runs.
    let starts_anew = |run: &Run| matches!(run.protocol.start, Start::Random);
    let rows: Vec<&[Run]> = runs.chunk_by(|_, run| !starts_anew(run)).collect();
    let train_row = |row: &&[Run]| -> Result<Vec<(PathBuf, History, f64)>> {
        let mut trained: Vec<(PathBuf, History, f64)> = Vec::new();
        for run in *row {
            let state = shipment.state(work.join(format!("{}.safetensors", run.name)))?;
            let below = trained.last().map(|(_, history, _)| history).filter(|_| !starts_anew(run));
            let (history, rate) = train_on(below, run, &format!("{id} {}", run.name), Some(&state), &together)?;
            together.finished(history.measure("test")?.last().copied().unwrap_or(f64::NAN));
            trained.push((state, history, rate));
        }
        Ok(trained)
    };
    let trained: Vec<Vec<_>> = rows.par_iter().with_max_len(1).map(train_row).collect::<Result<_>>()?;
    let trained: Vec<(PathBuf, History, f64)> = trained.into_iter().flatten().collect();
    let (mut arrays, mut described, mut losses) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (run, (_, history, rate)) in runs.iter().zip(&trained) {
        let (rows, p) = (history.steps.len(), &run.protocol);
        let shape = [rows, p.layers, p.heads.len(), 3 * p.eigenvalues.len().pow(2) + 1];
        arrays.insert(format!("{}.parameters", run.name), Array::f32(&shape, history.parameters.concat())?);
        let test = history.measure("test")?;
        let steps: Vec<f64> = history.steps.iter().map(|s| *s as f64).collect();
        arrays.insert(format!("{}.history", run.name), Array::f64(&[2, rows], [&steps, test].concat())?);
        let (batch, steps) = (p.batch, p.steps);
        described.insert(
            run.name.clone(),
            format!("{steps} steps of {batch} prompts, rate {rate}, clip {}, start: {}", p.clip(), p.start()),
        );
        losses.insert(run.name.clone(), test.last().copied().unwrap_or(f64::NAN));
    }
    let mut manifest = shipment.manifest(described);
    manifest["first_run"] = json!(runs.first().map(|run| run.protocol.describe(run.seed)));
    // There is none of a network whose first rate was not kept.
    let states = trained.into_iter().map(|(state, ..)| state).filter(|state| state.exists()).collect();
    shipment.finish(arrays, manifest, losses, states)
}

/// A trained run as the figures use it.
#[derive(Clone, Debug)]
pub struct Trained {
    /// How it was trained.
    pub run: Run,
    /// Its task.
    pub task: KernelRegression,
    /// The recorded steps.
    pub steps: Vec<u64>,
    /// Test loss at each recorded step: 20,000 prompts of seed 99, exact over labels.
    pub test: Vec<f64>,
    /// The network at each recorded step.
    pub models: Vec<KernelTransformer>,
}

impl Trained {
    /// The network at the end.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a history without records.
    pub fn last(&self) -> Result<&KernelTransformer> {
        self.models.last().ok_or_else(|| Error::invalid("history", "no record", "at least one"))
    }

    /// The logarithm of the test loss at the end.
    pub fn ln_loss(&self) -> f64 {
        self.test.last().map_or(f64::NAN, |loss| loss.ln())
    }
}

/// The trained runs of recipe `id` that `wanted` accepts: from the shipped checkpoint, or trained now if the settings ask
/// for it.
///
/// # Errors
/// [`Error::Unknown`] for another id, [`Error::File`] and [`Error::Corrupt`] for a checkpoint that is not there or
/// damaged; as [`train`].
pub fn load(id: &str, wanted: impl Fn(&Run) -> bool, settings: &Settings<'_>) -> Result<Vec<Trained>> {
    let (.., runs) = shipping::entry(catalogue()?, id, |e| e.0)?;
    let checkpoint = shipping::checkpoint(id, settings, train_recipe)?;
    runs.iter().filter(|run| wanted(run)).map(|run| read_run(&checkpoint, run)).collect()
}

fn read_run(checkpoint: &Checkpoint, run: &Run) -> Result<Trained> {
    let (task, p) = (run.protocol.task(run.seed)?, &run.protocol);
    let width = 3 * task.dim() * task.dim() + 1;
    let (shape, values) = checkpoint.f32(&format!("{}.parameters", run.name), &[0, p.layers, p.heads.len(), width])?;
    let rows = shape[0];
    let history = checkpoint.f64(&format!("{}.history", run.name), &[2, rows])?.1;
    let models = values
        .chunks(p.layers * p.heads.len() * width)
        .map(|v| KernelTransformer::from_values(v.to_vec(), p.layers, task.dim(), &p.heads, p.values))
        .collect::<Result<_>>()?;
    Ok(Trained {
        run: run.clone(),
        steps: history[..rows].iter().map(|s| *s as u64).collect(),
        test: history[rows..].to_vec(),
        models,
        task,
    })
}
