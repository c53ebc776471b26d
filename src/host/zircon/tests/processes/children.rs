//! The other sides.

use crate::support::*;
use fuchsia_zircon_types::*;
use zircon::linux;
use zircon::*;

pub(crate) fn run(role: &str) {
    let startup = linux::take_startup_handles().unwrap();
    let near = startup.handles[0].1;
    let second = startup.handles.get(1).map_or(0, |handle| handle.1);
    match role {
        "echo" => echo(near, &startup),
        "hold" => hold(near),
        "leave" => leave(near),
        "parent" => {
            let (report, far) = channel();
            spawn("hold", vec![(0xf0, far), (0x1_00f0, second)]);
            read_when_ready(report);
            hold(near);
        }
        "shell" => {
            // A child that is none of this crate's, and its child.
            let child =
                std::process::Command::new("sh").args(["-c", "sleep 1000 & sleep 1000"]).spawn();
            assert!(child.is_ok());
            hold(near);
        }
        "signal" => signal(near, second),
        "fifo" => fifo(near, second),
        "answer" => answer(near),
        "port" => port(near, second),
        "bells" => crate::guests::answer_bells(near, second),
        "others_bells" => {
            crate::guests::set_bell_for_another(second, startup.handles[2].1);
            hold(near);
        }
        "vcpu" => crate::vcpus::use_vcpu(near, second),
        "mapper" => crate::vmars::use_vmar(near, second),
        "reducer" => crate::vmars::send_on(near, second),
        "reduced" => crate::vmars::try_rights(near, second),
        "address_space" => crate::vmars::give_region(near),
        "memory" => crate::vmars::give_memory(near, second),
        _ => panic!("no role {role}"),
    }
}

fn echo(near: zx_handle_t, startup: &linux::StartupHandles) {
    let name = std::env::args().next().unwrap();
    let greeting = std::env::var("GREETING").unwrap_or_default();
    let cwd = std::env::current_dir().unwrap();
    let ids: Vec<u32> = startup.handles.iter().map(|handle| handle.0).collect();
    let report = format!("{name} {greeting} {} {ids:?} {:?}", cwd.display(), startup.names);
    write(near, report.as_bytes(), &[]);
    loop {
        wait(near, ZX_CHANNEL_READABLE | ZX_CHANNEL_PEER_CLOSED);
        match read(near) {
            Ok((bytes, handles)) => write(near, &bytes, &handles),
            Err(ZX_ERR_PEER_CLOSED) => break,
            Err(status) => assert_eq!(status, ZX_ERR_SHOULD_WAIT),
        }
    }
    // SAFETY: always safe.
    unsafe { zx_process_exit(7) };
}

pub(crate) fn hold(near: zx_handle_t) {
    write(near, b"ready", &[]);
    loop {
        std::thread::park();
    }
}

fn leave(near: zx_handle_t) {
    let vmo = vmo(4096);
    // SAFETY: the pointer is to five bytes.
    assert_eq!(unsafe { zx_vmo_write(vmo, b"goods".as_ptr(), 0, 5) }, ZX_OK);
    let (inner, outer) = channel();
    write(inner, b"nested", &[]);
    write(near, b"testament", &[vmo, outer]);
}

fn signal(near: zx_handle_t, event: zx_handle_t) {
    loop {
        wait(near, ZX_CHANNEL_READABLE | ZX_CHANNEL_PEER_CLOSED);
        let Ok((bytes, _)) = read(near) else { return };
        let signals = u32::from_ne_bytes(bytes.try_into().unwrap());
        // SAFETY: always safe.
        assert_eq!(unsafe { zx_object_signal(event, 0, signals) }, ZX_OK);
    }
}

/// Answers signals with signals, and looks at the channel that comes in a message.
fn answer(near: zx_handle_t) {
    loop {
        if wait(near, ZX_USER_SIGNAL_0 | ZX_CHANNEL_READABLE) & ZX_USER_SIGNAL_0 != 0 {
            // SAFETY: always safe.
            assert_eq!(unsafe { zx_object_signal(near, ZX_USER_SIGNAL_0, 0) }, ZX_OK);
            signal_peer(near, ZX_USER_SIGNAL_1).unwrap();
        } else if let Ok((_, handles)) = read(near) {
            assert_eq!(signals(handles[0]) & ZX_USER_SIGNAL_ALL, ZX_USER_SIGNAL_2);
            signal_peer(handles[0], ZX_USER_SIGNAL_3).unwrap();
            wait(handles[0], ZX_USER_SIGNAL_4);
            write(near, b"seen", &[]);
        }
    }
}

/// Puts two packets into a port, and tells the key of one that comes out.
fn port(near: zx_handle_t, port: zx_handle_t) {
    let packet = zx_port_packet_t { key: 1, ..Default::default() };
    // SAFETY: the pointer is to a local.
    assert_eq!(unsafe { zx_port_queue(port, &packet) }, ZX_OK);
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_object_wait_async(near, port, 2, ZX_USER_SIGNAL_1, 0) }, ZX_OK);
    assert_eq!(read_when_ready(near).0, b"wait");
    write(near, &next_packet(port).key.to_ne_bytes(), &[]);
    hold(near);
}

/// Answers each number with the next one until it is signaled.
fn fifo(near: zx_handle_t, fifo: zx_handle_t) {
    loop {
        let signals = wait(fifo, ZX_FIFO_READABLE | ZX_USER_SIGNAL_3);
        if signals & ZX_USER_SIGNAL_3 != 0 {
            fifo_write(fifo, &[99]).unwrap();
            write(near, b"signaled", &[]);
            return hold(near);
        }
        let numbers: Vec<u64> =
            fifo_read(fifo, 4).unwrap().iter().map(|number| number.wrapping_add(1)).collect();
        assert_eq!(fifo_write(fifo, &numbers), Ok(numbers.len()));
    }
}
