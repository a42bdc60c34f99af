//! Curves that the authors stored with their code (commit c8c1e37, five seeds), where our setting is theirs.

use crate::{Error, Result};

/// The curve called `name`, a path of keys (`"fig4c/lsa1"`).
///
/// # Errors
/// [`Error::Unknown`] if there is none.
pub fn curve(name: &str) -> Result<Vec<f64>> {
    let all: serde_json::Value = serde_json::from_str(include_str!("reference.json"))
        .map_err(|e| Error::numerical("reference curves", e.to_string()))?;
    let found = name.split('/').fold(&all, |at, key| &at[key]).as_array();
    let found =
        found.ok_or_else(|| Error::unknown("reference curve", name, ["fig4a/lsa1", "fig4c/gd", "fig5b/LSQ"]))?;
    Ok(found.iter().filter_map(serde_json::Value::as_f64).collect())
}
