//! vCPUs. A vCPU belongs to the thread that created it, and a thread has at most one.

use crate::handle_table::{get, insert};
use crate::object::{Kind, Object};
use crate::rights;
use crate::status::{BAD_STATE, INVALID_ARGS, Result, answer, out};
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
pub(crate) struct Vcpu {
    remote: Arc<VcpuRemote>,
    /// The last handle is closed, so that its thread may have another vCPU.
    closed: Arc<AtomicBool>,
}

impl Vcpu {
    fn create(guest: &Arc<hypervisor::Guest>, entry: u64) -> Result<Vcpu> {
        CURRENT.with_borrow_mut(|current| {
            if current.as_ref().is_some_and(|current| !current.closed.load(Ordering::SeqCst)) {
                return Err(BAD_STATE);
            }
            // The former one goes before the next comes.
            *current = None;
            let vcpu = hypervisor::Vcpu::new(guest, entry)?;
            let (remote, closed) = (vcpu.remote(), Arc::new(AtomicBool::new(false)));
            *current = Some(Current { remote: remote.clone(), closed: closed.clone(), vcpu });
            Ok(Vcpu { remote, closed })
        })
    }

    /// Uses the vCPU, if it is this thread's.
    fn with<T>(&self, action: impl FnOnce(&mut hypervisor::Vcpu) -> Result<T>) -> Result<T> {
        CURRENT.with(|current| {
            let mut current = current.try_borrow_mut().map_err(|_| BAD_STATE)?;
            match &mut *current {
                Some(current) if Arc::ptr_eq(&current.remote, &self.remote) => {
                    action(&mut current.vcpu)
                }
                _ => Err(BAD_STATE),
            }
        })
    }

    pub(crate) fn stats(&self) -> VcpuStats {
        self.remote.stats()
    }

    /// The last handle was closed.
    pub(crate) fn retire(&self) {
        self.closed.store(true, Ordering::SeqCst);
        let own = CURRENT.with(|current| match current.try_borrow_mut() {
            Ok(mut current)
                if current.as_ref().is_some_and(|it| Arc::ptr_eq(&it.remote, &self.remote)) =>
            {
                current.take()
            }
            _ => None,
        });
        if own.is_none() {
            // Its thread may be in the guest, and nobody could get it out any more.
            self.remote.kick();
        }
    }
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
        let vcpu = Vcpu::create(guest.own()?, entry as u64)?;
        out_handle.set(insert(Object::new(Kind::Vcpu(vcpu)), rights::VCPU)?);
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
        let vcpu = held.vcpu()?;
        held.require(ZX_RIGHT_EXECUTE)?;
        packet.set(packet_of(vcpu.with(|vcpu| Ok(vcpu.enter()?))?));
        Ok(())
    })())
}

/// See the Zircon documentation of `zx_vcpu_kick`.
///
/// # Safety
/// Always safe; unsafe to have the vDSO's signature.
pub unsafe fn zx_vcpu_kick(handle: zx_handle_t) -> zx_status_t {
    answer((|| {
        let held = get(handle)?;
        let vcpu = held.vcpu()?;
        held.require(ZX_RIGHT_EXECUTE)?;
        vcpu.remote.kick();
        Ok(())
    })())
}

/// See the Zircon documentation of `zx_vcpu_interrupt`.
///
/// # Safety
/// Always safe; unsafe to have the vDSO's signature.
pub unsafe fn zx_vcpu_interrupt(handle: zx_handle_t, vector: u32) -> zx_status_t {
    answer((|| {
        let held = get(handle)?;
        let vcpu = held.vcpu()?;
        held.require(ZX_RIGHT_SIGNAL)?;
        Ok(vcpu.remote.interrupt(vector)?)
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
        let vcpu = held.vcpu()?;
        held.require(ZX_RIGHT_READ)?;
        if kind != ZX_VCPU_STATE || buffer_size != size_of::<zx_vcpu_state_t>() || buffer.is_null()
        {
            return Err(INVALID_ARGS);
        }
        let state = vcpu.with(|vcpu| Ok(state_to_zircon(&vcpu.read_state())))?;
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
        let vcpu = held.vcpu()?;
        held.require(ZX_RIGHT_WRITE)?;
        match kind {
            ZX_VCPU_STATE if buffer_size == size_of::<zx_vcpu_state_t>() && !buffer.is_null() => {
                // SAFETY: the caller's promise; any bytes are a valid record.
                let state = unsafe { buffer.cast::<zx_vcpu_state_t>().read_unaligned() };
                vcpu.with(|vcpu| {
                    vcpu.write_state(&state_from_zircon(&state));
                    Ok(())
                })
            }
            ZX_VCPU_IO if buffer_size == size_of::<zx_vcpu_io_t>() && !buffer.is_null() => {
                // SAFETY: the caller's promise; any bytes are a valid record.
                let io = unsafe { buffer.cast::<zx_vcpu_io_t>().read_unaligned() };
                vcpu.with(|vcpu| Ok(vcpu.write_io(io.access_size, io.data)?))
            }
            _ => Err(INVALID_ARGS),
        }
    })())
}
