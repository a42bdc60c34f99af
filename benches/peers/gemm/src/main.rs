//! One thread's matrix products at the shapes of the training engine: the crate's own, gemm's, faer's and OpenBLAS's, in
//! turn, and how fast the others are in per cent of the crate's own: the median over rounds of the ratio within a round.
//!
//! OpenBLAS is loaded at run time, from the path in the environment variable `OPENBLAS` or by its usual name; without it its
//! columns are empty.

use std::hint::black_box;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use incontext::ops::gemm::{Left, Right, Start, gemm, pack, packed_len};
use rustix::time::{ClockId, clock_gettime};

/// m, n, k of C = A B: what the configurations S, M, L and P of `cargo lab bench train` multiply.
const SHAPES: [[usize; 3]; 8] = [
    [176, 64, 64],
    [352, 192, 64],
    [352, 256, 64],
    [352, 64, 256],
    [328, 256, 256],
    [328, 768, 256],
    [328, 1024, 256],
    [328, 256, 1024],
];
const ROUNDS: usize = 41;

/// `cblas_sgemm`: order, transpose A and B, m, n, k, α, A, lda, B, ldb, β, C, ldc.
type Sgemm =
    unsafe extern "C" fn(i32, i32, i32, i32, i32, i32, f32, *const f32, i32, *const f32, i32, f32, *mut f32, i32);

/// Seconds of this thread's processor time.
fn now() -> f64 {
    let t = clock_gettime(ClockId::ThreadCPUTime);
    t.tv_sec as f64 + 1e-9 * t.tv_nsec as f64
}

/// GFLOP/s of `work`, which does `flops` operations, over enough repetitions for the clock.
fn rate(flops: f64, mut work: impl FnMut()) -> f64 {
    let repetitions = (2e7 / flops).ceil().max(1.0);
    let start = now();
    for _ in 0..repetitions as usize {
        work();
    }
    flops * repetitions / (now() - start) * 1e-9
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let path = std::env::var("OPENBLAS").unwrap_or_else(|_| "libopenblas.so.0".to_owned());
    // SAFETY: the library's initialisers are OpenBLAS's own; the signatures are those of its headers.
    let library = unsafe { libloading::Library::new(path) }.ok();
    let sgemm: Option<Sgemm> =
        library.as_ref().and_then(|l| unsafe { l.get::<Sgemm>(b"cblas_sgemm\0").ok().map(|s| *s) });
    if let Some(threads) =
        library.as_ref().and_then(|l| unsafe { l.get::<unsafe extern "C" fn(i32)>(b"openblas_set_num_threads\0").ok() })
    {
        // SAFETY: as above.
        unsafe { threads(1) };
    }
    println!("m x k x n | A B: gemm, faer, OpenBLAS | A^T B: gemm, faer, OpenBLAS | ours, GFLOP/s");
    for [m, n, k] in SHAPES {
        let a: Vec<f32> = (0..m * k).map(|i| (i * 7919 % 1000) as f32 * 1e-3 - 0.5).collect();
        let b: Vec<f32> = (0..k * n).map(|i| (i * 6007 % 1000) as f32 * 1e-3 - 0.5).collect();
        let mut packed = vec![0.0; packed_len(k, n)];
        pack(k, n, &b, &mut packed);
        let flops = 2.0 * (m * n * k) as f64;
        let mut rates = vec![vec![0.0; ROUNDS]; 8];
        let mut results: Vec<Vec<f32>> = vec![vec![0.0; m * n]; 8];
        for round in 0..ROUNDS {
            for transposed in [false, true] {
                // A is m x k by rows, or the same numbers as k x m by rows.
                let (row, step) = if transposed { (1, m) } else { (k, 1) };
                let at = |library: usize| library + 4 * usize::from(transposed);
                let c = &mut results[at(0)];
                // As in the engine: a weight is packed once a step, a matrix of activations is read as it is.
                let right = if transposed { Right::rows(&b, n) } else { Right::packed(&packed, k, n) };
                rates[at(0)][round] = rate(flops, || {
                    gemm([m, n, k], Left { data: &a, row, step }, right, Start::ZERO, black_box(&mut *c), n)
                });
                let c = &mut results[at(1)];
                rates[at(1)][round] = rate(flops, || {
                    // SAFETY: the strides are those of the slices, which have m k, k n and m n entries.
                    unsafe {
                        gemm::gemm(
                            m,
                            n,
                            k,
                            black_box(&mut *c).as_mut_ptr(),
                            1,
                            n as isize,
                            false,
                            a.as_ptr(),
                            step as isize,
                            row as isize,
                            b.as_ptr(),
                            1,
                            n as isize,
                            0.0,
                            1.0,
                            false,
                            false,
                            false,
                            gemm::Parallelism::None,
                        );
                    }
                });
                let c = &mut results[at(2)];
                rates[at(2)][round] = rate(flops, || {
                    let left = MatRef::from_row_major_slice(
                        &a,
                        if transposed { k } else { m },
                        if transposed { m } else { k },
                    );
                    let left = if transposed { left.transpose() } else { left };
                    matmul(
                        MatMut::from_row_major_slice_mut(black_box(&mut *c), m, n),
                        Accum::Replace,
                        left,
                        MatRef::from_row_major_slice(&b, k, n),
                        1.0,
                        Par::Seq,
                    );
                });
                if let Some(sgemm) = sgemm {
                    let c = &mut results[at(3)];
                    let (order, kind, lda) = if transposed { (101, 112, m) } else { (101, 111, k) };
                    rates[at(3)][round] = rate(flops, || {
                        // SAFETY: row-major with the leading dimensions of the slices.
                        unsafe {
                            sgemm(
                                order,
                                kind,
                                111,
                                m as i32,
                                n as i32,
                                k as i32,
                                1.0,
                                a.as_ptr(),
                                lda as i32,
                                b.as_ptr(),
                                n as i32,
                                0.0,
                                black_box(&mut *c).as_mut_ptr(),
                                n as i32,
                            );
                        }
                    });
                }
            }
        }
        for library in 0..8 {
            if library % 4 == 3 && sgemm.is_none() {
                continue;
            }
            let first = library / 4 * 4;
            let apart = results[library].iter().zip(&results[first]).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
            assert!(apart < 1e-3, "library {library} at {m} x {n} x {k}: {apart} from ours");
        }
        let mut line = format!("{m} x {k} x {n}");
        for first in [0, 4] {
            let shares = (first + 1..first + 4).map(|library| {
                let mut ratios: Vec<f64> =
                    rates[library].iter().zip(&rates[first]).map(|(other, ours)| 100.0 * other / ours).collect();
                let share = median(&mut ratios);
                if share > 0.0 { format!("{share:.0}") } else { "-".to_owned() }
            });
            line = format!("{line} | {}", shares.collect::<Vec<_>>().join(", "));
        }
        println!("{line} | {:.0}", median(&mut rates[0]));
    }
}
