//! `guest vsock-perf`: how fast data moves between host and guest over vsock, with a program of the guest as the other side.
//!
//! That program is typed on the guest's console. It connects from its ports 8501 to 8509 to the host's port 8500: a control stream, on
//! which it sends a number for each stream that is ready to be measured, a stream whose messages it sends back, and streams for bulk
//! data.

use crate::args::{GuestType, VsockPerfArgs};
use crate::outcome::{EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_NOT_RUNNING, Outcome};
use crate::running::{NotRunning, Unreachable};
use crate::socat;
use anyhow::{Context as _, anyhow, bail};
use fidl::endpoints::create_request_stream;
use fidl_fuchsia_virtualization as fvirt;
use fuchsia_async::{self as fasync, TimeoutExt as _};
use fuchsia_zircon as zx;
use futures::future::{Either, select, try_join, try_join_all};
use futures::{AsyncReadExt as _, AsyncWriteExt as _, Stream, StreamExt as _, pin_mut};
use serde::Serialize;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::future::Future;

/// The port of the host that the guest connects to.
const HOST_PORT: u32 = 8500;
const CONTROL: u32 = 8501;
const LATENCY: u32 = 8502;
const SINGLE: BulkStream = BulkStream { port: 8503, ready: 123 };
const MULTIPLE: [BulkStream; 5] = [
    BulkStream { port: 8504, ready: 124 },
    BulkStream { port: 8505, ready: 125 },
    BulkStream { port: 8506, ready: 126 },
    BulkStream { port: 8507, ready: 127 },
    BulkStream { port: 8508, ready: 128 },
];
const BIDIRECTIONAL: BulkStream = BulkStream { port: 8509, ready: 129 };

/// The guest's program, from the directory that a shell starts in.
const PROGRAM: &str = "../test_utils/virtio_vsock_test_util micro_benchmark";
/// A message whose way there and back is measured, in bytes.
const MESSAGE: usize = 4096;
/// Messages before the measured ones, each different, to warm up and to find corruption.
const WARM_UP: u32 = 100;
/// Messages that are measured for each repeat of a bulk transfer.
const MESSAGES_A_REPEAT: u32 = 100;
/// Bytes read and written at once in bulk.
const CHUNK: usize = 64 << 10;
/// How long a step may take before the guest counts as stuck; a program that is not there is found so, too.
const PATIENCE: zx::Duration = zx::Duration::from_seconds(30);

/// A stream for bulk data: the guest's port, and what it says on the control stream when it is ready.
struct BulkStream {
    port: u32,
    ready: u8,
}

/// What a number of [`Percentiles`] counts.
#[derive(Debug, Clone, Copy, Serialize, PartialEq, Eq)]
pub(crate) enum PercentileUnit {
    Nanoseconds,
    MebibytesPerSecond,
}

/// How measurements are spread, from the worst throughput or the best latency on.
#[derive(Debug, Serialize, PartialEq)]
pub(crate) struct Percentiles {
    min: f64,
    p_25th: f64,
    p_50th: f64,
    p_75th: f64,
    p_99th: f64,
    max: f64,
    unit: PercentileUnit,
}

/// Everything that was measured. As on Fuchsia tx is from guest to host.
#[derive(Debug, Default, Serialize, PartialEq)]
pub(crate) struct Measurements {
    data_corruption: Option<bool>,
    round_trip_page: Option<Percentiles>,
    tx_throughput: Option<Percentiles>,
    rx_throughput: Option<Percentiles>,
    single_stream_unidirectional: Option<Percentiles>,
    multi_stream_unidirectional: Option<Percentiles>,
}

/// What `guest vsock-perf` comes to.
#[derive(Debug, Serialize, PartialEq)]
pub(crate) enum VsockPerfOutcome {
    BenchmarkComplete(Box<Measurements>),
    UnsupportedGuest(String),
    NoVsockDevice,
    Internal(String),
    /// A signal asked this command to end.
    Interrupted,
    #[serde(untagged)]
    NotRunning(NotRunning),
}

impl Outcome for VsockPerfOutcome {
    fn exit_code(&self) -> u8 {
        match self {
            // `data_corruption` says whether the check was passed, as on Fuchsia.
            Self::BenchmarkComplete(measured) if measured.data_corruption == Some(true) => 0,
            Self::NotRunning(_) | Self::NoVsockDevice => EXIT_NOT_RUNNING,
            Self::BenchmarkComplete(_) | Self::UnsupportedGuest(_) | Self::Internal(_) => {
                EXIT_FAILURE
            }
            Self::Interrupted => EXIT_INTERRUPTED,
        }
    }
}

impl fmt::Display for VsockPerfOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BenchmarkComplete(measured) => measured.fmt(f),
            Self::UnsupportedGuest(guest) => {
                writeln!(
                    f,
                    "vsock-perf needs a program in the guest, which {guest} does not have; there is debian"
                )
            }
            Self::NotRunning(guest) => writeln!(f, "{guest}"),
            Self::NoVsockDevice => {
                writeln!(f, "The guest has no vsock device; launch it with --virtio-vsock true")
            }
            Self::Internal(reason) => writeln!(f, "The measurement failed: {reason}"),
            Self::Interrupted => writeln!(f, "Interrupted"),
        }
    }
}

impl fmt::Display for Measurements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let check = match self.data_corruption {
            None => "not run",
            Some(true) => "passed",
            Some(false) => "FAILED",
        };
        writeln!(f, "Data corruption check: {check}")?;
        writeln!(
            f,
            "{:<34}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}",
            "", "min", "25 %", "50 %", "75 %", "99 %", "max"
        )?;
        for (name, percentiles) in [
            ("round trip of 4 KiB", &self.round_trip_page),
            ("guest to host", &self.tx_throughput),
            ("host to guest", &self.rx_throughput),
            ("there and back, one stream", &self.single_stream_unidirectional),
            ("there and back, five streams", &self.multi_stream_unidirectional),
        ] {
            match percentiles {
                Some(percentiles) => writeln!(f, "{name:<34}{percentiles}")?,
                None => writeln!(f, "{name:<34}not run")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { min, p_25th, p_50th, p_75th, p_99th, max, unit } = self;
        for value in [min, p_25th, p_50th, p_75th, p_99th, max] {
            match unit {
                PercentileUnit::Nanoseconds => write!(f, "{:>9.1}", value / 1000.0)?,
                PercentileUnit::MebibytesPerSecond => write!(f, "{value:>9.0}")?,
            }
        }
        write!(
            f,
            " {}",
            match unit {
                PercentileUnit::Nanoseconds => "µs",
                PercentileUnit::MebibytesPerSecond => "MiB/s",
            }
        )
    }
}

impl Percentiles {
    /// Of at least one value, in the order from `min` to `max`.
    fn of(values: &[f64], unit: PercentileUnit) -> Option<Self> {
        // Between two values the lower one counts.
        let at = |percent: usize| values.get(values.len().checked_sub(1)? * percent / 100).copied();
        Some(Self {
            min: at(0)?,
            p_25th: at(25)?,
            p_50th: at(50)?,
            p_75th: at(75)?,
            p_99th: at(99)?,
            max: at(100)?,
            unit,
        })
    }

    fn of_latencies(mut nanos: Vec<f64>) -> Option<Self> {
        nanos.sort_by(f64::total_cmp);
        Self::of(&nanos, PercentileUnit::Nanoseconds)
    }

    /// Of transfers of `bytes` each, by the nanoseconds that they took.
    fn of_transfers(nanos: &[f64], bytes: u64) -> Option<Self> {
        let mebibytes = bytes as f64 / f64::from(1 << 20);
        let mut rates: Vec<_> = nanos.iter().map(|nanos| mebibytes / (nanos / 1e9)).collect();
        rates.sort_by(f64::total_cmp);
        Self::of(&rates, PercentileUnit::MebibytesPerSecond)
    }
}

/// Measures, until a signal asks for an end.
pub(crate) async fn run(
    args: &VsockPerfArgs,
    manager: &fvirt::GuestManagerProxy,
    mut interrupts: impl Stream<Item = ()> + Unpin,
) -> VsockPerfOutcome {
    if args.guest_type != GuestType::Debian {
        return VsockPerfOutcome::UnsupportedGuest(args.guest_type.to_string());
    }
    let measured = measure(args, manager);
    pin_mut!(measured);
    match select(measured, interrupts.next()).await {
        Either::Left((outcome, _)) => outcome,
        Either::Right(_) => VsockPerfOutcome::Interrupted,
    }
}

async fn measure(args: &VsockPerfArgs, manager: &fvirt::GuestManagerProxy) -> VsockPerfOutcome {
    let (guest, endpoint) = match socat::endpoint(args.guest_type, manager).await {
        Ok(found) => found,
        Err(Unreachable::NotRunning(guest)) => return VsockPerfOutcome::NotRunning(guest),
        Err(Unreachable::NoDevice) => return VsockPerfOutcome::NoVsockDevice,
        Err(Unreachable::Broken(reason)) => return VsockPerfOutcome::Internal(reason),
    };
    let benchmark = Benchmark {
        repeats: args.repeats.max(1),
        bytes: u64::from(args.transfer_size.max(1)) << 20,
    };
    match benchmark.run(&guest, &endpoint).await {
        Ok(measurements) => VsockPerfOutcome::BenchmarkComplete(Box::new(measurements)),
        Err(e) => VsockPerfOutcome::Internal(format!("{e:#}")),
    }
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Benchmark {
    /// How often each bulk transfer is repeated.
    repeats: u32,
    /// Of a transfer, one way.
    bytes: u64,
}

/// Fails with `what` if a step takes too long.
async fn in_time<T>(
    what: &str,
    step: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    let late = || Err(anyhow!("it took longer than {} s", PATIENCE.into_seconds()));
    step.on_timeout(zx::Time::after(PATIENCE), late).await.with_context(|| what.to_owned())
}

fn nanos_since(begin: zx::Time) -> f64 {
    (zx::Time::get_monotonic() - begin).into_nanos() as f64
}

impl Benchmark {
    async fn run(
        self,
        guest: &fvirt::GuestProxy,
        endpoint: &fvirt::HostVsockEndpointProxy,
    ) -> anyhow::Result<Measurements> {
        let mut streams = self.connect(guest, endpoint).await?;
        let mut take = |port| streams.remove(&port).context("a stream is missing");
        let mut control = take(CONTROL)?;
        let mut measured = Measurements::default();

        let mut latency = take(LATENCY)?;
        let warm_up = in_time("checking for corruption", warm_up(&mut latency)).await?;
        measured.data_corruption = Some(warm_up);
        measured.round_trip_page = self.latency(&mut latency).await?;
        drop(latency);

        let bidirectional = take(BIDIRECTIONAL.port)?;
        ready(&mut control, &[BIDIRECTIONAL]).await?;
        (measured.tx_throughput, measured.rx_throughput) = self.both_ways(bidirectional).await?;

        let single = take(SINGLE.port)?;
        ready(&mut control, &[SINGLE]).await?;
        measured.single_stream_unidirectional = self.there_and_back(vec![single]).await?;

        let multiple = MULTIPLE.iter().map(|stream| take(stream.port));
        let multiple = multiple.collect::<anyhow::Result<_>>()?;
        ready(&mut control, &MULTIPLE).await?;
        measured.multi_stream_unidirectional = self.there_and_back(multiple).await?;
        Ok(measured)
    }

    /// Starts the guest's program and takes its connections, by the guest's ports.
    async fn connect(
        self,
        guest: &fvirt::GuestProxy,
        endpoint: &fvirt::HostVsockEndpointProxy,
    ) -> anyhow::Result<HashMap<u32, fasync::Socket>> {
        let (acceptor, mut requests) = create_request_stream::<fvirt::HostVsockAcceptorMarker>();
        endpoint.listen(HOST_PORT, acceptor).await?.map_err(|raw| {
            anyhow!(
                "port {HOST_PORT} of the host cannot be listened on: {}",
                zx::Status::from_raw(raw)
            )
        })?;
        let console = match guest.get_console().await? {
            Ok(console) => console,
            // No console: whatever reads the serial port gets the line.
            Err(_) => guest.get_serial().await?,
        };
        let mut console = fasync::Socket::from_socket(console);
        console.write_all(format!("{PROGRAM} {}\n", self.bytes).as_bytes()).await?;
        let mut expected: BTreeSet<u32> = (CONTROL..=BIDIRECTIONAL.port).collect();
        let mut streams = HashMap::new();
        let accept = async {
            while !expected.is_empty() {
                let request = requests.next().await.context("the vsock device went away")??;
                let fvirt::HostVsockAcceptorRequest::Accept { src_port, responder, .. } = request;
                if !expected.remove(&src_port) {
                    responder.send(Err(zx::Status::CONNECTION_REFUSED.into_raw()))?;
                    continue;
                }
                let (ours, theirs) = zx::Socket::create_stream();
                responder.send(Ok(theirs))?;
                streams.insert(src_port, fasync::Socket::from_socket(ours));
            }
            Ok(())
        };
        let what = format!(
            "waiting for the guest to connect; is `{PROGRAM}` there, and a shell on its console?"
        );
        in_time(&what, accept).await?;
        Ok(streams)
    }

    async fn latency(self, socket: &mut fasync::Socket) -> anyhow::Result<Option<Percentiles>> {
        let message = [42; MESSAGE];
        let mut answer = [0; MESSAGE];
        let mut nanos = Vec::new();
        for _ in 0..self.repeats.saturating_mul(MESSAGES_A_REPEAT) {
            let begin = zx::Time::get_monotonic();
            let round_trip = async {
                socket.write_all(&message).await?;
                Ok(socket.read_exact(&mut answer).await?)
            };
            in_time("measuring latency", round_trip).await?;
            nanos.push(nanos_since(begin));
        }
        Ok(Percentiles::of_latencies(nanos))
    }

    /// Both directions of one stream at once: how fast from the guest, and how fast to it.
    async fn both_ways(
        self,
        socket: fasync::Socket,
    ) -> anyhow::Result<(Option<Percentiles>, Option<Percentiles>)> {
        let (mut reader, mut writer) = socket.split();
        let (mut to_host, mut to_guest) = (Vec::new(), Vec::new());
        for _ in 0..self.repeats {
            let begin = zx::Time::get_monotonic();
            let read = async {
                read_bulk(&mut reader, self.bytes).await?;
                Ok(nanos_since(begin))
            };
            let write = async {
                write_bulk(&mut writer, self.bytes).await?;
                Ok(nanos_since(begin))
            };
            let (read, written) =
                in_time("measuring both directions", try_join(read, write)).await?;
            to_host.push(read);
            to_guest.push(written);
        }
        let percentiles = |nanos: &[f64]| Percentiles::of_transfers(nanos, self.bytes);
        Ok((percentiles(&to_host), percentiles(&to_guest)))
    }

    /// All to the guest and then all back, on each stream.
    async fn there_and_back(
        self,
        mut streams: Vec<fasync::Socket>,
    ) -> anyhow::Result<Option<Percentiles>> {
        let all_bytes = 2 * self.bytes * streams.len() as u64;
        let mut nanos = Vec::new();
        for _ in 0..self.repeats {
            let begin = zx::Time::get_monotonic();
            let transfers = streams.iter_mut().map(|stream| async move {
                write_bulk(stream, self.bytes).await?;
                read_bulk(stream, self.bytes).await
            });
            in_time("measuring there and back", try_join_all(transfers)).await?;
            nanos.push(nanos_since(begin));
        }
        Ok(Percentiles::of_transfers(&nanos, all_bytes))
    }
}

/// Sends messages that each differ, and says whether all came back as they were.
async fn warm_up(socket: &mut fasync::Socket) -> anyhow::Result<bool> {
    let mut answer = vec![0; MESSAGE];
    for number in 0..WARM_UP {
        let message: Vec<u8> =
            (0..MESSAGE).map(|index| (index as u32 / 7 + number) as u8).collect();
        socket.write_all(&message).await?;
        socket.read_exact(&mut answer).await?;
        if answer != message {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Waits until the guest is ready to be measured on all of these.
async fn ready(control: &mut fasync::Socket, streams: &[BulkStream]) -> anyhow::Result<()> {
    let mut expected: BTreeSet<u8> = streams.iter().map(|stream| stream.ready).collect();
    let wait = async {
        while !expected.is_empty() {
            let mut number = [0];
            control.read_exact(&mut number).await?;
            if !expected.remove(&number[0]) {
                bail!("it said {}, which was not asked for", number[0]);
            }
        }
        Ok(())
    };
    in_time("waiting for the guest to get ready", wait).await
}

async fn read_bulk(from: &mut (impl futures::AsyncRead + Unpin), bytes: u64) -> anyhow::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        match from.read(&mut buffer[..most]).await? {
            0 => bail!("the guest closed the stream"),
            n => left -= n as u64,
        }
    }
    Ok(())
}

async fn write_bulk(to: &mut (impl futures::AsyncWrite + Unpin), bytes: u64) -> anyhow::Result<()> {
    let buffer = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        to.write_all(&buffer[..most]).await?;
        left -= most as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_go_from_the_slowest_transfer_to_the_fastest() {
        let nanos: Vec<f64> = (1..=101).map(|n| f64::from(n) * 1e9).collect();
        let percentiles = Percentiles::of_transfers(&nanos, 101 << 20).unwrap();
        assert_eq!((percentiles.min, percentiles.max), (1.0, 101.0));
        assert_eq!(percentiles.p_50th, 101.0 / 51.0);
        let latencies = Percentiles::of_latencies(vec![3000.0, 1000.0, 2000.0]).unwrap();
        assert_eq!(
            (latencies.min, latencies.p_50th, latencies.p_99th, latencies.max),
            (1000.0, 2000.0, 2000.0, 3000.0)
        );
        assert_eq!(Percentiles::of_latencies(Vec::new()), None);
    }

    #[test]
    fn a_corrupted_message_is_a_failure() {
        let outcome = |ok| {
            VsockPerfOutcome::BenchmarkComplete(Box::new(Measurements {
                data_corruption: Some(ok),
                ..Default::default()
            }))
        };
        assert_eq!((outcome(true).exit_code(), outcome(false).exit_code()), (0, EXIT_FAILURE));
        assert!(outcome(false).to_string().contains("FAILED"));
        assert!(outcome(true).to_string().contains("not run"));
    }

    #[fasync::run_singlethreaded(test)]
    async fn an_echo_is_checked_byte_for_byte() {
        for flip in [0, 1] {
            let (ours, theirs) = zx::Socket::create_stream();
            let echo = fasync::Task::local(async move {
                let mut theirs = fasync::Socket::from_socket(theirs);
                let mut message = [0; MESSAGE];
                while theirs.read_exact(&mut message).await.is_ok() {
                    message[MESSAGE - 1] ^= flip;
                    if theirs.write_all(&message).await.is_err() {
                        return;
                    }
                }
            });
            let mut socket = fasync::Socket::from_socket(ours);
            assert_eq!(warm_up(&mut socket).await.unwrap(), flip == 0);
            drop(socket);
            echo.await;
        }
    }
}
