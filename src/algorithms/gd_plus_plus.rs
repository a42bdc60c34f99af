//! GD++ (von Oswald et al. 2023): gradient descent whose steps also transform the covariates; `pgd` Theorem 4.
//!
//! On the family A_l = -a_l Σ⁻¹, B_l = b_l I every eigenvalue λ of the whitened Gram matrix evolves alone:
//!
//! ```text
//! s ← s (1 − a_l λ_l),   λ_{l+1} = λ_l (1 − a_l b_l λ_l)²,   f = d ∫ s_L(λ)² dμ(λ)
//! ```
//!
//! with μ the mean spectral measure of Wishart_d(n, I)/n. f has several strict local minima (pgd.md section 4.6).

use rayon::prelude::*;

use super::bfgs::{Minimum, minimise};
use crate::linalg::Matrix;
use crate::rng::{Rng, stream};
use crate::tasks::{Covariance, LinearRegression, WeightPrior};
use crate::{Error, Result};

/// A measure on the positive axis by nodes and weights that sum to 1.
#[derive(Clone, Debug)]
pub struct SpectralMeasure {
    /// Dimension d: the loss is d times an integral.
    pub dim: usize,
    /// Nodes, ascending.
    pub nodes: Vec<f64>,
    /// Weights.
    pub weights: Vec<f64>,
}

impl SpectralMeasure {
    /// Gauss quadrature with `nodes` nodes of the empirical spectrum of `samples` draws of Wishart_d(n, I)/n.
    ///
    /// # Errors
    /// [`Error::Invalid`] for d, n, samples or nodes of 0.
    pub fn wishart(d: usize, n: usize, samples: usize, nodes: usize, seed: u64) -> Result<Self> {
        if nodes == 0 {
            return Err(Error::invalid("nodes", 0, "at least 1"));
        }
        let task = LinearRegression::new(Covariance::identity(d)?, n, WeightPrior::Isotropic)?;
        let grams = task.sample_gram(samples, seed)?;
        let mut points = Vec::with_capacity(samples * d);
        for gram in grams.chunks(d * d) {
            let (values, _) = Matrix::from_vec(d, d, gram.to_vec())?.eigen_symmetric()?;
            points.extend(values.into_iter().map(|v| v.max(0.0)));
        }
        let uniform = vec![1.0; points.len()];
        let (nodes, weights) = gauss(&points, &uniform, nodes)?;
        Ok(SpectralMeasure { dim: d, nodes, weights })
    }

    /// Gauss quadrature with `nodes` nodes of the mean spectral measure itself, its tail included.
    ///
    /// Drawn spectra end somewhere, and a polynomial of high degree that is small on them grows without bound beyond: the
    /// optimum of three layers at n = 4 on 20,000 draws has the loss 10⁸ on the true measure. The density has no such end.
    /// From the joint law of the eigenvalues, Π_{i<j} |λ_i − λ_j| Π_i λ_i^{(n−d−1)/2} e^{−λ_i/2}, leaving one out:
    ///
    /// ```text
    /// ρ(λ) ∝ λ^{(n−d−1)/2} e^{−λ/2} E |det(λ − W)|,   W ~ Wishart_{d−1}(n − 1, I)
    /// ```
    ///
    /// whose mean over `samples` draws of W is as accurate in the tail as anywhere. For n < d the roles of n and d change
    /// and d − n eigenvalues are 0.
    ///
    /// # Errors
    /// As [`SpectralMeasure::wishart`].
    pub fn wishart_with_tail(d: usize, n: usize, samples: usize, nodes: usize, seed: u64) -> Result<Self> {
        if nodes == 0 {
            return Err(Error::invalid("nodes", 0, "at least 1"));
        }
        // The non-zero eigenvalues are those of `few` x `few` matrices from `many` vectors.
        let (few, many) = (d.min(n), d.max(n));
        let mut others = Vec::new();
        if few > 1 {
            let task = LinearRegression::new(Covariance::identity(few - 1)?, many - 1, WeightPrior::Isotropic)?;
            for gram in task.sample_gram(samples, seed)?.chunks((few - 1) * (few - 1)) {
                let (values, _) = Matrix::from_vec(few - 1, few - 1, gram.to_vec())?.eigen_symmetric()?;
                others.push(values.into_iter().map(|v| v * (many - 1) as f64).collect());
            }
        } else {
            // Nothing is left: the determinant is 1. This also tells of d = 0 and n = 0.
            LinearRegression::new(Covariance::identity(d)?, n, WeightPrior::Isotropic)?;
            others.push(Vec::new());
        }
        let exponent = many as f64 - few as f64;
        // In u = √λ the density has no pole at 0 and the midpoint rule converges fast. The reach is that of λ to the
        // power of twice the number of nodes, to which the quadrature is exact.
        let power = exponent + 2.0 * few as f64 + 4.0 * nodes as f64;
        let reach = (power + 12.0 * power.sqrt() + 60.0).sqrt();
        let step = reach / GRID as f64;
        let (points, weights): (Vec<f64>, Vec<f64>) = (0..GRID)
            .into_par_iter()
            .map(|i| {
                let u = (i as f64 + 0.5) * step;
                let lambda = u * u;
                let determinant = |w: &Vec<f64>| w.iter().map(|v| (lambda - v).abs()).product::<f64>();
                let mean = others.iter().map(determinant).sum::<f64>() / others.len() as f64;
                (lambda / n as f64, mean * (exponent * u.ln() - 0.5 * lambda).exp())
            })
            .unzip();
        let (mut nodes, mut weights) = gauss(&points, &weights, nodes)?;
        if n < d {
            weights.iter_mut().for_each(|w| *w *= n as f64 / d as f64);
            nodes.insert(0, 0.0);
            weights.insert(0, 1.0 - n as f64 / d as f64);
        }
        Ok(SpectralMeasure { dim: d, nodes, weights })
    }
}

/// Points of the midpoint rule for a density.
const GRID: usize = 4096;

/// Gauss quadrature of the measure on `points` with these weights: Lanczos for multiplication by λ, then the eigenvalues
/// of the tridiagonal matrix (Golub and Welsch).
fn gauss(points: &[f64], weights: &[f64], nodes: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let n = weights.iter().sum::<f64>();
    let (mut diagonal, mut off) = (Vec::new(), Vec::new());
    let mut previous = vec![0.0; points.len()];
    let mut current = vec![1.0; points.len()];
    for k in 0..nodes {
        let alpha = points.iter().zip(&current).zip(weights).map(|((x, p), w)| w * x * p * p).sum::<f64>() / n;
        diagonal.push(alpha);
        let beta = off.last().copied().unwrap_or(0.0);
        let mut next: Vec<f64> =
            points.iter().zip(&current).zip(&previous).map(|((x, p), q)| (x - alpha) * p - beta * q).collect();
        let norm = (next.iter().zip(weights).map(|(p, w)| w * p * p).sum::<f64>() / n).sqrt();
        if norm < 1e-12 || k + 1 == nodes {
            break;
        }
        next.iter_mut().for_each(|p| *p /= norm);
        off.push(norm);
        previous = std::mem::replace(&mut current, next);
    }
    let size = diagonal.len();
    let jacobi = Matrix::from_fn(size, size, |i, j| match i.abs_diff(j) {
        0 => diagonal[i],
        1 => off[i.min(j)],
        _ => 0.0,
    });
    let (values, vectors) = jacobi.eigen_symmetric()?;
    Ok((values, (0..size).map(|j| vectors[(0, j)].powi(2)).collect()))
}

/// L steps of GD++: a_0 … a_{L-1} and b_0 … b_{L-2} (the last b has no effect).
#[derive(Clone, Debug, PartialEq)]
pub struct GdPlusPlus {
    /// Step sizes.
    pub a: Vec<f64>,
    /// Strengths of the transformation of the covariates.
    pub b: Vec<f64>,
}

impl GdPlusPlus {
    /// The in-context loss on `measure`; the initial loss is d. Missing b are zero.
    pub fn loss(&self, measure: &SpectralMeasure) -> f64 {
        let b = (1..self.a.len()).map(|l| self.b.get(l - 1).copied().unwrap_or(0.0));
        let parameters: Vec<f64> = self.a.iter().copied().chain(b).collect();
        value_and_gradient(&parameters, self.a.len(), measure).0
    }

    /// The distinct local minima with all a and b positive that BFGS finds from `starts` random starts, best first.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no layers.
    pub fn minima(layers: usize, measure: &SpectralMeasure, starts: u64, seed: u64) -> Result<Vec<(Self, f64)>> {
        if layers == 0 {
            return Err(Error::invalid("layers", 0, "at least 1"));
        }
        let descend = |start: u64| {
            let mut rng = stream(seed, "gd++ starts", start);
            // Steps grow with the layer, since the covariates shrink: start within a factor of what the last layer needs.
            let mut x: Vec<f64> = (0..layers).map(|l| rng.gen_range(0.2..1.5) * 2.5_f64.powi(l as i32)).collect();
            x.extend((1..layers).map(|_| rng.gen_range(0.02..1.0)));
            // Over the logarithm of the loss: its minima are the same, its scale does not change by five digits.
            let f = |x: &[f64]| {
                let (value, gradient) = value_and_gradient(x, layers, measure);
                (value.ln(), gradient.iter().map(|g| g / value).collect())
            };
            minimise(f, &x, 600, 1e-9)
        };
        // In parallel, gathered in the order of the starts.
        let ends: Vec<Minimum> = (0..starts).into_par_iter().map(descend).collect::<Result<_>>()?;
        let mut found: Vec<(Self, f64)> = Vec::new();
        for Minimum { x, value, gradient_norm, .. } in ends {
            let (a, b) = x.split_at(layers);
            let plausible = gradient_norm < 1e-5 && a.iter().all(|a| *a > 0.0) && b.iter().all(|b| *b > 0.0);
            let same = |other: &(Self, f64)| {
                let theirs = other.0.a.iter().chain(&other.0.b);
                x.iter().zip(theirs).all(|(u, v)| (u - v).abs() < 1e-3 * (1.0 + v.abs()))
            };
            if plausible && !found.iter().any(same) {
                found.push((GdPlusPlus { a: a.to_vec(), b: b.to_vec() }, value.exp()));
            }
        }
        found.sort_by(|u, v| u.1.total_cmp(&v.1));
        Ok(found)
    }
}

/// The loss and its gradient in (a_0 …, b_0 …), forward mode.
fn value_and_gradient(x: &[f64], layers: usize, measure: &SpectralMeasure) -> (f64, Vec<f64>) {
    let size = x.len();
    let (mut value, mut gradient) = (0.0, vec![0.0; size]);
    let (mut ds, mut dl) = (vec![0.0; size], vec![0.0; size]);
    for (node, weight) in measure.nodes.iter().zip(&measure.weights) {
        let (mut s, mut lambda) = (1.0, *node);
        ds.fill(0.0);
        dl.fill(0.0);
        for l in 0..layers {
            let a = x[l];
            let factor = 1.0 - a * lambda;
            for k in 0..size {
                let da = if k == l { 1.0 } else { 0.0 };
                ds[k] = ds[k] * factor - s * (da * lambda + a * dl[k]);
            }
            s *= factor;
            if l + 1 < layers {
                let b = x[layers + l];
                let r = 1.0 - a * b * lambda;
                for (k, dl) in dl.iter_mut().enumerate() {
                    let da = if k == l { 1.0 } else { 0.0 };
                    let db = if k == layers + l { 1.0 } else { 0.0 };
                    let dr = -(da * b * lambda + a * db * lambda + a * b * *dl);
                    *dl = *dl * r * r + 2.0 * lambda * r * dr;
                }
                lambda *= r * r;
            }
        }
        let scale = measure.dim as f64 * weight;
        value += scale * s * s;
        for k in 0..size {
            gradient[k] += 2.0 * scale * s * ds[k];
        }
    }
    (value, gradient)
}
