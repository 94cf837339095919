//! The sliding window of the rate limiter (`http-api.md` 3.13).

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};

/// Hits by millisecond. Exact, and bounded by the window's length whatever the traffic.
#[derive(Debug, Default)]
pub(super) struct RateWindow {
    hits: BTreeMap<i64, u64>,
    total: u64,
}

impl RateWindow {
    /// Forgets what was at or before `now - window`, notes a hit, counts.
    pub fn hit(&mut self, now: DateTime<Utc>, window: Duration) -> u64 {
        let now = now.timestamp_millis();
        let oldest = now.saturating_sub(i64::try_from(window.as_millis()).unwrap_or(i64::MAX));
        while let Some(first) = self.hits.first_entry()
            && *first.key() <= oldest
        {
            self.total -= first.remove();
        }
        *self.hits.entry(now).or_default() += 1;
        self.total += 1;
        self.total
    }
}
