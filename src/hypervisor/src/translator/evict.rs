//! Making room in the code cache.
//!
//! Code is appended to one segment of the arena after another. When all are full, the one that is used least is emptied:
//! each look-up by the run loop, which a timer brings about in the hottest code sooner or later, and each call of Rust
//! from translated code counts for the segment it comes from, and old counts fade.

use super::arena::SEGMENTS;
use super::cache::segment_of;
use crate::cpu::Cpu;

/// Use of the segments.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Heat {
    counts: [u32; SEGMENTS],
    /// When each segment was begun, in segments.
    begun: [u64; SEGMENTS],
    /// Segments begun so far.
    segments: u64,
}

impl Heat {
    /// A call of Rust from code in `segment`.
    pub(super) fn note_call(&mut self, segment: Option<usize>) {
        if let Some(segment) = segment {
            self.counts[segment] = self.counts[segment].saturating_add(1);
        }
    }

    /// The run loop enters code in `segment`.
    pub(super) fn note_entry(&mut self, segment: usize) {
        self.counts[segment] = self.counts[segment].saturating_add(64);
    }

    /// The segment to empty: the coldest, of equals the oldest, but not one of the two filled last.
    fn victim(&self) -> usize {
        let old = |&segment: &usize| self.begun[segment] + 1 < self.segments;
        let key = |&segment: &usize| (self.counts[segment], self.begun[segment]);
        (0..SEGMENTS).filter(old).min_by_key(key).unwrap_or(0)
    }

    fn begin(&mut self, segment: usize) {
        for count in &mut self.counts {
            *count /= 2;
        }
        self.segments += 1;
        self.begun[segment] = self.segments;
        self.counts[segment] = 0;
    }
}

/// Sees to it that a block can be added. True if code was dropped, after which nothing that refers to it may be used, and
/// translated code must be re-entered by a fresh look-up.
pub(super) fn make_room(cpu: &mut Cpu) -> bool {
    let translator = &mut *cpu.translator;
    let current = translator.arena.current();
    if translator.cache.is_scattered() {
        flush(cpu);
        return true;
    }
    if translator.arena.has_room() && !translator.cache.tables_are_full(current) {
        return false;
    }
    // Segments are begun in order at first; an unused one has no sites.
    let unused =
        (current + 1..SEGMENTS).find(|&segment| translator.cache.sites.of(segment).is_empty());
    if let Some(segment) = unused {
        begin(cpu, segment);
        return false;
    }
    let victim = translator.heat.victim();
    empty(cpu, victim);
    begin(cpu, victim);
    dropped(cpu);
    true
}

fn begin(cpu: &mut Cpu, segment: usize) {
    let translator = &mut *cpu.translator;
    let keep = if segment == 0 { translator.fixed } else { 0 };
    translator.heat.begin(segment);
    translator.arena.restart(segment, keep);
}

/// Empties the whole cache.
fn flush(cpu: &mut Cpu) {
    for segment in 0..SEGMENTS {
        empty(cpu, segment);
    }
    for segment in (0..SEGMENTS).rev() {
        begin(cpu, segment);
    }
    cpu.translator.cache.clear_regions();
    cpu.tlb.forget_code();
    dropped(cpu);
}

/// Drops the blocks of a segment and everything that leads to them.
fn empty(cpu: &mut Cpu, segment: usize) {
    let translator = &mut *cpu.translator;
    let (cache, arena) = (&mut translator.cache, &mut translator.arena);
    for link in cache.links.numbers(segment) {
        if let Some(to) = cache.links[link].to
            && segment_of(to) != segment
        {
            cache.blocks[to].incoming.retain(|&other| other != link);
        }
    }
    for number in cache.blocks.numbers(segment) {
        let block = &mut cache.blocks[number];
        if !block.valid {
            continue;
        }
        let (address, indirect) = ((block.region, block.va), block.indirect);
        for link in std::mem::take(&mut block.incoming) {
            let link_segment = segment_of(link);
            let link = &mut cache.links[link];
            link.to = None;
            if link_segment != segment {
                arena.patch_rel32(link.displacement, link.stub);
            }
        }
        cache.by_address.remove(&address);
        if indirect != 0 {
            translator.jump_table.remove(address.1, indirect);
        }
    }
    // Entries of other segments' blocks may lie here.
    for block in cache.blocks.iter_mut() {
        if block.indirect != 0 && arena.segment_of(block.indirect) == Some(segment) {
            translator.jump_table.remove(block.va, block.indirect);
            block.indirect = 0;
        }
    }
    let (guest, id) = (&cpu.guest, cpu.remote.id());
    cache.pages.retain(|&page, code| {
        code.blocks.retain(|&block| segment_of(block) != segment);
        if code.blocks.is_empty() {
            guest.code.unwatch(page, id);
        }
        !code.blocks.is_empty()
    });
    cache.native.retain(|_, code| arena.segment_of(*code) != Some(segment));
    cache.clear_segment(segment);
}

/// Code is gone: nothing on the return stack may lead there.
fn dropped(cpu: &mut Cpu) {
    let translator = &mut *cpu.translator;
    translator.return_stack.reset(translator.stubs.underflow);
    translator.counters.flushes += 1;
    // A thunk drops its return address, which is of no use any more, on the way out.
    cpu.state.return_stack = cpu.translator.return_stack.top() - 8;
    cpu.stats.cache_flushes += 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coldest_old_segment_makes_room() {
        let mut heat = Heat::default();
        for segment in 1..SEGMENTS {
            heat.begin(segment);
        }
        // The kernel in segment 0 and a program in segment 2 go on being used.
        for _ in 0..4 * SEGMENTS {
            for _ in 0..100 {
                heat.note_entry(0);
                heat.note_call(Some(2));
            }
            let victim = heat.victim();
            assert!(victim != 0 && victim != 2, "segment {victim} is hot");
            heat.begin(victim);
        }
        // Nobody uses them any more, and after a while they go.
        let victims: Vec<usize> = (0..16 * SEGMENTS)
            .map(|_| {
                let victim = heat.victim();
                heat.begin(victim);
                victim
            })
            .collect();
        assert!(victims.contains(&0) && victims.contains(&2));
    }

    #[test]
    fn a_vcpu_takes_less_than_64_mib() {
        let most = super::super::cache::most_memory()
            + crate::tlb::BYTES
            + size_of::<crate::state::CpuState>();
        assert!(most < 64 << 20, "{most} bytes");
    }
}
