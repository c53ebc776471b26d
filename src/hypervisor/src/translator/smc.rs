//! Code that changes: by this vCPU's stores, by other vCPUs, by devices.
//!
//! A page with translations is *watched*: no TLB of the guest lets translated code store to it inline. The slow path of
//! a store sees whether the bytes belong to a block and drops the page's blocks first. Devices write behind the
//! TLB's back, so a page's bytes are compared with what was translated whenever its identity is looked up again after
//! something a device may have acted on.

use super::cache::{BlockId, CodePage, Region, RegionId};
use super::links;
use crate::code_map::{self, CodeRequest};
use crate::cpu::Cpu;
use crate::guest::Guest;

/// Watches the page at `gpa` from now on: before its bytes are read for translation.
pub(super) fn watch(cpu: &mut Cpu, gpa: u64) {
    let page = gpa >> 12;
    let id = cpu.remote.id();
    if cpu.guest.code.watch(page, id) {
        cpu.tlb.protect(gpa);
        let vcpus = cpu.guest.vcpus();
        code_map::protect_elsewhere(&vcpus, page, id);
        if vcpus.len() == 1 {
            cpu.guest.code.inline_stores_ended(page);
        }
    }
    let guest = &cpu.guest;
    cpu.translator.cache.pages.entry(gpa >> 12).or_insert_with(|| {
        let mut page = CodePage::new();
        page.checked_at = guest.device_events();
        page
    });
}

/// Notes that `block` was made from `len` bytes at `va`.
pub(super) fn depend(
    cpu: &mut Cpu,
    block: BlockId,
    region: Region,
    va: u64,
    len: usize,
    second: Option<(u64, RegionId)>,
) {
    let first = len.min(4096 - (va & 0xfff) as usize);
    mark(cpu, block, region.gpa_of(va), first);
    if first == len {
        return;
    }
    let next = va.wrapping_add(first as u64);
    match second {
        Some((at, id)) => {
            let gpa = cpu.translator.cache.region(id).gpa_of(at);
            mark(cpu, block, gpa, len - first);
        }
        None if region.contains(next) => mark(cpu, block, region.gpa_of(next), len - first),
        None => {}
    }
}

fn mark(cpu: &mut Cpu, block: BlockId, gpa: u64, len: usize) {
    let guest = &cpu.guest;
    let Some(page) = cpu.translator.cache.pages.get_mut(&(gpa >> 12)) else {
        return;
    };
    let offset = (gpa & 0xfff) as usize;
    for line in offset / 64..=(offset + len - 1).min(4095) / 64 {
        if page.bytes[line] == 0 {
            page.hash ^= hash_line(guest, gpa & !0xfff, line);
        }
    }
    page.mark(offset, len);
    page.blocks.push(block);
    guest.code.depend(gpa, len);
}

/// A hash of one 64-byte line of a page of RAM.
fn hash_line(guest: &Guest, page: u64, line: usize) -> u64 {
    let Some(host) = guest.host(page) else {
        return 0;
    };
    let mut hash = line as u64 + 1;
    for word in 0..8 {
        // SAFETY: `host` is good for its whole page and the word lies in it; other CPUs may write it meanwhile, hence volatile.
        let value = unsafe { host.add(line * 64 + word * 8).cast::<u64>().read_volatile() };
        hash = (hash ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 32;
    }
    hash
}

/// Drops the page's blocks if a device changed what they were made from.
pub(super) fn check_page(cpu: &mut Cpu, gpa: u64) {
    let events = cpu.guest.device_events();
    let Some(page) = cpu.translator.cache.pages.get_mut(&(gpa >> 12)) else {
        return;
    };
    if page.checked_at == events {
        return;
    }
    page.checked_at = events;
    recheck(cpu, gpa >> 12);
}

/// Drops the blocks of page number `number` if its bytes are not what they were made from.
fn recheck(cpu: &mut Cpu, number: u64) {
    let Some(page) = cpu.translator.cache.pages.get(&number) else {
        return;
    };
    let lines = (0..64).filter(|&line| page.bytes[line] != 0);
    let hash = lines.fold(0, |hash, line| hash ^ hash_line(&cpu.guest, number << 12, line));
    if hash != page.hash {
        drop_page(cpu, number);
    }
}

/// True if a store of `size` bytes at `gpa` changes bytes that code of some vCPU was made from.
pub(super) fn hits_code(cpu: &Cpu, gpa: u64, size: usize) -> bool {
    cpu.guest.code.is_watched(gpa >> 12) && cpu.guest.code.users(gpa, size) != 0
}

/// True if a store changes bytes that some block of this vCPU was made from.
fn hits_own_code(cpu: &Cpu, gpa: u64, size: usize) -> bool {
    let page = cpu.translator.cache.pages.get(&(gpa >> 12));
    page.is_some_and(|page| page.overlaps((gpa & 0xfff) as usize, size))
}

/// Acts on stores by Rust code, here and on other vCPUs; true if a block was dropped here.
pub(super) fn drain(cpu: &mut Cpu) -> bool {
    let mut changed = false;
    while let Some((gpa, size)) = cpu.translator.code_writes.pop() {
        let others = cpu.guest.code.users(gpa, size) & !(1 << cpu.remote.id());
        if others != 0 {
            for vcpu in cpu.guest.vcpus().iter().filter(|vcpu| others >> vcpu.id() & 1 != 0) {
                vcpu.post(CodeRequest::Stored { gpa, len: size });
            }
        }
        if hits_own_code(cpu, gpa, size) {
            drop_page(cpu, gpa >> 12);
            changed = true;
        }
    }
    changed
}

fn drop_page(cpu: &mut Cpu, page: u64) {
    let Some(dropped) = cpu.translator.cache.pages.remove(&page) else {
        return;
    };
    for block in dropped.blocks {
        links::invalidate(cpu, block);
    }
    cpu.guest.code.unwatch(page, cpu.remote.id());
}

/// Acts on requests of other vCPUs.
pub(crate) fn serve_requests(cpu: &mut Cpu) {
    drain(cpu);
    let batch = cpu.remote.code.take();
    if batch.overflow {
        cpu.flush_tlb();
        let pages: Vec<u64> = cpu.translator.cache.pages.keys().copied().collect();
        for page in pages {
            recheck(cpu, page);
        }
    }
    for &request in &batch.requests {
        match request {
            CodeRequest::Protect { page, .. } => cpu.tlb.protect(page << 12),
            CodeRequest::Recheck { page } => recheck(cpu, page),
            CodeRequest::Stored { gpa, len } if hits_own_code(cpu, gpa, len) => {
                drop_page(cpu, gpa >> 12);
            }
            CodeRequest::Stored { .. } => {}
        }
    }
    cpu.remote.code.answer(&batch);
    // Stores up to now may have gone unnoticed by the one who asked.
    for request in batch.requests {
        if let CodeRequest::Protect { page, from: Some(from) } = request
            && let Some(vcpu) = cpu.guest.vcpus().iter().find(|vcpu| vcpu.id() == from)
        {
            vcpu.post(CodeRequest::Recheck { page });
        }
    }
}

/// The vCPU's thread is about to sleep or to leave the guest: nobody need wait for it.
pub(crate) fn before_sleep(cpu: &mut Cpu) {
    serve_requests(cpu);
    cpu.remote.code.park(true);
}

/// The vCPU's thread is back.
pub(crate) fn after_sleep(cpu: &mut Cpu) {
    cpu.remote.code.park(false);
    serve_requests(cpu);
}
