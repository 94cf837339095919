//! The tables of `data-model.md` 11 and of the agent protocol's appendix B, row by row.

use proptest::prelude::*;

use super::*;

const K: i128 = 1 << 10;
const G: i128 = 1 << 30;

#[test]
fn texts_that_are_sizes() {
    for (text, expected) in [
        ("1024", 1024),
        ("1_024", 1024),
        ("+5", 5),
        ("-1", -1),
        ("1k", K),
        ("1K", K),
        ("1kb", K),
        ("1KiB", K),
        ("1 KiB", K),
        ("  1 k  ", K),
        ("1.5g", G * 3 / 2),
        ("1.5 g", G * 3 / 2),
        ("1.5G", G * 3 / 2),
        (".5g", G / 2),
        ("1.g", G),
        ("1GiB", G),
        ("1gb", G),
        ("512m", G / 2),
        ("2tb", 1 << 41),
        ("1p", 1 << 50),
        ("1e", 1 << 60),
        ("1Eb", 1 << 60),
        ("5ebytes", 5 << 60),
        ("1z", 1 << 70),
        ("1y", 1 << 80),
        ("1e3k", 1_024_000),
        ("1.0001k", 1024),
        ("1 b", 1),
        ("2 bytes", 2),
        ("10 bytes", 10),
        ("-5k", -5120),
        ("-1.5k", -1536),
        ("0.3333333333333333333333333333333k", 341),
        ("1e-99999999999999k", 0),
    ] {
        assert_eq!(BinarySize::parse(text), Ok(BinarySize::Bytes(expected)), "{text}");
    }
    for text in ["inf", "INF", "Infinity", "infoo", "infk"] {
        assert_eq!(BinarySize::parse(text), Ok(BinarySize::Infinity), "{text}");
    }
}

#[test]
fn texts_that_are_not() {
    for text in ["1.5", "1.0", "1e3", "1,000", "1 000", "0x10"] {
        let message = format!("invalid literal for int() with base 10: '{text}'");
        assert_eq!(BinarySize::parse(text).map_err(|e| e.to_string()), Err(message));
    }
    for text in [
        "1b", "1byte", "10bytes", "100B", "512b", "3mi", "1kk", "1x", "x", "abc", "nan", "-inf", "kb", "-",
        "+", "é", "1é",
    ] {
        let message = format!("('Unconvertible value', '{text}')");
        assert_eq!(BinarySize::parse(text).map_err(|e| e.to_string()), Err(message));
    }
    for text in ["", "  ", "b", "ib", "bytes", "_"] {
        let message = "string index out of range".to_owned();
        assert_eq!(
            BinarySize::parse(text).map_err(|e| e.to_string()),
            Err(message),
            "{text}"
        );
    }
    let huge = "9".repeat(60);
    for text in [huge.clone(), format!("{huge}k"), "1e27y".to_owned()] {
        assert_eq!(BinarySize::parse(&text), Err(BinarySizeError::OutOfRange(text)));
    }
}

#[test]
fn formats() {
    for (bytes, long, short) in [
        (0, "0 bytes", "0"),
        (1, "1 byte", "1"),
        (2, "2 bytes", "2"),
        (1023, "1023 bytes", "1023"),
        (1024, "1 KiB", "1k"),
        (1500, "1.46 KiB", "1.46k"),
        (1536, "1.5 KiB", "1.5k"),
        (10_240, "10 KiB", "10k"),
        (10_241, "10 KiB", "10k"),
        (102_401, "100 KiB", "100k"),
        (1_048_575, "1024 KiB", "1024k"),
        (268_435_456, "256 MiB", "256m"),
        (1_000_000_000, "953.67 MiB", "953.67m"),
        (G, "1 GiB", "1g"),
        (1_610_612_736, "1.5 GiB", "1.5g"),
        (1_717_986_918, "1.6 GiB", "1.6g"),
        (1 << 80, "1 YiB", "1y"),
        (1 << 92, "4096 YiB", "4096y"),
        (-5, "-5 bytes", "-5"),
        (-5120, "-5120 bytes", "-5120"),
    ] {
        assert_eq!(BinarySize::Bytes(bytes).long(), long);
        assert_eq!(BinarySize::Bytes(bytes).short(), short);
    }
    for (bytes, unit, text) in [
        (10_240, SizeUnit::Mebi, "0.01m"),
        (1_610_612_736, SizeUnit::Mebi, "1536m"),
        (0, SizeUnit::Mebi, "0m"),
        (1536, SizeUnit::Kibi, "1.5k"),
        (G, SizeUnit::Gibi, "1g"),
        (10_240, SizeUnit::Byte, "10240"),
        (-1, SizeUnit::Mebi, "-1"),
    ] {
        assert_eq!(BinarySize::Bytes(bytes).fixed(unit), text);
    }
    assert_eq!(BinarySize::Infinity.long(), "Infinity");
    assert_eq!(BinarySize::Infinity.short(), "Infinity");
    assert_eq!(BinarySize::Infinity.fixed(SizeUnit::Mebi), "Infinity");
}

#[test]
fn halves_round_to_even() {
    // 1.125 k and 1.375 k lie between two texts.
    assert_eq!(BinarySize::Bytes(1152).short(), "1.12k");
    assert_eq!(BinarySize::Bytes(1408).short(), "1.38k");
}

proptest! {
    #[test]
    fn parsing_never_panics(text in ".*", size in "[-+ ]?[0-9_.]{0,40}(e[0-9]{1,12})? ?[kmgtpezy]?i?(b|bytes?)?") {
        let _ = BinarySize::parse(&text);
        let _ = BinarySize::parse(&size);
    }

    #[test]
    fn formatting_never_panics_and_plain_text_comes_back(bytes in any::<i128>()) {
        let size = BinarySize::Bytes(bytes);
        prop_assert_eq!(BinarySize::parse(&size.to_string()), Ok(size));
        prop_assert!(BinarySize::parse(&size.short()).is_ok());
        prop_assert!(!size.long().is_empty());
    }

    #[test]
    fn short_text_is_within_half_a_percent(bytes in 0..(1_i128 << 90)) {
        let Ok(BinarySize::Bytes(again)) = BinarySize::parse(&BinarySize::Bytes(bytes).short()) else {
            return Err(TestCaseError::fail("not a size"));
        };
        prop_assert!((again - bytes).abs() * 199 <= bytes, "{again} {bytes}");
    }

    #[test]
    fn whole_units_survive(count in 1..1023_i128, power in 0..9_u32) {
        let size = BinarySize::Bytes(count << (10 * power));
        prop_assert_eq!(BinarySize::parse(&size.short()), Ok(size));
    }
}
