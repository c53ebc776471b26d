//! Resolving protocols: their methods, what they compose and the ordinals of it all.

use super::attributes::Place;
use super::{RawKind, Resolver, Scope};
use crate::ast::{self, LayoutKind, Modifier};
use crate::availability;
use crate::ir::{DeclId, Method, MethodKind, Openness, Primitive, Protocol, Type};
use crate::names::lower_snake_case;
use crate::ordinal::{is_full_selector, method_ordinal};
use crate::source::Span;
use std::collections::HashMap;

/// Protocols composed through each other deeper than this are refused.
const MAX_COMPOSITION: usize = 32;

impl<'a> Resolver<'a, '_> {
    fn openness(&mut self, modifiers: &[Modifier]) -> Openness {
        let mut chosen: Option<(Openness, Span)> = None;
        for modifier in modifiers.iter().filter(|m| availability::applies_at_head(m)) {
            let openness = match modifier.word.text.as_str() {
                "closed" => Openness::Closed,
                "ajar" => Openness::Ajar,
                _ => Openness::Open,
            };
            if let Some((_, first)) = chosen.replace((openness, modifier.word.span)) {
                self.diagnostics.error_with_note(
                    modifier.word.span,
                    "a protocol is `open`, `ajar` or `closed`, once",
                    first,
                    "first given here",
                );
            }
        }
        chosen.map_or(Openness::Open, |(openness, _)| openness)
    }

    pub(super) fn protocol(
        &mut self,
        id: DeclId,
        scope: Scope,
        protocol: &'a ast::ProtocolDeclaration,
    ) -> Protocol {
        let openness = self.openness(&protocol.modifiers);
        let mut methods = self.own_methods(id, scope, protocol, openness);
        let mut composed = Vec::new();
        for composition in &protocol.composed {
            self.check_attributes(&composition.attributes, Place::Composition);
            if !availability::exists_at_head(&composition.attributes) {
                continue;
            }
            let Some(other) = self.composable(scope, &composition.protocol) else { continue };
            if composed.contains(&other) {
                self.diagnostics
                    .error(composition.protocol.span, "this protocol is composed twice");
                continue;
            }
            composed.push(other);
            self.check_openness(openness, other, composition.protocol.span);
            let mut found = Vec::new();
            if !self.composed_methods(other, composition.protocol.span, 0, &mut found) {
                continue;
            }
            methods.extend(found);
        }
        self.check_methods(&mut methods);
        let attributes = self.raw(id).attributes;
        let discoverable = attributes.get("discoverable").map(|attribute| {
            self.name_argument(attribute).map_or_else(
                || format!("{}.{}", self.libraries[id.library].name, self.raw(id).name),
                |(name, _)| name,
            )
        });
        Protocol { openness, discoverable, composed, methods }
    }

    fn composable(&mut self, scope: Scope, name: &ast::CompoundIdentifier) -> Option<DeclId> {
        let id = self.expect_declaration(scope, name)?;
        if matches!(self.raw(id).kind, RawKind::Protocol(_)) {
            return Some(id);
        }
        self.diagnostics.error(name.span, format!("`{}` is not a protocol", name.text()));
        None
    }

    fn check_openness(&mut self, openness: Openness, composed: DeclId, span: Span) {
        let RawKind::Protocol(other) = self.raw(composed).kind else { return };
        let other = self.openness(&other.modifiers);
        if other > openness {
            let name = self.raw(composed).name.clone();
            self.diagnostics.error(
                span,
                format!(
                    "a protocol that is {} cannot compose `{name}`, which is {}",
                    openness.word(),
                    other.word()
                ),
            );
        }
    }

    /// The methods that come with composing `id`; false if it composes itself.
    fn composed_methods(
        &mut self,
        id: DeclId,
        span: Span,
        depth: usize,
        methods: &mut Vec<Method>,
    ) -> bool {
        if depth > MAX_COMPOSITION {
            self.diagnostics.error(span, "protocols compose each other in a cycle or too deeply");
            return false;
        }
        let RawKind::Protocol(protocol) = self.raw(id).kind else { return false };
        let scope = self.scope_of(id);
        let openness = self.openness(&protocol.modifiers);
        let own = self.own_methods(id, scope, protocol, openness);
        methods.extend(own.into_iter().map(|method| Method { composed_from: Some(id), ..method }));
        for composition in &protocol.composed {
            if !availability::exists_at_head(&composition.attributes) {
                continue;
            }
            if let Some(other) = self.composable(scope, &composition.protocol)
                && !self.composed_methods(other, span, depth + 1, methods)
            {
                return false;
            }
        }
        true
    }

    /// The methods a protocol declares itself. What is wrong with them is reported each time and
    /// shown once.
    fn own_methods(
        &mut self,
        id: DeclId,
        scope: Scope,
        protocol: &'a ast::ProtocolDeclaration,
        openness: Openness,
    ) -> Vec<Method> {
        let mut methods = Vec::new();
        for method in &protocol.methods {
            self.check_attributes(&method.attributes, Place::Method);
            if !availability::exists_at_head(&method.attributes) {
                continue;
            }
            let selector = self.selector(id, method);
            let strict = self.method_strictness(method, openness);
            let kind = match (&method.request, &method.response) {
                (None, _) => MethodKind::Event,
                (Some(_), None) => MethodKind::OneWay,
                (Some(_), Some(_)) => MethodKind::TwoWay,
            };
            if kind == MethodKind::Event
                && let Some(error) = &method.error
            {
                self.diagnostics.error(error.span, "an event has no error");
            }
            let request = method.request.as_ref().and_then(|p| self.payload(scope, p));
            let response = method.response.as_ref().and_then(|p| self.payload(scope, p));
            let error = method.error.as_ref().and_then(|ty| self.error_type(scope, ty));
            methods.push(Method {
                name: method.name.text.clone(),
                span: method.name.span,
                doc: method.attributes.doc.clone(),
                ordinal: method_ordinal(&selector),
                selector,
                strict,
                kind,
                request,
                response,
                error,
                composed_from: None,
            });
        }
        methods
    }

    fn selector(&mut self, id: DeclId, method: &ast::MethodDeclaration) -> String {
        let own = match method.attributes.get("selector") {
            Some(attribute) => self.string_argument(attribute).map(|(text, _)| text),
            None => None,
        };
        match own {
            Some(full) if is_full_selector(&full) => full,
            other => {
                let name = other.unwrap_or_else(|| method.name.text.clone());
                format!("{}/{}.{name}", self.libraries[id.library].name, self.raw(id).name)
            }
        }
    }

    fn method_strictness(&mut self, method: &ast::MethodDeclaration, openness: Openness) -> bool {
        let mut chosen: Option<(bool, Span)> = None;
        for modifier in method.modifiers.iter().filter(|m| availability::applies_at_head(m)) {
            let strict = modifier.word.text == "strict";
            if let Some((_, first)) = chosen.replace((strict, modifier.word.span)) {
                self.diagnostics.error_with_note(
                    modifier.word.span,
                    "a method is `strict` or `flexible`, once",
                    first,
                    "first given here",
                );
            }
        }
        let (strict, span) = chosen.unwrap_or((false, method.name.span));
        if !strict {
            let two_way = method.request.is_some() && method.response.is_some();
            let needed = if two_way { Openness::Open } else { Openness::Ajar };
            if openness < needed {
                let what = match (&method.request, two_way) {
                    (None, _) => "an event",
                    (_, true) => "a two-way method",
                    (_, false) => "a one-way method",
                };
                let implicit =
                    if chosen.is_none() { " (methods are flexible by default)" } else { "" };
                self.diagnostics.error(
                    span,
                    format!(
                        "{what} of a protocol that is {} must be strict{implicit}",
                        openness.word()
                    ),
                );
            }
        }
        strict
    }

    fn payload(&mut self, scope: Scope, payload: &ast::Payload) -> Option<DeclId> {
        let ty = payload.layout.as_ref()?;
        let resolved = self.resolve_type(scope, ty)?;
        if let Type::Declared { id, optional: false } = resolved
            && let RawKind::Layout(layout) = self.raw(id).kind
        {
            match layout.kind {
                LayoutKind::Struct if layout.members.is_empty() => {
                    self.diagnostics.error(ty.span, "an empty payload is written `()`");
                    return None;
                }
                LayoutKind::Struct | LayoutKind::Table | LayoutKind::Union => return Some(id),
                LayoutKind::Enum | LayoutKind::Bits => {}
            }
        }
        self.diagnostics.error(ty.span, "a payload is a struct, a table or a union");
        None
    }

    fn error_type(&mut self, scope: Scope, ty: &ast::TypeConstructor) -> Option<Type> {
        let resolved = self.resolve_type(scope, ty)?;
        let is_32_bits = |primitive| matches!(primitive, Primitive::Int32 | Primitive::Uint32);
        let valid = match &resolved {
            Type::Primitive(primitive) => is_32_bits(*primitive),
            Type::Declared { id, .. } => match self.raw(*id).kind {
                RawKind::Layout(layout) if layout.kind == LayoutKind::Enum => {
                    let scope = self.scope_of(*id);
                    self.underlying(scope, layout).is_some_and(is_32_bits)
                }
                _ => false,
            },
            _ => false,
        };
        if !valid {
            self.diagnostics.error(ty.span, "an error is an int32, a uint32 or an enum of these");
            return None;
        }
        Some(resolved)
    }

    /// Reports methods of one protocol with equal names or ordinals, and drops what came to it
    /// twice by composition.
    fn check_methods(&mut self, methods: &mut Vec<Method>) {
        let mut seen_declarations: HashMap<Span, ()> = HashMap::new();
        methods.retain(|method| seen_declarations.insert(method.span, ()).is_none());
        let mut names: HashMap<String, (String, Span)> = HashMap::new();
        let mut ordinals: HashMap<u64, (String, Span)> = HashMap::new();
        for method in methods.iter() {
            let entry = (method.name.clone(), method.span);
            if let Some((first, span)) = names.insert(lower_snake_case(&method.name), entry.clone())
            {
                let message = if first == method.name {
                    format!("method `{first}` is declared twice")
                } else {
                    format!(
                        "method `{}` clashes with `{first}`: they are one name in canonical form",
                        method.name
                    )
                };
                self.diagnostics.error_with_note(method.span, message, span, "first declared here");
            } else if let Some((first, span)) = ordinals.insert(method.ordinal, entry) {
                self.diagnostics.error_with_note(
                    method.span,
                    format!(
                        "methods `{}` and `{first}` have the same ordinal {:#x}; change one with `@selector`",
                        method.name, method.ordinal
                    ),
                    span,
                    "the other one",
                );
            }
            if method.ordinal == 0 {
                self.diagnostics.error(
                    method.span,
                    format!(
                        "the ordinal of `{}` is 0, which is not valid; use `@selector`",
                        method.name
                    ),
                );
            }
        }
    }
}
