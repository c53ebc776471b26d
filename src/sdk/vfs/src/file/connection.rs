//! Connections to files.

use std::ops::ControlFlow;
use std::sync::Arc;

use fidl::endpoints::{RequestStream as _, ServerEnd};
use fidl_fuchsia_io as fio;
use fuchsia_zircon::{self as zx, Status};
use futures::StreamExt;

use super::File;
use crate::entry::{OpenRequest, described_attributes};
use crate::execution_scope::ExecutionScope;
use crate::node::{Connection, Next, serve_node};
use crate::open::Describe;

pub(super) fn start(file: Arc<dyn File>, request: OpenRequest, rights: fio::Operations) {
    let OpenRequest { scope, options, channel, .. } = request;
    let connection = FileConnection { file, scope, rights, append: options.append, offset: 0 };
    connection.begin(channel, options.describe);
}

struct FileConnection {
    file: Arc<dyn File>,
    scope: ExecutionScope,
    rights: fio::Operations,
    append: bool,
    /// Where `Read` and `Write` go on.
    offset: u64,
}

impl Connection for FileConnection {
    const PROTOCOL: &'static str = "fuchsia.io/File";

    fn rights(&self) -> fio::Operations {
        self.rights
    }

    fn flags(&self) -> fio::Flags {
        let rights = fio::Flags::from_bits_retain(self.rights.bits());
        let append = if self.append { fio::Flags::FILE_APPEND } else { fio::Flags::empty() };
        fio::Flags::PROTOCOL_FILE | rights | append
    }

    fn set_append(&mut self, append: bool) -> Result<(), Status> {
        self.append = append;
        Ok(())
    }

    fn attributes(&self) -> Result<fio::NodeAttributes2, Status> {
        self.file.attributes()
    }

    fn update_attributes(&self, attributes: &fio::MutableNodeAttributes) -> Result<(), Status> {
        self.file.update_attributes(attributes)
    }

    fn sync(&self) -> Result<(), Status> {
        self.file.sync()
    }

    fn clone_connection(&self, rights: fio::Operations, channel: zx::Channel, describe: Describe) {
        let (file, scope) = (self.file.clone(), self.scope.clone());
        // Its offset is its own.
        FileConnection { file, scope, rights, append: self.append, offset: 0 }
            .begin(channel, describe);
    }
}

impl FileConnection {
    fn begin(mut self, channel: zx::Channel, describe: Describe) {
        let mut stream = ServerEnd::<fio::FileMarker>::new(channel).into_stream();
        if self.describe(&stream, describe).is_err() {
            return;
        }
        let scope = self.scope.clone();
        scope.spawn(async move {
            // A request that cannot be decoded ends the connection, as does the client.
            while let Some(Ok(request)) = stream.next().await {
                if !matches!(self.handle(request), Ok(ControlFlow::Continue(()))) {
                    break;
                }
            }
        });
    }

    fn describe(
        &self,
        stream: &fio::FileRequestStream,
        describe: Describe,
    ) -> Result<(), fidl::Error> {
        match describe {
            Describe::Nothing => Ok(()),
            Describe::OnOpen => {
                let file = fio::FileObject { event: None, stream: None };
                let info = fio::NodeInfoDeprecated::File(file);
                stream.control_handle().send_on_open(Status::OK.into_raw(), Some(Box::new(info)))
            }
            Describe::OnRepresentation(query) => {
                let attributes = described_attributes(query, || self.file.attributes());
                let info = fio::FileInfo { attributes, ..self.info() };
                stream.control_handle().send_on_representation(fio::Representation::File(info))
            }
        }
    }

    fn info(&self) -> fio::FileInfo {
        fio::FileInfo { is_append: Some(self.append), ..Default::default() }
    }

    fn handle(&mut self, request: fio::FileRequest) -> Next {
        serve_node!(request, FileRequest, self, {
            fio::FileRequest::Read { count, responder } => match self.read(count) {
                Ok(data) => responder.send(Ok(&data))?,
                Err(status) => responder.send(Err(status.into_raw()))?,
            },
            fio::FileRequest::ReadAt { count, offset, responder } => {
                match self.read_at(count, offset) {
                    Ok(data) => responder.send(Ok(&data))?,
                    Err(status) => responder.send(Err(status.into_raw()))?,
                }
            }
            fio::FileRequest::Write { data, responder } => {
                responder.send(self.write(&data).map_err(Status::into_raw))?;
            }
            fio::FileRequest::WriteAt { data, offset, responder } => {
                responder.send(self.write_at(&data, offset).map_err(Status::into_raw))?;
            }
            fio::FileRequest::Seek { origin, offset, responder } => {
                responder.send(self.seek(origin, offset).map_err(Status::into_raw))?;
            }
            fio::FileRequest::Resize { length, responder } => {
                responder.send(self.resize(length).map_err(Status::into_raw))?;
            }
            fio::FileRequest::GetBackingMemory { flags, responder } => {
                responder.send(self.backing_memory(flags).map_err(Status::into_raw))?;
            }
            fio::FileRequest::Describe { responder } => responder.send(self.info())?,
            fio::FileRequest::Allocate { responder, .. } => {
                responder.send(Err(Status::NOT_SUPPORTED.into_raw()))?;
            }
            fio::FileRequest::LinkInto { responder, .. } => {
                responder.send(Err(Status::NOT_SUPPORTED.into_raw()))?;
            }
            fio::FileRequest::AdvisoryLock { request, responder } => {
                responder.send(self.advisory_lock(&request).map_err(Status::into_raw))?;
            }
        })
    }

    fn need(&self, rights: fio::Operations) -> Result<(), Status> {
        // The status that fuchsia.io has for a connection without the right.
        if self.rights.contains(rights) { Ok(()) } else { Err(Status::BAD_HANDLE) }
    }

    fn read_at(&self, count: u64, offset: u64) -> Result<Vec<u8>, Status> {
        self.need(fio::Operations::READ_BYTES)?;
        if count > fio::MAX_TRANSFER_SIZE {
            return Err(Status::OUT_OF_RANGE);
        }
        let mut data = vec![0; usize::try_from(count).map_err(|_| Status::OUT_OF_RANGE)?];
        let mut length = 0;
        // Only at the end may there be fewer than asked for.
        while length < data.len() {
            let position = offset.checked_add(length as u64).ok_or(Status::OUT_OF_RANGE)?;
            match self.file.read_at(position, &mut data[length..])? {
                0 => break,
                more => length += more,
            }
        }
        data.truncate(length);
        Ok(data)
    }

    fn read(&mut self, count: u64) -> Result<Vec<u8>, Status> {
        let data = self.read_at(count, self.offset)?;
        self.offset = self.offset.saturating_add(data.len() as u64);
        Ok(data)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> Result<u64, Status> {
        self.need(fio::Operations::WRITE_BYTES)?;
        if data.is_empty() {
            return Ok(0);
        }
        Ok(self.file.write_at(offset, data)? as u64)
    }

    fn write(&mut self, data: &[u8]) -> Result<u64, Status> {
        if self.append {
            self.need(fio::Operations::WRITE_BYTES)?;
            let (written, end) = self.file.append(data)?;
            self.offset = end;
            return Ok(written as u64);
        }
        let written = self.write_at(data, self.offset)?;
        self.offset = self.offset.saturating_add(written);
        Ok(written)
    }

    fn seek(&mut self, origin: fio::SeekOrigin, offset: i64) -> Result<u64, Status> {
        let base = match origin {
            fio::SeekOrigin::Start => 0,
            fio::SeekOrigin::Current => self.offset,
            fio::SeekOrigin::End => self.file.size()?,
        };
        self.offset = base.checked_add_signed(offset).ok_or(Status::OUT_OF_RANGE)?;
        Ok(self.offset)
    }

    fn resize(&self, length: u64) -> Result<(), Status> {
        self.need(fio::Operations::WRITE_BYTES)?;
        self.file.resize(length)
    }

    fn advisory_lock(&self, request: &fio::AdvisoryLockRequest) -> Result<(), Status> {
        let kind = request.type_.ok_or(Status::INVALID_ARGS)?;
        match kind {
            fio::AdvisoryLockType::Read => self.need(fio::Operations::READ_BYTES)?,
            fio::AdvisoryLockType::Write => self.need(fio::Operations::WRITE_BYTES)?,
            fio::AdvisoryLockType::Unlock => {}
        }
        // Parts of files are not locked here, and a server that waits for one client would keep the others waiting.
        if request.range.is_some() || request.wait == Some(true) {
            return Err(Status::NOT_SUPPORTED);
        }
        self.file.advisory_lock(kind)
    }

    fn backing_memory(&self, flags: fio::VmoFlags) -> Result<zx::Vmo, Status> {
        use fio::VmoFlags;
        if flags.contains(VmoFlags::PRIVATE_CLONE | VmoFlags::SHARED_BUFFER) {
            return Err(Status::INVALID_ARGS);
        }
        let private = flags.contains(VmoFlags::PRIVATE_CLONE);
        for (flag, right, stays_with_the_client) in [
            (VmoFlags::READ, fio::Operations::READ_BYTES, false),
            // Writes to a private clone do not reach the file.
            (VmoFlags::WRITE, fio::Operations::WRITE_BYTES, private),
            (VmoFlags::EXECUTE, fio::Operations::EXECUTE, false),
        ] {
            if flags.contains(flag) && !stays_with_the_client && !self.rights.contains(right) {
                return Err(Status::ACCESS_DENIED);
            }
        }
        self.file.backing_memory(flags)
    }
}
