//! HTTP and WebSocket traffic turned into core operations, and core's errors into the documented answers.
//!
//! Every request takes the same road ([`pipeline`]): resolve the route, negotiate the version, authenticate, count,
//! check the manager's status and the requester's role, then call one handler, which decodes, calls core once and
//! encodes. The order is part of the interface (`http-api.md` 1.2).
//!
//! Invariants: no domain rule lives here; everything from outside has a limit; a secret never reaches a log line; every
//! answer carries the request id under which the log tells the rest.
//!
//! Not here: what operations mean (`bai-core`), and where the server listens (`bai`).

pub mod auth;
mod body;
mod cors;
mod error;
mod params;
mod pipeline;
mod rest;
pub mod route;
mod serve;
mod stall;
mod stream;
mod version;

use std::sync::Arc;

use bai_core::Manager;
use bai_model::random::Random;
use bai_model::time::Clock;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use serve::{ServeOptions, serve, serve_with};
pub use stall::STALL_LIMIT;

/// What a gateway needs beside the manager.
#[derive(Clone, Debug)]
pub struct GatewayOptions {
    pub clock: Arc<dyn Clock>,
    pub random: Arc<dyn Random>,
    /// Cancelled when the server stops: websockets say so to their clients and close.
    pub stopping: CancellationToken,
}

#[derive(Debug)]
struct Gateway {
    manager: Arc<Manager>,
    clock: Arc<dyn Clock>,
    random: Arc<dyn Random>,
    stopping: CancellationToken,
    /// An upload is gathered whole before anything of it is written: up to 42 MiB, what is parsed and what is not yet.
    uploads: Semaphore,
}

/// Uploads into sessions that are taken in at the same time; further ones wait.
const UPLOADS_AT_ONCE: usize = 16;

/// The whole API as a service.
pub fn router(manager: Arc<Manager>, options: GatewayOptions) -> axum::Router {
    let gateway = Arc::new(Gateway {
        manager,
        clock: options.clock,
        random: options.random,
        stopping: options.stopping,
        uploads: Semaphore::new(UPLOADS_AT_ONCE),
    });
    // Routes are our own table: the original's rules for slashes, versions and 405 are not axum's.
    axum::Router::new().fallback(pipeline::handle).with_state(gateway)
}
