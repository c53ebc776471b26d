//! The network device behind queues of any driver. What its frames say is `net_frames`' business: here they lead to
//! this process, whatever they are.
#![no_main]

mod driver;
mod network;

use std::cell::RefCell;

use arbitrary::{Result, Unstructured};
use driver::{Request, Target};
use libfuzzer_sys::fuzz_target;
use network::Host;
use virtio_device::{Features, Io, QueueSet};
use virtio_net::stack::MAX_FRAME;
use virtio_net::{NetDevice, QUEUES, RX};

/// Bytes of the header in front of each frame.
const HEADER: usize = 12;
/// Bits of the features that the device knows: checksums, segmentation, mergeable buffers.
const KNOWN: u32 = 0x9983;

struct Net {
    host: Host,
    /// Buffers that go on with the frame of the last one.
    left: u16,
}

impl Target for Net {
    type Device = NetDevice;
    const QUEUES: u16 = QUEUES;

    fn request(&mut self, queue: u16, input: &mut Unstructured<'_>) -> Result<Request> {
        if queue == RX {
            let sizes = [1, HEADER - 1, HEADER, 100, HEADER + MAX_FRAME - 1, HEADER + MAX_FRAME];
            let writable = match input.int_in_range(0..=7)? {
                0u8 => input.int_in_range(0..=70_000)?,
                1 => *input.choose(&sizes)?,
                _ => 2048,
            };
            return Ok(Request { readable: Vec::new(), writable });
        }
        let mut frame = driver::bytes(200, input)?;
        if input.ratio(1, 4)? {
            frame.resize(input.int_in_range(0..=70_000)?, 0x5a);
        }
        self.host.fix(&mut frame);
        let mut readable = vec![0; HEADER];
        if input.arbitrary()? {
            readable[0] = input.int_in_range(0..=2)?;
            readable[1] = *input.choose(&[0, 1, 3, 4, 5, 0x81])?;
            readable[2..].fill(input.int_in_range(0..=40)?);
            readable[4..6].fill(input.arbitrary()?);
        }
        readable.extend(frame);
        if input.ratio(1, 16)? {
            readable.truncate(input.int_in_range(0..=60)?);
        }
        Ok(Request { readable, writable: 0 })
    }

    fn host(
        &mut self,
        _device: &mut NetDevice,
        _io: &Io<'_>,
        input: &mut Unstructured<'_>,
    ) -> Result<QueueSet> {
        let mut data = driver::bytes(16, input)?;
        if input.ratio(1, 4)? {
            data.resize(60_000, 1);
        }
        self.host.act(&data);
        if input.ratio(1, 4)? {
            self.host.wait();
        }
        Ok(QueueSet::ALL)
    }

    fn check(&mut self, queue: u16, _request: &[u8], answer: &[u8], _room: usize) {
        assert!(queue == RX || answer.is_empty());
        if answer.is_empty() {
            assert_eq!(self.left, 0, "a frame ends early");
        } else if let Some(left) = self.left.checked_sub(1) {
            self.left = left;
        } else {
            let count = answer.get(10..HEADER).expect("a header");
            let count = u16::from_le_bytes([count[0], count[1]]);
            self.left = count.checked_sub(1).expect("a buffer");
        }
    }
}

thread_local! {
    /// Made once, as it takes sockets.
    static HOST: RefCell<Option<Host>> = RefCell::new(Some(Host::new()));
}

fuzz_target!(|choices: &[u8]| {
    let mut input = Unstructured::new(choices);
    let mut net = Net { host: HOST.take().expect("one user at a time"), left: 0 };
    net.host.reset();
    let mut play = || -> Result<()> {
        let features: u32 = input.arbitrary()?;
        let features = if input.ratio(1, 8)? { features } else { features | KNOWN };
        let device = NetDevice::new([2, 0, 0, 0, 0, 1]).expect("a device");
        driver::play(&mut net, device, Features::from_bits_retain(features), &mut input)
    };
    // The input may end anywhere.
    let _ = play();
    HOST.set(Some(net.host));
});
