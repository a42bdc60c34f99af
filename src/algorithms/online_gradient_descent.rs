//! Online gradient descent: one pass over the examples in their order.

use super::{Algorithm, Examples, Prefix};
use crate::linalg::dot;
use crate::{Error, Result};

/// w_{k+1} = w_k − η_k x_k (x_kᵀ w_k − y_k), w_0 = 0, one example a step (`newton` eq. 4).
///
/// With η_k = 1 / ‖x_k‖² every step satisfies its example (Kaczmarz); with a fixed η it is the LMS filter. The iterate is
/// the one after the pass: it does not depend on the number of steps asked for.
///
/// ```
/// use incontext::algorithms::{Algorithm, Examples, OnlineGradientDescent};
/// let pass = OnlineGradientDescent::adaptive().iterates(&Examples::new(&[2.0, 1.0], &[4.0, 1.0])?, 0)?;
/// assert_eq!(pass, [[1.0]]);
/// # Ok::<(), incontext::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct OnlineGradientDescent {
    rate: Option<f64>,
}

impl OnlineGradientDescent {
    /// η_k = 1 / ‖x_k‖².
    pub fn adaptive() -> Self {
        OnlineGradientDescent { rate: None }
    }

    /// η_k = `rate`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a rate that is not positive and finite.
    pub fn fixed(rate: f64) -> Result<Self> {
        if rate.is_finite() && rate > 0.0 {
            Ok(OnlineGradientDescent { rate: Some(rate) })
        } else {
            Err(Error::invalid("rate", rate, "a positive finite number"))
        }
    }
}

impl Algorithm for OnlineGradientDescent {
    fn name(&self) -> String {
        self.rate.map_or("OGD".to_owned(), |rate| format!("OGD, step {rate}"))
    }

    fn iterates(&self, examples: &Examples<'_>, steps: usize) -> Result<Vec<Vec<f64>>> {
        let mut w = vec![0.0; examples.dim()];
        for (x, y) in examples.x.chunks(w.len()).zip(examples.y) {
            let square = dot(x, x);
            let rate = self.rate.unwrap_or(if square > 0.0 { 1.0 / square } else { 0.0 });
            let residual = dot(x, &w) - y;
            w.iter_mut().zip(x).for_each(|(w, x)| *w -= rate * residual * x);
        }
        Ok(vec![w; steps + 1])
    }

    fn at_prefix(&self, prefix: &Prefix<'_>, at: &[usize]) -> Result<Vec<f64>> {
        Ok(self.iterates(&prefix.examples, 0)?.concat().repeat(at.len()))
    }
}
