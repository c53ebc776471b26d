//! Virtual memory objects: memfds, or files of the host.
//!
//! The size of a VMO that cannot be resized is sealed into its memfd, so no process can pull mapped pages away from under
//! another. A slice is a range of its parent's file; a snapshot is a copy.

use crate::handle_table::{Held, get, insert};
use crate::object::{Kind, Object};
use crate::rights;
use crate::status::{
    ACCESS_DENIED, BAD_STATE, INVALID_ARGS, IO_DATA_INTEGRITY, NOT_SUPPORTED, OUT_OF_RANGE, Result,
    answer, buffer, bytes, out,
};
use crate::system::{page_size, round_up_to_page};
use fuchsia_zircon_types::*;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{
    FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, fcntl_get_seals, fstat,
    ftruncate, memfd_create,
};
use rustix::io::{Errno, pread, pwrite};
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const RESIZABLE: u32 = 1;
const HOST_FILE: u32 = 2;
const CHILD: u32 = 4;
/// `ZX_VMO_UNBOUNDED`: as large as a VMO can be.
const UNBOUNDED: u32 = 1;
/// Largest VMO, in bytes: what a memfd can be.
const MAX_SIZE: u64 = (i64::MAX as u64) & !0x1f_ffff;

/// A virtual memory object.
pub(crate) struct Vmo {
    fd: OwnedFd,
    /// Where it begins in the file.
    offset: u64,
    /// `None` for a VMO that is the whole of a file whose size can change.
    size: Option<u64>,
    resizable: bool,
    host_file: bool,
    child: bool,
    /// Whether the seals on the size were looked at.
    sealed: AtomicBool,
    /// `ZX_PROP_VMO_CONTENT_SIZE`; travels by value.
    content_size: AtomicU64,
    /// One reference for the VMO and one for each child in this process.
    children: Arc<()>,
    _parent: Option<Arc<()>>,
}

impl Vmo {
    fn with_file(fd: OwnedFd, offset: u64, size: Option<u64>, content_size: u64) -> Vmo {
        Vmo {
            fd,
            offset,
            size,
            resizable: false,
            host_file: false,
            child: false,
            sealed: AtomicBool::new(false),
            content_size: AtomicU64::new(content_size),
            children: Arc::new(()),
            _parent: None,
        }
    }

    pub(crate) fn new(size: u64, resizable: bool) -> Result<Vmo> {
        let rounded = round_up_to_page(size)?;
        let fd = memfd_create("zx_vmo", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        ftruncate(&fd, rounded)?;
        if resizable {
            return Ok(Vmo { resizable, ..Self::with_file(fd, 0, None, size) });
        }
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(Self::with_file(fd, 0, Some(rounded), size))
    }

    /// A VMO over a file of the host; its size is the file's, not rounded.
    pub(crate) fn from_host_file(fd: OwnedFd) -> Result<Vmo> {
        let size = u64::try_from(fstat(&fd)?.st_size).map_err(|_| OUT_OF_RANGE)?;
        Ok(Vmo { host_file: true, ..Self::with_file(fd, 0, None, size) })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Where the VMO begins in its file, in bytes.
    pub(crate) fn file_offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn to_wire(&self) -> ([u64; 3], u32) {
        let mut flags = 0;
        for (flag, on) in
            [(RESIZABLE, self.resizable), (HOST_FILE, self.host_file), (CHILD, self.child)]
        {
            flags |= if on { flag } else { 0 };
        }
        ([self.offset, self.size.unwrap_or(0), self.content_size()], flags)
    }

    pub(crate) fn from_wire(fd: OwnedFd, extra: [u64; 3], flags: u32) -> Result<Vmo> {
        let whole = flags & (RESIZABLE | HOST_FILE) != 0;
        let [offset, size, content_size] = extra;
        offset.checked_add(size).filter(|&end| end <= i64::MAX as u64).ok_or(IO_DATA_INTEGRITY)?;
        let mut vmo = Self::with_file(fd, offset, (!whole).then_some(size), content_size);
        vmo.resizable = flags & RESIZABLE != 0;
        vmo.host_file = flags & HOST_FILE != 0;
        vmo.child = flags & CHILD != 0;
        Ok(vmo)
    }

    /// Size in bytes.
    pub(crate) fn size(&self) -> Result<u64> {
        match self.size {
            Some(size) => Ok(size),
            None => Ok(u64::try_from(fstat(&self.fd)?.st_size).unwrap_or(0)),
        }
    }

    pub(crate) fn content_size(&self) -> u64 {
        self.content_size.load(Ordering::SeqCst)
    }

    /// Sets the content size, in bytes, and clears what lies behind it.
    pub(crate) fn set_content_size(&self, content_size: u64) -> Result<()> {
        let size = self.size()?;
        if content_size > size {
            return Err(OUT_OF_RANGE);
        }
        let old = self.content_size.swap(content_size, Ordering::SeqCst);
        if content_size < old {
            self.zero(content_size, size - content_size)?;
        }
        Ok(())
    }

    /// `ZX_VMO_ZERO_CHILDREN`, as far as this process knows.
    pub(crate) fn signals(&self) -> zx_signals_t {
        if Arc::strong_count(&self.children) == 1 { ZX_VMO_ZERO_CHILDREN } else { 0 }
    }

    pub(crate) fn num_children(&self) -> usize {
        Arc::strong_count(&self.children) - 1
    }

    pub(crate) fn info_flags(&self) -> u32 {
        let mut flags = 0;
        flags |= if self.resizable { ZX_INFO_VMO_RESIZABLE } else { 0 };
        flags
    }

    /// Checks that nobody can take pages away from under a mapping of a VMO that is said to have a fixed size.
    ///
    /// Errors: `ZX_ERR_IO_DATA_INTEGRITY` when the sender of the VMO did not seal it, `ZX_ERR_NOT_SUPPORTED` when the
    /// size can change and the caller does not want that.
    pub(crate) fn check_mappable(&self, require_non_resizable: bool) -> Result<()> {
        if self.size.is_none() {
            return if require_non_resizable { Err(NOT_SUPPORTED) } else { Ok(()) };
        }
        if self.sealed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let sealed = fcntl_get_seals(&self.fd).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
        let end = self.offset.saturating_add(self.size.unwrap_or(0));
        if !sealed || u64::try_from(fstat(&self.fd)?.st_size).unwrap_or(0) < end {
            return Err(IO_DATA_INTEGRITY);
        }
        self.sealed.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Bytes that take memory or disk.
    pub(crate) fn committed_bytes(&self) -> u64 {
        fstat(&self.fd).map_or(0, |stat| u64::try_from(stat.st_blocks).unwrap_or(0) * 512)
    }

    /// Checks a range and gives its position in the file.
    pub(crate) fn range(&self, offset: u64, len: u64) -> Result<u64> {
        let end = offset.checked_add(len).ok_or(OUT_OF_RANGE)?;
        if end > self.size()? {
            return Err(OUT_OF_RANGE);
        }
        self.offset.checked_add(offset).ok_or(OUT_OF_RANGE)
    }

    fn read(&self, buffer: &mut [MaybeUninit<u8>], offset: u64) -> Result<()> {
        let mut at = self.range(offset, buffer.len() as u64)?;
        let mut rest = buffer;
        while !rest.is_empty() {
            match pread(&self.fd, &mut *rest, at) {
                // Shorter than it was a moment ago.
                Ok(([], _)) => return Err(OUT_OF_RANGE),
                Ok((read, _)) => {
                    let count = read.len();
                    at += count as u64;
                    rest = &mut rest[count..];
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn write(&self, data: &[u8], offset: u64) -> Result<()> {
        let mut at = self.range(offset, data.len() as u64)?;
        let mut rest = data;
        while !rest.is_empty() {
            match pwrite(&self.fd, rest, at) {
                Ok(0) => return Err(OUT_OF_RANGE),
                Ok(count) => {
                    at += count as u64;
                    rest = &rest[count..];
                }
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn set_size(&self, size: u64) -> Result<()> {
        if !self.resizable {
            return Err(crate::status::Status(ZX_ERR_UNAVAILABLE));
        }
        ftruncate(&self.fd, round_up_to_page(size)?)?;
        self.content_size.store(size, Ordering::SeqCst);
        Ok(())
    }

    /// Makes a range read as zeros and gives its whole pages back.
    fn zero(&self, offset: u64, len: u64) -> Result<()> {
        let at = self.range(offset, len)?;
        if len == 0 {
            return Ok(());
        }
        match fallocate(&self.fd, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, at, len) {
            Err(Errno::OPNOTSUPP) => self.write_zeros(at, len),
            other => Ok(other?),
        }
    }

    /// For file systems that cannot punch holes.
    fn write_zeros(&self, mut at: u64, mut len: u64) -> Result<()> {
        let zeros = [0; 64 << 10];
        while len > 0 {
            let part = len.min(zeros.len() as u64);
            let written = pwrite(&self.fd, &zeros[..part as usize], at)? as u64;
            at += written;
            len -= written;
        }
        Ok(())
    }

    fn op_range(&self, op: u32, offset: u64, len: u64, rights: zx_rights_t) -> Result<()> {
        let page = page_size() as u64;
        let aligned = offset.is_multiple_of(page) && len.is_multiple_of(page);
        match op {
            ZX_VMO_OP_COMMIT | ZX_VMO_OP_DECOMMIT | ZX_VMO_OP_ZERO
                if rights & ZX_RIGHT_WRITE == 0 =>
            {
                Err(ACCESS_DENIED)
            }
            ZX_VMO_OP_ZERO => self.zero(offset, len),
            ZX_VMO_OP_DECOMMIT if !aligned => Err(INVALID_ARGS),
            ZX_VMO_OP_DECOMMIT => self.zero(offset, len),
            ZX_VMO_OP_COMMIT => {
                let at = self.range(offset, len)?;
                if len > 0 {
                    fallocate(&self.fd, FallocateFlags::KEEP_SIZE, at, len)?;
                }
                Ok(())
            }
            // Coherent by nature on this machine, and hints that need no answer.
            ZX_VMO_OP_CACHE_SYNC
            | ZX_VMO_OP_CACHE_CLEAN
            | ZX_VMO_OP_CACHE_INVALIDATE
            | ZX_VMO_OP_CACHE_CLEAN_INVALIDATE => {
                if len == 0 {
                    return Err(INVALID_ARGS);
                }
                self.range(offset, len).map(drop)
            }
            ZX_VMO_OP_DONT_NEED | ZX_VMO_OP_ALWAYS_NEED => self.range(offset, len).map(drop),
            // Only for discardable VMOs, which do not exist here.
            ZX_VMO_OP_LOCK | ZX_VMO_OP_TRY_LOCK | ZX_VMO_OP_UNLOCK => Err(NOT_SUPPORTED),
            _ => Err(INVALID_ARGS),
        }
    }

    /// A child that shares this VMO's pages in a range.
    fn slice(&self, offset: u64, size: u64) -> Result<Vmo> {
        let page = page_size() as u64;
        if !offset.is_multiple_of(page) || !size.is_multiple_of(page) {
            return Err(INVALID_ARGS);
        }
        let at = self.range(offset, size)?;
        let fd = rustix::io::fcntl_dupfd_cloexec(&self.fd, 3)?;
        Ok(Vmo {
            child: true,
            _parent: Some(self.children.clone()),
            ..Self::with_file(fd, at, Some(size), size)
        })
    }

    /// The same VMO again.
    fn reference(&self) -> Result<Vmo> {
        let fd = rustix::io::fcntl_dupfd_cloexec(&self.fd, 3)?;
        Ok(Vmo {
            child: true,
            resizable: self.resizable,
            host_file: self.host_file,
            _parent: Some(self.children.clone()),
            ..Self::with_file(fd, self.offset, self.size, self.content_size())
        })
    }

    /// A copy of a range. What lies behind the end of this VMO is zeros.
    fn copy(&self, offset: u64, size: u64, resizable: bool) -> Result<Vmo> {
        let child = Vmo::new(size, resizable)?;
        let end = self.size()?.min(offset.saturating_add(size));
        let mut at = offset;
        let mut chunk = vec![MaybeUninit::uninit(); 1 << 20];
        while at < end {
            let part = (end - at).min(chunk.len() as u64) as usize;
            let file_at = self.offset + at;
            // Holes stay holes.
            match rustix::fs::seek(&self.fd, rustix::fs::SeekFrom::Data(file_at)) {
                Ok(data) if data >= file_at + part as u64 => {
                    at += part as u64;
                    continue;
                }
                Err(Errno::NXIO) => break,
                _ => {}
            }
            self.read(&mut chunk[..part], at)?;
            // SAFETY: `read` filled the part.
            let bytes = unsafe { std::slice::from_raw_parts(chunk.as_ptr().cast(), part) };
            child.write(bytes, at - offset)?;
            at += part as u64;
        }
        Ok(Vmo { child: true, _parent: Some(self.children.clone()), ..child })
    }
}

/// `zx_vmo_create_child`, after the handle's checks.
fn create_child(held: &Held, options: u32, offset: u64, size: u64) -> Result<(Vmo, zx_rights_t)> {
    const SNAPSHOTS: u32 =
        ZX_VMO_CHILD_SNAPSHOT | ZX_VMO_CHILD_SNAPSHOT_AT_LEAST_ON_WRITE | SNAPSHOT_MODIFIED;
    /// `ZX_VMO_CHILD_SNAPSHOT_MODIFIED`.
    const SNAPSHOT_MODIFIED: u32 = 1 << 8;
    let vmo = held.vmo()?;
    held.require(ZX_RIGHT_DUPLICATE | ZX_RIGHT_READ)?;
    let modifiers = ZX_VMO_CHILD_RESIZABLE | ZX_VMO_CHILD_NO_WRITE;
    let kind = options & !modifiers;
    let resizable = options & ZX_VMO_CHILD_RESIZABLE != 0;
    let no_write = options & ZX_VMO_CHILD_NO_WRITE != 0;
    let mut rights = held.rights;
    let child = match kind {
        ZX_VMO_CHILD_SLICE if resizable => return Err(INVALID_ARGS),
        ZX_VMO_CHILD_SLICE if vmo.resizable => return Err(NOT_SUPPORTED),
        ZX_VMO_CHILD_SLICE => vmo.slice(offset, round_up_to_page(size)?)?,
        ZX_VMO_CHILD_REFERENCE if offset != 0 || size != 0 => return Err(INVALID_ARGS),
        ZX_VMO_CHILD_REFERENCE => vmo.reference()?,
        _ if kind != 0 && kind & !SNAPSHOTS == 0 && kind.is_power_of_two() => {
            if !offset.is_multiple_of(page_size() as u64) {
                return Err(INVALID_ARGS);
            }
            if !no_write {
                rights |= ZX_RIGHT_WRITE;
            }
            rights &= !ZX_RIGHT_EXECUTE;
            vmo.copy(offset, size, resizable)?
        }
        _ => return Err(INVALID_ARGS),
    };
    if no_write {
        rights &= !ZX_RIGHT_WRITE;
    }
    if child.resizable {
        rights |= ZX_RIGHT_RESIZE;
    }
    Ok((child, rights | ZX_RIGHT_GET_PROPERTY | ZX_RIGHT_SET_PROPERTY))
}

/// See the Zircon documentation of `zx_vmo_create`. Discardable VMOs and those that trap dirty pages are not supported.
///
/// # Safety
/// `out_handle` is null or valid for writing.
pub unsafe fn zx_vmo_create(size: u64, options: u32, out_handle: *mut zx_handle_t) -> zx_status_t {
    answer((|| {
        // SAFETY: the caller's promise.
        let out_handle = unsafe { out(out_handle)? };
        match options {
            0 | ZX_VMO_RESIZABLE | UNBOUNDED => {}
            ZX_VMO_DISCARDABLE | ZX_VMO_TRAP_DIRTY => return Err(NOT_SUPPORTED),
            _ => return Err(INVALID_ARGS),
        }
        let size = if options == UNBOUNDED { MAX_SIZE } else { size };
        let resizable = options == ZX_VMO_RESIZABLE;
        let rights = rights::VMO | if resizable { ZX_RIGHT_RESIZE } else { 0 };
        out_handle.set(insert(Object::new(Kind::Vmo(Vmo::new(size, resizable)?)), rights)?);
        Ok(())
    })())
}

/// See the Zircon documentation of `zx_vmo_read`.
///
/// # Safety
/// `read_buffer` is valid for writing `buffer_size` bytes.
pub unsafe fn zx_vmo_read(
    handle: zx_handle_t,
    read_buffer: *mut u8,
    offset: u64,
    buffer_size: usize,
) -> zx_status_t {
    answer((|| {
        // SAFETY: the caller's promise.
        let data = unsafe { buffer(read_buffer, buffer_size)? };
        let held = get(handle)?;
        let vmo = held.vmo()?;
        held.require(ZX_RIGHT_READ)?;
        vmo.read(data, offset)
    })())
}

/// See the Zircon documentation of `zx_vmo_write`.
///
/// # Safety
/// `write_buffer` is valid for reading `buffer_size` bytes.
pub unsafe fn zx_vmo_write(
    handle: zx_handle_t,
    write_buffer: *const u8,
    offset: u64,
    buffer_size: usize,
) -> zx_status_t {
    answer((|| {
        // SAFETY: the caller's promise.
        let data = unsafe { bytes(write_buffer, buffer_size)? };
        let held = get(handle)?;
        let vmo = held.vmo()?;
        held.require(ZX_RIGHT_WRITE)?;
        vmo.write(data, offset)
    })())
}

/// See the Zircon documentation of `zx_vmo_get_size`.
///
/// # Safety
/// `size` is null or valid for writing.
pub unsafe fn zx_vmo_get_size(handle: zx_handle_t, size: *mut u64) -> zx_status_t {
    answer((|| {
        // SAFETY: the caller's promise.
        let size = unsafe { out(size)? };
        size.set(get(handle)?.vmo()?.size()?);
        Ok(())
    })())
}

/// See the Zircon documentation of `zx_vmo_set_size`. Pages that are mapped when a VMO shrinks fault, as on Zircon.
///
/// # Safety
/// Always safe; unsafe to have the vDSO's signature.
pub unsafe fn zx_vmo_set_size(handle: zx_handle_t, size: u64) -> zx_status_t {
    answer((|| {
        let held = get(handle)?;
        let vmo = held.vmo()?;
        held.require(ZX_RIGHT_WRITE)?;
        vmo.set_size(size)
    })())
}

/// See the Zircon documentation of `zx_vmo_get_stream_size`.
///
/// # Safety
/// `size` is null or valid for writing.
pub unsafe fn zx_vmo_get_stream_size(handle: zx_handle_t, size: *mut u64) -> zx_status_t {
    answer((|| {
        // SAFETY: the caller's promise.
        let size = unsafe { out(size)? };
        size.set(get(handle)?.vmo()?.content_size());
        Ok(())
    })())
}

/// See the Zircon documentation of `zx_vmo_set_stream_size`.
///
/// # Safety
/// Always safe; unsafe to have the vDSO's signature.
pub unsafe fn zx_vmo_set_stream_size(handle: zx_handle_t, size: u64) -> zx_status_t {
    answer((|| {
        let held = get(handle)?;
        let vmo = held.vmo()?;
        held.require(ZX_RIGHT_WRITE)?;
        vmo.set_content_size(size)
    })())
}

/// See the Zircon documentation of `zx_vmo_op_range`. LOCK and UNLOCK are for discardable VMOs and not supported; cache
/// operations have nothing to do.
///
/// # Safety
/// Always safe, because no supported operation uses the buffer; unsafe to have the vDSO's signature.
pub unsafe fn zx_vmo_op_range(
    handle: zx_handle_t,
    op: u32,
    offset: u64,
    size: u64,
    _buffer: *mut u8,
    _buffer_size: usize,
) -> zx_status_t {
    answer((|| {
        let held = get(handle)?;
        held.vmo()?.op_range(op, offset, size, held.rights)
    })())
}

/// See the Zircon documentation of `zx_vmo_create_child`. A snapshot is copied at once.
///
/// # Safety
/// `out_handle` is null or valid for writing.
pub unsafe fn zx_vmo_create_child(
    handle: zx_handle_t,
    options: u32,
    offset: u64,
    size: u64,
    out_handle: *mut zx_handle_t,
) -> zx_status_t {
    answer((|| {
        // SAFETY: the caller's promise.
        let out_handle = unsafe { out(out_handle)? };
        let held = get(handle)?;
        let (child, rights) = create_child(&held, options, offset, size)?;
        let child = Object::with_koid(Kind::Vmo(child), crate::koid::allocate(), held.koid);
        out_handle.set(insert(child, rights)?);
        Ok(())
    })())
}

/// See the Zircon documentation of `zx_vmo_replace_as_executable`. Without a VMEX resource it is refused, as on Zircon for
/// a job that does not allow ambient executability.
///
/// # Safety
/// `out_handle` is null or valid for writing.
pub unsafe fn zx_vmo_replace_as_executable(
    handle: zx_handle_t,
    vmex: zx_handle_t,
    out_handle: *mut zx_handle_t,
) -> zx_status_t {
    answer((|| {
        // SAFETY: the caller's promise.
        let out_handle = unsafe { out(out_handle)? };
        let allowed = get(vmex)
            .and_then(|held| if held.resource()?.is_vmex() { Ok(()) } else { Err(ACCESS_DENIED) });
        let held = crate::handle_table::take(handle)?;
        held.vmo()?;
        allowed?;
        let rights = held.rights | ZX_RIGHT_EXECUTE;
        out_handle.set(insert(held.object, rights)?);
        Ok(())
    })())
}

/// See the Zircon documentation of `zx_vmo_set_cache_policy`. Only the cached policy exists.
///
/// # Safety
/// Always safe; unsafe to have the vDSO's signature.
pub unsafe fn zx_vmo_set_cache_policy(handle: zx_handle_t, cache_policy: u32) -> zx_status_t {
    answer((|| {
        let held = get(handle)?;
        held.vmo()?;
        held.require(ZX_RIGHT_MAP)?;
        match cache_policy {
            ZX_CACHE_POLICY_CACHED => Ok(()),
            ZX_CACHE_POLICY_UNCACHED
            | ZX_CACHE_POLICY_UNCACHED_DEVICE
            | ZX_CACHE_POLICY_WRITE_COMBINING => Err(NOT_SUPPORTED),
            _ => Err(INVALID_ARGS),
        }
    })())
}

/// See the Zircon documentation of `zx_vmo_transfer_data`. The pages are copied, then decommitted in the source.
///
/// # Safety
/// Always safe; unsafe to have the vDSO's signature.
pub unsafe fn zx_vmo_transfer_data(
    dst_vmo: zx_handle_t,
    options: u32,
    offset: u64,
    length: u64,
    src_vmo: zx_handle_t,
    src_offset: u64,
) -> zx_status_t {
    answer((|| {
        let (destination, source) = (get(dst_vmo)?, get(src_vmo)?);
        let (to, from) = (destination.vmo()?, source.vmo()?);
        destination.require(ZX_RIGHT_WRITE)?;
        source.require(ZX_RIGHT_READ | ZX_RIGHT_WRITE)?;
        let page = page_size() as u64;
        if options != 0
            || [offset, length, src_offset].iter().any(|value| !value.is_multiple_of(page))
        {
            return Err(INVALID_ARGS);
        }
        to.range(offset, length)?;
        from.range(src_offset, length)?;
        if Arc::ptr_eq(&destination.object, &source.object) {
            return Err(BAD_STATE);
        }
        let mut chunk = vec![MaybeUninit::uninit(); 1 << 20];
        let mut done = 0;
        while done < length {
            let part = (length - done).min(chunk.len() as u64) as usize;
            from.read(&mut chunk[..part], src_offset + done)?;
            // SAFETY: `read` filled the part.
            let bytes = unsafe { std::slice::from_raw_parts(chunk.as_ptr().cast(), part) };
            to.write(bytes, offset + done)?;
            done += part as u64;
        }
        from.zero(src_offset, length)
    })())
}
