//! Where the server is, and how to get in.

use std::time::Duration;

use redis::{
    Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, RedisConnectionInfo, TlsCertificates,
};

use crate::address::Address;
use crate::error::Service;
use crate::{Result, Terminal};

/// How long a call may take unless `timeout=` says otherwise.
const DEADLINE: Duration = Duration::from_secs(3);

/// One server with our user and password.
pub(super) struct Server {
    pub service: Service,
    pub deadline: Duration,
    info: ConnectionInfo,
    authority: Option<Vec<u8>>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("address", &self.service.address)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Parses what follows `redis://` or `rediss://`.
    pub fn parse(scheme: &str, rest: &str) -> Result<Self> {
        let address = Address::parse(scheme, rest, 6379, &["ca", "timeout"])?;
        let deadline = address.timeout(DEADLINE)?;
        let [(host, port)] = address.hosts.as_slice() else {
            return Err(refused("there is one Redis server, not a list"));
        };
        let (host, port) = (host.clone(), *port);
        let tls = scheme == "rediss";
        let authority = address.authority()?;
        if authority.is_some() && !tls {
            return Err(refused("ca= needs rediss:// instead of redis://"));
        }
        let place = if tls {
            ConnectionAddr::TcpTls {
                host,
                port,
                insecure: false,
                tls_params: None,
            }
        } else {
            ConnectionAddr::Tcp(host, port)
        };
        let mut settings = RedisConnectionInfo::default();
        if let Some(user) = &address.user {
            settings = settings.set_username(user);
        }
        if let Some(password) = &address.password {
            settings = settings.set_password(password);
        }
        let info = place
            .into_connection_info()
            .map_err(|error| refused(error.category()))?;
        Ok(Self {
            service: Service {
                name: "Redis",
                address: address.printed(),
                address_setting: "config/redis/addr in the configuration store, or bai.broker",
                credentials_setting: "config/redis/password in the configuration store, or bai.broker",
            },
            deadline,
            info: info.set_redis_settings(settings),
            authority,
        })
    }

    /// Makes connections to one database.
    pub fn client(&self, database: i64) -> Result<Client> {
        let settings = self.info.redis_settings().clone().set_db(database);
        let info = self.info.clone().set_redis_settings(settings);
        let client = match &self.authority {
            Some(pem) => Client::build_with_tls(
                info,
                TlsCertificates {
                    client_tls: None,
                    root_cert: Some(pem.clone()),
                },
            ),
            None => Client::open(info),
        };
        client.map_err(|error| refused(error.category()))
    }
}

fn refused(why: &str) -> crate::Error {
    Terminal::Address(format!("the Redis address cannot be used: {why}")).into()
}
