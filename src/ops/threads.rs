//! Work that the threads of rayon's pool share item by item.
//!
//! rayon's iterators cut their items in halves that wait for one another. A thread that waits soon sleeps, and to be woken takes it as
//! long as a small layer takes; a training step waits several times. Here every thread takes one item after the other, and stays
//! awake for a while when none is left, in smaller models until the last is done: soon there will be more.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a thread stays awake: longer than an item of a small model takes.
const AWAKE: Duration = Duration::from_millis(2);

/// What `work` makes of each item, in their order, whichever thread it was made by. A thread begins with the same share of the
/// items every time: of what it wrote in the last call, much is still in its cache in the next.
pub(crate) fn each<T: Send, R: Send>(items: impl IntoIterator<Item = T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let items: Vec<_> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
    let results: Vec<_> = items.iter().map(|_| Mutex::new(None)).collect();
    let (count, threads, done) = (items.len(), rayon::current_num_threads(), AtomicUsize::new(0));
    let take_all = || {
        let mine = rayon::current_thread_index().unwrap_or(0) * count / threads;
        for k in (mine..count).chain(0..mine) {
            let item = lock(&items[k]).take();
            if let Some(item) = item {
                let result = work(item);
                *lock(&results[k]) = Some(result);
                done.fetch_add(1, Ordering::Release);
            }
        }
        let start = Instant::now();
        while done.load(Ordering::Acquire) < count && start.elapsed() < AWAKE {
            (0..32).for_each(|_| std::hint::spin_loop());
            // The last item may be that of a thread that has no core.
            std::thread::yield_now();
        }
    };
    rayon::scope(|scope| {
        for _ in 1..threads.min(count) {
            scope.spawn(|_| take_all());
        }
        take_all();
    });
    results.into_iter().filter_map(|result| result.into_inner().unwrap_or_else(PoisonError::into_inner)).collect()
}

/// What a lock holds, even if a panic left it: then the panic goes on, and nobody sees it.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::each;

    #[test]
    fn results_stand_in_the_order_of_the_items_for_every_number_of_threads() {
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for count in [0, 1, 2, 7, 300] {
                let expected: Vec<usize> = (0..count).map(|k| k * k).collect();
                assert_eq!(pool.install(|| each(0..count, |k| k * k)), expected, "{count} items, {threads} threads");
                let nested = pool.install(|| each(0..count, |k| each(0..3, |j| j * k)[2]));
                assert_eq!(nested, (0..count).map(|k| 2 * k).collect::<Vec<_>>());
                // From a thread outside the pool.
                assert_eq!(each(0..count, |k| k * k), expected);
            }
        }
    }

    #[test]
    fn every_item_is_lent_once() {
        let mut rows = vec![1_u64; 1000];
        each(rows.chunks_mut(9), |row| row.iter_mut().for_each(|v| *v += 1));
        assert!(rows.iter().all(|v| *v == 2));
    }

    #[test]
    fn a_panic_of_an_item_is_one_of_the_caller() {
        let caught = std::panic::catch_unwind(|| each(0..20, |k| assert!(k != 13, "item 13")));
        let message = caught.unwrap_err();
        assert!(message.downcast_ref::<&str>().is_some_and(|m| m.contains("item 13")));
        assert_eq!(each(0..3, |k| k), [0, 1, 2]);
    }
}
