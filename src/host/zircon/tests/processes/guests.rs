//! A guest of a few instructions, and a device process that answers its doorbells.

use crate::USER;
use crate::machine::{BELL, ENTRY, Machine, PORT, enter, set_bell};
use crate::support::*;
use fuchsia_zircon_types::*;
use zircon::*;

fn bell_address(packet: &zx_port_packet_t) -> u64 {
    assert_eq!((packet.packet_type, packet.key), (zx_packet_type_t::ZX_PKT_TYPE_GUEST_BELL, 99));
    u64::from_ne_bytes(packet.union[..8].try_into().unwrap())
}

pub(crate) fn a_guest_runs_and_exits() {
    let machine = Machine::new();
    let port = port();
    assert_eq!(set_bell(machine.guest, port, BELL, 4096), ZX_OK);
    assert_eq!(set_bell(machine.guest, port, BELL, 4096), ZX_ERR_ALREADY_EXISTS);
    assert_eq!(set_bell(machine.guest, port, BELL + 1, 4096), ZX_ERR_INVALID_ARGS);
    let vcpu = machine.vcpu();
    let mut second = 0;
    // SAFETY: the pointer is to a local.
    assert_eq!(unsafe { zx_vcpu_create(machine.guest, 0, ENTRY, &mut second) }, ZX_ERR_BAD_STATE);
    let packet = enter(vcpu).unwrap();
    assert_eq!((packet.packet_type, packet.key), (zx_packet_type_t::ZX_PKT_TYPE_GUEST_IO, 7));
    assert_eq!(packet.union[..4], [PORT, 0, 1, 0]);
    assert_eq!(bell_address(&next_packet(port)), BELL + 4);
    // Unread rings of one doorbell are one.
    (0..3).for_each(|_| assert!(enter(vcpu).is_ok()));
    assert_eq!(bell_address(&next_packet(port)), BELL + 4);
    let mut packet = zx_port_packet_t::default();
    // SAFETY: the pointer is to a local.
    assert_eq!(unsafe { zx_port_wait(port, 0, &mut packet) }, ZX_ERR_TIMED_OUT);
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_vcpu_kick(vcpu) }, ZX_OK);
    assert_eq!(enter(vcpu), Err(ZX_ERR_CANCELED));
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_vcpu_interrupt(vcpu, 256) }, ZX_ERR_OUT_OF_RANGE);
    let elsewhere = std::thread::spawn(move || enter(vcpu)).join().unwrap();
    assert_eq!(elsewhere, Err(ZX_ERR_BAD_STATE));
    // A doorbell that nobody listens to any more is memory that swallows writes.
    close(port);
    (0..3).for_each(|_| assert!(enter(vcpu).is_ok()));
    close(vcpu);
}

/// The device's side: asks for a bell and says what rings.
pub(crate) fn answer_bells(near: zx_handle_t, guest: zx_handle_t) {
    let port = port();
    assert_eq!(set_bell(guest, port, BELL, 4096), ZX_OK);
    assert_eq!(set_bell(guest, port, BELL, 4096), ZX_ERR_ALREADY_EXISTS);
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_guest_set_trap(guest, 1, 0x50_0000, 4096, 0, 0) }, ZX_ERR_NOT_SUPPORTED);
    write(near, b"ready", &[]);
    loop {
        let address = bell_address(&next_packet(port));
        write(near, &address.to_ne_bytes(), &[]);
    }
}

/// The side of a device whose bells somebody else answers, who gave it the port.
pub(crate) fn set_bell_for_another(guest: zx_handle_t, port: zx_handle_t) {
    assert_eq!(set_bell(guest, port, BELL, 4096), ZX_OK);
}

pub(crate) fn bells_ring_where_the_port_is_from() {
    let machine = Machine::new();
    let (near, far) = channel();
    let port = port();
    let handles = vec![
        (USER, far),
        (USER | 1 << 16, duplicate(machine.guest)),
        (USER | 2 << 16, duplicate(port)),
    ];
    let process = spawn("others_bells", handles);
    assert_eq!(read_when_ready(near).0, b"ready");
    let vcpu = machine.vcpu();
    for _ in 0..100 {
        assert!(enter(vcpu).is_ok());
        assert_eq!(bell_address(&next_packet(port)), BELL + 4);
    }
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_task_kill(process) }, ZX_OK);
    wait(process, ZX_PROCESS_TERMINATED);
    // The bell went with the one who set it.
    assert!(enter(vcpu).is_ok());
    [vcpu, near, process, port].into_iter().for_each(close);
}

pub(crate) fn bells_ring_in_another_process() {
    let machine = Machine::new();
    let (near, far) = channel();
    let process = spawn("bells", vec![(USER, far), (USER | 1 << 16, duplicate(machine.guest))]);
    assert_eq!(read_when_ready(near).0, b"ready");
    let vcpu = machine.vcpu();
    for _ in 0..100 {
        assert!(enter(vcpu).is_ok());
        assert_eq!(read_when_ready(near).0, (BELL + 4).to_ne_bytes());
    }
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_task_kill(process) }, ZX_OK);
    wait(process, ZX_PROCESS_TERMINATED);
    wait(near, ZX_CHANNEL_PEER_CLOSED);
    // The device is dead, its guest is not.
    for _ in 0..100 {
        let packet = enter(vcpu).unwrap();
        assert_eq!((packet.packet_type, packet.key), (zx_packet_type_t::ZX_PKT_TYPE_GUEST_IO, 7));
    }
    [vcpu, near, process].into_iter().for_each(close);
}
