//! What every store refuses before it does anything.

use std::collections::BTreeSet;

use super::{MAX_TXN_BYTES, MAX_TXN_OPS, Op, Txn};
use crate::{Error, Result};

/// Refuses what etcd refuses, so that a caller learns it on its first machine.
pub(super) fn check(txn: &Txn) -> Result<()> {
    if txn.ops.len() > MAX_TXN_OPS || txn.compares.len() > MAX_TXN_OPS {
        return Err(Error::invalid(format!(
            "more than {MAX_TXN_OPS} operations in one transaction"
        )));
    }
    let mut bytes = 0;
    let mut touched = BTreeSet::new();
    for op in &txn.ops {
        let (key, length) = match op {
            Op::Put { key, value, .. } => (key, key.len() + value.len()),
            Op::Delete { key } => (key, key.len()),
            Op::DeletePrefix { .. } => continue,
        };
        bytes += length;
        if key.is_empty() {
            return Err(Error::invalid("a key may not be empty"));
        }
        if !touched.insert(key.as_str()) {
            return Err(Error::invalid(format!(
                "{key:?} is touched twice in one transaction"
            )));
        }
    }
    if bytes > MAX_TXN_BYTES {
        return Err(Error::invalid(format!(
            "more than {MAX_TXN_BYTES} bytes in one transaction"
        )));
    }
    for op in &txn.ops {
        if let Op::DeletePrefix { prefix } = op
            && let Some(key) = touched.iter().find(|key| key.starts_with(prefix.as_str()))
        {
            return Err(Error::invalid(format!(
                "{key:?} is touched twice in one transaction"
            )));
        }
    }
    Ok(())
}
