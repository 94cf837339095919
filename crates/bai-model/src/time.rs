//! Time as an argument. Below the gateway nobody reads the wall clock; whoever needs the time is handed a
//! [`Clock`] or a timestamp.

use chrono::{DateTime, SecondsFormat, Utc};

/// Where the current time comes from: the system in a server, a hand-moved clock in tests.
pub trait Clock: Send + Sync + std::fmt::Debug {
    fn now(&self) -> DateTime<Utc>;
}

/// `YYYY-MM-DD HH:MM:SS[.ffffff]+00:00`, the form of REST timestamps (`http-api.md` 1.13).
pub fn rest_timestamp(at: DateTime<Utc>) -> String {
    let text = at
        .to_rfc3339_opts(SecondsFormat::Micros, false)
        .replacen('T', " ", 1);
    text.replacen(".000000", "", 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rest_timestamps_omit_a_zero_fraction() {
        let at: DateTime<Utc> = "2019-07-15T12:34:56Z".parse().expect("a timestamp");
        assert_eq!(rest_timestamp(at), "2019-07-15 12:34:56+00:00");
        let at: DateTime<Utc> = "2019-07-15T12:34:56.5Z".parse().expect("a timestamp");
        assert_eq!(rest_timestamp(at), "2019-07-15 12:34:56.500000+00:00");
    }
}
