//! Leases, with the time as an argument.

use std::time::Duration;

use super::*;
use crate::Error;
use crate::lease::Lease;

const TIMER: &str = "timer";

async fn acquire(store: &Store, holder: &str, now: i64) -> Option<Lease> {
    let mut tx = begin(store).await;
    let lease = tx
        .acquire_lease(TIMER, holder, at(now), at(now + 10))
        .await
        .expect("an answer");
    tx.commit().await.expect("a commit");
    lease
}

/// Free, held, renewed, expired, taken, given back: each holder has a larger token, and only the last one passes.
pub async fn leases_pass_from_holder_to_holder(store: Store) {
    let mut first = acquire(&store, "one", 0).await.expect("a free lease");
    assert_eq!((first.holder.as_str(), first.expires_at), ("one", at(10)));
    assert_eq!(acquire(&store, "two", 9).await, None, "held");
    assert_eq!(acquire(&store, "one", 9).await, None, "one who holds renews");
    let mut tx = begin(&store).await;
    assert!(tx.renew_lease(&mut first, at(20)).await.expect("a renewal"));
    tx.commit().await.expect("a commit");
    assert_eq!(acquire(&store, "two", 19).await, None, "renewed");
    assert_eq!(
        store.reader().lease(TIMER).await.expect("a look-up"),
        Some(first.clone())
    );

    let second = acquire(&store, "two", 20).await.expect("an expired lease");
    assert!(second.token > first.token);
    let mut tx = begin(&store).await;
    assert!(
        !tx.renew_lease(&mut first, at(99)).await.expect("no renewal"),
        "lost"
    );
    assert_eq!(first.expires_at, at(20));
    tx.release_lease(&first, at(20))
        .await
        .expect("nothing to give back");
    let fenced = tx.fence(&first).await;
    assert!(
        matches!(fenced, Err(Error::Fenced { ref name }) if name == TIMER),
        "{fenced:?}"
    );
    drop(tx);
    let mut tx = begin(&store).await;
    tx.fence(&second).await.expect("the holder");
    tx.release_lease(&second, at(21)).await.expect("a release");
    assert!(tx.fence(&second).await.is_err(), "given back");
    tx.commit().await.expect("a commit");

    let third = acquire(&store, "three", 21).await.expect("a free lease");
    assert!(third.token > second.token);
    assert_eq!(store.reader().lease("another").await.expect("a look-up"), None);
}

/// Of many who want a lease at once, one gets it, each time that it expires.
pub async fn racing_holders_get_one_lease(store: Store) {
    let mut token = 0;
    for now in [0, 10, 20] {
        let racers: Vec<_> = (0..8)
            .map(|racer| {
                let store = store.clone();
                tokio::spawn(async move { acquire(&store, &format!("racer{racer}"), now).await })
            })
            .collect();
        let mut leases = Vec::new();
        for racer in racers {
            leases.extend(racer.await.expect("a racer"));
        }
        assert_eq!(leases.len(), 1, "{leases:?}");
        assert!(leases[0].token > token);
        token = leases[0].token;
    }
}

/// A lease does not go to anybody while a unit of work that it guards is open, whatever the time: what is committed under
/// an older token is committed before the newer one is given out.
pub async fn fences_hold_the_lease(store: Store) {
    let first = acquire(&store, "one", 0).await.expect("a free lease");
    let mut guarded = begin(&store).await;
    guarded.fence(&first).await.expect("the holder");
    let mut other = tokio::spawn({
        let store = store.clone();
        async move { acquire(&store, "two", 1000).await.expect("an expired lease") }
    });
    // It has every chance to be too early; that it is not is never a matter of time.
    let early = tokio::time::timeout(Duration::from_millis(300), &mut other).await;
    assert!(
        early.is_err(),
        "given out before its holder's work was done: {early:?}"
    );
    guarded
        .insert_domain(&domain("guarded"), at(0))
        .await
        .expect("a domain");
    guarded.commit().await.expect("a commit");
    let second = other.await.expect("a racer");
    assert!(second.token > first.token);
    let mut late = begin(&store).await;
    assert!(
        late.fence(&first).await.is_err(),
        "the old holder does nothing any more"
    );
}
