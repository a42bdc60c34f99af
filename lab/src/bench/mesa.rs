//! `cargo lab bench mesa`: one training step of a mesa layer (loss, gradient, Adam) at the paper's size, n = 10, four heads
//! of 20 channels, batch 64, against the length of the sequences, beside the same layer in PyTorch eager, the faster of two
//! formulations.

use clap::Args;
use incontext::experiments::mesa::recipes::{self, Protocol};
use incontext::models::SequenceTransformer;
use incontext::tasks::Trajectories;
use incontext::train::{Adam, AdamConfig, Stateful};
use serde_json::json;

use super::peer::{Peer, same_losses};
use super::step::{RUN, repeated};
use super::{Row, median, show};
use crate::bars::Step;
use crate::house::House;
use crate::setup::peers;
use crate::trouble::Outcome;

/// Against what, how often, and how to show it.
#[derive(Args, Debug)]
pub struct Options {
    /// Measure PyTorch beside it, alternating; installs it into .lab/peers, a large download
    #[arg(long)]
    peers: bool,
    /// Runs of each side
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// The rows as JSON, and nothing else on standard output
    #[arg(long)]
    json: bool,
}

/// Lengths of the sequences; the paper's is the first.
const TOKENS: [usize; 3] = [50, 100, 200];
/// Sequences a step.
const BATCH: usize = 64;
/// The least ratio that is wanted at the paper's length.
const GOAL: f64 = 10.0;
/// Adam's rate, here and at the peer.
const RATE: f64 = 1e-4;
/// Steps over which the two sides' losses are compared, and the most by which they may differ.
const CHECK_STEPS: usize = 4;
const TOLERANCE: f64 = 1e-3;

/// Measures, alternating between us and the peer.
pub fn run(house: &House, options: &Options) -> Outcome<u8> {
    let script = include_str!("../../../benches/peers/mesa.py");
    let mut peer = if options.peers { Some(Peer::start(&peers::ensure(house)?.program, script)?) } else { None };
    let (mut rows, mut notes, mut times) = (Vec::new(), Vec::new(), Vec::new());
    for tokens in TOKENS {
        let step = Step::start(&format!("Training steps of a mesa layer, T = {tokens}"));
        let protocol = recipes::mesa((10, tokens))?;
        let batch = protocol.task.sample(BATCH, 0)?;
        let mut model = SequenceTransformer::init(protocol.architecture.clone(), 0.1, 0)?;
        let mut adam = adam()?;
        if let Some(peer) = &mut peer {
            let worst = agreement(peer, &protocol, &model, &batch)?;
            notes.push(format!("T = {tokens}: the losses of both sides agree to {worst:.0e} over {CHECK_STEPS} steps"));
        }
        let (inputs, targets) = (batch.inputs(protocol.tokens)?, batch.targets()?);
        let (mut ours, mut recursion, mut solve) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..options.runs {
            ours.push(repeated(|| {
                let (_, gradients) = model.loss_and_gradient(&inputs, &targets, None)?;
                Ok(adam.step(&mut model, gradients)?)
            })?);
            if let Some(peer) = &mut peer {
                for (layer, times) in [("recursion", &mut recursion), ("solve", &mut solve)] {
                    let order = json!({ "steps": { "layer": layer, "seconds": RUN.as_secs_f64() } });
                    times.push(peer.milliseconds(&order)?);
                }
            }
        }
        step.done();
        let of_peer = (!recursion.is_empty()).then(|| (median(&recursion), median(&solve)));
        if let (Some((recursion, solve)), Some(note)) = (of_peer, notes.last_mut()) {
            note.push_str(&format!("; PyTorch takes {recursion:.0} ms by recursion and {solve:.0} ms by solving."));
        }
        times.push(median(&ours));
        rows.push(Row {
            name: format!("step, T = {tokens}"),
            ours_ms: median(&ours),
            peer_ms: of_peer.map(|(recursion, solve)| recursion.min(solve)),
            goal: (tokens == TOKENS[0]).then_some(GOAL),
            goal_ms: None,
        });
    }
    show(&rows, "PyTorch eager", options.json);
    let lengths = TOKENS.map(|t| (t as f64).ln());
    let logs: Vec<f64> = times.iter().map(|ms: &f64| ms.ln()).collect();
    let exponent = incontext::compare::LinearFit::of(&lengths, &logs).slope;
    let (first, last) = (TOKENS[0], TOKENS[TOKENS.len() - 1]);
    notes.push(format!("A step costs as T^{exponent:.2} from T = {first} to {last}: 1 is linear."));
    for note in notes {
        if options.json { eprintln!("{note}") } else { println!("{note}") }
    }
    Ok(0)
}

fn adam() -> Outcome<Adam> {
    Ok(Adam::new(AdamConfig { rate: RATE, ..AdamConfig::default() })?)
}

/// Gives the peer this batch and this layer, on which it then makes its steps; the greatest relative difference of the two
/// sides' losses over the first of them.
///
/// # Errors
/// If they differ by more than rounding explains.
fn agreement(peer: &mut Peer, protocol: &Protocol, model: &SequenceTransformer, batch: &Trajectories) -> Outcome<f64> {
    let (inputs, targets) = (batch.inputs::<f32>(protocol.tokens)?, batch.targets::<f32>()?);
    let architecture = &protocol.architecture;
    let values = model.values::<f32>();
    let of_slot = |s: &incontext::ops::sequence_transformer::Slot| json!({ "shape": [s.rows, s.columns], "values": &values[s.at..][..s.rows * s.columns] });
    let order = json!({ "open": {
        "x": inputs.values(), "y": targets.values(), "shape": inputs.shape(), "dim": architecture.output,
        "heads": architecture.layers.first().map_or(0, |layer| layer.heads),
        "params": architecture.slots().iter().map(of_slot).collect::<Vec<_>>(), "steps": CHECK_STEPS,
    } });
    let answer = peer.ask(&order)?;
    let (mut model, mut adam) = (model.clone(), adam()?);
    let mut ours = Vec::new();
    for _ in 0..CHECK_STEPS {
        let (loss, gradients) = model.loss_and_gradient(&inputs, &targets, None)?;
        adam.step(&mut model, gradients)?;
        ours.push(loss);
    }
    same_losses(&answer, &ours, TOLERANCE)
}
