//! A kernel's own folder: the libraries that cells are compiled with are hard links to the template's, which costs hardly
//! any time or space; the rest of what cargo keeps is copied when a cell needs cargo. Two kernels share no file that
//! either of them writes.
//!
//! evcxr tells the process that runs cells which library to load in words separated by spaces, so it cannot work in a
//! folder whose path has one. Where the repository's path does, the kernel's folder gets a second name without spaces,
//! a symbolic link in the system's temporary folder, and evcxr sees nothing else.

use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::template::Template;
use crate::house::{self, House};
use crate::trouble::{Outcome, Subject};

/// A kernel's folder, removed when this is dropped.
pub struct Folder {
    path: PathBuf,
    /// Held open and locked for as long as the kernel lives: how others see that it does.
    _lock: File,
}

/// The file whose lock says that the kernel lives.
const LOCK: &str = "alive";

impl Folder {
    /// Makes a folder with the template's compiled libraries.
    pub fn make(house: &House, template: &Template) -> Outcome<Folder> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        let path = house.make(&format!("kernels/k{}x{since:x}", std::process::id()))?;
        // Under its name only once it is locked: another kernel's sweep would take the folder for a dead one's.
        let unlocked = path.join("unlocked");
        let lock = File::create(&unlocked).doing(|| format!("write in {}", house.short(&path)))?;
        lock.lock().doing(|| format!("lock {}", house.short(&path)))?;
        std::fs::rename(&unlocked, path.join(LOCK)).doing(|| format!("rename in {}", house.short(&path)))?;
        let folder = Folder { path, _lock: lock };
        if needs_alias(&folder.path) {
            let alias = alias(&folder.path);
            std::os::unix::fs::symlink(&folder.path, &alias).doing(|| format!("link {}", alias.display()))?;
        }
        if template.target().is_dir() {
            let _unchanging = Template::lock(house)?;
            copy(&template.target(), &folder.target(), Part::Libraries)
                .doing(|| format!("copy the template to {}", house.short(&folder.path)))?;
        }
        Ok(folder)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its name, which nothing else in a path or a text is called.
    pub fn id(&self) -> &str {
        self.path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// Where evcxr writes the crates that it makes of cells, by a name without spaces.
    pub fn crate_folder(&self) -> PathBuf {
        if needs_alias(&self.path) { alias(&self.path).join("crate") } else { self.path.join("crate") }
    }

    fn target(&self) -> PathBuf {
        self.crate_folder().join("target")
    }

    /// Where rust-analyzer looks for the standard library's sources.
    pub fn library(&self) -> PathBuf {
        self.path.join("library")
    }

    /// Where evcxr looks for its configuration.
    pub fn config(&self) -> PathBuf {
        self.path.join("config")
    }

    /// Writes a file of evcxr's configuration.
    pub fn configure(&self, name: &str, text: &str) -> Outcome<()> {
        house::write(&self.config().join(name), text)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

fn needs_alias(path: &Path) -> bool {
    path.to_string_lossy().contains(char::is_whitespace)
}

/// The second name of a kernel's folder.
fn alias(path: &Path) -> PathBuf {
    let temporary = std::env::temp_dir();
    let temporary = if needs_alias(&temporary) { PathBuf::from("/tmp") } else { temporary };
    temporary.join(format!("incontext-{}", path.file_name().unwrap_or_default().to_string_lossy()))
}

/// Removes a kernel's folder, and its second name. A process that is just ending may still write there, so this tries more than once.
pub fn remove(path: &Path) {
    let alias = alias(path);
    if std::fs::read_link(&alias).is_ok_and(|target| target == path) {
        let _ = std::fs::remove_file(&alias);
    }
    for _ in 0..20 {
        match std::fs::remove_dir_all(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            _ => return,
        }
    }
}

/// Removes the folders of kernels that ended without doing so. Returns how many.
pub fn sweep(house: &House) -> usize {
    let folders =
        std::fs::read_dir(house.at("kernels")).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let dead = folders.filter(|path| path.is_dir() && !is_alive(path));
    dead.map(|path| remove(&path)).count()
}

/// Whether a kernel holds this folder. A folder without a lock file is one that is just being made, unless it is old.
fn is_alive(path: &Path) -> bool {
    match File::open(path.join(LOCK)) {
        Ok(file) => file.try_lock_shared().is_err(),
        Err(_) => {
            let age = std::fs::metadata(path).and_then(|m| m.modified()).ok().and_then(|made| made.elapsed().ok());
            age.is_none_or(|age| age.as_secs() < 60)
        }
    }
}

/// Completes the target folder of a kernel's crate, so that cargo finds what it would have to compile otherwise.
pub fn complete(house: &House, crate_folder: &Path) -> Outcome<()> {
    let (template, target) = (Template::of(house), crate_folder.join("target"));
    let done = target.join(COMPLETE);
    if done.exists() || !template.target().is_dir() {
        return Ok(());
    }
    let _unchanging = Template::lock(house)?;
    let copied = copy(&template.target(), &target, Part::All).and_then(|()| std::fs::write(&done, ""));
    copied.doing(|| format!("copy the template to {}", crate_folder.display()))
}

/// The file that says that a target folder is complete.
const COMPLETE: &str = "complete";

/// What of a target folder is copied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// What the compiler links or loads for a cell.
    Libraries,
    /// Everything.
    All,
}

/// Copies a target folder, hard-linking what nobody writes in place, and without what belongs to the cell's own crate.
fn copy(from: &Path, to: &Path, part: Part) -> io::Result<()> {
    let mut is_made = false;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        let (source, target) = (entry.path(), to.join(&name));
        let text = name.to_string_lossy();
        if entry.file_type()?.is_dir() {
            if text != "incremental" && !text.starts_with("ctx-") {
                copy(&source, &target, part)?;
            }
            continue;
        }
        let is_own = text.starts_with("libctx") || text.starts_with("ctx-");
        let is_library =
            text.starts_with(std::env::consts::DLL_PREFIX) && is_immutable(&source) && !text.ends_with(".rmeta");
        if is_own || part == Part::Libraries && !is_library {
            continue;
        }
        if !is_made {
            std::fs::create_dir_all(to)?;
            is_made = true;
        }
        // A name that is there may be another name of a file of the template's: it is replaced, not written to.
        let link = || match std::fs::hard_link(&source, &target) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                std::fs::remove_file(&target)?;
                std::fs::hard_link(&source, &target)
            }
            result => result,
        };
        if !is_immutable(&source) || link().is_err() {
            duplicate(&source, &target, &entry.metadata()?)?;
        }
    }
    Ok(())
}

/// Whether cargo and rustc replace a file of this kind rather than write into it: libraries and build scripts.
fn is_immutable(path: &Path) -> bool {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("rlib" | "rmeta" | "so" | "dylib" | "dll" | "exe") => true,
        Some(_) => false,
        None => path.file_name().is_some_and(|name| {
            let name = name.to_string_lossy();
            name.starts_with("build-script-") || name.starts_with("build_script_")
        }),
    }
}

/// Copies a file with its time, by which cargo judges what is fresh.
fn duplicate(from: &Path, to: &Path, metadata: &Metadata) -> io::Result<()> {
    std::fs::copy(from, to)?;
    File::options().write(true).open(to)?.set_modified(metadata.modified()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_keep_their_times_and_share_only_libraries() -> io::Result<()> {
        let base = std::env::temp_dir().join(format!("incontext-folder-{}", std::process::id()));
        let (from, to) = (base.join("from"), base.join("to"));
        std::fs::create_dir_all(from.join("deps"))?;
        for name in ["deps/liba.rlib", "deps/a.d", "deps/libctx.so"] {
            std::fs::write(from.join(name), name)?;
        }
        let old = SystemTime::now() - std::time::Duration::from_secs(1000);
        File::options().write(true).open(from.join("deps/a.d"))?.set_modified(old)?;
        copy(&from, &to, Part::Libraries)?;
        assert!(to.join("deps/liba.rlib").exists() && !to.join("deps/a.d").exists());
        copy(&from, &to, Part::All)?;
        std::fs::write(to.join("deps/a.d"), "changed")?;
        assert_eq!(std::fs::read_to_string(from.join("deps/a.d"))?, "deps/a.d");
        assert_eq!(std::fs::metadata(from.join("deps/a.d"))?.modified()?, old);
        assert!(!to.join("deps/libctx.so").exists());
        std::fs::remove_dir_all(base)
    }
}
