//! Adam's update, and the norm of a gradient, with the instructions of the machine. Every operation is rounded on its own, so
//! that the result is the same on all of them.

use super::simd::{Job, Simd, WIDTH, dispatch};

/// The numbers of a step: those of [`crate::train::Adam`] with their corrections.
#[derive(Clone, Copy)]
pub(crate) struct Step {
    /// Rate over the bias correction of the first moment.
    pub rate: f32,
    /// One over the root of the bias correction of the second moment.
    pub correction: f32,
    /// What is left of a parameter after weight decay.
    pub decay: f32,
    pub betas: [f32; 2],
    pub epsilon: f32,
    /// Every gradient times this is what moves a parameter: clipping of all together, without writing them once more.
    pub clipping: f32,
}

/// Entries in a piece of work.
const PIECE: usize = 1 << 15;

/// A parameter tensor, or a piece of one, with its gradient and its moments.
pub(crate) struct Moving<'a> {
    pub params: &'a mut [f32],
    pub gradient: &'a [f32],
    pub first: &'a mut [f32],
    pub second: &'a mut [f32],
}

impl<'a> Moving<'a> {
    /// Its pieces, each the work of one thread at a time.
    pub fn pieces(self) -> impl Iterator<Item = Moving<'a>> {
        let Moving { params, gradient, first, second } = self;
        let moments = first.chunks_mut(PIECE).zip(second.chunks_mut(PIECE));
        let pieces = params.chunks_mut(PIECE).zip(gradient.chunks(PIECE)).zip(moments);
        pieces.map(|((params, gradient), (first, second))| Moving { params, gradient, first, second })
    }

    /// With g times the step's clipping: m ← β₁ m + (1 - β₁) g, v ← β₂ v + (1 - β₂) g², and
    /// p ← decay p - rate m / (correction sqrt(v) + ε).
    pub fn update(self, step: Step) {
        dispatch(Update { step, piece: self });
    }
}

struct Update<'a> {
    step: Step,
    piece: Moving<'a>,
}

impl Job for Update<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd>(self) {
        let Update { step, piece: Moving { params: p, gradient: g, first: m, second: v } } = self;
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
    let gradient = V::splat(step.clipping).mul(V::load(g));
    let first = V::splat(b1).mul(V::load(m)).add(V::splat(1.0 - b1).mul(gradient));
    let second = V::splat(b2).mul(V::load(v)).add(V::splat(1.0 - b2).mul(gradient).mul(gradient));
    let size = second.sqrt().mul(V::splat(step.correction)).add(V::splat(step.epsilon));
    let movement = V::splat(step.rate).mul(first).div(size);
    V::load(p).mul(V::splat(step.decay)).sub(movement).store(p);
    first.store(m);
    second.store(v);
}

/// The sum of squares, in sums that do not wait for each other.
pub(crate) fn sum_of_squares(values: &[f32]) -> f64 {
    dispatch(Squares(values))
}

/// Sums at a time: four vectors of double precision.
const SUMS: usize = 32;

struct Squares<'a>(&'a [f32]);

impl Job for Squares<'_> {
    type Output = f64;
    // Loops over indices: an iterator's parts may be compiled elsewhere, without the caller's instructions.
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn run<V: Simd>(self) -> f64 {
        let (chunks, rest) = self.0.as_chunks::<SUMS>();
        let mut sums = [0.0; SUMS];
        for k in 0..chunks.len() {
            for i in 0..SUMS {
                let v = f64::from(chunks[k][i]);
                sums[i] += v * v;
            }
        }
        for i in 1..SUMS {
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
