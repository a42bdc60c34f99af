//! Comparing models with algorithms and with theory, with intervals over seeds.

pub mod identity;
pub mod interval;
pub mod similarity;
pub mod trend;

pub use identity::distance_to_identity;
pub use interval::Interval;
pub use similarity::{BestMatch, Measure, Similarity, similarity_at};
pub use trend::{LinearFit, spearman};
