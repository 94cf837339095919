//! What was read elsewhere, believed for a short time or until it is told to have changed (`http-api.md` 6.2).
//!
//! Invariant: what was read before a change was told is not kept after it.

use std::sync::{PoisonError, RwLock};

use chrono::{DateTime, TimeDelta, Utc};

/// How long it is believed, also where nobody can tell of changes.
const TTL: TimeDelta = TimeDelta::seconds(2);

#[derive(Debug)]
pub(crate) struct Fresh<T>(RwLock<Cached<T>>);

#[derive(Debug)]
struct Cached<T> {
    /// When it was read, and what it was.
    known: Option<(DateTime<Utc>, T)>,
    changes: u64,
}

/// Goes with what is being read: how many changes had been told before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    at: DateTime<Utc>,
    changes: u64,
}

impl<T> Default for Fresh<T> {
    fn default() -> Self {
        Self(RwLock::new(Cached {
            known: None,
            changes: 0,
        }))
    }
}

impl<T: Clone> Fresh<T> {
    /// What is known, or what to give to [`Fresh::put`] with what is read now.
    pub fn get(&self, now: DateTime<Utc>) -> Result<T, Reading> {
        let cached = self.0.read().unwrap_or_else(PoisonError::into_inner);
        match &cached.known {
            Some((read_at, known)) if now.signed_duration_since(*read_at) < TTL => Ok(known.clone()),
            _ => Err(Reading {
                at: now,
                changes: cached.changes,
            }),
        }
    }

    pub fn put(&self, reading: Reading, value: T) {
        let mut cached = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if cached.changes == reading.changes {
            cached.known = Some((reading.at, value));
        }
    }

    /// It has changed, or may have.
    pub fn forget(&self) {
        let mut cached = self.0.write().unwrap_or_else(PoisonError::into_inner);
        cached.known = None;
        cached.changes += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_before_a_change_is_not_kept_after_it() {
        let fresh = Fresh::default();
        let now = DateTime::UNIX_EPOCH;
        let before = fresh.get(now).expect_err("nothing is known");
        fresh.forget();
        fresh.put(before, "old");
        let after = fresh.get(now).expect_err("nothing is known");
        fresh.put(after, "new");
        assert_eq!(fresh.get(now).expect("known"), "new");
        assert!(fresh.get(now + TTL).is_err());
    }
}
