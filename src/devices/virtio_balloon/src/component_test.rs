//! The component over FIDL.

use fidl_fuchsia_virtualization::MemStat;
use fidl_fuchsia_virtualization_hardware::{VirtioBalloonMarker, VirtioBalloonSynchronousProxy};
use fuchsia_zircon as zx;
use virtio_device::Features;
use virtio_device::fake_queue::FakeDriver;
use virtio_device::fake_transport::{
    FakeTransport, QUEUE_AREA, configure_arguments, ready_argument, serve_in_thread,
};
use zerocopy::IntoBytes as _;

use crate::component::serve;
use crate::{F_STATS_VQ, INFLATE, PAGE_SIZE, Stat};

const STATS: u16 = 2;

fn start(features: Features) -> (VirtioBalloonSynchronousProxy, FakeTransport, Vec<FakeDriver>) {
    let (transport, drivers) = FakeTransport::new(3);
    let device = serve_in_thread::<VirtioBalloonMarker>(async |server| {
        let _ = serve(server.into_stream()).await;
    });
    device.start(transport.start_info(), zx::Time::INFINITE).unwrap();
    for (queue, driver) in (0..).zip(&drivers) {
        let (size, desc, avail, used) = configure_arguments(driver.config());
        device.configure_queue(queue, size, desc, avail, used, zx::Time::INFINITE).unwrap();
    }
    device.ready(ready_argument(features), zx::Time::INFINITE).unwrap();
    (device, transport, drivers)
}

#[test]
fn inflated_pages_go_back_to_the_host() {
    let (device, transport, mut drivers) = start(Features::empty());
    // The last page that the queues do not use.
    let page = 3 * QUEUE_AREA / PAGE_SIZE - 1;
    let slice = transport.memory().slice(page * PAGE_SIZE, PAGE_SIZE).unwrap();
    slice.copy_from(&[7; PAGE_SIZE as usize]);
    let driver = &mut drivers[usize::from(INFLATE)];
    driver.chain().readable(&(page as u32).to_le_bytes()).publish();
    device.notify_queue(INFLATE).unwrap();
    transport.answer(driver);
    let mut bytes = [1; PAGE_SIZE as usize];
    slice.copy_to(&mut bytes);
    assert_eq!(bytes, [0; PAGE_SIZE as usize]);
}

#[test]
fn statistics_are_answered_when_the_driver_gives_them() {
    let (device, transport, mut drivers) = start(F_STATS_VQ);
    assert_eq!(
        device.get_mem_stats(zx::Time::INFINITE).unwrap(),
        (zx::Status::SHOULD_WAIT.into_raw(), None)
    );
    let driver = &mut drivers[usize::from(STATS)];
    let give = |driver: &mut FakeDriver, value: u64| {
        let stat = Stat { tag: 6.into(), value: value.into() };
        driver.chain().readable(stat.as_bytes()).publish();
        device.notify_queue(STATS).unwrap();
    };
    give(driver, 1);
    let (status, stats) = std::thread::scope(|scope| {
        let asking = scope.spawn(|| {
            // The device may not have looked at the first buffer yet.
            loop {
                let (status, stats) = device.get_mem_stats(zx::Time::INFINITE).unwrap();
                if status != zx::Status::SHOULD_WAIT.into_raw() {
                    return (status, stats);
                }
                std::thread::yield_now();
            }
        });
        transport.answer(driver);
        give(driver, 2 << 30);
        asking.join().unwrap()
    });
    assert_eq!(status, zx::Status::OK.into_raw());
    assert_eq!(stats.unwrap(), [MemStat { tag: 6, val: 2 << 30 }]);
}

#[test]
fn statistics_without_their_queue_are_not_supported() {
    let (device, _transport, _drivers) = start(Features::empty());
    let expected = (zx::Status::NOT_SUPPORTED.into_raw(), None);
    assert_eq!(device.get_mem_stats(zx::Time::INFINITE).unwrap(), expected);
}
