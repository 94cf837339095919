//! Several units of work at once, as of several managers.

use std::future::Future;

use super::*;
use crate::agent::AgentChange;
use crate::{Error, Result};

/// Does a unit of work again as long as others are in its way.
async fn persist<T, F: Future<Output = Result<T>>>(attempt: impl Fn() -> F) -> T {
    loop {
        match attempt().await {
            Err(Error::Contention(_)) => tokio::task::yield_now().await,
            result => return result.expect("a unit of work"),
        }
    }
}

/// An agent that several managers hear of at once joins once.
pub async fn agents_join_once(store: Store) {
    let racers: Vec<_> = (0..8)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut tx = begin(&store).await;
                let change = tx
                    .upsert_agent(&agent("i-new"), at(0))
                    .await
                    .expect("a heartbeat");
                tx.commit().await.expect("a commit");
                change
            })
        })
        .collect();
    let mut joined = 0;
    for racer in racers {
        joined += u32::from(racer.await.expect("a racer") == AgentChange::Joined);
    }
    assert_eq!(joined, 1);
}

/// Of many who see one place left, one gets it: an agent, a quota and a limit of sessions are never exceeded.
pub async fn the_last_place_is_taken_once(store: Store) {
    seed(&store).await;
    let capacity = slots(3, 3 << 30);
    let racers: Vec<_> = (1..=12)
        .map(|number| {
            let (store, capacity) = (store.clone(), capacity.clone());
            tokio::spawn(async move {
                let kernel = kernel(number, &format!("session{number}"));
                let mut tx = begin(&store).await;
                tx.lock_placement().await.expect("a lock");
                let sums = [
                    tx.occupied_by_agent(&kernel.agent).await.expect("a sum"),
                    tx.occupied_by_domain(DEFAULT).await.expect("a sum"),
                    tx.occupied_by_keypair(&key()).await.expect("a sum"),
                ];
                // Let the others look as well, if they can.
                tokio::task::yield_now().await;
                if sums
                    .iter()
                    .any(|sum| !sum.plus(&kernel.occupied_slots).fits_within(&capacity))
                {
                    return false;
                }
                tx.insert_kernel(&kernel).await.expect("a kernel");
                tx.commit().await.expect("a commit");
                true
            })
        })
        .collect();
    let mut places = 0;
    for racer in racers {
        places += u32::from(racer.await.expect("a racer"));
    }
    assert_eq!(places, 3);
    let reader = store.reader();
    assert_slots(
        &reader.occupied_by_domain(DEFAULT).await.expect("a sum"),
        &capacity,
    );
    assert_eq!(reader.check_accounting().await.expect("a check"), []);
}

/// Two sessions of different owners on one agent: the later one's sum has the earlier one in it, although it began before
/// that was committed.
pub async fn sums_wait_for_each_other(store: Store) {
    seed(&store).await;
    let mut tx = begin(&store).await;
    let theirs = keypair("AKIAOTHER", &user(1, "user", UserRole::User));
    tx.insert_keypair(&theirs, at(0)).await.expect("a keypair");
    tx.commit().await.expect("a commit");
    let mut first = begin(&store).await;
    first.insert_kernel(&kernel(1, "one")).await.expect("a kernel");
    let mut second = tokio::spawn({
        let store = store.clone();
        async move {
            let mut new = kernel(2, "two");
            new.access_key = theirs.access_key;
            add_kernel(&store, &new).await;
        }
    });
    let early = tokio::time::timeout(std::time::Duration::from_millis(300), &mut second).await;
    assert!(early.is_err(), "the second one did not wait");
    first.commit().await.expect("a commit");
    second.await.expect("the second one");
    assert_eq!(store.reader().check_accounting().await.expect("a check"), []);
}

/// Creations, terminations and recalculations beside each other leave counters that equal sums.
pub async fn counters_follow_racing_operations(store: Store) {
    seed(&store).await;
    // A keypair for each, so that they meet at the agents only.
    let mut tx = begin(&store).await;
    for racer in 0..4 {
        let theirs = keypair(&format!("AKIARACER{racer}"), &user(1, "user", UserRole::User));
        tx.insert_keypair(&theirs, at(0)).await.expect("a keypair");
    }
    tx.commit().await.expect("a commit");
    let racers: Vec<_> = (0..4u128)
        .map(|racer| {
            let store = store.clone();
            tokio::spawn(async move {
                for round in 0..12 {
                    let number = racer * 100 + round;
                    let mut new = kernel(number, &format!("session{number}"));
                    new.access_key = format!("AKIARACER{racer}").as_str().into();
                    new.agent = if round % 2 == 0 {
                        "i-one".into()
                    } else {
                        "i-two".into()
                    };
                    persist(async || {
                        let mut tx = store.begin().await?;
                        tx.insert_kernel(&new).await?;
                        tx.commit().await
                    })
                    .await;
                    if round % 3 == 0 {
                        persist(async || {
                            let mut tx = store.begin().await?;
                            tx.recalculate_usage().await?;
                            tx.commit().await
                        })
                        .await;
                    }
                    if round % 4 != 0 {
                        let ended = persist(async || {
                            let mut tx = store.begin().await?;
                            let ended = tx.terminate_kernel(new.id, "raced", at(1), None).await?;
                            tx.commit().await.map(|()| ended)
                        })
                        .await;
                        assert!(ended);
                    }
                }
            })
        })
        .collect();
    for racer in racers {
        racer.await.expect("a racer");
    }
    let reader = store.reader();
    assert_eq!(reader.check_accounting().await.expect("a check"), []);
    assert_eq!(reader.count_live_sessions_total().await.expect("a count"), 12);
}

/// Several who count the same keypairs, each in an order of its own, do not get in each other's way.
pub async fn usage_is_counted_by_several(store: Store) {
    seed(&store).await;
    let keys: Vec<AccessKey> = (0..40)
        .map(|number| format!("AKIACOUNTED{number}").as_str().into())
        .collect();
    let mut tx = begin(&store).await;
    for key in &keys {
        let theirs = keypair(key.as_str(), &user(1, "user", UserRole::User));
        tx.insert_keypair(&theirs, at(0)).await.expect("a keypair");
    }
    tx.commit().await.expect("a commit");
    let racers: Vec<_> = (0..4)
        .map(|racer| {
            let (store, mut keys) = (store.clone(), keys.clone());
            tokio::spawn(async move {
                for _ in 0..10 {
                    keys.rotate_left(7 * racer + 1);
                    let usage: Vec<_> = keys.iter().map(|key| (key.clone(), 1, at(1))).collect();
                    let mut tx = begin(&store).await;
                    tx.record_usage(&usage).await.expect("a count");
                    tx.commit().await.expect("a commit");
                }
            })
        })
        .collect();
    for racer in racers {
        racer.await.expect("a racer");
    }
    let keypairs = store
        .reader()
        .keypairs_of_user(user_id(1))
        .await
        .expect("keypairs");
    let counted: Vec<i64> = keypairs.iter().map(|keypair| keypair.num_queries).collect();
    assert_eq!(counted.iter().sum::<i64>(), 1600, "{counted:?}");
}

/// Counting and ending the same session beside each other is no deadlock: the end waits and gets through.
pub async fn counting_and_ending_keep_one_order(store: Store) {
    seed(&store).await;
    add_kernel(&store, &kernel(1, "session")).await;
    let mut counting = begin(&store).await;
    counting
        .record_usage(&[(key(), 1, at(1))])
        .await
        .expect("a count");
    let mut ending = tokio::spawn({
        let store = store.clone();
        async move {
            let mut tx = store.begin().await?;
            let has_ended = tx.terminate_kernel(kernel_id(1), "raced", at(1), None).await?;
            tx.commit().await.map(|()| has_ended)
        }
    });
    let early = tokio::time::timeout(std::time::Duration::from_millis(300), &mut ending).await;
    assert!(early.is_err(), "{early:?}");
    counting
        .record_session_usage(&[(key(), "session".to_owned(), 2)])
        .await
        .expect("a count");
    counting.commit().await.expect("a commit");
    assert!(ending.await.expect("a racer").expect("an end"));
    let row = store
        .reader()
        .kernel(kernel_id(1))
        .await
        .expect("a look-up")
        .expect("a kernel");
    assert_eq!(row.num_queries, Some(2));
}

/// Uses of many sessions are counted together, however many count them.
pub async fn sessions_are_counted_by_several(store: Store) {
    seed(&store).await;
    let names: Vec<String> = (1..=150).map(|number| format!("session{number}")).collect();
    let mut tx = begin(&store).await;
    for (number, name) in (1..).zip(&names) {
        tx.insert_kernel(&kernel(number, name)).await.expect("a kernel");
    }
    tx.terminate_kernel(kernel_id(1), "done", at(1), None)
        .await
        .expect("an end");
    tx.commit().await.expect("a commit");
    let racers: Vec<_> = (0..4)
        .map(|racer| {
            let (store, mut names) = (store.clone(), names.clone());
            tokio::spawn(async move {
                for _ in 0..3 {
                    names.rotate_left(17 * racer + 1);
                    let usage: Vec<_> = names.iter().map(|name| (key(), name.clone(), 2)).collect();
                    let mut tx = begin(&store).await;
                    tx.record_session_usage(&usage).await.expect("a count");
                    tx.commit().await.expect("a commit");
                }
            })
        })
        .collect();
    for racer in racers {
        racer.await.expect("a racer");
    }
    let reader = store.reader();
    for (number, expected) in [(1, 0), (2, 24), (150, 24)] {
        let row = reader
            .kernel(kernel_id(number))
            .await
            .expect("a look-up")
            .expect("a kernel");
        assert_eq!(row.num_queries, Some(expected), "{number}");
    }
}

/// On PostgreSQL a COMMIT after a failed statement would be a silent rollback; nobody may take it for a success.
pub async fn spoiled_units_of_work_are_not_committed(store: Store) {
    seed(&store).await;
    let mut tx = begin(&store).await;
    tx.insert_domain(&domain("first"), at(0)).await.expect("a domain");
    let conflict = tx.insert_domain(&domain(DEFAULT), at(0)).await;
    assert!(conflict.is_err_and(|error| error.is_conflict_on("pk_domains")));
    let is_committed = tx.commit().await.is_ok();
    let is_there = store.reader().domain("first").await.expect("a look-up").is_some();
    assert_eq!(is_committed, is_there);
}
