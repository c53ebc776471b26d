//! The resolved program: every name looked up, every constant evaluated, every type known.

use crate::source::Span;

/// A declaration of a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeclId {
    /// Index in [`Program::libraries`].
    pub library: usize,
    /// Index in [`Library::declarations`].
    pub index: usize,
}

/// Libraries, each after those it uses.
#[derive(Debug, Default)]
pub struct Program {
    /// The libraries.
    pub libraries: Vec<Library>,
}

impl Program {
    /// The library of this name.
    pub fn library(&self, name: &str) -> Option<&Library> {
        self.libraries.iter().find(|library| library.name == name)
    }

    /// The declaration of an id of this program.
    pub fn declaration(&self, id: DeclId) -> &Declaration {
        &self.libraries[id.library].declarations[id.index]
    }

    /// `library/Name`, as FIDL writes names with their library.
    pub fn qualified_name(&self, id: DeclId) -> String {
        format!("{}/{}", self.libraries[id.library].name, self.declaration(id).name)
    }

    /// Whether a value of this type may hold handles.
    pub fn is_resource(&self, ty: &Type) -> bool {
        match ty {
            Type::Primitive(_) | Type::String { .. } => false,
            Type::Vector { element, .. } | Type::Array { element, .. } => self.is_resource(element),
            Type::Handle { .. } | Type::Endpoint { .. } => true,
            Type::Box(id) | Type::Declared { id, .. } => self.is_resource_declaration(*id),
        }
    }

    /// Whether a declared type is a `resource` type.
    pub fn is_resource_declaration(&self, id: DeclId) -> bool {
        match &self.declaration(id).kind {
            DeclarationKind::Struct(s) => s.resource,
            DeclarationKind::Table(t) => t.resource,
            DeclarationKind::Union(u) => u.resource,
            _ => false,
        }
    }
}

/// A library.
#[derive(Debug)]
pub struct Library {
    /// The name with dots.
    pub name: String,
    /// Documentation lines.
    pub doc: Vec<String>,
    /// Indices of the libraries its declarations mention, ascending.
    pub dependencies: Vec<usize>,
    /// The declarations in source order, those of inline layouts after the one they are in.
    pub declarations: Vec<Declaration>,
}

/// A declaration.
#[derive(Debug)]
pub struct Declaration {
    /// The name without its library.
    pub name: String,
    /// Where the name is.
    pub span: Span,
    /// Documentation lines.
    pub doc: Vec<String>,
    /// Whether the layout was written where it is used, so that its name is generated.
    pub anonymous: bool,
    /// What is declared.
    pub kind: DeclarationKind,
}

/// The kinds of declarations.
#[derive(Debug)]
pub enum DeclarationKind {
    /// A constant.
    Const(Const),
    /// Another name of a type.
    Alias(Type),
    /// An enum.
    Enum(Enum),
    /// Bits.
    Bits(Bits),
    /// A struct.
    Struct(Struct),
    /// A table.
    Table(Table),
    /// A union.
    Union(Union),
    /// A protocol.
    Protocol(Protocol),
    /// A service.
    Service(Service),
    /// A resource definition, i.e. what `zx.Handle` is.
    Resource(Resource),
}

/// A primitive type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names of the variants are those of FIDL")]
pub enum Primitive {
    Bool,
    Int8,
    Int16,
    Int32,
    Int64,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Float32,
    Float64,
}

impl Primitive {
    /// The primitive of this FIDL name.
    pub fn from_name(name: &str) -> Option<Primitive> {
        Some(match name {
            "bool" => Primitive::Bool,
            "int8" => Primitive::Int8,
            "int16" => Primitive::Int16,
            "int32" => Primitive::Int32,
            "int64" => Primitive::Int64,
            "uint8" | "byte" => Primitive::Uint8,
            "uint16" => Primitive::Uint16,
            "uint32" => Primitive::Uint32,
            "uint64" => Primitive::Uint64,
            "float32" => Primitive::Float32,
            "float64" => Primitive::Float64,
            _ => return None,
        })
    }

    /// The FIDL name.
    pub fn name(self) -> &'static str {
        match self {
            Primitive::Bool => "bool",
            Primitive::Int8 => "int8",
            Primitive::Int16 => "int16",
            Primitive::Int32 => "int32",
            Primitive::Int64 => "int64",
            Primitive::Uint8 => "uint8",
            Primitive::Uint16 => "uint16",
            Primitive::Uint32 => "uint32",
            Primitive::Uint64 => "uint64",
            Primitive::Float32 => "float32",
            Primitive::Float64 => "float64",
        }
    }

    /// Size and alignment on the wire in bytes.
    pub fn size(self) -> u32 {
        match self {
            Primitive::Bool | Primitive::Int8 | Primitive::Uint8 => 1,
            Primitive::Int16 | Primitive::Uint16 => 2,
            Primitive::Int32 | Primitive::Uint32 | Primitive::Float32 => 4,
            Primitive::Int64 | Primitive::Uint64 | Primitive::Float64 => 8,
        }
    }

    /// The smallest and the largest value of an integer type.
    pub fn integer_range(self) -> Option<(i128, i128)> {
        Some(match self {
            Primitive::Int8 => (i8::MIN.into(), i8::MAX.into()),
            Primitive::Int16 => (i16::MIN.into(), i16::MAX.into()),
            Primitive::Int32 => (i32::MIN.into(), i32::MAX.into()),
            Primitive::Int64 => (i64::MIN.into(), i64::MAX.into()),
            Primitive::Uint8 => (0, u8::MAX.into()),
            Primitive::Uint16 => (0, u16::MAX.into()),
            Primitive::Uint32 => (0, u32::MAX.into()),
            Primitive::Uint64 => (0, u64::MAX.into()),
            Primitive::Bool | Primitive::Float32 | Primitive::Float64 => return None,
        })
    }

    /// Whether it is an unsigned integer.
    pub fn is_unsigned(self) -> bool {
        self.integer_range().is_some_and(|(least, _)| least == 0)
    }
}

/// The bound of a string or vector without one: `MAX`.
pub const MAX_COUNT: u32 = u32::MAX;

/// Which end of a channel an endpoint type is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// `client_end`
    Client,
    /// `server_end`
    Server,
}

/// A type.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Type {
    /// A primitive.
    Primitive(Primitive),
    /// A UTF-8 string of at most `max` bytes.
    String {
        /// The bound in bytes.
        max: u32,
        /// Whether it may be absent.
        optional: bool,
    },
    /// A vector of at most `max` elements.
    Vector {
        /// The elements' type.
        element: Box<Type>,
        /// The bound in elements.
        max: u32,
        /// Whether it may be absent.
        optional: bool,
    },
    /// An array.
    Array {
        /// The elements' type.
        element: Box<Type>,
        /// How many elements.
        count: u32,
    },
    /// A handle.
    Handle {
        /// The resource definition.
        resource: DeclId,
        /// `zx_obj_type_t`; 0 is any.
        subtype: u32,
        /// `zx_rights_t`; [`SAME_RIGHTS`] is any.
        rights: u32,
        /// Whether it may be absent.
        optional: bool,
    },
    /// An end of a channel that speaks a protocol.
    Endpoint {
        /// Which end.
        end: End,
        /// The protocol.
        protocol: DeclId,
        /// Whether it may be absent.
        optional: bool,
    },
    /// `box<S>`: a struct out of line, which may be absent.
    Box(DeclId),
    /// A declared bits, enum, struct, table or union.
    Declared {
        /// The declaration.
        id: DeclId,
        /// Whether it may be absent: unions only.
        optional: bool,
    },
}

/// `ZX_RIGHT_SAME_RIGHTS`, the rights of a handle type that names none.
pub const SAME_RIGHTS: u32 = 0x8000_0000;

/// The value of a constant.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Of `bool`.
    Bool(bool),
    /// Of an integer, an enum or bits.
    Int(i128),
    /// Of a floating point type.
    Float(f64),
    /// Of `string`.
    String(String),
}

/// A constant.
#[derive(Debug)]
pub struct Const {
    /// Its type: a primitive, string, enum or bits.
    pub ty: Type,
    /// Its value.
    pub value: Value,
}

/// A member of an enum or bits.
#[derive(Debug)]
pub struct ValueMember {
    /// The name.
    pub name: String,
    /// Where the name is.
    pub span: Span,
    /// Documentation lines.
    pub doc: Vec<String>,
    /// The value.
    pub value: i128,
    /// Whether it is `@unknown`: the value a flexible enum gives for "I do not know".
    pub unknown: bool,
}

/// An enum.
#[derive(Debug)]
pub struct Enum {
    /// The type on the wire.
    pub underlying: Primitive,
    /// Whether other values than the members' are an error.
    pub strict: bool,
    /// The members.
    pub members: Vec<ValueMember>,
}

/// Bits.
#[derive(Debug)]
pub struct Bits {
    /// The type on the wire.
    pub underlying: Primitive,
    /// Whether other bits than the members' are an error.
    pub strict: bool,
    /// The members, each one bit.
    pub members: Vec<ValueMember>,
}

impl Bits {
    /// All members' bits.
    pub fn mask(&self) -> u64 {
        self.members.iter().fold(0, |mask, member| mask | member.value as u64)
    }
}

/// A member of a struct.
#[derive(Debug)]
pub struct Field {
    /// The name.
    pub name: String,
    /// Where the name is.
    pub span: Span,
    /// Documentation lines.
    pub doc: Vec<String>,
    /// The type.
    pub ty: Type,
    /// The default in the source. Rust bindings do not use it.
    pub default: Option<Value>,
}

/// A struct.
#[derive(Debug)]
pub struct Struct {
    /// The members in order.
    pub members: Vec<Field>,
    /// Whether it may hold handles.
    pub resource: bool,
}

/// A member of a table or union.
#[derive(Debug)]
pub struct OrdinaledMember {
    /// The ordinal, from 1.
    pub ordinal: u64,
    /// The name.
    pub name: String,
    /// Where the name is.
    pub span: Span,
    /// Documentation lines.
    pub doc: Vec<String>,
    /// The type.
    pub ty: Type,
}

/// A table.
#[derive(Debug)]
pub struct Table {
    /// The members by ascending ordinal.
    pub members: Vec<OrdinaledMember>,
    /// Whether it may hold handles.
    pub resource: bool,
}

/// A union.
#[derive(Debug)]
pub struct Union {
    /// The members by ascending ordinal.
    pub members: Vec<OrdinaledMember>,
    /// Whether other ordinals are an error.
    pub strict: bool,
    /// Whether it may hold handles.
    pub resource: bool,
}

/// Which unknown messages a protocol's two sides tolerate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Openness {
    /// None.
    Closed,
    /// One-way methods and events.
    Ajar,
    /// All.
    Open,
}

impl Openness {
    /// The word in the source.
    pub fn word(self) -> &'static str {
        match self {
            Openness::Closed => "closed",
            Openness::Ajar => "ajar",
            Openness::Open => "open",
        }
    }
}

/// A protocol.
#[derive(Debug)]
pub struct Protocol {
    /// The tolerance of unknown messages.
    pub openness: Openness,
    /// The name under which components find it, if they do.
    pub discoverable: Option<String>,
    /// The protocols it composes.
    pub composed: Vec<DeclId>,
    /// Its methods, its own first, then those of each composed protocol.
    pub methods: Vec<Method>,
}

/// Which way a method's messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MethodKind {
    /// A request without a response.
    OneWay,
    /// A request and its response.
    TwoWay,
    /// A message from the server.
    Event,
}

/// A method or event.
#[derive(Debug, Clone)]
pub struct Method {
    /// The name.
    pub name: String,
    /// Where the name is.
    pub span: Span,
    /// Documentation lines.
    pub doc: Vec<String>,
    /// What the ordinal is the hash of: `library/Protocol.Method`.
    pub selector: String,
    /// The ordinal in the transaction header.
    pub ordinal: u64,
    /// Whether a receiver that does not know it treats it as an error.
    pub strict: bool,
    /// Which way it goes.
    pub kind: MethodKind,
    /// What goes to the server: a struct, table or union, `None` if nothing.
    pub request: Option<DeclId>,
    /// What comes from the server on success, `None` if nothing.
    pub response: Option<DeclId>,
    /// The type of the error, of methods with the `error` syntax.
    pub error: Option<Type>,
    /// The protocol that declares it, if it is composed into this one.
    pub composed_from: Option<DeclId>,
}

impl Method {
    /// Whether the response on the wire is a union of success, error and "unknown method".
    pub fn has_result_union(&self) -> bool {
        self.kind == MethodKind::TwoWay && (self.error.is_some() || !self.strict)
    }
}

/// A member of a service.
#[derive(Debug)]
pub struct ServiceMember {
    /// The name.
    pub name: String,
    /// Where the name is.
    pub span: Span,
    /// Documentation lines.
    pub doc: Vec<String>,
    /// The protocol it speaks.
    pub protocol: DeclId,
}

/// A service.
#[derive(Debug)]
pub struct Service {
    /// The members.
    pub members: Vec<ServiceMember>,
}

/// A resource definition.
#[derive(Debug)]
pub struct Resource {
    /// The enum of its subtypes.
    pub subtype: Option<DeclId>,
    /// The type of its rights.
    pub rights: Option<Type>,
}
