//! The virtio-block device component: a disk for the guest (virtio 1.2 §5.2). What may enter is what answers block
//! requests, the back-ends that keep a disk's contents, and the serving of
//! `fuchsia.virtualization.hardware.VirtioBlock`.

#![forbid(unsafe_code)]

mod backend;
mod component;
mod device;
mod wire;

pub use backend::{
    Backend, BackendError, FileBackend, FileStorage, MemoryBackend, QcowBackend, RemoteBackend,
    Storage, StorageFile, VolatileBackend,
};
pub use component::{MAX_QUEUES, run};
pub use device::{BlockDevice, DiskInfo};
pub use wire::{
    F_BLK_SIZE, F_DISCARD, F_FLUSH, F_MQ, F_RO, F_SEG_MAX, F_WRITE_ZEROES, ID_SIZE,
    MAX_RANGE_SECTORS, MAX_RANGES, RANGE_F_UNMAP, RequestHeader, RequestType, SECTOR_SIZE,
    SectorRange, Status,
};

// On files of the host, which only Linux has.
#[cfg(all(test, target_os = "linux"))]
mod component_test;
#[cfg(test)]
mod device_test;
