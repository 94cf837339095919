//! Slot types and their units (`data-model.md` 10.1).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// The unit of a slot type: pieces (up to three decimals) or bytes (integers).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SlotUnit {
    /// Pieces, in thousandths.
    Count,
    /// Whole bytes.
    Bytes,
}

impl SlotUnit {
    /// The name in the configuration store and in heartbeats.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Bytes => "bytes",
        }
    }

    /// The unit where no type table is at hand: bytes if the name contains `mem` (`data-model.md` 10.1).
    pub fn guess(name: &str) -> Self {
        if name.contains("mem") {
            Self::Bytes
        } else {
            Self::Count
        }
    }
}

impl fmt::Display for SlotUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that names no unit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown unit of a resource slot: {0}")]
pub struct UnknownSlotUnit(pub String);

impl FromStr for SlotUnit {
    type Err = UnknownSlotUnit;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "count" => Ok(Self::Count),
            "bytes" => Ok(Self::Bytes),
            other => Err(UnknownSlotUnit(other.to_owned())),
        }
    }
}

/// The slot types that the cluster knows, with their units. Always has `cpu` and `mem`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotTypes(pub BTreeMap<String, SlotUnit>);

impl SlotTypes {
    /// The types that every cluster has, in the order in which they are listed before all others.
    const INTRINSIC: [(&'static str, SlotUnit); 2] = [("cpu", SlotUnit::Count), ("mem", SlotUnit::Bytes)];

    /// `cpu` in pieces and `mem` in bytes.
    pub fn intrinsic() -> Self {
        Self(
            Self::INTRINSIC
                .into_iter()
                .map(|(name, unit)| (name.to_owned(), unit))
                .collect(),
        )
    }

    /// Adds a type. What is known stays: an agent cannot change the unit of a slot that others already count in.
    pub fn insert(&mut self, name: &str, unit: SlotUnit) {
        self.0.entry(name.to_owned()).or_insert(unit);
    }

    /// The types of both (DM-41); the own unit counts where they differ.
    pub fn union(&self, other: &Self) -> Self {
        let mut all = self.clone();
        for (name, unit) in other.iter() {
            all.insert(name, unit);
        }
        all
    }

    /// The unit of `name`, if it is known.
    pub fn unit(&self, name: &str) -> Option<SlotUnit> {
        self.0.get(name).copied()
    }

    /// The types: `cpu`, `mem`, then the others by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, SlotUnit)> {
        let is_intrinsic = |name: &str| Self::INTRINSIC.iter().any(|(own, _)| *own == name);
        let first = Self::INTRINSIC
            .into_iter()
            .filter_map(|(name, _)| Some((name, self.unit(name)?)));
        let others = self.0.iter().map(|(name, unit)| (name.as_str(), *unit));
        first.chain(others.filter(move |(name, _)| !is_intrinsic(name)))
    }

    /// The names, ordered as [`SlotTypes::iter`].
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|(name, _)| name)
    }
}

impl Default for SlotTypes {
    fn default() -> Self {
        Self::intrinsic()
    }
}
