//! What may be wrong with an existing site, and its repair: for operators, before ours takes a site over and at any time
//! after.
//!
//! Invariants: examining changes nothing; repairing is one transaction on the database, after which the original finds what it
//! would have written itself; what somebody has to decide (garbage, lost sessions, keys in etcd) is told and left alone.
//!
//! Not here: opening the services, and printing (`bai doctor`). Whoever can open the database needs no authorisation.

mod broker;
mod config;
mod database;

use serde::Serialize;

pub use broker::examine_broker;
pub use config::examine_config;
pub use database::{Change, SchemaFacts, examine_database, repair};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know; nothing is wrong.
    Note,
    /// Something is not as it should be, and is coped with.
    Warning,
    /// Something does not work, or will not.
    Error,
}

/// One thing that was noticed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// What kind of thing, for programs: `schema`, `rights`, `amounts`, `accounting`, `orphans`, `redis`, `status`, ….
    pub check: &'static str,
    /// Where: a table with column and key, a key of the configuration store, an agent.
    pub subject: String,
    /// What was found and what it means.
    pub meaning: String,
    /// What to do about it. Where [`Finding::is_repaired`], what the repair does.
    pub remedy: String,
    /// Whether [`repair`] takes care of it.
    pub is_repaired: bool,
}

impl Finding {
    fn new(
        severity: Severity,
        check: &'static str,
        subject: impl Into<String>,
        meaning: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            severity,
            check,
            subject: subject.into(),
            meaning: meaning.into(),
            remedy: remedy.into(),
            is_repaired: false,
        }
    }

    fn repaired(self) -> Self {
        Self {
            is_repaired: true,
            ..self
        }
    }
}
