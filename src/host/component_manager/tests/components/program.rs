//! Which component the program is.

use crate::{echo, escrow, runner};
use component_manager::daemon;
use component_manager::resolver::Embedded;
use component_manager::runtime_directory::RuntimeDirectory;
use fuchsia_async as fasync;
use fuchsia_zircon as zx;
use std::path::{Path, PathBuf};

const MANIFESTS: &[Embedded] = &[
    Embedded { name: "meta/root.cml", text: include_str!("meta/root.cml") },
    Embedded { name: "meta/runner.cml", text: include_str!("meta/runner.cml") },
    Embedded { name: "meta/echo.cml", text: include_str!("meta/echo.cml") },
    Embedded { name: "meta/echo_elf.cml", text: include_str!("meta/echo_elf.cml") },
    Embedded { name: "meta/crash.cml", text: include_str!("meta/crash.cml") },
];

/// Runs the component that the program's name says.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut arguments = std::env::args();
    let name = arguments.next().unwrap_or_default();
    let name = Path::new(&name).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    match name {
        "echo" => fasync::LocalExecutor::new().run_singlethreaded(echo::run()),
        "escrow" => fasync::LocalExecutor::new().run_singlethreaded(escrow::run()),
        "runner" => fasync::LocalExecutor::new().run_singlethreaded(runner::run()),
        "crash" => {
            eprintln!("ERROR about to end");
            std::process::exit(3);
        }
        "stubborn" => loop {
            std::thread::park();
        },
        "bare" => Ok(()),
        _ => component_manager(&arguments.collect::<Vec<_>>()),
    }
}

/// `component_manager RUNTIME_DIRECTORY DATA_DIRECTORY IDLE_MILLISECONDS`
fn component_manager(arguments: &[String]) -> anyhow::Result<()> {
    let [_, runtime, data, idle] = arguments else {
        anyhow::bail!("RUNTIME_DIRECTORY DATA_DIRECTORY IDLE_MILLISECONDS are wanted")
    };
    daemon::run(&daemon::Options {
        runtime_directory: RuntimeDirectory::at(Path::new(runtime))?,
        executable: std::env::current_exe()?,
        package_directories: Vec::new(),
        data_directory: PathBuf::from(data),
        manifests: MANIFESTS.to_vec(),
        root_url: "fuchsia-pkg://fuchsia.com/test#meta/root.cm".parse()?,
        idle_time: zx::Duration::from_millis(idle.parse()?),
    })
}
