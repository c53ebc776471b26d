//! Attributes the compiler knows: where they may stand and what their arguments are. Others are
//! accepted, as they are meant for other tools.

use super::Resolver;
use crate::ast::{Attribute, Attributes, Constant, Literal};
use crate::availability;
use crate::ordinal::{is_full_selector, is_identifier};
use crate::source::Span;

/// What an attribute stands before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Library,
    Const,
    Alias,
    Layout,
    InlineLayout,
    Protocol,
    Service,
    Resource,
    Member,
    EnumMember,
    Method,
    Composition,
}

impl Place {
    fn describe(self) -> &'static str {
        match self {
            Place::Library => "a library",
            Place::Const => "a constant",
            Place::Alias => "an alias",
            Place::Layout => "a type",
            Place::InlineLayout => "an inline layout",
            Place::Protocol => "a protocol",
            Place::Service => "a service",
            Place::Resource => "a resource definition",
            Place::Member => "a member",
            Place::EnumMember => "a member of an enum",
            Place::Method => "a method",
            Place::Composition => "`compose`",
        }
    }
}

/// The places a known attribute may stand at; `None` if it is not known.
fn places(name: &str) -> Option<&'static [Place]> {
    Some(match name {
        "discoverable" | "transport" => &[Place::Protocol],
        "selector" | "transitional" => &[Place::Method],
        "generated_name" => &[Place::InlineLayout],
        "unknown" => &[Place::EnumMember],
        "serializable" => &[Place::Layout, Place::InlineLayout],
        _ => return None,
    })
}

impl Resolver<'_, '_> {
    pub(super) fn check_attributes(&mut self, attributes: &Attributes, place: Place) {
        if place == Place::Library || place == Place::Member || place == Place::Method {
            availability::check(attributes, self.diagnostics);
        }
        for attribute in &attributes.list {
            let name = attribute.name.text.as_str();
            if let Some(places) = places(name)
                && !places.contains(&place)
            {
                self.diagnostics.error(
                    attribute.name.span,
                    format!("`@{name}` is not allowed on {}", place.describe()),
                );
                continue;
            }
            match name {
                "transport" => self.check_transport(attribute),
                "unknown" | "transitional" | "serializable" => {}
                "discoverable" => {
                    if let Some((text, span)) = self.name_argument(attribute)
                        && !text.split(['.', '/']).all(is_identifier)
                    {
                        self.diagnostics.error(span, format!("`{text}` is not a protocol's name"));
                    }
                }
                "selector" => {
                    if let Some((text, span)) = self.string_argument(attribute)
                        && !is_full_selector(&text)
                        && !is_identifier(&text)
                    {
                        self.diagnostics.error(
                            span,
                            format!(
                                "`{text}` is not a selector: `Method` or `library/Protocol.Method`"
                            ),
                        );
                    }
                }
                _ => {}
            }
        }
    }

    fn check_transport(&mut self, attribute: &Attribute) {
        if let Some((transport, span)) = self.string_argument(attribute)
            && transport != "Channel"
        {
            self.diagnostics.error(
                span,
                format!("transport `{transport}` is not supported; only `Channel` is"),
            );
        }
    }

    /// The name in `@discoverable(name="…")`, if it is given.
    pub(super) fn name_argument(&self, attribute: &Attribute) -> Option<(String, Span)> {
        attribute.arguments.iter().find_map(|argument| {
            let is_name = argument.name.as_ref().is_none_or(|name| name.text == "name");
            match &argument.value {
                Constant::Literal(Literal::String(text), span) if is_name => {
                    Some((text.clone(), *span))
                }
                _ => None,
            }
        })
    }

    /// The string of an attribute that takes exactly one.
    pub(super) fn string_argument(&mut self, attribute: &Attribute) -> Option<(String, Span)> {
        match attribute.arguments.as_slice() {
            [argument] => match &argument.value {
                Constant::Literal(Literal::String(text), span) => Some((text.clone(), *span)),
                other => {
                    let span = other.span();
                    self.diagnostics.error(
                        span,
                        format!("the argument of `@{}` must be a string", attribute.name.text),
                    );
                    None
                }
            },
            _ => {
                self.diagnostics.error(
                    attribute.name.span,
                    format!("`@{}` takes one string", attribute.name.text),
                );
                None
            }
        }
    }

    /// The name in `@generated_name`.
    pub(super) fn generated_name(&mut self, attributes: &Attributes) -> Option<(String, Span)> {
        let attribute = attributes.get("generated_name")?;
        let (name, span) = self.string_argument(attribute)?;
        if !is_identifier(&name) {
            self.diagnostics.error(span, format!("`{name}` is not a name"));
            return None;
        }
        Some((name, span))
    }
}
