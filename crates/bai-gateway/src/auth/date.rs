//! The date of a request (`http-api.md` 3.3): which header, which forms, and what the signature makes of it.

use chrono::{DateTime, Datelike, FixedOffset, NaiveDate, NaiveDateTime, NaiveTime, Utc};
use http::HeaderMap;

/// A parsed date, with the text it came from and the offset it was written in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestDate {
    raw: String,
    parsed: DateTime<FixedOffset>,
}

impl RequestDate {
    /// The header's text, which is what is signed.
    pub fn raw(&self) -> &str {
        &self.raw
    }

    /// `YYYYMMDD` in the date's own offset, which is what the signing key is derived from.
    pub fn key_date(&self) -> String {
        self.parsed.format("%Y%m%d").to_string()
    }

    pub fn instant(&self) -> DateTime<Utc> {
        self.parsed.with_timezone(&Utc)
    }
}

/// The raw date of a request: `Date` unless empty, then `X-BackendAI-Date` if present, then `X-Sorna-Date`.
pub(crate) fn header(headers: &HeaderMap) -> Option<&str> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let date = text("date").filter(|text| !text.is_empty());
    date.or_else(|| text("x-backendai-date").or_else(|| text("x-sorna-date")))
        .filter(|text| !text.is_empty())
}

/// Parses the forms that clients send: ISO 8601, extended, basic or mixed, and RFC 7231 dates; no zone means UTC.
/// A bare time of day is completed with `today`.
pub fn parse(raw: &str, today: NaiveDate) -> Option<RequestDate> {
    let parsed = parse_iso(raw.trim(), today).or_else(|| parse_rfc(raw.trim()))?;
    // The date of the signing key has four digits for the year.
    (1..=9999).contains(&parsed.year()).then_some(())?;
    Some(RequestDate {
        raw: raw.to_owned(),
        parsed,
    })
}

fn parse_iso(text: &str, today: NaiveDate) -> Option<DateTime<FixedOffset>> {
    let (local, offset) = split_offset(text)?;
    let (date, time) = match local.split_once(['T', ' ', 't']) {
        Some((date, time)) => (parse_date(date)?, parse_time(time.trim())?),
        None => match parse_time(local).filter(|_| local.contains(':')) {
            Some(time) => (today, time),
            None => (parse_date(local)?, NaiveTime::MIN),
        },
    };
    NaiveDateTime::new(date, time).and_local_timezone(offset).single()
}

fn parse_date(text: &str) -> Option<NaiveDate> {
    ["%Y-%m-%d", "%Y%m%d", "%Y/%m/%d"].iter().find_map(|form| {
        // Years of four digits only: eight digits of anything else are no date.
        text.get(..4)
            .filter(|year| year.bytes().all(|byte| byte.is_ascii_digit()))?;
        NaiveDate::parse_from_str(text, form).ok()
    })
}

fn parse_time(text: &str) -> Option<NaiveTime> {
    ["%H:%M:%S%.f", "%H:%M", "%H%M%S%.f", "%H%M"]
        .iter()
        .find_map(|form| NaiveTime::parse_from_str(text, form).ok())
}

/// Cuts a zone off the end of an ISO date.
fn split_offset(text: &str) -> Option<(&str, FixedOffset)> {
    let utc = FixedOffset::east_opt(0)?;
    for name in ["Z", "z", "UTC", "GMT"] {
        if let Some(local) = text.strip_suffix(name) {
            return Some((local.trim_end(), utc));
        }
    }
    let text = without_zone_name(text);
    // A sign after the time began; the minus signs of the date come before it.
    let time_begins = text.find(['T', 't', ' ', ':'])?;
    let Some(sign) = text.rfind(['+', '-']).filter(|sign| *sign > time_begins) else {
        return Some((text, utc));
    };
    let digits = text[sign + 1..].replace(':', "");
    if !matches!(digits.len(), 2 | 4) || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let hours: i32 = digits[..2].parse().ok()?;
    let minutes: i32 = digits
        .get(2..)
        .filter(|minutes| !minutes.is_empty())
        .map_or(Some(0), |text| text.parse().ok())?;
    let seconds = hours * 3600 + minutes * 60;
    let seconds = if text.as_bytes()[sign] == b'-' {
        -seconds
    } else {
        seconds
    };
    Some((text[..sign].trim_end(), FixedOffset::east_opt(seconds)?))
}

/// `Mon, 15 Jul 2019 12:34:56 GMT` and its relatives, with numeric offsets, a zone name or no zone. Names that are not UTC's
/// mean nothing, as in the original, rather than an hour of the day somewhere.
fn parse_rfc(text: &str) -> Option<DateTime<FixedOffset>> {
    let local = text
        .trim_end_matches(|character: char| character.is_ascii_alphabetic())
        .trim_end();
    let utc = FixedOffset::east_opt(0)?;
    let unzoned = [
        "%a, %d %b %Y %H:%M:%S",
        "%d %b %Y %H:%M:%S",
        "%A, %d-%b-%y %H:%M:%S",
        "%a %b %e %H:%M:%S %Y",
    ]
    .iter()
    .find_map(|form| NaiveDateTime::parse_from_str(local, form).ok())
    .and_then(|local| local.and_local_timezone(utc).single());
    unzoned.or_else(|| DateTime::parse_from_rfc2822(text).ok())
}

/// Cuts off the name of a zone, which stands apart from the time: `12:34:56 KST`.
fn without_zone_name(text: &str) -> &str {
    match text.rsplit_once(' ') {
        Some((time, name)) if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphabetic()) => {
            time.trim_end()
        }
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Option<String> {
        let today = NaiveDate::from_ymd_opt(2019, 7, 15).expect("a date");
        parse(text, today).map(|date| date.instant().to_rfc3339())
    }

    #[test]
    fn the_documented_forms_are_understood() {
        for text in [
            "2019-07-15T12:34:56+00:00",
            "2019-07-15 12:34:56",
            "20190715T123456Z",
            "20190715T12:34:56",
            "2019-07-15T21:34:56+09:00",
            "2019-07-15T21:34:56+0900",
            "20190715T053456-07",
            "Mon, 15 Jul 2019 12:34:56 GMT",
            "Mon, 15 Jul 2019 14:34:56 +0200",
            "Mon, 15 Jul 2019 12:34:56",
            "Mon, 15 Jul 2019 12:34:56 PST",
            "15 Jul 2019 12:34:56 UTC",
            "2019-07-15 12:34:56 KST",
            "12:34:56",
        ] {
            assert_eq!(
                parsed(text).as_deref(),
                Some("2019-07-15T12:34:56+00:00"),
                "{text}"
            );
        }
        assert_eq!(
            parsed("2019-07-15T12:34:56.789012+00:00").as_deref(),
            Some("2019-07-15T12:34:56.789012+00:00")
        );
    }

    #[test]
    fn what_is_no_date_is_refused() {
        for text in [
            "",
            "not-a-date",
            "1563194096",
            "2019-13-45T00:00:00Z",
            "Z",
            "+",
            "T",
            "2019-07-15T12:34:56+9x",
            "Mon, 06 Jul -019 12:34:56 GMT",
            "Mon, 15 Jul 12019 12:34:56 GMT",
        ] {
            assert_eq!(parsed(text), None, "{text}");
        }
    }

    #[test]
    fn the_key_date_is_in_the_dates_own_offset() {
        let date = parse("2019-07-16T01:04:05+09:00", NaiveDate::MIN).expect("a date");
        assert_eq!(date.key_date(), "20190716");
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in ".{0,60}") {
            _ = parse(&text, NaiveDate::MIN);
        }

        #[test]
        fn date_like_text_never_panics(text in "[0-9T:+.Z -]{0,40}") {
            _ = parse(&text, NaiveDate::MIN);
        }
    }
}
