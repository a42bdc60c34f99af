//! Figures 8 and 18: networks trained on dynamics alone learn a regression from pairs in their context, better with a
//! learnt token after every pair, and better still with learnt tokens in front.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dfdx::prelude::{Cpu, Gradients};
use serde::Serialize;
use serde_json::json;

use super::depth::{log_gap, over_seeds, seeds};
use super::kernels::RIDGE;
use super::one_layer::mean;
use super::recipes::{self, Protocol, Run, Trained, named};
use super::reference;
use crate::algorithms::sequences::{FewShotPairs, InverseSeries, Pairing, SequenceLeastSquares, few_shot_losses};
use crate::experiments::shipping::{self, Shipment};
use crate::experiments::{Recipe, Reproduction, Settings, TrainOptions};
use crate::figure::{Axis, Claims, Color, Extremes, Figure, Line, Panel};
use crate::models::soft_prompt::prompt_gradient;
use crate::models::{SequenceTransformer, SoftPrompt};
use crate::ops::sequence_transformer::Architecture;
use crate::rng;
use crate::tasks::{FewShot, FewShotPrompts, Prompt};
use crate::train::{Adam, AdamConfig, Array, Checkpoint, Clip, Problem, Schedule, Trainer};
use crate::{Error, Result};

/// A size of networks and prompts, and its checkpoint.
pub struct Size {
    /// The checkpoint's id and its title.
    id: &'static str,
    title: &'static str,
    /// Dimension n, and tokens T of the pretraining sequences.
    dim: usize,
    tokens: usize,
    /// The pair, from 0, at which the teacher changes in the panels B.
    switch: usize,
    /// The networks, how many of each, and how they are pretrained.
    networks: &'static [&'static str],
    seeds: u64,
    protocol: fn(&Size, &str) -> Result<Protocol>,
    /// Prompts a step of tuning, and steps.
    batch: usize,
    steps: u64,
    /// Layers of the softmax transformer.
    layers: usize,
    /// Whether it is the authors' own size, for which their curves are stored.
    theirs: bool,
}

/// n = 5.
pub const SMALL: Size = Size {
    id: "mesa-few-shot",
    title: "a hybrid and a softmax transformer, n = 5, T = 72, and tokens tuned for few-shot regression",
    dim: 5,
    tokens: 72,
    switch: 8,
    networks: &["tf", "hybrid"],
    seeds: recipes::SEEDS,
    protocol: |size, name| {
        Ok(Protocol {
            batch: 32,
            steps: 10_000,
            record_every: 500,
            ..named((size.dim, size.tokens), name, size.layers)?
        })
    },
    batch: 32,
    steps: 5000,
    layers: recipes::DEPTH,
    theirs: false,
};

/// The authors' own size, n = 10; pretrained for the 15,000 steps of their code in batches of 64 (theirs: 128), tuned for its 5,000 in
/// batches of 32 (64 or 128).
pub const FULL: Size = Size {
    id: "mesa-few-shot-full",
    title: "a softmax transformer, n = 10, T = 224, and tokens tuned for few-shot regression",
    dim: 10,
    tokens: 224,
    switch: 20,
    networks: &["tf"],
    seeds: 1,
    protocol: |size, name| {
        let schedule = Schedule::Cosine { warmup: 1000 };
        let network = named((size.dim, size.tokens), name, size.layers)?;
        Ok(Protocol { batch: 64, rate: 8e-4, schedule, ..network }.steps(15_000))
    },
    batch: 32,
    steps: 5000,
    layers: recipes::FULL_DEPTH,
    theirs: true,
};

impl Size {
    /// Tokens of the prefix: 2 n, as in the paper.
    fn prefix(&self) -> usize {
        2 * self.dim
    }

    /// Pairs of a prompt: with the prefix and a token after every pair they fill T.
    pub fn pairs(&self) -> usize {
        (self.tokens - self.prefix()) / 3
    }

    /// The networks, by the figure that has them, their seeds and how they are pretrained.
    fn runs(&self) -> Result<Vec<Run>> {
        let mut all = Vec::new();
        for name in self.networks {
            for seed in 0..self.seeds {
                all.push(Run { name: format!("{name}.s{seed}"), protocol: (self.protocol)(self, name)?, seed });
            }
        }
        Ok(all)
    }

    fn tuning(&self, tokens: usize) -> Result<Tuning> {
        let adam = AdamConfig { rate: 1e-3, clip: Clip::None, ..AdamConfig::default() };
        Ok(Tuning { task: FewShot::new(self.dim, self.pairs())?, tokens, batch: self.batch, adam, steps: self.steps })
    }
}

/// How the tokens of a prompt are tuned.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Tuning {
    task: FewShot,
    tokens: usize,
    batch: usize,
    adam: AdamConfig,
    steps: u64,
}

/// The recipes, as the command line lists them.
pub fn recipes() -> Vec<Recipe> {
    [SMALL, FULL].map(|size| Recipe { id: size.id, title: size.title, train }).into()
}

/// Tuning of the token after every pair, or of the prefix with that token given.
struct Tune<'a> {
    soft: SoftPrompt,
    /// The token after every pair, if it is the prefix that is tuned.
    eos: Option<&'a [f64]>,
    how: &'a Tuning,
    architecture: &'a Architecture,
    parameters: Vec<f32>,
    seed: u64,
    test: FewShotPrompts,
}

impl Tune<'_> {
    fn prompt(&self) -> Prompt {
        match self.eos {
            None => Prompt { prefix: Vec::new(), eos: self.soft.values() },
            Some(eos) => Prompt { prefix: self.soft.values(), eos: eos.to_vec() },
        }
    }
}

impl Problem for Tune<'_> {
    type Model = SoftPrompt;

    fn model(&mut self) -> &mut SoftPrompt {
        &mut self.soft
    }

    fn gradient(&mut self, step: u64) -> Result<(f64, Gradients<f32, Cpu>)> {
        let seed = rng::of_step(self.seed, step);
        let pairs = self.how.task.sample(self.how.batch, seed)?;
        let slope = prompt_gradient(self.architecture, &self.parameters, &pairs, &self.prompt())?;
        let gradient = if self.eos.is_none() { &slope.eos } else { &slope.prefix };
        Ok((slope.loss, self.soft.gradients(gradient)?))
    }

    fn measure(&mut self, _: u64) -> Result<Vec<(&'static str, f64)>> {
        let slope = prompt_gradient(self.architecture, &self.parameters, &self.test, &self.prompt())?;
        Ok(vec![("test", slope.loss)])
    }

    fn keeps_parameters(&self) -> bool {
        false
    }
}

/// Tunes tokens for `model`, keeping the state in `state`; gives them and the test losses over the tuning.
fn tune(
    size: &Size,
    model: &SequenceTransformer,
    eos: Option<&[f64]>,
    seed: u64,
    name: &str,
    state: &Path,
    settings: &Settings<'_>,
) -> Result<(Vec<f64>, Vec<f64>)> {
    let how = size.tuning(if eos.is_none() { 1 } else { size.prefix() })?;
    let mut problem = Tune {
        soft: SoftPrompt::init(how.tokens, size.dim, seed)?,
        eos,
        how: &how,
        architecture: model.architecture(),
        parameters: model.values(),
        seed,
        test: how.task.sample(256, TEST_SEED)?,
    };
    let trainer = Trainer {
        task: name.to_owned(),
        steps: how.steps,
        schedule: Schedule::Constant,
        record_at: (0..=how.steps).step_by(250).collect(),
        state: Some(state.to_owned()),
        fingerprint: json!({ "tuning": how, "seed": seed, "network": name }),
        save_every: Duration::from_secs(10),
        observer: settings.observer,
    };
    let history = trainer.run(&mut problem, &mut Adam::new(how.adam)?)?;
    Ok((problem.soft.values(), history.measure("test")?.to_vec()))
}

/// Seed of the prompts on which tuning is measured.
const TEST_SEED: u64 = 0x7e57;

fn train(id: &str, settings: &Settings<'_>, options: &TrainOptions) -> Result<PathBuf> {
    let size = shipping::entry(vec![SMALL, FULL], id, |size| size.id)?;
    let mut runs = size.runs()?;
    if let Some(seed) = options.seed {
        runs.retain(|run| run.seed == 0);
        for run in &mut runs {
            run.name = run.name.replace(".s0", &format!(".s{seed}"));
            run.seed = seed;
        }
    }
    let shipment = Shipment::new(id, size.title, &settings.work, settings, options)?;
    let (mut arrays, mut described, mut losses, mut states) =
        (BTreeMap::new(), BTreeMap::new(), BTreeMap::new(), Vec::new());
    for run in &runs {
        let mut state = |part: &str| {
            let path = shipment.state(settings.work.join(format!("{id}.{}.{part}.safetensors", run.name)))?;
            states.push(path.clone());
            Ok::<PathBuf, Error>(path)
        };
        let (model, history) = recipes::train(run, &format!("{id} {}", run.name), Some(&state("network")?), settings)?;
        recipes::add_run(&mut arrays, run, &model, &history)?;
        let mut of = |part: &str, count: usize, eos: Option<&[f64]>| -> Result<Vec<f64>> {
            let task = format!("{id} {} {part}", run.name);
            let (tokens, test) = tune(&size, &model, eos, run.seed, &task, &state(part)?, settings)?;
            arrays.insert(format!("{}.{part}", run.name), Array::f64(&[count, size.dim], tokens.clone())?);
            losses.insert(format!("{}.{part}", run.name), test.last().copied());
            arrays.insert(format!("{}.{part}.test", run.name), Array::f64(&[test.len()], test)?);
            Ok(tokens)
        };
        let eos = of("eos", 1, None)?;
        of("prefix", size.prefix(), Some(&eos))?;
        losses.insert(run.name.clone(), history.measure("test")?.last().copied());
        let network = run.protocol.describe(run.seed);
        described.insert(
            run.name.clone(),
            json!({ "network": network, "eos": size.tuning(1)?, "prefix": size.tuning(size.prefix())? }),
        );
    }
    let manifest = shipment.manifest(described);
    shipment.finish(arrays, manifest, losses, states)
}

/// A pretrained network and the prompts that were tuned for it: none, a token after every pair, and that with a prefix.
pub struct Tuned {
    /// The network.
    pub run: Trained,
    /// The prompts.
    pub prompts: [Prompt; 3],
}

/// The trained `network` of every seed of a size (`"tf"` or `"hybrid"`), with its prompts.
///
/// # Errors
/// [`Error::Unknown`] for another network; [`Error::File`] and [`Error::Corrupt`] for a checkpoint that is not there or
/// damaged.
pub fn load(size: &Size, network: &str, settings: &Settings<'_>) -> Result<Vec<Tuned>> {
    let checkpoint: Checkpoint = shipping::checkpoint(size.id, settings, train)?;
    let of = |run: &Run| -> Result<Tuned> {
        let tokens = |part: &str| Ok(checkpoint.f64(&format!("{}.{part}", run.name), &[0, size.dim])?.1.to_vec());
        let (eos, prefix) = (tokens("eos")?, tokens("prefix")?);
        let with_eos = Prompt { prefix: Vec::new(), eos: eos.clone() };
        let prompts = [Prompt::default(), with_eos, Prompt { prefix, eos }];
        Ok(Tuned { run: recipes::read_run(&checkpoint, run)?, prompts })
    };
    let runs = size.runs()?;
    let wanted: Vec<&Run> = runs.iter().filter(|run| run.name.split('.').next() == Some(network)).collect();
    if wanted.is_empty() {
        return Err(Error::unknown("network", network, size.networks.iter().copied()));
    }
    wanted.into_iter().map(of).collect()
}

/// What the three prompts are called, and how they are drawn.
const PROMPTS: [(&str, Color); 3] =
    [("pairs alone", Color::BLUE), ("with EOS", Color::GREEN), ("with EOS and prefix", Color::RED)];

/// Figure 8: the softmax transformer.
///
/// # Errors
/// As [`load`].
pub fn transformer(settings: &Settings<'_>) -> Result<Reproduction> {
    figure("mesa.fig8", &SMALL, "tf", settings)
}

/// Figure 18: the hybrid.
///
/// # Errors
/// As [`load`].
pub fn hybrid(settings: &Settings<'_>) -> Result<Reproduction> {
    figure("mesa.fig18", &SMALL, "hybrid", settings)
}

/// Figure 8 at the authors' own size.
///
/// # Errors
/// As [`load`].
pub fn full_transformer(settings: &Settings<'_>) -> Result<Reproduction> {
    figure("mesa.fig8-full", &FULL, "tf", settings)
}

/// Of each prompt the label losses of every seed `[3][seeds][pairs]`; those of least squares with spurious and with correct
/// pairs, and of the series of Prop. 2 with spurious ones.
type Curves = ([Vec<Vec<f64>>; 3], [Vec<f64>; 3]);

fn curves(all: &[Tuned], task: &FewShot, settings: &Settings<'_>) -> Result<Curves> {
    let pairs = task.sample(if settings.quick { 512 } else { 4096 }, settings.seed.wrapping_add(83))?;
    let of = |k: usize| -> Result<Vec<Vec<f64>>> {
        let losses = |tuned: &Tuned| {
            let prompt = &tuned.prompts[k];
            pairs.losses(prompt, &tuned.run.model.predict(&pairs.tokens(prompt)?)?)
        };
        all.iter().map(losses).collect()
    };
    let ridge = SequenceLeastSquares { ridge: RIDGE, pairing: Pairing::All };
    let squares = |which| few_shot_losses(&ridge, &pairs, which);
    let series = InverseSeries::authors("linear", Pairing::Dropped)?;
    let series = few_shot_losses(&series, &pairs, FewShotPairs::Spurious)?;
    Ok(([of(0)?, of(1)?, of(2)?], [squares(FewShotPairs::Spurious)?, squares(FewShotPairs::Correct)?, series]))
}

fn figure(id: &'static str, size: &Size, network: &str, settings: &Settings<'_>) -> Result<Reproduction> {
    let Size { dim, tokens, switch, .. } = *size;
    let pairs = size.pairs();
    let name = if network == "tf" { format!("softmax × {}", size.layers) } else { "softmax + mesa".to_owned() };
    let all = load(size, network, settings)?;
    let one = curves(&all, &FewShot::new(dim, pairs)?, settings)?;
    let two = curves(&all, &FewShot::switching(dim, pairs, switch)?, settings)?;
    let i: Vec<usize> = (1..=pairs).collect();
    let panel = |title: &str, (prompts, squares): &Curves| {
        let mut panel = Panel::new(title).x(Axis::linear("pair i"));
        for ((name, color), curves) in PROMPTS.iter().zip(prompts) {
            panel = panel.line(Line::mean(*name, &i, curves).color(*color));
        }
        panel
            .line(Line::new("least squares, spurious pairs too", &i, &squares[0]).color(Color::BLACK).dashed())
            .line(Line::new("least squares, correct pairs", &i, &squares[1]).color(Color::BLACK).dotted())
            .line(Line::new("Prop. 2, spurious pairs too", &i, &squares[2]).color(Color::ORANGE).dashed())
    };
    let mut theirs = Vec::new();
    if size.theirs {
        for ((name, color), key) in PROMPTS.iter().zip(["pairs", "eos", "prefix"]) {
            let curve: Vec<f64> = reference::curve(&format!("fig8a/{key}"))?.into_iter().take(pairs).collect();
            theirs.push(Line::new(format!("paper: {name}"), &i, &curve).color(*color).dotted());
        }
    }
    // The peak of least squares would flatten all other curves.
    let most = one.0.iter().chain(&two.0).flatten().flatten().copied().greatest();
    let axis = || Axis::linear("label loss ½‖y_{i} − f(x_{i})‖²").range(0.0, 1.6 * most);
    let figure = Figure::new(id, "Regression from pairs in context, after training on dynamics alone")
        .caption(format!(
            "{name}, trained on linear dynamics of n = {dim}, T = {tokens}, {} steps of {}, {}, and frozen; prompts x_{{1}}, y_{{1}}, x_{{2}}, … with y = W x, \
             x uniform as in the authors' code. EOS: a token after every pair, tuned; prefix: {} tokens in front, tuned \
             with it. Least squares (ridge {RIDGE}) on every token given the one before it has a peak where it can just \
             fit the spurious pairs (it leaves the axis); the curve that the authors stored as least squares is not that but near the \
             series of Prop. 2 with the newest pair dropped. In B the teacher changes at pair {}; here all prompts have seen \
             the same pairs by then, whereas the authors' code changes it after 80 tokens: 40 pairs without EOS, of which \
             20 are drawn.",
            all[0].run.protocol.steps,
            all[0].run.protocol.batch,
            seeds(all.len()),
            size.prefix(),
            switch + 1
        ))
        .panel(theirs.iter().fold(panel("A: one task", &one).y(axis()), |panel, line| panel.line(line.clone())))
        .panel(panel("B: the task changes", &two).y(axis()).vline(switch as f64 + 0.5, "new W"));
    let [base, eos, prefix] = [over_seeds(&one.0[0]), over_seeds(&one.0[1]), over_seeds(&one.0[2])];
    let squares = &one.1[0];
    let peak = (0..pairs).fold(0, |best, k| if squares[k] > squares[best] { k } else { best });
    let switched = over_seeds(&two.0[0]);
    let middle = dim as f64 / 2.0 + 1.0;
    let claims = Claims::new()
        .at_most(
            format!("{id}.learns"),
            "pairs alone: the label loss of the last pair over that of the first",
            base[pairs - 1] / base[0],
            0.6,
        )
        .within(
            format!("{id}.peak"),
            "least squares with spurious pairs peaks at i = n/2 + 1, where they can just be fitted",
            (peak + 1) as f64,
            middle - 1.0,
            middle + 1.0,
        )
        .at_least(format!("{id}.ascent"), "… above its loss at i = 1 (ratio)", squares[peak] / squares[0], 1.2)
        .at_most(
            format!("{id}.eos"),
            "a tuned EOS token lowers the loss for i > n (ratio of means)",
            mean(&eos[dim..]) / mean(&base[dim..]),
            1.0,
        )
        .at_most(
            format!("{id}.prefix"),
            "a tuned prefix lowers it further for i ≤ n (ratio of means)",
            mean(&prefix[..dim]) / mean(&eos[..dim]),
            1.0,
        )
        .at_least(
            format!("{id}.switch"),
            "pairs alone: with a new W the loss jumps (ratio to the pair before)",
            switched[switch] / switched[switch - 1],
            1.8,
        )
        .at_most(
            format!("{id}.recovers"),
            "… and falls again: the last pair's loss over that at the change",
            switched[pairs - 1] / switched[switch],
            0.7,
        );
    let ascent = base.iter().copied().greatest() / base[0];
    let claims = match theirs.first() {
        Some(paper) => claims
            .at_least(
                format!("{id}.rises"),
                "pairs alone: the loss rises before it falls (greatest over first)",
                ascent,
                1.05,
            )
            .at_most(
                format!("{id}.paper"),
                "pairs alone: the authors' curve (mean gap in ln loss)",
                log_gap(&base, &paper.y),
                0.1,
            ),
        None => claims,
    };
    let config = json!({
        "checkpoint": size.id, "losses": { "pairs": base, "eos": eos, "prefix": prefix, "spurious": squares, "correct": one.1[1], "series": one.1[2] },
        "switched": switched, "ascent_of_pairs_alone": ascent, "switch": switch,
        "pretraining_loss": all.iter().map(|t| t.run.history.measure("test").ok().and_then(|m| m.last().copied())).collect::<Vec<_>>(),
    });
    Ok(Reproduction { figure, claims, config })
}
