//! What a guest's manager leaves with the host: descriptors, files and the log. Only for the host, whose they are; what a
//! client sees of the same is in `lifecycle.rs`.
#![cfg(target_os = "linux")]

use enclosed_guest::{EnclosedGuest, GuestKernel, Package, environment};
use fidl_fuchsia_virtualization::{
    GuestConfig, GuestManagerError, GuestStatus, LinuxManagerMarker,
};
use fuchsia_async as fasync;
use std::fs;

#[fasync::run_singlethreaded(test)]
async fn fifty_guests_one_after_the_other_leave_nothing_behind() {
    let enclosed = EnclosedGuest::new(environment!(), GuestKernel::Zircon);
    let config =
        || GuestConfig { guest_memory: Some(64 << 20), cpus: Some(1), ..Default::default() };
    let own_descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let mut descriptors = Vec::new();
    for _ in 0..50 {
        enclosed.launch(config()).await.unwrap();
        enclosed.manager.force_shutdown().await.unwrap();
        assert_eq!(enclosed.info().await.guest_status, Some(GuestStatus::Stopped));
        descriptors.push(own_descriptors());
    }
    let temporary = fs::read_dir(enclosed.temporary()).unwrap();
    assert!(temporary.count() <= 2, "files are left in the temporary storage");
    // Other tests of this process come and go meanwhile: growth with each guest would be far above them.
    let (first, last) = (descriptors[5], descriptors[49]);
    assert!(last < first + 100, "{descriptors:?}");
    enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn termina_without_room_for_its_disk_has_no_storage() {
    let enclosed = EnclosedGuest::new(environment!(), Package::termina());
    // Something that is no file is where the disk would be.
    fs::create_dir_all(enclosed.storage().join("stateful.img")).unwrap();
    let launched = enclosed.launch(GuestConfig::default()).await;
    assert_eq!(launched.err(), Some(GuestManagerError::NoStorage));
    enclosed.logged("stateful.img").await;
    enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn terminas_manager_logs_what_it_lacks() {
    let enclosed = EnclosedGuest::new(environment!(), Package::termina());
    let linux = enclosed.connect_to_protocol::<LinuxManagerMarker>();
    linux.start_and_get_linux_guest_info("termina").await.unwrap().unwrap_err();
    enclosed.logged("container").await;
    enclosed.destroy().await;
}
