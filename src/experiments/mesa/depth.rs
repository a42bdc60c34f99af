//! Figures 4B, 4D to 4F, 9, 11 and 12: several layers of linear attention, for a teacher a sequence, contracting or not, and for
//! one fixed teacher.

use serde_json::json;

use super::kernels::RIDGE;
use super::one_layer::{compress, mean, product_panel};
use super::probes::{Scores, Target, probe, probe_each};
use super::recipes::{self, SMALL, Trained};
use super::weights::{block_fraction, products};
use crate::algorithms::sequences::{
    InverseSeries, Pairing, SequenceGradient, SequenceLeastSquares, orthogonal_floor, sequence_losses,
};
use crate::compare::Interval;
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Axis, Bars, Claims, Color, Extremes, Figure, Line, Panel};
use crate::models::SequenceTransformer;
use crate::tasks::Trajectories;
use crate::{Error, Result};

const LAYERS: [usize; 4] = [1, 2, 4, 6];
const COLORS: [Color; 4] = [Color::SKY, Color::BLUE, Color::GREEN, Color::PURPLE];

pub(super) fn sample(run: &Trained, settings: &Settings<'_>) -> Result<Trajectories> {
    run.protocol.task.sample(if settings.quick { 512 } else { 2048 }, settings.seed.wrapping_add(79))
}

pub(super) fn of<'a>(runs: &'a [Trained], network: &str) -> Result<Vec<&'a Trained>> {
    let found: Vec<&Trained> = runs.iter().filter(|r| r.network == network).collect();
    let known = || runs.iter().map(|r| r.network.clone());
    if found.is_empty() { Err(Error::unknown("network", network, known())) } else { Ok(found) }
}

/// Per-token losses of every seed of a network.
pub(super) fn curves(runs: &[Trained], network: &str, test: &Trajectories) -> Result<Vec<Vec<f64>>> {
    of(runs, network)?.iter().map(|run| run.losses(test)).collect()
}

/// Mean over tokens and seeds.
pub(super) fn overall(curves: &[Vec<f64>]) -> f64 {
    mean(&curves.iter().map(|c| mean(c)).collect::<Vec<_>>())
}

/// The loss at token t (from 0), the mean over seeds.
pub(super) fn at(curves: &[Vec<f64>], t: usize) -> f64 {
    mean(&curves.iter().map(|c| c[t]).collect::<Vec<_>>())
}

/// The mean over seeds at every token.
pub(super) fn over_seeds(curves: &[Vec<f64>]) -> Vec<f64> {
    (0..curves.first().map_or(0, Vec::len)).map(|t| at(curves, t)).collect()
}

/// The mean gap of the logarithms of two curves.
pub(super) fn log_gap(a: &[f64], b: &[f64]) -> f64 {
    mean(&a.iter().zip(b).map(|(a, b)| (a.ln() - b.ln()).abs()).collect::<Vec<_>>())
}

/// "1 seed", "3 seeds".
pub(super) fn seeds(count: usize) -> String {
    format!("{count} seed{}", if count == 1 { "" } else { "s" })
}

/// Figure 4D.
///
/// # Errors
/// As [`recipes::load`].
pub fn tokens(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("mesa-linear", |_| true, settings)?;
    let test = sample(of(&runs, "mesa")?[0], settings)?;
    let t: Vec<usize> = (1..=SMALL.1).collect();
    let mut panel = Panel::new("").x(Axis::linear("token t")).y(Axis::log("loss at token t"));
    let mut networks = Vec::new();
    for (layers, color) in LAYERS.into_iter().zip(COLORS) {
        let all = curves(&runs, &format!("lsa{layers}"), &test)?;
        panel = panel.line(Line::mean(format!("LSA-{layers}"), &t, &all).color(color));
        networks.push(all);
    }
    let mesa = curves(&runs, "mesa", &test)?;
    panel = panel.line(Line::mean("mesa layer", &t, &mesa).color(Color::RED));
    let series = |pairing| sequence_losses(&InverseSeries::authors("constructed", pairing)?, &test, None);
    let (all, dropped) = (series(Pairing::All)?, series(Pairing::Dropped)?);
    let ridge = sequence_losses(&SequenceLeastSquares { ridge: RIDGE, pairing: Pairing::All }, &test, None)?;
    let few = test.first(256)?;
    let six = sequence_losses(&SequenceGradient::searched(&few, 6)?, &test, None)?;
    panel = panel
        .line(Line::new("Prop. 2, all pairs", &t, &all).color(Color::ORANGE).dashed())
        .line(Line::new("Prop. 2, pair dropped", &t, &dropped).color(Color::BROWN).dotted())
        .line(Line::new("GD, 6 steps", &t, &six).color(Color::GREY).dashed())
        .line(Line::new("least squares", &t, &ridge).color(Color::BLACK))
        .line(Line::new("floor", &t, orthogonal_floor(SMALL.0, SMALL.1, 0.01)).color(Color::BLACK).dotted());
    let figure = Figure::new("mesa.fig4d", "More layers of linear attention come closer to least squares")
        .caption(format!(
            "n = 5, T = 25, constructed tokens, {}. Prop. 2 with the authors' six pairs of coefficients, learnt at n = 10; their code \
             drops the newest pair, which is why their curve agrees with six layers at t <= n. The floor is ½E‖P⊥s_{{t}}‖² + nσ²/2.",
            seeds(networks[0].len())
        ))
        .panel(panel);
    let means: Vec<f64> = networks.iter().map(|c| overall(c)).collect();
    let ordered = means.windows(2).filter(|w| w[1] < w[0]).count();
    let claims = Claims::new()
        .at_least("mesa.fig4d.order", "every further layer helps: 1 > 2 > 4 > 6 (of 3)", ordered as f64, 3.0)
        .at_most("mesa.fig4d.gd6", "six layers beat six steps of GD (ratio of losses)", means[3] / mean(&six), 1.0)
        .at_most(
            "mesa.fig4d.mesa",
            "the mesa layer is at least squares (ratio of losses)",
            overall(&mesa) / mean(&ridge),
            1.1,
        );
    let config = json!({
        "checkpoint": "mesa-linear", "lsa": means, "mesa": overall(&mesa), "prop2": mean(&all), "prop2_code": mean(&dropped),
        "least_squares": mean(&ridge), "gd6": mean(&six),
    });
    Ok(Reproduction { figure, claims, config })
}

/// Losses of trained, interpolated and compressed networks.
fn compressions(runs: &[&Trained], settings: &Settings<'_>) -> Result<Vec<[f64; 3]>> {
    let of_run = |run: &&Trained| {
        let test = sample(run, settings)?;
        let tokens = run.tokens(&test)?;
        let loss = |m: &SequenceTransformer| Ok(mean(&test.losses(&m.predict(&tokens)?)?));
        let [small, half] = compress(&run.model, &run.model, SMALL.0)?;
        Ok([loss(&run.model)?, loss(&half)?, loss(&small)?])
    };
    runs.iter().map(of_run).collect()
}

/// Figure 4B, with the fixed teacher as its control.
///
/// # Errors
/// As [`recipes::load`].
pub fn compressed(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("mesa-linear", |n| n == "lsa6" || n == "mesa", settings)?;
    let fixed = recipes::load("mesa-fixed", |n| n == "lsa6", settings)?;
    let ours = compressions(&of(&runs, "lsa6")?, settings)?;
    let control = compressions(&of(&fixed, "lsa6")?, settings)?;
    let mesa = overall(&curves(&runs, "mesa", &sample(of(&runs, "mesa")?[0], settings)?)?);
    let column = |all: &[[f64; 3]], k: usize| all.iter().map(|l| l[k]).collect::<Vec<_>>();
    let bars = |name: &str, all: &[[f64; 3]], color| {
        let i: Vec<Interval> = (0..3).map(|k| Interval::of(&column(all, k))).collect();
        Bars::new(name, ["trained", "Interp-6", "CompressedAlg-6"], i.iter().map(|i| i.mean))
            .error(i.iter().map(|i| i.mean - i.std), i.iter().map(|i| i.mean + i.std))
            .color(color)
    };
    let panel = Panel::new("")
        .y(Axis::log("test loss"))
        .x(Axis::category(""))
        .bars(bars("a teacher a sequence", &ours, Color::BLUE))
        .bars(bars("one fixed teacher", &control, Color::RED))
        .hline(mesa, format!("mesa layer: {mesa:.3}"));
    let figure = Figure::new("mesa.fig4b", "Six layers compress to multiples of the identity; for a fixed teacher they do not")
        .caption(format!(
            "n = 5, T = 25, {}. Each n x n block of every product W_{{K}}ᵀW_{{Q}} and P W_{{V}} becomes its mean diagonal times I: 32 of \
             800 numbers a head (the code; the paper counts 16). No retraining.",
            seeds(ours.len())
        ))
        .panel(panel);
    let m = |all: &[[f64; 3]], k: usize| mean(&column(all, k));
    let claims = Claims::new()
        .at_most("mesa.fig4b.compressed", "compression costs little (ratio of losses)", m(&ours, 2) / m(&ours, 0), 1.1)
        .at_most("mesa.fig4b.interp", "the interpolation too (ratio of losses)", m(&ours, 1) / m(&ours, 0), 1.05)
        .at_most("mesa.fig4b.mesa", "one mesa layer beats six linear ones (ratio of losses)", mesa / m(&ours, 0), 1.0)
        .at_least(
            "mesa.fig4b.control",
            "with a fixed teacher compression destroys the model (ratio)",
            m(&control, 2) / m(&control, 0),
            10.0,
        );
    let config =
        json!({ "checkpoints": ["mesa-linear", "mesa-fixed"], "losses": ours, "fixed": control, "mesa": mesa });
    Ok(Reproduction { figure, claims, config })
}

/// Names of the streams that probes read.
pub(super) fn stream_names(layers: usize) -> Vec<String> {
    std::iter::once("input".to_owned()).chain((1..=layers).map(|l| format!("after layer {l}"))).collect()
}

/// Colours from pale to dark for the layers.
pub(super) fn shades(count: usize) -> Vec<Color> {
    (0..count)
        .map(|k| {
            let x = k as f64 / (count.max(2) - 1) as f64;
            let mix = |a: f64, b: f64| (a + x * (b - a)) as u8;
            Color(mix(253.0, 64.0), mix(190.0, 0.0), mix(133.0, 90.0))
        })
        .collect()
}

/// The scores of all runs from t = 2 on, before which there is no pair, `[target][run]`.
fn probed(runs: &[&Trained], targets: &[Target], settings: &Settings<'_>) -> Result<Vec<Vec<Scores>>> {
    let run = runs.first().ok_or_else(|| Error::invalid("runs", 0, "at least 1"))?;
    let sequences = sample(run, settings)?;
    let tokens: Vec<usize> = (1..sequences.tokens()).collect();
    let mut all = vec![Vec::with_capacity(runs.len()); targets.len()];
    for run in runs {
        let scores = probe_each(&run.model, run, &sequences, targets, &tokens)?;
        all.iter_mut().zip(scores).for_each(|(all, scores)| all.push(scores));
    }
    Ok(all)
}

/// The scores of all runs as they were before their training, at the last token.
fn probed_at_start(runs: &[&Trained], target: &Target, settings: &Settings<'_>) -> Result<Vec<Scores>> {
    let of = |run: &&Trained| {
        let sequences = sample(run, settings)?;
        let start = SequenceTransformer::init(run.protocol.architecture.clone(), run.protocol.init, run.seed)?;
        probe(&start, run, &sequences, target, &[sequences.tokens() - 1])
    };
    runs.iter().map(of).collect()
}

/// The two panels of a probe, absolute and relative: a line a layer, the means over all runs.
fn probe_panels(scores: &[Scores]) -> [Panel; 2] {
    let mut absolute = Panel::new("as in the paper").x(Axis::linear("token t")).y(Axis::log("probe loss, held out"));
    let mut relative = Panel::new("relative to the target's variance")
        .x(Axis::linear("token t"))
        .y(Axis::log("relative error, held out"));
    let streams = scores.first().map_or(0, |s| s.relative.len());
    for (l, (name, color)) in stream_names(streams.saturating_sub(1)).iter().zip(shades(streams)).enumerate() {
        let line = |of: fn(&Scores) -> &Vec<Vec<f64>>| {
            let curves: Vec<Vec<f64>> = scores.iter().map(|s| of(s)[l].clone()).collect();
            let t: Vec<usize> = (2..).take(curves[0].len()).collect();
            Line::mean(name, &t, &curves).color(color)
        };
        absolute = absolute.line(line(|s| &s.absolute));
        relative = relative.line(line(|s| &s.relative));
    }
    [absolute, relative]
}

/// [`probed`] for one target, and its [`probe_panels`].
fn probing(runs: &[&Trained], target: Target, settings: &Settings<'_>) -> Result<([Panel; 2], Vec<Scores>)> {
    let scores = probed(runs, &[target], settings)?.concat();
    Ok((probe_panels(&scores), scores))
}

const PROBES: &str = "A linear probe a layer and token, fitted on half of the sequences and scored on the other half (the authors score \
                      on the batch that they fit).";

/// Figure 4E.
///
/// # Errors
/// As [`recipes::load`].
pub fn target(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("mesa-linear", |n| n == "lsa6", settings)?;
    let caption = format!("LSA-6, n = 5, T = 25, {}. {PROBES}", seeds(runs.len()));
    let title = "The next state becomes linearly decodable, layer by layer";
    let all: Vec<&Trained> = runs.iter().collect();
    let (panels, scores) = probing(&all, Target::Next, settings)?;
    let figure = Figure::new("mesa.fig4e", title).caption(caption).panels(panels);
    let last = SMALL.1 - 2;
    let falls = |s: &Scores| s.relative.windows(2).filter(|w| w[1][last] < w[0][last]).count() as f64;
    let claims = Claims::new()
        .at_most(
            "mesa.fig4e.last",
            "at t = T the last layer's error is a small share of the input's",
            end_ratio(&scores),
            0.1,
        )
        .at_least(
            "mesa.fig4e.layers",
            "layers that lower it (of 6, mean over seeds)",
            mean(&scores.iter().map(falls).collect::<Vec<_>>()),
            5.0,
        );
    let config = json!({ "checkpoint": "mesa-linear", "relative_at_T": scores.iter().map(|s| s.relative.iter().map(|l| l[last]).collect::<Vec<_>>()).collect::<Vec<_>>() });
    Ok(Reproduction { figure, claims, config })
}

/// Figure 4F.
///
/// # Errors
/// As [`recipes::load`].
pub fn preconditioned(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("mesa-linear", |n| n == "lsa6", settings)?;
    let caption = format!(
        "LSA-6, n = 5, T = 25, {}. The target is the series of Prop. 2 for (S_{{t−1}}S_{{t−1}}ᵀ + 0.001 I)^{{−1}}s_{{t}}. {PROBES} The absolute \
         error falls with t also because the target shrinks. Of a single network the relative error can rise along the sequence.",
        seeds(runs.len())
    );
    let target = Target::Preconditioned(InverseSeries::authors("linear", Pairing::All)?);
    let all: Vec<&Trained> = runs.iter().collect();
    let title = "Layers precondition the state before they regress";
    let (panels, scores) = probing(&all, target.clone(), settings)?;
    let figure = Figure::new("mesa.fig4f", title).caption(caption).panels(panels);
    let claims = preconditioning_claims("mesa.fig4f", &target, &scores, &probed_at_start(&all, &target, settings)?);
    let config = json!({ "checkpoint": "mesa-linear", "tokens": SMALL.1 });
    Ok(Reproduction { figure, claims, config })
}

/// The last layer's relative error over the input's at the last token, the mean over seeds.
pub(super) fn end_ratio(scores: &[Scores]) -> f64 {
    let ratio = |s: &Scores| {
        let end = s.relative[0].len() - 1;
        s.relative.last().map_or(f64::NAN, |l| l[end]) / s.relative[0][end]
    };
    mean(&scores.iter().map(ratio).collect::<Vec<_>>())
}

/// The least relative error over layers against the input's, at the last token, trained and at the start of training.
pub(super) fn preconditioning_claims(id: &str, target: &Target, scores: &[Scores], untrained: &[Scores]) -> Claims {
    let gain = |s: &Scores| {
        let at = s.relative[0].len() - 1;
        s.relative[1..].iter().map(|l| l[at]).least() / s.relative[0][at]
    };
    let all = |s: &[Scores]| mean(&s.iter().map(gain).collect::<Vec<_>>());
    Claims::new()
        .at_most(
            format!("{id}.layers"),
            format!("layers make {} decodable: least relative error over the input's, t = T", target.name()),
            all(scores),
            0.75,
        )
        .at_least(format!("{id}.control"), "… untrained layers do not", all(untrained), 0.97)
}

/// Softmax layers probed for the next state and for a preconditioned one.
pub(super) struct LayerByLayer {
    /// The panels for the next state, absolute and relative.
    pub(super) next: [Panel; 2],
    /// Those for the preconditioned one.
    pub(super) inner: [Panel; 2],
    /// The scores of all runs for the next state.
    pub(super) scores: Vec<Scores>,
    pub(super) claims: Claims,
}

/// The probes of `runs` for the next state and for `target`; the claim on the former has the first id, those on the latter begin
/// with the second.
pub(super) fn layer_by_layer(
    [next_id, inner_id]: [&str; 2],
    runs: &[&Trained],
    target: &Target,
    settings: &Settings<'_>,
) -> Result<LayerByLayer> {
    let mut all = probed(runs, &[Target::Next, target.clone()], settings)?;
    let (preconditioned, scores) = (all.remove(1), all.remove(0));
    let mut claims = Claims::new().at_most(
        next_id,
        "at t = T the last layer's error for s_{t+1} is a small share of the input's",
        end_ratio(&scores),
        0.1,
    );
    let untrained = probed_at_start(runs, target, settings)?;
    claims.extend(preconditioning_claims(inner_id, target, &preconditioned, &untrained));
    Ok(LayerByLayer { next: probe_panels(&scores), inner: probe_panels(&preconditioned), scores, claims })
}

/// The median share of the heads' products that is in multiples of the identity.
fn fractions(run: &Trained) -> Result<Vec<f64>> {
    let n = run.protocol.task.observed();
    Ok(products(&run.model)?.iter().flatten().flatten().map(|m| block_fraction(m, n)).collect())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Figure 9.
///
/// # Errors
/// As [`recipes::load`].
pub fn weights(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("mesa-linear", |n| n == "lsa6", settings)?;
    let fixed = recipes::load("mesa-fixed", |n| n == "lsa6", settings)?;
    let first = of(&runs, "lsa6")?[0];
    let mut figure = Figure::new("mesa.fig9", "Six linear layers are made of blocks, each a multiple of the identity")
        .caption(
            "Products of one head of layers 1, 2 and 4 of one seed, n = 5, T = 25; channels 1 to 5 are the output, 6 to 10 a copy of \
             s_{t}, 11 to 15 s_{t}, 16 to 20 s_{t−1}. Of each layer the head with the largest product is shown.",
        )
        .columns(2);
    let all = products(&first.model)?;
    for l in [0, 1, 3] {
        let size = |pair: &[crate::linalg::Matrix; 2]| pair[0].norm() * pair[1].norm();
        let head = all[l].iter().max_by(|a, b| size(a).total_cmp(&size(b)));
        if let Some([kq, pv]) = head {
            let range = |m: &crate::linalg::Matrix| m.as_slice().iter().fold(1e-6_f64, |r, v| r.max(v.abs()));
            figure = figure
                .panel(product_panel(&format!("W_{{K}}ᵀW_{{Q}}, layer {}", l + 1), kq, range(kq)))
                .panel(product_panel(&format!("P W_{{V}}, layer {}", l + 1), pv, range(pv)));
        }
    }
    let share = |runs: &[Trained]| -> Result<f64> {
        Ok(median(runs.iter().map(fractions).collect::<Result<Vec<_>>>()?.concat()))
    };
    let (ours, control) = (share(&runs)?, share(&fixed)?);
    let claims = Claims::new()
        .at_least("mesa.fig9.blocks", "median share of the products in multiples of the identity", ours, 0.6)
        .at_most("mesa.fig9.control", "… for one fixed teacher", control, 0.25);
    let config = json!({ "checkpoints": ["mesa-linear", "mesa-fixed"], "median": ours, "fixed": control });
    Ok(Reproduction { figure, claims, config })
}

/// Figure 12: the same networks for one fixed teacher memorise it.
///
/// # Errors
/// As [`recipes::load`].
pub fn fixed(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("mesa-fixed", |_| true, settings)?;
    let test = sample(of(&runs, "mesa")?[0], settings)?;
    let gradient = SequenceGradient::line_searched(&test)?;
    let gd = sequence_losses(&gradient, &test, None)?;
    let t: Vec<usize> = (1..=SMALL.1).collect();
    let mut panel = Panel::new("loss at every token").x(Axis::linear("token t")).y(Axis::log("loss at token t"));
    for (layers, color) in LAYERS.into_iter().zip(COLORS) {
        let all = curves(&runs, &format!("lsa{layers}"), &test)?;
        panel = panel.line(Line::mean(format!("LSA-{layers}"), &t, &all).color(color));
    }
    panel = panel
        .line(Line::mean("mesa layer", &t, &curves(&runs, "mesa", &test)?).color(Color::RED))
        .line(Line::new("GD, 1 step", &t, &gd).color(Color::BLACK).dashed());
    let six = of(&runs, "lsa6")?;
    let target = Target::Preconditioned(InverseSeries::authors("linear", Pairing::All)?);
    let ([_, mut probe_panel], scores) = probing(&six, target, settings)?;
    probe_panel.title = "probe for the preconditioned state, LSA-6".to_owned();
    let shares = runs.iter().filter(|r| r.network == "lsa6").map(fractions).collect::<Result<Vec<_>>>()?.concat();
    let figure = Figure::new("mesa.fig12", "One fixed teacher: it is memorised, and no mesa-optimiser appears")
        .caption(format!(
            "n = 5, T = 25, the same W in all sequences, {}, 3,000 steps. The weights can know W.",
            seeds(six.len())
        ))
        .panel(panel)
        .panel(probe_panel);
    let one = curves(&runs, "lsa1", &test)?;
    let lsa6 = curves(&runs, "lsa6", &test)?;
    let zero = SMALL.0 as f64 / 6.0;
    let last = scores[0].relative[0].len() - 1;
    let gain = scores[0].relative[1..].iter().map(|l| l[last]).least() / scores[0].relative[0][last];
    let claims = Claims::new()
        .at_most(
            "mesa.fig12.lsa1",
            "one layer is far below one step of GD (ratio of losses)",
            overall(&one) / mean(&gd),
            0.6,
        )
        .at_most(
            "mesa.fig12.start",
            "LSA-6 knows W at t = 2 (loss over that of predicting zero)",
            at(&lsa6, 1) / zero,
            0.05,
        )
        .at_most(
            "mesa.fig12.blocks",
            "its products are not multiples of the identity (median share)",
            median(shares),
            0.3,
        );
    let config = json!({ "checkpoint": "mesa-fixed", "probe_gain": gain, "gd": mean(&gd), "lsa1": overall(&one), "lsa6": overall(&lsa6) });
    Ok(Reproduction { figure, claims, config })
}

/// Figure 11: the same networks for contracting dynamics.
///
/// # Errors
/// As [`recipes::load`].
pub fn contracting(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("mesa-contracting", |_| true, settings)?;
    let test = sample(of(&runs, "mesa")?[0], settings)?;
    let gd = sequence_losses(&SequenceGradient::line_searched(&test)?, &test, None)?;
    let t: Vec<usize> = (1..=SMALL.1).collect();
    let one = curves(&runs, "lsa1", &test)?;
    let mesa = curves(&runs, "mesa", &test)?;
    let axes = |title: &str| Panel::new(title).x(Axis::linear("token t")).y(Axis::log("loss at token t"));
    let mut all = axes("C: more layers");
    let mut means = Vec::new();
    for (layers, color) in LAYERS.into_iter().zip(COLORS) {
        let curves = curves(&runs, &format!("lsa{layers}"), &test)?;
        means.push(overall(&curves));
        all = all.line(Line::mean(format!("LSA-{layers}"), &t, &curves).color(color));
    }
    let series = InverseSeries::authors("constructed", Pairing::All)?;
    all = all
        .line(Line::mean("mesa layer", &t, &mesa).color(Color::RED))
        .line(Line::new("Prop. 2", &t, sequence_losses(&series, &test, None)?).color(Color::ORANGE).dashed());
    let six = of(&runs, "lsa6")?;
    // The ridge of the authors' probe for these dynamics.
    let target =
        Target::Preconditioned(InverseSeries { ridge: 4.0 / 3.0, ..InverseSeries::authors("linear", Pairing::All)? });
    let ([_, mut probe_panel], scores) = probing(&six, target, settings)?;
    probe_panel.title = "B: probe for the preconditioned state, LSA-6".to_owned();
    let figure = Figure::new("mesa.fig11", "Contracting dynamics: one layer is one step, in the mean over tokens")
        .caption(format!(
            "W = U diag(e) U⁻¹, e_{{i}} ~ U(0.3, 0.9) and one of them 0.9, states clipped to ±2; n = 5, T = 25, constructed tokens, {}, 3,000 \
             steps.",
            seeds(six.len())
        ))
        .panel(
            axes("A: one layer")
                .line(Line::mean("LSA-1", &t, &one).color(Color::SKY))
                .line(Line::new("GD, 1 step", &t, &gd).color(Color::BLACK).dashed()),
        )
        .panel(probe_panel)
        .panel(all)
        .columns(3);
    let least = means.iter().copied().least();
    let claims = Claims::new()
        .at_most(
            "mesa.fig11.gd",
            "one layer is one step of GD (relative gap of mean losses)",
            (overall(&one) / mean(&gd) - 1.0).abs(),
            0.05,
        )
        .at_most(
            "mesa.fig11.mesa",
            "the mesa layer is lowest (mean loss over that of the best LSA)",
            overall(&mesa) / least,
            1.0,
        );
    let end = scores[0].relative[0].len() - 1;
    let probed: Vec<f64> = scores[0].relative.iter().map(|l| l[end]).collect();
    let config = json!({
        "checkpoint": "mesa-contracting", "lsa": means, "mesa": overall(&mesa), "gd": mean(&gd), "probe_at_T": probed,
    });
    Ok(Reproduction { figure, claims, config })
}
