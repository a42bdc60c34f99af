//! One error type for the crate: errors are values that say what was given, what was expected, and what to do.

use std::path::PathBuf;

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong in `incontext`.
///
/// Every variant carries the words a person needs: what was given, what was expected and where.
///
/// ```
/// use incontext::Error;
/// let error = Error::invalid("dimension", "0", "an integer of at least 1");
/// assert_eq!(error.to_string(), "dimension: got 0, expected an integer of at least 1");
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// An argument outside what the function is defined for.
    Invalid {
        /// The argument's name.
        what: String,
        /// The value that was given.
        given: String,
        /// What would have been accepted.
        expected: String,
    },
    /// An array whose shape does not fit.
    Shape {
        /// The array's name.
        what: String,
        /// The shape that was given.
        given: Vec<usize>,
        /// The shape that was expected, in words (`"[B, n, d]"`).
        expected: String,
    },
    /// A computation that left the domain where it is defined: a singular system, a NaN, a divergence.
    Numerical {
        /// The computation.
        what: String,
        /// What happened, and what to do about it.
        why: String,
    },
    /// A name that no registry knows.
    Unknown {
        /// The kind of thing that was looked up (`"figure"`, `"checkpoint"`).
        kind: String,
        /// The name that was given.
        given: String,
        /// The names that exist.
        known: Vec<String>,
    },
    /// A file that could not be read or written.
    File {
        /// Its path.
        path: PathBuf,
        /// What was being done (`"read"`, `"write"`).
        action: &'static str,
        /// The reason.
        why: String,
    },
    /// A file that was read but whose content is not what it should be.
    Corrupt {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// The caller asked for an interruption; what had been done was saved.
    Interrupted {
        /// Where the work stands and how to continue it.
        state: String,
    },
}

impl Error {
    /// An argument `what` with value `given`, where `expected` was needed.
    pub fn invalid(what: impl Into<String>, given: impl ToString, expected: impl Into<String>) -> Self {
        Error::Invalid { what: what.into(), given: given.to_string(), expected: expected.into() }
    }

    /// An array `what` of shape `given`, where `expected` was needed.
    pub fn shape(what: impl Into<String>, given: &[usize], expected: impl Into<String>) -> Self {
        Error::Shape { what: what.into(), given: given.to_vec(), expected: expected.into() }
    }

    /// A computation `what` that failed, and `why`.
    pub fn numerical(what: impl Into<String>, why: impl Into<String>) -> Self {
        Error::Numerical { what: what.into(), why: why.into() }
    }

    /// A `kind` of thing called `given`, which is none of the `known` ones.
    pub fn unknown<S: Into<String>>(
        kind: impl Into<String>,
        given: impl Into<String>,
        known: impl IntoIterator<Item = S>,
    ) -> Self {
        Error::Unknown { kind: kind.into(), given: given.into(), known: known.into_iter().map(Into::into).collect() }
    }

    /// A file at `path` for which `action` failed, and `why`.
    pub fn file(path: impl Into<PathBuf>, action: &'static str, why: impl ToString) -> Self {
        Error::File { path: path.into(), action, why: why.to_string() }
    }

    /// A file at `path` whose content is damaged or of another kind, and `why`.
    pub fn corrupt(path: impl Into<PathBuf>, why: impl ToString) -> Self {
        Error::Corrupt { path: path.into(), why: why.to_string() }
    }
}

/// The number of elements of an array `what` of this shape, if an array of `T` of that size can exist and there is
/// memory for it now.
///
/// # Errors
/// [`Error::Invalid`] if not: a length that wrapped around, or an allocation that failed, would end the process.
pub(crate) fn array_len<T>(what: &str, shape: &[usize]) -> Result<usize> {
    let refused =
        || Error::invalid(format!("size of the {what}"), format!("{shape:?}"), "an array that fits in memory");
    let len = shape.iter().try_fold(1_usize, |len, side| len.checked_mul(*side)).ok_or_else(refused)?;
    // Reserved and given back: nothing is written, so this costs a system call at most.
    let mut room = Vec::<T>::new();
    room.try_reserve_exact(len).map_err(|_| refused())?;
    // An allocation that is not looked at may be optimised away.
    std::hint::black_box(&mut room);
    Ok(len)
}

/// The values, if all of them are finite.
///
/// # Errors
/// [`Error::Invalid`] with the first that is not, and its place.
pub(crate) fn all_finite(what: &str, values: impl IntoIterator<Item = f64>) -> Result<()> {
    match values.into_iter().enumerate().find(|(_, v)| !v.is_finite()) {
        Some((i, v)) => Err(Error::invalid(format!("{what}, entry {i}"), v, "a finite number")),
        None => Ok(()),
    }
}

/// As [`all_finite`], of single precision: all at once first, then one by one to tell which is not.
pub(crate) fn all_finite_f32(what: &str, values: &[f32]) -> Result<()> {
    // Without its sign a number's bits grow with it, up to those of infinity and NaN.
    let greatest = values.iter().fold(0, |greatest: i32, v| greatest.max((v.to_bits() & 0x7fff_ffff) as i32));
    if greatest < f32::INFINITY.to_bits() as i32 {
        return Ok(());
    }
    all_finite(what, values.iter().map(|v| f64::from(*v)))
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::Invalid { what, given, expected } => write!(f, "{what}: got {given}, expected {expected}"),
            Error::Shape { what, given, expected } => {
                write!(f, "{what}: got shape {given:?}, expected {expected}")
            }
            Error::Numerical { what, why } => write!(f, "{what}: {why}"),
            Error::Unknown { kind, given, known } => {
                write!(f, "no {kind} is called '{given}'; there are: {}", known.join(", "))
            }
            Error::File { path, action, why } => write!(f, "could not {action} {}: {why}", path.display()),
            Error::Corrupt { path, why } => write!(f, "{} is not usable: {why}", path.display()),
            Error::Interrupted { state } => write!(f, "interrupted: {state}"),
        }
    }
}

impl std::error::Error for Error {}
