//! Sets up what the lab needs, all of it inside `.lab/`: Python with JupyterLab, the Rust kernel, the standard
//! library's sources for its type inference, the kernelspecs, and the prebuilt folder that kernels start from.
//!
//! Every part checks what is there, does what is missing and leaves a stamp when it has succeeded; so a set-up can be
//! run again at any time, goes on where it was interrupted, and costs milliseconds when there is nothing to do.

pub mod evcxr;
pub mod kernelspecs;
mod outline;
pub mod peers;
pub mod pins;
pub mod python;
pub mod rust;
pub mod rust_src;
pub mod texts;

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::house::{self, House};
use crate::kernel::template;
use crate::trouble::{Outcome, Subject, Trouble};

/// What a set-up leaves ready.
pub struct Ready {
    /// The Python that has JupyterLab.
    pub python: python::Python,
}

/// Sets up everything that is missing.
pub fn all(house: &House) -> Outcome<Ready> {
    house::write(&house.at(".gitignore"), "*\n")?;
    let _lock = Lock::take(house, "setup", "another set-up is at work in this repository; waiting for it to finish")?;
    install_program(house)?;
    let python = python::ensure(house)?;
    let toolchain = rust::Toolchain::find()?;
    let evcxr = evcxr::ensure(house)?;
    let sources = rust_src::ensure(house, &toolchain)?;
    kernelspecs::write(house, &python, &evcxr, sources.as_deref())?;
    template::ensure(house, &toolchain)?;
    Ok(Ready { python })
}

/// Copies this program to `.lab/bin`, where kernels start from.
fn install_program(house: &House) -> Outcome<()> {
    let this = std::env::current_exe().doing(|| "find this program's own file".into())?;
    let there = house.program();
    if this == there || same(&this, &there) {
        return Ok(());
    }
    house.make("bin")?;
    let new = there.with_extension(format!("{}.new", std::process::id()));
    std::fs::copy(&this, &new)
        .and_then(|_| std::fs::rename(&new, &there))
        .doing(|| format!("copy the lab's program to {}", house.short(&there)))
}

/// Whether two files have the same bytes; the length decides most cases.
fn same(a: &Path, b: &Path) -> bool {
    let length = |path: &Path| std::fs::metadata(path).map(|m| m.len()).ok();
    length(a).is_some() && length(a) == length(b) && std::fs::read(a).ok() == std::fs::read(b).ok()
}

/// A lock on a part of `.lab/`, held until it is dropped. The system releases it when the process ends, however it ends.
pub struct Lock(#[allow(dead_code, reason = "the open file is the lock")] File);

impl Lock {
    /// Takes the lock `name`; says `waiting` on standard error if another process has it.
    pub fn take(house: &House, name: &str, waiting: &str) -> Outcome<Lock> {
        let path = Lock::path(house, name)?;
        let file = File::create(&path).doing(|| format!("write {}", house.short(&path)))?;
        if file.try_lock().is_err() {
            eprintln!("{waiting}");
            file.lock().doing(|| format!("lock {}", house.short(&path)))?;
        }
        Ok(Lock(file))
    }

    fn path(house: &House, name: &str) -> Outcome<PathBuf> {
        Ok(house.make("locks")?.join(name))
    }
}

/// What a stamp file says was installed, if anything.
pub fn stamp(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// Fails, before anything is half-installed, if the disk has less than `needed` bytes for `what`.
pub fn need_space(house: &House, needed: u64, what: &str) -> Outcome<()> {
    let Some(free) = free_space(house) else { return Ok(()) };
    if free >= needed {
        return Ok(());
    }
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    Err(Trouble::new(format!(
        "{what} needs {:.1} GiB of disk space in {}, and {:.1} GiB are free",
        gib(needed),
        house.lab().display(),
        gib(free)
    ))
    .mend("free some disk space, then run the same command again"))
}

/// Bytes that this user can still write to the repository's disk.
pub fn free_space(house: &House) -> Option<u64> {
    // A test's way to have a full disk without filling one.
    if let Some(bytes) = std::env::var("INCONTEXT_FREE_SPACE").ok().and_then(|text| text.parse().ok()) {
        return Some(bytes);
    }
    let status = rustix::fs::statvfs(house.root()).ok()?;
    Some(status.f_bavail * status.f_frsize)
}
