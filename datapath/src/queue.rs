//! A bounded queue between two threads that wakes the one that sleeps.

use crate::Wake;
use crossbeam_utils::CachePadded;
use rtrb::{Consumer, Producer, RingBuffer};
use std::sync::Arc;

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering};

/// A queue of at most `capacity` items whose receiver sleeps in a way that `wake` ends.
pub fn channel<T>(capacity: usize, wake: impl Wake + 'static) -> (Sender<T>, Receiver<T>) {
    let (producer, consumer) = RingBuffer::new(capacity);
    let shared = Arc::new(Shared {
        drained: CachePadded::new(Drained::new()),
        sender_gone: AtomicBool::new(false),
    });
    let receiver = Receiver {
        consumer,
        shared: Arc::clone(&shared),
    };
    (
        Sender {
            producer,
            shared,
            wake: Box::new(wake),
        },
        receiver,
    )
}

/// The end that items go in.
pub struct Sender<T> {
    producer: Producer<T>,
    shared: Arc<Shared>,
    wake: Box<dyn Wake>,
}

/// The end that items come out.
pub struct Receiver<T> {
    consumer: Consumer<T>,
    shared: Arc<Shared>,
}

struct Shared {
    drained: CachePadded<Drained>,
    sender_gone: AtomicBool,
}

/// True from when the receiver found nothing until the next push, which wakes it: a burst costs
/// one wake-up.
///
/// Both sides change it by exchanges, which are totally ordered: if the push's exchange comes
/// second it finds `true` and wakes; if it comes first, the receiver's exchange acquires what it
/// released and the second look finds the item.
struct Drained(AtomicBool);

impl Drained {
    fn new() -> Self {
        Self(AtomicBool::new(true))
    }

    /// An item was added: whether the receiver must be woken.
    #[inline]
    fn pushed(&self) -> bool {
        self.0.swap(false, Ordering::AcqRel)
    }

    /// Nothing was found: whether to look once more before believing it.
    #[inline]
    fn found_nothing(&self) -> bool {
        // Reading `true` late means that a push has just changed it, and wakes.
        !self.0.load(Ordering::Relaxed) && !self.0.swap(true, Ordering::AcqRel)
    }
}

impl<T> Sender<T> {
    /// Adds an item and wakes the receiver if it had found nothing.
    ///
    /// # Errors
    /// The queue is full, and the item comes back: a full queue is an answer.
    #[inline]
    pub fn push(&mut self, item: T) -> Result<(), T> {
        self.producer
            .push(item)
            .map_err(|rtrb::PushError::Full(item)| item)?;
        if self.shared.drained.pushed() {
            self.wake.wake();
        }
        Ok(())
    }

    /// How many items can be added at least.
    pub fn room(&self) -> usize {
        self.producer.slots()
    }

    /// Whether nobody will take the items any more.
    pub fn is_abandoned(&self) -> bool {
        self.producer.is_abandoned()
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.shared.sender_gone.store(true, Ordering::Release);
        self.wake.wake();
    }
}

impl<T> Receiver<T> {
    /// Takes the oldest item. After `None` the next push wakes this side, so take until `None`
    /// before sleeping.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        let item = self.consumer.pop().ok();
        if item.is_none() && self.shared.drained.found_nothing() {
            return self.consumer.pop().ok();
        }
        item
    }

    /// How many items can be taken at least.
    pub fn waiting(&self) -> usize {
        self.consumer.slots()
    }

    /// Whether no further item can come; those that wait can still be taken, so ask before the
    /// last [`pop`](Self::pop), not after it. The sender's end wakes this side.
    pub fn is_abandoned(&self) -> bool {
        self.shared.sender_gone.load(Ordering::Acquire)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::Sleeper;
    use std::sync::atomic::AtomicUsize;
    use std::time::{Duration, Instant};

    fn counted() -> (Arc<AtomicUsize>, impl Wake + 'static) {
        let wakes = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&wakes);
        (wakes, move || {
            count.fetch_add(1, Ordering::Relaxed);
        })
    }

    #[test]
    fn a_full_queue_is_an_answer() {
        let (mut sender, mut receiver) = channel(2, || {});
        assert_eq!(sender.push(1), Ok(()));
        assert_eq!(sender.push(2), Ok(()));
        assert_eq!(sender.push(3), Err(3));
        assert_eq!(receiver.pop(), Some(1));
        assert_eq!(sender.push(3), Ok(()));
        assert_eq!(
            [receiver.pop(), receiver.pop(), receiver.pop()],
            [Some(2), Some(3), None]
        );
    }

    #[test]
    fn a_burst_wakes_once() {
        let (wakes, wake) = counted();
        let (mut sender, mut receiver) = channel(8, wake);
        for item in 0..5 {
            sender.push(item).unwrap();
        }
        assert_eq!(wakes.load(Ordering::Relaxed), 1);
        while receiver.pop().is_some() {}
        sender.push(5).unwrap();
        assert_eq!(wakes.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn the_end_of_the_sender_wakes_and_shows() {
        let (wakes, wake) = counted();
        let (mut sender, mut receiver) = channel(8, wake);
        sender.push(1).unwrap();
        assert!(!receiver.is_abandoned());
        drop(sender);
        assert_eq!(wakes.load(Ordering::Relaxed), 2);
        assert!(receiver.is_abandoned());
        assert_eq!(
            [receiver.pop(), receiver.pop()],
            [Some(1), None],
            "what was sent stays"
        );
    }

    #[test]
    fn the_end_of_the_receiver_shows() {
        let (sender, receiver) = channel::<u32>(8, || {});
        assert!(!sender.is_abandoned());
        drop(receiver);
        assert!(sender.is_abandoned());
    }

    #[test]
    fn every_item_of_a_race_comes_in_order_and_no_wake_is_lost() {
        const ITEMS: u32 = 200_000;
        const LONG: Duration = Duration::from_secs(30);
        let mut sleeper = Sleeper::new().unwrap();
        let (mut sender, mut receiver) = channel(64, sleeper.waker());
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for item in 0..ITEMS {
                    while sender.push(item).is_err() {
                        std::thread::yield_now();
                    }
                }
            });
            let mut next = 0;
            while next < ITEMS {
                sleeper.take_wakeups();
                while let Some(item) = receiver.pop() {
                    assert_eq!(item, next);
                    next += 1;
                }
                let start = Instant::now();
                if next < ITEMS {
                    sleeper.sleep(None, LONG).unwrap();
                }
                assert!(
                    start.elapsed() < LONG,
                    "a wake-up was lost before item {next}"
                );
            }
        });
    }
}

/// `RUSTFLAGS="--cfg loom" cargo test -p nearwire-datapath --lib --release loom`
#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;

    #[test]
    fn no_interleaving_leaves_an_item_without_a_wake() {
        loom::model(|| {
            let drained = loom::sync::Arc::new(Drained::new());
            let item = loom::sync::Arc::new(AtomicBool::new(false));
            let woken = loom::sync::Arc::new(AtomicBool::new(false));
            // In the middle of a burst: the receiver was woken for an earlier item.
            assert!(drained.pushed());
            let producer = loom::thread::spawn({
                let (drained, item, woken) = (drained.clone(), item.clone(), woken.clone());
                move || {
                    item.store(true, Ordering::Release);
                    if drained.pushed() {
                        woken.store(true, Ordering::Release);
                    }
                }
            });
            let look = || item.load(Ordering::Acquire);
            let found = look() || (drained.found_nothing() && look());
            producer.join().unwrap();
            assert!(
                found || woken.load(Ordering::Acquire),
                "an item waits, and nobody wakes"
            );
        });
    }
}
