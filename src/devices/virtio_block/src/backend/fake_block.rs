//! A block device of the host, for tests: `fuchsia.storage.block` in memory.

use std::collections::HashMap;

use fidl::endpoints::{ClientEnd, RequestStream as _, create_endpoints};
use fidl_fuchsia_storage_block as fblock;
use fuchsia_async as fasync;
use fuchsia_zircon::{self as zx, AsHandleRef as _};
use futures::TryStreamExt as _;

/// What the device is like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FakeBlock {
    pub(crate) block_size: u32,
    pub(crate) max_transfer_size: u32,
    pub(crate) flags: fblock::DeviceFlag,
    /// Answers every request with this.
    pub(crate) fail: zx::Status,
    /// Goes away after so many requests.
    pub(crate) dies_after: usize,
}

/// Elements of the FIFO: their bytes, as the protocol describes them.
type Element = [u8; 64];

fn field<const N: usize>(element: &Element, at: usize) -> [u8; N] {
    element[at..at + N].try_into().unwrap()
}

impl FakeBlock {
    /// Serves a device with these contents from a thread of its own.
    pub(crate) fn serve(self, contents: Vec<u8>) -> ClientEnd<fblock::BlockMarker> {
        let (client, server) = create_endpoints::<fblock::BlockMarker>();
        std::thread::spawn(move || {
            fasync::LocalExecutor::new().run_singlethreaded(async move {
                let mut contents = Some(contents);
                let mut requests = server.into_stream();
                while let Some(request) = requests.try_next().await.unwrap() {
                    match request {
                        fblock::BlockRequest::GetInfo { responder } => {
                            let info = fblock::BlockInfo {
                                block_count: contents.as_ref().map_or(0, Vec::len) as u64
                                    / u64::from(self.block_size.max(1)),
                                block_size: self.block_size,
                                max_transfer_size: self.max_transfer_size,
                                flags: self.flags,
                            };
                            responder.send(Ok(&info)).unwrap();
                        }
                        fblock::BlockRequest::OpenSession { session, .. } => {
                            let contents = contents.take().expect("one session");
                            fasync::Task::local(self.session(session.into_stream(), contents))
                                .detach();
                        }
                        other => panic!("{other:?}"),
                    }
                }
                // The session's client may outlive the device's.
                futures::future::pending::<()>().await;
            });
        });
        client
    }

    async fn session(self, mut requests: fblock::SessionRequestStream, contents: Vec<u8>) {
        let (ours, theirs) = zx::Fifo::<Element, Element>::create(16).unwrap();
        let (vmos, incoming) = std::sync::mpsc::channel();
        std::thread::spawn(move || self.work(&ours, contents, &incoming));
        let mut theirs = Some(theirs);
        let mut next = 7;
        while let Ok(Some(request)) = requests.try_next().await {
            match request {
                fblock::SessionRequest::GetFifo { responder } => {
                    responder.send(Ok(theirs.take().unwrap().downcast())).unwrap();
                }
                fblock::SessionRequest::AttachVmo { vmo, responder } => {
                    vmos.send((next, vmo)).unwrap();
                    responder.send(Ok(&fblock::VmoId { id: next })).unwrap();
                    next += 1;
                }
                other => panic!("{other:?}"),
            }
        }
        drop(requests.control_handle());
    }

    fn work(
        self,
        fifo: &zx::Fifo<Element, Element>,
        mut contents: Vec<u8>,
        incoming: &std::sync::mpsc::Receiver<(u16, zx::Vmo)>,
    ) {
        let mut vmos = HashMap::new();
        for _ in 0..self.dies_after {
            let request = loop {
                match fifo.read_one() {
                    Ok(request) => break request,
                    Err(zx::Status::SHOULD_WAIT) => {
                        let signals =
                            zx::Signals::OBJECT_READABLE | zx::Signals::OBJECT_PEER_CLOSED;
                        fifo.wait_handle(signals, zx::Time::INFINITE).unwrap();
                    }
                    Err(_) => return,
                }
            };
            vmos.extend(incoming.try_iter());
            let status = match self.fail {
                zx::Status::OK => self.act(&request, &mut contents, &vmos),
                fail => fail,
            };
            let mut response = [0; 64];
            response[..4].copy_from_slice(&status.into_raw().to_le_bytes());
            response[4..8].copy_from_slice(&field::<4>(&request, 8));
            response[12..16].copy_from_slice(&1u32.to_le_bytes());
            if fifo.write_one(&response).is_err() {
                return;
            }
        }
    }

    fn act(
        self,
        request: &Element,
        contents: &mut [u8],
        vmos: &HashMap<u16, zx::Vmo>,
    ) -> zx::Status {
        let block = u64::from(self.block_size);
        let bytes = u64::from(u32::from_le_bytes(field(request, 16))) * block;
        let start = u64::from_le_bytes(field(request, 32)) * block;
        let Some(range) = contents.get_mut(start as usize..(start + bytes) as usize) else {
            return zx::Status::OUT_OF_RANGE;
        };
        let vmo = || vmos.get(&u16::from_le_bytes(field(request, 14))).ok_or(zx::Status::IO);
        let at = u64::from_le_bytes(field(request, 24)) * block;
        let is_too_long = bytes > u64::from(self.max_transfer_size);
        let result = match fblock::BlockOpcode::from_primitive(request[0]) {
            Some(fblock::BlockOpcode::Read | fblock::BlockOpcode::Write) if is_too_long => {
                Err(zx::Status::OUT_OF_RANGE)
            }
            Some(fblock::BlockOpcode::Read) => vmo().and_then(|vmo| vmo.write(range, at)),
            Some(fblock::BlockOpcode::Write) => vmo().and_then(|vmo| vmo.read(range, at)),
            Some(fblock::BlockOpcode::Trim) => {
                range.fill(0xdd);
                Ok(())
            }
            Some(fblock::BlockOpcode::Flush) => Ok(()),
            _ => Err(zx::Status::NOT_SUPPORTED),
        };
        assert_eq!(request[52], 0xff, "the key slot says that nothing is encrypted");
        result.err().unwrap_or(zx::Status::OK)
    }
}
