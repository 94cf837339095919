//! Calls, events and terminals over ZeroMQ, on loopback.

mod events;
mod faults;
mod golden;
mod interop;
mod pty;
mod support;
mod tls;
