//! Nodes of any kind, and why they cannot be opened.

use fidl::endpoints::{ProtocolMarker, Proxy, ServerEnd, create_proxy};
use fidl_fuchsia_io as fio;
use fuchsia_component::namespace;
use fuchsia_zircon::Status;
use futures::StreamExt;

/// Why a node could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The path is not in this process's namespace.
    #[error("no directory of the namespace leads there: {0}")]
    Namespace(Status),
    /// The request could not be sent: the server of the directory has gone.
    #[error("the request could not be sent: {0}")]
    SendOpenRequest(fidl::Error),
    /// The server refused.
    #[error("the server refused: {0}")]
    OpenError(Status),
    /// The server closed the connection without a word.
    #[error("the server closed the connection")]
    OnOpenEventStreamClosed,
    /// The server answered with something else.
    #[error("the server's answer makes no sense: {0}")]
    OnOpenDecode(fidl::Error),
    /// The server opened something that was not asked for.
    #[error("the server opened another kind of node")]
    UnexpectedNode,
}

impl OpenError {
    /// Whether there is no such node.
    pub fn is_not_found_error(&self) -> bool {
        matches!(
            self,
            OpenError::OpenError(Status::NOT_FOUND) | OpenError::Namespace(Status::NOT_FOUND)
        )
    }
}

/// Why a node could not be closed.
#[derive(Debug, thiserror::Error)]
pub enum CloseError {
    /// The call failed.
    #[error("the node could not be asked to close: {0}")]
    SendCloseRequest(fidl::Error),
    /// The server says that something went wrong.
    #[error("the node did not close as it should: {0}")]
    CloseError(Status),
}

/// Why a node could not be cloned.
#[derive(Debug, thiserror::Error)]
#[error("the request could not be sent: {0}")]
pub struct CloneError(pub fidl::Error);

/// Opens the node at an absolute path of this process's namespace. What becomes of it, the proxy tells when used.
///
/// # Errors
/// [`OpenError::Namespace`].
pub fn open_in_namespace(path: &str, flags: fio::Flags) -> Result<fio::NodeProxy, OpenError> {
    open_typed_in_namespace::<fio::NodeMarker>(path, flags)
}

pub(crate) fn open_typed_in_namespace<P: ProtocolMarker>(
    path: &str,
    flags: fio::Flags,
) -> Result<P::Proxy, OpenError> {
    let (proxy, server) = create_proxy::<P>();
    namespace::open(path, flags, server.into_channel()).map_err(OpenError::Namespace)?;
    Ok(proxy)
}

pub(crate) fn open_typed<P: ProtocolMarker>(
    parent: &fio::DirectoryProxy,
    path: &str,
    flags: fio::Flags,
) -> Result<P::Proxy, OpenError> {
    let (proxy, server) = create_proxy::<P>();
    parent
        .open(path, flags, &fio::Options::default(), server.into_channel())
        .map_err(OpenError::SendOpenRequest)?;
    Ok(proxy)
}

/// Opens a node in `parent`, and waits until that has succeeded.
///
/// # Errors
/// All of [`OpenError`] but [`OpenError::Namespace`].
pub async fn open_node(
    parent: &fio::DirectoryProxy,
    path: &str,
    flags: fio::Flags,
) -> Result<fio::NodeProxy, OpenError> {
    let flags = flags | fio::Flags::FLAG_SEND_REPRESENTATION;
    let node = open_typed::<fio::NodeMarker>(parent, path, flags)?;
    verify(node.take_event_stream()).await?;
    Ok(node)
}

/// Waits for the event by which a server says that it has opened the node.
pub(crate) async fn verify(
    mut events: fio::NodeEventStream,
) -> Result<fio::Representation, OpenError> {
    match events.next().await {
        Some(Ok(fio::NodeEvent::OnRepresentation { payload })) => Ok(payload),
        Some(Ok(_)) => Err(OpenError::UnexpectedNode),
        Some(Err(error)) => Err(open_error(error)),
        None => Err(OpenError::OnOpenEventStreamClosed),
    }
}

pub(crate) fn open_error(error: fidl::Error) -> OpenError {
    match error {
        fidl::Error::ClientChannelClosed { status: Status::PEER_CLOSED, .. } => {
            OpenError::OnOpenEventStreamClosed
        }
        fidl::Error::ClientChannelClosed { status, .. } => OpenError::OpenError(status),
        other => OpenError::OnOpenDecode(other),
    }
}

/// Closes a node, and waits until what was written has reached the server.
///
/// # Errors
/// [`CloseError`].
pub async fn close(node: fio::NodeProxy) -> Result<(), CloseError> {
    closed(node.close().await)
}

pub(crate) fn closed(result: Result<Result<(), i32>, fidl::Error>) -> Result<(), CloseError> {
    result
        .map_err(CloseError::SendCloseRequest)?
        .map_err(|raw| CloseError::CloseError(Status::from_raw(raw)))
}

/// A server end that speaks another protocol than its type says.
pub(crate) fn recast<T, U>(server: ServerEnd<T>) -> ServerEnd<U> {
    ServerEnd::new(server.into_channel())
}

/// Whether the server of `proxy` has gone.
pub fn is_closed(proxy: &impl Proxy) -> bool {
    proxy.is_closed()
}
