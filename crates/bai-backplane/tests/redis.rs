//! What only a server on the network can do to a broker: restart, forget, fall silent, ask for a password. And what it
//! shares with the original.

use std::sync::Arc;
use std::time::Duration;

use bai_backplane::broker::{self, Broker, EntryId, Message, Subscription};
use bai_backplane::conformance::ManualClock;
use bai_backplane::{Error, Result, Terminal};
use bai_model::time::Clock as _;
use bai_testkit::services::{Certificates, Proxy, Redis, redis};
use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use futures_util::StreamExt as _;

/// How long to wait for what must happen.
const LIMIT: Duration = Duration::from_secs(30);
const TTL: Duration = Duration::from_secs(60);
const WINDOW: Duration = Duration::from_secs(900);

/// A server, or the end of the test with the reason.
macro_rules! server {
    ($started:expr) => {
        match $started {
            Ok(redis) => redis,
            Err(why) => {
                println!("SKIPPED: faults of Redis, because {why}");
                return;
            }
        }
    };
}

async fn open(authority: &str) -> Arc<dyn Broker> {
    let uri = format!("redis://{authority}?timeout=1");
    broker::open(&uri, Arc::new(ManualClock::new()))
        .await
        .expect("open")
}

fn now() -> DateTime<Utc> {
    ManualClock::new().now()
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LIMIT, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited {LIMIT:?} in vain for {what}"),
    }
}

/// Tries until it works: what callers of a service that comes back do.
async fn until_ok<T>(what: &str, mut call: impl AsyncFnMut() -> Result<T>) -> T {
    soon(what, async {
        loop {
            match call().await {
                Ok(done) => return done,
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

async fn next(subscription: &mut Subscription) -> Message {
    soon("a message", subscription.next())
        .await
        .expect("the subscription goes on")
}

/// The error of a service that cannot be used, which must say which service, where, and whose setting.
fn unavailable<T: std::fmt::Debug>(answer: Result<T>, address: &str, setting: &str) -> String {
    let Err(Error::Unavailable(error)) = answer else {
        panic!("expected the service to be unavailable, got {answer:?}");
    };
    assert_eq!((error.service, error.address.as_str()), ("Redis", address));
    assert!(error.setting.starts_with(setting), "{error}");
    assert!(!error.to_string().contains(redis::PASSWORD), "{error}");
    error.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_original_counts_together_with_us() {
    let redis = server!(Redis::start());
    let (one, two) = (open(&redis.address()).await, open(&redis.address()).await);
    let key = "AKIAIOSFODNN7EXAMPLE";
    assert_eq!(one.hit(key, now(), WINDOW).await, Ok(1));
    assert_eq!(two.hit(key, now(), WINDOW).await, Ok(2));
    // What the script of the specification does (`http-api.md` 3.13), by hand.
    let seconds = now().timestamp();
    let original = redis.commands(&[
        "SELECT 1",
        "INCR __request_id",
        &format!("ZREMRANGEBYSCORE {key} 0 {}", seconds - 900),
        &format!("ZADD {key} {seconds}.001 3"),
        &format!("EXPIRE {key} 900"),
        &format!("ZCARD {key}"),
    ]);
    assert_eq!(original, ["+OK", ":3", ":0", ":1", ":1", ":3"]);
    let later = now() + TimeDelta::milliseconds(2);
    assert_eq!(one.hit(key, later, WINDOW).await, Ok(4));
    let seen = redis.commands(&[
        "SELECT 1",
        "GET __request_id",
        &format!("ZSCORE {key} 4"),
        &format!("TTL {key}"),
        "SET __request_id 999999999999",
        "DBSIZE",
    ]);
    assert_eq!(seen[1], "4");
    assert_eq!(seen[2].parse::<f64>().ok(), Some(seconds as f64 + 0.002));
    assert_eq!(seen[3], ":900");
    assert_eq!(seen[5], ":2", "nothing else in the rate limiter's database");
    assert_eq!(one.hit(key, later, WINDOW).await, Ok(5));
    assert_eq!(
        redis.commands(&["SELECT 1", "GET __request_id"])[1],
        "1",
        "the counter starts over"
    );
    // An original that stops empties its database, and nobody minds.
    redis.commands(&["SELECT 1", "FLUSHDB"]);
    assert_eq!(two.hit(key, later, WINDOW).await, Ok(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn statistics_of_agents_are_read() {
    let redis = server!(Redis::start());
    let broker = open(&redis.address()).await;
    let kernel = "26d2c588-c1eb-4c76-b6f0-6b0200251b30";
    let set = format!("SET {kernel} \"\\x81\\xa3mem\\x80\" PX 30000");
    redis.commands(&["SELECT 0", &set, "HSET legacy cpu_used 1", "SET i-agent node"]);
    let ids = [kernel, "legacy", "none", "i-agent"].map(str::to_owned);
    let statistics = broker.get_many(&ids).await.expect("get");
    let expected = Some(Bytes::from_static(b"\x81\xa3mem\x80"));
    assert_eq!(
        statistics,
        [expected.clone(), None, None, Some(Bytes::from_static(b"node"))]
    );
    assert_eq!(broker.get(kernel).await, Ok(expected));
    assert_eq!(broker.get("legacy").await, Ok(None));
    broker
        .set("ours", Bytes::from_static(b"1"), Duration::from_secs(30))
        .await
        .expect("set");
    let ttl = &redis.commands(&["PTTL ours"])[0];
    assert!(
        ttl[1..]
            .parse::<u32>()
            .is_ok_and(|left| (1..=30_000).contains(&left)),
        "{ttl}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heartbeats_are_where_the_original_looks() {
    let redis = server!(Redis::start());
    let broker = open(&redis.address()).await;
    let image = "index.docker.io/lablup/lua:5.3-alpine3.8";
    let at = now() + TimeDelta::microseconds(123_456);
    broker.beat(&[("i-one".to_owned(), at)]).await.expect("beat");
    broker.hold("i-one", &[image.to_owned()]).await.expect("hold");
    let seen = redis.commands(&[
        "SELECT 2",
        "HGET last_seen i-one",
        "SELECT 3",
        &format!("SISMEMBER {image} i-one"),
    ]);
    assert_eq!(seen, ["+OK", "1563206400.123456", "+OK", ":1"]);
    redis.commands(&[
        "SELECT 2",
        "HSET last_seen i-two 1563206746.5",
        "SELECT 3",
        &format!("SADD {image} i-two"),
    ]);
    assert_eq!(broker.holders(&[image.to_owned()]).await, Ok(vec![2]));
    broker.forget("i-two").await.expect("forget");
    assert_eq!(broker.last_seen().await, Ok([("i-one".to_owned(), at)].into()));
    assert_eq!(redis.commands(&["SELECT 3", &format!("SCARD {image}")])[1], ":1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_goes_on_after_a_restart() {
    let redis = server!(Redis::start());
    let broker = open(&redis.address()).await;
    let mut messages = broker.subscribe("news").await.expect("subscribe");
    let lock = broker.try_lock("job", TTL).await.expect("lock").expect("free");
    broker.hit("AK", now(), WINDOW).await.expect("hit");
    broker
        .append("s", &[Bytes::from_static(b"1")], 10)
        .await
        .expect("append");
    redis.kill();
    unavailable(broker.get("x").await, &redis.address(), "config/redis/addr");
    unavailable(
        broker.subscribe("x").await.map(|_| ()),
        &redis.address(),
        "config/redis/addr",
    );
    let following = broker.follow("s", EntryId::START, 1);
    unavailable(
        soon("an end of following", following).await,
        &redis.address(),
        "config/redis/addr",
    );
    redis.start_again();
    assert_eq!(
        next(&mut messages).await,
        Message::Gap,
        "something may have been missed"
    );
    let hits = until_ok("the window", async || broker.hit("AK", now(), WINDOW).await).await;
    assert_eq!(hits, 1, "the scripts were sent again");
    assert!(!until_ok("the lock", async || broker.renew(&lock, TTL).await).await);
    let later = broker.try_lock("job", TTL).await.expect("lock").expect("free");
    assert!(
        later.token > lock.token,
        "tokens grow although everything was forgotten"
    );
    assert_eq!(broker.publish("news", Bytes::from_static(b"again")).await, Ok(1));
    assert_eq!(
        next(&mut messages).await,
        Message::Payload(Bytes::from_static(b"again"))
    );
    let id = broker
        .append("s", &[Bytes::from_static(b"2")], 10)
        .await
        .expect("append");
    let entries = soon("an entry", broker.follow("s", EntryId::START, 10))
        .await
        .expect("follow");
    assert_eq!(entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_that_died_costs_no_call() {
    let redis = server!(Redis::start());
    let broker = open(&redis.address()).await;
    broker.set("x", Bytes::from_static(b"1"), TTL).await.expect("set");
    broker.hit("AK", now(), WINDOW).await.expect("hit");
    redis.kill();
    redis.start_again();
    assert_eq!(broker.get("x").await, Ok(None));
    assert_eq!(broker.hit("AK", now(), WINDOW).await, Ok(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn losing_everything_under_load_hurts_nobody() {
    let redis = server!(Redis::start());
    let broker = open(&redis.address()).await;
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..8 {
        let broker = Arc::clone(&broker);
        workers.spawn(async move {
            for round in 0..100 {
                let key = format!("{worker}");
                broker.hit(&key, now(), WINDOW).await.expect("hit");
                broker.add(&key, 1).await.expect("add");
                broker
                    .set(&key, Bytes::from_static(b"1"), TTL)
                    .await
                    .expect("set");
                broker
                    .append("all", &[Bytes::from(key.clone())], 10)
                    .await
                    .expect("append");
                let lock = broker.lock(&format!("l{}", round % 3), TTL).await.expect("lock");
                broker.unlock(&lock).await.expect("unlock");
            }
        });
    }
    let flushes = async {
        while !workers.is_empty() {
            redis.commands(&["FLUSHALL", "SCRIPT FLUSH"]);
            while let Some(ended) = workers.try_join_next() {
                ended.expect("no worker fails");
            }
            tokio::task::yield_now().await;
        }
    };
    soon("the workers", flushes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_holds_nobody_up() {
    let redis = server!(Redis::start());
    let broker = open(&redis.address()).await;
    broker.add("n", 1).await.expect("add");
    let mut messages = broker.subscribe("news").await.expect("subscribe");
    for _ in 0..2 {
        redis.pause();
        let address = redis.address();
        soon("an end of each call", async {
            unavailable(broker.get("x").await, &address, "config/redis/addr");
            unavailable(
                broker.hit("AK", now(), WINDOW).await,
                &address,
                "config/redis/addr",
            );
            unavailable(broker.add("n", 1).await, &address, "config/redis/addr");
            unavailable(broker.try_lock("l", TTL).await, &address, "config/redis/addr");
            unavailable(
                broker.follow("s", EntryId::START, 1).await,
                &address,
                "config/redis/addr",
            );
            unavailable(
                broker.subscribe("s").await.map(|_| ()),
                &address,
                "config/redis/addr",
            );
        })
        .await;
        redis.resume();
        until_ok("the server", async || broker.get("x").await).await;
        until_ok("the lock that nobody learned of", async || {
            while broker.try_lock("l", TTL).await?.is_none() {}
            Ok(())
        })
        .await;
        redis.commands(&["FLUSHALL"]);
        until_ok("a listener", async || {
            broker.publish("news", Bytes::from_static(b"1")).await
        })
        .await;
        while next(&mut messages).await != Message::Payload(Bytes::from_static(b"1")) {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_way_is_slow_and_a_blocked_one_ends() {
    let redis = server!(Redis::start());
    let proxy = Proxy::start(&redis.address());
    let (near, far) = (open(&redis.address()).await, open(&proxy.address()).await);
    proxy.delay(Duration::from_millis(100));
    assert_eq!(far.add("n", 1).await, Ok(1));
    let held = far.lock("given up", TTL);
    assert!(
        tokio::time::timeout(Duration::from_millis(150), held)
            .await
            .is_err()
    );
    proxy.pass();
    soon("the lock that was given up", near.lock("given up", TTL))
        .await
        .expect("lock");
    proxy.hold();
    unavailable(
        soon("an end", far.add("n", 1)).await,
        &proxy.address(),
        "config/redis/addr",
    );
    proxy.pass();
    until_ok("the way", async || far.get("x").await).await;
    proxy.refuse();
    unavailable(far.get("x").await, &proxy.address(), "config/redis/addr");
    proxy.pass();
    until_ok("the way", async || far.get("x").await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_subscriptions_say_so() {
    let redis = server!(Redis::start());
    let proxy = Proxy::start(&redis.address());
    let (near, far) = (open(&redis.address()).await, open(&proxy.address()).await);
    let mut messages = far.subscribe("news").await.expect("subscribe");
    for number in 0..3 {
        let payload = Bytes::from(format!("{number}"));
        assert_eq!(near.publish("news", payload.clone()).await, Ok(1));
        assert_eq!(next(&mut messages).await, Message::Payload(payload));
        proxy.cut();
        assert_eq!(next(&mut messages).await, Message::Gap);
    }
    drop(messages);
    soon("the end of the subscription", async {
        while near.publish("news", Bytes::new()).await != Ok(0) {}
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_are_used_and_strangers_refused() {
    let redis = server!(Redis::start_with_password());
    let address = redis.address();
    let known = open(&format!(":{}@{address}", redis::PASSWORD)).await;
    known.add("n", 1).await.expect("add");
    let mut messages = known.subscribe("news").await.expect("subscribe");
    assert_eq!(known.publish("news", Bytes::new()).await, Ok(1));
    next(&mut messages).await;
    let wrong = open(&format!(":{}x@{address}", redis::PASSWORD)).await;
    for stranger in [wrong, open(&address).await] {
        unavailable(stranger.get("x").await, &address, "config/redis/password");
        unavailable(stranger.add("n", 1).await, &address, "config/redis/password");
        unavailable(
            stranger.subscribe("x").await.map(|_| ()),
            &address,
            "config/redis/password",
        );
        unavailable(
            stranger.follow("x", EntryId::START, 1).await,
            &address,
            "config/redis/password",
        );
    }
    let open_server = server!(Redis::start());
    let needless = open(&format!(":{}@{}", redis::PASSWORD, open_server.address())).await;
    unavailable(
        needless.get("x").await,
        &open_server.address(),
        "config/redis/password",
    );
}

/// Without memory, and without a disk that takes what it knows: it reads, and refuses changes with the reason.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_server_is_told_and_made_up_for() {
    let redis = server!(Redis::start());
    let broker = open(&redis.address()).await;
    broker.set("x", Bytes::from_static(b"1"), TTL).await.expect("set");
    for (fill, reason) in [
        (Redis::fill_memory as fn(&Redis), "OOM"),
        (Redis::fill_disk, "MISCONF"),
    ] {
        fill(&redis);
        let address = redis.address();
        let refused = |answer: Result<()>| {
            let text = unavailable(answer, &address, "config/redis/addr");
            assert!(text.contains(reason), "{text}");
        };
        refused(broker.set("x", Bytes::from_static(b"2"), TTL).await);
        refused(broker.add("n", 1).await.map(|_| ()));
        refused(broker.hit("AK", now(), WINDOW).await.map(|_| ()));
        refused(broker.try_lock("l", TTL).await.map(|_| ()));
        refused(broker.append("s", &[Bytes::new()], 1).await.map(|_| ()));
        assert_eq!(broker.get("x").await, Ok(Some(Bytes::from_static(b"1"))));
        redis.make_room();
        assert!(broker.hit("AK", now(), WINDOW).await.is_ok());
        assert!(broker.add("n", 1).await.is_ok());
    }
}

/// Another password than ours, from some moment on, and ours again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_changes_is_told_and_made_up_for() {
    let redis = server!(Redis::start_with_password());
    let proxy = Proxy::start(&redis.address());
    let broker = open(&format!(":{}@{}", redis::PASSWORD, proxy.address())).await;
    broker.add("n", 1).await.expect("add");
    let mut messages = broker.subscribe("news").await.expect("subscribe");
    redis.change_password("another");
    proxy.cut();
    for _ in 0..3 {
        unavailable(broker.get("x").await, &proxy.address(), "config/redis/password");
    }
    redis.change_password(redis::PASSWORD);
    until_ok("the server", async || broker.get("x").await).await;
    assert_eq!(next(&mut messages).await, Message::Gap);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_left_is_named() {
    let redis = server!(Redis::start());
    let broker = open(&redis.address()).await;
    redis.commands(&["SELECT 1", "SET AK text"]);
    let error = broker.hit("AK", now(), WINDOW).await.expect_err("not a window");
    assert!(matches!(error, Error::Terminal(Terminal::Unusable(_))), "{error}");
    broker.add("n", i64::MAX).await.expect("add");
    let error = broker.add("n", 1).await.expect_err("too much");
    assert!(matches!(error, Error::Terminal(Terminal::Invalid(_))), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_server_is_named_and_found_later() {
    let redis = server!(Redis::start());
    redis.kill();
    let broker = open(&redis.address()).await;
    let text = unavailable(broker.get("x").await, &redis.address(), "config/redis/addr");
    assert!(text.contains("refused"), "{text}");
    redis.start_again();
    until_ok("the server", async || broker.get("x").await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_spoken_with_a_known_authority_only() {
    let certificates = Certificates::make();
    let redis = server!(Redis::start_with_tls(&certificates));
    let clock = Arc::new(ManualClock::new());
    let (address, authority) = (redis.address(), certificates.authority());
    let trusting = format!("rediss://{address}?timeout=2&ca={}", authority.display());
    let trusting = broker::open(&trusting, clock.clone()).await.expect("open");
    assert_eq!(trusting.add("n", 1).await, Ok(1));
    let mut messages = trusting.subscribe("news").await.expect("subscribe");
    assert_eq!(trusting.publish("news", Bytes::new()).await, Ok(1));
    next(&mut messages).await;
    for scheme in ["rediss", "redis"] {
        let stranger = broker::open(&format!("{scheme}://{address}?timeout=1"), clock.clone())
            .await
            .expect("open");
        unavailable(stranger.get("x").await, &address, "config/redis/addr");
    }
}
