//! The thread that reaps the children of this process, and starts them for all threads but the main one.

use super::launch::{Child, Launch};
use super::process::Shared;
use crate::object::{Object, lock, ring};
use crate::status::{NO_RESOURCES, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::sync::{Arc, Mutex, OnceLock, Weak, mpsc};

/// A child to start, and where to tell what came of it.
struct Request {
    launch: Launch,
    reply: mpsc::SyncSender<std::result::Result<Child, Errno>>,
}

#[derive(Default)]
struct Inbox {
    requests: Vec<Request>,
    children: Vec<Arc<Shared>>,
    jobs: Vec<ServedJob>,
}

/// A job that other processes have handles to.
struct ServedJob {
    /// Its hang-up, when this is dropped, tells them that the job is over.
    control: OwnedFd,
    job: Weak<Object>,
}

impl ServedJob {
    /// Does what was asked for; false when the job is over or nobody can ask any more.
    fn serve(&self, asked: bool) -> bool {
        let Some(object) = self.job.upgrade() else { return false };
        let Ok(job) = object.job() else { return false };
        (!asked || job.serve(&object, &self.control)) && !job.is_over()
    }
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

    /// Starts a child. Nobody else may reap it.
    ///
    /// Does so itself on the main thread, which ends with the process, as the thread does that is otherwise asked.
    pub(super) fn start(&self, launch: Launch) -> std::result::Result<Child, Errno> {
        if rustix::thread::gettid() == rustix::process::getpid() {
            return launch.start();
        }
        let (reply, answer) = mpsc::sync_channel(1);
        lock(&self.inbox).requests.push(Request { launch, reply });
        ring(&self.wake);
        answer.recv().unwrap_or(Err(Errno::PIPE))
    }

    /// Leaves a child to the thread, which reaps it when it ends.
    pub(super) fn adopt(&self, child: Arc<Shared>) {
        lock(&self.inbox).children.push(child);
        ring(&self.wake);
    }

    /// Serves a job of this process to the holders of the control's other end.
    pub(super) fn serve_job(&self, control: OwnedFd, job: Weak<Object>) {
        lock(&self.inbox).jobs.push(ServedJob { control, job });
        ring(&self.wake);
    }

    /// Looks at once whether jobs are over.
    pub(super) fn look(&self) {
        ring(&self.wake);
    }

    fn run(&self) {
        let mut children: Vec<Arc<Shared>> = Vec::new();
        let mut jobs: Vec<ServedJob> = Vec::new();
        loop {
            let _ = rustix::io::read(&self.wake, &mut [0; 8]);
            let inbox = std::mem::take(&mut *lock(&self.inbox));
            for Request { launch, reply } in inbox.requests {
                let _ = reply.send(launch.start());
            }
            children.extend(inbox.children);
            jobs.extend(inbox.jobs);
            jobs.retain(|job| job.serve(false));
            let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN)];
            fds.extend(children.iter().map(|child| PollFd::new(&child.pidfd, PollFlags::IN)));
            fds.extend(jobs.iter().map(|job| PollFd::new(&job.control, PollFlags::IN)));
            if poll(&mut fds, None).is_err() {
                // Interrupted, or out of memory for a moment.
                std::thread::sleep(std::time::Duration::from_millis(1));
                continue;
            }
            let ready: Vec<bool> = fds[1..].iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            let (ended, asked) = ready.split_at(children.len());
            let (mut ended, mut asked) = (ended.iter().copied(), asked.iter().copied());
            children.retain(|child| {
                let ended = ended.next().unwrap_or(false);
                if ended {
                    child.ended();
                }
                !ended
            });
            // After the children, whose end may be the job's.
            jobs.retain(|job| job.serve(asked.next().unwrap_or(false)));
        }
    }
}
