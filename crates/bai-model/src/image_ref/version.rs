//! The order of versions in image tags: PEP 440's, with words of any other form before all numbers (`data-model.md` 12.2).
//!
//! Invariant: a total order of keys, for any text.
//!
//! Not here: epochs and local versions, whose characters no tag can have between two `-`.

/// The key by which a version text is ordered; the variants' and fields' order is the order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    /// Not of the standard's form, such as `latest`.
    Legacy(Vec<LegacyPart>),
    /// `5.10`, `1.0rc1`, `2.0.post1`, `3.8.dev2`.
    Standard {
        /// Numbers, without zeros at the end.
        release: Vec<Number>,
        pre: Pre,
        post: Option<Number>,
        dev: Dev,
    },
}

/// A run of letters or of digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum LegacyPart {
    Word(String),
    Number(Number),
}

/// A natural number of any size: how many digits, then the digits, without leading zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Number(usize, String);

impl Number {
    fn new(digits: &str) -> Self {
        let digits = digits.trim_start_matches('0');
        Self(digits.len(), digits.to_owned())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pre {
    /// Development towards the first pre-release.
    BeforeAny,
    Alpha(Number),
    Beta(Number),
    Candidate(Number),
    Final,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Dev {
    Before(Number),
    Released,
}

impl Version {
    pub(super) fn parse(text: &str) -> Self {
        let lower = text.to_ascii_lowercase();
        standard(&lower).unwrap_or_else(|| Self::Legacy(legacy(&lower)))
    }
}

fn standard(text: &str) -> Option<Version> {
    let (first, mut rest) = number(text.strip_prefix('v').unwrap_or(text))?;
    let mut release = vec![first];
    while let Some((next, after)) = rest.strip_prefix('.').and_then(number) {
        release.push(next);
        rest = after;
    }
    while release.last() == Some(&Number::default()) {
        release.pop();
    }
    let alpha = suffix(&mut rest, &["alpha", "a"]).map(Pre::Alpha);
    let beta = |rest: &mut &str| suffix(rest, &["beta", "b"]).map(Pre::Beta);
    let candidate = |rest: &mut &str| suffix(rest, &["preview", "pre", "rc", "c"]).map(Pre::Candidate);
    let pre = alpha.or_else(|| beta(&mut rest)).or_else(|| candidate(&mut rest));
    let post = suffix(&mut rest, &["post", "rev", "r"]);
    let dev = suffix(&mut rest, &["dev"]);
    if !rest.is_empty() {
        return None;
    }
    let without_pre = if post.is_none() && dev.is_some() {
        Pre::BeforeAny
    } else {
        Pre::Final
    };
    let dev = dev.map_or(Dev::Released, Dev::Before);
    Some(Version::Standard {
        release,
        pre: pre.unwrap_or(without_pre),
        post,
        dev,
    })
}

/// The digits at the start of `text`, if any, and what follows.
fn number(text: &str) -> Option<(Number, &str)> {
    let rest = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let digits = &text[..text.len() - rest.len()];
    (!digits.is_empty()).then(|| (Number::new(digits), rest))
}

/// Takes one of `words` off the start of `rest`, with the number after it (0 if there is none); `.` or `_` may stand before
/// both.
fn suffix(rest: &mut &str, words: &[&str]) -> Option<Number> {
    let unseparated = |text| str::strip_prefix(text, ['.', '_']).unwrap_or(text);
    let start = unseparated(rest);
    let after = words.iter().find_map(|word| start.strip_prefix(word))?;
    let (count, after) = number(unseparated(after)).unwrap_or((Number::default(), after));
    *rest = after;
    Some(count)
}

fn legacy(text: &str) -> Vec<LegacyPart> {
    let mut parts = Vec::new();
    for chunk in text.split(|c: char| !c.is_ascii_alphanumeric()) {
        let mut rest = chunk;
        while !rest.is_empty() {
            if let Some((count, after)) = number(rest) {
                parts.push(LegacyPart::Number(count));
                rest = after;
            } else {
                let word = rest.split(|c: char| c.is_ascii_digit()).next().unwrap_or(rest);
                parts.push(LegacyPart::Word(word.to_owned()));
                rest = &rest[word.len()..];
            }
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ascending() {
        let ascending = [
            "dense",
            "latest",
            "latest2",
            "latest10",
            "1.0.dev1",
            "1.0a1.dev2",
            "1.0a1",
            "1.0_beta",
            "1.0b2",
            "1.0rc1",
            "1.0",
            "1.0.post1.dev3",
            "1.0.post1",
            "1.0.1",
            "1.2",
            "1.12",
            "5.9",
            "v5.10",
            "99999999999999999999999999999",
        ];
        for pair in ascending.windows(2) {
            assert!(Version::parse(pair[0]) < Version::parse(pair[1]), "{pair:?}");
        }
    }

    #[test]
    fn equal() {
        for (left, right) in [
            ("1.0", "1"),
            ("v1", "1.0.0"),
            ("1.0rc1", "1.0_C.1"),
            ("1.0.rev2", "1.post2"),
            ("0", "0.0"),
        ] {
            assert_eq!(Version::parse(left), Version::parse(right));
        }
    }

    proptest! {
        #[test]
        fn any_text_has_a_place(text in ".*", tag in "v?[0-9a-z._]{0,12}") {
            prop_assert_eq!(Version::parse(&text), Version::parse(&text));
            prop_assert!(Version::parse(&tag) == Version::parse(&tag.to_ascii_uppercase()));
        }
    }
}
