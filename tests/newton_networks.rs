//! What the Newton paper's figures are made of, beside the algorithms: tasks, similarity, probes, trainings.

use incontext::algorithms::Predictions;
use incontext::compare::{LinearFit, Measure, Similarity, similarity_at, spearman};
use incontext::experiments::Settings;
use incontext::experiments::newton::analysis::{Probed, outside_span};
use incontext::experiments::newton::recipes::{self, Network, Run, Task, Trained};
use incontext::linalg::Matrix;
use incontext::probe::LinearProbe;
use incontext::rng::{Rng, stream};
use incontext::tasks::{HiddenUnit, IllConditioned, TwoLayerNetwork};

#[test]
fn the_curriculum_leaves_coordinates_at_zero() {
    for task in
        [Task::Linear { noise: 0.0 }, Task::Skew { kappa: 100.0 }, Task::Network { unit: HiddenUnit::Tanh, hidden: 7 }]
    {
        let prompts = task.sample(5, 2, 4, 64, 1).unwrap();
        assert_eq!((prompts.dim(), prompts.context(), prompts.len()), (5, 4, 64));
        let mut free = 0.0;
        for x in (0..64).flat_map(|i| prompts.x(i).chunks(5)) {
            assert!(x[2..].iter().all(|v| *v == 0.0));
            free += x[0] * x[0] + x[1] * x[1];
        }
        assert!(free > 10.0);
        assert!(task.sample(5, 6, 4, 64, 1).is_err() && task.sample(5, 0, 4, 64, 1).is_err());
    }
}

#[test]
fn ill_conditioned_covariates_have_the_stated_spectrum() {
    let task = IllConditioned::two_clusters(6, 100.0, 199).unwrap().rotating_every(1).unwrap();
    assert!((task.eigenvalues().iter().sum::<f64>() - 6.0).abs() < 1e-12);
    let prompts = task.sample(60, 4).unwrap();
    // Within a prompt the covariance has the eigenvalues; over prompts with rotations of their own it is the identity.
    let mut overall = Matrix::zeros(6, 6);
    let mut largest = 0.0;
    for i in 0..60 {
        let x = Matrix::from_vec(200, 6, prompts.x(i).to_vec()).unwrap();
        let covariance = x.transpose().mul(&x).scaled(1.0 / 200.0);
        largest += covariance.eigen_symmetric().unwrap().0[3..].iter().sum::<f64>() / 180.0;
        overall = overall.plus(1.0 / 60.0, &covariance);
    }
    assert!((largest / task.eigenvalues()[0] - 1.0).abs() < 0.05, "{largest}");
    assert!(overall.plus(-1.0, &Matrix::identity(6)).norm() < 0.6, "{overall:?}");
}

#[test]
fn two_layer_networks_have_labels_of_their_variance() {
    // E y² = (2/h) h E relu(u)² = d for ReLU, u ~ N(0, ‖x‖²).
    let prompts = TwoLayerNetwork::new(5, 30, HiddenUnit::Relu, 3).unwrap().sample(4000, 2).unwrap();
    let mean = (0..4000).flat_map(|i| prompts.y(i)).map(|y| y * y).sum::<f64>() / 16_000.0;
    assert!((mean / 5.0 - 1.0).abs() < 0.1, "{mean}");
}

#[test]
fn a_probe_is_the_least_squares_solution() {
    let mut rng = stream(1, "test", 0);
    let (rows, width) = (5000, 7);
    let hidden: Vec<f32> = (0..rows * width).map(|_| rng.gen_range(-1.0..1.0_f64) as f32).collect();
    let targets: Vec<f64> = hidden
        .chunks(width)
        .map(|h| 3.0 - 2.0 * f64::from(h[0]) + 0.5 * f64::from(h[6]) + rng.gen_range(-0.1..0.1))
        .collect();
    let probe = LinearProbe::fit(&hidden, &targets, 1e-9).unwrap();
    // The residuals of least squares are orthogonal to every coordinate and to 1.
    let residuals: Vec<f64> = probe.predict(&hidden).iter().zip(&targets).map(|(p, y)| p - y).collect();
    assert!(residuals.iter().sum::<f64>().abs() < 1e-7 * rows as f64);
    for k in 0..width {
        let along: f64 = residuals.iter().zip(hidden.chunks(width)).map(|(r, h)| r * f64::from(h[k])).sum();
        assert!(along.abs() < 1e-6 * rows as f64, "{along}");
    }
    assert!((probe.weights[0] + 2.0).abs() < 0.01 && (probe.bias - 3.0).abs() < 0.01);
    // Several at once are those of each alone.
    let other: Vec<f64> = hidden.chunks(width).map(|h| f64::from(h[1] * h[2])).collect();
    let both = LinearProbe::fit_each(&hidden, &[&targets, &other], 1e-9).unwrap();
    assert_eq!(both, [probe, LinearProbe::fit(&hidden, &other, 1e-9).unwrap()]);
    // Constant hidden states can be read: the mean is all there is.
    let flat = LinearProbe::fit(&[1.0; 20], &[1.0, 3.0, 1.0, 3.0, 1.0, 3.0, 1.0, 3.0, 1.0, 3.0], 1e-9).unwrap();
    assert!((flat.predict(&[1.0, 1.0])[0] - 2.0).abs() < 1e-9);
}

#[test]
fn the_interval_of_a_best_step_covers_what_is_as_good() {
    let (batch, positions) = (200, 6);
    let mut rng = stream(2, "test", 0);
    let truth: Vec<f64> = (0..batch * positions).map(|_| rng.gen_range(-1.0..1.0)).collect();
    let noisy = |scale: f64, rng: &mut incontext::rng::ChaCha8Rng| -> Vec<f64> {
        truth.iter().map(|v| v + scale * rng.gen_range(-1.0..1.0)).collect()
    };
    // Rows 1 and 2 are equally good, rows 0 and 3 are worse.
    let rows = [1.0, 0.3, 0.3, 1.0].map(|s| noisy(s, &mut rng)).to_vec();
    let a = Predictions::new(batch, positions, rows).unwrap();
    let b = Predictions::new(batch, positions, vec![truth.clone()]).unwrap();
    for measure in [Measure::Cosine, Measure::RelativeDistance] {
        let best = Similarity::of_errors(measure, &a, &b, 0..positions).unwrap().best(300, 5)[0];
        assert!(best.low == 1 && best.high == 2 && (1..=2).contains(&best.row), "{best:?}");
    }
    let pooled = similarity_at(Measure::Cosine, &b, &b, 3).unwrap();
    assert!((pooled[0] - 1.0).abs() < 1e-12);
    assert!(Similarity::of_errors(Measure::Cosine, &a, &b, 3..9).is_err());
    assert!((spearman(&[1.0, 2.0, 3.0, 4.0], &[4.0, 3.0, 2.0, 1.0]) + 1.0).abs() < 1e-12);
    assert!(LinearFit::of(&[1.0, 1.0], &[1.0, 2.0]).r_squared.is_nan());
}

#[test]
fn a_training_learns_and_its_induced_weights_are_those_of_its_predictions() {
    // Two layers, some hundred steps on the full task: less than the error of predicting zero.
    let mut protocol = recipes::small();
    protocol.steps = 250;
    protocol.schedule = incontext::train::Schedule::Constant;
    protocol.curriculum = incontext::train::Curriculum::none(5, 11);
    protocol.model = recipes::Architecture::Gpt2(
        incontext::models::Gpt2Config {
            inputs: 5,
            layers: 2,
            positions: incontext::models::Positions::Learned(22),
            ..Default::default()
        }
        .with_width(16, 2),
    );
    let run = Run { name: "test".into(), protocol: protocol.clone(), seed: 3 };
    let settings = Settings { quick: true, ..Settings::default() };
    let history = recipes::train(&run, "test", None, &settings).unwrap();
    let test = history.measure("test").unwrap()[0];
    assert!(test < 5.0, "{test}");
    let values = history.parameters[0].clone();
    let model = Network::from_values(&protocol.model, values).unwrap();
    let network = Trained { name: "test".into(), protocol, model };
    let probed = Probed::fit(&network, &settings).unwrap();
    let prompts = network.protocol.task.sample(5, 5, 14, 4, 9).unwrap();
    let weights = probed.induced_weights(&prompts, 4).unwrap();
    assert_eq!((weights.len(), weights[0].len()), (2, 4 * 5 * 5));
    // The fit at t = 4 minimises the error of the predictions for the queries: its normal equations hold.
    let cut = incontext::experiments::newton::analysis::cut(&prompts, 4).unwrap();
    let (outside, norm) = outside_span(&weights[1], &cut).unwrap();
    assert!(outside.iter().zip(&norm).all(|(o, n)| *o >= 0.0 && o <= n));
    // A vector in the span has no part outside it.
    let inside: Vec<f64> = (0..4)
        .flat_map(|i| (0..5).flat_map(move |t| (0..5).map(move |k| (i, t, k))))
        .map(|(i, _, k)| cut.x(i)[k])
        .collect();
    assert!(outside_span(&inside, &cut).unwrap().0.iter().all(|o| *o < 1e-20));
}
