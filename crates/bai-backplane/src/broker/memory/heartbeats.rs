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
    last_seen: Option<DateTime<Utc>>,
    things: BTreeSet<String>,
}

#[async_trait]
impl Heartbeats for MemoryBroker {
    async fn beat(&self, beats: &[(String, DateTime<Utc>)]) -> Result<bool> {
        let mut members = enter(&self.members);
        let mut were_known = true;
        for (member, at) in beats {
            let member = members.entry(member.clone()).or_default();
            were_known &= member.last_seen.replace(*at).is_some();
        }
        Ok(were_known)
    }

    async fn last_seen(&self) -> Result<BTreeMap<String, DateTime<Utc>>> {
        let members = enter(&self.members);
        Ok(members
            .iter()
            .filter_map(|(name, member)| Some((name.clone(), member.last_seen?)))
            .collect())
    }

    async fn hold(&self, member: &str, things: &[String]) -> Result<()> {
        let mut members = enter(&self.members);
        members.entry(member.to_owned()).or_default().things = things.iter().cloned().collect();
        Ok(())
    }

    async fn members_with(&self, thing: &str) -> Result<BTreeSet<String>> {
        let members = enter(&self.members);
        let with = members.iter().filter(|(_, member)| member.things.contains(thing));
        Ok(with.map(|(name, _)| name.clone()).collect())
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
