//! The members of a JSON object, taken one by one by name and type; what nobody has taken is refused in the end.

use std::fmt::Display;
use std::str::FromStr;

use serde_json::{Map, Value};

use crate::units::Size;

/// An object's members. Texts name each by its whole path, as `file.server.host`.
#[derive(Debug)]
pub(crate) struct Fields {
    path: String,
    members: Map<String, Value>,
    /// It came as text (`key=value,…`): every scalar is a string then.
    is_text: bool,
}

impl Fields {
    /// The arguments of a command.
    pub(crate) fn of_command(arguments: Map<String, Value>) -> Self {
        Self { path: String::new(), members: arguments, is_text: false }
    }

    /// Options that came as text.
    pub(crate) fn of_text(members: Map<String, Value>) -> Self {
        Self { path: String::new(), members, is_text: true }
    }

    fn named(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    fn wrong(&self, name: &str, expected: &str) -> String {
        format!("the parameter '{}' must be {expected}", self.named(name))
    }

    /// The object that is this parameter's value.
    pub(crate) fn object_of(&self, name: &str, value: Value) -> Result<Self, String> {
        let Value::Object(members) = value else { return Err(self.wrong(name, "an object")) };
        Ok(Self { path: self.named(name), members, is_text: self.is_text })
    }

    pub(crate) fn value(&mut self, name: &str) -> Option<Value> {
        self.members.remove(name)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    /// What is to be said of a parameter that must be there and is not.
    pub(crate) fn missing(&self, name: &str) -> String {
        format!("the parameter '{}' is missing", self.named(name))
    }

    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, String> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::String(text)) if text.contains('\0') => {
                Err(self.wrong(name, "a string without zero bytes"))
            }
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(name, "a string")),
        }
    }

    pub(crate) fn needed_text(&mut self, name: &str) -> Result<String, String> {
        self.text(name)?.ok_or_else(|| self.missing(name))
    }

    pub(crate) fn boolean(&mut self, name: &str) -> Result<Option<bool>, String> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(Value::String(text)) if self.is_text => match text.as_str() {
                "on" | "true" | "yes" => Ok(Some(true)),
                "off" | "false" | "no" => Ok(Some(false)),
                _ => Err(self.wrong(name, "on or off")),
            },
            Some(_) => Err(self.wrong(name, "true or false")),
        }
    }

    pub(crate) fn number(&mut self, name: &str) -> Result<Option<u64>, String> {
        let number = match self.value(name) {
            None => return Ok(None),
            Some(Value::Number(number)) => number.as_u64(),
            Some(Value::String(text)) if self.is_text => text.parse().ok(),
            Some(_) => None,
        };
        number.map(Some).ok_or_else(|| self.wrong(name, "a whole number from 0 on"))
    }

    /// A size: a number of bytes, or text as on the command line.
    pub(crate) fn size(&mut self, name: &str) -> Result<Option<Size>, String> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Number(number)) if number.is_u64() => Ok(number.as_u64().map(Size)),
            Some(Value::String(text)) => self.read(name, &text).map(Some),
            Some(_) => Err(self.wrong(name, "a size: a number of bytes, or a string such as \"64M\"")),
        }
    }

    /// What is written as it is on the command line.
    pub(crate) fn parsed<T: FromStr<Err: Display>>(&mut self, name: &str) -> Result<Option<T>, String> {
        let text = self.text(name)?;
        text.map(|text| self.read(name, &text)).transpose()
    }

    fn read<T: FromStr<Err: Display>>(&self, name: &str, text: &str) -> Result<T, String> {
        text.parse().map_err(|error| format!("the parameter '{}': {error}", self.named(name)))
    }

    /// One of a few words.
    pub(crate) fn word<T: Copy>(&mut self, name: &str, words: &[(&str, T)]) -> Result<Option<T>, String> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        found.map(Some).ok_or_else(|| {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.wrong(name, &format!("one of: {}", known.join(", ")))
        })
    }

    pub(crate) fn object(&mut self, name: &str) -> Result<Option<Self>, String> {
        self.value(name).map(|value| self.object_of(name, value)).transpose()
    }

    /// The object that is this parameter's value, if it is one; it stays where it is if it has the member `driver`.
    pub(crate) fn object_if(&mut self, name: &str) -> Option<Self> {
        let is_bare =
            self.members.get(name)?.as_object().is_some_and(|object| !object.contains_key("driver"));
        if is_bare { self.object(name).ok().flatten() } else { None }
    }

    pub(crate) fn list(&mut self, name: &str) -> Result<Option<Vec<Value>>, String> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Array(values)) => Ok(Some(values)),
            Some(_) => Err(self.wrong(name, "an array")),
        }
    }

    /// Refuses what is known elsewhere and not offered here.
    pub(crate) fn refuse(&self, names: &[&str], why: &str) -> Result<(), String> {
        match names.iter().find(|name| self.has(name)) {
            Some(name) => Err(format!("the parameter '{}' is not supported: {why}", self.named(name))),
            None => Ok(()),
        }
    }

    /// Refuses what is left.
    pub(crate) fn end(self) -> Result<(), String> {
        match self.members.keys().next() {
            Some(name) => Err(format!("there is no parameter '{}' here", self.named(name))),
            None => Ok(()),
        }
    }
}
