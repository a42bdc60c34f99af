//! The training loop: what is saved is all there is, so a resumed run is the run that was never stopped, bit for bit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dfdx::prelude::{Cpu, Gradients};

use super::checkpoint::{Array, Checkpoint};
use super::{Schedule, Stateful};
use crate::models::Parameters;
use crate::progress::{Observer, Report};
use crate::{Error, Result};

/// What is trained: a model, and the gradient of its loss at each step.
///
/// Everything random must be a function of the step, not of generator state kept between steps.
pub trait Problem {
    /// The type of the model.
    type Model: Parameters;
    /// The model.
    fn model(&mut self) -> &mut Self::Model;
    /// The training loss and its gradients at `step`.
    ///
    /// # Errors
    /// Whatever stops the training.
    fn gradient(&mut self, step: u64) -> Result<(f64, Gradients<f32, Cpu>)>;
    /// What the history records at `step`: named numbers beside the training loss.
    ///
    /// # Errors
    /// Whatever stops the training.
    fn measure(&mut self, step: u64) -> Result<Vec<(&'static str, f64)>>;

    /// Whether the history keeps the parameters at each recorded step, or the measured numbers alone.
    fn keeps_parameters(&self) -> bool {
        true
    }

    /// Whether the training is over after a record: early stopping on a held-out measure
    /// ([`History::stalled`]). A function of the history alone, so that a resumed training stops where it would have.
    fn enough(&self, _: &History) -> bool {
        false
    }

    /// Whether a training loss means that the training has failed: by default one that is not finite.
    fn diverged(&self, loss: f64) -> bool {
        !loss.is_finite()
    }
}

/// What a training leaves: at each recorded step the measured numbers and the parameters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// The recorded steps.
    pub steps: Vec<u64>,
    /// The measured numbers, by name, one a recorded step.
    pub measures: Vec<(String, Vec<f64>)>,
    /// All parameters, one after the other, at each recorded step; nothing for each if they are not kept.
    pub parameters: Vec<Vec<f32>>,
}

impl History {
    /// The series called `name`.
    ///
    /// # Errors
    /// [`Error::Unknown`] if there is none.
    pub fn measure(&self, name: &str) -> Result<&[f64]> {
        let found = self.measures.iter().find(|(n, _)| n == name);
        found
            .map(|(_, v)| v.as_slice())
            .ok_or_else(|| Error::unknown("measure", name, self.measures.iter().map(|(n, _)| n.clone())))
    }

    /// Whether the last `patience` records of the measure `name` have not come below the least one before them.
    pub fn stalled(&self, name: &str, patience: usize) -> bool {
        let Ok(series) = self.measure(name) else { return false };
        let Some(before) = series.len().checked_sub(patience).filter(|before| *before > 0) else { return false };
        let least = |values: &[f64]| values.iter().copied().fold(f64::INFINITY, f64::min);
        patience > 0 && least(&series[before..]) >= least(&series[..before])
    }

    fn record(&mut self, step: u64, measures: Vec<(&'static str, f64)>, parameters: Vec<f32>) -> Result<()> {
        let names: Vec<&str> = measures.iter().map(|(name, _)| *name).collect();
        let kept: Vec<&str> = self.measures.iter().map(|(name, _)| name.as_str()).collect();
        let twice = names.iter().enumerate().any(|(k, name)| names[..k].contains(name));
        if twice || names.iter().any(|name| ["steps", "parameters"].contains(name)) {
            let expected = "each name once, none of them 'steps' or 'parameters'";
            return Err(Error::invalid(format!("measures at step {step}"), format!("{names:?}"), expected));
        }
        if !self.steps.is_empty() && names != kept {
            let expected = format!("those of every record, {kept:?}");
            return Err(Error::invalid(format!("measures at step {step}"), format!("{names:?}"), expected));
        }
        if self.steps.is_empty() {
            self.measures = names.into_iter().map(|name| (name.to_owned(), Vec::new())).collect();
        }
        self.measures.iter_mut().zip(measures).for_each(|((_, series), (_, value))| series.push(value));
        self.steps.push(step);
        self.parameters.push(parameters);
        Ok(())
    }

    fn write(&self, arrays: &mut BTreeMap<String, Array>) -> Result<()> {
        let rows = self.steps.len();
        let steps = self.steps.iter().map(|s| *s as f64).collect();
        arrays.insert("history.steps".to_owned(), Array::f64(&[rows], steps)?);
        let width = self.parameters.first().map_or(0, Vec::len);
        arrays.insert("history.parameters".to_owned(), Array::f32(&[rows, width], self.parameters.concat())?);
        for (name, series) in &self.measures {
            arrays.insert(format!("history.{name}"), Array::f64(&[rows], series.clone())?);
        }
        Ok(())
    }

    fn read(saved: &Checkpoint, measures: &[String]) -> Result<History> {
        let steps: Vec<u64> = saved.f64("history.steps", &[0])?.1.iter().map(|s| *s as u64).collect();
        let (shape, parameters) = saved.f32("history.parameters", &[steps.len(), 0])?;
        let width = shape[1];
        let parameters = (0..steps.len()).map(|row| parameters[row * width..][..width].to_vec()).collect();
        let series = |name: &String| Ok((name.clone(), saved.f64(&format!("history.{name}"), &[shape[0]])?.1.to_vec()));
        Ok(History { steps, measures: measures.iter().map(series).collect::<Result<_>>()?, parameters })
    }
}

/// How many times the first loss a loss may be. No training that learns comes near.
const GROWTH: f64 = 1e8;

/// How to train.
pub struct Trainer<'a> {
    /// Name shown with the progress.
    pub task: String,
    /// Steps in all.
    pub steps: u64,
    /// Schedule of the learning rate.
    pub schedule: Schedule,
    /// The steps at which the history is recorded, ascending; step k is before the k-th update, `steps` is the end.
    pub record_at: Vec<u64>,
    /// Where the state is kept, so that the training can be resumed; nowhere if `None`.
    pub state: Option<PathBuf>,
    /// What identifies the training: a state with another fingerprint is not resumed.
    pub fingerprint: serde_json::Value,
    /// Time between two saves of the state.
    pub save_every: Duration,
    /// Who watches.
    pub observer: &'a dyn Observer,
}

impl Trainer<'_> {
    /// Trains from the saved state, if there is one with the same fingerprint, else from the start.
    ///
    /// It works on a thread of rayon's pool, and so do the problem, the optimiser and the observer. Of two trainings at a time one may
    /// wait for the other: each is best the only one of its process.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no steps, or steps to be recorded that are not ascending.
    /// [`Error::Interrupted`] when the observer asks to stop; the state is saved first. [`Error::Numerical`] when the
    /// loss diverges, to what is not finite or to a hundred million times the first, or a parameter is no finite number, naming the
    /// step and the learning rate; the last saved state, whose loss was sound, is kept. [`Error::File`] and
    /// [`Error::Corrupt`] for a state that cannot be written or read; whatever the problem gives.
    pub fn run<P: Problem + Send, O: Stateful + Send>(&self, problem: &mut P, optimizer: &mut O) -> Result<History> {
        // All inside the thread pool: from outside, every step would wake a thread and wait for it.
        rayon::scope(|_| self.train(problem, optimizer))
    }

    fn train<P: Problem, O: Stateful>(&self, problem: &mut P, optimizer: &mut O) -> Result<History> {
        if self.steps == 0 {
            return Err(Error::invalid(format!("steps of {}", self.task), 0, "at least 1"));
        }
        if let Some(w) = self.record_at.windows(2).find(|w| w[0] >= w[1]) {
            return Err(Error::invalid("steps to be recorded", format!("{} before {}", w[0], w[1]), "ascending steps"));
        }
        self.schedule.check()?;
        let mut history = History::default();
        let (mut step, mut first_loss) = match &self.state {
            Some(path) if path.exists() => self.resume(path, problem.model(), optimizer, &mut history)?,
            _ => (0, None),
        };
        let (begin, first) = (Instant::now(), step);
        let (mut saved, mut shown) = (begin, begin);
        loop {
            if self.record_at.binary_search(&step).is_ok() && history.steps.last() != Some(&step) {
                let measures = problem.measure(step)?;
                let parameters = if problem.keeps_parameters() { flat(problem.model())? } else { Vec::new() };
                history.record(step, measures, parameters)?;
            }
            let done = step >= self.steps || (history.steps.last() == Some(&step) && problem.enough(&history));
            let stop = self.observer.interrupted();
            let save = self.state.as_ref().filter(|_| stop || done || saved.elapsed() > self.save_every);
            let factor = self.schedule.at(step, self.steps);
            optimizer.set_rate_factor(factor);
            // What cannot be trained on must not replace a state that can: the loss comes before the save.
            let next = if done { None } else { Some(problem.gradient(step)?) };
            if let Some((loss, _)) = next {
                let first = *first_loss.get_or_insert(loss);
                if problem.diverged(loss) || (first > 0.0 && loss > GROWTH * first) {
                    return Err(self.diverged(&format!("the loss is {loss:e}"), step, optimizer.rate()));
                }
            }
            if (done || save.is_some()) && flat(problem.model())?.iter().any(|v| !v.is_finite()) {
                return Err(self.diverged("a parameter is no finite number", step, optimizer.rate()));
            }
            if let Some(path) = save {
                self.save(path, step, first_loss, problem.model(), optimizer, &history)?;
                saved = Instant::now();
            }
            let Some((loss, gradients)) = next else { return Ok(history) };
            if stop {
                let kept = if self.state.is_some() { "saved: resume to continue" } else { "nothing was kept" };
                let state = format!("{} at step {step} of {}, {kept}", self.task, self.steps);
                return Err(Error::Interrupted { state });
            }
            optimizer
                .step(problem.model(), gradients)
                .map_err(|e| Error::numerical(format!("training of {}", self.task), e.to_string()))?;
            step += 1;
            if shown.elapsed() > Duration::from_millis(100) || step == self.steps {
                shown = Instant::now();
                self.observer.report(&Report {
                    task: &self.task,
                    step,
                    of: self.steps,
                    loss: Some(loss),
                    elapsed: begin.elapsed(),
                    steps_here: step - first,
                });
            }
        }
    }

    fn diverged(&self, what: &str, step: u64, rate: f64) -> Error {
        let kept = match &self.state {
            Some(path) if path.exists() => format!("the last good state is {}", path.display()),
            _ => "no state was kept".to_owned(),
        };
        Error::numerical(
            format!("training of {}", self.task),
            format!("{what} at step {step}, learning rate {rate:e}; {kept}; lower the rate"),
        )
    }

    fn save<M: Parameters, O: Stateful>(
        &self,
        path: &Path,
        step: u64,
        first_loss: Option<f64>,
        model: &mut M,
        optimizer: &O,
        history: &History,
    ) -> Result<()> {
        let mut arrays = BTreeMap::new();
        let parameters = flat(model)?;
        arrays.insert("model".to_owned(), Array::f32(&[parameters.len()], parameters)?);
        let state = optimizer.state();
        let names: Vec<String> = state.iter().map(|(name, _)| name.clone()).collect();
        for (name, values) in state {
            arrays.insert(format!("optimizer.{name}"), Array::f32(&[values.len()], values)?);
        }
        history.write(&mut arrays)?;
        let manifest = serde_json::json!({
            "fingerprint": self.fingerprint,
            "step": step,
            "first_loss": first_loss,
            "measures": history.measures.iter().map(|(name, _)| name).collect::<Vec<_>>(),
            "optimizer": names,
        });
        Checkpoint { arrays, manifest }.save(path)
    }

    fn resume<M: Parameters, O: Stateful>(
        &self,
        path: &Path,
        model: &mut M,
        optimizer: &mut O,
        history: &mut History,
    ) -> Result<(u64, Option<f64>)> {
        let saved = Checkpoint::load(path)?;
        if saved.manifest["fingerprint"] != self.fingerprint {
            return Err(Error::corrupt(path, "it is the state of another training; start without resuming"));
        }
        let step = saved.manifest["step"].as_u64().filter(|s| *s <= self.steps);
        let step = step.ok_or_else(|| Error::corrupt(path, "its step is no number up to the training's steps"))?;
        let names = |key: &str| -> Vec<String> {
            let list = saved.manifest[key].as_array().cloned().unwrap_or_default();
            list.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
        };
        let mut state = Vec::new();
        for name in names("optimizer") {
            let values = saved.f32(&format!("optimizer.{name}"), &[0])?.1.to_vec();
            state.push((name, values));
        }
        let read = History::read(&saved, &names("measures"))?;
        optimizer.restore(step, &state)?;
        set_flat(model, saved.f32("model", &[0])?.1)?;
        *history = read;
        Ok((step, saved.manifest["first_loss"].as_f64()))
    }
}

/// All parameters of a model, one tensor after the other.
///
/// # Errors
/// As [`Parameters::visit`].
pub fn flat<M: Parameters>(model: &mut M) -> Result<Vec<f32>> {
    let mut all = Vec::new();
    model.visit(&mut |parameter| {
        all.extend_from_slice(parameter.values);
        Ok(())
    })?;
    Ok(all)
}

/// Sets all parameters of a model from what [`flat`] gave.
///
/// # Errors
/// [`Error::Shape`] if there are not as many as the model has; the model is then unchanged.
pub fn set_flat<M: Parameters>(model: &mut M, values: &[f32]) -> Result<()> {
    let expected = flat(model)?.len();
    if values.len() != expected {
        return Err(Error::shape("parameters", &[values.len()], format!("[{expected}]")));
    }
    let mut rest = values;
    model.visit(&mut |parameter| {
        let (now, later) = rest.split_at(parameter.values.len());
        parameter.values.copy_from_slice(now);
        rest = later;
        Ok(())
    })
}
