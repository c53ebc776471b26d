//! Address-decoded buses: which device answers a trapped port or memory access.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// A device behind trapped addresses.
///
/// Accesses come from vCPU threads, several at once. An access a device does not understand reads as all ones and is
/// dropped when written, as on a PC: whatever a guest does here must not stop the machine.
pub trait BusDevice: Send + Sync {
    /// Reads `data.len()` (1, 2, 4 or 8) bytes at `offset` from the start of the device's range.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Writes `data` (1, 2, 4 or 8 bytes) at `offset` from the start of the device's range.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Two devices claim the same addresses.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("Bus range {range:#x?} is empty or overlaps another device")]
pub struct BusConflict {
    /// The range that could not be added.
    pub range: Range<u64>,
}

/// A set of devices at disjoint address ranges.
#[derive(Default)]
pub struct Bus {
    devices: BTreeMap<u64, (u64, Arc<dyn BusDevice>)>,
}

impl Bus {
    /// Adds `device` at `range`.
    ///
    /// # Errors
    ///
    /// [`BusConflict`] if the range is empty or taken.
    pub fn insert(
        &mut self,
        range: Range<u64>,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), BusConflict> {
        let overlaps = self
            .devices
            .range(..range.end)
            .next_back()
            .is_some_and(|(_, (end, _))| *end > range.start);
        if range.is_empty() || overlaps {
            return Err(BusConflict { range });
        }
        self.devices.insert(range.start, (range.end, device));
        Ok(())
    }

    /// The occupied ranges, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.devices.iter().map(|(start, (end, _))| *start..*end)
    }

    fn find(&self, addr: u64, len: usize) -> Option<(u64, &dyn BusDevice)> {
        let (start, (end, device)) = self.devices.range(..=addr).next_back()?;
        let last = addr.checked_add(len as u64)?;
        (last <= *end).then(|| (addr - start, device.as_ref()))
    }

    /// Reads `data.len()` bytes at `addr`; all ones where no device answers.
    pub fn read(&self, addr: u64, data: &mut [u8]) {
        match self.find(addr, data.len()) {
            Some((offset, device)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes `data` at `addr`; dropped where no device answers.
    pub fn write(&self, addr: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(addr, data.len()) {
            device.write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo;

    impl BusDevice for Echo {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, _offset: u64, _data: &[u8]) {}
    }

    #[test]
    fn accesses_reach_the_device_that_holds_them_whole() {
        let mut bus = Bus::default();
        bus.insert(0x10..0x20, Arc::new(Echo)).unwrap();
        let mut data = [0; 2];
        bus.read(0x12, &mut data);
        assert_eq!(data, [2, 2]);
        bus.read(0x1f, &mut data);
        assert_eq!(data, [0xff, 0xff]);
        bus.read(u64::MAX, &mut data);
        assert_eq!(data, [0xff, 0xff]);
    }

    #[test]
    fn overlaps_are_refused() {
        let mut bus = Bus::default();
        bus.insert(0x10..0x20, Arc::new(Echo)).unwrap();
        assert!(bus.insert(0x1f..0x21, Arc::new(Echo)).is_err());
        assert!(bus.insert(0x0..0x11, Arc::new(Echo)).is_err());
        assert!(bus.insert(0x0..0x40, Arc::new(Echo)).is_err());
        assert!(bus.insert(0x20..0x20, Arc::new(Echo)).is_err());
        bus.insert(0x20..0x30, Arc::new(Echo)).unwrap();
        assert_eq!(bus.ranges().count(), 2);
    }
}
