//! vCPUs that other processes have handles to.

use crate::USER;
use crate::machine::{ENTRY, Machine, SLEEPER, VECTOR, enter};
use crate::support::*;
use fuchsia_zircon_types::*;
use zircon::*;

fn kick(vcpu: zx_handle_t) -> zx_status_t {
    // SAFETY: always safe.
    unsafe { zx_vcpu_kick(vcpu) }
}

fn interrupt(vcpu: zx_handle_t, vector: u32) -> zx_status_t {
    // SAFETY: always safe.
    unsafe { zx_vcpu_interrupt(vcpu, vector) }
}

/// The other process: tries what only the vCPU's thread may, then does what it is told.
pub(crate) fn use_vcpu(near: zx_handle_t, vcpu: zx_handle_t) {
    report(near, vcpu);
    assert_eq!(enter(vcpu), Err(ZX_ERR_BAD_STATE));
    let mut state = [0; size_of::<zx_vcpu_state_t>()];
    // SAFETY: the buffer has this size.
    let status =
        unsafe { zx_vcpu_read_state(vcpu, ZX_VCPU_STATE, state.as_mut_ptr(), state.len()) };
    assert_eq!(status, ZX_ERR_BAD_STATE);
    // SAFETY: as above.
    let status = unsafe { zx_vcpu_write_state(vcpu, ZX_VCPU_STATE, state.as_ptr(), state.len()) };
    assert_eq!(status, ZX_ERR_BAD_STATE);
    assert_eq!(interrupt(vcpu, 256), ZX_ERR_OUT_OF_RANGE);
    let no_kick = duplicate_with(vcpu, basic_info(vcpu).rights & !ZX_RIGHT_EXECUTE);
    assert_eq!(kick(no_kick), ZX_ERR_ACCESS_DENIED);
    let no_interrupt = duplicate_with(vcpu, basic_info(vcpu).rights & !ZX_RIGHT_SIGNAL);
    assert_eq!(interrupt(no_interrupt, VECTOR), ZX_ERR_ACCESS_DENIED);
    [no_kick, no_interrupt].into_iter().for_each(close);
    loop {
        let (request, _) = read_when_ready(near);
        let status = match &request[..] {
            b"kick" => kick(vcpu),
            b"interrupt" => interrupt(vcpu, VECTOR),
            other => panic!("what is {other:?}"),
        };
        write(near, &status.to_ne_bytes(), &[]);
    }
}

fn answered(near: zx_handle_t) -> zx_status_t {
    i32::from_ne_bytes(read_when_ready(near).0.try_into().unwrap())
}

pub(crate) fn a_vcpu_is_kicked_from_another_process() {
    let machine = Machine::new();
    let vcpu = machine.vcpu_at(SLEEPER);
    let (near, far) = channel();
    let process = spawn("vcpu", vec![(USER, far), (USER | 1 << 16, duplicate(vcpu))]);
    let seen = read_when_ready(near).0;
    assert_eq!(String::from_utf8(seen).unwrap(), format!("{:?}", basic_info(vcpu)));
    write(near, b"kick", &[]);
    // Nothing else gets the guest out of its sleep.
    assert_eq!(enter(vcpu), Err(ZX_ERR_CANCELED));
    assert_eq!(answered(near), ZX_OK);
    // A kick that was answered is there, though nobody is in the guest.
    write(near, b"kick", &[]);
    assert_eq!(answered(near), ZX_OK);
    assert_eq!(enter(vcpu), Err(ZX_ERR_CANCELED));
    write(near, b"interrupt", &[]);
    let packet = enter(vcpu).unwrap();
    assert_eq!((packet.packet_type, packet.key), (zx_packet_type_t::ZX_PKT_TYPE_GUEST_IO, 7));
    assert_eq!(answered(near), ZX_OK);
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_task_kill(process) }, ZX_OK);
    wait(process, ZX_PROCESS_TERMINATED);
    assert!(enter(vcpu).is_ok());
    [vcpu, near, process].into_iter().for_each(close);
}

pub(crate) fn a_vcpu_comes_home_and_stays_itself() {
    let machine = Machine::new();
    let vcpu = machine.vcpu();
    let info = basic_info(vcpu);
    let (near, far) = channel();
    let process = spawn("echo", vec![(USER, far)]);
    read_when_ready(near);
    // Nobody here has a handle meanwhile.
    write(near, b"", &[vcpu]);
    let home = read_when_ready(near).1[0];
    assert_eq!(basic_info(home), info);
    assert!(enter(home).is_ok(), "it is this thread's vCPU");
    // With the rights that it was sent with, and not those of the object's other handles.
    write(near, b"", &[duplicate_with(home, info.rights & !ZX_RIGHT_EXECUTE)]);
    let less = read_when_ready(near).1[0];
    assert_eq!(basic_info(less).rights, info.rights & !ZX_RIGHT_EXECUTE);
    assert_eq!(kick(less), ZX_ERR_ACCESS_DENIED);
    close(near);
    wait(process, ZX_PROCESS_TERMINATED);
    [home, less, process].into_iter().for_each(close);
}

pub(crate) fn the_last_handle_elsewhere_keeps_a_vcpu() {
    let machine = Machine::new();
    let vcpu = machine.vcpu_at(SLEEPER);
    let (near, far) = channel();
    let process = spawn("vcpu", vec![(USER, far), (USER | 1 << 16, vcpu)]);
    read_when_ready(near);
    let create = || {
        let mut vcpu = 0;
        // SAFETY: the pointer is to a local.
        match unsafe { zx_vcpu_create(machine.guest, 0, ENTRY, &mut vcpu) } {
            ZX_OK => Ok(vcpu),
            status => Err(status),
        }
    };
    write(near, b"kick", &[]);
    assert_eq!(answered(near), ZX_OK);
    assert_eq!(create(), Err(ZX_ERR_BAD_STATE), "this thread has a vCPU, if no handle to it");
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_task_kill(process) }, ZX_OK);
    wait(process, ZX_PROCESS_TERMINATED);
    // With its process the last handle went, and the vCPU with it.
    let next = create().unwrap();
    [next, near, process].into_iter().for_each(close);
}
