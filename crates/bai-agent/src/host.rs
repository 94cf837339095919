//! What everything in an agent shares.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bai_model::random::Random;
use bai_model::time::Clock;
use bai_model::{AgentId, KernelId, RunId};
use bai_proto::event::AgentEvent;
use bai_proto::zmtp::AllowList;
use tokio::sync::mpsc;

use crate::agent::AgentOptions;
use crate::heartbeat::{Identity, Offer};
use crate::image::Shelf;
use crate::kernel::registry::Registry;
use crate::resource::Ledger;
use crate::resource::allocation::Pool;
use crate::resource::nvidia::Driver;
use crate::resource::ports::Ports;
use crate::runtime::Runtime;
use crate::stats::{Latest, Publisher};
use crate::tasks::Tasks;

/// How long the manager may take to accept an event.
const EVENT_DEADLINE: Duration = Duration::from_secs(10);

/// Where an agent keeps things.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    /// A folder for each kernel, named by its id.
    pub scratch: PathBuf,
    pub trash: PathBuf,
    /// Folders to mount are below, at `<host>/<prefix>/<id>`.
    pub mounts: PathBuf,
    pub mount_prefix: String,
}

impl Layout {
    pub fn scratch_of(&self, kernel: KernelId) -> PathBuf {
        self.scratch.join(kernel.to_string())
    }
}

/// The inside of an agent.
#[derive(Debug)]
pub(crate) struct Host {
    pub id: AgentId,
    pub layout: Layout,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    pub runtime: Arc<dyn Runtime>,
    pub registry: Registry,
    pub images: Shelf,
    pub tasks: Tasks,
    pub publisher: Publisher,
    pub gpus: Option<Arc<Driver>>,
    pub device_use: Latest,
    /// What managers are told of this agent beside its amounts.
    pub identity: Identity,
    pub offer: Offer,
    /// Where kernels' ports are opened, as what managers know it, and for whom.
    pub listen: IpAddr,
    pub kernel_host: Option<String>,
    pub allow: AllowList,
    /// The most bytes in a work folder, where those are memory.
    pub memory_scratch: Option<u64>,
    ledger: Mutex<Ledger>,
    events: mpsc::Sender<AgentEvent>,
}

impl Host {
    pub fn new(options: AgentOptions, layout: Layout, images: Shelf, pool: Pool) -> Self {
        Self {
            id: options.id,
            layout,
            clock: options.clock,
            random: options.random,
            runtime: options.runtime,
            registry: Registry::default(),
            images,
            tasks: Tasks::default(),
            publisher: Publisher::new(options.publish),
            gpus: options.gpus,
            device_use: Latest::default(),
            identity: options.identity,
            offer: Offer::default(),
            listen: options.listen,
            kernel_host: options.kernel_host,
            allow: options.allow,
            memory_scratch: options.memory_scratch,
            ledger: Mutex::new(Ledger::new(pool, Ports::new(options.port_range))),
            events: options.events,
        }
    }

    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // Its operations complete before they can panic.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the manager. An event that it does not take in time is dropped: its reconciler finds out by itself.
    pub async fn tell(&self, event: AgentEvent) {
        if let Err(error) = self.events.send_timeout(event, EVENT_DEADLINE).await
            && !self.tasks.is_stopped()
        {
            tracing::warn!(agent.id = %self.id, %error, "the manager did not take an event");
        }
    }

    /// As [`Host::tell`], for what is told again soon: it is dropped when the manager is behind.
    pub fn tell_if_room(&self, event: AgentEvent) {
        if let Err(error) = self.events.try_send(event) {
            tracing::debug!(agent.id = %self.id, %error, "an event is left out");
        }
    }

    /// Somebody uses a kernel now.
    pub fn note_use(&self, kernel: KernelId) {
        if let Some(kernel) = self.registry.get(kernel) {
            kernel.touch(self.clock.now());
        }
    }

    /// A text that nothing else has.
    pub fn unique(&self) -> String {
        RunId::generate(self.random.as_ref(), 32).0
    }
}
