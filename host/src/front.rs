//! What attaches a client front end (RESP, …) to the worker: two bounded rings and two wake-ups.
//!
//! The worker executes the commands of one front and group in exactly the order submitted, each
//! exactly once: a front is one FIFO session of each group. Queries are linearizable but not ordered
//! against commands in flight; a front that needs that order submits the query as a command.

use consensus::GroupId;
use consensus::simulation::{Mutation, mutated};
use datapath::clock;
use rtrb::{Consumer, Producer, RingBuffer};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// How a submission is executed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Goes through the log.
    Command,
    /// A linearizable read that never changes state.
    Query,
}

/// One command or query on its way to the worker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Submission {
    /// The front's own name for it, given back in the [`Completion`].
    pub token: u64,
    /// How it is executed.
    pub access: Access,
    /// Whose log or state it is for.
    pub group: GroupId,
    /// What the state machine is given.
    pub body: Vec<u8>,
}

/// What became of a submission. Every submission is completed exactly once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Completion {
    /// The token of the submission.
    pub token: u64,
    /// The state machine's reply.
    pub result: Result<Vec<u8>, Failure>,
}

/// Why a submission has no reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failure {
    /// It was not executed: nobody leads, or nobody did for as long as the worker cared to wait.
    #[error("execute command: no leader")]
    NoLeader,
    /// It was not executed: it does not fit a log value.
    #[error("execute command: longer than this cluster's limit of {limit} bytes")]
    TooLarge {
        /// Longest body in bytes.
        limit: usize,
    },
    /// It may or may not have been executed, and no one can tell any more.
    #[error("execute command: the outcome is unknown")]
    OutcomeUnknown,
    /// It was not executed: too much is in flight.
    #[error("execute command: overloaded")]
    Overloaded,
    /// It was not executed: this node is shutting down.
    #[error("execute command: this node is stopping")]
    Stopping,
}

/// Wakes the other side out of its poll; called from this side's thread, at most once per turn.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// Appends the answer to a query from what the worker has applied in a group, on any thread.
pub type Read = Box<dyn Fn(GroupId, &[u8], &mut Vec<u8>) + Send + Sync>;

/// Until when queries may be answered without the worker. Times are the monotonic clock's, in
/// nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Lease {
    /// Nobody else leads before this, and everything that was acknowledged to anyone is applied.
    pub until_ns: u64,
    /// Whoever answers after this asks for the next one.
    pub renew_ns: u64,
}

/// A [`Lease`] as both sides see it; its end is the last word that is written, and the first read.
#[derive(Default)]
struct SharedLease {
    until_ns: AtomicU64,
    renew_ns: AtomicU64,
    wanted: AtomicBool,
}

/// Those of all groups.
struct SharedLeases {
    of_groups: Box<[SharedLease]>,
    /// At least one of them is wanted.
    wanted: AtomicBool,
}

/// The front's side: submits and learns what became of it.
pub struct FrontEnd {
    read: Option<Read>,
    /// The last answer.
    answer: Vec<u8>,
    leases: Arc<SharedLeases>,
    /// Of each group, the end of the lease for whose successor it has asked.
    renewed_ns: Box<[u64]>,
    submissions: Producer<Submission>,
    completions: Consumer<Completion>,
    in_flight: usize,
    capacity: usize,
    wake_worker: Bell,
}

/// The worker's side: takes submissions and completes them.
pub struct WorkerEnd {
    leases: Arc<SharedLeases>,
    submissions: Consumer<Submission>,
    completions: Producer<Completion>,
    wake_front: Bell,
}

/// Joins a front to the worker, which has so many groups, with at most `capacity` submissions not yet
/// completed.
///
/// Neither side wakes the other before it calls `flush`, so a turn of many submissions costs one
/// wake-up; a side that is dropped wakes the other, which then sees `is_detached`.
///
/// # Panics
/// If `capacity` is zero.
pub fn attach(
    capacity: usize,
    groups: u16,
    wake_worker: Wake,
    wake_front: Wake,
) -> (FrontEnd, WorkerEnd) {
    assert!(capacity > 0, "a front needs room for one submission");
    let (submit, submissions) = RingBuffer::new(capacity);
    let (complete, completions) = RingBuffer::new(capacity);
    let leases = Arc::new(SharedLeases {
        of_groups: (0..groups).map(|_| SharedLease::default()).collect(),
        wanted: AtomicBool::new(false),
    });
    (
        FrontEnd {
            read: None,
            answer: Vec::new(),
            leases: Arc::clone(&leases),
            renewed_ns: vec![0; usize::from(groups)].into(),
            submissions: submit,
            completions,
            in_flight: 0,
            capacity,
            wake_worker: Bell::new(wake_worker),
        },
        WorkerEnd {
            leases,
            submissions,
            completions: complete,
            wake_front: Bell::new(wake_front),
        },
    )
}

impl FrontEnd {
    /// Has queries answered by `read` on this side while the worker holds a lease.
    #[must_use]
    pub fn reading(self, read: Read) -> Self {
        Self {
            read: Some(read),
            ..self
        }
    }

    /// The answer to a query of a group that has been read from its client, if it can be had without
    /// the worker.
    ///
    /// The clock is looked at after the query came and after the lease was: a thread that was
    /// stopped in between finds that the lease has run out. What it reads later is no older.
    pub fn answer(&mut self, group: GroupId, query: &[u8]) -> Option<&[u8]> {
        let read = self.read.as_ref()?;
        let lease = self.leases.of_groups.get(usize::from(group.0))?;
        let until_ns = lease.until_ns.load(Ordering::Acquire);
        if until_ns == 0 {
            return None;
        }
        let now_ns = clock::monotonic_ns();
        if now_ns >= until_ns && !mutated(Mutation::LeaseOutlived) {
            return None;
        }
        let renewed_ns = self.renewed_ns.get_mut(usize::from(group.0))?;
        if now_ns >= lease.renew_ns.load(Ordering::Relaxed) && *renewed_ns != until_ns {
            *renewed_ns = until_ns;
            lease.wanted.store(true, Ordering::Relaxed);
            self.leases.wanted.store(true, Ordering::Release);
            self.wake_worker.pending = true;
        }
        self.answer.clear();
        read(group, query, &mut self.answer);
        Some(&self.answer)
    }

    /// Hands `submission` to the worker, or gives it back when `capacity` are in flight (or the
    /// worker is gone): take completions and try again.
    #[allow(clippy::result_large_err, reason = "the submission itself comes back")]
    pub fn submit(&mut self, submission: Submission) -> Result<(), Submission> {
        if self.in_flight == self.capacity || self.submissions.is_abandoned() {
            return Err(submission);
        }
        self.submissions
            .push(submission)
            .map_err(|rtrb::PushError::Full(back)| back)?;
        self.in_flight += 1;
        self.wake_worker.pending = true;
        Ok(())
    }

    /// The next completion, if there is one.
    pub fn poll_completion(&mut self) -> Option<Completion> {
        let completion = self.completions.pop().ok()?;
        self.in_flight -= 1;
        Some(completion)
    }

    /// How many submissions have not been completed.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Wakes the worker if anything was submitted since the last call.
    pub fn flush(&mut self) {
        self.wake_worker.ring();
    }

    /// The worker is gone and has left no completion behind: what is in flight has no known
    /// outcome.
    pub fn is_detached(&self) -> bool {
        self.submissions.is_abandoned() && self.completions.is_empty()
    }
}

impl WorkerEnd {
    /// The front may answer queries of a group by this lease from now on, and by no earlier one.
    pub fn lend(&mut self, group: GroupId, lease: Lease) {
        let Some(shared) = self.leases.of_groups.get(usize::from(group.0)) else {
            return;
        };
        if shared.until_ns.load(Ordering::Relaxed) != lease.until_ns {
            shared.renew_ns.store(lease.renew_ns, Ordering::Relaxed);
            shared.until_ns.store(lease.until_ns, Ordering::Release);
        }
    }

    /// The groups for which the front has asked for the next lease since this was asked last.
    pub fn wanted_leases(&mut self, mut wanted: impl FnMut(GroupId)) {
        if !self.leases.wanted.load(Ordering::Relaxed)
            || !self.leases.wanted.swap(false, Ordering::Acquire)
        {
            return;
        }
        for (group, lease) in (0..).map(GroupId).zip(&self.leases.of_groups) {
            if lease.wanted.swap(false, Ordering::Relaxed) {
                wanted(group);
            }
        }
    }

    /// The next submission in the order of the front's calls.
    pub fn poll_submission(&mut self) -> Option<Submission> {
        self.submissions.pop().ok()
    }

    /// Gives the front what became of a submission. The front bounds what is in flight, so there
    /// always is room; a front that is gone no longer cares.
    ///
    /// # Panics
    /// If more is completed than was submitted.
    pub fn complete(&mut self, completion: Completion) {
        let pushed = self.completions.push(completion);
        assert!(
            pushed.is_ok() || self.completions.is_abandoned(),
            "every submission is completed once"
        );
        self.wake_front.pending = true;
    }

    /// Wakes the front if anything was completed since the last call.
    pub fn flush(&mut self) {
        self.wake_front.ring();
    }

    /// The front is gone and has left no submission behind.
    pub fn is_detached(&self) -> bool {
        self.submissions.is_abandoned() && self.submissions.is_empty()
    }
}

/// A wake-up that is due; it rings once more when its side is dropped.
struct Bell {
    wake: Wake,
    pending: bool,
}

impl Bell {
    fn new(wake: Wake) -> Self {
        Self {
            wake,
            pending: false,
        }
    }

    fn ring(&mut self) {
        if std::mem::take(&mut self.pending) {
            (self.wake)();
        }
    }
}

// Fields are dropped in the order of their declaration: the rings are already abandoned when the
// bell rings, so the other side cannot look too early.
impl Drop for Bell {
    fn drop(&mut self) {
        (self.wake)();
    }
}

impl fmt::Debug for FrontEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrontEnd")
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for WorkerEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerEnd")
            .field("waiting", &self.submissions.slots())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn counting() -> (Wake, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&count);
        (
            Arc::new(move || _ = seen.fetch_add(1, Ordering::Relaxed)),
            count,
        )
    }

    fn submission(token: u64) -> Submission {
        Submission {
            token,
            access: Access::Command,
            group: GroupId(0),
            body: vec![],
        }
    }

    #[test]
    fn a_full_ring_gives_the_submission_back_until_one_is_completed() {
        let (wake, _) = counting();
        let (mut front, mut worker) = attach(2, 1, Arc::clone(&wake), wake);
        assert_eq!(front.submit(submission(1)), Ok(()));
        assert_eq!(front.submit(submission(2)), Ok(()));
        let first = worker.poll_submission().expect("submitted");
        assert_eq!(front.submit(submission(3)), Err(submission(3)));
        worker.complete(Completion {
            token: first.token,
            result: Ok(vec![]),
        });
        assert_eq!(front.poll_completion().map(|done| done.token), Some(1));
        assert_eq!(front.submit(submission(3)), Ok(()));
        assert_eq!(front.in_flight(), 2);
    }

    #[test]
    fn one_turn_costs_one_wake_up() {
        let (wake_worker, rung) = counting();
        let (wake_front, _) = counting();
        let (mut front, _worker) = attach(8, 1, wake_worker, wake_front);
        front.flush();
        assert_eq!(rung.load(Ordering::Relaxed), 0);
        for token in 0..5 {
            front.submit(submission(token)).expect("room");
        }
        front.flush();
        front.flush();
        assert_eq!(rung.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_dropped_side_wakes_the_other_which_sees_it() {
        let (wake_worker, _) = counting();
        let (wake_front, rung) = counting();
        let (mut front, worker) = attach(8, 1, wake_worker, wake_front);
        assert!(!front.is_detached());
        drop(worker);
        assert_eq!(rung.load(Ordering::Relaxed), 1);
        assert!(front.is_detached());
        assert!(front.submit(submission(1)).is_err());
    }
}
