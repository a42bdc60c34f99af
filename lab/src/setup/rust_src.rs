//! The standard library's sources, which the kernel's type inference reads: without them no `let` could be kept.
//!
//! Left alone, the kernel would run `rustup component add rust-src` when it starts, which writes outside the
//! repository and needs a network. And it reads whatever is there: 47 MB, of which the processor intrinsics are 26 and
//! tests most of the rest. So the lab keeps its own copy of what inference can need, in outline.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::outline::outline;
use super::rust::Toolchain;
use super::stamp;
use crate::bars::Step;
use crate::house::{self, House, on_path};
use crate::trouble::{Outcome, Subject, Trouble};

/// The crates that programs see; those without a manifest, which makes rust-analyzer take them as they are instead of
/// asking cargo for the whole library workspace, vendored dependencies included.
const CRATES: [&str; 3] = ["core", "alloc", "std"];

/// Counts the changes of what the copy is: an older one is made anew.
const FORMAT: u32 = 3;

/// The sources for this toolchain, fetched if need be.
pub fn ensure(house: &House, toolchain: &Toolchain) -> Outcome<Option<PathBuf>> {
    let folder = folder(house);
    if is_current(house, toolchain) {
        return Ok(Some(folder));
    }
    let step = Step::start("Copying the standard library's sources for type inference");
    let own = toolchain.sysroot()?;
    let fetched = house.at("rust-src/rustup");
    let source = match library(&own) {
        Some(source) => source,
        None => fetch(toolchain, &own, &fetched)?,
    };
    let _ = std::fs::remove_dir_all(&folder);
    for name in CRATES {
        copy_sources(&source.join(name).join("src"), &folder.join(name).join("src"))?;
    }
    for name in CRATES {
        house::write(&nothing(house).join(name).join("src/lib.rs"), "")?;
    }
    let _ = std::fs::remove_dir_all(&fetched);
    house::write(&stamp_path(house), stamp_text(toolchain))?;
    step.done();
    Ok(Some(folder))
}

/// Where the copy is.
pub fn folder(house: &House) -> PathBuf {
    house.at("rust-src/library")
}

/// A standard library with nothing in it, for as long as nothing needs one.
pub fn nothing(house: &House) -> PathBuf {
    house.at("rust-src/nothing")
}

/// Whether the copy is this toolchain's.
pub fn is_current(house: &House, toolchain: &Toolchain) -> bool {
    stamp(&stamp_path(house)).is_some_and(|text| text == stamp_text(toolchain)) && folder(house).join("core").is_dir()
}

fn stamp_path(house: &House) -> PathBuf {
    house.at("rust-src/stamp")
}

fn stamp_text(toolchain: &Toolchain) -> String {
    format!("{FORMAT} {}", toolchain.version)
}

fn library(sysroot: &Path) -> Option<PathBuf> {
    let library = sysroot.join("lib/rustlib/src/rust/library");
    library.join("core").is_dir().then_some(library)
}

/// Lets rustup fetch the component (3 MB) into a home of our own, which holds nothing of the toolchain but the
/// records that say what it is: the user's toolchains stay as they are.
fn fetch(toolchain: &Toolchain, sysroot: &Path, home: &Path) -> Outcome<PathBuf> {
    let failed = |why: String| {
        Trouble::new(format!(
            "the standard library's sources for {} are not on this machine, {why}",
            first_line(toolchain)
        ))
        .mend("connect to the network, then run the same command again")
        .mend("or install them yourself: rustup component add rust-src; without rustup, your system's package rust-src")
    };
    let rustup = on_path("rustup").ok_or_else(|| failed("and there is no rustup to fetch them with".into()))?;
    let name = sysroot.file_name().ok_or_else(|| failed("and its folder has no name".into()))?;
    let records = sysroot.join("lib/rustlib");
    let ours = home.join("toolchains").join(name);
    let doing = || format!("copy the toolchain's records to {}", ours.display());
    std::fs::create_dir_all(ours.join("lib/rustlib")).doing(doing)?;
    for entry in std::fs::read_dir(&records).doing(doing)?.filter_map(Result::ok) {
        if entry.path().is_file() {
            std::fs::copy(entry.path(), ours.join("lib/rustlib").join(entry.file_name())).doing(doing)?;
        }
    }
    let output = Command::new(rustup)
        .args(["component", "add", "rust-src", "--toolchain"])
        .arg(name)
        .env("RUSTUP_HOME", home)
        .output()
        .doing(|| "run rustup".into())?;
    let fetched = library(&ours).filter(|_| output.status.success());
    fetched.ok_or_else(|| {
        let words = String::from_utf8_lossy(&output.stderr).trim().to_string();
        failed(format!("and rustup could not fetch them:\n{words}"))
    })
}

fn first_line(toolchain: &Toolchain) -> &str {
    toolchain.version.lines().next().unwrap_or("rustc")
}

/// Copies the `.rs` files below a folder in outline, without tests and benchmarks.
pub fn copy_sources(from: &Path, to: &Path) -> Outcome<()> {
    let doing = || format!("copy {} to {}", from.display(), to.display());
    std::fs::create_dir_all(to).doing(doing)?;
    for entry in std::fs::read_dir(from).doing(doing)? {
        let path = entry.doing(doing)?.path();
        let Some(name) = path.file_name() else { continue };
        if path.is_dir() {
            if !matches!(name.to_str(), Some("tests" | "benches")) {
                copy_sources(&path, &to.join(name))?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = std::fs::read_to_string(&path).doing(doing)?;
            house::write(&to.join(name), outline(&source))?;
        }
    }
    Ok(())
}
