//! Models with dfdx parameters, one file a model; weights that theorems write down in [`constructions`].

pub mod constructions;
pub mod general_linear_transformer;
pub mod gpt2;
pub mod kernel_transformer;
pub mod linear_transformer;
pub mod lstm;
pub mod pretrained;
pub mod sequence_model;
pub mod sequence_transformer;
pub mod soft_prompt;

pub use general_linear_transformer::GeneralLinearTransformer;
pub use gpt2::{Gpt2, Gpt2Config, Init, Positions};
pub use kernel_transformer::KernelTransformer;
pub use linear_transformer::{LinearTransformer, Parametrisation};
pub use lstm::{Lstm, LstmConfig};
pub use sequence_model::SequenceModel;
pub use sequence_transformer::SequenceTransformer;
pub use soft_prompt::SoftPrompt;

use dfdx::prelude::*;

use crate::{Error, Result};

/// Reads the gradient of one tensor.
pub type ReadGradient<'a> = dyn Fn(&mut Gradients<f32, Cpu>) -> Result<Vec<f32>> + 'a;

/// A tensor of a model, as optimisers and checkpoints see it.
pub struct Parameter<'a> {
    /// Its name, unique in the model.
    pub name: &'a str,
    /// Its shape.
    pub shape: &'a [usize],
    /// Its values, row-major: what is left here after the visit becomes the tensor's content.
    pub values: &'a mut [f32],
    /// Reads its gradient into a vector of the same length; zeros if there is none.
    pub gradient: &'a ReadGradient<'a>,
}

/// A tensor of a model with its gradient, as a step of an optimiser changes it.
pub struct WithGradient<'a> {
    /// Its name, unique in the model.
    pub name: &'a str,
    /// Its shape.
    pub shape: &'a [usize],
    /// Its values, row-major.
    pub values: &'a mut [f32],
    /// Its gradient, which may be clipped in place.
    pub gradient: &'a mut [f32],
}

/// A model whose tensors can be visited in a fixed order.
///
/// dfdx's `TensorCollection` builds tensors of static shape only; the shapes here are chosen at run time.
pub trait Parameters {
    /// Calls `visitor` on every tensor.
    ///
    /// # Errors
    /// The visitor's first.
    fn visit(&mut self, visitor: &mut dyn FnMut(Parameter<'_>) -> Result<()>) -> Result<()>;

    /// Calls `update` with all tensors, in the order of the visit, each with its gradient in `source`; zeros where there is
    /// none. What is left in their values becomes the tensors' content; what is left in `source` is of no use.
    ///
    /// # Errors
    /// Those of `update`, which are to come before it changes any values: no copy of them is kept. [`Error::Numerical`] if there
    /// is no memory for the gradients.
    fn update(
        &mut self,
        source: &mut Gradients<f32, Cpu>,
        update: &mut dyn FnMut(Vec<WithGradient<'_>>) -> Result<()>,
    ) -> Result<()> {
        let mut all = Vec::new();
        self.visit(&mut |Parameter { name, shape, values, gradient }| {
            all.push((name.to_owned(), shape.to_vec(), values.to_vec(), gradient(source)?));
            Ok(())
        })?;
        let tensors =
            all.iter_mut().map(|(name, shape, values, gradient)| WithGradient { name, shape, values, gradient });
        update(tensors.collect())?;
        let mut updated = all.iter();
        self.visit(&mut |parameter| {
            updated.next().into_iter().for_each(|(_, _, values, _)| parameter.values.copy_from_slice(values));
            Ok(())
        })
    }
}

/// Visits one tensor: what an implementation of [`Parameters::visit`] calls for each of its own.
///
/// # Errors
/// As [`Parameters::visit`].
pub fn visit_tensor<S: Shape>(
    name: &str,
    tensor: &mut Tensor<S, f32, Cpu>,
    visitor: &mut dyn FnMut(Parameter<'_>) -> Result<()>,
) -> Result<()> {
    let mut values = contents(tensor);
    let shape: Vec<usize> = tensor.shape().concrete().into_iter().collect();
    let gradient = |gradients: &mut Gradients<f32, Cpu>| {
        let gradient = gradients.get_or_alloc_mut(&*tensor).map_err(|e| Error::numerical("gradient", e.to_string()))?;
        Ok(gradient.to_vec())
    };
    visitor(Parameter { name, shape: &shape, values: &mut values, gradient: &gradient })?;
    tensor.copy_from(&values);
    Ok(())
}

/// `gradient` in a model's only tensor, as optimisers read it.
///
/// # Errors
/// [`Error::Shape`] if it has another number of entries.
fn gradients_of<S: Shape>(tensor: &Tensor<S, f32, Cpu>, what: &str, gradient: &[f64]) -> Result<Gradients<f32, Cpu>> {
    let mut gradients = Gradients::leaky();
    let into = gradients.get_or_alloc_mut(tensor).map_err(|e| Error::numerical("gradient", e.to_string()))?;
    if into.len() != gradient.len() {
        return Err(Error::shape(format!("gradient of the {what}"), &[gradient.len()], format!("[{}]", into.len())));
    }
    into.iter_mut().zip(gradient).for_each(|(to, g)| *to = *g as f32);
    Ok(gradients)
}

/// The values of a model's own tensor, which stand in its memory in order. dfdx's `as_vec` looks for the place of every one of
/// them, which takes longer than the optimiser's arithmetic.
pub(crate) fn contents<S: Shape, T>(tensor: &Tensor<S, f32, Cpu, T>) -> Vec<f32> {
    let mut values = vec![0.0; tensor.shape().num_elements()];
    tensor.copy_into(&mut values);
    values
}
