//! The cases of the configuration store's leases. Stamped with those of [`super::kv`].

use std::sync::Arc;
use std::time::Duration;

use super::Passage;
use super::kv::{Kv, delete_change, get, keys, next_changes, put, watch};
use crate::kv::{ConfigKv, Expect, Presence, Txn};
use crate::{Error, Terminal};

/// Short enough for services whose time cannot be moved, long enough for a loaded machine, and in whole seconds.
const TTL: Duration = Duration::from_secs(4);

async fn grant(kv: &dyn ConfigKv) -> crate::kv::LeaseId {
    kv.grant(TTL).await.expect("grant")
}

/// Time in which a lease lives on.
async fn half(time: &dyn Passage) {
    time.pass(TTL / 2).await;
}

/// Time in which a lease ends, with what a service may be late.
async fn whole(time: &dyn Passage) {
    time.pass(TTL + TTL / 2).await;
}

/// At the end of a lease its keys go, in one commit, and no others.
pub async fn keys_vanish_with_their_lease(subject: &Kv) {
    let kv = &*subject.it;
    let (short, other) = (grant(kv).await, kv.grant(TTL * 100).await.expect("grant"));
    assert_ne!(short, other);
    let txn = Txn::new()
        .put_leased("/lease/a", "1", short)
        .put_leased("/lease/b", "2", short);
    kv.transact(txn.put_leased("/lease/c", "3", other).put("/lease/d", "4"))
        .await
        .expect("transact");
    half(&*subject.time).await;
    assert_eq!(keys(kv, "/lease/").await.len(), 4, "half the ttl is not the end");
    whole(&*subject.time).await;
    assert_eq!(keys(kv, "/lease/").await, ["/lease/c", "/lease/d"]);
    assert_eq!(get(kv, "/lease/a").await, None);
    assert_eq!(
        kv.compare_and_put("/lease/a", Expect::Absent, "new").await,
        Ok(true)
    );
}

/// A watcher learns of it even if nobody reads or writes.
pub async fn a_watch_sees_keys_vanish(subject: &Kv) {
    let kv = &*subject.it;
    let lease = grant(kv).await;
    let txn = Txn::new()
        .put_leased("/vanish/a", "1", lease)
        .put_leased("/vanish/b", "2", lease);
    let put = kv.transact(txn).await.expect("transact").revision;
    let mut events = watch(kv, "/vanish/", Some(put.next())).await;
    whole(&*subject.time).await;
    let mut vanished = Vec::new();
    while vanished.len() < 2 {
        let (revision, changes) = next_changes(&mut events).await;
        assert!(revision > put);
        vanished.extend(changes);
    }
    assert_eq!(vanished, [delete_change("/vanish/a"), delete_change("/vanish/b")]);
}

/// Each keep-alive counts from its own moment.
pub async fn keep_alive_prolongs_a_lease(subject: &Kv) {
    let kv = &*subject.it;
    let lease = grant(kv).await;
    kv.transact(Txn::new().put_leased("/alive", "1", lease))
        .await
        .expect("put");
    for _ in 0..4 {
        half(&*subject.time).await;
        kv.keep_alive(lease).await.expect("keep alive");
    }
    assert_eq!(get(kv, "/alive").await.as_deref(), Some("1"));
    whole(&*subject.time).await;
    assert_eq!(get(kv, "/alive").await, None);
}

/// Revoking does not wait.
pub async fn revocation_ends_a_lease_at_once(subject: &Kv) {
    let kv = &*subject.it;
    let lease = grant(kv).await;
    kv.transact(Txn::new().put_leased("/revoked", "1", lease))
        .await
        .expect("put");
    kv.revoke(lease).await.expect("revoke");
    assert_eq!(get(kv, "/revoked").await, None);
    assert_eq!(kv.revoke(lease).await, Err(Terminal::LeaseGone(lease).into()));
}

/// The last put decides what a key is bound to.
pub async fn a_plain_put_detaches_from_a_lease(subject: &Kv) {
    let kv = &*subject.it;
    let (first, second) = (grant(kv).await, kv.grant(TTL * 100).await.expect("grant"));
    let bind = |key: &str, lease| Txn::new().put_leased(key, "1", lease);
    for key in ["/detach/plain", "/detach/moved"] {
        kv.transact(bind(key, first)).await.expect("put");
    }
    put(kv, "/detach/plain", "2").await;
    kv.transact(bind("/detach/moved", second)).await.expect("put");
    whole(&*subject.time).await;
    assert_eq!(keys(kv, "/detach/").await, ["/detach/moved", "/detach/plain"]);
    kv.revoke(second).await.expect("revoke");
    assert_eq!(keys(kv, "/detach/").await, ["/detach/plain"]);
}

/// An ended lease neither lives again nor takes keys, and its id does not return.
pub async fn an_ended_lease_is_gone(subject: &Kv) {
    let kv = &*subject.it;
    let lease = grant(kv).await;
    whole(&*subject.time).await;
    let gone = Error::from(Terminal::LeaseGone(lease));
    assert_eq!(kv.keep_alive(lease).await, Err(gone.clone()));
    let late = Txn::new().put("/late/a", "1").put_leased("/late/b", "1", lease);
    assert_eq!(kv.transact(late).await, Err(gone));
    assert_eq!(keys(kv, "/late/").await, [] as [&str; 0]);
    assert_ne!(grant(kv).await, lease);
}

/// Presence: a deleted key returns at once, one that somebody else took over when they are gone, and in the end all of ours
/// go.
pub async fn announced_keys_come_back_until_withdrawn(subject: &Kv) {
    let kv = &*subject.it;
    // So long that nothing comes back because it is time to renew.
    let ttl = TTL * 1000;
    let announce = async |keys: &[&str], name: &str| {
        let pairs = keys.iter().map(|key| ((*key).to_owned(), name.to_owned()));
        let presence = Presence::announce(Arc::clone(&subject.it), pairs.collect(), ttl).await;
        presence.expect("announce")
    };
    let presence = announce(&["/here/a", "/here/b"], "me").await;
    assert_eq!(keys(kv, "/here/").await, ["/here/a", "/here/b"]);
    put(kv, "/here/b", "somebody else").await;
    let mut events = watch(kv, "/here/a", None).await;
    assert_eq!(kv.delete("/here/a").await, Ok(true));
    assert_eq!(next_changes(&mut events).await.1, [delete_change("/here/a")]);
    next_changes(&mut events).await;
    assert_eq!(get(kv, "/here/a").await.as_deref(), Some("me"));
    let other = announce(&["/here/a"], "other").await;
    next_changes(&mut events).await;
    assert_eq!(get(kv, "/here/a").await.as_deref(), Some("other"));
    other.withdraw().await;
    assert_eq!(next_changes(&mut events).await.1, [delete_change("/here/a")]);
    next_changes(&mut events).await;
    assert_eq!(get(kv, "/here/a").await.as_deref(), Some("me"));
    presence.withdraw().await;
    assert_eq!(keys(kv, "/here/").await, ["/here/b"]);
    assert_eq!(get(kv, "/here/b").await.as_deref(), Some("somebody else"));
}
