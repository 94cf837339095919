//! Which agent takes a session: a plain decision over what each has left (`http-api.md` A.5).

use bai_model::ResourceSlot;

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
pub(super) struct Candidate<'a> {
    /// Which one it is, to the caller.
    pub index: usize,
    /// Capacity less what live kernels occupy.
    pub remaining: &'a ResourceSlot,
    pub favour: Favour,
}

/// The agent with the most left among the most favoured that have room. Of two with the same left it is the first, and a
/// later one wins only if it has at least as much of everything and more of something.
pub(super) fn choose_agent<'a>(
    candidates: impl IntoIterator<Item = Candidate<'a>>,
    requested: &ResourceSlot,
) -> Option<Candidate<'a>> {
    let mut best: Option<Candidate<'a>> = None;
    for candidate in candidates {
        let is_better = match &best {
            Some(best) if candidate.favour > best.favour => false,
            // It has room then, because the best one has.
            Some(best) if candidate.favour == best.favour => candidate.remaining.exceeds(best.remaining),
            _ => requested.fits_within(candidate.remaining),
        };
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

    type Agent = (&'static str, ResourceSlot, Favour);

    fn candidate(id: &'static str, amounts: &[(&str, i64)]) -> Agent {
        (id, slots(amounts), Favour::Usual)
    }

    fn chosen(agents: &[Agent], requested: &[(&str, i64)]) -> Option<&'static str> {
        let candidates = agents
            .iter()
            .enumerate()
            .map(|(index, (_, remaining, favour))| Candidate {
                index,
                remaining,
                favour: *favour,
            });
        choose_agent(candidates, &slots(requested)).map(|candidate| agents[candidate.index].0)
    }

    #[test]
    fn the_emptiest_agent_wins_and_ties_go_to_the_first() {
        let agents = [
            candidate("a", &[("cpu", 2), ("mem", 4)]),
            candidate("b", &[("cpu", 3), ("mem", 4)]),
        ];
        assert_eq!(chosen(&agents, &[("cpu", 1)]), Some("b"));
        let agents = [
            candidate("a", &[("cpu", 2), ("mem", 4)]),
            candidate("b", &[("cpu", 1), ("mem", 9)]),
        ];
        assert_eq!(chosen(&agents, &[("cpu", 1)]), Some("a"));
    }

    #[test]
    fn a_slot_that_an_agent_lacks_counts_as_none_of_it() {
        let agents = [
            candidate("cpu-only", &[("cpu", 2)]),
            candidate("gpu", &[("cpu", 1), ("cuda.device", 1)]),
        ];
        assert_eq!(
            chosen(&agents, &[("cpu", 1), ("cuda.device", 0)]),
            Some("cpu-only")
        );
        assert_eq!(chosen(&agents, &[("cpu", 1), ("cuda.device", 1)]), Some("gpu"));
        assert_eq!(chosen(&agents, &[("cpu", 3)]), None);
    }

    #[test]
    fn quarantined_and_doubtful_agents_come_last() {
        let of = |favour, id, amounts: &[(&str, i64)]| (id, slots(amounts), favour);
        let agents = [
            of(Favour::Quarantined, "failing", &[("cpu", 8)]),
            of(Favour::Doubtful, "own-images", &[("cpu", 6)]),
            of(Favour::Usual, "usual", &[("cpu", 2)]),
        ];
        for (cpu, expected) in [(1, "usual"), (4, "own-images"), (8, "failing")] {
            assert_eq!(chosen(&agents, &[("cpu", cpu)]), Some(expected));
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
