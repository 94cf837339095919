//! The tables of `data-model.md` 10, row by row and as the verdicts of its section 20 change them.

use serde_json::json;

use super::*;

pub(super) fn types() -> SlotTypes {
    let mut types = SlotTypes::intrinsic();
    types.insert("cuda.device", SlotUnit::Count);
    types
}

pub(super) fn object(value: &Value) -> &Map<String, Value> {
    value.as_object().expect("the tables hold objects")
}

fn typeless(input: Value) -> Result<String, String> {
    ResourceSlot::from_user_input(object(&input), None)
        .map(|slots| slots.to_string())
        .map_err(|e| e.to_string())
}

pub(super) fn slots(value: Value) -> ResourceSlot {
    let (slots, skipped) = ResourceSlot::from_stored(&value);
    assert!(skipped.is_empty(), "{skipped:?}");
    slots
}

#[test]
fn types_list_the_intrinsic_ones_first_and_keep_their_units() {
    let mut types = SlotTypes::default();
    types.insert("cuda.mem", SlotUnit::Bytes);
    types.insert("atom", SlotUnit::Count);
    types.insert("mem", SlotUnit::Count);
    assert_eq!(
        types.names().collect::<Vec<_>>(),
        ["cpu", "mem", "atom", "cuda.mem"]
    );
    assert_eq!(types.unit("mem"), Some(SlotUnit::Bytes));
    assert_eq!(types.unit("x"), None);
    let union = types.union(&super::tests::types());
    assert_eq!(
        union.names().collect::<Vec<_>>(),
        ["cpu", "mem", "atom", "cuda.device", "cuda.mem"]
    );
    for unit in [SlotUnit::Count, SlotUnit::Bytes] {
        assert_eq!(unit.to_string().parse(), Ok(unit));
    }
    assert_eq!(
        "Bytes".parse::<SlotUnit>(),
        Err(UnknownSlotUnit("Bytes".to_owned()))
    );
}

/// `data-model.md` 10.2 and 10.3.
#[test]
fn one_value() {
    for (text, unit, expected) in [
        ("0.0005", SlotUnit::Count, "0"),
        ("0.0015", SlotUnit::Count, "0.002"),
        ("0.0025", SlotUnit::Count, "0.002"),
        (" 1_0 ", SlotUnit::Count, "10"),
        ("1E+1", SlotUnit::Count, "10"),
        ("1.500", SlotUnit::Count, "1.5"),
        ("-1", SlotUnit::Count, "-1"),
        ("-0", SlotUnit::Count, "0"),
        ("inf", SlotUnit::Count, "Infinity"),
        ("+Infinity", SlotUnit::Count, "Infinity"),
        ("-INF", SlotUnit::Count, "-Infinity"),
        ("nan", SlotUnit::Count, "NaN"),
        (
            "9999999999999999999999999.999",
            SlotUnit::Count,
            "9999999999999999999999999.999",
        ),
        ("1g", SlotUnit::Bytes, "1073741824"),
        ("1073741824", SlotUnit::Bytes, "1073741824"),
        ("inf", SlotUnit::Bytes, "Infinity"),
        ("64m", SlotUnit::Bytes, "67108864"),
    ] {
        assert_eq!(
            SlotValue::parse(text, unit).map(|v| v.to_string()),
            Ok(expected.to_owned()),
            "{text}"
        );
    }
    for (text, unit, expected) in [
        ("2g", SlotUnit::Count, "('Cannot convert to decimal', '2g')"),
        ("", SlotUnit::Count, "('Cannot convert to decimal', '')"),
        ("1e25", SlotUnit::Count, "amount out of range: 1e25"),
        (
            "9999999999999999999999999.9999",
            SlotUnit::Count,
            "amount out of range: 9999999999999999999999999.9999",
        ),
        (
            "1.5",
            SlotUnit::Bytes,
            "invalid literal for int() with base 10: '1.5'",
        ),
        ("abc", SlotUnit::Bytes, "('Unconvertible value', 'abc')"),
        ("100000y", SlotUnit::Bytes, "amount out of range: 100000y"),
    ] {
        assert_eq!(
            SlotValue::parse(text, unit).map_err(|e| e.to_string()),
            Err(expected.to_owned()),
            "{text}"
        );
    }
    for (value, unit, expected) in [
        (json!(10), SlotUnit::Count, "10"),
        (json!(0.1), SlotUnit::Count, "0.1"),
        (json!(1e3), SlotUnit::Count, "1000"),
        // The float next to 0.0005 is above it, the one next to 1.0005 below; 0.0625 is exact.
        (json!(0.0005), SlotUnit::Count, "0.001"),
        (json!(0.0025), SlotUnit::Count, "0.003"),
        (json!(1.0005), SlotUnit::Count, "1"),
        (json!(0.0625), SlotUnit::Count, "0.062"),
        (json!(-0.0625), SlotUnit::Count, "-0.062"),
        (json!(5e-324), SlotUnit::Count, "0"),
        (json!(false), SlotUnit::Count, "0"),
        (json!(true), SlotUnit::Bytes, "1"),
        (json!(1024), SlotUnit::Bytes, "1024"),
        (json!(u64::MAX), SlotUnit::Bytes, "18446744073709551615"),
        (json!(1.5), SlotUnit::Bytes, "1"),
        (json!(-1.5), SlotUnit::Bytes, "-1"),
        (json!(-0.5), SlotUnit::Bytes, "0"),
    ] {
        assert_eq!(
            SlotValue::from_json(&value, unit).map(|v| v.to_string()),
            Ok(expected.to_owned()),
            "{value}"
        );
    }
    for (value, unit, expected) in [
        (json!([1]), SlotUnit::Bytes, "('Cannot convert to decimal', [1])"),
        (json!({}), SlotUnit::Count, "('Cannot convert to decimal', {})"),
        (json!(1e300), SlotUnit::Bytes, "amount out of range: 1e300"),
        (json!(1e300), SlotUnit::Count, "amount out of range: 1e300"),
    ] {
        let message = SlotValue::from_json(&value, unit).map_err(|e| e.to_string().replace("e+", "e"));
        assert_eq!(message, Err(expected.to_owned()), "{value}");
    }
}

/// `data-model.md` 10.4, with plain notation (DM-6) and truncated floats (DM-12).
#[test]
fn user_input() {
    for (input, expected) in [
        (
            json!({"cpu": 1, "mem": "1.5g"}),
            r#"{"cpu":"1","mem":"1610612736"}"#,
        ),
        (json!({"cpu": 10}), r#"{"cpu":"10"}"#),
        (json!({"cpu": "1000", "x": null}), r#"{"cpu":"1000"}"#),
        (
            json!({"cpu": 10.5, "cuda.shares": "0.50"}),
            r#"{"cpu":"10.5","cuda.shares":"0.5"}"#,
        ),
        (
            json!({"mem": "Infinity", "cpu": "inf"}),
            r#"{"mem":"Infinity","cpu":"Infinity"}"#,
        ),
        (json!({"cpu": true}), r#"{"cpu":"1"}"#),
        (json!({"mem": 1.5}), r#"{"mem":"1"}"#),
        (json!({"cuda.mem": "2t"}), r#"{"cuda.mem":"2199023255552"}"#),
        (json!({}), "{}"),
    ] {
        assert_eq!(typeless(input), Ok(expected.to_owned()));
    }
    for (input, expected) in [
        (
            json!({"mem": "1.5"}),
            "invalid literal for int() with base 10: '1.5'",
        ),
        (json!({"x": "2g"}), "('Cannot convert to decimal', '2g')"),
        (json!({"MEM": "2g"}), "('Cannot convert to decimal', '2g')"),
        (json!({"mem": "abc"}), "('Unconvertible value', 'abc')"),
    ] {
        assert_eq!(typeless(input), Err(expected.to_owned()));
    }
}

#[test]
fn user_input_with_types() {
    let read = |input: Value, types: &SlotTypes| {
        ResourceSlot::from_user_input(object(&input), Some(types))
            .map(|s| s.to_string())
            .map_err(|e| e.to_string())
    };
    let zeros = r#"{"cpu":"0","mem":"0","cuda.device":"0"}"#;
    assert_eq!(read(json!({}), &types()), Ok(zeros.to_owned()));
    assert_eq!(read(json!({"cpu": null}), &types()), Ok(zeros.to_owned()));
    let filled = r#"{"mem":"1073741824","cpu":"0"}"#;
    assert_eq!(
        read(json!({"mem": "1g", "x": null}), &SlotTypes::intrinsic()),
        Ok(filled.to_owned())
    );
    let unknown = "('unit unknown for slot', 'x')";
    assert_eq!(
        read(json!({"x": 1}), &SlotTypes::intrinsic()),
        Err(unknown.to_owned())
    );
    let error = ResourceSlot::from_user_input(object(&json!({"cpu": "many"})), Some(&types()));
    let reason = AmountError::NotDecimal("'many'".to_owned());
    let expected = SlotError::Unconvertible {
        slot: "cpu".to_owned(),
        value: "\"many\"".to_owned(),
        reason,
    };
    assert_eq!(error, Err(expected));
}

/// `data-model.md` 10.5; an infinite policy is legal (DM-11).
#[test]
fn policies() {
    use DefaultForUnspecified::{Limited, Unlimited};
    for (total, default, expected) in [
        (
            json!({"cpu": "4"}),
            Limited,
            r#"{"cpu":"4","mem":"0","cuda.device":"0"}"#,
        ),
        (
            json!({"cpu": "4"}),
            Unlimited,
            r#"{"cpu":"4","mem":"Infinity","cuda.device":"Infinity"}"#,
        ),
        (
            json!({}),
            Unlimited,
            r#"{"cpu":"Infinity","mem":"Infinity","cuda.device":"Infinity"}"#,
        ),
        (
            json!({"mem": "Infinity"}),
            Limited,
            r#"{"cpu":"0","mem":"Infinity","cuda.device":"0"}"#,
        ),
        (
            json!({"mem": "2g", "cpu": "1.23450", "x": 1}),
            Limited,
            r#"{"cpu":"1.234","mem":"2147483648","cuda.device":"0"}"#,
        ),
    ] {
        assert_eq!(
            ResourceSlot::from_policy(&slots(total), default, &types()).to_string(),
            expected
        );
    }
}

/// `data-model.md` 10.6: everything that can really be in these columns.
#[test]
fn stored_amounts() {
    for (stored, expected) in [
        (json!("1"), "1"),
        (json!("1E+1"), "10"),
        (json!("0.5"), "0.5"),
        (json!("1.0"), "1.0"),
        (json!("2.000"), "2.000"),
        (json!("Infinity"), "Infinity"),
        (json!("-Infinity"), "-Infinity"),
        (json!("NaN"), "NaN"),
        (json!("-0"), "0"),
        (json!("-3"), "-3"),
        (json!(1), "1"),
        (json!(1.1), "1.1"),
        (json!(10.0), "10"),
        (json!(true), "1"),
    ] {
        let read = slots(json!({"x": stored}));
        assert_eq!(read.amount("x").to_string(), expected, "{stored}");
    }
    let sizes = slots(json!({"mem": "8g", "cuda.mem": "2g"}));
    assert_eq!(
        sizes.to_string(),
        r#"{"mem":"8589934592","cuda.mem":"2147483648"}"#
    );
    assert!(slots(Value::Null).is_empty());
    let (read, skipped) = ResourceSlot::from_stored(
        &json!({"cpu": "2g", "a": null, "b": [], "c": {}, "d": "", "mem": "much", "e": "1e99", "f": 1e99, "ok": 1}),
    );
    assert_eq!(read.names().collect::<Vec<_>>(), ["ok"]);
    assert_eq!(skipped, ["cpu", "b", "c", "d", "mem", "e", "f"]);
    for whole in [json!([]), json!("x"), json!(1), json!(true)] {
        assert_eq!(ResourceSlot::from_stored(&whole).1, ["(not a map)"]);
    }
}

#[test]
fn json_texts() {
    let read = slots(json!({"cuda.device": 1, "mem": "1g", "cpu": "1E+1"}));
    assert_eq!(
        read.to_json(),
        json!({"cuda.device": "1", "mem": "1073741824", "cpu": "10"})
    );
    assert_eq!(
        read.to_stored_json(),
        r#"{"cpu": "10", "mem": "1073741824", "cuda.device": "1"}"#
    );
    assert_eq!(slots(json!({"a\"b": 1})).to_stored_json(), r#"{"a\"b": "1"}"#);
    assert_eq!(ResourceSlot::default().to_stored_json(), "{}");
    let text = serde_json::to_string(&read).expect("a map of texts");
    assert_eq!(text, r#"{"cuda.device":"1","mem":"1073741824","cpu":"10"}"#);
    assert_eq!(
        serde_json::from_str::<ResourceSlot>(&text).expect("what was just written"),
        read
    );
    assert!(serde_json::from_str::<ResourceSlot>(r#"{"cpu": "x"}"#).is_err());
}

/// `data-model.md` 10.8; infinite bytes have a text (DM-10).
#[test]
fn humanized() {
    let mut types = types();
    types.insert("vram", SlotUnit::Bytes);
    for (stored, expected) in [
        (json!({"cpu": "4", "mem": "1073741824"}), "cpu=4 mem=1g"),
        (json!({"mem": "1.5g", "cpu": "10"}), "mem=1.5g cpu=10"),
        (json!({"mem": 1500, "cpu": "0.500"}), "mem=1.46k cpu=0.5"),
        (json!({"mem": 0, "cpu": "Infinity"}), "mem=0 cpu=Infinity"),
        (
            json!({"mem": "Infinity", "cuda.device": "2.000"}),
            "mem=Infinity cuda.device=2",
        ),
        (
            json!({"vram": 1024, "cuda.mem": 1024, "x": 1024}),
            "vram=1k cuda.mem=1k x=1024",
        ),
        (json!({}), ""),
    ] {
        assert_eq!(slots(stored).humanized(&types), expected);
    }
}

/// `data-model.md` 10.9, where missing counts as 0 instead of being an error (DM-13, DM-14).
#[test]
fn arithmetic() {
    let [a, b, c] = [json!({"a": 1, "b": 2}), json!({"a": 1}), json!({"a": 3, "b": 1})].map(slots);
    assert_eq!(a.plus(&b), slots(json!({"a": 2, "b": 2})));
    assert_eq!(b.plus(&a), slots(json!({"a": 2, "b": 2})));
    assert_eq!(a.minus(&b), slots(json!({"a": 0, "b": 2})));
    assert_eq!(b.minus(&a), slots(json!({"a": 0, "b": -2})));
    assert_eq!(b.minus(&a).clamped_at_zero(), slots(json!({"a": 0, "b": 0})));
    assert_eq!(
        [&a, &b, &c].into_iter().sum::<ResourceSlot>(),
        slots(json!({"a": 5, "b": 3}))
    );
    assert_eq!(
        [a, b, c].into_iter().sum::<ResourceSlot>(),
        slots(json!({"a": 5, "b": 3}))
    );
    assert!(
        std::iter::empty::<ResourceSlot>()
            .sum::<ResourceSlot>()
            .is_empty()
    );
}

#[test]
fn arithmetic_of_the_extremes_is_total() {
    let (inf, neg, nan) = (
        SlotValue::Infinity,
        SlotValue::NegativeInfinity,
        SlotValue::NotANumber,
    );
    let max = SlotValue::from(rust_decimal::Decimal::MAX);
    let min = SlotValue::from(rust_decimal::Decimal::MIN);
    let one = SlotValue::from(1);
    for (result, expected) in [
        (inf.minus(one), "Infinity"),
        (inf.minus(inf), "Infinity"),
        (inf.plus(one), "Infinity"),
        (one.plus(inf), "Infinity"),
        (one.minus(inf), "-Infinity"),
        (one.minus(neg), "Infinity"),
        (neg.minus(one), "-Infinity"),
        (inf.plus(neg), "NaN"),
        (inf.minus(nan), "NaN"),
        (nan.plus(one), "NaN"),
        (max.plus(max), "Infinity"),
        (min.plus(min), "-Infinity"),
        (max.minus(min), "Infinity"),
        (min.minus(max), "-Infinity"),
        (neg.clamped_at_zero(), "0"),
        (SlotValue::ZERO.minus(SlotValue::ZERO), "0"),
    ] {
        assert_eq!(result.to_string(), expected);
    }
    assert_eq!(
        SlotValue::parse("2.7", SlotUnit::Count).map(SlotValue::whole),
        Ok(Some(2))
    );
    assert_eq!(inf.whole(), None);
    assert_eq!(
        SlotValue::parse("0.5", SlotUnit::Count).map(SlotValue::to_f64),
        Ok(0.5)
    );
    assert_eq!(neg.to_f64(), f64::NEG_INFINITY);
}

/// `data-model.md` 10.10: the truth table; where the original raises, missing counts as 0 (DM-13).
#[test]
fn comparison() {
    let [a, b, c] = [json!({"a": 1, "b": 2}), json!({"a": 1}), json!({"a": 3, "b": 1})].map(slots);
    let empty = ResourceSlot::default();
    for (left, right, fits) in [
        (&a, &c, false),
        (&c, &a, false),
        (&b, &a, true),
        (&a, &b, false),
        (&a, &a, true),
        (&empty, &a, true),
        (&a, &empty, false),
        (&empty, &empty, true),
    ] {
        assert_eq!(left.fits_within(right), fits, "{left} {right}");
    }
    assert_eq!(slots(json!({"x": 0})), slots(json!({"x": "0.000"})));
    assert_eq!(slots(json!({"x": 1, "y": 2})), slots(json!({"y": 2, "x": 1})));
    assert_ne!(slots(json!({"x": 0})), empty);
    // A processor-only agent takes a request that asks for 0 devices.
    assert!(slots(json!({"cpu": 1, "cuda.device": 0})).fits_within(&slots(json!({"cpu": 4, "tpu": 1}))));
}

/// DM-42 and `data-model.md` 10.12.
#[test]
fn image_minimum() {
    let minimum = slots(json!({"cpu": 1, "mem": "256m"}));
    let request = slots(json!({"cpu": 4, "mem": "64m", "cuda.device": 0}));
    assert_eq!(request.names_below(&minimum), ["mem"]);
    assert_eq!(minimum.names_below(&minimum), Vec::<String>::new());
    assert_eq!(ResourceSlot::default().names_below(&minimum), ["cpu", "mem"]);
    assert_eq!(
        slots(json!({"cpu": 1, "mem": "1g", "x": -1})).names_below(&minimum),
        ["x"]
    );
    assert_eq!(
        slots(json!({"cpu": "nan", "mem": "1g"})).names_below(&minimum),
        ["cpu"]
    );
    assert!(!slots(json!({"cpu": "nan"})).fits_within(&slots(json!({"cpu": "Infinity"}))));
    let filled = slots(json!({"cpu": 0, "cuda.device": 0})).filled_with_minimum(&minimum);
    assert_eq!(
        filled.to_string(),
        r#"{"cpu":"1","cuda.device":"0","mem":"268435456"}"#
    );
    assert_eq!(request.filled_with_minimum(&minimum), request);
}

#[test]
fn access() {
    let mut read = slots(json!({"cpu": 0, "x": "0.0"}));
    assert!(read.is_zero() && !read.is_empty());
    assert_eq!(read.get("mem"), None);
    assert_eq!(read.amount("mem"), SlotValue::ZERO);
    read.set("mem", SlotValue::Infinity);
    read.set("cpu", SlotValue::from(2));
    assert!(!read.is_zero());
    assert_eq!(read.names().collect::<Vec<_>>(), ["cpu", "x", "mem"]);
    read.retain_known(&types());
    assert_eq!(read.to_string(), r#"{"cpu":"2","mem":"Infinity"}"#);
}
