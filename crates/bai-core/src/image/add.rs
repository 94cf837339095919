//! Adding an image of agents' container engines to the catalogue, whether it is made for sessions or not.

use std::time::Duration;

use bai_model::AgentId;
use bai_proto::agent::AgentError;
use bai_proto::event::AgentImage;
use futures_util::future::join_all;

use super::MAX_REFERENCE;
use crate::{Error, Manager, Op, Result};

/// An image may have to be pulled first.
const DEADLINE: Duration = Duration::from_secs(30 * 60);

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedImage {
    /// By what name sessions are created.
    pub reference: String,
    /// The agents that have it.
    pub agents: Vec<AgentId>,
    /// The others, and why they do not.
    pub refusals: Vec<(AgentId, String)>,
}

impl Manager {
    /// Lets the agents of the site offer one more image, which those that do not have it pull, and puts it into the
    /// catalogue. What kind of sessions it is for, agents find out. For superadmins.
    ///
    /// # Errors
    /// [`Error::Unauthorized`]; [`Error::InvalidParameters`] with each agent's reason when none can offer it;
    /// [`Error::ServiceUnavailable`] when there is no agent.
    pub async fn image_add(&self, op: &Op, name: &str) -> Result<AddedImage> {
        op.superadmin()?;
        if name.is_empty() || name.chars().count() > MAX_REFERENCE || name.contains(char::is_whitespace) {
            return Err(Error::invalid(format!(
                "An image's name must have 1 to {MAX_REFERENCE} characters and no blanks"
            )));
        }
        let mut agents = Vec::new();
        for (id, _) in self.store.reader().addresses_of_agents().await? {
            if let Some(agent) = self.agent(&id).await? {
                agents.push((id, agent));
            }
        }
        if agents.is_empty() {
            return Err(Error::ServiceUnavailable(
                "no agent is there that could have the image; start one".to_owned(),
            ));
        }
        let adding = agents.into_iter().map(async |(id, agent)| {
            let added = tokio::time::timeout(DEADLINE, agent.add_image(name.to_owned())).await;
            (id, added.unwrap_or(Err(AgentError::Timeout)))
        });
        let mut images: Vec<AgentImage> = Vec::new();
        let (mut having, mut refusals) = (Vec::new(), Vec::new());
        for (id, added) in join_all(adding).await {
            match added {
                Ok(image) => {
                    images.push(image);
                    having.push(id);
                }
                Err(AgentError::Exception { args, .. }) if !args.is_empty() => {
                    refusals.push((id, args.join(", ")));
                }
                Err(error) => refusals.push((id, error.to_string())),
            }
        }
        let Some(image) = images.first() else {
            let reasons: Vec<String> = refusals.iter().map(|(id, why)| format!("{id}: {why}")).collect();
            return Err(Error::invalid(format!(
                "No agent can offer the image {name} ({})",
                reasons.join("; ")
            )));
        };
        let reference = image.canonical.clone();
        self.register_agent_images(&images).await?;
        // Their next heartbeats say so too.
        for (agent, image) in having.iter().zip(&images) {
            self.agents.note_image(agent, &image.canonical);
        }
        tracing::info!(image = reference, agents = having.len(), "an image was added");
        Ok(AddedImage {
            reference,
            agents: having,
            refusals,
        })
    }
}
