//! The executor of one thread.

use std::cell::RefCell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::clock::Clock;
use crate::executor::{CurrentGuard, EHandle, Inner, MainWaker, Runnable};
use crate::task::LocalFuture;

/// Futures that cannot leave the thread. Their tasks, which can, know them by number.
#[derive(Default)]
pub(crate) struct LocalTasks(RefCell<Slots>);

#[derive(Default)]
struct Slots {
    futures: Vec<Option<LocalFuture>>,
    free: Vec<usize>,
}

impl LocalTasks {
    pub(crate) fn insert(&self, future: LocalFuture) -> usize {
        let mut slots = self.0.borrow_mut();
        match slots.free.pop() {
            Some(number) => {
                slots.futures[number] = Some(future);
                number
            }
            None => {
                slots.futures.push(Some(future));
                slots.futures.len() - 1
            }
        }
    }

    /// Polls a future, which is out of its slot meanwhile, so that it can make and drop others.
    pub(crate) fn poll(&self, number: usize, context: &mut Context<'_>) -> Poll<()> {
        let future = self.0.borrow_mut().futures.get_mut(number).and_then(Option::take);
        let Some(mut future) = future else {
            return Poll::Ready(());
        };
        let result = future.as_mut().poll(context);
        self.0.borrow_mut().futures[number] = Some(future);
        result
    }

    pub(crate) fn remove(&self, number: usize) {
        let future = {
            let mut slots = self.0.borrow_mut();
            slots.free.push(number);
            slots.futures.get_mut(number).and_then(Option::take)
        };
        drop(future);
    }
}

/// An executor that runs everything on the thread that made it.
pub struct LocalExecutor {
    pub(crate) inner: Arc<Inner>,
    /// Also keeps the executor on its thread.
    _locals: Rc<LocalTasks>,
    current: Option<CurrentGuard>,
}

impl LocalExecutor {
    /// Makes the executor of this thread.
    ///
    /// # Panics
    /// If the thread has one.
    #[expect(clippy::new_without_default, reason = "what panics the second time is no default")]
    pub fn new() -> LocalExecutor {
        LocalExecutor::with_clock(Clock::Monotonic)
    }

    pub(crate) fn with_clock(clock: Clock) -> LocalExecutor {
        let inner = Inner::new(clock);
        let locals = Rc::new(LocalTasks::default());
        let current = CurrentGuard::enter(&inner, Some(locals.clone()));
        LocalExecutor { inner, _locals: locals, current: Some(current) }
    }

    /// Runs `future` to its end, and every task meanwhile.
    pub fn run_singlethreaded<F: Future>(&mut self, future: F) -> F::Output {
        let mut future = pin!(future);
        let main = MainWaker::new(&self.inner);
        let waker = Waker::from(main.clone());
        let mut context = Context::from_waker(&waker);
        let result = RefCell::new(None);
        self.inner.run_until(
            || result.borrow().is_some(),
            |runnable| match runnable {
                Runnable::Task(task) => task.run(),
                Runnable::Main => {
                    main.taken();
                    if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                        result.replace(Some(output));
                    }
                }
            },
        );
        result.into_inner().expect("run_until returns when there is a result")
    }

    /// A handle to the executor.
    pub fn ehandle(&self) -> EHandle {
        EHandle::new(self.inner.clone())
    }
}

impl Drop for LocalExecutor {
    fn drop(&mut self) {
        // Still the thread's executor while futures are dropped, since what they own may look for it.
        self.inner.close();
        self.current = None;
    }
}
