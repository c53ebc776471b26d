//! How long a kick takes to end `enter`, by what the guest does: median, 99th percentile and worst of many.
//!
//!   cargo bench -p hypervisor --bench kick
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use hypervisor::{Error, Guest, Vcpu};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

const RAM: u64 = 4 << 20;
const CODE: u64 = 0x1_0000;
const KICKS: usize = 500;

/// Machine code of each state; the guest has its first GiB mapped and no descriptor tables.
const STATES: [(&str, &[u8]); 5] = [
    ("tight loop", &[0xeb, 0xfe]),
    ("HLT", &[0xf4, 0xeb, 0xfd]),
    // mov edi, 0x100000; mov ecx, 0x200000; rep stosb; jmp
    ("REP STOSB", &[0xbf, 0, 0, 0x10, 0, 0xb9, 0, 0, 0x20, 0, 0xf3, 0xaa, 0xeb, 0xf2]),
    // cpuid; jmp
    ("interpreted", &[0x31, 0xc0, 0x0f, 0xa2, 0xeb, 0xfa]),
    // mov rax, cr3; mov cr3, rax; mov eax, [0x12345]; jmp
    (
        "TLB misses",
        &[0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, 0x8b, 0x04, 0x25, 0x45, 0x23, 1, 0, 0xeb, 0xf1],
    ),
];

fn guest(code: &[u8]) -> Result<Arc<Guest>, Error> {
    let guest = Guest::new()?;
    let memory = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&memory, RAM)?;
    guest.map(0, memory.as_fd(), 0, RAM)?;
    guest.write_memory(0, &0x1003_u64.to_le_bytes())?;
    guest.write_memory(0x1000, &0x83_u64.to_le_bytes())?;
    guest.write_memory(CODE, code)?;
    Ok(guest)
}

fn measure(code: &[u8]) -> Result<Vec<Duration>, Error> {
    let guest = guest(code)?;
    let mut vcpu = Vcpu::new(&guest, CODE)?;
    let remote = vcpu.remote();
    let (sender, receiver) = mpsc::channel::<Instant>();
    let kicker = std::thread::spawn(move || {
        for _ in 0..KICKS {
            std::thread::sleep(Duration::from_millis(2));
            let now = Instant::now();
            remote.kick();
            if sender.send(now).is_err() {
                return;
            }
        }
    });
    let mut times = Vec::with_capacity(KICKS);
    while times.len() < KICKS {
        match vcpu.enter() {
            Err(Error::Canceled) => {
                let end = Instant::now();
                let Ok(start) = receiver.recv() else { break };
                times.push(end.saturating_duration_since(start));
            }
            Err(error) => return Err(error),
            Ok(exit) => println!("unexpected {exit:?}"),
        }
    }
    let _ = kicker.join();
    times.sort();
    Ok(times)
}

fn main() -> Result<(), Error> {
    println!("{:14} {:>10} {:>10} {:>10}", "state", "median", "99 %", "worst");
    for (name, code) in STATES {
        let times = measure(code)?;
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        println!("{name:14} {:>10.1?} {:>10.1?} {:>10.1?}", at(50), at(99), at(100));
    }
    Ok(())
}
