//! The propositions of `mesa`, and its baselines against the authors' numbers.

use incontext::algorithms::sequences::{
    InverseSeries, Pairing, RecursiveLeastSquares, SequenceAlgorithm, SequenceGradient, SequenceLeastSquares,
    TeacherPosterior, orthogonal_floor, predictions, sequence_losses,
};
use incontext::experiments::mesa::reference::curve;
use incontext::figure::Extremes;
use incontext::linalg::Matrix;
use incontext::models::constructions::mesa::{gradient_step, gradient_steps};
use incontext::ops::sequence_transformer::LaneBatch;
use incontext::probe::LinearProbe;
use incontext::tasks::{Dynamics, TokenKind};

fn worst(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).greatest()
}

/// Prop. 1 with any Φ_0: the layer's output is (Φ_0 − η ∇L_t(Φ_0)) s_t, the gradient written out.
#[test]
fn proposition_1_is_a_gradient_step() {
    let (n, rate) = (4, 0.03);
    let sequences = Dynamics::linear(n, 10).unwrap().sample(5, 1).unwrap();
    let phi = Matrix::from_fn(n, n, |i, j| 0.3 * ((i * 7 + j * 3) % 5) as f64 - 0.4);
    let (mut tokens, mut expected) = (Vec::new(), Vec::new());
    for i in 0..sequences.len() {
        let states: Vec<&[f64]> = sequences.states(i).chunks(n).collect();
        for t in 0..sequences.tokens() {
            tokens.extend(phi.mul_vec(states[t]));
            tokens.extend_from_slice(states[t]);
            tokens.extend(if t > 0 { states[t - 1].to_vec() } else { vec![0.0; n] });
            let mut stepped = phi.clone();
            for s in 0..t {
                let error: Vec<f64> = states[s + 1].iter().zip(phi.mul_vec(states[s])).map(|(y, p)| y - p).collect();
                stepped = stepped.plus(rate, &Matrix::from_fn(n, n, |a, b| error[a] * states[s][b]));
            }
            expected.extend(stepped.mul_vec(states[t]));
        }
    }
    let tokens = LaneBatch::new(5, 10, 3 * n, &tokens).unwrap();
    assert!(worst(&gradient_step(rate, &phi).unwrap().predict(&tokens).unwrap(), &expected) < 1e-12);
}

/// K layers of two heads are K steps of gradient descent at every token, for K up to 8.
#[test]
fn two_heads_a_layer_are_gradient_descent() {
    let sequences = Dynamics::linear(5, 25).unwrap().sample(20, 2).unwrap();
    let tokens = sequences.inputs(TokenKind::Constructed).unwrap();
    for steps in [1, 2, 4, 8] {
        let network = gradient_steps(5, &vec![0.04; steps]).unwrap().predict(&tokens).unwrap();
        let descent = predictions(&SequenceGradient { rate: 0.04, steps }, &sequences, None).unwrap();
        assert!(worst(&network, &descent) < 1e-12, "{steps} steps");
    }
}

/// The filter is the factorisation, and forgetting is a weighted regression.
#[test]
fn recursion_and_factorisation_agree() {
    let sequences = Dynamics::linear(5, 30).unwrap().sample(8, 3).unwrap();
    let filter = predictions(&RecursiveLeastSquares { ridge: 0.1, forget: 1.0 }, &sequences, None).unwrap();
    let exact = predictions(&SequenceLeastSquares { ridge: 0.1, pairing: Pairing::All }, &sequences, None).unwrap();
    assert!(worst(&filter, &exact) < 1e-10);
    // Pair s of the t that are known has the weight γ^(t−1−s), the ridge γ^t.
    let (gamma, length, n) = (0.9_f64, 30, 5);
    let forgetting = predictions(&RecursiveLeastSquares { ridge: 0.1, forget: gamma }, &sequences, None).unwrap();
    for t in [0, 1, 7, 29] {
        let s = sequences.states(3);
        let weighted = |a: usize, b: usize| {
            let entry = |i: usize, j: usize| -> f64 {
                (0..t).map(|k| gamma.powi((t - 1 - k) as i32) * s[(k + a) * n + i] * s[(k + b) * n + j]).sum()
            };
            Matrix::from_fn(n, n, entry)
        };
        let gram = weighted(0, 0).plus(0.1 * gamma.powi(t as i32), &Matrix::identity(n));
        let expected = weighted(1, 0).mul_vec(&gram.solve_spd(&s[t * n..][..n]).unwrap());
        assert!(worst(&forgetting[(3 * length + t) * n..][..n], &expected) < 1e-9, "token {t}");
    }
    // With the newest pair dropped, token t is predicted as if it were token t − 1's regression.
    let dropped = SequenceLeastSquares { ridge: 0.1, pairing: Pairing::Dropped };
    assert!(worst(&predictions(&dropped, &sequences, None).unwrap(), &exact) > 0.1);
    assert_eq!(dropped.name(), "least squares, newest pair dropped");
}

/// The floor is what least squares reaches without noise.
#[test]
fn least_squares_reaches_the_floor() {
    let task = Dynamics { noise: 0.0, ..Dynamics::linear(4, 10).unwrap() };
    let sequences = task.sample(4000, 4).unwrap();
    let ridge = SequenceLeastSquares { ridge: 1e-9, pairing: Pairing::All };
    let losses = sequence_losses(&ridge, &sequences, None).unwrap();
    for (loss, floor) in losses.iter().zip(orthogonal_floor(4, 10, 0.0)) {
        assert!((loss - floor).abs() < 0.02, "{loss} {floor}");
    }
}

/// At n = 10, T = 50 the baselines have the means that the authors stored: with their pairs lost, and as the paper states them.
#[test]
fn baselines_are_those_of_the_authors() {
    let sequences = Dynamics::linear(10, 50).unwrap().sample(768, 5).unwrap();
    let mean = |a: &dyn SequenceAlgorithm| sequence_losses(a, &sequences, None).unwrap().iter().sum::<f64>() / 50.0;
    let ridge = |pairing| mean(&SequenceLeastSquares { ridge: 1e-3, pairing });
    let series = |setting, pairing| mean(&InverseSeries::authors(setting, pairing).unwrap());
    let close = |value: f64, stored: f64| assert!((value / stored - 1.0).abs() < 0.04, "{value}, stored {stored}");
    close(ridge(Pairing::Dropped), 0.2107);
    close(ridge(Pairing::All), 0.184);
    close(series("constructed", Pairing::Dropped), 0.234);
    close(series("linear", Pairing::Dropped), 0.230);
    close(series("linear", Pairing::All), 0.204);
    let gradient = SequenceGradient::line_searched(&sequences).unwrap();
    close(gradient.rate, 0.032);
    close(mean(&gradient), 0.8945);
}

/// Where the state is seen in part at the authors' size: Prop. 2 on 16 stacked observations loses what they stored for Figure 7B
/// at a ridge of 0.001, not of 10, and the preconditioned windows of Figure 24B, of 5 observations at a ridge of 10, are as far
/// from linear in the newest observation as they stored (in-batch, as they score).
#[test]
fn the_ridges_where_the_state_is_seen_in_part() {
    let sequences = Dynamics::partial(15, 5, 50).unwrap().sample(1024, 8).unwrap();
    let series = |ridge, pairing| InverseSeries { ridge, ..InverseSeries::authors("partial", pairing).unwrap() };
    let stored = curve("fig7b/Prop2-nonlinear(k=16)").unwrap();
    let inputs = sequences.stacked(16).unwrap();
    let gap = |ridge| {
        let ours = sequence_losses(&series(ridge, Pairing::Dropped), &sequences, Some(&inputs)).unwrap();
        ours.iter().zip(&stored).map(|(a, b)| (a / b).ln().abs()).sum::<f64>() / 50.0
    };
    let (small, large) = (gap(1e-3), gap(10.0));
    assert!(small < 0.05 && large > 3.0 * small, "{small} {large}");

    let windows = sequences.stacked(5).unwrap();
    let window = |i: usize, t: usize| &windows.states(i)[25 * t..25 * (t + 1)];
    let of_input = curve("fig24b/layer0").unwrap();
    for t in [9, 29, 49] {
        let preconditioned = |i: usize| {
            let mut gram = Matrix::zeros(25, 25);
            for z in (0..t).map(|s| window(i, s)) {
                gram = gram.plus(1.0, &Matrix::from_fn(25, 25, |a, b| z[a] * z[b]));
            }
            series(10.0, Pairing::All).iterates(&gram, window(i, t)).pop().unwrap()
        };
        let targets: Vec<Vec<f64>> = (0..sequences.len()).map(preconditioned).collect();
        let norms: Vec<f64> = targets.iter().map(|y| y.iter().map(|v| v * v).sum::<f64>().sqrt()).collect();
        let mean = norms.iter().sum::<f64>() / norms.len() as f64;
        let sd = (norms.iter().map(|n| (n - mean).powi(2)).sum::<f64>() / norms.len() as f64).sqrt();
        let kept: Vec<usize> = (0..norms.len()).filter(|i| norms[*i] <= mean + 2.0 * sd).collect();
        let newest: Vec<f32> =
            kept.iter().flat_map(|i| sequences.states(*i)[5 * t..5 * (t + 1)].iter().map(|v| *v as f32)).collect();
        let coordinates: Vec<Vec<f64>> = (0..25).map(|k| kept.iter().map(|i| targets[*i][k]).collect()).collect();
        let probes = LinearProbe::fit_each(&newest, &coordinates, 1e-9).unwrap();
        let squares = |(probe, y): (&LinearProbe, &Vec<f64>)| -> f64 {
            probe.predict(&newest).iter().zip(y).map(|(p, y)| (p - y).powi(2)).sum()
        };
        let error = 0.5 * probes.iter().zip(&coordinates).map(squares).sum::<f64>() / kept.len() as f64;
        assert!((error / of_input[t] - 1.0).abs() < 0.15, "t = {}: {error}, stored {}", t + 1, of_input[t]);
    }
}

/// Knowing the only teacher leaves the noise; knowing a few leaves little more after a pair, and nothing beats it on its own law.
#[test]
fn the_posterior_of_known_teachers_is_optimal_on_them() {
    let noise = 0.5 * 4.0 * 0.01 * 0.01;
    for count in [1, 8] {
        let task = Dynamics::pool(4, 12, count).unwrap();
        let sequences = task.sample(600, 6).unwrap();
        let posterior = TeacherPosterior { teachers: task.pool_teachers(), noise: 0.01 };
        let losses = sequence_losses(&posterior, &sequences, None).unwrap();
        let late = losses[2..].iter().sum::<f64>() / 10.0;
        assert!((late / noise - 1.0).abs() < 0.1, "{count} teachers: {late}, noise {noise}");
        let ridge = SequenceLeastSquares { ridge: 1e-3, pairing: Pairing::All };
        let general = sequence_losses(&ridge, &sequences, None).unwrap();
        assert!(losses.iter().zip(&general).all(|(p, g)| p < &(g + 1e-6)));
        // A teacher that it does not know is lost on it.
        let new = Dynamics::linear(4, 12).unwrap().sample(200, 7).unwrap();
        assert!(sequence_losses(&posterior, &new, None).unwrap()[11] > 100.0 * noise);
    }
}
