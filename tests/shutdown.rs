//! The shutdown suite: each way in which a guest comes to its end, and what those who watch it see.

use enclosed_guest::{EnclosedGuest, GuestKernel, environment};
use fidl_fuchsia_virtualization::{GuestConfig, GuestError, GuestStatus};
use fuchsia_async as fasync;
use fuchsia_zircon as zx;

/// Runs a command that ends the guest and holds the end against what is expected: no error for an orderly one.
async fn ends(kernel: GuestKernel, command: &str, error: Option<GuestError>) {
    let enclosed = EnclosedGuest::new(environment!(), kernel);
    let mut guest = enclosed.start(GuestConfig::default()).await;
    guest.console.write(&format!("{command}\n")).await;
    guest.console.wait_for_end().await;
    let epitaph = guest.wait_for_end().await;
    let expected = if error.is_none() { zx::Status::OK } else { zx::Status::INTERNAL };
    assert_eq!(epitaph, Some(expected), "{kernel:?} after {command:?}");
    let info = enclosed.wait_for_status(GuestStatus::Stopped).await;
    assert_eq!(info.stop_error, error, "{kernel:?} after {command:?}");
    assert!(info.uptime.is_some_and(|uptime| uptime > 0) && info.guest_descriptor.is_none());
    enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn zircon_powers_off() {
    // What `guest stop` types.
    ends(GuestKernel::Zircon, "power shutdown", None).await;
}

#[fasync::run_singlethreaded(test)]
async fn linux_powers_off() {
    ends(GuestKernel::Linux, "poweroff -f", None).await;
}

#[fasync::run_singlethreaded(test)]
async fn a_reset_is_an_orderly_end() {
    ends(GuestKernel::Zircon, "power reboot", None).await;
    ends(GuestKernel::Linux, "reboot -f", None).await;
}

#[fasync::run_singlethreaded(test)]
async fn a_kernel_that_panics_resets_the_machine() {
    for kind in ["invalid-opcode", "divide", "page-fault"] {
        ends(GuestKernel::Zircon, &format!("crash {kind}"), None).await;
    }
}

#[fasync::run_singlethreaded(test)]
async fn a_cpu_that_shuts_down_is_a_failure() {
    let failure = Some(GuestError::VcpuRuntimeFailure);
    ends(GuestKernel::Zircon, "crash triple-fault", failure).await;
}

#[fasync::run_singlethreaded(test)]
async fn a_panic_is_reported_with_its_place() {
    let enclosed = EnclosedGuest::new(environment!(), GuestKernel::Zircon);
    let mut guest = enclosed.start(GuestConfig::default()).await;
    guest.console.write("crash page-fault\n").await;
    let report = guest.console.wait_for_end().await;
    assert!(report.contains("ZIRCON KERNEL PANIC"), "{report}");
    assert!(report.contains("exception 14 (page fault), address 0x500000000000"), "{report}");
    assert!(report.contains("error_code: 0x2,"), "{report}");
    enclosed.destroy().await;
}

#[fasync::run_singlethreaded(test)]
async fn force_ends_a_guest_whatever_it_does() {
    for kernel in GuestKernel::ALL {
        let enclosed = EnclosedGuest::new(environment!(), kernel);
        let guest = enclosed.start(GuestConfig::default()).await;
        enclosed.manager.force_shutdown().await.unwrap();
        // Answered when the guest is gone, and not before.
        let info = enclosed.info().await;
        assert_eq!(info.guest_status, Some(GuestStatus::Stopped));
        assert_eq!(info.stop_error, Some(GuestError::ControllerForcedHalt));
        assert_eq!(guest.wait_for_end().await, Some(zx::Status::INTERNAL));
        // And launches again at once.
        let mut again = enclosed.start(GuestConfig::default()).await;
        assert_eq!(again.console.run("echo again").await, "again\n");
        enclosed.destroy().await;
    }
}
