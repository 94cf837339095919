//! Query mode by Jupyter kernels: those of 19.06 and of today, which `cargo xtask test` installs.

use std::path::{Path, PathBuf};
use std::time::Instant;

use bai_proto::runner::{Record, Request};
use bai_proto::sandbox::Bind;

use crate::harness::{Kernel, Said, Session, follow, next};

/// A kernel of an environment below `target/interop`, or the reason why there is none.
fn kernel(environment: &str) -> Option<Kernel> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../target/interop")
        .join(environment);
    let Ok(root) = root.canonicalize() else {
        println!(
            "SKIPPED: the Jupyter kernel of {environment}, because target/interop/{environment} has not been made; \
             `cargo xtask test` makes it where there is a Python for it"
        );
        return None;
    };
    let mut kernel = Kernel::of("python", root.join("bin/python3").to_str());
    for folder in [Some(root.clone()), base(&root)].into_iter().flatten() {
        let folder = folder.display().to_string();
        kernel.spec.binds.push(Bind {
            source: folder.clone(),
            target: folder,
            writable: false,
        });
    }
    // A thread for each socket, and some more.
    kernel.spec.limits.processes = Some(1024);
    Some(kernel)
}

/// Where the Python of an environment is installed, unless that is the system.
fn base(environment: &Path) -> Option<PathBuf> {
    let program = environment.join("bin/python3").canonicalize().ok()?;
    let prefix = program.parent()?.parent()?.to_owned();
    (!prefix.starts_with("/usr")).then_some(prefix)
}

fn with_kernels(test: impl Fn(&mut Session)) {
    for environment in ["jupyter-19.06", "jupyter"] {
        if let Some(kernel) = kernel(environment) {
            println!("with {environment}");
            test(&mut kernel.start());
        }
    }
}

fn assert_said(said: &Said, out: &str, err: &str, code: i32) {
    assert_eq!(
        (said.out.as_str(), said.err.as_str(), said.code),
        (out, err, Some(code))
    );
}

#[test]
fn values_stay_and_the_last_one_is_shown() {
    with_kernels(|session| {
        assert_said(&session.code("x = 6"), "", "", 0);
        assert_said(&session.code("x * 7"), "42", "", 0);
        assert_said(&session.code("print(_)\n'é한🙂'"), "42\n'é한🙂'", "", 0);
        assert_said(&session.code(""), "", "", 0);
        assert_said(
            &session.code("import sys; print('o'); print('e', file=sys.stderr)"),
            "o\n",
            "e\n",
            0,
        );
        let long = session.code("print('x' * 30_000_000)");
        assert_eq!(long.out.len(), 30_000_001);
        let names = session.code("import os; os.getcwd(), os.environ['GREETING'], __name__");
        assert_said(&names, "('/home/work', 'hello', '__main__')", "", 0);
        let said = session.code("os.system('echo child; exit 3')");
        assert!(
            said.out.contains("child\n") || said.err.contains("child\n"),
            "{said:?}"
        );
        let said = session.code("!echo shell");
        assert!(said.out.starts_with("shell"), "{said:?}");
        let help = session.code("len?");
        assert!(help.out.contains("number of items"), "{help:?}");
        assert_eq!(
            session.sh("ls -A /tmp/.bai-* | wc -l").out.trim(),
            "6",
            "sockets and a file"
        );
    });
}

#[test]
fn errors_are_coloured_tracebacks_and_no_exit_codes() {
    with_kernels(|session| {
        let said = session.code("print(1)\nraise ValueError('x')");
        assert_eq!((said.out.as_str(), said.code), ("1\n", Some(0)));
        assert!(
            said.err.contains("\u{1b}[") && said.err.contains("ValueError"),
            "{said:?}"
        );
        // At once, and run all the same.
        for number in 0..5 {
            assert!(session.code("1 / 0").err.contains("ZeroDivisionError"));
            assert_said(&session.code(&format!("{number}")), &number.to_string(), "", 0);
        }
        assert!(session.code("this is no program").err.contains("SyntaxError"));
        assert!(session.code("import sys; sys.exit(3)").err.contains("SystemExit"));
        assert_said(&session.code("5"), "5", "", 0);
    });
}

#[test]
fn rich_values_are_shown_richly() {
    with_kernels(|session| {
        let class = |method: &str, result: &str| {
            format!(
                "class R:\n    def {method}(self, **_): return {result}\n    def __repr__(self): return 'plain'\nR()"
            )
        };
        let said = session.code(&class("_repr_html_", "'<b>é</b>'"));
        assert_eq!((said.html, said.out.as_str()), (vec!["<b>é</b>".to_owned()], ""));
        let media = |mime: &str, data: &str| vec![(mime.to_owned(), data.to_owned())];
        let said = session.code(&class("_repr_png_", "b'\\x89PNG'"));
        assert_eq!(said.media, media("image/png", "iVBORw=="));
        let said = session.code(&class("_repr_svg_", "'<svg/>'"));
        assert_eq!(said.media, media("image/svg+xml", "<svg/>"));
        let said = session.code(&format!(
            "from IPython.display import HTML, Markdown, clear_output, display\n{}; display(1, HTML('<i>')); clear_output()",
            class("_repr_html_", "None")
        ));
        assert_eq!(
            (said.out.as_str(), said.html.as_slice()),
            ("1\n", ["<i>".to_owned()].as_slice())
        );
        let said = session.code("display({'image/png': 'x' * 11_000_000}, raw=True)");
        assert!(said.err.contains("left out"), "{}", said.err);
        let said = session.code("from matplotlib import pyplot\npyplot.plot([1, 2])\npyplot.show()");
        if said.err.contains("ModuleNotFoundError") {
            println!("SKIPPED: figures of matplotlib, because this environment has none");
        } else {
            assert_eq!(said.media.len(), 1, "{said:?}");
            assert!(said.media[0].0 == "image/png" && said.media[0].1.starts_with("iVBORw0KGgo"));
        }
    });
}

#[test]
fn input_is_asked_for() {
    with_kernels(|session| {
        let said = session.code_with("name = input('name? ')\nprint('got', name)", &["foo"]);
        assert_said(&said, "name? got foo\n", "", 0);
        assert_eq!(said.asked, [Some(false)]);
        let said = session.code_with("import getpass\ngetpass.getpass()", &["se cret\n"]);
        assert!(said.out.ends_with("'se cret'"), "{said:?}");
        assert_eq!(said.asked, [Some(true)]);
        assert_said(
            &session.code_with("[input(), input()]", &["a", ""]),
            "['a', '']",
            "",
            0,
        );
        // Typed before it is asked for, and then not left for the next run.
        session.send(&Request::Code(
            "import time\nprint(1)\ntime.sleep(0.5)\nprint(input())".into(),
        ));
        while !matches!(next(&mut session.stream), Record::Stdout(_)) {}
        session.send(&Request::Input("early".into()));
        session.send(&Request::Input("too much".into()));
        assert!(follow(&mut session.stream, &[]).out.ends_with("early\n"));
        assert_said(&session.code_with("input()", &["fresh"]), "'fresh'", "", 0);
    });
}

#[test]
fn interrupts_end_the_run_and_keep_the_state() {
    with_kernels(|session| {
        session.code("import time, subprocess; x = 5");
        for code in [
            "print(1, flush=True)\nwhile True: pass",
            "print(1, flush=True)\ntime.sleep(1000)",
            "print(1, flush=True)\nsubprocess.run(['sleep', '1000'])",
            "input()",
        ] {
            let said = session.interrupt(code);
            assert!(said.err.contains("KeyboardInterrupt"), "{code}: {said:?}");
            assert_eq!(said.code, Some(0));
        }
        // Nothing to interrupt.
        session.send(&Request::Interrupt);
        assert_said(&session.code("x"), "5", "", 0);
    });
}

#[test]
fn names_are_completed() {
    with_kernels(|session| {
        session.code("import os\nclass A: attribute = 1; _hidden = 2\nvariable = A()");
        // Jedi may think for longer than anybody waits for an answer.
        session.code("%config IPCompleter.use_jedi = False");
        for (request, expected) in [
            (r#"{"code": "x = varia"}"#, r#"["variable"]"#),
            (r#"{"code": "variable.att"}"#, r#"["variable.attribute"]"#),
            (
                r#"{"code": "os.path.basen", "row": 0, "col": 13, "line": "os.path.basen", "post": ""}"#,
                r#"["os.path.basename"]"#,
            ),
            (r#"{"code": "nothing.x"}"#, "[]"),
        ] {
            assert_eq!(session.complete(request), expected, "{request}");
        }
        for request in ["", "[]]", "{\"code\": 5, \"col\": -1}"] {
            assert!(session.complete(request).starts_with('['), "{request}");
        }
    });
}

#[test]
fn a_kernel_that_dies_is_replaced() {
    with_kernels(|session| {
        session.code("import os; x = 5");
        let said = session.code("print('last words', flush=True); import time; time.sleep(0.5); os._exit(7)");
        assert_eq!((said.out.as_str(), said.code), ("last words\n", Some(7)));
        assert!(
            said.err.contains("exited with code 7; a new one starts"),
            "{said:?}"
        );
        assert!(session.code("x").err.contains("NameError"));
        let said = session.code("import os; os.kill(os.getpid(), 9)");
        assert_eq!(said.code, Some(137));
        assert!(said.err.contains("was killed by SIGKILL"), "{said:?}");
        // While nothing runs.
        session.code("x = 6; import os; pid = os.getpid()");
        let pid = session.code("pid").out;
        session.ok(&format!("kill -9 {pid}"));
        while session.sh(&format!("test -d /proc/{pid}")).code == Some(0) {}
        let said = session.code("1 + 1");
        assert_eq!((said.out.as_str(), said.code), ("2", Some(0)), "{said:?}");
        assert!(
            said.err.contains("was killed by SIGKILL; a new one starts"),
            "{said:?}"
        );
        // Who leaves is told of it with the next run.
        assert_eq!(session.code("exit").code, Some(0));
        let said = session.code("2 + 2");
        assert_eq!(said.out, "4");
        assert!(
            said.err.contains("a new one starts") || said.err.is_empty(),
            "{said:?}"
        );
    });
}

#[test]
fn much_output_ends_nothing() {
    with_kernels(|session| {
        let said = session.code("for _ in range(23): print('y' * 3_000_000, flush=True)");
        assert_eq!(said.out.len(), 64 << 20);
        assert!(said.err.contains("output truncated"), "{}", said.err);
        let said = session.code("print('z' * 70_000_000); x = 5");
        assert!(said.err.contains("more than 64 MiB"), "{}", said.err);
        assert_said(&session.code("x"), "5", "", 0);
        let said = session.code("for number in range(500): display(number)");
        assert_eq!(said.out.lines().count(), 500);
        let text = session.code("print('\\udcff')");
        assert_eq!(text.code, Some(0), "{text:?}");
        assert_said(&session.code("x"), "5", "", 0);
    });
}

#[test]
fn what_threads_print_later_arrives() {
    with_kernels(|session| {
        let said = session.code(
            "import threading\ngo = threading.Event()\ndef later(): go.wait(); print('later', flush=True)\n\
             t = threading.Thread(target=later); t.start()",
        );
        assert_said(&said, "", "", 0);
        let said = session.code("go.set(); t.join()");
        assert_said(&said, "later\n", "", 0);
        session.code("threading.Timer(0.3, lambda: print('much later', flush=True)).start()");
        let Record::Stdout(bytes) = next(&mut session.stream) else {
            panic!("output is expected")
        };
        assert!(bytes.starts_with(b"much later"));
    });
}

#[test]
fn batch_steps_do_not_wait_for_the_kernel() {
    with_kernels(|session| {
        assert_eq!(session.sh("echo at once").out, "at once\n");
        assert_said(&session.code("7"), "7", "", 0);
    });
}

#[test]
fn an_impatient_user_interrupts_the_start() {
    let Some(kernel) = kernel("jupyter") else { return };
    let mut session = kernel.start();
    session.send(&Request::Code("print('never')".into()));
    session.send(&Request::Interrupt);
    let said = follow(&mut session.stream, &[]);
    // It may have been ready by then.
    assert!(
        said.err == "KeyboardInterrupt\n" || said.out == "never\n",
        "{said:?}"
    );
    assert_said(&session.code("8"), "8", "", 0);
}

#[test]
fn a_kernel_that_does_not_start_says_why() {
    let mut kernel = Kernel::of("python", Some("/usr/bin/python3"));
    if !Path::new("/usr/bin/python3").exists() {
        println!("SKIPPED: a kernel that does not start, because /usr/bin/python3 is not installed");
        return;
    }
    let folder = kernel.path("work/jupyter/kernels/python3");
    std::fs::create_dir_all(&folder).expect("made");
    let spec =
        r#"{"argv": ["python", "-m", "no_such_kernel", "-f", "{connection_file}"], "language": "python"}"#;
    std::fs::write(folder.join("kernel.json"), spec).expect("written");
    kernel
        .spec
        .environ
        .insert("JUPYTER_PATH".to_owned(), "/home/work/jupyter".to_owned());
    let mut session = kernel.start();
    for _ in 0..2 {
        let said = session.code("1");
        assert_eq!(said.code, Some(127), "{said:?}");
        assert!(
            said.err
                .contains("the Jupyter kernel python3 does not start: it exited with code 1")
                && said.err.contains("No module named no_such_kernel"),
            "{said:?}"
        );
    }
    assert_eq!(session.sh("echo alive").out, "alive\n");
}

#[test]
fn other_languages_have_their_kernels() {
    if !Path::new("/usr/share/jupyter/kernels/ir").exists() {
        println!("SKIPPED: the Jupyter kernel of R, because it is not installed (Debian's r-cran-irkernel)");
        return;
    }
    let mut session = Kernel::of("r", Some("/usr/bin/Rscript")).start();
    let said = session.code("x <- 6");
    assert_eq!(said.code, Some(0), "{said:?}");
    let said = session.code("cat(x * 7, '\\n')");
    assert_eq!((said.out.as_str(), said.code), ("42 \n", Some(0)), "{said:?}");
    let said = session.code("stop('no')");
    assert!(said.err.contains("no") && said.code == Some(0), "{said:?}");
    let said = session.code_with("cat(readline('who? '))", &["me"]);
    assert_eq!(said.out, "who? me", "{said:?}");
    let said = session.interrupt("cat('1\\n'); flush.console(); while (TRUE) Sys.sleep(0.1)");
    assert_eq!(said.code, Some(0), "{said:?}");
    let said = session.code("data.frame(a = 1)");
    assert_eq!(said.html.len(), 1, "{said:?}");
    assert!(
        session
            .complete(r#"{"code": "Sys.getlocal"}"#)
            .contains("Sys.getlocale")
    );
    assert_eq!(session.code("quit(status = 5)").code, Some(0));
    assert_eq!(session.code("cat(1)").out, "1");
}

/// The runner's own interpreter shows figures as well, here those of the environment's matplotlib.
#[test]
fn figures_need_no_kernel() {
    let Some(mut kernel) = kernel("jupyter") else {
        return;
    };
    let packages = kernel.spec.runtime_path.as_deref().map(packages);
    let Some(packages) = packages.flatten() else {
        println!("SKIPPED: figures without a kernel, because target/interop/jupyter has no matplotlib");
        return;
    };
    kernel.spec.runtime_path = base_program(&kernel);
    kernel.spec.environ.insert("PYTHONPATH".to_owned(), packages);
    let mut session = kernel.start();
    let figure = "from matplotlib import pyplot\npyplot.plot([1, 2])\npyplot.show()\nNone";
    let said = session.code(figure);
    assert_eq!(said.media.len(), 1, "{said:?}");
    assert!(said.media[0].0 == "image/png" && said.media[0].1.starts_with("iVBORw0KGgo"));
    // A kernel would answer with an IPython shell.
    assert_eq!(session.code("'get_ipython' in globals()").out, "False");
}

/// Where the packages of an environment's Python are, matplotlib among them.
fn packages(python: &str) -> Option<String> {
    let asked = std::process::Command::new(python)
        .args([
            "-c",
            "import matplotlib, pathlib; print(pathlib.Path(matplotlib.__file__).parents[1])",
        ])
        .output()
        .ok()?;
    let printed = String::from_utf8(asked.stdout).ok()?;
    asked.status.success().then(|| printed.trim().to_owned())
}

/// Start times beside those of the runner's own interpreter. Prints, and asserts nothing about time.
#[test]
fn first_and_second_queries_are_measured() {
    let Some(with) = kernel("jupyter") else { return };
    let measure = |kernel: &Kernel| {
        let begun = Instant::now();
        let mut session = kernel.start();
        assert_eq!(session.code("print(6*7)").out, "42\n");
        let first = begun.elapsed();
        let begun = Instant::now();
        assert_eq!(session.code("print(6*7)").out, "42\n");
        (first, begun.elapsed())
    };
    let (first, second) = measure(&with);
    println!("Jupyter kernel: session to first output {first:?}, second query {second:?}");
    let mut without = kernel("jupyter").expect("found before");
    without.spec.runtime_path = base_program(&without);
    let (first, second) = measure(&without);
    println!("own interpreter: session to first output {first:?}, second query {second:?}");
}

/// The Python that an environment is made from, which has no kernel.
fn base_program(kernel: &Kernel) -> Option<String> {
    let program = Path::new(kernel.spec.runtime_path.as_deref()?)
        .canonicalize()
        .ok()?;
    Some(program.display().to_string())
}
