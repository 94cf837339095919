//! One stream's entries.

use std::collections::VecDeque;

use bytes::Bytes;
use chrono::{DateTime, Utc};

use crate::broker::{EntryId, StreamEntry};

#[derive(Debug, Default)]
pub(super) struct StreamLog {
    entries: VecDeque<StreamEntry>,
    /// Kept beside the entries, so that ids grow even when all of them were trimmed.
    last: EntryId,
}

impl StreamLog {
    pub fn append(&mut self, payload: Bytes, max_len: usize, now: DateTime<Utc>) -> EntryId {
        let millis = u64::try_from(now.timestamp_millis()).unwrap_or(0);
        self.last = if millis > self.last.millis {
            EntryId { millis, sequence: 0 }
        } else {
            EntryId {
                millis: self.last.millis,
                sequence: self.last.sequence + 1,
            }
        };
        self.entries.push_back(StreamEntry {
            id: self.last,
            payload,
        });
        let excess = self.entries.len().saturating_sub(max_len);
        self.entries.drain(..excess);
        self.last
    }

    pub fn read(&self, after: EntryId, limit: usize) -> Vec<StreamEntry> {
        let start = self.entries.partition_point(|entry| entry.id <= after);
        self.entries.range(start..).take(limit).cloned().collect()
    }
}
