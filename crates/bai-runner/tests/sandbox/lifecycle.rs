//! Who lives how long: the session, its processes, its agent.

use std::time::Duration;

use bai_proto::runner::Request;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Kernel, is_running, starters};

/// A command line that no other process has.
fn marker(starter: impl std::fmt::Debug, test: u32) -> String {
    format!(
        "3{:06}.{test}{}",
        std::process::id(),
        format!("{starter:?}").len()
    )
}

#[test]
fn without_the_word_to_go_nothing_is_left() {
    for starter in starters() {
        let mut launched = Kernel::new(starter).launch();
        assert_eq!(launched.report.fatal, None);
        launched.forsake();
        launched.wait_gone();
    }
}

#[test]
fn a_wrong_word_is_no_word() {
    for starter in starters() {
        let mut launched = Kernel::new(starter).launch();
        launched.say(b'x');
        launched.wait_gone();
    }
}

#[test]
fn killing_the_first_process_kills_all() {
    for starter in starters() {
        let kernel = Kernel::new(starter);
        let mut session = kernel.start();
        let marker = marker(starter, 1);
        session.ok(&format!(
            "setsid sleep {marker} >/dev/null 2>&1 & (nohup sleep {marker} >/dev/null 2>&1 &)"
        ));
        assert!(is_running(&marker));
        kill(Pid::from_raw(session.launched.report.pid), Signal::SIGKILL).expect("killed");
        session.launched.wait_gone();
        assert!(!is_running(&marker));
        assert!(session.ended());
    }
}

#[test]
fn a_session_on_a_leash_dies_with_its_agent_even_when_stopped() {
    for starter in starters() {
        let mut session = Kernel::new(starter).start();
        let marker = marker(starter, 2);
        session.ok(&format!("setsid sleep {marker} >/dev/null 2>&1 &"));
        // The runner and all, except the first process, which cannot be stopped from inside.
        session.send(&Request::Exec("kill -STOP -1".to_owned()));
        std::thread::sleep(Duration::from_millis(50));
        session.launched.forsake();
        session.launched.wait_gone();
        assert!(!is_running(&marker));
    }
}

#[test]
fn a_session_without_a_leash_outlives_its_agent() {
    for starter in starters() {
        let mut kernel = Kernel::new(starter);
        kernel.spec.dies_with_agent = false;
        let mut session = kernel.start();
        session.launched.forsake();
        assert_eq!(session.ok("echo alive"), "alive");
        // Neither the agent's terminal nor its process group reach it.
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", session.launched.report.pid)).expect("alive");
        let session_id = stat
            .rsplit(')')
            .next()
            .and_then(|rest| rest.split_ascii_whitespace().nth(3));
        assert_eq!(session_id, Some(session.launched.report.pid.to_string().as_str()));
    }
}

#[test]
fn the_session_ends_when_the_runner_is_killed_from_inside() {
    for starter in starters() {
        let mut session = Kernel::new(starter).start();
        session.send(&Request::Exec("kill -9 -1".to_owned()));
        session.launched.wait_gone();
    }
}

#[test]
fn orphans_are_reaped() {
    for starter in starters() {
        let mut session = Kernel::new(starter).start();
        session.ok("for i in 1 2 3 4 5; do (sleep 0.01 >/dev/null 2>&1 &) ; done; sleep 0.2");
        assert_eq!(session.ok("grep -l '^State:.Z' /proc/[0-9]*/status | wc -l"), "0");
    }
}
