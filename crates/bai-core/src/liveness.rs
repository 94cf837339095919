//! Which agents are there (`agent-protocol.md` 3.4 to 3.6): heartbeats in the broker, and finding agents that are lost.
//!
//! Invariants: an agent is lost when the one manager that has the timers has seen no heartbeat of it for the time-out, all
//! along. What was not seen, because the broker was away or forgot, counts for nobody's absence, and clocks of different
//! hosts are not compared. The broker is a copy: the database decides who is alive, and an agent that is there is
//! recorded again whatever forgot it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bai_model::{AgentId, AgentStatus};
use bai_proto::event::AgentInfo;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use tokio::time::Instant;

use crate::cluster::Duty;
use crate::{Manager, Result};

/// How often the lost are looked for (`agent-protocol.md` 3.5).
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// What is written at every look, and how long it is kept.
const LOOKED: &str = "bai.looked-for-agents";
const LOOK_KEPT: Duration = Duration::from_secs(60);
/// A look that comes later than this after the last one saw nothing of what was between.
const BLINK: Duration = Duration::from_secs(3);
/// How often agents in this process are heard of; those on other hosts say so themselves.
const BEAT_PERIOD: Duration = Duration::from_secs(3);
/// How often the broker is told who was heard meanwhile.
const TELL_PERIOD: Duration = Duration::from_millis(500);
/// Every so many times, it is looked up who is alive: once a second.
const ROUNDS_BETWEEN_LOOKS: u32 = 2;
/// And whether the images of agents have other names, because there are other registries.
const ROUNDS_BETWEEN_RENAMINGS: u32 = 40;
/// Agents whose images the broker is told each time.
const HELD_AT_ONCE: usize = 64;
/// Every so many looks, managers that are gone are forgotten.
const LOOKS_BETWEEN_CLEANINGS: u32 = 60;

/// Agents that are named when several are lost at once.
const NAMED_AT_ONCE: usize = 5;

/// How long each agent's last heartbeat has been its last, as far as it was watched.
#[derive(Debug, Default)]
struct Watched {
    agents: HashMap<AgentId, (Option<DateTime<Utc>>, Instant)>,
    looked: Option<Instant>,
}

impl Watched {
    /// The agents whose heartbeat has not changed for `timeout`. `agents` are all that should be there, with their last
    /// heartbeats.
    fn overdue(
        &mut self,
        now: Instant,
        agents: Vec<(AgentId, Option<DateTime<Utc>>)>,
        timeout: Duration,
    ) -> Vec<AgentId> {
        if self
            .looked
            .is_none_or(|looked| now.duration_since(looked) > BLINK)
        {
            self.agents.clear();
        }
        self.looked = Some(now);
        let before = std::mem::take(&mut self.agents);
        let mut overdue = Vec::new();
        for (agent, heartbeat) in agents {
            let since = match before.get(&agent) {
                Some((last, since)) if *last == heartbeat => *since,
                _ => now,
            };
            if now.duration_since(since) >= timeout {
                overdue.push(agent.clone());
            }
            self.agents.insert(agent, (heartbeat, since));
        }
        overdue
    }
}

/// The names of the first few, for one line of the log, however many there are.
fn first_of(agents: &[AgentId]) -> String {
    let named: Vec<&str> = agents.iter().take(NAMED_AT_ONCE).map(AgentId::as_str).collect();
    match agents.len() - named.len() {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

impl Manager {
    /// Does the site's timers, while they are this manager's.
    pub(crate) async fn do_timers(self: Arc<Self>) {
        let mut watched = Watched::default();
        let mut looks = 0_u32;
        loop {
            tokio::select! {
                () = self.stopping.cancelled() => break,
                () = tokio::time::sleep(LOOK_PERIOD) => {}
            }
            let done: Result<()> = async {
                if !self.claim(&Duty::Timers).await? {
                    watched = Watched::default();
                    return Ok(());
                }
                looks = looks.wrapping_add(1);
                if looks.is_multiple_of(LOOKS_BETWEEN_CLEANINGS) {
                    self.forget_managers().await?;
                }
                self.look_for_lost_agents(&mut watched).await
            }
            .await;
            if let Err(error) = done {
                tracing::warn!(%error, "lost agents cannot be looked for at the moment");
                watched = Watched::default();
            }
        }
        self.hand_over(vec![Duty::Timers]).await;
    }

    async fn look_for_lost_agents(&self, watched: &mut Watched) -> Result<()> {
        // A broker that is full can be read and takes no heartbeats: agents are not silent for that.
        self.broker.set(LOOKED, Bytes::new(), LOOK_KEPT).await?;
        let heartbeats = self.broker.last_seen().await?;
        let alive = self.store.reader().addresses_of_agents().await?;
        let agents = alive
            .into_iter()
            .map(|(agent, _)| {
                let heartbeat = heartbeats.get(&agent.0).copied();
                (agent, heartbeat)
            })
            .collect();
        let overdue = watched.overdue(Instant::now(), agents, self.heartbeat_timeout);
        let mut lost = Vec::new();
        let done: Result<()> = async {
            for agent in overdue {
                if self.lose_agent(&agent).await? {
                    lost.push(agent);
                }
            }
            Ok(())
        }
        .await;
        // Also those before one that could not be recorded.
        if !lost.is_empty() {
            let timeout = self.heartbeat_timeout;
            tracing::warn!(
                agents = lost.len(),
                agent.ids = first_of(&lost),
                ?timeout,
                "agents are lost: nothing was heard of them"
            );
        }
        done
    }

    /// Records that an agent is lost, and says whether it was there. Its sessions stay as they are and come back with it.
    async fn lose_agent(&self, agent: &AgentId) -> Result<bool> {
        let mut tx = self.store.begin().await?;
        self.fence(&mut tx, &Duty::Timers).await?;
        let is_alive = tx
            .lock_agent(agent)
            .await?
            .is_some_and(|row| row.status == AgentStatus::Alive);
        if is_alive {
            tx.set_agent_status(agent, AgentStatus::Lost, Some(self.clock.now()))
                .await?;
        }
        tx.commit().await?;
        if is_alive {
            self.agents.note_lost(agent);
        }
        self.forget_heartbeats(agent).await;
        Ok(is_alive)
    }

    /// Takes an agent that is gone out of the broker.
    pub(crate) async fn forget_heartbeats(&self, agent: &AgentId) {
        if let Err(error) = self.broker.forget(&agent.0).await {
            tracing::warn!(agent.id = %agent, %error, "the heartbeats of an agent that is gone could not be removed");
        }
    }

    /// Tells the broker who was heard and who has which images, and looks who is alive, until the manager stops.
    pub(crate) async fn keep_up_with_agents(self: Arc<Self>) {
        let mut registries = Vec::new();
        let mut rounds = 0_u32;
        loop {
            tokio::select! {
                () = self.stopping.cancelled() => return,
                () = tokio::time::sleep(TELL_PERIOD) => {}
            }
            self.tell_who_was_heard().await;
            rounds = rounds.wrapping_add(1);
            if rounds.is_multiple_of(ROUNDS_BETWEEN_LOOKS) {
                match self.look_up_agents().await {
                    Ok(()) => self.tell_unconnected(),
                    Err(error) => {
                        tracing::warn!(%error, "which agents are alive cannot be looked up at the moment");
                    }
                }
            }
            if rounds.is_multiple_of(ROUNDS_BETWEEN_RENAMINGS) {
                self.name_images_anew(&mut registries).await;
            }
        }
    }

    /// Logs whom this manager cannot call although they are alive.
    fn tell_unconnected(&self) {
        if let Some((agents, reason)) = self.agents.take_unconnected() {
            let named = first_of(&agents);
            tracing::warn!(
                agents = agents.len(),
                agent.ids = named,
                reason,
                "there is no connection to agents that are heard"
            );
        }
    }

    /// Tells the broker what was heard since the last time, in one call. Nothing depends on one heartbeat.
    async fn tell_who_was_heard(&self) {
        let heard = self.agents.take_heard();
        match self.broker.beat(&heard).await {
            Ok(true) => {}
            // Nobody joins here: the broker forgot somebody, and so perhaps everything.
            Ok(false) => self.agents.hold_again(None),
            Err(error) => {
                tracing::warn!(%error, agents = heard.len(), "heartbeats could not be noted");
                return;
            }
        }
        for (agent, images) in self.agents.take_unheld(HELD_AT_ONCE) {
            if let Err(error) = self.broker.hold(&agent.0, &images).await {
                tracing::warn!(agent.id = %agent, %error, "an agent's images could not be noted; it will be tried again");
                self.agents.hold_again(Some(&agent));
                return;
            }
        }
    }

    /// Has agents recorded again when the names of registries have changed, of which the names of their images are made.
    async fn name_images_anew(&self, registries: &mut Vec<String>) {
        let Ok(now) = self.catalogue.known_registries().await else {
            return;
        };
        if !registries.is_empty() && *registries != now {
            self.agents.record_anew();
        }
        *registries = now;
    }

    /// Speaks for the agents in this process, and records again what was forgotten of any agent that is heard here: its
    /// row, its images, its slot types. Those on other hosts are recorded again at their next heartbeat.
    pub(crate) async fn speak_for_agents(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.stopping.cancelled() => return,
                () = self.forgotten.notified() => self.agents.record_anew(),
                () = tokio::time::sleep(BEAT_PERIOD) => {}
            }
            for (info, is_recorded) in self.agents.local_infos() {
                if is_recorded {
                    self.agents.note_heard(&info.id, self.clock.now());
                } else if let Err(error) = self.record_heartbeat(AgentInfo::clone(&info)).await {
                    tracing::warn!(%error, "an agent could not be recorded; it will be tried again");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(5);

    fn moment(seconds: i64) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp(seconds, 0)
    }

    /// What is overdue at each second, of one agent with these heartbeats.
    fn overdue(heartbeats: &[(u64, Option<DateTime<Utc>>)]) -> Vec<u64> {
        let start = Instant::now();
        let mut watched = Watched::default();
        heartbeats
            .iter()
            .filter(|(second, heartbeat)| {
                let now = start + Duration::from_secs(*second);
                let agents = vec![(AgentId("i-one".to_owned()), *heartbeat)];
                !watched.overdue(now, agents, TIMEOUT).is_empty()
            })
            .map(|(second, _)| *second)
            .collect()
    }

    #[test]
    fn one_line_names_a_few_of_a_thousand() {
        let agents: Vec<AgentId> = (1..=1000).map(|number| AgentId(format!("i-{number}"))).collect();
        assert_eq!(first_of(&agents[..1]), "i-1");
        assert_eq!(first_of(&agents[..5]), "i-1, i-2, i-3, i-4, i-5");
        assert_eq!(first_of(&agents), "i-1, i-2, i-3, i-4, i-5 and 995 more");
    }

    #[test]
    fn silence_is_counted_from_the_first_look() {
        let old = moment(0);
        let looks: Vec<_> = (0..=6).map(|second| (second, old)).collect();
        assert_eq!(overdue(&looks), [5, 6]);
    }

    #[test]
    fn an_agent_that_the_broker_does_not_know_is_lost_in_time() {
        let looks: Vec<_> = (0..=5).map(|second| (second, None)).collect();
        assert_eq!(overdue(&looks), [5]);
    }

    #[test]
    fn heartbeats_and_a_broker_that_forgets_keep_an_agent() {
        let looks = [
            (0, moment(0)),
            (2, moment(0)),
            (4, moment(3)),
            (6, None),
            (8, moment(7)),
            (10, moment(9)),
        ];
        assert_eq!(overdue(&looks), [0; 0]);
    }

    #[test]
    fn what_was_not_watched_is_nobodys_absence() {
        let looks = [(0, moment(0)), (2, moment(0)), (100, moment(0)), (102, moment(0))];
        assert_eq!(overdue(&looks), [0; 0]);
    }
}
