//! The runner of the VMM: `fuchsia.component.runner.ComponentRunner` as the manager serves it for its one child.
//!
//! A component that is started here is a process of its own in a job of its own; when its controller goes, however it
//! goes, the job goes too, so nothing of a VMM outlives the one who asked for it.

mod controller;
mod launch;
mod loader;
mod process;
mod start_info;

use controller::Controller;
use fidl::endpoints::ServerEnd;
use fidl_fuchsia_component_runner as frunner;
use fuchsia_async as fasync;
use fuchsia_zircon::{self as zx, AsHandleRef as _};
use futures::TryStreamExt as _;
use launch::{Launch, ProcessLauncher};
use start_info::StartInfo;
use std::rc::Rc;
use tracing::{info, warn};

/// Serves a connection of component manager's until it closes it.
pub(crate) async fn serve(mut requests: frunner::ComponentRunnerRequestStream) {
    let launcher = Rc::new(ProcessLauncher);
    loop {
        match requests.try_next().await {
            Ok(Some(frunner::ComponentRunnerRequest::Start { start_info, controller, .. })) => {
                let launcher = Rc::clone(&launcher);
                fasync::Task::local(start(launcher, start_info, controller)).detach();
            }
            Ok(Some(frunner::ComponentRunnerRequest::_UnknownMethod { ordinal, .. })) => {
                warn!("The runner was asked for something it does not know: {ordinal:#x}");
            }
            Ok(None) => return,
            Err(e) => {
                warn!("Component manager broke the runner's protocol: {e}");
                return;
            }
        }
    }
}

/// Starts one component and owns it to its end.
async fn start(
    launcher: Rc<impl Launch>,
    start_info: frunner::ComponentStartInfo,
    controller: ServerEnd<frunner::ComponentControllerMarker>,
) {
    let result = async {
        let mut start_info = StartInfo::try_from(start_info)?;
        if let Some(debugger) = start_info.break_on_start.take() {
            wait_for_debugger(&debugger).await;
        }
        let url = start_info.url.clone();
        Ok((url, launcher.launch(start_info).await?))
    };
    match result.await {
        Ok((url, component)) => {
            info!("Started {url}");
            Controller::new(component, controller).run().await;
        }
        Err(error) => {
            let error: StartError = error;
            warn!("A component could not be started: {error}");
            if let Err(e) = controller.close_with_epitaph(error.epitaph()) {
                info!("Nobody waits for the component that could not be started: {e}");
            }
        }
    }
}

/// A debugger holds the other end for as long as the component is to wait.
async fn wait_for_debugger(debugger: &zx::EventPair) {
    let closed =
        fasync::OnSignals::new(debugger.as_handle_ref(), zx::Signals::EVENTPAIR_PEER_CLOSED);
    if let Err(status) = closed.await {
        warn!("The wait for a debugger failed, so the component starts at once: {status}");
    }
}

/// Why a component could not be started; each kind has its own epitaph on the controller.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The start info lacks something or contradicts itself.
    #[error("the start info is unusable: {0}")]
    InvalidArguments(String),
    /// The program is not there or is no program.
    #[error("the program {binary} is unusable: {reason}")]
    CannotStart {
        /// The binary's path in the package.
        binary: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The system has no memory, handles or processes to spare.
    #[error("the system lacks resources: {0}")]
    ResourceUnavailable(zx::Status),
}

impl StartError {
    /// The status with which the controller is closed: `fuchsia.component.Error` as a number.
    fn epitaph(&self) -> zx::Status {
        use fidl_fuchsia_component::Error;
        let error = match self {
            Self::InvalidArguments(_) => Error::InvalidArguments,
            Self::CannotStart { .. } => Error::InstanceCannotStart,
            Self::ResourceUnavailable(_) => Error::ResourceUnavailable,
        };
        status(error)
    }
}

/// A component framework error as the status that stands for it on a controller.
fn status(error: fidl_fuchsia_component::Error) -> zx::Status {
    zx::Status::from_raw(i32::try_from(error.into_primitive()).unwrap_or(i32::MAX))
}
