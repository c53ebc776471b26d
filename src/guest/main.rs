//! The `guest` binary. On Linux it is every component as well: started as one of them, by its name or its first
//! argument, it is that component.

use std::env;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut words: Vec<String> = env::args_os().map(|word| word.to_string_lossy().into()).collect();
    #[cfg(target_os = "linux")]
    if let Some(component) = components::find(&words) {
        return components::run(component);
    }
    words.drain(..words.len().min(1));
    let mut executor = fuchsia_async::LocalExecutor::new();
    ExitCode::from(executor.run_singlethreaded(guest_cli::run(words)))
}

/// The components that this program is on Linux.
#[cfg(target_os = "linux")]
mod components {
    use futures::FutureExt as _;
    use futures::future::LocalBoxFuture;
    use std::path::Path;
    use std::process::ExitCode;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    /// How a component is run to its end.
    pub(crate) enum Component {
        /// By a function that makes its own executor.
        Daemon(fn() -> anyhow::Result<()>),
        /// By a future.
        Async(fn() -> LocalBoxFuture<'static, anyhow::Result<()>>),
    }

    const COMPONENTS: &[(&str, Component)] = &[
        ("component_manager", Component::Daemon(component_manager::daemon::main)),
        ("guest_manager", Component::Async(|| guest_manager::run().boxed_local())),
        ("vmm", Component::Async(|| vmm::run().boxed_local())),
        ("virtio_balloon", Component::Async(|| virtio_balloon::run().boxed_local())),
        ("virtio_block", Component::Async(|| virtio_block::run().boxed_local())),
        ("virtio_console", Component::Async(|| virtio_console::run().boxed_local())),
        ("virtio_net", Component::Async(|| virtio_net::run().boxed_local())),
        ("virtio_rng", Component::Async(|| virtio_rng::run().boxed_local())),
        ("virtio_vsock", Component::Async(|| virtio_vsock::run().boxed_local())),
    ];

    /// The component whose name is the program's, or its first argument.
    pub(crate) fn find(words: &[String]) -> Option<&'static Component> {
        let program = words.first().and_then(|word| Path::new(word).file_name()?.to_str());
        let argument = words.get(1).map(String::as_str);
        let named = |name: &str| program == Some(name) || argument == Some(name);
        COMPONENTS.iter().find(|(name, _)| named(name)).map(|(_, component)| component)
    }

    /// Runs a component; its log tells what went wrong.
    pub(crate) fn run(component: &Component) -> ExitCode {
        if let Component::Async(_) = component {
            // Component manager reads it, and knows the time and the component itself.
            let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false);
            log.without_time().with_target(false).init();
        }
        // A disk image at the limit of what a file may be is an I/O error of its guest's, not the end of its device.
        let at_limit = Arc::new(AtomicBool::new(false));
        if let Err(e) = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, at_limit) {
            eprintln!("Files at the size limit will end this process: {e}");
        }
        let result = match component {
            Component::Daemon(run) => run(),
            Component::Async(run) => fuchsia_async::LocalExecutor::new().run_singlethreaded(run()),
        };
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("{e:#}");
                ExitCode::FAILURE
            }
        }
    }
}
