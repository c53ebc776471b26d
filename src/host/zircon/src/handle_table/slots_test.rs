use super::Held;
use super::slots::Slots;
use crate::object::{Kind, Object};
use crate::resource::Resource;
use fuchsia_zircon_types::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

fn held() -> Held {
    let kind = Kind::Resource(Resource { base: ZX_RSRC_SYSTEM_HYPERVISOR_BASE });
    Held { object: Object::new(kind), rights: ZX_RIGHT_WAIT }
}

#[test]
fn a_taken_handle_stays_for_its_users() {
    let slots = Slots::new();
    let held = held();
    let (index, generation) = slots.insert(held.clone()).ok().unwrap();
    let first = slots.borrow(index, generation).unwrap();
    assert!(slots.is_live(index, generation));
    drop(slots.take(index, generation).unwrap());
    assert!(!slots.is_live(index, generation));
    assert!(slots.borrow(index, generation).is_none() && slots.take(index, generation).is_none());
    assert_eq!((slots.len(), first.rights), (0, ZX_RIGHT_WAIT));
    // The slot is in use, so the next handle is elsewhere.
    let (second, _) = slots.insert(held.clone()).ok().unwrap();
    assert_ne!(second, index);
    assert_eq!(Arc::strong_count(&held.object), 3);
    drop(first);
    assert_eq!(Arc::strong_count(&held.object), 2);
    let third = slots.insert(held.clone()).ok().unwrap();
    assert_eq!(third, (index, generation + 1));
    assert!(slots.borrow(index, generation).is_none());
}

#[test]
fn a_full_table_gives_the_handle_back() {
    let slots = Slots::new();
    let held = held();
    let all: Vec<_> = std::iter::from_fn(|| slots.insert(held.clone()).ok()).collect();
    assert_eq!((all.len(), slots.len()), (1 << 18, 1 << 18));
    let (index, generation) = all[1000];
    slots.take(index, generation).unwrap();
    assert_eq!(slots.insert(held.clone()).ok(), Some((index, generation + 1)));
    assert!(slots.insert(held.clone()).is_err());
}

#[test]
fn threads_that_race_see_a_whole_handle_or_none() {
    const ROUNDS: usize = 20_000;
    let (slots, held, seen) = (Slots::new(), held(), AtomicUsize::new(0));
    let taken = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for round in 0..ROUNDS {
                    // Few places and generations, so that the threads meet.
                    let (index, generation) = ((round % 3) as u32, (round / 64 % 4095) as u32);
                    if let Some(borrowed) = slots.borrow(index, generation) {
                        assert_eq!(borrowed.rights, ZX_RIGHT_WAIT);
                        assert!(Arc::ptr_eq(&borrowed.object, &held.object));
                        seen.fetch_add(1, Ordering::Relaxed);
                    }
                    let place = slots.insert(held.clone()).ok().unwrap();
                    let generation = if round % 2 == 0 { place.1 } else { generation };
                    for (index, generation) in [(index, generation), place] {
                        let one = slots.take(index, generation);
                        taken.fetch_add(usize::from(one.is_some()), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(taken.into_inner(), 3 * ROUNDS - slots.len());
    // Nothing was dropped twice, and nothing is left behind.
    assert_eq!(Arc::strong_count(&held.object), 1 + slots.len());
}
