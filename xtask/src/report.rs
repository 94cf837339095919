//! What the tasks print, and how they count.

use std::io::Write;

/// A line on stdout. A closed pipe is no reason to stop half-way. Silent in tests of this program: the test command reads
/// their output too, and would count the lines that they are about.
pub fn say(line: &str) {
    if !cfg!(test) {
        _ = writeln!(std::io::stdout().lock(), "{line}");
    }
}

/// Outcomes of one run of the tests.
#[derive(Debug, Default)]
pub struct Tally {
    passed: usize,
    failures: Vec<String>,
    skipped: usize,
    failed: usize,
}

impl Tally {
    /// A step or a test that went well.
    pub fn pass(&mut self) {
        self.passed += 1;
    }

    /// A step or a test that did not. It is named again at the end.
    pub fn fail(&mut self, what: &str) {
        self.failed += 1;
        self.failures.push(what.to_owned());
        say(&format!("FAILED: {what}"));
    }

    /// Something that this machine cannot run.
    pub fn skip(&mut self, what: &str, why: &str) {
        self.skipped += 1;
        say(&format!("SKIPPED: {what}: {why}"));
    }

    /// Like [`Tally::skip`], for a line that was printed by the test itself.
    pub fn skip_line(&mut self, line: &str) {
        self.skipped += 1;
        say(line);
    }

    /// Tests that another program ran and counted.
    pub fn add(&mut self, passed: usize, failed: usize, skipped: usize) {
        self.passed += passed;
        self.failed += failed;
        self.skipped += skipped;
    }

    /// A failed test that another program has counted.
    pub fn name_failure(&mut self, what: String) {
        self.failures.push(what);
    }

    /// Prints the end of the report; true when nothing failed.
    pub fn close(&self) -> bool {
        for failure in &self.failures {
            say(&format!("failed: {failure}"));
        }
        say(&format!(
            "{} passed, {} failed, {} skipped",
            self.passed, self.failed, self.skipped
        ));
        self.failed == 0
    }
}
