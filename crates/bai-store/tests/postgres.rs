//! What only PostgreSQL can show: it goes away and comes back, refuses, is busy, and has other users.

use std::time::Duration;

use bai_model::{KernelStatus, ResourceSlot};
use bai_store::domain::NewDomain;
use bai_store::schema::Lineage;
use bai_store::usage::UsageQuery;
use bai_store::{Error, Store, StoreOptions};
use bai_testkit::services::Certificates;
use bai_testkit::services::postgres::{Database, Postgres};
use chrono::{DateTime, Utc};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

const NOW: DateTime<Utc> = DateTime::UNIX_EPOCH;
const SCHEMA: &str = include_str!("original/schema.sql");
const ROWS: &str = include_str!("original/rows.sql");
const MIGRATED: &str = include_str!("original/migrated.sql");

/// A database on the shared server, or nothing where there is no server.
macro_rules! database {
    ($what:literal) => {
        match Postgres::shared() {
            Ok(server) => server.database(None),
            Err(missing) => {
                println!("SKIPPED: {}, because {missing}", $what);
                return;
            }
        }
    };
}

fn domain(name: &str) -> NewDomain {
    NewDomain {
        name: name.to_owned(),
        description: None,
        total_resource_slots: ResourceSlot::default(),
        allowed_vfolder_hosts: vec![],
    }
}

async fn add_domain(store: &Store, name: &str) -> bai_store::Result<()> {
    let mut tx = store.begin().await?;
    tx.insert_domain(&domain(name), NOW).await?;
    tx.commit().await
}

async fn has_domain(store: &Store, name: &str) -> bai_store::Result<bool> {
    Ok(store.reader().domain(name).await?.is_some())
}

async fn open(database: &Database<'_>) -> Store {
    Store::open(&database.socket_uri()).await.expect("a database")
}

#[tokio::test(flavor = "multi_thread")]
async fn several_may_open_at_once() {
    let database = database!("opening at once");
    let uri = database.uri();
    let stores = tokio::join!(Store::open(&uri), Store::open(&uri), Store::open(&uri));
    let stores = [stores.0, stores.1, stores.2].map(|store| store.expect("a database"));
    add_domain(&stores[0], "shared").await.expect("a domain");
    for store in &stores {
        assert!(has_domain(store, "shared").await.expect("a look-up"));
    }
    // In the server's zone it would be another day.
    assert_eq!(
        database.psql("SET timezone = 'UTC'; SELECT created_at FROM domains"),
        "1970-01-01 00:00:00+00"
    );
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'bai' AND datname = current_database()";
    assert_ne!(database.psql(sessions), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_original_database_is_taken_as_it_is() {
    let database = database!("taking over a database");
    database.psql(SCHEMA);
    database.psql(MIGRATED);
    let looking = StoreOptions {
        read_only: true,
        ..StoreOptions::default()
    };
    let before = Store::open_unchanged(&database.uri(), &looking)
        .await
        .expect("a database");
    let report = before.reader().schema_report().await.expect("a report");
    assert!(report.is_head(), "{report:?}");
    assert_eq!((report.lineage, report.version), (Some(Lineage::Migrated), 1));
    assert_eq!(report.missing_indexes.len(), 14);
    let policies = "keypair_resource_policies.default_for_unspecified";
    assert!(
        report
            .enum_types
            .contains(&(policies.to_owned(), "default_for_unspecified".to_owned())),
        "{report:?}"
    );
    assert_eq!(report.enum_types.len(), 6);
    add_domain(&before, "new").await.expect_err("read only");

    let theirs = "SELECT string_agg(relname || relkind::text, ' ' ORDER BY relname) FROM pg_class \
                  WHERE relnamespace = 'public'::regnamespace AND relname NOT LIKE '%bai\\_%'";
    let (found, dump) = (
        database.psql(theirs),
        database.psql("SELECT * FROM alembic_version"),
    );
    let store = open(&database).await;
    let report = store.reader().schema_report().await.expect("a report");
    assert_eq!(
        (report.version, report.missing_indexes.len()),
        (report.latest_version, 0)
    );
    assert_eq!(database.psql(theirs), found, "only ours is new");
    assert_eq!(database.psql("SELECT * FROM alembic_version"), dump);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_a_crash_left_is_made_anew() {
    let database = database!("indexes after a crash");
    open(&database).await.close().await;
    database.psql(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'bai_ix_keypairs_user'::regclass; \
         DROP INDEX bai_ix_vfolders_user",
    );
    let store = open(&database).await;
    let report = store.reader().schema_report().await.expect("a report");
    assert!(report.missing_indexes.is_empty(), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_that_are_not_ours_are_refused() {
    let database = database!("refusing a database");
    let refusal = async || {
        let error = Store::open(&database.uri()).await.expect_err("a refusal");
        assert!(!error.is_retryable(), "{error:?}");
        error.to_string()
    };
    database.psql("CREATE TABLE recipes (name text)");
    assert!(refusal().await.contains("recipes"));
    database.psql("DROP TABLE recipes");
    open(&database).await.close().await;
    database.psql("UPDATE alembic_version SET version_num = '22964745c12b'");
    assert!(
        refusal()
            .await
            .contains("upgrade an older database with the original manager")
    );
    database.psql("UPDATE alembic_version SET version_num = 'c401d78cc7b9'; INSERT INTO bai_schema_version VALUES (999)");
    assert!(refusal().await.contains("newer version"));
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_name_the_database_and_the_setting() {
    let database = database!("refusals of PostgreSQL");
    let options = StoreOptions {
        setting: "[db] addr in manager.toml".to_owned(),
        ..StoreOptions::default()
    };
    let port = Postgres::shared().expect("a server").port();
    for (uri, expected) in [
        (
            database.uri().replace("not-a-secret", "hunter2"),
            "check the user and the password",
        ),
        (
            database.uri().replace(database.name(), "nowhere"),
            "create it, or correct the name",
        ),
        // The server of the tests has no certificate.
        (format!("{}?sslmode=require", database.uri()), "check sslmode"),
    ] {
        let error = Store::open_with(&uri, &options).await.expect_err("a refusal");
        assert!(matches!(error, Error::Address { .. }), "{error:?}");
        let text = error.to_string();
        for part in [
            expected,
            &format!("127.0.0.1:{port}/"),
            "[db] addr in manager.toml",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(
            !text.contains("hunter2") && !text.contains("not-a-secret"),
            "{text}"
        );
    }
    // Nobody listens there: refused at once, and worth trying again.
    let error = Store::open_with("postgres://user:hunter2@127.0.0.1:1/bai", &options)
        .await
        .expect_err("nobody");
    let text = error.to_string();
    assert!(
        error.is_retryable() && text.contains("127.0.0.1:1/bai ([db] addr in manager.toml)"),
        "{text}"
    );
    assert!(!text.contains("hunter2"), "{text}");
    let error = Store::open("postgres://user:hunter2@host:port/bai")
        .await
        .expect_err("no port");
    assert!(!error.to_string().contains("hunter2"), "{error}");
}

/// A server of its own that stops and starts: what was open fails as retryable, then everything fails at once, then it
/// works again, without anybody doing anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_database_is_used_again() {
    let server = match Postgres::start() {
        Ok(server) => server,
        Err(missing) => {
            println!("SKIPPED: a restart of PostgreSQL, because {missing}");
            return;
        }
    };
    let database = server.database(None);
    let store = Store::open(&database.uri()).await.expect("a database");
    add_domain(&store, "kept").await.expect("a domain");
    // Restarted behind our back: every idle connection is stale, and no reader or writer notices.
    server.stop();
    server.start_again().expect("a server");
    assert!(
        has_domain(&store, "kept")
            .await
            .expect("a look-up after a restart")
    );
    server.stop();
    server.start_again().expect("a server");
    add_domain(&store, "after")
        .await
        .expect("a change after a restart");

    let mut open = store.begin().await.expect("a unit of work");
    open.insert_domain(&domain("lost"), NOW).await.expect("a domain");
    server.stop();
    let error = open.commit().await.expect_err("a broken connection");
    assert!(error.is_retryable(), "{error:?}");
    let port = server.port();
    for _ in 0..200 {
        let error = has_domain(&store, "kept").await.expect_err("no server");
        assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
        assert!(
            error.to_string().contains(&format!("127.0.0.1:{port}")),
            "{error}"
        );
        let error = store.begin().await.expect_err("no server");
        assert!(error.is_retryable(), "{error:?}");
    }
    server.start_again().expect("a server");
    let back = async {
        while has_domain(&store, "kept").await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), back)
        .await
        .expect("the database is used again");
    assert!(!has_domain(&store, "lost").await.expect("a look-up"));
    add_domain(&store, "back").await.expect("a domain");
}

/// Another password than ours, from some moment on, and ours again.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_changes_is_told_and_made_up_for() {
    let database = database!("a password that changes");
    database.psql("CREATE ROLE keeper LOGIN SUPERUSER PASSWORD 'hunter2'");
    let options = StoreOptions {
        setting: "[db] in manager.toml".to_owned(),
        ..StoreOptions::default()
    };
    let uri = database
        .uri()
        .replace("postgres:not-a-secret@", "keeper:hunter2@");
    let store = Store::open_with(&uri, &options).await.expect("a database");
    add_domain(&store, "kept").await.expect("a domain");
    database.psql(
        "ALTER ROLE keeper PASSWORD 'another'; \
         SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'keeper'",
    );
    for _ in 0..3 {
        let error = has_domain(&store, "kept").await.expect_err("a refusal");
        let text = error.to_string();
        assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
        for part in ["check the user and the password", "[db] in manager.toml"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("hunter2"), "{text}");
    }
    database.psql("ALTER ROLE keeper PASSWORD 'hunter2'");
    assert!(has_domain(&store, "kept").await.expect("a look-up"));
    store.close().await;
    database.psql("REASSIGN OWNED BY keeper TO postgres; DROP OWNED BY keeper; DROP ROLE keeper");
}

/// Changes are refused with the reason, reads go on, what was acknowledged is there, and room is all that it takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_and_made_up_for() {
    let server = match Postgres::start_on_disk_of(128 << 20) {
        Ok(server) => server,
        Err(missing) => {
            println!("SKIPPED: a full disk of PostgreSQL, because {missing}");
            return;
        }
    };
    let store = Store::open(&server.uri("postgres")).await.expect("a database");
    add_domain(&store, "before").await.expect("a domain");
    server.fill_disk();
    let description = "x".repeat(500);
    let mut acknowledged = vec!["before".to_owned()];
    let refusal = loop {
        let name = format!("domain-{}", acknowledged.len());
        let domain = NewDomain {
            description: Some(description.clone()),
            ..domain(&name)
        };
        let mut tx = store.begin().await.expect("a unit of work");
        let mut done = tx.insert_domain(&domain, NOW).await;
        if done.is_ok() {
            done = tx.commit().await;
        }
        match done {
            Ok(()) => acknowledged.push(name),
            Err(error) => break error,
        }
        assert!(acknowledged.len() < 10_000, "the disk is not full");
    };
    assert!(matches!(refusal, Error::Unavailable(_)), "{refusal:?}");
    let text = refusal.to_string();
    assert!(
        text.contains("No space left on device") && text.contains("the database address"),
        "{text}"
    );
    for name in &acknowledged {
        assert!(has_domain(&store, name).await.expect("reads go on"), "{name}");
    }
    server.make_room();
    add_domain(&store, "after").await.expect("a domain");
    let count = server.psql("postgres", "SELECT count(*) FROM domains");
    assert_eq!(count.expect("a count"), (acknowledged.len() + 1).to_string());
}

/// The server's certificate is wanted, and believed when its authority is known.
#[tokio::test(flavor = "multi_thread")]
async fn tls_is_spoken_with_a_known_authority_only() {
    let (certificates, strangers) = (Certificates::make(), Certificates::make());
    let server = match Postgres::start_with_tls(&certificates) {
        Ok(server) => server,
        Err(missing) => {
            println!("SKIPPED: TLS to PostgreSQL, because {missing}");
            return;
        }
    };
    let uri = |mode: &str, authority: &Certificates| {
        let authority = authority.authority();
        format!(
            "{}?sslmode={mode}&sslrootcert={}",
            server.uri("postgres"),
            authority.display()
        )
    };
    let encrypted = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
                     WHERE ssl AND application_name = 'bai'";
    for mode in ["verify-ca", "verify-full"] {
        let store = Store::open(&uri(mode, &certificates)).await.expect("a database");
        add_domain(&store, mode).await.expect("a domain");
        assert_ne!(server.psql("postgres", encrypted).expect("a count"), "0");
        store.close().await;
        let error = Store::open(&uri(mode, &strangers)).await.expect_err("a stranger");
        let text = error.to_string();
        assert!(
            !error.is_retryable() && text.contains("check sslmode and sslrootcert"),
            "{text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_pool_says_so() {
    let database = database!("a busy pool");
    let options = StoreOptions {
        connections: 2,
        connect_deadline: Duration::from_secs(1),
        ..StoreOptions::default()
    };
    let store = Store::open_with(&database.uri(), &options)
        .await
        .expect("a database");
    let held = (
        store.begin().await.expect("a unit of work"),
        store.begin().await.expect("a unit of work"),
    );
    let error = store.reader().domain("any").await.expect_err("no connection");
    assert!(
        error.is_retryable() && error.to_string().contains("all 2 connections"),
        "{error}"
    );
    drop(held);
    assert!(
        !has_domain(&store, "any")
            .await
            .expect("a connection is free again")
    );
}

/// Somebody else's lock, a statement that takes too long, a deadlock: each ends, as something to try again.
#[tokio::test(flavor = "multi_thread")]
async fn waiting_has_an_end() {
    let database = database!("time-outs of PostgreSQL");
    let options = StoreOptions {
        lock_timeout: Duration::from_millis(100),
        statement_timeout: Duration::from_secs(2),
        ..StoreOptions::default()
    };
    let store = Store::open_with(&database.uri(), &options)
        .await
        .expect("a database");
    let mut first = store.begin().await.expect("a unit of work");
    first.lock_placement().await.expect("a lock");
    let mut second = store.begin().await.expect("a unit of work");
    let error = second.lock_placement().await.expect_err("locked");
    assert!(
        matches!(error, Error::Contention(_)) && error.is_retryable(),
        "{error:?}"
    );
    drop(second);
    // A unit of work that does nothing is given up by the server.
    let mut third = store.begin().await.expect("a unit of work");
    let patience = async {
        loop {
            if third.lock_placement().await.is_ok() {
                break;
            }
            third = store.begin().await.expect("a unit of work");
        }
    };
    tokio::time::timeout(Duration::from_secs(30), patience)
        .await
        .expect("the lock is free again");
    let error = first
        .insert_domain(&domain("late"), NOW)
        .await
        .expect_err("given up");
    assert!(error.is_retryable(), "{error:?}");
}

/// Whoever goes away in the middle leaves no half-read connection and no transaction behind.
#[tokio::test(flavor = "multi_thread")]
async fn callers_may_go_away() {
    let database = database!("cancelled callers");
    let options = StoreOptions {
        connections: 1,
        ..StoreOptions::default()
    };
    let store = Store::open_with(&database.uri(), &options)
        .await
        .expect("a database");
    for round in 0..50u64 {
        let reader = store.reader();
        let look_up = reader.domain("any");
        let _ = tokio::time::timeout(Duration::from_micros(round * 20), look_up).await;
        let mut tx = store.begin().await.expect("a unit of work");
        let _ = tokio::time::timeout(
            Duration::from_micros(round * 20),
            tx.insert_domain(&domain("gone"), NOW),
        )
        .await;
        drop(tx);
        assert!(
            !has_domain(&store, "gone").await.expect("a look-up"),
            "round {round}"
        );
    }
}

/// Rows that the original wrote are what they were to it.
#[tokio::test(flavor = "multi_thread")]
async fn rows_of_the_original_are_read() {
    let database = database!("rows of the original");
    database.psql(SCHEMA);
    database.psql("INSERT INTO public.alembic_version VALUES ('c401d78cc7b9')");
    database.psql(ROWS);
    let reader = open(&database).await.reader();
    let row = reader
        .session_by_name(&"AKIAIOSFODNN7EXAMPLE".into(), "gsess1")
        .await
        .expect("a look-up")
        .expect("a session");
    assert_eq!(row.status, Some(KernelStatus::Running));
    assert_eq!(
        (row.repl_in_port, row.kernel_host.as_deref()),
        (31300, Some("127.0.0.1"))
    );
    assert_eq!(row.created_at, "2026-11-23T16:57:03.6464Z".parse().ok());
    let ports = row.service_ports.expect("ports");
    assert_eq!(ports[1]["name"], "jupyter");
    assert!(row.environ.is_empty() && row.last_stat.is_none());
    assert_eq!(
        row.occupied_slots.to_json(),
        json!({"cpu": "1", "mem": "268435456"})
    );
    assert_eq!(reader.check_accounting().await.expect("a check"), []);
    assert_eq!(reader.dirty_slots().await.expect("a check"), []);
    assert_eq!(reader.orphan_kernels().await.expect("a check"), []);
    let query = UsageQuery {
        from: "2026-11-01T00:00:00Z".parse().expect("a time"),
        until: "2026-12-01T00:00:00Z".parse().expect("a time"),
        groups: vec![],
    };
    let page = reader.usage_page(&query, None, 10).await.expect("a page");
    let [ended] = &page[..] else { panic!("{page:?}") };
    assert_eq!(ended.sess_id.as_deref(), Some("usess1"));
    assert_eq!(
        ended.last_stat.as_ref().expect("statistics")["cpu_used"]["current"],
        "151.864"
    );
}

/// A user without rights is told what rights are needed.
#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_rights_is_told() {
    let database = database!("a user without rights");
    database.psql("DROP ROLE IF EXISTS weak; CREATE ROLE weak LOGIN PASSWORD 'weak'");
    let uri = database.uri().replace("postgres:not-a-secret@", "weak:weak@");
    let error = Store::open(&uri).await.expect_err("no rights");
    assert!(matches!(error, Error::Schema(_)), "{error:?}");
    assert!(error.to_string().contains("must own the database"), "{error}");
}

/// What the original or a hand may have stored is read; what cannot be read fails nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn odd_rows_are_read() {
    let database = database!("odd rows");
    let store = open(&database).await;
    database.psql(
        "INSERT INTO domains (name, is_active, created_at, total_resource_slots, allowed_vfolder_hosts) VALUES \
         ('odd', NULL, NULL, NULL, ARRAY['{', NULL, '}']), \
         ('dirty', true, now(), '{\"mem\": \"8g\", \"cpu\": 1.1, \"x\": [], \"big\": 1e400}', '{}')",
    );
    let reader = store.reader();
    let odd = reader.domain("odd").await.expect("a look-up").expect("a domain");
    assert_eq!(odd.allowed_vfolder_hosts, ["{", "}"]);
    assert_eq!((odd.is_active, odd.created_at), (None, None));
    assert!(odd.total_resource_slots.is_empty());
    let dirty = reader
        .domain("dirty")
        .await
        .expect("a look-up")
        .expect("a domain");
    assert!(dirty.created_at.is_some());
    assert_eq!(reader.dirty_slots().await.expect("a check").len(), 2);
}

/// A way to the server that can be blocked: what is sent then is neither delivered nor refused.
async fn blockable(port: u16) -> (u16, tokio::sync::watch::Sender<bool>) {
    let (block, blocked) = tokio::sync::watch::channel(false);
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a listener");
    let own_port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(("127.0.0.1", port)).await.expect("the server");
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::spawn(pass_on(from_client, to_server, blocked.clone()));
            tokio::spawn(pass_on(from_server, to_client, blocked.clone()));
        }
    });
    (own_port, block)
}

async fn pass_on(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut blocked: tokio::sync::watch::Receiver<bool>,
) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if blocked.wait_for(|blocked| !blocked).await.is_err()
            || to.write_all(&buffer[..length]).await.is_err()
        {
            return;
        }
    }
}

/// A network that swallows everything ends in the same error as a server that is gone, and in the same recovery.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_database_is_not_waited_for() {
    let database = database!("a network that swallows");
    let (port, block) = blockable(Postgres::shared().expect("a server").port()).await;
    let options = StoreOptions {
        connect_deadline: Duration::from_millis(300),
        statement_timeout: Duration::from_millis(300),
        ..StoreOptions::default()
    };
    let server = Postgres::shared().expect("a server").port();
    let uri = database
        .uri()
        .replace(&format!(":{server}/"), &format!(":{port}/"));
    let store = Store::open_with(&uri, &options).await.expect("a database");
    add_domain(&store, "kept").await.expect("a domain");
    block.send_replace(true);
    for _ in 0..100 {
        let error = has_domain(&store, "kept").await.expect_err("no answer");
        assert!(matches!(error, Error::Unavailable(_)), "{error:?}");
        assert!(
            error.to_string().contains(&format!("127.0.0.1:{port}")),
            "{error}"
        );
    }
    block.send_replace(false);
    let back = async {
        while has_domain(&store, "kept").await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), back)
        .await
        .expect("the database is used again");
}
