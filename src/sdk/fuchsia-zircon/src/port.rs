use crate::handle::impl_handle_based;
use crate::{AsHandleRef, Handle, Signals, Status, Time, ok, sys};
use bitflags::bitflags;

/// A queue of packets that the kernel and user code put in.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Port(Handle);
impl_handle_based!(Port);

bitflags! {
    /// How an asynchronous wait is made.
    #[repr(transparent)]
    #[derive(Debug, Copy, Clone, PartialEq, Eq)]
    pub struct WaitAsyncOpts: u32 {
        /// Only when a signal becomes set, not when it already is.
        const EDGE_TRIGGERED = sys::ZX_WAIT_ASYNC_EDGE;
        /// With the time of the signal in the packet.
        const TIMESTAMP = sys::ZX_WAIT_ASYNC_TIMESTAMP;
    }
}

/// A packet of a port or of a vCPU.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
#[repr(transparent)]
pub struct Packet(sys::zx_port_packet_t);

/// What a packet carries.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PacketContents {
    /// From [`Port::queue`].
    User(UserPacket),
    /// From an asynchronous wait.
    SignalOne(SignalPacket),
    /// From a bell trap.
    GuestBell(GuestBellPacket),
    /// From a memory trap.
    GuestMem(GuestMemPacket),
    /// From an I/O port trap.
    GuestIo(GuestIoPacket),
    /// From a vCPU that wants another to be interrupted or started.
    GuestVcpu(GuestVcpuPacket),
    /// Of a type that this crate does not know.
    Unknown,
}

/// Thirty-two bytes for the user.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct UserPacket([u8; 32]);

impl UserPacket {
    /// A packet with these bytes.
    #[must_use]
    pub const fn from_u8_array(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The packet's bytes.
    #[must_use]
    pub const fn as_u8_array(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Which signals ended an asynchronous wait.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct SignalPacket {
    trigger: Signals,
    observed: Signals,
    count: u64,
}

impl SignalPacket {
    /// The signals that were waited for.
    #[must_use]
    pub const fn trigger(&self) -> Signals {
        self.trigger
    }

    /// The signals that were set.
    #[must_use]
    pub const fn observed(&self) -> Signals {
        self.observed
    }

    /// How many things happened, at least.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }
}

/// A guest wrote to a bell trap.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct GuestBellPacket {
    /// The guest-physical address that was written to.
    pub addr: u64,
}

/// A guest touched a memory trap.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum GuestMemPacket {
    /// As x86-64 kernels report it: the VMM decodes the instruction.
    X64 {
        /// The guest-physical address.
        addr: u64,
        /// The guest's CR3, to find the instruction.
        cr3: u64,
        /// The instruction's linear address.
        rip: u64,
        /// Its length in bytes, 0 where the kernel does not know it.
        instruction_size: u8,
        /// 2 or 4: the operand size without prefixes.
        default_operand_size: u8,
    },
    /// As arm64 kernels report it, decoded.
    Arm64 {
        /// The guest-physical address.
        addr: u64,
        /// The access' width in bytes.
        access_size: u8,
        /// Whether a load extends the sign.
        sign_extend: bool,
        /// The register's number.
        xt: u8,
        /// Whether it is a load.
        read: bool,
        /// What is stored.
        data: u64,
    },
}

impl GuestMemPacket {
    /// The guest-physical address.
    #[must_use]
    pub const fn addr(&self) -> u64 {
        match self {
            Self::X64 { addr, .. } | Self::Arm64 { addr, .. } => *addr,
        }
    }
}

/// A guest touched an I/O port trap.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub struct GuestIoPacket {
    /// The port.
    pub port: u16,
    /// The width in bytes: 1, 2 or 4.
    pub access_size: u8,
    /// Whether the guest reads; the answer goes through [`crate::Vcpu::write_io`].
    pub input: bool,
    /// What the guest writes, little endian.
    pub data: [u8; 4],
}

/// A guest's vCPU asks for something to be done to others.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
pub enum GuestVcpuPacket {
    /// Interrupt vCPUs.
    Interrupt {
        /// A bit for each vCPU.
        mask: u64,
        /// The vector.
        vector: u8,
    },
    /// Start a vCPU.
    Startup {
        /// Which one.
        id: u64,
        /// Its first instruction's guest-physical address.
        entry: u64,
    },
}

impl Packet {
    /// A packet for [`Port::queue`].
    #[must_use]
    pub fn from_user_packet(key: u64, status: i32, user: UserPacket) -> Packet {
        Packet(sys::zx_port_packet_t {
            key,
            packet_type: sys::zx_packet_type_t::ZX_PKT_TYPE_USER,
            status,
            union: user.0,
        })
    }

    /// The key of the wait, trap or user packet.
    #[must_use]
    pub const fn key(&self) -> u64 {
        self.0.key
    }

    /// The user's status, otherwise zero.
    #[must_use]
    pub const fn status(&self) -> i32 {
        self.0.status
    }

    /// What the packet carries.
    #[must_use]
    pub fn contents(&self) -> PacketContents {
        use sys::zx_packet_type_t as Type;
        let bytes = Fields(&self.0.union);
        match self.0.packet_type {
            Type::ZX_PKT_TYPE_USER => PacketContents::User(UserPacket(self.0.union)),
            Type::ZX_PKT_TYPE_SIGNAL_ONE => PacketContents::SignalOne(SignalPacket {
                trigger: Signals::from_raw(bytes.u32(0)),
                observed: Signals::from_raw(bytes.u32(4)),
                count: bytes.u64(8),
            }),
            Type::ZX_PKT_TYPE_GUEST_BELL => {
                PacketContents::GuestBell(GuestBellPacket { addr: bytes.u64(0) })
            }
            Type::ZX_PKT_TYPE_GUEST_MEM => PacketContents::GuestMem(bytes.guest_mem()),
            Type::ZX_PKT_TYPE_GUEST_IO => PacketContents::GuestIo(GuestIoPacket {
                port: bytes.u16(0),
                access_size: bytes.u8(2),
                input: bytes.u8(3) != 0,
                data: bytes.u32(4).to_le_bytes(),
            }),
            Type::ZX_PKT_TYPE_GUEST_VCPU => bytes.guest_vcpu(),
            _ => PacketContents::Unknown,
        }
    }
}

/// A packet's payload, read by offset (zircon/syscalls/port.h).
struct Fields<'a>(&'a [u8; 32]);

impl Fields<'_> {
    fn array<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut array = [0; N];
        array.copy_from_slice(&self.0[offset..offset + N]);
        array
    }

    fn u8(&self, offset: usize) -> u8 {
        self.0[offset]
    }

    fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.array(offset))
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.array(offset))
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.array(offset))
    }

    /// The layout is the host's, because a guest has the host's architecture.
    fn guest_mem(&self) -> GuestMemPacket {
        if cfg!(target_arch = "aarch64") {
            GuestMemPacket::Arm64 {
                addr: self.u64(0),
                access_size: self.u8(8),
                sign_extend: self.u8(9) != 0,
                xt: self.u8(10),
                read: self.u8(11) != 0,
                data: self.u64(16),
            }
        } else {
            GuestMemPacket::X64 {
                addr: self.u64(0),
                cr3: self.u64(8),
                rip: self.u64(16),
                instruction_size: self.u8(24),
                default_operand_size: self.u8(25),
            }
        }
    }

    fn guest_vcpu(&self) -> PacketContents {
        use sys::zx_packet_guest_vcpu_type_t as Type;
        const INTERRUPT: u32 = Type::ZX_PKT_GUEST_VCPU_INTERRUPT as u32;
        const STARTUP: u32 = Type::ZX_PKT_GUEST_VCPU_STARTUP as u32;
        match self.u32(0) {
            INTERRUPT => PacketContents::GuestVcpu(GuestVcpuPacket::Interrupt {
                mask: self.u64(8),
                vector: self.u8(16),
            }),
            STARTUP => PacketContents::GuestVcpu(GuestVcpuPacket::Startup {
                id: self.u64(8),
                entry: self.u64(16),
            }),
            _ => PacketContents::Unknown,
        }
    }
}

impl Port {
    /// A new port.
    ///
    /// # Panics
    /// When the process has no more handles or memory, as on Fuchsia.
    #[must_use]
    pub fn create() -> Port {
        let mut out = 0;
        // SAFETY: the result has a valid place.
        ok(unsafe { sys::zx_port_create(0, &raw mut out) }).expect("zx_port_create");
        // SAFETY: the call gave us the handle.
        Port(unsafe { Handle::from_raw(out) })
    }

    /// Puts a user packet in.
    ///
    /// # Errors
    /// `SHOULD_WAIT` when the queue is full.
    pub fn queue(&self, packet: &Packet) -> Result<(), Status> {
        // SAFETY: the packet is valid for reading.
        ok(unsafe { sys::zx_port_queue(self.raw_handle(), &raw const packet.0) })
    }

    /// Takes the next packet out.
    ///
    /// # Errors
    /// `TIMED_OUT` after `deadline`.
    #[inline(never)]
    pub fn wait(&self, deadline: Time) -> Result<Packet, Status> {
        // The packet is written into the result itself, which the caller has made room for: hence also not inlined.
        let mut result = Ok(Packet(sys::zx_port_packet_t::default()));
        if let Ok(Packet(packet)) = &mut result {
            // SAFETY: the packet has a valid place.
            let status =
                unsafe { sys::zx_port_wait(self.raw_handle(), deadline.into_nanos(), packet) };
            if let Err(status) = ok(status) {
                result = Err(status);
            }
        }
        result
    }

    /// Withdraws the asynchronous waits of `source` with this key, and their packets.
    ///
    /// # Errors
    /// `NOT_FOUND` when there is none.
    pub fn cancel<H: AsHandleRef>(&self, source: &H, key: u64) -> Result<(), Status> {
        // SAFETY: the call takes numbers only.
        ok(unsafe { sys::zx_port_cancel(self.raw_handle(), source.raw_handle(), key) })
    }
}

impl Packet {
    pub(crate) fn from_raw(raw: sys::zx_port_packet_t) -> Self {
        Packet(raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Channel, Duration, Event};

    #[test]
    fn user_packets_arrive_in_order() {
        let port = Port::create();
        assert_eq!(port.wait(Time::INFINITE_PAST), Err(Status::TIMED_OUT));
        for key in [3, 1] {
            let packet = Packet::from_user_packet(key, 9, UserPacket::from_u8_array([5; 32]));
            port.queue(&packet).unwrap();
        }
        let packet = port.wait(Time::INFINITE).unwrap();
        assert_eq!((packet.key(), packet.status()), (3, 9));
        assert_eq!(packet.contents(), PacketContents::User(UserPacket([5; 32])));
        assert_eq!(port.wait(Time::INFINITE).unwrap().key(), 1);
    }

    #[test]
    fn a_wait_gives_one_packet_and_can_be_canceled() {
        let port = Port::create();
        let (left, right) = Channel::create();
        let wait = |key| {
            left.wait_async_handle(&port, key, Signals::CHANNEL_READABLE, WaitAsyncOpts::empty())
        };
        wait(7).unwrap();
        right.write(b"x", &mut []).unwrap();
        let packet = port.wait(Time::after(Duration::from_seconds(30))).unwrap();
        assert_eq!(packet.key(), 7);
        let PacketContents::SignalOne(signal) = packet.contents() else { panic!("{packet:?}") };
        assert!(signal.observed().contains(Signals::CHANNEL_READABLE));
        assert_eq!(port.wait(Time::INFINITE_PAST), Err(Status::TIMED_OUT));
        wait(8).unwrap();
        port.cancel(&left, 8).unwrap();
        assert_eq!(port.wait(Time::INFINITE_PAST), Err(Status::TIMED_OUT));
    }

    #[test]
    fn a_signaled_event_wakes_a_port() {
        let port = Port::create();
        let event = Event::create();
        event.wait_async_handle(&port, 1, Signals::USER_1, WaitAsyncOpts::empty()).unwrap();
        event.signal_handle(Signals::NONE, Signals::USER_1).unwrap();
        assert_eq!(port.wait(Time::after(Duration::from_seconds(30))).unwrap().key(), 1);
    }
}
