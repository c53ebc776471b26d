//! What connections to all kinds of nodes have in common, and those that are to a node itself.

use std::ops::ControlFlow;

use fidl::endpoints::{RequestStream as _, ServerEnd};
use fidl_fuchsia_io as fio;
use fuchsia_zircon::{self as zx, Status};
use futures::StreamExt;

use crate::entry::{OpenRequest, described_attributes};
use crate::execution_scope::ExecutionScope;
use crate::open::Describe;

/// A connection to a node, as far as it does not matter what kind.
pub(crate) trait Connection {
    /// What `Query` replies.
    const PROTOCOL: &'static str;

    fn rights(&self) -> fio::Operations;

    /// Rights, protocol, and whether it appends.
    fn flags(&self) -> fio::Flags;

    fn set_append(&mut self, _append: bool) -> Result<(), Status> {
        Err(Status::NOT_SUPPORTED)
    }

    fn attributes(&self) -> Result<fio::NodeAttributes2, Status>;

    fn update_attributes(&self, _attributes: &fio::MutableNodeAttributes) -> Result<(), Status> {
        Err(Status::NOT_SUPPORTED)
    }

    fn sync(&self) -> Result<(), Status> {
        Ok(())
    }

    /// Another connection to the same node.
    fn clone_connection(&self, rights: fio::Operations, channel: zx::Channel, describe: Describe);
}

/// Whether a connection goes on after a request.
pub(crate) type Next = Result<ControlFlow<()>, fidl::Error>;

/// Matches a request: those that every node has here, the others with the arms that are given.
macro_rules! serve_node {
    ($request:expr, $requests:ident, $connection:expr, { $($arms:tt)* }) => {{
        use $crate::node::requests;
        let connection = &mut *$connection;
        match $request {
            fio::$requests::Clone { request, control_handle: _ } => {
                let rights = connection.rights();
                connection.clone_connection(rights, request.into_channel(), Describe::Nothing);
            }
            fio::$requests::Close { responder } => {
                responder.send(Ok(()))?;
                return Ok(ControlFlow::Break(()));
            }
            fio::$requests::Query { responder } => {
                responder.send(requests::protocol(connection))?;
            }
            fio::$requests::DeprecatedClone { flags, object, control_handle: _ } => {
                requests::deprecated_clone(connection, flags, object);
            }
            fio::$requests::DeprecatedGetAttr { responder } => {
                let (status, attributes) = requests::deprecated_attributes(connection);
                responder.send(status, &attributes)?;
            }
            fio::$requests::DeprecatedSetAttr { flags, attributes, responder } => {
                let result = requests::deprecated_set_attributes(connection, flags, &attributes);
                responder.send(Status::from_result(result).into_raw())?;
            }
            fio::$requests::DeprecatedGetFlags { responder } => {
                responder.send(Status::OK.into_raw(), requests::deprecated_flags(connection))?;
            }
            fio::$requests::DeprecatedSetFlags { flags, responder } => {
                let result = connection.set_append(flags.contains(fio::OpenFlags::APPEND));
                responder.send(Status::from_result(result).into_raw())?;
            }
            fio::$requests::GetFlags { responder } => responder.send(Ok(connection.flags()))?,
            fio::$requests::SetFlags { flags, responder } => {
                responder.send(requests::set_flags(connection, flags))?;
            }
            fio::$requests::QueryFilesystem { responder } => {
                responder.send(Status::NOT_SUPPORTED.into_raw(), None)?;
            }
            fio::$requests::GetAttributes { query, responder } => {
                match requests::attributes(connection, query) {
                    Ok(found) => responder
                        .send(Ok((&found.mutable_attributes, &found.immutable_attributes)))?,
                    Err(status) => responder.send(Err(status))?,
                }
            }
            fio::$requests::UpdateAttributes { payload, responder } => {
                responder.send(requests::update_attributes(connection, &payload))?;
            }
            fio::$requests::Sync { responder } => {
                responder.send(connection.sync().map_err(Status::into_raw))?;
            }
            fio::$requests::ListExtendedAttributes { iterator, control_handle: _ } => {
                // A client that has gone needs no telling.
                let _ = iterator.close_with_epitaph(Status::NOT_SUPPORTED);
            }
            fio::$requests::GetExtendedAttribute { name: _, responder } => {
                responder.send(Err(Status::NOT_SUPPORTED.into_raw()))?;
            }
            fio::$requests::SetExtendedAttribute { name: _, value: _, mode: _, responder } => {
                responder.send(Err(Status::NOT_SUPPORTED.into_raw()))?;
            }
            fio::$requests::RemoveExtendedAttribute { name: _, responder } => {
                responder.send(Err(Status::NOT_SUPPORTED.into_raw()))?;
            }
            // The client has been told if it waits.
            fio::$requests::_UnknownMethod { .. } => {}
            $($arms)*
        }
        Ok(ControlFlow::Continue(()))
    }};
}
pub(crate) use serve_node;

/// What the requests that every node has do.
pub(crate) mod requests {
    use super::{Connection, ServerEnd, Status, fio};
    use crate::attributes;
    use crate::entry::refuse;
    use crate::open::{Describe, clone_rights, deprecated_rights};

    pub(crate) fn protocol<C: Connection>(_: &C) -> &'static [u8] {
        C::PROTOCOL.as_bytes()
    }

    pub(crate) fn deprecated_clone(
        connection: &impl Connection,
        flags: fio::OpenFlags,
        object: ServerEnd<fio::NodeMarker>,
    ) {
        let describe = if flags.contains(fio::OpenFlags::DESCRIBE) {
            Describe::OnOpen
        } else {
            Describe::Nothing
        };
        let channel = object.into_channel();
        match clone_rights(flags, connection.rights()) {
            Ok(rights) => connection.clone_connection(rights, channel, describe),
            Err(status) => refuse(channel, describe, status),
        }
    }

    pub(crate) fn deprecated_attributes(
        connection: &impl Connection,
    ) -> (i32, fio::NodeAttributes) {
        match connection.attributes() {
            Ok(found) => (Status::OK.into_raw(), attributes::deprecated(&found)),
            Err(status) => {
                let none =
                    attributes::basic(fio::NodeProtocolKinds::empty(), fio::Operations::empty(), 0);
                (status.into_raw(), attributes::deprecated(&none))
            }
        }
    }

    pub(crate) fn deprecated_set_attributes(
        connection: &impl Connection,
        flags: fio::NodeAttributeFlags,
        attributes: &fio::NodeAttributes,
    ) -> Result<(), Status> {
        if !connection.rights().contains(fio::Operations::UPDATE_ATTRIBUTES) {
            return Err(Status::BAD_HANDLE);
        }
        let chosen = |flag, value| flags.contains(flag).then_some(value);
        connection.update_attributes(&fio::MutableNodeAttributes {
            creation_time: chosen(fio::NodeAttributeFlags::CREATION_TIME, attributes.creation_time),
            modification_time: chosen(
                fio::NodeAttributeFlags::MODIFICATION_TIME,
                attributes.modification_time,
            ),
            ..Default::default()
        })
    }

    pub(crate) fn deprecated_flags(connection: &impl Connection) -> fio::OpenFlags {
        let mut flags = deprecated_rights(connection.rights());
        if connection.flags().contains(fio::Flags::PROTOCOL_NODE) {
            flags |= fio::OpenFlags::NODE_REFERENCE;
        }
        if connection.flags().contains(fio::Flags::FILE_APPEND) {
            flags |= fio::OpenFlags::APPEND;
        }
        flags
    }

    pub(crate) fn set_flags(
        connection: &mut impl Connection,
        flags: fio::Flags,
    ) -> Result<(), i32> {
        let append = fio::Flags::FILE_APPEND;
        if flags.bits() & !append.bits() != 0 {
            return Err(Status::INVALID_ARGS.into_raw());
        }
        connection.set_append(flags.contains(append)).map_err(Status::into_raw)
    }

    pub(crate) fn attributes(
        connection: &impl Connection,
        query: fio::NodeAttributesQuery,
    ) -> Result<fio::NodeAttributes2, i32> {
        if !connection.rights().contains(fio::Operations::GET_ATTRIBUTES) {
            return Err(Status::ACCESS_DENIED.into_raw());
        }
        let found = connection.attributes().map_err(Status::into_raw)?;
        Ok(attributes::select(found, query))
    }

    pub(crate) fn update_attributes(
        connection: &impl Connection,
        attributes: &fio::MutableNodeAttributes,
    ) -> Result<(), i32> {
        if !connection.rights().contains(fio::Operations::UPDATE_ATTRIBUTES) {
            return Err(Status::ACCESS_DENIED.into_raw());
        }
        connection.update_attributes(attributes).map_err(Status::into_raw)
    }
}

/// A connection to a node that is only a reference.
struct NodeConnection {
    scope: ExecutionScope,
    attributes: fio::NodeAttributes2,
}

impl Connection for NodeConnection {
    const PROTOCOL: &'static str = "fuchsia.io/Node";

    fn rights(&self) -> fio::Operations {
        fio::Operations::GET_ATTRIBUTES
    }

    fn flags(&self) -> fio::Flags {
        fio::Flags::PROTOCOL_NODE | fio::Flags::PERM_GET_ATTRIBUTES
    }

    fn attributes(&self) -> Result<fio::NodeAttributes2, Status> {
        Ok(self.attributes.clone())
    }

    fn clone_connection(&self, _: fio::Operations, channel: zx::Channel, describe: Describe) {
        if let Some(channel) = self::describe(channel, describe, &self.attributes) {
            serve(&self.scope, channel, self.attributes.clone());
        }
    }
}

/// Serves a reference to a node that has `attributes`.
pub(crate) fn start(request: OpenRequest, attributes: fio::NodeAttributes2) {
    let scope = request.scope.clone();
    let describe = request.options.describe;
    if let Some(channel) = self::describe(request.into_channel(), describe, &attributes) {
        serve(&scope, channel, attributes);
    }
}

fn serve(scope: &ExecutionScope, channel: zx::Channel, attributes: fio::NodeAttributes2) {
    let mut connection = NodeConnection { scope: scope.clone(), attributes };
    let mut stream = ServerEnd::<fio::NodeMarker>::new(channel).into_stream();
    scope.spawn(async move {
        while let Some(Ok(request)) = stream.next().await {
            if !matches!(connection.handle(request), Ok(ControlFlow::Continue(()))) {
                break;
            }
        }
    });
}

impl NodeConnection {
    fn handle(&mut self, request: fio::NodeRequest) -> Next {
        serve_node!(request, NodeRequest, self, {})
    }
}

/// Sends what the client wants to be told first of a node that has no protocol of its own here. `None` if the client has
/// gone.
pub(crate) fn describe(
    channel: zx::Channel,
    describe: Describe,
    attributes: &fio::NodeAttributes2,
) -> Option<zx::Channel> {
    if describe == Describe::Nothing {
        return Some(channel);
    }
    let server = ServerEnd::<fio::NodeMarker>::new(channel);
    let (stream, control) = server.into_stream_and_control_handle();
    let sent = if let Describe::OnRepresentation(query) = describe {
        let attributes = described_attributes(query, || Ok(attributes.clone()));
        control.send_on_representation(fio::Representation::Node(fio::NodeInfo {
            attributes,
            ..Default::default()
        }))
    } else {
        let info = fio::NodeInfoDeprecated::Service(fio::Service {});
        control.send_on_open(Status::OK.into_raw(), Some(Box::new(info)))
    };
    drop(control);
    sent.ok()?;
    let (inner, _) = stream.into_inner();
    // Nobody else has had a part of it.
    let inner = std::sync::Arc::try_unwrap(inner).ok()?;
    Some(inner.into_channel().into_zx_channel())
}
