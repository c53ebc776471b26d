//! The common configuration structure (virtio 1.2 §4.1.4.3) and the device status behind it (§2.1).

use super::{F_VERSION_1, QueueConfig};

/// Size of the structure, in bytes.
pub(super) const SIZE: u64 = 0x38;

const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DEVICE_FEATURE: usize = 0x04;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const CONFIG_MSIX_VECTOR: u64 = 0x10;
const NUM_QUEUES: usize = 0x12;
const DEVICE_STATUS: u64 = 0x14;
const CONFIG_GENERATION: usize = 0x15;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_MSIX_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_NOTIFY_OFF: usize = 0x1e;
const QUEUE_DESC: u64 = 0x20;
const QUEUE_DRIVER: u64 = 0x28;
const QUEUE_DEVICE: u64 = 0x30;

/// Device status bits that mean something to the device (§2.1); ACKNOWLEDGE, DRIVER and FAILED are notes of the driver's.
pub(super) mod status {
    pub(in super::super) const DRIVER_OK: u8 = 4;
    pub(in super::super) const FEATURES_OK: u8 = 8;
    pub(in super::super) const NEEDS_RESET: u8 = 64;
}

/// What the driver set up of one queue.
#[derive(Debug, Clone, Copy)]
struct Queue {
    max_size: u16,
    config: QueueConfig,
    enabled: bool,
}

/// What a write asks of the rest of the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing.
    None,
    /// Set the vector of configuration changes.
    SetConfigVector(u16),
    /// Set the vector of a queue.
    SetQueueVector(u16, u16),
    /// Hand a queue to the device.
    EnableQueue(u16, QueueConfig),
    /// The driver is ready.
    Ready,
    /// Reset the device.
    Reset,
}

/// What a read needs from the rest of the transport.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outside {
    pub(super) config_vector: u16,
    pub(super) queue_vector: u16,
    pub(super) generation: u8,
    pub(super) needs_reset: bool,
}

/// The registers.
pub(super) struct CommonConfig {
    device_features: u64,
    driver_features: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    status: u8,
    queue_select: u16,
    queues: Vec<Queue>,
}

impl CommonConfig {
    pub(super) fn new(device_features: u64, queue_sizes: &[u16]) -> Self {
        let queue = |max_size: &u16| Queue {
            max_size: *max_size,
            config: fresh(*max_size),
            enabled: false,
        };
        Self {
            device_features: device_features | F_VERSION_1,
            driver_features: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            status: 0,
            queue_select: 0,
            queues: queue_sizes.iter().map(queue).collect(),
        }
    }

    /// Features that both sides accepted.
    pub(super) fn negotiated(&self) -> u64 {
        self.device_features & self.driver_features
    }

    pub(super) fn status(&self) -> u8 {
        self.status
    }

    /// Takes FEATURES_OK back: a device that is gone agrees to nothing (§3.1.1, step 6).
    pub(super) fn refuse_features(&mut self) {
        self.status &= !status::FEATURES_OK;
    }

    pub(super) fn queue_select(&self) -> u16 {
        self.queue_select
    }

    fn selected(&self) -> Option<&Queue> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// Forgets everything the driver set up.
    pub(super) fn reset(&mut self) {
        self.driver_features = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.status = 0;
        self.queue_select = 0;
        for queue in &mut self.queues {
            queue.config = fresh(queue.max_size);
            queue.enabled = false;
        }
    }

    /// Reads any bytes of the structure.
    pub(super) fn read(&self, offset: u64, data: &mut [u8], outside: Outside) {
        let mut image = [0u8; SIZE as usize];
        let mut put = |offset: usize, bytes: &[u8]| {
            image[offset..offset + bytes.len()].copy_from_slice(bytes);
        };
        put(DEVICE_FEATURE_SELECT as usize, &self.device_feature_select.to_le_bytes());
        put(DEVICE_FEATURE, &half(self.device_features, self.device_feature_select).to_le_bytes());
        put(DRIVER_FEATURE_SELECT as usize, &self.driver_feature_select.to_le_bytes());
        put(
            DRIVER_FEATURE as usize,
            &half(self.driver_features, self.driver_feature_select).to_le_bytes(),
        );
        put(CONFIG_MSIX_VECTOR as usize, &outside.config_vector.to_le_bytes());
        put(NUM_QUEUES, &(self.queues.len() as u16).to_le_bytes());
        let needs_reset = if outside.needs_reset { status::NEEDS_RESET } else { 0 };
        put(DEVICE_STATUS as usize, &[self.status | needs_reset]);
        put(CONFIG_GENERATION, &[outside.generation]);
        put(QUEUE_SELECT as usize, &self.queue_select.to_le_bytes());
        if let Some(queue) = self.selected() {
            put(QUEUE_SIZE as usize, &queue.config.size.to_le_bytes());
            put(QUEUE_MSIX_VECTOR as usize, &outside.queue_vector.to_le_bytes());
            put(QUEUE_ENABLE as usize, &u16::from(queue.enabled).to_le_bytes());
            put(QUEUE_NOTIFY_OFF, &self.queue_select.to_le_bytes());
            put(QUEUE_DESC as usize, &queue.config.descriptors.to_le_bytes());
            put(QUEUE_DRIVER as usize, &queue.config.available.to_le_bytes());
            put(QUEUE_DEVICE as usize, &queue.config.used.to_le_bytes());
        }
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = image.get(offset as usize + index).copied().unwrap_or(0);
        }
    }

    /// Writes a field. Widths other than the field's own are dropped (§4.1.3.1), except that 64-bit fields also take
    /// their halves.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        match *data {
            [value] if offset == DEVICE_STATUS => self.write_status(value),
            [a, b] => self.write_u16(offset, u16::from_le_bytes([a, b])),
            [a, b, c, d] => {
                self.write_u32(offset, u32::from_le_bytes([a, b, c, d]));
                Action::None
            }
            [a, b, c, d, e, f, g, h] => {
                self.write_address(offset, u32::from_le_bytes([a, b, c, d]));
                self.write_address(offset + 4, u32::from_le_bytes([e, f, g, h]));
                Action::None
            }
            _ => Action::None,
        }
    }

    fn write_status(&mut self, value: u8) -> Action {
        if value == 0 {
            return Action::Reset;
        }
        // Bits are only ever added (§2.1.1); NEEDS_RESET is the device's.
        let added = value & !self.status & !status::NEEDS_RESET;
        self.status |= added;
        if added & status::FEATURES_OK != 0 {
            let unknown = self.driver_features & !self.device_features;
            if unknown != 0 || self.driver_features & F_VERSION_1 == 0 {
                self.status &= !status::FEATURES_OK;
                return Action::None;
            }
        }
        if added & status::DRIVER_OK != 0 && self.status & status::FEATURES_OK != 0 {
            Action::Ready
        } else {
            Action::None
        }
    }

    fn write_u16(&mut self, offset: u64, value: u16) -> Action {
        let select = self.queue_select;
        match offset {
            CONFIG_MSIX_VECTOR => return Action::SetConfigVector(value),
            QUEUE_MSIX_VECTOR => return Action::SetQueueVector(select, value),
            QUEUE_SELECT => self.queue_select = value,
            _ => {}
        }
        let Some(queue) = self.queues.get_mut(usize::from(select)).filter(|queue| !queue.enabled)
        else {
            return Action::None;
        };
        match offset {
            QUEUE_SIZE => queue.config.size = value,
            QUEUE_ENABLE if value == 1 => {
                queue.enabled = true;
                return Action::EnableQueue(select, queue.config);
            }
            _ => {}
        }
        Action::None
    }

    fn write_u32(&mut self, offset: u64, value: u32) {
        match offset {
            DEVICE_FEATURE_SELECT => self.device_feature_select = value,
            DRIVER_FEATURE_SELECT => self.driver_feature_select = value,
            // Features are settled once FEATURES_OK is set (§3.1.1).
            DRIVER_FEATURE if self.status & status::FEATURES_OK == 0 => {
                let shift = match self.driver_feature_select {
                    0 => 0,
                    1 => 32,
                    _ => return,
                };
                self.driver_features =
                    (self.driver_features & !(0xffff_ffff << shift)) | (u64::from(value) << shift);
            }
            _ => self.write_address(offset, value),
        }
    }

    fn write_address(&mut self, offset: u64, value: u32) {
        let Some(queue) =
            self.queues.get_mut(usize::from(self.queue_select)).filter(|queue| !queue.enabled)
        else {
            return;
        };
        let field = match offset & !7 {
            QUEUE_DESC => &mut queue.config.descriptors,
            QUEUE_DRIVER => &mut queue.config.available,
            QUEUE_DEVICE => &mut queue.config.used,
            _ => return,
        };
        *field = match offset & 7 {
            0 => (*field & !0xffff_ffff) | u64::from(value),
            4 => (*field & 0xffff_ffff) | (u64::from(value) << 32),
            _ => return,
        };
    }

    /// Whether a queue of `config` can be given to a device whose queue `index` may have `memory_size` bytes of
    /// guest-physical addresses: size (§2.7), alignment and range (§2.7.10).
    pub(super) fn is_valid(&self, index: u16, config: &QueueConfig, memory_size: u64) -> bool {
        let max_size = self.queues.get(usize::from(index)).map_or(0, |queue| queue.max_size);
        let size = u64::from(config.size);
        let fits = |address: u64, alignment: u64, len: u64| {
            address.is_multiple_of(alignment)
                && address.checked_add(len).is_some_and(|end| end <= memory_size)
        };
        config.size.is_power_of_two()
            && config.size <= max_size
            && fits(config.descriptors, 16, 16 * size)
            && fits(config.available, 2, 6 + 2 * size)
            && fits(config.used, 4, 6 + 8 * size)
    }
}

fn fresh(size: u16) -> QueueConfig {
    QueueConfig { size, descriptors: 0, available: 0, used: 0 }
}

/// The half of `features` that `select` names; there are 64 of them.
fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}
