//! Files that are there whole or not at all.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::{Error, Result};

/// Writes `bytes` to `path` so that a reader, or a crash, finds either the old file or the whole new one: the bytes go
/// to a new file beside it, to the disk, and then take its name. A folder that is missing is made. What a process that was killed
/// while it wrote this file has left beside it, is removed an hour later.
///
/// # Errors
/// [`Error::File`] if the folder cannot be made or written to, or the disk is full; nothing is left behind then.
///
/// ```
/// let path = std::env::temp_dir().join(format!("incontext-doc-{}.txt", std::process::id()));
/// incontext::fs::write_atomic(&path, b"whole")?;
/// assert_eq!(std::fs::read(&path).unwrap(), b"whole");
/// # std::fs::remove_file(&path).unwrap();
/// # Ok::<(), incontext::Error>(())
/// ```
pub fn write_atomic(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> Result<()> {
    let path = path.as_ref();
    let failed = |why: std::io::Error| Error::file(path, "write", why);
    let name = path.file_name().ok_or_else(|| Error::file(path, "write", "the path names no file"))?;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    std::fs::create_dir_all(&folder).map_err(failed)?;
    sweep(&folder, name);
    let (mut file, temporary) = create_beside(&folder, name).map_err(failed)?;
    let written = file.write_all(bytes.as_ref()).and_then(|()| file.sync_all());
    drop(file);
    let done = written.and_then(|()| std::fs::rename(&temporary, path));
    if done.is_err() {
        // The error that matters is the one above; a leftover that cannot be removed changes nothing about it.
        let _ = std::fs::remove_file(&temporary);
    }
    done.map_err(failed)?;
    // The name is on the disk once its folder is; not every system can open a folder for that.
    if let Ok(folder) = File::open(&folder) {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// How a file is called until it takes its name: so, the process and a number, and [`ENDING`].
fn beginning(name: &OsStr) -> OsString {
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(".");
    hidden
}

const ENDING: &str = ".tmp";

/// No write takes as long: a file under a name to be replaced that is older belongs to no one.
const ABANDONED: Duration = Duration::from_secs(3600);

/// Removes what others have left of this file. What cannot be read or removed does no harm.
fn sweep(folder: &Path, name: &OsStr) {
    let beginning = beginning(name);
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let entry_name = entry.file_name();
        let bytes = entry_name.as_encoded_bytes();
        let middle = bytes.strip_prefix(beginning.as_encoded_bytes()).and_then(|b| b.strip_suffix(ENDING.as_bytes()));
        let ours = middle.is_some_and(|b| !b.is_empty() && b.iter().all(|c| c.is_ascii_digit() || *c == b'-'));
        if !ours {
            continue;
        }
        let modified = entry.metadata().and_then(|data| data.modified());
        if modified.is_ok_and(|time| time.elapsed().is_ok_and(|age| age > ABANDONED)) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// A new file in `folder` under a name that nothing else has.
fn create_beside(folder: &Path, name: &OsStr) -> std::io::Result<(File, PathBuf)> {
    let mut attempt = 0;
    loop {
        let mut hidden = beginning(name);
        hidden.push(format!("{}-{attempt}{ENDING}", std::process::id()));
        let path = folder.join(hidden);
        match OpenOptions::new().write(true).create_new(true).open(&path) {
            Ok(file) => return Ok((file, path)),
            Err(taken) if taken.kind() == std::io::ErrorKind::AlreadyExists && attempt < 1000 => attempt += 1,
            Err(other) => return Err(other),
        }
    }
}
