//! What a layer knows: linear probes in closed form, fitted on some prompts and judged on others.

pub mod linear;

pub use linear::LinearProbe;
