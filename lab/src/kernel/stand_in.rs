//! Stand-ins for `cargo` and `rustup`, which only the kernel sees: this program under those names.
//!
//! evcxr asks rustup where cargo is, and calls what it is told; its rust-analyzer looks in `$CARGO_HOME/bin`. Both find
//! the stand-in. It hands everything on to the real cargo, with these differences:
//!
//! * rust-analyzer's questions (`cargo metadata`, `config get`, `rustc --print`, ...) have the same answers for every
//!   kernel, so they are asked once and remembered beside the template.
//! * In the crate graph that rust-analyzer gets, the helper crate keeps only the dependencies whose types a notebook
//!   meets ([`KEPT`]): the rest would be read and resolved for nothing. Of those it reads an outline.
//! * `cargo check`, which evcxr runs to explain a cell whose types it cannot find, becomes `cargo build`: it says the
//!   same about the cell, and need not check every dependency first, which takes minutes.
//! * Cells are compiled without cargo ([`cell`]) unless the notebook asks for dependencies of its own.
//! * evcxr evaluates `42` before anything else, and rust-analyzer would read the standard library for it, and again once
//!   there is a helper crate. Until then it finds an empty one ([`reveal`]).
//! * Where the kernel's folder has a second name (see [`super::folder`]), evcxr is told of what cargo built by that name.
//! * evcxr compiles a cell before the first `:dep`, upon which cargo empties the lock file. The template's is put back
//!   before the helper crate is resolved, so that it is what was compiled, to the version.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::cell::{self, Cell, Compiled};
use super::folder::{Folder, complete};
use super::template::{Fnv, Template};
use crate::house::{self, House};
use crate::setup::rust::Toolchain;
use crate::setup::rust_src;
use crate::trouble::{Outcome, Subject, Trouble};

/// Which program this one stands in for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `cargo`.
    Cargo,
    /// `rustup`.
    Rustup,
    /// The program that cargo calls the compiler through ([`cell`]).
    Recorder,
}

/// The variables through which the launcher tells the stand-ins what they need to know.
const CARGO: &str = "INCONTEXT_CARGO";
const RUSTC: &str = "INCONTEXT_RUSTC";
const CARGO_HOME: &str = "INCONTEXT_CARGO_HOME";
const KERNEL: &str = "INCONTEXT_KERNEL";
const LIBRARY: &str = "INCONTEXT_LIBRARY";

/// Dependencies of the helper crate, at any depth, whose types or traits a notebook meets.
const KEPT: [&str; 9] =
    ["incontext", "dfdx", "num-traits", "plotly", "rand", "rand_chacha", "rand_core", "rand_distr", "serde_json"];

/// The role that this process was started in, by the name it was called.
pub fn role() -> Option<Role> {
    std::env::var_os(CARGO)?;
    let name = PathBuf::from(std::env::args_os().next()?);
    match name.file_stem()?.to_str()? {
        "cargo" => Some(Role::Cargo),
        "rustup" => Some(Role::Rustup),
        cell::RECORDER => Some(Role::Recorder),
        _ => None,
    }
}

/// Installs the stand-ins and returns their folder, which is a `CARGO_HOME` as far as rust-analyzer can see.
pub fn install(house: &House) -> Outcome<PathBuf> {
    let folder = super::stand_ins(house);
    let program = house.program();
    for name in ["cargo", "rustup", cell::RECORDER] {
        let path = folder.join("bin").join(house::executable(name));
        if std::fs::read_link(&path).is_ok_and(|target| target == program) {
            continue;
        }
        house.make("stand-ins/bin")?;
        link(&program, &path)?;
    }
    Ok(folder)
}

/// What the launcher sets in the kernel's environment for the stand-ins.
pub fn environment(toolchain: &Toolchain, folder: &Folder) -> Vec<(&'static str, OsString)> {
    let mut variables = tools(toolchain);
    variables.extend([(KERNEL, folder.id().into()), (LIBRARY, folder.library().into_os_string())]);
    variables.extend(std::env::var_os("CARGO_HOME").map(|home| (CARGO_HOME, home)));
    variables
}

/// Where the real programs are; a process that has these variables plays a role.
pub fn tools(toolchain: &Toolchain) -> Vec<(&'static str, OsString)> {
    vec![(CARGO, toolchain.cargo.clone().into_os_string()), (RUSTC, toolchain.rustc.clone().into_os_string())]
}

/// Plays the role.
pub fn run(role: Role) -> Outcome<u8> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match role {
        Role::Rustup => rustup(&arguments),
        Role::Cargo => cargo(&arguments),
        Role::Recorder => cell::record(&arguments),
    }
}

/// Answers `rustup which cargo` and `rustup which rustc`; anything else goes to the real rustup.
fn rustup(arguments: &[OsString]) -> Outcome<u8> {
    let words: Vec<&str> = arguments.iter().filter_map(|word| word.to_str()).collect();
    match words[..] {
        ["which", "cargo"] => {
            let this = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
            let folder = this.parent().filter(|folder| !folder.as_os_str().is_empty()).map(Path::to_path_buf);
            let folder = folder.or_else(|| Some(house::on_path("rustup")?.parent()?.to_path_buf()));
            println!("{}", folder.unwrap_or_default().join(house::executable("cargo")).display());
            Ok(0)
        }
        ["which", "rustc"] => {
            println!("{}", std::env::var_os(RUSTC).map(PathBuf::from).unwrap_or_default().display());
            Ok(0)
        }
        _ => {
            // The first on the search path is this very program.
            let others = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
                .map(|folder| folder.join(house::executable("rustup")))
                .filter(|path| path.is_file())
                .nth(1);
            let rustup = others.ok_or_else(|| Trouble::new("there is no rustup on the search path"))?;
            Err(Trouble::new(format!("could not run rustup: {}", Command::new(rustup).args(arguments).exec())))
        }
    }
}

/// The real cargo, in the environment that the user has.
fn real(arguments: &[OsString]) -> Command {
    let mut command = Command::new(std::env::var_os(CARGO).unwrap_or_else(|| "cargo".into()));
    command.args(arguments);
    match std::env::var_os(CARGO_HOME) {
        Some(home) => command.env("CARGO_HOME", home),
        None => command.env_remove("CARGO_HOME"),
    };
    command
}

fn cargo(arguments: &[OsString]) -> Outcome<u8> {
    restore_lock()?;
    let words: Option<Vec<&str>> = arguments.iter().map(|word| word.to_str()).collect();
    let question = words.filter(|words| is_question(words));
    let Some(words) = question else {
        let checks = |word: &OsString| word == "check";
        let built = arguments.iter().map(|word| if checks(word) { "build".into() } else { word.clone() });
        let arguments: Vec<OsString> = built.collect();
        if arguments.iter().any(|word| word == "build") {
            return build(&arguments, std::env::var_os(NOTE).map(PathBuf::from).as_deref());
        }
        return Err(Trouble::new(format!("could not run cargo: {}", real(&arguments).exec())));
    };
    let house = House::find()?;
    if words == ["metadata", "--format-version=1"] {
        reveal(&house)?;
    }
    let kernel = std::env::var(KERNEL).unwrap_or_default();
    let record = Template::of(&house).answers().join(format!("{:016x}.json", key(&words, &kernel)));
    if let Some(text) = std::fs::read_to_string(&record).ok().and_then(|text| remembered(&text)) {
        print!("{}", text.replace(PLACE, &kernel));
        return Ok(0);
    }
    let output = real(arguments).output().doing(|| "run cargo".into())?;
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        print!("{text}");
        return Ok(output.status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1));
    }
    if words.contains(&"metadata") && words.contains(&"--filter-platform") && !words.contains(&"--no-deps") {
        text = match trim(&text) {
            Some(graph) => outlined(graph, &Template::of(&house))?,
            None => text,
        };
    }
    print!("{text}");
    if !kernel.is_empty() {
        let answer = json!({ "stdout": text.replace(&kernel, PLACE) });
        house::write(&record, answer.to_string())?;
    }
    Ok(0)
}

/// The variable by which evcxr tells where it wants to read the path of a cell's library; without such a note it takes
/// the path from cargo's messages.
const NOTE: &str = "EVCXR_EXECUTION_SO_PATH";

/// Builds a cell's crate, without cargo if it can be, and notes its library by the name that evcxr has for the folder:
/// cargo, which asks the system where it is, knows the other one.
fn build(arguments: &[OsString], note: Option<&Path>) -> Outcome<u8> {
    let cell = Cell::here(arguments);
    match cell.as_ref().map_or(Compiled::Unknown, Cell::compile) {
        Compiled::Yes => {}
        Compiled::No => return Ok(101),
        Compiled::Unknown => {
            complete(&House::find()?, Path::new("."))?;
            let mut cargo = real(arguments);
            if let Some(cell) = &cell {
                cell.watch(&mut cargo)?;
            }
            let status = cargo.status().doing(|| "run cargo".into())?;
            if !status.success() {
                return Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1));
            }
        }
    }
    let host = arguments.iter().skip_while(|word| *word != "--target").nth(1);
    let name = format!("{}ctx{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    if let (Some(host), Some(note), Some(folder)) = (host, note, note.and_then(Path::parent)) {
        let built = folder.join("target").join(host).join("debug");
        // The compiler leaves the library where cargo takes it from.
        let library = built.join("deps").join(name);
        if library.is_file() {
            std::fs::write(note, library.as_os_str().as_encoded_bytes())
                .doing(|| format!("write {}", note.display()))?;
        }
    }
    Ok(0)
}

/// Lets rust-analyzer find the standard library, now that cells are about to use it.
fn reveal(house: &House) -> Outcome<()> {
    let Some(library) = std::env::var_os(LIBRARY).map(PathBuf::from) else { return Ok(()) };
    let full = rust_src::folder(house);
    if std::fs::read_link(&library).is_ok_and(|target| target != full) {
        link(&full, &library)?;
    }
    Ok(())
}

/// Makes or replaces a symbolic link.
pub fn link(target: &Path, path: &Path) -> Outcome<()> {
    let new = path.with_extension(format!("{}.new", std::process::id()));
    std::os::unix::fs::symlink(target, &new)
        .and_then(|()| std::fs::rename(&new, path))
        .doing(|| format!("write {}", path.display()))
}

/// What a record has in the place of the kernel's own folder.
const PLACE: &str = "<kernel>";

fn remembered(record: &str) -> Option<String> {
    let answer: Value = serde_json::from_str(record).ok()?;
    Some(answer.get("stdout")?.as_str()?.to_string())
}

/// Whether cargo only answers and does nothing.
fn is_question(words: &[&str]) -> bool {
    let prints = || words.contains(&"--print");
    match words.iter().find(|word| !word.starts_with('-') && **word != "unstable-options") {
        Some(&("metadata" | "locate-project" | "config")) => true,
        Some(&"rustc") => prints(),
        None => words.contains(&"--version"),
        _ => false,
    }
}

/// Which answer is meant: the question, and the manifest that it is about.
fn key(words: &[&str], kernel: &str) -> u64 {
    let mut hash = Fnv::new();
    let plain = |text: &str| if kernel.is_empty() { text.to_string() } else { text.replace(kernel, PLACE) };
    for word in words {
        hash.add(plain(word).as_bytes());
    }
    for file in ["Cargo.toml", ".cargo/config.toml"] {
        hash.add(plain(&std::fs::read_to_string(file).unwrap_or_default()).as_bytes());
    }
    hash.0
}

/// Puts the template's lock file in place where the helper crate is about to be resolved without one.
fn restore_lock() -> Outcome<()> {
    let manifest = std::fs::read_to_string("Cargo.toml").unwrap_or_default();
    if !manifest.lines().any(|line| line.trim_start().starts_with("incontext ")) {
        return Ok(());
    }
    let lock = std::fs::read_to_string("Cargo.lock").unwrap_or_default();
    if lock.contains("name = \"incontext\"") {
        return Ok(());
    }
    let house = House::find()?;
    match std::fs::read(Template::of(&house).crate_folder().join("Cargo.lock")) {
        Ok(locked) => std::fs::write("Cargo.lock", locked).doing(|| "write Cargo.lock".into()),
        Err(_) => Ok(()),
    }
}

/// The graph without what rust-analyzer need not read. `None` if the answer is not what cargo is known to give.
fn trim(answer: &str) -> Option<Value> {
    let mut graph: Value = serde_json::from_str(answer).ok()?;
    let name_of = |package: &Value| package.get("name")?.as_str().map(str::to_string);
    let id_of = |package: &Value| package.get("id")?.as_str().map(str::to_string);
    let names: std::collections::HashMap<String, String> =
        graph.get("packages")?.as_array()?.iter().filter_map(|p| Some((id_of(p)?, name_of(p)?))).collect();
    let is_kept = |id: &str| names.get(id).is_some_and(|name| KEPT.contains(&name.as_str()));
    // Which packages are reached through the helper crate alone is a matter of walking the graph from its root.
    let nodes = graph.get("resolve")?.get("nodes")?.as_array()?;
    let edges: std::collections::HashMap<&str, Vec<&str>> = nodes
        .iter()
        .filter_map(|node| {
            let dependencies = node.get("deps")?.as_array()?.iter().filter(|edge| is_normal(edge));
            Some((node.get("id")?.as_str()?, dependencies.filter_map(|edge| edge.get("pkg")?.as_str()).collect()))
        })
        .collect();
    let root = graph.get("resolve")?.get("root")?.as_str()?;
    let mut reached = std::collections::HashSet::new();
    let mut open = vec![(root, false)];
    while let Some((id, below_helper)) = open.pop() {
        if below_helper && !is_kept(id) || !reached.insert(id.to_string()) {
            continue;
        }
        let below = below_helper || names.get(id).is_some_and(|name| name == "incontext");
        open.extend(edges.get(id).into_iter().flatten().map(|next| (*next, below)));
    }
    let packages = graph.get_mut("packages")?.as_array_mut()?;
    packages.retain(|package| id_of(package).is_some_and(|id| reached.contains(&id)));
    let nodes = graph.get_mut("resolve")?.get_mut("nodes")?.as_array_mut()?;
    nodes.retain(|node| node.get("id").and_then(Value::as_str).is_some_and(|id| reached.contains(id)));
    for node in nodes {
        let is_reached = |id: Option<&Value>| id.and_then(Value::as_str).is_some_and(|id| reached.contains(id));
        if let Some(edges) = node.get_mut("deps").and_then(Value::as_array_mut) {
            edges.retain(|edge| is_normal(edge) && is_reached(edge.get("pkg")));
        }
        if let Some(ids) = node.get_mut("dependencies").and_then(Value::as_array_mut) {
            ids.retain(|id| is_reached(Some(id)));
        }
    }
    Some(graph)
}

/// Whether a dependency is one of the library itself, not of its build script or its tests.
fn is_normal(edge: &Value) -> bool {
    let kinds = edge.get("dep_kinds").and_then(Value::as_array);
    kinds.is_none_or(|kinds| kinds.iter().any(|kind| kind.get("kind").is_none_or(Value::is_null)))
}

/// The graph with each package reduced to its library, in outline beside the template; the cell's own stays as it is.
fn outlined(mut graph: Value, template: &Template) -> Outcome<String> {
    let root = graph.pointer("/resolve/root").cloned();
    for package in graph.get_mut("packages").and_then(Value::as_array_mut).into_iter().flatten() {
        if package.get("id") != root.as_ref() {
            outline_package(package, template)?;
        }
    }
    Ok(format!("{graph}\n"))
}

/// Points a package at an outline of its library. rust-analyzer reads the whole folder that a manifest is in, so that
/// the helper crate's must not be the repository's, with everything that is in `.lab`.
fn outline_package(package: &mut Value, template: &Template) -> Outcome<()> {
    let text = |name: &str| package.get(name).and_then(Value::as_str).unwrap_or_default().to_string();
    let folder = template.outlines().join(format!("{}-{}", text("name"), text("version")));
    let is_library = |target: &Value| {
        let kinds = target.get("kind").and_then(Value::as_array);
        kinds.is_some_and(|kinds| {
            !kinds.iter().any(|k| matches!(k.as_str(), Some("test" | "bench" | "example" | "bin" | "custom-build")))
        })
    };
    for target in package.get_mut("targets").and_then(Value::as_array_mut).into_iter().flatten() {
        if !is_library(target) {
            continue;
        }
        let source = PathBuf::from(target.get("src_path").and_then(Value::as_str).unwrap_or_default());
        let (Some(sources), Some(file)) = (source.parent(), source.file_name()) else { continue };
        rust_src::copy_sources(sources, &folder.join("src"))?;
        target["src_path"] = folder.join("src").join(file).to_string_lossy().into();
    }
    if let Some(targets) = package.get_mut("targets").and_then(Value::as_array_mut) {
        targets.retain(is_library);
    }
    package["manifest_path"] = folder.join("Cargo.toml").to_string_lossy().into();
    Ok(())
}
