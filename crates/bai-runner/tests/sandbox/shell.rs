//! Query mode of the shell, as the host's bash and as a POSIX shell.

use std::path::Path;

use crate::harness::{Kernel, Session};

/// Runs a test with each shell that is here.
fn with_shells(test: impl Fn(&mut Session)) {
    for shell in ["/bin/sh", "/usr/bin/dash", "/usr/bin/bash"] {
        if Path::new(shell).exists() {
            println!("{shell}");
            test(&mut Kernel::of("shell", Some(shell)).start());
        } else {
            println!("SKIPPED: query mode of {shell}, because it is not installed");
        }
    }
}

#[test]
fn variables_folders_and_functions_stay() {
    with_shells(|session| {
        session.code("x='a b'; f() { echo \"f:$1\"; }; mkdir d; cd d");
        let said = session.code("echo \"$x\"; f 한; pwd; echo \"$GREETING\"; false");
        assert_eq!(said.out, "a b\nf:한\n/home/work/d\nhello\n");
        assert_eq!((said.err.as_str(), said.code), ("", Some(1)));
        assert_eq!(session.code("return 7").code, Some(7));
        assert_eq!(
            session
                .code("echo \"$x\"; ls /proc/self/fd | wc -l")
                .out
                .lines()
                .next(),
            Some("a b")
        );
    });
}

#[test]
fn input_is_asked_for_when_something_reads() {
    with_shells(|session| {
        let said = session.code_with("read a; read b; echo \"$a-$b\"", &["one", "two"]);
        assert_eq!((said.out.as_str(), said.code), ("one-two\n", Some(0)));
        assert_eq!(said.asked, [None, None]);
        let said = session.code_with("head -n1", &["three"]);
        assert_eq!(said.out, "three\n");
        assert_eq!(
            session
                .code("echo no | { read x; echo $x; }; read y </dev/null; echo end")
                .out,
            "no\nend\n"
        );
    });
}

#[test]
fn exits_end_the_shell_and_the_next_run_has_a_new_one() {
    with_shells(|session| {
        let said = session.code("x=1; (sleep 30; echo never) & echo out; exit 3");
        assert_eq!(
            (said.out.as_str(), said.err.as_str(), said.code),
            ("out\n", "", Some(3))
        );
        assert_eq!(session.code("echo \"x=$x\"").out, "x=\n");
        let said = session.code("kill -9 $$");
        assert_eq!(said.code, Some(137));
        assert!(said.err.contains("was killed by SIGKILL"), "{said:?}");
        assert_eq!(session.code("echo again").out, "again\n");
    });
}

#[test]
fn errors_keep_the_shell() {
    with_shells(|session| {
        session.code("x=1");
        let said = session.code("if then fi");
        assert!(!said.err.is_empty() && said.code != Some(0), "{said:?}");
        assert_eq!(session.code("nothing-like-this").code, Some(127));
        let said = session.code("echo $x; rm -rf /tmp/* /tmp/.bai*");
        assert_eq!(said.out, "1\n");
        assert_eq!(session.code("echo $x").out, "1\n");
    });
}

#[test]
fn interrupts_end_the_run_and_keep_the_state() {
    with_shells(|session| {
        session.code("x=1; f() { while :; do sleep 0.01; done; }; g() { f; echo never; }");
        for code in [
            "echo go; while :; do :; done",
            "echo go; g; echo never",
            "echo go; sleep 1000; echo never",
            "read y",
        ] {
            let said = session.interrupt(code);
            assert_eq!(said.code, Some(130), "{code}: {said:?}");
            assert!(!said.out.contains("never"), "{code}: {said:?}");
        }
        let said = session.code("f2() { echo in; return 3; }; f2; echo $? $x");
        assert_eq!((said.out.as_str(), said.code), ("in\n3 1\n", Some(0)));
    });
}

#[test]
fn background_jobs_go_on() {
    with_shells(|session| {
        let said = session.code("(sleep 0.1; echo background > done) & echo started");
        assert_eq!(said.out, "started\n");
        assert_eq!(session.code("wait; cat done").out, "background\n");
        // One that prints without end does not keep others from running.
        assert_eq!(session.code("yes >&2 & echo $! > pid").code, Some(0));
        assert_eq!(session.code("kill $(cat pid); echo killed").out, "killed\n");
    });
}
