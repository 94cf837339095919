//! One amount: its number domain, reading and writing, and total arithmetic (`data-model.md` 10.2, 10.3).

use std::cmp::Ordering;
use std::fmt;

use rust_decimal::prelude::ToPrimitive;
use rust_decimal::{Decimal, RoundingStrategy};
use serde_json::Value;

use super::SlotUnit;
use crate::binary_size::{BinarySize, BinarySizeError};
use crate::python::{self, DecimalError};

/// Decimals of a count.
const COUNT_PLACES: u32 = 3;

/// As many decimals as a number can have.
const ALL_PLACES: usize = 28;

/// Decimals that write out any float from 2^-14 on; those below are 0 at three decimals, however they are cut.
const FLOAT_PLACES: usize = 66;

/// Whole digits of the largest count: with three decimals, 28 digits in all.
const COUNT_WHOLE_DIGITS: u32 = 25;

/// One amount. Infinite amounts mean "no limit".
///
/// Comparison is numeric (`1` = `1.000`); as with floats, NaN is neither equal to, below nor above anything.
#[derive(Clone, Copy, Debug)]
pub enum SlotValue {
    /// So many pieces or bytes.
    Finite(Decimal),
    /// No limit.
    Infinity,
    /// Below every amount.
    NegativeInfinity,
    /// No amount at all; fits no limit and reaches no minimum.
    NotANumber,
}

/// Why a value is not an amount (`data-model.md` 10.3). The texts are the original's where it has one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AmountError {
    /// Not a number; holds the value as the message shows it.
    #[error("('Cannot convert to decimal', {0})")]
    NotDecimal(String),
    /// Not a size.
    #[error(transparent)]
    Size(#[from] BinarySizeError),
    /// More than an amount can be: 25 digits before the point for counts, 2^96 for bytes.
    #[error("amount out of range: {0}")]
    OutOfRange(String),
}

impl SlotValue {
    /// Nothing.
    pub const ZERO: Self = Self::Finite(Decimal::ZERO);

    /// Reads an amount of `unit`: a size for bytes, else a decimal rounded half-even to three places, `inf` or `nan`
    /// (`data-model.md` 10.3, and 13 for the limits of images).
    ///
    /// # Errors
    /// [`AmountError`] if the text is neither, or out of range.
    pub fn parse(text: &str, unit: SlotUnit) -> Result<Self, AmountError> {
        match unit {
            SlotUnit::Bytes => match BinarySize::parse(text)? {
                BinarySize::Infinity => Ok(Self::Infinity),
                BinarySize::Bytes(bytes) => Decimal::try_from_i128_with_scale(bytes, 0)
                    .map(Self::Finite)
                    .map_err(|_| AmountError::OutOfRange(text.to_owned())),
            },
            SlotUnit::Count => match Self::special(text) {
                Some(special) => Ok(special),
                None => Self::count(text).map_err(|error| match error {
                    DecimalError::Syntax => AmountError::NotDecimal(python::quoted(text)),
                    DecimalError::OutOfRange => AmountError::OutOfRange(text.to_owned()),
                }),
            },
        }
    }

    /// Reads JSON as a client sends it. A fraction of a byte is cut off (DM-12).
    pub(super) fn from_json(value: &Value, unit: SlotUnit) -> Result<Self, AmountError> {
        match (value, unit) {
            (Value::String(text), _) => Self::parse(text, unit),
            (Value::Bool(flag), _) => Ok(Self::from(i64::from(*flag))),
            (Value::Number(number), SlotUnit::Count) => match number.as_f64() {
                // Rounded as the float that it is: the one next to 0.0005 is above it (`data-model.md` 10.3).
                Some(float) if number.is_f64() && float.fract() != 0.0 => {
                    Self::parse(&format!("{float:.FLOAT_PLACES$}"), unit)
                }
                // Whole numbers beyond 64 bits come as floats too, and mean the digits that were sent.
                _ => Self::parse(&number.to_string(), unit),
            },
            (Value::Number(number), SlotUnit::Bytes) => python::decimal(&number.to_string(), ALL_PLACES)
                .map(|number| Self::Finite(number.trunc()))
                .map_err(|_| AmountError::OutOfRange(number.to_string())),
            (other, _) => Err(AmountError::NotDecimal(other.to_string())),
        }
    }

    /// Reads JSON as a database may hold it; `None` is garbage. Texts keep their trailing zeros.
    pub(super) fn from_stored(value: &Value, unit: SlotUnit) -> Option<Self> {
        match value {
            Value::String(text) => Self::special(text)
                .or_else(|| python::decimal(text, ALL_PLACES).ok().map(Self::Finite))
                .or_else(|| {
                    (unit == SlotUnit::Bytes)
                        .then(|| Self::parse(text, unit).ok())
                        .flatten()
                }),
            Value::Bool(flag) => Some(Self::from(i64::from(*flag))),
            Value::Number(number) => python::decimal(&number.to_string(), ALL_PLACES)
                .ok()
                .map(|number| Self::Finite(number.normalize())),
            _ => None,
        }
    }

    /// A finite count.
    fn count(text: &str) -> Result<Self, DecimalError> {
        let number = python::decimal(text, COUNT_PLACES as usize)?;
        // Cannot overflow: 10^25 is far below 2^96.
        let limit = Decimal::from_i128_with_scale(10_i128.pow(COUNT_WHOLE_DIGITS), 0);
        if number.abs() >= limit {
            return Err(DecimalError::OutOfRange);
        }
        Ok(Self::Finite(number.normalize()))
    }

    /// The words for what is not finite, in any case, signed or not.
    fn special(text: &str) -> Option<Self> {
        let word = text.trim().to_ascii_lowercase();
        match word.strip_prefix(['+', '-']).unwrap_or(&word) {
            "inf" | "infinity" if word.starts_with('-') => Some(Self::NegativeInfinity),
            "inf" | "infinity" => Some(Self::Infinity),
            "nan" => Some(Self::NotANumber),
            _ => None,
        }
    }

    /// As `unit` has it: whole bytes, or a count rounded half-even to three decimals without trailing zeros.
    pub fn normalized(self, unit: SlotUnit) -> Self {
        match (self, unit) {
            (Self::Finite(amount), SlotUnit::Bytes) => Self::Finite(amount.trunc()),
            (Self::Finite(amount), SlotUnit::Count) => {
                let rounded =
                    amount.round_dp_with_strategy(COUNT_PLACES, RoundingStrategy::MidpointNearestEven);
                Self::Finite(rounded.normalize())
            }
            (other, _) => other,
        }
    }

    /// For messages: bytes as a short size, counts in plain notation (`data-model.md` 10.8, DM-10).
    pub fn humanized(self, unit: SlotUnit) -> String {
        match (self, unit, self.whole()) {
            (_, SlotUnit::Bytes, Some(bytes)) => BinarySize::Bytes(bytes).short(),
            (Self::Finite(amount), ..) => Self::Finite(amount.normalize()).to_string(),
            (other, ..) => other.to_string(),
        }
    }

    /// The amount without its fraction; `None` if it is not finite.
    pub fn whole(self) -> Option<i128> {
        match self {
            Self::Finite(amount) => Some(amount.trunc().mantissa()),
            _ => None,
        }
    }

    /// The nearest float, for answers that carry amounts as such.
    pub fn to_f64(self) -> f64 {
        match self {
            Self::Finite(amount) => amount.to_f64().unwrap_or(f64::NAN),
            Self::Infinity => f64::INFINITY,
            Self::NegativeInfinity => f64::NEG_INFINITY,
            Self::NotANumber => f64::NAN,
        }
    }

    /// Whether this is 0.
    pub fn is_zero(self) -> bool {
        self == Self::ZERO
    }

    /// 0 if this is negative.
    pub fn clamped_at_zero(self) -> Self {
        if self < Self::ZERO { Self::ZERO } else { self }
    }

    /// The sum; infinite if it is out of range.
    pub fn plus(self, other: Self) -> Self {
        match (self, other) {
            (Self::Finite(a), Self::Finite(b)) => match a.checked_add(b) {
                Some(sum) => Self::Finite(sum),
                None if a.is_sign_negative() => Self::NegativeInfinity,
                None => Self::Infinity,
            },
            (Self::NotANumber, _) | (_, Self::NotANumber) => Self::NotANumber,
            (Self::Infinity, Self::NegativeInfinity) | (Self::NegativeInfinity, Self::Infinity) => {
                Self::NotANumber
            }
            (Self::Finite(_), infinite) | (infinite, _) => infinite,
        }
    }

    /// So many times as much; infinite if it is out of range.
    pub fn times(self, count: i64) -> Self {
        let Self::Finite(amount) = self else { return self };
        match amount.checked_mul(Decimal::from(count)) {
            Some(product) => Self::Finite(product),
            None if amount.is_sign_negative() => Self::NegativeInfinity,
            None => Self::Infinity,
        }
    }

    /// The difference; infinite if it is out of range. Infinity stays infinite whatever is taken from it.
    pub fn minus(self, other: Self) -> Self {
        match (self, other) {
            (Self::NotANumber, _) | (_, Self::NotANumber) => Self::NotANumber,
            (Self::Infinity, _) => Self::Infinity,
            (own, Self::Infinity) => own.plus(Self::NegativeInfinity),
            (own, Self::NegativeInfinity) => own.plus(Self::Infinity),
            (own, Self::Finite(amount)) => own.plus(Self::Finite(-amount)),
        }
    }
}

impl PartialEq for SlotValue {
    fn eq(&self, other: &Self) -> bool {
        self.partial_cmp(other) == Some(Ordering::Equal)
    }
}

impl PartialOrd for SlotValue {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::NotANumber, _) | (_, Self::NotANumber) => None,
            // Placement compares thousands of amounts for a session, mostly whole ones.
            (Self::Finite(a), Self::Finite(b)) if a.scale() == b.scale() => {
                Some(a.mantissa().cmp(&b.mantissa()))
            }
            (Self::Finite(a), Self::Finite(b)) => Some(a.cmp(b)),
            (Self::Infinity, Self::Infinity) | (Self::NegativeInfinity, Self::NegativeInfinity) => {
                Some(Ordering::Equal)
            }
            (Self::Infinity, _) | (_, Self::NegativeInfinity) => Some(Ordering::Greater),
            (Self::NegativeInfinity, _) | (_, Self::Infinity) => Some(Ordering::Less),
        }
    }
}

/// Plain notation without exponent (DM-6); `Infinity`, `-Infinity`, `NaN`.
impl fmt::Display for SlotValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // Truncation and subtraction make a zero with a sign.
            Self::Finite(amount) if amount.is_zero() => amount.abs().fmt(f),
            Self::Finite(amount) => amount.fmt(f),
            Self::Infinity => f.write_str("Infinity"),
            Self::NegativeInfinity => f.write_str("-Infinity"),
            Self::NotANumber => f.write_str("NaN"),
        }
    }
}

impl From<i64> for SlotValue {
    fn from(amount: i64) -> Self {
        Self::Finite(Decimal::from(amount))
    }
}

impl From<Decimal> for SlotValue {
    fn from(amount: Decimal) -> Self {
        Self::Finite(amount)
    }
}
