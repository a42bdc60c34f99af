//! The Rust kernel for Jupyter, evcxr_jupyter, in the version that this lab was made for: one that is on the machine
//! already, else one built into `.lab/evcxr`.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::need_space;
use super::rust::neutral;
use crate::bars::Step;
use crate::house::{House, executable, on_path};
use crate::trouble::{Outcome, Subject, Trouble};

/// The version. The launcher relies on how this one calls cargo and rust-analyzer; the tests start it.
pub const VERSION: &str = "0.22.0";

/// Disk space of its build.
const SPACE: u64 = 2 << 30;

/// The kernel's program, built if need be.
pub fn ensure(house: &House) -> Outcome<PathBuf> {
    match find(house) {
        Some(program) => Ok(program),
        None => build(house),
    }
}

/// The kernel's program, if it is there in the right version.
pub fn find(house: &House) -> Option<PathBuf> {
    let name = executable("evcxr_jupyter");
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    let places = [
        Some(house.at("evcxr/bin").join(&name)),
        on_path("evcxr_jupyter"),
        cargo_home.map(|home| home.join("bin").join(&name)),
    ];
    places.into_iter().flatten().find(|program| program.is_file() && is_pinned(program))
}

/// The program does not say its version, but cargo's record beside it does.
fn is_pinned(program: &Path) -> bool {
    let record = program.parent().and_then(Path::parent).map(|root| root.join(".crates.toml"));
    let record = record.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    record.contains(&format!("\"evcxr_jupyter {VERSION} "))
}

/// Builds it with cargo. What was compiled stays in `.lab/build` until the end, so an interrupted build goes on.
fn build(house: &House) -> Outcome<PathBuf> {
    need_space(house, SPACE, "building the Rust kernel")?;
    let built = house.make("build/evcxr")?;
    let mut step = Step::start(&format!("Building the Rust kernel (evcxr_jupyter {VERSION}; 5 to 20 minutes, once)"));
    let mut command = Command::new("cargo");
    neutral(&mut command)
        .args(["install", "evcxr_jupyter", "--version", VERSION, "--locked", "--root"])
        .arg(house.at("evcxr"))
        .env("CARGO_TARGET_DIR", &built)
        // Cargo counts crates only in its progress bar, so that is asked for and read.
        .env("CARGO_TERM_PROGRESS_WHEN", "always")
        .env("CARGO_TERM_PROGRESS_WIDTH", "120")
        .env("CARGO_TERM_COLOR", "never")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut cargo = command.spawn().doing(|| "run cargo".into())?;
    let mut words = Vec::new();
    if let Some(mut pipe) = cargo.stderr.take() {
        let mut chunk = [0; 4096];
        let mut line = String::new();
        while let Ok(n @ 1..) = pipe.read(&mut chunk) {
            for c in String::from_utf8_lossy(&chunk[..n]).chars() {
                if c != '\n' && c != '\r' {
                    line.push(c);
                    continue;
                }
                match counted(&line) {
                    Some(count) => step.say(&count),
                    None if !line.trim().is_empty() => words.push(std::mem::take(&mut line)),
                    None => {}
                }
                line.clear();
            }
        }
    }
    let status = cargo.wait().doing(|| "wait for cargo".into())?;
    if !status.success() {
        return Err(explain(&words));
    }
    step.done();
    let _ = std::fs::remove_dir_all(&built);
    find(house).ok_or_else(|| Trouble::new("cargo says that it installed evcxr_jupyter, but it is not in .lab/evcxr"))
}

/// `Building [=====>   ] 12/345: syn, serde` as `12 of 345 crates: syn, serde`.
fn counted(line: &str) -> Option<String> {
    let (_, rest) = line.trim_start().strip_prefix("Building")?.split_once(']')?;
    let (count, crates) = rest.split_once(':').unwrap_or((rest, ""));
    let (done, of) = count.trim().split_once('/')?;
    let _: (u32, u32) = (done.parse().ok()?, of.parse().ok()?);
    let crates = crates.trim().split(", ").next().unwrap_or_default().trim_end_matches("...");
    Some(format!("{done} of {of} crates: {crates}"))
}

fn explain(words: &[String]) -> Trouble {
    let tail: Vec<&str> = words.iter().rev().take(12).rev().map(String::as_str).collect();
    let text = tail.join("\n");
    let again = "run the same command again: what was compiled is kept";
    if ["linker `cc` not found", "linker `link.exe` not found", "No such file or directory (os error 2)\" tool: cc"]
        .iter()
        .any(|sign| text.contains(sign))
    {
        Trouble::new(format!("there is no C compiler to link with:\n{text}"))
            .mend("on Debian or Ubuntu: sudo apt install build-essential; on macOS: xcode-select --install")
    } else if ["failed to download", "Could not resolve host", "Could not connect", "network failure"]
        .iter()
        .any(|sign| text.contains(sign))
    {
        Trouble::new(format!("cargo could not download evcxr_jupyter: is there a network?\n{text}"))
            .mend(format!("connect to the network, then {again}"))
    } else {
        Trouble::new(format!("evcxr_jupyter {VERSION} could not be built:\n{text}")).mend(again)
    }
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn reads_cargos_bar() {
        let line = "    Building [====>    ] 12/345: syn, serde(build)...";
        assert_eq!(counted(line).as_deref(), Some("12 of 345 crates: syn"));
        assert_eq!(counted("   Compiling syn v2.0.1"), None);
        assert_eq!(counted("    Building [=>"), None);
    }
}
