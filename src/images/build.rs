//! Builds the kernel of the `zircon` package from `tests/guests/zircon`, so that the program carries it and making the
//! package takes neither tools nor an archive.
//!
//! The kernel is freestanding, but for the target at hand: no other has to be installed. It is linked into a Zircon boot
//! image right away, by its linker script.

use std::env;
use std::path::Path;
use std::process::{Command, ExitCode};

const SOURCE: &str = "../../tests/guests/zircon";

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
    let source = Path::new(&target("CARGO_MANIFEST_DIR")).join(SOURCE);
    println!("cargo::rerun-if-changed={}", source.display());
    let status = Command::new(target("RUSTC"))
        .args(FLAGS)
        .arg(format!("--target={}", target("TARGET")))
        .arg(format!("-Clink-arg=-T{}", source.join("kernel.ld").display()))
        .arg("-o")
        .arg(Path::new(&target("OUT_DIR")).join("zircon.zbi"))
        .arg(source.join("main.rs"))
        .status();
    match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(status) => {
            eprintln!("The kernel in {} does not build: {status}", source.display());
            ExitCode::FAILURE
        }
        Err(e) => {
            eprintln!("The Rust compiler does not run: {e}");
            ExitCode::FAILURE
        }
    }
}
