//! A host that moves from the agent of 19.06 to ours while it has sessions: `bai gateway`, `bai agent` on the engine where
//! the original has left a container, and a user who goes on.

use std::fs;
use std::path::Path;

use bai::client::Client;
use bai_model::SecretKey;
use bai_testkit::services::Docker;
use bai_testkit::services::original::{IMAGE, OriginalAgent, OriginalSession};
use reqwest::Method;
use serde_json::{Value, json};

use super::Place;
use crate::gateway::cluster::Services;

const ID: &str = "i-moved";
const KERNEL: &str = "5e551011-0000-4000-8000-000000001906";
const WHAT: &str = "a host that moves from an agent of 19.06";

#[test]
fn a_session_of_the_original_agent_is_used_and_ended_through_ours() {
    let docker = match Docker::start_publishing() {
        Ok(docker) => docker,
        Err(missing) => return println!("SKIPPED: {WHAT}: {missing}"),
    };
    // All of the site is where the container's ports are.
    docker.inside(|| {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(move_host(&docker));
    });
}

#[expect(clippy::print_stdout, reason = "how a test says that it was skipped")]
async fn move_host(docker: &Docker) {
    let Some(services) = Services::start(WHAT) else {
        return;
    };
    let mut host = Place::with_runtime(
        &services.etcd.address(),
        "site",
        ID,
        "runtime = 'docker'\nnetwork = 'none'",
    );
    host.engine = Some(docker.host());
    let scratch_root = host.path("scratch");
    let original = match OriginalAgent::on(docker, &scratch_root) {
        Ok(original) => original,
        Err(missing) => return println!("SKIPPED: {WHAT}: {missing}"),
    };
    fs::set_permissions(
        host.path("."),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    let session = OriginalSession {
        kernel: KERNEL.to_owned(),
        ports: [31102, 31100, 31101],
        folder: None,
        idle_timeout: 600,
    };
    let container = original.start(&session).unwrap();

    let database = services.postgres.database(None);
    let manager = services.place(&database, "");
    let rows = services.set_up(&manager);
    let (group, user) = (&rows["groups"][0]["id"], &rows["users"][0]["uuid"]);
    let (group, user) = (group.as_str().unwrap(), user.as_str().unwrap());
    // What the manager has of a host of 19.06 and its session.
    let address = host.endpoint();
    for statement in [
        format!(
            "INSERT INTO agents (id, status, region, available_slots, occupied_slots, addr, first_contact, version, compute_plugins) \
             VALUES ('{ID}', 'ALIVE', 'local', '{{\"cpu\": \"4\", \"mem\": \"4294967296\"}}', \
             '{{\"cpu\": \"1\", \"mem\": \"268435456\"}}', '{address}', now(), '19.06.0b1', '{{}}')"
        ),
        format!(
            "INSERT INTO kernels (id, sess_id, role, domain_name, group_id, user_uuid, access_key, image, registry, \
             agent, agent_addr, container_id, occupied_slots, occupied_shares, kernel_host, repl_in_port, repl_out_port, \
             stdin_port, stdout_port, service_ports, status, created_at, num_queries) \
             VALUES ('{KERNEL}', 'moved', 'master', 'default', '{group}', '{user}', 'AKIATESTTESTTESTTEST', \
             '{IMAGE}', 'https://registry-1.docker.io', '{ID}', '{address}', '{container}', \
             '{{\"cpu\": \"1\", \"mem\": \"268435456\"}}', '{{}}', '127.0.0.1', 31102, 31100, 0, 0, '[]', 'RUNNING', now(), 0)"
        ),
    ] {
        database.psql(&statement);
    }

    let gateway = manager.start(&[]);
    let mut agent = host.start();
    let client = Client::new(
        &manager.url(""),
        "AKIATESTTESTTESTTEST",
        SecretKey::new("test".to_owned()),
    )
    .unwrap();
    agent
        .until("the session under our agent", async || {
            let log = fs::read_to_string(host.path("log")).unwrap_or_default();
            log.contains("kernel found again")
        })
        .await;
    let mut said = String::new();
    let mut body = json!({ "mode": "query", "runId": "r", "code": "print(6*7)", "options": {} });
    loop {
        let answer = client.call(Method::POST, "/kernel/moved", Some(&body)).await;
        let answer = answer.unwrap_or_else(|error| panic!("{error:#}\n{}\n{}", agent.log(), gateway.log()));
        for item in answer["result"]["console"].as_array().into_iter().flatten() {
            said.push_str(item[1].as_str().unwrap_or_default());
        }
        if answer["result"]["status"] == "finished" {
            break;
        }
        body = json!({ "mode": "continue", "runId": "r", "code": "", "options": {} });
    }
    assert_eq!(said, "42\n");

    let ended = client.call(Method::DELETE, "/kernel/moved", None::<&Value>).await;
    ended.unwrap_or_else(|error| panic!("{error:#}\n{}", agent.log()));
    agent
        .until("the end of the session", async || {
            database.psql(&format!("SELECT status FROM kernels WHERE id = '{KERNEL}'")) == "TERMINATED"
        })
        .await;
    assert_eq!(
        docker.docker(&["ps", "-aq"]).unwrap(),
        "",
        "its container and the companion are gone"
    );
    assert!(!Path::new(&scratch_root).join(KERNEL).exists());
    agent.signal("-INT");
    assert!(agent.ended().await.success(), "{}", agent.log());
    gateway.stop();
}
