//! Recording new sessions: limits, a place, and the row that stands before anything is started.
//!
//! Whoever decides by quotas and by what agents have left is the only one, of all managers
//! ([`bai_store::Tx::lock_placement`]). Therefore the sessions that wait at a manager are recorded together: one look at the
//! agents and one commit for all of them, each checked as if it came after the one before it.
//!
//! Invariants: a session that is refused does not touch the others.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use bai_model::{AccessKey, DefaultForUnspecified, GroupId, KernelId, ResourceSlot, SlotTypes, VFolderId};
use bai_store::agent::AgentRow;
use bai_store::credential::CredentialRow;
use bai_store::kernel::NewKernel;
use bai_store::{Reader, Tx};
use chrono::{DateTime, Utc};

use super::SessionCreate;
use super::placement::{Candidate, Favour, choose_agent};
use crate::image::Image;
use crate::together::{Joint, Waiting};
use crate::{Error, Manager, Result};

/// The index that lets one live session have a name.
const UNIQUE_NAME: &str = "ix_kernels_unique_sess_token";

/// What recording a session found.
#[derive(Debug)]
pub(crate) enum Recorded {
    New(KernelId),
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
    pub owner: Arc<CredentialRow>,
    pub group: GroupId,
    pub group_slots: ResourceSlot,
    pub domain_slots: ResourceSlot,
    pub image: Arc<Image>,
    /// Whether agents that do not have the image can fetch it.
    pub is_pullable: bool,
    /// Agents that have it, as the broker knows; nothing where that does not matter or cannot be known.
    pub holders: Option<BTreeSet<String>>,
    pub requested: ResourceSlot,
    pub types: SlotTypes,
    pub mounts: Vec<VFolderId>,
}

impl Joint for Plan {
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
struct Place {
    agent: AgentRow,
    remaining: ResourceSlot,
}

/// What sessions are placed by, kept up while they are: each is checked as if it came after the one before it.
struct Site<'p> {
    places: Vec<Place>,
    /// What each place can expect from an image, by its name and whether it can be fetched.
    favours: HashMap<(&'p str, bool), Vec<Option<Favour>>>,
    /// Names that are taken, and whose.
    names: HashSet<(AccessKey, String)>,
    /// How many live sessions each owner has, and what these occupy.
    owners: HashMap<&'p AccessKey, (i64, ResourceSlot)>,
    groups: HashMap<GroupId, ResourceSlot>,
    domains: HashMap<&'p str, ResourceSlot>,
}

impl Manager {
    /// Records all in one transaction; says of each in turn what was found, or why it is refused.
    ///
    /// # Errors
    /// When none is recorded.
    async fn record_together(&self, plans: &[&Plan]) -> Result<Vec<Result<Recorded>>> {
        let mut tx = self.store.begin().await?;
        // Before the first look at what it decides by: other managers decide by the same.
        tx.lock_placement().await?;
        let endings = tx.session_endings().await?;
        let mut site = self.survey(&tx, plans).await?;
        let mut kernels = Vec::with_capacity(plans.len());
        let mut all = Vec::with_capacity(plans.len());
        for plan in plans {
            all.push(if endings == plan.endings {
                self.place(&mut site, plan).map(|placed| {
                    let placed = placed.map(|kernel| (kernel.id, kernels.push((kernel, &plan.mounts))));
                    placed.map_or(Recorded::NameTaken, |(id, ())| Recorded::New(id))
                })
            } else {
                Ok(Recorded::Ended)
            });
        }
        match self.insert_placed(tx, kernels).await {
            // Another manager was faster: an original one, which takes no lock.
            Err(error) if plans.len() == 1 && error.is_conflict_on(UNIQUE_NAME) => {
                return Ok(vec![Ok(Recorded::NameTaken)]);
            }
            inserted => inserted?,
        }
        for (plan, recorded) in plans.iter().zip(&all) {
            if let Ok(Recorded::New(kernel)) = recorded {
                tracing::info!(kernel.id = %kernel, session = %plan.request.name, image = plan.image.config.canonical, "session recorded");
            }
        }
        Ok(all)
    }

    async fn insert_placed(
        &self,
        mut tx: Tx,
        placed: Vec<(NewKernel, &Vec<VFolderId>)>,
    ) -> bai_store::Result<()> {
        let (kernels, mounts): (Vec<NewKernel>, Vec<&Vec<VFolderId>>) = placed.into_iter().unzip();
        tx.insert_kernels(&kernels).await?;
        for (kernel, mounts) in kernels.iter().zip(mounts) {
            tx.attach_vfolders(kernel.id, mounts).await?;
        }
        // From the beginning, or another manager might find one and take it for left behind.
        self.claim_and_commit(tx, kernels.iter().map(|kernel| kernel.id).collect())
            .await
    }

    /// Reads what these sessions are placed by, each thing once.
    async fn survey<'p>(&self, tx: &Reader, plans: &[&'p Plan]) -> Result<Site<'p>> {
        let names: Vec<_> = plans
            .iter()
            .map(|plan| (&plan.owner.access_key, plan.request.name.as_str()))
            .collect();
        let mut site = Site {
            places: self.places(tx).await?,
            favours: HashMap::new(),
            names: tx.live_names(&names).await?,
            owners: HashMap::new(),
            groups: HashMap::new(),
            domains: HashMap::new(),
        };
        for plan in plans {
            let owner = &plan.owner.access_key;
            if let Entry::Vacant(entry) = site.owners.entry(owner) {
                let live = tx.count_live_sessions(owner).await?;
                entry.insert((live, tx.occupied_by_keypair(owner).await?));
            }
            if let Entry::Vacant(entry) = site.groups.entry(plan.group) {
                entry.insert(tx.occupied_by_group(plan.group).await?);
            }
            if let Entry::Vacant(entry) = site.domains.entry(&plan.request.domain) {
                entry.insert(tx.occupied_by_domain(&plan.request.domain).await?);
            }
            site.favours
                .entry(plan.image_key())
                .or_insert_with(|| self.favours(&site.places, plan));
        }
        Ok(site)
    }

    /// The agents that are alive and can be called.
    async fn places(&self, tx: &Reader) -> Result<Vec<Place>> {
        let mut occupied = tx.occupied_by_all_agents().await?;
        let agents = tx.alive_agents().await?.into_iter();
        Ok(agents
            .filter(|agent| self.agents.can_be_reached(&agent.id, &agent.addr))
            .map(|agent| {
                let occupied = occupied.remove(&agent.id).unwrap_or_default();
                let remaining = agent.available_slots.minus(&occupied);
                Place { agent, remaining }
            })
            .collect())
    }

    fn favours(&self, places: &[Place], plan: &Plan) -> Vec<Option<Favour>> {
        let favour = |Place { agent, .. }: &Place| {
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
    fn place<'p>(&self, site: &mut Site<'p>, plan: &'p Plan) -> Result<Option<NewKernel>> {
        let owner = &plan.owner.access_key;
        let name = (owner.clone(), plan.request.name.as_str().to_owned());
        if site.names.contains(&name) {
            return Ok(None);
        }
        let (live, by_keypair) = site.owners.entry(owner).or_default();
        let by_group = site.groups.entry(plan.group).or_default();
        let by_domain = site.domains.entry(&plan.request.domain).or_default();
        check_concurrency(*live, &plan.owner)?;
        check_quotas(plan, [by_keypair, by_group, by_domain])?;
        let favours = site.favours.get(&plan.image_key()).map_or(&[][..], Vec::as_slice);
        let candidates: Vec<Candidate<'_>> = site
            .places
            .iter()
            .zip(favours)
            .enumerate()
            .filter_map(|(index, (Place { remaining, .. }, favour))| {
                Some(Candidate {
                    favour: (*favour)?,
                    index,
                    remaining,
                })
            })
            .collect();
        let Some(chosen) = choose_agent(&candidates, &plan.requested).map(|chosen| chosen.index) else {
            let why = why_nothing_fits(&candidates, !site.places.is_empty(), plan);
            return Err(Error::InstanceNotAvailable(why));
        };
        let Some(place) = site.places.get_mut(chosen) else {
            unreachable!("a candidate is one of the places")
        };
        place.remaining = place.remaining.minus(&plan.requested);
        *live += 1;
        for occupied in [by_keypair, by_group, by_domain] {
            *occupied = occupied.plus(&plan.requested);
        }
        site.names.insert(name);
        let id = KernelId::generate(self.random.as_ref());
        Ok(Some(new_kernel(id, &place.agent, plan)))
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
        group_id: plan.group,
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
pub(super) fn check_concurrency(live: i64, owner: &CredentialRow) -> Result<()> {
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
            ResourceSlot::from_policy(&plan.group_slots, unlimited, &plan.types),
            by_group,
        ),
        (
            "Your domain resource quota is exceeded.",
            ResourceSlot::from_policy(&plan.domain_slots, unlimited, &plan.types),
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
fn why_nothing_fits(candidates: &[Candidate<'_>], are_agents_there: bool, plan: &Plan) -> String {
    let requested = plan.requested.humanized(&plan.types);
    match choose_agent(candidates, &ResourceSlot::default()) {
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
