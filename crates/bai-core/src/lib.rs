//! Every operation that a user, an administrator or a timer may ask for, with its authorisation.
//!
//! [`Manager`] is the whole of it: REST handlers, GraphQL resolvers, commands and reconcilers call its methods with an
//! [`Op`]. Decisions (quota, placement, image resolution) are plain functions over values; I/O goes through
//! `bai-store`, `bai-backplane` and `bai_proto::agent::AgentRpc`.
//!
//! Invariants: every state change is one database transaction; a transaction is never held across a call to an agent,
//! the configuration store or the broker; what must finish is recorded first and carried out by a reconciler, so that
//! it survives the requester and the process.
//!
//! Not here: HTTP, GraphQL, wire formats, and how hosts run kernels.

mod agents;
pub mod auth;
mod cluster;
mod compare;
pub mod config;
pub mod doctor;
pub mod error;
mod event;
mod fresh;
pub mod image;
pub mod lifecycle;
mod liveness;
pub mod manager;
pub mod manager_status;
pub mod op;
mod rate;
mod reconcile;
pub mod resource;
pub mod session;
pub mod stream;
mod together;

pub use auth::Credential;
pub use bai_proto::agent::AgentError;
pub use error::{Error, Result};
pub use manager::{Manager, ManagerOptions};
pub use op::{Actor, Identity, Op};
