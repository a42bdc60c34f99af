//! `cargo lab export`: one figure in other formats.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use incontext::experiments::{self, Settings};

use super::{results_folder, settings};
use crate::bars::Bars;
use crate::export::{self, Format, Made};
use crate::house::House;
use crate::trouble::{Outcome, Trouble};

/// Which figure, and in which formats.
#[derive(Args, Debug)]
pub struct Options {
    /// The figure's id
    id: String,
    /// Formats, separated by commas: svg, png, pdf, html, json, csv
    #[arg(long, short, required = true, value_delimiter = ',')]
    format: Vec<Format>,
    /// Folder to write to
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
    /// Seed of what is random in the figure itself
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Smaller samples, for a quick look
    #[arg(long)]
    quick: bool,
}

/// Makes the figure, writes it, and prints the paths of what it wrote.
pub fn run(house: &House, options: &Options) -> Outcome<u8> {
    let chosen = experiments::select(&[&options.id])?;
    let [experiment] = chosen[..] else {
        return Err(Trouble::usage(format!("'{}' is {} figures; export writes one", options.id, chosen.len()))
            .mend("cargo lab list shows the ids")
            .mend(format!("all of them: cargo lab reproduce {}", options.id)));
    };
    let out = results_folder(&options.out)?;
    let bars = Bars::new(false)?;
    let settings = Settings { seed: options.seed, quick: options.quick, ..settings(house, &bars) };
    let start = Instant::now();
    let reproduction = (experiment.run)(&settings)?;
    let seconds = start.elapsed().as_secs_f64();
    let made = Made { id: experiment.id, reproduction: &reproduction, seed: options.seed, seconds };
    for format in &options.format {
        let path = out.join(format!("{}.{format}", experiment.id));
        export::write(&made, *format, &path)?;
        println!("{}", path.display());
    }
    Ok(0)
}
