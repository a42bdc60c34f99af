//! Progress on a terminal: bars where there is a terminal, a whole line now and then where there is none. Everything
//! goes to standard error, so that standard output stays what was asked for.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use incontext::progress::{Observer, Report, duration, line};
use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use crate::trouble::{Outcome, Subject};

/// Whether the process has been asked to end: by Ctrl-C, by a closed terminal, or by whoever stops it from outside. The first
/// time asks the work to save and stop; the second ends the process.
pub fn interruption() -> Outcome<Arc<AtomicBool>> {
    static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();
    if let Some(flag) = FLAG.get() {
        return Ok(flag.clone());
    }
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let watching = || "watch for the signals that end a process".into();
        // In this order: the first signal finds the flag unset and sets it, the second finds it set. A closed terminal may
        // say so twice, by the system and by the shell: that ends no work that is being saved.
        if signal != SIGHUP {
            flag::register_conditional_shutdown(signal, 128 + signal, flag.clone()).doing(watching)?;
        }
        flag::register(signal, flag.clone()).doing(watching)?;
    }
    Ok(FLAG.get_or_init(|| flag).clone())
}

/// Watches training and sampling: a bar a task, and signals that end the process.
pub struct Bars {
    interrupted: Arc<AtomicBool>,
    quiet: bool,
    state: Mutex<Option<Current>>,
}

/// The task being shown.
struct Current {
    task: String,
    bar: ProgressBar,
    said: Instant,
}

impl Bars {
    /// Bars on a terminal, lines elsewhere; none at all when `quiet`. Signals are watched either way.
    pub fn new(quiet: bool) -> Outcome<Bars> {
        Ok(Bars { interrupted: interruption()?, quiet, state: Mutex::new(None) })
    }
}

/// How often a line is printed where there is no terminal.
const EVERY: Duration = Duration::from_secs(10);

impl Observer for Bars {
    fn report(&self, report: &Report<'_>) {
        if self.quiet {
            return;
        }
        let Ok(mut state) = self.state.lock() else { return };
        if !std::io::stderr().is_terminal() {
            let new = state.as_ref().is_none_or(|current| current.task != report.task);
            let due = state.as_ref().is_none_or(|current| current.said.elapsed() >= EVERY);
            if new || due || report.step >= report.of {
                let _ = writeln!(std::io::stderr(), "{}", line(report));
                *state = Some(Current { task: report.task.into(), bar: ProgressBar::hidden(), said: Instant::now() });
            }
            return;
        }
        let current = match state.take() {
            Some(current) if current.task == report.task => current,
            other => {
                if let Some(old) = other {
                    old.bar.abandon();
                }
                let bar = ProgressBar::new(report.of).with_style(style("{prefix} {bar:24} {pos}/{len} {msg}"));
                bar.set_prefix(report.task.to_string());
                Current { task: report.task.into(), bar, said: Instant::now() }
            }
        };
        current.bar.set_length(report.of);
        current.bar.set_position(report.step);
        current.bar.set_message(details(report));
        if report.step >= report.of {
            current.bar.abandon();
        } else {
            *state = Some(current);
        }
    }

    fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

/// What follows the bar: loss, rate, time left.
fn details(report: &Report<'_>) -> String {
    let mut parts = Vec::new();
    parts.extend(report.loss.map(|loss| format!("loss {loss:.4e}")));
    parts.extend(report.rate().map(|rate| format!("{rate:.0} steps/s")));
    parts.extend(report.remaining().map(|left| format!("{} left", duration(left))));
    parts.join("  ")
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// One step of the set-up: what is being done, how much of it, how long so far.
pub struct Step {
    what: String,
    start: Instant,
    bar: Option<ProgressBar>,
    said: Instant,
}

impl Step {
    /// Announces a step.
    pub fn start(what: &str) -> Step {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner().with_style(style("{spinner} {prefix} {msg}  {elapsed}"));
            bar.set_prefix(what.to_string());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            eprintln!("{what} ...");
        }
        Step { what: what.into(), start: Instant::now(), bar, said: Instant::now() }
    }

    /// Says where the step stands. Without a terminal, at most one line every ten seconds.
    pub fn say(&mut self, message: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(message.to_string()),
            None if self.said.elapsed() >= EVERY => {
                eprintln!("{}: {message}, {}", self.what, duration(self.start.elapsed()));
                self.said = Instant::now();
            }
            None => {}
        }
    }

    /// Ends the step; the line stays, with the time it took.
    pub fn done(self) {
        let line = format!("{}: done in {}", self.what, duration(self.start.elapsed()));
        match &self.bar {
            Some(bar) => {
                bar.finish_and_clear();
                eprintln!("{line}");
            }
            None => eprintln!("{line}"),
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
