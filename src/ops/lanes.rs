//! Sixteen prompts side by side: the unit of work of the fused ops, and the choice of instruction set at run time.
//!
//! The matrices of one prompt are too small (5 x 5) to fill a vector register, so every scalar of the algebra becomes
//! [`LANES`] scalars, one of each of sixteen prompts, and every multiply-add one or two vector instructions. The
//! instructions are written out: left to itself, the compiler vectorises over the columns of the small matrices.

/// Prompts in a tile.
pub const LANES: usize = 16;

/// One scalar of each of [`LANES`] prompts, in memory.
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

    /// The lanes' sum, in `f64`.
    pub fn sum(&self) -> f64 {
        self.0.iter().map(|v| v.f64()).sum()
    }
}

/// [`LANES`] scalars in registers. A type of an instruction set exists only inside [`dispatch`], which checks for it.
pub trait Vector<T>: Copy {
    /// Whether loops over the paper's dimension are unrolled for it: worth its compile time for training alone.
    const UNROLL: bool = false;
    /// How many of these the registers hold. With few, blocks of a product's columns cost compile time alone.
    const ROOM: usize = 4;
    /// The same value in every lane.
    fn splat(v: T) -> Self;
    /// Reads from memory.
    fn load(v: &Lanes<T>) -> Self;
    /// Writes to memory.
    fn store(self, to: &mut Lanes<T>);
    /// `self + a * b`, in one rounding where the instruction set has that.
    fn add_mul(self, a: Self, b: Self) -> Self;
}

/// A scalar of the algebra: `f32` for training, `f64` for what is checked to machine precision.
pub trait Real: dfdx::prelude::Dtype + dfdx::prelude::Unit + Default + Send + Sync + 'static {
    /// Registers of AVX-512.
    #[cfg(target_arch = "x86_64")]
    type Avx512: Vector<Self>;
    /// Registers of AVX2.
    #[cfg(target_arch = "x86_64")]
    type Avx2: Vector<Self>;
    /// Rounds from `f64`.
    fn of(v: f64) -> Self;
    /// Widens to `f64`.
    fn f64(self) -> f64;
    /// `self * b + c`, fused if that is an instruction of every machine of this architecture.
    fn mul_plus(self, b: Self, c: Self) -> Self;
}

/// The portable vector: plain arrays.
#[derive(Clone, Copy)]
pub struct Portable<T>([T; LANES]);

impl<T: Real> Vector<T> for Portable<T> {
    #[inline(always)]
    fn splat(v: T) -> Self {
        Portable([v; LANES])
    }
    #[inline(always)]
    fn load(v: &Lanes<T>) -> Self {
        Portable(v.0)
    }
    #[inline(always)]
    fn store(self, to: &mut Lanes<T>) {
        to.0 = self.0;
    }
    #[inline(always)]
    fn add_mul(mut self, a: Self, b: Self) -> Self {
        for i in 0..LANES {
            self.0[i] = a.0[i].mul_plus(b.0[i], self.0[i]);
        }
        self
    }
}

macro_rules! real {
    ($t:ty, $avx512:ty, $avx2:ty) => {
        impl Real for $t {
            #[cfg(target_arch = "x86_64")]
            type Avx512 = $avx512;
            #[cfg(target_arch = "x86_64")]
            type Avx2 = $avx2;
            #[inline(always)]
            fn of(v: f64) -> Self {
                v as $t
            }
            #[inline(always)]
            fn f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn mul_plus(self, b: Self, c: Self) -> Self {
                // Without the instruction a fused multiply-add is a slow call.
                if cfg!(target_arch = "aarch64") { self.mul_add(b, c) } else { self * b + c }
            }
        }
    };
}
real!(f32, x86::Avx512F32, x86::Avx2F32);
real!(f64, x86::Avx512F64, x86::Avx2F64);

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Lanes, Vector};

    macro_rules! vector {
        ($name:ident, $t:ty, $register:ty, $n:literal, $load:ident, $store:ident, $splat:ident, $fma:ident,
         $unroll:literal, $room:literal) => {
            #[derive(Clone, Copy)]
            pub struct $name([$register; $n]);

            impl Vector<$t> for $name {
                const UNROLL: bool = $unroll;
                const ROOM: usize = $room;
                #[inline(always)]
                fn splat(v: $t) -> Self {
                    // SAFETY: `dispatch` has found this instruction set on this machine.
                    $name([unsafe { $splat(v) }; $n])
                }
                #[inline(always)]
                fn load(v: &Lanes<$t>) -> Self {
                    const WIDTH: usize = super::LANES / $n;
                    let mut out = <Self as Vector<$t>>::splat(0.0).0;
                    for i in 0..$n {
                        // SAFETY: as above; register i covers entries below LANES of `v`, which is aligned to 64 bytes.
                        out[i] = unsafe { $load(v.0.as_ptr().add(i * WIDTH)) };
                    }
                    $name(out)
                }
                #[inline(always)]
                fn store(self, to: &mut Lanes<$t>) {
                    const WIDTH: usize = super::LANES / $n;
                    for i in 0..$n {
                        // SAFETY: as for `load`.
                        unsafe { $store(to.0.as_mut_ptr().add(i * WIDTH), self.0[i]) };
                    }
                }
                #[inline(always)]
                fn add_mul(mut self, a: Self, b: Self) -> Self {
                    for i in 0..$n {
                        // SAFETY: `dispatch` has found this instruction set on this machine.
                        self.0[i] = unsafe { $fma(a.0[i], b.0[i], self.0[i]) };
                    }
                    self
                }
            }
        };
    }
    vector!(Avx512F32, f32, __m512, 1, _mm512_load_ps, _mm512_store_ps, _mm512_set1_ps, _mm512_fmadd_ps, true, 32);
    vector!(Avx512F64, f64, __m512d, 2, _mm512_load_pd, _mm512_store_pd, _mm512_set1_pd, _mm512_fmadd_pd, false, 16);
    vector!(Avx2F32, f32, __m256, 2, _mm256_load_ps, _mm256_store_ps, _mm256_set1_ps, _mm256_fmadd_ps, true, 8);
    vector!(Avx2F64, f64, __m256d, 4, _mm256_load_pd, _mm256_store_pd, _mm256_set1_pd, _mm256_fmadd_pd, false, 4);
}

/// Work on tiles that is compiled once for each instruction set and run on the best one that the machine has.
pub trait Kernel<T: Real> {
    /// What it gives back.
    type Output;
    /// Does the work. Implementations, and all that they call, are `inline(always)`, so that the instruction set of
    /// the caller is theirs.
    fn run<V: Vector<T>>(self) -> Self::Output;
}

/// Runs `kernel` on the best instruction set of this machine: AVX-512, AVX2 with FMA, or the portable one.
pub fn dispatch<T: Real, K: Kernel<T>>(kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    match instruction_set() {
        // SAFETY: the features that the function is compiled for were found on this machine.
        "AVX-512" => return unsafe { run_avx512(kernel) },
        // SAFETY: as above.
        "AVX2" => return unsafe { run_avx2(kernel) },
        _ => {}
    }
    kernel.run::<Portable<T>>()
}

/// The instruction set that [`dispatch`] chooses on this machine.
pub fn instruction_set() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return "AVX-512";
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return "AVX2";
        }
    }
    "portable"
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
fn run_avx512<T: Real, K: Kernel<T>>(kernel: K) -> K::Output {
    kernel.run::<T::Avx512>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<T: Real, K: Kernel<T>>(kernel: K) -> K::Output {
    kernel.run::<T::Avx2>()
}
