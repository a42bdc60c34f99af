//! Figures 9, 13, 14, 17, 23 and 27: the weight vectors that a layer's predictions induce.

use serde_json::json;

use super::analysis::{Probed, cut, outside_span, query_prompts};
use super::heat_maps::newton_steps;
use super::matching::{DESCENT, Layers, MODEL, NEWTON, Rivals, Trend, map, path_panel, powers_of_two};
use super::recipes;
use crate::algorithms::{Algorithm, LeastSquares, Run, weights};
use crate::compare::{Measure, Similarity};
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Axis, Claims, Color, Extremes, Figure, Line, Panel, greater, lesser};
use crate::linalg::dot;
use crate::tasks::Prompts;
use crate::{Error, Result};

/// The colour of least squares.
const SOLVED: Color = Color::GREEN;

/// A network's induced weights on prompts of its task, and the algorithms for it.
pub struct Induced {
    /// The prompts, without the queries.
    pub prompts: Prompts,
    /// For each layer `[batch, n + 1, d]`.
    pub weights: Vec<Vec<f64>>,
    /// The algorithms for its task.
    pub rivals: Rivals,
    /// Its layers by their errors, for the span of the trend.
    pub layers: Layers,
}

impl Induced {
    /// The networks of a recipe.
    ///
    /// # Errors
    /// As [`recipes::load`], [`Probed::fit`] and [`Probed::induced_weights`].
    pub fn load(id: &str, settings: &Settings<'_>) -> Result<Vec<Self>> {
        let of = |network: &recipes::Trained| {
            let n = network.protocol.context;
            let asked = query_prompts(network, settings)?;
            let weights = Probed::fit(network, settings)?.induced_weights(&asked, n)?;
            Ok(Induced {
                prompts: cut(&asked, n)?,
                weights,
                rivals: Rivals::of(network)?,
                layers: Layers::of(network, settings)?,
            })
        };
        recipes::load(id, settings)?.iter().map(of).collect()
    }

    fn shape(&self) -> [usize; 3] {
        [self.prompts.len(), self.prompts.context() + 1, self.prompts.dim()]
    }

    /// The weight vectors of an algorithm after these steps, `[batch, n + 1, d]` each.
    ///
    /// # Errors
    /// As [`weights`].
    pub fn run(&self, algorithm: &dyn Algorithm, at: &[usize]) -> Result<Vec<Vec<f64>>> {
        Ok(weights(&[Run { algorithm, at }], &self.prompts)?.remove(0))
    }

    /// SimW of every step of an algorithm (rows) with every layer (columns), over t = 1, …, n.
    ///
    /// # Errors
    /// As [`weights`].
    pub fn similarity(&self, algorithm: &dyn Algorithm, at: &[usize]) -> Result<Similarity> {
        let positions = 1..self.prompts.context() + 1;
        Similarity::of_weights(Measure::Cosine, &self.run(algorithm, at)?, &self.weights, self.shape(), positions)
    }

    /// The mean cosine between a layer's weights and others at each t = 1, …, n.
    pub fn by_examples(&self, layer: usize, other: &[f64]) -> Vec<f64> {
        let [batch, positions, d] = self.shape();
        let cosine = |t: usize| {
            let at = |i: usize| (i * positions + t) * d..(i * positions + t + 1) * d;
            let of = |i: usize| Measure::Cosine.of(&self.weights[layer][at(i)], &other[at(i)]);
            (0..batch).map(of).sum::<f64>() / batch as f64
        };
        (1..positions).map(cosine).collect()
    }
}

fn first(all: &[Induced]) -> Result<&Induced> {
    all.first().ok_or_else(|| Error::invalid("networks", 0, "at least 1"))
}

/// Figures 9, 17 and 23: heat maps of SimW.
fn maps(id: &str, title: &str, checkpoint: &str, settings: &Settings<'_>) -> Result<Reproduction> {
    let all = Induced::load(checkpoint, settings)?;
    let shown = first(&all)?;
    let (newton, descent) = (newton_steps(), powers_of_two());
    let by_newton: Vec<Similarity> =
        all.iter().map(|i| i.similarity(&i.rivals.newton, &newton)).collect::<Result<_>>()?;
    let by_descent = shown.similarity(&shown.rivals.descent, &descent)?;
    let (mut initial, mut last, mut apart) = (0.0_f64, 1.0_f64, 0.0_f64);
    let mut trends = Vec::new();
    for (induced, simw) in all.iter().zip(&by_newton) {
        let trend = Trend::of(&induced.layers, simw, &newton, false, settings.seed)?;
        let sime = induced.layers.similarity(&induced.rivals.newton, &newton)?.best(0, settings.seed);
        let best = |layer: usize| trend.best[layer];
        initial = greater(initial, (0..newton.len()).map(|r| simw.mean(r, 0).abs()).greatest());
        last = lesser(last, best(trend.best.len() - 1).value);
        for (layer, match_) in sime.iter().enumerate().take(trend.span.1 + 1).skip(trend.span.0) {
            apart = greater(apart, best(layer).row.abs_diff(match_.row) as f64);
        }
        trends.push((format!("seed {}", &induced.layers.name[1..]), trend));
    }
    let named: Vec<(String, &Trend)> = trends.iter().map(|(n, t)| (n.clone(), t)).collect();
    let figure = Figure::new(id, title)
        .caption(format!(
            "Similarity of induced weights (eq. 8): the cosine between the weight vector fitted to a layer's predictions for \
             {} queries after t examples and an algorithm's, averaged over t = 1, …, {} and {} prompts.",
            10 * shown.prompts.dim(),
            shown.prompts.context(),
            shown.prompts.len()
        ))
        .columns(3)
        .panel(map("SimW with Newton", &by_newton[0], &newton, "Newton steps"))
        .panel(map("SimW with gradient descent", &by_descent, &descent, "gradient-descent steps"))
        .panel(path_panel("best-matching Newton steps", &named, &newton, false));
    let claims = Claims::new()
        .at_most(format!("{id}.first"), "first layer: largest |SimW| with any Newton step", initial, 0.15)
        .at_least(format!("{id}.last"), "last layer: SimW with its best Newton step (worst seed)", last, 0.93)
        .at_most(
            format!("{id}.path"),
            "best Newton steps by SimW and by SimE differ, over the span, by at most",
            apart,
            2.0,
        );
    let config = json!({
        "checkpoint": checkpoint, "prompts": shown.prompts.len(), "queries": 10 * shown.prompts.dim(),
        "newton": trends.iter().map(|(n, t)| (n.clone(), t.describe(&newton))).collect::<serde_json::Map<_, _>>(),
    });
    Ok(Reproduction { figure, claims, config })
}

/// Figure 9: SimW.
///
/// # Errors
/// As [`Induced::load`].
pub fn fig9(settings: &Settings<'_>) -> Result<Reproduction> {
    maps("newton.fig9", "Induced weights against Newton and gradient descent", "newton-s", settings)
}

/// Figure 17: SimW on ill-conditioned data.
///
/// # Errors
/// As [`Induced::load`].
pub fn fig17(settings: &Settings<'_>) -> Result<Reproduction> {
    maps("newton.fig17", "Induced weights on ill-conditioned data", "newton-s-skew", settings)
}

/// Figure 23: SimW with one head.
///
/// # Errors
/// As [`Induced::load`].
pub fn fig23(settings: &Settings<'_>) -> Result<Reproduction> {
    maps("newton.fig23", "Induced weights with one head a layer", "newton-s-one-head", settings)
}

/// Figure 13: each layer's similarity to Newton and gradient descent at their best steps, and to least squares.
///
/// # Errors
/// As [`Induced::load`].
pub fn fig13(settings: &Settings<'_>) -> Result<Reproduction> {
    let all = Induced::load("newton-s", settings)?;
    let shown = first(&all)?;
    let (newton, descent) = (newton_steps(), powers_of_two());
    let values = |s: Similarity| s.best(0, settings.seed).iter().map(|b| b.value).collect::<Vec<f64>>();
    let errors = |i: &Induced| -> Result<[Vec<f64>; 3]> {
        Ok([
            values(i.layers.similarity(&i.rivals.newton, &newton)?),
            values(i.layers.similarity(&i.rivals.descent, &descent)?),
            i.layers.with_least_squares()?,
        ])
    };
    let induced = [
        values(shown.similarity(&shown.rivals.newton, &newton)?),
        values(shown.similarity(&shown.rivals.descent, &descent)?),
        shown.similarity(&shown.rivals.solved, &[0])?.means(),
    ];
    let panel = |title: &str, curves: &[Vec<f64>; 3], name: &str| {
        let x = shown.layers.numbers();
        Panel::new(title)
            .x(Axis::linear("layer"))
            .y(Axis::linear(name))
            .line(Line::new("Newton, best step", &x, &curves[0]).color(NEWTON).markers())
            .line(Line::new("gradient descent, best step", &x, &curves[1]).color(DESCENT).markers())
            .line(Line::new("least squares", &x, &curves[2]).color(SOLVED).markers())
    };
    let mut behind = f64::MIN;
    for i in &all {
        let [by_newton, by_descent, _] = errors(i)?;
        let (start, _) = i.layers.span()?;
        behind = (start..by_newton.len()).fold(behind, |w, l| greater(w, by_descent[l] - by_newton[l]));
    }
    let shown_errors = errors(shown)?;
    let figure = Figure::new("newton.fig13", "Which algorithm the layers resemble")
        .caption(
            "Similarity at the best-matching step. Before the first useful layer gradient descent after one step is the more \
             similar one, as in the paper's own numbers; in late layers the two tie.",
        )
        .columns(2)
        .panel(panel("(a) errors", &shown_errors, "SimE"))
        .panel(panel("(b) induced weights", &induced, "SimW"));
    let claims = Claims::new().at_most(
        "newton.fig13.newton",
        "from the first useful layer on: SimE with gradient descent minus SimE with Newton, largest (worst seed)",
        behind,
        0.01,
    );
    let config = json!({ "checkpoint": "newton-s", "sime": shown_errors, "simw": induced });
    Ok(Reproduction { figure, claims, config })
}

/// Figure 14: similarity of induced weights against the number of examples.
///
/// # Errors
/// As [`Induced::load`].
pub fn fig14(settings: &Settings<'_>) -> Result<Reproduction> {
    let all = Induced::load("newton-s", settings)?;
    let shown = first(&all)?;
    let (start, _) = shown.layers.span()?;
    let last = shown.layers.count() - 1;
    let chosen = [start.saturating_sub(1), start, last];
    let (newton, descent) = (newton_steps(), powers_of_two());
    let examples: Vec<usize> = (1..=shown.prompts.context()).collect();
    let curves = |i: &Induced, layer: usize| -> Result<[Vec<f64>; 3]> {
        let pick = |algorithm: &dyn Algorithm, steps: &[usize]| -> Result<Vec<f64>> {
            let row = i.similarity(algorithm, steps)?.best(0, settings.seed)[layer].row;
            Ok(i.by_examples(layer, &i.run(algorithm, &steps[row..=row])?[0]))
        };
        let solved = i.run(&i.rivals.solved, &[0])?;
        Ok([pick(&i.rivals.newton, &newton)?, pick(&i.rivals.descent, &descent)?, i.by_examples(layer, &solved[0])])
    };
    let mut figure = Figure::new("newton.fig14", "Induced weights by the number of examples").columns(3).caption(
        "Cosine between a layer's induced weights and those of Newton and gradient descent at their best steps, and of \
         least squares, against the number of examples: the layer before the first useful one, that one, and the last.",
    );
    for layer in chosen {
        let [by_newton, by_descent, by_solution] = curves(shown, layer)?;
        figure = figure.panel(
            Panel::new(format!("layer {}", layer + 1))
                .x(Axis::linear("examples"))
                .y(Axis::linear("cosine").range(-0.2, 1.05))
                .line(Line::new("Newton, best step", &examples, by_newton).color(NEWTON))
                .line(Line::new("gradient descent, best step", &examples, by_descent).color(DESCENT))
                .line(Line::new("least squares", &examples, by_solution).color(SOLVED)),
        );
    }
    let (mut least, mut dip) = (1.0_f64, f64::MAX);
    for i in &all {
        let [by_newton, _, by_solution] = curves(i, i.layers.count() - 1)?;
        least = by_solution[1..].iter().fold(least, |w, c| lesser(w, *c));
        let at = i.prompts.dim() - 1;
        dip = lesser(dip, by_newton[at] - by_solution[at]);
    }
    let claims = Claims::new()
        .at_least("newton.fig14.last", "last layer, t ≥ 2: least cosine with least squares (worst seed)", least, 0.95)
        .at_least(
            "newton.fig14.dip",
            "last layer, t = d: cosine with Newton minus cosine with least squares (worst seed)",
            dip,
            0.0,
        );
    let config = json!({ "checkpoint": "newton-s", "layers": chosen.map(|l| l + 1) });
    Ok(Reproduction { figure, claims, config })
}

/// Figure 27: the induced weights lie in the span of the covariates seen so far.
///
/// # Errors
/// As [`Induced::load`].
pub fn fig27(settings: &Settings<'_>) -> Result<Reproduction> {
    let all = Induced::load("newton-s", settings)?;
    let shown = first(&all)?;
    let (n, d) = (shown.prompts.context(), shown.prompts.dim());
    let examples: Vec<usize> = (1..=n).collect();
    let mut worst = 0.0_f64;
    let mut curves = Vec::new();
    for i in &all {
        let last = i.layers.count() - 1;
        let (outside, norm) = outside_span(&i.weights[last], &i.prompts)?;
        worst = (0..d - 1).fold(worst, |w, t| greater(w, outside[t] / norm[t]));
        curves.push(outside);
    }
    let solved = shown.run(&LeastSquares::default(), &[0])?;
    let (by_solution, _) = outside_span(&solved[0], &shown.prompts)?;
    let shape = shown.shape();
    let mean_square = dot(&shown.weights[shown.layers.count() - 1], &shown.weights[shown.layers.count() - 1])
        / shape.iter().product::<usize>() as f64;
    let panel = Panel::new("")
        .x(Axis::linear("examples"))
        .y(Axis::linear("squared distance of w̃ from span{x_{1}, …, x_{t}} / d"))
        .line(Line::mean("transformer, last layer", &examples, &curves).color(MODEL))
        .line(Line::new("least squares", &examples, by_solution).color(SOLVED));
    let figure = Figure::new("newton.fig27", "Induced weights lie in the span of the examples")
        .caption(format!(
            "For t < d = {d} a solver that starts at zero stays in the span of the covariates it has seen. The mean square of \
             the weights is {mean_square:.2} an entry."
        ))
        .panel(panel);
    let claims = Claims::new().at_most(
        "newton.fig27.span",
        "last layer, t < d: squared distance from the span over the squared norm, largest (worst seed)",
        worst,
        1e-2,
    );
    Ok(Reproduction {
        figure,
        claims,
        config: json!({ "checkpoint": "newton-s", "outside": curves, "mean_square": mean_square }),
    })
}
