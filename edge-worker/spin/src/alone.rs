//! Calls of one instance that do not wake each other.
//!
//! Each call is a task of the component model, and only the host may wake another task: what `wit-bindgen` does when Rust tries is trap, which ends
//! every call of the instance. The driver wakes calls that wait for the same lease. Here that is left undone, and costs little: whoever waits looks by itself
//! a few times a second.

use std::{
    cell::Cell,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

thread_local! {
    /// Whose turn it is, while it is a call's.
    static RUNNING: Cell<Option<u64>> = const { Cell::new(None) };
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

/// A call, among those of its instance.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call(u64);

impl Call {
    pub(crate) fn new() -> Call {
        let number = CALLS.get();
        CALLS.set(number.wrapping_add(1));
        Call(number)
    }

    /// What a call does, which nothing that another one does can wake.
    pub(crate) fn alone<F: Future>(self, work: F) -> Alone<F> {
        Alone {
            call: self,
            work: Box::pin(work),
        }
    }
}

pub(crate) struct Alone<F> {
    call: Call,
    work: Pin<Box<F>>,
}

impl<F: Future> Future for Alone<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let waker = Waker::from(Arc::new(Own {
            call: self.call,
            waker: context.waker().clone(),
        }));
        let before = RUNNING.replace(Some(self.call.0));
        let polled = self.work.as_mut().poll(&mut Context::from_waker(&waker));
        RUNNING.set(before);
        polled
    }
}

struct Own {
    call: Call,
    waker: Waker,
}

impl Wake for Own {
    fn wake(self: Arc<Self>) {
        // Nobody's turn: the host has something for this call.
        if RUNNING.get().is_none_or(|running| running == self.call.0) {
            self.waker.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::task::noop_waker;
    use std::sync::atomic::{AtomicU32, Ordering};

    struct Counted(AtomicU32);

    impl Wake for Counted {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Polls a call whose work keeps its waker, and gives that.
    fn waker_of(call: Call, outside: &Waker) -> Waker {
        let mut kept = None;
        let mut work = call.alone(std::future::poll_fn(|context| {
            kept = Some(context.waker().clone());
            Poll::<()>::Pending
        }));
        assert!(
            Pin::new(&mut work)
                .poll(&mut Context::from_waker(outside))
                .is_pending()
        );
        drop(work);
        kept.unwrap()
    }

    #[test]
    fn a_call_is_woken_by_the_host_and_by_itself_and_by_no_other() {
        let counted = Arc::new(Counted(AtomicU32::new(0)));
        let (one, other) = (Call::new(), Call::new());
        let waker = waker_of(one, &Waker::from(Arc::clone(&counted)));
        let wake_in = |call: Call| {
            let mut work = call.alone(async { waker.wake_by_ref() });
            let noop = noop_waker();
            assert!(
                Pin::new(&mut work)
                    .poll(&mut Context::from_waker(&noop))
                    .is_ready()
            );
            counted.0.load(Ordering::SeqCst)
        };
        assert_eq!(wake_in(other), 0);
        assert_eq!(wake_in(one), 1);
        waker.wake_by_ref();
        assert_eq!(counted.0.load(Ordering::SeqCst), 2);
    }
}
