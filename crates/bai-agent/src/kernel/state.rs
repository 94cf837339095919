//! What an agent keeps on disk about a kernel: `<scratch>/kernel.json`, outside of what the session sees.
//!
//! Invariants: before a kernel is told to run, the file is replaced durably in one step (temporary file, fsync, rename,
//! fsync of the folder); a folder without a readable file was never told to run, or was lost with the machine.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use bai_model::{KernelId, ResourceSlot, RunId};
use bai_proto::agent::{KernelCreated, ServicePort};
use bai_proto::runner::ServiceRequest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::files::Tree;
use crate::resource::Grant;
use crate::resource::accelerator::Given;
use crate::runtime::{KernelSpec, Runner};

pub(super) const FILE: &str = "kernel.json";
/// Names the active run. Not fsynced: it need not survive the machine, as the kernel does not either.
const RUN_FILE: &str = "active-run";

/// How far a kernel has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Phase {
    /// Not known to run. After a crash it is removed.
    Creating,
    Running,
    /// Between two lives. After a crash it is kept, without processes, until the manager restarts or destroys it.
    Restarting,
}

/// A folder of the host that the kernel sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BoundFolder {
    /// Name below `/home/work`.
    pub name: String,
    pub host: PathBuf,
    pub writable: bool,
}

impl BoundFolder {
    pub fn target(&self) -> String {
        format!("/home/work/{}", self.name)
    }
}

/// Everything needed to run a kernel, find it again, restart it and give back what it holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct KernelState {
    pub kernel: KernelId,
    pub phase: Phase,
    /// 1 at creation, one more with each restart.
    pub generation: u64,
    pub container_id: Option<String>,
    /// What the runtime calls the image.
    pub image: String,
    pub runtime_type: String,
    pub runtime_path: Option<String>,
    pub slots: ResourceSlot,
    pub grant: Grant,
    /// What the devices of the grant mean to it.
    #[serde(default)]
    pub devices: Given,
    /// Ports of the terminal's input and output; a kernel of an earlier version has none.
    #[serde(default)]
    pub terminal_ports: Option<(u16, u16)>,
    /// Ports of services; their host ports are among those of the grant.
    pub service_ports: Vec<ServicePort>,
    /// Shell commands of services that are not known by their names.
    #[serde(default)]
    pub service_commands: BTreeMap<String, String>,
    /// Seconds; 0 means never.
    pub idle_timeout: u64,
    pub environ: BTreeMap<String, String>,
    pub folders: Vec<BoundFolder>,
    /// The most bytes in the work folder, where that is memory; it is on the disk otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_scratch: Option<u64>,
    /// Another than ours only until the kernel is restarted.
    #[serde(default)]
    pub runner: Runner,
}

impl KernelState {
    /// Reads the state in a kernel's folder; `None` if there is none that can be read.
    pub fn read(scratch: &Path) -> Option<Self> {
        let bytes = fs::read(scratch.join(FILE)).ok()?;
        serde_json::from_slice(&bytes)
            .inspect_err(
                |error| tracing::error!(path = %scratch.display(), %error, "unreadable state of a kernel"),
            )
            .ok()
    }

    /// Writes the state durably. Blocking.
    ///
    /// # Errors
    /// When the disk does not take it; the earlier state is in place then.
    pub fn write(&self, scratch: &Path) -> io::Result<()> {
        self.replace(scratch, File::sync_all)?;
        File::open(scratch)?.sync_all()
    }

    /// Writes the state so that it survives this process, though maybe not the machine. Blocking.
    ///
    /// # Errors
    /// As [`KernelState::write`].
    pub fn write_quickly(&self, scratch: &Path) -> io::Result<()> {
        self.replace(scratch, |_| Ok(()))
    }

    fn replace(&self, scratch: &Path, sync: impl Fn(&File) -> io::Result<()>) -> io::Result<()> {
        let temporary = scratch.join("kernel.json.new");
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        sync(&file)?;
        fs::rename(&temporary, scratch.join(FILE))
    }

    pub fn spec(&self, scratch: &Path) -> KernelSpec {
        let folders = self.folders.iter();
        KernelSpec {
            kernel: self.kernel,
            scratch: scratch.to_owned(),
            image: self.image.clone(),
            environ: self.environ.clone(),
            cpu_set: self.grant.share.cpu.keys().copied().collect(),
            memory: self.grant.share.mem,
            runtime_type: self.runtime_type.clone(),
            runtime_path: self.runtime_path.clone(),
            gpus: self.devices.gpus.clone(),
            binds: folders
                .map(|folder| (folder.host.clone(), folder.target(), folder.writable))
                .collect(),
            index: self.grant.index,
            runner: self.runner,
        }
    }

    pub fn tree(&self, scratch: &Path) -> Tree {
        let folders = self.folders.iter();
        Tree {
            work: scratch.join("work"),
            mounts: folders
                .map(|folder| (folder.name.clone(), folder.host.clone(), folder.writable))
                .collect(),
        }
    }

    /// Takes ports in the order in which they are asked for: the runner's two, the terminal's two, one for each service.
    pub fn set_ports(&mut self, ports: Vec<u16>) {
        if let [_, _, input, output, services @ ..] = ports.as_slice() {
            self.terminal_ports = Some((*input, *output));
            for (service, port) in self.service_ports.iter_mut().zip(services) {
                service.host_port = *port;
            }
        }
        self.grant.ports = ports;
    }

    /// What the runner is told to start a service; `None` if the kernel does not have it. A caller may name a command: the
    /// session is its own.
    pub fn service_request(&self, name: &str, options: Value) -> Option<ServiceRequest> {
        let port = self.service_ports.iter().find(|port| port.name == name)?;
        let given = options.get("command").and_then(Value::as_str);
        let command = given.or(self.service_commands.get(name).map(String::as_str));
        Some(ServiceRequest {
            name: port.name.clone(),
            port: port.container_port,
            protocol: port.protocol.clone(),
            command: command.map(str::to_owned),
            options,
        })
    }

    /// What the manager is told; it reaches the kernel's ports at `kernel_host`.
    pub fn created(&self, kernel_host: Option<&str>) -> KernelCreated {
        let (stdin_port, stdout_port) = self.terminal_ports.unwrap_or_default();
        let port = |position: usize| self.grant.ports.get(position).copied().unwrap_or(0);
        KernelCreated {
            kernel_host: kernel_host.map(str::to_owned),
            repl_in_port: port(0),
            repl_out_port: port(1),
            stdin_port,
            stdout_port,
            service_ports: self.service_ports.clone(),
            container_id: self.container_id.clone().unwrap_or_default(),
        }
    }
}

/// The run that was active when the agent was last heard of.
pub(crate) fn read_active_run(scratch: &Path) -> Option<RunId> {
    fs::read_to_string(scratch.join(RUN_FILE))
        .ok()
        .filter(|text| !text.is_empty())
        .map(RunId)
}

/// Notes which run is active.
pub(crate) fn note_active_run(scratch: &Path, run: Option<&RunId>) {
    let file = scratch.join(RUN_FILE);
    let noted = match run {
        Some(run) => fs::write(&file, run.as_str()),
        None => fs::remove_file(&file),
    };
    if let Err(error) = noted
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(path = %file.display(), %error, "the active run could not be noted");
    }
}
