//! Memory that is kept from step to step: asking the system for it anew costs as much as some layers do. What is no longer needed
//! stays in a pool for the next that asks, until the process ends.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, Mutex};

use super::attention::MARGIN;
use super::lanes::Lanes;
use super::simd::WIDTH;

/// What memory of any content can be read as.
///
/// # Safety
/// Any bits are a value, there is no padding, zeros are zero, the size is a multiple of an `f32`'s, and 64 one of the alignment.
#[doc(hidden)]
pub unsafe trait Plain: Copy + Send + Sync + 'static {}

// SAFETY: numbers.
unsafe impl Plain for f32 {}
// SAFETY: numbers.
unsafe impl Plain for f64 {}
// SAFETY: sixteen of them, at multiples of 64.
unsafe impl<T: Plain> Plain for Lanes<T> {}

/// Memory from the pool, to which it goes back.
pub(crate) struct Buffer<T: Plain = f32> {
    memory: Vec<f32>,
    at: Range<usize>,
    of: PhantomData<T>,
}

/// Asks the system for huge pages for memory that has not been touched; it is as good without.
fn in_huge_pages(memory: &mut [f32]) {
    #[cfg(target_os = "linux")]
    {
        use std::ffi::{c_int, c_void};
        unsafe extern "C" {
            fn madvise(start: *mut c_void, length: usize, advice: c_int) -> c_int;
        }
        const MADV_HUGEPAGE: c_int = 14;
        // SAFETY: the function is the C library's, which is linked; the advice changes nothing that a program sees.
        let _ = unsafe { madvise(memory.as_mut_ptr().cast(), size_of_val(memory), MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

static POOL: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());

/// Floats of a huge page, of which a processor finds the place as fast as that of a page of a thousandth.
const HUGE: usize = (2 << 20) / size_of::<f32>();

impl<T: Plain> Buffer<T> {
    /// `len` entries with whatever they hold, at an address that is a multiple of 64 bytes.
    pub fn take(len: usize) -> Self {
        let floats = len * (size_of::<T>() / size_of::<f32>());
        let (align, size) = if 2 * floats >= HUGE { (HUGE, floats.next_multiple_of(HUGE)) } else { (WIDTH, floats) };
        let kept = POOL.lock().ok().and_then(|mut pool| {
            let best = (0..pool.len()).filter(|&i| pool[i].len() >= size + align).min_by_key(|&i| pool[i].len());
            best.or_else(|| (0..pool.len()).max_by_key(|&i| pool[i].len())).map(|i| pool.swap_remove(i))
        });
        let mut memory = kept.unwrap_or_default();
        let fresh = memory.len() < size + align;
        if fresh {
            // What it held is not needed: freed first, so that the two never exist together.
            drop(std::mem::take(&mut memory));
            memory = vec![0.0; size + align];
        }
        let offset = memory.as_ptr().align_offset(align * size_of::<f32>()).min(align);
        if fresh && align == HUGE {
            in_huge_pages(&mut memory[offset..offset + size]);
        }
        Buffer { memory, at: offset..offset + floats, of: PhantomData }
    }

    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        let mut buffer = Buffer::take(len);
        buffer.memory[buffer.at.clone()].fill(0.0);
        buffer
    }

    pub fn as_ref(&self) -> &[T] {
        let floats = &self.memory[self.at.clone()];
        // SAFETY: any floats are entries, and these begin at a multiple of 64 bytes.
        unsafe { std::slice::from_raw_parts(floats.as_ptr().cast(), size_of_val(floats) / size_of::<T>()) }
    }

    pub fn as_mut(&mut self) -> &mut [T] {
        let floats = &mut self.memory[self.at.clone()];
        // SAFETY: as above, and any entries are floats.
        unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), size_of_val(floats) / size_of::<T>()) }
    }
}

impl<T: Plain> Drop for Buffer<T> {
    fn drop(&mut self) {
        if let Ok(mut pool) = POOL.lock() {
            pool.push(std::mem::take(&mut self.memory));
        }
    }
}

/// Hands out pieces of a buffer, each with a margin that may be read.
pub(super) struct Arena<'a>(pub &'a mut [f32]);

impl<'a> Arena<'a> {
    pub fn take(&mut self, len: usize) -> &'a mut [f32] {
        let (piece, rest) = std::mem::take(&mut self.0).split_at_mut(len.next_multiple_of(WIDTH) + MARGIN);
        self.0 = rest;
        piece
    }
}

/// A piece of a buffer, as long-lived as whoever has it.
pub(super) struct Piece<T: Plain> {
    start: *mut T,
    len: usize,
    /// Where it lies, or nothing for an empty one.
    _buffer: Option<Arc<Buffer<T>>>,
}

// SAFETY: no two pieces share an entry, so that this is as a vector is.
unsafe impl<T: Plain> Send for Piece<T> {}
// SAFETY: as above.
unsafe impl<T: Plain> Sync for Piece<T> {}

impl<T: Plain> Deref for Piece<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        // SAFETY: the piece's own entries of a buffer that is there as long as the piece.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl<T: Plain> DerefMut for Piece<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above; who has the piece alone has its entries alone.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

/// Cuts a buffer into pieces: many small ones have no huge pages of their own.
pub(super) struct Pieces<T: Plain> {
    /// The buffer, its first entry and how many it has; without one, pieces are counted and empty.
    buffer: Option<(Arc<Buffer<T>>, *mut T, usize)>,
    used: usize,
}

impl<T: Plain> Pieces<T> {
    /// What `make` makes of pieces of one buffer of zeros. It is called twice, the first time to see how much it needs.
    pub fn of_one_buffer<R>(make: impl Fn(&mut Self) -> R) -> R {
        let mut counted = Pieces { buffer: None, used: 0 };
        make(&mut counted);
        let mut buffer = Buffer::zeros(counted.used);
        let entries = buffer.as_mut();
        let (start, len) = (entries.as_mut_ptr(), entries.len());
        make(&mut Pieces { buffer: Some((Arc::new(buffer), start, len)), used: 0 })
    }

    /// The next `len` entries.
    ///
    /// # Panics
    /// If `make` asks for more the second time than the first.
    pub fn take(&mut self, len: usize) -> Piece<T> {
        let at = self.used;
        self.used = at.saturating_add(len);
        match &self.buffer {
            Some((buffer, start, most)) if len > 0 => {
                assert!(self.used <= *most, "more pieces than were counted");
                // SAFETY: an entry of the buffer, as has just been seen.
                Piece { start: unsafe { start.add(at) }, len, _buffer: Some(Arc::clone(buffer)) }
            }
            _ => Piece { start: std::ptr::NonNull::dangling().as_ptr(), len: 0, _buffer: None },
        }
    }
}
