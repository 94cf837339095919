//! A manager on PostgreSQL, etcd and Redis.

use std::fs;

use bai_testkit::services::postgres::Database;
use bai_testkit::services::{Etcd, Missing, Postgres, Redis};
use serde_json::{Value, json};

use super::{PATIENCE, Place};

/// The services of a site. Redis wants a password, which etcd knows.
pub(crate) struct Services {
    pub(crate) postgres: Postgres,
    pub(crate) etcd: Etcd,
    pub(crate) redis: Redis,
}

impl Services {
    /// `None` after saying why.
    #[expect(clippy::print_stdout, reason = "how a test says that it was skipped")]
    pub(crate) fn start(what: &str) -> Option<Self> {
        let start = || -> Result<Self, Missing> {
            Ok(Self {
                postgres: Postgres::start()?,
                etcd: Etcd::start()?,
                redis: Redis::start()?,
            })
        };
        match start() {
            Ok(services) => Some(services),
            Err(missing) => {
                println!("SKIPPED: {what}, because {missing}");
                None
            }
        }
    }

    /// A place whose configuration names them as 19.06 does; `bai` as in [`Place::new`].
    pub(crate) fn place(&self, database: &Database<'_>, bai: &str) -> Place {
        let place = Place::empty();
        let uri = database.uri();
        let (credentials, _) = uri.strip_prefix("postgres://").unwrap().split_once('@').unwrap();
        let (user, password) = credentials.split_once(':').unwrap();
        place.write(
            &format!(
                "[etcd]\nnamespace = 'site'\naddr = '{}'\n[db]\naddr = '127.0.0.1:{}'\nname = '{}'\nuser = '{user}'\n\
                 password = '{password}'\n",
                self.etcd.address(),
                self.postgres.port(),
                database.name()
            ),
            "",
            &bai.replace("{folder}", &place.folder.path().display().to_string()),
        );
        place
    }

    /// Sets a site up with [`fixture`] and a group for its user; gives what was loaded.
    pub(crate) fn set_up(&self, place: &Place) -> Value {
        run(place, &["schema", "oneshot"]);
        run(
            place,
            &["etcd", "put", "config/redis/addr", &self.redis.address()],
        );
        let mut rows = fixture();
        let group = "2de2b969-1d04-48a6-af16-0bc8adb3c831";
        rows["groups"] = json!([{
            "id": group, "name": "default", "is_active": true, "domain_name": "default", "total_resource_slots": {},
        }]);
        rows["association_groups_users"] =
            json!([{ "group_id": group, "user_id": rows["users"][0]["uuid"] }]);
        let file = place.path("fixture.json");
        fs::write(&file, rows.to_string()).unwrap();
        run(place, &["fixture", "populate", file.to_str().unwrap()]);
        rows
    }
}

pub(crate) fn run(place: &Place, words: &[&str]) -> String {
    let output = place.command(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The status of a log-in, its `Retry-After` and its body.
fn log_in(place: &Place) -> (u16, Option<String>, String) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let body = json!({
        "type": "keypair", "domain": "default", "username": "admin@example.com", "password": "sesame-open",
    });
    runtime.unwrap().block_on(async {
        let client = reqwest::Client::builder().timeout(PATIENCE).build().unwrap();
        let answer = client.post(place.url("/auth/authorize")).json(&body).send().await;
        let answer = answer.unwrap();
        let retry = answer.headers().get("retry-after");
        let retry = retry.map(|value| value.to_str().unwrap().to_owned());
        (answer.status().as_u16(), retry, answer.text().await.unwrap())
    })
}

/// A user who may log in.
fn fixture() -> Value {
    let user = "f38dea23-50fa-42a0-b5ae-338f5f4693f4";
    json!({
        "domains": [{ "name": "default", "is_active": true }],
        "users": [{
            "uuid": user, "username": "admin", "email": "admin@example.com", "password": "sesame-open",
            "need_password_change": false, "is_active": true, "domain_name": "default", "role": "superadmin",
        }],
        "keypair_resource_policies": [{
            "name": "default", "default_for_unspecified": "UNLIMITED", "total_resource_slots": {},
            "max_concurrent_sessions": 5, "max_containers_per_session": 1, "max_vfolder_count": 10,
            "max_vfolder_size": 0, "idle_timeout": 600, "allowed_vfolder_hosts": [],
        }],
        "keypairs": [{
            "user_id": "admin@example.com", "user": user, "access_key": "AKIATESTTESTTESTTEST",
            "secret_key": "test", "is_active": true, "is_admin": true, "resource_policy": "default",
            "rate_limit": 30_000, "concurrency_used": 0, "num_queries": 0,
        }],
    })
}

#[test]
fn a_site_is_set_up_served_and_served_again_after_each_service_was_away() {
    let Some(services) = Services::start("a manager on PostgreSQL, etcd and Redis") else {
        return;
    };
    let database = services.postgres.database(None);
    let place = services.place(&database, "");
    run(&place, &["schema", "oneshot"]);
    let shown = run(&place, &["schema", "show"]);
    assert_eq!(
        shown,
        "Current database revision: c401d78cc7b9\nThe head revision of available migrations: c401d78cc7b9\n"
    );
    let file = place.path("fixture.json");
    fs::write(&file, fixture().to_string()).unwrap();
    let loaded = run(&place, &["fixture", "populate", file.to_str().unwrap()]);
    assert_eq!(loaded, "inserted: 4, there already: 0\n");
    run(
        &place,
        &["etcd", "put", "config/redis/addr", &services.redis.address()],
    );

    let mut daemon = place.start(&[]);
    let (status, _, body) = log_in(&place);
    assert_eq!(status, 200, "{body}");
    // Agents find it.
    daemon.wait_for("the registration", |_| {
        place
            .command(&["etcd", "get", "nodes/manager"])
            .output()
            .unwrap()
            .status
            .success()
    });
    let id = run(&place, &["etcd", "get", "nodes/manager"]);
    assert!(id.starts_with("i-"), "{id}");
    assert_eq!(
        run(&place, &["etcd", "get", "nodes/manager/event_addr"]),
        format!("127.0.0.1:{}\n", place.event_port)
    );

    services.postgres.stop();
    let (status, retry_after, body) = log_in(&place);
    assert_eq!((status, retry_after.as_deref()), (503, Some("3")), "{body}");
    assert!(
        body.contains("service-unavailable") && !body.contains("postgres"),
        "{body}"
    );
    services.postgres.start_again().unwrap();
    daemon.wait_for("the database's return", |_| log_in(&place).0 == 200);

    services.etcd.kill();
    let log = daemon.log();
    services.etcd.start_again();
    daemon.wait_for("etcd's return", |_| {
        let get = place.command(&["etcd", "get", "nodes/manager"]).output().unwrap();
        get.status.success()
    });
    assert!(
        !log.contains("secret") && !daemon.log().contains("sesame"),
        "{}",
        daemon.log()
    );
    daemon.stop();
    let gone = place.command(&["etcd", "get", "nodes/manager"]).output().unwrap();
    assert_eq!(gone.status.code(), Some(1));
    assert_eq!(run(&place, &["etcd", "get", "manager/status"]), "running\n");
}

#[test]
fn two_managers_share_an_address() {
    let Some(services) = Services::start("two managers on one address") else {
        return;
    };
    let database = services.postgres.database(None);
    let place = services.place(&database, "");
    run(
        &place,
        &["etcd", "put", "config/redis/addr", &services.redis.address()],
    );
    let first = place.start(&[]);
    let mut second = place.spawn(&[]);
    second.wait_for("the second manager", |second| {
        second.log().contains("the API listens on")
    });
    first.stop();
    assert!(place.connects());
    second.stop();
    assert!(!place.connects());
}

#[test]
fn a_start_waits_for_services_and_says_for_which() {
    let Some(services) = Services::start("a start before its services") else {
        return;
    };
    let database = services.postgres.database(None);
    let place = services.place(&database, "");
    run(
        &place,
        &["etcd", "put", "config/redis/addr", &services.redis.address()],
    );
    services.postgres.stop();
    services.redis.kill();
    services.etcd.kill();
    let mut daemon = place.spawn(&[]);
    let waits = |what: &'static str| move |daemon: &super::Daemon| daemon.log().contains(what);
    daemon.wait_for(
        "waiting for etcd",
        waits("waiting for the configuration store etcd://127.0.0.1:"),
    );
    assert!(daemon.log().contains("etcd.addr"), "{}", daemon.log());
    services.etcd.start_again();
    daemon.wait_for(
        "waiting for PostgreSQL",
        waits("waiting for the database postgres://postgres:********@127.0.0.1:"),
    );
    assert!(daemon.log().contains("[db] in "), "{}", daemon.log());
    services.postgres.start_again().unwrap();
    daemon.wait_for(
        "waiting for Redis",
        waits("waiting for the broker redis://127.0.0.1:"),
    );
    assert!(daemon.log().contains("config/redis/addr"), "{}", daemon.log());
    services.redis.start_again();
    daemon.wait_for("the API", |_| place.connects());
    daemon.stop();
}

#[test]
fn a_service_that_never_comes_ends_the_start_with_the_reason() {
    let place = Place::empty();
    // Nobody listens on the port that the API does not have yet.
    let services = format!(
        "[etcd]\nnamespace = 'site'\naddr = '127.0.0.1:{0}'\n[db]\naddr = '127.0.0.1:{0}'\nname = 'backend'\n\
         user = 'postgres'\npassword = 'sesame'\n",
        Place::empty().port
    );
    for (bai, expected) in [
        (
            "start-timeout = 0.2",
            [
                "cannot use the configuration store etcd://127.0.0.1:",
                "etcd.addr",
            ],
        ),
        (
            "start-timeout = 0.2\nconfig-store = 'embedded://{folder}/config.db'",
            [
                "cannot use the database postgres://postgres:********@127.0.0.1:",
                "[db] in ",
            ],
        ),
    ] {
        let folder = place.folder.path().display().to_string();
        place.write(&services, "", &bai.replace("{folder}", &folder));
        let output = place.command(&["gateway"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let text = String::from_utf8(output.stderr).unwrap();
        for expected in expected {
            assert!(text.contains(expected), "{text}");
        }
        assert!(!text.contains("sesame"), "{text}");
    }
}

#[test]
fn a_signal_ends_a_start_that_waits() {
    let place = Place::empty();
    let services = format!(
        "[etcd]\nnamespace = 'site'\naddr = '127.0.0.1:{0}'\n[db]\naddr = '127.0.0.1:{0}'\nname = 'backend'\n\
         user = 'postgres'\npassword = 'sesame'\n",
        Place::empty().port
    );
    place.write(&services, "", "");
    let mut daemon = place.spawn(&[]);
    daemon.wait_for("waiting", |daemon| daemon.log().contains("waiting for"));
    assert!(!place.connects());
    daemon.stop();
}
