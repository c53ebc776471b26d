//! Connecting blocks, and taking them apart again.

use super::asm::{Alu, cc, reg};
use super::cache::{BlockId, LinkId};
use super::emit::code_identity;
use super::{RunExit, Translator, resolve};
use crate::cpu::Cpu;

/// Finds where a direct link leads now, links it for next time, and gives the host address to go on at.
/// RIP is the target; the status flags are in `rflags`.
pub(super) fn follow(cpu: &mut Cpu, link: LinkId) -> Result<u64, RunExit> {
    let generation = cpu.translator.counters.flushes;
    let target = resolve::block(cpu)?;
    let translator = &mut *cpu.translator;
    // Translating may have emptied the cache, and the link with it.
    if translator.counters.flushes == generation {
        translator.connect(link, target);
    }
    Ok(translator.cache.blocks[target].main)
}

/// The host address of the block at RIP, entered into the jump table.
pub(super) fn follow_indirect(cpu: &mut Cpu) -> Result<u64, RunExit> {
    let va = cpu.state.rip;
    let block = resolve::block(cpu)?;
    let translator = &mut *cpu.translator;
    if !translator.single {
        let entry = translator.indirect_entry(block);
        translator.jump_table.set(va, entry);
    }
    Ok(translator.cache.blocks[block].main)
}

impl Translator {
    fn connect(&mut self, link: LinkId, target: BlockId) {
        let l = &self.cache.links[link];
        let (displacement, immediate, slot, forward, from) =
            (l.displacement, l.region_immediate, l.slot, l.forward, l.from);
        let block = &self.cache.blocks[target];
        if !self.cache.blocks[from].valid {
            return;
        }
        let same_region = self.cache.blocks[from].region == block.region;
        if immediate == 0 && !same_region {
            return;
        }
        let entry = match (slot, forward) {
            (_, true) if !block.flags_live => block.forward,
            (true, _) => block.slot,
            (false, _) => block.main,
        };
        let region = block.region;
        self.arena.patch_rel32(displacement, entry);
        if immediate != 0 {
            self.arena.patch(immediate, &region.to_le_bytes());
        }
        let before = self.cache.links[link].to.replace(target);
        if before == Some(target) {
            return;
        }
        if let Some(before) = before {
            self.cache.blocks[before].incoming.retain(|&other| other != link);
        }
        self.cache.blocks[target].incoming.push(link);
    }

    /// The entry of `block` for the jump table: checks that this is where the guest meant to go.
    fn indirect_entry(&mut self, block: BlockId) -> u64 {
        let b = &self.cache.blocks[block];
        if b.indirect != 0 {
            return b.indirect;
        }
        let (va, region, slot) = (b.va, b.region, b.slot);
        let miss = self.stubs.indirect;
        self.asm.reset(self.arena.cursor());
        match i32::try_from(va as i64) {
            Ok(imm) => self.asm.alu_imm(Alu::Cmp, true, reg::S0, imm),
            Err(_) => {
                self.asm.mov_imm(reg::S1, va);
                self.asm.alu_rr(Alu::Cmp, reg::S0, reg::S1);
            }
        }
        self.asm.jcc(cc::NE, miss);
        self.asm.alu_mem_imm32_patchable(Alu::Cmp, code_identity(va), region);
        self.asm.jcc(cc::NE, miss);
        self.asm.jmp(slot);
        // The room kept for blocks is far larger than an entry.
        let entry = self.arena.append(&self.asm.code).unwrap_or(miss);
        self.cache.blocks[block].indirect = entry;
        entry
    }
}

/// Makes a block unreachable: it runs on to its next exit at most.
pub(super) fn invalidate(cpu: &mut Cpu, block: BlockId) {
    let translator = &mut *cpu.translator;
    let b = &mut translator.cache.blocks[block];
    if !b.valid {
        return;
    }
    b.valid = false;
    translator.counters.invalidated += 1;
    let (region, va, indirect) = (b.region, b.va, b.indirect);
    let incoming = std::mem::take(&mut b.incoming);
    let return_sites = std::mem::take(&mut b.return_sites);
    translator.cache.by_address.remove(&(region, va));
    for link in incoming {
        let link = &mut translator.cache.links[link];
        link.to = None;
        let (displacement, stub) = (link.displacement, link.stub);
        translator.arena.patch_rel32(displacement, stub);
    }
    if indirect != 0 {
        translator.jump_table.remove(va, indirect);
        // The entry itself may be what is being patched around: close it as well.
        let miss = translator.stubs.indirect;
        translator.close(indirect, miss);
    }
    let dispatch = translator.stubs.dispatch;
    for site in return_sites {
        translator.close(site, dispatch);
    }
}

impl Translator {
    /// Overwrites code at `at` with a jump.
    fn close(&mut self, at: u64, target: u64) {
        let rel = target.wrapping_sub(at + 5) as i32;
        let mut bytes = [0xe9, 0, 0, 0, 0];
        bytes[1..].copy_from_slice(&rel.to_le_bytes());
        self.arena.patch(at, &bytes);
    }
}
