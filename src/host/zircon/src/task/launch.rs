//! From a program's name to a running child, without a copy of this process's memory.
//!
//! Up to its `execve` the child runs on the memory of its parent, whose calling thread waits meanwhile, as `posix_spawn` has it
//! (`CLONE_VM` and `CLONE_VFORK`). That function itself cannot ask for the parent-death signal. A fork would copy the parent's page
//! tables, and have both sides fault in copies of what they write.

use rustix::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use rustix::io::Errno;
use std::ffi::{CString, OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

/// For the few calls that the child makes.
const STACK: usize = 64 << 10;
const SIGNALS: std::ops::RangeInclusive<i32> = 1..=64;

/// What to run and how, ready for `execve`.
pub(super) struct Launch {
    pub(super) program: CString,
    pub(super) argv: Vec<CString>,
    /// `NAME=value`.
    pub(super) env: Vec<CString>,
    pub(super) cwd: Option<CString>,
    /// Standard input, output and error; without one, this process's.
    pub(super) stdio: [Option<OwnedFd>; 3],
    /// A descriptor that stays open in the child, under its number.
    pub(super) inherited: OwnedFd,
}

/// A process that was just started.
pub(super) struct Child {
    pub(super) pid: u32,
    pub(super) pidfd: OwnedFd,
}

/// A word for `execve`. Fails with `EINVAL` when there is a NUL in it.
pub(super) fn word(text: OsString) -> Result<CString, Errno> {
    CString::new(text.into_vec()).map_err(|_| Errno::INVAL)
}

/// A path for `execve`. Fails as [`word`].
pub(super) fn path(path: &Path) -> Result<CString, Errno> {
    word(path.as_os_str().to_owned())
}

/// A variable of the environment. Fails as [`word`], and for a name that is none.
pub(super) fn variable(name: OsString, value: &OsStr) -> Result<CString, Errno> {
    if name.is_empty() || name.as_bytes().contains(&b'=') {
        return Err(Errno::INVAL);
    }
    let mut variable = name;
    variable.push("=");
    variable.push(value);
    word(variable)
}

/// What the child needs, in memory that it shares with its parent.
struct Plan {
    program: *const libc::c_char,
    argv: *const *const libc::c_char,
    env: *const *const libc::c_char,
    cwd: *const libc::c_char,
    stdio: [libc::c_int; 3],
    inherited: libc::c_int,
    parent: libc::pid_t,
    /// Why the child did not come to run the program; 0 if it did.
    error: AtomicI32,
}

fn pointers(words: &[CString]) -> Vec<*const libc::c_char> {
    words.iter().map(|word| word.as_ptr()).chain([ptr::null()]).collect()
}

impl Launch {
    /// Starts the child, which is killed when the calling *thread* ends, and waits until it runs the program.
    ///
    /// Errors: those of `clone`, `chdir` and `execve`.
    pub(super) fn start(mut self) -> Result<Child, Errno> {
        // A descriptor in the place of another would be replaced before it is used.
        for fd in self.stdio.iter_mut().flatten().filter(|fd| fd.as_raw_fd() <= 2) {
            *fd = rustix::io::fcntl_dupfd_cloexec(fd.as_fd(), 3)?;
        }
        let (argv, env) = (pointers(&self.argv), pointers(&self.env));
        let plan = Plan {
            program: self.program.as_ptr(),
            argv: argv.as_ptr(),
            env: env.as_ptr(),
            cwd: self.cwd.as_ref().map_or(ptr::null(), |cwd| cwd.as_ptr()),
            stdio: self.stdio.each_ref().map(|fd| fd.as_ref().map_or(-1, AsRawFd::as_raw_fd)),
            inherited: self.inherited.as_raw_fd(),
            parent: i32::try_from(std::process::id()).map_err(|_| Errno::INVAL)?,
            error: AtomicI32::new(0),
        };
        let child = without_signals(|| plan.clone_child())?;
        match plan.error.load(Ordering::SeqCst) {
            0 => Ok(child),
            error => {
                let _ = rustix::process::waitid(
                    rustix::process::WaitId::PidFd(child.pidfd.as_fd()),
                    rustix::process::WaitIdOptions::EXITED,
                );
                Err(Errno::from_raw_os_error(error))
            }
        }
    }
}

/// Calls `f` while no signal can interrupt this thread: a handler must not run in a child on our memory.
fn without_signals<R>(f: impl FnOnce() -> R) -> R {
    let mut before = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets are valid for writing, and filled by the call that gets them before they are read. The calls cannot fail.
    unsafe {
        let mut all = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
    }
    let result = f();
    // SAFETY: the call above has filled the set.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut()) };
    result
}

impl Plan {
    fn clone_child(&self) -> Result<Child, Errno> {
        let mut stack = Vec::<MaybeUninit<u128>>::with_capacity(STACK / size_of::<u128>());
        let top = stack.spare_capacity_mut().as_mut_ptr_range().end;
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD | libc::SIGCHLD;
        let mut pidfd: libc::c_int = -1;
        let plan = ptr::from_ref(self).cast_mut().cast();
        // SAFETY: the child runs `in_child` on a stack of its own, whose end is aligned as the ABI wants it; stack, plan and what that
        // points to are there until the call returns, which is when the child has them no more. `pidfd` is valid for writing.
        let pid = unsafe { libc::clone(in_child, top.cast(), flags, plan, &raw mut pidfd) };
        drop(stack);
        let pid = u32::try_from(pid).map_err(|_| {
            Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
        })?;
        // SAFETY: the call that made the child has opened the descriptor, which nobody else knows.
        Ok(Child { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
    }

    /// What the child does. Returns only when that failed.
    ///
    /// # Safety
    /// The plan's pointers are as `execve` and `chdir` want them, and the caller is a child that may be ended.
    unsafe fn carry_out(&self) -> Result<(), i32> {
        // SAFETY: plain system calls on plain values, and on pointers that are valid by the caller's promise: nothing here allocates,
        // takes a lock, or writes to memory other than the stack and this thread's `errno`, which the waiting parent does not look at.
        unsafe {
            ok(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
            // The parent may have died before the line above.
            if libc::getppid() != self.parent {
                return Err(libc::ESRCH);
            }
            for (number, fd) in (0..).zip(self.stdio) {
                if fd >= 0 {
                    ok(libc::dup2(fd, number))?;
                }
            }
            if !self.cwd.is_null() {
                ok(libc::chdir(self.cwd))?;
            }
            ok(libc::fcntl(self.inherited, libc::F_SETFD, 0))?;
            reset_signals();
            ok(libc::execve(self.program, self.argv, self.env))
        }
    }
}

/// The signals as a program expects them: none blocked, none with a handler of ours, and a broken pipe ends it.
///
/// # Safety
/// The caller is a child that is about to run another program.
unsafe fn reset_signals() {
    // SAFETY: all-zero is a valid action, the default one; every pointer is to a valid place. Numbers that the C library keeps
    // for itself are refused.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        for signal in SIGNALS {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(signal, ptr::null(), &raw mut action);
            let handled = !matches!(action.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN);
            if handled || signal == libc::SIGPIPE {
                libc::sigaction(signal, &raw const default, ptr::null_mut());
            }
        }
        let mut none = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
    }
}

extern "C" fn in_child(plan: *mut libc::c_void) -> libc::c_int {
    // SAFETY: `clone_child` passes a plan that outlives us, and makes us a child.
    let (plan, result) = unsafe {
        let plan = &*plan.cast::<Plan>();
        (plan, plan.carry_out())
    };
    plan.error.store(result.err().unwrap_or(libc::EIO), Ordering::SeqCst);
    // SAFETY: ends the child, with nothing of its parent's.
    unsafe { libc::_exit(127) }
}

/// The result of a C library call, or its `errno`.
fn ok(result: libc::c_int) -> Result<(), i32> {
    if result >= 0 {
        return Ok(());
    }
    // SAFETY: always safe; the place is valid.
    Err(unsafe { *libc::__errno_location() })
}
