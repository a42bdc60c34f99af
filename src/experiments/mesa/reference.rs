//! Curves that the authors stored with their code (commit c8c1e37), where our setting is theirs: means over five networks (Figures
//! 4A, 5, 16, 22, 23), or of one network over five test batches (the others).

use std::sync::LazyLock;

use serde_json::Value;

use crate::{Error, Result};

static STORED: LazyLock<std::result::Result<Value, String>> =
    LazyLock::new(|| serde_json::from_str(include_str!("reference.json")).map_err(|e| e.to_string()));

/// The curve called `name`, a path of keys (`"fig4c/lsa1"`).
///
/// # Errors
/// [`Error::Unknown`] if there is none.
pub fn curve(name: &str) -> Result<Vec<f64>> {
    let all = STORED.as_ref().map_err(|e| Error::numerical("reference curves", e))?;
    let found = name.split('/').fold(all, |at, key| &at[key]).as_array();
    let found =
        found.ok_or_else(|| Error::unknown("reference curve", name, ["fig4a/lsa1", "fig4c/gd", "fig5b/LSQ"]))?;
    Ok(found.iter().filter_map(Value::as_f64).collect())
}
