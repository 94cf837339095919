//! One binary of integration tests: [`api`] in process with a scripted agent, [`blackbox`] with the executable that users
//! start, [`mod@gateway`] with the daemon of a site, [`agent`] with its agents, [`fleet`] with both when something happens to
//! an agent, [`docker`] with containers, [`crash`] with one that is killed, [`doctor`] on a site that the original left,
//! [`takeover`] with the original manager as a peer, [`reach`] into a session by websockets, [`recordings`] against what the
//! original answered, [`registry`] against a real image registry, [`coverage`] over all routes, [`routes`] for the generated page.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod agent;
mod api;
mod blackbox;
mod coverage;
mod crash;
mod docker;
mod doctor;
mod fleet;
mod gateway;
mod interoperability;
mod published;
mod reach;
mod recordings;
mod registry;
mod routes;
mod server;
mod takeover;
