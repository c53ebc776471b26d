//! MSI-X: the capability and its table (PCI 3.0 §6.8.2).

/// Length of the capability's body, after ID and link.
pub const MSIX_CAPABILITY_LEN: usize = 10;
/// What virtio writes for "no vector"; such a vector is never in the table.
pub const NO_VECTOR: u16 = 0xffff;
/// Size of a table entry, in bytes.
const ENTRY_SIZE: usize = 16;
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
const CONTROL_ENABLE: u16 = 1 << 15;
const ENTRY_MASK: u32 = 1 << 0;

/// What a device writes to memory to interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiMessage {
    /// Where.
    pub address: u64,
    /// What.
    pub data: u32,
}

#[derive(Clone, Copy)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
    pending: bool,
}

/// A function's MSI-X state.
pub struct Msix {
    entries: Vec<Entry>,
    enabled: bool,
    masked: bool,
}

impl Msix {
    /// A table of `vectors` (at most 2048) masked entries.
    pub fn new(vectors: u16) -> Self {
        let entry = Entry { address: 0, data: 0, control: ENTRY_MASK, pending: false };
        Self { entries: vec![entry; usize::from(vectors.min(2048))], enabled: false, masked: false }
    }

    /// Body of the capability: table and pending bits in base address register `bar`.
    pub fn capability(&self, bar: u8, table: u32, pending: u32) -> [u8; MSIX_CAPABILITY_LEN] {
        let mut body = [0; MSIX_CAPABILITY_LEN];
        let size = (self.entries.len() as u16).saturating_sub(1);
        body[..2].copy_from_slice(&size.to_le_bytes());
        body[2..6].copy_from_slice(&(table | u32::from(bar)).to_le_bytes());
        body[6..].copy_from_slice(&(pending | u32::from(bar)).to_le_bytes());
        body
    }

    /// The bits of the capability's body that the guest may write: enable and function mask.
    pub const WRITABLE: [u8; 2] = (CONTROL_ENABLE | CONTROL_FUNCTION_MASK).to_le_bytes();

    /// Takes the message control register after a write. Returns the messages that were waiting for it.
    pub fn set_control(&mut self, control: u16) -> Vec<MsiMessage> {
        self.enabled = control & CONTROL_ENABLE != 0;
        self.masked = control & CONTROL_FUNCTION_MASK != 0;
        (0..self.entries.len()).filter_map(|vector| self.take_pending(vector)).collect()
    }

    /// Whether the guest uses MSI-X instead of INTx.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Whether `vector` is in the table.
    pub fn has_vector(&self, vector: u16) -> bool {
        usize::from(vector) < self.entries.len()
    }

    /// Raises `vector`: returns the message to send now, or remembers it while masked.
    pub fn signal(&mut self, vector: u16) -> Option<MsiMessage> {
        let index = usize::from(vector);
        self.entries.get_mut(index)?.pending = true;
        self.take_pending(index)
    }

    /// Forgets all pending messages, as a device reset does.
    pub fn clear_pending(&mut self) {
        for entry in &mut self.entries {
            entry.pending = false;
        }
    }

    fn take_pending(&mut self, index: usize) -> Option<MsiMessage> {
        let entry = self.entries.get_mut(index)?;
        let open = self.enabled && !self.masked && entry.control & ENTRY_MASK == 0;
        (open && std::mem::take(&mut entry.pending))
            .then_some(MsiMessage { address: entry.address, data: entry.data })
    }

    /// Reads from the table.
    pub fn read_table(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        let Some(entry) = self.entries.get(offset / ENTRY_SIZE) else { return };
        let mut bytes = [0; ENTRY_SIZE];
        bytes[..8].copy_from_slice(&entry.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&entry.data.to_le_bytes());
        bytes[12..].copy_from_slice(&entry.control.to_le_bytes());
        for (byte, value) in data.iter_mut().zip(&bytes[offset % ENTRY_SIZE..]) {
            *byte = *value;
        }
    }

    /// Writes to the table: aligned 4 or 8 bytes, others are dropped (§6.8.2). Returns a message that was waiting.
    pub fn write_table(&mut self, offset: usize, data: &[u8]) -> Option<MsiMessage> {
        let index = offset / ENTRY_SIZE;
        let at = offset % ENTRY_SIZE;
        let entry = self.entries.get_mut(index)?;
        if !matches!(data.len(), 4 | 8) || !at.is_multiple_of(data.len()) {
            return None;
        }
        for (word, bytes) in data.chunks_exact(4).enumerate() {
            let value = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            match at / 4 + word {
                0 => entry.address = (entry.address & !0xffff_ffff) | u64::from(value & !3),
                1 => entry.address = (entry.address & 0xffff_ffff) | (u64::from(value) << 32),
                2 => entry.data = value,
                _ => entry.control = value & ENTRY_MASK,
            }
        }
        self.take_pending(index)
    }

    /// Reads from the pending bits.
    pub fn read_pending(&self, offset: usize, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            let first = (offset + index).saturating_mul(8);
            let bits = (0..8)
                .filter(|bit| self.entries.get(first + bit).is_some_and(|entry| entry.pending));
            *byte = bits.fold(0, |byte, bit| byte | (1 << bit));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: MsiMessage = MsiMessage { address: 0xfee0_1000, data: 0x41 };

    fn msix() -> Msix {
        let mut msix = Msix::new(3);
        assert_eq!(msix.write_table(16, &MESSAGE.address.to_le_bytes()), None);
        assert_eq!(msix.write_table(24, &MESSAGE.data.to_le_bytes()), None);
        msix
    }

    #[test]
    fn masked_vectors_wait_for_each_mask() {
        let mut msix = msix();
        assert_eq!(msix.signal(1), None);
        assert_eq!(msix.set_control(CONTROL_ENABLE | CONTROL_FUNCTION_MASK), []);
        assert_eq!(msix.write_table(28, &[0; 4]), None);
        let mut pending = [0; 8];
        msix.read_pending(0, &mut pending);
        assert_eq!(pending[0], 0b10);
        assert_eq!(msix.set_control(CONTROL_ENABLE), [MESSAGE]);
        msix.read_pending(0, &mut pending);
        assert_eq!(pending[0], 0);
        assert_eq!(msix.signal(1), Some(MESSAGE));
    }

    #[test]
    fn unmasking_an_entry_releases_its_message_once() {
        let mut msix = msix();
        msix.set_control(CONTROL_ENABLE);
        assert_eq!(msix.signal(1), None);
        assert_eq!(msix.signal(1), None);
        assert_eq!(msix.write_table(24, &u64::from(MESSAGE.data).to_le_bytes()), Some(MESSAGE));
        assert_eq!(msix.write_table(28, &[0; 4]), None);
    }

    #[test]
    fn table_reads_back_what_was_written() {
        let msix = msix();
        let mut entry = [0; 16];
        msix.read_table(16, &mut entry);
        assert_eq!(entry, [0, 0x10, 0xe0, 0xfe, 0, 0, 0, 0, 0x41, 0, 0, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn out_of_range_accesses_are_dropped() {
        let mut msix = msix();
        msix.set_control(CONTROL_ENABLE);
        assert_eq!(msix.signal(3), None);
        assert_eq!(msix.signal(NO_VECTOR), None);
        assert_eq!(msix.write_table(48, &[0; 4]), None);
        assert_eq!(msix.write_table(17, &[0xff; 4]), None);
        assert_eq!(msix.write_table(16, &[0xff; 2]), None);
        msix.read_table(usize::MAX, &mut [0; 4]);
        msix.read_pending(usize::MAX / 16, &mut [0; 4]);
        let mut entry = [0; 4];
        msix.read_table(16, &mut entry);
        assert_eq!(entry, [0, 0x10, 0xe0, 0xfe]);
    }

    #[test]
    fn capability_names_its_bar() {
        assert_eq!(
            Msix::new(3).capability(0, 0x1000, 0x1800),
            [2, 0, 0, 0x10, 0, 0, 0, 0x18, 0, 0]
        );
    }
}
