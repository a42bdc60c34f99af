//! Gradient descent in the function space of a kernel (`fgd` eq. 3.1), every iterate of it.

use super::smoother::LinearSmoother;
use crate::error::all_finite;
use crate::linalg::Matrix;
use crate::{Error, Result};

/// f_{l+1} = f_l + η_l Σ_{i <= n} (y_i − f_l(x_i)) K(x_i, ·), f_0 = 0.
///
/// The gradient of L(f) = ½ Σ (f(x_i) − y_i)² in the RKHS of K is −Σ (y_i − f(x_i)) K(x_i, ·): a function, so each
/// iterate is one, f_l = Σ_i α_{l,i} K(x_i, ·). Step l uses step size l, and the last one from there on.
///
/// The kernel need not be positive semi-definite; without that there is no RKHS, and the iteration need not converge.
///
/// ```
/// use incontext::algorithms::FunctionalGradientDescent;
/// use incontext::linalg::Matrix;
/// // Two examples, orthonormal for the kernel: every step halves the residuals.
/// let fgd = FunctionalGradientDescent::new(vec![0.5])?;
/// let iterates = fgd.iterates(&Matrix::identity(2), &[1.0, 4.0], 2)?;
/// assert_eq!(iterates, [[0.0, 0.0], [0.5, 2.0], [0.75, 3.0]]);
/// # Ok::<(), incontext::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct FunctionalGradientDescent {
    steps: Vec<f64>,
}

impl FunctionalGradientDescent {
    /// With these step sizes η_l.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there is none or one is not finite.
    pub fn new(steps: Vec<f64>) -> Result<Self> {
        if steps.is_empty() {
            return Err(Error::invalid("step sizes", "none", "at least one"));
        }
        all_finite("step sizes", steps.iter().copied())?;
        Ok(FunctionalGradientDescent { steps })
    }

    /// The coefficients α_0, …, α_steps of the iterates, for the kernel's matrix of the examples (n x n) and their labels.
    ///
    /// # Errors
    /// [`Error::Shape`] unless the matrix is n x n for n labels.
    pub fn iterates(&self, gram: &Matrix, y: &[f64], steps: usize) -> Result<Vec<Vec<f64>>> {
        if gram.rows() != y.len() || gram.cols() != y.len() {
            return Err(Error::shape("kernel matrix", &[gram.rows(), gram.cols()], format!("[{0}, {0}]", y.len())));
        }
        let mut iterates = vec![vec![0.0; y.len()]];
        for l in 0..steps {
            let values = gram.mul_vec(&iterates[l]);
            let step = |((a, y), f): ((&f64, &f64), f64)| a + self.step(l) * (y - f);
            iterates.push(iterates[l].iter().zip(y).zip(values).map(step).collect());
        }
        Ok(iterates)
    }

    fn step(&self, l: usize) -> f64 {
        self.steps[l.min(self.steps.len() - 1)]
    }
}

impl LinearSmoother for FunctionalGradientDescent {
    fn name(&self) -> String {
        "functional GD".to_owned()
    }

    /// f_l(x_{n+1}) = kᵀ α_l with α_{l+1} = (I − η_l K̂) α_l + η_l y; as a function of y, from the last step back.
    fn weights(&self, kernel: &Matrix, steps: usize) -> Result<Vec<Vec<f64>>> {
        let n = super::smoother::examples(kernel)?;
        let gram = Matrix::from_fn(n, n, |i, j| kernel[(i, j)]);
        let query: Vec<f64> = (0..n).map(|i| kernel[(i, n)]).collect();
        // w_l = P_l(K̂) k with P_0 = 0, P_{l+1} = P_l + η_l Π_{m < l} (I − η_m K̂): polynomials in K̂ commute.
        let mut rest = query;
        let mut weights = vec![vec![0.0; n]];
        for l in 0..steps {
            let eta = self.step(l);
            weights.push(weights[l].iter().zip(&rest).map(|(w, r)| w + eta * r).collect());
            let applied = gram.mul_vec(&rest);
            rest.iter_mut().zip(applied).for_each(|(r, k)| *r -= eta * k);
        }
        Ok(weights)
    }
}
