//! Figures 4 and 15 to 18: ill-conditioned covariates.

use serde_json::json;

use super::matching::{CONJUGATE, DESCENT, Layers, MODEL, NEWTON, first};
use super::paper_scale::{self, SKEW_RATE};
use crate::Result;
use crate::algorithms::{ConjugateGradient, GradientDescent, IterativeNewton, Run};
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Axis, Claims, Figure, Frame, Line, Panel};
use crate::tasks::Prompts;

/// Condition numbers of the slider.
const KAPPAS: [u32; 7] = [1, 3, 10, 30, 100, 300, 1000];

/// SimE of least squares with Newton (c = 2) at the paper's size, k = 1, 5, 10, 15, 20: newton.md section 7.2.
const WITH_NEWTON: [f64; 5] = [0.53, 0.77, 0.92, 0.965, 0.986];

/// Figure 4: error after 40 examples against the number of steps, for a range of condition numbers.
///
/// # Errors
/// As [`Layers::load`] and [`paper_scale::errors`].
pub fn fig4(settings: &Settings<'_>) -> Result<Reproduction> {
    let networks = Layers::load("newton-s-skew", settings)?;
    let shown = first(&networks)?;
    let newton = IterativeNewton::new(1.0)?;
    let rate = |kappa: u32| if kappa == 1 { paper_scale::RATE } else { SKEW_RATE };
    let few: Vec<usize> = (1..=40).collect();
    let many: Vec<usize> = (0..=48).map(|k| 10f64.powf(f64::from(k) / 12.0).round() as usize).collect();
    let batch = paper_scale::count(320, settings);
    let panel = |title: String, prompts: &Prompts, descent: &GradientDescent| -> Result<Panel> {
        let t = prompts.context();
        let run = |algorithm, at| Run { algorithm, at };
        // As many steps of CG as d allow: beyond, it has the solution.
        let cg_steps = &few[..20.min(2 * prompts.dim())];
        let runs = [run(&newton, &few), run(&ConjugateGradient, cg_steps), run(descent, &many)];
        let solved = |e: f64| if e > 1e-9 { e } else { f64::NAN };
        let mut curves = paper_scale::last_errors(&runs, prompts)?
            .into_iter()
            .map(|errors| errors.into_iter().map(solved).collect::<Vec<f64>>());
        let mut next = || curves.next().unwrap_or_default();
        let (newton, cg, descent) = (next(), next(), next());
        Ok(Panel::new(title)
            .x(Axis::log("steps").range(1.0, 1e4))
            .y(Axis::log(format!("squared error / d after {t} examples")).range(1e-6, 1.5))
            .line(Line::new("Newton", &few, newton).color(NEWTON))
            .line(Line::new("gradient descent", &many, descent).color(DESCENT))
            .line(Line::new("exact CG", &few[..cg.len()], cg).color(CONJUGATE).dashed()))
    };
    let mut frames = Vec::new();
    for kappa in KAPPAS {
        let prompts = paper_scale::skew(batch, f64::from(kappa), settings.seed)?;
        let title = format!("d = 20, n = 40, κ = {kappa}");
        frames.push(Frame::new(kappa, [panel(title, &prompts, &GradientDescent::new(vec![rate(kappa)])?)?]));
    }
    let last = shown.errors[shown.count() - 1][shown.prompts.context()];
    let trained = panel("transformer, d = 5, n = 10, κ = 100".to_owned(), &shown.prompts, &shown.rivals.descent)?
        .line(Line::new("transformer, last layer", [1.0, 1e4], [last, last]).color(MODEL));
    let figure = Figure::new("newton.fig4", "Ill-conditioned data: steps to a solution")
        .caption(
            "Half of Σ's eigenvalues are κ times the others. The transformer was trained on such data with κ = 100; its line is \
             the error of its last layer. Newton has c = 1, gradient descent the step 0.002 (0.01 at κ = 1) at d = 20. Exact CG, \
             a first-order method, is as quick as Newton, whatever κ.",
        )
        .columns(2)
        .panel(trained)
        .slider("condition number κ", &frames)
        .active(4);

    let prompts = paper_scale::skew(paper_scale::count(1280, settings), 100.0, settings.seed)?;
    let descent = GradientDescent::new(vec![SKEW_RATE])?;
    let runs = [Run { algorithm: &newton, at: &[21] }, Run { algorithm: &descent, at: &[300, 2000] }];
    let at_scale = paper_scale::last_errors(&runs, &prompts)?;
    let (of_newton, of_descent) = (at_scale[0][0], &at_scale[1]);
    let ratio = of_newton / 2e-4;
    let small = [Run { algorithm: &shown.rivals.descent, at: &[200] }];
    let descent_200 = paper_scale::last_errors(&small, &shown.prompts)?[0][0];
    let claims = Claims::new()
        .at_most(
            "newton.fig4.newton",
            "Newton (c = 1), 21 steps, 40 examples: error 2e-4, to a factor",
            ratio.max(1.0 / ratio),
            3.0,
        )
        .at_most("newton.fig4.newton-done", "… which is below 1e-3", of_newton, 1e-3)
        .at_least("newton.fig4.gd", "gradient descent after 300 steps is still above 1e-3", of_descent[0], 1e-3)
        .at_most(
            "newton.fig4.transformer",
            "the transformer's last layer over gradient descent after 200 steps: error",
            last / descent_200,
            1.0,
        );
    let config = json!({
        "checkpoint": "newton-s-skew", "prompts": prompts.len(), "newton_21": of_newton,
        "gd_300_2000": [of_descent[0], of_descent[1]], "transformer_last": last, "gd_200_small": descent_200,
    });
    Ok(Reproduction { figure, claims, config })
}

/// Adds the claim about Newton and least squares at the paper's size.
///
/// # Errors
/// As [`paper_scale::with_least_squares`].
pub fn with_paper_scale(made: Reproduction, id: &str, settings: &Settings<'_>) -> Result<Reproduction> {
    let prompts = paper_scale::skew(paper_scale::count(1280, settings), 100.0, settings.seed)?;
    let measured = paper_scale::with_least_squares(0.0, &paper_scale::newton()?, &[1, 5, 10, 15, 20], &prompts)?;
    let claims = made.claims.clone().at_most(
        format!("{id}.paper-scale"),
        "d = 20: SimE of Newton 1, 5, 10, 15, 20 with least squares, largest difference from newton.md's numbers",
        paper_scale::largest_gap(&measured, &WITH_NEWTON),
        if settings.quick { 0.03 } else { 0.01 },
    );
    Ok(Reproduction { claims, ..made })
}
