//! Token sequences with the targets of their predictions: what a sequence model trains on.

use crate::error::{all_finite, all_finite_f32, array_len};
use crate::{Error, Result};

/// A batch of sequences of equal length.
///
/// A prediction is made at tokens 0, s, 2s, …; its target has its own entries, and its weight in the loss
///
/// ```text
/// (1 / batch) Σ_b Σ_p weight_p ‖ŷ_bp - y_bp‖²
/// ```
///
/// which is 1 over the number of predictions for each unless set: the mean over them (`newton` section 1).
#[derive(Clone, Debug)]
pub struct Sequences {
    batch: usize,
    length: usize,
    every: usize,
    inputs: usize,
    outputs: usize,
    tokens: Vec<f32>,
    targets: Vec<f32>,
    weights: Vec<f64>,
}

impl Sequences {
    /// Sequences from `tokens` `[batch, length, inputs]` and `targets` `[batch, predictions, outputs]`, row-major, with
    /// a prediction at tokens 0, `every`, 2 `every`, ….
    ///
    /// # Errors
    /// [`Error::Shape`] if the lengths do not fit or a size is 0, [`Error::Invalid`] for values that are not finite.
    ///
    /// ```
    /// use incontext::tasks::Sequences;
    /// // One sequence of three tokens of two entries, one number predicted at each.
    /// let s = Sequences::new([1, 3, 2], vec![0.5; 6], 1, vec![1.0; 3], 1)?;
    /// assert_eq!((s.length(), s.predictions()), (3, 3));
    /// # Ok::<(), incontext::Error>(())
    /// ```
    pub fn new(shape: [usize; 3], tokens: Vec<f32>, outputs: usize, targets: Vec<f32>, every: usize) -> Result<Self> {
        let [batch, length, inputs] = shape;
        if shape.contains(&0) || outputs == 0 || every == 0 {
            let given = [batch, length, inputs, outputs, every];
            return Err(Error::shape("sequences", &given, "[batch, length, inputs, outputs, every], each at least 1"));
        }
        if tokens.len() != array_len::<f32>("tokens", &shape)? {
            return Err(Error::shape("tokens", &[tokens.len()], format!("{shape:?}")));
        }
        let count = length.div_ceil(every);
        if targets.len() != array_len::<f32>("targets", &[batch, count, outputs])? {
            return Err(Error::shape("targets", &[targets.len()], format!("[{batch}, {count}, {outputs}]")));
        }
        all_finite_f32("tokens", &tokens)?;
        all_finite_f32("targets", &targets)?;
        let weights = vec![1.0 / count as f64; count];
        Ok(Sequences { batch, length, every, inputs, outputs, tokens, targets, weights })
    }

    /// The same with another weight for each prediction of a sequence. `mesa`'s loss has 1 / (2 T).
    ///
    /// # Errors
    /// [`Error::Shape`] unless there is one weight a prediction, [`Error::Invalid`] if one is not finite.
    pub fn with_weights(self, weights: Vec<f64>) -> Result<Self> {
        if weights.len() != self.weights.len() {
            return Err(Error::shape("weights", &[weights.len()], format!("[{}]", self.weights.len())));
        }
        all_finite("weights", weights.iter().copied())?;
        Ok(Sequences { weights, ..self })
    }

    /// Number of sequences.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Tokens of a sequence.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Entries of a token.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Entries of a prediction.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// Tokens from a prediction to the next.
    pub fn every(&self) -> usize {
        self.every
    }

    /// Predictions of a sequence.
    pub fn predictions(&self) -> usize {
        self.weights.len()
    }

    /// `[batch, length, inputs]`.
    pub fn tokens(&self) -> &[f32] {
        &self.tokens
    }

    /// `[batch, predictions, outputs]`.
    pub fn targets(&self) -> &[f32] {
        &self.targets
    }

    /// The weight of each prediction of a sequence in the loss.
    pub fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// The loss of predictions `[batch, predictions, outputs]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if they do not fit.
    pub fn loss(&self, predictions: &[f32]) -> Result<f64> {
        Ok(self.squares(predictions)?.iter().zip(&self.weights).map(|(s, w)| s * w).sum())
    }

    /// The mean over the batch of ‖ŷ - y‖² at each prediction, `[predictions]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if they do not fit.
    pub fn squares(&self, predictions: &[f32]) -> Result<Vec<f64>> {
        if predictions.len() != self.targets.len() {
            let expected = format!("[{}, {}, {}]", self.batch, self.predictions(), self.outputs);
            return Err(Error::shape("predictions", &[predictions.len()], expected));
        }
        let mut squares = vec![0.0; self.predictions()];
        let pairs = predictions.chunks(self.outputs).zip(self.targets.chunks(self.outputs));
        for (k, (prediction, target)) in pairs.enumerate() {
            let square: f64 = prediction.iter().zip(target).map(|(p, y)| f64::from(p - y).powi(2)).sum();
            squares[k % self.predictions()] += square / self.batch as f64;
        }
        Ok(squares)
    }
}
