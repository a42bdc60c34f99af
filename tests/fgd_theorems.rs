//! The statements of `fgd` checked numerically (fgd.md section 4), and what the trainings stand on.

use incontext::algorithms::{FunctionalGradientDescent, KernelRidge, LinearSmoother, bayes_risk, risk};
use incontext::experiments::fgd::recipes::{self, Protocol, Run, Start};
use incontext::linalg::Matrix;
use incontext::models::KernelTransformer;
use incontext::ops::kernel_prompts::{KernelPrompts, Labels};
use incontext::ops::kernel_transformer::{Activation, ValueBlock};
use incontext::progress::Silent;
use incontext::tasks::{Combination, Covariance, Kernel, KernelRegression, Profile, Term};

fn kernels() -> Vec<Kernel> {
    let weighted = [
        Term::new(Profile::Linear, 1.0).on(&[1.0, 1.0]).weighted(0.5),
        Term::new(Profile::Exp, 0.5).on(&[0.0, 0.0, 1.0, 1.0, 2.0]).weighted(0.25),
        Term::new(Profile::Relu, 0.7),
    ];
    vec![
        Kernel::linear(),
        Kernel::relu(),
        Kernel::exp(0.5).unwrap(),
        Kernel::combination(Combination::Code),
        Kernel::combination(Combination::Exchanged),
        Kernel::sum("three terms", &weighted).unwrap(),
    ]
}

fn sigma() -> Covariance {
    Covariance::rotated(&[1.0, 1.0, 0.25, 2.25, 1.0], 4).unwrap()
}

/// The points of the sphere behind covariates x = Σ^{1/2} ξ.
fn whitened(x: &[f64], covariance: &Covariance) -> Vec<f64> {
    x.chunks(covariance.dim()).flat_map(|x| covariance.inv_sqrt().mul_vec(x)).collect()
}

#[test]
fn explicit_weights_are_functional_gradient_descent_for_every_kernel_and_depth() {
    // Propositions 3.1 and 3: one head a term of the kernel.
    let n = 9;
    for kernel in kernels() {
        for layers in [1, 2, 3, 7] {
            let steps: Vec<f64> = (0..layers).map(|l| 0.05 + 0.02 * l as f64).collect();
            let model = KernelTransformer::<f64>::functional_gradient_descent(&kernel, &steps, n, &sigma()).unwrap();
            let task = KernelRegression::new(kernel.clone(), sigma(), n).unwrap();
            let prompts = task.prompts::<f64>(21, Labels::Covariance, 3).unwrap();
            let residuals = model.residuals(&prompts).unwrap();
            let fgd = FunctionalGradientDescent::new(steps).unwrap();
            for (k, g) in residuals.weights.chunks(n + 1).enumerate() {
                let gram = kernel.gram(&whitened(&prompts.x(k).unwrap(), &sigma()), 5).unwrap();
                let expected = fgd.weights(&gram, layers).unwrap();
                for (g, w) in g.iter().zip(&expected[layers]) {
                    assert!((g + w).abs() < 1e-14 * (1.0 + w.abs()) * layers as f64, "{}: {g} {w}", kernel.name());
                }
                assert_eq!(g[n], 1.0);
                let exact = risk(&expected[layers], &prompts.covariance(k).unwrap()).unwrap();
                assert!((residuals.losses[k] - exact).abs() < 1e-12 * (1.0 + exact), "{}", kernel.name());
            }
        }
    }
}

#[test]
fn the_iterates_are_the_weights_and_richardsons_sum() {
    // Proposition 3.4: f_L(x) = kᵀ [I − (I − δK̂)^L] K̂⁻¹ y.
    let task = KernelRegression::new(Kernel::exp(1.0).unwrap(), Covariance::identity(5).unwrap(), 6).unwrap();
    let prompts = task.prompts::<f64>(5, Labels::Covariance, 1).unwrap();
    let (n, delta, steps) = (6, 0.1, 12);
    for k in 0..prompts.len() {
        let full = prompts.covariance(k).unwrap();
        let gram = Matrix::from_fn(n, n, |i, j| full[(i, j)]);
        let query: Vec<f64> = (0..n).map(|i| full[(i, n)]).collect();
        let y: Vec<f64> = (0..n).map(|i| (i as f64).sin()).collect();
        let fgd = FunctionalGradientDescent::new(vec![delta]).unwrap();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let weights = fgd.weights(&full, steps).unwrap();
        let iterates = fgd.iterates(&gram, &y, steps).unwrap();
        for l in 0..=steps {
            // [1 − (1 − δλ)^L] / λ of every eigenvalue of K̂.
            let richardson = gram.map_symmetric(|v| (1.0 - (1.0 - delta * v).powi(l as i32)) / v).unwrap();
            let expected = dot(&richardson.mul_vec(&query), &y);
            assert!((dot(&weights[l], &y) - expected).abs() < 1e-10);
            assert!((dot(&iterates[l], &query) - expected).abs() < 1e-10);
        }
    }
}

#[test]
fn with_small_steps_the_limit_is_bayes_for_a_positive_kernel_and_not_for_relu() {
    let at = |kernel: Kernel, steps: usize| {
        let task = KernelRegression::new(kernel.clone(), Covariance::identity(5).unwrap(), 8).unwrap();
        let prompts = task.prompts::<f64>(200, Labels::Covariance, 1).unwrap();
        let fgd = FunctionalGradientDescent::new(vec![0.15]).unwrap();
        let mut gap = 0.0;
        for k in 0..prompts.len() {
            let covariance = prompts.covariance(k).unwrap();
            let gram = kernel.gram(&prompts.x(k).unwrap(), 5).unwrap();
            let weights = fgd.weights(&gram, steps).unwrap();
            gap += risk(&weights[steps], &covariance).unwrap() - bayes_risk(&covariance).unwrap();
        }
        gap / prompts.len() as f64
    };
    assert!(at(Kernel::exp(0.5).unwrap(), 20_000) < 1e-3);
    assert!(at(Kernel::relu(), 40) > 0.02);
}

#[test]
fn the_posterior_mean_reaches_the_bayes_risk_and_the_risks_are_those_of_the_specification() {
    // fgd.md section 4.2: ln of the Bayes risk at d = 5; linear is exactly 1 − n/d.
    let exp = |c: f64| Kernel::exp(c).unwrap();
    let known: [(Kernel, usize, f64); 8] = [
        (Kernel::linear(), 2, -0.510),
        (Kernel::linear(), 4, -1.590),
        (Kernel::relu(), 6, -0.821),
        (Kernel::relu(), 14, -1.716),
        (exp(0.5), 6, -1.081),
        (exp(1.0), 14, -0.530),
        (Kernel::combination(Combination::Code), 6, -2.871),
        (Kernel::combination(Combination::AllCoordinates), 6, -2.034),
    ];
    for (kernel, n, expected) in known {
        let task = KernelRegression::new(kernel, Covariance::identity(5).unwrap(), n).unwrap();
        let prompts = task.prompts::<f64>(4000, Labels::Covariance, 5).unwrap();
        let mut mean = 0.0;
        for k in 0..prompts.len() {
            let covariance = prompts.covariance(k).unwrap();
            let bayes = bayes_risk(&covariance).unwrap();
            mean += bayes / prompts.len() as f64;
            if k < 20 {
                let weights = KernelRidge::default().weights(&covariance, 0).unwrap();
                let reached = risk(&weights[0], &covariance).unwrap();
                assert!((reached - bayes).abs() < 1e-7, "{}: {reached} {bayes}", task.kernel().name());
            }
        }
        assert!((mean.ln() - expected).abs() < 0.06, "{}, n = {n}: {} {expected}", task.kernel().name(), mean.ln());
    }
    // At least d examples determine a linear function.
    let covariance = Kernel::linear().gram(&[1.0, 0.0, 0.6, 0.8, 0.0, 1.0], 2).unwrap();
    assert_eq!(bayes_risk(&covariance).unwrap(), 0.0);
}

#[test]
fn the_loss_over_labels_is_the_mean_over_sampled_ones_and_so_is_its_gradient() {
    // The authors' training and the exact one minimise the same function.
    let task = KernelRegression::new(Kernel::relu(), sigma(), 6).unwrap();
    let heads = [Activation::Exp, Activation::Linear];
    let model = KernelTransformer::<f64>::init(2, 5, &heads, ValueBlock::Free, 0.3, 1).unwrap();
    let size = 60_000;
    let exact = task.prompts::<f64>(size, Labels::Covariance, 2).unwrap();
    let sampled = task.prompts::<f64>(size, Labels::Sampled, 2).unwrap();
    assert_eq!(exact.x(7), sampled.x(7));
    let (expected, losses) = (model.residuals(&exact).unwrap().losses, model.residuals(&sampled).unwrap().losses);
    let differences: Vec<f64> = losses.iter().zip(&expected).map(|(a, b)| a - b).collect();
    let mean = differences.iter().sum::<f64>() / size as f64;
    let deviation = (differences.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / size as f64).sqrt();
    assert!(mean.abs() < 4.0 * deviation / (size as f64).sqrt(), "{mean} {deviation}");

    let gradient = |labels: Labels, seed: u64| {
        let prompts = task.prompts::<f64>(3000, labels, seed).unwrap();
        model.loss_and_gradient(&prompts).unwrap().1.get(&model.params).as_vec()
    };
    let runs: Vec<Vec<f64>> = (0..20)
        .map(|s| gradient(Labels::Sampled, s).iter().zip(gradient(Labels::Covariance, s)).map(|(a, b)| a - b).collect())
        .collect();
    for k in 0..runs[0].len() {
        let mean = runs.iter().map(|r| r[k]).sum::<f64>() / 20.0;
        let deviation = (runs.iter().map(|r| (r[k] - mean).powi(2)).sum::<f64>() / 19.0).sqrt();
        // 152 entries: five standard errors of a mean of 20.
        assert!(mean.abs() <= 5.0 * deviation / 20_f64.sqrt() + 1e-12, "entry {k}: {mean} {deviation}");
    }
}

/// All signed permutations of three coordinates.
fn signed_permutations() -> Vec<Matrix> {
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    let mut all = Vec::new();
    for order in orders {
        for signs in 0..8 {
            let sign = |i: usize| if signs >> i & 1 == 1 { -1.0 } else { 1.0 };
            all.push(Matrix::from_fn(3, 3, |i, j| if order[i] == j { sign(i) } else { 0.0 }));
        }
    }
    all
}

#[test]
fn the_predicted_points_are_stationary_up_to_their_scales_for_any_kernel_and_activation() {
    // Theorems 1 and 2: at A = aI, B = bΣ^{-1/2}, C = cΣ^{-1/2} the gradient is along the family itself. A set of
    // covariates that is closed under signed permutations of ξ has the symmetry that the proof needs, exactly.
    let (d, n, layers) = (3, 5, 3);
    let covariance = Covariance::rotated(&[1.0, 0.25, 2.25], 7).unwrap();
    let pairs = [
        (Kernel::exp(0.5).unwrap(), Activation::Exp),
        (Kernel::relu(), Activation::Relu),
        (Kernel::linear(), Activation::Softmax),
        (Kernel::exp(0.5).unwrap(), Activation::Linear),
    ];
    for (kernel, activation) in pairs {
        let task = KernelRegression::new(kernel, Covariance::identity(d).unwrap(), n).unwrap();
        let base = task.prompts::<f64>(3, Labels::Covariance, 2).unwrap();
        let (mut x, mut covariances) = (Vec::new(), Vec::new());
        for k in 0..base.len() {
            for u in signed_permutations() {
                let map = covariance.sqrt().mul(&u);
                x.extend(base.x(k).unwrap().chunks(d).flat_map(|xi| map.mul_vec(xi)));
                covariances.push(base.covariance(k).unwrap());
            }
        }
        let prompts = KernelPrompts::<f64>::with_covariances(n, d, &x, &covariances).unwrap();
        let mut values = Vec::new();
        for l in 0..layers {
            values.extend(Matrix::identity(d).scaled(-0.2 + 0.1 * l as f64).as_slice());
            values.extend(covariance.inv_sqrt().scaled(0.9 + 0.2 * l as f64).as_slice());
            values.extend(covariance.inv_sqrt().scaled(1.1 - 0.3 * l as f64).as_slice());
            values.push(-1.0 - l as f64);
        }
        let name = activation.name().to_owned();
        let model = KernelTransformer::from_values(values, layers, d, &[activation], ValueBlock::Free).unwrap();
        let gradient = model.loss_and_gradient(&prompts).unwrap().1.get(&model.params).as_vec();
        for (l, gradient) in gradient.chunks(3 * d * d + 1).enumerate() {
            let matrix = |k: usize| Matrix::from_vec(d, d, gradient[k * d * d..][..d * d].to_vec()).unwrap();
            // In the directions I for A, Σ^{1/2} for B and C.
            let found = [matrix(0), covariance.inv_sqrt().mul(&matrix(1)), covariance.inv_sqrt().mul(&matrix(2))];
            for (k, g) in found.iter().enumerate() {
                let off = g.plus(-g.trace() / d as f64, &Matrix::identity(d)).norm();
                assert!(off < 1e-12, "{name}, layer {l}, block {k}: {off:e} of {:e}", g.norm());
            }
        }
    }
}

#[test]
fn one_linear_layer_has_the_optimum_of_the_closed_form() {
    // fgd.md 4.6: E Ĝ² = (1/(nd) + (n−1)/(nd²)) I, a* = nd/(n+d−1), f* = (d−1)/(n+d−1).
    let (d, n) = (5, 8);
    let covariance = Covariance::identity(d).unwrap();
    let task = KernelRegression::new(Kernel::linear(), covariance.clone(), n).unwrap();
    let prompts = task.prompts::<f64>(40_000, Labels::Covariance, 9).unwrap();
    let best = d as f64 / (n + d - 1) as f64;
    let losses = |step: f64| {
        let model =
            KernelTransformer::<f64>::functional_gradient_descent(task.kernel(), &[step], n, &covariance).unwrap();
        model.residuals(&prompts).unwrap().losses
    };
    let at = losses(best);
    let mean = at.iter().sum::<f64>() / at.len() as f64;
    let deviation = (at.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / at.len() as f64).sqrt();
    let exact = (d - 1) as f64 / (n + d - 1) as f64;
    assert!((mean - exact).abs() < 4.0 * deviation / (at.len() as f64).sqrt(), "{mean} {exact}");
    for other in [0.9 * best, 1.1 * best] {
        assert!(losses(other).iter().sum::<f64>() > at.iter().sum::<f64>());
    }
}

#[test]
fn the_relu_kernel_is_indefinite_and_a_strict_task_says_so() {
    let covariance = Covariance::identity(5).unwrap();
    let task = KernelRegression::new(Kernel::relu(), covariance.clone(), 14).unwrap();
    let prompts = task.prompts::<f64>(300, Labels::Covariance, 0).unwrap();
    let mut negative = 0;
    for k in 0..prompts.len() {
        let x = prompts.x(k).unwrap();
        let gram = Kernel::relu().gram(&x, 5).unwrap();
        negative += usize::from(gram.eigen_symmetric().unwrap().0[0] < 0.0);
        // Sixteen at once are what one at a time is: K₊ has |eigenvalues|, hence K₊² = K².
        let positive = prompts.covariance(k).unwrap();
        assert!(positive.mul(&positive).plus(-1.0, &gram.mul(&gram)).norm() < 1e-12);
        assert!(positive.plus(-1.0, &task.label_covariance(&x).unwrap()).norm() < 1e-12);
    }
    assert_eq!(negative, 300);
    let strict = task.strict();
    let said = strict.prompts::<f64>(16, Labels::Sampled, 0).unwrap_err().to_string();
    assert!(said.contains("eigenvalue -") && said.contains("ReLU"), "{said}");
    assert!(strict.label_covariance(&prompts.x(0).unwrap()).is_err());
    let exp = KernelRegression::new(Kernel::exp(0.5).unwrap(), covariance, 14).unwrap().strict();
    assert!(exp.sample(16, 0).is_ok());
}

#[test]
fn sampled_labels_have_their_covariance() {
    let task = KernelRegression::new(Kernel::relu(), sigma(), 2).unwrap().with_noise(0.3).unwrap();
    let size = 40_000;
    let prompts = task.sample(size, 1).unwrap();
    let exact = task.prompts::<f64>(size, Labels::Covariance, 1).unwrap();
    for (i, j) in [(0, 0), (2, 0), (2, 1), (2, 2)] {
        let differences: Vec<f64> =
            (0..size).map(|k| prompts.y(k)[i] * prompts.y(k)[j] - exact.covariance(k).unwrap()[(i, j)]).collect();
        let mean = differences.iter().sum::<f64>() / size as f64;
        let deviation = (differences.iter().map(|v| v * v).sum::<f64>() / size as f64).sqrt();
        assert!(mean.abs() < 4.0 * deviation / (size as f64).sqrt(), "{i} {j}: {mean}");
    }
}

/// A network of three layers that starts from one of two, each with 30 steps.
fn grown() -> Protocol {
    let mut below = recipes::exact(Kernel::relu(), &[Activation::Exp, Activation::Linear], 2, 4);
    below.steps = 30;
    Protocol { layers: 3, start: Start::Shallower(Box::new(below.clone())), record_every: Some(30), ..below }
}

#[test]
fn a_training_is_the_same_for_any_number_of_threads_and_after_an_interruption() {
    let run = Run::new(grown(), 3);
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| recipes::train(&run, "test", None, &Silent).unwrap())
    };
    let whole = with(1);
    assert_eq!(whole, with(3));
    /// Interrupts after some questions.
    struct Stop(std::sync::atomic::AtomicUsize);
    impl incontext::progress::Observer for Stop {
        fn report(&self, _: &incontext::progress::Report<'_>) {}
        fn interrupted(&self) -> bool {
            self.0.fetch_sub(1, std::sync::atomic::Ordering::Relaxed) == 1
        }
    }
    let folder = std::env::temp_dir().join(format!("incontext-fgd-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    // In the shallower network's training, and in its own.
    for questions in [12, 45] {
        let state = folder.join(format!("{questions}.safetensors"));
        let stop = Stop(std::sync::atomic::AtomicUsize::new(questions));
        assert!(recipes::train(&run, "test", Some(&state), &stop).is_err());
        assert_eq!(recipes::train(&run, "test", Some(&state), &Silent).unwrap(), whole);
        std::fs::remove_dir_all(&folder).unwrap();
        std::fs::create_dir_all(&folder).unwrap();
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_training_from_a_shallower_network_begins_with_its_function() {
    let protocol = grown();
    let Start::Shallower(below) = &protocol.start else { unreachable!() };
    let below = recipes::train(&Run::new(Protocol::clone(below), 1), "below", None, &Silent).unwrap();
    let history = recipes::train(&Run::new(protocol.clone(), 1), "grown", None, &Silent).unwrap();
    let (end, losses) = (below.measure("test").unwrap().last().unwrap(), history.measure("test").unwrap());
    assert!((losses[0] - end).abs() < 1e-12 * end, "{} {end}", losses[0]);
    // A rate at which it diverges is halved until it does not, and given up if none is small enough.
    let at = |rate: f64| {
        let mut run = Run::new(protocol.clone(), 1);
        run.protocol.adam.rate = rate;
        recipes::train(&run, "grown", None, &Silent)
    };
    let halved = at(0.8).unwrap();
    assert_eq!(halved, at(0.1).unwrap());
    assert!(halved.measure("test").unwrap()[1] < 1.01 * halved.measure("test").unwrap()[0]);
    let error = at(1e6).unwrap_err().to_string();
    assert!(error.contains("7 rates from 1000000 down"), "{error}");
    // The shallower network has one layer less, and as many heads.
    for (layers, heads) in [(2, 2), (4, 2), (3, 1)] {
        let heads = protocol.heads[..heads].to_vec();
        let run = Run::new(Protocol { layers, heads, ..protocol.clone() }, 1);
        let error = recipes::train(&run, "grown", None, &Silent).unwrap_err().to_string();
        assert!(error.contains("shallower network") && error.contains("one layer less"), "{error}");
    }
}

#[test]
fn a_kernel_and_an_activation_of_ones_own_train_in_five_lines() {
    let cubic = Kernel::own("cubic", |u, v| u.iter().zip(v).map(|(a, b)| a * b).sum::<f64>().powi(3));
    let heads = [Activation::own("cubic", |s| (s.powi(3), 3.0 * s * s))];
    let mut protocol = recipes::exact(cubic, &heads, 1, 6);
    protocol.steps = 60;
    let history = recipes::train(&Run::new(protocol, 0), "cubic", None, &Silent).unwrap();
    assert!(history.measure("test").unwrap().last().unwrap().ln() < 0.0);
}
