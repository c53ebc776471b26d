//! Short forms of system calls for the tests of this crate.

use crate::*;
use fuchsia_zircon_types::*;

/// The result of a call as the tests compare it.
pub(crate) fn check(status: zx_status_t) -> Result<(), zx_status_t> {
    if status == ZX_OK { Ok(()) } else { Err(status) }
}

pub(crate) fn pair(
    create: unsafe fn(u32, *mut zx_handle_t, *mut zx_handle_t) -> zx_status_t,
    options: u32,
) -> (zx_handle_t, zx_handle_t) {
    let (mut first, mut second) = (0, 0);
    // SAFETY: the pointers are to locals.
    assert_eq!(unsafe { create(options, &mut first, &mut second) }, ZX_OK);
    (first, second)
}

pub(crate) fn channel() -> (zx_handle_t, zx_handle_t) {
    pair(zx_channel_create, 0)
}

pub(crate) fn event() -> zx_handle_t {
    let mut event = 0;
    // SAFETY: the pointer is to a local.
    assert_eq!(unsafe { zx_event_create(0, &mut event) }, ZX_OK);
    event
}

pub(crate) fn port() -> zx_handle_t {
    let mut port = 0;
    // SAFETY: the pointer is to a local.
    assert_eq!(unsafe { zx_port_create(0, &mut port) }, ZX_OK);
    port
}

pub(crate) fn vmo(size: u64, options: u32) -> zx_handle_t {
    let mut vmo = 0;
    // SAFETY: the pointer is to a local.
    assert_eq!(unsafe { zx_vmo_create(size, options, &mut vmo) }, ZX_OK);
    vmo
}

pub(crate) fn close(handle: zx_handle_t) {
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_handle_close(handle) }, ZX_OK);
}

pub(crate) fn write(
    channel: zx_handle_t,
    bytes: &[u8],
    handles: &[zx_handle_t],
) -> Result<(), zx_status_t> {
    let (count, handle_count) = (bytes.len() as u32, handles.len() as u32);
    // SAFETY: the pointers are to slices of these lengths.
    check(unsafe {
        zx_channel_write(channel, 0, bytes.as_ptr(), count, handles.as_ptr(), handle_count)
    })
}

pub(crate) fn read(channel: zx_handle_t) -> Result<(Vec<u8>, Vec<zx_handle_t>), zx_status_t> {
    read_sized(channel, 65536, 64)
}

pub(crate) fn read_sized(
    channel: zx_handle_t,
    bytes: usize,
    handles: usize,
) -> Result<(Vec<u8>, Vec<zx_handle_t>), zx_status_t> {
    let mut data = vec![0; bytes];
    let mut taken = vec![0; handles];
    let (mut actual, mut actual_handles) = (0, 0);
    // SAFETY: the pointers are to buffers of these lengths and to locals.
    check(unsafe {
        zx_channel_read(
            channel,
            0,
            data.as_mut_ptr(),
            taken.as_mut_ptr(),
            bytes as u32,
            handles as u32,
            &mut actual,
            &mut actual_handles,
        )
    })?;
    data.truncate(actual as usize);
    taken.truncate(actual_handles as usize);
    Ok((data, taken))
}

pub(crate) fn call(
    channel: zx_handle_t,
    bytes: &[u8],
    deadline: zx_time_t,
) -> Result<Vec<u8>, zx_status_t> {
    let mut reply = vec![0; 65536];
    let mut handles = [0; 64];
    let args = zx_channel_call_args_t {
        wr_bytes: bytes.as_ptr(),
        wr_handles: std::ptr::null(),
        rd_bytes: reply.as_mut_ptr(),
        rd_handles: handles.as_mut_ptr(),
        wr_num_bytes: bytes.len() as u32,
        wr_num_handles: 0,
        rd_num_bytes: 65536,
        rd_num_handles: 64,
    };
    let (mut actual, mut actual_handles) = (0, 0);
    // SAFETY: the pointers are to buffers of these lengths and to locals.
    check(unsafe {
        zx_channel_call(channel, 0, deadline, &args, &mut actual, &mut actual_handles)
    })?;
    reply.truncate(actual as usize);
    Ok(reply)
}

/// Waits for ever for any of `signals`.
pub(crate) fn wait(handle: zx_handle_t, signals: zx_signals_t) -> zx_signals_t {
    wait_until(handle, signals, ZX_TIME_INFINITE).unwrap()
}

pub(crate) fn wait_until(
    handle: zx_handle_t,
    signals: zx_signals_t,
    deadline: zx_time_t,
) -> Result<zx_signals_t, (zx_status_t, zx_signals_t)> {
    let mut observed = 0;
    // SAFETY: the pointer is to a local.
    match unsafe { zx_object_wait_one(handle, signals, deadline, &mut observed) } {
        ZX_OK => Ok(observed),
        status => Err((status, observed)),
    }
}

/// The signals now.
pub(crate) fn signals(handle: zx_handle_t) -> zx_signals_t {
    match wait_until(handle, !0, 0) {
        Ok(observed) | Err((_, observed)) => observed,
    }
}

pub(crate) fn wait_async(
    handle: zx_handle_t,
    port: zx_handle_t,
    key: u64,
    signals: zx_signals_t,
    options: u32,
) {
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_object_wait_async(handle, port, key, signals, options) }, ZX_OK);
}

pub(crate) fn signal(handle: zx_handle_t, clear: zx_signals_t, set: zx_signals_t) {
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_object_signal(handle, clear, set) }, ZX_OK);
}

/// The next packet of a port, waiting for ever.
pub(crate) fn packet(port: zx_handle_t) -> zx_port_packet_t {
    packet_until(port, ZX_TIME_INFINITE).unwrap()
}

pub(crate) fn packet_until(
    port: zx_handle_t,
    deadline: zx_time_t,
) -> Result<zx_port_packet_t, zx_status_t> {
    let mut packet = zx_port_packet_t::default();
    // SAFETY: the pointer is to a local.
    check(unsafe { zx_port_wait(port, deadline, &mut packet) })?;
    Ok(packet)
}

/// The signals that a packet of an asynchronous wait reports.
pub(crate) fn observed(packet: &zx_port_packet_t) -> zx_signals_t {
    assert_eq!(packet.packet_type, zx_packet_type_t::ZX_PKT_TYPE_SIGNAL_ONE);
    u32::from_ne_bytes(packet.union[4..8].try_into().unwrap())
}

pub(crate) fn basic_info(handle: zx_handle_t) -> zx_info_handle_basic_t {
    let mut info = zx_info_handle_basic_t::default();
    let size = size_of::<zx_info_handle_basic_t>();
    let (buffer, none) = ((&raw mut info).cast(), std::ptr::null_mut());
    assert_eq!(
        // SAFETY: the buffer is a local of this size.
        unsafe { zx_object_get_info(handle, ZX_INFO_HANDLE_BASIC, buffer, size, none, none) },
        ZX_OK
    );
    info
}

pub(crate) fn map(
    vmar: zx_handle_t,
    options: u32,
    offset: usize,
    vmo: zx_handle_t,
    len: usize,
) -> Result<usize, zx_status_t> {
    let mut address = 0;
    // SAFETY: the pointer is to a local; the tests overwrite nobody's mappings.
    check(unsafe { zx_vmar_map(vmar, options, offset, vmo, 0, len, &mut address) })
        .map(|()| address)
}

pub(crate) fn unmap(vmar: zx_handle_t, address: usize, len: usize) -> zx_status_t {
    // SAFETY: the tests unmap only what they mapped and no longer use.
    unsafe { zx_vmar_unmap(vmar, address, len) }
}

/// A region of this process in which nothing is, and its address.
pub(crate) fn region(options: u32, size: usize) -> (zx_handle_t, usize) {
    let root = linux::vmar_root_self().unwrap();
    let region = allocate(root, options, 0, size).unwrap();
    close(root);
    region
}

pub(crate) fn allocate(
    vmar: zx_handle_t,
    options: u32,
    offset: usize,
    size: usize,
) -> Result<(zx_handle_t, usize), zx_status_t> {
    let (mut region, mut base) = (0, 0);
    // SAFETY: the pointers are to locals.
    check(unsafe { zx_vmar_allocate(vmar, options, offset, size, &mut region, &mut base) })
        .map(|()| (region, base))
}

/// A deadline soon enough for a test that expects nothing to happen.
pub(crate) fn soon() -> zx_time_t {
    system::now() + 20_000_000
}
