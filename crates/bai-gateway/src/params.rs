//! Declared parameters ("style A", `http-api.md` 1.9): a JSON body of any content type, or else the query string as a
//! flat map, checked with the original's words.
//!
//! Errors are gathered, so that the requester sees all of them at once.

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

use crate::error::Problem;

/// Parameters of one request, being checked.
#[derive(Debug)]
pub(crate) struct Params {
    given: Map<String, Value>,
    errors: Map<String, Value>,
}

impl Params {
    /// Parses the body if there is one, the query otherwise.
    pub(crate) fn parse(body: Option<&[u8]>, query: Option<&str>) -> Result<Self, Problem> {
        let given = match body {
            Some(body) => match serde_json::from_slice(body) {
                Ok(Value::Object(given)) => given,
                Ok(_) => {
                    let data = Value::from("value is not a dict");
                    return Err(Problem::invalid_parameters("Input validation error", Some(data)));
                }
                Err(_) => return Err(Problem::invalid_parameters("Malformed body", None)),
            },
            None => parse_query(query.unwrap_or_default()),
        };
        Ok(Self {
            given,
            errors: Map::new(),
        })
    }

    /// Takes the first of `names` that was given and drops the others.
    fn take(&mut self, names: &[&str]) -> Option<(String, Value)> {
        let mut taken = None;
        for name in names {
            if let Some(value) = self.given.shift_remove(*name)
                && taken.is_none()
            {
                taken = Some(((*name).to_owned(), value));
            }
        }
        taken
    }

    pub(crate) fn fail(&mut self, name: &str, message: impl Into<Value>) {
        self.errors.insert(name.to_owned(), message.into());
    }

    /// A required non-empty string. The result is empty when the check failed; [`Params::finish`] tells.
    pub(crate) fn string(&mut self, names: &[&str]) -> String {
        match self.take(names) {
            None => {
                self.fail(names[0], "is required");
                String::new()
            }
            Some((name, value)) => self.checked_string(&name, value),
        }
    }

    /// A non-empty string with a default.
    pub(crate) fn string_or(&mut self, names: &[&str], default: &str) -> String {
        match self.take(names) {
            None => default.to_owned(),
            Some((name, value)) => self.checked_string(&name, value),
        }
    }

    /// A non-empty string, null or nothing.
    pub(crate) fn optional_string(&mut self, name: &str) -> Option<String> {
        match self.take(&[name]) {
            None | Some((_, Value::Null)) => None,
            Some((name, value)) => Some(self.checked_string(&name, value)),
        }
    }

    fn checked_string(&mut self, name: &str, value: Value) -> String {
        match checked_text(value) {
            Ok(text) => text,
            Err(why) => {
                self.fail(name, why);
                String::new()
            }
        }
    }

    /// One of a few words.
    pub(crate) fn variant(&mut self, name: &str, variants: &[&str]) -> String {
        match self.take(&[name]) {
            None => self.fail(name, "is required"),
            Some((_, Value::String(text))) if variants.contains(&text.as_str()) => return text,
            Some(_) => self.fail(name, "value doesn't match any variant"),
        }
        String::new()
    }

    /// A JSON object with a default of none.
    pub(crate) fn mapping(&mut self, name: &str) -> Map<String, Value> {
        match self.take(&[name]) {
            None => Map::new(),
            Some((_, Value::Object(mapping))) => mapping,
            Some((name, _)) => {
                self.fail(&name, "value is not a dict");
                Map::new()
            }
        }
    }

    /// True or false, with a default.
    pub(crate) fn boolean_or(&mut self, name: &str, default: bool) -> bool {
        match self.take(&[name]) {
            None => default,
            Some((_, Value::Bool(flag))) => flag,
            Some((name, _)) => {
                self.fail(&name, "value should be True or False");
                default
            }
        }
    }

    /// A required list of non-empty strings, which may be empty itself.
    pub(crate) fn strings(&mut self, names: &[&str]) -> Vec<String> {
        let (name, items) = match self.take(names) {
            Some((name, Value::Array(items))) => (name, items),
            Some((name, _)) => {
                self.fail(&name, "value is not a list");
                return Vec::new();
            }
            None => {
                self.fail(names[0], "is required");
                return Vec::new();
            }
        };
        let mut texts = Vec::with_capacity(items.len());
        let mut errors = Map::new();
        for (index, item) in items.into_iter().enumerate() {
            match checked_text(item) {
                Ok(text) => texts.push(text),
                Err(why) => _ = errors.insert(index.to_string(), why.into()),
            }
        }
        if !errors.is_empty() {
            self.fail(&name, errors);
        }
        texts
    }

    /// As many digits as said at the beginning of a required string; `whole` when nothing but a line's end may follow.
    pub(crate) fn digits(&mut self, name: &str, count: usize, whole: bool) -> String {
        let text = match self.take(&[name]) {
            Some((_, Value::String(text))) => text,
            Some((name, _)) => {
                self.fail(&name, "value is not a string");
                return String::new();
            }
            None => {
                self.fail(name, "is required");
                return String::new();
            }
        };
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let rest = text.get(count..).unwrap_or_default();
        if digits < count || (whole && !matches!(rest, "" | "\n")) {
            let end = if whole { "$" } else { "" };
            self.fail(name, format!("does not match pattern ^\\d{{{count}}}{end}"));
            return String::new();
        }
        text[..count].to_owned()
    }

    /// A required string, which may be empty, or object without empty names.
    pub(crate) fn text_or_mapping(&mut self, name: &str) -> Value {
        let mut refuse = |as_text: &str, as_mapping: Value| {
            self.errors
                .insert(name.to_owned(), json!({ "0": as_text, "1": as_mapping }));
            Value::Null
        };
        const NO_TEXT: &str = "value is not a string";
        match self.given.shift_remove(name) {
            None => self.fail(name, "is required"),
            Some(Value::String(text)) if text.contains('\0') => {
                return refuse(
                    "value must not contain NUL characters",
                    "value is not a dict".into(),
                );
            }
            Some(Value::Object(mapping)) if mapping.contains_key("") => {
                return refuse(NO_TEXT, json!({ "": { "key": "blank value is not allowed" } }));
            }
            Some(value @ (Value::String(_) | Value::Object(_))) => return value,
            Some(_) => return refuse(NO_TEXT, "value is not a dict".into()),
        }
        Value::Null
    }

    /// A value of any kind.
    pub(crate) fn any(&mut self, name: &str) -> Option<Value> {
        self.take(&[name]).map(|(_, value)| value)
    }

    /// Forgets parameters that this endpoint does not know.
    pub(crate) fn ignore_unknown(&mut self) {
        self.given.clear();
    }

    /// Refuses what was not taken, and tells every error.
    pub(crate) fn finish(mut self) -> Result<(), Problem> {
        for name in self.given.keys() {
            self.errors
                .insert(name.clone(), format!("{name} is not allowed key").into());
        }
        if self.errors.is_empty() {
            return Ok(());
        }
        Err(Problem::invalid_parameters(
            "Input validation error",
            Some(Value::Object(self.errors)),
        ))
    }
}

/// A non-empty string, or what is wrong with it.
fn checked_text(value: Value) -> Result<String, &'static str> {
    match value {
        Value::String(text) if text.is_empty() => Err("blank value is not allowed"),
        // Databases cannot hold it (ours to say, the original failed).
        Value::String(text) if text.contains('\0') => Err("value must not contain NUL characters"),
        Value::String(text) => Ok(text),
        _ => Err("value is not a string"),
    }
}

/// The pairs of a query string; of a repeated key the first value wins.
fn parse_query(query: &str) -> Map<String, Value> {
    let decode = |text: &str| {
        percent_decode_str(&text.replace('+', " "))
            .decode_utf8_lossy()
            .into_owned()
    };
    let mut pairs = Map::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        pairs
            .entry(decode(key))
            .or_insert_with(|| Value::String(decode(value)));
    }
    pairs
}

/// One value of a query string.
pub(crate) fn query_value(query: Option<&str>, name: &str) -> Option<String> {
    match parse_query(query?).shift_remove(name) {
        Some(Value::String(text)) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(problem: Problem) -> Value {
        let answer = problem.into_answer();
        let body = futures_util::FutureExt::now_or_never(axum::body::to_bytes(answer.into_body(), 10_000));
        let body = body.expect("a body at hand").expect("a body");
        serde_json::from_slice::<Value>(&body).expect("JSON")["data"].clone()
    }

    #[test]
    fn every_error_is_told_at_once() {
        let mut params = Params::parse(Some(br#"{"a": 1, "b": "", "x": 0}"#), None).expect("an object");
        params.string(&["a"]);
        params.string(&["b"]);
        params.string(&["c"]);
        let expected = json!({
            "a": "value is not a string", "b": "blank value is not allowed", "c": "is required",
            "x": "x is not allowed key",
        });
        assert_eq!(data(params.finish().expect_err("errors")), expected);
    }

    #[test]
    fn a_body_wins_over_the_query_and_must_be_an_object() {
        let mut params = Params::parse(Some(b"{}"), Some("a=1")).expect("an object");
        assert_eq!(params.any("a"), None);
        assert_eq!(
            data(Params::parse(Some(b"[]"), None).expect_err("no object")),
            "value is not a dict"
        );
    }

    #[test]
    fn the_first_alias_given_names_the_error() {
        let mut params = Params::parse(Some(br#"{"group_name": 1}"#), None).expect("an object");
        params.string_or(&["group", "groupName", "group_name"], "default");
        assert_eq!(
            data(params.finish().expect_err("errors")),
            json!({"group_name": "value is not a string"})
        );
    }

    #[test]
    fn of_a_repeated_query_key_the_first_counts() {
        assert_eq!(query_value(Some("a=1&a=2&b=%41+c"), "a").as_deref(), Some("1"));
        assert_eq!(query_value(Some("a=1&a=2&b=%41+c"), "b").as_deref(), Some("A c"));
    }
}
