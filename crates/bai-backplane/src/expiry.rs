//! Arithmetic of deadlines: a moment plus a duration, without overflow.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

/// `now + ttl`; the end of time when that cannot be represented.
pub(crate) fn deadline(now: DateTime<Utc>, ttl: Duration) -> DateTime<Utc> {
    TimeDelta::from_std(ttl)
        .ok()
        .and_then(|ttl| now.checked_add_signed(ttl))
        .unwrap_or(DateTime::<Utc>::MAX_UTC)
}
