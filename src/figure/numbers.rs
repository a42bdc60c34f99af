//! Numbers as notebooks have them (`Vec<f64>`, `&[f32]`, integers), and their JSON form.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number that can be drawn: every primitive number and references to one.
pub trait Number {
    /// The number as `f64`, rounded to the nearest where it has more digits.
    fn number(self) -> f64;
}

macro_rules! numbers {
    ($($kind:ty)*) => {$(
        impl Number for $kind {
            fn number(self) -> f64 {
                self as f64
            }
        }
    )*};
}
numbers!(f64 f32 u8 u16 u32 u64 usize i8 i16 i32 i64 isize);

impl<N: Number + Copy> Number for &N {
    fn number(self) -> f64 {
        (*self).number()
    }
}

/// Anything that iterates over numbers, as `f64`.
pub(crate) fn collect<N: Number>(values: impl IntoIterator<Item = N>) -> Vec<f64> {
    values.into_iter().map(Number::number).collect()
}

/// JSON form of a list of numbers: `null` stands for a number that is not finite, and reads back as NaN.
pub(crate) fn serialize<S: Serializer>(values: &[f64], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(|v| v.is_finite().then_some(*v)))
}

/// The inverse of [`serialize`].
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
    Ok(Vec::<Option<f64>>::deserialize(deserializer)?.into_iter().map(|v| v.unwrap_or(f64::NAN)).collect())
}

/// JSON form of one number, in the same way.
pub(crate) mod one {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        value.is_finite().then_some(*value).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(Option::<f64>::deserialize(deserializer)?.unwrap_or(f64::NAN))
    }
}
