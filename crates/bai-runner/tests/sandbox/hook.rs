//! The input hook, as the libraries of 19.06 images use it.

use std::fs;

use bai_proto::runner::{Record, Request};
use bai_proto::sandbox::Network;

use crate::harness::{Kernel, Session, follow, next};

/// Asks through the hook, prints what it is told.
const ASK: &str = "python3 -c \"
import socket, sys
print('name?', flush=True)
s = socket.create_connection(('127.0.0.1', 65000))
print('got', s.recv(1024).decode(), s.recv(1))\"";

fn start() -> Option<(Kernel, Session)> {
    if !std::path::Path::new("/usr/bin/python3").exists() {
        println!("SKIPPED: the input hook, because /usr/bin/python3 is not installed");
        return None;
    }
    let kernel = Kernel::of("shell", None);
    let session = kernel.start();
    if !session.launched.has("network namespace") {
        println!("SKIPPED: the input hook, because sessions have no network of their own here");
        return None;
    }
    Some((kernel, session))
}

#[test]
fn programs_ask_and_are_told_verbatim() {
    let Some((_kernel, mut session)) = start() else {
        return;
    };
    session.send(&Request::Exec(ASK.into()));
    assert_eq!(next(&mut session.stream), Record::Stdout(b"name?\n".to_vec()));
    let said = follow(&mut session.stream, &["é without an end"]);
    assert_eq!(said.asked, [None]);
    assert_eq!(
        (said.out.as_str(), said.code),
        ("got é without an end b''\n", Some(0))
    );
    // In query mode as well.
    let said = session.code_with(ASK, &["again"]);
    assert_eq!(
        (said.out.as_str(), said.asked.len()),
        ("name?\ngot again b''\n", 1)
    );
    // Each is told its own.
    let said = session.code_with(&format!("{ASK} & {ASK} & wait"), &["1", "2"]);
    assert!(
        said.out.contains("got 1") && said.out.contains("got 2"),
        "{said:?}"
    );
    assert_eq!(said.asked.len(), 2);
}

#[test]
fn who_does_not_wait_is_not_answered() {
    let Some((kernel, mut session)) = start() else {
        return;
    };
    let gone = "python3 -c \"
import socket
s = socket.create_connection(('127.0.0.1', 65000)); s.close()\"; read x; echo got $x";
    session.send(&Request::Exec(gone.into()));
    // It has asked, and does not hear the answer; the next one reads.
    let said = follow(&mut session.stream, &["first", "second"]);
    assert_eq!(said.code, Some(0));
    assert!(
        said.out == "got first\n" || said.out == "got second\n",
        "{said:?}"
    );
    // A program of the background, when nobody is there to ask.
    let late = "(until [ -e go ]; do sleep 0.01; done; python3 -c \"
import socket
s = socket.create_connection(('127.0.0.1', 65000))
print(s.recv(1024).decode(), flush=True)\") > out 2>&1 &";
    assert_eq!(session.sh(late).code, Some(0));
    fs::write(kernel.path("work/go"), "").expect("a file");
    let told = || fs::read_to_string(kernel.path("work/out")).unwrap_or_default();
    while told().is_empty() {
        std::thread::yield_now();
    }
    assert_eq!(told(), "<user-input is unsupported>\n");
    // Many at once end nothing.
    let many = "python3 -c \"
import socket
s = [socket.create_connection(('127.0.0.1', 65000)) for _ in range(40)]
print(sum(c.recv(99) in (b'x', b'<user-input is unsupported>') for c in s))\"";
    session.send(&Request::Exec(many.into()));
    let said = follow(&mut session.stream, &["x"; 40]);
    assert_eq!(said.out, "40\n", "{said:?}");
}

#[test]
fn there_is_none_on_a_network_that_others_use() {
    let mut kernel = Kernel::of("shell", None);
    kernel.spec.network = Network::Host;
    let mut session = kernel.start();
    // Whoever is there: it is not this session.
    let said = session.sh("grep -c \"0100007F:FDE8 00000000:0000 0A.* $(id -u) \" /proc/net/tcp");
    assert_eq!(said.out, "0\n", "{said:?}");
}
