//! Wakes a thread that sleeps on file descriptors.

use crate::alarm::Alarm;
use crossbeam_utils::CachePadded;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

#[cfg(loom)]
use loom::sync::atomic::{AtomicU8, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU8, Ordering};

/// Longest sleep; longer ones are cut to it, which nobody can tell from an early return.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// Something that can be woken: a [`Waker`], or any closure (to wake a `mio` thread, say).
pub trait Wake: Send + Sync {
    /// Makes the other side look at its work again. May be called at any time, from any thread.
    fn wake(&self);
}

impl<F: Fn() + Send + Sync> Wake for F {
    fn wake(&self) {
        self();
    }
}

/// Ends the sleep of a [`Sleeper`], or prevents the next one. Costs a system call only if it
/// sleeps.
#[derive(Clone)]
pub struct Waker {
    shared: Arc<Shared>,
}

/// The side that sleeps. There is one, and it belongs to one thread at a time.
pub struct Sleeper {
    shared: Arc<Shared>,
    alarm: Alarm,
    syscalls: u64,
}

struct Shared {
    token: CachePadded<Token>,
    event: EventFd,
}

impl Waker {
    /// Makes the sleeper look at its work again.
    #[inline]
    pub fn wake(&self) {
        if self.shared.token.notify() {
            // A full counter is as readable as a fresh one, so that the answer does not matter.
            let _ = self.shared.event.write(1);
        }
    }
}

impl Wake for Waker {
    #[inline]
    fn wake(&self) {
        Waker::wake(self);
    }
}

impl Sleeper {
    /// A sleeper that nobody can wake yet.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn new() -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let shared = Shared {
            token: CachePadded::new(Token::new()),
            event,
        };
        Ok(Self {
            shared: Arc::new(shared),
            alarm: Alarm::new()?,
            syscalls: 0,
        })
    }

    /// A handle that ends the sleep.
    pub fn waker(&self) -> Waker {
        Waker {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Takes the wake-ups so far and says whether there were any. What was published before them is
    /// visible from here on, so look at it before the next sleep.
    #[inline]
    pub fn take_wakeups(&mut self) -> bool {
        self.shared.token.clear()
    }

    /// Sleeps until `also` is readable, a waker was called since
    /// [`take_wakeups`](Self::take_wakeups) or `at_most` is over. May return early.
    ///
    /// # Errors
    /// `also` cannot be waited for.
    pub fn sleep(&mut self, also: Option<BorrowedFd<'_>>, at_most: Duration) -> io::Result<()> {
        if at_most.is_zero() || !self.shared.token.fall_asleep() {
            return Ok(());
        }
        self.syscalls += u64::from(self.alarm.set(at_most.min(LONGEST_SLEEP))?);
        let event = self.shared.event.as_fd();
        let mut fds = [
            PollFd::new(event, PollFlags::POLLIN),
            PollFd::new(self.alarm.as_fd(), PollFlags::POLLIN),
            PollFd::new(also.unwrap_or(event), PollFlags::POLLIN),
        ];
        let awaited = 2 + usize::from(also.is_some());
        let woken = ppoll(&mut fds[..awaited], None, None);
        let [notified, fired] = [0, 1].map(|index: usize| fds[index].any().unwrap_or(false));
        self.shared.token.clear();
        self.syscalls += 1;
        // The write may still be under way when a packet ended the sleep. It then makes a later
        // sleep short, once.
        if notified {
            let _ = self.shared.event.read();
            self.syscalls += 1;
        }
        if fired {
            self.alarm.fired();
            self.syscalls += 1;
        }
        match woken {
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// System calls made to sleep.
    pub fn syscalls(&self) -> u64 {
        self.syscalls
    }
}

/// Who knows what about a wake-up.
///
/// No wake-up is lost, because every transition is a read-modify-write of one word, and those are
/// totally ordered. Say the work is published, then `notify` runs; `clear` runs, then the work is
/// looked for. If `clear` comes second it reads (a descendant of) what `notify` released, so the
/// work is found. If `notify` comes second, the word is `NOTIFIED` or was `ASLEEP` when it came:
/// `fall_asleep` refuses, or the event is written. A plain load in `notify`, to spare the exchange
/// when the word is `NOTIFIED` already, would need a SeqCst fence before it (the load may overtake
/// the publishing store), which costs as much as the exchange.
struct Token(AtomicU8);

const AWAKE: u8 = 0;
const NOTIFIED: u8 = 1;
const ASLEEP: u8 = 2;

impl Token {
    fn new() -> Self {
        Self(AtomicU8::new(AWAKE))
    }

    /// True if the sleeper must be woken through the kernel.
    #[inline]
    fn notify(&self) -> bool {
        self.0.swap(NOTIFIED, Ordering::AcqRel) == ASLEEP
    }

    /// True if it took a notification.
    #[inline]
    fn clear(&self) -> bool {
        // Seeing AWAKE late is harmless: the notification stays and prevents the next sleep.
        self.0.load(Ordering::Relaxed) != AWAKE && self.0.swap(AWAKE, Ordering::AcqRel) == NOTIFIED
    }

    /// False if a notification came since the last `clear`; it is taken then.
    fn fall_asleep(&self) -> bool {
        let slept = self
            .0
            .compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire)
            .is_ok();
        if !slept {
            self.clear();
        }
        slept
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn a_wake_before_sleep_is_not_lost() {
        let mut sleeper = Sleeper::new().unwrap();
        sleeper.waker().wake();
        let start = Instant::now();
        sleeper.sleep(None, LONG).unwrap();
        assert!(start.elapsed() < LONG);
        assert_eq!(
            sleeper.syscalls(),
            0,
            "nothing slept, so nothing was asked of the kernel"
        );
    }

    #[test]
    fn a_cleared_wake_does_not_end_the_next_sleep() {
        let mut sleeper = Sleeper::new().unwrap();
        sleeper.waker().wake();
        assert!(sleeper.take_wakeups() && !sleeper.take_wakeups());
        let start = Instant::now();
        sleeper.sleep(None, Duration::from_millis(20)).unwrap();
        assert!(start.elapsed() >= Duration::from_millis(20));
    }

    #[test]
    fn waking_the_awake_costs_no_system_call() {
        let sleeper = Sleeper::new().unwrap();
        sleeper.waker().wake();
        assert!(
            sleeper.shared.event.read().is_err(),
            "the event was written"
        );
    }

    #[test]
    fn every_wake_of_a_race_is_answered() {
        const ROUNDS: u64 = 20_000;
        let mut sleeper = Sleeper::new().unwrap();
        let waker = sleeper.waker();
        let (work, done) = (AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=ROUNDS {
                    work.store(round, Ordering::Release);
                    waker.wake();
                    while done.load(Ordering::Acquire) < round {
                        std::thread::yield_now();
                    }
                }
            });
            loop {
                sleeper.take_wakeups();
                let seen = work.load(Ordering::Acquire);
                done.store(seen, Ordering::Release);
                if seen == ROUNDS {
                    break;
                }
                let start = Instant::now();
                sleeper.sleep(None, LONG).unwrap();
                assert!(
                    start.elapsed() < LONG,
                    "the wake-up after round {seen} was lost"
                );
            }
        });
    }
}

/// `RUSTFLAGS="--cfg loom" cargo test -p nearwire-datapath --lib --release loom`
#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::sync::atomic::AtomicBool;

    #[test]
    fn no_interleaving_sleeps_on_published_work() {
        loom::model(|| {
            let token = loom::sync::Arc::new(Token::new());
            let work = loom::sync::Arc::new(AtomicBool::new(false));
            let kicked = loom::sync::Arc::new(AtomicBool::new(false));
            // An earlier notification, which the sleeper is about to take.
            token.notify();
            let producer = loom::thread::spawn({
                let (token, work, kicked) = (token.clone(), work.clone(), kicked.clone());
                move || {
                    work.store(true, Ordering::Release);
                    if token.notify() {
                        kicked.store(true, Ordering::Release);
                    }
                }
            });
            let mut asleep = false;
            for _ in 0..3 {
                token.clear();
                if work.load(Ordering::Acquire) {
                    break;
                }
                if token.fall_asleep() {
                    asleep = true;
                    break;
                }
            }
            producer.join().unwrap();
            assert!(
                !asleep || kicked.load(Ordering::Acquire),
                "asleep, and nobody kicks"
            );
        });
    }
}
