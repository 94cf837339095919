//! Taking over what an original manager has left, where none can be run: its database, in both lineages, and its keys in etcd
//! are dumps, and what it would find after us is compared with them.

use std::collections::BTreeMap;
use std::sync::Arc;

use bai::client::Client;
use bai_backplane::config::Config;
use bai_backplane::kv;
use bai_model::SecretKey;
use bai_testkit::ambient::WallClock;
use reqwest::Method;
use serde_json::json;

use super::untouched;
use crate::crash::says;
use crate::gateway::cluster::{Services, run};

const SCHEMA: &str = include_str!("../../../crates/bai-store/tests/original/schema.sql");
const ONE_SHOT: &str = "INSERT INTO public.alembic_version VALUES ('c401d78cc7b9')";
const MIGRATED: &str = include_str!("../../../crates/bai-store/tests/original/migrated.sql");
const ROWS: &str = include_str!("../../../crates/bai-store/tests/original/rows.sql");
const KEYS: &str = include_str!("../../dumps/etcd.txt");

/// Of the session that runs and of the one that has ended, of their agent, and how many sessions their owners have.
const SESSIONS: &str = "SELECT to_jsonb(k) - 'num_queries' FROM kernels k WHERE sess_id IN ('gsess1', 'usess1') ORDER BY id; \
                        SELECT to_jsonb(a) - 'status' - 'lost_at' FROM agents a WHERE id = 'i-agent-golden'; \
                        SELECT access_key, concurrency_used FROM keypairs ORDER BY 1";

fn keys() -> BTreeMap<String, String> {
    let pairs = KEYS.lines().filter_map(|line| line.split_once('\t'));
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_is_taken_over_from_its_dumps() {
    let services = tokio::task::block_in_place(|| Services::start("taking over a site from dumps"));
    let Some(services) = services else { return };
    let uri = format!("etcd://{}", services.etcd.address());
    let config = Config::new(kv::open(&uri, Arc::new(WallClock)).await.unwrap(), "site");
    for lineage in [ONE_SHOT, MIGRATED] {
        for (key, value) in keys() {
            config.put(&key, &value).await.unwrap();
        }
        take_over(&services, lineage).await;
        // The original finds what it left, but for who the manager is, which it says itself.
        for (key, value) in keys() {
            let expected = (!key.starts_with("nodes/manager")).then_some(value);
            assert_eq!(config.get(&key).await.unwrap(), expected, "{key}");
        }
    }
}

async fn take_over(services: &Services, lineage: &str) {
    let database = services.postgres.database(None);
    for sql in [SCHEMA, lineage, ROWS] {
        database.psql(sql);
    }
    let place = services.place(&database, "local-agent = true\ndata-dir = '{folder}/data'");
    let redis = services.redis.address();
    run(&place, &["etcd", "put", "config/redis/addr", &redis]);
    let (rows, sessions) = (untouched(|sql| database.psql(sql)), database.psql(SESSIONS));

    let daemon = tokio::task::block_in_place(|| place.start(&[]));
    let secret_key = SecretKey::new("secret".to_owned());
    let client = Client::new(&place.url(""), "AKIAIOSFODNN7EXAMPLE", secret_key).unwrap();
    let info = client.call(Method::GET, "/kernel/gsess1", None).await.unwrap();
    assert_eq!(info["lang"], "127.0.0.1:15000/lablup/python:3.6-debian", "{info}");
    // Its agent is not there any more, and what it ran is not given up for that.
    let refusal = says(&client, "gsess1", 1).await.unwrap().unwrap_err();
    assert!(
        refusal.starts_with("500 ") || refusal.starts_with("404 "),
        "{refusal}"
    );
    let theirs = client.call(Method::GET, "/kernel/usess1", None).await;
    assert!(theirs.unwrap_err().to_string().starts_with("404 "));
    let wanted = json!({
        "lang": "shell", "clientSessionToken": "ours", "config": { "resources": { "cpu": 1, "mem": "64m" } },
    });
    client
        .call(Method::POST, "/kernel/create", Some(&wanted))
        .await
        .unwrap();
    assert_eq!(says(&client, "ours", 2).await, Some(Ok("2\n".to_owned())));
    client.call(Method::DELETE, "/kernel/ours", None).await.unwrap();
    tokio::task::block_in_place(|| daemon.stop());

    assert_eq!(untouched(|sql| database.psql(sql)), rows);
    assert_eq!(database.psql(SESSIONS), sessions);
    let ours = "SELECT status, status_info FROM kernels WHERE sess_id = 'ours'";
    assert_eq!(database.psql(ours), "TERMINATED|user-requested");
    let counted = "SELECT num_queries FROM keypairs WHERE access_key = 'AKIAIOSFODNN7EXAMPLE'";
    assert_ne!(database.psql(counted), "0");
}
