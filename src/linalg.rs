//! Small dense linear algebra in `f64`: what the theory of d x d matrices needs, for d up to a few dozen.
//!
//! A general library would add more crates to every notebook than these few routines have lines.

use crate::{Error, Result};

/// Eigenvalues of a Gram matrix below this fraction of the largest count as zero: singular values below its root.
pub(crate) const RANK: f64 = 1e-12;

/// A dense matrix, row-major.
///
/// Sums and products of matrices whose shapes do not fit panic, as indexing outside a slice does: they are written as
/// formulas. What depends on the entries (a factorisation, a solution) is a [`Result`].
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    rows: usize,
    cols: usize,
    data: Vec<f64>,
}

impl Matrix {
    /// The zero matrix.
    pub fn zeros(rows: usize, cols: usize) -> Self {
        Matrix { rows, cols, data: vec![0.0; rows * cols] }
    }

    /// The identity of size `d`.
    pub fn identity(d: usize) -> Self {
        Matrix::diagonal(&vec![1.0; d])
    }

    /// The diagonal matrix with these entries.
    pub fn diagonal(entries: &[f64]) -> Self {
        let d = entries.len();
        Matrix::from_fn(d, d, |i, j| if i == j { entries[i] } else { 0.0 })
    }

    /// The matrix with entry `f(i, j)` in row i, column j.
    pub fn from_fn(rows: usize, cols: usize, mut f: impl FnMut(usize, usize) -> f64) -> Self {
        let data = (0..rows * cols).map(|k| f(k / cols, k % cols)).collect();
        Matrix { rows, cols, data }
    }

    /// The matrix with these entries, row-major.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are not `rows * cols` of them.
    pub fn from_vec(rows: usize, cols: usize, data: Vec<f64>) -> Result<Self> {
        if data.len() != rows * cols {
            return Err(Error::shape("matrix", &[data.len()], format!("[{rows} x {cols}]")));
        }
        Ok(Matrix { rows, cols, data })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The entries, row-major.
    pub fn as_slice(&self) -> &[f64] {
        &self.data
    }

    /// The transpose.
    pub fn transpose(&self) -> Self {
        Matrix::from_fn(self.cols, self.rows, |i, j| self[(j, i)])
    }

    /// The diagonal's entries.
    pub fn diag(&self) -> Vec<f64> {
        (0..self.rows.min(self.cols)).map(|i| self[(i, i)]).collect()
    }

    /// Sum of the diagonal.
    pub fn trace(&self) -> f64 {
        self.diag().iter().sum()
    }

    /// Frobenius norm.
    pub fn norm(&self) -> f64 {
        self.data.iter().map(|v| v * v).sum::<f64>().sqrt()
    }

    /// Sum of the products of entries, `tr(AᵀB)`.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn dot(&self, other: &Matrix) -> f64 {
        self.same_shape(other);
        self.data.iter().zip(&other.data).map(|(a, b)| a * b).sum()
    }

    /// `self + scale * other`.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn plus(&self, scale: f64, other: &Matrix) -> Matrix {
        self.same_shape(other);
        Matrix { data: self.data.iter().zip(&other.data).map(|(a, b)| a + scale * b).collect(), ..*self }
    }

    /// `scale * self`.
    pub fn scaled(&self, scale: f64) -> Matrix {
        Matrix { data: self.data.iter().map(|a| scale * a).collect(), ..*self }
    }

    /// The product `self * other`.
    ///
    /// # Panics
    /// If `other` has not as many rows as `self` has columns.
    pub fn mul(&self, other: &Matrix) -> Matrix {
        assert_eq!(self.cols, other.rows, "columns of the left factor and rows of the right one");
        let mut out = Matrix::zeros(self.rows, other.cols);
        for i in 0..self.rows {
            for k in 0..self.cols {
                let a = self[(i, k)];
                for j in 0..other.cols {
                    out[(i, j)] += a * other[(k, j)];
                }
            }
        }
        out
    }

    /// The product with a vector.
    ///
    /// # Panics
    /// If the vector has not as many entries as the matrix has columns.
    pub fn mul_vec(&self, v: &[f64]) -> Vec<f64> {
        assert_eq!(self.cols, v.len(), "columns of the matrix and entries of the vector");
        (0..self.rows).map(|i| (0..self.cols).map(|j| self[(i, j)] * v[j]).sum()).collect()
    }

    /// The lower-triangular L with `L Lᵀ = self`.
    ///
    /// # Errors
    /// [`Error::Numerical`] if the matrix is not positive definite, [`Error::Shape`] if it is not square.
    pub fn cholesky(&self) -> Result<Matrix> {
        self.square("Cholesky factorisation")?;
        let d = self.rows;
        let mut l = Matrix::zeros(d, d);
        for j in 0..d {
            for i in j..d {
                let s = self[(i, j)] - (0..j).map(|k| l[(i, k)] * l[(j, k)]).sum::<f64>();
                if i > j {
                    l[(i, j)] = s / l[(j, j)];
                } else if s > 0.0 && s.is_finite() {
                    l[(j, j)] = s.sqrt();
                } else {
                    return Err(Error::numerical(
                        "Cholesky factorisation",
                        format!("pivot {j} of {d} is {s:e}: the matrix is not positive definite; add a ridge"),
                    ));
                }
            }
        }
        Ok(l)
    }

    /// The solution x of `self x = b` for a positive definite matrix.
    ///
    /// # Errors
    /// As [`Matrix::cholesky`]; [`Error::Shape`] if `b` has not one entry a row.
    pub fn solve_spd(&self, b: &[f64]) -> Result<Vec<f64>> {
        Ok(self.solve_spd_each([b])?.swap_remove(0))
    }

    /// The solutions of `self x = b` for each b, from one factorisation.
    ///
    /// # Errors
    /// As [`Matrix::solve_spd`].
    pub fn solve_spd_each<'a>(&self, right: impl IntoIterator<Item = &'a [f64]>) -> Result<Vec<Vec<f64>>> {
        let l = self.cholesky()?;
        let d = self.rows;
        let solve = |b: &[f64]| {
            if b.len() != d {
                return Err(Error::shape("right-hand side", &[b.len()], format!("[{d}]")));
            }
            let mut x = b.to_vec();
            for i in 0..d {
                x[i] = (x[i] - (0..i).map(|k| l[(i, k)] * x[k]).sum::<f64>()) / l[(i, i)];
            }
            for i in (0..d).rev() {
                x[i] = (x[i] - (i + 1..d).map(|k| l[(k, i)] * x[k]).sum::<f64>()) / l[(i, i)];
            }
            Ok(x)
        };
        right.into_iter().map(solve).collect()
    }

    /// Eigenvalues (ascending) and the matrix whose columns are the eigenvectors of a symmetric matrix: Householder's
    /// tridiagonalisation and the implicit QL iteration (Golub and Van Loan, section 8.3).
    ///
    /// # Errors
    /// [`Error::Shape`] if it is not square, [`Error::Numerical`] for entries that are not finite.
    pub fn eigen_symmetric(&self) -> Result<(Vec<f64>, Matrix)> {
        self.square("eigenvalues")?;
        if self.data.iter().any(|v| !v.is_finite()) {
            return Err(Error::numerical("eigenvalues", "the matrix has entries that are not finite"));
        }
        let d = self.rows;
        // Scaled to entries of at most 1, so that squares neither overflow nor vanish.
        let size = self.data.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
        let scale = if size > f64::MIN_POSITIVE { size } else { 1.0 };
        let (mut diagonal, mut off, q) = self.scaled(1.0 / scale).tridiagonal();
        // Eigenvectors as rows, so that a rotation mixes two contiguous slices.
        let mut rows = q.transpose();
        implicit_ql(&mut diagonal, &mut off, &mut rows)?;
        let mut order: Vec<usize> = (0..d).collect();
        order.sort_by(|&i, &j| diagonal[i].total_cmp(&diagonal[j]));
        Ok((order.iter().map(|&i| scale * diagonal[i]).collect(), Matrix::from_fn(d, d, |i, j| rows[(order[j], i)])))
    }

    /// The diagonal and the off-diagonal of T, and the orthogonal Q with `self = Q T Qᵀ`, of a symmetric matrix.
    fn tridiagonal(&self) -> (Vec<f64>, Vec<f64>, Matrix) {
        let d = self.rows;
        let mut a = self.clone();
        let (mut diagonal, mut off) = (vec![0.0; d], vec![0.0; d]);
        let mut reflectors: Vec<(f64, Vec<f64>)> = Vec::with_capacity(d);
        let mut p = vec![0.0; d];
        for k in 0..d.saturating_sub(2) {
            // The reflector I - beta v vᵀ maps the column below the diagonal to a multiple of the first unit vector.
            let mut v: Vec<f64> = (k + 1..d).map(|i| a[(i, k)]).collect();
            let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
            let image = if v[0] > 0.0 { -norm } else { norm };
            v[0] -= image;
            let square: f64 = v.iter().map(|x| x * x).sum();
            let beta = if square > 0.0 { 2.0 / square } else { 0.0 };
            off[k] = image;
            let p = &mut p[..v.len()];
            for (i, p) in p.iter_mut().enumerate() {
                *p = beta * dot(&a.row(k + 1 + i)[k + 1..], &v);
            }
            let half = 0.5 * beta * dot(p, &v);
            p.iter_mut().zip(&v).for_each(|(p, v)| *p -= half * v);
            for i in 0..v.len() {
                let (vi, pi) = (v[i], p[i]);
                let row = &mut a.row_mut(k + 1 + i)[k + 1..];
                row.iter_mut().zip(v.iter().zip(&*p)).for_each(|(a, (v, p))| *a -= vi * p + pi * v);
            }
            reflectors.push((beta, v));
        }
        diagonal.iter_mut().enumerate().for_each(|(i, x)| *x = a[(i, i)]);
        if d >= 2 {
            off[d - 2] = a[(d - 1, d - 2)];
        }
        let mut q = Matrix::identity(d);
        for (k, (beta, v)) in reflectors.iter().enumerate().rev() {
            let p = &mut p[..v.len()];
            p.fill(0.0);
            for (i, v) in v.iter().enumerate() {
                p.iter_mut().zip(&q.row(k + 1 + i)[k + 1..]).for_each(|(p, q)| *p += v * q);
            }
            for (i, v) in v.iter().enumerate() {
                let scale = beta * v;
                q.row_mut(k + 1 + i)[k + 1..].iter_mut().zip(&*p).for_each(|(q, p)| *q -= scale * p);
            }
        }
        (diagonal, off, q)
    }

    /// Row `i`.
    ///
    /// # Panics
    /// If the matrix has no such row, like indexing a slice.
    pub fn row(&self, i: usize) -> &[f64] {
        &self.data[i * self.cols..][..self.cols]
    }

    /// Row `i`, to be changed.
    ///
    /// # Panics
    /// As [`Matrix::row`].
    pub fn row_mut(&mut self, i: usize) -> &mut [f64] {
        &mut self.data[i * self.cols..][..self.cols]
    }

    /// `f` applied to the eigenvalues of a symmetric matrix: square root, inverse, ….
    ///
    /// # Errors
    /// As [`Matrix::eigen_symmetric`]; [`Error::Numerical`] if `f` of an eigenvalue is not finite.
    pub fn map_symmetric(&self, f: impl Fn(f64) -> f64) -> Result<Matrix> {
        let (values, v) = self.eigen_symmetric()?;
        let mapped: Vec<f64> = values.iter().map(|&x| f(x)).collect();
        if let Some(k) = mapped.iter().position(|x| !x.is_finite()) {
            return Err(Error::numerical("function of a matrix", format!("undefined at eigenvalue {:e}", values[k])));
        }
        Ok(v.mul(&Matrix::diagonal(&mapped)).mul(&v.transpose()))
    }

    /// The minimum-norm solution of least squares, `self⁺ b`, by the eigendecomposition of the smaller Gram matrix.
    ///
    /// Singular values below `1e-6` of the largest count as zero.
    ///
    /// # Errors
    /// [`Error::Shape`] if `b` has not one entry a row; as [`Matrix::eigen_symmetric`].
    pub fn least_squares(&self, b: &[f64]) -> Result<Vec<f64>> {
        if b.len() != self.rows {
            return Err(Error::shape("right-hand side", &[b.len()], format!("[{}]", self.rows)));
        }
        let pinv = |gram: &Matrix| {
            let largest = gram.eigen_symmetric()?.0.last().copied().unwrap_or(0.0);
            gram.map_symmetric(|v| if v > RANK * largest { 1.0 / v } else { 0.0 })
        };
        let t = self.transpose();
        if self.rows >= self.cols {
            Ok(pinv(&t.mul(self))?.mul_vec(&t.mul_vec(b)))
        } else {
            Ok(t.mul_vec(&pinv(&self.mul(&t))?.mul_vec(b)))
        }
    }

    fn same_shape(&self, other: &Matrix) {
        assert_eq!((self.rows, self.cols), (other.rows, other.cols), "shapes of the two matrices");
    }

    fn square(&self, what: &str) -> Result<()> {
        if self.rows == self.cols && self.rows > 0 {
            Ok(())
        } else {
            Err(Error::shape(what, &[self.rows, self.cols], "a square matrix of size at least 1"))
        }
    }
}

impl std::ops::Index<(usize, usize)> for Matrix {
    type Output = f64;
    fn index(&self, (i, j): (usize, usize)) -> &f64 {
        &self.data[i * self.cols + j]
    }
}

impl std::ops::IndexMut<(usize, usize)> for Matrix {
    fn index_mut(&mut self, (i, j): (usize, usize)) -> &mut f64 {
        &mut self.data[i * self.cols + j]
    }
}

/// The sum of the products of entries of two vectors of one length.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    // Four sums side by side: one would wait for each addition.
    let mut sums = [0.0; 4];
    let (a4, b4) = (a.chunks_exact(4), b.chunks_exact(4));
    let rest: f64 = a4.remainder().iter().zip(b4.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a4.zip(b4) {
        for k in 0..4 {
            sums[k] += a[k] * b[k];
        }
    }
    (sums[0] + sums[1]) + (sums[2] + sums[3]) + rest
}

/// Diagonalises the tridiagonal matrix with this diagonal and, in its first d - 1 entries, this off-diagonal; the
/// rotations are applied to `rows`.
fn implicit_ql(diagonal: &mut [f64], off: &mut [f64], rows: &mut Matrix) -> Result<()> {
    let d = diagonal.len();
    for l in 0..d {
        for round in 0.. {
            // The block that starts at l ends where an off-diagonal entry is negligible.
            let small = |i: &usize| off[*i].abs() <= f64::EPSILON * (diagonal[*i].abs() + diagonal[*i + 1].abs());
            let m = (l..d - 1).find(small).unwrap_or(d - 1);
            if m == l {
                break;
            }
            if round == 60 {
                return Err(Error::numerical("eigenvalues", format!("no convergence at eigenvalue {l} of {d}")));
            }
            // Wilkinson's shift, and one bulge chased from the end of the block to its beginning.
            let ratio = (diagonal[l + 1] - diagonal[l]) / (2.0 * off[l]);
            let mut g = diagonal[m] - diagonal[l] + off[l] / (ratio + (ratio * ratio + 1.0).sqrt().copysign(ratio));
            let (mut s, mut c, mut p) = (1.0, 1.0, 0.0);
            let mut split = false;
            for i in (l..m).rev() {
                let (f, b) = (s * off[i], c * off[i]);
                let r = (f * f + g * g).sqrt();
                off[i + 1] = r;
                if r == 0.0 {
                    diagonal[i + 1] -= p;
                    off[m] = 0.0;
                    split = true;
                    break;
                }
                (s, c) = (f / r, g / r);
                g = diagonal[i + 1] - p;
                let r = (diagonal[i] - g) * s + 2.0 * c * b;
                p = s * r;
                diagonal[i + 1] = g + p;
                g = c * r - b;
                let width = rows.cols;
                let (upper, lower) = rows.data[i * width..][..2 * width].split_at_mut(width);
                for (x, y) in upper.iter_mut().zip(lower) {
                    (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
                }
            }
            if !split {
                diagonal[l] -= p;
                off[l] = g;
                off[m] = 0.0;
            }
        }
    }
    Ok(())
}

/// The solution of the square system `a x = b` by Gaussian elimination with partial pivoting.
///
/// # Errors
/// [`Error::Shape`] if the shapes do not fit, [`Error::Numerical`] if the matrix is singular.
pub fn solve(a: &Matrix, b: &[f64]) -> Result<Vec<f64>> {
    let d = b.len();
    if a.rows() != d || a.cols() != d {
        return Err(Error::shape("linear system", &[a.rows(), a.cols()], format!("[{d}, {d}]")));
    }
    let (mut a, mut b) = (a.clone(), b.to_vec());
    for k in 0..d {
        let pivot = (k..d).max_by(|&i, &j| a[(i, k)].abs().total_cmp(&a[(j, k)].abs())).unwrap_or(k);
        if a[(pivot, k)] == 0.0 || !a[(pivot, k)].is_finite() {
            return Err(Error::numerical("linear system", format!("singular at column {k} of {d}")));
        }
        for j in 0..d {
            let (x, y) = (a[(k, j)], a[(pivot, j)]);
            (a[(k, j)], a[(pivot, j)]) = (y, x);
        }
        b.swap(k, pivot);
        for i in k + 1..d {
            let f = a[(i, k)] / a[(k, k)];
            for j in k..d {
                a[(i, j)] -= f * a[(k, j)];
            }
            b[i] -= f * b[k];
        }
    }
    for i in (0..d).rev() {
        b[i] = (b[i] - (i + 1..d).map(|j| a[(i, j)] * b[j]).sum::<f64>()) / a[(i, i)];
    }
    Ok(b)
}

/// The real roots, ascending, of `c[0] + c[1] x + … + c[k] x^k`, all of whose roots are real and simple.
///
/// Between two roots of the derivative lies one root, found by bisection; the derivative's roots come from recursion.
///
/// # Errors
/// [`Error::Numerical`] if it has fewer real roots than its degree, or coefficients that are not finite.
pub fn real_roots(c: &[f64]) -> Result<Vec<f64>> {
    if c.iter().any(|v| !v.is_finite()) {
        return Err(Error::numerical("roots", "the polynomial has coefficients that are not finite"));
    }
    let degree = c.len().saturating_sub(1);
    let at = |x: f64| c.iter().rev().fold(0.0, |acc, &ci| acc * x + ci);
    if degree == 0 || c[degree] == 0.0 {
        return Err(Error::numerical("roots", "the leading coefficient is zero"));
    }
    if degree == 1 {
        return Ok(vec![-c[0] / c[1]]);
    }
    let derivative: Vec<f64> = c.iter().enumerate().skip(1).map(|(k, &v)| k as f64 * v).collect();
    let bound = 1.0 + c[..degree].iter().fold(0.0_f64, |m, v| m.max((v / c[degree]).abs()));
    let mut knots = vec![-bound];
    knots.extend(real_roots(&derivative)?);
    knots.push(bound);
    knots
        .windows(2)
        .map(|w| {
            let (mut lo, mut hi) = (w[0], w[1]);
            if at(lo) * at(hi) > 0.0 {
                return Err(Error::numerical("roots", "the polynomial has roots that are not real"));
            }
            for _ in 0..200 {
                let mid = 0.5 * (lo + hi);
                if at(lo) * at(mid) <= 0.0 {
                    hi = mid;
                } else {
                    lo = mid;
                }
            }
            Ok(0.5 * (lo + hi))
        })
        .collect()
}
