//! BFGS and L-BFGS: [`minimise`] for smooth functions of a few parameters, [`Bfgs`] and [`Lbfgs`] as algorithms that a
//! model may be running.

use std::collections::VecDeque;

use super::line_search::{Wolfe, search};
use super::{Algorithm, Examples};
use crate::linalg::{Matrix, dot};
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
            update_inverse(&mut inverse, &s, &y, curvature);
        }
        (x, value, gradient) = (moved, v, g);
    }
    let gradient_norm = norm(&gradient);
    Ok(Minimum { x, value, gradient_norm, iterations: done })
}

/// The inverse Hessian after a step s that changed the gradient by y, with `curvature` = sᵀy > 0:
/// H ← (I − s yᵀ/sᵀy) H (I − y sᵀ/sᵀy) + s sᵀ/sᵀy.
fn update_inverse(inverse: &mut Matrix, s: &[f64], y: &[f64], curvature: f64) {
    let hy = inverse.mul_vec(y);
    let scale = (1.0 + dot(y, &hy) / curvature) / curvature;
    for i in 0..s.len() {
        let (si, hyi) = (s[i], hy[i]);
        for (entry, (sj, hyj)) in inverse.row_mut(i).iter_mut().zip(s.iter().zip(&hy)) {
            *entry = *entry + scale * si * sj - (hyi * sj + si * hyj) / curvature;
        }
    }
}

/// BFGS on the sum of squared residuals ½‖Xw − y‖² from w_0 = 0, with the line search of Moré and Thuente as SciPy's
/// `minimize(method='BFGS')` calls it: first trial step of length 1, later ones from the last decrease, Wolfe constants
/// 10⁻⁴ and 0.9.
///
/// The update is that of Broyden, Fletcher, Goldfarb and Shanno; `newton` eq. 13, with B an inverse Hessian, prints that
/// of Davidon, Fletcher and Powell. With exact line searches both, L-BFGS and CG have the same iterates on a quadratic.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bfgs;

/// L-BFGS on ½‖Xw − y‖² from w_0 = 0: the last m pairs (s, y) in place of a matrix, scaled by sᵀy/yᵀy, with the line search of
/// SciPy's L-BFGS-B (Wolfe constants 10⁻³ and 0.9, first trial 1).
#[derive(Clone, Copy, Debug)]
pub struct Lbfgs {
    memory: usize,
}

impl Lbfgs {
    /// With `memory` = m pairs; SciPy keeps 10.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no memory.
    pub fn new(memory: usize) -> Result<Self> {
        if memory == 0 { Err(Error::invalid("memory of L-BFGS", 0, "at least 1 pair")) } else { Ok(Lbfgs { memory }) }
    }
}

impl Algorithm for Bfgs {
    fn name(&self) -> String {
        "BFGS".to_owned()
    }

    fn iterates(&self, examples: &Examples<'_>, steps: usize) -> Result<Vec<Vec<f64>>> {
        let wolfe = Wolfe { decrease: 1e-4, curvature: 0.9, width: 1e-14 };
        let mut inverse = Matrix::identity(examples.dim());
        let mut before = None;
        let first = |value: f64, gradient: &[f64], slope: f64| {
            // The step that would repeat the last decrease on a quadratic; at first a decrease of half the gradient.
            let last = before.replace(value).unwrap_or(value + 0.5 * dot(gradient, gradient).sqrt());
            let trial = 2.02 * (value - last) / slope;
            if trial > 0.0 { trial.min(1.0) } else { 1.0 }
        };
        descend(examples, steps, wolfe, first, |gradient, pair| {
            if let Some((s, y)) = pair {
                update_inverse(&mut inverse, s, y, dot(s, y));
            }
            inverse.mul_vec(gradient)
        })
    }
}

impl Algorithm for Lbfgs {
    fn name(&self) -> String {
        "L-BFGS".to_owned()
    }

    fn iterates(&self, examples: &Examples<'_>, steps: usize) -> Result<Vec<Vec<f64>>> {
        let wolfe = Wolfe { decrease: 1e-3, curvature: 0.9, width: 0.1 };
        let mut pairs: VecDeque<(Vec<f64>, Vec<f64>)> = VecDeque::new();
        let mut started = false;
        let first = |_: f64, gradient: &[f64], _: f64| {
            if std::mem::replace(&mut started, true) { 1.0 } else { dot(gradient, gradient).sqrt().recip().min(1e10) }
        };
        descend(examples, steps, wolfe, first, |gradient, pair| {
            if let Some((s, y)) = pair {
                pairs.push_back((s.to_vec(), y.to_vec()));
                if pairs.len() > self.memory {
                    pairs.pop_front();
                }
            }
            two_loops(&pairs, gradient)
        })
    }
}

/// H g by the two-loop recursion (Nocedal and Wright, algorithm 7.4).
fn two_loops(pairs: &VecDeque<(Vec<f64>, Vec<f64>)>, gradient: &[f64]) -> Vec<f64> {
    let mut q = gradient.to_vec();
    let mut along = Vec::with_capacity(pairs.len());
    for (s, y) in pairs.iter().rev() {
        let a = dot(s, &q) / dot(s, y);
        q.iter_mut().zip(y).for_each(|(q, y)| *q -= a * y);
        along.push(a);
    }
    if let Some((s, y)) = pairs.back() {
        let scale = dot(s, y) / dot(y, y);
        q.iter_mut().for_each(|q| *q *= scale);
    }
    for ((s, y), a) in pairs.iter().zip(along.iter().rev()) {
        let b = dot(y, &q) / dot(s, y);
        q.iter_mut().zip(s).for_each(|(q, s)| *q += (a - b) * s);
    }
    q
}

/// The iterates of a quasi-Newton method: `apply` takes the gradient and the last pair (s, y) of positive curvature and
/// gives H g; `first` takes the value, the gradient and the slope and gives the first trial step. Once the gradient is
/// below SciPy's tolerance, or no step descends, the iterate stays.
fn descend(
    examples: &Examples<'_>,
    steps: usize,
    wolfe: Wolfe,
    mut first: impl FnMut(f64, &[f64], f64) -> f64,
    mut apply: impl FnMut(&[f64], Option<(&[f64], &[f64])>) -> Vec<f64>,
) -> Result<Vec<Vec<f64>>> {
    const TOLERANCE: f64 = 1e-5;
    let loss = |w: &[f64]| {
        let residuals: Vec<f64> = examples.x.chunks(w.len()).zip(examples.y).map(|(x, y)| dot(x, w) - y).collect();
        let mut gradient = vec![0.0; w.len()];
        for (x, r) in examples.x.chunks(w.len()).zip(&residuals) {
            gradient.iter_mut().zip(x).for_each(|(g, x)| *g += r * x);
        }
        (0.5 * dot(&residuals, &residuals), gradient)
    };
    let mut w = vec![0.0; examples.dim()];
    let (mut value, mut gradient) = loss(&w);
    let mut pair: Option<(Vec<f64>, Vec<f64>)> = None;
    let mut iterates = vec![w.clone()];
    while iterates.len() <= steps && gradient.iter().any(|g| g.abs() > TOLERANCE) {
        let hg = apply(&gradient, pair.as_ref().map(|(s, y)| (s.as_slice(), y.as_slice())));
        let slope = -dot(&hg, &gradient);
        if slope >= 0.0 {
            break;
        }
        let trial = first(value, &gradient, slope);
        let at = |a: f64| w.iter().zip(&hg).map(|(w, h)| w - a * h).collect::<Vec<f64>>();
        // The last evaluation is the accepted one's, except where the search falls back to an earlier step.
        let mut seen: Option<(f64, f64, Vec<f64>)> = None;
        let step = search(wolfe, value, slope, trial, |a| {
            let (v, g) = loss(&at(a));
            let slope = -dot(&g, &hg);
            seen = Some((a, v, g));
            (v, slope)
        });
        let Some(step) = step else { break };
        let moved = at(step);
        let (v, g) = match seen {
            Some((a, v, g)) if a == step => (v, g),
            _ => loss(&moved),
        };
        let s: Vec<f64> = moved.iter().zip(&w).map(|(a, b)| a - b).collect();
        let y: Vec<f64> = g.iter().zip(&gradient).map(|(a, b)| a - b).collect();
        pair = (dot(&s, &y) > f64::EPSILON * dot(&y, &y)).then_some((s, y));
        (w, value, gradient) = (moved, v, g);
        iterates.push(w.clone());
    }
    iterates.resize(steps + 1, w);
    Ok(iterates)
}
