//! The errors of an agent's calls, with the types and arguments that 19.06 callers know (`agent-protocol.md` 2.11).

use bai_model::KernelId;
use bai_proto::agent::AgentError;

use crate::resource::allocation::Insufficient;

/// Not enough of a slot.
pub(crate) fn insufficient(shortage: &Insufficient) -> AgentError {
    let Insufficient {
        device,
        slot,
        requested,
        available,
    } = shortage;
    AgentError::Exception {
        kind: "InsufficientResource".to_owned(),
        args: vec![
            "DiscretePropertyAllocMap: insufficient allocatable amount!".to_owned(),
            device.clone(),
            slot.clone(),
            requested.clone(),
            available.clone(),
        ],
    }
}

/// No port numbers are left.
pub(crate) fn no_ports() -> AgentError {
    runtime("Container ports are not sufficiently available.")
}

/// Something else went wrong.
pub(crate) fn runtime(message: impl Into<String>) -> AgentError {
    AgentError::exception("RuntimeError", message)
}

/// A malformed value in the configuration of a kernel.
pub(crate) fn value(message: impl Into<String>) -> AgentError {
    AgentError::exception("ValueError", message)
}

/// The kernel is not here, where 19.06 looks it up in a map.
pub(crate) fn unknown_kernel(kernel: KernelId) -> AgentError {
    AgentError::exception("KeyError", kernel.to_string())
}
