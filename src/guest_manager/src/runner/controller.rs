//! `ComponentController`: the life of one started component, from diagnostics to the last word.

use super::launch::Component;
use super::status;
use fidl::endpoints::{ControlHandle as _, RequestStream as _, ServerEnd};
use fidl_fuchsia_component as fcomponent;
use fidl_fuchsia_component_runner as frunner;
use fidl_fuchsia_diagnostics_types as fdiagnostics;
use fuchsia_async as fasync;
use fuchsia_zircon as zx;
use futures::future::{FutureExt as _, LocalBoxFuture};
use futures::{StreamExt as _, select_biased};
use tracing::{info, warn};

/// How long a component that was told to stop may take before it is killed.
const STOP_GRACE: zx::Duration = zx::Duration::from_seconds(5);

/// What is to happen to the component.
#[derive(Debug, Copy, Clone, PartialEq, Eq)]
enum Phase {
    /// It runs.
    Running,
    /// It was told to stop and has until the grace period's end.
    Stopping,
    /// It was killed; its end is all that is missing.
    Killed,
}

/// A component and the channel that controls it.
pub(crate) struct Controller<C> {
    component: C,
    stream: frunner::ComponentControllerRequestStream,
    control: frunner::ComponentControllerControlHandle,
    phase: Phase,
    grace: zx::Duration,
}

impl<C: Component> Controller<C> {
    pub(crate) fn new(
        component: C,
        controller: ServerEnd<frunner::ComponentControllerMarker>,
    ) -> Self {
        let stream = controller.into_stream();
        let control = stream.control_handle();
        Self { component, stream, control, phase: Phase::Running, grace: STOP_GRACE }
    }

    /// Serves the channel until the component has ended, and then tells how.
    pub(crate) async fn run(mut self) {
        self.publish_diagnostics();
        let exit_code = self.wait().await;
        // Whatever the component has started goes with it.
        self.component.kill();
        let termination = self.termination(exit_code);
        let stop_info = frunner::ComponentStopInfo {
            termination_status: Some(termination.into_raw()),
            exit_code: exit_code.ok(),
            ..Default::default()
        };
        if self.control.send_on_stop(&stop_info).is_ok() {
            self.control.shutdown_with_epitaph(termination);
        }
    }

    fn publish_diagnostics(&self) {
        let tasks = fdiagnostics::ComponentTasks {
            component_task: self.component.duplicate_process().map(fdiagnostics::Task::Process),
            ..Default::default()
        };
        let payload =
            fdiagnostics::ComponentDiagnostics { tasks: Some(tasks), ..Default::default() };
        if let Err(e) = self.control.send_on_publish_diagnostics(payload) {
            info!("Nobody takes the component's diagnostics: {e}");
        }
    }

    /// The exit code, or why there is none.
    async fn wait(&mut self) -> Result<i64, zx::Status> {
        let mut exited = self.component.exited().fuse();
        let mut deadline: futures::future::Fuse<LocalBoxFuture<'static, ()>> =
            futures::future::Fuse::terminated();
        let mut open = true;
        loop {
            let request = match open {
                true => self.stream.next().left_future(),
                false => futures::future::pending().right_future(),
            };
            select_biased! {
                exit_code = exited => return exit_code,
                () = deadline => {
                    warn!("The component did not stop in time and is killed");
                    self.kill();
                }
                request = request.fuse() => match request {
                    Some(Ok(frunner::ComponentControllerRequest::Stop { .. })) => {
                        if self.phase == Phase::Running {
                            self.phase = Phase::Stopping;
                            self.component.stop();
                            let grace = fasync::Timer::new(zx::Time::after(self.grace));
                            deadline = grace.boxed_local().fuse();
                        }
                    }
                    Some(Ok(frunner::ComponentControllerRequest::Kill { .. })) => self.kill(),
                    Some(Ok(frunner::ComponentControllerRequest::_UnknownMethod { ordinal, .. })) => {
                        warn!("A component's controller was asked for something unknown: {ordinal:#x}");
                    }
                    // Without its controller a component has nobody who could stop it.
                    Some(Err(_)) | None => {
                        open = false;
                        self.kill();
                    }
                },
            }
        }
    }

    fn kill(&mut self) {
        self.phase = Phase::Killed;
        self.component.kill();
    }

    /// `OK` for a component that ended well or was told to end; `INSTANCE_DIED` for one that failed of its own.
    fn termination(&self, exit_code: Result<i64, zx::Status>) -> zx::Status {
        match (self.phase, exit_code) {
            (Phase::Running, Ok(0)) | (Phase::Stopping | Phase::Killed, _) => zx::Status::OK,
            (Phase::Running, Ok(code)) => {
                warn!("The component has exited with code {code}");
                status(fcomponent::Error::InstanceDied)
            }
            (Phase::Running, Err(e)) => {
                warn!("The component's end cannot be seen: {e}");
                status(fcomponent::Error::Internal)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fidl::endpoints::create_proxy;
    use futures::channel::oneshot;
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    /// A component that ends when it is told to, if `obeys`, and always when it is killed.
    struct FakeComponent {
        obeys: bool,
        exit: Rc<RefCell<Option<oneshot::Sender<i64>>>>,
        exited: Cell<Option<oneshot::Receiver<i64>>>,
        kills: Rc<Cell<u32>>,
    }

    impl FakeComponent {
        fn new(obeys: bool) -> Self {
            let (exit, exited) = oneshot::channel();
            Self {
                obeys,
                exit: Rc::new(RefCell::new(Some(exit))),
                exited: Cell::new(Some(exited)),
                kills: Rc::default(),
            }
        }

        fn end(&self, code: i64) {
            if let Some(exit) = self.exit.borrow_mut().take() {
                exit.send(code).unwrap();
            }
        }
    }

    impl Component for FakeComponent {
        fn duplicate_process(&self) -> Option<zx::Process> {
            None
        }

        fn exited(&self) -> LocalBoxFuture<'static, Result<i64, zx::Status>> {
            let exited = self.exited.take().expect("asked once");
            async move { exited.await.map_err(|_| zx::Status::INTERNAL) }.boxed_local()
        }

        fn stop(&mut self) {
            if self.obeys {
                self.end(0);
            }
        }

        fn kill(&mut self) {
            self.kills.set(self.kills.get() + 1);
            self.end(-1024);
        }
    }

    fn control(component: FakeComponent, grace: zx::Duration) -> frunner::ComponentControllerProxy {
        let (proxy, server) = create_proxy::<frunner::ComponentControllerMarker>();
        let mut controller = Controller::new(component, server);
        controller.grace = grace;
        fasync::Task::local(controller.run()).detach();
        proxy
    }

    /// What the controller says at the end: `OnStop`, then the epitaph.
    async fn ending(proxy: &frunner::ComponentControllerProxy) -> (zx::Status, Option<i64>) {
        let mut events = proxy.take_event_stream();
        let mut stopped = None;
        while let Some(event) = events.next().await {
            match event {
                Ok(frunner::ComponentControllerEvent::OnStop { payload }) => {
                    stopped = Some(payload);
                }
                Ok(_) => {}
                Err(fidl::Error::ClientChannelClosed { status, .. }) => {
                    let stopped = stopped.expect("OnStop comes before the epitaph");
                    assert_eq!(stopped.termination_status, Some(status.into_raw()));
                    return (status, stopped.exit_code);
                }
                Err(e) => panic!("{e}"),
            }
        }
        let stopped = stopped.expect("OnStop comes before the end");
        (zx::Status::from_raw(stopped.termination_status.unwrap_or(0)), stopped.exit_code)
    }

    #[fasync::run_singlethreaded(test)]
    async fn a_component_that_obeys_ends_with_ok() {
        let proxy = control(FakeComponent::new(true), STOP_GRACE);
        proxy.stop().unwrap();
        assert_eq!(ending(&proxy).await, (zx::Status::OK, Some(0)));
    }

    #[fasync::run_singlethreaded(test)]
    async fn a_component_that_does_not_obey_is_killed_after_the_grace_period() {
        let proxy = control(FakeComponent::new(false), zx::Duration::from_millis(10));
        proxy.stop().unwrap();
        assert_eq!(ending(&proxy).await, (zx::Status::OK, Some(-1024)));
    }

    #[fasync::run_singlethreaded(test)]
    async fn kill_needs_no_stop_before_it() {
        let proxy = control(FakeComponent::new(false), STOP_GRACE);
        proxy.kill().unwrap();
        assert_eq!(ending(&proxy).await, (zx::Status::OK, Some(-1024)));
    }

    #[fasync::run_singlethreaded(test)]
    async fn a_component_that_fails_has_died() {
        let component = FakeComponent::new(true);
        let exit = Rc::clone(&component.exit);
        let proxy = control(component, STOP_GRACE);
        exit.borrow_mut().take().unwrap().send(7).unwrap();
        let died = status(fcomponent::Error::InstanceDied);
        assert_eq!(ending(&proxy).await, (died, Some(7)));
    }

    #[fasync::run_singlethreaded(test)]
    async fn without_a_controller_the_component_goes() {
        let component = FakeComponent::new(false);
        let kills = Rc::clone(&component.kills);
        drop(control(component, STOP_GRACE));
        while kills.get() == 0 {
            fasync::Timer::new(zx::Time::after(zx::Duration::from_millis(1))).await;
        }
    }
}
