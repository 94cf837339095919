//! Recording new sessions: limits, a place, and the row that stands before anything is started.
//!
//! Whoever decides by quotas and by what agents have left is the only one, of all managers
//! ([`bai_store::Tx::lock_placement`]). Therefore the sessions that wait at a manager are recorded together: one look at what
//! is occupied and one commit for all of them, each checked as if it came after the one before it.
//!
//! Invariants: a session that is refused does not touch the others.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use bai_model::{AccessKey, DefaultForUnspecified, KernelId, ResourceSlot, SlotTypes, VFolderId};
use bai_store::agent::AgentRow;
use bai_store::kernel::NewKernel;
use bai_store::occupancy::Occupied;
use bai_store::vfolder::VFolderRow;
use chrono::{DateTime, TimeDelta, Utc};

use super::SessionCreate;
use super::create::Project;
use super::placement::{Favour, Room};
use crate::image::Image;
use crate::together::{Joint, Waiting};
use crate::{Error, Identity, Manager, Result};

/// How often sessions are placed anew because a name was taken or an agent has gone meanwhile.
const MAX_ATTEMPTS: usize = 4;

/// How long what live kernels occupy is believed ([`LastPlacement`]). To read it takes the longer the more of them there are,
/// and all who place wait for it.
const OCCUPIED_TTL: TimeDelta = TimeDelta::seconds(10);

/// Whose session it is, and its name.
type SessionKey = (AccessKey, String);

/// What recording a session found.
#[derive(Debug)]
pub(crate) enum Recorded {
    New(Box<NewKernel>),
    /// There is a live session of that name.
    NameTaken,
    /// All sessions were told to end since this one was admitted.
    Ended,
}

/// Everything about the owner and the place that recording needs, gathered before the transaction.
#[derive(Debug)]
pub(crate) struct Plan {
    pub request: Arc<SessionCreate>,
    pub requested_at: DateTime<Utc>,
    /// What it was admitted with ([`Manager::admit_session`]).
    pub endings: i64,
    pub owner: Arc<Identity>,
    pub project: Arc<Project>,
    pub image: Arc<Image>,
    /// Whether agents that do not have the image can fetch it.
    pub is_pullable: bool,
    /// Agents that have it, as the broker knows; nothing where that does not matter or cannot be known.
    pub holders: Option<BTreeSet<String>>,
    pub requested: ResourceSlot,
    pub types: SlotTypes,
    pub mounts: Vec<VFolderRow>,
}

impl Joint for Arc<Plan> {
    type Outcome = Recorded;

    const NAME: &str = "recording a session";

    fn waiting(manager: &Manager) -> &Waiting<Self> {
        &manager.recordings
    }

    async fn do_all(manager: &Manager, plans: &[&Self]) -> Result<Vec<Result<Recorded>>> {
        manager.record_together(plans).await
    }
}

/// What sessions are placed by, kept up while they are: each is checked as if it came after the one before it.
struct Site<'a> {
    agents: &'a [AgentRow],
    /// What they have left.
    room: &'a mut Room,
    occupied: &'a mut Occupied,
    /// What is known so far of what each can expect from an image, by its name and whether it can be fetched.
    favours: HashMap<(&'a str, bool), Vec<Option<Option<Favour>>>>,
    /// Names that are known to be taken.
    names: HashSet<SessionKey>,
}

/// What live kernels occupy as this manager placed the last ones. It is believed for a while, and only if nobody else has
/// placed any since: what has ended meanwhile is still in it, so that no more is given out than there is. Who would be
/// refused by it is judged by the records.
#[derive(Debug, Default)]
pub(crate) struct LastPlacement(Mutex<Option<Known>>);

#[derive(Debug)]
struct Known {
    /// The number of that turn.
    turn: i64,
    read_at: DateTime<Utc>,
    occupied: Occupied,
    /// What it leaves of these agents.
    room: Option<(Arc<[AgentRow]>, Room)>,
    /// How often all sessions had been told to end.
    endings: i64,
}

impl LastPlacement {
    /// Takes out what is known, for the turn with this number.
    fn take(&self, turn: i64, now: DateTime<Utc>) -> Option<Known> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let is_young = now.signed_duration_since(known.read_at) < OCCUPIED_TTL;
        (known.turn + 1 == turn && is_young).then_some(Known { turn, ..known })
    }

    fn put(&self, known: Known) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
    }
}

impl Manager {
    /// Records all in one transaction; says of each in turn what was found, or why it is refused.
    ///
    /// # Errors
    /// When none is recorded.
    async fn record_together(&self, plans: &[&Arc<Plan>]) -> Result<Vec<Result<Recorded>>> {
        let mut taken = HashSet::new();
        for _ in 0..MAX_ATTEMPTS {
            let Some(recorded) = self.try_to_record(plans, &mut taken).await? else {
                continue;
            };
            for (plan, recorded) in plans.iter().zip(&recorded) {
                if let Ok(Recorded::New(kernel)) = recorded {
                    tracing::info!(kernel.id = %kernel.id, session = %plan.request.name, image = plan.image.config.canonical, "session recorded");
                }
            }
            return Ok(recorded);
        }
        Err(Error::ServiceUnavailable(
            "agents and sessions come and go faster than new ones can be placed; try again".to_owned(),
        ))
    }

    /// Nothing, and nothing is recorded, when a name turns out to be taken, which is noted, or an agent has gone.
    async fn try_to_record(
        &self,
        plans: &[&Arc<Plan>],
        taken: &mut HashSet<SessionKey>,
    ) -> Result<Option<Vec<Result<Recorded>>>> {
        let agents = self.alive_agents().await?;
        let mut tx = self.store.begin().await?;
        // Before the first look at what it decides by: other managers decide by the same.
        let turn = tx.lock_placement().await?;
        let now = self.clock.now();
        let mut known = self.last_placement.take(turn, now);
        let believed = known
            .as_mut()
            .map(|known| self.place_all(known, &agents, plans, taken))
            .filter(|outcomes| outcomes.iter().all(Result::is_ok));
        let (outcomes, known) = match (believed, known) {
            (Some(outcomes), Some(known)) => (outcomes, known),
            _ => {
                let mut known = Known {
                    turn,
                    read_at: now,
                    endings: tx.session_endings().await?,
                    occupied: tx.occupied_by_all().await?,
                    room: None,
                };
                (self.place_all(&mut known, &agents, plans, taken), known)
            }
        };
        let new = outcomes
            .iter()
            .zip(plans)
            .filter_map(|(outcome, plan)| match outcome {
                Ok(Recorded::New(kernel)) => Some((kernel.as_ref().clone(), plan)),
                _ => None,
            });
        let (kernels, placed): (Vec<NewKernel>, Vec<&&Arc<Plan>>) = new.unzip();
        let obstacles = tx.insert_kernels(&kernels).await?;
        if !obstacles.is_empty() {
            self.agents.alive.forget();
            let is_taken = |kernel: &&NewKernel| obstacles.taken.contains(&kernel.id);
            let keys = kernels.iter().filter(is_taken);
            taken.extend(keys.map(|kernel| (kernel.access_key.clone(), kernel.sess_id.clone())));
            return Ok(None);
        }
        for (kernel, plan) in kernels.iter().zip(placed) {
            let mounts: Vec<VFolderId> = plan.mounts.iter().map(|folder| folder.id).collect();
            tx.attach_vfolders(kernel.id, &mounts).await?;
        }
        // From the beginning, or another manager might find one and take it for left behind.
        self.claim_and_commit(tx, kernels.iter().map(|kernel| kernel.id).collect())
            .await?;
        self.last_placement.put(known);
        Ok(Some(outcomes))
    }

    /// Places all in turn, and notes what is occupied then.
    fn place_all<'a>(
        &self,
        known: &'a mut Known,
        agents: &'a Arc<[AgentRow]>,
        plans: &[&'a Arc<Plan>],
        taken: &HashSet<SessionKey>,
    ) -> Vec<Result<Recorded>> {
        let Known {
            occupied,
            room,
            endings,
            ..
        } = known;
        if !matches!(room, Some((of, _)) if Arc::ptr_eq(of, agents)) {
            *room = None;
        }
        let (_, room) = room.get_or_insert_with(|| {
            let slots = agents.iter();
            let slots = slots.map(|agent| (&agent.available_slots, occupied.agents.get(&agent.id)));
            (Arc::clone(agents), Room::of(&slots.collect::<Vec<_>>()))
        });
        let mut site = Site {
            agents,
            room,
            occupied,
            favours: HashMap::new(),
            names: taken.clone(),
        };
        let place = |plan: &&'a Arc<Plan>| {
            if *endings != plan.endings {
                return Ok(Recorded::Ended);
            }
            let kernel = self.place(&mut site, plan)?;
            Ok(kernel.map_or(Recorded::NameTaken, |kernel| Recorded::New(Box::new(kernel))))
        };
        plans.iter().map(place).collect()
    }

    /// The agents that are alive, as they were two seconds ago at the earliest. Whether those that are chosen still are is
    /// looked at when the sessions are inserted.
    async fn alive_agents(&self) -> Result<Arc<[AgentRow]>> {
        let reading = match self.agents.alive.get(self.clock.now()) {
            Ok(alive) => return Ok(alive),
            Err(reading) => reading,
        };
        let alive: Arc<[AgentRow]> = self.store.reader().alive_agents().await?.into();
        self.agents.alive.put(reading, Arc::clone(&alive));
        Ok(alive)
    }

    /// What a session can expect from an agent; nothing when it cannot run there, or not be called.
    fn favour(&self, agent: &AgentRow, plan: &Plan) -> Option<Favour> {
        if !self.agents.can_be_reached(&agent.id, &agent.addr) {
            return None;
        }
        let standing = self.agents.standing(&agent.id, &plan.image.config.canonical);
        let holders = plan.holders.as_ref();
        let is_known_to_have = holders.is_none_or(|holders| holders.contains(&agent.id.0));
        Favour::of(&standing, plan.is_pullable, is_known_to_have)
    }

    /// Finds a place for one, and counts it there; nothing when its name is taken.
    ///
    /// # Errors
    /// What it is told when it is refused.
    fn place<'a>(&self, site: &mut Site<'a>, plan: &'a Plan) -> Result<Option<NewKernel>> {
        let owner = plan.owner.access_key.clone();
        let name = (owner.clone(), plan.request.name.as_str().to_owned());
        if site.names.contains(&name) {
            return Ok(None);
        }
        let sessions = site.occupied.sessions.entry(owner.clone()).or_default();
        let by_keypair = site.occupied.keypairs.entry(owner).or_default();
        let by_group = site.occupied.groups.entry(plan.project.group).or_default();
        let domain = plan.request.domain.clone();
        let by_domain = site.occupied.domains.entry(domain).or_default();
        check_concurrency(*sessions, &plan.owner)?;
        check_quotas(plan, [by_keypair, by_group, by_domain])?;
        let favours = site.favours.entry(plan.image_key());
        let favours = favours.or_insert_with(|| vec![None; site.agents.len()]);
        let mut favour =
            |agent: usize| *favours[agent].get_or_insert_with(|| self.favour(&site.agents[agent], plan));
        let requested = site.room.amounts(&plan.requested);
        let chosen = requested.and_then(|amounts| Some((site.room.choose(&amounts, &mut favour)?, amounts)));
        let Some((chosen, requested)) = chosen else {
            let nothing = site.room.amounts(&ResourceSlot::default()).unwrap_or_default();
            let emptiest = site
                .room
                .choose(&nothing, favour)
                .map(|agent| &site.agents[agent]);
            let left = emptiest.map(|agent| match site.occupied.agents.get(&agent.id) {
                Some(occupied) => agent.available_slots.minus(occupied),
                None => agent.available_slots.clone(),
            });
            let mut agents = site.agents.iter();
            let are_agents_there = agents.any(|agent| self.agents.can_be_reached(&agent.id, &agent.addr));
            let why = why_nothing_fits(left.as_ref(), are_agents_there, plan);
            return Err(Error::InstanceNotAvailable(why));
        };
        let agent = &site.agents[chosen];
        site.room.take(chosen, &requested);
        *sessions += 1;
        let by_agent = site.occupied.agents.entry(agent.id.clone()).or_default();
        for occupied in [by_keypair, by_group, by_domain, by_agent] {
            *occupied = occupied.plus(&plan.requested);
        }
        site.names.insert(name);
        let id = KernelId::generate(self.random.as_ref());
        Ok(Some(new_kernel(id, agent, plan)))
    }
}

impl Plan {
    /// What decides which agents can run its image.
    fn image_key(&self) -> (&str, bool) {
        (&self.image.config.canonical, self.is_pullable)
    }
}

fn new_kernel(id: KernelId, agent: &AgentRow, plan: &Plan) -> NewKernel {
    let environ = plan.request.environ.iter();
    NewKernel {
        id,
        sess_id: plan.request.name.as_str().to_owned(),
        agent: agent.id.clone(),
        agent_addr: agent.addr.clone(),
        domain_name: plan.request.domain.clone(),
        group_id: plan.project.group,
        user_uuid: plan.owner.user,
        access_key: plan.owner.access_key.clone(),
        image: plan.image.config.canonical.clone(),
        registry: plan.image.reference.registry.clone(),
        tag: plan.request.tag.clone(),
        occupied_slots: plan.requested.clone(),
        environ: environ.map(|(name, value)| format!("{name}={value}")).collect(),
        created_at: plan.requested_at,
    }
}

/// The number of sessions that the owner's policy allows.
pub(super) fn check_concurrency(live: i64, owner: &Identity) -> Result<()> {
    let allowed = owner.policy.max_concurrent_sessions;
    if live < allowed {
        return Ok(());
    }
    Err(Error::QuotaExceeded(format!(
        "{live} sessions of {allowed} are in use; terminate one first"
    )))
}

/// The three sums of `data-model.md` 15.1, what live kernels of the keypair, the group and the domain occupy, each with the
/// request added.
fn check_quotas(plan: &Plan, [by_keypair, by_group, by_domain]: [&ResourceSlot; 3]) -> Result<()> {
    let policy = &plan.owner.policy;
    let unlimited = DefaultForUnspecified::Unlimited;
    let checks = [
        (
            "Your resource quota is exceeded.",
            ResourceSlot::from_policy(
                &policy.total_resource_slots,
                policy.default_for_unspecified,
                &plan.types,
            ),
            by_keypair,
        ),
        (
            "Your group resource quota is exceeded.",
            ResourceSlot::from_policy(&plan.project.group_slots, unlimited, &plan.types),
            by_group,
        ),
        (
            "Your domain resource quota is exceeded.",
            ResourceSlot::from_policy(&plan.project.domain_slots, unlimited, &plan.types),
            by_domain,
        ),
    ];
    for (text, limit, occupied) in checks {
        let mut occupied = occupied.clone();
        occupied.retain_known(&plan.types);
        if !occupied.plus(&plan.requested).fits_within(&limit) {
            return Err(Error::invalid(format!(
                "{text} ({})",
                limit.humanized(&plan.types)
            )));
        }
    }
    Ok(())
}

/// For the requester: names no agents, and only what the emptiest one has left.
fn why_nothing_fits(left: Option<&ResourceSlot>, are_agents_there: bool, plan: &Plan) -> String {
    let requested = plan.requested.humanized(&plan.types);
    match left {
        None if are_agents_there => format!(
            "no agent has the image {}, and none can fetch it, because the registry {} has no address in the \
             configuration; ask an administrator for one of both",
            plan.image.config.canonical, plan.image.reference.registry
        ),
        None => format!("{requested} was asked for, but no agent is connected; try again when one is"),
        Some(left) => format!(
            "{requested} was asked for, and the agent with the most room has {} left; ask for less, or try again when \
             other sessions have ended",
            left.humanized(&plan.types)
        ),
    }
}
