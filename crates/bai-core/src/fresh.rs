//! What was read elsewhere, believed for a short time or until it is told to have changed (`http-api.md` 6.2).
//!
//! Invariant: what was read before a change was told is not kept after it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{PoisonError, RwLock};

use chrono::{DateTime, TimeDelta, Utc};

/// How long it is believed, also where nobody can tell of changes.
pub(crate) const TTL: TimeDelta = TimeDelta::seconds(2);

/// So many things of a kind are known at most, where nothing else is said.
const MOST: usize = 4096;

/// One thing, or several of a kind by their keys.
#[derive(Debug)]
pub(crate) struct Fresh<T, K = ()> {
    cached: RwLock<Cached<T, K>>,
    most: usize,
}

#[derive(Debug)]
struct Cached<T, K> {
    /// When each was read, and what it was.
    known: HashMap<K, (DateTime<Utc>, T)>,
    changes: u64,
}

/// Goes with what is being read: how many changes had been told before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reading {
    at: DateTime<Utc>,
    changes: u64,
}

impl<T, K> Default for Fresh<T, K> {
    fn default() -> Self {
        Self::of_at_most(MOST)
    }
}

impl<T, K> Fresh<T, K> {
    /// With so many things at most, after which it starts afresh.
    pub fn of_at_most(most: usize) -> Self {
        let cached = Cached {
            known: HashMap::new(),
            changes: 0,
        };
        Self {
            cached: RwLock::new(cached),
            most,
        }
    }
}

impl<T: Clone> Fresh<T> {
    /// What is known, or what to give to [`Fresh::put`] with what is read now.
    pub fn get(&self, now: DateTime<Utc>) -> Result<T, Reading> {
        self.get_of(&(), now)
    }

    pub fn put(&self, reading: Reading, value: T) {
        self.put_of((), reading, value);
    }
}

impl<T: Clone, K: Eq + Hash> Fresh<T, K> {
    /// What is known of `key`, or what to give to [`Fresh::put_of`] with what is read now.
    pub fn get_of(&self, key: &K, now: DateTime<Utc>) -> Result<T, Reading> {
        let cached = self.cached.read().unwrap_or_else(PoisonError::into_inner);
        match cached.known.get(key) {
            Some((read_at, known)) if now.signed_duration_since(*read_at) < TTL => Ok(known.clone()),
            _ => Err(Reading {
                at: now,
                changes: cached.changes,
            }),
        }
    }

    pub fn put_of(&self, key: K, reading: Reading, value: T) {
        let mut cached = self.cached.write().unwrap_or_else(PoisonError::into_inner);
        if cached.changes != reading.changes {
            return;
        }
        if cached.known.len() >= self.most {
            cached.known.clear();
        }
        cached.known.insert(key, (reading.at, value));
    }

    /// Something has changed, or may have.
    pub fn forget(&self) {
        let mut cached = self.cached.write().unwrap_or_else(PoisonError::into_inner);
        cached.known.clear();
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
