//! What the agent knows of a kernel, on disk: `<scratch>/<kernel>/kernel.json`, written before the kernel runs, so that the
//! next agent process finds it (crash-only).

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bai_model::KernelId;
use bai_proto::agent::KernelCreated;
use serde::{Deserialize, Serialize};

use crate::resource::Allocation;
use crate::runtime::KernelSpec;

/// The record of a kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelState {
    pub kernel: KernelId,
    /// Distinguishes the lives of a restarted kernel.
    pub generation: u64,
    /// The runtime's name; none until the kernel runs.
    pub container_id: Option<String>,
    pub allocation: Allocation,
    /// See [`KernelSpec::index`]; also decides the port numbers.
    pub index: u32,
    /// Seconds; 0 means never.
    pub idle_timeout: u64,
    pub runtime_type: String,
    pub runtime_path: Option<String>,
    pub environ: BTreeMap<String, String>,
}

/// Ports of kernel `n` begin at this number plus twice `n`. Nothing listens on them with the process runtime; they are
/// what the manager's records want to hold.
const FIRST_PORT: u16 = 30_000;
/// Kernels of one agent at once.
pub const MAX_KERNELS: u32 = 10_000;

impl KernelState {
    /// What the runtime is told.
    pub fn spec(&self, scratch: PathBuf) -> KernelSpec {
        KernelSpec {
            kernel: self.kernel,
            scratch,
            environ: self.environ.clone(),
            cpu_set: self.allocation.cpus.keys().copied().collect(),
            memory: self.allocation.memory,
            runtime_type: self.runtime_type.clone(),
            runtime_path: self.runtime_path.clone(),
            binds: Vec::new(),
            index: self.index,
        }
    }

    /// What the manager is told.
    pub fn created(&self) -> KernelCreated {
        let port = FIRST_PORT + u16::try_from(self.index * 2).unwrap_or(0);
        KernelCreated {
            kernel_host: None,
            repl_in_port: port,
            repl_out_port: port + 1,
            stdin_port: 0,
            stdout_port: 0,
            service_ports: Vec::new(),
            container_id: self.container_id.clone().unwrap_or_default(),
        }
    }

    /// Writes the record so that a crash leaves the old one or the new one.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn save(&self, scratch: &Path) -> io::Result<()> {
        let temporary = scratch.join(".kernel.json");
        let mut file = fs::File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(temporary, scratch.join("kernel.json"))?;
        fs::File::open(scratch)?.sync_all()
    }

    /// # Errors
    /// When there is no record or it makes no sense.
    pub fn load(scratch: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(scratch.join("kernel.json"))?)?)
    }
}
