//! `cargo lab execute`: runs notebooks from top to bottom, each on a fresh kernel, and keeps their outputs.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;
use serde_json::json;

use crate::bars::Step;
use crate::house::House;
use crate::trouble::{Outcome, Subject, Trouble};
use crate::{jupyter, setup};

/// Which notebooks, and how.
#[derive(Args, Debug)]
pub struct Options {
    /// Notebooks by name, with or without .ipynb; all of them if none is given
    notebooks: Vec<String>,
    /// Run them and leave the files as they are
    #[arg(long)]
    check: bool,
    /// The kernel to run them on instead of their own: incontext, or rust for plain evcxr
    #[arg(long)]
    kernel: Option<String>,
    /// The longest that a cell may take, in seconds
    #[arg(long, default_value_t = 1800, value_parser = clap::value_parser!(u32).range(1..))]
    cell_seconds: u32,
}

/// What the runner says.
#[derive(Deserialize)]
#[serde(untagged)]
enum Event {
    Failed { error: String, cell: usize },
    Begun { cell: usize, of: usize },
    Done { seconds: Vec<(usize, f64)>, figures: usize },
}

/// Runs them, one after the other. Exit code 1 if a cell of one fails.
pub fn run(house: &House, options: &Options) -> Outcome<u8> {
    let paths = find(&house.root().join("notebooks"), &options.notebooks)?;
    let ready = setup::all(house)?;
    let mut code = 0;
    for path in &paths {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let mut step = Step::start(&format!("Running {name}"));
        match execute(house, &ready, path, options, &mut step)? {
            Event::Done { seconds, figures } => {
                step.done();
                let total: f64 = seconds.iter().map(|(_, s)| s).sum();
                let (slowest, longest) =
                    seconds.iter().fold((0, 0.0), |most, &(cell, s)| if s > most.1 { (cell, s) } else { most });
                println!(
                    "{name}: {} cells in {total:.1} s, the longest (cell {slowest}) in {longest:.1} s; {figures} figures",
                    seconds.len()
                );
            }
            Event::Failed { error, cell } => {
                drop(step);
                eprintln!("{name}: cell {cell} failed:\n{error}");
                code = 1;
            }
            Event::Begun { .. } => return Err(Trouble::new(format!("the runner of {name} ended in the middle"))),
        }
    }
    Ok(code)
}

/// The notebooks that were asked for, in the order of their names.
fn find(folder: &Path, names: &[String]) -> Outcome<Vec<PathBuf>> {
    let mut there: Vec<PathBuf> = std::fs::read_dir(folder)
        .doing(|| format!("read {}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "ipynb"))
        .collect();
    there.sort();
    let stem = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    // A path is taken by its last part; what is not a notebook's ending belongs to the name.
    let asked = |name: &str| {
        let file = Path::new(name).file_name().unwrap_or_default().to_string_lossy().into_owned();
        file.trim_end_matches(".ipynb").to_owned()
    };
    for name in names {
        if !there.iter().any(|path| stem(path) == asked(name)) {
            let known: Vec<String> = there.iter().map(|path| stem(path)).collect();
            return Err(Trouble::usage(format!("there is no notebook '{name}'; there are: {}", known.join(", "))));
        }
    }
    if !names.is_empty() {
        there.retain(|path| names.iter().any(|name| asked(name) == stem(path)));
    }
    Ok(there)
}

fn execute(house: &House, ready: &setup::Ready, path: &Path, options: &Options, step: &mut Step) -> Outcome<Event> {
    let order = json!({
        "notebook": path,
        "kernel": options.kernel,
        "save": !options.check,
        "root": house.root(),
        "cell_seconds": options.cell_seconds,
    });
    let mut runner = jupyter::driver(house, &ready.python, include_str!("execute.py"), &order)?;
    // A kernel that is shut down complains of its lost connections: its words matter only if something failed.
    let errors = runner.stderr.take().map(|mut pipe| {
        std::thread::spawn(move || {
            let mut words = Vec::new();
            let _ = pipe.read_to_end(&mut words);
            String::from_utf8_lossy(&words).into_owned()
        })
    });
    let mut last = None;
    if let Some(pipe) = runner.stdout.take() {
        for line in BufReader::new(pipe).lines() {
            // The kernel's own words may come in between.
            let Ok(event) = serde_json::from_str(&line.doing(|| "listen to the runner".into())?) else { continue };
            if let Event::Begun { cell, of } = event {
                step.say(&format!("cell {cell} of {of}"));
            }
            last = Some(event);
        }
    }
    let status = runner.wait().doing(|| "wait for the runner".into())?;
    match last {
        Some(event) if status.success() => Ok(event),
        _ => {
            let words = errors.and_then(|thread| thread.join().ok()).unwrap_or_default();
            Err(Trouble::new(format!("{} could not be run:\n{}", path.display(), words.trim()))
                .mend("cargo lab doctor"))
        }
    }
}
