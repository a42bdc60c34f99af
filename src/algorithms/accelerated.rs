//! First-order methods that use the ends of the spectrum: heavy ball and the Chebyshev semi-iteration.

use super::{Algorithm, Examples, Prefix};
use crate::{Error, Result};

/// Which end values of the spectrum [μ, L] a method is told.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ends {
    /// The same numbers for every prompt and prefix, as weights of a network would have them.
    Fixed(f64, f64),
    /// The least and greatest eigenvalue of each prefix's S that is not zero: the best that the method can do.
    Exact,
}

impl Ends {
    fn check(self) -> Result<Self> {
        match self {
            Ends::Fixed(low, high) if !(low.is_finite() && high.is_finite() && 0.0 < low && low <= high) => {
                Err(Error::invalid("ends of the spectrum", format!("{low} and {high}"), "0 < low <= high, both finite"))
            }
            _ => Ok(self),
        }
    }

    /// μ and L for this prefix; 1 and 1 for one whose S is zero.
    fn of(self, prefix: &Prefix<'_>) -> Result<(f64, f64)> {
        match self {
            Ends::Fixed(low, high) => Ok((low, high)),
            Ends::Exact => Ok(prefix.spectrum()?.ends().unwrap_or((1.0, 1.0))),
        }
    }
}

/// Polyak's heavy ball, w_{k+1} = w_k − η (S w_k − b) + β (w_k − w_{k−1}), w_0 = w_{−1} = 0, with the constants that are
/// best for a spectrum in [μ, L]: η = 4 / (√L + √μ)², β = ((√L − √μ) / (√L + √μ))².
#[derive(Clone, Copy, Debug)]
pub struct HeavyBall {
    ends: Ends,
}

impl HeavyBall {
    /// With the constants for this spectrum.
    ///
    /// # Errors
    /// [`Error::Invalid`] unless 0 < low <= high.
    pub fn new(ends: Ends) -> Result<Self> {
        Ok(HeavyBall { ends: ends.check()? })
    }
}

impl Algorithm for HeavyBall {
    fn name(&self) -> String {
        "heavy ball".to_owned()
    }

    fn iterates(&self, examples: &Examples<'_>, steps: usize) -> Result<Vec<Vec<f64>>> {
        super::all_steps(self, examples, steps)
    }

    fn at_prefix(&self, prefix: &Prefix<'_>, at: &[usize]) -> Result<Vec<f64>> {
        let (low, high) = self.ends.of(prefix)?;
        let sum = high.sqrt() + low.sqrt();
        let (rate, momentum) = (4.0 / (sum * sum), ((high.sqrt() - low.sqrt()) / sum).powi(2));
        three_term(prefix, at, |_, l, now, before| now - rate * l * now + momentum * (now - before))
    }
}

/// The Chebyshev semi-iteration: the polynomial of degree k whose residual is least in the worst case over [μ, L].
///
/// With c = (L + μ)/2, h = (L − μ)/2: ρ_0 = 1/c, ρ_1 = 1 / (c − h² ρ_0 / 2), ρ_k = 1 / (c − h² ρ_{k−1} / 4), and
/// w_{k+1} = w_k − ρ_k (S w_k − b) + (ρ_k c − 1)(w_k − w_{k−1}) (Golub and Varga, 1961).
#[derive(Clone, Copy, Debug)]
pub struct Chebyshev {
    ends: Ends,
}

impl Chebyshev {
    /// For this spectrum.
    ///
    /// # Errors
    /// [`Error::Invalid`] unless 0 < low <= high.
    pub fn new(ends: Ends) -> Result<Self> {
        Ok(Chebyshev { ends: ends.check()? })
    }
}

impl Algorithm for Chebyshev {
    fn name(&self) -> String {
        "Chebyshev".to_owned()
    }

    fn iterates(&self, examples: &Examples<'_>, steps: usize) -> Result<Vec<Vec<f64>>> {
        super::all_steps(self, examples, steps)
    }

    fn at_prefix(&self, prefix: &Prefix<'_>, at: &[usize]) -> Result<Vec<f64>> {
        let (low, high) = self.ends.of(prefix)?;
        let (centre, half) = (0.5 * (high + low), 0.5 * (high - low));
        let mut rates = vec![1.0 / centre];
        for k in 1..at.iter().copied().max().unwrap_or(0) {
            let factor = if k == 1 { 0.5 } else { 0.25 };
            rates.push(1.0 / (centre - factor * half * half * rates[k - 1]));
        }
        three_term(prefix, at, |k, l, now, before| {
            now - rates[k] * l * now + (rates[k] * centre - 1.0) * (now - before)
        })
    }
}

/// The iterates of a method whose residual factors obey `next(k, l, r_k, r_{k−1})` at every eigenvalue l, from r_0 = 1 and
/// r_{−1} = 1.
fn three_term(prefix: &Prefix<'_>, at: &[usize], next: impl Fn(usize, f64, f64, f64) -> f64) -> Result<Vec<f64>> {
    let spectrum = prefix.spectrum()?;
    let step = |steps: &usize| {
        spectrum.sum(|l, cross| {
            let (mut before, mut now) = (1.0, 1.0);
            for k in 0..*steps {
                (before, now) = (now, next(k, l, now, before));
            }
            (1.0 - now) / l * cross
        })
    };
    Ok(at.iter().flat_map(step).collect())
}
