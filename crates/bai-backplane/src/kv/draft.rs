//! How a batch of requests becomes one set of changes above the committed state.
//!
//! Invariants: a draft that is dropped leaves no trace; requests of one draft see each other's effects, in order; every
//! request that changes something gets its own revision; a refused request changes nothing.
//!
//! Not here: making the changes durable or visible.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::check::check;
use super::tree::{Commit, Entry, Lease, Tree, under};
use super::{Change, Compare, Expect, LeaseId, Op, Revision, Txn, TxnOutcome};
use crate::expiry::deadline;
use crate::{Error, Result, Terminal};

/// What a batch changes; `None` stands for a removal.
#[derive(Debug)]
pub(super) struct Draft {
    pub revision: Revision,
    pub last_lease: LeaseId,
    pub entries: BTreeMap<String, Option<Entry>>,
    pub leases: BTreeMap<LeaseId, Option<Lease>>,
    pub commits: Vec<Commit>,
    /// Whether anything here must survive a restart.
    pub durable: bool,
}

/// Takes requests, one after the other, and keeps what they change.
#[derive(Debug)]
pub(super) struct Drafting<'t> {
    tree: &'t Tree,
    now: DateTime<Utc>,
    draft: Draft,
}

impl<'t> Drafting<'t> {
    /// Begins with nothing changed but the leases that have run out: they end here.
    pub fn begin(tree: &'t Tree, now: DateTime<Utc>) -> Self {
        let draft = Draft {
            revision: tree.revision,
            last_lease: tree.last_lease,
            entries: BTreeMap::new(),
            leases: BTreeMap::new(),
            commits: Vec::new(),
            durable: false,
        };
        let mut drafting = Self { tree, now, draft };
        if tree.is_due(now) {
            let ended = tree.leases.iter().filter(|(_, lease)| lease.expires_at <= now);
            for (id, _) in ended {
                drafting.end_lease(*id);
            }
        }
        drafting
    }

    pub fn finish(self) -> Draft {
        self.draft
    }

    pub fn transact(&mut self, txn: &Txn) -> Result<TxnOutcome> {
        check(txn)?;
        if !txn.compares.iter().all(|compare| self.holds(compare)) {
            return Ok(TxnOutcome {
                succeeded: false,
                revision: self.draft.revision,
                deleted: 0,
            });
        }
        for op in &txn.ops {
            if let Op::Put {
                lease: Some(lease), ..
            } = op
            {
                self.lease(*lease)?;
            }
        }
        let revision = self.draft.revision.next();
        let mut changes = Vec::new();
        let mut deleted = 0;
        for op in &txn.ops {
            match op {
                Op::Put { key, value, lease } => {
                    let entry = Entry {
                        value: value.clone(),
                        revision,
                        lease: *lease,
                    };
                    self.draft.entries.insert(key.clone(), Some(entry));
                    changes.push(Change::Put {
                        key: key.clone(),
                        value: value.clone(),
                    });
                }
                Op::Delete { key } => deleted += u64::from(self.remove(key, &mut changes)),
                Op::DeletePrefix { prefix } => {
                    for key in self.keys_under(prefix) {
                        deleted += u64::from(self.remove(&key, &mut changes));
                    }
                }
            }
        }
        self.commit(changes);
        Ok(TxnOutcome {
            succeeded: true,
            revision: self.draft.revision,
            deleted,
        })
    }

    pub fn grant(&mut self, ttl: Duration) -> LeaseId {
        let id = LeaseId(self.draft.last_lease.0.saturating_add(1));
        self.draft.last_lease = id;
        self.draft.leases.insert(
            id,
            Some(Lease {
                ttl,
                expires_at: deadline(self.now, ttl),
            }),
        );
        self.draft.durable = true;
        id
    }

    pub fn keep_alive(&mut self, id: LeaseId) -> Result<()> {
        let lease = self.lease(id)?;
        let prolonged = Lease {
            expires_at: deadline(self.now, lease.ttl),
            ..lease
        };
        self.draft.leases.insert(id, Some(prolonged));
        Ok(())
    }

    pub fn revoke(&mut self, id: LeaseId) -> Result<()> {
        self.lease(id)?;
        self.end_lease(id);
        Ok(())
    }

    fn end_lease(&mut self, id: LeaseId) {
        let mut bound: BTreeSet<String> = self.keys_under("").into_iter().collect();
        bound.retain(|key| self.entry(key).is_some_and(|entry| entry.lease == Some(id)));
        let mut changes = Vec::new();
        for key in bound {
            self.remove(&key, &mut changes);
        }
        self.draft.leases.insert(id, None);
        self.draft.durable = true;
        self.commit(changes);
    }

    /// Gives `changes` their revision; none to a request that changed nothing.
    fn commit(&mut self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        self.draft.revision = self.draft.revision.next();
        self.draft.durable = true;
        self.draft.commits.push(Commit {
            revision: self.draft.revision,
            changes,
        });
    }

    fn remove(&mut self, key: &str, changes: &mut Vec<Change>) -> bool {
        let existed = self.entry(key).is_some();
        if existed {
            self.draft.entries.insert(key.to_owned(), None);
            changes.push(Change::Delete { key: key.to_owned() });
        }
        existed
    }

    fn holds(&self, compare: &Compare) -> bool {
        let entry = self.entry(&compare.key);
        match &compare.expect {
            Expect::Absent => entry.is_none(),
            Expect::Value(value) => entry.is_some_and(|entry| entry.value == *value),
            Expect::Revision(revision) => entry.is_some_and(|entry| entry.revision == *revision),
        }
    }

    fn entry(&self, key: &str) -> Option<&Entry> {
        match self.draft.entries.get(key) {
            Some(drafted) => drafted.as_ref(),
            None => self.tree.entries.get(key),
        }
    }

    fn lease(&self, id: LeaseId) -> Result<Lease> {
        let lease = match self.draft.leases.get(&id) {
            Some(drafted) => *drafted,
            None => self.tree.leases.get(&id).copied(),
        };
        lease.ok_or(Error::Terminal(Terminal::LeaseGone(id)))
    }

    fn keys_under(&self, prefix: &str) -> BTreeSet<String> {
        let committed = under(&self.tree.entries, prefix).map(|(key, _)| key);
        let drafted = under(&self.draft.entries, prefix).map(|(key, _)| key);
        committed
            .chain(drafted)
            .filter(|key| self.entry(key).is_some())
            .cloned()
            .collect()
    }
}
