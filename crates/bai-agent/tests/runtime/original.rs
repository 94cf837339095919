//! Sessions that an agent of 19.06 has started, with the published runner inside, under an agent of ours.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bai_agent::Images;
use bai_agent::runtime::docker::{DockerRuntime, Engine, Options};
use bai_agent::runtime::{Inherited, KernelSpec, RunnerStream, Runtime, RuntimeError, Sample, Started};
use bai_model::{KernelId, RunId};
use bai_proto::agent::{
    AgentRpc, BatchOptions, ConsoleItem, ExecuteMode, ExecuteReply, ExecuteRequest, ImageConfig,
    KernelConfig, RunStatus, ServiceStart,
};
use bai_proto::descriptor::Descriptor;
use bai_proto::runner::{Frame, Record, Request};
use bai_proto::sandbox::Refusal;
use bai_proto::zmtp::{
    AllowList, Connection, Endpoint, Incoming, Limits, Link, LinkOptions, Listener, ListenerOptions,
    SocketType,
};
use bai_testkit::services::Docker;
use bai_testkit::services::original::{IMAGE, OriginalAgent, OriginalSession};
use bytes::Bytes;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::docker::runner;
use crate::site::{Counter, Site, new_id, printed, soon};

#[test]
fn sessions_of_an_agent_of_19_06_go_on_under_ours() {
    const WHAT: &str = "sessions of an agent of 19.06";
    let docker = match Docker::start_publishing() {
        Ok(docker) => docker,
        Err(missing) => return println!("SKIPPED: {WHAT}: {missing}"),
    };
    let dir = tempfile::tempdir().expect("a folder");
    // Users of sessions have to get through.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).expect("set");
    let original = match OriginalAgent::on(&docker, &dir.path().join("scratch")) {
        Ok(original) => original,
        Err(missing) => return println!("SKIPPED: {WHAT}: {missing}"),
    };
    if runner().is_none() {
        return;
    }
    docker.inside(|| {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(take_over(&docker, &original, dir.path()));
    });
}

/// The recorded transcripts of the embedded runner 1.5.0 (`agent-protocol.md` 6.3), which is in no package: what the
/// published one does not say, or says otherwise.
#[tokio::test]
async fn what_the_embedded_runner_says_is_understood() {
    let dir = tempfile::tempdir().expect("a folder");
    let played = Played::start(|request| match request {
        Request::Clean(command) if command.is_empty() => vec![("clean-finished", r#"{"exitCode": 0}"#)],
        // What tells that nothing else runs.
        Request::Build(command) if command.starts_with("echo ") => {
            vec![
                ("stdout", "bai-agent-has-taken-over\n"),
                ("build-finished", r#"{"exitCode": 0}"#),
            ]
        }
        Request::Build(_) => vec![("build-finished", r#"{"exitCode": 2}"#)],
        Request::Exec(_) => vec![("finished", r#"{"exitCode": 127}"#)],
        Request::Code(_) => vec![
            ("media", "<b>x</b>"),
            ("stdout", "2"),
            ("finished", r#"{"exitCode": 0}"#),
        ],
        Request::StartService(_) => vec![(
            "service-result",
            r#"{"status":"failed","error":"TypeError(\"'NoneType' object is not iterable\",)"}"#,
        )],
        _ => Vec::new(),
    })
    .await;
    let kernel = played.inherited.kernel;
    let config = dir.path().join("scratch").join(kernel.to_string()).join("config");
    std::fs::create_dir_all(config).expect("made");
    let site = Site::start(dir.path(), Arc::new(played), Images::Given(Vec::new())).await;

    let batch = BatchOptions {
        clean: None,
        build: Some("exit 2".to_owned()),
        exec: Some("echo never".to_owned()),
    };
    let replies = site.batch(kernel, "batch", batch).await;
    let ends: Vec<_> = replies
        .iter()
        .map(|reply| (reply.status, reply.exit_code))
        .collect();
    let expected = [
        (RunStatus::CleanFinished, Some(0)),
        (RunStatus::BuildFinished, Some(2)),
        (RunStatus::Finished, Some(127)),
    ];
    assert_eq!(ends, expected);
    let reply = site.query(kernel, "display(HTML('<b>x</b>'))").await;
    let console = [
        ConsoleItem::Html("<b>x</b>".to_owned()),
        ConsoleItem::Stdout("2".to_owned()),
    ];
    assert_eq!(reply.console, console);
    let answer = site
        .agent
        .start_service(kernel, "web".to_owned(), json!({}))
        .await
        .expect("answered");
    let failed = "TypeError(\"'NoneType' object is not iterable\",)";
    assert_eq!(answer, ServiceStart::Failed(failed.to_owned()));
}

/// A runtime with one container of another agent, whose runner is played.
#[derive(Debug)]
struct Played {
    inherited: Inherited,
    _stop: DropGuard,
}

impl Played {
    async fn start(answer: fn(&Request) -> Vec<(&'static str, &'static str)>) -> Self {
        let stop = CancellationToken::new();
        let options = ListenerOptions {
            allow: AllowList::default(),
            max_peers: 8,
            limits: Limits {
                frames: 2,
                bytes: 1 << 20,
            },
            tls: None,
            is_shared: false,
        };
        let bind = |socket| Listener::bind(([127, 0, 0, 1], 0).into(), socket, options.clone());
        let (input, output) = (
            bind(SocketType::Pull).await.expect("bound"),
            bind(SocketType::Push).await.expect("bound"),
        );
        let addresses = [&input, &output].map(|listener| listener.local_addr().expect("an address"));
        let (said, to_say) = mpsc::unbounded_channel();
        let to_say = Arc::new(tokio::sync::Mutex::new(to_say));
        let until = stop.clone();
        tokio::spawn(async move {
            let serve = move |mut connection: Connection| {
                let said = said.clone();
                async move {
                    while let Ok(Some(arrived)) = connection.reader.next().await {
                        let Incoming::Message(parts) = arrived else {
                            continue;
                        };
                        let request = Request::from_frame(Frame::from_parts(&parts).expect("two parts"));
                        for (kind, data) in answer(&request) {
                            _ = said.send([Bytes::from(kind), Bytes::from(data)]);
                        }
                    }
                }
            };
            input.run(&until, serve).await;
        });
        let until = stop.clone();
        tokio::spawn(async move {
            let serve = move |mut connection: Connection| {
                let to_say = Arc::clone(&to_say);
                async move {
                    while let Some(parts) = to_say.lock().await.recv().await {
                        connection.writer.send(&parts).await.expect("written");
                    }
                }
            };
            output.run(&until, serve).await;
        });
        let labels = [("ai.backend.service-ports".to_owned(), "web:http:8000".to_owned())];
        let ports = [
            (2000, addresses[0]),
            (2001, addresses[1]),
            (8000, ([127, 0, 0, 1], 1).into()),
        ];
        Self {
            inherited: Inherited {
                kernel: new_id(),
                container_id: "container".to_owned(),
                image: "image".to_owned(),
                labels: labels.into(),
                ports: ports.into(),
                cpu_set: vec![0],
                memory: 1 << 20,
            },
            _stop: stop.drop_guard(),
        }
    }
}

#[async_trait]
impl Runtime for Played {
    async fn start(&self, _spec: &KernelSpec) -> Result<Started, RuntimeError> {
        Err(RuntimeError::Start("nothing is started here".to_owned()))
    }

    async fn adopt(&self, spec: &KernelSpec, container_id: &str) -> Result<Option<Started>, RuntimeError> {
        assert!(!spec.runner.is_own());
        let container_id = container_id.to_owned();
        Ok(Some(Started { container_id }))
    }

    async fn inherited(&self, _scratch_root: &Path) -> Result<Vec<Inherited>, RuntimeError> {
        Ok(vec![self.inherited.clone()])
    }

    async fn connect(&self, _spec: &KernelSpec) -> Result<Box<dyn RunnerStream>, RuntimeError> {
        Err(RuntimeError::Start("it has no runner of ours".to_owned()))
    }

    async fn descriptor(&self, _spec: &KernelSpec, _wanted: Descriptor) -> std::io::Result<OwnedFd> {
        Err(std::io::Error::other("it has no runner of ours"))
    }

    async fn wait(&self, _spec: &KernelSpec, _container_id: &str) -> String {
        std::future::pending().await
    }

    async fn kill(&self, _spec: &KernelSpec, _container_id: &str) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn measure(&self, _spec: &KernelSpec, _container_id: &str) -> Option<Sample> {
        None
    }

    fn uid(&self) -> u32 {
        9001
    }

    fn refusals(&self) -> Vec<Refusal> {
        Vec::new()
    }
}

fn session(ports: [u16; 3]) -> OriginalSession {
    OriginalSession {
        kernel: new_id().to_string(),
        ports,
        folder: None,
        idle_timeout: 0,
    }
}

fn id(session: &OriginalSession) -> KernelId {
    session.kernel.parse().expect("an id")
}

async fn take_over(docker: &Docker, original: &OriginalAgent<'_>, dir: &Path) {
    let lives = OriginalSession {
        folder: Some(dir.join("data")),
        // Not in the order of the container's ports: the original takes them out of a set.
        ..session([30002, 30001, 30000])
    };
    std::fs::create_dir(dir.join("data")).expect("made");
    std::fs::write(dir.join("data/book"), "read me").expect("written");
    let (ended, removed) = (session([30010, 30011, 30012]), session([30020, 30021, 30022]));
    let container = original.start(&lives).expect("started");
    for (session, command) in [(&ended, "kill"), (&removed, "rm")] {
        let container = original.start(session).expect("started");
        let arguments = if command == "rm" {
            vec!["rm", "-f", &container]
        } else {
            vec!["kill", &container]
        };
        docker.docker(&arguments).expect("gone");
    }
    // A run that waits for its user while the agents change places.
    let before = "x = 41\nprint('got', input('name? '))";
    as_the_original(&lives, Request::Code(before.to_owned()), |record| {
        matches!(record, Record::WaitingInput { .. })
    })
    .await;

    let open = async || {
        let engine = Engine::connect(Some(&docker.host())).await.expect("it answers");
        let options = Options {
            network: Some("none".to_owned()),
            ..Options::new(runner().expect("built"), dir.display().to_string())
        };
        let opened = DockerRuntime::open(engine, options, dir.join("engine-images.json")).await;
        let runtime = Arc::new(opened.expect("the engine answers"));
        (runtime.clone(), Images::Engine(runtime.images()))
    };
    let (runtime, images) = open().await;
    let mut site = Site::start(dir, runtime, images).await;
    let mut gone = [site.terminated().await, site.terminated().await];
    gone.sort();
    let told = |session: &OriginalSession| (id(session), "self-terminated".to_owned());
    assert_eq!(gone, [told(&ended), told(&removed)]);
    let kernel = id(&lives);
    assert_eq!(site.agent.list_kernels().await.expect("listed"), [kernel]);
    for session in [&ended, &removed] {
        assert!(
            !dir.join("scratch").join(&session.kernel).exists(),
            "its folder is gone"
        );
    }

    runs(&site, kernel).await;
    files(&site, kernel).await;
    let logs = site.agent.get_logs(kernel).await.expect("logs");
    assert!(logs.contains("of a batch"), "{logs}");
    service(&site, kernel, lives.ports[2]).await;

    // What it holds is not given to others, and what managers are told is what it has.
    let image = runtime_image();
    let again = site
        .agent
        .create_kernel(kernel, image.clone())
        .await
        .expect("there already");
    assert_eq!(again.container_id, container);
    assert_eq!((again.repl_in_port, again.repl_out_port), (30002, 30001));
    assert_eq!((again.stdin_port, again.stdout_port), (0, 0));
    assert_eq!(again.service_ports[0].host_port, 30000);
    let own = new_id();
    let created = site
        .agent
        .create_kernel(own, image.clone())
        .await
        .expect("created");
    assert!(created.repl_in_port > 30002, "{created:?}");
    assert_eq!(printed(&site.query(own, "print(6*7)").await), "42\n");
    site.agent.destroy_kernel(own).await.expect("ended");
    assert_eq!(site.terminated().await.0, own);

    // The next process of our agent finds it as it finds its own, and the run that goes on.
    let request = ExecuteRequest {
        run_id: Some(RunId("over".to_owned())),
        mode: ExecuteMode::Query,
        code: "print('first')\nprint(input())".to_owned(),
        batch: BatchOptions::default(),
        flush_timeout: None,
    };
    let reply = site
        .agent
        .execute(kernel, request)
        .await
        .expect("begun")
        .expect("a kernel");
    assert_eq!(reply.status, RunStatus::WaitingInput);
    let (runtime, images) = open().await;
    let mut site = site.crash(dir, runtime, images).await;
    let reply = feed(&site, kernel, "over", "second").await;
    assert_eq!(
        (reply.status, printed(&reply).as_str()),
        (RunStatus::Finished, "second\n")
    );
    assert_eq!(printed(&site.query(kernel, "print(x)").await), "41\n");

    // A restart makes it a kernel like any other.
    let restarted = site.agent.restart_kernel(kernel, image).await.expect("restarted");
    assert_ne!(restarted.repl_in_port, 30002);
    assert!(restarted.stdin_port > 0, "it has a terminal now");
    assert_ne!(restarted.container_id, container);
    assert_eq!(
        printed(&site.query(kernel, "print(open('mine').read())").await),
        "uploaded\n"
    );
    assert_eq!(
        printed(&site.query(kernel, "print(open('data/book').read())").await),
        "read me\n"
    );
    let left = docker
        .docker(&["ps", "-a", "--format", "{{.Names}}"])
        .expect("listed");
    assert_eq!(
        left.lines().count(),
        1,
        "the companion went with its container: {left}"
    );
    let stats = site.agent.destroy_kernel(kernel).await.expect("ended");
    assert!(
        stats.is_some_and(|stats| stats["cpu_used"].is_object()),
        "it was measured"
    );
    assert_eq!(site.terminated().await.0, kernel);
    assert_eq!(docker.docker(&["ps", "-aq"]).expect("listed"), "");
    assert_eq!(docker.docker(&["volume", "ls", "-q"]).expect("listed"), "");

    ends_of_themselves(docker, original, dir, site).await;
}

fn runtime_image() -> KernelConfig {
    KernelConfig {
        image: ImageConfig {
            canonical: IMAGE.to_owned(),
            ..ImageConfig::default()
        },
        resource_slots: [("cpu", 1), ("mem", 128 << 20)]
            .into_iter()
            .map(|(slot, amount)| (slot, i64::from(amount).into()))
            .collect(),
        idle_timeout: 0,
        mounts: Vec::new(),
        environ: Default::default(),
    }
}

/// Says something to a runner as the original's agent does, and reads up to a record.
async fn as_the_original(session: &OriginalSession, request: Request, is_last: impl Fn(&Record) -> bool) {
    let link = |port: u16, socket| {
        let options = LinkOptions {
            limits: Limits {
                frames: 2,
                bytes: 1 << 20,
            },
            tls: None,
            random: Arc::new(Counter::default()),
        };
        let endpoint = Endpoint {
            host: "127.0.0.1".to_owned(),
            port,
        };
        Link::connect(endpoint, socket, options)
    };
    let input = link(session.ports[0], SocketType::Push);
    let mut output = link(session.ports[1], SocketType::Pull);
    soon(output.ready()).await;
    let frame = request.to_frame();
    input
        .send(vec![Bytes::from(frame.kind), Bytes::from(frame.data)])
        .await;
    loop {
        let parts = soon(output.recv()).await.expect("a record");
        if is_last(&Record::from_frame(Frame::from_parts(&parts).expect("two parts"))) {
            return;
        }
    }
}

async fn feed(site: &Site, kernel: KernelId, run: &str, text: &str) -> ExecuteReply {
    site.execute(kernel, run, ExecuteMode::Input, text, BatchOptions::default())
        .await
}

/// All that is done with runs.
async fn runs(site: &Site, kernel: KernelId) {
    // Of whom our agent has never heard.
    let reply = feed(site, kernel, "before", "foo").await;
    assert_eq!(
        (reply.status, printed(&reply).as_str()),
        (RunStatus::Finished, "got foo\n")
    );
    assert_eq!(
        printed(&site.query(kernel, "print(x + 1, '\u{2603}')").await),
        "42 \u{2603}\n"
    );
    let reply = site.query(kernel, "raise ValueError('x')").await;
    assert!(printed(&reply).contains("ValueError: x"), "{reply:?}");

    let batch = BatchOptions {
        clean: None,
        build: Some("echo built".to_owned()),
        exec: Some("echo of a batch; exit 3".to_owned()),
    };
    let replies = site.batch(kernel, "batch", batch).await;
    let said: String = replies.iter().map(printed).collect();
    let statuses: Vec<_> = replies.iter().map(|reply| reply.status).collect();
    // This runner does not know the step `clean`.
    assert_eq!(statuses, [RunStatus::BuildFinished, RunStatus::Finished]);
    assert_eq!(replies[1].exit_code, Some(3));
    assert!(
        said.contains("built\n") && said.contains("of a batch\n"),
        "{said}"
    );

    let endless = ExecuteRequest {
        run_id: Some(RunId("endless".to_owned())),
        mode: ExecuteMode::Query,
        code: "import time\nprint('begun')\nwhile True: time.sleep(0.01)".to_owned(),
        batch: BatchOptions::default(),
        flush_timeout: Some(Duration::from_millis(200)),
    };
    let mut reply = site
        .agent
        .execute(kernel, endless)
        .await
        .expect("begun")
        .expect("a kernel");
    let mut said = printed(&reply);
    while !said.contains("begun") {
        assert_eq!(reply.status, RunStatus::Continued);
        let more = ExecuteRequest {
            run_id: Some(RunId("endless".to_owned())),
            mode: ExecuteMode::Continue,
            code: String::new(),
            batch: BatchOptions::default(),
            flush_timeout: Some(Duration::from_millis(200)),
        };
        reply = soon(site.agent.execute(kernel, more))
            .await
            .expect("goes on")
            .expect("a kernel");
        said.push_str(&printed(&reply));
    }
    site.agent.interrupt_kernel(kernel).await.expect("interrupted");
    let reply = site.go_on(kernel, "endless").await;
    assert_eq!(reply.status, RunStatus::Finished);

    let options = json!({ "row": 0, "col": 3, "line": "pri", "post": "" });
    let completions = site
        .agent
        .get_completions(kernel, "pri".to_owned(), options)
        .await;
    assert_eq!(completions.expect("asked"), ["print"]);
}

async fn files(site: &Site, kernel: KernelId) {
    let upload = site
        .agent
        .upload_file(kernel, "mine".to_owned(), Bytes::from_static(b"uploaded"));
    upload.await.expect("uploaded");
    let code = "import os\nos.makedirs('.output', exist_ok=True)\nopen('.output/made', 'w').write(open('mine').read())";
    let reply = site.query(kernel, code).await;
    assert_eq!(reply.files.len(), 1, "{reply:?}");
    let listed = site
        .agent
        .list_files(kernel, ".output".to_owned())
        .await
        .expect("listed");
    assert!(format!("{listed:?}").contains("made"), "{listed:?}");
    let archive = site
        .agent
        .download_file(kernel, ".output/made".to_owned())
        .await
        .expect("packed");
    assert!(archive.windows(8).any(|bytes| bytes == b"uploaded"));
    let archive = site
        .agent
        .download_file(kernel, "data/book".to_owned())
        .await
        .expect("packed");
    assert!(archive.windows(7).any(|bytes| bytes == b"read me"));
}

/// The port of a service is the engine's, and stays so.
async fn service(site: &Site, kernel: KernelId, port: u16) {
    let code = "import http.server, threading\n\
        server = http.server.HTTPServer(('', 8000), http.server.SimpleHTTPRequestHandler)\n\
        threading.Thread(target=server.serve_forever, daemon=True).start()";
    site.query(kernel, code).await;
    let connected = soon(tokio::net::TcpStream::connect(("127.0.0.1", port))).await;
    let mut stream = connected.expect("it is published");
    stream
        .write_all(b"GET /mine HTTP/1.0\r\n\r\n")
        .await
        .expect("asked");
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.expect("answered");
    assert!(answer.ends_with("uploaded"), "{answer}");
}

/// Ends by idleness and of the container itself are noticed.
async fn ends_of_themselves(docker: &Docker, original: &OriginalAgent<'_>, dir: &Path, site: Site) {
    let idle = OriginalSession {
        idle_timeout: 60,
        ..session([30030, 30031, 30032])
    };
    let killed = session([30040, 30041, 30042]);
    original.start(&idle).expect("started");
    let container = original.start(&killed).expect("started");
    let engine = Engine::connect(Some(&docker.host())).await.expect("it answers");
    let options = Options::new(runner().expect("built"), dir.display().to_string());
    let opened = DockerRuntime::open(engine, options, dir.join("engine-images.json")).await;
    let runtime = Arc::new(opened.expect("the engine answers"));
    let images = Images::Engine(runtime.images());
    let mut site = site.crash(dir, runtime, images).await;
    assert_eq!(printed(&site.query(id(&killed), "print(1)").await), "1\n");
    site.clock.advance(61);
    assert_eq!(site.terminated().await, (id(&idle), "idle-timeout".to_owned()));
    docker.docker(&["kill", &container]).expect("killed");
    assert_eq!(
        site.terminated().await,
        (id(&killed), "self-terminated".to_owned())
    );
    assert_eq!(docker.docker(&["ps", "-aq"]).expect("listed"), "");
}
