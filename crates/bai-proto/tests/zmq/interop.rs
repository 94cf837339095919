//! aiozmq and pyzmq on the other side: as old as 19.06, and of today. `cargo xtask test` makes their environments.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use bai_model::AgentId;
use bai_proto::agent::{AgentError, AgentRpc, ConsoleItem, ImageConfig, KernelConfig, Mount, RegistryConfig};
use bai_proto::event::{AgentEvent, EventSender, ReceiverOptions};
use bai_proto::pty::{Terminal, TerminalServer};
use bai_proto::rpc::ZmqAgent;
use bai_proto::zmtp::AllowList;
use bytes::Bytes;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio_util::sync::CancellationToken;

use crate::events::{Receiving, heartbeat};
use crate::support::{
    Counter, Serving, Stub, agent_options, kernel, link_options, loopback, query, server_options, soon,
};

#[expect(clippy::print_stdout, reason = "the test command counts what is skipped")]
/// The Pythons that have the libraries, with the names of their environments.
fn pythons() -> Vec<(String, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/interop");
    let python = |name: &str| {
        let python = root.join(name).join("bin/python");
        let is_there = python.exists();
        if !is_there {
            println!(
                "SKIPPED: interoperation with aiozmq ({name}), because target/interop/{name} has not been made; \
                 cargo xtask test makes it where there is a Python for it"
            );
        }
        is_there.then(|| (name.to_owned(), python))
    };
    ["19.06", "current"].into_iter().filter_map(python).collect()
}

/// A script in Python, killed when dropped.
struct Peer {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Peer {
    fn start(python: &Path, args: &[&str]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/interop/peer.py");
        let mut process = Command::new(python)
            .arg("-u")
            .arg(script)
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("a Python");
        let stdout = process.stdout.take().expect("a pipe");
        let lines = BufReader::new(stdout).lines();
        Self { process, lines }
    }

    async fn line(&mut self) -> String {
        let line = soon(self.lines.next_line()).await.expect("a pipe");
        line.expect("another line; the script's error is above")
    }

    /// What follows the word with which it is ready.
    async fn ready(&mut self) -> String {
        let line = self.line().await;
        line.strip_prefix("ready ").expect(&line).to_owned()
    }

    async fn ends(&mut self) {
        assert_eq!(self.line().await, "end");
        assert!(soon(self.process.wait()).await.expect("a process").success());
    }
}

fn config() -> KernelConfig {
    KernelConfig {
        image: ImageConfig {
            canonical: "index.docker.io/lablup/python:3.6".to_owned(),
            digest: "sha256:abc".to_owned(),
            labels: [("ai.backend.kernelspec".to_owned(), "1".to_owned())].into(),
            registry: RegistryConfig::default(),
        },
        resource_slots: bai_model::ResourceSlot::from_stored(&json!({ "cpu": "1", "mem": "268435456" })).0,
        idle_timeout: 600,
        mounts: vec![Mount {
            name: "data".to_owned(),
            host: "local".to_owned(),
            folder: "0".repeat(32),
            writable: false,
        }],
        environ: [("A".to_owned(), "b".to_owned())].into(),
    }
}

#[tokio::test]
async fn an_agent_of_aiozmq_is_driven() {
    for (name, python) in pythons() {
        let mut peer = Peer::start(&python, &["agent", "tcp://127.0.0.1:*"]);
        let endpoint = peer.ready().await;
        let client = Arc::new(ZmqAgent::connect(
            endpoint.parse().expect(&endpoint),
            agent_options(),
        ));
        soon(client.ping()).await.expect(&name);
        let created = soon(client.create_kernel(kernel(), config())).await.expect(&name);
        assert_eq!((created.kernel_host, created.service_ports.len()), (None, 1));
        let line = peer.line().await;
        assert!(
            line.starts_with("create index.docker.io/lablup/python:3.6 268435456 "),
            "{line}"
        );
        let reply = soon(client.execute(kernel(), query("\u{2603}")))
            .await
            .expect(&name)
            .expect("a result");
        assert_eq!(reply.console[0], ConsoleItem::Stdout("\u{2603}".to_owned()));
        assert_eq!(soon(client.execute(kernel(), query("none"))).await, Ok(None));
        // Since Python 3.11 it is the same class as the built-in one, which a 19.06 manager does not take for a time-out.
        let timeout = match name.as_str() {
            "19.06" => AgentError::Timeout,
            _ => AgentError::Exception {
                kind: "TimeoutError".to_owned(),
                args: Vec::new(),
            },
        };
        assert_eq!(
            soon(client.execute(kernel(), query("timeout"))).await,
            Err(timeout)
        );
        let custom = soon(client.execute(kernel(), query("custom")))
            .await
            .expect_err("an error");
        assert_eq!(
            custom.repr(),
            "InsufficientResource('not enough', 'cpu', 'cpu', '8', '2')"
        );
        let key = soon(client.execute(kernel(), query("key"))).await;
        assert_eq!(key, Err(AgentError::exception("KeyError", kernel().to_string())));
        soon(client.upload_file(kernel(), "a.txt".into(), Bytes::from(vec![0; 1 << 20])))
            .await
            .expect(&name);
        assert_eq!(peer.line().await, "upload a.txt 1048576");
        let archive = soon(client.download_file(kernel(), "a".into()))
            .await
            .expect(&name);
        assert_eq!(archive.len(), 500_000);
        assert_eq!(
            soon(client.get_logs(kernel())).await,
            Ok("\u{2603}\r\n".to_owned())
        );
        let stats = soon(client.destroy_kernel(kernel())).await.expect(&name);
        assert_eq!(
            stats,
            Some(json!({ "mem": { "current": "1", "pct": null }, "version": 2 }))
        );
        // What only agents of ours have.
        let listed = soon(client.list_kernels()).await.expect_err("no such function");
        assert!(listed.is_not_provided(), "{listed}");
        assert_eq!(
            soon(client.get_completions(kernel(), "pri".into(), json!({}))).await,
            Ok(vec![])
        );

        // It dies in the middle of a call, and another comes at the same address.
        let lost = soon(client.execute(kernel(), query("exit")))
            .await
            .expect_err("no answer");
        assert!(lost.repr().starts_with("ConnectionError("), "{lost}");
        _ = soon(peer.process.wait()).await;
        let mut peer = Peer::start(&python, &["agent", &endpoint]);
        peer.ready().await;
        soon(client.reset_agent()).await.expect(&name);
        assert_eq!(peer.line().await, "reset");
    }
}

#[tokio::test]
async fn a_manager_of_aiozmq_is_served() {
    for (name, python) in pythons() {
        let stub = Arc::new(Stub::default());
        let server = Serving::start(stub.clone(), server_options()).await;
        let mut peer = Peer::start(&python, &["manager", &format!("tcp://{}", server.address)]);
        peer.ends().await;
        let noted = stub.noted();
        assert_eq!(noted[0], "create index.docker.io/lablup/python:3.6", "{name}");
        assert!(
            noted.contains(&"upload a.txt 0102".to_owned()),
            "{name}: {noted:?}"
        );
        assert_eq!(noted.last().map(String::as_str), Some("reset"));
    }
}

#[tokio::test]
async fn events_of_a_python_agent_are_received() {
    for (name, python) in pythons() {
        let mut receiving = Receiving::start(ReceiverOptions::default()).await;
        let address = format!("tcp://{}", receiving.address);
        let mut peer = Peer::start(&python, &["push", &address, "tcp://127.0.0.1:6001"]);
        let AgentEvent::InstanceHeartbeat(info) = receiving.next().await else {
            panic!("{name}: a heartbeat comes first")
        };
        assert_eq!(info.id, AgentId::from("i-python"));
        assert_eq!(
            info.available_slots.to_json(),
            json!({ "cpu": "8", "mem": "16777216000" })
        );
        assert_eq!(info.installed[0].repo_tag, "lablup/python:3.6");
        let agent = AgentId::from("i-python");
        let rest = [
            AgentEvent::InstanceStarted { agent: agent.clone() },
            AgentEvent::KernelPulling {
                kernel: kernel(),
                image: "index.docker.io/lablup/python:3.6".to_owned(),
            },
            AgentEvent::KernelTerminated {
                kernel: kernel(),
                reason: "self-terminated".to_owned(),
                generation: None,
                stats: None,
            },
            AgentEvent::InstanceTerminated {
                agent,
                reason: "shutdown".to_owned(),
            },
        ];
        for expected in rest {
            assert_eq!(receiving.next().await, expected, "{name}");
        }
        peer.ends().await;
    }
}

#[tokio::test]
async fn events_are_received_by_a_python_manager() {
    for (name, python) in pythons() {
        let mut peer = Peer::start(&python, &["pull"]);
        let endpoint = peer.ready().await;
        let agent = AgentId::from("i-node01");
        let sender = EventSender::connect(agent.clone(), endpoint.parse().expect(&endpoint), link_options());
        sender.send(&heartbeat("tcp://127.0.0.1:6001")).await;
        sender.send(&AgentEvent::KernelStarted { kernel: kernel() }).await;
        let end = AgentEvent::KernelTerminated {
            kernel: kernel(),
            reason: "idle-timeout".to_owned(),
            generation: Some(2),
            stats: None,
        };
        sender.send(&end).await;
        let left = AgentEvent::InstanceTerminated {
            agent,
            reason: "shutdown".to_owned(),
        };
        sender.send(&left).await;
        let beat = peer.line().await;
        let slots = "[('cpu', ('count', '8')), ('mem', ('bytes', '16777216000'))]";
        let start = format!("instance_heartbeat i-node01 ('127.0.0.1', 'tcp://127.0.0.1:6001', {slots}, ");
        assert!(beat.starts_with(&start), "{beat}");
        if name == "current" {
            assert!(
                beat.ends_with("(('lablup/python:3.6-ubuntu18.04', 'sha256:0123abcd'),))"),
                "{beat}"
            );
        }
        assert_eq!(
            peer.line().await,
            format!("kernel_started i-node01 ('{}',)", kernel())
        );
        let end = peer.line().await;
        let start = format!("kernel_terminated i-node01 ('{}', 'idle-timeout', ", kernel());
        assert!(end.starts_with(&start), "{end}");
        assert_eq!(peer.line().await, "instance_terminated i-node01 ('shutdown',)");
    }
}

#[tokio::test]
async fn a_terminal_of_pyzmq_is_typed_on_and_shown() {
    for (_, python) in pythons() {
        let mut peer = Peer::start(&python, &["terminal"]);
        let ports = peer.ready().await;
        let (typed, printed) = ports.split_once(' ').expect(&ports);
        let port = |text: &str| text.parse().expect("a port");
        let mut terminal = Terminal::connect(
            "127.0.0.1",
            port(typed),
            port(printed),
            Arc::new(Counter::default()),
        );
        soon(terminal.ready()).await;
        // Its PUB may not have read our subscription yet.
        let shown = soon(async {
            loop {
                terminal.send(Bytes::from_static(b"ls\n")).await;
                tokio::select! {
                    shown = terminal.recv() => return shown,
                    () = tokio::task::yield_now() => {}
                }
            }
        });
        assert_eq!(shown.await, Some(Bytes::from_static(b"LS\n")));
    }
}

#[tokio::test]
async fn a_gateway_of_pyzmq_types_and_is_shown() {
    for (_, python) in pythons() {
        let (server, mut typed, printed) = TerminalServer::bind(loopback(), loopback(), AllowList::default())
            .await
            .expect("ports");
        let (input, output) = server.local_addrs().expect("addresses");
        let stop = CancellationToken::new();
        let task = tokio::spawn(server.run(stop.clone()));
        let ports = [input.port().to_string(), output.port().to_string()];
        let mut peer = Peer::start(&python, &["gateway", &ports[0], &ports[1]]);
        let echo = async {
            while let Some(bytes) = typed.recv().await {
                // Nobody may be there to see it yet.
                _ = printed.send(bytes.to_ascii_uppercase().into());
            }
        };
        let shown = tokio::select! {
            line = peer.line() => line,
            () = echo => panic!("the terminal ended"),
        };
        assert_eq!(shown, "b'LS\\n'");
        peer.ends().await;
        stop.cancel();
        soon(task).await.expect("an orderly end");
    }
}

#[tokio::test]
async fn the_heartbeats_of_libzmq_are_answered() {
    for (_, python) in pythons() {
        let mut receiving = Receiving::start(ReceiverOptions::default()).await;
        let mut peer = Peer::start(&python, &["pinger", &format!("tcp://{}", receiving.address)]);
        assert_eq!(
            receiving.next().await,
            AgentEvent::KernelStarted { kernel: kernel() }
        );
        peer.ends().await;
    }
}
