//! How device components are created, started and destroyed, against a framework and a device of the test's own.
#![cfg(target_os = "linux")]

use fidl::endpoints::{
    ClientEnd, DiscoverableProtocolMarker as _, ServerEnd, create_proxy, create_proxy_and_stream,
    create_request_stream,
};
use fidl_fuchsia_component::{RealmMarker, RealmRequest, RealmRequestStream};
use fidl_fuchsia_io::{DirectoryMarker, DirectoryRequest, FileMarker, FileRequest};
use fidl_fuchsia_virtualization::{
    BalloonControllerMarker, GuestConfig, GuestError, GuestLifecycleMarker, GuestLifecycleProxy,
    GuestMarker, KernelType,
};
use fidl_fuchsia_virtualization_hardware::{
    StartInfo, VirtioBalloonMarker, VirtioBalloonRequest, VirtioRngMarker, VirtioRngRequest,
};
use fuchsia_async as fasync;
use fuchsia_zircon::{self as zx, AsHandleRef as _};
use futures::TryStreamExt as _;
use futures::channel::mpsc;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use vmm::controller::{Controller, ControllerRequest, Environment};

/// `jmp $` as a `vmlinux`.
fn kernel() -> Vec<u8> {
    let mut file = vec![0; 120];
    file[..6].copy_from_slice(b"\x7fELF\x02\x01");
    file[18..20].copy_from_slice(&62u16.to_le_bytes());
    for (offset, value) in
        [(24, 0x100_0000u64), (32, 64), (72, 120), (88, 0x100_0000), (96, 2), (104, 2)]
    {
        file[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
    }
    file[54..56].copy_from_slice(&56u16.to_le_bytes());
    file[56..58].copy_from_slice(&1u16.to_le_bytes());
    file[64..68].copy_from_slice(&1u32.to_le_bytes());
    file.extend_from_slice(&[0xeb, 0xfe]);
    file
}

/// A file that gives its memory.
fn serve_file(contents: Vec<u8>) -> ClientEnd<FileMarker> {
    let (client, mut requests) = create_request_stream::<FileMarker>();
    fasync::Task::local(async move {
        while let Ok(Some(FileRequest::GetBackingMemory { responder, .. })) =
            requests.try_next().await
        {
            let vmo = zx::Vmo::create(contents.len() as u64).unwrap();
            vmo.write(&contents, 0).unwrap();
            responder.send(Ok(vmo)).unwrap();
        }
    })
    .detach();
    client
}

/// What the framework and the devices saw.
#[derive(Default)]
struct Seen {
    log: RefCell<Vec<String>>,
    /// Devices by where their bells are, which ascend with the PCI slots.
    bells: RefCell<BTreeMap<u64, String>>,
    /// The device closes its channel instead of starting.
    refuse: RefCell<bool>,
}

impl Seen {
    fn note(&self, entry: String) {
        self.log.borrow_mut().push(entry);
    }

    fn take(&self) -> Vec<String> {
        self.log.take()
    }
}

async fn serve_realm(mut requests: RealmRequestStream, seen: Rc<Seen>) {
    while let Ok(Some(request)) = requests.try_next().await {
        match request {
            RealmRequest::CreateChild { collection, decl, responder, .. } => {
                let (name, url) = (decl.name.unwrap(), decl.url.unwrap());
                seen.note(format!("create {} {name} {url}", collection.name));
                responder.send(Ok(())).unwrap();
            }
            RealmRequest::OpenExposedDir { exposed_dir, responder, .. } => {
                fasync::Task::local(serve_exposed(exposed_dir, seen.clone())).detach();
                responder.send(Ok(())).unwrap();
            }
            RealmRequest::DestroyChild { child, responder } => {
                seen.note(format!("destroy {}", child.name));
                responder.send(Ok(())).unwrap();
            }
            _ => return,
        }
    }
}

async fn serve_exposed(directory: ServerEnd<DirectoryMarker>, seen: Rc<Seen>) {
    let mut requests = directory.into_stream();
    while let Ok(Some(request)) = requests.try_next().await {
        let DirectoryRequest::Open { path, object, .. } = request else { return };
        let seen = seen.clone();
        if path == VirtioRngMarker::PROTOCOL_NAME {
            fasync::Task::local(serve_rng(ServerEnd::new(object), seen)).detach();
        } else if path == VirtioBalloonMarker::PROTOCOL_NAME {
            fasync::Task::local(serve_balloon(ServerEnd::new(object), seen)).detach();
        }
    }
}

fn note_start(seen: &Seen, device: &str, info: &StartInfo) {
    let rights = |handle: zx::HandleRef<'_>| handle.basic_info().unwrap().rights;
    let guest = info.guest.as_ref().map(|guest| rights(guest.as_handle_ref()));
    assert_eq!(guest, Some(zx::Rights::TRANSFER | zx::Rights::WRITE));
    assert_eq!(rights(info.event.as_handle_ref()), zx::Rights::TRANSFER | zx::Rights::SIGNAL);
    assert!(!rights(info.vmo.as_handle_ref()).contains(zx::Rights::EXECUTE));
    assert_eq!((info.trap.addr % 4096, info.trap.size), (0, 4096));
    seen.bells.borrow_mut().insert(info.trap.addr, device.to_owned());
    seen.note(format!("start {device}"));
}

async fn serve_rng(server: ServerEnd<VirtioRngMarker>, seen: Rc<Seen>) {
    let mut requests = server.into_stream();
    while let Ok(Some(request)) = requests.try_next().await {
        match request {
            VirtioRngRequest::Start { responder, start_info } if !*seen.refuse.borrow() => {
                note_start(&seen, "rng", &start_info);
                responder.send().unwrap();
            }
            _ => return,
        }
    }
}

async fn serve_balloon(server: ServerEnd<VirtioBalloonMarker>, seen: Rc<Seen>) {
    let mut requests = server.into_stream();
    while let Ok(Some(request)) = requests.try_next().await {
        match request {
            VirtioBalloonRequest::Start { responder, start_info } => {
                note_start(&seen, "balloon", &start_info);
                responder.send().unwrap();
            }
            VirtioBalloonRequest::GetMemStats { responder } => {
                responder.send(zx::Status::NOT_SUPPORTED.into_raw(), None).unwrap();
            }
            _ => return,
        }
    }
}

fn start_controller(seen: &Rc<Seen>) -> (GuestLifecycleProxy, fasync::Task<()>) {
    let resource = |base| zx::linux::system_resource(base).unwrap();
    let (realm, requests) = create_proxy_and_stream::<RealmMarker>();
    fasync::Task::local(serve_realm(requests, seen.clone())).detach();
    let environment = Environment {
        realm,
        hypervisor: resource(zx::sys::ZX_RSRC_SYSTEM_HYPERVISOR_BASE),
        vmex: resource(zx::sys::ZX_RSRC_SYSTEM_VMEX_BASE),
    };
    let (clients, incoming) = mpsc::unbounded();
    let (lifecycle, requests) = create_proxy_and_stream::<GuestLifecycleMarker>();
    clients.unbounded_send(ControllerRequest::Lifecycle(requests)).unwrap();
    (lifecycle, fasync::Task::local(Controller::new(environment).serve(incoming)))
}

fn config() -> GuestConfig {
    GuestConfig {
        kernel_type: Some(KernelType::Linux),
        kernel: Some(serve_file(kernel())),
        cpus: Some(1),
        guest_memory: Some(64 << 20),
        virtio_rng: Some(true),
        virtio_balloon: Some(true),
        ..Default::default()
    }
}

#[fuchsia_async::run_singlethreaded(test)]
async fn devices_are_created_in_slot_order_at_once_and_destroyed() {
    let seen = Rc::new(Seen::default());
    let (lifecycle, controller) = start_controller(&seen);
    assert_eq!(lifecycle.create(config()).await.unwrap(), Ok(()));
    let mut log = seen.take();
    // No component waits until another has started, and which one starts first is theirs.
    assert_eq!(
        log[..2],
        [
            "create virtio_balloon_devices virtio_balloon #meta/virtio_balloon.cm",
            "create virtio_rng_devices virtio_rng #meta/virtio_rng.cm",
        ]
    );
    log[2..].sort();
    assert_eq!(log[2..], ["start balloon", "start rng"]);
    assert!(seen.bells.take().into_values().eq(["balloon", "rng"]));
    drop(lifecycle);
    controller.await;
    assert_eq!(seen.take(), ["destroy virtio_balloon", "destroy virtio_rng"]);
}

#[fuchsia_async::run_singlethreaded(test)]
async fn device_that_does_not_start_fails_creation_and_leaves_nothing() {
    let seen = Rc::new(Seen::default());
    let (lifecycle, _controller) = start_controller(&seen);
    seen.refuse.replace(true);
    assert_eq!(lifecycle.create(config()).await.unwrap(), Err(GuestError::DeviceStartFailure));
    let log = seen.take();
    for end in ["start balloon", "destroy virtio_balloon", "destroy virtio_rng"] {
        assert!(log.contains(&end.to_owned()), "{end}: {log:?}");
    }
    seen.refuse.replace(false);
    assert_eq!(lifecycle.create(config()).await.unwrap(), Ok(()));
}

#[fuchsia_async::run_singlethreaded(test)]
async fn balloon_controller_reads_and_writes_the_configuration() {
    let seen = Rc::new(Seen::default());
    let (lifecycle, _controller) = start_controller(&seen);
    assert_eq!(lifecycle.create(config()).await.unwrap(), Ok(()));
    let (guest, server) = create_proxy::<GuestMarker>();
    lifecycle.bind(server).unwrap();
    let (balloon, server) = create_proxy::<BalloonControllerMarker>();
    assert_eq!(guest.get_balloon_controller(server).await.unwrap(), Ok(()));
    assert_eq!(balloon.get_balloon_size().await.unwrap(), (0, 0));
    balloon.request_num_pages(256).unwrap();
    assert_eq!(balloon.get_balloon_size().await.unwrap(), (0, 256));
    assert_eq!(
        balloon.get_mem_stats().await.unwrap(),
        (zx::Status::NOT_SUPPORTED.into_raw(), None)
    );
}
