//! The line search of Moré and Thuente (1994), which finds a step that satisfies the strong Wolfe conditions: the one
//! behind SciPy's BFGS and L-BFGS-B.

/// What a step must satisfy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wolfe {
    /// Sufficient decrease: φ(a) <= φ(0) + `decrease` a φ'(0).
    pub decrease: f64,
    /// Curvature: |φ'(a)| <= `curvature` |φ'(0)|.
    pub curvature: f64,
    /// Relative width of the interval at which the search gives up.
    pub width: f64,
}

/// An end of the interval: a step with the function's value and slope there.
#[derive(Clone, Copy)]
struct Point {
    step: f64,
    value: f64,
    slope: f64,
}

/// Trial steps of one search; each costs an evaluation.
const TRIALS: usize = 100;
const LONGEST: f64 = 1e10;

/// A step a > 0 along a direction of descent that satisfies `wolfe`, starting from the trial `first`; `f` gives φ(a) and
/// φ'(a). `None` if there is no such step within the precision of φ.
pub(super) fn search(
    wolfe: Wolfe,
    value: f64,
    slope: f64,
    first: f64,
    mut f: impl FnMut(f64) -> (f64, f64),
) -> Option<f64> {
    let gate = wolfe.decrease * slope;
    let start = Point { step: 0.0, value, slope };
    let (mut best, mut other) = (start, start);
    let mut bracketed = false;
    let mut modified = true;
    let (mut width, mut width_before) = (LONGEST, 2.0 * LONGEST);
    let (mut low, mut high) = (0.0, 5.0 * first);
    let mut step = first;
    for _ in 0..TRIALS {
        let (v, g) = f(step);
        if !v.is_finite() || !g.is_finite() {
            step *= 0.5;
            continue;
        }
        let trial = Point { step, value: v, slope: g };
        let allowed = value + step * gate;
        if v <= allowed && g.abs() <= wolfe.curvature * -slope {
            return Some(step);
        }
        let stuck = bracketed && (step <= low || step >= high || high - low <= wolfe.width * high);
        if stuck || step >= LONGEST {
            // The best step of the interval is as good as it gets, if it descends at all.
            return (best.step > 0.0 && best.value < value).then_some(best.step);
        }
        modified &= !(v <= allowed && g >= 0.0);
        // Until a step is found whose modified function has no positive value, that function guides the search.
        let guide = modified && v <= best.value && v > allowed;
        let shift =
            |p: Point, sign: f64| Point { value: p.value - sign * p.step * gate, slope: p.slope - sign * gate, ..p };
        if guide {
            let (mut b, mut o) = (shift(best, 1.0), shift(other, 1.0));
            step = next_step(&mut b, &mut o, shift(trial, 1.0), &mut bracketed, low, high);
            (best, other) = (shift(b, -1.0), shift(o, -1.0));
        } else {
            step = next_step(&mut best, &mut other, trial, &mut bracketed, low, high);
        }
        if bracketed {
            // Bisect where interpolation has not shortened the interval enough.
            let now = (other.step - best.step).abs();
            if now >= 0.66 * width_before {
                step = best.step + 0.5 * (other.step - best.step);
            }
            (width_before, width) = (width, now);
            (low, high) = (best.step.min(other.step), best.step.max(other.step));
        } else {
            (low, high) = (step + 1.1 * (step - best.step), step + 4.0 * (step - best.step));
        }
        step = step.clamp(0.0, LONGEST);
        if bracketed && (step <= low || step >= high || high - low <= wolfe.width * high) {
            step = best.step;
        }
    }
    None
}

/// The next trial from the interval's ends and the last trial, by cubic and quadratic interpolation; the ends are updated
/// so that the interval keeps a minimiser (Moré and Thuente, section 4).
fn next_step(best: &mut Point, other: &mut Point, trial: Point, bracketed: &mut bool, low: f64, high: f64) -> f64 {
    let (b, t) = (*best, trial);
    let opposite = t.slope * b.slope.signum() < 0.0;
    // The minimiser of the cubic through two points, given from the second one's side.
    let cubic_parts = |p: Point, q: Point| {
        let theta = 3.0 * (p.value - q.value) / (q.step - p.step) + p.slope + q.slope;
        let scale = theta.abs().max(p.slope.abs()).max(q.slope.abs());
        let inside = (theta / scale).powi(2) - p.slope / scale * (q.slope / scale);
        (theta, scale * inside.max(0.0).sqrt())
    };
    let secant = |p: Point, q: Point| q.slope / (q.slope - p.slope) * (p.step - q.step);
    let next;
    if t.value > b.value {
        // A higher value: the minimum is between the two.
        let (theta, root) = cubic_parts(b, t);
        let gamma = if t.step < b.step { -root } else { root };
        let ratio = (gamma - b.slope + theta) / (2.0 * gamma - b.slope + t.slope);
        let cubic = b.step + ratio * (t.step - b.step);
        let quadratic =
            b.step + b.slope / ((b.value - t.value) / (t.step - b.step) + b.slope) / 2.0 * (t.step - b.step);
        let nearer = (cubic - b.step).abs() < (quadratic - b.step).abs();
        next = if nearer { cubic } else { cubic + 0.5 * (quadratic - cubic) };
        *bracketed = true;
    } else if opposite {
        // A lower value and a slope of the other sign: the minimum is between the two.
        let (theta, root) = cubic_parts(b, t);
        let gamma = if t.step > b.step { -root } else { root };
        let ratio = (gamma - t.slope + theta) / (2.0 * gamma - t.slope + b.slope);
        let cubic = t.step + ratio * (b.step - t.step);
        let quadratic = t.step + secant(b, t);
        next = if (cubic - t.step).abs() > (quadratic - t.step).abs() { cubic } else { quadratic };
        *bracketed = true;
    } else if t.slope.abs() < b.slope.abs() {
        // A lower value and a flatter slope: the minimum may be beyond.
        let (theta, root) = cubic_parts(b, t);
        let gamma = if t.step > b.step { -root } else { root };
        let ratio = (gamma - t.slope + theta) / (gamma + (b.slope - t.slope) + gamma);
        let cubic = if ratio < 0.0 && gamma != 0.0 {
            t.step + ratio * (b.step - t.step)
        } else if t.step > b.step {
            high
        } else {
            low
        };
        let quadratic = t.step + secant(b, t);
        let cubic_nearer = (cubic - t.step).abs() < (quadratic - t.step).abs();
        if *bracketed {
            let chosen = if cubic_nearer { cubic } else { quadratic };
            let limit = t.step + 0.66 * (other.step - t.step);
            next = if t.step > b.step { chosen.min(limit) } else { chosen.max(limit) };
        } else {
            let chosen = if cubic_nearer { quadratic } else { cubic };
            next = chosen.clamp(low.min(high), high.max(low));
        }
    } else if *bracketed {
        // A lower value and a slope that is no flatter: interpolate towards the other end.
        let (theta, root) = cubic_parts(t, *other);
        let gamma = if t.step > other.step { -root } else { root };
        let ratio = (gamma - t.slope + theta) / (2.0 * gamma - t.slope + other.slope);
        next = t.step + ratio * (other.step - t.step);
    } else {
        next = if t.step > b.step { high } else { low };
    }
    if t.value > b.value {
        *other = t;
    } else {
        if opposite {
            *other = b;
        }
        *best = t;
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_step_found_satisfies_the_conditions() {
        let wolfe = Wolfe { decrease: 1e-4, curvature: 0.1, width: 1e-14 };
        // A quartic, a quadratic far from its minimum, and the first test function of Moré and Thuente.
        let functions: [fn(f64) -> (f64, f64); 3] = [
            |a| ((a - 1.0).powi(4), 4.0 * (a - 1.0).powi(3)),
            |a| (50.0 * (a - 0.02).powi(2), 100.0 * (a - 0.02)),
            |a| (-a / (a * a + 2.0), (a * a - 2.0) / (a * a + 2.0).powi(2)),
        ];
        for f in functions {
            for first in [1e-3, 0.1, 10.0, 1e3] {
                let (value, slope) = f(0.0);
                let step = search(wolfe, value, slope, first, f).unwrap();
                let (v, g) = f(step);
                assert!(v <= value + wolfe.decrease * step * slope, "{first}: {step}");
                assert!(g.abs() <= wolfe.curvature * slope.abs(), "{first}: {step}");
            }
        }
    }
}
