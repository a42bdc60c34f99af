//! `cargo lab bench train`: a whole training step (data, forward, backward, clipping, Adam) of the transformers and LSTMs
//! that the figures train, in f32, beside PyTorch eager, torch.compile and `newton`'s authors' model on the same machine; how
//! much of the machine's arithmetic it uses; and how its cost grows.

use std::time::{Duration, Instant};

use clap::Args;
use incontext::models::{
    Gpt2, Gpt2Config, Init, Lstm, LstmConfig, Parameters, Positions, SequenceModel, SequenceTransformer,
};
use incontext::ops::sequence::Architecture;
use incontext::ops::sequence_transformer::{Architecture as Stack, LaneBatch, Layer, Mixer};
use incontext::tasks::{Covariance, LinearRegression, Sequences, WeightPrior};
use incontext::train::{Adam, AdamConfig, Ahead, Clip, Stateful};
use serde_json::{Value, json};

use super::floor::{flops, peak_mb};
use super::peer::{Peer, same_losses};
use super::{Row, median, show};
use crate::bars::Step;
use crate::house::House;
use crate::setup::{self, peers};
use crate::trouble::{Outcome, Trouble};

/// Against what, how often, and how to show it.
#[derive(Args, Debug)]
pub struct Options {
    /// Measure PyTorch beside it, alternating; installs it into .lab/peers, a large download
    #[arg(long)]
    peers: bool,
    /// Leave torch.compile out: it compiles for minutes
    #[arg(long)]
    eager_only: bool,
    /// Measure the step of S called from a notebook's cell beside it
    #[arg(long)]
    notebook: bool,
    /// Configurations, comma-separated: S, M, L, LSTM, attention, P
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Runs of each side
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// The rows as JSON, and nothing else on standard output
    #[arg(long)]
    json: bool,
}

/// A run repeats the step for at least this long.
const RUN: Duration = Duration::from_millis(400);
/// The most memory that is wanted at the paper's own size, MB.
const MEMORY_GOAL: f64 = 1500.0;

/// What is trained.
#[derive(Clone)]
enum Model {
    Transformer(Gpt2Config),
    /// Attention and nothing else: what `mesa` trains, with the op that has sixteen sequences in a register.
    Attention(Gpt2Config),
    Recurrent(LstmConfig),
}

/// A configuration, and what is wanted of it.
#[derive(Clone)]
struct Case {
    name: &'static str,
    model: Model,
    dim: usize,
    context: usize,
    batch: usize,
    /// The least share of the arithmetic peak.
    share: Option<f64>,
    /// The least ratios to eager PyTorch and to torch.compile.
    goals: [Option<f64>; 2],
}

/// The configurations, the paper's own last: it needs the most memory.
fn cases() -> Vec<Case> {
    let gpt2 = |dim, layers, width, heads| {
        let config = Gpt2Config { inputs: dim, layers, ..Gpt2Config::default() };
        Model::Transformer(config.with_width(width, heads))
    };
    let case = |name, model, [dim, context, batch]: [usize; 3], share, eager, compiled| Case {
        name,
        model,
        dim,
        context,
        batch,
        share,
        goals: [eager, compiled],
    };
    let recurrent = Model::Recurrent(LstmConfig { inputs: 5, outputs: 1, layers: 3, width: 64 });
    let attention = Gpt2Config {
        inputs: 40,
        layers: 7,
        width: 40,
        heads: 4,
        key: 20,
        mlp: 0,
        positions: Positions::None,
        layer_norm: false,
        biases: false,
        read: false,
        ..Gpt2Config::default()
    };
    vec![
        case("S", gpt2(5, 8, 64, 4), [5, 10, 64], Some(0.45), Some(3.3), Some(2.0)),
        case("M", gpt2(10, 8, 64, 4), [10, 20, 64], Some(0.50), Some(2.5), Some(1.6)),
        case("L", gpt2(20, 12, 64, 4), [20, 40, 64], Some(0.55), Some(2.3), Some(1.6)),
        case("LSTM", recurrent, [5, 10, 64], None, Some(3.0), None),
        case("attention", Model::Attention(attention), [40, 24, 256], None, Some(4.0), Some(2.0)),
        case("P", gpt2(20, 12, 256, 8), [20, 40, 64], Some(0.70), Some(1.2), Some(1.1)),
    ]
}

/// How the peer has the model.
#[derive(Clone, Copy, PartialEq)]
enum By {
    /// As one writes it in PyTorch today.
    Eager,
    /// That, through `torch.compile`.
    Compile,
    /// As `newton`'s authors have it.
    Authors,
}

const BY: [By; 3] = [By::Eager, By::Compile, By::Authors];

impl By {
    /// What the peer's program calls it.
    fn name(self) -> &'static str {
        match self {
            By::Eager => "eager",
            By::Compile => "compile",
            By::Authors => "authors",
        }
    }
}

impl Case {
    /// Whether there is such a peer of it: the authors' transformers are GPT-2.
    fn has(&self, by: By) -> bool {
        by != By::Authors || matches!(self.model, Model::Transformer(_))
    }

    fn tokens(&self) -> usize {
        2 * (self.context + 1)
    }

    /// Floating-point operations of a step: forward, and twice as many backward, without a gradient in the tokens; those that
    /// the loss depends on, and no others. Of causal attention the half that is not masked; no token after the last
    /// prediction, and behind the last attention the tokens with a prediction alone.
    fn operations(&self) -> f64 {
        let predicted = self.context + 1;
        let needed = self.tokens() - 1;
        let (multiply_adds, in_tokens) = match &self.model {
            Model::Transformer(c) => {
                let inner = c.heads * c.key;
                let [qkv, behind] = [3 * c.width * inner, c.width * inner + 2 * c.width * c.mlp];
                let (read_in, read_out) = (needed * c.width * c.inputs, predicted * c.width);
                let blocks = c.layers * needed * qkv + ((c.layers - 1) * needed + predicted) * behind;
                (read_in + blocks + c.layers * inner * needed * (needed + 1) + read_out, read_in)
            }
            Model::Attention(c) => {
                let (inner, below) = (c.heads * c.key, c.layers - 1);
                let projection = c.width * inner;
                let layers = below * (needed * 4 * projection + inner * needed * (needed + 1));
                // The last layer: keys and values of all tokens; queries, attention and the channel that is read of every
                // other one. Token 2i of those sees 2i + 1.
                let last = (2 * needed + predicted) * projection + inner * predicted * (2 * predicted + 1);
                (layers + last, 3 * needed * projection)
            }
            Model::Recurrent(c) => {
                // The read-in and the first layer's map of it are one map. The first token's states are zero.
                let gates = 4 * c.width;
                let from_tokens = needed * gates * c.inputs;
                let between = (c.layers - 1) * needed * gates * c.width + c.layers * (needed - 1) * gates * c.width;
                (from_tokens + between + predicted * c.width, from_tokens)
            }
        };
        2.0 * (self.batch * (3 * multiply_adds - in_tokens)) as f64
    }

    fn task(&self) -> Outcome<LinearRegression> {
        Ok(LinearRegression::new(Covariance::identity(self.dim)?, self.context, WeightPrior::Isotropic)?)
    }

    fn training(&self) -> Outcome<Box<dyn Training + Send>> {
        Ok(match &self.model {
            Model::Transformer(config) => Box::new(Running::new(Gpt2::init(config.clone(), Init::FanIn, 0)?)?),
            Model::Attention(config) => Box::new(OnLanes::new(config)?),
            Model::Recurrent(config) => Box::new(Running::new(Lstm::init(config.clone(), 0)?)?),
        })
    }

    /// The model as the peer is told it.
    fn described(&self) -> Value {
        match &self.model {
            Model::Transformer(c) | Model::Attention(c) => json!({
                "kind": "transformer", "inputs": c.inputs, "outputs": c.outputs, "layers": c.layers, "width": c.width,
                "heads": c.heads, "key": c.key, "mlp": c.mlp, "norm": c.layer_norm, "bias": c.biases, "read": c.read,
                "positions": if let Positions::Learned(count) = c.positions { count } else { 0 },
            }),
            Model::Recurrent(c) => json!({
                "kind": "lstm", "inputs": c.inputs, "outputs": c.outputs, "layers": c.layers, "width": c.width,
            }),
        }
    }
}

/// A model in training.
trait Training {
    /// One step on these sequences; the loss before it.
    fn step(&mut self, sequences: &Sequences) -> Outcome<f64>;
    /// All parameters.
    fn values(&self) -> Vec<f32>;
}

fn adam() -> Outcome<Adam> {
    Ok(Adam::new(AdamConfig { rate: 1e-3, clip: Clip::Global(1.0), ..AdamConfig::default() })?)
}

struct Running<C> {
    model: SequenceModel<C>,
    adam: Adam,
}

impl<C: Architecture> Running<C> {
    fn new(model: SequenceModel<C>) -> Outcome<Self> {
        Ok(Running { model, adam: adam()? })
    }
}

struct OnLanes {
    model: SequenceTransformer,
    adam: Adam,
}

impl OnLanes {
    fn new(config: &Gpt2Config) -> Outcome<Self> {
        let layer = Layer::new(Mixer::Softmax, config.heads, config.key);
        let width = config.width;
        let layers = vec![layer; config.layers];
        let architecture =
            Stack { input: config.inputs, width, embed: false, output: config.outputs, layers, clip: None };
        let model = SequenceTransformer::init(architecture, 0.05, 0)?;
        Ok(OnLanes { model, adam: adam()? })
    }
}

impl Training for OnLanes {
    fn step(&mut self, sequences: &Sequences) -> Outcome<f64> {
        let (batch, length) = (sequences.batch(), sequences.length());
        let count = sequences.weights().len();
        // A prediction every `every` tokens; the others have no target and no weight.
        let every = length / count;
        let mut targets = vec![0.0_f32; batch * length];
        for (b, of_sequence) in sequences.targets().chunks(count).enumerate() {
            of_sequence.iter().enumerate().for_each(|(i, y)| targets[b * length + every * i] = *y);
        }
        // The op's loss is half of the mean over all tokens.
        let scale = 2.0 * length as f64;
        let mut weights = vec![0.0; length];
        sequences.weights().iter().enumerate().for_each(|(i, w)| weights[every * i] = scale * w);
        let tokens = LaneBatch::new(batch, length, sequences.inputs(), sequences.tokens())?;
        let targets = LaneBatch::new(batch, length, 1, &targets)?;
        let (loss, gradients) = self.model.loss_and_gradient(&tokens, &targets, Some(&weights))?;
        self.adam.step(&mut self.model, gradients)?;
        Ok(loss)
    }

    /// In the peer's order: of each layer W_qkv and P, inputs by rows.
    fn values(&self) -> Vec<f32> {
        let values: Vec<f32> = self.model.values();
        let architecture = self.model.architecture();
        let slots = architecture.slots();
        let mut ordered = Vec::with_capacity(values.len());
        for layer in slots.chunks(4) {
            for group in [&layer[..3], &layer[3..]] {
                for input in 0..group[0].columns {
                    for slot in group {
                        ordered.extend((0..slot.rows).map(|row| values[slot.at + row * slot.columns + input]));
                    }
                }
            }
        }
        ordered
    }
}

impl<C: Architecture> Training for Running<C>
where
    SequenceModel<C>: Parameters,
{
    fn step(&mut self, sequences: &Sequences) -> Outcome<f64> {
        let (loss, gradients) = self.model.loss_and_gradient(sequences)?;
        self.adam.step(&mut self.model, gradients)?;
        Ok(loss)
    }

    fn values(&self) -> Vec<f32> {
        self.model.values()
    }
}

/// Measures, alternating between us and the peers.
pub fn run(house: &House, options: &Options) -> Outcome<u8> {
    let chosen: Vec<Case> = cases().into_iter().filter(|c| wanted(options, c.name)).collect();
    if let Some(unknown) = options.only.iter().find(|name| !cases().iter().any(|c| c.name == name.as_str())) {
        return Err(Trouble::usage(format!("no configuration is called '{unknown}'"))
            .mend("choose among S, M, L, LSTM, attention, P"));
    }
    let start = || Peer::start(&peers::ensure(house)?.program, include_str!("../../../benches/peers/train.py"));
    // A process each, so that each keeps its model between the alternating runs.
    let mut peers = Vec::new();
    for by in BY.iter().filter(|by| options.peers && !(options.eager_only && **by == By::Compile)) {
        peers.push((*by, start()?));
    }
    let (mut rows, mut notes) = (Vec::new(), vec![String::new()]);
    for case in &chosen {
        let step = Step::start(&format!("Training steps of {}", case.name));
        let mut worst: Option<f64> = None;
        for (by, peer) in peers.iter_mut().filter(|(by, _)| *by != By::Compile && case.has(*by)) {
            worst = Some(agreement(case, *by, peer)?.max(worst.unwrap_or(0.0)));
        }
        let mut peaks = Vec::new();
        let (ours, theirs) = measure(case, options.runs, &mut peers, || peaks.push(flops()))?;
        let peak = median(&peaks);
        let row = |name, peer_ms, goal| Row { name, ours_ms: ours, peer_ms, goal, goal_ms: None };
        if theirs.is_empty() {
            rows.push(row(case.name.into(), None, case.goals[0]));
        }
        for (by, peer_ms) in &theirs {
            let (name, goal) = match by {
                By::Eager => (case.name.into(), case.goals[0]),
                By::Compile => (format!("{}, torch.compile", case.name), case.goals[1]),
                By::Authors => (format!("{}, the authors' model", case.name), None),
            };
            rows.push(row(name, Some(*peer_ms), goal));
        }
        let floor_ms = 1e3 * case.operations() / peak;
        let share = floor_ms / ours;
        let verdict = case.share.map_or(String::new(), |least| {
            let word = if share >= least { "reached" } else { "MISSED" };
            format!(" (goal {:.0} %: {word})", 100.0 * least)
        });
        // What the best program could be: at the peak throughout, with nothing besides the model's operations.
        let eager = theirs.iter().find(|(by, _)| *by == By::Eager);
        let limit = eager.map(|(_, ms)| format!("; {:.1}x eager at most", ms / floor_ms));
        let words = worst.map_or(String::new(), |a| format!("; losses as PyTorch's to {a:.0e}"));
        let flop = case.operations() / 1e9;
        notes.push(format!(
            "  {:9}  {flop:6.2} GFLOP a step: {:.0} % of the arithmetic peak of {:.0} GFLOP/s{verdict}{}{words}",
            case.name,
            100.0 * share,
            peak / 1e9,
            limit.unwrap_or_default()
        ));
        step.done();
    }
    if let Some(memory) = peak_mb().filter(|_| wanted(options, "P")) {
        let verdict = if memory < MEMORY_GOAL { "reached" } else { "MISSED" };
        notes.push(format!("Peak memory of this process: {memory:.0} MB (goal < {MEMORY_GOAL:.0} MB: {verdict})."));
    }
    if options.notebook {
        let step = Step::start("The step of S in a notebook's cell");
        notes.push(in_a_cell(house, options.runs)?);
        step.done();
    }
    if wanted(options, "S") {
        notes.extend(growth(options.runs)?);
    }
    show(&rows, "PyTorch", options.json);
    for note in notes {
        if options.json { eprintln!("{note}") } else { println!("{note}") }
    }
    Ok(0)
}

fn wanted(options: &Options, name: &str) -> bool {
    options.only.is_empty() || options.only.iter().any(|only| only == name)
}

/// Milliseconds of a step: ours, and those of the peers that have this model. `beside` is called before each of our runs.
fn measure(
    case: &Case,
    runs: u32,
    peers: &mut [(By, Peer)],
    mut beside: impl FnMut(),
) -> Outcome<(f64, Vec<(By, f64)>)> {
    let task = case.task()?;
    let mut training = case.training()?;
    let (mut seed, mut ahead) = (0, Ahead::default());
    let draw = |seed: u64| task.sample(case.batch, seed)?.interleaved();
    let mut step = || -> Outcome<()> {
        seed += 1;
        ahead.with(seed, draw, |sequences| training.step(sequences).map(drop))?
    };
    step()?;
    let mut theirs = Vec::new();
    for (by, peer) in peers.iter_mut().filter(|(by, _)| case.has(*by)) {
        let order = json!({ "model": case.described(), "d": case.dim, "n": case.context, "batch": case.batch,
            "by": by.name() });
        peer.ask(&json!({ "open": order }))?;
        theirs.push((*by, peer, Vec::new()));
    }
    let mut ours = Vec::new();
    for _ in 0..runs {
        beside();
        // The median of its steps: on a virtual machine some steps wait for others' work, on either side.
        // Inside the thread pool, as a trainer's steps are.
        let steps = rayon::scope(|_| -> Outcome<Vec<f64>> {
            let (start, mut steps) = (Instant::now(), Vec::new());
            while steps.is_empty() || start.elapsed() < RUN {
                let begin = Instant::now();
                step()?;
                steps.push(1e3 * begin.elapsed().as_secs_f64());
            }
            Ok(steps)
        })?;
        ours.push(median(&steps));
        for (_, peer, times) in &mut theirs {
            times.push(peer.milliseconds(&json!({ "steps": { "seconds": RUN.as_secs_f64() } }))?);
        }
    }
    Ok((median(&ours), theirs.into_iter().map(|(by, _, times)| (by, median(&times))).collect()))
}

/// The least share of its speed that a step has in a notebook.
const NOTEBOOK_GOAL: f64 = 0.9;

/// How fast the step of S is in a cell of the lab's kernel, beside this process, alternating.
fn in_a_cell(house: &House, runs: u32) -> Outcome<String> {
    let ready = setup::all(house)?;
    let mut notebook = Peer::notebook(house, &ready.python.program, include_str!("cell.py"))?;
    notebook.ask(&json!({ "open": { "cwd": house.root().join("notebooks") } }))?;
    let case = cases().swap_remove(0);
    let mut ratios = Vec::new();
    for _ in 0..runs {
        let before = measure(&case, 1, &mut [], || ())?.0;
        let cell = notebook.milliseconds(&json!({ "steps": { "seconds": RUN.as_secs_f64() } }))?;
        let after = measure(&case, 1, &mut [], || ())?.0;
        ratios.push(0.5 * (before + after) / cell);
    }
    let share = median(&ratios);
    let verdict = if share >= NOTEBOOK_GOAL { "reached" } else { "MISSED" };
    Ok(format!(
        "S from a notebook's cell: {:.0} % of the command line's speed (goal {:.0} %: {verdict})",
        100.0 * share,
        100.0 * NOTEBOOK_GOAL
    ))
}

/// Steps over which the two sides' losses are compared.
const CHECK_STEPS: usize = 3;

/// The greatest relative difference of the two sides' losses over some steps from the same weights on the same prompts.
///
/// # Errors
/// If they differ by more than rounding explains.
fn agreement(case: &Case, by: By, peer: &mut Peer) -> Outcome<f64> {
    const TOLERANCE: f64 = 1e-3;
    let sequences = case.task()?.sample(4, 1)?.interleaved()?;
    let mut training = case.training()?;
    let order = json!({ "losses": {
        "model": case.described(), "by": by.name(), "values": training.values(), "tokens": sequences.tokens(),
        "targets": sequences.targets(), "batch": sequences.batch(), "steps": CHECK_STEPS,
    } });
    let answer = peer.ask(&order)?;
    let ours: Vec<f64> = (0..CHECK_STEPS).map(|_| training.step(&sequences)).collect::<Outcome<_>>()?;
    same_losses(&answer, &ours, TOLERANCE)
}

/// How a step's time grows with batch, layers and tokens: fitted exponents, beside those of the operations.
fn growth(runs: u32) -> Outcome<Vec<String>> {
    let base = cases().swap_remove(0);
    let scaled = |what: usize, factor: usize| -> Case {
        let mut case = base.clone();
        match (what, &mut case.model) {
            (0, _) => case.batch *= factor,
            (1, Model::Transformer(config)) => config.layers *= factor,
            _ => case.context = factor * (base.context + 1) - 1,
        }
        case
    };
    let mut notes = vec!["Growth of S by factors of 1, 2 and 4, as fitted exponents of the factor:".to_owned()];
    for (what, name) in ["batch", "layers", "tokens"].iter().enumerate() {
        let cases = [1, 2, 4].map(|factor| scaled(what, factor));
        let mut times = Vec::new();
        for case in &cases {
            times.push(measure(case, runs, &mut [], || ())?.0);
        }
        let operations: Vec<f64> = cases.iter().map(Case::operations).collect();
        notes.push(format!(
            "  {name:7} time {:.2}, operations {:.2} ({:.1}, {:.1}, {:.1} ms)",
            exponent(&times),
            exponent(&operations),
            times[0],
            times[1],
            times[2]
        ));
    }
    Ok(notes)
}

/// The slope of log2 of three values at factors 1, 2 and 4.
fn exponent(values: &[f64]) -> f64 {
    0.5 * (values[2] / values[0]).log2()
}

#[cfg(test)]
mod tests {
    use super::{cases, exponent};

    #[test]
    fn operations_are_those_that_can_be_counted_by_hand() {
        let s = &cases()[0];
        // 12 width² a layer for each of 21 tokens, of which 10 have no prediction and leave the last layer before 9 width²; 231
        // pairs of tokens in two products of a layer; what reads in and out.
        let matrices = f64::from(12 * 64 * 64 * (8 * 21) - 9 * 64 * 64 * 10);
        // Forward, gradients in what a product reads and in its weights; none in the tokens.
        let inside = matrices + f64::from(8 * 231 * 2 * 64 + 11 * 64);
        assert_eq!(s.operations(), 2.0 * 64.0 * (3.0 * inside + 2.0 * f64::from(21 * 5 * 64)));
        let attention = cases().into_iter().find(|c| c.name == "attention").unwrap();
        // Six layers of four 40 x 80 matrices for 49 tokens and 1225 pairs in two products. In the last, two matrices for
        // 49 tokens, one for 25, 1 + 3 + … + 49 = 625 pairs, and one row of 80.
        let layers = f64::from(6 * (4 * 3200 * 49 + 2 * 80 * 1225));
        let last = f64::from(3200 * (2 * 49 + 25) + 2 * 80 * 625 + 80 * 25);
        assert_eq!(attention.operations(), 2.0 * 256.0 * (3.0 * (layers + last) - f64::from(3 * 3200 * 49)));
        let lstm = cases().into_iter().find(|c| c.name == "LSTM").unwrap();
        // 256 gates: two layers read 64 units at 21 tokens, three their own 64 of 20, the first one 5 entries; 11 predictions.
        let inside = f64::from(256 * 64 * (2 * 21 + 3 * 20) + 11 * 64);
        assert_eq!(lstm.operations(), 2.0 * 64.0 * (3.0 * inside + 2.0 * f64::from(256 * 5 * 21)));
        assert!((exponent(&[3.0, 6.0, 12.0]) - 1.0).abs() < 1e-12);
    }
}
