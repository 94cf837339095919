//! What there is to share, and who has how much of it: presets, what is left of quotas and agents, counters
//! (`http-api.md` 4.12, `data-model.md` 15).
//!
//! Invariant: what is said to be allocatable would pass the checks of a session's creation at that moment.
//!
//! Not here: limits at creation ([`crate::session`]), and changes of presets.

mod usage;

use bai_model::{DefaultForUnspecified, ResourceSlot, SlotTypes, SlotValue};

use crate::{Error, Identity, Manager, Op, Result};

pub use usage::{ContainerUsage, UsageGroup, UsagePages, UsageReport, UsageSums};

/// The group of requests that name none.
const DEFAULT_GROUP: &str = "default";

/// A named amount of resources.
#[derive(Clone, Debug, PartialEq)]
pub struct Preset {
    pub name: String,
    /// Of types that the cluster knows.
    pub resource_slots: ResourceSlot,
}

/// A limit, what is in use of it, and what is left.
#[derive(Clone, Debug, PartialEq)]
pub struct Quota {
    /// Of every known type; infinite where there is no limit.
    pub limits: ResourceSlot,
    /// Nothing is named where nothing is in use.
    pub using: ResourceSlot,
    /// May be negative, after a limit was lowered.
    pub remaining: ResourceSlot,
}

/// What the requester could start now.
#[derive(Clone, Debug, PartialEq)]
pub struct PresetCheck {
    pub keypair: Quota,
    /// Of the group that was named.
    pub group: Option<Quota>,
    /// What the agents that are alive have left together.
    pub scaling_group_remaining: ResourceSlot,
    /// Every preset, and whether a session of that size would be let in.
    pub presets: Vec<(Preset, bool)>,
}

impl Quota {
    fn new(limits: ResourceSlot, mut using: ResourceSlot, types: &SlotTypes) -> Self {
        using.retain_known(types);
        Self {
            remaining: limits.minus(&using),
            limits,
            using,
        }
    }
}

impl Manager {
    /// The presets, by name, without types that the cluster does not know. For whoever signs.
    ///
    /// # Errors
    /// [`Error::Unauthorized`].
    pub async fn resource_presets(&self, op: &Op) -> Result<Vec<Preset>> {
        op.identity()?;
        self.known_presets(&self.slot_types().await?).await
    }

    async fn known_presets(&self, types: &SlotTypes) -> Result<Vec<Preset>> {
        let presets = self.store.reader().presets().await?.into_iter();
        Ok(presets
            .map(|row| {
                let mut preset = Preset {
                    name: row.name,
                    resource_slots: row.resource_slots,
                };
                preset.resource_slots.retain_known(types);
                preset
            })
            .collect())
    }

    /// What is left of the requester's quotas and of the agents, and which presets fit into all of it: into the keypair's,
    /// the domain's and the group's remainder and into a single agent that is alive. The group is that of the
    /// requester's domain with the given name; without one, it is `default`, where that exists. For whoever signs.
    ///
    /// # Errors
    /// [`Error::Unauthorized`]; [`Error::InvalidParameters`] for a group in which the requester cannot have sessions.
    pub async fn resource_check_presets(&self, op: &Op, group: Option<&str>) -> Result<PresetCheck> {
        let identity = op.identity()?;
        let types = self.slot_types().await?;
        let reader = self.store.reader();
        let policy = &identity.policy;
        let limits = ResourceSlot::from_policy(
            &policy.total_resource_slots,
            policy.default_for_unspecified,
            &types,
        );
        let keypair = Quota::new(
            limits,
            reader.occupied_by_keypair(&identity.access_key).await?,
            &types,
        );
        let domain_quota = self.domain_quota(identity, &types).await?;
        let group_quota = self
            .group_quota(identity, group.unwrap_or(DEFAULT_GROUP), &types)
            .await?;
        if let (Some(name), None) = (group, &group_quota) {
            return Err(Error::invalid(format!(
                "Unknown or inactive group, or one that you are no member of: {name}"
            )));
        }
        let agents = self.agents_remaining().await?;
        let none: ResourceSlot = types.names().map(|name| (name, SlotValue::ZERO)).collect();
        let scaling_group_remaining = agents.iter().fold(none, |sum, agent| sum.plus(agent));
        let quotas = [Some(&keypair), domain_quota.as_ref(), group_quota.as_ref()];
        let fits = |preset: &ResourceSlot| {
            quotas
                .into_iter()
                .flatten()
                .all(|quota| preset.fits_within(&quota.remaining))
                && agents.iter().any(|agent| preset.fits_within(agent))
        };
        let presets = self.known_presets(&types).await?.into_iter();
        let presets = presets
            .map(|preset| {
                let is_allocatable = fits(&preset.resource_slots);
                (preset, is_allocatable)
            })
            .collect();
        Ok(PresetCheck {
            keypair,
            group: group_quota.filter(|_| group.is_some()),
            scaling_group_remaining,
            presets,
        })
    }

    async fn domain_quota(&self, identity: &Identity, types: &SlotTypes) -> Result<Option<Quota>> {
        let reader = self.store.reader();
        let Some(domain) = &identity.domain else {
            return Ok(None);
        };
        let Some(row) = reader.domain(domain.as_str()).await? else {
            return Ok(None);
        };
        let limits = unless_unlimited(&row.total_resource_slots, types);
        let occupied = reader.occupied_by_domain(domain.as_str()).await?;
        Ok(Some(Quota::new(limits, occupied, types)))
    }

    async fn group_quota(
        &self,
        identity: &Identity,
        group: &str,
        types: &SlotTypes,
    ) -> Result<Option<Quota>> {
        let reader = self.store.reader();
        let Some(domain) = &identity.domain else {
            return Ok(None);
        };
        let member = (!identity.is_superadmin()).then_some(identity.user);
        let Some(row) = reader.group_for_session(group, domain.as_str(), member).await? else {
            return Ok(None);
        };
        let limits = unless_unlimited(&row.total_resource_slots, types);
        let occupied = reader.occupied_by_group(row.id).await?;
        Ok(Some(Quota::new(limits, occupied, types)))
    }

    /// What each agent that is alive has left.
    async fn agents_remaining(&self) -> Result<Vec<ResourceSlot>> {
        let reader = self.store.reader();
        let mut occupied = reader.occupied_by_all_agents().await?;
        let agents = reader.alive_agents().await?.into_iter();
        Ok(agents
            .map(|agent| {
                let occupied = occupied.remove(&agent.id).unwrap_or_default();
                agent.available_slots.minus(&occupied)
            })
            .collect())
    }

    /// Sets the counters that 19.06 keeps beside the kernels to what the kernels say, in one transaction. For superadmins.
    ///
    /// # Errors
    /// [`Error::Unauthorized`].
    pub async fn resource_recalculate_usage(&self, op: &Op) -> Result<()> {
        op.superadmin()?;
        let mut tx = self.store.begin().await?;
        let repaired = tx.recalculate_usage().await?;
        tx.commit().await?;
        for discrepancy in &repaired {
            tracing::warn!(
                request.id = op.request_id,
                ?discrepancy,
                "a counter was wrong and was set right"
            );
        }
        Ok(())
    }
}

/// The limits of groups and domains, which are none where nothing is said.
fn unless_unlimited(total: &ResourceSlot, types: &SlotTypes) -> ResourceSlot {
    ResourceSlot::from_policy(total, DefaultForUnspecified::Unlimited, types)
}
