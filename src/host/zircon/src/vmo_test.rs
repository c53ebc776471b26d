//! VMOs, VMARs and sockets within one process.

use crate::testing::*;
use crate::*;
use fuchsia_zircon_types::*;

const PAGE: usize = 4096;

fn vmo_read(vmo: zx_handle_t, offset: u64, len: usize) -> Result<Vec<u8>, zx_status_t> {
    let mut data = vec![0; len];
    // SAFETY: the pointer is to a buffer of this length.
    check(unsafe { zx_vmo_read(vmo, data.as_mut_ptr(), offset, len) }).map(|()| data)
}

fn vmo_write(vmo: zx_handle_t, offset: u64, data: &[u8]) -> Result<(), zx_status_t> {
    // SAFETY: the pointer is to a slice of this length.
    check(unsafe { zx_vmo_write(vmo, data.as_ptr(), offset, data.len()) })
}

fn vmo_size(vmo: zx_handle_t) -> u64 {
    let mut size = 0;
    // SAFETY: the pointer is to a local.
    assert_eq!(unsafe { zx_vmo_get_size(vmo, &mut size) }, ZX_OK);
    size
}

fn op(vmo: zx_handle_t, op: u32, offset: u64, len: u64) -> zx_status_t {
    // SAFETY: always safe.
    unsafe { zx_vmo_op_range(vmo, op, offset, len, std::ptr::null_mut(), 0) }
}

fn child(
    vmo: zx_handle_t,
    options: u32,
    offset: u64,
    size: u64,
) -> Result<zx_handle_t, zx_status_t> {
    let mut child = 0;
    // SAFETY: the pointer is to a local.
    check(unsafe { zx_vmo_create_child(vmo, options, offset, size, &mut child) }).map(|()| child)
}

#[test]
fn contents_and_sizes() {
    let fixed = vmo(PAGE as u64 + 1, 0);
    assert_eq!(vmo_size(fixed), 2 * PAGE as u64);
    vmo_write(fixed, 5, b"hello").unwrap();
    assert_eq!(vmo_read(fixed, 4, 7).unwrap(), b"\0hello\0");
    assert_eq!(vmo_read(fixed, 2 * PAGE as u64 - 1, 2), Err(ZX_ERR_OUT_OF_RANGE));
    assert_eq!(vmo_write(fixed, u64::MAX, b"xx"), Err(ZX_ERR_OUT_OF_RANGE));
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_vmo_set_size(fixed, 0) }, ZX_ERR_UNAVAILABLE);
    let resizable = vmo(0, ZX_VMO_RESIZABLE);
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_vmo_set_size(resizable, 100) }, ZX_OK);
    assert_eq!(vmo_size(resizable), PAGE as u64);
    let mut content = 0;
    // SAFETY: the pointer is to a local.
    assert_eq!(unsafe { zx_vmo_get_stream_size(resizable, &mut content) }, ZX_OK);
    assert_eq!(content, 100);
    close(fixed);
    close(resizable);
}

#[test]
fn zero_and_decommit_give_pages_back() {
    let vmo = vmo(4 * PAGE as u64, 0);
    vmo_write(vmo, 0, &[1; 4 * PAGE]).unwrap();
    assert_eq!(op(vmo, ZX_VMO_OP_ZERO, 10, 20), ZX_OK);
    let mut expected = [1; 40];
    expected[10..30].fill(0);
    assert_eq!(vmo_read(vmo, 0, 40).unwrap(), expected);
    assert_eq!(op(vmo, ZX_VMO_OP_DECOMMIT, 1, PAGE as u64), ZX_ERR_INVALID_ARGS);
    assert_eq!(op(vmo, ZX_VMO_OP_DECOMMIT, PAGE as u64, 2 * PAGE as u64), ZX_OK);
    assert_eq!(vmo_read(vmo, PAGE as u64, 2 * PAGE).unwrap(), [0; 2 * PAGE]);
    assert_eq!(op(vmo, ZX_VMO_OP_ZERO, 0, 5 * PAGE as u64), ZX_ERR_OUT_OF_RANGE);
    let mut info = zx_info_vmo_t::default();
    let size = size_of::<zx_info_vmo_t>();
    let none = std::ptr::null_mut();
    // SAFETY: the buffer is a local of this size.
    let status =
        unsafe { zx_object_get_info(vmo, ZX_INFO_VMO, (&raw mut info).cast(), size, none, none) };
    assert_eq!((status, info.committed_bytes), (ZX_OK, 2 * PAGE as u64));
    close(vmo);
}

#[test]
fn children_share_or_copy() {
    let parent = vmo(4 * PAGE as u64, 0);
    vmo_write(parent, PAGE as u64, b"abc").unwrap();
    let slice = child(parent, ZX_VMO_CHILD_SLICE, PAGE as u64, PAGE as u64).unwrap();
    let copy = child(parent, ZX_VMO_CHILD_SNAPSHOT_AT_LEAST_ON_WRITE, 0, 8 * PAGE as u64).unwrap();
    assert_eq!(signals(parent) & ZX_VMO_ZERO_CHILDREN, 0);
    vmo_write(slice, 0, b"xyz").unwrap();
    assert_eq!(vmo_read(parent, PAGE as u64, 3).unwrap(), b"xyz");
    assert_eq!(vmo_read(copy, PAGE as u64, 3).unwrap(), b"abc");
    assert_eq!(vmo_read(slice, PAGE as u64, 1), Err(ZX_ERR_OUT_OF_RANGE));
    assert_eq!(
        child(parent, ZX_VMO_CHILD_SLICE, PAGE as u64, 4 * PAGE as u64),
        Err(ZX_ERR_OUT_OF_RANGE)
    );
    assert_eq!(basic_info(slice).related_koid, basic_info(parent).koid);
    // A slice keeps its place in the file when it travels.
    let (a, b) = channel();
    write(a, b"", &[slice]).unwrap();
    let (_, handles) = read(b).unwrap();
    assert_eq!(
        (vmo_read(handles[0], 0, 3).unwrap(), vmo_size(handles[0])),
        (b"xyz".to_vec(), PAGE as u64)
    );
    handles.into_iter().chain([a, b, copy]).for_each(close);
    assert_ne!(signals(parent) & ZX_VMO_ZERO_CHILDREN, 0);
    close(parent);
}

#[test]
fn mappings_follow_rights_and_bounds() {
    let root = linux::vmar_root_self().unwrap();
    let vmo = vmo(2 * PAGE as u64, 0);
    let read_write = ZX_VM_PERM_READ | ZX_VM_PERM_WRITE;
    let address = map(root, read_write, 0, vmo, 2 * PAGE).unwrap();
    // SAFETY: just mapped, for two pages.
    unsafe { (address as *mut u8).add(PAGE).write(42) };
    assert_eq!(vmo_read(vmo, PAGE as u64, 1).unwrap(), [42]);
    assert_eq!(unmap(root, address, 2 * PAGE), ZX_OK);
    assert_eq!(map(root, read_write, 0, vmo, 3 * PAGE), Err(ZX_ERR_OUT_OF_RANGE));
    assert_eq!(
        map(root, ZX_VM_PERM_READ | ZX_VM_PERM_EXECUTE, 0, vmo, PAGE),
        Err(ZX_ERR_ACCESS_DENIED)
    );
    let mut reduced = 0;
    // SAFETY: the pointer is to a local.
    let status = unsafe { zx_handle_duplicate(vmo, rights::VMO & !ZX_RIGHT_WRITE, &mut reduced) };
    assert_eq!(status, ZX_OK);
    assert_eq!(map(root, read_write, 0, reduced, PAGE), Err(ZX_ERR_ACCESS_DENIED));
    assert_eq!(op(reduced, ZX_VMO_OP_ZERO, 0, 1), ZX_ERR_ACCESS_DENIED);
    [root, vmo, reduced].into_iter().for_each(close);
}

#[test]
fn sub_regions_keep_to_their_range() {
    let root = linux::vmar_root_self().unwrap();
    let vmo = vmo(PAGE as u64, 0);
    let (mut region, mut base) = (0, 0);
    let options = ZX_VM_CAN_MAP_READ | ZX_VM_CAN_MAP_WRITE | ZX_VM_CAN_MAP_SPECIFIC;
    assert_eq!(
        // SAFETY: the pointers are to locals.
        unsafe { zx_vmar_allocate(root, options, 0, 4 * PAGE, &mut region, &mut base) },
        ZX_OK
    );
    let read_write = ZX_VM_PERM_READ | ZX_VM_PERM_WRITE;
    let specific = read_write | ZX_VM_SPECIFIC;
    assert_eq!(map(region, specific, PAGE, vmo, PAGE), Ok(base + PAGE));
    assert_eq!(map(region, specific, PAGE, vmo, PAGE), Err(ZX_ERR_ALREADY_EXISTS));
    assert_eq!(map(region, specific, 4 * PAGE, vmo, PAGE), Err(ZX_ERR_OUT_OF_RANGE));
    assert_eq!(map(region, specific | ZX_VM_PERM_EXECUTE, 0, vmo, PAGE), Err(ZX_ERR_ACCESS_DENIED));
    assert_eq!(map(region, read_write, 0, vmo, PAGE), Ok(base));
    assert_eq!(map(region, read_write, 0, vmo, PAGE), Ok(base + 2 * PAGE));
    assert_eq!(unmap(region, base + 4 * PAGE, PAGE), ZX_ERR_INVALID_ARGS);
    assert_eq!(unmap(region, base + PAGE, PAGE), ZX_OK);
    assert_eq!(map(region, specific, PAGE, vmo, PAGE), Ok(base + PAGE));
    // SAFETY: nothing refers to the mappings of this test.
    assert_eq!(unsafe { zx_vmar_protect(region, ZX_VM_PERM_READ, base, PAGE) }, ZX_OK);
    // SAFETY: as above.
    assert_eq!(unsafe { zx_vmar_destroy(region) }, ZX_OK);
    assert_eq!(map(region, read_write, 0, vmo, PAGE), Err(ZX_ERR_BAD_STATE));
    [root, vmo, region].into_iter().for_each(close);
}

#[test]
fn a_host_file_is_a_vmo() {
    let path = std::env::temp_dir().join(format!("zircon-vmo-test-{}", std::process::id()));
    std::fs::write(&path, b"0123456789").unwrap();
    let file = std::fs::File::open(&path).unwrap();
    let vmo = linux::vmo_from_file(file.into(), ZX_RIGHT_SAME_RIGHTS).unwrap();
    assert_eq!((vmo_size(vmo), vmo_read(vmo, 8, 2).unwrap()), (10, b"89".to_vec()));
    assert_eq!(vmo_read(vmo, 9, 2), Err(ZX_ERR_OUT_OF_RANGE));
    assert_eq!(vmo_write(vmo, 0, b"x"), Err(ZX_ERR_ACCESS_DENIED));
    let root = linux::vmar_root_self().unwrap();
    let address = map(root, ZX_VM_PERM_READ, 0, vmo, PAGE).unwrap();
    // SAFETY: just mapped, and the file has ten bytes.
    assert_eq!(unsafe { std::slice::from_raw_parts(address as *const u8, 10) }, b"0123456789");
    assert_eq!(unmap(root, address, PAGE), ZX_OK);
    std::fs::remove_file(&path).unwrap();
    [root, vmo].into_iter().for_each(close);
}

fn socket_write(socket: zx_handle_t, data: &[u8]) -> Result<usize, zx_status_t> {
    let mut actual = 0;
    // SAFETY: the pointers are to a slice of this length and a local.
    check(unsafe { zx_socket_write(socket, 0, data.as_ptr(), data.len(), &mut actual) })
        .map(|()| actual)
}

fn socket_read(socket: zx_handle_t, len: usize) -> Result<Vec<u8>, zx_status_t> {
    let mut data = vec![0; len];
    let mut actual = 0;
    // SAFETY: the pointers are to a buffer of this length and a local.
    check(unsafe { zx_socket_read(socket, 0, data.as_mut_ptr(), len, &mut actual) })?;
    data.truncate(actual);
    Ok(data)
}

#[test]
fn streams_join_and_datagrams_do_not() {
    let (a, b) = pair(zx_socket_create, ZX_SOCKET_STREAM);
    assert_eq!(socket_read(b, 1), Err(ZX_ERR_SHOULD_WAIT));
    socket_write(a, b"ab").unwrap();
    socket_write(a, b"cd").unwrap();
    assert_ne!(signals(b) & ZX_SOCKET_READABLE, 0);
    assert_eq!(socket_read(b, 10).unwrap(), b"abcd");
    let (c, d) = pair(zx_socket_create, ZX_SOCKET_DATAGRAM);
    socket_write(c, b"ab").unwrap();
    socket_write(c, b"cd").unwrap();
    assert_eq!(socket_read(d, 1).unwrap(), b"a");
    assert_eq!(socket_read(d, 10).unwrap(), b"cd");
    [a, b, c, d].into_iter().for_each(close);
}

#[test]
fn a_full_socket_waits_and_a_closed_one_ends() {
    let (a, b) = pair(zx_socket_create, ZX_SOCKET_STREAM);
    let block = vec![1; 1 << 16];
    let mut sent = 0;
    let status = loop {
        match socket_write(a, &block) {
            Ok(actual) => sent += actual,
            Err(status) => break status,
        }
    };
    assert_eq!((status, signals(a) & ZX_SOCKET_WRITABLE), (ZX_ERR_SHOULD_WAIT, 0));
    close(a);
    let mut received = 0;
    let status = loop {
        match socket_read(b, 1 << 20) {
            Ok(data) => received += data.len(),
            Err(status) => break status,
        }
    };
    assert_eq!((received, status), (sent, ZX_ERR_PEER_CLOSED));
    assert_eq!(socket_write(b, b"x"), Err(ZX_ERR_PEER_CLOSED));
    assert_eq!(signals(b) & (ZX_SOCKET_PEER_CLOSED | ZX_SOCKET_READABLE), ZX_SOCKET_PEER_CLOSED);
    close(b);
}

#[test]
fn a_disabled_direction_ends_and_the_other_goes_on() {
    let (a, b) = pair(zx_socket_create, ZX_SOCKET_STREAM);
    socket_write(a, b"end").unwrap();
    // SAFETY: always safe.
    let status = unsafe { zx_socket_set_disposition(a, ZX_SOCKET_DISPOSITION_WRITE_DISABLED, 0) };
    assert_eq!(status, ZX_OK);
    assert_eq!(socket_write(a, b"x"), Err(ZX_ERR_BAD_STATE));
    assert_ne!(signals(b) & ZX_SOCKET_PEER_WRITE_DISABLED, 0);
    assert_eq!(socket_read(b, 10).unwrap(), b"end");
    assert_eq!(socket_read(b, 10), Err(ZX_ERR_BAD_STATE));
    assert_eq!(signals(b) & (ZX_SOCKET_READABLE | ZX_SOCKET_PEER_CLOSED), 0);
    // Ready for ever without being readable: a wait must neither end nor spin.
    assert_eq!(wait_until(b, ZX_SOCKET_READABLE, soon()).unwrap_err().0, ZX_ERR_TIMED_OUT);
    socket_write(b, b"back").unwrap();
    assert_eq!(socket_read(a, 10).unwrap(), b"back");
    close(a);
    close(b);
}

#[test]
fn read_thresholds_wait_for_enough() {
    let (a, b) = pair(zx_socket_create, ZX_SOCKET_STREAM);
    let threshold = 5_u64.to_ne_bytes();
    // SAFETY: the pointer is to a local of this size.
    let status =
        unsafe { zx_object_set_property(b, ZX_PROP_SOCKET_RX_THRESHOLD, threshold.as_ptr(), 8) };
    assert_eq!(status, ZX_OK);
    let port = port();
    wait_async(b, port, 1, ZX_SOCKET_READ_THRESHOLD, 0);
    socket_write(a, b"1234").unwrap();
    assert_eq!(packet_until(port, soon()), Err(ZX_ERR_TIMED_OUT));
    socket_write(a, b"5").unwrap();
    assert_ne!(observed(&packet(port)) & ZX_SOCKET_READ_THRESHOLD, 0);
    [a, b, port].into_iter().for_each(close);
}
