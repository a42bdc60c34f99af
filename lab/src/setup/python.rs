//! The Python that has JupyterLab: an active conda environment's if it has one, else `.lab/venv`.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{need_space, pins, stamp};
use crate::bars::Step;
use crate::house::{self, House, on_path};
use crate::trouble::{Outcome, Subject, Trouble};

/// A Python that has JupyterLab.
#[derive(Clone, Debug)]
pub struct Python {
    /// Its program.
    pub program: PathBuf,
    /// Where it is installed: `sys.prefix`.
    pub prefix: PathBuf,
    /// Whether it is an active conda environment's rather than the lab's own.
    pub conda: bool,
}

/// Disk space of the virtual environment, with room for pip to unpack in.
const SPACE: u64 = 900 << 20;

/// The Python to use, made ready if need be.
pub fn ensure(house: &House) -> Outcome<Python> {
    if let Some(python) = conda() {
        return Ok(python);
    }
    let pins = pins::read(house)?;
    let venv = venv(house);
    if installed(&venv, &pins) {
        return Ok(venv);
    }
    need_space(house, SPACE, "JupyterLab")?;
    let base = base()?;
    let mut step = Step::start("Installing JupyterLab into .lab/venv");
    if !venv.program.is_file() || !runs(&venv.program) {
        create(house, &base, &venv)?;
    }
    install(house, &venv, &pins, &mut step)
        .map_err(|trouble| trouble.mend("or activate a conda environment that has JupyterLab; cargo lab uses it"))?;
    seal(&venv, &pins)?;
    step.done();
    // What pip downloaded was kept for the case of an interruption.
    let _ = std::fs::remove_dir_all(house.at("cache/pip"));
    Ok(venv)
}

/// The active conda environment's Python, if that has JupyterLab.
pub fn conda() -> Option<Python> {
    let prefix = PathBuf::from(std::env::var_os("CONDA_PREFIX").filter(|value| !value.is_empty())?);
    let program = prefix.join(if cfg!(windows) { "python.exe" } else { "bin/python" });
    let asked = Command::new(&program).args(["-c", "import jupyterlab"]).stderr(Stdio::null()).status();
    asked.is_ok_and(|status| status.success()).then_some(Python { program, prefix, conda: true })
}

/// The lab's own Python, there or not.
pub fn venv(house: &House) -> Python {
    own(house, "venv")
}

/// The Python of the environment in this folder of `.lab/`, there or not.
pub fn own(house: &House, folder: &str) -> Python {
    let prefix = house.at(folder);
    let program = if cfg!(windows) { prefix.join("Scripts/python.exe") } else { prefix.join("bin/python") };
    Python { program, prefix, conda: false }
}

/// Whether an environment has exactly what is pinned.
pub fn installed(venv: &Python, pins: &[String]) -> bool {
    stamp(&stamp_path(venv)).is_some_and(|text| text == pins.join("\n")) && venv.program.is_file()
}

/// Marks an environment as complete.
pub fn seal(venv: &Python, pins: &[String]) -> Outcome<()> {
    house::write(&stamp_path(venv), pins.join("\n"))
}

fn stamp_path(venv: &Python) -> PathBuf {
    venv.prefix.join("incontext.stamp")
}

fn runs(program: &Path) -> bool {
    let asked = Command::new(program).args(["-c", "import pip"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    asked.is_ok_and(|status| status.success())
}

/// What there is on this machine to make a virtual environment with.
pub struct Base {
    /// The interpreter.
    pub program: PathBuf,
    /// Its version, major and minor.
    pub version: (u32, u32),
    /// Whether it can make environments: Debian packs that apart.
    pub has_venv: bool,
}

/// The best Python on this machine: the first on the search path that is new enough and can make environments.
pub fn base() -> Outcome<Base> {
    let found = candidates();
    if let Some(i) = found.iter().position(|base| base.version >= (3, 10) && base.has_venv) {
        return found.into_iter().nth(i).ok_or_else(|| Trouble::new("no Python"));
    }
    if let Some(base) = found.iter().find(|base| base.version >= (3, 10)) {
        return Err(Trouble::new(format!(
            "{} has no module `venv` with `ensurepip`, which makes the environment for JupyterLab",
            base.program.display()
        ))
        .mend("on Debian or Ubuntu: sudo apt install python3-venv")
        .mend("elsewhere: install Python from python.org, or activate a conda environment made from environment.yml"));
    }
    let trouble = match found.first() {
        Some(old) => Trouble::new(format!(
            "JupyterLab needs Python 3.10 or later, and {} is {}.{}",
            old.program.display(),
            old.version.0,
            old.version.1
        )),
        None => Trouble::new("there is no Python on the search path; JupyterLab needs Python 3.10 or later"),
    };
    Err(trouble
        .mend("on Debian or Ubuntu: sudo apt install python3 python3-venv; on macOS: brew install python; on Fedora: sudo dnf install python3")
        .mend("or say which to use: INCONTEXT_PYTHON=/path/to/python3 cargo lab"))
}

/// Every Python that answers, in the order of preference.
fn candidates() -> Vec<Base> {
    let named = std::env::var_os("INCONTEXT_PYTHON").map(PathBuf::from);
    let names = ["python3", "python", "python3.14", "python3.13", "python3.12", "python3.11", "python3.10"];
    let all: Vec<PathBuf> = match named {
        Some(path) => vec![path],
        None => names.iter().filter_map(|name| on_path(name)).collect(),
    };
    all.into_iter().filter_map(|program| ask(&program)).collect()
}

fn ask(program: &Path) -> Option<Base> {
    let question = "import sys, importlib.util as u\n\
        print(sys.version_info[0], sys.version_info[1], int(bool(u.find_spec('venv') and u.find_spec('ensurepip'))))";
    let output = Command::new(program).args(["-c", question]).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let mut numbers = text.split_whitespace().map(str::parse::<u32>);
    let mut next = || numbers.next()?.ok();
    Some(Base { version: (next()?, next()?), has_venv: next()? == 1, program: program.to_path_buf() })
}

/// Makes an empty virtual environment.
pub fn create(house: &House, base: &Base, venv: &Python) -> Outcome<()> {
    house.make("")?;
    let output = Command::new(&base.program)
        .args(["-m", "venv", "--clear"])
        .arg(&venv.prefix)
        .output()
        .doing(|| format!("run {}", base.program.display()))?;
    if output.status.success() {
        return Ok(());
    }
    let _ = std::fs::remove_dir_all(&venv.prefix);
    Err(Trouble::new(format!("{} could not make a virtual environment:\n{}", base.program.display(), said(&output)))
        .mend("on Debian or Ubuntu: sudo apt install python3-venv"))
}

fn said(output: &std::process::Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).trim().to_string()
}

/// Runs pip with these pins or options, showing how many packages it has collected.
pub fn install(house: &House, venv: &Python, pins: &[String], step: &mut Step) -> Outcome<()> {
    let cache = house.make("cache/pip")?;
    let mut pip = Command::new(&venv.program)
        .args(["-m", "pip", "install", "--no-input", "--disable-pip-version-check", "--progress-bar", "off"])
        .arg("--cache-dir")
        .arg(&cache)
        .args(pins)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .doing(|| "run pip".into())?;
    // Read aside, so that a long complaint cannot block pip while its progress is being read.
    let stderr = pip.stderr.take();
    let complaints = std::thread::spawn(move || {
        let mut text = String::new();
        stderr.map(|mut pipe| pipe.read_to_string(&mut text));
        text
    });
    let mut collected = 0;
    for line in BufReader::new(
        pip.stdout.take().into_iter().fold(Box::new(std::io::empty()) as Box<dyn Read>, |_, p| Box::new(p)),
    )
    .lines()
    .map_while(Result::ok)
    {
        if let Some(package) = line.strip_prefix("Collecting ") {
            collected += 1;
            step.say(&format!("package {collected}: {}", package.split_whitespace().next().unwrap_or_default()));
        } else if line.starts_with("Installing collected packages") {
            step.say(&format!("unpacking {collected} packages"));
        }
    }
    let status = pip.wait().doing(|| "wait for pip".into())?;
    let complaints = complaints.join().unwrap_or_default();
    if status.success() {
        return Ok(());
    }
    let offline =
        ["NewConnectionError", "Name or service not known", "name resolution", "ConnectTimeout", "Max retries"];
    if offline.iter().any(|sign| complaints.contains(sign)) {
        return Err(Trouble::new("pip could not reach the Python package index: is there a network?")
            .mend("connect to the network (or set PIP_INDEX_URL to a mirror), then run the same command again"));
    }
    let tail: Vec<&str> = complaints.lines().rev().take(12).collect();
    Err(Trouble::new(format!("pip failed:\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n")))
        .mend(format!("run the same command again, or start afresh: rm -r \"{}\"", venv.prefix.display())))
}

/// Environment variables that keep Jupyter's and IPython's own files inside `.lab/`.
pub fn folders(house: &House) -> Outcome<Vec<(&'static str, PathBuf)>> {
    let made = [
        ("JUPYTER_CONFIG_DIR", "jupyter/config"),
        ("JUPYTER_DATA_DIR", "jupyter/data"),
        ("JUPYTER_RUNTIME_DIR", "jupyter/runtime"),
        ("JUPYTERLAB_SETTINGS_DIR", "jupyter/settings"),
        ("JUPYTERLAB_WORKSPACES_DIR", "jupyter/workspaces"),
        ("IPYTHONDIR", "jupyter/ipython"),
    ]
    .map(|(name, path)| house.make(path).map(|folder| (name, folder)));
    made.into_iter().collect()
}
