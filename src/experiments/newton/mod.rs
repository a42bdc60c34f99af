//! The figures of "Transformers learn to achieve second-order convergence rates for in-context linear regression".

pub mod analysis;
pub mod beyond;
pub mod fig1;
pub mod fig2;
pub mod fig26;
pub mod fig6;
pub mod forgetting;
pub mod heat_maps;
pub mod ill_conditioned;
pub mod induced;
pub mod matching;
pub mod paper_scale;
pub mod quasi_newton;
pub mod recipes;
pub mod variants;

pub use recipes::recipes;

use super::{Experiment, Reproduction, Settings};
use crate::Result;

/// The paper's figures, in its order, and what goes beyond them.
pub fn experiments() -> Vec<Experiment> {
    type Run = fn(&Settings<'_>) -> Result<Reproduction>;
    const MATCHING: &str = "02_newton";
    const ERRATA: &str = "04_newton_errata";
    let figure = |id, title, notebook, checkpoints, run: Run| Experiment {
        id,
        paper: "newton",
        title,
        notebook,
        checkpoints,
        run,
    };
    vec![
        figure("newton.fig1", "A prompt as the transformer sees it", MATCHING, &[], fig1::run),
        figure("newton.fig26", "The algorithms against one another", MATCHING, &[], fig26::run),
        figure("newton.theorem", "Theorem 5.1 as running weights", ERRATA, &[], beyond::theorem),
        figure("newton.precision", "Newton in single and double precision", ERRATA, &[], beyond::precision),
        figure("newton.tuned", "First-order methods with their constants tuned", ERRATA, &[], beyond::tuned),
    ]
}
