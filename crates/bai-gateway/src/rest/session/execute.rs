//! `POST /kernel/{session}`: run code (`http-api.md` 4.8.5).

use std::time::Duration;

use bai_core::Error;
use bai_core::session::{BatchOptions, ConsoleItem, ExecuteMode, ExecuteReply, SessionExecute};
use bai_model::RunId;
use http::StatusCode;
use serde_json::{Map, Value, json};

use super::{complete, json_body, options_member, session, text_member};
use crate::body::json;
use crate::error::Problem;
use crate::pipeline::{Answer, Call};
use crate::version::Major;

/// How long output is gathered before an answer.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of a run id. Clients send 36 at most.
const MAX_RUN_ID: usize = 256;
/// Digits of the run ids that the gateway assigns.
const RUN_ID_DIGITS: usize = 16;

pub(in crate::rest) async fn handle(mut call: Call) -> Result<Answer, Problem> {
    let members = json_body(&mut call).await?;
    let request = if call.version == Major::V1 {
        let run_id =
            run_id(&members)?.unwrap_or_else(|| RunId::generate(call.gateway.random.as_ref(), RUN_ID_DIGITS));
        query(run_id, text_member(&members, "code")?.unwrap_or_default())
    } else {
        match decode(&members)? {
            Decoded::Run(request) => request,
            Decoded::Complete { code, options } => return complete::answer(call, code, options).await,
        }
    };
    let sent_run_id = request.run_id.clone();
    let reply = call
        .gateway
        .manager
        .session_execute(&call.op, &session(&call), request)
        .await?;
    let result = match reply {
        Some(reply) => view(reply, call.version),
        None => json!({
            "status": "finished", "runId": sent_run_id, "exitCode": 130, "options": {}, "files": [], "console": [],
        }),
    };
    json(StatusCode::OK, &json!({ "result": result }))
}

enum Decoded {
    Run(SessionExecute),
    Complete { code: String, options: Value },
}

fn query(run_id: RunId, code: String) -> SessionExecute {
    SessionExecute {
        run_id: Some(run_id),
        mode: ExecuteMode::Query,
        code,
        batch: BatchOptions::default(),
        flush_timeout: Some(FLUSH_TIMEOUT),
    }
}

/// The body of API versions from 2 on.
fn decode(members: &Map<String, Value>) -> Result<Decoded, Error> {
    if !members.contains_key("runId") {
        return Err(Error::invalid("runId is missing!"));
    }
    let run_id = run_id(members)?;
    let mode = match members.get("mode") {
        None | Some(Value::Null) => "",
        Some(mode) => mode.as_str().unwrap_or("(not a string)"),
    };
    let mode = match mode {
        "" => return Err(Error::invalid("mode is missing or empty!")),
        "query" => Some(ExecuteMode::Query),
        "batch" => Some(ExecuteMode::Batch),
        "complete" => None,
        "continue" | "input" if run_id.is_none() => {
            return Err(Error::invalid("continuation requires explicit run ID"));
        }
        "continue" => Some(ExecuteMode::Continue),
        "input" => Some(ExecuteMode::Input),
        _ => return Err(Error::invalid("mode has an invalid value.")),
    };
    let code = text_member(members, "code")?.unwrap_or_default();
    let options = Value::Object(options_member(members)?);
    let Some(mode) = mode else {
        return Ok(Decoded::Complete { code, options });
    };
    let batch = batch_options(&options);
    Ok(Decoded::Run(SessionExecute {
        run_id,
        mode,
        code,
        batch,
        flush_timeout: Some(FLUSH_TIMEOUT),
    }))
}

/// The client's name for the run; null lets the agent choose.
fn run_id(members: &Map<String, Value>) -> Result<Option<RunId>, Error> {
    let run_id = text_member(members, "runId")?;
    match run_id {
        Some(text) if !(1..=MAX_RUN_ID).contains(&text.len()) => Err(Error::invalid(format!(
            "runId must be null or have 1 to {MAX_RUN_ID} characters"
        ))),
        run_id => Ok(run_id.map(RunId)),
    }
}

/// The commands in the `options` of batch mode; anything but a string means nothing to do.
pub(crate) fn batch_options(options: &Value) -> BatchOptions {
    let command = |name: &str| options.get(name).and_then(Value::as_str).map(str::to_owned);
    BatchOptions {
        clean: command("clean"),
        build: command("build"),
        exec: command("exec"),
    }
}

/// A reply as clients of this version read it.
fn view(reply: ExecuteReply, version: Major) -> Value {
    let mut result = json!({
        "status": reply.status.as_str(),
        "runId": reply.run_id,
        "exitCode": reply.exit_code,
        "options": reply.options,
        "files": reply.files,
    });
    if version == Major::V1 {
        let console = separate(reply.console);
        result["stdout"] = console.stdout.into();
        result["stderr"] = console.stderr.into();
        result["media"] = console.media.into();
        result["html"] = console.html.into();
    } else {
        result["console"] = reply.console.iter().map(ConsoleItem::to_json).collect();
    }
    result
}

#[derive(Default)]
struct Separated {
    stdout: String,
    stderr: String,
    media: Vec<Value>,
    html: Vec<String>,
}

/// The console of API version 1: streams apart, order between them lost, log dropped.
fn separate(console: Vec<ConsoleItem>) -> Separated {
    let mut separated = Separated::default();
    for item in console {
        match item {
            ConsoleItem::Stdout(text) => separated.stdout.push_str(&text),
            ConsoleItem::Stderr(text) => separated.stderr.push_str(&text),
            ConsoleItem::Media { mime, data } => separated.media.push(json!([mime, data])),
            ConsoleItem::Html(text) => separated.html.push(text),
            ConsoleItem::Log(_) => {}
        }
    }
    separated
}
