//! Muon: momentum, orthogonalised, for the matrices of hidden layers; AdamW for everything else.

use dfdx::optim::{Optimizer, OptimizerUpdateError};
use dfdx::prelude::{Cpu, CpuError, Gradients};
use serde::{Deserialize, Serialize};

use super::optimizer::{AdamConfig, Stateful, clip, device_error, fit, is_named, moving, named, positive};
use crate::models::{Parameters, WithGradient};
use crate::ops::adam::Moving;
use crate::ops::gemm::{Left, Right, Start, gemm};
use crate::ops::simd::WIDTH;
use crate::ops::threads::each;
use crate::{Error, Result};

/// Configuration of [`Muon`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MuonConfig {
    /// Learning rate of the hidden matrices. Their steps have the root mean square of Adam's, so the two rates are of one
    /// size.
    pub rate: f64,
    /// Momentum, Nesterov's.
    pub momentum: f64,
    /// Decoupled weight decay of the hidden matrices.
    pub weight_decay: f64,
    /// For all other tensors; its clipping is applied to all gradients.
    pub adam: AdamConfig,
}

impl Default for MuonConfig {
    fn default() -> Self {
        MuonConfig { rate: 1e-3, momentum: 0.95, weight_decay: 0.0, adam: AdamConfig::default() }
    }
}

/// Muon (Jordan et al., 2024): the momentum M of a hidden matrix is replaced by the nearest orthogonal one, U Vᵀ of its
/// singular value decomposition, by five steps of Newton and Schulz in a polynomial of degree five,
///
/// ```text
/// X ← M / ‖M‖_F,    X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X
/// W ← W - rate 0.2 sqrt(max(rows, columns)) X
/// ```
///
/// which brings all singular values near 1; the factor gives the step the size of Adam's (Liu et al., 2025). Hidden
/// matrices are those of blocks (`h.…`) and of recurrent layers (`…weight_ih…`, `…weight_hh…`), queries, keys, values
/// and gates each on their own.
#[derive(Clone, Debug)]
pub struct Muon {
    config: MuonConfig,
    factor: f64,
    steps: u64,
    first: Vec<Vec<f32>>,
    second: Vec<Vec<f32>>,
}

impl Muon {
    /// An optimiser before its first step.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a rate that is not positive, a momentum outside [0, 1), a negative decay, or what
    /// [`super::Adam`] refuses.
    pub fn new(config: MuonConfig) -> Result<Self> {
        super::Adam::new(config.adam)?;
        positive("learning rate", config.rate)?;
        if !(0.0..1.0).contains(&config.momentum) {
            return Err(Error::invalid("momentum", config.momentum, "a number in [0, 1)"));
        }
        if !(config.weight_decay.is_finite() && config.weight_decay >= 0.0) {
            return Err(Error::invalid("weight decay", config.weight_decay, "a finite number of at least 0"));
        }
        Ok(Muon { config, factor: 1.0, steps: 0, first: Vec::new(), second: Vec::new() })
    }
}

/// The matrices that a tensor is made of: their rows and columns, and the first entry of each.
type Matrices = (usize, usize, Vec<usize>);

/// Those of the tensor, or none if it is not a hidden one.
fn matrices(name: &str, shape: &[usize]) -> Option<Matrices> {
    let &[rows, columns] = shape else { return None };
    let recurrent = name.contains("weight_ih") || name.contains("weight_hh");
    if !(name.starts_with("h.") || recurrent) || rows < 2 || columns < 2 {
        return None;
    }
    for (end, parts) in [("c_attn.weight", 3), ("c_position.weight", 2)] {
        if name.ends_with(end) && columns % parts == 0 {
            return Some((rows, columns / parts, (0..parts).map(|k| k * columns / parts).collect()));
        }
    }
    if recurrent && rows % 4 == 0 {
        return Some((rows / 4, columns, (0..4).map(|k| k * columns * rows / 4).collect()));
    }
    Some((rows, columns, vec![0]))
}

/// The matrix near U Vᵀ of `m` `[rows, columns]`, row-major.
///
/// ```
/// // Singular values 3 and 0.5, the singular vectors are the axes.
/// let x = incontext::train::muon::orthogonalised(&[3.0, 0.0, 0.0, 0.5], 2, 2);
/// assert!((x[0] - 1.0).abs() < 0.35 && (x[3] - 1.0).abs() < 0.35 && x[1].abs() < 1e-6);
/// ```
pub fn orthogonalised(m: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let [a, b, c] = [3.4445, -4.7750, 2.0315];
    // With no more rows than columns: the Gram matrix X Xᵀ is the smaller one.
    let wide = rows <= columns;
    let (r, n) = if wide { (rows, columns) } else { (columns, rows) };
    let (sr, sn) = (r.next_multiple_of(WIDTH), n.next_multiple_of(WIDTH));
    let norm = m.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt() + 1e-7;
    let mut x = vec![0.0; r * sn];
    for (k, v) in m.iter().enumerate() {
        let (i, j) = if wide { (k / columns, k % columns) } else { (k % columns, k / columns) };
        x[i * sn + j] = (f64::from(*v) / norm) as f32;
    }
    let (mut transposed, mut gram, mut square) = (vec![0.0; n * sr], vec![0.0; r * sr], vec![0.0; r * sr]);
    let mut next = vec![0.0; r * sn];
    for _ in 0..5 {
        for (i, row) in x.chunks_exact(sn).enumerate() {
            row.iter().take(n).enumerate().for_each(|(j, v)| transposed[j * sr + i] = *v);
        }
        let rows_of = |data, step| Left { data, row: step, step: 1 };
        gemm([r, r, n], rows_of(&x, sn), Right::rows(&transposed, sr), Start::ZERO, &mut gram, sr);
        gemm([r, r, r], rows_of(&gram, sr), Right::rows(&gram, sr), Start::ZERO, &mut square, sr);
        square.iter_mut().zip(&gram).for_each(|(s, g)| *s = b * g + c * *s);
        next.iter_mut().zip(&x).for_each(|(n, x)| *n = a * x);
        gemm([r, n, r], rows_of(&square, sr), Right::rows(&x, sn), Start::ADD, &mut next, sn);
        std::mem::swap(&mut x, &mut next);
    }
    (0..m.len())
        .map(|k| if wide { x[k / columns * sn + k % columns] } else { x[k % columns * sn + k / columns] })
        .collect()
}

impl<M: Parameters> Optimizer<M, Cpu, f32> for Muon {
    fn update(
        &mut self,
        module: &mut M,
        gradients: &Gradients<f32, Cpu>,
    ) -> std::result::Result<(), OptimizerUpdateError<CpuError>> {
        self.step(module, gradients.clone()).map_err(device_error)
    }
}

impl MuonConfig {
    /// Moves a hidden tensor that consists of these matrices, at `factor` times the rate.
    fn step(&self, factor: f64, tensor: WithGradient<'_>, matrices: &Matrices, momenta: &mut [f32]) {
        let (rows, columns, starts) = matrices;
        let rate = self.rate * factor;
        let (momentum, decay) = (self.momentum as f32, (1.0 - rate * self.weight_decay) as f32);
        let width = tensor.shape[1];
        let nesterov = momenta.iter_mut().zip(&*tensor.gradient).map(|(m, g)| {
            *m = momentum * *m + g;
            g + momentum * *m
        });
        let nesterov: Vec<f32> = nesterov.collect();
        let scale = (rate * 0.2 * (*rows.max(columns) as f64).sqrt()) as f32;
        for start in starts {
            let at = |i: usize| start + i * width..start + i * width + columns;
            let matrix: Vec<f32> = (0..*rows).flat_map(|i| nesterov[at(i)].iter().copied()).collect();
            let x = orthogonalised(&matrix, *rows, *columns);
            for (i, x) in x.chunks_exact(*columns).enumerate() {
                tensor.values[at(i)].iter_mut().zip(x).for_each(|(p, x)| *p = *p * decay - scale * x);
            }
        }
    }
}

/// A hidden tensor with its momenta, or a piece of another one.
enum Work<'a> {
    Muon(WithGradient<'a>, Matrices, &'a mut [f32]),
    Adam(Moving<'a>),
}

impl Stateful for Muon {
    fn step<M: Parameters>(&mut self, model: &mut M, mut gradients: Gradients<f32, Cpu>) -> Result<()> {
        model.update(&mut gradients, &mut |mut tensors| {
            for moments in [&mut self.first, &mut self.second] {
                fit(moments, &tensors)?;
            }
            clip(self.config.adam.clip, &mut tensors);
            self.steps += 1;
            let step = self.config.adam.step(self.steps, self.factor);
            let tensors = tensors.into_iter().zip(self.first.iter_mut().zip(&mut self.second));
            let work = tensors.flat_map(|(tensor, (first, second))| match matrices(tensor.name, tensor.shape) {
                None => moving(tensor, first, second).pieces().map(Work::Adam).collect(),
                Some(matrices) => vec![Work::Muon(tensor, matrices, first)],
            });
            each(work, |work| match work {
                Work::Adam(piece) => piece.update(step),
                Work::Muon(tensor, matrices, momenta) => self.config.step(self.factor, tensor, &matrices, momenta),
            });
            Ok(())
        })
    }

    fn set_rate_factor(&mut self, factor: f64) {
        self.factor = factor;
    }

    fn rate(&self) -> f64 {
        self.config.rate * self.factor
    }

    fn state(&self) -> Vec<(String, Vec<f32>)> {
        named("muon.first", &self.first).chain(named("muon.second", &self.second)).collect()
    }

    fn restore(&mut self, steps: u64, state: &[(String, Vec<f32>)]) -> Result<()> {
        let (first, second) = state.split_at(state.len() / 2);
        if !is_named("muon.first", first) || !is_named("muon.second", second) {
            return Err(Error::invalid("optimiser state", "another optimiser's", "Muon's moments"));
        }
        self.steps = steps;
        self.first = first.iter().map(|(_, m)| m.clone()).collect();
        self.second = second.iter().map(|(_, m)| m.clone()).collect();
        Ok(())
    }
}
