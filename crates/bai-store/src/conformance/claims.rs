//! Claims, with the time as an argument.

use super::*;
use crate::Error;
use crate::lease::Lease;

const WORK: &str = "kernel/one";

async fn member(store: &Store, name: &str, expires_at: i64) -> Lease {
    let mut tx = begin(store).await;
    let lease = tx.acquire_lease(name, name, at(0), at(expires_at)).await;
    tx.commit().await.expect("a commit");
    lease.expect("an answer").expect("a free lease")
}

async fn claim(store: &Store, lease: &Lease, now: i64) -> bool {
    let mut tx = begin(store).await;
    let claimed = tx.claim(WORK, lease, at(now)).await.expect("an answer");
    tx.commit().await.expect("a commit");
    claimed
}

async fn passes(store: &Store, lease: &Lease) -> bool {
    let mut tx = begin(store).await;
    match tx.fence_claims(&[WORK.to_owned()], lease).await {
        Ok(()) => true,
        Err(Error::Fenced { name }) => {
            assert_eq!(name, WORK);
            false
        }
        Err(error) => panic!("{error}"),
    }
}

/// Work is one holder's while its lease lives, whoever asks; after that it is the next one's, and only theirs.
pub async fn claims_live_as_long_as_their_lease(store: Store) {
    let mut one = member(&store, "manager/one", 10).await;
    let two = member(&store, "manager/two", 100).await;
    assert!(!passes(&store, &one).await, "nobody has claimed it");
    assert!(claim(&store, &one, 0).await);
    assert!(claim(&store, &one, 9).await, "its own");
    assert!(!claim(&store, &two, 9).await, "somebody else's");
    assert!(!passes(&store, &two).await);
    let reader = store.reader();
    let holder = reader.claim_on(WORK).await.expect("a look-up").expect("a claim");
    assert_eq!((holder.lease.as_str(), holder.token), ("manager/one", one.token));
    assert!(!reader.has_abandoned_claims(at(9)).await.expect("a look-up"));
    assert!(reader.has_abandoned_claims(at(10)).await.expect("a look-up"));

    assert!(claim(&store, &two, 10).await, "the lease has ended");
    let mut tx = begin(&store).await;
    assert!(tx.renew_lease(&mut one, at(200)).await.expect("a renewal"));
    tx.commit().await.expect("a commit");
    assert!(!passes(&store, &one).await, "late is late");
    assert!(!claim(&store, &one, 11).await);
    assert!(passes(&store, &two).await);

    let mut tx = begin(&store).await;
    tx.release_claims(&[WORK.to_owned()], &one)
        .await
        .expect("nothing to give back");
    tx.fence_claims(&[WORK.to_owned()], &two)
        .await
        .expect("the holder");
    tx.release_lease(&two, at(12)).await.expect("a release");
    tx.commit().await.expect("a commit");
    assert!(claim(&store, &one, 12).await, "who has left has nothing");
    let mut tx = begin(&store).await;
    tx.release_claims(&[WORK.to_owned()], &one)
        .await
        .expect("a release");
    tx.commit().await.expect("a commit");
    assert!(!passes(&store, &one).await);
    assert_eq!(reader.claim_on(WORK).await.expect("a look-up"), None);

    assert!(claim(&store, &one, 12).await);
    let mut tx = begin(&store).await;
    let forgotten = tx.forget_leases("manager/", at(200)).await.expect("an answer");
    tx.commit().await.expect("a commit");
    assert_eq!(forgotten, 1, "that of the one who has left");
    assert!(!reader.has_abandoned_claims(at(199)).await.expect("a look-up"));
}

/// One claim that is another's is enough for a unit of work not to be committed.
pub async fn many_claims_stand_or_fall_together(store: Store) {
    let one = member(&store, "manager/one", 10).await;
    let two = member(&store, "manager/two", 100).await;
    let names = ["kernel/a", "kernel/b"].map(str::to_owned);
    let mut tx = begin(&store).await;
    tx.claim_new(&[], &one).await.expect("nothing");
    tx.claim_new(&names, &one).await.expect("claims");
    tx.fence_claims(&names, &one).await.expect("its own");
    tx.commit().await.expect("a commit");
    let mut tx = begin(&store).await;
    let again = tx.claim_new(&names[..1], &two).await;
    assert!(matches!(again, Err(Error::Conflict { .. })), "{again:?}");
    drop(tx);
    let mut tx = begin(&store).await;
    assert!(tx.claim("kernel/b", &two, at(10)).await.expect("an answer"));
    tx.commit().await.expect("a commit");
    let mut tx = begin(&store).await;
    match tx.fence_claims(&names, &one).await {
        Err(Error::Fenced { name }) => assert_eq!(name, "kernel/b"),
        other => panic!("{other:?}"),
    }
    drop(tx);
    let mut tx = begin(&store).await;
    match tx.end_claims(&names, &one).await {
        Err(Error::Fenced { name }) => assert_eq!(name, "kernel/b"),
        other => panic!("{other:?}"),
    }
    drop(tx);
    let reader = store.reader();
    assert!(reader.claim_on("kernel/a").await.expect("a look-up").is_some());
    let mut tx = begin(&store).await;
    tx.end_claims(&names[..1], &one).await.expect("its own");
    tx.commit().await.expect("a commit");
    let mut tx = begin(&store).await;
    tx.release_claims(&names, &one).await.expect("a release");
    tx.commit().await.expect("a commit");
    assert_eq!(reader.claim_on("kernel/a").await.expect("a look-up"), None);
    assert!(reader.claim_on("kernel/b").await.expect("a look-up").is_some());
}

/// Of many who want the work of one who is gone, one gets it.
pub async fn racing_members_get_one_claim(store: Store) {
    let gone = member(&store, "manager/gone", 10).await;
    assert!(claim(&store, &gone, 0).await);
    let racers: Vec<_> = (0..8)
        .map(|racer| {
            let store = store.clone();
            tokio::spawn(async move {
                let lease = member(&store, &format!("manager/{racer}"), 100).await;
                claim(&store, &lease, 50).await
            })
        })
        .collect();
    let mut winners = 0;
    for racer in racers {
        winners += usize::from(racer.await.expect("a racer"));
    }
    assert_eq!(winners, 1);
}
