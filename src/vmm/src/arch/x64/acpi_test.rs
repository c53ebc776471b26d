use super::*;
use crate::memory::BufferMemory;
use std::process::Command;

fn tables(cpus: u8) -> BufferMemory {
    let memory = BufferMemory::new(0x10_0000);
    write_tables(&memory, cpus).unwrap();
    memory
}

fn bytes(memory: &BufferMemory, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read(address, &mut bytes).unwrap();
    bytes
}

fn table(memory: &BufferMemory, address: u64) -> Vec<u8> {
    let header = bytes(memory, address, 8);
    let len = u32::from_le_bytes(header[4..8].try_into().unwrap());
    bytes(memory, address, len as usize)
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

/// The tables the root pointer leads to, in order.
fn walk(memory: &BufferMemory) -> Vec<Vec<u8>> {
    let rsdp = bytes(memory, memory_map::ACPI_RSDP, 36);
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
    let xsdt = table(memory, u64_at(&rsdp, 24));
    assert_eq!((&xsdt[..4], sum(&xsdt)), (&b"XSDT"[..], 0));
    xsdt[36..].chunks(8).map(|entry| table(memory, u64_at(entry, 0))).collect()
}

#[test]
fn every_table_is_reachable_and_sums_to_zero() {
    let memory = tables(2);
    let tables = walk(&memory);
    let signatures: Vec<&[u8]> = tables.iter().map(|table| &table[..4]).collect();
    assert_eq!(signatures, [b"FACP", b"APIC", b"MCFG"]);
    assert!(tables.iter().all(|table| sum(table) == 0));
    let dsdt = table(&memory, u64_at(&tables[0], 140));
    assert_eq!((&dsdt[..4], sum(&dsdt)), (&b"DSDT"[..], 0));
    let facs = u32::from_le_bytes(tables[0][36..40].try_into().unwrap());
    assert_eq!((facs % 64, &bytes(&memory, u64::from(facs), 4)[..]), (0, &b"FACS"[..]));
}

#[test]
fn madt_lists_every_processor_and_the_io_apic() {
    let memory = tables(3);
    let madt = &walk(&memory)[1];
    assert_eq!(
        u32::from_le_bytes(madt[40..44].try_into().unwrap()) & 1,
        0,
        "PCAT_COMPAT without a PIC"
    );
    let mut kinds = Vec::new();
    let mut rest = &madt[44..];
    while let [kind, len, ..] = *rest {
        kinds.push(kind);
        if kind == 1 {
            assert_eq!(rest[4..12], [0, 0, 0, 0xf8, 0, 0, 0, 0]);
        }
        rest = &rest[usize::from(len)..];
    }
    assert_eq!(kinds, [0, 0, 0, 1, 2]);
}

#[test]
fn most_processors_fit() {
    tables(64);
}

#[test]
fn memory_too_small_is_an_error() {
    assert!(write_tables(&BufferMemory::new(0xe_0010), 1).is_err());
}

/// Disassembles every table with the reference compiler, where it is installed.
#[test]
fn reference_disassembler_accepts_the_tables() {
    if Command::new("iasl").arg("-v").output().is_err() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let memory = tables(2);
    let mut all = walk(&memory);
    all.push(table(&memory, u64_at(&all[0], 140)));
    for table in all {
        let name = String::from_utf8(table[..4].to_vec()).unwrap();
        std::fs::write(folder.path().join(format!("{name}.dat")), &table).unwrap();
        let output = Command::new("iasl")
            .current_dir(folder.path())
            .args(["-d", &format!("{name}.dat")])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned()
            + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{name}: {text}");
        assert!(!text.contains("Error") && !text.contains("Warning"), "{name}: {text}");
    }
    let compile = Command::new("iasl").current_dir(folder.path()).arg("DSDT.dsl").output().unwrap();
    let text = String::from_utf8_lossy(&compile.stdout);
    assert!(text.contains("0 Errors, 0 Warnings"), "{text}");
}
