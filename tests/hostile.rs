//! Clients that break FIDL's rules towards the processes around a guest: half messages, other formats, methods that there are
//! not, bodies that are none, handles that nobody wants. Such a client loses its connection, whatever it sent is closed, and
//! everybody else is served as before.
#![cfg(target_os = "linux")]

use component_manager::builtin::Builtins;
use component_manager::builtin_package::MANIFESTS;
use component_manager::decl::Startup;
use component_manager::realm_builder::{Capability, RealmBuilder, RealmInstance, Ref};
use component_manager::resolver::PackageResolver;
use enclosed_guest::{EnclosedGuest, GuestKernel, PATIENCE, environment, eventually};
use fidl::endpoints::{ProtocolMarker, Proxy as _, create_endpoints, create_proxy};
use fidl_fuchsia_component_runner as frunner;
use fidl_fuchsia_virtualization as fvirt;
use fidl_fuchsia_virtualization_hardware as fhardware;
use fuchsia_async::{self as fasync, TimeoutExt as _};
use fuchsia_component::client::connect_to_named_protocol_at_dir_root;
use fuchsia_zircon::{self as zx, AsHandleRef as _, HandleBased as _};
use std::rc::Rc;

/// Size of a message's header, in bytes, and where its parts are (RFC-0050, "Transactional messages").
const HEADER: usize = 16;
const AT_REST_FLAGS: usize = 4;
const DYNAMIC_FLAGS: usize = 6;
const MAGIC: usize = 7;
const ORDINAL: usize = 8;

/// A message that no client may send.
#[derive(Debug)]
struct Broken {
    what: &'static str,
    bytes: Vec<u8>,
    handles: usize,
}

/// What is wrong in one way each, made of a request that is right but for its handles.
fn broken(good: &[u8]) -> Vec<Broken> {
    let changed = |what, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.to_vec();
        change(&mut bytes);
        Broken { what, bytes, handles: 0 }
    };
    let mut all = vec![
        changed("nothing at all", &|bytes| bytes.clear()),
        changed("half a header", &|bytes| bytes.truncate(HEADER / 2)),
        changed("another wire format", &|bytes| bytes[AT_REST_FLAGS] = 0),
        changed("another magic number", &|bytes| bytes[MAGIC] = 0xff),
        // A flexible one is something that an open protocol takes in its stride.
        changed("a strict method that there is not", &|bytes| {
            bytes[DYNAMIC_FLAGS] = 0;
            bytes[ORDINAL] ^= 0x55;
        }),
        changed("a transaction for a one-way method, or none for another", &|bytes| {
            let is_one_way = bytes[..4] == [0; 4];
            bytes[..4].copy_from_slice(&u32::from(is_one_way).to_le_bytes());
        }),
        changed("a body that is too long", &|bytes| bytes.extend([0; 8])),
        changed("as much garbage as fits", &|bytes| {
            bytes.truncate(HEADER);
            bytes.resize(zx::sys::ZX_CHANNEL_MAX_MSG_BYTES as usize, 0xff);
        }),
        changed("garbage from the start", &|bytes| bytes.fill(0xff)),
    ];
    if good.len() > HEADER {
        all.push(changed("half a body", &|bytes| bytes.truncate(bytes.len() - 8)));
    }
    let handles = zx::sys::ZX_CHANNEL_MAX_MSG_HANDLES as usize;
    all.push(Broken { handles, ..changed("handles that nobody wants", &|_| ()) });
    all
}

/// The bytes of a request, as `call` makes it.
fn request<P: ProtocolMarker>(call: impl FnOnce(&P::Proxy)) -> Vec<u8> {
    let (proxy, server) = create_proxy::<P>();
    call(&proxy);
    let mut message = zx::MessageBuf::new();
    server.into_channel().read(&mut message).expect("the request");
    message.bytes().to_vec()
}

/// Sends a message, and sees the connection and all that was sent closed.
async fn is_turned_away(who: &str, channel: &zx::Channel, message: &Broken) {
    let pairs = (0..message.handles).map(|_| zx::EventPair::create());
    let (mut handles, witnesses): (Vec<zx::Handle>, Vec<_>) =
        pairs.map(|(handle, witness)| (handle.into_handle(), witness)).unzip();
    // A server that turns away whoever comes may have closed by now; then what was to be sent is closed here.
    let _ = channel.write(&message.bytes, &mut handles);
    drop(handles);
    let channel = (channel.as_handle_ref(), zx::Signals::CHANNEL_PEER_CLOSED);
    let witnesses = witnesses
        .iter()
        .map(|witness| (witness.as_handle_ref(), zx::Signals::EVENTPAIR_PEER_CLOSED));
    for (handle, signal) in std::iter::once(channel).chain(witnesses) {
        let closed = fasync::OnSignals::new(handle, signal);
        let closed =
            async { Some(closed.await) }.on_timeout(zx::Time::after(PATIENCE), || None).await;
        let closed = closed.unwrap_or_else(|| panic!("{who} goes on after {}", message.what));
        closed.unwrap();
    }
}

/// Connects to what the instance at `moniker` exposes.
fn connect(enclosed: &EnclosedGuest, moniker: &str, name: &str) -> zx::Channel {
    let (directory, server) = create_proxy::<fidl_fuchsia_io::DirectoryMarker>();
    let manager = enclosed.component_manager();
    let instance = manager.tree().find(&moniker.parse().unwrap()).unwrap();
    manager.open_exposed(instance, server).unwrap();
    raw(&directory, name)
}

/// A connection that no bindings watch over.
fn raw(directory: &fidl_fuchsia_io::DirectoryProxy, name: &str) -> zx::Channel {
    // Which protocol the bindings think it is does not matter.
    let proxy = connect_to_named_protocol_at_dir_root::<fvirt::GuestMarker>(directory, name);
    proxy.unwrap().into_channel().expect("nobody else has it").into_zx_channel()
}

#[fasync::run_singlethreaded(test)]
async fn a_client_that_breaks_the_protocol_ends_its_own_connection_and_no_other() {
    let enclosed = EnclosedGuest::new(environment!(), GuestKernel::Linux);
    let mut guest = enclosed.start(fvirt::GuestConfig::default()).await;
    let (balloon, server) = create_proxy::<fvirt::BalloonControllerMarker>();
    guest.guest.get_balloon_controller(server).await.unwrap().unwrap();

    let launch = request::<fvirt::GuestManagerMarker>(|manager| {
        let controller = create_endpoints::<fvirt::GuestMarker>().1;
        drop(manager.launch(fvirt::GuestConfig::default(), controller));
    });
    let create = request::<fvirt::GuestLifecycleMarker>(|lifecycle| {
        drop(lifecycle.create(fvirt::GuestConfig::default()));
    });
    let bind = request::<fvirt::GuestLifecycleMarker>(|lifecycle| {
        lifecycle.bind(create_endpoints::<fvirt::GuestMarker>().1).unwrap();
    });
    let run = request::<fvirt::GuestLifecycleMarker>(|lifecycle| drop(lifecycle.run()));
    let get_serial = request::<fvirt::GuestMarker>(|guest| drop(guest.get_serial()));
    let start = request::<frunner::ComponentRunnerMarker>(|runner| {
        let controller = create_endpoints::<frunner::ComponentControllerMarker>().1;
        runner.start(frunner::ComponentStartInfo::default(), controller).unwrap();
    });
    let ready = request::<fhardware::VirtioRngMarker>(|rng| drop(rng.ready(0)));
    for (moniker, name, good) in [
        ("guest_manager", "fuchsia.virtualization.DebianGuestManager", launch),
        ("guest_manager/vmm", "fuchsia.virtualization.GuestLifecycle", create),
        ("guest_manager/vmm", "fuchsia.virtualization.GuestLifecycle", bind),
        ("guest_manager/vmm", "fuchsia.virtualization.GuestLifecycle", run),
        ("guest_manager/vmm", "fuchsia.virtualization.Guest", get_serial),
        ("guest_manager", "fuchsia.component.runner.ComponentRunner", start),
        // A device has one client, which is its VMM.
        (
            "guest_manager/vmm/virtio_rng_devices:virtio_rng",
            "fuchsia.virtualization.hardware.VirtioRng",
            ready,
        ),
    ] {
        for message in broken(&good) {
            let channel = connect(&enclosed, moniker, name);
            is_turned_away(name, &channel, &message).await;
        }
        let info = enclosed.info().await;
        assert_eq!(info.guest_status, Some(fvirt::GuestStatus::Running), "{name}");
        assert_eq!(guest.console.run("echo unharmed").await, "unharmed\n", "{name}");
        guest.guest.get_serial().await.unwrap();
    }
    let get_size = request::<fvirt::BalloonControllerMarker>(|balloon| {
        drop(balloon.get_balloon_size());
    });
    for message in broken(&get_size) {
        let (client, server) = create_endpoints::<fvirt::BalloonControllerMarker>();
        guest.guest.get_balloon_controller(server).await.unwrap().unwrap();
        is_turned_away("BalloonController", &client.into_channel(), &message).await;
        assert_eq!(balloon.get_balloon_size().await.unwrap(), (0, 0));
    }
    assert_eq!(guest.console.run("head -c 8 /dev/hwrng | wc -c").await, "8\n");
    enclosed.manager.force_shutdown().await.unwrap();
    let info = enclosed.info().await;
    assert_eq!(info.stop_error, Some(fvirt::GuestError::ControllerForcedHalt));
    enclosed.destroy().await;
}

/// The device components, each without a VMM.
fn devices() -> (RealmInstance, tempfile::TempDir) {
    let resolver =
        PackageResolver::new(environment!().program.into(), MANIFESTS.to_vec(), Vec::new());
    let mut builder = RealmBuilder::new()
        .with_resolver(Rc::new(resolver))
        .with_builtins(Builtins::with_system_resources);
    let storage = tempfile::tempdir().unwrap();
    builder.add_storage("tmp", storage.path()).unwrap();
    for (kind, protocol) in DEVICES {
        let url = format!("fuchsia-pkg://fuchsia.com/debian_guest_manager#meta/virtio_{kind}.cm");
        let child = builder.add_child(kind, &url, Startup::Lazy).unwrap();
        let log = Capability::protocol_by_name("fuchsia.logger.LogSink");
        builder.add_route(&log, Ref::Parent, &[Ref::from(&child)]).unwrap();
        if kind == "block" {
            let tmp = Capability::storage("tmp", "/tmp");
            builder.add_route(&tmp, Ref::Parent, &[Ref::from(&child)]).unwrap();
        }
        let protocol = Capability::protocol_by_name(protocol);
        builder.add_route(&protocol, &child, &[Ref::Parent]).unwrap();
    }
    (builder.build().unwrap(), storage)
}

const DEVICES: [(&str, &str); 5] = [
    ("balloon", "fuchsia.virtualization.hardware.VirtioBalloon"),
    ("block", "fuchsia.virtualization.hardware.VirtioBlock"),
    ("console", "fuchsia.virtualization.hardware.VirtioConsole"),
    ("rng", "fuchsia.virtualization.hardware.VirtioRng"),
    ("vsock", "fuchsia.virtualization.hardware.VirtioVsock"),
];

/// What a VMM would give a device, but for the guest.
fn start_info() -> fhardware::StartInfo {
    fhardware::StartInfo {
        trap: fhardware::Trap { addr: 0xf820_0000, size: 4096 },
        guest: None,
        event: zx::Event::create(),
        vmo: zx::Vmo::create(1 << 20).unwrap(),
    }
}

#[fasync::run_singlethreaded(test)]
async fn a_device_ends_with_a_client_that_breaks_the_protocol_and_the_others_go_on() {
    let (realm, _storage) = devices();
    let rng = realm.connect_to_protocol::<fhardware::VirtioRngMarker>();
    rng.start(start_info()).await.unwrap();
    // Before Start every method is one too many, so these are wrong in two ways.
    let ready = request::<fhardware::VirtioRngMarker>(|rng| drop(rng.ready(0)));
    let start = request::<fhardware::VirtioRngMarker>(|rng| drop(rng.start(start_info())));
    for (kind, name) in DEVICES.into_iter().filter(|(kind, _)| *kind != "rng") {
        for message in broken(&ready).iter().chain(&broken(&start)) {
            is_turned_away(kind, &raw(realm.exposed_dir(), name), message).await;
        }
        rng.reset().await.unwrap();
    }
    drop(rng);
    // Also a client that has behaved until then; who comes after it is served.
    for message in broken(&ready) {
        let rng = eventually("a device for the next client", async || {
            let rng = realm.connect_to_protocol::<fhardware::VirtioRngMarker>();
            rng.start(start_info()).await.ok().map(|()| rng)
        });
        let channel = rng.await.into_channel().expect("nobody else has it");
        is_turned_away("rng", &channel.into_zx_channel(), &message).await;
    }
    realm.destroy().await;
}
