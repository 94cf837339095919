//! `[logging]`: what is logged, and where to (`http-api.md` 5.3).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::section::Problems;
use super::value::{binary_size, boolean, integer_in, list, one_of, path, text};

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Logging {
    pub level: Level,
    /// Levels of parts of the program. Of the original's names only `""` and `ai.backend` say something here: all of it.
    pub pkg_ns: BTreeMap<String, Level>,
    drivers: Vec<Driver>,
    pub console: Console,
    /// There when the driver is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<File>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Driver {
    Console,
    File,
    Logstash,
}

/// The original's names of levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Debug,
    Info,
    Warning,
    Error,
    Critical,
    NotSet,
}

const LEVELS: &[(&str, Level)] = &[
    ("DEBUG", Level::Debug),
    ("INFO", Level::Info),
    ("WARNING", Level::Warning),
    ("ERROR", Level::Error),
    ("CRITICAL", Level::Critical),
    ("NOTSET", Level::NotSet),
];

impl Serialize for Level {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let name = LEVELS.iter().find(|(_, level)| level == self);
        serializer.serialize_str(name.map_or("", |(name, _)| name))
    }
}

/// How a record looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Level and message.
    Simple,
    /// Time and place, too.
    Verbose,
    /// An object on a line.
    Json,
}

const FORMATS: &[(&str, Format)] = &[
    ("simple", Format::Simple),
    ("verbose", Format::Verbose),
    ("json", Format::Json),
];

/// stderr.
#[derive(Clone, Debug, Serialize)]
pub struct Console {
    pub colored: bool,
    pub format: Format,
}

/// A file that is put aside when it is full.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct File {
    pub path: PathBuf,
    pub filename: String,
    /// Full ones that are kept: `filename.1` is the latest.
    pub backup_count: u32,
    /// Bytes.
    pub rotation_size: u64,
    pub format: Format,
}

impl Logging {
    pub(super) fn read(problems: &mut Problems<'_>) -> Option<Self> {
        const DRIVERS: &[(&str, Driver)] = &[
            ("console", Driver::Console),
            ("file", Driver::File),
            ("logstash", Driver::Logstash),
        ];
        let mut section = problems.section("logging", false);
        let level = section.or("level", Level::Info, one_of(LEVELS));
        let drivers = section.or("drivers", vec![Driver::Console], list(one_of(DRIVERS)));
        section.ignored(&["pkg-ns", "console", "file", "logstash"]);
        section.end();
        if drivers.contains(&Driver::Logstash) {
            problems.note(
                "logging.drivers has `logstash`, which this program does not speak: it is ignored; let a shipper read \
                 the file or the journal",
            );
        }
        let pkg_ns = read_levels(problems);
        let console = read_console(problems);
        let file = if drivers.contains(&Driver::File) {
            Some(read_file(problems)?)
        } else {
            None
        };
        Some(Self {
            level,
            pkg_ns,
            drivers,
            console,
            file,
        })
    }

    /// Whether stderr gets the log.
    pub fn to_console(&self) -> bool {
        self.drivers.contains(&Driver::Console)
    }
}

fn read_levels(problems: &mut Problems<'_>) -> BTreeMap<String, Level> {
    let mut section = problems.section("logging.pkg-ns", false);
    let mut levels = BTreeMap::new();
    for (name, value) in section.entries() {
        match one_of(LEVELS)(&value) {
            Ok(level) => _ = levels.insert(name, level),
            Err(text) => section.wrong(&format!("{name:?}"), text),
        }
    }
    levels
}

fn read_console(problems: &mut Problems<'_>) -> Console {
    let mut section = problems.section("logging.console", false);
    let colored = section.or("colored", true, boolean);
    let format = section.or("format", Format::Verbose, one_of(FORMATS));
    section.end();
    Console { colored, format }
}

fn read_file(problems: &mut Problems<'_>) -> Option<File> {
    let mut section = problems.section("logging.file", true);
    let folder = section.required("path", "\"/var/log/backend.ai\"", path);
    let filename = section.required("filename", "\"manager.log\"", text);
    if filename.as_ref().is_some_and(|name| name.contains('/')) {
        section.wrong("filename", "must be a name, without folders");
    }
    let backup_count = section.or("backup-count", 5, integer_in(1..=100));
    let rotation_size = section.or("rotation-size", 10 << 20, binary_size);
    let format = section.or("format", Format::Json, one_of(FORMATS));
    section.end();
    Some(File {
        path: folder?,
        filename: filename?,
        backup_count: u32::try_from(backup_count).unwrap_or(1),
        rotation_size,
        format,
    })
}
