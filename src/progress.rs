//! Progress of long work: who does the work reports, who watches decides how to show it and when to stop.

use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Where a long piece of work stands.
#[derive(Clone, Debug)]
pub struct Report<'a> {
    /// What is being done (`"pgd-p0 seed 3"`).
    pub task: &'a str,
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub of: u64,
    /// The loss at this step, if the work has one.
    pub loss: Option<f64>,
    /// Time since the work began in this process.
    pub elapsed: Duration,
    /// Steps done in this process: fewer than `step` when the work was resumed.
    pub steps_here: u64,
}

impl Report<'_> {
    /// Steps per second in this process, or `None` before the first.
    pub fn rate(&self) -> Option<f64> {
        let seconds = self.elapsed.as_secs_f64();
        (self.steps_here > 0 && seconds > 0.0).then(|| self.steps_here as f64 / seconds)
    }

    /// Time left at the rate so far.
    pub fn remaining(&self) -> Option<Duration> {
        let left = self.of.saturating_sub(self.step) as f64;
        // More seconds than a duration holds are no estimate.
        self.rate().and_then(|rate| Duration::try_from_secs_f64(left / rate).ok())
    }
}

/// Watches long work. Implementations: [`Silent`], [`Lines`] (a notebook), and the command line's bars.
pub trait Observer: Sync {
    /// Called from time to time with where the work stands.
    fn report(&self, report: &Report<'_>);

    /// Whether the work should save what it has and stop with [`crate::Error::Interrupted`].
    fn interrupted(&self) -> bool {
        false
    }
}

/// Shows nothing and never interrupts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {
    fn report(&self, _: &Report<'_>) {}
}

/// Whole lines on standard output, at most one every `every`: what a notebook can show, since a kernel passes
/// output on line by line.
#[derive(Debug)]
pub struct Lines {
    every: Duration,
    last: Mutex<Option<Instant>>,
}

impl Lines {
    /// At most one line every `every`, and one at the end of each task.
    pub fn every(every: Duration) -> Self {
        Lines { every, last: Mutex::new(None) }
    }
}

impl Default for Lines {
    fn default() -> Self {
        Lines::every(Duration::from_secs(2))
    }
}

impl Observer for Lines {
    fn report(&self, report: &Report<'_>) {
        let Ok(mut last) = self.last.lock() else { return };
        let due = last.is_none_or(|last| last.elapsed() >= self.every);
        if due || report.step >= report.of {
            *last = Some(Instant::now());
            let _ = writeln!(std::io::stdout(), "{}", line(report));
        }
    }
}

/// One line of text for a report: a bar, the step, the loss, the rate and the time left.
pub fn line(report: &Report<'_>) -> String {
    let width = 20;
    let done = if report.of == 0 { width } else { (width as f64 * report.step as f64 / report.of as f64) as u64 };
    let bar: String = (0..width).map(|i| if i < done { '█' } else { '░' }).collect();
    let mut text = format!("{} {bar} {}/{}", report.task, report.step, report.of);
    if let Some(loss) = report.loss {
        text += &format!("  loss {loss:.4e}");
    }
    if let Some(rate) = report.rate() {
        text += &format!("  {rate:.0} steps/s");
    }
    if let Some(left) = report.remaining().filter(|_| report.step < report.of) {
        text += &format!("  {} left", duration(left));
    }
    text
}

/// A duration for people: `42 s`, `3 min 05 s`, `2 h 10 min`.
///
/// ```
/// use incontext::progress::duration;
/// use std::time::Duration;
/// assert_eq!(duration(Duration::from_secs(185)), "3 min 05 s");
/// ```
pub fn duration(d: Duration) -> String {
    let s = d.as_secs();
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}
