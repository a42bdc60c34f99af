//! Figure 3: one head against two of different activations, on data of each kernel and of their combination; and the run
//! that the authors released.

use serde_json::json;

use super::common::{AGAIN, color, line, ln_bayes, losses, with_bayes};
use super::recipes::{self, DEPTHS, RELEASED_DEPTHS, figure_3_heads, heads_name};
use crate::Result;
use crate::compare::Interval;
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Axis, Claims, Extremes, Figure, Line, Panel};
use crate::ops::kernel_prompts::Labels;

/// Panel (a): linear data, n = 8.
///
/// # Errors
/// As [`recipes::load`].
pub fn a(settings: &Settings<'_>) -> Result<Reproduction> {
    panel("fgd.fig3a", "linear", 8, settings)
}

/// Panel (b): exponential data, n = 14.
///
/// # Errors
/// As [`recipes::load`].
pub fn b(settings: &Settings<'_>) -> Result<Reproduction> {
    panel("fgd.fig3b", "exp", 14, settings)
}

/// Panel (c): data of the combination kernel, n = 14.
///
/// # Errors
/// As [`recipes::load`].
pub fn c(settings: &Settings<'_>) -> Result<Reproduction> {
    panel("fgd.fig3c", "combination", 14, settings)
}

/// ln loss of each kind of head (in the order of [`figure_3_heads`]) at each depth.
fn curves(runs: &[recipes::Trained], depths: &[usize]) -> Vec<(String, Vec<Interval>)> {
    let heads = figure_3_heads();
    let names = heads.iter().map(|h| heads_name(h));
    let of = |name: &str, l: usize| {
        losses(runs.iter().filter(|t| t.run.protocol.layers == l && t.run.protocol.heads_name() == name))
    };
    names.map(|name| (name.clone(), depths.iter().map(|l| of(&name, *l)).collect())).collect()
}

fn panel(id: &str, kernel: &str, n: usize, settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("fgd-heads", |run| run.protocol.kernel.name() == kernel, settings)?;
    let bayes = ln_bayes(kernel, n, if settings.quick { 4000 } else { 20_000 })?;
    let curves = curves(&runs, &DEPTHS);
    let mut panel = Panel::new("").x(Axis::linear("layers L").ticks(DEPTHS)).y(Axis::linear("ln test loss"));
    for (name, values) in &curves {
        panel = panel.line(line(name, &DEPTHS, values));
    }
    panel = with_bayes(panel, &DEPTHS, &vec![bayes; DEPTHS.len()]);
    let data = match kernel {
        "linear" => "Linear data with n = 8 >= d: the Bayes loss is 0.",
        "exp" => "Kernel exp(½⟨u, v⟩).",
        _ => {
            "Kernel exp(½⟨u_{1:2}, v_{1:2}⟩) + ⟨u_{3:5}, v_{3:5}⟩; the authors' code leaves out the fifth coordinate \
             (Combination::Code), another reproduction exchanges the blocks (Combination::Exchanged)."
        }
    };
    let grown = match kernel {
        "linear" => "Each network of more than one layer starts from that of one layer less",
        _ => "Up to three layers are trained at once; each deeper network starts from that of one layer less",
    };
    let figure = Figure::new(id, format!("One head and two on labels of the {kernel} kernel"))
        .caption(format!(
            "ln test loss, exact over labels, d = 5, n = {n}; mean and one standard deviation over {} seeds. {data} {grown}, {AGAIN}.",
            curves.first().and_then(|c| c.1.first()).map_or(0, |i| i.count)
        ))
        .panel(panel);
    let gap = |k: usize| {
        // Two heads minus the better of the single ones.
        curves[2].1[k].mean - curves[0].1[k].mean.min(curves[1].1[k].mean)
    };
    let mut claims = Claims::new();
    if kernel == "combination" {
        for (l, least) in [(1, 0.1), (3, 0.4), (7, 0.4)] {
            let k = l - 1;
            claims = claims
                .at_least(
                    format!("{id}.exp.l{l}"),
                    format!("two heads beat the exponential one on the combination, L = {l}: difference in ln loss"),
                    curves[1].1[k].mean - curves[2].1[k].mean,
                    least,
                )
                .at_least(
                    format!("{id}.linear.l{l}"),
                    format!("and the linear one, L = {l}"),
                    curves[0].1[k].mean - curves[2].1[k].mean,
                    1.0,
                );
        }
    } else {
        let worst = (0..DEPTHS.len()).map(gap).greatest();
        claims = claims.at_most(
            format!("{id}.both"),
            "two heads are as good as the better one: largest difference in ln loss over the depths",
            worst,
            0.1,
        );
    }
    let table: Vec<_> = curves
        .iter()
        .map(|(name, values)| json!({ "heads": name, "ln_loss": values.iter().map(|i| i.to_string()).collect::<Vec<_>>() }))
        .collect();
    let config = json!({
        "checkpoint": "fgd-heads", "kernel": kernel, "n": n, "L": DEPTHS, "ln_bayes": bayes.is_finite().then_some(bayes),
        "networks": table,
    });
    Ok(Reproduction { figure, claims, config })
}

/// The authors' printed training losses after 2,000 steps on linear data, n = 8, seeds 0 to 2 (fgd.md section 3): heads,
/// layers, losses.
const PRINTED: [(&str, usize, [f64; 3]); 8] = [
    ("linear", 1, [0.748, 0.752, 0.729]),
    ("linear", 3, [0.253, 0.239, 0.239]),
    ("linear", 5, [0.0715, 0.0649, 0.0654]),
    ("linear", 7, [0.003_09, 0.003_82, 0.002_88]),
    ("exp", 1, [0.959, 0.985, 0.920]),
    ("exp", 3, [0.393, 0.367, 0.366]),
    ("exp", 5, [0.205, 0.214, 0.239]),
    ("exp", 7, [0.0926, 0.0921, 0.0908]),
];
/// The released figure, ln test loss after 1,600 steps, read off its picture: heads, L = 1, 3, 5, 7.
const PICTURE: [(&str, [f64; 4]); 3] = [
    ("linear", [-0.18, -1.0, -2.1, -5.0]),
    ("exp", [0.0, -0.68, -1.27, -2.1]),
    ("linear + exp", [-0.2, -0.85, -1.75, -3.45]),
];

/// What the clipping of the authors' code leaves of the step of every layer, at the last record: the norm of the gradient in the
/// parameters over that of the whole gradient.
fn left_of_steps(run: &recipes::Trained) -> Result<Vec<f64>> {
    let prompts = run.task.prompts(run.run.protocol.batch, Labels::Sampled, recipes::TEST_SEED)?;
    let (model, layers) = (run.last()?, run.run.protocol.layers);
    let whole = model.whole_gradient(&prompts)?;
    let squares = |part: &[f64]| -> Vec<f64> {
        part.chunks(part.len() / layers).map(|layer| layer.iter().map(|g| g * g).sum()).collect()
    };
    let pairs = squares(&whole.free).into_iter().zip(squares(&whole.held));
    Ok(pairs.map(|(free, held)| (free / (free + held)).sqrt()).collect())
}

/// The released run: the authors' optimiser, sampled labels, 2,100 steps, linear data.
///
/// # Errors
/// As [`recipes::load`].
pub fn released(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("fgd-authors", |_| true, settings)?;
    let at =
        |run: &recipes::Trained, step: u64| run.steps.iter().position(|s| *s == step).map_or(f64::NAN, |k| run.test[k]);
    let of = |name: &str, l: usize, step: u64| -> Vec<f64> {
        let wanted = |t: &&recipes::Trained| t.run.protocol.layers == l && t.run.protocol.heads_name() == name;
        runs.iter().filter(wanted).map(|t| at(t, step)).collect()
    };
    let mut panel = Panel::new("A: after 1,600 steps")
        .x(Axis::linear("layers L").ticks(RELEASED_DEPTHS))
        .y(Axis::linear("ln test loss"));
    let mut measured = Vec::new();
    for (name, picture) in PICTURE {
        let logs = |l: usize| of(name, l, 1600).iter().map(|v| v.ln()).collect::<Vec<_>>();
        let values: Vec<Interval> = RELEASED_DEPTHS.iter().map(|l| Interval::of(&logs(*l))).collect();
        panel = panel.line(line(name, &RELEASED_DEPTHS, &values)).line(
            Line::new(format!("{name}, the authors' picture"), RELEASED_DEPTHS, picture).color(color(name)).dashed(),
        );
        measured
            .push(json!({ "heads": name, "ln_loss_1600": values.iter().map(|i| i.to_string()).collect::<Vec<_>>() }));
    }
    let batch = runs.first().map_or(0, |t| t.run.protocol.batch);
    let [first, .., deepest] = RELEASED_DEPTHS;
    let layers: Vec<usize> = (first..=deepest).collect();
    let mut shares = Panel::new("B: what is left of a step, 7 layers").x(Axis::linear("layer").ticks(layers.clone()));
    shares = shares.y(Axis::linear("gradient's norm, free entries / all").range(0.0, 1.05));
    let mut least = Vec::new();
    for heads in figure_3_heads().map(|h| heads_name(&h)) {
        let wanted = |t: &&recipes::Trained| t.run.protocol.layers == deepest && t.run.protocol.heads_name() == heads;
        let all: Vec<Vec<f64>> = runs.iter().filter(wanted).map(left_of_steps).collect::<Result<_>>()?;
        let line = Line::mean(heads.clone(), &layers, &all).color(color(&heads)).markers();
        least.push(line.y.iter().copied().least());
        shares = shares.line(line);
    }
    let figure = Figure::new("fgd.released", "The authors' released run, again")
        .caption(format!(
            "ln test loss after 1,600 steps of the authors' protocol (layer-wise normalised gradient descent, sampled labels, \
             linear data, n = 8, {batch} prompts a step). The run is far from trained: the optimum of one layer is 1/3, ln −1.1. Their \
             line for Bayes, −14.8, is the jitter of their code; the Bayes loss is 0. Their printed losses are those of training batches. B: \
             their code clips the gradient of whole matrices and then sets what is outside the blocks to 0; what the gradient has there, the \
             noise of sampled labels, shortens the steps of all other entries (after 2,000 steps, one batch a network, means over seeds)."
        ))
        .columns(2)
        .panel(panel)
        .panel(shares);
    let mut claims = Claims::new();
    for (name, layers, printed) in PRINTED {
        let (ours, theirs) = (Interval::of(&of(name, layers, 2000)).mean, Interval::of(&printed).mean);
        claims = claims.equals(
            format!("fgd.released.{name}.l{layers}"),
            format!("{name}, L = {layers}: loss after 2,000 steps, over the authors' printed mean of {theirs:.4}"),
            ours / theirs,
            1.0,
            0.25,
        );
    }
    claims = claims.at_most(
        "fgd.released.held",
        "exp, L = 7, after 2,000 steps: share of a step that the noise in entries held at 0 leaves (least of layers)",
        least[1],
        0.5,
    );
    let config = json!({ "checkpoint": "fgd-authors", "batch": batch, "networks": measured, "least_share": least });
    Ok(Reproduction { figure, claims, config })
}
