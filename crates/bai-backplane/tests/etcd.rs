//! What only a server on the network can do to a store: restart, lose its data, forget its history, fall silent, ask for a
//! password.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bai_backplane::conformance::ManualClock;
use bai_backplane::kv::{self, Change, ConfigKv, Presence, Revision, Watch, WatchEvent};
use bai_backplane::{Error, Result};
use bai_testkit::services::{Certificates, Etcd, Proxy, etcd};
use futures_util::{FutureExt as _, StreamExt as _};

/// How long to wait for what must happen.
const LIMIT: Duration = Duration::from_secs(30);

/// A server, or the end of the test with the reason.
macro_rules! server {
    () => {
        server!(Etcd::start())
    };
    ($started:expr) => {
        match $started {
            Ok(etcd) => etcd,
            Err(why) => {
                println!("SKIPPED: faults of etcd, because {why}");
                return;
            }
        }
    };
}

async fn open(authority: &str) -> Arc<dyn ConfigKv> {
    let uri = format!("etcd://{authority}?timeout=1");
    kv::open(&uri, Arc::new(ManualClock::new())).await.expect("open")
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(LIMIT, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited {LIMIT:?} in vain for {what}"),
    }
}

async fn next(watch: &mut Watch) -> WatchEvent {
    soon("a watch event", watch.next())
        .await
        .expect("the watch goes on")
}

/// The value of the one change that comes next.
async fn next_value(watch: &mut Watch) -> String {
    match next(watch).await {
        WatchEvent::Changes { changes, .. } => match changes.as_slice() {
            [Change::Put { value, .. }] => value.clone(),
            other => panic!("expected one put, got {other:?}"),
        },
        resync => panic!("expected a put, got {resync:?}"),
    }
}

async fn value(kv: &dyn ConfigKv, key: &str) -> Option<String> {
    kv.get(key).await.expect("get").map(|found| found.value)
}

/// Tries until it works: what callers of a service that comes back do.
async fn until_ok<T>(what: &str, mut call: impl AsyncFnMut() -> Result<T>) -> T {
    soon(what, async {
        loop {
            match call().await {
                Ok(done) => return done,
                Err(error) => assert!(error.is_retryable(), "{error}"),
            }
        }
    })
    .await
}

/// The error of a service that cannot be used, which must say which service, where, and whose setting.
fn unavailable<T: std::fmt::Debug>(answer: Result<T>, address: &str, setting: &str) -> String {
    let Err(Error::Unavailable(error)) = answer else {
        panic!("expected the service to be unavailable, got {answer:?}");
    };
    assert_eq!((error.service, error.address.as_str()), ("etcd", address));
    assert!(error.setting.starts_with(setting), "{error}");
    assert!(!error.to_string().contains(etcd::PASSWORD), "{error}");
    error.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_and_its_store_go_on_over_restarts() {
    let etcd = server!();
    let kv = open(&etcd.address()).await;
    let mut events = kv.watch("/w/", None).await.expect("watch");
    for round in 0..3 {
        kv.put("/w/before", &round.to_string()).await.expect("put");
        etcd.kill();
        let down = kv.get("/w/before").await;
        unavailable(down, &etcd.address(), "etcd.addr");
        etcd.start_again();
        until_ok("a put after the restart", async || {
            kv.put("/w/after", &round.to_string()).await
        })
        .await;
        assert_eq!(next_value(&mut events).await, round.to_string());
        assert_eq!(next_value(&mut events).await, round.to_string());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_connections_lose_and_repeat_no_event() {
    let etcd = server!();
    let proxy = Proxy::start(&etcd.address());
    let (near, far) = (open(&etcd.address()).await, open(&proxy.address()).await);
    let mut events = far.watch("/cut/", None).await.expect("watch");
    let mut expected = Vec::new();
    for number in 0..200 {
        if number % 20 == 10 {
            proxy.cut();
        }
        let revision = near.put("/cut/key", &number.to_string()).await.expect("put");
        expected.push((revision, number.to_string()));
    }
    for (revision, value) in expected {
        let change = Change::Put {
            key: "/cut/key".to_owned(),
            value,
        };
        let changes = vec![change];
        assert_eq!(next(&mut events).await, WatchEvent::Changes { revision, changes });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compacted_history_is_told() {
    let etcd = server!();
    let proxy = Proxy::start(&etcd.address());
    let (near, far) = (open(&etcd.address()).await, open(&proxy.address()).await);
    let first = near.put("/c/key", "seen").await.expect("put");
    let mut interrupted = far.watch("/c/", Some(first)).await.expect("watch");
    assert_eq!(next_value(&mut interrupted).await, "seen");
    proxy.refuse();
    near.put("/c/key", "missed").await.expect("put");
    let last = near.put("/c/key", "missed too").await.expect("put");
    etcd.compact(last.0);
    proxy.pass();
    let mut late = near.watch("/c/", Some(first)).await.expect("watch");
    for events in [&mut interrupted, &mut late] {
        assert_eq!(next(events).await, WatchEvent::Resync { revision: last });
    }
    near.put("/c/key", "live").await.expect("put");
    for events in [&mut interrupted, &mut late] {
        assert_eq!(next_value(events).await, "live");
    }
}

/// What a follower of a prefix knows, by its changes and by reading again where it has a gap.
async fn follow(
    kv: &dyn ConfigKv,
    watch: &mut Watch,
    prefix: &str,
    known: &mut BTreeMap<String, String>,
) -> u32 {
    match next(watch).await {
        WatchEvent::Changes { changes, .. } => {
            for change in changes {
                match change {
                    Change::Put { key, value } => known.insert(key, value),
                    Change::Delete { key } => known.remove(&key),
                };
            }
            0
        }
        WatchEvent::Resync { .. } => {
            let read = until_ok("what is there now", async || kv.get_prefix(prefix).await).await;
            *known = read
                .entries
                .into_iter()
                .map(|found| (found.key, found.value))
                .collect();
            1
        }
    }
}

/// The history is forgotten again and again, up to the last write, while the watch is cut off and writes go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compactions_under_load_leave_no_watch_behind() {
    const ROUNDS: u32 = 20;
    let etcd = server!();
    let proxy = Proxy::start(&etcd.address());
    let (near, far) = (open(&etcd.address()).await, open(&proxy.address()).await);
    let mut watch = far.watch("/load/", None).await.expect("watch");
    let writing = async {
        for round in 0..ROUNDS {
            proxy.refuse();
            for number in 0..25 {
                let key = format!("/load/{}", number % 7);
                if number % 10 == 9 {
                    near.delete(&key).await.expect("delete");
                } else {
                    near.put(&key, &format!("{round}-{number}")).await.expect("put");
                }
            }
            etcd.compact(etcd.revision());
            proxy.pass();
            near.put("/load/round", &round.to_string()).await.expect("put");
        }
        near.put("/load/end", "1").await.expect("put");
    };
    let following = async {
        let (mut known, mut gaps) = (BTreeMap::new(), 0);
        while !known.contains_key("/load/end") {
            gaps += follow(&*far, &mut watch, "/load/", &mut known).await;
        }
        (known, gaps)
    };
    let ((), (known, gaps)) = tokio::join!(writing, following);
    assert!(gaps > 0, "nothing was forgotten that the watch needed");
    let there = near.get_prefix("/load/").await.expect("prefix");
    let there: BTreeMap<_, _> = there
        .entries
        .into_iter()
        .map(|found| (found.key, found.value))
        .collect();
    assert_eq!(known, there);
}

/// A store without room reads, watches and keeps what it has; writes say what an operator has to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_store_is_told_and_made_up_for() {
    let etcd = server!(Etcd::start_with_room_for(4 << 20));
    let kv = open(&etcd.address()).await;
    let pairs = vec![("/node".to_owned(), "i-here".to_owned())];
    let presence = Presence::announce(Arc::clone(&kv), pairs, Duration::from_secs(2)).await;
    let presence = presence.expect("announce");
    kv.put("/full/kept", "1").await.expect("put");
    let mut watch = kv.watch("/full/", None).await.expect("watch");
    let large = "x".repeat(200 << 10);
    let refusal = soon("the end of the room", async {
        loop {
            if let refusal @ Err(_) = kv.put("/fill", &large).await {
                return refusal;
            }
        }
    })
    .await;
    let text = unavailable(refusal, &etcd.address(), "etcd.addr");
    assert!(text.contains("is full: compact and defragment it"), "{text}");
    unavailable(kv.grant(LIMIT).await, &etcd.address(), "etcd.addr");
    assert_eq!(value(&*kv, "/full/kept").await.as_deref(), Some("1"));
    // Its lease can be kept, although no other could be had.
    assert_eq!(value(&*kv, "/node").await.as_deref(), Some("i-here"));
    etcd.make_room();
    kv.put("/full/kept", "2").await.expect("put");
    // What the compaction took with it is read again.
    let mut known = BTreeMap::new();
    while known.get("/full/kept").is_none_or(|value| value != "2") {
        follow(&*kv, &mut watch, "/full/", &mut known).await;
    }
    soon("the presence", async {
        while value(&*kv, "/node").await.is_none() {}
    })
    .await;
    presence.withdraw().await;
}

/// Another password than ours, from some moment on, and ours again: nobody has to be started again for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_password_that_changes_is_told_and_made_up_for() {
    let etcd = server!();
    etcd.enable_auth();
    let kv = open(&format!("root:{}@{}", etcd::PASSWORD, etcd.address())).await;
    kv.put("/pw/key", "1").await.expect("put");
    let mut watch = kv.watch("/pw/", None).await.expect("watch");
    etcd.change_password("another");
    for _ in 0..3 {
        let refusal = kv.put("/pw/key", "2").await;
        unavailable(refusal, &etcd.address(), "etcd.user and etcd.password");
    }
    etcd.change_password(etcd::PASSWORD);
    kv.put("/pw/key", "3").await.expect("put");
    assert_eq!(next_value(&mut watch).await, "3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_data_is_told_and_presence_returns() {
    let etcd = server!();
    let kv = open(&etcd.address()).await;
    let key = "/sorna/local/nodes/manager".to_owned();
    let pairs = vec![(key.clone(), "i-here".to_owned())];
    let presence = Presence::announce(Arc::clone(&kv), pairs, Duration::from_secs(2)).await;
    let presence = presence.expect("announce");
    let mut events = kv.watch("/data/", None).await.expect("watch");
    for number in 0..50 {
        kv.put("/data/key", &number.to_string()).await.expect("put");
        assert_eq!(next_value(&mut events).await, number.to_string());
    }
    etcd.kill();
    etcd.wipe();
    etcd.start_again();
    let resync = next(&mut events).await;
    assert!(
        matches!(resync, WatchEvent::Resync { revision } if revision < Revision(50)),
        "{resync:?}"
    );
    kv.put("/data/key", "new").await.expect("put");
    assert_eq!(next_value(&mut events).await, "new");
    soon("the presence", async {
        while value(&*kv, &key).await.as_deref() != Some("i-here") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    presence.withdraw().await;
    assert_eq!(value(&*kv, &key).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_renewed_and_strangers_refused() {
    let etcd = server!();
    let known = open(&format!("root:{}@{}", etcd::PASSWORD, etcd.address())).await;
    known
        .put("/a/key", "1")
        .await
        .expect("a user where none is needed yet");
    etcd.enable_auth();
    known
        .put("/a/key", "2")
        .await
        .expect("a user where one is needed now");
    let mut events = known.watch("/a/", None).await.expect("watch");
    let lease = known.grant(LIMIT).await.expect("grant");
    // Its tokens are gone with it.
    etcd.kill();
    etcd.start_again();
    known.put("/a/key", "3").await.expect("put");
    assert_eq!(next_value(&mut events).await, "3");
    etcd.kill();
    etcd.start_again();
    known.keep_alive(lease).await.expect("keep alive");

    let address = etcd.address();
    let wrong = open(&format!("root:{}x@{address}", etcd::PASSWORD)).await;
    let nobody = open(&address).await;
    for stranger in [wrong, nobody] {
        let refusal = stranger.get("/a/key").await;
        unavailable(refusal, &address, "etcd.user and etcd.password");
        let refusal = stranger.put("/a/key", "4").await;
        unavailable(refusal, &address, "etcd.user and etcd.password");
    }
    assert_eq!(value(&*known, "/a/key").await.as_deref(), Some("3"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_holds_nobody_up() {
    let etcd = server!();
    let kv = open(&etcd.address()).await;
    let lease = kv.grant(LIMIT).await.expect("grant");
    let mut events = kv.watch("/p/", None).await.expect("watch");
    for _ in 0..2 {
        etcd.pause();
        let address = etcd.address();
        soon("an end of each call", async {
            unavailable(kv.get("/p/key").await, &address, "etcd.addr");
            unavailable(kv.put("/p/key", "lost").await, &address, "etcd.addr");
            unavailable(kv.keep_alive(lease).await, &address, "etcd.addr");
            unavailable(kv.watch("/p/", None).await.map(|_| ()), &address, "etcd.addr");
        })
        .await;
        etcd.resume();
        until_ok("a put after the pause", async || kv.put("/p/key", "heard").await).await;
        // The call that was given up may have been carried out: only its caller was told that this is unknown.
        while next_value(&mut events).await != "heard" {}
    }
    kv.keep_alive(lease).await.expect("keep alive");
}

/// After one call has waited for a server in vain, the others are told at once, until it is heard again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_is_waited_for_once() {
    let etcd = server!();
    let kv = open(&etcd.address()).await;
    kv.put("/p/key", "before").await.expect("put");
    etcd.pause();
    unavailable(kv.get("/p/key").await, &etcd.address(), "etcd.addr");
    for _ in 0..20 {
        let found = kv.get("/p/key").now_or_never().expect("no wait");
        unavailable(found, &etcd.address(), "etcd.addr");
        let put = kv.put("/p/key", "lost").now_or_never().expect("no wait");
        unavailable(put, &etcd.address(), "etcd.addr");
        let watch = kv.watch("/p/", None).now_or_never().expect("no wait");
        unavailable(watch.map(|_| ()), &etcd.address(), "etcd.addr");
    }
    etcd.resume();
    // The last look may have come just before.
    let found = until_ok("an answer after the silence", async || kv.get("/p/key").await).await;
    assert_eq!(found.map(|found| found.value).as_deref(), Some("before"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_server_answers_for_one_that_does_not() {
    let etcd = server!();
    let silent = Proxy::start(&etcd.address());
    // Nobody listens on port 1.
    let authority = format!("127.0.0.1:1,{},{}", silent.address(), etcd.address());
    let kv = open(&authority).await;
    kv.put("/f/key", "1").await.expect("the second server answers");
    silent.hold();
    assert_eq!(
        value(&*kv, "/f/key").await.as_deref(),
        Some("1"),
        "the third server answers"
    );
    kv.put("/f/key", "2")
        .await
        .expect("the third server goes on answering");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_absent_server_is_named_and_found_later() {
    let etcd = server!();
    let address = etcd.address();
    etcd.kill();
    let kv = open(&address).await;
    let refusal = kv.get("/x").await;
    let text = unavailable(refusal, &address, "etcd.addr");
    assert!(text.contains("refused") && text.contains(&address), "{text}");
    unavailable(kv.watch("/x", None).await.map(|_| ()), &address, "etcd.addr");
    etcd.start_again();
    until_ok("the server", async || kv.put("/x", "1").await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_may_change() {
    let members = server!(Etcd::start_cluster());
    let addresses: Vec<String> = members.iter().map(Etcd::address).collect();
    let kv = open(&addresses.join(",")).await;
    let mut events = kv.watch("/l/", None).await.expect("watch");
    for round in 0..3 {
        let leader = members.iter().find(|member| member.leads()).expect("a leader");
        leader.kill();
        let text = round.to_string();
        let put = async || kv.put("/l/key", &text).await;
        let revision = until_ok("a put under another leader", put).await;
        soon("the event", async {
            while !matches!(next(&mut events).await, WatchEvent::Changes { revision: seen, .. } if seen == revision) {}
        })
        .await;
        assert_eq!(value(&*kv, "/l/key").await, Some(text));
        leader.start_again();
        soon("the member", async {
            while open(&leader.address()).await.get("/l/key").await.is_err() {}
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_spoken_with_a_known_authority_only() {
    let certificates = Certificates::make();
    let etcd = server!(Etcd::start_with_tls(&certificates));
    let clock = Arc::new(ManualClock::new());
    let (address, authority) = (etcd.address(), certificates.authority());
    let trusting = format!("etcd://{address}?tls=true&timeout=2&ca={}", authority.display());
    let trusting = kv::open(&trusting, clock.clone()).await.expect("open");
    until_ok("the server", async || trusting.put("/t/key", "1").await).await;
    for options in ["tls=true&timeout=1", "timeout=1"] {
        let stranger = kv::open(&format!("etcd://{address}?{options}"), clock.clone())
            .await
            .expect("open");
        unavailable(stranger.get("/t/key").await, &address, "etcd.addr");
    }
}
