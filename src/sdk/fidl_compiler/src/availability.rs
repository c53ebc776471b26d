//! `@available`: which elements exist at HEAD, the only version this compiler builds for.

use crate::ast::{AttributeArgument, Attributes, Constant, Literal, Modifier};
use crate::diagnostic::Diagnostics;

const ARGUMENTS: [&str; 9] = [
    "added",
    "deprecated",
    "removed",
    "replaced",
    "renamed",
    "note",
    "platform",
    "changed",
    "noreplace",
];

/// Whether an element with these attributes exists at HEAD.
pub(crate) fn exists_at_head(attributes: &Attributes) -> bool {
    attributes.get("available").is_none_or(|attribute| arguments_exist(&attribute.arguments))
}

/// Whether a modifier with availability arguments applies at HEAD.
pub(crate) fn applies_at_head(modifier: &Modifier) -> bool {
    arguments_exist(&modifier.arguments)
}

fn arguments_exist(arguments: &[AttributeArgument]) -> bool {
    // Whatever is added is added at HEAD or before, and whatever is removed at HEAD or before is
    // gone. Only LEGACY keeps removed elements, and HEAD is not LEGACY.
    !arguments.iter().any(|argument| {
        argument
            .name
            .as_ref()
            .is_some_and(|name| matches!(name.text.as_str(), "removed" | "replaced"))
    })
}

/// Reports arguments that `@available` does not have, and versions that are none.
pub(crate) fn check(attributes: &Attributes, diagnostics: &mut Diagnostics) {
    let Some(attribute) = attributes.get("available") else { return };
    if attribute.arguments.is_empty() {
        diagnostics.error(attribute.name.span, "`@available` needs arguments, e.g. `added=HEAD`");
    }
    for argument in &attribute.arguments {
        let Some(name) = &argument.name else {
            diagnostics
                .error(argument.value.span(), "arguments of `@available` are written `name=value`");
            continue;
        };
        if !ARGUMENTS.contains(&name.text.as_str()) {
            diagnostics.error(name.span, format!("`@available` has no argument `{}`", name.text));
        } else if matches!(name.text.as_str(), "added" | "deprecated" | "removed" | "replaced")
            && !is_version(&argument.value)
        {
            diagnostics.error(argument.value.span(), "a version is a number, `NEXT` or `HEAD`");
        }
    }
}

fn is_version(value: &Constant) -> bool {
    match value {
        Constant::Literal(Literal::Number(text), _) => text.parse::<u32>().is_ok_and(|v| v > 0),
        Constant::Identifier(name) => matches!(name.text().as_str(), "NEXT" | "HEAD"),
        _ => false,
    }
}
