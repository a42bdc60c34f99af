//! `cargo lab train`: makes a checkpoint anew, by the recipe in its manifest.

use std::path::PathBuf;

use clap::Args;
use incontext::experiments::{self, TrainOptions};

use super::{results_folder, settings};
use crate::bars::Bars;
use crate::house::House;
use crate::setup;
use crate::trouble::{Outcome, Trouble};

/// What to train, and how.
#[derive(Args, Debug)]
pub struct Options {
    /// The checkpoint's id; without one, they are listed
    id: Option<String>,
    /// Go on from where an interrupted training stopped
    #[arg(long)]
    resume: bool,
    /// Train this seed instead of the recipe's own; written beside the shipped checkpoint, as <ID>.seed<SEED>
    #[arg(long)]
    seed: Option<u64>,
    /// Folder to write the checkpoint to, instead of checkpoints/
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Trains.
pub fn run(house: &House, options: &Options) -> Outcome<u8> {
    let Some(id) = &options.id else {
        let recipes = experiments::recipes();
        let width = recipes.iter().map(|recipe| recipe.id.len()).max().unwrap_or_default();
        for recipe in recipes {
            println!("{:width$}  {}", recipe.id, recipe.title);
        }
        return Ok(0);
    };
    let recipe = experiments::recipe(id)?;
    setup::texts::ensure_for(house, &[id])?;
    let out = options.out.as_deref().map(results_folder).transpose()?;
    let bars = Bars::new(false)?;
    let how = TrainOptions { resume: options.resume, seed: options.seed, out };
    match recipe.run(&settings(house, &bars), &how) {
        Ok(path) => {
            println!("{}", path.display());
            Ok(0)
        }
        Err(error @ incontext::Error::Interrupted { .. }) => {
            let seed = options.seed.map(|seed| format!(" --seed {seed}")).unwrap_or_default();
            let out = options.out.as_ref().map(|out| format!(" --out \"{}\"", out.display())).unwrap_or_default();
            Err(Trouble::from(error).mend(format!("cargo lab train {id} --resume{seed}{out}")))
        }
        Err(error) => Err(error.into()),
    }
}
