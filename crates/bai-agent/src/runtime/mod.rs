//! What can run a kernel: the process runtime (sandboxes made of namespaces), Docker (containers of any image), a fake in
//! tests.
//!
//! Invariants: a runtime never forgets what it started: [`Runtime::adopt`] finds a kernel of a previous agent process
//! again or says that it is gone; [`Runtime::kill`] returns only when no process of the kernel is left.

mod descriptor;
pub mod docker;
#[cfg(any(test, feature = "fake"))]
pub mod fake;
mod owner;
pub mod process;
mod sample;
mod socket;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bai_model::KernelId;
use bai_proto::descriptor::Descriptor;
use bai_proto::sandbox::Refusal;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

pub use sample::Sample;
pub(crate) use sample::network;

/// A duplex byte stream to a kernel's runner, carrying `bai_proto::runner` frames.
pub trait RunnerStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> RunnerStream for T {}

/// Whose program serves a kernel, and how it is spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Runner {
    /// Ours, by [`Runtime::connect`].
    #[default]
    Own,
    /// The original's, in a container that an agent of 19.06 has started (`agent-protocol.md` 6.3): over ZeroMQ, at the
    /// host's side of the ports 2000 and 2001, which the engine publishes as it does those of services.
    Published { input: SocketAddr, output: SocketAddr },
}

impl Runner {
    /// Whether the kernel's ports are ours to open.
    pub fn is_own(self) -> bool {
        self == Self::Own
    }
}

/// A container of an agent of 19.06 whose folder is one of ours now (`agent-protocol.md` 7.7, 7.9).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inherited {
    pub kernel: KernelId,
    pub container_id: String,
    /// What it was made of, as the runtime knows it exactly.
    pub image: String,
    /// Those of the image.
    pub labels: BTreeMap<String, String>,
    /// Host addresses by the container's ports.
    pub ports: BTreeMap<u16, SocketAddr>,
    /// CPUs that it is bound to.
    pub cpu_set: Vec<usize>,
    /// Its limit in bytes; 0 means none.
    pub memory: u64,
}

/// Everything a runtime needs to start a kernel.
#[derive(Clone, Debug)]
pub struct KernelSpec {
    pub kernel: KernelId,
    /// `<scratch root>/<kernel id>`; the agent has made `work`, `config` and `run` below it.
    pub scratch: PathBuf,
    /// What the kernel is made of, where the runtime has images: a name or an id that it knows.
    pub image: String,
    pub environ: BTreeMap<String, String>,
    /// CPUs given to the kernel, as host CPU numbers; empty means no binding.
    pub cpu_set: Vec<usize>,
    /// Memory limit in bytes; 0 means none.
    pub memory: u64,
    pub runtime_type: String,
    pub runtime_path: Option<String>,
    /// NVIDIA devices that the kernel sees, by their UUIDs, where the runtime can give any.
    pub gpus: Vec<String>,
    /// Folders to mount: host path, path inside, writable.
    pub binds: Vec<(PathBuf, String, bool)>,
    /// A small number that no other living kernel of this agent has, for per-kernel user ids and the like.
    pub index: u32,
    /// Of a kernel that runs; one that is started gets ours.
    pub runner: Runner,
}

impl KernelSpec {
    /// A kernel of which only its folder is known, to find it and to kill it.
    pub fn unknown(kernel: KernelId, scratch: PathBuf) -> Self {
        Self {
            kernel,
            scratch,
            image: String::new(),
            environ: BTreeMap::new(),
            cpu_set: Vec::new(),
            memory: 0,
            runtime_type: String::new(),
            runtime_path: None,
            gpus: Vec::new(),
            binds: Vec::new(),
            index: 0,
            runner: Runner::Own,
        }
    }
}

/// A kernel that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// The runtime's name for the kernel, stable over restarts of the agent and never reused for another one
    /// (for processes: boot id, pid and start time).
    pub container_id: String,
}

#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("cannot start the kernel: {0}")]
    Start(String),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

#[async_trait]
pub trait Runtime: Send + Sync + std::fmt::Debug {
    /// Starts the kernel; returns when its runner accepts connections. On failure nothing is left behind.
    async fn start(&self, spec: &KernelSpec) -> Result<Started, RuntimeError>;
    /// Finds a kernel that a previous agent process started; `None` when it is gone.
    async fn adopt(&self, spec: &KernelSpec, container_id: &str) -> Result<Option<Started>, RuntimeError>;
    /// Finds a living kernel by the runtime's own records: one whose start was interrupted before its container id was
    /// told.
    async fn find(&self, _spec: &KernelSpec) -> Option<Started> {
        None
    }
    /// Containers of an agent of 19.06, running or not, whose folders are in `scratch_root`. Others of such agents are
    /// named in the log, because they hold what this agent thinks is free.
    ///
    /// # Errors
    /// When the runtime cannot say.
    async fn inherited(&self, _scratch_root: &Path) -> Result<Vec<Inherited>, RuntimeError> {
        Ok(Vec::new())
    }
    /// What a kernel's processes have printed, where the runtime keeps that: of kernels whose runner is not ours.
    ///
    /// # Errors
    /// When it cannot be had.
    async fn printed(&self, container_id: &str) -> Result<String, RuntimeError> {
        _ = container_id;
        Ok(String::new())
    }
    /// A new connection to the kernel's own runner ([`Runner::Own`]); it replaces an older one.
    async fn connect(&self, spec: &KernelSpec) -> Result<Box<dyn RunnerStream>, RuntimeError>;
    /// A descriptor from inside the kernel's session.
    ///
    /// # Errors
    /// When the runner has none to give, with its reason, or is older than this.
    async fn descriptor(&self, spec: &KernelSpec, wanted: Descriptor) -> io::Result<OwnedFd>;
    /// Resolves when the kernel has ended by itself, with the reason (`self-terminated`, `out-of-memory`). What the
    /// kernel held besides processes is given back by [`Runtime::kill`], also after this.
    async fn wait(&self, spec: &KernelSpec, container_id: &str) -> String;
    /// Kills every process of the kernel and returns when they are gone. Nothing to kill is success.
    async fn kill(&self, spec: &KernelSpec, container_id: &str) -> Result<(), RuntimeError>;
    /// What the kernel has used so far; none of one that does not run.
    async fn measure(&self, spec: &KernelSpec, container_id: &str) -> Option<Sample>;
    /// The user's id as a session sees it.
    fn uid(&self) -> u32;
    /// Protections that this machine refuses, known after the first start (or a probe).
    fn refusals(&self) -> Vec<Refusal>;
}
