//! vCPUs. A vCPU belongs to the thread that created it, and a thread has at most one.
//!
//! A handle in another process can kick the vCPU and interrupt it, which every thread may. As on Zircon it cannot do what only
//! the vCPU's own thread may: enter it, and read and write its state.

use crate::handle_table::{Held, get, insert};
use crate::object::{Kind, Object};
use crate::remote::{Answer, Connection, Operation, Request};
use crate::rights;
use crate::status::{
    BAD_STATE, INVALID_ARGS, IO_DATA_INTEGRITY, NOT_SUPPORTED, OUT_OF_RANGE, Result, answer, out,
};
use fuchsia_zircon_types::*;
use hypervisor::{Exit, VcpuRemote, VcpuState, VcpuStats};
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

thread_local! {
    static CURRENT: RefCell<Option<Current>> = const { RefCell::new(None) };
}

/// The vCPU of this thread.
struct Current {
    remote: Arc<VcpuRemote>,
    closed: Arc<AtomicBool>,
    vcpu: hypervisor::Vcpu,
}

/// A vCPU as its handles see it.
pub(crate) enum Vcpu {
    Own(OwnVcpu),
    /// One of a thread of another process.
    Remote(Connection),
}

/// A vCPU of a thread of this process. It goes with the last handle to it, in whatever process that is.
pub(crate) struct OwnVcpu {
    remote: Arc<VcpuRemote>,
    /// No handle is left, so that its thread may have another vCPU.
    closed: Arc<AtomicBool>,
}

impl OwnVcpu {
    fn create(guest: &Arc<hypervisor::Guest>, entry: u64) -> Result<OwnVcpu> {
        CURRENT.with_borrow_mut(|current| {
            let in_use = |current: &Option<Current>| {
                current.as_ref().is_some_and(|current| !current.closed.load(Ordering::SeqCst))
            };
            if in_use(current) {
                // The last handle may have gone with its process.
                crate::remote::settle();
                if in_use(current) {
                    return Err(BAD_STATE);
                }
            }
            // The former one goes before the next comes.
            *current = None;
            let vcpu = hypervisor::Vcpu::new(guest, entry)?;
            let (remote, closed) = (vcpu.remote(), Arc::new(AtomicBool::new(false)));
            *current = Some(Current { remote: remote.clone(), closed: closed.clone(), vcpu });
            Ok(OwnVcpu { remote, closed })
        })
    }
}

impl Drop for OwnVcpu {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::SeqCst);
        let own = CURRENT.try_with(|current| match current.try_borrow_mut() {
            Ok(mut current)
                if current.as_ref().is_some_and(|it| Arc::ptr_eq(&it.remote, &self.remote)) =>
            {
                current.take()
            }
            _ => None,
        });
        if !matches!(own, Ok(Some(_))) {
            // Its thread may be in the guest, and nobody could get it out any more.
            self.remote.kick();
        }
    }
}

impl Vcpu {
    /// The way to it, if it is one of another process.
    pub(crate) fn connection(&self) -> Option<&Connection> {
        match self {
            Vcpu::Own(_) => None,
            Vcpu::Remote(connection) => Some(connection),
        }
    }

    pub(crate) fn stats(&self) -> Result<VcpuStats> {
        match self {
            Vcpu::Own(vcpu) => Ok(vcpu.remote.stats()),
            Vcpu::Remote(_) => Err(NOT_SUPPORTED),
        }
    }

    /// Does what a holder in another process asks for.
    pub(crate) fn serve(&self, held: &Held, request: &Request) -> Result<Answer> {
        match request.operation {
            Operation::VcpuKick => self.kick(held)?,
            Operation::VcpuInterrupt => {
                let vector = u32::try_from(request.arguments[0]).map_err(|_| OUT_OF_RANGE)?;
                self.interrupt(held, vector)?;
            }
            _ => return Err(IO_DATA_INTEGRITY),
        }
        Ok(Answer::default())
    }

    fn kick(&self, held: &Held) -> Result<()> {
        held.require(ZX_RIGHT_EXECUTE)?;
        match self {
            Vcpu::Own(vcpu) => vcpu.remote.kick(),
            Vcpu::Remote(connection) => {
                connection.call(&Request::new(Operation::VcpuKick, held.rights), None)?;
            }
        }
        Ok(())
    }

    fn interrupt(&self, held: &Held, vector: u32) -> Result<()> {
        held.require(ZX_RIGHT_SIGNAL)?;
        match self {
            Vcpu::Own(vcpu) => vcpu.remote.interrupt(vector)?,
            Vcpu::Remote(connection) => {
                let mut request = Request::new(Operation::VcpuInterrupt, held.rights);
                request.arguments[0] = vector.into();
                connection.call(&request, None)?;
            }
        }
        Ok(())
    }
}

/// Uses a vCPU, if it is this thread's. Who does so does not keep it: when the last handle is closed meanwhile, the vCPU
/// is kicked.
fn with<T>(held: Held, action: impl FnOnce(&mut hypervisor::Vcpu) -> Result<T>) -> Result<T> {
    CURRENT.with(|current| {
        let mut current = current.try_borrow_mut().map_err(|_| BAD_STATE)?;
        match (&mut *current, held.vcpu()?) {
            (Some(current), Vcpu::Own(vcpu)) if Arc::ptr_eq(&current.remote, &vcpu.remote) => {
                drop(held);
                action(&mut current.vcpu)
            }
            _ => Err(BAD_STATE),
        }
    })
}

/// The packet that Zircon's kernel gives for an exit.
fn packet_of(exit: Exit) -> zx_port_packet_t {
    let mut packet = zx_port_packet_t::default();
    let union = &mut packet.union;
    let mut put =
        |offset: usize, bytes: &[u8]| union[offset..offset + bytes.len()].copy_from_slice(bytes);
    let packet_type = match exit {
        Exit::Mem { addr, cr3, rip, instruction_size, default_operand_size, .. } => {
            put(0, &addr.to_ne_bytes());
            put(8, &cr3.to_ne_bytes());
            put(16, &rip.to_ne_bytes());
            put(24, &[instruction_size, default_operand_size]);
            zx_packet_type_t::ZX_PKT_TYPE_GUEST_MEM
        }
        Exit::Io { port, access_size, input, data, .. } => {
            put(0, &port.to_ne_bytes());
            put(2, &[access_size, input.into()]);
            put(4, &data);
            zx_packet_type_t::ZX_PKT_TYPE_GUEST_IO
        }
        Exit::Interrupt { mask, vector } => {
            put(
                0,
                &(zx_packet_guest_vcpu_type_t::ZX_PKT_GUEST_VCPU_INTERRUPT as u32).to_ne_bytes(),
            );
            put(8, &mask.to_ne_bytes());
            put(16, &[vector]);
            zx_packet_type_t::ZX_PKT_TYPE_GUEST_VCPU
        }
        Exit::Startup { id, entry } => {
            put(0, &(zx_packet_guest_vcpu_type_t::ZX_PKT_GUEST_VCPU_STARTUP as u32).to_ne_bytes());
            put(8, &id.to_ne_bytes());
            put(16, &entry.to_ne_bytes());
            zx_packet_type_t::ZX_PKT_TYPE_GUEST_VCPU
        }
    };
    packet.packet_type = packet_type;
    if let Exit::Mem { key, .. } | Exit::Io { key, .. } = exit {
        packet.key = key;
    }
    packet
}

/// See the Zircon documentation of `zx_vcpu_create`. The first vCPU of a guest is its bootstrap processor.
///
/// # Safety
/// `out_handle` is null or valid for writing.
pub unsafe fn zx_vcpu_create(
    guest: zx_handle_t,
    options: u32,
    entry: zx_vaddr_t,
    out_handle: *mut zx_handle_t,
) -> zx_status_t {
    answer((|| {
        // SAFETY: the caller's promise.
        let out_handle = unsafe { out(out_handle)? };
        if options != 0 {
            return Err(INVALID_ARGS);
        }
        let held = get(guest)?;
        let guest = held.guest()?;
        held.require(ZX_RIGHT_MANAGE_PROCESS)?;
        let vcpu = OwnVcpu::create(guest.own()?, entry as u64)?;
        out_handle.set(insert(Object::new(Kind::Vcpu(Vcpu::Own(vcpu))), rights::VCPU)?);
        Ok(())
    })())
}

/// See the Zircon documentation of `zx_vcpu_enter`. `ZX_ERR_INTERNAL` after a triple fault of the guest.
///
/// # Safety
/// `packet` is null or valid for writing a packet.
pub unsafe fn zx_vcpu_enter(handle: zx_handle_t, packet: *mut zx_port_packet_t) -> zx_status_t {
    answer((|| {
        // SAFETY: the caller's promise.
        let packet = unsafe { out(packet)? };
        let held = get(handle)?;
        held.vcpu()?;
        held.require(ZX_RIGHT_EXECUTE)?;
        packet.set(packet_of(with(held, |vcpu| Ok(vcpu.enter()?))?));
        Ok(())
    })())
}

/// See the Zircon documentation of `zx_vcpu_kick`. `ZX_ERR_BAD_STATE` if the vCPU's process is gone, where Zircon has nothing
/// to say.
///
/// # Safety
/// Always safe; unsafe to have the vDSO's signature.
pub unsafe fn zx_vcpu_kick(handle: zx_handle_t) -> zx_status_t {
    answer((|| {
        let held = get(handle)?;
        held.vcpu()?.kick(&held)
    })())
}

/// See the Zircon documentation of `zx_vcpu_interrupt`, and [`zx_vcpu_kick`].
///
/// # Safety
/// Always safe; unsafe to have the vDSO's signature.
pub unsafe fn zx_vcpu_interrupt(handle: zx_handle_t, vector: u32) -> zx_status_t {
    answer((|| {
        let held = get(handle)?;
        held.vcpu()?.interrupt(&held, vector)
    })())
}

fn state_to_zircon(state: &VcpuState) -> zx_vcpu_state_t {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = state.gpr;
    let rflags = state.rflags;
    zx_vcpu_state_t {
        rax,
        rcx,
        rdx,
        rbx,
        rsp,
        rbp,
        rsi,
        rdi,
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rflags,
    }
}

fn state_from_zircon(state: &zx_vcpu_state_t) -> VcpuState {
    let s = state;
    let gpr = [
        s.rax, s.rcx, s.rdx, s.rbx, s.rsp, s.rbp, s.rsi, s.rdi, s.r8, s.r9, s.r10, s.r11, s.r12,
        s.r13, s.r14, s.r15,
    ];
    VcpuState { gpr, rflags: s.rflags }
}

/// See the Zircon documentation of `zx_vcpu_read_state`.
///
/// # Safety
/// `buffer` is valid for writing `buffer_size` bytes.
pub unsafe fn zx_vcpu_read_state(
    handle: zx_handle_t,
    kind: u32,
    buffer: *mut u8,
    buffer_size: usize,
) -> zx_status_t {
    answer((|| {
        let held = get(handle)?;
        held.vcpu()?;
        held.require(ZX_RIGHT_READ)?;
        if kind != ZX_VCPU_STATE || buffer_size != size_of::<zx_vcpu_state_t>() || buffer.is_null()
        {
            return Err(INVALID_ARGS);
        }
        let state = with(held, |vcpu| Ok(state_to_zircon(&vcpu.read_state())))?;
        // SAFETY: the caller's promise; the size is the record's.
        unsafe { buffer.cast::<zx_vcpu_state_t>().write_unaligned(state) };
        Ok(())
    })())
}

/// See the Zircon documentation of `zx_vcpu_write_state`.
///
/// # Safety
/// `buffer` is valid for reading `buffer_size` bytes.
pub unsafe fn zx_vcpu_write_state(
    handle: zx_handle_t,
    kind: u32,
    buffer: *const u8,
    buffer_size: usize,
) -> zx_status_t {
    answer((|| {
        let held = get(handle)?;
        held.vcpu()?;
        held.require(ZX_RIGHT_WRITE)?;
        match kind {
            ZX_VCPU_STATE if buffer_size == size_of::<zx_vcpu_state_t>() && !buffer.is_null() => {
                // SAFETY: the caller's promise; any bytes are a valid record.
                let state = unsafe { buffer.cast::<zx_vcpu_state_t>().read_unaligned() };
                with(held, |vcpu| {
                    vcpu.write_state(&state_from_zircon(&state));
                    Ok(())
                })
            }
            ZX_VCPU_IO if buffer_size == size_of::<zx_vcpu_io_t>() && !buffer.is_null() => {
                // SAFETY: the caller's promise; any bytes are a valid record.
                let io = unsafe { buffer.cast::<zx_vcpu_io_t>().read_unaligned() };
                with(held, |vcpu| Ok(vcpu.write_io(io.access_size, io.data)?))
            }
            _ => Err(INVALID_ARGS),
        }
    })())
}
