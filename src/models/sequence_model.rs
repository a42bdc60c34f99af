//! Models that turn token sequences into predictions by one fused op: what transformers and LSTMs have in common.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dfdx::prelude::{Cpu, Gradients, Merge, Tape, TensorFromVec};

use super::{Parameter, Parameters, WithGradient};
use crate::error::all_finite_f32;
use crate::ops::sequence::{self, Architecture, Batch, Entry, Objective, Params, Tokens};
use crate::tasks::Sequences;
use crate::{Error, Result};

/// A model of the architecture `C`: a transformer ([`super::Gpt2`]) or an LSTM ([`super::Lstm`]).
#[derive(Debug)]
pub struct SequenceModel<C> {
    config: C,
    /// Where its tensors are, and their names.
    entries: Arc<[Entry]>,
    /// All tensors, one after the other, where they can be read and changed in place.
    values: Vec<f32>,
    /// dfdx's tensor of them.
    params: Mutex<Shadow>,
}

/// dfdx's tensor, whose numbers cannot be changed in place: it is brought up to date when it is asked for, since a copy of all
/// parameters at every step takes as long as some layers do.
#[derive(Clone, Debug)]
struct Shadow {
    tensor: Params,
    stale: bool,
}

impl<C: Clone> Clone for SequenceModel<C> {
    fn clone(&self) -> Self {
        let params = Mutex::new(self.shadow().clone());
        let (config, entries) = (self.config.clone(), Arc::clone(&self.entries));
        SequenceModel { config, entries, values: self.values.clone(), params }
    }
}

impl<C> SequenceModel<C> {
    fn shadow(&self) -> MutexGuard<'_, Shadow> {
        // A lock that a panic left is no matter: the tensor is replaced as a whole.
        self.params.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<C: Architecture> SequenceModel<C> {
    /// A model with these parameters, one tensor after the other in the order of [`Architecture::tensors`].
    ///
    /// # Errors
    /// [`Error::Invalid`] for an architecture that cannot be or parameters that are not finite, [`Error::Shape`] if
    /// their number is another.
    pub fn from_values(config: C, values: Vec<f32>) -> Result<Self> {
        config.check()?;
        let expected = config.parameters();
        if values.len() != expected {
            return Err(Error::shape("parameters", &[values.len()], format!("[{expected}]")));
        }
        all_finite_f32("parameters", &values)?;
        let params = Cpu::default()
            .try_tensor_from_vec(values.clone(), (expected,))
            .map_err(|e| Error::numerical("parameters", e.to_string()))?;
        let (entries, params) = (config.tensors().into(), Mutex::new(Shadow { tensor: params, stale: false }));
        Ok(SequenceModel { config, entries, values, params })
    }

    /// The architecture.
    pub fn config(&self) -> &C {
        &self.config
    }

    /// All parameters, one tensor after the other in the order of [`Architecture::tensors`].
    pub fn values(&self) -> Vec<f32> {
        self.values.clone()
    }

    /// All parameters on one tensor, whose gradient is that in all of them: for a tape. It is the same tensor to dfdx every time,
    /// with the numbers that the parameters have now.
    pub fn params(&self) -> Params {
        let mut shadow = self.shadow();
        if shadow.stale {
            shadow.tensor.copy_from(&self.values);
            shadow.stale = false;
        }
        shadow.tensor.clone()
    }

    fn entry(&self, name: &str) -> Result<Entry> {
        let found = self.entries.iter().find(|e| e.name == name).cloned();
        found.ok_or_else(|| Error::unknown("tensor", name, self.entries.iter().map(|e| e.name.clone())))
    }

    /// The values of the tensor `name`, row-major.
    ///
    /// # Errors
    /// [`Error::Unknown`] if the model has none of that name.
    pub fn tensor(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.values[self.entry(name)?.at].to_vec())
    }

    /// Sets the values of the tensor `name`, row-major.
    ///
    /// # Errors
    /// [`Error::Unknown`] if the model has none of that name, [`Error::Shape`] if it has another number of values,
    /// [`Error::Invalid`] if one is not finite. The model is then unchanged.
    pub fn set_tensor(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let entry = self.entry(name)?;
        if values.len() != entry.at.len() {
            return Err(Error::shape(name, &[values.len()], format!("{:?}", entry.shape)));
        }
        all_finite_f32(name, values)?;
        self.values[entry.at].copy_from_slice(values);
        self.shadow().stale = true;
        Ok(())
    }

    fn batch<'a>(&self, sequences: &'a Sequences) -> Result<Batch<'a>> {
        let given = [sequences.inputs(), sequences.outputs()];
        if given != self.config.entries() {
            let expected = format!("{:?}", self.config.entries());
            return Err(Error::shape("entries of tokens and targets", &given, expected));
        }
        let (batch, length, every) = (sequences.batch(), sequences.length(), sequences.every());
        Ok(Batch { tokens: sequences.tokens(), batch, length, every })
    }

    /// The predictions, `[batch, predictions, outputs]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the sequences do not fit the model, [`Error::Invalid`] if they are longer than its positions.
    pub fn predict(&self, sequences: &Sequences) -> Result<Vec<f32>> {
        sequence::predict(&self.config, &self.values, self.batch(sequences)?)
    }

    /// The hidden states: the embedded tokens, then the output of each layer. `layers + 1` times
    /// `[batch, length, width]`. A transformer's are the residual stream as `transformers` gives it: that after the last
    /// block has gone through the final layer norm.
    ///
    /// # Errors
    /// As [`SequenceModel::predict`].
    pub fn hidden_states(&self, sequences: &Sequences) -> Result<Vec<Vec<f32>>> {
        sequence::hidden_states(&self.config, &self.values, self.batch(sequences)?)
    }

    /// The loss of the predictions ([`Sequences::loss`]).
    ///
    /// # Errors
    /// As [`SequenceModel::predict`].
    pub fn loss(&self, sequences: &Sequences) -> Result<f64> {
        sequences.loss(&self.predict(sequences)?)
    }

    /// The loss of the predictions and its gradient in the parameters, in one pass over the batch.
    ///
    /// # Errors
    /// As [`SequenceModel::predict`].
    pub fn loss_and_gradient(&self, sequences: &Sequences) -> Result<(f64, Gradients<f32, Cpu>)> {
        let batch = self.batch(sequences)?;
        let weights: Vec<f32> = sequences.weights().iter().map(|w| (w / batch.batch as f64) as f32).collect();
        let objective = Objective::Squares { targets: sequences.targets(), weights: &weights };
        let mut gradients = Gradients::leaky();
        let all = &mut gradients;
        let (config, values) = (&self.config, &self.values);
        let (loss, _) = sequence::differentiate(
            config,
            values,
            batch,
            objective,
            move || match all.get_or_alloc_mut(&self.shadow().tensor) {
                Ok(zeros) => Ok(zeros.as_mut_slice()),
                Err(e) => Err(Error::numerical("gradient", e.to_string())),
            },
            false,
        )?;
        Ok((loss, gradients))
    }

    /// The predictions on dfdx's tape, for losses of any other form: `[batch, predictions, outputs]` at tokens 0,
    /// `every`, 2 `every`, … of `tokens` `[batch, length, inputs]`. Pass [`SequenceModel::params`] traced, or not.
    ///
    /// # Errors
    /// As [`SequenceModel::predict`].
    pub fn on_tape<Tp: Tape<f32, Cpu>, Tt>(
        &self,
        params: Params<Tp>,
        tokens: Tokens<Tt>,
        every: usize,
    ) -> Result<Tokens<Tt>>
    where
        Tt: Tape<f32, Cpu> + Merge<Tp>,
    {
        sequence::on_tape(&self.config, params, tokens, every)
    }
}

impl<C: Architecture> Parameters for SequenceModel<C> {
    fn visit(&mut self, visitor: &mut dyn FnMut(Parameter<'_>) -> Result<()>) -> Result<()> {
        let before = self.params();
        self.shadow().stale = true;
        let values = &mut self.values;
        let visited = self.entries.iter().try_for_each(|Entry { name, shape, at }| {
            let gradient = |gradients: &mut Gradients<f32, Cpu>| {
                let all = gradients.get_or_alloc_mut(&before);
                Ok(all.map_err(|e| Error::numerical("gradient", e.to_string()))?[at.clone()].to_vec())
            };
            visitor(Parameter { name, shape, values: &mut values[at.clone()], gradient: &gradient })
        });
        if visited.is_err() {
            before.copy_into(&mut self.values);
        }
        visited
    }

    fn update(
        &mut self,
        source: &mut Gradients<f32, Cpu>,
        update: &mut dyn FnMut(Vec<WithGradient<'_>>) -> Result<()>,
    ) -> Result<()> {
        self.shadow().stale = true;
        let gradient =
            source.get_or_alloc_mut(&self.shadow().tensor).map_err(|e| Error::numerical("gradient", e.to_string()))?;
        let (mut values, mut gradients) = (self.values.as_mut_slice(), gradient.as_mut_slice());
        let mut tensors = Vec::with_capacity(self.entries.len());
        for Entry { name, shape, at } in self.entries.iter() {
            let (mine, later) = std::mem::take(&mut values).split_at_mut(at.len());
            let (gradient, later_gradients) = std::mem::take(&mut gradients).split_at_mut(at.len());
            tensors.push(WithGradient { name, shape, values: mine, gradient });
            (values, gradients) = (later, later_gradients);
        }
        update(tensors)
    }
}
