//! The same bytes of guest memory through this crate's queue and through rust-vmm's.

use std::sync::Arc;

use proptest::prelude::*;
use virtio_queue::{Queue as OracleQueue, QueueT as _};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryMmap};

use crate::features::RING_FEATURES;
use crate::memory::GuestMemory;
use crate::queue::Queue;
use crate::ring::{Descriptor, DescriptorFlags, QueueConfig};

const MEMORY: usize = 0x10000;
const SIZE: u16 = 16;
const CONFIG: QueueConfig = QueueConfig { size: SIZE, desc: 0x1000, avail: 0x2000, used: 0x3000 };

fn descriptors() -> impl Strategy<Value = Vec<Descriptor>> {
    let addr = prop_oneof![8 => 0x4000..0xf000u64, 1 => any::<u64>()];
    let len = prop_oneof![8 => 1..0x1000u32, 1 => Just(0), 1 => any::<u32>()];
    let next = prop_oneof![8 => 0..SIZE, 1 => any::<u16>()];
    let one = (addr, len, 0..4u16, next).prop_map(|(addr, len, flags, next)| Descriptor {
        addr: addr.into(),
        len: len.into(),
        flags: flags.into(),
        next: next.into(),
    });
    proptest::collection::vec(one, usize::from(SIZE))
}

/// The buffers of the chain at `head` as the oracle sees them, and whether it saw the chain's end.
fn oracle(memory: &GuestMemoryMmap, head: u16) -> (Vec<(u64, u32, bool)>, bool) {
    let mut queue = OracleQueue::new(SIZE).unwrap();
    queue.set_size(SIZE);
    queue.set_desc_table_address(Some(CONFIG.desc as u32), Some(0));
    queue.set_avail_ring_address(Some(CONFIG.avail as u32), Some(0));
    queue.set_used_ring_address(Some(CONFIG.used as u32), Some(0));
    queue.set_ready(true);
    let chain = queue.pop_descriptor_chain(memory).unwrap();
    assert_eq!(chain.head_index(), head);
    let mut ended = false;
    let buffers = chain
        .inspect(|descriptor| ended = !descriptor.has_next())
        .map(|descriptor| (descriptor.addr().0, descriptor.len(), descriptor.is_write_only()))
        .collect();
    (buffers, ended)
}

proptest! {
    /// Whatever we accept, the oracle walks to the same buffers; whatever we refuse has a reason that can be named.
    #[test]
    fn chains_agree_with_the_oracle(table in descriptors(), head in 0..SIZE) {
        let ours = Arc::new(GuestMemory::anonymous(MEMORY));
        let theirs = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let mut image = vec![0u8; MEMORY];
        for (index, descriptor) in table.iter().enumerate() {
            let at = CONFIG.desc as usize + index * 16;
            image[at..at + 16].copy_from_slice(zerocopy::IntoBytes::as_bytes(descriptor));
        }
        image[CONFIG.avail as usize + 2] = 1;
        image[CONFIG.avail as usize + 4..][..2].copy_from_slice(&head.to_le_bytes());
        ours.slice(0, MEMORY as u64).unwrap().copy_from(&image);
        theirs.write_slice(&image, GuestAddress(0)).unwrap();

        let queue = Queue::new(ours.clone(), CONFIG, RING_FEATURES).unwrap();
        let (expected, ended) = oracle(&theirs, head);
        match queue.pop() {
            Ok(chain) => {
                let mut chain = chain.unwrap();
                let (readable, _) = chain.descriptors();
                let mut seen = Vec::new();
                while let Some(slice) = chain.take(usize::MAX) {
                    seen.push((slice.addr(), slice.len() as u32, false));
                }
                let mut chain = chain.into_writable();
                prop_assert_eq!(seen.len(), readable);
                while let Some(slice) = chain.take(usize::MAX) {
                    seen.push((slice.addr(), slice.len() as u32, true));
                }
                prop_assert_eq!(seen, expected);
            }
            Err(_) => {
                let outside = |&(addr, len, _): &(u64, u32, bool)| {
                    len == 0 || addr.checked_add(len.into()).is_none_or(|end| end > MEMORY as u64)
                };
                let disordered = expected.windows(2).any(|pair| pair[0].2 && !pair[1].2);
                prop_assert!(!ended || expected.iter().any(outside) || disordered);
            }
        }
    }
}

#[test]
fn constants_match_the_headers() {
    use virtio_bindings::{virtio_config, virtio_ring};
    assert_eq!(u32::from(DescriptorFlags::NEXT.bits()), virtio_ring::VRING_DESC_F_NEXT);
    assert_eq!(u32::from(DescriptorFlags::WRITE.bits()), virtio_ring::VRING_DESC_F_WRITE);
    assert_eq!(u32::from(DescriptorFlags::INDIRECT.bits()), virtio_ring::VRING_DESC_F_INDIRECT);
    assert_eq!(u32::from(crate::AVAIL_F_NO_INTERRUPT), virtio_ring::VRING_AVAIL_F_NO_INTERRUPT);
    assert_eq!(u32::from(crate::USED_F_NO_NOTIFY), virtio_ring::VRING_USED_F_NO_NOTIFY);
    assert_eq!(crate::Features::EVENT_IDX.bits(), 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX);
    assert_eq!(
        crate::Features::INDIRECT_DESC.bits(),
        1 << virtio_ring::VIRTIO_RING_F_INDIRECT_DESC
    );
    const { assert!(virtio_config::VIRTIO_F_VERSION_1 >= 32, "not among the bits that Ready carries") };
}
