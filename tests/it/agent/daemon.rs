//! The agent on etcd and Redis, with a manager that the test plays.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bai::system::{SystemClock, SystemRandom};
use bai_backplane::config::Config;
use bai_backplane::{broker, kv};
use bai_model::{AgentId, KernelId, ResourceSlot, RunId};
use bai_proto::agent::{
    AgentRpc, BatchOptions, ConsoleItem, ExecuteMode, ExecuteRequest, KernelConfig, RunStatus,
};
use bai_proto::event::{AgentEvent, AgentInfo, EventReceiver, Received, ReceiverOptions};
use bai_proto::msgpack;
use bai_proto::rpc::{AgentOptions, ZmqAgent};
use bai_proto::zmtp::Tls;
use bai_testkit::services::{Certificates, Docker, Etcd, Missing, Redis};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{PATIENCE, Place};

const ID: &str = "i-tested";

/// A manager: it registers, takes events and calls.
struct Peer {
    address: String,
    events: mpsc::Receiver<Received>,
    _stop: DropGuard,
}

impl Peer {
    async fn start() -> Self {
        Self::start_with(ReceiverOptions::default()).await
    }

    async fn start_with(options: ReceiverOptions) -> Self {
        let receiver = EventReceiver::bind(([127, 0, 0, 1], 0).into(), options).await;
        let receiver = receiver.unwrap();
        let address = receiver.local_addr().unwrap().to_string();
        let (sender, events) = mpsc::channel(1000);
        let stop = CancellationToken::new();
        tokio::spawn(receiver.run(sender, stop.clone()));
        Self {
            address,
            events,
            _stop: stop.drop_guard(),
        }
    }

    async fn register(&self, site: &Config) {
        site.put("nodes/manager/event_addr", &self.address).await.unwrap();
        site.put("nodes/manager", "i-manager").await.unwrap();
    }

    async fn event(&mut self) -> AgentEvent {
        let received = tokio::time::timeout(PATIENCE, self.events.recv()).await;
        let received = received.expect("an event in time").unwrap();
        assert_eq!(received.agent.as_str(), ID);
        received.event
    }

    /// The next event that is no heartbeat.
    async fn news(&mut self) -> AgentEvent {
        loop {
            match self.event().await {
                AgentEvent::InstanceHeartbeat(_) => {}
                event => return event,
            }
        }
    }

    async fn heartbeat(&mut self) -> AgentInfo {
        loop {
            if let AgentEvent::InstanceHeartbeat(info) = self.event().await {
                return info;
            }
        }
    }

    /// Waits until an agent has started.
    async fn end_of_start(&mut self) {
        while !matches!(self.news().await, AgentEvent::InstanceStarted { .. }) {}
    }

    /// The next end of a kernel, with its reason.
    async fn end(&mut self) -> (KernelId, String) {
        loop {
            if let AgentEvent::KernelTerminated { kernel, reason, .. } = self.news().await {
                return (kernel, reason);
            }
        }
    }
}

pub(crate) fn connect(place: &Place) -> ZmqAgent {
    let options = AgentOptions {
        clock: Arc::new(SystemClock),
        random: Arc::new(SystemRandom),
        tls: None,
    };
    ZmqAgent::connect(place.endpoint().parse().unwrap(), options)
}

fn shell(info: &AgentInfo, more: &[(&str, i64)]) -> KernelConfig {
    let image = info
        .images
        .iter()
        .find(|image| image.aliases.iter().any(|alias| alias == "shell"));
    let image = image.expect("every host has a shell");
    let slots = [("cpu", 1), ("mem", 64 << 20)]
        .into_iter()
        .chain(more.iter().copied());
    KernelConfig {
        image: image.into(),
        resource_slots: slots
            .map(|(slot, amount)| (slot, amount.into()))
            .collect::<ResourceSlot>(),
        idle_timeout: 3600,
        mounts: Vec::new(),
        environ: BTreeMap::from([("GREETING".to_owned(), "hello".to_owned())]),
    }
}

async fn run(agent: &ZmqAgent, kernel: KernelId, run: &str, code: &str) -> String {
    let mut said = String::new();
    let mut mode = ExecuteMode::Query;
    loop {
        let request = ExecuteRequest {
            run_id: Some(RunId(run.to_owned())),
            mode,
            code: code.to_owned(),
            batch: BatchOptions::default(),
            flush_timeout: Some(Duration::from_secs(2)),
        };
        let reply = agent.execute(kernel, request).await.unwrap().expect("a kernel");
        for item in reply.console {
            match item {
                ConsoleItem::Stdout(text) | ConsoleItem::Stderr(text) => said.push_str(&text),
                _ => {}
            }
        }
        if reply.status == RunStatus::Finished {
            return said;
        }
        mode = ExecuteMode::Continue;
    }
}

struct Bed {
    site: Config,
    broker: Arc<dyn broker::Broker>,
    redis: Redis,
    etcd: Etcd,
}

impl Bed {
    async fn new() -> Result<Self, Missing> {
        let (etcd, redis) = (Etcd::start()?, Redis::start()?);
        let clock = Arc::new(SystemClock);
        let store = kv::open(&format!("etcd://{}", etcd.address()), clock.clone())
            .await
            .unwrap();
        let site = Config::new(store, "local");
        site.put("config/redis/addr", &redis.address()).await.unwrap();
        let broker = broker::open(&format!("redis://{}", redis.address()), clock)
            .await
            .unwrap();
        Ok(Self {
            site,
            broker,
            redis,
            etcd,
        })
    }

    fn place(&self, own: &str) -> Place {
        Place::new(&self.etcd.address(), "local", ID, own)
    }

    /// What is published under a key, when it is there.
    async fn published(&self, key: &str) -> Option<Value> {
        let bytes = self.broker.get(key).await.ok()??;
        let decoded = msgpack::decode(&bytes).unwrap();
        Some(msgpack::to_json(&decoded).unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_joins_works_and_leaves() {
    let bed = match Bed::new().await {
        Ok(bed) => bed,
        Err(missing) => return println!("SKIPPED: the agent daemon, because {missing}"),
    };
    let place = bed.place("mock-devices = 2\nmock-shares = 1");
    let mut agent = place.start();
    // Without a manager it waits.
    let status = format!("nodes/agents/{ID}/host");
    agent
        .until("the claim", async || {
            bed.site.get(&status).await.unwrap().is_some()
        })
        .await;
    let mut peer = Peer::start().await;
    peer.register(&bed.site).await;

    let AgentEvent::InstanceHeartbeat(info) = peer.event().await else {
        panic!("the heartbeat comes first")
    };
    assert_eq!(info.addr, place.endpoint());
    assert_eq!(info.available_slots.amount("mock.device"), 2.into());
    assert_eq!(info.compute_plugins["cpu"]["os_type"], "Linux");
    assert!(!info.installed.is_empty(), "what 19.06 managers call images");
    assert_eq!(
        peer.news().await,
        AgentEvent::InstanceStarted {
            agent: AgentId(ID.to_owned())
        }
    );
    let own = |key: &str| format!("/sorna/local/nodes/agents/{ID}/{key}");
    let kept = async |key: &str| bed.site.kv().get(&own(key)).await.unwrap().map(|kept| kept.value);
    assert_eq!(kept("").await.as_deref(), Some("running"));
    assert_eq!(kept("ip").await.as_deref(), Some("127.0.0.1"));

    let rpc = connect(&place);
    let kernel = KernelId(uuid::Uuid::from_u128(1));
    let config = shell(&info, &[("mock.device", 1), ("cuda.device", 0)]);
    let created = rpc.create_kernel(kernel, config).await.unwrap();
    assert_eq!(created.kernel_host.as_deref(), Some("127.0.0.1"));
    assert_eq!(peer.news().await, AgentEvent::KernelPreparing { kernel });
    assert_eq!(peer.news().await, AgentEvent::KernelCreating { kernel });
    assert_eq!(peer.news().await, AgentEvent::KernelStarted { kernel });
    assert_eq!(
        run(
            &rpc,
            kernel,
            "one",
            "echo $GREETING $((6*7)) $MOCK_VISIBLE_DEVICES; x=kept"
        )
        .await,
        "hello 42 0\n"
    );
    let resource =
        std::fs::read_to_string(place.path(&format!("scratch/{kernel}/config/resource.txt"))).unwrap();
    assert!(resource.contains("MOCK.DEVICE_SHARES=0:1\n"), "{resource}");

    // Statistics of the host and of the kernel, as GraphQL reads them.
    let id = kernel.to_string();
    agent
        .until("the kernel's statistics", async || {
            bed.published(&id).await.is_some()
        })
        .await;
    let is_whole = |stats: Value| stats["node"]["cpu_util"]["pct"].is_string();
    agent
        .until("the host's statistics", async || {
            bed.published(ID).await.is_some_and(is_whole)
        })
        .await;
    let host = bed.published(ID).await.unwrap();
    assert!(host["node"]["mem"]["current"].is_string(), "{host}");

    // It goes without Redis, and etcd, and the manager; then everything is there again.
    bed.redis.kill();
    bed.etcd.kill();
    assert_eq!(run(&rpc, kernel, "two", "echo $x").await, "kept\n");
    peer.heartbeat().await;
    bed.redis.start_again();
    bed.etcd.start_again();
    agent
        .until("statistics again", async || bed.published(&id).await.is_some())
        .await;

    // Told to leave the sessions alone, it does, and its successor finds them.
    agent.signal("-INT");
    assert!(agent.ended().await.success(), "{}", agent.log());
    let left = AgentEvent::InstanceTerminated {
        agent: AgentId(ID.to_owned()),
        reason: "shutdown".to_owned(),
    };
    assert_eq!(peer.news().await, left);
    let mut agent = place.start();
    assert!(matches!(peer.event().await, AgentEvent::InstanceHeartbeat(_)));
    assert_eq!(
        peer.news().await,
        AgentEvent::InstanceStarted {
            agent: AgentId(ID.to_owned())
        }
    );
    assert_eq!(rpc.list_kernels().await.unwrap(), [kernel]);
    assert_eq!(run(&rpc, kernel, "three", "echo $x").await, "kept\n");

    // Another manager's address is followed.
    let mut other = Peer::start().await;
    other.register(&bed.site).await;
    other.heartbeat().await;

    // A session that is ended has its statistics in the reply, and in Redis before its end is told.
    let second = KernelId(uuid::Uuid::from_u128(2));
    let refused = rpc
        .create_kernel(second, shell(&info, &[("mock.device", 2)]))
        .await
        .unwrap_err();
    assert!(
        refused.repr().starts_with("InsufficientResource("),
        "{}",
        refused.repr()
    );
    rpc.create_kernel(second, shell(&info, &[])).await.unwrap();
    agent
        .until("the second's statistics", async || {
            bed.published(&second.to_string()).await.is_some()
        })
        .await;
    let stats = rpc.destroy_kernel(second).await.unwrap().expect("statistics");
    assert_eq!(stats["version"], 2);
    assert!(stats["io_scratch_size"]["stats.max"].is_string(), "{stats}");
    assert_eq!(other.end().await, (second, "user-requested".to_owned()));
    assert!(bed.published(&second.to_string()).await.is_some());

    // And told to end the sessions, it does that first.
    agent.signal("-TERM");
    assert_eq!(other.end().await, (kernel, "agent-termination".to_owned()));
    assert_eq!(other.news().await, left);
    assert!(agent.ended().await.success(), "{}", agent.log());
    assert_eq!(place.processes(), [""; 0]);
    assert_eq!(bed.site.get(&status).await.unwrap(), None, "the id is free again");
}

/// What the file and the site say of where sessions are, seen from inside of one and from a manager.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_where_the_file_and_the_site_say() {
    let bed = match Bed::new().await {
        Ok(bed) => bed,
        Err(missing) => return println!("SKIPPED: the agent daemon, because {missing}"),
    };
    bed.site
        .put("config/network/subnet/container", "127.0.0.0/8")
        .await
        .unwrap();
    let etcd = bed.etcd.address();
    let mut place = Place::at(
        "127.0.0.2",
        31200..=31230,
        &etcd,
        "local",
        ID,
        "runtime = 'process'",
    );
    let file = place.path("agent.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let text = text.replace("'hostdir'", "'memory'\nscratch-size = '8m'");
    std::fs::write(&file, text.replace("[agent]\n", "[agent]\nregion = 'cellar'\n")).unwrap();
    place.enter = ["sh", "-c", "ulimit -Sn 256; exec \"$@\"", "sh"]
        .map(str::to_owned)
        .to_vec();
    // Its events come from another address of this host than the one at which it is called.
    let mut peer = Peer::start_with(ReceiverOptions {
        check_sources: false,
        ..ReceiverOptions::default()
    })
    .await;
    peer.register(&bed.site).await;
    let mut agent = place.start();
    let info = peer.heartbeat().await;
    assert_eq!(info.region, "cellar");
    assert_eq!(info.addr, place.endpoint());
    peer.end_of_start().await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", agent.pid())).unwrap();
    let files = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let files: Vec<&str> = files.unwrap().split_whitespace().collect();
    assert_eq!(files[0], files[1], "as many as it is allowed to");

    let rpc = connect(&place);
    let kernel = KernelId(uuid::Uuid::from_u128(1));
    let created = rpc.create_kernel(kernel, shell(&info, &[])).await.unwrap();
    assert_eq!(created.kernel_host.as_deref(), Some("127.0.0.1"));
    let terminal = tokio::net::TcpStream::connect(("127.0.0.1", created.stdin_port)).await;
    terminal.expect("it listens there");
    let size = run(&rpc, kernel, "one", "stat -f -c '%b %S' .; echo kept > file").await;
    if agent.log().contains("must not mount") {
        println!("SKIPPED: work folders in memory, because mounting is refused here");
    } else {
        assert_eq!(size, "2048 4096\n");
    }
    agent.signal("-INT");
    assert!(agent.ended().await.success(), "{}", agent.log());
    let mut agent = place.start();
    peer.end_of_start().await;
    assert_eq!(run(&rpc, kernel, "two", "cat file").await, "kept\n");
    let archive = rpc.download_file(kernel, "file".to_owned()).await.unwrap();
    assert!(
        archive.windows(4).any(|bytes| bytes == b"kept"),
        "the agent sees it too"
    );
    agent.signal("-TERM");
    assert!(agent.ended().await.success(), "{}", agent.log());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let scratch = place.path("scratch").display().to_string();
    assert!(!mounts.contains(&scratch), "{mounts}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_containers_where_there_is_docker() {
    let bed = match Bed::new().await {
        Ok(bed) => bed,
        Err(missing) => return println!("SKIPPED: the agent daemon, because {missing}"),
    };
    let engine = match Docker::start() {
        Ok(engine) => engine,
        Err(missing) => return println!("SKIPPED: the agent daemon with Docker, because {missing}"),
    };
    engine.import_shell("shell:1").unwrap();

    let mut place = Place::with_runtime(
        &bed.etcd.address(),
        "local",
        ID,
        "runtime = 'docker'\nnetwork = 'none'",
    );
    place.engine = Some(engine.host());
    let mut peer = Peer::start().await;
    peer.register(&bed.site).await;
    let mut agent = place.start();
    let info = peer.heartbeat().await;
    let names: Vec<&str> = info
        .installed
        .iter()
        .map(|image| image.repo_tag.as_str())
        .collect();
    assert_eq!(names, ["library/shell:1"], "{:?}", info.images);
    let mut config = shell(&info, &[]);
    config
        .environ
        .insert("NVIDIA_VISIBLE_DEVICES".to_owned(), "void".to_owned());
    let (rpc, kernel) = (connect(&place), KernelId(uuid::Uuid::from_u128(3)));
    rpc.create_kernel(kernel, config).await.unwrap();
    assert_eq!(
        run(&rpc, kernel, "one", "x=kept; echo $GREETING; id -u").await,
        "hello\n9001\n"
    );
    let id = kernel.to_string();
    let used = async || {
        let stats = bed.published(&id).await?;
        stats["mem"]["stats.max"].as_str()?.parse::<u64>().ok()
    };
    agent
        .until("the container's statistics", async || {
            used().await.is_some_and(|bytes| bytes > 0)
        })
        .await;

    // The container goes on under the next agent.
    agent.signal("-INT");
    assert!(agent.ended().await.success(), "{}", agent.log());
    let mut agent = place.start();
    peer.end_of_start().await;
    assert_eq!(run(&rpc, kernel, "two", "echo $x").await, "kept\n");
    let stats = rpc.destroy_kernel(kernel).await.unwrap().expect("statistics");
    assert!(stats["cpu_used"]["current"].is_string(), "{stats}");
    assert_eq!(peer.end().await, (kernel, "user-requested".to_owned()));
    agent.signal("-TERM");
    assert!(agent.ended().await.success(), "{}", agent.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_cannot_call() {
    let bed = match Bed::new().await {
        Ok(bed) => bed,
        Err(missing) => return println!("SKIPPED: the agent daemon, because {missing}"),
    };
    let place = bed.place("allow-managers = ['10.1.2.0/24']");
    let mut peer = Peer::start().await;
    peer.register(&bed.site).await;
    let mut agent = place.start();
    peer.heartbeat().await;
    let rpc = connect(&place);
    assert!(rpc.list_kernels().await.is_err());
    let log = place.path("log");
    let is_refused = async || {
        std::fs::read_to_string(&log)
            .unwrap_or_default()
            .contains("not on the allow-list")
    };
    agent.until("the refusal", is_refused).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_and_events_are_encrypted_where_that_is_wanted() {
    let bed = match Bed::new().await {
        Ok(bed) => bed,
        Err(missing) => return println!("SKIPPED: the agent daemon, because {missing}"),
    };
    let certificates = Certificates::make();
    let files = [
        certificates.authority(),
        certificates.certificate(),
        certificates.key(),
    ];
    let [authority, certificate, key] = files.each_ref().map(|file| file.display());
    let place = bed.place(&format!(
        "[bai.tls]\nauthority = '{authority}'\ncertificate = '{certificate}'\nkey = '{key}'"
    ));
    let [authority, certificate, key] = files.each_ref().map(|file| std::fs::read(file).unwrap());
    let tls = Tls::new(&authority, &certificate, &key).unwrap();
    let mut peer = Peer::start_with(ReceiverOptions {
        tls: Some(tls.clone()),
        ..ReceiverOptions::default()
    })
    .await;
    peer.register(&bed.site).await;
    let mut agent = place.start();
    peer.heartbeat().await;
    let options = AgentOptions {
        clock: Arc::new(SystemClock),
        random: Arc::new(SystemRandom),
        tls: Some(tls),
    };
    let rpc = ZmqAgent::connect(place.endpoint().parse().unwrap(), options);
    assert_eq!(rpc.list_kernels().await.unwrap(), []);
    assert!(connect(&place).list_kernels().await.is_err(), "not in clear");
    agent.signal("-TERM");
    assert!(agent.ended().await.success(), "{}", agent.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_watcher_wants_a_token_of_the_sites_own() {
    let bed = match Bed::new().await {
        Ok(bed) => bed,
        Err(missing) => return println!("SKIPPED: the agent daemon, because {missing}"),
    };
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let place = bed.place(&format!(
        "start-timeout = 30\n[watcher]\nservice-addr = '127.0.0.1:{port}'\ntarget-service = 'bai-nothing.service'"
    ));
    let refused = place.watcher().output().unwrap();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{text}");
    assert!(text.contains("bai etcd put config/watcher/token"), "{text}");

    bed.site.put("config/watcher/token", "sesame").await.unwrap();
    let mut watcher = place.run(place.watcher());
    // Another test may have done it.
    _ = rustls::crypto::ring::default_provider().install_default();
    let ask = async |token: &str| {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = client
            .get(format!("http://127.0.0.1:{port}/"))
            .header("X-BackendAI-Watcher-Token", token);
        request.send().await.ok().map(|answer| answer.status().as_u16())
    };
    watcher
        .until("the watcher", async || ask("sesame").await == Some(200))
        .await;
    assert_eq!(ask("insecure").await, Some(403));
    watcher.signal("-TERM");
    assert!(watcher.ended().await.success(), "{}", watcher.log());
}

#[test]
fn a_configuration_is_checked_and_dumped_without_services() {
    let place = Place::new("127.0.0.1:1", "local", ID, "");
    let checked = place.command(&["--check-config"]).output().unwrap();
    assert!(checked.status.success(), "{checked:?}");
    let dumped = place.command(&["--dump-config"]).output().unwrap();
    let text = String::from_utf8(dumped.stdout).unwrap();
    assert!(text.contains("cpu-overcommit = 2"), "{text}");
    std::fs::write(place.path("agent.toml"), "[etcd]\n[agent]\n[container]\n").unwrap();
    let refused = place.command(&[]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(text.contains("etcd.namespace is missing"), "{text}");
}
