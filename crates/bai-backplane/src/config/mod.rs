//! The cluster's configuration as the rest of bai sees it: keys below `/sorna/<namespace>/`, in three scopes, read and
//! written as text or as nested objects (`http-api.md` 5.5, 5.6; `agent-protocol.md` 4.1).
//!
//! Invariants: the physical keys are the original's, byte for byte; no call reaches outside the namespace; writes, deletes
//! and watches go to the global scope unless one is named.
//!
//! Not here: what a key means, defaults, caches.

mod nested;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Map, Value};

pub use bai_model::image_ref::{quote, unquote};
pub use nested::flatten;

use crate::kv::{
    Change, Compare, ConfigKv, Expect, MAX_TXN_OPS, Op, Presence, Revision, Txn, TxnOutcome, Watch,
    WatchEvent,
};
use crate::{Error, Result};

/// Times that [`Config::replace`] starts over because somebody else wrote meanwhile.
const REPLACE_ATTEMPTS: usize = 16;

/// Whom a setting is for. A merged read prefers the narrower scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The whole cluster: directly below the namespace.
    Global,
    /// One scaling group: below `sgroup/<name>/`.
    ScalingGroup,
    /// One agent: below `nodes/agents/<id>/`.
    Node,
}

/// One namespace of the configuration store, seen from the manager (global scope only) or from an agent (all three).
///
/// Keys are relative to the namespace; one leading `/` is dropped. Components that hold arbitrary names go through
/// [`quote`]; tags, labels and slot names do not (`http-api.md` 5.5). Every method can fail as [`ConfigKv`]'s do.
#[derive(Clone, Debug)]
pub struct Config {
    kv: Arc<dyn ConfigKv>,
    /// `/sorna/<namespace>/`.
    root: String,
    /// `sgroup/<name>/` and `nodes/agents/<id>/`, or nothing.
    scaling_group: Option<String>,
    node: Option<String>,
}

impl Config {
    /// The manager's view: everything is global.
    pub fn new(kv: Arc<dyn ConfigKv>, namespace: &str) -> Self {
        Self {
            kv,
            root: format!("/sorna/{namespace}/"),
            scaling_group: None,
            node: None,
        }
    }

    /// The view of one agent, whose settings may come from its scaling group or be its own.
    #[must_use]
    pub fn for_agent(self, scaling_group: &str, agent: &str) -> Self {
        Self {
            scaling_group: Some(format!("sgroup/{scaling_group}/")),
            node: Some(format!("nodes/agents/{agent}/")),
            ..self
        }
    }

    /// The store below, for leases. Its keys are physical.
    pub fn kv(&self) -> &Arc<dyn ConfigKv> {
        &self.kv
    }

    /// A setting, from the narrowest scope that has it.
    pub async fn get(&self, key: &str) -> Result<Option<String>> {
        for root in self.roots().into_iter().rev() {
            if let Some(found) = self.kv.get(&join(&root, key)).await? {
                return Ok(Some(found.value));
            }
        }
        Ok(None)
    }

    /// All settings whose logical key starts with the bytes of `prefix`, ordered by key, merged: the narrowest scope that
    /// has a key gives its value.
    pub async fn prefix(&self, prefix: &str) -> Result<Vec<(String, String)>> {
        let mut merged = BTreeMap::new();
        for root in self.roots() {
            merged.extend(self.scan(&root, prefix).await?);
        }
        Ok(merged.into_iter().collect())
    }

    /// The nested object below a byte prefix (`http-api.md` 5.5): one leading `/` of the remainders is dropped, they are
    /// split at `/`, and a key that is both leaf and parent keeps its own value as member `""`. Empty when there is
    /// nothing. Scopes merge by top-level member: a narrower scope's member hides the wider one's as a whole
    /// (`agent-protocol.md` 4.1).
    pub async fn subtree(&self, prefix: &str) -> Result<Value> {
        let mut merged = Map::new();
        for root in self.roots() {
            let pairs = self.scan(&root, prefix).await?;
            let skip = logical(prefix).len();
            let remainders = pairs
                .iter()
                .map(|(key, value)| (key.get(skip..).unwrap_or_default(), value.as_str()));
            merged.extend(nested::nest(remainders));
        }
        Ok(Value::Object(merged))
    }

    /// The names directly below the directory `path`, as stored (see [`unquote`]), with their own values; a name that
    /// only has children has none.
    pub async fn children(&self, path: &str) -> Result<BTreeMap<String, Option<String>>> {
        let directory = format!("{}/", path.trim_end_matches('/'));
        let mut children = BTreeMap::new();
        for (key, value) in self.prefix(&directory).await? {
            let below = key.get(logical(&directory).len()..).unwrap_or_default();
            match below.split_once('/') {
                Some((name, _)) => children.entry(name.to_owned()).or_insert(None),
                None => children
                    .entry(below.to_owned())
                    .insert_entry(Some(value))
                    .into_mut(),
            };
        }
        Ok(children)
    }

    /// Writes a setting for the whole cluster.
    pub async fn put(&self, key: &str, value: &str) -> Result<()> {
        self.put_in(Scope::Global, key, value).await
    }

    /// Writes a setting in one scope. The empty key in the node scope is the agent's own, `nodes/agents/<id>/`.
    ///
    /// # Errors
    /// [`crate::Terminal::Invalid`] for a scope that this view does not have.
    pub async fn put_in(&self, scope: Scope, key: &str, value: &str) -> Result<()> {
        let root = match scope {
            Scope::Global => Some(self.root.clone()),
            Scope::ScalingGroup => self.within(self.scaling_group.as_deref()),
            Scope::Node => self.within(self.node.as_deref()),
        };
        let root = root.ok_or_else(|| Error::invalid(format!("no {scope:?} scope in the manager's view")))?;
        self.kv.put(&join(&root, key), value).await?;
        Ok(())
    }

    /// Writes many settings, in order, in transactions of up to [`MAX_TXN_OPS`]: each is atomic, the whole only when it
    /// fits one. The last of several values for a key wins.
    pub async fn put_all(&self, pairs: &[(String, String)]) -> Result<()> {
        let latest: BTreeMap<&str, usize> = pairs
            .iter()
            .enumerate()
            .map(|(index, (key, _))| (logical(key), index))
            .collect();
        let mut order: Vec<usize> = latest.into_values().collect();
        order.sort_unstable();
        for chunk in order.chunks(MAX_TXN_OPS) {
            let puts = chunk.iter().filter_map(|index| pairs.get(*index));
            self.transact(puts.fold(Txn::new(), |txn, (key, value)| txn.put(key, value)))
                .await?;
        }
        Ok(())
    }

    /// Writes an object below `prefix`, recursively, as one transaction; see [`flatten`]. Returns how many keys it wrote.
    ///
    /// # Errors
    /// [`crate::Terminal::Invalid`] for values that [`flatten`] refuses, and for more than [`MAX_TXN_OPS`] keys.
    pub async fn put_dict(&self, prefix: &str, dict: &Map<String, Value>) -> Result<usize> {
        let pairs = flatten(prefix, dict)?;
        let txn = pairs
            .iter()
            .fold(Txn::new(), |txn, (key, value)| txn.put(key, value));
        self.transact(txn).await?;
        Ok(pairs.len())
    }

    /// Makes `dict` everything that is at `path` and below `path/`, as one transaction: no reader sees a half, and of
    /// two replacements one wins as a whole.
    ///
    /// # Errors
    /// As [`Config::put_dict`]; [`Error::Retryable`] when others keep writing below `path`.
    pub async fn replace(&self, path: &str, dict: &Map<String, Value>) -> Result<()> {
        let path = logical(path).trim_end_matches('/');
        let pairs: BTreeMap<String, String> = flatten(path, dict)?.into_iter().collect();
        for _ in 0..REPLACE_ATTEMPTS {
            let listing = self.kv.get_prefix(&join(&self.root, path)).await?;
            let mut txn = Txn::new();
            let mut standing = BTreeMap::new();
            for entry in listing.entries {
                let key = self.relative(&entry.key).to_owned();
                if key == path || key.strip_prefix(path).is_some_and(|below| below.starts_with('/')) {
                    txn = txn.when(&key, Expect::Revision(entry.revision));
                    standing.insert(key, entry.value);
                }
            }
            for key in standing.keys().filter(|key| !pairs.contains_key(*key)) {
                txn = txn.delete(key);
            }
            for (key, value) in &pairs {
                match standing.get(key) {
                    Some(present) if present == value => {}
                    Some(_) => txn = txn.put(key, value),
                    None => txn = txn.when(key, Expect::Absent).put(key, value),
                }
            }
            if self.transact(txn).await?.succeeded {
                return Ok(());
            }
        }
        Err(Error::Retryable(format!("others keep writing below {path}")))
    }

    /// Writes a setting if it is as expected; says whether it was.
    pub async fn compare_and_put(&self, key: &str, expect: Expect, value: &str) -> Result<bool> {
        self.kv
            .compare_and_put(&join(&self.root, key), expect, value)
            .await
    }

    /// Deletes one setting; says whether it existed.
    pub async fn delete(&self, key: &str) -> Result<bool> {
        self.kv.delete(&join(&self.root, key)).await
    }

    /// Deletes every setting whose key starts with these bytes, without segment boundaries (`"m"` includes
    /// `manager/status`, `http-api.md` 4.3); says how many that were.
    pub async fn delete_prefix(&self, prefix: &str) -> Result<u64> {
        self.kv.delete_prefix(&join(&self.root, prefix)).await
    }

    /// Does all of a transaction on global settings, or nothing.
    pub async fn transact(&self, txn: Txn) -> Result<TxnOutcome> {
        let full = |key: String| join(&self.root, &key);
        let compares = txn.compares.into_iter().map(|Compare { key, expect }| Compare {
            key: full(key),
            expect,
        });
        let ops = txn.ops.into_iter().map(|op| match op {
            Op::Put { key, value, lease } => Op::Put {
                key: full(key),
                value,
                lease,
            },
            Op::Delete { key } => Op::Delete { key: full(key) },
            Op::DeletePrefix { prefix } => Op::DeletePrefix { prefix: full(prefix) },
        });
        self.kv
            .transact(Txn {
                compares: compares.collect(),
                ops: ops.collect(),
            })
            .await
    }

    /// Keeps global settings for as long as the [`Presence`] lives, and up to `ttl` longer.
    ///
    /// # Errors
    /// As [`Presence::announce`].
    pub async fn announce(&self, pairs: &[(&str, &str)], ttl: Duration) -> Result<Presence> {
        let pairs = pairs
            .iter()
            .map(|(key, value)| (join(&self.root, key), (*value).to_owned()))
            .collect();
        Presence::announce(Arc::clone(&self.kv), pairs, ttl).await
    }

    /// Changes of global settings below a byte prefix, with logical keys; see [`ConfigKv::watch`].
    pub async fn watch(&self, prefix: &str, from: Option<Revision>) -> Result<Watch> {
        let skip = self.root.len();
        let relative = move |key: String| key.get(skip..).unwrap_or_default().to_owned();
        let events = self.kv.watch(&join(&self.root, prefix), from).await?;
        let events = events.map(move |event| match event {
            WatchEvent::Changes { revision, changes } => {
                let changes = changes.into_iter().map(|change| match change {
                    Change::Put { key, value } => Change::Put {
                        key: relative(key),
                        value,
                    },
                    Change::Delete { key } => Change::Delete { key: relative(key) },
                });
                WatchEvent::Changes {
                    revision,
                    changes: changes.collect(),
                }
            }
            resync @ WatchEvent::Resync { .. } => resync,
        });
        Ok(events.boxed())
    }

    /// The physical beginnings of keys in this view, widest scope first.
    fn roots(&self) -> Vec<String> {
        let scopes = [
            self.within(self.scaling_group.as_deref()),
            self.within(self.node.as_deref()),
        ];
        std::iter::once(self.root.clone())
            .chain(scopes.into_iter().flatten())
            .collect()
    }

    fn within(&self, scope: Option<&str>) -> Option<String> {
        scope.map(|scope| format!("{}{scope}", self.root))
    }

    /// What one scope has below a byte prefix, with keys relative to the scope.
    async fn scan(&self, root: &str, prefix: &str) -> Result<Vec<(String, String)>> {
        let listing = self.kv.get_prefix(&join(root, prefix)).await?;
        let pairs = listing.entries.into_iter();
        Ok(pairs
            .map(|entry| {
                (
                    entry.key.get(root.len()..).unwrap_or_default().to_owned(),
                    entry.value,
                )
            })
            .collect())
    }

    fn relative<'k>(&self, key: &'k str) -> &'k str {
        key.strip_prefix(&self.root).unwrap_or(key)
    }
}

/// A key without the one leading `/` that does not count.
fn logical(key: &str) -> &str {
    key.strip_prefix('/').unwrap_or(key)
}

fn join(root: &str, key: &str) -> String {
    format!("{root}{}", logical(key))
}
