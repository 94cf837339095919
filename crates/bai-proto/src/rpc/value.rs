//! The maps that are arguments and results of calls (`agent-protocol.md` 2.2, 2.4, 2.5, 2.8).
//!
//! Unknown keys are ignored everywhere, because later agents add some (appendix D).

use std::collections::BTreeMap;

use bai_model::{KernelId, ResourceSlot, RunId};
use rmpv::Value;

use crate::agent::{
    BatchOptions, ConsoleItem, ExecuteReply, FileListing, GeneratedFile, ImageConfig, KernelConfig,
    KernelCreated, Mount, RegistryConfig, RunStatus, ServicePort, ServiceStart,
};
use crate::event::AgentImage;
use crate::msgpack::{At, Unexpected, from_json, map};

fn optional_text(text: Option<&String>) -> Value {
    text.map_or(Value::Nil, |text| Value::from(text.as_str()))
}

fn texts(entries: &BTreeMap<String, String>) -> Value {
    map(entries
        .iter()
        .map(|(key, value)| (key.as_str(), Value::from(value.as_str()))))
}

/// Whole numbers are taken for their digits: what a user gave as JSON comes as it was.
fn read_texts(at: At<'_>) -> Result<BTreeMap<String, String>, Unexpected> {
    let entry = |(key, value): (&str, &Value)| {
        let text = match value {
            Value::Integer(number) => number.to_string(),
            _ => At::new(value, key).text()?.to_owned(),
        };
        Ok((key.to_owned(), text))
    };
    at.entries()?.map(entry).collect()
}

pub(super) fn image(image: &ImageConfig) -> Value {
    let RegistryConfig {
        name,
        url,
        username,
        password,
    } = &image.registry;
    let mut registry = vec![
        ("name", Value::from(name.as_str())),
        ("url", Value::from(url.as_str())),
    ];
    let credentials = [("username", username), ("password", password)];
    registry.extend(
        credentials
            .into_iter()
            .filter_map(|(key, value)| Some((key, Value::from(value.as_deref()?)))),
    );
    map([
        ("registry", map(registry)),
        ("digest", Value::from(image.digest.as_str())),
        ("canonical", Value::from(image.canonical.as_str())),
        ("labels", texts(&image.labels)),
    ])
}

fn read_image(at: At<'_>) -> Result<ImageConfig, Unexpected> {
    let registry = at.get("registry")?;
    Ok(ImageConfig {
        canonical: at.get("canonical")?.text()?.to_owned(),
        digest: at.get("digest")?.text()?.to_owned(),
        labels: read_texts(at.get("labels")?)?,
        registry: RegistryConfig {
            name: registry.get("name")?.text()?.to_owned(),
            url: registry.get("url")?.text()?.to_owned(),
            username: registry.get("username")?.optional_text()?,
            password: registry.get("password")?.optional_text()?,
        },
    })
}

fn mount(mount: &Mount) -> Value {
    let permission = if mount.writable { "rw" } else { "ro" };
    let parts = [&mount.name, &mount.host, &mount.folder];
    let parts = parts.into_iter().map(|part| Value::from(part.as_str()));
    Value::Array(parts.chain([Value::from(permission)]).collect())
}

/// With three items instead of four, a mount is writable.
fn read_mount(item: &Value) -> Result<Mount, Unexpected> {
    let at = At::new(item, "mounts");
    let parts: Vec<&str> = at
        .items()?
        .iter()
        .map(|part| At::new(part, "a mount").text())
        .collect::<Result<_, _>>()?;
    let (name, host, folder, permission) = match parts.as_slice() {
        [name, host, folder] => (name, host, folder, "rw"),
        [name, host, folder, permission] => (name, host, folder, *permission),
        _ => return Err(at.wrong("not of three or four parts each")),
    };
    let writable = match permission {
        "ro" => false,
        "rw" | "wd" => true,
        _ => return Err(at.wrong("of an unknown permission")),
    };
    Ok(Mount {
        name: (*name).to_owned(),
        host: (*host).to_owned(),
        folder: (*folder).to_owned(),
        writable,
    })
}

/// For `create_kernel`.
pub(super) fn creation(config: &KernelConfig) -> Value {
    map([
        ("image", image(&config.image)),
        ("resource_slots", from_json(&config.resource_slots.to_json())),
        ("idle_timeout", Value::from(config.idle_timeout)),
        ("mounts", Value::Array(config.mounts.iter().map(mount).collect())),
        ("environ", texts(&config.environ)),
    ])
}

/// For `restart_kernel`, which keeps time-out and mounts (2.4).
pub(super) fn restart(config: &KernelConfig) -> Value {
    map([
        ("image", image(&config.image)),
        ("environ", texts(&config.environ)),
        ("mounts", Value::Array(Vec::new())),
        ("resource_slots", from_json(&config.resource_slots.to_json())),
    ])
}

/// Of both.
pub(super) fn read_config(at: At<'_>) -> Result<KernelConfig, Unexpected> {
    let slots = at.get("resource_slots")?;
    let (resource_slots, skipped) = ResourceSlot::from_stored(&slots.json()?);
    if !skipped.is_empty() {
        return Err(slots.wrong("not a map of amounts"));
    }
    let idle_timeout = at.get("idle_timeout")?;
    let mounts = at.get("mounts")?.items()?;
    Ok(KernelConfig {
        image: read_image(at.get("image")?)?,
        resource_slots,
        idle_timeout: match idle_timeout.value {
            Value::Nil => 0,
            _ => idle_timeout.number::<u64>()?,
        },
        mounts: mounts.iter().map(read_mount).collect::<Result<_, _>>()?,
        environ: read_texts(at.get("environ")?)?,
    })
}

fn service_port(port: &ServicePort) -> Value {
    map([
        ("name", Value::from(port.name.as_str())),
        ("protocol", Value::from(port.protocol.as_str())),
        ("container_port", Value::from(port.container_port)),
        ("host_port", Value::from(port.host_port)),
    ])
}

fn read_service_port(item: &Value) -> Result<ServicePort, Unexpected> {
    let at = At::new(item, "a service port");
    Ok(ServicePort {
        name: at.get("name")?.text()?.to_owned(),
        protocol: at.get("protocol")?.text()?.to_owned(),
        container_port: at.get("container_port")?.number()?,
        host_port: at.get("host_port")?.number()?,
    })
}

/// The result of `create_kernel`, with `kernel`, and of `restart_kernel`, without. There is no `resource_spec`, which nobody
/// reads.
pub(super) fn created(created: &KernelCreated, kernel: Option<KernelId>) -> Value {
    let mut entries = Vec::new();
    if let Some(kernel) = kernel {
        entries.push(("id", Value::from(kernel.to_string())));
        if let Some(host) = &created.kernel_host {
            entries.push(("kernel_host", Value::from(host.as_str())));
        }
    }
    let ports = created.service_ports.iter().map(service_port).collect();
    entries.extend([
        ("repl_in_port", Value::from(created.repl_in_port)),
        ("repl_out_port", Value::from(created.repl_out_port)),
        ("stdin_port", Value::from(created.stdin_port)),
        ("stdout_port", Value::from(created.stdout_port)),
        ("service_ports", Value::Array(ports)),
        ("container_id", Value::from(created.container_id.as_str())),
    ]);
    map(entries)
}

/// The result of `destroy_kernel`: the last statistics in the second version of their form (2.3).
pub(super) fn final_stats(stats: &serde_json::Value) -> Value {
    let mut told = from_json(stats);
    if let Value::Map(entries) = &mut told {
        let version = Value::from("version");
        // What is passed on from another agent has it.
        if entries.iter().all(|(key, _)| *key != version) {
            entries.push((version, Value::from(2)));
        }
    }
    told
}

pub(super) fn read_created(at: At<'_>) -> Result<KernelCreated, Unexpected> {
    let ports = at.get("service_ports")?;
    let ports = match ports.value {
        Value::Nil => &[],
        _ => ports.items()?,
    };
    Ok(KernelCreated {
        // Empty is absent.
        kernel_host: at
            .get("kernel_host")?
            .optional_text()?
            .filter(|host| !host.is_empty()),
        repl_in_port: at.get("repl_in_port")?.number()?,
        repl_out_port: at.get("repl_out_port")?.number()?,
        stdin_port: at.get("stdin_port")?.number()?,
        stdout_port: at.get("stdout_port")?.number()?,
        service_ports: ports.iter().map(read_service_port).collect::<Result<_, _>>()?,
        container_id: at.get("container_id")?.text()?.to_owned(),
    })
}

/// Which kernel a reply to `create_kernel` is about.
pub(super) fn read_created_id(at: At<'_>) -> Result<KernelId, Unexpected> {
    let id = at.get("id")?;
    id.text()?.parse().map_err(|_| id.wrong("not a kernel id"))
}

/// Commands that are not given are left out.
pub(super) fn batch(options: &BatchOptions) -> Value {
    let commands = [
        ("clean", &options.clean),
        ("build", &options.build),
        ("exec", &options.exec),
    ];
    map(commands
        .into_iter()
        .filter_map(|(key, command)| Some((key, Value::from(command.as_deref()?)))))
}

pub(super) fn read_batch(at: At<'_>) -> Result<BatchOptions, Unexpected> {
    Ok(BatchOptions {
        clean: at.get("clean")?.optional_text()?,
        build: at.get("build")?.optional_text()?,
        exec: at.get("exec")?.optional_text()?,
    })
}

fn console_item(item: &ConsoleItem) -> Value {
    let pair = |kind: &str, data: Value| Value::Array(vec![Value::from(kind), data]);
    match item {
        ConsoleItem::Stdout(text) => pair("stdout", Value::from(text.as_str())),
        ConsoleItem::Stderr(text) => pair("stderr", Value::from(text.as_str())),
        ConsoleItem::Html(text) => pair("html", Value::from(text.as_str())),
        ConsoleItem::Log(text) => pair("log", Value::from(text.as_str())),
        ConsoleItem::Media { mime, data } => pair("media", media(mime, data)),
    }
}

fn media(mime: &str, data: &str) -> Value {
    Value::Array(vec![Value::from(mime), Value::from(data)])
}

/// Items of a kind that is not known here are left out.
fn read_console_item(item: &Value) -> Result<Option<ConsoleItem>, Unexpected> {
    let at = At::new(item, "console");
    let [kind, data] = at.items()? else {
        return Err(at.wrong("not of pairs"));
    };
    let data = At::new(data, "an item of the console");
    let text = || data.text().map(str::to_owned);
    Ok(Some(match At::new(kind, "an item of the console").text()? {
        "stdout" => ConsoleItem::Stdout(text()?),
        "stderr" => ConsoleItem::Stderr(text()?),
        "html" => ConsoleItem::Html(text()?),
        "log" => ConsoleItem::Log(text()?),
        "media" => {
            let [mime, content] = data.items()? else {
                return Err(data.wrong("not a pair of type and data"));
            };
            ConsoleItem::Media {
                mime: At::new(mime, "a media type").text()?.to_owned(),
                data: At::new(content, "media").text()?.to_owned(),
            }
        }
        _ => return Ok(None),
    }))
}

/// For `api_version` 1 by stream, otherwise in order (6.5).
pub(super) fn execution(reply: &ExecuteReply, api_version: i64) -> Value {
    let options = reply.options.as_ref().map_or(Value::Nil, |options| {
        map(options
            .iter()
            .map(|(key, value)| (key.as_str(), from_json(value))))
    });
    // An agent that named no run is passed on as it is.
    let run_id = Some(&reply.run_id.0).filter(|id| !id.is_empty());
    let mut entries = vec![
        ("runId", optional_text(run_id)),
        ("status", Value::from(reply.status.as_str())),
        ("exitCode", reply.exit_code.map_or(Value::Nil, Value::from)),
        ("options", options),
    ];
    if api_version >= 2 {
        let console = reply.console.iter().map(console_item).collect();
        entries.push(("console", Value::Array(console)));
    } else {
        entries.extend(by_stream(&reply.console));
    }
    let file = |file: &GeneratedFile| {
        map([
            ("name", Value::from(file.name.as_str())),
            ("url", Value::from(file.url.as_str())),
        ])
    };
    entries.push(("files", Value::Array(reply.files.iter().map(file).collect())));
    map(entries)
}

fn by_stream(console: &[ConsoleItem]) -> [(&'static str, Value); 4] {
    let (mut stdout, mut stderr, mut medias, mut htmls) = (String::new(), String::new(), vec![], vec![]);
    for item in console {
        match item {
            ConsoleItem::Stdout(text) => stdout.push_str(text),
            ConsoleItem::Stderr(text) => stderr.push_str(text),
            ConsoleItem::Media { mime, data } => medias.push(media(mime, data)),
            ConsoleItem::Html(text) => htmls.push(Value::from(text.as_str())),
            ConsoleItem::Log(_) => {}
        }
    }
    [
        ("stdout", Value::from(stdout)),
        ("stderr", Value::from(stderr)),
        ("media", Value::Array(medias)),
        ("html", Value::Array(htmls)),
    ]
}

/// An agent that names no run means the one that was `asked` for.
pub(super) fn read_execution(at: At<'_>, asked: Option<RunId>) -> Result<ExecuteReply, Unexpected> {
    let run_id = at.get("runId")?.optional_text()?.map(RunId).or(asked);
    let status = at.get("status")?;
    let exit_code = at.get("exitCode")?;
    let options = at.get("options")?;
    let console = at.get("console")?.items()?;
    let files = at.get("files")?;
    let files = match files.value {
        Value::Nil => &[],
        _ => files.items()?,
    };
    let file = |item: &Value| {
        let at = At::new(item, "a file");
        Ok(GeneratedFile {
            name: at.get("name")?.text()?.to_owned(),
            url: at.get("url")?.text()?.to_owned(),
        })
    };
    Ok(ExecuteReply {
        run_id: run_id.unwrap_or_else(|| RunId(String::new())),
        status: RunStatus::from_name(status.text()?).ok_or_else(|| status.wrong("unknown"))?,
        exit_code: match exit_code.value {
            Value::Nil => None,
            _ => Some(exit_code.number()?),
        },
        options: match options.json()? {
            serde_json::Value::Null => None,
            serde_json::Value::Object(options) => Some(options),
            _ => return Err(options.wrong("not a map")),
        },
        console: console
            .iter()
            .filter_map(|item| read_console_item(item).transpose())
            .collect::<Result<_, _>>()?,
        files: files.iter().map(file).collect::<Result<_, _>>()?,
    })
}

/// As JSON text: only our own peers say it.
pub(super) fn agent_image(image: &AgentImage) -> Value {
    Value::from(serde_json::json!(image).to_string())
}

/// The other direction of [`agent_image`].
pub(super) fn read_agent_image(at: At<'_>) -> Result<AgentImage, Unexpected> {
    serde_json::from_str(at.text()?).map_err(|_| at.wrong("not an image"))
}

pub(super) fn listing(listing: &FileListing) -> Value {
    let mut entries = vec![
        ("files", Value::from(listing.files.as_str())),
        ("errors", Value::from(listing.errors.as_str())),
    ];
    if listing.abspath.is_some() {
        entries.push(("abspath", optional_text(listing.abspath.as_ref())));
    }
    map(entries)
}

pub(super) fn read_listing(at: At<'_>) -> Result<FileListing, Unexpected> {
    Ok(FileListing {
        files: at.get("files")?.text()?.to_owned(),
        errors: at.get("errors")?.text()?.to_owned(),
        abspath: at.get("abspath")?.optional_text()?,
    })
}

pub(super) fn service_start(start: &ServiceStart) -> Value {
    match start {
        ServiceStart::Started => map([("status", Value::from("started"))]),
        ServiceStart::Running => map([("status", Value::from("running"))]),
        ServiceStart::Failed(error) => map([
            ("status", Value::from("failed")),
            ("error", Value::from(error.as_str())),
        ]),
    }
}

pub(super) fn read_service_start(at: At<'_>) -> Result<ServiceStart, Unexpected> {
    let status = at.get("status")?;
    match status.text()? {
        "started" => Ok(ServiceStart::Started),
        "running" => Ok(ServiceStart::Running),
        "failed" => {
            let error = at.get("error")?.optional_text()?;
            Ok(ServiceStart::Failed(error.unwrap_or_default()))
        }
        _ => Err(status.wrong("unknown")),
    }
}
