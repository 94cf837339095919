//! The broker: whether it answers as ours, and whether the agents that are alive are heard of in it (`http-api.md` 6.2).

use bai_backplane::broker::Broker;
use bai_store::agent::AgentRow;
use chrono::{DateTime, TimeDelta, Utc};

use super::Finding;
use super::Severity::{Note, Warning};

/// Agents say that they live every three seconds.
const SILENCE: TimeDelta = TimeDelta::seconds(30);

/// Looks at the heartbeats. `alive` are the agents that the database has as alive.
///
/// # Errors
/// When the broker cannot be asked, or keeps something else where heartbeats are.
pub async fn examine_broker(
    broker: &dyn Broker,
    alive: &[AgentRow],
    now: DateTime<Utc>,
) -> bai_backplane::Result<Vec<Finding>> {
    let seen = broker.last_seen().await?;
    let mut findings = Vec::new();
    // The agent within a manager's process needs no heartbeats.
    for agent in alive.iter().filter(|agent| agent.addr.starts_with("tcp://")) {
        let meaning = match seen.get(&agent.id.0) {
            Some(at) if now - *at <= SILENCE => continue,
            Some(at) => format!(
                "it is ALIVE in the database and was last heard of {} s ago",
                (now - *at).num_seconds()
            ),
            None => "it is ALIVE in the database and was never heard of".to_owned(),
        };
        let remedy = "when it is gone, a running manager notices; when it runs, do it and the managers use the same Redis?";
        findings.push(Finding::new(
            Warning,
            "heartbeats",
            agent.id.0.as_str(),
            meaning,
            remedy,
        ));
    }
    for id in seen.keys() {
        if !alive.iter().any(|agent| agent.id.0 == *id) {
            let meaning = "heartbeats are kept of it, and the database has no such agent alive";
            let remedy = "a running manager takes it in again or forgets it";
            findings.push(Finding::new(Note, "heartbeats", id.as_str(), meaning, remedy));
        }
    }
    Ok(findings)
}
