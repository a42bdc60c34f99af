//! The figures of "Transformers learn to implement preconditioned gradient descent for in-context learning".

pub mod baselines;
pub mod basins;
mod distances;
pub mod fig1;
pub mod fig2;
pub mod fig3;
pub mod fig4;
pub mod fig5;
pub mod fig6;
pub mod fig7;
pub mod recipes;

pub use recipes::recipes;

use super::{Experiment, Reproduction, Settings};
use crate::Result;

/// The paper's figures, in its order.
pub fn experiments() -> Vec<Experiment> {
    type Run = fn(&Settings<'_>) -> Result<Reproduction>;
    let figure = |id, title, checkpoints, run: Run| Experiment {
        id,
        paper: "pgd",
        title,
        notebook: "01_preconditioned_gradient_descent",
        checkpoints,
        run,
    };
    vec![
        figure("pgd.fig1", "Three layers learn Σ⁻¹: distances and loss", &["pgd-preconditioner"], fig1::run),
        figure("pgd.fig2", "The learnt preconditioners", &["pgd-preconditioner"], fig2::run),
        figure("pgd.fig3", "GD++: distances and loss", &["pgd-transform", "pgd-identity"], fig3::run),
        figure("pgd.fig4", "GD++: the learnt B", &["pgd-transform"], fig4::run),
        figure("pgd.fig5", "GD++: the learnt A", &["pgd-transform"], fig5::run),
        figure("pgd.fig6", "Loss against the number of examples", &["pgd-context"], fig6::run),
        figure("pgd.fig7", "Loss against the number of layers", &["pgd-depth", "pgd-transform"], fig7::run),
    ]
}
