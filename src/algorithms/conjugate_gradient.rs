//! Conjugate gradient, exact: the first-order method that needs no more than rank(S) steps.

use super::{Algorithm, Examples, Prefix};
use crate::Result;
use crate::linalg::dot;

/// From w_0 = 0: d_k = −g_k made S-conjugate to all earlier directions, w_{k+1} = w_k + α_k d_k with the exact minimum
/// along d_k (`newton` eq. 12).
///
/// Gram-Schmidt against every earlier direction, twice, keeps the iterates those of exact arithmetic: w_k minimises the
/// loss over the Krylov space of b, Sb, …, S^{k−1}b, and is the least-squares solution of least norm from step rank(S) on.
/// Once the gradient is round-off the iterate stays.
///
/// ```
/// use incontext::algorithms::{Algorithm, ConjugateGradient, Examples};
/// let x = [2.0, 0.0, 1.0, 1.0];
/// let iterates = ConjugateGradient.iterates(&Examples::new(&x, &[2.0, 3.0])?, 2)?;
/// assert!((iterates[2][0] - 1.0).abs() < 1e-12 && (iterates[2][1] - 2.0).abs() < 1e-12);
/// # Ok::<(), incontext::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct ConjugateGradient;

impl Algorithm for ConjugateGradient {
    fn name(&self) -> String {
        "CG".to_owned()
    }

    fn iterates(&self, examples: &Examples<'_>, steps: usize) -> Result<Vec<Vec<f64>>> {
        super::all_steps(self, examples, steps)
    }

    fn at_prefix(&self, prefix: &Prefix<'_>, at: &[usize]) -> Result<Vec<f64>> {
        let (d, s) = (prefix.dim(), prefix.gram());
        let steps = at.iter().copied().max().unwrap_or(0);
        let negligible = 1e-13 * dot(prefix.cross(), prefix.cross()).sqrt();
        let mut w = vec![0.0; d];
        let mut gradient: Vec<f64> = prefix.cross().iter().map(|b| -b).collect();
        // Earlier directions, with their images under S, scaled to dᵀSd = 1.
        let mut directions: Vec<(Vec<f64>, Vec<f64>)> = Vec::new();
        let mut iterates = vec![0.0; at.len() * d];
        for k in 0..=steps {
            for (into, _) in iterates.chunks_mut(d).zip(at).filter(|(_, at)| **at == k) {
                into.copy_from_slice(&w);
            }
            if k == steps || directions.len() == d || dot(&gradient, &gradient).sqrt() <= negligible {
                // Nothing left to do: later iterates are this one.
                for (into, _) in iterates.chunks_mut(d).zip(at).filter(|(_, at)| **at > k) {
                    into.copy_from_slice(&w);
                }
                break;
            }
            let mut direction: Vec<f64> = gradient.iter().map(|g| -g).collect();
            for _ in 0..2 {
                for (earlier, image) in &directions {
                    let along = dot(&direction, image);
                    direction.iter_mut().zip(earlier).for_each(|(d, e)| *d -= along * e);
                }
            }
            let image = s.mul_vec(&direction);
            let curvature = dot(&direction, &image);
            if curvature <= 0.0 {
                // Round-off only: the direction lies in the null space.
                for (into, _) in iterates.chunks_mut(d).zip(at).filter(|(_, at)| **at > k) {
                    into.copy_from_slice(&w);
                }
                break;
            }
            let unit = curvature.sqrt().recip();
            let direction: Vec<f64> = direction.iter().map(|v| v * unit).collect();
            let image: Vec<f64> = image.iter().map(|v| v * unit).collect();
            let step = -dot(&gradient, &direction);
            w.iter_mut().zip(&direction).for_each(|(w, d)| *w += step * d);
            gradient = prefix.gradient(&w);
            directions.push((direction, image));
        }
        Ok(iterates)
    }
}
