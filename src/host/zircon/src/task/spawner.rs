//! The thread that starts and reaps the children of this process.

use super::process::Shared;
use crate::object::{lock, ring};
use crate::status::{NO_RESOURCES, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::io;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, mpsc};

/// A command to start, and where to tell its process number.
struct Request {
    command: Command,
    reply: mpsc::SyncSender<io::Result<u32>>,
}

#[derive(Default)]
struct Inbox {
    requests: Vec<Request>,
    children: Vec<Arc<Shared>>,
}

/// The way to the thread.
pub(super) struct Spawner {
    wake: OwnedFd,
    inbox: Mutex<Inbox>,
}

impl Spawner {
    /// The thread, started on first use.
    pub(super) fn get() -> Result<&'static Spawner> {
        static SPAWNER: OnceLock<std::result::Result<Spawner, Errno>> = OnceLock::new();
        static THREAD: OnceLock<bool> = OnceLock::new();
        let spawner = SPAWNER.get_or_init(|| {
            let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            Ok(Spawner { wake, inbox: Mutex::default() })
        });
        let spawner = spawner.as_ref().map_err(|&errno| crate::status::Status::from(errno))?;
        let started = THREAD.get_or_init(|| {
            std::thread::Builder::new().name("zx-process".into()).spawn(|| spawner.run()).is_ok()
        });
        if *started { Ok(spawner) } else { Err(NO_RESOURCES) }
    }

    /// Starts a command and gives its process number. Nobody else may reap it.
    pub(super) fn start(&self, command: Command) -> io::Result<u32> {
        let (reply, answer) = mpsc::sync_channel(1);
        lock(&self.inbox).requests.push(Request { command, reply });
        ring(&self.wake);
        answer.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))
    }

    /// Leaves a child to the thread, which reaps it when it ends.
    pub(super) fn adopt(&self, child: Arc<Shared>) {
        lock(&self.inbox).children.push(child);
        ring(&self.wake);
    }

    fn run(&self) {
        let mut children: Vec<Arc<Shared>> = Vec::new();
        loop {
            let _ = rustix::io::read(&self.wake, &mut [0; 8]);
            let inbox = std::mem::take(&mut *lock(&self.inbox));
            for Request { mut command, reply } in inbox.requests {
                // The process number stays the child's until we reap it, which happens through its pidfd.
                let _ = reply.send(command.spawn().map(|child| child.id()));
            }
            children.extend(inbox.children);
            let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN)];
            fds.extend(children.iter().map(|child| PollFd::new(&child.pidfd, PollFlags::IN)));
            if poll(&mut fds, None).is_err() {
                // Interrupted, or out of memory for a moment.
                std::thread::sleep(std::time::Duration::from_millis(1));
                continue;
            }
            let mut ended =
                fds[1..].iter().map(|fd| !fd.revents().is_empty()).collect::<Vec<_>>().into_iter();
            drop(fds);
            children.retain(|child| {
                let ended = ended.next().unwrap_or(false);
                if ended {
                    child.ended();
                }
                !ended
            });
        }
    }
}
