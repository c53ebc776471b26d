//! Names in the generated code.

use super::Generator;
use crate::ir::DeclId;
use crate::names::{lower_snake_case, upper_camel_case, upper_snake_case};

/// Words that cannot name a thing in Rust, and get a `_` at the end.
const KEYWORDS: [&str; 54] = [
    "abstract",
    "as",
    "async",
    "await",
    "become",
    "box",
    "break",
    "const",
    "continue",
    "crate",
    "do",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "let",
    "loop",
    "macro",
    "match",
    "mod",
    "move",
    "mut",
    "override",
    "priv",
    "pub",
    "ref",
    "return",
    "self",
    "static",
    "struct",
    "super",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "unsafe",
    "unsized",
    "use",
    "virtual",
    "where",
    "while",
    "yield",
    "union",
    "macro_rules",
    "static_assertions",
];

/// Names of types that the generated code itself uses without a path.
const TYPES: [&str; 9] = ["Self", "Ok", "Err", "Some", "None", "Fidl", "Send", "Sync", "Drop"];

fn escape(name: String, words: &[&str]) -> String {
    if words.contains(&name.as_str()) { format!("{name}_") } else { name }
}

/// The name of a field, parameter or method.
pub(super) fn value_name(name: &str) -> String {
    escape(lower_snake_case(name), &KEYWORDS)
}

/// The name of a method of a proxy, which has some of its own.
pub(super) fn method_name(name: &str) -> String {
    escape(value_name(name), &["new", "take_event_stream", "wait_for_event", "into_channel"])
}

/// The name of a type or variant.
pub(super) fn type_name(name: &str) -> String {
    escape(upper_camel_case(name), &TYPES)
}

/// The name of a constant or a member of bits.
pub(super) fn constant_name(name: &str) -> String {
    upper_snake_case(name)
}

impl Generator<'_> {
    /// The crate of a library.
    pub(super) fn crate_name(&self, library: usize) -> String {
        format!("fidl_{}", self.program.libraries[library].name.replace('.', "_"))
    }

    /// A declared name with the path to it, e.g. `fidl_fuchsia_io::FileMarker` for the suffix
    /// `Marker`.
    pub(super) fn path(&self, id: DeclId, suffix: &str) -> String {
        let name = format!("{}{suffix}", type_name(&self.program.declaration(id).name));
        if id.library == self.library {
            name
        } else {
            format!("{}::{name}", self.crate_name(id.library))
        }
    }
}
