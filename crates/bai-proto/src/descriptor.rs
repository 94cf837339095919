//! What an agent gets from inside a session besides runs: open descriptors, passed over a second socket of the runner
//! ([`SOCKET`], in the folder of the first one, which the session cannot reach).
//!
//! A connection names one [`Descriptor`] by one byte. The answer is [`HERE`] with the descriptor beside it (`SCM_RIGHTS`), or
//! [`REFUSED`] and a sentence up to the end of the connection.
//!
//! Not here: sending and receiving descriptors (the runner and the agent).

/// The socket's name.
pub const SOCKET: &str = "descriptors.sock";
/// The first byte of an answer that has a descriptor.
pub const HERE: u8 = b'+';
/// The first byte of an answer that says why there is none.
pub const REFUSED: u8 = b'-';

/// A descriptor that an agent may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptor {
    /// An IPv4 stream socket of the session's network, not connected. Whatever it is connected to is seen from inside:
    /// `127.0.0.1` is the session.
    Socket,
    /// The controlling side of the session's terminal, whose shell runs. The same one while that shell lives.
    Terminal,
}

impl Descriptor {
    pub fn to_byte(self) -> u8 {
        match self {
            Self::Socket => b's',
            Self::Terminal => b't',
        }
    }

    /// `None` for what a newer agent may ask for.
    pub fn from_byte(byte: u8) -> Option<Self> {
        [Self::Socket, Self::Terminal]
            .into_iter()
            .find(|descriptor| descriptor.to_byte() == byte)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_understood_as_they_are_said() {
        for one in [Descriptor::Socket, Descriptor::Terminal] {
            assert_eq!(Descriptor::from_byte(one.to_byte()), Some(one));
        }
        assert_eq!(Descriptor::from_byte(0), None);
    }
}
