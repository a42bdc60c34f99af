//! The prebuilt target folder that every kernel starts from a copy of: the helper crate and what it depends on,
//! compiled exactly as evcxr compiles a cell's crate, so that cargo finds nothing to do when a notebook says `:dep`.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use super::cell;
use crate::bars::Step;
use crate::house::{self, House, on_path};
use crate::setup::rust::{Toolchain, neutral};
use crate::setup::{Lock, need_space, stamp};
use crate::trouble::{Outcome, Subject, Trouble};

/// Counts the changes of what a template is: an older one is rebuilt.
const FORMAT: u32 = 4;

/// Disk space of the compiled dependencies.
const SPACE: u64 = 1 << 30;

/// How cargo compiles in `.lab/`: found by cargo itself, above the template and above every kernel's crate alike.
///
/// * evcxr asks for debug assertions and overflow checks, which cost numerics up to half their speed.
/// * Link-time optimisation across a crate's own pieces doubles its compile time and speeds up nothing here.
/// * The dependencies get the release build's optimisation; not those of gemm's element types that nothing here
///   multiplies, which take minutes to optimise.
/// * A cell's crate (`ctx`) in one piece and without incremental compilation takes a third less processor time: every
///   cell is new code, so there is little to reuse, and its generics are otherwise compiled in several pieces.
const PROFILE: &str = "\
[profile.dev]
debug-assertions = false
overflow-checks = false
lto = \"off\"

[profile.dev.package.\"*\"]
opt-level = 3

[profile.dev.package.gemm-c32]
opt-level = 0

[profile.dev.package.gemm-c64]
opt-level = 0

[profile.dev.package.gemm-f16]
opt-level = 0

[profile.dev.package.ctx]
codegen-units = 1
incremental = false

[profile.dev.build-override]
opt-level = 0
";

/// The template of this repository.
#[derive(Clone, Debug)]
pub struct Template {
    /// Its folder.
    pub folder: PathBuf,
}

impl Template {
    /// The template's place, whether it has been built or not.
    pub fn of(house: &House) -> Template {
        Template { folder: house.at("template") }
    }

    /// The crate that was compiled.
    pub fn crate_folder(&self) -> PathBuf {
        self.folder.join("crate")
    }

    /// Where cargo compiled it.
    pub fn target(&self) -> PathBuf {
        self.crate_folder().join("target")
    }

    /// Answers of cargo that are the same for every kernel.
    pub fn answers(&self) -> PathBuf {
        self.folder.join("answers")
    }

    /// Outlines of the helper crate and of those that it shows, which rust-analyzer reads.
    pub fn outlines(&self) -> PathBuf {
        self.folder.join("outlines")
    }

    /// Where cargo puts the libraries that a cell is compiled with.
    pub fn libraries(&self, toolchain: &Toolchain) -> PathBuf {
        self.target().join(&toolchain.host).join("debug/deps")
    }

    /// How cargo called the compiler for the template's crate.
    pub fn record(&self) -> PathBuf {
        self.folder.join("cell.json")
    }

    fn stamp(&self) -> PathBuf {
        self.folder.join("stamp")
    }

    /// A lock under which the template does not change.
    pub fn lock(house: &House) -> Outcome<Lock> {
        Lock::take(house, "template", "the kernel's template is being built; waiting")
    }
}

/// Builds the template if the helper crate, its dependencies or the compiler changed.
pub fn ensure(house: &House, toolchain: &Toolchain) -> Outcome<Template> {
    let template = Template::of(house);
    if is_current(house, toolchain) {
        return Ok(template);
    }
    let _lock = Template::lock(house)?;
    if is_current(house, toolchain) {
        return Ok(template);
    }
    build(house, toolchain, &template)?;
    Ok(template)
}

/// Whether the template is there and of the present sources and compiler.
pub fn is_current(house: &House, toolchain: &Toolchain) -> bool {
    stamp(&Template::of(house).stamp()).is_some_and(|text| text == fingerprint(house, toolchain))
}

/// What the template depends on, in a line.
fn fingerprint(house: &House, toolchain: &Toolchain) -> String {
    let mut hash = Fnv::new();
    hash.add(toolchain.version.as_bytes());
    hash.add(PROFILE.as_bytes());
    let root = house.root();
    for file in inputs(house) {
        hash.add(file.strip_prefix(root).unwrap_or(&file).as_os_str().as_encoded_bytes());
        hash.add(&std::fs::read(&file).unwrap_or_default());
    }
    format!("{FORMAT} {:016x} {}\n", hash.0, root.display())
}

/// The files of the repository that the helper crate is compiled from.
pub fn inputs(house: &House) -> impl Iterator<Item = PathBuf> {
    let root = house.root();
    ["Cargo.toml", "Cargo.lock"].map(|name| root.join(name)).into_iter().chain(sources(&root.join("src")))
}

/// Every file below a folder, in a fixed order.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())).collect();
    entries.sort();
    entries.into_iter().flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

/// Fowler-Noll-Vo: the same value on every machine and with every compiler, unlike the standard library's hasher.
pub struct Fnv(pub u64);

impl Fnv {
    /// The hash of nothing.
    pub fn new() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }

    /// Adds bytes, and their length so that pieces cannot run into one another.
    pub fn add(&mut self, bytes: &[u8]) {
        for byte in bytes.iter().copied().chain((bytes.len() as u64).to_le_bytes()) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

fn build(house: &House, toolchain: &Toolchain, template: &Template) -> Outcome<()> {
    need_space(house, SPACE, "compiling the helper crate for the kernel")?;
    let step = Step::start("Compiling the helper crate for the kernel");
    let _ = std::fs::remove_file(template.stamp());
    let _ = std::fs::remove_dir_all(template.answers());
    let _ = std::fs::remove_dir_all(template.outlines());
    let folder = template.crate_folder();
    // What this fingerprint says is what cargo compiles below: sources that change meanwhile are for the next time.
    let fingerprint = fingerprint(house, toolchain);
    house::write(&house.at(".cargo/config.toml"), PROFILE)?;
    house::write(&folder.join("Cargo.toml"), manifest(house))?;
    let source = folder.join("src/lib.rs");
    house::write(&source, "pub use incontext::prelude::*;\n")?;
    // Newer than what was compiled of it, so that cargo calls the compiler, which is how we learn what with.
    let touched = File::options().write(true).open(&source).and_then(|file| file.set_modified(SystemTime::now()));
    touched.doing(|| format!("write {}", house.short(&source)))?;
    super::stand_in::install(house)?;
    let lock = house.root().join("Cargo.lock");
    let locked = std::fs::read(&lock).doing(|| format!("read {}", lock.display()))?;
    house::write(&folder.join("Cargo.lock"), locked)?;
    let log = house.at("template/build.log");
    let log_file = File::create(&log).doing(|| format!("write {}", house.short(&log)))?;
    let mut cargo = command(toolchain, &folder);
    cell::watch(&mut cargo, house, &template.record());
    let status = cargo
        .args(["build", "--target", &toolchain.host])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log_file)
        .status()
        .doing(|| "run cargo".into())?;
    if !status.success() {
        let words = std::fs::read_to_string(&log).unwrap_or_default();
        return Err(Trouble::new(format!("the helper crate does not compile for the kernel:\n{}", words.trim()))
            .mend("cargo build --release, and mend what it says"));
    }
    cell::prepare(toolchain, template)?;
    house::write(&template.stamp(), fingerprint)?;
    step.done();
    Ok(())
}

/// Cargo as evcxr calls it for a cell's crate in `folder`.
fn command(toolchain: &Toolchain, folder: &Path) -> Command {
    let mut cargo = Command::new(&toolchain.cargo);
    neutral(&mut cargo)
        .current_dir(folder)
        .env("CARGO_TARGET_DIR", "target")
        .env("CARGO_BUILD_BUILD_DIR", "target")
        .env("RUSTC", &toolchain.rustc)
        .env("RUSTFLAGS", flags());
    for (name, value) in super::stand_in::tools(toolchain) {
        cargo.env(name, value);
    }
    cargo
}

/// The compiler's flags that evcxr asks for.
pub fn flags() -> String {
    let mut flags = "-Cprefer-dynamic".to_string();
    if on_path("mold").is_none() && on_path("lld").is_some() {
        flags += " -Clink-arg=-fuse-ld=lld";
    }
    flags
}

/// The manifest that evcxr writes for a notebook that depends on the helper crate.
pub fn manifest(house: &House) -> String {
    format!(
        "[package]\nname = \"ctx\"\nversion = \"1.0.0\"\nedition = \"2024\"\n\n\
         [lib]\ncrate-type = [\"cdylib\"]\npath = \"src/lib.rs\"\n\n\
         [profile.dev]\nopt-level = 2\ndebug = false\nstrip = \"debuginfo\"\nrpath = true\nlto = false\n\
         debug-assertions = true\ncodegen-units = 16\npanic = 'unwind'\nincremental = true\noverflow-checks = true\n\n\
         [dependencies]\nincontext = {}\n",
        dependency(house)
    )
}

/// The helper crate as a dependency, in the very words that evcxr makes of a notebook's `{ path = ".." }`.
pub fn dependency(house: &House) -> String {
    let path = house.root().to_string_lossy().replace('\\', "\\\\").replace('"', "\\\"");
    format!("{{ path = \"{path}\" }}")
}
