//! What Figures 3 to 5 share: which of the local minima of GD++ a trained network sits in.

use super::distances::mean_diagonal;
use super::recipes::Trained;
use crate::Result;
use crate::algorithms::{GdPlusPlus, SpectralMeasure};
use crate::figure::Extremes;

/// A trained network's coefficients: minus the mean diagonals of the whitened A_l, and those of B_l but the last.
///
/// # Errors
/// If the run has no record.
pub fn coefficients(run: &Trained) -> Result<GdPlusPlus> {
    let (model, covariance) = (run.last()?, run.task.covariance());
    let a =
        (0..model.layers()).map(|l| Ok(-mean_diagonal(&model.whitened_a(l, covariance)?))).collect::<Result<_>>()?;
    let b = (0..model.layers() - 1).map(|l| Ok(mean_diagonal(&model.b(l)?))).collect::<Result<_>>()?;
    Ok(GdPlusPlus { a, b })
}

/// The local minima of L layers at d = 5 and context `n`, best first, and the measure they were found on.
///
/// # Errors
/// As [`SpectralMeasure::wishart`] and [`GdPlusPlus::minima`].
pub fn minima(layers: usize, n: usize, quick: bool, seed: u64) -> Result<(Vec<(GdPlusPlus, f64)>, SpectralMeasure)> {
    let measure = SpectralMeasure::wishart(5, n, if quick { 20_000 } else { 100_000 }, 32, seed)?;
    let minima = GdPlusPlus::minima(layers, &measure, if quick { 40 } else { 150 }, seed)?;
    Ok((minima, measure))
}

/// The least loss of L layers of GD++ at d = 5 and context `n` on the spectral measure with its tail.
///
/// # Errors
/// As [`SpectralMeasure::wishart_with_tail`] and [`GdPlusPlus::minima`].
pub fn optimum(layers: usize, n: usize, seed: u64) -> Result<f64> {
    let measure = SpectralMeasure::wishart_with_tail(5, n, 20_000, 48, seed)?;
    Ok(GdPlusPlus::minima(layers, &measure, 40, seed)?.first().map_or(f64::NAN, |m| m.1))
}

/// The minimum whose coefficients are nearest to `found`, its place in the list, and the largest relative difference.
pub fn nearest<'a>(found: &GdPlusPlus, minima: &'a [(GdPlusPlus, f64)]) -> Option<(usize, &'a GdPlusPlus, f64)> {
    let distance = |m: &GdPlusPlus| {
        let theirs = m.a.iter().chain(&m.b);
        found.a.iter().chain(&found.b).zip(theirs).map(|(u, v)| (u / v - 1.0).abs()).greatest()
    };
    let candidates = minima.iter().enumerate().map(|(i, (m, _))| (i, m, distance(m)));
    candidates.min_by(|u, v| u.2.total_cmp(&v.2))
}
