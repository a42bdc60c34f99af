//! Figures 2A, 6, 7A, 8A, 16 and 18A at the authors' own size, n = 10 and T = 50, beside the curves that they stored.

use serde_json::json;

use super::depth::{at, layer_by_layer, log_gap, of, over_seeds, overall, sample, seeds, shades};
use super::kernels::RIDGE;
use super::one_layer::mean;
use super::probes::Target;
use super::recipes::{self, FULL, FULL_DEPTH, SENSITIVITIES, Trained};
use super::reference;
use super::stacks::{HORIZON, binding_claims, bound_line, sensitivity_claims, sensitivity_panel};
use crate::Result;
use crate::algorithms::sequences::{
    FewShotPairs, InverseSeries, Pairing, SequenceLeastSquares, few_shot_losses, orthogonal_floor, sequence_losses,
};
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Axis, Claims, Color, Extremes, Figure, Line, Panel};
use crate::tasks::{FewShot, Prompt};

const CHECKPOINT: &str = "mesa-full";

/// Variance of a coordinate of the first state, U(−1, 1), which orthogonal dynamics keep.
pub(super) const VARIANCE: f64 = 1.0 / 3.0;

/// Networks, what they are called, their colours, and where the authors' losses of them are.
const NETWORKS: [(&str, &str, Color, &str); 3] = [
    ("tf3", "softmax × 3", Color::SKY, "fig6c/TF3"),
    ("tf", "softmax × 7", Color::BLUE, "fig7a/TF7"),
    ("hybrid", "softmax + mesa", Color::RED, "fig7a/Hybrid-mesa"),
];

/// Figures 6C and 7A.
///
/// # Errors
/// As [`recipes::load`].
pub fn losses(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load(CHECKPOINT, |_| true, settings)?;
    let test = sample(of(&runs, "tf")?[0], settings)?;
    let t: Vec<usize> = (1..=FULL.1).collect();
    let axes = |title: &str| Panel::new(title).x(Axis::linear("token t")).y(Axis::log("loss at token t"));
    let series = |which: &str| -> Result<[Vec<f64>; 2]> {
        let of = |pairing| sequence_losses(&InverseSeries::authors(which, pairing)?, &test, None);
        Ok([of(Pairing::All)?, of(Pairing::Dropped)?])
    };
    let ([two_all, two], [six_all, six]) = (series("linear2")?, series("linear")?);
    let ridge = sequence_losses(&SequenceLeastSquares { ridge: RIDGE, pairing: Pairing::All }, &test, None)?;
    let mut panels = [axes("Figure 6C: depth against steps"), axes("Figure 7A: the hybrid")];
    let (mut claims, mut all) = (Claims::new(), Vec::new());
    for (network, name, color, theirs) in NETWORKS {
        let ours: Vec<Vec<f64>> = of(&runs, network)?.iter().map(|run| run.losses(&test)).collect::<Result<_>>()?;
        let theirs = reference::curve(theirs)?;
        for (panel, shown) in panels.iter_mut().zip([network != "hybrid", network != "tf3"]) {
            if shown {
                let both = [
                    Line::mean(name, &t, &ours).color(color),
                    Line::new(format!("paper: {name}"), &t, &theirs).color(color).dotted(),
                ];
                *panel = both.into_iter().fold(panel.clone(), Panel::line);
            }
        }
        claims = claims.within(
            format!("mesa.full.{network}"),
            format!("{name}: mean loss over the authors' {:.3}", mean(&theirs)),
            overall(&ours) / mean(&theirs),
            0.95,
            1.05,
        );
        all.push(ours);
    }
    let [depth, hybrid] = panels;
    let depth = depth
        .line(Line::new("Prop. 2, 2 steps", &t, &two_all).color(Color::ORANGE).dashed())
        .line(Line::new("Prop. 2, 6 steps", &t, &six_all).color(Color::BROWN).dashed())
        .line(Line::new("6 steps, newest pair dropped", &t, &six).color(Color::GREY).dashed());
    let hybrid = hybrid
        .line(Line::new("Prop. 2, 6 steps", &t, &six_all).color(Color::BROWN).dashed())
        .line(Line::new("least squares", &t, &ridge).color(Color::BLACK))
        .line(Line::new("floor", &t, orthogonal_floor(FULL.0, FULL.1, 0.01)).color(Color::BLACK).dotted());
    let figure = Figure::new("mesa.full", "Figures 6C and 7A at the authors' own size")
        .caption(format!(
            "n = 10, T = 50, batches of 256, {}; on a CPU. Trained as the authors' networks: softmax 10,000 steps up to 8e-4, the hybrid \
             20,000 up to 3e-4, its streams clipped to ±1. Dotted: their stored curves, one network each. Prop. 2 with their coefficients, \
             learnt at this size.",
            seeds(all[0].len())
        ))
        .panel(depth)
        .panel(hybrid);
    let [three, seven, mesa] = [&all[0], &all[1], &all[2]];
    // t ≥ 1.5 n, from 0.
    let late = (3 * FULL.0).div_ceil(2) - 1;
    let gap = |a: &[Vec<f64>], b: &[f64], t: std::ops::Range<usize>| log_gap(&over_seeds(a)[t.clone()], &b[t]);
    let end = FULL.1 - 1;
    let claims = claims
        .at_most(
            "mesa.full.deep",
            "7 layers are near 6 steps of Prop. 2 for t ≥ 1.5 n (mean gap in ln loss)",
            gap(seven, &six_all, late..FULL.1),
            0.3,
        )
        .at_most("mesa.full.shallow", "3 layers are near 2 steps there", gap(three, &two_all, late..FULL.1), 0.3)
        .at_least(
            "mesa.full.early",
            "at t ≤ n the gap of 7 layers with all pairs exceeds that with the newest dropped (ratio)",
            gap(seven, &six_all, 1..FULL.0) / gap(seven, &six, 1..FULL.0),
            1.0,
        )
        .at_most(
            "mesa.full.mean",
            "the hybrid beats 7 softmax layers (ratio of mean losses)",
            overall(mesa) / overall(seven),
            1.0,
        )
        .at_most("mesa.full.end", "… and at t = T", at(mesa, end) / at(seven, end), 1.0)
        .at_least(
            "mesa.full.floor",
            "yet it is not at the floor of least squares (ratio of mean losses)",
            overall(mesa) / mean(&ridge),
            1.0,
        );
    let config = json!({
        "checkpoint": CHECKPOINT, "means": all.iter().map(|c| overall(c)).collect::<Vec<_>>(),
        "at_T": all.iter().map(|c| at(c, end)).collect::<Vec<_>>(), "least_squares": mean(&ridge),
        "prop2": [mean(&two_all), mean(&six_all)], "prop2_code": [mean(&two), mean(&six)],
    });
    Ok(Reproduction { figure, claims, config })
}

/// Figures 8A and 18A, pairs alone, for as many pairs as T holds.
///
/// # Errors
/// As [`recipes::load`].
pub fn pairs(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load(CHECKPOINT, |n| n != "tf3", settings)?;
    let count = FULL.1 / 2;
    let i: Vec<usize> = (1..=count).collect();
    let task = FewShot::new(FULL.0, count)?;
    let prompts = task.sample(if settings.quick { 512 } else { 4096 }, settings.seed.wrapping_add(83))?;
    let prompt = Prompt::default();
    let ridge = SequenceLeastSquares { ridge: RIDGE, pairing: Pairing::All };
    let squares = few_shot_losses(&ridge, &prompts, FewShotPairs::Spurious)?;
    let mut figure = Figure::new("mesa.full-pairs", "Figures 8A and 18A: pairs alone, at the authors' own size");
    let (mut claims, mut config) = (Claims::new(), json!({ "checkpoint": CHECKPOINT }));
    for ((network, name, color, _), (title, stored)) in
        NETWORKS[1..].iter().zip([("Figure 8A", "fig8a"), ("Figure 18A", "fig18a")])
    {
        let losses = |run: &&Trained| prompts.losses(&prompt, &run.model.predict(&prompts.tokens(&prompt)?)?);
        let all: Vec<Vec<f64>> = of(&runs, network)?.iter().map(losses).collect::<Result<_>>()?;
        let theirs: Vec<f64> = reference::curve(&format!("{stored}/pairs"))?.into_iter().take(count).collect();
        let line = Line::mean(*name, &i, &all).color(*color);
        let ours = line.y.clone();
        claims = claims
            .at_most(
                format!("mesa.full-pairs.{network}.learns"),
                format!("{name}: the label loss of the last pair over that of the first"),
                ours[count - 1] / ours[0],
                0.6,
            )
            .at_least(
                format!("mesa.full-pairs.{network}.rises"),
                format!("{name}: the loss rises before it falls (greatest over first)"),
                ours.iter().copied().greatest() / ours[0],
                1.05,
            )
            .at_most(
                format!("mesa.full-pairs.{network}.paper"),
                format!("{name}: the authors' curve (mean gap in ln loss)"),
                log_gap(&ours, &theirs),
                0.1,
            );
        figure = figure.panel(
            Panel::new(title)
                .x(Axis::linear("pair i"))
                .y(Axis::linear("label loss ½‖y_{i} − f(x_{i})‖²").range(0.0, 3.5))
                .line(line)
                .line(Line::new(format!("paper: {name}"), &i, &theirs).color(*color).dotted())
                .line(Line::new("least squares, spurious pairs too", &i, &squares).color(Color::BLACK).dashed()),
        );
        config[network] = json!(ours);
    }
    let figure = figure.caption(format!(
        "The networks of T = 50, trained on dynamics alone, read x_{{1}}, y_{{1}}, x_{{2}}, … with y = W x, x uniform as in the authors' code: \
         {count} pairs; {}. Dotted: the authors' networks, trained on T = 224. Least squares leaves the axis.",
        seeds(of(&runs, "tf")?.len())
    ));
    Ok(Reproduction { figure, claims, config })
}

/// The authors' probes of a figure, layer by layer: the error at every token.
pub(super) fn stored(figure: &str) -> Result<Vec<Vec<f64>>> {
    (0..=FULL_DEPTH).map(|l| reference::curve(&format!("{figure}/layer{l}"))).collect()
}

/// The authors' `stored` probes of layer 1 for the newest states, beside `ours`, relative to the variance of what is probed for.
pub(super) fn binding_beside(ours: &Line, stored: &str, variance: f64) -> Result<Line> {
    let theirs: Vec<f64> = reference::curve(stored)?.iter().rev().map(|v| v / variance).collect();
    let mut theirs = Line::new(format!("paper: {}", ours.name), 0..HORIZON, theirs).dotted();
    theirs.color = ours.color;
    Ok(theirs)
}

/// The sensitivities of layer 1 over training beside the authors' for the newest four tokens, and ours at the end.
pub(super) fn sensitivities_beside(title: &str, runs: &[&Trained], stored: &str) -> Result<(Panel, Vec<f64>)> {
    let (mut panel, last) = sensitivity_panel(title, runs)?;
    let colors = shades(SENSITIVITIES.len());
    for (token, color) in SENSITIVITIES.into_iter().zip(colors.into_iter().rev()).take(4) {
        let theirs = reference::curve(&format!("{stored}/{token}"))?;
        let steps: Vec<usize> = (0..theirs.len()).map(|k| 100 * k).collect();
        panel = panel.line(Line::new(format!("paper: {token}"), &steps, &theirs).color(color).dotted());
    }
    Ok((panel, last))
}

/// A panel of probes with the authors' for the input and the layers 1, 2, 4, and 7 beside ours.
pub(super) fn beside(mut panel: Panel, title: &str, theirs: &[Vec<f64>]) -> Panel {
    panel.title = title.to_owned();
    let t: Vec<usize> = (2..=FULL.1).collect();
    for (l, color) in
        shades(FULL_DEPTH + 1).into_iter().enumerate().filter(|(l, _)| [0, 1, 2, 4, FULL_DEPTH].contains(l))
    {
        let name = if l == 0 { "paper: input".to_owned() } else { format!("paper: layer {l}") };
        panel = panel.line(Line::new(name, &t, &theirs[l][1..]).color(color).dotted());
    }
    panel
}

/// Figures 2A, 6A, 6B and 16.
///
/// # Errors
/// As [`recipes::load`].
pub fn layers(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load(CHECKPOINT, |n| n != "tf3", settings)?;
    let mut binding = Panel::new("Figure 2A: earlier states in layer 1")
        .x(Axis::linear("state probed for, tokens back").ticks(0..HORIZON))
        .y(Axis::log("relative error, held out").range(1e-7, 2.0));
    let mut sensitivities = Vec::new();
    let (mut claims, mut config) = (Claims::new(), json!({ "checkpoint": CHECKPOINT }));
    for (network, name, color, _) in &NETWORKS[1..] {
        let line = bound_line(&runs, network, name, *color, settings)?;
        let stored = if *network == "tf" { "full_softmax" } else { "full_hybrid" };
        binding = binding.line(binding_beside(&line, &format!("fig2a/{stored}"), VARIANCE)?);
        claims = binding_claims(claims, &format!("mesa.full.{network}"), name, &line);
        config[network] = json!(line.y);
        binding = binding.line(line);
        let title = format!("Figure 16: {name}");
        let (panel, last) = sensitivities_beside(&title, &of(&runs, network)?, &format!("fig16/{stored}"))?;
        claims = sensitivity_claims(claims, &format!("mesa.full.{network}-depends"), name, &last);
        sensitivities.push(panel);
    }
    let all: Vec<&Trained> = of(&runs, "tf")?;
    let series = InverseSeries::authors("linear", Pairing::All)?;
    let ids = ["mesa.full.next", "mesa.full.preconditioned"];
    let probed = layer_by_layer(ids, &all, &Target::Preconditioned(series), settings)?;
    let ([next, _], [inner, _]) = (probed.next, probed.inner);
    let last = FULL.1 - 2;
    let theirs = stored("fig6a")?;
    claims.extend(probed.claims);
    config["next_at_T"] =
        json!(probed.scores.iter().map(|s| s.absolute.iter().map(|l| l[last]).collect::<Vec<_>>()).collect::<Vec<_>>());
    config["next_at_T_of_the_paper"] = json!(theirs.iter().map(|l| l[last + 1]).collect::<Vec<_>>());
    let figure = Figure::new("mesa.full-layers", "Figures 2A, 6A, 6B and 16 at the authors' own size")
        .caption(format!(
            "n = 10, T = 50, {}. Linear probes, held out (the authors score on the batch that they fit: with 40 channels and 256 sequences a \
             token that is not bound then has 0.84); in 2A their errors are divided by the variance of a state, 1/3, and their softmax \
             transformer has taken 20,000 steps, their hybrid 12,000 up to 8e-4. Dotted: the authors' stored curves (16: means over five networks).",
            seeds(all.len())
        ))
        .columns(3)
        .panel(binding)
        .panel(beside(next, "Figure 6A: the next state", &theirs))
        .panel(beside(inner, "Figure 6B: the preconditioned state", &stored("fig6b")?))
        .panels(sensitivities);
    Ok(Reproduction { figure, claims, config })
}
