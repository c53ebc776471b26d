//! A library's summary for people and tools: declarations with their types, sizes and ordinals.
//! The keys are those of the JSON that Fuchsia's `fidlc` writes, as far as both have a thing.

use crate::ir::{
    DeclId, Declaration, DeclarationKind, End, Library, MAX_COUNT, Method, MethodKind,
    OrdinaledMember, Program, Type, Value, ValueMember,
};
use crate::layout::Layouts;
use serde_json::{Map, Value as Json, json};

/// The summary of a library of the program.
pub fn library(program: &Program, library: &Library) -> Json {
    let writer = Writer { program, layouts: Layouts::new(program) };
    let mut lists: Map<String, Json> = Map::new();
    for key in KEYS {
        lists.insert(key.to_owned(), Json::Array(Vec::new()));
    }
    let index = program.libraries.iter().position(|l| std::ptr::eq(l, library)).unwrap_or(0);
    for (i, declaration) in library.declarations.iter().enumerate() {
        let (key, value) = writer.declaration(DeclId { library: index, index: i }, declaration);
        if let Some(Json::Array(list)) = lists.get_mut(key) {
            list.push(value);
        }
    }
    let dependencies: Vec<&str> =
        library.dependencies.iter().map(|i| program.libraries[*i].name.as_str()).collect();
    let mut out = Map::new();
    out.insert("name".to_owned(), json!(library.name));
    out.insert("library_dependencies".to_owned(), json!(dependencies));
    out.extend(lists);
    Json::Object(out)
}

const KEYS: [&str; 10] = [
    "const_declarations",
    "alias_declarations",
    "enum_declarations",
    "bits_declarations",
    "struct_declarations",
    "table_declarations",
    "union_declarations",
    "protocol_declarations",
    "service_declarations",
    "experimental_resource_declarations",
];

struct Writer<'a> {
    program: &'a Program,
    layouts: Layouts<'a>,
}

impl Writer<'_> {
    fn declaration(&self, id: DeclId, declaration: &Declaration) -> (&'static str, Json) {
        let mut fields = Map::new();
        fields.insert("name".to_owned(), json!(self.program.qualified_name(id)));
        if !declaration.doc.is_empty() {
            fields.insert("doc".to_owned(), json!(declaration.doc.join("\n")));
        }
        let mut put = |key: &str, value: Json| {
            fields.insert(key.to_owned(), value);
        };
        let key = match &declaration.kind {
            DeclarationKind::Const(c) => {
                put("type", self.ty(&c.ty));
                put("value", value(&c.value));
                "const_declarations"
            }
            DeclarationKind::Alias(ty) => {
                put("type", self.ty(ty));
                "alias_declarations"
            }
            DeclarationKind::Enum(e) => {
                put("type", json!(e.underlying.name()));
                put("strict", json!(e.strict));
                put("members", value_members(&e.members));
                "enum_declarations"
            }
            DeclarationKind::Bits(b) => {
                put("type", json!(b.underlying.name()));
                put("strict", json!(b.strict));
                put("mask", json!(b.mask()));
                put("members", value_members(&b.members));
                "bits_declarations"
            }
            DeclarationKind::Struct(s) => {
                let layout = self.layouts.fields(s);
                let members: Vec<Json> = s
                    .members
                    .iter()
                    .zip(&layout.members)
                    .map(|(member, (offset, padding))| {
                        json!({
                            "name": member.name,
                            "type": self.ty(&member.ty),
                            "field_shape_v2": { "offset": offset, "padding": padding },
                        })
                    })
                    .collect();
                put("resource", json!(s.resource));
                put("is_empty_success_struct", json!(false));
                put("members", json!(members));
                put("type_shape_v2", self.shape(id));
                "struct_declarations"
            }
            DeclarationKind::Table(t) => {
                put("resource", json!(t.resource));
                put("strict", json!(false));
                put("members", self.ordinaled(&t.members));
                put("type_shape_v2", self.shape(id));
                "table_declarations"
            }
            DeclarationKind::Union(u) => {
                put("resource", json!(u.resource));
                put("strict", json!(u.strict));
                put("members", self.ordinaled(&u.members));
                put("type_shape_v2", self.shape(id));
                "union_declarations"
            }
            DeclarationKind::Protocol(p) => {
                put("openness", json!(p.openness.word()));
                if let Some(name) = &p.discoverable {
                    put("discoverable", json!(name));
                }
                let composed: Vec<String> =
                    p.composed.iter().map(|id| self.program.qualified_name(*id)).collect();
                put("composed_protocols", json!(composed));
                let methods: Vec<Json> = p.methods.iter().map(|m| self.method(m)).collect();
                put("methods", json!(methods));
                "protocol_declarations"
            }
            DeclarationKind::Service(s) => {
                let members: Vec<Json> = s
                    .members
                    .iter()
                    .map(|m| json!({ "name": m.name, "protocol": self.program.qualified_name(m.protocol) }))
                    .collect();
                put("members", json!(members));
                "service_declarations"
            }
            DeclarationKind::Resource(_) => "experimental_resource_declarations",
        };
        (key, Json::Object(fields))
    }

    fn method(&self, method: &Method) -> Json {
        let mut out = Map::new();
        let kind = match method.kind {
            MethodKind::OneWay => "one_way",
            MethodKind::TwoWay => "two_way",
            MethodKind::Event => "event",
        };
        out.insert("name".to_owned(), json!(method.name));
        out.insert("kind".to_owned(), json!(kind));
        out.insert("ordinal".to_owned(), json!(method.ordinal));
        out.insert("ordinal_hex".to_owned(), json!(format!("{:#018x}", method.ordinal)));
        out.insert("selector".to_owned(), json!(method.selector));
        out.insert("strict".to_owned(), json!(method.strict));
        out.insert("is_composed".to_owned(), json!(method.composed_from.is_some()));
        out.insert("has_error".to_owned(), json!(method.error.is_some()));
        out.insert("has_result_union".to_owned(), json!(method.has_result_union()));
        if let Some(id) = method.request {
            out.insert("maybe_request_payload".to_owned(), self.payload(id));
        }
        if let Some(id) = method.response {
            let key = if method.has_result_union() {
                "maybe_response_success_type"
            } else {
                "maybe_response_payload"
            };
            out.insert(key.to_owned(), self.payload(id));
        }
        if let Some(error) = &method.error {
            out.insert("maybe_response_err_type".to_owned(), self.ty(error));
        }
        Json::Object(out)
    }

    fn payload(&self, id: DeclId) -> Json {
        self.ty(&Type::Declared { id, optional: false })
    }

    fn shape(&self, id: DeclId) -> Json {
        let inline = self.layouts.declared(id);
        let bounds = self.layouts.declared_bounds(id);
        json!({
            "inline_size": inline.size,
            "alignment": inline.align,
            "depth": bounds.depth,
            "max_handles": bounds.handles,
            "max_out_of_line": bounds.out_of_line,
        })
    }

    fn ordinaled(&self, members: &[OrdinaledMember]) -> Json {
        members
            .iter()
            .map(|m| json!({ "ordinal": m.ordinal, "name": m.name, "type": self.ty(&m.ty) }))
            .collect()
    }

    fn ty(&self, ty: &Type) -> Json {
        let mut out = Map::new();
        let mut put = |key: &str, value: Json| {
            out.insert(key.to_owned(), value);
        };
        match ty {
            Type::Primitive(primitive) => {
                put("kind", json!("primitive"));
                put("subtype", json!(primitive.name()));
            }
            Type::String { max, optional } => {
                put("kind", json!("string"));
                put("nullable", json!(optional));
                if *max != MAX_COUNT {
                    put("maybe_element_count", json!(max));
                }
            }
            Type::Vector { element, max, optional } => {
                put("kind", json!("vector"));
                put("element_type", self.ty(element));
                put("nullable", json!(optional));
                if *max != MAX_COUNT {
                    put("maybe_element_count", json!(max));
                }
            }
            Type::Array { element, count } => {
                put("kind", json!("array"));
                put("element_type", self.ty(element));
                put("element_count", json!(count));
            }
            Type::Handle { subtype, rights, optional, .. } => {
                put("kind", json!("handle"));
                put("obj_type", json!(subtype));
                put("rights", json!(rights));
                put("nullable", json!(optional));
            }
            Type::Endpoint { end, protocol, optional } => {
                put("kind", json!("endpoint"));
                put("role", json!(if *end == End::Client { "client" } else { "server" }));
                put("protocol", json!(self.program.qualified_name(*protocol)));
                put("nullable", json!(optional));
            }
            Type::Box(id) => {
                put("kind", json!("identifier"));
                put("identifier", json!(self.program.qualified_name(*id)));
                put("nullable", json!(true));
            }
            Type::Declared { id, optional } => {
                put("kind", json!("identifier"));
                put("identifier", json!(self.program.qualified_name(*id)));
                put("nullable", json!(optional));
            }
        }
        let inline = self.layouts.inline(ty);
        put("inline_size", json!(inline.size));
        Json::Object(out)
    }
}

fn value_members(members: &[ValueMember]) -> Json {
    members.iter().map(|m| json!({ "name": m.name, "value": m.value.to_string() })).collect()
}

fn value(value: &Value) -> Json {
    match value {
        Value::Bool(value) => json!(value),
        Value::Int(value) => json!(value.to_string()),
        Value::Float(value) => json!(value),
        Value::String(text) => json!(text),
    }
}
