//! Feature bits and numbers that all virtio devices share.

bitflags::bitflags! {
    /// The low 32 feature bits: what `Ready` carries. Bits below 24 mean something else for every device type.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Features: u32 {
        /// `VIRTIO_F_INDIRECT_DESC`, virtio 1.2 §2.7.5.3.
        const INDIRECT_DESC = 1 << 28;
        /// `VIRTIO_F_EVENT_IDX`, virtio 1.2 §2.7.7 and §2.7.10.
        const EVENT_IDX = 1 << 29;
        /// All bits are kept: those of the device types too.
        const _ = !0;
    }
}

/// Features of the ring that every device on this crate's queues can offer.
pub const RING_FEATURES: Features = Features::INDIRECT_DESC.union(Features::EVENT_IDX);
