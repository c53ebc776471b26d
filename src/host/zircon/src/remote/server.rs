//! The owner's side: the thread that serves the connections of this process.

use super::connection::socket_pair;
use super::wire::{Arrival, receive_request, send_reply};
use super::{Answer, ENFORCED, Operation, Request};
use crate::handle_table::Held;
use crate::object::{Kind, Object, lock, ring};
use crate::status::{IO_DATA_INTEGRITY, NO_RESOURCES, Result, Status};
use crate::transfer::Descriptor;
use fuchsia_zircon_types::*;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::sockopt::socket_cookie;
use rustix::time::Timespec;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, Weak, mpsc};

/// With so many connections, a process is asked for more of them in vain. What it sends itself still gets its own.
const MAX_ASKED_FOR: usize = 1024;

/// How often it is looked whether something else has come before who waits for quiet is told that it is.
const SETTLING_ROUNDS: u32 = 16;

static SERVER: OnceLock<std::result::Result<Server, Errno>> = OnceLock::new();

/// A connection that is served.
struct Served {
    socket: OwnedFd,
    /// Of the other end.
    cookie: u64,
    object: Arc<Object>,
    rights: zx_rights_t,
}

/// What a connection leads to, for handles that come home.
struct Home {
    object: Weak<Object>,
    rights: zx_rights_t,
}

#[derive(Default)]
struct Inbox {
    connections: Vec<Served>,
    settling: Vec<mpsc::SyncSender<()>>,
}

/// The way to the thread.
struct Server {
    wake: OwnedFd,
    inbox: Mutex<Inbox>,
    /// By the cookie of the end that travels.
    homes: Mutex<HashMap<u64, Home>>,
}

/// A new connection to an object of this process; of the rights only [`ENFORCED`] matter.
pub(crate) fn connect(
    object: &Arc<Object>,
    rights: zx_rights_t,
) -> std::result::Result<OwnedFd, Errno> {
    Server::get()?.connect(object, rights)
}

/// The object and the rights behind a connection that may have come home.
pub(crate) fn home(socket: BorrowedFd<'_>) -> Option<(Arc<Object>, zx_rights_t)> {
    let server = SERVER.get()?.as_ref().ok()?;
    let cookie = socket_cookie(socket).ok()?;
    let homes = lock(&server.homes);
    let home = homes.get(&cookie)?;
    Some((home.object.upgrade()?, home.rights))
}

/// Lets go of the connections that are closed by now, as those of a process that has ended.
pub(crate) fn settle() {
    if SERVER.get().is_none() {
        return;
    }
    let Ok(server) = Server::get() else { return };
    let (done, settled) = mpsc::sync_channel(1);
    lock(&server.inbox).settling.push(done);
    ring(&server.wake);
    let _ = settled.recv();
}

impl Server {
    /// The thread, started on first use.
    fn get() -> std::result::Result<&'static Server, Errno> {
        static THREAD: OnceLock<bool> = OnceLock::new();
        let server = SERVER.get_or_init(|| {
            let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            Ok(Server { wake, inbox: Mutex::default(), homes: Mutex::default() })
        });
        let server = server.as_ref().map_err(|&errno| errno)?;
        let started = THREAD.get_or_init(|| {
            std::thread::Builder::new().name("zx-remote".into()).spawn(|| server.run()).is_ok()
        });
        if *started { Ok(server) } else { Err(Errno::MFILE) }
    }

    fn connect(
        &self,
        object: &Arc<Object>,
        rights: zx_rights_t,
    ) -> std::result::Result<OwnedFd, Errno> {
        let (near, far) = socket_pair()?;
        let cookie = socket_cookie(&far)?;
        let rights = rights & ENFORCED;
        lock(&self.homes).insert(cookie, Home { object: Arc::downgrade(object), rights });
        let object = object.clone();
        lock(&self.inbox).connections.push(Served { socket: near, cookie, object, rights });
        ring(&self.wake);
        Ok(far)
    }

    fn run(&self) {
        let mut connections: Vec<Served> = Vec::new();
        // Who waits for quiet, and for how many rounds more.
        let mut settling: Vec<(u32, mpsc::SyncSender<()>)> = Vec::new();
        loop {
            let _ = rustix::io::read(&self.wake, &mut [0; 8]);
            let inbox = std::mem::take(&mut *lock(&self.inbox));
            connections.extend(inbox.connections);
            settling.extend(inbox.settling.into_iter().map(|done| (SETTLING_ROUNDS, done)));
            let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN)];
            fds.extend(connections.iter().map(|it| PollFd::new(&it.socket, PollFlags::IN)));
            let at_once = (!settling.is_empty()).then_some(Timespec { tv_sec: 0, tv_nsec: 0 });
            if poll(&mut fds, at_once.as_ref()).is_err() {
                // Interrupted, or out of memory for a moment.
                std::thread::sleep(std::time::Duration::from_millis(1));
                continue;
            }
            let ready: Vec<bool> = fds[1..].iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            let quiet = !ready.contains(&true);
            self.serve_ready(&mut connections, ready);
            settling.retain_mut(|(rounds, done)| {
                *rounds -= 1;
                let over = quiet || *rounds == 0;
                if over {
                    let _ = done.try_send(());
                }
                !over
            });
        }
    }

    /// Serves one request each, so that nobody keeps the others from being served.
    fn serve_ready(&self, connections: &mut Vec<Served>, ready: Vec<bool>) {
        let mut ready = ready.into_iter();
        connections.retain(|connection| {
            !ready.next().unwrap_or(false) || self.serve(connection) || {
                lock(&self.homes).remove(&connection.cookie);
                false
            }
        });
    }

    /// Takes one request; whether more can come.
    fn serve(&self, connection: &Served) -> bool {
        match receive_request(connection.socket.as_fd()) {
            Arrival::Request(answer_to, request) => {
                let answer = request
                    .and_then(|(request, vmo, fds)| self.perform(connection, &request, &vmo, fds));
                send_reply(answer_to.as_fd(), answer);
                true
            }
            Arrival::Nothing => true,
            Arrival::End => false,
        }
    }

    fn perform(
        &self,
        connection: &Served,
        request: &Request,
        vmo: &Descriptor,
        fds: Vec<OwnedFd>,
    ) -> Result<Answer> {
        let object = &connection.object;
        let held =
            Held { object: object.clone(), rights: connection.rights & request.rights & ENFORCED };
        if matches!(request.operation, Operation::Connect | Operation::VmarAllocate)
            && lock(&self.homes).len() >= MAX_ASKED_FOR
        {
            return Err(NO_RESOURCES);
        }
        if request.operation == Operation::Connect {
            let socket = self.connect(object, held.rights).map_err(Status::from)?;
            return Ok(Answer { socket: Some(socket), ..Answer::default() });
        }
        let vmo = match request.operation {
            Operation::VmarMap => Some(vmo.import_vmo(fds)?),
            _ => None,
        };
        match &object.kind {
            Kind::Vcpu(vcpu) => vcpu.serve(&held, request),
            Kind::Vmar(_) => crate::vmar::serve(&held, request, vmo.as_ref()),
            _ => Err(IO_DATA_INTEGRITY),
        }
    }
}
