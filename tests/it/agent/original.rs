//! The manager of 19.06 with an agent of ours: the agent's side of the list in `agent-protocol.md` 9.

use std::time::Duration;

use bai::client::Client;
use bai_model::SecretKey;
use bai_testkit::cast::{self, Role};
use bai_testkit::services::Site;
use reqwest::Method;
use serde_json::{Value, json};

use super::{Place, Running};

const ID: &str = "i-ours";
const SESSION: &str = "by-the-original";

struct Caller<'a>(&'a Site);

impl Caller<'_> {
    fn client(&self, role: Role) -> Client {
        let (access_key, secret_key) = role.keypair().unwrap();
        Client::new(
            &self.0.endpoint(),
            access_key,
            SecretKey::new(secret_key.to_owned()),
        )
        .unwrap()
    }

    async fn call(&self, role: Role, method: Method, path: &str, body: Value) -> anyhow::Result<Value> {
        let body = (!body.is_null()).then_some(body);
        self.client(role).call(method, path, body.as_ref()).await
    }

    async fn of_user(&self, method: Method, path: &str, body: Value) -> Value {
        let answer = self.call(Role::User, method, path, body).await;
        answer.unwrap_or_else(|error| panic!("{path}: {error:#}"))
    }

    async fn graphql(&self, query: &str) -> Value {
        let body = json!({ "query": query, "variables": {} });
        let answer = self
            .call(Role::Superadmin, Method::POST, "/admin/graphql", body)
            .await;
        answer.unwrap_or_else(|error| panic!("{query}: {error:#}"))
    }

    async fn create(&self, image: &str) -> anyhow::Result<Value> {
        let wanted = json!({
            "lang": image, "clientSessionToken": SESSION,
            "config": { "resources": { "cpu": 1, "mem": "128m" }, "environ": { "GREETING": "hello" } },
        });
        self.call(Role::User, Method::POST, "/kernel/create", wanted)
            .await
    }

    /// Runs something to its end; what it printed, and the last answer.
    async fn run(&self, mut body: Value) -> (String, Value) {
        let mut said = String::new();
        loop {
            let answer = self
                .of_user(Method::POST, &format!("/kernel/{SESSION}"), body.clone())
                .await;
            let result = answer["result"].clone();
            for item in result["console"].as_array().into_iter().flatten() {
                said.push_str(item[1].as_str().unwrap_or_default());
            }
            if result["status"] == "finished" {
                return (said, result);
            }
            body = json!({ "mode": "continue", "runId": result["runId"], "code": "" });
        }
    }

    async fn agent_status(&self) -> Value {
        let answer = self
            .graphql(&format!(
                "{{ agent(agent_id: \"{ID}\") {{ status addr available_slots }} }}"
            ))
            .await;
        answer["agent"].clone()
    }
}

/// What the original writes into etcd when it scans a registry.
fn describe(site: &Site, image: &str) {
    let (name, tag) = image.rsplit_once(':').unwrap();
    let (registry, name) = name.split_once('/').unwrap();
    let key = format!("images/{registry}/{}/{tag}", name.replace('/', "%2F"));
    let put = |key: &str, value: &str| _ = site.original(&["etcd", "put", key, value]).unwrap();
    put(
        "config/docker/registry/index.docker.io",
        "https://registry-1.docker.io",
    );
    put(&key, &format!("sha256:{}", "0".repeat(64)));
    for (child, value) in [
        ("size_bytes", "1"),
        ("labels/ai.backend.kernelspec", "1"),
        ("labels/ai.backend.envs.corecount", "NPROC"),
        ("resource/cpu/min", "1"),
        ("resource/mem/min", "64m"),
    ] {
        put(&format!("{key}/{child}"), value);
    }
}

/// The images that the original has heard of from the agent.
fn images(site: &Site) -> Vec<String> {
    // On one line, as the test kit reads answers.
    let keys = "EVAL \"return redis.status_reply(table.concat(redis.call('keys', '*'), ' '))\" 0";
    let lines = site.redis.commands(&["SELECT 3", keys]);
    let names = lines[1].trim_start_matches('+').split(' ');
    names
        .filter(|name| name.contains("-host"))
        .map(str::to_owned)
        .collect()
}

async fn until(agent: &mut Running, what: &str, is_met: impl AsyncFnMut() -> bool) {
    agent.until(what, is_met).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_original_manager_works_with_our_agent() {
    let mut fixture = cast::fixture();
    fixture["resource_presets"] = json!([]);
    let site = match Site::start(&fixture, 2) {
        Ok(site) => site,
        Err(missing) => return println!("SKIPPED: our agent under the original manager, because {missing}"),
    };
    let at = Caller(&site);
    // Names of images mean something to the original only with a registry.
    let registry = [
        "etcd",
        "put",
        "config/docker/registry/index.docker.io",
        "https://registry-1.docker.io",
    ];
    site.original(&registry).unwrap();
    let original = site.start_original();
    let place = Place::new(&site.etcd.address(), "backend", ID, "");
    let mut agent = place.start();

    // 1: it registers, with its slots and images.
    until(&mut agent, "the agent's registration", async || {
        at.agent_status().await["status"] == "ALIVE"
    })
    .await;
    assert_eq!(at.agent_status().await["addr"], place.endpoint());
    until(&mut agent, "the agent's images", async || {
        !images(&site).is_empty()
    })
    .await;
    let python = images(&site).into_iter().find(|image| image.contains("/python:"));
    let python = python.expect("the tests' host has Python");
    describe(&site, &python);

    // 2 and 6: a session, its runs, and what is refused.
    let made = at.create(&python).await;
    let made = made.unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", agent.log(), original.log()));
    assert_eq!(made["created"], true, "{made}");
    let again = at.create(&python).await.unwrap();
    assert_eq!(again["created"], false, "the same session");
    let (said, _) = at.run(json!({ "mode": "query", "code": "import os\nx = 6 * 7\nprint(x, os.environ['GREETING'], os.environ['NPROC'])", "runId": "q1" })).await;
    assert_eq!(said, "42 hello 1\n");
    let (said, _) = at
        .run(json!({ "mode": "query", "code": "print(x + 1)", "runId": "q2" }))
        .await;
    assert_eq!(said, "43\n", "the state stays");

    // 5: files, there and back.
    let program = b"print('from a file')\n".to_vec();
    let uploaded = at
        .client(Role::User)
        .upload(
            &format!("/kernel/{SESSION}/upload"),
            vec![("main.py".to_owned(), program)],
        )
        .await;
    uploaded.unwrap_or_else(|error| panic!("upload: {error:#}"));
    let listed = at
        .of_user(
            Method::GET,
            &format!("/kernel/{SESSION}/files"),
            json!({ "path": "." }),
        )
        .await;
    assert!(
        listed["files"].as_str().unwrap().contains("\"main.py\""),
        "{listed}"
    );
    let (said, last) = at
        .run(json!({ "mode": "batch", "code": "", "runId": "b1", "options": { "clean": null, "build": null, "exec": "python3 main.py" } }))
        .await;
    assert!(said.contains("from a file"), "{said}");
    assert_eq!(last["exitCode"], 0, "{last}");
    let logs = at
        .of_user(Method::GET, &format!("/kernel/{SESSION}/logs"), Value::Null)
        .await;
    assert!(logs["result"]["logs"].is_string(), "{logs}");

    // 1: live statistics.
    let key = Role::User.keypair().unwrap().0;
    let live = format!(
        "{{ compute_session_list(limit: 10, offset: 0, access_key: \"{key}\") {{ items {{ sess_id live_stat }} }} }}"
    );
    until(&mut agent, "live statistics", async || {
        let answer = at.graphql(&live).await;
        let stat = answer["compute_session_list"]["items"][0]["live_stat"].to_string();
        stat.contains("cpu_used") && stat.contains("io_scratch_size")
    })
    .await;
    until(&mut agent, "the agent's live statistics", async || {
        let answer = at
            .graphql(&format!(
                "{{ agent(agent_id: \"{ID}\") {{ cpu_cur_pct mem_cur_bytes }} }}"
            ))
            .await;
        answer["agent"]["cpu_cur_pct"].is_number() && answer["agent"]["mem_cur_bytes"].is_number()
    })
    .await;

    // 7: a restart keeps the files and loses the state.
    at.of_user(Method::PATCH, &format!("/kernel/{SESSION}"), Value::Null)
        .await;
    let (said, _) = at.run(json!({ "mode": "query", "code": "import os\nprint('x' in globals(), os.path.exists('main.py'))", "runId": "q3" })).await;
    assert_eq!(said, "False True\n");

    // The agent goes away and comes back under a living session.
    agent.signal("-INT");
    assert!(agent.ended().await.success(), "{}", agent.log());
    drop(agent);
    let mut agent = place.start();
    until(&mut agent, "the agent's return", async || {
        at.agent_status().await["status"] == "ALIVE"
    })
    .await;
    let (said, _) = at
        .run(json!({ "mode": "query", "code": "print(1 + 1)", "runId": "q4" }))
        .await;
    assert_eq!(said, "2\n");

    // 4 and 5: the end, with the last statistics in the database.
    let ended = at
        .of_user(Method::DELETE, &format!("/kernel/{SESSION}"), Value::Null)
        .await;
    assert_eq!(ended["stats"]["version"], 2, "{ended}");
    until(&mut agent, "the end of the session", async || {
        site.psql("SELECT status, last_stat -> 'mem' ->> 'current' IS NOT NULL FROM kernels")
            .starts_with("TERMINATED|t")
    })
    .await;
    assert_eq!(site.psql("SELECT status_info FROM kernels"), "user-requested");

    // Force kill, which the original's own agents do not know.
    at.create(&python).await.unwrap();
    let frozen = json!({ "status": "frozen", "force_kill": true });
    let answer = at
        .call(Role::Superadmin, Method::PUT, "/manager/status", frozen)
        .await;
    answer.unwrap_or_else(|error| panic!("force kill: {error:#}\n{}", original.log()));
    until(&mut agent, "the end by force", async || {
        site.psql("SELECT count(*) FROM kernels WHERE status <> 'TERMINATED'") == "0"
    })
    .await;

    agent.signal("-TERM");
    assert!(agent.ended().await.success(), "{}", agent.log());
    assert_eq!(place.processes(), [""; 0]);
    tokio::time::timeout(Duration::from_secs(60), async {
        while at.agent_status().await["status"] != "TERMINATED" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("the agent has left");
    original.stop();
}
