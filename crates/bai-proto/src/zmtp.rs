//! ZMTP 3.0, the wire protocol of ZeroMQ, as far as 19.06 uses it (`agent-protocol.md` 1.1, 1.2): mechanism NULL, and the
//! socket types of calls, events and terminals. `docs/adr/0003-zeromq.md` says why it is ours.
//!
//! * `codec`: greeting, commands and frames as bytes, without input or output;
//! * `connection`: one connection after its handshake, over any byte stream;
//! * `endpoint`: where a peer is, and how to get there;
//! * `link`: a connection that is made again whenever it breaks;
//! * `listener`: connections that others make, from allowed addresses and so many at most;
//! * `tls`: both ends prove who they are and nobody reads along, below the same frames.
//!
//! Invariants: a message has a bounded number of frames and of bytes, refused by what is announced and allocated by what
//! has arrived; an end of a connection never ends more than that connection; the peer's address is in every complaint.
//!
//! Not here: what messages mean. Identities that peers choose are ignored, REQ and REP are not spoken.

mod codec;
#[cfg(feature = "zmq")]
mod connection;
#[cfg(feature = "zmq")]
mod endpoint;
#[cfg(feature = "zmq")]
mod link;
#[cfg(feature = "zmq")]
mod listener;
#[cfg(feature = "zmq")]
mod tls;

pub use codec::{
    Command, Decoder, GREETING_SIZE, Incoming, Limits, Message, SocketType, ZmtpError, check_greeting,
    encode_message, encode_pong, encode_ready, encode_ready_as, greeting, subscription,
};
#[cfg(feature = "zmq")]
pub use connection::{Connection, Reader, Writer};
#[cfg(feature = "zmq")]
pub use endpoint::{Backoff, DialError, Endpoint, EndpointError, dial};
#[cfg(feature = "zmq")]
pub use link::{Full, Link, LinkOptions};
#[cfg(feature = "zmq")]
pub use listener::{AllowList, AllowListError, Listener, ListenerOptions};
#[cfg(feature = "zmq")]
pub use tls::{Tls, TlsError};
