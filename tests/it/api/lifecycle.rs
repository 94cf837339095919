//! Sessions while things go wrong: managers that restart, agents that are away, clients that leave, quotas that are full.

use bai_model::time::Clock;
use bai_model::{AccessKey, AgentId, AgentStatus, KernelId, KernelStatus, ResourceSlot};
use bai_proto::agent::AgentError;
use bai_proto::event::AgentEvent;
use bai_store::Tx;
use bai_store::kernel::NewKernel;
use bai_testkit::{Api, FakeAgent, Request, Role, cast};
use chrono::{DateTime, Utc};
use serde_json::{Value, json};

use super::{assert_clean, create, eventually, until, until_called};

async fn execute(api: &Api, name: &str) -> u16 {
    let run = json!({ "runId": null, "mode": "query", "code": "print x" });
    let target = format!("/kernel/{name}");
    api.call(Role::User, "POST", &target, &run).await.status
}

#[tokio::test]
async fn sessions_go_on_although_their_agent_is_not_back_after_a_restart() {
    let api = Api::start().await;
    create(&api, Role::User, "stays").await;
    let mut api = api.restart_manager().await;
    let again = create(&api, Role::User, "stays").await;
    assert_eq!(
        (&again[0], &again[1]["created"], &again[1]["status"]),
        (&json!(201), &json!(false), &json!("RUNNING"))
    );
    assert_eq!(api.get(Role::User, "/kernel/stays").await.status, 200);
    assert_eq!(execute(&api, "stays").await, 503);
    assert_eq!(
        create(&api, Role::User, "other").await[0],
        503,
        "no agent to place it on"
    );
    api.attach_agent().await;
    assert_eq!(execute(&api, "stays").await, 200);
    assert_clean(&api).await;
}

#[tokio::test]
async fn what_was_recorded_before_a_crash_is_carried_out_after_it() {
    for (recorded, becomes) in [
        (KernelStatus::Restarting, KernelStatus::Running),
        (KernelStatus::Terminating, KernelStatus::Terminated),
    ] {
        let api = Api::start().await;
        create(&api, Role::User, "crash").await;
        let kernel = api.agent.kernels()[0];
        let mut tx = api.store.begin().await.unwrap();
        tx.set_kernel_status(kernel, &[KernelStatus::Running], recorded, None)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        let mut api = api.restart_manager().await;
        api.attach_agent().await;
        until(&api, kernel, becomes).await;
        assert_clean(&api).await;
    }
}

/// A session that was recorded and nothing else, as by a manager that was killed then.
async fn record(api: &Api, image: &str) -> KernelId {
    let mut tx = api.store.begin().await.unwrap();
    let kernel = insert(&mut tx, api.clock.now(), image).await;
    tx.commit().await.unwrap();
    kernel
}

async fn insert(tx: &mut Tx, at: DateTime<Utc>, image: &str) -> KernelId {
    let owner = tx
        .credential_by_access_key(&AccessKey::from("AKIANABBDUSEREXAMPLE"))
        .await
        .unwrap()
        .unwrap();
    let group = tx
        .group_for_session("default", "default", None)
        .await
        .unwrap()
        .unwrap();
    let kernel = NewKernel {
        id: KernelId("00000000-0000-4000-8000-0000000000ff".parse().unwrap()),
        sess_id: "recorded".to_owned(),
        agent: AgentId("i-fake".to_owned()),
        agent_addr: "inproc://i-fake".to_owned(),
        domain_name: "default".to_owned(),
        group_id: group.id,
        user_uuid: owner.user,
        access_key: owner.access_key,
        image: image.to_owned(),
        registry: "index.docker.io".to_owned(),
        tag: None,
        occupied_slots: ResourceSlot::from_stored(&json!({ "cpu": "1", "mem": "268435456" })).0,
        environ: vec!["A=b".to_owned()],
        created_at: at,
    };
    tx.insert_kernel(&kernel).await.unwrap();
    kernel.id
}

#[tokio::test]
async fn a_name_that_somebody_takes_without_our_lock_is_looked_at_again() {
    let api = Api::start().await;
    // As an original manager beside us does it: it has written, and nobody sees it yet.
    let mut theirs = api.store.begin().await.unwrap();
    let kernel = insert(&mut theirs, api.clock.now(), bai_testkit::agent::IMAGE).await;
    let (ours, ()) = tokio::join!(create(&api, Role::User, "recorded"), async {
        while !api.is_waiting_for_a_lock() {
            tokio::task::yield_now().await;
        }
        theirs.commit().await.unwrap();
    });
    assert_eq!(
        (&ours[0], &ours[1]["created"]),
        (&json!(201), &json!(false)),
        "{ours}"
    );
    let heartbeat = AgentEvent::InstanceHeartbeat(FakeAgent::info());
    api.events.send(heartbeat).await.unwrap();
    until(&api, kernel, KernelStatus::Running).await;
    assert_clean(&api).await;
}

#[tokio::test]
async fn a_creation_that_a_crash_cut_off_is_finished_from_its_record() {
    let api = Api::start().await;
    let kernel = record(&api, bai_testkit::agent::IMAGE).await;
    let mut api = api.restart_manager().await;
    api.attach_agent().await;
    until(&api, kernel, KernelStatus::Running).await;
    assert_eq!(api.agent.config(kernel).unwrap().environ["A"], "b");
    assert_eq!(execute(&api, "recorded").await, 200);
    assert_clean(&api).await;
}

#[tokio::test]
async fn a_creation_whose_image_is_gone_ends_and_says_so() {
    let api = Api::start().await;
    let kernel = record(&api, "index.docker.io/lablup/gone:1").await;
    let mut api = api.restart_manager().await;
    api.attach_agent().await;
    until(&api, kernel, KernelStatus::Terminated).await;
    let row = api.store.reader().kernel(kernel).await.unwrap().unwrap();
    assert_eq!(row.status_info.as_deref(), Some("creation-failed"));
    assert_clean(&api).await;
}

#[tokio::test]
async fn a_termination_that_the_agent_refuses_is_tried_again() {
    let api = Api::start().await;
    create(&api, Role::User, "clings").await;
    let kernel = api.agent.kernels()[0];
    api.agent
        .fail_next_destruction(AgentError::exception("RuntimeError", "busy"));
    let answer = api
        .send(Request::new(Role::User, "DELETE", "/kernel/clings"))
        .await;
    assert_eq!(answer.status, 500);
    assert_eq!(
        answer.json()["agent-details"]["exception"],
        "RuntimeError('busy')"
    );
    // The record says what shall be, and the name is free for whoever asks again.
    assert_eq!(create(&api, Role::User, "clings").await[1]["created"], true);
    until(&api, kernel, KernelStatus::Terminated).await;
    assert_clean(&api).await;
}

#[tokio::test]
async fn a_client_that_leaves_gets_its_session_all_the_same() {
    let api = Api::start().await;
    api.agent.hold_creations(true);
    let leaving = async {
        tokio::select! {
            answer = create(&api, Role::User, "leaves") => panic!("{answer}"),
            () = until_called(&api, "create_kernel") => {}
        }
    };
    leaving.await;
    let meanwhile = create(&api, Role::User, "leaves").await;
    let expected =
        json!({ "kernelId": "leaves", "servicePorts": null, "created": false, "status": "PREPARING" });
    assert_eq!(meanwhile, json!([201, expected]));
    let row = api.get(Role::User, "/kernel/leaves").await.json();
    assert_eq!(row["status"], "PREPARING");
    api.agent.hold_creations(false);
    eventually("a kernel runs", || !api.agent.kernels().is_empty()).await;
    until(&api, api.agent.kernels()[0], KernelStatus::Running).await;
    assert_eq!(execute(&api, "leaves").await, 200);
    assert_clean(&api).await;
}

#[tokio::test]
async fn a_session_destroyed_while_it_starts_is_gone_and_says_so() {
    let api = Api::start().await;
    api.agent.hold_creations(true);
    let creating = create(&api, Role::User, "short");
    let destroying = async {
        until_called(&api, "create_kernel").await;
        let delete = api.send(Request::new(Role::User, "DELETE", "/kernel/short"));
        let let_go = async {
            // The termination is recorded before the creation may end.
            while api.get(Role::User, "/kernel/short").await.json()["status"] != "TERMINATING" {
                tokio::task::yield_now().await;
            }
            api.agent.hold_creations(false);
        };
        tokio::join!(delete, let_go).0
    };
    let (created, destroyed) = tokio::join!(creating, destroying);
    assert_eq!(destroyed.status, 200);
    assert_eq!(
        (&created[0], &created[1]["type"]),
        (
            &json!(500),
            &json!("https://api.backend.ai/probs/kernel-creation-failed")
        )
    );
    assert_clean(&api).await;
}

#[tokio::test]
async fn the_late_end_of_an_earlier_life_does_not_end_the_session() {
    let api = Api::start().await;
    create(&api, Role::User, "restarted").await;
    let kernel = api.agent.kernels()[0];
    create(&api, Role::User, "sentinel").await;
    let sentinel = api
        .agent
        .kernels()
        .into_iter()
        .find(|other| *other != kernel)
        .unwrap();
    let restarted = api
        .send(Request::new(Role::User, "PATCH", "/kernel/restarted"))
        .await;
    assert_eq!(restarted.status, 204);
    api.agent.forget(sentinel);
    for kernel in [kernel, sentinel] {
        let event = AgentEvent::KernelTerminated {
            kernel,
            reason: "self-terminated".to_owned(),
            generation: Some(1),
            stats: None,
        };
        api.events.send(event).await.unwrap();
    }
    // Events are handled in order.
    until(&api, sentinel, KernelStatus::Terminated).await;
    assert_eq!(
        api.get(Role::User, "/kernel/restarted").await.json()["status"],
        "RUNNING"
    );
    assert_clean(&api).await;
}

#[tokio::test]
async fn a_session_of_a_lost_agent_makes_room_and_its_kernel_ends_when_the_agent_is_back() {
    let api = Api::start().await;
    create(&api, Role::User, "lost").await;
    let old = api.agent.kernels()[0];
    let mut tx = api.store.begin().await.unwrap();
    let agent = AgentId("i-fake".to_owned());
    tx.set_agent_status(&agent, AgentStatus::Lost, Some(api.clock.now()))
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(api.get(Role::User, "/kernel/lost").await.status, 404);
    assert_eq!(
        create(&api, Role::User, "lost").await[0],
        503,
        "no agent is alive"
    );
    until(&api, old, KernelStatus::Terminated).await;
    api.events
        .send(AgentEvent::InstanceHeartbeat(FakeAgent::info()))
        .await
        .unwrap();
    eventually("the old kernel ends", || !api.agent.kernels().contains(&old)).await;
    assert_eq!(create(&api, Role::User, "lost").await[1]["created"], true);
    assert_clean(&api).await;
}

/// The answer to the third session of one core and 256 MiB, with a changed cast.
async fn third_session(change: impl FnOnce(&mut Value)) -> Value {
    let mut cast = cast::fixture();
    change(&mut cast);
    let api = Api::start_with(&cast).await;
    for name in ["first", "second"] {
        assert_eq!(create(&api, Role::User, name).await[0], 201);
    }
    let answer = create(&api, Role::User, "third").await;
    assert_clean(&api).await;
    json!([answer[0], answer[1]["title"]])
}

#[tokio::test]
async fn quotas_are_the_keypairs_the_groups_and_the_domains() {
    let of_keypair = third_session(|cast| {
        let policy = &mut cast["keypair_resource_policies"][0];
        policy["default_for_unspecified"] = json!("LIMITED");
        policy["total_resource_slots"] = json!({ "cpu": "2", "mem": "1g" });
    });
    insta::assert_compact_json_snapshot!(of_keypair.await, @r#"[400, "Missing or invalid API parameters. (Your resource quota is exceeded. (cpu=2 mem=1g))"]"#);
    let unlimited = third_session(|cast| {
        cast["keypair_resource_policies"][0]["total_resource_slots"] = json!({ "cpu": "2" });
    });
    insta::assert_compact_json_snapshot!(unlimited.await, @r#"[400, "Missing or invalid API parameters. (Your resource quota is exceeded. (cpu=2 mem=Infinity))"]"#);
    let of_group = third_session(|cast| cast["groups"][0]["total_resource_slots"] = json!({ "mem": "600m" }));
    insta::assert_compact_json_snapshot!(of_group.await, @r#"[400, "Missing or invalid API parameters. (Your group resource quota is exceeded. (cpu=Infinity mem=600m))"]"#);
    let of_domain = third_session(|cast| cast["domains"][0]["total_resource_slots"] = json!({ "cpu": 2 }));
    insta::assert_compact_json_snapshot!(of_domain.await, @r#"[400, "Missing or invalid API parameters. (Your domain resource quota is exceeded. (cpu=2 mem=Infinity))"]"#);
    let number =
        third_session(|cast| cast["keypair_resource_policies"][0]["max_concurrent_sessions"] = json!(2));
    insta::assert_compact_json_snapshot!(number.await, @r#"[412, "You have reached your resource limit. (2 sessions of 2 are in use; terminate one first)"]"#);
}

#[tokio::test]
async fn an_owners_policy_holds_whoever_acts_for_them() {
    let mut cast = cast::fixture();
    let mut strict = cast["keypair_resource_policies"][0].clone();
    (
        strict["name"],
        strict["max_concurrent_sessions"],
        strict["idle_timeout"],
    ) = (json!("strict"), json!(1), json!(60));
    cast["keypair_resource_policies"]
        .as_array_mut()
        .unwrap()
        .push(strict);
    cast["keypairs"][2]["resource_policy"] = json!("strict");
    let api = Api::start_with(&cast).await;
    let create = |name: &str| {
        let body = json!({ "lang": "python", "clientSessionToken": name });
        let api = &api;
        async move {
            let target = "/kernel/create?owner_access_key=AKIANABBDUSEREXAMPLE";
            api.call(Role::Superadmin, "POST", target, &body).await.status
        }
    };
    assert_eq!(create("one-1").await, 201);
    assert_eq!(create("one-2").await, 412);
    let config = api.agent.config(api.agent.kernels()[0]).unwrap();
    assert_eq!(config.idle_timeout, 60);
    assert_clean(&api).await;
}
