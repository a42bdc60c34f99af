//! A transformer with normalised ReLU attention whose weights are written down by hand (`newton` section B.2).

use crate::linalg::{Matrix, dot};
use crate::{Error, Result};

/// Which tokens a token attends to, and what the sum over them is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Averaging {
    /// All N tokens, divided by N.
    Full,
    /// The first t tokens for token t, from 1, divided by t.
    Causal,
}

/// A head: ReLU(⟨Q h_t, K h_j⟩) V h_j.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// Q, rows x width.
    pub query: Matrix,
    /// K, rows x width.
    pub key: Matrix,
    /// V, width x width.
    pub value: Matrix,
}

/// A layer: what a transformer does with its tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum Layer {
    /// h_t ← h_t + (1/N) Σ_m Σ_j ReLU(⟨Q_m h_t, K_m h_j⟩) V_m h_j, then h ← h + W_2 ReLU(W_1 h).
    Attention {
        /// The heads.
        heads: Vec<Head>,
        /// W_1 (hidden x width) and W_2 (width x hidden); no MLP if `None`.
        mlp: Option<(Matrix, Matrix)>,
    },
    /// Akyürek et al.'s `mov`: a slot of one token is copied to a slot of another, or of the same one.
    Move {
        /// First coordinate and length of the slot that is read.
        from: (usize, usize),
        /// First coordinate of the slot that is written.
        to: usize,
        /// From which tokens to which.
        route: Route,
    },
    /// Akyürek et al.'s `aff`: h ← A h.
    Affine(Matrix),
    /// Akyürek et al.'s `mul` of a number and a vector: slot `to` becomes h\[scalar\] times slot `vector`.
    Scale {
        /// The number's coordinate.
        scalar: usize,
        /// First coordinate and length of the vector's slot.
        vector: (usize, usize),
        /// First coordinate of the slot that is written.
        to: usize,
    },
    /// Akyürek et al.'s `mul` of a row and a column: coordinate `to` becomes the inner product of two slots.
    Inner {
        /// First coordinates of the two slots, and their length.
        slots: (usize, usize, usize),
        /// The coordinate that is written.
        to: usize,
    },
}

/// The tokens of a [`Layer::Move`], in a sequence x_1, y_1, …, x_n, y_n, x_test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Within each of x_1, …, x_n.
    Covariates,
    /// From x_i to y_i.
    ToLabels,
    /// From the first token to the last.
    ToLast,
}

/// Layers applied one after the other.
///
/// Attention layers are weights. The operations of Akyürek et al. (2023, Lemma 1) are applied as such, exactly: each is one
/// layer of softmax attention and GELU, whose weights reach it to any precision but not to the last bit.
#[derive(Clone, Debug, PartialEq)]
pub struct ReluTransformer {
    /// Coordinates of a token.
    pub width: usize,
    /// What attention averages over.
    pub averaging: Averaging,
    /// The layers.
    pub layers: Vec<Layer>,
}

impl ReluTransformer {
    /// The tokens after the last layer; `tokens` is N x width.
    ///
    /// # Errors
    /// [`Error::Shape`] for tokens of another width, or none, and for a layer whose matrices or slots do not fit the width.
    pub fn forward(&self, tokens: &Matrix) -> Result<Matrix> {
        if tokens.cols() != self.width || tokens.rows() == 0 {
            let given = [tokens.rows(), tokens.cols()];
            return Err(Error::shape("tokens", &given, format!("[at least 1, {}]", self.width)));
        }
        self.layers.iter().try_for_each(|layer| self.fits(layer))?;
        let mut h = tokens.clone();
        for layer in &self.layers {
            h = self.apply(layer, h);
        }
        Ok(h)
    }

    /// Whether the layer's matrices and slots fit the tokens.
    fn fits(&self, layer: &Layer) -> Result<()> {
        let width = self.width;
        let matrix = |what: &str, m: &Matrix, rows: usize| match (m.rows(), m.cols()) == (rows, width) {
            true => Ok(()),
            false => Err(Error::shape(what, &[m.rows(), m.cols()], format!("[{rows}, {width}]"))),
        };
        let slot = |first: usize, len: usize| match first.checked_add(len).is_some_and(|end| end <= width) {
            true => Ok(()),
            false => Err(Error::shape("slot", &[first, len], format!("first coordinate and length within {width}"))),
        };
        match layer {
            Layer::Attention { heads, mlp } => {
                for head in heads {
                    matrix("Q", &head.query, head.query.rows())?;
                    matrix("K", &head.key, head.query.rows())?;
                    matrix("V", &head.value, width)?;
                }
                let Some((w1, w2)) = mlp else { return Ok(()) };
                matrix("W_1", w1, w1.rows())?;
                matrix("transpose of W_2", &w2.transpose(), w1.rows())
            }
            Layer::Move { from, to, .. } => slot(from.0, from.1).and_then(|()| slot(*to, from.1)),
            Layer::Affine(a) => matrix("A", a, width),
            Layer::Scale { scalar, vector, to } => {
                slot(*scalar, 1).and_then(|()| slot(vector.0, vector.1)).and_then(|()| slot(*to, vector.1))
            }
            Layer::Inner { slots: (a, b, len), to } => {
                slot(*a, *len).and_then(|()| slot(*b, *len)).and_then(|()| slot(*to, 1))
            }
        }
    }

    fn apply(&self, layer: &Layer, mut h: Matrix) -> Matrix {
        let tokens = h.rows();
        match layer {
            Layer::Attention { heads, mlp } => {
                let mut out = h.clone();
                for head in heads {
                    let project = |m: &Matrix| h.mul(&m.transpose());
                    let (q, k, v) = (project(&head.query), project(&head.key), project(&head.value));
                    for t in 0..tokens {
                        let seen = if self.averaging == Averaging::Full { tokens } else { t + 1 };
                        for j in 0..seen {
                            let score = dot(q.row(t), k.row(j)).max(0.0) / seen as f64;
                            if score > 0.0 {
                                out.row_mut(t).iter_mut().zip(v.row(j)).for_each(|(o, v)| *o += score * v);
                            }
                        }
                    }
                }
                match mlp {
                    Some((w1, w2)) => {
                        let pre = out.mul(&w1.transpose());
                        let hidden = Matrix::from_fn(pre.rows(), pre.cols(), |i, j| pre[(i, j)].max(0.0));
                        out.plus(1.0, &hidden.mul(&w2.transpose()))
                    }
                    None => out,
                }
            }
            Layer::Move { from, to, route } => {
                let pairs: Vec<(usize, usize)> = match route {
                    Route::Covariates => (0..tokens - 1).step_by(2).map(|t| (t, t)).collect(),
                    Route::ToLabels => (1..tokens).step_by(2).map(|t| (t - 1, t)).collect(),
                    Route::ToLast => vec![(0, tokens - 1)],
                };
                for (source, target) in pairs {
                    let moved = h.row(source)[from.0..][..from.1].to_vec();
                    h.row_mut(target)[*to..][..from.1].copy_from_slice(&moved);
                }
                h
            }
            Layer::Affine(a) => h.mul(&a.transpose()),
            Layer::Scale { scalar, vector, to } => {
                for t in 0..tokens {
                    let scaled: Vec<f64> =
                        h.row(t)[vector.0..][..vector.1].iter().map(|v| h[(t, *scalar)] * v).collect();
                    h.row_mut(t)[*to..][..vector.1].copy_from_slice(&scaled);
                }
                h
            }
            Layer::Inner { slots: (a, b, len), to } => {
                for t in 0..tokens {
                    let row = h.row(t);
                    let product = dot(&row[*a..][..*len], &row[*b..][..*len]);
                    h[(t, *to)] = product;
                }
                h
            }
        }
    }
}
