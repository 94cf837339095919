//! What managers, agents and in-session runners say to each other, byte for byte.
//!
//! * [`runner`]: the frames between an agent and the program inside a session (`agent-protocol.md` 6.3) and their
//!   carriage over a byte stream;
//! * [`descriptor`]: how an agent gets sockets and terminals from inside a session;
//! * [`sandbox`]: what an agent tells the runner to build around a session on the process runtime;
//! * [`agent`]: the calls that a manager makes to an agent (`agent-protocol.md` 2), as a trait with typed messages;
//! * [`event`]: what an agent tells its manager unasked (`agent-protocol.md` 3.2);
//! * `rpc`, `pty` (feature `zmq`): calls and terminals over ZeroMQ; events too, in `event`;
//! * `msgpack`, `zmtp`: what those consist of on the wire.
//!
//! Invariants: everything that arrives is bounded in size before it is kept, unknown operations and malformed
//! payloads are errors or data, never panics; nothing here knows SQL, HTTP or a domain rule.

#[cfg(feature = "agent")]
pub mod agent;
pub mod descriptor;
#[cfg(feature = "agent")]
pub mod event;
#[cfg(feature = "zmq")]
pub mod msgpack;
#[cfg(feature = "zmq")]
pub mod pty;
#[cfg(feature = "zmq")]
pub mod rpc;
pub mod runner;
pub mod sandbox;
#[cfg(feature = "zmtp")]
pub mod zmtp;
