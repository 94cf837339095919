//! The local store's committed state, as a plain value.
//!
//! Invariants: a [`Tree`] changes only by [`Tree::apply`], with a [`Draft`] that was made from this very state. The
//! history has every commit from `known_from` to `revision`.
//!
//! Not here: files, tasks, waiting; how requests become a draft (`draft.rs`).

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::draft::Draft;
use super::{Change, KeyValue, LeaseId, Listing, Revision, WatchEvent};

/// Commits that watchers may lag behind or resume from before they are told to read again.
pub(super) const HISTORY: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub value: String,
    pub revision: Revision,
    pub lease: Option<LeaseId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub ttl: Duration,
    pub expires_at: DateTime<Utc>,
}

/// One revision's changes.
#[derive(Debug)]
pub(super) struct Commit {
    pub revision: Revision,
    pub changes: Vec<Change>,
}

/// The committed state, and the latest commits for watchers.
#[derive(Debug)]
pub(super) struct Tree {
    pub revision: Revision,
    pub last_lease: LeaseId,
    pub entries: BTreeMap<String, Entry>,
    pub leases: BTreeMap<LeaseId, Lease>,
    history: VecDeque<Commit>,
    known_from: Revision,
    next_expiry: Option<DateTime<Utc>>,
}

impl Tree {
    /// A state as it was read from a file. Its history is unknown.
    pub fn restored(
        revision: Revision,
        last_lease: LeaseId,
        entries: BTreeMap<String, Entry>,
        leases: BTreeMap<LeaseId, Lease>,
    ) -> Self {
        let next_expiry = leases.values().map(|lease| lease.expires_at).min();
        let history = VecDeque::new();
        Self {
            revision,
            last_lease,
            entries,
            leases,
            history,
            known_from: revision.next(),
            next_expiry,
        }
    }

    /// A store in which nothing has happened.
    pub fn empty() -> Self {
        Self::restored(Revision::ZERO, LeaseId(0), BTreeMap::new(), BTreeMap::new())
    }

    pub fn get(&self, key: &str) -> Option<KeyValue> {
        self.entries.get(key).map(|entry| key_value(key, entry))
    }

    pub fn list(&self, prefix: &str) -> Listing {
        let entries = under(&self.entries, prefix)
            .map(|(key, entry)| key_value(key, entry))
            .collect();
        Listing {
            revision: self.revision,
            entries,
        }
    }

    /// Whether a lease has run out and its keys still stand.
    pub fn is_due(&self, now: DateTime<Utc>) -> bool {
        self.next_expiry.is_some_and(|at| at <= now)
    }

    /// What happened below `prefix` from commit `from` to now.
    pub fn events_since(&self, prefix: &str, from: Revision) -> Vec<WatchEvent> {
        if from > self.revision {
            return Vec::new();
        }
        if from.max(Revision::ZERO.next()) < self.known_from {
            return vec![WatchEvent::Resync {
                revision: self.revision,
            }];
        }
        let start = self.history.partition_point(|commit| commit.revision < from);
        let touched = self.history.range(start..).filter_map(|commit| {
            let changes: Vec<Change> = commit
                .changes
                .iter()
                .filter(|change| change.key().starts_with(prefix))
                .cloned()
                .collect();
            (!changes.is_empty()).then_some(WatchEvent::Changes {
                revision: commit.revision,
                changes,
            })
        });
        touched.collect()
    }

    /// Makes a draft's changes the state.
    pub fn apply(&mut self, draft: Draft) {
        self.revision = draft.revision;
        self.last_lease = draft.last_lease;
        for (key, entry) in draft.entries {
            match entry {
                Some(entry) => self.entries.insert(key, entry),
                None => self.entries.remove(&key),
            };
        }
        if !draft.leases.is_empty() {
            for (id, lease) in draft.leases {
                match lease {
                    Some(lease) => self.leases.insert(id, lease),
                    None => self.leases.remove(&id),
                };
            }
            self.next_expiry = self.leases.values().map(|lease| lease.expires_at).min();
        }
        self.history.extend(draft.commits);
        let excess = self.history.len().saturating_sub(HISTORY);
        if let Some(last) = self.history.drain(..excess).next_back() {
            self.known_from = last.revision.next();
        }
    }
}

fn key_value(key: &str, entry: &Entry) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: entry.value.clone(),
        revision: entry.revision,
    }
}

/// The part of a map whose keys start with `prefix`.
pub(super) fn under<'m, T>(
    map: &'m BTreeMap<String, T>,
    prefix: &'m str,
) -> impl Iterator<Item = (&'m String, &'m T)> {
    map.range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
        .take_while(move |(key, _)| key.starts_with(prefix))
}
