//! C = A B (+ C) (+ bias) for the small and narrow matrices of the training engine, in `f32`.
//!
//! A register tile of C is kept over the whole sum. A is read entry by entry, in either order, so that A and Aᵀ cost
//! the same; B is read a vector at a time, from a matrix as it is or from panels of [`PANEL`] columns ([`pack`]), which
//! keep what the tile needs in a few cache lines.

use super::simd::{self, InstructionSet, Job, Simd, WIDTH, dispatch, prefetch};
#[cfg(target_arch = "x86_64")]
use super::tiles;

/// Columns of a panel of B.
pub const PANEL: usize = 2 * WIDTH;
/// Columns of a tile of three vectors, which may begin in the middle of a panel.
const TRIPLE: usize = 3 * WIDTH;

/// The left factor: entry (i, p) is `data[i * row + p * step]`.
#[derive(Clone, Copy)]
pub struct Left<'a> {
    /// The entries.
    pub data: &'a [f32],
    /// From a row of C to the next.
    pub row: usize,
    /// From a term of the sum to the next; not 0, unless there is one term.
    pub step: usize,
}

/// The right factor: entry (p, j) is `data[p * step + (j / PANEL) * panel + j % PANEL]`.
#[derive(Clone, Copy)]
pub struct Right<'a> {
    /// The entries.
    pub data: &'a [f32],
    /// From a term of the sum to the next.
    pub step: usize,
    /// From a panel of columns to the next, at least [`PANEL`].
    pub panel: usize,
    /// Whether it is what [`pack`] makes on a machine with tile registers ([`super::tiles`]), which has other places.
    pub(super) tiles: bool,
}

impl<'a> Right<'a> {
    /// A row-major matrix with rows `stride` apart.
    pub fn rows(data: &'a [f32], stride: usize) -> Self {
        Right { data, step: stride, panel: PANEL, tiles: false }
    }

    /// What [`pack`] made of a matrix of `k` rows and `n` columns.
    pub fn packed(data: &'a [f32], k: usize, n: usize) -> Self {
        Right { data, step: PANEL, panel: PANEL * k, tiles: on_tiles(k, n) }
    }
}

/// What the sums begin with.
#[derive(Clone, Copy)]
pub struct Start<'a> {
    /// A vector added to every row.
    pub bias: Option<&'a [f32]>,
    /// Whether to add to what C holds.
    pub add: bool,
}

impl Start<'_> {
    /// Nothing.
    pub const ZERO: Start<'static> = Start { bias: None, add: false };
    /// C itself.
    pub const ADD: Start<'static> = Start { bias: None, add: true };
}

/// Terms of the sum in a block: enough that reading and writing C is nothing beside them, few enough that what a panel of
/// tiles reads of B stays close.
const BLOCK: usize = 384;

/// Terms in a block of a panel that is gathered, or of more than one panel: it stays in the nearest cache.
const NEAR: usize = 128;

/// From a row of B to the next, when a block of it is gathered before it is used.
const FAR: usize = 512;
/// Tiles one below the other that pay for that.
const GATHER: usize = 4;

/// C (m rows, `stride` apart, n columns) = start + A B with k terms, for `[m, n, k]`. Columns of C up to the next multiple of
/// [`WIDTH`] are written too; B and the bias must have them.
///
/// # Panics
/// If a slice is shorter than the sizes say, or a step or a panel is shorter than its field says.
pub fn gemm(size: [usize; 3], a: Left<'_>, b: Right<'_>, start: Start<'_>, c: &mut [f32], stride: usize) {
    product(size, a, b, start, c, stride, None);
}

/// C = (A B) ∘ F, as [`gemm`] from zero, with the factors F where C has its entries.
///
/// # Panics
/// As [`gemm`].
pub fn gemm_times(size: [usize; 3], a: Left<'_>, b: Right<'_>, factors: &[f32], c: &mut [f32], stride: usize) {
    product(size, a, b, Start::ZERO, c, stride, Some(factors));
}

fn product(
    [m, n, k]: [usize; 3],
    a: Left<'_>,
    b: Right<'_>,
    start: Start<'_>,
    c: &mut [f32],
    stride: usize,
    factors: Option<&[f32]>,
) {
    if m == 0 || n == 0 {
        return;
    }
    let columns = n.next_multiple_of(WIDTH);
    let last = columns - 1;
    assert!(c.len() > (m - 1) * stride + last && (m == 1 || stride >= columns), "C is too small");
    assert!(start.bias.is_none_or(|bias| bias.len() >= columns), "the bias is too short");
    assert!(factors.is_none_or(|f| f.len() > (m - 1) * stride + last), "the factors are too few");
    if k > 0 {
        assert!(k == 1 || a.step > 0, "A has no step from a term to the next");
        assert!(columns <= PANEL || b.panel >= PANEL, "B's panels overlap");
        assert!(a.data.len() > (m - 1) * a.row + (k - 1) * a.step, "A is too small");
        let end = (k - 1) * b.step + last / PANEL * b.panel + last % PANEL;
        // What is in tiles has other places, which are checked there.
        assert!(b.tiles || b.data.len() > end, "B is too small");
        #[cfg(target_arch = "x86_64")]
        if b.tiles || m >= WIDE && on_tiles(k, columns) {
            let rows: Vec<f32>;
            let a = if a.step == 1 || a.row == 1 {
                a
            } else {
                rows = (0..m * k).map(|e| a.data[e / k * a.row + e % k * a.step]).collect();
                Left { data: &rows, row: k, step: 1 }
            };
            tiles::gemm([m, columns, k], a, b, start, c, stride);
            if let Some(factors) = factors {
                dispatch(Times { m, vectors: columns / WIDTH, c, stride, factors });
            }
            return;
        }
    }
    dispatch(Gemm { m, columns, k, a, b, start, c, stride, factors });
}

/// Rows and columns of a right factor from which on tile registers ([`super::tiles`]) are faster: splitting a row of the left one
/// costs the same however few columns it meets, and another process on the same core takes more from tiles than from vectors.
const WIDE: usize = 128;

/// Whether products with a right factor of `k` rows and `n` columns go through tile registers.
fn on_tiles(k: usize, n: usize) -> bool {
    cfg!(target_arch = "x86_64") && k.min(n) >= WIDE && InstructionSet::of_this_machine() == InstructionSet::Amx
}

struct Gemm<'a> {
    m: usize,
    columns: usize,
    k: usize,
    a: Left<'a>,
    b: Right<'a>,
    start: Start<'a>,
    c: &'a mut [f32],
    stride: usize,
    factors: Option<&'a [f32]>,
}

impl Job for Gemm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd>(self) {
        if V::MANY {
            self.panels::<V, 8, 2>();
        } else {
            self.panels::<V, 4, 1>();
        }
    }
}

impl Gemm<'_> {
    #[inline(always)]
    fn panels<V: Simd, const M: usize, const N: usize>(mut self) {
        let Gemm { m, columns, k, b, .. } = self;
        // Where rows of B are far apart and many tiles read them, a block of one or two panels is gathered first: tiles would wait
        // for a page at every row.
        let gather = N == 2 && b.step >= FAR && m >= GATHER * M;
        let mut block = if gather { Some([[0.0; 2 * PANEL]; NEAR]) } else { None };
        // Tiles of six or four rows by four vectors have the fewest loads a multiply-add: of a processor's time that another
        // thread has a share in, its loads and the decoding of its instructions get less than its multiply-adds do.
        let square = N == 2 && m > M;
        let mut j = 0;
        while j < columns {
            let width = match columns - j {
                left if square && left >= 2 * PANEL => 2 * PANEL,
                // As many loads a multiply-add as the square ones, nearly, if three vectors leave no single one.
                left if N == 2 && left >= TRIPLE && left != 2 * PANEL => TRIPLE,
                left if N == 2 && left >= PANEL => PANEL,
                _ => WIDTH,
            };
            // A panel's rows of C, or more than a panel of B, stay close while blocks are summed.
            let most = if square && width > PANEL || gather { NEAR } else { BLOCK };
            let mut from = 0;
            loop {
                // Blocks of equal size: a short one would read and write C for little. To divide takes as long as a row of a tile.
                let left = k - from;
                let terms = if left > most { left.div_ceil(left.div_ceil(most)) } else { left };
                let next = match from + terms {
                    next if next < k => [j, next],
                    _ => [j + width, 0],
                };
                self.panel::<V, M, N>([j, width], [from, terms], next, &mut block);
                from += terms;
                if from >= k {
                    break;
                }
            }
            j += width;
        }
    }

    /// Adds `terms` terms, from the `from`-th on, to `width` columns of C, from the `j`-th on. What the next panel reads of B begins
    /// at the column and the term of `next`, and is asked for meanwhile: while all rows pass by a panel there is time for that.
    #[inline(always)]
    fn panel<V: Simd, const M: usize, const N: usize>(
        &mut self,
        [j, width]: [usize; 2],
        [from, terms]: [usize; 2],
        next: [usize; 2],
        block: &mut Option<[[f32; 2 * PANEL]; NEAR]>,
    ) {
        let Gemm { m, k, a, b, start, stride, factors, .. } = *self;
        let panel = j / PANEL * b.panel + j % PANEL;
        let mut right = b.data.as_ptr().wrapping_add(from * b.step + panel);
        let (mut right_step, mut right_panel) = (b.step, b.panel);
        if let Some(block) = block {
            for (p, to) in block.iter_mut().enumerate().take(terms) {
                for (q, to) in to[..width].chunks_mut(PANEL).enumerate() {
                    to.copy_from_slice(&b.data[(from + p) * b.step + panel + q * b.panel..][..to.len()]);
                }
            }
            (right, right_step, right_panel) = (block.as_ptr().cast(), 2 * PANEL, PANEL);
        }
        let bias = match start.bias {
            Some(bias) if from == 0 => bias[j..].as_ptr(),
            _ => std::ptr::null(),
        };
        let wide = width == 2 * PANEL;
        // Rows of the next panel that are asked for with every tile.
        let (next, each) = if wide && next[0] < self.columns {
            let at = next[1] * b.step + next[0] / PANEL * b.panel + next[0] % PANEL;
            (b.data.as_ptr().wrapping_add(at), (terms * 6).div_ceil(m))
        } else {
            (std::ptr::null(), 0)
        };
        let mut i = 0;
        while i < m {
            if each > 0 {
                let first = i / 6 * each;
                for p in first..terms.min(first + each) {
                    for line in 0..4 {
                        prefetch::<true>(next.wrapping_add(p * b.step + line / 2 * b.panel + line % 2 * WIDTH));
                    }
                }
            }
            let height = match m - i {
                _ if !wide => M,
                // So that no row is computed for nothing, if their number is even.
                4 | 8 => 4,
                _ => 6,
            };
            let tile = Tile {
                rows: (m - i).min(height),
                terms,
                a: a.data.as_ptr().wrapping_add(i * a.row + from * a.step),
                a_row: a.row,
                a_step: a.step,
                b: right,
                b_step: right_step,
                b_panel: right_panel,
                bias,
                c: self.c[i * stride + j..].as_mut_ptr(),
                stride,
                add: start.add || from > 0,
                ahead: if i == 0 { AHEAD * a.step } else { (2 * height - 1) * a.row },
                factors: match factors {
                    Some(factors) if from + terms >= k => factors[i * stride + j..].as_ptr(),
                    _ => std::ptr::null(),
                },
            };
            // SAFETY: `product` has checked that all rows, terms and columns of the tile are inside the slices.
            unsafe {
                match (width, height) {
                    (WIDTH, _) => tile.run::<V, M, 1, 0>(),
                    (PANEL, _) if j % PANEL == 0 => tile.run::<V, M, N, 0>(),
                    (PANEL, _) => tile.run::<V, M, N, 1>(),
                    (TRIPLE, _) if j % PANEL == 0 => tile.run::<V, M, 3, 0>(),
                    (TRIPLE, _) => tile.run::<V, M, 3, 1>(),
                    (_, 4) => tile.run::<V, 4, 4, 0>(),
                    _ => tile.run::<V, 6, 4, 0>(),
                }
            }
            i += height;
        }
    }
}

/// Terms by which A is asked for before it is needed: of a transposed A every term is in another line of the cache, too far
/// from the last one for the machine to guess it.
const AHEAD: usize = 16;

/// A's rows are read entry after entry.
const ROWS: u8 = 1;
/// B's rows are those of a panel.
const PACKED: u8 = 2;
/// A term of A is read entry after entry, by a whole tile.
const COLUMNS: u8 = 4;
/// With every term, what is ahead in A is asked for.
const ASKED: u8 = 8;

/// `$body` for `$i` from 0 to below `$n` <= 8, written out: of loops over larger tiles the compiler makes loops, and keeps the
/// sums in memory.
macro_rules! unrolled {
    ($i:ident < $n:ident $body:block) => {
        unrolled!(@ $i $n $body 0 1 2 3 4 5 6 7)
    };
    (@ $i:ident $n:ident $body:block $($k:literal)*) => {
        $(if $k < $n {
            let $i: usize = $k;
            $body
        })*
    };
}

/// `rows` rows and N vectors of C, the first of which is vector AT of a panel.
struct Tile {
    rows: usize,
    terms: usize,
    a: *const f32,
    a_row: usize,
    a_step: usize,
    b: *const f32,
    b_step: usize,
    /// From the first two vectors of a row of B to the next two.
    b_panel: usize,
    bias: *const f32,
    c: *mut f32,
    stride: usize,
    add: bool,
    /// From what is read of A to what is asked for with it: of a transposed A, all of whose rows a tile reads, what the tile below
    /// reads of the same ones. Rows of A are asked for by [`Tile::ask_for_the_next`] alone.
    ahead: usize,
    /// Factors of the sums, where C has its entries.
    factors: *const f32,
}

impl Tile {
    /// Asks for a piece of what the tile below reads of A, from its term `from` on, and of its C: what is not in the nearest caches
    /// would be waited for at every tile, whose rows are too short for the machine to guess them.
    #[inline(always)]
    fn ask_for_the_next<const M: usize>(&self, from: usize) {
        if self.a_step == 1 {
            let a = self.a.wrapping_add(self.rows * self.a_row + from);
            unrolled!(i < M {
                prefetch::<false>(a.wrapping_add(i * self.a_row));
            });
        }
        // Two rows with every line of A's, so that few terms ask for a part of them.
        let row = 2 * from / AHEAD;
        if row < M {
            let c = self.c.wrapping_add((self.rows + row) * self.stride).cast_const();
            for line in 0..4 {
                prefetch::<false>(c.wrapping_add(line * WIDTH));
                prefetch::<false>(c.wrapping_add(self.stride + line * WIDTH));
            }
        }
    }

    /// Adds the term at `a` and `b` to the sums.
    ///
    /// # Safety
    /// A and B must hold it, and be what `FORM` says.
    #[inline(always)]
    unsafe fn add_term<V: Simd, const M: usize, const N: usize, const AT: usize, const FORM: u8>(
        &self,
        a: *const f32,
        b: *const f32,
        a_rows: &[usize; M],
        sums: &mut [[V; N]; M],
    ) {
        if FORM & ASKED != 0 {
            prefetch::<false>(a.wrapping_add(self.ahead));
        }
        let mut right = [V::zero(); N];
        // SAFETY: the caller's.
        unsafe {
            unrolled!(j < N {
                right[j] = V::load(&*b.add((j + AT) / 2 * self.b_panel + (j + AT) % 2 * WIDTH).cast());
            });
            unrolled!(i < M {
                let left = V::splat(*a.add(if FORM & COLUMNS != 0 { i } else { a_rows[i] }));
                unrolled!(j < N {
                    sums[i][j] = sums[i][j].add_mul(left, right[j]);
                });
            });
        }
    }

    /// Adds `count` terms to the sums, and moves on in A and B.
    ///
    /// # Safety
    /// A and B must hold them, and be what `FORM` says.
    #[inline(always)]
    unsafe fn add_terms<V: Simd, const M: usize, const N: usize, const AT: usize, const FORM: u8>(
        &self,
        count: usize,
        a: &mut *const f32,
        b: &mut *const f32,
        a_rows: &[usize; M],
        sums: &mut [[V; N]; M],
    ) {
        let a_step = if FORM & ROWS != 0 { 1 } else { self.a_step };
        let b_step = if FORM & PACKED != 0 { PANEL } else { self.b_step };
        // SAFETY: the caller's.
        unsafe {
            // Two in one turn of the loop: of a processor's time that another thread has a share in, counting takes a twentieth. It
            // ends at an address: with a counter the compiler moves a pointer for every row.
            let end = a.wrapping_add(count / 2 * 2 * a_step);
            while *a != end {
                self.add_term::<V, M, N, AT, FORM>(*a, *b, a_rows, sums);
                self.add_term::<V, M, N, AT, FORM>(a.wrapping_add(a_step), b.wrapping_add(b_step), a_rows, sums);
                *a = a.wrapping_add(2 * a_step);
                *b = b.wrapping_add(2 * b_step);
            }
            if count % 2 == 1 {
                self.add_term::<V, M, N, AT, FORM>(*a, *b, a_rows, sums);
                *a = a.wrapping_add(a_step);
                *b = b.wrapping_add(b_step);
            }
        }
    }

    /// # Safety
    /// A, B, C, and the bias and the factors unless they are null, must hold the tile's rows, terms and columns; 0 < rows <= M.
    #[inline(always)]
    unsafe fn run<V: Simd, const M: usize, const N: usize, const AT: usize>(self) {
        // SAFETY: the caller's, and each form is what has been asked for.
        unsafe {
            if self.a_step == 1 && self.b_step == PANEL {
                self.sum::<V, M, N, AT, { ROWS | PACKED }>();
            } else if self.a_step == 1 {
                self.sum::<V, M, N, AT, ROWS>();
            } else if self.a_row != 1 || self.rows < M {
                self.sum::<V, M, N, AT, ASKED>();
            } else if self.asks::<M>() {
                self.sum::<V, M, N, AT, { COLUMNS | ASKED }>();
            } else {
                self.sum::<V, M, N, AT, COLUMNS>();
            }
        }
    }

    /// Whether what is `ahead` is in other lines of the cache than what the tile reads of A, or may be.
    #[inline(always)]
    fn asks<const M: usize>(&self) -> bool {
        let line = |at: usize| (self.a as usize / size_of::<f32>() + at) / WIDTH;
        !self.a_step.is_multiple_of(WIDTH) || line(self.ahead) != line(M - 1)
    }

    /// # Safety
    /// As for [`Tile::run`]; A and B must be what `FORM` says.
    #[inline(always)]
    unsafe fn sum<V: Simd, const M: usize, const N: usize, const AT: usize, const FORM: u8>(self) {
        // SAFETY: the caller's; rows beyond the last are the last one, computed again and not stored.
        unsafe {
            let (mut c_rows, mut a_rows) = ([0; M], [0; M]);
            let mut sums = [[V::zero(); N]; M];
            unrolled!(i < M {
                let row = i.min(self.rows - 1);
                (c_rows[i], a_rows[i]) = (row * self.stride, row * self.a_row);
                unrolled!(j < N {
                    if !self.bias.is_null() {
                        sums[i][j] = V::load(&*self.bias.add(j * WIDTH).cast());
                    }
                    if self.add {
                        sums[i][j] = sums[i][j].add(V::load(&*self.c.add(c_rows[i] + j * WIDTH).cast()));
                    }
                });
            });
            let (mut a, mut b) = (self.a, self.b.wrapping_sub(AT * WIDTH));
            if N == 4 {
                for from in (0..self.terms).step_by(AHEAD) {
                    self.ask_for_the_next::<M>(from);
                    self.add_terms::<V, M, N, AT, FORM>(
                        AHEAD.min(self.terms - from),
                        &mut a,
                        &mut b,
                        &a_rows,
                        &mut sums,
                    );
                }
            } else {
                self.add_terms::<V, M, N, AT, FORM>(self.terms, &mut a, &mut b, &a_rows, &mut sums);
            }
            unrolled!(i < M {
                if i < self.rows {
                    unrolled!(j < N {
                        let at = i * self.stride + j * WIDTH;
                        if !self.factors.is_null() {
                            sums[i][j] = sums[i][j].mul(V::load(&*self.factors.add(at).cast()));
                        }
                        sums[i][j].store(&mut *self.c.add(at).cast());
                    });
                }
            });
        }
    }
}

/// What a tile does with factors, for products that are made otherwise.
#[cfg(target_arch = "x86_64")]
struct Times<'a> {
    m: usize,
    vectors: usize,
    c: &'a mut [f32],
    stride: usize,
    factors: &'a [f32],
}

#[cfg(target_arch = "x86_64")]
impl Job for Times<'_> {
    type Output = ();
    // Loops over indices: an iterator's parts may be compiled elsewhere, without the caller's instructions.
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn run<V: Simd>(self) {
        for row in 0..self.m {
            let c = simd::vectors_mut(self.c, row * self.stride, self.vectors);
            let factors = simd::vectors(self.factors, row * self.stride, self.vectors);
            for v in 0..self.vectors {
                V::load(&c[v]).mul(V::load(&factors[v])).store(&mut c[v]);
            }
        }
    }
}

/// C = A B for a few rows and terms, inside a [`Job`]: what [`gemm`] does, without what it costs to begin. Sizes as there, B
/// row-major.
///
/// # Panics
/// If a slice is shorter than the sizes say.
#[inline(always)]
pub(super) fn small<V: Simd>([m, n, k]: [usize; 3], a: Left<'_>, b: Right<'_>, c: &mut [f32], stride: usize) {
    let columns = n.next_multiple_of(WIDTH);
    assert!(m > 0 && n > 0 && k > 0 && a.step > 0 && b.panel == PANEL, "an empty or a packed matrix");
    assert!(c.len() >= (m - 1) * stride + columns && (m == 1 || stride >= columns), "C is too small");
    assert!(a.data.len() > (m - 1) * a.row + (k - 1) * a.step, "A is too small");
    assert!(b.data.len() >= (k - 1) * b.step + columns, "B is too small");
    if V::MANY {
        rows_of::<V, 8, 2>(m, columns, k, a, b, c, stride)
    } else {
        rows_of::<V, 4, 1>(m, columns, k, a, b, c, stride)
    }
}

#[inline(always)]
fn rows_of<V: Simd, const M: usize, const N: usize>(
    m: usize,
    columns: usize,
    terms: usize,
    a: Left<'_>,
    b: Right<'_>,
    c: &mut [f32],
    stride: usize,
) {
    let mut j = 0;
    while j < columns {
        let wide = N == 2 && j + PANEL <= columns;
        let mut i = 0;
        while i < m {
            // The last rows are taken together with some before them, which are computed again.
            let row = if m < M { i } else { i.min(m - M) };
            // What is known of the tile here, the compiler knows too: nothing is left of its bias, its start and its edge.
            let tile = Tile {
                rows: M,
                terms,
                a: a.data[row * a.row..].as_ptr(),
                a_row: a.row,
                a_step: a.step,
                b: b.data[j..].as_ptr(),
                b_step: b.step,
                b_panel: b.panel,
                bias: std::ptr::null(),
                c: c[row * stride + j..].as_mut_ptr(),
                stride,
                add: false,
                ahead: AHEAD * a.step,
                factors: std::ptr::null(),
            };
            // SAFETY: `small` has checked that all rows, terms and columns of the tile are inside the slices.
            unsafe {
                match (m < M, wide) {
                    (false, true) => tile.run::<V, M, 2, 0>(),
                    (false, false) => tile.run::<V, M, 1, 0>(),
                    (true, true) => Tile { rows: 1, ..tile }.run::<V, 1, 2, 0>(),
                    (true, false) => Tile { rows: 1, ..tile }.run::<V, 1, 1, 0>(),
                }
            }
            i += if m < M { 1 } else { M };
        }
        j += if wide { PANEL } else { WIDTH };
    }
}

/// Floats that [`pack`] fills for a matrix of `k` rows and `n` columns.
pub fn packed_len(k: usize, n: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    if on_tiles(k, n) {
        return tiles::packed_len(k, n);
    }
    k * n.next_multiple_of(PANEL)
}

/// Lays a row-major matrix `[k, n]` out in panels, for [`Right::packed`]. Columns beyond the last are zero.
///
/// # Panics
/// If a slice is shorter than the sizes say.
pub fn pack(k: usize, n: usize, from: &[f32], to: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if on_tiles(k, n) {
        return tiles::pack(k, n, from, to);
    }
    for (panel, to) in to[..packed_len(k, n)].chunks_exact_mut(k.max(1) * PANEL).enumerate() {
        let columns = panel * PANEL..n.min((panel + 1) * PANEL);
        for (row, to) in from.chunks_exact(n).zip(to.as_chunks_mut::<PANEL>().0) {
            // Of a length that is known, a copy takes no call.
            if let (PANEL, Some(whole)) = (columns.len(), row[columns.start..].first_chunk()) {
                *to = *whole;
                continue;
            }
            to[..columns.len()].copy_from_slice(&row[columns.clone()]);
            to[columns.len()..].fill(0.0);
        }
    }
}

/// Lays the transpose of a row-major matrix `[n, k]` out in panels, for [`Right::packed`]. Columns beyond the last are zero.
///
/// # Panics
/// If a slice is shorter than the sizes say.
pub fn pack_transposed(k: usize, n: usize, from: &[f32], to: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if on_tiles(k, n) {
        let mut transposed = vec![0.0; k * n];
        transpose([k, n], from, k, &mut transposed, n);
        return tiles::pack(k, n, &transposed, to);
    }
    let to = &mut to[..packed_len(k, n)];
    if !n.is_multiple_of(PANEL) {
        to.fill(0.0);
    }
    dispatch(Transpose { size: [k, n], from, stride: k, to, step: PANEL, panel: PANEL * k });
}

/// The transpose `[k, n]` of a matrix `[n, k]`, row-major both, with rows so far apart.
///
/// # Panics
/// If a slice is shorter than the sizes say.
pub fn transpose(size: [usize; 2], from: &[f32], from_stride: usize, to: &mut [f32], to_stride: usize) {
    dispatch(Transpose { size, from, stride: from_stride, to, step: to_stride, panel: PANEL });
}

/// Writes entry (p, j) of the transpose where [`Right`] has it.
struct Transpose<'a> {
    size: [usize; 2],
    from: &'a [f32],
    stride: usize,
    to: &'a mut [f32],
    step: usize,
    panel: usize,
}

impl Job for Transpose<'_> {
    type Output = ();
    // Loops over indices: an iterator's parts may be compiled elsewhere, without the caller's instructions.
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn run<V: Simd>(self) {
        let Transpose { size: [k, n], from, stride, to, step, panel } = self;
        for column in (0..n).step_by(WIDTH) {
            let width = (n - column).min(WIDTH);
            let base = column / PANEL * panel + column % PANEL;
            for p in (0..k).step_by(WIDTH) {
                let height = (k - p).min(WIDTH);
                if width == WIDTH && height == WIDTH {
                    // Loops of known lengths: the block stays in registers.
                    let mut block = [V::zero(); WIDTH];
                    for row in 0..WIDTH {
                        block[row] = V::load(&simd::vectors(from, (column + row) * stride + p, 1)[0]);
                    }
                    V::transpose(&mut block);
                    for row in 0..WIDTH {
                        block[row].store(&mut simd::vectors_mut(to, base + (p + row) * step, 1)[0]);
                    }
                    continue;
                }
                let mut block = [V::zero(); WIDTH];
                for (row, to) in block.iter_mut().enumerate().take(width) {
                    let row = &from[(column + row) * stride + p..];
                    *to = match row.first_chunk() {
                        Some(chunk) => V::load(chunk),
                        None => {
                            let mut end = [0.0; WIDTH];
                            end[..height].copy_from_slice(&row[..height]);
                            V::load(&end)
                        }
                    };
                }
                V::transpose(&mut block);
                for (row, v) in block.into_iter().enumerate().take(height) {
                    let to = &mut to[base + (p + row) * step..];
                    match to.first_chunk_mut() {
                        Some(to) if width == WIDTH => v.store(to),
                        _ => {
                            let mut whole = [0.0; WIDTH];
                            v.store(&mut whole);
                            to[..width].copy_from_slice(&whole[..width]);
                        }
                    }
                }
            }
        }
    }
}

/// The sums of the columns of `m` rows, `stride` apart, into `to` or added to it; columns up to the next multiple of [`WIDTH`]
/// too.
///
/// # Panics
/// If a slice is shorter than the sizes say.
pub fn column_sums(m: usize, n: usize, data: &[f32], stride: usize, to: &mut [f32], add: bool) {
    dispatch(ColumnSums { m, vectors: n.div_ceil(WIDTH), data, stride, to, add });
}

struct ColumnSums<'a> {
    m: usize,
    vectors: usize,
    data: &'a [f32],
    stride: usize,
    to: &'a mut [f32],
    add: bool,
}

impl Job for ColumnSums<'_> {
    type Output = ();
    #[inline(always)]
    fn run<V: Simd>(mut self) {
        let mut v = 0;
        while v < self.vectors {
            v += match self.vectors - v {
                8.. if V::MANY => self.of::<V, 8>(v),
                4.. => self.of::<V, 4>(v),
                _ => self.of::<V, 1>(v),
            };
        }
    }
}

impl ColumnSums<'_> {
    /// The sums of N vectors from the `v`-th on, kept in registers; gives N.
    #[inline(always)]
    fn of<V: Simd, const N: usize>(&mut self, v: usize) -> usize {
        let to = simd::vectors_mut(self.to, v * WIDTH, N);
        let mut sums = [V::zero(); N];
        unrolled!(j < N {
            if self.add {
                sums[j] = V::load(&to[j]);
            }
        });
        for row in 0..self.m {
            let row = simd::vectors(self.data, row * self.stride + v * WIDTH, N);
            unrolled!(j < N {
                sums[j] = sums[j].add(V::load(&row[j]));
            });
        }
        unrolled!(j < N {
            sums[j].store(&mut to[j]);
        });
        N
    }
}
