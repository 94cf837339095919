//! Get or create a session, in the order of checks of `http-api.md` 4.8.1 (with the verdicts,
//! of its section 7).

use std::collections::BTreeSet;
use std::sync::Arc;

use bai_model::{AccessKey, DefaultForUnspecified, GroupId, KernelId, KernelStatus, ResourceSlot, SlotTypes};
use bai_proto::agent::{AgentError, ServicePort};
use bai_store::agent::AgentRow;
use bai_store::kernel::{KernelRow, NewKernel};
use bai_store::{Tx, credential::CredentialRow};

use super::placement::{Candidate, Favour, choose_agent};
use super::resources::requested_slots;
use super::{SessionCreate, SessionCreated};
use crate::cluster::Duty;
use crate::image::Image;
use crate::lifecycle::Lifecycle;
use crate::reconcile::Outcome;
use crate::{Error, Manager, Op, Result};

/// The index that lets one live session have a name.
const UNIQUE_NAME: &str = "ix_kernels_unique_sess_token";
/// How often a creation starts anew because another one of the same name was in the way.
const MAX_ATTEMPTS: usize = 8;

/// What recording a session found.
enum Recorded {
    New(KernelId),
    /// There is a live session of that name.
    NameTaken,
}

/// Everything about the owner and the place that recording needs, gathered before the transaction.
struct Plan<'a> {
    request: &'a SessionCreate,
    owner: &'a CredentialRow,
    group: GroupId,
    group_slots: ResourceSlot,
    domain_slots: ResourceSlot,
    image: Image,
    /// Whether agents that do not have the image can fetch it.
    is_pullable: bool,
    /// Agents that have it, as the broker knows; nothing where that does not matter or cannot be known.
    holders: Option<BTreeSet<String>>,
    requested: ResourceSlot,
    types: SlotTypes,
    mounts: Vec<bai_model::VFolderId>,
}

impl Manager {
    /// Returns the session of that name or creates it. Creation goes on when the caller goes away.
    ///
    /// # Errors
    /// In the order of `http-api.md` 4.8.1.
    pub async fn session_create(self: &Arc<Self>, op: &Op, request: SessionCreate) -> Result<SessionCreated> {
        let identity = op.identity()?;
        let owner_key = op.owner(request.owner.as_ref())?;
        let owner = self.session_owner(owner_key).await?;
        let reader = self.store.reader();
        // First, as in the original, but only where something would be made; decided again when it is recorded.
        let name_is_free = reader
            .live_kernel_by_name(owner_key, request.name.as_str())
            .await?
            .is_none();
        if name_is_free {
            check_concurrency(reader.count_live_sessions(owner_key).await?, &owner)?;
        }
        let is_member_needed = !identity.is_superadmin();
        let group = reader
            .group_for_session(
                &request.group,
                &request.domain,
                is_member_needed.then_some(owner.user),
            )
            .await?
            .ok_or_else(|| {
                Error::General(format!(
                    "{}: no such group in domain {}",
                    request.group, request.domain
                ))
            })?;
        let domain = reader.domain(&group.domain_name).await?;
        let mounts = self.resolve_mounts(&owner, &group.id, &request.mounts).await?;
        let reference = self.resolve_image(&request.image).await?;
        for _ in 0..MAX_ATTEMPTS {
            if let Some(existing) = self
                .store
                .reader()
                .live_kernel_by_name(owner_key, request.name.as_str())
                .await?
            {
                match self.reuse(&request, &reference, existing).await? {
                    Some(session) => return Ok(session),
                    None => continue,
                }
            }
            let types = self.slot_types().await?;
            let image = self
                .image(reference.clone(), &types)
                .await?
                .ok_or_else(|| Error::invalid(format!("Unknown image reference: {}", request.image)))?;
            let requested = requested_slots(&request.resources, &image, &types)?;
            let is_pullable = !image.config.registry.url.is_empty();
            let holders = match is_pullable {
                true => None,
                false => self.holders_of(&image.config.canonical).await,
            };
            let plan = Plan {
                request: &request,
                owner: &owner,
                group: group.id,
                group_slots: group.total_resource_slots.clone(),
                domain_slots: domain
                    .as_ref()
                    .map(|domain| domain.total_resource_slots.clone())
                    .unwrap_or_default(),
                image,
                is_pullable,
                holders,
                requested,
                types,
                mounts: mounts.clone(),
            };
            match self.record_session(op, &plan).await? {
                Recorded::New(kernel) => {
                    self.announce(kernel, Lifecycle::Preparing, "");
                    return self.await_creation(&request, kernel).await;
                }
                // Somebody was faster; look at theirs.
                Recorded::NameTaken => {}
            }
        }
        Err(Error::ServiceUnavailable(format!(
            "the session {} keeps changing; try again",
            request.name
        )))
    }

    async fn holders_of(&self, image: &str) -> Option<BTreeSet<String>> {
        let holders = self.broker.members_with(image).await;
        holders
            .inspect_err(|error| tracing::debug!(%error, image, "which agents have an image cannot be known"))
            .ok()
    }

    async fn session_owner(&self, owner: &AccessKey) -> Result<CredentialRow> {
        if !owner.can_exist() {
            return Err(Error::invalid("owner_access_key must be an access key"));
        }
        let row = self.store.reader().credential_by_access_key(owner).await?;
        row.filter(|row| row.keypair_is_active && row.user_is_active != Some(false))
            .filter(|row| row.domain_is_active != Some(false))
            .ok_or_else(|| Error::invalid(format!("Unknown or inactive owner access key: {owner}")))
    }

    /// The existing session if it can be had, or `None` when it is out of the way and the name is free.
    async fn reuse(
        self: &Arc<Self>,
        request: &SessionCreate,
        reference: &bai_model::ImageRef,
        existing: KernelRow,
    ) -> Result<Option<SessionCreated>> {
        if self.ended_with_its_agent(&existing).await? {
            return Ok(None);
        }
        // The name is free once the termination is done (Q-63 for sessions that failed).
        if let Some(KernelStatus::Terminating | KernelStatus::Error) = existing.status {
            self.terminate(&existing).await.map_err(|error| {
                tracing::warn!(kernel.id = %existing.id, %error, "a session that is in the way could not be ended");
                Error::ServiceUnavailable(format!(
                    "the former session {} has not ended yet, because its agent does not answer; try again shortly",
                    request.name
                ))
            })?;
            return Ok(None);
        }
        let registries: Vec<String> = existing.registry.iter().cloned().collect();
        let image = bai_model::ImageRef::parse(existing.image.as_deref().unwrap_or_default(), &registries);
        if image.ok().as_ref() != Some(reference) {
            return Err(Error::KernelAlreadyExists);
        }
        if !request.reuse_if_exists {
            return Err(Error::invalid(format!(
                "The session {} exists already",
                request.name
            )));
        }
        Ok(Some(created(request, &existing, false)))
    }

    /// Whether the session was on an agent that is lost or has left, in which case it is recorded as ended. The
    /// database decides: an agent that has not connected to this manager since its start is not lost, and its sessions
    /// go on.
    pub(crate) async fn ended_with_its_agent(&self, session: &KernelRow) -> Result<bool> {
        let is_there = |agent: Option<AgentRow>| agent.is_some_and(|agent| !agent.status.is_gone());
        if let Some(agent) = &session.agent
            && is_there(self.store.reader().agent(agent).await?)
        {
            return Ok(false);
        }
        let mut tx = self.store.begin().await?;
        if let Some(agent) = &session.agent
            && is_there(tx.agent(agent).await?)
        {
            return Ok(false);
        }
        let has_ended = tx
            .terminate_kernel(session.id, "agent-lost", self.clock.now(), None)
            .await?;
        tx.commit().await?;
        if has_ended {
            self.announce(session.id, Lifecycle::Terminated, "agent-lost");
        }
        Ok(true)
    }

    /// Checks the limits, reserves a place and records the session, in one transaction.
    async fn record_session(&self, op: &Op, plan: &Plan<'_>) -> Result<Recorded> {
        let owner = &plan.owner.access_key;
        let mut tx = self.store.begin().await?;
        // Before the first look at what it decides by: other managers decide by the same.
        tx.lock_placement().await?;
        if tx
            .live_kernel_by_name(owner, plan.request.name.as_str())
            .await?
            .is_some()
        {
            return Ok(Recorded::NameTaken);
        }
        check_concurrency(tx.count_live_sessions(owner).await?, plan.owner)?;
        check_quotas(&mut tx, plan).await?;
        let mut occupied = tx.occupied_by_all_agents().await?;
        let agents = tx.alive_agents().await?.into_iter();
        let candidates: Vec<Candidate> = agents
            .filter(|agent| self.agents.can_be_reached(&agent.id, &agent.addr))
            .filter_map(|agent| {
                let occupied = occupied.remove(&agent.id).unwrap_or_default();
                let standing = self.agents.standing(&agent.id, &plan.image.config.canonical);
                let holders = plan.holders.as_ref();
                let is_known_to_have = holders.is_none_or(|holders| holders.contains(&agent.id.0));
                Some(Candidate {
                    favour: Favour::of(&standing, plan.is_pullable, is_known_to_have)?,
                    remaining: agent.available_slots.minus(&occupied),
                    id: agent.id,
                    addr: agent.addr,
                })
            })
            .collect();
        let chosen = choose_agent(&candidates, &plan.requested)
            .ok_or_else(|| Error::InstanceNotAvailable(why_nothing_fits(&candidates, plan)))?;
        let kernel = KernelId::generate(self.random.as_ref());
        let new = NewKernel {
            id: kernel,
            sess_id: plan.request.name.as_str().to_owned(),
            agent: chosen.id.clone(),
            agent_addr: chosen.addr.clone(),
            domain_name: plan.request.domain.clone(),
            group_id: plan.group,
            user_uuid: plan.owner.user,
            access_key: owner.clone(),
            image: plan.image.config.canonical.clone(),
            registry: plan.image.reference.registry.clone(),
            tag: plan.request.tag.clone(),
            occupied_slots: plan.requested.clone(),
            environ: plan
                .request
                .environ
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect(),
            created_at: op.now,
        };
        match tx.insert_kernel(&new).await {
            Ok(()) => {}
            // Another manager was faster: an original one, which takes no lock.
            Err(error) if error.is_conflict_on(UNIQUE_NAME) => return Ok(Recorded::NameTaken),
            Err(error) => return Err(error.into()),
        }
        tx.attach_vfolders(kernel, &plan.mounts).await?;
        // From the beginning, or another manager might find it and take it for left behind.
        self.claim_in(&mut tx, &Duty::Kernel(kernel)).await?;
        tx.commit().await?;
        tracing::info!(kernel.id = %kernel, session = %plan.request.name, agent.id = %chosen.id, image = plan.image.config.canonical, "session recorded");
        Ok(Recorded::New(kernel))
    }

    async fn await_creation(
        self: &Arc<Self>,
        request: &SessionCreate,
        kernel: KernelId,
    ) -> Result<SessionCreated> {
        match self.carry_out_first(kernel).await {
            Outcome::Done(_) => {}
            Outcome::AgentFailed(error) => return Err(Error::KernelCreationFailed(error)),
            Outcome::Overtaken(text) => {
                return Err(Error::KernelCreationFailed(AgentError::exception(
                    "RuntimeError",
                    text,
                )));
            }
            Outcome::Away(text) => {
                return Err(Error::ServiceUnavailable(format!(
                    "{text}; the session is recorded and starts by itself"
                )));
            }
            // The record tells.
            Outcome::Elsewhere => {}
        }
        let row = self
            .store
            .reader()
            .kernel(kernel)
            .await?
            .filter(|row| row.status == Some(KernelStatus::Running));
        let row = row.ok_or_else(|| {
            Error::KernelCreationFailed(AgentError::exception(
                "RuntimeError",
                "the session ended while it was being started",
            ))
        })?;
        Ok(created(request, &row, true))
    }

    /// The ids of the named folders, as far as the owner may use them in this group (`http-api.md` 4.8.1, step 3).
    async fn resolve_mounts(
        &self,
        owner: &CredentialRow,
        group: &GroupId,
        names: &[String],
    ) -> Result<Vec<bai_model::VFolderId>> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let folders = self.store.reader().accessible_vfolders(owner.user).await?;
        names
            .iter()
            .map(|name| {
                folders
                    .iter()
                    .find(|folder| folder.name == *name && folder.group.is_none_or(|of| of == *group))
                    .map(|folder| folder.id)
                    .ok_or_else(|| Error::VFolderNotFound(Some(name.clone())))
            })
            .collect()
    }
}

/// The number of sessions that the owner's policy allows.
fn check_concurrency(live: i64, owner: &CredentialRow) -> Result<()> {
    let allowed = owner.policy.max_concurrent_sessions;
    if live < allowed {
        return Ok(());
    }
    Err(Error::QuotaExceeded(format!(
        "{live} sessions of {allowed} are in use; terminate one first"
    )))
}

/// The three sums of `data-model.md` 15.1, each with the request added.
async fn check_quotas(tx: &mut Tx, plan: &Plan<'_>) -> Result<()> {
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
            tx.occupied_by_keypair(&plan.owner.access_key).await?,
        ),
        (
            "Your group resource quota is exceeded.",
            ResourceSlot::from_policy(&plan.group_slots, unlimited, &plan.types),
            tx.occupied_by_group(plan.group).await?,
        ),
        (
            "Your domain resource quota is exceeded.",
            ResourceSlot::from_policy(&plan.domain_slots, unlimited, &plan.types),
            tx.occupied_by_domain(&plan.request.domain).await?,
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
fn why_nothing_fits(candidates: &[Candidate], plan: &Plan<'_>) -> String {
    let requested = plan.requested.humanized(&plan.types);
    match choose_agent(candidates, &ResourceSlot::default()) {
        None => format!("{requested} was asked for, but no agent is connected; try again when one is"),
        Some(emptiest) => format!(
            "{requested} was asked for, and the agent with the most room has {} left; ask for less, or try again when \
             other sessions have ended",
            emptiest.remaining.humanized(&plan.types)
        ),
    }
}

fn created(request: &SessionCreate, row: &KernelRow, created: bool) -> SessionCreated {
    let status = row.status.unwrap_or(KernelStatus::Preparing);
    let service_ports: Option<Vec<ServicePort>> = match status {
        KernelStatus::Preparing => None,
        _ => row
            .service_ports
            .clone()
            .and_then(|ports| serde_json::from_value(ports).ok()),
    };
    SessionCreated {
        name: request.name.clone(),
        service_ports,
        created,
        status,
    }
}
