//! Training: optimisers (behind dfdx's trait too), schedules, checkpoints, and the loop that resumes bit for bit.

pub mod ahead;
pub mod checkpoint;
pub mod curriculum;
pub mod muon;
pub mod optimizer;
pub mod schedule;
pub mod trainer;

pub use dfdx::optim::Optimizer;

pub use ahead::Ahead;
pub use checkpoint::{Array, Checkpoint};
pub use curriculum::{Curriculum, Ramp};
pub use muon::{Muon, MuonConfig};
pub use optimizer::{Adam, AdamConfig, Clip, Sgd, SgdConfig, Stateful};
pub use schedule::Schedule;
pub use trainer::{History, Problem, Trainer};
