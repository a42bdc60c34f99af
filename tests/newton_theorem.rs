//! Theorem 5.1 of the Newton paper as running weights, and the places where its text is wrong (newton.md section 0).

use incontext::figure::greater;
use incontext::linalg::Matrix;
use incontext::models::constructions::{Averaging, Layer, NewtonConstruction, Signs};
use incontext::tasks::{Covariance, LinearRegression, Prompts, WeightPrior};

const D: usize = 5;

fn prompts(n: usize, batch: usize) -> Prompts {
    let covariance = Covariance::identity(D).unwrap();
    LinearRegression::new(covariance, n, WeightPrior::Isotropic).unwrap().sample(batch, 3).unwrap()
}

/// S and b of the first n examples.
fn moments(prompts: &Prompts, i: usize) -> (Matrix, Vec<f64>) {
    let n = prompts.context();
    let x = Matrix::from_vec(n, D, prompts.x(i)[..n * D].to_vec()).unwrap();
    (x.transpose().mul(&x), x.transpose().mul_vec(&prompts.y(i)[..n]))
}

/// x_testᵀ M_k b by the recursion.
fn reference(s: &Matrix, b: &[f64], query: &[f64], alpha: f64, steps: usize) -> f64 {
    let mut m = s.scaled(alpha);
    for _ in 0..steps {
        m = m.scaled(2.0).plus(-1.0, &m.mul(s).mul(&m));
    }
    query.iter().zip(m.mul_vec(b)).map(|(x, w)| x * w).sum()
}

fn construction(n: usize, steps: usize, alpha: f64, signs: Signs) -> NewtonConstruction {
    NewtonConstruction { dim: D, examples: n, steps, alpha, signs }
}

/// The largest error over prompts and k = 0, …, 12, of the compact and of the layered weights.
fn errors(signs: Signs) -> (f64, f64) {
    let n = 20;
    let prompts = prompts(n, 3);
    let (mut compact, mut layered) = (0.0_f64, 0.0_f64);
    for i in 0..3 {
        let (s, b) = moments(&prompts, i);
        let alpha = 1.0 / s.mul(&s).norm();
        let (x, y, query) = (&prompts.x(i)[..n * D], &prompts.y(i)[..n], &prompts.x(i)[n * D..]);
        for k in 0..=12 {
            let expected = reference(&s, &b, query, alpha, k);
            let weights = construction(n, k, alpha, signs);
            let short = weights.compact(Averaging::Full).unwrap();
            let long = weights.layered().unwrap();
            assert_eq!((short.layers(), long.layers()), (k + 2, k + 8));
            compact = greater(compact, (short.predict(x, y, query).unwrap() - expected).abs());
            layered = greater(layered, (long.predict(x, y, query).unwrap() - expected).abs());
        }
    }
    (compact, layered)
}

#[test]
fn both_constructions_are_iterative_newton() {
    let (compact, layered) = errors(Signs::Corrected);
    assert!(compact <= 1e-12, "compact: {compact:e}");
    assert!(layered <= 1e-12, "layered: {layered:e}");
}

#[test]
fn with_the_printed_signs_they_are_not() {
    let (compact, layered) = errors(Signs::Printed);
    assert!(compact > 1e-2 && layered > 1e-2, "{compact:e} {layered:e}");
}

#[test]
fn the_weights_are_attention_of_two_heads_and_as_wide_as_stated() {
    let compact = construction(20, 4, 1e-3, Signs::Corrected).compact(Averaging::Full).unwrap();
    assert_eq!(compact.transformer.width, 3 * D + 2);
    for layer in &compact.transformer.layers {
        let Layer::Attention { heads, .. } = layer else { panic!("a layer that is not attention") };
        assert_eq!(heads.len(), 2);
    }
}

/// Mean squared error at the query in units of d after k steps, α = 0.001 in units of S/n.
fn mse(n: usize, averaging: Averaging, steps: usize, batch: usize) -> f64 {
    let prompts = prompts(n, batch);
    // Full attention works on S, causal attention on S/t: the same method at α/n² and α.
    let alpha = if averaging == Averaging::Full { 1e-3 / (n * n) as f64 } else { 1e-3 };
    let weights = construction(n, steps, alpha, Signs::Corrected).compact(averaging).unwrap();
    let error = |i: usize| {
        let (x, y) = (prompts.x(i), prompts.y(i));
        (weights.predict(&x[..n * D], &y[..n], &x[n * D..]).unwrap() - y[n]).powi(2)
    };
    (0..batch).map(error).sum::<f64>() / (batch * D) as f64
}

#[test]
fn the_causal_variant_follows_newton_and_then_leaves_it() {
    let (batch, n) = (24, 50);
    let causal: Vec<f64> = [8, 10, 12, 14].iter().map(|k| mse(n, Averaging::Causal, *k, batch)).collect();
    let full: Vec<f64> = [8, 10, 12, 14].iter().map(|k| mse(n, Averaging::Full, *k, batch)).collect();
    assert!((causal[0] / full[0] - 1.0).abs() < 0.15, "{causal:?} {full:?}");
    assert!(full[3] < 1e-2 && full[2] < 0.1, "{full:?}");
    assert!(causal[2] > 1.5 * full[2] && causal[3] > 20.0 * full[3], "{causal:?} {full:?}");
}

#[test]
fn the_moments_of_section_5_are_corrected() {
    // The paper prints M_1 = 2αS − 4α²S³; M_1 = 2αS − α²S³ and M_2 = 4αS − 6α²S³ + 4α³S⁵ − α⁴S⁷.
    let (s, _) = moments(&prompts(20, 1), 0);
    let alpha = 1.0 / s.mul(&s).norm();
    let odd = |k: usize| (0..k).fold(s.clone(), |p, _| p.mul(&s).mul(&s));
    let step = |m: &Matrix| m.scaled(2.0).plus(-1.0, &m.mul(&s).mul(m));
    let m0 = s.scaled(alpha);
    let (m1, m2) = (step(&m0), step(&step(&m0)));
    let right1 = s.scaled(2.0 * alpha).plus(-alpha * alpha, &odd(1));
    let printed1 = s.scaled(2.0 * alpha).plus(-4.0 * alpha * alpha, &odd(1));
    let right2 = s
        .scaled(4.0 * alpha)
        .plus(-6.0 * alpha.powi(2), &odd(1))
        .plus(4.0 * alpha.powi(3), &odd(2))
        .plus(-alpha.powi(4), &odd(3));
    assert!(m1.plus(-1.0, &right1).norm() < 1e-15 && m2.plus(-1.0, &right2).norm() < 1e-14);
    assert!(m1.plus(-1.0, &printed1).norm() > 0.1 * m1.norm());
}
