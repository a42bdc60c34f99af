//! Bad input on every public entry is an error that says what was given and what was expected, and never a panic.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dfdx::prelude::*;
use incontext::algorithms::{
    Algorithm, Chebyshev, Ends, Examples, FunctionalGradientDescent, GdPlusPlus, GradientDescent, HeavyBall,
    IterativeNewton, KernelPolynomial, KernelRidge, Lbfgs, LeastSquares, OnlineGradientDescent, Predictions,
    Run as Steps, SpectralMeasure, bayes_risk, losses, minimise, predictions, risk,
};
use incontext::compare::{Interval, Measure, Similarity, distance_to_identity, similarity_at};
use incontext::experiments::pgd::recipes::{self, Protocol, Run};
use incontext::experiments::{self, Settings, TrainOptions, mesa};
use incontext::figure::{Axis, Figure, Heatmap, Line, Panel};
use incontext::linalg::{Matrix, real_roots, solve};
use incontext::models::constructions::{Averaging, NewtonConstruction, Signs};
use incontext::models::soft_prompt::prompt_gradient;
use incontext::models::{
    GeneralLinearTransformer, Gpt2, Gpt2Config, Init, KernelTransformer, LinearTransformer, Lstm, LstmConfig,
    Parametrisation, Positions, SoftPrompt,
};
use incontext::ops::attention::Attention;
use incontext::ops::kernel_prompts::{KernelPrompts, Labels};
use incontext::ops::kernel_transformer::{Activation, ValueBlock};
use incontext::ops::layers;
use incontext::ops::linear_attention::{Mask, linear_attention};
use incontext::ops::linear_transformer::linear_transformer;
use incontext::ops::sequence_transformer::{Architecture, LaneBatch, cross_entropy};
use incontext::ops::wishart::GramSamples;
use incontext::probe::LinearProbe;
use incontext::progress::{Observer, Report, Silent, line};
use incontext::rng::{Rng, stream};
use incontext::tasks::dynamics::Start;
use incontext::tasks::{
    Covariance, FewShot, FewShotPrompts, HiddenUnit, IllConditioned, Kernel, KernelRegression, LinearRegression,
    Profile, Prompt, Prompts, Sequences, Term, Text, TwoLayerNetwork, WeightPrior, Windows,
};
use incontext::train::{
    Adam, AdamConfig, Array, Checkpoint, Clip, History, Problem, Schedule, Sgd, SgdConfig, Trainer,
};
use incontext::{Error, Result};

const NAN: f64 = f64::NAN;
const INF: f64 = f64::INFINITY;

/// `work` gives an error whose text has all of `words`, and does not panic.
fn refuses<T>(what: &str, words: &[&str], work: impl FnOnce() -> Result<T>) {
    match catch_unwind(AssertUnwindSafe(work)) {
        Err(_) => panic!("{what}: it panicked"),
        Ok(Ok(_)) => panic!("{what}: it was accepted"),
        Ok(Err(error)) => {
            let text = error.to_string();
            for word in words {
                assert!(text.contains(word), "{what}: '{text}' does not say '{word}'");
            }
        }
    }
}

/// `work` does not panic, whatever it gives.
fn survives<T>(what: &str, work: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| panic!("{what}: it panicked"))
}

fn identity(d: usize) -> Covariance {
    Covariance::identity(d).unwrap()
}

fn task(d: usize, n: usize) -> LinearRegression {
    LinearRegression::new(identity(d), n, WeightPrior::Isotropic).unwrap()
}

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("incontext-bad-input-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn linear_algebra() {
    refuses("from_vec", &["matrix", "[5]", "[2 x 3]"], || Matrix::from_vec(2, 3, vec![0.0; 5]));
    let wide = Matrix::zeros(2, 3);
    let singular = Matrix::from_fn(3, 3, |i, j| (i + j) as f64);
    let nan = Matrix::from_fn(2, 2, |_, _| NAN);
    let empty = Matrix::zeros(0, 0);
    refuses("cholesky of a wide matrix", &["[2, 3]", "square"], || wide.cholesky());
    refuses("cholesky of nothing", &["[0, 0]", "at least 1"], || empty.cholesky());
    refuses("cholesky, indefinite", &["not positive definite"], || singular.cholesky());
    refuses("cholesky of NaN", &["NaN"], || nan.cholesky());
    refuses("cholesky of the semidefinite", &["pivot"], || Matrix::from_fn(2, 2, |_, _| 1.0).cholesky());
    refuses("solve_spd, short side", &["[1]", "[2]"], || Matrix::identity(2).solve_spd(&[1.0]));
    refuses("solve_spd, long side", &["[3]", "[2]"], || Matrix::identity(2).solve_spd(&[1.0; 3]));
    refuses("solve_spd, indefinite", &["not positive definite"], || singular.solve_spd(&[1.0; 3]));
    refuses("eigenvalues of a wide matrix", &["[2, 3]"], || wide.eigen_symmetric());
    refuses("eigenvalues of NaN", &["not finite"], || nan.eigen_symmetric());
    refuses("eigenvalues of nothing", &["[0, 0]"], || empty.eigen_symmetric());
    refuses("inverse of the singular", &["undefined at eigenvalue"], || Matrix::zeros(2, 2).map_symmetric(|v| 1.0 / v));
    refuses("root of the negative", &["undefined"], || Matrix::identity(2).scaled(-1.0).map_symmetric(f64::sqrt));
    refuses("least squares, side", &["[3]", "[2]"], || wide.least_squares(&[1.0; 3]));
    refuses("least squares of NaN", &["not finite"], || nan.least_squares(&[1.0; 2]));
    refuses("least squares of nothing", &["[0, 0]"], || empty.least_squares(&[]));
    refuses("solve, shapes", &["[2, 3]", "[2, 2]"], || solve(&wide, &[1.0; 2]));
    refuses("solve, side", &["[3, 3]", "[2, 2]"], || solve(&singular, &[1.0; 2]));
    refuses("solve, singular", &["singular at column 2 of 3"], || {
        solve(&Matrix::diagonal(&[1.0, 2.0, 0.0]), &[1.0; 3])
    });
    refuses("solve, NaN", &["singular"], || solve(&nan, &[1.0; 2]));
    refuses("roots of nothing", &["leading coefficient"], || real_roots(&[]));
    refuses("roots of a constant", &["leading coefficient"], || real_roots(&[1.0]));
    refuses("roots, leading zero", &["leading coefficient"], || real_roots(&[1.0, 2.0, 0.0]));
    refuses("roots, complex", &["not real"], || real_roots(&[1.0, 0.0, 1.0]));
    refuses("roots, NaN", &["not finite"], || real_roots(&[NAN, 1.0, 1.0]));
    refuses("roots, infinite", &["not finite"], || real_roots(&[1.0, INF]));
    // Rank-deficient least squares is not bad input: the least norm.
    let x = Matrix::from_fn(2, 2, |_, _| 1.0).least_squares(&[2.0, 2.0]).unwrap();
    assert!(x.iter().all(|v| (v - 1.0).abs() < 1e-12), "{x:?}");
    assert_eq!(Matrix::zeros(2, 3).least_squares(&[1.0, 2.0]).unwrap(), [0.0; 3]);
}

#[test]
fn tasks() {
    refuses("dimension 0", &["dimension", "got 0"], || Covariance::identity(0));
    refuses("no eigenvalue", &["dimension"], || Covariance::rotated(&[], 1));
    for bad in [0.0, -1.0, NAN, INF] {
        let shown = format!("got {bad}");
        refuses("diagonal", &["eigenvalue", &shown, "positive finite"], || Covariance::diagonal(&[1.0, bad]));
        refuses("rotated", &["eigenvalue", &shown], || Covariance::rotated(&[1.0, bad], 1));
    }
    refuses("wide covariance", &["[2, 3]", "square"], || Covariance::from_matrix(&Matrix::zeros(2, 3)));
    refuses("empty covariance", &["[0, 0]"], || Covariance::from_matrix(&Matrix::zeros(0, 0)));
    refuses("asymmetric covariance", &["asymmetric"], || {
        Covariance::from_matrix(&Matrix::from_fn(2, 2, |i, j| if i <= j { 1.0 + (i == j) as u8 as f64 } else { 0.0 }))
    });
    refuses("singular covariance", &["eigenvalue"], || Covariance::from_matrix(&Matrix::diagonal(&[1.0, 0.0])));
    refuses("NaN covariance", &["not finite"], || Covariance::from_matrix(&Matrix::from_fn(2, 2, |_, _| NAN)));

    refuses("no context", &["context length", "got 0"], || {
        LinearRegression::new(identity(2), 0, WeightPrior::Isotropic)
    });
    for bad in [-0.1, NAN, INF] {
        refuses("noise", &["noise", &format!("got {bad}")], || task(2, 3).with_noise(bad));
    }
    let task = task(2, 3);
    refuses("no prompts", &["batch", "got 0"], || task.sample(0, 1));
    refuses("no moments", &["batch"], || task.sample_moments::<f32>(0, 1));
    refuses("no Gram matrices", &["batch"], || task.sample_gram(0, 1));
    for many in [usize::MAX, usize::MAX / 8, usize::MAX / 64 + 1] {
        refuses("prompts beyond memory", &["size of the prompts", "memory"], || task.sample(many, 1));
        refuses("moments beyond memory", &["size of the moments"], || task.sample_moments::<f64>(many, 1));
        refuses("Gram matrices beyond memory", &["size of the Gram"], || task.sample_gram(many, 1));
    }
    let endless = LinearRegression::new(identity(2), usize::MAX, WeightPrior::Isotropic).unwrap();
    refuses("a context beyond memory", &["size of the prompts"], || endless.sample(1, 1));
    refuses("noisy moments", &["noise", "0.5"], || task.clone().with_noise(0.5)?.sample_moments::<f32>(1, 1));

    let data = |batch, n, d, x: usize, y: usize| Prompts::from_data(batch, n, d, vec![1.0; x], vec![1.0; y]);
    refuses("no prompts", &["batch", "got 0"], || data(0, 1, 1, 0, 0));
    refuses("no context", &["[1, 0, 2]"], || data(1, 0, 2, 2, 1));
    refuses("no dimension", &["[1, 2, 0]"], || data(1, 2, 0, 0, 3));
    refuses("covariates", &["covariates", "[11]", "[2, 3, 2]"], || data(2, 2, 2, 11, 6));
    refuses("labels", &["labels", "[7]", "[2, 3]"], || data(2, 2, 2, 12, 7));
    refuses("overflow", &["prompts"], || data(usize::MAX, usize::MAX, usize::MAX, 1, 1));
    refuses("overflow of the context", &["prompts"], || data(1, usize::MAX, 1, 0, 0));
    refuses("NaN covariate", &["NaN", "finite"], || Prompts::from_data(1, 1, 1, vec![1.0, NAN], vec![1.0; 2]));
    refuses("infinite label", &["inf", "finite"], || Prompts::from_data(1, 1, 1, vec![1.0; 2], vec![1.0, INF]));
    refuses("a covariance beyond memory", &["size of the covariance"], || Covariance::identity(usize::MAX));
    let rotating = IllConditioned::new(vec![1.0; 4], 8).unwrap();
    refuses("no prompts", &["batch", "got 0"], || rotating.sample(0, 1));
    refuses("prompts beyond memory", &["size of the prompts"], || rotating.sample(usize::MAX, 1));
    refuses("hidden units beyond memory", &["size of the hidden units"], || {
        TwoLayerNetwork::new(5, usize::MAX, HiddenUnit::Relu, 10)
    });
    // Fewer examples than dimensions is a task like any other.
    assert_eq!(LinearRegression::new(identity(7), 1, WeightPrior::Isotropic).unwrap().sample(2, 1).unwrap().len(), 2);
    assert!(task.sample_moments::<f32>(1, 1).unwrap().prompt(1).is_none());
}

#[test]
fn models_and_ops() {
    use Parametrisation::{Preconditioner, Transform};
    type Model = LinearTransformer<f64>;
    refuses("no layers", &["layers", "got 0"], || Model::zeros(0, 2, Transform));
    refuses("no dimension", &["dimension", "got 0"], || Model::zeros(2, 0, Transform));
    refuses("too large", &["parameters", "memory"], || Model::zeros(usize::MAX, 2, Transform));
    refuses("too large", &["parameters", "memory"], || Model::zeros(1, usize::MAX / 2, Transform));
    for bad in [0.0, -1.0, NAN, INF] {
        refuses("standard deviation", &["standard deviation", "positive"], || Model::init(1, 2, Transform, bad, 1));
    }
    refuses("no layers", &["layers"], || Model::init(0, 2, Transform, 1.0, 1));
    refuses("values", &["[7]", "[1, 2, 2, 2]"], || Model::from_values(vec![0.0; 7], 1, 2, Transform));
    refuses("no values", &["[0]"], || Model::from_values(vec![], 0, 2, Transform));
    refuses("NaN values", &["entry 3", "NaN"], || {
        Model::from_values((0..8).map(|k| if k == 3 { NAN } else { 0.0 }).collect(), 1, 2, Transform)
    });
    let mut model = Model::zeros(2, 3, Preconditioner).unwrap();
    let other = Arc::new(task(4, 3).sample_moments::<f64>(5, 1).unwrap());
    for (name, result) in [
        ("predict", survives("predict", || model.predict(&other).map(|_| ()))),
        ("loss", survives("loss", || model.loss(&other).map(|_| ()))),
        ("gradient", survives("gradient", || model.loss_and_gradient(&other).map(|_| ()))),
        ("slots", survives("slots", || model.label_slots(&other).map(|_| ()))),
    ] {
        refuses(name, &["parameters", "[2, 2, 3, 3]", "[layers >= 1, 2, 4, 4]"], || result);
    }
    refuses("layer", &["layer", "got 2", "below 2"], || model.a(2));
    refuses("layer", &["layer", "got 9"], || model.b(9));
    refuses("covariance", &["covariance", "[2]", "dimension 3"], || model.whitened(&identity(2)));
    refuses("covariance", &["covariance", "[4]", "dimension 3"], || model.whitened_a(0, &identity(4)));
    refuses("steps", &["step sizes", "[1, 0, 3]"], || model.set_steps(&[1.0], &[], &identity(3)));
    refuses("steps", &["step sizes"], || model.set_steps(&[1.0; 2], &[0.0; 3], &identity(3)));
    refuses("steps", &["step sizes", "dimension 3"], || model.set_steps(&[1.0; 2], &[], &identity(2)));
    refuses("NaN step", &["parameters", "NaN"], || model.set_steps(&[1.0, NAN], &[], &identity(3)));
    assert_eq!(model.params.as_vec(), vec![0.0; 36], "a refused step changes nothing");

    type General = GeneralLinearTransformer<f64>;
    let full = |layers: usize, size: usize| vec![vec![0.1; size]; layers];
    refuses("no layers", &["[0, 0]", "at least 1"], || General::new(&[], &[], 2, Mask::Context));
    refuses("P without Q", &["[2, 1]"], || General::new(&full(2, 9), &full(1, 9), 2, Mask::Context));
    refuses("P's size", &["[8]", "[3, 3]"], || General::new(&full(1, 8), &full(1, 9), 2, Mask::Context));
    refuses("Q's size", &["[4]", "[3, 3]"], || General::new(&full(1, 9), &full(1, 4), 2, Mask::Causal));
    refuses("dimension 0", &["dimension"], || General::new(&full(1, 1), &full(1, 1), 0, Mask::Context));
    refuses("endless dimension", &["P or Q"], || General::new(&full(1, 0), &full(1, 0), usize::MAX, Mask::Context));
    refuses("NaN in Q", &["Q", "NaN"], || General::new(&full(1, 9), &[vec![NAN; 9]], 2, Mask::Context));
    let general = General::new(&full(1, 9), &full(1, 9), 2, Mask::Context).unwrap();
    refuses("other prompts", &["[3, 3]", "[4, 4]"], || general.predict(&task(3, 2).sample(2, 1).unwrap()));

    let device = Cpu::default();
    let zeros = |batch: usize, tokens: usize, dim: usize| -> Tensor<(usize, usize, usize), f64, Cpu> {
        device.zeros_like(&(batch, tokens, dim))
    };
    let square = |rows: usize, cols: usize| -> Tensor<(usize, usize), f64, Cpu> { device.zeros_like(&(rows, cols)) };
    for mask in [Mask::Context, Mask::Causal] {
        refuses("P", &["P", "[2, 3]", "[3, 3]"], || linear_attention(zeros(1, 3, 3), square(2, 3), square(3, 3), mask));
        refuses("Q", &["Q", "[4, 4]"], || linear_attention(zeros(1, 3, 3), square(3, 3), square(4, 4), mask));
        refuses("no prompts", &["[0, 3, 3]"], || linear_attention(zeros(0, 3, 3), square(3, 3), square(3, 3), mask));
        refuses("no context", &["[1, 1, 3]"], || linear_attention(zeros(1, 1, 3), square(3, 3), square(3, 3), mask));
    }
    for shape in [(0, 2, 4, 4), (1, 1, 4, 4), (1, 2, 3, 4), (1, 2, 4, 5)] {
        let params: Tensor<(usize, usize, usize, usize), f64, Cpu> = device.zeros_like(&shape);
        refuses("parameters", &["parameters", "[layers >= 1, 2, 4, 4]"], || linear_transformer(&other, params));
    }

    let tokens = |batch: usize, tokens: usize, width: usize| -> Tensor<(usize, usize, usize), f32, Cpu> {
        device.zeros_like(&(batch, tokens, width))
    };
    let attention = |x, heads, key| layers::attention(x, heads, key, Attention::default());
    refuses("no heads", &["heads", "got 0"], || attention(tokens(1, 2, 6), 0, 1));
    refuses("no keys", &["size of keys", "got 0"], || attention(tokens(1, 2, 6), 2, 0));
    refuses("width", &["[1, 2, 7]", "3 x 2 heads x 1"], || attention(tokens(1, 2, 7), 2, 1));
    refuses("endless heads", &["[1, 2, 6]"], || attention(tokens(1, 2, 6), usize::MAX, 2));
    refuses("endless keys", &["[1, 2, 6]"], || attention(tokens(1, 2, 6), 1, usize::MAX / 2 + 1));
    refuses("no prompts", &["[0, 2, 6]", "batch >= 1"], || attention(tokens(0, 2, 6), 2, 1));
    refuses("no tokens", &["[1, 0, 6]", "tokens >= 1"], || attention(tokens(1, 0, 6), 2, 1));
    refuses("tokens beyond memory", &["weights of a head", "memory"], || attention(tokens(1, 1 << 21, 3), 1, 1));
    refuses("a view beyond memory", &["size of the queries", "memory"], || {
        let one: Tensor<(usize,), f32, Cpu> = device.zeros_like(&(3,));
        attention(one.broadcast_like::<_, Axes2<0, 1>>(&(1, 1 << 50, 3)), 1, 1)
    });
    let matrix =
        |rows: usize, columns: usize| -> Tensor<(usize, usize), f32, Cpu> { device.zeros_like(&(rows, columns)) };
    let vector = |len: usize| -> Tensor<(usize,), f32, Cpu> { device.zeros_like(&(len,)) };
    refuses("weights", &["weights", "[4, 2]", "[3, out >= 1]"], || {
        layers::affine(matrix(5, 3), matrix(4, 2), vector(2))
    });
    refuses("no outputs", &["weights", "[3, 0]"], || layers::affine(matrix(5, 3), matrix(3, 0), vector(0)));
    refuses("biases", &["biases", "[3]", "[2]"], || layers::affine(matrix(5, 3), matrix(3, 2), vector(3)));
    refuses("outputs beyond memory", &["outputs", "memory"], || {
        layers::affine(matrix(1 << 22, 1), matrix(1, 1 << 22), vector(1 << 22))
    });
    refuses("gains", &["gamma", "[2]", "[3]"], || layers::layer_norm(matrix(5, 3), vector(2), vector(3)));
    refuses("shifts", &["beta", "[4]", "[3]"], || layers::layer_norm(matrix(5, 3), vector(3), vector(4)));
    for (rows, columns) in [(0, 3), (5, 0)] {
        let shown = format!("[{rows}, {columns}]");
        let words = ["x", &shown, "rows >= 1"];
        refuses("nothing", &words, || layers::affine(matrix(rows, columns), matrix(columns, 2), vector(2)));
        refuses("nothing", &words, || layers::layer_norm(matrix(rows, columns), vector(columns), vector(columns)));
        refuses("nothing", &words, || layers::gelu(matrix(rows, columns)));
    }
    let endless = || vector(3).broadcast_like::<_, dfdx::shapes::Axis<0>>(&(1 << 50, 3));
    refuses("a view beyond memory", &["size of the x", "memory"], || layers::gelu(endless()));
    refuses("a view beyond memory", &["size of the x"], || layers::layer_norm(endless(), vector(3), vector(3)));
    refuses("a view beyond memory", &["size of the x"], || layers::affine(endless(), matrix(3, 1), vector(1)));
    let huge = survives("scores beyond f32", || attention(tokens(1, 2, 3) + f32::MAX, 1, 1));
    assert_eq!(huge.unwrap().as_vec().len(), 2);

    refuses("no dimension", &["Gram samples"], || GramSamples::new(0, &[]));
    refuses("no samples", &["Gram samples", "[0]"], || GramSamples::new(2, &[]));
    refuses("half a sample", &["[6]", "2, 2"], || GramSamples::new(2, &[0.0; 6]));
    refuses("endless", &["Gram samples"], || GramSamples::new(usize::MAX, &[0.0; 6]));
    refuses("weights", &["weights", "[2]", "[1]"], || GramSamples::weighted(2, &[1.0, 0.0, 0.0, 1.0], &[1.0; 2]));
    refuses("NaN", &["Gram samples, entry 1", "NaN"], || GramSamples::new(2, &[0.0, NAN, 0.0, 0.0]));
    let grams = GramSamples::new(2, &[1.0, 0.0, 0.0, 1.0]).unwrap();
    for bad in [0, 4, 7, 12] {
        refuses("parameters", &["parameters", "2, 2"], || grams.losses(&vec![0.0; bad]));
        refuses("parameters", &["parameters", "2, 2"], || grams.loss_and_gradient(&vec![0.0; bad]));
    }
    assert!(survives("NaN parameters", || grams.losses(&[NAN; 8])).unwrap()[0].is_nan());
}

#[test]
fn algorithms_and_comparisons() {
    refuses("no rates", &["rates", "at least one"], || GradientDescent::new(vec![]));
    refuses("NaN rate", &["rate", "NaN"], || GradientDescent::new(vec![0.1, NAN]));
    let preconditioned = |m: Matrix| GradientDescent::preconditioned(vec![0.1], m);
    refuses("wide preconditioner", &["[2, 3]", "square"], || preconditioned(Matrix::zeros(2, 3)));
    for bad in [-1.0, NAN, INF] {
        refuses("ridge", &["ridge", &format!("got {bad}")], || LeastSquares::ridge(bad));
    }
    refuses("no examples", &["examples", "[0, 0]"], || Examples::new(&[], &[]));
    refuses("no covariates", &["examples"], || Examples::new(&[], &[1.0]));
    refuses("odd covariates", &["[3, 2]"], || Examples::new(&[1.0; 3], &[1.0; 2]));
    refuses("NaN label", &["NaN", "finite"], || Examples::new(&[1.0], &[NAN]));
    let prompts = task(2, 3).sample(4, 1).unwrap();
    refuses("prompt", &["prompt", "got 4", "below 4"], || Examples::of(&prompts, 4, 1));
    for n in [0, 4, usize::MAX] {
        refuses("examples", &["examples", "context length 3"], || Examples::of(&prompts, 0, n));
        refuses("examples", &["examples"], || losses(&LeastSquares::default(), &prompts, n, 1));
    }
    let three = Matrix::identity(3);
    let pgd = preconditioned(three.clone()).unwrap();
    refuses("preconditioner", &["preconditioner", "[3, 3]", "[2, 2]"], || losses(&pgd, &prompts, 3, 2));
    refuses("whitening", &["whitening", "[3, 3]"], || {
        LeastSquares::default().whitened(three).iterates(&Examples::of(&prompts, 0, 3)?, 1)
    });
    refuses("NaN whitening", &["not finite"], || {
        let nan = Matrix::from_fn(2, 2, |_, _| NAN);
        LeastSquares::default().whitened(nan).iterates(&Examples::of(&prompts, 0, 3)?, 1)
    });
    // Fewer examples than dimensions, and no step at all, are fine.
    assert_eq!(losses(&LeastSquares::default(), &prompts, 1, 0).unwrap().len(), 1);
    assert_eq!(losses(&GradientDescent::new(vec![0.1]).unwrap(), &prompts, 1, 0).unwrap().len(), 1);

    for (d, n) in [(0, 5), (5, 0)] {
        refuses("kernel polynomial", &["dimension and context length"], || KernelPolynomial::new(d, n, 2));
        refuses("measure", &["got 0"], || SpectralMeasure::wishart(d, n, 10, 4, 1));
    }
    for layers in [0, 5, usize::MAX] {
        refuses("layers", &["layers", "1 to 4"], || KernelPolynomial::new(5, 20, layers));
        refuses("layers", &["layers"], || KernelPolynomial::looped(5, 20, layers));
    }
    refuses("no samples", &["got 0"], || SpectralMeasure::wishart(2, 3, 0, 4, 1));
    refuses("no nodes", &["nodes", "got 0"], || SpectralMeasure::wishart(2, 3, 10, 0, 1));
    for (d, n, samples, nodes) in [(0, 3, 10, 4), (2, 0, 10, 4), (2, 3, 0, 4), (2, 3, 10, 0)] {
        refuses("measure with tail", &["got 0"], || SpectralMeasure::wishart_with_tail(d, n, samples, nodes, 1));
    }
    let measure = SpectralMeasure::wishart(2, 3, 10, 4, 1).unwrap();
    refuses("no layers", &["layers", "got 0"], || GdPlusPlus::minima(0, &measure, 1, 1));
    let short = survives("missing b", || GdPlusPlus { a: vec![0.1, 0.2], b: vec![] }.loss(&measure));
    assert_eq!(short, GdPlusPlus { a: vec![0.1, 0.2], b: vec![0.0] }.loss(&measure));
    assert!((survives("no layers", || GdPlusPlus { a: vec![], b: vec![] }.loss(&measure)) - 2.0).abs() < 1e-9);

    refuses("no parameter", &["start"], || minimise(|_| (0.0, vec![]), &[], 10, 1e-9));
    refuses("NaN at the start", &["not finite"], || minimise(|_| (NAN, vec![0.0]), &[1.0], 10, 1e-9));
    refuses("short gradient", &["gradient", "[1]", "[2]"], || minimise(|_| (0.0, vec![1.0]), &[1.0; 2], 10, 1e-9));
    let unbounded = survives("unbounded", || minimise(|x| (-x[0], vec![-1.0]), &[0.0], 50, 1e-9));
    assert_eq!(unbounded.unwrap().iterations, 50);

    assert!(Interval::of(&[]).mean.is_nan());
    assert_eq!(Interval::of(&[2.0]).high, 2.0);
    for odd in [Matrix::zeros(2, 2), Matrix::zeros(2, 3), Matrix::zeros(0, 0)] {
        assert!(survives("distance", || distance_to_identity(&odd)).is_nan());
    }
}

/// One linear layer on fixed prompts; its loss is not finite from step `fails` on.
struct Small {
    model: LinearTransformer,
    fails: u64,
}

impl Small {
    fn new(fails: u64) -> Self {
        Small { model: LinearTransformer::zeros(1, 2, Parametrisation::Transform).unwrap(), fails }
    }
}

impl Problem for Small {
    type Model = LinearTransformer;

    fn model(&mut self) -> &mut LinearTransformer {
        &mut self.model
    }

    fn gradient(&mut self, step: u64) -> Result<(f64, Gradients<f32, Cpu>)> {
        let (loss, gradients) = self.model.loss_and_gradient(&Arc::new(task(2, 5).sample_moments(10, step)?))?;
        Ok((if step < self.fails { loss } else { NAN }, gradients))
    }

    fn measure(&mut self, _: u64) -> Result<Vec<(&'static str, f64)>> {
        Ok(vec![("zero", 0.0)])
    }
}

fn trainer(steps: u64, state: Option<&Path>) -> Trainer<'static> {
    Trainer {
        task: "small".to_owned(),
        steps,
        schedule: Schedule::Constant,
        record_at: vec![0, steps],
        state: state.map(Path::to_owned),
        fingerprint: serde_json::json!({ "small": 1 }),
        save_every: Duration::ZERO,
        observer: &Silent,
    }
}

fn adam() -> Adam {
    Adam::new(AdamConfig::default()).unwrap()
}

#[test]
fn training() {
    for (rate, bad) in [(0.0, "0"), (-1.0, "-1"), (NAN, "NaN"), (INF, "inf")] {
        refuses("rate", &["learning rate", bad, "positive"], || {
            Adam::new(AdamConfig { rate, ..AdamConfig::default() })
        });
        refuses("epsilon", &["epsilon", bad], || Adam::new(AdamConfig { epsilon: rate, ..AdamConfig::default() }));
        refuses("rate", &["learning rate", bad], || Sgd::new(SgdConfig { rate, momentum: 0.0, clip: Clip::None }));
        for clip in [Clip::Matrix(rate), Clip::Global(rate)] {
            refuses("limit", &["clipping", bad], || Adam::new(AdamConfig { clip, ..AdamConfig::default() }));
            refuses("limit", &["clipping", bad], || Sgd::new(SgdConfig { rate: 1.0, momentum: 0.0, clip }));
        }
    }
    for bad in [-0.1, 1.0, NAN] {
        refuses("beta", &["beta", "[0, 1)"], || Adam::new(AdamConfig { betas: [0.9, bad], ..AdamConfig::default() }));
        refuses("momentum", &["momentum"], || Sgd::new(SgdConfig { rate: 1.0, momentum: bad, clip: Clip::None }));
    }
    for weight_decay in [-0.1, NAN, INF] {
        refuses("decay", &["weight decay"], || Adam::new(AdamConfig { weight_decay, ..AdamConfig::default() }));
    }

    let run = |trainer: Trainer<'_>, fails: u64| trainer.run(&mut Small::new(fails), &mut adam());
    refuses("no steps", &["steps of small", "got 0", "at least 1"], || run(trainer(0, None), 9));
    refuses("records", &["5 before 3", "ascending"], || run(Trainer { record_at: vec![5, 3], ..trainer(9, None) }, 9));
    for schedule in [
        Schedule::Step { every: 0, factor: 0.5 },
        Schedule::Step { every: 1, factor: NAN },
        Schedule::Step { every: 1, factor: 0.0 },
    ] {
        refuses("schedule", &["rate"], || run(Trainer { schedule, ..trainer(9, None) }, 9));
    }
    refuses("NaN loss", &["small", "NaN at step 3", "no state was kept"], || run(trainer(9, None), 3));
    refuses("a last step too far", &["a parameter is no finite number", "small"], || {
        let far = SgdConfig { rate: 1e39, momentum: 0.0, clip: Clip::None };
        trainer(1, None).run(&mut Small::new(9), &mut Sgd::new(far).unwrap())
    });
    let folder = folder("training");
    let state = folder.join("state.safetensors");
    refuses("NaN loss", &["NaN at step 3", "last good state"], || run(trainer(9, Some(&state)), 3));
    // What was saved is still good: with the cause removed, it continues.
    assert_eq!(run(trainer(9, Some(&state)), 9).unwrap().steps, [0, 9]);

    refuses("another training's state", &["another training"], || {
        run(Trainer { fingerprint: serde_json::json!(2), ..trainer(9, Some(&state)) }, 9)
    });
    refuses("a state beyond the end", &["step"], || run(trainer(5, Some(&state)), 9));
    refuses("another optimiser's state", &["another optimiser"], || {
        let config = SgdConfig { rate: 0.1, momentum: 0.0, clip: Clip::None };
        trainer(9, Some(&state)).run(&mut Small::new(9), &mut Sgd::new(config).unwrap())
    });
    refuses("another model's state", &["parameters", "[8]", "[16]"], || {
        let model = LinearTransformer::zeros(2, 2, Parametrisation::Transform).unwrap();
        trainer(9, Some(&state)).run(&mut Small { model, fails: 9 }, &mut adam())
    });
    refuses("a state that is a folder", &["could not read"], || run(trainer(9, Some(&folder)), 9));
    let blocked = state.join("below-a-file.safetensors");
    refuses("a state below a file", &["could not write"], || run(trainer(9, Some(&blocked)), 9));
    refuses("measure", &["no measure is called 'loss'"], || History::default().measure("loss").map(|_| ()));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn protocols_and_names() {
    let good = Protocol { steps: 3, batch: 10, record_every: 1, resample_every: 1, ..recipes::preconditioner() };
    let run = |protocol: Protocol| {
        recipes::train(&Run { name: "s0".to_owned(), protocol, seed: 0 }, "test", None, &Settings::default())
    };
    assert_eq!(run(good.clone()).unwrap().steps, [0, 1, 2, 3]);
    refuses("no steps", &["steps", "got 0"], || run(Protocol { steps: 0, ..good.clone() }));
    refuses("no layers", &["layers", "got 0"], || run(Protocol { layers: 0, ..good.clone() }));
    refuses("no batch", &["batch", "got 0"], || run(Protocol { batch: 0, ..good.clone() }));
    refuses("no context", &["context", "got 0"], || run(Protocol { context: 0, ..good.clone() }));
    refuses("no dimension", &["dimension"], || run(Protocol { eigenvalues: vec![], ..good.clone() }));
    refuses("eigenvalue", &["eigenvalue", "-1"], || run(Protocol { eigenvalues: vec![-1.0], ..good.clone() }));
    refuses("never resampled", &["batches", "got 0"], || run(Protocol { resample_every: 0, ..good.clone() }));
    refuses("never recorded", &["records", "got 0"], || run(Protocol { record_every: 0, ..good.clone() }));
    refuses("nothing kept", &["records kept", "got 0"], || run(Protocol { keep_last: Some(0), ..good.clone() }));
    let all = run(Protocol { keep_last: Some(u64::MAX), record_every: 2, ..good.clone() }).unwrap();
    assert_eq!(all.steps, [0, 2]);

    refuses("figure", &["no figure or paper is called 'pgd.fig99'", "all"], || {
        experiments::select(&["pgd.fig99"]).map(|_| ())
    });
    refuses("figure", &["''"], || experiments::select(&[""]).map(|_| ()));
    assert!(experiments::select::<&str>(&[]).unwrap().is_empty());
    refuses("checkpoint", &["no checkpoint is called 'x'", "pgd-preconditioner"], || {
        experiments::recipe("x").map(|_| ())
    });
    let settings = Settings::default();
    refuses("checkpoint", &["no checkpoint is called 'x'"], || recipes::load("x", |_| true, &settings).map(|_| ()));
    let nowhere = Settings { checkpoints: folder("nowhere"), ..Settings::default() };
    refuses("missing file", &["could not read", "pgd-identity"], || {
        recipes::load("pgd-identity", |_| true, &nowhere).map(|_| ())
    });
    // A checkpoint of another kind under a known name.
    let other = nowhere.checkpoints.join("pgd-identity.safetensors");
    sound().save(&other).unwrap();
    refuses("another checkpoint", &["s0.parameters"], || recipes::load("pgd-identity", |_| true, &nowhere).map(|_| ()));
    std::fs::remove_dir_all(&nowhere.checkpoints).unwrap();
    let blocked = Settings { work: std::env::current_exe().unwrap().join("below-a-file"), ..Settings::default() };
    refuses("a work folder that cannot be made", &["could not"], || {
        let options = TrainOptions { resume: true, ..TrainOptions::default() };
        let interrupting = Settings { observer: &Stop, ..blocked };
        experiments::recipe("pgd-identity")?.run(&interrupting, &options)
    });
}

/// Interrupts at once: a test must not train a whole recipe when something goes wrong.
struct Stop;

impl Observer for Stop {
    fn report(&self, _: &Report<'_>) {}

    fn interrupted(&self) -> bool {
        true
    }
}

fn sound() -> Checkpoint {
    let arrays = BTreeMap::from([
        ("a".to_owned(), Array::f32(&[2, 3], vec![1.0, -2.0, 0.5, f32::MIN_POSITIVE, 4.0, 5.0]).unwrap()),
        ("b".to_owned(), Array::f64(&[2], vec![1.5, NAN]).unwrap()),
        ("empty".to_owned(), Array::f32(&[0, 7], vec![]).unwrap()),
    ]);
    Checkpoint { arrays, manifest: serde_json::json!({ "id": "x", "loss": 0.1336, "Σ": [1.0, 0.25] }) }
}

#[test]
fn checkpoints() {
    refuses("shape", &["[5]", "[2, 3]"], || Array::f32(&[2, 3], vec![0.0; 5]));
    refuses("shape", &["[0]"], || Array::f64(&[], vec![]));
    // 2^32 · 2^32 wraps around to 0.
    refuses("wrapping shape", &["array"], || Array::f32(&[1 << 32, 1 << 32], vec![]));

    let folder = folder("checkpoints");
    let path = folder.join("sound.safetensors");
    let checkpoint = sound();
    checkpoint.save(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let loaded = Checkpoint::load(&path).unwrap();
    assert_eq!(loaded.f32("a", &[2, 3]).unwrap(), checkpoint.f32("a", &[0, 3]).unwrap());
    assert_eq!(loaded.f64("b", &[0]).unwrap().1[0], 1.5);
    assert_eq!(loaded.manifest, checkpoint.manifest);
    checkpoint.save(&path).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "the same checkpoint is the same bytes");

    refuses("unknown array", &["no array of the checkpoint is called 'c'", "a, b"], || {
        loaded.f32("c", &[1]).map(|_| ())
    });
    refuses("shape", &["a", "[2, 3]", "[3, 2]"], || loaded.f32("a", &[3, 2]).map(|_| ()));
    refuses("rank", &["[2, 3]", "[0]"], || loaded.f32("a", &[0]).map(|_| ()));
    refuses("type", &["a", "double precision"], || loaded.f64("a", &[2, 3]).map(|_| ()));
    refuses("type", &["b", "single precision"], || loaded.f32("b", &[2]).map(|_| ()));
    refuses("no file", &["could not read", "nothing"], || Checkpoint::load(&folder.join("nothing")));
    refuses("a folder", &["could not read"], || Checkpoint::load(&folder));
    refuses("save into a file", &["could not write"], || checkpoint.save(&path.join("below")));
    refuses("save to no name", &["could not write"], || checkpoint.save(Path::new("/")));

    let damaged = folder.join("damaged.safetensors");
    let load = |bytes: &[u8]| {
        std::fs::write(&damaged, bytes).unwrap();
        Checkpoint::load(&damaged)
    };
    for length in 0..bytes.len() {
        refuses(&format!("the first {length} bytes"), &["damaged.safetensors", "not usable"], || {
            load(&bytes[..length])
        });
    }
    refuses("a byte too many", &["not usable"], || load(&[bytes.as_slice(), &[0]].concat()));
    for k in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[k] ^= 1 << bit;
            refuses(&format!("bit {bit} of byte {k} flipped"), &["not usable"], || load(&flipped));
        }
    }
    let mut rng = stream(1, "bytes", 0);
    for length in [8, 9, 64, 4096] {
        let noise: Vec<u8> = (0..length).map(|_| rng.gen_range(0..=255)).collect();
        refuses("noise", &["not usable"], || load(&noise));
    }
    let framed = |length: u64, header: &str, data: &[u8]| [&length.to_le_bytes(), header.as_bytes(), data].concat();
    for length in [u64::MAX, 1 << 63, 1 << 40, 100_000_001] {
        refuses("a header longer than the file", &["not usable"], || load(&framed(length, "{}", &[])));
    }
    let whole = |header: &str, data: &[u8]| framed(header.len() as u64, header, data);
    for header in [
        "{}",
        "[]",
        "null",
        r#"{"__metadata__":{}}"#,
        r#"{"__metadata__":{"incontext":"no json"}}"#,
        r#"{"__metadata__":{"incontext":"{}"}}"#,
        r#"{"__metadata__":{"incontext":"{\"crc32\":0,\"manifest\":7}"}}"#,
        r#"{"__metadata__":{"incontext":"{\"crc32\":0,\"manifest\":\"{}\"}"}}"#,
        r#"{"__metadata__":{"incontext":"{\"crc32\":-1,\"manifest\":\"not json\"}"}}"#,
        r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}"#,
        r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]}}"#,
        r#"{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"#,
    ] {
        refuses(header, &["not usable"], || load(&whole(header, &[0; 4])));
        refuses(header, &["not usable"], || load(&whole(header, &[])));
    }
    // A file of another type, made well: half-precision values are refused by name.
    let guard = r#""__metadata__":{"incontext":"{\"crc32\":0,\"manifest\":\"{}\"}"}"#;
    let half = format!(r#"{{{guard},"a":{{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}}}"#);
    refuses("half precision", &["'a'", "F16", "expected F32 or F64"], || load(&whole(&half, &[0; 4])));
    // Arrays changed in memory are saved under their own checksum, and found again.
    let mut changed = sound();
    changed.arrays.remove("a");
    changed.save(&path).unwrap();
    assert!(Checkpoint::load(&path).unwrap().f32("a", &[2, 3]).is_err());
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn few_shot_prompts_and_text() {
    refuses("dimension", &["dimension", "at least 1"], || FewShot::new(0, 3));
    refuses("pairs", &["pairs", "at least 1"], || FewShot::new(3, 0));
    refuses("switch", &["switch", "1 to 3"], || FewShot::switching(3, 4, 4));
    refuses("switch", &["switch"], || FewShot::switching(3, 4, 0));
    let task = FewShot::new(3, 4).unwrap();
    refuses("batch", &["batch"], || task.sample(0, 0));
    refuses("batch", &["memory"], || task.sample(usize::MAX / 8, 0));
    refuses("pairs", &["memory"], || FewShot { pairs: usize::MAX, ..task.clone() }.sample(2, 0));
    refuses("noise", &["noise"], || FewShot { noise: NAN, ..task.clone() }.sample(1, 0));
    refuses("range", &["range"], || FewShot { inputs: Start::Uniform(INF), ..task.clone() }.sample(1, 0));
    refuses("values", &["[2, 4, 3]"], || FewShotPrompts::new(2, 4, 3, vec![0.0; 24], vec![0.0; 23]));
    refuses("values", &["finite"], || FewShotPrompts::new(1, 1, 1, vec![NAN], vec![0.0]));
    refuses("no prompts", &[], || FewShotPrompts::new(0, 4, 3, vec![], vec![]));
    let prompts = task.sample(2, 0).unwrap();
    let prompt = |prefix: usize, eos: usize| Prompt { prefix: vec![0.1; prefix], eos: vec![0.1; eos] };
    refuses("prefix", &["prefix", "[P, 3]"], || prompts.tokens::<f32>(&prompt(4, 3)));
    refuses("token after a pair", &["token after a pair", "[3]"], || prompts.targets::<f32>(&prompt(3, 2)));
    refuses("prefix", &["finite"], || prompts.tokens::<f32>(&Prompt { prefix: vec![INF; 3], eos: vec![] }));
    refuses("predictions", &["predictions", "[2, 8, 3]"], || prompts.losses(&prompt(0, 0), &[0.0; 5]));
    refuses("no tokens", &["none 0"], || SoftPrompt::init(0, 3, 0));
    refuses("tokens", &["memory"], || SoftPrompt::init(usize::MAX, 3, 0));
    refuses("tokens", &["[2, 3]"], || SoftPrompt::from_values(2, 3, vec![0.0; 5]));
    refuses("tokens", &["finite"], || SoftPrompt::from_values(1, 1, vec![f32::NAN]));
    refuses("gradient", &["gradient"], || SoftPrompt::init(1, 3, 0)?.gradients(&[0.0; 2]).map(drop));
    let other = Architecture { input: 4, width: 4, embed: false, output: 4, layers: vec![], clip: None };
    refuses("a network of another dimension", &["[batch, tokens, 4]"], || {
        prompt_gradient::<f64>(&other, &[], &prompts, &prompt(0, 3))
    });

    refuses("text", &["alphabet"], || Text::new("*** 123"));
    refuses("texts", &["texts"], || Text::join([]));
    let text = Text::new("to be or not to be").unwrap();
    for (batch, tokens) in [(0, 4), (2, 0), (2, 18), (2, usize::MAX)] {
        refuses("pieces", &["batch and tokens", "17"], || text.windows(batch, tokens, 0));
    }
    refuses("pieces", &["memory"], || text.windows(usize::MAX / 2, 4, 0));
    refuses("pieces", &["none 0"], || Windows::new(2, 3, vec![0; 7]));
    refuses("pieces", &["none 0"], || Windows::new(usize::MAX, usize::MAX, vec![]));
    refuses("characters", &["below"], || Windows::new(1, 1, vec![0, 200]));
    let windows = text.windows(2, 4, 0).unwrap();
    refuses("no pieces", &["none 0"], || windows.first(0));
    refuses("logits", &["logits", "[2, 4, "], || windows.losses(&[0.0; 3]));
    refuses("language model", &["network", "mesa1"], || mesa::language::architecture("rnn"));
    refuses("targets", &["targets"], || {
        let batch = LaneBatch::<f64>::new(1, 2, 4, &[0.0; 8])?;
        cross_entropy(&other, &[], &batch, &LaneBatch::new(1, 2, 3, &[0.0; 6])?)
    });
}

#[test]
fn figures() {
    let line = |x: &[f64], y: &[f64]| Figure::new("t.t", "t").panel(Panel::new("p").line(Line::new("l", x, y)));
    let map = |rows, columns, z: usize| {
        Figure::new("t.t", "t").panel(Panel::new("p").heatmap(Heatmap::new(rows, columns, vec![0.0; z])))
    };
    let log = |y: f64| {
        Figure::new("t.t", "t").panel(Panel::new("p").y(Axis::log("y")).line(Line::new("l", [0.0, 1.0], [1.0, y])))
    };
    for (what, figure, words) in [
        ("nothing", Figure::new("t.t", "t"), ["panels", "at least one"]),
        ("no points", line(&[], &[]), ["'p'", "at least one value"]),
        ("lengths", line(&[1.0, 2.0], &[1.0]), ["[1]", "[2]"]),
        ("NaN alone", line(&[1.0], &[NAN]), ["NaN", "at least one number"]),
        ("infinite", line(&[1.0, 2.0], &[1.0, INF]), ["inf", "finite"]),
        ("no rows", map(0, 2, 0), ["[0, 2]", "at least one row"]),
        ("cells", map(2, 2, 3), ["[3]", "[2 * 2]"]),
        ("cells that overflow", map(usize::MAX, 2, 3), ["[3]", "each cell"]),
        ("log of 0", log(0.0), ["got 0", "log axis"]),
        ("log of the negative", log(-1.0), ["-1", "log axis"]),
    ] {
        refuses(what, &words, || figure.check());
        refuses(what, &words, || figure.to_svg());
        refuses(what, &words, || figure.to_json());
        refuses(what, &words, || figure.to_csv());
        refuses(what, &words, || figure.to_plotly());
        refuses(what, &words, || figure.to_plotly_json());
    }
    for text in ["", "{", "null", "[]", "{}", "\"\u{0}\"", &"[".repeat(100_000)] {
        refuses("JSON of a figure", &[], || Figure::from_json(text));
    }
    // JSON with single bytes changed: either an error or a figure that every form can take.
    let json = line(&[1.0, 2.0, 3.0], &[1.0, 0.5, 0.25]).to_json().unwrap().into_bytes();
    let mut rng = stream(3, "json", 0);
    for _ in 0..3000 {
        let mut bytes = json.clone();
        for _ in 0..rng.gen_range(1..4) {
            let k = rng.gen_range(0..bytes.len());
            bytes[k] = b"0123456789eE.-+\"{}[],:ntf \\"[rng.gen_range(0..27)];
        }
        let Ok(text) = String::from_utf8(bytes) else { continue };
        survives(&text, || {
            if let Ok(figure) = Figure::from_json(&text) {
                let _ = (figure.to_svg(), figure.to_csv(), figure.to_json(), figure.to_plotly_json());
            }
        });
    }
}

#[test]
fn progress_of_any_length() {
    for (step, of) in [(0, 0), (5, 0), (1, u64::MAX), (u64::MAX, u64::MAX), (u64::MAX, 3), (u64::MAX / 2, u64::MAX)] {
        for (seconds, here) in [(0, 0), (1, 1), (u64::MAX, 1), (1, u64::MAX)] {
            for loss in [None, Some(NAN), Some(1e-300)] {
                let elapsed = Duration::from_secs(seconds);
                let report = Report { task: "t", step, of, loss, elapsed, steps_here: here };
                let text = survives("a line of progress", || line(&report));
                assert_eq!(text.chars().filter(|c| "█░".contains(*c)).count(), 20, "{text}");
            }
        }
    }
}

#[test]
fn errors_are_all_of_the_public_kinds() {
    // A reader matches on the kind; the text is for people.
    assert!(matches!(Covariance::identity(0), Err(Error::Invalid { .. })));
    assert!(matches!(Matrix::zeros(1, 2).cholesky(), Err(Error::Shape { .. })));
    assert!(matches!(Matrix::zeros(2, 2).cholesky(), Err(Error::Numerical { .. })));
    assert!(matches!(experiments::recipe("x").map(|_| ()), Err(Error::Unknown { .. })));
    assert!(matches!(Checkpoint::load(Path::new("/nowhere/at/all")), Err(Error::File { .. })));
}

#[test]
fn kernels_and_their_models_refuse_what_they_cannot_use() {
    let kernel = Kernel::exp(0.5).unwrap();
    refuses("exponent", &["inite"], || Kernel::exp(NAN));
    refuses("exponent", &[], || Kernel::exp(0.0));
    refuses("no terms", &["terms", "at least one"], || Kernel::sum("none", &[]));
    refuses("term", &["terms"], || Kernel::sum("infinite", &[Term::new(Profile::Linear, INF)]));
    refuses("covariates", &["covariates"], || kernel.gram(&[1.0; 7], 5));
    refuses("covariates", &["covariates"], || kernel.gram(&[], 5));
    refuses("a kernel that is not symmetric", &["symmetric"], || {
        Kernel::own("skew", |u, v| u[0] - v[0]).gram(&[1.0, 2.0], 1)
    });
    refuses("a kernel that is not finite", &["finite"], || Kernel::own("nan", |_, _| NAN).gram(&[1.0, 2.0], 1));

    refuses("context", &["context", "at least 1"], || KernelRegression::new(kernel.clone(), identity(5), 0));
    let task = KernelRegression::new(kernel.clone(), identity(5), 4).unwrap();
    refuses("noise", &["noise"], || task.clone().with_noise(-1.0));
    refuses("noise", &["noise"], || task.clone().with_noise(NAN));
    refuses("batch", &["batch"], || task.sample(0, 0));
    refuses("batch", &[], || task.prompts::<f32>(0, Labels::Covariance, 0));
    refuses("batch", &[], || task.prompts::<f32>(usize::MAX / 64, Labels::Covariance, 0));
    refuses("a kernel that is not symmetric", &["symmetric"], || {
        let skew = Kernel::own("skew", |u, v| u[0] - v[0]);
        KernelRegression::new(skew, identity(5), 3)?.prompts::<f32>(4, Labels::Covariance, 0)
    });
    refuses("an indefinite kernel matrix", &["eigenvalue"], || {
        let relu = KernelRegression::new(Kernel::relu(), identity(5), 14)?;
        relu.strict().sample(64, 0)
    });
    refuses("prompts", &["prompts", "[batch, 5, 5]"], || KernelPrompts::<f64>::sampled(4, 5, &[0.0; 24], &[0.0; 5]));
    refuses("prompts", &["covariance", "[5, 5]"], || {
        KernelPrompts::<f64>::with_covariances(4, 5, &[0.0; 25], &[Matrix::identity(3)])
    });

    let init = |layers, dim, heads: &[Activation], std| {
        KernelTransformer::<f64>::init(layers, dim, heads, ValueBlock::Free, std, 0)
    };
    refuses("layers", &["layers", "at least 1"], || init(0, 5, &[Activation::Exp], 0.1));
    refuses("dimension", &["dimension"], || init(2, 0, &[Activation::Exp], 0.1));
    refuses("heads", &["heads"], || init(2, 5, &[], 0.1));
    refuses("standard deviation", &["standard deviation"], || init(2, 5, &[Activation::Exp], 0.0));
    refuses("standard deviation", &["standard deviation"], || init(2, 5, &[Activation::Exp], -1.0));
    refuses("parameters", &["parameters"], || {
        KernelTransformer::<f64>::from_values(vec![0.0; 75], 1, 5, &[Activation::Exp], ValueBlock::Free)
    });
    refuses("parameters", &["parameters"], || {
        KernelTransformer::<f64>::from_values(vec![NAN; 76], 1, 5, &[Activation::Exp], ValueBlock::Free)
    });
    refuses("a covariance beyond f32", &["exp", "f32"], || {
        KernelRegression::new(Kernel::exp(90.0)?, identity(3), 4)?.prompts::<f32>(4, Labels::Covariance, 0)
    });
    refuses("a covariance beyond f64", &["f64"], || {
        let terms = [Term::new(Profile::Exp, 800.0), Term::new(Profile::Linear, 1.0)];
        KernelRegression::new(Kernel::sum("large", &terms)?, identity(3), 4)?.sample(4, 0)
    });
    refuses("a covariance that is not finite", &["covariance", "inite"], || {
        bayes_risk(&Matrix::from_vec(2, 2, vec![1.0, 0.5, 0.5, NAN])?)
    });
    refuses("a kernel of the user's own", &["sum of terms"], || {
        let own = Kernel::own("mine", |u, v| u[0] * v[0]);
        KernelTransformer::<f64>::functional_gradient_descent(&own, &[0.1], 4, &identity(5))
    });
    let model = init(2, 5, &[Activation::Exp], 0.1).unwrap();
    refuses("the covariance of labels", &["labels", "one draw"], || {
        model.whole_gradient(&task.prompts(4, Labels::Covariance, 0)?)
    });
    refuses("a gradient of another length", &["gradient", "[152]"], || {
        KernelTransformer::<f32>::init(2, 5, &[Activation::Exp], ValueBlock::Free, 0.1, 0)?.gradients(&[0.0; 151])
    });
    refuses("prompts of another dimension", &["dimension"], || {
        let other = KernelRegression::new(kernel.clone(), identity(3), 4)?;
        model.predict(&other.sample(2, 0)?)
    });
    refuses("prompts of another dimension", &[], || {
        model.loss(&KernelRegression::new(Kernel::linear(), identity(4), 3)?.prompts(4, Labels::Covariance, 0)?)
    });
    refuses("layer", &["layer"], || model.bc(2, 0));
    refuses("layer", &["layer"], || model.a(2, 0));
    refuses("head", &["head"], || model.r(0, 1));
    refuses("head", &["head"], || model.a(0, 1));

    refuses("ridge", &["ridge"], || KernelRidge::new(-1.0));
    refuses("weights of another number", &[], || risk(&[1.0], &Matrix::identity(3)));
    refuses("no examples", &[], || bayes_risk(&Matrix::identity(1)));
    refuses("step sizes", &["at least one"], || FunctionalGradientDescent::new(vec![]));
    refuses("step sizes", &["step"], || FunctionalGradientDescent::new(vec![NAN]));
    refuses("kernel matrix", &["kernel matrix"], || {
        FunctionalGradientDescent::new(vec![0.1])?.iterates(&Matrix::identity(3), &[1.0, 2.0], 4)
    });
}

#[test]
fn newton_algorithms_networks_and_constructions() {
    for bad in [0.0, -1.0, 2.5, NAN, INF] {
        refuses("constant of Newton", &[&format!("got {bad}")], || IterativeNewton::new(bad));
    }
    for bad in [-1.0, NAN, INF] {
        refuses("ridge of Newton", &["ridge", &format!("got {bad}")], || IterativeNewton::new(1.0)?.with_ridge(bad));
        refuses("fixed rate", &[&format!("got {bad}")], || OnlineGradientDescent::fixed(bad));
        refuses("ends of the spectrum", &[], || HeavyBall::new(Ends::Fixed(bad, 1.0)));
        refuses("ends of the spectrum", &[], || Chebyshev::new(Ends::Fixed(0.5, bad)));
    }
    refuses("ends in the wrong order", &[], || Chebyshev::new(Ends::Fixed(2.0, 1.0)));
    refuses("memory", &["got 0"], || Lbfgs::new(0));

    let prompts = task(2, 3).sample(4, 1).unwrap();
    let newton = IterativeNewton::new(1.0).unwrap();
    refuses("a run without steps", &["steps", "at least one"], || {
        predictions(&[Steps { algorithm: &newton, at: &[] }], &prompts)
    });
    refuses("predictors of another length", &["[7]", "[4, 4]"], || Predictions::new(4, 4, vec![vec![0.0; 7]]));
    refuses("no predictor", &["predictions"], || Predictions::new(4, 4, vec![]));
    let made = predictions(&[Steps { algorithm: &newton, at: &[1] }], &prompts).unwrap().remove(0);
    refuses("predictor", &["predictor", "got 1", "below 1"], || made.mse(1, &prompts));
    refuses("other prompts", &["[5, 4]", "[4, 4]"], || made.residuals(&task(2, 3).sample(5, 1)?));
    let other = Predictions::new(4, 3, vec![vec![0.0; 12]]).unwrap();
    refuses("errors of other prompts", &["[4, 3]", "[4, 4]"], || {
        Similarity::of_errors(Measure::Cosine, &made, &other, 0..3)
    });
    for positions in [0..5, 2..2] {
        refuses("positions", &["positions"], || Similarity::of_errors(Measure::Cosine, &made, &made, positions));
    }
    refuses("no weights", &["weights", "[0, 1, 2]"], || {
        Similarity::of_weights(Measure::Cosine, &[], &[vec![0.0; 8]], [2, 2, 2], 0..2)
    });
    refuses("weights of another length", &["[7]"], || {
        Similarity::of_weights(Measure::Cosine, &[vec![0.0; 7]], &[], [2, 2, 2], 0..2)
    });
    refuses("position", &["position", "below 4"], || similarity_at(Measure::Cosine, &made, &made, 4));

    // Hidden states that are all the same tell nothing, however their sums are rounded.
    let same = [9.469_998_f32, -3.449_334_6, -1.425_314_1, 11.182_19, -4.357_747_6].repeat(3505);
    let targets: Vec<f64> = (0..3505).map(f64::from).collect();
    let probe = LinearProbe::fit(&same, &targets, 1e-6).unwrap();
    assert!(probe.predict(&same[..5]).iter().all(|v| (v - 1752.0).abs() < 1e-6));
    refuses("no rows", &["hidden states"], || LinearProbe::fit(&[], &[], 1.0));
    refuses("odd rows", &["[5, 2]"], || LinearProbe::fit(&[0.0; 5], &[0.0; 2], 1.0));
    refuses("ridge", &["ridge", "got 0"], || LinearProbe::fit(&[0.0; 4], &[0.0; 2], 0.0));
    refuses("NaN", &["finite"], || LinearProbe::fit(&[f32::NAN; 4], &[0.0; 2], 1.0));
    refuses("no targets", &["hidden states"], || LinearProbe::fit_each::<Vec<f64>>(&[0.0; 4], &[], 1.0));
    refuses("targets of other lengths", &["targets", "[3]", "[2]"], || {
        LinearProbe::fit_each(&[0.0; 4], &[vec![0.0; 2], vec![0.0; 3]], 1.0)
    });

    refuses("condition number", &["got 0.5"], || IllConditioned::two_clusters(4, 0.5, 3));
    refuses("dimension", &["got 0"], || IllConditioned::two_clusters(0, 10.0, 3));
    refuses("prompts a basis", &["got 0"], || IllConditioned::two_clusters(4, 10.0, 3)?.rotating_every(0));
    refuses("hidden units", &["got 0"], || TwoLayerNetwork::new(3, 0, HiddenUnit::Relu, 4));
    refuses("dimension", &["got 0"], || TwoLayerNetwork::new(0, 3, HiddenUnit::Relu, 4));

    let config = Gpt2Config { inputs: 2, layers: 1, ..Gpt2Config::default() }.with_width(8, 2);
    refuses("layers", &["layers", "got 0"], || Gpt2::init(Gpt2Config { layers: 0, ..config.clone() }, Init::FanIn, 0));
    refuses("a sequence whose attention fits in no memory", &["working memory"], || {
        let unbounded = Gpt2Config { positions: Positions::None, ..config.clone() };
        let length = 5_000_000;
        let sequences = Sequences::new([1, length, 2], vec![0.0; 2 * length], 1, vec![0.0], length)?;
        Gpt2::init(unbounded, Init::FanIn, 0)?.loss(&sequences)
    });
    refuses("heads", &["heads", "got 0"], || Gpt2::init(Gpt2Config { heads: 0, ..config.clone() }, Init::FanIn, 0));
    refuses("standard deviation", &["got NaN"], || Gpt2::init(config.clone(), Init::Normal(NAN), 0));
    refuses("parameters", &["[3]"], || Gpt2::from_values(config.clone(), vec![0.0; 3]));
    let model = Gpt2::init(config, Init::FanIn, 0).unwrap();
    refuses("tokens of another dimension", &["3"], || model.predict(&task(3, 3).sample(2, 0)?.interleaved()?));
    refuses("more tokens than positions", &[], || model.predict(&task(2, 200).sample(2, 0)?.interleaved()?));
    refuses("layers", &["layers", "got 0"], || {
        Lstm::init(LstmConfig { inputs: 2, layers: 0, ..LstmConfig::default() }, 0)
    });

    let weights = NewtonConstruction { dim: 2, examples: 3, steps: 1, alpha: 0.1, signs: Signs::Corrected };
    refuses("dimension", &["dimension", "0 and 3"], || {
        NewtonConstruction { dim: 0, ..weights }.compact(Averaging::Full)
    });
    refuses("examples", &["examples", "2 and 0"], || NewtonConstruction { examples: 0, ..weights }.layered());
    refuses("alpha", &["got NaN"], || NewtonConstruction { alpha: NAN, ..weights }.compact(Averaging::Full));
    let built = weights.compact(Averaging::Full).unwrap();
    refuses("covariates of another length", &["[5, 3, 2]", "[6], [3], [2]"], || {
        built.predict(&[0.0; 5], &[0.0; 3], &[0.0; 2])
    });
    refuses("query of another length", &["[6, 3, 1]"], || built.predict(&[0.0; 6], &[0.0; 3], &[0.0; 1]));
    refuses("an unknown figure", &["newton.fig99"], || experiments::select(&["newton.fig99"]));
}

#[test]
fn sizes_of_sequences_and_kernels_are_checked_before_memory_is_asked_for() {
    use incontext::tasks::Dynamics;
    refuses("teachers", &["size of the teachers"], || Dynamics::pool(5, 25, usize::MAX));
    refuses("a dimension", &["size of the teachers"], || Dynamics::partial(1 << 40, 1, 5));
    refuses("hidden units", &["size of the hidden units"], || Dynamics::nonlinear(5, usize::MAX, 5));
    let wide = Start::Uniform(1e308);
    refuses("an interval without a length", &["start", "positive"], || {
        Dynamics { start: wide, ..Dynamics::linear(3, 4)? }.sample(1, 0)
    });
    refuses("an interval without a length", &["range of x"], || {
        FewShot { inputs: wide, ..FewShot::new(3, 4)? }.sample(1, 0)
    });
    refuses("a matrix W", &["size of the matrix W"], || FewShot::new(1 << 40, 1));
    let kernel = |n| KernelRegression::new(Kernel::exp(1.0)?, identity(2), n);
    for n in [usize::MAX, usize::MAX - 1, 1 << 40] {
        refuses("a context", &["size of the"], || kernel(n)?.sample(1, 0));
    }
    refuses("a kernel beyond f64", &["exp(", "smaller scale"], || {
        KernelRegression::new(Kernel::exp(2000.0)?, identity(2), 3)?.prompts::<f64>(1, Labels::Covariance, 0)
    });
    refuses("covariances", &["size of the"], || KernelPrompts::<f32>::with_covariances(usize::MAX, 5, &[], &[]));
    let architecture = Architecture::constructed(1 << 40, vec![]);
    refuses("a width", &["output", "input"], || Architecture { output: usize::MAX, ..architecture.clone() }.check());
    let layer =
        incontext::ops::sequence_transformer::Layer::new(incontext::ops::sequence_transformer::Mixer::Softmax, 4, 20);
    refuses("a layer", &["size of the"], || Architecture::constructed(1 << 59, vec![layer]).check());
    refuses("no layers", &["layers of softmax", "got 0"], || mesa::recipes::named((5, 25), "tf", 0));
}

#[test]
fn sequences_and_their_models_refuse_what_they_cannot_use() {
    use incontext::algorithms::sequences::{
        InverseSeries, Pairing, SequenceGradient, SequenceLeastSquares, TeacherPosterior, predictions, sequence_losses,
    };
    use incontext::models::SequenceTransformer;
    use incontext::models::constructions::mesa::{gradient_step, gradient_steps};
    use incontext::ops::sequence_transformer::{Architecture, LaneBatch, Layer, Mixer};
    use incontext::tasks::{Dynamics, TokenKind, Trajectories};

    refuses("dimension", &["dimension n", "at least 1"], || Dynamics::linear(0, 5));
    refuses("tokens", &["tokens T", "at least 1"], || Dynamics::linear(5, 0));
    refuses("observed dimension", &["observed"], || Dynamics::partial(6, 0, 5));
    refuses("hidden units", &["hidden units"], || Dynamics::nonlinear(5, 0, 5));
    refuses("teachers", &["teachers"], || Dynamics::pool(5, 5, 0));
    let task = Dynamics::linear(3, 6).unwrap();
    refuses("noise", &["noise"], || Dynamics { noise: -0.1, ..task.clone() }.sample(2, 0));
    refuses("noise", &["noise"], || Dynamics { noise: NAN, ..task.clone() }.sample(2, 0));
    refuses("clip", &["clip"], || Dynamics { clip: 0.0, ..task.clone() }.sample(2, 0));
    refuses("batch", &["batch"], || task.sample(0, 0));
    refuses("batch", &[], || task.sample(usize::MAX / 8, 0));
    let sequences = task.sample(2, 0).unwrap();
    refuses("states", &["sequences"], || Trajectories::new(2, 7, 3, vec![0.0; 41]));
    refuses("states that are not finite", &["inite"], || Trajectories::new(1, 2, 1, vec![0.0, NAN]));
    refuses("stacked", &["stacked", "at least 1"], || sequences.stacked(0));
    refuses("features of another dimension", &["sequences"], || sequences.mapped(2, |s| s.to_vec()));
    refuses("predictions", &["predictions", "[2, 6, 3]"], || sequences.losses(&[0.0; 35]));
    assert_eq!(sequences.first(9).unwrap().len(), 2);
    refuses("no sequences", &[], || sequences.first(0));

    let layer = Layer::new(Mixer::Linear, 2, 4);
    let a = Architecture::constructed(3, vec![layer]);
    let init = |a: Architecture| SequenceTransformer::init(a, 0.1, 0);
    refuses("heads", &["layer"], || init(Architecture::constructed(3, vec![Layer { heads: 0, ..layer }])));
    refuses("key", &["layer"], || init(Architecture::constructed(3, vec![Layer { key: 0, ..layer }])));
    refuses("width", &["width"], || init(Architecture { width: 5, ..a.clone() }));
    refuses("output", &["output"], || init(Architecture { output: 0, ..a.clone() }));
    refuses("clip", &["clip"], || init(Architecture { clip: Some(-1.0), ..a.clone() }));
    for forget in [0.0, 1.5, NAN] {
        let mesa = Layer { mixer: Mixer::Mesa { forget }, ..layer };
        refuses("forgetting", &["forgetting", "(0, 1]"], || init(Architecture::constructed(3, vec![mesa])));
    }
    let features = |mixer, features| init(Architecture::constructed(3, vec![Layer { mixer, features, ..layer }]));
    refuses("features", &["features", "softmax"], || features(Mixer::Softmax, 1));
    refuses("features", &["features"], || features(Mixer::Linear, usize::MAX / 4));
    refuses("more features than there are", &["features", "at most 7"], || features(Mixer::Linear, 8));
    refuses("features", &["features"], || features(Mixer::Delta { implicit: false }, 1 << 30));
    refuses("standard deviation", &["standard deviation"], || SequenceTransformer::init(a.clone(), NAN, 0));
    refuses("parameters", &["parameters"], || SequenceTransformer::from_values(a.clone(), &[0.0; 3]));
    refuses("parameters", &["inite"], || SequenceTransformer::from_values(a.clone(), &vec![f32::NAN; a.parameters()]));
    let mut model = init(a).unwrap();
    let tokens = sequences.inputs(TokenKind::Constructed).unwrap();
    refuses("tokens of other channels", &["tokens"], || model.predict(&sequences.inputs(TokenKind::States)?));
    refuses("no tokens", &["sequences"], || LaneBatch::<f32>::new(0, 5, 3, &[0.0_f64; 0]));
    refuses("targets", &["targets"], || model.loss_and_gradient(&tokens, &tokens, None));
    refuses("weights", &["weights of the tokens", "[6]"], || {
        model.loss_and_gradient(&tokens, &sequences.targets()?, Some(&[1.0; 5]))
    });
    refuses("attention of a linear layer", &["softmax"], || model.attention(&tokens, 0));
    refuses("layer", &["layer and head"], || model.key_query(1, 0));
    refuses("head", &["layer and head"], || model.projected_value(0, 2));
    refuses("lambda of a linear layer", &["ln_lambda"], || model.lambdas(0));
    refuses("layers", &["layers", "at most 1"], || model.truncated(2));
    for layer in [Layer { unit: true, ..layer }, Layer { mixer: Mixer::Softmax, ..layer }] {
        let other = init(Architecture::constructed(3, vec![layer])).unwrap();
        let all = mesa::weights::products(&other).unwrap();
        refuses("products of other layers", &["layer", "linear attention"], || {
            mesa::weights::with_products(&other, &all)
        });
    }
    let with = |heads: Vec<[Matrix; 2]>| mesa::weights::with_products(&model, &vec![heads]);
    refuses("products of one head", &["[1]", "[2]"], || with(vec![[1, 2].map(|_| Matrix::identity(12))]));
    refuses("products of another width", &["[3, 3]", "[12, 12]"], || {
        with(vec![[1, 2].map(|_| Matrix::identity(3)), [1, 2].map(|_| Matrix::identity(12))])
    });
    refuses("matrix", &["layer0.query"], || model.matrix("query"));
    refuses("matrix", &["[8, 12]"], || model.set_matrix("layer0.query", &Matrix::identity(2)));

    refuses("steps", &["at least 1"], || gradient_steps(3, &[]));
    refuses("step size", &["finite"], || gradient_steps(3, &[INF]));
    refuses("first guess", &["Φ_0"], || gradient_step(0.1, &Matrix::zeros(2, 3)));
    refuses("setting", &["linear2"], || InverseSeries::authors("cubic", Pairing::All));
    refuses("steps", &["at least 1"], || InverseSeries::fitted(0, 1e-3, Pairing::All, &sequences, None));
    refuses("ridge", &["ridge of the series", "got 0"], || {
        let series = InverseSeries { ridge: 0.0, ..InverseSeries::authors("linear", Pairing::All)? };
        predictions(&series, &sequences, None)
    });
    let posterior = |teachers, noise| sequence_losses(&TeacherPosterior { teachers, noise }, &sequences, None);
    refuses("no teacher", &["teachers", "at least one"], || posterior(vec![], 0.1));
    refuses("teachers of another dimension", &["teachers", "[3, 3]"], || posterior(vec![Matrix::identity(2)], 0.1));
    refuses("noise", &["noise"], || posterior(vec![Matrix::identity(3)], 0.0));
    refuses("inputs of other sequences", &["inputs"], || {
        let ridge = SequenceLeastSquares { ridge: 0.1, pairing: Pairing::All };
        predictions(&ridge, &sequences, Some(&task.sample(3, 0)?))
    });
    refuses("a step that diverges", &["diverges"], || {
        let huge = Trajectories::new(1, 4, 1, vec![1e200, 1e200, 1e200, 1e200])?;
        SequenceGradient::searched(&huge, 3)
    });
}
