//! The relational truth: schema, migrations, queries and the unit of work, over the 19.06 tables (`data-model.md`).
//!
//! [`Store::begin`] gives a [`Tx`]: dropping it rolls back, [`Tx::commit`] is explicit. [`Store::reader`] gives a
//! [`Reader`] that never waits for a writer; a [`Tx`] dereferences to a [`Reader`], so that every read can be made
//! within a unit of work as well. One file per resource holds its rows and its operations.
//!
//! Invariants: every statement is written once for all databases; a missing row is an `Option`, a violated constraint
//! an [`Error::Conflict`]; the counters that 19.06 keeps (`keypairs.concurrency_used`, `agents.occupied_slots`) change
//! in the transaction that changes the rows they count; time and ids are arguments; a read is one statement.
//!
//! Not here: rules (`bai-core`), the configuration store and the broker (`bai-backplane`), any knowledge of the
//! database library outside `driver`.
//!
//! Every operation fails with [`Error::Unavailable`] or [`Error::Database`] when the database does, with
//! [`Error::Contention`] when another unit of work is in its way, with [`Error::Unstorable`] for a value that no column
//! keeps and with [`Error::Unreadable`] for a stored value that makes no sense; only further errors are listed with it.

pub mod accounting;
pub mod agent;
mod catalog;
pub mod claim;
#[cfg(feature = "conformance")]
pub mod conformance;
mod counter;
pub mod credential;
pub mod doctor;
pub mod domain;
mod driver;
mod error;
pub mod fixture;
pub mod group;
pub mod kernel;
pub mod keypair;
pub mod lease;
pub mod occupancy;
pub mod policy;
pub mod preset;
pub mod schema;
mod store;
pub mod usage;
pub mod user;
pub mod vfolder;

pub use error::{ConflictKind, Error, Result};
pub use store::{Reader, Store, StoreOptions, Tx};
