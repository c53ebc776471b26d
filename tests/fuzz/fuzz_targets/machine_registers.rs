//! Everything that a guest reaches through traps: ports, the IO-APIC, PCI configuration space, and the registers of virtio
//! devices, read and written in any order and width. What the devices' processes are told keeps to the protocol.
#![no_main]

use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};

use arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use vmm::arch::Platform;
use vmm::arch::x64::memory_map;
use vmm::bus::Bus;
use vmm::interrupt::{InterruptSink, PowerControl, PowerRequest};
use vmm::memory::BufferMemory;
use vmm::pci::PciBus;
use vmm::virtio_pci::{
    BackendError, DeviceConfig, F_EVENT_IDX, F_INDIRECT_DESC, NOTIFY_BAR_SIZE, QueueConfig,
    REGISTERS_BAR_SIZE, VirtioBackend, VirtioIdentity, VirtioPciDevice,
};

const CPUS: u32 = 2;
const QUEUES: [u16; 2] = [256, 16];
const FEATURES: u64 = 0b101;
const MEMORY: usize = 0x10_0000;

struct Machine;

impl InterruptSink for Machine {
    fn interrupt(&self, _cpu: u32, vector: u8) {
        assert!(vector >= 16, "vector {vector} is no interrupt's");
    }

    fn cpu_count(&self) -> u32 {
        CPUS
    }
}

impl PowerControl for Machine {
    fn request(&self, _request: PowerRequest) {}
}

/// A device's process, as the transport may talk to it.
#[derive(Default)]
struct State {
    configured: [bool; QUEUES.len()],
    is_ready: bool,
    is_gone: bool,
}

#[derive(Clone, Default)]
struct Backend(Arc<Mutex<State>>);

impl Backend {
    fn with(&self, act: impl FnOnce(&mut State)) -> std::result::Result<(), BackendError> {
        let mut state = self.0.lock().expect("nobody panics");
        if state.is_gone {
            return Err(BackendError("gone".to_owned()));
        }
        act(&mut state);
        Ok(())
    }
}

impl VirtioBackend for Backend {
    fn configure_queue(
        &mut self,
        index: u16,
        queue: &QueueConfig,
    ) -> std::result::Result<(), BackendError> {
        self.with(|state| {
            assert!(!state.is_ready, "a queue after DRIVER_OK");
            assert!(!std::mem::replace(&mut state.configured[usize::from(index)], true), "twice");
            assert!(queue.size.is_power_of_two() && queue.size <= QUEUES[usize::from(index)]);
        })
    }

    fn ready(&mut self, features: u32) -> std::result::Result<(), BackendError> {
        self.with(|state| {
            assert!(!std::mem::replace(&mut state.is_ready, true), "ready twice");
            let offered = FEATURES | F_EVENT_IDX | F_INDIRECT_DESC;
            assert_eq!(u64::from(features) & !offered, 0, "not offered");
        })
    }

    fn reset(&mut self) -> std::result::Result<(), BackendError> {
        self.with(|state| *state = State::default())
    }
}

/// An address that something is at, mostly.
fn address(devices: &[Arc<VirtioPciDevice>], input: &mut Unstructured<'_>) -> Result<u64> {
    let device = input.choose(devices)?;
    Ok(match input.int_in_range(0..=7)? {
        0u8 => input.arbitrary()?,
        1 => memory_map::IO_APIC + u64::from(input.arbitrary::<u8>()?),
        2 => {
            let slot = u64::from(input.int_in_range(0..=3u8)?);
            memory_map::PCI_ECAM.start + (slot << 15) + u64::from(input.arbitrary::<u8>()?)
        }
        3 => device.registers().start + u64::from(input.int_in_range(0..=0x1fffu16)?),
        _ => device.registers().start + u64::from(input.int_in_range(0..=0x3fu8)?),
    })
}

/// A port that something is at, mostly.
fn port(input: &mut Unstructured<'_>) -> Result<u64> {
    let first = [0x20, 0x40, 0x60, 0x61, 0x64, 0x70, 0x80, 0xa0, 0xcf8, 0xcfc, 0x3f8, 0x2000];
    Ok(match input.int_in_range(0..=7)? {
        0u8 => u64::from(input.arbitrary::<u16>()?),
        _ => *input.choose(&first)? + u64::from(input.int_in_range(0..=7u8)?),
    })
}

fn run(mut input: Unstructured<'_>) -> Result<()> {
    let pci = Arc::new(PciBus::new(memory_map::PCI_MMIO));
    let mut mmio = Bus::default();
    let machine = Arc::new(Machine);
    let platform =
        Platform::new(machine.clone(), machine, pci.clone(), &mut mmio).expect("a platform");
    let memory = Arc::new(BufferMemory::new(MEMORY));
    let (mut devices, mut backends) = (Vec::new(), Vec::new());
    for breaks_queues in [false, true] {
        let identity = VirtioIdentity {
            name: "fuzz".to_owned(),
            device_id: 2,
            class: 0x01_8000,
            features: FEATURES,
            queue_sizes: QUEUES.to_vec(),
            breaks_queues,
        };
        let backend = Backend::default();
        let added = pci.add(&[REGISTERS_BAR_SIZE, NOTIFY_BAR_SIZE], |slot, bars| {
            Arc::new(VirtioPciDevice::new(
                &identity,
                DeviceConfig::read_only(vec![0; 60]).writable(32, 4),
                slot,
                [bars[0], bars[1]],
                platform.interrupts(),
                memory.clone(),
                Box::new(backend.clone()),
            ))
        });
        let device = added.expect("a free slot");
        mmio.insert(device.registers(), device.clone()).expect("free addresses");
        devices.push(device);
        backends.push(backend);
    }
    let mut data = [0; 8];
    let mut context = Context::from_waker(Waker::noop());
    while !input.is_empty() {
        let width = 1usize << input.int_in_range(0..=3)?;
        let value: u64 = match input.int_in_range(0..=3)? {
            0u8 => input.arbitrary()?,
            1 => u64::from(input.arbitrary::<u16>()?),
            _ => u64::from(input.int_in_range(0..=16u8)?),
        };
        match input.int_in_range(0..=15)? {
            0..=5u8 => mmio.write(address(&devices, &mut input)?, &value.to_le_bytes()[..width]),
            6..=8 => mmio.read(address(&devices, &mut input)?, &mut data[..width]),
            9..=10 => platform.io().write(port(&mut input)?, &value.to_le_bytes()[..width.min(4)]),
            11 => platform.io().read(port(&mut input)?, &mut data[..width.min(4)]),
            12 => _ = platform.serial().poll_input(&mut context, &value.to_le_bytes()),
            13 => _ = platform.serial().poll_output(&mut context),
            14 => {
                let device = input.choose(&devices)?;
                match input.int_in_range(0..=3)? {
                    0u8 => device.set_needs_reset(),
                    1 => device.set_config(&value.to_le_bytes()),
                    2 => device.update_config(value as usize & 0x3f, &[1, 2, 3, 4]),
                    _ => {
                        assert!(device.negotiated().is_none_or(|bits| bits & !0x1_3000_0005 == 0));
                    }
                }
            }
            _ if value > 4 => platform.interrupts().set_irq(value as u32, width > 1),
            _ => {
                // A process that has died stays so.
                let index = input.choose_index(devices.len())?;
                backends[index].0.lock().expect("nobody panics").is_gone = true;
                devices[index].set_dead();
            }
        }
    }
    Ok(())
}

fuzz_target!(|bytes: &[u8]| {
    // The input may end anywhere.
    let _ = run(Unstructured::new(bytes));
});
