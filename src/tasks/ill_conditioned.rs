//! Linear regression whose covariance has a fixed spectrum and an eigenbasis that is drawn anew (`newton` section 4.3).

use rand::RngCore;

use super::linear_regression::check_batch;
use super::{Covariance, LinearRegression, Prompts, WeightPrior};
use crate::error::array_len;
use crate::rng::stream;
use crate::{Error, Result};

/// x ~ N(0, U diag(λ) Uᵀ) with U drawn for every block of prompts, y = ⟨w⋆, x⟩, w⋆ ~ N(0, I).
///
/// The paper draws U for every sequence; the authors' code once for every call of its sampler, that is for 64 sequences.
///
/// ```
/// use incontext::tasks::IllConditioned;
/// let task = IllConditioned::two_clusters(20, 100.0, 40)?;
/// assert!((task.eigenvalues()[0] - 1.980).abs() < 1e-3 && (task.eigenvalues()[19] - 0.0198).abs() < 1e-4);
/// assert_eq!(task.sample(128, 0)?.context(), 40);
/// # Ok::<(), incontext::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct IllConditioned {
    eigenvalues: Vec<f64>,
    context: usize,
    rotate_every: usize,
}

impl IllConditioned {
    /// With these eigenvalues of Σ and n = `context` examples, a rotation for every 64 prompts.
    ///
    /// # Errors
    /// [`Error::Invalid`] for eigenvalues or a context that no task has.
    pub fn new(eigenvalues: Vec<f64>, context: usize) -> Result<Self> {
        LinearRegression::new(Covariance::diagonal(&eigenvalues)?, context, WeightPrior::Isotropic)?;
        Ok(IllConditioned { eigenvalues, context, rotate_every: 64 })
    }

    /// The paper's spectrum: half of the eigenvalues (rounded down) `kappa` times the others, with trace d.
    ///
    /// # Errors
    /// [`Error::Invalid`] for d = 0, n = 0 or a condition number below 1.
    pub fn two_clusters(d: usize, kappa: f64, context: usize) -> Result<Self> {
        if !(kappa.is_finite() && kappa >= 1.0) {
            return Err(Error::invalid("condition number", kappa, "a finite number of at least 1"));
        }
        let large = d / 2;
        let scale = d as f64 / (large as f64 * kappa + (d - large) as f64);
        IllConditioned::new((0..d).map(|i| if i < large { kappa * scale } else { scale }).collect(), context)
    }

    /// With a rotation for every `prompts` prompts; 1 is the paper's text.
    ///
    /// # Errors
    /// [`Error::Invalid`] for 0.
    pub fn rotating_every(self, prompts: usize) -> Result<Self> {
        if prompts == 0 {
            return Err(Error::invalid("prompts that share a rotation", 0, "at least 1"));
        }
        Ok(IllConditioned { rotate_every: prompts, ..self })
    }

    /// The eigenvalues of Σ.
    pub fn eigenvalues(&self) -> &[f64] {
        &self.eigenvalues
    }

    /// `batch` prompts, a function of `seed` alone.
    ///
    /// # Errors
    /// As [`LinearRegression::sample`].
    pub fn sample(&self, batch: usize, seed: u64) -> Result<Prompts> {
        let d = self.eigenvalues.len();
        check_batch(batch)?;
        let len = array_len::<f64>("prompts", &[batch, self.context.saturating_add(1), d])?;
        let (mut x, mut y) = (Vec::with_capacity(len), Vec::new());
        let mut left = batch;
        for block in 0.. {
            let size = left.min(self.rotate_every);
            if size == 0 {
                break;
            }
            let own = stream(seed, "rotations", block).next_u64();
            let covariance = Covariance::rotated(&self.eigenvalues, own)?;
            let prompts = LinearRegression::new(covariance, self.context, WeightPrior::Isotropic)?.sample(size, own)?;
            for i in 0..size {
                x.extend_from_slice(prompts.x(i));
                y.extend_from_slice(prompts.y(i));
            }
            left -= size;
        }
        Prompts::from_data(batch, self.context, d, x, y)
    }
}
