//! The cases of the broker.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::task::JoinSet;

use super::{Subject, soon};
use crate::broker::{Broker, EntryId, Lock, Message, SUBSCRIBER_BACKLOG, Subscription};

/// Stamps every case of the broker as a test.
#[macro_export]
macro_rules! broker_conformance {
    ($setup:path) => {
        $crate::stamp_cases! { broker, $setup:
            cached_values_live_for_their_ttl
            many_values_come_in_the_order_asked
            counters_lose_nothing_in_a_race
            the_rate_window_slides
            racing_hits_are_counted_once_each
            a_lock_has_one_holder
            a_lost_lock_cannot_be_used
            twenty_racing_lockers_take_turns
            a_waiter_gets_an_expired_lock
            a_waiter_that_gives_up_holds_nothing
            messages_reach_present_subscribers_in_order
            a_slow_subscriber_is_told_of_its_gap
            streams_are_read_from_anywhere
            streams_are_trimmed
            a_follower_waits_for_the_next_entry
            heartbeats_tell_who_is_there_and_has_what
        }
    };
}

type Subjects = Subject<dyn Broker>;

/// Short enough for services whose time cannot be moved, long enough for a loaded machine.
const TTL: Duration = Duration::from_secs(4);

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

async fn try_lock(broker: &dyn Broker, name: &str) -> Option<Lock> {
    broker.try_lock(name, TTL).await.expect("try to lock")
}

async fn next(subscription: &mut Subscription) -> Message {
    soon("a message", subscription.next())
        .await
        .expect("the subscription goes on")
}

/// A value is there until its time is over, and a new one brings its own time.
pub async fn cached_values_live_for_their_ttl(subject: &Subjects) {
    let broker = &*subject.it;
    for key in ["c/a", "c/b", "c/removed"] {
        broker.set(key, bytes("1"), TTL).await.expect("set");
    }
    assert_eq!(broker.remove("c/removed").await, Ok(true));
    assert_eq!(broker.remove("c/removed").await, Ok(false));
    subject.time.pass(TTL / 2).await;
    broker.set("c/b", bytes("2"), TTL).await.expect("set");
    assert_eq!(broker.get("c/a").await, Ok(Some(bytes("1"))));
    subject.time.pass(TTL / 2).await;
    assert_eq!(broker.get("c/a").await, Ok(None));
    assert_eq!(
        broker.remove("c/a").await,
        Ok(false),
        "what has expired is not there to remove"
    );
    assert_eq!(broker.get("c/b").await, Ok(Some(bytes("2"))));
}

/// One answer per question, also for missing and repeated keys.
pub async fn many_values_come_in_the_order_asked(subject: &Subjects) {
    let broker = &*subject.it;
    broker.set("m/1", bytes("one"), TTL).await.expect("set");
    broker
        .set("m/2", Bytes::from_static(&[0, 255]), TTL)
        .await
        .expect("set");
    let keys = ["m/2", "m/none", "m/1", "m/2"].map(str::to_owned);
    let two = Some(Bytes::from_static(&[0, 255]));
    assert_eq!(
        broker.get_many(&keys).await,
        Ok(vec![two.clone(), None, Some(bytes("one")), two])
    );
    assert_eq!(broker.get_many(&[]).await, Ok(Vec::new()));
}

/// Every addition counts and every sum is seen once.
pub async fn counters_lose_nothing_in_a_race(subject: &Subjects) {
    let mut racers = JoinSet::new();
    for _ in 0..20 {
        let broker = Arc::clone(&subject.it);
        racers.spawn(async move {
            let mut sums = Vec::new();
            for _ in 0..25 {
                sums.push(broker.add("n", 2).await.expect("add"));
            }
            sums
        });
    }
    let mut sums: Vec<i64> = soon("the racers", racers.join_all()).await.concat();
    sums.sort_unstable();
    assert_eq!(sums, (1..=500).map(|n| n * 2).collect::<Vec<i64>>());
    assert_eq!(subject.it.add("n", -1001).await, Ok(-1));
    assert_eq!(subject.it.add("other", 0).await, Ok(0));
}

const WINDOW: Duration = Duration::from_secs(900);

fn at(millis: i64) -> DateTime<Utc> {
    DateTime::UNIX_EPOCH + TimeDelta::milliseconds(1_563_206_400_000 + millis)
}

/// A hit counts for the window's length, to the millisecond (`http-api.md` 3.13).
pub async fn the_rate_window_slides(subject: &Subjects) {
    let table = [
        (0, 1),
        (0, 2),
        (1, 3),
        (450_000, 4),
        (899_999, 5),
        (900_000, 4),
        (900_001, 4),
        (1_350_000, 4),
        (9_000_000, 1),
    ];
    for (millis, count) in table {
        assert_eq!(
            subject.it.hit("r/a", at(millis), WINDOW).await,
            Ok(count),
            "at {millis} ms"
        );
    }
    assert_eq!(
        subject.it.hit("r/b", at(0), WINDOW).await,
        Ok(1),
        "keys do not mix"
    );
    assert_eq!(subject.it.hit("r/skew", at(5), WINDOW).await, Ok(1));
    assert_eq!(
        subject.it.hit("r/skew", at(3), WINDOW).await,
        Ok(2),
        "another manager's clock may be behind"
    );
    assert_eq!(subject.it.hit("r/skew", at(900_004), WINDOW).await, Ok(2));
}

/// Noting and counting are one operation.
pub async fn racing_hits_are_counted_once_each(subject: &Subjects) {
    let mut racers = JoinSet::new();
    for _ in 0..20 {
        let broker = Arc::clone(&subject.it);
        racers.spawn(async move {
            let mut counts = Vec::new();
            for _ in 0..25 {
                counts.push(broker.hit("r/race", at(0), WINDOW).await.expect("hit"));
            }
            counts
        });
    }
    let mut counts: Vec<u64> = soon("the racers", racers.join_all()).await.concat();
    counts.sort_unstable();
    assert_eq!(counts, (1..=500).collect::<Vec<u64>>());
}

/// Whoever comes second does not get it before the first lets go; renewing keeps it.
pub async fn a_lock_has_one_holder(subject: &Subjects) {
    let broker = &*subject.it;
    let first = try_lock(broker, "l/a").await.expect("free");
    assert_eq!(try_lock(broker, "l/a").await, None);
    assert!(
        try_lock(broker, "l/b").await.is_some(),
        "another lock is another lock"
    );
    for _ in 0..3 {
        subject.time.pass(TTL / 2).await;
        assert_eq!(broker.renew(&first, TTL).await, Ok(true));
    }
    assert_eq!(try_lock(broker, "l/a").await, None);
    assert_eq!(broker.unlock(&first).await, Ok(true));
    let second = try_lock(broker, "l/a").await.expect("free again");
    assert!(second.token > first.token);
}

/// The fence: after its time, a former holder can neither renew nor release, whoever holds the lock now.
pub async fn a_lost_lock_cannot_be_used(subject: &Subjects) {
    let broker = &*subject.it;
    let first = try_lock(broker, "f").await.expect("free");
    subject.time.pass(TTL).await;
    assert_eq!(
        broker.renew(&first, TTL).await,
        Ok(false),
        "lost, though nobody has it"
    );
    let second = try_lock(broker, "f").await.expect("expired");
    assert!(second.token > first.token);
    assert_eq!(broker.renew(&first, TTL).await, Ok(false));
    assert_eq!(broker.unlock(&first).await, Ok(false));
    assert_eq!(
        try_lock(broker, "f").await,
        None,
        "the second holder still has it"
    );
    assert_eq!(broker.unlock(&second).await, Ok(true));
    assert_eq!(broker.unlock(&second).await, Ok(false));
}

/// Never two inside, and each later holder has a greater token.
pub async fn twenty_racing_lockers_take_turns(subject: &Subjects) {
    let inside = Arc::new(AtomicU64::new(0));
    let latest = Arc::new(AtomicU64::new(0));
    let mut racers = JoinSet::new();
    for _ in 0..20 {
        let (broker, inside, latest) = (Arc::clone(&subject.it), Arc::clone(&inside), Arc::clone(&latest));
        racers.spawn(async move {
            let lock = broker.lock("turns", TTL).await.expect("lock");
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two inside");
            assert!(latest.swap(lock.token, Ordering::SeqCst) < lock.token);
            tokio::task::yield_now().await;
            inside.fetch_sub(1, Ordering::SeqCst);
            assert_eq!(broker.unlock(&lock).await, Ok(true));
        });
    }
    soon("the lockers", racers.join_all()).await;
}

/// Waiting ends when the holder's time does.
pub async fn a_waiter_gets_an_expired_lock(subject: &Subjects) {
    let first = try_lock(&*subject.it, "x").await.expect("free");
    let broker = Arc::clone(&subject.it);
    let waiter = tokio::spawn(async move { broker.lock("x", TTL).await.expect("lock") });
    subject.time.pass(TTL).await;
    let second = soon("the waiter", waiter).await.expect("no panic");
    assert!(second.token > first.token);
    assert_eq!(try_lock(&*subject.it, "x").await, None);
}

/// A dropped wait leaves the lock to others.
pub async fn a_waiter_that_gives_up_holds_nothing(subject: &Subjects) {
    let broker = &*subject.it;
    let first = try_lock(broker, "g").await.expect("free");
    let mut waiting = broker.lock("g", TTL);
    assert!(waiting.as_mut().now_or_never().is_none());
    drop(waiting);
    assert_eq!(broker.unlock(&first).await, Ok(true));
    assert!(try_lock(broker, "g").await.is_some());
}

/// Everyone who listens gets everything from then on; nobody else anything.
pub async fn messages_reach_present_subscribers_in_order(subject: &Subjects) {
    let broker = &*subject.it;
    assert_eq!(broker.publish("s/a", bytes("unheard")).await, Ok(0));
    let mut first = broker.subscribe("s/a").await.expect("subscribe");
    let mut other = broker.subscribe("s/b").await.expect("subscribe");
    assert_eq!(broker.publish("s/a", bytes("1")).await, Ok(1));
    let mut second = broker.subscribe("s/a").await.expect("subscribe");
    assert_eq!(broker.publish("s/a", bytes("2")).await, Ok(2));
    assert_eq!(broker.publish("s/b", bytes("elsewhere")).await, Ok(1));
    assert_eq!(next(&mut first).await, Message::Payload(bytes("1")));
    assert_eq!(next(&mut first).await, Message::Payload(bytes("2")));
    assert_eq!(next(&mut second).await, Message::Payload(bytes("2")));
    assert_eq!(next(&mut other).await, Message::Payload(bytes("elsewhere")));
}

/// Whoever falls behind learns where something is missing, and then hears the rest.
pub async fn a_slow_subscriber_is_told_of_its_gap(subject: &Subjects) {
    let last = 3 * SUBSCRIBER_BACKLOG;
    let mut slow = subject.it.subscribe("slow").await.expect("subscribe");
    for number in 1..=last {
        subject
            .it
            .publish("slow", bytes(&number.to_string()))
            .await
            .expect("publish");
    }
    let (mut heard, mut gap) = (0, false);
    while heard < last {
        match next(&mut slow).await {
            Message::Gap => gap = true,
            Message::Payload(payload) => {
                let number: usize = String::from_utf8_lossy(&payload).parse().expect("a number");
                assert!(
                    number == heard + 1 || (gap && number > heard),
                    "{number} after {heard}, gap: {gap}"
                );
                (heard, gap) = (number, false);
            }
        }
    }
}

/// Ids grow strictly, and reading after one gives what came later, up to the limit.
pub async fn streams_are_read_from_anywhere(subject: &Subjects) {
    let broker = &*subject.it;
    assert_eq!(broker.read("t", EntryId::START, 10).await, Ok(Vec::new()));
    let mut ids = Vec::new();
    for numbers in [&["0"][..], &[], &["1", "2", "3"], &["4"], &["5"]] {
        let payloads: Vec<Bytes> = numbers.iter().map(|number| bytes(number)).collect();
        let appended = broker.append("t", &payloads, 100).await.expect("append");
        assert_eq!(appended.len(), numbers.len());
        ids.extend(appended);
        if numbers.contains(&"2") {
            subject.time.pass(Duration::from_secs(1)).await;
        }
    }
    assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
    let read = async |after: EntryId, limit: usize| -> Vec<String> {
        let entries = broker.read("t", after, limit).await.expect("read");
        entries
            .iter()
            .map(|entry| String::from_utf8_lossy(&entry.payload).into_owned())
            .collect()
    };
    assert_eq!(read(EntryId::START, 10).await, ["0", "1", "2", "3", "4", "5"]);
    assert_eq!(read(ids[3], 10).await, ["4", "5"]);
    assert_eq!(read(ids[0], 2).await, ["1", "2"]);
    assert_eq!(read(ids[5], 10).await, [] as [&str; 0]);
    let first = &broker.read("t", EntryId::START, 1).await.expect("read")[0];
    assert_eq!((first.id, &first.payload), (ids[0], &bytes("0")));
    broker.drop_stream("t").await.expect("drop");
    assert_eq!(broker.read("t", EntryId::START, 10).await, Ok(Vec::new()));
}

/// The newest stay.
pub async fn streams_are_trimmed(subject: &Subjects) {
    for number in 0..50 {
        subject
            .it
            .append("trim", &[bytes(&number.to_string())], 3)
            .await
            .expect("append");
    }
    let entries = subject.it.read("trim", EntryId::START, 100).await.expect("read");
    let payloads: Vec<Bytes> = entries.into_iter().map(|entry| entry.payload).collect();
    assert_eq!(payloads, ["47", "48", "49"].map(bytes));
}

/// Following gives what is there at once, and otherwise the next entry of this very stream.
pub async fn a_follower_waits_for_the_next_entry(subject: &Subjects) {
    let id = subject
        .it
        .append("follow", &[bytes("1")], 10)
        .await
        .expect("append")[0];
    let there = soon("an entry", subject.it.follow("follow", EntryId::START, 10))
        .await
        .expect("follow");
    assert_eq!(there.len(), 1);
    let mut waiting = subject.it.follow("follow", id, 10);
    assert!(waiting.as_mut().now_or_never().is_none());
    subject
        .it
        .append("unrelated", &[bytes("x")], 10)
        .await
        .expect("append");
    assert!(waiting.as_mut().now_or_never().is_none());
    subject
        .it
        .append("follow", &[bytes("2")], 10)
        .await
        .expect("append");
    let entries = soon("the next entry", waiting).await.expect("follow");
    assert_eq!(
        entries
            .iter()
            .map(|entry| entry.payload.clone())
            .collect::<Vec<_>>(),
        [bytes("2")]
    );
}

/// The last heartbeat counts, what a member has is what it said last, and a member that is forgotten leaves nothing.
pub async fn heartbeats_tell_who_is_there_and_has_what(subject: &Subjects) {
    let broker = &*subject.it;
    let things = ["lua", "python", "none", "lua"].map(str::to_owned);
    let beats = |beats: &[(&str, i64)]| -> Vec<_> {
        let beat = |(member, second): &(&str, i64)| ((*member).to_owned(), at(*second));
        beats.iter().map(beat).collect()
    };
    assert_eq!(broker.beat(&[]).await, Ok(true));
    assert_eq!(broker.beat(&beats(&[("i-one", 0)])).await, Ok(false));
    assert_eq!(
        broker.beat(&beats(&[("i-one", 1), ("i-two", 1)])).await,
        Ok(false)
    );
    assert_eq!(broker.beat(&beats(&[("i-one", 2), ("i-two", 3)])).await, Ok(true));
    broker
        .hold("i-one", &["lua".to_owned(), "gone".to_owned()])
        .await
        .expect("hold");
    broker.hold("i-one", &things[..2]).await.expect("hold");
    broker.hold("i-two", &things[..1]).await.expect("hold");
    let with_python = broker.members_with("python").await.expect("members");
    assert_eq!(with_python, ["i-one".to_owned()].into());
    assert_eq!(broker.members_with("gone").await, Ok(Default::default()));
    let seen = broker.last_seen().await.expect("last seen");
    let expected = [("i-one", at(2)), ("i-two", at(3))];
    assert_eq!(seen, expected.map(|(member, at)| (member.to_owned(), at)).into());
    assert_eq!(broker.holders(&things).await, Ok(vec![2, 1, 0, 2]));
    assert_eq!(broker.holders(&[]).await, Ok(Vec::new()));
    for _ in 0..2 {
        broker.forget("i-one").await.expect("forget");
        assert_eq!(broker.holders(&things).await, Ok(vec![1, 0, 0, 1]));
    }
    let seen = broker.last_seen().await.expect("last seen");
    assert_eq!(seen, [("i-two".to_owned(), at(3))].into());
}
