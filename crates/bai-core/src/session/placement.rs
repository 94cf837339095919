//! Which agent takes a session: a plain decision over what each has left (`http-api.md` A.5).

use bai_model::{AgentId, ResourceSlot};

use crate::agents::Standing;

/// How gladly an agent is given a session: the best that has room takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Favour {
    Usual,
    /// It brings images of its own, and this is none of them: it may not be able to fetch it.
    Doubtful,
    /// Its last starts failed.
    Quarantined,
}

impl Favour {
    /// What an agent can expect; nothing when it cannot run the image, because it does not have it and nobody can fetch it.
    pub fn of(standing: &Standing, is_pullable: bool, is_known_to_have: bool) -> Option<Self> {
        let has_image = standing.has_image.unwrap_or(is_known_to_have);
        match (has_image, is_pullable) {
            (false, false) => None,
            _ if standing.is_quarantined => Some(Self::Quarantined),
            (false, true) if standing.brings_images => Some(Self::Doubtful),
            _ => Some(Self::Usual),
        }
    }
}

/// An agent that is alive, can be called, and can run the image.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub id: AgentId,
    pub addr: String,
    /// Capacity less what live kernels occupy.
    pub remaining: ResourceSlot,
    pub favour: Favour,
}

/// The agent with the most left among the most favoured that have room.
pub(super) fn choose_agent<'a>(
    candidates: &'a [Candidate],
    requested: &ResourceSlot,
) -> Option<&'a Candidate> {
    let has_room = |candidate: &&Candidate| requested.fits_within(&candidate.remaining);
    let favour = candidates
        .iter()
        .filter(has_room)
        .map(|candidate| candidate.favour)
        .min()?;
    let favoured = candidates.iter().filter(|candidate| candidate.favour == favour);
    emptiest(favoured.filter(has_room))
}

/// A later one wins only if it has at least as much of everything and more of something.
fn emptiest<'a>(candidates: impl Iterator<Item = &'a Candidate>) -> Option<&'a Candidate> {
    let mut best: Option<&Candidate> = None;
    for candidate in candidates {
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
            favour: Favour::Usual,
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

    #[test]
    fn quarantined_and_doubtful_agents_come_last() {
        let of = |favour, id: &str, amounts: &[(&str, i64)]| Candidate {
            favour,
            ..candidate(id, amounts)
        };
        let agents = [
            of(Favour::Quarantined, "failing", &[("cpu", 8)]),
            of(Favour::Doubtful, "own-images", &[("cpu", 6)]),
            of(Favour::Usual, "usual", &[("cpu", 2)]),
        ];
        for (cpu, expected) in [(1, "usual"), (4, "own-images"), (8, "failing")] {
            assert_eq!(chosen(&agents, &[("cpu", cpu)]).as_deref(), Some(expected));
        }
        assert_eq!(chosen(&agents, &[("cpu", 9)]), None);
    }

    #[test]
    fn an_image_that_nobody_can_fetch_runs_only_where_it_is() {
        let heard = |has_image, brings_images| Standing {
            has_image: Some(has_image),
            brings_images,
            is_quarantined: false,
        };
        assert_eq!(Favour::of(&heard(false, false), false, true), None);
        assert_eq!(Favour::of(&heard(true, false), false, false), Some(Favour::Usual));
        assert_eq!(Favour::of(&heard(false, false), true, false), Some(Favour::Usual));
        assert_eq!(
            Favour::of(&heard(false, true), true, false),
            Some(Favour::Doubtful)
        );
        // One that another manager hears.
        let unheard = Standing::default();
        assert_eq!(Favour::of(&unheard, false, false), None);
        assert_eq!(Favour::of(&unheard, false, true), Some(Favour::Usual));
    }
}
