//! What a vCPU hands to the virtual machine monitor, in the terms of Zircon's guest packets.

/// Data of a port access, little endian, in the low `access_size` bytes.
pub type IoData = [u8; 4];

/// Reason why [`crate::Vcpu::enter`] returned.
///
/// On `Mem` and `Io` the guest's RIP has already moved past the instruction, as Zircon's kernel does; the
/// monitor carries the access out and writes registers back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// An access to a [`crate::TrapKind::Mem`] range.
    Mem {
        /// Key given to `set_trap`.
        key: u64,
        /// Guest-physical address of the access.
        addr: u64,
        /// CR3, from which the monitor walks the page tables to fetch the instruction.
        cr3: u64,
        /// Linear address of the instruction.
        rip: u64,
        /// Length of the instruction in bytes, 1 to 15.
        instruction_size: u8,
        /// 2 in 16-bit code segments, else 4: the operand size without prefixes.
        default_operand_size: u8,
    },
    /// An access to a [`crate::TrapKind::Io`] range.
    Io {
        /// Key given to `set_trap`.
        key: u64,
        /// First port of the access.
        port: u16,
        /// 1, 2 or 4 bytes.
        access_size: u8,
        /// True for IN: the monitor answers through [`crate::Vcpu::write_io`].
        input: bool,
        /// Data of an OUT.
        data: IoData,
    },
    /// The guest sent an interprocessor interrupt to other vCPUs.
    Interrupt {
        /// One bit for each destination vCPU.
        mask: u64,
        /// Interrupt vector; 2 is the NMI.
        vector: u8,
    },
    /// The guest sent a start-up IPI.
    Startup {
        /// The vCPU to start.
        id: u64,
        /// Guest-physical address of its first instruction, in real mode.
        entry: u64,
    },
}

/// The general-purpose registers of a vCPU that a monitor may read and write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VcpuState {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 … R15: the order of the instruction encoding.
    pub gpr: [u64; 16],
    /// RFLAGS. Writes change only the bits that user code can change.
    pub rflags: u64,
}
