//! `GET /stream/kernel/{session}/events` (`http-api.md` 4.9.4): what becomes of sessions, as server-sent events.
//!
//! The path names one of the requester's sessions, whose events come until it has ended, or `_` for all of them, without
//! an end. `sessionId` narrows to a name or a kernel's id; `ownerAccessKey` is somebody else, for administrators.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use bai_core::lifecycle::{SessionEvent, SessionEvents, SessionEventsRequest, TooSlow};
use bai_model::AccessKey;
use futures_util::stream;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::error::Problem;
use crate::params;
use crate::pipeline::{Answer, Call};

/// All sessions of an owner.
const ALL: &str = "_";
/// How often a stream without events shows that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

pub(crate) async fn handle(call: Call) -> Result<Answer, Problem> {
    let request = request(&call);
    let events = call.gateway.manager.session_events(&call.op, request).await?;
    let stopping = call.gateway.stopping.clone();
    let events = stream::unfold((events, stopping), next);
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
    Ok(Sse::new(events).keep_alive(keep_alive).into_response())
}

/// Which events are asked for.
fn request(call: &Call) -> SessionEventsRequest {
    let value = |name| params::query_value(call.query(), name).filter(|value| !value.is_empty());
    let owner = value("ownerAccessKey").or_else(|| value("owner_access_key"));
    let after = call.parts.headers.get("last-event-id");
    SessionEventsRequest {
        session: call.parameter.clone().filter(|name| name != ALL),
        owner: owner.map(AccessKey),
        only: value("sessionId"),
        after: after
            .map(|id| id.to_str().unwrap_or("?").to_owned())
            .filter(|id| !id.is_empty()),
    }
}

type Listening = (SessionEvents, CancellationToken);

async fn next((mut events, stopping): Listening) -> Option<(Result<Event, Infallible>, Listening)> {
    let heard = tokio::select! {
        heard = events.next() => heard?,
        // Clients come again by themselves, with the id of the last event.
        () = stopping.cancelled() => return None,
    };
    let event = match heard {
        Ok(event) => view(&event),
        Err(error @ TooSlow) => Event::default()
            .event("dropped")
            .data(json!({ "reason": error.to_string() }).to_string()),
    };
    Some((Ok(event), (events, stopping)))
}

fn view(event: &SessionEvent) -> Event {
    let data = json!({
        "sessionId": event.kernel,
        "sessionName": event.session,
        "ownerAccessKey": event.owner,
        "reason": event.reason,
    });
    Event::default()
        .id(&event.id)
        .event(event.event.as_str())
        .data(data.to_string())
}
