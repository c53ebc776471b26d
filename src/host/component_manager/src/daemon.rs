//! The component manager as a process: one a user, started when the command line needs it, gone when nobody does.

use crate::builtin::{Builtins, MemoryPressure, Network};
use crate::builtin_package::{MANIFESTS, ROOT_URL};
use crate::control;
use crate::log::LogStore;
use crate::manager::Manager;
use crate::model::InstanceId;
use crate::name::Url;
use crate::resolver::{Embedded, PackageResolver};
use crate::runner::Elf;
use crate::runtime_directory::RuntimeDirectory;
use fidl::endpoints::ServerEnd;
use fidl_guest_host as fhost;
use fuchsia_async::{self as fasync, TimeoutExt};
use fuchsia_zircon as zx;
use futures::channel::mpsc;
use futures::{FutureExt, StreamExt};
use rustix::fd::OwnedFd;
use rustix::net::SocketFlags;
use std::cell::Cell;
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::Write;
use std::path::PathBuf;
use std::rc::Rc;

/// What the daemon tells on its standard output once a client can connect.
pub(crate) const READY: &[u8] = b"ready\n";
/// How long another component manager may take to listen or to leave: it gives its components this long to stop.
const LOCK_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(20);
/// The facet of the root that names children which alone are no reason to stay.
const IDLE_FACET: &str = "guest.host.idle";

/// How a component manager is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it is found.
    pub runtime_directory: RuntimeDirectory,
    /// The program that holds the built-in components.
    pub executable: PathBuf,
    /// Where packages that are directories lie.
    pub package_directories: Vec<PathBuf>,
    /// What the storage `data` is made from.
    pub data_directory: PathBuf,
    /// The manifests of the built-in package.
    pub manifests: Vec<Embedded>,
    /// The root.
    pub root_url: Url,
    /// How long it stays with nothing to do.
    pub idle_time: zx::Duration,
}

impl Options {
    /// The user's component manager.
    ///
    /// # Errors
    /// Where the runtime directory is not safe, or the user has no home.
    pub fn of_user() -> anyhow::Result<Self> {
        let data = data_directory().ok_or_else(|| {
            anyhow::anyhow!(
                "Neither XDG_DATA_HOME nor HOME is set, so there is no place for packages"
            )
        })?;
        Ok(Self {
            runtime_directory: RuntimeDirectory::of_user()?,
            executable: std::env::current_exe()?,
            package_directories: vec![data.join("packages")],
            data_directory: data.join("storage"),
            manifests: MANIFESTS.to_vec(),
            root_url: ROOT_URL.parse()?,
            idle_time: zx::Duration::from_seconds(10),
        })
    }
}

/// The user's data directory of this program: `$XDG_DATA_HOME/guest`, or `~/.local/share/guest`.
#[must_use]
pub fn data_directory() -> Option<PathBuf> {
    let absolute =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))?;
    Some(base.join("guest"))
}

/// Runs the user's component manager until it is idle or told to end.
///
/// # Errors
/// Where it cannot listen.
pub fn main() -> anyhow::Result<()> {
    // What the terminal of the command that started it does is no business of the daemon. It fails for a leader of a process group,
    // which has no terminal to lose.
    let _leader = rustix::process::setsid();
    let _installed =
        tracing_subscriber::fmt().with_writer(std::io::stderr).without_time().try_init();
    run(&Options::of_user()?)
}

/// Runs a component manager until it is idle or told to end.
///
/// # Errors
/// Where it cannot listen.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let Some(lock) = lock_or_find(&options.runtime_directory)? else {
        announce();
        return Ok(());
    };
    let temporary = temporary_directory(options);
    // What a component manager that was killed left behind.
    let _absent = std::fs::remove_dir_all(&temporary);
    std::fs::create_dir_all(&temporary)?;
    let listener = options.runtime_directory.listen()?;
    announce();
    let mut executor = fasync::LocalExecutor::new();
    let (changed, changes) = mpsc::unbounded();
    executor.run_singlethreaded(async {
        Daemon::start(options, &temporary, changed).serve(changes, options, listener).await;
    });
    options.runtime_directory.remove_socket();
    let _gone = std::fs::remove_dir_all(&temporary);
    drop(lock);
    Ok(())
}

/// What the storage `tmp` is made from. It is in the data directory, since what is in the runtime directory is most often in memory, and
/// is this component manager's alone: its name tells runtime directories apart.
fn temporary_directory(options: &Options) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    options.runtime_directory.path().hash(&mut hasher);
    options.data_directory.join(format!(".tmp-{:016x}", hasher.finish()))
}

/// The lock, or `None` where another component manager has it and takes connections. One that has the lock and does not listen is about to
/// do so, or is about to leave: both end soon.
fn lock_or_find(directory: &RuntimeDirectory) -> anyhow::Result<Option<OwnedFd>> {
    let start = std::time::Instant::now();
    while start.elapsed() < LOCK_TIMEOUT {
        if let Some(lock) = directory.lock()? {
            return Ok(Some(lock));
        }
        if directory.connect()?.is_some() {
            return Ok(None);
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    anyhow::bail!(
        "Another component manager has the lock in {} and does not answer",
        directory.path().display()
    )
}

/// Tells whoever started this process that a client can connect, and lets go of their pipe.
fn announce() {
    let mut output = std::io::stdout();
    // Started by hand, with nobody reading, it serves all the same.
    let _nobody = output.write_all(READY).and_then(|()| output.flush());
    if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
        // It fails for want of a descriptor only, and then the pipe stays open, which does no harm either.
        let _kept = rustix::stdio::dup2_stdout(&null);
    }
}

struct Daemon {
    manager: Manager,
    clients: Rc<Cell<usize>>,
    changed: mpsc::UnboundedSender<()>,
}

impl Daemon {
    fn start(
        options: &Options,
        temporary: &std::path::Path,
        changed: mpsc::UnboundedSender<()>,
    ) -> Self {
        let logs = LogStore::default();
        let pressure = MemoryPressure::new("/proc");
        let network = Network::new("/sys", "/proc");
        let builtins = Builtins::default()
            .with_log_sink(logs.clone())
            .with_system_resources()
            .with_protocol("fuchsia.memorypressure.Provider", move |_, channel| {
                pressure.serve(ServerEnd::new(channel));
            })
            .with_protocol("fuchsia.net.interfaces.State", move |_, channel| {
                network.serve(ServerEnd::new(channel));
            })
            .with_directory("host_tmp", temporary)
            .with_directory("host_data", &options.data_directory)
            .with_runner("elf", Rc::new(Elf));
        let resolver = PackageResolver::new(
            options.executable.clone(),
            options.manifests.clone(),
            options.package_directories.clone(),
        );
        let manager = Manager::new(options.root_url.clone(), Rc::new(resolver), builtins, logs);
        Self { manager, clients: Rc::default(), changed }
    }

    async fn serve(
        self,
        mut changes: mpsc::UnboundedReceiver<()>,
        options: &Options,
        listener: OwnedFd,
    ) {
        let (connections, mut connected) = mpsc::unbounded();
        accept_in_background(&listener, connections.clone());
        let mut terminated = termination_signals();
        let (shutdown, mut asked) = mpsc::unbounded();
        let mut listener = Some(listener);
        let mut answer: Option<fhost::ComponentManagerShutdownResponder> = None;
        loop {
            let idle = self.idle_after(options.idle_time, &mut changes).fuse();
            futures::pin_mut!(idle);
            futures::select! {
                connection = connected.next() => {
                    if let Some(connection) = connection {
                        self.accept(connection, shutdown.clone());
                    }
                }
                _ = terminated.next() => break,
                responder = asked.next() => {
                    answer = responder;
                    break;
                }
                () = idle => {
                    // From here on nobody new gets in; who did until now is served, by listening anew.
                    options.runtime_directory.remove_socket();
                    let late = listener.take().map(|listener| accept_waiting(&listener)).unwrap_or_default();
                    let late: Vec<_> = late.into_iter().chain(std::iter::from_fn(|| connected.try_recv().ok())).collect();
                    if late.is_empty() {
                        break;
                    }
                    let Ok(fresh) = options.runtime_directory.listen() else { break };
                    accept_in_background(&fresh, connections.clone());
                    listener = Some(fresh);
                    for connection in late {
                        self.accept(connection, shutdown.clone());
                    }
                }
            }
        }
        options.runtime_directory.remove_socket();
        self.manager.shutdown().await;
        if let Some(responder) = answer {
            let _gone = responder.send();
        }
    }

    /// Serves a client, if it is of this user.
    fn accept(
        &self,
        connection: OwnedFd,
        shutdown: mpsc::UnboundedSender<fhost::ComponentManagerShutdownResponder>,
    ) {
        let ours = rustix::net::sockopt::socket_peercred(&connection)
            .is_ok_and(|peer| peer.uid == rustix::process::getuid());
        if !ours {
            tracing::warn!("A connection by another user is refused");
            return;
        }
        let Ok(channel) = zx::linux::channel_from_fd(connection) else { return };
        let (manager, clients, changed) =
            (self.manager.downgrade(), Rc::clone(&self.clients), self.changed.clone());
        clients.set(clients.get() + 1);
        fasync::Task::local(async move {
            control::serve(manager, ServerEnd::new(channel), shutdown).await;
            clients.set(clients.get() - 1);
            let _gone = changed.unbounded_send(());
        })
        .detach();
    }

    /// Ends when there has been nothing to do for this long.
    async fn idle_after(&self, time: zx::Duration, changes: &mut mpsc::UnboundedReceiver<()>) {
        loop {
            while changes.try_recv().is_ok() {}
            let change = self.manager.on_change();
            let disturbed = futures::future::select(change, changes.next());
            if self.clients.get() > 0 || self.is_busy() {
                disturbed.await;
            } else if disturbed.map(|_| true).on_timeout(fasync::Time::after(time), || false).await
            {
                continue;
            } else {
                return;
            }
        }
    }

    /// Whether something runs that is a reason to stay.
    fn is_busy(&self) -> bool {
        let running = self.manager.running();
        let mut tree = self.manager.tree();
        let root = tree.root();
        let idle: HashSet<InstanceId> = match tree.resolve(root) {
            Ok(resolved) => {
                let names = resolved.decl.facets.get(IDLE_FACET).and_then(|names| names.as_array());
                let names = names.into_iter().flatten().filter_map(|name| name.as_str());
                names.filter_map(|name| tree.find(&name.parse().ok()?).ok()).collect()
            }
            Err(_) => HashSet::new(),
        };
        running.iter().any(|id| !idle.contains(id))
    }
}

/// Accepts on a thread of its own, since a listening socket is nothing that an executor can wait for.
fn accept_in_background(listener: &OwnedFd, connections: mpsc::UnboundedSender<OwnedFd>) {
    let Ok(listener) = rustix::io::fcntl_dupfd_cloexec(listener, 0) else { return };
    std::thread::spawn(move || {
        loop {
            match rustix::net::accept_with(&listener, SocketFlags::CLOEXEC) {
                Ok(connection) => {
                    if connections.unbounded_send(connection).is_err() {
                        return;
                    }
                }
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
                // Out of descriptors: give others time to close some.
                Err(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => {
                    std::thread::sleep(std::time::Duration::from_millis(50));
                }
                Err(_) => return,
            }
        }
    });
}

/// The connections that were made and not yet accepted. Ends the background thread, too.
fn accept_waiting(listener: &OwnedFd) -> Vec<OwnedFd> {
    let mut waiting = Vec::new();
    if rustix::io::ioctl_fionbio(listener, true).is_ok() {
        while let Ok(connection) = rustix::net::accept_with(listener, SocketFlags::CLOEXEC) {
            waiting.push(connection);
        }
    }
    // Wakes the thread, which ends with the error.
    let _ended = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
    waiting
}

/// Yields when the process is asked to end.
fn termination_signals() -> mpsc::UnboundedReceiver<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let (sender, receiver) = mpsc::unbounded();
    match signal_hook::iterator::Signals::new([SIGTERM, SIGINT, SIGHUP]) {
        Ok(mut signals) => {
            std::thread::spawn(move || {
                for _signal in signals.forever() {
                    if sender.unbounded_send(()).is_err() {
                        return;
                    }
                }
            });
        }
        Err(error) => {
            tracing::warn!(%error, "Signals end the component manager without further ado");
        }
    }
    receiver
}
