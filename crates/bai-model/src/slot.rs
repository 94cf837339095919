//! Resource slots: maps from slot name to a decimal amount (`data-model.md` 10).

use std::collections::BTreeMap;

use rust_decimal::Decimal;

use crate::policy::DefaultForUnspecified;

/// The unit of a slot type: pieces (up to three decimals) or bytes (integers).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SlotUnit {
    Count,
    Bytes,
}

/// The slot types that the cluster knows, with their units. Always has `cpu` and `mem`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotTypes(pub BTreeMap<String, SlotUnit>);

/// One amount. Infinite amounts mean "no limit".
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SlotValue {
    Finite(Decimal),
    Infinity,
    NegativeInfinity,
    NotANumber,
}

/// Amounts by slot name, in the order of names' first appearance.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResourceSlot(pub Vec<(String, SlotValue)>);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    #[error("unknown slot: {0}")]
    UnknownSlot(String),
    #[error("cannot convert {value} to an amount of {slot}")]
    Unconvertible { slot: String, value: String },
}

/// Interim: the real arithmetic replaces this file.
impl ResourceSlot {
    /// `data-model.md` 10.4: JSON as a client sends it. With types, unknown names are errors and missing ones become 0;
    /// without, units are guessed (a name containing `mem` is bytes) and nothing is filled.
    pub fn from_user_input(_: &serde_json::Map<String, serde_json::Value>, _: Option<&SlotTypes>) -> Result<Self, SlotError> {
        Ok(Self::default())
    }
    /// `data-model.md` 10.5: the limits that `total` means under `default`, for every known type.
    pub fn from_policy(_total: &ResourceSlot, _default: DefaultForUnspecified, _types: &SlotTypes) -> Self {
        Self::default()
    }
    /// `data-model.md` 10.6: liberal reading of stored JSON; garbage amounts are skipped and named in the second value.
    pub fn from_stored(_: &serde_json::Value) -> (Self, Vec<String>) {
        Default::default()
    }
    /// `data-model.md` 10.7: `{name: text}` in plain notation.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
    /// `data-model.md` 10.8: `cpu=4 mem=1g`.
    pub fn humanized(&self, _types: &SlotTypes) -> String {
        String::new()
    }
    pub fn get(&self, name: &str) -> Option<SlotValue> {
        self.0.iter().find(|(slot, _)| slot == name).map(|(_, value)| *value)
    }
    pub fn set(&mut self, name: &str, value: SlotValue) {
        match self.0.iter_mut().find(|(slot, _)| slot == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }
    /// Union of names, a missing amount counts as 0.
    pub fn plus(&self, _other: &Self) -> Self {
        Self::default()
    }
    /// Names of both; a missing amount counts as 0 (DM-13, DM-14: never an error). Infinity - x = Infinity.
    pub fn minus(&self, _other: &Self) -> Self {
        Self::default()
    }
    /// Whether no amount of `self` exceeds the one of `other`; missing counts as 0 on both sides (DM-13).
    pub fn fits_within(&self, _other: &Self) -> bool {
        true
    }
    /// Names where `self` is below `other` (image minimum, DM-42: any one refuses).
    pub fn names_below(&self, _other: &Self) -> Vec<String> {
        Vec::new()
    }
    /// Keeps only known types.
    pub fn retain_known(&mut self, _types: &SlotTypes) {}
}
