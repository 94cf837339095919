//! The kernels of this agent, and turns for those who change them.
//!
//! Invariants: a kernel is created, restarted and removed only by whoever holds its turn; whoever has a kernel in hand
//! may find that it ended meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use bai_model::{KernelId, RunId};
use bai_proto::agent::KernelCreated;
use chrono::{DateTime, Utc};
use serde_json::Value;
use tokio::sync::{OwnedMutexGuard, watch};
use tokio_util::sync::CancellationToken;

use super::client::Client;
use super::drive::Driver;
use super::listen::Listeners;
use super::run::Runs;
use super::state::KernelState;
use super::terminal::{Size, Terminal};
use crate::host::Host;
use crate::resource::allocation::Share;
use crate::runtime::{KernelSpec, Sample};
use crate::stats::{FolderSize, History, Usage};

/// A kernel that exists, with or without processes.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub id: KernelId,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: KernelState,
    life: Option<Arc<Life>>,
    last_used: DateTime<Utc>,
    /// Of the present life.
    history: History,
    stats: Option<Value>,
    scratch: FolderSize,
}

/// The time between a start and an end of a kernel's processes.
#[derive(Debug)]
pub(crate) struct Life {
    pub generation: u64,
    pub container_id: String,
    pub spec: KernelSpec,
    pub runs: Arc<Runs>,
    pub client: Arc<Client>,
    /// The size of the terminal's window.
    pub window: watch::Sender<Option<Size>>,
    /// Cancelled when this agent ends the life or has seen its end.
    pub ended: CancellationToken,
}

impl Kernel {
    pub fn new(state: KernelState, now: DateTime<Utc>) -> Self {
        Self {
            id: state.kernel,
            inner: Mutex::new(Inner {
                state,
                life: None,
                last_used: now,
                history: History::default(),
                stats: None,
                scratch: FolderSize::default(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Assignments only: nothing is half done after a panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn state(&self) -> KernelState {
        self.lock().state.clone()
    }

    pub fn set_state(&self, state: KernelState) {
        self.lock().state = state;
    }

    pub fn created(&self, host: &Host) -> KernelCreated {
        self.lock().state.created(host.kernel_host.as_deref())
    }

    pub fn life(&self) -> Option<Arc<Life>> {
        self.lock().life.clone()
    }

    pub fn begin_life(&self, life: Arc<Life>) {
        let mut inner = self.lock();
        (inner.life, inner.history) = (Some(life), History::default());
    }

    /// Ends the life, if there is one: its tasks stop, and whoever waits for one of its runs is told.
    pub fn end_life(&self) -> Option<Arc<Life>> {
        let life = self.lock().life.take()?;
        life.ended.cancel();
        life.runs.close();
        Some(life)
    }

    pub fn touch(&self, now: DateTime<Utc>) {
        self.lock().last_used = now;
    }

    /// Whether nobody has used the kernel for longer than it may stay idle.
    pub fn is_idle(&self, now: DateTime<Utc>) -> bool {
        let inner = self.lock();
        let limit = i64::try_from(inner.state.idle_timeout).unwrap_or(i64::MAX);
        limit > 0 && (now - inner.last_used).num_seconds() > limit
    }

    pub fn scratch_size(&self) -> FolderSize {
        self.lock().scratch
    }

    /// What it holds of cores, memory and devices.
    pub fn share(&self) -> Share {
        self.lock().state.grant.share.clone()
    }

    /// Takes a measurement in; what is known now.
    pub fn add_measurement(
        &self,
        sample: &Sample,
        scratch: FolderSize,
        limit: u64,
        devices: &BTreeMap<String, Usage>,
        now: Instant,
    ) -> Value {
        let mut inner = self.lock();
        inner.scratch = scratch;
        let mut stats = inner.history.add(sample, scratch.bytes, limit, now);
        if let Value::Object(stats) = &mut stats {
            stats.extend(inner.history.add_devices(devices, now));
        }
        inner.stats = Some(stats.clone());
        stats
    }

    pub fn stats(&self) -> Option<Value> {
        self.lock().stats.clone()
    }
}

impl Life {
    /// Connects to the runner, begins to drive its runs and to serve its ports.
    pub fn begin(
        host: &Arc<Host>,
        state: &KernelState,
        listeners: Listeners,
        container_id: String,
        resumed: Option<RunId>,
    ) -> Arc<Self> {
        let spec = state.spec(&host.layout.scratch_of(state.kernel));
        let ended = CancellationToken::new();
        let runs = Arc::new(Runs::default());
        if let Some(run) = resumed {
            runs.resume(run);
        }
        let (client, records) = Client::start(
            &host.tasks,
            Arc::clone(&host.runtime),
            spec.clone(),
            ended.clone(),
        );
        let client = Arc::new(client);
        let driver = Driver {
            runs: Arc::clone(&runs),
            client: Arc::clone(&client),
            records,
            scratch: spec.scratch.clone(),
            runner: spec.runner,
        };
        let until = ended.clone();
        host.tasks.spawn_until_stopped("drive runs", async move {
            _ = until.run_until_cancelled(driver.run()).await;
        });
        let (terminal, window) = Terminal::new(host, &spec);
        if state.runner.is_own() {
            listeners.serve(host, state, &spec, terminal, &ended);
        }
        Arc::new(Self {
            generation: state.generation,
            container_id,
            spec,
            runs,
            client,
            window,
            ended,
        })
    }
}

/// All kernels.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    kernels: Mutex<HashMap<KernelId, Arc<Kernel>>>,
    turns: Mutex<HashMap<KernelId, Weak<tokio::sync::Mutex<()>>>>,
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, HashMap<KernelId, Arc<Kernel>>> {
        self.kernels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, id: KernelId) -> Option<Arc<Kernel>> {
        self.lock().get(&id).cloned()
    }

    pub fn all(&self) -> Vec<Arc<Kernel>> {
        self.lock().values().cloned().collect()
    }

    pub fn insert(&self, kernel: Arc<Kernel>) {
        self.lock().insert(kernel.id, kernel);
    }

    pub fn remove(&self, id: KernelId) {
        self.lock().remove(&id);
    }

    /// Waits until nobody else changes the kernel; nobody else does while the guard is held.
    pub async fn turn(&self, id: KernelId) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            let existing = turns.get(&id).and_then(Weak::upgrade);
            existing.unwrap_or_else(|| {
                let turn = Arc::default();
                turns.insert(id, Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }
}
