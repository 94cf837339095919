//! Who was heard of when, and has what.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::{MemoryBroker, enter};
use crate::Result;
use crate::broker::Heartbeats;

/// One member.
#[derive(Debug, Default)]
pub(super) struct Member {
    last_seen: DateTime<Utc>,
    things: BTreeSet<String>,
}

#[async_trait]
impl Heartbeats for MemoryBroker {
    async fn beat(&self, member: &str, at: DateTime<Utc>, things: &[String]) -> Result<()> {
        let mut members = enter(&self.members);
        let member = members.entry(member.to_owned()).or_default();
        member.last_seen = at;
        member.things.extend(things.iter().cloned());
        Ok(())
    }

    async fn last_seen(&self) -> Result<BTreeMap<String, DateTime<Utc>>> {
        let members = enter(&self.members);
        Ok(members
            .iter()
            .map(|(name, member)| (name.clone(), member.last_seen))
            .collect())
    }

    async fn holders(&self, things: &[String]) -> Result<Vec<u64>> {
        let members = enter(&self.members);
        let count = |thing| {
            members
                .values()
                .filter(|member| member.things.contains(thing))
                .count()
        };
        Ok(things.iter().map(|thing| count(thing) as u64).collect())
    }

    async fn forget(&self, member: &str) -> Result<()> {
        enter(&self.members).remove(member);
        Ok(())
    }
}
