//! Accesses of Rust code to guest memory through the guest's page tables.
//!
//! Two kinds: an instruction's data accesses, which can meet traps, and implicit accesses to system structures
//! (descriptor tables, the TSS, interrupt stacks), for which a trapped page is open bus.

use crate::cpu::Cpu;
use crate::exception::{Exception, Fault};
use crate::guest::{BellSink, PAGE_SIZE, Trap};
use crate::host_access;
use crate::mmu::{self, Access, AccessKind};
use std::sync::Arc;

/// What lies behind a piece of a guest access.
enum Place {
    /// RAM, at this host address.
    Ram { host: *mut u8, gpa: u64 },
    /// A doorbell: writes ring it, reads are open bus.
    Bell { key: u64, sink: Arc<dyn BellSink>, gpa: u64 },
    /// Neither RAM nor trapped: reads are all ones, writes are dropped.
    Open,
}

/// A translated data operand: 1 to 64 bytes, in one or two pages.
pub(crate) struct Span {
    first: Place,
    /// Length of the first part, and what follows on the next page.
    split: Option<(usize, Place)>,
    size: usize,
}

fn place(cpu: &mut Cpu, va: u64, access: Access) -> Result<Place, Fault> {
    if let Some((host, gpa)) = cpu.lookup(va, access)? {
        return Ok(Place::Ram { host, gpa });
    }
    let gpa = mmu::walk(cpu, va, access)?.gpa;
    match cpu.guest.memory_trap(gpa) {
        Some(Trap::Mem { key }) => Err(Fault::MemTrap { key, gpa }),
        Some(Trap::Bell { key, sink }) => Ok(Place::Bell { key, sink, gpa }),
        None => {
            cpu.stats.open_bus += 1;
            Ok(Place::Open)
        }
    }
}

impl Span {
    /// Translates an operand of the current instruction. Faults are taken here, before any byte is read or written.
    pub(crate) fn new(cpu: &mut Cpu, va: u64, size: usize, access: Access) -> Result<Span, Fault> {
        let first = place(cpu, va, access)?;
        let room = (PAGE_SIZE - va % PAGE_SIZE) as usize;
        let split = if room < size {
            let next = cpu.wrap_linear(va.wrapping_add(room as u64));
            Some((room, place(cpu, next, access)?))
        } else {
            None
        };
        Ok(Span { first, split, size })
    }

    /// The operand's host address when it is RAM in one page.
    pub(crate) fn host(&self) -> Option<*mut u8> {
        match (&self.first, &self.split) {
            (Place::Ram { host, .. }, None) => Some(*host),
            _ => None,
        }
    }

    /// Reads an operand of up to 8 bytes.
    pub(crate) fn load(&self) -> u64 {
        match self.host() {
            // SAFETY: `host` is good to the end of its page, and without a split the operand ends there or before.
            Some(host) if matches!(self.size, 1 | 2 | 4 | 8) => unsafe {
                host_access::load(host, self.size)
            },
            _ => {
                let mut bytes = [0; 8];
                let size = self.size.min(8);
                self.read(&mut bytes[..size]);
                u64::from_le_bytes(bytes)
            }
        }
    }

    /// Writes an operand of up to 8 bytes.
    pub(crate) fn store(&self, cpu: &mut Cpu, value: u64) -> Result<(), Fault> {
        match (&self.first, &self.split) {
            (Place::Ram { host, gpa }, None) if matches!(self.size, 1 | 2 | 4 | 8) => {
                cpu.before_store(*gpa, self.size);
                // SAFETY: as in `load`.
                unsafe { host_access::store(*host, self.size, value) };
                Ok(())
            }
            _ => self.write(cpu, &value.to_le_bytes()[..self.size.min(8)]),
        }
    }

    /// Reads the operand's bytes; `bytes` is as long as the operand.
    pub(crate) fn read(&self, bytes: &mut [u8]) {
        let cut = self.split.as_ref().map_or(bytes.len(), |split| split.0.min(bytes.len()));
        let (head, tail) = bytes.split_at_mut(cut);
        read_place(&self.first, head);
        if let Some((_, place)) = &self.split {
            read_place(place, tail);
        }
    }

    /// Writes the operand's bytes; `bytes` is as long as the operand.
    pub(crate) fn write(&self, cpu: &mut Cpu, bytes: &[u8]) -> Result<(), Fault> {
        let cut = self.split.as_ref().map_or(bytes.len(), |split| split.0.min(bytes.len()));
        let (head, tail) = bytes.split_at(cut);
        write_place(cpu, &self.first, head)?;
        match &self.split {
            Some((_, place)) => write_place(cpu, place, tail),
            None => Ok(()),
        }
    }

    /// Replaces the operand's value by `f` of it, atomically if `locked`. `f` may run several times.
    pub(crate) fn update(
        &self,
        cpu: &mut Cpu,
        locked: bool,
        mut f: impl FnMut(u64) -> u64,
    ) -> Result<(), Fault> {
        match (&self.first, self.host()) {
            (Place::Ram { gpa, .. }, Some(host)) if locked => {
                cpu.before_store(*gpa, self.size);
                let mut old = self.load();
                loop {
                    let new = f(old);
                    // SAFETY: the operand is RAM inside one page, as in `load`.
                    let found = unsafe { host_access::compare_exchange(host, self.size, old, new) };
                    if found == old {
                        return Ok(());
                    }
                    old = found;
                }
            }
            _ => {
                // A locked operand across two pages: atomic towards other such operands only.
                let guest = Arc::clone(&cpu.guest);
                let _guard = locked.then(|| guest.lock_split_access());
                let new = f(self.load());
                self.store(cpu, new)
            }
        }
    }

    /// CMPXCHG16B: stores `new` if the operand is `old`, and returns what it was. `Span` must be 16 aligned bytes.
    pub(crate) fn compare_exchange_128(
        &self,
        cpu: &mut Cpu,
        old: u128,
        new: u128,
    ) -> Result<u128, Fault> {
        if let (Place::Ram { gpa, .. }, Some(host)) = (&self.first, self.host()) {
            cpu.before_store(*gpa, 16);
            // SAFETY: the caller checked the alignment, and the CPUID policy offers CX16 only if the host has it.
            return Ok(unsafe { host_access::compare_exchange_128(host, old, new) });
        }
        let mut bytes = [0; 16];
        self.read(&mut bytes);
        let found = u128::from_le_bytes(bytes);
        let value = if found == old { new } else { found };
        self.write(cpu, &value.to_le_bytes())?;
        Ok(found)
    }
}

fn read_place(place: &Place, bytes: &mut [u8]) {
    match place {
        Place::Ram { host, .. } => copy_from(*host, bytes),
        Place::Bell { .. } | Place::Open => bytes.fill(0xff),
    }
}

fn write_place(cpu: &mut Cpu, place: &Place, bytes: &[u8]) -> Result<(), Fault> {
    match place {
        Place::Ram { host, gpa } => {
            cpu.before_store(*gpa, bytes.len());
            copy_to(*host, bytes);
            Ok(())
        }
        Place::Bell { key, sink, gpa } => {
            cpu.stats.bells += 1;
            cpu.guest.count_device_event();
            // The receiver may keep us waiting; other vCPUs need not wait with us.
            cpu.remote.code.park(true);
            let rung = sink.ring(*key, *gpa);
            cpu.remote.code.park(false);
            rung.map_err(|_| Fault::BellClosed)
        }
        Place::Open => Ok(()),
    }
}

/// Copies guest bytes that lie in one page of RAM.
fn copy_from(host: *const u8, bytes: &mut [u8]) {
    // SAFETY: the caller got `host` for this many bytes of its page; the buffer is not guest memory. A concurrent write
    // of the guest can tear the value and nothing else.
    unsafe { std::ptr::copy_nonoverlapping(host, bytes.as_mut_ptr(), bytes.len()) }
}

/// Copies bytes into one page of guest RAM.
fn copy_to(host: *mut u8, bytes: &[u8]) {
    // SAFETY: as in `copy_from`.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), host, bytes.len()) }
}

/// Reads a data operand of up to 8 bytes.
pub(crate) fn load(cpu: &mut Cpu, va: u64, size: usize) -> Result<u64, Fault> {
    let access = Access::current(cpu, AccessKind::Read);
    Ok(Span::new(cpu, va, size, access)?.load())
}

/// Writes a data operand of up to 8 bytes.
pub(crate) fn store(cpu: &mut Cpu, va: u64, size: usize, value: u64) -> Result<(), Fault> {
    let access = Access::current(cpu, AccessKind::Write);
    Span::new(cpu, va, size, access)?.store(cpu, value)
}

/// Reads a data operand of any length up to a page.
pub(crate) fn read(cpu: &mut Cpu, va: u64, bytes: &mut [u8]) -> Result<(), Fault> {
    let access = Access::current(cpu, AccessKind::Read);
    Span::new(cpu, va, bytes.len(), access)?.read(bytes);
    Ok(())
}

/// Writes a data operand of any length up to a page.
pub(crate) fn write(cpu: &mut Cpu, va: u64, bytes: &[u8]) -> Result<(), Fault> {
    let access = Access::current(cpu, AccessKind::Write);
    Span::new(cpu, va, bytes.len(), access)?.write(cpu, bytes)
}

/// Reads up to 8 bytes of a system structure, as supervisor.
pub(crate) fn read_system(cpu: &mut Cpu, va: u64, size: usize) -> Result<u64, Exception> {
    let mut bytes = [0; 8];
    let access = Access::system(cpu, AccessKind::Read);
    for_each_part(cpu, va, size.min(8), access, |_, host, range| match host {
        Some((host, _)) => copy_from(host, &mut bytes[range]),
        None => bytes[range].fill(0xff),
    })?;
    Ok(u64::from_le_bytes(bytes))
}

/// Writes up to 8 bytes with the given rights; traps are open bus.
pub(crate) fn write_as(
    cpu: &mut Cpu,
    va: u64,
    size: usize,
    value: u64,
    access: Access,
) -> Result<(), Exception> {
    let bytes = value.to_le_bytes();
    for_each_part(cpu, va, size.min(8), access, |cpu, host, range| {
        if let Some((host, gpa)) = host {
            cpu.before_store(gpa, range.len());
            copy_to(host, &bytes[range]);
        }
    })
}

/// Fetches instruction bytes at a linear address. Gives how many bytes lie before a page that may not be executed;
/// the fault is returned only when there is none.
pub(crate) fn fetch(cpu: &mut Cpu, va: u64, bytes: &mut [u8]) -> Result<usize, Exception> {
    let access = Access::current(cpu, AccessKind::Execute);
    let first = bytes.len().min((PAGE_SIZE - va % PAGE_SIZE) as usize);
    let mut done = 0;
    for len in [first, bytes.len() - first] {
        if len == 0 {
            continue;
        }
        let at = cpu.wrap_linear(va.wrapping_add(done as u64));
        let part = &mut bytes[done..done + len];
        match cpu.lookup(at, access) {
            Ok(Some((host, _))) => copy_from(host, part),
            Ok(None) => part.fill(0xff),
            Err(fault) if done == 0 => return Err(fault),
            Err(_) => return Ok(done),
        }
        done += len;
    }
    Ok(done)
}

/// Reads guest memory for a debugger: through the page tables as supervisor, without setting accessed flags' side
/// effects on the program's state, and never trapping. False when some byte is not mapped RAM.
pub(crate) fn peek(cpu: &mut Cpu, va: u64, bytes: &mut [u8]) -> bool {
    let access = Access { kind: AccessKind::Read, user: false, smap: false };
    let mut complete = true;
    let size = bytes.len();
    let done = for_each_part(cpu, va, size, access, |_, host, range| match host {
        Some((host, _)) => copy_from(host, &mut bytes[range]),
        None => complete = false,
    });
    done.is_ok() && complete
}

/// Writes guest memory for a debugger, also where the guest may only read. False when some byte is not mapped RAM.
pub(crate) fn poke(cpu: &mut Cpu, va: u64, bytes: &[u8]) -> bool {
    let access = Access { kind: AccessKind::Read, user: false, smap: false };
    let mut complete = true;
    let done = for_each_part(cpu, va, bytes.len(), access, |cpu, host, range| match host {
        Some((host, gpa)) => {
            cpu.before_store(gpa, range.len());
            copy_to(host, &bytes[range]);
        }
        None => complete = false,
    });
    done.is_ok() && complete
}

/// Guest-physical address of a byte of RAM, for a debugger.
pub(crate) fn physical(cpu: &mut Cpu, va: u64) -> Option<u64> {
    let access = Access { kind: AccessKind::Read, user: false, smap: false };
    cpu.lookup(va, access).ok().flatten().map(|(_, gpa)| gpa)
}

/// Writes a byte of guest RAM for a debugger. False when it is RAM no more.
pub(crate) fn poke_physical(cpu: &mut Cpu, gpa: u64, byte: u8) -> bool {
    let Some(host) = cpu.guest.host(gpa) else {
        return false;
    };
    cpu.before_store(gpa, 1);
    copy_to(host, &[byte]);
    true
}

/// Translates every page of a range first, then gives the pieces to `f`.
fn for_each_part(
    cpu: &mut Cpu,
    va: u64,
    size: usize,
    access: Access,
    mut f: impl FnMut(&mut Cpu, Option<(*mut u8, u64)>, std::ops::Range<usize>),
) -> Result<(), Exception> {
    let part_at = |done: usize| {
        let at = va.wrapping_add(done as u64);
        (at, (size - done).min((PAGE_SIZE - at % PAGE_SIZE) as usize))
    };
    let (_, first) = part_at(0);
    if first == size {
        let host = cpu.lookup(va, access)?;
        f(cpu, host, 0..size);
        return Ok(());
    }
    let mut done = 0;
    while done < size {
        let (at, len) = part_at(done);
        let at = cpu.wrap_linear(at);
        cpu.lookup(at, access)?;
        done += len;
    }
    done = 0;
    while done < size {
        let (at, len) = part_at(done);
        let at = cpu.wrap_linear(at);
        let host = cpu.lookup(at, access)?;
        f(cpu, host, done..done + len);
        done += len;
    }
    Ok(())
}
