//! The listening socket.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs as _};

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::config::HostPort;

/// Connections that wait to be accepted (`http-api.md` 1.1).
const BACKLOG: i32 = 1024;

/// Binds the address so that several processes may share it, as 19.06 does (`SO_REUSEPORT`). Connections are not taken
/// before [`listen`]: they would wait here while another process could serve them.
///
/// # Errors
/// With the setting that names the address.
pub fn bind(address: &HostPort, setting: &str) -> Result<TcpListener> {
    let context = || format!("cannot listen on {address} ({setting})");
    let resolved = (address.host.as_str(), address.port).to_socket_addrs();
    let resolved = resolved.with_context(context)?.next();
    let resolved = resolved
        .context("the name has no address")
        .with_context(context)?;
    bind_to(resolved).with_context(context)
}

fn bind_to(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Takes connections from now on.
///
/// # Errors
/// When the system refuses.
pub fn listen(listener: TcpListener) -> io::Result<tokio::net::TcpListener> {
    SockRef::from(&listener).listen(BACKLOG)?;
    listener.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(listener)
}
