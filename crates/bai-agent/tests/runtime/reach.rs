//! Terminals and service ports of a whole agent, on whichever runtime.

use bai_agent::Images;
use bai_agent::runtime::Runtime;
use bai_proto::agent::{AgentRpc, ServiceStart};
use bai_proto::event::AgentImage;
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::site::{Site, config, new_id, printed, soon, until_shown};

/// A shell that is typed into, resized, ended and followed by another, and found again by the next agent.
pub async fn terminal(dir: &Path, runtime: Arc<dyn Runtime>, images: Images, image: &AgentImage) {
    let site = Site::start(dir, runtime.clone(), images.clone()).await;
    let id = new_id();
    let created = soon(site.agent.create_kernel(id, config(image)))
        .await
        .expect("a kernel");
    let reply = site.query(id, "%resize 40 123").await;
    assert_eq!(printed(&reply), "the terminal has 40 rows and 123 columns\n");
    let mut terminal = site.terminal(&created);
    soon(terminal.ready()).await;
    // The words are not those that are typed, which are shown, too.
    let type_in = |text: &str| Bytes::from(text.to_owned());
    terminal
        .send(type_in("mine=7; echo first-$((6*7)); pwd; id -u\n"))
        .await;
    let seen = until_shown(&mut terminal, "first-42").await;
    assert!(!seen.contains("not found"), "{seen}");
    terminal
        .send(type_in("echo size-$(stty size || echo no stty)-\n"))
        .await;
    let seen = until_shown(&mut terminal, "-\r\n").await;
    assert!(
        seen.contains("size-40 123-") || seen.contains("no stty"),
        "{seen}"
    );
    assert_eq!(printed(&site.query(id, "%ping").await), "pong!\n");

    // The next agent finds the same shell.
    drop(terminal);
    let site = site.crash(dir, runtime, images).await;
    let mut terminal = site.terminal(&created);
    soon(terminal.ready()).await;
    terminal.send(type_in("echo again-$mine-$mine\n")).await;
    until_shown(&mut terminal, "again-7-7").await;

    // What ends is followed by another.
    terminal.send(type_in("exit\n")).await;
    until_shown(&mut terminal, "Restarting...").await;
    terminal
        .send(type_in("echo other-${mine:-nothing}-$((1+1))\n"))
        .await;
    until_shown(&mut terminal, "other-nothing-2").await;
    site.agent.destroy_kernel(id).await.expect("destroyed");
}

/// Connections reach what listens inside the session, and nothing else.
pub async fn ports(dir: &Path, runtime: Arc<dyn Runtime>, images: Images, image: &AgentImage) {
    let site = Site::start(dir, runtime.clone(), images.clone()).await;
    let id = new_id();
    let mut wanted = config(image);
    wanted.idle_timeout = 60;
    wanted.image.labels.insert(
        "ai.backend.service-ports".to_owned(),
        "echo:tcp:7000,none:tcp:7001".to_owned(),
    );
    let created = soon(site.agent.create_kernel(id, wanted.clone()))
        .await
        .expect("a kernel");
    let [echo, none] = created.service_ports.as_slice() else {
        panic!("{created:?}")
    };
    let (echo, none) = (echo.host_port, none.host_port);
    // Where nothing listens, a connection is refused as far as one that was accepted can be.
    let ended = soon(site.connect(none).await.read(&mut [0])).await;
    assert_eq!(
        ended.expect_err("reset").kind(),
        std::io::ErrorKind::ConnectionReset
    );

    let server = "import socketserver, threading\n\
        class Echo(socketserver.StreamRequestHandler):\n\
        \x20   def handle(self):\n\
        \x20       whole = self.rfile.read()\n\
        \x20       self.wfile.write(whole[::-1])\n\
        socketserver.ThreadingTCPServer.request_queue_size = 100\n\
        server = socketserver.ThreadingTCPServer(('127.0.0.1', 7000), Echo)\n\
        threading.Thread(target=server.serve_forever, daemon=True).start()\n";
    let reply = site.query(id, server).await;
    assert_eq!(printed(&reply), "");
    // Half of a connection ends, the other half brings the answer.
    let mut many = Vec::new();
    for number in 0..20_u8 {
        let mut stream = site.connect(echo).await;
        let sent = vec![number; 1 << 20];
        many.push(tokio::spawn(async move {
            stream.write_all(&sent).await.expect("sent");
            stream.shutdown().await.expect("half closed");
            let mut received = Vec::new();
            stream.read_to_end(&mut received).await.expect("received");
            assert!(received == sent);
        }));
    }
    for one in many {
        soon(one).await.expect("it came back");
    }

    // Traffic is use: what is used does not end, what is not does.
    let mut stream = site.connect(echo).await;
    for _ in 0..4 {
        site.clock.advance(40);
        stream.write_all(b"x").await.expect("sent");
        // Until the agent has seen it.
        let mut other = site.connect(echo).await;
        other.write_all(b"y").await.expect("sent");
        other.shutdown().await.expect("half closed");
        soon(other.read_to_end(&mut Vec::new())).await.expect("answered");
    }
    assert_eq!(site.agent.list_kernels().await, Ok(vec![id]));

    // The next agent listens on the same ports; a restart changes them.
    let mut site = site.crash(dir, runtime, images).await;
    let mut stream = site.connect(echo).await;
    stream.write_all(b"ab").await.expect("sent");
    stream.shutdown().await.expect("half closed");
    let mut received = Vec::new();
    soon(stream.read_to_end(&mut received)).await.expect("received");
    assert_eq!(received, b"ba");
    let restarted = soon(site.agent.restart_kernel(id, wanted))
        .await
        .expect("restarted");
    assert_ne!(restarted.service_ports[0].host_port, echo);
    site.query(id, server).await;
    let mut stream = site.connect(restarted.service_ports[0].host_port).await;
    stream.write_all(b"cd").await.expect("sent");
    stream.shutdown().await.expect("half closed");
    let mut received = Vec::new();
    soon(stream.read_to_end(&mut received)).await.expect("received");
    assert_eq!(received, b"dc");
    site.clock.advance(61);
    assert_eq!(site.terminated().await, (id, "idle-timeout".to_owned()));
}

/// Services start, run, die, start again, or say why they do not; a session that has a slow one goes on.
pub async fn services(dir: &Path, runtime: Arc<dyn Runtime>, images: Images, image: &AgentImage) {
    let site = Site::start(dir, runtime, images).await;
    let id = new_id();
    let mut wanted = config(image);
    let mut label = |name: &str, value: &str| wanted.image.labels.insert(name.to_owned(), value.to_owned());
    label(
        "ai.backend.service-ports",
        "web:http:8000,broken:http:8001,hangs:tcp:8002,unknown:tcp:8003,shell:pty:3000",
    );
    label(
        "bai.service.web",
        r#"echo here it is; exec "$PYTHON" -m http.server --bind 127.0.0.1 "$PORT""#,
    );
    label("bai.service.broken", "echo no such thing >&2; exit 7");
    label("bai.service.hangs", "exec sleep 1000");
    let created = soon(site.agent.create_kernel(id, wanted))
        .await
        .expect("a kernel");
    let port = |name: &str| {
        let port = created.service_ports.iter().find(|port| port.name == name);
        port.expect("declared").host_port
    };
    let start = async |name: &str| {
        let started = site
            .agent
            .start_service(id, name.to_owned(), serde_json::json!({}));
        soon(started).await.expect("answered")
    };
    let failed = |why: &str| ServiceStart::Failed(why.to_owned());

    // One that does not get ready holds up neither other services nor runs.
    let hangs = start("hangs");
    tokio::pin!(hangs);
    let others = async {
        assert_eq!(start("web").await, ServiceStart::Started);
        assert_eq!(start("web").await, ServiceStart::Running);
        assert_eq!(printed(&site.query(id, "print(1 + 1)").await).trim(), "2");
    };
    tokio::select! {
        started = &mut hangs => panic!("{started:?}"),
        () = others => {}
    }
    site.query(id, "open('page.txt', 'w').write('hello')").await;
    assert!(get(&site, port("web"), "/page.txt").await.ends_with("hello"));
    let log = site.agent.get_logs(id).await.expect("a log");
    assert!(log.contains("here it is"), "{log}");

    assert_eq!(
        start("broken").await,
        failed("it ended (exit status: 7) before it listened on port 8001; it said: no such thing")
    );
    let ServiceStart::Failed(why) = start("unknown").await else {
        panic!("there is no such program")
    };
    assert!(why.starts_with("unsupported service"), "{why}");
    assert_eq!(start("nothing").await, failed("invalid service name"));

    // What the user has started is a service, too.
    site.query(
        id,
        "import socket; mine = socket.create_server(('127.0.0.1', 8003))",
    )
    .await;
    assert_eq!(start("unknown").await, ServiceStart::Running);

    // One that died is started again when somebody wants it.
    let kill = "import os, signal\n\
        for pid in filter(str.isdigit, os.listdir('/proc')):\n\
        \x20   try: line = open(f'/proc/{pid}/cmdline').read()\n\
        \x20   except OSError: continue\n\
        \x20   if 'http.server' in line: os.kill(int(pid), signal.SIGKILL)\n";
    assert_eq!(printed(&site.query(id, kill).await), "");
    soon(async { while start("web").await == ServiceStart::Running {} }).await;
    assert!(get(&site, port("web"), "/page.txt").await.ends_with("hello"));

    // A terminal for each connection.
    assert_eq!(start("shell").await, ServiceStart::Started);
    let mut shell = site.connect(port("shell")).await;
    shell
        .write_all(b"echo shell-$((6*7)); exit\n")
        .await
        .expect("sent");
    let mut said = Vec::new();
    soon(shell.read_to_end(&mut said))
        .await
        .expect("it ends with its program");
    assert!(String::from_utf8_lossy(&said).contains("shell-42"));

    let ServiceStart::Failed(why) = hangs.await else {
        panic!("it cannot have started")
    };
    assert_eq!(why, "it did not listen on port 8002 within 25 s");
    site.agent.destroy_kernel(id).await.expect("destroyed");
}

async fn get(site: &Site, port: u16, path: &str) -> String {
    let mut stream = site.connect(port).await;
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = Vec::new();
    soon(stream.read_to_end(&mut answer)).await.expect("answered");
    String::from_utf8_lossy(&answer).into_owned()
}
