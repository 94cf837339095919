//! The two text forms that the protocol inherits from Python: decimal literals, and texts quoted in messages.
//!
//! Invariant: reading never panics and never loops longer than its input, however long the digits or the exponent.
//!
//! Not here: what a number means (units, infinities), see [`crate::slot`] and [`crate::binary_size`].

use rust_decimal::Decimal;

/// So many significant digits always fit (`data-model.md` 10.2); whole numbers may have one more, up to 2^96.
const SIGNIFICANT_DIGITS: usize = 28;

/// Why a text is not a usable number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DecimalError {
    /// It does not read as a finite number.
    Syntax,
    /// It is 2^96 or more.
    OutOfRange,
}

/// Reads a finite decimal literal (blanks around it, `_`, sign, fraction and exponent allowed), rounded half-even to at
/// most `places` decimals; trailing zeros stay as written.
pub(crate) fn decimal(text: &str, places: usize) -> Result<Decimal, DecimalError> {
    let compact: String = text.trim().chars().filter(|c| *c != '_').collect();
    let (negative, unsigned) = match compact.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, compact.strip_prefix('+').unwrap_or(&compact)),
    };
    let (number, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((number, exponent)) => (number, read_exponent(exponent)?),
        None => (unsigned, 0),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || !all_digits(&digits) {
        return Err(DecimalError::Syntax);
    }
    let scale = i64::try_from(fraction.len())
        .unwrap_or(i64::MAX)
        .saturating_sub(exponent);
    let magnitude = round(digits.trim_start_matches('0'), scale, places)?;
    Ok(if negative && !magnitude.is_zero() {
        -magnitude
    } else {
        magnitude
    })
}

/// `digits` x 10^-`scale`.
fn round(digits: &str, scale: i64, places: usize) -> Result<Decimal, DecimalError> {
    let Ok(scale) = usize::try_from(scale) else {
        if digits.is_empty() {
            return Ok(Decimal::ZERO);
        }
        // `scale` is below 0: the number is whole and ends in zeros.
        let zeros = usize::try_from(scale.unsigned_abs()).unwrap_or(usize::MAX);
        if digits.len().saturating_add(zeros) > SIGNIFICANT_DIGITS + 1 {
            return Err(DecimalError::OutOfRange);
        }
        return compose(&format!("{digits}{}", "0".repeat(zeros)), 0, false);
    };
    let whole_digits = digits.len().saturating_sub(scale);
    let room = SIGNIFICANT_DIGITS.saturating_sub(whole_digits);
    let kept_scale = scale.min(places).min(room);
    let dropped = scale - kept_scale;
    if dropped > digits.len() {
        return compose("", kept_scale, false);
    }
    let (kept, rest) = digits.split_at(digits.len() - dropped);
    let kept_is_odd = kept.bytes().last().is_some_and(|digit| digit % 2 == 1);
    let above_half = match rest.as_bytes().split_first() {
        Some((first, more)) if *first == b'5' => kept_is_odd || more.iter().any(|digit| *digit != b'0'),
        Some((first, _)) => *first > b'5',
        None => false,
    };
    compose(kept, kept_scale, above_half)
}

/// The digits, plus one in the last place if `up`, with `scale` of them behind the point.
fn compose(digits: &str, scale: usize, up: bool) -> Result<Decimal, DecimalError> {
    let mantissa = if digits.is_empty() {
        Ok(0_i128)
    } else {
        digits.parse::<i128>()
    };
    let mantissa = mantissa
        .ok()
        .and_then(|mantissa| mantissa.checked_add(i128::from(up)))
        .ok_or(DecimalError::OutOfRange)?;
    let scale = u32::try_from(scale).map_err(|_| DecimalError::OutOfRange)?;
    Decimal::try_from_i128_with_scale(mantissa, scale).map_err(|_| DecimalError::OutOfRange)
}

fn all_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The exponent; one too large for any number saturates.
fn read_exponent(text: &str) -> Result<i64, DecimalError> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if digits.is_empty() || !all_digits(digits) {
        return Err(DecimalError::Syntax);
    }
    let magnitude = digits.parse().unwrap_or(i64::MAX);
    Ok(if negative { -magnitude } else { magnitude })
}

/// `text` in quotes as the original's messages show it: single quotes, or double ones if that spares escaping.
pub(crate) fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::with_capacity(text.len() + 2);
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_read_exactly_and_rounded_half_even() {
        for (text, places, expected) in [
            ("10", 3, "10"),
            (" 1_0 ", 3, "10"),
            ("+1.50", 28, "1.50"),
            ("1E+1", 28, "10"),
            ("1e-2", 28, "0.01"),
            (".5", 28, "0.5"),
            ("5.", 28, "5"),
            ("-0", 28, "0"),
            ("-0.0", 28, "0.0"),
            ("0e999999999999999999999", 28, "0"),
            ("1e-999999999999999999999", 3, "0.000"),
            ("0.0005", 3, "0.000"),
            ("0.0015", 3, "0.002"),
            ("0.0025", 3, "0.002"),
            ("0.00250000000000000000000000000000000001", 3, "0.003"),
            ("0.9996", 3, "1.000"),
            ("9999999999999999999999999999", 28, "9999999999999999999999999999"),
            (
                "79228162514264337593543950335",
                28,
                "79228162514264337593543950335",
            ),
            ("-1e28", 28, "-10000000000000000000000000000"),
            (
                "123.12345678901234567890123456789",
                28,
                "123.1234567890123456789012346",
            ),
        ] {
            assert_eq!(
                decimal(text, places).map(|d| d.to_string()),
                Ok(expected.to_owned()),
                "{text}"
            );
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "", " ", ".", "-", "1e", "e5", "1e1.5", "1.2.3", "0x10", "1,000", "1 000", "nan", "inf", "--1",
            "+-1",
        ] {
            assert_eq!(decimal(text, 3), Err(DecimalError::Syntax), "{text}");
        }
        for text in [
            "1e29",
            "1e999999999999999999999",
            "79228162514264337593543950336",
            // One more than the largest i128, by rounding.
            "170141183460469231731687303715884105727.5",
            "-1e29",
        ] {
            assert_eq!(decimal(text, 28), Err(DecimalError::OutOfRange), "{text}");
        }
    }

    #[test]
    fn quotes_are_chosen_as_python_does() {
        for (text, expected) in [
            ("a", "'a'"),
            ("it's", "\"it's\""),
            ("a'b\"c", "'a\\'b\"c'"),
            ("a\nb\\", "'a\\nb\\\\'"),
            ("\u{1}", "'\\x01'"),
        ] {
            assert_eq!(quoted(text), expected);
        }
    }
}
