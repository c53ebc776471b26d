//! Structs, tables and unions.

use super::Generator;
use super::names::{type_name, value_name};
use super::template::{doc_comment, fill};
use crate::ir::{DeclId, Declaration, DeclarationKind, Primitive, Struct, Table, Type, Union};
use crate::layout::Fields;

impl Generator<'_> {
    pub(super) fn structure(&mut self, id: DeclId, declaration: &Declaration, s: &Struct) {
        let name = type_name(&declaration.name);
        let layout = self.layouts.fields(s);
        let mut fields = String::new();
        let mut parameters = String::new();
        let mut encodes = String::new();
        let mut paddings = String::new();
        let mut decodes = String::new();
        let mut lent = String::new();
        for (member, (offset, padding)) in s.members.iter().zip(&layout.members) {
            let field = value_name(&member.name);
            fields += &doc_comment("    ", &member.doc, &format!("The member `{}`.", member.name));
            fields += &format!("    pub {field}: {},\n", self.owned(&member.ty));
            parameters += &format!("        {field}: {},\n", self.parameter(&member.ty));
            encodes += &format!(
                "        {}({field}, __encoder, __offset + {offset}, __depth)?;\n",
                self.encode_path(&member.ty)
            );
            lent += &format!("            {},\n", self.lend(&member.ty, &format!("value.{field}")));
            if *padding > 0 {
                let marker = self.marker(&member.ty);
                paddings += &format!(
                    "        decoder.check_padding(offset + {offset} + <{marker} as fidl::encoding::WireType>::SIZE, {padding})?;\n"
                );
            }
            decodes += &format!(
                "            {field}: <{} as fidl::encoding::WireType>::decode(decoder, offset + {offset}, depth)?,\n",
                self.marker(&member.ty)
            );
        }
        if s.members.is_empty() {
            paddings += "        decoder.check_padding(offset, 1)?;\n";
        }
        let derives = self.derives(id);
        let (size, align) = (layout.size.to_string(), layout.align.to_string());
        let values = [
            ("name", name.as_str()),
            ("derives", &derives),
            ("fields", &fields),
            ("parameters", &parameters),
            ("encodes", &encodes),
            ("paddings", &paddings),
            ("decodes", &decodes),
            ("lent", &lent),
            ("size", &size),
            ("align", &align),
        ];
        let encode_value = fill(ENCODE_STRUCT, &values);
        let plain = self.plain_size(&Type::Declared { id, optional: false }).is_some();
        let mut conversions = String::new();
        let (elements, value_elements) = if plain {
            let (derives, append, read) = self.copies(s);
            conversions = derives;
            let values = [&values[..], &[("append", append), ("read", &read)]].concat();
            (fill(PLAIN_ELEMENTS, &values), fill(PLAIN_VALUE_ELEMENTS, &values))
        } else {
            Default::default()
        };
        let values = [
            &values[..],
            &[
                ("conversions", conversions.as_str()),
                ("encode_value", encode_value.as_str()),
                ("elements", &elements),
                ("value_elements", &value_elements),
                // As on the wire, so that copies of vectors are copies of memory.
                ("repr", if plain { "#[repr(C)]\n" } else { "" }),
            ],
        ]
        .concat();
        self.out.doc("", &declaration.doc, &format!("The struct `{}`.", declaration.name));
        self.out.emit(STRUCT, &values);
        if !s.resource {
            self.out.emit(VALUE, &values);
        }
        if plain {
            self.plain(&name, s, &layout);
        }
    }

    /// The bytes of a type that is nothing but numbers, booleans and bytes, where there are few enough to be held apart.
    fn plain_size(&self, ty: &Type) -> Option<usize> {
        const MAX: usize = 128;
        let plain = match ty {
            Type::Primitive(_) => true,
            Type::Array { element, .. } => **element == Type::Primitive(Primitive::Uint8),
            Type::Declared { id, optional: false } => match &self.program.declaration(*id).kind {
                DeclarationKind::Struct(s) => {
                    !s.members.is_empty()
                        && s.members.iter().all(|member| self.plain_size(&member.ty).is_some())
                }
                _ => false,
            },
            _ => false,
        };
        let size = usize::try_from(self.layouts.inline(ty).size).ok()?;
        (plain && size <= MAX).then_some(size)
    }

    /// For a plain struct: what it derives so that vectors of it are copied as far as they can be, and how they are written and read.
    fn copies(&self, s: &Struct) -> (String, &'static str, String) {
        let mut padding = Vec::new();
        let any_bytes = self.plain_padding(s, &mut padding);
        let no_padding = padding.iter().all(|byte| *byte == 0);
        let mut traits = vec!["Immutable"];
        let (mut append, mut read) = ("append_plain", "plain_elements(count, offset)".to_owned());
        if no_padding {
            traits.push("IntoBytes");
            append = "append_bytes_of";
        }
        if any_bytes {
            traits.push("FromBytes");
            read = format!("copied_elements(count, offset, &{padding:?})");
        }
        let paths: Vec<String> =
            traits.iter().map(|name| format!("fidl::encoding::zerocopy::{name}")).collect();
        let derive = format!(
            "#[derive({})]\n#[zerocopy(crate = \"fidl::encoding::zerocopy\")]\n",
            paths.join(", ")
        );
        (derive, append, read)
    }

    /// Appends a byte for each byte of a plain struct, which is not zero for padding. Whether every other byte may have any value.
    fn plain_padding(&self, s: &Struct, padding: &mut Vec<u8>) -> bool {
        let layout = self.layouts.fields(s);
        let mut any = true;
        for (member, (_, after)) in s.members.iter().zip(&layout.members) {
            match &member.ty {
                Type::Declared { id, .. } => {
                    if let DeclarationKind::Struct(s) = &self.program.declaration(*id).kind {
                        any &= self.plain_padding(s, padding);
                    }
                }
                ty => {
                    any &= *ty != Type::Primitive(Primitive::Bool);
                    let size = self.plain_size(ty).unwrap_or(0);
                    padding.resize(padding.len() + size, 0);
                }
            }
            padding.resize(padding.len() + *after as usize, u8::MAX);
        }
        any
    }

    /// How a plain struct becomes its bytes, whole.
    fn plain(&mut self, name: &str, s: &Struct, layout: &Fields) {
        let (mut stores, mut loads, mut names) = (String::new(), String::new(), Vec::new());
        for (member, (offset, padding)) in s.members.iter().zip(&layout.members) {
            let Some(size) = self.plain_size(&member.ty) else { return };
            let (field, ty) = (value_name(&member.name), self.owned(&member.ty));
            let end = *offset as usize + size;
            stores += &format!(
                "        __bytes[{offset}..{end}].copy_from_slice(&<{ty} as fidl::encoding::Plain<{size}>>::to_wire(&self.{field}));\n"
            );
            loads += &format!(
                "        let ({field}, __right) = <{ty} as fidl::encoding::Plain<{size}>>::from_wire(::std::array::from_fn(|i| __bytes[{offset} + i]));\n        __valid &= __right;\n"
            );
            for byte in end..end + *padding as usize {
                loads += &format!("        __valid &= __bytes[{byte}] == 0;\n");
            }
            names.push(field);
        }
        let (size, names) = (layout.size.to_string(), names.join(", "));
        let values = [
            ("name", name),
            ("size", &size),
            ("plain_stores", &stores),
            ("plain_loads", &loads),
            ("plain_names", &names),
        ];
        self.out.emit(PLAIN, &values);
    }

    pub(super) fn table(&mut self, declaration: &Declaration, t: &Table) {
        let name = type_name(&declaration.name);
        let mut fields = String::new();
        let mut count = String::from("0");
        let mut encodes = String::new();
        let mut decodes = String::new();
        for member in &t.members {
            let field = value_name(&member.name);
            let (marker, ordinal) = (self.marker(&member.ty), member.ordinal);
            fields += &doc_comment("    ", &member.doc, &format!("The member `{}`.", member.name));
            fields +=
                &format!("    pub {field}: ::std::option::Option<{}>,\n", self.owned(&member.ty));
            count = format!("if value.{field}.is_some() {{ {ordinal} }} else {{ {count} }}");
            let lent = self.lend_reference(&member.ty, "member");
            let (binding, function) = if self.program.is_resource(&member.ty) {
                (format!("value.{field}"), "envelope_owned")
            } else {
                (format!("&value.{field}"), "envelope")
            };
            encodes += &format!(
                "        if let ::std::option::Option::Some(member) = {binding} {{\n            encoder.{function}::<{marker}>({lent}, envelopes + {}, depth)?;\n        }}\n",
                (ordinal - 1) * 8
            );
            decodes +=
                &format!("            {field}: table.member::<{marker}>(decoder, {ordinal})?,\n");
        }
        let clone = if t.resource { "" } else { ", Clone" };
        let encode_depth = if t.members.is_empty() { "_" } else { "depth" };
        let encode_envelopes = if t.members.is_empty() { "_" } else { "envelopes" };
        let values = [
            ("name", name.as_str()),
            ("clone", clone),
            ("fields", &fields),
            ("count", &count),
            ("encodes", &encodes),
            ("decodes", &decodes),
            ("encode_depth", encode_depth),
            ("encode_envelopes", encode_envelopes),
        ];
        let encode_value = fill(ENCODE_TABLE, &values);
        let values =
            [&values[..], &[("encode_value", &encode_value), ("value_elements", "")]].concat();
        self.out.doc("", &declaration.doc, &format!("The table `{}`.", declaration.name));
        self.out.emit(TABLE, &values);
        if !t.resource {
            self.out.emit(VALUE, &values);
        }
    }

    /// [`Self::lend`] for a name that is bound to a reference, or to the value of a resource type.
    fn lend_reference(&self, ty: &Type, name: &str) -> String {
        if self.program.is_resource(ty) {
            name.to_owned()
        } else {
            format!("<{} as fidl::encoding::ValueType>::borrow({name})", self.marker(ty))
        }
    }

    pub(super) fn union(&mut self, id: DeclId, declaration: &Declaration, u: &Union) {
        let name = type_name(&declaration.name);
        let mut variants = String::new();
        let mut ordinals = String::new();
        let mut encodes = String::new();
        let mut decodes = String::new();
        let function = if u.resource { "envelope_owned" } else { "envelope" };
        for member in &u.members {
            let (variant, ordinal) = (type_name(&member.name), member.ordinal);
            let marker = self.marker(&member.ty);
            variants +=
                &doc_comment("    ", &member.doc, &format!("The member `{}`.", member.name));
            variants += &format!("    {variant}({}),\n", self.owned(&member.ty));
            ordinals += &format!("            Self::{variant}(_) => {ordinal},\n");
            let lent = if u.resource {
                // The whole union is owned here, so a member of a value type is, too.
                "member".to_owned()
            } else {
                self.lend_reference(&member.ty, "member")
            };
            encodes += &format!(
                "            Self::{variant}(member) => encoder.{function}::<{marker}>({lent}, offset + 8, depth),\n"
            );
            decodes += &format!(
                "            {ordinal} => ::std::result::Result::Ok(Self::{variant}(decoder.union_member::<{marker}>(offset, depth)?)),\n"
            );
        }
        if u.strict {
            decodes +=
                "            _ => ::std::result::Result::Err(fidl::Error::UnknownUnionTag),\n";
        } else {
            variants += "    /// A member that this library does not know. Match it with `_`.\n    #[doc(hidden)]\n    __SourceBreaking {\n        /// The ordinal on the wire.\n        unknown_ordinal: u64,\n    },\n";
            ordinals +=
                "            Self::__SourceBreaking { unknown_ordinal } => *unknown_ordinal,\n";
            encodes += "            Self::__SourceBreaking { .. } => ::std::result::Result::Err(fidl::Error::UnknownUnionTag),\n";
            decodes += "            unknown_ordinal => {\n                decoder.skip_union_member(offset, depth)?;\n                ::std::result::Result::Ok(Self::__SourceBreaking { unknown_ordinal })\n            }\n";
        }
        let derives = self.derives(id);
        let values = [
            ("name", name.as_str()),
            ("derives", &derives),
            ("variants", &variants),
            ("ordinals", &ordinals),
            ("encodes", &encodes),
            ("decodes", &decodes),
        ];
        let encode_value = fill(ENCODE_UNION, &values);
        let values =
            [&values[..], &[("encode_value", &encode_value), ("value_elements", "")]].concat();
        self.out.doc("", &declaration.doc, &format!("The union `{}`.", declaration.name));
        self.out.emit(UNION, &values);
        if !u.strict {
            self.out.emit(UNION_FLEXIBLE, &values);
        }
        if u.resource {
            self.out.emit(UNION_RESOURCE, &values);
        } else {
            self.out.emit(UNION_VALUE, &values);
            self.out.emit(VALUE, &values);
        }
    }
}

const STRUCT: &str = "$derives
$conversions${repr}pub struct $name {
$fields}

impl $name {
    #[doc(hidden)]
    #[inline]
    pub fn __encode_members(
        __encoder: &mut fidl::encoding::Encoder<'_>,
        __offset: usize,
        __depth: fidl::encoding::Depth,
$parameters    ) -> ::std::result::Result<(), fidl::Error> {
$encodes        ::std::result::Result::Ok(())
    }
}

impl fidl::encoding::WireType for $name {
    type Owned = Self;
    const SIZE: usize = $size;
    const ALIGN: usize = $align;

    #[inline]
    fn encode_owned(
        value: Self,
        encoder: &mut fidl::encoding::Encoder<'_>,
        offset: usize,
        depth: fidl::encoding::Depth,
    ) -> ::std::result::Result<(), fidl::Error> {
$encode_value    }

    #[inline]
    fn decode(
        decoder: &mut fidl::encoding::Decoder<'_>,
        offset: usize,
        depth: fidl::encoding::Depth,
    ) -> ::std::result::Result<Self, fidl::Error> {
$paddings        ::std::result::Result::Ok(Self {
$decodes        })
    }
$elements}

";

const TABLE: &str = "#[derive(Debug, Default, PartialEq$clone)]
pub struct $name {
$fields    /// Makes `..Default::default()` necessary, so that later members break nobody.
    #[doc(hidden)]
    pub __source_breaking: fidl::marker::SourceBreaking,
}

impl fidl::encoding::WireType for $name {
    type Owned = Self;
    const SIZE: usize = 16;
    const ALIGN: usize = 8;

    fn encode_owned(
        value: Self,
        encoder: &mut fidl::encoding::Encoder<'_>,
        offset: usize,
        depth: fidl::encoding::Depth,
    ) -> ::std::result::Result<(), fidl::Error> {
$encode_value    }

    fn decode(
        decoder: &mut fidl::encoding::Decoder<'_>,
        offset: usize,
        depth: fidl::encoding::Depth,
    ) -> ::std::result::Result<Self, fidl::Error> {
        let mut table = decoder.begin_table(offset, depth)?;
        let value = Self {
$decodes            __source_breaking: fidl::marker::SourceBreaking,
        };
        table.finish(decoder)?;
        ::std::result::Result::Ok(value)
    }
}

";

const UNION: &str = "$derives
pub enum $name {
$variants}

impl $name {
    /// The ordinal of the member that is set.
    #[inline]
    pub fn ordinal(&self) -> u64 {
        match self {
$ordinals        }
    }
}

impl fidl::encoding::Nullable for $name {
    type Held = ::std::boxed::Box<Self>;

    #[inline]
    fn is_absent(
        decoder: &fidl::encoding::Decoder<'_>,
        offset: usize,
    ) -> ::std::result::Result<bool, fidl::Error> {
        decoder.union_is_absent(offset)
    }

    #[inline]
    fn hold(value: Self) -> ::std::boxed::Box<Self> {
        ::std::boxed::Box::new(value)
    }

    #[inline]
    fn release(held: ::std::boxed::Box<Self>) -> Self {
        *held
    }
}

";

const UNION_FLEXIBLE: &str = "/// Matches a member of the union that this library does not know.
#[macro_export]
macro_rules! ${name}Unknown {
    () => {
        _
    };
}

impl $name {
    /// Whether the member that is set is one that this library does not know.
    #[inline]
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::__SourceBreaking { .. })
    }

    /// An unknown member, as a test needs it to see how code takes one.
    #[inline]
    pub fn unknown_variant_for_testing() -> Self {
        Self::__SourceBreaking { unknown_ordinal: 0 }
    }
}

";

const UNION_RESOURCE: &str = "impl fidl::encoding::WireType for $name {
    type Owned = Self;
    const SIZE: usize = 16;
    const ALIGN: usize = 8;

    fn encode_owned(
        value: Self,
        encoder: &mut fidl::encoding::Encoder<'_>,
        offset: usize,
        depth: fidl::encoding::Depth,
    ) -> ::std::result::Result<(), fidl::Error> {
$encode_value    }

    fn decode(
        decoder: &mut fidl::encoding::Decoder<'_>,
        offset: usize,
        depth: fidl::encoding::Depth,
    ) -> ::std::result::Result<Self, fidl::Error> {
        match decoder.union_ordinal(offset)? {
$decodes        }
    }
}

";

const UNION_VALUE: &str = "impl fidl::encoding::WireType for $name {
    type Owned = Self;
    const SIZE: usize = 16;
    const ALIGN: usize = 8;

    #[inline]
    fn encode_owned(
        value: Self,
        encoder: &mut fidl::encoding::Encoder<'_>,
        offset: usize,
        depth: fidl::encoding::Depth,
    ) -> ::std::result::Result<(), fidl::Error> {
        <Self as fidl::encoding::ValueType>::encode(&value, encoder, offset, depth)
    }

    fn decode(
        decoder: &mut fidl::encoding::Decoder<'_>,
        offset: usize,
        depth: fidl::encoding::Depth,
    ) -> ::std::result::Result<Self, fidl::Error> {
        match decoder.union_ordinal(offset)? {
$decodes        }
    }
}

impl fidl::encoding::NullableValue for $name {
    #[inline]
    fn borrow_held(held: &::std::boxed::Box<Self>) -> &Self {
        held
    }
}

";

/// What every layout without handles has: it is encoded from a borrow.
const VALUE: &str = "impl fidl::encoding::ValueType for $name {
    type Borrowed<'a> = &'a Self;

    #[inline]
    fn borrow(value: &Self) -> &Self {
        value
    }

    fn encode(
        value: &Self,
        encoder: &mut fidl::encoding::Encoder<'_>,
        offset: usize,
        depth: fidl::encoding::Depth,
    ) -> ::std::result::Result<(), fidl::Error> {
$encode_value    }
$value_elements}

impl fidl::Persistable for $name {}

";

/// [`VALUE`]'s body for a struct; also that of `encode_owned`.
const ENCODE_STRUCT: &str = "        Self::__encode_members(
            encoder,
            offset,
            depth,
$lent        )
";

/// [`VALUE`]'s body for a table; also that of `encode_owned`.
const ENCODE_TABLE: &str = "        let count = $count;
        let ($encode_envelopes, $encode_depth) = encoder.begin_table(offset, count, depth)?;
$encodes        ::std::result::Result::Ok(())
";

/// [`VALUE`]'s body for a union; also that of `encode_owned` where it has handles.
const ENCODE_UNION: &str = "        encoder.write_u64(offset, value.ordinal());
        match value {
$encodes        }
";

/// The vectors of a struct that is all numbers, both ways.
const PLAIN_ELEMENTS: &str = "
    #[inline]
    fn encode_elements_owned(
        values: ::std::vec::Vec<Self>,
        encoder: &mut fidl::encoding::Encoder<'_>,
        _depth: fidl::encoding::Depth,
    ) -> ::std::result::Result<(), fidl::Error> {
        encoder.$append(&values);
        ::std::result::Result::Ok(())
    }

    fn decode_elements(
        count: usize,
        decoder: &mut fidl::encoding::Decoder<'_>,
        offset: usize,
        depth: fidl::encoding::Depth,
    ) -> ::std::result::Result<::std::vec::Vec<Self>, fidl::Error> {
        if let ::std::option::Option::Some(values) = decoder.$read? {
            return ::std::result::Result::Ok(values);
        }
        // One of them is wrong; which and why, it says itself.
        for index in 0..count {
            <Self as fidl::encoding::WireType>::decode(decoder, offset + index * $size, depth)?;
        }
        ::std::result::Result::Err(fidl::Error::Invalid)
    }
";

const PLAIN_VALUE_ELEMENTS: &str = "
    #[inline]
    fn encode_elements(
        values: &[Self],
        encoder: &mut fidl::encoding::Encoder<'_>,
        _depth: fidl::encoding::Depth,
    ) -> ::std::result::Result<(), fidl::Error> {
        encoder.$append(values);
        ::std::result::Result::Ok(())
    }
";

const PLAIN: &str = "impl fidl::encoding::Plain<$size> for $name {
    #[inline]
    fn to_wire(&self) -> [u8; $size] {
        let mut __bytes = [0; $size];
$plain_stores        __bytes
    }

    #[inline]
    fn from_wire(__bytes: [u8; $size]) -> (Self, bool) {
        let mut __valid = true;
$plain_loads        (Self { $plain_names }, __valid)
    }
}

";
