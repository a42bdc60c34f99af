//! What the tests of the command line share: the program, a set-up laboratory, kernels, and copies of the repository.
#![allow(dead_code, reason = "each test file uses its part")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::{Value, json};

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The `lab` program, built with the profile that this test was built with. Cargo's own lock orders the builds of
/// several test programs.
pub fn lab() -> &'static Path {
    static LAB: OnceLock<PathBuf> = OnceLock::new();
    LAB.get_or_init(|| {
        let test = std::env::current_exe().unwrap();
        let profile = test.parent().and_then(Path::parent).unwrap();
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--package", "lab", "--manifest-path"]).arg(root().join("Cargo.toml"));
        build.arg("--target-dir").arg(profile.parent().unwrap());
        if profile.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "the lab does not build");
        profile.join(format!("lab{}", std::env::consts::EXE_SUFFIX))
    })
}

/// The lab's program in this repository.
pub fn command() -> Command {
    let mut command = Command::new(lab());
    command.env("CARGO_MANIFEST_DIR", root().join("lab")).stdin(Stdio::null());
    command
}

/// Runs the lab with arguments.
pub fn run(arguments: &[&str]) -> Output {
    command().args(arguments).output().unwrap()
}

/// What a command wrote, both streams, for messages.
pub fn words(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Python with JupyterLab, set up by the lab.
pub struct Jupyter {
    python: PathBuf,
    environment: Vec<(String, String)>,
}

impl Jupyter {
    /// Where this Python is installed.
    pub fn prefix(&self) -> PathBuf {
        self.python.parent().and_then(Path::parent).unwrap().to_path_buf()
    }

    /// A command that runs this Python where Jupyter finds the kernels and keeps its files to `.lab`.
    pub fn python(&self) -> Command {
        let mut command = Command::new(&self.python);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// The laboratory of this repository, set up: by the same code that users run, and whoever comes first.
pub fn jupyter() -> &'static Jupyter {
    static JUPYTER: OnceLock<Jupyter> = OnceLock::new();
    JUPYTER.get_or_init(|| of_environment(&mut command()))
}

/// The laboratory that a `lab` program belongs to, set up.
pub fn of_environment(lab: &mut Command) -> Jupyter {
    // What it shows while it works is for whoever waits for the tests.
    let output = lab.arg("environment").stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "the set-up failed:\n{}", words(&output));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    Jupyter {
        python: answer["python"].as_str().unwrap().into(),
        environment: answer["environment"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, value)| (name.clone(), value.as_str().unwrap().to_string()))
            .collect(),
    }
}

/// Runs `kernels.py`: several kernels at once, each through a list of steps. Returns what each step gave.
pub fn kernels(jupyter: &Jupyter, cwd: &Path, kernels: Value) -> Value {
    let order = json!({ "cwd": cwd, "kernels": kernels });
    let mut python = jupyter
        .python()
        .args(["-c", include_str!("kernels.py")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    python.stdin.take().unwrap().write_all(order.to_string().as_bytes()).unwrap();
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "the kernels' driver failed:\n{}", words(&output));
    let line = String::from_utf8_lossy(&output.stdout);
    // Kernels inherit standard output and may say something there.
    let answer = line.lines().rev().find_map(|line| line.strip_prefix("ANSWER ")).expect("an answer");
    serde_json::from_str(answer).unwrap()
}

/// A folder for one test, empty, removed when dropped. Its name has a space and letters beyond ASCII.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A folder whose name has `name` in it.
    pub fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("incontext {name} żółw {}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path.canonicalize().unwrap())
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes the folder look like this repository to the lab, with a copy of its program in `.lab/bin`: what the lab
    /// says and does there touches nothing here.
    pub fn house(&self) -> Command {
        for file in ["Cargo.toml", "Cargo.lock", "environment.yml", "lab/Cargo.toml"] {
            let to = self.0.join(file);
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(root().join(file), to).unwrap();
        }
        copy(&root().join("src"), &self.0.join("src"));
        copy(&root().join("lab/src"), &self.0.join("lab/src"));
        std::fs::create_dir_all(self.0.join("notebooks")).unwrap();
        let program = self.0.join(".lab/bin").join(lab().file_name().unwrap());
        std::fs::create_dir_all(program.parent().unwrap()).unwrap();
        // By another process: one that this process has open for writing could not be started while any other thread
        // is starting something.
        assert!(Command::new("cp").arg(lab()).arg(&program).status().unwrap().success());
        let mut command = Command::new(program);
        command.env_remove("CARGO_MANIFEST_DIR").env_remove("CONDA_PREFIX").stdin(Stdio::null());
        command
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Copies a folder.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
