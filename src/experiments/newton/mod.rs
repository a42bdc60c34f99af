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
    const SKEW: &str = "03_ill_conditioned";
    const ERRATA: &str = "04_newton_errata";
    const VARIANTS: &str = "09_newton_variants";
    const S: &[&str] = &["newton-s"];
    const ATTENTION: &[&str] = &["newton-s", "newton-s-attention"];
    const LSTM: &[&str] = &["newton-s", "newton-s-lstm"];
    const ILL: &[&str] = &["newton-s-skew"];
    const ONE_HEAD: &[&str] = &["newton-s-one-head"];
    const DEEP: &[&str] = &["newton-s-deep", "newton-s"];
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
        figure("newton.fig2", "Error over layers, Newton steps and gradient-descent steps", MATCHING, S, fig2::run),
        figure("newton.fig3", "Layers against Newton and gradient descent", MATCHING, S, heat_maps::fig3),
        figure("newton.fig4", "Ill-conditioned data: steps to a solution", SKEW, ILL, ill_conditioned::fig4),
        figure("newton.fig5", "The LSTM forgets, the transformer does not", MATCHING, LSTM, forgetting::fig5),
        figure("newton.fig6", "How wide the residual stream has to be", VARIANTS, &["newton-s-width"], fig6::run),
        figure("newton.fig7", "Layers of a transformer and of an LSTM", MATCHING, LSTM, forgetting::fig7),
        figure("newton.table1", "Transformer and LSTM against three algorithms", MATCHING, LSTM, forgetting::table1),
        figure("newton.fig8", "Figure 3 by the number of examples", MATCHING, S, heat_maps::fig8),
        figure("newton.fig9", "Induced weights against Newton and gradient descent", MATCHING, S, induced::fig9),
        figure("newton.fig10", "Layers against exponentially many steps", MATCHING, S, heat_maps::fig10),
        figure("newton.fig11", "Layers against BFGS and L-BFGS", MATCHING, S, quasi_newton::fig11),
        figure("newton.fig12", "Layers against exact conjugate gradient", MATCHING, S, quasi_newton::fig12),
        figure("newton.fig13", "Which algorithm the layers resemble", MATCHING, S, induced::fig13),
        figure("newton.fig14", "Induced weights by the number of examples", MATCHING, S, induced::fig14),
        figure("newton.fig15", "Ill-conditioned data: error of the layers", SKEW, ILL, variants::fig15),
        figure("newton.fig16", "Ill-conditioned data: layers and steps", SKEW, ILL, heat_maps::fig16),
        figure("newton.fig17", "Ill-conditioned data: induced weights", SKEW, ILL, induced::fig17),
        figure("newton.fig18", "Ill-conditioned data: BFGS and L-BFGS", SKEW, ILL, quasi_newton::fig18),
        figure("newton.fig19", "Noisy labels", VARIANTS, &["newton-s-noisy"], variants::fig19),
        figure("newton.fig20", "Two-layer ReLU networks", VARIANTS, &["newton-relu"], variants::fig20),
        figure("newton.fig21", "Two-layer tanh networks", VARIANTS, &["newton-tanh"], variants::fig21),
        figure("newton.fig22", "One head a layer", VARIANTS, ONE_HEAD, heat_maps::fig22),
        figure("newton.fig23", "One head a layer: induced weights", VARIANTS, ONE_HEAD, induced::fig23),
        figure("newton.fig24", "Twice the layers", VARIANTS, DEEP, variants::fig24),
        figure("newton.fig25", "Twice the layers: error", VARIANTS, DEEP, variants::fig25),
        figure("newton.fig26", "The algorithms against one another", MATCHING, &[], fig26::run),
        figure("newton.fig27", "Induced weights lie in the span of the examples", MATCHING, S, induced::fig27),
        figure("newton.medium", "Figures 2 and 3 at d = 10", VARIANTS, &["newton-m"], heat_maps::medium),
        figure("newton.large", "Figures 2 and 3 at the paper's d = 20", VARIANTS, &["newton-l"], heat_maps::large),
        figure("newton.attention", "Linear, ReLU and softmax attention", VARIANTS, ATTENTION, beyond::attention),
        figure("newton.theorem", "Theorem 5.1 as running weights", ERRATA, &[], beyond::theorem),
        figure("newton.precision", "Newton in single and double precision", ERRATA, &[], beyond::precision),
        figure("newton.alpha", "What the constant in α does to Newton", ERRATA, &[], beyond::alpha),
        figure("newton.tuned", "First-order methods with their constants tuned", MATCHING, &[], beyond::tuned),
        figure(
            "newton.query-linearity",
            "Is the prediction linear in the query?",
            MATCHING,
            S,
            beyond::query_linearity,
        ),
    ]
}
