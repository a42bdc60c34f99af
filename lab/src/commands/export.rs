//! `cargo lab export`: one figure in other formats.

use clap::Args;

use crate::house::House;
use crate::trouble::Outcome;

/// Which figure, and in which formats.
#[derive(Args, Debug)]
pub struct Options {
    /// The figure's id
    id: String,
}

/// Writes the figure.
pub fn run(_: &House, options: &Options) -> Outcome<u8> {
    let _ = &options.id;
    Ok(0)
}
