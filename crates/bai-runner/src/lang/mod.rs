//! How each language is run: the table ([`table`]), the drivers of interpreters that stay, the environment.

mod table;

use std::collections::BTreeMap;
use std::process::Command;

use bai_proto::sandbox::SandboxSpec;

/// The variable, and our value, by which figures are shown at the end of a run and never in a window.
pub const FIGURES: (&str, &str) = ("MPLBACKEND", "agg");

/// One runtime type of [`table::LANGUAGES`].
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
    pub query: Query,
    /// The word in the names of Jupyter kernels that are used for queries instead, where there are any.
    pub kernelspec: Option<&'static str>,
    /// More of the environment.
    pub environ: &'static [(&'static str, &'static str)],
}

/// How a language runs code that is given as text.
#[derive(Debug)]
pub enum Query {
    /// By an interpreter that stays.
    Driver(Driver),
    /// By a file of this name, which begins with `prefix`, and a command.
    File {
        name: &'static str,
        prefix: &'static str,
        command: &'static str,
    },
}

/// An interpreter that stays, and how it is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    Python,
    Shell,
}

/// The driver has a file name of its own, by which its frames are left out of tracebacks.
const PYTHON_BOOTSTRAP: &str = "import sys\nexec(compile(sys.argv.pop(), '<bai>', 'exec'))";
const PYTHON_DRIVER: &str = include_str!("python_driver.py");
const SHELL_DRIVER: &str = include_str!("shell_driver.sh");

impl Driver {
    /// Appends what makes the interpreter run the driver.
    pub fn arguments(self, command: &mut Command) {
        match self {
            Self::Python => command.args(["-c", PYTHON_BOOTSTRAP, PYTHON_DRIVER]),
            Self::Shell => command.args(["-c", SHELL_DRIVER]),
        };
    }
}

/// What a session runs, and with what.
#[derive(Debug)]
pub struct Runtime {
    pub language: &'static Language,
    /// The interpreter or compiler.
    pub path: String,
    pub environ: BTreeMap<String, String>,
}

impl Runtime {
    /// An unknown runtime type is a shell.
    pub fn new(runtime_type: &str, path: Option<&str>, environ: &BTreeMap<String, String>) -> Self {
        let language = table::find(runtime_type);
        Self {
            language,
            path: path.unwrap_or(language.runtime).to_owned(),
            environ: complete_environ(language, environ),
        }
    }
}

impl From<&SandboxSpec> for Runtime {
    fn from(spec: &SandboxSpec) -> Self {
        Self::new(&spec.runtime_type, spec.runtime_path.as_deref(), &spec.environ)
    }
}

/// Every runtime type with the program that runs it.
pub fn programs() -> impl Iterator<Item = (&'static str, &'static str)> {
    table::LANGUAGES
        .iter()
        .map(|language| (language.name, language.runtime))
}

/// Defaults of `agent-protocol.md` 6.11, then the language's, then what the session was given.
fn complete_environ(language: &Language, given: &BTreeMap<String, String>) -> BTreeMap<String, String> {
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
        FIGURES,
    ];
    let mut environ: BTreeMap<String, String> = defaults
        .iter()
        .chain(language.environ)
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    environ.extend(given.iter().map(|(name, value)| (name.clone(), value.clone())));
    environ
}
