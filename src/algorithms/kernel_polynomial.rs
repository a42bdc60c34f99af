//! The exact optimum of L layers of preconditioned gradient descent (`pgd` eq. 8, Theorem 3; pgd.md section 4.4).
//!
//! On the family A_l = -a_l Σ⁻¹ the loss is d ∫ p(λ)² dμ(λ) with p(λ) = Π (1 − a_l λ), p(0) = 1, and μ the mean spectral
//! measure of W ~ Wishart_d(n, I)/n. The best p of degree L is the kernel polynomial of μ at 0; the step sizes are the
//! reciprocals of its roots, in any order.

use crate::linalg::{Matrix, real_roots, solve};
use crate::{Error, Result};

/// The best L steps of gradient descent for Gaussian prompts, and their loss.
///
/// ```
/// use incontext::algorithms::KernelPolynomial;
/// let best = KernelPolynomial::new(5, 20, 3)?;
/// assert!((best.loss - 0.133608).abs() < 1e-6);
/// # Ok::<(), incontext::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct KernelPolynomial {
    /// Step sizes a_l in whitened coordinates, ascending.
    pub steps: Vec<f64>,
    /// The in-context loss f* they reach; the initial loss is d.
    pub loss: f64,
}

impl KernelPolynomial {
    /// The optimum for dimension `d`, context length `n` and `layers` = L.
    ///
    /// # Errors
    /// [`Error::Invalid`] for d or n of 0, or L outside 1 to 4 (a moment of order 8 is a sum over two million pairings);
    /// [`Error::Numerical`] if n < L leaves too few points for a polynomial of degree L.
    pub fn new(d: usize, n: usize, layers: usize) -> Result<Self> {
        if d == 0 || n == 0 {
            return Err(Error::invalid("dimension and context length", format!("{d}, {n}"), "at least 1 each"));
        }
        if !(1..=4).contains(&layers) {
            return Err(Error::invalid("layers", layers, "1 to 4"));
        }
        let m: Vec<f64> = (0..=2 * layers).map(|k| wishart_moment(d, n, k)).collect();
        // Minimise ∫ (1 + Σ c_i λ^i)²: M c = -v with M_ij = m_{i+j}, v_i = m_i.
        let matrix = Matrix::from_fn(layers, layers, |i, j| m[i + j + 2]);
        let v: Vec<f64> = (1..=layers).map(|i| m[i]).collect();
        let c: Vec<f64> = solve(&matrix, &v)?.iter().map(|x| -x).collect();
        let loss = d as f64 * (1.0 + v.iter().zip(&c).map(|(v, c)| v * c).sum::<f64>());
        let polynomial: Vec<f64> = std::iter::once(1.0).chain(c).collect();
        let mut steps: Vec<f64> = real_roots(&polynomial)?.iter().map(|r| 1.0 / r).collect();
        steps.sort_by(f64::total_cmp);
        Ok(KernelPolynomial { steps, loss })
    }

    /// The best single step size shared by all layers (a looped model), and its loss: the least of d ∫ (1 − aλ)^{2L} dμ.
    ///
    /// # Errors
    /// As [`KernelPolynomial::new`].
    pub fn looped(d: usize, n: usize, layers: usize) -> Result<Self> {
        KernelPolynomial::new(d, n, layers)?;
        let loss = constant_rate(d, n, layers);
        // The loss is convex in a: a mean of even powers of affine functions.
        let (mut low, mut high) = (0.0_f64, 2.0_f64);
        for _ in 0..200 {
            let (a, b) = (low + (high - low) / 3.0, high - (high - low) / 3.0);
            if loss(a) < loss(b) { high = b } else { low = a }
        }
        Ok(KernelPolynomial { steps: vec![0.5 * (low + high); layers], loss: loss(0.5 * (low + high)) })
    }
}

/// The loss d ∫ (1 − aλ)^{2L} dμ of L steps of the same size, as a function of the step size a, exactly.
pub fn constant_rate(d: usize, n: usize, layers: usize) -> impl Fn(f64) -> f64 {
    let terms: Vec<f64> = (0..=2 * layers)
        .map(|k| (0..k).fold(wishart_moment(d, n, k), |b, i| b * (2 * layers - i) as f64 / (i + 1) as f64))
        .collect();
    move |a| d as f64 * terms.iter().enumerate().map(|(k, t)| t * (-a).powi(k as i32)).sum::<f64>()
}

/// E (1/d) tr Wᵏ for W ~ Wishart_d(n, I)/n, exactly.
///
/// tr (X Xᵀ)ᵏ is a product of 2k Gaussian entries; by Wick's formula its mean is the sum over the (2k−1)!! pairings of
/// d^(loops of row indices) n^(loops of column indices).
pub fn wishart_moment(d: usize, n: usize, k: usize) -> f64 {
    if k == 0 {
        // The trace of the identity, which no pairing counts.
        return 1.0;
    }
    let mut partner = vec![usize::MAX; 2 * k];
    pairings(&mut partner, d as f64, n as f64) / (d as f64 * (n as f64).powi(k as i32))
}

/// Sum over all ways to pair the factors that have no partner yet.
fn pairings(partner: &mut [usize], d: f64, n: f64) -> f64 {
    let Some(p) = partner.iter().position(|&q| q == usize::MAX) else {
        // Factors 2m and 2m+1 share a column index, 2m+1 and 2m+2 a row index.
        let size = partner.len();
        let columns = loops(partner, |f| f ^ 1);
        let rows = loops(partner, |f| if f % 2 == 1 { (f + 1) % size } else { (f + size - 1) % size });
        return d.powi(rows) * n.powi(columns);
    };
    let mut sum = 0.0;
    for q in p + 1..partner.len() {
        if partner[q] == usize::MAX {
            (partner[p], partner[q]) = (q, p);
            sum += pairings(partner, d, n);
            (partner[p], partner[q]) = (usize::MAX, usize::MAX);
        }
    }
    sum
}

/// Number of cycles of the union of two matchings: the pairing and `shared`.
fn loops(partner: &[usize], shared: impl Fn(usize) -> usize) -> i32 {
    let mut seen = vec![false; partner.len()];
    let mut count = 0;
    for start in 0..partner.len() {
        if seen[start] {
            continue;
        }
        count += 1;
        let mut f = start;
        while !seen[f] {
            seen[f] = true;
            let q = partner[f];
            seen[q] = true;
            f = shared(q);
        }
    }
    count
}
