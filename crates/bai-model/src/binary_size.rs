//! Sizes in bytes with a text form (`data-model.md` 11): `1.5g`, `953.67 MiB`, `Infinity`.
//!
//! Invariants: arithmetic is on integers, so that no size is rounded before it is printed; every size has a text.
//!
//! Not here: amounts of slots whose unit is bytes, see [`crate::slot`].

use std::fmt;
use std::str::FromStr;

use rust_decimal::Decimal;

use crate::python::{self, DecimalError};

/// Bytes, possibly infinite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BinarySize {
    /// So many bytes; below zero only as the result of a subtraction or of a text with a sign.
    Bytes(i128),
    /// No limit.
    Infinity,
}

/// Why a text is not a size (`data-model.md` 11.1). The texts are the original's, since GraphQL answers carry them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BinarySizeError {
    /// No digits where a unit, or anything at all, was expected.
    #[error("string index out of range")]
    Empty,
    /// A fraction, an exponent or other text without a unit.
    #[error("invalid literal for int() with base 10: {}", python::quoted(.0))]
    NotAnInteger(String),
    /// An unknown unit, or something before it that is not a number.
    #[error("('Unconvertible value', {})", python::quoted(.0))]
    Unconvertible(String),
    /// More bytes than can be counted (2^127).
    #[error("size out of range: {0}")]
    OutOfRange(String),
}

/// The multipliers of sizes, each 1024 times the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SizeUnit {
    /// 1
    Byte,
    /// 2^10
    Kibi,
    /// 2^20
    Mebi,
    /// 2^30
    Gibi,
    /// 2^40
    Tebi,
    /// 2^50
    Pebi,
    /// 2^60
    Exbi,
    /// 2^70
    Zebi,
    /// 2^80
    Yobi,
}

impl SizeUnit {
    /// Every unit above the byte, ascending, with its letter.
    const LETTERED: [(Self, char); 8] = [
        (Self::Kibi, 'k'),
        (Self::Mebi, 'm'),
        (Self::Gibi, 'g'),
        (Self::Tebi, 't'),
        (Self::Pebi, 'p'),
        (Self::Exbi, 'e'),
        (Self::Zebi, 'z'),
        (Self::Yobi, 'y'),
    ];

    /// How often 1024 is a factor.
    fn power(self) -> u32 {
        self as u32
    }

    /// Bytes in one of this unit.
    fn bytes(self) -> i128 {
        1 << (10 * self.power())
    }

    /// The lower-case letter; the byte has none.
    fn letter(self) -> Option<char> {
        Self::LETTERED
            .into_iter()
            .find(|(unit, _)| *unit == self)
            .map(|(_, letter)| letter)
    }

    /// The unit that `letter` (lower case, or a blank for bytes) stands for.
    fn from_letter(letter: char) -> Option<Self> {
        if letter == ' ' {
            return Some(Self::Byte);
        }
        Self::LETTERED
            .into_iter()
            .find(|(_, own)| *own == letter)
            .map(|(unit, _)| unit)
    }

    /// The largest unit of which `bytes` has at least one.
    fn natural(bytes: i128) -> Self {
        let lettered = Self::LETTERED.into_iter().map(|(unit, _)| unit);
        lettered
            .rev()
            .find(|unit| bytes >= unit.bytes())
            .unwrap_or(Self::Byte)
    }
}

/// Endings that mean bytes, in the order of trial.
const ENDINGS: [&str; 6] = ["ibytes", "ibyte", "ib", "bytes", "byte", "b"];

impl BinarySize {
    /// Reads `1024`, `1.5g`, `1 KiB`, `inf` (`data-model.md` 11.1).
    ///
    /// # Errors
    /// [`BinarySizeError`] with the original's text; a plain number too large to count is out of range.
    pub fn parse(text: &str) -> Result<Self, BinarySizeError> {
        if text
            .get(..3)
            .is_some_and(|start| start.eq_ignore_ascii_case("inf"))
        {
            return Ok(Self::Infinity);
        }
        let compact: String = text.trim().chars().filter(|c| *c != '_').collect();
        let digits = compact.strip_prefix(['+', '-']).unwrap_or(&compact);
        if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return compact
                .parse()
                .map(Self::Bytes)
                .map_err(|_| BinarySizeError::OutOfRange(text.to_owned()));
        }
        let lower = compact.to_lowercase();
        let ending = ENDINGS.into_iter().find_map(|ending| lower.strip_suffix(ending));
        let mut number = ending.unwrap_or(&lower).chars();
        let letter = number.next_back().ok_or(BinarySizeError::Empty)?;
        if ending.is_none() && letter.is_ascii_digit() {
            return Err(BinarySizeError::NotAnInteger(compact));
        }
        let unconvertible = || BinarySizeError::Unconvertible(text.to_owned());
        let unit = SizeUnit::from_letter(letter).ok_or_else(unconvertible)?;
        match python::decimal(number.as_str(), 28) {
            Ok(number) => scaled(number, unit).map(Self::Bytes),
            Err(DecimalError::Syntax) => return Err(unconvertible()),
            Err(DecimalError::OutOfRange) => None,
        }
        .ok_or_else(|| BinarySizeError::OutOfRange(text.to_owned()))
    }

    /// For people: `1 byte`, `1000 bytes`, `1.5 KiB` (`data-model.md` 11.2). Below zero always in bytes.
    pub fn long(self) -> String {
        match self {
            Self::Infinity => self.to_string(),
            Self::Bytes(1) => "1 byte".to_owned(),
            Self::Bytes(bytes) => match SizeUnit::natural(bytes) {
                SizeUnit::Byte => format!("{bytes} bytes"),
                unit => {
                    let letter = unit.letter().map(|letter| letter.to_ascii_uppercase());
                    format!("{} {}iB", rounded(bytes, unit), letter.unwrap_or_default())
                }
            },
        }
    }

    /// Compact: `1023`, `1.5k`, `1g` (`data-model.md` 11.2). Below zero always in bytes.
    pub fn short(self) -> String {
        match self {
            Self::Infinity => self.to_string(),
            Self::Bytes(bytes) => self.fixed(SizeUnit::natural(bytes)),
        }
    }

    /// In the given unit, whatever the size: 10240 bytes in mebibytes are `0.01m`. Below zero always in bytes.
    pub fn fixed(self, unit: SizeUnit) -> String {
        match self {
            Self::Infinity => self.to_string(),
            Self::Bytes(bytes) if bytes < 0 => bytes.to_string(),
            Self::Bytes(bytes) => {
                rounded(bytes, unit) + unit.letter().map(String::from).unwrap_or_default().as_str()
            }
        }
    }
}

/// The number of bytes, exactly; or `Infinity`.
impl fmt::Display for BinarySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => bytes.fmt(f),
            Self::Infinity => f.write_str("Infinity"),
        }
    }
}

impl FromStr for BinarySize {
    type Err = BinarySizeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

/// `number` x `unit` truncated towards zero. One factor of 1024 at a time keeps whole and fraction exact.
fn scaled(number: Decimal, unit: SizeUnit) -> Option<i128> {
    let denominator = 10_i128.checked_pow(number.scale())?;
    let mut whole = number.mantissa() / denominator;
    let mut fraction = number.mantissa() % denominator;
    for _ in 0..unit.power() {
        fraction *= 1024; // below 10^28 x 2^10, far from overflow
        whole = whole.checked_mul(1024)?.checked_add(fraction / denominator)?;
        fraction %= denominator;
    }
    Some(whole)
}

/// `bytes` (not negative) in `unit`, half-even to two decimals, without trailing zeros and never with an exponent (DM-48).
fn rounded(bytes: i128, unit: SizeUnit) -> String {
    let size = unit.bytes();
    let (whole, rest) = (bytes / size, bytes % size);
    let (cents, left) = (rest * 100 / size, rest * 100 % size);
    let up = left * 2 > size || (left * 2 == size && cents % 2 == 1);
    let cents = cents + i128::from(up);
    let (whole, cents) = (whole + cents / 100, cents % 100);
    match (cents / 10, cents % 10) {
        (0, 0) => whole.to_string(),
        (tenths, 0) => format!("{whole}.{tenths}"),
        _ => format!("{whole}.{cents:02}"),
    }
}

#[cfg(test)]
mod tests;
