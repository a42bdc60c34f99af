//! `cargo lab`: the command line of `incontext`.

fn main() {}
