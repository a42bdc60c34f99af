//! The figures of "Uncovering mesa-optimization algorithms in Transformers".
//!
//! Conventions are those of the authors' code where paper and code differ: states start uniform in ±1, noise is a standard
//! deviation of 0.01, losses are Σ_dims (prediction − target)² / 2 at a token. Least squares and the series of Prop. 2 are shown
//! with all pairs, and with the newest one dropped, as the code does by an off-by-one.

pub mod beyond;
mod depth;
pub mod few_shot;
mod full;
mod full_dynamics;
mod kernels;
pub mod language;
pub mod linearised;
mod observations;
mod one_layer;
pub mod probes;
pub mod recipes;
pub mod reference;
pub mod sensitivity;
mod stacks;
pub mod weights;

use super::{Experiment, Recipe, Reproduction, Settings};
use crate::Result;

/// The trainings behind the figures.
pub fn recipes() -> Vec<Recipe> {
    [recipes::recipes(), linearised::recipes(), few_shot::recipes(), language::recipes()].concat()
}

/// What figures of partially observed dynamics at the authors' size compare.
const FULL_PARTIAL: &[&str] = &["mesa-full-partial", "mesa-full"];

/// What figures of partially observed dynamics compare.
const PARTIAL: &[&str] = &["mesa-partial", "mesa-stacks"];

/// What the sweep over teachers compares.
const DIVERSITY: &[&str] = &["mesa-diversity", "mesa-linear"];

/// The paper's figures, in its order, and those beyond it.
pub fn experiments() -> Vec<Experiment> {
    type Run = fn(&Settings<'_>) -> Result<Reproduction>;
    let figure = |id, title, notebook, checkpoints, run: Run| Experiment {
        id,
        paper: "mesa",
        title,
        notebook,
        checkpoints,
        run,
    };
    let one = |id, title, checkpoints, run: Run| figure(id, title, "06_mesa_optimisation", checkpoints, run);
    let deep = |id, title, checkpoints, run: Run| figure(id, title, "07_mesa_layer_and_deep_models", checkpoints, run);
    let shots = |id, title, checkpoints, run: Run| figure(id, title, "08_few_shot_and_language", checkpoints, run);
    let full = |id, title, checkpoints, run: Run| figure(id, title, "10_mesa_at_the_authors_size", checkpoints, run);
    let other = |id, title, checkpoints, run: Run| figure(id, title, "11_other_dynamics", checkpoints, run);
    vec![
        one(
            "mesa.fig2a",
            "The first layer binds neighbouring tokens (with Fig. 17)",
            &["mesa-stacks"],
            stacks::binding,
        ),
        deep("mesa.fig2b", "Early layers expose features", &["mesa-nonlinear"], observations::feature_probes),
        one(
            "mesa.fig3a",
            "Layer-1 attention of softmax transformer and hybrid (with Figs. 14, 15)",
            &["mesa-stacks"],
            stacks::attention,
        ),
        one("mesa.fig3b", "Weights of one linear layer (with Fig. 13)", &["mesa-one-layer"], one_layer::weights),
        one("mesa.fig4a", "Losses over training, one layer", &["mesa-one-layer", "mesa-layer"], one_layer::training),
        one("mesa.fig4b", "Six layers, compressed", &["mesa-linear", "mesa-fixed"], depth::compressed),
        one("mesa.fig4c", "Loss at every token, one layer", &["mesa-one-layer"], one_layer::tokens),
        one("mesa.fig4d", "Loss at every token, more layers", &["mesa-linear"], depth::tokens),
        one("mesa.fig4e", "Probing for the target", &["mesa-linear"], depth::target),
        one("mesa.fig4f", "Probing for the preconditioned state", &["mesa-linear"], depth::preconditioned),
        deep("mesa.fig5a", "Softmax layers made linear, one by one", &["mesa-linearised"], linearised::dimension),
        deep("mesa.fig5b", "Least squares and kernel against dimension", &[], kernels::dimension),
        deep("mesa.fig6ab", "Probing the softmax transformer", &["mesa-stacks"], stacks::layers),
        deep("mesa.fig6c", "Softmax transformers against Prop. 2", &["mesa-stacks"], stacks::depth),
        deep("mesa.fig7a", "Softmax transformer, hybrid and Prop. 2", &["mesa-stacks"], stacks::hybrid),
        deep("mesa.fig7b", "Partially observed dynamics", &["mesa-partial"], observations::partial),
        deep("mesa.fig7c", "Non-linear dynamics", &["mesa-nonlinear"], observations::nonlinear),
        shots("mesa.fig8", "Few-shot regression, softmax transformer", &["mesa-few-shot"], few_shot::transformer),
        one("mesa.fig9", "Weights of six linear layers", &["mesa-linear", "mesa-fixed"], depth::weights),
        deep("mesa.fig10", "Weights of a softmax transformer", &["mesa-stacks"], stacks::weights),
        one("mesa.fig11", "Contracting dynamics", &["mesa-contracting"], depth::contracting),
        one("mesa.fig12", "One fixed teacher: no mesa-optimiser", &["mesa-fixed"], depth::fixed),
        deep("mesa.fig16", "What the first layer depends on, over training", &["mesa-stacks"], stacks::sensitivity),
        shots("mesa.fig18", "Few-shot regression, hybrid", &["mesa-few-shot"], few_shot::hybrid),
        deep("mesa.fig19", "Softmax layers and their linear replacements", &["mesa-distilled"], linearised::weights),
        deep("mesa.fig20", "Least squares and kernel with noise", &[], kernels::noise),
        deep(
            "mesa.fig21",
            "Binding where the state is seen in part (with Fig. 2A)",
            &["mesa-partial", "mesa-stacks", "mesa-widths"],
            observations::partial_binding,
        ),
        deep("mesa.fig22", "Sensitivity, partially observed", PARTIAL, observations::partial_sensitivity),
        deep("mesa.fig23", "Sensitivity, non-linear", &["mesa-nonlinear"], observations::nonlinear_sensitivity),
        deep("mesa.fig24", "Probes, partially observed", &["mesa-partial"], observations::partial_layers),
        deep("mesa.fig25", "Probes, non-linear", &["mesa-nonlinear"], observations::nonlinear_layers),
        shots("mesa.fig26", "Language models of one layer", &["mesa-language"], language::one_layer),
        shots(
            "mesa.fig26-features",
            "Language models of one layer on features",
            &["mesa-language", "mesa-language-features"],
            language::features,
        ),
        shots("mesa.fig27", "Language models of two layers", &["mesa-language"], language::two_layers),
        shots("mesa.fig27-deep", "Language models of four layers", &["mesa-language-deep"], language::four_layers),
        shots("mesa.fig28", "Layer-1 attention of language models", &["mesa-language"], language::attention),
        full("mesa.full", "Figs. 6C and 7A at the authors' own size", &["mesa-full"], full::losses),
        full("mesa.full-layers", "Figs. 2A, 6A, 6B and 16 at the authors' own size", &["mesa-full"], full::layers),
        full("mesa.full-pairs", "Figs. 8A and 18A, pairs alone, at the authors' own size", &["mesa-full"], full::pairs),
        other(
            "mesa.full-partial",
            "Figs. 2A, 7B, 22, 24A and 24B at the authors' own size",
            FULL_PARTIAL,
            full_dynamics::partial,
        ),
        other(
            "mesa.full-nonlinear",
            "Figs. 2B, 7C, 23, 25A and 25B at the authors' own size",
            &["mesa-full-nonlinear"],
            full_dynamics::nonlinear,
        ),
        full(
            "mesa.fig8-full",
            "Few-shot regression at the authors' own size, softmax transformer",
            &["mesa-few-shot-full"],
            few_shot::full_transformer,
        ),
        deep("mesa.diversity", "How many teachers make a learner", DIVERSITY, beyond::diversity),
        deep("mesa.rules", "Linear attention, delta rule, implicit step, mesa", &["mesa-rules"], beyond::rules),
        deep("mesa.switch", "A teacher that changes", &["mesa-linear"], beyond::switch),
        deep("mesa.paste", "Explicit weights in trained networks", &["mesa-one-layer", "mesa-linear"], beyond::paste),
    ]
}
