//! An agent's events on their way to the managers.
//!
//! Invariants: events go in their order, also when the manager's address changes; so many wait at most, and of heartbeats
//! only the last.

use std::time::Duration;

use bai_proto::event::{AgentEvent, EventSender};
use bai_proto::zmtp::{Endpoint, LinkOptions};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How long the last events may take.
const FLUSH: Duration = Duration::from_secs(5);

/// Passes events on until `last`, and then those that are there.
pub async fn forward(
    mut events: mpsc::Receiver<AgentEvent>,
    mut sender: EventSender,
    mut manager: watch::Receiver<Endpoint>,
    options: LinkOptions,
    last: CancellationToken,
) {
    loop {
        let event = tokio::select! {
            biased;
            Ok(()) = manager.changed() => {
                redirect(&mut sender, &mut manager, &options);
                continue;
            }
            event = events.recv() => match event {
                Some(event) => event,
                None => break,
            },
            () = last.cancelled(), if !events.is_closed() => {
                events.close();
                continue;
            }
        };
        tokio::select! {
            () = put(&event, &mut sender, &mut manager, &options) => {}
            // Nobody takes events, and no more can wait.
            () = overdue(&last) => break,
        }
    }
    if timeout(FLUSH, sender.flushed()).await.is_err() {
        tracing::warn!(
            "the last events have reached no manager; managers find out by comparing their records"
        );
    }
}

/// Puts an event behind the others, as soon as one more may wait.
async fn put(
    event: &AgentEvent,
    sender: &mut EventSender,
    manager: &mut watch::Receiver<Endpoint>,
    options: &LinkOptions,
) {
    loop {
        // An event whose sending is given up is not in the queue.
        tokio::select! {
            biased;
            () = sender.send(event) => return,
            Ok(()) = manager.changed() => {}
        }
        redirect(sender, manager, options);
    }
}

async fn overdue(last: &CancellationToken) {
    last.cancelled().await;
    tokio::time::sleep(FLUSH).await;
}

fn redirect(sender: &mut EventSender, manager: &mut watch::Receiver<Endpoint>, options: &LinkOptions) {
    let endpoint = manager.borrow_and_update().clone();
    sender.redirect(endpoint, options.clone());
}
