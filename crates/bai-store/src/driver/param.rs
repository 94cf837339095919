//! Values on their way into a statement.
//!
//! A [`Param`] knows its kind even when it is NULL, because PostgreSQL wants to know. On SQLite the difficult kinds are
//! text (`data-model.md` 22).

use bai_model::policy::DefaultForUnspecified;
use bai_model::{
    AccessKey, AgentId, AgentStatus, GroupId, KernelId, KernelStatus, ResourceSlot, UserId, UserRole,
    VFolderId, VFolderPermission,
};
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::Value;
use uuid::Uuid;

/// The enum types of the schema (`data-model.md` 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EnumType {
    AgentStatus,
    KernelStatus,
    UserRole,
    VFolderPermission,
    DefaultForUnspecified,
}

impl EnumType {
    /// Whether the type has a member of this name.
    pub(crate) fn has(self, name: &str) -> bool {
        match self {
            Self::AgentStatus => name.parse::<AgentStatus>().is_ok(),
            Self::KernelStatus => name.parse::<KernelStatus>().is_ok(),
            Self::UserRole => name.parse::<UserRole>().is_ok(),
            Self::VFolderPermission => name.parse::<VFolderPermission>().is_ok(),
            Self::DefaultForUnspecified => name.parse::<DefaultForUnspecified>().is_ok(),
        }
    }
}

/// One parameter of a statement.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Param {
    Text(Option<String>),
    Integer(Option<i64>),
    Boolean(Option<bool>),
    Uuid(Option<Uuid>),
    Time(Option<DateTime<Utc>>),
    Json(Option<Value>),
    Texts(Option<Vec<String>>),
    /// The type of an enum matters on PostgreSQL only.
    Enum(EnumType, Option<String>),
}

/// A type whose values can be parameters, NULL included.
pub(crate) trait Bindable: Sized {
    fn param(value: Option<Self>) -> Param;
}

impl<T: Bindable> From<T> for Param {
    fn from(value: T) -> Self {
        T::param(Some(value))
    }
}

impl<T: Bindable> From<Option<T>> for Param {
    fn from(value: Option<T>) -> Self {
        T::param(value)
    }
}

macro_rules! bindable {
    ($($type:ty => |$value:ident| $variant:ident($inner:expr);)*) => {
        $(impl Bindable for $type {
            fn param(value: Option<Self>) -> Param {
                Param::$variant(value.map(|$value| $inner))
            }
        })*
    };
}

bindable! {
    &str => |text| Text(text.to_owned());
    &String => |text| Text(text.clone());
    &AccessKey => |key| Text(key.as_str().to_owned());
    &AgentId => |id| Text(id.as_str().to_owned());
    i64 => |number| Integer(number);
    i32 => |number| Integer(i64::from(number));
    u16 => |number| Integer(i64::from(number));
    bool => |truth| Boolean(truth);
    Uuid => |id| Uuid(id);
    KernelId => |id| Uuid(id.0);
    UserId => |id| Uuid(id.0);
    GroupId => |id| Uuid(id.0);
    VFolderId => |id| Uuid(id.0);
    DateTime<Utc> => |at| Time(at);
    &Value => |value| Json(value.clone());
    &ResourceSlot => |slots| Json(slots.to_json());
    &[String] => |texts| Texts(texts.to_vec());
    &Vec<String> => |texts| Texts(texts.clone());
}

macro_rules! bindable_enum {
    ($($type:ident),*) => {
        $(impl Bindable for $type {
            fn param(value: Option<Self>) -> Param {
                Param::Enum(EnumType::$type, value.map(|value| value.as_str().to_owned()))
            }
        })*
    };
}

bindable_enum!(
    AgentStatus,
    KernelStatus,
    UserRole,
    VFolderPermission,
    DefaultForUnspecified
);

/// The parameters of a statement, in the order of their numbers.
macro_rules! params {
    ($($value:expr),* $(,)?) => { vec![$($crate::driver::Param::from($value)),*] };
}
pub(crate) use params;

/// JSON text with the keys of each object in the order of PostgreSQL's `jsonb` (by length, then bytes), so that both
/// databases give the same answers.
pub(crate) fn json_text(value: &Value) -> String {
    sorted(value).to_string()
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(sorted).collect(),
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(key, _)| (key.len(), key.as_bytes()));
            Value::Object(
                members
                    .into_iter()
                    .map(|(key, value)| (key.clone(), sorted(value)))
                    .collect(),
            )
        }
        scalar => scalar.clone(),
    }
}

/// ISO 8601 in UTC with six digits, which sorts like the time it means.
pub(super) fn time_text(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_keys_are_in_the_order_of_jsonb() {
        let value = serde_json::json!({"mem": 1, "cpu": [{"bb": 1, "a": null}], "cuda.device": "x", "b": 0});
        assert_eq!(
            json_text(&value),
            r#"{"b":0,"cpu":[{"a":null,"bb":1}],"mem":1,"cuda.device":"x"}"#
        );
    }

    #[test]
    fn a_null_has_a_kind() {
        assert_eq!(Param::from(None::<i64>), Param::Integer(None));
        assert_eq!(
            Param::from(None::<UserRole>),
            Param::Enum(EnumType::UserRole, None)
        );
    }
}
