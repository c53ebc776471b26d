//! Boots a kernel with nothing but system calls and the machine layer: no components and no FIDL. The guest's serial
//! port is on the standard streams; disks are served by threads of this process.
//!
//! Exit status: 0 after a power-off, 2 after a reset, 3 when a vCPU failed, 4 when it could not start, 1 on other errors.

mod disk;

use anyhow::Context as _;
use futures::executor::block_on;
use futures::future::poll_fn;
use std::io::{Read as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use vmm::arch::Kernel;
use vmm::serial::SerialPort;
use vmm::vcpu::Outcome;
use vmm::virtio_pci::DeviceEvents;
use vmm::vm::{VmBuilder, VmConfig};

use fuchsia_zircon::{self as zx, HandleBased as _};

/// Boot a kernel in a virtual machine.
#[derive(argh::FromArgs)]
struct Arguments {
    /// kernel image: bzImage, vmlinux or Zircon boot image
    #[argh(option)]
    kernel: std::path::PathBuf,
    /// initial RAM disk, or Zircon boot image of further items
    #[argh(option)]
    initrd: Option<std::path::PathBuf>,
    /// kernel command line
    #[argh(option, default = "String::from(\"console=ttyS0\")")]
    cmdline: String,
    /// number of vCPUs
    #[argh(option, default = "1")]
    cpus: u8,
    /// RAM in MiB
    #[argh(option, default = "512")]
    memory: u64,
    /// disk image, raw and writable; may be repeated
    #[argh(option)]
    disk: Vec<std::path::PathBuf>,
    /// serve GDB on a Unix socket at this path: `target remote PATH`
    #[argh(option)]
    gdb: Option<std::path::PathBuf>,
    /// the kernel is Zircon
    #[argh(switch)]
    zircon: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let arguments: Arguments = argh::from_env();
    let outcome = boot(&arguments)?;
    eprintln!("\nboot: {outcome:?}");
    Ok(ExitCode::from(match outcome {
        Outcome::PowerOff => 0,
        Outcome::Reset => 2,
        Outcome::VcpuFailure { .. } => 3,
        Outcome::VcpuStartFailure { .. } => 4,
        Outcome::ForcedHalt => 1,
    }))
}

fn boot(arguments: &Arguments) -> anyhow::Result<Outcome> {
    let image = std::fs::read(&arguments.kernel)
        .with_context(|| format!("reading {:?}", arguments.kernel))?;
    let ramdisk =
        arguments.initrd.as_ref().map(std::fs::read).transpose().context("reading the initrd")?;
    let (hypervisor, vmex) = resources()?;
    let config = VmConfig { cpus: arguments.cpus, memory: arguments.memory << 20 };
    let events = DeviceEvents::new()?;
    let mut builder = VmBuilder::new(&hypervisor, &vmex, config)?;
    for (index, path) in arguments.disk.iter().enumerate() {
        disk::add(&mut builder, &events, index, path)?;
    }
    builder.install_traps()?;
    if let Some(path) = &arguments.gdb {
        serve_debugger(builder.guest(), path)?;
    }
    let (image, ramdisk, command_line) = (&image[..], ramdisk.as_deref(), &arguments.cmdline[..]);
    let entry = builder.load(if arguments.zircon {
        Kernel::Zircon { image, ramdisk, command_line }
    } else {
        Kernel::Linux { image, ramdisk, device_tree: None, command_line }
    })?;
    let mut vm = builder.build(entry);
    serve_console(vm.serial());
    let outcome = block_on(vm.start())?;
    drop(vm);
    // The console threads stay behind; give the output of the last moments to the terminal.
    std::thread::sleep(std::time::Duration::from_millis(20));
    Ok(outcome)
}

/// The resources that a component gets from its namespace.
#[cfg(target_os = "linux")]
fn resources() -> anyhow::Result<(zx::Resource, zx::Resource)> {
    use zx::sys::{ZX_RSRC_SYSTEM_HYPERVISOR_BASE, ZX_RSRC_SYSTEM_VMEX_BASE};
    let hypervisor = zx::linux::system_resource(ZX_RSRC_SYSTEM_HYPERVISOR_BASE)?;
    Ok((hypervisor, zx::linux::system_resource(ZX_RSRC_SYSTEM_VMEX_BASE)?))
}

/// Serves debuggers, one after another, on a thread that ends with the process.
#[cfg(target_os = "linux")]
fn serve_debugger(guest: &zx::Guest, path: &std::path::Path) -> anyhow::Result<()> {
    let guest = guest.duplicate_handle(zx::Rights::SAME_RIGHTS)?;
    let listener = std::os::unix::net::UnixListener::bind(path)
        .with_context(|| format!("listening for GDB on {path:?}"))?;
    std::thread::spawn(move || {
        for connection in listener.incoming().map_while(Result::ok) {
            if let Err(status) = zx::linux::debug_guest(&guest, connection) {
                tracing::warn!(%status, "The debugger's connection ended");
            }
        }
    });
    Ok(())
}

/// The stub is the software hypervisor's.
#[cfg(not(target_os = "linux"))]
fn serve_debugger(_: &zx::Guest, _: &std::path::Path) -> anyhow::Result<()> {
    anyhow::bail!("this example runs on Linux only")
}

/// Only components get resources.
#[cfg(not(target_os = "linux"))]
fn resources() -> anyhow::Result<(zx::Resource, zx::Resource)> {
    anyhow::bail!("this example runs on Linux only")
}

/// Connects the serial port with the standard streams, on threads that end with the process.
fn serve_console(serial: &Arc<dyn SerialPort>) {
    let output = serial.clone();
    std::thread::spawn(move || {
        loop {
            let bytes = block_on(poll_fn(|cx| output.poll_output(cx)));
            let mut stdout = std::io::stdout().lock();
            if stdout.write_all(&bytes).and_then(|()| stdout.flush()).is_err() {
                return;
            }
        }
    });
    let input = serial.clone();
    std::thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok(len @ 1..) = std::io::stdin().read(&mut buffer) {
            let mut rest = &buffer[..len];
            while !rest.is_empty() {
                let taken = block_on(poll_fn(|cx| input.poll_input(cx, rest)));
                rest = &rest[taken..];
            }
        }
    });
}
