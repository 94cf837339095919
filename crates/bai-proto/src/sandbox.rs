//! What an agent tells `bai-runner sandbox` to build around a session on the process runtime.
//!
//! The conversation happens over the runner's standard input, one end of a unix socket pair:
//!
//! 1. the agent writes one [`SandboxSpec`] as a line of JSON;
//! 2. the runner builds the namespaces, mounts and limits, and answers one [`SandboxReport`] as a line of JSON, which
//!    names each thing that the machine refused;
//! 3. the agent makes a durable note of the process and writes [`GO`]; only then does the session's program start.
//!    A socket that ends before that ends the sandbox.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The byte that lets a reported sandbox start its session.
pub const GO: u8 = b'g';

/// A sandbox to be built. Paths are absolute paths of the host unless they say otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    pub kernel_id: String,
    pub hostname: String,
    /// Becomes `/home/work`, writable.
    pub work_dir: String,
    /// Becomes `/home/config`, read-only.
    pub config_dir: String,
    /// Directory for the runner's unix socket (`runner.sock`) and log (`runner.log`). Both are opened before the
    /// sandbox exists and the directory is not visible inside, so that user code can neither replace them nor pose
    /// as the agent.
    pub socket_dir: String,
    /// More host paths to bind: folders, extra read-only trees.
    pub binds: Vec<Bind>,
    /// The host user and group that `work` (uid and gid 1000 inside) maps to.
    pub host_uid: u32,
    pub host_gid: u32,
    /// Control groups that the agent has made, with their limits set; entered before anything else is done.
    #[serde(default)]
    pub cgroups: Vec<String>,
    /// Environment of the session's programs, beside the language defaults.
    pub environ: BTreeMap<String, String>,
    pub limits: Limits,
    pub network: Network,
    /// `ai.backend.runtime-type`, for example `python`.
    pub runtime_type: String,
    /// `ai.backend.runtime-path`, for example `/usr/bin/python3`.
    pub runtime_path: Option<String>,
    /// Whether the session ends when the agent's end of the control socket closes (embedded, ephemeral stacks) or
    /// outlives the agent to be adopted by the next one.
    pub dies_with_agent: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    pub source: String,
    /// Absolute path inside the sandbox.
    pub target: String,
    pub writable: bool,
}

/// Limits by rlimits, which hold wherever cgroups are refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Limit of writable private memory for every process in bytes (`RLIMIT_DATA`: an address-space limit would
    /// break programs that reserve more than they use, as Go, Java and Node do). Only set when the memory cgroup is
    /// not available.
    pub memory: Option<u64>,
    /// Size of `/tmp` and of `/dev/shm` in bytes.
    pub tmp_size: Option<u64>,
    pub open_files: u64,
    pub processes: Option<u64>,
    pub file_size: Option<u64>,
    /// CPUs that the session may use; empty for all.
    pub cpu_set: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// A network namespace of its own with a loopback interface only.
    Isolated,
    /// The host's network, where an isolated one is refused or not wanted.
    Host,
}

/// What became of the sandbox, told over the control socket before any user code runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxReport {
    /// Host process id of the session's first process (pid 1 inside).
    pub pid: i32,
    /// Protections in force, for example `user namespace`, `seccomp`, `landlock abi 5`.
    pub enforced: Vec<String>,
    /// Protections that this machine refused, each with its reason.
    pub refused: Vec<Refusal>,
    /// Why there is no sandbox at all. `pid`, unless 0, is about to end then, and everything else is meaningless.
    pub fatal: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub protection: String,
    pub reason: String,
}
