//! The papers' figures, one file a figure: each makes a [`Figure`] with its [`Claims`] from shipped checkpoints or
//! from scratch. The command line and the notebooks find them through [`all`] and [`recipes`].

pub mod fgd;
pub mod mesa;
pub mod newton;
pub mod pgd;
mod shipping;

use std::path::PathBuf;

use crate::figure::{Claims, Figure};
use crate::progress::{Observer, Silent};
use crate::{Error, Result};

/// How an experiment is to be run.
pub struct Settings<'a> {
    /// Seed of everything random in the figure itself (test prompts, bootstrap); checkpoints keep their own.
    pub seed: u64,
    /// Train anew instead of loading shipped checkpoints.
    pub from_scratch: bool,
    /// Smaller samples for a quick look; claims are still checked, at the bounds that apply to the smaller size.
    pub quick: bool,
    /// Where shipped checkpoints are.
    pub checkpoints: PathBuf,
    /// Where unfinished training keeps its state.
    pub work: PathBuf,
    /// Who watches.
    pub observer: &'a dyn Observer,
}

impl Default for Settings<'_> {
    /// Seed 0, shipped checkpoints from the repository, no progress shown.
    fn default() -> Self {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        Settings {
            seed: 0,
            from_scratch: false,
            quick: false,
            checkpoints: root.join("checkpoints"),
            work: root.join(".lab").join("training"),
            observer: &Silent,
        }
    }
}

/// What an experiment gives back.
#[derive(Clone, Debug)]
pub struct Reproduction {
    /// The figure.
    pub figure: Figure,
    /// The paper's statements, checked.
    pub claims: Claims,
    /// The configuration that made it: task, model, recipe, checkpoints, sample sizes.
    pub config: serde_json::Value,
}

/// A figure of a paper.
#[derive(Clone, Copy)]
pub struct Experiment {
    /// `paper.figure`, e.g. `pgd.fig4`.
    pub id: &'static str,
    /// Short name of the paper.
    pub paper: &'static str,
    /// What the figure shows.
    pub title: &'static str,
    /// The notebook that has it, without its extension.
    pub notebook: &'static str,
    /// Checkpoints it loads.
    pub checkpoints: &'static [&'static str],
    /// Makes it.
    pub run: fn(&Settings<'_>) -> Result<Reproduction>,
}

/// A training that produces a checkpoint; running it again with `resume` continues where it stopped.
#[derive(Clone, Copy)]
pub struct Recipe {
    /// The checkpoint's id.
    pub id: &'static str,
    /// What is trained, in a line.
    pub title: &'static str,
    /// Trains the checkpoint of this id; see [`Recipe::run`].
    pub train: fn(&str, &Settings<'_>, &TrainOptions) -> Result<PathBuf>,
}

impl Recipe {
    /// Trains. `seed` replaces the recipe's own first seed; without `resume`, unfinished state is discarded.
    /// Returns the path of the checkpoint written.
    ///
    /// # Errors
    /// As the trainer's; [`Error::File`] where a file cannot be written.
    pub fn run(&self, settings: &Settings<'_>, options: &TrainOptions) -> Result<PathBuf> {
        (self.train)(self.id, settings, options)
    }
}

/// Options of [`Recipe::run`].
#[derive(Clone, Debug, Default)]
pub struct TrainOptions {
    /// Continue from the saved state, if there is one.
    pub resume: bool,
    /// Train this seed alone instead of the recipe's own.
    pub seed: Option<u64>,
    /// Where to write the checkpoint; the settings' `checkpoints` folder if `None`.
    pub out: Option<PathBuf>,
}

/// Every figure, in the order of the papers.
pub fn all() -> Vec<Experiment> {
    [pgd::experiments(), newton::experiments(), fgd::experiments(), mesa::experiments()].concat()
}

/// Every training recipe.
pub fn recipes() -> Vec<Recipe> {
    [pgd::recipes(), newton::recipes(), fgd::recipes(), mesa::recipes()].concat()
}

/// The experiments that `names` ask for: figure ids, short names of papers, or `all`; in the order of [`all`].
///
/// # Errors
/// [`Error::Unknown`] for a name that is none of these.
pub fn select<S: AsRef<str>>(names: &[S]) -> Result<Vec<Experiment>> {
    let all = all();
    for name in names.iter().map(AsRef::as_ref) {
        if name != "all" && !all.iter().any(|e| e.id == name || e.paper == name) {
            let known = all.iter().map(|e| e.id).chain(["pgd", "newton", "fgd", "mesa", "all"]);
            return Err(Error::unknown("figure or paper", name, known));
        }
    }
    let wanted = |e: &Experiment| names.iter().map(AsRef::as_ref).any(|n| n == "all" || n == e.id || n == e.paper);
    Ok(all.into_iter().filter(wanted).collect())
}

/// The recipe that produces the checkpoint `id`.
///
/// # Errors
/// [`Error::Unknown`] if there is none.
pub fn recipe(id: &str) -> Result<Recipe> {
    recipes()
        .into_iter()
        .find(|r| r.id == id)
        .ok_or_else(|| Error::unknown("checkpoint", id, recipes().iter().map(|r| r.id)))
}
