//! `POST /kernel` and `/kernel/create`: get or create a session (`http-api.md` 4.8.1). Parameters of later clients are
//! accepted and ignored, or refused by name where ignoring them would mislead (`clients.md` 11.3, item 1).

use std::collections::BTreeMap;

use bai_core::Error;
use bai_core::session::{RequestedResources, SessionCreate};
use bai_model::AccessKey;
use bai_model::ids::SESSION_NAME_PATTERN;
use http::StatusCode;
use serde_json::{Map, Value, json};

use super::owner;
use crate::body::json;
use crate::error::Problem;
use crate::params::Params;
use crate::pipeline::{Answer, Call};
use crate::version::Major;

/// Bytes of all names and values of `environ`. A program takes 128 KiB in one variable at most.
const MAX_ENVIRON: usize = 64 << 10;
/// Folders in one session.
const MAX_MOUNTS: usize = 64;

pub(in crate::rest) async fn handle(mut call: Call) -> Result<Answer, Problem> {
    let body = call.body().await?;
    let mut params = Params::parse(body.as_deref(), call.query())?;
    let name = params.string(&["clientSessionToken"]);
    let parsed_name = name.parse();
    if !name.is_empty() && parsed_name.is_err() {
        params.fail(
            "clientSessionToken",
            format!("does not match pattern {SESSION_NAME_PATTERN}"),
        );
    }
    let image = params.string(&["image", "lang"]);
    let group = params.string_or(&["group", "groupName", "group_name"], "default");
    let domain = params.string_or(&["domain", "domainName", "domain_name"], "default");
    let mut config = params.mapping("config");
    let tag = params.optional_string("tag");
    let body_owner = params.optional_string("owner_access_key").map(AccessKey);
    let reuse_if_exists = !matches!(params.any("reuseIfExists"), Some(Value::Bool(false)));
    let kind = params.any("type");
    let enqueue_only = params.any("enqueueOnly");
    params.ignore_unknown();
    params.finish()?;
    if kind.as_ref().is_some_and(|kind| kind == "batch") {
        return Err(
            Error::invalid("Sessions of type batch are not supported; create an interactive one").into(),
        );
    }
    if enqueue_only == Some(Value::Bool(true)) {
        return Err(Error::invalid("There is no queue; set enqueueOnly to false").into());
    }
    if call.version == Major::V1 {
        config = Map::new();
    }
    let request = SessionCreate {
        name: parsed_name.map_err(|_| Problem::internal())?,
        image,
        group,
        domain,
        tag,
        owner: owner(&call).or(body_owner),
        mounts: mounts(config.shift_remove("mounts"))?,
        environ: environ(config.shift_remove("environ"))?,
        resources: resources(config)?,
        reuse_if_exists,
    };
    let session = call.gateway.manager.session_create(&call.op, request).await?;
    let view = json!({
        "kernelId": session.name,
        "servicePorts": session.service_ports,
        "created": session.created,
        "status": session.status.as_str(),
    });
    json(StatusCode::CREATED, &view)
}

fn invalid(what: &str) -> Problem {
    Error::invalid(format!("config.{what}")).into()
}

fn mounts(value: Option<Value>) -> Result<Vec<String>, Problem> {
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(value) => {
            let names: Vec<String> = serde_json::from_value(value)
                .map_err(|_| invalid("mounts must be a list of folder names"))?;
            if names.len() > MAX_MOUNTS {
                return Err(invalid(&format!("mounts must have at most {MAX_MOUNTS} names")));
            }
            Ok(names)
        }
    }
}

fn environ(value: Option<Value>) -> Result<BTreeMap<String, String>, Problem> {
    let object = match value {
        None | Some(Value::Null) => return Ok(BTreeMap::new()),
        Some(Value::Object(object)) => object,
        Some(_) => return Err(invalid("environ must be an object of strings")),
    };
    let size: usize = object
        .iter()
        .map(|(name, value)| name.len() + value.as_str().map_or(0, str::len))
        .sum();
    if size > MAX_ENVIRON {
        return Err(invalid(&format!(
            "environ must have at most {MAX_ENVIRON} bytes in all; put larger data into a file"
        )));
    }
    let entries = object.into_iter().map(|(name, value)| {
        let is_legal_name = !name.is_empty() && !name.contains(['=', '\0', '\n']);
        match value {
            Value::String(value) if is_legal_name && !value.contains(['\0', '\n']) => Ok((name, value)),
            Value::Number(value) if is_legal_name => Ok((name, value.to_string())),
            _ => Err(invalid(
                "environ must have names without '=' and strings of one line as values",
            )),
        }
    });
    entries.collect()
}

/// The `resources` object or, where it is absent, the legacy members.
fn resources(mut config: Map<String, Value>) -> Result<RequestedResources, Problem> {
    let mut given = |name: &str| config.shift_remove(name).filter(|value| !value.is_null());
    match given("resources") {
        Some(Value::Object(slots)) => Ok(RequestedResources::Slots(slots)),
        Some(_) => Err(invalid("resources must be an object of amounts by slot")),
        None => Ok(RequestedResources::Legacy {
            memory: given("instanceMemory"),
            cores: given("instanceCores"),
            gpus: given("instanceGPUs").is_some(),
            tpus: given("instanceTPUs").is_some(),
        }),
    }
}
