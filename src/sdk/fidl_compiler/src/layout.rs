//! Sizes, alignments and offsets in wire format v2 (RFC-0114), and the bounds that follow from a
//! type.

use crate::ir::{DeclId, DeclarationKind, MAX_COUNT, Program, Struct, Type};
use std::cell::RefCell;
use std::collections::HashMap;

/// Beyond this many references the bounds of a type are taken as unlimited.
const MAX_BOUND_DEPTH: usize = 64;

/// Size and alignment of the inline part of a type, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inline {
    /// Size with the padding at the end.
    pub size: u64,
    /// Alignment: 1, 2, 4 or 8.
    pub align: u64,
}

/// Where the members of a struct are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields {
    /// Size of the struct with the padding at the end; 1 if it is empty.
    pub size: u64,
    /// Alignment of the struct.
    pub align: u64,
    /// Of each member, its offset and the number of padding bytes after it.
    pub members: Vec<(u64, u64)>,
}

/// What a value of a type takes at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes out of line; `u32::MAX` is unlimited.
    pub out_of_line: u32,
    /// Handles; `u32::MAX` is unlimited.
    pub handles: u32,
    /// Objects out of line inside each other; `u32::MAX` is unlimited.
    pub depth: u32,
}

impl Bounds {
    const NONE: Bounds = Bounds { out_of_line: 0, handles: 0, depth: 0 };

    fn and(self, other: Bounds) -> Bounds {
        Bounds {
            out_of_line: self.out_of_line.saturating_add(other.out_of_line),
            handles: self.handles.saturating_add(other.handles),
            depth: self.depth.max(other.depth),
        }
    }

    fn or(self, other: Bounds) -> Bounds {
        Bounds {
            out_of_line: self.out_of_line.max(other.out_of_line),
            handles: self.handles.max(other.handles),
            depth: self.depth.max(other.depth),
        }
    }

    fn times(self, count: u32) -> Bounds {
        Bounds {
            out_of_line: self.out_of_line.saturating_mul(count),
            handles: self.handles.saturating_mul(count),
            depth: if count == 0 { 0 } else { self.depth },
        }
    }

    /// The bounds of an object out of line with an inline part of `size` bytes.
    fn behind(self, size: u64) -> Bounds {
        let size = u32::try_from(size.next_multiple_of(8)).unwrap_or(u32::MAX);
        Bounds {
            out_of_line: self.out_of_line.saturating_add(size),
            handles: self.handles,
            depth: self.depth.saturating_add(1),
        }
    }
}

/// The layouts of a program's types. Types must not contain themselves.
#[derive(Debug)]
pub struct Layouts<'a> {
    program: &'a Program,
    inline: RefCell<HashMap<DeclId, Inline>>,
    bounds: RefCell<HashMap<DeclId, Option<Bounds>>>,
}

impl<'a> Layouts<'a> {
    /// The layouts of a program.
    pub fn new(program: &'a Program) -> Layouts<'a> {
        Layouts { program, inline: RefCell::default(), bounds: RefCell::default() }
    }

    /// Size and alignment of a type.
    pub fn inline(&self, ty: &Type) -> Inline {
        match ty {
            Type::Primitive(primitive) => {
                let size = u64::from(primitive.size());
                Inline { size, align: size }
            }
            Type::String { .. } | Type::Vector { .. } => Inline { size: 16, align: 8 },
            Type::Array { element, count } => {
                let element = self.inline(element);
                Inline { size: element.size.saturating_mul((*count).into()), align: element.align }
            }
            Type::Handle { .. } | Type::Endpoint { .. } => Inline { size: 4, align: 4 },
            Type::Box(_) => Inline { size: 8, align: 8 },
            Type::Declared { id, .. } => self.declared(*id),
        }
    }

    /// Size and alignment of a declared type.
    pub fn declared(&self, id: DeclId) -> Inline {
        if let Some(known) = self.inline.borrow().get(&id) {
            return *known;
        }
        let inline = match &self.program.declaration(id).kind {
            DeclarationKind::Enum(e) => self.inline(&Type::Primitive(e.underlying)),
            DeclarationKind::Bits(b) => self.inline(&Type::Primitive(b.underlying)),
            DeclarationKind::Struct(s) => {
                let fields = self.fields(s);
                Inline { size: fields.size, align: fields.align }
            }
            DeclarationKind::Table(_) | DeclarationKind::Union(_) => Inline { size: 16, align: 8 },
            DeclarationKind::Alias(ty) => self.inline(ty),
            DeclarationKind::Const(_)
            | DeclarationKind::Protocol(_)
            | DeclarationKind::Service(_)
            | DeclarationKind::Resource(_) => Inline { size: 0, align: 1 },
        };
        self.inline.borrow_mut().insert(id, inline);
        inline
    }

    /// Where the members of a struct are.
    pub fn fields(&self, s: &Struct) -> Fields {
        let inlines: Vec<Inline> = s.members.iter().map(|m| self.inline(&m.ty)).collect();
        let align = inlines.iter().map(|inline| inline.align).max().unwrap_or(1);
        if inlines.is_empty() {
            return Fields { size: 1, align: 1, members: Vec::new() };
        }
        let mut members = Vec::with_capacity(inlines.len());
        let mut offset = 0u64;
        for (i, inline) in inlines.iter().enumerate() {
            let end = offset.saturating_add(inline.size);
            let next_align = inlines.get(i + 1).map_or(align, |next| next.align);
            let next = end.checked_next_multiple_of(next_align).unwrap_or(u64::MAX);
            members.push((offset, next - end));
            offset = next;
        }
        Fields { size: offset, align, members }
    }

    /// What a value of a type takes at most.
    pub fn bounds(&self, ty: &Type) -> Bounds {
        self.bounds_at(ty, 0)
    }

    /// What a value of a declared type takes at most.
    pub fn declared_bounds(&self, id: DeclId) -> Bounds {
        self.declared_bounds_at(id, 0)
    }

    fn bounds_at(&self, ty: &Type, level: usize) -> Bounds {
        match ty {
            Type::Primitive(_) => Bounds::NONE,
            Type::String { max, .. } => Bounds::NONE.behind((*max).into()),
            Type::Vector { element, max, .. } => {
                let size = self.inline(element).size.saturating_mul((*max).into());
                self.bounds_at(element, level).times(*max).behind(size)
            }
            Type::Array { element, count } => self.bounds_at(element, level).times(*count),
            Type::Handle { .. } | Type::Endpoint { .. } => Bounds { handles: 1, ..Bounds::NONE },
            Type::Box(id) => self.declared_bounds_at(*id, level).behind(self.declared(*id).size),
            Type::Declared { id, .. } => self.declared_bounds_at(*id, level),
        }
    }

    fn envelope(&self, ty: &Type, level: usize) -> Bounds {
        let size = self.inline(ty).size;
        let bounds = self.bounds_at(ty, level);
        if size <= 4 { bounds } else { bounds.behind(size) }
    }

    fn declared_bounds_at(&self, id: DeclId, level: usize) -> Bounds {
        let resource = self.program.is_resource_declaration(id);
        let unlimited = Bounds {
            out_of_line: MAX_COUNT,
            handles: if resource { MAX_COUNT } else { 0 },
            depth: MAX_COUNT,
        };
        if let Some(known) = self.bounds.borrow().get(&id) {
            // A type that is met again while its bounds are being computed is recursive.
            return known.unwrap_or(unlimited);
        }
        if level > MAX_BOUND_DEPTH {
            return unlimited;
        }
        self.bounds.borrow_mut().insert(id, None);
        let next = level + 1;
        let bounds = match &self.program.declaration(id).kind {
            DeclarationKind::Struct(s) => s
                .members
                .iter()
                .fold(Bounds::NONE, |sum, member| sum.and(self.bounds_at(&member.ty, next))),
            DeclarationKind::Union(u) => u
                .members
                .iter()
                .fold(Bounds::NONE, |most, member| most.or(self.envelope(&member.ty, next))),
            DeclarationKind::Table(t) => {
                let last = t.members.last().map_or(0, |member| member.ordinal);
                t.members
                    .iter()
                    .fold(Bounds::NONE, |sum, member| sum.and(self.envelope(&member.ty, next)))
                    .behind(last.saturating_mul(8))
            }
            _ => Bounds::NONE,
        };
        self.bounds.borrow_mut().insert(id, Some(bounds));
        bounds
    }
}
