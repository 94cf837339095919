//! Query mode: code as text, run in one of three ways. An image has one of them for good.
//!
//! * Where there is a Jupyter kernel for the language, by it (`agent-protocol.md` 6.11; ADR 0016): [`crate::jupyter`];
//! * else Python and the shell by an interpreter that stays: `interpreter`;
//! * else by a file for each query: [`crate::batch`].

mod event;
mod interpreter;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use serde_json::Value;

use self::interpreter::Interpreter;
use crate::control::Control;
use crate::jupyter::{self, Jupyter};
use crate::lang::{self, Runtime};
use crate::outbox::Outbox;
use crate::strays::Strays;

/// What queries of a session are run by.
#[derive(Debug)]
pub struct Query {
    parts: Parts,
    way: Option<Way>,
}

/// What every way of running code needs.
#[derive(Clone, Debug)]
pub struct Parts {
    pub runtime: Arc<Runtime>,
    pub outbox: Outbox,
    pub control: Control,
    pub strays: Strays,
}

#[derive(Debug)]
enum Way {
    Kernel(Box<Jupyter>),
    Interpreter(Box<Interpreter>),
    File,
}

impl Query {
    pub fn new(runtime: Arc<Runtime>, outbox: Outbox, control: Control, strays: Strays) -> Self {
        let parts = Parts {
            runtime,
            outbox,
            control,
            strays,
        };
        Self { parts, way: None }
    }

    /// Finds the way, which may take as long as a start of the interpreter, and starts what stays.
    pub fn warm_up(&mut self) {
        let way = match (
            jupyter::find(&self.parts.runtime),
            &self.parts.runtime.language.query,
        ) {
            (Some(spec), _) => Way::Kernel(Box::new(Jupyter::start(self.parts.clone(), spec))),
            (None, lang::Query::Driver(driver)) => {
                Way::Interpreter(Box::new(Interpreter::start(self.parts.clone(), *driver)))
            }
            (None, lang::Query::File { .. }) => Way::File,
        };
        self.way = Some(way);
    }

    /// Passes on what background threads and processes print, until `wake` has something.
    pub fn idle_until(&mut self, wake: BorrowedFd<'_>) {
        match &mut self.way {
            Some(Way::Kernel(kernel)) => kernel.idle_until(wake),
            Some(Way::Interpreter(interpreter)) => interpreter.idle_until(wake),
            Some(Way::File) | None => {}
        }
    }

    /// Runs code and returns the exit code; `None` when the language's queries are files.
    pub fn run(&mut self, code: &str) -> Option<i32> {
        match &mut self.way {
            Some(Way::Kernel(kernel)) => Some(kernel.run(code)),
            Some(Way::Interpreter(interpreter)) => Some(interpreter.run(code)),
            Some(Way::File) | None => None,
        }
    }

    /// Names that continue the code, as a JSON array. `request` is JSON: `code`, and of the cursor `row`, `col`, `line`.
    pub fn complete(&mut self, request: &str) -> String {
        let text = before_cursor(&serde_json::from_str(request).unwrap_or_default());
        let names = match &mut self.way {
            Some(Way::Kernel(kernel)) => kernel.complete(&text),
            Some(Way::Interpreter(interpreter)) => interpreter.complete(&text),
            Some(Way::File) | None => Vec::new(),
        };
        Value::from(names).to_string()
    }
}

/// The code up to the cursor: of the line if the client tells it, of the code otherwise. Columns count characters.
fn before_cursor(request: &Value) -> String {
    let code = request["code"].as_str().unwrap_or_default();
    let row = request["row"]
        .as_u64()
        .and_then(|row| code.lines().nth(usize::try_from(row).ok()?));
    let line = request["line"]
        .as_str()
        .filter(|line| !line.is_empty())
        .or(row)
        .unwrap_or(code);
    let column = request["col"]
        .as_u64()
        .and_then(|column| usize::try_from(column).ok());
    line.chars().take(column.unwrap_or(usize::MAX)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::before_cursor;

    #[test]
    fn the_cursor_may_be_told_in_several_ways() {
        for (request, expected) in [
            (json!({"code": "import os\nos.pa"}), "import os\nos.pa"),
            (json!({"code": "a\nos.path.x", "row": 1, "col": 5}), "os.pa"),
            (
                json!({"code": "x", "line": "한os.path", "col": 4, "row": 9}),
                "한os.",
            ),
            (
                json!({"code": "abc", "row": 0, "col": 1, "line": "", "post": ""}),
                "a",
            ),
            (json!({"code": "abc", "row": -1, "col": 1e99, "line": 5}), "abc"),
            (json!([1]), ""),
        ] {
            assert_eq!(before_cursor(&request), expected, "{request}");
        }
    }
}
