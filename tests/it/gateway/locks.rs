//! A read takes no row lock and waits for none: who looks at sessions does not slow down what creates and ends them, nor is
//! slowed down by it.

use std::time::Duration;

use bai::client::Client;
use bai_gateway::route::{Endpoint, ROUTES};
use bai_model::SecretKey;
use bai_store::{Error, Store, StoreOptions};
use reqwest::Method;
use serde_json::{Value, json};

use super::cluster::Services;

/// Every request that only reads, with `looked-at` for the session. A new `GET` is in it by itself.
fn reads() -> Vec<(Method, String, Option<Value>)> {
    let is_stream = |endpoint| {
        matches!(
            endpoint,
            Endpoint::StreamExecute | Endpoint::StreamPty | Endpoint::StreamProxy | Endpoint::StreamEvents
        )
    };
    let gets = ROUTES
        .iter()
        .filter(|route| route.method == "GET" && !is_stream(route.endpoint));
    let mut reads: Vec<_> = gets
        .map(|route| {
            let parameters = match route.endpoint {
                Endpoint::SessionFiles => Some(json!({ "path": "." })),
                Endpoint::SessionDownload => Some(json!({ "files": ["a-file"] })),
                Endpoint::ResourceUsagePerMonth => Some(json!({ "group_ids": [], "month": "202001" })),
                Endpoint::ResourceUsagePerPeriod => Some(json!({
                    "group_id": "2de2b969-1d04-48a6-af16-0bc8adb3c831", "start_date": "20200101", "end_date": "20200102",
                })),
                Endpoint::AuthTest => Some(json!({ "echo": "x" })),
                _ => None,
            };
            let path = route.path.replace("{session}", "looked-at");
            (Method::GET, path, parameters)
        })
        .collect();
    let preset = json!({ "group": "default" });
    reads.push((Method::POST, "/resource/check-presets".to_owned(), Some(preset)));
    let key = json!({ "key": "manager/status", "prefix": false });
    reads.push((Method::POST, "/config/get".to_owned(), Some(key)));
    reads
}

async fn assert_all_are_answered(client: &Client, log: impl Fn() -> String) {
    for (method, path, body) in reads() {
        let answer = client.call(method, &path, body.as_ref()).await;
        answer.unwrap_or_else(|error| panic!("{path}: {error:#}: {}", log()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_take_no_row_lock_and_wait_for_none() {
    let Some(services) = Services::start("reads beside row locks") else {
        return;
    };
    let database = services.postgres.database(None);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().display();
    let place = services.place(&database, &format!("data-dir = '{data}'\nlocal-agent = true"));
    services.set_up(&place);

    let daemon = place.start(&[]);
    let key = SecretKey::new("test".to_owned());
    let client = Client::new(&place.url("/"), "AKIATESTTESTTESTTEST", key).unwrap();
    let session = json!({
        "lang": "shell", "clientSessionToken": "looked-at", "config": { "resources": { "cpu": 1, "mem": "64m" } },
    });
    let mut another = session.clone();
    another["clientSessionToken"] = json!("another");
    let made = client.call(Method::POST, "/kernel/create", Some(&session)).await;
    made.unwrap_or_else(|error| panic!("{error:#}: {}", daemon.log()));
    let file = vec![("a-file".to_owned(), b"content".to_vec())];
    client.upload("/kernel/looked-at/upload", file).await.unwrap();
    // Everything is read again, credentials too.
    daemon.stop();
    let daemon = place.start(&[]);

    let store = Store::open_unchanged(&database.uri(), &StoreOptions::default())
        .await
        .unwrap();
    let mut holder = store.begin().await.unwrap();
    // Holds every keypair and every agent; the names of its statements are of no concern here.
    holder.recalculate_usage().await.unwrap();
    let impatient = StoreOptions {
        lock_timeout: Duration::from_millis(50),
        ..StoreOptions::default()
    };
    let other = Store::open_unchanged(&database.uri(), &impatient).await.unwrap();
    let refused = other.begin().await.unwrap().recalculate_usage().await;
    assert!(
        matches!(refused, Err(Error::Contention(_))),
        "the locks are held: {refused:?}"
    );
    assert_all_are_answered(&client, || daemon.log()).await;
    drop(holder);
    store.close().await;
    other.close().await;
    daemon.stop();

    // From here on PostgreSQL refuses every statement that locks a row, even the weakest.
    let daemon = place.start(&[]);
    let psql = |database: &str, sql: &str| services.postgres.psql(database, sql);
    let set = |action: &str| {
        let name = database.name();
        // One after the other, so that connections that are made again find what is set.
        for sql in [
            format!("ALTER DATABASE \"{name}\" {action}"),
            format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"),
        ] {
            psql("postgres", &sql).unwrap();
        }
    };
    set("SET default_transaction_read_only = on");
    for strength in ["KEY SHARE", "SHARE", "NO KEY UPDATE"] {
        let refused = psql(database.name(), &format!("SELECT * FROM keypairs FOR {strength}"));
        let refused = format!("{:#}", refused.unwrap_err());
        assert!(refused.contains("read-only transaction"), "{refused}");
    }
    let made = client.call(Method::POST, "/kernel/create", Some(&another)).await;
    assert!(made.is_err(), "what writes is refused: {made:?}");
    assert_all_are_answered(&client, || daemon.log()).await;
    set("RESET default_transaction_read_only");
    let ended = client.call(Method::DELETE, "/kernel/looked-at", None).await;
    ended.unwrap_or_else(|error| panic!("{error:#}: {}", daemon.log()));
    daemon.stop();
}
