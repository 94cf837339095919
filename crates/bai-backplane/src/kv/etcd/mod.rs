//! The store of a cluster: etcd 3.4 and later (`etcd://`).
//!
//! Invariants: the answers are those of the embedded store (one suite tests both); every call ends within its deadline,
//! whatever the servers do; only what cannot be done twice is not repeated. A value that is not UTF-8 is shown with
//! replacement characters, since nothing of ours or of 19.06 writes one.
//!
//! Not here: which server is asked, and when again (`link.rs`); how a watch goes on (`watch.rs`).

mod link;
mod verdict;
mod watch;

/// The messages of `proto/etcd.proto`.
mod proto {
    include!(concat!(env!("OUT_DIR"), "/etcdserverpb.rs"));
}

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use self::link::{Link, Method};
use self::proto::compare::{CompareResult, CompareTarget, TargetUnion};
use self::proto::{request_op, response_op};
use self::verdict::Fault;
use super::check::check;
use super::{Compare, ConfigKv, Expect, KeyValue, LeaseId, Listing, Op, Revision, Txn, TxnOutcome, Watch};
use crate::address::Address;
use crate::{Error, Result, Terminal};

/// A store on one or more etcd servers.
#[derive(Debug)]
pub struct EtcdKv {
    link: Arc<Link>,
}

impl EtcdKv {
    /// The store behind `etcd://[user:password@]host[:port][,host[:port]…]`, with the options of [`super::open`]. Says
    /// nothing to any server yet. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Terminal::Address`] for an address or certificate that cannot be used.
    pub(crate) fn new(rest: &str) -> Result<Self> {
        let address = Address::parse("etcd", rest, 2379, &["tls", "ca", "timeout"])?;
        Ok(Self {
            link: Arc::new(Link::new(&address)?),
        })
    }

    async fn range(&self, key: Bytes, range_end: Bytes) -> Result<Listing> {
        let request = proto::RangeRequest {
            key,
            range_end,
            ..Default::default()
        };
        let answer: proto::RangeResponse = self.link.call(Method::RANGE, request).await?;
        Ok(Listing {
            revision: link::revision(answer.header.as_ref()),
            entries: answer.kvs.iter().map(key_value).collect(),
        })
    }
}

#[async_trait]
impl ConfigKv for EtcdKv {
    async fn get(&self, key: &str) -> Result<Option<KeyValue>> {
        if key.is_empty() {
            return Ok(None);
        }
        let listing = self.range(bytes(key), Bytes::new()).await?;
        Ok(listing.entries.into_iter().next())
    }

    async fn get_prefix(&self, prefix: &str) -> Result<Listing> {
        let (key, range_end) = span(prefix);
        self.range(key, range_end).await
    }

    async fn transact(&self, txn: Txn) -> Result<TxnOutcome> {
        check(&txn)?;
        let lease = txn.ops.iter().find_map(|op| match op {
            Op::Put { lease, .. } => *lease,
            _ => None,
        });
        let request = proto::TxnRequest {
            compare: txn.compares.iter().map(compare).collect(),
            success: txn.ops.into_iter().map(request_op).collect(),
        };
        let answer: proto::TxnResponse = match self.link.call(Method::TXN, request).await {
            Ok(answer) => answer,
            Err(fault) => return Err(fault.of_lease(lease)),
        };
        let deleted = answer.responses.iter().map(|response| match &response.response {
            Some(response_op::Response::ResponseDeleteRange(range)) => {
                u64::try_from(range.deleted).unwrap_or(0)
            }
            _ => 0,
        });
        Ok(TxnOutcome {
            succeeded: answer.succeeded,
            revision: link::revision(answer.header.as_ref()),
            deleted: deleted.sum(),
        })
    }

    async fn watch(&self, prefix: &str, from: Option<Revision>) -> Result<Watch> {
        watch::begin(Arc::clone(&self.link), prefix, from).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId> {
        // etcd counts whole seconds; a lease may live longer than asked, never shorter.
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let request = proto::LeaseGrantRequest {
            ttl: i64::try_from(seconds.max(1)).unwrap_or(i64::MAX),
        };
        let answer: proto::LeaseGrantResponse = self.link.call(Method::GRANT, request).await?;
        Ok(LeaseId(answer.id))
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<()> {
        let request = proto::LeaseKeepAliveRequest { id: lease.0 };
        let answer: std::result::Result<proto::LeaseKeepAliveResponse, Fault> =
            self.link.call_once_streaming(Method::KEEP_ALIVE, request).await;
        match answer {
            Ok(answer) if answer.ttl > 0 => Ok(()),
            Ok(_) => Err(Terminal::LeaseGone(lease).into()),
            Err(fault) => Err(fault.of_lease(Some(lease))),
        }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<()> {
        let request = proto::LeaseRevokeRequest { id: lease.0 };
        let answer: std::result::Result<proto::LeaseRevokeResponse, Fault> =
            self.link.call(Method::REVOKE, request).await;
        match answer {
            Ok(_) => Ok(()),
            Err(fault) => Err(fault.of_lease(Some(lease))),
        }
    }
}

impl Fault {
    /// The error of a call that named this lease, or none.
    fn of_lease(self, lease: Option<LeaseId>) -> Error {
        match (self, lease) {
            (Self::NoSuchLease, Some(lease)) => Terminal::LeaseGone(lease).into(),
            (fault, _) => fault.into(),
        }
    }
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// The first key with this prefix, and the first one after all of them. UTF-8 has no byte 0xff, so the last byte can
/// always be counted up.
fn span(prefix: &str) -> (Bytes, Bytes) {
    let mut end = prefix.as_bytes().to_vec();
    match end.last_mut() {
        Some(last) => {
            *last += 1;
            (bytes(prefix), end.into())
        }
        // etcd's way to say "everything".
        None => (Bytes::from_static(&[0]), Bytes::from_static(&[0])),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn key_value(found: &proto::KeyValue) -> KeyValue {
    KeyValue {
        key: text(&found.key),
        value: text(&found.value),
        revision: Revision(found.mod_revision),
    }
}

fn compare(compare: &Compare) -> proto::Compare {
    let (target, wanted) = match &compare.expect {
        Expect::Absent => (CompareTarget::Version, TargetUnion::Version(0)),
        Expect::Value(value) => (CompareTarget::Value, TargetUnion::Value(bytes(value))),
        Expect::Revision(revision) if *revision > Revision::ZERO => {
            (CompareTarget::Mod, TargetUnion::ModRevision(revision.0))
        }
        // An absent key counts as written by revision 0 in etcd, but nothing was ever written by it.
        Expect::Revision(_) => (CompareTarget::Version, TargetUnion::Version(-1)),
    };
    proto::Compare {
        result: CompareResult::Equal.into(),
        target: target.into(),
        key: bytes(&compare.key),
        target_union: Some(wanted),
    }
}

fn request_op(op: Op) -> proto::RequestOp {
    let delete = |(key, range_end)| {
        request_op::Request::RequestDeleteRange(proto::DeleteRangeRequest { key, range_end })
    };
    let request = match op {
        Op::Put { key, value, lease } => request_op::Request::RequestPut(proto::PutRequest {
            key: key.into(),
            value: value.into(),
            lease: lease.map_or(0, |lease| lease.0),
        }),
        Op::Delete { key } => delete((key.into(), Bytes::new())),
        Op::DeletePrefix { prefix } => delete(span(&prefix)),
    };
    proto::RequestOp {
        request: Some(request),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_spans_its_keys_only() {
        for (prefix, end) in [("a", "b"), ("/x/", "/x0"), ("é", "\u{ea}"), ("\u{7f}", "")] {
            let (key, range_end) = span(prefix);
            assert_eq!(&key[..], prefix.as_bytes());
            assert!(range_end > key && !range_end.starts_with(&key));
            if !end.is_empty() {
                assert_eq!(&range_end[..], end.as_bytes());
            }
        }
        assert_eq!(span("").1, Bytes::from_static(&[0]));
    }
}
