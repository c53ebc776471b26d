//! A guest of a few instructions.

use fuchsia_zircon_types::*;
use zircon::linux;
use zircon::*;

pub(crate) const BELL: u64 = 0x40_0000;
pub(crate) const PORT: u8 = 0x80;
pub(crate) const ENTRY: usize = 0x1_0000;
const RAM: u64 = 0x20_0000;

pub(crate) struct Machine {
    pub(crate) guest: zx_handle_t,
    others: [zx_handle_t; 3],
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
        Machine { guest, others: [resource, vmar, ram] }
    }

    pub(crate) fn vcpu(&self) -> zx_handle_t {
        let mut vcpu = 0;
        // SAFETY: the pointer is to a local.
        assert_eq!(unsafe { zx_vcpu_create(self.guest, 0, ENTRY, &mut vcpu) }, ZX_OK);
        vcpu
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for handle in self.others.into_iter().chain([self.guest]) {
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
