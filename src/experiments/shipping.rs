//! What the trainings of all papers share: where a run keeps its unfinished state, how the finished networks are written,
//! and where a figure finds them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Instant;

use serde_json::{Value, json};

use super::{Settings, TrainOptions};
use crate::train::{Array, Checkpoint};
use crate::{Error, Result};

/// The entry of a catalogue whose id is `id`.
///
/// # Errors
/// [`Error::Unknown`] if there is none.
pub fn entry<E>(catalogue: Vec<E>, id: &str, id_of: impl Fn(&E) -> &'static str) -> Result<E> {
    let known: Vec<&str> = catalogue.iter().map(&id_of).collect();
    let found = catalogue.into_iter().find(|e| id_of(e) == id);
    found.ok_or_else(|| Error::unknown("checkpoint", id, known))
}

/// The checkpoint `id`: the shipped one, or the one that `train` makes if the settings ask for it.
///
/// # Errors
/// [`Error::File`] and [`Error::Corrupt`] for a checkpoint that is not there or damaged; those of `train`.
pub fn checkpoint(
    id: &str,
    settings: &Settings<'_>,
    train: impl FnOnce(&str, &Settings<'_>, &TrainOptions) -> Result<PathBuf>,
) -> Result<Checkpoint> {
    let path = if settings.from_scratch {
        let fresh = settings.work.join("from-scratch");
        let (path, maker) = (fresh.join(format!("{id}.safetensors")), fresh.join(format!("{id}.program")));
        let program = program()?;
        let mine = std::fs::read_to_string(&maker).is_ok_and(|made_by| made_by == program);
        if mine && path.exists() {
            // Trained for an earlier figure by this very program: deterministic, hence the same.
            path
        } else {
            std::fs::create_dir_all(&fresh).map_err(|e| Error::file(&fresh, "create", e))?;
            // States of its own: those in `work` are of trainings that the user has begun.
            let states = fresh.join("states").join(id);
            if !mine {
                // What another program trained, or began to train, may follow another recipe.
                remove(&path)?;
                if states.exists() {
                    std::fs::remove_dir_all(&states).map_err(|e| Error::file(&states, "remove", e))?;
                }
                crate::fs::write_atomic(&maker, program.as_bytes())?;
            }
            let settings = Settings { work: states, checkpoints: settings.checkpoints.clone(), ..*settings };
            train(id, &settings, &TrainOptions { resume: mine, seed: None, out: Some(fresh) })?
        }
    } else {
        settings.checkpoints.join(format!("{id}.safetensors"))
    };
    Checkpoint::load(&path)
}

/// A checkpoint in the making: its runs' states until all are trained, then the checkpoint itself.
pub struct Shipment<'a> {
    id: &'a str,
    title: &'a str,
    options: &'a TrainOptions,
    folder: PathBuf,
    /// When this session began.
    pub begin: Instant,
}

/// The check sum of the running program, and of the crate's sources if they are there: in a notebook the program is the kernel,
/// whatever crate it has loaded.
fn program() -> Result<String> {
    static SUM: OnceLock<String> = OnceLock::new();
    if let Some(sum) = SUM.get() {
        return Ok(sum.clone());
    }
    let path = std::env::current_exe().map_err(|e| Error::file("the running program", "find", e))?;
    let bytes = std::fs::read(&path).map_err(|e| Error::file(&path, "read", e))?;
    let mut sources = Vec::new();
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut sources);
    sources.sort();
    let mut sum = crc32fast::Hasher::new();
    for source in &sources {
        sum.update(&std::fs::read(source).map_err(|e| Error::file(source, "read", e))?);
    }
    let sum = format!("{:08x} {} {:08x}", crc32fast::hash(&bytes), bytes.len(), sum.finalize());
    Ok(SUM.get_or_init(|| sum).clone())
}

/// The files below a folder; none if there is no such folder.
fn files(folder: &Path, into: &mut Vec<PathBuf>) {
    for path in std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path())) {
        if path.is_dir() {
            files(&path, into);
        } else {
            into.push(path);
        }
    }
}

/// Removes a file, if there is one.
fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::file(path, "remove", e)),
        _ => Ok(()),
    }
}

impl<'a> Shipment<'a> {
    /// The checkpoint `id`, whose runs keep their states in `work`.
    ///
    /// # Errors
    /// [`Error::File`] if a folder cannot be made.
    pub fn new(
        id: &'a str,
        title: &'a str,
        work: &Path,
        settings: &Settings<'_>,
        options: &'a TrainOptions,
    ) -> Result<Self> {
        let folder = options.out.clone().unwrap_or_else(|| settings.checkpoints.clone());
        for path in [folder.as_path(), work] {
            std::fs::create_dir_all(path).map_err(|e| Error::file(path, "create", e))?;
        }
        Ok(Shipment { id, title, options, folder, begin: Instant::now() })
    }

    /// `path` as the place of a run's state; what an earlier session left there is gone unless it is to be resumed.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be removed.
    pub fn state(&self, path: PathBuf) -> Result<PathBuf> {
        if !self.options.resume {
            remove(&path)?;
        }
        Ok(path)
    }

    /// The manifest: id, title, the command that makes the checkpoint, and what `runs` says of its runs.
    pub fn manifest(&self, runs: impl serde::Serialize) -> Value {
        let seed = self.options.seed.map(|s| format!(" --seed {s}")).unwrap_or_default();
        let command = format!("cargo lab train {}{seed}", self.id);
        json!({ "id": self.id, "title": self.title, "command": command, "runs": runs })
    }

    /// Writes the checkpoint and, beside it, for people: the same manifest, the losses on the test batch and how long it
    /// took. The states are no longer needed then. Returns the checkpoint's path.
    ///
    /// # Errors
    /// As [`Checkpoint::save`]; [`Error::File`] where a file cannot be written or removed.
    pub fn finish(
        self,
        arrays: BTreeMap<String, Array>,
        manifest: Value,
        test_loss: impl serde::Serialize,
        states: Vec<PathBuf>,
    ) -> Result<PathBuf> {
        // Beside the shipped one, which has the seeds that the figures ask for.
        let name = match self.options.seed {
            Some(seed) => format!("{}.seed{seed}", self.id),
            None => self.id.to_owned(),
        };
        let path = self.folder.join(format!("{name}.safetensors"));
        let mut readable = manifest.clone();
        Checkpoint { arrays, manifest }.save(&path)?;
        readable["test_loss"] = json!(test_loss);
        readable["seconds_of_last_session"] = json!(self.begin.elapsed().as_secs());
        crate::fs::write_atomic(self.folder.join(format!("{name}.json")), format!("{readable:#}\n").as_bytes())?;
        for state in states {
            remove(&state)?;
        }
        Ok(path)
    }
}
