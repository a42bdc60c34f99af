//! `cargo lab reproduce`: makes figures, checks the papers' claims on them and writes it all to a folder.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use incontext::experiments::{self, Reproduction, Settings};
use incontext::figure::Claims;
use incontext::progress::duration;
use serde_json::json;

use super::{results_folder, settings};
use crate::bars::Bars;
use crate::export::{self, Card, Made};
use crate::house::House;
use crate::setup;
use crate::trouble::{Outcome, Trouble};

/// Which figures, and how.
#[derive(Args, Debug)]
pub struct Options {
    /// Figure ids (pgd.fig4), papers (pgd), or all; without any, all
    #[arg(value_name = "FIGURE|PAPER|all")]
    ids: Vec<String>,
    /// Folder for the results
    #[arg(long, value_name = "DIR", default_value = "out")]
    out: PathBuf,
    /// Seed of what is random in the figures themselves; checkpoints keep their own
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Train anew instead of loading the shipped checkpoints
    #[arg(long)]
    from_scratch: bool,
    /// Smaller samples, for a quick look
    #[arg(long)]
    quick: bool,
    /// The verdicts as JSON, and nothing else on standard output
    #[arg(long)]
    json: bool,
}

/// Makes the figures. Exit code 1 if a claim does not hold.
pub fn run(house: &House, options: &Options) -> Outcome<u8> {
    let wanted = if options.ids.is_empty() { vec!["all".to_string()] } else { options.ids.clone() };
    let chosen = experiments::select(&wanted)?;
    if options.from_scratch {
        let checkpoints: Vec<&str> = chosen.iter().flat_map(|e| e.checkpoints).copied().collect();
        setup::texts::ensure_for(house, &checkpoints)?;
    }
    let out = results_folder(&options.out)?;
    let bars = Bars::new(false)?;
    let settings = Settings {
        seed: options.seed,
        from_scratch: options.from_scratch,
        quick: options.quick,
        ..settings(house, &bars)
    };
    let (mut cards, mut verdicts, mut all_hold) = (Vec::new(), Vec::new(), true);
    for experiment in &chosen {
        let start = Instant::now();
        let reproduction = (experiment.run)(&settings).map_err(|error| resumable(error, options))?;
        let seconds = start.elapsed().as_secs_f64();
        let made = Made { id: experiment.id, reproduction: &reproduction, seed: options.seed, seconds };
        export::write_all(&out, &made)?;
        cards.push(Card::new(&made)?);
        // After every figure: whoever interrupts a long run keeps a gallery of what was made.
        export::gallery(&out, &cards)?;
        let claims = claims(&reproduction);
        all_hold &= claims.all_hold();
        if !options.json {
            tell(experiment.id, claims, seconds);
        }
        verdicts.push(json!({ "id": experiment.id, "seconds": seconds, "claims": claims }));
    }
    if options.json {
        println!("{}", json!({ "figures": verdicts }));
    } else {
        println!("\nThe gallery: {}", out.join("index.html").display());
    }
    Ok(u8::from(!all_hold))
}

/// The claims of a reproduction, or those that its figure brought along.
fn claims(reproduction: &Reproduction) -> &Claims {
    if reproduction.claims.is_empty() { &reproduction.figure.claims } else { &reproduction.claims }
}

fn tell(id: &str, claims: &Claims, seconds: f64) {
    println!("{id}  ({})", duration(Duration::from_secs_f64(seconds.max(0.0))));
    for claim in claims.iter() {
        let verdict = if claim.holds() { "holds         " } else { "DOES NOT HOLD " };
        println!("  {verdict} {}: {} (bound {})", claim.statement, claim.measured_text(), claim.bound_text());
    }
}

/// An interruption with the command that goes on from it.
fn resumable(error: incontext::Error, options: &Options) -> Trouble {
    let interrupted = matches!(error, incontext::Error::Interrupted { .. });
    let trouble = Trouble::from(error);
    if !interrupted {
        return trouble;
    }
    let flag = |given: bool, name: &str| if given { format!(" {name}") } else { String::new() };
    trouble.mend(format!(
        "cargo lab reproduce {} --out \"{}\" --seed {}{}{}",
        options.ids.join(" "),
        options.out.display(),
        options.seed,
        flag(options.from_scratch, "--from-scratch"),
        flag(options.quick, "--quick"),
    ))
}
