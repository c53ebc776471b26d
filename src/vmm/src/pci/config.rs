//! Configuration space of one function: a 256-byte type 0 header with capabilities, and which of its bits the guest
//! may write (PCI 3.0 §6).

use super::irq;

/// Size of conventional configuration space, in bytes.
pub(super) const SIZE: usize = 256;
/// First byte after the type 0 header, where capabilities start.
const FIRST_CAPABILITY: u8 = 0x40;

const VENDOR_ID: usize = 0x00;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION_AND_CLASS: usize = 0x08;
const BAR_0: usize = 0x10;
const SUBSYSTEM_VENDOR_ID: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const INTERRUPT_PIN: usize = 0x3d;

/// Memory space, bus master, INTx disable.
const COMMAND_WRITABLE: u16 = COMMAND_MEMORY | (1 << 2) | COMMAND_INTX_DISABLE;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
const STATUS_INTERRUPT: u8 = 1 << 3;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const PIN_INTA: u8 = 1;
/// A 64-bit memory base address register (PCI 3.0 §6.2.5.1).
const BAR_64_BIT: u32 = 0b100;

/// Who a function is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
    /// Class code, subclass and programming interface in the upper 24 bits, revision in the lower 8.
    pub class_and_revision: u32,
}

/// A memory base address register: where it was placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// Guest-physical address, a multiple of the size.
    pub address: u64,
    /// Size in bytes, a power of two of at least a page.
    pub size: u64,
}

/// A function's configuration space.
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    bars: Vec<Bar>,
    last_capability: Option<u8>,
    next_capability: u8,
}

impl ConfigSpace {
    /// The header of `identity` with 64-bit memory `bars` (at most three), enabled. With a `slot` the function has an
    /// interrupt pin.
    pub fn new(identity: Identity, bars: &[Bar], slot: Option<u8>) -> Self {
        let mut space = Self {
            bytes: [0; SIZE],
            writable: [0; SIZE],
            bars: bars.iter().copied().take(3).collect(),
            last_capability: None,
            next_capability: FIRST_CAPABILITY,
        };
        space.put(VENDOR_ID, &identity.vendor.to_le_bytes());
        space.put(VENDOR_ID + 2, &identity.device.to_le_bytes());
        space.put(REVISION_AND_CLASS, &identity.class_and_revision.to_le_bytes());
        space.put(SUBSYSTEM_VENDOR_ID, &identity.subsystem_vendor.to_le_bytes());
        space.put(SUBSYSTEM_VENDOR_ID + 2, &identity.subsystem.to_le_bytes());
        space.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        if !bars.is_empty() {
            // Firmware leaves devices enabled whose addresses it assigned.
            space.put(COMMAND, &COMMAND_MEMORY.to_le_bytes());
        }
        for index in 0..space.bars.len() {
            space.restore_bar(index);
            let mask = !(space.bars[index].size - 1);
            space.allow(BAR_0 + index * 8, &mask.to_le_bytes());
        }
        if let Some(slot) = slot {
            space.put(INTERRUPT_LINE, &[irq(slot) as u8, PIN_INTA]);
            space.allow(INTERRUPT_LINE, &[0xff]);
            debug_assert_eq!(INTERRUPT_LINE + 1, INTERRUPT_PIN);
        }
        space
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        if let Some(slot) = self.bytes.get_mut(offset..offset + bytes.len()) {
            slot.copy_from_slice(bytes);
        }
    }

    fn allow(&mut self, offset: usize, mask: &[u8]) {
        if let Some(slot) = self.writable.get_mut(offset..offset + mask.len()) {
            slot.copy_from_slice(mask);
        }
    }

    fn restore_bar(&mut self, index: usize) {
        if let Some(bar) = self.bars.get(index) {
            let value = bar.address | u64::from(BAR_64_BIT);
            self.put(BAR_0 + index * 8, &value.to_le_bytes());
        }
    }

    /// Appends a capability: its ID, then (after the link this fills in) `body`, whose bits in `writable` the guest may
    /// change. Returns its offset, or nothing if there is no room.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Option<u8> {
        let offset = self.next_capability;
        let len = (body.len() + 2).next_multiple_of(4);
        let end = usize::from(offset) + len;
        if end > SIZE {
            return None;
        }
        let at = usize::from(offset);
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.allow(at + 2, writable);
        let link = self.last_capability.map_or(CAPABILITIES, |last| usize::from(last) + 1);
        self.put(link, &[offset]);
        self.bytes[STATUS] |= STATUS_CAPABILITIES;
        self.last_capability = Some(offset);
        // Full space ends at 256, which the next capability cannot start at anyway.
        self.next_capability = u8::try_from(end).unwrap_or(u8::MAX);
        Some(offset)
    }

    /// Reads `data.len()` bytes; registers that do not exist read 0.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes.get(usize::from(offset) + index).copied().unwrap_or(0);
        }
    }

    /// Writes the writable bits of `data`. A base address register takes the all-ones of a size probe; anything else
    /// puts it back where it is, because nothing moves here.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        for (index, value) in data.iter().enumerate() {
            let at = usize::from(offset) + index;
            if let (Some(byte), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *byte = (*byte & !mask) | (value & mask);
            }
        }
        let bars_end = BAR_0 + self.bars.len() * 8;
        let at = usize::from(offset);
        if (BAR_0..bars_end).contains(&at) && !data.iter().all(|byte| *byte == 0xff) {
            self.restore_bar((at - BAR_0) / 8);
        }
    }

    /// A 16-bit register.
    pub fn read_u16(&self, offset: u8) -> u16 {
        let mut data = [0; 2];
        self.read(u16::from(offset), &mut data);
        u16::from_le_bytes(data)
    }

    /// Whether the guest has turned INTx off.
    pub fn intx_disabled(&self) -> bool {
        self.read_u16(COMMAND as u8) & COMMAND_INTX_DISABLE != 0
    }

    /// Sets or clears the interrupt status bit.
    pub fn set_interrupt_status(&mut self, pending: bool) {
        if pending {
            self.bytes[STATUS] |= STATUS_INTERRUPT;
        } else {
            self.bytes[STATUS] &= !STATUS_INTERRUPT;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity = Identity {
        vendor: 0x1af4,
        device: 0x1042,
        subsystem_vendor: 0x1af4,
        subsystem: 2,
        class_and_revision: 0x0180_0001,
    };
    const BAR: Bar = Bar { address: 0xf820_2000, size: 0x2000 };

    fn read_u32(space: &ConfigSpace, offset: u16) -> u32 {
        let mut data = [0; 4];
        space.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn header_identifies_the_function() {
        let space = ConfigSpace::new(IDENTITY, &[BAR], Some(3));
        assert_eq!(read_u32(&space, 0), 0x1042_1af4);
        assert_eq!(read_u32(&space, 4) & 0xffff, u32::from(COMMAND_MEMORY));
        assert_eq!(read_u32(&space, 8), 0x0180_0001);
        assert_eq!(read_u32(&space, 0x2c), 0x0002_1af4);
        assert_eq!(read_u32(&space, 0x3c), 0x0000_0123);
        assert_eq!(read_u32(&space, 0xfe), 0);
    }

    #[test]
    fn bar_answers_a_size_probe_and_stays() {
        let mut space = ConfigSpace::new(IDENTITY, &[BAR], None);
        assert_eq!((read_u32(&space, 0x10), read_u32(&space, 0x14)), (0xf820_2004, 0));
        space.write(0x10, &[0xff; 4]);
        assert_eq!(read_u32(&space, 0x10), 0xffff_e004);
        space.write(0x14, &[0xff; 4]);
        assert_eq!(read_u32(&space, 0x14), 0xffff_ffff);
        space.write(0x10, &0xf820_2004u32.to_le_bytes());
        space.write(0x14, &[0; 4]);
        assert_eq!((read_u32(&space, 0x10), read_u32(&space, 0x14)), (0xf820_2004, 0));
        space.write(0x10, &0x1234_0000u32.to_le_bytes());
        assert_eq!(read_u32(&space, 0x10), 0xf820_2004);
        space.write(0x18, &[0xff; 4]);
        assert_eq!(read_u32(&space, 0x18), 0);
    }

    #[test]
    fn capabilities_are_chained() {
        let mut space = ConfigSpace::new(IDENTITY, &[BAR], None);
        let first = space.add_capability(9, &[1; 14], &[]).unwrap();
        let second = space.add_capability(0x11, &[0; 10], &[0x00, 0xc0]).unwrap();
        assert_eq!((first, second), (0x40, 0x50));
        assert_eq!(read_u32(&space, 0x34), 0x40);
        assert_eq!(read_u32(&space, 0x40) & 0xffff, 0x5009);
        assert_eq!(read_u32(&space, 0x50) & 0xffff, 0x0011);
        space.write(0x52, &[0xff, 0xff]);
        assert_eq!(space.read_u16(0x52), 0xc000);
        while space.add_capability(9, &[0; 14], &[]).is_some() {}
        assert!(space.add_capability(9, &[0; 200], &[]).is_none());
    }

    #[test]
    fn command_keeps_only_its_bits() {
        let mut space = ConfigSpace::new(IDENTITY, &[], Some(1));
        space.write(4, &[0xff; 4]);
        assert_eq!(space.read_u16(4), COMMAND_WRITABLE);
        assert!(space.intx_disabled());
        space.set_interrupt_status(true);
        assert_eq!(space.read_u16(6), u16::from(STATUS_INTERRUPT));
        space.write(0xffff, &[0xff; 4]);
    }
}
