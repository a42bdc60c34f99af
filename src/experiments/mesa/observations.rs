//! Figures 2A (dashed), 2B, 7B, 7C and 21 to 25: softmax transformers and hybrids where the state is seen in part, and where the dynamics
//! are not linear.

use serde_json::json;

use super::depth::{at, curves, layer_by_layer, of, overall, sample, seeds, shades, stream_names};
use super::kernels::RIDGE;
use super::probes::{Target, probe_each};
use super::recipes::{self, Trained};
use super::stacks::{self, bound_line};
use crate::algorithms::sequences::{InverseSeries, Pairing, SequenceLeastSquares, sequence_losses};
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Axis, Claims, Color, Extremes, Figure, Line, Panel};
use crate::tasks::Trajectories;
use crate::tasks::dynamics::features;
use crate::{Error, Result};

/// A softmax transformer and a hybrid: what they are called in a checkpoint and in a figure, and their colours.
pub(super) type Networks = [(&'static str, &'static str, Color); 2];

const NETWORKS: Networks = [("tf", "softmax × 5", Color::BLUE), ("hybrid", "softmax + mesa", Color::RED)];

/// Observations that the controls of partially observed dynamics see at once (`mesa` F.3).
const STACKED: usize = 5;

/// Ridge of least squares where the state is seen in part.
pub(super) const PARTIAL_RIDGE: f64 = 0.5;

/// The series on stacked observations of Figure 24; at the authors' size its ridge is 10, and the trace of what it is added to eight
/// times as large.
fn probed_series() -> Result<InverseSeries> {
    Ok(InverseSeries { ridge: 1.0, ..InverseSeries::authors("partial", Pairing::All)? })
}

/// f(s)/‖f(s)‖ of every state, the input that the teacher W is applied to.
pub(super) fn normed_features(run: &Trained, sequences: &Trajectories) -> Result<Trajectories> {
    let mlp = mlp(run)?;
    sequences.mapped(sequences.dim(), |s| {
        let f = features(&mlp, s);
        let norm = f.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
        f.into_iter().map(|v| v / norm).collect()
    })
}

fn mlp(run: &Trained) -> Result<(crate::linalg::Matrix, crate::linalg::Matrix)> {
    run.protocol.task.mlp().ok_or_else(|| Error::invalid("task", "linear dynamics", "non-linear ones"))
}

/// What both networks lose at every token, beside what algorithms lose.
pub(super) struct Losses {
    pub(super) panel: Panel,
    /// Of softmax transformer and hybrid: the mean over tokens, and the loss at the last one.
    pub(super) means: [f64; 2],
    pub(super) ends: [f64; 2],
}

/// An algorithm: its name, its colour, and its loss at every token.
pub(super) type Control = (&'static str, Color, Vec<f64>);

pub(super) fn losses(
    runs: &[Trained],
    networks: Networks,
    test: &Trajectories,
    controls: &[Control],
) -> Result<Losses> {
    let t: Vec<usize> = (1..=test.tokens()).collect();
    let mut panel = Panel::new("").x(Axis::linear("token t")).y(Axis::log("loss at token t"));
    let (mut means, mut ends) = ([0.0; 2], [0.0; 2]);
    for (k, (network, name, color)) in networks.into_iter().enumerate() {
        let all = curves(runs, network, test)?;
        (means[k], ends[k]) = (overall(&all), at(&all, test.tokens() - 1));
        panel = panel.line(Line::mean(name, &t, &all).color(color));
    }
    for (name, color, curve) in controls {
        panel = panel.line(Line::new(*name, &t, curve).color(*color).dashed());
    }
    Ok(Losses { panel, means, ends })
}

pub(super) fn hybrid_claims(id: &str, losses: &Losses) -> Claims {
    let ratio = |v: [f64; 2]| v[1] / v[0];
    Claims::new()
        .at_most(
            format!("{id}.mean"),
            "the hybrid beats the softmax transformer (ratio of mean losses)",
            ratio(losses.means),
            1.0,
        )
        .at_most(format!("{id}.end"), "… and at t = T", ratio(losses.ends), 1.0)
}

/// How far behind the hybrid Prop. 2 on s_t is where the state is seen in part, and where dynamics are not linear.
pub(super) const ALONE: (&str, f64) = ("Prop. 2 on s_{t} alone is far behind the hybrid at t = T (ratio)", 2.0);
pub(super) const WITHOUT_FEATURES: (&str, f64) =
    ("Prop. 2 on s_{t}, without features, is far behind the hybrid at t = T (ratio)", 4.0);

/// `claims`, and that `control` is so many times behind the hybrid.
pub(super) fn behind_claim(
    claims: Claims,
    id: &str,
    (statement, least): (&str, f64),
    control: &Control,
    losses: &Losses,
) -> Claims {
    claims.at_least(format!("{id}.linear"), statement, last(&control.2) / losses.ends[1], least)
}

pub(super) fn last(curve: &[f64]) -> f64 {
    curve.last().copied().unwrap_or(f64::NAN)
}

/// The controls of partially observed dynamics: the series and least squares on one observation and on several.
fn partial_controls(test: &Trajectories) -> Result<Vec<Control>> {
    let stacked = test.stacked(STACKED)?;
    let series = InverseSeries::authors("partial", Pairing::All)?;
    let ridge = SequenceLeastSquares { ridge: PARTIAL_RIDGE, pairing: Pairing::All };
    Ok(vec![
        ("Prop. 2 on s_{t}", Color::ORANGE, sequence_losses(&series, test, None)?),
        ("Prop. 2 on 5 stacked", Color::PURPLE, sequence_losses(&series, test, Some(&stacked))?),
        ("least squares on s_{t}", Color::GREY, sequence_losses(&ridge, test, None)?),
        ("least squares on 5 stacked", Color::BLACK, sequence_losses(&ridge, test, Some(&stacked))?),
    ])
}

const PARTIAL: &str = "n_{h} = 6, of which random projections of dimension 2 are seen, T = 40 (the paper: 15, 5 and 50), width 24, six heads, 12,000 \
                       steps";

/// Figure 7B.
///
/// # Errors
/// As [`recipes::load`].
pub fn partial(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("mesa-partial", |_| true, settings)?;
    let test = sample(of(&runs, "tf")?[0], settings)?;
    let controls = partial_controls(&test)?;
    let losses = losses(&runs, NETWORKS, &test, &controls)?;
    let figure = Figure::new("mesa.fig7b", "Where the state is seen in part, regression on one observation fails")
        .caption(format!(
            "{PARTIAL}, {}. The series with the coefficients that the authors learnt at their size, ridge 0.001; least squares with ridge 0.5.",
            seeds(of(&runs, "tf")?.len())
        ))
        .panel(losses.panel.clone());
    let claims = behind_claim(hybrid_claims("mesa.fig7b", &losses), "mesa.fig7b", ALONE, &controls[0], &losses);
    let config = json!({
        "checkpoint": "mesa-partial", "means": losses.means, "at_T": losses.ends,
        "controls_at_T": controls.iter().map(|c| (c.0, last(&c.2))).collect::<Vec<_>>(),
    });
    Ok(Reproduction { figure, claims, config })
}

const NONLINEAR: &str = "n = 5, T = 25, states of norm 1, s_{t+1} = W f(s_{t})/‖f(s_{t})‖ with a fixed MLP f of 20 hidden units (the paper: n = 10, 40 \
                         units, T = 50); MLPs of 80 units, unit queries and keys after layer 1, 12,000 steps";

/// Figure 7C.
///
/// # Errors
/// As [`recipes::load`].
pub fn nonlinear(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("mesa-nonlinear", |_| true, settings)?;
    let run = of(&runs, "tf")?[0];
    let test = sample(run, settings)?;
    let inputs = normed_features(run, &test)?;
    let series = InverseSeries::authors("nonlinear", Pairing::All)?;
    let ridge = SequenceLeastSquares { ridge: RIDGE, pairing: Pairing::All };
    let controls = [
        ("Prop. 2 on s_{t}", Color::ORANGE, sequence_losses(&series, &test, None)?),
        ("Prop. 2 on f(s_{t})", Color::PURPLE, sequence_losses(&series, &test, Some(&inputs))?),
        ("least squares on f(s_{t})", Color::BLACK, sequence_losses(&ridge, &test, Some(&inputs))?),
    ];
    let losses = losses(&runs, NETWORKS, &test, &controls)?;
    let figure = Figure::new("mesa.fig7c", "Non-linear dynamics: regression on features")
        .caption(format!("{NONLINEAR}, {}.", seeds(of(&runs, "tf")?.len())))
        .panel(losses.panel.clone());
    let claims =
        behind_claim(hybrid_claims("mesa.fig7c", &losses), "mesa.fig7c", WITHOUT_FEATURES, &controls[0], &losses);
    let config = json!({
        "checkpoint": "mesa-nonlinear", "means": losses.means, "at_T": losses.ends,
        "controls_at_T": controls.iter().map(|c| (c.0, last(&c.2))).collect::<Vec<_>>(),
    });
    Ok(Reproduction { figure, claims, config })
}

/// Figure 2B: R² of linear probes for f(s_{t'}), by layer.
///
/// # Errors
/// As [`recipes::load`].
pub fn feature_probes(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("mesa-nonlinear", |_| true, settings)?;
    let mut figure = Figure::new("mesa.fig2b", "Early layers expose the features of the newest states")
        .caption(format!(
            "R² of linear probes for f(s_{{t'}}) at t = T, held out; f is the MLP of the dynamics. {NONLINEAR}, {}.",
            seeds(of(&runs, "tf")?.len())
        ))
        .columns(2);
    let mut claims = Claims::new();
    let mut config = json!({ "checkpoint": "mesa-nonlinear" });
    for (network, name, _) in NETWORKS {
        let (panel, scores) = feature_panel(name, &of(&runs, network)?, settings)?;
        figure = figure.panel(panel);
        claims = feature_claims(claims, &format!("mesa.fig2b.{network}"), name, &scores);
        config[network] = json!(scores);
    }
    Ok(Reproduction { figure, claims, config })
}

/// R² of linear probes at the last token for the features of the newest states, a line a layer; `[layer][back]`, means over the
/// seeds.
pub(super) fn feature_panel(
    name: &str,
    networks: &[&Trained],
    settings: &Settings<'_>,
) -> Result<(Panel, Vec<Vec<f64>>)> {
    let first = networks.first().ok_or_else(|| Error::invalid("networks to probe", 0, "at least 1"))?;
    let sequences = sample(first, settings)?;
    let mlp = mlp(first)?;
    let inputs = sequences.mapped(sequences.dim(), |s| features(&mlp, s))?;
    let now = [sequences.tokens() - 1];
    let names = stream_names(first.protocol.architecture.layers.len());
    // [layer][seed][back]
    let mut all = vec![vec![Vec::with_capacity(HORIZON); networks.len()]; names.len()];
    let targets: Vec<Target> = (0..HORIZON).map(|back| Target::InputBack(inputs.clone(), back)).collect();
    for (k, run) in networks.iter().enumerate() {
        for scores in probe_each(&run.model, run, &sequences, &targets, &now)? {
            all.iter_mut().zip(&scores.relative).for_each(|(layer, l)| layer[k].push(1.0 - l[0]));
        }
    }
    let mut panel = Panel::new(name)
        .x(Axis::linear("state probed for, tokens back").ticks(0..HORIZON))
        .y(Axis::linear("R², held out").range(-0.1, 1.05));
    let mut scores = Vec::new();
    for ((stream, layer), color) in names.iter().zip(&all).zip(shades(names.len())) {
        let line = Line::mean(stream.clone(), 0..HORIZON, layer).color(color).markers();
        scores.push(line.y.clone());
        panel = panel.line(line);
    }
    Ok((panel, scores))
}

/// `claims`, and what is claimed of the scores of a [`feature_panel`].
pub(super) fn feature_claims(claims: Claims, id: &str, name: &str, scores: &[Vec<f64>]) -> Claims {
    let older = scores[1][2..].iter().copied().greatest();
    claims
        .at_least(format!("{id}-now"), format!("{name}, layer 1: R² of f(s_{{t}})"), scores[1][0], 0.9)
        .at_least(format!("{id}-before"), format!("{name}, layer 1: R² of f(s_{{t−1}})"), scores[1][1], 0.8)
        .at_most(format!("{id}-older"), format!("{name}, layer 1: R² of older ones"), older, 0.5)
        .at_least(
            format!("{id}-input"),
            format!("{name}: R² of f(s_{{t}}) after layer 1 less that of the embedding"),
            scores[1][0] - scores[0][0],
            0.0,
        )
}

/// Tokens back that streams are probed for.
const HORIZON: usize = 6;

/// Figure 22.
///
/// # Errors
/// As [`recipes::load`].
pub fn partial_sensitivity(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("mesa-partial", |_| true, settings)?;
    let full = recipes::load("mesa-stacks", |n| n == "tf" || n == "hybrid", settings)?;
    let mut figure =
        Figure::new("mesa.fig22", "Where the state is seen in part, the first layer depends on more tokens")
            .caption(format!("As Figure 16; {PARTIAL}, {}.", seeds(of(&runs, "tf")?.len())))
            .columns(2);
    let (mut claims, mut config) = (Claims::new(), json!({ "checkpoints": ["mesa-partial", "mesa-stacks"] }));
    for (network, name, _) in NETWORKS {
        let (panel, ends) = stacks::sensitivity_panel(name, &of(&runs, network)?)?;
        let (_, in_full) = stacks::sensitivity_panel(name, &of(&full, network)?)?;
        figure = figure.panel(panel);
        claims = partial_sensitivity_claim(claims, &format!("mesa.fig22.{network}"), name, &ends, &in_full);
        config[network] = json!({ "partial": ends, "full": in_full });
    }
    Ok(Reproduction { figure, claims, config })
}

/// `claims`, and what is claimed of the sensitivities at the end where the state is seen in part and in full.
pub(super) fn partial_sensitivity_claim(claims: Claims, id: &str, name: &str, ends: &[f64], in_full: &[f64]) -> Claims {
    claims.at_least(
        id,
        format!("{name}: s_{{t−2}} over s_{{t}}, against the same where the state is seen in full (ratio)"),
        (ends[2] / ends[0]) / (in_full[2] / in_full[0]),
        1.0,
    )
}

/// Figure 23.
///
/// # Errors
/// As [`recipes::load`].
pub fn nonlinear_sensitivity(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("mesa-nonlinear", |_| true, settings)?;
    let mut figure = Figure::new("mesa.fig23", "Non-linear dynamics: the first layer depends on the two newest tokens")
        .caption(format!("As Figure 16; {NONLINEAR}, {}.", seeds(of(&runs, "tf")?.len())))
        .columns(2);
    let (mut claims, mut config) = (Claims::new(), json!({ "checkpoint": "mesa-nonlinear" }));
    for (network, name, _) in NETWORKS {
        let (panel, ends) = stacks::sensitivity_panel(name, &of(&runs, network)?)?;
        figure = figure.panel(panel);
        claims = stacks::sensitivity_claims(claims, &format!("mesa.fig23.{network}"), name, &ends);
        config[network] = json!(ends);
    }
    Ok(Reproduction { figure, claims, config })
}

/// The probes of a softmax transformer for the next state and the preconditioned input, and its losses beside the series'.
fn layers(
    id: &str,
    title: &str,
    caption: &str,
    runs: &[Trained],
    settings: &Settings<'_>,
    (series, inputs): (InverseSeries, Trajectories),
    sequences: &Trajectories,
) -> Result<(Figure, Claims)> {
    let control = sequence_losses(&series, sequences, Some(&inputs))?;
    let target = Target::PreconditionedInput(series, inputs);
    let probed = layer_by_layer([&format!("{id}.target"), id], &of(runs, "tf")?, &target, settings)?;
    let t: Vec<usize> = (1..=sequences.tokens()).collect();
    let mut panels = [probed.next, probed.inner].map(|[_, relative]| relative);
    panels[0].title = "A: the next observation".to_owned();
    panels[1].title = "B: the preconditioned input".to_owned();
    let losses = Panel::new("C: against Prop. 2")
        .x(Axis::linear("token t"))
        .y(Axis::log("loss at token t"))
        .line(Line::mean("softmax × 5", &t, &curves(runs, "tf", sequences)?).color(Color::BLUE))
        .line(Line::new("Prop. 2", &t, &control).color(Color::PURPLE).dashed());
    let figure = Figure::new(id, title).caption(caption).panels(panels).panel(losses).columns(3);
    Ok((figure, probed.claims))
}

/// Figure 24.
///
/// # Errors
/// As [`recipes::load`].
pub fn partial_layers(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("mesa-partial", |n| n == "tf", settings)?;
    let sequences = sample(of(&runs, "tf")?[0], settings)?;
    let pair = (probed_series()?, sequences.stacked(STACKED)?);
    let caption = format!(
        "{PARTIAL}, {}. Probes held out, relative to the target's variance; inputs are the last 5 observations, ridge 1.",
        seeds(runs.len())
    );
    let title = "Layer by layer where the state is seen in part";
    let (figure, claims) = layers("mesa.fig24", title, &caption, &runs, settings, pair, &sequences)?;
    Ok(Reproduction { figure, claims, config: json!({ "checkpoint": "mesa-partial" }) })
}

/// Figure 25.
///
/// # Errors
/// As [`recipes::load`].
pub fn nonlinear_layers(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("mesa-nonlinear", |n| n == "tf", settings)?;
    let run = of(&runs, "tf")?[0];
    let sequences = sample(run, settings)?;
    let pair = (InverseSeries::authors("nonlinear", Pairing::All)?, normed_features(run, &sequences)?);
    let caption = format!(
        "{NONLINEAR}, {}. Probes held out, relative to the target's variance; inputs are the features f(s)/‖f(s)‖.",
        seeds(runs.len())
    );
    let title = "Layer by layer for non-linear dynamics";
    let (figure, claims) = layers("mesa.fig25", title, &caption, &runs, settings, pair, &sequences)?;
    Ok(Reproduction { figure, claims, config: json!({ "checkpoint": "mesa-nonlinear" }) })
}

/// Observations of a [`bound_line`] that layer 1 binds: their error is below 0.1.
pub(super) fn bound(line: &Line) -> f64 {
    line.y.iter().filter(|e| **e < 0.1).count() as f64
}

/// `claims`, and that layer 1 binds more where the state is seen in part.
pub(super) fn partial_binding_claim(claims: Claims, id: &str, name: &str, in_part: &Line, in_full: &Line) -> Claims {
    claims.at_least(
        id,
        format!("{name}: observations bound (error below 0.1) more than where the state is seen in full"),
        bound(in_part) - bound(in_full),
        1.0,
    )
}

/// Figure 2A's dashed curves, and Figure 21: what layer 1 binds where the state is seen in part.
///
/// # Errors
/// As [`recipes::load`].
pub fn partial_binding(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("mesa-partial", |_| true, settings)?;
    let full = recipes::load("mesa-stacks", |n| n == "tf" || n == "hybrid", settings)?;
    let axes = |title: &str| {
        Panel::new(title)
            .x(Axis::linear("observation probed for, tokens back").ticks(0..8))
            .y(Axis::log("relative error, held out").range(1e-5, 2.0))
    };
    let mut panel = axes("seen in full and in part");
    let (mut claims, mut config) =
        (Claims::new(), json!({ "checkpoints": ["mesa-partial", "mesa-stacks", "mesa-widths"] }));
    for (network, name, color) in NETWORKS {
        let (in_full, in_part) =
            (bound_line(&full, network, name, color, settings)?, bound_line(&runs, network, name, color, settings)?);
        claims = partial_binding_claim(claims, &format!("mesa.fig21.{network}"), name, &in_part, &in_full);
        config[network] = json!({ "full": in_full.y, "partial": in_part.y });
        let mut in_part = in_part.dashed();
        in_part.name = format!("{name}, seen in part");
        panel = panel.line(in_full).line(in_part);
    }
    let mut by_width = axes("hybrid, by width");
    let narrow = recipes::load("mesa-widths", |_| true, settings)?;
    let mut counts = Vec::new();
    let mut widths: Vec<usize> = narrow.iter().map(|run| run.protocol.architecture.width).collect();
    widths.sort_unstable();
    widths.dedup();
    for (width, color) in widths.iter().zip(shades(widths.len())) {
        let line = bound_line(&narrow, &format!("width{width}"), &format!("width {width}"), color, settings)?;
        counts.push(bound(&line));
        by_width = by_width.line(line);
    }
    let [first, last] = [counts.first(), counts.last()].map(|c| c.copied().unwrap_or(f64::NAN));
    claims = claims.at_least(
        "mesa.fig21.width",
        "hybrid: observations bound at the largest width more than at the smallest",
        last - first,
        1.0,
    );
    config["widths"] = json!(counts);
    let figure = Figure::new("mesa.fig21", "Where the state is seen in part, layer 1 binds more observations")
        .caption(format!(
            "Linear probes of layer 1's output at t = T, held out. Left: solid: Figure 2A, n = 5; dashed: {PARTIAL}. \
             Right: hybrids of other widths, 2,000 steps (the paper: 5 to 80, n = 15). Networks of each kind: \
             solid {}, dashed {}, right {}.",
            of(&full, "tf")?.len(),
            of(&runs, "tf")?.len(),
            narrow.len() / widths.len()
        ))
        .columns(2)
        .panel(panel)
        .panel(by_width);
    Ok(Reproduction { figure, claims, config })
}
