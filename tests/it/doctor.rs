//! `bai doctor` on a site of 19.06, as operators run it: rows that the original wrote and that were damaged afterwards,
//! keys in etcd, heartbeats in Redis.

use std::process::Command;
use std::sync::Arc;

use bai_backplane::config::Config;
use bai_backplane::kv;
use bai_testkit::ambient::ManualClock;
use bai_testkit::services::postgres::Database;
use bai_testkit::services::{Etcd, Missing, Postgres, Redis};
use serde_json::{Value, json};

use crate::server::bai;

const SCHEMA: &str = include_str!("../../crates/bai-store/tests/original/schema.sql");
const ROWS: &str = include_str!("../../crates/bai-store/tests/original/rows.sql");
const KEYPAIR: &str = "AKIAIOSFODNN7EXAMPLE";

/// A database with rows of the original, and a namespace of its own.
struct Site<'a> {
    database: Database<'a>,
    etcd: Etcd,
    redis: Redis,
}

impl Site<'_> {
    async fn start() -> Result<Self, Missing> {
        let site = Self {
            database: Postgres::shared()?.database(None),
            etcd: Etcd::start()?,
            redis: Redis::start()?,
        };
        site.database.psql(SCHEMA);
        let head = "INSERT INTO public.alembic_version VALUES ('c401d78cc7b9')";
        site.database.psql(head);
        site.database.psql(ROWS);
        for (key, value) in [
            ("config/redis/addr", site.redis.address().as_str()),
            ("manager/status", "running"),
            ("volumes/_mount", "/mnt"),
            ("volumes/_default_host", "local"),
        ] {
            site.put(key, value).await;
        }
        // The agent of the rows, a moment ago.
        let now = format!("HSET last_seen i-agent-golden {}", seconds());
        site.redis.commands(&["SELECT 2", &now]);
        Ok(site)
    }

    async fn put(&self, key: &str, value: &str) {
        let clock = Arc::new(ManualClock::at(chrono::DateTime::UNIX_EPOCH));
        let kv = kv::open(&format!("etcd://{}", self.etcd.address()), clock).await;
        let config = Config::new(kv.unwrap(), "site");
        config.put(key, value).await.unwrap();
    }

    /// What the doctor says with these arguments, and its exit code.
    fn doctor_as(&self, database: &str, arguments: &[&str]) -> (Value, i32, String) {
        let mut doctor = Command::new(bai());
        doctor.args(["doctor", "--json", "--namespace", "site", "--database", database]);
        doctor.args(["--etcd", &format!("etcd://{}", self.etcd.address())]);
        let output = doctor.args(arguments).output().unwrap();
        let report = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (report, output.status.code().unwrap(), said)
    }

    fn doctor(&self, arguments: &[&str]) -> (Value, i32) {
        let (report, code, said) = self.doctor_as(&self.database.uri(), arguments);
        assert!(report.is_object(), "{said}");
        (report, code)
    }

    /// Everything that a doctor could have changed.
    fn rows(&self) -> String {
        self.database.psql(
            "SELECT access_key, concurrency_used FROM keypairs ORDER BY 1; SELECT id, occupied_slots FROM agents; \
             SELECT name, total_resource_slots FROM keypair_resource_policies; SELECT id, occupied_slots FROM kernels \
             ORDER BY 1; SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1",
        )
    }
}

fn seconds() -> u64 {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

/// Severity, check and subject of the findings that are no notes.
fn wrong(report: &Value) -> Vec<String> {
    let findings = report["findings"].as_array().unwrap().iter();
    let found = findings
        .filter(|finding| finding["severity"] != "note")
        .map(|finding| {
            let text = |name: &str| finding[name].as_str().unwrap().to_owned();
            format!("{} {}: {}", text("severity"), text("check"), text("subject"))
        });
    found.collect()
}

macro_rules! site {
    ($what:literal) => {
        match Site::start().await {
            Ok(site) => site,
            Err(missing) => return println!("SKIPPED: {}, because {missing}", $what),
        }
    };
}

#[tokio::test(flavor = "multi_thread")]
async fn a_site_of_the_original_is_in_order() {
    let site = site!("examining a site of the original");
    let before = site.rows();
    let (report, code) = site.doctor(&[]);
    assert_eq!((wrong(&report), code), (vec![], 0), "{report:#}");
    assert_eq!(report["schema"]["lineage"], "oneshot");
    assert_eq!(report["schema"]["additions"][0], 1, "19.06 alone");
    assert_eq!(report["changes"], Value::Null);
    assert_eq!(site.rows(), before, "looking changes nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_found_and_repaired() {
    let site = site!("repairing a site of the original");
    site.database.psql(&format!(
        "UPDATE keypairs SET concurrency_used = 7 WHERE access_key = '{KEYPAIR}'; \
         UPDATE agents SET occupied_slots = '{{\"cpu\": \"3\"}}'; \
         UPDATE keypair_resource_policies SET total_resource_slots = '{{\"cpu\": 4, \"mem\": \"1g\"}}'; \
         UPDATE domains SET total_resource_slots = '{{\"cpu\": \"many\"}}'; \
         UPDATE kernels SET status = NULL WHERE sess_id = 'usess1'"
    ));
    for (key, value) in [
        ("config/resource_slots/tpu.device", "pieces"),
        ("images/_aliases/py", "docker://python"),
        ("images/_aliases/py:3", "python:3.6"),
        ("images/index.docker.io/lablup%2Fpython/3.6-18.04", "sha256:0"),
        ("config/docker/registry/hub/username", "somebody"),
    ] {
        site.put(key, value).await;
    }
    let before = site.rows();
    let damage = [
        "error amounts: domains.total_resource_slots of default",
        "warning amounts: keypair_resource_policies.total_resource_slots of default",
        "warning accounting: keypairs.concurrency_used of AKIAIOSFODNN7EXAMPLE",
        "warning accounting: agents.occupied_slots of i-agent-golden",
        "error orphans: kernels 7b364ee7-9af6-452d-80cd-734d462759ae (usess1)",
        "error slots: config/resource_slots/tpu.device",
        "error registries: config/docker/registry/hub",
        "error aliases: images/_aliases/py",
        "error images: images/index.docker.io/lablup%2Fpython/3.6-18.04",
    ];
    let (report, code) = site.doctor(&[]);
    assert_eq!((wrong(&report), code), (damage.map(str::to_owned).into(), 1));
    let (tried, _) = site.doctor(&["--repair", "--dry-run"]);
    assert_eq!(tried["changes"].as_array().unwrap().len(), 3, "{tried:#}");
    assert_eq!(wrong(&tried), wrong(&report));
    assert_eq!(site.rows(), before, "a dry run changes nothing");

    let (repaired, code) = site.doctor(&["--repair"]);
    assert_eq!(repaired["changes"], tried["changes"]);
    let left: Vec<&str> = damage
        .into_iter()
        .filter(|line| line.starts_with("error"))
        .collect();
    assert_eq!(
        (wrong(&repaired), code),
        (left.into_iter().map(str::to_owned).collect(), 1)
    );
    let policy = site
        .database
        .psql("SELECT total_resource_slots FROM keypair_resource_policies");
    assert_eq!(
        serde_json::from_str::<Value>(&policy).unwrap(),
        json!({ "cpu": "4", "mem": "1073741824" })
    );
    let counters = site
        .database
        .psql("SELECT concurrency_used FROM keypairs ORDER BY access_key");
    assert_eq!(counters, "1\n0");
    let (again, _) = site.doctor(&["--repair"]);
    assert_eq!(again["changes"], json!([]), "there is nothing left to repair");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_looked_at_is_named() {
    let site = site!("examining a site with services away");
    site.redis
        .commands(&["SELECT 2", "HSET last_seen i-agent-golden 1000"]);
    let (report, code) = site.doctor(&[]);
    assert_eq!(
        (wrong(&report), code),
        (vec!["warning heartbeats: i-agent-golden".to_owned()], 1)
    );

    site.redis.kill();
    let (report, code) = site.doctor(&[]);
    let missed = report["unchecked"].to_string();
    assert!(code == 2 && missed.contains(&site.redis.address()), "{missed}");
    assert!(report["schema"].is_object(), "the database was looked at");

    let nowhere = "postgres://postgres:not-a-secret@127.0.0.1:1/nothing";
    let (report, code, _) = site.doctor_as(nowhere, &["--repair"]);
    let missed = report["unchecked"].to_string();
    assert!(
        code == 2 && missed.contains("127.0.0.1:1") && !missed.contains("not-a-secret"),
        "{missed}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_with_few_rights_and_a_foreign_schema_are_told() {
    let site = site!("examining a database with few rights");
    let name = site.database.name();
    let guest = format!("guest_of_{name}");
    site.database.psql(&format!(
        "CREATE ROLE {guest} LOGIN PASSWORD 'guest'; GRANT CONNECT ON DATABASE {name} TO {guest}; \
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {guest}; \
         REVOKE DELETE ON vfolders FROM {guest}"
    ));
    let as_guest = site
        .database
        .uri()
        .replace("postgres:not-a-secret@", &format!("{guest}:guest@"));
    let (report, code, said) = site.doctor_as(&as_guest, &[]);
    let found = [
        "error rights: schema",
        "warning rights: tables",
        "error rights: vfolders",
    ];
    assert_eq!(
        (wrong(&report), code),
        (found.map(str::to_owned).into(), 1),
        "{said}"
    );

    site.database
        .psql("UPDATE alembic_version SET version_num = '3cf19d906e71'");
    let before = site.rows();
    let (report, code) = site.doctor(&["--repair"]);
    assert_eq!(
        (wrong(&report), code),
        (vec!["error schema: alembic_version".to_owned()], 2)
    );
    assert!(
        report["unchecked"][0]
            .as_str()
            .unwrap()
            .starts_with("nothing was repaired"),
        "{report:#}"
    );
    assert_eq!(site.rows(), before);
    site.database
        .psql(&format!("DROP OWNED BY {guest}; DROP ROLE {guest}"));
}
