//! A guest of a few instructions.

use fuchsia_zircon_types::*;
use zircon::linux;
use zircon::*;

pub(crate) const BELL: u64 = 0x40_0000;
pub(crate) const PORT: u8 = 0x80;
pub(crate) const ENTRY: usize = 0x1_0000;
/// Sleeps until an interrupt comes, with the vector [`VECTOR`], and tells so through a port for ever.
pub(crate) const SLEEPER: usize = 0x1_1000;
pub(crate) const VECTOR: u32 = 0x50;
const RAM: u64 = 0x20_0000;

pub(crate) struct Machine {
    pub(crate) guest: zx_handle_t,
    pub(crate) memory: zx_handle_t,
    others: [zx_handle_t; 2],
}

impl Machine {
    /// Rings the doorbell at `BELL + 4`, tells so through a port, and again for ever.
    pub(crate) fn new() -> Machine {
        let resource = linux::system_resource(ZX_RSRC_SYSTEM_HYPERVISOR_BASE).unwrap();
        let (mut guest, mut vmar) = (0, 0);
        // SAFETY: the pointers are to locals.
        assert_eq!(unsafe { zx_guest_create(resource, 0, &mut guest, &mut vmar) }, ZX_OK);
        let mut ram = 0;
        // SAFETY: the pointer is to a local.
        assert_eq!(unsafe { zx_vmo_create(RAM, 0, &mut ram) }, ZX_OK);
        let put = |at: usize, bytes: &[u8]| {
            // SAFETY: the pointer is to a slice of this length.
            assert_eq!(unsafe { zx_vmo_write(ram, bytes.as_ptr(), at as u64, bytes.len()) }, ZX_OK);
        };
        // One-to-one page tables for the first 6 MiB, at address 0.
        put(0, &0x1003_u64.to_le_bytes());
        put(0x1000, &0x2003_u64.to_le_bytes());
        (0..3).for_each(|page| put(0x2000 + page * 8, &((page as u64) << 21 | 0x83).to_le_bytes()));
        let bell = (BELL as u32 + 4).to_le_bytes();
        // mov [BELL + 4], eax; out PORT, al; jmp back.
        let code = [&[0x89, 0x04, 0x25][..], &bell, &[0xe6, PORT, 0xeb, 0xf5]].concat();
        put(ENTRY, &code);
        put_sleeper(&put);
        let options = ZX_VM_PERM_READ | ZX_VM_PERM_WRITE | ZX_VM_PERM_EXECUTE | ZX_VM_SPECIFIC;
        let mut address = 0;
        // SAFETY: guest memory is nobody's yet.
        let status = unsafe { zx_vmar_map(vmar, options, 0, ram, 0, RAM as usize, &mut address) };
        assert_eq!(status, ZX_ERR_ACCESS_DENIED, "the memory is not executable");
        let options = options & !ZX_VM_PERM_EXECUTE;
        // SAFETY: as above.
        let status = unsafe { zx_vmar_map(vmar, options, 0, ram, 0, RAM as usize, &mut address) };
        assert_eq!(status, ZX_OK);
        // SAFETY: always safe.
        assert_eq!(unsafe { zx_guest_set_trap(guest, 2, PORT.into(), 1, 0, 7) }, ZX_OK);
        Machine { guest, memory: vmar, others: [resource, ram] }
    }

    pub(crate) fn vcpu(&self) -> zx_handle_t {
        self.vcpu_at(ENTRY)
    }

    pub(crate) fn vcpu_at(&self, entry: usize) -> zx_handle_t {
        let mut vcpu = 0;
        // SAFETY: the pointer is to a local.
        assert_eq!(unsafe { zx_vcpu_create(self.guest, 0, entry, &mut vcpu) }, ZX_OK);
        vcpu
    }
}

fn put_sleeper(put: &impl Fn(usize, &[u8])) {
    const HANDLER: u16 = 0x1100;
    const HANDLER_PAGES: u64 = 1;
    // A code segment, and an interrupt gate that leads to the handler at 0x1_1100.
    put(0x1_2008, &0x00af_9b00_0000_ffff_u64.to_le_bytes());
    let gate = u64::from(HANDLER) | 8 << 16 | 0x8e << 40 | HANDLER_PAGES << 48;
    put(0x1_3000 + VECTOR as usize * 16, &gate.to_le_bytes());
    // GDTR and IDTR.
    put(0x1_4000, &(15 | 0x1_2000_u64 << 16).to_le_bytes());
    put(0x1_4010, &(0xfff | 0x1_3000_u64 << 16).to_le_bytes());
    let code = [
        &[0x0f, 0x01, 0x14, 0x25, 0x00, 0x40, 0x01, 0x00][..], // lgdt [0x14000]
        &[0x0f, 0x01, 0x1c, 0x25, 0x10, 0x40, 0x01, 0x00],     // lidt [0x14010]
        &[0x48, 0xc7, 0xc4, 0x00, 0x80, 0x01, 0x00],           // mov rsp, 0x18000
        &[0xfb, 0xf4, 0xeb, 0xfd],                             // sti; hlt; jmp to hlt
    ];
    put(SLEEPER, &code.concat());
    put(0x1_0000 + usize::from(HANDLER), &[0xe6, PORT, 0xeb, 0xfc]); // out PORT, al; jmp back
}

impl Drop for Machine {
    fn drop(&mut self) {
        for handle in self.others.into_iter().chain([self.guest, self.memory]) {
            // SAFETY: always safe.
            assert_eq!(unsafe { zx_handle_close(handle) }, ZX_OK);
        }
    }
}

pub(crate) fn enter(vcpu: zx_handle_t) -> Result<zx_port_packet_t, zx_status_t> {
    let mut packet = zx_port_packet_t::default();
    // SAFETY: the pointer is to a local.
    match unsafe { zx_vcpu_enter(vcpu, &mut packet) } {
        ZX_OK => Ok(packet),
        status => Err(status),
    }
}

pub(crate) fn set_bell(
    guest: zx_handle_t,
    port: zx_handle_t,
    addr: u64,
    size: usize,
) -> zx_status_t {
    // SAFETY: always safe.
    unsafe { zx_guest_set_trap(guest, 0, addr as usize, size, port, 99) }
}
