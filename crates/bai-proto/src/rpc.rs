//! Calls between managers and agents over ZeroMQ, in the form that 19.06 has from aiozmq (`agent-protocol.md` 1.3 to 1.8, 2).
//!
//! * `frames`: requests and replies as the parts of messages;
//! * `call`: the functions, their arguments and what is wrong with those (1.6); `value`: the maps that are arguments and results;
//! * `error`: exceptions on the wire (1.7), the only place that knows their modules;
//! * `client`: [`ZmqAgent`], an [`AgentRpc`](crate::agent::AgentRpc) that is on another host;
//! * `server`: [`RpcServer`], which lets others call an `AgentRpc` of this process.
//!
//! Invariants: every call ends at its deadline at the latest; a call is sent at most once; what nobody waits for any more
//! is not sent; malformed requests get no answer and change nothing.

mod call;
mod client;
mod error;
mod frames;
mod server;
mod value;

pub use call::Call;
pub use client::{AgentOptions, ZmqAgent};
pub use error::{ErrorReply, decode_error, encode_error};
pub use frames::{FramesError, Reply, Request, Sender};
pub use server::{RpcServer, ServerOptions};
