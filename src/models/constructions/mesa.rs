//! Explicit weights of `mesa`: one step of gradient descent by one layer of linear attention (Prop. 1), and K steps by K layers of
//! two heads, for every token of a sequence at once.

use crate::linalg::Matrix;
use crate::ops::sequence_transformer::{Architecture, LaneBatch, Layer, Mixer, predict};
use crate::{Error, Result};

/// An architecture with explicit weights, in double precision.
#[derive(Clone, Debug)]
pub struct ExplicitWeights {
    /// The architecture.
    pub architecture: Architecture,
    /// All parameters, in the order of [`Architecture::slots`].
    pub parameters: Vec<f64>,
}

impl ExplicitWeights {
    /// Predictions at every token, `[batch, T, n]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the tokens have other channels.
    pub fn predict(&self, tokens: &LaneBatch<f64>) -> Result<Vec<f64>> {
        Ok(predict(&self.architecture, &self.parameters, tokens)?.values())
    }

    fn new(architecture: Architecture) -> Self {
        let parameters = vec![0.0; architecture.parameters()];
        ExplicitWeights { architecture, parameters }
    }

    /// Writes `m` into the matrix `name` with its first entry at (row, column).
    fn set(&mut self, name: &str, row: usize, column: usize, m: &Matrix) {
        for slot in self.architecture.slots().iter().filter(|s| s.name == name) {
            for i in 0..m.rows() {
                for j in 0..m.cols() {
                    self.parameters[slot.at + (row + i) * slot.columns + column + j] = m[(i, j)];
                }
            }
        }
    }
}

/// Prop. 1: on tokens [Φ_0 s_t, s_t, s_{t−1}], one layer turns channel 1 into (Φ_0 − η ∇L_t(Φ_0)) s_t, with
/// L_t(Φ) = ½ Σ_{t'<t} ‖s_{t'+1} − Φ s_{t'}‖². W_Kᵀ W_Q has I where s_{t−1} meets s_t, and P W_V has [0, η I, −η Φ_0].
///
/// # Errors
/// [`Error::Shape`] unless Φ_0 is square, of size at least 1; [`Error::Invalid`] for a step size that is not finite.
pub fn gradient_step(rate: f64, phi: &Matrix) -> Result<ExplicitWeights> {
    let n = phi.rows();
    if n == 0 || phi.cols() != n {
        return Err(Error::shape("Φ_0", &[n, phi.cols()], "[n, n], n >= 1"));
    }
    if !rate.is_finite() {
        return Err(Error::invalid("step size", rate, "a finite number"));
    }
    let layers = vec![Layer::new(Mixer::Linear, 1, n)];
    let width = 3 * n;
    let mut model =
        ExplicitWeights::new(Architecture { input: width, width, embed: false, output: n, layers, clip: None });
    let identity = Matrix::identity(n);
    model.set("layer0.query", 0, n, &identity);
    model.set("layer0.key", 0, 2 * n, &identity);
    model.set("layer0.value", 0, n, &identity);
    model.set("layer0.value", 0, 2 * n, &phi.scaled(-1.0));
    model.set("layer0.out", 0, 0, &identity.scaled(rate));
    Ok(model)
}

/// K layers of two heads that take K steps of gradient descent on L_t from Φ = 0, for every t in parallel: on the constructed
/// tokens [y, x, s_t, s_{t−1}] with y = 0 and x = s_t, both heads of layer k ask with x and answer with s_{i−1};
///
/// ```text
/// y ← y + η_k Σ_{i≤t} s_i s_{i−1}ᵀ x          x ← x − η_k Σ_{i≤t} s_{i−1} s_{i−1}ᵀ x
/// ```
///
/// so x = Π (I − η_j A) s_t and y = Σ_k η_k C Π_{j<k} (I − η_j A) s_t = Φ_K s_t: preconditioning and gradient descent are the same
/// circuit.
///
/// # Errors
/// [`Error::Invalid`] for dimension 0, no step, or a step size that is not finite.
///
/// ```
/// use incontext::algorithms::sequences::{SequenceGradient, predictions};
/// use incontext::models::constructions::mesa::gradient_steps;
/// use incontext::tasks::{Dynamics, TokenKind};
/// let sequences = Dynamics::linear(4, 12)?.sample(3, 0)?;
/// let network = gradient_steps(4, &[0.05; 3])?.predict(&sequences.inputs(TokenKind::Constructed)?)?;
/// let descent = predictions(&SequenceGradient { rate: 0.05, steps: 3 }, &sequences, None)?;
/// assert!(network.iter().zip(&descent).all(|(a, b)| (a - b).abs() < 1e-12));
/// # Ok::<(), incontext::Error>(())
/// ```
pub fn gradient_steps(dim: usize, rates: &[f64]) -> Result<ExplicitWeights> {
    if dim == 0 || rates.is_empty() {
        return Err(Error::invalid("dimension and steps", format!("{dim}, {}", rates.len()), "at least 1 of each"));
    }
    if let Some(bad) = rates.iter().find(|r| !r.is_finite()) {
        return Err(Error::invalid("step size", bad, "a finite number"));
    }
    let layers = vec![Layer::new(Mixer::Linear, 2, dim); rates.len()];
    let mut model = ExplicitWeights::new(Architecture { clip: None, ..Architecture::constructed(dim, layers) });
    let identity = Matrix::identity(dim);
    for (l, rate) in rates.iter().enumerate() {
        // Head A writes to y what s_i says, head B to x what s_{i−1} says, with the other sign.
        for (head, (value, out, scale)) in [(2, 0, *rate), (3, 1, -rate)].into_iter().enumerate() {
            model.set(&format!("layer{l}.query"), head * dim, dim, &identity);
            model.set(&format!("layer{l}.key"), head * dim, 3 * dim, &identity);
            model.set(&format!("layer{l}.value"), head * dim, value * dim, &identity);
            model.set(&format!("layer{l}.out"), out * dim, head * dim, &identity.scaled(scale));
        }
    }
    Ok(model)
}
