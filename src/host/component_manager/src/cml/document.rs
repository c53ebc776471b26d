//! A manifest as it is written: the shape of the JSON5, before any meaning is checked.

use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;

/// `"a"` or `["a", "b"]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OneOrMany {
    /// The strings.
    pub(super) items: Vec<String>,
    /// Whether they stood in brackets, which decides the path of each.
    pub(super) is_list: bool,
}

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Strings;
        impl<'de> Visitor<'de> for Strings {
            type Value = OneOrMany;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or a list of strings")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany { items: vec![text.to_owned()], is_list: false })
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<OneOrMany, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(OneOrMany { items, is_list: true })
            }
        }
        deserializer.deserialize_any(Strings)
    }
}

/// Adds to a clause the keys that name a capability, of which each clause has exactly one.
macro_rules! clause {
    ($(#[$meta:meta])* $name:ident { $($field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub(super) struct $name {
            pub(super) protocol: Option<OneOrMany>,
            pub(super) service: Option<OneOrMany>,
            pub(super) directory: Option<OneOrMany>,
            pub(super) storage: Option<OneOrMany>,
            pub(super) runner: Option<OneOrMany>,
            pub(super) resolver: Option<OneOrMany>,
            pub(super) dictionary: Option<OneOrMany>,
            pub(super) event_stream: Option<OneOrMany>,
            pub(super) config: Option<OneOrMany>,
            $(pub(super) $field: $type,)*
        }

        impl $name {
            /// The capability keys that the clause has, with their names.
            pub(super) fn capabilities(&self) -> Vec<(CapabilityType, &OneOrMany)> {
                [
                    (CapabilityType::Protocol, &self.protocol),
                    (CapabilityType::Service, &self.service),
                    (CapabilityType::Directory, &self.directory),
                    (CapabilityType::Storage, &self.storage),
                    (CapabilityType::Runner, &self.runner),
                    (CapabilityType::Resolver, &self.resolver),
                    (CapabilityType::Dictionary, &self.dictionary),
                    (CapabilityType::EventStream, &self.event_stream),
                    (CapabilityType::Config, &self.config),
                ]
                .into_iter()
                .filter_map(|(kind, names)| Some((kind, names.as_ref()?)))
                .collect()
            }
        }
    };
}

use crate::decl::CapabilityType;

clause! {
    /// An entry of `use`.
    Use {
        from: Option<String>,
        path: Option<String>,
        rights: Option<OneOrMany>,
        subdir: Option<String>,
        dependency: Option<String>,
        availability: Option<String>,
        scope: Option<OneOrMany>,
        filter: Option<Map<String, Value>>,
        key: Option<String>,
        r#type: Option<String>,
        max_size: Option<u32>,
        max_count: Option<u32>,
        element: Option<ConfigElement>,
        default: Option<Value>,
    }
}

clause! {
    /// An entry of `offer`.
    Offer {
        from: Option<OneOrMany>,
        to: Option<OneOrMany>,
        r#as: Option<String>,
        rights: Option<OneOrMany>,
        subdir: Option<String>,
        dependency: Option<String>,
        availability: Option<String>,
        source_availability: Option<String>,
        target_availability: Option<String>,
        scope: Option<OneOrMany>,
        filter: Option<Map<String, Value>>,
    }
}

clause! {
    /// An entry of `expose`.
    Expose {
        from: Option<OneOrMany>,
        to: Option<String>,
        r#as: Option<String>,
        rights: Option<OneOrMany>,
        subdir: Option<String>,
        availability: Option<String>,
        source_availability: Option<String>,
        scope: Option<OneOrMany>,
    }
}

clause! {
    /// An entry of `capabilities`.
    Capability {
        path: Option<String>,
        rights: Option<OneOrMany>,
        from: Option<String>,
        backing_dir: Option<String>,
        subdir: Option<String>,
        storage_id: Option<String>,
        delivery: Option<String>,
        extends: Option<String>,
        r#type: Option<String>,
        max_size: Option<u32>,
        max_count: Option<u32>,
        element: Option<ConfigElement>,
        value: Option<Value>,
    }
}

/// An entry of `children`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Child {
    pub(super) name: String,
    pub(super) url: String,
    pub(super) startup: Option<String>,
    pub(super) on_terminate: Option<String>,
    pub(super) environment: Option<String>,
}

/// An entry of `collections`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Collection {
    pub(super) name: String,
    pub(super) durability: String,
    pub(super) environment: Option<String>,
    pub(super) allowed_offers: Option<String>,
    #[serde(default)]
    pub(super) allow_long_names: bool,
    #[serde(default, rename = "persistent_storage")]
    pub(super) _persistent_storage: Option<bool>,
}

/// A registration of a runner, a resolver or a debug capability in an environment.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Registration {
    pub(super) runner: Option<String>,
    pub(super) resolver: Option<String>,
    pub(super) protocol: Option<OneOrMany>,
    pub(super) from: Option<String>,
    pub(super) r#as: Option<String>,
    #[serde(rename = "scheme")]
    pub(super) _scheme: Option<String>,
}

/// An entry of `environments`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Environment {
    pub(super) name: String,
    pub(super) extends: Option<String>,
    #[serde(default)]
    pub(super) runners: Vec<Registration>,
    #[serde(default)]
    pub(super) resolvers: Vec<Registration>,
    #[serde(default)]
    pub(super) debug: Vec<Registration>,
    #[serde(rename = "__stop_timeout_ms")]
    pub(super) stop_timeout_ms: Option<u32>,
}

/// The element type of a vector of configuration values.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfigElement {
    pub(super) r#type: String,
    pub(super) max_size: Option<u32>,
}

/// A field of `config`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfigField {
    pub(super) r#type: String,
    pub(super) max_size: Option<u32>,
    pub(super) max_count: Option<u32>,
    pub(super) element: Option<ConfigElement>,
    pub(super) default: Option<Value>,
    #[serde(default, rename = "mutability")]
    pub(super) _mutability: Option<Vec<String>>,
}

/// A manifest or a shard.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Document {
    pub(super) include: Vec<String>,
    pub(super) disable: Option<Map<String, Value>>,
    pub(super) program: Option<Map<String, Value>>,
    pub(super) children: Vec<Child>,
    pub(super) collections: Vec<Collection>,
    pub(super) environments: Vec<Environment>,
    pub(super) capabilities: Vec<Capability>,
    pub(super) r#use: Vec<Use>,
    pub(super) expose: Vec<Expose>,
    pub(super) offer: Vec<Offer>,
    pub(super) facets: Option<Map<String, Value>>,
    pub(super) config: Option<Fields>,
}

/// The fields of `config`, in the order in which they stand: it is the order of the encoded values.
#[derive(Debug, Clone, Default)]
pub(super) struct Fields(pub(super) Vec<(String, ConfigField)>);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of configuration fields")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    fields.push(entry);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}
