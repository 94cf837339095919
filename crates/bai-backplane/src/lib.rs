//! The cluster's shared nerves: the configuration store ([`kv`], with [`config::Config`] above it) and the [`broker`]
//! (cache, counters, locks, messages).
//!
//! Invariants: callers see traits, chosen once by URI with [`kv::open`] and [`broker::open`], and no caller asks which
//! implementation it has; every implementation passes the same suites (`conformance`); nothing that must survive is kept
//! in the broker; time comes from a [`bai_model::time::Clock`].
//!
//! Not here: rows, and every rule about sessions, users or images. What a key *means* is `bai-core`'s to know.

mod address;
pub mod broker;
pub mod config;
#[cfg(feature = "conformance")]
pub mod conformance;
mod error;
mod expiry;
pub mod kv;

pub use config::Config;
pub use error::{Error, Result, Terminal, Unavailable};
