//! Load on anything that answers datagrams.
//!
//! A [`Generator`] is a service of the worker loop, so that the cluster's client and the echo's
//! client run the same loop and differ only in their [`Caller`].

use datapath::{Service, Transmit};
use hdrhistogram::Histogram;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Longest latency that is told apart from longer ones, in nanoseconds.
const LONGEST_NS: u64 = 60_000_000_000;
/// Significant digits of every latency.
const DIGITS: u8 = 3;
/// Time between two progress reports in nanoseconds; also the longest sleep.
const PROGRESS_NS: u64 = 100_000_000;

/// How requests arise.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Load {
    /// So many requests are always under way: the next is made when one is answered. The latency
    /// counts from the submission.
    Closed {
        /// How many.
        outstanding: usize,
    },
    /// Requests arise at a constant rate, whatever became of the earlier ones. The latency counts
    /// from the moment at which the request was due, so that a stall delays all that fall into it
    /// ("coordinated omission", Tene 2013).
    Open {
        /// Requests per second.
        per_s: f64,
    },
}

/// What a generator does.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Plan {
    /// How requests arise.
    pub load: Load,
    /// Time before anything is recorded.
    pub warmup: Duration,
    /// Time in which requests that arise are recorded.
    pub measure: Duration,
    /// How long answers are waited for afterwards before they count as lost.
    pub patience: Duration,
}

/// Makes requests and understands the answers.
pub trait Caller {
    /// Takes a request, or refuses it because as many as possible are under way.
    fn submit(&mut self, token: u64) -> bool;

    /// Takes a packet that arrived.
    fn take(&mut self, now_ns: u64, from: SocketAddr, datagram: &[u8]);

    /// Sends what is to be sent, repetitions that are due included.
    fn give<T: Transmit>(&mut self, now_ns: u64, tx: &mut T);

    /// A request that ended: its token, and whether it was carried out.
    fn ended(&mut self) -> Option<(u64, bool)>;

    /// When [`give`](Self::give) has something to do even if no packet arrives.
    fn due_ns(&self) -> Option<u64>;

    /// Datagrams sent so far, and requests in them.
    fn sent(&self) -> Sent;
}

/// What left.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Sent {
    /// Datagrams.
    pub datagrams: u64,
    /// Requests in them, repetitions included.
    pub requests: u64,
}

/// Moments of a run that others want to know of.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Moment {
    /// The warm-up is over.
    Begins,
    /// Nothing new is recorded from here on.
    Ends,
    /// Sent now and then.
    Progress {
        /// The part of the run that is over, 0 to 1.
        part: f64,
        /// Requests carried out so far.
        done: u64,
    },
}

/// What a run measured.
#[derive(Clone, Debug)]
pub struct Sample {
    /// Latencies in nanoseconds of the requests that arose in the measured time.
    pub latencies: Histogram<u64>,
    /// Requests carried out within the measured time.
    pub completed: u64,
    /// The measured time.
    pub measured: Duration,
    /// Requests that arose in the measured time and failed or were never answered.
    pub lost: u64,
    /// What left in the whole run.
    pub sent: Sent,
}

impl Sample {
    /// Requests carried out per second.
    pub fn per_s(&self) -> f64 {
        self.completed as f64 / self.measured.as_secs_f64()
    }

    /// A quantile (0 to 1) of the latency in microseconds.
    pub fn latency_us(&self, quantile: f64) -> f64 {
        self.latencies.value_at_quantile(quantile) as f64 / 1000.0
    }
}

/// Whether somebody wants the run to end.
pub(crate) fn is_set(interrupt: Option<&AtomicBool>) -> bool {
    interrupt.is_some_and(|interrupt| interrupt.load(Ordering::Relaxed))
}

/// An empty histogram of nanoseconds with the bounds that all samples have.
pub fn latencies() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_NS, DIGITS).expect("the bounds are valid")
}

/// Times of one run in nanoseconds of the worker's clock.
#[derive(Clone, Copy)]
struct Times {
    start: u64,
    begin: u64,
    end: u64,
    give_up: u64,
}

/// Makes load and records what comes of it.
pub struct Generator<C, F> {
    caller: C,
    plan: Plan,
    observe: F,
    times: Option<Times>,
    begun: bool,
    ended: bool,
    /// Open loop: requests that arose.
    arisen: u64,
    under_way: usize,
    /// Measured requests that have not ended.
    awaited: u64,
    done: u64,
    next_progress_ns: u64,
    stopped: bool,
    interrupt: Option<&'static AtomicBool>,
    sample: Sample,
}

impl<C: Caller, F: FnMut(Moment)> Generator<C, F> {
    /// A generator that starts with its first turn.
    pub fn new(caller: C, plan: Plan, observe: F) -> Self {
        let sample = Sample {
            latencies: latencies(),
            completed: 0,
            measured: plan.measure,
            lost: 0,
            sent: Sent::default(),
        };
        Self {
            caller,
            plan,
            observe,
            times: None,
            begun: false,
            ended: false,
            arisen: 0,
            under_way: 0,
            awaited: 0,
            done: 0,
            next_progress_ns: 0,
            stopped: false,
            interrupt: None,
            sample,
        }
    }

    /// Ends early once `interrupt` is set, within a tenth of a second.
    #[must_use]
    pub fn until(self, interrupt: Option<&'static AtomicBool>) -> Self {
        Self { interrupt, ..self }
    }

    /// What was measured, and the caller.
    pub fn finish(self) -> (Sample, C) {
        let lost = self.sample.lost + self.awaited;
        (
            Sample {
                lost,
                sent: self.caller.sent(),
                ..self.sample
            },
            self.caller,
        )
    }

    fn times(&mut self, now_ns: u64) -> Times {
        let plan = &self.plan;
        *self.times.get_or_insert_with(|| {
            let begin = now_ns + nanoseconds(plan.warmup);
            let end = begin + nanoseconds(plan.measure);
            Times {
                start: now_ns,
                begin,
                end,
                give_up: end + nanoseconds(plan.patience),
            }
        })
    }

    fn collect(&mut self, now_ns: u64, times: Times) {
        while let Some((arose_ns, carried_out)) = self.caller.ended() {
            self.under_way -= 1;
            self.done += u64::from(carried_out);
            self.sample.completed +=
                u64::from(carried_out && (times.begin..times.end).contains(&now_ns));
            if !(times.begin..times.end).contains(&arose_ns) {
                continue;
            }
            self.awaited -= 1;
            if carried_out {
                self.sample
                    .latencies
                    .saturating_record((now_ns - arose_ns).max(1));
            } else {
                self.sample.lost += 1;
            }
        }
    }

    /// When the next request of an open loop arises.
    fn arises_ns(&self, times: Times, per_s: f64) -> u64 {
        times.start + (self.arisen as f64 * 1e9 / per_s) as u64
    }

    fn make(&mut self, now_ns: u64, times: Times) {
        match self.plan.load {
            Load::Closed { outstanding } => {
                while now_ns < times.end && self.under_way < outstanding {
                    if !self.submit(now_ns, times) {
                        break;
                    }
                }
            }
            Load::Open { per_s } => loop {
                let arises_ns = self.arises_ns(times, per_s);
                if arises_ns > now_ns || arises_ns >= times.end || !self.submit(arises_ns, times) {
                    break;
                }
                self.arisen += 1;
            },
        }
    }

    fn submit(&mut self, arose_ns: u64, times: Times) -> bool {
        let taken = self.caller.submit(arose_ns);
        if taken {
            self.under_way += 1;
            self.awaited += u64::from((times.begin..times.end).contains(&arose_ns));
        }
        taken
    }

    fn report(&mut self, now_ns: u64, times: Times) {
        if !self.begun && now_ns >= times.begin {
            self.begun = true;
            (self.observe)(Moment::Begins);
        }
        if !self.ended && now_ns >= times.end {
            self.ended = true;
            (self.observe)(Moment::Ends);
        }
        if now_ns >= self.next_progress_ns {
            self.next_progress_ns = now_ns + PROGRESS_NS;
            let part = (now_ns - times.start) as f64 / (times.end - times.start).max(1) as f64;
            (self.observe)(Moment::Progress {
                part: part.min(1.0),
                done: self.done,
            });
        }
    }

    /// Open loop: requests that arose but were never taken count as lost.
    fn give_up(&mut self, times: Times) {
        if let Load::Open { per_s } = self.plan.load {
            while self.arises_ns(times, per_s) < times.end {
                self.sample.lost += u64::from(self.arises_ns(times, per_s) >= times.begin);
                self.arisen += 1;
            }
        }
    }

    fn is_over(&self, now_ns: u64, times: Times) -> bool {
        let none_arises = match self.plan.load {
            Load::Closed { .. } => true,
            Load::Open { per_s } => self.arises_ns(times, per_s) >= times.end,
        };
        now_ns >= times.end && (self.under_way == 0 && none_arises || now_ns >= times.give_up)
    }
}

impl<C: Caller, F: FnMut(Moment)> Service for Generator<C, F> {
    fn packet<T: Transmit>(&mut self, now_ns: u64, from: SocketAddr, datagram: &[u8], _: &mut T) {
        self.caller.take(now_ns, from, datagram);
    }

    fn turn<T: Transmit>(&mut self, now_ns: u64, tx: &mut T) -> Duration {
        let times = self.times(now_ns);
        self.collect(now_ns, times);
        self.report(now_ns, times);
        self.make(now_ns, times);
        self.caller.give(now_ns, tx);
        if self.is_over(now_ns, times) {
            self.give_up(times);
            self.stopped = true;
        }
        self.stopped |= is_set(self.interrupt);
        let arises_ns = match self.plan.load {
            Load::Closed { .. } => None,
            // One that is overdue waits for a place, not for a time.
            Load::Open { per_s } => Some(self.arises_ns(times, per_s)).filter(|&at| at > now_ns),
        };
        let marks = [times.begin, times.end, times.give_up]
            .into_iter()
            .find(|&at| at > now_ns);
        let next_ns = [
            self.caller.due_ns(),
            arises_ns,
            marks,
            Some(now_ns + PROGRESS_NS),
        ];
        let next_ns = next_ns.into_iter().flatten().min().unwrap_or(now_ns);
        Duration::from_nanos(next_ns.saturating_sub(now_ns))
    }

    fn stopping(&self) -> bool {
        self.stopped
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    const MS: u64 = 1_000_000;

    struct Nowhere;

    impl Transmit for Nowhere {
        fn send(&mut self, _: SocketAddr, _: &[u8], _: &[u8]) -> bool {
            true
        }
    }

    /// Answers each request after 100 µs, except while it stalls.
    struct Stalling {
        stall_ns: std::ops::Range<u64>,
        room: usize,
        under_way: VecDeque<(u64, u64)>,
        taken: Vec<u64>,
        ended: VecDeque<(u64, bool)>,
    }

    impl Stalling {
        fn new(stall_ns: std::ops::Range<u64>) -> Self {
            Self {
                stall_ns,
                room: usize::MAX,
                under_way: VecDeque::new(),
                taken: Vec::new(),
                ended: VecDeque::new(),
            }
        }
    }

    impl Caller for Stalling {
        fn submit(&mut self, token: u64) -> bool {
            let room = self.under_way.len() + self.taken.len() < self.room;
            if room {
                self.taken.push(token);
            }
            room
        }

        fn take(&mut self, _: u64, _: SocketAddr, _: &[u8]) {}

        fn give<T: Transmit>(&mut self, now_ns: u64, _: &mut T) {
            for token in self.taken.drain(..) {
                let answered = now_ns + 100_000;
                let at = if self.stall_ns.contains(&answered) {
                    self.stall_ns.end
                } else {
                    answered
                };
                self.under_way.push_back((at, token));
            }
            while let Some((_, token)) = self.under_way.pop_front_if(|(at, _)| *at <= now_ns) {
                self.ended.push_back((token, true));
            }
        }

        fn ended(&mut self) -> Option<(u64, bool)> {
            self.ended.pop_front()
        }

        fn due_ns(&self) -> Option<u64> {
            let answer = self.under_way.front().map(|&(at, _)| at);
            if self.ended.is_empty() {
                answer
            } else {
                Some(0)
            }
        }

        fn sent(&self) -> Sent {
            Sent::default()
        }
    }

    fn run(caller: Stalling, load: Load) -> (Sample, Vec<Moment>) {
        let plan = Plan {
            load,
            warmup: Duration::from_millis(100),
            measure: Duration::from_secs(1),
            patience: Duration::from_millis(500),
        };
        let mut moments = Vec::new();
        let mut generator = Generator::new(caller, plan, |moment| moments.push(moment));
        let mut now_ns = 5;
        while !generator.stopping() {
            now_ns += generator.turn(now_ns, &mut Nowhere).as_nanos() as u64;
        }
        let (sample, _) = generator.finish();
        (sample, moments)
    }

    #[test]
    fn open_loop_latencies_count_from_the_intended_time() {
        // A stall of 400 ms in 1,000 ms: of the requests that are due then, half wait 200 ms or
        // more. A closed loop has one request in the stall and calls it an outlier.
        let stall = || Stalling {
            room: 1,
            ..Stalling::new(500 * MS..900 * MS)
        };
        let (open, _) = run(stall(), Load::Open { per_s: 1000.0 });
        let (closed, _) = run(stall(), Load::Closed { outstanding: 1 });
        assert!(
            (995..=1000).contains(&open.latencies.len()),
            "{}",
            open.latencies.len()
        );
        assert!(
            open.latency_us(0.90) > 250_000.0,
            "{}",
            open.latency_us(0.90)
        );
        assert!(open.latency_us(0.50) < 110.0, "{}", open.latency_us(0.50));
        assert!(
            closed.latency_us(0.999) < 110.0,
            "{}",
            closed.latency_us(0.999)
        );
        assert!(closed.latencies.max() > 350 * MS);
    }

    #[test]
    fn a_closed_loop_keeps_as_many_under_way_as_asked() {
        let (one, _) = run(Stalling::new(0..0), Load::Closed { outstanding: 1 });
        let (four, _) = run(Stalling::new(0..0), Load::Closed { outstanding: 4 });
        assert!(
            (9_900..=10_000).contains(&one.completed),
            "{}",
            one.completed
        );
        assert!(
            (39_600..=40_000).contains(&four.completed),
            "{}",
            four.completed
        );
        assert_eq!((one.lost, four.lost), (0, 0));
    }

    #[test]
    fn what_is_never_answered_is_lost() {
        let silent = || Stalling::new(600 * MS..u64::MAX / 2);
        let (closed, _) = run(silent(), Load::Closed { outstanding: 3 });
        assert_eq!(closed.lost, 3);
        let (open, _) = run(silent(), Load::Open { per_s: 1000.0 });
        assert_eq!(open.lost + open.latencies.len(), 1000);
        assert!((495..=505).contains(&open.lost), "{}", open.lost);
        let (full, _) = run(
            Stalling {
                room: 10,
                ..silent()
            },
            Load::Open { per_s: 1000.0 },
        );
        assert_eq!(
            full.lost + full.latencies.len(),
            1000,
            "those that were never taken count too"
        );
    }

    #[test]
    fn the_measured_time_is_announced_once_and_after_the_warm_up() {
        let (_, moments) = run(Stalling::new(0..0), Load::Closed { outstanding: 1 });
        let marks: Vec<_> = moments
            .iter()
            .filter(|moment| !matches!(moment, Moment::Progress { .. }))
            .collect();
        assert_eq!(marks, [&Moment::Begins, &Moment::Ends]);
        let parts: Vec<f64> = moments
            .iter()
            .filter_map(|moment| match moment {
                Moment::Progress { part, .. } => Some(*part),
                Moment::Begins | Moment::Ends => None,
            })
            .collect();
        assert!(parts.len() >= 10 && parts.is_sorted());
    }
}
