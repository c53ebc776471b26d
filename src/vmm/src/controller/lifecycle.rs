//! `GuestLifecycle`: one machine at a time, made, run and stopped by whoever holds a connection.

use super::Environment;
use super::config::GuestSpec;
use super::machine::{Machine, run_result};
use crate::vcpu::Outcome;
use fidl_fuchsia_virtualization::{
    GuestError, GuestLifecycleRequest, GuestLifecycleRequestStream, GuestLifecycleRunResponder,
    GuestRequestStream,
};
use fuchsia_async as fasync;
use futures::channel::{mpsc, oneshot};
use futures::future::{Either, OptionFuture, select};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use std::pin::pin;

/// A client of the component.
pub enum ControllerRequest {
    /// It wants to control the machine.
    Lifecycle(GuestLifecycleRequestStream),
    /// It wants to use the machine.
    Guest(GuestRequestStream),
    /// Component manager wants the component to end.
    Stop,
}

/// What happens to the controller, in order.
enum Event {
    Client(ControllerRequest),
    Request(Box<GuestLifecycleRequest>),
    /// A lifecycle client is gone.
    Closed,
    /// The machine ended.
    Ended(Outcome),
}

/// A machine that runs, and whoever wants to know when it does not any more.
struct Running {
    machine: Machine,
    responder: GuestLifecycleRunResponder,
}

enum State {
    Idle,
    Created(Machine),
    Running(Running),
}

/// The server of `GuestLifecycle`.
pub struct Controller {
    environment: Environment,
    state: State,
    clients: usize,
}

impl Controller {
    /// A controller without a machine.
    pub fn new(environment: Environment) -> Self {
        Self { environment, state: State::Idle, clients: 0 }
    }

    /// Serves `clients` until the last one that controls the machine is gone, or one is [`ControllerRequest::Stop`].
    pub async fn serve(mut self, clients: impl Stream<Item = ControllerRequest>) {
        let (sender, events) = mpsc::unbounded();
        let mut inputs =
            pin!(futures::stream::select(clients.map(Event::Client).fuse(), events).fuse());
        let mut ended: OptionFuture<oneshot::Receiver<Outcome>> = None.into();
        loop {
            let event = match select(inputs.next(), pin!(next_end(&mut ended))).await {
                Either::Left((Some(event), _)) => event,
                Either::Left((None, _)) => break,
                Either::Right((outcome, _)) => Event::Ended(outcome),
            };
            match event {
                Event::Client(ControllerRequest::Lifecycle(requests)) => {
                    self.clients += 1;
                    fasync::Task::local(forward(requests, sender.clone())).detach();
                }
                Event::Client(ControllerRequest::Guest(requests)) => self.serve_guest(requests),
                Event::Client(ControllerRequest::Stop) => break,
                Event::Request(request) => {
                    if let Some(end) = self.handle(*request).await {
                        ended = Some(end).into();
                    }
                }
                Event::Closed => {
                    self.clients -= 1;
                    if self.clients == 0 {
                        break;
                    }
                }
                Event::Ended(outcome) => {
                    ended = None.into();
                    self.end(outcome).await;
                }
            }
        }
        self.end(Outcome::ForcedHalt).await;
    }

    fn serve_guest(&mut self, requests: GuestRequestStream) {
        match &mut self.state {
            // The channel closes: there is no guest.
            State::Idle => drop(requests),
            State::Created(machine) | State::Running(Running { machine, .. }) => {
                machine.serve(requests);
            }
        }
    }

    /// Handles a request; returns the machine's end if it was started.
    async fn handle(
        &mut self,
        request: GuestLifecycleRequest,
    ) -> Option<oneshot::Receiver<Outcome>> {
        let sent = match request {
            GuestLifecycleRequest::Create { guest_config, responder } => {
                let created = match GuestSpec::new(guest_config) {
                    _ if matches!(self.state, State::Running(_)) => Err(GuestError::AlreadyRunning),
                    Ok(spec) => self.create(spec).await,
                    Err(error) => {
                        self.end(Outcome::ForcedHalt).await;
                        Err(error)
                    }
                };
                responder.send(created)
            }
            GuestLifecycleRequest::Bind { guest, .. } => {
                match &mut self.state {
                    State::Idle => drop(guest),
                    State::Created(machine) | State::Running(Running { machine, .. }) => {
                        machine.bind(guest);
                    }
                }
                Ok(())
            }
            GuestLifecycleRequest::Run { responder } => return self.run(responder),
            GuestLifecycleRequest::Stop { responder } => {
                let sent = responder.send();
                self.end(Outcome::ForcedHalt).await;
                sent
            }
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "Answering a lifecycle client");
        }
        None
    }

    /// Replaces an idle machine by a new one.
    async fn create(&mut self, spec: GuestSpec) -> Result<(), GuestError> {
        self.end(Outcome::ForcedHalt).await;
        self.state = State::Created(Machine::create(&self.environment, spec).await?);
        Ok(())
    }

    fn run(&mut self, responder: GuestLifecycleRunResponder) -> Option<oneshot::Receiver<Outcome>> {
        let refusal = match std::mem::replace(&mut self.state, State::Idle) {
            State::Created(mut machine) => {
                let end = machine.start();
                self.state = State::Running(Running { machine, responder });
                return Some(end);
            }
            State::Idle => GuestError::NotCreated,
            running @ State::Running(_) => {
                self.state = running;
                GuestError::AlreadyRunning
            }
        };
        if let Err(error) = responder.send(Err(refusal)) {
            tracing::debug!(%error, "Answering a lifecycle client");
        }
        None
    }

    /// Ends the machine, if there is one, and answers whoever runs it.
    async fn end(&mut self, outcome: Outcome) {
        let realm = &self.environment.realm;
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Idle => {}
            State::Created(machine) => machine.destroy(realm, outcome).await,
            State::Running(Running { machine, responder }) => {
                tracing::info!(?outcome, "The machine ended");
                machine.destroy(realm, outcome).await;
                if let Err(error) = responder.send(run_result(outcome)) {
                    tracing::debug!(%error, "Whoever ran the machine is gone");
                }
            }
        }
    }
}

/// The machine's end; never if there is no running machine.
async fn next_end(ended: &mut OptionFuture<oneshot::Receiver<Outcome>>) -> Outcome {
    match ended.await {
        // The sender lives as long as the machine, and sends before it goes.
        Some(outcome) => outcome.unwrap_or(Outcome::ForcedHalt),
        None => futures::future::pending().await,
    }
}

/// Forwards a client's requests, and tells when it is gone.
async fn forward(mut requests: GuestLifecycleRequestStream, sender: mpsc::UnboundedSender<Event>) {
    loop {
        match requests.try_next().await {
            Ok(Some(request)) => {
                if sender.unbounded_send(Event::Request(Box::new(request))).is_err() {
                    return;
                }
            }
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(%error, "A lifecycle client broke the protocol");
                break;
            }
        }
    }
    // The controller may have ended already.
    let _ = sender.unbounded_send(Event::Closed);
}
