//! A device's own configuration space (virtio 1.2 §2.5): bytes, which of them the driver may write, and a generation.

/// Device configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceConfig {
    bytes: Vec<u8>,
    writable: Vec<u8>,
    generation: u8,
}

impl DeviceConfig {
    /// Configuration of `bytes` that the driver only reads.
    pub fn read_only(bytes: Vec<u8>) -> Self {
        let writable = vec![0; bytes.len()];
        Self { bytes, writable, generation: 0 }
    }

    /// Lets the driver write `len` bytes from `offset`.
    #[must_use]
    pub fn writable(mut self, offset: usize, len: usize) -> Self {
        for mask in self.writable.iter_mut().skip(offset).take(len) {
            *mask = 0xff;
        }
        self
    }

    /// Changes every time the device changes something (§2.5.2).
    pub fn generation(&self) -> u8 {
        self.generation
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The driver reads; beyond the end are zeros.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte =
                offset.checked_add(index).and_then(|at| self.bytes.get(at)).copied().unwrap_or(0);
        }
    }

    /// The driver writes; what it may not write stays.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (index, value) in data.iter().enumerate() {
            let Some(at) = offset.checked_add(index) else { return };
            if let (Some(byte), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *byte = (*byte & !mask) | (value & mask);
            }
        }
    }

    /// A little-endian `u32` at `offset`, 0 beyond the end.
    pub fn u32_at(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Sets the first bytes, before the driver has seen any.
    pub fn initialize(&mut self, data: &[u8]) {
        for (byte, value) in self.bytes.iter_mut().zip(data) {
            *byte = *value;
        }
    }

    /// The device changes `data.len()` bytes at `offset`.
    pub fn update(&mut self, offset: usize, data: &[u8]) {
        for (byte, value) in self.bytes.iter_mut().skip(offset).zip(data) {
            *byte = *value;
        }
        self.generation = self.generation.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_writable_bytes_change() {
        let mut config = DeviceConfig::read_only(vec![1, 2, 3, 4, 5, 6, 7, 8]).writable(4, 4);
        config.write(2, &[0xff; 8]);
        let mut data = [0; 10];
        config.read(0, &mut data);
        assert_eq!(data, [1, 2, 3, 4, 0xff, 0xff, 0xff, 0xff, 0, 0]);
        config.write(usize::MAX, &[1, 2]);
        config.read(usize::MAX, &mut data);
    }

    #[test]
    fn updates_change_the_generation() {
        let mut config = DeviceConfig::read_only(vec![0; 8]);
        config.update(4, &7u32.to_le_bytes());
        assert_eq!((config.u32_at(4), config.generation()), (7, 1));
        for _ in 0..255 {
            config.update(100, &[1]);
        }
        assert_eq!(config.generation(), 0);
    }
}
