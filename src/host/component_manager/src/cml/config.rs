//! Configuration in manifests: types of fields, and values checked against them.

use super::compile::{At, Compiler};
use super::document;
use crate::decl::{ConfigField, ConfigType, ConfigValue};
use serde_json::Value;

/// A field of the `config` section.
pub(super) fn field(
    compiler: &mut Compiler,
    at: &At<'_>,
    key: &str,
    field: &document::ConfigField,
) {
    let fits = key.starts_with(|c: char| c.is_ascii_lowercase())
        && key.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    if !fits || key.len() > 64 {
        return compiler.problem(
            at,
            format!("{key:?} is not a configuration key"),
            "Use lower-case letters, digits and \"_\", at most 64",
        );
    }
    let Some(kind) =
        kind(compiler, at, &field.r#type, field.max_size, field.max_count, field.element.as_ref())
    else {
        return;
    };
    let default = match &field.default {
        None => None,
        Some(text) => match value(&kind, text) {
            Ok(value) => Some(value),
            Err(message) => return compiler.problem(&at.key("default"), message, ""),
        },
    };
    match compiler.decl.config.iter().find(|known| known.key == key) {
        Some(known) if known.kind != kind => {
            compiler.problem(at, format!("{key:?} has another type in another file"), "");
        }
        Some(_) => {}
        None => compiler.decl.config.push(ConfigField { key: key.to_owned(), kind, default }),
    }
}

/// The value of a `config` entry of `capabilities`.
pub(super) fn declared_value(
    compiler: &mut Compiler,
    at: &At<'_>,
    clause: &document::Capability,
) -> Option<ConfigValue> {
    let (Some(name), Some(text)) = (&clause.r#type, &clause.value) else {
        compiler.problem(
            at,
            "The configuration value lacks \"type\" or \"value\"",
            "Write, for example, type: \"bool\", value: true",
        );
        return None;
    };
    let kind =
        kind(compiler, at, name, clause.max_size, clause.max_count, clause.element.as_ref())?;
    value(&kind, text).map_err(|message| compiler.problem(&at.key("value"), message, "")).ok()
}

/// The key and default of a `config` entry of `use`.
pub(super) fn used(
    compiler: &mut Compiler,
    at: &At<'_>,
    clause: &document::Use,
) -> (Option<String>, Option<ConfigValue>) {
    let (Some(key), Some(name)) = (&clause.key, &clause.r#type) else {
        compiler.problem(
            at,
            "A configuration value is used without \"key\" or \"type\"",
            "Say which field it fills and of what type it is",
        );
        return (None, None);
    };
    let Some(kind) =
        kind(compiler, at, name, clause.max_size, clause.max_count, clause.element.as_ref())
    else {
        return (None, None);
    };
    let default = clause.default.as_ref().and_then(|text| {
        value(&kind, text).map_err(|message| compiler.problem(&at.key("default"), message, "")).ok()
    });
    match compiler.decl.config.iter().find(|known| known.key == *key) {
        Some(known) if known.kind != kind => compiler.problem(
            at,
            format!("{key:?} has another type under \"config\""),
            "Give both the same type",
        ),
        Some(_) => {}
        None => compiler.decl.config.push(ConfigField { key: key.clone(), kind, default: None }),
    }
    (Some(key.clone()), default)
}

fn kind(
    compiler: &mut Compiler,
    at: &At<'_>,
    name: &str,
    max_size: Option<u32>,
    max_count: Option<u32>,
    element: Option<&document::ConfigElement>,
) -> Option<ConfigType> {
    let kind = match name {
        "bool" => ConfigType::Bool,
        "uint8" | "uint16" | "uint32" | "uint64" | "int8" | "int16" | "int32" | "int64" => {
            let digits = name.trim_start_matches(|c: char| !c.is_ascii_digit());
            ConfigType::Integer {
                bits: digits.parse().unwrap_or(64),
                signed: name.starts_with('i'),
            }
        }
        "string" => match max_size {
            Some(max_size) if max_size > 0 => ConfigType::String { max_size },
            _ => {
                compiler.problem(at, "A string needs a bound", "Add max_size: <bytes>");
                return None;
            }
        },
        "vector" => {
            let (Some(max_count), Some(element)) = (max_count.filter(|&count| count > 0), element)
            else {
                compiler.problem(
                    at,
                    "A vector needs a bound and a type of element",
                    "Add max_count: <elements>, element: { type: ... }",
                );
                return None;
            };
            if element.r#type == "vector" {
                compiler.problem(at, "A vector of vectors is no configuration type", "");
                return None;
            }
            let element = self::kind(compiler, at, &element.r#type, element.max_size, None, None)?;
            ConfigType::Vector { element: Box::new(element), max_count }
        }
        _ => {
            compiler.problem(
                at,
                format!("{name:?} is not a configuration type"),
                "Use bool, [u]int8 to [u]int64, string or vector",
            );
            return None;
        }
    };
    Some(kind)
}

/// The value that `text` is for the type, or what keeps it from being one.
pub(super) fn value(kind: &ConfigType, text: &Value) -> Result<ConfigValue, String> {
    match (kind, text) {
        (ConfigType::Bool, Value::Bool(flag)) => Ok(ConfigValue::Bool(*flag)),
        (ConfigType::Integer { bits, signed }, Value::Number(number)) => {
            let wide = number.as_i64().map(i128::from).or_else(|| number.as_u64().map(i128::from));
            let wide = wide.ok_or_else(|| format!("{number} is not an integer"))?;
            let (low, high) = if *signed {
                (-(1_i128 << (bits - 1)), (1_i128 << (bits - 1)) - 1)
            } else {
                (0, (1_i128 << bits) - 1)
            };
            if (low..=high).contains(&wide) {
                Ok(ConfigValue::Integer(wide))
            } else {
                Err(format!("{wide} is not between {low} and {high}"))
            }
        }
        (ConfigType::String { max_size }, Value::String(text)) => {
            if text.len() as u64 <= u64::from(*max_size) {
                Ok(ConfigValue::String(text.clone()))
            } else {
                Err(format!("The string has {} bytes, and {max_size} are the most", text.len()))
            }
        }
        (ConfigType::Vector { element, max_count }, Value::Array(items)) => {
            if items.len() as u64 > u64::from(*max_count) {
                return Err(format!(
                    "The vector has {} elements, and {max_count} are the most",
                    items.len()
                ));
            }
            items
                .iter()
                .map(|item| value(element, item))
                .collect::<Result<_, _>>()
                .map(ConfigValue::Vector)
        }
        _ => Err(format!("{text} is not of the field's type")),
    }
}
