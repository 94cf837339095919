//! Query mode of Python.

use std::path::Path;

use bai_proto::runner::{Record, Request};

use crate::harness::{Kernel, Said, Session, follow, next};

const PYTHON: &str = "/usr/bin/python3";

/// A session, or the reason why there is none.
fn python() -> Option<Session> {
    if !Path::new(PYTHON).exists() {
        println!("SKIPPED: query mode of Python, because {PYTHON} is not installed");
        return None;
    }
    Some(Kernel::of("python", Some(PYTHON)).start())
}

fn assert_said(said: &Said, out: &str, err: &str, code: i32) {
    assert_eq!(
        (said.out.as_str(), said.err.as_str(), said.code),
        (out, err, Some(code))
    );
}

#[test]
fn values_stay_and_the_last_one_is_shown() {
    let Some(mut session) = python() else { return };
    assert_said(&session.code("x = 6"), "", "", 0);
    assert_said(&session.code("x * 7"), "42", "", 0);
    assert_said(&session.code("_ + 1;"), "", "", 0);
    assert_said(&session.code("print(_)\n'é한🙂'"), "42\n'é한🙂'", "", 0);
    assert_said(&session.code(""), "", "", 0);
    assert_said(&session.code("# nothing"), "", "", 0);
    let names = session.code("sorted(name for name in globals() if not name.startswith('__'))");
    assert_said(&names, "['x']", "", 0);
    let long = session.code("print('x' * 3_000_000)");
    assert_eq!(long.out.len(), 3_000_001);
    let names = session.code("import os; sorted(os.listdir('/proc/self/fd'))[:5] and __name__");
    assert_said(&names, "'__main__'", "", 0);
}

#[test]
fn input_is_asked_for() {
    let Some(mut session) = python() else { return };
    let said = session.code_with("name = input('name? ')\nprint('got', name)", &["foo"]);
    assert_said(&said, "name? got foo\n", "", 0);
    assert_eq!(said.asked, [Some(false)]);
    let said = session.code_with("import getpass\ngetpass.getpass()", &["se cret\n"]);
    assert_said(&said, "Password: 'se cret'", "", 0);
    assert_eq!(said.asked, [Some(true)]);
    let said = session.code_with(
        "import sys\n[sys.stdin.readline(), input(), next(sys.stdin)]",
        &["a", "", "é"],
    );
    assert_said(&said, "['a\\n', '', 'é\\n']", "", 0);
    // Typed before it is asked for, and then not left for the next run.
    session.send(&Request::Code(
        "import time\nprint(1)\nwhile not time.sleep(0.05): break\ntime.sleep(0.2)\nprint(input())".into(),
    ));
    while !matches!(next(&mut session.stream), Record::Stdout(_)) {}
    session.send(&Request::Input("early".into()));
    session.send(&Request::Input("too much".into()));
    let said = follow(&mut session.stream, &[]);
    assert_said(&said, "early\n", "", 0);
    assert_said(&session.code_with("input()", &["fresh"]), "'fresh'", "", 0);
    let thread = session.code("from threading import Thread\nt = Thread(target=input); t.start(); t.join()");
    assert!(thread.err.contains("only the main thread"), "{thread:?}");
}

#[test]
fn tracebacks_show_the_users_code_only() {
    let Some(mut session) = python() else { return };
    session.code("def f():\n    return 1 / 0");
    let expected = "Traceback (most recent call last):
  File \"<cell 2>\", line 2, in <module>
    f()
  File \"<cell 1>\", line 2, in f
    return 1 / 0
ZeroDivisionError: division by zero
";
    let said = session.code("x = 1\nf()");
    let is_mark = |line: &&str| line.trim_matches([' ', '~', '^']).is_empty();
    let without_marks: Vec<&str> = said.err.lines().filter(|line| !is_mark(line)).collect();
    assert_eq!(without_marks, expected.lines().collect::<Vec<_>>());
    assert_eq!((said.out.as_str(), said.code), ("", Some(0)));
    let said =
        session.code("try:\n    f()\nexcept ZeroDivisionError as e:\n    raise ValueError('é') from e");
    assert!(
        said.err.contains("direct cause") && said.err.ends_with("ValueError: é\n"),
        "{said:?}"
    );
    assert!(
        !said.err.contains("<bai>") && !said.err.contains("<string>"),
        "{said:?}"
    );
    let said = session.code("x = (1,\ny = = 2");
    assert!(
        said.err.contains("<cell 4>") && said.err.contains("SyntaxError"),
        "{said:?}"
    );
    let said = session.code("x = '\0'");
    assert!(said.err.contains("null"), "{said:?}");
    let said = session.code("def g(): g()\ng()");
    assert!(said.err.contains("RecursionError"), "{said:?}");
    let said = session.code("import traceback\ntry: f()\nexcept Exception: traceback.print_exc()");
    assert!(said.err.contains("return 1 / 0"), "{said:?}");
    assert_said(&session.code("x"), "1", "", 0);
}

#[test]
fn exits_have_their_codes_and_keep_the_state() {
    let Some(mut session) = python() else { return };
    session.code("import sys; x = 5");
    assert_said(&session.code("sys.exit(3)"), "", "", 3);
    assert_said(&session.code("sys.exit()"), "", "", 0);
    assert_said(&session.code("sys.exit(-1)"), "", "", 255);
    assert_said(&session.code("sys.exit('why')"), "", "why\n", 1);
    assert_said(&session.code("x"), "5", "", 0);
}

#[test]
fn rich_values_are_shown_richly() {
    let Some(mut session) = python() else { return };
    let class = |method: &str, result: &str| {
        format!(
            "class R:\n    def {method}(self, **_): return {result}\n    def __repr__(self): return 'plain'\nR()"
        )
    };
    let said = session.code(&class("_repr_html_", "'<b>é</b>'"));
    assert_eq!(
        (said.html.as_slice(), said.out.as_str()),
        (["<b>é</b>".to_owned()].as_slice(), "")
    );
    let media = |mime: &str, data: &str| vec![(mime.to_owned(), data.to_owned())];
    let said = session.code(&class("_repr_png_", "b'\\x89PNG'"));
    assert_eq!(said.media, media("image/png", "iVBORw=="));
    let said = session.code(&class("_repr_svg_", "'<svg/>', {}"));
    assert_eq!(said.media, media("image/svg+xml", "<svg/>"));
    let said = session.code(&class(
        "_repr_mimebundle_",
        "{'text/plain': 'x', 'image/png': 'abcd'}",
    ));
    assert_eq!(said.media, media("image/png", "abcd"));
    for nothing in ["None", "1 / 0"] {
        assert_said(&session.code(&class("_repr_html_", nothing)), "plain", "", 0);
    }
    let said = session.code(&format!("{}\ndisplay(1, R())\nR", class("_repr_html_", "'<i>'")));
    assert_eq!(
        (said.out.as_str(), said.html.len()),
        ("1\n<class '__main__.R'>", 1)
    );
    let said = session.code(&class("__repr__", "1 / 0"));
    assert!(
        said.err.contains("ZeroDivisionError") || said.out == "plain",
        "{said:?}"
    );
}

#[test]
fn names_are_completed() {
    let Some(mut session) = python() else { return };
    session.code("import os\nclass A: attribute = 1; _hidden = 2\nvariable = A()");
    for (request, expected) in [
        (r#"{"code": "x = varia"}"#, r#"["variable"]"#),
        (r#"{"code": "variable."}"#, r#"["variable.attribute"]"#),
        (r#"{"code": "variable._hid"}"#, r#"["variable._hidden"]"#),
        (
            r#"{"code": "os.path.basen", "row": 0, "col": 13, "line": "os.path.basen", "post": ""}"#,
            r#"["os.path.basename"]"#,
        ),
        (r#"{"code": "whi"}"#, r#"["while"]"#),
        (r#"{"code": "nothing.x"}"#, "[]"),
        (r#"{"code": "os.system('x')."}"#, "[]"),
    ] {
        assert_eq!(session.complete(request), expected, "{request}");
    }
    // Whatever comes, an array goes.
    for request in ["", "[]]", "{\"code\": 5, \"col\": -1}"] {
        assert!(session.complete(request).starts_with("[\"A\","), "{request}");
    }
}

#[test]
fn interrupts_end_the_run_and_keep_the_state() {
    let Some(mut session) = python() else { return };
    session.code("import time, os, subprocess; x = 5");
    for code in [
        "print(1)\nwhile True: pass",
        "print(1)\ntime.sleep(1000)",
        "print(1)\nsubprocess.run(['sleep', '1000'])",
        "input()",
    ] {
        let said = session.interrupt(code);
        assert!(
            said.err.ends_with("KeyboardInterrupt\n") || said.err.ends_with("KeyboardInterrupt: \n"),
            "{code}: {said:?}"
        );
        assert!(!said.err.contains("<bai>"), "{said:?}");
        assert_eq!(said.code, Some(0));
    }
    // One interrupt is one: the next question is asked.
    session.send(&Request::Code(
        "try: print(1), time.sleep(1000)\nexcept KeyboardInterrupt: print(2)\nprint(input())".into(),
    ));
    while !matches!(next(&mut session.stream), Record::Stdout(_)) {}
    session.send(&Request::Interrupt);
    assert_said(&follow(&mut session.stream, &["yes"]), "2\nyes\n", "", 0);
    // A terminal would interrupt what is waited for, too.
    let said = session.interrupt("os.system('echo 1; sleep 1000')");
    assert_said(&said, "2", "", 0);
    // Nothing to interrupt.
    session.send(&Request::Interrupt);
    assert_said(&session.code("os.system('exit 0'), x"), "(0, 5)", "", 0);
}

#[test]
fn output_arrives_while_the_run_goes_on() {
    let Some(mut session) = python() else { return };
    session.send(&Request::Code(
        "import time\nprint('now')\ntime.sleep(1000)".into(),
    ));
    assert_eq!(next(&mut session.stream), Record::Stdout(b"now\n".to_vec()));
    session.send(&Request::Interrupt);
    follow(&mut session.stream, &[]);
    let said = session.code(
        "import subprocess, threading, sys\nprint('a')\nsubprocess.run(['sh', '-c', 'echo b; echo c >&2'])\nt = threading.Thread(target=lambda: print('d')); t.start(); t.join()\nsys.stdout.buffer.write(b'\\xed\\x95\\x9c\\n'); None",
    );
    assert_said(&said, "a\nb\nd\n한\n", "c\n", 0);
    // After the run, too.
    session.send(&Request::Code(
        "def later():\n    time.sleep(0.1)\n    print('later')\nthreading.Thread(target=later).start()"
            .into(),
    ));
    let mut seen = Vec::new();
    while seen.len() < 2 {
        match next(&mut session.stream) {
            Record::Stdout(bytes) => seen.push(String::from_utf8_lossy(&bytes).into_owned()),
            Record::Finished { .. } => seen.push("finished".into()),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, ["finished", "later\n"]);
}

#[test]
fn forks_and_closed_streams_do_no_harm() {
    let Some(mut session) = python() else { return };
    let fork = "import os, sys\npid = os.fork()\nif pid == 0:\n    print('child')\n    display(1)\nelse:\n    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 'parent')";
    assert_said(&session.code(fork), "child\n1\n0 parent\n", "", 0);
    let pool = "import multiprocessing\nwith multiprocessing.get_context('fork').Pool(2) as pool: print(pool.map(abs, [-1, -2]))";
    assert_said(&session.code(pool), "[1, 2]\n", "", 0);
    let fork = "pid = os.fork()\nif pid == 0: sys.exit(7)\nos.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])";
    assert_said(&session.code(fork), "7", "", 0);
    session.code("sys.stdout.close()");
    assert_said(&session.code("print('again')"), "again\n", "", 0);
    session.code("os.close(1); os.close(2)");
    assert_said(
        &session.code("print('again'); print('err', file=sys.stderr)"),
        "again\n",
        "err\n",
        0,
    );
}

#[test]
fn an_interpreter_that_dies_is_replaced() {
    let Some(mut session) = python() else { return };
    for (code, why, exit_code) in [
        ("os._exit(3)", "exited with code 3", 3),
        ("os.kill(os.getpid(), 9)", "was killed by SIGKILL", 137),
        ("import ctypes; ctypes.string_at(0)", "was killed by SIGSEGV", 139),
        (
            "os.write(4, b'nonsense\\n'); import time; time.sleep(1000)",
            "wrote to a pipe",
            137,
        ),
        ("os.closerange(3, 9)", "exited with code", 1),
    ] {
        let said = session.code(&format!("import os; x = 1; print('before')\n{code}"));
        assert_eq!(
            (said.out.as_str(), said.code),
            ("before\n", Some(exit_code)),
            "{code}: {said:?}"
        );
        assert!(
            said.err.contains(why) && said.err.contains("a new one starts"),
            "{code}: {said:?}"
        );
        assert!(session.code("x").err.contains("NameError"));
    }
    // Even while nothing runs.
    session.code("import os, threading, time\nopen('pid', 'w').write(str(os.getpid()))\ndef die():\n    time.sleep(0.05)\n    os._exit(4)\nthreading.Thread(target=die).start()");
    // Until its last thread has let go of everything.
    session.ok("p=$(cat pid); until set -- /proc/$p/task/*; [ $# = 1 ] && grep -q '^State:.Z' /proc/$p/status; do sleep 0.01; done");
    let said = session.code("6 * 7");
    assert_eq!((said.out.as_str(), said.code), ("42", Some(0)));
    assert!(said.err.contains("exited with code 4"), "{said:?}");
}
