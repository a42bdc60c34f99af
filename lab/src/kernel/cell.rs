//! A cell's crate, compiled without asking cargo.
//!
//! Between two cells of a notebook nothing changes but the cell's own source, yet cargo looks at every file of every
//! dependency before it calls the compiler, which takes longer than the compiler. So the first cell is built by cargo,
//! which calls the compiler through this program; what it was called with is written down, and the next cells call the
//! compiler with it. Anything that cargo would look at and that can change, changes the record's key; a cell that does
//! not compile is built by cargo again, whose messages are the ones that evcxr reads.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::template::{Fnv, sources};
use crate::house::{self, House};
use crate::trouble::{Outcome, Subject, Trouble};

/// The variables by which the stand-in for cargo tells the recorder where to write, and what for.
const RECORD: &str = "INCONTEXT_CELL_RECORD";
const KEY: &str = "INCONTEXT_CELL_KEY";

/// Cargo's variable for a program that it calls the compiler through, for the cell's crate alone.
const WRAPPER: &str = "RUSTC_WORKSPACE_WRAPPER";

/// The name under which this program is that one.
pub const RECORDER: &str = "rustc-recorder";

/// How cargo called the compiler for a cell.
#[derive(Debug, Deserialize, Serialize)]
struct Record {
    key: String,
    program: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

/// A cell that is about to be built in the current folder.
pub struct Cell {
    record: PathBuf,
    key: String,
}

impl Cell {
    /// The cell, unless what cargo has to look at cannot be told: a dependency on a folder other than the helper
    /// crate's.
    pub fn here(arguments: &[OsString], note: &str) -> Option<Cell> {
        let manifest = std::fs::read_to_string("Cargo.toml").ok()?;
        let house = House::find().ok()?;
        let folders = manifest.lines().filter(|line| line.contains("path = ") && line.contains('{'));
        if folders.clone().count() != 1 || !folders.clone().all(|line| line.starts_with("incontext = ")) {
            return None;
        }
        let mut hash = Fnv::new();
        hash.add(manifest.as_bytes());
        for file in ["Cargo.lock", ".cargo/config.toml"] {
            hash.add(&std::fs::read(file).unwrap_or_default());
        }
        for argument in arguments {
            hash.add(argument.as_encoded_bytes());
        }
        let mut environment: Vec<(OsString, OsString)> = std::env::vars_os().filter(|(name, _)| name != note).collect();
        environment.sort();
        for (name, value) in environment {
            hash.add(name.as_encoded_bytes());
            hash.add(value.as_encoded_bytes());
        }
        let root = house.root();
        for file in
            ["Cargo.toml", "Cargo.lock"].map(|name| root.join(name)).into_iter().chain(sources(&root.join("src")))
        {
            let changed = file.metadata().and_then(|metadata| metadata.modified()).ok()?;
            hash.add(format!("{} {changed:?}", file.display()).as_bytes());
        }
        let record = std::env::current_dir().ok()?.join("target/cell.json");
        Some(Cell { record, key: format!("{:016x}", hash.0) })
    }

    /// Compiles the cell as the last one was compiled; whether that is known and worked.
    pub fn compile(&self) -> bool {
        let text = std::fs::read_to_string(&self.record).unwrap_or_default();
        let Ok(record) = serde_json::from_str::<Record>(&text) else { return false };
        let quiet = || {
            let mut compiler = Command::new(&record.program);
            compiler.args(&record.arguments).envs(record.environment.iter().cloned());
            compiler.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()
        };
        record.key == self.key && quiet().is_ok_and(|status| status.success())
    }

    /// Has cargo call the compiler through the recorder.
    pub fn watch(&self, cargo: &mut Command) -> Outcome<()> {
        let recorder = super::stand_ins(&House::find()?).join("bin").join(house::executable(RECORDER));
        cargo.env(RECORD, &self.record).env(KEY, &self.key).env(WRAPPER, recorder);
        Ok(())
    }
}

/// Plays the compiler: cargo's arguments are its program and what to call it with.
pub fn record(arguments: &[OsString]) -> Outcome<u8> {
    let [program, arguments @ ..] = arguments else {
        return Err(Trouble::new("the recorder needs a compiler to call"));
    };
    let mut compiler = Command::new(program);
    compiler.args(arguments).env_remove(RECORD).env_remove(KEY).env_remove(WRAPPER);
    let status = compiler.status().doing(|| "run rustc".into())?;
    if status.success()
        && let Some(record) = describe(program, arguments)
    {
        let path = std::env::var_os(RECORD).map(PathBuf::from).unwrap_or_default();
        let text = serde_json::to_string(&record).map_err(std::io::Error::other).doing(|| "describe a cell".into())?;
        house::write(&path, text)?;
    }
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// The record of a call that builds the cell's library; cargo calls the compiler for other answers too.
fn describe(program: &OsString, arguments: &[OsString]) -> Option<Record> {
    let text = |word: &OsString| word.to_str().map(str::to_string);
    let arguments: Vec<String> = arguments.iter().map(text).collect::<Option<_>>()?;
    let is_cell = arguments.windows(2).any(|pair| pair == ["--crate-name", "ctx"]);
    let environment = std::env::vars()
        .filter(|(name, _)| name == "CARGO" || name.starts_with("CARGO_") || name.ends_with("LIBRARY_PATH"));
    is_cell.then_some(())?;
    Some(Record {
        key: std::env::var(KEY).ok()?,
        program: text(program)?,
        arguments,
        environment: environment.collect(),
    })
}
