//! Short forms of system calls.

use fuchsia_zircon_types::*;
use zircon::linux;
use zircon::*;

type CreatePair = unsafe fn(u32, *mut zx_handle_t, *mut zx_handle_t) -> zx_status_t;

pub(crate) fn create_pair(create: CreatePair, options: u32) -> (zx_handle_t, zx_handle_t) {
    let (mut first, mut second) = (0, 0);
    // SAFETY: the pointers are to locals.
    assert_eq!(unsafe { create(options, &mut first, &mut second) }, ZX_OK);
    (first, second)
}

pub(crate) fn channel() -> (zx_handle_t, zx_handle_t) {
    create_pair(zx_channel_create, 0)
}

fn create(create: impl FnOnce(*mut zx_handle_t) -> zx_status_t) -> zx_handle_t {
    let mut handle = 0;
    assert_eq!(create(&mut handle), ZX_OK);
    handle
}

pub(crate) fn event() -> zx_handle_t {
    // SAFETY: the pointer is to a local.
    create(|handle| unsafe { zx_event_create(0, handle) })
}

pub(crate) fn port() -> zx_handle_t {
    // SAFETY: the pointer is to a local.
    create(|handle| unsafe { zx_port_create(0, handle) })
}

pub(crate) fn vmo(size: u64) -> zx_handle_t {
    // SAFETY: the pointer is to a local.
    create(|handle| unsafe { zx_vmo_create(size, 0, handle) })
}

pub(crate) fn duplicate(handle: zx_handle_t) -> zx_handle_t {
    // SAFETY: the pointer is to a local.
    create(|copy| unsafe { zx_handle_duplicate(handle, ZX_RIGHT_SAME_RIGHTS, copy) })
}

pub(crate) fn duplicate_with(handle: zx_handle_t, rights: zx_rights_t) -> zx_handle_t {
    // SAFETY: the pointer is to a local.
    create(|copy| unsafe { zx_handle_duplicate(handle, rights, copy) })
}

pub(crate) fn close(handle: zx_handle_t) {
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_handle_close(handle) }, ZX_OK);
}

pub(crate) fn write(channel: zx_handle_t, bytes: &[u8], handles: &[zx_handle_t]) {
    let (count, handle_count) = (bytes.len() as u32, handles.len() as u32);
    // SAFETY: the pointers are to slices of these lengths.
    let status = unsafe {
        zx_channel_write(channel, 0, bytes.as_ptr(), count, handles.as_ptr(), handle_count)
    };
    assert_eq!(status, ZX_OK);
}

pub(crate) fn read(channel: zx_handle_t) -> Result<(Vec<u8>, Vec<zx_handle_t>), zx_status_t> {
    let (mut bytes, mut handles) = (vec![0; 65536], vec![0; 64]);
    let (mut count, mut handle_count) = (0, 0);
    let (data, taken) = (bytes.as_mut_ptr(), handles.as_mut_ptr());
    // SAFETY: the buffers have these sizes, the counts are locals.
    let status = unsafe {
        zx_channel_read(channel, 0, data, taken, 65536, 64, &mut count, &mut handle_count)
    };
    bytes.truncate(count as usize);
    handles.truncate(handle_count as usize);
    if status == ZX_OK { Ok((bytes, handles)) } else { Err(status) }
}

pub(crate) fn read_when_ready(channel: zx_handle_t) -> (Vec<u8>, Vec<zx_handle_t>) {
    wait(channel, ZX_CHANNEL_READABLE);
    read(channel).unwrap()
}

pub(crate) fn call(channel: zx_handle_t, bytes: &[u8]) -> Vec<u8> {
    let (mut reply, mut handles) = (vec![0; 65536], [0; 64]);
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
    let (mut count, mut handle_count) = (0, 0);
    // SAFETY: the pointers are to buffers of the stated sizes and to locals.
    let status = unsafe {
        zx_channel_call(channel, 0, ZX_TIME_INFINITE, &args, &mut count, &mut handle_count)
    };
    assert_eq!(status, ZX_OK);
    reply.truncate(count as usize);
    reply
}

/// Waits for ever for any of `signals`, or for the end of a channel that would be waited for in vain.
pub(crate) fn wait(handle: zx_handle_t, signals: zx_signals_t) -> zx_signals_t {
    let mut observed = 0;
    assert_eq!(
        // SAFETY: the pointer is to a local.
        unsafe { zx_object_wait_one(handle, signals, ZX_TIME_INFINITE, &mut observed) },
        ZX_OK
    );
    observed
}

pub(crate) fn signals(handle: zx_handle_t) -> zx_signals_t {
    let mut observed = 0;
    // SAFETY: the pointer is to a local.
    unsafe { zx_object_wait_one(handle, !0, 0, &mut observed) };
    observed
}

pub(crate) fn next_packet(port: zx_handle_t) -> zx_port_packet_t {
    let mut packet = zx_port_packet_t::default();
    // SAFETY: the pointer is to a local.
    assert_eq!(unsafe { zx_port_wait(port, ZX_TIME_INFINITE, &mut packet) }, ZX_OK);
    packet
}

pub(crate) fn signal_peer(handle: zx_handle_t, set: zx_signals_t) -> Result<(), zx_status_t> {
    // SAFETY: always safe.
    match unsafe { zx_object_signal_peer(handle, 0, set) } {
        ZX_OK => Ok(()),
        status => Err(status),
    }
}

/// Whether threads have descriptors that tell of their end, `PIDFD_THREAD`.
pub(crate) fn linux_has_thread_pidfds() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let mut next = || numbers.next().and_then(Result::ok).unwrap_or(0);
    (next(), next()) >= (6, 9)
}

/// A FIFO of this many 64-bit numbers.
pub(crate) fn create_fifo(count: usize) -> (zx_handle_t, zx_handle_t) {
    let (mut first, mut second) = (0, 0);
    let size = size_of::<u64>();
    // SAFETY: the pointers are to locals.
    assert_eq!(unsafe { zx_fifo_create(count, size, 0, &mut first, &mut second) }, ZX_OK);
    (first, second)
}

pub(crate) fn fifo_write(fifo: zx_handle_t, numbers: &[u64]) -> Result<usize, zx_status_t> {
    let mut actual = 0;
    let data = numbers.as_ptr().cast();
    // SAFETY: the pointers are to a slice of this length and to a local.
    match unsafe { zx_fifo_write(fifo, 8, data, numbers.len(), &mut actual) } {
        ZX_OK => Ok(actual),
        status => Err(status),
    }
}

pub(crate) fn fifo_read(fifo: zx_handle_t, count: usize) -> Result<Vec<u64>, zx_status_t> {
    let mut numbers = vec![0; count];
    let mut actual = 0;
    let data = numbers.as_mut_ptr().cast();
    // SAFETY: the pointers are to a buffer of this length and to a local.
    let status = unsafe { zx_fifo_read(fifo, 8, data, count, &mut actual) };
    numbers.truncate(actual);
    if status == ZX_OK { Ok(numbers) } else { Err(status) }
}

pub(crate) fn basic_info(handle: zx_handle_t) -> zx_info_handle_basic_t {
    let mut info = zx_info_handle_basic_t::default();
    let (buffer, none) = ((&raw mut info).cast(), std::ptr::null_mut());
    let size = size_of::<zx_info_handle_basic_t>();
    assert_eq!(
        // SAFETY: the buffer is a local of this size.
        unsafe { zx_object_get_info(handle, ZX_INFO_HANDLE_BASIC, buffer, size, none, none) },
        ZX_OK
    );
    info
}

/// Sends what a handle says of itself.
pub(crate) fn report(near: zx_handle_t, handle: zx_handle_t) {
    let info = basic_info(handle);
    write(near, format!("{info:?}").as_bytes(), &[]);
}

/// Sends a signal to a process as from outside: not through its handle.
pub(crate) fn send_signal(process: zx_handle_t, signal: &str) {
    let pid = linux::process_id(process).unwrap();
    let kill = std::process::Command::new("kill").args([signal, &pid.to_string()]).status();
    assert!(kill.unwrap().success());
}

/// Stops a process, all of its threads.
pub(crate) fn stop(process: zx_handle_t) {
    send_signal(process, "-STOP");
    let tasks = format!("/proc/{}/task", linux::process_id(process).unwrap());
    let is_stopped = |task: std::io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
        // Behind the name, which is in parentheses.
        stat.rsplit_once(')').unwrap().1.trim_start().starts_with('T')
    };
    while !std::fs::read_dir(&tasks).unwrap().all(is_stopped) {
        std::thread::yield_now();
    }
}

pub(crate) fn process_info(process: zx_handle_t) -> zx_info_process_t {
    let mut info = zx_info_process_t::default();
    let (buffer, none) = ((&raw mut info).cast(), std::ptr::null_mut());
    let size = size_of::<zx_info_process_t>();
    assert_eq!(
        // SAFETY: the buffer is a local of this size.
        unsafe { zx_object_get_info(process, ZX_INFO_PROCESS, buffer, size, none, none) },
        ZX_OK
    );
    info
}

/// Starts this program in a role.
pub(crate) fn spawn(role: &str, handles: Vec<(u32, zx_handle_t)>) -> zx_handle_t {
    let argv = vec!["test".into(), format!("child={role}").into()];
    linux::spawn(linux::SpawnOptions { argv, handles, ..Default::default() }).unwrap()
}

pub(crate) fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Gives the reaping thread time to let go of what has ended; the number of descriptors stops changing.
pub(crate) fn settle() {
    let mut last = open_fds();
    let mut same = 0;
    while same < 20 {
        std::thread::sleep(std::time::Duration::from_millis(5));
        let now = open_fds();
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
}
