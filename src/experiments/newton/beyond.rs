//! What the paper does not have: its theorem as weights, single precision, tuned rivals, linearity in the query.

use serde_json::json;

use super::analysis::test_prompts;
use super::heat_maps::{Matches, newton_steps};
use super::matching::{CONJUGATE, DESCENT, Layers, MODEL, NEWTON, Trend, first, path_panel};
use super::{paper_scale, recipes};
use crate::algorithms::{
    Algorithm, Chebyshev, ConjugateGradient, Ends, GradientDescent, HeavyBall, IterativeNewton, LeastSquares,
    Precision, Run, losses, predictions,
};
use crate::compare::{LinearFit, Measure, Similarity};
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Axis, Claims, Color, Extremes, Figure, Frame, Line, Panel, greater, lesser};
use crate::linalg::{Matrix, dot};
use crate::models::constructions::{Averaging, NewtonConstruction, Signs};
use crate::tasks::{Covariance, LinearRegression, Prompts, WeightPrior};
use crate::{Error, Result};

/// x_testᵀ M_k b of the first n examples by the recursion, and α = 1 / ‖S²‖_F.
fn newton_by_recursion(prompts: &Prompts, i: usize, alpha: Option<f64>, steps: usize) -> Result<(f64, f64)> {
    let (n, d) = (prompts.context(), prompts.dim());
    let x = Matrix::from_vec(n, d, prompts.x(i)[..n * d].to_vec())?;
    let (s, b) = (x.transpose().mul(&x), x.transpose().mul_vec(&prompts.y(i)[..n]));
    let alpha = alpha.unwrap_or_else(|| 1.0 / s.mul(&s).norm());
    let mut m = s.scaled(alpha);
    for _ in 0..steps {
        m = m.scaled(2.0).plus(-1.0, &m.mul(&s).mul(&m));
    }
    Ok((dot(&prompts.x(i)[n * d..], &m.mul_vec(&b)), alpha))
}

/// Theorem 5.1: both constructions against the recursion, with the corrected and with the printed signs, and the causal
/// variant of Remark B.6.
///
/// # Errors
/// As [`NewtonConstruction::compact`].
pub fn theorem(settings: &Settings<'_>) -> Result<Reproduction> {
    let (d, n) = (5, 20);
    let task = |n| LinearRegression::new(Covariance::identity(d)?, n, WeightPrior::Isotropic);
    let prompts = task(n)?.sample(if settings.quick { 1 } else { 3 }, settings.seed)?;
    let steps: Vec<usize> = (0..=12).collect();
    let gap = |k: usize, signs: Signs, compact: bool| -> Result<f64> {
        let mut largest = 0.0_f64;
        for i in 0..prompts.len() {
            let (expected, alpha) = newton_by_recursion(&prompts, i, None, k)?;
            let weights = NewtonConstruction { dim: d, examples: n, steps: k, alpha, signs };
            let weights = if compact { weights.compact(Averaging::Full)? } else { weights.layered()? };
            let (x, y) = (prompts.x(i), prompts.y(i));
            let gap = (weights.predict(&x[..n * d], &y[..n], &x[n * d..])? - expected).abs();
            largest = greater(largest, gap);
        }
        Ok(largest)
    };
    let curve = |signs, compact| steps.iter().map(|k| gap(*k, signs, compact)).collect::<Result<Vec<f64>>>();
    let (compact, layered) = (curve(Signs::Corrected, true)?, curve(Signs::Corrected, false)?);
    let printed = curve(Signs::Printed, true)?;
    // On a logarithmic axis an exact zero is shown at the precision of the numbers; above the axis there is nothing to see.
    let shown = |v: &[f64]| v.iter().map(|v| if *v < 1e3 { v.max(1e-17) } else { f64::NAN }).collect::<Vec<f64>>();
    let exact = Panel::new("distance from x_{test}ᵀ M_{k} Xᵀ y")
        .x(Axis::linear("Newton steps k"))
        .y(Axis::log("largest |output − value|").range(1e-18, 1e3))
        .line(Line::new("compact, k + 2 layers", &steps, shown(&compact)).color(Color::BLUE).markers())
        .line(Line::new("the paper's, k + 8 layers", &steps, shown(&layered)).color(Color::GREEN).markers())
        .line(Line::new("with the printed signs", &steps, shown(&printed)).color(Color::RED).markers());

    let alpha = 1e-3;
    let mse = |n: usize, averaging: Averaging, k: usize| -> Result<f64> {
        let batch = if settings.quick { 4 } else { 32 };
        let prompts = task(n)?.sample(batch, settings.seed.wrapping_add(1))?;
        let alpha = if averaging == Averaging::Full { alpha / (n * n) as f64 } else { alpha };
        let weights =
            NewtonConstruction { dim: d, examples: n, steps: k, alpha, signs: Signs::Corrected }.compact(averaging)?;
        let error = |i: usize| {
            let (x, y) = (prompts.x(i), prompts.y(i));
            Ok((weights.predict(&x[..n * d], &y[..n], &x[n * d..])? - y[n]).powi(2))
        };
        Ok((0..batch).map(error).sum::<Result<f64>>()? / (batch * d) as f64)
    };
    let ks: Vec<usize> = (4..=15).collect();
    let over = |averaging| ks.iter().map(|k| mse(50, averaging, *k)).collect::<Result<Vec<f64>>>();
    let (full, causal) = (over(Averaging::Full)?, over(Averaging::Causal)?);
    let variant = Panel::new("n = 50: full and causal attention")
        .x(Axis::linear("Newton steps k"))
        .y(Axis::log("squared error / d").range(1e-6, 1e3))
        .line(Line::new("full attention", &ks, full.iter().map(|e| e.max(1e-8))).color(Color::BLUE).markers())
        .line(Line::new("causal attention (Remark B.6)", &ks, &causal).color(Color::RED).markers());
    let figure = Figure::new("newton.theorem", "Theorem 5.1 as running weights")
        .caption(
            "d = 5, n = 20, double precision; round-off doubles with every layer, since nothing keeps the tokens' slots equal to \
             one T times x. Eq. 21 and 28 give both heads of a pair the same value matrix; ReLU(a) + ReLU(−a) is \
             |a|, not a, and the output is wrong. With V_{2} = −V_{1} both layouts are exact. Causal attention, which the paper \
             says the proof extends to, follows the method for a few steps and then diverges (α = 0.001 in units of S/n).",
        )
        .columns(2)
        .panel(exact)
        .panel(variant);
    let largest = |v: &[f64]| v.iter().copied().greatest();
    let at = |k: usize| ks.iter().position(|v| *v == k).unwrap_or(0);
    let claims = Claims::new()
        .at_most("newton.theorem.compact", "compact weights, k = 0 … 12: largest error", largest(&compact), 1e-12)
        .at_most(
            "newton.theorem.layered",
            "the paper's layer budget, k = 0 … 12: largest error",
            largest(&layered),
            1e-12,
        )
        .at_least("newton.theorem.printed", "with the printed signs, k = 3: largest error", printed[3], 1e-2)
        .at_least(
            "newton.theorem.causal",
            "causal variant, n = 50, k = 14: its error over full attention's",
            causal[at(14)] / full[at(14)],
            10.0,
        );
    let config = json!({ "d": d, "n": n, "full": full, "causal": causal, "k": ks });
    Ok(Reproduction { figure, claims, config })
}

/// Newton's recursion in single and in double precision, and in the eigenbasis.
///
/// # Errors
/// As [`paper_scale::with_least_squares`].
pub fn precision(settings: &Settings<'_>) -> Result<Reproduction> {
    let prompts = paper_scale::isotropic(paper_scale::count(48, settings), 0.0, settings.seed)?;
    let steps: Vec<usize> = (16..=60).collect();
    let few: Vec<usize> = (16..=30).collect();
    let newton = paper_scale::newton()?;
    let sime = |algorithm: &dyn Algorithm, at: &[usize]| paper_scale::with_least_squares(0.0, algorithm, at, &prompts);
    let single = sime(&newton.clone().recursion(Precision::Single), &few)?;
    let double = sime(&newton.clone().recursion(Precision::Double), &steps)?;
    // At c = 2 and one example α λ² = 2: on the boundary there is no limit to converge to.
    let gentle = IterativeNewton::new(1.0)?;
    let exact = sime(&gentle, &steps)?;
    let gentle = sime(&gentle.recursion(Precision::Double), &steps)?;
    let panel = Panel::new("")
        .x(Axis::linear("Newton steps"))
        .y(Axis::linear("SimE with least squares"))
        .line(Line::new("single precision, c = 2", &few, &single).color(Color::RED))
        .line(Line::new("double precision, c = 2", &steps, &double).color(Color::ORANGE))
        .line(Line::new("double precision, c = 1", &steps, &gentle).color(Color::GREEN))
        .line(Line::new("in the eigenbasis, c = 1", &steps, &exact).color(Color::BLUE).dashed());
    let figure = Figure::new("newton.precision", "Why the paper stops at 23 steps: single precision")
        .caption(
            "d = 20, n = 40. With fewer examples than dimensions S is singular, and round-off in its null space doubles with \
             every step of the recursion: the printed drop at step 23 is that. The iteration itself does not fall.",
        )
        .panel(panel);
    let at = |k: usize| k - 16;
    let claims = Claims::new()
        .at_least(
            "newton.precision.single",
            "single precision: SimE at step 22 minus step 25",
            single[at(22)] - single[at(25)],
            0.05,
        )
        .at_most(
            "newton.precision.double",
            "double precision: SimE at step 22 minus step 30",
            double[at(22)] - double[at(30)],
            0.002,
        )
        .at_least(
            "newton.precision.late",
            "double precision falls later: SimE at step 30 minus step 56",
            double[at(30)] - double[at(56)],
            0.05,
        )
        .at_least("newton.precision.exact", "in the eigenbasis, c = 1: SimE at step 60", exact[at(60)], 0.99);
    let config = json!({ "prompts": prompts.len(), "single": single, "double": double, "double_c1": gentle });
    Ok(Reproduction { figure, claims, config })
}

/// Above the axis there is nothing to see.
fn drawn(error: f64) -> f64 {
    if error.is_finite() && error < 1e3 { error } else { f64::NAN }
}

/// What the constant in α = c / ‖S²‖_F does to Newton: the paper's text, its printed figures and its code have three.
///
/// M_k S has the eigenvalues 1 − (1 − α λ²)^(2^k): where α λ² is small, half the constant is one step more.
///
/// # Errors
/// As [`predictions`].
pub fn alpha(settings: &Settings<'_>) -> Result<Reproduction> {
    let prompts = paper_scale::isotropic(paper_scale::count(320, settings), 0.0, settings.seed)?;
    let constants = [0.125, 0.25, 0.5, 1.0, 1.5, 2.0];
    let steps: Vec<usize> = (0..=23).collect();
    let algorithms = constants.iter().map(|c| IterativeNewton::new(*c)).collect::<Result<Vec<_>>>()?;
    let solved = LeastSquares::default();
    // All at once: what the prefixes share is computed once.
    let mut runs: Vec<Run<'_>> = algorithms.iter().map(|algorithm| Run { algorithm, at: &steps }).collect();
    runs.push(Run { algorithm: &solved, at: &[0] });
    let mut made = predictions(&runs, &prompts)?.iter().map(|m| m.residuals(&prompts)).collect::<Result<Vec<_>>>()?;
    let by_solution = made.pop().ok_or_else(|| Error::invalid("runs", 0, "at least 1"))?;
    let similarity = made
        .iter()
        .map(|m| Ok(Similarity::of_errors(Measure::Cosine, m, &by_solution, 0..paper_scale::CONTEXT + 1)?.means()))
        .collect::<Result<Vec<Vec<f64>>>>()?;
    let last = |residuals: &Vec<f64>| {
        let squares = residuals.chunks(paper_scale::CONTEXT + 1).map(|r| r[paper_scale::CONTEXT].powi(2));
        squares.sum::<f64>() / (paper_scale::DIM * prompts.len()) as f64
    };
    let errors: Vec<Vec<f64>> = made.iter().map(|m| m.values.iter().map(last).collect()).collect();
    let frame = |i: usize| {
        let one = constants.iter().position(|c| *c == 1.0).unwrap_or(0);
        let lines = |panel: Panel, of: &[Vec<f64>]| {
            panel
                .line(Line::new("c = 1", &steps, &of[one]).color(Color::GREY).dashed())
                .line(Line::new("the slider's c", &steps, &of[i]).color(NEWTON).markers())
        };
        let error = Panel::new("error after 40 examples")
            .x(Axis::linear("Newton steps"))
            .y(Axis::log("squared error / d").range(1e-8, 1.2));
        let similar = Panel::new("all positions")
            .x(Axis::linear("Newton steps"))
            .y(Axis::linear("SimE with least squares").range(0.3, 1.0));
        Frame::new(constants[i], [lines(error, &errors), lines(similar, &similarity)])
    };
    let frames: Vec<Frame> = (0..constants.len()).map(frame).collect();
    let figure = Figure::new("newton.alpha", "Half of α is one Newton step more")
        .caption(
            "d = 20, n = 40, α = c / ‖S²‖_F. The printed isotropic figures have c = 2, the code has c = 1. At c = 2 the first \
             example is on the boundary of convergence, and SimE stays below 1.",
        )
        .columns(2)
        .slider("c", &frames)
        .active(5);
    // c = 0.5 against 1 and 0.25 against 0.5, once the large eigenvalues are done with.
    let shift = [(2, 3), (1, 2)]
        .iter()
        .flat_map(|(half, whole)| (6..=12).map(|k| errors[*half][k + 1] / errors[*whole][k]))
        .map(|ratio| (ratio - 1.0).abs())
        .greatest();
    let last = steps.len() - 1;
    let claims = Claims::new()
        .at_most(
            "newton.alpha.shift",
            "error after k + 1 steps at c/2 over error after k steps at c, k = 6 … 12: largest |ratio − 1|",
            shift,
            0.1,
        )
        .at_least("newton.alpha.one", "c = 1: SimE with least squares after 23 steps", similarity[3][last], 0.99)
        .at_least(
            "newton.alpha.two",
            "c = 1 minus c = 2: SimE with least squares after 23 steps, since c = 2 does not converge at one example",
            similarity[3][last] - similarity[5][last],
            0.0,
        );
    let config = json!({ "prompts": prompts.len(), "c": constants, "errors": errors, "similarity": similarity });
    Ok(Reproduction { figure, claims, config })
}

/// First-order rivals of Newton with their best constants: the paper's has one step size, never tuned.
///
/// # Errors
/// As [`paper_scale::errors`].
pub fn tuned(settings: &Settings<'_>) -> Result<Reproduction> {
    let prompts = paper_scale::isotropic(paper_scale::count(320, settings), 0.0, settings.seed)?;
    let (t, last) = (paper_scale::CONTEXT, 40);
    let steps: Vec<usize> = (1..=last).collect();
    let error = |algorithm: &dyn Algorithm| -> Result<Vec<f64>> {
        let losses = losses(algorithm, &prompts, t, last)?;
        Ok(losses[1..].iter().map(|e| (e / paper_scale::DIM as f64).max(1e-12)).collect())
    };
    // For every number of steps the best constant step of a fine grid.
    let rates: Vec<f64> = (0..=24).map(|k| 0.004 * 10f64.powf(f64::from(k) / 24.0)).collect();
    let by_rate =
        rates.iter().map(|rate| error(&GradientDescent::new(vec![*rate])?)).collect::<Result<Vec<Vec<f64>>>>()?;
    // A step that diverges for one prompt is no candidate.
    let best: Vec<f64> = (0..steps.len())
        .map(|k| by_rate.iter().map(|e| e[k]).filter(|e| e.is_finite()).fold(f64::INFINITY, f64::min))
        .collect();
    let newton = error(&paper_scale::newton()?)?;
    let plain = error(&GradientDescent::new(vec![paper_scale::RATE])?)?;
    let ball = error(&HeavyBall::new(Ends::Exact)?)?;
    let chebyshev = error(&Chebyshev::new(Ends::Exact)?)?;
    let conjugate = error(&ConjugateGradient)?;
    let panel = |chosen: &[f64]| {
        Panel::new("")
            .x(Axis::linear("steps"))
            .y(Axis::log("squared error / d after 40 examples").range(1e-8, 1.2))
            .line(Line::new("gradient descent, η = 0.01", &steps, &plain).color(DESCENT))
            .line(Line::new("gradient descent, best η for each k", &steps, &best).color(DESCENT).dashed())
            .line(Line::new("gradient descent, the slider's η", &steps, chosen.iter().map(|e| drawn(*e))))
            .line(Line::new("heavy ball", &steps, &ball).color(Color::ORANGE))
            .line(Line::new("Chebyshev", &steps, &chebyshev).color(Color::PURPLE))
            .line(Line::new("exact CG", &steps, &conjugate).color(CONJUGATE))
            .line(Line::new("Newton", &steps, &newton).color(NEWTON))
    };
    let frames: Vec<Frame> =
        rates.iter().zip(&by_rate).step_by(2).map(|(rate, e)| Frame::new(format!("{rate:.4}"), [panel(e)])).collect();
    let figure = Figure::new("newton.tuned", "First-order methods with their constants tuned")
        .caption(
            "d = 20, n = 40. Heavy ball and Chebyshev know the ends of each prompt's spectrum. Tuning gradient descent's step gains a \
             constant factor; acceleration and CG are exponential in a root of the condition number, and CG ends at step d.",
        )
        .slider("gradient descent's step η", &frames)
        .active(6);
    let at = |k: usize| k - 1;
    let claims = Claims::new()
        .at_least(
            "newton.tuned.gain",
            "tuned over plain gradient descent at 20 steps: plain error over tuned error",
            plain[at(20)] / best[at(20)],
            1.0,
        )
        .at_least(
            "newton.tuned.gd",
            "tuned gradient descent after 12 steps: its error over Newton's",
            best[at(12)] / newton[at(12)],
            100.0,
        )
        .at_most(
            "newton.tuned.cg",
            "exact CG after 12 steps: its error over Newton's after 9",
            conjugate[at(12)] / newton[at(9)],
            1.0,
        );
    let config = json!({ "newton": newton, "gd": plain, "gd_tuned": best, "heavy_ball": ball, "chebyshev": chebyshev, "cg": conjugate });
    Ok(Reproduction { figure, claims, config })
}

/// Is the prediction linear in the query? The last query of a prompt is scaled by c.
///
/// # Errors
/// As [`recipes::load`].
pub fn query_linearity(settings: &Settings<'_>) -> Result<Reproduction> {
    let networks = recipes::load("newton-s", settings)?;
    let scales: Vec<f64> = (-12..=12).map(|k| f64::from(k) / 4.0).collect();
    let (mut curves, mut inside, mut outside) = (Vec::new(), 1.0_f64, 1.0_f64);
    for network in &networks {
        let prompts = test_prompts(network, settings)?;
        let (batch, d, n) = (prompts.len(), prompts.dim(), prompts.context());
        let mut slopes = Vec::new();
        let mut products: Vec<Vec<f64>> = Vec::new();
        for c in &scales {
            let mut x: Vec<f64> = (0..batch).flat_map(|i| prompts.x(i)).copied().collect();
            x.chunks_mut((n + 1) * d).for_each(|x| x[n * d..].iter_mut().for_each(|v| *v *= c));
            let y: Vec<f64> = (0..batch).flat_map(|i| prompts.y(i)).copied().collect();
            let made = network.model.predict(&Prompts::from_data(batch, n, d, x, y)?)?;
            let last: Vec<f64> = made.chunks(n + 1).map(|p| p[n]).collect();
            let labels: Vec<f64> = (0..batch).map(|i| prompts.y(i)[n]).collect();
            // The factor by which the true answer would have to be multiplied: c for a linear function.
            slopes.push(dot(&last, &labels) / dot(&labels, &labels));
            products.push(last);
        }
        let share = |range: &dyn Fn(f64) -> bool| {
            let kept: Vec<usize> = (0..scales.len()).filter(|k| range(scales[*k])).collect();
            let x: Vec<f64> = kept.iter().map(|k| scales[*k]).collect();
            let y: Vec<f64> = kept.iter().map(|k| slopes[*k]).collect();
            LinearFit::of(&x, &y).r_squared
        };
        inside = lesser(inside, share(&|c| c.abs() <= 1.0));
        let end = slopes.last().copied().unwrap_or(f64::NAN) / 3.0;
        outside = lesser(outside, end);
        curves.push(slopes);
    }
    if curves.is_empty() {
        return Err(Error::invalid("networks", 0, "at least 1"));
    }
    let panel = Panel::new("")
        .x(Axis::linear("factor c on the query"))
        .y(Axis::linear("prediction as a multiple of the label"))
        .line(Line::new("a linear predictor", &scales, &scales).color(Color::GREY).dashed())
        .line(Line::mean("transformer", &scales, &curves).color(MODEL));
    let figure = Figure::new("newton.query-linearity", "Is the prediction linear in the query?")
        .caption(
            "After n = 10 examples the query is multiplied by c. Mean over seeds and one standard deviation. Every algorithm of the \
             paper is linear in the query; induced weights (eq. 7) take it for granted.",
        )
        .panel(panel);
    let claims = Claims::new()
        .at_least(
            "newton.query-linearity.inside",
            "|c| ≤ 1: prediction against c is a line (R², worst seed)",
            inside,
            0.99,
        )
        .at_least(
            "newton.query-linearity.outside",
            "c = 3: prediction over a linear predictor's (worst seed)",
            outside,
            0.9,
        );
    Ok(Reproduction { figure, claims, config: json!({ "checkpoint": "newton-s", "c": scales, "slopes": curves }) })
}

/// Softmax, linear and ReLU attention in the same transformer: how fast are their layers in Newton steps?
///
/// A layer of linear attention maps statistics of degree p to at most 3p + 1, which is log₂ 3 Newton steps; what is faster
/// owes it to the softmax or to the MLPs.
///
/// # Errors
/// The Newton steps for which `layers` bare layers of linear attention have the degree, at most: a layer makes a polynomial of degree p
/// in S one of degree 3p + 1, and the residual of step k has degree 2^{k+1}.
fn steps_of_bare_layers(layers: usize) -> f64 {
    (0..layers).fold(0.0, |degree: f64, _| 3.0 * degree + 1.0).log2() - 1.0
}

/// As [`Layers::load`].
pub fn attention(settings: &Settings<'_>) -> Result<Reproduction> {
    let softmax = recipes::load("newton-s", settings)?;
    let mut networks: Vec<Layers> =
        softmax.iter().take(1).map(|network| Layers::of(network, settings)).collect::<Result<_>>()?;
    networks.iter_mut().for_each(|l| l.name = "softmax".to_owned());
    for mut network in Layers::load("newton-s-attention", settings)? {
        network.name = if network.name.starts_with("relu") { "ReLU" } else { "linear" }.to_owned();
        networks.push(network);
    }
    let matches = Matches::of(networks, newton_steps(), false, settings, |l| Box::new(l.rivals.newton.clone()))?;
    let at = first(&matches.networks)?.prompts.context();
    let mut errors = Panel::new("error after 2d examples").x(Axis::linear("layer")).y(Axis::log("squared error / d"));
    for network in &matches.networks {
        let y = network.errors.iter().map(|e| e[at]);
        errors = errors.line(Line::new(&network.name, network.numbers(), y).markers());
    }
    let trends: Vec<(String, &Trend)> = matches.networks.iter().map(|l| l.name.clone()).zip(&matches.trends).collect();
    let figure = Figure::new("newton.attention", "Linear, ReLU and softmax attention at equal depth")
        .caption(
            "Three transformers of 8 layers, d = 5, n = 10, trained alike, which differ in the weights of their attention: softmax; \
             scores divided by the number of tokens; their positive part, divided by it. Layer norm and MLPs are the same. A bare \
             layer of linear attention makes a polynomial of degree p in S one of degree 3p + 1, k Newton steps one of degree 2^{k+1}: \
             eight such layers have the degree of 10.7 steps.",
        )
        .columns(2)
        .panel(errors)
        .panel(path_panel("best-matching Newton steps", &trends, &matches.steps, false));
    let last = |l: &Layers| l.errors[l.count() - 1][at];
    let softmax = last(first(&matches.networks)?);
    let mut claims = Claims::new();
    for (network, trend) in matches.networks.iter().zip(&matches.trends) {
        let id = format!("newton.attention.{}", network.name.to_lowercase());
        let name = &network.name;
        let most = steps_of_bare_layers(network.count());
        claims = claims.at_least(
            format!("{id}.fast"),
            format!("{name} attention: best-matching Newton step of the last layer, beyond what bare linear layers have the degree for"),
            trend.best.last().map_or(f64::NAN, |best| matches.steps[best.row] as f64),
            (10.0 * most).ceil() / 10.0,
        );
        if name != "softmax" {
            claims = claims.at_most(
                format!("{id}.error"),
                format!("{name} attention: error of the last layer over that with softmax"),
                last(network) / softmax,
                3.0,
            );
        }
    }
    let config = json!({ "checkpoint": "newton-s-attention", "newton": matches.describe() });
    Ok(Reproduction { figure, claims, config })
}
