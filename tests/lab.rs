//! The command line: bad input, machines that lack something, and a set-up that runs again.

mod support;

use std::ffi::OsStr;
use std::net::TcpListener;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant, SystemTime};

use support::{Scratch, command, jupyter, root, run, words};

fn fails(output: &Output, code: i32, says: &[&str]) {
    let words = words(output);
    assert_eq!(output.status.code(), Some(code), "{words}");
    for part in says {
        assert!(words.contains(part), "'{part}' is not in:\n{words}");
    }
    assert!(!words.contains("panicked"), "{words}");
}

#[test]
fn what_makes_no_sense_is_a_usage_error() {
    fails(&run(&["no-such-command"]), 2, &["no-such-command"]);
    fails(&run(&["--port", "0"]), 2, &["--port"]);
    fails(&run(&["--port", "65536"]), 2, &["65536"]);
    fails(&run(&["--port", "eighty"]), 2, &["eighty"]);
    fails(&run(&["reproduce", "pgd.fig99"]), 2, &["pgd.fig99", "there are:"]);
    fails(&run(&["reproduce", "all", "--seed", "-1"]), 2, &["-1"]);
    fails(&run(&["train", "no-such-checkpoint"]), 2, &["no-such-checkpoint"]);
    fails(&run(&["export", "no.such", "--format", "svg"]), 2, &["no.such"]);
    fails(&run(&["export", "all", "--format", "gif"]), 2, &["gif", "svg"]);
    fails(&run(&["export", "all"]), 2, &["--format"]);
    fails(&run(&["bench", "no-such-bench"]), 2, &["no-such-bench"]);
    fails(&run(&["bench", "notebook", "--runs", "0"]), 2, &["--runs"]);
    fails(&run(&["kernel"]), 2, &["CONNECTION"]);
    fails(&run(&["kernel", "no-such-file.json"]), 2, &["no-such-file.json", "Jupyter"]);
}

#[test]
fn results_do_not_go_into_a_file() {
    let scratch = Scratch::new("out");
    let file = scratch.path().join("taken");
    std::fs::write(&file, "kept").unwrap();
    let output = command().args(["reproduce", "all", "--out"]).arg(&file).output().unwrap();
    fails(&output, 2, &["is a file", "--out"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "kept");
}

#[test]
fn list_as_json_is_json_alone() {
    let output = run(&["list", "--json"]);
    assert!(output.status.success(), "{}", words(&output));
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for figure in list["figures"].as_array().unwrap() {
        for key in ["id", "paper", "title", "notebook"] {
            assert!(figure[key].is_string(), "{figure}");
        }
        assert!(figure["checkpoints"].is_array(), "{figure}");
    }
}

#[test]
fn a_port_in_use_is_said_before_anything_else() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let scratch = Scratch::new("port");
    let output = scratch.house().args(["--no-browser", "--port", &port]).output().unwrap();
    fails(&output, 1, &[&port, "in use", "--port"]);
    assert!(!scratch.path().join(".lab/venv").exists());
}

/// A set-up that cannot go on says why and how to mend it, and leaves no half of anything.
#[test]
fn a_machine_that_lacks_something_is_told_what() {
    let scratch = Scratch::new("lacking");
    let setup = |name: &str, value: &OsStr| {
        let output = scratch.house().arg("--setup-only").env(name, value).output().unwrap();
        for half in ["venv", "evcxr", "template"] {
            assert!(!scratch.path().join(".lab").join(half).exists(), "{half} is half-installed:\n{}", words(&output));
        }
        output
    };
    let no_python = setup("PATH", scratch.path().as_ref());
    fails(&no_python, 1, &["no Python on the search path", "3.10", "to mend it: ", "python3-venv"]);
    let wrong = setup("INCONTEXT_PYTHON", "no/such/python".as_ref());
    fails(&wrong, 1, &["no Python", "INCONTEXT_PYTHON"]);
    let old = python_that_says(scratch.path(), "3 9 1");
    fails(&setup("INCONTEXT_PYTHON", old.as_ref()), 1, &["3.10 or later", "is 3.9"]);
    let bare = python_that_says(scratch.path(), "3 11 0");
    fails(&setup("INCONTEXT_PYTHON", bare.as_ref()), 1, &["venv", "sudo apt install python3-venv"]);
    let full = setup("INCONTEXT_FREE_SPACE", "1000000".as_ref());
    fails(&full, 1, &["disk space", "GiB", "free some disk space"]);
    // The package index at an address where nothing listens: what a machine without a network sees.
    let offline =
        scratch.house().arg("--setup-only").env("PIP_INDEX_URL", "http://127.0.0.1:9/simple").output().unwrap();
    fails(&offline, 1, &["is there a network?", "run the same command again"]);
    let doctor = scratch.house().arg("doctor").output().unwrap();
    fails(&doctor, 1, &["MISSING  JupyterLab", "unfinished", "to mend it: cargo lab --setup-only"]);
}

/// A program that answers the lab's question about Python's version.
fn python_that_says(folder: &Path, answer: &str) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = folder.join(format!("python {answer}"));
    std::fs::write(&path, format!("#!/bin/sh\necho {answer}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[test]
fn a_read_only_checkout_is_said() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new("readonly");
    let mut command = scratch.house();
    let mode = |mode| {
        let lab = scratch.path().join(".lab");
        std::fs::set_permissions(lab, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(0o555);
    if std::fs::write(scratch.path().join(".lab/probe"), "").is_ok() {
        println!("skipped: this user may write everywhere");
        return;
    }
    let output = command.arg("--setup-only").output().unwrap();
    mode(0o755);
    fails(&output, 1, &["could not write", "copy the repository to a folder that you can write to"]);
}

/// Whoever ends a training from outside finds it saved, by whichever signal.
#[test]
fn a_training_that_is_asked_to_end_saves_its_state() {
    use std::io::{BufRead, BufReader, Read};
    use std::process::Stdio;
    let scratch = Scratch::new("signals");
    for (signal, seed) in [("INT", "11"), ("TERM", "12"), ("HUP", "13")] {
        let out = scratch.path().join(signal);
        let mut training = scratch.house();
        training.args(["train", "newton-s", "--seed", seed, "--out"]).arg(&out);
        let mut process = training.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut says = BufReader::new(process.stderr.take().unwrap());
        // The first word of progress: it has begun.
        let mut words = String::new();
        says.read_line(&mut words).unwrap();
        let killed =
            std::process::Command::new("kill").args([&format!("-{signal}"), &process.id().to_string()]).status();
        assert!(killed.unwrap().success());
        says.read_to_string(&mut words).unwrap();
        assert_eq!(process.wait().unwrap().code(), Some(130), "{signal}: {words}");
        assert!(words.contains(&format!("cargo lab train newton-s --resume --seed {seed}")), "{signal}: {words}");
        let states = std::fs::read_dir(scratch.path().join(".lab/training")).unwrap();
        let saved = states.filter(|entry| entry.as_ref().unwrap().metadata().unwrap().len() > 0).count();
        // Those of the signals before are there, too.
        assert_eq!(saved, seed.parse::<usize>().unwrap() - 10, "{signal}: {words}");
        assert!(!out.join("newton-s.safetensors").exists());
    }
}

/// Everything that a second set-up could change, with its time.
fn state(folder: &Path, depth: usize, into: &mut Vec<(std::path::PathBuf, SystemTime)>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let name = entry.file_name();
        // The locks are taken anew, and other tests' kernels come and go.
        if matches!(name.to_str(), Some("locks" | "kernels" | "answers" | "jupyter" | "training")) {
            continue;
        }
        into.push((entry.path(), entry.metadata().unwrap().modified().unwrap()));
        if entry.file_type().unwrap().is_dir() && depth > 0 {
            state(&entry.path(), depth - 1, into);
        }
    }
}

#[test]
fn a_second_set_up_changes_nothing_and_is_quick() {
    jupyter();
    let snapshot = || {
        let mut files = Vec::new();
        state(&root().join(".lab"), 4, &mut files);
        files.sort();
        files
    };
    let before = snapshot();
    let start = Instant::now();
    let output = run(&["--setup-only"]);
    let took = start.elapsed();
    assert!(output.status.success(), "{}", words(&output));
    assert_eq!(before, snapshot());
    assert!(took < Duration::from_secs(2), "{took:?}");
    let doctor = run(&["doctor"]);
    assert!(doctor.status.success(), "{}", words(&doctor));
}
