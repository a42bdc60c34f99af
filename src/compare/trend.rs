//! Trends: straight lines by least squares, rank correlation.

/// A line y = intercept + slope x by least squares, and the share of the variance that it explains.
///
/// ```
/// use incontext::compare::LinearFit;
/// let fit = LinearFit::of(&[3.0, 4.0, 5.0], &[2.0, 5.0, 8.0]);
/// assert!((fit.slope - 3.0).abs() < 1e-12 && (fit.r_squared - 1.0).abs() < 1e-12);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinearFit {
    /// Its slope.
    pub slope: f64,
    /// Its value at 0.
    pub intercept: f64,
    /// R²; NaN for fewer than two different x or constant y.
    pub r_squared: f64,
}

impl LinearFit {
    /// The line through these points; of lists of different lengths the longer is cut.
    pub fn of(x: &[f64], y: &[f64]) -> Self {
        let n = x.len().min(y.len()) as f64;
        let pairs = || x.iter().zip(y);
        let (mx, my) = (pairs().map(|p| p.0).sum::<f64>() / n, pairs().map(|p| p.1).sum::<f64>() / n);
        let sum = |f: &dyn Fn(f64, f64) -> f64| pairs().map(|(x, y)| f(x - mx, y - my)).sum::<f64>();
        let (sxx, sxy, syy) = (sum(&|x, _| x * x), sum(&|x, y| x * y), sum(&|_, y| y * y));
        let slope = sxy / sxx;
        LinearFit { slope, intercept: my - slope * mx, r_squared: sxy * sxy / (sxx * syy) }
    }
}

/// Spearman's rank correlation; ties share their mean rank. NaN if one list is constant, or has a NaN.
///
/// ```
/// assert!((incontext::compare::spearman(&[1.0, 2.0, 3.0], &[1.0, 10.0, 11.0]) - 1.0).abs() < 1e-12);
/// assert!(incontext::compare::spearman(&[1.0, 2.0, 3.0], &[f64::NAN, 10.0, 11.0]).is_nan());
/// ```
pub fn spearman(x: &[f64], y: &[f64]) -> f64 {
    if x.iter().chain(y).any(|v| v.is_nan()) {
        return f64::NAN;
    }
    let fit = LinearFit::of(&ranks(x), &ranks(y));
    fit.r_squared.sqrt().copysign(fit.slope)
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let rank = |v: &f64| {
        let below = values.iter().filter(|u| *u < v).count() as f64;
        let equal = values.iter().filter(|u| *u == v).count() as f64;
        below + 0.5 * (equal - 1.0)
    };
    values.iter().map(rank).collect()
}
