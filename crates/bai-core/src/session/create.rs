//! Get or create a session, in the order of checks of `http-api.md` 4.8.1 (with the verdicts,
//! of its section 7).

use std::collections::BTreeSet;
use std::sync::Arc;

use bai_model::{AccessKey, GroupId, KernelId, KernelStatus};
use bai_proto::agent::{AgentError, ServicePort};
use bai_store::agent::AgentRow;
use bai_store::credential::CredentialRow;
use bai_store::kernel::KernelRow;

use super::record::{Plan, Recorded, check_concurrency};
use super::resources::requested_slots;
use super::{SessionCreate, SessionCreated};
use crate::lifecycle::Lifecycle;
use crate::reconcile::Outcome;
use crate::{Error, Manager, Op, Result};

/// How often a creation starts anew because another one of the same name was in the way.
const MAX_ATTEMPTS: usize = 8;

impl Manager {
    /// Returns the session of that name or creates it. Creation goes on when the caller goes away.
    ///
    /// # Errors
    /// In the order of `http-api.md` 4.8.1.
    pub async fn session_create(self: &Arc<Self>, op: &Op, request: SessionCreate) -> Result<SessionCreated> {
        let request = Arc::new(request);
        let identity = op.identity()?;
        let owner_key = op.owner(request.owner.as_ref())?;
        let owner = Arc::new(self.session_owner(owner_key).await?);
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
            let endings = self.admit_session().await?;
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
                .image(&reference)
                .await?
                .ok_or_else(|| Error::invalid(format!("Unknown image reference: {}", request.image)))?;
            let requested = requested_slots(&request.resources, &image, &types)?;
            let is_pullable = !image.config.registry.url.is_empty();
            let holders = match is_pullable {
                true => None,
                false => self.holders_of(&image.config.canonical).await,
            };
            let plan = Plan {
                request: Arc::clone(&request),
                requested_at: op.now,
                endings,
                owner: Arc::clone(&owner),
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
            match self.join_in(plan).await? {
                Recorded::New(kernel) => {
                    self.announce(kernel, Lifecycle::Preparing, "");
                    return self.await_creation(&request, kernel).await;
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
