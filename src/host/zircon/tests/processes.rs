//! Everything that crosses a process: startup handles, death, signals, bells, leaks. The program runs its tests one after
//! another and starts itself again for the other sides.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

#[path = "processes/children.rs"]
mod children;
#[path = "processes/guests.rs"]
mod guests;
#[path = "processes/machine.rs"]
mod machine;
#[path = "processes/support.rs"]
mod support;
#[path = "processes/vcpus.rs"]
mod vcpus;
#[path = "processes/vmars.rs"]
mod vmars;

use fuchsia_zircon_types::*;
use support::*;
use zircon::linux;
use zircon::*;

/// Type of the startup handles that the tests use: `PA_USER0`, with a number as its argument.
const USER: u32 = 0xf0;
const NAMESPACE_DIR: u32 = 0x20;

fn main() {
    let mut arguments = std::env::args().skip(1);
    if let Some(role) =
        arguments.next().and_then(|argument| argument.strip_prefix("child=").map(str::to_owned))
    {
        return children::run(&role);
    }
    let tests: [(&str, fn()); 26] = [
        ("startup_handles_and_exit_code", startup_handles_and_exit_code),
        ("more_startup_handles_than_a_message_holds", more_startup_handles_than_a_message_holds),
        ("a_killed_process_closes_its_ends", a_killed_process_closes_its_ends),
        ("a_message_in_flight_outlives_its_sender", a_message_in_flight_outlives_its_sender),
        ("killing_a_process_kills_what_it_started", killing_a_process_kills_what_it_started),
        ("killing_a_job_ends_its_processes", killing_a_job_ends_its_processes),
        ("a_killed_job_leaves_nobody", a_killed_job_leaves_nobody),
        ("signals_cross_processes", signals_cross_processes),
        ("channel_user_signals_cross_processes", channel_user_signals_cross_processes),
        ("ports_cross_processes", ports_cross_processes),
        ("thread_handles_cross_processes", thread_handles_cross_processes),
        ("calls_cross_processes", calls_cross_processes),
        ("fifos_cross_processes", fifos_cross_processes),
        (
            "a_missing_program_is_an_error_and_leaks_nothing",
            a_missing_program_is_an_error_and_leaks_nothing,
        ),
        ("nothing_leaks", nothing_leaks),
        ("bells_ring_in_another_process", guests::bells_ring_in_another_process),
        ("bells_ring_where_the_port_is_from", guests::bells_ring_where_the_port_is_from),
        ("a_guest_runs_and_exits", guests::a_guest_runs_and_exits),
        ("a_vcpu_is_kicked_from_another_process", vcpus::a_vcpu_is_kicked_from_another_process),
        ("a_vcpu_comes_home_and_stays_itself", vcpus::a_vcpu_comes_home_and_stays_itself),
        ("the_last_handle_elsewhere_keeps_a_vcpu", vcpus::the_last_handle_elsewhere_keeps_a_vcpu),
        ("a_process_maps_into_another", vmars::a_process_maps_into_another),
        ("rights_stay_behind_on_the_way", vmars::rights_stay_behind_on_the_way),
        ("a_vmar_outlives_its_process_as_an_error", vmars::a_vmar_outlives_its_process_as_an_error),
        ("a_stopped_owner_is_waited_for", vmars::a_stopped_owner_is_waited_for),
        ("a_process_gives_a_guest_memory", vmars::a_process_gives_a_guest_memory),
    ];
    let filter = std::env::args().nth(1).filter(|argument| !argument.starts_with('-'));
    for (name, test) in tests {
        if filter.as_ref().is_none_or(|filter| name.contains(filter.as_str())) {
            test();
            println!("test {name} ... ok");
        }
    }
}

fn startup_handles_and_exit_code() {
    let (near, far) = channel();
    let options = linux::SpawnOptions {
        argv: vec!["name".into(), "child=echo".into()],
        env: vec![("GREETING".into(), "hello".into())],
        cwd: Some("/".into()),
        handles: vec![(USER, far), (NAMESPACE_DIR | 1 << 16, event())],
        names: vec!["/svc".into(), "/pkg".into()],
        ..Default::default()
    };
    let process = linux::spawn(options).unwrap();
    let (report, _) = read_when_ready(near);
    assert_eq!(
        String::from_utf8(report).unwrap(),
        "name hello / [240, 65568] [\"/svc\", \"/pkg\"]"
    );
    write(near, b"ping", &[]);
    assert_eq!(read_when_ready(near).0, b"ping");
    assert_eq!(process_info(process).flags, ZX_INFO_PROCESS_FLAG_STARTED);
    close(near);
    wait(process, ZX_PROCESS_TERMINATED);
    let info = process_info(process);
    assert_eq!(
        (info.return_code, info.flags & ZX_INFO_PROCESS_FLAG_EXITED),
        (7, ZX_INFO_PROCESS_FLAG_EXITED)
    );
    close(process);
}

fn more_startup_handles_than_a_message_holds() {
    let (near, far) = channel();
    let mut handles = vec![(USER, far)];
    handles.extend((1..150).map(|number| (USER | number << 16, event())));
    let process = spawn("echo", handles);
    let (report, _) = read_when_ready(near);
    assert_eq!(String::from_utf8(report).unwrap().matches(", ").count(), 149);
    close(near);
    wait(process, ZX_PROCESS_TERMINATED);
    close(process);
}

fn a_killed_process_closes_its_ends() {
    let (near, far) = channel();
    let (pair, other) = create_pair(zx_eventpair_create, 0);
    let (stream, end) = create_pair(zx_socket_create, ZX_SOCKET_STREAM);
    let process = spawn("hold", vec![(USER, far), (USER | 1 << 16, other), (USER | 2 << 16, end)]);
    assert_eq!(read_when_ready(near).0, b"ready");
    assert_eq!(signals(pair) & ZX_EVENTPAIR_PEER_CLOSED, 0);
    send_signal(process, "-9");
    wait(near, ZX_CHANNEL_PEER_CLOSED);
    wait(pair, ZX_EVENTPAIR_PEER_CLOSED);
    wait(stream, ZX_SOCKET_PEER_CLOSED);
    wait(process, ZX_PROCESS_TERMINATED);
    assert_eq!(process_info(process).return_code, ZX_TASK_RETCODE_SYSCALL_KILL);
    [near, pair, stream, process].into_iter().for_each(close);
}

fn a_message_in_flight_outlives_its_sender() {
    let (near, far) = channel();
    let process = spawn("leave", vec![(USER, far)]);
    wait(process, ZX_PROCESS_TERMINATED);
    let (bytes, handles) = read_when_ready(near);
    assert_eq!(bytes, b"testament");
    let mut data = [0; 5];
    // SAFETY: the buffer has five bytes.
    assert_eq!(unsafe { zx_vmo_read(handles[0], data.as_mut_ptr(), 0, 5) }, ZX_OK);
    assert_eq!(&data, b"goods");
    // A channel that the message carried within a channel.
    let (nested, _) = read_when_ready(handles[1]);
    assert_eq!(nested, b"nested");
    handles.into_iter().chain([near, process]).for_each(close);
}

fn killing_a_process_kills_what_it_started() {
    let (near, far) = channel();
    let (pair, other) = create_pair(zx_eventpair_create, 0);
    let process = spawn("parent", vec![(USER, far), (USER | 1 << 16, other)]);
    assert_eq!(read_when_ready(near).0, b"ready");
    assert_eq!(signals(pair) & ZX_EVENTPAIR_PEER_CLOSED, 0);
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_task_kill(process) }, ZX_OK);
    // Only the grandchild holds the other side.
    wait(pair, ZX_EVENTPAIR_PEER_CLOSED);
    [near, pair, process].into_iter().for_each(close);
}

fn killing_a_job_ends_its_processes() {
    let parent = linux::job_default().unwrap();
    let mut job = 0;
    // SAFETY: the pointer is to a local.
    assert_eq!(unsafe { zx_job_create(parent, 0, &mut job) }, ZX_OK);
    assert_ne!(signals(job) & ZX_JOB_NO_PROCESSES, 0);
    let start = |role: &str| {
        let (near, far) = channel();
        let argv = vec!["test".into(), format!("child={role}").into()];
        let options =
            linux::SpawnOptions { argv, handles: vec![(USER, far)], job, ..Default::default() };
        let process = linux::spawn(options).unwrap();
        assert_eq!(read_when_ready(near).0, b"ready");
        (near, process)
    };
    let members = [start("hold"), start("shell")];
    assert_eq!(signals(job) & ZX_JOB_NO_PROCESSES, 0);
    // As another process would: through a handle that was sent.
    let (here, there) = channel();
    write(here, b"", &[duplicate(job)]);
    let sent = read_when_ready(there).1[0];
    assert_eq!(signals(sent) & ZX_JOB_TERMINATED, 0);
    let mut inner = 0;
    // SAFETY: the pointer is to a local.
    assert_eq!(unsafe { zx_job_create(sent, 0, &mut inner) }, ZX_ERR_NOT_SUPPORTED);
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_task_kill(sent) }, ZX_OK);
    wait(sent, ZX_JOB_TERMINATED);
    [here, there, sent].into_iter().for_each(close);
    for (near, process) in members {
        wait(process, ZX_PROCESS_TERMINATED);
        // Also what was started by other means and holds the descriptors: all ends are closed.
        wait(near, ZX_CHANNEL_PEER_CLOSED);
        close(near);
        close(process);
    }
    wait(job, ZX_JOB_TERMINATED);
    let options = linux::SpawnOptions { argv: vec!["test".into()], job, ..Default::default() };
    assert_eq!(linux::spawn(options).unwrap_err().0, ZX_ERR_BAD_STATE);
    close(job);
    close(parent);
}

fn a_killed_job_leaves_nobody() {
    let parent = linux::job_default().unwrap();
    for _ in 0..20 {
        let mut job = 0;
        // SAFETY: the pointer is to a local.
        assert_eq!(unsafe { zx_job_create(parent, 0, &mut job) }, ZX_OK);
        let (near, far) = channel();
        let (mut reader, writer) = std::io::pipe().unwrap();
        // The shell may be about to start others.
        let process = linux::spawn(linux::SpawnOptions {
            argv: vec!["test".into(), "child=shell".into()],
            handles: vec![(USER, far)],
            stdio: [None, Some(writer.into()), None],
            job,
            ..Default::default()
        });
        assert_eq!(read_when_ready(near).0, b"ready");
        // SAFETY: always safe.
        assert_eq!(unsafe { zx_task_kill(job) }, ZX_OK);
        // The end comes when nobody has the pipe any more.
        assert_eq!(std::io::Read::read(&mut reader, &mut [0]).unwrap(), 0);
        [near, job, process.unwrap()].into_iter().for_each(close);
    }
    close(parent);
}

fn signals_cross_processes() {
    let (near, far) = channel();
    let event = event();
    let process = spawn("signal", vec![(USER, far), (USER | 1 << 16, duplicate(event))]);
    let port = port();
    for round in 0..100 {
        let signal = if round % 2 == 0 { ZX_EVENT_SIGNALED } else { ZX_USER_SIGNAL_2 };
        // SAFETY: always safe.
        assert_eq!(unsafe { zx_object_wait_async(event, port, round, signal, 0) }, ZX_OK);
        write(near, &signal.to_ne_bytes(), &[]);
        let packet = next_packet(port);
        assert_eq!(packet.key, round);
        // SAFETY: always safe.
        assert_eq!(unsafe { zx_object_signal(event, signal, 0) }, ZX_OK);
    }
    [near, event, process, port].into_iter().for_each(close);
}

fn channel_user_signals_cross_processes() {
    let (near, far) = channel();
    let process = spawn("answer", vec![(USER, far)]);
    let port = port();
    for round in 0..100 {
        // SAFETY: always safe.
        assert_eq!(unsafe { zx_object_wait_async(near, port, round, ZX_USER_SIGNAL_1, 0) }, ZX_OK);
        signal_peer(near, ZX_USER_SIGNAL_0).unwrap();
        assert_eq!(next_packet(port).key, round);
        // SAFETY: always safe.
        assert_eq!(unsafe { zx_object_signal(near, ZX_USER_SIGNAL_1, 0) }, ZX_OK);
    }
    // An endpoint that is signaled before it is sent and after.
    let (here, there) = channel();
    signal_peer(here, ZX_USER_SIGNAL_2).unwrap();
    write(near, b"look", &[there]);
    assert_eq!(wait(here, ZX_USER_SIGNAL_3) & ZX_USER_SIGNAL_ALL, ZX_USER_SIGNAL_3);
    signal_peer(here, ZX_USER_SIGNAL_4).unwrap();
    assert_eq!(read_when_ready(near).0, b"seen");
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_task_kill(process) }, ZX_OK);
    wait(here, ZX_CHANNEL_PEER_CLOSED);
    wait(near, ZX_CHANNEL_PEER_CLOSED);
    assert_eq!(signal_peer(near, ZX_USER_SIGNAL_0), Err(ZX_ERR_PEER_CLOSED));
    [near, here, process, port].into_iter().for_each(close);
}

fn ports_cross_processes() {
    let (near, far) = channel();
    let port = port();
    let process = spawn("port", vec![(USER, far), (USER | 1 << 16, duplicate(port))]);
    let packet = next_packet(port);
    assert_eq!((packet.key, packet.packet_type), (1, zx_packet_type_t::ZX_PKT_TYPE_USER));
    // An asynchronous wait over there, and one here.
    signal_peer(near, ZX_USER_SIGNAL_1).unwrap();
    let packet = next_packet(port);
    assert_eq!((packet.key, packet.packet_type), (2, zx_packet_type_t::ZX_PKT_TYPE_SIGNAL_ONE));
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_object_wait_async(near, port, 3, ZX_USER_SIGNAL_0, 0) }, ZX_OK);
    write(near, b"wait", &[]);
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_object_signal(near, 0, ZX_USER_SIGNAL_0) }, ZX_OK);
    assert_eq!(read_when_ready(near).0, 3_u64.to_ne_bytes());
    // What a killed process leaves is a port that works.
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_task_kill(process) }, ZX_OK);
    wait(process, ZX_PROCESS_TERMINATED);
    // SAFETY: the pointer is to a local.
    assert_eq!(unsafe { zx_port_queue(port, &zx_port_packet_t::default()) }, ZX_OK);
    assert_eq!(next_packet(port).key, 0);
    [near, process, port].into_iter().for_each(close);
}

fn thread_handles_cross_processes() {
    let (near, far) = channel();
    let process = spawn("echo", vec![(USER, far)]);
    read_when_ready(near);
    let (ours, theirs) = channel();
    let thread = std::thread::spawn(move || {
        let thread = linux::thread_self().unwrap();
        write(theirs, b"", &[thread]);
        let again = linux::thread_self().unwrap();
        let terminated = signals(again) & ZX_THREAD_TERMINATED;
        close(again);
        wait(theirs, ZX_CHANNEL_PEER_CLOSED);
        close(theirs);
        terminated
    });
    let (_, handles) = read_when_ready(ours);
    write(near, b"", &handles);
    let (_, handles) = read_when_ready(near);
    let seen = signals(handles[0]);
    close(ours);
    assert_eq!((thread.join().unwrap(), seen & ZX_THREAD_TERMINATED), (0, 0));
    // Linux before 6.9 does not tell.
    if linux_has_thread_pidfds() {
        wait(handles[0], ZX_THREAD_TERMINATED);
    }
    close(handles[0]);
    close(near);
    wait(process, ZX_PROCESS_TERMINATED);
    close(process);
}

fn calls_cross_processes() {
    let (near, far) = channel();
    let process = spawn("echo", vec![(USER, far)]);
    read_when_ready(near);
    let threads: Vec<_> = (0..4_u8)
        .map(|thread| {
            std::thread::spawn(move || {
                for round in 0..200_u8 {
                    let reply = call(near, &[0, 0, 0, 0, thread, round]);
                    assert_eq!(reply[4..], [thread, round]);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let large: Vec<u8> = (0..65536_u32).map(|number| number as u8).collect();
    assert_eq!(call(near, &large)[4..], large[4..]);
    close(near);
    wait(process, ZX_PROCESS_TERMINATED);
    close(process);
}

fn fifos_cross_processes() {
    let (near, far) = channel();
    let (fifo, other) = create_fifo(4);
    let process = spawn("fifo", vec![(USER, far), (USER | 1 << 16, other)]);
    let port = port();
    for round in 0..1000_u64 {
        fifo_write(fifo, &[round, !round]).unwrap();
        let mut answer = Vec::new();
        while answer.len() < 2 {
            // SAFETY: always safe.
            let status = unsafe { zx_object_wait_async(fifo, port, round, ZX_FIFO_READABLE, 0) };
            assert_eq!(status, ZX_OK);
            assert_eq!(next_packet(port).key, round);
            answer.extend(fifo_read(fifo, 2).unwrap());
        }
        assert_eq!(answer, [round + 1, (!round).wrapping_add(1)]);
    }
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_object_signal_peer(fifo, 0, ZX_USER_SIGNAL_3) }, ZX_OK);
    assert_eq!(read_when_ready(near).0, b"signaled");
    // SAFETY: always safe.
    assert_eq!(unsafe { zx_task_kill(process) }, ZX_OK);
    wait(fifo, ZX_FIFO_PEER_CLOSED);
    assert_eq!(fifo_write(fifo, &[1]), Err(ZX_ERR_PEER_CLOSED));
    // What it wrote last can still be read.
    assert_eq!(fifo_read(fifo, 2), Ok(vec![99]));
    assert_eq!(fifo_read(fifo, 2), Err(ZX_ERR_PEER_CLOSED));
    [near, fifo, process, port].into_iter().for_each(close);
}

fn a_missing_program_is_an_error_and_leaks_nothing() {
    let spawn = || {
        let program = linux::Program::Path("/nonexistent/program".into());
        let handles = vec![(USER, event())];
        linux::spawn(linux::SpawnOptions {
            program,
            argv: vec!["x".into()],
            handles,
            ..Default::default()
        })
    };
    assert_eq!(spawn().unwrap_err().0, ZX_ERR_NOT_FOUND);
    settle();
    let before = (open_fds(), linux::handle_count());
    assert_eq!(spawn().unwrap_err().0, ZX_ERR_NOT_FOUND);
    settle();
    assert_eq!((open_fds(), linux::handle_count()), before);
}

fn nothing_leaks() {
    let exercise = || {
        let (near, far) = channel();
        let port = port();
        let process = spawn("echo", vec![(USER, far)]);
        read_when_ready(near);
        // SAFETY: always safe.
        assert_eq!(unsafe { zx_object_wait_async(near, port, 1, ZX_CHANNEL_READABLE, 0) }, ZX_OK);
        let (one, other) = channel();
        write(near, b"x", &[event(), event(), one, linux::vmar_root_self().unwrap()]);
        assert_eq!(next_packet(port).key, 1);
        let (_, handles) = read_when_ready(near);
        assert_eq!(handles.len(), 4);
        handles.into_iter().for_each(close);
        close(near);
        wait(process, ZX_PROCESS_TERMINATED);
        process_info(process);
        [other, process, port].into_iter().for_each(close);
    };
    exercise();
    settle();
    let before = open_fds();
    (0..10).for_each(|_| exercise());
    settle();
    assert_eq!(open_fds(), before);
}
