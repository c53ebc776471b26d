//! Boots a Linux bzImage with a transmit-only serial port and nothing else: the smallest machine that exercises the
//! hypervisor. Prints the serial port's output, and the vCPU's counters at the end.
//!
//! Usage: `linux BZIMAGE [INITRAMFS [COMMAND LINE]]`. The guest ends the run by writing to port 0xf4.

use std::io::Write as _;
use std::os::fd::AsFd;

use hypervisor::{Error, Exit, Guest, TrapKind, Vcpu, VcpuState};

const RAM: u64 = 1 << 30;
const PAGE_TABLES: u64 = 0;
const BOOT_PARAMS: u64 = 0x1_0000;
const COMMAND_LINE: u64 = 0x2_0000;
const KERNEL: u64 = 0x100_0000;
const UART: u16 = 0x3f8;
const EXIT_PORT: u16 = 0xf4;
/// The real-time clock: without one the kernel waits a second for it.
const CMOS: u16 = 0x70;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let kernel =
        std::fs::read(arguments.next().ok_or("usage: linux BZIMAGE [INITRAMFS [COMMAND LINE]]")?)?;
    let initramfs = arguments.next().map(std::fs::read).transpose()?.unwrap_or_default();
    let command_line = arguments.next().unwrap_or_else(|| {
        "console=ttyS0 earlyprintk=serial,ttyS0,115200 pci=off panic=-1 nokaslr".into()
    });
    let guest = Guest::new()?;
    let ram = rustix::fs::memfd_create("ram", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&ram, RAM)?;
    guest.map(0, ram.as_fd(), 0, RAM)?;
    guest.set_trap(TrapKind::Io, UART.into(), 8, 1, None)?;
    guest.set_trap(TrapKind::Io, EXIT_PORT.into(), 1, 2, None)?;
    guest.set_trap(TrapKind::Io, CMOS.into(), 2, 3, None)?;
    load(&guest, &kernel, &initramfs, &command_line)?;
    drop((kernel, initramfs));
    let start = std::time::Instant::now();
    let mut vcpu = Vcpu::new(&guest, KERNEL + 0x200)?;
    let created = start.elapsed();
    let mut state = vcpu.read_state();
    state.gpr[6] = BOOT_PARAMS;
    vcpu.write_state(&state);
    let result = run(&mut vcpu);
    let state: VcpuState = vcpu.read_state();
    eprintln!(
        "\n{result:?} after {:?}, vCPU created in {} ms, {} MiB private\n{:#?}\ngpr {:x?}",
        start.elapsed(),
        created.as_secs_f64() * 1e3,
        private_memory()? >> 10,
        vcpu.stats(),
        state.gpr
    );
    Ok(())
}

/// KiB of anonymous memory of this process: the vCPU's tables and little else. Its code memory, 20 MiB at most, is a
/// memfd like the guest's RAM.
fn private_memory() -> Result<u64, Box<dyn std::error::Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    Ok(line.and_then(|line| line.split_whitespace().next()).ok_or("no RssAnon")?.parse()?)
}

fn load(
    guest: &Guest,
    kernel: &[u8],
    initramfs: &[u8],
    command_line: &str,
) -> Result<(), Box<dyn std::error::Error>> {
    // Identity map of the first 4 GiB with 2 MiB pages.
    guest.write_memory(PAGE_TABLES, &(PAGE_TABLES + 0x1003).to_le_bytes())?;
    for gib in 0..4 {
        let directory = PAGE_TABLES + 0x2000 + gib * 0x1000;
        guest.write_memory(PAGE_TABLES + 0x1000 + gib * 8, &(directory | 3).to_le_bytes())?;
        for page in 0..512 {
            guest.write_memory(
                directory + page * 8,
                &(gib << 30 | page << 21 | 0x83).to_le_bytes(),
            )?;
        }
    }
    let header = kernel.get(0x1f1..0x290).ok_or("not a bzImage")?;
    let setup = (u64::from(kernel[0x1f1]) + 1) * 512;
    guest.write_memory(KERNEL, kernel.get(setup as usize..).ok_or("truncated image")?)?;
    let ramdisk = (RAM - initramfs.len() as u64 - 0x10_0000) & !0xfff;
    guest.write_memory(ramdisk, initramfs)?;
    guest.write_memory(COMMAND_LINE, command_line.as_bytes())?;
    load_acpi(guest)?;
    let mut params = vec![0u8; 4096];
    params[0x1f1..0x290].copy_from_slice(header);
    params[0x210] = 0xff;
    let mut put32 =
        |at: usize, value: u32| params[at..at + 4].copy_from_slice(&value.to_le_bytes());
    put32(0x218, ramdisk as u32);
    put32(0x21c, initramfs.len() as u32);
    put32(0x228, COMMAND_LINE as u32);
    put32(0x214, KERNEL as u32);
    params[0x1e8] = 2;
    for (n, (base, size)) in [(0, 0x9_f000), (0x10_0000, RAM - 0x10_0000)].into_iter().enumerate() {
        let at = 0x2d0 + n * 20;
        params[at..at + 8].copy_from_slice(&u64::to_le_bytes(base));
        params[at + 8..at + 16].copy_from_slice(&u64::to_le_bytes(size));
        params[at + 16] = 1;
    }
    guest.write_memory(BOOT_PARAMS, &params)?;
    Ok(())
}

/// A table with its header filled in and its checksum right.
fn acpi_table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let mut table = signature.to_vec();
    table.extend((36 + body.len() as u32).to_le_bytes());
    table.extend([revision, 0]);
    table.extend(b"GUEST GUEST   ");
    table.extend([1, 0, 0, 0, b'G', b'S', b'T', b' ', 1, 0, 0, 0]);
    table.extend(body);
    checksum(&mut table, 9);
    table
}

fn checksum(bytes: &mut [u8], at: usize) {
    bytes[at] = 0;
    bytes[at] = bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte)).wrapping_neg();
}

/// The serial port at [`UART`] without an interrupt, so that the kernel polls it:
/// `Scope (\_SB) { Device (COM1) { Name (_HID, EisaId ("PNP0501")) Name (_CRS, ResourceTemplate () { IO (…) }) } }`
/// (ACPI 6.5 §20.2, §6.4.2.5).
const SERIAL_PORT: &[u8] = b"\x10\x2a\\_SB_\x5b\x82\x22COM1\x08_HID\x0c\x41\xd0\x05\x01\
    \x08_CRS\x11\x0d\x0a\x0a\x47\x01\xf8\x03\xf8\x03\x01\x08\x79\x00";

/// Hardware-reduced ACPI with one local APIC and a serial port.
fn load_acpi(guest: &Guest) -> Result<(), Error> {
    const RSDP: u64 = 0xe_0000;
    const TABLES: [u64; 4] = [RSDP + 0x100, RSDP + 0x200, RSDP + 0x400, RSDP + 0x500];
    let [xsdt, fadt, madt, dsdt] = TABLES;
    let mut body: Vec<u8> = Vec::new();
    for table in [fadt, madt] {
        body.extend(table.to_le_bytes());
    }
    guest.write_memory(xsdt, &acpi_table(b"XSDT", 1, &body))?;
    let mut body = vec![0u8; 276 - 36];
    body[4..8].copy_from_slice(&(dsdt as u32).to_le_bytes());
    // HW_REDUCED_ACPI.
    body[112 - 36..116 - 36].copy_from_slice(&(1u32 << 20).to_le_bytes());
    body[140 - 36..148 - 36].copy_from_slice(&dsdt.to_le_bytes());
    guest.write_memory(fadt, &acpi_table(b"FACP", 6, &body))?;
    let mut body = 0xfee0_0000u32.to_le_bytes().to_vec();
    body.extend([0, 0, 0, 0, 0, 8, 0, 0, 1, 0, 0, 0]);
    guest.write_memory(madt, &acpi_table(b"APIC", 4, &body))?;
    guest.write_memory(dsdt, &acpi_table(b"DSDT", 2, SERIAL_PORT))?;
    let mut rsdp = b"RSD PTR \0GUEST \x02".to_vec();
    rsdp.extend(0u32.to_le_bytes());
    rsdp.extend(36u32.to_le_bytes());
    rsdp.extend(xsdt.to_le_bytes());
    rsdp.extend([0; 4]);
    checksum(&mut rsdp[..20], 8);
    checksum(&mut rsdp, 32);
    guest.write_memory(RSDP, &rsdp)
}

fn run(vcpu: &mut Vcpu) -> Result<(), Error> {
    let mut registers = [0u8; 8];
    let mut cmos_index = 0;
    loop {
        match vcpu.enter()? {
            Exit::Io { port: EXIT_PORT, input: false, .. } => return Ok(()),
            Exit::Io { port: CMOS, input: false, data, .. } => cmos_index = data[0] & 0x7f,
            Exit::Io { port, access_size, input: true, .. } if port & !1 == CMOS => {
                // 1 January 2024, midnight, BCD, 24 hours; valid, and no update under way.
                let value = match cmos_index {
                    7 | 8 => 0x01,
                    9 => 0x24,
                    0xb => 0x02,
                    0xd => 0x80,
                    _ => 0,
                };
                vcpu.write_io(access_size, [value, 0, 0, 0])?;
            }
            Exit::Io { port, input: false, .. } if port & !1 == CMOS => {}
            Exit::Io { port, input: false, data, .. } => {
                if port == UART && registers[3] & 0x80 == 0 {
                    // A prompt does not end its line.
                    let _ = std::io::stdout().write_all(&data[..1]);
                    let _ = std::io::stdout().flush();
                }
                registers[usize::from(port & 7)] = data[0];
            }
            Exit::Io { port, access_size, input: true, .. } => {
                let value = match port & 7 {
                    // A 16550A whose transmitter always is empty.
                    2 if registers[1] & 2 != 0 => 0xc2,
                    2 => 0xc1,
                    5 => 0x60,
                    6 => 0xb0,
                    n => registers[usize::from(n)],
                };
                vcpu.write_io(access_size, [value, 0, 0, 0])?;
            }
            other => eprintln!("unhandled {other:?}"),
        }
    }
}
