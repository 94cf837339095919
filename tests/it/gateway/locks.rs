//! A read waits for no row lock, and so takes none: what creates and ends sessions does not slow down who looks at them.

use std::fs;
use std::time::Duration;

use bai::client::Client;
use bai_model::SecretKey;
use bai_store::{Error, Store, StoreOptions};
use reqwest::Method;
use serde_json::json;

use super::cluster::{Services, fixture, run};

#[tokio::test(flavor = "multi_thread")]
async fn reads_wait_for_no_row_lock() {
    let Some(services) = Services::start("reads beside row locks") else {
        return;
    };
    let database = services.postgres.database(None);
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().display();
    let place = services.place(&database, &format!("data-dir = '{data}'\nlocal-agent = true"));
    run(&place, &["schema", "oneshot"]);
    let redis = services.redis.address();
    run(&place, &["etcd", "put", "config/redis/addr", &redis]);
    let file = folder.path().join("fixture.json");
    let mut rows = fixture();
    rows["groups"] = json!([{ "id": "2de2b969-1d04-48a6-af16-0bc8adb3c831", "name": "default", "domain_name": "default",
        "is_active": true }]);
    rows["association_groups_users"] = json!([{
        "user_id": rows["users"][0]["uuid"], "group_id": rows["groups"][0]["id"],
    }]);
    fs::write(&file, rows.to_string()).unwrap();
    run(&place, &["fixture", "populate", file.to_str().unwrap()]);

    let daemon = place.start(&[]);
    let key = SecretKey::new("test".to_owned());
    let client = Client::new(&place.url("/"), "AKIATESTTESTTESTTEST", key).unwrap();
    let session = json!({
        "lang": "shell", "clientSessionToken": "looked-at", "config": { "resources": { "cpu": 1, "mem": "64m" } },
    });
    let made = client.call(Method::POST, "/kernel/create", Some(&session)).await;
    made.unwrap_or_else(|error| panic!("{error:#}: {}", daemon.log()));
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
    for path in [
        "/auth/test?echo=x",
        "/kernel/looked-at",
        "/kernel/looked-at/logs",
        "/folders/_/allowed_types",
    ] {
        let answer = client.call(Method::GET, path, None).await;
        answer.unwrap_or_else(|error| panic!("{path}: {error:#}"));
    }
    drop(holder);
    client
        .call(Method::DELETE, "/kernel/looked-at", None)
        .await
        .unwrap();
    daemon.stop();
}
