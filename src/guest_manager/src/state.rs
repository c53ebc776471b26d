//! The life of a guest as the manager sees it: one type a state, each transition a function that consumes the state it
//! leaves, so that a transition which the interface does not have cannot be written.
//!
//! ```text
//!            launch            created           shutdown
//!   Idle ─────────▶ Starting ─────────▶ Running ─────────▶ Stopping
//!    ▲                 │ failed           │ ended             │ ended
//!    └─────────────────┴──────────────────┴───────────────────┘
//! ```
//! `Idle` remembers how it came about: never started, stopped, or the VMM died.

use fidl_fuchsia_virtualization::{GuestDescriptor, GuestError, GuestStatus};
use fuchsia_zircon as zx;

/// No guest is there.
#[derive(Debug)]
pub(crate) enum Idle {
    /// None has been launched.
    NotStarted,
    /// One ran for `uptime` and stopped, by itself or with an error.
    Stopped { uptime: zx::Duration, error: Option<GuestError> },
    /// The VMM went away under a guest.
    VmmTerminated,
}

/// What is known of a guest from its launch on.
#[derive(Debug)]
pub(crate) struct Started {
    since: zx::Time,
    descriptor: GuestDescriptor,
}

/// The VMM is creating the guest.
#[derive(Debug)]
pub(crate) struct Starting(Started);

/// The guest runs.
#[derive(Debug)]
pub(crate) struct Running(Started);

/// The guest was told to stop; `R` are those who wait for it.
#[derive(Debug)]
pub(crate) struct Stopping<R> {
    started: Started,
    waiting: Vec<R>,
}

/// Any of the states.
#[derive(Debug)]
pub(crate) enum State<R> {
    Idle(Idle),
    Starting(Starting),
    Running(Running),
    Stopping(Stopping<R>),
}

impl Idle {
    pub(crate) fn launch(self, now: zx::Time, descriptor: GuestDescriptor) -> Starting {
        Starting(Started { since: now, descriptor })
    }
}

impl Started {
    fn stopped(&self, now: zx::Time, error: Option<GuestError>) -> Idle {
        Idle::Stopped { uptime: now - self.since, error }
    }
}

impl Starting {
    pub(crate) fn descriptor(&self) -> &GuestDescriptor {
        &self.0.descriptor
    }

    pub(crate) fn created(self) -> Running {
        Running(self.0)
    }

    pub(crate) fn failed(self, now: zx::Time, error: GuestError) -> Idle {
        self.0.stopped(now, Some(error))
    }

    pub(crate) fn shutdown<R>(self, waiting: R) -> Stopping<R> {
        Stopping { started: self.0, waiting: vec![waiting] }
    }

    pub(crate) fn vmm_terminated(self) -> Idle {
        Idle::VmmTerminated
    }
}

impl Running {
    pub(crate) fn ended(self, now: zx::Time, error: Option<GuestError>) -> Idle {
        self.0.stopped(now, error)
    }

    pub(crate) fn shutdown<R>(self, waiting: R) -> Stopping<R> {
        Stopping { started: self.0, waiting: vec![waiting] }
    }

    pub(crate) fn vmm_terminated(self) -> Idle {
        Idle::VmmTerminated
    }
}

impl<R> Stopping<R> {
    pub(crate) fn also(mut self, waiting: R) -> Self {
        self.waiting.push(waiting);
        self
    }

    pub(crate) fn ended(self, now: zx::Time, error: Option<GuestError>) -> (Idle, Vec<R>) {
        (self.started.stopped(now, error), self.waiting)
    }

    pub(crate) fn vmm_terminated(self) -> (Idle, Vec<R>) {
        (Idle::VmmTerminated, self.waiting)
    }
}

impl<R> State<R> {
    pub(crate) fn status(&self) -> GuestStatus {
        match self {
            Self::Idle(Idle::NotStarted) => GuestStatus::NotStarted,
            Self::Idle(Idle::Stopped { .. }) => GuestStatus::Stopped,
            Self::Idle(Idle::VmmTerminated) => GuestStatus::VmmUnexpectedTermination,
            Self::Starting(_) => GuestStatus::Starting,
            Self::Running(_) => GuestStatus::Running,
            Self::Stopping(_) => GuestStatus::Stopping,
        }
    }

    pub(crate) fn is_started(&self) -> bool {
        !matches!(self, Self::Idle(_))
    }

    /// How long the guest has run, or ran before it stopped.
    pub(crate) fn uptime(&self, now: zx::Time) -> Option<zx::Duration> {
        match self {
            Self::Idle(Idle::Stopped { uptime, .. }) => Some(*uptime),
            _ => self.started().map(|started| now - started.since),
        }
    }

    /// What the guest was given, while it is there.
    pub(crate) fn descriptor(&self) -> Option<&GuestDescriptor> {
        self.started().map(|started| &started.descriptor)
    }

    /// Why the guest stopped, where it was not of its own.
    pub(crate) fn stop_error(&self) -> Option<GuestError> {
        match self {
            Self::Idle(Idle::Stopped { error, .. }) => *error,
            _ => None,
        }
    }

    fn started(&self) -> Option<&Started> {
        match self {
            Self::Idle(_) => None,
            Self::Starting(Starting(started)) | Self::Running(Running(started)) => Some(started),
            Self::Stopping(stopping) => Some(&stopping.started),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T0: zx::Time = zx::Time::from_nanos(1_000);
    const T1: zx::Time = zx::Time::from_nanos(6_000);

    fn starting() -> Starting {
        Idle::NotStarted.launch(T0, GuestDescriptor { num_cpus: Some(2), ..Default::default() })
    }

    #[test]
    fn a_guest_that_runs_has_uptime_and_descriptor() {
        let state: State<()> = State::Running(starting().created());
        assert_eq!(state.status(), GuestStatus::Running);
        assert_eq!(state.uptime(T1), Some(zx::Duration::from_nanos(5_000)));
        assert_eq!(state.descriptor().and_then(|d| d.num_cpus), Some(2));
        assert_eq!(state.stop_error(), None);
    }

    #[test]
    fn a_stopped_guest_keeps_its_last_uptime_and_error() {
        let idle = starting().created().ended(T1, Some(GuestError::VcpuRuntimeFailure));
        let state: State<()> = State::Idle(idle);
        assert_eq!(state.status(), GuestStatus::Stopped);
        assert_eq!(state.uptime(zx::Time::INFINITE), Some(zx::Duration::from_nanos(5_000)));
        assert_eq!(state.stop_error(), Some(GuestError::VcpuRuntimeFailure));
        assert!(state.descriptor().is_none());
    }

    #[test]
    fn everyone_who_waits_for_a_shutdown_is_answered_once() {
        let stopping = starting().shutdown(1).also(2).also(3);
        let (idle, waiting) = stopping.ended(T1, Some(GuestError::ControllerForcedHalt));
        assert_eq!(waiting, [1, 2, 3]);
        assert_eq!(State::<()>::Idle(idle).status(), GuestStatus::Stopped);
    }

    #[test]
    fn a_dead_vmm_leaves_no_uptime() {
        let state: State<()> = State::Idle(starting().created().vmm_terminated());
        assert_eq!(state.status(), GuestStatus::VmmUnexpectedTermination);
        assert_eq!(state.uptime(T1), None);
        assert!(!state.is_started());
    }
}
