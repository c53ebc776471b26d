//! How long a doorbell takes to wake a sleeping device process, beside a bare message that wakes another, in turn.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

#[path = "../tests/processes/machine.rs"]
mod machine;

use fuchsia_zircon_types::*;
use machine::{BELL, Machine, PORT, enter, set_bell};
use rustix::fd::OwnedFd;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};
use rustix::time::{ClockId, clock_gettime};
use std::time::Duration;
use zircon::linux::{self, SpawnOptions};
use zircon::*;

const USER: u32 = 0xf0;
const ROUNDS: usize = 2000;
/// Long enough for a process to fall asleep.
const PAUSE: Duration = Duration::from_micros(300);

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("child=bell") => bell_child(),
        Some("child=message") => message_child(),
        _ => measure(),
    }
}

/// Nanoseconds of a clock that all processes share.
fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The other process tells by this when it woke, and first of all, with any bytes, that it is there.
struct Reports(OwnedFd);

impl Reports {
    fn pair() -> (Reports, OwnedFd) {
        let pair =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let (near, far) = pair.expect("socketpair");
        (Reports(near), far)
    }

    fn next(&self) -> u64 {
        let mut bytes = [0; 8];
        let (count, _) = recv(&self.0, &mut bytes[..], RecvFlags::empty()).expect("recv");
        assert_eq!(count, bytes.len(), "the other process is gone");
        u64::from_ne_bytes(bytes)
    }

    /// Nanoseconds from before `wake` until the sleeping process has noticed.
    fn measure(&self, wake: impl FnOnce()) -> u64 {
        std::thread::sleep(PAUSE);
        let begin = now();
        wake();
        self.next() - begin
    }
}

fn report(to: &OwnedFd) {
    send(to, &now().to_ne_bytes(), SendFlags::NOSIGNAL).expect("send");
}

fn spawn(role: &str, handles: &[zx_handle_t]) -> zx_handle_t {
    let argv = vec!["bench".into(), format!("child={role}").into()];
    let handles = (0..).zip(handles).map(|(index, handle)| (USER | index << 16, *handle)).collect();
    linux::spawn(SpawnOptions { argv, handles, ..Default::default() }).expect("spawn")
}

fn startup_handles() -> Vec<zx_handle_t> {
    let startup = linux::take_startup_handles().expect("startup handles");
    startup.handles.iter().map(|(_, handle)| *handle).collect()
}

/// A device's process: it sleeps in a port.
fn bell_child() {
    let [guest, reports] = startup_handles()[..] else { return };
    let reports = linux::duplicate_fd(reports).expect("descriptor");
    let mut port = 0;
    // SAFETY: the pointer is to a local.
    assert_eq!(unsafe { zx_port_create(0, &mut port) }, ZX_OK);
    assert_eq!(set_bell(guest, port, BELL, 4096), ZX_OK);
    report(&reports);
    loop {
        let mut packet = zx_port_packet_t::default();
        // SAFETY: the pointer is to a local.
        assert_eq!(unsafe { zx_port_wait(port, ZX_TIME_INFINITE, &mut packet) }, ZX_OK);
        report(&reports);
    }
}

fn message_child() {
    let [messages, reports] = startup_handles()[..] else { return };
    let (messages, reports) = (linux::duplicate_fd(messages), linux::duplicate_fd(reports));
    let (messages, reports) = (messages.expect("descriptor"), reports.expect("descriptor"));
    report(&reports);
    let mut message = [0; 8];
    while let Ok((1.., _)) = recv(&messages, &mut message[..], RecvFlags::empty()) {
        report(&reports);
    }
}

fn measure() {
    let machine = Machine::new();
    let mut guest = 0;
    // SAFETY: the pointer is to a local.
    let status = unsafe { zx_handle_duplicate(machine.guest, ZX_RIGHT_SAME_RIGHTS, &mut guest) };
    assert_eq!(status, ZX_OK);
    let socket = |fd| linux::socket_from_fd(fd).expect("socket");
    let (bell, bell_reports) = Reports::pair();
    let bell_process = spawn("bell", &[guest, socket(bell_reports)]);
    let (message, message_reports) = Reports::pair();
    let (Reports(near), far) = Reports::pair();
    let message_process = spawn("message", &[socket(far), socket(message_reports)]);
    bell.next();
    message.next();
    let vcpu = machine.vcpu();
    let (mut bells, mut messages) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        // From before the vCPU is entered, so that the guest's part is in it.
        bells.push(bell.measure(|| assert_eq!(enter(vcpu).expect("exit").union[0], PORT)));
        messages.push(message.measure(|| {
            send(&near, &[0; 8], SendFlags::NOSIGNAL).expect("send");
        }));
    }
    println!("wakes a process after, us | median | 90 % | 99 %");
    for (what, times) in [("a bell", &mut bells), ("a bare message", &mut messages)] {
        times.sort_unstable();
        let at = |percent: usize| times[times.len() * percent / 100] as f64 / 1000.0;
        println!("{what} | {:.1} | {:.1} | {:.1}", at(50), at(90), at(99));
    }
    for handle in [vcpu, bell_process, message_process] {
        // SAFETY: always safe.
        unsafe { zx_handle_close(handle) };
    }
}
