//! The L-layer linear transformer of `pgd` in its sparse parametrisations (eq. 8 and 11).

use std::sync::Arc;

use dfdx::prelude::*;
use rand_distr::{Distribution, StandardNormal};

use super::{Parameter, Parameters, visit_tensor};
use crate::error::{all_finite, array_len};
use crate::linalg::Matrix;
use crate::ops::linear_transformer::{Fused, Params, gradient_mut, linear_transformer};
use crate::ops::moments::Moments;
use crate::ops::wishart::GramSamples;
use crate::rng::stream;
use crate::tasks::Covariance;
use crate::{Error, Result};

/// Which blocks of P_l and Q_l are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parametrisation {
    /// P_l = [0 0; 0 1], Q_l = [A_l 0; 0 0]: preconditioned gradient descent (`pgd` eq. 8).
    Preconditioner,
    /// P_l = [B_l 0; 0 1], Q_l = [A_l 0; 0 0]: layers may also transform the covariates (`pgd` eq. 11), as GD++ does.
    Transform,
}

/// The label slot of every prompt, `[batch]`, with its tape.
pub type LabelSlots<E> = Tensor<(usize,), E, Cpu, OwnedTape<E, Cpu>>;

/// An L-layer linear transformer, sparse.
///
/// Signs are those of the authors' code: a trained A_l is negative definite, and the prediction is minus the label
/// slot. Step sizes of gradient descent are therefore the eigenvalues of -A_l.
///
/// ```
/// use incontext::models::{LinearTransformer, Parametrisation};
/// use incontext::tasks::{Covariance, LinearRegression, WeightPrior};
/// use std::sync::Arc;
/// let task = LinearRegression::new(Covariance::identity(5)?, 20, WeightPrior::InverseCovariance)?;
/// // One layer, A = -(n / (n + d + 1)) I: the global optimum (Theorem 1).
/// let mut model = LinearTransformer::<f64>::zeros(1, 5, Parametrisation::Preconditioner)?;
/// model.set_steps(&[20.0 / 26.0], &[], task.covariance())?;
/// let loss = model.loss(&Arc::new(task.sample(20_000, 1)?.moments()))?;
/// assert!((loss - 30.0 / 26.0).abs() < 0.05);
/// # Ok::<(), incontext::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct LinearTransformer<E: Dtype = f32> {
    /// `[layers, 2, d, d]`: B_l, then A_l.
    pub params: Params<E>,
    parametrisation: Parametrisation,
}

impl Parameters for LinearTransformer<f32> {
    fn visit(&mut self, visitor: &mut dyn FnMut(Parameter<'_>) -> Result<()>) -> Result<()> {
        visit_tensor("params", &mut self.params, visitor)
    }
}

impl<E: Fused> LinearTransformer<E>
where
    Cpu: Device<E>,
{
    /// A model with all parameters zero: it predicts zero.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no layers or dimension 0.
    pub fn zeros(layers: usize, dim: usize, parametrisation: Parametrisation) -> Result<Self> {
        if layers == 0 {
            return Err(Error::invalid("layers", 0, "at least 1"));
        }
        if dim == 0 {
            return Err(Error::invalid("dimension d", 0, "at least 1"));
        }
        let len = array_len::<E>("parameters", &[layers, 2, dim, dim])?;
        LinearTransformer::from_values(vec![E::default(); len], layers, dim, parametrisation)
    }

    /// A model with free entries drawn from N(0, `std`²); the authors use 1e-4.
    ///
    /// # Errors
    /// As [`LinearTransformer::zeros`]; [`Error::Invalid`] for a standard deviation that is not positive and finite.
    pub fn init(layers: usize, dim: usize, parametrisation: Parametrisation, std: f64, seed: u64) -> Result<Self> {
        if !(std.is_finite() && std > 0.0) {
            return Err(Error::invalid("initial standard deviation", std, "a positive finite number"));
        }
        let mut rng = stream(seed, "init", 0);
        let mut model = Self::zeros(layers, dim, parametrisation)?;
        let values: Vec<E> = (0..layers * 2 * dim * dim)
            .map(|_| {
                let z: f64 = StandardNormal.sample(&mut rng);
                E::of(std * z)
            })
            .collect();
        model.params.copy_from(&values);
        model.freeze();
        Ok(model)
    }

    /// A model with these parameters, `[layers, 2, d, d]` row-major, B before A.
    ///
    /// # Errors
    /// [`Error::Shape`] if their number is another, [`Error::Invalid`] if one is not finite.
    pub fn from_values(values: Vec<E>, layers: usize, dim: usize, parametrisation: Parametrisation) -> Result<Self> {
        if values.is_empty() || values.len() != array_len::<E>("parameters", &[layers, 2, dim, dim])? {
            return Err(Error::shape("parameters", &[values.len()], format!("[{layers}, 2, {dim}, {dim}]")));
        }
        all_finite("parameters", values.iter().map(|v| v.f64()))?;
        let params = Cpu::default()
            .try_tensor_from_vec(values, (layers, 2, dim, dim))
            .map_err(|e| Error::numerical("parameters", e.to_string()))?;
        let mut model = LinearTransformer { params, parametrisation };
        model.freeze();
        Ok(model)
    }

    /// Number of layers L.
    pub fn layers(&self) -> usize {
        self.params.shape().0
    }

    /// Dimension d.
    pub fn dim(&self) -> usize {
        self.params.shape().2
    }

    /// Which blocks are free.
    pub fn parametrisation(&self) -> Parametrisation {
        self.parametrisation
    }

    /// The label slot of every prompt on the tape, `[batch]`; the prediction is its negative (`pgd` eq. 5).
    ///
    /// # Errors
    /// [`Error::Shape`] if the prompts have another dimension.
    pub fn label_slots(&self, moments: &Arc<Moments<E>>) -> Result<LabelSlots<E>> {
        linear_transformer(moments, self.params.leaky_trace())
    }

    /// The predictions for the queries, `[batch]`.
    ///
    /// # Errors
    /// As [`LinearTransformer::label_slots`].
    pub fn predict(&self, moments: &Arc<Moments<E>>) -> Result<Vec<f64>> {
        Ok(linear_transformer(moments, self.params.clone())?.as_vec().iter().map(|v| -v.f64()).collect())
    }

    /// The in-context loss: the mean of (\[Z_L\]_{d+1,n+1} + y)² (`pgd` eq. 5).
    ///
    /// # Errors
    /// As [`LinearTransformer::label_slots`].
    pub fn loss(&self, moments: &Arc<Moments<E>>) -> Result<f64> {
        let predictions = self.predict(moments)?;
        let squares = predictions.iter().zip(moments.targets()).map(|(p, y)| (y.f64() - p).powi(2));
        Ok(squares.sum::<f64>() / moments.len() as f64)
    }

    /// The loss and its gradient in the parameters; entries that the parametrisation fixes have gradient zero.
    ///
    /// # Errors
    /// As [`LinearTransformer::label_slots`].
    pub fn loss_and_gradient(&self, moments: &Arc<Moments<E>>) -> Result<(f64, Gradients<E, Cpu>)> {
        let failed = |e: CpuError| Error::numerical("in-context loss", e.to_string());
        let slots = self.label_slots(moments)?;
        let targets = slots.device().try_tensor_from_vec(moments.targets(), (moments.len(),)).map_err(failed)?;
        let loss = slots.try_add(targets).and_then(|r| r.try_square()).and_then(|r| r.try_mean()).map_err(failed)?;
        let value = loss.array().f64();
        let mut gradients = loss.try_backward().map_err(failed)?;
        if self.parametrisation == Parametrisation::Preconditioner {
            let size = self.dim() * self.dim();
            let gradient = gradient_mut(&mut gradients, &self.params)?;
            gradient.chunks_mut(size).step_by(2).for_each(|b| b.fill(E::default()));
        }
        Ok((value, gradients))
    }

    /// B_l (`which` = 0) or A_l (`which` = 1) of layer l, d x d.
    fn block(&self, layer: usize, which: usize) -> Result<Matrix> {
        if layer >= self.layers() {
            return Err(Error::invalid("layer", layer, format!("below {}", self.layers())));
        }
        let d = self.dim();
        let values = self.params.as_vec();
        let block = &values[(2 * layer + which) * d * d..][..d * d];
        Matrix::from_vec(d, d, block.iter().map(|v| v.f64()).collect())
    }

    /// A_l, d x d.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a layer that the model does not have.
    pub fn a(&self, layer: usize) -> Result<Matrix> {
        self.block(layer, 1)
    }

    /// B_l, d x d.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a layer that the model does not have.
    pub fn b(&self, layer: usize) -> Result<Matrix> {
        self.block(layer, 0)
    }

    /// Σ^{1/2} A_l Σ^{1/2}, the preconditioner in whitened coordinates (`pgd` Fig. 2).
    ///
    /// # Errors
    /// As [`LinearTransformer::a`]; [`Error::Shape`] if the covariance has another dimension.
    pub fn whitened_a(&self, layer: usize, covariance: &Covariance) -> Result<Matrix> {
        self.same_dim(covariance)?;
        Ok(covariance.sqrt().mul(&self.a(layer)?).mul(covariance.sqrt()))
    }

    /// The parameters in the coordinates where Σ = I, `[layers, 2, d, d]`: what the exact engine takes.
    ///
    /// # Errors
    /// [`Error::Shape`] if the covariance has another dimension.
    pub fn whitened(&self, covariance: &Covariance) -> Result<Vec<f64>> {
        self.same_dim(covariance)?;
        let mut values = Vec::with_capacity(self.params.shape().num_elements());
        for l in 0..self.layers() {
            let b = covariance.inv_sqrt().mul(&self.b(l)?).mul(covariance.sqrt());
            values.extend_from_slice(b.as_slice());
            values.extend_from_slice(self.whitened_a(l, covariance)?.as_slice());
        }
        Ok(values)
    }

    /// Sets A_l = -a_l Σ⁻¹ and B_l = b_l I: the family S of Theorems 3 and 4. Missing b are zero.
    ///
    /// # Errors
    /// [`Error::Shape`] unless there is one step size a layer and at most one b a layer; [`Error::Invalid`] if an entry
    /// that they give is not finite. The model is then unchanged.
    pub fn set_steps(&mut self, a: &[f64], b: &[f64], covariance: &Covariance) -> Result<()> {
        let (layers, d) = (self.layers(), self.dim());
        if a.len() != layers || b.len() > layers || covariance.dim() != d {
            let given = [a.len(), b.len(), covariance.dim()];
            return Err(Error::shape("step sizes", &given, format!("[{layers}], [at most {layers}], dimension {d}")));
        }
        let inverse = covariance.inverse();
        let values: Vec<E> = (0..layers)
            .flat_map(|l| {
                let b = Matrix::identity(d).scaled(b.get(l).copied().unwrap_or(0.0));
                let a = inverse.scaled(-a[l]);
                [b, a].into_iter().flat_map(|m| m.as_slice().iter().map(|&v| E::of(v)).collect::<Vec<_>>())
            })
            .collect();
        all_finite("parameters", values.iter().map(|v| v.f64()))?;
        self.params.copy_from(&values);
        self.freeze();
        Ok(())
    }

    fn same_dim(&self, covariance: &Covariance) -> Result<()> {
        if covariance.dim() == self.dim() {
            Ok(())
        } else {
            Err(Error::shape("covariance", &[covariance.dim()], format!("dimension {}", self.dim())))
        }
    }

    fn freeze(&mut self) {
        if self.parametrisation == Parametrisation::Preconditioner {
            let size = self.dim() * self.dim();
            let mut values = self.params.as_vec();
            values.chunks_mut(size).step_by(2).for_each(|b| b.fill(E::default()));
            self.params.copy_from(&values);
        }
    }
}

impl LinearTransformer<f32> {
    /// The loss averaged exactly over w⋆ ~ N(0, Σ⁻¹) and the query, over samples of the whitened context, with its
    /// gradient in the parameters; entries that the parametrisation fixes have gradient zero.
    ///
    /// In whitened coordinates A becomes Σ^{1/2} A Σ^{1/2} and B becomes Σ^{-1/2} B Σ^{1/2}; the gradient is mapped back.
    ///
    /// # Errors
    /// [`Error::Shape`] if the covariance or the samples have another dimension.
    pub fn exact_loss_and_gradient(
        &self,
        covariance: &Covariance,
        grams: &GramSamples,
    ) -> Result<(f64, Gradients<f32, Cpu>)> {
        let d = self.dim();
        if grams.dim() != d {
            return Err(Error::shape("Gram samples", &[grams.len(), grams.dim()], format!("dimension {d}")));
        }
        let (loss, white) = grams.loss_and_gradient(&self.whitened(covariance)?)?;
        let mut gradients = Gradients::leaky();
        let into = gradient_mut(&mut gradients, &self.params)?;
        for (k, (into, white)) in into.chunks_mut(d * d).zip(white.chunks(d * d)).enumerate() {
            let left = if k % 2 == 0 { covariance.inv_sqrt() } else { covariance.sqrt() };
            if k % 2 == 1 || self.parametrisation == Parametrisation::Transform {
                let raw = left.mul(&Matrix::from_vec(d, d, white.to_vec())?).mul(covariance.sqrt());
                into.iter_mut().zip(raw.as_slice()).for_each(|(g, v)| *g = *v as f32);
            }
        }
        Ok((loss, gradients))
    }
}
