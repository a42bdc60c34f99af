//! Linear regression in context: covariates x ~ N(0, Σ), labels y = ⟨w⋆, x⟩ + noise, one w⋆ a prompt.

use rand::Rng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;

use super::{Covariance, Sequences};
use crate::error::array_len;
use crate::ops::moments::{LANES, Moments, Real};
use crate::rng::{ChaCha8Rng, stream};
use crate::{Error, Result};

/// The law of the task vector w⋆.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightPrior {
    /// w⋆ ~ N(0, I): Theorems 1, 2 and 5 of `pgd`.
    Isotropic,
    /// w⋆ ~ N(0, Σ⁻¹), so that labels have variance d: Theorems 3 and 4 of `pgd` and all of its experiments.
    InverseCovariance,
}

/// The task: n examples of a linear function and a query.
///
/// Prompts follow `pgd` section 2: x_1 … x_{n+1} ~ N(0, Σ) independent, y_i = ⟨w⋆, x_i⟩ + σ ε_i; the last pair is the
/// query, whose label the model does not see.
///
/// ```
/// use incontext::tasks::{Covariance, LinearRegression, WeightPrior};
/// let task = LinearRegression::new(Covariance::identity(5)?, 20, WeightPrior::InverseCovariance)?;
/// let prompts = task.sample(3, 0)?;
/// assert_eq!((prompts.x(0).len(), prompts.y(0).len()), (21 * 5, 21));
/// # Ok::<(), incontext::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct LinearRegression {
    covariance: Covariance,
    context: usize,
    prior: WeightPrior,
    noise: f64,
}

/// Prompts are sampled in pieces of this many, one stream each: results do not depend on the number of threads.
const PIECE: usize = 512;

/// How much larger than they are contexts are drawn for [`LinearRegression::sample_gram_tails`]; a divisor of
/// `PIECE` of them, so that each is drawn equally often.
pub const TAIL_SCALES: [f64; 4] = [1.0, 1.4, 2.0, 2.8];

impl LinearRegression {
    /// The noiseless task with `context` = n examples.
    ///
    /// # Errors
    /// [`Error::Invalid`] for n = 0.
    pub fn new(covariance: Covariance, context: usize, prior: WeightPrior) -> Result<Self> {
        if context == 0 {
            return Err(Error::invalid("context length n", 0, "at least 1 example"));
        }
        Ok(LinearRegression { covariance, context, prior, noise: 0.0 })
    }

    /// The same with label noise of standard deviation `noise`, on every label, the query's included.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a negative or non-finite standard deviation.
    pub fn with_noise(self, noise: f64) -> Result<Self> {
        if !(noise.is_finite() && noise >= 0.0) {
            return Err(Error::invalid("noise", noise, "a standard deviation of at least 0"));
        }
        Ok(LinearRegression { noise, ..self })
    }

    /// Dimension d of the covariates.
    pub fn dim(&self) -> usize {
        self.covariance.dim()
    }

    /// Context length n.
    pub fn context(&self) -> usize {
        self.context
    }

    /// The covariates' covariance.
    pub fn covariance(&self) -> &Covariance {
        &self.covariance
    }

    /// The law of w⋆.
    pub fn prior(&self) -> WeightPrior {
        self.prior
    }

    /// Standard deviation of the label noise.
    pub fn noise(&self) -> f64 {
        self.noise
    }

    /// `batch` prompts, a function of `seed` alone.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty batch, or one that does not fit in memory.
    pub fn sample(&self, batch: usize, seed: u64) -> Result<Prompts> {
        self.sample_truncated(batch, self.dim(), self.context.saturating_add(1), seed)
    }

    /// `batch` prompts of `points` points, the query included, whose covariates are 0 from coordinate `dims` on: the
    /// task in a curriculum ([`crate::train::Curriculum`]). Labels are those of the covariates that are left.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty batch, one that does not fit in memory, more dimensions than the task has, none,
    /// or fewer than two points.
    pub fn sample_truncated(&self, batch: usize, dims: usize, points: usize, seed: u64) -> Result<Prompts> {
        let (d, tokens) = (self.dim(), points);
        if dims == 0 || dims > d {
            return Err(Error::invalid("active dimensions", dims, format!("1 to {d}")));
        }
        if points < 2 {
            return Err(Error::invalid("points of a prompt", points, "at least 2: an example and the query"));
        }
        check_batch(batch)?;
        let len = array_len::<f64>("prompts", &[batch, tokens, d])?;
        let (mut x, mut y) = (vec![0.0; len], vec![0.0; batch * tokens]);
        x.par_chunks_mut(PIECE * tokens * d).zip(y.par_chunks_mut(PIECE * tokens)).enumerate().for_each(
            |(piece, (x, y))| {
                let mut rng = stream(seed, "prompts", piece as u64);
                let mut white = vec![0.0; d];
                for (x, y) in x.chunks_mut(tokens * d).zip(y.chunks_mut(tokens)) {
                    let w = self.task_vector(&mut rng, &mut white);
                    for (x, y) in x.chunks_mut(d).zip(y) {
                        self.covariate(&mut rng, &mut white, x);
                        x[dims..].fill(0.0);
                        *y = x.iter().zip(&w).map(|(x, w)| x * w).sum::<f64>();
                        if self.noise > 0.0 {
                            *y += self.noise * normal(&mut rng);
                        }
                    }
                }
            },
        );
        Ok(Prompts { batch, tokens, dim: d, x, y })
    }

    /// The sufficient statistics of `batch` prompts, drawn directly: the Gram matrix of the context is Wishart, drawn
    /// by Bartlett's decomposition, d(d+1)/2 numbers instead of n·d.
    ///
    /// The law is that of [`LinearRegression::sample`] followed by [`Prompts::moments`]; the draws are others.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty batch, one that does not fit in memory, or a noisy task.
    pub fn sample_moments<T: Real>(&self, batch: usize, seed: u64) -> Result<Moments<T>> {
        check_batch(batch)?;
        if self.noise > 0.0 {
            return Err(Error::invalid("noise", self.noise, "0: Bartlett's decomposition is for noiseless labels"));
        }
        let d = self.dim();
        // One tile more than the batch fills: the last one may be filled in part.
        array_len::<T>("moments", &[batch.saturating_add(LANES), d * d + 2 * d + 1])?;
        let mut moments = Moments::zeros(batch, d);
        moments.pieces_mut(PIECE).enumerate().for_each(|(piece, mut prompts)| {
            let mut rng = stream(seed, "moments", piece as u64);
            let mut white = vec![0.0; d];
            let (mut factor, mut bartlett) = (vec![0.0; d * d], vec![0.0; d * d]);
            let (mut gram, mut query) = (vec![0.0; d * d], vec![0.0; d]);
            for k in 0..prompts.len() {
                self.wishart(&mut rng, &mut bartlett, &mut factor, &mut gram);
                let w = self.task_vector(&mut rng, &mut white);
                self.covariate(&mut rng, &mut white, &mut query);
                let cross: Vec<f64> = gram.chunks(d).map(|row| row.iter().zip(&w).map(|(g, w)| g * w).sum()).collect();
                let label = query.iter().zip(&w).map(|(x, w)| x * w).sum();
                prompts.set(k, &gram, &cross, &query, label);
            }
        });
        Ok(moments)
    }

    /// `samples` draws of the context's Gram matrix Ĝ = (1/n) Σ x_i x_iᵀ, each d x d row-major: what the exact engine
    /// averages over.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no samples, or more than fit in memory.
    pub fn sample_gram(&self, samples: usize, seed: u64) -> Result<Vec<f64>> {
        check_batch(samples)?;
        let d = self.dim();
        let mut grams = vec![0.0; array_len::<f64>("Gram samples", &[samples, d, d])?];
        grams.par_chunks_mut(PIECE * d * d).enumerate().for_each(|(piece, grams)| {
            let mut rng = stream(seed, "gram", piece as u64);
            let (mut factor, mut bartlett) = (vec![0.0; d * d], vec![0.0; d * d]);
            for gram in grams.chunks_mut(d * d) {
                self.wishart(&mut rng, &mut bartlett, &mut factor, gram);
            }
        });
        Ok(grams)
    }

    /// Draws of Ĝ with more of the rare large ones, `[samples, d, d]`, and their weights, `[samples]`: the mean of weight
    /// times f(Ĝ) estimates E f(Ĝ) without bias, for f that grow so fast that plain draws miss what decides the mean.
    ///
    /// The draws are those of contexts [`TAIL_SCALES`] times as large in turn, weighted by the balance heuristic (Veach
    /// and Guibas 1995): no weight exceeds the inverse of the first scale's share, 4 for multiples of four samples.
    ///
    /// ```
    /// use incontext::tasks::{Covariance, LinearRegression, WeightPrior};
    /// let task = LinearRegression::new(Covariance::identity(3)?, 8, WeightPrior::Isotropic)?;
    /// let (grams, weights) = task.sample_gram_tails(20_000, 1)?;
    /// // E Ĝ_11 = 1.
    /// let mean = grams.chunks(9).zip(&weights).map(|(g, w)| g[0] * w).sum::<f64>() / 20_000.0;
    /// assert!((mean - 1.0).abs() < 0.03);
    /// # Ok::<(), incontext::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`LinearRegression::sample_gram`].
    pub fn sample_gram_tails(&self, samples: usize, seed: u64) -> Result<(Vec<f64>, Vec<f64>)> {
        check_batch(samples)?;
        let (d, n) = (self.dim(), self.context);
        // The share of the draws that each scale has: a number that the scales do not divide gives the first ones more.
        let of_scale = |c: usize| samples / TAIL_SCALES.len() + usize::from(c < samples % TAIL_SCALES.len());
        let shares: [f64; TAIL_SCALES.len()] = std::array::from_fn(|c| of_scale(c) as f64 / samples as f64);
        let mut grams = vec![0.0; array_len::<f64>("Gram samples", &[samples, d, d])?];
        let mut weights = vec![0.0; samples];
        let pieces = grams.par_chunks_mut(PIECE * d * d).zip(weights.par_chunks_mut(PIECE)).enumerate();
        pieces.for_each(|(piece, (grams, weights))| {
            let mut rng = stream(seed, "gram tails", piece as u64);
            let (mut factor, mut bartlett) = (vec![0.0; d * d], vec![0.0; d * d]);
            for (k, (gram, weight)) in grams.chunks_mut(d * d).zip(weights).enumerate() {
                let scale = TAIL_SCALES[k % TAIL_SCALES.len()];
                self.wishart(&mut rng, &mut bartlett, &mut factor, gram);
                gram.iter_mut().for_each(|g| *g *= scale);
                // The sum of squares of n Gaussian vectors, which alone tells how likely each scale makes them.
                let squares = scale * bartlett.iter().map(|b| b * b).sum::<f64>();
                let likelihood = |c: f64| (-0.5 * ((n * d) as f64 * c.ln() + squares * (1.0 / c - 1.0))).exp();
                let mixture = TAIL_SCALES.into_iter().zip(shares).map(|(c, share)| share * likelihood(c));
                *weight = 1.0 / mixture.sum::<f64>();
            }
        });
        Ok((grams, weights))
    }

    /// Ĝ ~ Wishart_d(n, Σ)/n into `gram`. For n < d the Bartlett factor has n columns only.
    fn wishart(&self, rng: &mut ChaCha8Rng, bartlett: &mut [f64], factor: &mut [f64], gram: &mut [f64]) {
        let (d, n) = (self.dim(), self.context);
        bartlett.fill(0.0);
        for j in 0..d.min(n) {
            // Row j of the triangular factor of n Gaussian vectors: a chi with n - j degrees of freedom and normals
            // below it.
            bartlett[j * d + j] = chi_square(rng, n - j).sqrt();
            for i in j + 1..d {
                bartlett[i * d + j] = normal(rng);
            }
        }
        let sqrt = self.covariance.sqrt().as_slice();
        for i in 0..d {
            for j in 0..d {
                factor[i * d + j] = (j..d).map(|k| sqrt[i * d + k] * bartlett[k * d + j]).sum();
            }
        }
        for i in 0..d {
            for j in 0..=i {
                let v = (0..d).map(|k| factor[i * d + k] * factor[j * d + k]).sum::<f64>() / n as f64;
                gram[i * d + j] = v;
                gram[j * d + i] = v;
            }
        }
    }

    fn task_vector(&self, rng: &mut ChaCha8Rng, white: &mut [f64]) -> Vec<f64> {
        white.fill_with(|| normal(rng));
        match self.prior {
            WeightPrior::Isotropic => white.to_vec(),
            WeightPrior::InverseCovariance => self.covariance.inv_sqrt().mul_vec(white),
        }
    }

    fn covariate(&self, rng: &mut ChaCha8Rng, white: &mut [f64], x: &mut [f64]) {
        white.fill_with(|| normal(rng));
        self.covariance.color(white, x);
    }
}

pub(super) fn check_batch(batch: usize) -> Result<()> {
    if batch == 0 { Err(Error::invalid("batch", 0, "at least 1 prompt")) } else { Ok(()) }
}

fn normal(rng: &mut ChaCha8Rng) -> f64 {
    StandardNormal.sample(rng)
}

/// Chi-square with k degrees of freedom: a sum of squares for few, Marsaglia and Tsang's gamma otherwise.
fn chi_square(rng: &mut ChaCha8Rng, k: usize) -> f64 {
    if k <= 4 {
        return (0..k).map(|_| normal(rng).powi(2)).sum();
    }
    let shape = k as f64 / 2.0 - 1.0 / 3.0;
    let scale = 1.0 / (9.0 * shape).sqrt();
    loop {
        let z = normal(rng);
        let v = (1.0 + scale * z).powi(3);
        if v > 0.0 && rng.gen_range(f64::MIN_POSITIVE..1.0).ln() < 0.5 * z * z + shape * (1.0 - v + v.ln()) {
            return 2.0 * shape * v;
        }
    }
}

/// A batch of prompts: covariates and labels, the query last.
#[derive(Clone, Debug)]
pub struct Prompts {
    batch: usize,
    tokens: usize,
    dim: usize,
    x: Vec<f64>,
    y: Vec<f64>,
}

impl Prompts {
    /// Prompts from data: `x` is `[batch, n+1, d]`, `y` is `[batch, n+1]`, row-major, the query last.
    ///
    /// # Errors
    /// [`Error::Shape`] if the lengths do not fit, [`Error::Invalid`] for values that are not finite, and for an empty
    /// batch, context or dimension.
    pub fn from_data(batch: usize, context: usize, dim: usize, x: Vec<f64>, y: Vec<f64>) -> Result<Self> {
        check_batch(batch)?;
        let tokens = context.saturating_add(1);
        if context == 0 || dim == 0 {
            return Err(Error::shape("prompts", &[batch, context, dim], "a context and a dimension of at least 1"));
        }
        if x.len() != array_len::<f64>("prompts", &[batch, tokens, dim])? {
            return Err(Error::shape("covariates", &[x.len()], format!("[{batch}, {tokens}, {dim}]")));
        }
        if y.len() != batch * tokens {
            return Err(Error::shape("labels", &[y.len()], format!("[{batch}, {tokens}]")));
        }
        if let Some(bad) = x.iter().chain(&y).find(|v| !v.is_finite()) {
            return Err(Error::invalid("prompts", bad, "finite covariates and labels"));
        }
        Ok(Prompts { batch, tokens, dim, x, y })
    }

    /// Number of prompts.
    pub fn len(&self) -> usize {
        self.batch
    }

    /// Whether there are none (never, by construction).
    pub fn is_empty(&self) -> bool {
        self.batch == 0
    }

    /// Context length n.
    pub fn context(&self) -> usize {
        self.tokens - 1
    }

    /// Dimension d.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The covariates of prompt `i`, `[n+1, d]` row-major, the query last.
    ///
    /// # Panics
    /// If `i` is not below [`Prompts::len`], like indexing a slice.
    pub fn x(&self, i: usize) -> &[f64] {
        &self.x[i * self.tokens * self.dim..][..self.tokens * self.dim]
    }

    /// The labels of prompt `i`, `[n+1]`, the query's last.
    ///
    /// # Panics
    /// If `i` is not below [`Prompts::len`], like indexing a slice.
    pub fn y(&self, i: usize) -> &[f64] {
        &self.y[i * self.tokens..][..self.tokens]
    }

    /// The queries' labels, `[batch]`.
    pub fn targets(&self) -> Vec<f64> {
        self.y.chunks(self.tokens).map(|y| y[self.tokens - 1]).collect()
    }

    /// The prompts as tokens (x_i, y_i) with the query's label replaced by 0: Z_0 transposed, `[batch, n+1, d+1]`
    /// row-major (`pgd` eq. 1).
    pub fn tokens<T: Real>(&self) -> Vec<T> {
        let mut z = Vec::with_capacity(self.y.len() * (self.dim + 1));
        for (k, (x, y)) in self.x.chunks(self.dim).zip(&self.y).enumerate() {
            z.extend(x.iter().map(|&v| T::of(v)));
            let query = k % self.tokens == self.tokens - 1;
            z.push(T::of(if query { 0.0 } else { *y }));
        }
        z
    }

    /// The prompts as interleaved tokens x_1, (y_1, 0, …, 0), x_2, …, (y_{n+1}, 0, …), `[batch, 2 (n+1), d]`, with a
    /// prediction of y_t at the token of x_t (`newton` section 1).
    ///
    /// # Errors
    /// [`Error::Invalid`] if they do not fit in memory.
    pub fn interleaved(&self) -> Result<Sequences> {
        let d = self.dim;
        let mut tokens = vec![0.0; array_len::<f32>("tokens", &[self.batch, self.tokens, 2, d])?];
        let prompts = tokens.par_chunks_mut(self.tokens * 2 * d).zip(self.x.par_chunks(self.tokens * d));
        prompts.zip(self.y.par_chunks(self.tokens)).for_each(|((tokens, x), y)| {
            for ((pair, x), y) in tokens.chunks_mut(2 * d).zip(x.chunks(d)).zip(y) {
                pair.iter_mut().zip(x).for_each(|(t, x)| *t = *x as f32);
                pair[d] = *y as f32;
            }
        });
        let targets = self.y.iter().map(|y| *y as f32).collect();
        Sequences::new([self.batch, 2 * self.tokens, d], tokens, 1, targets, 2)
    }

    /// The sufficient statistics of every prompt for a model of linear attention over the context:
    /// Ĝ = (1/n) Σ x_i x_iᵀ, ĝ = (1/n) Σ x_i y_i, the query and its label.
    pub fn moments<T: Real>(&self) -> Moments<T> {
        let (d, n) = (self.dim, self.context());
        let mut moments = Moments::zeros(self.batch, d);
        moments.pieces_mut(PIECE).enumerate().for_each(|(piece, mut prompts)| {
            let (mut gram, mut cross) = (vec![0.0; d * d], vec![0.0; d]);
            for k in 0..prompts.len() {
                let (x, y) = (self.x(piece * PIECE + k), self.y(piece * PIECE + k));
                gram.fill(0.0);
                cross.fill(0.0);
                for (x, y) in x.chunks(d).zip(y).take(n) {
                    for i in 0..d {
                        let xi = x[i] / n as f64;
                        cross[i] += xi * y;
                        for j in 0..d {
                            gram[i * d + j] += xi * x[j];
                        }
                    }
                }
                prompts.set(k, &gram, &cross, &x[n * d..], y[n]);
            }
        });
        moments
    }
}
