//! The host ports of one life of a kernel: bound before its processes start, served while it lives, bound again by the
//! next agent process.
//!
//! Invariants: a port that a manager is told of is bound, or was by the agent process before this one; whoever else on
//! this host has a port of the pool keeps it, and the kernel gets another.
//!
//! Not here: which numbers are free (`resource::ports`), what happens on a connection (`forward`, `terminal`).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bai_model::KernelId;
use bai_proto::agent::AgentError;
use bai_proto::pty::TerminalServer;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::forward::Forwarder;
use super::state::KernelState;
use super::terminal::{Ends, Terminal};
use crate::error;
use crate::host::Host;
use crate::runtime::KernelSpec;

/// Numbers that every kernel has: input and output of its runner, which 19.06 managers want to know and never use, and
/// input and output of its terminal.
pub(crate) const OWN_PORTS: usize = 4;
const TERMINAL: std::ops::Range<usize> = 2..4;

/// Between two attempts to bind a port that an earlier agent process had.
const PAUSE: Duration = Duration::from_secs(1);

/// Bound ports; none where another process has it for the time being.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    terminal: Option<Ends>,
    services: Vec<Option<TcpListener>>,
}

impl Listeners {
    /// Binds the ports that a kernel has been given, and gets it others for those that are in use on this host: `ports`
    /// is then what it has.
    ///
    /// # Errors
    /// When no more ports are left, or the agent's address is not one of this host.
    pub async fn bind(host: &Host, kernel: KernelId, ports: &mut [u16]) -> Result<Self, AgentError> {
        let mut attempts = host.ledger().port_count();
        let terminal = loop {
            match bind_terminal(host, (ports[TERMINAL.start], ports[TERMINAL.start + 1])).await {
                Ok(ends) => break ends,
                Err(error) => {
                    for port in &mut ports[TERMINAL] {
                        exchange(host, kernel, port, &error, &mut attempts)?;
                    }
                }
            }
        };
        let mut services = Vec::new();
        for port in ports.iter_mut().skip(OWN_PORTS) {
            services.push(loop {
                match TcpListener::bind(address_of(host, *port)).await {
                    Ok(listener) => break Some(listener),
                    Err(error) => exchange(host, kernel, port, &error, &mut attempts)?,
                }
            });
        }
        Ok(Self {
            terminal: Some(terminal),
            services,
        })
    }

    /// Binds the ports that a kernel has had before; what cannot be bound now is bound later.
    pub async fn bind_again(host: &Host, state: &KernelState) -> Self {
        if !state.runner.is_own() {
            // The engine has them.
            return Self::default();
        }
        let terminal = match state.terminal_ports {
            Some(ports) => bind_terminal(host, ports).await.ok(),
            None => None,
        };
        let mut services = Vec::new();
        for port in &state.service_ports {
            services.push(TcpListener::bind(address_of(host, port.host_port)).await.ok());
        }
        Self { terminal, services }
    }

    /// Serves until the kernel's life has ended.
    pub fn serve(
        self,
        host: &Arc<Host>,
        state: &KernelState,
        spec: &KernelSpec,
        terminal: Terminal,
        ended: &CancellationToken,
    ) {
        if let Some(ports) = state.terminal_ports {
            let (serving, bound, until) = (Arc::clone(host), self.terminal, ended.clone());
            host.tasks.spawn_until_stopped("terminal", async move {
                let serving = async {
                    let ends = match bound {
                        Some(ends) => ends,
                        None => patiently(ports.0, || bind_terminal(&serving, ports)).await,
                    };
                    terminal.serve(ends).await;
                };
                _ = until.run_until_cancelled(serving).await;
            });
        }
        let forwarder = Forwarder::new(host, spec, ended);
        let bound = self.services.into_iter().chain(std::iter::repeat_with(|| None));
        for (port, bound) in state.service_ports.iter().cloned().zip(bound) {
            let (forwarder, until) = (forwarder.clone(), ended.clone());
            let address = address_of(host, port.host_port);
            host.tasks.spawn_until_stopped("service port", async move {
                let serving = async {
                    let listener = match bound {
                        Some(listener) => listener,
                        None => patiently(port.host_port, || TcpListener::bind(address)).await,
                    };
                    forwarder.serve(&port, &listener).await;
                };
                _ = until.run_until_cancelled(serving).await;
            });
        }
    }
}

fn address_of(host: &Host, port: u16) -> SocketAddr {
    SocketAddr::new(host.listen, port)
}

async fn bind_terminal(host: &Host, (input, output): (u16, u16)) -> io::Result<Ends> {
    let (input, output) = (address_of(host, input), address_of(host, output));
    TerminalServer::bind(input, output, host.allow.clone()).await
}

/// Another port for one that `error` keeps from being bound.
fn exchange(
    host: &Host,
    kernel: KernelId,
    port: &mut u16,
    error: &io::Error,
    attempts: &mut usize,
) -> Result<(), AgentError> {
    let address = address_of(host, *port);
    if error.kind() != io::ErrorKind::AddrInUse {
        return Err(error::runtime(format!(
            "the agent cannot listen on {address} for the kernel: {error}; check its kernel-host and port range"
        )));
    }
    tracing::info!(kernel.id = %kernel, listen.addr = %address, "a port of the pool is in use by something else");
    *attempts = attempts.checked_sub(1).ok_or_else(error::no_ports)?;
    let another = host.ledger().exchange_port(kernel, *port);
    *port = another.ok_or_else(error::no_ports)?;
    Ok(())
}

/// Binds as soon as it can be done. The manager knows the number, so another one would be of no use.
async fn patiently<T, F>(port: u16, bind: impl Fn() -> F) -> T
where
    F: Future<Output = io::Result<T>>,
{
    let mut has_complained = false;
    loop {
        match bind().await {
            Ok(bound) => return bound,
            Err(error) if !has_complained => {
                tracing::error!(port, %error, "a port of a kernel cannot be bound again; trying until it can");
                has_complained = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}
