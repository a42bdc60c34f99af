//! The whole L-layer linear-attention transformer of `pgd` as one op on the dfdx tape, in the sparse parametrisation.
//!
//! Layer l holds P_l = [B_l 0; 0 1] and Q_l = [A_l 0; 0 0] (eq. 11; eq. 8 is B_l = 0). Written for the sufficient
//! statistics G = X M Xᵀ/n, g = X M Yᵀ/n, the query x and its label slot q, the layer
//! Z ← Z + (1/n) P Z M (Zᵀ Q Z) becomes
//!
//! ```text
//! q ← q + gᵀ A x            h = g + G Aᵀ g
//! x ← R x,   g ← R h,   G ← R G Rᵀ        with R = I + B G A
//! ```
//!
//! which is free of n. The last layer changes q alone and the one before it need not update G, so a training step at
//! the authors' setting costs a few thousand operations a prompt instead of some fifty thousand. The backward pass
//! recomputes the forward one: storing it would cost more memory traffic than it saves arithmetic.

use std::sync::Arc;

use dfdx::prelude::*;
use rayon::prelude::*;

use super::contiguous;
use super::lanes::{Kernel, LANES, Lanes, Real, Vector, dispatch};
use super::matrices::*;
use super::moments::{Moments, stride};
use crate::{Error, Result};

/// Parameters of every layer: `[layers, 2, d, d]`, B_l at index 0 and A_l at index 1 of the second axis, as in the
/// authors' `allparam`.
pub type Params<T, Tp = NoneTape> = Tensor<(usize, usize, usize, usize), T, Cpu, Tp>;

/// The scalars for which the op is compiled.
pub trait Fused: Real {
    /// The label slot [Z_L]_{d+1,n+1} of every prompt, `[batch]`.
    #[doc(hidden)]
    fn forward(moments: &Moments<Self>, params: &[Self], layers: usize) -> Vec<Self>;
    /// The gradient in `params` for the gradient `e` in the label slots.
    #[doc(hidden)]
    fn backward(moments: &Moments<Self>, params: &[Self], layers: usize, e: &[Self]) -> Vec<f64>;
}

macro_rules! fused {
    ($($t:ty),*) => {$(
        impl Fused for $t {
            fn forward(moments: &Moments<Self>, params: &[Self], layers: usize) -> Vec<Self> {
                forward(moments, params, layers)
            }
            fn backward(moments: &Moments<Self>, params: &[Self], layers: usize, e: &[Self]) -> Vec<f64> {
                backward(moments, params, layers, e)
            }
        }
    )*};
}
fused!(f32, f64);

/// The label slot \[Z_L\]_{d+1,n+1} of every prompt, `[batch]`: minus the model's prediction (`pgd` eq. 5).
///
/// Differentiable in `params`; the prompts carry no gradient.
///
/// # Errors
/// [`Error::Shape`] unless `params` is `[layers, 2, d, d]` with the prompts' d and at least one layer.
pub fn linear_transformer<T: Fused, Tp: Tape<T, Cpu>>(
    moments: &Arc<Moments<T>>,
    params: Params<T, Tp>,
) -> Result<Tensor<(usize,), T, Cpu, Tp>> {
    let (layers, two, rows, cols) = *params.shape();
    let d = moments.dim();
    if layers == 0 || (two, rows, cols) != (2, d, d) {
        return Err(Error::shape("parameters", &[layers, two, rows, cols], format!("[layers >= 1, 2, {d}, {d}]")));
    }
    let device = params.device().clone();
    let (params, mut tape) = contiguous("parameters", params)?.split_tape();
    let values = params.as_vec();
    let out = device
        .try_tensor_from_vec(T::forward(moments, &values, layers), (moments.len(),))
        .map_err(|e| Error::numerical("linear transformer", e.to_string()))?;
    let (output, moments) = (out.clone(), Arc::clone(moments));
    tape.add_backward_op(move |gradients| {
        let e = gradients.get_or_alloc_mut(&output)?.to_vec();
        let gradient = T::backward(&moments, &values, layers, &e);
        let into = gradients.get_or_alloc_mut(&params)?;
        into.iter_mut().zip(gradient).for_each(|(g, v)| *g += T::of(v));
        Ok(())
    });
    Ok(out.put_tape(tape))
}

/// The gradient in `params`, `[layers, 2, d, d]` row-major, to be read or changed in place; zero if there is none.
///
/// # Errors
/// [`Error::Numerical`] if it could not be allocated.
pub fn gradient_mut<'g, T: Real>(gradients: &'g mut Gradients<T, Cpu>, params: &Params<T>) -> Result<&'g mut [T]> {
    let gradient = gradients.get_or_alloc_mut(params).map_err(|e| Error::numerical("gradient", e.to_string()))?;
    Ok(gradient.as_mut_slice())
}

/// Tiles in a piece of work: enough to pay for a task, few enough to balance two threads.
const TILES: usize = 32;

fn forward<T: Real>(moments: &Moments<T>, params: &[T], layers: usize) -> Vec<T> {
    let (d, stride) = (moments.dim(), stride(moments.dim()));
    let mut out = vec![T::default(); moments.len()];
    out.par_chunks_mut(TILES * LANES).zip(moments.tiles().par_chunks(TILES * stride)).for_each(|(out, tiles)| {
        dispatch(Forward { d, layers, params, tiles, out });
    });
    out
}

fn backward<T: Real>(moments: &Moments<T>, params: &[T], layers: usize, e: &[T]) -> Vec<f64> {
    let (d, stride) = (moments.dim(), stride(moments.dim()));
    // One sum a piece, added up in the order of the pieces: the result does not depend on the number of threads.
    let pieces: Vec<Vec<f64>> = e
        .par_chunks(TILES * LANES)
        .zip(moments.tiles().par_chunks(TILES * stride))
        .map(|(e, tiles)| dispatch(Backward { d, layers, params, tiles, e }))
        .collect();
    let mut sum = vec![0.0; params.len()];
    for piece in pieces {
        sum.iter_mut().zip(piece).for_each(|(s, v)| *s += v);
    }
    sum
}

struct Forward<'a, T> {
    d: usize,
    layers: usize,
    params: &'a [T],
    tiles: &'a [Lanes<T>],
    out: &'a mut [T],
}

impl<T: Real> Kernel<T> for Forward<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector<T>>(self) {
        if V::UNROLL && self.d == 5 { self.tiles::<V, 5>() } else { self.tiles::<V, 0>() }
    }
}

impl<T: Real> Forward<'_, T> {
    #[inline(always)]
    fn tiles<V: Vector<T>, const D: usize>(self) {
        let d = if D == 0 { self.d } else { D };
        let mut state = State::<T, D>::new(d, self.layers);
        for (tile, out) in self.tiles.chunks(stride(d)).zip(self.out.chunks_mut(LANES)) {
            let q = state.forward::<V>(self.params, tile);
            out.copy_from_slice(&q.0[..out.len()]);
        }
    }
}

struct Backward<'a, T> {
    d: usize,
    layers: usize,
    params: &'a [T],
    tiles: &'a [Lanes<T>],
    e: &'a [T],
}

impl<T: Real> Kernel<T> for Backward<'_, T> {
    type Output = Vec<f64>;
    #[inline(always)]
    fn run<V: Vector<T>>(self) -> Vec<f64> {
        if V::UNROLL && self.d == 5 { self.tiles::<V, 5>() } else { self.tiles::<V, 0>() }
    }
}

impl<T: Real> Backward<'_, T> {
    #[inline(always)]
    fn tiles<V: Vector<T>, const D: usize>(self) -> Vec<f64> {
        let d = if D == 0 { self.d } else { D };
        let mut state = State::<T, D>::new(d, self.layers);
        let mut gradient = vec![Lanes::zero(); self.params.len()];
        for (tile, e) in self.tiles.chunks(stride(d)).zip(self.e.chunks(LANES)) {
            let mut lanes = Lanes::zero();
            lanes.0[..e.len()].copy_from_slice(e);
            state.forward::<V>(self.params, tile);
            state.backward::<V>(self.params, &lanes, &mut gradient);
        }
        gradient.iter().map(Lanes::sum).collect()
    }
}

/// What the forward pass leaves for the backward one, of one tile: for each layer the matrices G, C = G A, R, R G and
/// the vectors of [`Vectors`].
struct State<T, const D: usize> {
    d: usize,
    layers: usize,
    matrices: Vec<Lanes<T>>,
    vectors: Vec<Lanes<T>>,
    /// Adjoints of G, g and x, and room for intermediate ones.
    adjoint: Vec<Lanes<T>>,
}

/// The vectors of a layer, in the order in which they are stored: g, x, v = Aᵀ g, h = g + G v, and for u in {h, x}:
/// s = A u and t = G s.
const G_: usize = 0;
const X_: usize = 1;
const V_: usize = 2;
const H_: usize = 3;
const SH: usize = 4;
const TH: usize = 5;
const SX: usize = 6;
const TX: usize = 7;
const VECTORS: usize = 8;
const MATRICES: usize = 4;

impl<T: Real, const D: usize> State<T, D> {
    fn new(d: usize, layers: usize) -> Self {
        State {
            d,
            layers,
            matrices: vec![Lanes::zero(); layers * MATRICES * d * d],
            vectors: vec![Lanes::zero(); layers * VECTORS * d],
            adjoint: vec![Lanes::zero(); 5 * d * d + 6 * d],
        }
    }

    #[inline(always)]
    fn d(&self) -> usize {
        if D == 0 { self.d } else { D }
    }

    #[inline(always)]
    fn forward<V: Vector<T>>(&mut self, params: &[T], tile: &[Lanes<T>]) -> Lanes<T> {
        let d = self.d();
        let dd = d * d;
        self.matrices[..dd].copy_from_slice(&tile[..dd]);
        self.vectors[G_ * d..][..2 * d].copy_from_slice(&tile[dd..][..2 * d]);
        let mut q = V::splat(T::default());
        for l in 0..self.layers {
            let b = &params[2 * l * dd..][..dd];
            let a = &params[(2 * l + 1) * dd..][..dd];
            let (now, next) = self.vectors[l * VECTORS * d..].split_at_mut(VECTORS * d);
            let (matrices, matrices_next) = self.matrices[l * MATRICES * dd..].split_at_mut(MATRICES * dd);
            let (gram, work) = matrices.split_at_mut(dd);
            let (g, now) = now.split_at_mut(d);
            let (x, now) = now.split_at_mut(d);
            let (v, now) = now.split_at_mut(d);
            let (h, now) = now.split_at_mut(d);
            let (sh, now) = now.split_at_mut(d);
            let (th, now) = now.split_at_mut(d);
            let (sx, tx) = now.split_at_mut(d);
            shared_times::<T, V, D, false>(d, a, x, sx);
            for i in 0..d {
                q = q.add_mul(V::load(&g[i]), V::load(&sx[i]));
            }
            if l + 1 == self.layers {
                break;
            }
            shared_transposed_times::<T, V, D, false>(d, a, g, v);
            h.copy_from_slice(g);
            times::<T, V, D, true>(d, gram, v, h);
            shared_times::<T, V, D, false>(d, a, h, sh);
            times::<T, V, D, false>(d, gram, sh, th);
            times::<T, V, D, false>(d, gram, sx, tx);
            let (g_next, x_next) = next[..2 * d].split_at_mut(d);
            g_next.copy_from_slice(h);
            shared_times::<T, V, D, true>(d, b, th, g_next);
            x_next.copy_from_slice(x);
            shared_times::<T, V, D, true>(d, b, tx, x_next);
            // The last layer reads g and x alone: the one before it leaves G.
            if l + 2 < self.layers {
                let (c, work) = work.split_at_mut(dd);
                let (r, rg) = work.split_at_mut(dd);
                // C = G A; R = I + B C; G' = (R G) Rᵀ.
                product_shared::<T, V, D, false, false>(d, gram, a, c);
                for (i, r) in r.iter_mut().enumerate() {
                    *r = Lanes::splat(T::of(if i % (d + 1) == 0 { 1.0 } else { 0.0 }));
                }
                shared_product::<T, V, D, true>(d, b, c, r);
                product::<T, V, D, false>(d, r, gram, rg);
                product_transposed::<T, V, D, false>(d, rg, r, &mut matrices_next[..dd]);
            }
        }
        let mut out = Lanes::zero();
        q.store(&mut out);
        out
    }

    /// Adds the gradient of this tile in `params` to `gradient`, for the gradient `e` in the label slots.
    ///
    /// Adjoints carry the name of what they are the adjoint of; G's is kept symmetric.
    #[inline(always)]
    fn backward<V: Vector<T>>(&mut self, params: &[T], e: &Lanes<T>, gradient: &mut [Lanes<T>]) {
        let d = self.d();
        let dd = d * d;
        let (d_gram, rest) = self.adjoint.split_at_mut(dd);
        let (d_gram_next, rest) = rest.split_at_mut(dd);
        let (d_r, rest) = rest.split_at_mut(dd);
        let (d_c, rest) = rest.split_at_mut(dd);
        let (work, rest) = rest.split_at_mut(dd);
        let (d_g, rest) = rest.split_at_mut(d);
        let (d_x, rest) = rest.split_at_mut(d);
        let (d_t, rest) = rest.split_at_mut(d);
        let (d_s, rest) = rest.split_at_mut(d);
        let (d_h, d_v) = rest.split_at_mut(d);
        for l in (0..self.layers).rev() {
            let b = &params[2 * l * dd..][..dd];
            let a = &params[(2 * l + 1) * dd..][..dd];
            let (before, grad_a) = gradient[..(2 * l + 2) * dd].split_at_mut((2 * l + 1) * dd);
            let grad_b = &mut before[2 * l * dd..];
            let vectors = &self.vectors[l * VECTORS * d..][..VECTORS * d];
            let matrices = &self.matrices[l * MATRICES * dd..][..MATRICES * dd];
            let (gram, c) = (&matrices[..dd], &matrices[dd..2 * dd]);
            let (r, rg) = (&matrices[2 * dd..3 * dd], &matrices[3 * dd..]);
            let (g, x, sx) = (&vectors[G_ * d..][..d], &vectors[X_ * d..][..d], &vectors[SX * d..][..d]);
            if l + 1 == self.layers {
                // q += gᵀ s, s = A x.
                d_s.fill(Lanes::zero());
                add_scaled::<T, V>(e, g, d_s);
                d_g.fill(Lanes::zero());
                add_scaled::<T, V>(e, sx, d_g);
                add_outer::<T, V, D>(d, d_s, x, grad_a);
                shared_transposed_times::<T, V, D, false>(d, a, d_s, d_x);
                d_gram.fill(Lanes::zero());
                continue;
            }
            let keep = l > 0;
            d_gram_next.copy_from_slice(d_gram);
            d_gram.fill(Lanes::zero());
            // x' = x + B t, t = G s, s = A x; and q += gᵀ s.
            let (s, t) = (sx, &vectors[TX * d..][..d]);
            add_outer::<T, V, D>(d, d_x, t, grad_b);
            shared_transposed_times::<T, V, D, false>(d, b, d_x, d_t);
            times::<T, V, D, false>(d, gram, d_t, d_s);
            add_scaled::<T, V>(e, g, d_s);
            add_outer::<T, V, D>(d, d_s, x, grad_a);
            if keep {
                add_outer::<T, V, D>(d, d_t, s, d_gram);
                shared_transposed_times::<T, V, D, true>(d, a, d_s, d_x);
            }
            // g' = h + B t, t = G s, s = A h.
            let (h, s, t) = (&vectors[H_ * d..][..d], &vectors[SH * d..][..d], &vectors[TH * d..][..d]);
            add_outer::<T, V, D>(d, d_g, t, grad_b);
            shared_transposed_times::<T, V, D, false>(d, b, d_g, d_t);
            times::<T, V, D, false>(d, gram, d_t, d_s);
            add_outer::<T, V, D>(d, d_s, h, grad_a);
            d_h.copy_from_slice(d_g);
            shared_transposed_times::<T, V, D, true>(d, a, d_s, d_h);
            if keep {
                add_outer::<T, V, D>(d, d_t, s, d_gram);
            }
            // h = g + G v, v = Aᵀ g.
            times::<T, V, D, false>(d, gram, d_h, d_v);
            add_outer::<T, V, D>(d, g, d_v, grad_a);
            if keep {
                add_outer::<T, V, D>(d, d_h, &vectors[V_ * d..][..d], d_gram);
                d_g.copy_from_slice(d_h);
                shared_times::<T, V, D, true>(d, a, d_v, d_g);
                add_scaled::<T, V>(e, sx, d_g);
            }
            if l + 2 < self.layers {
                // G' = R G Rᵀ with R = I + B C, C = G A: R̄ = 2 Ḡ' R G, where twice comes with the symmetric Ḡ'.
                product::<T, V, D, false>(d, d_gram_next, rg, work);
                d_r.copy_from_slice(work);
                add_scaled::<T, V>(&Lanes::splat(T::of(1.0)), work, d_r);
                product_transposed::<T, V, D, true>(d, d_r, c, grad_b);
                shared_transposed_product::<T, V, D, false>(d, b, d_r, d_c);
                product::<T, V, D, true>(d, gram, d_c, grad_a);
                if keep {
                    product_shared::<T, V, D, true, true>(d, d_c, a, d_gram);
                    product::<T, V, D, false>(d, d_gram_next, r, work);
                    transposed_product::<T, V, D, true>(d, r, work, d_gram);
                }
            }
            if keep {
                let half = V::splat(T::of(0.5));
                for i in 0..d {
                    for j in 0..=i {
                        let (lower, upper) = (V::load(&d_gram[i * d + j]), V::load(&d_gram[j * d + i]));
                        let mean = V::splat(T::default()).add_mul(half, lower).add_mul(half, upper);
                        mean.store(&mut d_gram[i * d + j]);
                        mean.store(&mut d_gram[j * d + i]);
                    }
                }
            }
        }
    }
}
