//! Random code with random state, in every mode: whatever it does, entering the guest ends with an exit, an error of
//! the guest's own, or a kick, and no byte outside guest memory changes.
#![no_main]

mod machine;

use arbitrary::{Arbitrary, Unstructured};
use hypervisor::{Error, Exit, Vcpu, VcpuRemote};
use libfuzzer_sys::fuzz_target;
use machine::{CODE, Code, DATA, USER, USER_STACK};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

const USER_CODE_32: u64 = 0x1b;

#[derive(Debug, Arbitrary)]
enum Mode {
    Kernel,
    User,
    Compatibility,
    /// A 16-bit code segment under the 64-bit kernel.
    Short,
    /// A second processor's real mode.
    Real,
}

#[derive(Debug, Arbitrary)]
enum Value {
    Data(u16),
    Code(u8),
    Small(u8),
    High(u16),
    Any(u64),
}

impl Value {
    fn address(&self, base: u64) -> u64 {
        match *self {
            Value::Data(offset) => base + DATA + u64::from(offset),
            Value::Code(offset) => base + CODE + u64::from(offset),
            Value::Small(value) => value.into(),
            Value::High(value) => u64::MAX - u64::from(value),
            Value::Any(value) => value,
        }
    }
}

static WATCHED: Mutex<Option<Arc<VcpuRemote>>> = Mutex::new(None);

fn watched() -> MutexGuard<'static, Option<Arc<VcpuRemote>>> {
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kicks the vCPU every millisecond from now on, until another takes its place.
fn watch(vcpu: &Vcpu) {
    static START: Once = Once::new();
    START.call_once(|| {
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(Duration::from_millis(1));
                if let Some(remote) = &*watched() {
                    remote.kick();
                }
            }
        });
    });
    *watched() = Some(vcpu.remote());
}

/// Goes to kernel or user code of any width by IRETQ.
fn enter(code: &mut Code, cs: u64, ss: u64, stack: u64, to: u64) {
    for value in [ss, stack, 2, cs, to] {
        code.load(0, value).bytes(&[0x50]);
    }
    code.bytes(&[0x48, 0xcf]);
}

fn run(mut input: Unstructured<'_>) -> arbitrary::Result<()> {
    let mode: Mode = input.arbitrary()?;
    let registers: [Value; 16] = input.arbitrary()?;
    let data: [u64; 8] = input.arbitrary()?;
    let code = input.take_rest();
    let guest = machine::guest();
    machine::write(&guest, CODE, &code[..code.len().min(4096)]);
    for (index, value) in data.into_iter().enumerate() {
        machine::put(&guest, DATA + index as u64 * 8, value);
    }
    let mut start = Code::default();
    let base = if matches!(mode, Mode::User) { USER } else { 0 };
    // RSP is the one that IRETQ loads.
    for (number, value) in
        registers.iter().enumerate().filter(|(number, _)| *number > 0 && *number != 4)
    {
        start.load(number as u8, value.address(base));
    }
    match mode {
        Mode::Kernel | Mode::Real => enter(&mut start, 8, 0x10, USER_STACK, CODE),
        Mode::User => enter(
            &mut start,
            machine::USER_CODE,
            machine::USER_DATA,
            USER + USER_STACK,
            USER + CODE,
        ),
        Mode::Compatibility => {
            // The identity map, opened to user mode.
            machine::put(&guest, 0, 0x1007);
            machine::put(&guest, 0x1000, 0x87);
            enter(&mut start, USER_CODE_32, machine::USER_DATA, USER_STACK, CODE)
        }
        Mode::Short => enter(&mut start, 0x40, 0x10, USER_STACK, CODE & 0xffff),
    };
    if matches!(mode, Mode::Short) {
        // Its segment has base 0 and 64 KiB.
        let mut low = code.to_vec();
        low.truncate(256);
        machine::write(&guest, 0xf000, &low);
        start = Code::default();
        enter(&mut start, 0x40, 0x10, 0xe000, 0xf000);
    }
    let first = machine::boot(&guest, &start);
    let mut vcpu = match mode {
        Mode::Real => Vcpu::new(&guest, CODE).expect("a second vCPU"),
        _ => first,
    };
    if matches!(mode, Mode::Real) {
        let mut state = vcpu.read_state();
        for (register, value) in state.gpr.iter_mut().zip(&registers) {
            *register = value.address(0);
        }
        vcpu.write_state(&state);
    }
    watch(&vcpu);
    let mut kicks = 0;
    for _ in 0..64 {
        match vcpu.enter() {
            Ok(Exit::Io { input: true, access_size, .. }) => {
                vcpu.write_io(access_size, [0x5a; 4]).expect("an input waits");
            }
            Ok(_) => {}
            Err(Error::Canceled) => {
                kicks += 1;
                if kicks == 3 {
                    break;
                }
            }
            Err(_) => break,
        }
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    // Too short an input is no input.
    let _ = run(Unstructured::new(data));
});
