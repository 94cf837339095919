//! Reading the tables of the file, noting every problem instead of stopping at the first.

use std::collections::BTreeSet;
use std::fmt;

use toml::Value;

use super::file::Source;
use super::value::Read;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// `db.addr`
    pub key: String,
    /// The variable that set it, if it was not the file.
    pub variable: Option<&'static str>,
    /// Continues the sentence that the key begins.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.variable {
            Some(variable) => write!(f, "{} (from {variable}) {}", self.key, self.text),
            None => write!(f, "{} {}", self.key, self.text),
        }
    }
}

/// All that is found to be wrong or odd with one file.
#[derive(Debug)]
pub struct Problems<'a> {
    source: &'a Source,
    problems: Vec<Problem>,
    notes: Vec<String>,
    /// Tables that were read.
    tables: BTreeSet<&'static str>,
}

impl<'a> Problems<'a> {
    pub(super) fn new(source: &'a Source) -> Self {
        Self {
            source,
            problems: Vec::new(),
            notes: Vec::new(),
            tables: BTreeSet::new(),
        }
    }

    pub fn end(self) -> (Vec<Problem>, Vec<String>) {
        (self.problems, self.notes)
    }

    /// Whether the file has such a table.
    pub fn has(&self, table: &str) -> bool {
        self.source.table.contains_key(table)
    }

    /// Whether that table has such a member.
    pub fn has_inner(&self, table: &str, member: &str) -> bool {
        let table = self.source.table.get(table).and_then(Value::as_table);
        table.is_some_and(|table| table.contains_key(member))
    }

    pub fn report(&mut self, key: &str, text: impl Into<String>) {
        self.problems.push(Problem {
            key: key.to_owned(),
            variable: self.source.variable(key),
            text: text.into(),
        });
    }

    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// A table of the file. When it is missing it is as if it were empty, or a problem if `is_required`.
    pub fn section(&mut self, name: &'static str, is_required: bool) -> Section<'_, 'a> {
        self.tables.insert(name.split('.').next().unwrap_or(name));
        let mut found: Option<&'a toml::Table> = Some(&self.source.table);
        for part in name.split('.') {
            let value = found.and_then(|table| table.get(part));
            found = value.and_then(Value::as_table);
            if let (Some(value), None) = (value, found) {
                let type_ = value.type_str();
                self.report(name, format!("must be a table, [{name}], not a TOML {type_}"));
                break;
            }
            if value.is_none() {
                if is_required {
                    self.report(name, format!("is missing: add a table [{name}] to the file"));
                }
                break;
            }
        }
        Section {
            name,
            table: found,
            is_missing: found.is_none(),
            known: BTreeSet::new(),
            problems: self,
        }
    }

    pub fn note_unknown_tables(&mut self) {
        let unknown = self.source.table.keys();
        let unknown = unknown.filter(|name| !self.tables.contains(name.as_str()));
        for name in unknown.cloned().collect::<Vec<_>>() {
            self.note(format!("[{name}] is not known and ignored"));
        }
    }
}

/// One table.
#[derive(Debug)]
pub struct Section<'p, 'a> {
    name: &'static str,
    table: Option<&'a toml::Table>,
    is_missing: bool,
    known: BTreeSet<&'static str>,
    pub problems: &'p mut Problems<'a>,
}

impl Section<'_, '_> {
    /// The value of a key, or `None` when it is not there or was found wrong.
    pub fn optional<T>(&mut self, key: &'static str, read: impl Fn(&Value) -> Read<T>) -> Option<T> {
        self.known.insert(key);
        let value = self.table?.get(key)?;
        match read(value) {
            Ok(value) => Some(value),
            Err(text) => {
                self.wrong(key, text);
                None
            }
        }
    }

    /// The value of a key, or the default. (After a problem the default too; the configuration is not used then.)
    pub fn or<T>(&mut self, key: &'static str, default: T, read: impl Fn(&Value) -> Read<T>) -> T {
        self.optional(key, read).unwrap_or(default)
    }

    /// The value of a key that must be there; `hint` is an example.
    pub fn required<T>(
        &mut self,
        key: &'static str,
        hint: &str,
        read: impl Fn(&Value) -> Read<T>,
    ) -> Option<T> {
        let is_there = self.table.is_some_and(|table| table.contains_key(key));
        if !is_there && !self.is_missing {
            self.wrong(
                key,
                format!("is missing: add `{key} = {hint}` to [{}]", self.name),
            );
        }
        self.optional(key, read)
    }

    /// The value of a key for which empty text means that it is not there.
    pub fn filled<T>(&mut self, key: &'static str, read: impl Fn(&Value) -> Read<T>) -> Option<T> {
        self.known.insert(key);
        match self.table?.get(key)? {
            Value::String(text) if text.is_empty() => None,
            _ => self.optional(key, read),
        }
    }

    /// Legal and without any effect here.
    pub fn ignored(&mut self, keys: &[&'static str]) {
        self.known.extend(keys);
    }

    /// Set, checked, and without any effect so far.
    pub fn note_unused(&mut self, key: &str, why: &str) {
        let text = format!("{}.{key} has no effect: {why}", self.name);
        self.problems.note(text);
    }

    pub fn wrong(&mut self, key: &str, text: impl Into<String>) {
        self.problems.report(&format!("{}.{key}", self.name), text);
    }

    /// All entries, for a table with names of any kind.
    pub fn entries(&mut self) -> Vec<(String, Value)> {
        let table = self.table.into_iter().flatten();
        table.map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    /// Ends the reading: what nobody asked for may be a slip of the pen.
    pub fn end(self) {
        let unknown = self.table.into_iter().flat_map(toml::Table::keys);
        for key in unknown.filter(|key| !self.known.contains(key.as_str())) {
            let text = format!("{}.{key} is not known and ignored", self.name);
            self.problems.note(text);
        }
    }
}
