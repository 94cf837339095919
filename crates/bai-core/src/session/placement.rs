//! Which agent takes a session: a plain decision over what each has left (`http-api.md` A.5).

use std::cmp::Ordering;

use bai_model::{ResourceSlot, SlotValue};

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

/// What agents have left: a row for each, with a column for each name of a slot, so that names are compared once and not
/// for every agent and session. A slot that somebody lacks counts as none of it.
#[derive(Debug)]
pub(super) struct Room {
    agents: usize,
    names: Vec<String>,
    /// Row after row.
    left: Vec<SlotValue>,
}

/// Amounts in the columns of a [`Room`].
pub(super) type Amounts = Vec<SlotValue>;

impl Room {
    /// The room of agents with these capacities, of which that much is occupied.
    pub fn of(agents: &[(&ResourceSlot, Option<&ResourceSlot>)]) -> Self {
        let amounts = agents
            .iter()
            .flat_map(|(capacity, occupied)| std::iter::once(*capacity).chain(*occupied));
        let mut names: Vec<String> = Vec::new();
        for name in amounts.flat_map(ResourceSlot::names) {
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        let left = agents.iter().flat_map(|(capacity, occupied)| {
            names.iter().map(move |name| match occupied {
                Some(occupied) => capacity.amount(name).minus(occupied.amount(name)),
                None => capacity.amount(name),
            })
        });
        Self {
            agents: agents.len(),
            left: left.collect(),
            names,
        }
    }

    /// The amounts of a request; nothing if it is for what none of the agents has.
    pub fn amounts(&self, slots: &ResourceSlot) -> Option<Amounts> {
        let mut others = slots
            .iter()
            .filter(|(slot, _)| self.names.iter().all(|name| name != slot));
        let is_none_of_them = others.all(|(_, amount)| amount <= SlotValue::ZERO);
        is_none_of_them.then(|| self.names.iter().map(|name| slots.amount(name)).collect())
    }

    /// Occupies that much of what an agent has.
    pub fn take(&mut self, agent: usize, amounts: &Amounts) {
        let left = self.left.iter_mut().skip(agent * self.names.len());
        for (left, amount) in left.zip(amounts) {
            *left = left.minus(*amount);
        }
    }

    fn left(&self, agent: usize) -> &[SlotValue] {
        let columns = self.names.len();
        let row = self.left.get(agent * columns..(agent + 1) * columns);
        row.unwrap_or_default()
    }

    /// The agent with the most left among the most favoured that have room for a request; those without favour do not
    /// come into question. Of two with the same left it is the first, and a later one wins only if it has at least as much
    /// of everything and more of something. Favours are asked for only where they matter.
    pub fn choose(
        &self,
        requested: &Amounts,
        mut favour: impl FnMut(usize) -> Option<Favour>,
    ) -> Option<usize> {
        let has_room = |left: &[SlotValue]| requested.iter().zip(left).all(|(wanted, left)| wanted <= left);
        let mut best: Option<(usize, Favour)> = None;
        for agent in 0..self.agents {
            let left = self.left(agent);
            let may_be_better = match best {
                Some((best, Favour::Usual)) => exceeds(left, self.left(best)),
                _ => has_room(left),
            };
            if may_be_better
                && let Some(favour) = favour(agent)
                && best.is_none_or(|(best, least)| {
                    favour < least || favour == least && exceeds(left, self.left(best))
                })
            {
                best = Some((agent, favour));
            }
        }
        best.map(|(agent, _)| agent)
    }
}

/// Whether one has at least as much as the other of everything, and more of something (`data-model.md` 10.11).
fn exceeds(one: &[SlotValue], other: &[SlotValue]) -> bool {
    let mut is_more = false;
    for (one, other) in one.iter().zip(other) {
        match one.partial_cmp(other) {
            Some(Ordering::Greater) => is_more = true,
            Some(Ordering::Equal) => {}
            Some(Ordering::Less) | None => return false,
        }
    }
    is_more
}

#[cfg(test)]
mod tests {
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
        let requested = slots(requested);
        let capacities: Vec<_> = agents.iter().map(|(_, slots, _)| (slots, None)).collect();
        let room = Room::of(&capacities);
        let chosen = room.choose(&room.amounts(&requested)?, |agent| Some(agents[agent].2));
        chosen.map(|agent| agents[agent].0)
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
        // The original compares the names of one side alone and takes the first.
        let agents = [
            candidate("cpu-only", &[("cpu", 2)]),
            candidate("gpu", &[("cpu", 2), ("cuda.device", 1)]),
        ];
        assert_eq!(chosen(&agents, &[("cpu", 1)]), Some("gpu"));
    }

    #[test]
    fn what_is_occupied_or_taken_is_not_left() {
        let (large, small) = (slots(&[("cpu", 4), ("mem", 8)]), slots(&[("cpu", 3)]));
        let (occupied, request) = (slots(&[("mem", 7), ("tpu", 1)]), slots(&[("cpu", 2)]));
        let mut room = Room::of(&[(&large, Some(&occupied)), (&small, None)]);
        let wanted = room.amounts(&request).expect("columns");
        let usual = |_| Some(Favour::Usual);
        // More of one slot than it has is occupied: nothing fits there, whatever is asked for.
        assert_eq!(room.choose(&wanted, usual), Some(1));
        room.take(1, &wanted);
        assert_eq!(room.choose(&wanted, usual), None);
        let less = room.amounts(&slots(&[("cpu", 1), ("gpu", 0)])).expect("columns");
        assert_eq!(room.choose(&less, usual), Some(1));
        assert_eq!(room.choose(&less, |_| None), None);
        assert_eq!(room.amounts(&slots(&[("gpu", 1)])), None);
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
