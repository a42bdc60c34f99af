//! Kernel regression in context: covariates on a sphere, labels from a Gaussian process (`fgd` section 4).

use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;

use super::kernel::{Kernel, Profile};
use super::linear_regression::check_batch;
use super::{Covariance, Prompts};
use crate::error::array_len;
use crate::linalg::Matrix;
use crate::ops::kernel_prompts::{KernelPrompts, Labels, check_sizes, law_len, stride};
use crate::ops::lanes::{LANES, Lanes, Real};
use crate::ops::symmetric::{absolute, cholesky, exponentials, packed};
use crate::rng::{ChaCha8Rng, stream};
use crate::{Error, Result};

/// The task: n examples of a function drawn from a Gaussian process, and a query.
///
/// ξ_1 … ξ_{n+1} are uniform on the unit sphere of R^d and x_i = Σ^{1/2} ξ_i; the labels are jointly normal given them,
/// with mean 0 and covariance K₊, the matrix K(ξ_i, ξ_j) with its eigenvalues replaced by their absolute values, as in
/// the authors' code. For a positive semi-definite kernel K₊ = K; the ReLU kernel is none.
///
/// ```
/// use incontext::tasks::{Covariance, Kernel, KernelRegression};
/// let task = KernelRegression::new(Kernel::exp(0.5)?, Covariance::identity(5)?, 14)?;
/// let prompts = task.sample(3, 0)?;
/// let norm: f64 = prompts.x(0)[..5].iter().map(|v| v * v).sum();
/// assert!((norm - 1.0).abs() < 1e-12);
/// # Ok::<(), incontext::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct KernelRegression {
    kernel: Kernel,
    covariance: Covariance,
    context: usize,
    strict: bool,
    noise: f64,
}

/// Added to the diagonal of K₊ relative to it where labels are drawn, as a bound below which a pivot counts as 0: what
/// is drawn then differs from the Gaussian process by a relative variance of this size.
const JITTER: f64 = 1e-12;
/// An eigenvalue this far below 0, relative to the largest entry, is no rounding.
const INDEFINITE: f64 = 1e-9;
/// Tiles in a piece of sampling, one stream each: results do not depend on the number of threads.
const TILES: usize = 4;

impl KernelRegression {
    /// The noiseless task with `context` = n examples; the kernel may be indefinite.
    ///
    /// # Errors
    /// [`Error::Invalid`] for n = 0.
    pub fn new(kernel: Kernel, covariance: Covariance, context: usize) -> Result<Self> {
        if context == 0 {
            return Err(Error::invalid("context length n", 0, "at least 1 example"));
        }
        Ok(KernelRegression { kernel, covariance, context, strict: false, noise: 0.0 })
    }

    /// The same, for which a kernel matrix with a negative eigenvalue is an error instead of being replaced by K₊.
    #[must_use]
    pub fn strict(self) -> Self {
        KernelRegression { strict: true, ..self }
    }

    /// The same with noise of standard deviation `noise` on every label, the query's included.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a negative or non-finite standard deviation.
    pub fn with_noise(self, noise: f64) -> Result<Self> {
        if !(noise.is_finite() && noise >= 0.0) {
            return Err(Error::invalid("noise", noise, "a standard deviation of at least 0"));
        }
        Ok(KernelRegression { noise, ..self })
    }

    /// The kernel.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// The covariates' Σ (their covariance is Σ/d).
    pub fn covariance(&self) -> &Covariance {
        &self.covariance
    }

    /// Context length n.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Dimension d.
    pub fn dim(&self) -> usize {
        self.covariance.dim()
    }

    /// The covariance of the labels at ξ_1 … ξ_m, `[m, d]` row-major: K₊, plus the noise's variance on the diagonal.
    ///
    /// # Errors
    /// As [`Kernel::gram`]; [`Error::Numerical`] for an indefinite matrix if the task is strict.
    pub fn label_covariance(&self, xi: &[f64]) -> Result<Matrix> {
        let gram = self.kernel.gram(xi, self.dim())?;
        let positive = if self.kernel.is_positive() {
            gram
        } else {
            let least = gram.eigen_symmetric()?.0[0];
            let largest = gram.diag().iter().fold(0.0_f64, |m, v| m.max(v.abs()));
            self.check_definite(least, largest)?;
            gram.map_symmetric(f64::abs)?
        };
        Ok(positive.plus(self.noise * self.noise, &Matrix::identity(xi.len() / self.dim())))
    }

    fn check_definite(&self, least: f64, largest: f64) -> Result<()> {
        if self.strict && least < -INDEFINITE * largest {
            return Err(Error::numerical(
                format!("kernel '{}'", self.kernel.name()),
                format!(
                    "its matrix has the eigenvalue {least:.3e}: it is no covariance; take another kernel, or a task that \
                     is not strict, which uses |eigenvalues|"
                ),
            ));
        }
        Ok(())
    }

    /// `batch` prompts with labels, a function of `seed` alone.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty batch or one that does not fit in memory; as [`KernelRegression::label_covariance`].
    pub fn sample(&self, batch: usize, seed: u64) -> Result<Prompts> {
        let prompts = self.prompts::<f64>(batch, Labels::Sampled, seed)?;
        let (tokens, d) = (self.context + 1, self.dim());
        let (mut x, mut y) = (Vec::with_capacity(batch * tokens * d), Vec::with_capacity(batch * tokens));
        let stride = stride(tokens, d, Labels::Sampled);
        for k in 0..batch {
            let tile = prompts.tiles()[k / LANES * stride..][..stride].iter().map(|v| v.0[k % LANES]);
            x.extend(tile.clone().take(tokens * d));
            y.extend(tile.skip(tokens * d));
        }
        Prompts::from_data(batch, self.context, d, x, y)
    }

    /// `batch` prompts in tiles, as the kernel transformer takes them: with the covariance of their labels, or with
    /// sampled labels. The covariates are the same for both, and those of [`KernelRegression::sample`].
    ///
    /// # Errors
    /// As [`KernelRegression::sample`].
    pub fn prompts<T: Real>(&self, batch: usize, labels: Labels, seed: u64) -> Result<KernelPrompts<T>> {
        check_batch(batch)?;
        let (tokens, d) = (self.context.saturating_add(1), self.dim());
        // Sampled labels come from their covariance too.
        check_sizes(tokens, d, Labels::Covariance)?;
        array_len::<Lanes<f64>>("prompts", &[batch.div_ceil(LANES), stride(tokens, d, labels)])?;
        let mut prompts = KernelPrompts::<T>::zeros(batch, tokens, d, labels)?;
        let stride = stride(tokens, d, labels);
        prompts.tiles_mut().par_chunks_mut(TILES * stride).enumerate().try_for_each(|(piece, tiles)| {
            let mut rng = stream(seed, "covariates", piece as u64);
            let mut noise = stream(seed, "labels", piece as u64);
            for (i, tile) in tiles.chunks_mut(stride).enumerate() {
                let filled = (batch - (piece * TILES + i) * LANES).min(LANES);
                let (x, law) = tile.split_at_mut(tokens * d);
                let mut xi = vec![0.0; tokens * d];
                let mut lower = vec![Lanes::<f64>::zero(); law_len(tokens, Labels::Covariance)];
                for lane in 0..filled {
                    sphere(&mut rng, d, &mut xi);
                    self.write_inner(&xi, lane, &mut lower)?;
                    self.colour(&xi, lane, x);
                }
                self.finish(&mut lower, filled)?;
                match labels {
                    Labels::Covariance => {
                        // Not of the empty lanes: the kernel of points that are 0 need not be 0.
                        for (to, from) in law.iter_mut().zip(&lower) {
                            for lane in 0..filled {
                                to.0[lane] = T::of(from.0[lane]);
                                if !to.0[lane].f64().is_finite() {
                                    return Err(self.too_large(std::any::type_name::<T>()));
                                }
                            }
                        }
                    }
                    Labels::Sampled => {
                        cholesky(tokens, &mut lower, JITTER);
                        for lane in 0..filled {
                            let z: Vec<f64> = (0..tokens).map(|_| StandardNormal.sample(&mut noise)).collect();
                            for (i, y) in law.iter_mut().enumerate() {
                                y.0[lane] = T::of((0..=i).map(|j| lower[packed(i, j)].0[lane] * z[j]).sum());
                            }
                        }
                    }
                }
            }
            Ok::<(), Error>(())
        })?;
        prompts.pad();
        Ok(prompts)
    }

    /// Of a kernel that is one exponential its argument (sixteen exponentials follow at once), else the kernel itself.
    fn write_inner(&self, xi: &[f64], lane: usize, lower: &mut [Lanes<f64>]) -> Result<()> {
        let (d, tokens) = (self.dim(), self.context + 1);
        if self.kernel.terms().is_none() {
            // A kernel of the user's own may be asymmetric or undefined: that is found here, for this prompt.
            self.kernel.gram(xi, d)?;
        }
        let scale = self.single_exponential();
        for i in 0..tokens {
            for j in 0..=i {
                let (u, v) = (&xi[i * d..][..d], &xi[j * d..][..d]);
                lower[packed(i, j)].0[lane] = match scale {
                    Some(scale) => {
                        let mut sum = 0.0;
                        for k in 0..d {
                            sum += u[k] * v[k];
                        }
                        scale * sum
                    }
                    None => self.kernel.at(u, v),
                };
            }
        }
        Ok(())
    }

    /// The scale of a kernel that is one exponential of all coordinates: the quick case, sixteen exponentials at once.
    fn single_exponential(&self) -> Option<f64> {
        match self.kernel.terms()? {
            [t] if t.profile == Profile::Exp && t.coordinates.is_none() && t.weight == 1.0 => Some(t.scale),
            _ => None,
        }
    }

    /// From what [`KernelRegression::write_inner`] left to the labels' covariance.
    fn finish(&self, lower: &mut [Lanes<f64>], filled: usize) -> Result<()> {
        let tokens = self.context + 1;
        if self.single_exponential().is_some() {
            // The fast exponential is clamped. No inner product is greater than the greatest on the diagonal.
            let most = (0..tokens).flat_map(|i| &lower[packed(i, i)].0[..filled]).copied().fold(0.0, f64::max);
            if !most.exp().is_finite() {
                return Err(Error::numerical(
                    "kernel",
                    format!("exp({most:.0}) is no finite number: choose a smaller scale"),
                ));
            }
            exponentials(lower);
        }
        if !self.kernel.is_positive() {
            let largest: Vec<f64> = (0..filled)
                .map(|lane| (0..tokens).fold(0.0_f64, |m, i| m.max(lower[packed(i, i)].0[lane].abs())))
                .collect();
            let least = absolute(tokens, lower);
            for (lane, largest) in largest.iter().enumerate() {
                self.check_definite(least.0[lane], *largest)?;
            }
        }
        for i in 0..tokens {
            lower[packed(i, i)].0.iter_mut().for_each(|v| *v += self.noise * self.noise);
        }
        let infinite = lower.iter().flat_map(|v| &v.0[..filled]).any(|v| !v.is_finite());
        if infinite { Err(self.too_large("f64")) } else { Ok(()) }
    }

    fn too_large(&self, what: &str) -> Error {
        let why = format!("a covariance is beyond the range of {what}: choose smaller scales");
        Error::numerical(format!("kernel '{}'", self.kernel.name()), why)
    }

    /// Writes x = Σ^{1/2} ξ of every point to its lane.
    fn colour<T: Real>(&self, xi: &[f64], lane: usize, x: &mut [Lanes<T>]) {
        let (d, sqrt) = (self.dim(), self.covariance.sqrt().as_slice());
        for at in (0..xi.len()).step_by(d) {
            for i in 0..d {
                let mut sum = 0.0;
                for k in 0..d {
                    sum += sqrt[i * d + k] * xi[at + k];
                }
                x[at + i].0[lane] = T::of(sum);
            }
        }
    }
}

/// Points uniform on the unit sphere of R^d, one after the other.
fn sphere(rng: &mut ChaCha8Rng, d: usize, xi: &mut [f64]) {
    for point in xi.chunks_mut(d) {
        loop {
            let mut square: f64 = 0.0;
            for v in point.iter_mut() {
                *v = StandardNormal.sample(rng);
                square += *v * *v;
            }
            // Nearer to the centre a direction loses digits; it never happens in practice.
            if square > 1e-200 {
                let scale = 1.0 / square.sqrt();
                for v in point.iter_mut() {
                    *v *= scale;
                }
                break;
            }
        }
    }
}
