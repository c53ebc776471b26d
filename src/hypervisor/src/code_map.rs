//! Which vCPUs have translated code from which bytes of guest memory, and the messages that keep them right.
//!
//! A page with translations is *watched*: stores to it leave the inline path on every vCPU. When a page becomes watched,
//! the others drop what lets them store to it inline; when watched bytes are stored to, the vCPUs that translated them
//! drop their code. Both are messages that a vCPU serves at its next poll. The one that starts watching waits a little for
//! the others; one that does not answer in time (its thread is not running) answers later with a request to look at the
//! page again, so that a store it made in between is not lost.

use crate::error::Error;
use crate::guest::lock;
use crate::page_bitmap::PageBitmap;
use crate::state::Attention;
use crate::vcpu::VcpuRemote;
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

/// Turns of a spin loop to wait for an answer: some ten microseconds.
const PATIENCE: u32 = 500;

/// What one vCPU tells another about code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CodeRequest {
    /// Page number `page` is watched now. `from` is the vCPU to tell to look at the page again, because stores to it
    /// may have been inline until this is served; nobody if the receiver was parked.
    Protect { page: u64, from: Option<u32> },
    /// Compare translated code from this page with its bytes.
    Recheck { page: u64 },
    /// Bytes at `gpa` were stored to; the range does not leave its page.
    Stored { gpa: u64, len: usize },
}

/// More requests than this are not kept one by one: the receiver drops and checks everything instead.
const MAILBOX_SIZE: usize = 1024;

/// Requests taken from a mailbox.
pub(crate) struct Batch {
    pub(crate) requests: Vec<CodeRequest>,
    /// Requests were lost: anything may have changed.
    pub(crate) overflow: bool,
    ticket: u64,
}

#[derive(Default)]
struct Queue {
    requests: Vec<CodeRequest>,
    overflow: bool,
}

/// One vCPU's incoming requests.
pub(crate) struct CodeMailbox {
    queue: Mutex<Queue>,
    posted: AtomicU64,
    served: AtomicU64,
    /// The vCPU's thread is not running guest code, and looks into the mailbox before it does.
    parked: AtomicBool,
}

impl CodeMailbox {
    pub(crate) fn new() -> CodeMailbox {
        CodeMailbox {
            queue: Mutex::default(),
            posted: AtomicU64::new(0),
            served: AtomicU64::new(0),
            parked: AtomicBool::new(true),
        }
    }

    /// Takes the requests, to be followed by [`CodeMailbox::answer`] when they are served.
    pub(crate) fn take(&self) -> Batch {
        let mut queue = lock(&self.queue);
        let Queue { requests, overflow } = std::mem::take(&mut *queue);
        Batch { requests, overflow, ticket: self.posted.load(Ordering::SeqCst) }
    }

    pub(crate) fn answer(&self, batch: &Batch) {
        self.served.store(batch.ticket, Ordering::SeqCst);
    }

    fn is_parked(&self) -> bool {
        self.parked.load(Ordering::SeqCst)
    }

    pub(crate) fn park(&self, parked: bool) {
        self.parked.store(parked, Ordering::SeqCst);
    }
}

impl VcpuRemote {
    /// Posts a request; gives a ticket to wait for.
    pub(crate) fn post(&self, request: CodeRequest) -> u64 {
        let ticket = {
            let mut queue = lock(&self.code.queue);
            if queue.requests.len() < MAILBOX_SIZE {
                queue.requests.push(request);
            } else {
                queue.requests.clear();
                queue.overflow = true;
            }
            self.code.posted.fetch_add(1, Ordering::SeqCst) + 1
        };
        // A sleeping vCPU is not woken for this: it looks into its mailbox before it runs guest code.
        self.note_attention(Attention::INVALIDATE);
        ticket
    }

    /// Waits a little for a ticket to be served.
    fn wait_for(&self, ticket: u64) {
        for _ in 0..PATIENCE {
            if self.code.served.load(Ordering::SeqCst) >= ticket || self.code.is_parked() {
                return;
            }
            std::hint::spin_loop();
        }
    }
}

/// Who translated from a page.
#[derive(Clone, Copy, Default)]
struct Use {
    /// One bit for each vCPU with code from this page.
    vcpus: u64,
    /// One bit for each 64-byte line that some code was made from.
    lines: u64,
}

/// The translated pages of a guest.
pub(crate) struct CodeMap {
    pages: Mutex<HashMap<u64, Use>>,
    /// Pages in `pages`: stores to them take the slow path.
    watched: PageBitmap,
    /// Pages that some vCPU may store to inline.
    inline_stores: PageBitmap,
}

impl CodeMap {
    pub(crate) fn new(pages: usize) -> Result<CodeMap, Error> {
        Ok(CodeMap {
            pages: Mutex::default(),
            watched: PageBitmap::new(pages)?,
            inline_stores: PageBitmap::new(pages)?,
        })
    }

    /// Whether stores to a page must be looked at.
    #[inline]
    pub(crate) fn is_watched(&self, page: u64) -> bool {
        self.watched.get(page)
    }

    /// To be asked before a TLB gets an entry that lets stores to a page go inline.
    pub(crate) fn may_store_inline(&self, page: u64) -> bool {
        if !self.inline_stores.get(page) {
            self.inline_stores.set(page, true);
        }
        // Together with the fence in `watch`: whoever comes second sees what the other has set.
        fence(Ordering::SeqCst);
        !self.is_watched(page)
    }

    /// Starts watching a page for a vCPU. True if some TLB may let stores to it go inline.
    pub(crate) fn watch(&self, page: u64, vcpu: u32) -> bool {
        let fresh = {
            let mut pages = lock(&self.pages);
            pages.entry(page).or_default().vcpus |= 1 << vcpu;
            !self.watched.set(page, true)
        };
        fence(Ordering::SeqCst);
        fresh && self.inline_stores.get(page)
    }

    /// No TLB lets stores to this watched page go inline any more.
    pub(crate) fn inline_stores_ended(&self, page: u64) {
        self.inline_stores.set(page, false);
    }

    /// Notes that a vCPU's code depends on bytes of a watched page.
    pub(crate) fn depend(&self, gpa: u64, len: usize) {
        lock(&self.pages).entry(gpa >> 12).or_default().lines |= lines(gpa, len);
    }

    /// The vCPUs that may have code from these bytes.
    pub(crate) fn users(&self, gpa: u64, len: usize) -> u64 {
        let pages = lock(&self.pages);
        pages
            .get(&(gpa >> 12))
            .filter(|page| page.lines & lines(gpa, len) != 0)
            .map_or(0, |page| page.vcpus)
    }

    /// A vCPU has dropped its code from a page; the page is not watched any more when it was the last.
    pub(crate) fn unwatch(&self, page: u64, vcpu: u32) {
        let mut pages = lock(&self.pages);
        let Some(found) = pages.get_mut(&page) else {
            return;
        };
        found.vcpus &= !(1 << vcpu);
        if found.vcpus == 0 {
            pages.remove(&page);
            self.watched.set(page, false);
        }
    }

    /// A vCPU has dropped all its code.
    pub(crate) fn forget(&self, vcpu: u32) {
        let pages: Vec<u64> = lock(&self.pages).keys().copied().collect();
        for page in pages {
            self.unwatch(page, vcpu);
        }
    }
}

/// The 64-byte lines of its page that a range touches.
fn lines(gpa: u64, len: usize) -> u64 {
    let first = (gpa & 0xfff) / 64;
    let last = ((gpa & 0xfff) + (len.max(1) as u64 - 1)).min(0xfff) / 64;
    (u64::MAX << first) & (u64::MAX >> (63 - last))
}

/// Asks every other vCPU to stop inline stores to a page, and waits a little.
pub(crate) fn protect_elsewhere(vcpus: &[std::sync::Arc<VcpuRemote>], page: u64, from: u32) {
    let asked = vcpus.iter().filter(|vcpu| vcpu.id() != from);
    let ask = |vcpu: &VcpuRemote| {
        let from = (!vcpu.code.is_parked()).then_some(from);
        vcpu.post(CodeRequest::Protect { page, from })
    };
    let tickets: Vec<_> = asked.map(|vcpu| (vcpu, ask(vcpu))).collect();
    for (vcpu, ticket) in tickets {
        vcpu.wait_for(ticket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_cover_their_range() {
        assert_eq!(lines(0x1000, 1), 1);
        assert_eq!(lines(0x103f, 2), 3);
        assert_eq!(lines(0x1fff, 1), 1 << 63);
        assert_eq!(lines(0x1000, 4096), u64::MAX);
        assert_eq!(lines(0x1080, 64), 4);
    }

    #[test]
    fn a_page_is_watched_until_its_last_user_drops_it() {
        let map = CodeMap::new(1024).unwrap();
        assert!(!map.watch(5, 0), "nobody stores to it");
        assert!(!map.may_store_inline(5));
        assert!(!map.watch(5, 1), "watched already");
        map.depend(0x5040, 10);
        assert_eq!((map.users(0x5040, 1), map.users(0x5000, 1)), (3, 0));
        map.unwatch(5, 0);
        assert!(map.is_watched(5));
        map.forget(1);
        assert!(!map.is_watched(5));
        assert!(map.may_store_inline(5));
        assert!(map.watch(5, 0), "someone may store to it now");
    }
}
