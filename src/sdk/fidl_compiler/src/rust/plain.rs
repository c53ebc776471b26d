//! Structs that go over the wire as a few words: nothing but numbers, booleans, enums, bits and bytes.

use super::Generator;
use super::names::{type_name, value_name};
use super::types::primitive;
use crate::ir::{DeclId, DeclarationKind, Enum, Primitive, Struct, Type};

/// Larger structs are not held apart.
const MAX_SIZE: usize = 128;

/// What a leaf of a plain struct is, and how it is made of its number.
#[derive(Debug)]
enum Leaf {
    Number,
    Bool,
    Float,
    /// Path of the type, and for a strict enum that of a member, which stands in for a value without one.
    Enum(String, Option<String>),
    FlexibleBits(String),
}

/// A number, boolean, enum or bits somewhere in a plain struct.
#[derive(Debug)]
struct Place {
    offset: usize,
    number: Primitive,
    leaf: Leaf,
    /// Where it is in a value: `.member.index`.
    path: String,
}

/// A plain struct.
#[derive(Debug)]
pub(super) struct Plain {
    size: usize,
    places: Vec<Place>,
    /// An expression that makes a value of what [`Plain::loads`] binds for the places, which have their numbers in it.
    value: String,
}

/// The unsigned type of as many bytes.
fn unsigned(bytes: usize) -> &'static str {
    match bytes {
        1 => "u8",
        2 => "u16",
        4 => "u32",
        _ => "u64",
    }
}

impl Generator<'_> {
    /// A type as a plain struct, if it is one of a size that is not too large.
    pub(super) fn plain(&self, ty: &Type) -> Option<Plain> {
        let size = usize::try_from(self.layouts.inline(ty).size).ok()?;
        let Type::Declared { id, optional: false } = ty else { return None };
        let DeclarationKind::Struct(s) = &self.program.declaration(*id).kind else { return None };
        if size > MAX_SIZE || s.members.is_empty() {
            return None;
        }
        let mut places = Vec::new();
        let value = self.plain_struct(*id, s, 0, "", &mut places)?;
        Some(Plain { size, places, value })
    }

    fn plain_struct(
        &self,
        id: DeclId,
        s: &Struct,
        offset: usize,
        path: &str,
        places: &mut Vec<Place>,
    ) -> Option<String> {
        let layout = self.layouts.fields(s);
        let mut value = format!("{} {{ ", self.path(id, ""));
        for (member, (at, _)) in s.members.iter().zip(&layout.members) {
            let field = value_name(&member.name);
            let at = offset + usize::try_from(*at).ok()?;
            let path = format!("{path}.{field}");
            value += &format!("{field}: {}, ", self.plain_member(&member.ty, at, path, places)?);
        }
        value += "}";
        Some(value)
    }

    fn plain_member(
        &self,
        ty: &Type,
        offset: usize,
        path: String,
        places: &mut Vec<Place>,
    ) -> Option<String> {
        let (number, leaf) = match ty {
            Type::Primitive(Primitive::Bool) => (Primitive::Uint8, Leaf::Bool),
            Type::Primitive(p @ (Primitive::Float32 | Primitive::Float64)) => (*p, Leaf::Float),
            Type::Primitive(p) => (*p, Leaf::Number),
            Type::Array { element, count } => {
                if **element != Type::Primitive(Primitive::Uint8) {
                    return None;
                }
                let bytes = 0..usize::try_from(*count).ok().filter(|count| *count <= MAX_SIZE)?;
                let bytes = bytes.map(|i| {
                    let path = format!("{path}[{i}]");
                    self.plain_member(element, offset + i, path, places)
                });
                return Some(format!("[{}]", bytes.collect::<Option<Vec<_>>>()?.join(", ")));
            }
            Type::Declared { id, optional: false } => match &self.program.declaration(*id).kind {
                DeclarationKind::Struct(s) if !s.members.is_empty() => {
                    return self.plain_struct(*id, s, offset, &path, places);
                }
                DeclarationKind::Enum(e) => (e.underlying, self.plain_enum(*id, e)?),
                DeclarationKind::Bits(b) if !b.strict => {
                    (b.underlying, Leaf::FlexibleBits(self.path(*id, "")))
                }
                // Strict bits may hold what must not be sent.
                _ => return None,
            },
            _ => return None,
        };
        places.push(Place { offset, number, leaf, path });
        Some(format!("v{}", places.len() - 1))
    }

    fn plain_enum(&self, id: DeclId, e: &Enum) -> Option<Leaf> {
        let path = self.path(id, "");
        let member = if e.strict {
            Some(format!("{path}::{}", type_name(&e.members.first()?.name)))
        } else {
            None
        };
        Some(Leaf::Enum(path, member))
    }
}

impl Plain {
    /// Bytes of the words the struct is held apart in.
    fn word(&self) -> usize {
        [8, 4, 2].into_iter().find(|word| self.size.is_multiple_of(*word)).unwrap_or(1)
    }

    /// Of each byte, the bits that must be zero.
    fn zero(&self) -> Vec<u8> {
        let mut zero = vec![u8::MAX; self.size];
        for place in &self.places {
            let bits = if matches!(place.leaf, Leaf::Bool) { 0xfe } else { 0 };
            let bytes = zero.iter_mut().skip(place.offset);
            bytes.take(place.number.size() as usize).for_each(|byte| *byte = bits);
        }
        zero
    }

    /// What the struct derives so that vectors of it are copied as far as they can be, and how they are written and read.
    pub(super) fn copies(&self) -> (String, &'static str, String) {
        let of_enums = |place: &Place| matches!(place.leaf, Leaf::Enum(..) | Leaf::FlexibleBits(_));
        if self.places.iter().any(of_enums) {
            return (String::new(), "append_plain", "plain_elements(count, offset)".to_owned());
        }
        let mut traits = vec!["Immutable"];
        let has_bool = self.places.iter().any(|place| matches!(place.leaf, Leaf::Bool));
        traits.push(if has_bool { "TryFromBytes" } else { "FromBytes" });
        let zero = self.zero();
        let has_padding = zero.contains(&u8::MAX);
        if !has_padding {
            traits.push("IntoBytes");
        }
        let paths: Vec<String> =
            traits.iter().map(|name| format!("fidl::encoding::zerocopy::{name}")).collect();
        let derive = format!(
            "#[derive({})]\n#[zerocopy(crate = \"fidl::encoding::zerocopy\")]\n",
            paths.join(", ")
        );
        let append = if has_padding { "append_plain" } else { "append_bytes_of" };
        (derive, append, format!("copied_elements(count, offset, &{zero:?})"))
    }

    /// Statements that make the bytes of `value`.
    pub(super) fn stores(&self) -> String {
        let size = self.word();
        let word = unsigned(size);
        let mut words = vec![String::new(); self.size / size];
        for place in &self.places {
            let number = match &place.leaf {
                Leaf::Number | Leaf::Bool => format!("value{}", place.path),
                Leaf::Float => format!("value{}.to_bits()", place.path),
                Leaf::Enum(..) => format!("value{}.into_primitive()", place.path),
                Leaf::FlexibleBits(_) => format!("value{}.bits()", place.path),
            };
            let bytes = place.number.size() as usize;
            let text = &mut words[place.offset / size];
            *text += if text.is_empty() { "" } else { " | " };
            *text += &format!(
                "({number} as {} as {word}) << {}",
                unsigned(bytes),
                place.offset % size * 8
            );
        }
        let of_word = |text: &String| if text.is_empty() { "0".to_owned() } else { text.clone() };
        let words: Vec<String> = words.iter().map(of_word).collect();
        if let [only] = &words[..] {
            return format!("        let word: {word} = {only};\n        word.to_le_bytes()\n");
        }
        format!(
            "        let words: [{word}; {}] = [{}];
        let mut bytes = [0; {}];
        for (place, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {{
            *place = word.to_le_bytes();
        }}
        bytes\n",
            words.len(),
            words.join(", "),
            self.size
        )
    }

    /// Statements that make the value of `bytes`, and say whether it is right.
    pub(super) fn loads(&self) -> String {
        let size = self.word();
        let word = unsigned(size);
        let mut out = format!(
            "        let words: [{word}; {}] = ::std::array::from_fn(|i| {word}::from_le_bytes(::std::array::from_fn(|k| bytes[i * {size} + k])));\n        let mut wrong: {word} = 0;\n",
            self.size / size
        );
        let zero = self.zero();
        for (i, zero) in zero.chunks(size).enumerate() {
            let mask = zero.iter().rev().fold(0_u64, |mask, byte| mask << 8 | u64::from(*byte));
            if mask != 0 {
                out += &format!("        wrong |= words[{i}] & {mask:#x};\n");
            }
        }
        out += "        let mut valid = wrong == 0;\n";
        for (i, place) in self.places.iter().enumerate() {
            let (index, shift) = (place.offset / size, place.offset % size * 8);
            let bits = unsigned(place.number.size() as usize);
            let number = format!("(words[{index}] >> {shift}) as {bits}");
            let prim = primitive(place.number);
            let value = match &place.leaf {
                Leaf::Number => format!("{number} as {prim}"),
                Leaf::Bool => format!("{number} != 0"),
                Leaf::Float => format!("{prim}::from_bits({number})"),
                Leaf::FlexibleBits(path) => format!("{path}::from_bits_retain({number} as {prim})"),
                Leaf::Enum(path, None) => {
                    format!("{path}::from_primitive_allow_unknown({number} as {prim})")
                }
                Leaf::Enum(path, Some(member)) => {
                    out += &format!(
                        "        let v{i} = {path}::from_primitive({number} as {prim});\n        valid &= v{i}.is_some();\n"
                    );
                    format!("v{i}.unwrap_or({member})")
                }
            };
            out += &format!("        let v{i} = {value};\n");
        }
        out + &format!("        ({}, valid)\n", self.value)
    }
}
