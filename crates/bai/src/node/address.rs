//! Under which addresses managers reach this host and its sessions (`agent.rpc-listen-addr`, `agent-protocol.md` 4.2, 7.1,
//! 7.7).

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, bail};
use bai_backplane::config::Config;
use bai_proto::zmtp::{AllowList, Endpoint};

use crate::config::agent::ListenAddr;

/// The network that agents of a site are called in, when they do not say where.
const SUBNET: &str = "config/network/subnet/agent";
/// The network that sessions' ports are in, when it is another one.
const PORTS_SUBNET: &str = "config/network/subnet/container";

/// Where to listen, and what managers are told.
#[derive(Clone, Debug)]
pub struct Address {
    pub listen: SocketAddr,
    pub endpoint: Endpoint,
    /// Where sessions' ports are opened.
    pub ports: IpAddr,
}

impl Address {
    /// What managers are told of where sessions' ports are, when the configuration does not say it.
    pub fn kernel_host(&self) -> String {
        if self.ports == self.listen.ip() {
            self.endpoint.host.clone()
        } else {
            self.ports.to_string()
        }
    }
}

/// Resolves the configured address, or finds one of this host's.
///
/// # Errors
/// When there is none, with the setting.
pub async fn find(configured: &ListenAddr, site: &Config) -> Result<Address> {
    let (listen, endpoint) = find_rpc(configured, site).await?;
    let ports = find_ports(site).await?.unwrap_or_else(|| listen.ip());
    Ok(Address {
        listen,
        endpoint,
        ports,
    })
}

async fn find_rpc(configured: &ListenAddr, site: &Config) -> Result<(SocketAddr, Endpoint)> {
    let port = configured.port;
    if let Some(host) = &configured.host {
        let unknown = || format!("agent.rpc-listen-addr: the name {host} has no address");
        let mut found = tokio::net::lookup_host((host.as_str(), port))
            .await
            .with_context(unknown)?;
        let listen = found.next().with_context(unknown)?;
        let host = host.clone();
        return Ok((listen, Endpoint { host, port }));
    }
    let subnet = read(site, SUBNET).await?;
    let ip = choose(&addresses_of_host()?, subnet.as_deref())?;
    tracing::info!("managers call this host at {ip}; agent.rpc-listen-addr names another address");
    let host = ip.to_string();
    Ok((SocketAddr::new(ip, port), Endpoint { host, port }))
}

/// The address of this host on which sessions' ports are opened, when the site has a network for them: read once, at the
/// start, because what managers were told of a session stays. Where the host has no address in it, it is as if there were
/// no such network; the original opened them on all addresses then.
async fn find_ports(site: &Config) -> Result<Option<IpAddr>> {
    let Some(subnet) = read(site, PORTS_SUBNET).await? else {
        return Ok(None);
    };
    let found = first_in(&addresses_of_host()?, PORTS_SUBNET, &subnet)?;
    if found.is_none() {
        tracing::warn!(
            "no address of this host is in {subnet} ({PORTS_SUBNET}): sessions' ports are where calls are taken"
        );
    }
    Ok(found)
}

async fn read(site: &Config, key: &str) -> Result<Option<String>> {
    let value = site.get(key).await;
    let value = value.with_context(|| format!("cannot read {key} from the configuration store"))?;
    Ok(value.filter(|text| !text.is_empty()))
}

fn addresses_of_host() -> Result<Vec<IpAddr>> {
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::from(address.ip()));
        v4.or_else(|| {
            address
                .as_sockaddr_in6()
                .map(|address| IpAddr::from(address.ip()))
        })
    };
    let interfaces = nix::ifaddrs::getifaddrs().context("cannot list the addresses of this host")?;
    Ok(interfaces.filter_map(address).collect())
}

/// The first address in the network that `key` names; version 4 before version 6.
fn first_in(here: &[IpAddr], key: &str, subnet: &str) -> Result<Option<IpAddr>> {
    let network = AllowList::parse([subnet]).with_context(|| format!("{key} cannot be used"))?;
    Ok(first(here.iter().filter(|ip| network.admits(**ip))))
}

fn first<'a>(meant: impl Iterator<Item = &'a IpAddr>) -> Option<IpAddr> {
    meant.min_by_key(|ip| ip.is_ipv6()).copied()
}

/// The first address in `subnet`, or else the first that others can reach; version 4 before version 6.
fn choose(here: &[IpAddr], subnet: Option<&str>) -> Result<IpAddr> {
    let is_link_local = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let found = match subnet {
        Some(subnet) => first_in(here, SUBNET, subnet)?,
        None => first(here.iter().filter(|ip| !ip.is_loopback() && !is_link_local(ip))),
    };
    match (found, subnet) {
        (Some(ip), _) => Ok(ip),
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
    use std::sync::Arc;

    use bai_backplane::config::Scope;
    use bai_backplane::kv;

    use super::*;
    use crate::system::SystemClock;

    #[tokio::test]
    async fn sessions_ports_are_in_the_network_that_the_site_has_for_them() {
        let kv = kv::open("memory:", Arc::new(SystemClock)).await.expect("memory");
        let site = Config::new(kv, "local").for_agent("default", "i-a");
        let ports = async |scope, subnet: &str| {
            let put = site.put_in(scope, PORTS_SUBNET, subnet).await;
            put.expect("written");
            find_ports(&site).await
        };
        assert_eq!(find_ports(&site).await.expect("readable"), None);
        let loopback = Some(IpAddr::from([127, 0, 0, 1]));
        assert_eq!(
            ports(Scope::Global, "127.0.0.0/8").await.expect("an address"),
            loopback
        );
        // Reserved: no host has it.
        assert_eq!(ports(Scope::Global, "240.0.0.1").await.expect("readable"), None);
        let error = ports(Scope::Global, "nonsense").await.expect_err("no network");
        assert!(format!("{error:#}").contains(PORTS_SUBNET), "{error:#}");
        // What is said for one host stands above what is said for all.
        assert_eq!(
            ports(Scope::Node, "127.0.0.0/8").await.expect("an address"),
            loopback
        );
    }

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
