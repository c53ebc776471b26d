//! A two-way call between two processes, against a bare ping-pong of the same bytes over the same
//! kind of socket. After divan's table it says the ratios, which should be at most 1.3: the medians over
//! many short rounds, in each of which all are measured in turn, so that what else the machine does meets
//! all alike. All processes are on one processor then, where the scheduler mostly puts such pairs: it is
//! the work that is compared, and not who was put elsewhere.
//!
//! The bare ping-pong blocks in the socket, as a synchronous client does. Whoever serves, or awaits,
//! more than one thing has to wait elsewhere: so there is also the ratio of a ping-pong both of whose
//! sides wait in epoll, which is the least that an asynchronous call between such sides can take.
//!
//! The benchmark is also the program of the other process: it runs itself with an argument that
//! says what to serve, and with the socket as standard input.

#[cfg(target_os = "linux")]
mod linux {
    use divan::Bencher;
    use fidl::endpoints::{ClientEnd, ServerEnd};
    use fidl::{Channel, Time};
    use fidl_test_wire::{ParrotMarker, ParrotRequest};
    use fuchsia_async as fasync;
    use futures::TryStreamExt as _;
    use rustix::event::epoll;
    use rustix::io::Errno;
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
    use std::mem::MaybeUninit;
    use std::os::fd::{AsFd, OwnedFd};
    use std::process::{Child, Command, Stdio};
    use std::time::{Duration, Instant};

    /// A header of 16 bytes, a string's 16, and its text.
    const MESSAGE: usize = 16 + 16 + TEXT.len();
    const TEXT: &str = "sixty-four bytes, as most calls of one component to another have";

    /// A process at the other end of a socket, which ends when the socket closes.
    struct Peer {
        child: Child,
    }

    impl Drop for Peer {
        fn drop(&mut self) {
            let _ = self.child.wait();
        }
    }

    fn spawn(what: &str) -> (OwnedFd, Peer) {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let program = std::env::current_exe().unwrap();
        let child = Command::new(program).arg(what).stdin(Stdio::from(theirs)).spawn().unwrap();
        (ours, Peer { child })
    }

    fn stdin() -> OwnedFd {
        std::io::stdin().as_fd().try_clone_to_owned().unwrap()
    }

    /// The other process, if this is it.
    pub(super) fn serve() -> bool {
        match std::env::args().nth(1).as_deref() {
            Some("serve-echo") => {
                let channel = fuchsia_zircon::linux::channel_from_fd(stdin()).unwrap();
                serve_echo(channel);
                true
            }
            Some("serve-bytes") => {
                let socket = stdin();
                let mut buffer = [0; MESSAGE];
                while let Ok((len @ 1.., _)) =
                    rustix::net::recv(&socket, &mut buffer, RecvFlags::empty())
                {
                    rustix::net::send(&socket, &buffer[..len], SendFlags::empty()).unwrap();
                }
                true
            }
            Some("serve-bytes-awaited") => {
                let socket = stdin();
                let set = readable_set(&socket);
                let mut buffer = [0; MESSAGE];
                while let Ok((len @ 1.., _)) = awaited_recv(&set, &socket, &mut buffer) {
                    rustix::net::send(&socket, &buffer[..len], SendFlags::empty()).unwrap();
                }
                true
            }
            _ => false,
        }
    }

    /// An epoll set that reports when the socket has something to read.
    fn readable_set(socket: &OwnedFd) -> OwnedFd {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let data = epoll::EventData::new_u64(0);
        epoll::add(&set, socket, data, epoll::EventFlags::IN).unwrap();
        set
    }

    fn awaited_recv(
        set: &OwnedFd,
        socket: &OwnedFd,
        buffer: &mut [u8],
    ) -> Result<(usize, usize), Errno> {
        let mut events = [const { MaybeUninit::uninit() }; 16];
        epoll::wait(set, &mut events[..], None)?;
        rustix::net::recv(socket, buffer, RecvFlags::DONTWAIT)
    }

    fn serve_echo(channel: Channel) {
        fasync::LocalExecutor::new().run_singlethreaded(async move {
            let mut stream = ServerEnd::<ParrotMarker>::new(channel).into_stream();
            while let Ok(Some(ParrotRequest::Say { text, responder })) = stream.try_next().await {
                responder.send(&text).unwrap();
            }
        });
    }

    const ROUNDS: usize = 300;
    const CALLS: u32 = 100;

    /// The time of one call in a round of many.
    fn round(mut call: impl FnMut()) -> Duration {
        let start = Instant::now();
        (0..CALLS).for_each(|_| call());
        start.elapsed() / CALLS
    }

    /// As [`round`], in a task that awaits one answer after the other.
    fn asynchronous_round(
        executor: &mut fasync::LocalExecutor,
        proxy: &fidl_test_wire::ParrotProxy,
    ) -> Duration {
        let start = Instant::now();
        executor.run_singlethreaded(async {
            for _ in 0..CALLS {
                drop(proxy.say(TEXT).await.unwrap());
            }
        });
        start.elapsed() / CALLS
    }

    fn median(mut figures: Vec<f64>) -> f64 {
        figures.sort_by(f64::total_cmp);
        figures[figures.len() / 2]
    }

    fn stay_on_this_processor() {
        let mut here = rustix::thread::CpuSet::new();
        here.set(rustix::thread::sched_getcpu());
        rustix::thread::sched_setaffinity(None, &here).unwrap();
    }

    pub(super) fn say_ratios() {
        stay_on_this_processor();
        let (socket, bare_peer) = spawn("serve-bytes");
        let mut buffer = [7; MESSAGE];
        let mut bare = || {
            rustix::net::send(&socket, &buffer, SendFlags::empty()).unwrap();
            rustix::net::recv(&socket, &mut buffer, RecvFlags::empty()).unwrap();
        };
        let (awaited_socket, awaited_peer) = spawn("serve-bytes-awaited");
        let set = readable_set(&awaited_socket);
        let mut awaited_buffer = [7; MESSAGE];
        let mut awaited = || {
            rustix::net::send(&awaited_socket, &awaited_buffer, SendFlags::empty()).unwrap();
            awaited_recv(&set, &awaited_socket, &mut awaited_buffer).unwrap();
        };
        let (other, sync_peer) = spawn("serve-echo");
        let channel = fuchsia_zircon::linux::channel_from_fd(other).unwrap();
        let proxy = ClientEnd::<ParrotMarker>::new(channel).into_sync_proxy();
        let mut synchronous = || drop(proxy.say(TEXT, Time::INFINITE).unwrap());
        let (other, async_peer) = spawn("serve-echo");
        let mut executor = fasync::LocalExecutor::new();
        let channel = fuchsia_zircon::linux::channel_from_fd(other).unwrap();
        let async_proxy = ClientEnd::<ParrotMarker>::new(channel).into_proxy();
        let mut rounds = [const { Vec::new() }; 4];
        for _ in 0..ROUNDS {
            let asynchronous = asynchronous_round(&mut executor, &async_proxy);
            let bare = round(&mut bare).as_secs_f64();
            let synchronous = round(&mut synchronous).as_secs_f64();
            let awaited = round(&mut awaited).as_secs_f64();
            let asynchronous = asynchronous.as_secs_f64();
            let figures = [bare, awaited / bare, synchronous / bare, asynchronous / bare];
            rounds.iter_mut().zip(figures).for_each(|(all, figure)| all.push(figure));
        }
        let [bare, awaited, synchronous, asynchronous] = rounds.map(median);
        println!("bare ping-pong: {:.2} µs", bare * 1e6);
        println!("bare ping-pong through epoll: {awaited:.2} times that");
        println!("synchronous call: {synchronous:.2} times that");
        println!("asynchronous call: {asynchronous:.2} times that");
        drop((socket, awaited_socket, proxy, async_proxy));
        drop([bare_peer, awaited_peer, sync_peer, async_peer]);
    }

    #[divan::bench]
    fn bare_ping_pong(bencher: Bencher<'_, '_>) {
        let (socket, peer) = spawn("serve-bytes");
        let mut buffer = [7; MESSAGE];
        bencher.bench_local(|| {
            rustix::net::send(&socket, &buffer, SendFlags::empty()).unwrap();
            rustix::net::recv(&socket, &mut buffer, RecvFlags::empty()).unwrap();
        });
        drop(socket);
        drop(peer);
    }

    #[divan::bench]
    fn synchronous_call(bencher: Bencher<'_, '_>) {
        let (socket, peer) = spawn("serve-echo");
        let channel = fuchsia_zircon::linux::channel_from_fd(socket).unwrap();
        let proxy = ClientEnd::<ParrotMarker>::new(channel).into_sync_proxy();
        bencher.bench_local(|| proxy.say(TEXT, Time::INFINITE).unwrap());
        drop(proxy);
        drop(peer);
    }

    #[divan::bench]
    fn asynchronous_call(bencher: Bencher<'_, '_>) {
        let (socket, peer) = spawn("serve-echo");
        let mut executor = fasync::LocalExecutor::new();
        let channel = fuchsia_zircon::linux::channel_from_fd(socket).unwrap();
        let proxy = ClientEnd::<ParrotMarker>::new(channel).into_proxy();
        bencher.bench_local(|| executor.run_singlethreaded(proxy.say(TEXT)).unwrap());
        drop(proxy);
        drop(peer);
    }
}

fn main() {
    #[cfg(target_os = "linux")]
    if linux::serve() {
        return;
    }
    divan::main();
    #[cfg(target_os = "linux")]
    linux::say_ratios();
}
