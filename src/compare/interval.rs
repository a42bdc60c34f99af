//! Means with confidence intervals over a few seeds.

/// Mean, standard deviation and the 95 % Student-t interval of the mean of independent values.
///
/// ```
/// use incontext::compare::Interval;
/// let i = Interval::of(&[1.0, 2.0, 3.0]);
/// assert_eq!((i.mean, i.std), (2.0, 1.0));
/// assert!((i.high - (2.0 + 4.3027 / 3f64.sqrt())).abs() < 1e-3);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// Mean.
    pub mean: f64,
    /// Sample standard deviation (n − 1); 0 for one value.
    pub std: f64,
    /// Lower end of the interval; the mean for one value.
    pub low: f64,
    /// Upper end.
    pub high: f64,
    /// Number of values.
    pub count: usize,
}

/// 97.5 % quantiles of Student's t with 1, 2, … degrees of freedom.
const T: [f64; 10] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];

impl Interval {
    /// The interval of these values; all NaN for none.
    pub fn of(values: &[f64]) -> Self {
        let count = values.len();
        let n = count as f64;
        let mean = values.iter().sum::<f64>() / n;
        if count < 2 {
            return Interval { mean, std: 0.0, low: mean, high: mean, count };
        }
        let std = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
        let t = T.get(count - 2).copied().unwrap_or(1.96 + 2.4 / (n - 1.0));
        let half = t * std / n.sqrt();
        Interval { mean, std, low: mean - half, high: mean + half, count }
    }
}

impl std::fmt::Display for Interval {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.4} [{:.4}, {:.4}] over {} seeds", self.mean, self.low, self.high, self.count)
    }
}
