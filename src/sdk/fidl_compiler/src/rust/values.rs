//! Constants, enums and bits.

use super::Generator;
use super::names::{constant_name, type_name};
use super::template::doc_comment;
use super::types::primitive;
use crate::ir::{Bits, Const, Declaration, DeclarationKind, Enum, Primitive, Type, Value};

fn integer(value: i128, ty: Primitive) -> String {
    // Without underscores `clippy` asks for separators, with the type's name it does not.
    if ty.is_unsigned() && value > 9999 { format!("{value:#x}") } else { value.to_string() }
}

impl Generator<'_> {
    pub(super) fn constant(&mut self, declaration: &Declaration, constant: &Const) {
        let name = constant_name(&declaration.name);
        let (ty, value) = match (&constant.ty, &constant.value) {
            (Type::String { .. }, Value::String(text)) => ("&str".to_owned(), format!("{text:?}")),
            (Type::Declared { id, .. }, Value::Int(value)) => {
                let path = self.path(*id, "");
                let value = match &self.program.declaration(*id).kind {
                    DeclarationKind::Enum(e) => {
                        let member = e.members.iter().find(|m| m.value == *value);
                        member.map_or_else(
                            || format!("{path}::__SourceBreaking {{ unknown_ordinal: {value} }}"),
                            |m| format!("{path}::{}", type_name(&m.name)),
                        )
                    }
                    _ => format!("{path}::from_bits_retain({value:#x})"),
                };
                (path, value)
            }
            (Type::Primitive(p), Value::Int(value)) => {
                (primitive(*p).to_owned(), integer(*value, *p))
            }
            (Type::Primitive(p), Value::Float(value)) => {
                (primitive(*p).to_owned(), format!("{value:?}"))
            }
            (ty, Value::Bool(value)) => (self.owned(ty), value.to_string()),
            // The resolver makes no other pairs.
            _ => return,
        };
        self.out.doc("", &declaration.doc, &format!("The constant `{}`.", declaration.name));
        self.out.emit(
            "pub const $name: $ty = $value;\n\n",
            &[("name", &name), ("ty", &ty), ("value", &value)],
        );
    }

    pub(super) fn enumeration(&mut self, declaration: &Declaration, e: &Enum) {
        let name = type_name(&declaration.name);
        let prim = primitive(e.underlying);
        let mut variants = String::new();
        let mut from = String::new();
        let mut into = String::new();
        for member in &e.members {
            let variant = type_name(&member.name);
            let value = integer(member.value, e.underlying);
            variants += &doc_comment("    ", &member.doc, &format!("`{}`.", member.name));
            if e.strict {
                variants += &format!("    {variant} = {value},\n");
            } else {
                variants += &format!("    {variant},\n");
                into += &format!("            Self::{variant} => {value},\n");
            }
            from +=
                &format!("            {value} => ::std::option::Option::Some(Self::{variant}),\n");
        }
        self.out.doc("", &declaration.doc, &format!("The enum `{}`.", declaration.name));
        let template = if e.strict { STRICT_ENUM } else { FLEXIBLE_ENUM };
        let unknown = e
            .members
            .iter()
            .find(|member| member.unknown)
            .map_or_else(|| integer(0, e.underlying), |m| integer(m.value, e.underlying));
        let decode = if e.strict {
            "Self::from_primitive(prim).ok_or(fidl::Error::InvalidEnumValue)"
        } else {
            "::std::result::Result::Ok(Self::from_primitive_allow_unknown(prim))"
        };
        let values = [
            ("name", name.as_str()),
            ("prim", prim),
            ("variants", &variants),
            ("from", &from),
            ("into", &into),
            ("unknown", &unknown),
            ("decode", decode),
            ("raw", "into_primitive"),
            ("check", ""),
        ];
        self.out.emit(template, &values);
        self.out.emit(SCALAR_CODEC, &values);
    }

    pub(super) fn bits(&mut self, declaration: &Declaration, b: &Bits) {
        let name = type_name(&declaration.name);
        let mut members = String::new();
        for member in &b.members {
            members += &doc_comment("        ", &member.doc, &format!("`{}`.", member.name));
            members +=
                &format!("        const {} = {:#x};\n", constant_name(&member.name), member.value);
        }
        let doc =
            doc_comment("    ", &declaration.doc, &format!("The bits `{}`.", declaration.name));
        let decode = if b.strict {
            "Self::from_bits(prim).ok_or(fidl::Error::InvalidBitsValue)"
        } else {
            "::std::result::Result::Ok(Self::from_bits_retain(prim))"
        };
        let check = if b.strict {
            "        if value.has_unknown_bits() {\n            return ::std::result::Result::Err(fidl::Error::InvalidBitsValue);\n        }\n"
        } else {
            ""
        };
        let values = [
            ("name", name.as_str()),
            ("prim", primitive(b.underlying)),
            ("doc", &doc),
            ("members", &members),
            ("decode", decode),
            ("raw", "bits"),
            ("check", check),
        ];
        self.out.emit(BITS, &values);
        self.out.emit(SCALAR_CODEC, &values);
    }
}

const STRICT_ENUM: &str = "#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
#[repr($prim)]
pub enum $name {
$variants}

impl $name {
    /// The variant of a value on the wire, if there is one.
    #[inline]
    pub fn from_primitive(prim: $prim) -> ::std::option::Option<Self> {
        match prim {
$from            _ => ::std::option::Option::None,
        }
    }

    /// The value on the wire.
    #[inline]
    pub const fn into_primitive(self) -> $prim {
        self as $prim
    }

    /// Whether this is a value without a variant: never, as the enum is strict.
    #[inline]
    pub const fn is_unknown(&self) -> bool {
        false
    }
}

";

const FLEXIBLE_ENUM: &str = "#[derive(Copy, Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub enum $name {
$variants    /// A value that this library does not know. Match it with `_`.
    #[doc(hidden)]
    __SourceBreaking {
        /// The value on the wire.
        unknown_ordinal: $prim,
    },
}

/// Matches a value of the enum that this library does not know.
#[macro_export]
macro_rules! ${name}Unknown {
    () => {
        _
    };
}

impl $name {
    /// The variant of a value on the wire, if there is one.
    #[inline]
    pub fn from_primitive(prim: $prim) -> ::std::option::Option<Self> {
        match prim {
$from            _ => ::std::option::Option::None,
        }
    }

    /// The variant of a value on the wire, or the one for unknown values.
    #[inline]
    pub fn from_primitive_allow_unknown(prim: $prim) -> Self {
        Self::from_primitive(prim).unwrap_or(Self::__SourceBreaking { unknown_ordinal: prim })
    }

    /// A value that stands for one that this library does not know.
    #[inline]
    pub fn unknown() -> Self {
        Self::from_primitive_allow_unknown($unknown)
    }

    /// The value on the wire.
    #[inline]
    pub const fn into_primitive(self) -> $prim {
        match self {
$into            Self::__SourceBreaking { unknown_ordinal } => unknown_ordinal,
        }
    }

    /// Whether this is a value that this library does not know.
    #[inline]
    pub const fn is_unknown(&self) -> bool {
        matches!(self, Self::__SourceBreaking { .. })
    }
}

";

const BITS: &str = "bitflags::bitflags! {
$doc    #[derive(Copy, Clone, Debug, Default, Eq, PartialEq, Ord, PartialOrd, Hash)]
    pub struct $name: $prim {
$members    }
}

impl $name {
    /// The bits that are no member's.
    #[inline]
    pub const fn get_unknown_bits(&self) -> $prim {
        self.bits() & !Self::all().bits()
    }

    /// Whether there are bits that are no member's.
    #[inline]
    pub const fn has_unknown_bits(&self) -> bool {
        self.get_unknown_bits() != 0
    }

    /// The bits of a value on the wire, those included that are no member's.
    #[inline]
    pub const fn from_bits_allow_unknown(bits: $prim) -> Self {
        Self::from_bits_retain(bits)
    }
}

";

/// How an enum or bits goes over the wire: as its number.
const SCALAR_CODEC: &str = "impl fidl::encoding::WireType for $name {
    type Owned = Self;
    const SIZE: usize = ::std::mem::size_of::<$prim>();
    const ALIGN: usize = Self::SIZE;

    #[inline]
    fn encode_owned(
        value: Self,
        encoder: &mut fidl::encoding::Encoder<'_>,
        offset: usize,
        depth: fidl::encoding::Depth,
    ) -> ::std::result::Result<(), fidl::Error> {
$check        <$prim as fidl::encoding::WireType>::encode_owned(value.$raw(), encoder, offset, depth)
    }

    #[inline]
    fn decode(
        decoder: &mut fidl::encoding::Decoder<'_>,
        offset: usize,
        depth: fidl::encoding::Depth,
    ) -> ::std::result::Result<Self, fidl::Error> {
        let prim = <$prim as fidl::encoding::WireType>::decode(decoder, offset, depth)?;
        $decode
    }
}

impl fidl::encoding::ValueType for $name {
    type Borrowed<'a> = Self;

    #[inline]
    fn borrow(value: &Self) -> Self {
        *value
    }

    #[inline]
    fn encode(
        value: Self,
        encoder: &mut fidl::encoding::Encoder<'_>,
        offset: usize,
        depth: fidl::encoding::Depth,
    ) -> ::std::result::Result<(), fidl::Error> {
        <Self as fidl::encoding::WireType>::encode_owned(value, encoder, offset, depth)
    }
}

";
