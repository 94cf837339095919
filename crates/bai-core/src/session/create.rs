//! Get or create a session, in the order of checks of `http-api.md` 4.8.1 (with the verdicts,
//! of its section 7).

use std::collections::BTreeSet;
use std::sync::Arc;

use bai_model::{AccessKey, GroupId, ImageRef, KernelStatus, ResourceSlot, UserId, VFolderId};
use bai_proto::agent::{AgentError, ServicePort};
use bai_store::agent::AgentRow;
use bai_store::kernel::{KernelRow, NewKernel};
use bai_store::vfolder::{VFolderRow, each_with_its_strongest_permission};

use super::record::{Plan, Recorded, check_concurrency};
use super::resources::requested_slots;
use super::{SessionCreate, SessionCreated};
use crate::lifecycle::Lifecycle;
use crate::reconcile::Outcome;
use crate::together::{Joint, Waiting};
use crate::{Error, Identity, Manager, Op, Result};

/// How often a creation starts anew because another one of the same name was in the way.
const MAX_ATTEMPTS: usize = 8;

/// Where a session belongs, and the quotas of that.
#[derive(Debug)]
pub(crate) struct Project {
    pub group: GroupId,
    pub group_slots: ResourceSlot,
    pub domain_slots: ResourceSlot,
}

/// A group's name, its domain's, and whoever must be a member.
pub(crate) type ProjectKey = (String, String, Option<UserId>);

/// What a creation goes by that a session of that name does not change.
struct Premises {
    owner: Arc<Identity>,
    project: Arc<Project>,
    mounts: Vec<VFolderRow>,
    reference: ImageRef,
}

/// A search for the session that has a name. Everybody who creates one looks for it first.
#[derive(Debug)]
pub(crate) struct NameSearch {
    owner: AccessKey,
    name: String,
}

impl Joint for NameSearch {
    type Outcome = Option<KernelRow>;

    const NAME: &str = "looking for a session";

    fn waiting(manager: &Manager) -> &Waiting<Self> {
        &manager.name_searches
    }

    async fn do_all(manager: &Manager, searches: &[&Self]) -> Result<Vec<Result<Option<KernelRow>>>> {
        let names = searches
            .iter()
            .map(|search| (&search.owner, search.name.as_str()));
        let names: Vec<_> = names.collect();
        let found = manager.store.reader().live_kernels_by_name(&names).await?;
        Ok(searches
            .iter()
            .map(|search| Ok(found.get(&(search.owner.clone(), search.name.clone())).cloned()))
            .collect())
    }
}

impl Manager {
    /// Returns the session of that name or creates it. Creation goes on when the caller goes away.
    ///
    /// # Errors
    /// In the order of `http-api.md` 4.8.1.
    pub async fn session_create(self: &Arc<Self>, op: &Op, request: SessionCreate) -> Result<SessionCreated> {
        let request = Arc::new(request);
        let owner_key = op.owner(request.owner.as_ref())?;
        let owner = self.session_owner(owner_key).await?;
        let premises = self.premises(op, &request, &owner).await;
        let premises = self.unless_too_many(&request, &owner, premises).await?;
        for _ in 0..MAX_ATTEMPTS {
            let endings = self.admit_session().await;
            let endings = self.unless_too_many(&request, &owner, endings).await?;
            if let Some(existing) = self.holder_of_name(&request, &owner).await? {
                match self.reuse(&request, &premises.reference, existing).await? {
                    Some(session) => return Ok(session),
                    None => continue,
                }
            }
            let plan = self.plan(op, &request, &premises, endings).await;
            let plan = Arc::new(self.unless_too_many(&request, &owner, plan).await?);
            let recorded = match self.join_in(Arc::clone(&plan)).await {
                // One of that name may have come meanwhile, and be what fills the quota.
                Err(error) if error.is_refusal() && self.is_name_taken(&request, &owner).await? => {
                    tracing::debug!(%error, session = %request.name, "refused in favour of a session of that name");
                    continue;
                }
                recorded => recorded?,
            };
            match recorded {
                Recorded::New(kernel) => {
                    self.announce_new(&kernel);
                    return self.await_creation(&plan, *kernel).await;
                }
                // Somebody was faster; look at theirs.
                Recorded::NameTaken => {}
                Recorded::Ended => self.forget_status(),
            }
        }
        Err(Error::ServiceUnavailable(format!(
            "the session {} keeps changing; try again",
            request.name
        )))
    }

    /// Lets a step of a creation pass, or says why it is refused. The number of sessions is counted first in the original, but
    /// only where one would be made; here it is counted when the session is recorded, and before that only to tell the
    /// same.
    async fn unless_too_many<T>(
        self: &Arc<Self>,
        request: &SessionCreate,
        owner: &Identity,
        step: Result<T>,
    ) -> Result<T> {
        if step.is_err() && !self.is_name_taken(request, owner).await? {
            let reader = self.store.reader();
            check_concurrency(reader.count_live_sessions(&owner.access_key).await?, owner)?;
        }
        step
    }

    async fn is_name_taken(self: &Arc<Self>, request: &SessionCreate, owner: &Identity) -> Result<bool> {
        Ok(self.holder_of_name(request, owner).await?.is_some())
    }

    /// The session that has the name, whatever became of its agent.
    async fn holder_of_name(
        self: &Arc<Self>,
        request: &SessionCreate,
        owner: &Identity,
    ) -> Result<Option<KernelRow>> {
        let search = NameSearch {
            owner: owner.access_key.clone(),
            name: request.name.as_str().to_owned(),
        };
        self.join_in(search).await
    }

    async fn premises(
        &self,
        op: &Op,
        request: &Arc<SessionCreate>,
        owner: &Arc<Identity>,
    ) -> Result<Premises> {
        let is_member_needed = !op.identity()?.is_superadmin();
        let project = self
            .project(request, is_member_needed.then_some(owner.user))
            .await?;
        let mounts = self
            .resolve_mounts(owner, &project.group, &request.mounts)
            .await?;
        Ok(Premises {
            owner: Arc::clone(owner),
            project,
            mounts,
            reference: self.resolve_image(&request.image).await?,
        })
    }

    /// The group that is asked for, as it was two seconds ago at the earliest.
    async fn project(&self, request: &SessionCreate, member: Option<UserId>) -> Result<Arc<Project>> {
        let key = (request.group.clone(), request.domain.clone(), member);
        let reading = match self.projects.get_of(&key, self.clock.now()) {
            Ok(project) => return Ok(project),
            Err(reading) => reading,
        };
        let reader = self.store.reader();
        let group = reader
            .group_for_session(&request.group, &request.domain, member)
            .await?
            .ok_or_else(|| {
                Error::General(format!(
                    "{}: no such group in domain {}",
                    request.group, request.domain
                ))
            })?;
        let domain = reader.domain(&group.domain_name).await?;
        let project = Arc::new(Project {
            group: group.id,
            group_slots: group.total_resource_slots,
            domain_slots: domain
                .map(|domain| domain.total_resource_slots)
                .unwrap_or_default(),
        });
        self.projects.put_of(key, reading, Arc::clone(&project));
        Ok(project)
    }

    async fn plan(
        &self,
        op: &Op,
        request: &Arc<SessionCreate>,
        premises: &Premises,
        endings: i64,
    ) -> Result<Plan> {
        let types = self.slot_types().await?;
        let image = self
            .image(&premises.reference)
            .await?
            .ok_or_else(|| Error::invalid(format!("Unknown image reference: {}", request.image)))?;
        let requested = requested_slots(&request.resources, &image, &types)?;
        let is_pullable = !image.config.registry.url.is_empty();
        let holders = match is_pullable {
            true => None,
            false => self.holders_of(&image.config.canonical).await,
        };
        Ok(Plan {
            request: Arc::clone(request),
            requested_at: op.now,
            endings,
            owner: Arc::clone(&premises.owner),
            project: Arc::clone(&premises.project),
            image,
            is_pullable,
            holders,
            requested,
            types,
            mounts: premises.mounts.clone(),
        })
    }

    async fn holders_of(&self, image: &str) -> Option<BTreeSet<String>> {
        let holders = self.broker.members_with(image).await;
        holders
            .inspect_err(|error| tracing::debug!(%error, image, "which agents have an image cannot be known"))
            .ok()
    }

    async fn session_owner(&self, owner: &AccessKey) -> Result<Arc<Identity>> {
        if !owner.can_exist() {
            return Err(Error::invalid("owner_access_key must be an access key"));
        }
        let credential = self.credential(owner).await?;
        credential
            .map(|credential| credential.identity)
            .ok_or_else(|| Error::invalid(format!("Unknown or inactive owner access key: {owner}")))
    }

    /// The existing session if it can be had, or `None` when it is out of the way and the name is free.
    async fn reuse(
        self: &Arc<Self>,
        request: &SessionCreate,
        reference: &ImageRef,
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
        let image = ImageRef::parse(existing.image.as_deref().unwrap_or_default(), &registries);
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

    async fn await_creation(self: &Arc<Self>, plan: &Plan, kernel: NewKernel) -> Result<SessionCreated> {
        let id = kernel.id;
        let creation = self.creation_of_new(plan, kernel).await?;
        match self.carry_out_first(creation).await {
            Outcome::Started(service_ports) => {
                return Ok(SessionCreated {
                    name: plan.request.name.clone(),
                    service_ports: Some(service_ports),
                    created: true,
                    status: KernelStatus::Running,
                });
            }
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
            Outcome::Done(_) | Outcome::Elsewhere => {}
        }
        let row = self
            .store
            .reader()
            .kernel(id)
            .await?
            .filter(|row| row.status == Some(KernelStatus::Running));
        let row = row.ok_or_else(|| {
            Error::KernelCreationFailed(AgentError::exception(
                "RuntimeError",
                "the session ended while it was being started",
            ))
        })?;
        Ok(created(&plan.request, &row, true))
    }

    /// The named folders, as far as the owner may use them in this group (`http-api.md` 4.8.1, step 3).
    async fn resolve_mounts(
        &self,
        owner: &Identity,
        group: &GroupId,
        names: &[String],
    ) -> Result<Vec<VFolderRow>> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let folders = self.store.reader().accessible_vfolders(owner.user).await?;
        let named = names.iter().map(|name| {
            folders
                .iter()
                .find(|folder| folder.name == *name && folder.group.is_none_or(|of| of == *group))
                .ok_or_else(|| Error::VFolderNotFound(Some(name.clone())))
        });
        let named: Vec<VFolderId> = named.map(|folder| Ok(folder?.id)).collect::<Result<_>>()?;
        let is_named = |folder: &VFolderRow| named.contains(&folder.id);
        Ok(each_with_its_strongest_permission(
            folders.into_iter().filter(is_named),
        ))
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
