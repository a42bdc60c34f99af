//! The L-layer transformer with any activation on its scores (`fgd` section 3), and its explicit weights that carry out
//! functional gradient descent (Propositions 3.1 and 3).

use dfdx::prelude::*;
use rand_distr::{Distribution, StandardNormal};

use super::{Parameter, Parameters, gradients_of, visit_tensor};
use crate::error::{all_finite, array_len};
use crate::linalg::Matrix;
use crate::ops::kernel_prompts::KernelPrompts;
use crate::ops::kernel_transformer::{
    Activation, Fused, Heads, Params, Residuals, ValueBlock, WholeGradient, kernel_transformer,
    kernel_transformer_loss, kernel_transformer_whole_gradient,
};
use crate::rng::stream;
use crate::tasks::{Covariance, Kernel, Profile, Prompts};
use crate::{Error, Result};

/// An L-layer transformer whose heads apply h̃ to their scores.
///
/// Layer l, with Z = [X; Y, 0] and keys i <= n:
///
/// ```text
/// Z_j ← Z_j + (1/n) Σ_h Σ_{i <= n} h̃_h(⟨B_h x_i, C_h x_j⟩) blockdiag(A_h, r_h) Z_i
/// ```
///
/// The prediction is minus the label slot of the last token, as in the authors' code: a trained r is negative.
///
/// ```
/// use incontext::models::KernelTransformer;
/// use incontext::ops::kernel_prompts::Labels;
/// use incontext::tasks::{Covariance, Kernel, KernelRegression};
/// let task = KernelRegression::new(Kernel::exp(0.5)?, Covariance::identity(5)?, 14)?;
/// // Three steps of functional gradient descent, as a transformer (Proposition 3.1).
/// let model = KernelTransformer::<f64>::functional_gradient_descent(task.kernel(), &[0.1; 3], 14, task.covariance())?;
/// let loss = model.loss(&task.prompts(4000, Labels::Covariance, 0)?)?;
/// assert!(loss.ln() < -0.8);
/// # Ok::<(), incontext::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct KernelTransformer<E: Dtype = f32> {
    /// `[layers, heads, 3d² + 1]`: A, B, C (row-major) and r.
    pub params: Params<E>,
    heads: Heads,
    dim: usize,
}

impl Parameters for KernelTransformer<f32> {
    fn visit(&mut self, visitor: &mut dyn FnMut(Parameter<'_>) -> Result<()>) -> Result<()> {
        visit_tensor("params", &mut self.params, visitor)
    }
}

impl<E: Fused> KernelTransformer<E>
where
    Cpu: Device<E>,
{
    /// A model with free entries drawn from N(0, `std`²); the authors use 0.1.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no layers, no heads, dimension 0 or a standard deviation that is not positive and finite.
    pub fn init(
        layers: usize,
        dim: usize,
        activations: &[Activation],
        values: ValueBlock,
        std: f64,
        seed: u64,
    ) -> Result<Self> {
        if !(std.is_finite() && std > 0.0) {
            return Err(Error::invalid("initial standard deviation", std, "a positive finite number"));
        }
        let len = array_len::<E>("parameters", &[layers, activations.len(), width(dim)])?;
        let mut rng = stream(seed, "init", 0);
        let drawn = (0..len).map(|_| {
            let z: f64 = StandardNormal.sample(&mut rng);
            E::of(std * z)
        });
        Self::from_values(drawn.collect(), layers, dim, activations, values)
    }

    /// A model with these parameters, `[layers, heads, 3d² + 1]` row-major; A is set to 0 for [`ValueBlock::Zero`].
    ///
    /// # Errors
    /// [`Error::Invalid`] for no layers, no heads, dimension 0 or values that are not finite, [`Error::Shape`] if their
    /// number is another.
    pub fn from_values(
        mut parameters: Vec<E>,
        layers: usize,
        dim: usize,
        activations: &[Activation],
        values: ValueBlock,
    ) -> Result<Self> {
        for (what, size) in [("layers", layers), ("heads", activations.len()), ("dimension d", dim)] {
            if size == 0 {
                return Err(Error::invalid(what, 0, "at least 1"));
            }
        }
        let shape = (layers, activations.len(), width(dim));
        if parameters.len() != array_len::<E>("parameters", &[shape.0, shape.1, shape.2])? {
            return Err(Error::shape("parameters", &[parameters.len()], format!("{shape:?}")));
        }
        all_finite("parameters", parameters.iter().map(|v| v.f64()))?;
        if values == ValueBlock::Zero {
            parameters.chunks_mut(shape.2).for_each(|head| head[..dim * dim].fill(E::default()));
        }
        let params = Cpu::default()
            .try_tensor_from_vec(parameters, shape)
            .map_err(|e| Error::numerical("parameters", e.to_string()))?;
        Ok(KernelTransformer { params, heads: Heads { activations: activations.to_vec(), values }, dim })
    }

    /// The transformer whose layer l is a step of functional gradient descent of size `steps[l]` with `kernel` on n =
    /// `context` examples (Proposition 3.1; with a head for each of the kernel's terms, Proposition 3):
    ///
    /// ```text
    /// A = 0,   B_h = C_h = √c_h G_h Σ^{-1/2},   r_{l,h} = −η_l n α_h.
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] for no steps, steps that are not finite, or a kernel that is not a sum of terms (give a model
    /// of your own activation its weights by [`KernelTransformer::from_values`]).
    pub fn functional_gradient_descent(
        kernel: &Kernel,
        steps: &[f64],
        context: usize,
        covariance: &Covariance,
    ) -> Result<Self> {
        let terms = kernel.terms().ok_or_else(|| {
            Error::invalid("kernel", kernel.name(), "a sum of terms, for which there are activations")
        })?;
        let d = covariance.dim();
        let mut parameters = Vec::with_capacity(steps.len() * terms.len() * width(d));
        for step in steps {
            for term in terms {
                let diagonal: Vec<f64> = match &term.coordinates {
                    Some(g) => (0..d).map(|i| g.get(i).copied().unwrap_or(0.0)).collect(),
                    None => vec![1.0; d],
                };
                let g = Matrix::diagonal(&diagonal).scaled(term.scale.abs().sqrt()).mul(covariance.inv_sqrt());
                let c = g.scaled(term.scale.signum());
                let head = std::iter::repeat_n(0.0, d * d)
                    .chain(g.as_slice().iter().copied())
                    .chain(c.as_slice().iter().copied());
                parameters.extend(head.map(E::of));
                parameters.push(E::of(-step * context as f64 * term.weight));
            }
        }
        let activations: Vec<Activation> = terms
            .iter()
            .map(|term| match term.profile {
                Profile::Linear => Activation::Linear,
                Profile::Relu => Activation::Relu,
                Profile::Exp => Activation::Exp,
            })
            .collect();
        Self::from_values(parameters, steps.len(), d, &activations, ValueBlock::Zero)
    }

    /// Number of layers L.
    pub fn layers(&self) -> usize {
        self.params.shape().0
    }

    /// Dimension d.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The activation of each head.
    pub fn activations(&self) -> &[Activation] {
        &self.heads.activations
    }

    /// Whether A_l is free.
    pub fn values(&self) -> ValueBlock {
        self.heads.values
    }

    /// The residuals as functions of the labels, and their squares.
    ///
    /// # Errors
    /// [`Error::Shape`] if the prompts have another dimension.
    pub fn residuals(&self, prompts: &KernelPrompts<E>) -> Result<Residuals> {
        self.check_dim(prompts.dim())?;
        kernel_transformer(&self.heads, prompts, &self.params)
    }

    /// The predictions for the queries, `[batch]`.
    ///
    /// # Errors
    /// As [`KernelTransformer::residuals`].
    pub fn predict(&self, prompts: &Prompts) -> Result<Vec<f64>> {
        let (n, d) = (prompts.context(), prompts.dim());
        let x: Vec<f64> = (0..prompts.len()).flat_map(|i| prompts.x(i).iter().copied()).collect();
        let y: Vec<f64> = (0..prompts.len()).flat_map(|i| prompts.y(i).iter().copied()).collect();
        let weights = self.residuals(&KernelPrompts::sampled(n, d, &x, &y)?)?.weights;
        let of = |(g, y): (&[f64], &[f64])| -g.iter().zip(y).take(n).map(|(g, y)| g * y).sum::<f64>();
        Ok(weights.chunks(n + 1).zip(y.chunks(n + 1)).map(of).collect())
    }

    /// The in-context loss: the mean squared residual, over labels too if the prompts carry their covariance.
    ///
    /// # Errors
    /// As [`KernelTransformer::residuals`].
    pub fn loss(&self, prompts: &KernelPrompts<E>) -> Result<f64> {
        let losses = self.residuals(prompts)?.losses;
        Ok(losses.iter().sum::<f64>() / losses.len() as f64)
    }

    /// The loss and its gradient in the parameters; that in A is 0 for [`ValueBlock::Zero`].
    ///
    /// # Errors
    /// As [`KernelTransformer::residuals`].
    pub fn loss_and_gradient(&self, prompts: &KernelPrompts<E>) -> Result<(f64, Gradients<E, Cpu>)> {
        self.check_dim(prompts.dim())?;
        let loss = kernel_transformer_loss(&self.heads, prompts, self.params.leaky_trace())?;
        let value = loss.array().f64();
        let gradients = loss.try_backward().map_err(|e| Error::numerical("in-context loss", e.to_string()))?;
        Ok((value, gradients))
    }

    /// The loss for sampled labels and its gradient, also in the entries that the authors' code holds at 0.
    ///
    /// # Errors
    /// As [`KernelTransformer::residuals`]; [`Error::Invalid`] for prompts with the covariance of their labels.
    pub fn whole_gradient(&self, prompts: &KernelPrompts<E>) -> Result<WholeGradient> {
        self.check_dim(prompts.dim())?;
        kernel_transformer_whole_gradient(&self.heads, prompts, &self.params)
    }

    /// A of layer `layer`, head `head`, d x d. In the last layer it has no effect.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a layer or a head that the model does not have.
    pub fn a(&self, layer: usize, head: usize) -> Result<Matrix> {
        self.block(layer, head, 0)
    }

    /// B, as [`KernelTransformer::a`].
    ///
    /// # Errors
    /// As [`KernelTransformer::a`].
    pub fn b(&self, layer: usize, head: usize) -> Result<Matrix> {
        self.block(layer, head, 1)
    }

    /// C, as [`KernelTransformer::a`].
    ///
    /// # Errors
    /// As [`KernelTransformer::a`].
    pub fn c(&self, layer: usize, head: usize) -> Result<Matrix> {
        self.block(layer, head, 2)
    }

    /// BᵀC: all that the scores depend on.
    ///
    /// # Errors
    /// As [`KernelTransformer::a`].
    pub fn bc(&self, layer: usize, head: usize) -> Result<Matrix> {
        Ok(self.b(layer, head)?.transpose().mul(&self.c(layer, head)?))
    }

    /// Σ^{1/2} BᵀC Σ^{1/2}: the scores' matrix for the points of the sphere.
    ///
    /// # Errors
    /// As [`KernelTransformer::a`]; [`Error::Shape`] if Σ has another dimension.
    pub fn whitened_bc(&self, layer: usize, head: usize, covariance: &Covariance) -> Result<Matrix> {
        self.check_dim(covariance.dim())?;
        Ok(covariance.sqrt().mul(&self.bc(layer, head)?).mul(covariance.sqrt()))
    }

    /// r of layer `layer`, head `head`; minus n times a step size.
    ///
    /// # Errors
    /// As [`KernelTransformer::a`].
    pub fn r(&self, layer: usize, head: usize) -> Result<f64> {
        Ok(self.head(layer, head)?[3 * self.dim * self.dim])
    }

    fn block(&self, layer: usize, head: usize, which: usize) -> Result<Matrix> {
        let dd = self.dim * self.dim;
        Matrix::from_vec(self.dim, self.dim, self.head(layer, head)?[which * dd..][..dd].to_vec())
    }

    fn head(&self, layer: usize, head: usize) -> Result<Vec<f64>> {
        let (layers, heads, width) = *self.params.shape();
        if layer >= layers || head >= heads {
            let expected = format!("below {layers}, below {heads}");
            return Err(Error::invalid("layer and head", format!("{layer}, {head}"), expected));
        }
        Ok(self.params.as_vec()[(layer * heads + head) * width..][..width].iter().map(|v| v.f64()).collect())
    }

    fn check_dim(&self, given: usize) -> Result<()> {
        if given == self.dim {
            Ok(())
        } else {
            Err(Error::shape("dimension d", &[given], format!("the model's {}", self.dim)))
        }
    }
}

impl KernelTransformer<f32> {
    /// `gradient` in the parameters `[layers, heads, 3d² + 1]`, as optimisers read it.
    ///
    /// # Errors
    /// [`Error::Shape`] if it has another number of entries.
    pub fn gradients(&self, gradient: &[f64]) -> Result<Gradients<f32, Cpu>> {
        gradients_of(&self.params, "model", gradient)
    }
}

/// Parameters of a head.
fn width(dim: usize) -> usize {
    dim.saturating_mul(dim).saturating_mul(3).saturating_add(1)
}
