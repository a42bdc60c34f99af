//! What can go wrong in the command line, said so that the reader can mend it.

use std::fmt;

/// The command line's result.
pub type Outcome<T> = Result<T, Trouble>;

/// A failure: what happened, and the commands or actions that mend it.
#[derive(Debug)]
pub struct Trouble {
    what: String,
    mend: Vec<String>,
    code: u8,
}

impl Trouble {
    /// Something that did not work, in a sentence.
    pub fn new(what: impl Into<String>) -> Self {
        Trouble { what: what.into(), mend: Vec::new(), code: 1 }
    }

    /// A request that makes no sense as it was typed: exit code 2, like the argument parser's own errors.
    pub fn usage(what: impl Into<String>) -> Self {
        Trouble { code: 2, ..Trouble::new(what) }
    }

    /// Adds what to do about it: a command, or an action in words.
    pub fn mend(mut self, how: impl Into<String>) -> Self {
        self.mend.push(how.into());
        self
    }

    /// What happened.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// What mends it, most likely remedy first.
    pub fn remedies(&self) -> &[String] {
        &self.mend
    }

    /// The process's exit code.
    pub fn code(&self) -> u8 {
        self.code
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        for how in &self.mend {
            write!(f, "\n  to mend it: {how}")?;
        }
        Ok(())
    }
}

impl From<incontext::Error> for Trouble {
    fn from(error: incontext::Error) -> Self {
        use incontext::Error;
        let code = match error {
            Error::Unknown { .. } | Error::Invalid { .. } => 2,
            // The shells' code for a process that SIGINT ended.
            Error::Interrupted { .. } => 130,
            _ => 1,
        };
        Trouble { code, ..Trouble::new(error.to_string()) }
    }
}

/// Gives an input/output error its subject.
pub trait Subject<T> {
    /// The same result, with an error that says what was being done: `"write .lab/x"`.
    fn doing(self, what: impl FnOnce() -> String) -> Outcome<T>;
}

impl<T> Subject<T> for std::io::Result<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Outcome<T> {
        use std::io::ErrorKind;
        self.map_err(|error| {
            let trouble = Trouble::new(format!("could not {}: {error}", what()));
            match error.kind() {
                ErrorKind::StorageFull => trouble.mend("free some disk space, then run the same command again"),
                ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
                    trouble.mend("copy the repository to a folder that you can write to, and run the command there")
                }
                _ => trouble,
            }
        })
    }
}
