//! `cargo lab list`: the figures there are.

use incontext::experiments;
use serde_json::json;

use crate::trouble::Outcome;

/// Prints the figures, for people or as JSON.
pub fn run(json: bool) -> Outcome<u8> {
    let all = experiments::all();
    if json {
        let figures: Vec<_> = all
            .iter()
            .map(|e| {
                json!({
                    "id": e.id, "paper": e.paper, "title": e.title, "notebook": e.notebook, "checkpoints": e.checkpoints,
                })
            })
            .collect();
        println!("{}", json!({ "figures": figures }));
        return Ok(0);
    }
    let width = all.iter().map(|e| e.id.len()).max().unwrap_or_default();
    for e in &all {
        println!("{:width$}  {}", e.id, e.title);
    }
    println!("\nMake one: cargo lab reproduce <id>; all of a paper: cargo lab reproduce pgd");
    Ok(0)
}
