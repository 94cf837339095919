//! Boots the API in process for tests: a real store, configuration store and broker in memory, the real core and the
//! real gateway, an agent that is scripted ([`agent::FakeAgent`]), a clock that is moved by hand and randomness that
//! repeats.
//!
//! A test talks to it as a client does, with signed requests of one of the [`cast::Role`]s.
//!
//! [`services`] starts real servers from local binaries, for the tests of any crate.

pub mod agent;
pub mod ambient;
pub mod api;
pub mod cast;
pub mod services;

pub use agent::FakeAgent;
pub use api::{Answer, Api, Request};
pub use cast::Role;
