//! The variables that stand over the file (`http-api.md` 5.2, `agent-protocol.md` 7.1).

use std::collections::BTreeMap;
use std::path::Path;

use toml::{Table, Value};

use super::value::boolean;

/// Environment variables, as they were when the process started. Those that are not text are not there.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// This process's.
    pub fn of_process() -> Self {
        std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    /// A variable that is set to something.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }
}

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        Self(variables.into_iter().collect())
    }
}

/// The variables over one kind of file.
#[derive(Debug)]
pub struct Variables {
    known: &'static [(&'static str, &'static str, Form)],
    /// What an address is while only its host or port is given.
    defaults: &'static [(&'static str, &'static str, &'static str)],
}

/// How a variable becomes a value.
#[derive(Debug)]
enum Form {
    Text,
    /// The host or the port of an address, whose other half stays.
    Host,
    Port,
    /// `yes` is `false`.
    Opposite,
    /// A path of a file is a folder and a name.
    LogFile,
}

/// Over `manager.toml`.
pub(super) const MANAGER: Variables = Variables {
    known: &[
        ("BACKEND_NAMESPACE", "etcd.namespace", Form::Text),
        ("BACKEND_ETCD_ADDR", "etcd.addr", Form::Text),
        ("BACKEND_ETCD_USER", "etcd.user", Form::Text),
        ("BACKEND_ETCD_PASSWORD", "etcd.password", Form::Text),
        ("BACKEND_DB_ADDR", "db.addr", Form::Text),
        ("BACKEND_DB_NAME", "db.name", Form::Text),
        ("BACKEND_DB_USER", "db.user", Form::Text),
        ("BACKEND_DB_PASSWORD", "db.password", Form::Text),
        ("BACKEND_GATEWAY_NPROC", "manager.num-proc", Form::Text),
        ("BACKEND_SSL_CERT", "manager.ssl-cert", Form::Text),
        ("BACKEND_SSL_KEY", "manager.ssl-privkey", Form::Text),
        ("BACKEND_PID_FILE", "manager.pid-file", Form::Text),
        ("BACKEND_SERVICE_IP", "manager.service-addr", Form::Host),
        ("BACKEND_SERVICE_PORT", "manager.service-addr", Form::Port),
        (
            "BACKEND_ADVERTISED_MANAGER_HOST",
            "manager.event-listen-addr",
            Form::Host,
        ),
        ("BACKEND_EVENTS_PORT", "manager.event-listen-addr", Form::Port),
        (
            "BACKEND_SKIP_SSLCERT_VALIDATION",
            "docker-registry.ssl-verify",
            Form::Opposite,
        ),
        ("BACKEND_LOG_FILE", "logging.file.path", Form::LogFile),
        ("BACKEND_LOG_FILE_COUNT", "logging.file.backup-count", Form::Text),
        ("BACKEND_LOG_FILE_SIZE", "logging.file.rotation-size", Form::Text),
    ],
    defaults: &[
        ("manager.service-addr", "0.0.0.0", "8080"),
        ("manager.event-listen-addr", "127.0.0.1", "5002"),
    ],
};

/// Over `agent.toml`.
pub(super) const AGENT: Variables = Variables {
    known: &[
        ("BACKEND_NAMESPACE", "etcd.namespace", Form::Text),
        ("BACKEND_ETCD_ADDR", "etcd.addr", Form::Text),
        ("BACKEND_ETCD_USER", "etcd.user", Form::Text),
        ("BACKEND_ETCD_PASSWORD", "etcd.password", Form::Text),
        ("BACKEND_AGENT_HOST_OVERRIDE", "agent.rpc-listen-addr", Form::Host),
        ("BACKEND_AGENT_PORT", "agent.rpc-listen-addr", Form::Port),
        ("BACKEND_PID_FILE", "agent.pid-file", Form::Text),
        ("BACKEND_REGION", "agent.region", Form::Text),
        (
            "BACKEND_KERNEL_HOST_OVERRIDE",
            "container.kernel-host",
            Form::Text,
        ),
        ("BACKEND_CONTAINER_PORT_RANGE", "container.port-range", Form::Text),
        ("BACKEND_SANDBOX_TYPE", "container.sandbox-type", Form::Text),
        ("BACKEND_SCRATCH_ROOT", "container.scratch-root", Form::Text),
        ("BACKEND_WATCHER_SERVICE_IP", "watcher.service-addr", Form::Host),
        ("BACKEND_WATCHER_SERVICE_PORT", "watcher.service-addr", Form::Port),
        ("BACKEND_LOG_FILE", "logging.file.path", Form::LogFile),
        ("BACKEND_LOG_FILE_COUNT", "logging.file.backup-count", Form::Text),
        ("BACKEND_LOG_FILE_SIZE", "logging.file.rotation-size", Form::Text),
    ],
    defaults: &[
        ("agent.rpc-listen-addr", "", "6001"),
        ("watcher.service-addr", "127.0.0.1", "6009"),
    ],
};

/// Puts the variables that are set into `table`, and says which set which key.
pub(super) fn overlay(
    table: &mut Table,
    environment: &Environment,
    variables: &Variables,
) -> BTreeMap<&'static str, &'static str> {
    let mut origins = BTreeMap::new();
    for (variable, key, form) in variables.known {
        let Some(text) = environment.get(variable) else {
            continue;
        };
        let value = Value::String(text.to_owned());
        match form {
            Form::Text => set(table, key, value),
            Form::Host => set_half(table, key, "host", value, variables.defaults),
            Form::Port => set_half(table, key, "port", value, variables.defaults),
            Form::Opposite => match boolean(&value) {
                Ok(skips) => set(table, key, Value::Boolean(!skips)),
                // As it is, so that the problem is seen.
                Err(_) => set(table, key, value),
            },
            Form::LogFile => {
                let path = Path::new(text);
                let folder = path
                    .parent()
                    .filter(|folder| !folder.as_os_str().is_empty())
                    .map_or_else(|| ".".to_owned(), |folder| folder.display().to_string());
                let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
                set(table, key, Value::String(folder));
                set(
                    table,
                    "logging.file.filename",
                    Value::String(name.unwrap_or_default()),
                );
                origins.insert("logging.file.filename", *variable);
            }
        }
        origins.insert(*key, *variable);
    }
    origins
}

fn set(table: &mut Table, key: &str, value: Value) {
    let Some((parents, last)) = key.rsplit_once('.') else {
        return;
    };
    let mut table = table;
    for parent in parents.split('.') {
        let entry = table.entry(parent).or_insert_with(|| Value::Table(Table::new()));
        match entry {
            Value::Table(inner) => table = inner,
            // Not a table: found wrong when it is read.
            _ => return,
        }
    }
    table.insert(last.to_owned(), value);
}

/// Changes the host or the port of an address in whichever form the file has it.
fn set_half(table: &mut Table, key: &str, half: &str, value: Value, defaults: &[(&str, &str, &str)]) {
    let present = key
        .split('.')
        .try_fold(&*table, |table, part| match table.get(part) {
            Some(Value::Table(inner)) => Ok(inner),
            other => Err(other),
        });
    let mut pair = match present {
        Ok(pair) => pair.clone(),
        Err(Some(Value::String(text))) => match text.rsplit_once(':') {
            Some((host, port)) => pair_of(host.trim_matches(['[', ']']), port),
            None => Table::new(),
        },
        Err(Some(Value::Array(both))) if both.len() == 2 => Table::from_iter([
            ("host".to_owned(), both[0].clone()),
            ("port".to_owned(), both[1].clone()),
        ]),
        Err(_) => defaults
            .iter()
            .find(|(known, ..)| *known == key)
            .map(|(_, host, port)| pair_of(host, port))
            .unwrap_or_default(),
    };
    pair.insert(half.to_owned(), value);
    set(table, key, Value::Table(pair));
}

fn pair_of(host: &str, port: &str) -> Table {
    Table::from_iter([
        ("host".to_owned(), Value::String(host.to_owned())),
        ("port".to_owned(), Value::String(port.to_owned())),
    ])
}
