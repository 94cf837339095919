//! The programs that make images, and how to ask each for its version.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::program::Candidate;

/// A kind of program.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Tool {
    /// The image's name.
    pub language: &'static str,
    /// `ai.backend.runtime-type`.
    pub runtime_type: &'static str,
    /// `ai.backend.features`.
    pub features: &'static str,
    /// File names; the first that is found in a folder is taken, for Python all.
    pub names: &'static [&'static str],
    /// Invocations that print its version and, on a line of its own, maybe where it really is.
    pub arguments: &'static [&'static [&'static str]],
    /// Where the program is below the folder that it prints, if it does.
    pub below: &'static str,
    /// Parts of the version that make the tag.
    pub version_parts: usize,
    /// Short names for the first program of the language.
    pub aliases: &'static [&'static str],
}

const COMPILED: &str = "batch query";
const INTERACTIVE: &str = "batch query user-input";

pub(crate) const TOOLS: &[Tool] = &[
    Tool {
        language: "python",
        runtime_type: "python",
        features: INTERACTIVE,
        names: &["python3"],
        arguments: &[&[
            "-I",
            "-S",
            "-c",
            "import sys; print('%d.%d.%d' % sys.version_info[:3]); print(sys.executable)",
        ]],
        below: "",
        version_parts: 2,
        aliases: &["python", "python3"],
    },
    Tool {
        language: "shell",
        runtime_type: "shell",
        features: INTERACTIVE,
        names: &["bash"],
        arguments: &[&["--norc", "-c", "echo \"$BASH_VERSION\""]],
        below: "",
        version_parts: 2,
        aliases: &["shell", "bash", "sh"],
    },
    Tool {
        language: "c",
        runtime_type: "c",
        features: COMPILED,
        names: &["gcc", "cc"],
        arguments: &[&["-dumpversion"]],
        below: "",
        version_parts: 1,
        aliases: &["c", "gcc"],
    },
    Tool {
        language: "cpp",
        runtime_type: "cpp",
        features: COMPILED,
        names: &["g++", "c++"],
        arguments: &[&["-dumpversion"]],
        below: "",
        version_parts: 1,
        aliases: &["cpp"],
    },
    Tool {
        language: "rust",
        runtime_type: "rust",
        features: COMPILED,
        names: &["rustc"],
        // What is found first is often a launcher that chooses among several.
        arguments: &[&["--version"], &["--print", "sysroot"]],
        below: "bin/rustc",
        version_parts: 2,
        aliases: &["rust"],
    },
    Tool {
        language: "golang",
        runtime_type: "golang",
        features: COMPILED,
        names: &["go"],
        arguments: &[&["env", "GOVERSION", "GOROOT"]],
        below: "bin/go",
        version_parts: 2,
        aliases: &["golang", "go"],
    },
    Tool {
        language: "java",
        runtime_type: "java",
        features: COMPILED,
        names: &["javac"],
        arguments: &[&["-version"]],
        below: "",
        version_parts: 1,
        aliases: &["java"],
    },
    Tool {
        language: "nodejs",
        runtime_type: "nodejs",
        features: COMPILED,
        names: &["node", "nodejs"],
        arguments: &[&["--version"]],
        below: "",
        version_parts: 1,
        aliases: &["nodejs", "node"],
    },
    Tool {
        language: "lua",
        runtime_type: "lua",
        features: COMPILED,
        names: &["lua"],
        arguments: &[&["-v"]],
        below: "",
        version_parts: 2,
        aliases: &["lua"],
    },
    Tool {
        language: "perl",
        runtime_type: "perl",
        features: COMPILED,
        names: &["perl"],
        arguments: &[&["-e", "print substr($^V, 1)"]],
        below: "",
        version_parts: 2,
        aliases: &["perl"],
    },
];

impl Tool {
    pub fn is_python(&self) -> bool {
        self.language == "python"
    }

    /// Whether its images go by this name, a tag aside.
    pub fn goes_by(&self, name: &str) -> bool {
        self.language == name || self.aliases.contains(&name)
    }

    /// `3.11` of `3.11.7`.
    pub fn short_version(&self, version: &str) -> String {
        version
            .split('.')
            .take(self.version_parts)
            .collect::<Vec<_>>()
            .join(".")
    }

    /// Version and place out of what the program printed; `None` if there is no version in it.
    pub fn understand(&self, output: &str) -> Option<(String, Option<PathBuf>)> {
        let mut lines = output.lines().map(str::trim).filter(|line| !line.is_empty());
        // Which comes first differs between versions of the programs.
        let (mut version, mut place) = (None, None);
        for line in lines.by_ref().take(2) {
            match line.starts_with('/') {
                true => place = Some(Path::new(line).join(self.below)),
                false => version = version.or_else(|| line.split_whitespace().find_map(version_in)),
            }
        }
        let place = place.map(|place| {
            if self.below.is_empty() {
                plain(&place)
            } else {
                place
            }
        });
        version.map(|version| (version, place))
    }
}

/// Without the slash that joining nothing adds.
fn plain(path: &Path) -> PathBuf {
    path.components().collect()
}

/// `20.1.0` of `v20.1.0,`; `None` for a word that does not begin like a version.
fn version_in(word: &str) -> Option<String> {
    let word = word
        .strip_prefix('v')
        .or_else(|| word.strip_prefix("go"))
        .unwrap_or(word);
    let end = word
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(word.len());
    let version = word.get(..end)?.trim_end_matches('.');
    version
        .starts_with(|c: char| c.is_ascii_digit())
        .then(|| version.to_owned())
}

/// The programs in `folders`, each once, in the order of the tools and then of the folders. Blocking.
pub(crate) fn candidates(folders: &[PathBuf]) -> Vec<Candidate> {
    let mut found = Vec::new();
    for tool in TOOLS {
        let mut seen = BTreeSet::new();
        for folder in folders {
            let names: Vec<String> = match tool.is_python() {
                true => pythons_in(folder),
                false => tool.names.iter().map(|name| (*name).to_owned()).collect(),
            };
            let existing = names
                .iter()
                .filter_map(|name| Candidate::at(tool, folder.join(name)));
            let limit = if tool.is_python() { usize::MAX } else { 1 };
            found.extend(
                existing
                    .take(limit)
                    .filter(|candidate| seen.insert(candidate.real.clone())),
            );
        }
    }
    found
}

/// `python3` first, then `python3.N`, newest first.
fn pythons_in(folder: &Path) -> Vec<String> {
    let mut versions: Vec<u32> = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        versions.extend(
            name.to_str()
                .and_then(|name| name.strip_prefix("python3.")?.parse::<u32>().ok()),
        );
    }
    versions.sort_unstable_by(|a, b| b.cmp(a));
    std::iter::once("python3".to_owned())
        .chain(versions.into_iter().map(|minor| format!("python3.{minor}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_print() {
        let understand = |language: &str, output: &str| {
            let tool = TOOLS
                .iter()
                .find(|tool| tool.language == language)
                .expect("a tool");
            let (version, place) = tool.understand(output)?;
            Some((
                tool.short_version(&version),
                place.map(|place| place.display().to_string()),
            ))
        };
        for (language, output, version, place) in [
            (
                "python",
                "3.11.7\n/opt/py/bin/python3\n",
                "3.11",
                Some("/opt/py/bin/python3"),
            ),
            ("shell", "5.2.15(1)-release\n", "5.2", None),
            ("c", "12\n", "12", None),
            (
                "rust",
                "rustc 1.95.0 (abc 2026-01-01)\n/opt/rust\n",
                "1.95",
                Some("/opt/rust/bin/rustc"),
            ),
            (
                "rust",
                "/opt/rust\nrustc 1.95.0 (abc)\n",
                "1.95",
                Some("/opt/rust/bin/rustc"),
            ),
            (
                "golang",
                "go1.22.1\n/usr/lib/go-1.22\n",
                "1.22",
                Some("/usr/lib/go-1.22/bin/go"),
            ),
            ("java", "javac 17.0.15\n", "17", None),
            ("nodejs", "v20.20.2\n", "20", None),
            ("lua", "Lua 5.4.4  Copyright (C) 1994-2022\n", "5.4", None),
            ("perl", "5.36.0", "5.36", None),
        ] {
            assert_eq!(
                understand(language, output),
                Some((version.to_owned(), place.map(str::to_owned))),
                "{language}"
            );
        }
        assert_eq!(understand("c", "command not found\n"), None);
    }

    #[test]
    fn newer_pythons_come_first_but_the_plain_one_wins() {
        let dir = tempfile::tempdir().expect("a folder");
        for name in [
            "python3.9",
            "python3.12",
            "python3-config",
            "python3.12-config",
            "python3",
        ] {
            std::fs::write(dir.path().join(name), "").expect("written");
        }
        assert_eq!(pythons_in(dir.path()), ["python3", "python3.12", "python3.9"]);
    }
}
