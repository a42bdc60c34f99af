//! Figures 15, 19, 20, 21, 24 and 25: the same analysis on other tasks and depths.

use serde_json::json;

use super::heat_maps::{DESCENT, Matches, Subject, newton_and_descent, newton_bounds, newton_steps};
use super::matching::{Layers, error_panel, first, powers_of_two, steps_name};
use super::paper_scale;
use crate::Result;
use crate::algorithms::{GradientDescent, IterativeNewton};
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Axis, Claims, Figure, Line, Panel};

/// Figure 15: error over the number of examples, layer by layer, on ill-conditioned data.
///
/// # Errors
/// As [`Layers::load`].
pub fn fig15(settings: &Settings<'_>) -> Result<Reproduction> {
    let newton = Matches::of(Layers::load("newton-s-skew", settings)?, newton_steps(), false, settings, |l| {
        Box::new(l.rivals.newton.clone())
    })?;
    let shown = first(&newton.networks)?;
    let positions: Vec<usize> = (0..=shown.prompts.context()).collect();
    let axes =
        |title: &str| Panel::new(title).x(Axis::linear("examples")).y(Axis::log("squared error / d").range(1e-4, 1.5));
    let (mut layers, mut steps) = (axes("(a) layers"), axes("(b) Newton at the best-matching steps"));
    let mut seen = Vec::new();
    for (layer, errors) in shown.errors.iter().enumerate() {
        layers = layers.line(Line::new(format!("layer {}", layer + 1), &positions, errors));
        let step = newton.steps[newton.trends[0].best[layer].row];
        if !seen.contains(&step) {
            seen.push(step);
            let errors = paper_scale::errors(&shown.rivals.newton, &[step], &shown.prompts)?.remove(0);
            let above = errors.iter().map(|e| e.max(1e-12));
            steps = steps.line(Line::new(format!("Newton, {}", steps_name(step)), &positions, above));
        }
    }
    let at = shown.prompts.context();
    let improving = shown.errors.windows(2).filter(|w| w[1][at] < w[0][at]).count();
    let claims = Claims::new().at_least(
        "newton.fig15.improves",
        "first layer's error over the last one's after all examples",
        shown.errors[0][at] / shown.errors[shown.count() - 1][at],
        3.0,
    );
    let figure = Figure::new("newton.fig15", "Ill-conditioned data: error over the number of examples")
        .caption("A transformer trained on ill-conditioned data (κ = 100, d = 5, n = 10), layer by layer, and Newton.")
        .columns(2)
        .panel(layers)
        .panel(steps);
    let config =
        json!({ "checkpoint": "newton-s-skew", "layers_that_improve": improving, "newton": newton.describe() });
    Ok(Reproduction { figure, claims, config })
}

/// Figure 19: noisy labels.
///
/// # Errors
/// As [`newton_and_descent`].
pub fn fig19(settings: &Settings<'_>) -> Result<Reproduction> {
    let subject = Subject {
        id: "newton.fig19",
        title: "Noisy labels: layers against Newton on the ridge problem",
        checkpoint: "newton-s-noisy",
        newton: newton_bounds(1.5, 5.0),
        descent: DESCENT,
    };
    let (made, networks) = newton_and_descent(subject, settings)?;
    let prompts = paper_scale::isotropic(paper_scale::count(640, settings), 0.1, settings.seed)?;
    let newton = IterativeNewton::new(1.0)?.with_ridge(0.01)?;
    let by_newton = paper_scale::with_least_squares(0.01, &newton, &[1, 5, 10, 15, 20], &prompts)?;
    let descent = GradientDescent::new(vec![paper_scale::RATE])?;
    let by_descent = paper_scale::with_least_squares(0.01, &descent, &[1, 16, 256, 1024], &prompts)?;
    let tolerance = if settings.quick { 0.03 } else { 0.01 };
    let claims = made
        .claims
        .clone()
        .at_most(
            "newton.fig19.paper-scale-newton",
            "d = 20: SimE of Newton 1, 5, 10, 15, 20 with ridge, largest difference from 0.589, …, 0.997",
            paper_scale::largest_gap(&by_newton, &[0.589, 0.739, 0.915, 0.982, 0.997]),
            tolerance,
        )
        .at_most(
            "newton.fig19.paper-scale-gd",
            "d = 20: SimE of gradient descent 1, 16, 256, 1024 with ridge, largest difference from 0.608, …, 0.998",
            paper_scale::largest_gap(&by_descent, &[0.608, 0.876, 0.989, 0.998]),
            tolerance,
        );
    let errors = error_panel("error over the layers", first(&networks)?, &[2, 4, 5, 6, 8, 10]);
    let figure = made.figure.panel(errors);
    Ok(Reproduction { figure, claims, config: made.config })
}

/// Figures 20 and 21: two-layer networks.
fn two_layer(id: &str, title: &str, checkpoint: &str, settings: &Settings<'_>) -> Result<Reproduction> {
    let descent = Matches::of(Layers::load(checkpoint, settings)?, powers_of_two(), true, settings, |l| {
        Box::new(l.rivals.descent.clone())
    })?;
    let shown = first(&descent.networks)?;
    let at = shown.prompts.context();
    let steps: Vec<usize> = descent.trends[0].best.iter().map(|b| descent.steps[b.row]).collect();
    let falls = steps.windows(2).filter(|w| w[1] < w[0]).count();
    let growth = steps[steps.len() - 1] as f64 / steps[0] as f64;
    let claims = Claims::new()
        .at_most(
            format!("{id}.error"),
            "error of the last layer over the first one's after all examples",
            shown.errors[shown.count() - 1][at] / shown.errors[0][at],
            0.9,
        )
        .at_most(format!("{id}.monotone"), "layers at which the best gradient-descent step falls", falls as f64, 0.0)
        .at_least(format!("{id}.growth"), "best step of the last layer over the first one's", growth, 8.0);
    let figure = Figure::new(id, title)
        .caption(
            "Exploratory: labels come from random two-layer networks, d = 5, 20 hidden units, n = 40; the transformer is compared \
             with gradient descent on linear regression. The paper's own hyper-parameters for this figure are not published.",
        )
        .columns(2)
        .panel(error_panel("error over the layers", shown, &[10, 20, 30, 40]))
        .panel(descent.map("SimE with gradient descent", "gradient-descent steps")?);
    Ok(Reproduction { figure, claims, config: json!({ "checkpoint": checkpoint, "gd": descent.describe() }) })
}

/// Figure 20: ReLU networks.
///
/// # Errors
/// As [`Layers::load`].
pub fn fig20(settings: &Settings<'_>) -> Result<Reproduction> {
    two_layer("newton.fig20", "Two-layer ReLU networks: layers against gradient descent", "newton-relu", settings)
}

/// Figure 21: tanh networks.
///
/// # Errors
/// As [`Layers::load`].
pub fn fig21(settings: &Settings<'_>) -> Result<Reproduction> {
    two_layer("newton.fig21", "Two-layer tanh networks: layers against gradient descent", "newton-tanh", settings)
}

/// Figure 24: twice the layers.
///
/// # Errors
/// As [`newton_and_descent`].
pub fn fig24(settings: &Settings<'_>) -> Result<Reproduction> {
    let subject = Subject {
        id: "newton.fig24",
        title: "Twice the layers, against Newton and gradient descent",
        checkpoint: "newton-s-deep",
        newton: None,
        descent: None,
    };
    let (made, deep) = newton_and_descent(subject, settings)?;
    let of = |networks| Matches::of(networks, newton_steps(), false, settings, |l| Box::new(l.rivals.newton.clone()));
    let (deep, usual) = (of(deep)?, of(Layers::load("newton-s", settings)?)?);
    let (deep, usual) = (&deep.trends[0], &usual.trends[0]);
    let last = |t: &super::matching::Trend| t.best.last().map_or(0, |b| b.row) as f64;
    let claims = made
        .claims
        .clone()
        .at_most(
            "newton.fig24.end",
            "best Newton step of the last layer, 16 layers minus 8 layers, in size",
            (last(deep) - last(usual)).abs(),
            2.0,
        )
        .within(
            "newton.fig24.slope",
            "Newton steps a layer, 16 layers over 8 layers",
            deep.fit.slope / usual.fit.slope,
            0.3,
            0.75,
        )
        .at_least("newton.fig24.last", "SimE of the last layer at its best Newton step", deep.last_similarity(), 0.97);
    Ok(Reproduction { claims, ..made })
}

/// Figure 25: error over the layers, twice the layers.
///
/// # Errors
/// As [`Layers::load`].
pub fn fig25(settings: &Settings<'_>) -> Result<Reproduction> {
    let networks = Layers::load("newton-s-deep", settings)?;
    let shown = first(&networks)?;
    let at = shown.prompts.context();
    let figure = Figure::new("newton.fig25", "Error over the layers, 16 layers")
        .caption("Linear probes of a transformer with twice the layers of Figure 2's, d = 5, n = 10.")
        .panel(error_panel("", shown, &[2, 4, 5, 6, 8, 10]));
    let claims = Claims::new()
        .at_most(
            "newton.fig25.last",
            "2d examples: error of the last layer over d",
            shown.errors[shown.count() - 1][at],
            1e-2,
        )
        .at_least(
            "newton.fig25.fall",
            "… of the first useful layer over the last one's",
            shown.errors[shown.span()?.0][at] / shown.errors[shown.count() - 1][at],
            10.0,
        );
    Ok(Reproduction { figure, claims, config: json!({ "checkpoint": "newton-s-deep", "errors": shown.errors }) })
}
