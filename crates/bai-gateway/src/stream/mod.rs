//! Streams (`http-api.md` 4.9): websockets to a session, and its events. Checks come before the upgrade and answer as plain
//! HTTP.
//!
//! Invariants: a stream ends with its session, with its requester's right to it, and with the server, with a close code
//! that says which; a client that sends too much, or nonsense, is told so by a code; what waits in either direction is
//! bounded, and then makes the other end wait; who takes nothing for [`crate::STALL_LIMIT`] is held to be gone.

pub(crate) mod events;
pub(crate) mod execute;
pub(crate) mod proxy;
pub(crate) mod pty;
mod socket;

use bai_core::session::SessionRef;

use crate::pipeline::Call;

/// Streams mean the requester's own sessions.
fn session(call: &Call) -> SessionRef {
    SessionRef {
        name: call.parameter.clone().unwrap_or_default(),
        owner: None,
    }
}
