//! The commands that make figures and models.

pub mod convert;
pub mod execute;
pub mod export;
pub mod list;
pub mod reproduce;
pub mod train;

use std::path::{Path, PathBuf};

use incontext::experiments::Settings;
use incontext::progress::Observer;

use crate::house::House;
use crate::trouble::{Outcome, Subject, Trouble};

/// Settings of a run in this repository.
fn settings<'a>(house: &House, observer: &'a dyn Observer) -> Settings<'a> {
    Settings {
        checkpoints: house.root().join("checkpoints"),
        work: house.at("training"),
        observer,
        ..Settings::default()
    }
}

/// Makes a folder for results, and says so clearly if that cannot be: before the work, not after it.
fn results_folder(path: &Path) -> Outcome<PathBuf> {
    if path.exists() && !path.is_dir() {
        return Err(Trouble::usage(format!("{} is a file; results need a folder", path.display()))
            .mend("name a folder: --out out"));
    }
    std::fs::create_dir_all(path).doing(|| format!("make the folder {}", path.display()))?;
    Ok(path.to_path_buf())
}
