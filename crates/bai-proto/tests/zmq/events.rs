//! Events from agents to managers.

use std::net::SocketAddr;

use bai_model::{AgentId, ResourceSlot, SlotTypes};
use bai_proto::event::{
    self, AgentEvent, AgentInfo, EventError, EventReceiver, EventSender, InstalledImage, Received,
    ReceiverOptions,
};
use bai_proto::msgpack::{self, MsgpackError};
use bai_proto::zmtp::{Message, SocketType};
use bytes::Bytes;
use proptest::prelude::*;
use rmpv::Value;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::support::{KERNEL, Raw, endpoint, kernel, link_options, loopback, soon};

pub fn heartbeat(addr: &str) -> AgentEvent {
    AgentEvent::InstanceHeartbeat(AgentInfo {
        id: AgentId::from("i-node01"),
        region: "local".to_owned(),
        addr: addr.to_owned(),
        version: "19.06.0b1".to_owned(),
        available_slots: ResourceSlot::from_stored(&json!({ "cpu": "8", "mem": "16777216000" })).0,
        slot_types: SlotTypes::intrinsic(),
        compute_plugins: json!({ "cpu": { "version": "19.06.0b1" } }),
        images: Vec::new(),
        installed: vec![InstalledImage {
            repo_tag: "lablup/python:3.6-ubuntu18.04".to_owned(),
            id: "sha256:0123abcd".to_owned(),
        }],
    })
}

fn agent() -> AgentId {
    AgentId::from("i-node01")
}

fn ended(generation: u64) -> AgentEvent {
    AgentEvent::KernelTerminated {
        kernel: kernel(),
        reason: "self-terminated".to_owned(),
        generation: Some(generation),
        stats: Some(json!({ "version": 2 })),
    }
}

pub struct Receiving {
    pub address: SocketAddr,
    pub events: mpsc::Receiver<Received>,
    stop: DropGuard,
    task: JoinHandle<()>,
}

impl Receiving {
    pub async fn start(options: ReceiverOptions) -> Self {
        Self::at(loopback(), options).await
    }

    async fn at(address: SocketAddr, options: ReceiverOptions) -> Self {
        let receiver = EventReceiver::bind(address, options).await.expect("a port");
        let address = receiver.local_addr().expect("an address");
        let (sender, events) = mpsc::channel(100);
        let stop = CancellationToken::new();
        let task = tokio::spawn(receiver.run(sender, stop.clone()));
        Self {
            address,
            events,
            stop: stop.drop_guard(),
            task,
        }
    }

    async fn stop(self) {
        drop(self.stop);
        soon(self.task).await.expect("an orderly end");
    }

    pub async fn next(&mut self) -> AgentEvent {
        soon(self.events.recv()).await.expect("an event").event
    }
}

#[tokio::test]
async fn events_arrive_in_order_with_who_sent_them() {
    let mut receiving = Receiving::start(ReceiverOptions::default()).await;
    let sender = EventSender::connect(agent(), endpoint(receiving.address), link_options());
    let addr = "tcp://127.0.0.1:6001";
    let sent = [
        heartbeat(addr),
        AgentEvent::InstanceStarted { agent: agent() },
        AgentEvent::KernelPreparing { kernel: kernel() },
        AgentEvent::KernelPulling {
            kernel: kernel(),
            image: "index.docker.io/lablup/python:3.6".to_owned(),
        },
        AgentEvent::KernelCreating { kernel: kernel() },
        AgentEvent::KernelStarted { kernel: kernel() },
        ended(1),
        AgentEvent::InstanceTerminated {
            agent: agent(),
            reason: "shutdown".to_owned(),
        },
    ];
    for event in &sent {
        soon(sender.send(event)).await;
    }
    for expected in sent {
        let received = soon(receiving.events.recv()).await.expect("an event");
        assert_eq!((received.agent, received.event), (agent(), expected));
        assert_eq!(received.peer.ip(), receiving.address.ip());
    }
    soon(sender.flushed()).await;
}

#[tokio::test]
async fn what_waits_for_a_manager_keeps_its_order_and_only_the_last_heartbeat() {
    let first = Receiving::start(ReceiverOptions::default()).await;
    let address = first.address;
    let sender = EventSender::connect(agent(), endpoint(address), link_options());
    soon(sender.connected()).await;
    first.stop().await;
    // Until the sender has noticed, one event can go into the void, as with any PUSH.
    while soon_ready(&sender).await {
        sender.send(&AgentEvent::KernelStarted { kernel: kernel() }).await;
    }
    sender.send(&ended(1)).await;
    for port in 6001..6010 {
        sender.send(&heartbeat(&format!("tcp://127.0.0.1:{port}"))).await;
    }
    sender.send(&ended(2)).await;
    let mut again = Receiving::at(address, ReceiverOptions::default()).await;
    let mut received = Vec::new();
    while received.len() < 3 {
        match again.next().await {
            AgentEvent::KernelStarted { .. } => {}
            event => received.push(event),
        }
    }
    assert_eq!(received, [ended(1), heartbeat("tcp://127.0.0.1:6009"), ended(2)]);
    again.stop().await;
}

/// Whether the sender believes that it is connected.
async fn soon_ready(sender: &EventSender) -> bool {
    tokio::select! {
        biased;
        () = sender.connected() => true,
        () = tokio::task::yield_now() => false,
    }
}

fn args(value: Value) -> Bytes {
    msgpack::encode(&value).into()
}

fn frames(name: &str, agent: &str, args: impl Into<Bytes>) -> Message {
    vec![name.to_owned().into(), agent.to_owned().into(), args.into()]
}

/// Frames that no agent sends.
fn hostile() -> Vec<Message> {
    let id = || Value::from(KERNEL);
    let bomb = {
        // 8 MiB of zeros, then a promise of 1 GiB, then a promise that is a lie.
        let honest = snap::raw::Encoder::new()
            .compress_vec(&vec![0xc0; 8 << 20])
            .expect("compressed");
        let huge = b"\x80\x80\x80\x80\x04\x00".to_vec();
        let lie = b"\x80\x80\x80\x04\x00\x00".to_vec();
        [honest, huge, lie]
    };
    let with_images = |images: Vec<u8>| {
        let frames = event::encode(&agent(), &heartbeat("tcp://127.0.0.1:6001"));
        let mut value = msgpack::decode(&frames[2]).expect("a heartbeat");
        if let Value::Array(items) = &mut value
            && let Some(Value::Map(entries)) = items.first_mut()
        {
            entries.retain(|(key, _)| key.as_str() != Some("images"));
            entries.push((Value::from("images"), Value::Binary(images)));
        }
        vec![frames[0].clone(), frames[1].clone(), args(value)]
    };
    let mut all = vec![
        vec![Bytes::from_static(b"kernel_started")],
        frames("kernel_started", "", args(Value::Array(vec![id()]))),
        frames("kernel_started", &"x".repeat(65), args(Value::Array(vec![id()]))),
        frames("kernel_started", "i-node01", args(Value::Array(vec![]))),
        frames("kernel_started", "i-node01", args(Value::Array(vec![id(), id()]))),
        frames(
            "kernel_started",
            "i-node01",
            args(Value::Array(vec![Value::from("x")])),
        ),
        frames("kernel_started", "i-node01", args(id())),
        frames(
            "kernel_started",
            "i-node01",
            Bytes::from_static(b"\x91\xd4\x7f\x00"),
        ),
        frames("kernel_started", "i-node01", vec![0x91; 1000]),
        frames(
            "kernel_terminated",
            "i-node01",
            args(Value::Array(vec![id(), Value::from("x")])),
        ),
        frames(
            "instance_heartbeat",
            "i-node01",
            args(Value::Array(vec![Value::Map(vec![])])),
        ),
        event::encode(&agent(), &heartbeat("inproc://i-node01")),
        event::encode(&agent(), &heartbeat("file:///etc/passwd")),
        // Not the sender's host.
        event::encode(&agent(), &heartbeat("tcp://10.0.0.1:6001")),
        event::encode(&agent(), &heartbeat("tcp://169.254.169.254:80")),
    ];
    all.extend(bomb.map(with_images));
    all
}

#[tokio::test]
async fn malformed_and_forged_events_change_nothing() {
    let mut receiving = Receiving::start(ReceiverOptions::default()).await;
    let mut peer = Raw::dial(receiving.address, SocketType::Push).await;
    for message in hostile() {
        peer.0.writer.send(&message).await.expect("an open connection");
    }
    peer.0
        .writer
        .send(&event::encode(&agent(), &ended(7)))
        .await
        .expect("an open connection");
    assert_eq!(receiving.next().await, ended(7));
}

#[tokio::test]
async fn an_agent_is_heard_from_one_host_only() {
    let mut receiving = Receiving::start(ReceiverOptions::default()).await;
    let mut agent_itself = Raw::dial(receiving.address, SocketType::Push).await;
    let message = event::encode(&agent(), &heartbeat("tcp://127.0.0.1:6001"));
    agent_itself
        .0
        .writer
        .send(&message)
        .await
        .expect("an open connection");
    assert_eq!(receiving.next().await, heartbeat("tcp://127.0.0.1:6001"));
    // The same id from another address of this machine.
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket
        .bind(SocketAddr::from(([127, 0, 0, 2], 0)))
        .expect("another address");
    let stream = socket.connect(receiving.address).await.expect("a connection");
    let forger = bai_proto::zmtp::Connection::establish(
        stream,
        receiving.address,
        SocketType::Push,
        crate::support::LIMITS,
    );
    let mut forger = Raw(forger.await.expect("a handshake"));
    for forged in [ended(1), heartbeat("tcp://127.0.0.2:6001")] {
        forger
            .0
            .writer
            .send(&event::encode(&agent(), &forged))
            .await
            .expect("an open connection");
    }
    // Its own events are welcome; the refused ones came before.
    let other = AgentId::from("i-node02");
    let own = event::encode(&other, &ended(2));
    forger.0.writer.send(&own).await.expect("an open connection");
    let received = soon(receiving.events.recv()).await.expect("an event");
    assert_eq!((received.agent, received.event), (other, ended(2)));
}

#[test]
fn refusals_say_what_is_wrong() {
    let reasons: Vec<String> = hostile()
        .iter()
        .filter_map(|frames| event::decode(frames).err())
        .map(|error| error.to_string())
        .collect();
    assert!(
        reasons.contains(&"the event kernel_started has 2 arguments".to_owned()),
        "{reasons:?}"
    );
    assert!(
        reasons.contains(&"addr is not of the form tcp://host:port".to_owned()),
        "{reasons:?}"
    );
    assert_eq!(
        event::decode(&frames("instance_stats", "i-node01", args(Value::Array(vec![])))),
        Err(EventError::Unknown("instance_stats".to_owned()))
    );
    assert_eq!(
        event::decode(&frames(
            "kernel_started",
            "i-node01",
            Bytes::from_static(b"\x91\xd4\x7f\x00")
        )),
        Err(EventError::Msgpack(MsgpackError::Extension(127)))
    );
}

#[test]
fn a_python_agents_end_of_a_kernel_has_no_generation() {
    let nothing = Value::Array(vec![
        Value::from(KERNEL),
        Value::from("self-terminated"),
        Value::Nil,
    ]);
    let (_, read) = event::decode(&frames("kernel_terminated", "i-node01", args(nothing))).expect("an event");
    let AgentEvent::KernelTerminated {
        generation, stats, ..
    } = &read
    else {
        panic!("{read:?}")
    };
    assert_eq!((*generation, stats), (None, &None));
}

proptest! {
    #[test]
    fn arbitrary_frames_never_panic(
        name in prop_oneof!["[a-z_]{0,20}", Just("instance_heartbeat".to_owned()), Just("kernel_terminated".to_owned())],
        agent in "[a-z]{0,70}",
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        if let Ok((agent, event)) = event::decode(&frames(&name, &agent, bytes)) {
            prop_assert_eq!(event::decode(&event::encode(&agent, &event)), Ok((agent, event)));
        }
    }
}

#[tokio::test]
async fn managers_of_one_host_share_an_address() {
    let first = EventReceiver::bind(loopback(), ReceiverOptions::default())
        .await
        .expect("a port");
    let address = first.local_addr().expect("an address");
    EventReceiver::bind(address, ReceiverOptions::default())
        .await
        .expect("the same port");
}

#[tokio::test]
async fn sources_that_are_not_checked_may_be_elsewhere() {
    let options = ReceiverOptions {
        check_sources: false,
        ..ReceiverOptions::default()
    };
    let mut receiving = Receiving::start(options).await;
    let sender = EventSender::connect(agent(), endpoint(receiving.address), link_options());
    let event = heartbeat("tcp://192.0.2.1:6001");
    sender.send(&event).await;
    let received = soon(receiving.events.recv()).await.expect("an event");
    assert_eq!(received.event, event);
}
