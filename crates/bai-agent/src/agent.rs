//! An agent as a whole: its options, start and stop.

use std::fmt;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bai_backplane::broker::Broker;
use bai_model::AgentId;
use bai_model::random::Random;
use bai_model::time::Clock;
use bai_proto::agent::AgentError;
use bai_proto::event::AgentEvent;
use bai_proto::sandbox::Refusal;
use bai_proto::zmtp::AllowList;
use tokio::sync::mpsc;

use crate::heartbeat::{self, Identity};
use crate::host::{Host, Layout};
use crate::image::{Images, Shelf};
use crate::kernel::registry::Kernel;
use crate::kernel::{lifecycle, memory};
use crate::resource::discovery::{self, Wanted};
use crate::resource::nvidia::Driver;
use crate::runtime::{Runtime, RuntimeError};
use crate::tasks::blocking;
use crate::{idle, stats};

/// What an agent is made of.
#[derive(Debug)]
pub struct AgentOptions {
    pub id: AgentId,
    /// What managers are told of it.
    pub identity: Identity,
    /// What the agent remembers, and what it removes.
    pub data_dir: PathBuf,
    /// A folder for each kernel; `scratch` in `data_dir` unless it is somewhere else.
    pub scratch_root: PathBuf,
    /// The most bytes in a kernel's work folder, to have those in memory; they are on the disk otherwise, and also where this
    /// process must not mount.
    pub memory_scratch: Option<u64>,
    /// Host ports for kernels' services and terminals.
    pub port_range: RangeInclusive<u16>,
    /// The address of this host on which those ports are opened.
    pub listen: IpAddr,
    /// By what name or address managers reach them; `None` leaves it to the manager, which takes the agent's own.
    pub kernel_host: Option<String>,
    /// Who may connect to them. Usually, of this host, the agent's own user and root.
    pub allow: AllowList,
    pub runtime: Arc<dyn Runtime>,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    /// Where events go, in their order.
    pub events: mpsc::Sender<AgentEvent>,
    /// What is offered instead of, or taken off, what the machine has.
    pub resources: Wanted,
    /// Virtual folders are at `<mounts_root>/<host>/<mount_prefix>/<folder id>`.
    pub mounts_root: PathBuf,
    pub mount_prefix: String,
    pub images: Images,
    /// Between two looks for idle kernels.
    pub idle_check_period: Duration,
    /// Between two measurements.
    pub stats_period: Duration,
    /// Where measurements are published.
    pub publish: Option<Arc<dyn Broker>>,
    /// Between two heartbeats; without it there is one at the start and at every change.
    pub heartbeat_period: Option<Duration>,
    /// The driver of the devices among `resources` that are NVIDIA's.
    pub gpus: Option<Arc<Driver>>,
}

impl AgentOptions {
    /// Options with the usual values for what is not an argument.
    pub fn new(
        id: AgentId,
        data_dir: PathBuf,
        runtime: Arc<dyn Runtime>,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
        events: mpsc::Sender<AgentEvent>,
    ) -> Self {
        Self {
            identity: Identity::in_process(&id),
            id,
            port_range: 30000..=31000,
            listen: Ipv4Addr::LOCALHOST.into(),
            kernel_host: Some(Ipv4Addr::LOCALHOST.to_string()),
            // On loopback, where other users of the host are, too.
            allow: AllowList::default().only_user(nix::unistd::geteuid().as_raw()),
            runtime,
            clock,
            random,
            events,
            resources: Wanted::default(),
            mounts_root: data_dir.join("volumes"),
            scratch_root: data_dir.join("scratch"),
            memory_scratch: None,
            data_dir,
            mount_prefix: String::new(),
            images: Images::of_host(None),
            idle_check_period: Duration::from_secs(10),
            stats_period: Duration::from_secs(2),
            publish: None,
            heartbeat_period: None,
            gpus: None,
        }
    }
}

/// Why an agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the agent cannot use the folder {path}: {source}")]
    Folder { path: PathBuf, source: io::Error },
    #[error("the agent cannot find out which sessions this host has: {0}")]
    Sessions(#[from] RuntimeError),
}

/// A running agent. Dropping it is what a crash is to it: kernels go on, and are found again by the next one.
pub struct Agent {
    pub(crate) host: Arc<Host>,
}

impl fmt::Debug for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Agent")
            .field("id", &self.host.id)
            .finish_non_exhaustive()
    }
}

impl Agent {
    /// Starts an agent: finds out what the host has, adopts the kernels of an earlier agent process with the same
    /// folder, those of an agent of 19.06 among them, and sends the first heartbeat.
    ///
    /// # Errors
    /// When its folder cannot be used, or its sessions are not to be known.
    pub async fn start(mut options: AgentOptions) -> Result<Arc<Self>, StartError> {
        let layout = Layout {
            trash: trash_of(&options),
            scratch: options.scratch_root.clone(),
            mounts: options.mounts_root.clone(),
            mount_prefix: options.mount_prefix.clone(),
        };
        let folders = layout.clone();
        let wanted = options.resources.clone();
        let prepared = blocking(move || make_folders(&folders).map(|()| discovery::discover(&wanted))).await;
        let pool =
            prepared.unwrap_or_else(|| Err((PathBuf::new(), io::Error::other("the process is going down"))));
        let pool = pool.map_err(|(path, source)| StartError::Folder { path, source })?;
        if options.memory_scratch.is_some() && !can_mount(options.scratch_root.clone()).await {
            options.memory_scratch = None;
        }
        let kept = options.data_dir.join("images.json");
        let images = Shelf::fill(options.images.clone(), &kept, options.clock.now()).await;
        let (idle_check_period, stats_period) = (options.idle_check_period, options.stats_period);
        let heartbeat_period = options.heartbeat_period;
        let host = Arc::new(Host::new(options, layout, images, pool));
        lifecycle::empty_trash(&host);
        lifecycle::adopt_all(&host).await?;
        heartbeat::send(&host).await;
        if let Some(period) = heartbeat_period {
            let beating = heartbeat::send_regularly(Arc::clone(&host), period);
            host.tasks.spawn_until_stopped("heartbeats", beating);
            let looking = heartbeat::refresh_regularly(Arc::clone(&host));
            host.tasks.spawn_until_stopped("images", looking);
        }
        host.tasks.spawn_until_stopped(
            "idle kernels",
            idle::enforce_regularly(Arc::clone(&host), idle_check_period),
        );
        host.tasks.spawn_until_stopped(
            "statistics",
            stats::gather_regularly(Arc::clone(&host), stats_period),
        );
        Ok(Arc::new(Self { host }))
    }

    pub fn id(&self) -> &AgentId {
        &self.host.id
    }

    /// Tells managers that the agent is there with all that belongs to it. Its first heartbeat went before.
    pub async fn tell_started(&self) {
        let agent = self.host.id.clone();
        self.host.tell(AgentEvent::InstanceStarted { agent }).await;
    }

    /// Stops the agent, when what it has begun is finished. Kernels end, too, or go on and are found again by the next
    /// agent with the same folder.
    pub async fn shutdown(&self, destroy_kernels: bool) {
        // Before anything stops, lest a run that cannot go on seems to have failed.
        for life in self.host.registry.all().iter().filter_map(|kernel| kernel.life()) {
            life.runs.close();
        }
        // From here on no call begins anything.
        self.host.tasks.stop();
        if destroy_kernels {
            self.destroy_all_logged().await;
        } else {
            for kernel in self.host.registry.all() {
                kernel.end_life();
            }
        }
        let (agent, reason) = (self.host.id.clone(), "shutdown".to_owned());
        self.host.tasks.finished().await;
        if destroy_kernels {
            // What was still being created.
            self.destroy_all_logged().await;
            self.host.tasks.finished().await;
        }
        self.host
            .tell(AgentEvent::InstanceTerminated { agent, reason })
            .await;
    }

    async fn destroy_all_logged(&self) {
        if let Err(error) = self.destroy_all("agent-termination").await {
            tracing::error!(agent.id = %self.host.id, %error, "not every kernel could be ended");
        }
    }

    /// Protections that this machine refuses, as far as the kernels that were started have shown.
    pub fn refusals(&self) -> Vec<Refusal> {
        self.host.runtime.refusals()
    }

    /// Ends all kernels at the same time. The first failure is the error; the others are in the log.
    pub(crate) async fn destroy_all(&self, reason: &'static str) -> Result<(), AgentError> {
        let end = |kernel: Arc<Kernel>| {
            let host = Arc::clone(&self.host);
            self.host.tasks.spawn("destroy kernel", async move {
                let ended = lifecycle::destroy(&host, kernel.id, reason).await;
                ended.inspect_err(
                    |error| tracing::error!(kernel.id = %kernel.id, %error, "a kernel cannot be ended"),
                )
            })
        };
        let endings: Vec<_> = self.host.registry.all().into_iter().map(end).collect();
        let mut outcome = Ok(());
        for ending in endings {
            let ended = ending
                .await
                .unwrap_or_else(|error| Err(crate::error::runtime(error.to_string())));
            outcome = outcome.and(ended.map(|_| ()));
        }
        outcome
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.host.tasks.stop();
    }
}

fn make_folders(layout: &Layout) -> Result<(), (PathBuf, io::Error)> {
    for folder in [&layout.scratch, &layout.trash] {
        fs::create_dir_all(folder).map_err(|error| (folder.clone(), error))?;
    }
    // Sessions' users have to get through to their own folders; nobody has to see the others' names.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o711);
    fs::set_permissions(&layout.scratch, mode).map_err(|error| (layout.scratch.clone(), error))
}

/// Whether work folders can be in memory; why not is in the log.
async fn can_mount(scratch_root: PathBuf) -> bool {
    let tried = blocking(move || memory::try_out(&scratch_root)).await;
    match tried {
        Some(Ok(())) => true,
        Some(Err(error)) => {
            tracing::warn!(
                %error,
                "sessions' work folders are on the disk, although they should be in memory: this process must not mount. Run \
                 it as root, or mount a tmpfs at the scratch root"
            );
            false
        }
        None => false,
    }
}

/// Folders are thrown away by renaming, which stays on one file system.
fn trash_of(options: &AgentOptions) -> PathBuf {
    if options.scratch_root.starts_with(&options.data_dir) {
        options.data_dir.join("trash")
    } else {
        options.scratch_root.join(".trash")
    }
}
