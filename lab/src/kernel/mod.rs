//! The launcher behind the kernel "Rust (incontext)": starts evcxr so that a notebook is quick from its first cell,
//! and leaves nothing behind when it ends.
//!
//! What makes a plain evcxr slow with this crate, and what the launcher does about each:
//!
//! * Cargo compiles every dependency anew for each kernel. Here each kernel starts from a hard-linked copy of a
//!   prebuilt target folder ([`template`], [`folder`]).
//! * The embedded rust-analyzer, which finds the types of `let`, asks cargo a dozen questions and then reads and
//!   resolves all sources of all dependencies, for all platforms. Here a stand-in for cargo answers from a record and
//!   leaves out of the graph what no type of a notebook needs ([`stand_in`]); what it does read, the standard library
//!   included, is an outline without bodies and documentation ([`crate::setup::rust_src`]).
//! * For each cell cargo looks at all files of all dependencies, and the compiler optimises evcxr's store of variables.
//!   Here cells are compiled without cargo, against a store compiled once ([`cell`]).
//! * All that happens in the user's first `:dep` and first `let`. Here evcxr's own start-up configuration does both
//!   before the kernel says that it is ready; the notebook's own `:dep` then changes nothing and returns at once.
//! * Cells are compiled with debug assertions and overflow checks. Here cargo's configuration turns them off
//!   ([`template`]).

mod cell;
#[cfg(test)]
mod evcxr_internal_runtime;
pub mod folder;
pub mod guard;
pub mod stand_in;
pub mod template;

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, getppid, kill_process_group};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::house::House;
use crate::setup::rust::{Toolchain, neutral};
use crate::setup::{evcxr, rust_src};
use crate::trouble::{Outcome, Subject, Trouble};
use folder::Folder;
use template::Template;

/// Runs a kernel until it ends; `connection` is the file that Jupyter wrote for it. Returns the kernel's exit code.
pub fn run(house: &House, connection: &Path) -> Outcome<u8> {
    let connection = connection.canonicalize().map_err(|error| {
        Trouble::usage(format!("the connection file {} cannot be read: {error}", connection.display()))
            .mend("kernels are started by Jupyter: open a notebook and choose the kernel Rust (incontext)")
    })?;
    let program = evcxr::find(house).ok_or_else(|| {
        Trouble::new("the Rust kernel (evcxr_jupyter) is not installed").mend("cargo lab --setup-only")
    })?;
    let toolchain = Toolchain::find()?;
    folder::sweep(house);
    // A helper crate that does not compile must not keep the kernel from starting: the notebook's `:dep` shows why.
    let ready = template::ensure(house, &toolchain).map_err(|trouble| eprintln!("{trouble}")).is_ok();
    let template = Template::of(house);
    let folder = Folder::make(house, &template)?;
    if ready {
        cell::adopt(house, &toolchain, &template, &folder.path().join("crate"))?;
    }
    configure(house, &folder, ready)?;
    let mut command = Command::new(&program);
    prepare(&mut command, house, &toolchain, &folder)?;
    command.arg("--control_file").arg(&connection);
    watch(command, &folder)
}

/// What evcxr does before it says that it is ready.
fn configure(house: &House, folder: &Folder, ready: bool) -> Outcome<()> {
    // Present, so that evcxr does not look for a configuration of the user's.
    folder.configure("evcxr.toml", "[evcxr]\n")?;
    if ready {
        folder.configure("init.evcxr", &format!(":dep incontext = {}\n{WARM}", template::dependency(house)))?;
    }
    Ok(())
}

/// The first `let`, which has rust-analyzer resolve everything once; of types that notebooks meet.
const WARM: &str =
    "use incontext::prelude::*;\nlet _incontext: Vec<f64> = vec![1.0].into_iter().map(|x| 2.0 * x).collect();\n";

/// The environment in which evcxr finds its copy of the template and our stand-ins.
fn prepare(command: &mut Command, house: &House, toolchain: &Toolchain, folder: &Folder) -> Outcome<()> {
    neutral(command);
    let stand_ins = stand_in::install(house)?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(stand_ins.join("bin")).chain(std::env::split_paths(&path)))
        .map_err(|error| Trouble::new(format!("the repository's path cannot stand in PATH: {error}")))?;
    command
        .env("EVCXR_TMPDIR", folder.crate_folder())
        .env("EVCXR_CONFIG_DIR", folder.config())
        .env("PATH", path)
        .env("RUSTC", &toolchain.rustc)
        // rust-analyzer looks for cargo here before anywhere else.
        .env("CARGO_HOME", &stand_ins)
        // Jupyter's search path means something else to evcxr: where to install itself.
        .env_remove("JUPYTER_PATH");
    for (name, value) in stand_in::environment(toolchain, folder) {
        command.env(name, value);
    }
    if rust_src::is_current(house, toolchain) {
        stand_in::link(&rust_src::nothing(house), &folder.library())?;
        command.env("RUST_SRC_PATH", folder.library());
    }
    Ok(())
}

/// Runs evcxr to its end, in a process group of its own that nothing survives: neither a signal to this process, nor
/// its being killed outright, which the guard notices.
fn watch(mut command: Command, folder: &Folder) -> Outcome<u8> {
    let mut signals =
        signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]).doing(|| "watch for signals".into())?;
    let mut guard = guard::start(folder.path())?;
    let mut evcxr = command.process_group(0).stdin(Stdio::null()).spawn().doing(|| "start evcxr_jupyter".into())?;
    let group = Pid::from_child(&evcxr);
    guard.tell(group)?;
    // Jupyter says so when it starts a kernel that should end with it; evcxr itself would run on for ever.
    if std::env::var_os("JPY_PARENT_PID").is_some() {
        let parent = getppid();
        std::thread::spawn(move || {
            while getppid() == parent {
                std::thread::sleep(Duration::from_secs(2));
            }
            let _ = kill_process_group(group, Signal::KILL);
        });
    }
    std::thread::spawn(move || {
        for signal in signals.forever() {
            // Jupyter interrupts this kernel by message, as the kernelspec says, and evcxr then ends the cell alone.
            // An interrupt by signal, such as Ctrl-C in a terminal, is meant for others.
            if signal != SIGINT {
                let _ = kill_process_group(group, Signal::KILL);
            }
        }
    });
    let status = evcxr.wait().doing(|| "wait for evcxr_jupyter".into())?;
    // A cell that was still running outlives evcxr until its computation ends.
    let _ = kill_process_group(group, Signal::KILL);
    guard.dismiss();
    Ok(match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(1),
        (None, Some(signal)) => u8::try_from(128 + signal).unwrap_or(1),
        (None, None) => 1,
    })
}

/// The place of a program that stands in for another one.
pub fn stand_ins(house: &House) -> PathBuf {
    house.at("stand-ins")
}
