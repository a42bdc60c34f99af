//! A cell's crate, compiled without asking cargo.
//!
//! Between two cells of a notebook nothing changes but the cell's own source, yet cargo looks at every file of every
//! dependency before it calls the compiler, which takes longer than the compiler. So what cargo calls the compiler with
//! is written down, once when the template is built ([`super::template`]) and again whenever a notebook asks for other
//! dependencies, and cells are compiled with it. Anything that cargo would look at and that can change is part of the
//! record's key.
//!
//! Most of what the compiler then still does is the same for every cell: the module in which evcxr keeps a notebook's
//! variables, which it writes into each. Cells are compiled against a compiled one ([`RUNTIME`]).

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::template::{self, Fnv, Template};
use crate::house::{self, House};
use crate::setup::rust::{Toolchain, neutral};
use crate::trouble::{Outcome, Subject, Trouble};

/// The variable that tells the recorder where to write.
const RECORD: &str = "INCONTEXT_CELL_RECORD";

/// Cargo's variable for a program that it calls the compiler through, for the cell's crate alone.
const WRAPPER: &str = "RUSTC_WORKSPACE_WRAPPER";

/// The name under which this program is that one.
pub const RECORDER: &str = "rustc-recorder";

/// The crate that stands for the module of the same name.
const RUNTIME: &str = "evcxr_internal_runtime";
const RUNTIME_SOURCE: &str = include_str!("evcxr_internal_runtime.rs");

/// The hash of that module in the versions of evcxr whose module has the items of our crate: in another version, cells
/// keep their own.
const KNOWN_MODULES: [u64; 1] = [0x3210_81a8_6ed7_d46b];

/// Where a cell's crate keeps its records, and what the compiler reads instead of evcxr's source.
const RECORDS: &str = "target/cells";
const SOURCE: &str = "src/lib.rs";
const SHORT_SOURCE: &str = "src/cell.rs";

/// How cargo called the compiler for a cell.
#[derive(Debug, Deserialize, Serialize)]
struct Record {
    program: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

/// What became of a cell.
pub enum Compiled {
    /// It is compiled.
    Yes,
    /// It does not compile, for the reasons that were printed in cargo's form.
    No,
    /// Only cargo knows how to compile it.
    Unknown,
}

/// A cell that is about to be built in the current folder.
pub struct Cell {
    record: PathBuf,
}

impl Cell {
    /// The cell, unless what cargo has to look at cannot be told: a dependency on a folder other than the helper
    /// crate's.
    pub fn here(arguments: &[OsString]) -> Option<Cell> {
        let manifest = std::fs::read_to_string("Cargo.toml").ok()?;
        let folders: Vec<&str> =
            manifest.lines().filter(|line| line.contains("path = ") && line.contains('{')).collect();
        if folders.len() > 1 || !folders.iter().all(|line| line.starts_with("incontext = ")) {
            return None;
        }
        let words: Option<Vec<&str>> = arguments.iter().map(|word| word.to_str()).collect();
        let variables = std::env::vars().filter(|(name, _)| name == "RUSTFLAGS" || name.starts_with("CARGO_PROFILE"));
        let key = key(&House::find().ok()?, &manifest, &words?, &variables.collect::<Vec<_>>())?;
        let record = std::env::current_dir().ok()?.join(RECORDS).join(format!("{key}.json"));
        Some(Cell { record })
    }

    /// Compiles the cell as cargo would.
    pub fn compile(&self) -> Compiled {
        let text = std::fs::read_to_string(&self.record).unwrap_or_default();
        let Ok(record) = serde_json::from_str::<Record>(&text) else { return Compiled::Unknown };
        if record.compile_short() { Compiled::Yes } else { record.compile() }
    }

    /// Has cargo call the compiler through the recorder.
    pub fn watch(&self, cargo: &mut Command) -> Outcome<()> {
        watch(cargo, &House::find()?, &self.record);
        Ok(())
    }
}

/// What a way to compile a cell depends on. `None` if a source cannot be read.
fn key(house: &House, manifest: &str, arguments: &[&str], variables: &[(String, String)]) -> Option<String> {
    let mut hash = Fnv::new();
    for line in manifest.lines().filter(|line| !line.trim().is_empty()) {
        hash.add(line.as_bytes());
    }
    for argument in arguments {
        hash.add(argument.as_bytes());
    }
    for (name, value) in variables {
        hash.add(name.as_bytes());
        hash.add(value.as_bytes());
    }
    for file in template::inputs(house) {
        let changed = file.metadata().and_then(|metadata| metadata.modified()).ok()?;
        hash.add(format!("{} {changed:?}", file.display()).as_bytes());
    }
    Some(format!("{:016x}", hash.0))
}

impl Record {
    /// Compiles the cell against the compiled store of variables; whether that worked.
    fn compile_short(&self) -> bool {
        let short = || {
            let source = without_runtime(&std::fs::read_to_string(SOURCE).ok()?)?;
            let runtime = self.folder()?.join(library());
            (runtime.is_file() && std::fs::write(SHORT_SOURCE, source).is_ok()).then_some(runtime)
        };
        let Some(runtime) = short() else { return false };
        let mut compiler = self.compiler(SHORT_SOURCE);
        compiler
            .args(["--extern", &format!("{RUNTIME}={}", runtime.display())])
            .arg(format!("--remap-path-prefix={SHORT_SOURCE}={SOURCE}"));
        let status = compiler.stdout(Stdio::null()).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    }

    /// Compiles the cell as it is, and prints what the compiler says about it as cargo does.
    fn compile(&self) -> Compiled {
        let Ok(output) = self.compiler(SOURCE).output() else { return Compiled::Unknown };
        let mut is_explained = false;
        for line in String::from_utf8_lossy(&output.stderr).lines() {
            if let Ok(message) = serde_json::from_str::<Value>(line)
                && message.get("message").is_some()
            {
                is_explained |= message.get("level").and_then(Value::as_str) == Some("error");
                println!("{}", json!({ "reason": "compiler-message", "message": message }));
            }
        }
        match (output.status.success(), is_explained) {
            (true, _) => Compiled::Yes,
            (false, true) => Compiled::No,
            (false, false) => Compiled::Unknown,
        }
    }

    /// The compiler as cargo called it, for this source.
    fn compiler(&self, source: &str) -> Command {
        let mut compiler = Command::new(&self.program);
        compiler
            .args(self.arguments.iter().map(|word| if word == SOURCE { source } else { word }))
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null());
        compiler
    }

    fn write(&self, path: &Path) -> Outcome<()> {
        let text = serde_json::to_string(self).map_err(std::io::Error::other).doing(|| "describe a cell".into())?;
        house::write(path, text)
    }

    /// The folder that the compiler writes to, with the dependencies in it.
    fn folder(&self) -> Option<&Path> {
        let place = self.arguments.iter().position(|word| word == "--out-dir")?;
        self.arguments.get(place + 1).map(Path::new)
    }
}

/// A cell's source without the module that its variables are in; as many lines, so that a panic is where it was.
fn without_runtime(source: &str) -> Option<String> {
    let start = source.find(&format!("mod {RUNTIME} {{\n"))?;
    // The module's own lines are indented or end an item of it; a second brace in the first column ends the module.
    let end = start + source[start..].find("\n}\n}\n")? + "\n}\n}\n".len();
    let module = &source[start..end];
    let mut hash = Fnv::new();
    hash.add(module.as_bytes());
    let lines = "\n".repeat(module.lines().count());
    KNOWN_MODULES.contains(&hash.0).then(|| format!("{}{lines}{}", &source[..start], &source[end..]))
}

fn library() -> String {
    format!("lib{RUNTIME}.rlib")
}

/// Compiles the store of variables to where a template has its libraries.
pub fn prepare(toolchain: &Toolchain, template: &Template) -> Outcome<()> {
    let source = template.folder.join("runtime.rs");
    house::write(&source, RUNTIME_SOURCE)?;
    let mut compiler = Command::new(&toolchain.rustc);
    let output = neutral(&mut compiler)
        .args(["--crate-name", RUNTIME, "--crate-type", "rlib", "--edition=2024", "-Copt-level=2", "-Cprefer-dynamic"])
        .args(["--target", &toolchain.host])
        .arg("-o")
        .arg(template.libraries(toolchain).join(library()))
        .arg(&source)
        .output()
        .doing(|| "run rustc".into())?;
    if output.status.success() {
        return Ok(());
    }
    Err(Trouble::new(format!(
        "the kernel's store of variables does not compile:\n{}",
        String::from_utf8_lossy(&output.stderr).trim()
    )))
}

/// Has cargo call the compiler for the crate in its folder through the recorder, which writes to `record`.
pub fn watch(cargo: &mut Command, house: &House, record: &Path) {
    let recorder = super::stand_ins(house).join("bin").join(house::executable(RECORDER));
    cargo.env(RECORD, record).env(WRAPPER, recorder);
}

/// Gives a kernel's crate the template's records: for a notebook with the helper crate, and before it has it.
pub fn adopt(house: &House, toolchain: &Toolchain, template: &Template, crate_folder: &Path) -> Outcome<()> {
    let Ok(text) = std::fs::read_to_string(template.record()) else { return Ok(()) };
    let Ok(mut record) = serde_json::from_str::<Record>(&text) else { return Ok(()) };
    let (from, to) = (template.crate_folder(), crate_folder);
    let (Some(from), Some(to)) = (from.to_str(), to.to_str()) else { return Ok(()) };
    let values = record.environment.iter_mut().map(|(_, value)| value);
    for text in record.arguments.iter_mut().chain(values) {
        *text = text.replace(from, to);
    }
    let arguments = ["build", "--target", &toolchain.host, "--message-format=json"];
    let variables = [("RUSTFLAGS".to_string(), template::flags())];
    let with = template::manifest(house);
    let without: String =
        with.lines().filter(|line| !line.starts_with("incontext = ")).map(|line| format!("{line}\n")).collect();
    for manifest in [with, without] {
        let Some(key) = key(house, &manifest, &arguments, &variables) else { continue };
        record.write(&crate_folder.join(RECORDS).join(format!("{key}.json")))?;
    }
    Ok(())
}

/// Plays the compiler: cargo's arguments are its program and what to call it with.
pub fn record(arguments: &[OsString]) -> Outcome<u8> {
    let [program, arguments @ ..] = arguments else {
        return Err(Trouble::new("the recorder needs a compiler to call"));
    };
    let mut compiler = Command::new(program);
    compiler.args(arguments).env_remove(RECORD).env_remove(WRAPPER);
    let status = compiler.status().doing(|| "run rustc".into())?;
    if status.success()
        && let Some(record) = describe(program, arguments)
    {
        record.write(&std::env::var_os(RECORD).map(PathBuf::from).unwrap_or_default())?;
    }
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// The record of a call that builds the cell's library; cargo calls the compiler for other answers too.
fn describe(program: &OsString, arguments: &[OsString]) -> Option<Record> {
    let text = |word: &OsString| word.to_str().map(str::to_string);
    let arguments: Vec<String> = arguments.iter().map(text).collect::<Option<_>>()?;
    let is_cell = arguments.windows(2).any(|pair| pair == ["--crate-name", "ctx"]);
    // Not CARGO_MAKEFLAGS: it names files that are open in this run of cargo alone.
    let is_told = |name: &str| name == "CARGO" || name.starts_with("CARGO_") || name.ends_with("LIBRARY_PATH");
    let environment = std::env::vars().filter(|(name, _)| is_told(name) && name != "CARGO_MAKEFLAGS");
    is_cell.then_some(())?;
    Some(Record { program: text(program)?, arguments, environment: environment.collect() })
}

#[cfg(test)]
mod tests {
    use super::super::evcxr_internal_runtime::{
        USER_ERROR_OCCURRED, VARIABLE_CHANGED_TYPE, VariableStore, create_variable_store,
    };
    use super::*;

    #[test]
    fn the_store_keeps_variables_and_knows_their_types() {
        let mut store = VariableStore::new();
        store.put_variable("x", vec![1.0, 2.0]);
        assert!(store.check_variable::<Vec<f64>>("x") && !store.check_variable::<Vec<f32>>("x"));
        assert!(store.check_variable::<Vec<f64>>("not there"));
        let mut other = VariableStore::new();
        other.put_variable("y", 3);
        store.merge(other);
        assert_eq!(store.take_variable::<i32>("y"), 3);
        assert_eq!(store.take_variable::<Vec<f64>>("x"), [1.0, 2.0]);
        assert_eq!(*store.lazy_arc("shared", || 1), 1);
        assert_eq!(*store.lazy_arc("shared", || 2), 1);
        assert!(!create_variable_store().is_null());
        // What evcxr reads in a cell's output.
        assert!(VARIABLE_CHANGED_TYPE.starts_with("EVCXR_") && USER_ERROR_OCCURRED.starts_with("EVCXR_"));
    }

    #[test]
    fn a_module_that_is_not_known_stays() {
        assert!(without_runtime("mod evcxr_internal_runtime {\nfn f() {\n}\n}\nfn g() {}\n").is_none());
        assert!(without_runtime("fn g() {}\n").is_none());
    }
}
