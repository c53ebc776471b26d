//! A channel call between two processes beside a bare sequenced-packet ping-pong, in one run; and the way of a
//! doorbell to a device process and of its interrupt back.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

#[path = "../tests/processes/machine.rs"]
mod machine;

use fuchsia_zircon_types::*;
use machine::{BELL, Machine, PORT, enter, set_bell};
use rustix::fd::OwnedFd;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use zircon::linux::{self, SpawnOptions};
use zircon::*;

const USER: u32 = 0xf0;
const SIZES: [usize; 3] = [32, 1024, 32768];

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("child=bare") => bare_child(),
        Some("child=channel") => channel_child(),
        Some("child=device") => device_child(),
        _ => divan::main(),
    }
}

fn spawn(role: &str, handle: zx_handle_t) -> zx_handle_t {
    let argv = vec!["bench".into(), format!("child={role}").into()];
    linux::spawn(SpawnOptions { argv, handles: vec![(USER, handle)], ..Default::default() })
        .expect("spawn")
}

fn bare_child() {
    let startup = linux::take_startup_handles().expect("startup handles");
    let fd = linux::duplicate_fd(startup.handles[0].1).expect("descriptor");
    let mut data = vec![0; 65536];
    while let Ok((count @ 1.., _)) = recv(&fd, &mut data[..], RecvFlags::empty()) {
        let _ = send(&fd, &data[..count], SendFlags::NOSIGNAL);
    }
}

#[divan::bench(args = SIZES, min_time = 1)]
fn bare_ping_pong(bencher: divan::Bencher<'_, '_>, size: usize) {
    let (near, far): (OwnedFd, OwnedFd) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .expect("socketpair");
    let process = spawn("bare", linux::socket_from_fd(far).expect("socket"));
    let (message, mut reply) = (vec![1; size], vec![0; 65536]);
    bencher.bench_local(|| {
        send(&near, &message, SendFlags::NOSIGNAL).expect("send");
        recv(&near, &mut reply[..], RecvFlags::empty()).expect("recv").0
    });
    drop(near);
    // SAFETY: always safe.
    unsafe { zx_handle_close(process) };
}

/// Waits and reads as a synchronous server does.
fn channel_child() {
    let startup = linux::take_startup_handles().expect("startup handles");
    let near = startup.handles[0].1;
    let (mut data, mut handles) = (vec![0; 65536], [0; 64]);
    let (mut count, mut handle_count) = (0, 0);
    loop {
        // SAFETY: the pointers are to buffers of these sizes and to locals.
        unsafe {
            let signals = ZX_CHANNEL_READABLE | ZX_CHANNEL_PEER_CLOSED;
            zx_object_wait_one(near, signals, ZX_TIME_INFINITE, std::ptr::null_mut());
            let (bytes, taken) = (data.as_mut_ptr(), handles.as_mut_ptr());
            match zx_channel_read(near, 0, bytes, taken, 65536, 64, &mut count, &mut handle_count) {
                ZX_OK => {
                    zx_channel_write(near, 0, data.as_ptr(), count, std::ptr::null(), 0);
                }
                ZX_ERR_SHOULD_WAIT => {}
                _ => return,
            }
        }
    }
}

#[divan::bench(args = SIZES, min_time = 1)]
fn channel_call(bencher: divan::Bencher<'_, '_>, size: usize) {
    let (mut near, mut far) = (0, 0);
    // SAFETY: the pointers are to locals.
    assert_eq!(unsafe { zx_channel_create(0, &mut near, &mut far) }, ZX_OK);
    let process = spawn("channel", far);
    let (message, mut reply, mut handles) = (vec![0; size], vec![0; 65536], [0; 64]);
    bencher.bench_local(|| {
        let args = zx_channel_call_args_t {
            wr_bytes: message.as_ptr(),
            wr_handles: std::ptr::null(),
            rd_bytes: reply.as_mut_ptr(),
            rd_handles: handles.as_mut_ptr(),
            wr_num_bytes: size as u32,
            wr_num_handles: 0,
            rd_num_bytes: 65536,
            rd_num_handles: 64,
        };
        let (mut count, mut handle_count) = (0, 0);
        // SAFETY: the pointers are to buffers of the stated sizes and to locals.
        let status = unsafe {
            zx_channel_call(near, 0, ZX_TIME_INFINITE, &args, &mut count, &mut handle_count)
        };
        assert_eq!(status, ZX_OK);
        count
    });
    // SAFETY: always safe.
    unsafe {
        zx_handle_close(near);
        zx_handle_close(process);
    }
}

fn create(create: unsafe fn(u32, *mut zx_handle_t) -> zx_status_t) -> zx_handle_t {
    let mut handle = 0;
    // SAFETY: the pointer is to a local.
    assert_eq!(unsafe { create(0, &mut handle) }, ZX_OK);
    handle
}

fn next_packet(port: zx_handle_t) -> zx_port_packet_t {
    let mut packet = zx_port_packet_t::default();
    // SAFETY: the pointer is to a local.
    assert_eq!(unsafe { zx_port_wait(port, ZX_TIME_INFINITE, &mut packet) }, ZX_OK);
    packet
}

/// Answers each doorbell with an interrupt.
fn device_child() {
    let startup = linux::take_startup_handles().expect("startup handles");
    let [(_, guest), (_, interrupt)] = startup.handles[..] else { return };
    let port = create(zx_port_create);
    assert_eq!(set_bell(guest, port, BELL, 4096), ZX_OK);
    // SAFETY: always safe, here and below.
    let signal = || unsafe { zx_object_signal(interrupt, 0, ZX_EVENT_SIGNALED) };
    signal();
    loop {
        next_packet(port);
        signal();
    }
}

#[divan::bench(min_time = 1)]
fn bell_and_interrupt(bencher: divan::Bencher<'_, '_>) {
    let machine = Machine::new();
    let (port, interrupt) = (create(zx_port_create), create(zx_event_create));
    let (mut guest, mut theirs) = (0, 0);
    // SAFETY: the pointers are to locals.
    unsafe {
        assert_eq!(zx_handle_duplicate(machine.guest, ZX_RIGHT_SAME_RIGHTS, &mut guest), ZX_OK);
        assert_eq!(zx_handle_duplicate(interrupt, ZX_RIGHT_SAME_RIGHTS, &mut theirs), ZX_OK);
    }
    let argv = vec!["bench".into(), "child=device".into()];
    let handles = vec![(USER, guest), (USER | 1 << 16, theirs)];
    let process =
        linux::spawn(SpawnOptions { argv, handles, ..Default::default() }).expect("spawn");
    let await_interrupt = || {
        // SAFETY: always safe.
        unsafe { zx_object_wait_async(interrupt, port, 1, ZX_EVENT_SIGNALED, 0) };
        next_packet(port);
        // SAFETY: always safe.
        unsafe { zx_object_signal(interrupt, ZX_EVENT_SIGNALED, 0) };
    };
    // The device says by its first interrupt that it listens.
    await_interrupt();
    let vcpu = machine.vcpu();
    bencher.bench_local(|| {
        let packet = enter(vcpu).expect("exit");
        assert_eq!(packet.union[0], PORT);
        await_interrupt();
    });
    for handle in [vcpu, port, interrupt, process] {
        // SAFETY: always safe.
        unsafe { zx_handle_close(handle) };
    }
}
