//! Figures 5 and 7 and Table 1: the transformer and the LSTM against algorithms that see all examples or one at a time.

use serde_json::json;

use super::analysis::test_prompts;
use super::heat_maps::{Matches, newton_steps};
use super::matching::{LSTM, Layers, MODEL, NEWTON, ONLINE, first, powers_of_two, steps_name};
use super::recipes::{self, Trained};
use super::{paper_scale, recipes::Network};
use crate::algorithms::{Algorithm, Examples, OnlineGradientDescent, Predictions};
use crate::compare::spearman;
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Axis, Claims, Extremes, Figure, Line, Panel, Scatter};
use crate::linalg::dot;
use crate::tasks::Prompts;
use crate::{Error, Result};

/// Squared error over d of a network's own read-out at every position.
fn own_errors(network: &Trained, prompts: &Prompts) -> Result<Vec<f64>> {
    let made = network.model.predict(prompts)?;
    let mse = Predictions::new(prompts.len(), prompts.context() + 1, vec![made])?.mse(0, prompts)?;
    Ok(mse.iter().map(|e| e / prompts.dim() as f64).collect())
}

/// The first n examples of every prompt and, as the query, example n − g once more.
fn asked_again(prompts: &Prompts, gap: usize) -> Result<Prompts> {
    let (batch, d, n) = (prompts.len(), prompts.dim(), prompts.context());
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for i in 0..batch {
        let again = n - 1 - gap;
        x.extend_from_slice(&prompts.x(i)[..n * d]);
        x.extend_from_slice(&prompts.x(i)[again * d..][..d]);
        y.extend_from_slice(&prompts.y(i)[..n]);
        y.push(prompts.y(i)[again]);
    }
    Prompts::from_data(batch, n, d, x, y)
}

/// Squared error over d of a network on an example that it saw g = 0, …, n − 1 examples ago (eq. 17).
fn forgetting_of_network(model: &Network, prompts: &Prompts) -> Result<Vec<f64>> {
    let (batch, n, d) = (prompts.len(), prompts.context(), prompts.dim());
    let of = |gap: usize| {
        let asked = asked_again(prompts, gap)?;
        let made = model.predict(&asked)?;
        let error = |i: usize| (made[i * (n + 1) + n] - asked.y(i)[n]).powi(2);
        Ok((0..batch).map(error).sum::<f64>() / (batch * d) as f64)
    };
    (0..n).map(of).collect()
}

/// The same of an algorithm after `steps` steps on all n examples.
fn forgetting_of_algorithm(algorithm: &dyn Algorithm, steps: usize, prompts: &Prompts) -> Result<Vec<f64>> {
    let (batch, n, d) = (prompts.len(), prompts.context(), prompts.dim());
    let mut errors = vec![0.0; n];
    for i in 0..batch {
        let examples = Examples::of(prompts, i, n)?;
        let w = algorithm.iterates(&examples, steps)?.swap_remove(steps);
        for (gap, error) in errors.iter_mut().enumerate() {
            let k = n - 1 - gap;
            *error += (dot(&w, &prompts.x(i)[k * d..][..d]) - prompts.y(i)[k]).powi(2) / (batch * d) as f64;
        }
    }
    Ok(errors)
}

fn only<'a>(networks: &'a [Trained], id: &str) -> Result<&'a Trained> {
    networks.first().ok_or_else(|| Error::invalid(format!("networks of {id}"), 0, "at least 1"))
}

/// Figure 5: error over the number of examples, and on an example that was seen a while ago.
///
/// # Errors
/// As [`recipes::load`].
pub fn fig5(settings: &Settings<'_>) -> Result<Reproduction> {
    let (transformers, lstms) = (recipes::load("newton-s", settings)?, recipes::load("newton-s-lstm", settings)?);
    let (transformer, lstm) = (only(&transformers, "newton-s")?, only(&lstms, "newton-s-lstm")?);
    let prompts = test_prompts(transformer, settings)?;
    let (d, n) = (prompts.dim(), prompts.context());
    let (newton, ogd) = (paper_scale::newton()?, OnlineGradientDescent::adaptive());
    let curves = [
        ("transformer", MODEL, own_errors(transformer, &prompts)?),
        ("LSTM", LSTM, own_errors(lstm, &prompts)?),
        ("Newton, 5 steps", NEWTON, paper_scale::errors(&newton, &[5], &prompts)?.remove(0)),
        ("OGD", ONLINE, paper_scale::errors(&ogd, &[0], &prompts)?.remove(0)),
    ];
    // The query is one of n = d examples.
    let seen = transformer.protocol.task.sample(d, d, d, prompts.len(), settings.seed.wrapping_add(5))?;
    let again = [
        ("transformer", MODEL, forgetting_of_network(&transformer.model, &seen)?),
        ("LSTM", LSTM, forgetting_of_network(&lstm.model, &seen)?),
        ("Newton, 5 steps", NEWTON, forgetting_of_algorithm(&newton, 5, &seen)?),
        ("OGD", ONLINE, forgetting_of_algorithm(&ogd, 0, &seen)?),
    ];
    let large = paper_scale::isotropic(paper_scale::count(1280, settings), 0.0, settings.seed)?;
    let of_newton = paper_scale::errors(&newton, &[5], &large)?.remove(0);
    let of_ogd = paper_scale::errors(&ogd, &[0], &large)?.remove(0);
    let large_seen = {
        let cut = super::analysis::cut(&large, paper_scale::DIM)?;
        (forgetting_of_algorithm(&newton, 5, &cut)?, forgetting_of_algorithm(&ogd, 0, &cut)?)
    };

    let draw = |title: String, x_name: &str, lines: &[(&str, crate::figure::Color, Vec<f64>)]| {
        let mut panel = Panel::new(title).x(Axis::linear(x_name)).y(Axis::linear("squared error / d"));
        for (name, color, y) in lines {
            panel = panel.line(Line::new(*name, 0..y.len(), y).color(*color).markers());
        }
        panel
    };
    let paper = [("Newton, 5 steps", NEWTON, of_newton.clone()), ("OGD", ONLINE, of_ogd.clone())];
    let paper_again = [("Newton, 5 steps", NEWTON, large_seen.0.clone()), ("OGD", ONLINE, large_seen.1.clone())];
    let gap_name = "examples since it was seen";
    let figure = Figure::new("newton.fig5", "The LSTM forgets, the transformer does not")
        .caption(
            "Left: error against the number of examples. Right: after n = d examples one of them is the query. Above: trained \
             networks at d = 5, n = 10; below: the algorithms at d = 20, n = 40, the paper's size. Newton has c = 2.",
        )
        .columns(2)
        .panel(draw(format!("d = {d}, n = {n}"), "examples", &curves))
        .panel(draw(format!("d = {d}: asked again"), gap_name, &again))
        .panel(draw("d = 20, n = 40".to_owned(), "examples", &paper))
        .panel(draw("d = 20: asked again".to_owned(), gap_name, &paper_again));

    let at = |v: &[f64]| [10, 20, 30, 40].map(|t| v[t]);
    let largest = |v: &[f64]| v.iter().copied().greatest();
    let ratio = |v: &[f64]| largest(v) / v.iter().copied().least();
    // What is no number does not rise either.
    let falls = large_seen.1.windows(2).filter(|w| w[1] < w[0] || w[0].is_nan() || w[1].is_nan()).count();
    let [(.., tf), (.., rnn), (.., five), _] = &curves;
    let [(.., tf_again), (.., rnn_again), ..] = &again;
    let gaps: Vec<f64> = (0..d).map(|g| g as f64).collect();
    let claims = Claims::new()
        .at_most(
            "newton.fig5.ogd",
            "d = 20: OGD after 10, 20, 30, 40 examples, largest difference from 0.601, 0.352, 0.219, 0.124",
            paper_scale::largest_gap(&at(&of_ogd), &[0.601, 0.352, 0.219, 0.124]),
            0.02,
        )
        .at_most(
            "newton.fig5.newton",
            "d = 20: Newton(5), largest difference from 0.566, 0.358, 0.229, 0.137",
            paper_scale::largest_gap(&at(&of_newton), &[0.566, 0.358, 0.229, 0.137]),
            0.02,
        )
        .at_least("newton.fig5.lstm", "LSTM's error over the transformer's after n examples", rnn[n] / tf[n], 3.0)
        .within("newton.fig5.lstm-newton", "LSTM's error over Newton(5)'s after n examples", rnn[n] / five[n], 0.5, 2.0)
        .at_most("newton.fig5.forgets", "d = 20, asked again: gaps at which OGD's error falls", falls as f64, 0.0)
        .at_least("newton.fig5.forgets-end", "… OGD's error at the largest gap", large_seen.1[19], 0.15)
        .at_most("newton.fig5.forgets-begin", "… OGD's error at gap 0", large_seen.1[0], 1e-9)
        .at_most("newton.fig5.newton-flat", "… Newton(5): largest over least error", ratio(&large_seen.0), 1.25)
        .at_least(
            "newton.fig5.lstm-forgets",
            "LSTM asked again: rank correlation of gap and error",
            spearman(&gaps, rnn_again),
            0.8,
        )
        .at_most(
            "newton.fig5.transformer-recalls",
            "transformer asked again: largest error over the LSTM's",
            largest(tf_again) / largest(rnn_again),
            0.3,
        );
    let config = json!({
        "checkpoints": ["newton-s", "newton-s-lstm"], "transformer": tf, "lstm": rnn, "transformer_again": tf_again, "lstm_again": rnn_again,
        "ogd_again_large": large_seen.1, "newton_again_large": large_seen.0,
    });
    Ok(Reproduction { figure, claims, config })
}

/// Figure 7: error over the number of examples, layer by layer, of the transformer, of Newton and of the LSTM.
///
/// # Errors
/// As [`Layers::load`].
pub fn fig7(settings: &Settings<'_>) -> Result<Reproduction> {
    /// Steps in the paper's legend.
    const STEPS: [usize; 9] = [1, 3, 5, 8, 10, 14, 17, 20, 21];
    let (transformers, lstms) = (Layers::load("newton-s", settings)?, Layers::load("newton-s-lstm", settings)?);
    let (transformer, lstm) = (first(&transformers)?, first(&lstms)?);
    let large = paper_scale::isotropic(paper_scale::count(1280, settings), 0.0, settings.seed)?;
    let newton = paper_scale::errors(&paper_scale::newton()?, &STEPS, &large)?;
    let axes =
        |title: &str| Panel::new(title).x(Axis::linear("examples")).y(Axis::log("squared error / d").range(1e-3, 1.5));
    let layers = |panel: Panel, of: &Layers| {
        of.errors
            .iter()
            .enumerate()
            .fold(panel, |panel, (layer, e)| panel.line(Line::new(format!("layer {}", layer + 1), 0..e.len(), e)))
    };
    let steps = newton.iter().zip(STEPS).fold(axes("(b) Newton, d = 20"), |panel, (e, k)| {
        let shown = e[..=22].iter().map(|e| e.max(1e-9));
        panel.line(Line::new(steps_name(k), 0..=22, shown))
    });
    let figure = Figure::new("newton.fig7", "Layers of a transformer and of an LSTM")
        .caption(
            "Error of linear probes against the number of examples, d = 5: (a) a transformer of 8 layers, (c) an LSTM of 3. (b) \
             Newton (c = 2) at the paper's size after the steps in its legend.",
        )
        .columns(3)
        .panel(layers(axes("(a) transformer"), transformer))
        .panel(steps)
        .panel(layers(axes("(c) LSTM"), lstm));
    let n = transformer.prompts.context();
    let rise = newton.windows(2).flat_map(|w| w[0].iter().zip(&w[1]).map(|(a, b)| b - a)).greatest();
    let end = |l: &Layers| l.errors.iter().map(|e| e[n]).collect::<Vec<f64>>();
    let of_lstm = end(lstm);
    let spread = of_lstm.iter().copied().greatest() / of_lstm.iter().copied().least();
    let claims = Claims::new()
        .at_least(
            "newton.fig7a.layers",
            "transformer, 2d examples: first layer's error over the last one's (least over seeds)",
            transformers.iter().map(|l| end(l)[0] / end(l)[l.count() - 1]).least(),
            3.0,
        )
        .at_most("newton.fig7b.monotone", "Newton: largest rise of error from one curve to the next", rise, 0.005)
        .at_most("newton.fig7c.lstm", "LSTM, 2d examples: largest over least error of the layers", spread, 1.6);
    let config =
        json!({ "checkpoints": ["newton-s", "newton-s-lstm"], "transformer": transformer.errors, "lstm": lstm.errors });
    Ok(Reproduction { figure, claims, config })
}

/// Table 1: SimE of the transformer's and of the LSTM's last layer with Newton, gradient descent and OGD.
///
/// # Errors
/// As [`Layers::load`].
pub fn table1(settings: &Settings<'_>) -> Result<Reproduction> {
    let names = ["Newton", "gradient descent", "OGD, adaptive step", "OGD, fixed step"];
    let fixed: Vec<OnlineGradientDescent> =
        [0.02, 0.04, 0.08, 0.16].iter().map(|r| OnlineGradientDescent::fixed(*r)).collect::<Result<_>>()?;
    let row = |id: &str| -> Result<Vec<Vec<f64>>> {
        let best = |m: &Matches| m.trends.iter().map(|t| t.last_similarity()).collect::<Vec<f64>>();
        let by_newton = Matches::of(Layers::load(id, settings)?, newton_steps(), false, settings, |l| {
            Box::new(l.rivals.newton.clone())
        })?;
        let newton = best(&by_newton);
        let by_descent = by_newton.with(powers_of_two(), true, settings, |l| Box::new(l.rivals.descent.clone()))?;
        let descent = best(&by_descent);
        let last = |l: &Layers, a: &dyn Algorithm| Ok(l.similarity(a, &[0])?.mean(0, l.count() - 1));
        let networks = &by_descent.networks;
        let adaptive = networks.iter().map(|l| last(l, &OnlineGradientDescent::adaptive())).collect::<Result<_>>()?;
        let constant = networks
            .iter()
            .map(|l| fixed.iter().map(|a| last(l, a)).try_fold(f64::MIN, |w, v: Result<f64>| Ok(w.max(v?))))
            .collect::<Result<_>>()?;
        Ok(vec![newton, descent, adaptive, constant])
    };
    let (transformer, lstm) = (row("newton-s")?, row("newton-s-lstm")?);
    let mean = |v: &Vec<f64>| v.iter().sum::<f64>() / v.len() as f64;
    let (tf, rnn): (Vec<f64>, Vec<f64>) = (transformer.iter().map(mean).collect(), lstm.iter().map(mean).collect());
    let places: Vec<f64> = (0..names.len()).map(|k| k as f64).collect();
    let panel = Panel::new("SimE of the last layer")
        .x(Axis::category("").names(names))
        .y(Axis::linear("SimE"))
        .scatter(Scatter::new("transformer", &places, &tf).color(MODEL).size(9.0))
        .scatter(Scatter::new("LSTM", &places, &rnn).color(LSTM).size(9.0))
        .scatter(Scatter::new("transformer, paper", &places[..3], [0.991, 0.957, 0.806]).size(6.0))
        .scatter(Scatter::new("LSTM, paper", &places[..3], [0.920, 0.916, 0.954]).size(6.0));
    let figure = Figure::new("newton.table1", "Transformer and LSTM against three algorithms")
        .caption(
            "Newton and gradient descent at their best-matching step; OGD with its adaptive step 1/‖x‖² and with the best of \
             four fixed ones. Mean over seeds; the paper's numbers at d = 20 beside them.",
        )
        .panel(panel);
    let claims = Claims::new()
        .at_least("newton.table1.newton", "transformer and Newton", tf[0], 0.97)
        .at_least("newton.table1.gd", "transformer: Newton minus gradient descent", tf[0] - tf[1], 0.0)
        .at_least("newton.table1.order", "transformer: gradient descent minus OGD", tf[1] - tf[2], 0.0)
        .at_most("newton.table1.ogd", "transformer and OGD", tf[2], 0.9)
        .at_least("newton.table1.lstm", "LSTM: OGD minus Newton", rnn[2] - rnn[0], -0.02)
        .at_least("newton.table1.lstm-ogd", "OGD: LSTM minus transformer", rnn[2] - tf[2], 0.05);
    let config = json!({
        "checkpoints": ["newton-s", "newton-s-lstm"], "rows": names, "transformer": transformer, "lstm": lstm,
    });
    Ok(Reproduction { figure, claims, config })
}
