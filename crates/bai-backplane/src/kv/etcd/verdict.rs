//! What etcd means when it does not do what it is asked, and what of it may have been done.
//!
//! Not here: asking again (`link.rs`).

use std::error::Error as _;

use tonic::{Code, Status};

use crate::Error;
use crate::error::Service;

/// A call that did not do what it should.
#[derive(Debug)]
pub(super) enum Fault {
    NoSuchLease,
    Other(Error),
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::NoSuchLease => Self::invalid("etcd does not know the lease"),
            Fault::Other(error) => error,
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Other(error)
    }
}

/// What to do after a failed attempt.
pub(super) enum Verdict {
    /// The token is no longer good; nothing was done.
    LogIn,
    /// The server could not be reached or cannot serve.
    Elsewhere {
        done: Done,
        why: String,
    },
    Final(Fault),
}

/// Whether a failed attempt may have been carried out.
#[derive(PartialEq, Eq)]
pub(super) enum Done {
    No,
    Perhaps,
}

/// What a refusal means. The texts are etcd's; its codes alone are ambiguous.
pub(super) fn judge(status: &Status, service: &Service) -> Verdict {
    let text = status.message();
    let says = |part: &str| text.contains(part);
    let fault = match status.code() {
        _ if says("invalid auth token")
            || says("user name is empty")
            || says("revision of auth store is old") =>
        {
            return Verdict::LogIn;
        }
        _ if says("authentication failed") => service.refuses(text).into(),
        Code::Unauthenticated | Code::PermissionDenied => service.refuses(text).into(),
        Code::NotFound if says("lease") => Fault::NoSuchLease,
        Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => Error::invalid(text).into(),
        Code::ResourceExhausted if says("space exceeded") => service
            .unavailable("is full: compact and defragment it, then disarm its alarm")
            .into(),
        Code::Unimplemented => service.unavailable("is too old: 3.4 or later is needed").into(),
        _ => {
            let done = if was_not_sent(status) || says("no leader") || says("too many requests") {
                Done::No
            } else {
                Done::Perhaps
            };
            let why = match status.source() {
                Some(source) => format!("cannot be reached: {}", chain(source)),
                None => format!("cannot serve: {text}"),
            };
            return Verdict::Elsewhere { done, why };
        }
    };
    Verdict::Final(fault)
}

/// The connection failed before the question was on it.
fn was_not_sent(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// An error with its causes, each once.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
