//! `cargo lab bench fgd`: one training step of the kernel transformer (loss exact over labels, gradient, clipped Adam
//! update) at the sizes of `fgd`, in f32, beside the same model in PyTorch eager on the same machine.
//!
//! Both sides hold the covariates and their labels' covariances; neither is charged for drawing them. What that costs us is
//! measured in a row of its own.

use clap::Args;
use incontext::experiments::fgd::recipes::{double, exact, kernel};
use incontext::models::KernelTransformer;
use incontext::ops::kernel_prompts::{KernelPrompts, Labels};
use incontext::ops::kernel_transformer::{Activation, ValueBlock};
use incontext::train::{Adam, Stateful};
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

/// What is measured: layers, context length, heads, batch.
const CASES: [(usize, usize, &[Activation], usize); 6] = [
    (3, 14, &[Activation::Exp], 256),
    (3, 14, &[Activation::Softmax], 256),
    (3, 14, &[Activation::Relu], 256),
    (3, 8, &[Activation::Linear], 256),
    (7, 14, &[Activation::Linear, Activation::Exp], 256),
    (3, 14, &[Activation::Exp], 8192),
];
/// The least ratio that is wanted.
const GOAL: f64 = 10.0;
/// Steps over which the two sides' losses are compared, and the most by which they may differ.
const CHECK_STEPS: usize = 5;
const TOLERANCE: f64 = 1e-3;

/// Measures, alternating between us and the peer.
pub fn run(house: &House, options: &Options) -> Outcome<u8> {
    let script = include_str!("../../../benches/peers/fgd.py");
    let mut peer = if options.peers { Some(Peer::start(&peers::ensure(house)?.program, script)?) } else { None };
    let mut rows = Vec::new();
    let mut worst = 0.0_f64;
    for (layers, context, heads, batch) in CASES {
        let protocol = exact(kernel("exp")?, heads, layers, context);
        let name = format!("{}, L = {layers}, n = {context}, batch {batch}", protocol.heads_name());
        let step = Step::start(&format!("Training steps: {name}"));
        let task = protocol.task(0)?;
        let prompts = task.prompts::<f32>(batch, Labels::Covariance, 0)?;
        let mut model = KernelTransformer::<f32>::init(layers, task.dim(), heads, ValueBlock::Free, 0.1, 0)?;
        let mut adam = adam(heads)?;
        if let Some(peer) = &mut peer {
            worst = worst.max(agreement(peer, &model, &prompts, heads)?);
        }
        let (mut ours, mut theirs, mut draws) = (Vec::new(), Vec::new(), Vec::new());
        for run in 0..u64::from(options.runs) {
            ours.push(repeated(|| {
                let (_, gradients) = model.loss_and_gradient(&prompts)?;
                Ok(adam.step(&mut model, gradients)?)
            })?);
            draws.push(repeated(|| {
                drop(task.prompts::<f32>(batch, Labels::Covariance, run)?);
                Ok(())
            })?);
            if let Some(peer) = &mut peer {
                theirs.push(peer.milliseconds(&json!({ "steps": { "seconds": RUN.as_secs_f64() } }))?);
            }
        }
        step.done();
        let of_peer = (!theirs.is_empty()).then(|| median(&theirs));
        rows.push(Row { name, ours_ms: median(&ours), peer_ms: of_peer, goal: Some(GOAL), goal_ms: None });
        let draw = "  drawing the batch, if it is drawn anew".to_owned();
        rows.push(Row { name: draw, ours_ms: median(&draws), peer_ms: None, goal: None, goal_ms: None });
    }
    show(&rows, "PyTorch eager", options.json);
    if options.peers {
        let note = format!(
            "On the same prompts and parameters the losses of both sides agree to {worst:.0e} over {CHECK_STEPS} steps."
        );
        if options.json { eprintln!("{note}") } else { println!("{note}") }
    }
    Ok(0)
}

/// Adam as it trains shallow networks: the deep ones' clipping is one more pass over a few hundred numbers.
fn adam(heads: &[Activation]) -> Outcome<Adam> {
    Ok(Adam::new(exact(kernel("exp")?, heads, 1, 14).adam)?)
}

/// Gives the peer these prompts and this network, on which it then makes its steps; the greatest relative difference of
/// the two sides' losses over the first of them.
///
/// # Errors
/// If they differ by more than rounding explains.
fn agreement(
    peer: &mut Peer,
    model: &KernelTransformer<f32>,
    prompts: &KernelPrompts<f32>,
    heads: &[Activation],
) -> Outcome<f64> {
    let (mut x, mut k) = (Vec::new(), Vec::new());
    for i in 0..prompts.len() {
        x.extend(prompts.x(i).unwrap_or_default());
        k.extend(prompts.covariance(i).map(|m| m.as_slice().to_vec()).unwrap_or_default());
    }
    let tokens = prompts.context() + 1;
    let order = json!({ "open": {
        "x": x, "k": k, "shape": [prompts.len(), tokens, prompts.dim()], "params": double(model)?.params.as_vec(),
        "layers": model.layers(), "heads": heads.iter().map(Activation::name).collect::<Vec<_>>(), "steps": CHECK_STEPS,
    } });
    let answer = peer.ask(&order)?;
    let (mut model, mut adam) = (model.clone(), adam(heads)?);
    let mut ours = Vec::new();
    for _ in 0..CHECK_STEPS {
        let (loss, gradients) = model.loss_and_gradient(prompts)?;
        adam.step(&mut model, gradients)?;
        ours.push(loss);
    }
    same_losses(&answer, &ours, TOLERANCE)
}
