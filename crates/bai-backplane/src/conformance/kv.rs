//! The cases of the configuration store, but for its leases.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::StreamExt as _;
use tokio::task::JoinSet;

use super::{Subject, soon};
use crate::kv::{
    Change, ConfigKv, Expect, KeyValue, MAX_TXN_BYTES, MAX_TXN_OPS, Revision, Txn, Watch, WatchEvent,
};
use crate::{Error, Terminal};

/// Stamps every case of the store as a test.
#[macro_export]
macro_rules! kv_conformance {
    ($setup:path) => {
        $crate::stamp_cases! { kv, $setup:
            reads_what_was_written
            prefixes_are_bytes_and_listings_ordered
            revisions_grow_with_changes_only
            compares_hold_as_they_say
            twenty_racing_writers_have_one_winner
            no_update_is_lost_between_racing_writers
            a_transaction_is_one_commit_or_nothing
            contradictory_transactions_are_refused
            prefix_deletion_spares_the_neighbours
            a_watch_sees_its_prefix_from_now_on
            a_watch_resumes_where_it_was_left
            a_listing_continues_in_a_watch
            a_watch_sees_racing_commits_in_order
            a_lagging_watch_loses_nothing_silently
        }
        $crate::stamp_cases! { lease, $setup:
            keys_vanish_with_their_lease
            a_watch_sees_keys_vanish
            keep_alive_prolongs_a_lease
            revocation_ends_a_lease_at_once
            a_plain_put_detaches_from_a_lease
            an_ended_lease_is_gone
            announced_keys_come_back_until_withdrawn
        }
    };
}

pub(super) type Kv = Subject<dyn ConfigKv>;

pub(super) async fn get(kv: &dyn ConfigKv, key: &str) -> Option<String> {
    kv.get(key).await.expect("get").map(|found| found.value)
}

pub(super) async fn keys(kv: &dyn ConfigKv, prefix: &str) -> Vec<String> {
    kv.get_prefix(prefix)
        .await
        .expect("list")
        .entries
        .into_iter()
        .map(|entry| entry.key)
        .collect()
}

pub(super) async fn put(kv: &dyn ConfigKv, key: &str, value: &str) -> Revision {
    kv.put(key, value).await.expect("put")
}

pub(super) async fn watch(kv: &dyn ConfigKv, prefix: &str, from: Option<Revision>) -> Watch {
    kv.watch(prefix, from).await.expect("watch")
}

async fn next(watch: &mut Watch) -> WatchEvent {
    soon("a watch event", watch.next())
        .await
        .expect("the watch goes on")
}

/// The next event, which must be one commit's changes.
pub(super) async fn next_changes(watch: &mut Watch) -> (Revision, Vec<Change>) {
    match next(watch).await {
        WatchEvent::Changes { revision, changes } => (revision, changes),
        resync => panic!("expected changes, got {resync:?}"),
    }
}

fn put_change(key: &str, value: &str) -> Change {
    Change::Put {
        key: key.to_owned(),
        value: value.to_owned(),
    }
}

pub(super) fn delete_change(key: &str) -> Change {
    Change::Delete { key: key.to_owned() }
}

/// A key can be read after its write, with the revision of the write, until it is deleted.
pub async fn reads_what_was_written(kv: &Kv) {
    let kv = &*kv.it;
    assert_eq!(kv.get("/rw/a").await, Ok(None));
    let first = put(kv, "/rw/a", "1").await;
    let expected = KeyValue {
        key: "/rw/a".to_owned(),
        value: "1".to_owned(),
        revision: first,
    };
    assert_eq!(kv.get("/rw/a").await, Ok(Some(expected)));
    let second = put(kv, "/rw/a", "").await;
    assert!(second > first);
    assert_eq!(
        get(kv, "/rw/a").await.as_deref(),
        Some(""),
        "an empty value is a value"
    );
    assert_eq!(kv.delete("/rw/a").await, Ok(true));
    assert_eq!(kv.delete("/rw/a").await, Ok(false));
    assert_eq!(kv.get("/rw/a").await, Ok(None));
}

/// Prefixes know no segments, and listings are ordered by the bytes of UTF-8.
pub async fn prefixes_are_bytes_and_listings_ordered(kv: &Kv) {
    let kv = &*kv.it;
    let ordered = [
        "/p/A",
        "/p/a",
        "/p/a!",
        "/p/a/",
        "/p/a//",
        "/p/a/b",
        "/p/a0",
        "/p/ab",
        "/p/é",
        "/p/가",
        "/p/\u{10ffff}",
    ];
    for key in ordered.iter().rev() {
        put(kv, key, "x").await;
    }
    assert_eq!(keys(kv, "/p/").await, ordered);
    assert_eq!(keys(kv, "/p/a").await, ordered[1..8]);
    assert_eq!(keys(kv, "/p/a/").await, ordered[3..6]);
    assert_eq!(keys(kv, "/p/ab").await, ["/p/ab"], "a key is a prefix of itself");
    assert_eq!(
        keys(kv, "/p/\u{10ffff}").await,
        ["/p/\u{10ffff}"],
        "no character comes after this one"
    );
    assert_eq!(keys(kv, "/p/abc").await, [] as [&str; 0]);
    let everything = keys(kv, "").await;
    assert!(
        ordered
            .iter()
            .all(|key| everything.iter().any(|found| found == key)),
        "the empty prefix is everything"
    );
}

/// What changes nothing makes no commit.
pub async fn revisions_grow_with_changes_only(kv: &Kv) {
    let kv = &*kv.it;
    let first = put(kv, "/rev/a", "1").await;
    let again = put(kv, "/rev/a", "1").await;
    assert_eq!(again, first.next(), "writing the same value is a commit");
    let nothing = kv
        .transact(Txn::new().delete("/rev/none").delete_prefix("/rev/no/"))
        .await
        .expect("delete");
    assert_eq!((nothing.revision, nothing.deleted), (again, 0));
    let failed = kv
        .transact(Txn::new().when("/rev/a", Expect::Absent).put("/rev/a", "2"))
        .await
        .expect("compare");
    assert_eq!((failed.revision, failed.succeeded), (again, false));
    assert_eq!(kv.get_prefix("/rev/").await.expect("list").revision, again);
    assert_eq!(put(kv, "/rev/b", "").await, again.next());
}

/// The meaning of each expectation, for a key that is there and one that is not.
pub async fn compares_hold_as_they_say(kv: &Kv) {
    let kv = &*kv.it;
    let old = put(kv, "/cmp/a", "old").await;
    let revision = put(kv, "/cmp/a", "value").await;
    let table = [
        ("/cmp/a", Expect::Absent, false),
        ("/cmp/a", Expect::Value("value".to_owned()), true),
        ("/cmp/a", Expect::Value("old".to_owned()), false),
        ("/cmp/a", Expect::Revision(revision), true),
        ("/cmp/a", Expect::Revision(old), false),
        ("/cmp/none", Expect::Absent, true),
        ("/cmp/none", Expect::Value(String::new()), false),
        ("/cmp/none", Expect::Revision(revision), false),
    ];
    for (key, expect, holds) in table {
        let outcome = kv.compare_and_put("/cmp/out", expect.clone(), "x").await;
        let alone = kv
            .transact(Txn::new().when(key, expect.clone()))
            .await
            .expect("compare");
        assert_eq!(alone.succeeded, holds, "{key} {expect:?}");
        assert!(outcome.is_ok());
    }
}

/// Of many that want to be first, one is.
pub async fn twenty_racing_writers_have_one_winner(kv: &Kv) {
    let mut racers = JoinSet::new();
    for racer in 0..20 {
        let kv = Arc::clone(&kv.it);
        racers.spawn(async move {
            let won = kv
                .compare_and_put("/race/leader", Expect::Absent, &racer.to_string())
                .await;
            won.expect("compare and put").then_some(racer)
        });
    }
    let winners: Vec<i32> = soon("the racers", racers.join_all())
        .await
        .into_iter()
        .flatten()
        .collect();
    assert_eq!(winners.len(), 1, "winners: {winners:?}");
    assert_eq!(get(&*kv.it, "/race/leader").await, Some(winners[0].to_string()));
}

/// Read, add one, write if unchanged: nobody's addition disappears.
pub async fn no_update_is_lost_between_racing_writers(kv: &Kv) {
    put(&*kv.it, "/sum", "0").await;
    let mut racers = JoinSet::new();
    for _ in 0..20 {
        let kv = Arc::clone(&kv.it);
        racers.spawn(async move {
            let mut done = 0;
            while done < 5 {
                let found = kv.get("/sum").await.expect("get").expect("the sum is there");
                let sum: u32 = found.value.parse().expect("a number");
                let expect = Expect::Revision(found.revision);
                if kv
                    .compare_and_put("/sum", expect, &(sum + 1).to_string())
                    .await
                    .expect("put")
                {
                    done += 1;
                }
            }
        });
    }
    soon("the racers", racers.join_all()).await;
    assert_eq!(get(&*kv.it, "/sum").await.as_deref(), Some("100"));
}

/// All effects have one revision and reach a watcher as one event; a failed compare leaves all of them undone.
pub async fn a_transaction_is_one_commit_or_nothing(kv: &Kv) {
    let kv = &*kv.it;
    put(kv, "/txn/gone", "x").await;
    put(kv, "/txn/dir/1", "x").await;
    put(kv, "/txn/dir/2", "x").await;
    let mut events = watch(kv, "/txn/", None).await;
    let work = Txn::new()
        .put("/txn/b", "1")
        .delete("/txn/gone")
        .delete_prefix("/txn/dir/")
        .put("/txn/a", "2");
    let refused = work
        .clone()
        .when("/txn/gone", Expect::Value("x".to_owned()))
        .when("/txn/b", Expect::Value("?".to_owned()));
    assert!(!kv.transact(refused).await.expect("compare").succeeded);
    assert_eq!(keys(kv, "/txn/").await, ["/txn/dir/1", "/txn/dir/2", "/txn/gone"]);

    let outcome = kv
        .transact(work.when("/txn/b", Expect::Absent))
        .await
        .expect("transact");
    assert_eq!((outcome.succeeded, outcome.deleted), (true, 3));
    let listing = kv.get_prefix("/txn/").await.expect("list");
    let found: Vec<(&str, Revision)> = listing
        .entries
        .iter()
        .map(|entry| (entry.key.as_str(), entry.revision))
        .collect();
    assert_eq!(
        found,
        [("/txn/a", outcome.revision), ("/txn/b", outcome.revision)]
    );
    let (revision, mut changes) = next_changes(&mut events).await;
    assert_eq!(revision, outcome.revision);
    changes.sort_by(|a, b| a.key().cmp(b.key()));
    let expected = [
        put_change("/txn/a", "2"),
        put_change("/txn/b", "1"),
        delete_change("/txn/dir/1"),
        delete_change("/txn/dir/2"),
        delete_change("/txn/gone"),
    ];
    assert_eq!(changes, expected);
}

/// A transaction that could be read in two ways, or is too large, is refused before it does anything.
pub async fn contradictory_transactions_are_refused(kv: &Kv) {
    let kv = &*kv.it;
    let many = (0..=MAX_TXN_OPS).fold(Txn::new(), |txn, i| txn.put(format!("/bad/{i}"), ""));
    let refused = [
        Txn::new().put("/bad/a", "1").put("/bad/a", "2"),
        Txn::new().put("/bad/a", "1").delete("/bad/a"),
        Txn::new().put("/bad/a", "1").delete_prefix("/bad/"),
        Txn::new().put("/bad/a", "1").put("", "2"),
        Txn::new()
            .put("/bad/a", "1")
            .put("/bad/b", "x".repeat(MAX_TXN_BYTES)),
        many.clone(),
    ];
    for txn in refused {
        let answer = kv.transact(txn).await;
        assert!(
            matches!(answer, Err(Error::Terminal(Terminal::Invalid(_)))),
            "{answer:?}"
        );
    }
    assert_eq!(keys(kv, "/bad/").await, [] as [&str; 0]);
    let mut fits = many;
    fits.ops.truncate(MAX_TXN_OPS);
    assert!(
        kv.transact(fits)
            .await
            .expect("the largest transaction")
            .succeeded
    );
}

/// Only what starts with the bytes goes.
pub async fn prefix_deletion_spares_the_neighbours(kv: &Kv) {
    let kv = &*kv.it;
    for key in ["/del/a", "/del/a/1", "/del/ab", "/del/b", "/del"] {
        put(kv, key, "x").await;
    }
    assert_eq!(kv.delete_prefix("/del/a/").await, Ok(1));
    assert_eq!(kv.delete_prefix("/del/a").await, Ok(2));
    assert_eq!(keys(kv, "/del").await, ["/del", "/del/b"]);
    assert_eq!(kv.delete_prefix("/del/a").await, Ok(0));
}

/// Without a revision a watch begins with the next commit, and other prefixes do not show.
pub async fn a_watch_sees_its_prefix_from_now_on(kv: &Kv) {
    let kv = &*kv.it;
    put(kv, "/w/a/before", "x").await;
    let mut events = watch(kv, "/w/a", None).await;
    put(kv, "/w/b", "x").await;
    let first = put(kv, "/w/a", "1").await;
    let second = kv
        .transact(Txn::new().put("/w/c", "x").delete("/w/a/before"))
        .await
        .expect("transact")
        .revision;
    assert_eq!(
        next_changes(&mut events).await,
        (first, vec![put_change("/w/a", "1")])
    );
    assert_eq!(
        next_changes(&mut events).await,
        (second, vec![delete_change("/w/a/before")])
    );
}

/// A watch from the revision after the last seen one continues without gap or repetition, and goes on live.
pub async fn a_watch_resumes_where_it_was_left(kv: &Kv) {
    let kv = &*kv.it;
    let mut events = watch(kv, "/resume/", None).await;
    let mut last = Revision::ZERO;
    for i in 0..3 {
        put(kv, "/resume/k", &i.to_string()).await;
        last = next_changes(&mut events).await.0;
    }
    drop(events);
    for i in 3..6 {
        put(kv, "/resume/k", &i.to_string()).await;
    }
    let mut events = watch(kv, "/resume/", Some(last.next())).await;
    put(kv, "/resume/k", "6").await;
    for i in 3..7 {
        let (revision, changes) = next_changes(&mut events).await;
        assert!(revision > last);
        last = revision;
        assert_eq!(changes, [put_change("/resume/k", &i.to_string())]);
    }
    let mut late = watch(kv, "/resume/", Some(last.next().next())).await;
    put(kv, "/resume/k", "not yet watched").await;
    put(kv, "/resume/k", "watched").await;
    assert_eq!(
        next_changes(&mut late).await.1,
        [put_change("/resume/k", "watched")]
    );
}

/// Read everything, then watch from the listing's revision: the usual way to keep a copy.
pub async fn a_listing_continues_in_a_watch(kv: &Kv) {
    let kv = &*kv.it;
    put(kv, "/copy/a", "1").await;
    let listing = kv.get_prefix("/copy/").await.expect("list");
    let second = put(kv, "/copy/a", "2").await;
    let mut events = watch(kv, "/copy/", Some(listing.revision.next())).await;
    assert_eq!(
        next_changes(&mut events).await,
        (second, vec![put_change("/copy/a", "2")])
    );
}

/// Many writers at once: a watcher's copy goes through ascending revisions and ends as the store does.
pub async fn a_watch_sees_racing_commits_in_order(kv: &Kv) {
    let mut events = watch(&*kv.it, "/order/", None).await;
    let mut writers = JoinSet::new();
    for writer in 0..20 {
        let kv = Arc::clone(&kv.it);
        writers.spawn(async move {
            for i in 0..10 {
                let key = format!("/order/{}", (writer + i) % 7);
                let txn = if i % 4 == 3 {
                    Txn::new().delete(key)
                } else {
                    Txn::new().put(key, format!("{writer}.{i}"))
                };
                kv.transact(txn).await.expect("transact");
            }
        });
    }
    soon("the writers", writers.join_all()).await;
    let end = put(&*kv.it, "/order/end", "").await;
    let mut copy = BTreeMap::new();
    let mut last = Revision::ZERO;
    while last < end {
        let (revision, changes) = next_changes(&mut events).await;
        assert!(revision > last, "{revision} after {last}");
        last = revision;
        for change in changes {
            match change {
                Change::Put { key, value } => copy.insert(key, value),
                Change::Delete { key } => copy.remove(&key),
            };
        }
    }
    let entries = kv.it.get_prefix("/order/").await.expect("list").entries;
    assert_eq!(
        copy,
        entries
            .into_iter()
            .map(|entry| (entry.key, entry.value))
            .collect()
    );
}

/// A watcher that does not read for long sees every commit, or a resync in the place of those that it missed.
pub async fn a_lagging_watch_loses_nothing_silently(kv: &Kv) {
    const COMMITS: usize = 3000;
    let mut lagging = watch(&*kv.it, "/lag/", None).await;
    let before = put(&*kv.it, "/lag/first", "").await;
    let mut writers = JoinSet::new();
    for writer in 0..100 {
        let kv = Arc::clone(&kv.it);
        writers.spawn(async move {
            for _ in 0..COMMITS / 100 {
                kv.put(&format!("/lag/{writer}"), "").await.expect("put");
            }
        });
    }
    soon("the writers", writers.join_all()).await;
    let end = put(&*kv.it, "/lag/last", "").await;
    assert_eq!(end.0, before.0 + 1 + i64::try_from(COMMITS).expect("small"));
    let resumed = watch(&*kv.it, "/lag/", Some(before)).await;
    for mut events in [std::mem::replace(&mut lagging, resumed), lagging] {
        let mut expected = before;
        while expected <= end {
            match next(&mut events).await {
                WatchEvent::Changes { revision, .. } => {
                    assert_eq!(revision, expected, "a gap without a resync");
                    expected = revision.next();
                }
                WatchEvent::Resync { revision } => {
                    assert!(revision >= expected, "a resync that skips nothing");
                    expected = revision.next();
                }
            }
        }
        let live = put(&*kv.it, "/lag/live", "").await;
        let seen = next_changes(&mut events).await;
        assert_eq!(seen.1, [put_change("/lag/live", "")]);
        assert!(seen.0 <= live);
    }
}
