//! What this machine can do at most: multiply-adds a second in f32 and bytes a second, on all its cores.

use std::fs::read_to_string;
use std::thread::{available_parallelism, scope};
use std::time::Instant;

use incontext::ops::lanes::{Kernel, LANES, Lanes, Vector, dispatch};

/// The machine's measured limits.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    /// Threads that were used.
    pub threads: usize,
    /// Floating-point operations a second, a fused multiply-add being two.
    pub flops: f64,
    /// Bytes a second of the triad a = b + s c on arrays that no cache holds.
    pub bytes: f64,
}

/// Repetitions of each measurement, of which the best counts: a limit is what is reached when nothing disturbs.
const REPETITIONS: usize = 15;

/// Multiply-adds in a chain.
const CHAIN: usize = 2_000_000;

/// Entries of each of the triad's arrays: 64 MiB.
const TRIAD: usize = 16 << 20;

impl Machine {
    /// Measures; takes about a second, and 192 MiB of memory.
    pub fn measure() -> Machine {
        let threads = available_parallelism().map_or(1, usize::from);
        Machine { threads, flops: flops(), bytes: bandwidth(threads) }
    }

    /// The least milliseconds for so many operations, and for so many bytes.
    pub fn floor_ms(&self, operations: f64, bytes: f64) -> (f64, f64) {
        (1e3 * operations / self.flops, 1e3 * bytes / self.bytes)
    }
}

/// `N` independent chains of multiply-adds in registers, on the instruction set of the fused ops.
struct Chains<const N: usize>;

impl<const N: usize> Kernel<f32> for Chains<N> {
    type Output = f64;
    #[inline(always)]
    fn run<V: Vector<f32>>(self) -> f64 {
        let (offset, factor) = (V::splat(0.25), V::splat(0.75));
        let mut chains = [V::splat(0.5); N];
        for _ in 0..CHAIN {
            for value in &mut chains {
                *value = offset.add_mul(*value, factor);
            }
        }
        let mut sum = 0.0;
        for value in chains {
            let mut lanes = Lanes::zero();
            value.store(&mut lanes);
            sum += lanes.sum();
        }
        sum
    }
}

/// The rate of arithmetic of all cores just now; takes a third of a second.
pub fn flops() -> f64 {
    let threads = available_parallelism().map_or(1, usize::from);
    // How many chains keep the units busy without running out of registers depends on the instruction set.
    arithmetic::<6>(threads).max(arithmetic::<10>(threads))
}

fn arithmetic<const N: usize>(threads: usize) -> f64 {
    let operations = (2 * threads * CHAIN * N * LANES) as f64;
    best(|| {
        scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| std::hint::black_box(dispatch(Chains::<N>)));
            }
        });
        operations
    })
}

fn bandwidth(threads: usize) -> f64 {
    let (mut a, b, c) = (vec![0.0f32; TRIAD], vec![1.0f32; TRIAD], vec![2.0f32; TRIAD]);
    let part = TRIAD.div_ceil(threads);
    best(|| {
        scope(|scope| {
            for ((a, b), c) in a.chunks_mut(part).zip(b.chunks(part)).zip(c.chunks(part)) {
                scope.spawn(move || a.iter_mut().zip(b.iter().zip(c)).for_each(|(a, (b, c))| *a = b + 0.5 * c));
            }
        });
        std::hint::black_box(&mut a);
        (3 * TRIAD * size_of::<f32>()) as f64
    })
}

/// The greatest rate of some repetitions of `work`, which tells how much it did.
fn best(mut work: impl FnMut() -> f64) -> f64 {
    let rate = |_| {
        let start = Instant::now();
        let amount = work();
        amount / start.elapsed().as_secs_f64()
    };
    (0..REPETITIONS).map(rate).fold(0.0, f64::max)
}

/// This process's peak memory in MB, where the system tells it.
pub fn peak_mb() -> Option<f64> {
    let status = read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<f64>().ok()? / 1024.0)
}
