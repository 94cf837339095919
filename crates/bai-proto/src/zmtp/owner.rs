//! Whose process has made a connection from this host.
//!
//! An address says nothing there: every user of the host connects from loopback. The kernel is asked by `sock_diag`, which
//! looks one connection up; where it does not offer that, by its table of all of them, which takes it a while.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, SocketAddrV4};

use socket2::{Domain, Protocol, Socket, Type};

/// `linux/netlink.h`, `linux/sock_diag.h`, `linux/inet_diag.h`.
const AF_NETLINK: i32 = 16;
const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const NLM_F_REQUEST: u16 = 1;
const AF_INET: u8 = 2;
const IPPROTO_TCP: u8 = 6;
const TCP_LISTEN: u8 = 10;
/// A header of 16 bytes and a request of 56; in an answer, the connection's addresses, its user and its inode.
const REQUEST: usize = 72;
const STATE: usize = 17;
const ADDRESSES: std::ops::Range<usize> = 20..60;
const UID: std::ops::Range<usize> = 80..84;
const INODE: std::ops::Range<usize> = 84..88;

/// The user at the other end of a connection over IPv4 on this host; `None` if there is no process at that end any more, or
/// it cannot be told.
pub fn uid_of(peer: SocketAddr, local: SocketAddr) -> Option<u32> {
    let (peer, local) = (plain(peer)?, plain(local)?);
    match ask(peer, local) {
        Ok(owner) => owner,
        // Where our own end is known, the other one is gone.
        Err(_) if ask(local, peer).is_ok() => None,
        Err(_) => find(&fs::read_to_string("/proc/net/tcp").ok()?, peer, local),
    }
}

/// The owner by `sock_diag`.
fn ask(peer: SocketAddrV4, local: SocketAddrV4) -> io::Result<Option<u32>> {
    let kernel = Socket::new(
        Domain::from(AF_NETLINK),
        Type::RAW,
        Some(Protocol::from(NETLINK_SOCK_DIAG)),
    )?;
    let request = request(peer, local);
    (&kernel).write_all(&request)?;
    let mut answer = [0; 512];
    let length = (&kernel).read(&mut answer)?;
    read(&answer[..length], &request)
}

fn request(peer: SocketAddrV4, local: SocketAddrV4) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(REQUEST);
    bytes.extend_from_slice(&(REQUEST as u32).to_ne_bytes());
    bytes.extend_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    // Sequence number and sender.
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(&[AF_INET, IPPROTO_TCP, 0, 0]);
    // In any state.
    bytes.extend_from_slice(&u32::MAX.to_ne_bytes());
    bytes.extend_from_slice(&peer.port().to_be_bytes());
    bytes.extend_from_slice(&local.port().to_be_bytes());
    for address in [peer, local] {
        bytes.extend_from_slice(&address.ip().octets());
        bytes.extend_from_slice(&[0; 12]);
    }
    // On any interface, whatever its cookie.
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&[0xff; 8]);
    bytes
}

/// The owner in an answer to `request`. The error says that the kernel does not tell.
fn read(answer: &[u8], request: &[u8]) -> io::Result<Option<u32>> {
    let number = |range: std::ops::Range<usize>| {
        let bytes = answer.get(range)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes))
    };
    let is_answer = answer.get(4..6) == Some(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    let (true, Some(uid), Some(inode)) = (is_answer, number(UID), number(INODE)) else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    // For a connection that is gone the kernel may name whoever listens on the port; and one that its process has closed
    // has no inode, and says that it is root's.
    let is_meant = answer.get(ADDRESSES) == request.get(24..64) && answer.get(STATE) != Some(&TCP_LISTEN);
    Ok(Some(uid).filter(|_| is_meant && inode != 0))
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
    fn an_answer_that_is_none_is_told_from_one_without_owner() {
        let (peer, local) = ("127.0.0.1:40000", "127.0.0.1:30002");
        let address = |text: &str| text.parse::<SocketAddrV4>().expect(text);
        let request = request(address(peer), address(local));
        assert_eq!(request.len(), REQUEST);
        assert!(read(&[], &request).is_err());
        assert!(read(&[2; 100], &request).is_err(), "an error of the kernel");
        let mut answer = vec![0; 88];
        answer[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        answer[ADDRESSES].copy_from_slice(&request[24..64]);
        answer[UID].copy_from_slice(&1000_u32.to_ne_bytes());
        assert_eq!(
            read(&answer, &request).expect("an answer"),
            None,
            "without an inode"
        );
        answer[INODE].copy_from_slice(&7_u32.to_ne_bytes());
        assert_eq!(read(&answer, &request).expect("an answer"), Some(1000));
        answer[STATE] = TCP_LISTEN;
        assert_eq!(read(&answer, &request).expect("an answer"), None, "a listener");
        answer[STATE] = 1;
        answer[ADDRESSES.start] ^= 1;
        assert_eq!(read(&answer, &request).expect("an answer"), None, "another port");
    }

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
