//! What a kernel publishes becomes records (`agent-protocol.md` 6.3, 6.4).

use bai_proto::runner::Record;
use serde_json::Value;

use super::message::Received;
use crate::outbox::Outbox;
use crate::output::{Output, Stream};

/// The best form of a value first; what has none of them is shown as text.
const KINDS: [&str; 4] = ["text/html", "image/svg+xml", "image/png", "image/jpeg"];

/// Passes on what is meant for the user.
pub fn show(message: &Received, output: &mut Output, outbox: &Outbox) {
    let content = &message.content;
    let is_shown = match message.kind.as_str() {
        "stream" => text(&content["text"]).map(|text| {
            let stream = match content["name"].as_str() {
                Some("stderr") => Stream::Stderr,
                _ => Stream::Stdout,
            };
            output.pass_on(stream, text.as_bytes());
        }),
        "error" => traceback(content).map(|text| output.pass_on(Stream::Stderr, text.as_bytes())),
        "execute_result" => show_value(&content["data"], "", output, outbox),
        "display_data" | "update_display_data" => show_value(&content["data"], "\n", output, outbox),
        // What it is doing, and what only a notebook can show.
        _ => return,
    };
    if is_shown.is_none() {
        outbox.complain("[output that cannot be read left out]\n");
    }
}

/// Shows a value in its best form; `end` follows it if that is text.
pub fn show_value(data: &Value, end: &str, output: &mut Output, outbox: &Outbox) -> Option<()> {
    for mime in KINDS {
        let Some(data) = text(&data[mime]) else { continue };
        outbox.send(&match mime {
            "text/html" => Record::Html(data),
            "image/svg+xml" => media(mime, data),
            // Base64, which some kernels break into lines.
            mime => media(mime, data.split_whitespace().collect()),
        });
        return Some(());
    }
    match text(&data["text/plain"]) {
        Some(text) => output.pass_on(Stream::Stdout, (text + end).as_bytes()),
        // Nothing that can be shown, as long as it is a value at all.
        None => drop(data.as_object()?),
    }
    Some(())
}

fn media(mime: &str, data: String) -> Record {
    Record::Media {
        mime: mime.to_owned(),
        data,
    }
}

/// Texts may come as lists of lines.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(lines) => lines.iter().map(Value::as_str).collect(),
        _ => None,
    }
}

/// The lines of a traceback; the error alone where there are none.
fn traceback(error: &Value) -> Option<String> {
    let lines = error["traceback"].as_array().filter(|lines| !lines.is_empty());
    let mut text = match lines {
        Some(lines) => lines
            .iter()
            .map(Value::as_str)
            .collect::<Option<Vec<_>>>()?
            .join("\n"),
        None => format!("{}: {}", error["ename"].as_str()?, error["evalue"].as_str()?),
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Some(text)
}
