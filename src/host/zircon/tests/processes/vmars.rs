//! VMARs that other processes have handles to.

use crate::USER;
use crate::children::hold;
use crate::machine::{Machine, PORT, enter};
use crate::support::*;
use fuchsia_zircon_types::*;
use zircon::linux;
use zircon::*;

const PAGE: usize = 4096;
const READ_WRITE: u32 = ZX_VM_PERM_READ | ZX_VM_PERM_WRITE;
const CAN_READ_WRITE: u32 = ZX_VM_CAN_MAP_READ | ZX_VM_CAN_MAP_WRITE | ZX_VM_CAN_MAP_SPECIFIC;

type Outcome<T> = Result<T, zx_status_t>;

fn outcome<T>(status: zx_status_t, value: T) -> Outcome<T> {
    if status == ZX_OK { Ok(value) } else { Err(status) }
}

fn map(vmar: zx_handle_t, options: u32, offset: usize, vmo: zx_handle_t) -> Outcome<usize> {
    let mut address = 0;
    let mut size = 0;
    // SAFETY: the pointer is to a local.
    assert_eq!(unsafe { zx_vmo_get_size(vmo, &mut size) }, ZX_OK);
    // SAFETY: the pointer is to a local; the tests overwrite nobody's mappings.
    let status = unsafe { zx_vmar_map(vmar, options, offset, vmo, 0, size as usize, &mut address) };
    outcome(status, address)
}

fn unmap(vmar: zx_handle_t, address: usize, len: usize) -> Outcome<()> {
    // SAFETY: the tests unmap only what they mapped and no longer use.
    outcome(unsafe { zx_vmar_unmap(vmar, address, len) }, ())
}

fn protect(vmar: zx_handle_t, options: u32, address: usize, len: usize) -> Outcome<()> {
    // SAFETY: the tests know what they protect.
    outcome(unsafe { zx_vmar_protect(vmar, options, address, len) }, ())
}

fn destroy(vmar: zx_handle_t) -> Outcome<()> {
    // SAFETY: the tests destroy only what they do not use.
    outcome(unsafe { zx_vmar_destroy(vmar) }, ())
}

fn allocate(vmar: zx_handle_t, options: u32, size: usize) -> Outcome<(zx_handle_t, usize)> {
    let (mut child, mut address) = (0, 0);
    // SAFETY: the pointers are to locals.
    let status = unsafe { zx_vmar_allocate(vmar, options, 0, size, &mut child, &mut address) };
    outcome(status, (child, address))
}

fn info(vmar: zx_handle_t) -> zx_info_vmar_t {
    let mut info = zx_info_vmar_t::default();
    let (buffer, none) = ((&raw mut info).cast(), std::ptr::null_mut());
    let size = size_of::<zx_info_vmar_t>();
    // SAFETY: the buffer is a local of this size.
    let status = unsafe { zx_object_get_info(vmar, ZX_INFO_VMAR, buffer, size, none, none) };
    assert_eq!(status, ZX_OK);
    info
}

fn vmo_with(text: &[u8], pages: usize) -> zx_handle_t {
    let vmo = vmo((pages * PAGE) as u64);
    // SAFETY: the pointer is to a slice of this length.
    assert_eq!(unsafe { zx_vmo_write(vmo, text.as_ptr(), 0, text.len()) }, ZX_OK);
    vmo
}

/// What the kernel says of this process's memory at an address, as `rw-s`.
fn permissions_at(address: usize) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines()
        .find_map(|line| {
            let (range, rest) = line.split_once(' ')?;
            let (start, end) = range.split_once('-')?;
            let number = |text| usize::from_str_radix(text, 16).unwrap();
            (number(start)..number(end)).contains(&address).then(|| rest[..4].into())
        })
        .unwrap_or_default()
}

fn number(near: zx_handle_t) -> usize {
    usize::from_ne_bytes(read_when_ready(near).0.try_into().unwrap())
}

/// The other process: changes the address space that it has a handle to, step by step.
pub(crate) fn use_vmar(near: zx_handle_t, vmar: zx_handle_t) {
    report(near, vmar);
    let step = |value: usize| {
        write(near, &value.to_ne_bytes(), &[]);
        read_when_ready(near);
    };
    let vmo = vmo_with(b"goods", 2);
    let address = map(vmar, READ_WRITE, 0, vmo).unwrap();
    assert_eq!(map(vmar, READ_WRITE | ZX_VM_PERM_EXECUTE, 0, vmo), Err(ZX_ERR_ACCESS_DENIED));
    assert_eq!(map(vmar, READ_WRITE, 0, near_vmo()), Err(ZX_ERR_NO_MEMORY), "too large");
    step(address);
    let mut reply = [0; 5];
    // SAFETY: the buffer has five bytes.
    assert_eq!(unsafe { zx_vmo_read(vmo, reply.as_mut_ptr(), PAGE as u64, 5) }, ZX_OK);
    assert_eq!(&reply, b"reply");
    protect(vmar, ZX_VM_PERM_READ, address + PAGE, PAGE).unwrap();
    assert_eq!(protect(vmar, ZX_VM_PERM_READ, address + 2 * PAGE, PAGE), Err(ZX_ERR_NOT_FOUND));
    step(info(vmar).base);
    unmap(vmar, address, PAGE).unwrap();
    assert_eq!(unmap(vmar, info(vmar).base - PAGE, PAGE), Err(ZX_ERR_INVALID_ARGS));
    step(0);
    // A region inside, which is as far away, and a right that the outer handle does not give.
    assert_eq!(allocate(vmar, ZX_VM_CAN_MAP_EXECUTE, PAGE).map(drop), Err(ZX_ERR_ACCESS_DENIED));
    let (inner, base) = allocate(vmar, ZX_VM_CAN_MAP_READ, 2 * PAGE).unwrap();
    assert_eq!(info(inner), zx_info_vmar_t { base, len: 2 * PAGE });
    assert_eq!(basic_info(inner).related_koid, basic_info(vmar).koid);
    assert_eq!(map(inner, READ_WRITE, 0, vmo), Err(ZX_ERR_ACCESS_DENIED));
    assert_eq!(map(inner, ZX_VM_PERM_READ, 0, vmo), Ok(base));
    step(base);
    destroy(inner).unwrap();
    assert_eq!(map(inner, ZX_VM_PERM_READ, 0, vmo), Err(ZX_ERR_BAD_STATE));
    assert_eq!(destroy(inner), Err(ZX_ERR_BAD_STATE));
    step(0);
}

/// Of more pages than the region has.
fn near_vmo() -> zx_handle_t {
    vmo(64 * PAGE as u64)
}

pub(crate) fn a_process_maps_into_another() {
    let root = linux::vmar_root_self().unwrap();
    let (region, base) = allocate(root, CAN_READ_WRITE, 8 * PAGE).unwrap();
    let (near, far) = channel();
    let process = spawn("mapper", vec![(USER, far), (USER | 1 << 16, duplicate(region))]);
    let seen = String::from_utf8(read_when_ready(near).0).unwrap();
    assert_eq!(seen, format!("{:?}", basic_info(region)));
    let next = || write(near, b"", &[]);

    let address = number(near);
    assert_eq!((address, permissions_at(address)), (base, "rw-s".into()));
    // SAFETY: the other process has mapped two pages here, and touches them no more until it is told to.
    unsafe {
        assert_eq!(std::slice::from_raw_parts(address as *const u8, 5), b"goods");
        (address as *mut [u8; 5]).byte_add(PAGE).write(*b"reply");
    }
    next();
    assert_eq!(number(near), base);
    assert_eq!(permissions_at(address + PAGE), "r--s");
    next();
    number(near);
    assert_eq!(permissions_at(address), "---p", "reserved");
    next();
    let inner = number(near);
    assert_eq!(permissions_at(inner), "r--s");
    // What the other process has is taken here.
    let vmo = vmo(PAGE as u64);
    let specific = READ_WRITE | ZX_VM_SPECIFIC;
    assert_eq!(map(region, specific, inner - base, vmo), Err(ZX_ERR_ALREADY_EXISTS));
    next();
    number(near);
    assert_eq!(permissions_at(inner), "---p");
    assert_eq!(map(region, specific, inner - base, vmo), Ok(inner));
    next();
    wait(process, ZX_PROCESS_TERMINATED);
    destroy(region).unwrap();
    [root, region, vmo, near, process].into_iter().for_each(close);
}

/// Sends the VMAR on without the right to write.
pub(crate) fn send_on(near: zx_handle_t, vmar: zx_handle_t) {
    let (_, handles) = read_when_ready(near);
    let less = duplicate_with(vmar, basic_info(vmar).rights & !ZX_RIGHT_WRITE);
    write(handles[0], b"", &[less]);
    assert!(map(vmar, READ_WRITE, 0, vmo(PAGE as u64)).is_ok());
    hold(near);
}

/// Has what another process has sent on, and sends it home.
pub(crate) fn try_rights(near: zx_handle_t, passage: zx_handle_t) {
    let vmar = read_when_ready(passage).1[0];
    let vmo = vmo(PAGE as u64);
    assert_eq!(map(vmar, READ_WRITE, 0, vmo), Err(ZX_ERR_ACCESS_DENIED));
    let address = map(vmar, ZX_VM_PERM_READ, 0, vmo).unwrap();
    assert_eq!(protect(vmar, READ_WRITE, address, PAGE), Err(ZX_ERR_ACCESS_DENIED));
    assert_eq!(allocate(vmar, CAN_READ_WRITE, PAGE).map(drop), Err(ZX_ERR_ACCESS_DENIED));
    write(near, &address.to_ne_bytes(), &[vmar]);
    hold(near);
}

pub(crate) fn rights_stay_behind_on_the_way() {
    let root = linux::vmar_root_self().unwrap();
    let (region, _) = allocate(root, CAN_READ_WRITE, 8 * PAGE).unwrap();
    let (first, far) = channel();
    let reducer = spawn("reducer", vec![(USER, far), (USER | 1 << 16, duplicate(region))]);
    let (passage, other) = channel();
    let (second, far) = channel();
    let reduced = spawn("reduced", vec![(USER, far), (USER | 1 << 16, other)]);
    write(first, b"", &[passage]);
    let (address, handles) = read_when_ready(second);
    let address = usize::from_ne_bytes(address.try_into().unwrap());
    assert_eq!(permissions_at(address), "r--s");
    let (left, came) = (basic_info(region), basic_info(handles[0]));
    assert_eq!((came.koid, came.rights), (left.koid, left.rights & !ZX_RIGHT_WRITE));
    assert_eq!(read_when_ready(first).0, b"ready", "it still may write there");
    assert_eq!(read_when_ready(second).0, b"ready");
    // It is the object itself: what is done through one handle is seen through the other.
    unmap(handles[0], address, PAGE).unwrap();
    assert_eq!(protect(region, ZX_VM_PERM_READ, address, PAGE), Err(ZX_ERR_NOT_FOUND));
    destroy(region).unwrap();
    [root, region, first, second, handles[0], reducer, reduced].into_iter().for_each(close);
}

/// Gives a region of its own address space away.
pub(crate) fn give_region(near: zx_handle_t) {
    let root = linux::vmar_root_self().unwrap();
    let (region, _) = allocate(root, CAN_READ_WRITE, 8 * PAGE).unwrap();
    write(near, b"", &[region]);
    loop {
        std::thread::park();
    }
}

fn foreign_region() -> (zx_handle_t, [zx_handle_t; 2]) {
    let (near, far) = channel();
    let process = spawn("address_space", vec![(USER, far)]);
    (read_when_ready(near).1[0], [near, process])
}

pub(crate) fn a_vmar_outlives_its_process_as_an_error() {
    let (vmar, [near, process]) = foreign_region();
    let vmo = vmo(PAGE as u64);
    let before = (basic_info(vmar), info(vmar));
    let address = map(vmar, READ_WRITE, 0, vmo).unwrap();
    stop(process);
    let blocked = std::thread::spawn(move || map(vmar, READ_WRITE, 0, vmo));
    send_signal(process, "-9");
    wait(process, ZX_PROCESS_TERMINATED);
    assert_eq!(blocked.join().unwrap(), Err(ZX_ERR_BAD_STATE));
    assert_eq!(map(vmar, READ_WRITE, 0, vmo), Err(ZX_ERR_BAD_STATE));
    assert_eq!(unmap(vmar, address, PAGE), Err(ZX_ERR_BAD_STATE));
    assert_eq!(protect(vmar, READ_WRITE, address, PAGE), Err(ZX_ERR_BAD_STATE));
    assert_eq!(allocate(vmar, CAN_READ_WRITE, PAGE), Err(ZX_ERR_BAD_STATE));
    assert_eq!(destroy(vmar), Err(ZX_ERR_BAD_STATE));
    // It still is a handle, which can be sent, also with fewer rights.
    let less = before.0.rights & !ZX_RIGHT_WRITE;
    let (here, there) = channel();
    write(here, b"", &[duplicate_with(vmar, less), duplicate(vmar)]);
    let (_, again) = read_when_ready(there);
    assert_eq!((basic_info(again[1]), info(again[0])), before);
    assert_eq!(basic_info(again[0]).rights, less);
    assert_eq!(map(again[0], ZX_VM_PERM_READ, 0, vmo), Err(ZX_ERR_BAD_STATE));
    let others = [vmar, vmo, near, process, here, there];
    again.into_iter().chain(others).for_each(close);
}

pub(crate) fn a_stopped_owner_is_waited_for() {
    let (vmar, [near, process]) = foreign_region();
    let vmo = vmo(PAGE as u64);
    stop(process);
    let waiting = std::thread::spawn(move || map(vmar, READ_WRITE, 0, vmo));
    send_signal(process, "-CONT");
    assert_eq!(waiting.join().unwrap(), Ok(info(vmar).base));
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_task_kill(process) }, ZX_OK);
    wait(process, ZX_PROCESS_TERMINATED);
    [vmar, vmo, near, process].into_iter().for_each(close);
}

const EXTRA_RAM: usize = 0x30_0000;

/// Puts a program into a guest of another process.
pub(crate) fn give_memory(near: zx_handle_t, memory: zx_handle_t) {
    // out PORT, al; jmp back.
    let vmo = vmo_with(&[0xe6, PORT, 0xeb, 0xfc], 1);
    assert_eq!(map(memory, READ_WRITE | ZX_VM_SPECIFIC, EXTRA_RAM, vmo), Ok(EXTRA_RAM));
    hold(near);
}

pub(crate) fn a_process_gives_a_guest_memory() {
    let machine = Machine::new();
    let (near, far) = channel();
    let process = spawn("memory", vec![(USER, far), (USER | 1 << 16, duplicate(machine.memory))]);
    assert_eq!(read_when_ready(near).0, b"ready");
    let vcpu = machine.vcpu_at(EXTRA_RAM);
    let packet = enter(vcpu).unwrap();
    assert_eq!((packet.packet_type, packet.key), (zx_packet_type_t::ZX_PKT_TYPE_GUEST_IO, 7));
    [vcpu, near, process].into_iter().for_each(close);
}
