//! Matrix products in the precision of `f32` on tile registers that multiply bfloat16: Intel's AMX, where the machine and
//! the system have it.
//!
//! A tile register multiplies 16 x 32 by 32 x 16 numbers of 8 significant bits in as many cycles as the vector unit needs
//! for a sixteenth of that in `f32`. An `f32` has 24 significant bits: it is the sum of three such numbers, exactly,
//!
//! ```text
//! a = a₀ + a₁ + a₂        |a₁| ≤ 2⁻⁸ |a|, |a₂| ≤ 2⁻¹⁶ |a|
//! a b = a₀b₀ + (a₀b₁ + a₁b₀) + (a₀b₂ + a₁b₁ + a₂b₀) + O(2⁻²⁴ |a b|)
//! ```
//!
//! so that six products, summed in `f32`, err no more than the roundings of an `f32` product do (tests/ops.rs measures
//! both against double precision), and cost 6/16. What is below 2⁻¹¹⁰ or so loses bits, since the registers know no
//! subnormal numbers; infinities become NaN.
//!
//! A right factor that stays the same for many products is split and laid out once ([`pack`]); the others are split block
//! by block as they are used. The compiler uses no tile registers of its own, so what is in them stays from one piece of
//! assembly to the next; a product sets them up and releases them.

use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::RefCell;
use std::sync::OnceLock;

use super::gemm::{Left, Right, Start};
use super::simd::x86::Avx512;
use super::simd::{Simd, WIDTH};

/// Terms of a sum in a tile.
const TERMS: usize = 2 * WIDTH;
/// Pieces of an `f32`.
const PIECES: usize = 3;
/// Pairs of pieces in the three tiles of a block of 16 rows and [`TERMS`] terms.
const BLOCK: usize = PIECES * WIDTH * WIDTH;

/// Terms of A that are split together. More would cost the nearest cache, fewer read and write C more often.
const NEAR: usize = 256;
/// Terms of a sum whose tiles of B are kept at a time.
const FAR: usize = 1152;
/// Pairs of pieces of B that are kept at a time: they stay in the second-level cache.
const ROOM: usize = 1 << 18;

/// Whether this machine has tile registers for bfloat16 and the system lets this process use them.
pub(super) fn available() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| in_hardware() && permitted())
}

fn in_hardware() -> bool {
    if !is_x86_feature_detected!("avx512f") || __cpuid(0).eax < 7 {
        return false;
    }
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    let features = __cpuid_count(7, 0).edx;
    features & BF16 != 0 && features & TILE != 0
}

/// Asks Linux for the tiles' state; the answer is one for all threads, now and later.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: the call changes nothing but what later instructions of this process may do. A system that does not know it says
    // so.
    unsafe {
        asm!("syscall", inlateout("rax") result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// What `LDTILECFG` reads: the rows and the bytes of a row of every register.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// C is in registers 0 to 3, A in 4 and 5, B in 6 and 7. Of two rows of tiles the second one (C in 2 and 3, A in 5) has
    /// `second` rows; of one row of tiles, all have `first`.
    fn new(first: usize, second: usize) -> Shapes {
        let (first, second) = (first as u8, second as u8);
        let mut shapes = Shapes { palette: 1, start: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
        shapes.bytes[..8].fill(64);
        shapes.rows[..8].copy_from_slice(&match second {
            0 => [first, first, first, first, first, first, 16, 16],
            _ => [first, first, second, second, first, second, 16, 16],
        });
        shapes
    }

    /// # Safety
    /// [`available`] must have said yes.
    unsafe fn load(&self) {
        // SAFETY: the caller's; palette 1 has eight registers of up to 16 rows of 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) self, options(nostack, readonly, preserves_flags)) }
    }
}

/// Floats that [`pack`] fills for a matrix of `k` rows and `n` columns.
pub(super) fn packed_len(k: usize, n: usize) -> usize {
    k.div_ceil(TERMS) * n.div_ceil(WIDTH) * BLOCK
}

/// Splits a matrix `[k, n]` and lays it out in tiles. Columns beyond the last are zero.
pub(super) fn pack(k: usize, n: usize, from: &[f32], to: &mut [f32]) {
    assert!(available() && from.len() >= k * n && to.len() >= packed_len(k, n), "a matrix is too small");
    let deep = k.div_ceil(TERMS);
    // SAFETY: AVX-512 and tiles go together, and the sizes have been checked.
    unsafe {
        let to = to.as_mut_ptr().cast::<u32>();
        SplitRight { from: from.as_ptr(), stride: n, k, n, to, step: deep * BLOCK, row: 0 }.finish();
    }
}

/// [`super::gemm::gemm`], which has checked all sizes but that of a B in tiles, for a left factor whose rows or columns have their entries one after the
/// other.
pub(super) fn gemm(
    [m, columns, k]: [usize; 3],
    a: Left<'_>,
    b: Right<'_>,
    start: Start<'_>,
    c: &mut [f32],
    stride: usize,
) {
    thread_local! {
        static MEMORY: RefCell<Vec<Line>> = const { RefCell::new(Vec::new()) };
    }
    assert!(!b.tiles || b.data.len() >= packed_len(k, columns), "B is too small");
    let product = Product { m, tiles: columns / WIDTH, k, a, b, start, c: c.as_mut_ptr(), stride };
    // SAFETY: AVX-512 and tiles go together; `super::gemm::gemm` has checked that all rows, terms and columns are inside the
    // slices.
    MEMORY.with_borrow_mut(|memory| unsafe { product.run(memory) });
}

/// A line of the cache.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; WIDTH]);

struct Product<'a> {
    m: usize,
    /// Columns of C, in tiles.
    tiles: usize,
    k: usize,
    a: Left<'a>,
    b: Right<'a>,
    start: Start<'a>,
    c: *mut f32,
    stride: usize,
}

/// Where a block of up to two rows of tiles of A is: its first row, its first term, and one after its last.
type Place = [usize; 3];

impl Product<'_> {
    #[target_feature(enable = "avx512f")]
    unsafe fn run(self, memory: &mut Vec<Line>) {
        let far = equal(self.k, FAR).next_multiple_of(TERMS);
        let near = equal(far.min(self.k), NEAR).next_multiple_of(TERMS);
        // Columns of B whose tiles are kept at a time: all, if they are laid out already.
        let of_column = far / TERMS * BLOCK;
        let wide = if self.b.tiles { self.tiles } else { self.tiles.min((ROOM / of_column).next_multiple_of(2)) };
        let left = 2 * (near / TERMS) * BLOCK;
        let right = if self.b.tiles { 0 } else { wide * of_column };
        let lines = (2 * left + right) / WIDTH;
        if memory.len() < lines {
            memory.resize(lines, Line([0; WIDTH]));
        }
        let memory: *mut u32 = memory.as_mut_ptr().cast();
        let whole = Shapes::new(WIDTH, WIDTH);
        // SAFETY: the caller's: rows, terms and columns are inside the slices; tiles are inside `memory` or inside a right factor
        // that was laid out.
        unsafe {
            whole.load();
            for from in (0..self.k).step_by(far) {
                let end = self.k.min(from + far);
                for column in (0..self.tiles).step_by(wide) {
                    let columns = column..self.tiles.min(column + wide);
                    self.columns(columns, [from, end], near, [memory, memory.add(left)], memory.add(2 * left));
                    whole.load();
                }
            }
            asm!("tilerelease", options(nostack, nomem, preserves_flags));
        }
    }

    /// All rows of some columns of tiles of C, of some terms.
    #[target_feature(enable = "avx512f")]
    unsafe fn columns(
        &self,
        columns: std::ops::Range<usize>,
        [from, end]: [usize; 2],
        near: usize,
        left: [*mut u32; 2],
        right: *mut u32,
    ) {
        let Product { m, b, start, .. } = *self;
        // The tiles of B's first column, and from a column to the next.
        let (b_tiles, b_step) = match b.tiles {
            true => {
                let step = self.k.div_ceil(TERMS) * BLOCK;
                // SAFETY: the caller's.
                let tiles = unsafe { b.data.as_ptr().cast::<u32>().add(columns.start * step + from / TERMS * BLOCK) };
                (tiles, step)
            }
            false => (right.cast_const(), (end - from).div_ceil(TERMS) * BLOCK),
        };
        let next = |[row, _, q]: Place| match q < end {
            true => [row, q, end.min(q + near)],
            false => [row + TERMS, from, end.min(from + near)],
        };
        // SAFETY: the caller's.
        unsafe {
            // Two columns of tiles of B, where they are not laid out already.
            let right = |[row, p, q]: Place, j: usize| {
                let n = if b.tiles || row > 0 || p >= end { 0 } else { WIDTH * 2.min(columns.end - j) };
                SplitRight {
                    from: b.data.as_ptr().wrapping_add(p * b.step + j * WIDTH),
                    stride: b.step,
                    k: q - p,
                    n,
                    to: right.wrapping_add((j - columns.start) * b_step + (p - from) / TERMS * BLOCK),
                    step: b_step,
                    row: 0,
                }
            };
            let mut place = [0, from, end.min(from + near)];
            let mut side = 0;
            let mut feed = Feed {
                left: self.left(place, left[side]),
                left_rate: Rate::new(0, 1),
                right: right(place, columns.start),
                right_rate: Rate::new(0, 1),
                halves: [[Avx512(_mm512_setzero_ps()); WIDTH]; 2],
            };
            feed.left.finish(&mut feed.halves);
            feed.right.finish();
            while place[0] < m {
                let [row, p, q] = place;
                let rows = TERMS.min(m - row);
                if rows < TERMS && p == from {
                    Shapes::new(rows.min(WIDTH), rows.saturating_sub(WIDTH)).load();
                }
                let later = next(place);
                let deep = (q - p).div_ceil(TERMS);
                let steps = deep * if rows > WIDTH { 6 } else { 3 };
                feed.left = self.left(later, left[1 - side]);
                feed.left_rate = Rate::new(feed.left.units(), steps * columns.len().div_ceil(2));
                let block = Block { rows, deep, a: left[side], stride: self.stride, add: start.add || p > 0 };
                for j in columns.clone().step_by(2) {
                    let two = j + 2 <= columns.end;
                    feed.right = match two && j + 2 < columns.end {
                        true => right(place, j + 2),
                        false => right(later, columns.start),
                    };
                    feed.right_rate = Rate::new(feed.right.units(), steps);
                    let bias = start.bias.filter(|_| p == 0).map(|bias| bias[j * WIDTH..].as_ptr());
                    let b_tiles = b_tiles.add((j - columns.start) * b_step + (p - from) / TERMS * BLOCK);
                    let c = self.c.add(row * self.stride + j * WIDTH);
                    match (rows > WIDTH, two) {
                        (true, true) => two_by_two(&block, c, b_tiles, b_step, bias, &mut feed),
                        (true, false) => two_by_one(&block, c, b_tiles, b_step, bias, &mut feed),
                        (false, true) => one_by_two(&block, c, b_tiles, b_step, bias, &mut feed),
                        (false, false) => one_by_one(&block, c, b_tiles, b_step, bias, &mut feed),
                    }
                    feed.right.finish();
                }
                feed.left.finish(&mut feed.halves);
                side = 1 - side;
                place = later;
            }
        }
    }

    /// What splits a block of A.
    fn left(&self, [row, p, q]: Place, to: *mut u32) -> SplitLeft {
        let Left { data, row: stride, step } = self.a;
        SplitLeft {
            from: data.as_ptr().wrapping_add(row * stride + p * step),
            stride: if step == 1 { stride } else { step },
            transposed: step != 1,
            rows: TERMS.min(self.m.saturating_sub(row)),
            k: q - p,
            to,
            done: 0,
        }
    }
}

/// The size of equal blocks of at most `most`.
fn equal(all: usize, most: usize) -> usize {
    all.div_ceil(all.div_ceil(most))
}

/// Splitting that is done between products, a few units after every few of them: the vector unit is idle then, and there is
/// room for no more instructions behind the products that are waiting.
struct Feed {
    left: SplitLeft,
    left_rate: Rate,
    right: SplitRight,
    right_rate: Rate,
    halves: Halves,
}

impl Feed {
    /// # Safety
    /// [`SplitLeft::unit`]'s and [`SplitRight::unit`]'s.
    // It stands behind every few products of every kernel: one copy is as fast as fifteen.
    #[inline(never)]
    #[target_feature(enable = "avx512f")]
    unsafe fn step(&mut self) {
        // SAFETY: the caller's.
        unsafe {
            for _ in 0..self.left_rate.step() {
                self.left.unit(&mut self.halves);
            }
            for _ in 0..self.right_rate.step() {
                self.right.unit();
            }
        }
    }
}

/// Units that are spread evenly over steps, never more than there are.
struct Rate {
    units: usize,
    steps: usize,
    due: usize,
    left: usize,
}

impl Rate {
    fn new(units: usize, steps: usize) -> Rate {
        Rate { units, steps, due: 0, left: units }
    }

    /// The units of the next step.
    #[inline]
    fn step(&mut self) -> usize {
        self.due += self.units;
        let mut now = 0;
        while self.due >= self.steps && self.left > 0 {
            self.due -= self.steps;
            self.left -= 1;
            now += 1;
        }
        now
    }
}

/// Up to 32 rows of C, and of A split.
struct Block {
    rows: usize,
    /// Tiles one after the other along a sum.
    deep: usize,
    a: *const u32,
    stride: usize,
    add: bool,
}

impl Block {
    /// Adds the bias to C's rows where the sums begin with those: a register is loaded but once.
    #[target_feature(enable = "avx512f")]
    unsafe fn add_bias(&self, c: *mut f32, columns: usize, bias: Option<*const f32>) {
        let Some(from) = bias.filter(|_| self.add) else { return };
        // SAFETY: the caller's.
        unsafe {
            for j in 0..columns {
                let bias = _mm512_loadu_ps(from.add(j * WIDTH));
                for i in 0..self.rows {
                    let c = c.add(i * self.stride + j * WIDTH);
                    _mm512_storeu_ps(c, _mm512_add_ps(_mm512_loadu_ps(c), bias));
                }
            }
        }
    }
}

/// A tile of A (r8, and r9 for the second row of tiles) or B (r10, and r11 for the second column) into a register.
macro_rules! load {
    ($tile:literal, $base:literal, $piece:literal) => {
        concat!("tileloadd tmm", $tile, ", [", $base, " + rcx*1 + 1024*", $piece, "]")
    };
}
macro_rules! multiply {
    ($c:literal, $a:literal, $b:literal) => {
        concat!("tdpbf16ps tmm", $c, ", tmm", $a, ", tmm", $b)
    };
}

/// A kernel for a block of C: how many of its columns of tiles there are, its registers and where they are in C, and the
/// products of a tile of the sum, small ones first; a tile stays in its register for as many of them as can be.
macro_rules! kernel {
    ($name:ident, $columns:literal, [$(($tile:literal, $base:literal, $offset:literal)),*], [$([$($product:expr),*]),*]) => {
        /// # Safety
        /// Tiles and C must hold what the sizes say, and the registers have the shapes of this block.
        #[target_feature(enable = "avx512f")]
        unsafe fn $name(
            block: &Block,
            c: *mut f32,
            b: *const u32,
            b_step: usize,
            bias: Option<*const f32>,
            feed: &mut Feed,
        ) {
            // SAFETY: the caller's.
            unsafe {
                block.add_bias(c, $columns, bias);
                let c_next = c.wrapping_add(WIDTH * block.stride);
                let line = 4 * block.stride;
                match bias {
                    Some(bias) if !block.add => asm!(
                        $(concat!("tileloadd tmm", $tile, ", [r8 + rcx*1 + ", $offset, "]"),)*
                        in("r8") bias, in("rcx") 0_usize, options(nostack, readonly, preserves_flags)
                    ),
                    _ if block.add => asm!(
                        $(concat!("tileloadd tmm", $tile, ", [", $base, " + rcx*1 + ", $offset, "]"),)*
                        in("r8") c, in("r9") c_next, in("rcx") line, options(nostack, readonly, preserves_flags)
                    ),
                    _ => asm!($(concat!("tilezero tmm", $tile),)* options(nostack, nomem, preserves_flags)),
                }
                let (mut a, mut b) = (block.a, b);
                let mut a_next = a.wrapping_add(block.deep * BLOCK);
                let mut b_next = b.wrapping_add(b_step);
                for _ in 0..block.deep {
                    $(
                        asm!(
                            $($product,)*
                            in("r8") a, in("r9") a_next, in("r10") b, in("r11") b_next, in("rcx") 64_usize,
                            options(nostack, readonly, preserves_flags)
                        );
                        feed.step();
                    )*
                    a = a.wrapping_add(BLOCK);
                    a_next = a_next.wrapping_add(BLOCK);
                    b = b.wrapping_add(BLOCK);
                    b_next = b_next.wrapping_add(BLOCK);
                }
                asm!(
                    $(concat!("tilestored [", $base, " + rcx*1 + ", $offset, "], tmm", $tile),)*
                    in("r8") c, in("r9") c_next, in("rcx") line, options(nostack, preserves_flags)
                );
            }
        }
    };
}

kernel! { two_by_two, 2, [(0, "r8", 0), (1, "r8", 64), (2, "r9", 0), (3, "r9", 64)], [
    [load!(6, "r10", 0), load!(4, "r8", 2), multiply!(0, 4, 6), load!(7, "r11", 0), multiply!(1, 4, 7),
        load!(5, "r9", 2), multiply!(2, 5, 6), multiply!(3, 5, 7)],
    [load!(4, "r8", 1), multiply!(0, 4, 6), multiply!(1, 4, 7), load!(5, "r9", 1), multiply!(2, 5, 6), multiply!(3, 5, 7)],
    [load!(4, "r8", 0), multiply!(0, 4, 6), multiply!(1, 4, 7), load!(5, "r9", 0), multiply!(2, 5, 6), multiply!(3, 5, 7)],
    [load!(6, "r10", 2), multiply!(0, 4, 6), multiply!(2, 5, 6), load!(7, "r11", 2), multiply!(1, 4, 7), multiply!(3, 5, 7)],
    [load!(6, "r10", 1), multiply!(0, 4, 6), multiply!(2, 5, 6), load!(7, "r11", 1), multiply!(1, 4, 7), multiply!(3, 5, 7)],
    [load!(4, "r8", 1), multiply!(0, 4, 6), multiply!(1, 4, 7), load!(5, "r9", 1), multiply!(2, 5, 6), multiply!(3, 5, 7)]
] }
kernel! { two_by_one, 1, [(0, "r8", 0), (2, "r9", 0)], [
    [load!(6, "r10", 0), load!(4, "r8", 2), multiply!(0, 4, 6), load!(5, "r9", 2), multiply!(2, 5, 6),
        load!(4, "r8", 1), multiply!(0, 4, 6), load!(5, "r9", 1), multiply!(2, 5, 6)],
    [load!(7, "r10", 1), multiply!(0, 4, 7), multiply!(2, 5, 7),
        load!(4, "r8", 0), multiply!(0, 4, 7), load!(5, "r9", 0), multiply!(2, 5, 7)],
    [multiply!(0, 4, 6), multiply!(2, 5, 6), load!(6, "r10", 2), multiply!(0, 4, 6), multiply!(2, 5, 6)]
] }
kernel! { one_by_two, 2, [(0, "r8", 0), (1, "r8", 64)], [
    [load!(6, "r10", 0), load!(4, "r8", 2), multiply!(0, 4, 6), load!(7, "r11", 0), multiply!(1, 4, 7),
        load!(4, "r8", 1), multiply!(0, 4, 6), multiply!(1, 4, 7)],
    [load!(5, "r8", 0), multiply!(0, 5, 6), multiply!(1, 5, 7),
        load!(6, "r10", 1), multiply!(0, 4, 6), load!(7, "r11", 1), multiply!(1, 4, 7)],
    [multiply!(0, 5, 6), multiply!(1, 5, 7),
        load!(6, "r10", 2), multiply!(0, 5, 6), load!(7, "r11", 2), multiply!(1, 5, 7)]
] }
kernel! { one_by_one, 1, [(0, "r8", 0)], [
    [load!(6, "r10", 0), load!(4, "r8", 2), multiply!(0, 4, 6), load!(4, "r8", 1), multiply!(0, 4, 6)],
    [load!(7, "r10", 1), multiply!(0, 4, 7), load!(5, "r8", 0), multiply!(0, 5, 7)],
    [multiply!(0, 5, 6), load!(7, "r10", 2), multiply!(0, 5, 7)]
] }

/// The pieces of two vectors: in every pair the first vector's entry below the second's.
// Loops over indices: iterators' closures would not be compiled with the caller's instructions.
#[allow(clippy::needless_range_loop)]
#[inline]
#[target_feature(enable = "avx512f")]
fn pieces(low: __m512, high: __m512) -> [__m512i; PIECES] {
    // Half of the last bit that a piece has, and the bits that it has.
    let (half, kept) = (_mm512_set1_epi32(0x8000), _mm512_set1_epi32(0xffff_0000_u32 as i32));
    let (mut rest, mut bits) = ([low, high], [_mm512_setzero_si512(); 2]);
    let mut out = [_mm512_setzero_si512(); PIECES];
    for s in 0..PIECES {
        for i in 0..2 {
            bits[i] = _mm512_castps_si512(rest[i]);
            // What is left for the last piece has 8 bits.
            if s + 1 < PIECES {
                bits[i] = _mm512_add_epi32(bits[i], half);
                rest[i] = _mm512_sub_ps(rest[i], _mm512_castsi512_ps(_mm512_and_si512(bits[i], kept)));
            }
        }
        // (kept & high) | low, in one instruction.
        out[s] = _mm512_ternarylogic_epi32::<0xea>(kept, bits[1], _mm512_srli_epi32::<16>(bits[0]));
    }
    out
}

/// The first `count` entries.
#[inline]
fn mask(count: usize) -> u16 {
    ((1_u32 << count.min(WIDTH)) - 1) as u16
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn put(row: *mut u32, [first, second, third]: [__m512i; PIECES]) {
    // SAFETY: the caller's; the tiles of the pieces are one after the other.
    unsafe {
        _mm512_storeu_si512(row.cast(), first);
        _mm512_storeu_si512(row.add(WIDTH * WIDTH).cast(), second);
        _mm512_storeu_si512(row.add(2 * WIDTH * WIDTH).cast(), third);
    }
}

/// Splits up to two columns of tiles of B, or more, a row of a tile at a time: of a column the tiles are one after the other along
/// the sum, and row r of a tile has the terms r and r + 16.
struct SplitRight {
    from: *const f32,
    stride: usize,
    k: usize,
    n: usize,
    to: *mut u32,
    /// From a column of tiles to the next.
    step: usize,
    /// The next row, counted through all tiles of the sum.
    row: usize,
}

impl SplitRight {
    fn units(&self) -> usize {
        if self.n == 0 { 0 } else { self.k.div_ceil(TERMS) * WIDTH }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn finish(&mut self) {
        while self.row < self.units() {
            // SAFETY: the caller's.
            unsafe { self.unit() }
        }
    }

    /// # Safety
    /// `from` must have `k` rows of `n` entries, `to` room for their tiles; there must be a row left.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn unit(&mut self) {
        let (d, r) = (self.row / WIDTH, self.row % WIDTH);
        let p = d * TERMS + r;
        let from = self.from.wrapping_add(p * self.stride);
        let (has_low, has_high) = (p < self.k, p + WIDTH < self.k);
        // SAFETY: the caller's.
        unsafe {
            let to = self.to.add(d * BLOCK + r * WIDTH);
            let mut column = 0;
            while column < self.n {
                let entries = mask(self.n - column);
                let mut rows = [_mm512_setzero_ps(); 2];
                if has_low {
                    rows[0] = _mm512_maskz_loadu_ps(entries, from.add(column));
                }
                if has_high {
                    rows[1] = _mm512_maskz_loadu_ps(entries, from.add(WIDTH * self.stride + column));
                }
                put(to.add(column / WIDTH * self.step), pieces(rows[0], rows[1]));
                column += WIDTH;
            }
        }
        self.row += 1;
    }
}

/// Splits up to two rows of tiles of A, a little at a time: of a row the tiles are one after the other along the sum, and a row of a
/// tile has the terms 0 and 16, 1 and 17, ….
struct SplitLeft {
    from: *const f32,
    /// From a row to the next, or from a column where the columns have their entries one after the other.
    stride: usize,
    transposed: bool,
    rows: usize,
    k: usize,
    to: *mut u32,
    /// Units that are done.
    done: usize,
}

/// Units of a transposed tile: its two halves, and its pieces in two parts.
const STEPS: usize = 4;

impl SplitLeft {
    /// Rows, or steps of transpositions.
    fn units(&self) -> usize {
        if self.transposed { STEPS * self.rows.div_ceil(WIDTH) * self.k.div_ceil(TERMS) } else { self.rows }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn finish(&mut self, halves: &mut Halves) {
        while self.done < self.units() {
            // SAFETY: the caller's.
            unsafe { self.unit(halves) }
        }
    }

    /// # Safety
    /// `from` must have `rows` rows of `k` entries, `to` room for their tiles; there must be a unit left.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn unit(&mut self, halves: &mut Halves) {
        let unit = self.done;
        self.done += 1;
        // SAFETY: the caller's.
        unsafe { if self.transposed { self.step(unit, halves) } else { self.row(unit) } }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn row(&self, i: usize) {
        // SAFETY: the caller's.
        unsafe {
            let mut from = self.from.add(i * self.stride);
            let mut to = self.to.add(i / WIDTH * self.k.div_ceil(TERMS) * BLOCK + i % WIDTH * WIDTH);
            let mut left = self.k;
            while left >= TERMS {
                put(to, pieces(_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(WIDTH))));
                from = from.add(TERMS);
                to = to.add(BLOCK);
                left -= TERMS;
            }
            if left > 0 {
                let low = _mm512_maskz_loadu_ps(mask(left), from);
                let high = _mm512_maskz_loadu_ps(mask(left.saturating_sub(WIDTH)), from.wrapping_add(WIDTH));
                put(to, pieces(low, high));
            }
        }
    }

    // Loops over indices: iterators' closures would not be compiled with the caller's instructions.
    #[allow(clippy::needless_range_loop)]
    #[target_feature(enable = "avx512f")]
    unsafe fn step(&self, unit: usize, halves: &mut Halves) {
        let deep = self.k.div_ceil(TERMS);
        let (step, d, i) = (unit % STEPS, unit / STEPS % deep, unit / STEPS / deep * WIDTH);
        // SAFETY: the caller's.
        unsafe {
            if let Some(half) = halves.get_mut(step) {
                let from = self.from.wrapping_add((d * TERMS + step * WIDTH) * self.stride + i);
                let (count, entries) = (self.k.saturating_sub(d * TERMS + step * WIDTH), mask(self.rows - i));
                for r in 0..WIDTH {
                    half[r].0 = match r < count {
                        true => _mm512_maskz_loadu_ps(entries, from.wrapping_add(r * self.stride)),
                        false => _mm512_setzero_ps(),
                    };
                }
                Avx512::transpose(half);
            } else {
                let to = self.to.add((i / WIDTH * deep + d) * BLOCK);
                let from = (step - 2) * (WIDTH / 2);
                for r in from..from + WIDTH / 2 {
                    put(to.add(r * WIDTH), pieces(halves[0][r].0, halves[1][r].0));
                }
            }
        }
    }
}

/// A tile's transposed halves.
type Halves = [[Avx512; WIDTH]; 2];
