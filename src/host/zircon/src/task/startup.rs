//! What a process starts with: the bootstrap message, in the manner of Zircon's processargs.
//!
//! The parent writes it to a channel whose other end the child inherits. More handles than one message carries come in
//! further messages; the end of the channel is the end of the handles.

use super::process::set_self_koid;
use crate::channel::Channel;
use crate::handle_table::{Held, insert};
use crate::status::{IO_DATA_INTEGRITY, PEER_CLOSED, Result};
use fuchsia_zircon_types::*;
use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::fs::{FileType, fstat};
use std::sync::atomic::{AtomicBool, Ordering};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The environment variable that tells a child which descriptor its startup handles come from.
pub const STARTUP_FD_VARIABLE: &str = "ZX_STARTUP_FD";
/// `ZX_PROCARGS_PROTOCOL` and `ZX_PROCARGS_VERSION`.
const PROTOCOL: u32 = 0x4150_585d;
const VERSION: u32 = 0x0000_1000;
const HANDLES_PER_MESSAGE: usize = ZX_CHANNEL_MAX_MSG_HANDLES as usize;

/// What heads the message. Arguments and environment travel by `execve`, so it has no place for them.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    protocol: u32,
    version: u32,
    process_koid: u64,
    handles: u32,
    names: u32,
}

/// The handles a process was started with.
#[derive(Debug, Default)]
pub struct StartupHandles {
    /// Handle id (`PA_HND(type, argument)`: type in bits 0-7, argument in bits 16-31) and handle, in the parent's order.
    pub handles: Vec<(u32, zx_handle_t)>,
    /// Namespace paths; the argument of a `PA_NS_DIR` handle is an index into them.
    pub names: Vec<String>,
}

/// The messages that carry handles and names to a child.
pub(super) fn messages(
    koid: zx_koid_t,
    handles: Vec<(u32, Held)>,
    names: &[String],
) -> Vec<(Vec<u8>, Vec<Held>)> {
    let mut messages = Vec::new();
    let mut handles = handles.into_iter().peekable();
    loop {
        let part: Vec<(u32, Held)> = handles.by_ref().take(HANDLES_PER_MESSAGE).collect();
        let first = messages.is_empty();
        let header = Header {
            protocol: PROTOCOL,
            version: VERSION,
            process_koid: koid,
            handles: part.len() as u32,
            names: if first { names.len() as u32 } else { 0 },
        };
        let mut bytes = header.as_bytes().to_vec();
        for (id, _) in &part {
            bytes.extend_from_slice(&id.to_ne_bytes());
        }
        for name in names.iter().filter(|_| first) {
            bytes.extend_from_slice(name.as_bytes());
            bytes.push(0);
        }
        messages.push((bytes, part.into_iter().map(|(_, held)| held).collect()));
        if handles.peek().is_none() {
            return messages;
        }
    }
}

/// Reads one message; names are appended to, not replaced.
fn parse(bytes: &[u8]) -> Result<(Header, Vec<u32>, Vec<String>)> {
    let (header, rest) = Header::read_from_prefix(bytes).map_err(|_| IO_DATA_INTEGRITY)?;
    if header.protocol != PROTOCOL || header.version != VERSION {
        return Err(IO_DATA_INTEGRITY);
    }
    let length = (header.handles as usize).checked_mul(4).ok_or(IO_DATA_INTEGRITY)?;
    let (ids, names) = rest.split_at_checked(length).ok_or(IO_DATA_INTEGRITY)?;
    let ids = ids.as_chunks().0.iter().map(|id| u32::from_ne_bytes(*id)).collect();
    let names: Vec<String> = names
        .split_inclusive(|&byte| byte == 0)
        .map(|name| String::from_utf8_lossy(&name[..name.len() - 1]).into())
        .collect();
    if names.len() != header.names as usize {
        return Err(IO_DATA_INTEGRITY);
    }
    Ok((header, ids, names))
}

/// What the variable says: the descriptor, and the inode of the socket behind it. A process that merely inherited the
/// variable has no such descriptor.
pub(super) fn startup_variable(fd: BorrowedFd<'_>) -> Result<String> {
    Ok(format!("{}:{}", fd.as_raw_fd(), fstat(fd)?.st_ino))
}

fn inherited_fd() -> Option<OwnedFd> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    let value = std::env::var(STARTUP_FD_VARIABLE).ok()?;
    let (fd, inode) = value.split_once(':')?;
    let (fd, inode) = (fd.parse::<i32>().ok().filter(|&fd| fd > 2)?, inode.parse::<u64>().ok()?);
    // SAFETY: borrowed for one question; a number that is no open descriptor makes that fail.
    let stat = fstat(unsafe { BorrowedFd::borrow_raw(fd) }).ok()?;
    if stat.st_ino != inode || FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
        return None;
    }
    if TAKEN.swap(true, Ordering::SeqCst) {
        return None;
    }
    // SAFETY: it is the socket that `spawn` made this process inherit for this purpose, and this is the one time that it
    // is taken.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::CLOEXEC).ok()?;
    Some(fd)
}

/// Takes the handles that this process was started with; none if it was not started by [`spawn`](fn@super::spawn) or they were
/// taken before. Waits for the parent to send them.
pub fn take_startup_handles() -> Result<StartupHandles> {
    let Some(fd) = inherited_fd() else { return Ok(StartupHandles::default()) };
    let channel = Channel::from_fd(fd);
    let mut startup = StartupHandles::default();
    loop {
        let message = match channel.receive_blocking() {
            Ok(message) => message,
            Err(PEER_CLOSED) => return Ok(startup),
            Err(status) => return Err(status),
        };
        let (header, ids, names) = parse(&message.bytes)?;
        if ids.len() != message.handles.len() {
            return Err(IO_DATA_INTEGRITY);
        }
        set_self_koid(header.process_koid);
        startup.names.extend(names);
        for (id, held) in ids.into_iter().zip(message.handles) {
            startup.handles.push((id, insert(held.object, held.rights)?));
        }
    }
}
