//! What one agent told and nobody has looked at yet: in its order, bounded, and worked at by one task at a time.

use std::collections::VecDeque;
use std::net::SocketAddr;

use bai_proto::event::AgentEvent;

/// Events that wait. An agent that tells more while one is being recorded has to be compared with the records.
const CAPACITY: usize = 256;

/// An event, and where it came from.
#[derive(Debug)]
pub(super) struct Letter {
    pub peer: SocketAddr,
    pub event: AgentEvent,
}

#[derive(Debug, Default)]
pub(super) struct Inbox {
    waiting: VecDeque<Letter>,
    is_worked_at: bool,
    /// Left out since this was last asked.
    missed: u64,
    /// Refused, ever.
    refused: u64,
}

impl Inbox {
    /// Puts a letter behind the others. True when somebody has to begin to work. Of heartbeats only the last one waits.
    pub fn put(&mut self, letter: Letter) -> bool {
        if matches!(letter.event, AgentEvent::InstanceHeartbeat(_)) {
            self.waiting
                .retain(|waiting| !matches!(waiting.event, AgentEvent::InstanceHeartbeat(_)));
        }
        if self.waiting.len() < CAPACITY {
            self.waiting.push_back(letter);
        } else {
            self.missed += 1;
        }
        !std::mem::replace(&mut self.is_worked_at, true)
    }

    /// The next letter, for whoever works at them; after the last one nobody does.
    pub fn take(&mut self) -> Option<Letter> {
        let next = self.waiting.pop_front();
        self.is_worked_at = next.is_some();
        next
    }

    /// Whoever worked at them broke off.
    pub fn leave(&mut self) {
        self.is_worked_at = false;
    }

    pub fn is_worked_at(&self) -> bool {
        self.is_worked_at
    }

    /// How many were left out since this was last asked.
    pub fn take_missed(&mut self) -> u64 {
        std::mem::take(&mut self.missed)
    }

    /// Counts a refusal; says whether it should be logged, so that nobody fills the log.
    pub fn refuse(&mut self) -> Option<u64> {
        self.refused += 1;
        self.refused.is_power_of_two().then_some(self.refused)
    }
}

#[cfg(test)]
mod tests {
    use bai_model::AgentId;
    use bai_model::{ResourceSlot, SlotTypes};
    use bai_proto::event::AgentInfo;

    use super::*;

    fn letter(event: AgentEvent) -> Letter {
        Letter {
            peer: "127.0.0.1:1".parse().expect("an address"),
            event,
        }
    }

    fn left(reason: usize) -> Letter {
        letter(AgentEvent::InstanceTerminated {
            agent: AgentId::from("i-one"),
            reason: reason.to_string(),
        })
    }

    fn heartbeat(version: &str) -> Letter {
        letter(AgentEvent::InstanceHeartbeat(AgentInfo {
            id: AgentId::from("i-one"),
            region: String::new(),
            addr: String::new(),
            version: version.to_owned(),
            available_slots: ResourceSlot::default(),
            slot_types: SlotTypes::intrinsic(),
            compute_plugins: serde_json::json!({}),
            images: Vec::new(),
            installed: Vec::new(),
        }))
    }

    fn take_all(inbox: &mut Inbox) -> Vec<String> {
        std::iter::from_fn(|| inbox.take())
            .map(|letter| match letter.event {
                AgentEvent::InstanceHeartbeat(info) => info.version,
                AgentEvent::InstanceTerminated { reason, .. } => reason,
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn one_works_and_finds_all_in_order_but_heartbeats_that_are_old() {
        let mut inbox = Inbox::default();
        assert!(inbox.put(heartbeat("a")));
        assert!(!inbox.put(left(1)));
        assert!(!inbox.put(heartbeat("b")));
        assert!(!inbox.put(left(2)));
        assert_eq!(take_all(&mut inbox), ["1", "b", "2"]);
        assert!(!inbox.is_worked_at());
        assert!(inbox.put(left(3)), "the next one begins");
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_told() {
        let mut inbox = Inbox::default();
        for number in 0..CAPACITY + 3 {
            inbox.put(left(number));
        }
        assert_eq!((inbox.take_missed(), inbox.take_missed()), (3, 0));
        assert_eq!(take_all(&mut inbox).len(), CAPACITY);
    }
}
