//! The hypervisor suite: the system calls on guests and vCPUs, with guests of a few instructions. It needs no more than
//! those calls, and so holds for Fuchsia's kernel as well as for ours on Linux.
#![cfg(target_arch = "x86_64")]

use fuchsia_zircon::{self as zx, AsHandleRef as _, HandleBased as _};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

const RAM: u64 = 0x20_0000;
const ENTRY: u64 = 0x1_0000;
/// Above the memory, and mapped by the guest's page tables.
const TRAP: u64 = 0x40_0000;
const IO_PORT: u16 = 0x80;
const PAGE: usize = 4096;

/// What allows to make guests, and memory executable.
#[cfg(target_os = "linux")]
fn resources() -> (zx::Resource, zx::Resource) {
    let resource = |base| zx::linux::system_resource(base).unwrap();
    (resource(zx::sys::ZX_RSRC_SYSTEM_HYPERVISOR_BASE), resource(zx::sys::ZX_RSRC_SYSTEM_VMEX_BASE))
}

/// What allows to make guests, and memory executable.
#[cfg(target_os = "fuchsia")]
fn resources() -> (zx::Resource, zx::Resource) {
    use fidl_fuchsia_kernel::{HypervisorResourceMarker, VmexResourceMarker};
    use fuchsia_component::client::connect_to_protocol;
    fuchsia_async::LocalExecutor::new().run_singlethreaded(async {
        let hypervisor = connect_to_protocol::<HypervisorResourceMarker>().unwrap();
        let vmex = connect_to_protocol::<VmexResourceMarker>().unwrap();
        (hypervisor.get().await.unwrap(), vmex.get().await.unwrap())
    })
}

/// A guest with memory, page tables that map the first 6 MiB to themselves, and code at [`ENTRY`].
struct TestGuest {
    guest: zx::Guest,
    memory: zx::Vmo,
    _address_space: zx::Vmar,
}

impl TestGuest {
    fn new(code: &[u8]) -> Self {
        let (hypervisor, vmex) = resources();
        let (guest, address_space) = zx::Guest::create(&hypervisor).unwrap();
        let memory = zx::Vmo::create(RAM).unwrap().replace_as_executable(&vmex).unwrap();
        memory.write(&0x1003u64.to_le_bytes(), 0).unwrap();
        memory.write(&0x2003u64.to_le_bytes(), 0x1000).unwrap();
        for page in 0..3u64 {
            memory.write(&(page << 21 | 0x83).to_le_bytes(), 0x2000 + page * 8).unwrap();
        }
        memory.write(code, ENTRY).unwrap();
        let flags = zx::VmarFlags::PERM_READ
            | zx::VmarFlags::PERM_WRITE
            | zx::VmarFlags::PERM_EXECUTE
            | zx::VmarFlags::SPECIFIC;
        address_space.map(0, &memory, 0, RAM as usize, flags).unwrap();
        guest.set_io_trap(IO_PORT, 4, 7).unwrap();
        Self { guest, memory, _address_space: address_space }
    }

    fn vcpu(&self) -> zx::Vcpu {
        zx::Vcpu::create(&self.guest, ENTRY).unwrap()
    }
}

/// `out 0x80, al`: the guest has something to say.
const OUT: [u8; 2] = [0xe6, 0x80];

fn io(vcpu: &zx::Vcpu) -> zx::GuestIoPacket {
    let packet = vcpu.enter().unwrap();
    assert_eq!(packet.key(), 7);
    match packet.contents() {
        zx::PacketContents::GuestIo(packet) => packet,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_guest_starts_in_64_bit_mode_with_the_registers_it_is_given() {
    // lea rax, [rsi + rdi]; out 0x80, eax
    let guest = TestGuest::new(&[0x48, 0x8d, 0x04, 0x3e, 0xe7, 0x80]);
    let vcpu = guest.vcpu();
    let mut state = vcpu.read_state().unwrap();
    assert_eq!((state.rax, state.rsp), (0, 0));
    (state.rsi, state.rdi) = (0x1_2345_0000, 0x678);
    vcpu.write_state(&state).unwrap();
    let packet = io(&vcpu);
    assert_eq!((packet.port, packet.access_size, packet.input), (IO_PORT, 4, false));
    assert_eq!(packet.data, 0x2345_0678u32.to_le_bytes());
    assert_eq!(vcpu.read_state().unwrap().rax, 0x1_2345_0678);
}

#[test]
fn what_a_port_answers_arrives_in_the_register() {
    // mov rax, -1; in eax, 0x80; mov rbx, rax; in al, 0x80; out 0x80, al
    let code = [
        &[0x48, 0xc7, 0xc0, 0xff, 0xff, 0xff, 0xff, 0xe5, 0x80, 0x48, 0x89, 0xc3, 0xe4, 0x80][..],
        &OUT,
    ];
    let guest = TestGuest::new(&code.concat());
    let vcpu = guest.vcpu();
    let packet = io(&vcpu);
    assert_eq!((packet.access_size, packet.input), (4, true));
    vcpu.write_io(4, 0x8765_4321u32.to_le_bytes()).unwrap();
    let packet = io(&vcpu);
    assert_eq!((packet.access_size, packet.input), (1, true));
    // A doubleword clears the upper half of the register, a byte leaves the rest alone.
    assert_eq!(vcpu.read_state().unwrap().rbx, 0x8765_4321);
    vcpu.write_io(1, [0x99, 0, 0, 0]).unwrap();
    assert_eq!(io(&vcpu).data[0], 0x99);
    assert_eq!(vcpu.read_state().unwrap().rax, 0x8765_4399);
}

#[test]
fn guest_memory_is_the_vmo() {
    // mov rax, [0x20000]; inc rax; mov [0x20008], rax; out
    let code: [&[u8]; 4] = [
        &[0x48, 0x8b, 0x04, 0x25, 0, 0, 2, 0],
        &[0x48, 0xff, 0xc0],
        &[0x48, 0x89, 0x04, 0x25, 8, 0, 2, 0],
        &OUT,
    ];
    let guest = TestGuest::new(&code.concat());
    guest.memory.write(&41u64.to_le_bytes(), 0x2_0000).unwrap();
    io(&guest.vcpu());
    let mut value = [0; 8];
    guest.memory.read(&mut value, 0x2_0008).unwrap();
    assert_eq!(u64::from_le_bytes(value), 42);
}

#[test]
fn a_kick_ends_an_endless_loop_and_the_vcpu_goes_on_after_it() {
    // inc rbx; jmp
    let guest = TestGuest::new(&[0x48, 0xff, 0xc3, 0xeb, 0xfb]);
    let (send, receive) = mpsc::channel();
    thread::scope(|scope| {
        let vcpu_thread = scope.spawn(|| {
            let vcpu = guest.vcpu();
            send.send(vcpu.duplicate_handle(zx::Rights::SAME_RIGHTS).unwrap()).unwrap();
            let first = vcpu.enter().err();
            let counted = vcpu.read_state().unwrap().rbx;
            let second = vcpu.enter().err();
            (first, second, counted, vcpu.read_state().unwrap().rbx)
        });
        let vcpu = receive.recv().unwrap();
        // Now or before it enters: both are seen. The second must not come before the first was.
        thread::sleep(Duration::from_millis(20));
        vcpu.kick().unwrap();
        while !vcpu_thread.is_finished() {
            thread::sleep(Duration::from_millis(20));
            vcpu.kick().unwrap();
        }
        let (first, second, counted, later) = vcpu_thread.join().unwrap();
        assert_eq!((first, second), (Some(zx::Status::CANCELED), Some(zx::Status::CANCELED)));
        assert!(later >= counted, "{later} after {counted}");
    });
}

#[test]
fn a_kick_before_entering_is_seen() {
    let guest = TestGuest::new(&OUT);
    let vcpu = guest.vcpu();
    vcpu.kick().unwrap();
    assert_eq!(vcpu.enter().err(), Some(zx::Status::CANCELED));
    io(&vcpu);
}

#[test]
fn a_vcpu_belongs_to_the_thread_that_made_it() {
    let guest = TestGuest::new(&OUT);
    let vcpu = guest.vcpu();
    assert_eq!(zx::Vcpu::create(&guest.guest, ENTRY).err(), Some(zx::Status::BAD_STATE));
    thread::scope(|scope| {
        let elsewhere = scope
            .spawn(|| (vcpu.enter().err(), vcpu.read_state().err(), vcpu.interrupt(0x30).err()));
        let bad_state = Some(zx::Status::BAD_STATE);
        assert_eq!(elsewhere.join().unwrap(), (bad_state, bad_state, None));
    });
    io(&vcpu);
    // With its handle gone the thread may have another.
    drop(vcpu);
    io(&guest.vcpu());
}

#[test]
fn a_vcpu_handle_outlives_its_thread() {
    let guest = TestGuest::new(&OUT);
    let vcpu = thread::scope(|scope| scope.spawn(|| guest.vcpu()).join().unwrap());
    vcpu.interrupt(0x30).unwrap();
    vcpu.kick().unwrap();
    assert_eq!(vcpu.enter().err(), Some(zx::Status::BAD_STATE));
}

#[test]
fn interrupts_have_vectors_up_to_255() {
    let guest = TestGuest::new(&OUT);
    let vcpu = guest.vcpu();
    assert_eq!(vcpu.interrupt(255), Ok(()));
    assert_eq!(vcpu.interrupt(256), Err(zx::Status::OUT_OF_RANGE));
    assert_eq!(vcpu.interrupt(u32::MAX), Err(zx::Status::OUT_OF_RANGE));
}

/// `mov [TRAP + 8], al`, and then [`OUT`].
fn store() -> Vec<u8> {
    [&[0x88, 0x04, 0x25][..], &(TRAP as u32 + 8).to_le_bytes(), &OUT].concat()
}

#[test]
fn a_memory_trap_says_where_and_by_which_instruction() {
    let guest = TestGuest::new(&store());
    guest.guest.set_mem_trap(TRAP, PAGE, 99).unwrap();
    let vcpu = guest.vcpu();
    let packet = vcpu.enter().unwrap();
    assert_eq!(packet.key(), 99);
    let zx::PacketContents::GuestMem(zx::GuestMemPacket::X64 { addr, cr3, rip, .. }) =
        packet.contents()
    else {
        panic!("{:?}", packet.contents());
    };
    assert_eq!((addr, cr3, rip), (TRAP + 8, 0, ENTRY));
    // The access counts as done: it goes on behind the instruction.
    io(&vcpu);
}

#[test]
fn traps_are_whole_pages_and_do_not_overlap() {
    let guest = TestGuest::new(&OUT).guest;
    assert_eq!(guest.set_mem_trap(TRAP + 1, PAGE, 0), Err(zx::Status::INVALID_ARGS));
    assert_eq!(guest.set_mem_trap(TRAP, 100, 0), Err(zx::Status::INVALID_ARGS));
    assert_eq!(guest.set_mem_trap(TRAP, 2 * PAGE, 0), Ok(()));
    let port = zx::Port::create();
    let second = TRAP + PAGE as u64;
    assert_eq!(guest.set_trap_bell(second, PAGE, &port, 0), Err(zx::Status::ALREADY_EXISTS));
    assert_eq!(guest.set_io_trap(IO_PORT + 3, 2, 0), Err(zx::Status::ALREADY_EXISTS));
}

fn bell(port: &zx::Port) -> u64 {
    let packet = port.wait(zx::Time::INFINITE).unwrap();
    assert_eq!(packet.key(), 55);
    match packet.contents() {
        zx::PacketContents::GuestBell(bell) => bell.addr,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_bell_rings_on_its_port_and_the_guest_goes_on() {
    let guest = TestGuest::new(&store());
    let port = zx::Port::create();
    guest.guest.set_trap_bell(TRAP, PAGE, &port, 55).unwrap();
    io(&guest.vcpu());
    assert_eq!(bell(&port), TRAP + 8);
}

#[test]
fn bells_and_other_packets_share_a_port() {
    let guest = TestGuest::new(&store());
    let port = zx::Port::create();
    guest.guest.set_trap_bell(TRAP, PAGE, &port, 55).unwrap();
    let user = zx::UserPacket::from_u8_array([7; 32]);
    port.queue(&zx::Packet::from_user_packet(1, 0, user)).unwrap();
    io(&guest.vcpu());
    let mut seen = [0, 0];
    for _ in 0..2 {
        let packet = port.wait(zx::Time::INFINITE).unwrap();
        match packet.contents() {
            zx::PacketContents::User(_) if packet.key() == 1 => seen[0] += 1,
            zx::PacketContents::GuestBell(_) if packet.key() == 55 => seen[1] += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, [1, 1]);
}

#[test]
fn a_cpu_that_shuts_down_is_an_internal_error() {
    // lidt [0x30000], where zeros are; ud2
    let guest = TestGuest::new(&[0x0f, 0x01, 0x1c, 0x25, 0, 0, 3, 0, 0x0f, 0x0b]);
    assert_eq!(guest.vcpu().enter().err(), Some(zx::Status::INTERNAL));
}

#[test]
fn handles_need_their_rights() {
    let guest = TestGuest::new(&OUT);
    let weak = guest.guest.duplicate_handle(zx::Rights::TRANSFER).unwrap();
    assert_eq!(zx::Vcpu::create(&weak, ENTRY).err(), Some(zx::Status::ACCESS_DENIED));
    assert_eq!(weak.set_mem_trap(TRAP, PAGE, 0), Err(zx::Status::ACCESS_DENIED));
    let info = guest.guest.basic_info().unwrap();
    assert_eq!(info.object_type, zx::ObjectType::GUEST);
    let vcpu = guest.vcpu();
    let weak = vcpu.duplicate_handle(zx::Rights::READ).unwrap();
    assert!(weak.read_state().is_ok());
    assert_eq!(weak.enter().err(), Some(zx::Status::ACCESS_DENIED));
    assert_eq!(weak.interrupt(0x30), Err(zx::Status::ACCESS_DENIED));
}
