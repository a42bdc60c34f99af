//! Figures 5A and 19: layers of softmax attention replaced by linear attention that is trained to give the same output.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dfdx::prelude::{Cpu, Gradients};
use serde_json::json;

use super::depth::shades;
use super::one_layer::mean;
use super::recipes::{self, Protocol, Run, Trained};
use super::{reference, weights};
use crate::experiments::shipping::{self, Shipment};
use crate::experiments::{Recipe, Reproduction, Settings, TrainOptions};
use crate::figure::{Axis, Claims, Extremes, Figure, Line, Panel};
use crate::linalg::Matrix;
use crate::models::SequenceTransformer;
use crate::ops::sequence_transformer::{Architecture, LaneBatch, Layer, Mixer};
use crate::rng;
use crate::tasks::{Dynamics, TokenKind, Trajectories};
use crate::train::{Adam, History, Problem, Schedule, Trainer};
use crate::{Error, Result};

/// A softmax network and the linear layers that are to replace its own, one a layer.
#[derive(Clone)]
struct Pair {
    teacher: Run,
    students: Vec<Run>,
}

/// How the linear layers are trained, the same for all: on the output of the layer that they replace.
const STUDENT_RATE: f64 = 2e-3;

/// Dimensions of Fig. 5A, each with sequences of 4n tokens, and the layers of the networks.
const DIMS: [usize; 3] = [4, 6, 10];
const LAYERS: usize = 7;

fn pair(name: &str, protocol: &Protocol, student_steps: u64, seed: u64) -> Pair {
    let student = |layer: usize| {
        let a = &protocol.architecture;
        let linear = Layer { mixer: Mixer::Linear, ..a.layers[layer] };
        // Layers map residual streams to residual streams.
        let architecture =
            Architecture { input: a.width, embed: false, output: a.width, layers: vec![linear], ..a.clone() };
        let protocol = Protocol { architecture, rate: STUDENT_RATE, decay: 0.0, ..protocol.clone() };
        let protocol = Protocol { schedule: Schedule::Cosine { warmup: 100 }, ..protocol.steps(student_steps) };
        Run { name: format!("{name}-layer{}.s{seed}", layer + 1), protocol, seed }
    };
    let students = (0..protocol.architecture.layers.len()).map(student).collect();
    Pair { teacher: Run { name: format!("{name}.s{seed}"), protocol: protocol.clone(), seed }, students }
}

/// Checkpoint id, title, networks.
type Entry = (&'static str, &'static str, Vec<Pair>);

fn catalogue() -> Result<Vec<Entry>> {
    let seeds = |name: &str, protocol: &Protocol, student_steps: u64| -> Vec<Pair> {
        (0..recipes::SEEDS).map(|seed| pair(name, protocol, student_steps, seed)).collect()
    };
    let embedded = |n: usize| -> Result<Vec<Pair>> {
        let mut protocol = recipes::stack((n, 4 * n), Mixer::Softmax, &[Mixer::Softmax; LAYERS - 1])?;
        protocol.architecture.layers.iter_mut().for_each(|layer| layer.key = 2 * n);
        Ok(seeds(&format!("n{n}"), &protocol.steps(8000), 1500))
    };
    let n = 10;
    let constructed = Protocol {
        architecture: Architecture::constructed(n, vec![Layer::new(Mixer::Softmax, 1, 2 * n); 2]),
        task: Dynamics::linear(n, 4 * n)?,
        tokens: TokenKind::Constructed,
        ..recipes::stack((n, 4 * n), Mixer::Softmax, &[])?
    };
    Ok(vec![
        (
            "mesa-linearised",
            "7 softmax layers, n = 4, 6, 10, T = 4n, and a linear layer in place of each",
            DIMS.into_iter().map(embedded).collect::<Result<Vec<_>>>()?.concat(),
        ),
        (
            "mesa-distilled",
            "2 softmax layers of one head on constructed tokens, n = 10, T = 40, and a linear layer in place of each",
            seeds("constructed", &constructed.steps(1500), 1000),
        ),
    ])
}

/// The recipes, as the command line lists them.
pub fn recipes() -> Vec<Recipe> {
    // The catalogue's sizes are constants; tests make it.
    let entries = catalogue().unwrap_or_default();
    entries.into_iter().map(|(id, title, _)| Recipe { id, title, train }).collect()
}

/// A layer in the making: the loss is that of its output against the output of the layer that it replaces.
struct Distillation<'a> {
    teacher: &'a SequenceTransformer,
    layer: usize,
    student: SequenceTransformer,
    run: &'a Run,
    test: [LaneBatch<f32>; 2],
}

/// What layer `layer` of `teacher` reads on `sequences`, and what it gives.
fn streams(
    teacher: &SequenceTransformer,
    layer: usize,
    tokens: TokenKind,
    sequences: &Trajectories,
) -> Result<[LaneBatch<f32>; 2]> {
    let all = teacher.truncated(layer + 1)?.residuals(&sequences.inputs(tokens)?)?;
    let batch = |k: usize| LaneBatch::new(sequences.len(), sequences.tokens(), teacher.architecture().width, &all[k]);
    Ok([batch(layer)?, batch(layer + 1)?])
}

impl Problem for Distillation<'_> {
    type Model = SequenceTransformer;

    fn model(&mut self) -> &mut SequenceTransformer {
        &mut self.student
    }

    fn gradient(&mut self, step: u64) -> Result<(f64, Gradients<f32, Cpu>)> {
        let protocol = &self.run.protocol;
        // Other sequences than the teacher was trained on.
        let sequences = protocol.task.sample(protocol.batch, rng::of_step(self.run.seed, (1 << 32) + step))?;
        let [input, output] = streams(self.teacher, self.layer, protocol.tokens, &sequences)?;
        self.student.loss_and_gradient(&input, &output, None)
    }

    /// The loss as a share of what the layer adds.
    fn measure(&mut self, _: u64) -> Result<Vec<(&'static str, f64)>> {
        let [input, output] = &self.test;
        let (x, y, made) = (input.values(), output.values(), self.student.predict(input)?);
        let square = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        Ok(vec![("test", square(&made, &y) / square(&x, &y).max(f64::MIN_POSITIVE))])
    }

    fn keeps_parameters(&self) -> bool {
        false
    }
}

fn distil(
    run: &Run,
    teacher: &SequenceTransformer,
    layer: usize,
    task: &str,
    state: &Path,
    settings: &Settings<'_>,
) -> Result<(SequenceTransformer, History)> {
    let protocol = &run.protocol;
    let test = streams(teacher, layer, protocol.tokens, &protocol.task.sample(128, 0x7e57)?)?;
    let student = SequenceTransformer::init(protocol.architecture.clone(), protocol.init, run.seed)?;
    let mut problem = Distillation { teacher, layer, student, run, test };
    let trainer = Trainer {
        task: task.to_owned(),
        steps: protocol.steps,
        schedule: protocol.schedule,
        record_at: (0..=protocol.steps).step_by(protocol.record_every as usize).collect(),
        state: Some(state.to_owned()),
        fingerprint: protocol.describe(run.seed),
        save_every: Duration::from_secs(10),
        observer: settings.observer,
    };
    let history = trainer.run(&mut problem, &mut Adam::new(protocol.adam())?)?;
    Ok((problem.student, history))
}

fn train(id: &str, settings: &Settings<'_>, options: &TrainOptions) -> Result<PathBuf> {
    let (_, title, mut pairs) = shipping::entry(catalogue()?, id, |e| e.0)?;
    if let Some(seed) = options.seed {
        pairs.retain(|pair| pair.teacher.seed == 0);
        for run in pairs.iter_mut().flat_map(|p| std::iter::once(&mut p.teacher).chain(&mut p.students)) {
            run.name = run.name.replace(".s0", &format!(".s{seed}"));
            run.seed = seed;
        }
    }
    let shipment = Shipment::new(id, title, &settings.work, settings, options)?;
    let (mut arrays, mut described, mut losses, mut states) =
        (BTreeMap::new(), BTreeMap::new(), BTreeMap::new(), Vec::new());
    for Pair { teacher, students } in &pairs {
        let mut finish = |run: &Run, state: PathBuf, model: &SequenceTransformer, history: &History| {
            recipes::add_run(&mut arrays, run, model, history)?;
            described.insert(run.name.clone(), run.protocol.describe(run.seed));
            losses.insert(run.name.clone(), history.measure("test")?.last().copied());
            states.push(state);
            Ok::<(), Error>(())
        };
        let place = |run: &Run| shipment.state(settings.work.join(format!("{id}.{}.safetensors", run.name)));
        let state = place(teacher)?;
        let task = format!("{id} {}", teacher.name);
        let (model, history) = recipes::train(teacher, &task, Some(&state), settings)?;
        finish(teacher, state, &model, &history)?;
        for (layer, student) in students.iter().enumerate() {
            let state = place(student)?;
            let (linear, history) =
                distil(student, &model, layer, &format!("{id} {}", student.name), &state, settings)?;
            finish(student, state, &linear, &history)?;
        }
    }
    let manifest = shipment.manifest(described);
    shipment.finish(arrays, manifest, losses, states)
}

/// The trained networks of checkpoint `id`, `mesa-linearised` or `mesa-distilled`, each with its linear layers: shipped, or
/// trained now if the settings ask for it.
///
/// # Errors
/// As [`recipes::load`].
pub fn load(id: &str, settings: &Settings<'_>) -> Result<Vec<(Trained, Vec<Trained>)>> {
    let (_, _, pairs) = shipping::entry(catalogue()?, id, |e| e.0)?;
    let checkpoint = shipping::checkpoint(id, settings, train)?;
    let read = |run: &Run| recipes::read_run(&checkpoint, run);
    pairs.iter().map(|p| Ok((read(&p.teacher)?, p.students.iter().map(read).collect::<Result<_>>()?))).collect()
}

/// `model` with layer `layer` replaced by the one layer of `linear`.
///
/// # Errors
/// [`Error::Invalid`] for a layer that there is not; [`Error::Shape`] if the layers' shapes differ.
pub fn replaced(
    model: &SequenceTransformer,
    layer: usize,
    linear: &SequenceTransformer,
) -> Result<SequenceTransformer> {
    let mut architecture = model.architecture().clone();
    let place = architecture.layers.get_mut(layer).zip(linear.architecture().layers.first());
    let (place, new) = place.ok_or_else(|| Error::invalid("layer", layer, "one of the model"))?;
    *place = *new;
    let mut out = SequenceTransformer::from_values(architecture, &model.values::<f32>())?;
    for name in ["query", "key", "value", "out"] {
        out.set_matrix(&format!("layer{layer}.{name}"), &linear.matrix(&format!("layer0.{name}"))?)?;
    }
    Ok(out)
}

fn loss(model: &SequenceTransformer, run: &Trained, test: &Trajectories) -> Result<f64> {
    Ok(mean(&test.losses(&model.predict(&run.tokens(test)?)?)?))
}

/// Figure 5A: the loss after one layer has become linear, over the loss before.
///
/// # Errors
/// As [`recipes::load`].
pub fn dimension(settings: &Settings<'_>) -> Result<Reproduction> {
    let networks = load("mesa-linearised", settings)?;
    let found = networks.len() / DIMS.len();
    // [layer][seed][dimension]
    let mut each = vec![vec![Vec::new(); found]; LAYERS];
    let mut shares = each.clone();
    for (k, (run, linear)) in networks.iter().enumerate() {
        let test = run.protocol.task.sample(if settings.quick { 128 } else { 1024 }, settings.seed.wrapping_add(80))?;
        let before = loss(&run.model, run, &test)?;
        for (l, linear) in linear.iter().enumerate() {
            each[l][k % found].push(loss(&replaced(&run.model, l, &linear.model)?, run, &test)? / before);
            shares[l][k % found].push(linear.history.measure("test")?.last().copied().unwrap_or(f64::NAN));
        }
    }
    let mut panel =
        Panel::new("").x(Axis::linear("dimension n").ticks(DIMS)).y(Axis::log("loss after linearising / loss before"));
    // [layer][dimension], means over the seeds
    let mut ratios = Vec::new();
    for ((l, ratio), color) in each.iter().enumerate().zip(shades(LAYERS)) {
        let line = Line::mean(format!("layer {}", l + 1), DIMS, ratio).color(color).markers();
        ratios.push(line.y.clone());
        panel = panel.line(line);
        if [1, 2, LAYERS].contains(&(l + 1)) {
            let theirs = reference::curve(&format!("fig5a/layer{}", l + 1))?;
            let name = format!("paper: layer {}", l + 1);
            panel = panel.line(Line::new(name, DIMS, &theirs[..DIMS.len()]).color(color).dotted());
        }
    }
    let figure = Figure::new("mesa.fig5a", "What a linear layer costs in the place of a softmax layer")
        .caption(format!(
            "Seven softmax layers on plain tokens, T = 4n, four heads of 2n channels, {}, without tuning; each layer in turn gives way \
             to linear attention of the same shape that is trained on that layer's output. Dotted: the authors, layers 1, 2 and 7.",
            super::depth::seeds(found)
        ))
        .panel(panel.hline(1.0, "unchanged"));
    let later = |k: usize| mean(&ratios[1..].iter().map(|r| r[k]).collect::<Vec<_>>());
    let margin = |k: usize| ratios[0][k] / ratios[1..].iter().map(|r| r[k]).greatest();
    let least = |values: Vec<f64>| values.into_iter().least();
    let ends = DIMS.len() - 1;
    let claims = Claims::new()
        .at_least(
            "mesa.fig5a.first",
            "layer 1 is not linear: loss after over loss before (least over n)",
            least(ratios[0].clone()),
            1.5,
        )
        .at_least(
            "mesa.fig5a.most",
            "no other layer suffers more than layer 1 (ratio, least over n)",
            least((0..DIMS.len()).map(margin).collect()),
            1.0,
        )
        .at_most("mesa.fig5a.later", "the layers after it are nearly linear at n = 10 (mean ratio)", later(ends), 1.3)
        .at_most("mesa.fig5a.falls", "… and more so than at n = 4 (ratio of the two)", later(ends) / later(0), 1.0);
    let config = json!({ "checkpoint": "mesa-linearised", "dims": DIMS, "ratios": ratios, "unexplained": shares });
    Ok(Reproduction { figure, claims, config })
}

fn cosine(a: &Matrix, b: &Matrix) -> f64 {
    a.dot(b) / (a.norm() * b.norm())
}

/// Figure 19: the weights of softmax layers beside those of the linear layers in their place.
///
/// # Errors
/// As [`recipes::load`].
pub fn weights(settings: &Settings<'_>) -> Result<Reproduction> {
    let networks = load("mesa-distilled", settings)?;
    let mut figure =
        Figure::new("mesa.fig19", "The weights of a softmax layer and of its linear replacement").columns(4);
    // Of every seed, layer by layer and product by product; loss after a layer's replacement over the loss before.
    let (mut cosines, mut losses, mut after, mut table) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (seed, (run, linear)) in networks.iter().enumerate() {
        let test = run.protocol.task.sample(if settings.quick { 128 } else { 1024 }, settings.seed.wrapping_add(81))?;
        let before = loss(&run.model, run, &test)?;
        losses.push(before);
        let all = weights::products(&run.model)?;
        for (l, linear) in linear.iter().enumerate() {
            after.push(loss(&replaced(&run.model, l, &linear.model)?, run, &test)? / before);
            let theirs = weights::products(&linear.model)?;
            for (k, product) in ["W_{K}ᵀW_{Q}", "P W_{V}"].into_iter().enumerate() {
                let (softmax, linear) = (&all[l][0][k], &theirs[0][0][k]);
                cosines.push(cosine(softmax, linear).abs());
                if seed > 0 {
                    continue;
                }
                table.push(format!("layer {}, {product} {:.2}", l + 1, cosines[cosines.len() - 1]));
                for (kind, m) in [("softmax", softmax), ("linear", linear)] {
                    let range = m.as_slice().iter().fold(1e-6_f64, |r, v| r.max(v.abs()));
                    let title = format!("{kind} {}, {product}", l + 1);
                    figure = figure.panel(super::one_layer::product_panel(&title, m, range));
                }
            }
        }
    }
    let figure = figure.caption(format!(
        "Two softmax layers of one head on constructed tokens, n = 10, T = 40 (the paper: n = 20, T = 80), each beside linear attention \
         trained from random weights on its output; one seed of {}, every map with its own range. |cos| between them: {}.",
        networks.len(),
        table.join("; ")
    ));
    let claims = Claims::new().at_least(
        "mesa.fig19.cosine",
        "the products of both are alike: mean |cos| over seeds, layers and products",
        mean(&cosines),
        0.7,
    );
    let config =
        json!({ "checkpoint": "mesa-distilled", "cosines": cosines, "loss": losses, "loss_ratio_after": after });
    Ok(Reproduction { figure, claims, config })
}
