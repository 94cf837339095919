//! The languages as a table (`agent-protocol.md` 6.11, with its broken build lines mended).
//!
//! Commands are POSIX shell; `$R` is the runtime's path, `$D` and `$F` folder and file of a query.

use std::collections::BTreeMap;
use std::process::Command;

/// One runtime type.
#[derive(Debug)]
pub struct Language {
    /// `ai.backend.runtime-type`.
    pub name: &'static str,
    /// The word before `-kernel:` in messages.
    pub log_name: &'static str,
    /// The runtime where the image names none; found on `PATH`.
    pub runtime: &'static str,
    /// Whether `clean *` runs `make clean`.
    pub cleans_with_make: bool,
    /// What `build *` runs, after the check for a makefile.
    pub build: Option<&'static str>,
    /// Without this file `exec *` answers 127.
    pub main_file: Option<&'static str>,
    /// What `exec *` runs.
    pub exec: Option<&'static str>,
    /// Query mode by a file of this name and this command.
    pub query_file: Option<(&'static str, &'static str)>,
    /// Query mode by an interpreter that stays.
    pub driver: Option<Driver>,
}

/// An interpreter that stays, and how it is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    Python,
    Shell,
}

/// Reads file names from descriptor 3, runs each in itself, and writes events to descriptor 4. `trap` keeps it alive when
/// what it runs is interrupted.
const SHELL_DRIVER: &str = include_str!("shell_driver.sh");
const PYTHON_DRIVER: &str = include_str!("python_driver.py");

impl Driver {
    /// Appends what makes the interpreter run the driver.
    pub fn arguments(self, command: &mut Command) {
        match self {
            // -u is not needed: the driver flushes at the end of each run.
            Self::Python => command.args(["-c", PYTHON_DRIVER]),
            Self::Shell => command.args(["-c", SHELL_DRIVER]),
        };
    }
}

const NONE: Language = Language {
    name: "",
    log_name: "",
    runtime: "",
    cleans_with_make: false,
    build: None,
    main_file: None,
    exec: None,
    query_file: None,
    driver: None,
};

const LANGUAGES: &[Language] = &[
    Language {
        name: "python",
        log_name: "python",
        runtime: "python3",
        build: Some("if [ -f setup.py ]; then \"$R\" -m pip install --user -e .; fi"),
        main_file: Some("main.py"),
        exec: Some("exec \"$R\" main.py"),
        driver: Some(Driver::Python),
        ..NONE
    },
    Language {
        name: "shell",
        log_name: "shell",
        runtime: "/bin/sh",
        main_file: Some("main.sh"),
        exec: Some("exec \"$R\" main.sh"),
        driver: Some(Driver::Shell),
        ..NONE
    },
    Language {
        name: "c",
        log_name: "c",
        runtime: "gcc",
        cleans_with_make: true,
        build: Some(
            "if [ -f main.c ]; then \"$R\" -o main $(find . -name '*.c') -lm; else echo 'c-kernel: cannot find main.c.' >&2; exit 127; fi",
        ),
        exec: Some(
            "if [ -x ./main ]; then exec ./main; elif [ -x ./a.out ]; then exec ./a.out; else echo 'c-kernel: cannot find the executable.' >&2; exit 127; fi",
        ),
        query_file: Some((
            "query.c",
            "\"$R\" -o \"$D/query\" \"$F\" -lm && exec \"$D/query\"",
        )),
        ..NONE
    },
    Language {
        name: "cpp",
        log_name: "cpp",
        runtime: "g++",
        cleans_with_make: true,
        build: Some(
            "if [ -f main.cpp ]; then \"$R\" -o main $(find . -name '*.cpp'); else echo 'cpp-kernel: cannot find main.cpp.' >&2; exit 127; fi",
        ),
        exec: Some(
            "if [ -x ./main ]; then exec ./main; elif [ -x ./a.out ]; then exec ./a.out; else echo 'cpp-kernel: cannot find the executable.' >&2; exit 127; fi",
        ),
        query_file: Some(("query.cpp", "\"$R\" -o \"$D/query\" \"$F\" && exec \"$D/query\"")),
        ..NONE
    },
    Language {
        name: "rust",
        log_name: "rust",
        runtime: "rustc",
        build: Some(
            "if [ -f Cargo.toml ]; then cargo build; elif [ -f main.rs ]; then \"$R\" -o main main.rs; else echo 'rust-kernel: cannot find main.rs or Cargo.toml.' >&2; exit 127; fi",
        ),
        exec: Some(
            "for f in $(find target/debug target/release -maxdepth 1 -type f -perm -100 2>/dev/null) ./main; do if [ -x \"$f\" ]; then exec \"$f\"; fi; done; echo 'rust-kernel: cannot find the executable.' >&2; exit 127",
        ),
        query_file: Some(("query.rs", "\"$R\" -o \"$D/query\" \"$F\" && exec \"$D/query\"")),
        ..NONE
    },
    Language {
        name: "golang",
        log_name: "go",
        runtime: "go",
        build: Some("\"$R\" build -o main ."),
        exec: Some("exec ./main"),
        query_file: Some(("query.go", "exec \"$R\" run \"$F\"")),
        ..NONE
    },
    Language {
        name: "java",
        log_name: "java",
        runtime: "javac",
        build: Some("\"$R\" -d . $(find . -name '*.java')"),
        exec: Some(
            "if [ -f main/Main.class ]; then exec java -cp . main.Main; else exec java -cp . Main; fi",
        ),
        query_file: Some(("query.java", "exec java \"$F\"")),
        ..NONE
    },
    Language {
        name: "nodejs",
        log_name: "nodejs",
        runtime: "node",
        main_file: Some("main.js"),
        exec: Some("exec \"$R\" main.js"),
        query_file: Some(("query.js", "exec \"$R\" \"$F\"")),
        ..NONE
    },
    Language {
        name: "lua",
        log_name: "lua",
        runtime: "lua",
        main_file: Some("main.lua"),
        exec: Some("exec \"$R\" main.lua"),
        query_file: Some(("query.lua", "exec \"$R\" \"$F\"")),
        ..NONE
    },
    Language {
        name: "perl",
        log_name: "perl",
        runtime: "perl",
        main_file: Some("main.pl"),
        exec: Some("exec \"$R\" main.pl"),
        query_file: Some(("query.pl", "exec \"$R\" \"$F\"")),
        ..NONE
    },
];

impl Language {
    /// The language of a runtime type; an unknown one is a shell.
    pub fn of(runtime_type: &str) -> &'static Self {
        let named = |name: &str| LANGUAGES.iter().find(|language| language.name == name);
        named(runtime_type)
            .or_else(|| named("shell"))
            .unwrap_or(&LANGUAGES[0])
    }
}

/// The environment of the session's programs: defaults of `agent-protocol.md` 6.11 and what the session was given.
pub fn environ(given: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let defaults = [
        ("TERM", "xterm"),
        ("LANG", "C.UTF-8"),
        ("SHELL", "/bin/sh"),
        ("USER", "work"),
        ("HOME", "/home/work"),
        (
            "PATH",
            "/home/work/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ),
        // Figures are shown at the end of a run, never in a window.
        ("MPLBACKEND", "agg"),
    ];
    let mut environ: BTreeMap<String, String> = defaults
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    environ.extend(given.iter().map(|(name, value)| (name.clone(), value.clone())));
    environ
}
