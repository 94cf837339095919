//! The whole agent over the fake runtime.

mod execution;
mod lifecycle;
mod limits;
mod ports;
mod recovery;

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bai_model::random::Random;
use bai_model::time::Clock;
use bai_model::{AgentId, KernelId, ResourceSlot, RunId};
use bai_proto::agent::{
    AgentError, AgentRpc, BatchOptions, ConsoleItem, ExecuteMode, ExecuteReply, ExecuteRequest, KernelConfig,
    KernelCreated,
};
use bai_proto::event::AgentEvent;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::resource::accelerator::Accelerator;
use crate::runtime::fake::FakeRuntime;
use crate::{Agent, AgentOptions, Images};

const CPUS: u64 = 4;
const MEMORY: u64 = 1 << 30;
const PORTS: std::ops::RangeInclusive<u16> = 30000..=30015;

/// A clock that is moved by hand.
#[derive(Debug)]
struct ManualClock(Mutex<DateTime<Utc>>);

impl ManualClock {
    fn advance(&self, seconds: i64) {
        *self.0.lock().expect("a time") += TimeDelta::seconds(seconds);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> DateTime<Utc> {
        *self.0.lock().expect("a time")
    }
}

/// Bytes that are never the same again.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Random for Counter {
    fn fill(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let next = self.0.fetch_add(1, Ordering::Relaxed).to_le_bytes();
            chunk.copy_from_slice(&next[..chunk.len()]);
        }
    }
}

/// A loopback address that no other agent of these tests has.
fn own_address() -> IpAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, high, low, NEXT.fetch_add(1, Ordering::Relaxed)).into()
}

/// An agent with everything around it.
struct Bed {
    agent: Arc<Agent>,
    runtime: FakeRuntime,
    clock: Arc<ManualClock>,
    random: Arc<Counter>,
    events: mpsc::Receiver<AgentEvent>,
    dir: TempDir,
    /// A loopback address that no other test has.
    listen: IpAddr,
    accelerators: Vec<Accelerator>,
}

impl Bed {
    async fn new() -> Self {
        Self::new_at(own_address()).await
    }

    async fn new_at(listen: IpAddr) -> Self {
        Self::new_with(Vec::new(), listen).await
    }

    async fn new_with(accelerators: Vec<Accelerator>, listen: IpAddr) -> Self {
        let start = "2019-07-15T00:00:00Z".parse().expect("a time");
        let clock = Arc::new(ManualClock(Mutex::new(start)));
        let dir = tempfile::tempdir().expect("a folder");
        let runtime = FakeRuntime::new();
        Self::start(dir, runtime, clock, Arc::default(), listen, accelerators).await
    }

    async fn start(
        dir: TempDir,
        runtime: FakeRuntime,
        clock: Arc<ManualClock>,
        random: Arc<Counter>,
        listen: IpAddr,
        accelerators: Vec<Accelerator>,
    ) -> Self {
        let (sender, events) = mpsc::channel(1024);
        let mut options = AgentOptions::new(
            AgentId("i-test".to_owned()),
            dir.path().to_owned(),
            Arc::new(runtime.clone()),
            clock.clone(),
            random.clone(),
            sender,
        );
        options.images = Images::Given(vec![FakeRuntime::image()]);
        options.port_range = PORTS;
        options.listen = listen;
        options.resources.cpu = Some(CPUS);
        options.resources.mem = Some(MEMORY);
        options.resources.accelerators = accelerators.clone();
        options.idle_check_period = Duration::from_millis(5);
        let agent = Agent::start(options).await.expect("an agent");
        Self {
            agent,
            runtime,
            clock,
            random,
            events,
            dir,
            listen,
            accelerators,
        }
    }

    /// The agent is gone from one moment to the next; a new one starts in its place.
    async fn crash(self) -> Self {
        self.crash_and(|_| {}).await
    }

    /// As [`Bed::crash`], with something happening in between.
    async fn crash_and(self, between: impl FnOnce(&Self)) -> Self {
        // What dropping the agent does; done here, so that its tasks have ended before the next one starts.
        self.agent.host.tasks.stop();
        soon(self.agent.host.tasks.finished()).await;
        between(&self);
        let Self {
            dir,
            runtime,
            clock,
            random,
            listen,
            accelerators,
            ..
        } = self;
        Self::start(dir, runtime, clock, random, listen, accelerators).await
    }

    async fn create(&self, kernel: KernelId) -> KernelCreated {
        soon(self.agent.create_kernel(kernel, FakeRuntime::config()))
            .await
            .expect("a kernel")
    }

    fn scratch(&self, kernel: KernelId) -> PathBuf {
        self.dir.path().join("scratch").join(kernel.to_string())
    }

    /// The next event of a kernel's end: kernel, reason, generation, statistics.
    async fn terminated(&mut self) -> (KernelId, String, Option<u64>, Option<Value>) {
        loop {
            let event = soon(self.events.recv()).await.expect("an event");
            if let AgentEvent::KernelTerminated {
                kernel,
                reason,
                generation,
                stats,
            } = event
            {
                return (kernel, reason, generation, stats);
            }
        }
    }

    /// Runs code to its next boundary.
    async fn query(&self, kernel: KernelId, run: &str, code: &str) -> ExecuteReply {
        let request = request(run, ExecuteMode::Query, code);
        soon(self.agent.execute(kernel, request))
            .await
            .expect("executed")
            .expect("a kernel")
    }

    /// Goes on to the run's next boundary.
    async fn go_on(&self, kernel: KernelId, run: &str) -> ExecuteReply {
        let request = request(run, ExecuteMode::Continue, "");
        soon(self.agent.execute(kernel, request))
            .await
            .expect("executed")
            .expect("a kernel")
    }

    /// Waits until a run has its turn.
    async fn until_active(&self, kernel: KernelId, run: &str) {
        let active = || self.agent.host.registry.get(kernel)?.life()?.runs.active();
        until(|| active().is_some_and(|active| active.as_str() == run)).await;
    }

    /// Whether everything that the host has, and every port, can be had.
    fn is_all_free(&self) -> bool {
        let mut ledger = self.agent.host.ledger();
        let all = slots(CPUS, MEMORY);
        let taken = ledger.take(id(u128::MAX), &all, PORTS.count());
        ledger.release(id(u128::MAX));
        taken.is_ok()
    }

    /// Nothing is left of any kernel: no processes, no folders, nothing held.
    fn assert_clean(&self) {
        assert_eq!(self.runtime.living(), []);
        let left = std::fs::read_dir(self.dir.path().join("scratch"))
            .expect("readable")
            .count();
        assert_eq!(left, 0, "folders are left");
        assert!(self.is_all_free(), "something is still held");
    }
}

/// The outcome of what must not hang.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(90), work)
        .await
        .expect("it hangs")
}

/// Waits until a condition holds that no event tells.
async fn until(is_met: impl Fn() -> bool) {
    soon(async {
        while !is_met() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

fn id(number: u128) -> KernelId {
    KernelId(uuid::Uuid::from_u128(number))
}

fn slots(cpu: u64, mem: u64) -> ResourceSlot {
    let amount = |amount: u64| i64::try_from(amount).expect("small").into();
    [("cpu", amount(cpu)), ("mem", amount(mem))].into_iter().collect()
}

fn environ(name: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(name.to_owned(), value.to_owned())])
}

/// A configuration whose start waits for the gate `start`, or fails.
fn config_starting(how: &str) -> KernelConfig {
    KernelConfig {
        environ: environ("FAKE_START", how),
        ..FakeRuntime::config()
    }
}

fn request(run: &str, mode: ExecuteMode, code: &str) -> ExecuteRequest {
    ExecuteRequest {
        run_id: Some(RunId(run.to_owned())),
        mode,
        code: code.to_owned(),
        batch: BatchOptions::default(),
        flush_timeout: None,
    }
}

fn stdout(text: &str) -> ConsoleItem {
    ConsoleItem::Stdout(text.to_owned())
}

fn kind(error: &AgentError) -> String {
    error.repr().split('(').next().unwrap_or_default().to_owned()
}
