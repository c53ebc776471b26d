//! Where guest RAM lies: filled upwards around the ranges an architecture keeps for itself.

use std::ops::Range;

/// Granularity of RAM regions and traps, in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// Why RAM could not be laid out. The configuration is at fault.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum LayoutError {
    /// No RAM was asked for.
    #[error("Guest memory of zero bytes")]
    Empty,
    /// More RAM than fits between the restricted ranges.
    #[error("Guest memory of {requested:#x} bytes does not fit; {missing:#x} bytes are left over")]
    TooLarge {
        /// Bytes asked for, rounded up to pages.
        requested: u64,
        /// Bytes that found no place.
        missing: u64,
    },
    /// A device's memory and RAM overlap.
    #[error("Device memory {device:#x?} overlaps guest RAM {ram:#x?}")]
    DeviceOverlap {
        /// The device's range.
        device: Range<u64>,
        /// The RAM region it touches.
        ram: Range<u64>,
    },
}

/// The RAM regions of a guest, ascending and disjoint, page-aligned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryLayout {
    ram: Vec<Range<u64>>,
}

impl MemoryLayout {
    /// Places `size` bytes (rounded up to pages) of RAM from address 0 upwards, leaving out `restricted`, which must be
    /// ascending and disjoint.
    ///
    /// # Errors
    ///
    /// [`LayoutError::Empty`] and [`LayoutError::TooLarge`].
    pub fn new(size: u64, restricted: &[Range<u64>]) -> Result<Self, LayoutError> {
        let requested = size
            .checked_next_multiple_of(PAGE_SIZE)
            .ok_or(LayoutError::TooLarge { requested: size, missing: size })?;
        if requested == 0 {
            return Err(LayoutError::Empty);
        }
        let mut ram = Vec::new();
        let mut missing = requested;
        let mut start = 0u64;
        let ends = restricted.iter().cloned().chain(std::iter::once(u64::MAX..u64::MAX));
        for gap_end in ends {
            let Some(first) = start.checked_next_multiple_of(PAGE_SIZE) else { break };
            let last = gap_end.start / PAGE_SIZE * PAGE_SIZE;
            if missing > 0 && last > first {
                let take = missing.min(last - first);
                ram.push(first..first + take);
                missing -= take;
            }
            start = gap_end.end;
        }
        if missing > 0 {
            return Err(LayoutError::TooLarge { requested, missing });
        }
        Ok(Self { ram })
    }

    /// The RAM regions, ascending.
    pub fn ram(&self) -> &[Range<u64>] {
        &self.ram
    }

    /// One past the last byte of RAM.
    pub fn end(&self) -> u64 {
        self.ram.last().map_or(0, |region| region.end)
    }

    /// Whether `[addr, addr + len)` is RAM, all of it in one region.
    pub fn contains(&self, addr: u64, len: u64) -> bool {
        addr.checked_add(len).is_some_and(|end| {
            self.ram.iter().any(|region| region.start <= addr && end <= region.end)
        })
    }

    /// Checks that `device` touches no RAM.
    ///
    /// # Errors
    ///
    /// [`LayoutError::DeviceOverlap`].
    pub fn check_device(&self, device: &Range<u64>) -> Result<(), LayoutError> {
        match self.ram.iter().find(|ram| ram.start < device.end && device.start < ram.end) {
            None => Ok(()),
            Some(ram) => {
                Err(LayoutError::DeviceOverlap { device: device.clone(), ram: ram.clone() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESTRICTED: [Range<u64>; 4] =
        [0..0x8000, 0x8_0000..0x10_0000, 0xf800_0000..0x1_0000_0000, 0xb_0000_0000..u64::MAX];

    #[test]
    fn four_gib_skips_every_restricted_range() {
        let layout = MemoryLayout::new(4 << 30, &RESTRICTED).unwrap();
        assert_eq!(
            layout.ram(),
            [
                0x8000..0x8_0000,
                0x10_0000..0xf800_0000,
                0x1_0000_0000..0x1_0000_0000 + (4 << 30) - 0x7_8000 - 0xf7f0_0000
            ]
        );
        assert_eq!(layout.ram().iter().map(|r| r.end - r.start).sum::<u64>(), 4 << 30);
    }

    #[test]
    fn size_is_rounded_up_to_pages() {
        assert_eq!(
            MemoryLayout::new(1, &RESTRICTED).unwrap().ram(),
            std::slice::from_ref(&(0x8000..0x9000))
        );
    }

    #[test]
    fn too_large_is_refused() {
        assert!(matches!(
            MemoryLayout::new(1 << 40, &RESTRICTED),
            Err(LayoutError::TooLarge { .. })
        ));
        assert!(matches!(
            MemoryLayout::new(u64::MAX, &RESTRICTED),
            Err(LayoutError::TooLarge { .. })
        ));
        assert_eq!(MemoryLayout::new(0, &RESTRICTED), Err(LayoutError::Empty));
    }

    #[test]
    fn unaligned_restrictions_round_inwards() {
        let layout = MemoryLayout::new(0x1000, &[0..0x10, 0x2fff..0x3001]).unwrap();
        assert_eq!(layout.ram(), std::slice::from_ref(&(0x1000..0x2000)));
        let layout = MemoryLayout::new(0x2000, &[0..0x10, 0x2fff..0x3001]).unwrap();
        assert_eq!(layout.ram(), [0x1000..0x2000, 0x4000..0x5000]);
    }

    #[test]
    fn device_overlap_is_found() {
        let layout = MemoryLayout::new(1 << 20, &RESTRICTED).unwrap();
        assert!(layout.check_device(&(0xf800_0000..0xf800_1000)).is_ok());
        assert!(layout.check_device(&(0x7_f000..0x8_1000)).is_err());
    }
}
