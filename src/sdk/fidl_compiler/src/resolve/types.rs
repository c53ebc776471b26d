//! Resolving types.

use super::scope::Named;
use super::{MAX_REFERENCES, Memo, RawKind, Resolver, Scope};
use crate::ast::{
    Constant, Layout, LayoutKind, LayoutReference, Literal, TypeConstructor, TypeParameter,
};
use crate::ir::{DeclId, End, MAX_COUNT, Primitive, SAME_RIGHTS, Type, Value};
use crate::source::Span;

/// Types inside types deeper than this, through aliases, are refused.
const MAX_TYPE_DEPTH: usize = 64;

fn depth(ty: &Type) -> usize {
    match ty {
        Type::Vector { element, .. } | Type::Array { element, .. } => 1 + depth(element),
        _ => 1,
    }
}

fn is_word(constant: &Constant, word: &str) -> bool {
    matches!(constant, Constant::Identifier(name) if name.text() == word)
}

impl<'a> Resolver<'a, '_> {
    /// How diagnostics name a type.
    pub(super) fn describe(&self, ty: &Type) -> String {
        match ty {
            Type::Primitive(primitive) => format!("`{}`", primitive.name()),
            Type::String { max: MAX_COUNT, .. } => "`string`".to_owned(),
            Type::String { max, .. } => format!("`string:{max}`"),
            Type::Vector { .. } => "a vector".to_owned(),
            Type::Array { .. } => "an array".to_owned(),
            Type::Handle { .. } => "a handle".to_owned(),
            Type::Endpoint { .. } => "a protocol endpoint".to_owned(),
            Type::Box(id) | Type::Declared { id, .. } => format!("`{}`", self.qualified_name(*id)),
        }
    }

    /// The underlying type of an enum or bits.
    pub(super) fn underlying(&mut self, scope: Scope, layout: &Layout) -> Option<Primitive> {
        let Some(subtype) = &layout.subtype else { return Some(Primitive::Uint32) };
        match self.resolve_type(scope, subtype)? {
            Type::Primitive(primitive)
                if primitive.is_unsigned()
                    || (layout.kind == LayoutKind::Enum && primitive.integer_range().is_some()) =>
            {
                Some(primitive)
            }
            _ => {
                let want = if layout.kind == LayoutKind::Enum {
                    "an integer"
                } else {
                    "an unsigned integer"
                };
                self.diagnostics.error(subtype.span, format!("the underlying type must be {want}"));
                None
            }
        }
    }

    /// The type that a type constructor means; reports what is wrong with it.
    pub(super) fn resolve_type(&mut self, scope: Scope, ty: &TypeConstructor) -> Option<Type> {
        let base = match &ty.layout {
            LayoutReference::Inline(layout) => {
                self.expect_no_parameters(ty)?;
                let id = self.inline.get(&layout.span).copied()?;
                Type::Declared { id, optional: false }
            }
            LayoutReference::Named(name) => match self.lookup(scope, name) {
                Some(Named::Declaration(id)) => {
                    self.expect_no_parameters(ty)?;
                    self.declared_type(id, name.span)?
                }
                Some(Named::Member(..)) => {
                    self.diagnostics.error(name.span, format!("`{}` is not a type", name.text()));
                    return None;
                }
                None => match name.parts.as_slice() {
                    [one] => match self.builtin(scope, &one.text, ty)? {
                        Builtin::Type(found) => found,
                        Builtin::Constrained(found) => return Some(found),
                        Builtin::Unknown => {
                            self.unknown_name(scope, name);
                            return None;
                        }
                    },
                    _ => {
                        self.unknown_name(scope, name);
                        return None;
                    }
                },
            },
        };
        let resolved = self.constrain(scope, base, ty)?;
        if depth(&resolved) > MAX_TYPE_DEPTH {
            self.diagnostics
                .error(ty.span, format!("more than {MAX_TYPE_DEPTH} types inside each other"));
            return None;
        }
        Some(resolved)
    }

    fn expect_no_parameters(&mut self, ty: &TypeConstructor) -> Option<()> {
        if ty.parameters.is_empty() {
            return Some(());
        }
        self.diagnostics.error(ty.span, "this type takes no parameters");
        None
    }

    fn declared_type(&mut self, id: DeclId, span: Span) -> Option<Type> {
        match self.raw(id).kind {
            RawKind::Layout(_) => Some(Type::Declared { id, optional: false }),
            RawKind::Alias(_) => self.alias(id),
            RawKind::Resource(_) => Some(Type::Handle {
                resource: id,
                subtype: 0,
                rights: SAME_RIGHTS,
                optional: false,
            }),
            RawKind::Protocol(_) => {
                let name = self.raw(id).name.clone();
                self.diagnostics.error(
                    span,
                    format!(
                        "`{name}` is a protocol; use `client_end:{name}` or `server_end:{name}`"
                    ),
                );
                None
            }
            RawKind::Const(..) | RawKind::Service(_) => {
                let name = self.raw(id).name.clone();
                self.diagnostics.error(span, format!("`{name}` is not a type"));
                None
            }
        }
    }

    /// The type an alias names, resolved once.
    pub(super) fn alias(&mut self, id: DeclId) -> Option<Type> {
        match self.aliases.get(&id) {
            Some(Memo::Done(ty)) => return ty.clone(),
            Some(Memo::Running) => {
                let raw = self.raw(id);
                let (span, name) = (raw.span, raw.name.clone());
                self.diagnostics.error(span, format!("alias `{name}` refers to itself"));
                return None;
            }
            None => {}
        }
        let RawKind::Alias(ty) = self.raw(id).kind else { return None };
        if self.references >= MAX_REFERENCES {
            self.diagnostics.error(ty.span, "aliases refer to each other too deeply");
            return None;
        }
        self.aliases.insert(id, Memo::Running);
        self.references += 1;
        let scope = self.scope_of(id);
        let resolved = self.resolve_type(scope, ty);
        self.references -= 1;
        self.aliases.insert(id, Memo::Done(resolved.clone()));
        resolved
    }

    fn builtin(&mut self, scope: Scope, name: &str, ty: &TypeConstructor) -> Option<Builtin> {
        if let Some(primitive) = Primitive::from_name(name) {
            self.expect_no_parameters(ty)?;
            return Some(Builtin::Type(Type::Primitive(primitive)));
        }
        Some(Builtin::Type(match name {
            "string" => {
                self.expect_no_parameters(ty)?;
                Type::String { max: MAX_COUNT, optional: false }
            }
            "bytes" => {
                self.expect_no_parameters(ty)?;
                let element = Box::new(Type::Primitive(Primitive::Uint8));
                Type::Vector { element, max: MAX_COUNT, optional: false }
            }
            "vector" => {
                let [TypeParameter::Type(element)] = ty.parameters.as_slice() else {
                    self.diagnostics.error(ty.span, "`vector` takes one type: `vector<T>:N`");
                    return None;
                };
                let element = Box::new(self.resolve_type(scope, element)?);
                Type::Vector { element, max: MAX_COUNT, optional: false }
            }
            "array" => self.array(scope, ty)?,
            "box" => {
                let [TypeParameter::Type(inner)] = ty.parameters.as_slice() else {
                    self.diagnostics.error(ty.span, "`box` takes one struct: `box<S>`");
                    return None;
                };
                let inner_type = self.resolve_type(scope, inner)?;
                match inner_type {
                    Type::Declared { id, .. } if self.is_struct(id) => Type::Box(id),
                    _ => {
                        self.diagnostics.error(
                            inner.span,
                            "only a struct can be boxed; other types take `:optional`",
                        );
                        return None;
                    }
                }
            }
            "client_end" => return self.endpoint(scope, End::Client, ty).map(Builtin::Constrained),
            "server_end" => return self.endpoint(scope, End::Server, ty).map(Builtin::Constrained),
            _ => return Some(Builtin::Unknown),
        }))
    }

    fn is_struct(&self, id: DeclId) -> bool {
        matches!(self.raw(id).kind, RawKind::Layout(layout) if layout.kind == LayoutKind::Struct)
    }

    fn array(&mut self, scope: Scope, ty: &TypeConstructor) -> Option<Type> {
        let [TypeParameter::Type(element), count] = ty.parameters.as_slice() else {
            self.diagnostics.error(ty.span, "`array` takes a type and a size: `array<T, N>`");
            return None;
        };
        let element = Box::new(self.resolve_type(scope, element)?);
        let count = match count {
            TypeParameter::Constant(constant) => self.count(scope, constant)?,
            // A constant's name looks like a type's.
            TypeParameter::Type(TypeConstructor {
                layout: LayoutReference::Named(name),
                parameters,
                constraints,
                ..
            }) if parameters.is_empty() && constraints.is_empty() => {
                self.count(scope, &Constant::Identifier(name.clone()))?
            }
            TypeParameter::Type(other) => {
                self.diagnostics.error(other.span, "the size of an array is a constant");
                return None;
            }
        };
        Some(Type::Array { element, count })
    }

    /// A bound or size: a `uint32` that is not zero.
    fn count(&mut self, scope: Scope, constant: &Constant) -> Option<u32> {
        let value = self.evaluate(scope, constant, &Type::Primitive(Primitive::Uint32))?;
        match value {
            Value::Int(value) if value > 0 => u32::try_from(value).ok(),
            _ => {
                self.diagnostics.error(constant.span(), "a size or bound must be at least 1");
                None
            }
        }
    }

    fn endpoint(&mut self, scope: Scope, end: End, ty: &TypeConstructor) -> Option<Type> {
        self.expect_no_parameters(ty)?;
        let word = if end == End::Client { "client_end" } else { "server_end" };
        let mut constraints = ty.constraints.iter();
        let Some(Constant::Identifier(name)) = constraints.next() else {
            self.diagnostics.error(ty.span, format!("`{word}` needs a protocol: `{word}:P`"));
            return None;
        };
        let protocol = self.expect_declaration(scope, name)?;
        if !matches!(self.raw(protocol).kind, RawKind::Protocol(_)) {
            self.diagnostics.error(name.span, format!("`{}` is not a protocol", name.text()));
            return None;
        }
        let mut optional = false;
        for constraint in constraints {
            if optional || !is_word(constraint, "optional") {
                self.diagnostics
                    .error(constraint.span(), format!("`{word}` has no such constraint"));
                return None;
            }
            optional = true;
        }
        Some(Type::Endpoint { end, protocol, optional })
    }

    /// Applies the constraints of a use to the type.
    fn constrain(&mut self, scope: Scope, base: Type, ty: &TypeConstructor) -> Option<Type> {
        let mut resolved = base;
        let mut handle_constraints = 0;
        for constraint in &ty.constraints {
            if is_word(constraint, "optional") {
                resolved = self.make_optional(resolved, constraint.span())?;
                continue;
            }
            match &mut resolved {
                Type::String { max, .. } | Type::Vector { max, .. } => {
                    let bound = self.count(scope, constraint)?;
                    if *max != MAX_COUNT {
                        self.diagnostics.error(constraint.span(), "the bound is given twice");
                        return None;
                    }
                    *max = bound;
                }
                Type::Handle { resource, subtype, rights, .. } => {
                    let resource = *resource;
                    handle_constraints += 1;
                    if handle_constraints == 1 && *subtype == 0 {
                        *subtype = self.handle_subtype(scope, resource, constraint)?;
                    } else if *rights == SAME_RIGHTS {
                        *rights = self.handle_rights(scope, resource, constraint)?;
                    } else {
                        self.diagnostics
                            .error(constraint.span(), "a handle has a subtype and rights only");
                        return None;
                    }
                }
                _ => {
                    let what = self.describe(&resolved);
                    self.diagnostics
                        .error(constraint.span(), format!("{what} cannot be constrained by this"));
                    return None;
                }
            }
        }
        Some(resolved)
    }

    fn make_optional(&mut self, ty: Type, span: Span) -> Option<Type> {
        let (already, result) = match ty {
            Type::String { max, optional } => (optional, Type::String { max, optional: true }),
            Type::Vector { element, max, optional } => {
                (optional, Type::Vector { element, max, optional: true })
            }
            Type::Handle { resource, subtype, rights, optional } => {
                (optional, Type::Handle { resource, subtype, rights, optional: true })
            }
            Type::Endpoint { end, protocol, optional } => {
                (optional, Type::Endpoint { end, protocol, optional: true })
            }
            Type::Declared { id, optional } if self.is_union(id) => {
                (optional, Type::Declared { id, optional: true })
            }
            other => {
                let what = self.describe(&other);
                let help = match other {
                    Type::Declared { id, .. } if self.is_struct(id) => "; use `box<…>`",
                    _ => "",
                };
                self.diagnostics.error(span, format!("{what} cannot be optional{help}"));
                return None;
            }
        };
        if already {
            self.diagnostics.error(span, "`optional` is given twice");
            return None;
        }
        Some(result)
    }

    fn is_union(&self, id: DeclId) -> bool {
        matches!(self.raw(id).kind, RawKind::Layout(layout) if layout.kind == LayoutKind::Union)
    }

    fn resource_property(&mut self, resource: DeclId, name: &str) -> Option<Type> {
        let RawKind::Resource(properties) = self.raw(resource).kind else { return None };
        let property = properties.iter().find(|property| property.name.text == name)?;
        let scope = self.scope_of(resource);
        self.resolve_type(scope, &property.ty)
    }

    fn handle_subtype(
        &mut self,
        scope: Scope,
        resource: DeclId,
        constraint: &Constant,
    ) -> Option<u32> {
        let Some(ty) = self.resource_property(resource, "subtype") else {
            self.diagnostics.error(constraint.span(), "this resource has no subtypes");
            return None;
        };
        match self.evaluate(scope, constraint, &ty)? {
            Value::Int(value) => u32::try_from(value).ok(),
            _ => None,
        }
    }

    fn handle_rights(
        &mut self,
        scope: Scope,
        resource: DeclId,
        constraint: &Constant,
    ) -> Option<u32> {
        let Some(ty) = self.resource_property(resource, "rights") else {
            self.diagnostics.error(constraint.span(), "this resource has no rights");
            return None;
        };
        // Rights are bits; a plain number is taken as well, as zx.fidl itself has some.
        let ty = match constraint {
            Constant::Literal(Literal::Number(_), _) => Type::Primitive(Primitive::Uint32),
            _ => ty,
        };
        match self.evaluate(scope, constraint, &ty)? {
            Value::Int(value) => u32::try_from(value).ok(),
            _ => None,
        }
    }
}

enum Builtin {
    /// Constraints are still to be applied.
    Type(Type),
    /// Constraints are applied.
    Constrained(Type),
    /// No type has this name.
    Unknown,
}
