//! Waiting for the signals of any kernel object.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};

use futures::task::AtomicWaker;

use crate::executor::EHandle;
use crate::packets::{PacketReceiver, ReceiverRegistration};
use crate::zx::{self, AsHandleRef};

/// Completes with the signals that an object has as soon as it has any of those that are asked for.
#[must_use = "futures do nothing unless polled"]
pub struct OnSignals<'a, H: AsHandleRef + 'a> {
    handle: H,
    signals: zx::Signals,
    /// Once the wait has begun.
    registration: Option<ReceiverRegistration<Observed>>,
    borrows: PhantomData<&'a ()>,
}

/// Waits for the signals of an object that somebody else has.
pub type OnSignalsRef<'a> = OnSignals<'a, zx::HandleRef<'a>>;

#[derive(Default)]
struct Observed {
    /// 0 as long as nothing was observed.
    signals: AtomicU32,
    waker: AtomicWaker,
}

impl PacketReceiver for Observed {
    fn receive_packet(&self, packet: zx::Packet) {
        if let zx::PacketContents::SignalOne(packet) = packet.contents() {
            self.signals.store(packet.observed().bits(), Ordering::SeqCst);
            self.waker.wake();
        }
    }
}

impl<'a, H: AsHandleRef + 'a> OnSignals<'a, H> {
    /// Will wait for any of `signals` on the object of `handle`.
    pub fn new(handle: H, signals: zx::Signals) -> Self {
        OnSignals { handle, signals, registration: None, borrows: PhantomData }
    }

    fn wait(&self) -> Result<ReceiverRegistration<Observed>, zx::Status> {
        let registration = EHandle::local().register_receiver(Arc::new(Observed::default()));
        self.handle.wait_async_handle(
            registration.port(),
            registration.key(),
            self.signals,
            zx::WaitAsyncOpts::empty(),
        )?;
        Ok(registration)
    }

    fn cancel(&mut self) {
        if let Some(registration) = self.registration.take()
            && registration.signals.load(Ordering::SeqCst) == 0
        {
            // It may have happened meanwhile; then the packet finds nobody.
            let _ = registration.port().cancel(&self.handle.as_handle_ref(), registration.key());
        }
    }
}

// Only references to the handle are given out, so where it lies does not matter.
impl<'a, H: AsHandleRef + 'a> Unpin for OnSignals<'a, H> {}

impl<'a, H: AsHandleRef + 'a> Future for OnSignals<'a, H> {
    type Output = Result<zx::Signals, zx::Status>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.registration.is_none() {
            let registration = self.wait()?;
            self.registration = Some(registration);
        }
        let Some(registration) = &self.registration else {
            return Poll::Pending;
        };
        registration.waker.register(context.waker());
        match registration.signals.load(Ordering::SeqCst) {
            0 => Poll::Pending,
            signals => {
                self.registration = None;
                Poll::Ready(Ok(zx::Signals::from_raw(signals)))
            }
        }
    }
}

impl<'a, H: AsHandleRef + 'a> Drop for OnSignals<'a, H> {
    fn drop(&mut self) {
        self.cancel();
    }
}

impl<'a, H: AsHandleRef + 'a> std::fmt::Debug for OnSignals<'a, H> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("OnSignals").field("signals", &self.signals).finish_non_exhaustive()
    }
}
