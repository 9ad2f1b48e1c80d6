//! Options as text: `key=value,key.inner=value,…`, a comma in a value written twice.

use serde_json::{Map, Value};

/// Deepest `a.b.c`: what the drivers here can make use of, and a little.
const DEPTH_MAX: usize = 12;
/// Most options of one text.
const OPTIONS_MAX: usize = 256;

/// The object that a text stands for. Keys with dots make objects within it; where all keys of one are `0`, `1`, … it is
/// an array. All scalars are strings.
pub(crate) fn parse(text: &str) -> Result<Map<String, Value>, String> {
    let mut root = Map::new();
    for (count, option) in split(text).into_iter().enumerate() {
        if count == OPTIONS_MAX {
            return Err(format!("there are more than {OPTIONS_MAX} options"));
        }
        let Some((key, value)) = option.split_once('=') else {
            return Err(format!("'{option}' is no option: write KEY=VALUE"));
        };
        insert(&mut root, key, value)?;
    }
    root.values_mut().for_each(make_arrays);
    Ok(root)
}

fn split(text: &str) -> Vec<String> {
    let mut options = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let is_double = character == ',' && characters.peek() == Some(&',');
        if character == ',' && !is_double {
            options.push(String::new());
            continue;
        }
        if is_double {
            characters.next();
        }
        if let Some(last) = options.last_mut() {
            last.push(character);
        }
    }
    options
}

fn insert(root: &mut Map<String, Value>, key: &str, value: &str) -> Result<(), String> {
    let parts: Vec<&str> = key.split('.').collect();
    let (last, above) = parts.split_last().ok_or("an option has no name")?;
    if parts.len() > DEPTH_MAX || parts.iter().any(|part| part.is_empty()) {
        return Err(format!("'{key}' is no name of an option"));
    }
    let mut object = root;
    for part in above {
        let inner = object.entry((*part).to_owned()).or_insert_with(|| Value::Object(Map::new()));
        object =
            inner.as_object_mut().ok_or_else(|| format!("'{key}': '{part}' is a value and an object"))?;
    }
    match object.insert((*last).to_owned(), value.into()) {
        Some(_) => Err(format!("'{key}' is given twice")),
        None => Ok(()),
    }
}

/// Turns objects with the keys `0`, `1`, … into arrays, from within. As deep as keys are at most.
fn make_arrays(value: &mut Value) {
    let Value::Object(members) = value else { return };
    members.values_mut().for_each(make_arrays);
    let count = members.len();
    let is_list = (0..count).all(|index| members.contains_key(&index.to_string()));
    if is_list && count != 0 {
        let values = (0..count).filter_map(|index| members.remove(&index.to_string())).collect();
        *value = Value::Array(values);
    }
}
