//! The host's interpreters and compilers as images with 19.06 names (`lablup/python:3.11-host`), for runtimes that run
//! kernels on the host's own files.
//!
//! What a tool says of its version is kept in `tools.json` below the data directory, by path and time of change: starting
//! a tool to ask takes longer than starting everything else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use bai_proto::event::AgentImage;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

/// How long a tool may take to tell its version.
const DEADLINE: Duration = Duration::from_secs(5);
const CACHE: &str = "tools.json";

/// A language, the tool that makes it available, and how the tool tells its version.
struct Tool {
    language: &'static str,
    runtime_type: &'static str,
    program: &'static str,
    arguments: &'static [&'static str],
    aliases: &'static [&'static str],
    /// How many parts of the version make the tag.
    version_parts: usize,
    features: &'static str,
}

/// Prints the interpreter behind shims and links, and its version.
const PYTHON_QUESTION: &[&str] = &[
    "-c",
    "import os,sys; print('%d.%d.%d' % sys.version_info[:3]); print(os.path.realpath(sys.executable))",
];

const TOOLS: &[Tool] = &[
    Tool {
        language: "python",
        runtime_type: "python",
        program: "python3",
        arguments: PYTHON_QUESTION,
        aliases: &["python", "python3"],
        version_parts: 2,
        features: "batch query user-input",
    },
    Tool {
        language: "shell",
        runtime_type: "shell",
        program: "bash",
        arguments: &["--version"],
        aliases: &["shell", "bash", "sh"],
        version_parts: 2,
        features: "batch query",
    },
    Tool {
        language: "c",
        runtime_type: "c",
        program: "gcc",
        arguments: &["-dumpfullversion"],
        aliases: &["c", "gcc"],
        version_parts: 1,
        features: "batch query",
    },
    Tool {
        language: "cpp",
        runtime_type: "cpp",
        program: "g++",
        arguments: &["-dumpfullversion"],
        aliases: &["cpp"],
        version_parts: 1,
        features: "batch query",
    },
    Tool {
        language: "rust",
        runtime_type: "rust",
        program: "rustc",
        arguments: &["--print", "sysroot", "--version"],
        aliases: &["rust"],
        version_parts: 2,
        features: "batch query",
    },
    Tool {
        language: "go",
        runtime_type: "golang",
        program: "go",
        arguments: &["version"],
        aliases: &["go", "golang"],
        version_parts: 2,
        features: "batch query",
    },
    Tool {
        language: "java",
        runtime_type: "java",
        program: "javac",
        arguments: &["-version"],
        aliases: &["java"],
        version_parts: 1,
        features: "batch query",
    },
    Tool {
        language: "nodejs",
        runtime_type: "nodejs",
        program: "node",
        arguments: &["--version"],
        aliases: &["nodejs", "node"],
        version_parts: 1,
        features: "batch query",
    },
    Tool {
        language: "lua",
        runtime_type: "lua",
        program: "lua",
        arguments: &["-v"],
        aliases: &["lua"],
        version_parts: 2,
        features: "batch query",
    },
    Tool {
        language: "perl",
        runtime_type: "perl",
        program: "perl",
        arguments: &["-e", "printf '%vd', $^V"],
        aliases: &["perl"],
        version_parts: 2,
        features: "batch query",
    },
];

/// What a tool said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Answer {
    changed_at: u64,
    version: String,
    /// The program itself, behind shims and links.
    program: PathBuf,
}

/// The images of this host, or those that go by the name `only`: asking every tool takes longer than running one.
pub async fn discover(data_dir: &Path, only: Option<&str>) -> Vec<AgentImage> {
    let is_wanted = |tool: &Tool| {
        let name = only.map(|only| {
            only.rsplit('/')
                .next()
                .unwrap_or(only)
                .split(':')
                .next()
                .unwrap_or(only)
        });
        name.is_none_or(|name| name == tool.language || tool.aliases.contains(&name))
    };
    let is_any_wanted = TOOLS.iter().any(is_wanted);
    let cache_file = data_dir.join(CACHE);
    let cache = tokio::fs::read(&cache_file).await.ok();
    let cache: BTreeMap<PathBuf, Answer> = cache
        .and_then(|cache| serde_json::from_slice(&cache).ok())
        .unwrap_or_default();
    let mut asked = tokio::task::JoinSet::new();
    for (number, tool) in TOOLS
        .iter()
        .enumerate()
        .filter(|(_, tool)| is_wanted(tool) || !is_any_wanted)
    {
        let Some(path) = on_path(tool.program) else {
            continue;
        };
        let changed_at = changed_at(&path);
        let known = cache
            .get(&path)
            .filter(|answer| answer.changed_at == changed_at)
            .cloned();
        asked.spawn(async move {
            let answer = match known {
                Some(answer) => Some(answer),
                None => ask(tool, &path, changed_at).await,
            };
            Some((number, path, answer?))
        });
    }
    let mut answers: Vec<(usize, PathBuf, Answer)> = asked.join_all().await.into_iter().flatten().collect();
    answers.sort_by_key(|(number, ..)| *number);
    let told: BTreeMap<PathBuf, Answer> = answers
        .iter()
        .map(|(_, path, answer)| (path.clone(), answer.clone()))
        .collect();
    if told != cache
        && let Ok(text) = serde_json::to_vec(&told)
        && let Err(error) = tokio::fs::write(&cache_file, text).await
    {
        tracing::warn!(%error, file = %cache_file.display(), "the versions of tools cannot be remembered");
    }
    answers
        .iter()
        .map(|(number, _, answer)| image(&TOOLS[*number], answer))
        .collect()
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

fn changed_at(path: &Path) -> u64 {
    let changed = path.metadata().and_then(|found| found.modified()).ok();
    changed
        .and_then(|at| at.duration_since(UNIX_EPOCH).ok())
        .map_or(0, |since| since.as_secs())
}

async fn ask(tool: &Tool, path: &Path, changed_at: u64) -> Option<Answer> {
    let asking = Command::new(path)
        .args(tool.arguments)
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(DEADLINE, asking).await.ok()?.ok()?;
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let version = first_version(&text)?;
    let program = match tool.language {
        "python" => PathBuf::from(text.lines().nth(1)?.trim()),
        "rust" => PathBuf::from(text.lines().find(|line| line.starts_with('/'))?.trim()).join("bin/rustc"),
        _ => path.to_owned(),
    };
    Some(Answer {
        changed_at,
        version,
        program,
    })
}

/// The first thing in a text that looks like a version.
fn first_version(text: &str) -> Option<String> {
    let words = text.split(|character: char| !(character.is_ascii_digit() || character == '.'));
    let word = words
        .map(|word| word.trim_matches('.'))
        .find(|word| word.contains('.') || word.len() <= 3 && !word.is_empty());
    word.map(str::to_owned)
}

fn image(tool: &Tool, answer: &Answer) -> AgentImage {
    let version = answer
        .version
        .split('.')
        .take(tool.version_parts)
        .collect::<Vec<_>>()
        .join(".");
    let program = answer.program.display().to_string();
    let pairs = |pairs: &[(&str, &str)]| {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect::<BTreeMap<_, _>>()
    };
    let mut aliases: Vec<String> = tool.aliases.iter().map(|alias| (*alias).to_owned()).collect();
    aliases.push(format!("{}:{version}", tool.language));
    AgentImage {
        canonical: format!("index.docker.io/lablup/{}:{version}-host", tool.language),
        digest: format!(
            "sha256:{}",
            digest(&format!("{program} {} {}", answer.version, answer.changed_at))
        ),
        labels: pairs(&[
            ("ai.backend.kernelspec", "1"),
            ("ai.backend.features", tool.features),
            ("ai.backend.runtime-type", tool.runtime_type),
            ("ai.backend.runtime-path", &program),
        ]),
        aliases,
        resource_min: pairs(&[("cpu", "1"), ("mem", "64m")]),
    }
}

/// 64 hexadecimal digits that change with the text. Identity, not security: FNV-1a four times over.
fn digest(text: &str) -> String {
    (0u8..4)
        .map(|round| {
            let bytes = std::iter::once(round).chain(text.bytes());
            let hash = bytes.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
            format!("{hash:016x}")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_tools_say() {
        for (text, version) in [
            ("3.11.7\n/usr/bin/python3.11\n", "3.11.7"),
            (
                "GNU bash, version 5.2.15(1)-release (x86_64-pc-linux-gnu)",
                "5.2.15",
            ),
            ("12.2.0\n", "12.2.0"),
            ("v20.20.2\n", "20.20.2"),
            ("go version go1.19.8 linux/amd64", "1.19.8"),
            ("javac 17.0.15", "17.0.15"),
            ("12", "12"),
        ] {
            assert_eq!(first_version(text).as_deref(), Some(version), "{text}");
        }
    }
}
