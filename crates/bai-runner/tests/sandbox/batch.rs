//! Batch mode, and query mode of the languages without an interpreter that stays.

use std::fs;
use std::path::Path;
use std::process::Command;

use bai_proto::runner::{Record, Request};
use bai_proto::sandbox::Bind;

use crate::harness::{Kernel, Said, Session, follow, next};

/// A language, its program, the main file with a program that prints what it reads, the same as a query, and whether it is
/// built first.
struct Case {
    runtime_type: &'static str,
    program: &'static str,
    main: &'static str,
    batch: &'static str,
    query: &'static str,
    is_built: bool,
    /// Whether waiting for input is noticed; where it is not, the program says first that it runs.
    asks: bool,
}

const CASES: &[Case] = &[
    Case {
        runtime_type: "python",
        program: "python3",
        main: "main.py",
        batch: "print('got', input()); raise SystemExit(3)",
        query: "print(6*7)",
        is_built: false,
        asks: true,
    },
    Case {
        runtime_type: "shell",
        program: "sh",
        main: "main.sh",
        batch: "read x; echo got $x; exit 3",
        query: "echo $((6*7))",
        is_built: false,
        asks: true,
    },
    Case {
        runtime_type: "c",
        program: "gcc",
        main: "main.c",
        batch: "#include <stdio.h>\nint main() { char x[99]; scanf(\"%98s\", x); printf(\"got %s\\n\", x); return 3; }",
        query: "#include <stdio.h>\n#include <math.h>\nint main() { volatile double x = 42; printf(\"%g\\n\", sqrt(x * x)); }",
        is_built: true,
        asks: true,
    },
    Case {
        runtime_type: "cpp",
        program: "g++",
        main: "main.cpp",
        batch: "#include <iostream>\nint main() { std::string x; std::cin >> x; std::cout << \"got \" << x << std::endl; return 3; }",
        query: "#include <iostream>\nint main() { std::cout << 6 * 7 << std::endl; }",
        is_built: true,
        asks: true,
    },
    Case {
        runtime_type: "rust",
        program: "rustc",
        main: "main.rs",
        batch: "fn main() { let mut x = String::new(); std::io::stdin().read_line(&mut x).unwrap(); print!(\"got {x}\"); std::process::exit(3) }",
        query: "fn main() { println!(\"{}\", 6 * 7) }",
        is_built: true,
        asks: true,
    },
    Case {
        runtime_type: "golang",
        program: "go",
        main: "main.go",
        batch: "package main\nimport (\"fmt\"; \"os\")\nfunc main() { var x string; fmt.Scan(&x); fmt.Println(\"got\", x); os.Exit(3) }",
        query: "package main\nimport \"fmt\"\nfunc main() { fmt.Println(6 * 7) }",
        is_built: true,
        asks: true,
    },
    Case {
        runtime_type: "java",
        program: "javac",
        main: "Main.java",
        batch: "public class Main { public static void main(String[] a) { System.out.println(\"got \" + new java.util.Scanner(System.in).next()); System.exit(3); } }",
        query: "class Q { public static void main(String[] a) { System.out.println(6 * 7); } }",
        is_built: true,
        asks: true,
    },
    Case {
        runtime_type: "nodejs",
        program: "node",
        main: "main.js",
        batch: "console.log('ready'); process.stdin.once('data', x => { console.log('got ' + String(x).trim()); process.exit(3) })",
        query: "console.log(6 * 7)",
        is_built: false,
        asks: false,
    },
    Case {
        runtime_type: "lua",
        program: "lua",
        main: "main.lua",
        batch: "print('got ' .. io.read()) os.exit(3)",
        query: "print(6 * 7)",
        is_built: false,
        asks: true,
    },
    Case {
        runtime_type: "perl",
        program: "perl",
        main: "main.pl",
        batch: "print 'got ' . <STDIN>; exit 3",
        query: "print 6 * 7, \"\\n\"",
        is_built: false,
        asks: true,
    },
    Case {
        runtime_type: "r",
        program: "Rscript",
        main: "main.R",
        batch: "cat('got', readLines(file('stdin'), 1)); quit(status = 3)",
        query: "cat('42\\n')",
        is_built: false,
        asks: true,
    },
    Case {
        runtime_type: "ruby",
        program: "ruby",
        main: "main.rb",
        batch: "puts 'got ' + gets; exit 3",
        query: "puts 6 * 7",
        is_built: false,
        asks: true,
    },
    Case {
        runtime_type: "php",
        program: "php",
        main: "main.php",
        batch: "<?php echo 'got ' . fgets(STDIN); exit(3);",
        query: "echo 6 * 7, \"\\n\";",
        is_built: false,
        asks: true,
    },
];

/// The program and what must be bound to see it.
fn find(program: &str) -> Option<(String, Option<String>)> {
    let path = format!("/usr/bin/{program}");
    if Path::new(&path).exists() {
        return Some((path, None));
    }
    if program != "rustc" {
        return None;
    }
    let asked = Command::new("rustc").args(["--print", "sysroot"]).output().ok()?;
    let root = String::from_utf8(asked.stdout).ok()?.trim().to_owned();
    Some((format!("{root}/bin/rustc"), Some(root)))
}

/// A session of a language, with a folder that its tests fill.
fn start(case: &Case) -> Option<(Kernel, Session)> {
    let Some((path, root)) = find(case.program) else {
        println!(
            "SKIPPED: {}, because {} is not installed",
            case.runtime_type, case.program
        );
        return None;
    };
    let mut kernel = Kernel::of(case.runtime_type, Some(&path));
    kernel.spec.binds.extend(root.map(|root| Bind {
        source: root.clone(),
        target: root,
        writable: false,
    }));
    let session = kernel.start();
    Some((kernel, session))
}

/// Sends the three steps; the exit codes of the first two and what the third said.
fn batch(session: &mut Session, steps: [&str; 3], answers: &[&str]) -> (Option<i32>, Option<i32>, Said) {
    session.send(&Request::Clean(steps[0].into()));
    session.send(&Request::Build(steps[1].into()));
    session.send(&Request::Exec(steps[2].into()));
    let (mut clean, mut build, mut text) = (None, None, String::new());
    while build.is_none() {
        match next(&mut session.stream) {
            Record::CleanFinished { exit_code } => clean = exit_code,
            Record::BuildFinished { exit_code } => build = exit_code,
            Record::Stdout(bytes) | Record::Stderr(bytes) => text += &String::from_utf8_lossy(&bytes),
            other => panic!("{other:?}"),
        }
    }
    let mut said = follow(&mut session.stream, answers);
    said.err.insert_str(0, &text);
    (clean, build, said)
}

#[test]
fn programs_are_built_and_run_by_default() {
    for case in CASES {
        let Some((kernel, mut session)) = start(case) else {
            continue;
        };
        let name = case.runtime_type;
        // Nothing is there yet.
        let (clean, build, said) = batch(&mut session, ["*", "*", "*"], &[]);
        assert_eq!((clean, said.code), (Some(0), Some(127)), "{name}: {said:?}");
        assert_eq!(build != Some(0), case.is_built, "{name}: {said:?}");
        assert!(said.err.contains("cannot find"), "{name}: {said:?}");
        fs::write(kernel.path("work").join(case.main), case.batch).expect("a file");
        let (clean, build, said) = if case.asks {
            batch(&mut session, ["*", "*", "*"], &["한"])
        } else {
            session.send(&Request::Input("lost".into()));
            session.send(&Request::Clean("*".into()));
            session.send(&Request::Build("*".into()));
            session.send(&Request::Exec("*".into()));
            // Nothing ran yet when the first line was typed; what is typed while it runs is read, without a question.
            while !matches!(next(&mut session.stream), Record::Stdout(said) if said == b"ready\n") {}
            session.send(&Request::Input("한".into()));
            (Some(0), Some(0), follow(&mut session.stream, &[]))
        };
        assert_eq!(
            (clean, build, said.code),
            (Some(0), Some(0), Some(3)),
            "{name}: {said:?}"
        );
        assert!(said.out.starts_with("got "), "{name}: {said:?}");
        assert_eq!(said.asked.len(), usize::from(case.asks), "{name}");
        let said = session.code(case.query);
        assert_eq!(
            (said.out.as_str(), said.code),
            ("42\n", Some(0)),
            "{name}: {said:?}"
        );
        if case.is_built {
            let said = session.code("this is no program");
            assert!(said.code != Some(0) && !said.err.is_empty(), "{name}: {said:?}");
        }
    }
}

#[test]
fn steps_have_codes_and_a_failed_build_prevents_exec() {
    let mut session = Kernel::of("shell", None).start();
    let (clean, build, said) = batch(&mut session, ["", "", "echo hi; echo err >&2; exit 3"], &[]);
    assert_eq!((clean, build, said.code), (Some(0), Some(0), Some(3)));
    assert_eq!((said.out.as_str(), said.err.as_str()), ("hi\n", "err\n"));
    let (clean, build, said) = batch(&mut session, ["false", "exit 2", "echo never"], &[]);
    assert_eq!((clean, build, said.code), (Some(1), Some(2), Some(127)));
    assert_eq!(said.out, "");
    assert_eq!(session.sh("echo again").out, "again\n");
    assert_eq!(session.sh("kill -SEGV $$").code, Some(139));
    assert_eq!(session.sh("nothing-like-this").code, Some(127));
    assert_eq!(session.sh("echo \0").code, Some(-1));
    let said = session.sh("printf 'all:\\n\\techo made\\nclean:\\n\\techo cleaned\\n' > Makefile");
    assert_eq!(said.code, Some(0));
    if Path::new("/usr/bin/make").exists() {
        let (clean, build, said) = batch(&mut session, ["*", "*", ""], &[]);
        assert_eq!((clean, build, said.code), (Some(0), Some(0), Some(0)));
        assert_eq!(said.err, "echo made\nmade\n");
    } else {
        println!("SKIPPED: makefiles, because make is not installed");
    }
}

#[test]
fn what_goes_on_in_the_background_keeps_nobody_waiting() {
    let mut session = Kernel::of("shell", None).start();
    assert_eq!(session.sh("(sleep 0.2; echo later) & echo now").out, "now\n");
    assert_eq!(next(&mut session.stream), Record::Stdout(b"later\n".to_vec()));
    assert_eq!(session.sh("exec >&- 2>&-; sleep 0.1; exit 4").code, Some(4));
}

#[test]
fn batch_programs_are_interrupted() {
    is_interrupted(&Kernel::of("shell", None));
    let mut kernel = Kernel::of("shell", None);
    kernel.start_in_the_background();
    is_interrupted(&kernel);
}

fn is_interrupted(kernel: &Kernel) {
    let mut session = kernel.start();
    session.send(&Request::Exec("echo go; sleep 1000; echo never".into()));
    assert_eq!(next(&mut session.stream), Record::Stdout(b"go\n".to_vec()));
    session.interrupt_now();
    let said = follow(&mut session.stream, &[]);
    assert_eq!((said.out.as_str(), said.code), ("", Some(130)));
}
