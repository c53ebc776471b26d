//! Reserved ranges of addresses, and what is in them.

use super::local::{Mapping, map_at, protection};
use super::{is_page_aligned, to_can_map};
use crate::object::lock;
use crate::status::{
    ACCESS_DENIED, BAD_STATE, INVALID_ARGS, NO_MEMORY, NO_RESOURCES, NOT_FOUND, NOT_SUPPORTED,
    OUT_OF_RANGE, Result, Status,
};
use crate::system::page_size;
use fuchsia_zircon_types::*;
use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use std::ffi::c_void;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// Mappings and regions in a region and those inside it: about as many mappings as Linux lets a process have.
const MAX_OCCUPIED: usize = 1 << 16;
/// Regions inside each other.
pub(super) const MAX_DEPTH: u32 = 32;

/// One of the mappings and regions that are counted for the outermost region.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Counted {
        count.fetch_add(1, Ordering::Relaxed);
        Counted(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A reserved range of addresses. Its reservation stays until it is destroyed, also when nobody has a handle any more.
pub(crate) struct Region {
    base: usize,
    size: usize,
    /// The `ZX_VM_CAN_MAP_*` options it was made with.
    can_map: u32,
    depth: u32,
    /// What is in the outermost region, here or further in.
    count: Arc<AtomicUsize>,
    state: Mutex<State>,
    /// The region it lies in; a sub-region of the root has none.
    parent: Option<Weak<Region>>,
}

/// Locks are taken from the outside in.
#[derive(Default)]
struct State {
    /// Ascending, without overlap.
    occupied: Vec<Occupied>,
    destroyed: bool,
}

struct Occupied {
    range: Range<usize>,
    content: Content,
    _counted: Counted,
}

enum Content {
    /// With the `ZX_VM_PERM_*` that it can have at most.
    Mapping(u32),
    Region(Arc<Region>),
}

impl State {
    fn overlapping(&self, range: &Range<usize>) -> impl Iterator<Item = &Occupied> {
        let first = self.occupied.partition_point(|it| it.range.end <= range.start);
        let end = range.end;
        self.occupied[first..].iter().take_while(move |it| it.range.start < end)
    }

    /// Ends the regions in a range.
    fn end_regions(&self, range: &Range<usize>) {
        for it in self.overlapping(range) {
            if let Content::Region(region) = &it.content {
                // Nobody can have ended it before: it would not be here.
                let _ = region.end();
            }
        }
    }

    /// Forgets what is in a range: parts of mappings, and whole regions.
    fn clear(&mut self, range: &Range<usize>) {
        let first = self.occupied.partition_point(|it| it.range.end <= range.start);
        let last = self.occupied.partition_point(|it| it.range.start < range.end);
        if first >= last {
            return;
        }
        let mut rest = Vec::new();
        for Occupied { range: old, content, _counted: counted } in self.occupied.drain(first..last)
        {
            let Content::Mapping(allowed) = content else { continue };
            for part in [old.start..range.start, range.end..old.end] {
                if part.start < part.end {
                    let (content, _counted) = (Content::Mapping(allowed), Counted::new(&counted.0));
                    rest.push(Occupied { range: part, content, _counted });
                }
            }
        }
        self.occupied.splice(first..first, rest);
    }

    fn has_regions_in(&self, range: &Range<usize>) -> bool {
        self.overlapping(range).any(|it| matches!(it.content, Content::Region(_)))
    }
}

impl Region {
    /// A region that the root contains, over a range that is reserved for it.
    pub(super) fn new(base: usize, size: usize, can_map: u32) -> Arc<Region> {
        let (count, state) = (Arc::default(), Mutex::default());
        Arc::new(Region { base, size, can_map, depth: 0, count, state, parent: None })
    }

    fn insert(&self, state: &mut State, range: Range<usize>, content: Content) {
        let index = state.occupied.partition_point(|it| it.range.start < range.start);
        let _counted = Counted::new(&self.count);
        state.occupied.insert(index, Occupied { range, content, _counted });
    }

    pub(super) fn info(&self) -> zx_info_vmar_t {
        zx_info_vmar_t { base: self.base, len: self.size }
    }

    /// The addresses of `len` bytes at an offset.
    fn range_at(&self, offset: usize, len: usize) -> Result<Range<usize>> {
        let end = offset.checked_add(len).filter(|&end| end <= self.size).ok_or(OUT_OF_RANGE)?;
        Ok(self.base + offset..self.base + end)
    }

    /// Finds a free range, at `offset` if that is given.
    fn find(
        &self,
        state: &State,
        offset: Option<usize>,
        len: usize,
        align: usize,
    ) -> Result<Range<usize>> {
        if let Some(offset) = offset {
            let range = self.range_at(offset, len)?;
            if state.overlapping(&range).next().is_some() {
                return Err(Status(ZX_ERR_ALREADY_EXISTS));
            }
            return Ok(range);
        }
        let mut start = self.base.next_multiple_of(align);
        for it in &state.occupied {
            if it.range.start.saturating_sub(start) >= len {
                break;
            }
            start = start.max(it.range.end).next_multiple_of(align);
        }
        let end = start.checked_add(len).filter(|&end| end <= self.base + self.size);
        Ok(start..end.ok_or(NO_MEMORY)?)
    }

    /// The state of a region that can take more.
    fn open<'a>(&'a self, options: u32) -> Result<std::sync::MutexGuard<'a, State>> {
        let state = lock(&self.state);
        if state.destroyed {
            return Err(BAD_STATE);
        }
        if options & ZX_VM_OFFSET_IS_UPPER_LIMIT != 0 {
            return Err(NOT_SUPPORTED);
        }
        let specific = options & (ZX_VM_SPECIFIC | ZX_VM_SPECIFIC_OVERWRITE) != 0;
        if specific && self.can_map & ZX_VM_CAN_MAP_SPECIFIC == 0 {
            return Err(ACCESS_DENIED);
        }
        if self.count.load(Ordering::Relaxed) >= MAX_OCCUPIED {
            return Err(NO_MEMORY);
        }
        Ok(state)
    }

    pub(super) fn map(&self, mapping: &Mapping<'_>, align: usize) -> Result<usize> {
        let Mapping { options, offset, len, allowed, .. } = *mapping;
        if to_can_map(options) & !self.can_map != 0 {
            return Err(ACCESS_DENIED);
        }
        let mut state = self.open(options)?;
        let specific = options & (ZX_VM_SPECIFIC | ZX_VM_SPECIFIC_OVERWRITE) != 0;
        if !specific && offset != 0 {
            return Err(INVALID_ARGS);
        }
        let overwrite = options & ZX_VM_SPECIFIC_OVERWRITE != 0;
        let range = if overwrite {
            let range = self.range_at(offset, len)?;
            if state.has_regions_in(&range) {
                return Err(INVALID_ARGS);
            }
            range
        } else {
            self.find(&state, specific.then_some(offset), len, align)?
        };
        let address = map_at(range.start, mapping, MapFlags::FIXED).inspect_err(|_| {
            // What is free stays reserved.
            let _ = if overwrite { Ok(()) } else { reserve(range.start, range.len()) };
        })?;
        state.clear(&range);
        self.insert(&mut state, range, Content::Mapping(allowed & self.permissions()));
        Ok(address)
    }

    /// The `ZX_VM_PERM_*` that mappings in it can have.
    fn permissions(&self) -> u32 {
        super::from_can_map(self.can_map)
    }

    pub(super) fn unmap(&self, addr: usize, len: usize, op_children: bool) -> Result<()> {
        let range = self.check_range(addr, len)?;
        let mut state = lock(&self.state);
        if state.destroyed {
            return Err(BAD_STATE);
        }
        let whole = |it: &Range<usize>| range.start <= it.start && it.end <= range.end;
        let refused = |it: &Occupied| {
            matches!(it.content, Content::Region(_)) && !(op_children && whole(&it.range))
        };
        if state.overlapping(&range).any(refused) {
            return Err(INVALID_ARGS);
        }
        // First, or somebody could map in one of them what then stays.
        state.end_regions(&range);
        reserve(range.start, range.len())?;
        state.clear(&range);
        Ok(())
    }

    pub(super) fn protect(
        &self,
        permissions: u32,
        addr: usize,
        len: usize,
        op_children: bool,
    ) -> Result<()> {
        let range = self.check_range(addr, len)?;
        let state = lock(&self.state);
        if state.destroyed {
            return Err(BAD_STATE);
        }
        Self::check_protection(&state, permissions, &range, op_children)?;
        // Under the lock, or the range might be somebody else's meanwhile.
        protect(permissions, range.start, range.len())
    }

    /// Checks that a range is mapped, all of it, and can have these permissions.
    fn check_protection(
        state: &State,
        permissions: u32,
        range: &Range<usize>,
        op_children: bool,
    ) -> Result<()> {
        let mut next = range.start;
        for it in state.overlapping(range) {
            if it.range.start > next {
                return Err(NOT_FOUND);
            }
            match &it.content {
                Content::Mapping(allowed) if permissions & !allowed != 0 => {
                    return Err(ACCESS_DENIED);
                }
                Content::Mapping(_) => {}
                Content::Region(_) if !op_children => return Err(INVALID_ARGS),
                Content::Region(region) => {
                    let inside = next..range.end.min(it.range.end);
                    Self::check_protection(&lock(&region.state), permissions, &inside, true)?;
                }
            }
            next = it.range.end;
        }
        if next < range.end { Err(NOT_FOUND) } else { Ok(()) }
    }

    /// Makes a region inside this one.
    pub(super) fn allocate(
        self: &Arc<Region>,
        options: u32,
        offset: usize,
        size: usize,
        align: usize,
    ) -> Result<Arc<Region>> {
        let can_map = options & super::CAN_MAP_ANY;
        if can_map & !self.can_map != 0 {
            return Err(ACCESS_DENIED);
        }
        if self.depth + 1 >= MAX_DEPTH {
            return Err(NO_RESOURCES);
        }
        let mut state = self.open(options)?;
        let specific = options & ZX_VM_SPECIFIC != 0;
        if !specific && offset != 0 {
            return Err(INVALID_ARGS);
        }
        let range = self.find(&state, specific.then_some(offset), size, align)?;
        let region = Arc::new(Region {
            base: range.start,
            size,
            can_map,
            depth: self.depth + 1,
            count: self.count.clone(),
            state: Mutex::default(),
            parent: Some(Arc::downgrade(self)),
        });
        self.insert(&mut state, range, Content::Region(region.clone()));
        Ok(region)
    }

    /// Unmaps all and ends the region and those inside it.
    ///
    /// Errors: `ZX_ERR_BAD_STATE` when that happened before.
    pub(super) fn destroy(&self) -> Result<()> {
        if let Some(parent) = self.parent.as_ref().and_then(Weak::upgrade) {
            let mut state = lock(&parent.state);
            let is_self = |it: &Occupied| matches!(&it.content, Content::Region(region) if std::ptr::eq(&raw const **region, self));
            let index = state.occupied.iter().position(is_self).ok_or(BAD_STATE)?;
            self.end()?;
            reserve(self.base, self.size)?;
            state.occupied.remove(index);
            return Ok(());
        }
        self.end()?;
        // SAFETY: the range was reserved for this region, and Zircon's contract makes the caller of `zx_vmar_destroy`
        // promise that nobody uses what is mapped in it.
        Ok(unsafe { munmap(self.base as *mut c_void, self.size) }?)
    }

    /// Makes the region and those inside it refuse everything from now on.
    fn end(&self) -> Result<()> {
        let mut state = lock(&self.state);
        if std::mem::replace(&mut state.destroyed, true) {
            return Err(BAD_STATE);
        }
        for it in state.occupied.drain(..) {
            if let Content::Region(region) = it.content {
                let _ = region.end();
            }
        }
        Ok(())
    }

    /// Checks that a range is made of whole pages and inside the region.
    fn check_range(&self, addr: usize, len: usize) -> Result<Range<usize>> {
        if len == 0 || !is_page_aligned(addr as u64) {
            return Err(INVALID_ARGS);
        }
        let len = len.checked_next_multiple_of(page_size()).ok_or(INVALID_ARGS)?;
        let end = addr.checked_add(len).ok_or(INVALID_ARGS)?;
        if addr < self.base || end > self.base + self.size {
            return Err(INVALID_ARGS);
        }
        Ok(addr..end)
    }
}

/// Puts an inaccessible mapping over a range that belongs to a region.
fn reserve(base: usize, size: usize) -> Result<()> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
    // SAFETY: the range belongs to a region, whose owner asked for the change.
    unsafe { mmap_anonymous(base as *mut c_void, size, ProtFlags::empty(), flags)? };
    Ok(())
}

/// Changes the protection of a range.
pub(super) fn protect(permissions: u32, addr: usize, len: usize) -> Result<()> {
    let flags = MprotectFlags::from_bits_retain(protection(permissions).bits());
    // SAFETY: the caller of `zx_vmar_protect` promises that the range is its own to change.
    unsafe { mprotect(addr as *mut c_void, len, flags) }.map_err(|errno| match errno {
        Errno::NOMEM => NOT_FOUND,
        errno => errno.into(),
    })
}
