//! The conformance corpus over the wire, against whatever answers there.
//!
//! Every case has a group of its own, so cases run side by side: a run takes as long as its slowest
//! case. A lost datagram is asked for again, which no answer depends on: every request may be
//! repeated.

mod device;
mod pulse;

use crate::inspect::Inspector;
use consensus::auth::Key;
use consensus::conformance::{Case, Device as _, Need, Target, Verdict, contradiction, play};
use device::{Probe, Wire};
use pulse::Pulse;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Cases that are played at once.
const PARALLEL: usize = 96;
/// How often a case is played that could not be timed.
const TIMED_TRIES: u32 = 4;
/// How often if that was not this machine's doing: datagrams may have been lost.
const ANSWERED_LATE_TRIES: u32 = 3;
/// What is waited before it is played again on a machine that is busy, times the tries so far.
const TIMED_PAUSE: Duration = Duration::from_millis(250);
/// How long after its case an answer is still compared with the one that came first.
const LINGER: Duration = Duration::from_millis(600);
/// Cases whose late answers are waited for at once, each with a socket.
const MAX_LINGERING: usize = 512;
/// How long a node may take to describe itself.
const DESCRIBED_WITHIN: Duration = Duration::from_millis(1500);

/// The target cannot be tested.
#[derive(Debug, thiserror::Error)]
pub enum ConformError {
    /// Nothing answers there.
    #[error("{target} does not answer ({why})")]
    Unreachable {
        /// Where.
        target: SocketAddr,
        /// What was tried.
        why: String,
    },
    /// What comes back is no packet, or nobody's.
    #[error("{target} answers, but {what}")]
    Unusable {
        /// Where.
        target: SocketAddr,
        /// What is wrong with the answer.
        what: String,
    },
    /// It is a node, but its cluster has not formed.
    #[error("the node at {target} does not vote yet: its cluster has not formed")]
    Unformed {
        /// Where.
        target: SocketAddr,
    },
    /// It is a node without groups to test.
    #[error("the node at {target} has no groups for conformance")]
    NoGroups {
        /// Where.
        target: SocketAddr,
    },
    /// It does not say what it is, and nobody else does.
    #[error("{target} does not describe itself, so its {missing} must be given")]
    Shapeless {
        /// Where.
        target: SocketAddr,
        /// What is not known.
        missing: &'static str,
    },
    /// Too few groups are blank.
    #[error("{wanted} cases want a blank group each, but {target} has {left} left of {all}")]
    UsedUp {
        /// Where.
        target: SocketAddr,
        /// How many are wanted.
        wanted: usize,
        /// How many there are.
        left: usize,
        /// How many groups were looked at.
        all: usize,
    },
    /// The network of this machine.
    #[error("{doing} {target}: {source}")]
    Network {
        /// What was being done.
        doing: &'static str,
        /// With whom.
        target: SocketAddr,
        /// The system's answer.
        source: io::Error,
    },
    /// The socket that asks a node to describe itself.
    #[error(transparent)]
    Datapath(#[from] datapath::Error),
}

impl ConformError {
    /// What mends it.
    pub fn remedy(&self) -> Option<String> {
        let text = match self {
            Self::Unreachable { .. } => {
                "see that it runs there, that no firewall is in between, and whether its packets \
                 carry tags (--key-file); for a device that has no group 1, name its unused groups \
                 with --groups"
                    .into()
            }
            Self::Unusable { .. } => {
                "see docs/protocol.md, \"Header\", for what every answer carries".into()
            }
            Self::Unformed { .. } => {
                "start the other members: a cluster forms when all of them have met".into()
            }
            Self::NoGroups { .. } => {
                "never test a node that serves: give one of its own a fresh data directory and \
                 `[region] conformance_groups = 1024`; see docs/conformance.md"
                    .into()
            }
            Self::Shapeless { .. } => "see `nearwire help conform`".into(),
            Self::UsedUp { wanted, .. } => format!(
                "restart it with a fresh data directory (another device: with blank memory) and at \
                 least {wanted} groups, or choose fewer cases with --case"
            ),
            Self::Network { .. } | Self::Datapath(_) => return None,
        };
        Some(text)
    }
}

/// What a target is, as far as somebody says so; the rest is asked of the target.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    /// Slots that it keeps.
    pub window_slots: Option<u64>,
    /// Longest value in bytes.
    pub value_bytes: Option<usize>,
    /// How long its leases last, in nanoseconds.
    pub lease_ns: Option<u64>,
    /// Its membership.
    pub epoch: Option<u32>,
    /// Groups that may be used.
    pub groups: Option<RangeInclusive<u16>>,
    /// It implements the hardware profile.
    pub is_narrow: bool,
    /// It does not answer Read.
    pub has_no_read: bool,
}

/// How a target is asked.
#[derive(Clone, Copy, Debug)]
pub struct Asking {
    /// The key, where packets carry tags.
    pub key: Option<Key>,
    /// How long an answer is waited for, sending again.
    pub timeout: Duration,
    /// How long there must be nothing where nothing is expected.
    pub silence: Duration,
}

/// A target and its blank groups.
#[derive(Debug)]
pub struct Session {
    address: SocketAddr,
    asking: Asking,
    target: Target,
    blank: VecDeque<u16>,
    all: usize,
}

impl Session {
    /// Finds out what the target is, and which of its groups are blank.
    ///
    /// # Errors
    /// It does not answer, or cannot be tested as it is.
    pub fn open(
        address: SocketAddr,
        asking: Asking,
        claims: &Claims,
    ) -> Result<Self, ConformError> {
        let described = describe(address, asking, claims)?;
        let groups: Vec<u16> = described.groups.clone().collect();
        // One first: nobody waits for the silence of all groups of a device that is not there.
        let (first, rest) = groups.split_at(groups.len().min(1));
        let mut found = probe(address, asking, described.target, first)?;
        if found.is_empty() {
            return Err(ConformError::Unreachable {
                target: address,
                why: format!(
                    "a look at group {} was sent again and again for {} ms",
                    described.groups.start(),
                    asking.timeout.as_millis()
                ),
            });
        }
        found.extend(probe(address, asking, described.target, rest)?);
        let (_, first) = found[0];
        if first.node == 0 || first.incarnation == 0 {
            let field = if first.node == 0 {
                "sender"
            } else {
                "incarnation"
            };
            return Err(ConformError::Unusable {
                target: address,
                what: format!("with {field} 0: an answer says whose it is"),
            });
        }
        let target = Target {
            node: first.node,
            incarnation: first.incarnation,
            ..described.target
        };
        let blank = found.iter().filter(|(_, probe)| probe.is_blank);
        Ok(Self {
            address,
            asking,
            target,
            blank: blank.map(|(group, _)| *group).collect(),
            all: groups.len(),
        })
    }

    /// What the target is; its group is of no account.
    pub const fn target(&self) -> &Target {
        &self.target
    }

    /// Plays the cases side by side, each in a blank group.
    ///
    /// # Errors
    /// There are not enough blank groups, or the network went away.
    pub fn play(&mut self, cases: &[&Case]) -> Result<Vec<Verdict>, ConformError> {
        let fits = |case: &&&Case| case.lacking(&self.target).is_none();
        let wanted = cases.iter().filter(fits).count();
        if self.blank.len() < wanted {
            return Err(ConformError::UsedUp {
                target: self.address,
                wanted,
                left: self.blank.len(),
                all: self.all,
            });
        }
        let blank = Mutex::new(std::mem::take(&mut self.blank));
        let verdicts = Mutex::new(vec![None; cases.len()]);
        let lingering = Mutex::new(VecDeque::new());
        let numbered: Vec<(usize, &Case)> = cases.iter().copied().enumerate().collect();
        let pulse = Pulse::default();
        let settle = |one: Lingering<'_>| {
            let (index, verdict) = (one.index, self.settle(cases[one.index], one)?);
            lock(&verdicts)[index] = Some(verdict);
            Ok(())
        };
        let played = std::thread::scope(|scope| {
            scope.spawn(|| pulse.beat());
            let played = share(numbered, |(index, case)| {
                let (verdict, wire) = self.play_one(case, &blank, &pulse)?;
                lock(&verdicts)[index] = Some(verdict);
                let until = Instant::now() + LINGER;
                let due = {
                    let mut lingering = lock(&lingering);
                    lingering.extend(wire.map(|wire| Lingering { index, wire, until }));
                    let is_due = lingering.front().is_some_and(|first: &Lingering<'_>| {
                        first.until <= Instant::now() || lingering.len() > MAX_LINGERING
                    });
                    is_due.then(|| lingering.pop_front()).flatten()
                };
                due.map_or(Ok(()), settle)
            });
            pulse.end();
            played
        });
        played?;
        let lingering = lingering.into_inner();
        let lingering = lingering.unwrap_or_else(PoisonError::into_inner);
        lingering.into_iter().try_for_each(settle)?;
        self.blank = blank.into_inner().unwrap_or_else(PoisonError::into_inner);
        let verdicts = verdicts
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        let unplayed = || Verdict::Unshown("it was not played".into());
        Ok(verdicts
            .into_iter()
            .map(|verdict| verdict.unwrap_or_else(unplayed))
            .collect())
    }

    /// Plays a case. One that passed may still be contradicted: its socket comes with it.
    fn play_one<'a>(
        &self,
        case: &Case,
        blank: &Mutex<VecDeque<u16>>,
        pulse: &'a Pulse,
    ) -> Result<(Verdict, Option<Wire<'a>>), ConformError> {
        if let Some(lack) = case.lacking(&self.target) {
            return Ok((Verdict::Skipped(lack), None));
        }
        let mut last = Verdict::Unshown("no blank group was left for it".into());
        for tries in 0..TIMED_TRIES {
            if matches!(last, Verdict::Unshown(_)) {
                std::thread::sleep(TIMED_PAUSE * tries);
            }
            let Some(group) = lock(blank).pop_front() else {
                break;
            };
            let target = Target {
                group,
                ..self.target
            };
            let mut device = Wire::connect(self.address, target, self.asking, pulse)?;
            let verdict = play(case, &mut device)?;
            if verdict == Verdict::Passed {
                return Ok((verdict, Some(device)));
            }
            last = self.judged(case, &device, verdict);
            let is_own = matches!(last, Verdict::Unshown(_));
            if !is_own && (!self.is_late(case, &device) || tries + 1 >= ANSWERED_LATE_TRIES) {
                break;
            }
        }
        Ok((last, None))
    }

    /// Whether a case with leases took so long, for whatever reason, that it may go otherwise.
    fn is_late(&self, case: &Case, device: &Wire<'_>) -> bool {
        let bound = self.target.lease_ns / 4;
        case.needs.contains(&Need::Lease) && device.lateness_ns() >= bound
    }

    /// What this machine was too late for shows nothing. A device that is late itself is judged.
    fn judged(&self, case: &Case, device: &Wire<'_>, verdict: Verdict) -> Verdict {
        let own = device.own_delay();
        if self.is_late(case, device) && own >= Duration::from_nanos(self.target.lease_ns / 4) {
            let ms = own.as_millis();
            return Verdict::Unshown(format!(
                "this machine was {ms} ms late, too much to time a lease"
            ));
        }
        verdict
    }

    /// What becomes of a case that passed, with the answers that came late.
    fn settle(&self, case: &Case, one: Lingering<'_>) -> Result<Verdict, ConformError> {
        let if_failed = self.judged(case, &one.wire, Verdict::Failed(Vec::new()));
        let late = one.wire.linger(one.until)?;
        let failures = late
            .iter()
            .flat_map(|late| contradiction(case, late.step, late.first.as_deref(), &late.then));
        let failures: Vec<_> = failures.collect();
        Ok(match if_failed {
            _ if failures.is_empty() => Verdict::Passed,
            Verdict::Failed(_) => Verdict::Failed(failures),
            other => other,
        })
    }
}

/// A case that passed, unless an answer comes until then that differs from the first.
struct Lingering<'a> {
    index: usize,
    wire: Wire<'a>,
    until: Instant,
}

/// Looks at groups side by side; one that does not answer is not there.
fn probe(
    address: SocketAddr,
    asking: Asking,
    target: Target,
    groups: &[u16],
) -> Result<Vec<(u16, Probe)>, ConformError> {
    let found = Mutex::new(Vec::new());
    share(groups.to_vec(), |group| {
        let target = Target { group, ..target };
        if let Some(probe) = Wire::connect(address, target, asking, &Pulse::default())?.probe()? {
            lock(&found).push((group, probe));
        }
        Ok(())
    })?;
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_by_key(|(group, _)| *group);
    Ok(found)
}

struct Described {
    target: Target,
    groups: RangeInclusive<u16>,
}

/// What is claimed, and for the rest what the target says of itself.
fn describe(
    address: SocketAddr,
    asking: Asking,
    claims: &Claims,
) -> Result<Described, ConformError> {
    let mut inspector = Inspector::new(&[address], asking.key.map(Into::into))?;
    let wait = asking.timeout.min(DESCRIBED_WITHIN);
    let is_claimed =
        claims.groups.is_some() && claims.window_slots.is_some() && claims.value_bytes.is_some();
    let report = if is_claimed {
        None
    } else {
        inspector
            .inspect(&[address], wait, |_| true)?
            .pop()
            .flatten()
    };
    let number = |field: &str| report.as_ref()?.0.get(field)?.as_u64();
    if let Some(report) = &report {
        if report.0.get("formed") == Some(&false.into()) {
            return Err(ConformError::Unformed { target: address });
        }
        if claims.groups.is_none() && number("conformance_groups").unwrap_or(0) == 0 {
            return Err(ConformError::NoGroups { target: address });
        }
    } else if !is_claimed {
        // Nothing is known of it: does anything answer there at all?
        let group = claims.groups.as_ref().map_or(0, |groups| *groups.start());
        let target = blank_target(group, claims, asking);
        if Wire::connect(address, target, asking, &Pulse::default())?
            .probe()?
            .is_none()
        {
            return Err(ConformError::Unreachable {
                target: address,
                why: format!(
                    "Inspect and a look at group {group} were sent again and again for {} ms",
                    (wait + asking.timeout).as_millis()
                ),
            });
        }
    }
    let shapeless = |missing| ConformError::Shapeless {
        target: address,
        missing,
    };
    let window = claims.window_slots.or_else(|| number("window_slots"));
    let reported = number("value_bytes").and_then(|bytes| usize::try_from(bytes).ok());
    let value_bytes = claims.value_bytes.or(reported);
    let offered = number("conformance_groups").and_then(|count| u16::try_from(count).ok());
    let groups = claims.groups.clone().or(offered.map(|count| 1..=count));
    let epoch = number("epoch").and_then(|epoch| u32::try_from(epoch).ok());
    Ok(Described {
        target: Target {
            window: window.ok_or_else(|| shapeless("window (--window-slots)"))?,
            value_bytes: value_bytes.ok_or_else(|| shapeless("value limit (--value-bytes)"))?,
            lease_ns: claims.lease_ns.or_else(|| number("lease_ns")).unwrap_or(0),
            epoch: claims.epoch.or(epoch).unwrap_or(1),
            ..blank_target(0, claims, asking)
        },
        groups: groups.ok_or_else(|| shapeless("unused groups (--groups)"))?,
    })
}

fn blank_target(group: u16, claims: &Claims, asking: Asking) -> Target {
    Target {
        node: 0,
        incarnation: 0,
        epoch: claims.epoch.unwrap_or(1),
        group,
        window: 0,
        value_bytes: 0,
        lease_ns: 0,
        is_narrow: claims.is_narrow,
        answers_read: !claims.has_no_read,
        sets_clock: false,
        shows_memory: false,
        key: asking.key,
    }
}

/// Does something for each item on several threads, until one fails.
fn share<T: Send>(
    items: Vec<T>,
    each: impl Fn(T) -> Result<(), ConformError> + Sync,
) -> Result<(), ConformError> {
    let threads = items.len().min(PARALLEL);
    let queue = Mutex::new(VecDeque::from(items));
    let failed = Mutex::new(None);
    // The queue is free again before the item is worked on.
    let next = || lock(&queue).pop_front();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(item) = next() {
                    if let Err(error) = each(item) {
                        lock(&failed).get_or_insert(error);
                        lock(&queue).clear();
                    }
                }
            });
        }
    });
    match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
