//! A whole agent on a runtime, and what a manager does with it.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use bai_agent::runtime::Runtime;
use bai_agent::{Agent, AgentOptions, Images};
use bai_model::random::Random;
use bai_model::time::Clock;
use bai_model::{AgentId, KernelId, RunId};
use bai_proto::agent::{
    AgentRpc, BatchOptions, ConsoleItem, ExecuteMode, ExecuteReply, ExecuteRequest, KernelConfig,
    KernelCreated, RunStatus,
};
use bai_proto::event::{AgentEvent, AgentImage};
use bai_proto::pty::Terminal;
use chrono::{DateTime, TimeDelta, Utc};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// For what takes milliseconds on a machine that does nothing else.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The outcome of what must not hang.
pub async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("it hangs")
}

/// A clock that is moved by hand.
#[derive(Debug)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    pub fn advance(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> DateTime<Utc> {
        let start: DateTime<Utc> = "2019-07-15T00:00:00Z".parse().expect("a time");
        start + TimeDelta::seconds(self.0.load(Ordering::SeqCst) as i64)
    }
}

/// Bytes that are never the same again.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Random for Counter {
    fn fill(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let next = self.0.fetch_add(1, Ordering::Relaxed).to_le_bytes();
            chunk.copy_from_slice(&next[..chunk.len()]);
        }
    }
}

/// An agent with everything around it.
pub struct Site {
    pub agent: Arc<Agent>,
    pub clock: Arc<ManualClock>,
    pub random: Arc<Counter>,
    pub events: mpsc::Receiver<AgentEvent>,
    pub listen: IpAddr,
    memory_scratch: Option<u64>,
}

impl Site {
    pub async fn start(dir: &Path, runtime: Arc<dyn Runtime>, images: Images) -> Self {
        Self::start_with(dir, runtime, images, None).await
    }

    /// With work folders of so many bytes in memory.
    pub async fn start_with(
        dir: &Path,
        runtime: Arc<dyn Runtime>,
        images: Images,
        memory_scratch: Option<u64>,
    ) -> Self {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let [.., high, low] = std::process::id().to_be_bytes();
        // No other test has this address.
        let listen = Ipv4Addr::new(127, high, low, NEXT.fetch_add(1, Ordering::Relaxed)).into();
        let clock = Arc::new(ManualClock(AtomicU64::new(0)));
        let random = Arc::default();
        Self::start_at(dir, runtime, images, memory_scratch, listen, clock, random).await
    }

    async fn start_at(
        dir: &Path,
        runtime: Arc<dyn Runtime>,
        images: Images,
        memory_scratch: Option<u64>,
        listen: IpAddr,
        clock: Arc<ManualClock>,
        random: Arc<Counter>,
    ) -> Self {
        let (sender, events) = mpsc::channel(1024);
        let mut options = AgentOptions::new(
            AgentId("i-test".to_owned()),
            dir.to_owned(),
            runtime,
            clock.clone(),
            random.clone(),
            sender,
        );
        options.images = images;
        options.memory_scratch = memory_scratch;
        options.listen = listen;
        options.kernel_host = Some(listen.to_string());
        options.idle_check_period = Duration::from_millis(20);
        let agent = Agent::start(options).await.expect("an agent");
        Self {
            agent,
            clock,
            random,
            events,
            listen,
            memory_scratch,
        }
    }

    /// The agent is gone from one moment to the next; a new one starts in its place.
    pub async fn crash(self, dir: &Path, runtime: Arc<dyn Runtime>, images: Images) -> Self {
        let Self {
            agent,
            clock,
            random,
            listen,
            memory_scratch,
            ..
        } = self;
        drop(agent);
        Self::start_at(dir, runtime, images, memory_scratch, listen, clock, random).await
    }

    /// Runs code to its next boundary.
    pub async fn execute(
        &self,
        kernel: KernelId,
        run: &str,
        mode: ExecuteMode,
        code: &str,
        batch: BatchOptions,
    ) -> ExecuteReply {
        let request = ExecuteRequest {
            run_id: Some(RunId(run.to_owned())),
            mode,
            code: code.to_owned(),
            batch,
            flush_timeout: None,
        };
        let executed = soon(self.agent.execute(kernel, request)).await;
        executed.expect("executed").expect("a kernel")
    }

    /// What else a run has to say.
    pub async fn go_on(&self, kernel: KernelId, run: &str) -> ExecuteReply {
        self.execute(kernel, run, ExecuteMode::Continue, "", BatchOptions::default())
            .await
    }

    /// Runs a batch to its end: every answer.
    pub async fn batch(&self, kernel: KernelId, run: &str, steps: BatchOptions) -> Vec<ExecuteReply> {
        let mut reply = self.execute(kernel, run, ExecuteMode::Batch, "", steps).await;
        let mut replies = Vec::new();
        while reply.status != RunStatus::Finished {
            let next = self.go_on(kernel, run).await;
            replies.push(std::mem::replace(&mut reply, next));
        }
        replies.push(reply);
        replies
    }

    pub async fn query(&self, kernel: KernelId, code: &str) -> ExecuteReply {
        let run = RunId::generate(self.random.as_ref(), 32);
        self.execute(
            kernel,
            run.as_str(),
            ExecuteMode::Query,
            code,
            BatchOptions::default(),
        )
        .await
    }

    pub fn terminal(&self, created: &KernelCreated) -> Terminal {
        let host = created.kernel_host.as_deref().expect("a host");
        Terminal::connect(host, created.stdin_port, created.stdout_port, self.random.clone())
    }

    pub async fn connect(&self, port: u16) -> TcpStream {
        soon(TcpStream::connect((self.listen, port)))
            .await
            .expect("it listens")
    }

    /// The reason of the next end of a kernel.
    pub async fn terminated(&mut self) -> (KernelId, String) {
        loop {
            if let AgentEvent::KernelTerminated { kernel, reason, .. } =
                soon(self.events.recv()).await.expect("an event")
            {
                return (kernel, reason);
            }
        }
    }
}

/// A kernel's id that no other test of this machine has: cgroups and containers are named by it.
pub fn new_id() -> KernelId {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    KernelId(uuid::Uuid::from_u64_pair(std::process::id().into(), number))
}

/// What a reply printed.
pub fn printed(reply: &ExecuteReply) -> String {
    let text = |item: &ConsoleItem| match item {
        ConsoleItem::Stdout(text) | ConsoleItem::Stderr(text) => text.clone(),
        _ => String::new(),
    };
    reply.console.iter().map(text).collect()
}

/// The configuration of a kernel with one core and 256 MiB.
pub fn config(image: &AgentImage) -> KernelConfig {
    let slots = [("cpu", 1), ("mem", 256 << 20)];
    KernelConfig {
        image: image.into(),
        resource_slots: slots
            .into_iter()
            .map(|(slot, amount)| (slot, i64::from(amount).into()))
            .collect(),
        idle_timeout: 0,
        mounts: Vec::new(),
        environ: std::collections::BTreeMap::new(),
    }
}

/// Reads what a terminal prints until some text is there.
pub async fn until_shown(terminal: &mut Terminal, text: &str) -> String {
    let mut seen = String::new();
    soon(async {
        while !seen.contains(text) {
            let bytes = terminal.recv().await.expect("the terminal is open");
            seen.push_str(&String::from_utf8_lossy(&bytes));
        }
    })
    .await;
    seen
}
