//! Resolving constants, layouts, services and resource definitions.

use super::attributes::Place;
use super::{RawKind, Resolver, Scope};
use crate::ast::{self, LayoutKind, MemberKind, Modifier};
use crate::availability;
use crate::ir::{
    Bits, Const, DeclId, DeclarationKind, End, Enum, Field, OrdinaledMember, Primitive, Resource,
    Service, ServiceMember, Struct, Table, Type, Union, Value, ValueMember,
};
use crate::source::Span;
use std::collections::HashMap;

/// The largest ordinal of a table: its envelopes are all on the wire up to the last one present.
const MAX_TABLE_ORDINAL: u64 = 64;

struct LayoutModifiers {
    strict: bool,
    resource: bool,
}

impl<'a> Resolver<'a, '_> {
    pub(super) fn declaration(&mut self, id: DeclId) -> DeclarationKind {
        if id.index == 0 {
            self.check_declaration_names(id.library);
        }
        let raw = self.raw(id);
        let (attributes, kind, span, anonymous) =
            (raw.attributes, raw.kind, raw.span, raw.anonymous);
        let place = match kind {
            RawKind::Const(..) => Place::Const,
            RawKind::Alias(_) => Place::Alias,
            RawKind::Layout(_) if anonymous => Place::InlineLayout,
            RawKind::Layout(_) => Place::Layout,
            RawKind::Protocol(_) => Place::Protocol,
            RawKind::Service(_) => Place::Service,
            RawKind::Resource(_) => Place::Resource,
        };
        self.check_attributes(attributes, place);
        let scope = self.scope_of(id);
        match kind {
            RawKind::Const(ty, _) => DeclarationKind::Const(self.constant(id, scope, ty)),
            RawKind::Alias(_) => {
                // The type of an alias that is in error does not matter any more.
                DeclarationKind::Alias(self.alias(id).unwrap_or(Type::Primitive(Primitive::Bool)))
            }
            RawKind::Layout(layout) => self.layout(id, scope, layout, span),
            RawKind::Protocol(protocol) => {
                DeclarationKind::Protocol(self.protocol(id, scope, protocol))
            }
            RawKind::Service(members) => DeclarationKind::Service(self.service(scope, members)),
            RawKind::Resource(properties) => {
                let mut resource = Resource { subtype: None, rights: None };
                for property in properties {
                    let ty = self.resolve_type(scope, &property.ty);
                    match (property.name.text.as_str(), ty) {
                        ("subtype", Some(Type::Declared { id, .. })) => resource.subtype = Some(id),
                        ("rights", Some(ty)) => resource.rights = Some(ty),
                        (_, None) => {}
                        _ => self.diagnostics.error(
                            property.name.span,
                            "a resource has a `subtype`, which is an enum, and `rights`",
                        ),
                    }
                }
                DeclarationKind::Resource(resource)
            }
        }
    }

    fn constant(&mut self, id: DeclId, scope: Scope, ty: &ast::TypeConstructor) -> Const {
        let nothing = Const { ty: Type::Primitive(Primitive::Bool), value: Value::Bool(false) };
        let Some(resolved) = self.resolve_type(scope, ty) else { return nothing };
        let constant = match &resolved {
            Type::Primitive(_) | Type::String { optional: false, .. } => true,
            Type::Declared { id, .. } => matches!(
                self.raw(*id).kind,
                RawKind::Layout(layout) if matches!(layout.kind, LayoutKind::Enum | LayoutKind::Bits)
            ),
            _ => false,
        };
        if !constant {
            let what = self.describe(&resolved);
            self.diagnostics.error(
                ty.span,
                format!("a constant is a primitive, a string, an enum or bits, not {what}"),
            );
            return nothing;
        }
        match self.constant_value(id) {
            Some(value) => Const { ty: resolved, value },
            None => nothing,
        }
    }

    fn layout_modifiers(
        &mut self,
        layout: &ast::Layout,
        modifiers: &[Modifier],
    ) -> LayoutModifiers {
        let mut strict: Option<(bool, Span)> = None;
        let mut resource: Option<Span> = None;
        for modifier in modifiers.iter().filter(|m| availability::applies_at_head(m)) {
            let span = modifier.word.span;
            let word = modifier.word.text.as_str();
            if word == "resource" {
                if !matches!(
                    layout.kind,
                    LayoutKind::Struct | LayoutKind::Table | LayoutKind::Union
                ) {
                    self.diagnostics.error(span, "`resource` is for structs, tables and unions");
                }
                if let Some(first) = resource.replace(span) {
                    self.diagnostics.error_with_note(
                        span,
                        "`resource` is given twice",
                        first,
                        "first given here",
                    );
                }
                continue;
            }
            if matches!(layout.kind, LayoutKind::Struct | LayoutKind::Table) {
                self.diagnostics.error(span, format!("`{word}` is for bits, enums and unions"));
            }
            if let Some((_, first)) = strict.replace((word == "strict", span)) {
                self.diagnostics.error_with_note(
                    span,
                    "a layout is `strict` or `flexible`, once",
                    first,
                    "first given here",
                );
            }
        }
        LayoutModifiers {
            strict: strict.is_some_and(|(strict, _)| strict),
            resource: resource.is_some(),
        }
    }

    fn layout(
        &mut self,
        id: DeclId,
        scope: Scope,
        layout: &'a ast::Layout,
        span: Span,
    ) -> DeclarationKind {
        let modifiers = self.layout_modifiers(layout, &layout.modifiers);
        for member in &layout.members {
            let place = match layout.kind {
                LayoutKind::Enum => Place::EnumMember,
                _ => Place::Member,
            };
            availability::check(&member.attributes, self.diagnostics);
            self.check_attributes(&member.attributes, place);
        }
        let members: Vec<&'a ast::LayoutMember> = layout
            .members
            .iter()
            .filter(|member| availability::exists_at_head(&member.attributes))
            .collect();
        let named = members.iter().filter(|m| !matches!(m.kind, MemberKind::Reserved(_)));
        self.check_canonical_names("member", named.map(|m| (m.name.text.as_str(), m.name.span)));
        let needs_member = modifiers.strict
            && matches!(layout.kind, LayoutKind::Enum | LayoutKind::Bits | LayoutKind::Union);
        if needs_member && members.is_empty() {
            self.diagnostics.error(span, "a strict layout needs at least one member");
        }
        match layout.kind {
            LayoutKind::Struct => DeclarationKind::Struct(Struct {
                members: self.fields(scope, &members),
                resource: modifiers.resource,
            }),
            LayoutKind::Table => DeclarationKind::Table(Table {
                members: self.ordinaled(scope, &members, Some(MAX_TABLE_ORDINAL)),
                resource: modifiers.resource,
            }),
            LayoutKind::Union => DeclarationKind::Union(Union {
                members: self.ordinaled(scope, &members, None),
                strict: modifiers.strict,
                resource: modifiers.resource,
            }),
            LayoutKind::Enum => self.enumeration(id, scope, layout, &members, modifiers.strict),
            LayoutKind::Bits => self.bits(id, scope, layout, &members, modifiers.strict),
        }
    }

    fn fields(&mut self, scope: Scope, members: &[&'a ast::LayoutMember]) -> Vec<Field> {
        let mut fields = Vec::new();
        for member in members {
            let MemberKind::Field(ty, default) = &member.kind else { continue };
            let Some(resolved) = self.resolve_type(scope, ty) else { continue };
            let default = default.as_ref().and_then(|value| self.evaluate(scope, value, &resolved));
            fields.push(Field {
                name: member.name.text.clone(),
                span: member.name.span,
                doc: member.attributes.doc.clone(),
                ty: resolved,
                default,
            });
        }
        fields
    }

    fn ordinaled(
        &mut self,
        scope: Scope,
        members: &[&'a ast::LayoutMember],
        greatest: Option<u64>,
    ) -> Vec<OrdinaledMember> {
        let mut resolved: Vec<OrdinaledMember> = Vec::new();
        let mut seen: HashMap<u64, Span> = HashMap::new();
        for member in members {
            let (MemberKind::Ordinaled(ordinal, _) | MemberKind::Reserved(ordinal)) = &member.kind
            else {
                continue;
            };
            if let Some(first) = seen.insert(ordinal.value, ordinal.span) {
                self.diagnostics.error_with_note(
                    ordinal.span,
                    format!("ordinal {} is used twice", ordinal.value),
                    first,
                    "first used here",
                );
            }
            if greatest.is_some_and(|greatest| ordinal.value > greatest) {
                self.diagnostics.error(
                    ordinal.span,
                    format!("ordinals of a table are at most {MAX_TABLE_ORDINAL}"),
                );
            }
            let MemberKind::Ordinaled(_, ty) = &member.kind else { continue };
            let Some(member_type) = self.resolve_type(scope, ty) else { continue };
            let optional = match &member_type {
                Type::String { optional, .. }
                | Type::Vector { optional, .. }
                | Type::Handle { optional, .. }
                | Type::Endpoint { optional, .. }
                | Type::Declared { optional, .. } => *optional,
                Type::Box(_) => true,
                Type::Primitive(_) | Type::Array { .. } => false,
            };
            if optional {
                self.diagnostics
                    .error(ty.span, "a member of a table or union cannot be optional itself");
            }
            resolved.push(OrdinaledMember {
                ordinal: ordinal.value,
                name: member.name.text.clone(),
                span: member.name.span,
                doc: member.attributes.doc.clone(),
                ty: member_type,
            });
        }
        resolved.sort_by_key(|member| member.ordinal);
        resolved
    }

    fn values(
        &mut self,
        id: DeclId,
        layout: &'a ast::Layout,
        members: &[&'a ast::LayoutMember],
    ) -> Vec<ValueMember> {
        let mut values: Vec<ValueMember> = Vec::new();
        let mut seen: HashMap<i128, Span> = HashMap::new();
        for member in members {
            let MemberKind::Value(constant) = &member.kind else { continue };
            let Some(value) = self.evaluate_member(id, layout, constant) else { continue };
            if let Some(first) = seen.insert(value, member.name.span) {
                self.diagnostics.error_with_note(
                    member.name.span,
                    format!("value {value} is used twice"),
                    first,
                    "first used here",
                );
            }
            values.push(ValueMember {
                name: member.name.text.clone(),
                span: member.name.span,
                doc: member.attributes.doc.clone(),
                value,
                unknown: member.attributes.has("unknown"),
            });
        }
        values
    }

    fn enumeration(
        &mut self,
        id: DeclId,
        scope: Scope,
        layout: &'a ast::Layout,
        members: &[&'a ast::LayoutMember],
        strict: bool,
    ) -> DeclarationKind {
        let underlying = self.underlying(scope, layout).unwrap_or(Primitive::Uint32);
        let values = self.values(id, layout, members);
        let unknown: Vec<Span> = values.iter().filter(|v| v.unknown).map(|v| v.span).collect();
        if let (true, Some(span)) = (strict, unknown.first()) {
            self.diagnostics.error(*span, "a strict enum has no unknown value");
        }
        if let [_, second, ..] = unknown.as_slice() {
            self.diagnostics.error(*second, "only one member can be `@unknown`");
        }
        DeclarationKind::Enum(Enum { underlying, strict, members: values })
    }

    fn bits(
        &mut self,
        id: DeclId,
        scope: Scope,
        layout: &'a ast::Layout,
        members: &[&'a ast::LayoutMember],
        strict: bool,
    ) -> DeclarationKind {
        let underlying = self.underlying(scope, layout).unwrap_or(Primitive::Uint32);
        let values = self.values(id, layout, members);
        for value in &values {
            if u64::try_from(value.value).is_ok_and(|value| !value.is_power_of_two()) {
                self.diagnostics.error(
                    value.span,
                    format!("a member of bits is one bit, a power of two; {} is not", value.value),
                );
            }
        }
        DeclarationKind::Bits(Bits { underlying, strict, members: values })
    }

    fn service(&mut self, scope: Scope, members: &'a [ast::ServiceMember]) -> Service {
        let names = members.iter().map(|m| (m.name.text.as_str(), m.name.span));
        self.check_canonical_names("member", names);
        let mut resolved = Vec::new();
        for member in members {
            self.check_attributes(&member.attributes, Place::Member);
            if !availability::exists_at_head(&member.attributes) {
                continue;
            }
            match self.resolve_type(scope, &member.ty) {
                Some(Type::Endpoint { end: End::Client, protocol, optional: false }) => {
                    resolved.push(ServiceMember {
                        name: member.name.text.clone(),
                        span: member.name.span,
                        doc: member.attributes.doc.clone(),
                        protocol,
                    });
                }
                Some(_) => self
                    .diagnostics
                    .error(member.ty.span, "a member of a service is a `client_end:P`"),
                None => {}
            }
        }
        Service { members: resolved }
    }
}
