//! Comparing models with algorithms and with theory, with intervals over seeds.

pub mod identity;
pub mod interval;

pub use identity::distance_to_identity;
pub use interval::Interval;
