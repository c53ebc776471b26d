//! Structs, tables and unions.

use super::Generator;
use super::names::{type_name, value_name};
use super::template::{doc_comment, fill};
use crate::ir::{DeclId, Declaration, Struct, Table, Type, Union};

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
        let plain = self.plain(&Type::Declared { id, optional: false });
        let encode_value =
            fill(if plain.is_some() { ENCODE_PLAIN_STRUCT } else { ENCODE_STRUCT }, &values);
        let (mut conversions, mut elements, mut value_elements) = Default::default();
        let mut decode_first = String::new();
        if let Some(plain) = &plain {
            let (derives, append, read) = plain.copies();
            conversions = derives;
            let values = [&values[..], &[("append", append), ("read", &read)]].concat();
            elements = fill(PLAIN_ELEMENTS, &values);
            value_elements = fill(PLAIN_VALUE_ELEMENTS, &values);
            decode_first = fill(DECODE_PLAIN_STRUCT, &values);
        }
        let values = [
            &values[..],
            &[
                ("conversions", conversions.as_str()),
                ("encode_value", encode_value.as_str()),
                ("decode_first", &decode_first),
                ("elements", &elements),
                ("value_elements", &value_elements),
                // As on the wire, so that copies of vectors are copies of memory.
                ("repr", if conversions.is_empty() { "" } else { "#[repr(C)]\n" }),
            ],
        ]
        .concat();
        self.out.doc("", &declaration.doc, &format!("The struct `{}`.", declaration.name));
        self.out.emit(STRUCT, &values);
        if !s.resource {
            self.out.emit(VALUE, &values);
        }
        if let Some(plain) = plain {
            let (stores, loads) = (plain.stores(), plain.loads());
            let values = [&values[..], &[("stores", &stores), ("loads", &loads)]].concat();
            self.out.emit(PLAIN, &values);
        }
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
$decode_first$paddings        ::std::result::Result::Ok(Self {
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

    #[inline]
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

/// [`ENCODE_STRUCT`] for a struct that is a few words.
const ENCODE_PLAIN_STRUCT: &str =
    "        encoder.write(offset, <Self as fidl::encoding::Plain<$size>>::to_wire(&value));
        ::std::result::Result::Ok(())
";

/// The members of such a struct are decoded one by one only to find out what is wrong with one of them.
const DECODE_PLAIN_STRUCT: &str = "        let (value, valid) = <Self as fidl::encoding::Plain<$size>>::from_wire(decoder.read(offset)?);
        if valid {
            return ::std::result::Result::Ok(value);
        }
";

const PLAIN: &str = "impl fidl::encoding::Plain<$size> for $name {
    #[inline]
    fn to_wire(&self) -> [u8; $size] {
        let value = self;
$stores    }

    #[inline]
    fn from_wire(bytes: [u8; $size]) -> (Self, bool) {
$loads    }
}

";
