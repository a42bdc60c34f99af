//! The transformers of `mesa`: stacks of softmax attention, linear attention and mesa layers on sequences.

use dfdx::prelude::{Cpu, Gradients, Tensor, TensorFromVec};
use rand_distr::{Distribution, StandardNormal};

use super::{Parameter, Parameters, contents, visit_tensor};
use crate::error::all_finite;
use crate::linalg::Matrix;
use crate::ops::lane_products::OnLanes;
use crate::ops::sequence_transformer::{
    Architecture, LaneBatch, Layer, Mixer, Slope, Slot, attention, cross_entropy, predict, residuals, squared_loss,
};
use crate::rng::stream;
use crate::{Error, Result};

/// A model on sequences: an [`Architecture`] and its parameters, a dfdx tensor a matrix.
///
/// ```
/// use incontext::models::SequenceTransformer;
/// use incontext::ops::sequence_transformer::{Architecture, Layer, Mixer};
/// use incontext::tasks::{Dynamics, TokenKind};
/// let architecture = Architecture::constructed(5, vec![Layer::new(Mixer::Linear, 2, 10)]);
/// let model = SequenceTransformer::init(architecture, 2e-4, 0)?;
/// let sequences = Dynamics::linear(5, 25)?.sample(4, 1)?;
/// let losses = sequences.losses(&model.predict(&sequences.inputs(TokenKind::ConstructedMasked)?)?)?;
/// assert_eq!(losses.len(), 25);
/// # Ok::<(), incontext::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct SequenceTransformer {
    architecture: Architecture,
    slots: Vec<Slot>,
    tensors: Vec<Tensor<(usize, usize), f32, Cpu>>,
}

impl Architecture {
    /// For constructed tokens `[0, s, s, s']` of states of dimension `dim`, as they are: the prediction is channel 1, and
    /// the residual stream is clipped to ±4.
    pub fn constructed(dim: usize, layers: Vec<Layer>) -> Self {
        let width = dim.saturating_mul(4);
        Architecture { input: width, width, embed: false, output: dim, layers, clip: Some(4.0) }
    }

    /// For states of dimension `dim` as tokens, embedded into `width` channels; the first layer sees positions.
    pub fn embedded(dim: usize, width: usize, mut layers: Vec<Layer>) -> Self {
        if let Some(first) = layers.first_mut() {
            first.positions = true;
        }
        Architecture { input: dim, width, embed: true, output: dim, layers, clip: None }
    }
}

impl Parameters for SequenceTransformer {
    fn visit(&mut self, visitor: &mut dyn FnMut(Parameter<'_>) -> Result<()>) -> Result<()> {
        self.slots.iter().zip(&mut self.tensors).try_for_each(|(slot, t)| visit_tensor(&slot.name, t, visitor))
    }
}

impl SequenceTransformer {
    /// A model with parameters drawn from N(0, `std`²); λ of mesa layers and the step size of the delta rule
    /// are 1.
    ///
    /// # Errors
    /// As [`Architecture::check`]; [`Error::Invalid`] for a standard deviation that is not positive and finite.
    pub fn init(architecture: Architecture, std: f64, seed: u64) -> Result<Self> {
        architecture.check()?;
        if !(std.is_finite() && std > 0.0) {
            return Err(Error::invalid("initial standard deviation", std, "a positive finite number"));
        }
        let mut rng = stream(seed, "init", 0);
        let mut values = vec![0.0; architecture.parameters()];
        for slot in architecture.slots().iter().filter(|s| !s.name.contains(".ln_")) {
            for v in &mut values[slot.at..][..slot.rows * slot.columns] {
                let z: f64 = StandardNormal.sample(&mut rng);
                *v = (std * z) as f32;
            }
        }
        Self::from_values(architecture, &values)
    }

    /// A model with these parameters, in the order of [`Architecture::slots`].
    ///
    /// # Errors
    /// As [`Architecture::check`]; [`Error::Shape`] if their number is another, [`Error::Invalid`] if one is not finite.
    pub fn from_values(architecture: Architecture, values: &[f32]) -> Result<Self> {
        architecture.check()?;
        if values.len() != architecture.parameters() {
            return Err(Error::shape("parameters", &[values.len()], format!("[{}]", architecture.parameters())));
        }
        all_finite("parameters", values.iter().map(|v| f64::from(*v)))?;
        let device = Cpu::default();
        let slots = architecture.slots();
        let tensor = |s: &Slot| {
            device
                .try_tensor_from_vec(values[s.at..][..s.rows * s.columns].to_vec(), (s.rows, s.columns))
                .map_err(|e| Error::numerical("parameters", e.to_string()))
        };
        let tensors = slots.iter().map(tensor).collect::<Result<_>>()?;
        Ok(SequenceTransformer { architecture, slots, tensors })
    }

    /// What it is made of.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// All parameters, in the order of [`Architecture::slots`].
    pub fn values<T: OnLanes>(&self) -> Vec<T> {
        self.tensors.iter().flat_map(contents).map(|v| T::of(f64::from(v))).collect()
    }

    /// The parameter matrix `name`.
    ///
    /// # Errors
    /// [`Error::Unknown`] if there is none.
    pub fn matrix(&self, name: &str) -> Result<Matrix> {
        let k = self.slot(name)?;
        let values = contents(&self.tensors[k]).into_iter().map(f64::from).collect();
        Matrix::from_vec(self.slots[k].rows, self.slots[k].columns, values)
    }

    /// Replaces the parameter matrix `name`.
    ///
    /// # Errors
    /// [`Error::Unknown`] if there is none, [`Error::Shape`] if its shape is another.
    pub fn set_matrix(&mut self, name: &str, matrix: &Matrix) -> Result<()> {
        let k = self.slot(name)?;
        let slot = &self.slots[k];
        if (matrix.rows(), matrix.cols()) != (slot.rows, slot.columns) {
            let given = [matrix.rows(), matrix.cols()];
            return Err(Error::shape(name, &given, format!("[{}, {}]", slot.rows, slot.columns)));
        }
        let values: Vec<f32> = matrix.as_slice().iter().map(|v| *v as f32).collect();
        self.tensors[k].copy_from(&values);
        Ok(())
    }

    fn slot(&self, name: &str) -> Result<usize> {
        let known = || self.slots.iter().map(|s| s.name.clone());
        self.slots
            .iter()
            .position(|s| s.name == name)
            .ok_or_else(|| Error::unknown("matrix of the model", name, known()))
    }

    /// W_Kᵀ W_Q of a head, `[width, width]`: entry (i, j) is how much channel i of a key's token answers channel j of a
    /// query's token. Positions, if the layer sees any, are left out.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a layer or a head that there is not.
    pub fn key_query(&self, layer: usize, head: usize) -> Result<Matrix> {
        let (channels, width) = (self.head(layer, head)?, self.architecture.width);
        let q = self.matrix(&format!("layer{layer}.query"))?;
        let k = self.matrix(&format!("layer{layer}.key"))?;
        let entry = |i, j| channels.clone().map(|c| k[(c, i)] * q[(c, j)]).sum();
        Ok(Matrix::from_fn(width, width, entry))
    }

    /// P W_V of a head, `[width, width]`: what it adds to channel i for channel j of a token that it attends to.
    ///
    /// # Errors
    /// As [`SequenceTransformer::key_query`].
    pub fn projected_value(&self, layer: usize, head: usize) -> Result<Matrix> {
        let (channels, width) = (self.head(layer, head)?, self.architecture.width);
        let o = self.matrix(&format!("layer{layer}.out"))?;
        let v = self.matrix(&format!("layer{layer}.value"))?;
        let entry = |i, j| channels.clone().map(|c| o[(i, c)] * v[(c, j)]).sum();
        Ok(Matrix::from_fn(width, width, entry))
    }

    /// λ of every head of a mesa layer.
    ///
    /// # Errors
    /// [`Error::Unknown`] if the layer is none.
    pub fn lambdas(&self, layer: usize) -> Result<Vec<f64>> {
        Ok(self.matrix(&format!("layer{layer}.ln_lambda"))?.as_slice().iter().map(|v| v.exp()).collect())
    }

    fn head(&self, layer: usize, head: usize) -> Result<std::ops::Range<usize>> {
        let found = self.architecture.layers.get(layer).filter(|l| head < l.heads);
        let l = found.ok_or_else(|| Error::invalid("layer and head", format!("{layer}, {head}"), "of the model"))?;
        Ok(head * l.key..(head + 1) * l.key)
    }

    /// Predictions at every token, `[batch, T, output]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the tokens have other channels.
    pub fn predict(&self, tokens: &LaneBatch<f32>) -> Result<Vec<f64>> {
        Ok(predict(&self.architecture, &self.values(), tokens)?.values())
    }

    /// The residual stream before the first layer and after each: `layers + 1` of `[batch, T, width]`.
    ///
    /// # Errors
    /// As [`SequenceTransformer::predict`].
    pub fn residuals(&self, tokens: &LaneBatch<f32>) -> Result<Vec<Vec<f64>>> {
        Ok(residuals(&self.architecture, &self.values(), tokens)?.iter().map(LaneBatch::values).collect())
    }

    /// Of each head of a softmax layer, the mean attention weights `[T, T]` over the batch, and their standard deviation.
    ///
    /// # Errors
    /// As [`SequenceTransformer::predict`]; [`Error::Invalid`] for another layer.
    pub fn attention(&self, tokens: &LaneBatch<f32>, layer: usize) -> Result<Vec<(Vec<f64>, Vec<f64>)>> {
        attention(&self.architecture, &self.values(), tokens, layer)
    }

    /// The training loss Σ_dims (prediction − target)² / (2 B T), weighted by `weights` a token if given, and its gradients.
    ///
    /// # Errors
    /// As [`squared_loss`].
    pub fn loss_and_gradient(
        &self,
        tokens: &LaneBatch<f32>,
        targets: &LaneBatch<f32>,
        weights: Option<&[f64]>,
    ) -> Result<(f64, Gradients<f32, Cpu>)> {
        self.gradients(squared_loss(&self.architecture, &self.values(), tokens, targets, weights)?)
    }

    /// The cross-entropy of the predictions as logits, in nats a token, and its gradients; targets are distributions.
    ///
    /// # Errors
    /// As [`cross_entropy`].
    pub fn cross_entropy_and_gradient(
        &self,
        tokens: &LaneBatch<f32>,
        targets: &LaneBatch<f32>,
    ) -> Result<(f64, Gradients<f32, Cpu>)> {
        self.gradients(cross_entropy(&self.architecture, &self.values(), tokens, targets)?)
    }

    fn gradients(&self, slope: Slope<f32>) -> Result<(f64, Gradients<f32, Cpu>)> {
        let mut gradients = Gradients::leaky();
        for (slot, tensor) in self.slots.iter().zip(&self.tensors) {
            let into = gradients.get_or_alloc_mut(tensor).map_err(|e| Error::numerical("gradient", e.to_string()))?;
            into.copy_from_slice(&slope.parameters[slot.at..][..slot.rows * slot.columns]);
        }
        Ok((slope.loss, gradients))
    }

    /// The first `layers` layers as a model of their own, whose prediction is the residual stream.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there are not so many layers.
    pub fn truncated(&self, layers: usize) -> Result<SequenceTransformer> {
        let a = &self.architecture;
        if layers > a.layers.len() {
            return Err(Error::invalid("layers", layers, format!("at most {}", a.layers.len())));
        }
        let cut = Architecture { layers: a.layers[..layers].to_vec(), output: a.width, ..a.clone() };
        let mut values = self.values::<f32>();
        values.truncate(cut.slots().iter().filter(|s| s.name != "readout").map(|s| s.rows * s.columns).sum());
        if a.embed {
            values.extend(Matrix::identity(a.width).as_slice().iter().map(|v| *v as f32));
        }
        SequenceTransformer::from_values(cut, &values)
    }

    /// The layers without embedding and read-out: a model from residual streams to residual streams.
    ///
    /// # Errors
    /// None for a model that exists.
    pub fn without_embedding(&self) -> Result<SequenceTransformer> {
        let a = &self.architecture;
        let bare = Architecture { input: a.width, embed: false, output: a.width, ..a.clone() };
        let begin = if a.embed { a.width * a.input } else { 0 };
        let values = self.values::<f32>();
        SequenceTransformer::from_values(bare.clone(), &values[begin..begin + bare.parameters()])
    }

    /// Number of layers of softmax attention at the bottom.
    pub fn softmax_layers(&self) -> usize {
        self.architecture.layers.iter().take_while(|l| l.mixer == Mixer::Softmax).count()
    }
}
