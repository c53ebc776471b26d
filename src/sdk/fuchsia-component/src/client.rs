//! Connecting to capabilities: those in this component's namespace, in any directory, and those that children expose.
//!
//! Functions that connect return once the request is on its way. That a capability is not there, or that whoever provides it
//! cannot be started, is told by the connection closing, with an epitaph that says why.

use std::marker::PhantomData;

use anyhow::{Context as _, Error, format_err};
use fidl::endpoints::{DiscoverableProtocolMarker, ProtocolMarker, ServerEnd, create_proxy};
use fidl_fuchsia_component as fcomponent;
use fidl_fuchsia_component_decl as fdecl;
use fidl_fuchsia_io as fio;
use fuchsia_zircon as zx;

use crate::SVC_DIR;
pub use crate::directory::{AsRefDirectory, Directory};
use crate::namespace;

/// How protocols are opened.
const CONNECT: fio::Flags = fio::Flags::PROTOCOL_SERVICE;

/// Connects to a protocol in `/svc`.
///
/// # Errors
/// If there is no `/svc`, or its server has gone.
pub fn connect_to_protocol<P: DiscoverableProtocolMarker>() -> Result<P::Proxy, Error> {
    connect_to_protocol_at::<P>(SVC_DIR)
}

/// As [`connect_to_protocol`], for a thread that may block on its calls.
///
/// # Errors
/// As [`connect_to_protocol`].
pub fn connect_to_protocol_sync<P: DiscoverableProtocolMarker>()
-> Result<P::SynchronousProxy, Error> {
    let (client, server) = zx::Channel::create();
    connect_channel_to_protocol::<P>(server)?;
    Ok(fidl::endpoints::SynchronousProxy::from_channel(client))
}

/// Connects to a protocol in another directory of the namespace than `/svc`.
///
/// # Errors
/// As [`connect_to_protocol`].
pub fn connect_to_protocol_at<P: DiscoverableProtocolMarker>(
    service_prefix: impl AsRef<str>,
) -> Result<P::Proxy, Error> {
    let (proxy, server) = create_proxy::<P>();
    connect_channel_to_protocol_at::<P>(server.into_channel(), service_prefix.as_ref())?;
    Ok(proxy)
}

/// Connects to a protocol at an absolute path of the namespace, under whatever name it has there.
///
/// # Errors
/// As [`connect_to_protocol`].
pub fn connect_to_protocol_at_path<P: ProtocolMarker>(
    protocol_path: impl AsRef<str>,
) -> Result<P::Proxy, Error> {
    let (proxy, server) = create_proxy::<P>();
    connect_channel_to_protocol_at_path(server.into_channel(), protocol_path.as_ref())?;
    Ok(proxy)
}

/// Connects the other end of `server_end` to a protocol in `/svc`.
///
/// # Errors
/// As [`connect_to_protocol`].
pub fn connect_channel_to_protocol<P: DiscoverableProtocolMarker>(
    server_end: zx::Channel,
) -> Result<(), Error> {
    connect_channel_to_protocol_at::<P>(server_end, SVC_DIR)
}

/// Connects the other end of `server_end` to a protocol in a directory of the namespace.
///
/// # Errors
/// As [`connect_to_protocol`].
pub fn connect_channel_to_protocol_at<P: DiscoverableProtocolMarker>(
    server_end: zx::Channel,
    service_directory_path: &str,
) -> Result<(), Error> {
    let path = format!("{}/{}", service_directory_path.trim_end_matches('/'), P::PROTOCOL_NAME);
    connect_channel_to_protocol_at_path(server_end, &path)
}

/// Connects the other end of `server_end` to a protocol at an absolute path of the namespace.
///
/// # Errors
/// As [`connect_to_protocol`].
pub fn connect_channel_to_protocol_at_path(
    server_end: zx::Channel,
    protocol_path: &str,
) -> Result<(), Error> {
    namespace::open(protocol_path, CONNECT, server_end)
        .with_context(|| format!("connecting to {protocol_path}"))
}

/// Connects to a protocol that stands in `directory` itself.
///
/// # Errors
/// If the directory's server has gone.
pub fn connect_to_protocol_at_dir_root<P: DiscoverableProtocolMarker>(
    directory: &impl AsRefDirectory,
) -> Result<P::Proxy, Error> {
    connect_to_named_protocol_at_dir_root::<P>(directory, P::PROTOCOL_NAME)
}

/// As [`connect_to_protocol_at_dir_root`], under another name than the protocol's, which may be a path.
///
/// # Errors
/// As [`connect_to_protocol_at_dir_root`].
pub fn connect_to_named_protocol_at_dir_root<P: ProtocolMarker>(
    directory: &impl AsRefDirectory,
    name: &str,
) -> Result<P::Proxy, Error> {
    let (proxy, server) = create_proxy::<P>();
    connect_channel_at_dir(directory, name, server.into_channel())?;
    Ok(proxy)
}

/// Connects to a protocol in the directory `svc` of `directory`, as in an outgoing directory.
///
/// # Errors
/// As [`connect_to_protocol_at_dir_root`].
pub fn connect_to_protocol_at_dir_svc<P: DiscoverableProtocolMarker>(
    directory: &impl AsRefDirectory,
) -> Result<P::Proxy, Error> {
    let path = format!("{}/{}", SVC_DIR.trim_start_matches('/'), P::PROTOCOL_NAME);
    connect_to_named_protocol_at_dir_root::<P>(directory, &path)
}

/// Connects the other end of `server_end` to a protocol that stands in `directory` itself.
///
/// # Errors
/// As [`connect_to_protocol_at_dir_root`].
pub fn connect_channel_to_protocol_at_dir_root<P: DiscoverableProtocolMarker>(
    directory: &impl AsRefDirectory,
    server_end: ServerEnd<P>,
) -> Result<(), Error> {
    connect_channel_at_dir(directory, P::PROTOCOL_NAME, server_end.into_channel())
}

fn connect_channel_at_dir(
    directory: &impl AsRefDirectory,
    path: &str,
    server_end: zx::Channel,
) -> Result<(), Error> {
    directory
        .as_ref_directory()
        .open(path, CONNECT, server_end)
        .with_context(|| format!("connecting to {path}"))
}

/// A connection to this component's realm, through which it makes and reaches its children.
///
/// # Errors
/// As [`connect_to_protocol`].
pub fn realm() -> Result<fcomponent::RealmProxy, Error> {
    connect_to_protocol::<fcomponent::RealmMarker>()
}

fn child_reference(name: String, collection: Option<String>) -> fdecl::ChildRef {
    fdecl::ChildRef { name, collection }
}

/// Opens the directory of what a child exposes. The child starts when something in it is used.
///
/// # Errors
/// If there is no such child, or its declaration cannot be had.
pub async fn open_childs_exposed_directory(
    child_name: impl Into<String>,
    collection_name: Option<String>,
) -> Result<fio::DirectoryProxy, Error> {
    open_exposed_directory_in(&realm()?, child_name, collection_name).await
}

/// As [`open_childs_exposed_directory`], on a connection to the realm that one has.
///
/// # Errors
/// As [`open_childs_exposed_directory`].
pub async fn open_exposed_directory_in(
    realm: &fcomponent::RealmProxy,
    child_name: impl Into<String>,
    collection_name: Option<String>,
) -> Result<fio::DirectoryProxy, Error> {
    let child = child_reference(child_name.into(), collection_name);
    let (directory, server) = create_proxy::<fio::DirectoryMarker>();
    realm
        .open_exposed_dir(&child, server)
        .await
        .with_context(|| format!("asking for what {} exposes", child.name))?
        .map_err(|error| format_err!("what {} exposes cannot be opened: {error:?}", child.name))?;
    Ok(directory)
}

/// Connects to a protocol that a child exposes, and thereby starts the child.
///
/// # Errors
/// As [`open_childs_exposed_directory`].
pub async fn connect_to_childs_protocol<P: DiscoverableProtocolMarker>(
    child_name: impl Into<String>,
    collection_name: Option<String>,
) -> Result<P::Proxy, Error> {
    let directory = open_childs_exposed_directory(child_name, collection_name).await?;
    connect_to_protocol_at_dir_root::<P>(&directory)
}

/// Makes connections to one protocol.
pub struct ProtocolConnector<P> {
    directory: String,
    protocol: PhantomData<fn() -> P>,
}

/// Makes connections to a protocol in `/svc`.
pub fn new_protocol_connector<P: DiscoverableProtocolMarker>() -> ProtocolConnector<P> {
    ProtocolConnector { directory: SVC_DIR.to_owned(), protocol: PhantomData }
}

impl<P: DiscoverableProtocolMarker> ProtocolConnector<P> {
    /// Connects.
    ///
    /// # Errors
    /// As [`connect_to_protocol`].
    pub fn connect(&self) -> Result<P::Proxy, Error> {
        connect_to_protocol_at::<P>(&self.directory)
    }
}

/// Waits until the server of `proxy` has gone.
///
/// # Errors
/// Those of waiting.
pub async fn on_closed(proxy: &impl fidl::endpoints::Proxy) -> Result<(), zx::Status> {
    proxy.as_channel().on_closed().await.map(drop)
}
