//! BFGS with a backtracking line search, for smooth functions of a few parameters.

use crate::linalg::Matrix;
use crate::{Error, Result};

/// Where a minimisation ended.
#[derive(Clone, Debug)]
pub struct Minimum {
    /// The point.
    pub x: Vec<f64>,
    /// The function there.
    pub value: f64,
    /// The Euclidean norm of the gradient there.
    pub gradient_norm: f64,
    /// Iterations done.
    pub iterations: usize,
}

/// Minimises `f`, which gives its value and gradient, from `start`, until the gradient's norm is at most `tolerance`, no
/// step descends any more, or `iterations` are done.
///
/// The inverse Hessian is updated by Broyden, Fletcher, Goldfarb and Shanno's formula wherever the curvature along the
/// step is positive.
///
/// ```
/// use incontext::algorithms::minimise;
/// let bowl = |x: &[f64]| ((x[0] - 1.0).powi(2) + 10.0 * x[1].powi(2), vec![2.0 * (x[0] - 1.0), 20.0 * x[1]]);
/// let found = minimise(bowl, &[5.0, 3.0], 100, 1e-10)?;
/// assert!((found.x[0] - 1.0).abs() < 1e-9 && found.x[1].abs() < 1e-9);
/// # Ok::<(), incontext::Error>(())
/// ```
///
/// # Errors
/// [`Error::Invalid`] for an empty start, [`Error::Shape`] if the gradient has another length than the point,
/// [`Error::Numerical`] if the function is not finite at the start.
pub fn minimise(
    f: impl Fn(&[f64]) -> (f64, Vec<f64>),
    start: &[f64],
    iterations: usize,
    tolerance: f64,
) -> Result<Minimum> {
    if start.is_empty() {
        return Err(Error::invalid("start", "no parameter", "at least one"));
    }
    let mut x = start.to_vec();
    let (mut value, mut gradient) = f(&x);
    if gradient.len() != x.len() {
        return Err(Error::shape("gradient", &[gradient.len()], format!("[{}]", x.len())));
    }
    if !value.is_finite() || gradient.iter().any(|g| !g.is_finite()) {
        return Err(Error::numerical("minimisation", "the function is not finite at the start"));
    }
    let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut inverse = Matrix::identity(x.len());
    let mut done = 0;
    while done < iterations && norm(&gradient) > tolerance {
        done += 1;
        let mut direction: Vec<f64> = inverse.mul_vec(&gradient).iter().map(|g| -g).collect();
        if dot(&direction, &gradient) >= 0.0 {
            inverse = Matrix::identity(x.len());
            direction = gradient.iter().map(|g| -g).collect();
        }
        let slope = dot(&direction, &gradient);
        // A first step of length one at most: before any curvature is known, the gradient's size means nothing.
        let mut length = if done == 1 { 1.0 / norm(&direction).max(1.0) } else { 1.0 };
        let next = loop {
            let moved: Vec<f64> = x.iter().zip(&direction).map(|(x, d)| x + length * d).collect();
            let (v, g) = f(&moved);
            if v.is_finite() && v <= value + 1e-4 * length * slope {
                break Some((moved, v, g));
            }
            length *= 0.5;
            if length < 1e-18 {
                break None;
            }
        };
        let Some((moved, v, g)) = next else { break };
        let s: Vec<f64> = moved.iter().zip(&x).map(|(a, b)| a - b).collect();
        let y: Vec<f64> = g.iter().zip(&gradient).map(|(a, b)| a - b).collect();
        let curvature = dot(&s, &y);
        if curvature > 1e-14 * norm(&s) * norm(&y) {
            let hy = inverse.mul_vec(&y);
            let scale = (1.0 + dot(&y, &hy) / curvature) / curvature;
            inverse = Matrix::from_fn(x.len(), x.len(), |i, j| {
                inverse[(i, j)] + scale * s[i] * s[j] - (hy[i] * s[j] + s[i] * hy[j]) / curvature
            });
        }
        (x, value, gradient) = (moved, v, g);
    }
    let gradient_norm = norm(&gradient);
    Ok(Minimum { x, value, gradient_norm, iterations: done })
}
