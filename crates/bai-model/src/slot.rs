//! Resource slots: maps from slot name to a decimal amount (`data-model.md` 10).
//!
//! Invariants: a name that is missing counts as 0 in every operation but `==` (DM-13, DM-14); nothing here panics or
//! fails on arithmetic: a result out of range becomes infinite, which no finite limit admits; texts are in plain
//! notation (DM-6), whatever notation was read.
//!
//! Not here: which limits apply to whom and what a refusal says (those are in `bai-core`).

use std::fmt;
use std::iter::Sum;

use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::policy::DefaultForUnspecified;

mod types;
mod value;

pub use types::{SlotTypes, SlotUnit, UnknownSlotUnit};
pub use value::{AmountError, SlotValue};

/// Amounts by slot name, in the order of names' first appearance. A name appears once.
///
/// Two are `==` if they have the same names, in any order, with numerically equal amounts (`data-model.md` 10.10).
#[derive(Clone, Debug, Default)]
pub struct ResourceSlot(pub Vec<(String, SlotValue)>);

/// Why amounts that somebody sent are refused. The texts are the original's, since GraphQL answers carry them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// The cluster has no slot of this name.
    #[error("('unit unknown for slot', {})", crate::python::quoted(.0))]
    UnknownSlot(String),
    /// The value given for `slot` is no amount of its unit.
    #[error("{reason}")]
    Unconvertible {
        /// The slot's name.
        slot: String,
        /// The value as it was sent, in JSON.
        value: String,
        /// What is wrong with the value.
        reason: AmountError,
    },
}

impl ResourceSlot {
    /// Reads JSON as a client sends it (`data-model.md` 10.4); null entries are dropped. With types, missing slots become
    /// 0; without, units are guessed from the names ([`SlotUnit::guess`]) and nothing is filled.
    ///
    /// # Errors
    /// The first entry that has an unknown name (with types) or is not an amount of its unit.
    pub fn from_user_input(
        object: &Map<String, Value>,
        types: Option<&SlotTypes>,
    ) -> Result<Self, SlotError> {
        let mut slots = Self::default();
        for (name, value) in object.iter().filter(|(_, value)| !value.is_null()) {
            let unit = match types {
                Some(types) => types
                    .unit(name)
                    .ok_or_else(|| SlotError::UnknownSlot(name.clone()))?,
                None => SlotUnit::guess(name),
            };
            let amount = SlotValue::from_json(value, unit).map_err(|reason| SlotError::Unconvertible {
                slot: name.clone(),
                value: value.to_string(),
                reason,
            })?;
            slots.set(name, amount);
        }
        for name in types.into_iter().flat_map(SlotTypes::names) {
            if slots.get(name).is_none() {
                slots.set(name, SlotValue::ZERO);
            }
        }
        Ok(slots)
    }

    /// The limits that `total` means under `default`, for every known type and no other (`data-model.md` 10.5): what
    /// `total` leaves out is infinite if `UNLIMITED`, else 0.
    pub fn from_policy(total: &ResourceSlot, default: DefaultForUnspecified, types: &SlotTypes) -> Self {
        let unspecified = match default {
            DefaultForUnspecified::Unlimited => SlotValue::Infinity,
            DefaultForUnspecified::Limited => SlotValue::ZERO,
        };
        let limit = |(name, unit)| {
            (
                name,
                total
                    .get(name)
                    .map_or(unspecified, |amount| amount.normalized(unit)),
            )
        };
        types.iter().map(limit).collect()
    }

    /// Reads stored JSON liberally (`data-model.md` 10.6): null is `{}`; exponents and numbers are taken (DM-6, DM-40), unit
    /// suffixes too for names of bytes (DM-7). The second value names the entries skipped as garbage (DM-8), or
    /// says that the whole was no map.
    pub fn from_stored(stored: &Value) -> (Self, Vec<String>) {
        let entries = match stored {
            Value::Null => return Default::default(),
            Value::Object(entries) => entries,
            _ => return (Self::default(), vec!["(not a map)".to_owned()]),
        };
        let mut slots = Self::default();
        let mut skipped = Vec::new();
        for (name, value) in entries.iter().filter(|(_, value)| !value.is_null()) {
            match SlotValue::from_stored(value, SlotUnit::guess(name)) {
                Some(amount) => slots.set(name, amount),
                None => skipped.push(name.clone()),
            }
        }
        (slots, skipped)
    }

    /// `{name: text}` in plain notation, names in order (`data-model.md` 10.7).
    pub fn to_json(&self) -> Value {
        self.iter()
            .map(|(name, amount)| (name.to_owned(), Value::String(amount.to_string())))
            .collect()
    }

    /// The text for a database column: names by length, then bytes, spaced as PostgreSQL shows `jsonb`, so that both
    /// databases hold the same text (`data-model.md` 22).
    pub fn to_stored_json(&self) -> String {
        let mut entries: Vec<_> = self.iter().collect();
        entries.sort_by_key(|(name, _)| (name.len(), *name));
        let entry = |(name, amount): &(&str, SlotValue)| format!("{}: \"{amount}\"", Value::from(*name));
        format!("{{{}}}", entries.iter().map(entry).collect::<Vec<_>>().join(", "))
    }

    /// For messages: `cpu=4 mem=1g`; infinite amounts are `Infinity` (`data-model.md` 10.8, DM-10).
    pub fn humanized(&self, types: &SlotTypes) -> String {
        let entry = |(name, amount): (&str, SlotValue)| {
            let unit = types.unit(name).unwrap_or_else(|| SlotUnit::guess(name));
            format!("{name}={}", amount.humanized(unit))
        };
        self.iter().map(entry).collect::<Vec<_>>().join(" ")
    }

    /// The amount of `name`, if it is listed.
    pub fn get(&self, name: &str) -> Option<SlotValue> {
        self.iter()
            .find(|(slot, _)| *slot == name)
            .map(|(_, amount)| amount)
    }

    /// The amount of `name`; 0 if it is not listed.
    pub fn amount(&self, name: &str) -> SlotValue {
        self.get(name).unwrap_or(SlotValue::ZERO)
    }

    /// Sets the amount of `name`, in its place if it is listed, else at the end.
    pub fn set(&mut self, name: &str, value: SlotValue) {
        match self.0.iter_mut().find(|(slot, _)| slot == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }

    /// Names with amounts, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, SlotValue)> {
        self.0.iter().map(|(name, amount)| (name.as_str(), *amount))
    }

    /// The names listed, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|(name, _)| name)
    }

    /// Whether no name is listed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether every amount is 0, as it is if none is listed.
    pub fn is_zero(&self) -> bool {
        self.iter().all(|(_, amount)| amount.is_zero())
    }

    /// Sum by name, over the names of both (`data-model.md` 10.9).
    pub fn plus(&self, other: &Self) -> Self {
        self.merged(other, SlotValue::plus)
    }

    /// So many times as much.
    pub fn times(&self, count: i64) -> Self {
        self.iter()
            .map(|(name, value)| (name, value.times(count)))
            .collect()
    }

    /// Difference by name, over the names of both: never an error (DM-13, DM-14), maybe negative. An infinite amount
    /// stays infinite whatever is taken from it.
    pub fn minus(&self, other: &Self) -> Self {
        self.merged(other, SlotValue::minus)
    }

    /// The same with 0 for each negative amount, as occupancy is written (DM-14, DM-17).
    pub fn clamped_at_zero(&self) -> Self {
        self.iter()
            .map(|(name, amount)| (name, amount.clamped_at_zero()))
            .collect()
    }

    /// The request that this one means for an image: each slot that is 0 or missing takes the image's minimum
    /// (`data-model.md` 10.12).
    pub fn filled_with_minimum(&self, minimum: &Self) -> Self {
        self.merged(minimum, |own, least| if own.is_zero() { least } else { own })
    }

    /// Whether no amount of `self` exceeds the one of `other` (`data-model.md` 10.10 with DM-13). NaN fits nowhere.
    pub fn fits_within(&self, other: &Self) -> bool {
        self.names_with(other)
            .all(|name| self.amount(name) <= other.amount(name))
    }

    /// Names where `self` is not at least `other`: for an image's minimum, any one refuses (DM-42).
    pub fn names_below(&self, other: &Self) -> Vec<String> {
        let reaches = |name: &str| self.amount(name) >= other.amount(name);
        self.names_with(other)
            .filter(|name| !reaches(name))
            .map(str::to_owned)
            .collect()
    }

    /// Keeps only known types.
    pub fn retain_known(&mut self, types: &SlotTypes) {
        self.0.retain(|(name, _)| types.unit(name).is_some());
    }

    /// The names of both, own ones first.
    fn names_with<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a str> {
        self.names()
            .chain(other.names().filter(|name| self.get(name).is_none()))
    }

    fn merged(&self, other: &Self, merge: impl Fn(SlotValue, SlotValue) -> SlotValue) -> Self {
        self.names_with(other)
            .map(|name| (name, merge(self.amount(name), other.amount(name))))
            .collect()
    }
}

impl PartialEq for ResourceSlot {
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len() && self.iter().all(|(name, amount)| other.get(name) == Some(amount))
    }
}

/// The last amount of a name counts.
impl<N: AsRef<str>> FromIterator<(N, SlotValue)> for ResourceSlot {
    fn from_iter<I: IntoIterator<Item = (N, SlotValue)>>(entries: I) -> Self {
        let mut slots = Self::default();
        for (name, amount) in entries {
            slots.set(name.as_ref(), amount);
        }
        slots
    }
}

impl<'a> Sum<&'a ResourceSlot> for ResourceSlot {
    fn sum<I: Iterator<Item = &'a ResourceSlot>>(all: I) -> Self {
        all.fold(Self::default(), |sum, slots| sum.plus(slots))
    }
}

impl Sum for ResourceSlot {
    fn sum<I: Iterator<Item = ResourceSlot>>(all: I) -> Self {
        all.fold(Self::default(), |sum, slots| sum.plus(&slots))
    }
}

/// As [`ResourceSlot::to_json`] in compact text.
impl fmt::Display for ResourceSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_json().fmt(f)
    }
}

/// As [`ResourceSlot::to_json`].
impl Serialize for ResourceSlot {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter().map(|(name, amount)| (name, amount.to_string())))
    }
}

/// As [`ResourceSlot::from_stored`], but garbage is an error.
impl<'de> Deserialize<'de> for ResourceSlot {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (slots, skipped) = Self::from_stored(&Value::deserialize(deserializer)?);
        match skipped.first() {
            None => Ok(slots),
            Some(name) => Err(D::Error::custom(format!("no amount of a resource slot: {name}"))),
        }
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
