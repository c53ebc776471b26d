//! What the client's and the server's side of a protocol share: markers, and payloads as parameters
//! and values.

use super::Generator;
use super::names::{method_name, type_name, value_name};
use crate::ir::{
    DeclId, Declaration, DeclarationKind, Method, MethodKind, Protocol, Service, Struct, Type,
};
use crate::names::{lower_snake_case, upper_camel_case};

/// A payload, seen as Rust parameters.
pub(super) struct Payload {
    /// Name, parameter type and owned type of each.
    pub(super) parameters: Vec<Parameter>,
    /// The codec's type; `None` if nothing is sent.
    pub(super) marker: Option<String>,
    /// A block that encodes the parameters at `__offset`, or nothing.
    pub(super) encode: String,
    /// Whether the members of `marker` are the parameters, or it is the parameter.
    pub(super) flattened: bool,
}

pub(super) struct Parameter {
    pub(super) name: String,
    pub(super) ty: String,
    pub(super) owned: String,
}

impl Payload {
    /// `name: Type, …` with a comma after each.
    pub(super) fn declared(&self) -> String {
        self.parameters.iter().map(|p| format!("{}: {}, ", p.name, p.ty)).collect()
    }

    /// `name, …` with a comma after each.
    pub(super) fn names(&self) -> String {
        self.parameters.iter().map(|p| format!("{}, ", p.name)).collect()
    }

    fn tuple(parts: &[String]) -> String {
        match parts {
            [one] => one.clone(),
            parts => format!("({})", parts.join(", ")),
        }
    }

    /// The value a receiver gets: `()`, the one parameter, or a tuple.
    pub(super) fn owned(&self) -> String {
        Self::tuple(&self.parameters.iter().map(|p| p.owned.clone()).collect::<Vec<_>>())
    }

    /// The value a sender gives where it is one: `()`, the one parameter, or a tuple.
    pub(super) fn given(&self) -> String {
        Self::tuple(&self.parameters.iter().map(|p| p.ty.clone()).collect::<Vec<_>>())
    }

    /// A pattern that binds what [`Self::given`] is.
    pub(super) fn pattern(&self) -> String {
        Self::tuple(&self.parameters.iter().map(|p| p.name.clone()).collect::<Vec<_>>())
    }

    /// The codec's type, that of nothing included.
    pub(super) fn body_marker(&self) -> String {
        self.marker.clone().unwrap_or_else(|| "fidl::encoding::EmptyPayload".to_owned())
    }

    /// The codec's type in an envelope, where nothing is an empty struct.
    pub(super) fn success_marker(&self) -> String {
        self.marker.clone().unwrap_or_else(|| "fidl::encoding::EmptyStruct".to_owned())
    }

    /// An expression of what [`Self::owned`] is, from a decoded `body`.
    pub(super) fn members_of_body(&self) -> String {
        if self.flattened {
            Self::tuple(
                &self.parameters.iter().map(|p| format!("body.{}", p.name)).collect::<Vec<_>>(),
            )
        } else {
            "body".to_owned()
        }
    }
}

/// A method with what the templates need of it.
pub(super) struct Parts {
    pub(super) camel: String,
    pub(super) snake: String,
    pub(super) fidl_name: String,
    pub(super) ordinal: String,
    pub(super) flags: &'static str,
    pub(super) kind: MethodKind,
    pub(super) strict: bool,
    pub(super) doc: Vec<String>,
    pub(super) request: Payload,
    pub(super) response: Payload,
    /// Codec's type and Rust type of the error.
    pub(super) error: Option<(String, String)>,
    pub(super) has_result_union: bool,
}

impl Parts {
    /// The type that a caller of the method gets.
    pub(super) fn response_type(&self, protocol: &str) -> String {
        match &self.error {
            Some(_) => format!("{protocol}{}Result", self.camel),
            None => self.response.owned(),
        }
    }

    /// The codec's type of the response's body.
    pub(super) fn response_marker(&self) -> String {
        let success = self.response.success_marker();
        match (&self.error, self.strict) {
            (Some((error, _)), true) => format!("fidl::encoding::ResultType<{success}, {error}>"),
            (Some((error, _)), false) => {
                format!("fidl::encoding::FlexibleResultType<{success}, {error}>")
            }
            (None, false) if self.has_result_union => {
                format!("fidl::encoding::FlexibleType<{success}>")
            }
            (None, _) => self.response.body_marker(),
        }
    }
}

impl Generator<'_> {
    pub(super) fn payload(&self, id: Option<DeclId>) -> Payload {
        let Some(id) = id else {
            return Payload {
                parameters: Vec::new(),
                marker: None,
                encode: String::new(),
                flattened: false,
            };
        };
        let marker = self.path(id, "");
        match &self.program.declaration(id).kind {
            DeclarationKind::Struct(s) => self.struct_payload(s, marker),
            _ => {
                let ty = Type::Declared { id, optional: false };
                let parameter = Parameter {
                    name: "payload".to_owned(),
                    ty: self.parameter(&ty),
                    owned: self.owned(&ty),
                };
                let encode =
                    format!("{}(payload, __encoder, __offset, __depth)", self.encode_path(&ty));
                Payload {
                    parameters: vec![parameter],
                    marker: Some(marker),
                    encode,
                    flattened: false,
                }
            }
        }
    }

    fn struct_payload(&self, s: &Struct, marker: String) -> Payload {
        let parameters: Vec<Parameter> = s
            .members
            .iter()
            .map(|member| Parameter {
                name: value_name(&member.name),
                ty: self.parameter(&member.ty),
                owned: self.owned(&member.ty),
            })
            .collect();
        let names: String = parameters.iter().map(|p| format!(", {}", p.name)).collect();
        let encode = format!("{marker}::__encode_members(__encoder, __offset, __depth{names})");
        Payload { parameters, marker: Some(marker), encode, flattened: true }
    }

    pub(super) fn parts(&self, method: &Method) -> Parts {
        Parts {
            camel: upper_camel_case(&method.name),
            snake: method_name(&method.name),
            fidl_name: lower_snake_case(&method.name),
            ordinal: format!("{:#x}", method.ordinal),
            flags: if method.strict {
                "fidl::encoding::DynamicFlags::empty()"
            } else {
                "fidl::encoding::DynamicFlags::FLEXIBLE"
            },
            kind: method.kind,
            strict: method.strict,
            doc: method.doc.clone(),
            request: self.payload(method.request),
            response: self.payload(method.response),
            error: method.error.as_ref().map(|ty| (self.marker(ty), self.owned(ty))),
            has_result_union: method.has_result_union(),
        }
    }

    pub(super) fn protocol(&mut self, declaration: &Declaration, protocol: &Protocol) {
        let name = type_name(&declaration.name);
        let parts: Vec<Parts> = protocol.methods.iter().map(|m| self.parts(m)).collect();
        let debug_name = protocol
            .discoverable
            .clone()
            .unwrap_or_else(|| format!("(anonymous) {}", declaration.name));
        self.out.doc("", &declaration.doc, &format!("The protocol `{}`.", declaration.name));
        let values = [("name", name.as_str()), ("debug_name", &debug_name)];
        self.out.emit(MARKER, &values);
        if protocol.discoverable.is_some() {
            self.out.emit(
                "impl fidl::endpoints::DiscoverableProtocolMarker for ${name}Marker {}\n\n",
                &values,
            );
        }
        for method in &parts {
            if let Some((_, error)) = &method.error {
                self.out.emit(
                    "/// What `$method` of `$name` results in.\npub type $alias = ::std::result::Result<$ok, $error>;\n\n",
                    &[
                        ("method", &method.fidl_name),
                        ("name", &name),
                        ("alias", &method.response_type(&name)),
                        ("ok", &method.response.owned()),
                        ("error", error),
                    ],
                );
            }
        }
        self.client(&name, protocol, &parts);
        self.server(&name, protocol, &parts);
    }

    pub(super) fn service(&mut self, id: DeclId, declaration: &Declaration, service: &Service) {
        let name = type_name(&declaration.name);
        let service_name = self.program.qualified_name(id).replace('/', ".");
        let members: String =
            service.members.iter().map(|member| format!("{:?}, ", member.name)).collect();
        self.out.doc("", &declaration.doc, &format!("The service `{}`.", declaration.name));
        self.out.emit(
            SERVICE,
            &[
                ("name", &format!("{name}Marker")),
                ("service_name", &service_name),
                ("members", &members),
            ],
        );
    }
}

const MARKER: &str = "#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ${name}Marker;

impl fidl::endpoints::ProtocolMarker for ${name}Marker {
    type Proxy = ${name}Proxy;
    type SynchronousProxy = ${name}SynchronousProxy;
    type RequestStream = ${name}RequestStream;
    const DEBUG_NAME: &'static str = \"$debug_name\";
}

";

const SERVICE: &str = "#[derive(Debug, Copy, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct $name;

impl fidl::endpoints::ServiceMarker for $name {
    const SERVICE_NAME: &'static str = \"$service_name\";
    const MEMBERS: &'static [&'static str] = &[$members];
}

";
