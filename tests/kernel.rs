//! The kernel, started through Jupyter as a notebook starts it.

mod support;

use std::path::Path;

use serde_json::{Value, json};
use support::{Scratch, jupyter, kernels, root};

const FIRST: &str = ":dep incontext = { path = \"..\" }\nuse incontext::prelude::*;";

fn ok(result: &Value) -> &Value {
    assert!(result["error"].is_null(), "{result}");
    result
}

/// Types that notebooks keep in variables, none of them written out: rust-analyzer has to find each, in the trimmed
/// graph that the launcher gives it.
#[test]
fn the_types_of_variables_are_found() {
    let cells = [
        FIRST,
        "let xs = (0..20).map(f64::from).collect::<Vec<_>>();",
        "let ys = xs.iter().map(|x| x * x).collect::<Vec<_>>();",
        "let (low, high) = (ys[0], ys.iter().copied().fold(f64::NEG_INFINITY, f64::max));",
        "let table = std::collections::BTreeMap::from([(\"a\".to_string(), vec![1_u8])]);",
        "let panel = incontext::figure::Panel::new(\"squares\").line(incontext::figure::Line::new(\"x²\", &xs, &ys));",
        "let figure = incontext::figure::Figure::new(\"test.fig\", \"Squares\").panel(panel);",
        "let plot = figure.to_plotly().unwrap();",
        "let claims = incontext::figure::Claims::new().at_most(\"test.fig.a\", \"it holds\", low, high);",
        "let holds = claims.all_hold();",
        "figure",
    ];
    let steps: Vec<Value> = cells.iter().map(|cell| json!({ "run": cell })).collect();
    let results = kernels(jupyter(), &root().join("notebooks"), json!([{ "name": "incontext", "steps": steps }]));
    let results = results[0].as_array().unwrap();
    for (cell, result) in cells.iter().zip(results) {
        assert!(result["error"].is_null(), "{cell}: {result}");
    }
    let shown = &results.last().unwrap()["mime"];
    assert!(shown["application/vnd.plotly.v1+json"]["data"].is_array(), "{shown}");
    assert!(shown["image/svg+xml"].as_str().unwrap().starts_with("<svg"), "{shown}");
}

/// Two kernels at once: each has its own variables and its own compiled cells.
#[test]
fn two_kernels_do_not_disturb_one_another() {
    let steps = |n: u32| {
        let mut steps = vec![json!({ "run": FIRST }), json!({ "run": format!("let n = {n}_u32;") })];
        steps.extend((0..5).map(|i| json!({ "run": format!("let n = n + {i};\nprintln!(\"{{n}}\");") })));
        json!({ "name": "incontext", "steps": steps })
    };
    let results = kernels(jupyter(), &root().join("notebooks"), json!([steps(100), steps(200)]));
    for (kernel, end) in [(0, "110\n"), (1, "210\n")] {
        let results = results[kernel].as_array().unwrap();
        for result in results {
            ok(result);
        }
        assert_eq!(results.last().unwrap()["out"], end);
    }
}

/// An interrupted cell ends, and the kernel goes on; a restarted one has forgotten.
#[test]
fn a_kernel_survives_interruption_and_restart() {
    let steps = json!([
        { "run": FIRST },
        { "interrupt": "loop { std::thread::sleep(std::time::Duration::from_millis(10)); }", "after": 3.0 },
        { "run": "println!(\"{}\", 6 * 7);" },
        { "restart": true },
        { "run": "let after = 1.5;\nprintln!(\"{after}\");" },
    ]);
    let results = kernels(jupyter(), &root().join("notebooks"), json!([{ "name": "incontext", "steps": steps }]));
    assert!(results[0][1]["error"].as_str().unwrap().contains("terminated"), "{results}");
    assert_eq!(ok(&results[0][2])["out"], "42\n");
    assert_eq!(ok(&results[0][4])["out"], "1.5\n");
}

/// Killed with SIGKILL in the middle of a computation, a launcher leaves neither a process nor a folder.
#[test]
fn a_killed_launcher_leaves_nothing() {
    let steps = json!([
        { "run": "std::thread::spawn(|| loop { std::hint::spin_loop(); });" },
        { "folders": true },
        { "kill": true },
        { "folders": true },
    ]);
    let results = kernels(jupyter(), &root().join("notebooks"), json!([{ "name": "incontext", "steps": steps }]));
    let killed = &results[0][2];
    let prefix = format!("k{}x", killed["launcher"]);
    let ours = |folders: &Value| {
        folders.as_array().unwrap().iter().filter(|name| name.as_str().unwrap().starts_with(&prefix)).count()
    };
    assert_eq!(ours(&results[0][1]), 1, "{results}");
    assert!(killed["family"].as_u64().unwrap() >= 3, "guard, evcxr and the cells' process: {killed}");
    assert_eq!(killed["left"], json!([]), "{killed}");
    assert_eq!(ours(&results[0][3]), 0, "{results}");
}

/// A folder whose launcher and guard were both killed is swept when the next kernel starts.
#[test]
fn folders_of_the_dead_are_swept() {
    let left = root().join(".lab/kernels/k1x0");
    jupyter();
    std::fs::create_dir_all(left.join("crate")).unwrap();
    std::fs::write(left.join("alive"), "").unwrap();
    let steps = json!([{ "run": "println!(\"started\");" }]);
    kernels(jupyter(), &root().join("notebooks"), json!([{ "name": "incontext", "steps": steps }]));
    assert!(!left.exists());
}

/// Cells are compiled without debug assertions and overflow checks, and optimised.
#[test]
fn cells_compute_at_full_speed() {
    let steps = json!([
        { "run": "println!(\"{} {}\", cfg!(debug_assertions), std::panic::catch_unwind(|| std::hint::black_box(255_u8) + 1).is_err());" },
    ]);
    let results = kernels(jupyter(), &root().join("notebooks"), json!([{ "name": "incontext", "steps": steps }]));
    assert_eq!(ok(&results[0][0])["out"], "false false\n");
}

/// The repository in a folder whose name has a space and letters beyond ASCII. What does not depend on the place is
/// taken from this repository; the helper crate is compiled there.
#[test]
fn a_path_with_a_space_and_other_letters_works() {
    jupyter();
    let scratch = Scratch::new("copy");
    let prefix = jupyter().prefix();
    // The environment stands for an active conda environment with JupyterLab, in which the lab writes nothing.
    let house = || {
        let mut house = scratch.house();
        house.env("CONDA_PREFIX", &prefix);
        house
    };
    house();
    for part in ["evcxr", "rust-src"] {
        let from = root().join(".lab").join(part);
        if from.exists() {
            std::os::unix::fs::symlink(from, scratch.path().join(".lab").join(part)).unwrap();
        }
    }
    for folder in ["template", ".cargo"] {
        copy_with_times(&root().join(".lab").join(folder), &scratch.path().join(".lab").join(folder));
    }
    let place = support::of_environment(&mut house());
    let cells =
        [FIRST, "let squares = (0..4).map(|i| f64::from(i * i)).collect::<Vec<_>>();", "println!(\"{squares:?}\");"];
    let steps: Vec<Value> = cells.iter().map(|cell| json!({ "run": cell })).collect();
    let results = kernels(&place, &scratch.path().join("notebooks"), json!([{ "name": "incontext", "steps": steps }]));
    for result in results[0].as_array().unwrap() {
        ok(result);
    }
    assert_eq!(results[0][2]["out"], "[0.0, 1.0, 4.0, 9.0]\n");
    let output = house().arg("doctor").output().unwrap();
    assert!(output.status.success(), "{}", support::words(&output));
    assert!(support::words(&output).contains("żółw"));
}

/// A copy that cargo takes for the original: what was compiled is not compiled again.
fn copy_with_times(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_with_times(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
            let time = entry.metadata().unwrap().modified().unwrap();
            std::fs::File::options().append(true).open(target).unwrap().set_modified(time).unwrap();
        }
    }
}
