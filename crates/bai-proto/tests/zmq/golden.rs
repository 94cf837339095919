//! The bytes of the original, in both directions. `golden/vectors.txt` and `golden/recorded.txt` are calls with replies,
//! `golden/events.txt` events.

use std::sync::Arc;

use bai_model::AgentId;
use bai_proto::agent::{AgentRpc, RunStatus};
use bai_proto::event::{self, AgentEvent};
use bai_proto::msgpack;
use bai_proto::rpc::{Call, Reply, Request, Sender, ZmqAgent};
use bai_proto::zmtp::{AllowList, Connection, Incoming, Listener, ListenerOptions, Message, SocketType};
use bytes::Bytes;
use rmpv::Value;
use tokio_util::sync::CancellationToken;

use crate::support::{
    LIMITS, Raw, Serving, agent_options, endpoint, kernel, loopback, query, server_options, soon,
};

const SENDER: Sender = Sender {
    pid: 0x72db,
    rnd: 0x6304,
    timestamp: 0.0,
};

/// A call and what the original answered.
#[derive(Clone, Debug, Default)]
struct Exchange {
    title: String,
    header: Bytes,
    name: Bytes,
    args: Bytes,
    kwargs: Bytes,
    /// Whether it is an error, and the body.
    answer: Option<(bool, Bytes)>,
}

impl Exchange {
    fn frames(&self) -> Message {
        vec![
            self.header.clone(),
            self.name.clone(),
            self.args.clone(),
            self.kwargs.clone(),
        ]
    }

    fn request(&self) -> Request {
        Request::decode(self.frames()).expect(&self.title)
    }

    fn call(&self) -> Option<Call> {
        let request = self.request();
        Call::decode(&request.function, &request.args, &request.kwargs).ok()
    }

    fn function(&self) -> &str {
        str::from_utf8(&self.name).expect("a name")
    }
}

fn exchanges() -> Vec<Exchange> {
    let texts = [
        include_str!("../golden/vectors.txt"),
        include_str!("../golden/recorded.txt"),
    ];
    let mut exchanges: Vec<Exchange> = Vec::new();
    for line in texts.iter().flat_map(|text| text.lines()) {
        if let Some(title) = line.strip_prefix("= ") {
            exchanges.push(Exchange {
                title: title.to_owned(),
                ..Default::default()
            });
        }
        let (Some(exchange), Some((key, digits))) = (exchanges.last_mut(), line.split_once(' ')) else {
            continue;
        };
        let bytes = || Bytes::from(hex::decode(digits).expect("digits"));
        match key {
            "header" => exchange.header = bytes(),
            "name" => exchange.name = bytes(),
            "args" => exchange.args = bytes(),
            "kwargs" => exchange.kwargs = bytes(),
            "reply" | "error" => exchange.answer = Some((key == "error", bytes())),
            _ => {}
        }
    }
    assert!(exchanges.len() > 60, "{} exchanges", exchanges.len());
    exchanges
}

/// Those whose arguments a manager of ours writes otherwise, though they mean the same.
fn is_written_otherwise(exchange: &Exchange) -> bool {
    let args = msgpack::decode(&exchange.args).expect("arguments");
    let has_absent_command = args[5]
        .as_map()
        .is_some_and(|map| map.iter().any(|(_, value)| value.is_nil()));
    // An integer for a time, and modes that no manager sends: the vectors tell their cases apart by them.
    let has_integer = args[6].is_i64();
    let is_real = matches!(args[3].as_str(), Some("query" | "batch" | "input" | "continue"));
    has_absent_command || has_integer || !is_real
}

#[test]
fn a_manager_sends_what_the_original_sent() {
    let mut compared = 0;
    for exchange in exchanges() {
        let request = exchange.request();
        assert_eq!(
            request.encode(SENDER)[1..],
            exchange.frames()[1..],
            "{}",
            exchange.title
        );
        assert_eq!(
            request.encode(SENDER)[0][..8],
            [&[0xdb, 0x72, 4, 0x63][..], &exchange.header[4..8]].concat()
        );
        let Some(call) = exchange.call() else { continue };
        let is_execute = exchange.function() == "execute";
        if exchange.function() == "get_completions" || (is_execute && is_written_otherwise(&exchange)) {
            continue;
        }
        let args = msgpack::encode(&Value::Array(call.args()));
        assert_eq!(
            hex::encode(args),
            hex::encode(&exchange.args),
            "{}",
            exchange.title
        );
        compared += 1;
    }
    assert!(compared > 45, "{compared}");
}

#[test]
fn refusals_are_worded_as_the_original_words_them() {
    let mut compared = Vec::new();
    for exchange in exchanges() {
        let request = exchange.request();
        let Err(refusal) = Call::decode(&request.function, &request.args, &request.kwargs) else {
            continue;
        };
        let reply = Reply {
            id: request.id,
            answer: Err(refusal),
        };
        let (is_error, body) = exchange.answer.clone().expect(&exchange.title);
        assert!(is_error, "{}", exchange.title);
        let frames = reply.encode(vec![], SENDER);
        assert_eq!(frames[0].len(), 17);
        assert_eq!((&frames[0][4..8], frames[0][16]), (&exchange.header[4..8], 1));
        assert_eq!(frames[1], body, "{}", exchange.title);
        compared.push(exchange.title);
    }
    // Ids 8, 11 and 16 of the specification; what a manager of 19.06 does wrong otherwise (13, 14) works here.
    assert_eq!(compared.len(), 3, "{compared:?}");
}

#[test]
fn an_unknown_function_and_a_wrong_arity_are_refused_as_in_the_original() {
    let id = Value::from("x");
    let refusal = |function: &str, args: &[Value]| {
        let refusal = Call::decode(function, args, &[]).expect_err("a refusal");
        (refusal.exception, refusal.repr)
    };
    assert_eq!(
        refusal("exec_anything", &[]),
        (
            "aiozmq.rpc.base.NotFoundError".into(),
            "NotFoundError('exec_anything',)".into()
        )
    );
    assert_eq!(
        refusal("get_logs", &[id.clone(), id]),
        (
            "aiozmq.rpc.base.ParametersError".into(),
            "ParametersError(\"TypeError('too many positional arguments',)\",)".into()
        )
    );
    assert_eq!(
        refusal("get_logs", &[]).1,
        "ParametersError('TypeError(\"missing a required argument: \\'kid\\'\",)',)"
    );
}

/// A ROUTER that answers each call as the original did, and two agents between it and whoever calls: first a client of it,
/// then a server of that.
struct Replay {
    _stop: tokio_util::sync::DropGuard,
    client: Arc<ZmqAgent>,
    server: Serving,
}

impl Replay {
    async fn start(exchanges: Vec<Exchange>) -> Self {
        let options = ListenerOptions {
            allow: AllowList::default(),
            max_peers: 4,
            limits: LIMITS,
            tls: None,
            is_shared: false,
        };
        let listener = Listener::bind(loopback(), SocketType::Router, options)
            .await
            .expect("a port");
        let address = listener.local_addr().expect("an address");
        let stop = CancellationToken::new();
        let token = stop.clone();
        let exchanges = Arc::new(exchanges);
        drop(tokio::spawn(async move {
            let serve = move |connection| answer_as_recorded(connection, Arc::clone(&exchanges));
            listener.run(&token, serve).await;
        }));
        let client = Arc::new(ZmqAgent::connect(endpoint(address), agent_options()));
        let agent: Arc<dyn AgentRpc> = client.clone();
        Self {
            _stop: stop.drop_guard(),
            client,
            server: Serving::start(agent, server_options()).await,
        }
    }
}

async fn answer_as_recorded(mut connection: Connection, exchanges: Arc<Vec<Exchange>>) {
    while let Ok(Some(incoming)) = connection.reader.next().await {
        let Incoming::Message(message) = incoming else {
            continue;
        };
        let request = Request::decode(message).expect("a request");
        let call = Call::decode(&request.function, &request.args, &request.kwargs).expect("a call");
        let found = exchanges
            .iter()
            .find(|exchange| exchange.call().as_ref() == Some(&call));
        let (is_error, body) = found
            .and_then(|exchange| exchange.answer.clone())
            .expect("a recorded call");
        let mut header = vec![0; 17];
        header[4..8].copy_from_slice(&request.id.to_le_bytes());
        header[16] = u8::from(is_error);
        connection
            .writer
            .send(&[header.into(), body])
            .await
            .expect("a reader");
    }
}

/// The body without what is left out on purpose.
fn without_resource_spec(body: &[u8]) -> Vec<u8> {
    let mut value = msgpack::decode(body).expect("a body");
    if let Value::Map(entries) = &mut value {
        entries.retain(|(key, _)| key.as_str() != Some("resource_spec"));
        // A restart names the container first, a creation last.
        entries.sort_by_key(|(key, _)| key.as_str() == Some("container_id"));
    }
    msgpack::encode(&value)
}

#[tokio::test]
async fn answers_are_understood_and_given_as_the_original_gave_them() {
    let exchanges = exchanges();
    let replay = Replay::start(exchanges.clone()).await;
    let mut manager = replay.server.dealer().await;
    let mut compared = 0;
    for exchange in &exchanges {
        let is_kept = match exchange.title.as_str() {
            // Its reply has not all members that an agent's has.
            title if title.starts_with("2:") => false,
            // A handler that says nothing says nothing here either, see `faults`.
            title if title.starts_with("17:") => false,
            // Output by stream, which a manager of ours does not ask for.
            _ if matches!(exchange.call(), Some(Call::Execute { api_version: 1, .. })) => false,
            _ => !matches!(
                exchange.function(),
                "ping" | "clean_all_kernels" | "get_completions"
            ),
        };
        // The same call may have been answered in several ways over time; the first counts.
        let first = exchanges
            .iter()
            .find(|other| exchange.call().is_some() && other.call() == exchange.call());
        if !is_kept || first.is_some_and(|first| first.title != exchange.title) {
            continue;
        }
        manager.0.writer.send(&exchange.frames()).await.expect("a server");
        let reply = manager.recv().await.expect("a reply");
        let (is_error, body) = exchange.answer.clone().expect(&exchange.title);
        assert_eq!(reply.len(), 2, "{}", exchange.title);
        assert_eq!(reply[0][4..8], exchange.header[4..8]);
        assert_eq!(
            reply[0][16],
            u8::from(is_error),
            "{}: {:?}",
            exchange.title,
            msgpack::decode(&reply[1])
        );
        assert_eq!(
            hex::encode(&reply[1]),
            hex::encode(without_resource_spec(&body)),
            "{}",
            exchange.title
        );
        compared += 1;
    }
    assert!(compared > 45, "{compared}");
}

#[tokio::test]
async fn replies_are_read_into_types() {
    let exchanges = exchanges();
    let replay = Replay::start(exchanges).await;
    let mut request = query("print('hi')");
    let reply = soon(replay.client.execute(kernel(), request.clone()));
    let reply = reply.await.expect("a reply").expect("a result");
    assert_eq!((reply.status, reply.exit_code), (RunStatus::Finished, Some(0)));
    assert_eq!(reply.console.len(), 2);
    (request.code, request.mode, request.flush_timeout) =
        (String::new(), bai_proto::agent::ExecuteMode::Continue, None);
    for (mode, expected) in [
        ("none", "Ok(None)"),
        ("timeout", "Err(Timeout)"),
        (
            "assert",
            "Err(Exception { kind: \"AssertionError\", args: [\"malformed upload filename and path.\"] })",
        ),
    ] {
        // The vectors are told apart by modes that no manager sends.
        let args = vec![
            Value::from(3),
            Value::from(kernel().to_string()),
            Value::from("run1"),
            Value::from(mode),
            Value::from(""),
            Value::Map(vec![]),
            Value::Nil,
        ];
        assert!(Call::decode("execute", &args, &[]).is_ok());
        let read = answered_with(mode).await;
        assert_eq!(format!("{read:?}"), expected);
    }
}

/// What a client makes of the vector that has `mode`.
async fn answered_with(
    mode: &str,
) -> Result<Option<bai_proto::agent::ExecuteReply>, bai_proto::agent::AgentError> {
    let has_mode = |exchange: &Exchange| {
        let args = msgpack::decode(&exchange.args).expect("arguments");
        exchange.function() == "execute" && args[3].as_str() == Some(mode)
    };
    let only = exchanges().into_iter().filter(has_mode).collect::<Vec<_>>();
    let replay = Replay::start(only.clone()).await;
    let Some(Call::Execute { kernel, request, .. }) = only[0].call() else {
        panic!("a call of execute")
    };
    soon(replay.client.execute(kernel, request)).await
}

#[test]
fn events_are_read_and_written_as_the_original_writes_them() {
    let mut heartbeats = 0;
    let lines = include_str!("../golden/events.txt").lines();
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let frames: Message = line
            .split(' ')
            .map(|part| hex::decode(part).expect("digits").into())
            .collect();
        let (agent, read) = event::decode(&frames).expect(line);
        assert_eq!(
            agent,
            AgentId(String::from_utf8(frames[1].to_vec()).expect("text"))
        );
        let written = event::encode(&agent, &read);
        if let AgentEvent::InstanceHeartbeat(info) = &read {
            heartbeats += 1;
            assert!(!info.installed.is_empty());
            assert!(info.installed.iter().all(|image| image.id.starts_with("sha256:")));
            assert_eq!(event::decode(&written), Ok((agent, read.clone())));
            let plain = |frames: &Message| without_images(&frames[2]);
            assert_eq!(plain(&written), plain(&frames));
        } else {
            assert_eq!(written, frames, "{line}");
        }
    }
    assert_eq!(heartbeats, 2);
}

/// The list of images may be compressed in several ways; the types read from it are compared instead.
fn without_images(args: &[u8]) -> Value {
    let mut args = msgpack::decode(args).expect("arguments");
    if let Value::Array(items) = &mut args
        && let Some(Value::Map(entries)) = items.first_mut()
    {
        assert_eq!(entries[6].0.as_str(), Some("images"));
        entries[6].1 = Value::Nil;
    }
    args
}

#[tokio::test]
async fn the_first_version_of_the_api_gets_output_by_stream() {
    let server = Serving::start(Arc::new(crate::support::Stub::default()), server_options()).await;
    let mut manager = server.dealer().await;
    let mut compared = 0;
    for exchange in exchanges() {
        let Some(Call::Execute {
            api_version: 1,
            request,
            ..
        }) = exchange.call()
        else {
            continue;
        };
        manager.0.writer.send(&exchange.frames()).await.expect("a server");
        let reply = manager.recv().await.expect("a reply");
        let (_, body) = exchange.answer.expect("an answer");
        let (ours, theirs) = (
            msgpack::decode(&reply[1]).expect("ours"),
            msgpack::decode(&body).expect("theirs"),
        );
        let keys = |value: &Value| {
            let entries = value.as_map().expect("a map").iter();
            entries.map(|(key, _)| key.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(keys(&ours), keys(&theirs));
        let stdout = ours
            .as_map()
            .expect("a map")
            .iter()
            .find(|(key, _)| key.as_str() == Some("stdout"));
        assert_eq!(
            stdout.and_then(|(_, text)| text.as_str()),
            Some(request.code.as_str())
        );
        compared += 1;
    }
    assert!(compared > 0);
}

#[tokio::test]
async fn parts_before_the_request_come_back_and_names_may_be_used() {
    let server = Serving::start(Arc::new(crate::support::Stub::default()), server_options()).await;
    let mut requester = Raw::dial(server.address, SocketType::Dealer).await;
    let header = [0xdb, 0x72, 4, 0x63, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    requester
        .send(&[b"", &header, b"ping", &[0x90], b"\x81\xa3msg\xa1x"])
        .await;
    let reply = requester.recv().await.expect("a reply");
    assert_eq!(reply.len(), 3);
    assert!(reply[0].is_empty());
    assert_eq!(
        (&reply[1][4..8], reply[1][16], &reply[2][..]),
        (&[9, 0, 0, 0][..], 0, &b"\xa1x"[..])
    );
}
