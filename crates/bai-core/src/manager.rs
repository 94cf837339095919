//! The manager: what operations share, and the life of its background work.
//!
//! Invariants: every background task runs under one tracker and ends with [`Manager::shutdown`]; counters that are
//! written behind are at most one second old in the database while the manager runs, and are flushed when it stops.

use std::sync::Arc;
use std::time::Duration;

use bai_backplane::broker::Broker;
use bai_backplane::config::Config;
use bai_backplane::kv::WatchEvent;
use bai_model::random::Random;
use bai_model::time::Clock;
use bai_model::{AccessKey, AgentId, SlotTypes, SlotUnit};
use bai_proto::agent::AgentRpc;
use bai_proto::event::AgentEvent;
use bai_proto::rpc::AgentOptions;
use bai_proto::zmtp::Tls;
use bai_store::Store;
use futures_util::StreamExt as _;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::agents::Agents;
use crate::auth::{CREDENTIALS, Credential, UsageLedger};
use crate::cluster::{Cluster, Duty};
use crate::event::Endings;
use crate::fresh::Fresh;
use crate::image::Catalogue;
use crate::lifecycle::EventHub;
use crate::manager_status::{ManagerStatus, SessionCount};
use crate::rate::RateCounter;
use crate::reconcile::{InFlight, Start};
use crate::session::{LastPlacement, NameSearch, Plan, Project, ProjectKey};
use crate::stream::Streams;
use crate::together::Waiting;
use crate::{Error, Result, auth};

/// How often written-behind counters reach the database.
const FLUSH_PERIOD: Duration = Duration::from_secs(1);
/// How often every record is compared with what the agents say, beside the nudges.
const RECONCILE_PERIOD: Duration = Duration::from_secs(10);

/// How long work that is going on may take to end when the manager stops (`http-api.md` 1.12).
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(30);
/// How long the first heartbeat of an agent is waited for.
const REGISTRATION_DEADLINE: Duration = Duration::from_secs(30);

/// Where the types of slots are (`data-model.md` 10.1).
const SLOT_TYPES: &str = "config/resource_slots/";
/// Before a watch that could not begin is begun again.
const WATCH_PAUSE: Duration = Duration::from_secs(1);

/// What a manager is made of.
#[derive(Debug)]
pub struct ManagerOptions {
    pub store: Store,
    pub config: Config,
    /// How image registries are talked to.
    pub registries: bai_registry::Options,
    pub broker: Arc<dyn Broker>,
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    /// How long an agent that says nothing is believed to be there: `manager.heartbeat-timeout` (`http-api.md` 5.1), which
    /// must be longer than the three seconds between heartbeats.
    pub heartbeat_timeout: Duration,
    /// For calls to agents on other hosts, where these want it.
    pub agent_tls: Option<Tls>,
}

/// Everything that operations share. Made once by [`Manager::start`] and held in an [`Arc`].
#[derive(Debug)]
pub struct Manager {
    pub(crate) store: Store,
    pub(crate) config: Config,
    pub(crate) catalogue: Catalogue,
    pub(crate) broker: Arc<dyn Broker>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) random: Arc<dyn Random>,
    /// By access key; nothing for one that gets in nowhere.
    pub(crate) credentials: Fresh<Option<Credential>, AccessKey>,
    pub(crate) usage: UsageLedger,
    pub(crate) status: Fresh<ManagerStatus>,
    /// How often all sessions had been told to end when it was last seen that sessions may begin.
    pub(crate) admission: Fresh<i64>,
    pub(crate) slot_types: Fresh<SlotTypes>,
    pub(crate) projects: Fresh<Arc<Project>, ProjectKey>,
    pub(crate) name_searches: Waiting<NameSearch>,
    pub(crate) session_counts: Waiting<SessionCount>,
    pub(crate) recordings: Waiting<Arc<Plan>>,
    pub(crate) starts: Waiting<Start>,
    pub(crate) last_placement: LastPlacement,
    pub(crate) password_checks: Semaphore,
    pub(crate) rates: RateCounter,
    pub(crate) cluster: Cluster,
    pub(crate) heartbeat_timeout: Duration,
    pub(crate) in_flight: InFlight,
    pub(crate) endings: Endings,
    pub(crate) agents: Agents,
    pub(crate) streams: Streams,
    pub(crate) events: EventHub,
    pub(crate) tasks: TaskTracker,
    membership: TaskTracker,
    /// Work begins no more, and what goes on ends.
    pub(crate) stopping: CancellationToken,
    /// The lease is kept up until here.
    pub(crate) leaving: CancellationToken,
    nudge: Notify,
    /// The configuration store lost what was in it.
    pub(crate) forgotten: Notify,
    /// Whether an agent's first heartbeat was recorded.
    pub(crate) registered: watch::Sender<bool>,
}

impl Manager {
    /// Builds a manager and starts its background work: the write-behind of counters and the reconcilers.
    ///
    /// # Errors
    /// When the configuration store cannot take the manager's status.
    pub async fn start(options: ManagerOptions) -> Result<Arc<Self>> {
        let calling = AgentOptions {
            clock: Arc::clone(&options.clock),
            random: Arc::clone(&options.random),
            tls: options.agent_tls,
        };
        let (events, announced) = EventHub::new();
        let manager = Arc::new(Self {
            rates: RateCounter::new(Arc::clone(&options.broker), Arc::clone(&options.clock)),
            cluster: Cluster::new(&options.store, options.random.as_ref()),
            heartbeat_timeout: options.heartbeat_timeout,
            store: options.store,
            catalogue: Catalogue::new(options.config.clone(), options.registries),
            config: options.config,
            broker: options.broker,
            clock: options.clock,
            random: options.random,
            credentials: Fresh::of_at_most(CREDENTIALS),
            usage: UsageLedger::default(),
            status: Fresh::default(),
            admission: Fresh::default(),
            slot_types: Fresh::default(),
            projects: Fresh::default(),
            name_searches: Waiting::default(),
            session_counts: Waiting::default(),
            recordings: Waiting::default(),
            starts: Waiting::default(),
            last_placement: LastPlacement::default(),
            password_checks: Semaphore::new(auth::PASSWORD_CHECKS_AT_ONCE),
            in_flight: InFlight::default(),
            endings: Endings::default(),
            agents: Agents::new(calling),
            streams: Streams::new(),
            events,
            tasks: TaskTracker::new(),
            membership: TaskTracker::new(),
            stopping: CancellationToken::new(),
            leaving: CancellationToken::new(),
            nudge: Notify::new(),
            forgotten: Notify::new(),
            registered: watch::Sender::new(false),
        });
        manager.take_up_status().await?;
        manager.look_up_agents().await?;
        manager.join().await?;
        manager.membership.spawn(Arc::clone(&manager).take_part());
        manager.spawn("calls of other managers", Self::hear_others);
        manager.spawn("timers", Self::do_timers);
        manager.spawn("heartbeats", Self::speak_for_agents);
        manager.spawn("which agents there are", Self::keep_up_with_agents);
        manager.spawn("configuration watch", Self::watch_configuration);
        manager.spawn("usage write-behind", Self::flush_usage_regularly);
        manager.spawn("reconcile sessions", Self::reconcile_regularly);
        manager.spawn("follow the manager's status", Self::follow_status);
        manager.spawn("watch streams", Self::watch_streams);
        manager.spawn("watch who has streams", Self::watch_requesters);
        manager.spawn("tell events of sessions", |manager| {
            manager.publish_events(announced)
        });
        manager.spawn("hear events of sessions", Self::follow_events);
        Ok(manager)
    }

    /// Stops taking part: background work ends, counters are written, and other managers take over. Sessions go on.
    pub async fn shutdown(&self) {
        self.stopping.cancel();
        self.tasks.close();
        // What does not end in time is taken up from its record, by another manager or at the next start.
        if tokio::time::timeout(SHUTDOWN_DEADLINE, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("some work with sessions did not end in time; it goes on after the next start");
        }
        self.flush_usage().await;
        self.leave().await;
        self.membership.close();
        self.membership.wait().await;
    }

    /// Takes an agent of this process into service: its calls go to `rpc`, its events arrive in order on `events`, until these
    /// end. Its kernels are compared with the records at once. Agents on other hosts come by [`Manager::hear_agents`].
    pub fn attach_agent(
        self: &Arc<Self>,
        id: AgentId,
        rpc: Arc<dyn AgentRpc>,
        mut events: mpsc::Receiver<AgentEvent>,
    ) {
        let attachment = self.agents.attach(&id, rpc);
        let manager = Arc::clone(self);
        self.tasks.spawn(async move {
            loop {
                let event = tokio::select! {
                    () = manager.stopping.cancelled() => break,
                    event = events.recv() => event,
                };
                match event {
                    Some(event) => {
                        if let Err(error) = manager.handle_event(&id, None, event).await {
                            tracing::error!(agent.id = %id, %error, "an agent event could not be recorded; the reconciler will catch up");
                        }
                    }
                    None => break,
                }
            }
            // It may have been attached again meanwhile.
            manager.agents.detach(&id, attachment);
        });
    }

    /// Waits until an agent has registered, which the first heartbeat of one does.
    ///
    /// # Errors
    /// [`Error::ServiceUnavailable`] when none does within half a minute.
    pub async fn wait_for_agent(&self) -> Result<()> {
        let mut registered = self.registered.subscribe();
        match tokio::time::timeout(
            REGISTRATION_DEADLINE,
            registered.wait_for(|registered| *registered),
        )
        .await
        {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Error::ServiceUnavailable(
                "no agent registered in time".to_owned(),
            )),
        }
    }

    /// As [`slot_types`].
    pub(crate) async fn slot_types(&self) -> Result<SlotTypes> {
        let reading = match self.slot_types.get(self.clock.now()) {
            Ok(types) => return Ok(types),
            Err(reading) => reading,
        };
        let types = slot_types(&self.config).await?;
        self.slot_types.put(reading, types.clone());
        Ok(types)
    }

    /// Asks the reconcilers to look now.
    pub(crate) fn nudge_reconcilers(&self) {
        self.nudge.notify_one();
    }

    fn spawn<F>(self: &Arc<Self>, name: &'static str, work: impl FnOnce(Arc<Self>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let work = work(Arc::clone(self));
        self.tasks.spawn(async move {
            tracing::debug!(task = name, "background task started");
            work.await;
            tracing::debug!(task = name, "background task ended");
        });
    }

    async fn flush_usage_regularly(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.stopping.cancelled() => break,
                () = tokio::time::sleep(FLUSH_PERIOD) => self.flush_usage().await,
            }
        }
    }

    async fn reconcile_regularly(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.stopping.cancelled() => break,
                () = self.nudge.notified() => {}
                () = tokio::time::sleep(RECONCILE_PERIOD) => {}
            }
            if let Err(error) = self.reconcile().await {
                tracing::error!(%error, "reconciling sessions failed; it will be tried again");
            }
        }
        let mut duties = Vec::new();
        for (agent, _) in self.agents.local() {
            duties.push(Duty::Agent(agent));
        }
        self.hand_over(duties).await;
    }

    /// Learns when the types of slots change, and when the configuration store may have lost what agents said of themselves:
    /// it is told again then.
    async fn watch_configuration(self: Arc<Self>) {
        loop {
            let watched = async {
                match self.config.watch(SLOT_TYPES, None).await {
                    Ok(mut events) => {
                        // What changed before the watch began is not told.
                        self.slot_types.forget();
                        self.catalogue.forget();
                        while let Some(event) = events.next().await {
                            self.slot_types.forget();
                            self.catalogue.forget();
                            if matches!(event, WatchEvent::Resync { .. }) {
                                self.forgotten.notify_one();
                            }
                        }
                    }
                    Err(error) => tracing::warn!(%error, "the configuration cannot be watched yet"),
                }
            };
            tokio::select! {
                () = self.stopping.cancelled() => return,
                () = watched => {}
            }
            tokio::select! {
                () = self.stopping.cancelled() => return,
                () = tokio::time::sleep(WATCH_PAUSE) => {}
            }
        }
    }
}

/// The slot types of the cluster (`data-model.md` 10.1).
pub(crate) async fn slot_types(config: &Config) -> Result<SlotTypes> {
    let mut types = SlotTypes::intrinsic();
    for (key, unit) in config.prefix(SLOT_TYPES).await? {
        let Some(name) = key.strip_prefix(SLOT_TYPES) else {
            continue;
        };
        match unit.as_str() {
            "count" => types.insert(name, SlotUnit::Count),
            "bytes" => types.insert(name, SlotUnit::Bytes),
            other => tracing::warn!(
                slot = name,
                unit = other,
                "ignoring a slot type with an unknown unit"
            ),
        }
    }
    Ok(types)
}
