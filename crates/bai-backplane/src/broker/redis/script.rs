//! A script that the server knows by its hash, once it was sent.

use redis::Cmd;

/// Text and hash of a Lua script with one key.
#[derive(Debug)]
pub(super) struct Script {
    text: &'static str,
    hash: String,
}

impl Script {
    pub fn new(text: &'static str) -> Self {
        Self {
            text,
            hash: redis::Script::new(text).get_hash().to_owned(),
        }
    }

    /// The call that is short, and fails after a restart of the server.
    pub fn by_hash(&self, key: &str, arguments: &[String]) -> Cmd {
        call("EVALSHA", &self.hash, key, arguments)
    }

    /// The call that always works, and makes the short one work.
    pub fn by_text(&self, key: &str, arguments: &[String]) -> Cmd {
        call("EVAL", self.text, key, arguments)
    }
}

fn call(verb: &str, script: &str, key: &str, arguments: &[String]) -> Cmd {
    let mut call = Cmd::new();
    call.arg(verb).arg(script).arg(1).arg(key).arg(arguments);
    call
}
