//! Agents whose starts keep failing: when to avoid one, and for how long. A plain decision over what happened.

use std::time::Duration;

use bai_proto::agent::AgentError;
use tokio::time::Instant;

/// Starts in a row that fail before an agent is avoided.
const THRESHOLD: u32 = 3;
/// For how long: the first time, and at most.
const FIRST: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_secs(600);

/// How the last starts of kernels on an agent went.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Starts {
    /// In a row.
    failed: u32,
    avoided_until: Option<Instant>,
}

impl Starts {
    /// Notes how a start went. Gives for how long the agent is avoided from now on, if it is: twice as long after each
    /// further failure. A success ends it.
    pub fn note(&mut self, has_succeeded: bool, now: Instant) -> Option<Duration> {
        if has_succeeded {
            *self = Self::default();
            return None;
        }
        self.failed = self.failed.saturating_add(1);
        let beyond = self.failed.checked_sub(THRESHOLD)?;
        let time = FIRST.saturating_mul(1 << beyond.min(16)).min(LONGEST);
        self.avoided_until = Some(now + time);
        Some(time)
    }

    pub fn are_quarantined(&self, now: Instant) -> bool {
        self.avoided_until.is_some_and(|until| now < until)
    }
}

/// Whether a failed start speaks against the agent. One without room was only asked too late.
pub(crate) fn is_agents_fault(error: &AgentError) -> bool {
    !matches!(error, AgentError::Exception { kind, .. } if kind == "InsufficientResource")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_quarantine_for_longer_each_time_and_a_success_releases() {
        let now = Instant::now();
        let seconds = Duration::from_secs;
        let mut starts = Starts::default();
        assert_eq!(starts.note(false, now), None);
        assert_eq!(starts.note(false, now), None);
        assert_eq!(starts.note(true, now), None);
        for expected in [
            None,
            None,
            Some(30),
            Some(60),
            Some(120),
            Some(240),
            Some(480),
            Some(600),
            Some(600),
        ] {
            assert_eq!(starts.note(false, now), expected.map(seconds));
        }
        assert!(starts.are_quarantined(now + seconds(599)));
        assert!(!starts.are_quarantined(now + seconds(600)), "time releases");
        starts.note(true, now);
        assert!(!starts.are_quarantined(now));
    }

    #[test]
    fn an_agent_without_room_is_not_at_fault() {
        assert!(!is_agents_fault(&AgentError::exception(
            "InsufficientResource",
            "cpu"
        )));
        assert!(is_agents_fault(&AgentError::Timeout));
        assert!(is_agents_fault(&AgentError::exception("DockerError", "500")));
    }
}
