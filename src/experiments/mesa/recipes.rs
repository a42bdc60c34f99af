//! The trainings of `mesa` as data: the authors' one-layer model at their scale, the others at n = 5, T = 25 (the
//! specification's calibrated sizes), three seeds each; softmax transformers and a hybrid at the authors' scale, one seed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dfdx::prelude::{Cpu, Gradients};
use serde_json::json;

use super::sensitivity;
use crate::experiments::shipping::{self, Shipment};
use crate::experiments::{Recipe, Settings, TrainOptions};
use crate::models::SequenceTransformer;
use crate::ops::lane_products::OnLanes;
use crate::ops::sequence_transformer::{Architecture, LaneBatch, Layer, Mixer};
use crate::rng;
use crate::tasks::{Dynamics, TokenKind, Trajectories};
use crate::train::{Adam, AdamConfig, Ahead, Array, Checkpoint, Clip, History, Problem, Schedule, Trainer};
use crate::{Error, Result};

/// How one network is trained: AdamW, gradients clipped entry by entry at 1, a fresh batch every step.
#[derive(Clone, Debug, PartialEq)]
pub struct Protocol {
    /// The network.
    pub architecture: Architecture,
    /// The sequences.
    pub task: Dynamics,
    /// What it reads of them.
    pub tokens: TokenKind,
    /// Standard deviation of the initial parameters.
    pub init: f64,
    /// Trajectories a step.
    pub batch: usize,
    /// Learning rate.
    pub rate: f64,
    /// Decoupled weight decay.
    pub decay: f64,
    /// Schedule of the rate.
    pub schedule: Schedule,
    /// Steps in all.
    pub steps: u64,
    /// Steps between two records of the history.
    pub record_every: u64,
    /// Whether the checkpoint has the parameters at every record, or those of the end alone.
    pub keep_all: bool,
}

/// Trajectories of the test batch, and their seed.
const TEST_SEQUENCES: usize = 512;
const TEST_SEED: u64 = 0x7e57;

impl Protocol {
    /// The test batch of every run of this protocol's task.
    ///
    /// # Errors
    /// As [`Dynamics::sample`].
    pub fn test(&self) -> Result<Trajectories> {
        self.task.sample(TEST_SEQUENCES, TEST_SEED)
    }

    pub(super) fn adam(&self) -> AdamConfig {
        AdamConfig { rate: self.rate, weight_decay: self.decay, clip: Clip::Element(1.0), ..AdamConfig::default() }
    }

    pub(super) fn describe(&self, seed: u64) -> serde_json::Value {
        json!({
            "seed": seed, "architecture": self.architecture, "task": self.task, "tokens": self.tokens, "init": self.init,
            "batch": self.batch, "adam": self.adam(), "schedule": self.schedule, "steps": self.steps,
            "record_every": self.record_every,
        })
    }

    /// The same in `steps` steps.
    #[must_use]
    pub fn steps(self, steps: u64) -> Self {
        Protocol { steps, record_every: (steps / 40).max(1), ..self }
    }

    /// The same on another task.
    #[must_use]
    pub fn on(self, task: Dynamics) -> Self {
        Protocol { task, ..self }
    }
}

/// A run of a recipe.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its name in the checkpoint, `<network>.s<seed>`.
    pub name: String,
    /// How it is trained.
    pub protocol: Protocol,
    /// Seed of the initial parameters and of the batches.
    pub seed: u64,
}

/// The small scale of the specification's calibrated runs.
pub const SMALL: (usize, usize) = (5, 25);
/// The paper's scale.
pub const FULL: (usize, usize) = (10, 50);

/// Linear self-attention of `layers` layers on constructed tokens (Figs 3B, 4, 9, 11 to 13).
///
/// # Errors
/// As [`Dynamics::linear`].
pub fn linear_attention((dim, tokens): (usize, usize), layers: usize) -> Result<Protocol> {
    let one = layers == 1;
    let layer = Layer::new(Mixer::Linear, if one { 2 } else { 4 }, if one { 2 * dim } else { 20 });
    let full = dim >= FULL.0;
    Ok(Protocol {
        architecture: Architecture::constructed(dim, vec![layer; layers]),
        task: Dynamics::linear(dim, tokens)?,
        tokens: if one { TokenKind::ConstructedMasked } else { TokenKind::Constructed },
        init: match (one, full) {
            (true, true) => 2e-4,
            (true, false) => 5e-4,
            _ => 0.02,
        },
        batch: 64,
        rate: match (one, full) {
            (true, true) => 2e-4,
            (true, false) => 4e-4,
            _ => 3e-4,
        },
        decay: 0.05,
        schedule: Schedule::Constant,
        steps: 3000,
        record_every: 75,
        keep_all: false,
    })
}

/// One mesa layer on constructed tokens.
///
/// # Errors
/// As [`Dynamics::linear`].
pub fn mesa((dim, tokens): (usize, usize)) -> Result<Protocol> {
    let layer = Layer::new(Mixer::Mesa { forget: 1.0 }, 4, if dim >= FULL.0 { 20 } else { 10 });
    Ok(Protocol {
        architecture: Architecture::constructed(dim, vec![layer]),
        tokens: TokenKind::ConstructedMasked,
        init: 0.02,
        rate: 4e-4,
        decay: 0.1,
        ..linear_attention((dim, tokens), 1)?
    })
}

/// A stack on embedded states: softmax attention first, which sees positions, then these layers (Figs 2, 3A, 6, 7, 14 to
/// 17).
///
/// # Errors
/// As [`Dynamics::linear`].
pub fn stack((dim, tokens): (usize, usize), first: Mixer, rest: &[Mixer]) -> Result<Protocol> {
    let layer = |mixer: &Mixer| Layer::new(*mixer, 4, if dim >= FULL.0 { 20 } else { 10 });
    let layers = std::iter::once(&first).chain(rest).map(layer).collect();
    Ok(Protocol {
        architecture: Architecture::embedded(dim, 4 * dim, layers),
        task: Dynamics::linear(dim, tokens)?,
        tokens: TokenKind::States,
        init: 0.05,
        batch: 64,
        rate: 1.5e-3,
        decay: 0.05,
        schedule: Schedule::Cosine { warmup: 300 },
        steps: 12_000,
        record_every: 300,
        keep_all: false,
    })
}

/// The mesa layer without forgetting.
pub const MESA: Mixer = Mixer::Mesa { forget: 1.0 };

/// The architectures of Figs 2, 7 and 16: `tf` (`layers` of softmax), `hybrid` (softmax, then a mesa layer), `mesa2` (two
/// mesa layers).
///
/// # Errors
/// [`Error::Unknown`] for another name; [`Error::Invalid`] for no layers; as [`stack`].
pub fn named(scale: (usize, usize), name: &str, layers: usize) -> Result<Protocol> {
    match name {
        "tf" if layers == 0 => Err(Error::invalid("layers of softmax", 0, "at least 1")),
        "tf" => stack(scale, Mixer::Softmax, &vec![Mixer::Softmax; layers - 1]),
        "hybrid" => Ok(Protocol { rate: 1e-3, ..stack(scale, Mixer::Softmax, &[MESA])? }),
        "mesa2" => Ok(Protocol { rate: 1e-3, ..stack(scale, MESA, &[MESA])? }),
        _ => Err(Error::unknown("network", name, ["tf", "hybrid", "mesa2"])),
    }
}

/// The same networks at the authors' size, trained as they train them: batches of 256, a warm-up of 1000 steps and a cosine that
/// would reach 1e-5 after 30,000. Softmax takes 10,000 steps of it, up to 8e-4; the hybrid 20,000, up to 3e-4, its streams clipped
/// to ±1.
///
/// # Errors
/// As [`named`].
pub fn full(name: &str, layers: usize) -> Result<Protocol> {
    let hybrid = name == "hybrid";
    let (rate, steps) = if hybrid { (3e-4, 20_000) } else { (8e-4, 10_000) };
    let mut network = named(FULL, name, layers)?;
    network.architecture.clip = hybrid.then_some(1.0);
    let schedule = Schedule::Hold { warmup: 1000, hold: 1000, until: 30_000, floor: 1e-5 / rate };
    Ok(Protocol { batch: 256, rate, schedule, ..network }.steps(steps))
}

/// A network that sees `observed` coordinates of its states, on this width and with these heads and keys.
fn in_part(network: Protocol, observed: usize, width: usize, (heads, key): (usize, usize)) -> Result<Protocol> {
    let task = Dynamics::partial(network.task.dim, observed, network.task.tokens)?;
    let mut protocol = network.on(task);
    protocol.architecture.input = observed;
    protocol.architecture.output = observed;
    protocol.architecture.width = width;
    for layer in &mut protocol.architecture.layers {
        (layer.heads, layer.key) = (heads, key.min(width));
    }
    Ok(protocol)
}

/// Partially observed dynamics at the small scale: n_h = 6, n_s = 2, T = 40 (specification, A9), `width` channels.
///
/// # Errors
/// As [`named`].
pub fn partial(name: &str, layers: usize, width: usize) -> Result<Protocol> {
    in_part(named((6, 40), name, layers)?, 2, width, (6, 8))
}

/// A network on dynamics with `hidden` units: MLPs of `mlp` units, unit queries and keys after layer 1.
fn on_mlp(network: Protocol, hidden: usize, mlp: usize) -> Result<Protocol> {
    let task = Dynamics::nonlinear(network.task.dim, hidden, network.task.tokens)?;
    let mut protocol = network.on(task);
    for (l, layer) in protocol.architecture.layers.iter_mut().enumerate() {
        layer.mlp = Some(mlp);
        layer.unit = l > 0;
    }
    Ok(protocol)
}

/// Non-linear dynamics at the small scale: n = 5, 20 hidden units, MLPs of 80 units.
///
/// # Errors
/// As [`named`].
pub fn nonlinear(name: &str, layers: usize) -> Result<Protocol> {
    Ok(Protocol { rate: 1e-3, ..on_mlp(named(SMALL, name, layers)?, 20, 80)? })
}

/// Partially observed dynamics at the authors' size: n_h = 15, n_s = 5, T = 50, twelve heads of 20 on width 80, the hybrid's
/// streams clipped to ±1; the authors' steps in batches of 64, up to 8e-4 and down to 0 (theirs: 256, 4e-4 and a cosine cut off early).
///
/// # Errors
/// As [`named`].
pub fn full_partial(name: &str) -> Result<Protocol> {
    let mut network = in_part(named((15, 50), name, FULL_DEPTH)?, 5, 80, (12, 20))?;
    network.architecture.clip = (name == "hybrid").then_some(1.0);
    Ok(Protocol { rate: 8e-4, ..network }.steps(if name == "hybrid" { 12_000 } else { 20_000 }))
}

/// Non-linear dynamics at the authors' size: n = 10, 40 hidden units, T = 50, width 60, MLPs of 300 units, the hybrid's streams
/// clipped to ±15; the authors' steps, of the hybrid's half, in batches of 64, up to 1e-3 and down to 0 (theirs: 256, the hybrid 4e-4, a
/// cosine cut off early).
///
/// # Errors
/// As [`named`].
pub fn full_nonlinear(name: &str) -> Result<Protocol> {
    let mut network = on_mlp(named(FULL, name, FULL_DEPTH)?, 40, 300)?;
    network.architecture.width = 60;
    network.architecture.clip = (name == "hybrid").then_some(15.0);
    Ok(Protocol { rate: 1e-3, ..network }.steps(if name == "hybrid" { 20_000 } else { 40_000 }))
}

/// The rules by which a layer learns from the tokens so far, and their names.
pub const RULES: [(&str, Mixer); 4] = [
    ("linear", Mixer::Linear),
    ("delta", Mixer::Delta { implicit: false }),
    ("implicit", Mixer::Delta { implicit: true }),
    ("mesa", MESA),
];

/// Key channels of a head of [`RULES`] at equal parameters, and heads.
pub const RULE_KEY: usize = 10;
const RULE_HEADS: usize = 4;

/// Multiplications and additions of a layer of [`RULES`] for one more token, its four projections included; `None` for softmax
/// attention, where it grows with the token.
pub fn operations(mixer: Mixer, key: usize) -> Option<usize> {
    let width = 4 * SMALL.0;
    Some(RULE_HEADS * (mixer.operations(key)? + 4 * 2 * width * key))
}

/// The most key channels with which `mixer` costs no more than the mesa layer with [`RULE_KEY`].
pub fn matched_key(mixer: Mixer) -> Option<usize> {
    let budget = operations(MESA, RULE_KEY)?;
    (1..=4 * RULE_KEY).rev().find(|key| operations(mixer, *key).is_some_and(|o| o <= budget))
}

/// One layer of `mixer` on constructed tokens, all rules in the same way.
fn rule(mixer: Mixer, key: usize) -> Result<Protocol> {
    let architecture = Architecture::constructed(SMALL.0, vec![Layer::new(mixer, RULE_HEADS, key)]);
    let schedule = Schedule::Cosine { warmup: 100 };
    Ok(Protocol { architecture, rate: 1e-3, schedule, ..mesa(SMALL)? }.steps(1200))
}

/// Networks of each kind, in every checkpoint of the paper but those at the authors' size.
pub const SEEDS: u64 = 3;

/// Softmax layers of the small full transformer.
pub const DEPTH: usize = 5;

/// Softmax layers of the authors' full transformer.
pub const FULL_DEPTH: usize = 7;

/// A checkpoint: its id, its title and its runs.
pub struct Entry {
    /// The checkpoint's id.
    pub id: &'static str,
    /// What is trained.
    pub title: &'static str,
    /// The runs.
    pub runs: Vec<Run>,
}

/// Every checkpoint of the paper.
///
/// # Errors
/// As [`Dynamics::linear`].
pub fn catalogue() -> Result<Vec<Entry>> {
    let seeds = |networks: Vec<(String, Protocol)>| -> Vec<Run> {
        let of = |(name, protocol): (String, Protocol)| {
            (0..SEEDS).map(move |seed| Run { name: format!("{name}.s{seed}"), protocol: protocol.clone(), seed })
        };
        networks.into_iter().flat_map(of).collect()
    };
    let constructed = |task: Dynamics, one: f64, settle: bool| -> Result<Vec<(String, Protocol)>> {
        let mut networks = vec![("mesa".to_owned(), mesa(SMALL)?.on(task.clone()))];
        for layers in [1, 2, 4, 6] {
            let mut protocol = linear_attention(SMALL, layers)?.on(task.clone());
            if layers == 1 {
                protocol.rate = one;
            } else if settle {
                // At a constant rate the late tokens, with their long sums, make the loss of deep networks jump.
                let until = protocol.steps;
                protocol.schedule = Schedule::Hold { warmup: 0, hold: until * 3 / 5, until, floor: 0.0 };
            }
            networks.push((format!("lsa{layers}"), protocol));
        }
        Ok(networks)
    };
    let (n, t) = SMALL;
    let full_one = Protocol { keep_all: true, ..linear_attention(FULL, 1)?.steps(2000) };
    let embedded = |name: &str, layers| named(SMALL, name, layers);
    let own = |name: &str, protocol: Protocol| (name.to_owned(), protocol);
    let one_seed = |networks: Vec<(String, Protocol)>| -> Vec<Run> {
        let run = |(name, protocol)| Run { name: format!("{name}.s0"), protocol, seed: 0 };
        networks.into_iter().map(run).collect()
    };
    let widths = [2, 4, 8, 16, 24];
    let rules: Vec<(String, Protocol)> = RULES
        .into_iter()
        .flat_map(|(name, mixer)| {
            let narrow = (name.to_owned(), rule(mixer, RULE_KEY));
            let wide = matched_key(mixer).map(|key| (format!("{name}-wide"), rule(mixer, key)));
            [Some(narrow), wide.filter(|_| mixer != MESA)]
        })
        .flatten()
        .map(|(name, protocol)| Ok((name, protocol?)))
        .collect::<Result<_>>()?;
    let pools: Vec<(String, Protocol)> = [1, 2, 4, 8, 16, 64, 256]
        .into_iter()
        .map(|count| {
            let task = Dynamics::pool(n, t, count)?;
            let protocol = Protocol { rate: 2e-3, schedule: Schedule::Cosine { warmup: 100 }, ..mesa(SMALL)? };
            Ok((format!("pool{count}"), protocol.on(task).steps(1500)))
        })
        .collect::<Result<_>>()?;
    Ok(vec![
        Entry {
            id: "mesa-one-layer",
            title: "1 linear layer, n = 10, T = 50",
            runs: seeds(vec![own("lsa1", full_one)]),
        },
        Entry {
            id: "mesa-layer",
            title: "1 mesa layer, n = 10, T = 50",
            runs: seeds(vec![own("mesa", mesa(FULL)?.steps(2500))]),
        },
        Entry {
            id: "mesa-linear",
            title: "1 to 6 linear layers and a mesa layer, n = 5, T = 25",
            runs: seeds(constructed(Dynamics::linear(n, t)?, 4e-4, true)?),
        },
        Entry {
            id: "mesa-fixed",
            title: "the same for one fixed teacher",
            runs: seeds(constructed(Dynamics::pool(n, t, 1)?, 1e-3, false)?),
        },
        Entry {
            id: "mesa-contracting",
            title: "the same for contracting dynamics",
            runs: seeds(constructed(Dynamics::contracting(n, t)?, 1e-3, true)?),
        },
        Entry {
            id: "mesa-stacks",
            title: "softmax transformers of 3 and 5 layers, hybrid and full mesa, n = 5, T = 25",
            runs: seeds(vec![
                own("hybrid", embedded("hybrid", 2)?),
                own("tf", embedded("tf", DEPTH)?),
                own("tf3", embedded("tf", 3)?),
                own("mesa2", embedded("mesa2", 2)?),
            ]),
        },
        Entry {
            id: "mesa-nonlinear",
            title: "softmax transformers and hybrids on non-linear dynamics, n = 5, T = 25",
            runs: seeds(vec![own("tf", nonlinear("tf", DEPTH)?), own("hybrid", nonlinear("hybrid", 2)?)]),
        },
        Entry {
            id: "mesa-partial",
            title: "softmax transformers and hybrids on partially observed dynamics, n = 6, 2 observed, T = 40",
            runs: seeds(vec![own("tf", partial("tf", DEPTH, 24)?), own("hybrid", partial("hybrid", 2, 24)?)]),
        },
        Entry {
            id: "mesa-widths",
            title: "hybrids of width 2 to 24 on partially observed dynamics",
            runs: seeds(
                widths
                    .into_iter()
                    .map(|w| Ok((format!("width{w}"), partial("hybrid", 2, w)?.steps(2000))))
                    .collect::<Result<_>>()?,
            ),
        },
        Entry {
            id: "mesa-full",
            title: "softmax transformers of 3 and 7 layers and a hybrid at the authors' size, n = 10, T = 50",
            runs: one_seed(vec![
                own("tf", full("tf", FULL_DEPTH)?),
                own("tf3", full("tf", 3)?),
                own("hybrid", full("hybrid", 2)?),
            ]),
        },
        Entry {
            id: "mesa-full-nonlinear",
            title: "a softmax transformer of 7 layers and a hybrid on non-linear dynamics at the authors' size, n = 10, T = 50",
            runs: one_seed(vec![own("tf", full_nonlinear("tf")?), own("hybrid", full_nonlinear("hybrid")?)]),
        },
        Entry {
            id: "mesa-full-partial",
            title: "the same on partially observed dynamics at the authors' size, n = 15, 5 observed, T = 50",
            runs: one_seed(vec![own("tf", full_partial("tf")?), own("hybrid", full_partial("hybrid")?)]),
        },
        Entry { id: "mesa-diversity", title: "a mesa layer, 1 to 256 teachers, n = 5, T = 25", runs: seeds(pools) },
        Entry {
            id: "mesa-rules",
            title: "one layer each of linear attention, delta rule, implicit step and mesa, n = 5, T = 25",
            runs: seeds(rules),
        },
    ])
}

/// The recipes, as the command line lists them.
pub fn recipes() -> Vec<Recipe> {
    // The catalogue's sizes are constants; tests make it.
    let entries = catalogue().unwrap_or_default();
    entries.into_iter().map(|e| Recipe { id: e.id, title: e.title, train: train_recipe }).collect()
}

/// The training problem of a run.
struct Training {
    model: SequenceTransformer,
    protocol: Protocol,
    seed: u64,
    test: Trajectories,
    test_tokens: LaneBatch<f32>,
    ahead: Ahead<[LaneBatch<f32>; 2]>,
}

/// What is measured during training beside the loss: how strongly the first layer's output depends on the newest tokens.
pub const SENSITIVITIES: [&str; 7] = ["t", "t-1", "t-2", "t-3", "t-4", "t-5", "older"];

impl Problem for Training {
    type Model = SequenceTransformer;

    fn model(&mut self) -> &mut SequenceTransformer {
        &mut self.model
    }

    fn gradient(&mut self, step: u64) -> Result<(f64, Gradients<f32, Cpu>)> {
        let Training { model, protocol, seed, ahead, .. } = self;
        let draw = |step: u64| -> Result<_> {
            let batch = protocol.task.sample(protocol.batch, rng::of_step(*seed, step))?;
            Ok([batch.inputs(protocol.tokens)?, batch.targets()?])
        };
        ahead.with(step, draw, |[tokens, targets]| model.loss_and_gradient(tokens, targets, None))?
    }

    fn measure(&mut self, _: u64) -> Result<Vec<(&'static str, f64)>> {
        let losses = self.test.losses(&self.model.predict(&self.test_tokens)?)?;
        let mut measures = vec![("test", losses.iter().sum::<f64>() / losses.len() as f64)];
        if self.protocol.tokens == TokenKind::States {
            let few = self.protocol.task.sample(16, TEST_SEED + 1)?;
            let all = sensitivity::first_layer(&self.model, &few.inputs(TokenKind::States)?)?;
            let older = all[SENSITIVITIES.len() - 1..].iter().sum::<f64>() / (all.len() - 6).max(1) as f64;
            measures.extend(SENSITIVITIES.iter().zip(all.iter().take(6).copied().chain([older])).map(|(n, v)| (*n, v)));
        }
        Ok(measures)
    }
}

/// Trains one run, keeping its state in `state`; returns the trained network and its history.
///
/// # Errors
/// As [`Trainer::run`].
pub fn train(
    run: &Run,
    task: &str,
    state: Option<&Path>,
    settings: &Settings<'_>,
) -> Result<(SequenceTransformer, History)> {
    let protocol = &run.protocol;
    if protocol.record_every == 0 {
        return Err(Error::invalid("steps between two records", 0, "at least 1"));
    }
    let test = protocol.test()?;
    let mut problem = Training {
        model: SequenceTransformer::init(protocol.architecture.clone(), protocol.init, run.seed)?,
        protocol: protocol.clone(),
        seed: run.seed,
        test_tokens: test.inputs(protocol.tokens)?,
        test,
        ahead: Ahead::default(),
    };
    let trainer = Trainer {
        task: task.to_owned(),
        steps: protocol.steps,
        schedule: protocol.schedule,
        record_at: (0..=protocol.steps).step_by(protocol.record_every as usize).collect(),
        state: state.map(Path::to_owned),
        fingerprint: protocol.describe(run.seed),
        save_every: Duration::from_secs(10),
        observer: settings.observer,
    };
    let history = trainer.run(&mut problem, &mut Adam::new(protocol.adam())?)?;
    Ok((problem.model, history))
}

fn train_recipe(id: &str, settings: &Settings<'_>, options: &TrainOptions) -> Result<PathBuf> {
    let Entry { title, mut runs, .. } = shipping::entry(catalogue()?, id, |e| e.id)?;
    if let Some(seed) = options.seed {
        runs.retain(|run| run.seed == 0);
        for run in &mut runs {
            run.name = run.name.replace(".s0", &format!(".s{seed}"));
            run.seed = seed;
        }
    }
    let shipment = Shipment::new(id, title, &settings.work, settings, options)?;
    let (mut arrays, mut described, mut losses, mut states) =
        (BTreeMap::new(), BTreeMap::new(), BTreeMap::new(), Vec::new());
    for run in &runs {
        let state = shipment.state(settings.work.join(format!("{id}.{}.safetensors", run.name)))?;
        let (model, history) = train(run, &format!("{id} {}", run.name), Some(&state), settings)?;
        add_run(&mut arrays, run, &model, &history)?;
        described.insert(run.name.clone(), run.protocol.describe(run.seed));
        losses.insert(run.name.clone(), history.measure("test")?.last().copied());
        states.push(state);
    }
    let manifest = shipment.manifest(described);
    shipment.finish(arrays, manifest, losses, states)
}

pub(super) fn add_run(
    arrays: &mut BTreeMap<String, Array>,
    run: &Run,
    model: &SequenceTransformer,
    history: &History,
) -> Result<()> {
    let rows = history.steps.len();
    let parameters = if run.protocol.keep_all { history.parameters.concat() } else { model.values() };
    let count = run.protocol.architecture.parameters();
    arrays.insert(format!("{}.parameters", run.name), Array::f32(&[parameters.len() / count, count], parameters)?);
    let steps = history.steps.iter().map(|s| *s as f64).collect();
    arrays.insert(format!("{}.steps", run.name), Array::f64(&[rows], steps)?);
    for (name, series) in &history.measures {
        arrays.insert(format!("{}.{name}", run.name), Array::f64(&[rows], series.clone())?);
    }
    Ok(())
}

/// A trained run as the figures use it.
#[derive(Clone, Debug)]
pub struct Trained {
    /// The run's network, `lsa6`.
    pub network: String,
    /// How it was trained.
    pub protocol: Protocol,
    /// Its seed.
    pub seed: u64,
    /// The network at the end.
    pub model: SequenceTransformer,
    /// The network at every record, if the protocol keeps them all.
    pub over_training: Vec<SequenceTransformer>,
    /// Steps and measures.
    pub history: History,
}

impl Trained {
    /// Per-token losses `[T]` on sequences of its task.
    ///
    /// # Errors
    /// [`Error::Shape`] for sequences of another dimension.
    pub fn losses(&self, sequences: &Trajectories) -> Result<Vec<f64>> {
        sequences.losses(&self.model.predict(&self.tokens(sequences)?)?)
    }

    /// What the network reads of `sequences`.
    ///
    /// # Errors
    /// As [`Trajectories::inputs`].
    pub fn tokens<T: OnLanes>(&self, sequences: &Trajectories) -> Result<LaneBatch<T>> {
        sequences.inputs(self.protocol.tokens)
    }
}

/// The trained runs of checkpoint `id` whose networks `wanted` accepts: shipped, or trained now if the settings ask for it.
///
/// # Errors
/// [`Error::Unknown`] for another id, [`Error::File`] and [`Error::Corrupt`] for a checkpoint that is not there or
/// damaged; as [`train`].
pub fn load(id: &str, wanted: impl Fn(&str) -> bool, settings: &Settings<'_>) -> Result<Vec<Trained>> {
    let Entry { runs, .. } = shipping::entry(catalogue()?, id, |e| e.id)?;
    let checkpoint = shipping::checkpoint(id, settings, train_recipe)?;
    let network = |run: &Run| run.name.split('.').next().unwrap_or_default().to_owned();
    runs.iter().filter(|run| wanted(&network(run))).map(|run| read_run(&checkpoint, run)).collect()
}

pub(super) fn read_run(checkpoint: &Checkpoint, run: &Run) -> Result<Trained> {
    let protocol = run.protocol.clone();
    let count = protocol.architecture.parameters();
    let (_, values) = checkpoint.f32(&format!("{}.parameters", run.name), &[0, count])?;
    let models: Vec<SequenceTransformer> = values
        .chunks(count)
        .map(|v| SequenceTransformer::from_values(protocol.architecture.clone(), v))
        .collect::<Result<_>>()?;
    let series = |name: &str| Ok(checkpoint.f64(&format!("{}.{name}", run.name), &[0])?.1.to_vec());
    let steps = series("steps")?.iter().map(|s: &f64| *s as u64).collect();
    let mut measures = vec![("test".to_owned(), series("test")?)];
    // A layer that was trained on another's output embeds no tokens and has no sensitivities.
    if protocol.tokens == TokenKind::States && protocol.architecture.embed {
        for name in SENSITIVITIES {
            measures.push((name.to_owned(), series(name)?));
        }
    }
    let history = History { steps, measures, parameters: Vec::new() };
    let model = models.last().cloned();
    let model =
        model.ok_or_else(|| Error::invalid(format!("parameters of {}", run.name), "none", "those of the end"))?;
    let network = run.name.split('.').next().unwrap_or_default().to_owned();
    let over_training = if protocol.keep_all { models } else { Vec::new() };
    Ok(Trained { network, protocol, seed: run.seed, model, over_training, history })
}
