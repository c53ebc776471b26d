//! The balloon device behind queues of any driver.
#![no_main]

mod driver;

use arbitrary::{Result, Unstructured};
use driver::{FREE_PAGES, Request, Target};
use libfuzzer_sys::fuzz_target;
use virtio_balloon::{BalloonDevice, DEFLATE, F_PAGE_REPORTING, F_STATS_VQ, INFLATE, QUEUES};
use virtio_device::{Features, Io, QueueSet};

struct Balloon;

impl Target for Balloon {
    type Device = BalloonDevice;
    const QUEUES: u16 = QUEUES;

    fn request(&mut self, queue: u16, input: &mut Unstructured<'_>) -> Result<Request> {
        let mut readable = Vec::new();
        let mut writable = if input.ratio(1, 16)? { input.int_in_range(0..=9000)? } else { 0 };
        match queue {
            INFLATE | DEFLATE => {
                let first = driver::first_free_page::<Self>();
                let pages = first..first + FREE_PAGES;
                for _ in 0..input.int_in_range(0..=64)? {
                    let page = match input.int_in_range(0..=15)? {
                        // What is not there; the driver's own memory is what it wants to keep.
                        0u8 => input.int_in_range(pages.end..=u32::MAX.into())?,
                        _ => input.int_in_range(pages.start..=pages.end - 1)?,
                    };
                    readable.extend((page as u32).to_le_bytes());
                }
                readable.extend(driver::bytes(3, input)?);
            }
            // Statistics or pages to report, as negotiated.
            _ if input.arbitrary()? => readable = driver::bytes(1000, input)?,
            _ => writable = input.int_in_range(0..=70_000)?,
        }
        Ok(Request { readable, writable })
    }

    fn host(
        &mut self,
        device: &mut BalloonDevice,
        io: &Io<'_>,
        _input: &mut Unstructured<'_>,
    ) -> Result<QueueSet> {
        // Who asked does not wait.
        let _ = device.request_stats(io);
        Ok(QueueSet::EMPTY)
    }
}

fuzz_target!(|choices: &[u8]| {
    let mut input = Unstructured::new(choices);
    let mut play = || -> Result<()> {
        let wanted = F_STATS_VQ | F_PAGE_REPORTING;
        let features = Features::from_bits_retain(input.arbitrary()?);
        let features = if input.ratio(1, 8)? { features } else { features | wanted };
        driver::play(&mut Balloon, BalloonDevice::new(), features, &mut input)
    };
    // The input may end anywhere.
    let _ = play();
});
