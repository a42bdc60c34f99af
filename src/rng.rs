//! The one source of randomness: a ChaCha8 generator named by a seed, a purpose and an index.
//!
//! Work that is split over threads draws from one stream per piece, so results do not depend on the number of threads;
//! work that is resumed asks for the stream of its next step, so no generator state has to be saved.

pub use rand::Rng;
pub use rand_chacha::ChaCha8Rng;

use rand::SeedableRng;

/// The generator for piece `index` of the work called `purpose` under `seed`.
///
/// Streams of different purposes or indices are independent; the same three values always give the same stream.
///
/// ```
/// use incontext::rng::{Rng, stream};
/// let draw = |seed, purpose, index| stream(seed, purpose, index).next_u64();
/// # use rand::RngCore;
/// assert_eq!(draw(1, "prompts", 7), draw(1, "prompts", 7));
/// assert_ne!(draw(1, "prompts", 7), draw(1, "prompts", 8));
/// assert_ne!(draw(1, "prompts", 7), draw(1, "test", 7));
/// ```
pub fn stream(seed: u64, purpose: &str, index: u64) -> ChaCha8Rng {
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    // FNV-1a of the purpose: any fixed injection of short names into 64 bits will do.
    let name = purpose.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    key[8..16].copy_from_slice(&name.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(index);
    rng
}

/// The sampling seed of step `step` of a training with seed `seed`: distinct for the steps of a training, and those of trainings
/// with small seeds are far apart.
///
/// ```
/// use incontext::rng::of_step;
/// assert_ne!(of_step(0, 1), of_step(1, 0));
/// assert_eq!(of_step(u64::MAX, 3), 3);
/// ```
pub fn of_step(seed: u64, step: u64) -> u64 {
    seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(step)
}
