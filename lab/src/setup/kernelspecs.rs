//! What Jupyter knows of the two kernels: `incontext`, started by the lab's launcher, and `rust`, evcxr as it is.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::python::Python;
use crate::house::{self, House};
use crate::trouble::{Outcome, Subject, Trouble};

/// The folder that Jupyter finds the kernels through, as an item of `JUPYTER_PATH`.
pub fn share(house: &House) -> PathBuf {
    house.at("share/jupyter")
}

/// Names of the kernels.
pub const NAMES: [&str; 2] = ["incontext", "rust"];

/// Writes both kernelspecs, for `JUPYTER_PATH` and, in the lab's own environment, for a bare `jupyter` as well.
pub fn write(house: &House, python: &Python, evcxr: &Path, sources: Option<&Path>) -> Outcome<()> {
    let program = house.program();
    let program = text(&program)?;
    let mut environment = json!({});
    if let Some(sources) = sources {
        // Without it, evcxr would install the sources into the user's toolchain when it starts.
        environment["RUST_SRC_PATH"] = text(sources)?.into();
    }
    let specs = [
        json!({
            "argv": [program, "kernel", "{connection_file}"],
            "display_name": "Rust (incontext)",
            "language": "rust",
            "interrupt_mode": "message",
        }),
        json!({
            "argv": [text(evcxr)?, "--control_file", "{connection_file}"],
            "display_name": "Rust (plain evcxr)",
            "language": "rust",
            "interrupt_mode": "message",
            "env": environment,
        }),
    ];
    let mut folders = vec![share(house)];
    if !python.conda {
        folders.push(python.prefix.join("share/jupyter"));
    }
    for folder in folders {
        resources(evcxr, &folder)?;
        for (name, spec) in NAMES.iter().zip(&specs) {
            house::write(&folder.join("kernels").join(name).join("kernel.json"), pretty(spec))?;
        }
    }
    Ok(())
}

/// The logos, and evcxr's own record of its version, without which it would write a kernelspec of its own at its
/// next start.
fn resources(evcxr: &Path, folder: &Path) -> Outcome<()> {
    let rust = folder.join("kernels/rust");
    if rust.join("version.txt").is_file() {
        return Ok(());
    }
    let status = Command::new(evcxr)
        .arg("--install")
        .env("JUPYTER_PATH", folder)
        .stdout(Stdio::null())
        .status()
        .doing(|| format!("run {}", evcxr.display()))?;
    if !status.success() {
        return Err(Trouble::new(format!("{} --install failed", evcxr.display())));
    }
    let ours = folder.join("kernels/incontext");
    std::fs::create_dir_all(&ours).doing(|| format!("make the folder {}", ours.display()))?;
    for logo in ["logo-32x32.png", "logo-64x64.png", "logo-LICENSE.md"] {
        std::fs::copy(rust.join(logo), ours.join(logo)).doing(|| format!("copy {logo}"))?;
    }
    Ok(())
}

fn text(path: &Path) -> Outcome<&str> {
    path.to_str().ok_or_else(|| {
        Trouble::new(format!("the path {} is not UTF-8, which Jupyter's kernelspecs must be", path.display()))
            .mend("move the repository to a folder whose name is UTF-8")
    })
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
