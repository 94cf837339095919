//! A map whose entries end at a moment.
//!
//! Invariants: an entry that has ended is never returned; ended entries are at most as many as the living ones plus
//! [`SLACK`] when writes go on.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::expiry::deadline;

/// Writes between sweeps of a nearly empty map.
const SLACK: usize = 64;

#[derive(Debug)]
pub(super) struct Expiring<T> {
    entries: HashMap<String, (T, DateTime<Utc>)>,
    /// Writes until the next sweep, which costs as much as the map has entries.
    until_sweep: usize,
}

impl<T> Default for Expiring<T> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            until_sweep: SLACK,
        }
    }
}

impl<T> Expiring<T> {
    pub fn get(&mut self, key: &str, now: DateTime<Utc>) -> Option<&T> {
        if self.entries.get(key).is_some_and(|(_, end)| *end <= now) {
            self.entries.remove(key);
        }
        self.entries.get(key).map(|(value, _)| value)
    }

    pub fn set(&mut self, key: &str, value: T, ttl: Duration, now: DateTime<Utc>) {
        self.entries.insert(key.to_owned(), (value, deadline(now, ttl)));
        self.until_sweep = self.until_sweep.saturating_sub(1);
        if self.until_sweep == 0 {
            self.entries.retain(|_, (_, end)| *end > now);
            self.until_sweep = self.entries.len().max(SLACK);
        }
    }

    pub fn remove(&mut self, key: &str, now: DateTime<Utc>) -> Option<T> {
        self.entries
            .remove(key)
            .filter(|(_, end)| *end > now)
            .map(|(value, _)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ended_entries_do_not_pile_up() {
        let mut map = Expiring::default();
        let start = DateTime::UNIX_EPOCH;
        for second in 0..10_000 {
            let now = start + chrono::TimeDelta::seconds(second);
            map.set(&second.to_string(), second, Duration::from_secs(10), now);
            assert!(
                map.entries.len() <= 2 * SLACK,
                "{} entries at {second}",
                map.entries.len()
            );
        }
    }
}
