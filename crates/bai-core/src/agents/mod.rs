//! The agents of the site as this manager knows them, and how each is called.
//!
//! * here: which agents there are, what they said of themselves, and the connections to them;
//! * `hear`: what agents on other hosts tell, checked and put in order; `inbox`: one agent's events that wait;
//! * `quarantine`: agents whose starts keep failing.
//!
//! Invariants: the database decides which agents are alive and where, and is asked every second, because other managers
//! hear agents too. An agent on another host is called over one connection, made at the first call and closed when its
//! record no longer says that it is alive there; calls that wait then fail at once. What is kept here of an agent that is
//! neither recorded nor attached goes within that second.
//!
//! Not here: what its events mean ([`crate::event`]), when it is lost ([`crate::liveness`]).

mod hear;
mod inbox;
mod quarantine;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bai_model::{AgentId, AgentStatus};
use bai_proto::agent::AgentRpc;
use bai_proto::event::AgentInfo;
use bai_proto::rpc::{AgentOptions, ZmqAgent};
use bai_proto::zmtp::Endpoint;
use bai_store::agent::AgentRow;
use chrono::{DateTime, Utc};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

pub(crate) use self::hear::Refusal;
use self::inbox::{Inbox, Letter};
use self::quarantine::Starts;
pub(crate) use self::quarantine::is_agents_fault;
use crate::fresh::Fresh;
use crate::{Manager, Result};

/// What calls fail with that wait when their agent is gone.
const LOST: &str = "the agent is lost";
/// Agents whose records are read or written at the same time, because of what they tell or to be compared with them: fewer
/// than there are connections to the database.
const AT_RECORDS_AT_ONCE: usize = 8;
/// Agents that a manager hears. One of more sites than that is an attack.
const MAX_AGENTS: usize = 10_000;
/// How often an agent that can say what it runs is asked.
const COMPARISON_PERIOD: Duration = Duration::from_secs(60);
/// Before one that could not be asked is asked again.
const COMPARISON_PAUSE: Duration = Duration::from_secs(10);

/// All that are known.
#[derive(Debug)]
pub(crate) struct Agents {
    directory: Mutex<Directory>,
    /// Those that the database says are alive.
    pub alive: Fresh<Arc<[AgentRow]>>,
    calling: AgentOptions,
    at_records: Semaphore,
}

#[derive(Debug, Default)]
struct Directory {
    agents: HashMap<AgentId, Known>,
    /// Grows with everything that is noted, so that a look at the database does not undo what came after it.
    notes: u64,
}

/// How long the answers of agents may take, but for creations and files (`http-api.md` 4.8).
pub(crate) const AGENT_DEADLINE: Duration = Duration::from_secs(30);
/// How long an agent that is alive may be without a connection before that is told: one that has died is lost by then.
const UNCONNECTED: Duration = Duration::from_secs(10);

/// One agent.
#[derive(Debug, Default)]
struct Known {
    /// In this process, with the number of its attachment.
    local: Option<(u64, Arc<dyn AgentRpc>)>,
    /// Where it is alive, by its record, and by which note.
    address: Option<String>,
    noted: u64,
    /// To that address.
    connection: Option<Arc<ZmqAgent>>,
    /// Since when that fails, and whether it was told.
    unconnected: Option<(Instant, bool)>,
    said: Option<Said>,
    /// When it was last heard, if the broker was not told yet.
    heard: Option<DateTime<Utc>>,
    inbox: Inbox,
    starts: Starts,
    /// When its kernels are to be compared with the records.
    comparison: Option<Instant>,
}

/// What an agent said of itself.
#[derive(Debug)]
struct Said {
    info: Arc<AgentInfo>,
    is_recorded: bool,
    /// Images that it has, by their canonical names.
    images: Vec<String>,
    /// Whether the broker knows of them.
    are_held: bool,
}

/// An agent that could take a session.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    /// Its last starts failed.
    pub is_quarantined: bool,
    /// Whether it has the image; nothing where it was not heard by this manager.
    pub has_image: Option<bool>,
    /// It brings images of its own, so that it may not be able to fetch others.
    pub brings_images: bool,
}

impl Known {
    /// Notes where its record says that it is alive, if it does.
    fn is_at(&mut self, address: Option<&str>, note: u64) {
        self.noted = note;
        if self.address.as_deref() == address {
            return;
        }
        self.address = address.map(str::to_owned);
        if let Some(connection) = self.connection.take() {
            connection.close(LOST);
        }
        self.unconnected = None;
        if address.is_none()
            && let Some(said) = &mut self.said
        {
            said.is_recorded = false;
        }
    }

    fn is_reachable(&self) -> bool {
        self.local.is_some() || self.address.as_deref().is_some_and(is_remote)
    }

    fn is_of_use(&self) -> bool {
        self.local.is_some() || self.address.is_some() || self.inbox.is_worked_at()
    }
}

impl Agents {
    pub fn new(calling: AgentOptions) -> Self {
        Self {
            directory: Mutex::default(),
            alive: Fresh::default(),
            calling,
            at_records: Semaphore::new(AT_RECORDS_AT_ONCE),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Directory> {
        // Valid after any panic: what is changed at once is of one agent, and is read from the database again.
        self.directory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an agent of this process in; gives the number of its attachment.
    pub fn attach(&self, id: &AgentId, rpc: Arc<dyn AgentRpc>) -> u64 {
        let mut directory = self.lock();
        directory.notes += 1;
        let number = directory.notes;
        let known = directory.agents.entry(id.clone()).or_default();
        known.local = Some((number, rpc));
        known.said = None;
        known.comparison = None;
        number
    }

    /// Lets it go, unless it was attached again since.
    pub fn detach(&self, id: &AgentId, number: u64) {
        if let Some(known) = self.lock().agents.get_mut(id)
            && known.local.as_ref().is_some_and(|(of, _)| *of == number)
        {
            known.local = None;
            known.said = None;
        }
    }

    /// The agents of this process.
    pub fn local(&self) -> Vec<(AgentId, Arc<dyn AgentRpc>)> {
        let directory = self.lock();
        let local = directory.agents.iter().filter_map(|(id, known)| {
            let (_, rpc) = known.local.as_ref()?;
            Some((id.clone(), Arc::clone(rpc)))
        });
        local.collect()
    }

    /// Whether it is an agent of this process.
    pub fn is_local(&self, id: &AgentId) -> bool {
        let directory = self.lock();
        let known = directory.agents.get(id);
        known.is_some_and(|known| known.local.is_some())
    }

    /// How to call an agent, connecting to it if need be.
    fn call(&self, id: &AgentId) -> Option<Arc<dyn AgentRpc>> {
        let mut directory = self.lock();
        let known = directory.agents.get_mut(id)?;
        if let Some((_, rpc)) = &known.local {
            return Some(Arc::clone(rpc));
        }
        if let Some(connection) = &known.connection {
            return Some(Arc::clone(connection) as Arc<dyn AgentRpc>);
        }
        let endpoint: Endpoint = known.address.as_deref()?.parse().ok()?;
        let connection = Arc::new(ZmqAgent::connect(endpoint, self.calling.clone()));
        known.connection = Some(Arc::clone(&connection));
        Some(connection)
    }

    /// Agents that are alive and have had no connection for a while, each once for each time, with the reason of one.
    pub fn take_unconnected(&self) -> Option<(Vec<AgentId>, String)> {
        let now = Instant::now();
        let mut directory = self.lock();
        let mut found: Option<(Vec<AgentId>, String)> = None;
        for (id, known) in &mut directory.agents {
            let failure = known
                .connection
                .as_ref()
                .and_then(|connection| connection.failure());
            let Some(reason) = failure else {
                known.unconnected = None;
                continue;
            };
            let (since, is_told) = known.unconnected.get_or_insert((now, false));
            if !*is_told && now.duration_since(*since) >= UNCONNECTED {
                *is_told = true;
                found.get_or_insert((Vec::new(), reason)).0.push(id.clone());
            }
        }
        if let Some((ids, _)) = &mut found {
            ids.sort();
        }
        found
    }

    /// Whether calls to an agent have somewhere to go, as far as was noted.
    pub fn is_reachable(&self, id: &AgentId) -> bool {
        self.lock().agents.get(id).is_some_and(Known::is_reachable)
    }

    /// The agents of which that is so.
    pub fn reachable(&self) -> Vec<AgentId> {
        let directory = self.lock();
        let reachable = directory.agents.iter().filter(|(_, known)| known.is_reachable());
        reachable.map(|(id, _)| id.clone()).collect()
    }

    /// The same of one whose record says that it is alive at `address`.
    pub fn can_be_reached(&self, id: &AgentId, address: &str) -> bool {
        is_remote(address) || self.is_reachable(id)
    }

    /// The number of notes so far, for [`Agents::note_all`].
    fn notes(&self) -> u64 {
        self.lock().notes
    }

    /// Notes that an agent is alive, where.
    pub fn note_alive(&self, id: &AgentId, address: &str) {
        self.alive.forget();
        let mut directory = self.lock();
        directory.notes += 1;
        let note = directory.notes;
        let known = directory.agents.entry(id.clone()).or_default();
        known.is_at(Some(address), note);
    }

    /// Notes that an agent is lost, until it is recorded again.
    pub fn note_lost(&self, id: &AgentId) {
        self.alive.forget();
        let mut directory = self.lock();
        directory.notes += 1;
        let note = directory.notes;
        if let Some(known) = directory.agents.get_mut(id) {
            known.is_at(None, note);
            known.comparison = None;
        }
    }

    /// Notes that an agent has left, until it says something again.
    pub fn note_left(&self, id: &AgentId) {
        self.note_lost(id);
        let mut directory = self.lock();
        if let Some(known) = directory.agents.get_mut(id) {
            known.said = None;
            known.heard = None;
        }
    }

    /// Notes all agents that are alive, as the database had them when so many notes had been made.
    fn note_all(&self, alive: &[(AgentId, String)], notes: u64) {
        let mut directory = self.lock();
        let is_alive: HashSet<&AgentId> = alive.iter().map(|(id, _)| id).collect();
        for (id, address) in alive {
            let known = directory.agents.entry(id.clone()).or_default();
            if known.noted <= notes {
                known.is_at(Some(address), notes);
            }
        }
        directory.agents.retain(|id, known| {
            if known.noted <= notes && !is_alive.contains(id) {
                known.is_at(None, notes);
            }
            known.is_of_use()
        });
    }

    /// Notes what an agent says of itself, before it is recorded.
    pub fn note_said(&self, info: &AgentInfo) {
        let mut directory = self.lock();
        let known = directory.agents.entry(info.id.clone()).or_default();
        known.said = Some(Said {
            info: Arc::new(info.clone()),
            is_recorded: false,
            images: Vec::new(),
            are_held: false,
        });
    }

    /// Notes that it is recorded, and which images it has. True when it was not heard here before.
    pub fn note_recorded(&self, info: &AgentInfo, images: Vec<String>) -> bool {
        self.note_alive(&info.id, &info.addr);
        let said = Said {
            info: Arc::new(info.clone()),
            is_recorded: true,
            images,
            are_held: false,
        };
        let mut directory = self.lock();
        let known = directory.agents.get_mut(&info.id);
        known.is_some_and(|known| known.said.replace(said).is_none())
    }

    /// Whether an agent says what is recorded of it already; it was heard then.
    fn hears_again(&self, info: &AgentInfo, at: DateTime<Utc>) -> bool {
        let mut directory = self.lock();
        let Some(known) = directory.agents.get_mut(&info.id) else {
            return false;
        };
        let is_known = known.local.is_none()
            && known
                .said
                .as_ref()
                .is_some_and(|said| said.is_recorded && *said.info == *info);
        if is_known {
            known.heard = Some(at);
        }
        is_known
    }

    /// What an agent said of itself, if it was heard here.
    pub fn info(&self, id: &AgentId) -> Option<Arc<AgentInfo>> {
        let directory = self.lock();
        let said = directory.agents.get(id)?.said.as_ref()?;
        Some(Arc::clone(&said.info))
    }

    /// What the agents of this process said of themselves, and whether all of it is recorded.
    pub fn local_infos(&self) -> Vec<(Arc<AgentInfo>, bool)> {
        let directory = self.lock();
        let local = directory.agents.values().filter(|known| known.local.is_some());
        local
            .filter_map(|known| known.said.as_ref())
            .map(|said| (Arc::clone(&said.info), said.is_recorded))
            .collect()
    }

    /// Has every agent recorded again as if it came.
    pub fn record_anew(&self) {
        for known in self.lock().agents.values_mut() {
            if let Some(said) = &mut known.said {
                said.is_recorded = false;
            }
        }
    }

    /// Notes that an agent was heard, to be told to the broker.
    pub fn note_heard(&self, id: &AgentId, at: DateTime<Utc>) {
        if let Some(known) = self.lock().agents.get_mut(id) {
            known.heard = Some(at);
        }
    }

    /// Who was heard since this was last asked, and when.
    pub fn take_heard(&self) -> Vec<(String, DateTime<Utc>)> {
        let mut directory = self.lock();
        let heard = directory
            .agents
            .iter_mut()
            .filter_map(|(id, known)| Some((id.0.clone(), known.heard.take()?)));
        heard.collect()
    }

    /// Agents whose images the broker does not know, and these; at most so many.
    pub fn take_unheld(&self, most: usize) -> Vec<(AgentId, Vec<String>)> {
        let mut directory = self.lock();
        let unheld = directory.agents.iter_mut().filter_map(|(id, known)| {
            let said = known
                .said
                .as_mut()
                .filter(|said| said.is_recorded && !said.are_held)?;
            said.are_held = true;
            Some((id.clone(), said.images.clone()))
        });
        unheld.take(most).collect()
    }

    /// Has the images of an agent, or of all, told to the broker again.
    pub fn hold_again(&self, id: Option<&AgentId>) {
        let mut directory = self.lock();
        let again = directory
            .agents
            .iter_mut()
            .filter(|(of, _)| id.is_none_or(|id| id == *of));
        for (_, known) in again {
            if let Some(said) = &mut known.said {
                said.are_held = false;
            }
        }
    }

    /// Notes that an agent has one more image, before its next heartbeat says so.
    pub fn note_image(&self, id: &AgentId, image: &str) {
        let mut directory = self.lock();
        let said = directory.agents.get_mut(id).and_then(|known| known.said.as_mut());
        if let Some(said) = said
            && !said.images.iter().any(|has| has == image)
        {
            said.images.push(image.to_owned());
            said.are_held = false;
        }
    }

    /// A turn at the records of agents, until it is dropped. Not to be kept while an agent is waited for.
    pub async fn turn_at_records(&self) -> Option<SemaphorePermit<'_>> {
        // Never closed.
        self.at_records.acquire().await.ok()
    }

    /// What speaks for and against placing a session with this image on an agent.
    pub fn standing(&self, id: &AgentId, image: &str) -> Standing {
        let directory = self.lock();
        let Some(known) = directory.agents.get(id) else {
            return Standing::default();
        };
        let said = known.said.as_ref();
        Standing {
            is_quarantined: known.starts.are_quarantined(Instant::now()),
            has_image: said.map(|said| said.images.iter().any(|has| has == image)),
            brings_images: said.is_some_and(|said| !said.info.images.is_empty()),
        }
    }

    /// Notes how the start of a kernel went; gives how long the agent is to be avoided, if it is from now on.
    pub fn note_start(&self, id: &AgentId, has_succeeded: bool) -> Option<Duration> {
        let mut directory = self.lock();
        let known = directory.agents.get_mut(id)?;
        known.starts.note(has_succeeded, Instant::now())
    }

    /// Has an agent's kernels compared with the records soon.
    pub fn compare_soon(&self, id: &AgentId) {
        if let Some(known) = self.lock().agents.get_mut(id)
            && known.local.is_none()
        {
            known.comparison = Some(Instant::now());
        }
    }

    /// Agents on other hosts that are to be compared now. Each is given once, until it is noted how that went.
    pub fn take_comparisons(&self) -> Vec<AgentId> {
        let now = Instant::now();
        let mut directory = self.lock();
        let due = directory.agents.iter_mut().filter(|(_, known)| {
            known.local.is_none() && known.address.is_some() && known.comparison.is_some_and(|due| due <= now)
        });
        due.map(|(id, known)| {
            known.comparison = None;
            id.clone()
        })
        .collect()
    }

    /// Notes how a comparison went, and so when the next one is due.
    pub fn note_comparison(&self, id: &AgentId, compared: Compared) {
        if let Some(known) = self.lock().agents.get_mut(id)
            && known.comparison.is_none()
        {
            known.comparison = match compared {
                Compared::ByList => Some(Instant::now() + COMPARISON_PERIOD),
                // Each look would postpone the idle time-outs of its kernels.
                Compared::OneByOne => None,
                Compared::NotAtAll => Some(Instant::now() + COMPARISON_PAUSE),
            };
        }
    }
}

/// How an agent's kernels were compared with the records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compared {
    /// It said what it runs.
    ByList,
    /// It was asked for each of them, because it cannot say more.
    OneByOne,
    /// It could not be asked, or another manager was at it.
    NotAtAll,
}

/// Whether this is an address on the network.
fn is_remote(address: &str) -> bool {
    address.starts_with("tcp://")
}

impl Manager {
    /// How to call an agent that is alive; nothing when it is not, or is within another manager's process.
    pub(crate) async fn agent(&self, id: &AgentId) -> Result<Option<Arc<dyn AgentRpc>>> {
        if let Some(rpc) = self.agents.call(id) {
            return Ok(Some(rpc));
        }
        // Another manager may have heard of it a moment ago.
        if let Some(row) = self.store.reader().agent(id).await?
            && row.status == AgentStatus::Alive
        {
            self.agents.note_alive(id, &row.addr);
        }
        Ok(self.agents.call(id))
    }

    /// Looks which agents the database says are alive, and where.
    pub(crate) async fn look_up_agents(&self) -> Result<()> {
        let notes = self.agents.notes();
        let alive = self.store.reader().addresses_of_agents().await?;
        self.agents.note_all(&alive, notes);
        Ok(())
    }
}
