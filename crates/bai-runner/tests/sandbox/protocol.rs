//! The session as agents experience it: output limits, agents that are slow, go away or talk nonsense.

use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use bai_proto::runner::{Frame, Record, Request};

use crate::harness::{Kernel, connect, follow, next, runner};

#[test]
fn output_is_cut_visibly_and_the_program_goes_on() {
    let mut session = Kernel::of("shell", None).start();
    let said = session
        .code("head -c 80000000 /dev/zero | tr '\\0' x; echo end; exit_code() { return 5; }; exit_code");
    assert!(said.out.len() == 64 << 20, "{} bytes", said.out.len());
    assert!(said.err.contains("output truncated"), "{}", said.err);
    assert_eq!(said.code, Some(5));
    let said = session.code("echo whole");
    assert_eq!((said.out.as_str(), said.err.as_str()), ("whole\n", ""));
}

#[test]
fn bytes_arrive_as_they_are() {
    let mut session = Kernel::of("shell", None).start();
    session.send(&Request::Exec(
        "printf '\\355\\225'; sleep 0.1; printf '\\234 \\377'".into(),
    ));
    let mut bytes = Vec::new();
    loop {
        match next(&mut session.stream) {
            Record::Stdout(more) => bytes.extend(more),
            Record::Finished { .. } => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(bytes, "한 ".bytes().chain([0xff]).collect::<Vec<u8>>());
}

#[test]
fn a_slow_agent_stops_the_program_and_still_interrupts_it() {
    let mut session = Kernel::of("shell", None).start();
    session.send(&Request::Exec("yes > /dev/stdout & echo $! > pid; wait".into()));
    // More than all buffers hold.
    let mut heard = 0;
    while heard < 30 << 20 {
        if let Record::Stdout(bytes) = next(&mut session.stream) {
            heard += bytes.len();
        }
    }
    session.send(&Request::Interrupt);
    let said = follow(&mut session.stream, &[]);
    assert_eq!(said.code, Some(130));
    let said = session.sh("kill -9 $(cat pid); echo alive");
    assert!(said.out.contains("alive\n"));
}

#[test]
fn a_new_agent_takes_over_without_losing_anything() {
    let kernel = Kernel::of("shell", None);
    let mut session = kernel.start();
    session.send(&Request::Exec(
        "for i in $(seq 2000); do echo line $i; done; while [ ! -e go ]; do sleep 0.01; done; echo end"
            .into(),
    ));
    let Record::Stdout(first) = next(&mut session.stream) else {
        panic!("output is expected")
    };
    // It dies with output unread, and the run goes on without an agent.
    let mut replaced = connect(&kernel.path("run/runner.sock"));
    std::mem::swap(&mut session.stream, &mut replaced);
    drop(replaced);
    fs::write(kernel.path("work/go"), "").expect("a file");
    let said = follow(&mut session.stream, &[]);
    // What the first one has read may be said again.
    let heard = String::from_utf8_lossy(&first) + said.out.as_str();
    assert!(heard.starts_with("line 1\n") && heard.ends_with("\nend\n"));
    let lines: HashSet<&str> = heard.lines().collect();
    for number in 1..=2000 {
        let line = format!("line {number}");
        assert!(lines.contains(line.as_str()), "{line} is lost");
    }
    assert_eq!(session.ok("echo alive"), "alive");
}

#[test]
fn nonsense_ends_the_connection_and_not_the_session() {
    let kernel = Kernel::of("shell", None);
    let mut session = kernel.start();
    session.code("x=1");
    let garbage: &[&[u8]] = &[
        b"\0",
        b"\xff\xff\xff\xff\xff\xff",
        b"\x04code\xff\xff\xff\xff",
        b"\x04co\xffe\0\0\0\0",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x04code\0\0\0\x09half",
    ];
    for bytes in garbage {
        let mut stream = connect(&kernel.path("run/runner.sock"));
        stream.write_all(bytes).expect("taken");
        stream.shutdown(std::net::Shutdown::Write).expect("shut");
        assert_eq!(stream.read(&mut [0; 99]).unwrap_or(0), 0, "{bytes:?}");
    }
    session.stream = connect(&kernel.path("run/runner.sock"));
    for frame in [
        Frame::new("nothing", "x"),
        Frame::new("complete", "\u{0}{"),
        Frame::new("complete", vec![0xff]),
        Frame::new("start-service", "[["),
        Frame::new("input", vec![0xff; 1 << 20]),
        Frame::new("status", "\u{1}"),
        Frame::new("interrupt", "x"),
    ] {
        frame.write_to(&mut session.stream).expect("taken");
    }
    let said = session.code("echo $x");
    assert_eq!((said.out.as_str(), said.code), ("1\n", Some(0)));
    let mut frame = Frame::new("exec", b"echo \xff".as_slice());
    frame.write_to(&mut session.stream).expect("taken");
    assert_eq!(follow(&mut session.stream, &[]).out, "\u{fffd}\n");
    frame = Frame::new("code", "");
    frame.write_to(&mut session.stream).expect("taken");
    assert_eq!(follow(&mut session.stream, &[]).code, Some(0));
}

#[test]
fn more_steps_than_fit_are_refused_and_not_waited_for() {
    let mut session = Kernel::of("shell", None).start();
    session.send(&Request::Exec(
        "while [ ! -e go ]; do sleep 0.01; done; echo end".into(),
    ));
    for _ in 0..200 {
        session.send(&Request::Exec("true".into()));
    }
    session.send(&Request::Status);
    let mut refused = 0;
    loop {
        match next(&mut session.stream) {
            Record::Finished { exit_code } => {
                assert_eq!(exit_code, Some(-1));
                refused += 1;
            }
            Record::Status(bytes) => {
                assert!(bytes.starts_with(b"\x81\xaastarted_at\xcb"));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    // The first one runs, or is about to.
    assert!((136..=137).contains(&refused), "{refused}");
}

#[test]
fn a_session_without_a_sandbox_is_served_where_it_is() {
    let dir = tempfile::tempdir().expect("a folder");
    let socket = dir.path().join("runner.sock");
    fs::write(&socket, "left by another").expect("a file");
    let mut serving = Command::new(runner())
        .args(["serve".as_ref(), socket.as_os_str(), "shell".as_ref()])
        .current_dir(dir.path())
        .env("GREETING", "from outside")
        .spawn()
        .expect("started");
    let deadline = Instant::now() + Duration::from_secs(20);
    while std::os::unix::net::UnixStream::connect(&socket).is_err() {
        assert!(Instant::now() < deadline, "nobody listens");
        std::thread::yield_now();
    }
    let mut stream = connect(&socket);
    let code = Request::Code("pwd -P; echo $GREETING".into());
    code.to_frame().write_to(&mut stream).expect("sent");
    let said = follow(&mut stream, &[]);
    let folder = dir.path().canonicalize().expect("a folder");
    assert_eq!(said.out, format!("{}\nfrom outside\n", folder.display()));
    serving.kill().and_then(|()| serving.wait()).expect("ended");
    let refused = Command::new(runner())
        .args(["serve", "/nowhere/runner.sock", "shell"])
        .output()
        .expect("started");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("cannot listen on /nowhere"));
    assert!(!Path::new("/nowhere").exists());
}
