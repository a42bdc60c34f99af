//! Iterative Newton, or Newton-Schulz: the method that `newton` finds in transformers.

use super::{Algorithm, Examples, Prefix};
use crate::linalg::Matrix;
use crate::{Error, Result};

/// M_0 = α S, M_{k+1} = 2 M_k − M_k S M_k, w_k = M_k b with S = XᵀX, b = Xᵀy (`newton` eq. 5).
///
/// α = c / ‖S²‖_F. It converges to S⁺ for α < 2 / λ_max², so for every S if c < 2. The paper's text has
/// α = 2 / λ_max², on the boundary; its isotropic and ill-conditioned figures were made with c = 2, its noisy ones and
/// the authors' latest code with c = 1. One number moves between the two: w_{k+1} at c = 1 is nearly w_k at c = 2.
///
/// The iterates are computed in the eigenbasis of S by M_k S = I − (I − α S²)^{2^k}, exactly; with
/// [`IterativeNewton::recursion`] by the recursion as printed, whose round-off in the null space of S doubles with every
/// step. With a ridge, S + ridge I takes the place of S.
///
/// ```
/// use incontext::algorithms::{Algorithm, Examples, IterativeNewton};
/// let newton = IterativeNewton::new(1.0)?;
/// // S = 4, b = 8, α = 1/16: w_0 = α S b = 2, and the residual 1 - w/2 = 0 is reached at once in one dimension.
/// assert_eq!(newton.iterates(&Examples::new(&[2.0], &[4.0])?, 1)?, [[2.0], [2.0]]);
/// # Ok::<(), incontext::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct IterativeNewton {
    c: f64,
    ridge: f64,
    recursion: Option<Precision>,
}

/// The arithmetic of a recursion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// f32, as the authors' code: for t < d its iterates are worst from step 24 on (c = 2).
    Single,
    /// f64.
    Double,
}

impl IterativeNewton {
    /// With α = `c` / ‖S²‖_F.
    ///
    /// # Errors
    /// [`Error::Invalid`] for c outside (0, 2], where some S make the iteration diverge.
    pub fn new(c: f64) -> Result<Self> {
        if c > 0.0 && c <= 2.0 {
            Ok(IterativeNewton { c, ridge: 0.0, recursion: None })
        } else {
            Err(Error::invalid("c of Iterative Newton", c, "a number in (0, 2]"))
        }
    }

    /// On S + `ridge` I: the noisy tasks of `newton` (A.3.2).
    ///
    /// # Errors
    /// [`Error::Invalid`] for a ridge that is negative or not finite.
    pub fn with_ridge(self, ridge: f64) -> Result<Self> {
        if ridge.is_finite() && ridge >= 0.0 {
            Ok(IterativeNewton { ridge, ..self })
        } else {
            Err(Error::invalid("ridge", ridge, "a finite number of at least 0"))
        }
    }

    /// By the recursion as printed, in this precision.
    pub fn recursion(self, precision: Precision) -> Self {
        IterativeNewton { recursion: Some(precision), ..self }
    }
}

impl Algorithm for IterativeNewton {
    fn name(&self) -> String {
        match self.recursion {
            Some(Precision::Single) => "Newton, f32".to_owned(),
            Some(Precision::Double) => "Newton, f64 recursion".to_owned(),
            None => "Newton".to_owned(),
        }
    }

    fn iterates(&self, examples: &Examples<'_>, steps: usize) -> Result<Vec<Vec<f64>>> {
        super::all_steps(self, examples, steps)
    }

    fn at_prefix(&self, prefix: &Prefix<'_>, at: &[usize]) -> Result<Vec<f64>> {
        match self.recursion {
            None => self.by_spectrum(prefix, at),
            Some(Precision::Single) => Ok(self.by_recursion::<f32>(prefix, at)),
            Some(Precision::Double) => Ok(self.by_recursion::<f64>(prefix, at)),
        }
    }
}

impl IterativeNewton {
    fn by_spectrum(&self, prefix: &Prefix<'_>, at: &[usize]) -> Result<Vec<f64>> {
        let spectrum = prefix.spectrum()?;
        // ‖(S + ridge I)²‖_F² is a sum over all d eigenvalues; those of the null space of S are the ridge.
        let null = (prefix.dim() - spectrum.values.len()) as f64 * self.ridge.powi(4);
        let square: f64 = spectrum.values.iter().map(|l| (l + self.ridge).powi(4)).sum();
        let alpha = self.c / (square + null).sqrt().max(f64::MIN_POSITIVE);
        let step = |k: &usize| {
            spectrum.sum(|l, cross| {
                let l = l + self.ridge;
                let small = alpha * l * l;
                if small < 1e-4 {
                    // 1 − (1 − αλ²)^{2^k} where the residual would round to 1.
                    return -(2.0_f64.powi(*k as i32) * (-small).ln_1p()).exp_m1() / l * cross;
                }
                let mut residual = 1.0 - small;
                for _ in 0..*k {
                    residual *= residual;
                }
                (1.0 - residual) / l * cross
            })
        };
        Ok(at.iter().flat_map(step).collect())
    }

    fn by_recursion<T: Float>(&self, prefix: &Prefix<'_>, at: &[usize]) -> Vec<f64> {
        let d = prefix.dim();
        let gram = prefix.gram().plus(self.ridge, &Matrix::identity(d));
        let s: Vec<T> = gram.as_slice().iter().map(|v| T::of(*v)).collect();
        let b: Vec<T> = prefix.cross().iter().map(|v| T::of(*v)).collect();
        let square = product(&s, &s, d);
        let norm = square.iter().fold(T::of(0.0), |sum, v| sum + *v * *v).root();
        let mut m: Vec<T> = s.iter().map(|v| T::of(self.c) / norm * *v).collect();
        let mut iterates = vec![0.0; at.len() * d];
        for k in 0..=at.iter().copied().max().unwrap_or(0) {
            if k > 0 {
                let msm = product(&product(&m, &s, d), &m, d);
                m.iter_mut().zip(msm).for_each(|(m, c)| *m = T::of(2.0) * *m - c);
            }
            for (into, _) in iterates.chunks_mut(d).zip(at).filter(|(_, at)| **at == k) {
                for (w, row) in into.iter_mut().zip(m.chunks(d)) {
                    *w = row.iter().zip(&b).fold(T::of(0.0), |sum, (m, b)| sum + *m * *b).f64();
                }
            }
        }
        iterates
    }
}

/// The two precisions of the recursion.
trait Float:
    Copy
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
{
    fn of(v: f64) -> Self;
    fn f64(self) -> f64;
    fn root(self) -> Self;
}

impl Float for f32 {
    fn of(v: f64) -> Self {
        v as f32
    }
    fn f64(self) -> f64 {
        f64::from(self)
    }
    fn root(self) -> Self {
        self.sqrt()
    }
}

impl Float for f64 {
    fn of(v: f64) -> Self {
        v
    }
    fn f64(self) -> f64 {
        self
    }
    fn root(self) -> Self {
        self.sqrt()
    }
}

/// The product of two d x d matrices.
fn product<T: Float>(a: &[T], b: &[T], d: usize) -> Vec<T> {
    let mut out = vec![T::of(0.0); d * d];
    for (out, a) in out.chunks_mut(d).zip(a.chunks(d)) {
        for (a, b) in a.iter().zip(b.chunks(d)) {
            out.iter_mut().zip(b).for_each(|(o, b)| *o = *o + *a * *b);
        }
    }
    out
}
