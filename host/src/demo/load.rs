//! The demo's client: writes unique keys without a pause and remembers what was acknowledged.

use super::values::Values;
use bench::load::latencies;
use consensus::client::{Client, Event, Failure};
use consensus::wire::{self, Parsed};
use datapath::{Service, Transmit};
use hdrhistogram::Histogram;
use std::collections::{BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Longest sleep, so that a phase is noticed soon.
const MAX_SLEEP: Duration = Duration::from_millis(20);
/// How long the last answers are waited for.
const PATIENCE_NS: u64 = 10_000_000_000;

/// The parts of a run, as the client sees them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(usize)]
pub(super) enum Phase {
    /// Nothing is recorded.
    WarmUp,
    /// All replicas are up.
    Steady,
    /// From the moment before the leader is killed.
    Failover,
    /// From the restart of the killed replica.
    Rejoin,
    /// Nothing new is written, and the last answers are waited for.
    Drain,
    /// The client ends at once.
    Over,
}

impl Phase {
    const ALL: [Self; 6] = [
        Self::WarmUp,
        Self::Steady,
        Self::Failover,
        Self::Rejoin,
        Self::Drain,
        Self::Over,
    ];
}

/// What the thread of the run and that of the client share.
#[derive(Debug, Default)]
pub(super) struct Control {
    phase: AtomicUsize,
    acknowledged: AtomicU64,
}

impl Control {
    pub(super) fn enter(&self, phase: Phase) {
        self.phase.store(phase as usize, Ordering::Release);
    }

    fn phase(&self) -> Phase {
        Phase::ALL[self.phase.load(Ordering::Acquire)]
    }

    /// Writes acknowledged so far.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }
}

/// What was measured in one phase.
#[derive(Clone, Debug)]
pub(super) struct Window {
    /// Latencies in nanoseconds of the writes that were acknowledged in this phase. Those under way
    /// at the end of a phase are counted by the next; those that arose in the warm-up by none.
    pub(super) latencies: Histogram<u64>,
    /// Writes acknowledged.
    pub(super) acknowledged: u64,
    /// Longest time between two acknowledgements of which the second fell into this phase.
    pub(super) longest_gap_ns: u64,
    /// How long the phase took.
    pub(super) duration_ns: u64,
}

impl Window {
    fn new() -> Self {
        Self {
            latencies: latencies(),
            acknowledged: 0,
            longest_gap_ns: 0,
            duration_ns: 0,
        }
    }
}

/// A write under way. Answers come in the order of submission.
struct Write {
    index: u64,
    arose_ns: u64,
    phase: Phase,
}

/// What the client knows at the end.
pub(super) struct Outcome {
    /// Writes submitted: their numbers are 0 up to this.
    pub(super) submitted: u64,
    /// Those of which the client does not know whether they were carried out.
    pub(super) unknown: BTreeSet<u64>,
    /// By phase.
    windows: [Window; Phase::ALL.len()],
    /// A reply that no write should get.
    pub(super) refused: Option<String>,
}

impl Outcome {
    pub(super) fn window(&self, phase: Phase) -> &Window {
        &self.windows[phase as usize]
    }
}

/// The client as a worker's service.
pub(super) struct Load {
    client: Client,
    outstanding: usize,
    values: Values,
    control: Arc<Control>,
    phase: Phase,
    phase_began_ns: Option<u64>,
    under_way: VecDeque<Write>,
    last_ns: Option<u64>,
    outcome: Outcome,
    over: bool,
}

impl Load {
    pub(super) fn new(
        client: Client,
        outstanding: usize,
        values: Values,
        control: Arc<Control>,
    ) -> Self {
        Self {
            client,
            outstanding,
            values,
            control,
            phase: Phase::WarmUp,
            phase_began_ns: None,
            under_way: VecDeque::with_capacity(outstanding),
            last_ns: None,
            outcome: Outcome {
                submitted: 0,
                unknown: BTreeSet::new(),
                windows: std::array::from_fn(|_| Window::new()),
                refused: None,
            },
            over: false,
        }
    }

    /// What was never answered has an unknown outcome.
    pub(super) fn finish(mut self) -> Outcome {
        self.outcome
            .unknown
            .extend(self.under_way.iter().map(|write| write.index));
        self.outcome
    }

    fn follow(&mut self, now_ns: u64) {
        let began_ns = *self.phase_began_ns.get_or_insert(now_ns);
        let phase = self.control.phase();
        if phase != self.phase {
            self.outcome.windows[self.phase as usize].duration_ns = now_ns - began_ns;
            self.phase = phase;
            self.phase_began_ns = Some(now_ns);
        }
    }

    fn ended(&mut self, now_ns: u64, event: Event) {
        let Some(write) = self.under_way.pop_front() else {
            return;
        };
        assert_eq!(
            write.index, event.token,
            "commands end in the order of their submission"
        );
        match event.result {
            Ok(reply) if reply == b"+OK\r\n" => self.acknowledged(now_ns, &write),
            Ok(reply) => {
                let reply = String::from_utf8_lossy(&reply).trim().to_owned();
                self.refuse(write.index, reply);
            }
            Err(Failure::OutcomeUnknown | Failure::ReplyForgotten) => {
                self.outcome.unknown.insert(write.index);
            }
            Err(failure @ (Failure::TooLarge | Failure::TooManySessions)) => {
                self.refuse(write.index, failure.to_string());
            }
        }
    }

    fn refuse(&mut self, index: u64, reply: String) {
        self.outcome.unknown.insert(index);
        self.outcome.refused.get_or_insert(reply);
        self.over = true;
    }

    fn acknowledged(&mut self, now_ns: u64, write: &Write) {
        let window = &mut self.outcome.windows[self.phase as usize];
        window.acknowledged += 1;
        if write.phase != Phase::WarmUp {
            window
                .latencies
                .saturating_record((now_ns - write.arose_ns).max(1));
        }
        if let Some(last_ns) = self.last_ns.replace(now_ns) {
            window.longest_gap_ns = window.longest_gap_ns.max(now_ns - last_ns);
        }
        self.control.acknowledged.fetch_add(1, Ordering::Relaxed);
    }

    fn submit(&mut self, now_ns: u64) {
        while self.under_way.len() < self.outstanding {
            let index = self.outcome.submitted;
            if self
                .client
                .submit_command(index, &self.values.set(index))
                .is_err()
            {
                break;
            }
            self.outcome.submitted += 1;
            self.under_way.push_back(Write {
                index,
                arose_ns: now_ns,
                phase: self.phase,
            });
        }
    }

    fn is_over(&self, now_ns: u64) -> bool {
        let began_ns = self.phase_began_ns.unwrap_or(now_ns);
        match self.phase {
            Phase::WarmUp | Phase::Steady | Phase::Failover | Phase::Rejoin => false,
            Phase::Drain => self.under_way.is_empty() || now_ns > began_ns + PATIENCE_NS,
            Phase::Over => true,
        }
    }
}

impl Service for Load {
    fn packet<T: Transmit>(&mut self, now_ns: u64, from: SocketAddr, datagram: &[u8], _: &mut T) {
        if let Parsed::Ours(header, value) = wire::parse(datagram, usize::from(u16::MAX)) {
            self.client.handle_datagram(now_ns, from, &header, value);
        }
    }

    fn turn<T: Transmit>(&mut self, now_ns: u64, tx: &mut T) -> Duration {
        self.follow(now_ns);
        if self
            .client
            .poll_timeout()
            .is_some_and(|at_ns| at_ns <= now_ns)
        {
            self.client.handle_timeout(now_ns);
        }
        while let Some(event) = self.client.poll_event() {
            self.ended(now_ns, event);
        }
        if self.phase < Phase::Drain {
            self.submit(now_ns);
        }
        while let Some(datagram) = self.client.poll_transmit(now_ns) {
            // A full queue drops it; the client repeats it.
            tx.send(datagram.to, &datagram.header.to_bytes(), datagram.value);
        }
        self.over |= self.is_over(now_ns);
        let due_ns = self.client.poll_timeout().unwrap_or(u64::MAX);
        Duration::from_nanos(due_ns.saturating_sub(now_ns)).min(MAX_SLEEP)
    }

    fn stopping(&self) -> bool {
        self.over
    }
}
