//! Where things are: the repository, and `.lab/` inside it, which holds everything that the lab installs or writes.

use std::path::{Path, PathBuf};

use crate::trouble::{Outcome, Subject, Trouble};

/// The repository that this command works in.
#[derive(Clone, Debug)]
pub struct House {
    root: PathBuf,
}

impl House {
    /// Finds the repository: around the running program if that is the copy in `.lab/bin`, else the one that cargo
    /// says it runs from, else the one that the program was built in.
    pub fn find() -> Outcome<House> {
        let around_program = || {
            let program = std::env::current_exe().ok()?.canonicalize().ok()?;
            let bin = program.parent()?;
            bin.ends_with(".lab/bin").then(|| bin.parent()?.parent().map(Path::to_path_buf)).flatten()
        };
        let from_cargo = || Some(PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR")?).parent()?.to_path_buf());
        let from_build = || Some(Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.to_path_buf());
        let is_house = |root: &PathBuf| root.join("Cargo.toml").is_file() && root.join("lab/Cargo.toml").is_file();
        [around_program(), from_cargo(), from_build()]
            .into_iter()
            .flatten()
            .find(is_house)
            .map(|root| House { root: root.canonicalize().unwrap_or(root) })
            .ok_or_else(|| {
                Trouble::new("the repository of incontext is not where this program was built")
                    .mend("run `cargo lab` inside the repository")
            })
    }

    /// The repository.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// `.lab/`.
    pub fn lab(&self) -> PathBuf {
        self.root.join(".lab")
    }

    /// A path inside `.lab/`.
    pub fn at(&self, path: &str) -> PathBuf {
        self.lab().join(path)
    }

    /// A path as the user knows it: relative to the repository where possible.
    pub fn short<'a>(&self, path: &'a Path) -> std::path::Display<'a> {
        path.strip_prefix(&self.root).unwrap_or(path).display()
    }

    /// The copy of this program that Jupyter starts kernels with: cargo is not in the way there.
    pub fn program(&self) -> PathBuf {
        self.at("bin").join(executable("lab"))
    }

    /// Makes a folder inside `.lab/`, with its parents.
    pub fn make(&self, path: &str) -> Outcome<PathBuf> {
        let folder = self.at(path);
        std::fs::create_dir_all(&folder).doing(|| format!("make the folder {}", folder.display()))?;
        Ok(folder)
    }
}

/// A program's file name on this platform.
pub fn executable(name: &str) -> String {
    format!("{name}{}", std::env::consts::EXE_SUFFIX)
}

/// Writes a file so that a reader, or an interruption, sees the old content or the new and never a part of it.
/// Writes nothing if the content is there already.
pub fn write(path: &Path, content: impl AsRef<[u8]>) -> Outcome<()> {
    let content = content.as_ref();
    if std::fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).doing(|| format!("make the folder {}", folder.display()))?;
    }
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.new", std::process::id()));
    let new = path.with_file_name(name);
    let written = std::fs::write(&new, content).and_then(|()| std::fs::rename(&new, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    written.doing(|| format!("write {}", path.display()))
}

/// The program called `name` on the search path.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let name = executable(name);
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(&name)).find(|path| path.is_file())
}
