//! The two forms of a group of settings: flat keys, and nested objects in which `""` is a directory's own value
//! (`http-api.md` 5.5, Q-06, Q-29).
//!
//! Invariants: nesting what [`flatten`] gives returns the same object with its scalars as text, provided that no member's
//! name has a `/` and no directory is empty.
//!
//! Not here: which keys may be written, and how many.

use std::collections::HashMap;

use serde_json::{Map, Number, Value};

use crate::{Error, Result};

/// Nests `(remainder, value)` pairs, ordered by key: one leading `/` is dropped, the rest is split at `/`.
pub(super) fn nest<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Map<String, Value> {
    let mut root = Map::new();
    for (key, value) in pairs {
        let path: Vec<&str> = key.strip_prefix('/').unwrap_or(key).split('/').collect();
        insert(&mut root, &path, value);
    }
    root
}

/// Where a leaf and a directory meet, the leaf becomes the directory's member `""`. Of two values for one place (the keys
/// `a` and `a/` beside `a/b`) the later stays.
fn insert(object: &mut Map<String, Value>, path: &[&str], value: &str) {
    let Some((first, rest)) = path.split_first() else {
        return;
    };
    let member = object.entry(*first).or_insert_with(|| match rest {
        [] => Value::String(String::new()),
        _ => Value::Object(Map::new()),
    });
    match (member, rest) {
        (Value::Object(directory), []) => insert(directory, &[""], value),
        (Value::Object(directory), rest) => insert(directory, rest, value),
        (leaf, []) => *leaf = value.into(),
        (leaf, rest) => {
            let mut directory = Map::from_iter([(String::new(), leaf.take())]);
            insert(&mut directory, rest, value);
            *leaf = Value::Object(directory);
        }
    }
}

/// The settings that an object below `prefix` stands for: `prefix/member`, recursively, where `""` is the place itself.
/// Numbers and booleans become the text that Python gives them (`5`, `1.5`, `True`). In the object's order; of two values
/// for one key the later stays.
///
/// # Errors
/// [`crate::Terminal::Invalid`] for null and lists, which have no text that would read back.
pub fn flatten(prefix: &str, dict: &Map<String, Value>) -> Result<Vec<(String, String)>> {
    let mut pairs = Pairs::default();
    collect(prefix.trim_end_matches('/'), dict, &mut pairs)?;
    Ok(pairs.ordered)
}

/// Pairs in the order of their keys' first appearance.
#[derive(Default)]
struct Pairs {
    ordered: Vec<(String, String)>,
    places: HashMap<String, usize>,
}

impl Pairs {
    fn set(&mut self, key: String, value: String) {
        match self
            .places
            .get(&key)
            .and_then(|place| self.ordered.get_mut(*place))
        {
            Some((_, earlier)) => *earlier = value,
            None => {
                self.places.insert(key.clone(), self.ordered.len());
                self.ordered.push((key, value));
            }
        }
    }
}

fn collect(path: &str, dict: &Map<String, Value>, pairs: &mut Pairs) -> Result<()> {
    for (name, value) in dict {
        let key = match (path, name.as_str()) {
            (path, "") => path.to_owned(),
            ("", name) => name.to_owned(),
            (path, name) => format!("{path}/{name}"),
        };
        let text = match value {
            Value::Object(below) => {
                collect(&key, below, pairs)?;
                continue;
            }
            Value::String(text) => text.clone(),
            Value::Number(number) => python_number(number),
            Value::Bool(true) => "True".to_owned(),
            Value::Bool(false) => "False".to_owned(),
            Value::Null | Value::Array(_) => {
                return Err(Error::invalid(format!(
                    "{key}: expected text, a number, a boolean or an object of these"
                )));
            }
        };
        pairs.set(key, text);
    }
    Ok(())
}

/// A number as Python's `str()` writes it: `1e+16` and `1e-05` have a sign and at least two digits in the exponent.
fn python_number(number: &Number) -> String {
    let Some(float) = number.as_f64().filter(|_| number.is_f64()) else {
        return number.to_string();
    };
    let scientific = format!("{float:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        return format!("{float:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}
