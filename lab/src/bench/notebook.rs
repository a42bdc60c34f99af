//! `cargo lab bench notebook`: what a user of a notebook waits for, in a real kernel started through Jupyter, beside
//! the same in the plain evcxr kernel.

use clap::Args;
use serde::Deserialize;
use serde_json::json;

use super::{Row, median, show};
use crate::bars::Step;
use crate::house::House;
use crate::trouble::{Outcome, Subject, Trouble};
use crate::{jupyter, setup};

/// How often, and how to show it.
#[derive(Args, Debug)]
pub struct Options {
    /// Runs in the lab's kernel, each in a kernel of its own
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Runs in the plain kernel, which compiles every dependency anew each time: minutes a run
    #[arg(long, default_value_t = 1)]
    plain_runs: u32,
    /// The rows as JSON, and nothing else on standard output
    #[arg(long)]
    json: bool,
}

/// A cell of the bench.
struct Cell {
    name: &'static str,
    code: &'static str,
    kind: Kind,
}

/// What a cell's wait counts as.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The dependency and the prelude: a notebook's first cell.
    First,
    /// The first `let`, in which a plain kernel resolves every source.
    Let,
    /// A cell like those of the notebooks.
    Typical,
    /// The first figure.
    Figure,
}

/// Cells as the notebooks have them: nothing here computes for any noticeable time.
const CELLS: [Cell; 13] = [
    Cell {
        name: ":dep + use",
        kind: Kind::First,
        code: ":dep incontext = { path = \"..\" }\nuse incontext::prelude::*;",
    },
    Cell { name: "first let", kind: Kind::Let, code: "let xs: Vec<f64> = (0..20).map(f64::from).collect();" },
    Cell { name: "let, inferred", kind: Kind::Typical, code: "let ys = xs.iter().map(|x| x * x).collect::<Vec<_>>();" },
    Cell { name: "println", kind: Kind::Typical, code: "println!(\"{} points, the last at {}\", xs.len(), ys[19]);" },
    Cell {
        name: "fn",
        kind: Kind::Typical,
        code: "fn decay(rate: f64, steps: usize) -> Vec<f64> {\n    (0..steps).map(|k| (-rate * k as f64).exp()).collect()\n}",
    },
    Cell { name: "call of a fn", kind: Kind::Typical, code: "let losses = decay(0.3, 20);" },
    Cell { name: "value shown", kind: Kind::Typical, code: "losses.iter().sum::<f64>() / losses.len() as f64" },
    Cell {
        name: "struct",
        kind: Kind::Typical,
        code: "#[derive(Clone, Debug)]\nstruct Run { seed: u64, losses: Vec<f64> }",
    },
    Cell {
        name: "let of a struct",
        kind: Kind::Typical,
        code: "let runs: Vec<Run> = (0..3).map(|seed| Run { seed, losses: decay(0.1 * (seed + 1) as f64, 20) }).collect();",
    },
    Cell {
        name: "loop",
        kind: Kind::Typical,
        code: "for run in &runs {\n    println!(\"seed {}: {:.4}\", run.seed, run.losses[19]);\n}",
    },
    Cell {
        name: "let of a tuple",
        kind: Kind::Typical,
        code: "let (best, worst) = (runs[2].losses[19], runs[0].losses[19]);",
    },
    Cell {
        name: "let of a line",
        kind: Kind::Typical,
        code: "let line = incontext::figure::Line::new(\"loss\", &xs, &losses);",
    },
    Cell {
        name: "figure",
        kind: Kind::Figure,
        code: "incontext::figure::Figure::new(\"bench\", \"A figure\").panel(incontext::figure::Panel::new(\"loss\").line(line))",
    },
];

/// What the driver reports of a run.
#[derive(Deserialize)]
struct Run {
    start: f64,
    cells: Vec<Waited>,
}

/// What the driver reports of a cell.
#[derive(Deserialize)]
struct Waited {
    name: String,
    seconds: f64,
    error: Option<String>,
    mime: Vec<String>,
}

/// Measures, alternating between the kernels.
pub fn run(house: &House, options: &Options) -> Outcome<u8> {
    let ready = setup::all(house)?;
    let (mut ours, mut plain) = (Vec::new(), Vec::new());
    for i in 0..options.runs.max(options.plain_runs) {
        for (kernel, runs, done) in [("incontext", options.runs, &mut ours), ("rust", options.plain_runs, &mut plain)] {
            if i < runs {
                let step = Step::start(&format!("Kernel '{kernel}', run {} of {runs}", i + 1));
                done.push(drive(house, &ready, kernel)?);
                step.done();
            }
        }
    }
    show(&rows(&ours, &plain), "plain evcxr", options.json);
    Ok(0)
}

fn drive(house: &House, ready: &setup::Ready, kernel: &str) -> Outcome<Run> {
    let notebooks = house.root().join("notebooks");
    let order = json!({
        "kernel": kernel,
        "cwd": notebooks,
        "timeout": 1800,
        "cells": CELLS.iter().map(|cell| [cell.name, cell.code]).collect::<Vec<_>>(),
    });
    let driver = jupyter::driver(house, &ready.python, include_str!("notebook.py"), &order)?;
    let output = driver.wait_with_output().doing(|| "wait for the driver".into())?;
    let failed = |why: &str| {
        let words = String::from_utf8_lossy(&output.stderr);
        Trouble::new(format!("the kernel '{kernel}' did not run the bench: {why}\n{}", words.trim()))
            .mend("cargo lab doctor")
    };
    if !output.status.success() {
        return Err(failed("the driver failed"));
    }
    // Kernels inherit standard output and may say something there.
    let words = String::from_utf8_lossy(&output.stdout);
    let answer = words.lines().rev().find_map(|line| serde_json::from_str(line).ok());
    let run: Run = answer.ok_or_else(|| failed("it gave no answer"))?;
    if let Some((name, error)) = run.cells.iter().find_map(|cell| Some((&cell.name, cell.error.as_ref()?))) {
        return Err(failed(&format!("the cell '{name}' ended with: {error}")));
    }
    match run.cells.last() {
        Some(figure) if figure.mime.is_empty() => Err(failed("the figure was not displayed")),
        _ => Ok(run),
    }
}

/// A quantity of a run, in seconds, and the most it should be.
type Quantity = (String, Box<dyn Fn(&Run) -> f64>, Option<f64>);

fn rows(ours: &[Run], plain: &[Run]) -> Vec<Row> {
    let mut quantities: Vec<Quantity> = vec![
        ("kernel start".into(), Box::new(|run| run.start), None),
        (
            "start to first figure".into(),
            Box::new(|run| run.start + run.cells.iter().map(|c| c.seconds).sum::<f64>()),
            Some(10.0),
        ),
        (
            "  without the ten cells between".into(),
            Box::new(|run| run.start + waits(run, |kind| kind != Kind::Typical).iter().sum::<f64>()),
            Some(10.0),
        ),
        (
            "longest wait after the first cell".into(),
            Box::new(|run| longest(&waits(run, |kind| kind != Kind::First))),
            Some(2.0),
        ),
        ("typical cell, median".into(), Box::new(|run| median(&waits(run, |kind| kind == Kind::Typical))), Some(0.6)),
        ("typical cell, slowest".into(), Box::new(|run| longest(&waits(run, |kind| kind == Kind::Typical))), Some(2.0)),
    ];
    for (i, cell) in CELLS.iter().enumerate() {
        let goal = match cell.kind {
            Kind::First => Some(3.0),
            Kind::Let | Kind::Figure => Some(2.0),
            Kind::Typical => None,
        };
        let name = match cell.kind {
            Kind::Typical => format!("cell: {}", cell.name),
            _ => cell.name.to_string(),
        };
        quantities.push((name, Box::new(move |run| run.cells.get(i).map_or(f64::NAN, |cell| cell.seconds)), goal));
    }
    let of = |runs: &[Run], quantity: &dyn Fn(&Run) -> f64| {
        let values: Vec<f64> = runs.iter().map(quantity).collect();
        (!values.is_empty()).then(|| 1e3 * median(&values))
    };
    quantities
        .into_iter()
        .map(|(name, quantity, goal)| Row {
            name,
            ours_ms: of(ours, &quantity).unwrap_or(f64::NAN),
            peer_ms: of(plain, &quantity),
            goal: None,
            goal_ms: goal.map(|seconds| 1e3 * seconds),
        })
        .collect()
}

fn waits(run: &Run, wanted: impl Fn(Kind) -> bool) -> Vec<f64> {
    run.cells.iter().zip(&CELLS).filter(|(_, cell)| wanted(cell.kind)).map(|(waited, _)| waited.seconds).collect()
}

fn longest(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}
