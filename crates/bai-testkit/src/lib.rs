//! Boots the API in process for tests: a real store, configuration store and broker, in memory or in real servers, the real core and the
//! real gateway, an agent that is scripted ([`agent::FakeAgent`]), a clock that is moved by hand and randomness that
//! repeats. All of this is the feature `api`.
//!
//! A test talks to it as a client does, with signed requests of one of the [`cast::Role`]s.
//!
//! [`services`] starts real servers from local binaries, for the tests of any crate.

#[cfg(feature = "api")]
pub mod agent;
#[cfg(feature = "api")]
pub mod ambient;
#[cfg(feature = "api")]
pub mod api;
#[cfg(feature = "api")]
pub mod cast;
#[cfg(feature = "api")]
pub mod profile;
#[cfg(feature = "api")]
pub mod remote;
#[cfg(feature = "api")]
pub mod service;
pub mod services;

#[cfg(feature = "api")]
pub use agent::FakeAgent;
#[cfg(feature = "api")]
pub use api::{Answer, Api, Request};
#[cfg(feature = "api")]
pub use cast::Role;
#[cfg(feature = "api")]
pub use remote::RemoteAgent;
