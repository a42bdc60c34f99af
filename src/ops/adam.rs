//! Adam's update, with the instructions of the machine. Every operation is rounded on its own, so that the
//! result is the same on all of them.

use rayon::prelude::*;

use super::simd::{Job, Simd, WIDTH, dispatch};

/// The numbers of a step: those of [`crate::train::Adam`] with their corrections.
#[derive(Clone, Copy)]
pub(crate) struct Step {
    /// Rate over the bias correction of the first moment.
    pub rate: f32,
    /// Root of the bias correction of the second moment.
    pub correction: f32,
    /// What is left of a parameter after weight decay.
    pub decay: f32,
    pub betas: [f32; 2],
    pub epsilon: f32,
}

/// Entries in a piece of work.
const PIECE: usize = 1 << 15;

/// [`movement`] for every tensor.
pub(crate) fn movements(step: Step, gradients: &mut [Vec<f32>], first: &mut [Vec<f32>], second: &mut [Vec<f32>]) {
    gradients.par_iter_mut().zip(first).zip(second).for_each(|((g, m), v)| movement(step, g, m, v));
}

/// m ← β₁ m + (1 - β₁) g, v ← β₂ v + (1 - β₂) g², and g ← rate m / (sqrt(v) / correction + ε): what the parameters of a tensor
/// are to be moved by.
pub(crate) fn movement(step: Step, gradient: &mut [f32], first: &mut [f32], second: &mut [f32]) {
    if gradient.len() <= PIECE {
        // To ask the thread pool takes longer than to do this.
        return dispatch(Update { step, g: gradient, m: first, v: second });
    }
    let pieces = gradient.par_chunks_mut(PIECE).zip(first.par_chunks_mut(PIECE)).zip(second.par_chunks_mut(PIECE));
    pieces.for_each(|((g, m), v)| dispatch(Update { step, g, m, v }));
}

/// p ← decay p - movement.
pub(crate) fn apply(step: Step, params: &mut [f32], movement: &[f32]) {
    params.iter_mut().zip(movement).for_each(|(p, movement)| *p = *p * step.decay - movement);
}

struct Update<'a> {
    step: Step,
    g: &'a mut [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
}

impl Job for Update<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd>(self) {
        let Update { step, g, m, v } = self;
        let ((g, g_end), (m, m_end), (v, v_end)) = (g.as_chunks_mut(), m.as_chunks_mut(), v.as_chunks_mut());
        for i in 0..g.len().min(m.len()).min(v.len()) {
            update::<V>(step, &mut g[i], &mut m[i], &mut v[i]);
        }
        // The last vector, filled up.
        let mut last = [[0.0; WIDTH]; 3];
        let len = g_end.len();
        last[0][..len].copy_from_slice(g_end);
        last[1][..len].copy_from_slice(m_end);
        last[2][..len].copy_from_slice(v_end);
        let [g, m, v] = &mut last;
        update::<V>(step, g, m, v);
        g_end.copy_from_slice(&g[..len]);
        m_end.copy_from_slice(&m[..len]);
        v_end.copy_from_slice(&v[..len]);
    }
}

#[inline(always)]
fn update<V: Simd>(step: Step, g: &mut [f32; WIDTH], m: &mut [f32; WIDTH], v: &mut [f32; WIDTH]) {
    let [b1, b2] = step.betas;
    let gradient = V::load(g);
    let first = V::splat(b1).mul(V::load(m)).add(V::splat(1.0 - b1).mul(gradient));
    let second = V::splat(b2).mul(V::load(v)).add(V::splat(1.0 - b2).mul(gradient).mul(gradient));
    let size = second.sqrt().div(V::splat(step.correction)).add(V::splat(step.epsilon));
    V::splat(step.rate).mul(first).div(size).store(g);
    first.store(m);
    second.store(v);
}
