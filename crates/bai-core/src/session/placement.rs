//! Which agent takes a session: a plain decision over what each has left (`http-api.md` A.5).

use bai_model::{AgentId, ResourceSlot};

/// An agent that is alive and connected.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub id: AgentId,
    pub addr: String,
    /// Capacity less what live kernels occupy.
    pub remaining: ResourceSlot,
}

/// The agent with the most left among those that have room: a later one wins only if it has at least as much of
/// everything and more of something.
pub(super) fn choose_agent<'a>(
    candidates: &'a [Candidate],
    requested: &ResourceSlot,
) -> Option<&'a Candidate> {
    let mut best: Option<&Candidate> = None;
    for candidate in candidates
        .iter()
        .filter(|candidate| requested.fits_within(&candidate.remaining))
    {
        let is_better = best.is_none_or(|best| {
            best.remaining.fits_within(&candidate.remaining)
                && !candidate.remaining.fits_within(&best.remaining)
        });
        if is_better {
            best = Some(candidate);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use bai_model::SlotValue;

    use super::*;

    fn slots(amounts: &[(&str, i64)]) -> ResourceSlot {
        let mut slots = ResourceSlot::default();
        for (name, amount) in amounts {
            slots.set(name, SlotValue::Finite((*amount).into()));
        }
        slots
    }

    fn candidate(id: &str, amounts: &[(&str, i64)]) -> Candidate {
        Candidate {
            id: id.into(),
            addr: String::new(),
            remaining: slots(amounts),
        }
    }

    fn chosen(candidates: &[Candidate], requested: &[(&str, i64)]) -> Option<String> {
        choose_agent(candidates, &slots(requested)).map(|candidate| candidate.id.to_string())
    }

    #[test]
    fn the_emptiest_agent_wins_and_ties_go_to_the_first() {
        let agents = [
            candidate("a", &[("cpu", 2), ("mem", 4)]),
            candidate("b", &[("cpu", 3), ("mem", 4)]),
        ];
        assert_eq!(chosen(&agents, &[("cpu", 1)]).as_deref(), Some("b"));
        let agents = [
            candidate("a", &[("cpu", 2), ("mem", 4)]),
            candidate("b", &[("cpu", 1), ("mem", 9)]),
        ];
        assert_eq!(chosen(&agents, &[("cpu", 1)]).as_deref(), Some("a"));
    }

    #[test]
    fn a_slot_that_an_agent_lacks_counts_as_none_of_it() {
        let agents = [
            candidate("cpu-only", &[("cpu", 2)]),
            candidate("gpu", &[("cpu", 1), ("cuda.device", 1)]),
        ];
        assert_eq!(
            chosen(&agents, &[("cpu", 1), ("cuda.device", 0)]).as_deref(),
            Some("cpu-only")
        );
        assert_eq!(
            chosen(&agents, &[("cpu", 1), ("cuda.device", 1)]).as_deref(),
            Some("gpu")
        );
        assert_eq!(chosen(&agents, &[("cpu", 3)]), None);
    }
}
