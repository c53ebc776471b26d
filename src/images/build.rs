//! Builds what the program carries for guest packages: the kernel of the `zircon` package from `tests/guests/zircon`, so that
//! making that package takes neither tools nor an archive, and the guest's side of `guest vsock-perf` for `debian`.
//!
//! The kernel is freestanding, but for the target at hand: no other has to be installed. It is linked into a Zircon boot
//! image right away, by its linker script.

use std::env;
use std::path::Path;
use std::process::{Command, ExitCode};

const SOURCE: &str = "../../tests/guests/zircon";
/// What `guest vsock-perf` talks to in the `debian` package.
const VSOCK_TEST_UTIL: &str = "../../tests/guests/virtio_vsock_test_util.c";

/// What makes a program of the host's target a kernel: no C runtime, fixed addresses, no red zone for interrupts to
/// trample on, nothing that unwinds, and a file of just the bytes that are loaded.
const FLAGS: &[&str] = &[
    "--edition=2024",
    "--crate-name=zircon_test_kernel",
    "--crate-type=bin",
    "-Copt-level=2",
    "-Cpanic=abort",
    "-Crelocation-model=static",
    "-Cno-redzone=yes",
    "-Cforce-unwind-tables=no",
    "-Clink-arg=-nostartfiles",
    "-Clink-arg=-nostdlib",
    "-Clink-arg=-static",
    "-Clink-arg=-no-pie",
    "-Clink-arg=-Wl,--build-id=none",
    "-Clink-arg=-Wl,--oformat=binary",
];

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    let target = |part| env::var(part).unwrap_or_default();
    if target("CARGO_CFG_TARGET_OS") != "linux" {
        // The crate is empty there.
        return ExitCode::SUCCESS;
    }
    if target("CARGO_CFG_TARGET_ARCH") != "x86_64" {
        eprintln!("On Linux, guests are x86-64 and run on x86-64 only");
        return ExitCode::FAILURE;
    }
    let manifest = target("CARGO_MANIFEST_DIR");
    let output = target("OUT_DIR");
    let (manifest, output) = (Path::new(&manifest), Path::new(&output));
    let source = manifest.join(SOURCE);
    println!("cargo::rerun-if-changed={}", source.display());
    let mut kernel = Command::new(target("RUSTC"));
    kernel
        .args(FLAGS)
        .arg(format!("--target={}", target("TARGET")))
        .arg(format!("-Clink-arg=-T{}", source.join("kernel.ld").display()))
        .arg("-o")
        .arg(output.join("zircon.zbi"))
        .arg(source.join("main.rs"));
    // `cc` is what links every Rust program; a static one runs on whatever libraries a guest has.
    let source = manifest.join(VSOCK_TEST_UTIL);
    println!("cargo::rerun-if-changed={}", source.display());
    let mut vsock_test_util = Command::new("cc");
    vsock_test_util
        .args(["-O2", "-static", "-pthread", "-o"])
        .arg(output.join("virtio_vsock_test_util"))
        .arg(source);
    if builds("the kernel", kernel) && builds("the guest's side of vsock-perf", vsock_test_util) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs a compiler. Says what is wrong where it fails.
fn builds(what: &str, mut compiler: Command) -> bool {
    match compiler.status() {
        Ok(status) if status.success() => return true,
        Ok(status) => eprintln!("{compiler:?} does not build {what}: {status}"),
        Err(e) => eprintln!("{compiler:?} does not run: {e}"),
    }
    false
}
