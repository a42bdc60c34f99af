//! How alike two families of predictors are on the same prompts, and which of one family matches each of the other best
//! (`newton` section 3.3).

use std::ops::Range;

use rayon::prelude::*;

use crate::algorithms::Predictions;
use crate::linalg::dot;
use crate::rng::{Rng, stream};
use crate::{Error, Result};

/// What is compared, prompt by prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// The cosine: 1 for parallel vectors, whatever their lengths. SimE and SimW.
    Cosine,
    /// ‖a − b‖ / ‖b‖: 0 for equal vectors. Unlike the cosine it sees magnitudes.
    RelativeDistance,
}

/// A measure of every pair of two families on every prompt: rows are the first family (an algorithm's steps), columns the
/// second (a model's layers).
#[derive(Clone, Debug, PartialEq)]
pub struct Similarity {
    /// What was measured.
    pub measure: Measure,
    /// Members of the first family.
    pub rows: usize,
    /// Members of the second family.
    pub columns: usize,
    /// Number of prompts.
    pub batch: usize,
    /// `[rows, columns, batch]`.
    values: Vec<f64>,
}

/// The row that matches a column best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BestMatch {
    /// The row; the first of several that are equally good.
    pub row: usize,
    /// The mean of the measure there.
    pub value: f64,
    /// Lower end of the 95 % bootstrap interval of the row.
    pub low: usize,
    /// Upper end.
    pub high: usize,
}

impl Similarity {
    /// Between errors (prediction − label) at these positions. With the cosine its mean is SimE (eq. 6): the paper counts
    /// t = 1, …, n, its code also t = 0.
    ///
    /// ```
    /// use incontext::algorithms::Predictions;
    /// use incontext::compare::{Measure, Similarity};
    /// let a = Predictions::new(1, 2, vec![vec![1.0, 0.0], vec![1.0, 1.0]])?;
    /// let b = Predictions::new(1, 2, vec![vec![2.0, 2.0]])?;
    /// let sime = Similarity::of_errors(Measure::Cosine, &a, &b, 0..2)?;
    /// assert!((sime.mean(0, 0) - 0.5_f64.sqrt()).abs() < 1e-12 && (sime.mean(1, 0) - 1.0).abs() < 1e-12);
    /// assert_eq!(sime.best(20, 0)[0].row, 1);
    /// # Ok::<(), incontext::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`] for families on other prompts; [`Error::Invalid`] for positions that are not there, or none.
    pub fn of_errors(measure: Measure, a: &Predictions, b: &Predictions, positions: Range<usize>) -> Result<Self> {
        if (a.batch, a.positions) != (b.batch, b.positions) {
            let expected = format!("[{}, {}]", a.batch, a.positions);
            return Err(Error::shape("second family's errors", &[b.batch, b.positions], expected));
        }
        if positions.is_empty() || positions.end > a.positions {
            return Err(Error::invalid("positions", format!("{positions:?}"), format!("a part of 0..{}", a.positions)));
        }
        let cut = |values: &[f64], i: usize| {
            i * a.positions + positions.start..(i * a.positions + positions.end).min(values.len())
        };
        Ok(Self::fill(measure, a.values.len(), b.values.len(), a.batch, |r, c, i| {
            let range = cut(&a.values[r], i);
            measure.of(&a.values[r][range.clone()], &b.values[c][range])
        }))
    }

    /// Between weight vectors, `[batch, positions, d]` of each member: the mean over these positions of the measure at
    /// each. With the cosine its mean is SimW (eq. 8).
    ///
    /// # Errors
    /// [`Error::Shape`] for members of other lengths, [`Error::Invalid`] for positions that are not there, or none.
    pub fn of_weights(
        measure: Measure,
        a: &[Vec<f64>],
        b: &[Vec<f64>],
        shape: [usize; 3],
        positions: Range<usize>,
    ) -> Result<Self> {
        let [batch, all, d] = shape;
        if let Some(bad) = a.iter().chain(b).find(|m| m.len() != batch * all * d) {
            return Err(Error::shape("weights", &[bad.len()], format!("{shape:?}")));
        }
        if a.is_empty() || b.is_empty() || batch == 0 {
            return Err(Error::shape("weights", &[a.len(), b.len(), batch], "two families and a batch of at least 1"));
        }
        if positions.is_empty() || positions.end > all {
            return Err(Error::invalid("positions", format!("{positions:?}"), format!("a part of 0..{all}")));
        }
        Ok(Self::fill(measure, a.len(), b.len(), batch, |r, c, i| {
            let at = |t: usize| {
                let range = (i * all + t) * d..(i * all + t + 1) * d;
                measure.of(&a[r][range.clone()], &b[c][range])
            };
            positions.clone().map(at).sum::<f64>() / positions.len() as f64
        }))
    }

    fn fill(
        measure: Measure,
        rows: usize,
        columns: usize,
        batch: usize,
        f: impl Fn(usize, usize, usize) -> f64 + Sync,
    ) -> Self {
        let pair = |k: usize| (0..batch).map(|i| f(k / columns, k % columns, i)).collect::<Vec<f64>>();
        let values = (0..rows * columns).into_par_iter().map(pair).collect::<Vec<_>>().concat();
        Similarity { measure, rows, columns, batch, values }
    }

    /// The measure of a pair on every prompt, `[batch]`.
    ///
    /// # Panics
    /// For a row or a column that is not there, like indexing a slice.
    pub fn of(&self, row: usize, column: usize) -> &[f64] {
        &self.values[(row * self.columns + column) * self.batch..][..self.batch]
    }

    /// The mean over prompts.
    ///
    /// # Panics
    /// As [`Similarity::of`].
    pub fn mean(&self, row: usize, column: usize) -> f64 {
        self.of(row, column).iter().sum::<f64>() / self.batch as f64
    }

    /// All means, `[rows, columns]`: the paper's heat maps.
    pub fn means(&self) -> Vec<f64> {
        (0..self.rows * self.columns).map(|k| self.mean(k / self.columns, k % self.columns)).collect()
    }

    /// For each column the row that matches it best (Definition 3.4), with a paired bootstrap interval: the same
    /// `resamples` resamples of the prompts for all rows, so that what prompts have in common cancels.
    pub fn best(&self, resamples: usize, seed: u64) -> Vec<BestMatch> {
        let counts: Vec<Vec<f64>> = (0..resamples)
            .map(|b| {
                let mut rng = stream(seed, "bootstrap", b as u64);
                let mut counts = vec![0.0; self.batch];
                (0..self.batch).for_each(|_| counts[rng.gen_range(0..self.batch)] += 1.0);
                counts
            })
            .collect();
        let of = |column: usize| {
            let row = self.first_best((0..self.rows).map(|r| self.mean(r, column)));
            let mut drawn: Vec<usize> = counts
                .iter()
                .map(|counts| self.first_best((0..self.rows).map(|r| dot(self.of(r, column), counts))))
                .collect();
            drawn.sort_unstable();
            // The ends that leave at most 2.5 % of the resamples outside on either side.
            let cut = drawn.len() * 25 / 1000;
            let low = drawn.get(cut).copied().unwrap_or(row).min(row);
            let high = drawn.len().checked_sub(cut + 1).map_or(row, |k| drawn[k]).max(row);
            BestMatch { row, value: self.mean(row, column), low, high }
        };
        (0..self.columns).into_par_iter().map(of).collect()
    }

    fn first_best(&self, values: impl Iterator<Item = f64>) -> usize {
        let mut best = (0, f64::NAN);
        for (row, value) in values.enumerate() {
            let better = match self.measure {
                Measure::Cosine => value > best.1,
                Measure::RelativeDistance => value < best.1,
            };
            if better || best.1.is_nan() {
                best = (row, value);
            }
        }
        best.0
    }
}

/// The measure of every pair at one position, between the vectors of all prompts' errors there: `[rows, columns]`. Where
/// [`Similarity`] compares positions within a prompt, this says how a match depends on the number of examples.
///
/// # Errors
/// [`Error::Shape`] for families on other prompts; [`Error::Invalid`] for a position that is not there.
pub fn similarity_at(measure: Measure, a: &Predictions, b: &Predictions, position: usize) -> Result<Vec<f64>> {
    if (a.batch, a.positions) != (b.batch, b.positions) {
        let expected = format!("[{}, {}]", a.batch, a.positions);
        return Err(Error::shape("second family's errors", &[b.batch, b.positions], expected));
    }
    if position >= a.positions {
        return Err(Error::invalid("position", position, format!("below {}", a.positions)));
    }
    let column = |values: &Vec<f64>| values.iter().skip(position).step_by(a.positions).copied().collect::<Vec<f64>>();
    let (a, b): (Vec<_>, Vec<_>) = (a.values.iter().map(column).collect(), b.values.iter().map(column).collect());
    Ok(a.iter().flat_map(|a| b.iter().map(|b| measure.of(a, b))).collect())
}

impl Measure {
    /// The measure of two vectors; the cosine with a zero vector is 0.
    pub fn of(self, a: &[f64], b: &[f64]) -> f64 {
        match self {
            Measure::Cosine => {
                let norms = (dot(a, a) * dot(b, b)).sqrt();
                if norms > 0.0 { dot(a, b) / norms } else { 0.0 }
            }
            Measure::RelativeDistance => {
                let square: f64 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
                (square / dot(b, b)).sqrt()
            }
        }
    }
}
