//! The client's side of a protocol: proxies and events.

use super::Generator;
use super::names::value_name;
use super::protocols::Parts;
use super::template::{doc_comment, fill};
use crate::ir::{MethodKind, Openness, Protocol};

/// A closure that encodes a payload.
pub(super) fn body_closure(payload: &super::protocols::Payload) -> String {
    match &payload.marker {
        None => "|_| ::std::result::Result::Ok(())".to_owned(),
        Some(marker) => format!(
            "|__encoder| __encoder.body(<{marker} as fidl::encoding::WireType>::SIZE, |__encoder, __offset, __depth| {})",
            payload.encode
        ),
    }
}

/// A closure that makes the caller's value of a decoded response.
fn response_closure(name: &str, method: &Parts) -> String {
    let value = method.response.members_of_body();
    let ok = "::std::result::Result::Ok";
    match (&method.error, method.has_result_union && !method.strict) {
        (Some(_), false) => format!("|body| {ok}(body.map(|body| {value}))"),
        (Some(_), true) => format!(
            "|body| {ok}(body.into_result::<{name}Marker>({:?})?.map(|body| {value}))",
            method.fidl_name
        ),
        (None, true) => format!(
            "|body| {{\n                let body = body.into_success::<{name}Marker>({:?})?;\n                {ok}({value})\n            }}",
            method.fidl_name
        ),
        (None, false) => format!("|body| {ok}({value})"),
    }
}

impl Generator<'_> {
    pub(super) fn client(&mut self, name: &str, protocol: &Protocol, methods: &[Parts]) {
        let mut interface = String::new();
        let mut interface_impl = String::new();
        let mut asynchronous = String::new();
        let mut synchronous = String::new();
        for method in methods {
            let response = method.response_type(name);
            let future = format!("{}ResponseFut", method.camel);
            let closure = body_closure(&method.request);
            let decode = response_closure(name, method);
            let marker = method.response_marker();
            let doc = doc_comment("    ", &method.doc, &format!("Calls `{}`.", method.fidl_name));
            let values = [
                ("name", name),
                ("doc", &doc),
                ("snake", &method.snake),
                ("ordinal", &method.ordinal),
                ("flags", method.flags),
                ("declared", &method.request.declared()),
                ("arguments", &method.request.names()),
                ("response", &response),
                ("future", &future),
                ("closure", &closure),
                ("decode", &decode),
                ("marker", &marker),
            ];
            match method.kind {
                MethodKind::Event => {}
                MethodKind::OneWay => {
                    interface += &fill(INTERFACE_ONE_WAY, &values);
                    interface_impl += &fill(INTERFACE_IMPL_ONE_WAY, &values);
                    asynchronous += &fill(PROXY_ONE_WAY, &values);
                    synchronous += &fill(SYNC_ONE_WAY, &values);
                }
                MethodKind::TwoWay => {
                    interface += &fill(INTERFACE_TWO_WAY, &values);
                    interface_impl += &fill(INTERFACE_IMPL_TWO_WAY, &values);
                    asynchronous += &fill(PROXY_TWO_WAY, &values);
                    synchronous += &fill(SYNC_TWO_WAY, &values);
                }
            }
        }
        self.out.emit(
            PROXY,
            &[
                ("name", name),
                ("interface", &interface),
                ("interface_impl", &interface_impl),
                ("asynchronous", &asynchronous),
                ("synchronous", &synchronous),
            ],
        );
        self.events(name, protocol, methods);
    }

    fn events(&mut self, name: &str, protocol: &Protocol, methods: &[Parts]) {
        let mut variants = String::new();
        let mut intos = String::new();
        let mut arms = String::new();
        let events = || methods.iter().filter(|m| m.kind == MethodKind::Event);
        let has_unknown = protocol.openness != Openness::Closed;
        let alone = events().count() == 1 && !has_unknown;
        for event in events() {
            let payload = &event.response;
            let documented: String = payload
                .parameters
                .iter()
                .map(|p| {
                    format!("        /// The event's `{0}`.\n        {0}: {1},\n", p.name, p.owned)
                })
                .collect();
            variants +=
                &doc_comment("    ", &event.doc, &format!("The event `{}`.", event.fidl_name));
            variants += &format!("    {} {{\n{documented}    }},\n", event.camel);
            let names = payload.names();
            intos += &fill(
                EVENT_INTO,
                &[
                    ("name", name),
                    ("camel", &event.camel),
                    ("snake", &value_name(&event.fidl_name)),
                    ("fidl_name", &event.fidl_name),
                    ("owned", &payload.owned()),
                    ("names", &names),
                    ("value", &payload.pattern()),
                    (
                        "other",
                        if alone { "" } else { "            _ => ::std::option::Option::None,\n" },
                    ),
                ],
            );
            let members: String = payload
                .parameters
                .iter()
                .map(|p| {
                    let value = if payload.flattened {
                        format!("body.{}", p.name)
                    } else {
                        "body".to_owned()
                    };
                    format!("{}: {value}, ", p.name)
                })
                .collect();
            arms += &format!(
                "            {} => {{\n                let {body} = message.decode_body::<{}>()?;\n                ::std::result::Result::Ok({name}Event::{} {{ {members} }})\n            }}\n",
                event.ordinal,
                payload.body_marker(),
                event.camel,
                body = if payload.marker.is_some() { "body" } else { "()" },
            );
        }
        if has_unknown {
            variants += "    /// An event that this library does not know.\n    #[non_exhaustive]\n    _UnknownEvent {\n        /// The event's ordinal.\n        ordinal: u64,\n    },\n";
            arms += &format!(
                "            ordinal if message.is_flexible() => ::std::result::Result::Ok({name}Event::_UnknownEvent {{ ordinal }}),\n"
            );
        }
        self.out.emit(
            EVENTS,
            &[("name", name), ("variants", &variants), ("intos", &intos), ("arms", &arms)],
        );
    }
}

const INTERFACE_ONE_WAY: &str =
    "$doc    fn $snake(&self, $declared) -> ::std::result::Result<(), fidl::Error>;

";

const INTERFACE_IMPL_ONE_WAY: &str =
    "    fn $snake(&self, $declared) -> ::std::result::Result<(), fidl::Error> {
        self.client.send($ordinal, $flags, $closure)
    }

";

const PROXY_ONE_WAY: &str =
    "$doc    pub fn $snake(&self, $declared) -> ::std::result::Result<(), fidl::Error> {
        <Self as ${name}ProxyInterface>::$snake(self, $arguments)
    }

";

const SYNC_ONE_WAY: &str =
    "$doc    pub fn $snake(&self, $declared) -> ::std::result::Result<(), fidl::Error> {
        self.client.send($ordinal, $flags, $closure)
    }

";

const INTERFACE_TWO_WAY: &str = "    /// What `$snake` returns.
    type $future: ::std::future::Future<Output = ::std::result::Result<$response, fidl::Error>> + Send;

$doc    fn $snake(&self, $declared) -> Self::$future;

";

const INTERFACE_IMPL_TWO_WAY: &str = "    type $future = fidl::client::QueryResponseFut<$response>;

    fn $snake(&self, $declared) -> Self::$future {
        self.client.send_query_and_decode::<$marker, $response>(
            $ordinal,
            $flags,
            $closure,
            $decode,
        )
    }

";

const PROXY_TWO_WAY: &str =
    "$doc    pub fn $snake(&self, $declared) -> fidl::client::QueryResponseFut<$response> {
        <Self as ${name}ProxyInterface>::$snake(self, $arguments)
    }

";

const SYNC_TWO_WAY: &str = "$doc    pub fn $snake(&self, $declared ___deadline: fidl::Time) -> ::std::result::Result<$response, fidl::Error> {
        self.client.send_query_and_decode::<$marker, $response>(
            $ordinal,
            $flags,
            ___deadline,
            $closure,
            $decode,
        )
    }

";

const PROXY: &str = "/// What a client of `$name` can call; tests implement it instead of a server.
pub trait ${name}ProxyInterface: Send + Sync {
$interface}

/// A client of `$name` that blocks the thread.
#[derive(Debug)]
pub struct ${name}SynchronousProxy {
    client: fidl::client::sync::Client,
}

impl fidl::endpoints::SynchronousProxy for ${name}SynchronousProxy {
    type Proxy = ${name}Proxy;
    type Protocol = ${name}Marker;

    fn from_channel(inner: fidl::Channel) -> Self {
        Self::new(inner)
    }

    fn into_channel(self) -> fidl::Channel {
        self.client.into_channel()
    }

    fn as_channel(&self) -> &fidl::Channel {
        self.client.as_channel()
    }
}

impl ${name}SynchronousProxy {
    /// A client on this channel.
    pub fn new(channel: fidl::Channel) -> Self {
        let name = <${name}Marker as fidl::endpoints::ProtocolMarker>::DEBUG_NAME;
        Self { client: fidl::client::sync::Client::new(channel, name) }
    }

    /// The channel.
    pub fn into_channel(self) -> fidl::Channel {
        self.client.into_channel()
    }

    /// Waits for an event until the deadline. A response that comes instead is an error.
    pub fn wait_for_event(&self, deadline: fidl::Time) -> ::std::result::Result<${name}Event, fidl::Error> {
        ${name}Event::decode(self.client.wait_for_event(deadline)?)
    }

$synchronous}

/// A client of `$name`.
#[derive(Debug, Clone)]
pub struct ${name}Proxy {
    client: fidl::client::Client,
}

impl fidl::endpoints::Proxy for ${name}Proxy {
    type Protocol = ${name}Marker;

    fn from_channel(inner: fidl::AsyncChannel) -> Self {
        Self::new(inner)
    }

    fn into_channel(self) -> ::std::result::Result<fidl::AsyncChannel, Self> {
        self.client.into_channel().map_err(|client| Self { client })
    }

    fn as_channel(&self) -> &fidl::AsyncChannel {
        self.client.as_channel()
    }
}

impl ${name}Proxy {
    /// A client on this channel.
    pub fn new(channel: fidl::AsyncChannel) -> Self {
        let name = <${name}Marker as fidl::endpoints::ProtocolMarker>::DEBUG_NAME;
        Self { client: fidl::client::Client::new(channel, name) }
    }

    /// The events that the server sends.
    ///
    /// # Panics
    ///
    /// If the stream was taken before.
    pub fn take_event_stream(&self) -> ${name}EventStream {
        ${name}EventStream { event_receiver: self.client.take_event_receiver() }
    }

$asynchronous}

impl ${name}ProxyInterface for ${name}Proxy {
$interface_impl}

";

const EVENT_INTO: &str = "    /// The members of a `$fidl_name` event, if it is one.
    pub fn into_$fidl_name(self) -> ::std::option::Option<$owned> {
        match self {
            Self::$camel { $names } => ::std::option::Option::Some($value),
$other        }
    }

";

const EVENTS: &str = "/// The events of `$name`.
#[derive(Debug)]
pub enum ${name}Event {
$variants}

impl ${name}Event {
$intos    fn decode(message: fidl::client::EventMessage) -> ::std::result::Result<Self, fidl::Error> {
        match message.ordinal() {
$arms            ordinal => ::std::result::Result::Err(fidl::Error::UnknownOrdinal {
                ordinal,
                protocol_name: <${name}Marker as fidl::endpoints::ProtocolMarker>::DEBUG_NAME,
            }),
        }
    }
}

/// The events that a server of `$name` sends.
#[derive(Debug)]
pub struct ${name}EventStream {
    event_receiver: fidl::client::EventReceiver,
}

impl futures::Stream for ${name}EventStream {
    type Item = ::std::result::Result<${name}Event, fidl::Error>;

    fn poll_next(
        mut self: ::std::pin::Pin<&mut Self>,
        cx: &mut ::std::task::Context<'_>,
    ) -> ::std::task::Poll<::std::option::Option<Self::Item>> {
        self.event_receiver.poll_event(cx).map(|item| item.map(|event| ${name}Event::decode(event?)))
    }
}

impl futures::stream::FusedStream for ${name}EventStream {
    fn is_terminated(&self) -> bool {
        self.event_receiver.is_terminated()
    }
}

";
