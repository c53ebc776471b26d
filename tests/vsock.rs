//! Sockets between host and guest: either side listens, much goes through, and every kind of end is seen.

use enclosed_guest::{EnclosedGuest, GuestKernel, RunningGuest, environment};
use fidl::endpoints::{ClientEnd, create_proxy, create_request_stream};
use fidl_fuchsia_virtualization::{
    DEFAULT_GUEST_CID, GuestConfig, HostVsockAcceptorMarker, HostVsockAcceptorRequest,
    HostVsockAcceptorRequestStream, HostVsockEndpointMarker, HostVsockEndpointProxy, Listener,
};
use fuchsia_async as fasync;
use fuchsia_zircon as zx;
use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};

const LISTENED_BEFORE_BOOT: u32 = 8000;
const BIG: usize = 8 << 20;

struct Fixture {
    enclosed: EnclosedGuest,
    guest: RunningGuest,
    endpoint: HostVsockEndpointProxy,
    /// Of the port that is listened on since before the guest's boot.
    accepts: HostVsockAcceptorRequestStream,
}

impl Fixture {
    async fn new() -> Self {
        let enclosed = EnclosedGuest::new(environment!(), GuestKernel::Linux);
        let (acceptor, accepts) = create_request_stream::<HostVsockAcceptorMarker>();
        let config = GuestConfig {
            virtio_vsock: Some(true),
            vsock_listeners: Some(vec![Listener { port: LISTENED_BEFORE_BOOT, acceptor }]),
            ..Default::default()
        };
        let guest = enclosed.start(config).await;
        let (endpoint, server) = create_proxy::<HostVsockEndpointMarker>();
        guest.guest.get_host_vsock_endpoint(server).await.unwrap().unwrap();
        Self { enclosed, guest, endpoint, accepts }
    }

    async fn listen(
        &self,
        port: u32,
        acceptor: ClientEnd<HostVsockAcceptorMarker>,
    ) -> Result<(), zx::Status> {
        self.endpoint.listen(port, acceptor).await.unwrap().map_err(zx::Status::from_raw)
    }

    /// Connects to a port of the guest once the guest's program has got so far as to listen.
    async fn connect(&self, port: u32) -> fasync::Socket {
        let socket = enclosed_guest::eventually("a listener in the guest", async || {
            match self.endpoint.connect(port).await.unwrap().map_err(zx::Status::from_raw) {
                Ok(socket) => Some(socket),
                Err(status) => {
                    assert_eq!(status, zx::Status::CONNECTION_REFUSED);
                    None
                }
            }
        });
        fasync::Socket::from_socket(socket.await)
    }

    /// Runs a command in the background whose output and exit status [`Fixture::finished`] gives.
    async fn spawn(&mut self, command: &str) {
        let command = format!("({command} > /tmp/out 2> /tmp/err; echo $? > /tmp/status) &");
        self.guest.console.run(&format!("rm -f /tmp/status; {command}")).await;
    }

    async fn finished(&mut self) -> (i32, String) {
        let wait = "while [ ! -s /tmp/status ]; do sleep 0.02; done; cat /tmp/status";
        let status = self.guest.console.run(wait).await.trim().parse().unwrap();
        (status, self.guest.console.run("cat /tmp/out /tmp/err").await)
    }
}

/// Takes a connection of the guest's: its context identifier, its port, and the socket.
async fn accept(requests: &mut HostVsockAcceptorRequestStream) -> (u32, u32, fasync::Socket) {
    let request = requests.next().await.unwrap().unwrap();
    let HostVsockAcceptorRequest::Accept { src_cid, src_port, responder, .. } = request;
    let (ours, theirs) = zx::Socket::create_stream();
    responder.send(Ok(theirs)).unwrap();
    (src_cid, src_port, fasync::Socket::from_socket(ours))
}

/// Says to the guest that no more will come.
fn half_close(socket: &fasync::Socket) {
    AsRef::<zx::Socket>::as_ref(socket).half_close().unwrap();
}

fn numbers(len: usize) -> Vec<u8> {
    let mut number = 1u64;
    let next = || {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (number >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

#[fasync::run_singlethreaded(test)]
async fn a_listener_from_before_the_boot() {
    let mut this = Fixture::new().await;
    this.spawn("seq 1 100000 | tee /tmp/sent | probe vsock connect 2 8000").await;
    let (cid, port, mut socket) = accept(&mut this.accepts).await;
    assert_eq!(cid, DEFAULT_GUEST_CID);
    assert!(port >= 1024, "port {port}");
    // The guest has shut its sending side down: that is an end, and the other direction goes on.
    let mut read = Vec::new();
    socket.read_to_end(&mut read).await.unwrap();
    let sent: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    assert!(read == sent.as_bytes(), "{} of {} bytes", read.len(), sent.len());
    socket.write_all(b"answer after the half close").await.unwrap();
    drop(socket);
    assert_eq!(this.finished().await, (0, "answer after the half close".to_owned()));

    // A port without a listener, and one whose acceptor refuses.
    let (status, output) =
        this.guest.console.try_run("probe vsock connect 2 8100 < /dev/null 2>&1").await;
    assert_ne!(status, 0);
    assert!(output.contains("reset by peer"), "{output}");
    this.spawn("probe vsock connect 2 8000 < /dev/null").await;
    let HostVsockAcceptorRequest::Accept { responder, .. } =
        this.accepts.next().await.unwrap().unwrap();
    responder.send(Err(zx::Status::UNAVAILABLE.into_raw())).unwrap();
    let (status, output) = this.finished().await;
    assert!(status != 0 && output.contains("reset by peer"), "{output}");
    this.enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn listeners_come_and_go_while_the_guest_runs() {
    let mut this = Fixture::new().await;
    let (acceptor, mut accepts) = create_request_stream();
    assert_eq!(this.listen(8200, acceptor).await, Ok(()));
    let (second, _requests) = create_request_stream();
    assert_eq!(this.listen(8200, second).await, Err(zx::Status::ALREADY_BOUND));
    this.spawn("echo hello | probe vsock connect 2 8200").await;
    let (_, _, mut socket) = accept(&mut accepts).await;
    let mut read = Vec::new();
    socket.read_to_end(&mut read).await.unwrap();
    assert_eq!(read, b"hello\n");
    drop((socket, accepts));
    assert_eq!(this.finished().await.0, 0);
    // The port is free again when its acceptor is gone.
    let (third, mut accepts) = create_request_stream();
    assert_eq!(this.listen(8200, third).await, Ok(()));
    this.spawn("echo again | probe vsock connect 2 8200").await;
    drop(accept(&mut accepts).await);
    this.finished().await;
    this.enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn much_goes_both_ways_at_once() {
    let mut this = Fixture::new().await;
    this.spawn("probe vsock echo 8001").await;
    let socket = this.connect(8001).await;
    let sent = numbers(BIG);
    let (mut reader, mut writer) = (&socket, &socket);
    let write = async {
        writer.write_all(&sent).await.unwrap();
        half_close(&socket);
    };
    let mut echoed = Vec::new();
    let ((), read) = futures::join!(write, reader.read_to_end(&mut echoed));
    read.unwrap();
    assert!(echoed == sent, "{} of {} bytes", echoed.len(), sent.len());
    assert_eq!(this.finished().await.0, 0);

    // One way, with the guest's own count and checksum.
    this.spawn("probe vsock listen 8002 < /dev/null | sha256sum").await;
    let mut socket = this.connect(8002).await;
    socket.write_all(&sent).await.unwrap();
    half_close(&socket);
    let mut rest = Vec::new();
    socket.read_to_end(&mut rest).await.unwrap();
    let (_, output) = this.finished().await;
    let sum = output.split_whitespace().next().unwrap_or_default().to_owned();
    this.spawn("probe vsock listen 8003 < /dev/null > /tmp/received; sha256sum /tmp/received")
        .await;
    let mut socket = this.connect(8003).await;
    socket.write_all(&sent).await.unwrap();
    half_close(&socket);
    socket.read_to_end(&mut rest).await.unwrap();
    let (_, output) = this.finished().await;
    assert!(sum.len() == 64 && output.starts_with(&sum), "{sum} and {output}");
    this.enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn either_side_may_leave_at_any_time() {
    let mut this = Fixture::new().await;
    assert_eq!(
        this.endpoint.connect(8999).await.unwrap().map(drop).map_err(zx::Status::from_raw),
        Err(zx::Status::CONNECTION_REFUSED)
    );
    // The guest reads ten bytes and closes, whatever else was sent.
    this.spawn("probe vsock take 8002 10").await;
    let mut socket = this.connect(8002).await;
    socket.write_all(b"ten bytes!and many more").await.unwrap();
    let (_, output) = this.finished().await;
    assert!(output.starts_with("ten bytes!probe: peer 2:"), "{output}");
    let mut rest = Vec::new();
    // Whether that is an end or a reset is the guest's choice.
    let _end = socket.read_to_end(&mut rest).await;
    assert!(rest.is_empty());

    // The guest writes until the host leaves.
    this.spawn("probe vsock listen 8003 < /dev/zero").await;
    let mut socket = this.connect(8003).await;
    let mut some = vec![1; 300_000];
    socket.read_exact(&mut some).await.unwrap();
    assert!(some.iter().all(|byte| *byte == 0));
    drop(socket);
    assert_ne!(this.finished().await.0, 0, "the guest's program saw the end");

    // A program that is killed is an end, too.
    this.spawn("probe vsock listen 8004 < /dev/zero > /dev/null").await;
    let mut socket = this.connect(8004).await;
    socket.read_exact(&mut some).await.unwrap();
    this.guest.console.run("kill -9 $(pidof probe)").await;
    let _end = socket.read_to_end(&mut rest).await;
    assert_eq!(this.guest.console.run("echo alive").await, "alive\n");
    this.enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn many_connections_at_once() {
    let mut this = Fixture::new().await;
    this.spawn("for i in $(seq 1 40); do (seq 1 $i | probe vsock connect 2 8000) & done; wait")
        .await;
    let mut sockets = Vec::new();
    for _ in 0..40 {
        sockets.push(accept(&mut this.accepts).await.2);
    }
    let mut lengths = Vec::new();
    for socket in &mut sockets {
        let mut read = String::new();
        socket.read_to_string(&mut read).await.unwrap();
        lengths.push(read.lines().count());
    }
    drop(sockets);
    lengths.sort_unstable();
    assert_eq!(lengths, (1..=40).collect::<Vec<_>>());
    assert_eq!(this.finished().await.0, 0);
    this.enclosed.destroy().await;
}
