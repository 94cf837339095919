//! A runtime without processes, for tests of what is above: each kernel is a task that understands a tiny language.
//!
//! Code is executed line by line:
//!
//! | line | effect |
//! | --- | --- |
//! | `print <text>`, `error <text>` | the text and a newline to stdout or stderr |
//! | `bytes <hex>` | raw bytes to stdout |
//! | `media <mime> <data>`, `html <text>` | rich output |
//! | `flood <n>` | `n` lines to stdout, one record each: `0`, `1`, … |
//! | `input <prompt>` | prints the prompt, waits for input, prints `got <input>` |
//! | `sleep <ms>` | waits |
//! | `wait <gate>` | waits until [`FakeRuntime::open`] opens the gate |
//! | `file <path> <text>` | writes a file below the work folder, making folders |
//! | `env <name>` | prints a variable of the kernel |
//! | `exit <n>` | ends the run with this exit code |
//! | `die` | ends the kernel |
//!
//! Its network is the host's.
//!
//! Anything else is printed to stderr as unknown and ends the run with exit code 127. Batch steps are single lines of the
//! same language; `*` and nothing succeed. An interrupt ends `input`, `sleep` and `wait`, and the run, with exit code
//! 130. Completion offers the words of the language.
//!
//! A kernel that is started with the variable `FAKE_START=fail` does not start; with `FAKE_START=wait` it starts when the
//! gate `start` opens. Kernels outlive the agent and are found again by the next one with the same [`FakeRuntime`].

mod kernel;

use std::collections::{HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bai_model::KernelId;
use bai_proto::agent::KernelConfig;
use bai_proto::descriptor::Descriptor;
use bai_proto::event::AgentImage;
use bai_proto::sandbox::Refusal;
use socket2::{Domain, Socket, Type};
use tokio::sync::watch;

use self::kernel::FakeKernel;
use super::{KernelSpec, RunnerStream, Runtime, RuntimeError, Sample, Started};
use crate::tasks::Tasks;

/// The image that kernels of the fake runtime are made of.
pub const IMAGE: &str = "index.docker.io/lablup/python:3.11-host";

/// What was asked of the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    Start(KernelId),
    Adopt(KernelId),
    Connect(KernelId),
    Kill(KernelId),
}

/// Pretends to run kernels. Clones are the same runtime.
#[derive(Clone, Debug, Default)]
pub struct FakeRuntime {
    state: Arc<Mutex<State>>,
    gates: Arc<watch::Sender<HashSet<String>>>,
    tasks: Tasks,
}

#[derive(Debug, Default)]
struct State {
    kernels: HashMap<String, Arc<FakeKernel>>,
    calls: Vec<Call>,
    started: u64,
}

impl FakeRuntime {
    pub fn new() -> Self {
        Self::default()
    }

    /// The image [`IMAGE`], as an agent offers it.
    pub fn image() -> AgentImage {
        let text = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        AgentImage {
            canonical: IMAGE.to_owned(),
            digest: format!("sha256:{}", "0".repeat(64)),
            labels: [
                text("ai.backend.kernelspec", "1"),
                text("ai.backend.runtime-type", "python"),
            ]
            .into(),
            aliases: vec!["python".to_owned(), "python:3.11".to_owned()],
            resource_min: [text("cpu", "1"), text("mem", "64m")].into(),
        }
    }

    /// The configuration of a kernel with one core and 64 MiB.
    pub fn config() -> KernelConfig {
        let slots = [("cpu", 1), ("mem", 64 << 20)];
        KernelConfig {
            image: (&Self::image()).into(),
            resource_slots: slots
                .into_iter()
                .map(|(slot, amount)| (slot, i64::from(amount).into()))
                .collect(),
            idle_timeout: 0,
            mounts: Vec::new(),
            environ: std::collections::BTreeMap::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything asked of the runtime so far.
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// Opens a gate, for good.
    pub fn open(&self, gate: &str) {
        self.gates.send_modify(|open| _ = open.insert(gate.to_owned()));
    }

    /// Kernels that live.
    pub fn living(&self) -> Vec<KernelId> {
        let state = self.lock();
        state
            .kernels
            .values()
            .filter(|kernel| kernel.is_alive())
            .map(|kernel| kernel.id)
            .collect()
    }

    /// Ends a kernel as if by itself, for the reason given.
    pub fn die(&self, kernel: KernelId, reason: &str) {
        for kernel in self.of(kernel) {
            kernel.die(reason);
        }
    }

    /// Breaks the connection to a kernel's runner.
    pub fn disconnect(&self, kernel: KernelId) {
        for kernel in self.of(kernel) {
            kernel.disconnect();
        }
    }

    /// Lets a kernel's runner stand still, or go on.
    pub fn pause(&self, kernel: KernelId, is_paused: bool) {
        for kernel in self.of(kernel) {
            kernel.pause(is_paused);
        }
    }

    /// Records that a kernel's runner has sent, in all.
    pub fn records_sent(&self, kernel: KernelId) -> usize {
        self.of(kernel).iter().map(|kernel| kernel.records_sent()).sum()
    }

    fn of(&self, id: KernelId) -> Vec<Arc<FakeKernel>> {
        self.lock()
            .kernels
            .values()
            .filter(|kernel| kernel.id == id && kernel.is_alive())
            .cloned()
            .collect()
    }

    fn note(&self, call: Call) {
        self.lock().calls.push(call);
    }

    fn find_alive(&self, container_id: &str) -> Option<Arc<FakeKernel>> {
        self.lock()
            .kernels
            .get(container_id)
            .filter(|kernel| kernel.is_alive())
            .cloned()
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn start(&self, spec: &KernelSpec) -> Result<Started, RuntimeError> {
        self.note(Call::Start(spec.kernel));
        match spec.environ.get("FAKE_START").map(String::as_str) {
            Some("fail") => return Err(RuntimeError::Start("it was told to fail".to_owned())),
            // The sender lives as long as the runtime.
            Some("wait") => {
                _ = self
                    .gates
                    .subscribe()
                    .wait_for(|open| open.contains("start"))
                    .await
            }
            _ => {}
        }
        let kernel = FakeKernel::start(&self.tasks, spec.clone(), self.gates.subscribe());
        let mut state = self.lock();
        state.started += 1;
        let container_id = format!("fake-{}", state.started);
        state.kernels.insert(container_id.clone(), kernel);
        Ok(Started { container_id })
    }

    async fn adopt(&self, spec: &KernelSpec, container_id: &str) -> Result<Option<Started>, RuntimeError> {
        self.note(Call::Adopt(spec.kernel));
        Ok(self.find_alive(container_id).map(|_| Started {
            container_id: container_id.to_owned(),
        }))
    }

    async fn find(&self, spec: &KernelSpec) -> Option<Started> {
        let state = self.lock();
        let mut kernels = state.kernels.iter();
        let (container_id, _) = kernels.find(|(_, kernel)| kernel.id == spec.kernel && kernel.is_alive())?;
        Some(Started {
            container_id: container_id.clone(),
        })
    }

    async fn connect(&self, spec: &KernelSpec) -> Result<Box<dyn RunnerStream>, RuntimeError> {
        self.note(Call::Connect(spec.kernel));
        let kernel = self.of(spec.kernel).pop();
        let kernel = kernel.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::ConnectionRefused))?;
        Ok(Box::new(kernel.connect(&self.tasks)))
    }

    async fn descriptor(&self, _spec: &KernelSpec, wanted: Descriptor) -> std::io::Result<OwnedFd> {
        match wanted {
            Descriptor::Socket => {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
                socket.set_nonblocking(true)?;
                Ok(socket.into())
            }
            Descriptor::Terminal => Err(std::io::Error::other("a pretended kernel has no terminal")),
        }
    }

    async fn wait(&self, _spec: &KernelSpec, container_id: &str) -> String {
        let kernel = self.lock().kernels.get(container_id).cloned();
        match kernel {
            Some(kernel) => kernel.ended().await,
            None => "self-terminated".to_owned(),
        }
    }

    async fn kill(&self, spec: &KernelSpec, container_id: &str) -> Result<(), RuntimeError> {
        self.note(Call::Kill(spec.kernel));
        let kernel = self.lock().kernels.remove(container_id);
        if let Some(kernel) = kernel {
            kernel.die("killed");
        }
        Ok(())
    }

    async fn measure(&self, _spec: &KernelSpec, container_id: &str) -> Option<Sample> {
        let kernel = self.find_alive(container_id)?;
        Some(Sample {
            // Something that grows.
            cpu: f64::from(u32::try_from(kernel.records_sent()).unwrap_or(u32::MAX)),
            memory: 1 << 20,
            ..Sample::default()
        })
    }

    fn uid(&self) -> u32 {
        1000
    }

    fn refusals(&self) -> Vec<Refusal> {
        Vec::new()
    }
}
