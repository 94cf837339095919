//! `[manager]`: this process: where it listens, as whom it runs.

use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};
use toml::Value;

use super::section::{Problems, Section};
use super::value::{
    self, HostPort, Read, boolean, existing_file, host_port, integer, list, path, seconds, text,
};
use super::{Secret, bai};

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Manager {
    /// Threads; 0 stands for one on each processor. (The original starts as many processes.)
    pub num_proc: usize,
    /// Whom a process that root started becomes.
    pub user: Account,
    pub group: Account,
    pub service_addr: HostPort,
    /// What agents are told to send their events to.
    pub event_listen_addr: HostPort,
    /// Seconds until a silent agent is lost.
    pub heartbeat_timeout: f64,
    /// Signs download tokens; one of each start's own when it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Secret>,
    pub ssl_enabled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssl_cert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ssl_privkey: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid_file: Option<PathBuf>,
    pub disabled_plugins: Vec<String>,
}

/// A user or group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Account {
    /// The one that the process was started as.
    Unchanged,
    Id(u32),
    Name(String),
}

impl Serialize for Account {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Unchanged => serializer.serialize_i64(-1),
            Self::Id(id) => serializer.serialize_u32(*id),
            Self::Name(name) => serializer.serialize_str(name),
        }
    }
}

fn account(value: &Value) -> Read<Account> {
    if let Ok(number) = integer(value) {
        return match u32::try_from(number) {
            Ok(id) if id != u32::MAX => Ok(Account::Id(id)),
            _ if number == -1 => Ok(Account::Unchanged),
            _ => Err(format!("must be a name, a number or -1; it is {number}")),
        };
    }
    text(value).map(Account::Name)
}

impl Manager {
    pub(super) fn read(problems: &mut Problems<'_>) -> Option<Self> {
        let mut section = problems.section("manager", true);
        let num_proc = section.or("num-proc", 0, value::integer_in(0..=4096));
        let user = section.filled("user", account);
        let group = section.filled("group", account);
        let service_addr = HostPort {
            host: "0.0.0.0".to_owned(),
            port: 8080,
        };
        let service_addr = section.or("service-addr", service_addr, host_port);
        let event_listen_addr = section.or("event-listen-addr", bai::local(5002), host_port);
        let heartbeat_timeout = section.or("heartbeat-timeout", 5.0, seconds(1.0));
        let secret = section.filled("secret", value::secret);
        if secret.is_some() {
            section.note_unused(
                "secret",
                "it signs download tokens of folders, which are not served yet",
            );
        }
        let ssl_enabled = section.or("ssl-enabled", false, boolean);
        let pid_file = section
            .filled("pid-file", path)
            .filter(|path| path != Path::new("/dev/null"));
        let disabled_plugins = section.or("disabled-plugins", Vec::new(), list(text));
        if !disabled_plugins.is_empty() {
            section.note_unused(
                "disabled-plugins",
                "there are no plug-ins here that could be disabled",
            );
        }
        section.ignored(&["id"]);
        let (ssl_cert, ssl_privkey) = tls_files(&mut section, ssl_enabled);
        section.end();
        Some(Self {
            num_proc: usize::try_from(num_proc).unwrap_or_default(),
            user: user.unwrap_or(Account::Unchanged),
            group: group.unwrap_or(Account::Unchanged),
            service_addr,
            event_listen_addr,
            heartbeat_timeout,
            secret,
            ssl_enabled,
            ssl_cert,
            ssl_privkey,
            pid_file,
            disabled_plugins,
        })
    }
}

/// Certificate and key, which must be there where they are used.
fn tls_files(section: &mut Section<'_, '_>, is_enabled: bool) -> (Option<PathBuf>, Option<PathBuf>) {
    let read = if is_enabled { existing_file } else { path };
    let mut file = |key, hint| match is_enabled {
        true => section.required(key, hint, read),
        false => section.filled(key, read),
    };
    (
        file("ssl-cert", "\"/etc/backend.ai/manager.pem\""),
        file("ssl-privkey", "\"/etc/backend.ai/manager.key\""),
    )
}
