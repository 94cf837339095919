//! The original's record of agents (`agent-protocol.md` 3.6): the hash `last_seen` in database 2, and in database 3 for
//! each image the set of agents that have it. An original manager beside us declares agents lost by the same record.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use redis::Cmd;

use super::RedisBroker;
use super::lane::Repeat;
use crate::Result;
use crate::broker::Heartbeats;

const LAST_SEEN: &str = "last_seen";

#[async_trait]
impl Heartbeats for RedisBroker {
    async fn beat(&self, beats: &[(String, DateTime<Utc>)]) -> Result<bool> {
        if beats.is_empty() {
            return Ok(true);
        }
        let mut seen = Cmd::new();
        seen.arg("HSET").arg(LAST_SEEN);
        for (member, at) in beats {
            seen.arg(member).arg(seconds(*at));
        }
        let added: i64 = self.seen.ask(Repeat::Yes, &seen).await?;
        Ok(added == 0)
    }

    async fn hold(&self, member: &str, things: &[String]) -> Result<()> {
        let _: i64 = self.things.run(Repeat::Yes, &self.hold, member, things).await?;
        Ok(())
    }

    async fn members_with(&self, thing: &str) -> Result<BTreeSet<String>> {
        let mut members = Cmd::new();
        members.arg("SMEMBERS").arg(thing);
        self.things.ask(Repeat::Yes, &members).await
    }

    async fn last_seen(&self) -> Result<BTreeMap<String, DateTime<Utc>>> {
        let mut all = Cmd::new();
        all.arg("HGETALL").arg(LAST_SEEN);
        let all: HashMap<String, String> = self.seen.ask(Repeat::Yes, &all).await?;
        let parsed = all.into_iter().filter_map(|(member, text)| match moment(&text) {
            Some(at) => Some((member, at)),
            None => {
                tracing::debug!(member, text, "an unreadable moment in last_seen");
                None
            }
        });
        Ok(parsed.collect())
    }

    async fn holders(&self, things: &[String]) -> Result<Vec<u64>> {
        if things.is_empty() {
            return Ok(Vec::new());
        }
        self.things.run(Repeat::Yes, &self.holders, "", things).await
    }

    async fn forget(&self, member: &str) -> Result<()> {
        let mut seen = Cmd::new();
        seen.arg("HDEL").arg(LAST_SEEN).arg(member);
        let _: i64 = self.seen.ask(Repeat::Yes, &seen).await?;
        let _: i64 = self.things.run(Repeat::Yes, &self.forget, member, &[]).await?;
        Ok(())
    }
}

/// Seconds of the epoch with microseconds, as the original writes them.
fn seconds(at: DateTime<Utc>) -> String {
    let micros = at.timestamp_micros();
    format!(
        "{}.{:06}",
        micros.div_euclid(1_000_000),
        micros.rem_euclid(1_000_000)
    )
}

fn moment(text: &str) -> Option<DateTime<Utc>> {
    let micros = text.parse::<f64>().ok()? * 1e6;
    #[expect(
        clippy::cast_possible_truncation,
        reason = "checked to be within the range of a date"
    )]
    let micros = (micros.abs() < 8e18).then(|| micros.round() as i64)?;
    DateTime::from_timestamp_micros(micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_and_written_as_the_original_does() {
        for text in ["1563206746.123456", "1795453047.891446", "0.000000"] {
            assert_eq!(seconds(moment(text).expect(text)), text);
        }
        assert_eq!(
            moment("1563206746.1").map(seconds).as_deref(),
            Some("1563206746.100000")
        );
        for text in ["", "soon", "nan", "inf", "1e300"] {
            assert_eq!(moment(text), None, "{text}");
        }
    }
}
