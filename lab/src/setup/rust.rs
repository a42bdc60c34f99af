//! The Rust toolchain that cells are compiled with.

use std::path::PathBuf;
use std::process::Command;

use crate::house::on_path;
use crate::trouble::{Outcome, Subject, Trouble};

/// A toolchain, found the way the kernel finds it: by rustup, else on the search path.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// The compiler itself, not rustup's stand-in for it.
    pub rustc: PathBuf,
    /// Cargo itself.
    pub cargo: PathBuf,
    /// What `rustc -vV` says: a toolchain's fingerprint.
    pub version: String,
    /// The triple of this machine.
    pub host: String,
}

impl Toolchain {
    /// Finds the toolchain.
    pub fn find() -> Outcome<Toolchain> {
        let missing = |name: &str| {
            Trouble::new(format!("there is no {name} on the search path"))
                .mend("install Rust: the instructions are on rust-lang.org under 'Install'")
        };
        let rustc = tool("rustc").ok_or_else(|| missing("rustc"))?;
        let cargo = tool("cargo").ok_or_else(|| missing("cargo"))?;
        let output = Command::new(&rustc).arg("-vV").output().doing(|| format!("run {}", rustc.display()))?;
        let version = String::from_utf8_lossy(&output.stdout).into_owned();
        let host = version
            .lines()
            .find_map(|line| line.strip_prefix("host: "))
            .ok_or_else(|| Trouble::new(format!("{} -vV does not say its host", rustc.display())))?
            .to_string();
        Ok(Toolchain { rustc, cargo, version, host })
    }

    /// Where the toolchain is installed.
    pub fn sysroot(&self) -> Outcome<PathBuf> {
        let output = Command::new(&self.rustc)
            .args(["--print", "sysroot"])
            .output()
            .doing(|| format!("run {}", self.rustc.display()))?;
        Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
    }
}

fn tool(name: &str) -> Option<PathBuf> {
    let by_rustup = on_path("rustup").and_then(|rustup| {
        let output = Command::new(rustup).args(["which", name]).output().ok()?;
        let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
        (output.status.success() && path.is_file()).then_some(path)
    });
    by_rustup.or_else(|| on_path(name))
}

/// Takes out of a command's environment what would make cargo compile otherwise than the template was compiled: what
/// `cargo run` left there, and the user's own flags.
pub fn neutral(command: &mut Command) -> &mut Command {
    const KEPT: [&str; 4] = ["CARGO_HOME", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR"];
    for (name, _) in std::env::vars_os() {
        let Some(text) = name.to_str() else { continue };
        let cargos = text.starts_with("CARGO") && !KEPT.iter().any(|kept| text.starts_with(kept));
        let rustcs =
            matches!(text, "RUSTC" | "RUSTFLAGS" | "RUSTDOCFLAGS" | "RUSTC_WRAPPER" | "RUSTC_WORKSPACE_WRAPPER");
        if cargos || rustcs {
            command.env_remove(&name);
        }
    }
    command
}
