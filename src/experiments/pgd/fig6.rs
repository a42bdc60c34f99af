//! Figure 6 (Appendix D): a 3-layer network against three steps of GD and PGD and against OLS, over the context length.

use serde_json::json;

use super::baselines::{Baselines, Examples};
use super::basins::optimum;
use super::distances::{BLUE, GREY, exact_engine, exact_loss};
use super::recipes;
use crate::Result;
use crate::algorithms::{self, LeastSquares};
use crate::compare::Interval;
use crate::experiments::{Reproduction, Settings};
use crate::figure::{Axis, Claims, Color, Extremes, Figure, Line, Panel};

/// The reference values of pgd.md section 5.1 for PGD and GD, n = 2, 4, …, 20: (all examples, all but the last).
const PGD: [(f64, f64); 10] = [
    (3.429, 4.156),
    (2.315, 2.814),
    (1.727, 1.949),
    (1.527, 1.697),
    (1.105, 1.301),
    (0.792, 0.938),
    (0.565, 0.668),
    (0.413, 0.481),
    (0.333, 0.366),
    (0.328, 0.323),
];
const GD: [(f64, f64); 10] = [
    (3.890, 4.398),
    (3.098, 3.458),
    (2.562, 2.803),
    (2.285, 2.383),
    (2.231, 2.301),
    (1.980, 2.099),
    (1.779, 1.873),
    (1.615, 1.693),
    (1.487, 1.549),
    (1.388, 1.434),
];

/// Trains or loads a network for each context length, computes the baselines, draws the figure and checks its claims.
///
/// # Errors
/// As [`recipes::load`].
pub fn run(settings: &Settings<'_>) -> Result<Reproduction> {
    let runs = recipes::load("pgd-context", |_| true, settings)?;
    let size = if settings.quick { 2000 } else { 20_000 };
    let samples = if settings.quick { 20_000 } else { 200_000 };
    let lengths: Vec<usize> = (1..=10).map(|k| 2 * k).collect();
    let (mut networks, mut exact, mut optima) = (Vec::new(), Vec::new(), Vec::new());
    let mut curves = [Examples::All, Examples::ButLast].map(|used| (used, Vec::new(), Vec::new(), Vec::new()));
    for &n in &lengths {
        let mine: Vec<_> = runs.iter().filter(|run| run.task.context() == n).collect();
        let engine = exact_engine(5, n, samples, settings.seed.wrapping_add(n as u64))?;
        let losses: Vec<f64> = mine
            .iter()
            .map(|run| exact_loss(&run.models[run.best()], run.task.covariance(), &engine))
            .collect::<Result<_>>()?;
        exact.push(Interval::of(&losses));
        networks.push(Interval::of(&mine.iter().map(|run| run.test[run.best()]).collect::<Vec<_>>()));
        optima.push(optimum(3, n, settings.seed)?);
        // The law of these losses does not depend on Σ's rotation: one seed's will do.
        if let Some(run) = mine.first() {
            let prompts = run.task.sample(size, settings.seed.wrapping_add(99))?;
            let least_squares = LeastSquares::default().whitened(run.task.covariance().inv_sqrt().clone());
            for (used, gd, pgd, ols) in &mut curves {
                let baselines = Baselines::new(&run.task, *used, samples, settings.seed)?;
                gd.push(baselines.tuned(false, 3)?.0);
                pgd.push(baselines.tuned(true, 3)?.0);
                ols.push(algorithms::losses(&least_squares, &prompts, used.of(n), 0)?[0]);
            }
        }
    }
    let mut panel = Panel::new("")
        .x(Axis::linear("number of examples n").range(1.0, 21.0))
        .y(Axis::log("loss").range(3e-4, 6.0))
        .line(
            Line::new("3-layer transformer", &lengths, networks.iter().map(|i| i.mean))
                .band(networks.iter().map(|i| i.mean - i.std), networks.iter().map(|i| i.mean + i.std))
                .color(BLUE)
                .markers(),
        )
        .line(
            Line::new("3-layer transformer, on the law of contexts", &lengths, exact.iter().map(|i| i.mean))
                .color(BLUE)
                .dotted(),
        )
        .line(Line::new("best minimum of GD++", &lengths, &optima).color(GREY).dotted());
    let colors =
        [("GD, 3 steps", Color(230, 120, 0)), ("PGD, 3 steps", Color(0, 135, 90)), ("OLS", Color(160, 50, 140))];
    for (used, gd, pgd, ols) in &curves {
        for ((name, color), values) in colors.iter().zip([gd, pgd, ols]) {
            // A logarithmic axis has no place for zero, which OLS reaches: leave a gap.
            let drawn = values.iter().map(|v| if *v > 1e-10 { *v } else { f64::NAN });
            let line = Line::new(format!("{name}{}", used.name()), &lengths, drawn).color(*color);
            panel = panel.line(if *used == Examples::All { line } else { line.dashed() });
        }
    }
    let figure = Figure::new("pgd.fig6", "Loss against the number of examples")
        .caption(format!(
            "A network trained for each n with a tenth of the authors' samples, on their 20,000 test prompts, mean and one standard deviation over {} \
             seeds; dotted, averaged over the law of contexts, the rare large ones among them, on which it fails (above 6: off the axis). Against \
             three steps of gradient descent and of PGD with Σ⁻¹ (the best rate of the authors' grid, averaged in the same \
             way), and OLS. Dashed: the authors' \
             baselines, which drop the last example. OLS is 0 where it leaves the axis.",
            networks.first().map_or(0, |i| i.count)
        ))
        .panel(panel);

    let [(_, gd, pgd, ols), (_, gd_less, pgd_less, ols_less)] = &curves;
    let error =
        |values: &[f64], expected: Vec<f64>| values.iter().zip(expected).map(|(v, e)| (v / e - 1.0).abs()).greatest();
    let ols_error = |values: &[f64], used: Examples| {
        let exact = |n: &usize| (5 - used.of(*n).min(5)) as f64;
        // Relative to d: the exact values include zeros.
        lengths.iter().zip(values).map(|(n, v)| (v - exact(n)).abs() / 5.0).greatest()
    };
    let tolerance = if settings.quick { 0.12 } else { 0.03 };
    let excess = |k: usize| networks[k].mean / optima[k] - 1.0;
    let below = (0..10).filter(|k| networks[*k].mean < pgd[*k]).count();
    let everywhere = (0..10).filter(|k| exact[*k].mean < pgd[*k]).count();
    let claims = Claims::new()
        .at_most(
            "pgd.fig6.pgd",
            "PGD equals the reference (worst relative error)",
            error(pgd, PGD.map(|v| v.0).into()),
            tolerance,
        )
        .at_most(
            "pgd.fig6.gd",
            "GD equals the reference (worst relative error)",
            error(gd, GD.map(|v| v.0).into()),
            tolerance,
        )
        .at_most(
            "pgd.fig6.pgd-code",
            "… PGD without the last example",
            error(pgd_less, PGD.map(|v| v.1).into()),
            tolerance,
        )
        .at_most("pgd.fig6.gd-code", "… GD without the last example", error(gd_less, GD.map(|v| v.1).into()), tolerance)
        .at_most(
            "pgd.fig6.ols",
            "OLS is d − min(n, d) (worst error, in units of d)",
            ols_error(ols, Examples::All),
            tolerance,
        )
        .at_most(
            "pgd.fig6.ols-code",
            "… d − min(n − 1, d) without the last",
            ols_error(ols_less, Examples::ButLast),
            tolerance,
        )
        .at_most(
            "pgd.fig6.optimum",
            "for n ≤ 12 the network's loss is above the best minimum's by a fraction of at most",
            (0..6).map(excess).greatest(),
            0.15,
        )
        .at_least("pgd.fig6.below-pgd", "context lengths (of 10) where the network beats PGD", below as f64, 10.0)
        .at_least("pgd.fig6.below-pgd-exact", "… and does so on the law of contexts", everywhere as f64, 10.0);
    let config = json!({
        "checkpoint": "pgd-context", "prompts": size, "wishart_samples": samples, "n": lengths,
        "network": networks.iter().map(|i| i.to_string()).collect::<Vec<_>>(), "network_exact": exact.iter().map(|i| i.to_string()).collect::<Vec<_>>(), "optimum": optima,
        "gd": gd, "pgd": pgd, "ols": ols, "gd_code": gd_less, "pgd_code": pgd_less, "ols_code": ols_less,
    });
    Ok(Reproduction { figure, claims, config })
}
