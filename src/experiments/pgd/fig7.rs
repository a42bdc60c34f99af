//! Figure 7 (Appendix D): networks of L layers against L steps of GD and PGD.

use serde_json::json;

use super::baselines::{Baselines, Examples};
use super::basins::optimum;
use super::distances::{BLUE, GREY, exact_engine, exact_loss};
use super::recipes;
use crate::algorithms::KernelPolynomial;
use crate::algorithms::kernel_polynomial::constant_rate;
use crate::compare::Interval;
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Axis, Claims, Color, Figure, Line, Panel};
use crate::{Error, Result};

/// Trains or loads networks of 1 to 4 layers, computes the baselines, draws the figure and checks its claims.
///
/// # Errors
/// As [`recipes::load`].
pub fn run(settings: &Settings<'_>) -> Result<Reproduction> {
    let mut runs = recipes::load("pgd-depth", |_| true, settings)?;
    runs.extend(recipes::load("pgd-transform", |_| true, settings)?);
    let samples = if settings.quick { 50_000 } else { 400_000 };
    let engine = exact_engine(5, 20, samples, settings.seed)?;
    let layers = [1, 2, 3, 4];
    let first = runs.first().ok_or_else(|| Error::invalid("runs", 0, "at least 1"))?;
    let baselines = |used| Baselines::new(&first.task, used, samples, settings.seed);
    let baselines = [baselines(Examples::All)?, baselines(Examples::ButLast)?];
    let (mut networks, mut exact, mut optima, mut stepwise) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut curves = [Examples::All, Examples::ButLast].map(|used| (used, Vec::new(), Vec::new()));
    for &l in &layers {
        let mine: Vec<_> = runs.iter().filter(|run| run.models.first().is_some_and(|m| m.layers() == l)).collect();
        networks.push(Interval::of(&mine.iter().map(|run| run.test[run.best()].ln()).collect::<Vec<_>>()));
        let logs: Vec<f64> = mine
            .iter()
            .map(|run| Ok(exact_loss(&run.models[run.best()], run.task.covariance(), &engine)?.ln()))
            .collect::<Result<_>>()?;
        exact.push(Interval::of(&logs));
        optima.push(optimum(l, 20, settings.seed)?.ln());
        stepwise.push(KernelPolynomial::new(5, 20, l)?.loss.ln());
        for ((_, gd, pgd), baselines) in curves.iter_mut().zip(&baselines) {
            gd.push(baselines.tuned(false, l)?.0.ln());
            pgd.push(baselines.tuned(true, l)?.0.ln());
        }
    }
    let mut panel = Panel::new("")
        .x(Axis::linear("layers or steps L").range(0.8, 4.2).ticks(layers))
        .y(Axis::linear("ln loss").range(-12.0, 3.0))
        .line(
            Line::new("L-layer transformer", layers, networks.iter().map(|i| i.mean))
                .band(networks.iter().map(|i| i.mean - i.std), networks.iter().map(|i| i.mean + i.std))
                .color(BLUE)
                .markers(),
        )
        .line(
            Line::new("L-layer transformer, on the law of contexts", layers, exact.iter().map(|i| i.mean))
                .color(BLUE)
                .dotted(),
        )
        .line(Line::new("best minimum of GD++", layers, &optima).color(GREY).dotted())
        .line(Line::new("PGD, best rate for each step (exact)", layers, &stepwise).color(Color(160, 50, 140)));
    for (used, gd, pgd) in &curves {
        for (name, color, values) in [("GD", Color(230, 120, 0), gd), ("PGD", Color(0, 135, 90), pgd)] {
            let line = Line::new(format!("{name}{}", used.name()), layers, values).color(color);
            panel = panel.line(if *used == Examples::All { line } else { line.dashed() });
        }
    }
    let figure = Figure::new("pgd.fig7", "Loss against the number of layers")
        .caption(format!(
            "n = 20, on the authors' 20,000 test prompts, mean and one standard deviation over {} seeds; dotted, averaged \
             over the law of contexts, whose rare large ones no test batch has and which networks of three and more \
             layers have not learnt (four leave the axis). Trained for 5,000 steps a layer, but three layers, which are those of \
             Figure 3, for 100,000: the step from three to four does not tell depth from training. GD and PGD take one rate from the authors' grid; the fair \
             competitor has a rate for each step, as the network does (purple).",
            networks.first().map_or(0, |i| i.count)
        ))
        .panel(panel);
    let [(_, gd, pgd), _] = &curves;
    // One step at the grid's best rate, exactly: the rate is for the sum over n examples, a step for their mean.
    let rate = baselines[0].tuned(true, 1)?.1;
    let one_step = constant_rate(5, 20, 1)(20.0 * rate).ln();
    let monotone = networks.windows(2).filter(|w| w[1].mean < w[0].mean).count();
    let claims = Claims::new()
        .at_most("pgd.fig7.l1", "one layer is PGD: |gap in ln loss|", (networks[0].mean - one_step).abs(), 0.01)
        .at_most("pgd.fig7.l2", "two layers: ln loss", networks[1].mean, -2.3)
        .at_most("pgd.fig7.l3", "three layers: ln loss", networks[2].mean, -6.5)
        .at_most("pgd.fig7.l3-law", "… and on the law of contexts, not a test batch", exact[2].mean, -6.5)
        .at_least("pgd.fig7.monotone", "every further layer helps (of 3)", monotone as f64, 3.0)
        .at_least(
            "pgd.fig7.gap",
            "the gap to PGD grows with every layer (of 3)",
            (1..4).filter(|k| pgd[*k] - networks[*k].mean > pgd[k - 1] - networks[k - 1].mean).count() as f64,
            3.0,
        )
        .at_most(
            "pgd.fig7.fair",
            "two layers beat PGD with the best rate for each step: difference in ln loss",
            networks[1].mean - stepwise[1],
            -1.0,
        );
    let config = json!({
        "checkpoints": ["pgd-depth", "pgd-transform"], "wishart_samples": samples, "network": networks.iter().map(|i| i.to_string()).collect::<Vec<_>>(),
        "network_on_the_law": exact.iter().map(|i| i.to_string()).collect::<Vec<_>>(), "optimum": optima, "gd": gd, "pgd": pgd, "pgd_stepwise": stepwise, "gd_code": curves[1].1, "pgd_code": curves[1].2,
    });
    Ok(Reproduction { figure, claims, config })
}
