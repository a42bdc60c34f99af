//! Sixteen `f32` in registers, and the choice of instruction set at run time: what the training engine is written in.
//!
//! [`super::lanes`] holds one scalar of sixteen prompts; here a vector holds sixteen neighbours of one array. Functions
//! over a vector type are `inline(always)`, so that they are compiled with the instructions of the [`Job`] that calls
//! them.

use std::sync::OnceLock;

/// Entries of a vector.
pub const WIDTH: usize = 16;

/// Sixteen `f32`. A type of an instruction set exists only inside [`dispatch`], which checks for it.
pub trait Simd: Copy {
    /// Whether there are registers for tiles of up to 8 rows by 3 vectors of accumulators; else 4 rows by 1 are used.
    const MANY: bool;
    /// The same value everywhere.
    fn splat(v: f32) -> Self;
    /// Reads an array.
    fn load(v: &[f32; WIDTH]) -> Self;
    /// Writes an array.
    fn store(self, to: &mut [f32; WIDTH]);
    /// `self + b`.
    fn add(self, b: Self) -> Self;
    /// `self - b`.
    fn sub(self, b: Self) -> Self;
    /// `self * b`.
    fn mul(self, b: Self) -> Self;
    /// `self / b`.
    fn div(self, b: Self) -> Self;
    /// `self + a * b`, in one rounding where the instruction set has that.
    fn add_mul(self, a: Self, b: Self) -> Self;
    /// The greater of both; NaN where `b` is.
    fn max(self, b: Self) -> Self;
    /// The lesser of both; NaN where `b` is.
    fn min(self, b: Self) -> Self;
    /// The square root.
    fn sqrt(self) -> Self;
    /// 1 / `self`, to about an ulp, for entries from 1 on: where a division would be waited for.
    #[inline(always)]
    fn inverse(self) -> Self {
        Self::splat(1.0).div(self)
    }
    /// The nearest integer.
    fn round(self) -> Self;
    /// `self` times 2 to the power `n`, for integral n in [-126, 127].
    fn times_power_of_two(self, n: Self) -> Self;
    /// 1 where an entry is positive, else 0.
    fn step(self) -> Self;
    /// The sum of the entries.
    fn sum(self) -> f32;
    /// Transposes sixteen vectors.
    #[inline(always)]
    fn transpose(rows: &mut [Self; WIDTH]) {
        let mut block = [[0.0; WIDTH]; WIDTH];
        for (to, row) in block.iter_mut().zip(&*rows) {
            row.store(to);
        }
        let mut column = [0.0; WIDTH];
        for j in 0..WIDTH {
            for i in 0..WIDTH {
                column[i] = block[i][j];
            }
            rows[j] = Self::load(&column);
        }
    }

    /// Zero everywhere.
    #[inline(always)]
    fn zero() -> Self {
        Self::splat(0.0)
    }

    /// The exponential, accurate to the rounding of `f32`, of entries clamped to [-87, 88]; of NaN, NaN.
    ///
    /// e^x = 2^n e^r with |r| <= ln 2 / 2; of the polynomials of degree 6 that begin with 1 + r this one has the least relative
    /// error, below 4e-9.
    #[inline(always)]
    fn exp(self) -> Self {
        // NaN as the second operand stays NaN.
        let x = Self::splat(88.0).min(Self::splat(-87.0).max(self));
        let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
        // ln 2 in two parts, the first with few enough bits that n times it is exact.
        let r = x.add_mul(n, Self::splat(-0.693_359_4)).add_mul(n, Self::splat(2.121_944_4e-4));
        let mut p = Self::splat(1.381_460_2e-3);
        for c in [8.368_716e-3, 4.166_839e-2, 0.166_665_21, 0.499_999_94, 1.0, 1.0] {
            p = Self::splat(c).add_mul(p, r);
        }
        p.times_power_of_two(n)
    }

    /// σ(`factor` x) = 1 / (1 + e^(-factor x)), to 1e-7, with `factor` x clamped to about [-87.3, 87.3]; of NaN, NaN.
    ///
    /// 2^y = 2^n 2^r with |r| <= 1/2; of the polynomials of degree 5 that begin with 1 + r ln 2 this one has the least relative
    /// error, 1.1e-7, of which σ has a fourth at most. What rounding y gives 2^y, a large |y| takes from σ.
    #[inline(always)]
    fn logistic(self, factor: f32) -> Self {
        let y = self.mul(Self::splat(-factor * std::f32::consts::LOG2_E));
        // NaN as the second operand stays NaN.
        let y = Self::splat(126.0).min(Self::splat(-126.0).max(y));
        let n = y.round();
        let r = y.sub(n);
        let mut p = Self::splat(1.330_060_5e-3);
        for c in [9.669_691e-3, 5.550_558_5e-2, 0.240_222_83, std::f32::consts::LN_2, 1.0] {
            p = Self::splat(c).add_mul(p, r);
        }
        Self::splat(1.0).add(p.times_power_of_two(n)).inverse()
    }
}

/// `count` vectors of `data` from `at` on.
#[inline(always)]
pub(super) fn vectors(data: &[f32], at: usize, count: usize) -> &[[f32; WIDTH]] {
    &data[at..].as_chunks().0[..count]
}

/// As [`vectors`], to be written.
#[inline(always)]
pub(super) fn vectors_mut(data: &mut [f32], at: usize, count: usize) -> &mut [[f32; WIDTH]] {
    &mut data[at..].as_chunks_mut().0[..count]
}

/// Asks for a line of the cache, of the second one if it is `FAR` off; the address need not be one of the program's.
#[inline(always)]
pub(super) fn prefetch<const FAR: bool>(address: *const f32) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instructions are part of the base set, and a prefetch from any address only fails to help.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        if FAR { _mm_prefetch::<_MM_HINT_T1>(address.cast()) } else { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Plain arrays, for processors without an implementation of their own.
#[derive(Clone, Copy)]
pub struct Portable([f32; WIDTH]);

macro_rules! every {
    ($self:ident $(, $b:ident)*; |$x:ident $(, $y:ident)*| $f:expr) => {{
        let mut out = $self;
        for i in 0..WIDTH {
            let $x = $self.0[i];
            $(let $y = $b.0[i];)*
            out.0[i] = $f;
        }
        out
    }};
}

impl Simd for Portable {
    const MANY: bool = false;
    #[inline(always)]
    fn splat(v: f32) -> Self {
        Portable([v; WIDTH])
    }
    #[inline(always)]
    fn load(v: &[f32; WIDTH]) -> Self {
        Portable(*v)
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; WIDTH]) {
        *to = self.0;
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        every!(self, b; |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        every!(self, b; |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        every!(self, b; |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        every!(self, b; |a, b| a / b)
    }
    #[inline(always)]
    fn add_mul(self, a: Self, b: Self) -> Self {
        self.add(a.mul(b))
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        every!(self, b; |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        every!(self, b; |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        every!(self; |a| a.sqrt())
    }
    #[inline(always)]
    fn round(self) -> Self {
        // Adding and taking away 1.5 * 2^23 rounds to the nearest integer, for magnitudes below 2^22.
        every!(self; |a| (a + 12_582_912.0) - 12_582_912.0)
    }
    #[inline(always)]
    fn times_power_of_two(self, n: Self) -> Self {
        every!(self, n; |a, n| a * f32::from_bits(((n as i32 + 127) << 23) as u32))
    }
    #[inline(always)]
    fn step(self) -> Self {
        every!(self; |a| if a > 0.0 { 1.0 } else { 0.0 })
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        let mut v = self.0;
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                v[i] += v[i + half];
            }
        }
        v[0]
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::arch::x86_64::*;

    use super::{Simd, WIDTH};

    /// One register of AVX-512.
    #[derive(Clone, Copy)]
    pub struct Avx512(pub __m512);

    // SAFETY, for every block of this file's x86 implementations: `dispatch` has found the instruction set on this
    // machine, and loads and stores go through references to whole arrays.
    impl Simd for Avx512 {
        const MANY: bool = true;
        #[inline(always)]
        fn splat(v: f32) -> Self {
            Avx512(unsafe { _mm512_set1_ps(v) })
        }
        #[inline(always)]
        fn load(v: &[f32; WIDTH]) -> Self {
            Avx512(unsafe { _mm512_loadu_ps(v.as_ptr()) })
        }
        #[inline(always)]
        fn store(self, to: &mut [f32; WIDTH]) {
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self.0) }
        }
        #[inline(always)]
        fn add(self, b: Self) -> Self {
            Avx512(unsafe { _mm512_add_ps(self.0, b.0) })
        }
        #[inline(always)]
        fn sub(self, b: Self) -> Self {
            Avx512(unsafe { _mm512_sub_ps(self.0, b.0) })
        }
        #[inline(always)]
        fn mul(self, b: Self) -> Self {
            Avx512(unsafe { _mm512_mul_ps(self.0, b.0) })
        }
        #[inline(always)]
        fn div(self, b: Self) -> Self {
            Avx512(unsafe { _mm512_div_ps(self.0, b.0) })
        }
        #[inline(always)]
        fn add_mul(self, a: Self, b: Self) -> Self {
            Avx512(unsafe { _mm512_fmadd_ps(a.0, b.0, self.0) })
        }
        #[inline(always)]
        fn max(self, b: Self) -> Self {
            Avx512(unsafe { _mm512_max_ps(self.0, b.0) })
        }
        #[inline(always)]
        fn min(self, b: Self) -> Self {
            Avx512(unsafe { _mm512_min_ps(self.0, b.0) })
        }
        #[inline(always)]
        fn sqrt(self) -> Self {
            Avx512(unsafe { _mm512_sqrt_ps(self.0) })
        }
        #[inline(always)]
        fn inverse(self) -> Self {
            // 14 bits, then twice as many by a step of Newton's method.
            unsafe {
                let estimate = _mm512_rcp14_ps(self.0);
                let error = _mm512_fnmadd_ps(self.0, estimate, _mm512_set1_ps(1.0));
                Avx512(_mm512_fmadd_ps(estimate, error, estimate))
            }
        }
        #[inline(always)]
        fn round(self) -> Self {
            Avx512(unsafe { _mm512_roundscale_ps::<0>(self.0) })
        }
        #[inline(always)]
        fn times_power_of_two(self, n: Self) -> Self {
            Avx512(unsafe { _mm512_scalef_ps(self.0, n.0) })
        }
        #[inline(always)]
        fn step(self) -> Self {
            unsafe {
                let positive = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(self.0, _mm512_setzero_ps());
                Avx512(_mm512_maskz_mov_ps(positive, _mm512_set1_ps(1.0)))
            }
        }
        #[inline(always)]
        fn sum(self) -> f32 {
            unsafe { _mm512_reduce_add_ps(self.0) }
        }
        #[inline(always)]
        fn transpose(rows: &mut [Self; WIDTH]) {
            // Pairs, then fours of entries change places within 128 bits; then the quarters do.
            let zero = unsafe { _mm512_setzero_ps() };
            let (mut pairs, mut fours, mut halves) = ([zero; WIDTH], [zero; WIDTH], [zero; WIDTH]);
            for i in 0..WIDTH / 2 {
                let (a, b) = (rows[2 * i].0, rows[2 * i + 1].0);
                pairs[2 * i] = unsafe { _mm512_unpacklo_ps(a, b) };
                pairs[2 * i + 1] = unsafe { _mm512_unpackhi_ps(a, b) };
            }
            for k in 0..WIDTH / 4 {
                for c in 0..2 {
                    let (a, b) = (pairs[4 * k + c], pairs[4 * k + c + 2]);
                    unsafe {
                        let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
                        fours[4 * k + 2 * c] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
                        fours[4 * k + 2 * c + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
                    }
                }
            }
            for k in 0..2 {
                for c in 0..4 {
                    let (a, b) = (fours[8 * k + c], fours[8 * k + c + 4]);
                    halves[8 * k + c] = unsafe { _mm512_shuffle_f32x4::<0x88>(a, b) };
                    halves[8 * k + c + 4] = unsafe { _mm512_shuffle_f32x4::<0xdd>(a, b) };
                }
            }
            for i in 0..WIDTH / 2 {
                // Quarters 0 and 2 are in the first four vectors of each half, 1 and 3 in the last four.
                let (a, b) = (halves[i], halves[i + 8]);
                rows[i].0 = unsafe { _mm512_shuffle_f32x4::<0x88>(a, b) };
                rows[i + 8].0 = unsafe { _mm512_shuffle_f32x4::<0xdd>(a, b) };
            }
        }
    }

    /// Two registers of AVX2.
    #[derive(Clone, Copy)]
    pub struct Avx2([__m256; 2]);

    // Closures would not be compiled with the caller's instructions: each operation is a macro's loop.
    macro_rules! both {
        ($self:ident $(, $b:ident)*; $f:expr) => {{
            let mut out = $self;
            for i in 0..2 {
                out.0[i] = unsafe { $f($self.0[i] $(, $b.0[i])*) };
            }
            out
        }};
    }

    impl Simd for Avx2 {
        const MANY: bool = false;
        #[inline(always)]
        fn splat(v: f32) -> Self {
            Avx2([unsafe { _mm256_set1_ps(v) }; 2])
        }
        #[inline(always)]
        fn load(v: &[f32; WIDTH]) -> Self {
            Avx2(unsafe { [_mm256_loadu_ps(v.as_ptr()), _mm256_loadu_ps(v.as_ptr().add(8))] })
        }
        #[inline(always)]
        fn store(self, to: &mut [f32; WIDTH]) {
            unsafe {
                _mm256_storeu_ps(to.as_mut_ptr(), self.0[0]);
                _mm256_storeu_ps(to.as_mut_ptr().add(8), self.0[1]);
            }
        }
        #[inline(always)]
        fn add(self, b: Self) -> Self {
            both!(self, b; _mm256_add_ps)
        }
        #[inline(always)]
        fn sub(self, b: Self) -> Self {
            both!(self, b; _mm256_sub_ps)
        }
        #[inline(always)]
        fn mul(self, b: Self) -> Self {
            both!(self, b; _mm256_mul_ps)
        }
        #[inline(always)]
        fn div(self, b: Self) -> Self {
            both!(self, b; _mm256_div_ps)
        }
        #[inline(always)]
        fn add_mul(self, a: Self, b: Self) -> Self {
            let mut out = self;
            for i in 0..2 {
                out.0[i] = unsafe { _mm256_fmadd_ps(a.0[i], b.0[i], self.0[i]) };
            }
            out
        }
        #[inline(always)]
        fn max(self, b: Self) -> Self {
            both!(self, b; _mm256_max_ps)
        }
        #[inline(always)]
        fn min(self, b: Self) -> Self {
            both!(self, b; _mm256_min_ps)
        }
        #[inline(always)]
        fn sqrt(self) -> Self {
            both!(self; _mm256_sqrt_ps)
        }
        #[inline(always)]
        fn round(self) -> Self {
            both!(self; _mm256_round_ps::<0>)
        }
        #[inline(always)]
        fn times_power_of_two(self, n: Self) -> Self {
            let mut out = self;
            for i in 0..2 {
                unsafe {
                    let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n.0[i]), _mm256_set1_epi32(127));
                    out.0[i] = _mm256_mul_ps(self.0[i], _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)));
                }
            }
            out
        }
        #[inline(always)]
        fn step(self) -> Self {
            let mut out = self;
            for i in 0..2 {
                unsafe {
                    let positive = _mm256_cmp_ps::<_CMP_GT_OQ>(self.0[i], _mm256_setzero_ps());
                    out.0[i] = _mm256_and_ps(positive, _mm256_set1_ps(1.0));
                }
            }
            out
        }
        #[inline(always)]
        fn sum(self) -> f32 {
            unsafe {
                let v = _mm256_add_ps(self.0[0], self.0[1]);
                let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
                _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;

    use super::{Simd, WIDTH};

    /// Four registers of NEON, which every processor of this architecture has.
    #[derive(Clone, Copy)]
    pub struct Neon([float32x4_t; 4]);

    // Closures would not be compiled with the caller's instructions: each operation is a macro's loop.
    macro_rules! each {
        ($self:ident $(, $b:ident)*; $f:expr) => {{
            let mut out = $self;
            for i in 0..4 {
                out.0[i] = unsafe { $f($self.0[i] $(, $b.0[i])*) };
            }
            out
        }};
    }

    // SAFETY, for every block: NEON is part of the architecture, and loads and stores go through references to whole
    // arrays.
    impl Simd for Neon {
        const MANY: bool = false;
        #[inline(always)]
        fn splat(v: f32) -> Self {
            Neon([unsafe { vdupq_n_f32(v) }; 4])
        }
        #[inline(always)]
        fn load(v: &[f32; WIDTH]) -> Self {
            let mut out = Self::splat(0.0);
            for i in 0..4 {
                out.0[i] = unsafe { vld1q_f32(v.as_ptr().add(4 * i)) };
            }
            out
        }
        #[inline(always)]
        fn store(self, to: &mut [f32; WIDTH]) {
            for i in 0..4 {
                unsafe { vst1q_f32(to.as_mut_ptr().add(4 * i), self.0[i]) }
            }
        }
        #[inline(always)]
        fn add(self, b: Self) -> Self {
            each!(self, b; vaddq_f32)
        }
        #[inline(always)]
        fn sub(self, b: Self) -> Self {
            each!(self, b; vsubq_f32)
        }
        #[inline(always)]
        fn mul(self, b: Self) -> Self {
            each!(self, b; vmulq_f32)
        }
        #[inline(always)]
        fn div(self, b: Self) -> Self {
            each!(self, b; vdivq_f32)
        }
        #[inline(always)]
        fn add_mul(self, a: Self, b: Self) -> Self {
            let mut out = self;
            for i in 0..4 {
                out.0[i] = unsafe { vfmaq_f32(self.0[i], a.0[i], b.0[i]) };
            }
            out
        }
        #[inline(always)]
        fn max(self, b: Self) -> Self {
            each!(self, b; vmaxq_f32)
        }
        #[inline(always)]
        fn min(self, b: Self) -> Self {
            each!(self, b; vminq_f32)
        }
        #[inline(always)]
        fn sqrt(self) -> Self {
            each!(self; vsqrtq_f32)
        }
        #[inline(always)]
        fn round(self) -> Self {
            each!(self; vrndnq_f32)
        }
        #[inline(always)]
        fn times_power_of_two(self, n: Self) -> Self {
            let mut out = self;
            for i in 0..4 {
                unsafe {
                    let exponent = vaddq_s32(vcvtnq_s32_f32(n.0[i]), vdupq_n_s32(127));
                    out.0[i] = vmulq_f32(self.0[i], vreinterpretq_f32_s32(vshlq_n_s32::<23>(exponent)));
                }
            }
            out
        }
        #[inline(always)]
        fn step(self) -> Self {
            let mut out = self;
            for i in 0..4 {
                unsafe {
                    let positive = vcgtq_f32(self.0[i], vdupq_n_f32(0.0));
                    out.0[i] = vreinterpretq_f32_u32(vandq_u32(positive, vreinterpretq_u32_f32(vdupq_n_f32(1.0))));
                }
            }
            out
        }
        #[inline(always)]
        fn sum(self) -> f32 {
            let [a, b, c, d] = self.0;
            unsafe { vaddvq_f32(vaddq_f32(vaddq_f32(a, b), vaddq_f32(c, d))) }
        }
    }
}

/// Work that is compiled once for each instruction set and run on the best one that the machine has.
pub trait Job {
    /// What it gives back.
    type Output;
    /// Does the work. Implementations, and all that they call, are `inline(always)`, so that the instruction set of
    /// the caller is theirs.
    fn run<V: Simd>(self) -> Self::Output;
}

/// What the fused ops can be run with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstructionSet {
    /// AVX-512F, and for matrix products the tile registers of AMX (`ops::tiles`).
    Amx,
    /// AVX-512F.
    Avx512,
    /// AVX2 with FMA.
    Avx2,
    /// NEON, which every 64-bit Arm has.
    Neon,
    /// What the compiler makes of loops for the oldest machine of this kind.
    Portable,
}

impl InstructionSet {
    /// The best that this machine has. The variable `INCONTEXT_SIMD` asks for a lesser one, `avx512`, `avx2` or `portable`: results
    /// differ in their last digits from one to another.
    ///
    /// ```
    /// use incontext::ops::simd::InstructionSet;
    /// assert_eq!(InstructionSet::of_this_machine(), InstructionSet::of_this_machine());
    /// ```
    pub fn of_this_machine() -> Self {
        static CHOICE: OnceLock<InstructionSet> = OnceLock::new();
        *CHOICE.get_or_init(|| {
            let best = Self::best();
            let asked = match std::env::var("INCONTEXT_SIMD").unwrap_or_default().to_lowercase().as_str() {
                "avx512" => InstructionSet::Avx512,
                "avx2" => InstructionSet::Avx2,
                "portable" => InstructionSet::Portable,
                _ => best,
            };
            // A set that the machine does not have is no lesser one.
            if best.includes(asked) { asked } else { best }
        })
    }

    /// Whether a machine with these instructions has those, too.
    fn includes(self, other: Self) -> bool {
        use InstructionSet::{Amx, Avx2, Avx512, Portable};
        let order = [Portable, Avx2, Avx512, Amx];
        let place = |set| order.iter().position(|s| *s == set);
        other == Portable || self == other || place(self).is_some() && place(other) <= place(self)
    }

    #[cfg(target_arch = "x86_64")]
    fn best() -> Self {
        let has_avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        match has_avx2 {
            true if super::tiles::available() => InstructionSet::Amx,
            true if is_x86_feature_detected!("avx512f") => InstructionSet::Avx512,
            true => InstructionSet::Avx2,
            false => InstructionSet::Portable,
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn best() -> Self {
        if cfg!(target_arch = "aarch64") { InstructionSet::Neon } else { InstructionSet::Portable }
    }
}

/// Runs `job` with the best instructions of this machine ([`InstructionSet::of_this_machine`]).
#[inline]
pub fn dispatch<J: Job>(job: J) -> J::Output {
    match InstructionSet::of_this_machine() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the features that the function is compiled for were found on this machine.
        InstructionSet::Amx | InstructionSet::Avx512 => unsafe { run_avx512(job) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        InstructionSet::Avx2 => unsafe { run_avx2(job) },
        #[cfg(target_arch = "aarch64")]
        InstructionSet::Neon => job.run::<arm::Neon>(),
        _ => job.run::<Portable>(),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
fn run_avx512<J: Job>(job: J) -> J::Output {
    job.run::<x86::Avx512>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<J: Job>(job: J) -> J::Output {
    job.run::<x86::Avx2>()
}
