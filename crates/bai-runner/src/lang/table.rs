//! The languages (`agent-protocol.md` 6.11, with its broken build lines mended): a new one is a row here and one in the
//! agent's table of programs.
//!
//! Commands are POSIX shell, run in the session's folder. `$R` is the runtime's path, whose folder comes first on `PATH`;
//! `$D` and `$F` are folder and file of a query.

use super::{Driver, Language, Query};

const NONE: Language = Language {
    name: "",
    log_name: "",
    runtime: "",
    cleans_with_make: false,
    build: None,
    main_file: None,
    exec: None,
    query: Query::Driver(Driver::Shell),
    kernelspec: None,
    environ: &[],
};

pub const LANGUAGES: &[Language] = &[
    Language {
        name: "python",
        log_name: "python",
        runtime: "python3",
        build: Some("if [ -f setup.py ]; then \"$R\" -m pip install --user -e .; fi"),
        main_file: Some("main.py"),
        exec: Some("exec \"$R\" main.py"),
        query: Query::Driver(Driver::Python),
        kernelspec: Some("python"),
        environ: &[("PYTHONUNBUFFERED", "1")],
        ..NONE
    },
    Language {
        name: "shell",
        log_name: "shell",
        runtime: "/bin/sh",
        main_file: Some("main.sh"),
        exec: Some("exec \"$R\" main.sh"),
        query: Query::Driver(Driver::Shell),
        ..NONE
    },
    Language {
        name: "c",
        log_name: "c",
        runtime: "gcc",
        cleans_with_make: true,
        build: Some(
            "if [ -f main.c ]; then find . -name '*.c' -exec \"$R\" -pthread -o main {} +; else echo 'c-kernel: cannot find main.c.' >&2; exit 127; fi",
        ),
        exec: Some(
            "for f in ./main ./a.out; do if [ -x \"$f\" ]; then exec \"$f\"; fi; done; echo 'c-kernel: cannot find the executable.' >&2; exit 127",
        ),
        query: Query::File {
            name: "query.c",
            prefix: "",
            command: "\"$R\" -pthread -o \"$D/query\" \"$F\" -lm && exec \"$D/query\"",
        },
        ..NONE
    },
    Language {
        name: "cpp",
        log_name: "cpp",
        runtime: "g++",
        cleans_with_make: true,
        build: Some(
            "if [ -f main.cpp ]; then find . -name '*.cpp' -exec \"$R\" -pthread -o main {} +; else echo 'cpp-kernel: cannot find main.cpp.' >&2; exit 127; fi",
        ),
        exec: Some(
            "for f in ./main ./a.out; do if [ -x \"$f\" ]; then exec \"$f\"; fi; done; echo 'cpp-kernel: cannot find the executable.' >&2; exit 127",
        ),
        query: Query::File {
            name: "query.cpp",
            prefix: "",
            command: "\"$R\" -pthread -o \"$D/query\" \"$F\" && exec \"$D/query\"",
        },
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
            "for f in target/debug/* target/release/* ./main; do if [ -f \"$f\" ] && [ -x \"$f\" ]; then exec \"$f\"; fi; done; echo 'rust-kernel: cannot find the executable.' >&2; exit 127",
        ),
        query: Query::File {
            name: "query.rs",
            prefix: "",
            command: "\"$R\" -o \"$D/query\" \"$F\" && exec \"$D/query\"",
        },
        ..NONE
    },
    Language {
        name: "golang",
        log_name: "go",
        runtime: "go",
        build: Some(
            "if [ -f go.mod ]; then \"$R\" build -o main .; elif [ -f main.go ]; then \"$R\" build -o main *.go; else echo 'go-kernel: cannot find main.go or go.mod.' >&2; exit 127; fi",
        ),
        exec: Some(
            "if [ -x ./main ]; then exec ./main; fi; echo 'go-kernel: cannot find the executable.' >&2; exit 127",
        ),
        query: Query::File {
            name: "query.go",
            prefix: "",
            command: "exec \"$R\" run \"$F\"",
        },
        ..NONE
    },
    Language {
        name: "java",
        log_name: "java",
        runtime: "javac",
        build: Some(
            "if [ -n \"$(find . -name '*.java' -print -quit)\" ]; then find . -name '*.java' -exec \"$R\" -encoding UTF-8 -d . {} +; else echo 'java-kernel: cannot find a .java file.' >&2; exit 127; fi",
        ),
        exec: Some(
            "if [ -f main/Main.class ]; then exec java -cp . main.Main; elif [ -f Main.class ]; then exec java -cp . Main; fi; echo 'java-kernel: cannot find the class Main or main.Main.' >&2; exit 127",
        ),
        query: Query::File {
            name: "query.java",
            prefix: "",
            command: "exec java \"$F\"",
        },
        ..NONE
    },
    Language {
        name: "nodejs",
        log_name: "nodejs",
        runtime: "node",
        main_file: Some("main.js"),
        exec: Some("exec \"$R\" main.js"),
        query: Query::File {
            name: "query.js",
            prefix: "",
            command: "exec \"$R\" \"$F\"",
        },
        ..NONE
    },
    Language {
        name: "lua",
        log_name: "lua",
        runtime: "lua",
        main_file: Some("main.lua"),
        exec: Some("exec \"$R\" main.lua"),
        query: Query::File {
            name: "query.lua",
            prefix: "",
            command: "exec \"$R\" \"$F\"",
        },
        ..NONE
    },
    Language {
        name: "perl",
        log_name: "perl",
        runtime: "perl",
        main_file: Some("main.pl"),
        exec: Some("exec \"$R\" main.pl"),
        query: Query::File {
            name: "query.pl",
            prefix: "",
            command: "exec \"$R\" \"$F\"",
        },
        ..NONE
    },
    Language {
        name: "ruby",
        log_name: "ruby",
        runtime: "ruby",
        main_file: Some("main.rb"),
        exec: Some("exec \"$R\" main.rb"),
        query: Query::File {
            name: "query.rb",
            prefix: "",
            command: "exec \"$R\" \"$F\"",
        },
        ..NONE
    },
    Language {
        name: "php",
        log_name: "php",
        runtime: "php",
        main_file: Some("main.php"),
        exec: Some("exec \"$R\" main.php"),
        query: Query::File {
            name: "query.php",
            prefix: "<?php ",
            command: "exec \"$R\" \"$F\"",
        },
        ..NONE
    },
    Language {
        name: "r",
        log_name: "r",
        runtime: "Rscript",
        main_file: Some("main.R"),
        exec: Some("exec Rscript main.R"),
        query: Query::File {
            name: "query.R",
            prefix: "",
            command: "exec Rscript \"$F\"",
        },
        kernelspec: Some("ir"),
        ..NONE
    },
    Language {
        name: "julia",
        log_name: "julia",
        runtime: "julia",
        main_file: Some("main.jl"),
        exec: Some("exec \"$R\" main.jl"),
        query: Query::File {
            name: "query.jl",
            prefix: "",
            command: "exec \"$R\" \"$F\"",
        },
        kernelspec: Some("julia"),
        ..NONE
    },
    Language {
        name: "octave",
        log_name: "octave",
        runtime: "octave-cli",
        main_file: Some("main.m"),
        exec: Some("exec \"$R\" --quiet main.m"),
        query: Query::File {
            name: "query.m",
            prefix: "",
            command: "exec \"$R\" --quiet \"$F\"",
        },
        ..NONE
    },
    Language {
        name: "haskell",
        log_name: "haskell",
        runtime: "ghc",
        build: Some(
            "if [ -f main.hs ]; then \"$R\" --make main; elif [ -f Main.hs ]; then \"$R\" --make Main -o main; else echo 'haskell-kernel: cannot find main.hs.' >&2; exit 127; fi",
        ),
        exec: Some(
            "if [ -x ./main ]; then exec ./main; fi; echo 'haskell-kernel: cannot find the executable.' >&2; exit 127",
        ),
        query: Query::File {
            name: "query.hs",
            prefix: "",
            command: "exec runhaskell \"$F\"",
        },
        ..NONE
    },
    Language {
        name: "scheme",
        log_name: "scheme",
        runtime: "scheme",
        main_file: Some("main.scm"),
        exec: Some("exec \"$R\" --quiet < main.scm"),
        query: Query::File {
            name: "query.scm",
            prefix: "",
            command: "exec \"$R\" --quiet < \"$F\"",
        },
        ..NONE
    },
];

/// The language of a runtime type; an unknown one is a shell.
pub fn find(runtime_type: &str) -> &'static Language {
    let named = |name: &str| LANGUAGES.iter().find(|language| language.name == name);
    named(runtime_type)
        .or_else(|| named("shell"))
        .unwrap_or(&LANGUAGES[0])
}
