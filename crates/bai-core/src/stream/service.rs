//! Services of a session, and ways to them (`http-api.md` 4.9.3, `agent-protocol.md` 2.6, 6.7).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bai_proto::agent::{ServicePort, ServiceStart};
use bai_store::kernel::KernelRow;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::{SessionStream, host_of};
use crate::session::{SessionRef, within};
use crate::{Error, Manager, Op, Result};

/// How long a service may take to start: agents give up after 30 seconds and say so.
const START_DEADLINE: Duration = Duration::from_secs(40);
/// How long a service that has started may take to accept a connection.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// A stream to a service that has started.
#[derive(Debug)]
pub struct ServiceStream {
    /// The session's side of it.
    pub stream: SessionStream,
    host: String,
    port: u16,
}

impl ServiceStream {
    /// Connects to the service.
    ///
    /// # Errors
    /// As the system gives them; a connection that takes ten seconds is a [`io::ErrorKind::TimedOut`].
    pub async fn connect(&self) -> io::Result<TcpStream> {
        let connecting = TcpStream::connect((self.host.as_str(), self.port));
        let connected = match tokio::time::timeout(CONNECT_DEADLINE, connecting).await {
            Ok(connected) => connected?,
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        };
        connected.set_nodelay(true)?;
        Ok(connected)
    }
}

impl Manager {
    /// The services that a session has, started or not.
    ///
    /// # Errors
    /// [`Error::KernelNotFound`].
    pub async fn session_services(&self, op: &Op, session: &SessionRef) -> Result<Vec<ServicePort>> {
        let row = self.session_in_use(op, session).await?;
        Ok(services(&row))
    }

    /// Opens a stream to a service, which is started unless it runs.
    ///
    /// # Errors
    /// [`Error::KernelNotFound`]; [`Error::AppNotFound`]; [`Error::BadRequest`] for a service that is no stream of bytes;
    /// [`Error::QuotaExceeded`] when too many streams are open; [`Error::ServiceFailed`] and
    /// [`Error::KernelExecutionFailed`] when it does not start.
    pub async fn session_open_service(
        self: &Arc<Self>,
        op: &Op,
        session: &SessionRef,
        service: Option<&str>,
    ) -> Result<ServiceStream> {
        let row = self.find_session(op, session).await?;
        let port = services(&row)
            .into_iter()
            .find(|port| Some(port.name.as_str()) == service)
            .ok_or_else(|| {
                let name = service.unwrap_or("None");
                Error::AppNotFound(format!("{}:{name}", session.name))
            })?;
        if !matches!(port.protocol.as_str(), "tcp" | "http") {
            return Err(Error::BadRequest(format!(
                "Unsupported service protocol: {}",
                port.protocol
            )));
        }
        let stream = self.open_stream(op, session, &row)?;
        let agent = self.agent_of(&row).await?;
        let starting = agent.start_service(row.id, port.name, json!({}));
        match within(START_DEADLINE, starting).await? {
            ServiceStart::Started | ServiceStart::Running => Ok(ServiceStream {
                stream,
                host: host_of(&row),
                port: port.host_port,
            }),
            ServiceStart::Failed(why) => Err(Error::ServiceFailed(why)),
        }
    }
}

/// What the record says of a session's services. What is unreadable is none.
fn services(row: &KernelRow) -> Vec<ServicePort> {
    let Some(Value::Array(ports)) = &row.service_ports else {
        return Vec::new();
    };
    ports
        .iter()
        .filter_map(|port| serde_json::from_value(port.clone()).ok())
        .collect()
}
