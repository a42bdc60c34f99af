//! The notebooks: that they run from top to bottom on a fresh kernel, and that what is committed of them is clean.

mod support;

use std::path::PathBuf;

use serde_json::Value;
use support::{jupyter, root, run, words};

/// The notebooks of the repository: their names begin with a number. What a user keeps beside them is the user's.
fn notebooks() -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(root().join("notebooks"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "ipynb"))
        .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with(|c: char| c.is_ascii_digit()))
        .collect();
    paths.sort();
    assert!(!paths.is_empty());
    paths
}

#[test]
fn every_notebook_runs_from_top_to_bottom() {
    jupyter();
    let paths = notebooks();
    let names = paths.iter().map(|path| path.file_stem().unwrap().to_str().unwrap());
    let arguments: Vec<&str> = ["execute", "--check"].into_iter().chain(names).collect();
    let output = run(&arguments);
    assert!(output.status.success(), "{}", words(&output));
    let said = words(&output);
    println!("{said}");
    for path in &paths {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let line = said.lines().find(|line| line.starts_with(&format!("{name}: "))).unwrap();
        // As many figures as were committed: a figure that shows itself as text is one that is missing.
        let notebook = read(path);
        let committed = outputs(&notebook).filter(|output| is_figure(output)).count();
        assert!(line.ends_with(&format!("; {committed} figures")), "{committed} figures are committed: {line}");
    }
}

fn read(path: &PathBuf) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn code(notebook: &Value) -> impl Iterator<Item = &Value> {
    notebook["cells"].as_array().unwrap().iter().filter(|cell| cell["cell_type"] == "code")
}

fn outputs(notebook: &Value) -> impl Iterator<Item = &Value> {
    code(notebook).flat_map(|cell| cell["outputs"].as_array().unwrap())
}

fn is_figure(output: &Value) -> bool {
    output["data"]["application/vnd.plotly.v1+json"].is_object()
}

/// A text that is a string or a list of lines.
fn text(value: &Value) -> String {
    match value {
        Value::Array(lines) => lines.iter().map(|line| line.as_str().unwrap()).collect(),
        other => other.as_str().unwrap_or_default().to_string(),
    }
}

#[test]
fn committed_notebooks_were_run_in_order_and_show_their_figures() {
    for path in notebooks() {
        let notebook = read(&path);
        let name = path.display();
        for (i, cell) in code(&notebook).enumerate() {
            assert_eq!(cell["execution_count"], i + 1, "{name}: run again with `cargo lab execute`");
            let source = text(&cell["source"]);
            // A cell that ends with a figure shows it in every form.
            let makes = |line: &str| line.starts_with("Figure::new(") || line.starts_with("figure(");
            let ends_with_figure = source.lines().any(makes) && !source.ends_with(';');
            let shown = cell["outputs"].as_array().unwrap();
            assert!(!ends_with_figure || shown.iter().any(is_figure), "{name}, cell {}: no figure", i + 1);
            // So is one whose cell moves a variable into it: it is shown as Rust's text of the value.
            let is_text = |o: &Value| !is_figure(o) && text(&o["data"]["text/plain"]).starts_with("Figure {");
            assert!(!shown.iter().any(is_text), "{name}, cell {}: a figure shown as text", i + 1);
        }
        for output in outputs(&notebook) {
            assert_ne!(output["output_type"], "error", "{name}");
            if is_figure(output) {
                let data = &output["data"];
                assert!(data["application/vnd.plotly.v1+json"]["data"].is_array(), "{name}");
                assert!(text(&data["image/svg+xml"]).starts_with("<svg"), "{name}");
                assert!(!text(&data["text/plain"]).is_empty(), "{name}");
            }
        }
    }
}

#[test]
fn committed_notebooks_tell_nothing_of_the_machine() {
    for path in notebooks() {
        let whole = std::fs::read_to_string(&path).unwrap();
        let own = [Some(root().to_path_buf()), Some(std::env::temp_dir()), std::env::var_os("HOME").map(PathBuf::from)];
        // A home that is the root itself is part of every address.
        let own = own.into_iter().flatten().filter(|folder| folder.parent().is_some());
        let own = own.map(|folder| format!("{}/", folder.display()));
        let known = ["/home/", "/Users/", " steps/s", "iopub.execute_input"].map(String::from);
        for trace in known.into_iter().chain(own) {
            assert!(!whole.contains(&trace), "{}: '{trace}'", path.display());
        }
        // Nothing is loaded when a figure is shown.
        for cell in outputs(&read(&path)) {
            let html = text(&cell["data"]["text/html"]);
            assert!(!html.contains("<script") && !html.contains("src="), "{}", path.display());
        }
    }
}
