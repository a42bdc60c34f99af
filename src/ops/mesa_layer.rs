//! The mesa layer's head: ridge regression on the tokens so far, solved exactly at every token (`mesa` eq. 4 to 8).
//!
//! ```text
//! Φ_t = argmin ½ Σ_{s≤t} γ^{t-s} ‖v_s − Φ k_s‖² + γ^t ‖Φ‖²_F / (2λ) = S_t R_t,      o_t = Φ_t q_t = S_t q̃_t,  q̃_t = R_t q_t
//! H_t = R_t⁻¹ = γ H_{t−1} + k_t k_tᵀ,  H_0 = I/λ            S_t = γ S_{t−1} + v_t k_tᵀ,  S_0 = 0
//! R_t = γ⁻¹ (R_{t−1} − u uᵀ / (γ + k_tᵀ u)),  u = R_{t−1} k_t,  R_0 = λ I       (Sherman and Morrison)
//! ```
//!
//! The backward pass is in closed form. With e_t = dL/do_t, g_t = S_tᵀ e_t and y_t = R_t g_t,
//!
//! ```text
//! B_s = γ B_{s+1} − y_s q̃_sᵀ = dL/dH_s       D_s = γ D_{s+1} + e_s q̃_sᵀ = dL/dS_s
//! dL/dq_t = y_t     dL/dk_s = (B_s + B_sᵀ) k_s + D_sᵀ v_s     dL/dv_s = D_s k_s     dL/dλ = −γ tr(B_1) / λ²
//! ```
//!
//! so the forward recursion runs once more, and nothing is inverted backwards in time. Both passes are linear in the
//! number of tokens and keep a K x K matrix or two, sixteen sequences side by side.

use super::lane_products::{Extent, OnLanes, Part, Soon, View, product};
use super::lanes::{LANES, Lanes};

/// A head: its queries and keys are `[tokens, key]`, its values and outputs `[tokens, value]`. Values have at most the
/// channels of keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub tokens: usize,
    pub key: usize,
    pub value: usize,
}

impl Head {
    /// Token `t` of queries or keys as a row (or a column) of channels.
    pub fn token(&self, t: usize) -> View {
        View::new(t * self.key, 1, 0)
    }

    /// Token `t` of values or outputs.
    pub fn value_token(&self, t: usize) -> View {
        View::new(t * self.value, 1, 0)
    }

    /// Rows and columns of the state, which makes values of keys.
    pub fn state(&self) -> (usize, usize) {
        (self.value, self.key)
    }
}

/// Matrices and vectors that a head's recursion needs; kept from one to the next.
pub(super) struct Workspace<T> {
    pub r: Vec<Lanes<T>>,
    pub s: Vec<Lanes<T>>,
    pub u: Vec<Lanes<T>>,
    pub w: Vec<Lanes<T>>,
    pub solved: Vec<Lanes<T>>,
    y: Vec<Lanes<T>>,
}

impl<T: OnLanes> Workspace<T> {
    pub fn new(head: &Head) -> Self {
        let zeros = |n: usize| vec![Lanes::zero(); n];
        let Head { tokens, key, value } = *head;
        Workspace {
            r: zeros(key * key),
            s: zeros(value * key),
            u: zeros(key),
            w: zeros(key),
            solved: zeros(tokens * key),
            y: zeros(tokens * key),
        }
    }

    fn restart(&mut self, key: usize, lambda: T) {
        self.s.fill(Lanes::zero());
        for (i, r) in self.r.iter_mut().enumerate() {
            *r = Lanes::splat(if i % (key + 1) == 0 { lambda } else { T::default() });
        }
    }

    /// R_t and S_t from those of the token before.
    fn step(&mut self, head: &Head, t: usize, k: &[Lanes<T>], v: &[Lanes<T>], forget: T) {
        let key = head.key;
        times((key, key), &self.r, false, (k, head.token(t)), (&mut self.u, View::new(0, 1, 0)));
        let mut denominator = Lanes::splat(forget);
        for (u, k) in self.u.iter().zip(&k[head.token(t).at..]) {
            for lane in 0..LANES {
                denominator.0[lane] += u.0[lane] * k.0[lane];
            }
        }
        for (w, u) in self.w.iter_mut().zip(&self.u) {
            for lane in 0..LANES {
                w.0[lane] = u.0[lane] / denominator.0[lane];
            }
        }
        let vector = View::new(0, 1, 0);
        add_outer((key, key), T::of(-1.0), (&self.u, vector), (&self.w, vector), &mut self.r);
        if forget != T::of(1.0) {
            scale(&mut self.r, T::of(1.0) / forget);
            scale(&mut self.s, forget);
        }
        add_outer(head.state(), T::of(1.0), (v, head.value_token(t)), (k, head.token(t)), &mut self.s);
    }
}

/// `out = M x`, or `Mᵀ x`, for a matrix of so many rows and columns in every lane.
pub(super) fn times<T: OnLanes>(
    (rows, columns): (usize, usize),
    m: &[Lanes<T>],
    transposed: bool,
    x: (&[Lanes<T>], View),
    (out, place): (&mut [Lanes<T>], View),
) {
    let (view, rows, inner) =
        if transposed { (View::new(0, 1, columns), columns, rows) } else { (View::new(0, columns, 1), rows, columns) };
    let extent = Extent::new(rows, 1, inner);
    let x = (x.0, View::new(x.1.at, 0, x.1.row));
    product::<T, _, false>(extent, Part::All, T::of(1.0), (m, view), x, (out, place), Soon::nothing());
}

/// `m += a x yᵀ` for a matrix of so many rows and columns.
pub(super) fn add_outer<T: OnLanes>(
    (rows, columns): (usize, usize),
    a: T,
    x: (&[Lanes<T>], View),
    y: (&[Lanes<T>], View),
    m: &mut [Lanes<T>],
) {
    let extent = Extent::new(rows, columns, 1);
    product::<T, _, true>(extent, Part::All, a, x, y, (m, View::new(0, columns, 1)), Soon::nothing());
}

fn scale<T: OnLanes>(m: &mut [Lanes<T>], by: T) {
    m.iter_mut().flat_map(|lanes| &mut lanes.0).for_each(|v| *v *= by);
}

/// The head's output o_t at every token, into `out`.
#[allow(clippy::too_many_arguments)]
pub(super) fn forward<T: OnLanes>(
    head: &Head,
    q: &[Lanes<T>],
    k: &[Lanes<T>],
    v: &[Lanes<T>],
    lambda: T,
    forget: T,
    work: &mut Workspace<T>,
    out: &mut [Lanes<T>],
) {
    let key = head.key;
    work.restart(key, lambda);
    for t in 0..head.tokens {
        work.step(head, t, k, v, forget);
        let here = head.token(t);
        times((key, key), &work.r, false, (q, here), (&mut work.solved, here));
        times(head.state(), &work.s, false, (&work.solved, here), (out, head.value_token(t)));
    }
}

/// Where gradients in q, k and v go.
pub(super) type Into3<'a, T> = (&'a mut [Lanes<T>], &'a mut [Lanes<T>], &'a mut [Lanes<T>]);

/// The gradients in q, k and v for the gradient `e` in the output; returns the gradient in λ, a lane each.
#[allow(clippy::too_many_arguments)]
pub(super) fn backward<T: OnLanes>(
    head: &Head,
    q: &[Lanes<T>],
    k: &[Lanes<T>],
    v: &[Lanes<T>],
    lambda: T,
    forget: T,
    e: &[Lanes<T>],
    work: &mut Workspace<T>,
    (dq, dk, dv): Into3<'_, T>,
) -> Lanes<T> {
    let key = head.key;
    work.restart(key, lambda);
    for t in 0..head.tokens {
        work.step(head, t, k, v, forget);
        let here = head.token(t);
        times((key, key), &work.r, false, (q, here), (&mut work.solved, here));
        times(head.state(), &work.s, true, (e, head.value_token(t)), (&mut work.u, View::new(0, 1, 0)));
        times((key, key), &work.r, false, (&work.u, View::new(0, 1, 0)), (&mut work.y, here));
    }
    // From here R and S hold B and D, the adjoints of H and S.
    work.restart(key, T::default());
    for t in (0..head.tokens).rev() {
        if forget != T::of(1.0) && t + 1 < head.tokens {
            scale(&mut work.r, forget);
            scale(&mut work.s, forget);
        }
        let (here, value) = (head.token(t), head.value_token(t));
        add_outer((key, key), T::of(-1.0), (&work.y, here), (&work.solved, here), &mut work.r);
        add_outer(head.state(), T::of(1.0), (e, value), (&work.solved, here), &mut work.s);
        times(head.state(), &work.s, false, (k, here), (dv, value));
        times(head.state(), &work.s, true, (v, value), (dk, here));
        for transposed in [false, true] {
            times((key, key), &work.r, transposed, (k, here), (&mut work.u, View::new(0, 1, 0)));
            for (d, u) in dk[here.at..].iter_mut().zip(&work.u) {
                for lane in 0..LANES {
                    d.0[lane] += u.0[lane];
                }
            }
        }
        dq[here.at..here.at + key].copy_from_slice(&work.y[t * key..][..key]);
    }
    let mut slope = Lanes::zero();
    let factor = -forget / (lambda * lambda);
    for b in work.r.iter().step_by(key + 1) {
        for lane in 0..LANES {
            slope.0[lane] += factor * b.0[lane];
        }
    }
    slope
}
