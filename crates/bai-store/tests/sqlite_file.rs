//! What only a database in a file can show: it survives, it is private, readers do not wait, and what is not ours is
//! refused.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use bai_model::ResourceSlot;
use bai_store::domain::NewDomain;
use bai_store::{Error, Store, StoreOptions};
use chrono::{DateTime, Utc};
use sqlx::Connection as _;
use sqlx::sqlite::SqliteConnection;
use tempfile::TempDir;
use tokio::task::JoinSet;

const NOW: DateTime<Utc> = DateTime::UNIX_EPOCH;

fn place() -> (String, TempDir) {
    let directory = tempfile::tempdir().expect("a directory");
    (
        format!("sqlite://{}/bai.db", directory.path().display()),
        directory,
    )
}

fn domain(name: &str) -> NewDomain {
    NewDomain {
        name: name.to_owned(),
        description: None,
        total_resource_slots: ResourceSlot::default(),
        allowed_vfolder_hosts: vec![],
    }
}

/// Runs statements on the file without the store.
async fn tamper(directory: &TempDir, script: &'static str) {
    let uri = format!("sqlite://{}/bai.db?mode=rwc", directory.path().display());
    let mut connection = SqliteConnection::connect(&uri).await.expect("a connection");
    sqlx::raw_sql(script)
        .execute(&mut connection)
        .await
        .expect("a script");
    connection.close().await.expect("a close");
}

async fn refusal(uri: &str) -> String {
    let error = Store::open(uri).await.expect_err("a refusal");
    assert!(!error.is_retryable(), "{error:?}");
    error.to_string()
}

#[tokio::test]
async fn what_is_committed_survives_and_the_rest_does_not() {
    let (uri, _directory) = place();
    let store = Store::open(&uri).await.expect("a database");
    let mut tx = store.begin().await.expect("a unit of work");
    tx.insert_domain(&domain("kept"), NOW).await.expect("a domain");
    tx.commit().await.expect("a commit");
    let mut tx = store.begin().await.expect("a unit of work");
    tx.insert_domain(&domain("lost"), NOW).await.expect("a domain");
    // As after a crash: nobody closes anything, and the unit of work is never ended.
    std::mem::forget(tx);
    std::mem::forget(store);
    let copy = tempfile::tempdir().expect("a directory");
    for name in ["bai.db", "bai.db-wal"] {
        std::fs::copy(_directory.path().join(name), copy.path().join(name)).expect("a copy");
    }
    let store = Store::open(&format!("sqlite://{}/bai.db", copy.path().display()))
        .await
        .expect("a database");
    assert!(store.reader().domain("kept").await.expect("a look-up").is_some());
    assert!(store.reader().domain("lost").await.expect("a look-up").is_none());
    drop(store);
}

/// SQLite itself refuses at once, and waits for nothing: the way in which the file is kept is to be changed.
#[tokio::test]
async fn a_file_that_another_process_is_making_is_waited_for() {
    let (uri, _directory) = place();
    let mut other = SqliteConnection::connect(&format!("{uri}?mode=rwc"))
        .await
        .expect("a connection");
    let making = other.begin_with("BEGIN IMMEDIATE").await.expect("a unit of work");
    let mut opening = Box::pin(Store::open(&uri));
    let early = tokio::time::timeout(Duration::from_millis(200), &mut opening).await;
    assert!(early.is_err(), "{early:?}");
    making.rollback().await.expect("an end");
    opening.await.expect("a database");
}

#[tokio::test]
async fn opening_again_and_several_times_at_once_changes_nothing() {
    let (uri, _directory) = place();
    // SQLite refuses some of so many at once, for a moment, without waiting.
    let openings: JoinSet<_> = (0..16)
        .map(|_| {
            let uri = uri.clone();
            async move { Store::open(&uri).await.expect("the same database") }
        })
        .collect();
    let [one, two, ..] = &openings.join_all().await[..] else {
        panic!("as many as were opened")
    };
    let mut tx = one.begin().await.expect("a unit of work");
    tx.insert_domain(&domain("shared"), NOW).await.expect("a domain");
    tx.commit().await.expect("a commit");
    assert!(two.reader().domain("shared").await.expect("a look-up").is_some());
    one.close().await;
    two.close().await;
    let store = Store::open(&uri).await.expect("a database");
    assert!(
        store
            .reader()
            .domain("shared")
            .await
            .expect("a look-up")
            .is_some()
    );
}

#[tokio::test]
async fn readers_do_not_wait_for_a_writer_nor_see_its_changes() {
    let (uri, _directory) = place();
    let store = Store::open(&uri).await.expect("a database");
    let mut tx = store.begin().await.expect("a unit of work");
    tx.insert_domain(&domain("pending"), NOW).await.expect("a domain");
    let reader = store.reader();
    let look_up = tokio::time::timeout(Duration::from_secs(5), reader.domain("pending"));
    assert!(
        look_up
            .await
            .expect("an answer at once")
            .expect("a look-up")
            .is_none()
    );
    tx.commit().await.expect("a commit");
    assert!(reader.domain("pending").await.expect("a look-up").is_some());
}

#[tokio::test]
async fn only_the_owner_can_read_the_file() {
    let (uri, directory) = place();
    let store = Store::open(&uri).await.expect("a database");
    for file in ["bai.db", "bai.db-wal"] {
        let mode = std::fs::metadata(directory.path().join(file))
            .expect("a file")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    store.close().await;
}

#[tokio::test]
async fn databases_that_are_not_ours_are_refused() {
    let (uri, directory) = place();
    tamper(&directory, "CREATE TABLE recipes (name TEXT)").await;
    assert!(refusal(&uri).await.contains("recipes"));

    let (uri, directory) = place();
    Store::open(&uri).await.expect("a database").close().await;
    tamper(
        &directory,
        "UPDATE alembic_version SET version_num = '22964745c12b'",
    )
    .await;
    assert!(
        refusal(&uri)
            .await
            .contains("upgrade an older database with the original manager")
    );

    let (uri, directory) = place();
    Store::open(&uri).await.expect("a database").close().await;
    tamper(
        &directory,
        "INSERT INTO bai_schema_version (version) VALUES (999)",
    )
    .await;
    assert!(refusal(&uri).await.contains("newer version"));
}

#[tokio::test]
async fn addresses_that_cannot_be_used_say_what_can() {
    let text = refusal("mysql://someone:hunter2@db.example.com/bai?password=hunter2").await;
    assert!(
        text.contains("db.example.com") && !text.contains("hunter2"),
        "{text}"
    );
    assert!(refusal("mysql://x").await.contains("sqlite:///absolute/path"));
    assert!(
        refusal("sqlite://relative/path")
            .await
            .contains("sqlite:///absolute/path")
    );
    assert!(
        refusal("sqlite:///no/such/directory/bai.db")
            .await
            .contains("cannot create the file")
    );
}

#[tokio::test]
async fn looking_changes_nothing() {
    let (uri, directory) = place();
    let options = StoreOptions {
        read_only: true,
        ..StoreOptions::default()
    };
    let missing = Store::open_unchanged(&uri, &options).await.expect_err("no file");
    assert!(missing.to_string().contains("no such file"), "{missing}");
    assert!(!directory.path().join("bai.db").exists());
    Store::open(&uri).await.expect("a database").close().await;
    let store = Store::open_unchanged(&uri, &options).await.expect("a database");
    assert!(store.reader().schema_report().await.expect("a report").is_head());
    store.begin().await.expect_err("read only");
    tamper(&directory, "UPDATE alembic_version SET version_num = 'ffff'").await;
    let report = store.reader().schema_report().await.expect("a report");
    assert!(!report.is_head() && report.revisions == ["ffff"], "{report:?}");
}

#[tokio::test]
async fn a_closed_database_is_not_worth_retrying() {
    let store = Store::open("sqlite::memory:").await.expect("a database");
    store.close().await;
    let error = store.begin().await.expect_err("closed");
    assert!(
        matches!(error, Error::Database(_)) && !error.is_retryable(),
        "{error:?}"
    );
}
