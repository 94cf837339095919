//! Whose process has made a connection from this host.
//!
//! An address says nothing there: every user of the host connects from loopback.

use std::fs;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};

/// The user at the other end of a connection over IPv4 on this host; `None` if there is no process at that end any more, or
/// it cannot be told.
pub fn uid_of(peer: SocketAddr, local: SocketAddr) -> Option<u32> {
    find(
        &fs::read_to_string("/proc/net/tcp").ok()?,
        plain(peer)?,
        plain(local)?,
    )
}

fn plain(address: SocketAddr) -> Option<SocketAddrV4> {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => Some(SocketAddrV4::new(ip, address.port())),
        IpAddr::V6(_) => None,
    }
}

/// Lines `sl local remote state queues timer retransmits uid timeout inode …`, seen from the other end.
fn find(table: &str, peer: SocketAddrV4, local: SocketAddrV4) -> Option<u32> {
    let (peer, local) = (written(peer), written(local));
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let is_meant = fields.get(1) == Some(&peer.as_str()) && fields.get(2) == Some(&local.as_str());
        // A connection that its process has closed has no inode, and says that it is root's.
        let is_owned = fields.get(9).is_some_and(|inode| *inode != "0");
        (is_meant && is_owned).then(|| fields.get(7)?.parse().ok())?
    })
}

/// As the kernel writes an address: the bytes as a number of this machine.
fn written(address: SocketAddrV4) -> String {
    let ip = u32::from_ne_bytes(address.ip().octets());
    format!("{ip:08X}:{:04X}", address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_of_a_connection_is_found_and_one_without_process_has_none() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let client = std::net::TcpStream::connect(server.local_addr().expect("bound")).expect("connected");
        let (accepted, peer) = server.accept().expect("accepted");
        let local = accepted.local_addr().expect("connected");
        let us = fs::metadata("/proc/self").expect("this process");
        assert_eq!(
            uid_of(peer, local),
            Some(std::os::unix::fs::MetadataExt::uid(&us))
        );
        drop(client);
        assert_eq!(uid_of(peer, local), None, "nobody is there any more");
    }

    #[test]
    fn other_connections_are_not_taken_for_it() {
        let line = |local: &str, remote: &str, uid: u32, inode: u32| {
            format!(
                "   0: {local} {remote} 01 00000000:00000000 00:00000000 00000000  {uid}        0 {inode} 1 0 20 4 30 10 -1\n"
            )
        };
        let (peer, local) = ("127.0.0.1:40000", "127.0.0.1:30002");
        let address = |text: &str| text.parse::<SocketAddrV4>().expect(text);
        let (there, here) = (written(address(peer)), written(address(local)));
        let table = [
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n".to_owned(),
            line(&here, &there, 0, 7),
            line(&there, &here, 1000, 8),
        ];
        assert_eq!(find(&table.concat(), address(peer), address(local)), Some(1000));
        assert_eq!(
            find(&line(&there, &here, 0, 0), address(peer), address(local)),
            None
        );
        assert_eq!(find("nonsense\n\n", address(peer), address(local)), None);
    }
}
