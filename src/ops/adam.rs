//! Adam's update, and the norm of a gradient, with the instructions of the machine. Every operation is rounded on its own, so
//! that the result is the same on all of them.

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

/// m ← β₁ m + (1 - β₁) g, v ← β₂ v + (1 - β₂) g², and p ← decay p - rate m / (sqrt(v) / correction + ε).
pub(crate) fn update(step: Step, params: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32]) {
    if gradient.len() <= PIECE {
        // To ask the thread pool takes longer than to do this.
        return dispatch(Update { step, p: params, g: gradient, m: first, v: second });
    }
    let moments = first.par_chunks_mut(PIECE).zip(second.par_chunks_mut(PIECE));
    let pieces = params.par_chunks_mut(PIECE).zip(gradient.par_chunks(PIECE)).zip(moments);
    pieces.for_each(|((p, g), (m, v))| dispatch(Update { step, p, g, m, v }));
}

struct Update<'a> {
    step: Step,
    p: &'a mut [f32],
    g: &'a [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
}

impl Job for Update<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd>(self) {
        let Update { step, p, g, m, v } = self;
        let ((p, p_end), (g, g_end)) = (p.as_chunks_mut(), g.as_chunks());
        let ((m, m_end), (v, v_end)) = (m.as_chunks_mut(), v.as_chunks_mut());
        for i in 0..p.len().min(g.len()).min(m.len()).min(v.len()) {
            vector::<V>(step, &mut p[i], &g[i], &mut m[i], &mut v[i]);
        }
        // The last vector, filled up.
        let mut last = [[0.0; WIDTH]; 4];
        let len = p_end.len();
        last[0][..len].copy_from_slice(p_end);
        last[1][..len].copy_from_slice(g_end);
        last[2][..len].copy_from_slice(m_end);
        last[3][..len].copy_from_slice(v_end);
        let [p, g, m, v] = &mut last;
        vector::<V>(step, p, g, m, v);
        p_end.copy_from_slice(&p[..len]);
        m_end.copy_from_slice(&m[..len]);
        v_end.copy_from_slice(&v[..len]);
    }
}

#[inline(always)]
fn vector<V: Simd>(step: Step, p: &mut [f32; WIDTH], g: &[f32; WIDTH], m: &mut [f32; WIDTH], v: &mut [f32; WIDTH]) {
    let [b1, b2] = step.betas;
    let gradient = V::load(g);
    let first = V::splat(b1).mul(V::load(m)).add(V::splat(1.0 - b1).mul(gradient));
    let second = V::splat(b2).mul(V::load(v)).add(V::splat(1.0 - b2).mul(gradient).mul(gradient));
    let size = second.sqrt().div(V::splat(step.correction)).add(V::splat(step.epsilon));
    let movement = V::splat(step.rate).mul(first).div(size);
    V::load(p).mul(V::splat(step.decay)).sub(movement).store(p);
    first.store(m);
    second.store(v);
}

/// The sum of squares, in eight sums that do not wait for each other.
pub(crate) fn sum_of_squares(values: &[f32]) -> f64 {
    dispatch(Squares(values))
}

struct Squares<'a>(&'a [f32]);

impl Job for Squares<'_> {
    type Output = f64;
    // Loops over indices: an iterator's parts may be compiled elsewhere, without the caller's instructions.
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn run<V: Simd>(self) -> f64 {
        let (chunks, rest) = self.0.as_chunks::<8>();
        let mut sums = [0.0; 8];
        for k in 0..chunks.len() {
            for i in 0..8 {
                let v = f64::from(chunks[k][i]);
                sums[i] += v * v;
            }
        }
        for i in 1..8 {
            sums[0] += sums[i];
        }
        let mut end = 0.0;
        for i in 0..rest.len() {
            let v = f64::from(rest[i]);
            end += v * v;
        }
        sums[0] + end
    }
}
