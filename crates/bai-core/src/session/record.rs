//! Recording new sessions: limits, a place, and the row that stands before anything is started.
//!
//! Whoever decides by quotas and by what agents have left is the only one, of all managers
//! ([`bai_store::Tx::lock_placement`]). Therefore the sessions that wait at a manager are recorded together: one look at the
//! agents and one commit for all of them, each checked as if it came after the one before it.
//!
//! Invariants: a session that is refused does not touch the others.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use bai_model::{AccessKey, DefaultForUnspecified, KernelId, ResourceSlot, SlotTypes, VFolderId};
use bai_store::Reader;
use bai_store::agent::AgentRow;
use bai_store::kernel::NewKernel;
use bai_store::occupancy::Occupied;
use bai_store::vfolder::VFolderRow;
use chrono::{DateTime, Utc};

use super::SessionCreate;
use super::create::Project;
use super::placement::{Candidate, Favour, choose_agent};
use crate::image::Image;
use crate::together::{Joint, Waiting};
use crate::{Error, Identity, Manager, Result};

/// How often sessions are placed anew because a name was taken or an agent has gone meanwhile.
const MAX_ATTEMPTS: usize = 4;

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

/// An agent and what it has left, less with each session that is placed there.
struct Place<'a> {
    agent: &'a AgentRow,
    remaining: ResourceSlot,
}

/// What sessions are placed by, kept up while they are: each is checked as if it came after the one before it.
struct Site<'a> {
    places: Vec<Place<'a>>,
    /// What each place can expect from an image, by its name and whether it can be fetched.
    favours: HashMap<(&'a str, bool), Vec<Option<Favour>>>,
    /// Names that are known to be taken.
    names: HashSet<SessionKey>,
    occupied: Occupied,
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
        tx.lock_placement().await?;
        let endings = tx.session_endings().await?;
        let mut site = self.survey(&tx, &agents, plans).await?;
        site.names.extend(taken.iter().cloned());
        let (mut kernels, mut mounts) = (Vec::new(), Vec::new());
        let mut all = Vec::with_capacity(plans.len());
        for plan in plans {
            all.push(if endings == plan.endings {
                self.place(&mut site, plan).map(|placed| match placed {
                    Some(kernel) => {
                        kernels.push(kernel.clone());
                        mounts.push(&plan.mounts);
                        Recorded::New(Box::new(kernel))
                    }
                    None => Recorded::NameTaken,
                })
            } else {
                Ok(Recorded::Ended)
            });
        }
        let obstacles = tx.insert_kernels(&kernels).await?;
        if !obstacles.is_empty() {
            self.agents.alive.forget();
            let is_taken = |kernel: &&NewKernel| obstacles.taken.contains(&kernel.id);
            let keys = kernels.iter().filter(is_taken);
            taken.extend(keys.map(|kernel| (kernel.access_key.clone(), kernel.sess_id.clone())));
            return Ok(None);
        }
        for (kernel, mounts) in kernels.iter().zip(mounts) {
            let mounts: Vec<VFolderId> = mounts.iter().map(|folder| folder.id).collect();
            tx.attach_vfolders(kernel.id, &mounts).await?;
        }
        // From the beginning, or another manager might find one and take it for left behind.
        self.claim_and_commit(tx, kernels.iter().map(|kernel| kernel.id).collect())
            .await?;
        Ok(Some(all))
    }

    /// Reads what these sessions are placed by, each thing once.
    async fn survey<'a>(
        &self,
        tx: &Reader,
        agents: &'a [AgentRow],
        plans: &[&'a Arc<Plan>],
    ) -> Result<Site<'a>> {
        let occupied = tx.occupied_by_all().await?;
        let reachable = agents
            .iter()
            .filter(|agent| self.agents.can_be_reached(&agent.id, &agent.addr));
        let place = |agent: &'a AgentRow| Place {
            agent,
            remaining: match occupied.agents.get(&agent.id) {
                Some(occupied) => agent.available_slots.minus(occupied),
                None => agent.available_slots.clone(),
            },
        };
        let places: Vec<Place<'_>> = reachable.map(place).collect();
        let mut favours = HashMap::new();
        for plan in plans {
            let favours = favours.entry(plan.image_key());
            favours.or_insert_with(|| self.favours(&places, plan));
        }
        Ok(Site {
            places,
            favours,
            names: HashSet::new(),
            occupied,
        })
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

    fn favours(&self, places: &[Place<'_>], plan: &Plan) -> Vec<Option<Favour>> {
        let favour = |Place { agent, .. }: &Place<'_>| {
            let standing = self.agents.standing(&agent.id, &plan.image.config.canonical);
            let holders = plan.holders.as_ref();
            let is_known_to_have = holders.is_none_or(|holders| holders.contains(&agent.id.0));
            Favour::of(&standing, plan.is_pullable, is_known_to_have)
        };
        places.iter().map(favour).collect()
    }

    /// Finds a place for one, and counts it there; nothing when its name is taken.
    ///
    /// # Errors
    /// What it is told when it is refused.
    fn place(&self, site: &mut Site<'_>, plan: &Plan) -> Result<Option<NewKernel>> {
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
        let favours = site.favours.get(&plan.image_key()).map_or(&[][..], Vec::as_slice);
        let candidates = site.places.iter().zip(favours).enumerate();
        let candidates = candidates.filter_map(|(index, (Place { remaining, .. }, favour))| {
            Some(Candidate {
                favour: (*favour)?,
                index,
                remaining,
            })
        });
        let Some(chosen) = choose_agent(candidates.clone(), &plan.requested).map(|chosen| chosen.index)
        else {
            let emptiest = choose_agent(candidates, &ResourceSlot::default());
            let why = why_nothing_fits(emptiest.as_ref(), !site.places.is_empty(), plan);
            return Err(Error::InstanceNotAvailable(why));
        };
        let Some(place) = site.places.get_mut(chosen) else {
            unreachable!("a candidate is one of the places")
        };
        place.remaining = place.remaining.minus(&plan.requested);
        *sessions += 1;
        for occupied in [by_keypair, by_group, by_domain] {
            *occupied = occupied.plus(&plan.requested);
        }
        site.names.insert(name);
        let id = KernelId::generate(self.random.as_ref());
        Ok(Some(new_kernel(id, place.agent, plan)))
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
fn why_nothing_fits(emptiest: Option<&Candidate<'_>>, are_agents_there: bool, plan: &Plan) -> String {
    let requested = plan.requested.humanized(&plan.types);
    match emptiest {
        None if are_agents_there => format!(
            "no agent has the image {}, and none can fetch it, because the registry {} has no address in the \
             configuration; ask an administrator for one of both",
            plan.image.config.canonical, plan.image.reference.registry
        ),
        None => format!("{requested} was asked for, but no agent is connected; try again when one is"),
        Some(emptiest) => format!(
            "{requested} was asked for, and the agent with the most room has {} left; ask for less, or try again when \
             other sessions have ended",
            emptiest.remaining.humanized(&plan.types)
        ),
    }
}
