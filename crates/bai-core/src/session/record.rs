//! Recording new sessions: limits, a place, and the row that stands before anything is started.
//!
//! Whoever decides by quotas and by what agents have left is the only one, of all managers
//! ([`bai_store::Tx::lock_placement`]). Therefore the sessions that wait at a manager are recorded together: one look at the
//! agents and one commit for all of them, each checked as if it came after the one before it.
//!
//! Invariants: a session that is refused does not touch the others; when recording several fails, each is tried for itself.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bai_model::{DefaultForUnspecified, GroupId, KernelId, ResourceSlot, SlotTypes, VFolderId};
use bai_store::agent::AgentRow;
use bai_store::credential::CredentialRow;
use bai_store::kernel::NewKernel;
use bai_store::{Reader, Tx};
use chrono::{DateTime, Utc};
use tokio::sync::oneshot;

use super::SessionCreate;
use super::placement::{Candidate, Favour, choose_agent};
use crate::cluster::Duty;
use crate::image::Image;
use crate::{Error, Manager, Result};

/// The index that lets one live session have a name.
const UNIQUE_NAME: &str = "ix_kernels_unique_sess_token";
/// Sessions that are recorded together.
const TOGETHER: usize = 64;

/// What recording a session found.
#[derive(Debug)]
pub(super) enum Recorded {
    New(KernelId),
    /// There is a live session of that name.
    NameTaken,
    /// All sessions were told to end since this one was admitted.
    Ended,
}

/// Everything about the owner and the place that recording needs, gathered before the transaction.
#[derive(Debug)]
pub(super) struct Plan {
    pub request: Arc<SessionCreate>,
    pub requested_at: DateTime<Utc>,
    /// What it was admitted with ([`Manager::admit_session`]).
    pub endings: i64,
    pub owner: Arc<CredentialRow>,
    pub group: GroupId,
    pub group_slots: ResourceSlot,
    pub domain_slots: ResourceSlot,
    pub image: Image,
    /// Whether agents that do not have the image can fetch it.
    pub is_pullable: bool,
    /// Agents that have it, as the broker knows; nothing where that does not matter or cannot be known.
    pub holders: Option<BTreeSet<String>>,
    pub requested: ResourceSlot,
    pub types: SlotTypes,
    pub mounts: Vec<VFolderId>,
}

/// Sessions that wait to be recorded, in their order.
#[derive(Debug, Default)]
pub(crate) struct Waiting(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    orders: Vec<Order>,
    is_worked_at: bool,
}

#[derive(Debug)]
struct Order {
    plan: Plan,
    answer: oneshot::Sender<Result<Recorded>>,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when somebody has to begin to work.
    fn put(&self, order: Order) -> bool {
        let mut queue = self.lock();
        queue.orders.push(order);
        !std::mem::replace(&mut queue.is_worked_at, true)
    }

    /// The next ones; none at the end of the work.
    fn take(&self) -> Vec<Order> {
        let mut queue = self.lock();
        let together = queue.orders.len().min(TOGETHER);
        queue.is_worked_at = together > 0;
        queue.orders.drain(..together).collect()
    }
}

/// Should the work panic, those who wait are told by their channels, and the next one begins anew.
struct Working<'a>(&'a Waiting);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            *self.0.lock() = Queue::default();
        }
    }
}

/// An agent and what it has left, less with each session that is recorded.
struct Place {
    agent: AgentRow,
    remaining: ResourceSlot,
}

impl Manager {
    /// Checks the limits, reserves a place and records the session, in one transaction with others that wait.
    pub(super) async fn record_session(self: &Arc<Self>, plan: Plan) -> Result<Recorded> {
        let (answer, recorded) = oneshot::channel();
        if self.waiting.put(Order { plan, answer }) {
            let manager = Arc::clone(self);
            self.tasks.spawn(async move {
                let _working = Working(&manager.waiting);
                loop {
                    let orders = manager.waiting.take();
                    if orders.is_empty() {
                        return;
                    }
                    manager.record_orders(orders).await;
                }
            });
        }
        recorded.await.unwrap_or_else(|_| {
            Err(Error::Internal(
                "recording a session broke off; the log says why".to_owned(),
            ))
        })
    }

    async fn record_orders(&self, orders: Vec<Order>) {
        let plans: Vec<&Plan> = orders.iter().map(|order| &order.plan).collect();
        match self.record_together(&plans).await {
            Ok(recorded) => {
                for (order, recorded) in orders.into_iter().zip(recorded) {
                    // A requester that went away finds the session when it asks again.
                    _ = order.answer.send(recorded);
                }
            }
            Err(error) if orders.len() > 1 => {
                tracing::debug!(%error, sessions = orders.len(), "sessions are recorded one by one");
                for Order { plan, answer } in orders {
                    let recorded = self.record_together(&[&plan]).await;
                    _ = answer.send(recorded.and_then(|mut recorded| {
                        let nothing = || Error::Internal("a session was not recorded".to_owned());
                        recorded.pop().ok_or_else(nothing)?
                    }));
                }
            }
            Err(error) => {
                let order = orders.into_iter().next();
                if let Some(order) = order {
                    _ = order.answer.send(Err(error));
                }
            }
        }
    }

    /// Records all in one transaction; says of each in turn what was found, or why it is refused.
    ///
    /// # Errors
    /// When none is recorded.
    async fn record_together(&self, plans: &[&Plan]) -> Result<Vec<Result<Recorded>>> {
        let mut tx = self.store.begin().await?;
        // Before the first look at what it decides by: other managers decide by the same.
        tx.lock_placement().await?;
        let endings = tx.session_endings().await?;
        let mut places = self.places(&tx).await?;
        let mut all = Vec::with_capacity(plans.len());
        for plan in plans {
            if endings != plan.endings {
                all.push(Ok(Recorded::Ended));
                continue;
            }
            let found = self.record_in(&mut tx, &mut places, plan).await;
            match found {
                // Another manager was faster: an original one, which takes no lock.
                Err(error) if plans.len() == 1 && error.is_conflict_on(UNIQUE_NAME) => {
                    return Ok(vec![Ok(Recorded::NameTaken)]);
                }
                found => all.push(found?),
            }
        }
        tx.commit().await?;
        for (plan, recorded) in plans.iter().zip(&all) {
            if let Ok(Recorded::New(kernel)) = recorded {
                tracing::info!(kernel.id = %kernel, session = %plan.request.name, image = plan.image.config.canonical, "session recorded");
            }
        }
        Ok(all)
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

    /// Records one. The inner result is what it is told, and the transaction goes on.
    async fn record_in(
        &self,
        tx: &mut Tx,
        places: &mut [Place],
        plan: &Plan,
    ) -> bai_store::Result<Result<Recorded>> {
        let owner = &plan.owner.access_key;
        let namesake = tx.live_kernel_by_name(owner, plan.request.name.as_str()).await?;
        if namesake.is_some() {
            return Ok(Ok(Recorded::NameTaken));
        }
        let live = tx.count_live_sessions(owner).await?;
        let occupied = Occupied {
            by_keypair: tx.occupied_by_keypair(owner).await?,
            by_group: tx.occupied_by_group(plan.group).await?,
            by_domain: tx.occupied_by_domain(&plan.request.domain).await?,
        };
        let allowed = check_concurrency(live, &plan.owner).and_then(|()| check_quotas(plan, occupied));
        if let Err(refusal) = allowed {
            return Ok(Err(refusal));
        }
        let candidates = self.candidates(places, plan);
        let Some(chosen) = choose_agent(&candidates, &plan.requested).map(|chosen| chosen.index) else {
            let why = why_nothing_fits(&candidates, !places.is_empty(), plan);
            return Ok(Err(Error::InstanceNotAvailable(why)));
        };
        let Some(place) = places.get_mut(chosen) else {
            unreachable!("a candidate is one of the places")
        };
        let kernel = KernelId::generate(self.random.as_ref());
        tx.insert_kernel(&new_kernel(kernel, &place.agent, plan)).await?;
        tx.attach_vfolders(kernel, &plan.mounts).await?;
        // From the beginning, or another manager might find it and take it for left behind.
        self.claim_in(tx, &Duty::Kernel(kernel)).await?;
        place.remaining = place.remaining.minus(&plan.requested);
        Ok(Ok(Recorded::New(kernel)))
    }

    fn candidates<'a>(&self, places: &'a [Place], plan: &Plan) -> Vec<Candidate<'a>> {
        let places = places.iter().enumerate();
        places
            .filter_map(|(index, Place { agent, remaining })| {
                let standing = self.agents.standing(&agent.id, &plan.image.config.canonical);
                let holders = plan.holders.as_ref();
                let is_known_to_have = holders.is_none_or(|holders| holders.contains(&agent.id.0));
                Some(Candidate {
                    favour: Favour::of(&standing, plan.is_pullable, is_known_to_have)?,
                    index,
                    remaining,
                })
            })
            .collect()
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

/// What live kernels occupy.
struct Occupied {
    by_keypair: ResourceSlot,
    by_group: ResourceSlot,
    by_domain: ResourceSlot,
}

/// The three sums of `data-model.md` 15.1, each with the request added.
fn check_quotas(plan: &Plan, occupied: Occupied) -> Result<()> {
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
            occupied.by_keypair,
        ),
        (
            "Your group resource quota is exceeded.",
            ResourceSlot::from_policy(&plan.group_slots, unlimited, &plan.types),
            occupied.by_group,
        ),
        (
            "Your domain resource quota is exceeded.",
            ResourceSlot::from_policy(&plan.domain_slots, unlimited, &plan.types),
            occupied.by_domain,
        ),
    ];
    for (text, limit, mut occupied) in checks {
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
