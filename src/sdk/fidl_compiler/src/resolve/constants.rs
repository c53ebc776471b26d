//! Evaluating constants.

use super::scope::Named;
use super::{MAX_REFERENCES, Memo, RawKind, Resolver, Scope};
use crate::ast::{Constant, Identifier, LayoutKind, Literal, MemberKind};
use crate::availability;
use crate::ir::{DeclId, MAX_COUNT, Primitive, Type, Value};
use crate::source::Span;

/// Parses a whole number in decimal, hexadecimal or binary.
fn parse_integer(text: &str) -> Option<i128> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let lower = digits.to_ascii_lowercase();
    let value = if let Some(hex) = lower.strip_prefix("0x") {
        i128::from_str_radix(hex, 16).ok()?
    } else if let Some(binary) = lower.strip_prefix("0b") {
        i128::from_str_radix(binary, 2).ok()?
    } else {
        lower.parse().ok()?
    };
    Some(if negative { -value } else { value })
}

impl<'a> Resolver<'a, '_> {
    /// The value of a constant expression as a value of type `ty`; reports what does not fit.
    pub(super) fn evaluate(
        &mut self,
        scope: Scope,
        constant: &Constant,
        ty: &Type,
    ) -> Option<Value> {
        match constant {
            Constant::Literal(literal, span) => self.literal(literal, *span, ty),
            Constant::Or(terms, span) => {
                let mut all = 0i128;
                if !matches!(ty, Type::Declared { .. })
                    && !matches!(ty, Type::Primitive(p) if p.is_unsigned())
                {
                    self.diagnostics.error(*span, "`|` combines bits and unsigned numbers only");
                    return None;
                }
                for term in terms {
                    match self.evaluate(scope, term, ty)? {
                        Value::Int(value) => all |= value,
                        _ => return None,
                    }
                }
                Some(Value::Int(all))
            }
            Constant::Identifier(name) => {
                // `MAX` and, for a value of a declared enum or bits, its members by their own name.
                if let [one] = name.parts.as_slice() {
                    if one.text == "MAX" && *ty == Type::Primitive(Primitive::Uint32) {
                        return Some(Value::Int(MAX_COUNT.into()));
                    }
                    if let Type::Declared { id, .. } = ty
                        && self.lookup(scope, name).is_none()
                        && self.has_member(*id, &one.text)
                    {
                        return self.member_value(*id, one).map(Value::Int);
                    }
                }
                match self.lookup(scope, name) {
                    Some(Named::Declaration(id)) => self.constant_as(id, name.span, ty),
                    Some(Named::Member(id, member)) => {
                        let value = self.member_value(id, &member)?;
                        if matches!(ty, Type::Declared { id: expected, .. } if *expected == id) {
                            return Some(Value::Int(value));
                        }
                        self.convert(Value::Int(value), name.span, ty)
                    }
                    None => {
                        self.unknown_name(scope, name);
                        None
                    }
                }
            }
        }
    }

    fn literal(&mut self, literal: &Literal, span: Span, ty: &Type) -> Option<Value> {
        let value = match literal {
            Literal::Bool(value) => Value::Bool(*value),
            Literal::String(text) => Value::String(text.clone()),
            Literal::Number(text) => {
                let is_float =
                    matches!(ty, Type::Primitive(Primitive::Float32 | Primitive::Float64));
                if is_float {
                    match text.replace('_', "").parse::<f64>() {
                        Ok(value) => Value::Float(value),
                        Err(_) => {
                            self.diagnostics.error(span, format!("`{text}` is not a number"));
                            return None;
                        }
                    }
                } else {
                    match parse_integer(text) {
                        Some(value) => Value::Int(value),
                        None => {
                            self.diagnostics.error(span, format!("`{text}` is not a whole number"));
                            return None;
                        }
                    }
                }
            }
        };
        self.convert(value, span, ty)
    }

    /// The value of the constant `id` as a value of type `ty`.
    fn constant_as(&mut self, id: DeclId, span: Span, ty: &Type) -> Option<Value> {
        let RawKind::Const(declared, _) = self.raw(id).kind else {
            let name = self.raw(id).name.clone();
            self.diagnostics.error(span, format!("`{name}` is not a constant"));
            return None;
        };
        let value = self.constant_value(id)?;
        let scope = self.scope_of(id);
        let declared = self.resolve_type(scope, declared)?;
        if let (Type::Declared { id: a, .. }, Type::Declared { id: b, .. }) = (&declared, ty)
            && a == b
        {
            return Some(value);
        }
        if matches!(ty, Type::Declared { .. }) {
            let (have, want) = (self.describe(&declared), self.describe(ty));
            self.diagnostics.error(span, format!("this constant is {have}, not {want}"));
            return None;
        }
        self.convert(value, span, ty)
    }

    /// The value of a declared constant, evaluated once.
    pub(super) fn constant_value(&mut self, id: DeclId) -> Option<Value> {
        match self.constants.get(&id) {
            Some(Memo::Done(value)) => return value.clone(),
            Some(Memo::Running) => {
                let raw = self.raw(id);
                let (span, name) = (raw.span, raw.name.clone());
                self.diagnostics.error(span, format!("constant `{name}` refers to itself"));
                return None;
            }
            None => {}
        }
        let RawKind::Const(ty, value) = self.raw(id).kind else { return None };
        if self.references >= MAX_REFERENCES {
            self.diagnostics.error(value.span(), "constants refer to each other too deeply");
            return None;
        }
        self.constants.insert(id, Memo::Running);
        self.references += 1;
        let scope = self.scope_of(id);
        let result = self.resolve_type(scope, ty).and_then(|ty| self.evaluate(scope, value, &ty));
        self.references -= 1;
        self.constants.insert(id, Memo::Done(result.clone()));
        result
    }

    /// Checks that a value is one of type `ty`.
    fn convert(&mut self, value: Value, span: Span, ty: &Type) -> Option<Value> {
        let fits = match (&value, ty) {
            (Value::Bool(_), Type::Primitive(Primitive::Bool)) => true,
            (Value::Float(value), Type::Primitive(Primitive::Float32)) => {
                value.is_finite() && value.abs() <= f64::from(f32::MAX)
            }
            (Value::Float(value), Type::Primitive(Primitive::Float64)) => value.is_finite(),
            (Value::String(text), Type::String { max, .. }) => text.len() <= *max as usize,
            (Value::Int(value), Type::Primitive(primitive)) => match primitive.integer_range() {
                Some((least, greatest)) => (least..=greatest).contains(value),
                None => false,
            },
            _ => false,
        };
        if fits {
            return Some(value);
        }
        let shown = match &value {
            Value::Bool(value) => value.to_string(),
            Value::Int(value) => value.to_string(),
            Value::Float(value) => value.to_string(),
            Value::String(text) => format!("{text:?}"),
        };
        let want = self.describe(ty);
        self.diagnostics.error(span, format!("`{shown}` is not a value of {want}"));
        None
    }

    fn has_member(&self, id: DeclId, name: &str) -> bool {
        match self.raw(id).kind {
            RawKind::Layout(layout) => layout.members.iter().any(|member| {
                member.name.text == name && availability::exists_at_head(&member.attributes)
            }),
            _ => false,
        }
    }

    /// The value of a member of an enum or bits.
    fn member_value(&mut self, id: DeclId, member: &Identifier) -> Option<i128> {
        let owner = self.raw(id).name.clone();
        let RawKind::Layout(layout) = self.raw(id).kind else {
            self.diagnostics.error(member.span, format!("`{owner}` is not an enum or bits"));
            return None;
        };
        if !matches!(layout.kind, LayoutKind::Enum | LayoutKind::Bits) {
            self.diagnostics.error(member.span, format!("`{owner}` is not an enum or bits"));
            return None;
        }
        let found = layout.members.iter().find(|candidate| {
            candidate.name.text == member.text
                && availability::exists_at_head(&candidate.attributes)
        });
        let Some(found) = found else {
            self.diagnostics
                .error(member.span, format!("`{owner}` has no member `{}`", member.text));
            return None;
        };
        let MemberKind::Value(value) = &found.kind else { return None };
        self.evaluate_member(id, layout, value)
    }

    /// The value of an enum's or bits' member from its expression.
    pub(super) fn evaluate_member(
        &mut self,
        id: DeclId,
        layout: &'a crate::ast::Layout,
        value: &'a Constant,
    ) -> Option<i128> {
        if self.references >= MAX_REFERENCES {
            self.diagnostics.error(value.span(), "this value refers to itself");
            return None;
        }
        self.references += 1;
        let scope = self.scope_of(id);
        let underlying = self.underlying(scope, layout);
        let result = underlying.and_then(|ty| self.evaluate(scope, value, &Type::Primitive(ty)));
        self.references -= 1;
        match result {
            Some(Value::Int(value)) => Some(value),
            _ => None,
        }
    }
}
