//! Products C = L Rᵀ of matrices that have an entry a lane, with any strides: the one hot loop of the ops on sequences.
//!
//! An entry is a whole cache line ([`Lanes`]), so a transposed factor, a head's slice of the channels or a band of a
//! triangular matrix is read as fast as a contiguous one, and small or odd dimensions waste nothing.

// An index of a block is one of several arrays at once.
#![allow(clippy::needless_range_loop)]

use super::lanes::{Kernel, LANES, Lanes, Portable, Real, Vector, dispatch, prefetch};
use super::memory::Plain;

/// Where a factor's entries are: entry (i, c) at `at + i row + c inner`.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub at: usize,
    pub row: usize,
    pub inner: usize,
}

impl View {
    pub const fn new(at: usize, row: usize, inner: usize) -> Self {
        View { at, row, inner }
    }

    fn last(&self, rows: usize, inner: usize) -> usize {
        self.at + (rows - 1) * self.row + (inner - 1) * self.inner
    }
}

/// Which part of a product is needed, for causal attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it.
    All,
    /// Row i is a query, columns are tokens: those up to the query's own. At most [`ABOVE`] step entries behind them are written
    /// too, and are to be ignored or cleared.
    Lower(Queries),
    /// L has a query a row and tokens as summands: sums over those up to the query's own. The [`ABOVE`] step entries behind
    /// them must be 0.
    SumBelow(Queries),
    /// The transpose of such a factor, L has a token a row: sums over the queries that see it. The entries of those that
    /// see one of the [`ABOVE`] tokens before it must be 0.
    SumFrom(Queries),
}

/// Query i is that of token `first` + i `step`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Queries {
    pub first: usize,
    pub step: usize,
}

impl Queries {
    /// Tokens that query `i` sees.
    #[inline(always)]
    pub fn seen(self, i: usize) -> usize {
        self.first + i * self.step + 1
    }

    /// The first query that sees token `t`.
    #[inline(always)]
    fn that_see(self, t: usize) -> usize {
        let behind = t.saturating_sub(self.first);
        // A division takes as long as a few multiply-adds of vectors: none where there is nothing to divide.
        if self.step == 1 { behind } else { behind.div_ceil(self.step) }
    }
}

/// Rows of a block of all columns, where they divide all: heads have ten or twenty channels.
const TALL: usize = 5;

/// Rows and columns of the largest square blocks.
const SIDE: usize = 4;

/// Rows that the largest block of rows has beside its first one, where not all columns are needed.
pub(super) const ABOVE: usize = 3;

/// Rows i, columns j and summands c of a product.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub rows: usize,
    pub columns: usize,
    pub inner: usize,
}

/// The left factor's entries: one a lane, or one for all lanes.
pub(super) trait Entries<T: Real>: Sync {
    /// Whether blocks of columns are the outer loop: where the left factor is small beside the right one, of which a block
    /// then stays in the nearest cache while all rows pass.
    const COLUMNS_FIRST: bool;
    fn count(&self) -> usize;
    /// # Safety
    /// `i` is below [`Entries::count`].
    unsafe fn entry<V: Vector<T>>(&self, i: usize) -> V;
}

impl<T: Real> Entries<T> for [Lanes<T>] {
    const COLUMNS_FIRST: bool = false;
    #[inline(always)]
    fn count(&self) -> usize {
        self.len()
    }
    #[inline(always)]
    unsafe fn entry<V: Vector<T>>(&self, i: usize) -> V {
        // SAFETY: the caller's.
        V::load(unsafe { self.get_unchecked(i) })
    }
}

/// Entries that all lanes share: weights.
#[derive(Clone, Copy)]
pub(super) struct Shared<'a, T>(pub &'a [T]);

impl<T: Real> Entries<T> for Shared<'_, T> {
    const COLUMNS_FIRST: bool = true;
    #[inline(always)]
    fn count(&self) -> usize {
        self.0.len()
    }
    #[inline(always)]
    unsafe fn entry<V: Vector<T>>(&self, i: usize) -> V {
        // SAFETY: the caller's.
        V::splat(unsafe { *self.0.get_unchecked(i) })
    }
}

/// `C = scale L Rᵀ`, or `C += scale L Rᵀ` if `ADD`; entry (i, j) of C at `place.at + i place.row + j place.inner`. What is `ahead`
/// is brought into the second cache meanwhile: what comes from further away is waited for otherwise.
pub(super) fn product<T: OnLanes, L: Entries<T> + ?Sized, const ADD: bool>(
    extent: Extent,
    part: Part,
    scale: T,
    (left, l): (&L, View),
    (right, r): (&[Lanes<T>], View),
    (out, place): (&mut [Lanes<T>], View),
    ahead: Soon<'_, T>,
) {
    if check(extent, left, l, right, r) {
        assert!(place.last(extent.rows, extent.columns) < out.len(), "a product outside its result");
        let ahead = Ahead::new(ahead, extent, part);
        T::on_lanes(Multiply::<T, L, ADD> { extent, part, scale, left, l, right, r, out, place, ahead });
    }
}

/// Entries that are needed soon: rows, of which the first `used` entries count, and of each one `more` than of that before.
#[derive(Clone, Copy)]
pub(super) struct Soon<'a, T> {
    entries: &'a [Lanes<T>],
    row: usize,
    used: usize,
    more: usize,
}

impl<'a, T> Soon<'a, T> {
    /// All of these.
    pub fn all(entries: &'a [Lanes<T>]) -> Self {
        Soon { entries, row: entries.len().max(1), used: entries.len(), more: 0 }
    }

    /// Nothing.
    pub fn nothing() -> Self {
        Soon::all(&[])
    }

    /// Of a matrix `[queries, tokens]` the tokens that the queries see.
    pub fn seen(entries: &'a [Lanes<T>], queries: Queries, tokens: usize) -> Self {
        Soon { entries, row: tokens.max(1), used: queries.seen(0), more: queries.step }
    }
}

/// What is asked for while a product is made, a few entries with each of its blocks: all at once, they would be waited for.
struct Ahead<'a, T> {
    soon: Soon<'a, T>,
    /// Entries with a block.
    each: usize,
    at: usize,
    end: usize,
}

impl<'a, T> Ahead<'a, T> {
    fn new(soon: Soon<'a, T>, extent: Extent, part: Part) -> Self {
        // About so many blocks: what a few of them too many leave is not asked for.
        let blocks = (extent.rows / SIDE).max(1) * (extent.columns / SIDE).max(1);
        let blocks = if matches!(part, Part::Lower(_)) { blocks.div_ceil(2) } else { blocks };
        let rows = soon.entries.len() / soon.row;
        let all = rows * soon.used + rows * rows.saturating_sub(1) / 2 * soon.more;
        let end = soon.used;
        Ahead { soon, each: all.div_ceil(blocks), at: 0, end }
    }

    #[inline(always)]
    fn ask(&mut self) {
        let mut left = self.each;
        while left > 0 && self.at < self.soon.entries.len() {
            let count = left.min(self.end - self.at);
            prefetch(&self.soon.entries[self.at..self.at + count]);
            (self.at, left) = (self.at + count, left - count);
            if self.at == self.end {
                let row = self.at / self.soon.row + 1;
                self.at = row * self.soon.row;
                self.end = (self.at + self.soon.used + row * self.soon.more).min(self.soon.entries.len());
            }
        }
    }
}

/// `C += Σ over the lanes of L Rᵀ`: gradients of what the lanes share. What is `ahead`: as in [`product`].
pub(super) fn reduced_product<T: OnLanes>(
    extent: Extent,
    (left, l): (&[Lanes<T>], View),
    (right, r): (&[Lanes<T>], View),
    (out, place): (&mut [T], View),
    ahead: Soon<'_, T>,
) {
    if check(extent, left, l, right, r) {
        assert!(place.last(extent.rows, extent.columns) < out.len(), "a product outside its result");
        let ahead = Ahead::new(ahead, extent, Part::All);
        T::on_lanes(Reduce { extent, left, l, right, r, out, place, ahead });
    }
}

/// Whether there is anything to do; the views lie inside their factors.
fn check<T: Real, L: Entries<T> + ?Sized>(e: Extent, left: &L, l: View, right: &[Lanes<T>], r: View) -> bool {
    if e.rows == 0 || e.columns == 0 || e.inner == 0 {
        return false;
    }
    let inside = l.last(e.rows, e.inner) < left.count() && r.last(e.columns, e.inner) < right.len();
    assert!(inside, "a product outside its factors");
    true
}

/// The scalars for which the ops on sequences are compiled: `f32` on the machine's best instruction set, `f64`, the twin
/// that tests compare with, on the portable one.
pub trait OnLanes: Real + Plain + std::ops::Neg<Output = Self> {
    #[doc(hidden)]
    fn on_lanes<K: Kernel<Self>>(kernel: K) -> K::Output;
    #[doc(hidden)]
    fn exp(self) -> Self;
}

impl OnLanes for f32 {
    #[inline]
    fn on_lanes<K: Kernel<f32>>(kernel: K) -> K::Output {
        dispatch(kernel)
    }

    /// Relative error below 3e-7, for arguments of at most 88; 0 stands for what is below e^-87.
    #[inline(always)]
    fn exp(self) -> f32 {
        let x = self.clamp(-87.0, 88.0);
        // Rounding by adding 1.5 2^23: no instruction outside the base set, so that loops over it become vectors.
        let shifted = x * std::f32::consts::LOG2_E + 12_582_912.0;
        let n = shifted - 12_582_912.0;
        let r = (x - n * 0.693_359_4) + n * 2.121_944_4e-4;
        let p = ((((1.987_569_1e-4 * r + 1.398_199_9e-3) * r + 8.333_452e-3) * r + 4.166_579_6e-2) * r + 0.166_666_65)
            * r
            + 0.5;
        let power = f32::from_bits((shifted.to_bits().wrapping_sub(0x4b40_0000).wrapping_add(127)) << 23);
        (p * r * r + r + 1.0) * power
    }
}

impl OnLanes for f64 {
    fn on_lanes<K: Kernel<f64>>(kernel: K) -> K::Output {
        kernel.run::<Portable<f64>>()
    }

    fn exp(self) -> f64 {
        f64::exp(self)
    }
}

struct Multiply<'a, T, L: ?Sized, const ADD: bool> {
    extent: Extent,
    part: Part,
    scale: T,
    left: &'a L,
    l: View,
    right: &'a [Lanes<T>],
    r: View,
    out: &'a mut [Lanes<T>],
    place: View,
    ahead: Ahead<'a, T>,
}

/// `M x N` entries of a product, in registers.
///
/// # Safety
/// The views with `extent` lie inside their factors, and the block inside `extent`.
#[inline(always)]
unsafe fn block<T: Real, V: Vector<T>, L: Entries<T> + ?Sized, const M: usize, const N: usize>(
    (i, j): (usize, usize),
    (from, to): (usize, usize),
    (left, l): (&L, View),
    (right, r): (&[Lanes<T>], View),
) -> [[V; N]; M] {
    let mut sum = [[V::splat(T::default()); N]; M];
    let (left_at, right_at) = (l.at + i * l.row, r.at + j * r.row);
    for c in from..to {
        let mut columns = [V::splat(T::default()); N];
        for b in 0..N {
            // SAFETY: (j + b, c) is an entry of the right factor.
            columns[b] = unsafe { right.entry(right_at + b * r.row + c * r.inner) };
        }
        for a in 0..M {
            // SAFETY: (i + a, c) is an entry of the left factor.
            let entry: V = unsafe { left.entry(left_at + a * l.row + c * l.inner) };
            for b in 0..N {
                sum[a][b] = sum[a][b].add_mul(entry, columns[b]);
            }
        }
    }
    sum
}

/// Rows or columns cut into blocks of `N`, and of 1 at the end: where they begin and how many they are.
struct Blocks<const N: usize> {
    at: usize,
    end: usize,
}

impl<const N: usize> Blocks<N> {
    #[inline(always)]
    fn of(count: usize) -> Self {
        Blocks { at: 0, end: count }
    }
}

impl<const N: usize> Iterator for Blocks<N> {
    type Item = (usize, usize);
    #[inline(always)]
    fn next(&mut self) -> Option<(usize, usize)> {
        let (at, left) = (self.at, self.end - self.at);
        let size = if left >= N { N } else { left.min(1) };
        self.at += size;
        (size > 0).then_some((at, size))
    }
}

/// Calls `$self.$run::<V, N>` with the largest N x N blocks of sums that the registers have room for.
macro_rules! with_blocks {
    ($V:ident, $self:ident, $run:ident) => {
        if $V::ROOM >= 32 {
            $self.$run::<$V, SIDE>()
        } else if $V::ROOM >= 8 {
            $self.$run::<$V, 2>()
        } else {
            $self.$run::<$V, 1>()
        }
    };
}

impl<T: Real, L: Entries<T> + ?Sized, const ADD: bool> Multiply<'_, T, L, ADD> {
    /// Columns and summands of rows i, …, i + m - 1.
    #[inline(always)]
    fn needed(&self, (i, m): (usize, usize)) -> (usize, usize, usize) {
        let Extent { columns, inner, .. } = self.extent;
        match self.part {
            Part::All => (columns, 0, inner),
            Part::Lower(queries) => (columns.min(queries.seen(i + m - 1)), 0, inner),
            Part::SumBelow(queries) => (columns, 0, inner.min(queries.seen(i + m - 1))),
            Part::SumFrom(queries) => (columns, queries.that_see(i), inner),
        }
    }

    /// Two blocks of rows at a time pass by a block of columns before the next one: so many that the block is read from the
    /// nearest cache as often as from the one behind it, so few that they stay in the nearest too.
    #[inline(always)]
    fn rows_first<V: Vector<T>, const N: usize>(&mut self) {
        let mut rows = Blocks::<N>::of(self.extent.rows);
        while let Some(first) = rows.next() {
            let pair = [Some(first), rows.next()];
            let last = pair[1].unwrap_or(first);
            for (j, n) in Blocks::<N>::of(self.extent.columns) {
                if j >= self.needed(last).0 {
                    break;
                }
                for (i, m) in pair.into_iter().flatten() {
                    let (columns, from, to) = self.needed((i, m));
                    if j + n <= columns {
                        self.cells::<V, N, N>((i, m), (j, n), from, to);
                    } else {
                        for j in j..columns {
                            self.cells::<V, N, N>((i, m), (j, 1), from, to);
                        }
                    }
                }
            }
        }
    }

    /// All rows pass by a block of columns before the next one.
    #[inline(always)]
    fn columns_first<V: Vector<T>, const N: usize>(&mut self) {
        self.blocks_of_columns::<V, N, N>();
    }

    /// As [`Multiply::columns_first`], in blocks of M rows.
    #[inline(always)]
    fn blocks_of_columns<V: Vector<T>, const M: usize, const N: usize>(&mut self) {
        let Extent { rows, columns, inner } = self.extent;
        for block in Blocks::<N>::of(columns) {
            for of_rows in Blocks::<M>::of(rows) {
                self.cells::<V, M, N>(of_rows, block, 0, inner);
            }
        }
    }

    #[inline(always)]
    fn cells<V: Vector<T>, const M: usize, const N: usize>(
        &mut self,
        (i, m): (usize, usize),
        (j, n): (usize, usize),
        from: usize,
        to: usize,
    ) {
        match (m == M, n == N) {
            (true, true) => self.cell::<V, M, N>(i, j, from, to),
            (false, true) => self.cell::<V, 1, N>(i, j, from, to),
            (true, false) => self.cell::<V, M, 1>(i, j, from, to),
            (false, false) => self.cell::<V, 1, 1>(i, j, from, to),
        }
    }

    #[inline(always)]
    fn cell<V: Vector<T>, const M: usize, const N: usize>(&mut self, i: usize, j: usize, from: usize, to: usize) {
        self.ahead.ask();
        // SAFETY: `check` has found the views inside, and the block lies inside the extent.
        let sum: [[V; N]; M] = unsafe { block((i, j), (from, to), (self.left, self.l), (self.right, self.r)) };
        let scale = V::splat(self.scale);
        for a in 0..M {
            for b in 0..N {
                let at = self.place.at + (i + a) * self.place.row + (j + b) * self.place.inner;
                // SAFETY: `product` has found the whole result inside.
                let out = unsafe { self.out.get_unchecked_mut(at) };
                let base = if ADD { V::load(out) } else { V::splat(T::default()) };
                base.add_mul(scale, sum[a][b]).store(out);
            }
        }
    }
}

impl<T: Real, L: Entries<T> + ?Sized, const ADD: bool> Kernel<T> for Multiply<'_, T, L, ADD> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector<T>>(mut self) {
        if L::COLUMNS_FIRST && self.part == Part::All && V::ROOM >= 32 && self.extent.rows.is_multiple_of(TALL) {
            // Fewer loads a multiply-add than in square blocks.
            self.blocks_of_columns::<V, TALL, SIDE>();
        } else if L::COLUMNS_FIRST && self.part == Part::All {
            with_blocks!(V, self, columns_first)
        } else {
            with_blocks!(V, self, rows_first)
        }
    }
}

struct Reduce<'a, T> {
    extent: Extent,
    left: &'a [Lanes<T>],
    l: View,
    right: &'a [Lanes<T>],
    r: View,
    out: &'a mut [T],
    place: View,
    ahead: Ahead<'a, T>,
}

impl<T: Real> Reduce<'_, T> {
    /// Blocks of N x N at most: sixteen sums over the lanes at a time. Two blocks of rows pass by a block of columns together, as in
    /// [`Multiply::rows_first`].
    #[inline(always)]
    fn blocks<V: Vector<T>, const N: usize>(&mut self) {
        let mut rows = Blocks::<N>::of(self.extent.rows);
        while let Some(first) = rows.next() {
            let pair = [Some(first), rows.next()];
            for (j, n) in Blocks::<N>::of(self.extent.columns) {
                for (i, m) in pair.into_iter().flatten() {
                    match (m == N, n == N) {
                        (true, true) => self.cell::<V, N, N>(i, j),
                        (false, true) => self.cell::<V, 1, N>(i, j),
                        (true, false) => self.cell::<V, N, 1>(i, j),
                        (false, false) => self.cell::<V, 1, 1>(i, j),
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn cell<V: Vector<T>, const M: usize, const N: usize>(&mut self, i: usize, j: usize) {
        self.ahead.ask();
        let all = (0, self.extent.inner);
        // SAFETY: `check` has found the views inside, and the block lies inside the extent.
        let sum: [[V; N]; M] = unsafe { block((i, j), all, (self.left, self.l), (self.right, self.r)) };
        let mut all = [V::splat(T::default()); LANES];
        for a in 0..M {
            for b in 0..N {
                all[a * N + b] = sum[a][b];
            }
        }
        let sums = V::lane_sums(all, M * N);
        for a in 0..M {
            let at = self.place.at + (i + a) * self.place.row + j * self.place.inner;
            for b in 0..N {
                self.out[at + b * self.place.inner] += sums.0[a * N + b];
            }
        }
    }
}

impl<T: Real> Kernel<T> for Reduce<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run<V: Vector<T>>(mut self) {
        with_blocks!(V, self, blocks)
    }
}
