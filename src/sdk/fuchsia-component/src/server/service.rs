//! What a service makes of the connections to it.

use std::marker::PhantomData;

use fidl::endpoints::RequestStream;
use fuchsia_async as fasync;
use fuchsia_zircon as zx;

/// Makes something of connections.
pub trait Connect {
    /// What it makes.
    type Output;

    /// What it makes of this one; nothing if it has seen to it itself.
    fn connect(&mut self, channel: zx::Channel) -> Option<Self::Output>;
}

/// A boxed service, which may be able to go to other threads.
pub trait ServiceObjTrait {
    /// What it makes of connections.
    type Output;

    /// The service.
    fn service(&mut self) -> &mut dyn Connect<Output = Self::Output>;
}

/// A service that stays on its thread.
pub struct ServiceObjLocal<'a, Output>(Box<dyn Connect<Output = Output> + 'a>);

/// A service that can go to other threads.
pub struct ServiceObj<'a, Output>(Box<dyn Connect<Output = Output> + Send + 'a>);

impl<Output> ServiceObjTrait for ServiceObjLocal<'_, Output> {
    type Output = Output;
    fn service(&mut self) -> &mut dyn Connect<Output = Output> {
        &mut *self.0
    }
}

impl<Output> ServiceObjTrait for ServiceObj<'_, Output> {
    type Output = Output;
    fn service(&mut self) -> &mut dyn Connect<Output = Output> {
        &mut *self.0
    }
}

/// A service that makes something of a protocol's requests.
pub struct Service<F, R, Output> {
    function: F,
    types: PhantomData<fn(R) -> Output>,
}

impl<F: FnMut(R) -> Output, R: RequestStream, Output> Service<F, R, Output> {
    pub(super) fn new(function: F) -> Self {
        Service { function, types: PhantomData }
    }
}

impl<F: FnMut(R) -> Output, R: RequestStream, Output> Connect for Service<F, R, Output> {
    type Output = Output;

    fn connect(&mut self, channel: zx::Channel) -> Option<Output> {
        let channel = fasync::Channel::from_channel(channel);
        Some((self.function)(R::from_channel(channel)))
    }
}

impl<'a, F, R, Output> From<Service<F, R, Output>> for ServiceObjLocal<'a, Output>
where
    F: FnMut(R) -> Output + 'a,
    R: RequestStream + 'a,
    Output: 'a,
{
    fn from(service: Service<F, R, Output>) -> Self {
        ServiceObjLocal(Box::new(service))
    }
}

impl<'a, F, R, Output> From<Service<F, R, Output>> for ServiceObj<'a, Output>
where
    F: FnMut(R) -> Output + Send + 'a,
    R: RequestStream + 'a,
    Output: 'a,
{
    fn from(service: Service<F, R, Output>) -> Self {
        ServiceObj(Box::new(service))
    }
}

/// A service that is given channels.
pub struct Raw<F>(pub(super) F);

impl<F: FnMut(zx::Channel) -> Option<Output>, Output> Connect for RawConnect<F, Output> {
    type Output = Output;

    fn connect(&mut self, channel: zx::Channel) -> Option<Output> {
        (self.0)(channel)
    }
}

struct RawConnect<F, Output>(F, PhantomData<fn() -> Output>);

impl<'a, F, Output> From<Raw<F>> for ServiceObjLocal<'a, Output>
where
    F: FnMut(zx::Channel) -> Option<Output> + 'a,
    Output: 'a,
{
    fn from(Raw(function): Raw<F>) -> Self {
        ServiceObjLocal(Box::new(RawConnect(function, PhantomData)))
    }
}

impl<'a, F, Output> From<Raw<F>> for ServiceObj<'a, Output>
where
    F: FnMut(zx::Channel) -> Option<Output> + Send + 'a,
    Output: 'a,
{
    fn from(Raw(function): Raw<F>) -> Self {
        ServiceObj(Box::new(RawConnect(function, PhantomData)))
    }
}
