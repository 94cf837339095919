//! Under which address managers call this host (`agent.rpc-listen-addr`, `agent-protocol.md` 4.2, 7.1).

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail};
use bai_backplane::config::Config;
use bai_proto::zmtp::{AllowList, Endpoint};

use crate::config::agent::ListenAddr;

/// The network that agents of a site are called in, when they do not say where.
const SUBNET: &str = "config/network/subnet/agent";

/// Where to listen, and what managers are told.
#[derive(Clone, Debug)]
pub struct Address {
    pub listen: SocketAddr,
    pub endpoint: Endpoint,
}

/// Resolves the configured address, or finds one of this host's.
///
/// # Errors
/// When there is none, with the setting.
pub async fn find(configured: &ListenAddr, site: &Config) -> Result<Address> {
    let port = configured.port;
    if let Some(host) = &configured.host {
        let unknown = || format!("agent.rpc-listen-addr: the name {host} has no address");
        let mut found = tokio::net::lookup_host((host.as_str(), port))
            .await
            .with_context(unknown)?;
        let listen = found.next().with_context(unknown)?;
        let host = host.clone();
        return Ok(Address {
            listen,
            endpoint: Endpoint { host, port },
        });
    }
    let subnet = site
        .get(SUBNET)
        .await
        .with_context(|| format!("cannot read {SUBNET}"))?;
    let subnet = subnet.filter(|text| !text.is_empty());
    let here = addresses_of_host().context("cannot list the addresses of this host")?;
    let ip = choose(&here, subnet.as_deref())?;
    tracing::info!("managers call this host at {ip}; agent.rpc-listen-addr names another address");
    Ok(Address {
        listen: SocketAddr::new(ip, port),
        endpoint: Endpoint {
            host: ip.to_string(),
            port,
        },
    })
}

fn addresses_of_host() -> nix::Result<Vec<IpAddr>> {
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
        v4.or_else(|| {
            address
                .as_sockaddr_in6()
                .map(|address| IpAddr::from(address.ip()))
        })
    };
    Ok(nix::ifaddrs::getifaddrs()?.filter_map(address).collect())
}

/// The first address in `subnet`, or else the first that others can reach; version 4 before version 6.
fn choose(here: &[IpAddr], subnet: Option<&str>) -> Result<IpAddr> {
    let is_link_local = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let network = match subnet {
        Some(subnet) => Some(AllowList::parse([subnet]).with_context(|| format!("{SUBNET} cannot be used"))?),
        None => None,
    };
    let is_meant = |ip: &&IpAddr| match &network {
        Some(network) => network.admits(**ip),
        None => !ip.is_loopback() && !is_link_local(ip),
    };
    let mut meant: Vec<&IpAddr> = here.iter().filter(is_meant).collect();
    meant.sort_by_key(|ip| ip.is_ipv6());
    match (meant.first(), subnet) {
        (Some(ip), _) => Ok(**ip),
        (None, Some(subnet)) => bail!(
            "no address of this host is in {subnet} ({SUBNET}): name one with agent.rpc-listen-addr = \"ADDRESS:6001\""
        ),
        (None, None) => bail!(
            "this host has no address that managers could reach: name one with agent.rpc-listen-addr = \"ADDRESS:6001\""
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_chosen_that_others_reach() {
        let here: Vec<IpAddr> = [
            "127.0.0.1",
            "fe80::1",
            "2001:db8::1",
            "169.254.0.1",
            "10.0.0.5",
            "192.168.1.5",
        ]
        .map(|text| text.parse().expect("an address"))
        .into();
        let chosen = |subnet| choose(&here, subnet).map(|ip| ip.to_string());
        assert_eq!(chosen(None).expect("one"), "10.0.0.5");
        assert_eq!(chosen(Some("192.168.0.0/16")).expect("one"), "192.168.1.5");
        assert_eq!(chosen(Some("127.0.0.0/8")).expect("one"), "127.0.0.1");
        let error = chosen(Some("172.16.0.0/12")).expect_err("none");
        assert!(error.to_string().contains("agent.rpc-listen-addr"), "{error}");
        assert!(chosen(Some("nonsense")).is_err());
        assert!(choose(&[], None).is_err());
    }
}
