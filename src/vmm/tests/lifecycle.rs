//! `GuestLifecycle` and `Guest` against real guests of a few instructions.
#![cfg(target_os = "linux")]

mod fixture;

use fidl::endpoints::{Proxy as _, create_endpoints, create_proxy};
use fidl_fuchsia_virtualization::{
    BalloonControllerMarker, GuestConfig, GuestError, GuestMarker, GuestProxy,
    HostVsockEndpointMarker, KernelType, MemControllerMarker,
};
use fixture::{Fixture, POWER_OFF, SPIN, config, connect, serve_file};
use fuchsia_async as fasync;
use fuchsia_zircon as zx;
use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};

/// `mov al, 0xfe; out 0x64, al`: pulse the reset line; then halt.
const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];
/// `ud2`, without anything to handle it.
const CRASH: &[u8] = &[0x0f, 0x0b];
/// Copies from the serial port to the serial port: `mov dx, 0x3fd; in al, dx; test al, 1; jz -5; mov dx, 0x3f8; in al, dx;
/// out dx, al; jmp`.
const ECHO: &[u8] = &[
    0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xfb, 0x66, 0xba, 0xf8, 0x03, 0xec, 0xee, 0xeb,
    0xef,
];
/// Stores to device memory through an instruction that no kernel uses there: `mov eax, 0xf8000000; movups [rax], xmm0`.
const UNSUPPORTED: &[u8] = &[0xb8, 0x00, 0x00, 0x00, 0xf8, 0x0f, 0x11, 0x00];

/// How a `Guest` channel ended.
async fn epitaph(guest: GuestProxy) -> Option<zx::Status> {
    match guest.take_event_stream().next().await {
        Some(Err(fidl::Error::ClientChannelClosed { status, .. })) => Some(status),
        _ => None,
    }
}

#[fuchsia_async::run_singlethreaded(test)]
async fn clean_shutdown() {
    let fixture = Fixture::new();
    fixture.create(POWER_OFF).await;
    let guest = fixture.bind();
    assert_eq!(fixture.run().await, Ok(()));
    assert_eq!(epitaph(guest).await, Some(zx::Status::OK));
    assert_eq!(fixture.run().await, Err(GuestError::NotCreated));
}

#[fuchsia_async::run_singlethreaded(test)]
async fn reset_ends_the_machine_in_order() {
    let fixture = Fixture::new();
    fixture.create(RESET).await;
    assert_eq!(fixture.run().await, Ok(()));
}

#[fuchsia_async::run_singlethreaded(test)]
async fn vcpu_failure_is_told_apart() {
    for code in [CRASH, UNSUPPORTED] {
        let fixture = Fixture::new();
        fixture.create(code).await;
        let guest = fixture.bind();
        assert_eq!(fixture.run().await, Err(GuestError::VcpuRuntimeFailure));
        assert_eq!(epitaph(guest).await, Some(zx::Status::INTERNAL));
    }
}

#[fuchsia_async::run_singlethreaded(test)]
async fn forced_halt() {
    let fixture = Fixture::new();
    fixture.create(SPIN).await;
    let guest = fixture.bind();
    let run = fixture.lifecycle.run();
    fixture.lifecycle.stop().await.unwrap();
    assert_eq!(run.await.unwrap(), Err(GuestError::ControllerForcedHalt));
    assert_eq!(epitaph(guest).await, Some(zx::Status::INTERNAL));
    // And again: nothing is left of the first one.
    fixture.create(POWER_OFF).await;
    assert_eq!(fixture.run().await, Ok(()));
}

#[fuchsia_async::run_singlethreaded(test)]
async fn stop_without_a_machine_is_harmless() {
    let fixture = Fixture::new();
    fixture.lifecycle.stop().await.unwrap();
    assert_eq!(fixture.run().await, Err(GuestError::NotCreated));
}

#[fuchsia_async::run_singlethreaded(test)]
async fn one_machine_at_a_time() {
    let fixture = Fixture::new();
    fixture.create(SPIN).await;
    let run = fixture.lifecycle.run();
    assert_eq!(fixture.run().await, Err(GuestError::AlreadyRunning));
    assert_eq!(
        fixture.lifecycle.create(config(SPIN)).await.unwrap(),
        Err(GuestError::AlreadyRunning)
    );
    fixture.lifecycle.stop().await.unwrap();
    assert_eq!(run.await.unwrap(), Err(GuestError::ControllerForcedHalt));
}

#[fuchsia_async::run_singlethreaded(test)]
async fn creating_again_replaces_an_idle_machine() {
    let fixture = Fixture::new();
    fixture.create(SPIN).await;
    let first = fixture.bind();
    fixture.create(POWER_OFF).await;
    assert_eq!(epitaph(first).await, Some(zx::Status::INTERNAL));
    assert_eq!(fixture.run().await, Ok(()));
}

#[fuchsia_async::run_singlethreaded(test)]
async fn failed_creation_leaves_no_machine() {
    let fixture = Fixture::new();
    let no_kernel = GuestConfig { kernel: None, ..config(SPIN) };
    assert_eq!(
        fixture.lifecycle.create(no_kernel).await.unwrap(),
        Err(GuestError::KernelLoadFailure)
    );
    let bad_kernel =
        GuestConfig { kernel: Some(serve_file(b"no kernel".to_vec())), ..config(SPIN) };
    assert_eq!(
        fixture.lifecycle.create(bad_kernel).await.unwrap(),
        Err(GuestError::KernelLoadFailure)
    );
    let overlay = GuestConfig {
        kernel_type: Some(KernelType::Zircon),
        dtb_overlay: Some(serve_file(b"overlay".to_vec())),
        ..config(SPIN)
    };
    assert_eq!(
        fixture.lifecycle.create(overlay).await.unwrap(),
        Err(GuestError::KernelLoadFailure)
    );
    let not_a_tree =
        GuestConfig { dtb_overlay: Some(serve_file(b"overlay".to_vec())), ..config(SPIN) };
    assert_eq!(
        fixture.lifecycle.create(not_a_tree).await.unwrap(),
        Err(GuestError::KernelLoadFailure)
    );
    let no_cpus = GuestConfig { cpus: None, ..config(SPIN) };
    assert_eq!(fixture.lifecycle.create(no_cpus).await.unwrap(), Err(GuestError::BadConfig));
    let too_large = GuestConfig { guest_memory: Some(1 << 50), ..config(SPIN) };
    let expected = Err(GuestError::GuestInitializationFailure);
    assert_eq!(fixture.lifecycle.create(too_large).await.unwrap(), expected);
    assert_eq!(fixture.run().await, Err(GuestError::NotCreated));
}

#[fuchsia_async::run_singlethreaded(test)]
async fn device_without_a_framework_fails_creation() {
    let fixture = Fixture::new();
    let rng = GuestConfig { virtio_rng: Some(true), ..config(SPIN) };
    assert_eq!(fixture.lifecycle.create(rng).await.unwrap(), Err(GuestError::FailedServiceConnect));
    let gpu = GuestConfig { virtio_gpu: Some(true), ..config(SPIN) };
    assert_eq!(
        fixture.lifecycle.create(gpu).await.unwrap(),
        Err(GuestError::DeviceInitializationFailure)
    );
}

#[fuchsia_async::run_singlethreaded(test)]
async fn bind_without_a_machine_closes_the_channel() {
    let fixture = Fixture::new();
    assert_ne!(epitaph(fixture.bind()).await, Some(zx::Status::OK));
}

#[fuchsia_async::run_singlethreaded(test)]
async fn a_guest_client_that_breaks_the_protocol_is_let_go() {
    let fixture = Fixture::new();
    fixture.create(SPIN).await;
    let broken = fixture.bind();
    broken.as_channel().write(b"no message", &mut []).unwrap();
    broken.on_closed().await.unwrap();
    assert_eq!(
        fixture.bind().get_console().await.unwrap().err(),
        Some(GuestError::DeviceNotPresent)
    );
}

#[fuchsia_async::run_singlethreaded(test)]
async fn absent_devices_are_not_present() {
    let fixture = Fixture::new();
    fixture.create(SPIN).await;
    let guest = fixture.bind();
    let absent = Err(GuestError::DeviceNotPresent);
    assert_eq!(guest.get_console().await.unwrap().map(drop), absent);
    let (_client, server) = create_endpoints::<HostVsockEndpointMarker>();
    assert_eq!(guest.get_host_vsock_endpoint(server).await.unwrap(), absent);
    let (_client, server) = create_endpoints::<BalloonControllerMarker>();
    assert_eq!(guest.get_balloon_controller(server).await.unwrap(), absent);
    let (_client, server) = create_endpoints::<MemControllerMarker>();
    assert_eq!(guest.get_mem_controller(server).await.unwrap(), absent);
}

#[fuchsia_async::run_singlethreaded(test)]
async fn serial_port_works_in_both_directions() {
    let fixture = Fixture::new();
    fixture.create(ECHO).await;
    let socket = fixture.bind().get_serial().await.unwrap();
    let run = fixture.lifecycle.run();
    let (mut reader, mut writer) = fasync::Socket::from_socket(socket).split();
    // More than the receiver holds at once.
    let text: Vec<u8> = (0..4000u32).map(|index| (index % 251) as u8).collect();
    let mut echoed = vec![0; text.len()];
    let (written, read) = futures::join!(writer.write_all(&text), reader.read_exact(&mut echoed));
    written.and(read).unwrap();
    assert_eq!(echoed, text);
    fixture.lifecycle.stop().await.unwrap();
    assert_eq!(run.await.unwrap(), Err(GuestError::ControllerForcedHalt));
}

#[fuchsia_async::run_singlethreaded(test)]
async fn controller_ends_with_its_last_lifecycle_client() {
    let Fixture { clients, lifecycle, controller } = Fixture::new();
    let second = connect(&clients);
    assert_eq!(second.create(config(SPIN)).await.unwrap(), Ok(()));
    let (guest, server) = create_proxy::<GuestMarker>();
    second.bind(server).unwrap();
    drop(lifecycle);
    guest.get_serial().await.unwrap();
    drop(second);
    controller.await;
    assert_eq!(epitaph(guest).await, Some(zx::Status::INTERNAL));
}

#[fuchsia_async::run_singlethreaded(test)]
async fn closing_while_running_ends_the_machine() {
    let Fixture { clients: _clients, lifecycle, controller } = Fixture::new();
    assert_eq!(lifecycle.create(config(SPIN)).await.unwrap(), Ok(()));
    let run = lifecycle.run();
    drop((run, lifecycle));
    controller.await;
}
