//! What only the embedded store can show: that its file survives drops, crashes and failed writes, and whom it refuses.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bai_backplane::conformance::{ManualClock, Passage as _};
use bai_backplane::kv::{Change, ConfigKv, LocalKv, Revision, Txn, WatchEvent};
use bai_backplane::{Error, Terminal, broker, kv};
use futures_util::StreamExt as _;
use sqlx::{Connection as _, SqliteConnection};
use tempfile::TempDir;

const TTL: Duration = Duration::from_secs(10);

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.db");
    (folder, path)
}

async fn open(path: &Path) -> LocalKv {
    LocalKv::embedded(path, Arc::new(ManualClock::new()))
        .await
        .expect("open")
}

/// Changes a closed file behind the store's back.
async fn tamper(path: &Path, sql: &'static str) {
    let url = format!("sqlite://{}?mode=rwc", path.display());
    let mut connection = SqliteConnection::connect(&url).await.expect("connect");
    sqlx::raw_sql(sql).execute(&mut connection).await.expect("tamper");
    connection.close().await.expect("close");
}

/// The file as a killed process leaves it: a copy while the store is open.
fn copy_as_crashed(path: &Path, to: &Path) {
    for suffix in ["", "-wal"] {
        let from = PathBuf::from(format!("{}{suffix}", path.display()));
        std::fs::copy(from, format!("{}{suffix}", to.display())).expect("copy");
    }
}

#[tokio::test]
async fn data_and_revision_survive_a_drop() {
    let (_folder, path) = folder();
    let first = open(&path).await;
    first.put("a", "1").await.expect("put");
    first.put("b", "2").await.expect("put");
    let last = first
        .transact(Txn::new().put("a", "3").delete("b"))
        .await
        .expect("transact")
        .revision;
    let before = first.get_prefix("").await.expect("list");
    drop(first);
    let second = open(&path).await;
    assert_eq!(second.get_prefix("").await, Ok(before));
    assert_eq!(
        second.put("c", "4").await,
        Ok(last.next()),
        "the revision goes on"
    );
    let mut events = second.watch("", Some(last)).await.expect("watch");
    assert_eq!(
        events.next().await,
        Some(WatchEvent::Resync {
            revision: last.next()
        }),
        "older history is gone"
    );
    let mut events = second.watch("", Some(last.next())).await.expect("watch");
    assert!(matches!(events.next().await, Some(WatchEvent::Changes { .. })));
}

#[tokio::test]
async fn deleting_the_newest_key_does_not_turn_the_revision_back() {
    let (_folder, path) = folder();
    let first = open(&path).await;
    first.put("a", "1").await.expect("put");
    first.delete("a").await.expect("delete");
    drop(first);
    assert_eq!(open(&path).await.put("a", "1").await, Ok(Revision(3)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_answered_survives_a_crash() {
    let (_folder, path) = folder();
    let store = open(&path).await;
    for round in 1..=20 {
        let crashed = path.with_file_name(format!("crashed-{round}.db"));
        let value = round.to_string();
        let revision = store
            .transact(Txn::new().put("a", &value).put("b", &value))
            .await
            .expect("transact")
            .revision;
        copy_as_crashed(&path, &crashed);
        let survivor = open(&crashed).await;
        assert_eq!(survivor.get_prefix("").await, store.get_prefix("").await);
        assert_eq!(survivor.put("c", "").await, Ok(revision.next()));
    }
}

#[tokio::test]
async fn a_torn_log_gives_an_earlier_whole_state() {
    let (_folder, path) = folder();
    let store = open(&path).await;
    for round in 1..=8 {
        let value = round.to_string();
        store
            .transact(Txn::new().put("a", &value).put("b", &value))
            .await
            .expect("transact");
    }
    let whole = std::fs::metadata(format!("{}-wal", path.display()))
        .expect("the log")
        .len();
    let mut seen = Vec::new();
    for length in (0..=whole).rev().step_by(1000) {
        let crashed = path.with_file_name(format!("crashed-{length}.db"));
        copy_as_crashed(&path, &crashed);
        let log = std::fs::OpenOptions::new()
            .write(true)
            .open(format!("{}-wal", crashed.display()));
        log.expect("the log").set_len(length).expect("tear");
        let survivor = open(&crashed).await;
        let state = survivor.get_prefix("").await.expect("list");
        let values: Vec<&str> = state.entries.iter().map(|entry| entry.value.as_str()).collect();
        match state.revision.0 {
            0 => assert!(values.is_empty()),
            revision => assert_eq!(values, [revision.to_string(), revision.to_string()]),
        }
        seen.push(state.revision);
    }
    assert!(seen.is_sorted_by(|a, b| a >= b) && seen.len() > 8, "{seen:?}");
}

#[tokio::test]
async fn leases_live_on_with_their_full_time() {
    let (_folder, path) = folder();
    let clock = Arc::new(ManualClock::new());
    let first = LocalKv::embedded(&path, clock.clone()).await.expect("open");
    let lease = first.grant(TTL).await.expect("grant");
    let ended = first.grant(TTL).await.expect("grant");
    first
        .transact(Txn::new().put_leased("bound", "1", lease))
        .await
        .expect("put");
    first.revoke(ended).await.expect("revoke");
    drop(first);
    clock.pass(TTL * 5).await;
    let second = LocalKv::embedded(&path, clock.clone()).await.expect("open");
    assert!(
        second.get("bound").await.expect("get").is_some(),
        "nobody could keep it alive meanwhile"
    );
    second.keep_alive(lease).await.expect("keep alive");
    assert!(
        second.grant(TTL).await.expect("grant") > ended,
        "ids do not return"
    );
    clock.pass(TTL).await;
    assert_eq!(second.get("bound").await, Ok(None));
    drop(second);
    let third = LocalKv::embedded(&path, clock).await.expect("open");
    assert_eq!(third.get("bound").await, Ok(None));
    assert_eq!(
        third.keep_alive(lease).await,
        Err(Terminal::LeaseGone(lease).into())
    );
}

#[tokio::test]
async fn a_failed_write_leaves_nothing_and_the_store_goes_on() {
    let (_folder, path) = folder();
    drop(open(&path).await);
    tamper(
        &path,
        "CREATE TRIGGER full BEFORE INSERT ON entry WHEN new.key = 'poison'
         BEGIN SELECT RAISE(ABORT, 'the disk is full'); END",
    )
    .await;
    let store = open(&path).await;
    let first = store.put("a", "1").await.expect("put");
    let mut events = store.watch("", None).await.expect("watch");
    let failed = store.transact(Txn::new().put("a", "2").put("poison", "")).await;
    assert!(failed.as_ref().is_err_and(Error::is_retryable), "{failed:?}");
    assert_eq!(
        store
            .get("a")
            .await
            .expect("get")
            .map(|found| found.value)
            .as_deref(),
        Some("1")
    );
    assert_eq!(store.put("a", "3").await, Ok(first.next()));
    let expected = vec![Change::Put {
        key: "a".to_owned(),
        value: "3".to_owned(),
    }];
    assert_eq!(
        events.next().await,
        Some(WatchEvent::Changes {
            revision: first.next(),
            changes: expected
        })
    );
}

#[tokio::test]
async fn watches_end_with_the_store() {
    let (_folder, path) = folder();
    let store = open(&path).await;
    let mut events = store.watch("", None).await.expect("watch");
    drop(store);
    assert_eq!(events.next().await, None);
}

#[tokio::test]
async fn the_file_has_one_user_and_is_private() {
    let (_folder, path) = folder();
    let store = open(&path).await;
    let second = LocalKv::embedded(&path, Arc::new(ManualClock::new())).await;
    let refusal = second.expect_err("one process at a time");
    assert!(
        refusal.is_retryable() && refusal.to_string().contains("in use"),
        "{refusal}"
    );
    store
        .put("a", "1")
        .await
        .expect("the first user is not disturbed");
    for suffix in ["", "-wal"] {
        let file = std::fs::metadata(format!("{}{suffix}", path.display())).expect("the file");
        assert_eq!(file.permissions().mode() & 0o777, 0o600);
    }
}

#[tokio::test]
async fn other_files_are_refused_and_left_alone() {
    let (_folder, path) = folder();
    let clock = Arc::new(ManualClock::new());
    std::fs::write(&path, "this is not a database, but somebody's letter").expect("write");
    let refusal = LocalKv::embedded(&path, clock.clone())
        .await
        .expect_err("a letter");
    assert!(
        matches!(refusal, Error::Terminal(Terminal::Unusable(_))),
        "{refusal}"
    );
    assert!(std::fs::read_to_string(&path).expect("read").ends_with("letter"));

    let foreign = path.with_file_name("foreign.db");
    tamper(&foreign, "CREATE TABLE entry (id INTEGER)").await;
    let before = std::fs::read(&foreign).expect("read");
    let refusal = LocalKv::embedded(&foreign, clock.clone())
        .await
        .expect_err("somebody's database");
    assert!(
        refusal.to_string().contains("is not a configuration store"),
        "{refusal}"
    );
    assert!(
        std::fs::read(&foreign).expect("read") == before,
        "somebody's database was changed"
    );

    let newer = path.with_file_name("newer.db");
    drop(open(&newer).await);
    tamper(&newer, "PRAGMA user_version = 7").await;
    let refusal = LocalKv::embedded(&newer, clock.clone())
        .await
        .expect_err("from the future");
    assert!(refusal.to_string().contains("format 7"), "{refusal}");

    let missing = path.with_file_name("no folder").join("config.db");
    assert!(
        LocalKv::embedded(&missing, clock)
            .await
            .is_err_and(|error| error.is_retryable())
    );
}

#[tokio::test]
async fn addresses_choose_the_implementation() {
    let (_folder, path) = folder();
    let clock = Arc::new(ManualClock::new());
    let uri = format!("embedded://{}", path.display());
    assert!(kv::open(&uri, clock.clone()).await.is_ok());
    for uri in [
        "embedded://relative.db",
        "memory",
        "",
        "etcd:127.0.0.1:2379",
        "etcd://u:hidden@127.0.0.1:port",
        "http://u:hidden@127.0.0.1",
    ] {
        let refusal = kv::open(uri, clock.clone()).await.expect_err("no such store");
        assert!(
            matches!(refusal, Error::Terminal(Terminal::Address(_))),
            "{refusal}"
        );
        assert!(!refusal.to_string().contains("hidden"), "{refusal}");
    }
    for uri in [
        "memory://",
        "amqp://u:hidden@x",
        "redis://u:hidden@one,two",
        "redis://u:hidden@one/3",
        "redis://one?ca=/none",
    ] {
        let refusal = broker::open(uri, clock.clone())
            .await
            .expect_err("no such broker");
        assert!(
            matches!(refusal, Error::Terminal(Terminal::Address(_))),
            "{refusal}"
        );
        assert!(!refusal.to_string().contains("hidden"), "{refusal}");
    }
    for uri in ["redis://127.0.0.1:1", "rediss://:p%40ss@[::1]?timeout=1"] {
        assert!(
            broker::open(uri, clock.clone()).await.is_ok(),
            "nobody is asked yet"
        );
    }
    assert!(
        kv::open("etcd://127.0.0.1:1,[::1]:2", clock).await.is_ok(),
        "nobody is asked yet"
    );
}
