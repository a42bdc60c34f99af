//! Products C = L Rᵀ of matrices that have an entry a lane, with any strides: the one hot loop of the ops on sequences.
//!
//! An entry is a whole cache line ([`Lanes`]), so a transposed factor, a head's slice of the channels or a band of a
//! triangular matrix is read as fast as a contiguous one, and small or odd dimensions waste nothing.
//!
//! The blocks of a result that the registers hold are made by functions of their own, one a size, that are called by pointers:
//! compiled into the loops over the blocks, they left a fifth of the time to what is between one and the next.

// An index of a block is one of several arrays at once.
#![allow(clippy::needless_range_loop)]

use std::marker::PhantomData;

use super::lanes::{Apart, Called, Kernel, LANES, Lanes, Portable, Real, Vector, dispatch, prefetch};
use super::memory::Plain;

/// Where a factor's entries are: entry (i, c) of term s at `at + i row + c inner + s term`.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub at: usize,
    pub row: usize,
    pub inner: usize,
    pub term: usize,
}

impl View {
    pub const fn new(at: usize, row: usize, inner: usize) -> Self {
        View { at, row, inner, term: 0 }
    }

    /// As this one, the next term's entries so many behind a term's.
    pub const fn terms(self, term: usize) -> Self {
        View { term, ..self }
    }

    fn last(&self, rows: usize, inner: usize, terms: usize) -> usize {
        self.at + (rows - 1) * self.row + (inner - 1) * self.inner + (terms - 1) * self.term
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

/// Rows and columns of the largest square blocks, apart from the last ones.
const SIDE: usize = 4;

/// Those of the last blocks, where there are enough to take in what is left over: a row or a column alone would have sums that wait
/// for each other.
const LAST: usize = SIDE + 1;

/// Rows that the largest block of rows has beside its first one, where not all columns are needed.
pub(super) const ABOVE: usize = LAST - 1;

/// Rows i, columns j and summands c of a product, which is a sum of so many terms.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    pub rows: usize,
    pub columns: usize,
    pub inner: usize,
    pub terms: usize,
}

impl Extent {
    pub const fn new(rows: usize, columns: usize, inner: usize) -> Self {
        Extent { rows, columns, inner, terms: 1 }
    }

    /// As this one, but of so many terms.
    pub const fn terms(self, terms: usize) -> Self {
        Extent { terms, ..self }
    }
}

/// The right factor: an entry a lane, or one for all lanes.
///
/// # Safety
/// There are `count` entries from `first` on.
pub(super) unsafe trait Factor<T: Real>: Copy {
    /// A pointer to an entry.
    type Entry: Entry<T>;
    fn count(self) -> usize;
    fn first(self) -> Self::Entry;
}

/// A pointer to an entry of a factor.
///
/// # Safety
/// `ahead` leads to the entry that stands so many behind it in memory.
pub(super) unsafe trait Entry<T: Real>: Copy {
    /// That of the entry so many behind it.
    fn ahead(self, entries: usize) -> Self;
    /// # Safety
    /// The pointer is to one of the factor's entries.
    unsafe fn entry<V: Vector<T>>(self) -> V;
}

// SAFETY: a slice has its length.
unsafe impl<T: Real> Factor<T> for &[Lanes<T>] {
    type Entry = *const Lanes<T>;
    fn count(self) -> usize {
        self.len()
    }
    fn first(self) -> Self::Entry {
        self.as_ptr()
    }
}

// SAFETY: that of `wrapping_add`.
unsafe impl<T: Real> Entry<T> for *const Lanes<T> {
    #[inline(always)]
    fn ahead(self, entries: usize) -> Self {
        self.wrapping_add(entries)
    }
    #[inline(always)]
    unsafe fn entry<V: Vector<T>>(self) -> V {
        // SAFETY: the caller's.
        V::load(unsafe { &*self })
    }
}

/// Entries that all lanes share: weights.
#[derive(Clone, Copy)]
pub(super) struct Shared<'a, T>(pub &'a [T]);

// SAFETY: as for lanes.
unsafe impl<T: Real> Factor<T> for Shared<'_, T> {
    type Entry = *const T;
    fn count(self) -> usize {
        self.0.len()
    }
    fn first(self) -> Self::Entry {
        self.0.as_ptr()
    }
}

// SAFETY: as for lanes.
unsafe impl<T: Real> Entry<T> for *const T {
    #[inline(always)]
    fn ahead(self, entries: usize) -> Self {
        self.wrapping_add(entries)
    }
    #[inline(always)]
    unsafe fn entry<V: Vector<T>>(self) -> V {
        // SAFETY: the caller's.
        V::splat(unsafe { *self })
    }
}

/// `C = scale L Rᵀ`, or `C += scale L Rᵀ` if `ADD`; entry (i, j) of C at `place.at + i place.row + j place.inner`. What is `ahead`
/// is brought into the second cache meanwhile: what comes from further away is waited for otherwise.
pub(super) fn product<T: OnLanes, R: Factor<T>, const ADD: bool>(
    extent: Extent,
    part: Part,
    scale: T,
    (left, l): (&[Lanes<T>], View),
    (right, r): (R, View),
    (out, place): (&mut [Lanes<T>], View),
    ahead: Soon<'_, T>,
) {
    if check(extent, left, l, right, r) {
        assert!(place.last(extent.rows, extent.columns, 1) < out.len(), "a product outside its result");
        let blocks = T::on_lanes(OfProducts::<R::Entry, ADD>(PhantomData));
        let (left, right, out) = (left.as_ptr(), right.first(), out.as_mut_ptr());
        // SAFETY: the views are inside.
        unsafe { blocks.run(extent, part, scale, (left, l), (right, r), (out, place), ahead) };
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
        if soon.entries.is_empty() {
            return Ahead { soon, each: 0, at: 0, end: 0 };
        }
        // About so many blocks: what a few of them too many leave is not asked for, which takes no longer.
        let blocks = (extent.rows / SIDE).max(1) * (extent.columns / SIDE).max(1);
        let blocks = if matches!(part, Part::Lower(_)) { blocks.div_ceil(2) } else { blocks };
        let rows = soon.entries.len() / soon.row;
        let all = rows * soon.used + rows * rows.saturating_sub(1) / 2 * soon.more;
        let end = soon.used;
        Ahead { soon, each: all.div_ceil(blocks), at: 0, end }
    }

    #[inline(always)]
    fn ask(&mut self) {
        if self.each > 0 && self.at < self.soon.entries.len() {
            self.ask_for_some();
        }
    }

    // Apart from the products, whose loops are faster without it.
    #[inline(never)]
    fn ask_for_some(&mut self) {
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

/// `C = Σ over the lanes of L Rᵀ`, the entries of a row of C one after the other: gradients of what the lanes share. What is
/// `ahead`: as in [`product`].
pub(super) fn reduced_product<T: OnLanes>(
    extent: Extent,
    (left, l): (&[Lanes<T>], View),
    (right, r): (&[Lanes<T>], View),
    (out, place): (&mut [T], View),
    ahead: Soon<'_, T>,
) {
    if check(extent, left, l, right, r) {
        let inside = place.inner == 1 && place.last(extent.rows, extent.columns, 1) < out.len();
        assert!(inside, "a product outside its result");
        let (left, right, out) = (left.as_ptr(), right.as_ptr(), out.as_mut_ptr());
        // SAFETY: the views are inside.
        unsafe { T::on_lanes(OfSums).run(extent, Part::All, T::of(1.0), (left, l), (right, r), (out, place), ahead) };
    }
}

/// Whether there is anything to do; the views lie inside their factors.
fn check<T: Real, R: Factor<T>>(e: Extent, left: &[Lanes<T>], l: View, right: R, r: View) -> bool {
    if e.rows == 0 || e.columns == 0 || e.inner == 0 || e.terms == 0 {
        return false;
    }
    let inside = l.last(e.rows, e.inner, e.terms) < left.len() && r.last(e.columns, e.inner, e.terms) < right.count();
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

/// What the blocks of a product have in common.
struct Common<T> {
    l: View,
    r: View,
    terms: usize,
    scale: T,
    /// From a row of the result to the next, and from a column to the next.
    row: usize,
    column: usize,
}

impl<T: Real> Common<T> {
    /// `M x N` entries of the product, in registers: those whose first factors are `left` and `right`, with `count` summands a
    /// term.
    ///
    /// # Safety
    /// There is a term, and all terms and summands of so many rows of the left factor from there on and so many columns of the right
    /// one lie inside.
    #[inline(always)]
    unsafe fn block<V: Vector<T>, R: Entry<T>, const M: usize, const N: usize>(
        &self,
        count: usize,
        left: *const Lanes<T>,
        right: R,
    ) -> [[V; N]; M] {
        let mut sum = [[V::splat(T::default()); N]; M];
        if count == 0 {
            return sum;
        }
        let (mut lefts, mut rights, mut terms) = (left, right, self.terms);
        // Loops that end at their end: there is a term and a summand.
        loop {
            let (mut left, mut right, mut count) = (lefts, rights, count);
            loop {
                let mut columns = [V::splat(T::default()); N];
                for b in 0..N {
                    // SAFETY: the caller's.
                    columns[b] = unsafe { right.ahead(b * self.r.row).entry() };
                }
                for a in 0..M {
                    // SAFETY: the caller's.
                    let entry: V = unsafe { left.ahead(a * self.l.row).entry() };
                    for b in 0..N {
                        sum[a][b] = sum[a][b].add_mul(entry, columns[b]);
                    }
                }
                (left, right) = (left.ahead(self.l.inner), right.ahead(self.r.inner));
                count -= 1;
                if count == 0 {
                    break;
                }
            }
            terms -= 1;
            if terms == 0 {
                return sum;
            }
            (lefts, rights) = (lefts.ahead(self.l.term), rights.ahead(self.r.term));
        }
    }
}

/// A block of `M x N` entries of a product.
struct Entries<R, const ADD: bool, const M: usize, const N: usize>(PhantomData<R>);

impl<T: Real, R: Entry<T>, const ADD: bool, const M: usize, const N: usize> Apart<T> for Entries<R, ADD, M, N> {
    type Of = Common<T>;
    type Right = R;
    type Out = Lanes<T>;
    #[inline(always)]
    unsafe fn run<V: Vector<T>>(of: &Common<T>, count: usize, left: *const Lanes<T>, right: R, out: *mut Lanes<T>) {
        // SAFETY: the caller's.
        let sum: [[V; N]; M] = unsafe { of.block(count, left, right) };
        let scale = V::splat(of.scale);
        for a in 0..M {
            for b in 0..N {
                // SAFETY: the caller's.
                let out = unsafe { &mut *out.wrapping_add(a * of.row + b * of.column) };
                let entry = if ADD { V::load(out).add_mul(scale, sum[a][b]) } else { scale.mul(sum[a][b]) };
                entry.store(out);
            }
        }
    }
}

/// The sums over the lanes of a block of `M x N` entries of a product, at most sixteen.
struct Sums<const M: usize, const N: usize>;

impl<T: Real, const M: usize, const N: usize> Apart<T> for Sums<M, N> {
    type Of = Common<T>;
    type Right = *const Lanes<T>;
    type Out = T;
    #[inline(always)]
    unsafe fn run<V: Vector<T>>(
        of: &Common<T>,
        count: usize,
        left: *const Lanes<T>,
        right: *const Lanes<T>,
        out: *mut T,
    ) {
        // SAFETY: the caller's.
        let sum: [[V; N]; M] = unsafe { of.block(count, left, right) };
        let mut all = [V::splat(T::default()); LANES];
        for a in 0..M {
            for b in 0..N {
                all[a * N + b] = sum[a][b];
            }
        }
        let sums = V::lane_sums(all, M * N);
        for a in 0..M {
            // SAFETY: the caller's; the entries of a row of the result are one after the other.
            let out = unsafe { &mut *out.wrapping_add(a * of.row).cast::<[T; N]>() };
            for b in 0..N {
                out[b] = sums.0[a * N + b];
            }
        }
    }
}

/// What makes the blocks of so many rows, one function a number of columns.
type Blocks<T, R, O> = [Called<T, Common<T>, R, O>; 3];

/// How many rows or columns a block has, and what makes those of so many rows and columns.
struct Sizes<T: Real, R, O> {
    sizes: [usize; 3],
    blocks: [Blocks<T, R, O>; 3],
}

/// The sizes of blocks of products, `N` and `LAST` the larger ones.
macro_rules! sizes {
    ($V:ident, $N:expr, $LAST:expr, $block:ident $(, $kind:ty, $add:ident)?) => {
        Sizes {
            sizes: [1, $N, $LAST],
            blocks: [
                [
                    $V::apart::<$block<$($kind, $add,)? 1, 1>>(),
                    $V::apart::<$block<$($kind, $add,)? 1, { $N }>>(),
                    $V::apart::<$block<$($kind, $add,)? 1, { $LAST }>>(),
                ],
                [
                    $V::apart::<$block<$($kind, $add,)? { $N }, 1>>(),
                    $V::apart::<$block<$($kind, $add,)? { $N }, { $N }>>(),
                    $V::apart::<$block<$($kind, $add,)? { $N }, { $LAST }>>(),
                ],
                [
                    $V::apart::<$block<$($kind, $add,)? { $LAST }, 1>>(),
                    $V::apart::<$block<$($kind, $add,)? { $LAST }, { $N }>>(),
                    $V::apart::<$block<$($kind, $add,)? { $LAST }, { $LAST }>>(),
                ],
            ],
        }
    };
}

/// The blocks of [`product`]: the largest that the registers have room for.
struct OfProducts<R, const ADD: bool>(PhantomData<R>);

impl<T: Real, R: Entry<T>, const ADD: bool> Kernel<T> for OfProducts<R, ADD> {
    type Output = Sizes<T, R, Lanes<T>>;
    #[inline(always)]
    fn run<V: Vector<T>>(self) -> Self::Output {
        if V::ROOM >= 32 {
            sizes!(V, SIDE, LAST, Entries, R, ADD)
        } else if V::ROOM >= 8 {
            sizes!(V, 2, 2, Entries, R, ADD)
        } else {
            sizes!(V, 1, 1, Entries, R, ADD)
        }
    }
}

/// The blocks of [`reduced_product`]: of at most sixteen sums over the lanes.
struct OfSums;

impl<T: Real> Kernel<T> for OfSums {
    type Output = Sizes<T, *const Lanes<T>, T>;
    #[inline(always)]
    fn run<V: Vector<T>>(self) -> Self::Output {
        if V::ROOM >= 32 {
            sizes!(V, SIDE, SIDE, Sums)
        } else if V::ROOM >= 8 {
            sizes!(V, 2, 2, Sums)
        } else {
            sizes!(V, 1, 1, Sums)
        }
    }
}

/// A block of rows of a product.
#[derive(Clone, Copy)]
struct Strip<'a, T: Real, R, O> {
    /// Columns that are needed.
    columns: usize,
    blocks: &'a Blocks<T, R, O>,
    /// Summands of a term.
    count: usize,
    /// Where the factors and the result begin.
    left: *const Lanes<T>,
    right: R,
    out: *mut O,
}

/// Rows or columns cut into blocks: where they begin, and which size they have.
#[derive(Clone, Copy)]
struct Cut {
    sizes: [usize; 3],
    at: usize,
    end: usize,
    /// Where blocks of the middle size end.
    whole: usize,
}

impl Iterator for Cut {
    type Item = (usize, usize);
    #[inline(always)]
    fn next(&mut self) -> Option<(usize, usize)> {
        let (at, left) = (self.at, self.end - self.at);
        if left == 0 {
            return None;
        }
        let size = if at < self.whole {
            1
        } else if left >= self.sizes[2] {
            2
        } else {
            0
        };
        self.at += self.sizes[size];
        Some((at, size))
    }
}

impl<T: Real, R: Entry<T>, O> Sizes<T, R, O> {
    /// What is left over by blocks of the middle size goes to the last blocks, one more to each that are then of the largest size;
    /// if that is too much for them, or none is larger, it is blocks of 1.
    fn cut(&self, count: usize) -> Cut {
        let [_, size, last] = self.sizes;
        let (blocks, left) = (count / size, count % size);
        let larger = if last > size && left <= blocks { left } else { 0 };
        Cut { sizes: self.sizes, at: 0, end: count, whole: (blocks - larger) * size }
    }

    /// As [`Sizes::cut`], but all of the largest size where that leaves nothing over.
    fn cut_large(&self, count: usize) -> Cut {
        let whole = if count.is_multiple_of(self.sizes[2]) { 0 } else { self.cut(count).whole };
        Cut { whole, ..self.cut(count) }
    }

    /// All blocks. Two blocks of rows at a time pass by a block of columns before the next one: so many that the block is read
    /// from the nearest cache as often as from the one behind it, so few that they stay in the nearest too.
    ///
    /// # Safety
    /// These are of this machine ([`OnLanes::on_lanes`]); the views with `extent`, which is not empty, lie inside what the pointers point
    /// to, and entries of a row of sums over the lanes are one after the other.
    #[allow(clippy::too_many_arguments)]
    unsafe fn run(
        &self,
        extent: Extent,
        part: Part,
        scale: T,
        (left, l): (*const Lanes<T>, View),
        (right, r): (R, View),
        (out, place): (*mut O, View),
        ahead: Soon<'_, T>,
    ) {
        let Extent { columns, inner, terms, .. } = extent;
        let common = Common { l, r, terms, scale, row: place.row, column: place.inner };
        let strip = |(i, size): (usize, usize)| {
            let behind = i + self.sizes[size] - 1;
            let (columns, from, to) = match part {
                Part::All => (columns, 0, inner),
                Part::Lower(queries) => (columns.min(queries.seen(behind)), 0, inner),
                Part::SumBelow(queries) => (columns, 0, inner.min(queries.seen(behind))),
                Part::SumFrom(queries) => (columns, queries.that_see(i), inner),
            };
            Strip {
                columns,
                blocks: &self.blocks[size],
                count: to.saturating_sub(from),
                left: left.wrapping_add(l.at + i * l.row + from * l.inner),
                right: right.ahead(r.at + from * r.inner),
                out: out.wrapping_add(place.at + i * place.row),
            }
        };
        let lower = matches!(part, Part::Lower(_));
        let all = if lower { self.cut(columns) } else { self.cut_large(columns) };
        let mut rows = self.cut(extent.rows);
        let mut ahead = Ahead::new(ahead, extent, part);
        while let Some(first) = rows.next() {
            let first = strip(first);
            let second = rows.next().map_or(Strip { columns: 0, ..first }, strip);
            let most = first.columns.max(second.columns);
            for (j, size) in all {
                if j >= most {
                    break;
                }
                for strip in [&first, &second] {
                    let mut run = |j: usize, size: usize| {
                        ahead.ask();
                        let (right, out) = (strip.right.ahead(j * r.row), strip.out.wrapping_add(j * place.inner));
                        // SAFETY: the block lies inside the extent, and the functions are for the machine's instructions.
                        unsafe { strip.blocks[size](&common, strip.count, strip.left, right, out) };
                    };
                    if j + self.sizes[size] <= strip.columns {
                        run(j, size);
                    } else {
                        (j..strip.columns).for_each(|j| run(j, 0));
                    }
                }
            }
        }
    }
}
