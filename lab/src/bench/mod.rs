//! `cargo lab bench`: measures speed, one file a bench. Every bench prints a table, or its rows as JSON.

pub mod fgd;
mod floor;
pub mod mesa;
pub mod notebook;
mod peer;
pub mod step;
pub mod train;

use clap::Subcommand;
use serde_json::json;

use crate::house::House;
use crate::trouble::Outcome;

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum Bench {
    /// How long a notebook waits: kernel start, :dep, the first let, typical cells, a figure
    Notebook(notebook::Options),
    /// How long a training step of the kernel transformer takes, beside the same model in PyTorch
    Fgd(fgd::Options),
    /// How long a training step of a mesa layer takes against the length of sequences, beside PyTorch eager
    Mesa(mesa::Options),
    /// How long a training step takes, beside the authors' formulation in PyTorch, and how far from the machine's floor
    Step(step::Options),
    /// How long a training step of transformers and LSTMs takes, beside PyTorch eager and torch.compile
    Train(train::Options),
}

/// Measures.
pub fn run(house: &House, bench: &Bench) -> Outcome<u8> {
    match bench {
        Bench::Notebook(options) => notebook::run(house, options),
        Bench::Fgd(options) => fgd::run(house, options),
        Bench::Mesa(options) => mesa::run(house, options),
        Bench::Step(options) => step::run(house, options),
        Bench::Train(options) => train::run(house, options),
    }
}

/// A line of a bench's table.
pub struct Row {
    /// What was measured.
    pub name: String,
    /// Our time in milliseconds.
    pub ours_ms: f64,
    /// The peer's, if it was measured.
    pub peer_ms: Option<f64>,
    /// The least ratio of the peer's time to ours that is wanted.
    pub goal: Option<f64>,
    /// The most milliseconds that are wanted.
    pub goal_ms: Option<f64>,
}

impl Row {
    fn ratio(&self) -> Option<f64> {
        self.peer_ms.map(|peer| peer / self.ours_ms)
    }

    /// Whether the goal is reached; `None` without one.
    fn reached(&self) -> Option<bool> {
        match (self.goal, self.goal_ms) {
            (Some(least), _) => self.ratio().map(|ratio| ratio >= least),
            (_, Some(most)) => Some(self.ours_ms <= most),
            _ => None,
        }
    }
}

/// Prints a table, or JSON and nothing else.
pub fn show(rows: &[Row], peer: &str, as_json: bool) {
    if as_json {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| {
                json!({
                    "name": row.name, "ours_ms": row.ours_ms, "peer": peer, "peer_ms": row.peer_ms,
                    "ratio": row.ratio(), "goal": row.goal, "goal_ms": row.goal_ms,
                })
            })
            .collect();
        println!("{}", json!({ "rows": rows }));
        return;
    }
    let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or_default().max(4);
    println!("{:width$}  {:>10}  {:>14}  {:>7}  {:>12}", "", "ours", peer, "ratio", "goal");
    for row in rows {
        let milliseconds = |ms: f64| match ms {
            ..100.0 => format!("{ms:.2} ms"),
            100.0..1e4 => format!("{ms:.0} ms"),
            _ => format!("{:.1} s", ms / 1e3),
        };
        let goal = match (row.goal, row.goal_ms) {
            (Some(ratio), _) => format!(">= {ratio}x"),
            (_, Some(ms)) => format!("<= {}", milliseconds(ms)),
            _ => String::new(),
        };
        let verdict = row.reached().map_or("", |reached| if reached { "reached" } else { "MISSED" });
        let peers = row.peer_ms.map(milliseconds).unwrap_or_default();
        let ratio = row.ratio().map(|ratio| format!("{ratio:.1}x")).unwrap_or_default();
        println!(
            "{:width$}  {:>10}  {peers:>14}  {ratio:>7}  {goal:>12}  {verdict}",
            row.name,
            milliseconds(row.ours_ms)
        );
    }
}

/// The middle of some values; of an even number, the mean of the two in the middle. NaN without any.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::median;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }
}
