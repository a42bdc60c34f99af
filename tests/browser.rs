//! JupyterLab as a person uses it: opened by `cargo lab`, in a real browser, with a notebook run by its buttons.

mod support;

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use support::{command, jupyter, root, words};

/// Chromium or a relative of it.
fn chromium() -> Option<PathBuf> {
    let folders: Vec<PathBuf> = std::env::split_paths(&std::env::var_os("PATH")?).collect();
    ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable"]
        .iter()
        .find_map(|name| folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file()))
}

/// A notebook beside the others, removed in the end: JupyterLab saves what it opens.
struct Copy(PathBuf);

impl Drop for Copy {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The lab, ended as Ctrl-C in its terminal ends it.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status();
        let _ = self.0.wait();
    }
}

#[test]
fn a_notebook_runs_in_the_page_and_its_slider_moves() {
    let Some(browser) = chromium() else {
        assert!(std::env::var_os("INCONTEXT_REQUIRE_ALL").is_none(), "there is no Chromium on the search path");
        println!("skipped: there is no Chromium on the search path");
        return;
    };
    let jupyter = jupyter();
    let name = format!("Untitled browser test {}.ipynb", std::process::id());
    let copy = Copy(root().join("notebooks").join(&name));
    std::fs::copy(root().join("notebooks/00_tour.ipynb"), &copy.0).unwrap();
    let mut notebook: Value = serde_json::from_str(&std::fs::read_to_string(&copy.0).unwrap()).unwrap();
    let cells = notebook["cells"].as_array_mut().unwrap();
    // What comes after the last code is text, which need not be run.
    let count = cells.iter().rposition(|cell| cell["cell_type"] == "code").unwrap() + 1;
    for cell in cells.iter_mut().filter(|cell| cell["cell_type"] == "code") {
        cell["outputs"] = json!([]);
        cell["execution_count"] = Value::Null;
    }
    std::fs::write(&copy.0, notebook.to_string()).unwrap();

    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let lab = command().args(["--no-browser", "--port", &port.to_string()]).stdout(Stdio::piped()).spawn().unwrap();
    let mut server = Server(lab);
    let mut lines = BufReader::new(server.0.stdout.take().unwrap()).lines();
    let said = lines.find_map(|line| line.unwrap().strip_prefix("JupyterLab is at ").map(str::to_string));
    let address = said.expect("the lab says where JupyterLab is");

    let artefacts = root().join("target/artefacts");
    std::fs::create_dir_all(&artefacts).unwrap();
    let order = json!({
        "browser": browser, "address": address, "notebook": name, "cells": count,
        "screenshot": artefacts.join("jupyterlab.png"),
    });
    let mut driver = jupyter
        .python()
        .args(["-c", include_str!("support/browser.py")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    driver.stdin.take().unwrap().write_all(order.to_string().as_bytes()).unwrap();
    let output = driver.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", words(&output));
    let seen: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(seen["errors"], json!([]), "cells that ended with an error");
    assert!(seen["figures"].as_u64().unwrap() >= 3, "{seen}");
    // The figure with the slider is drawn, at a size that can be read, and is what was sent, not its picture.
    assert!(seen["plot"]["width"].as_f64().unwrap() > 300.0, "{seen}");
    assert!(seen["plot"]["height"].as_f64().unwrap() > 150.0, "{seen}");
    // Moved to its first step, the slider shows another network.
    assert_ne!(seen["before"]["active"], seen["after"]["active"], "{seen}");
    assert_ne!(seen["before"]["values"], seen["after"]["values"], "{seen}");
    // Nothing was asked of any machine but this one.
    assert_eq!(seen["outside"], json!([]), "requests that left the machine");
    let picture = std::fs::read(artefacts.join("jupyterlab.png")).unwrap();
    assert!(picture.starts_with(b"\x89PNG") && picture.len() > 20_000);
}
