//! Structured configuration: values from capabilities and defaults, encoded as the component expects them.

use super::{Manager, StartError};
use crate::decl::{CapabilityType, ConfigField, ConfigType, ConfigValue};
use crate::model::{InstanceId, RouteSource};
use crate::resolver::Resolved;
use fidl_fuchsia_mem as fmem;
use sha2::{Digest, Sha256};

/// The 8 bytes in front of every persistent FIDL message: magic number 1, wire format v2.
const PERSISTENT_HEADER: [u8; 8] = [0, 1, 2, 0, 0, 0, 0, 0];

impl Manager {
    pub(super) fn encoded_config(
        &self,
        id: InstanceId,
        resolved: &Resolved,
    ) -> Result<Option<fmem::Data>, StartError> {
        let fields = &resolved.decl.config;
        if fields.is_empty() {
            return Ok(None);
        }
        let values: Result<Vec<_>, _> =
            fields.iter().map(|field| self.config_value(id, resolved, field)).collect();
        Ok(Some(fmem::Data::Bytes(encode(fields, &values.map_err(StartError::Config)?))))
    }

    /// The value that is routed to the field, else the default of the use, else that of the field.
    fn config_value(
        &self,
        id: InstanceId,
        resolved: &Resolved,
        field: &ConfigField,
    ) -> Result<ConfigValue, String> {
        let uses = resolved.decl.uses.iter().filter(|used| used.kind == CapabilityType::Config);
        let mut default = field.default.clone();
        if let Some(used) =
            uses.into_iter().find(|used| used.config_key.as_ref() == Some(&field.key))
        {
            match { self.tree().route_use(id, used) }.map(|route| route.source) {
                Ok(RouteSource::Value(value)) if fits(&field.kind, &value) => return Ok(value),
                Ok(RouteSource::Value(_)) => {
                    return Err(format!("The value for {:?} is of another type", field.key));
                }
                Ok(_) | Err(_) => default = used.config_default.clone().or(default),
            }
        }
        default.ok_or_else(|| {
            format!("Nothing gives a value for {:?}, and it has no default", field.key)
        })
    }
}

fn fits(kind: &ConfigType, value: &ConfigValue) -> bool {
    match (kind, value) {
        (ConfigType::Bool, ConfigValue::Bool(_)) => true,
        (ConfigType::Integer { bits, signed }, ConfigValue::Integer(number)) => {
            let (low, high) = if *signed {
                (-(1_i128 << (bits - 1)), (1_i128 << (bits - 1)) - 1)
            } else {
                (0, (1_i128 << bits) - 1)
            };
            (low..=high).contains(number)
        }
        (ConfigType::String { max_size }, ConfigValue::String(text)) => {
            text.len() as u64 <= u64::from(*max_size)
        }
        (ConfigType::Vector { element, max_count }, ConfigValue::Vector(items)) => {
            items.len() as u64 <= u64::from(*max_count)
                && items.iter().all(|item| fits(element, item))
        }
        _ => false,
    }
}

/// Length of a checksum of the schema (little endian), the checksum, and the values as a persistent FIDL struct.
fn encode(fields: &[ConfigField], values: &[ConfigValue]) -> Vec<u8> {
    let mut hasher = Sha256::new();
    for field in fields {
        hasher.update(field.key.as_bytes());
        hasher.update([0]);
        hasher.update(format!("{:?}", field.kind).as_bytes());
        hasher.update([0]);
    }
    let checksum = hasher.finalize();
    let mut bytes = (checksum.len() as u16).to_le_bytes().to_vec();
    bytes.extend(checksum);
    bytes.extend(PERSISTENT_HEADER);
    bytes.extend(encode_struct(fields, values));
    bytes
}

/// Size in bytes, and alignment, of a field in its struct.
fn layout(kind: &ConfigType) -> (usize, usize) {
    match kind {
        ConfigType::Bool => (1, 1),
        ConfigType::Integer { bits, .. } => (usize::from(*bits) / 8, usize::from(*bits) / 8),
        ConfigType::String { .. } | ConfigType::Vector { .. } => (16, 8),
    }
}

fn pad(bytes: &mut Vec<u8>, alignment: usize) {
    bytes.resize(bytes.len().next_multiple_of(alignment), 0);
}

fn encode_struct(fields: &[ConfigField], values: &[ConfigValue]) -> Vec<u8> {
    let (mut inline, mut out_of_line) = (Vec::new(), Vec::new());
    for (field, value) in fields.iter().zip(values) {
        pad(&mut inline, layout(&field.kind).1);
        put(&field.kind, value, &mut inline, &mut out_of_line);
    }
    pad(&mut inline, 8);
    inline.extend(out_of_line);
    inline
}

/// Writes a value, and after everything inline, what it has out of line, in the order of depth-first traversal.
fn put(kind: &ConfigType, value: &ConfigValue, inline: &mut Vec<u8>, out_of_line: &mut Vec<u8>) {
    match value {
        ConfigValue::Bool(flag) => inline.push(u8::from(*flag)),
        ConfigValue::Integer(number) => {
            let size = layout(kind).0;
            inline.extend(number.to_le_bytes().into_iter().take(size));
        }
        ConfigValue::String(text) => {
            inline.extend((text.len() as u64).to_le_bytes());
            inline.extend([0xff; 8]);
            out_of_line.extend(text.as_bytes());
            pad(out_of_line, 8);
        }
        ConfigValue::Vector(items) => {
            inline.extend((items.len() as u64).to_le_bytes());
            inline.extend([0xff; 8]);
            let ConfigType::Vector { element, .. } = kind else { return };
            let (mut body, mut below) = (Vec::new(), Vec::new());
            for item in items {
                put(element, item, &mut body, &mut below);
            }
            pad(&mut body, 8);
            out_of_line.extend(body);
            out_of_line.extend(below);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(kind: ConfigType) -> ConfigField {
        ConfigField { key: "k".to_owned(), kind, default: None }
    }

    #[test]
    fn values_are_laid_out_as_fidl_does() {
        let fields = [
            field(ConfigType::Bool),
            field(ConfigType::Integer { bits: 32, signed: false }),
            field(ConfigType::String { max_size: 10 }),
            field(ConfigType::Vector {
                element: Box::new(ConfigType::Integer { bits: 16, signed: true }),
                max_count: 4,
            }),
        ];
        let values = [
            ConfigValue::Bool(true),
            ConfigValue::Integer(0x0102_0304),
            ConfigValue::String("abc".to_owned()),
            ConfigValue::Vector(vec![ConfigValue::Integer(-2)]),
        ];
        let mut expected = vec![1, 0, 0, 0, 4, 3, 2, 1];
        expected.extend([3, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([0xff; 8]);
        expected.extend([1, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend([0xff; 8]);
        expected.extend(*b"abc\0\0\0\0\0");
        expected.extend([0xfe, 0xff, 0, 0, 0, 0, 0, 0]);
        assert_eq!(encode_struct(&fields, &values), expected);
    }

    #[test]
    fn the_checksum_stands_in_front() {
        let bytes = encode(&[field(ConfigType::Bool)], &[ConfigValue::Bool(false)]);
        assert_eq!(bytes[..2], [32, 0]);
        assert_eq!(bytes[34..42], PERSISTENT_HEADER);
        assert_eq!(bytes.len(), 50);
        let other = encode(
            &[field(ConfigType::Integer { bits: 8, signed: false })],
            &[ConfigValue::Integer(0)],
        );
        assert_ne!(bytes[2..34], other[2..34]);
    }

    #[test]
    fn a_value_of_another_type_does_not_fit() {
        let byte = ConfigType::Integer { bits: 8, signed: false };
        assert!(fits(&byte, &ConfigValue::Integer(255)));
        assert!(!fits(&byte, &ConfigValue::Integer(256)));
        assert!(!fits(&byte, &ConfigValue::Bool(true)));
        assert!(fits(
            &ConfigType::Integer { bits: 64, signed: false },
            &ConfigValue::Integer(i128::from(u64::MAX))
        ));
    }
}
