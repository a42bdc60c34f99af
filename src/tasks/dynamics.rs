//! Trajectories of a dynamical system: s_{t+1} = W s_t + noise with a new W for every sequence (`mesa` section 3).

use rand::Rng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::array_len;
use crate::linalg::Matrix;
use crate::ops::lane_products::OnLanes;
use crate::ops::sequence_transformer::LaneBatch;
use crate::rng::{ChaCha8Rng, stream};
use crate::{Error, Result};

/// The law of a sequence's teacher W.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Teachers {
    /// W orthogonal, uniform (Haar), new for every sequence.
    Orthogonal,
    /// W = U diag(e) U⁻¹ with Gaussian U, e_i ~ U(0.3, 0.9) and one of them 0.9 (`mesa` E.1).
    Contracting,
    /// One of `count` orthogonal matrices, fixed once and for all by `seed`: 1 is the fixed teacher of `mesa` Fig. 12, and
    /// with more of them memorising becomes learning in context.
    Pool {
        /// How many.
        count: usize,
        /// What they are drawn from.
        seed: u64,
    },
}

/// The map whose output W is applied to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Map {
    /// h_{t+1} = W h_t.
    Linear,
    /// h_{t+1} = W f(h_t) / ‖f(h_t)‖ with f(h) = B gelu(A h), A `[hidden, n]`, B `[n, hidden]`, entries 1.1 N(0, 1), fixed for
    /// all sequences. The norm is in the authors' code and not in the paper.
    Mlp {
        /// Hidden units.
        hidden: usize,
    },
}

/// The law of the first state.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// Entries uniform in ± this: the authors' code, and all published axes (1).
    Uniform(f64),
    /// Entries N(0, 1): the paper's text.
    Gaussian,
}

/// The task. Noise σ is a standard deviation, as in the authors' code.
///
/// ```
/// use incontext::tasks::Dynamics;
/// let task = Dynamics::linear(5, 25)?;
/// let sequences = task.sample(3, 0)?;
/// assert_eq!(sequences.states(0).len(), 26 * 5);
/// # Ok::<(), incontext::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dynamics {
    /// Dimension n of the state h.
    pub dim: usize,
    /// Tokens T that a model sees; sequences have T + 1 observations, the last a target only.
    pub tokens: usize,
    /// The law of W.
    pub teachers: Teachers,
    /// Linear or with an MLP.
    pub map: Map,
    /// Observed dimension n_s: s_t = C h_t + noise with a new C, entries 0.5 N(0, 1), for every sequence; s = h if `None`.
    pub observed: Option<usize>,
    /// Standard deviation of the noise of the state, and of the observation if there is one.
    pub noise: f64,
    /// The law of the first state.
    pub start: Start,
    /// States are clipped to ± this.
    pub clip: f64,
    /// Another W from this step on (the state that it makes first has this index, from 0); never if `None`.
    pub switch: Option<usize>,
}

impl Dynamics {
    /// Fully observed linear dynamics by the authors' code: W orthogonal, σ = 0.01, s_1 ~ U(−1, 1), clip ±10.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a dimension or a length of 0.
    pub fn linear(dim: usize, tokens: usize) -> Result<Self> {
        let task = Dynamics {
            dim,
            tokens,
            teachers: Teachers::Orthogonal,
            map: Map::Linear,
            observed: None,
            noise: 0.01,
            start: Start::Uniform(1.0),
            clip: 10.0,
            switch: None,
        };
        task.check()?;
        Ok(task)
    }

    /// Contracting linear dynamics, states clipped to ±2 (`mesa` Fig. 11).
    ///
    /// # Errors
    /// As [`Dynamics::linear`].
    pub fn contracting(dim: usize, tokens: usize) -> Result<Self> {
        Ok(Dynamics { teachers: Teachers::Contracting, clip: 2.0, ..Dynamics::linear(dim, tokens)? })
    }

    /// Linear dynamics with `count` teachers in all (`mesa` Fig. 12 for one).
    ///
    /// # Errors
    /// As [`Dynamics::linear`]; [`Error::Invalid`] for no teacher.
    pub fn pool(dim: usize, tokens: usize, count: usize) -> Result<Self> {
        let task = Dynamics { teachers: Teachers::Pool { count, seed: 42 }, ..Dynamics::linear(dim, tokens)? };
        task.check()?;
        Ok(task)
    }

    /// Linear dynamics of which `observed` random projections are seen (`mesa` Fig. 7B).
    ///
    /// # Errors
    /// As [`Dynamics::linear`]; [`Error::Invalid`] if nothing is observed.
    pub fn partial(dim: usize, observed: usize, tokens: usize) -> Result<Self> {
        let task = Dynamics { observed: Some(observed), ..Dynamics::linear(dim, tokens)? };
        task.check()?;
        Ok(task)
    }

    /// Non-linear dynamics of norm 1, s_1 ~ U(−0.25, 0.25) (`mesa` Fig. 7C).
    ///
    /// # Errors
    /// As [`Dynamics::linear`]; [`Error::Invalid`] for no hidden unit.
    pub fn nonlinear(dim: usize, hidden: usize, tokens: usize) -> Result<Self> {
        let task = Dynamics { map: Map::Mlp { hidden }, start: Start::Uniform(0.25), ..Dynamics::linear(dim, tokens)? };
        task.check()?;
        Ok(task)
    }

    /// Whether there is such a task.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a size is 0 or what it makes does not fit in memory, the noise negative, or the clip or the start not
    /// positive.
    pub fn check(&self) -> Result<()> {
        let hidden = if let Map::Mlp { hidden } = self.map { hidden } else { 1 };
        let count = if let Teachers::Pool { count, .. } = self.teachers { count } else { 1 };
        for (what, size) in [
            ("dimension n", self.dim),
            ("tokens T", self.tokens),
            ("observed dimension", self.observed.unwrap_or(1)),
            ("hidden units", hidden),
            ("teachers", count),
        ] {
            if size == 0 {
                return Err(Error::invalid(what, 0, "at least 1"));
            }
        }
        array_len::<f64>("teachers", &[count, self.dim, self.dim])?;
        array_len::<f64>("projection", &[self.observed(), self.dim])?;
        array_len::<f64>("hidden units", &[hidden, self.dim])?;
        if !(self.noise.is_finite() && self.noise >= 0.0) {
            return Err(Error::invalid("noise", self.noise, "a standard deviation of at least 0"));
        }
        let range = if let Start::Uniform(range) = self.start { range } else { 1.0 };
        // States are drawn from an interval of twice the range.
        if !(self.clip > 0.0 && (2.0 * range).is_finite() && range > 0.0) {
            return Err(Error::invalid("clip and start", format!("{}, {range}", self.clip), "positive numbers"));
        }
        Ok(())
    }

    /// Dimension of what is observed.
    pub fn observed(&self) -> usize {
        self.observed.unwrap_or(self.dim)
    }

    /// The fixed MLP f of non-linear dynamics: (A, B); `None` for linear ones.
    pub fn mlp(&self) -> Option<(Matrix, Matrix)> {
        let Map::Mlp { hidden } = self.map else { return None };
        let gaussian = |seed, rows, columns| {
            let mut rng = stream(seed, "mlp", 0);
            Matrix::from_fn(rows, columns, |_, _| 1.1 * normal(&mut rng))
        };
        // The authors' two keys.
        Some((gaussian(421, hidden, self.dim), gaussian(422, self.dim, hidden)))
    }

    /// The teachers of a pool; none for other laws.
    pub fn pool_teachers(&self) -> Vec<Matrix> {
        match self.teachers {
            Teachers::Pool { count, seed } => {
                (0..count as u64).map(|i| orthogonal(self.dim, &mut stream(seed, "teachers", i))).collect()
            }
            Teachers::Orthogonal | Teachers::Contracting => Vec::new(),
        }
    }

    /// `batch` sequences, a function of `seed` alone.
    ///
    /// # Errors
    /// As [`Dynamics::check`]; [`Error::Invalid`] for an empty batch, or one that does not fit in memory.
    pub fn sample(&self, batch: usize, seed: u64) -> Result<Trajectories> {
        self.check()?;
        if batch == 0 {
            return Err(Error::invalid("batch", 0, "at least 1 sequence"));
        }
        let (n, seen, length) = (self.dim, self.observed(), self.tokens.saturating_add(1));
        let mut states = vec![0.0; array_len::<f64>("sequences", &[batch, length, seen])?];
        let pool = self.pool_teachers();
        let mlp = self.mlp();
        states.par_chunks_mut(length * seen).enumerate().for_each(|(i, out)| {
            let mut rng = stream(seed, "sequences", i as u64);
            let mut teacher = self.teacher(&pool, &mut rng);
            let projection = self.observed.map(|seen| Matrix::from_fn(seen, n, |_, _| 0.5 * normal(&mut rng)));
            let mut h: Vec<f64> = (0..n)
                .map(|_| match self.start {
                    Start::Uniform(range) => rng.gen_range(-range..range),
                    Start::Gaussian => normal(&mut rng),
                })
                .collect();
            for (t, out) in out.chunks_mut(seen).enumerate() {
                if t > 0 {
                    if self.switch == Some(t) {
                        teacher = self.teacher(&pool, &mut rng);
                    }
                    let features = match &mlp {
                        None => h,
                        Some(mlp) => {
                            let f = features(mlp, &h);
                            let norm = f.iter().map(|v| v * v).sum::<f64>().sqrt().max(1e-12);
                            f.into_iter().map(|v| v / norm).collect()
                        }
                    };
                    h = teacher.mul_vec(&features);
                    h.iter_mut().for_each(|v| *v = (*v + self.noise * normal(&mut rng)).clamp(-self.clip, self.clip));
                }
                match &projection {
                    None => out.copy_from_slice(&h),
                    Some(c) => {
                        let seen = c.mul_vec(&h);
                        out.iter_mut().zip(seen).for_each(|(o, v)| *o = v + self.noise * normal(&mut rng));
                    }
                }
            }
        });
        Trajectories::new(batch, length, seen, states)
    }

    fn teacher(&self, pool: &[Matrix], rng: &mut ChaCha8Rng) -> Matrix {
        match self.teachers {
            Teachers::Orthogonal => orthogonal(self.dim, rng),
            Teachers::Contracting => contracting(self.dim, rng),
            Teachers::Pool { count, .. } => pool[rng.gen_range(0..count)].clone(),
        }
    }
}

/// f(h) = B gelu(A h), gelu in its tanh form.
pub fn features((a, b): &(Matrix, Matrix), h: &[f64]) -> Vec<f64> {
    let gelu = |x: f64| 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044_715 * x.powi(3))).tanh());
    let hidden: Vec<f64> = a.mul_vec(h).into_iter().map(gelu).collect();
    b.mul_vec(&hidden)
}

fn normal(rng: &mut ChaCha8Rng) -> f64 {
    StandardNormal.sample(rng)
}

/// A uniform (Haar) orthogonal matrix: Gram and Schmidt on Gaussian rows, each orthogonalised twice.
pub fn orthogonal(dim: usize, rng: &mut ChaCha8Rng) -> Matrix {
    let mut rows: Vec<Vec<f64>> = Vec::with_capacity(dim);
    while rows.len() < dim {
        let mut row: Vec<f64> = (0..dim).map(|_| normal(rng)).collect();
        for _ in 0..2 {
            for other in &rows {
                let inner: f64 = row.iter().zip(other).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(other).for_each(|(a, b)| *a -= inner * b);
            }
        }
        let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
        // A row in the span of the others has probability 0; drawn again, it leaves the law as it is.
        if norm > 1e-8 {
            row.iter_mut().for_each(|v| *v /= norm);
            rows.push(row);
        }
    }
    Matrix::from_fn(dim, dim, |i, j| rows[i][j])
}

/// U diag(e) U⁻¹ with e_i ~ U(0.3, 0.9), one of them 0.9.
fn contracting(dim: usize, rng: &mut ChaCha8Rng) -> Matrix {
    loop {
        let u = Matrix::from_fn(dim, dim, |_, _| normal(rng));
        let mut e: Vec<f64> = (0..dim).map(|_| rng.gen_range(0.3..0.9)).collect();
        e[rng.gen_range(0..dim)] = 0.9;
        let scaled = Matrix::from_fn(dim, dim, |i, j| u[(i, j)] * e[j]);
        // W Uᵀ... row by row: W = (U E) U⁻¹ solves Uᵀ w_iᵀ = (U E)ᵀ_i.
        let transposed = u.transpose();
        let rows: Result<Vec<Vec<f64>>> =
            (0..dim).map(|i| crate::linalg::solve(&transposed, &scaled.as_slice()[i * dim..][..dim])).collect();
        // A singular U has probability 0 and is drawn again.
        if let Ok(rows) = rows {
            return Matrix::from_fn(dim, dim, |i, j| rows[i][j]);
        }
    }
}

/// What a model reads at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenKind {
    /// e_t = s_t.
    States,
    /// e_t = [0, s_t, s_t, s_{t−1}], s_0 = 0: the authors' constructed tokens; the prediction is read from channel 1.
    Constructed,
    /// e_t = [0, 0, s_t, s_{t−1}]: the same for models of one layer.
    ConstructedMasked,
}

impl TokenKind {
    /// Channels of a token for observations of dimension `dim`.
    pub fn channels(self, dim: usize) -> usize {
        if self == TokenKind::States { dim } else { 4 * dim }
    }
}

/// A batch of sequences of observations.
#[derive(Clone, Debug, PartialEq)]
pub struct Trajectories {
    batch: usize,
    length: usize,
    dim: usize,
    states: Vec<f64>,
}

impl Trajectories {
    /// Trajectories from data `[batch, length, dim]`, row-major.
    ///
    /// # Errors
    /// [`Error::Shape`] unless the values fill the shape, there is a sequence and each has two states.
    pub fn new(batch: usize, length: usize, dim: usize, states: Vec<f64>) -> Result<Self> {
        let len = array_len::<f64>("sequences", &[batch, length, dim])?;
        if len == 0 || length < 2 || states.len() != len {
            let expected = format!("[{batch}, {length}, {dim}], a length of at least 2");
            return Err(Error::shape("sequences", &[states.len()], expected));
        }
        crate::error::all_finite("sequences", states.iter().copied())?;
        Ok(Trajectories { batch, length, dim, states })
    }

    /// Number of sequences.
    pub fn len(&self) -> usize {
        self.batch
    }

    /// Whether there are none (never, by construction).
    pub fn is_empty(&self) -> bool {
        self.batch == 0
    }

    /// The first `count` of them, or all if there are fewer.
    ///
    /// # Errors
    /// [`Error::Shape`] for none.
    pub fn first(&self, count: usize) -> Result<Trajectories> {
        let batch = count.min(self.batch);
        let states = self.states[..batch * self.length * self.dim].to_vec();
        Trajectories::new(batch, self.length, self.dim, states)
    }

    /// Tokens T that a model sees: one less than the observations.
    pub fn tokens(&self) -> usize {
        self.length - 1
    }

    /// Dimension of an observation.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The observations of sequence `i`, `[T + 1, dim]` row-major.
    ///
    /// # Panics
    /// If `i` is not below [`Trajectories::len`], like indexing a slice.
    pub fn states(&self, i: usize) -> &[f64] {
        &self.states[i * self.length * self.dim..][..self.length * self.dim]
    }

    /// The tokens that a model reads, `[batch, T, channels]`.
    ///
    /// # Errors
    /// [`Error::Invalid`] if they do not fit in memory.
    pub fn inputs<T: OnLanes>(&self, kind: TokenKind) -> Result<LaneBatch<T>> {
        let (n, t, channels) = (self.dim, self.tokens(), kind.channels(self.dim));
        let mut values = vec![0.0; array_len::<f64>("tokens", &[self.batch, t, channels])?];
        for (sequence, out) in self.states.chunks(self.length * n).zip(values.chunks_mut(t * channels)) {
            for (t, out) in out.chunks_mut(channels).enumerate() {
                let state = &sequence[t * n..][..n];
                if kind == TokenKind::States {
                    out.copy_from_slice(state);
                    continue;
                }
                if kind == TokenKind::Constructed {
                    out[n..2 * n].copy_from_slice(state);
                }
                out[2 * n..3 * n].copy_from_slice(state);
                if t > 0 {
                    out[3 * n..].copy_from_slice(&sequence[(t - 1) * n..][..n]);
                }
            }
        }
        LaneBatch::new(self.batch, t, channels, &values)
    }

    /// The observations that follow each token, `[batch, T, dim]`.
    ///
    /// # Errors
    /// As [`Trajectories::inputs`].
    pub fn targets<T: OnLanes>(&self) -> Result<LaneBatch<T>> {
        let n = self.dim;
        let values: Vec<f64> = self.states.chunks(self.length * n).flat_map(|s| s[n..].iter().copied()).collect();
        LaneBatch::new(self.batch, self.tokens(), n, &values)
    }

    /// The per-token loss of predictions `[batch, T, dim]`: Σ over dimensions of squares / 2, the mean over the batch, `[T]`
    /// (the authors' convention; its mean over t is the training loss).
    ///
    /// # Errors
    /// [`Error::Shape`] if the predictions have another shape.
    pub fn losses(&self, predictions: &[f64]) -> Result<Vec<f64>> {
        let (n, tokens) = (self.dim, self.tokens());
        if predictions.len() != self.batch * tokens * n {
            return Err(Error::shape("predictions", &[predictions.len()], format!("[{}, {tokens}, {n}]", self.batch)));
        }
        let mut losses = vec![0.0; tokens];
        for (sequence, predicted) in self.states.chunks(self.length * n).zip(predictions.chunks(tokens * n)) {
            for (t, loss) in losses.iter_mut().enumerate() {
                let (target, p) = (&sequence[(t + 1) * n..][..n], &predicted[t * n..][..n]);
                *loss += target.iter().zip(p).map(|(y, p)| (y - p).powi(2)).sum::<f64>() / (2 * self.batch) as f64;
            }
        }
        Ok(losses)
    }

    /// The same sequences with every observation s replaced by `f(s)`, of dimension `dim`.
    ///
    /// # Errors
    /// [`Error::Shape`] if `f` gives another dimension, or 0.
    pub fn mapped(&self, dim: usize, f: impl Fn(&[f64]) -> Vec<f64>) -> Result<Trajectories> {
        let states = self.states.chunks(self.dim).flat_map(f).collect();
        Trajectories::new(self.batch, self.length, dim, states)
    }

    /// The same sequences with the last `k` observations stacked, newest first, 0 before the first: `[batch, T + 1, k dim]`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for k = 0.
    pub fn stacked(&self, k: usize) -> Result<Trajectories> {
        if k == 0 {
            return Err(Error::invalid("stacked observations", 0, "at least 1"));
        }
        let n = self.dim;
        let mut states = vec![0.0; array_len::<f64>("stacked observations", &[self.batch, self.length, k, n])?];
        for (sequence, out) in self.states.chunks(self.length * n).zip(states.chunks_mut(self.length * k * n)) {
            for (t, out) in out.chunks_mut(k * n).enumerate() {
                for (back, out) in out.chunks_mut(n).enumerate().take(t + 1) {
                    out.copy_from_slice(&sequence[(t - back) * n..][..n]);
                }
            }
        }
        Trajectories::new(self.batch, self.length, k * n, states)
    }
}
