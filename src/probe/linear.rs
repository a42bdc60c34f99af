//! An affine map from hidden states to a number, by ridge regression in closed form.

use rayon::prelude::*;

use crate::linalg::{Matrix, dot};
use crate::{Error, Result};

/// y ≈ ⟨w, h⟩ + c: what a read-out that is trained anew on frozen hidden states converges to (`newton` section 4.1: the
/// authors spend a six-hour job on each layer; the problem is convex least squares).
///
/// The ridge is relative to the mean variance of the coordinates, and only keeps degenerate layers solvable.
///
/// ```
/// use incontext::probe::LinearProbe;
/// let hidden: Vec<f32> = vec![0.0, 1.0, 2.0, 3.0];
/// let probe = LinearProbe::fit(&hidden, &[1.0, 3.0, 5.0, 7.0], 1e-9)?;
/// assert!((probe.predict(&[10.0])[0] - 21.0).abs() < 1e-6);
/// # Ok::<(), incontext::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct LinearProbe {
    /// w, `[width]`.
    pub weights: Vec<f64>,
    /// c.
    pub bias: f64,
}

/// Rows of hidden states that one task sums: fixed, so that sums do not depend on the number of threads.
const PIECE: usize = 2048;

impl LinearProbe {
    /// The probe for `hidden`, `[rows, width]` row-major, and `targets`, `[rows]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the lengths do not fit or there is nothing; [`Error::Invalid`] for a ridge that is not
    /// positive; [`Error::Numerical`] for hidden states that are not finite.
    pub fn fit(hidden: &[f32], targets: &[f64], ridge: f64) -> Result<Self> {
        Ok(LinearProbe::fit_each(hidden, &[targets], ridge)?.swap_remove(0))
    }

    /// The probe for each of several `targets`, `[rows]` each, from one factorisation.
    ///
    /// # Errors
    /// As [`LinearProbe::fit`].
    pub fn fit_each<T: AsRef<[f64]> + Sync>(hidden: &[f32], targets: &[T], ridge: f64) -> Result<Vec<Self>> {
        let rows = targets.first().map_or(0, |y| y.as_ref().len());
        if rows == 0 || hidden.is_empty() || !hidden.len().is_multiple_of(rows) {
            return Err(Error::shape("hidden states", &[hidden.len(), rows], "[rows, width] and [rows], not empty"));
        }
        if let Some(other) = targets.iter().map(|y| y.as_ref().len()).find(|len| *len != rows) {
            return Err(Error::shape("targets", &[other], format!("[{rows}] each")));
        }
        if !(ridge.is_finite() && ridge > 0.0) {
            return Err(Error::invalid("ridge of a probe", ridge, "a positive finite number"));
        }
        let width = hidden.len() / rows;
        // The sums of h hᵀ, h y, h and y with h extended by every y and 1, lower triangle.
        let one = width + targets.len();
        let size = one + 1;
        let pieces: Vec<Vec<f64>> = hidden
            .par_chunks(PIECE * width)
            .enumerate()
            .map(|(piece, hidden)| {
                let mut sums = vec![0.0; size * size];
                let mut row = vec![1.0; size];
                for (at, h) in hidden.chunks(width).enumerate() {
                    row.iter_mut().zip(h).for_each(|(r, h)| *r = f64::from(*h));
                    row[width..one].iter_mut().zip(targets).for_each(|(r, y)| *r = y.as_ref()[piece * PIECE + at]);
                    for i in 0..size {
                        let scale = row[i];
                        sums[i * size..][..=i].iter_mut().zip(&row).for_each(|(s, r)| *s += scale * r);
                    }
                }
                sums
            })
            .collect();
        let mut sums = vec![0.0; size * size];
        for piece in &pieces {
            sums.iter_mut().zip(piece).for_each(|(s, p)| *s += p);
        }
        let n = rows as f64;
        let sum = |i: usize, j: usize| sums[i.max(j) * size + i.min(j)];
        let mean: Vec<f64> = (0..one).map(|i| sum(one, i) / n).collect();
        let covariance = |i: usize, j: usize| sum(i, j) / n - mean[i] * mean[j];
        let variance = (0..width).map(|i| covariance(i, i)).sum::<f64>() / width as f64;
        let square = (0..width).map(|i| sum(i, i)).sum::<f64>() / (n * width as f64);
        // Hidden states that are all the same, to the rounding of these sums, have no direction to read from: w = 0.
        let constant = variance <= 1e-13 * square;
        let ridge = if constant { square.max(1.0) } else { ridge * variance };
        let covariance = |i: usize, j: usize| if constant { 0.0 } else { covariance(i, j) };
        let gram = Matrix::from_fn(width, width, |i, j| covariance(i, j) + if i == j { ridge } else { 0.0 });
        let cross: Vec<Vec<f64>> = (width..one).map(|y| (0..width).map(|i| covariance(i, y)).collect()).collect();
        let solved = gram.solve_spd_each(cross.iter().map(Vec::as_slice))?;
        let probe = |(weights, mean_y): (Vec<f64>, &f64)| {
            let bias = mean_y - dot(&weights, &mean[..width]);
            LinearProbe { weights, bias }
        };
        Ok(solved.into_iter().zip(&mean[width..]).map(probe).collect())
    }

    /// The probe's values for `hidden`, `[rows, width]`: `[rows]`.
    pub fn predict(&self, hidden: &[f32]) -> Vec<f64> {
        let value = |h: &[f32]| self.bias + h.iter().zip(&self.weights).map(|(h, w)| f64::from(*h) * w).sum::<f64>();
        hidden.chunks(self.weights.len()).map(value).collect()
    }
}
