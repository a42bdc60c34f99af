//! The delta rule's head: one step of stochastic gradient descent a token on ½‖v_t − S k_t‖², from S_0 = 0.
//!
//! ```text
//! d_t = v_t − S_{t−1} k_t      S_t = S_{t−1} + η_t d_t k_tᵀ      o_t = S_t q_t
//! explicit   η_t = β                      S_{t−1} − β ∇ ½‖v_t − S k_t‖² at S_{t−1}: DeltaNet
//! implicit   η_t = β / (1 + β ‖k_t‖²)     argmin_S ½‖S − S_{t−1}‖²_F + (β/2) ‖v_t − S k_t‖², the proximal step: Longhorn
//! ```
//!
//! With e_t = dL/do_t, G_t = dL/dS_t and a_t = G_t k_t the backward pass is
//!
//! ```text
//! G_t = e_t q_tᵀ + G_{t+1} − η_{t+1} a_{t+1} k_{t+1}ᵀ       dL/dq_t = S_tᵀ e_t       dL/dv_t = η_t a_t       dL/dη_t = ⟨d_t, a_t⟩
//! dL/dk_t = η_t G_tᵀ d_t − η_t S_{t−1}ᵀ a_t  (implicit: − 2 η_t² ⟨d_t, a_t⟩ k_t)
//! dL/dβ = Σ_t dL/dη_t  (implicit: each times (η_t / β)²)
//! ```
//!
//! S_{t−1} is S_t less the step that was added, so both passes keep a K x K matrix or two whatever the number of tokens.

use super::lane_products::{OnLanes, View};
use super::lanes::{LANES, Lanes};
use super::mesa_layer::{Head, Into3, Workspace, add_outer, times};

/// η_t for a token's key.
fn step<T: OnLanes>(beta: T, implicit: bool, k: &[Lanes<T>]) -> Lanes<T> {
    if !implicit {
        return Lanes::splat(beta);
    }
    let mut denominator = Lanes::splat(T::of(1.0));
    for k in k {
        for lane in 0..LANES {
            denominator.0[lane] += beta * k.0[lane] * k.0[lane];
        }
    }
    let mut eta = Lanes::zero();
    for lane in 0..LANES {
        eta.0[lane] = beta / denominator.0[lane];
    }
    eta
}

/// `out = eta x`.
fn scaled<T: OnLanes>(eta: &Lanes<T>, x: &[Lanes<T>], out: &mut [Lanes<T>]) {
    for (out, x) in out.iter_mut().zip(x) {
        for lane in 0..LANES {
            out.0[lane] = eta.0[lane] * x.0[lane];
        }
    }
}

const VECTOR: View = View::new(0, 1, 0);

/// The head's output o_t at every token, into `out`; d_t stays in the workspace.
#[allow(clippy::too_many_arguments)]
pub(super) fn forward<T: OnLanes>(
    head: &Head,
    q: &[Lanes<T>],
    k: &[Lanes<T>],
    v: &[Lanes<T>],
    beta: T,
    implicit: bool,
    work: &mut Workspace<T>,
    out: Option<&mut [Lanes<T>]>,
) {
    work.s.fill(Lanes::zero());
    let mut out = out;
    for t in 0..head.tokens {
        let (here, value) = (head.token(t), head.value_token(t));
        times(head.state(), &work.s, false, (k, here), (&mut work.u, VECTOR));
        let d = &mut work.solved[value.at..][..head.value];
        for ((d, v), u) in d.iter_mut().zip(&v[value.at..]).zip(&work.u) {
            for lane in 0..LANES {
                d.0[lane] = v.0[lane] - u.0[lane];
            }
        }
        scaled(&step(beta, implicit, &k[here.at..][..head.key]), d, &mut work.w);
        add_outer(head.state(), T::of(1.0), (&work.w, VECTOR), (k, here), &mut work.s);
        if let Some(out) = &mut out {
            times(head.state(), &work.s, false, (q, here), (out, value));
        }
    }
}

/// The gradients in q, k and v for the gradient `e` in the output; returns the gradient in β, a lane each.
#[allow(clippy::too_many_arguments)]
pub(super) fn backward<T: OnLanes>(
    head: &Head,
    q: &[Lanes<T>],
    k: &[Lanes<T>],
    v: &[Lanes<T>],
    beta: T,
    implicit: bool,
    e: &[Lanes<T>],
    work: &mut Workspace<T>,
    (dq, dk, dv): Into3<'_, T>,
) -> Lanes<T> {
    let key = head.key;
    forward(head, q, k, v, beta, implicit, work, None);
    // From here R holds G, which is no larger: values have at most the channels of keys.
    work.r.fill(Lanes::zero());
    let mut slope = Lanes::zero();
    for t in (0..head.tokens).rev() {
        let (here, value) = (head.token(t), head.value_token(t));
        let eta = step(beta, implicit, &k[here.at..][..key]);
        times(head.state(), &work.s, true, (e, value), (dq, here));
        add_outer(head.state(), T::of(1.0), (e, value), (q, here), &mut work.r);
        times(head.state(), &work.r, false, (k, here), (&mut work.u, VECTOR));
        let d = &work.solved[value.at..][..head.value];
        let mut along = Lanes::zero();
        for (d, a) in d.iter().zip(&work.u) {
            for lane in 0..LANES {
                along.0[lane] += d.0[lane] * a.0[lane];
            }
        }
        scaled(&eta, d, &mut work.w);
        add_outer(head.state(), T::of(-1.0), (&work.w, VECTOR), (k, here), &mut work.s);
        scaled(&eta, &work.u, &mut dv[value.at..][..head.value]);
        times(head.state(), &work.r, true, (&work.solved, value), (dk, here));
        times(head.state(), &work.s, true, (&work.u, VECTOR), (&mut work.w, VECTOR));
        for ((dk, w), k) in dk[here.at..][..key].iter_mut().zip(&work.w).zip(&k[here.at..]) {
            for lane in 0..LANES {
                dk.0[lane] = eta.0[lane] * (dk.0[lane] - w.0[lane]);
                if implicit {
                    dk.0[lane] -= T::of(2.0) * eta.0[lane] * eta.0[lane] * along.0[lane] * k.0[lane];
                }
            }
        }
        add_outer(head.state(), T::of(-1.0), (dv, value), (k, here), &mut work.r);
        for lane in 0..LANES {
            let share = if implicit { eta.0[lane] / beta } else { T::of(1.0) };
            slope.0[lane] += share * share * along.0[lane];
        }
    }
    slope
}
