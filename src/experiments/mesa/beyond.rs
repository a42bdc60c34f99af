//! Beyond the paper: from memorising teachers to learning them in context, four rules of learning in one layer, a teacher that
//! changes, and explicit weights in trained networks.

use serde_json::json;

use super::depth::{curves, of, overall, sample, seeds};
use super::kernels::RIDGE;
use super::one_layer::mean;
use super::recipes::{self, FULL, RULE_KEY, RULES, SMALL, Trained};
use super::weights::{compressed, map, mean_diagonal, products, with_products};
use crate::Result;
use crate::algorithms::sequences::{
    Pairing, RecursiveLeastSquares, SequenceGradient, SequenceLeastSquares, TeacherPosterior, sequence_losses,
};
use crate::compare::Interval;
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Axis, Bars, Claims, Color, Extremes, Figure, Line, Panel};
use crate::linalg::Matrix;
use crate::models::SequenceTransformer;
use crate::ops::sequence_transformer::Mixer;
use crate::tasks::{Dynamics, Trajectories};

fn size(settings: &Settings<'_>) -> usize {
    if settings.quick { 256 } else { 2048 }
}

/// The mean over tokens, of every seed.
fn each(curves: &[Vec<f64>]) -> Vec<f64> {
    curves.iter().map(|c| mean(c)).collect()
}

/// From 1 teacher to infinitely many: when does a mesa layer memorise, and when does it learn in context?
///
/// # Errors
/// As [`recipes::load`].
pub fn diversity(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("mesa-diversity", |_| true, settings)?;
    let unlimited = recipes::load("mesa-linear", |n| n == "mesa", settings)?;
    let mut counts: Vec<usize> = runs.iter().map(|r| r.protocol.task.pool_teachers().len()).collect();
    counts.sort_unstable();
    counts.dedup();
    let fresh = Dynamics::linear(SMALL.0, SMALL.1)?.sample(size(settings), settings.seed.wrapping_add(90))?;
    let ridge = SequenceLeastSquares { ridge: RIDGE, pairing: Pairing::All };
    let (mut seen, mut new, mut posterior, mut lost) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for count in &counts {
        let network = format!("pool{count}");
        let networks = of(&runs, &network)?;
        let task = &networks[0].protocol.task;
        let own = task.sample(size(settings), settings.seed.wrapping_add(91))?;
        let bayes = TeacherPosterior { teachers: task.pool_teachers(), noise: task.noise };
        seen.push(each(&curves(&runs, &network, &own)?));
        new.push(each(&curves(&runs, &network, &fresh)?));
        posterior.push(mean(&sequence_losses(&bayes, &own, None)?));
        lost.push(mean(&sequence_losses(&bayes, &fresh, None)?));
    }
    let in_context = mean(&sequence_losses(&ridge, &fresh, None)?);
    let infinite = overall(&curves(&unlimited, "mesa", &fresh)?);
    // From [count][seed].
    let line = |name: &str, losses: &[Vec<f64>], color| {
        let networks = losses.first().map_or(0, Vec::len);
        let by_seed: Vec<Vec<f64>> = (0..networks).map(|k| losses.iter().map(|l| l[k]).collect()).collect();
        Line::mean(name, &counts, &by_seed).color(color)
    };
    let known = line("mesa layer, teachers of the training", &seen, Color::BLUE);
    let unknown = line("mesa layer, new teachers", &new, Color::RED);
    let (seen_mean, new_mean) = (known.y.clone(), unknown.y.clone());
    let panel = Panel::new("")
        .x(Axis::log("teachers in training"))
        .y(Axis::log("mean loss"))
        .line(known.markers())
        .line(unknown.markers())
        .line(Line::new("posterior, teachers of the training", &counts, &posterior).color(Color::BLUE).dotted())
        .line(Line::new("posterior, new teachers", &counts, &lost).color(Color::RED).dotted())
        .hline(in_context, "least squares")
        .hline(infinite, "mesa layer, infinitely many");
    let figure = Figure::new("mesa.diversity", "From memorising teachers to learning them in context")
        .caption(format!(
            "A mesa layer on constructed tokens, n = 5, T = 25, trained on sequences of so many orthogonal teachers, {}, 1,500 steps. The \
             posterior knows the teachers of the training, and is what a network does best that has memorised them.",
            seeds(seen[0].len())
        ))
        .panel(panel);
    let end = counts.len() - 1;
    let claims = Claims::new()
        .at_least(
            "mesa.diversity.memory",
            "one teacher is memorised: a new one costs far more (ratio of losses)",
            new_mean[0] / seen_mean[0],
            10.0,
        )
        .at_most(
            "mesa.diversity.context",
            "many teachers are not: a new one costs the same (ratio of losses)",
            new_mean[end] / seen_mean[end],
            1.1,
        )
        .at_most(
            "mesa.diversity.infinite",
            "then the network is as good on new teachers as one that saw infinitely many (ratio)",
            new_mean[end] / infinite,
            1.1,
        );
    let config = json!({
        "checkpoints": ["mesa-diversity", "mesa-linear"], "teachers": counts, "seen": seen, "new": new, "posterior_seen": posterior,
        "posterior_new": lost, "least_squares": in_context, "infinite": infinite,
    });
    Ok(Reproduction { figure, claims, config })
}

/// Linear attention, delta rule, implicit step and mesa layer in one harness.
///
/// # Errors
/// As [`recipes::load`].
pub fn rules(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("mesa-rules", |_| true, settings)?;
    let test = sample(of(&runs, "mesa")?[0], settings)?;
    let t: Vec<usize> = (1..=SMALL.1).collect();
    let names = ["linear attention", "delta rule", "implicit step", "mesa layer"];
    let colors = [Color::BLUE, Color::GREEN, Color::PURPLE, Color::RED];
    let mut tokens = Panel::new("equal parameters").x(Axis::linear("token t")).y(Axis::log("loss at token t"));
    let (mut narrow, mut wide, mut costs) = (Vec::new(), Vec::new(), Vec::new());
    for ((network, mixer), (name, color)) in RULES.into_iter().zip(names.into_iter().zip(colors)) {
        let all = curves(&runs, network, &test)?;
        tokens = tokens.line(Line::mean(name, &t, &all).color(color));
        narrow.push(each(&all));
        let matched = if mixer == recipes::MESA { network.to_owned() } else { format!("{network}-wide") };
        wide.push(each(&curves(&runs, &matched, &test)?));
        let key = of(&runs, &matched)?[0].protocol.architecture.layers[0].key;
        costs.push(json!({
            "rule": network, "parameters": of(&runs, network)?[0].protocol.architecture.parameters(),
            "operations": recipes::operations(mixer, RULE_KEY), "key_at_equal_operations": key,
            "operations_then": recipes::operations(mixer, key),
        }));
    }
    let ridge = sequence_losses(&SequenceLeastSquares { ridge: RIDGE, pairing: Pairing::All }, &test, None)?;
    tokens = tokens.line(Line::new("least squares", &t, &ridge).color(Color::BLACK).dashed());
    let bars = |name: &str, all: &[Vec<f64>], color| {
        let i: Vec<Interval> = all.iter().map(|v| Interval::of(v)).collect();
        Bars::new(name, names, i.iter().map(|i| i.mean))
            .error(i.iter().map(|i| i.mean - i.std), i.iter().map(|i| i.mean + i.std))
            .color(color)
    };
    let means = Panel::new("mean loss")
        .x(Axis::category(""))
        .y(Axis::linear("mean loss"))
        .bars(bars("equal parameters", &narrow, Color::BLUE))
        .bars(bars("equal operations a token", &wide, Color::ORANGE))
        .hline(mean(&ridge), "least squares");
    let keys: Vec<String> = costs.iter().map(|c| c["key_at_equal_operations"].to_string()).collect();
    let figure = Figure::new("mesa.rules", "Four rules of learning in one layer")
        .caption(format!(
            "One layer of four heads on constructed tokens, n = 5, T = 25, {}, 1,200 steps, trained alike. Linear attention sums, the delta rule takes one \
             step of SGD a token (DeltaNet), the implicit step is its proximal form (Longhorn), the mesa layer solves the ridge regression. Equal \
             parameters: {RULE_KEY} channels a head (the last three have one number a head more). Equal operations a token, projections included: {} channels.",
            seeds(of(&runs, "mesa")?.len()),
            keys.join(", ")
        ))
        .panel(tokens)
        .panel(means);
    let best = |all: &[Vec<f64>]| all[..3].iter().map(|v| mean(v)).least();
    let claims = Claims::new()
        .at_most(
            "mesa.rules.parameters",
            "at equal parameters the mesa layer is lowest (ratio to the next)",
            mean(&narrow[3]) / best(&narrow),
            1.0,
        )
        .at_most("mesa.rules.operations", "… and at equal operations a token", mean(&wide[3]) / best(&wide), 1.0)
        .at_most(
            "mesa.rules.delta",
            "one step of SGD a token is better than a sum (delta rule over linear attention)",
            mean(&narrow[1]) / mean(&narrow[0]),
            1.0,
        );
    let config =
        json!({ "checkpoint": "mesa-rules", "equal_parameters": narrow, "equal_operations": wide, "costs": costs });
    Ok(Reproduction { figure, claims, config })
}

/// The trained mesa layer with another γ, all else as it is.
fn forgetting(run: &Trained, forget: f64) -> Result<SequenceTransformer> {
    let mut architecture = run.model.architecture().clone();
    architecture.layers.iter_mut().for_each(|layer| layer.mixer = Mixer::Mesa { forget });
    SequenceTransformer::from_values(architecture, &run.model.values::<f32>())
}

/// W changes in the middle of the sequence: a mesa layer with and without forgetting.
///
/// # Errors
/// As [`recipes::load`].
pub fn switch(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("mesa-linear", |n| n == "mesa", settings)?;
    let run = of(&runs, "mesa")?[0];
    let (length, change) = (60, 30);
    let task = Dynamics { switch: Some(change), ..Dynamics::linear(SMALL.0, length)? };
    let test = task.sample(size(settings), settings.seed.wrapping_add(92))?;
    let t: Vec<usize> = (1..=length).collect();
    let axes = |title: &str| Panel::new(title).x(Axis::linear("token t")).y(Axis::log("loss at token t"));
    let (mut layer, mut filter) = (axes("trained mesa layer"), axes("recursive least squares"));
    let gammas = [(1.0, Color::BLACK), (0.95, Color::SKY), (0.9, Color::BLUE), (0.8, Color::PURPLE)];
    let mut ends = Vec::new();
    for (forget, color) in gammas {
        let name = if forget < 1.0 { format!("γ = {forget}") } else { "no forgetting".to_owned() };
        let ours = test.losses(&forgetting(run, forget)?.predict(&run.tokens(&test)?)?)?;
        let rls = sequence_losses(&RecursiveLeastSquares { ridge: 0.1, forget }, &test, None)?;
        layer = layer.line(Line::new(name.clone(), &t, &ours).color(color));
        filter = filter.line(Line::new(name, &t, &rls).color(color));
        ends.push([ours[change - 2], ours[change], ours[length - 1], rls[length - 1]]);
    }
    let figure = Figure::new("mesa.switch", "A teacher that changes, and what forgetting does untrained")
        .caption(format!(
            "n = 5; W is another one from the state after token {change} on. The mesa layer was trained on 25 tokens of one W without forgetting; \
             only its γ is changed, no weight. The paper derives forgetting and never uses it. A filter on the states may forget fast; the layer \
             may not: its heads have ten key channels for a state of five, and where no key points R grows as γ^{{−t}}.",
        ))
        .panel(layer.vline(change as f64, "W changes"))
        .panel(filter.vline(change as f64, "W changes"));
    let best = ends[1..].iter().map(|e| e[2]).least();
    let claims = Claims::new()
        .at_least(
            "mesa.switch.jump",
            "the change costs the layer dearly: loss after over loss before, no forgetting",
            ends[0][1] / ends[0][0],
            2.0,
        )
        .at_least(
            "mesa.switch.layer",
            "30 tokens later the layer is far better with a γ below 1: no forgetting over the best γ",
            ends[0][2] / best,
            2.0,
        )
        .at_least(
            "mesa.switch.filter",
            "… and so is recursive least squares",
            ends[0][3] / ends[1..].iter().map(|e| e[3]).least(),
            1.0,
        );
    let config = json!({
        "checkpoint": "mesa-linear", "gamma": gammas.map(|g| g.0), "before_after_end_and_rls_end": ends, "switch": change,
    });
    Ok(Reproduction { figure, claims, config })
}

fn loss(model: &SequenceTransformer, run: &Trained, test: &Trajectories) -> Result<f64> {
    Ok(mean(&test.losses(&model.predict(&run.tokens(test)?)?)?))
}

/// Explicit weights in the place of trained ones: Prop. 1 in one layer, K steps in K layers, blocks in one layer of six.
///
/// # Errors
/// As [`recipes::load`].
pub fn paste(settings: &Settings<'_>) -> Result<Reproduction> {
    let one = recipes::load("mesa-one-layer", |_| true, settings)?;
    let deep = recipes::load("mesa-linear", |n| n.starts_with("lsa"), settings)?;
    // Prop. 1: nothing but s_{t−1} against s_t in W_Kᵀ W_Q, and s_t to the output in P W_V, of the size that training found.
    let n = FULL.0;
    let full = one[0].protocol.task.sample(size(settings) / 2, settings.seed.wrapping_add(93))?;
    let mut kept = Vec::new();
    for run in &one {
        let block =
            |m: &Matrix, i: usize, j: usize| {
                let scale = mean_diagonal(m, n, i, j);
                Matrix::from_fn(m.rows(), m.cols(), |a, b| {
                    if a / n == i && b / n == j && a % n == b % n { scale } else { 0.0 }
                })
            };
        let heads = products(&run.model)?;
        let pasted =
            heads.iter().map(|h| h.iter().map(|[kq, pv]| [block(kq, 3, 2), block(pv, 0, 2)]).collect()).collect();
        kept.push(loss(&with_products(&run.model, &pasted)?, run, &full)? / loss(&run.model, run, &full)?);
    }
    // K steps in the place of K layers.
    let depths = [1, 2, 4, 6];
    let test = sample(of(&deep, "lsa6")?[0], settings)?;
    let few = test.first(256)?;
    let (mut trained, mut steps) = (Vec::new(), Vec::new());
    for k in depths {
        trained.push(overall(&curves(&deep, &format!("lsa{k}"), &test)?));
        steps.push(mean(&sequence_losses(&SequenceGradient::searched(&few, k)?, &test, None)?));
    }
    // One layer of six by its blocks, and without it.
    let six = of(&deep, "lsa6")?[0];
    let all = products(&six.model)?;
    let blocks = map(&all, |m| compressed(m, SMALL.0));
    let nothing = map(&all, |m| Matrix::zeros(m.rows(), m.cols()));
    let base = loss(&six.model, six, &test)?;
    let with_layer = |l: usize, other: &super::weights::Products| -> Result<f64> {
        let mut mixed = all.clone();
        mixed[l].clone_from(&other[l]);
        Ok(loss(&with_products(&six.model, &mixed)?, six, &test)? / base)
    };
    let pasted: Vec<f64> = (0..all.len()).map(|l| with_layer(l, &blocks)).collect::<Result<_>>()?;
    let removed: Vec<f64> = (0..all.len()).map(|l| with_layer(l, &nothing)).collect::<Result<_>>()?;
    let layers: Vec<String> = (1..=all.len()).map(|l| format!("{l}")).collect();
    let figure = Figure::new("mesa.paste", "Explicit weights in the place of trained ones")
        .caption(format!(
            "Left: LSA-K, n = 5, T = 25, beside the network of explicit weights that takes K steps of GD, one η for all, searched. Right: LSA-6 with one layer \
             replaced by multiples of the identity, block by block, and with that layer gone. At the paper's scale, Prop. 1 in the place of a trained layer \
             changes the loss by a factor of {:.4} ({}).",
            mean(&kept),
            seeds(kept.len())
        ))
        .panel(
            Panel::new("whole networks")
                .x(Axis::category("layers K"))
                .y(Axis::linear("mean loss"))
                .bars(Bars::new("trained", depths, &trained).color(Color::BLUE))
                .bars(Bars::new("K steps of GD", depths, &steps).color(Color::GREY)),
        )
        .panel(
            Panel::new("one layer of LSA-6")
                .x(Axis::category("layer"))
                .y(Axis::log("loss over that of the trained network"))
                .bars(Bars::new("by its blocks", &layers, &pasted).color(Color::ORANGE))
                .bars(Bars::new("removed", &layers, &removed).color(Color::RED)),
        );
    let most = |v: &[f64]| v.iter().copied().greatest();
    let claims = Claims::new()
        .at_most(
            "mesa.paste.prop1",
            "Prop. 1 in the place of a trained layer costs nothing (ratio of losses)",
            mean(&kept),
            1.02,
        )
        .at_most("mesa.paste.blocks", "a layer of six by its blocks costs little (worst ratio)", most(&pasted), 1.1)
        .at_least(
            "mesa.paste.removed",
            "without it the network is worse (least ratio over layers)",
            removed.iter().copied().least(),
            1.1,
        )
        .at_most(
            "mesa.paste.steps",
            "six trained layers are more than six steps of GD (ratio of losses)",
            trained[3] / steps[3],
            1.0,
        );
    let config = json!({
        "checkpoints": ["mesa-one-layer", "mesa-linear"], "prop1": kept, "trained": trained, "steps": steps, "pasted": pasted,
        "removed": removed,
    });
    Ok(Reproduction { figure, claims, config })
}
