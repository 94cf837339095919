//! Compute sessions as their owners see them (`http-api.md` 4.8): create, look at, run code in, restart, destroy.

use std::collections::BTreeMap;
use std::time::Duration;

use bai_model::{AccessKey, RunId, SessionName};
pub use bai_proto::agent::{
    BatchOptions, ConsoleItem, ExecuteMode, ExecuteReply, FileListing, GeneratedFile, RunStatus, ServicePort,
};
use bytes::Bytes;
use serde_json::{Map, Value};

use crate::{Error, Manager, Op, Result};

/// Which session is meant: a name, and whose (`http-api.md` 1.14). `owner: None` means the requester's own.
#[derive(Clone, Debug)]
pub struct SessionRef {
    pub name: String,
    pub owner: Option<AccessKey>,
}

/// A request for a session (`http-api.md` 4.8.1), already checked in form.
#[derive(Clone, Debug)]
pub struct SessionCreate {
    pub name: SessionName,
    /// Image reference or alias, as given.
    pub image: String,
    pub group: String,
    pub domain: String,
    pub tag: Option<String>,
    pub owner: Option<AccessKey>,
    /// Names of folders to mount.
    pub mounts: Vec<String>,
    pub environ: BTreeMap<String, String>,
    pub resources: RequestedResources,
    /// False refuses an existing session of this name instead of returning it.
    pub reuse_if_exists: bool,
}

/// How the requester states what the session needs.
#[derive(Clone, Debug)]
pub enum RequestedResources {
    /// The `resources` object, slot by slot, as JSON.
    Slots(Map<String, Value>),
    /// `instanceMemory` (GiB), `instanceCores`, and whether GPUs or TPUs were asked for.
    Legacy {
        memory: Option<Value>,
        cores: Option<Value>,
        gpus: bool,
        tpus: bool,
    },
}

#[derive(Clone, Debug)]
pub struct SessionCreated {
    pub name: SessionName,
    /// `None` while the session is still being created.
    pub service_ports: Option<Vec<ServicePort>>,
    pub created: bool,
    pub status: bai_model::KernelStatus,
}

/// A request to run code (`http-api.md` 4.8.5).
#[derive(Clone, Debug)]
pub struct SessionExecute {
    pub run_id: Option<RunId>,
    pub mode: ExecuteMode,
    pub code: String,
    pub batch: BatchOptions,
    pub flush_timeout: Option<Duration>,
}

impl Manager {
    /// Returns the session of that name or creates it. Creation goes on when the caller goes away.
    ///
    /// # Errors
    /// In the order of `http-api.md` 4.8.1.
    pub async fn session_create(&self, _op: &Op, _request: SessionCreate) -> Result<SessionCreated> {
        Err(Error::NotImplemented)
    }

    /// The object of `http-api.md` 4.8.2 with the members of Q-19.
    pub async fn session_info(&self, _op: &Op, _session: &SessionRef) -> Result<Value> {
        Err(Error::NotImplemented)
    }

    pub async fn session_restart(&self, _op: &Op, _session: &SessionRef) -> Result<()> {
        Err(Error::NotImplemented)
    }

    /// Ends a session and returns its last statistics.
    pub async fn session_destroy(&self, _op: &Op, _session: &SessionRef) -> Result<Option<Value>> {
        Err(Error::NotImplemented)
    }

    /// `None` when the session went away while the call waited.
    pub async fn session_execute(
        &self,
        _op: &Op,
        _session: &SessionRef,
        _request: SessionExecute,
    ) -> Result<Option<ExecuteReply>> {
        Err(Error::NotImplemented)
    }

    pub async fn session_interrupt(&self, _op: &Op, _session: &SessionRef) -> Result<()> {
        Err(Error::NotImplemented)
    }

    pub async fn session_complete(
        &self,
        _op: &Op,
        _session: &SessionRef,
        _code: String,
        _options: Value,
    ) -> Result<Vec<String>> {
        Err(Error::NotImplemented)
    }

    pub async fn session_logs(&self, _op: &Op, _session: &SessionRef) -> Result<String> {
        Err(Error::NotImplemented)
    }

    pub async fn session_files(&self, _op: &Op, _session: &SessionRef, _path: &str) -> Result<FileListing> {
        Err(Error::NotImplemented)
    }

    /// Writes files, `(path below /home/work, bytes)`.
    pub async fn session_upload(
        &self,
        _op: &Op,
        _session: &SessionRef,
        _files: Vec<(String, Bytes)>,
    ) -> Result<()> {
        Err(Error::NotImplemented)
    }

    /// One tar archive for each path, in order.
    pub async fn session_download(
        &self,
        _op: &Op,
        _session: &SessionRef,
        _paths: Vec<String>,
    ) -> Result<Vec<Bytes>> {
        Err(Error::NotImplemented)
    }

    /// Checks that the session exists and counts one use of it; what every stream does before it upgrades.
    pub async fn session_open_stream(&self, _op: &Op, _session: &SessionRef) -> Result<()> {
        Err(Error::NotImplemented)
    }
}
