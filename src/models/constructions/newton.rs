//! Theorem 5.1 of `newton` as running weights: a transformer whose output is x_testᵀ M_k Xᵀ y, k steps of Iterative Newton.

use super::relu_transformer::{Averaging, Head, Layer, ReluTransformer, Route};
use crate::linalg::Matrix;
use crate::{Error, Result};

/// Whether the second head of a pair has the value matrix that makes ReLU(a) V + ReLU(−a) V' equal a V.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signs {
    /// V' = −V: ReLU(a) − ReLU(−a) = a.
    Corrected,
    /// V' = V, as eq. 21 and 28 print it: ReLU(a) + ReLU(−a) = |a|, and the theorem's output is wrong.
    Printed,
}

/// The weights of Theorem 5.1 for dimension d, n examples, k Newton steps and a constant α.
///
/// Two layouts. [`NewtonConstruction::compact`] is exact with k + 2 layers of attention with two heads and MLPs, which
/// double T, and nothing else: a token
/// (u, x, x_q, y, out) of 3d + 2 coordinates for each example and one for the query. [`NewtonConstruction::layered`] has the
/// paper's tokens x_1, y_1, …, x_n, y_n, x_test and its budget of k + 8 layers.
///
/// α is a constant of the weights: the iteration converges where α λ_max(S)² < 2, for these data and not for all.
///
/// ```
/// use incontext::linalg::Matrix;
/// use incontext::models::constructions::{Averaging, NewtonConstruction, Signs};
/// // d = 1: S = 5, b = 8; M_0 = 5/40, M_1 = 2 M_0 - M_0 S M_0.
/// let weights = NewtonConstruction { dim: 1, examples: 2, steps: 1, alpha: 1.0 / 40.0, signs: Signs::Corrected };
/// let (m0, s, b) = (0.125, 5.0, 8.0);
/// let output = weights.compact(Averaging::Full)?.predict(&[1.0, 2.0], &[2.0, 3.0], &[3.0])?;
/// assert!((output - 3.0 * (2.0 * m0 - m0 * s * m0) * b).abs() < 1e-12);
/// # Ok::<(), incontext::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NewtonConstruction {
    /// Dimension d.
    pub dim: usize,
    /// Examples n.
    pub examples: usize,
    /// Newton steps k.
    pub steps: usize,
    /// α.
    pub alpha: f64,
    /// Signs of the second heads.
    pub signs: Signs,
}

/// A construction's weights, with the way its tokens are laid out.
#[derive(Clone, Debug, PartialEq)]
pub struct NewtonTransformer {
    /// The weights.
    pub transformer: ReluTransformer,
    dim: usize,
    examples: usize,
    interleaved: bool,
}

/// `scale` times the identity from the slot that starts at coordinate `from` to the one at `to`.
fn block(rows: usize, width: usize, to: usize, from: usize, len: usize, scale: f64) -> Matrix {
    Matrix::from_fn(rows, width, |i, j| if i >= to && i < to + len && j == from + i - to { scale } else { 0.0 })
}

impl NewtonConstruction {
    fn check(&self) -> Result<()> {
        if self.dim == 0 || self.examples == 0 {
            let given = format!("{} and {}", self.dim, self.examples);
            return Err(Error::invalid("dimension and examples", given, "at least 1 each"));
        }
        if self.alpha.is_finite() && self.alpha > 0.0 {
            Ok(())
        } else {
            Err(Error::invalid("alpha", self.alpha, "a positive finite number"))
        }
    }

    /// Two heads that together add (1/N) Σ_j ⟨q_t, k_j⟩ v_j: q, k and v are `(slot, scale)` of `len` coordinates, v goes to
    /// `to`.
    fn pair(&self, width: usize, q: (usize, f64), k: usize, len: usize, value: Matrix) -> Vec<Head> {
        let key = block(len, width, 0, k, len, 1.0);
        let second = if self.signs == Signs::Corrected { value.scaled(-1.0) } else { value.clone() };
        vec![
            Head { query: block(len, width, 0, q.0, len, q.1), key: key.clone(), value },
            Head { query: block(len, width, 0, q.0, len, -q.1), key, value: second },
        ]
    }

    /// One Newton step on tokens with T x in slot `u` and x in slot `x`: attention gives u ← (T − ½ T S T) x, the MLP
    /// doubles what was there before by adding u: (2T − T S T) x.
    fn newton_layer(&self, width: usize, u: usize, x: usize, normaliser: f64) -> Layer {
        let d = self.dim;
        let value = block(width, width, u, u, d, 1.0);
        // ReLU(v) − ReLU(−v) = v: an exact linear map of width 2d.
        let w1 = Matrix::from_fn(2 * d, width, |i, j| match (i < d, j) {
            (true, j) if j == u + i => 1.0,
            (false, j) if j == u + i - d => -1.0,
            _ => 0.0,
        });
        let w2 = w1.transpose();
        Layer::Attention { heads: self.pair(width, (x, -0.5 * normaliser), u, d, value), mlp: Some((w1, w2)) }
    }

    /// The compact construction: k + 2 layers, tokens (u, x, x_q, y, out), width 3d + 2.
    ///
    /// With [`Averaging::Causal`] it is the variant of Remark B.6, whose weights are in units of Σ̂ = S/t: it follows the
    /// method for a few steps and then leaves it, since token t's step uses the T of the tokens before it.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no dimension, no examples or an α that is not positive.
    pub fn compact(&self, averaging: Averaging) -> Result<NewtonTransformer> {
        self.check()?;
        let d = self.dim;
        let (u, x, query, y, out, width) = (0, d, 2 * d, 3 * d, 3 * d + 1, 3 * d + 2);
        let tokens = (self.examples + 1) as f64;
        // The full sums are divided by the number of tokens, the causal ones by a token's own position.
        let (sum, read) = match averaging {
            Averaging::Full => (tokens, tokens),
            Averaging::Causal => (1.0, tokens / self.examples as f64),
        };
        let mut layers = vec![Layer::Attention {
            heads: self.pair(width, (x, 1.0), x, d, block(width, width, u, x, d, sum * self.alpha)),
            mlp: None,
        }];
        layers.extend((0..self.steps).map(|_| self.newton_layer(width, u, x, sum)));
        layers.push(Layer::Attention {
            heads: self.pair(width, (query, 1.0), u, d, block(width, width, out, y, 1, read)),
            mlp: None,
        });
        let transformer = ReluTransformer { width, averaging, layers };
        Ok(NewtonTransformer { transformer, dim: d, examples: self.examples, interleaved: false })
    }

    /// The paper's construction: tokens x_1, y_1, …, x_n, y_n, x_test; mov, attention, aff; k Newton layers; mov, mul, sum
    /// (Lemma B.3), mov, mul: k + 8 layers.
    ///
    /// # Errors
    /// As [`NewtonConstruction::compact`].
    pub fn layered(&self) -> Result<NewtonTransformer> {
        self.check()?;
        let d = self.dim;
        // T x, x, y, y T x, their sum, that sum beside x_test, the input x, a constant 1, the output.
        let [u, x, y, scaled, sum, weights, input, one, out] =
            [0, d, 2 * d, 2 * d + 1, 3 * d + 1, 4 * d + 1, 5 * d + 1, 6 * d + 1, 6 * d + 2];
        let width = 6 * d + 3;
        let tokens = (2 * self.examples + 1) as f64;
        let scale_u = |i: usize, j: usize| match i == j {
            true if i < d => self.alpha,
            true => 1.0,
            false => 0.0,
        };
        let mut layers = vec![
            // mov: x_j, of the examples alone, where the keys read it; attention: u = S x; aff: u = α S x.
            Layer::Move { from: (input, d), to: x, route: Route::Covariates },
            Layer::Attention {
                heads: self.pair(width, (x, 1.0), x, d, block(width, width, u, x, d, tokens)),
                mlp: None,
            },
            Layer::Affine(Matrix::from_fn(width, width, scale_u)),
        ];
        layers.extend((0..self.steps).map(|_| self.newton_layer(width, u, x, tokens)));
        let constant = block(1, width, 0, one, 1, 1.0);
        let total = Head { query: constant.clone(), key: constant, value: block(width, width, sum, scaled, d, tokens) };
        layers.extend([
            // mov: T x_j beside y_j; mul: y_j T x_j; Lemma B.3: their sum; mov: beside x_test; mul: the inner product.
            Layer::Move { from: (u, d), to: u, route: Route::ToLabels },
            Layer::Scale { scalar: y, vector: (u, d), to: scaled },
            Layer::Attention { heads: vec![total], mlp: None },
            Layer::Move { from: (sum, d), to: weights, route: Route::ToLast },
            Layer::Inner { slots: (weights, input, d), to: out },
        ]);
        let transformer = ReluTransformer { width, averaging: Averaging::Full, layers };
        Ok(NewtonTransformer { transformer, dim: d, examples: self.examples, interleaved: true })
    }
}

impl NewtonTransformer {
    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.transformer.layers.len()
    }

    /// The output at the query for covariates `x` (`[n, d]`), labels `y` (`[n]`) and `query` (`[d]`).
    ///
    /// # Errors
    /// [`Error::Shape`] unless there are as many examples, of the dimension, that the weights are for.
    pub fn predict(&self, x: &[f64], y: &[f64], query: &[f64]) -> Result<f64> {
        let (d, n) = (self.dim, self.examples);
        if x.len() != n * d || y.len() != n || query.len() != d {
            let given = [x.len(), y.len(), query.len()];
            return Err(Error::shape("examples and query", &given, format!("[{}], [{n}], [{d}]", n * d)));
        }
        let width = self.transformer.width;
        let tokens = if self.interleaved {
            let (label, input, one) = (2 * d, 5 * d + 1, 6 * d + 1);
            let mut tokens = Matrix::zeros(2 * n + 1, width);
            for (i, covariate) in x.chunks(d).chain([query]).enumerate() {
                tokens.row_mut(2 * i)[input..][..d].copy_from_slice(covariate);
            }
            (0..n).for_each(|i| tokens[(2 * i + 1, label)] = y[i]);
            (0..=2 * n).for_each(|t| tokens[(t, one)] = 1.0);
            tokens
        } else {
            let mut tokens = Matrix::zeros(n + 1, width);
            for i in 0..n {
                tokens.row_mut(i)[d..2 * d].copy_from_slice(&x[i * d..][..d]);
                tokens[(i, 3 * d)] = y[i];
            }
            tokens.row_mut(n)[2 * d..3 * d].copy_from_slice(query);
            tokens
        };
        let last = tokens.rows() - 1;
        Ok(self.transformer.forward(&tokens)?[(last, width - 1)])
    }
}
