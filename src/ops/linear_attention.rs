//! One layer of linear attention as an op on the dfdx tape, for any P and Q, over the context or causal.
//!
//! Tokens are rows: Z is `[batch, n+1, D]` with D = d + 1, the transpose of the paper's Z (`pgd` section 2). Linear
//! attention is associative: Z M (Zᵀ Q Z) = (Z M Zᵀ) Q Z needs the D x D matrix G = (1/n) Σ z_i z_iᵀ and no matrix of
//! scores, so a layer costs n D² and not n² D operations.

use dfdx::prelude::*;
use rayon::prelude::*;

use super::contiguous;
use super::lanes::Real;
use crate::{Error, Result};

/// What a token attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// Every token attends to the n tokens of the context; the query is read by none (`pgd` eq. 3, M = diag(I_n, 0)).
    Context,
    /// A token attends to the tokens of the context up to itself. The factor stays 1/n, so that the query's row is
    /// that of [`Mask::Context`] in the first layer.
    Causal,
}

/// Tokens, `[batch, n+1, D]`.
pub type Tokens<T, Tp = NoneTape> = Tensor<(usize, usize, usize), T, Cpu, Tp>;
/// P or Q, `[D, D]`.
pub type Weights<T, Tp = NoneTape> = Tensor<(usize, usize), T, Cpu, Tp>;

/// The scalars for which the op is compiled.
pub trait Attend: Real {
    #[doc(hidden)]
    fn attend(shape: Shape3, z: &[Self], p: &[Self], q: &[Self], mask: Mask) -> Vec<Self>;
    #[doc(hidden)]
    fn attend_backward(shape: Shape3, z: &[Self], p: &[Self], q: &[Self], mask: Mask, e: &[Self]) -> Adjoints<Self>;
}

/// Gradients in the tokens, in P and in Q.
#[doc(hidden)]
pub type Adjoints<T> = (Vec<T>, Vec<f64>, Vec<f64>);

/// Prompts, tokens a prompt, entries a token.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Shape3 {
    batch: usize,
    tokens: usize,
    dim: usize,
}

macro_rules! attend {
    ($($t:ty),*) => {$(
        impl Attend for $t {
            fn attend(shape: Shape3, z: &[Self], p: &[Self], q: &[Self], mask: Mask) -> Vec<Self> {
                forward(shape, z, p, q, mask)
            }
            fn attend_backward(
                shape: Shape3, z: &[Self], p: &[Self], q: &[Self], mask: Mask, e: &[Self],
            ) -> Adjoints<Self> {
                backward(shape, z, p, q, mask, e)
            }
        }
    )*};
}
attend!(f32, f64);

/// Z + (1/n) P Z M (Zᵀ Q Z), tokens as rows (`pgd` eq. 3); differentiable in all three arguments.
///
/// # Errors
/// [`Error::Shape`] unless P and Q are `[D, D]` and there are at least two tokens, a context and a query.
pub fn linear_attention<T: Attend, Tp: Tape<T, Cpu>, Tq: Tape<T, Cpu>, Tz>(
    z: Tokens<T, Tz>,
    p: Weights<T, Tp>,
    q: Weights<T, Tq>,
    mask: Mask,
) -> Result<Tokens<T, Tz>>
where
    Tz: Tape<T, Cpu> + Merge<Tp> + Merge<Tq>,
{
    let (batch, tokens, dim) = *z.shape();
    for (name, (rows, cols)) in [("P", *p.shape()), ("Q", *q.shape())] {
        if (rows, cols) != (dim, dim) {
            return Err(Error::shape(name, &[rows, cols], format!("[{dim}, {dim}]")));
        }
    }
    if batch == 0 || tokens < 2 {
        return Err(Error::shape("tokens", &[batch, tokens, dim], "[batch >= 1, n + 1 >= 2, d + 1]"));
    }
    let shape = Shape3 { batch, tokens, dim };
    let device = z.device().clone();
    let (z, tape_z) = contiguous("tokens", z)?.split_tape();
    let (p, tape_p) = contiguous("P", p)?.split_tape();
    let (q, tape_q) = contiguous("Q", q)?.split_tape();
    let mut tape = tape_z.merge(tape_p).merge(tape_q);
    let (zv, pv, qv) = (z.as_vec(), p.as_vec(), q.as_vec());
    let out = device
        .try_tensor_from_vec(T::attend(shape, &zv, &pv, &qv, mask), (batch, tokens, dim))
        .map_err(|e| Error::numerical("linear attention", e.to_string()))?;
    let output = out.clone();
    tape.add_backward_op(move |gradients| {
        let e = gradients.get_or_alloc_mut(&output)?.to_vec();
        let (dz, dp, dq) = T::attend_backward(shape, &zv, &pv, &qv, mask, &e);
        gradients.get_or_alloc_mut(&z)?.iter_mut().zip(dz).for_each(|(g, v)| *g += v);
        gradients.get_or_alloc_mut(&p)?.iter_mut().zip(dp).for_each(|(g, v)| *g += T::of(v));
        gradients.get_or_alloc_mut(&q)?.iter_mut().zip(dq).for_each(|(g, v)| *g += T::of(v));
        Ok(())
    });
    Ok(out.put_tape(tape))
}

/// Prompts in a piece of work, for sums that do not depend on the number of threads.
const PIECE: usize = 64;

fn forward<T: Real>(shape: Shape3, z: &[T], p: &[T], q: &[T], mask: Mask) -> Vec<T> {
    let Shape3 { tokens, dim, .. } = shape;
    let mut out = z.to_vec();
    out.par_chunks_mut(tokens * dim).zip(z.par_chunks(tokens * dim)).for_each(|(out, z)| {
        let mut gram = Gram::new(tokens, dim);
        let (mut u, mut m) = (vec![T::default(); dim], vec![T::default(); dim]);
        if mask == Mask::Context {
            z.chunks(dim).take(tokens - 1).for_each(|zi| gram.add(zi, zi));
        }
        for (j, (out, zj)) in out.chunks_mut(dim).zip(z.chunks(dim)).enumerate() {
            if mask == Mask::Causal && j + 1 < tokens {
                gram.add(zj, zj);
            }
            times(q, zj, &mut u);
            times(&gram.sum, &u, &mut m);
            for (o, row) in out.iter_mut().zip(p.chunks(dim)) {
                *o += dot(row, &m);
            }
        }
    });
    out
}

fn backward<T: Real>(shape: Shape3, z: &[T], p: &[T], q: &[T], mask: Mask, e: &[T]) -> Adjoints<T> {
    let Shape3 { batch, tokens, dim } = shape;
    let size = tokens * dim;
    let mut dz = e.to_vec();
    let pieces: Vec<(Vec<T>, Vec<T>)> = dz
        .par_chunks_mut(PIECE * size)
        .zip(z.par_chunks(PIECE * size))
        .zip(e.par_chunks(PIECE * size))
        .map(|((dz, z), e)| {
            let (mut dp, mut dq) = (vec![T::default(); dim * dim], vec![T::default(); dim * dim]);
            for ((dz, z), e) in dz.chunks_mut(size).zip(z.chunks(size)).zip(e.chunks(size)) {
                prompt_backward(tokens, dim, z, p, q, mask, e, dz, &mut dp, &mut dq);
            }
            (dp, dq)
        })
        .collect();
    debug_assert_eq!(pieces.len(), batch.div_ceil(PIECE));
    let (mut dp, mut dq) = (vec![0.0; dim * dim], vec![0.0; dim * dim]);
    for (a, b) in pieces {
        dp.iter_mut().zip(a).for_each(|(s, v)| *s += v.f64());
        dq.iter_mut().zip(b).for_each(|(s, v)| *s += v.f64());
    }
    (dz, dp, dq)
}

/// The adjoint of one prompt: with u_j = Q z_j and m_j = G_j u_j, z'_j = z_j + P m_j.
#[allow(clippy::too_many_arguments)]
fn prompt_backward<T: Real>(
    tokens: usize,
    dim: usize,
    z: &[T],
    p: &[T],
    q: &[T],
    mask: Mask,
    e: &[T],
    dz: &mut [T],
    dp: &mut [T],
    dq: &mut [T],
) {
    let token = |v: &[T], j: usize| v[j * dim..][..dim].to_vec();
    let mut gram = Gram::new(tokens, dim);
    // The adjoint of G, summed over the tokens that used it: all of them, or those from j on.
    let mut d_gram = Gram::new(tokens, dim);
    z.chunks(dim).take(tokens - 1).for_each(|zi| gram.add(zi, zi));
    let (mut u, mut m) = (vec![T::default(); dim], vec![T::default(); dim]);
    let (mut dm, mut du) = (vec![T::default(); dim], vec![T::default(); dim]);
    for j in (0..tokens).rev() {
        let (zj, ej) = (token(z, j), token(e, j));
        times(q, &zj, &mut u);
        times(&gram.sum, &u, &mut m);
        times_transposed(p, &ej, &mut dm);
        times(&gram.sum, &dm, &mut du);
        outer(&ej, &m, dp);
        outer(&du, &zj, dq);
        d_gram.add(&dm, &u);
        let dzj = &mut dz[j * dim..][..dim];
        for (k, du) in du.iter().enumerate() {
            dzj.iter_mut().zip(&q[k * dim..][..dim]).for_each(|(d, q)| *d += *q * *du);
        }
        if mask == Mask::Causal && j + 1 < tokens {
            d_gram.add_symmetric_times(&zj, dzj);
            gram.subtract(&zj);
        }
    }
    if mask == Mask::Context {
        for j in 0..tokens - 1 {
            d_gram.add_symmetric_times(&token(z, j), &mut dz[j * dim..][..dim]);
        }
    }
}

/// A D x D sum of outer products with the factor 1/n.
struct Gram<T> {
    dim: usize,
    scale: T,
    sum: Vec<T>,
}

impl<T: Real> Gram<T> {
    fn new(tokens: usize, dim: usize) -> Self {
        Gram { dim, scale: T::of(1.0 / (tokens - 1) as f64), sum: vec![T::default(); dim * dim] }
    }

    fn add(&mut self, a: &[T], b: &[T]) {
        for (row, a) in self.sum.chunks_mut(self.dim).zip(a) {
            let a = *a * self.scale;
            row.iter_mut().zip(b).for_each(|(s, b)| *s += a * *b);
        }
    }

    fn subtract(&mut self, a: &[T]) {
        for (row, x) in self.sum.chunks_mut(self.dim).zip(a) {
            let x = *x * self.scale;
            row.iter_mut().zip(a).for_each(|(s, b)| *s -= x * *b);
        }
    }

    /// `out += (S + Sᵀ) z`.
    fn add_symmetric_times(&self, z: &[T], out: &mut [T]) {
        for i in 0..self.dim {
            for j in 0..self.dim {
                let v = self.sum[i * self.dim + j];
                out[i] += v * z[j];
                out[j] += v * z[i];
            }
        }
    }
}

fn dot<T: Real>(a: &[T], b: &[T]) -> T {
    a.iter().zip(b).fold(T::default(), |s, (a, b)| s + *a * *b)
}

fn times<T: Real>(m: &[T], v: &[T], out: &mut [T]) {
    out.iter_mut().zip(m.chunks(v.len())).for_each(|(o, row)| *o = dot(row, v));
}

fn times_transposed<T: Real>(m: &[T], v: &[T], out: &mut [T]) {
    out.fill(T::default());
    for (row, v) in m.chunks(out.len()).zip(v) {
        out.iter_mut().zip(row).for_each(|(o, m)| *o += *m * *v);
    }
}

fn outer<T: Real>(a: &[T], b: &[T], out: &mut [T]) {
    for (row, a) in out.chunks_mut(b.len()).zip(a) {
        row.iter_mut().zip(b).for_each(|(o, b)| *o += *a * *b);
    }
}
