//! The other side of a bench, PyTorch or a notebook: a process that takes orders and answers, a line of JSON each.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;

use incontext::figure::Extremes;
use serde_json::Value;

use crate::house::House;
use crate::trouble::{Outcome, Subject, Trouble};

/// The peer's process: takes orders and answers, a line each.
pub struct Peer {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    complaints: Option<JoinHandle<String>>,
    name: &'static str,
    mend: &'static str,
}

impl Peer {
    /// Starts PyTorch's side, whose program is `script`.
    pub fn start(python: &Path, script: &str) -> Outcome<Peer> {
        Self::spawn(
            Command::new(python).args(["-c", script]),
            "PyTorch's",
            "remove .lab/peers, then run the same command again",
        )
    }

    /// Starts a notebook's side, whose program is `script`, in Jupyter's environment.
    pub fn notebook(house: &House, python: &Path, script: &str) -> Outcome<Peer> {
        let environment = crate::jupyter::environment(house)?;
        Self::spawn(Command::new(python).args(["-c", script]).envs(environment), "the notebook's", "cargo lab doctor")
    }

    fn spawn(command: &mut Command, name: &'static str, mend: &'static str) -> Outcome<Peer> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .doing(|| format!("run {}", command.get_program().display()))?;
        // Read aside, so that a long complaint cannot block the peer while its answer is waited for.
        let complaints = child.stderr.take().map(|mut pipe| {
            std::thread::spawn(move || {
                let mut text = Vec::new();
                let _ = pipe.read_to_end(&mut text);
                String::from_utf8_lossy(&text).trim().to_string()
            })
        });
        let orders = child.stdin.take();
        let answers = child.stdout.take().ok_or_else(|| Trouble::new("the peer has no standard output"))?;
        Ok(Peer { child, orders, answers: BufReader::new(answers), complaints, name, mend })
    }

    /// Gives an order and waits for its answer.
    pub fn ask(&mut self, order: &Value) -> Outcome<Value> {
        let sent = self.orders.as_mut().map(|pipe| writeln!(pipe, "{order}").and_then(|()| pipe.flush()));
        let mut line = String::new();
        let read = self.answers.read_line(&mut line);
        if let (Some(Ok(())), Ok(1..), Ok(answer)) = (sent, read, serde_json::from_str(&line)) {
            return Ok(answer);
        }
        self.orders = None;
        let _ = self.child.wait();
        let words = self.complaints.take().and_then(|thread| thread.join().ok()).unwrap_or_default();
        Err(Trouble::new(format!("{} side of the bench ended:\n{words}", self.name)).mend(self.mend))
    }

    /// The milliseconds that an order's answer tells.
    pub fn milliseconds(&mut self, order: &Value) -> Outcome<f64> {
        let answer = self.ask(order)?;
        answer["ms"].as_f64().ok_or_else(|| Trouble::new(format!("{} side of the bench answered {answer}", self.name)))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The peer ends when its orders do.
        self.orders = None;
        let _ = self.child.wait();
    }
}

/// The greatest relative difference of our losses from those that a peer answered, for the same steps on the same data.
///
/// # Errors
/// If there are not as many, or they differ by more than `tolerance`: the sides do not compute the same.
pub fn same_losses(answer: &Value, ours: &[f64], tolerance: f64) -> Outcome<f64> {
    let theirs: Vec<f64> = answer["losses"].as_array().into_iter().flatten().filter_map(Value::as_f64).collect();
    let worst = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs() / b.abs()).greatest();
    if theirs.len() == ours.len() && worst <= tolerance {
        return Ok(worst);
    }
    Err(Trouble::new(format!("the peer does not compute the same step: losses {theirs:?}, ours {ours:?}")))
}
