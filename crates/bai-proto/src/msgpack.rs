//! The msgpack profile of 19.06 (`agent-protocol.md` 1.4): text is the str family in UTF-8, bytes are the bin family, whole
//! numbers take the smallest form, fractions are float64.
//!
//! Invariants: what comes from outside is measured before anything of it is allocated: its depth, how many values it has,
//! that it is complete and nothing follows; an extension type makes the whole unreadable and is never looked into
//! (1.5: in Python it would be a pickle).
//!
//! Not here: snappy, and which values a message has.

use rmpv::Value;
use serde_json::{Map, Number, Value as Json};

/// How deep values may be nested; those of 19.06 have six levels.
pub const MAX_DEPTH: usize = 64;
/// How many values a message may consist of, each of which costs about 40 bytes of memory.
pub const MAX_VALUES: usize = 1 << 20;

/// Why bytes are no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MsgpackError {
    #[error("the msgpack value is cut off")]
    Truncated,
    #[error("bytes follow the msgpack value")]
    Trailing,
    #[error("the msgpack value is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    #[error("the msgpack value has more than {MAX_VALUES} parts")]
    TooMany,
    #[error("a msgpack text is not UTF-8")]
    NotUtf8,
    #[error("the msgpack extension type {0} is refused; in Python it could run code")]
    Extension(i8),
    #[error("0xc1 is no msgpack value")]
    Reserved,
}

/// Reads exactly one value.
///
/// # Errors
/// When it breaks the profile or its limits.
pub fn decode(bytes: &[u8]) -> Result<Value, MsgpackError> {
    measure(bytes)?;
    // Measured, so that nothing is left to fail; if something did, it would be for want of bytes.
    rmpv::decode::read_value_with_max_depth(&mut &bytes[..], MAX_DEPTH + 8)
        .map_err(|_| MsgpackError::Truncated)
}

/// Writes a value.
pub fn encode(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Writing to memory does not fail.
    _ = rmpv::encode::write_value(&mut bytes, value);
    bytes
}

/// What follows the first byte of a value.
enum Shape {
    /// So many bytes to pass over.
    Fixed(usize),
    /// A length of so many bytes, then as many bytes.
    Bytes(usize),
    Text(usize),
    ShortText(usize),
    /// So many values.
    Values(usize),
    /// A number of values in so many bytes, to be multiplied.
    Counted {
        width: usize,
        factor: usize,
    },
    /// An extension, whose type comes after so many bytes.
    Extension(usize),
}

fn shape(first: u8) -> Result<Shape, MsgpackError> {
    let low = |mask: u8| usize::from(first & mask);
    Ok(match first {
        0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => Shape::Fixed(0),
        0x80..=0x8f => Shape::Values(2 * low(0x0f)),
        0x90..=0x9f => Shape::Values(low(0x0f)),
        0xa0..=0xbf => Shape::ShortText(low(0x1f)),
        0xc1 => return Err(MsgpackError::Reserved),
        0xc4..=0xc6 => Shape::Bytes(1 << (first - 0xc4)),
        0xc7..=0xc9 => Shape::Extension(1 << (first - 0xc7)),
        0xca | 0xce | 0xd2 => Shape::Fixed(4),
        0xcb | 0xcf | 0xd3 => Shape::Fixed(8),
        0xcc | 0xd0 => Shape::Fixed(1),
        0xcd | 0xd1 => Shape::Fixed(2),
        0xd4..=0xd8 => Shape::Extension(0),
        0xd9..=0xdb => Shape::Text(1 << (first - 0xd9)),
        0xdc | 0xdd => Shape::Counted {
            width: 2 << (first - 0xdc),
            factor: 1,
        },
        0xde | 0xdf => Shape::Counted {
            width: 2 << (first - 0xde),
            factor: 2,
        },
    })
}

/// Walks over one value without keeping anything of it.
fn measure(bytes: &[u8]) -> Result<(), MsgpackError> {
    let mut input = Input(bytes);
    // How many values are missing on each level that is open.
    let mut open = vec![1];
    let mut values = 0;
    while let Some(missing) = open.last_mut() {
        if *missing == 0 {
            open.pop();
            continue;
        }
        *missing -= 1;
        values += 1;
        if values > MAX_VALUES {
            return Err(MsgpackError::TooMany);
        }
        let inside = match shape(input.take(1)?[0])? {
            Shape::Fixed(size) => input.take(size).map(|_| 0)?,
            Shape::ShortText(size) => input.text(size)?,
            Shape::Text(width) => {
                let size = input.number(width)?;
                input.text(size)?
            }
            Shape::Bytes(width) => {
                let size = input.number(width)?;
                input.take(size).map(|_| 0)?
            }
            Shape::Values(count) => count,
            Shape::Counted { width, factor } => input.number(width)?.saturating_mul(factor),
            Shape::Extension(width) => {
                let code = input.take(width + 1)?[width];
                return Err(MsgpackError::Extension(i8::from_be_bytes([code])));
            }
        };
        if inside > 0 {
            if open.len() > MAX_DEPTH {
                return Err(MsgpackError::TooDeep);
            }
            open.push(inside);
        }
    }
    if input.0.is_empty() {
        Ok(())
    } else {
        Err(MsgpackError::Trailing)
    }
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, size: usize) -> Result<&'a [u8], MsgpackError> {
        let (taken, rest) = self.0.split_at_checked(size).ok_or(MsgpackError::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self, width: usize) -> Result<usize, MsgpackError> {
        let bytes = self.take(width)?;
        Ok(bytes
            .iter()
            .fold(0, |number, byte| (number << 8) | usize::from(*byte)))
    }

    fn text(&mut self, size: usize) -> Result<usize, MsgpackError> {
        let bytes = self.take(size)?;
        str::from_utf8(bytes)
            .map(|_| 0)
            .map_err(|_| MsgpackError::NotUtf8)
    }
}

/// The same in JSON. `None` for what JSON cannot say: bytes, keys that are not text, fractions that are not finite.
pub fn to_json(value: &Value) -> Option<Json> {
    Some(match value {
        Value::Nil => Json::Null,
        Value::Boolean(flag) => Json::Bool(*flag),
        Value::Integer(number) => match number.as_u64() {
            Some(number) => Json::from(number),
            None => Json::from(number.as_i64()?),
        },
        Value::F32(number) => Json::Number(Number::from_f64(f64::from(*number))?),
        Value::F64(number) => Json::Number(Number::from_f64(*number)?),
        Value::String(text) => Json::from(text.as_str()?),
        Value::Array(items) => Json::Array(items.iter().map(to_json).collect::<Option<_>>()?),
        Value::Map(entries) => {
            let entry = |(key, value): &(Value, Value)| Some((key.as_str()?.to_owned(), to_json(value)?));
            Json::Object(entries.iter().map(entry).collect::<Option<Map<_, _>>>()?)
        }
        Value::Binary(_) | Value::Ext(..) => return None,
    })
}

/// The same in msgpack.
pub fn from_json(value: &Json) -> Value {
    match value {
        Json::Null => Value::Nil,
        Json::Bool(flag) => Value::Boolean(*flag),
        Json::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => Value::from(number),
            (None, Some(number)) => Value::from(number),
            // Every JSON number reads as a fraction.
            (None, None) => Value::F64(number.as_f64().unwrap_or_default()),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => Value::Array(items.iter().map(from_json).collect()),
        Json::Object(entries) => {
            let entry = |(key, value): (&String, &Json)| (Value::from(key.as_str()), from_json(value));
            Value::Map(entries.iter().map(entry).collect())
        }
    }
}

/// A map with text keys.
pub(crate) fn map<'a>(entries: impl IntoIterator<Item = (&'a str, Value)>) -> Value {
    let entry = |(key, value)| (Value::from(key), value);
    Value::Map(entries.into_iter().map(entry).collect())
}

/// What was expected in a message, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place} is {problem}")]
pub struct Unexpected {
    pub place: String,
    pub problem: &'static str,
}

/// A value with the name of its place, which errors tell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At<'a> {
    pub value: &'a Value,
    pub place: &'a str,
}

impl<'a> At<'a> {
    pub fn new(value: &'a Value, place: &'a str) -> Self {
        Self { value, place }
    }

    pub fn wrong(&self, problem: &'static str) -> Unexpected {
        Unexpected {
            place: self.place.to_owned(),
            problem,
        }
    }

    /// A member of a map; nil when it is absent. Of a key that is there twice, the last counts, as in Python.
    pub fn get(&self, key: &'a str) -> Result<Self, Unexpected> {
        let Value::Map(entries) = self.value else {
            return Err(self.wrong("not a map"));
        };
        let found = entries.iter().rev().find(|(name, _)| name.as_str() == Some(key));
        Ok(Self::new(found.map_or(&Value::Nil, |(_, value)| value), key))
    }

    pub fn items(&self) -> Result<&'a [Value], Unexpected> {
        match self.value {
            Value::Array(items) => Ok(items),
            _ => Err(self.wrong("not an array")),
        }
    }

    /// The entries of a map whose keys are text.
    pub fn entries(&self) -> Result<impl Iterator<Item = (&'a str, &'a Value)> + use<'a>, Unexpected> {
        let Value::Map(entries) = self.value else {
            return Err(self.wrong("not a map"));
        };
        if entries.iter().any(|(key, _)| key.as_str().is_none()) {
            return Err(self.wrong("a map with a key that is not text"));
        }
        Ok(entries
            .iter()
            .filter_map(|(key, value)| Some((key.as_str()?, value))))
    }

    pub fn text(&self) -> Result<&'a str, Unexpected> {
        self.value.as_str().ok_or_else(|| self.wrong("not a text"))
    }

    /// A text, or none where nil is.
    pub fn optional_text(&self) -> Result<Option<String>, Unexpected> {
        if self.value.is_nil() {
            return Ok(None);
        }
        self.text().map(|text| Some(text.to_owned()))
    }

    pub fn bytes(&self) -> Result<&'a [u8], Unexpected> {
        match self.value {
            Value::Binary(bytes) => Ok(bytes),
            _ => Err(self.wrong("not bytes")),
        }
    }

    pub fn number<T: TryFrom<i64>>(&self) -> Result<T, Unexpected> {
        let number = self
            .value
            .as_i64()
            .ok_or_else(|| self.wrong("not a whole number"))?;
        T::try_from(number).map_err(|_| self.wrong("a number out of range"))
    }

    pub fn json(&self) -> Result<Json, Unexpected> {
        to_json(self.value).ok_or_else(|| self.wrong("not plain data"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        hex::decode(hex.replace(' ', "")).expect("hexadecimal digits")
    }

    #[test]
    fn values_take_the_forms_that_pythons_packer_gives_them() {
        for (value, expected) in [
            (Value::Nil, "c0"),
            (Value::from(true), "c3"),
            (Value::from(127), "7f"),
            (Value::from(128), "cc80"),
            (Value::from(30000), "cd7530"),
            (Value::from(-1), "ff"),
            (Value::from(-33), "d0df"),
            (Value::from(u64::MAX), "cfffffffffffffffff"),
            (Value::from(i64::MIN), "d38000000000000000"),
            (Value::from(2.0), "cb4000000000000000"),
            (Value::from("a"), "a161"),
            (Value::from("x".repeat(32)), &format!("d920{}", "78".repeat(32))),
            (Value::Binary(vec![1, 2]), "c4020102"),
            (Value::Array(vec![]), "90"),
            (Value::Map(vec![]), "80"),
        ] {
            assert_eq!(hex::encode(encode(&value)), *expected);
            assert_eq!(decode(&bytes(expected)), Ok(value));
        }
    }

    #[test]
    fn what_python_would_evaluate_is_refused() {
        // fixext1 with code 127, ext8 with code 123, and one within an array.
        for (hex, code) in [
            ("d47f00", 127),
            ("c7 02 7b 0000", 123),
            ("92 01 d4 01 00", 1),
            ("d4 ff 00", -1),
        ] {
            assert_eq!(decode(&bytes(hex)), Err(MsgpackError::Extension(code)), "{hex}");
        }
    }

    #[test]
    fn bombs_are_refused_without_being_built() {
        assert_eq!(decode(&[0x91; 100_000]), Err(MsgpackError::TooDeep));
        assert_eq!(decode(&bytes("dd ffffffff")), Err(MsgpackError::Truncated));
        assert_eq!(decode(&bytes("df ffffffff c0")), Err(MsgpackError::Truncated));
        assert_eq!(decode(&bytes("c6 ffffffff 00")), Err(MsgpackError::Truncated));
        let mut wide = bytes("dd 00200000");
        wide.resize(wide.len() + 0x0020_0000, 0xc0);
        assert_eq!(decode(&wide), Err(MsgpackError::TooMany));
    }

    #[test]
    fn broken_values_are_refused() {
        assert_eq!(decode(&[]), Err(MsgpackError::Truncated));
        assert_eq!(decode(&[0xc1]), Err(MsgpackError::Reserved));
        assert_eq!(decode(&[0xc0, 0xc0]), Err(MsgpackError::Trailing));
        assert_eq!(decode(&[0xa1, 0xff]), Err(MsgpackError::NotUtf8));
    }

    #[test]
    fn any_width_of_a_number_is_read() {
        for hex in [
            "05",
            "cc05",
            "cd0005",
            "ce00000005",
            "cf0000000000000005",
            "d005",
            "d20000 0005",
        ] {
            assert_eq!(decode(&bytes(hex)).expect(hex).as_i64(), Some(5));
        }
    }

    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Nil),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<f64>()
                .prop_filter("equal to itself", |f| !f.is_nan())
                .prop_map(Value::from),
            ".{0,40}".prop_map(Value::from),
            proptest::collection::vec(any::<u8>(), 0..300).prop_map(Value::Binary),
        ];
        leaf.prop_recursive(4, 64, 20, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..20).prop_map(Value::Array),
                proptest::collection::vec((inner.clone(), inner), 0..20).prop_map(Value::Map),
            ]
        })
    }

    proptest! {
        #[test]
        fn values_round_trip(value in values()) {
            prop_assert_eq!(decode(&encode(&value)), Ok(value));
        }

        /// Whatever is measured as readable is readable.
        #[test]
        fn measuring_agrees_with_reading(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let read = rmpv::decode::read_value_with_max_depth(&mut &bytes[..], 1000);
            if measure(&bytes).is_ok() {
                prop_assert!(read.is_ok());
            }
        }
    }
}
