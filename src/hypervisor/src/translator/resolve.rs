//! From an instruction pointer to a block: page identity, look-up, decoding and translation.

use iced_x86::{Code, Decoder, DecoderOptions};

use super::cache::{Block, BlockId, Mode, Region, RegionId, Site};
use super::classify::{Class, Unit, form};
use super::emit::{Emitter, Insn, MAX_INSTRUCTIONS, Source, ends_block};
use super::liveness::{STATUS, flag_use};
use super::{RunExit, evict, smc};
use crate::cpu::Cpu;
use crate::exception::Exception;
use crate::mmu::{self, Access, AccessKind};
use crate::registers::{cr0, cr4};
use crate::tlb::View;

/// Bytes from which a block is decoded at most.
const WINDOW: usize = 512;

/// The block for the current RIP and mode, translated now if need be.
pub(super) fn block(cpu: &mut Cpu) -> Result<BlockId, RunExit> {
    let va = cpu.state.rip;
    notice_mode(cpu);
    let id = region(cpu, va)?;
    if let Some(&block) = cpu.translator.cache.by_address.get(&(id, va)) {
        if second_page_is_current(cpu, block)? {
            return Ok(block);
        }
        super::links::invalidate(cpu, block);
    }
    translate(cpu, id, va)
}

fn mode(cpu: &Cpu) -> Mode {
    let state = &cpu.state;
    let emulate = state.cr0 & cr0::EM != 0;
    let switched = state.cr0 & cr0::TS != 0;
    let x87 = !emulate && !switched;
    let sse = x87 && state.cr4 & cr4::OSFXSR != 0;
    let avx = !switched && state.cr4 & cr4::OSXSAVE != 0 && state.xcr0 & 6 == 6;
    let bit = |unit: Unit, on: bool| u8::from(on) << unit as u8;
    Mode {
        user: state.cpl == 3,
        units: bit(Unit::X87, x87)
            | bit(Unit::Mmx, x87)
            | bit(Unit::Sse, sse)
            | bit(Unit::Avx, avx),
        tsc: state.cpl != 3 || state.cr4 & cr4::TSD == 0,
        fsgsbase: state.cr4 & cr4::FSGSBASE != 0,
        single: cpu.translator.single,
    }
}

/// Forgets the code pages' identities if the mode, apart from the privilege level, is not the one they were noted in.
fn notice_mode(cpu: &mut Cpu) {
    let mode = Mode { user: false, single: false, ..mode(cpu) };
    if cpu.translator.mode.replace(mode).is_some_and(|old| old != mode) {
        cpu.tlb.forget_code();
    }
}

/// Identity of the code page at `va` in the current mode.
pub(super) fn region(cpu: &mut Cpu, va: u64) -> Result<RegionId, RunExit> {
    let mode = mode(cpu);
    let view = View::current(&cpu.state);
    let id = cpu.tlb.code(view, va);
    if id != 0 {
        let region = cpu.translator.cache.region(id);
        if region.contains(va) && region.mode == mode {
            return Ok(id);
        }
    }
    let access = Access::current(cpu, AccessKind::Execute);
    let mapping = mmu::walk(cpu, va, access).map_err(RunExit::Exception)?;
    // Guest RAM need not be there for the whole of a huge page; 2 MiB is as large as a region gets.
    let size = mapping.page_size.min(2 << 20);
    let region = Region { va: va & !(size - 1), gpa: mapping.gpa & !(size - 1), size, mode };
    let id = cpu.translator.cache.intern(region);
    smc::check_page(cpu, mapping.gpa & !0xfff);
    if !mode.single {
        cpu.tlb.set_code(view, va, id, mapping.global, mapping.page_size);
    }
    Ok(id)
}

/// For a block whose only instruction crosses into another region: whether that region is the same as ever.
fn second_page_is_current(cpu: &mut Cpu, block: BlockId) -> Result<bool, RunExit> {
    let Some((va, id)) = cpu.translator.cache.blocks[block].second else {
        return Ok(true);
    };
    Ok(region(cpu, va)? == id)
}

/// Copies the instruction bytes at `va` that lie in its page, and in the next one if the region has it.
fn fetch(cpu: &Cpu, region: Region, va: u64, bytes: &mut [u8; WINDOW]) -> Option<usize> {
    let mut done = 0;
    let in_page = (4096 - (va & 0xfff) as usize).min(WINDOW);
    let mut parts = vec![in_page];
    if in_page < 15 {
        parts.push(15 - in_page);
    }
    for len in parts {
        let at = va.wrapping_add(done as u64);
        if !region.contains(at) {
            break;
        }
        let Some(host) = cpu.guest.host(region.gpa_of(at)) else {
            break;
        };
        // SAFETY: `host` is good to the end of its page and `len` stays in it; concurrent guest writes can only tear bytes.
        unsafe { std::ptr::copy_nonoverlapping(host, bytes[done..].as_mut_ptr(), len) };
        done += len;
    }
    (done != 0).then_some(done)
}

/// Decodes and translates a block.
fn translate(cpu: &mut Cpu, id: RegionId, va: u64) -> Result<BlockId, RunExit> {
    // Making room may drop the regions as well.
    let id = if evict::make_room(cpu) { region(cpu, va)? } else { id };
    let region = *cpu.translator.cache.region(id);
    // Before the bytes are read: a store after this must find the page watched.
    let page_end = 4096 - (va & 0xfff);
    let first = region.gpa_of(va) & !0xfff;
    let following = va.wrapping_add(page_end);
    if page_end < 15 && region.contains(following) {
        smc::watch(cpu, region.gpa_of(following));
    }
    smc::watch(cpu, first);
    let mut bytes = [0; WINDOW];
    let Some(mut len) = fetch(cpu, region, va, &mut bytes) else {
        // Code outside RAM reads as open bus.
        return Err(RunExit::Exception(Exception::ud()));
    };
    let mut instructions = decode(cpu, region, va, id, &bytes[..len]);
    let mut second = None;
    if instructions.is_empty() {
        // Nothing decodes from the first page: the instruction crosses into the next, or there is none.
        if len < 15 && !region.contains(va.wrapping_add(len as u64)) {
            let next = va.wrapping_add(len as u64);
            let next_id = self::region(cpu, next)?;
            let next_region = *cpu.translator.cache.region(next_id);
            smc::watch(cpu, next_region.gpa_of(next) & !0xfff);
            let mut more = [0; WINDOW];
            if let Some(extra) = fetch(cpu, next_region, next, &mut more) {
                let extra = extra.min(15 - len);
                bytes[len..len + extra].copy_from_slice(&more[..extra]);
                len += extra;
                second = Some((next, next_id));
                instructions = decode(cpu, region, va, id, &bytes[..len]);
                instructions.truncate(1);
            }
        }
        if instructions.is_empty() {
            let exception = if len >= 15 && too_long(va, &bytes[..15]) {
                Exception::gp(0)
            } else {
                Exception::ud()
            };
            return Err(RunExit::Exception(exception));
        }
    }
    let single = cpu.translator.single;
    if single {
        instructions.truncate(1);
    }
    liveness(&mut instructions, &bytes[..len], va, single);
    Ok(emit(cpu, region, id, va, &bytes[..len], &instructions, second))
}

fn too_long(va: u64, bytes: &[u8]) -> bool {
    let mut decoder = Decoder::with_ip(64, bytes, va, DecoderOptions::NONE);
    let _ = decoder.decode();
    decoder.last_error() == iced_x86::DecoderError::NoMoreBytes
}

/// Decodes a run of instructions up to a transfer, a known block, the page's end or the limit.
fn decode(cpu: &Cpu, region: Region, va: u64, id: RegionId, bytes: &[u8]) -> Vec<Insn> {
    let mut list: Vec<Insn> = Vec::with_capacity(16);
    let mut decoder = Decoder::with_ip(64, bytes, va, DecoderOptions::NONE);
    while decoder.can_decode() && list.len() < MAX_INSTRUCTIONS {
        let at = decoder.ip();
        let offset = decoder.position();
        if !list.is_empty() {
            let crossed = at & !0xfff != va & !0xfff;
            if crossed || cpu.translator.cache.by_address.contains_key(&(id, at)) {
                break;
            }
        }
        let instruction = decoder.decode();
        if instruction.is_invalid() && decoder.last_error() == iced_x86::DecoderError::NoMoreBytes {
            break;
        }
        let length = instruction.len() as u8;
        let end = at.wrapping_add(length.into()).wrapping_sub(1);
        if !region.contains(end) && !list.is_empty() {
            break;
        }
        let form = form(instruction.code());
        list.push(Insn {
            instruction,
            form,
            va: at,
            offset,
            length,
            live_in: 0,
            live_out: 0,
            is_target: false,
            is_loop: false,
        });
        if ends_block(form.class) {
            break;
        }
    }
    list
}

/// Fills in the flags' liveness and which instructions are jump targets.
fn liveness(list: &mut [Insn], bytes: &[u8], va: u64, single: bool) {
    let find = |list: &[Insn], target: u64| {
        if single { None } else { list.binary_search_by_key(&target, |insn| insn.va).ok() }
    };
    for index in 0..list.len() {
        if !matches!(list[index].form.class, Class::Jcc | Class::Loop | Class::Jmp) {
            continue;
        }
        let target = list[index].instruction.near_branch64();
        if let Some(to) = find(list, target) {
            list[to].is_target = true;
            list[to].is_loop |= to <= index;
        }
    }
    let bytes = &bytes[..bytes.len().min(extent(list))];
    let outside = |target: u64| if single { STATUS } else { live_at(bytes, va, target) };
    loop {
        let mut changed = false;
        for index in (0..list.len()).rev() {
            let insn = list[index];
            let next = match list.get(index + 1) {
                Some(next) => next.live_in,
                None => outside(insn.va.wrapping_add(insn.length.into())),
            };
            let at_target = || {
                let target = insn.instruction.near_branch64();
                find(list, target).map_or_else(|| outside(target), |to| list[to].live_in)
            };
            let (live_in, live_out) = flow(&insn, next, at_target);
            if live_in != insn.live_in || live_out != insn.live_out {
                list[index].live_in = live_in;
                list[index].live_out = live_out;
                changed = true;
            }
        }
        if !changed {
            return;
        }
    }
}

/// Liveness before and behind an instruction from the liveness of what follows.
fn flow(insn: &Insn, next: u8, at_target: impl Fn() -> u8) -> (u8, u8) {
    let usage = flag_use(&insn.instruction);
    match insn.form.class {
        Class::Jcc | Class::Loop => {
            let out = next | at_target();
            (out | usage.reads, out)
        }
        Class::Jmp => {
            let out = at_target();
            (out, out)
        }
        Class::Call | Class::CallIndirect => (STATUS, next),
        Class::JmpIndirect
        | Class::Ret
        | Class::Syscall
        | Class::Sysret
        | Class::Iret
        | Class::InterpretEnd
        | Class::Interpret => (STATUS, STATUS),
        Class::RepString | Class::FpState | Class::Element => (next, next),
        Class::Skip => (next, next),
        _ => (next & !usage.kills | usage.reads, next),
    }
}

/// Flags live at an address outside the block, by looking a few instructions ahead where the bytes are at hand.
fn live_at(bytes: &[u8], va: u64, target: u64) -> u8 {
    let offset = target.wrapping_sub(va) as usize;
    if offset >= bytes.len() {
        return STATUS;
    }
    let mut decoder = Decoder::with_ip(64, &bytes[offset..], target, DecoderOptions::NONE);
    let (mut live, mut undecided) = (0, STATUS);
    for _ in 0..6 {
        if !decoder.can_decode() {
            break;
        }
        let instruction = decoder.decode();
        let class = form(instruction.code()).class;
        if instruction.code() == Code::INVALID
            || !matches!(class, Class::Copy | Class::Skip | Class::Lea)
        {
            break;
        }
        let usage = flag_use(&instruction);
        live |= usage.reads & undecided;
        undecided &= !usage.kills;
        if undecided == 0 {
            return live;
        }
    }
    live | undecided
}

/// Emits a decoded block and enters it into the cache.
fn emit(
    cpu: &mut Cpu,
    region: Region,
    id: RegionId,
    va: u64,
    bytes: &[u8],
    instructions: &[Insn],
    second: Option<(u64, RegionId)>,
) -> BlockId {
    let translator = &mut *cpu.translator;
    let segment = translator.arena.current();
    let block = translator.cache.blocks.next(segment);
    let source = Source {
        region,
        region_id: id,
        block,
        first_link: translator.cache.links.next(segment),
        first_interpreted: translator.cache.interpreted.next(segment),
        bytes,
        instructions,
        second,
        single: translator.single,
    };
    let base = translator.arena.cursor();
    translator.asm.reset(base);
    let product = Emitter::new(
        &mut translator.asm,
        translator.env,
        translator.stubs,
        &mut translator.encoder,
        &mut translator.infos,
        source,
    )
    .emit();
    let offset = translator.arena.offset() as u32;
    let appended = translator.arena.append(&translator.asm.code);
    assert!(appended == Some(base), "a block is larger than the room kept for it");
    translator.counters.blocks += 1;
    translator.counters.instructions += instructions.len() as u64;
    translator.counters.bytes += translator.asm.code.len() as u64;
    let cache = &mut translator.cache;
    for (at, index, parked) in product.sites {
        let insn = &instructions[usize::from(index)];
        let guest = insn.offset as u16;
        let site = Site { offset: offset + at, block, guest, length: insn.length, parked };
        cache.sites.push(segment, site);
    }
    cache.links.extend(segment, product.links);
    cache.interpreted.extend(segment, product.interpreted);
    let made = Block {
        region: id,
        va,
        main: base + product.main as u64,
        slot: base + product.slot as u64,
        forward: base + product.forward as u64,
        indirect: 0,
        flags_live: instructions.first().is_some_and(|insn| insn.live_in != 0),
        valid: true,
        second,
        return_sites: product.return_sites,
        incoming: Vec::new(),
    };
    cache.blocks.push(segment, made);
    cache.by_address.insert((id, va), block);
    // Bytes looked at for liveness count too: the block is wrong if they change.
    smc::depend(cpu, block, region, va, bytes.len().min(extent(instructions)), second);
    cpu.stats.blocks += 1;
    block
}

/// Bytes of the block, plus those `live_at` may have read behind it.
fn extent(instructions: &[Insn]) -> usize {
    instructions.last().map_or(0, |insn| insn.offset + usize::from(insn.length)) + 64
}
