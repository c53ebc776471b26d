//! Guest-physical memory as a device sees it: one mapping, checked addresses, raw copies.
//!
//! UNSAFETY: this is the only module of the crate that may use `unsafe`. Guest memory is written by other
//! processes (the vCPUs, other devices) at any moment, so no Rust reference may ever point into it. What leaves this
//! module is [`GuestSlice`], a checked range that is only read and written by whole-value volatile or atomic accesses
//! and by copies that tolerate a racing writer.

use std::alloc::{self, Layout};
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use fuchsia_zircon::{self as zx, AsHandleRef as _};
use zerocopy::{FromBytes, IntoBytes};

/// Copies of at least this many bytes use the string instruction, whose start-up cost is paid back by then.
#[cfg(all(target_arch = "x86_64", not(miri)))]
const STRING_COPY_MIN: usize = 256;

/// Alignment of anonymous guest memory: that of a page.
const PAGE_SIZE: usize = 4096;

/// An address range that guest memory does not have. The guest (or the VMM) named it, so this is their fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("The range of {len:#x} bytes at guest-physical address {addr:#x} is outside guest memory")]
pub struct OutOfRange {
    /// First byte asked for, guest-physical.
    pub addr: u64,
    /// Length asked for, in bytes.
    pub len: u64,
}

#[derive(Debug)]
enum Backing {
    /// A VMO mapped into the root VMAR; kept for operations on the object itself.
    Vmo(zx::Vmo),
    /// Zeroed heap pages, for tests and fuzzing without a kernel.
    Heap(Layout),
    /// A mapping of no bytes.
    Empty,
}

/// All guest-physical memory, mapped once, readable and writable.
///
/// Guest-physical address `n` is byte `n` of the VMO (`fuchsia.virtualization.hardware` StartInfo). The mapping lives
/// as long as this value; every [`GuestSlice`] borrows from it.
#[derive(Debug)]
pub struct GuestMemory {
    base: NonNull<u8>,
    len: usize,
    backing: Backing,
}

// SAFETY: `base` points to memory owned by this value that is never accessed through references, only by volatile,
// atomic or opaque copies, all of which may happen on any thread.
unsafe impl Send for GuestMemory {}
// SAFETY: as above; concurrent accesses are the normal state of guest memory and yield unspecified bytes, not UB.
unsafe impl Sync for GuestMemory {}

impl GuestMemory {
    /// Maps the whole of `vmo`.
    ///
    /// # Errors
    /// What `zx_vmo_get_size` and `zx_vmar_map` return; `OUT_OF_RANGE` when the object does not fit an address space.
    pub fn map(vmo: zx::Vmo) -> Result<Self, zx::Status> {
        let size = vmo.get_size()?;
        let len = usize::try_from(size)
            .ok()
            .filter(|len| isize::try_from(*len).is_ok())
            .ok_or(zx::Status::OUT_OF_RANGE)?;
        if len == 0 {
            return Ok(Self { base: NonNull::dangling(), len, backing: Backing::Empty });
        }
        let flags = zx::VmarFlags::PERM_READ | zx::VmarFlags::PERM_WRITE;
        let addr = zx::Vmar::root_self().map(0, &vmo, 0, len, flags)?;
        let base = NonNull::new(std::ptr::with_exposed_provenance_mut::<u8>(addr))
            .ok_or(zx::Status::INTERNAL)?;
        Ok(Self { base, len, backing: Backing::Vmo(vmo) })
    }

    /// Guest memory of `len` zero bytes on the heap, for tests and fuzz targets.
    ///
    /// # Panics
    /// When `len` is not a possible allocation size.
    pub fn anonymous(len: usize) -> Self {
        if len == 0 {
            return Self { base: NonNull::dangling(), len, backing: Backing::Empty };
        }
        let layout = Layout::from_size_align(len, PAGE_SIZE).expect("a possible allocation size");
        // SAFETY: the layout's size is not zero.
        let base = unsafe { alloc::alloc_zeroed(layout) };
        let Some(base) = NonNull::new(base) else { alloc::handle_alloc_error(layout) };
        Self { base, len, backing: Backing::Heap(layout) }
    }

    /// Size in bytes; guest-physical addresses run from 0 up to it.
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Whether there is no memory at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The object behind the mapping; none for [`GuestMemory::anonymous`].
    pub fn vmo(&self) -> Option<&zx::Vmo> {
        match &self.backing {
            Backing::Vmo(vmo) => Some(vmo),
            Backing::Heap(_) | Backing::Empty => None,
        }
    }

    /// The range of `len` bytes at guest-physical `addr`.
    ///
    /// # Errors
    /// [`OutOfRange`] when any byte of it is not guest memory.
    pub fn slice(&self, addr: u64, len: u64) -> Result<GuestSlice<'_>, OutOfRange> {
        let out_of_range = OutOfRange { addr, len };
        let end = addr.checked_add(len).ok_or(out_of_range)?;
        if end > self.len() {
            return Err(out_of_range);
        }
        // Both fit: they are at most `self.len`, a usize.
        let (offset, len) = (addr as usize, len as usize);
        // SAFETY: offset <= self.len, the size of the allocation behind `base` (no bytes for a dangling base).
        let ptr = unsafe { self.base.add(offset) };
        Ok(GuestSlice { ptr, addr, len, memory: PhantomData })
    }

    /// Gives the pages of a range back to the host: they read as zeroes from here on.
    ///
    /// Partial pages at the ends are zeroed, not freed. On heap memory this only writes zeroes.
    ///
    /// # Errors
    /// `OUT_OF_RANGE` for a range that is not guest memory, else what `zx_vmo_op_range` (ZERO) returns.
    pub fn zero_range(&self, addr: u64, len: u64) -> Result<(), zx::Status> {
        let slice = self.slice(addr, len).map_err(|_| zx::Status::OUT_OF_RANGE)?;
        match &self.backing {
            Backing::Vmo(vmo) => vmo.op_range(zx::VmoOp::ZERO, addr, len),
            Backing::Heap(_) | Backing::Empty => {
                slice.fill_zero();
                Ok(())
            }
        }
    }
}

impl Drop for GuestMemory {
    fn drop(&mut self) {
        match &self.backing {
            Backing::Vmo(vmo) => {
                // SAFETY: the range was mapped by `map`, is owned by this value, and no slice outlives it.
                let unmapped =
                    unsafe { zx::Vmar::root_self().unmap(self.base.as_ptr().addr(), self.len) };
                if let Err(status) = unmapped {
                    tracing::error!(%status, vmo = ?vmo.raw_handle(), "Guest memory could not be unmapped");
                }
            }
            // SAFETY: `base` came from `alloc_zeroed` with this layout.
            Backing::Heap(layout) => unsafe { alloc::dealloc(self.base.as_ptr(), *layout) },
            Backing::Empty => {}
        }
    }
}

/// A checked range of guest memory.
///
/// Holds no Rust reference to the bytes: a copy made while the guest writes yields any mixture of old and new bytes.
/// Whatever is decided on must therefore be copied out first and checked in the copy.
#[derive(Clone, Copy, Debug)]
pub struct GuestSlice<'m> {
    ptr: NonNull<u8>,
    addr: u64,
    len: usize,
    memory: PhantomData<&'m GuestMemory>,
}

// SAFETY: as for `GuestMemory`, from which every slice borrows.
unsafe impl Send for GuestSlice<'_> {}
// SAFETY: as for `GuestMemory`.
unsafe impl Sync for GuestSlice<'_> {}

impl<'m> GuestSlice<'m> {
    /// Guest-physical address of the first byte.
    pub fn addr(&self) -> u64 {
        self.addr
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the range has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first `mid` bytes and the rest; none when the range is shorter.
    pub fn split_at(self, mid: usize) -> Option<(Self, Self)> {
        let rest = self.len.checked_sub(mid)?;
        // SAFETY: mid <= self.len, so the sum stays within (or one past) the range.
        let tail = unsafe { self.ptr.add(mid) };
        // No overflow: the range was checked to end inside guest memory.
        let addr = self.addr + mid as u64;
        Some((Self { len: mid, ..self }, Self { ptr: tail, addr, len: rest, memory: self.memory }))
    }

    /// `len` bytes from `offset`; none when the range is shorter.
    pub fn get(self, offset: usize, len: usize) -> Option<Self> {
        self.split_at(offset)?.1.split_at(len).map(|(head, _)| head)
    }

    /// Copies the first bytes of the range out; returns how many: the shorter of the two lengths.
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        let len = self.len.min(to.len());
        // SAFETY: both are valid for `len` bytes; `to` is a live Rust slice and so not guest memory: no overlap.
        unsafe { copy(self.ptr.as_ptr(), to.as_mut_ptr(), len) };
        len
    }

    /// Copies `from` into the first bytes of the range; returns how many: the shorter of the two lengths.
    pub fn copy_from(&self, from: &[u8]) -> usize {
        let len = self.len.min(from.len());
        // SAFETY: as in `copy_to`.
        unsafe { copy(from.as_ptr(), self.ptr.as_ptr(), len) };
        len
    }

    /// Writes zeroes to the whole range.
    pub fn fill_zero(&self) {
        const ZEROES: [u8; 4096] = [0; 4096];
        let mut rest = *self;
        while !rest.is_empty() {
            let done = rest.copy_from(&ZEROES);
            let Some((_, tail)) = rest.split_at(done) else { return };
            rest = tail;
        }
    }

    /// A value from the front of the range; none when the range is shorter. Not atomic.
    pub fn read<T: FromBytes + IntoBytes>(&self) -> Option<T> {
        if self.len < size_of::<T>() {
            return None;
        }
        let mut value = T::new_zeroed();
        self.copy_to(value.as_mut_bytes());
        Some(value)
    }

    /// Writes a value to the front of the range. Not atomic.
    ///
    /// Returns whether it fitted; nothing is written otherwise.
    pub fn write<T: IntoBytes + zerocopy::Immutable>(&self, value: &T) -> bool {
        if self.len < size_of::<T>() {
            return false;
        }
        self.copy_from(value.as_bytes());
        true
    }

    /// Fills the whole range from `vmo` at `offset`, without a copy in this process.
    ///
    /// # Errors
    /// What `zx_vmo_read` returns.
    pub fn read_from_vmo(&self, vmo: &zx::Vmo, offset: u64) -> Result<(), zx::Status> {
        if self.len == 0 {
            return Ok(());
        }
        // SAFETY: the range is mapped and writable for `len` bytes; the kernel writes it as any other guest would.
        unsafe { vmo.read_raw(self.ptr.as_ptr(), self.len, offset) }
    }

    /// Writes the whole range to `vmo` at `offset`, without a copy in this process.
    ///
    /// # Errors
    /// What `zx_vmo_write` returns.
    pub fn write_to_vmo(&self, vmo: &zx::Vmo, offset: u64) -> Result<(), zx::Status> {
        if self.len == 0 {
            return Ok(());
        }
        // SAFETY: the range is mapped and readable for `len` bytes.
        unsafe { vmo.write_raw(self.ptr.as_ptr(), self.len, offset) }
    }

    /// The 16-bit little-endian word at `offset`, one half of the guest's shared-memory protocol.
    ///
    /// None when it is out of the range or not aligned.
    pub(crate) fn load_u16(&self, offset: usize, ordering: Ordering) -> Option<u16> {
        Some(u16::from_le(self.atomic_u16(offset)?.load(ordering)))
    }

    /// Stores a 16-bit little-endian word at `offset`; returns whether it is in the range and aligned.
    pub(crate) fn store_u16(&self, offset: usize, value: u16, ordering: Ordering) -> bool {
        self.atomic_u16(offset).map(|word| word.store(value.to_le(), ordering)).is_some()
    }

    fn atomic_u16(&self, offset: usize) -> Option<&'m AtomicU16> {
        let word = self.get(offset, size_of::<u16>())?.ptr.cast::<u16>();
        if !word.is_aligned() {
            return None;
        }
        // SAFETY: valid for 'm, aligned (checked above). Another process may access the same bytes in any way, but
        // within this process ring words are only touched through this function and through volatile copies, and an
        // atomic is the one reference that tolerates other writers.
        Some(unsafe { AtomicU16::from_ptr(word.as_ptr()) })
    }
}

/// Copies `len` bytes of which one side is guest memory.
///
/// # Safety
/// `from` must be readable and `to` writable for `len` bytes, and the two must not overlap.
unsafe fn copy(from: *const u8, to: *mut u8, len: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if len >= STRING_COPY_MIN {
        // The copy happens outside the abstract machine, so a racing guest is no data race of ours; and this is the
        // fastest copy that current x86-64 processors have.
        // SAFETY: the caller promises both ranges; the direction flag is clear by the ABI.
        unsafe {
            std::arch::asm!("rep movsb", inout("rcx") len => _, inout("rsi") from => _, inout("rdi") to => _,
                options(nostack, preserves_flags));
        }
        return;
    }
    // SAFETY: the caller's promise.
    unsafe { copy_volatile(from, to, len) };
}

/// [`copy`] by volatile words.
///
/// # Safety
/// As for [`copy`].
unsafe fn copy_volatile(from: *const u8, to: *mut u8, len: usize) {
    const WORD: usize = size_of::<u64>();
    let mut done = 0;
    while done + WORD <= len {
        // SAFETY: `done + WORD <= len`, within both ranges. The wrapper type has alignment 1.
        unsafe {
            let word = from.add(done).cast::<UnalignedWord>().read_volatile();
            to.add(done).cast::<UnalignedWord>().write_volatile(word);
        }
        done += WORD;
    }
    while done < len {
        // SAFETY: `done < len`, within both ranges.
        unsafe { to.add(done).write_volatile(from.add(done).read_volatile()) };
        done += 1;
    }
}

/// A word that may lie anywhere: volatile accesses of plain integers must be aligned.
#[repr(C, packed)]
#[derive(Clone, Copy)]
struct UnalignedWord(u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slice_checks_both_ends() {
        let memory = GuestMemory::anonymous(8192);
        assert_eq!(memory.slice(0, 8192).unwrap().len(), 8192);
        assert!(memory.slice(8192, 0).unwrap().is_empty());
        assert_eq!(memory.slice(8192, 1).unwrap_err(), OutOfRange { addr: 8192, len: 1 });
        assert!(memory.slice(u64::MAX, 2).is_err());
        assert!(memory.slice(1, u64::MAX).is_err());
    }

    #[test]
    fn empty_memory_has_only_the_empty_slice() {
        let memory = GuestMemory::anonymous(0);
        assert!(memory.is_empty());
        assert_eq!(memory.slice(0, 0).unwrap().copy_to(&mut [0; 4]), 0);
        assert!(memory.slice(0, 1).is_err());
    }

    #[test]
    fn copies_of_every_length_and_alignment_are_exact() {
        let memory = GuestMemory::anonymous(4096);
        let pattern: Vec<u8> = (0..1024u32).map(|i| (i * 7 + 3) as u8).collect();
        for len in [0, 1, 7, 8, 9, 63, 255, 256, 257, 1000] {
            for start in 0..9u64 {
                memory.slice(0, 4096).unwrap().fill_zero();
                let slice = memory.slice(start, len as u64).unwrap();
                assert_eq!(slice.copy_from(&pattern), len);
                let mut back = vec![0; len];
                assert_eq!(slice.copy_to(&mut back), len);
                assert_eq!(back, pattern[..len]);
                let mut after = [0xff];
                memory.slice(start + len as u64, 1).unwrap().copy_to(&mut after);
                assert_eq!(after, [0], "a byte after the range was written");
            }
        }
    }

    #[test]
    fn split_and_get_stay_inside() {
        let memory = GuestMemory::anonymous(64);
        let slice = memory.slice(8, 16).unwrap();
        assert!(slice.split_at(17).is_none());
        assert!(slice.get(10, 7).is_none());
        assert!(slice.get(usize::MAX, 1).is_none());
        assert!(slice.get(12, 4).unwrap().write(&0x1122_3344u32));
        assert!(!slice.get(13, 3).unwrap().write(&0u32));
        assert_eq!(memory.slice(20, 4).unwrap().read::<u32>(), Some(0x1122_3344));
    }

    #[test]
    fn words_need_alignment() {
        let memory = GuestMemory::anonymous(64);
        let slice = memory.slice(0, 64).unwrap();
        assert!(slice.store_u16(2, 0xabcd, Ordering::Release));
        assert_eq!(slice.load_u16(2, Ordering::Acquire), Some(0xabcd));
        assert_eq!(slice.load_u16(3, Ordering::Acquire), None);
        assert_eq!(slice.load_u16(63, Ordering::Acquire), None);
    }

    #[test]
    fn a_mapped_vmo_is_shared_with_its_other_users() {
        let vmo = zx::Vmo::create(8192).unwrap();
        let memory = GuestMemory::map(
            vmo.duplicate_handle(zx::Rights::SAME_RIGHTS).expect("a duplicate of our own handle"),
        )
        .unwrap();
        memory.slice(4094, 4).unwrap().copy_from(&[1, 2, 3, 4]);
        let mut bytes = [0; 4];
        vmo.read(&mut bytes, 4094).unwrap();
        assert_eq!(bytes, [1, 2, 3, 4]);

        memory.zero_range(0, 4096).unwrap();
        vmo.read(&mut bytes, 4094).unwrap();
        assert_eq!(bytes, [0, 0, 3, 4]);
        assert_eq!(memory.zero_range(8192, 1), Err(zx::Status::OUT_OF_RANGE));

        let source = zx::Vmo::create(4096).unwrap();
        source.write(b"from a file", 100).unwrap();
        memory.slice(10, 11).unwrap().read_from_vmo(&source, 100).unwrap();
        memory.slice(10, 11).unwrap().write_to_vmo(&source, 200).unwrap();
        let mut text = [0; 11];
        source.read(&mut text, 200).unwrap();
        assert_eq!(&text, b"from a file");
    }

    use zx::HandleBased as _;
}
