//! A queue that a hostile driver filled: every chain is walked, read and written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use virtio_device::fake_queue::hostile_queue;

fuzz_target!(|choices: &[u8]| {
    let queue = hostile_queue(choices);
    while let Ok(Some(mut chain)) = queue.pop() {
        let _ = chain.read_obj::<u64>();
        let mut bytes = vec![0; chain.remaining()];
        assert_eq!(chain.read_bytes(&mut bytes), bytes.len());
        let mut chain = chain.into_writable();
        let _ = chain.reserve_tail(1);
        let _ = chain.write_obj(&1u32);
        chain.release_tail();
        chain.zero_remaining();
    }
    queue.take_interrupt();
    let _ = queue.enable_notifications();
});
