//! Agent states (`data-model.md` 2, 7.5).

use std::fmt;
use std::str::FromStr;

/// The state of an agent as its heartbeats tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AgentStatus {
    Alive,
    Lost,
    Restarting,
    Terminated,
}

impl AgentStatus {
    pub const ALL: [Self; 4] = [Self::Alive, Self::Lost, Self::Restarting, Self::Terminated];

    /// The name stored in the database and shown to clients.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "ALIVE",
            Self::Lost => "LOST",
            Self::Restarting => "RESTARTING",
            Self::Terminated => "TERMINATED",
        }
    }

    /// Whether its kernels count as gone with it. One that merely has not reported to this manager yet is `ALIVE`.
    pub fn is_gone(self) -> bool {
        matches!(self, Self::Lost | Self::Terminated)
    }
}

impl fmt::Display for AgentStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown agent status: {0}")]
pub struct UnknownAgentStatus(pub String);

impl FromStr for AgentStatus {
    type Err = UnknownAgentStatus;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| UnknownAgentStatus(text.to_owned()))
    }
}
