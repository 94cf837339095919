//! Events as frames: name, agent, arguments (`agent-protocol.md` 3.1 to 3.3).
//!
//! Two things go beyond 19.06, whose managers ignore them: the third argument of `kernel_terminated`, which is nil there,
//! is a map with the kernel's generation and last statistics when these are known; a heartbeat has the member
//! `provided_images` when the agent brings images of its own.

use bai_model::{AgentId, KernelId, ResourceSlot, SlotTypes, SlotUnit};
use bytes::Bytes;
use rmpv::Value;
use serde_json::{Map, Value as Json};

use super::{AgentEvent, AgentInfo, InstalledImage};
use crate::msgpack::{self, At, MsgpackError, Unexpected, from_json, map};
use crate::zmtp::{Endpoint, Message};

/// `agents.id` has 64 characters.
const MAX_AGENT_ID: usize = 64;
/// What a reason is cut to.
const MAX_REASON: usize = 1024;
/// The largest list of images, before compression.
const MAX_IMAGES: usize = 16 << 20;
/// Snappy does not shrink anything to less than a twentieth, so that a larger promise is a lie.
const MAX_RATIO: usize = 32;

/// Why frames are no event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    #[error("{0} frames are no event")]
    Frames(usize),
    /// An event of another version, to be ignored.
    #[error("the event {0:?} is not known")]
    Unknown(String),
    #[error("the agent's id is not a text of 1 to {MAX_AGENT_ID} characters")]
    AgentId,
    #[error(transparent)]
    Msgpack(#[from] MsgpackError),
    #[error(transparent)]
    Unexpected(#[from] Unexpected),
    #[error("the event {name} has {arguments} arguments")]
    Arguments { name: &'static str, arguments: usize },
    #[error("the list of images is not compressed as it should be, or too large")]
    Compression,
}

/// The frames of an event of `agent`.
pub fn encode(agent: &AgentId, event: &AgentEvent) -> Message {
    let id = |kernel: &KernelId| Value::from(kernel.to_string());
    let (name, args) = match event {
        AgentEvent::InstanceStarted { .. } => ("instance_started", vec![]),
        AgentEvent::InstanceHeartbeat(info) => ("instance_heartbeat", vec![heartbeat(info)]),
        AgentEvent::InstanceTerminated { reason, .. } => {
            ("instance_terminated", vec![Value::from(reason.as_str())])
        }
        AgentEvent::KernelPreparing { kernel } => ("kernel_preparing", vec![id(kernel)]),
        AgentEvent::KernelPulling { kernel, image } => {
            ("kernel_pulling", vec![id(kernel), Value::from(image.as_str())])
        }
        AgentEvent::KernelCreating { kernel } => ("kernel_creating", vec![id(kernel)]),
        AgentEvent::KernelStarted { kernel } => ("kernel_started", vec![id(kernel)]),
        AgentEvent::KernelTerminated {
            kernel,
            reason,
            generation,
            stats,
        } => {
            let end = end(*generation, stats.as_ref());
            (
                "kernel_terminated",
                vec![id(kernel), Value::from(reason.as_str()), end],
            )
        }
    };
    vec![
        Bytes::from_static(name.as_bytes()),
        agent.0.clone().into(),
        msgpack::encode(&Value::Array(args)).into(),
    ]
}

fn end(generation: Option<u64>, stats: Option<&Json>) -> Value {
    if generation.is_none() && stats.is_none() {
        return Value::Nil;
    }
    map([
        ("generation", generation.map_or(Value::Nil, Value::from)),
        ("stats", stats.map_or(Value::Nil, from_json)),
    ])
}

fn heartbeat(info: &AgentInfo) -> Value {
    let host = info
        .addr
        .parse::<Endpoint>()
        .map_or_else(|_| String::new(), |endpoint| endpoint.host);
    let slot = |(name, amount): (&'_ str, bai_model::SlotValue)| {
        let unit = info
            .slot_types
            .unit(name)
            .unwrap_or_else(|| SlotUnit::guess(name));
        let pair = vec![Value::from(unit.as_str()), Value::from(amount.to_string())];
        (Value::from(name), Value::Array(pair))
    };
    let mut entries = vec![
        ("ip", Value::from(host)),
        ("region", Value::from(info.region.as_str())),
        ("addr", Value::from(info.addr.as_str())),
        (
            "resource_slots",
            Value::Map(info.available_slots.iter().map(slot).collect()),
        ),
        ("version", Value::from(info.version.as_str())),
        ("compute_plugins", from_json(&info.compute_plugins)),
        ("images", Value::Binary(compress(&info.installed))),
    ];
    if !info.images.is_empty() {
        // Plain texts and maps of texts always serialise.
        let provided = serde_json::to_value(&info.images).unwrap_or_default();
        entries.push(("provided_images", from_json(&provided)));
    }
    map(entries)
}

fn compress(images: &[InstalledImage]) -> Vec<u8> {
    let pair = |image: &InstalledImage| {
        Value::Array(vec![
            Value::from(image.repo_tag.as_str()),
            Value::from(image.id.as_str()),
        ])
    };
    let list = msgpack::encode(&Value::Array(images.iter().map(pair).collect()));
    // Fails above 4 GiB only.
    snap::raw::Encoder::new().compress_vec(&list).unwrap_or_default()
}

/// The agent that sent an event, and the event.
///
/// # Errors
/// When the frames are malformed, or the event is none that is known here ([`EventError::Unknown`]).
pub fn decode(message: &[Bytes]) -> Result<(AgentId, AgentEvent), EventError> {
    let [name, agent, args] = message else {
        return Err(EventError::Frames(message.len()));
    };
    let agent = agent_id(agent)?;
    let arguments = || -> Result<Vec<Value>, EventError> {
        match msgpack::decode(args)? {
            Value::Array(items) => Ok(items),
            other => Err(At::new(&other, "the third frame").wrong("not an array").into()),
        }
    };
    let event = match name.as_ref() {
        b"instance_started" => {
            let [] = exactly("instance_started", arguments()?)?;
            AgentEvent::InstanceStarted { agent: agent.clone() }
        }
        b"instance_heartbeat" => {
            let [info] = exactly("instance_heartbeat", arguments()?)?;
            AgentEvent::InstanceHeartbeat(read_heartbeat(&agent, At::new(&info, "a heartbeat"))?)
        }
        b"instance_terminated" => {
            let [reason] = exactly("instance_terminated", arguments()?)?;
            AgentEvent::InstanceTerminated {
                agent: agent.clone(),
                reason: read_reason(&reason)?,
            }
        }
        b"kernel_preparing" => {
            let [kernel] = exactly("kernel_preparing", arguments()?)?;
            AgentEvent::KernelPreparing {
                kernel: kernel_id(&kernel)?,
            }
        }
        b"kernel_pulling" => {
            let [kernel, image] = exactly("kernel_pulling", arguments()?)?;
            AgentEvent::KernelPulling {
                kernel: kernel_id(&kernel)?,
                image: read_reason(&image)?,
            }
        }
        b"kernel_creating" => {
            let [kernel] = exactly("kernel_creating", arguments()?)?;
            AgentEvent::KernelCreating {
                kernel: kernel_id(&kernel)?,
            }
        }
        b"kernel_started" => {
            let [kernel] = exactly("kernel_started", arguments()?)?;
            AgentEvent::KernelStarted {
                kernel: kernel_id(&kernel)?,
            }
        }
        b"kernel_terminated" => {
            let [kernel, reason, end] = exactly("kernel_terminated", arguments()?)?;
            let (generation, stats) = read_end(&end);
            AgentEvent::KernelTerminated {
                kernel: kernel_id(&kernel)?,
                reason: read_reason(&reason)?,
                generation,
                stats,
            }
        }
        other => {
            let name: String = String::from_utf8_lossy(other).chars().take(64).collect();
            return Err(EventError::Unknown(name));
        }
    };
    Ok((agent, event))
}

fn exactly<const N: usize>(name: &'static str, arguments: Vec<Value>) -> Result<[Value; N], EventError> {
    arguments
        .try_into()
        .map_err(|arguments: Vec<Value>| EventError::Arguments {
            name,
            arguments: arguments.len(),
        })
}

fn agent_id(frame: &[u8]) -> Result<AgentId, EventError> {
    let text = str::from_utf8(frame).map_err(|_| EventError::AgentId)?;
    let length = text.chars().count();
    if length == 0 || length > MAX_AGENT_ID || text.chars().any(char::is_control) {
        return Err(EventError::AgentId);
    }
    Ok(AgentId::from(text))
}

fn kernel_id(value: &Value) -> Result<KernelId, Unexpected> {
    let at = At::new(value, "the kernel");
    at.text()?.parse().map_err(|_| at.wrong("not a kernel id"))
}

fn read_reason(value: &Value) -> Result<String, Unexpected> {
    let text = At::new(value, "an argument").text()?;
    Ok(text.chars().take(MAX_REASON).collect())
}

/// Whatever else it is, it is ignored, as 19.06 does.
fn read_end(end: &Value) -> (Option<u64>, Option<Json>) {
    let at = At::new(end, "the end");
    let generation = at.get("generation").ok().and_then(|at| at.value.as_u64());
    let stats = at.get("stats").ok().and_then(|at| at.json().ok());
    (generation, stats.filter(|stats| !stats.is_null()))
}

fn read_heartbeat(agent: &AgentId, at: At<'_>) -> Result<AgentInfo, EventError> {
    let addr = at.get("addr")?;
    let endpoint: Endpoint = addr
        .text()?
        .parse()
        .map_err(|_| addr.wrong("not of the form tcp://host:port"))?;
    let (available_slots, slot_types) = read_slots(at.get("resource_slots")?)?;
    let plugins = at.get("compute_plugins")?;
    if !plugins.value.is_map() {
        return Err(plugins.wrong("not a map").into());
    }
    let images = at.get("images")?;
    let provided = at.get("provided_images")?;
    Ok(AgentInfo {
        id: agent.clone(),
        region: read_reason(at.get("region")?.value)?,
        addr: endpoint.to_string(),
        version: read_reason(at.get("version")?.value)?,
        available_slots,
        slot_types,
        compute_plugins: plugins.json()?,
        images: match provided.json()? {
            Json::Null => Vec::new(),
            list => serde_json::from_value(list).map_err(|_| provided.wrong("not a list of images"))?,
        },
        installed: match images.value {
            Value::Nil => Vec::new(),
            _ => decompress(images.bytes()?)?,
        },
    })
}

/// Slot names with `[unit, amount]`.
fn read_slots(at: At<'_>) -> Result<(ResourceSlot, SlotTypes), Unexpected> {
    let (mut amounts, mut types) = (Map::new(), SlotTypes::intrinsic());
    for (name, value) in at.entries()? {
        let slot = At::new(value, name);
        let [unit, amount] = slot.items()? else {
            return Err(slot.wrong("not a unit and an amount"));
        };
        let unit = At::new(unit, name).text()?.parse();
        types.insert(name, unit.map_err(|_| slot.wrong("of an unknown unit"))?);
        amounts.insert(name.to_owned(), At::new(amount, name).json()?);
    }
    let (slots, skipped) = ResourceSlot::from_stored(&Json::Object(amounts));
    if skipped.is_empty() {
        Ok((slots, types))
    } else {
        Err(at.wrong("not a map of amounts"))
    }
}

fn decompress(compressed: &[u8]) -> Result<Vec<InstalledImage>, EventError> {
    let announced = snap::raw::decompress_len(compressed).map_err(|_| EventError::Compression)?;
    if announced > MAX_IMAGES || announced / MAX_RATIO > compressed.len() {
        return Err(EventError::Compression);
    }
    let list = snap::raw::Decoder::new()
        .decompress_vec(compressed)
        .map_err(|_| EventError::Compression)?;
    let list = msgpack::decode(&list)?;
    let mut images = Vec::new();
    for item in At::new(&list, "images").items()? {
        let at = At::new(item, "an image");
        let [repo_tag, id] = at.items()? else {
            return Err(at.wrong("not a name and an id").into());
        };
        images.push(InstalledImage {
            repo_tag: At::new(repo_tag, "an image's name").text()?.to_owned(),
            id: At::new(id, "an image's id").text()?.to_owned(),
        });
    }
    Ok(images)
}
