//! A guest: its physical memory, its traps and the vCPUs that run in it.
//!
//! Guest-physical memory is one flat reservation of host address space, so the host address of a byte of RAM is
//! `ram_base + gpa`. Whether a page *is* RAM is a bit in a bitmap; a page without that bit is a trap or open bus.

use crate::code_map::CodeMap;
use crate::debug::Debugger;
use crate::error::Error;
use crate::page_bitmap::PageBitmap;
use crate::time::AlarmClock;
use crate::vcpu::VcpuRemote;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

/// Width of guest-physical addresses (MAXPHYADDR, SDM vol. 3 §4.1.4).
pub const PHYSICAL_ADDRESS_BITS: u32 = 40;
/// The most vCPUs a guest can have, as on Zircon for x64.
pub const MAX_VCPUS: usize = 64;

pub(crate) const PAGE_SIZE: u64 = 4096;
const PHYSICAL_SIZE: u64 = 1 << PHYSICAL_ADDRESS_BITS;
const PHYSICAL_PAGES: u64 = PHYSICAL_SIZE / PAGE_SIZE;
const PORTS: u64 = 0x1_0000;

/// What a trap does when the guest touches its range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrapKind {
    /// A doorbell: a write rings a [`BellSink`] and the guest goes on at once.
    Bell,
    /// Memory-mapped I/O: the access leaves the guest with [`crate::Exit::Mem`].
    Mem,
    /// Port I/O: the access leaves the guest with [`crate::Exit::Io`].
    Io,
}

/// The receiver of a bell is gone; the vCPU that rang it stops with [`Error::BadState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BellClosed;

/// Receives the rings of a [`TrapKind::Bell`] trap, on the thread of the vCPU that wrote.
pub trait BellSink: Send + Sync {
    /// The guest wrote to guest-physical address `addr` of the trap with this `key`. May block to slow a guest
    /// that rings faster than its device answers.
    fn ring(&self, key: u64, addr: u64) -> Result<(), BellClosed>;
}

/// A trap as the access paths see it.
#[derive(Clone)]
pub(crate) enum Trap {
    Bell { key: u64, sink: Arc<dyn BellSink> },
    Mem { key: u64 },
}

/// Half-open ranges in ascending order, none overlapping.
struct RangeMap<T>(Vec<(u64, u64, T)>);

impl<T> RangeMap<T> {
    fn insert(&mut self, start: u64, end: u64, value: T) -> Result<(), Error> {
        let index = self.0.partition_point(|range| range.1 <= start);
        if self.0.get(index).is_some_and(|range| range.0 < end) {
            return Err(Error::AlreadyExists);
        }
        self.0.insert(index, (start, end, value));
        Ok(())
    }

    fn get(&self, address: u64) -> Option<&T> {
        let index = self.0.partition_point(|range| range.1 <= address);
        self.0.get(index).filter(|range| range.0 <= address).map(|range| &range.2)
    }
}

struct Traps {
    memory: RangeMap<Trap>,
    ports: RangeMap<u64>,
}

/// A virtual machine: physical memory, traps and vCPUs.
pub struct Guest {
    base: NonNull<u8>,
    /// Pages of RAM that no trap covers.
    ram: PageBitmap,
    /// RAM as mapped, in pages, traps or not. Held while the host mapping and `ram` change together.
    regions: Mutex<Vec<(u64, u64)>>,
    traps: RwLock<Traps>,
    vcpus: Mutex<Vec<Weak<VcpuRemote>>>,
    vcpus_created: AtomicU64,
    /// Serializes locked accesses that cross a page, which no single host instruction covers.
    split_lock: Mutex<()>,
    /// Counts events after which a device may have written guest memory: rung bells, injected interrupts.
    device_events: AtomicU64,
    pub(crate) alarm_clock: AlarmClock,
    pub(crate) debugger: Debugger,
    /// Which vCPUs translated code from which bytes.
    pub(crate) code: CodeMap,
}

// SAFETY: `base` is the address of a mapping that lives as long as the guest. Guest memory is shared by nature; every
// access to it is through raw pointers with volatile, atomic or machine-code accesses.
unsafe impl Send for Guest {}
// SAFETY: as above.
unsafe impl Sync for Guest {}

impl Guest {
    /// A guest without memory, traps or vCPUs.
    ///
    /// Errors: [`Error::NotSupported`] on a host without AVX or FSGSBASE.
    pub fn new() -> Result<Arc<Guest>, Error> {
        crate::host_features::check()?;
        crate::time::start_calibration();
        // SAFETY: a fresh inaccessible mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                PHYSICAL_SIZE as usize,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )?
        };
        let base = NonNull::new(base.cast()).ok_or(Error::BadState("mmap returned null"))?;
        Ok(Arc::new(Guest {
            base,
            ram: PageBitmap::new(PHYSICAL_PAGES as usize)?,
            regions: Mutex::new(Vec::new()),
            traps: RwLock::new(Traps { memory: RangeMap(Vec::new()), ports: RangeMap(Vec::new()) }),
            vcpus: Mutex::new(Vec::new()),
            vcpus_created: AtomicU64::new(0),
            split_lock: Mutex::new(()),
            device_events: AtomicU64::new(0),
            alarm_clock: AlarmClock::new(),
            debugger: Debugger::default(),
            code: CodeMap::new(PHYSICAL_PAGES as usize)?,
        }))
    }

    /// Host address of guest-physical address 0. Only addresses for which [`Guest::is_ram`] holds may be accessed.
    pub(crate) fn ram_base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Whether the page of `gpa` is RAM that no trap covers.
    #[inline]
    pub(crate) fn is_ram(&self, gpa: u64) -> bool {
        self.ram.get(gpa / PAGE_SIZE)
    }

    /// Host address of a byte of RAM; `None` when the page is a trap or open bus. The pointer is good to the end
    /// of its page for as long as the guest lives.
    #[inline]
    pub(crate) fn host(&self, gpa: u64) -> Option<*mut u8> {
        // SAFETY: a page with its bit in `ram` lies inside the reservation.
        self.is_ram(gpa).then(|| unsafe { self.ram_base().add(gpa as usize) })
    }

    /// Maps `len` bytes of `fd` from `offset` as RAM at guest-physical address `gpa`. The file must not shrink while
    /// it is mapped. Everything is in units of pages; an existing mapping of the range is replaced. Traps win over RAM.
    pub fn map(&self, gpa: u64, fd: BorrowedFd<'_>, offset: u64, len: u64) -> Result<(), Error> {
        let (first, end) = page_range(gpa, len)?;
        if !offset.is_multiple_of(PAGE_SIZE) {
            return Err(Error::InvalidArgs("the offset is not a multiple of the page size"));
        }
        let mut regions = lock(&self.regions);
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the range lies inside our reservation, so MAP_FIXED replaces nothing of anyone else's.
        unsafe {
            let address = self.ram_base().add(gpa as usize).cast();
            mmap(address, len as usize, prot, MapFlags::SHARED | MapFlags::FIXED, fd, offset)?;
        }
        // Translations to the replaced mapping stay right: they hold `ram_base + gpa`, which now means the new one.
        remove_range(&mut regions, first, end);
        regions.push((first, end));
        self.ram.set_range(first, end, true);
        for (start, stop, _) in &self.traps.read().unwrap_or_else(PoisonError::into_inner).memory.0
        {
            self.ram.set_range(start / PAGE_SIZE, stop / PAGE_SIZE, false);
        }
        drop(regions);
        self.flush_all_tlbs();
        Ok(())
    }

    /// Removes RAM from the guest. Accesses already under way on other vCPUs may still reach a scratch page that is
    /// no longer anyone's memory.
    pub fn unmap(&self, gpa: u64, len: u64) -> Result<(), Error> {
        let (first, end) = page_range(gpa, len)?;
        let mut regions = lock(&self.regions);
        self.ram.set_range(first, end, false);
        remove_range(&mut regions, first, end);
        self.flush_all_tlbs();
        // Not inaccessible but private zero pages: a vCPU that has not seen the flush yet must not crash the process.
        // SAFETY: the range lies inside our reservation, so MAP_FIXED replaces nothing of anyone else's.
        unsafe {
            mmap_anonymous(
                self.ram_base().add(gpa as usize).cast(),
                len as usize,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE,
            )?;
        }
        Ok(())
    }

    /// Installs a trap over `addr..addr + size`. A bell needs a `sink` and the others must not have one. Bells and
    /// memory traps share one address space, are made of whole pages and win over RAM; ports are another space.
    ///
    /// Errors: [`Error::InvalidArgs`] for a wrong sink, alignment or an empty range, [`Error::OutOfRange`] beyond the
    /// end of the address space, [`Error::AlreadyExists`] for an overlap with another trap.
    pub fn set_trap(
        &self,
        kind: TrapKind,
        addr: u64,
        size: u64,
        key: u64,
        sink: Option<Box<dyn BellSink>>,
    ) -> Result<(), Error> {
        if kind == TrapKind::Io {
            if sink.is_some() {
                return Err(Error::InvalidArgs("a port trap has no bell"));
            }
            if size == 0 {
                return Err(Error::InvalidArgs("the range is empty"));
            }
            let end = addr.checked_add(size).filter(|&end| end <= PORTS);
            let end = end.ok_or(Error::OutOfRange("the port range"))?;
            return self
                .traps
                .write()
                .unwrap_or_else(PoisonError::into_inner)
                .ports
                .insert(addr, end, key);
        }
        let trap = match (kind, sink) {
            (TrapKind::Bell, Some(sink)) => Trap::Bell { key, sink: sink.into() },
            (TrapKind::Bell, None) => return Err(Error::InvalidArgs("a bell trap needs a bell")),
            (_, Some(_)) => return Err(Error::InvalidArgs("a memory trap has no bell")),
            (_, None) => Trap::Mem { key },
        };
        let (first, end) = page_range(addr, size)?;
        let _regions = lock(&self.regions);
        let mut traps = self.traps.write().unwrap_or_else(PoisonError::into_inner);
        traps.memory.insert(addr, addr + size, trap)?;
        self.ram.set_range(first, end, false);
        drop(traps);
        self.flush_all_tlbs();
        Ok(())
    }

    /// The trap at a guest-physical address.
    pub(crate) fn memory_trap(&self, gpa: u64) -> Option<Trap> {
        self.traps.read().unwrap_or_else(PoisonError::into_inner).memory.get(gpa).cloned()
    }

    /// The key of the trap at a port.
    pub(crate) fn port_trap(&self, port: u16) -> Option<u64> {
        self.traps.read().unwrap_or_else(PoisonError::into_inner).ports.get(port.into()).copied()
    }

    /// Copies bytes out of guest RAM, for tools and tests. Fails when the range is not all RAM.
    pub fn read_memory(&self, gpa: u64, buffer: &mut [u8]) -> Result<(), Error> {
        self.for_each_page(gpa, buffer.len(), |host, start, len| {
            // SAFETY: `host` is good for `len` bytes of RAM up to the end of its page; the buffer is ours.
            unsafe { ptr::copy_nonoverlapping(host, buffer[start..start + len].as_mut_ptr(), len) };
        })
    }

    /// Copies bytes into guest RAM, for loaders and tests that run before the vCPUs. Fails when the range is not all RAM.
    pub fn write_memory(&self, gpa: u64, data: &[u8]) -> Result<(), Error> {
        self.count_device_event();
        self.for_each_page(gpa, data.len(), |host, start, len| {
            // SAFETY: `host` is good for `len` bytes of RAM up to the end of its page; `data` is not guest memory.
            unsafe { ptr::copy_nonoverlapping(data[start..start + len].as_ptr(), host, len) };
        })
    }

    fn for_each_page(
        &self,
        gpa: u64,
        len: usize,
        mut f: impl FnMut(*mut u8, usize, usize),
    ) -> Result<(), Error> {
        let mut done = 0;
        while done < len {
            let at =
                gpa.checked_add(done as u64).ok_or(Error::OutOfRange("guest-physical address"))?;
            let host = self.host(at).ok_or(Error::OutOfRange("not guest RAM"))?;
            let part = (len - done).min((PAGE_SIZE - at % PAGE_SIZE) as usize);
            f(host, done, part);
            done += part;
        }
        Ok(())
    }

    pub(crate) fn lock_split_access(&self) -> MutexGuard<'_, ()> {
        lock(&self.split_lock)
    }

    /// A value that moves whenever a device may have written guest memory.
    pub(crate) fn device_events(&self) -> u64 {
        self.device_events.load(Ordering::Acquire)
    }

    pub(crate) fn count_device_event(&self) {
        self.device_events.fetch_add(1, Ordering::AcqRel);
    }

    /// Takes the next vCPU number; 0 is the bootstrap processor.
    pub(crate) fn allocate_vcpu_id(&self) -> Result<u32, Error> {
        let next = |n: u64| (n < MAX_VCPUS as u64).then_some(n + 1);
        self.vcpus_created
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, next)
            .map(|id| id as u32)
            .map_err(|_| Error::OutOfRange("a guest has at most 64 vCPUs"))
    }

    pub(crate) fn add_vcpu(&self, remote: &Arc<VcpuRemote>) {
        let mut vcpus = lock(&self.vcpus);
        vcpus.retain(|vcpu| vcpu.strong_count() != 0);
        vcpus.push(Arc::downgrade(remote));
    }

    /// The vCPUs that exist now.
    pub(crate) fn vcpus(&self) -> Vec<Arc<VcpuRemote>> {
        lock(&self.vcpus).iter().filter_map(Weak::upgrade).collect()
    }

    /// Asks every vCPU to drop its TLB before it next looks at a trap or a mapping.
    fn flush_all_tlbs(&self) {
        for vcpu in self.vcpus() {
            vcpu.request_flush();
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // SAFETY: the reservation was made in `new` with this length; vCPUs hold an `Arc<Guest>`, so none is left.
        // A failure would leak address space and nothing else.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), PHYSICAL_SIZE as usize) };
    }
}

/// Locks, also after a panic of another holder: every critical section here leaves its data valid.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Checks a page-aligned, non-empty range of guest-physical memory and gives its page numbers.
fn page_range(gpa: u64, len: u64) -> Result<(u64, u64), Error> {
    if len == 0 || !gpa.is_multiple_of(PAGE_SIZE) || !len.is_multiple_of(PAGE_SIZE) {
        return Err(Error::InvalidArgs("the range is empty or not made of whole pages"));
    }
    let end = gpa.checked_add(len).filter(|&end| end <= PHYSICAL_SIZE);
    let end = end.ok_or(Error::OutOfRange("guest-physical address"))?;
    Ok((gpa / PAGE_SIZE, end / PAGE_SIZE))
}

/// Removes `first..end` from a set of page ranges.
fn remove_range(regions: &mut Vec<(u64, u64)>, first: u64, end: u64) {
    let rest = regions
        .drain(..)
        .flat_map(|(start, stop)| [(start, stop.min(first)), (start.max(end), stop)]);
    *regions = rest.filter(|(start, stop)| start < stop).collect();
}
