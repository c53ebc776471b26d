//! The syntax tree: what the source says, before names are looked up.

use crate::source::{FileId, Span};

/// A name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identifier {
    /// The name's text.
    pub text: String,
    /// Where it is.
    pub span: Span,
}

/// Names joined by dots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompoundIdentifier {
    /// The parts, at least one.
    pub parts: Vec<Identifier>,
    /// The whole.
    pub span: Span,
}

impl CompoundIdentifier {
    /// The text with its dots.
    pub fn text(&self) -> String {
        self.parts.iter().map(|part| part.text.as_str()).collect::<Vec<_>>().join(".")
    }
}

/// A literal.
#[derive(Debug, Clone, PartialEq)]
pub enum Literal {
    /// A string, with escapes replaced.
    String(String),
    /// A number as it is written.
    Number(String),
    /// `true` or `false`.
    Bool(bool),
}

/// A constant expression.
#[derive(Debug, Clone, PartialEq)]
pub enum Constant {
    /// A literal.
    Literal(Literal, Span),
    /// A constant, a member of an enum or bits, or a keyword of a constraint.
    Identifier(CompoundIdentifier),
    /// `a | b | …`, at least two terms.
    Or(Vec<Constant>, Span),
}

impl Constant {
    /// Where the expression is.
    pub fn span(&self) -> Span {
        match self {
            Constant::Literal(_, span) | Constant::Or(_, span) => *span,
            Constant::Identifier(name) => name.span,
        }
    }
}

/// An argument of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub struct AttributeArgument {
    /// The name before `=`, if any.
    pub name: Option<Identifier>,
    /// The value.
    pub value: Constant,
}

/// `@name(arguments)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Attribute {
    /// The name, without `@`.
    pub name: Identifier,
    /// The arguments.
    pub arguments: Vec<AttributeArgument>,
}

/// What stands before a declaration or a member.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Attributes {
    /// The `@` attributes.
    pub list: Vec<Attribute>,
    /// The `///` lines, one string a line without the slashes.
    pub doc: Vec<String>,
}

impl Attributes {
    /// The attribute of this name.
    pub fn get(&self, name: &str) -> Option<&Attribute> {
        self.list.iter().find(|attribute| attribute.name.text == name)
    }

    /// Whether there is an attribute of this name.
    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }
}

/// A word before a declaration (`strict`, `resource`, `open`, …), with the arguments that limit it
/// to some versions.
#[derive(Debug, Clone, PartialEq)]
pub struct Modifier {
    /// The word.
    pub word: Identifier,
    /// Availability arguments, as of `@available`.
    pub arguments: Vec<AttributeArgument>,
}

/// A type where it is used: `vector<Foo>:<10, optional>`.
#[derive(Debug, Clone, PartialEq)]
pub struct TypeConstructor {
    /// What is before the parameters.
    pub layout: LayoutReference,
    /// What is between `<` and `>`.
    pub parameters: Vec<TypeParameter>,
    /// What is after `:`.
    pub constraints: Vec<Constant>,
    /// The whole.
    pub span: Span,
}

/// A parameter of a type.
#[derive(Debug, Clone, PartialEq)]
pub enum TypeParameter {
    /// A type, or a name that may turn out to be a constant.
    Type(TypeConstructor),
    /// A literal.
    Constant(Constant),
}

/// The first part of a type constructor.
#[derive(Debug, Clone, PartialEq)]
pub enum LayoutReference {
    /// A type by its name.
    Named(CompoundIdentifier),
    /// A layout written where it is used.
    Inline(Box<Layout>),
}

/// The kinds of layouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayoutKind {
    /// `struct`
    Struct,
    /// `table`
    Table,
    /// `union`
    Union,
    /// `enum`
    Enum,
    /// `bits`
    Bits,
}

/// A layout: `strict union { … }`.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// Attributes of a layout that is written where it is used.
    pub attributes: Attributes,
    /// `strict`, `flexible`, `resource`.
    pub modifiers: Vec<Modifier>,
    /// Which kind.
    pub kind: LayoutKind,
    /// The type after `:` of an enum or bits.
    pub subtype: Option<TypeConstructor>,
    /// The members.
    pub members: Vec<LayoutMember>,
    /// From the kind's word to the closing brace.
    pub span: Span,
}

/// A member of a layout.
#[derive(Debug, Clone, PartialEq)]
pub struct LayoutMember {
    /// Attributes and documentation.
    pub attributes: Attributes,
    /// The member's name; of a reserved ordinal, the word `reserved`.
    pub name: Identifier,
    /// What kind of member it is.
    pub kind: MemberKind,
}

/// The kinds of members.
#[derive(Debug, Clone, PartialEq)]
pub enum MemberKind {
    /// `name type = default;` of a struct.
    Field(TypeConstructor, Option<Constant>),
    /// `1: name type;` of a table or union.
    Ordinaled(Ordinal, TypeConstructor),
    /// `1: reserved;` of a table or union.
    Reserved(Ordinal),
    /// `NAME = value;` of an enum or bits.
    Value(Constant),
}

/// An ordinal as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ordinal {
    /// The number; 0 if it was not one.
    pub value: u64,
    /// Where it is.
    pub span: Span,
}

/// `protocol Name { … };`
#[derive(Debug, Clone, PartialEq)]
pub struct ProtocolDeclaration {
    /// `open`, `ajar`, `closed`.
    pub modifiers: Vec<Modifier>,
    /// `compose` lines.
    pub composed: Vec<Composition>,
    /// Methods and events, in order.
    pub methods: Vec<MethodDeclaration>,
}

/// `compose Name;`
#[derive(Debug, Clone, PartialEq)]
pub struct Composition {
    /// Attributes.
    pub attributes: Attributes,
    /// The composed protocol.
    pub protocol: CompoundIdentifier,
}

/// A method or an event.
#[derive(Debug, Clone, PartialEq)]
pub struct MethodDeclaration {
    /// Attributes and documentation.
    pub attributes: Attributes,
    /// `strict`, `flexible`.
    pub modifiers: Vec<Modifier>,
    /// The method's name.
    pub name: Identifier,
    /// What goes to the server; `None` for an event.
    pub request: Option<Payload>,
    /// What comes back; `None` for a one-way method.
    pub response: Option<Payload>,
    /// The type after `error`.
    pub error: Option<TypeConstructor>,
}

/// What is between the parentheses of a method.
#[derive(Debug, Clone, PartialEq)]
pub struct Payload {
    /// The type, `None` for `()`.
    pub layout: Option<TypeConstructor>,
    /// The parentheses.
    pub span: Span,
}

/// A member of a service.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceMember {
    /// Attributes and documentation.
    pub attributes: Attributes,
    /// The member's name.
    pub name: Identifier,
    /// Its type: a client end.
    pub ty: TypeConstructor,
}

/// A property of a resource definition.
#[derive(Debug, Clone, PartialEq)]
pub struct ResourceProperty {
    /// `subtype` or `rights`.
    pub name: Identifier,
    /// Its type.
    pub ty: TypeConstructor,
}

/// A declaration.
#[derive(Debug, Clone, PartialEq)]
pub struct Declaration {
    /// Attributes and documentation.
    pub attributes: Attributes,
    /// The declared name.
    pub name: Identifier,
    /// What it declares.
    pub kind: DeclarationKind,
}

/// The kinds of declarations.
#[derive(Debug, Clone, PartialEq)]
pub enum DeclarationKind {
    /// `const NAME type = value;`
    Const(TypeConstructor, Constant),
    /// `alias Name = type;`
    Alias(TypeConstructor),
    /// `type Name = layout;`
    Type(Layout),
    /// `protocol Name { … };`
    Protocol(ProtocolDeclaration),
    /// `service Name { … };`
    Service(Vec<ServiceMember>),
    /// `resource_definition Name : uint32 { properties { … }; };`
    Resource(TypeConstructor, Vec<ResourceProperty>),
}

/// `using a.b as c;`
#[derive(Debug, Clone, PartialEq)]
pub struct Using {
    /// The library's name.
    pub library: CompoundIdentifier,
    /// The name it has in this file.
    pub alias: Option<Identifier>,
}

/// A file.
#[derive(Debug, Clone, PartialEq)]
pub struct File {
    /// Which file.
    pub id: FileId,
    /// Attributes and documentation of the library.
    pub attributes: Attributes,
    /// The library's name.
    pub library: CompoundIdentifier,
    /// The libraries it uses.
    pub usings: Vec<Using>,
    /// The declarations, in order.
    pub declarations: Vec<Declaration>,
}
