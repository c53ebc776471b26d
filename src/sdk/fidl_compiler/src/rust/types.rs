//! FIDL types in Rust: as owned values, as parameters, and as markers that select the codec.

use super::Generator;
use crate::ir::{DeclId, DeclarationKind, End, Primitive, Type};
use std::collections::HashSet;

/// What can be derived for a type.
#[derive(Debug, Clone, Copy)]
struct Traits {
    copy: bool,
    clone: bool,
    /// `Eq`, `Ord` and `Hash`, which floating point numbers and tables lack.
    total: bool,
}

impl Traits {
    fn and(self, other: Traits) -> Traits {
        Traits {
            copy: self.copy && other.copy,
            clone: self.clone && other.clone,
            total: self.total && other.total,
        }
    }
}

/// The Rust type of a primitive.
pub(super) fn primitive(primitive: Primitive) -> &'static str {
    match primitive {
        Primitive::Bool => "bool",
        Primitive::Int8 => "i8",
        Primitive::Int16 => "i16",
        Primitive::Int32 => "i32",
        Primitive::Int64 => "i64",
        Primitive::Uint8 => "u8",
        Primitive::Uint16 => "u16",
        Primitive::Uint32 => "u32",
        Primitive::Uint64 => "u64",
        Primitive::Float32 => "f32",
        Primitive::Float64 => "f64",
    }
}

/// The Rust type of handles to objects of a `zx_obj_type_t`.
fn handle(subtype: u32) -> &'static str {
    match subtype {
        1 => "fidl::Process",
        2 => "fidl::Thread",
        3 => "fidl::Vmo",
        4 => "fidl::Channel",
        5 => "fidl::Event",
        6 => "fidl::Port",
        14 => "fidl::Socket",
        15 => "fidl::Resource",
        16 => "fidl::EventPair",
        17 => "fidl::Job",
        18 => "fidl::Vmar",
        19 => "fidl::Fifo",
        20 => "fidl::Guest",
        21 => "fidl::Vcpu",
        22 => "fidl::Timer",
        30 => "fidl::Clock",
        _ => "fidl::Handle",
    }
}

fn option(inner: &str, optional: bool) -> String {
    if optional { format!("::std::option::Option<{inner}>") } else { inner.to_owned() }
}

impl Generator<'_> {
    fn endpoint(&self, end: End, protocol: DeclId) -> String {
        let end = if end == End::Client { "ClientEnd" } else { "ServerEnd" };
        format!("fidl::endpoints::{end}<{}>", self.path(protocol, "Marker"))
    }

    /// The type of an owned value.
    pub(super) fn owned(&self, ty: &Type) -> String {
        match ty {
            Type::Primitive(p) => primitive(*p).to_owned(),
            Type::String { optional, .. } => option("::std::string::String", *optional),
            Type::Vector { element, optional, .. } => {
                option(&format!("::std::vec::Vec<{}>", self.owned(element)), *optional)
            }
            Type::Array { element, count } => format!("[{}; {count}]", self.owned(element)),
            Type::Handle { subtype, optional, .. } => option(handle(*subtype), *optional),
            Type::Endpoint { end, protocol, optional } => {
                option(&self.endpoint(*end, *protocol), *optional)
            }
            Type::Box(id) => option(&format!("::std::boxed::Box<{}>", self.path(*id, "")), true),
            Type::Declared { id, optional: true } => {
                option(&format!("::std::boxed::Box<{}>", self.path(*id, "")), true)
            }
            Type::Declared { id, optional: false } => self.path(*id, ""),
        }
    }

    /// The type of a parameter: borrowed for value types, owned for resource types.
    pub(super) fn parameter(&self, ty: &Type) -> String {
        if self.program.is_resource(ty) {
            return self.owned(ty);
        }
        match ty {
            Type::String { optional, .. } => option("&str", *optional),
            Type::Vector { element, optional, .. } => {
                option(&format!("&[{}]", self.owned(element)), *optional)
            }
            Type::Array { .. } => format!("&{}", self.owned(ty)),
            Type::Box(id) => option(&format!("&{}", self.path(*id, "")), true),
            Type::Declared { id, optional } if !self.is_scalar(*id) => {
                option(&format!("&{}", self.path(*id, "")), *optional)
            }
            _ => self.owned(ty),
        }
    }

    fn is_scalar(&self, id: DeclId) -> bool {
        matches!(
            self.program.declaration(id).kind,
            DeclarationKind::Enum(_) | DeclarationKind::Bits(_)
        )
    }

    /// The type that selects the codec.
    pub(super) fn marker(&self, ty: &Type) -> String {
        let optional_of = |inner: String, optional: bool| {
            if optional { format!("fidl::encoding::Optional<{inner}>") } else { inner }
        };
        match ty {
            Type::Primitive(p) => primitive(*p).to_owned(),
            Type::String { max, optional } => {
                optional_of(format!("fidl::encoding::BoundedString<{max}>"), *optional)
            }
            Type::Vector { element, max, optional } => optional_of(
                format!("fidl::encoding::Vector<{}, {max}>", self.marker(element)),
                *optional,
            ),
            Type::Array { element, count } => {
                format!("fidl::encoding::Array<{}, {count}>", self.marker(element))
            }
            Type::Handle { subtype, rights, optional, .. } => optional_of(
                format!("fidl::encoding::HandleType<{}, {subtype}, {rights}>", handle(*subtype)),
                *optional,
            ),
            Type::Endpoint { end, protocol, optional } => optional_of(
                format!("fidl::encoding::Endpoint<{}>", self.endpoint(*end, *protocol)),
                *optional,
            ),
            Type::Box(id) => format!("fidl::encoding::Boxed<{}>", self.path(*id, "")),
            Type::Declared { id, optional } => optional_of(self.path(*id, ""), *optional),
        }
    }

    /// An expression for encoding a member: `place` is a place that owns it; it is borrowed or moved.
    pub(super) fn lend(&self, ty: &Type, place: &str) -> String {
        if self.program.is_resource(ty) {
            place.to_owned()
        } else {
            format!("<{} as fidl::encoding::ValueType>::borrow(&{place})", self.marker(ty))
        }
    }

    /// The path of the function that encodes what [`Self::parameter`] has.
    pub(super) fn encode_path(&self, ty: &Type) -> String {
        let marker = self.marker(ty);
        if self.program.is_resource(ty) {
            format!("<{marker} as fidl::encoding::WireType>::encode_owned")
        } else {
            format!("<{marker} as fidl::encoding::ValueType>::encode")
        }
    }

    /// The `#[derive]` of a declared struct or union.
    pub(super) fn derives(&self, id: DeclId) -> String {
        let traits = self.declared_traits(id, &mut HashSet::new());
        let mut list = vec!["Debug", "PartialEq"];
        if traits.clone {
            list.push("Clone");
        }
        if traits.copy {
            list.push("Copy");
        }
        if traits.total {
            list.extend(["Eq", "PartialOrd", "Ord", "Hash"]);
        }
        format!("#[derive({})]", list.join(", "))
    }

    fn declared_traits(&self, id: DeclId, seen: &mut HashSet<DeclId>) -> Traits {
        let all = Traits { copy: true, clone: true, total: true };
        // A type inside itself adds nothing but a Box, which is on the way here already.
        if !seen.insert(id) {
            return all;
        }
        match &self.program.declaration(id).kind {
            DeclarationKind::Struct(s) => s
                .members
                .iter()
                .fold(all, |traits, member| traits.and(self.traits(&member.ty, seen))),
            DeclarationKind::Union(u) => u
                .members
                .iter()
                .fold(Traits { copy: false, ..all }, |t, m| t.and(self.traits(&m.ty, seen)))
                .and(Traits { clone: !u.resource, ..all }),
            DeclarationKind::Table(t) => {
                let tail = Traits { copy: false, clone: !t.resource, total: false };
                t.members.iter().fold(tail, |t, m| t.and(self.traits(&m.ty, seen)))
            }
            _ => all,
        }
    }

    fn traits(&self, ty: &Type, seen: &mut HashSet<DeclId>) -> Traits {
        let heap = Traits { copy: false, clone: true, total: true };
        match ty {
            Type::Primitive(p) => Traits {
                copy: true,
                clone: true,
                total: !matches!(p, Primitive::Float32 | Primitive::Float64),
            },
            Type::String { .. } => heap,
            Type::Vector { element, .. } => heap.and(self.traits(element, seen)),
            Type::Array { element, .. } => self.traits(element, seen),
            Type::Handle { .. } | Type::Endpoint { .. } => {
                Traits { copy: false, clone: false, total: true }
            }
            Type::Box(id) | Type::Declared { id, optional: true } => {
                heap.and(self.declared_traits(*id, seen))
            }
            Type::Declared { id, .. } => self.declared_traits(*id, seen),
        }
    }
}
