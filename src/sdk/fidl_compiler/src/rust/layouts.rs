//! Structs, tables and unions.

use super::Generator;
use super::names::{type_name, value_name};
use super::template::doc_comment;
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
        self.out.doc("", &declaration.doc, &format!("The struct `{}`.", declaration.name));
        self.out.emit(STRUCT, &values);
        if !s.resource {
            self.out.emit(STRUCT_VALUE, &values);
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
        self.out.doc("", &declaration.doc, &format!("The table `{}`.", declaration.name));
        self.out.emit(TABLE, &values);
        if !t.resource {
            self.out.emit(TABLE_VALUE, &values);
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
        self.out.doc("", &declaration.doc, &format!("The union `{}`.", declaration.name));
        self.out.emit(UNION, &values);
        if !u.strict {
            self.out.emit(UNION_FLEXIBLE, &values);
        }
        self.out.emit(if u.resource { UNION_RESOURCE } else { UNION_VALUE }, &values);
    }
}

const STRUCT: &str = "$derives
pub struct $name {
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
        Self::__encode_members(
            encoder,
            offset,
            depth,
$lent        )
    }

    #[inline]
    fn decode(
        decoder: &mut fidl::encoding::Decoder<'_>,
        offset: usize,
        depth: fidl::encoding::Depth,
    ) -> ::std::result::Result<Self, fidl::Error> {
$paddings        ::std::result::Result::Ok(Self {
$decodes        })
    }
}

";

const STRUCT_VALUE: &str = "impl fidl::encoding::ValueType for $name {
    type Borrowed<'a> = &'a Self;

    #[inline]
    fn borrow(value: &Self) -> &Self {
        value
    }

    #[inline]
    fn encode(
        value: &Self,
        encoder: &mut fidl::encoding::Encoder<'_>,
        offset: usize,
        depth: fidl::encoding::Depth,
    ) -> ::std::result::Result<(), fidl::Error> {
        Self::__encode_members(
            encoder,
            offset,
            depth,
$lent        )
    }
}

impl fidl::Persistable for $name {}

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
        let count = $count;
        let ($encode_envelopes, $encode_depth) = encoder.begin_table(offset, count, depth)?;
$encodes        ::std::result::Result::Ok(())
    }

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

const TABLE_VALUE: &str = "impl fidl::encoding::ValueType for $name {
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
        let count = $count;
        let ($encode_envelopes, $encode_depth) = encoder.begin_table(offset, count, depth)?;
$encodes        ::std::result::Result::Ok(())
    }
}

impl fidl::Persistable for $name {}

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
        encoder.write_u64(offset, value.ordinal());
        match value {
$encodes        }
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

impl fidl::encoding::ValueType for $name {
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
        encoder.write_u64(offset, value.ordinal());
        match value {
$encodes        }
    }
}

impl fidl::encoding::NullableValue for $name {
    #[inline]
    fn borrow_held(held: &::std::boxed::Box<Self>) -> &Self {
        held
    }
}

impl fidl::Persistable for $name {}

";
