//! The theorems of `pgd`, each checked on its own: by exact identities where there are any, to machine precision, else
//! within a few standard errors at fixed seeds.
//!
//! Expectations over Gaussians are exact sums where the integrand is a polynomial: Gauss-Hermite points have the
//! Gaussian's moments up to an order, and signs have them up to order three.
#![allow(clippy::needless_range_loop, clippy::type_complexity, reason = "indices are those of the formulas")]

use std::sync::Arc;

use incontext::algorithms::kernel_polynomial::wishart_moment;
use incontext::algorithms::{
    Algorithm, Examples, GdPlusPlus, GradientDescent, KernelPolynomial, LeastSquares, SpectralMeasure,
};
use incontext::figure::{Extremes, greater};
use incontext::linalg::{Matrix, real_roots, solve};
use incontext::models::{GeneralLinearTransformer, LinearTransformer, Parametrisation};
use incontext::ops::linear_attention::Mask;
use incontext::ops::linear_transformer::gradient_mut;
use incontext::ops::wishart::GramSamples;
use incontext::rng::{Rng, stream};
use incontext::tasks::{Covariance, LinearRegression, Prompts, WeightPrior};

const SPECTRUM: [f64; 5] = [1.0, 1.0, 0.25, 0.0625, 1.0];

// ---------------------------------------------------------------------------------------------------------------
// Helpers

fn random(seed: u64, len: usize, scale: f64) -> Vec<f64> {
    let mut rng = stream(seed, "theorems", 0);
    (0..len).map(|_| scale * rng.gen_range(-1.0..1.0)).collect()
}

fn random_matrix(seed: u64, d: usize, scale: f64) -> Matrix {
    Matrix::from_vec(d, d, random(seed, d * d, scale)).unwrap()
}

fn task(covariance: &Covariance, n: usize, prior: WeightPrior) -> LinearRegression {
    LinearRegression::new(covariance.clone(), n, prior).unwrap()
}

/// A model with these blocks; without B it is of eq. 8, else of eq. 11.
fn model(a: &[Matrix], b: &[Matrix]) -> LinearTransformer<f64> {
    let (d, zero) = (a[0].rows(), Matrix::zeros(a[0].rows(), a[0].rows()));
    let form = if b.is_empty() { Parametrisation::Preconditioner } else { Parametrisation::Transform };
    let values = (0..a.len()).flat_map(|l| [b.get(l).unwrap_or(&zero), &a[l]]).flat_map(|m| m.as_slice().to_vec());
    LinearTransformer::from_values(values.collect(), a.len(), d, form).unwrap()
}

/// A_l = -a_l Σ⁻¹, B_l = b_l I.
fn family(a: &[f64], b: &[f64], covariance: &Covariance) -> LinearTransformer<f64> {
    let form = if b.is_empty() { Parametrisation::Preconditioner } else { Parametrisation::Transform };
    let mut model = LinearTransformer::zeros(a.len(), covariance.dim(), form).unwrap();
    model.set_steps(a, b, covariance).unwrap();
    model
}

/// The gradient in every block, `[layers][B, A]`.
fn gradient(model: &LinearTransformer<f64>, prompts: &Prompts) -> Vec<[Matrix; 2]> {
    let (_, mut gradients) = model.loss_and_gradient(&Arc::new(prompts.moments())).unwrap();
    let flat = gradient_mut(&mut gradients, &model.params).unwrap();
    let d = model.dim();
    let block = |m: &[f64]| Matrix::from_vec(d, d, m.to_vec()).unwrap();
    flat.chunks(2 * d * d).map(|layer| [block(&layer[..d * d]), block(&layer[d * d..])]).collect()
}

/// How far `m` is from every multiple of `direction`, relative to its own size.
fn off_direction(m: &Matrix, direction: &Matrix) -> f64 {
    let along = m.dot(direction) / direction.dot(direction);
    m.plus(-along, direction).norm() / m.norm()
}

fn mean_and_error(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
    (mean, (variance / n).sqrt())
}

fn close(a: f64, b: f64, tolerance: f64, what: &str) {
    assert!((a - b).abs() <= tolerance * (1.0 + b.abs()), "{what}: {a} against {b}");
}

fn within(sample: &[f64], expected: f64, sigmas: f64, what: &str) {
    let (mean, error) = mean_and_error(sample);
    assert!((mean - expected).abs() <= sigmas * error, "{what}: {mean} ± {error} against {expected}");
}

fn permutations(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![vec![]];
    }
    let shorter = permutations(n - 1);
    (0..n).flat_map(|k| shorter.iter().map(move |p| [&p[..k], &[n - 1], &p[k..]].concat())).collect()
}

/// The 2^d diagonal matrices of signs.
fn sign_matrices(d: usize) -> Vec<Matrix> {
    let sign = |bits: usize, i: usize| if bits >> i & 1 == 1 { -1.0 } else { 1.0 };
    (0..1 << d).map(|bits| Matrix::diagonal(&(0..d).map(|i| sign(bits, i)).collect::<Vec<_>>())).collect()
}

/// The 2^d d! signed permutations.
fn signed_permutations(d: usize) -> Vec<Matrix> {
    let permutation = |p: &[usize]| Matrix::from_fn(d, d, |i, j| if p[i] == j { 1.0 } else { 0.0 });
    let all = permutations(d);
    sign_matrices(d).iter().flat_map(|s| all.iter().map(|p| s.mul(&permutation(p))).collect::<Vec<_>>()).collect()
}

/// The prompts and all their images X -> C X, for every C of `maps`; labels stay.
fn orbit(prompts: &Prompts, maps: &[Matrix]) -> Prompts {
    let d = prompts.dim();
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for map in maps {
        for k in 0..prompts.len() {
            x.extend(prompts.x(k).chunks(d).flat_map(|x| map.mul_vec(x)));
            y.extend_from_slice(prompts.y(k));
        }
    }
    Prompts::from_data(prompts.len() * maps.len(), prompts.context(), d, x, y).unwrap()
}

/// The Gauss-Hermite rule with k points for N(0, 1), exact for polynomials up to degree 2k - 1: nodes are the
/// eigenvalues of the Jacobi matrix of the Hermite polynomials, weights the squared first entries of its eigenvectors.
fn gauss_hermite(k: usize) -> Vec<(f64, f64)> {
    let off = |i: usize, j: usize| if i.abs_diff(j) == 1 { (i.max(j) as f64).sqrt() } else { 0.0 };
    let (nodes, vectors) = Matrix::from_fn(k, k, off).eigen_symmetric().unwrap();
    nodes.into_iter().enumerate().map(|(j, x)| (x, vectors[(0, j)].powi(2))).collect()
}

/// All points of the product rule in `dimensions` coordinates, with their weights.
fn product_rule(rule: &[(f64, f64)], dimensions: usize) -> Vec<(Vec<f64>, f64)> {
    (0..rule.len().pow(dimensions as u32))
        .map(|mut code| {
            let mut weight = 1.0;
            let point = (0..dimensions).map(|_| {
                let (x, w) = rule[code % rule.len()];
                code /= rule.len();
                weight *= w;
                x
            });
            let point = point.collect();
            (point, weight)
        })
        .collect()
}

/// S_L of one Gram matrix by its recursion (pgd.md section 0 item 1), in plain matrices.
fn s_matrix(gram: &Matrix, model: &LinearTransformer<f64>) -> Matrix {
    let d = gram.rows();
    let (mut s, mut t) = (Matrix::identity(d), Matrix::identity(d));
    for l in 0..model.layers() {
        let u = gram.mul(&t.transpose()).mul(&model.a(l).unwrap()).mul(&t);
        let (s_next, t_next) = (s.plus(1.0, &s.mul(&u)), t.plus(1.0, &model.b(l).unwrap().mul(&t).mul(&u)));
        (s, t) = (s_next, t_next);
    }
    s
}

fn gram_of(prompts: &Prompts, k: usize) -> Matrix {
    let (d, n) = (prompts.dim(), prompts.context());
    let x = prompts.x(k);
    Matrix::from_fn(d, d, |i, j| (0..n).map(|t| x[t * d + i] * x[t * d + j]).sum::<f64>() / n as f64)
}

// ---------------------------------------------------------------------------------------------------------------
// Theorem 1

/// E[Ĝ M Ĝ] for any M: (1/n) Σ_i and Σ_{i≠j} of the fourth moments of N(0, Λ). For symmetric M,
/// (n+1)/n ΛMΛ + (1/n) tr(MΛ) Λ.
fn second_moment(m: &Matrix, sigma: &Matrix, n: f64) -> Matrix {
    let sandwich = |m: &Matrix| sigma.mul(m).mul(sigma);
    sandwich(m).plus(1.0 / n, &sandwich(&m.transpose())).plus(m.mul(sigma).trace() / n, sigma)
}

/// f(A) of one layer with Q_0 = [A 0; 0 0] and w⋆ ~ N(0, W), labels with noise of variance σ²: with residual
/// wᵀ(I + ĜA)x, f = tr(W (Σ + 2 Σ A Σ)) + tr(A Σ Aᵀ (E[Ĝ W Ĝ] + (σ²/n) Σ)) + σ².
fn one_layer_loss(a: &Matrix, sigma: &Matrix, w: &Matrix, n: f64, noise: f64) -> f64 {
    let quadratic = second_moment(w, sigma, n).plus(noise / n, sigma);
    let linear = sigma.plus(2.0, &sigma.mul(a).mul(sigma));
    w.dot(&linear) + a.mul(sigma).mul(&a.transpose()).dot(&quadratic) + noise
}

/// The optimum of eq. 6 with noise (section 6 b), in the sign of the code: -U diag(1 / ((n+1)/n λ + (tr Λ + σ²)/n)) Uᵀ.
fn theorem_1(sigma: &Matrix, n: f64, noise: f64) -> Matrix {
    let trace = sigma.trace() + noise;
    sigma.map_symmetric(|l| -1.0 / ((n + 1.0) / n * l + trace / n)).unwrap()
}

fn covariances() -> Vec<Covariance> {
    vec![
        Covariance::identity(5).unwrap(),
        Covariance::diagonal(&SPECTRUM).unwrap(),
        Covariance::rotated(&SPECTRUM, 7).unwrap(),
        Covariance::rotated(&[3.0, 0.01], 1).unwrap(),
        Covariance::diagonal(&[2.5]).unwrap(),
    ]
}

#[test]
fn theorem_1_is_the_critical_point_and_the_minimum_of_the_exact_loss() {
    for covariance in covariances() {
        let (sigma, d) = (covariance.matrix(), covariance.dim());
        for n in [1.0, 2.0, 20.0, 1000.0] {
            for noise in [0.0, 0.3, 4.0] {
                let w = Matrix::identity(d);
                let loss = |a: &Matrix| one_layer_loss(a, sigma, &w, n, noise);
                let best = theorem_1(sigma, n, noise);
                // The gradient 2 Σ W Σ + 2 (E[ĜWĜ] + σ²/n Σ) A Σ, and by differences, exact for a quadratic.
                let quadratic = second_moment(&w, sigma, n).plus(noise / n, sigma);
                let gradient = sigma.mul(sigma).plus(1.0, &quadratic.mul(&best).mul(sigma));
                assert!(gradient.norm() < 1e-12, "gradient {:e}", gradient.norm());
                for k in 0..d * d {
                    let unit = Matrix::from_fn(d, d, |i, j| if i * d + j == k { 1.0 } else { 0.0 });
                    let slope = 0.5 * (loss(&best.plus(1.0, &unit)) - loss(&best.plus(-1.0, &unit)));
                    assert!(slope.abs() < 1e-12 * (1.0 + sigma.norm().powi(3)), "slope {slope:e}");
                }
                // f* and what n -> ∞ leaves.
                let trace = sigma.trace() + noise;
                let (eigenvalues, _) = sigma.eigen_symmetric().unwrap();
                let formula: f64 =
                    eigenvalues.iter().map(|l| l - l * l / ((n + 1.0) / n * l + trace / n)).sum::<f64>() + noise;
                close(loss(&best), formula, 1e-13, "f*");
                for seed in 0..20 {
                    let step = random_matrix(seed, d, 1.0);
                    for h in [1e-3, 1.0] {
                        assert!(loss(&best.plus(h, &step)) > loss(&best), "a smaller loss beside the optimum");
                    }
                }
            }
        }
        let limit = theorem_1(sigma, 1e12, 0.0).plus(1.0, &covariance.inverse());
        assert!(limit.norm() < 1e-8 * covariance.inverse().norm(), "n -> ∞ leaves {:e}", limit.norm());
        // w⋆ ~ N(0, Σ⁻¹): the optimum is Σ⁻¹ n / (n + d + 1 + σ²).
        for (n, noise) in [(20.0, 0.0), (3.0, 0.0), (20.0, 2.0)] {
            let best = covariance.inverse().scaled(-n / (n + d as f64 + 1.0 + noise));
            let loss = |a: &Matrix| one_layer_loss(a, sigma, &covariance.inverse(), n, noise);
            let f = d as f64 * (1.0 - n / (n + d as f64 + 1.0 + noise)) + noise;
            close(loss(&best), f, 1e-11, "f* for w ~ N(0, Σ⁻¹)");
            for seed in 0..20 {
                assert!(loss(&best.plus(0.1, &random_matrix(seed, d, 1.0))) > loss(&best));
            }
        }
    }
    // The table of section 4.4, and the isotropic case n / (n + d + 1).
    let identity = Matrix::identity(5);
    close(-theorem_1(&identity, 20.0, 0.0)[(2, 2)], 20.0 / 26.0, 1e-15, "isotropic optimum");
    close(one_layer_loss(&identity.scaled(-20.0 / 26.0), &identity, &identity, 20.0, 0.0), 1.153846, 1e-6, "table");
}

#[test]
fn the_second_moment_of_the_gram_matrix_is_as_stated() {
    // Exactly, from the product rule, whose fourth moments are the Gaussian's.
    for (d, n) in [(2, 1), (2, 3), (3, 2)] {
        let covariance = Covariance::rotated(&SPECTRUM[1..1 + d], 3).unwrap();
        let m = random_matrix(5, d, 1.0);
        let mut mean = Matrix::zeros(d, d);
        for (white, weight) in product_rule(&gauss_hermite(3), n * d) {
            let white = Matrix::from_vec(n, d, white).unwrap();
            let x = white.mul(covariance.sqrt());
            let gram = x.transpose().mul(&x).scaled(1.0 / n as f64);
            mean = mean.plus(weight, &gram.mul(&m).mul(&gram));
        }
        let error = mean.plus(-1.0, &second_moment(&m, covariance.matrix(), n as f64)).norm();
        assert!(error < 1e-13, "d {d}, n {n}: {error:e}");
    }
    // And for the sampler, at the paper's setting.
    let covariance = Covariance::rotated(&SPECTRUM, 3).unwrap();
    let m = random_matrix(6, 5, 1.0);
    let grams = task(&covariance, 20, WeightPrior::Isotropic).sample_gram(100_000, 8).unwrap();
    let products: Vec<Matrix> = grams
        .chunks(25)
        .map(|g| {
            let g = Matrix::from_vec(5, 5, g.to_vec()).unwrap();
            g.mul(&m).mul(&g)
        })
        .collect();
    let expected = second_moment(&m, covariance.matrix(), 20.0);
    for ij in (0..25).map(|k| (k / 5, k % 5)) {
        within(&products.iter().map(|p| p[ij]).collect::<Vec<_>>(), expected[ij], 4.5, "E[ĜMĜ]");
    }
}

/// A finite set of prompts, each as often as its weight says, over which every polynomial of degree at most 5 in a
/// covariate and 3 in w⋆ and the query has its Gaussian expectation: covariates from {-√3, 0, √3} with weights 1 : 4 : 1,
/// signs for w⋆ and the query.
fn gaussian_prompts(covariance: &Covariance, n: usize) -> Prompts {
    let d = covariance.dim();
    let r = 3f64.sqrt();
    let points = product_rule(&[(-r, 1.0), (0.0, 1.0), (0.0, 1.0), (0.0, 1.0), (0.0, 1.0), (r, 1.0)], n * d);
    let signs = product_rule(&[(-1.0, 1.0), (1.0, 1.0)], 2 * d);
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for (white, _) in &points {
        for (sign, _) in &signs {
            let (w, query) = sign.split_at(d);
            for token in white.chunks(d).chain([query]) {
                let token = covariance.sqrt().mul_vec(token);
                y.push(token.iter().zip(w).map(|(x, w)| x * w).sum());
                x.extend(token);
            }
        }
    }
    Prompts::from_data(points.len() * signs.len(), n, d, x, y).unwrap()
}

#[test]
fn the_real_model_has_a_critical_point_at_theorem_1_in_every_entry_of_p_and_q() {
    for eigenvalues in [[1.0, 1.0], [1.0, 0.25], [0.0625, 3.0]] {
        let covariance = Covariance::rotated(&eigenvalues, 2).unwrap();
        for n in [1, 2] {
            let (d, size) = (2, 3);
            let prompts = gaussian_prompts(&covariance, n);
            let best = theorem_1(covariance.matrix(), n as f64, 0.0);
            let expected = one_layer_loss(&best, covariance.matrix(), &Matrix::identity(d), n as f64, 0.0);
            // The sparse model.
            let sparse = model(std::slice::from_ref(&best), &[]);
            close(sparse.loss(&Arc::new(prompts.moments())).unwrap(), expected, 1e-12, "loss of the sparse model");
            assert!(gradient(&sparse, &prompts)[0][1].norm() < 1e-12);
            // The general model, with every entry of P and Q free.
            let mut p = vec![0.0; size * size];
            p[size * size - 1] = 1.0;
            let mut q = vec![0.0; size * size];
            for ij in (0..d * d).map(|k| (k / d, k % d)) {
                q[ij.0 * size + ij.1] = best[ij];
            }
            let loss = |p: &[f64], q: &[f64]| {
                let model =
                    GeneralLinearTransformer::<f64>::new(&[p.to_vec()], &[q.to_vec()], d, Mask::Context).unwrap();
                let squares = model.predict(&prompts).unwrap();
                let slots = squares.chunks(n + 1).map(|p| p[n]);
                slots.zip(prompts.targets()).map(|(p, y)| (p - y).powi(2)).sum::<f64>() / prompts.len() as f64
            };
            close(loss(&p, &q), expected, 1e-12, "loss of the general model");
            // The loss is a quadratic in P and in Q: central differences are exact.
            for k in 0..size * size {
                let slope = |which: usize| {
                    let at = |h: f64| {
                        let (mut p, mut q) = (p.clone(), q.clone());
                        [&mut p, &mut q][which][k] += h;
                        loss(&p, &q)
                    };
                    0.5 * (at(1.0) - at(-1.0))
                };
                assert!(slope(0).abs() < 1e-11, "P entry {k}: {:e}", slope(0));
                assert!(slope(1).abs() < 1e-11, "Q entry {k}: {:e}", slope(1));
            }
            // f depends on the product of P's and Q's scales alone.
            let scaled = |m: &[f64], by: f64| m.iter().map(|v| v * by).collect::<Vec<_>>();
            close(loss(&scaled(&p, 3.0), &scaled(&q, 1.0 / 3.0)), expected, 1e-12, "(γP, Q/γ)");
        }
    }
}

#[test]
fn theorem_1_holds_for_sampled_prompts_of_both_models_with_and_without_noise() {
    let covariance = Covariance::rotated(&SPECTRUM, 4).unwrap();
    for noise in [0.0, 0.5_f64] {
        let task = task(&covariance, 20, WeightPrior::Isotropic).with_noise(noise.sqrt()).unwrap();
        let prompts = task.sample(100_000, 21).unwrap();
        let best = theorem_1(covariance.matrix(), 20.0, noise);
        let expected = one_layer_loss(&best, covariance.matrix(), &Matrix::identity(5), 20.0, noise);
        let squares = |predictions: &[f64]| -> Vec<f64> {
            predictions.iter().zip(prompts.targets()).map(|(p, y)| (p - y).powi(2)).collect()
        };
        let sparse = model(std::slice::from_ref(&best), &[]);
        let predictions = sparse.predict(&Arc::new(prompts.moments())).unwrap();
        within(&squares(&predictions), expected, 4.0, "sparse model");
        let mut p = vec![0.0; 36];
        p[35] = 1.0;
        let q = (0..36).map(|k| if k / 6 < 5 && k % 6 < 5 { best[(k / 6, k % 6)] } else { 0.0 }).collect();
        let general = GeneralLinearTransformer::<f64>::new(&[p], &[q], 5, Mask::Context).unwrap();
        let queries: Vec<f64> = general.predict(&prompts).unwrap().chunks(21).map(|p| p[20]).collect();
        for (a, b) in queries.iter().zip(&predictions) {
            close(*a, *b, 1e-11, "the two models");
        }
        within(&squares(&queries), expected, 4.0, "general model");
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Lemmas 1 and 4, and the form of GD++

/// Prompts without any structure: labels are not linear in the covariates.
fn arbitrary_prompts(batch: usize, n: usize, d: usize, seed: u64) -> Prompts {
    let x = random(seed, batch * (n + 1) * d, 1.5);
    let y = random(seed + 1000, batch * (n + 1), 1.5);
    Prompts::from_data(batch, n, d, x, y).unwrap()
}

#[test]
fn lemma_1_the_layers_are_steps_of_gradient_descent_preconditioned_by_the_transpose() {
    let (d, n, layers) = (4, 6, 3);
    let prompts = arbitrary_prompts(10, n, d, 1);
    let a: Vec<Matrix> = (0..layers).map(|l| random_matrix(l as u64 + 50, d, 0.7)).collect();
    let size = d + 1;
    let corner: Vec<f64> = (0..size * size).map(|k| if k == size * size - 1 { 1.0 } else { 0.0 }).collect();
    let entry = |m: &Matrix, k: usize| if k / size < d && k % size < d { -m[(k / size, k % size)] } else { 0.0 };
    let q: Vec<Vec<f64>> = a.iter().map(|m| (0..size * size).map(|k| entry(m, k)).collect()).collect();
    for depth in 1..=layers {
        let p = vec![corner.clone(); depth];
        let general = GeneralLinearTransformer::<f64>::new(&p, &q[..depth], d, Mask::Context).unwrap();
        let slots = general.predict(&prompts).unwrap();
        let negated: Vec<Matrix> = a[..depth].iter().map(|m| m.scaled(-1.0)).collect();
        let sparse = model(&negated, &[]).predict(&Arc::new(prompts.moments())).unwrap();
        let (mut worst, mut untransposed) = (0.0_f64, 0.0_f64);
        for k in 0..prompts.len() {
            let descend = |transpose: bool| {
                let mut w = vec![0.0; d];
                for m in &a[..depth] {
                    // ∇R(w) = (1/n) Σ (wᵀx_i - y_i) x_i.
                    let mut gradient = vec![0.0; d];
                    for (x, y) in prompts.x(k).chunks(d).zip(prompts.y(k)).take(n) {
                        let r = (x.iter().zip(&w).map(|(x, w)| x * w).sum::<f64>() - y) / n as f64;
                        gradient.iter_mut().zip(x).for_each(|(g, x)| *g += r * x);
                    }
                    let step = if transpose { m.transpose().mul_vec(&gradient) } else { m.mul_vec(&gradient) };
                    w.iter_mut().zip(step).for_each(|(w, s)| *w -= s);
                }
                w
            };
            let (w, wrong) = (descend(true), descend(false));
            for (t, x) in prompts.x(k).chunks(d).enumerate() {
                let dot = |w: &[f64]| x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
                // A context token's slot also carries its own label: it is the residual y_i - ⟨w, x_i⟩.
                let own = if t < n { prompts.y(k)[t] } else { 0.0 };
                let slot = slots[k * (n + 1) + t];
                worst = greater(worst, (slot - (dot(&w) - own)).abs());
                if t == n {
                    worst = greater(worst, (sparse[k] - dot(&w)).abs());
                    untransposed = greater(untransposed, (slot - dot(&wrong)).abs());
                }
            }
        }
        assert!(worst < 1e-13, "{depth} layers: error {worst:e}");
        assert!(untransposed > 0.05, "{depth} layers: with A_l instead of its transpose {untransposed:e}");
    }
}

#[test]
fn lemma_4_layers_commute_for_every_prompt_without_b_and_not_with_it() {
    let covariance = Covariance::rotated(&[1.0, 0.25, 0.0625, 2.0], 9).unwrap();
    let moments = Arc::new(arbitrary_prompts(50, 5, 4, 3).moments::<f64>());
    let predict = |a: &[f64], b: &[f64]| family(a, b, &covariance).predict(&moments).unwrap();
    let steps = [0.1, 0.03, 0.2];
    let (plain, b) = (predict(&steps, &[]), [0.5, 0.2]);
    let with_b = predict(&steps, &b);
    let mut differs = 0.0_f64;
    for p in permutations(3) {
        let permuted: Vec<f64> = p.iter().map(|&i| steps[i]).collect();
        for (x, y) in predict(&permuted, &[]).iter().zip(&plain) {
            close(*x, *y, 1e-13, "a prediction with the layers in another order");
        }
        let other = predict(&permuted, &b);
        differs = other.iter().zip(&with_b).map(|(x, y)| (x - y).abs()).fold(differs, greater);
    }
    assert!(differs > 1e-2, "with B the order matters: {differs:e}");
}

#[test]
fn gd_plus_plus_is_the_product_of_scalar_steps_on_the_eigenvalues_of_the_gram_matrix() {
    let (d, n) = (5, 7);
    let covariance = Covariance::rotated(&SPECTRUM, 11).unwrap();
    let grams = task(&Covariance::identity(d).unwrap(), n, WeightPrior::Isotropic).sample_gram(40, 2).unwrap();
    let (a, b) = ([0.378, 2.406, 0.962], [0.906, 0.566]);
    let model = family(&a, &b, &covariance);
    let losses = GramSamples::new(d, &grams).unwrap().losses(&model.whitened(&covariance).unwrap()).unwrap();
    for (gram, loss) in grams.chunks(d * d).zip(losses) {
        let (eigenvalues, _) = Matrix::from_vec(d, d, gram.to_vec()).unwrap().eigen_symmetric().unwrap();
        let scalar = |mut l: f64| {
            let mut s = 1.0;
            for k in 0..3 {
                s *= 1.0 - a[k] * l;
                l *= (1.0 - a[k] * b.get(k).unwrap_or(&0.0) * l).powi(2);
            }
            s * s
        };
        close(loss, eigenvalues.iter().map(|l| scalar(*l)).sum(), 1e-12, "loss of a Gram matrix");
    }
    // One layer moves the covariates of every token to (I - a b Ĝ) x (Σ = I): the step of GD++.
    let prompts = arbitrary_prompts(4, n, d, 5);
    let (a, b, size) = (0.4, 0.7, d + 1);
    let diagonal = |v: f64, corner: f64| -> Vec<f64> {
        let at = |i: usize| if i < d { v } else { corner };
        (0..size * size).map(|k| if k / size == k % size { at(k / size) } else { 0.0 }).collect()
    };
    let layer =
        GeneralLinearTransformer::<f64>::new(&[diagonal(b, 1.0)], &[diagonal(-a, 0.0)], d, Mask::Context).unwrap();
    let tokens = layer.tokens(&prompts).unwrap().as_vec();
    for (k, tokens) in tokens.chunks((n + 1) * size).enumerate() {
        let step = Matrix::identity(d).plus(-a * b, &gram_of(&prompts, k));
        for (token, x) in tokens.chunks(size).zip(prompts.x(k).chunks(d)) {
            for (got, expected) in token.iter().zip(step.mul_vec(x)) {
                close(*got, expected, 1e-13, "a covariate after one layer of GD++");
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------
// Theorems 2, 3 and 4

#[test]
fn theorem_2_averaging_over_signs_makes_the_second_layer_diagonal_and_the_loss_no_larger() {
    let d = 3;
    let signs = sign_matrices(d);
    let base = task(&Covariance::identity(d).unwrap(), 4, WeightPrior::Isotropic).sample(3, 17).unwrap();
    let closed = Arc::new(orbit(&base, &signs).moments::<f64>());
    let symmetric = |seed: u64| {
        let m = random_matrix(seed, d, 0.6);
        m.plus(1.0, &m.transpose()).scaled(0.5)
    };
    for seed in 0..10 {
        let (d1, a2) = (Matrix::diagonal(&random(seed + 200, d, 0.8)), symmetric(seed + 300));
        let loss =
            |first: &Matrix, second: &Matrix| model(&[first.clone(), second.clone()], &[]).loss(&closed).unwrap();
        let here = loss(&d1, &a2);
        let mut average = Matrix::zeros(d, d);
        for s in &signs {
            let turned = s.mul(&a2).mul(s);
            close(loss(&d1, &turned), here, 1e-14, "f(D, S A S)");
            average = average.plus(1.0 / signs.len() as f64, &turned);
        }
        let diagonal = Matrix::diagonal(&a2.diag());
        assert!(average.plus(-1.0, &diagonal).norm() < 1e-15, "the mean of S A S is the diagonal");
        assert!(loss(&d1, &diagonal) <= here, "the diagonal is no worse");
        // Neither is it in the first layer, for a diagonal second one.
        assert!(loss(&diagonal, &d1) <= loss(&a2, &d1));
        // A prompt alone has no such symmetry.
        let alone = Arc::new(base.moments::<f64>());
        let loss = |second: &Matrix| model(&[d1.clone(), second.clone()], &[]).loss(&alone).unwrap();
        let spread = signs.iter().map(|s| (loss(&s.mul(&a2).mul(s)) - loss(&a2)).abs()).greatest();
        assert!(spread > 1e-3, "{spread:e}");
    }
}

#[test]
fn theorems_3_and_4_gradients_are_proportional_to_sigma_and_to_the_identity() {
    for (d, spectrum) in [(2, vec![1.0, 0.2]), (3, vec![1.0, 0.25, 2.0])] {
        let covariance = Covariance::rotated(&spectrum, 13).unwrap();
        let (sigma, identity) = (covariance.matrix(), Matrix::identity(d));
        // Any prompts do: the theorem rests on the symmetry of their law alone.
        let base = arbitrary_prompts(2, 3, d, 7);
        let group = signed_permutations(d);
        assert_eq!(group.len(), if d == 2 { 8 } else { 48 });
        let maps: Vec<Matrix> = group.iter().map(|o| covariance.sqrt().mul(o).mul(covariance.inv_sqrt())).collect();
        let closed = orbit(&base, &maps);
        for (a, b) in [
            (vec![0.3], vec![]),
            (vec![0.3, 0.1], vec![]),
            (vec![0.2, 0.4, 0.1, 0.3], vec![]),
            (vec![0.3, 0.2], vec![0.5, 0.7]),
            (vec![0.2, 0.3, 0.1], vec![0.4, -0.3, 0.2]),
        ] {
            let model = family(&a, &b, &covariance);
            let (on_orbit, alone) = (gradient(&model, &closed), gradient(&model, &base));
            for (l, [of_b, of_a]) in on_orbit.iter().enumerate() {
                let off = off_direction(of_a, sigma);
                assert!(off < 1e-12, "A_{l}: {off:e} off Σ");
                assert!(off_direction(&alone[l][1], sigma) > 0.05, "a prompt alone is not symmetric");
                if b.is_empty() || l + 1 == a.len() {
                    // Fixed at zero; and f does not depend on the last B.
                    assert_eq!(of_b.norm(), 0.0);
                } else {
                    let off = off_direction(of_b, &identity);
                    assert!(off < 1e-12, "B_{l}: {off:e} off I");
                    assert!(off_direction(&alone[l][0], &identity) > 0.05, "a prompt alone is not symmetric");
                }
            }
        }
    }
}

#[test]
fn theorem_3_the_optimum_of_the_family_is_a_critical_point_of_the_whole_space() {
    let covariance = Covariance::rotated(&[1.0, 0.2], 13).unwrap();
    let maps: Vec<Matrix> =
        signed_permutations(2).iter().map(|o| covariance.sqrt().mul(o).mul(covariance.inv_sqrt())).collect();
    let base = task(&covariance, 4, WeightPrior::InverseCovariance).sample(4, 3).unwrap();
    let closed = orbit(&base, &maps);
    let moments = Arc::new(closed.moments::<f64>());
    let loss = |a: &[f64]| family(a, &[], &covariance).loss(&moments).unwrap();
    // f is a parabola in each step size: descend along one after the other, exactly.
    let mut a = [0.3, 0.9];
    for _ in 0..400 {
        for l in 0..2 {
            let at = |h: f64| {
                let mut moved = a;
                moved[l] += h;
                loss(&moved)
            };
            let (down, here, up) = (at(-0.5), at(0.0), at(0.5));
            a[l] -= 0.25 * (up - down) / (up - 2.0 * here + down);
        }
    }
    let model = family(&a, &[], &covariance);
    let total = gradient(&model, &closed).iter().map(|[_, g]| g.norm()).greatest();
    assert!(total < 1e-10 * loss(&[0.0, 0.0]), "gradient {total:e} at {a:?}");
    assert!(loss(&a) < 0.9 * loss(&[0.0, 0.0]));
}

// ---------------------------------------------------------------------------------------------------------------
// Theorem 5

#[test]
fn theorem_5_relu_attention_has_its_stated_optimum() {
    for (d, n) in [(5, 20), (3, 7), (2, 1)] {
        let (df, nf) = (d as f64, n as f64);
        let identity = Covariance::identity(d).unwrap();
        let prompts = task(&identity, n, WeightPrior::Isotropic).sample(60_000, 31).unwrap();
        // One layer with scores σ(ZᵀQZ), Q = [A 0; 0 0]: the label slot is (1/n) Σ y_i relu(x_iᵀ A x).
        let squares = |a: &Matrix| -> Vec<f64> {
            (0..prompts.len())
                .map(|k| {
                    let (x, y) = (prompts.x(k), prompts.y(k));
                    let ax = a.mul_vec(&x[n * d..]);
                    let score = |i: usize| x[i * d..][..d].iter().zip(&ax).map(|(x, v)| x * v).sum::<f64>().max(0.0);
                    ((0..n).map(|i| y[i] * score(i)).sum::<f64>() / nf + y[n]).powi(2)
                })
                .collect()
        };
        let best = 2.0 * nf / (2.0 * (df + 2.0) + nf - 1.0);
        let at = |c: f64| squares(&Matrix::identity(d).scaled(-c));
        let optimum = at(best);
        within(&optimum, df * (1.0 - nf / (2.0 * (df + 2.0) + nf - 1.0)), 4.0, "f*");
        // The whole parabola f(c) = d - c d + c² d ((d+2)/(2n) + (n-1)/(4n)).
        for c in [0.0, 0.5 * best, 1.3 * best] {
            let expected = df - c * df + c * c * df * ((df + 2.0) / (2.0 * nf) + (nf - 1.0) / (4.0 * nf));
            within(&at(c), expected, 4.0, "f(c)");
        }
        // It is least at the stated step: as large on both sides of it, on the same prompts.
        let sides: Vec<f64> = at(1.1 * best).iter().zip(at(0.9 * best)).map(|(a, b)| a - b).collect();
        within(&sides, 0.0, 4.0, "f beyond the optimum and before it");
        // Any other A has a greater loss: differences on the same prompts.
        for seed in 0..4 {
            let other = Matrix::identity(d).scaled(-best).plus(0.7, &random_matrix(seed + 40, d, 1.0));
            let difference: Vec<f64> = squares(&other).iter().zip(&optimum).map(|(a, b)| a - b).collect();
            let (mean, error) = mean_and_error(&difference);
            assert!(mean > 4.0 * error, "d {d}, n {n}, seed {seed}: {mean} ± {error}");
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------
// The two engines

/// Several models, most of them with blocks that are neither symmetric nor multiples of anything.
fn various_models(d: usize) -> Vec<LinearTransformer<f64>> {
    let blocks = |seed: u64, layers: u64, shift: f64, scale: f64| -> Vec<Matrix> {
        (0..layers).map(|l| Matrix::identity(d).scaled(shift).plus(1.0, &random_matrix(seed + l, d, scale))).collect()
    };
    vec![
        model(&blocks(400, 1, -0.7, 0.1), &[]),
        model(&blocks(410, 2, -0.6, 0.15), &[]),
        model(&blocks(420, 2, -0.5, 0.15), &blocks(430, 1, 0.3, 0.2)),
        model(&blocks(440, 3, -0.5, 0.1), &blocks(450, 2, 0.3, 0.1)),
        model(&blocks(460, 4, -0.4, 0.08), &blocks(470, 3, 0.2, 0.08)),
    ]
}

/// The model whose blocks are those of `white` in the coordinates where Σ = I.
fn unwhitened(white: &LinearTransformer<f64>, covariance: &Covariance) -> LinearTransformer<f64> {
    let (root, inverse) = (covariance.sqrt(), covariance.inv_sqrt());
    let blocks = (0..white.layers()).flat_map(|l| {
        let b = root.mul(&white.b(l).unwrap()).mul(inverse);
        let a = inverse.mul(&white.a(l).unwrap()).mul(inverse);
        [b, a].into_iter().flat_map(|m| m.as_slice().to_vec()).collect::<Vec<_>>()
    });
    LinearTransformer::from_values(blocks.collect(), white.layers(), white.dim(), white.parametrisation()).unwrap()
}

#[test]
fn the_residual_of_every_prompt_is_the_bilinear_form_of_s() {
    let covariance = Covariance::rotated(&[1.0, 0.25, 2.0], 5).unwrap();
    let prompts = task(&covariance, 4, WeightPrior::Isotropic).sample(30, 3).unwrap();
    let moments = Arc::new(prompts.moments::<f64>());
    for model in various_models(3) {
        let predictions = model.predict(&moments).unwrap();
        for k in 0..prompts.len() {
            // w⋆ from the labels, which have no noise.
            let x = Matrix::from_vec(5, 3, prompts.x(k).to_vec()).unwrap();
            let w = x.least_squares(prompts.y(k)).unwrap();
            let s = s_matrix(&gram_of(&prompts, k), &model);
            let residual: f64 = s.mul_vec(&prompts.x(k)[12..]).iter().zip(&w).map(|(s, w)| s * w).sum();
            close(prompts.y(k)[4] - predictions[k], residual, 1e-10, "wᵀ S x");
        }
    }
}

/// The context of prompt `k` with d x d pairs of a w⋆ and a query: √d e_i for the one and √d e_j for the other, in
/// whitened coordinates, have the second moments of N(0, I), and the loss is quadratic in both.
fn all_tasks_and_queries(contexts: &Prompts, k: usize, covariance: &Covariance) -> Prompts {
    let (d, n) = (contexts.dim(), contexts.context());
    let unit = |i: usize| (0..d).map(|k| if k == i { (d as f64).sqrt() } else { 0.0 }).collect::<Vec<_>>();
    let (mut x, mut y) = (Vec::new(), Vec::new());
    for (i, j) in (0..d * d).map(|k| (k / d, k % d)) {
        let w = covariance.inv_sqrt().mul_vec(&unit(i));
        let query = covariance.sqrt().mul_vec(&unit(j));
        for token in contexts.x(k).chunks(d).take(n).chain([query.as_slice()]) {
            x.extend_from_slice(token);
            y.push(token.iter().zip(&w).map(|(x, w)| x * w).sum());
        }
    }
    Prompts::from_data(d * d, n, d, x, y).unwrap()
}

#[test]
fn the_exact_engine_is_the_average_of_the_prompt_level_loss_over_w_and_the_query() {
    let d = 3;
    let covariance = Covariance::rotated(&[1.0, 0.0625, 2.0], 5).unwrap();
    for n in [1, 2, 6] {
        let contexts = task(&covariance, n, WeightPrior::InverseCovariance).sample(6, 3).unwrap();
        for model in various_models(d) {
            let model = unwhitened(&model, &covariance);
            for k in 0..contexts.len() {
                let prompts = all_tasks_and_queries(&contexts, k, &covariance);
                let average = model.loss(&Arc::new(prompts.moments())).unwrap();
                let gram = gram_of(&contexts, k);
                let white = covariance.inv_sqrt().mul(&gram).mul(covariance.inv_sqrt());
                let exact = GramSamples::new(d, white.as_slice()).unwrap();
                let exact = exact.losses(&model.whitened(&covariance).unwrap()).unwrap();
                close(average, exact[0], 1e-12, "average over w and the query");
                // And both are ‖Σ^{-1/2} S Σ^{1/2}‖².
                let s = covariance.inv_sqrt().mul(&s_matrix(&gram, &model)).mul(covariance.sqrt());
                close(exact[0], s.dot(&s), 1e-12, "‖S‖²");
            }
        }
    }
}

#[test]
fn both_engines_and_both_samplers_have_the_same_mean_loss() {
    let d = 5;
    for (n, prior) in [(20, WeightPrior::InverseCovariance), (3, WeightPrior::InverseCovariance)] {
        let covariance = Covariance::rotated(&SPECTRUM, 6).unwrap();
        let white = task(&Covariance::identity(d).unwrap(), n, prior);
        let grams = GramSamples::new(d, &white.sample_gram(40_000, 11).unwrap()).unwrap();
        let task = task(&covariance, n, prior);
        let prompts = task.sample(60_000, 12).unwrap();
        let batches = [Arc::new(prompts.moments::<f64>()), Arc::new(task.sample_moments::<f64>(60_000, 13).unwrap())];
        for model in various_models(d) {
            let (exact, exact_error) = mean_and_error(&grams.losses(&model.params.as_vec()).unwrap());
            let model = unwhitened(&model, &covariance);
            for moments in &batches {
                let predictions = model.predict(moments).unwrap();
                let squares: Vec<f64> =
                    predictions.iter().zip(moments.targets()).map(|(p, y)| (p - y).powi(2)).collect();
                let (mean, error) = mean_and_error(&squares);
                let sigma = error.hypot(exact_error);
                assert!((mean - exact).abs() < 4.0 * sigma, "n {n}, L {}: {mean} {exact} ± {sigma}", model.layers());
                close(model.loss(moments).unwrap(), mean, 1e-12, "the loss is the mean of the squares");
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------
// The samplers

/// Ĝ (upper triangle), ĝ, the query and its label; then all products of two of these.
fn features(d: usize, values: &[f64]) -> Vec<f64> {
    let (gram, rest) = values.split_at(d * d);
    let mut base: Vec<f64> = (0..d * d).filter(|k| k / d <= k % d).map(|k| gram[k]).collect();
    base.extend_from_slice(rest);
    let mut all = base.clone();
    for i in 0..base.len() {
        all.extend((0..=i).map(|j| base[i] * base[j]));
    }
    all
}

/// Means over prompts of every feature, with their standard errors.
fn feature_means(rows: &[Vec<f64>]) -> Vec<(f64, f64)> {
    (0..rows[0].len()).map(|f| mean_and_error(&rows.iter().map(|r| r[f]).collect::<Vec<_>>())).collect()
}

#[test]
fn the_three_samplers_have_the_same_law() {
    let d = 3;
    let covariance = Covariance::rotated(&[1.0, 0.25, 2.0], 8).unwrap();
    for prior in [WeightPrior::Isotropic, WeightPrior::InverseCovariance] {
        for n in [1, 2, 3, 7, 20] {
            let task = task(&covariance, n, prior);
            let batch = 30_000;
            let from_prompts = task.sample(batch, 41).unwrap().moments::<f64>();
            let direct = task.sample_moments::<f64>(batch, 42).unwrap();
            let rows = |m: &incontext::ops::moments::Moments<f64>| -> Vec<Vec<f64>> {
                (0..batch).map(|k| features(d, &m.prompt(k).unwrap())).collect()
            };
            let (a, b) = (rows(&from_prompts), rows(&direct));
            let grams = task.sample_gram(batch, 43).unwrap();
            let c: Vec<Vec<f64>> = grams.chunks(d * d).map(|g| features(d, g)).collect();
            let (a_means, b_means, c_means) = (feature_means(&a), feature_means(&b), feature_means(&c));
            for (f, (x, y)) in a_means.iter().zip(&b_means).enumerate() {
                let sigma = x.1.hypot(y.1);
                assert!((x.0 - y.0).abs() <= 5.0 * sigma, "n {n}, {prior:?}, feature {f}: {x:?} against {y:?}");
            }
            // Exactly known: E Ĝ = Σ, Cov(Ĝ_ij, Ĝ_kl) = (Σ_ik Σ_jl + Σ_il Σ_jk)/n.
            let sigma = covariance.matrix();
            let pairs: Vec<(usize, usize)> = (0..d * d).map(|k| (k / d, k % d)).filter(|(i, j)| i <= j).collect();
            let mut expected: Vec<f64> = pairs.iter().map(|&ij| sigma[ij]).collect();
            for (p, &(i, j)) in pairs.iter().enumerate() {
                for &(k, l) in &pairs[..=p] {
                    let covariance = sigma[(i, k)] * sigma[(j, l)] + sigma[(i, l)] * sigma[(j, k)];
                    expected.push(sigma[(i, j)] * sigma[(k, l)] + covariance / n as f64);
                }
            }
            for (f, ((mean, error), exact)) in c_means.iter().zip(&expected).enumerate() {
                assert!((mean - exact).abs() <= 5.0 * error, "n {n}, Gram feature {f}: {mean} ± {error}, {exact}");
            }
            // In whitened coordinates the smallest eigenvalues vanish for n < d, and only then.
            for gram in grams.chunks(d * d).take(200) {
                let gram = Matrix::from_vec(d, d, gram.to_vec()).unwrap();
                let white = covariance.inv_sqrt().mul(&gram).mul(covariance.inv_sqrt());
                let rank = white.eigen_symmetric().unwrap().0.iter().filter(|v| **v > 1e-12).count();
                assert_eq!(rank, n.min(d), "rank of a Gram matrix of {n} examples");
            }
        }
    }
}

#[test]
fn moments_are_those_of_the_prompt() {
    let prompts = arbitrary_prompts(37, 4, 3, 19);
    let moments = prompts.moments::<f64>();
    assert!(moments.prompt(37).is_none());
    for k in 0..37 {
        let (values, gram) = (moments.prompt(k).unwrap(), gram_of(&prompts, k));
        let cross = (0..3).map(|i| (0..4).map(|t| prompts.x(k)[t * 3 + i] * prompts.y(k)[t]).sum::<f64>() / 4.0);
        let expected = gram.as_slice().to_vec().into_iter().chain(cross);
        let expected = expected.chain(prompts.x(k)[12..].to_vec()).chain([prompts.y(k)[4]]);
        for (got, expected) in values.iter().zip(expected.collect::<Vec<_>>()) {
            close(*got, expected, 1e-15, "a moment");
        }
    }
}

/// E tr (X Xᵀ)^k for X of shape d x n with standard normal entries: the sum over the pairings of the 2k factors of
/// d^{loops of rows} n^{loops of columns} (Wick).
fn wishart_trace_moment(k: usize, d: f64, n: f64) -> f64 {
    fn pairings(rest: &[usize], pairs: &mut Vec<(usize, usize)>, visit: &mut dyn FnMut(&[(usize, usize)])) {
        let Some((&first, others)) = rest.split_first() else { return visit(pairs) };
        for (at, &second) in others.iter().enumerate() {
            let rest: Vec<usize> = others.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, v)| *v).collect();
            pairs.push((first, second));
            pairings(&rest, pairs, visit);
            pairs.pop();
        }
    }
    // Factor 2t is X[i_t, j_t], factor 2t + 1 is X[i_{t+1}, j_t].
    let (row, column) = (|f: usize| f.div_ceil(2) % k, |f: usize| f / 2);
    let loops = |pairs: &[(usize, usize)], index: &dyn Fn(usize) -> usize| {
        let mut class: Vec<usize> = (0..k).collect();
        for &(a, b) in pairs {
            let (from, to) = (class[index(a)], class[index(b)]);
            class.iter_mut().filter(|c| **c == from).for_each(|c| *c = to);
        }
        (0..k).filter(|c| class.contains(c)).count() as i32
    };
    let mut sum = 0.0;
    let factors: Vec<usize> = (0..2 * k).collect();
    pairings(&factors, &mut Vec::new(), &mut |pairs| sum += d.powi(loops(pairs, &row)) * n.powi(loops(pairs, &column)));
    sum
}

#[test]
fn wishart_moments_are_those_of_the_formulas_and_of_both_samplers() {
    for (d, n) in [(5.0_f64, 20.0_f64), (3.0, 2.0), (1.0, 1.0), (10.0, 7.0)] {
        let stated = [
            d * n,
            d * n * n + d * n + d * d * n,
            d * n.powi(3) + 3.0 * d * n * n + 3.0 * d * d * n * n + 4.0 * d * n + 3.0 * d * d * n + d.powi(3) * n,
            d * n.powi(4)
                + 6.0 * d * n.powi(3)
                + 6.0 * d * d * n.powi(3)
                + 21.0 * d * n * n
                + 17.0 * d * d * n * n
                + 6.0 * d.powi(3) * n * n
                + 20.0 * d * n
                + 21.0 * d * d * n
                + 6.0 * d.powi(3) * n
                + d.powi(4) * n,
        ];
        for (k, stated) in stated.iter().enumerate() {
            assert_eq!(wishart_trace_moment(k + 1, d, n), *stated, "k = {}", k + 1);
        }
    }
    for (d, n) in [(5, 20), (5, 3), (2, 9)] {
        let task = task(&Covariance::identity(d).unwrap(), n, WeightPrior::Isotropic);
        let grams = task.sample_gram(60_000, 77).unwrap();
        let prompts = task.sample(20_000, 78).unwrap();
        let drawn = (0..prompts.len()).map(|k| gram_of(&prompts, k)).collect::<Vec<_>>();
        let bartlett = grams.chunks(d * d).map(|g| Matrix::from_vec(d, d, g.to_vec()).unwrap()).collect();
        for (name, sample) in [("Bartlett", bartlett), ("prompts", drawn)] {
            let mut traces = vec![Vec::new(); 4];
            for gram in &sample {
                let mut power = gram.clone();
                for trace in &mut traces {
                    trace.push(power.trace());
                    power = power.mul(gram);
                }
            }
            for (k, traces) in traces.iter().enumerate() {
                let expected = wishart_trace_moment(k + 1, d as f64, n as f64) / (n as f64).powi(k as i32 + 1);
                within(traces, expected, 4.5, &format!("{name}, d {d}, n {n}, k {}", k + 1));
            }
        }
    }
}

#[test]
fn the_kernel_polynomial_gives_the_optimum_of_the_family_and_the_engine_agrees() {
    let table: [(usize, usize, f64, &[f64]); 8] = [
        (5, 20, 1.153846, &[0.76923]),
        (5, 20, 0.361240, &[0.51537, 1.24957]),
        (5, 20, 0.133608, &[0.42241, 0.68913, 1.71422]),
        (5, 10, 0.970971, &[0.38689, 1.09959]),
        (5, 10, 0.579367, &[0.30031, 0.52869, 1.64433]),
        (5, 19, 0.150723, &[0.41321, 0.67819, 1.71866]),
        (10, 20, 1.684494, &[0.42032, 1.17999]),
        (10, 20, 0.912833, &[0.35055, 0.58995, 1.80994]),
    ];
    for (d, n, stated, steps) in table {
        let layers = steps.len();
        let moment = |k: usize| wishart_trace_moment(k, d as f64, n as f64) / (n as f64).powi(k as i32) / d as f64;
        let m: Vec<f64> = (1..=2 * layers).map(moment).collect();
        let system = Matrix::from_fn(layers, layers, |i, j| m[i + j + 1]);
        let c = solve(&system, &m[..layers].iter().map(|v| -v).collect::<Vec<_>>()).unwrap();
        let f = d as f64 * (1.0 + c.iter().zip(&m).map(|(c, v)| c * v).sum::<f64>());
        close(f, stated, 6e-7, "f*");
        let polynomial: Vec<f64> = [1.0].into_iter().chain(c).collect();
        let mut a: Vec<f64> = real_roots(&polynomial).unwrap().iter().map(|r| 1.0 / r).collect();
        a.sort_by(f64::total_cmp);
        for (a, stated) in a.iter().zip(steps) {
            close(*a, *stated, 6e-6, "step size");
        }
        // The crate's own, which counts pairings in another way.
        let ours = KernelPolynomial::new(d, n, layers).unwrap();
        close(ours.loss, f, 1e-12, "f* of the crate");
        for (ours, a) in ours.steps.iter().zip(&a) {
            close(*ours, *a, 1e-10, "step size of the crate");
        }
        for k in 1..=5 {
            close(wishart_moment(d, n, k), moment(k), 1e-14, "moment of the crate");
        }
        let covariance = Covariance::rotated(&vec![0.5; d], 1).unwrap();
        let white = task(&Covariance::identity(d).unwrap(), n, WeightPrior::Isotropic);
        let grams = GramSamples::new(d, &white.sample_gram(40_000, 5).unwrap()).unwrap();
        let whitened = family(&a, &[], &covariance).whitened(&covariance).unwrap();
        within(&grams.losses(&whitened).unwrap(), f, 4.0, "the engine at the optimum");
    }
}

#[test]
fn the_local_minima_of_gd_plus_plus_have_the_losses_of_section_4_6() {
    let identity = Covariance::identity(5).unwrap();
    let grams = task(&identity, 20, WeightPrior::Isotropic).sample_gram(200_000, 6).unwrap();
    let grams = GramSamples::new(5, &grams).unwrap();
    let table: [([f64; 3], [f64; 2], f64); 4] = [
        ([0.378, 2.406, 9.62], [0.906, 0.566], 6.84e-4),
        ([0.379, 3.214, 8.55], [0.905, 0.352], 7.37e-4),
        ([0.716, 2.651, 7.171], [0.342, 0.345], 1.319e-3),
        ([1.863, 1.377, 6.45], [0.107, 0.598], 1.88e-3),
    ];
    for (a, b, stated) in table {
        let params = family(&a, &b, &identity).whitened(&identity).unwrap();
        let (loss, _) = grams.loss_and_gradient(&params).unwrap();
        assert!((loss / stated - 1.0).abs() < 0.05, "{loss:e} against {stated:e}");
        // A minimum along the family: other step sizes and other b are worse.
        for k in 0..5 {
            for h in [-0.05, 0.05] {
                let (mut a, mut b) = (a, b);
                if k < 3 {
                    a[k] *= 1.0 + h
                } else {
                    b[k - 3] *= 1.0 + h
                }
                let params = family(&a, &b, &identity).whitened(&identity).unwrap();
                assert!(grams.loss_and_gradient(&params).unwrap().0 > loss, "parameter {k} by {h}");
            }
        }
    }
}

#[test]
fn looped_layers_have_the_optimum_of_the_table() {
    for (d, n, layers, f, a) in [
        (5, 20, 2, 0.499007, 0.74252),
        (5, 20, 3, 0.268342, 0.71559),
        (10, 20, 2, 2.105277, 0.62808),
        (10, 20, 3, 1.458677, 0.61125),
    ] {
        let looped = KernelPolynomial::looped(d, n, layers).unwrap();
        close(looped.loss, f, 6e-7, "looped f*");
        assert!(looped.steps.iter().all(|s| (s - a).abs() < 6e-6), "{:?} against {a}", looped.steps);
    }
}

/// The moments of the spectral measure are those of the Wishart law, E tr Ĝ = d, E tr Ĝ² = d (1 + (d + 1)/n) and
/// E tr Ĝ³ = d (n² + 3n(d + 1) + d² + 3d + 4)/n², for contexts longer and shorter than d; and it has a tail.
#[test]
fn the_spectral_measure_has_the_moments_of_wishart() {
    for (d, n) in [(5, 20), (5, 5), (5, 2), (3, 1), (1, 4)] {
        let measure = SpectralMeasure::wishart_with_tail(d, n, 20_000, 24, 1).unwrap();
        let moment = |k: i32| measure.nodes.iter().zip(&measure.weights).map(|(x, w)| w * x.powi(k)).sum::<f64>();
        let (df, nf) = (d as f64, n as f64);
        let third = (nf * nf + 3.0 * nf * (df + 1.0) + df * df + 3.0 * df + 4.0) / (nf * nf);
        for (k, expected) in [(0, 1.0), (1, 1.0), (2, 1.0 + (df + 1.0) / nf), (3, third)] {
            close(moment(k), expected, 0.02, &format!("moment {k} at d = {d}, n = {n}"));
        }
    }
    let drawn = SpectralMeasure::wishart(5, 4, 20_000, 32, 1).unwrap();
    let exact = SpectralMeasure::wishart_with_tail(5, 4, 20_000, 32, 1).unwrap();
    let best = GdPlusPlus::minima(3, &drawn, 10, 1).unwrap().swap_remove(0).0;
    assert!(best.loss(&exact) > 1e3 * best.loss(&drawn), "the best of drawn spectra fails beyond them");
}

/// Weighted draws of large contexts estimate what plain draws do, at a tenth of their error where the tail decides.
#[test]
fn weighted_contexts_estimate_the_same_loss() {
    let white = LinearRegression::new(Covariance::identity(3).unwrap(), 6, WeightPrior::Isotropic).unwrap();
    let (grams, weights) = white.sample_gram_tails(40_000, 2).unwrap();
    let weighted = GramSamples::weighted(3, &grams, &weights).unwrap();
    let measure = SpectralMeasure::wishart_with_tail(3, 6, 40_000, 24, 2).unwrap();
    // Two steps of 0.9: E (1 − 0.9 λ)⁴ is decided by large λ.
    let layer: Vec<f64> = (0..18).map(|i| if i >= 9 && (i - 9) % 4 == 0 { -0.9 } else { 0.0 }).collect();
    let expected = GdPlusPlus { a: vec![0.9, 0.9], b: vec![] }.loss(&measure);
    close(weighted.loss(&layer.repeat(2)).unwrap(), expected, 0.03, "the weighted mean");
    let (loss, gradient) = weighted.loss_and_gradient(&layer.repeat(2)).unwrap();
    close(loss, weighted.loss(&layer.repeat(2)).unwrap(), 1e-12, "the loss with its gradient");
    let mut moved = layer.repeat(2);
    let (at, h) = (9, 1e-5);
    moved[at] += h;
    let up = weighted.loss(&moved).unwrap();
    moved[at] -= 2.0 * h;
    close(gradient[at], (up - weighted.loss(&moved).unwrap()) / (2.0 * h), 1e-6, "the gradient");
}

#[test]
fn bfgs_finds_the_local_minima_of_gd_plus_plus_and_the_scalar_loss_is_the_engines() {
    let measure = SpectralMeasure::wishart(5, 20, 200_000, 40, 3).unwrap();
    let found = GdPlusPlus::minima(3, &measure, 60, 1).unwrap();
    assert!(found.len() >= 5, "{} minima", found.len());
    assert!((found[0].1 / 6.84e-4 - 1.0).abs() < 0.03, "the best: {:e}", found[0].1);
    for (minimum, loss) in &found {
        close(minimum.loss(&measure), *loss, 1e-9, "the loss of a minimum");
    }
    // Eigenvalues of one Gram matrix, as a measure: the loss is the engine's, exactly.
    let identity = Covariance::identity(5).unwrap();
    let gram = task(&identity, 20, WeightPrior::Isotropic).sample_gram(1, 9).unwrap();
    let (nodes, _) = Matrix::from_vec(5, 5, gram.clone()).unwrap().eigen_symmetric().unwrap();
    let one = SpectralMeasure { dim: 5, nodes, weights: vec![0.2; 5] };
    let gram = GramSamples::new(5, &gram).unwrap();
    for (minimum, _) in found.iter().take(4) {
        let params = family(&minimum.a, &minimum.b, &identity).whitened(&identity).unwrap();
        close(minimum.loss(&one), gram.losses(&params).unwrap()[0], 1e-12, "scalar and matrix form");
    }
}

#[test]
fn the_model_with_sigma_inverse_is_preconditioned_gradient_descent_and_least_squares_is_exact() {
    let covariance = Covariance::rotated(&SPECTRUM, 14).unwrap();
    for n in [2, 8] {
        let prompts = task(&covariance, n, WeightPrior::InverseCovariance).sample(300, 4).unwrap();
        let steps = [0.4, 0.7, 0.2];
        let predictions = family(&steps, &[], &covariance).predict(&Arc::new(prompts.moments())).unwrap();
        // Its gradient is a sum over the examples, the model's a mean.
        let rates = steps.iter().map(|a| a / n as f64).collect();
        let pgd = GradientDescent::preconditioned(rates, covariance.inverse()).unwrap();
        let ols = LeastSquares::default().whitened(covariance.inv_sqrt().clone());
        for (k, prediction) in predictions.iter().enumerate() {
            let examples = Examples::of(&prompts, k, n).unwrap();
            let predict = |w: &[f64]| prompts.x(k)[n * 5..].iter().zip(w).map(|(x, w)| x * w).sum::<f64>();
            let iterates = pgd.iterates(&examples, 3).unwrap();
            close(*prediction, predict(&iterates[3]), 1e-12, "three layers and three steps");
            // Noiseless labels: least squares interpolates, and finds w⋆ where there are enough examples.
            let w = &ols.iterates(&examples, 1).unwrap()[1];
            for (x, y) in examples.x.chunks(5).zip(examples.y) {
                close(x.iter().zip(w).map(|(x, w)| x * w).sum(), *y, 1e-7, "an interpolated label");
            }
            if n >= 5 {
                close(predict(w), prompts.y(k)[n], 1e-6, "the query's label");
            }
        }
    }
    // Its mean loss with n < d examples is d - n (pgd.md section 5.1).
    let prompts = task(&covariance, 2, WeightPrior::InverseCovariance).sample(40_000, 5).unwrap();
    let ols = LeastSquares::default().whitened(covariance.inv_sqrt().clone());
    let errors: Vec<f64> = (0..prompts.len())
        .map(|k| {
            let w = ols.iterates(&Examples::of(&prompts, k, 2).unwrap(), 0).unwrap().remove(0);
            (prompts.x(k)[10..].iter().zip(w).map(|(x, w)| x * w).sum::<f64>() - prompts.y(k)[2]).powi(2)
        })
        .collect();
    within(&errors, 3.0, 4.0, "least squares with 2 examples in 5 dimensions");
}

#[test]
fn the_exact_gradient_of_the_training_is_the_average_of_the_prompt_level_one() {
    let d = 3;
    let covariance = Covariance::rotated(&[1.0, 0.25, 2.0], 5).unwrap();
    for form in [Parametrisation::Preconditioner, Parametrisation::Transform] {
        let values: Vec<f32> = random(8, 3 * 2 * d * d, 0.2).iter().map(|v| *v as f32).collect();
        let trained = LinearTransformer::<f32>::from_values(values, 3, d, form).unwrap();
        let wide = trained.params.as_vec().iter().map(|v| f64::from(*v)).collect();
        let wide = LinearTransformer::<f64>::from_values(wide, 3, d, form).unwrap();
        let contexts = task(&covariance, 4, WeightPrior::InverseCovariance).sample(1, 6).unwrap();
        let prompts = all_tasks_and_queries(&contexts, 0, &covariance);
        let white = covariance.inv_sqrt().mul(&gram_of(&contexts, 0)).mul(covariance.inv_sqrt());
        let grams = GramSamples::new(d, white.as_slice()).unwrap();
        let (loss, mut exact) = trained.exact_loss_and_gradient(&covariance, &grams).unwrap();
        close(loss, wide.loss(&Arc::new(prompts.moments())).unwrap(), 1e-12, "loss");
        let exact = gradient_mut(&mut exact, &trained.params).unwrap().to_vec();
        let average: Vec<f64> =
            gradient(&wide, &prompts).iter().flatten().flat_map(|m| m.as_slice().to_vec()).collect();
        for (a, b) in exact.iter().zip(&average) {
            close(f64::from(*a), *b, 1e-6, "gradient");
        }
        assert!(average.iter().any(|g| g.abs() > 0.1), "there is a gradient");
    }
}
