//! A guest of a few instructions, and a device process that answers its doorbells.

use crate::USER;
use crate::support::*;
use fuchsia_zircon_types::*;
use zircon::linux;
use zircon::*;

const BELL: u64 = 0x40_0000;
const PORT: u8 = 0x80;
const ENTRY: usize = 0x1_0000;
const RAM: u64 = 0x20_0000;

struct Machine {
    guest: zx_handle_t,
    others: [zx_handle_t; 3],
}

impl Machine {
    /// Rings the doorbell at `BELL + 4`, tells so through a port, and again for ever.
    fn new() -> Machine {
        let resource = linux::system_resource(ZX_RSRC_SYSTEM_HYPERVISOR_BASE).unwrap();
        let (mut guest, mut vmar) = (0, 0);
        // SAFETY: the pointers are to locals.
        assert_eq!(unsafe { zx_guest_create(resource, 0, &mut guest, &mut vmar) }, ZX_OK);
        let ram = vmo(RAM);
        let put = |at: usize, bytes: &[u8]| {
            // SAFETY: the pointer is to a slice of this length.
            assert_eq!(unsafe { zx_vmo_write(ram, bytes.as_ptr(), at as u64, bytes.len()) }, ZX_OK);
        };
        // One-to-one page tables for the first 6 MiB, at address 0.
        put(0, &0x1003_u64.to_le_bytes());
        put(0x1000, &0x2003_u64.to_le_bytes());
        (0..3).for_each(|page| put(0x2000 + page * 8, &((page as u64) << 21 | 0x83).to_le_bytes()));
        let bell = (BELL as u32 + 4).to_le_bytes();
        // mov [BELL + 4], eax; out PORT, al; jmp back.
        let code = [&[0x89, 0x04, 0x25][..], &bell, &[0xe6, PORT, 0xeb, 0xf5]].concat();
        put(ENTRY, &code);
        let options = ZX_VM_PERM_READ | ZX_VM_PERM_WRITE | ZX_VM_PERM_EXECUTE | ZX_VM_SPECIFIC;
        let mut address = 0;
        // SAFETY: guest memory is nobody's yet.
        let status = unsafe { zx_vmar_map(vmar, options, 0, ram, 0, RAM as usize, &mut address) };
        assert_eq!(status, ZX_ERR_ACCESS_DENIED, "the memory is not executable");
        let options = options & !ZX_VM_PERM_EXECUTE;
        // SAFETY: as above.
        let status = unsafe { zx_vmar_map(vmar, options, 0, ram, 0, RAM as usize, &mut address) };
        assert_eq!(status, ZX_OK);
        // SAFETY: always safe.
        assert_eq!(unsafe { zx_guest_set_trap(guest, 2, PORT.into(), 1, 0, 7) }, ZX_OK);
        Machine { guest, others: [resource, vmar, ram] }
    }

    fn vcpu(&self) -> zx_handle_t {
        let mut vcpu = 0;
        // SAFETY: the pointer is to a local.
        assert_eq!(unsafe { zx_vcpu_create(self.guest, 0, ENTRY, &mut vcpu) }, ZX_OK);
        vcpu
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.others.into_iter().chain([self.guest]).for_each(close);
    }
}

fn enter(vcpu: zx_handle_t) -> Result<zx_port_packet_t, zx_status_t> {
    let mut packet = zx_port_packet_t::default();
    // SAFETY: the pointer is to a local.
    match unsafe { zx_vcpu_enter(vcpu, &mut packet) } {
        ZX_OK => Ok(packet),
        status => Err(status),
    }
}

fn set_bell(guest: zx_handle_t, port: zx_handle_t, addr: u64, size: usize) -> zx_status_t {
    // SAFETY: always safe.
    unsafe { zx_guest_set_trap(guest, 0, addr as usize, size, port, 99) }
}

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
    close(port);
    assert_eq!(enter(vcpu), Err(ZX_ERR_BAD_STATE));
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
    let status = loop {
        if let Err(status) = enter(vcpu) {
            break status;
        }
    };
    assert_eq!(status, ZX_ERR_BAD_STATE);
    [vcpu, near, process].into_iter().for_each(close);
}
