//! The algorithms of the Newton paper against closed forms, one another and the numbers that the paper prints.

use incontext::algorithms::{
    Algorithm, Bfgs, Chebyshev, ConjugateGradient, Ends, Examples, GradientDescent, HeavyBall, IterativeNewton, Lbfgs,
    LeastSquares, OnlineGradientDescent, Precision, Predictions, Prefix, Run, predictions, weights,
};
use incontext::compare::{Measure, Similarity};
use incontext::linalg::Matrix;
use incontext::rng::{Rng, stream};
use incontext::tasks::{Covariance, IllConditioned, LinearRegression, Prompts, WeightPrior};

fn prompts(d: usize, n: usize, batch: usize, seed: u64) -> Prompts {
    let covariance = Covariance::identity(d).unwrap();
    LinearRegression::new(covariance, n, WeightPrior::Isotropic).unwrap().sample(batch, seed).unwrap()
}

fn all(algorithm: &dyn Algorithm, steps: &[usize], prompts: &Prompts) -> Predictions {
    predictions(&[Run { algorithm, at: steps }], prompts).unwrap().remove(0)
}

/// Mean squared error at the query after all examples, in units of d.
fn query_mse(algorithm: &dyn Algorithm, steps: usize, prompts: &Prompts) -> f64 {
    all(algorithm, &[steps], prompts).mse(0, prompts).unwrap()[prompts.context()] / prompts.dim() as f64
}

/// SimE of OLS with an algorithm after these steps, at all positions.
fn sime_with_ols(algorithm: &dyn Algorithm, steps: &[usize], prompts: &Prompts) -> Vec<f64> {
    let ols = all(&LeastSquares::default(), &[0], prompts).residuals(prompts).unwrap();
    let other = all(algorithm, steps, prompts).residuals(prompts).unwrap();
    Similarity::of_errors(Measure::Cosine, &other, &ols, 0..prompts.context() + 1).unwrap().means()
}

fn close(a: &[f64], b: &[f64], tolerance: f64, what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!((a - b).abs() <= tolerance, "{what}, entry {i}: {a} and {b}");
    }
}

#[test]
fn eigenvectors_diagonalise() {
    for d in [1, 2, 3, 7, 20, 64] {
        let mut rng = stream(d as u64, "test", 0);
        let a = Matrix::from_fn(d, d, |_, _| rng.gen_range(-1.0..1.0));
        // Symmetric, with repeated and zero eigenvalues too.
        for m in [a.plus(1.0, &a.transpose()), Matrix::identity(d), Matrix::zeros(d, d), a.mul(&a.transpose())] {
            let (values, v) = m.eigen_symmetric().unwrap();
            assert!(values.windows(2).all(|w| w[0] <= w[1]));
            let scale = m.norm().max(1.0);
            let rebuilt = v.mul(&Matrix::diagonal(&values)).mul(&v.transpose());
            assert!(rebuilt.plus(-1.0, &m).norm() < 1e-13 * scale * d as f64, "{d}");
            assert!(v.transpose().mul(&v).plus(-1.0, &Matrix::identity(d)).norm() < 1e-13 * d as f64, "{d}");
        }
    }
}

#[test]
fn newton_is_its_closed_form_and_its_recursion() {
    let prompts = prompts(5, 12, 20, 1);
    let newton = IterativeNewton::new(1.0).unwrap();
    for t in 1..=12 {
        let examples = Examples::of(&prompts, 3, t).unwrap();
        let prefix = Prefix::new(examples);
        let s = prefix.gram().clone();
        let square = s.mul(&s);
        let alpha = 1.0 / square.norm();
        let mut m = s.scaled(alpha);
        let mut residual = Matrix::identity(5).plus(-alpha, &square);
        for (k, w) in newton.iterates(&examples, 12).unwrap().iter().enumerate() {
            // M_k S = I - (I - α S²)^(2^k), and w_k = M_k b.
            let closed = Matrix::identity(5).plus(-1.0, &residual);
            assert!(m.mul(&s).plus(-1.0, &closed).norm() < 1e-11, "{t} {k}");
            close(w, &m.mul_vec(prefix.cross()), 1e-9, "iterate");
            m = m.scaled(2.0).plus(-1.0, &m.mul(&s).mul(&m));
            residual = residual.mul(&residual);
        }
        let recursion = newton.clone().recursion(Precision::Double).iterates(&examples, 12).unwrap();
        close(&recursion.concat(), &newton.iterates(&examples, 12).unwrap().concat(), 1e-9, "recursion");
    }
}

/// A direction whose αλ² is below the rounding of 1 is found too: after 2^k >> 1/(αλ²) steps.
#[test]
fn newton_finds_directions_that_are_nearly_flat() {
    let prompts = Prompts::from_data(1, 2, 2, vec![1.0, 0.0, 0.0, 1e-5, 1.0, 1.0], vec![1.0, 1e-5, 0.0]).unwrap();
    let examples = Examples::of(&prompts, 0, 2).unwrap();
    // α is 1 over the largest eigenvalue squared, 1; the other eigenvalue is 1e-10.
    let iterates = IterativeNewton::new(1.0).unwrap().iterates(&examples, 80).unwrap();
    let exact = |k: i32| -(2.0_f64.powi(k) * -1e-20_f64).exp_m1();
    for k in [40, 60, 66, 70, 80] {
        assert!(
            (iterates[k as usize][1] / exact(k) - 1.0).abs() < 1e-6,
            "{k}: {} {}",
            iterates[k as usize][1],
            exact(k)
        );
    }
}

#[test]
fn the_spectral_forms_are_the_recursions() {
    let prompts = prompts(6, 9, 5, 2);
    let mut rng = stream(4, "test", 0);
    let start: Vec<f64> = (0..6).map(|_| rng.gen_range(0.0..0.4)).collect();
    let plain = GradientDescent::new(vec![0.02]).unwrap().starting_at(start).unwrap();
    for t in 1..=9 {
        let examples = Examples::of(&prompts, 1, t).unwrap();
        let prefix = Prefix::new(examples);
        let closed = plain.at_prefix(&prefix, &[0, 1, 7, 300]).unwrap();
        let stepwise = plain.iterates(&examples, 300).unwrap();
        let chosen: Vec<f64> = [0, 1, 7, 300].iter().flat_map(|k| stepwise[*k].clone()).collect();
        close(&closed, &chosen, 1e-10, "gradient descent");

        let spectrum = prefix.spectrum().unwrap();
        let (low, high) = spectrum.ends().unwrap();
        let sum = high.sqrt() + low.sqrt();
        let (rate, momentum) = (4.0 / (sum * sum), ((high.sqrt() - low.sqrt()) / sum).powi(2));
        let (mut before, mut w) = (vec![0.0; 6], vec![0.0; 6]);
        let ball = HeavyBall::new(Ends::Exact).unwrap().iterates(&examples, 6).unwrap();
        for expected in &ball {
            close(&w, expected, 1e-9, "heavy ball");
            let g = examples.gradient(&w);
            let next: Vec<f64> = (0..6).map(|i| w[i] - rate * g[i] + momentum * (w[i] - before[i])).collect();
            (before, w) = (w, next);
        }
        // Least squares three ways.
        let ols = LeastSquares::default();
        let by_spectrum = ols.at_prefix(&prefix, &[0]).unwrap();
        close(&by_spectrum, &ols.iterates(&examples, 0).unwrap()[0], 1e-8, "least squares");
        let ridge = LeastSquares::ridge(0.3).unwrap();
        close(&ridge.at_prefix(&prefix, &[0]).unwrap(), &ridge.iterates(&examples, 0).unwrap()[0], 1e-10, "ridge");
        let end = IterativeNewton::new(1.0).unwrap().with_ridge(0.3).unwrap().iterates(&examples, 60).unwrap();
        close(&end[60], &ridge.iterates(&examples, 0).unwrap()[0], 1e-9, "Newton with a ridge");
    }
}

#[test]
fn chebyshev_has_the_least_worst_residual() {
    // The residual at both ends of [μ, L] after k steps is 1 / T_k((L + μ)/(L - μ)) in size.
    let (low, high) = (1.0_f64, 9.0_f64);
    let x = [1.0, 0.0, 0.0, 3.0];
    let examples = Examples::new(&x, &[1.0, 3.0]).unwrap();
    let iterates = Chebyshev::new(Ends::Fixed(low, high)).unwrap().iterates(&examples, 6).unwrap();
    for (k, w) in iterates.iter().enumerate() {
        let least = 1.0 / (k as f64 * ((high + low) / (high - low)).acosh()).cosh();
        for w in w {
            assert!(((w - 1.0).abs() - least).abs() < 1e-12, "step {k}: {w}");
        }
    }
}

#[test]
fn conjugate_gradient_minimises_over_the_krylov_space() {
    let prompts = prompts(7, 12, 4, 3);
    for t in [3, 7, 12] {
        let examples = Examples::of(&prompts, 2, t).unwrap();
        let prefix = Prefix::new(examples);
        let iterates = ConjugateGradient.iterates(&examples, 12).unwrap();
        let loss = |w: &[f64]| {
            let residuals =
                examples.x.chunks(7).zip(examples.y).map(|(x, y)| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>() - y);
            residuals.map(|r| r * r).sum::<f64>()
        };
        // The least squares over the span of b, Sb, …, solved directly.
        let mut basis: Vec<Vec<f64>> = vec![prefix.cross().to_vec()];
        for k in 1..5.min(t) {
            let columns = Matrix::from_fn(t, k, |i, j| examples.matrix().mul_vec(&basis[j])[i]);
            let c = columns.least_squares(examples.y).unwrap();
            let w: Vec<f64> = (0..7).map(|i| (0..k).map(|j| c[j] * basis[j][i]).sum()).collect();
            assert!((loss(&iterates[k]) - loss(&w)).abs() < 1e-6 * loss(&[0.0; 7]), "{t} {k}");
            let next = prefix.gram().mul_vec(&basis[k - 1]);
            let norm = next.iter().map(|v| v * v).sum::<f64>().sqrt();
            basis.push(next.iter().map(|v| v / norm).collect());
        }
        let ols = LeastSquares::default().iterates(&examples, 0).unwrap();
        close(&iterates[t.min(7)], &ols[0], 1e-7, "CG is done");
    }
}

#[test]
fn quasi_newton_methods_end_at_least_squares() {
    let prompts = prompts(5, 12, 4, 5);
    for t in [2, 5, 12] {
        let examples = Examples::of(&prompts, 0, t).unwrap();
        let ols = &LeastSquares::default().iterates(&examples, 0).unwrap()[0];
        for algorithm in [&Bfgs as &dyn Algorithm, &Lbfgs::new(10).unwrap()] {
            let iterates = algorithm.iterates(&examples, 80).unwrap();
            close(&iterates[80], ols, 1e-3, &algorithm.name());
            let loss = |w: &[f64]| {
                examples
                    .x
                    .chunks(5)
                    .zip(examples.y)
                    .map(|(x, y)| (x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>() - y).powi(2))
                    .sum::<f64>()
            };
            assert!(iterates.windows(2).all(|w| loss(&w[1]) <= loss(&w[0])), "every step descends");
        }
    }
}

#[test]
fn predictions_are_those_of_every_prefix_on_its_own() {
    let prompts = prompts(4, 6, 5, 6);
    let newton = IterativeNewton::new(2.0).unwrap();
    let pass = OnlineGradientDescent::adaptive();
    let runs = [Run { algorithm: &newton, at: &[3, 1] }, Run { algorithm: &pass, at: &[0] }];
    let made = predictions(&runs, &prompts).unwrap();
    let vectors = weights(&runs, &prompts).unwrap();
    for i in 0..5 {
        for t in 0..=6 {
            for (run, (made, vectors)) in runs.iter().zip(made.iter().zip(&vectors)) {
                for (k, step) in run.at.iter().enumerate() {
                    let w = match t {
                        0 => vec![0.0; 4],
                        t => run.algorithm.iterates(&Examples::of(&prompts, i, t).unwrap(), *step).unwrap()[*step]
                            .clone(),
                    };
                    let x = &prompts.x(i)[t * 4..][..4];
                    let expected: f64 = x.iter().zip(&w).map(|(x, w)| x * w).sum();
                    close(&[made.values[k][i * 7 + t]], &[expected], 1e-11, "prediction");
                    close(&vectors[k][(i * 7 + t) * 4..][..4], &w, 1e-11, "weights");
                }
            }
        }
    }
}

/// newton.md sections 3 and 7.2, at the paper's scale.
#[test]
fn the_paper_scale_numbers_come_out() {
    let prompts = prompts(20, 40, 320, 0);
    let newton = IterativeNewton::new(2.0).unwrap();
    for (k, expected) in [(3, 3.0e-1), (5, 1.4e-1), (8, 2.0e-2), (10, 1.6e-3)] {
        let measured = query_mse(&newton, k, &prompts);
        assert!((measured / expected - 1.0).abs() < 0.35, "Newton {k}: {measured:e}, expected {expected:e}");
    }
    let gd = GradientDescent::new(vec![0.01]).unwrap();
    for (k, expected) in [(1, 4.4e-1), (30, 4.8e-3)] {
        let measured = query_mse(&gd, k, &prompts);
        assert!((measured / expected - 1.0).abs() < 0.35, "GD {k}: {measured:e}, expected {expected:e}");
    }
    let steps = [1, 4, 10, 16, 20, 22];
    close(&sime_with_ols(&ConjugateGradient, &steps, &prompts), &[0.66, 0.88, 0.965, 0.990, 0.999, 1.0], 0.012, "CG");
    let steps = [1, 3, 5, 7, 9, 11];
    close(&sime_with_ols(&Bfgs, &steps, &prompts), &[0.57, 0.74, 0.812, 0.869, 0.906, 0.94], 0.02, "BFGS");
    let measured = sime_with_ols(&Lbfgs::new(10).unwrap(), &[1, 2, 3, 4, 5, 6, 7, 8], &prompts);
    close(&measured, &[0.585, 0.744, 0.798, 0.868, 0.899, 0.915, 0.931, 0.945], 0.02, "L-BFGS");
    let ogd = all(&OnlineGradientDescent::adaptive(), &[0], &prompts).mse(0, &prompts).unwrap();
    let measured: Vec<f64> = [10, 20, 30, 40].iter().map(|t| ogd[*t] / 20.0).collect();
    close(&measured, &[0.601, 0.352, 0.219, 0.124], 0.05, "OGD");

    let skew = IllConditioned::two_clusters(20, 100.0, 40).unwrap().sample(320, 0).unwrap();
    let measured = sime_with_ols(&newton, &[1, 5, 10, 15, 20], &skew);
    close(&measured, &[0.53, 0.77, 0.92, 0.965, 0.986], 0.015, "ill-conditioned Newton");
}

#[test]
fn single_precision_newton_falls_where_the_paper_stops() {
    let prompts = prompts(20, 24, 60, 0);
    let newton = IterativeNewton::new(2.0).unwrap();
    let steps: Vec<usize> = (18..=26).collect();
    let single = sime_with_ols(&newton.clone().recursion(Precision::Single), &steps, &prompts);
    let double = sime_with_ols(&newton, &steps, &prompts);
    assert!(double.windows(2).all(|w| w[1] >= w[0] - 1e-3), "{double:?}");
    assert!(single[8] < 0.9 && double[8] > 0.97, "{single:?} {double:?}");
}
