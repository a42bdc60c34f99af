//! Algorithms on few-shot prompts: with the pairs that a model of sequences is likely to see, and with the right ones.

use super::{SequenceAlgorithm, sequence_losses};
use crate::Result;
use crate::tasks::FewShotPrompts;

/// Which pairs of a prompt x_1, y_1, x_2, … an algorithm regresses on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FewShotPairs {
    /// (x_i → y_i) and the spurious (y_i → x_{i+1}): every token on the one before it, as a model of sequences was trained to.
    Spurious,
    /// (x_i → y_i) alone.
    Correct,
}

/// ½‖y_i − f(x_i)‖² of `algorithm`, which knows what comes before x_i; the mean over prompts, `[pairs]`.
///
/// # Errors
/// As [`sequence_losses`].
pub fn few_shot_losses(
    algorithm: &dyn SequenceAlgorithm,
    prompts: &FewShotPrompts,
    pairs: FewShotPairs,
) -> Result<Vec<f64>> {
    match pairs {
        FewShotPairs::Spurious => {
            Ok(sequence_losses(algorithm, &prompts.spurious()?, None)?.into_iter().step_by(2).collect())
        }
        FewShotPairs::Correct => {
            let (inputs, states) = prompts.regression()?;
            sequence_losses(algorithm, &states, Some(&inputs))
        }
    }
}
