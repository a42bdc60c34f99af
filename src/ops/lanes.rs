//! Sixteen prompts side by side: the unit of work of the fused ops, and the choice of instruction set at run time.
//!
//! The matrices of one prompt are too small (5 x 5) to fill a vector register, so every scalar of the algebra becomes
//! [`LANES`] scalars, one of each of sixteen prompts, and every multiply-add one or two vector instructions.

/// Prompts in a tile.
pub const LANES: usize = 16;

/// A scalar of the algebra: `f32` for training, `f64` for what is checked to machine precision.
pub trait Real: dfdx::prelude::Dtype + dfdx::prelude::Unit + Default + Send + Sync + 'static {
    /// Rounds from `f64`.
    fn of(v: f64) -> Self;
    /// Widens to `f64`.
    fn f64(self) -> f64;
    /// `self * b + c`, rounded once.
    fn fused(self, b: Self, c: Self) -> Self;
}

impl Real for f32 {
    #[inline(always)]
    fn of(v: f64) -> Self {
        v as f32
    }
    #[inline(always)]
    fn f64(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn fused(self, b: Self, c: Self) -> Self {
        self.mul_add(b, c)
    }
}

impl Real for f64 {
    #[inline(always)]
    fn of(v: f64) -> Self {
        v
    }
    #[inline(always)]
    fn f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn fused(self, b: Self, c: Self) -> Self {
        self.mul_add(b, c)
    }
}

/// One scalar of each of [`LANES`] prompts.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(align(64))]
pub struct Lanes<T>(pub [T; LANES]);

impl<T: Real> Lanes<T> {
    /// The same value in every lane.
    #[inline(always)]
    pub fn splat(v: T) -> Self {
        Lanes([v; LANES])
    }

    /// Zero in every lane.
    #[inline(always)]
    pub fn zero() -> Self {
        Lanes::splat(T::default())
    }

    /// `self + a * b`. With `FMA` in one rounding: without that instruction a fused multiply-add is a slow call.
    #[inline(always)]
    pub fn add_mul<const FMA: bool>(mut self, a: Lanes<T>, b: &Lanes<T>) -> Self {
        for i in 0..LANES {
            self.0[i] = if FMA { a.0[i].fused(b.0[i], self.0[i]) } else { self.0[i] + a.0[i] * b.0[i] };
        }
        self
    }

    /// `self + a * b` with one `a` for all lanes.
    #[inline(always)]
    pub fn add_scaled<const FMA: bool>(mut self, a: T, b: &Lanes<T>) -> Self {
        for i in 0..LANES {
            self.0[i] = if FMA { a.fused(b.0[i], self.0[i]) } else { self.0[i] + a * b.0[i] };
        }
        self
    }

    /// `self + b`.
    #[inline(always)]
    pub fn plus(mut self, b: &Lanes<T>) -> Self {
        for i in 0..LANES {
            self.0[i] += b.0[i];
        }
        self
    }

    /// The lanes' sum, in `f64`.
    pub fn sum(&self) -> f64 {
        self.0.iter().map(|v| v.f64()).sum()
    }
}

/// Work that is compiled once for each instruction set and run on the best one that the machine has.
pub trait Kernel {
    /// What it gives back.
    type Output;
    /// Does the work; `FMA` says whether fused multiply-add is an instruction. Implementations are `inline(always)`,
    /// so that the instruction set of the caller is theirs.
    fn run<const FMA: bool>(self) -> Self::Output;
}

/// Runs `kernel` on the best instruction set of this machine: AVX-512, AVX2 with FMA, NEON, or the portable one.
pub fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("fma")
        {
            // SAFETY: the features that the function is compiled for were detected on this machine just above.
            return unsafe { run_avx512(kernel) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: as above.
            return unsafe { run_avx2(kernel) };
        }
        kernel.run::<false>()
    }
    #[cfg(target_arch = "aarch64")]
    {
        // NEON and its fused multiply-add are part of the architecture.
        kernel.run::<true>()
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        kernel.run::<false>()
    }
}

/// The instruction set that [`dispatch`] chooses on this machine.
pub fn instruction_set() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("fma")
        {
            return "AVX-512";
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return "AVX2";
        }
    }
    if cfg!(target_arch = "aarch64") { "NEON" } else { "portable" }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx2,fma")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<true>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<true>()
}
