//! The server's side of a protocol: requests, responders and control handles.

use super::Generator;
use super::client::body_closure;
use super::protocols::Parts;
use super::template::{doc_comment, fill};
use crate::ir::{MethodKind, Openness, Protocol};

impl Generator<'_> {
    pub(super) fn server(&mut self, name: &str, protocol: &Protocol, methods: &[Parts]) {
        let mut variants = String::new();
        let mut intos = String::new();
        let mut names = String::new();
        let mut arms = String::new();
        let mut events = String::new();
        let requests = || methods.iter().filter(|m| m.kind != MethodKind::Event);
        let has_unknown = protocol.openness != Openness::Closed;
        let alone = requests().count() == 1 && !has_unknown;
        for method in requests() {
            let two_way = method.kind == MethodKind::TwoWay;
            let (tail, tail_type) = if two_way {
                ("responder", format!("{name}{}Responder", method.camel))
            } else {
                ("control_handle", format!("{name}ControlHandle"))
            };
            let fields: String = method
                .request
                .parameters
                .iter()
                .map(|p| {
                    format!(
                        "        /// The request's `{0}`.\n        {0}: {1},\n",
                        p.name, p.owned
                    )
                })
                .collect();
            let members: String = method
                .request
                .parameters
                .iter()
                .map(|p| {
                    let value = if method.request.flattened {
                        format!("body.{}", p.name)
                    } else {
                        "body".to_owned()
                    };
                    format!("                    {}: {value},\n", p.name)
                })
                .collect();
            let tail_value = if two_way {
                format!("{tail_type} {{ control_handle, tx_id: request.tx_id(), armed: true }}")
            } else {
                "control_handle".to_owned()
            };
            let owned: String =
                method.request.parameters.iter().map(|p| format!("{}, ", p.owned)).collect();
            let into_type =
                if owned.is_empty() { tail_type.clone() } else { format!("({owned}{tail_type})") };
            let arguments = method.request.names();
            let into_value =
                if arguments.is_empty() { tail.to_owned() } else { format!("({arguments}{tail})") };
            let marker = method.request.body_marker();
            let doc =
                doc_comment("    ", &method.doc, &format!("A call of `{}`.", method.fidl_name));
            let values = [
                ("name", name),
                ("doc", doc.as_str()),
                ("camel", &method.camel),
                ("snake", &method.fidl_name),
                ("ordinal", &method.ordinal),
                ("fields", &fields),
                ("members", &members),
                ("tail", tail),
                ("tail_type", &tail_type),
                ("tail_value", &tail_value),
                ("into_type", &into_type),
                ("into_value", &into_value),
                ("arguments", &arguments),
                ("marker", &marker),
                ("body", if method.request.marker.is_some() { "body" } else { "()" }),
                ("way", if two_way { "expect_two_way" } else { "expect_one_way" }),
                (
                    "other",
                    if alone { "" } else { "            _ => ::std::option::Option::None,\n" },
                ),
            ];
            variants += &fill(REQUEST_VARIANT, &values);
            intos += &fill(REQUEST_INTO, &values);
            names += &fill("            Self::$camel { .. } => \"$snake\",\n", &values);
            arms += &fill(REQUEST_ARM, &values);
        }
        for event in methods.iter().filter(|m| m.kind == MethodKind::Event) {
            events += &fill(
                SEND_EVENT,
                &[
                    ("snake", &event.fidl_name),
                    ("ordinal", &event.ordinal),
                    ("flags", event.flags),
                    ("declared", &event.response.declared()),
                    ("closure", &body_closure(&event.response)),
                ],
            );
        }
        match protocol.openness {
            Openness::Closed => {}
            Openness::Ajar => {
                variants += UNKNOWN_VARIANT_AJAR;
                names += "            Self::_UnknownMethod { .. } => \"unknown one-way method\",\n";
                arms += "            ordinal if request.accept_unknown_one_way() => ::std::result::Result::Ok(Self::_UnknownMethod { ordinal, control_handle }),\n";
            }
            Openness::Open => {
                variants += UNKNOWN_VARIANT_OPEN;
                names += "            Self::_UnknownMethod { method_type: fidl::MethodType::OneWay, .. } => \"unknown one-way method\",\n            Self::_UnknownMethod { method_type: fidl::MethodType::TwoWay, .. } => \"unknown two-way method\",\n";
                arms += "            ordinal if request.is_flexible() => {\n                let method_type = request.accept_unknown(&control_handle.inner)?;\n                ::std::result::Result::Ok(Self::_UnknownMethod { ordinal, control_handle, method_type })\n            }\n";
            }
        }
        let variants = variants.replace("$name", name).replace("${name}", name);
        let match_names = if names.is_empty() {
            // No variants: the type has no value.
            "        match *self {}\n".to_owned()
        } else {
            format!("        match self {{\n{names}        }}\n")
        };
        self.out.emit(
            SERVER,
            &[
                ("name", name),
                ("variants", &variants),
                ("intos", &intos),
                ("match_names", &match_names),
                ("arms", &arms),
                ("events", &events),
            ],
        );
        for method in methods.iter().filter(|m| m.kind == MethodKind::TwoWay) {
            self.responder(name, method);
        }
    }

    fn responder(&mut self, name: &str, method: &Parts) {
        let payload = &method.response;
        let encode = match &payload.marker {
            Some(_) => payload.encode.clone(),
            None => "::std::result::Result::Ok(())".to_owned(),
        };
        let success = payload.success_marker();
        let size = format!("<{success} as fidl::encoding::WireType>::SIZE");
        // An empty response has no parameters and encodes nothing.
        let closure_arguments =
            if payload.marker.is_some() { "__encoder, __offset, __depth" } else { "_, _, _" };
        let pattern = payload.pattern();
        let (declared, arguments, closure) = match &method.error {
            Some((marker, error)) => (
                format!("result: ::std::result::Result<{}, {error}>, ", payload.given()),
                "result, ".to_owned(),
                format!(
                    "|__encoder| __encoder.result_body::<{marker}, _>(result, {size}, |{closure_arguments}, {pattern}| {encode})"
                ),
            ),
            None if method.has_result_union => (
                payload.declared(),
                payload.names(),
                format!(
                    "|__encoder| __encoder.success_body({size}, |{closure_arguments}| {encode})"
                ),
            ),
            None => (payload.declared(), payload.names(), body_closure(payload)),
        };
        self.out.emit(
            RESPONDER,
            &[
                ("name", name),
                ("camel", &method.camel),
                ("fidl_name", &method.fidl_name),
                ("ordinal", &method.ordinal),
                ("flags", method.flags),
                ("declared", &declared),
                ("arguments", &arguments),
                ("closure", &closure),
            ],
        );
    }
}

const REQUEST_VARIANT: &str = "$doc    $camel {
$fields        /// What to answer, or to tell the client, with.
        $tail: $tail_type,
    },
";

const REQUEST_INTO: &str = "    /// The parts of a call of `$snake`, if it is one.
    pub fn into_$snake(self) -> ::std::option::Option<$into_type> {
        match self {
            Self::$camel { $arguments$tail } => ::std::option::Option::Some($into_value),
$other        }
    }

";

const REQUEST_ARM: &str = "            $ordinal => {
                request.$way()?;
                let $body = request.decode_body::<$marker>()?;
                ::std::result::Result::Ok(Self::$camel {
$members                    $tail: $tail_value,
                })
            }
";

const UNKNOWN_VARIANT_AJAR: &str =
    "    /// A one-way call of a method that this library does not know.
    #[non_exhaustive]
    _UnknownMethod {
        /// The method's ordinal.
        ordinal: u64,
        /// What to tell the client with.
        control_handle: $nameControlHandle,
    },
";

const UNKNOWN_VARIANT_OPEN: &str = "    /// A call of a method that this library does not know. The client has been told if it asked.
    #[non_exhaustive]
    _UnknownMethod {
        /// The method's ordinal.
        ordinal: u64,
        /// What to tell the client with.
        control_handle: $nameControlHandle,
        /// Whether the client waited for a response.
        method_type: fidl::MethodType,
    },
";

const SEND_EVENT: &str = "    /// Sends the event `$snake`.
    pub fn send_$snake(&self, $declared) -> ::std::result::Result<(), fidl::Error> {
        self.inner.send_event($ordinal, $flags, $closure)
    }

";

const SERVER: &str = "/// The requests that come to a server of `$name`.
#[derive(Debug)]
pub struct ${name}RequestStream {
    inner: ::std::sync::Arc<fidl::ServeInner>,
    is_terminated: bool,
}

impl futures::stream::FusedStream for ${name}RequestStream {
    fn is_terminated(&self) -> bool {
        self.is_terminated
    }
}

impl fidl::endpoints::RequestStream for ${name}RequestStream {
    type Protocol = ${name}Marker;
    type ControlHandle = ${name}ControlHandle;

    fn from_channel(channel: fidl::AsyncChannel) -> Self {
        Self { inner: ::std::sync::Arc::new(fidl::ServeInner::new(channel)), is_terminated: false }
    }

    fn control_handle(&self) -> Self::ControlHandle {
        ${name}ControlHandle { inner: self.inner.clone() }
    }

    fn into_inner(self) -> (::std::sync::Arc<fidl::ServeInner>, bool) {
        (self.inner, self.is_terminated)
    }

    fn from_inner(inner: ::std::sync::Arc<fidl::ServeInner>, is_terminated: bool) -> Self {
        Self { inner, is_terminated }
    }
}

impl futures::Stream for ${name}RequestStream {
    type Item = ::std::result::Result<${name}Request, fidl::Error>;

    fn poll_next(
        mut self: ::std::pin::Pin<&mut Self>,
        cx: &mut ::std::task::Context<'_>,
    ) -> ::std::task::Poll<::std::option::Option<Self::Item>> {
        let this = &mut *self;
        this.inner.poll_request(&mut this.is_terminated, cx, |request| {
            ${name}Request::decode(request, ${name}ControlHandle { inner: this.inner.clone() })
        })
    }
}

/// A request to a server of `$name`.
#[derive(Debug)]
pub enum ${name}Request {
$variants}

impl ${name}Request {
$intos    /// The method's name, for people.
    pub fn method_name(&self) -> &'static str {
$match_names    }

    fn decode(
        request: fidl::RequestMessage<'_>,
        control_handle: ${name}ControlHandle,
    ) -> ::std::result::Result<Self, fidl::Error> {
        match request.ordinal() {
$arms            ordinal => {
                let _ = control_handle;
                ::std::result::Result::Err(fidl::Error::UnknownOrdinal {
                    ordinal,
                    protocol_name: <${name}Marker as fidl::endpoints::ProtocolMarker>::DEBUG_NAME,
                })
            }
        }
    }
}

/// What a server of `$name` sends events with, and ends the connection with.
#[derive(Debug, Clone)]
pub struct ${name}ControlHandle {
    inner: ::std::sync::Arc<fidl::ServeInner>,
}

impl fidl::endpoints::ControlHandle for ${name}ControlHandle {
    fn inner(&self) -> &::std::sync::Arc<fidl::ServeInner> {
        &self.inner
    }
}

impl ${name}ControlHandle {
$events}

";

const RESPONDER: &str =
    "/// Answers a call of `$fidl_name`. Dropping it unsent ends the connection.
#[derive(Debug)]
#[must_use = \"dropping a responder unsent ends the connection\"]
pub struct ${name}${camel}Responder {
    control_handle: ${name}ControlHandle,
    tx_id: u32,
    armed: bool,
}

impl ::std::ops::Drop for ${name}${camel}Responder {
    fn drop(&mut self) {
        if self.armed {
            fidl::endpoints::ControlHandle::shutdown(&self.control_handle);
        }
    }
}

impl fidl::endpoints::Responder for ${name}${camel}Responder {
    type ControlHandle = ${name}ControlHandle;

    fn control_handle(&self) -> &${name}ControlHandle {
        &self.control_handle
    }

    fn drop_without_shutdown(mut self) {
        self.armed = false;
    }
}

impl ${name}${camel}Responder {
    /// Sends the response. If that fails, the connection ends.
    pub fn send(mut self, $declared) -> ::std::result::Result<(), fidl::Error> {
        let sent = self.send_raw($arguments);
        // After a failure the drop ends the connection.
        self.armed = sent.is_err();
        sent
    }

    /// As `send`, but the connection goes on even if it fails.
    pub fn send_no_shutdown_on_err(mut self, $declared) -> ::std::result::Result<(), fidl::Error> {
        self.armed = false;
        self.send_raw($arguments)
    }

    fn send_raw(&self, $declared) -> ::std::result::Result<(), fidl::Error> {
        self.control_handle.inner.send_response(self.tx_id, $ordinal, $flags, $closure)
    }
}

";
