//! `cargo lab`: sets up the laboratory and opens JupyterLab; reproduces, trains, exports and measures.

mod bars;
mod bench;
mod cli;
mod commands;
mod doctor;
mod export;
mod house;
mod jupyter;
mod kernel;
mod setup;
mod torch_file;
mod trouble;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // The kernel calls this program under the names of the tools that it stands in for.
    let outcome = match kernel::stand_in::role() {
        Some(role) => kernel::stand_in::run(role),
        None => cli::run(cli::Arguments::parse()),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(trouble) => {
            eprintln!("error: {trouble}");
            ExitCode::from(trouble.code())
        }
    }
}
