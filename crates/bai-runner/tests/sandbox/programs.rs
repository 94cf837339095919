//! What must keep working inside: the languages that people use.

use std::path::Path;

use crate::harness::{Kernel, starters};

/// Program, and a command that prints `42`.
const PROGRAMS: [(&str, &str); 8] = [
    (
        "/usr/bin/python3",
        "python3 -c 'import ssl, ctypes, threading, multiprocessing as m; p = m.Pool(2); print(sum(p.map(int, [40, 2])))'",
    ),
    ("/usr/bin/perl", "perl -e 'print 6*7'"),
    (
        "/usr/bin/gcc",
        "printf '#include <stdio.h>\\nint main(){printf(\"%%d\", 6*7);}' > a.c && gcc -O1 -o a a.c && ./a",
    ),
    (
        "/usr/bin/g++",
        "printf '#include <thread>\\n#include <iostream>\\nint main(){std::thread t([]{std::cout << 42;}); t.join();}' > b.cc && g++ -o b b.cc && ./b",
    ),
    (
        "/usr/bin/node",
        "node -e 'new (require(\"worker_threads\").Worker)(\"console.log(6*7)\", {eval: true})'",
    ),
    (
        "/usr/bin/java",
        "printf 'class A { public static void main(String[] a) { System.out.print(6*7); } }' > A.java && java -Xshare:auto A.java",
    ),
    (
        "/usr/bin/rustc",
        "echo 'fn main() { print!(\"{}\", 6*7) }' > r.rs && rustc r.rs && ./r",
    ),
    (
        "/usr/bin/gdb",
        "cp /usr/bin/true t && gdb -q -batch -ex run -ex 'print 6*7' ./t 2>/dev/null | sed -n 's/^[$]1 = //p'",
    ),
];

#[test]
fn languages_work() {
    for starter in starters() {
        let mut kernel = Kernel::new(starter);
        kernel.spec.limits.processes = Some(1024);
        let mut session = kernel.start();
        for (program, command) in PROGRAMS {
            if !Path::new(program).exists() {
                println!("SKIPPED: {program}, which is not installed");
                continue;
            }
            assert_eq!(session.ok(command), "42", "{starter:?}: {program}");
        }
    }
}

#[test]
fn names_and_terminals_work() {
    for starter in starters() {
        let mut session = Kernel::new(starter).start();
        assert_eq!(
            session.ok("getent passwd 1000 | cut -d: -f1,6; getent hosts localhost | wc -l"),
            "work:/home/work\n1"
        );
        assert_eq!(
            session.ok("script -qec 'test -t 0 && echo terminal' /dev/null | tr -d '\\r'"),
            "terminal"
        );
        assert_eq!(session.ok("bash -c 'cat <(echo 42)'"), "42");
    }
}
