//! Heartbeats: what is recorded of them, and what is not.

use bai_model::{AgentId, AgentStatus, ResourceSlot, SlotUnit};
use bai_proto::event::{AgentEvent, InstalledImage, ReceiverOptions};
use bai_proto::zmtp::{Link, Message};
use bai_store::agent::NewAgent;
use bai_testkit::remote::stranger;
use bai_testkit::{Api, RemoteAgent, Role, cast};
use serde_json::json;

use super::super::{assert_clean, create};
use super::{add_agent, lose, soon, until_agent, with_agent};

async fn send(link: &Link, frames: &[&[u8]]) {
    let message: Message = frames.iter().map(|frame| frame.to_vec().into()).collect();
    link.send(message).await;
    link.flushed().await;
}

#[tokio::test]
async fn the_originals_heartbeats_are_recorded_as_the_original_records_them() {
    let api = Api::start_alone(&cast::fixture()).await;
    let registries = [
        (
            "config/docker/registry/index.docker.io".to_owned(),
            "https://r.example".to_owned(),
        ),
        (
            "config/docker/registry/127.0.0.1%3A15000".to_owned(),
            "http://127.0.0.1:15000".to_owned(),
        ),
    ];
    api.config.put_all(&registries).await.unwrap();
    let link = stranger(api.hear(ReceiverOptions::default()).await);
    let recorded = include_str!("../../../../crates/bai-proto/tests/golden/events.txt").lines();
    for line in recorded.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let frames: Vec<Vec<u8>> = line.split(' ').map(hex).collect();
        let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        if frames[0] == b"instance_heartbeat" {
            send(&link, &frames).await;
        }
    }
    for (id, addr, slots) in [
        (
            "i-node01",
            "tcp://127.0.0.1:6001",
            json!({ "cpu": "8", "mem": "16777216000" }),
        ),
        (
            "i-agent-golden",
            "tcp://127.0.0.1:16011",
            json!({ "cpu": "4", "mem": "25276502016" }),
        ),
    ] {
        until_agent(&api, id, AgentStatus::Alive).await;
        let row = api
            .store
            .reader()
            .agent(&AgentId::from(id))
            .await
            .unwrap()
            .unwrap();
        assert_eq!((row.addr.as_str(), row.region.as_str()), (addr, "local"));
        assert_eq!(row.available_slots, ResourceSlot::from_stored(&slots).0);
        assert_eq!(row.occupied_slots, ResourceSlot::default());
        assert_eq!((row.version.as_str(), row.lost_at), ("19.06.0b1", None));
        assert!(row.first_contact.is_some() && row.compute_plugins["cpu"].is_object());
        // What is heard is told to the broker in rounds, whatever was recorded by then.
        soon("the broker knows that it was heard", || async {
            api.broker.last_seen().await.unwrap().contains_key(id)
        })
        .await;
    }
    let image = "index.docker.io/lablup/python:3.6-ubuntu18.04";
    soon("the image is held", || async {
        api.broker.members_with(image).await.unwrap().contains("i-node01")
    })
    .await;
}

fn hex(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().chunks(2);
    pairs
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

#[tokio::test]
async fn what_an_agent_says_anew_is_recorded_and_what_it_says_again_is_not() {
    let (api, mut agent) = with_agent().await;
    let id = agent.info.id.clone();
    let row = || async { api.store.reader().agent(&id).await.unwrap().unwrap() };
    let installed = |tag: &str| InstalledImage {
        repo_tag: format!("lablup/lua:{tag}"),
        id: "sha256:1".to_owned(),
    };
    let holders = |tag: &'static str| {
        let image = format!("index.docker.io/lablup/lua:{tag}");
        let broker = api.broker.clone();
        move || {
            let (broker, image) = (broker.clone(), image.clone());
            async move { broker.holders(&[image]).await.unwrap()[0] }
        }
    };
    agent.info.version = "19.06.1".to_owned();
    agent.info.region = "elsewhere".to_owned();
    agent.info.available_slots =
        ResourceSlot::from_stored(&json!({ "cpu": "2", "mem": "1", "cuda.device": "1" })).0;
    agent.info.slot_types.insert("cuda.device", SlotUnit::Count);
    agent.info.installed = vec![installed("5.1"), installed("5.3")];
    agent.beat().await;
    soon("it is recorded", || async { row().await.version == "19.06.1" }).await;
    assert_eq!(row().await.region, "elsewhere");
    assert_eq!(row().await.available_slots, agent.info.available_slots);
    assert_eq!(
        api.config
            .get("config/resource_slots/cuda.device")
            .await
            .unwrap()
            .as_deref(),
        Some("count")
    );
    let (old, new) = (holders("5.1"), holders("5.3"));
    soon("both images are held", || async {
        old().await == 1 && new().await == 1
    })
    .await;
    agent.info.installed.remove(0);
    agent.beat().await;
    soon("one image is gone", || async {
        old().await == 0 && new().await == 1
    })
    .await;

    // What somebody else writes stays, because nothing is written when nothing is new.
    let at = row().await.first_contact.unwrap();
    let mut tx = api.store.begin().await.unwrap();
    let theirs = NewAgent {
        id: id.clone(),
        region: "theirs".to_owned(),
        addr: agent.info.addr.clone(),
        version: agent.info.version.clone(),
        available_slots: agent.info.available_slots.clone(),
        compute_plugins: agent.info.compute_plugins.clone(),
    };
    tx.upsert_agent(&theirs, at).await.unwrap();
    tx.commit().await.unwrap();
    for _ in 0..3 {
        agent.beat().await;
    }
    let left = AgentEvent::InstanceTerminated {
        agent: id.clone(),
        reason: "shutdown".to_owned(),
    };
    agent.tell(left).await;
    until_agent(&api, "i-remote", AgentStatus::Terminated).await;
    assert_eq!(row().await.region, "theirs");
    assert!(row().await.lost_at.is_some());
    agent.beat().await;
    until_agent(&api, "i-remote", AgentStatus::Alive).await;
    assert_eq!(
        (row().await.region.as_str(), row().await.lost_at),
        ("elsewhere", None)
    );
}

/// Presets, policies and sites name slots that nobody has at the moment: whether a slot is known does not depend on who is
/// alive (deviation `slot-types-stay`). What is offered does.
#[tokio::test]
async fn slot_types_stay_known_when_the_last_agent_that_has_them_leaves() {
    let (api, _agent) = with_agent().await;
    let mut gpus = add_agent(&api, "i-with-gpus").await;
    gpus.info.slot_types.insert("cuda.device", SlotUnit::Count);
    let slots = json!({ "cpu": "8", "mem": "17179869184", "cuda.device": "2" });
    gpus.info.available_slots = ResourceSlot::from_stored(&slots).0;
    gpus.beat().await;
    let unit = || api.config.get("config/resource_slots/cuda.device");
    soon("it is known", || async { unit().await.unwrap().is_some() }).await;
    let allocatable = async || {
        let checked = api
            .call(Role::User, "POST", "/resource/check-presets", &json!({}))
            .await;
        let presets = checked.json()["presets"].as_array().unwrap().clone();
        let preset = presets.into_iter().find(|preset| preset["name"] == "small-gpu");
        preset.unwrap()["allocatable"].clone()
    };
    // What agents have is recorded after the names of it.
    soon("it can be had", || async { allocatable().await == json!(true) }).await;
    let left = AgentEvent::InstanceTerminated {
        agent: gpus.info.id.clone(),
        reason: "shutdown".to_owned(),
    };
    gpus.tell(left).await;
    until_agent(&api, "i-with-gpus", AgentStatus::Terminated).await;
    // Nor do they go with the next one that comes, which is what the original does.
    add_agent(&api, "i-without").await;
    assert_eq!(unit().await.unwrap().as_deref(), Some("count"));
    assert_eq!(allocatable().await, json!(false));
    let wanted = json!({ "lang": "python", "clientSessionToken": "gpu-1", "config": { "resources": { "cuda.device": 1 } } });
    let refused = api.call(Role::User, "POST", "/kernel/create", &wanted).await;
    assert_eq!(refused.status, 503, "{:?}", refused.view());
    let unknown = json!({ "lang": "python", "clientSessionToken": "tpu-1", "config": { "resources": { "tpu.device": 1 } } });
    let refused = api.call(Role::User, "POST", "/kernel/create", &unknown).await;
    assert_eq!(refused.status, 400, "{:?}", refused.view());
}

#[tokio::test]
async fn a_broker_that_forgot_everything_is_told_again() {
    let (api, agent) = with_agent().await;
    let image = || async { api.broker.members_with(bai_testkit::agent::IMAGE).await.unwrap() };
    soon("the image is held", || async {
        image().await.contains("i-remote")
    })
    .await;
    api.broker.forget("i-remote").await.unwrap();
    agent.beat().await;
    soon("the image is held again", || async {
        image().await.contains("i-remote")
    })
    .await;
    assert!(api.broker.last_seen().await.unwrap().contains_key("i-remote"));
}

#[tokio::test]
async fn an_agent_id_of_two_hosts_is_the_first_ones_until_it_is_lost() {
    let (api, agent) = with_agent().await;
    let id = agent.info.id.clone();
    let events = api.hear(ReceiverOptions::default()).await;
    let mut other = RemoteAgent::start("i-remote", events, api.agent.clone()).await;
    other.info.version = "of another host".to_owned();
    other.beat().await;
    // Handled in its order, so that what came before it was refused.
    let sentinel = add_agent(&api, "i-sentinel").await;
    let row = || async { api.store.reader().agent(&id).await.unwrap().unwrap() };
    for _ in 0..3 {
        other.beat().await;
        sentinel.beat().await;
    }
    assert_eq!(row().await.addr, agent.info.addr);
    assert_eq!(create(&api, Role::User, "first").await[0], 201);
    agent.kill().await;
    lose(&api, &id).await;
    soon("the other one is taken in", || async {
        other.beat().await;
        row().await.addr == other.info.addr
    })
    .await;
    assert_eq!(row().await.version, "of another host");
    assert_clean(&api).await;
}

#[tokio::test]
async fn events_of_kernels_that_are_not_an_agents_own_change_nothing() {
    let (api, agent) = with_agent().await;
    create(&api, Role::User, "mine").await;
    let kernel = api.agent.kernels()[0];
    let forger = add_agent(&api, "i-forger").await;
    let unknown = bai_model::KernelId("00000000-0000-4000-8000-00000000dead".parse().unwrap());
    // Even if the owner of the kernel would agree.
    api.agent.forget(kernel);
    for kernel in [kernel, unknown] {
        let end = AgentEvent::KernelTerminated {
            kernel,
            reason: "forged".to_owned(),
            generation: None,
            stats: None,
        };
        forger.tell(end).await;
    }
    let left = AgentEvent::InstanceTerminated {
        agent: forger.info.id.clone(),
        reason: "shutdown".to_owned(),
    };
    forger.tell(left).await;
    until_agent(&api, "i-forger", AgentStatus::Terminated).await;
    let row = api.store.reader().kernel(kernel).await.unwrap().unwrap();
    assert_ne!(row.status_info.as_deref(), Some("forged"));
    assert_eq!(row.agent, Some(agent.info.id.clone()));
}

#[tokio::test]
async fn frames_that_are_no_events_change_nothing() {
    let (api, agent) = with_agent().await;
    create(&api, Role::User, "stays").await;
    let kernel = api.agent.kernels()[0].to_string();
    let link = stranger(api.hear(ReceiverOptions::default()).await);
    let id = [&[0x91, 0xd9, 36], kernel.as_bytes()].concat();
    let deep = [0x91; 100_000];
    let huge = vec![0; 17 << 20];
    let long = [b'x'; 65];
    // A gigabyte of images, as it says.
    let valid = bai_proto::event::encode(&agent.info.id, &AgentEvent::InstanceHeartbeat(agent.info.clone()));
    let mut bare = agent.info.clone();
    // Those that it brings would come behind the others.
    bare.images.clear();
    let bare = bai_proto::event::encode(&agent.info.id, &AgentEvent::InstanceHeartbeat(bare));
    let mut bomb = bare[2].to_vec();
    let at = bomb.windows(6).position(|bytes| bytes == b"images").unwrap() + 6;
    bomb.splice(at.., [0xc4, 6, 0x80, 0x80, 0x80, 0x80, 0x04, 0x00]);
    let cases: &[&[&[u8]]] = &[
        &[b"kernel_terminated"],
        &[b"kernel_terminated", b"i-remote", &id],
        &[b"kernel_terminated", b"i-remote", &deep],
        &[
            b"kernel_terminated",
            b"i-remote",
            &[0x93, 0xd4, 0x7b, 0x00, 0xc0, 0xc0],
        ],
        &[b"kernel_terminated", b"i-remote", &[0xc1]],
        &[b"kernel_terminated", &[0xff, 0xfe], &id],
        &[b"instance_heartbeat", &long, &valid[2]],
        &[b"instance_heartbeat", b"i-bomb", &bomb],
        &[b"instance_heartbeat", b"i-empty", &[0x91, 0x80]],
        &[b"instance_terminated", b"i-remote", &[0x90]],
        &[b"x" as &[u8]; 9],
        &[b"unknown", b"i-remote", &[0x90]],
    ];
    for case in cases {
        send(&link, case).await;
    }
    send(&link, &[b"instance_heartbeat", b"i-last", &valid[2]]).await;
    until_agent(&api, "i-last", AgentStatus::Alive).await;
    // What is too large ends the connection; a link would offer it for ever.
    let message: Message = [b"instance_heartbeat".as_slice(), b"i-huge", &huge]
        .map(|frame| frame.to_vec().into())
        .into();
    link.send(message).await;
    agent.beat().await;
    agent
        .tell(AgentEvent::InstanceTerminated {
            agent: agent.info.id.clone(),
            reason: "shutdown".to_owned(),
        })
        .await;
    until_agent(&api, "i-remote", AgentStatus::Terminated).await;
    agent.beat().await;
    until_agent(&api, "i-remote", AgentStatus::Alive).await;
    let alive = api.store.reader().addresses_of_agents().await.unwrap();
    let ids: Vec<&str> = alive.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(ids, ["i-last", "i-remote"]);
    assert_eq!(
        api.get(Role::User, "/kernel/stays").await.json()["status"],
        "RUNNING"
    );
}
