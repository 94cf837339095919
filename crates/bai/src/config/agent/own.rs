//! `[bai]` of an agent: what 19.06 has no key for. The original ignores the table.

use std::path::PathBuf;

use bai_proto::zmtp::AllowList;
use serde::Serialize;

use crate::config::Address;
use crate::config::section::Problems;
use crate::config::value::{
    Read, absolute_path, address, boolean, existing_file, integer_in, list, one_of, seconds, text,
};
use crate::sessions::RuntimeChoice;

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Own {
    /// What sessions are made of.
    #[serde(serialize_with = "runtime_name")]
    pub runtime: RuntimeChoice,
    /// The engine's network for containers, `none` or a name; the engine's default when it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// What the agent remembers about this host; the sessions' folders are at `container.scratch-root`.
    pub data_dir: PathBuf,
    /// In place of `etcd.addr`, `user` and `password`: `etcd://host,host…?tls=true`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_store: Option<Address>,
    /// In place of etcd's `config/redis/*`: `redis://…`, `rediss://…`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker: Option<Address>,
    /// Seconds that a start waits for services that are not there yet.
    pub start_timeout: f64,
    /// Addresses and networks whose managers may call; everybody may when there are none.
    pub allow_managers: Vec<String>,
    /// Mutual TLS with managers of ours, when set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsFiles>,
    /// Although others reach the RPC address and sandboxed processes are no boundary against them.
    pub allow_process_runtime: bool,
    /// Units of the slot `cpu` for each core: 2 as in 19.06, 1 for cores that nobody shares.
    pub cpu_overcommit: u64,
    /// Who is asked for the region, when `agent.region` is not set.
    #[serde(serialize_with = "cloud_name")]
    pub cloud: Cloud,
    /// Where clouds answer their hosts.
    pub cloud_metadata: String,
    /// How NVIDIA's devices are offered.
    #[serde(serialize_with = "cuda_name")]
    pub cuda: Cuda,
    /// Devices of the slot `mock.device` that do nothing, for trials.
    pub mock_devices: u64,
    /// Devices of the slot `mock.shares`, which are given in parts.
    pub mock_shares: u64,
}

/// PEM files.
#[derive(Clone, Debug, Serialize)]
pub struct TlsFiles {
    /// Certificates of those who sign for the cluster.
    pub authority: PathBuf,
    /// This host's own, with the name under which managers call it.
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Who has this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cloud {
    /// Nobody who could be asked.
    Off,
    Amazon,
    Azure,
    Google,
}

const CLOUDS: &[(&str, Cloud)] = &[
    ("off", Cloud::Off),
    ("amazon", Cloud::Amazon),
    ("azure", Cloud::Azure),
    ("google", Cloud::Google),
];

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn cloud_name<S: serde::Serializer>(cloud: &Cloud, serializer: S) -> Result<S::Ok, S::Error> {
    let name = CLOUDS.iter().find(|(_, meaning)| meaning == cloud);
    serializer.serialize_str(name.map_or("", |(name, _)| name))
}

/// An address of a service without TLS, such as those that clouds have for their hosts.
fn plain_http(value: &toml::Value) -> Read<String> {
    let address = text(value)?;
    let host = address.strip_prefix("http://").unwrap_or_default();
    if host.is_empty() || host.starts_with('/') {
        return Err(format!(
            "must be an address such as \"http://169.254.169.254\"; it is {value}"
        ));
    }
    Ok(address)
}

/// How NVIDIA's devices are offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cuda {
    /// Not at all.
    Off,
    /// Whole, as `cuda.device`, where the driver is there.
    Device,
    /// In parts, as `cuda.shares`, where the driver is there.
    Shares,
}

const CUDA: &[(&str, Cuda)] = &[
    ("off", Cuda::Off),
    ("device", Cuda::Device),
    ("shares", Cuda::Shares),
];

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn cuda_name<S: serde::Serializer>(cuda: &Cuda, serializer: S) -> Result<S::Ok, S::Error> {
    let name = CUDA.iter().find(|(_, meaning)| meaning == cuda);
    serializer.serialize_str(name.map_or("", |(name, _)| name))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn runtime_name<S: serde::Serializer>(runtime: &RuntimeChoice, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(runtime.name())
}

impl Own {
    pub(super) fn read(problems: &mut Problems<'_>) -> Option<Self> {
        const RUNTIMES: &[(&str, RuntimeChoice)] = &[
            ("auto", RuntimeChoice::Auto),
            ("docker", RuntimeChoice::Docker),
            ("process", RuntimeChoice::Process),
        ];
        let tls = read_tls(problems);
        let mut section = problems.section("bai", false);
        let runtime = section.or("runtime", RuntimeChoice::Docker, one_of(RUNTIMES));
        let data_dir = section.or("data-dir", PathBuf::from("/var/lib/bai-agent"), absolute_path);
        let network = section.filled("network", text);
        let config_store = section.filled("config-store", address(&["etcd://"]));
        let broker = section.filled("broker", address(&["redis://", "rediss://"]));
        let start_timeout = section.or("start-timeout", 60.0, seconds(0.0));
        let allow_managers = section.or("allow-managers", Vec::new(), list(text));
        if let Err(error) = AllowList::parse(&allow_managers) {
            section.wrong(
                "allow-managers",
                format!("has an entry that cannot be used: {error}"),
            );
        }
        let allow_process_runtime = section.or("allow-process-runtime", false, boolean);
        let cpu_overcommit = section.or("cpu-overcommit", 2, integer_in(1..=64));
        let cloud = section.or("cloud", Cloud::Off, one_of(CLOUDS));
        let nearby = "http://169.254.169.254".to_owned();
        let cloud_metadata = section.or("cloud-metadata", nearby, plain_http);
        let cuda = section.or("cuda", Cuda::Device, one_of(CUDA));
        let mock_devices = section.or("mock-devices", 0, integer_in(0..=64));
        let mock_shares = section.or("mock-shares", 0, integer_in(0..=64));
        section.ignored(&["tls"]);
        section.end();
        let number = |number: i64| u64::try_from(number).unwrap_or_default();
        Some(Self {
            runtime,
            network,
            data_dir,
            config_store,
            broker,
            start_timeout,
            allow_managers,
            tls: tls?,
            allow_process_runtime,
            cpu_overcommit: number(cpu_overcommit),
            cloud,
            cloud_metadata,
            cuda,
            mock_devices: number(mock_devices),
            mock_shares: number(mock_shares),
        })
    }
}

/// `[bai.tls]`, when it is there. `None` when it is wrong.
fn read_tls(problems: &mut Problems<'_>) -> Option<Option<TlsFiles>> {
    if !problems.has_inner("bai", "tls") {
        return Some(None);
    }
    let mut section = problems.section("bai.tls", true);
    let authority = section.required("authority", "\"/etc/backend.ai/authority.pem\"", existing_file);
    let certificate = section.required("certificate", "\"/etc/backend.ai/agent.pem\"", existing_file);
    let key = section.required("key", "\"/etc/backend.ai/agent.key\"", existing_file);
    section.end();
    Some(Some(TlsFiles {
        authority: authority?,
        certificate: certificate?,
        key: key?,
    }))
}
