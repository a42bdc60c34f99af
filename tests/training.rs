//! Trainings of a sequence model that are killed, run out of disk, diverge or stop early; optimisers and curricula; weights
//! from other programs' files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use dfdx::prelude::{Cpu, Gradients};
use incontext::figure::Extremes;
use incontext::models::pretrained;
use incontext::ops::attention::{Attention, Weights};
use incontext::prelude::*;
use incontext::progress::Report;
use incontext::rng::stream;
use incontext::train::{Optimizer, Stateful, muon};
use incontext::{Error, Result};

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("incontext-training-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn task() -> LinearRegression {
    LinearRegression::new(Covariance::identity(3).unwrap(), 5, WeightPrior::Isotropic).unwrap()
}

fn small() -> Gpt2 {
    let config = Gpt2Config { inputs: 3, layers: 1, positions: Positions::Learned(12), ..Gpt2Config::default() };
    Gpt2::init(config.with_width(16, 2), Init::FanIn, 1).unwrap()
}

/// A small transformer on linear regression, with a curriculum. From step `poison` on, its loss is a given number; `also` is
/// measured at a step beside the test loss.
struct Small {
    model: Gpt2,
    poison: Option<(u64, f64)>,
    patience: usize,
    also: Measures,
}

type Measures = fn(u64) -> Vec<(&'static str, f64)>;

impl Small {
    fn new() -> Small {
        Small { model: small(), poison: None, patience: 0, also: |step| vec![("rising", step as f64)] }
    }
}

impl Problem for Small {
    type Model = Gpt2;

    fn model(&mut self) -> &mut Gpt2 {
        &mut self.model
    }

    fn gradient(&mut self, step: u64) -> Result<(f64, Gradients<f32, Cpu>)> {
        let curriculum = Curriculum {
            dims: Ramp { start: 1, end: 3, increment: 1, every: 20 },
            points: Ramp { start: 2, end: 6, increment: 2, every: 20 },
        };
        let (dims, points) = (curriculum.dims.at(step), curriculum.points.at(step));
        let batch = task().sample_truncated(8, dims, points, step + 1)?.interleaved()?;
        let (loss, gradients) = self.model.loss_and_gradient(&batch)?;
        match self.poison {
            Some((from, value)) if step >= from => Ok((value, gradients)),
            _ => Ok((loss, gradients)),
        }
    }

    fn measure(&mut self, step: u64) -> Result<Vec<(&'static str, f64)>> {
        let test = self.model.loss(&task().sample(8, 0)?.interleaved()?)?;
        Ok([vec![("test", test)], (self.also)(step)].concat())
    }

    fn enough(&self, history: &History) -> bool {
        self.patience > 0 && history.stalled("rising", self.patience)
    }
}

fn trainer(steps: u64, state: Option<&Path>) -> Trainer<'static> {
    Trainer {
        task: "small".to_owned(),
        steps,
        schedule: Schedule::Hold { warmup: 10, hold: 60, until: 150, floor: 0.1 },
        record_at: (0..=steps).step_by(25).collect(),
        state: state.map(Path::to_owned),
        fingerprint: serde_json::json!("small"),
        save_every: Duration::ZERO,
        observer: &Silent,
    }
}

fn muon(rate: f64) -> Muon {
    let adam = AdamConfig { rate, clip: Clip::Global(1.0), ..AdamConfig::default() };
    Muon::new(MuonConfig { rate, weight_decay: 0.01, adam, ..MuonConfig::default() }).unwrap()
}

const STEPS: u64 = 150;

fn bits(history: &History) -> Vec<u64> {
    let numbers = history.measures.iter().flat_map(|(_, v)| v).map(|v| v.to_bits());
    let parameters = history.parameters.iter().flatten().map(|v| u64::from(v.to_bits()));
    history.steps.iter().copied().chain(numbers).chain(parameters).collect()
}

/// Where a child process of a test is told to train; the child runs this test alone.
const CHILD: &str = "INCONTEXT_TRAINING_STATE";

fn child(threads: usize, state: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "a_child_trains", "--quiet"])
        .env(CHILD, state)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.env("RAYON_NUM_THREADS", threads.to_string());
    command
}

#[test]
fn a_child_trains() {
    let Some(state) = std::env::var_os(CHILD) else { return };
    let done = trainer(STEPS, Some(Path::new(&state))).run(&mut Small::new(), &mut muon(1e-2));
    assert!(done.is_ok(), "{done:?}");
}

/// The step of a state that is on the disk, if there is one, and its bytes: parameters, the optimiser's moments and the history.
fn kept(state: &Path) -> Option<(u64, Vec<u8>)> {
    let bytes = std::fs::read(state).ok()?;
    Some((Checkpoint::load(state).unwrap().manifest["step"].as_u64().unwrap(), bytes))
}

/// Keeps every state that a training leaves on the disk on its way.
struct EveryState {
    path: PathBuf,
    states: Mutex<BTreeMap<u64, Vec<u8>>>,
}

impl Observer for EveryState {
    fn report(&self, _: &Report<'_>) {}

    // Asked at every step, before its state is saved.
    fn interrupted(&self) -> bool {
        self.states.lock().unwrap().extend(kept(&self.path));
        false
    }
}

#[test]
fn killed_at_any_moment_and_resumed_it_is_the_training_that_was_never_stopped() {
    let folder = folder("kill");
    let whole = trainer(STEPS, None).run(&mut Small::new(), &mut muon(1e-2)).unwrap();
    let observer = EveryState { path: folder.join("whole.safetensors"), states: Mutex::default() };
    let begin = Instant::now();
    let watched = Trainer { observer: &observer, ..trainer(STEPS, Some(&observer.path)) };
    assert_eq!(bits(&watched.run(&mut Small::new(), &mut muon(1e-2)).unwrap()), bits(&whole));
    // Delays that spread the kills over the whole training, on any machine.
    let longest = begin.elapsed() / 4;
    observer.interrupted();
    let states = observer.states.into_inner().unwrap();
    assert!(states.keys().copied().eq(0..=STEPS), "a state at every step");
    let as_never_stopped = |state: &Path, when: &str| {
        let kept = kept(state);
        if let Some((step, bytes)) = &kept {
            assert!(*bytes == states[step], "the state of step {step} {when} is another than without kills");
        }
        kept.map(|(step, _)| step)
    };

    let mut rng = stream(1, "kills", 0);
    let (mut kills, mut midway, mut cycle) = (0, 0, 0);
    while kills < 25 || midway == 0 {
        cycle += 1;
        assert!(cycle < 50, "after {kills} kills, {midway} of them midway: it cannot be killed while it trains");
        let state = folder.join(format!("{cycle}.safetensors"));
        let mut killed_here = 0;
        loop {
            // Every process of a training has another number of threads than the one before.
            let mut command = child(1 + (cycle + killed_here) % 4, &state);
            if killed_here == 5 {
                assert!(command.status().unwrap().success(), "the last one is left alone");
                break;
            }
            let mut process = command.spawn().unwrap();
            std::thread::sleep(longest.mul_f64(rng.gen_range(0.0..1.0)));
            // SIGKILL: nothing can be tidied up.
            process.kill().unwrap();
            if process.wait().unwrap().success() {
                break;
            }
            killed_here += 1;
            let step = as_never_stopped(&state, "after a kill");
            midway += usize::from(step.is_some_and(|step| 0 < step && step < STEPS));
        }
        kills += killed_here;
        assert_eq!(as_never_stopped(&state, "at the end"), Some(STEPS));
        // A finished state is read, not trained on.
        let resumed = trainer(STEPS, Some(&state)).run(&mut Small::new(), &mut muon(1e-2)).unwrap();
        assert_eq!(bits(&resumed), bits(&whole), "after {killed_here} kills");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[cfg(unix)]
#[test]
fn a_full_disk_is_an_error_and_leaves_the_last_state() {
    // What the system says of a file that may not grow.
    const EFBIG: i32 = 27;
    let folder = folder("disk");
    let state = folder.join("state.safetensors");
    trainer(STEPS, None).run(&mut Small::new(), &mut muon(1e-2)).unwrap();
    let short = Trainer { steps: 3, record_at: vec![0, 3], ..trainer(3, Some(&state)) };
    short.run(&mut Small::new(), &mut muon(1e-2)).unwrap();
    let before = std::fs::read(&state).unwrap();
    // Files may not grow beyond half a kilobyte, as if the disk were full: writing fails, the signal for it is ignored.
    let mut limited = Command::new("sh");
    let program = std::env::current_exe().unwrap();
    limited.args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$0\" --exact a_child_trains --quiet"]).arg(program);
    let ended = limited.env(CHILD, &state).output().unwrap();
    assert!(!ended.status.success());
    // The child shows the error that its training ended with: this one, of this file, whole.
    let error = Error::file(&state, "write", std::io::Error::from_raw_os_error(EFBIG));
    let words = String::from_utf8_lossy(&ended.stdout);
    assert!(words.contains(&format!("Err({error:?})")), "'{error:?}' is not in: {words}");
    assert_eq!(std::fs::read(&state).unwrap(), before);
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "nothing is left behind");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_diverging_training_names_step_rate_and_state_and_early_stopping_resumes_as_it_was() {
    let folder = folder("ends");
    let state = folder.join("state.safetensors");
    for value in [f64::NAN, f64::INFINITY, 1e30] {
        let _ = std::fs::remove_file(&state);
        let mut poisoned = Small { poison: Some((7, value)), ..Small::new() };
        let words = trainer(STEPS, Some(&state)).run(&mut poisoned, &mut muon(1e-2)).unwrap_err().to_string();
        for part in ["step 7", "learning rate 8e-3", "last good state is", "state.safetensors"] {
            assert!(words.contains(part), "'{part}' is not in: {words}");
        }
        // That of step 7 has the loss that it failed with.
        assert_eq!(Checkpoint::load(&state).unwrap().manifest["step"], 6, "{value}");
    }
    // What was kept is good: with the cause removed, it goes on, to the same end.
    let resumed = trainer(STEPS, Some(&state)).run(&mut Small::new(), &mut muon(1e-2)).unwrap();
    let whole = trainer(STEPS, None).run(&mut Small::new(), &mut muon(1e-2)).unwrap();
    assert_eq!(bits(&resumed), bits(&whole));
    let test = whole.measure("test").unwrap();
    assert!(test[test.len() - 1] < test[0], "it learns: {test:?}");
    // Weights that overflow: the state that could be trained on is kept.
    std::fs::remove_file(&state).unwrap();
    let words = trainer(STEPS, Some(&state)).run(&mut Small::new(), &mut muon(1e38)).unwrap_err().to_string();
    assert!(words.contains("learning rate"), "{words}");
    let kept = Checkpoint::load(&state).unwrap();
    let model = Gpt2::from_values(small().config().clone(), kept.f32("model", &[0]).unwrap().1.to_vec()).unwrap();
    let batch = task().sample(8, 0).unwrap().interleaved().unwrap();
    assert!(model.loss(&batch).unwrap() < 100.0, "it can be trained on");

    // A measure that only rises has stalled at the third record after the first.
    let stop = |state: Option<&Path>| {
        trainer(STEPS, state).run(&mut Small { patience: 3, ..Small::new() }, &mut muon(1e-2)).unwrap()
    };
    let early = stop(None);
    assert_eq!(early.steps, [0, 25, 50, 75]);
    std::fs::remove_file(&state).unwrap();
    assert_eq!(bits(&stop(Some(&state))), bits(&early));
    assert_eq!(bits(&stop(Some(&state))), bits(&early), "read again");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn measures_are_the_same_at_every_record_and_have_names_of_their_own() {
    let measures: [Measures; 4] = [
        |step| if step == 25 { Vec::new() } else { vec![("now and then", 0.0)] },
        |_| vec![("steps", 0.0)],
        |_| vec![("parameters", 0.0)],
        |_| vec![("test", 0.0)],
    ];
    for also in measures {
        let ended = trainer(STEPS, None).run(&mut Small { also, ..Small::new() }, &mut muon(1e-2));
        assert!(
            matches!(&ended, Err(Error::Invalid { what, .. }) if what.starts_with("measures at step")),
            "{ended:?}"
        );
    }
}

/// What is no number in a model comes out of it: gates and weights of attention do not turn it into one.
#[test]
fn a_loss_that_is_no_number_is_none() {
    let batch = task().sample(4, 0).unwrap().interleaved().unwrap();
    let hidden =
        |values: &[f32]| values.iter().enumerate().map(|(k, _)| if k % 2 == 0 { 3e38 } else { -3e38 }).collect();
    for weights in [Weights::Softmax, Weights::Relu, Weights::Exp, Weights::Linear] {
        let attention = Attention { weights, ..Attention::default() };
        let config = Gpt2Config { layer_norm: false, attention, ..small().config().clone() };
        let model = Gpt2::init(config, Init::FanIn, 1).unwrap();
        let mut values = model.values();
        // Scores that are sums of infinite terms of both signs.
        for entry in model.config().tensors().into_iter().filter(|e| e.name == "h.0.attn.c_attn.weight") {
            let changed: Vec<f32> = hidden(&values[entry.at.clone()]);
            values[entry.at].copy_from_slice(&changed);
        }
        let model = Gpt2::from_values(model.config().clone(), values).unwrap();
        assert!(!model.loss(&batch).unwrap().is_finite(), "{weights:?}");
    }
    let lstm = Lstm::init(LstmConfig { inputs: 3, outputs: 1, layers: 2, width: 8 }, 1).unwrap();
    let mut values = lstm.values();
    for entry in lstm.config().tensors().into_iter().filter(|e| e.name.contains("weight_ih")) {
        let changed: Vec<f32> = hidden(&values[entry.at.clone()]);
        values[entry.at].copy_from_slice(&changed);
    }
    let lstm = Lstm::from_values(lstm.config().clone(), values).unwrap();
    let huge = Sequences::new([1, 2, 3], vec![3e38, 3e38, 3e38, 1.0, 1.0, 1.0], 1, vec![0.0, 0.0], 1).unwrap();
    assert!(!lstm.loss(&huge).unwrap().is_finite());
}

#[test]
fn muons_steps_are_near_orthogonal_and_its_state_restores() {
    for (rows, columns) in [(8, 8), (5, 12), (20, 7)] {
        let mut rng = stream(2, "muon", rows as u64);
        let m: Vec<f32> = (0..rows * columns).map(|_| rng.gen_range(-1.0..1.0)).collect();
        let x = muon::orthogonalised(&m, rows, columns);
        // U Vᵀ of M: its singular values, the eigenvalues of its smaller Gram matrix, are near 1.
        let (r, n) = (rows.min(columns), rows.max(columns));
        let at = |i: usize, j: usize| f64::from(if rows <= columns { x[i * columns + j] } else { x[j * columns + i] });
        let gram: Vec<f64> = (0..r * r).map(|k| (0..n).map(|j| at(k / r, j) * at(k % r, j)).sum()).collect();
        let values = Matrix::from_vec(r, r, gram).unwrap().eigen_symmetric().unwrap().0;
        assert!(values.iter().all(|v| (0.4..1.6).contains(v)), "{rows} x {columns}: {values:?}");
        // It points where M does: the sum of M's singular values, against its norm.
        let dot: f64 = m.iter().zip(&x).map(|(m, x)| f64::from(m * x)).sum();
        let norm = m.iter().map(|m| f64::from(m * m)).sum::<f64>().sqrt();
        assert!(dot > norm, "{dot} against {norm}");
    }
    let run = |restart: Option<u64>| {
        let mut model = small();
        let mut optimizer = muon(1e-2);
        for step in 0..6 {
            if restart == Some(step) {
                let state = optimizer.state();
                optimizer = muon(1e-2);
                optimizer.restore(step, &state).unwrap();
            }
            let batch = task().sample(4, step).unwrap().interleaved().unwrap();
            let (_, gradients) = model.loss_and_gradient(&batch).unwrap();
            optimizer.update(&mut model, &gradients).unwrap();
        }
        model.values().iter().map(|v| v.to_bits()).collect::<Vec<_>>()
    };
    assert_eq!(run(None), run(Some(3)));
    assert!(muon(1.0).restore(1, &[("adam.first.0".to_owned(), vec![])]).is_err());
    for bad in [0.0, -1.0, f64::NAN] {
        assert!(Muon::new(MuonConfig { rate: bad, ..MuonConfig::default() }).is_err());
        assert!(Muon::new(MuonConfig { momentum: bad - 1.0, ..MuonConfig::default() }).is_err());
    }
}

#[test]
fn truncated_prompts_are_those_of_the_small_task() {
    let prompts = task().sample_truncated(50, 2, 4, 3).unwrap();
    assert_eq!((prompts.context(), prompts.dim()), (3, 3));
    for p in 0..prompts.len() {
        assert!(prompts.x(p).chunks(3).all(|x| x[2] == 0.0 && x[0] != 0.0));
        // Three points in two dimensions: the labels of all are a linear function of the first two coordinates.
        let (x, y) = (prompts.x(p), prompts.y(p));
        let det = x[0] * x[4] - x[1] * x[3];
        let w = [(y[0] * x[4] - y[1] * x[1]) / det, (x[0] * y[1] - x[3] * y[0]) / det];
        for (x, y) in x.chunks(3).zip(y) {
            assert!((w[0] * x[0] + w[1] * x[1] - y).abs() < 1e-9 * (1.0 + y.abs()) / det.abs().min(1.0));
        }
    }
    for (dims, points) in [(0, 4), (4, 4), (2, 1)] {
        assert!(task().sample_truncated(5, dims, points, 0).is_err());
    }
}

#[test]
fn weights_load_under_every_name_whole_or_not_at_all() {
    let folder = folder("weights");
    let path = folder.join("model.safetensors");
    let model = small();
    model.save(&path).unwrap();
    assert_eq!(Gpt2::load(&path, 2).unwrap().values(), model.values());
    assert_eq!(Gpt2::load(&path, 2).unwrap().config(), model.config());
    assert!(matches!(Gpt2::load(&path, 4), Err(Error::Invalid { .. })), "it has two heads");
    // What shapes do not tell is stored beside them.
    let attention = Attention { weights: Weights::Relu, causal: false, scaled: false, ..Attention::default() };
    for config in [
        Gpt2Config { attention, clamp: Some(4.0), ..model.config().clone() },
        Gpt2Config { positions: Positions::None, key: 5, ..model.config().clone() },
    ] {
        let other = Gpt2::init(config, Init::FanIn, 2).unwrap();
        other.save(&path).unwrap();
        let read = Gpt2::load(&path, 2).unwrap();
        assert_eq!((read.config(), read.values()), (other.config(), other.values()));
    }

    let values = model.values();
    let tensors = |rename: &dyn Fn(&str) -> String| -> pretrained::Tensors {
        let entries = model.config().tensors().into_iter();
        entries.map(|e| (rename(&e.name), (e.shape, values[e.at].to_vec()))).collect()
    };
    let load = |tensors: &pretrained::Tensors| {
        pretrained::write(&path, tensors).unwrap();
        Gpt2::load(&path, 2)
    };
    assert!(load(&tensors(&|name| name.to_owned())).is_ok());
    assert!(matches!(Gpt2::load(&path, 3), Err(Error::Invalid { .. })), "three heads do not divide 16");
    // Garg et al.'s names, and what their files hold besides.
    let garg = |name: &str| if name.starts_with("read") { format!("_{name}") } else { format!("_backbone.{name}") };
    let mut theirs = tensors(&garg);
    theirs.insert("_backbone.h.0.attn.bias".to_owned(), (vec![1, 1, 2, 2], vec![1.0; 4]));
    theirs.insert("_backbone.wte.weight".to_owned(), (vec![1, 16], vec![0.0; 16]));
    assert_eq!(load(&theirs).unwrap().values(), values);
    let hugging = |name: &str| if name.starts_with("read") { name.to_owned() } else { format!("transformer.{name}") };
    assert_eq!(load(&tensors(&hugging)).unwrap().values(), values);

    let same = |name: &str| name.to_owned();
    for name in ["ln_f.bias", "h.0.mlp.c_proj.weight", "wpe.weight", "read_out.bias"] {
        let mut missing = tensors(&same);
        missing.remove(name);
        assert!(matches!(load(&missing), Err(Error::Corrupt { .. })), "without {name}");
        let mut narrow = tensors(&same);
        if let Some((shape, values)) = narrow.get_mut(name) {
            *shape = vec![3];
            *values = vec![0.0; 3];
        }
        assert!(matches!(load(&narrow), Err(Error::Corrupt { .. })), "{name} of another shape");
        let mut broken = tensors(&same);
        broken.get_mut(name).unwrap().1[0] = f32::NAN;
        assert!(matches!(load(&broken), Err(Error::Corrupt { .. })), "{name} is no number");
    }
    for extra in ["h.0.extra", "transformer.wpe.weight"] {
        let mut more = tensors(&same);
        more.insert(extra.to_owned(), more["wpe.weight"].clone());
        assert!(matches!(load(&more), Err(Error::Corrupt { .. })), "{extra}");
    }
    // Sizes that would wrap around, and tensors without values.
    let mut empty = tensors(&same);
    empty.insert("h.0.attn.c_attn.weight".to_owned(), (vec![1 << 63, 0], vec![]));
    empty.insert("wpe.weight".to_owned(), (vec![0], vec![]));
    assert!(matches!(load(&empty), Err(Error::Corrupt { .. })));
    model.save(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let damaged = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Gpt2::load(&path, 2)
    };
    for length in (0..bytes.len()).step_by(97) {
        assert!(matches!(damaged(&bytes[..length]), Err(Error::Corrupt { .. })), "the first {length} bytes");
    }
    for k in 0..400 {
        let mut flipped = bytes.clone();
        flipped[k] ^= 1 << (k % 8);
        // Another name or shape: an error; another value would be another model.
        let _ = damaged(&flipped);
    }
    let header = |length: u64| [&length.to_le_bytes()[..], &bytes[8..]].concat();
    for length in [u64::MAX, 1 << 40, 0] {
        assert!(matches!(damaged(&header(length)), Err(Error::Corrupt { .. })));
    }
    let half = String::from_utf8_lossy(&bytes).replace("\"F32\"", "\"I32\"");
    assert!(damaged(half.as_bytes()).is_err());
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn hidden_states_are_those_of_hugging_faces_transformers() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let model = Gpt2::load(&fixtures.join("gpt2.safetensors"), 2).unwrap();
    let file = std::fs::read(fixtures.join("gpt2.expected.safetensors")).unwrap();
    let expected = safetensors::SafeTensors::deserialize(&file).unwrap();
    let tensor = |name: &str| -> (Vec<usize>, Vec<f32>) {
        let view = expected.tensor(name).unwrap();
        let values = view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        (view.shape().to_vec(), values)
    };
    let (shape, tokens) = tensor("tokens");
    let (_, predictions) = tensor("predictions");
    let sequences = Sequences::new([shape[0], shape[1], shape[2]], tokens, 1, predictions.clone(), 1).unwrap();
    let close = |ours: &[f32], theirs: &[f32], what: &str| {
        assert_eq!(ours.len(), theirs.len(), "{what}");
        let worst = ours.iter().zip(theirs).map(|(a, b)| f64::from((a - b).abs())).greatest();
        assert!(worst < 1e-5, "{what}: {worst:e}");
    };
    let states = model.hidden_states(&sequences).unwrap();
    assert_eq!(states.len(), model.config().layers + 1);
    for (l, state) in states.iter().enumerate() {
        close(state, &tensor(&format!("hidden.{l}")).1, &format!("hidden state {l}"));
    }
    close(&model.predict(&sequences).unwrap(), &predictions, "predictions");
}
