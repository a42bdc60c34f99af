//! The guard of a kernel: a small process that waits for the launcher to be gone, however that happened, and then ends
//! what is left of the kernel and removes its folder.
//!
//! It holds the reading end of a pipe whose writing end only the launcher has. The system closes that end with the
//! launcher, even when it is killed with SIGKILL, so the guard needs no polling and no process id of the launcher's.

use std::io::{BufRead, Read, Write, stdin};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};

use super::folder;
use crate::trouble::{Outcome, Subject, Trouble};

/// The launcher's side of the guard.
pub struct Guard {
    process: Child,
    pipe: Option<ChildStdin>,
}

/// Starts a guard over a kernel's folder.
pub fn start(folder: &Path) -> Outcome<Guard> {
    let doing = || "start the kernel's guard".to_string();
    let program = std::env::current_exe().doing(doing)?;
    let mut process = Command::new(program)
        .arg("kernel-guard")
        .arg(folder)
        // Outside the launcher's group, which Jupyter kills as a whole.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .doing(doing)?;
    let pipe = process.stdin.take();
    Ok(Guard { process, pipe })
}

impl Guard {
    /// Tells the guard which process group is the kernel's.
    pub fn tell(&mut self, group: Pid) -> Outcome<()> {
        let pipe = self.pipe.as_mut().ok_or_else(|| Trouble::new("the kernel's guard has no pipe"))?;
        writeln!(pipe, "{}", group.as_raw_nonzero()).doing(|| "speak to the kernel's guard".into())
    }

    /// Lets the guard go: the kernel ended in order.
    pub fn dismiss(mut self) {
        if let Some(mut pipe) = self.pipe.take() {
            let _ = writeln!(pipe, "done");
        }
        let _ = self.process.wait();
    }
}

/// The guard itself: the command `lab kernel-guard FOLDER`.
pub fn run(path: &Path) -> Outcome<u8> {
    let mut input = stdin().lock();
    let mut line = String::new();
    let group = match input.read_line(&mut line) {
        Ok(_) => line.trim().parse().ok().and_then(Pid::from_raw),
        Err(_) => None,
    };
    let mut rest = String::new();
    let _ = input.read_to_string(&mut rest);
    if rest.trim() == "done" {
        return Ok(0);
    }
    if let Some(group) = group {
        let _ = kill_process_group(group, Signal::KILL);
    }
    folder::remove(path);
    Ok(0)
}
