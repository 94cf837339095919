//! `GET /resource/usage/month` and `/period`: what sessions that have ended used.
//!
//! The answer is written as it is read, so that its size does not matter here; a group's sums come after its sessions. When
//! the database fails in the middle, the answer breaks off, and the log says why.

use axum::body::Body;
use bai_core::Error;
use bai_core::resource::{UsageGroup, UsagePages, UsageReport, UsageSums};
use bytes::Bytes;
use futures_util::stream;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use serde_json::{Map, Value, json};

use crate::error::Problem;
use crate::params::Params;
use crate::pipeline::{Answer, Call};

pub(in crate::rest) async fn per_month(mut call: Call) -> Result<Answer, Problem> {
    let body = call.body().await?;
    let mut params = Params::parse(body.as_deref(), call.query())?;
    let groups = params.strings(&["group_ids", "project_ids", "group", "project"]);
    let month = params.digits("month", 6, false);
    params.finish()?;
    let manager = &call.gateway.manager;
    let report = manager
        .resource_usage_per_month(&call.op, &groups, &month)
        .await?;
    Ok(answer(Writer::new(report, Form::List)))
}

pub(in crate::rest) async fn per_period(mut call: Call) -> Result<Answer, Problem> {
    let body = call.body().await?;
    let mut params = Params::parse(body.as_deref(), call.query())?;
    let group = params.string(&["group_id", "project_id", "group", "project"]);
    let start = params.digits("start_date", 8, true);
    let end = params.digits("end_date", 8, true);
    params.finish()?;
    let manager = &call.gateway.manager;
    let report = manager
        .resource_usage_per_period(&call.op, &group, &start, &end)
        .await?;
    Ok(answer(Writer::new(report, Form::One { start, end })))
}

fn answer(writer: Writer) -> Answer {
    let chunks = stream::try_unfold(writer, async |mut writer| {
        let chunk = writer.next().await.inspect_err(|error| {
            tracing::error!(%error, "a usage report broke off");
        })?;
        Ok::<_, Error>(chunk.map(|chunk| (Bytes::from(chunk), writer)))
    });
    let mut answer = Response::new(Body::from_stream(chunks));
    answer.headers_mut().insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/json; charset=utf-8"),
    );
    answer
}

/// What the groups are written into.
enum Form {
    List,
    /// The one group, with the period as it was asked for.
    One {
        start: String,
        end: String,
    },
}

/// A report on its way to its reader, piece by piece.
struct Writer {
    form: Form,
    groups: std::vec::IntoIter<UsageGroup>,
    report: UsageReport,
    place: Place,
}

/// What comes next.
enum Place {
    /// A group, the first one or a further one.
    Group {
        is_first: bool,
    },
    Sessions {
        pages: UsagePages,
        sums: UsageSums,
        is_first: bool,
    },
    Nothing,
}

impl Writer {
    fn new(mut report: UsageReport, form: Form) -> Self {
        Self {
            form,
            groups: std::mem::take(&mut report.groups).into_iter(),
            report,
            place: Place::Group { is_first: true },
        }
    }

    /// The next piece of JSON.
    async fn next(&mut self) -> Result<Option<String>, Error> {
        match &mut self.place {
            Place::Nothing => Ok(None),
            Place::Group { is_first } => {
                let is_first = *is_first;
                let open = match self.form {
                    Form::List if is_first => "[",
                    Form::List => ",",
                    Form::One { .. } => "",
                };
                let Some(group) = self.groups.next() else {
                    self.place = Place::Nothing;
                    return Ok(Some(match self.form {
                        Form::List if is_first => "[]".to_owned(),
                        Form::List => "]".to_owned(),
                        Form::One { .. } => String::new(),
                    }));
                };
                self.place = Place::Sessions {
                    pages: self.report.pages(&group),
                    sums: UsageSums::default(),
                    is_first: true,
                };
                let head = json!({ "domain_name": group.domain_name, "g_id": group.id.to_string(), "g_name": group.name });
                let head = head.to_string();
                let head = head.strip_suffix('}').unwrap_or(&head);
                Ok(Some(format!("{open}{head},\"c_infos\":[")))
            }
            Place::Sessions {
                pages,
                sums,
                is_first,
            } => {
                let sessions = pages.next().await?;
                if sessions.is_empty() {
                    let tail = self.form.with_period(sums)?;
                    self.place = Place::Group { is_first: false };
                    return Ok(Some(tail));
                }
                let mut text = String::new();
                for session in sessions {
                    if !std::mem::take(is_first) {
                        text.push(',');
                    }
                    text += &serde_json::to_string(&session).map_err(unwritable)?;
                    sums.add(&session);
                }
                Ok(Some(text))
            }
        }
    }
}

impl Form {
    /// The end of a group, after its sessions.
    fn with_period(&self, sums: &UsageSums) -> Result<String, Error> {
        let mut members = match serde_json::to_value(sums).map_err(unwritable)? {
            Value::Object(members) => members,
            _ => Map::new(),
        };
        if let Self::One { start, end } = self {
            members.insert("start_date".to_owned(), start.as_str().into());
            members.insert("end_date".to_owned(), end.as_str().into());
        }
        let tail = Value::Object(members).to_string();
        Ok(format!("],{}", tail.strip_prefix('{').unwrap_or(&tail)))
    }
}

fn unwritable(error: serde_json::Error) -> Error {
    Error::Internal(format!("a usage report cannot be written: {error}"))
}
