//! Connections to directories.

use std::ops::ControlFlow;
use std::sync::Arc;

use fidl::endpoints::{RequestStream as _, ServerEnd};
use fidl_fuchsia_io as fio;
use fuchsia_zircon::{self as zx, AsHandleRef, HandleBased, Status};
use futures::StreamExt;

use super::Directory;
use super::dirents::Listing;
use crate::entry::{OpenRequest, described_attributes, refuse};
use crate::execution_scope::ExecutionScope;
use crate::node::{Connection, Next, serve_node};
use crate::open::{Describe, OpenOptions};
use crate::path::{Path, validate_name};

/// Serves `directory` to the other end of `server`, with these rights as far as the directory has them.
pub fn serve(
    directory: Arc<dyn Directory>,
    scope: &ExecutionScope,
    rights: fio::Operations,
    server: ServerEnd<fio::DirectoryMarker>,
) {
    let rights = rights & directory.abilities();
    begin(directory, scope, rights, server.into_channel(), Describe::Nothing);
}

pub(super) fn start(directory: Arc<dyn Directory>, request: OpenRequest, rights: fio::Operations) {
    let OpenRequest { scope, options, channel, .. } = request;
    begin(directory, &scope, rights, channel, options.describe);
}

fn begin(
    directory: Arc<dyn Directory>,
    scope: &ExecutionScope,
    rights: fio::Operations,
    channel: zx::Channel,
    describe: Describe,
) {
    let server = ServerEnd::<fio::DirectoryMarker>::new(channel);
    let mut stream = server.into_stream();
    if self::describe(&stream, &*directory, describe).is_err() {
        return;
    }
    let mut connection =
        DirectoryConnection { directory, scope: scope.clone(), rights, listing: None, token: None };
    scope.spawn(async move {
        // A request that cannot be decoded ends the connection, as does the client.
        while let Some(Ok(request)) = stream.next().await {
            if !matches!(connection.handle(request), Ok(ControlFlow::Continue(()))) {
                break;
            }
        }
    });
}

fn describe(
    stream: &fio::DirectoryRequestStream,
    directory: &dyn Directory,
    describe: Describe,
) -> Result<(), fidl::Error> {
    match describe {
        Describe::Nothing => Ok(()),
        Describe::OnOpen => {
            let info = fio::NodeInfoDeprecated::Directory(fio::DirectoryObject {});
            stream.control_handle().send_on_open(Status::OK.into_raw(), Some(Box::new(info)))
        }
        Describe::OnRepresentation(query) => {
            let attributes = described_attributes(query, || directory.attributes());
            let info = fio::DirectoryInfo { attributes, ..Default::default() };
            let representation = fio::Representation::Directory(info);
            stream.control_handle().send_on_representation(representation)
        }
    }
}

struct DirectoryConnection {
    directory: Arc<dyn Directory>,
    scope: ExecutionScope,
    rights: fio::Operations,
    /// While the client reads the directory.
    listing: Option<Listing>,
    /// By which another connection names this one.
    token: Option<zx::Event>,
}

impl Drop for DirectoryConnection {
    fn drop(&mut self) {
        if let Some(token) = &self.token
            && let Ok(koid) = token.get_koid()
        {
            self.scope.forget_token(koid);
        }
    }
}

impl Connection for DirectoryConnection {
    const PROTOCOL: &'static str = "fuchsia.io/Directory";

    fn rights(&self) -> fio::Operations {
        self.rights
    }

    fn flags(&self) -> fio::Flags {
        fio::Flags::PROTOCOL_DIRECTORY | fio::Flags::from_bits_retain(self.rights.bits())
    }

    fn attributes(&self) -> Result<fio::NodeAttributes2, Status> {
        self.directory.attributes()
    }

    fn update_attributes(&self, attributes: &fio::MutableNodeAttributes) -> Result<(), Status> {
        self.directory.update_attributes(attributes)
    }

    fn sync(&self) -> Result<(), Status> {
        self.directory.sync()
    }

    fn clone_connection(&self, rights: fio::Operations, channel: zx::Channel, describe: Describe) {
        begin(self.directory.clone(), &self.scope, rights, channel, describe);
    }
}

impl DirectoryConnection {
    fn handle(&mut self, request: fio::DirectoryRequest) -> Next {
        serve_node!(request, DirectoryRequest, self, {
            fio::DirectoryRequest::Open { path, flags, options, object, control_handle: _ } => {
                self.open(&path, flags, options, object);
            }
            fio::DirectoryRequest::DeprecatedOpen { flags, mode: _, path, object, control_handle: _ } => {
                self.deprecated_open(&path, flags, object.into_channel());
            }
            fio::DirectoryRequest::ReadDirents { max_bytes, responder } => {
                match self.read_dirents(max_bytes) {
                    Ok(dirents) => responder.send(Status::OK.into_raw(), &dirents)?,
                    Err(status) => responder.send(status.into_raw(), &[])?,
                }
            }
            fio::DirectoryRequest::Rewind { responder } => {
                self.listing = None;
                responder.send(Status::OK.into_raw())?;
            }
            fio::DirectoryRequest::GetToken { responder } => match self.token() {
                Ok(token) => responder.send(Status::OK.into_raw(), Some(token))?,
                Err(status) => responder.send(status.into_raw(), None)?,
            },
            fio::DirectoryRequest::Link { src: _, dst_parent_token: _, dst: _, responder } => {
                responder.send(Status::NOT_SUPPORTED.into_raw())?;
            }
            fio::DirectoryRequest::Unlink { name, options, responder } => {
                responder.send(self.unlink(&name, &options).map_err(Status::into_raw))?;
            }
            fio::DirectoryRequest::Rename { src, dst_parent_token, dst, responder } => {
                let result = self.rename(&src, &dst_parent_token, &dst);
                responder.send(result.map_err(Status::into_raw))?;
            }
            fio::DirectoryRequest::CreateSymlink { responder, .. } => {
                responder.send(Err(Status::NOT_SUPPORTED.into_raw()))?;
            }
            fio::DirectoryRequest::Watch { mask, options, watcher, responder } => {
                let result = self.watch(mask, options, watcher.into_channel());
                responder.send(Status::from_result(result).into_raw())?;
            }
            fio::DirectoryRequest::AdvisoryLock { request: _, responder } => {
                responder.send(Err(Status::NOT_SUPPORTED.into_raw()))?;
            }
        })
    }

    fn open(&self, path: &str, flags: fio::Flags, options: fio::Options, object: zx::Channel) {
        let describe = if flags.contains(fio::Flags::FLAG_SEND_REPRESENTATION) {
            Describe::OnRepresentation(fio::NodeAttributesQuery::empty())
        } else {
            Describe::Nothing
        };
        let request = OpenOptions::from_flags(flags, options, self.rights)
            .and_then(|options| self.request(path, options));
        match request {
            Ok(request) => super::open(self.directory.clone(), request.on(object)),
            Err(status) => refuse(object, describe, status),
        }
    }

    fn deprecated_open(&self, path: &str, flags: fio::OpenFlags, object: zx::Channel) {
        let describe = if flags.contains(fio::OpenFlags::DESCRIBE) {
            Describe::OnOpen
        } else {
            Describe::Nothing
        };
        let request = OpenOptions::from_deprecated_flags(flags, self.rights)
            .and_then(|options| self.request(path, options));
        match request {
            Ok(request) => super::open(self.directory.clone(), request.on(object)),
            Err(status) => refuse(object, describe, status),
        }
    }

    fn request(&self, path: &str, options: OpenOptions) -> Result<Unconnected<'_>, Status> {
        let path = Path::validate_and_split(path)?;
        Ok(Unconnected { connection: self, path, options })
    }

    fn read_dirents(&mut self, max_bytes: u64) -> Result<Vec<u8>, Status> {
        if max_bytes > fio::MAX_BUF {
            return Err(Status::OUT_OF_RANGE);
        }
        let listing = match &mut self.listing {
            Some(listing) => listing,
            None => self.listing.insert(Listing::new(self.directory.list()?)),
        };
        listing.read(max_bytes)
    }

    fn token(&mut self) -> Result<zx::Handle, Status> {
        if !self.rights.contains(fio::Operations::MODIFY_DIRECTORY) {
            return Err(Status::BAD_HANDLE);
        }
        let token = match &self.token {
            Some(token) => token,
            None => {
                let token = zx::Event::create();
                self.scope.keep_token(token.get_koid()?, self.directory.clone());
                self.token.insert(token)
            }
        };
        Ok(token.duplicate_handle(zx::Rights::SAME_RIGHTS)?.into_handle())
    }

    fn check_modify(&self) -> Result<(), Status> {
        let needed = fio::Operations::ENUMERATE | fio::Operations::MODIFY_DIRECTORY;
        if self.rights.contains(needed) { Ok(()) } else { Err(Status::ACCESS_DENIED) }
    }

    fn unlink(&self, name: &str, options: &fio::UnlinkOptions) -> Result<(), Status> {
        self.check_modify()?;
        validate_name(name)?;
        let flags = options.flags.unwrap_or(fio::UnlinkFlags::empty());
        let must_be_directory = flags.contains(fio::UnlinkFlags::MUST_BE_DIRECTORY);
        self.directory.unlink(name, must_be_directory)?;
        if let Some(watchers) = self.directory.watchers() {
            watchers.removed(name);
        }
        Ok(())
    }

    fn rename(&self, from: &str, token: &zx::Event, to: &str) -> Result<(), Status> {
        self.check_modify()?;
        validate_name(from)?;
        validate_name(to)?;
        // Only connections that may modify their directory give out a token.
        let target = self.scope.directory_of(token.get_koid()?).ok_or(Status::NOT_FOUND)?;
        self.directory.rename(from, &target, to)?;
        if let Some(watchers) = self.directory.watchers() {
            watchers.removed(from);
        }
        if let Some(watchers) = target.watchers() {
            watchers.added(to);
        }
        Ok(())
    }

    fn watch(
        &self,
        mask: fio::WatchMask,
        options: u32,
        channel: zx::Channel,
    ) -> Result<(), Status> {
        if options != 0 || mask.is_empty() {
            return Err(Status::INVALID_ARGS);
        }
        let watchers = self.directory.watchers().ok_or(Status::NOT_SUPPORTED)?;
        let entries = self.directory.list()?;
        watchers.add(mask, channel, entries.iter().map(|(name, _)| name.as_str()))
    }
}

/// An open request that has been checked and lacks only its channel.
struct Unconnected<'a> {
    connection: &'a DirectoryConnection,
    path: Path,
    options: OpenOptions,
}

impl Unconnected<'_> {
    fn on(self, channel: zx::Channel) -> OpenRequest {
        let DirectoryConnection { scope, rights, .. } = self.connection;
        OpenRequest::new(scope.clone(), self.path, self.options, *rights, channel)
    }
}
