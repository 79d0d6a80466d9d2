//! When a replica campaigns.
//!
//! A follower waits from the later of the leader's last heartbeat (which the acceptor notes in the
//! region, so that no packet has to reach the host) and its own last patience, then asks the others
//! whether they would promise (pre-vote, Ongaro 2014, section 9.6): a node that was merely cut off
//! disturbs nobody. Times are random, and shorter for higher priorities.

use crate::Ballot;
use crate::quorum::Voters;
use crate::random::Random;

/// How many intervals of a leader's heartbeats make a suspicion.
const BEATS: u64 = 3;
/// What was late once is remembered for one to two such spans, in nanoseconds.
const LATE_SPAN_NS: u64 = 2_000_000_000;
/// Nobody's stalls make followers wait longer than so many times their patience.
const MAX_STRETCH: u64 = 8;

/// How long a follower waits, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct ElectionTiming {
    /// Silence of the leader before anyone campaigns.
    pub timeout_ns: u64,
    /// Silence of a leader that beats fast before its host is asked whether it still runs.
    pub suspect_ns: u64,
    /// How long phase 1 may take before the candidate gives up.
    pub campaign_ns: u64,
}

impl ElectionTiming {
    /// The times that go with a leader's silence of `timeout_ns`, and a suspicion after `suspect_ns`.
    pub const fn of(timeout_ns: u64, suspect_ns: u64) -> Self {
        Self {
            timeout_ns,
            suspect_ns,
            campaign_ns: timeout_ns * 2,
        }
    }
}

/// What a leader's heartbeats so far say of the next.
///
/// A leader beats fast while there is news and slows down step by step when there is none, so the
/// last intervals tell what to expect. What was late, by a stall of the leader's or of this host,
/// may be late again.
#[derive(Clone, Copy, Debug)]
struct Rhythm {
    timing: ElectionTiming,
    ballot: Ballot,
    seen_ns: u64,
    interval_ns: u64,
    /// The longest delay of the present span and of the one before.
    late_ns: [u64; 2],
    turned_ns: u64,
}

impl Rhythm {
    const fn new(timing: ElectionTiming, now_ns: u64) -> Self {
        Self {
            timing,
            ballot: Ballot::NONE,
            seen_ns: 0,
            interval_ns: timing.timeout_ns / BEATS,
            late_ns: [0; 2],
            turned_ns: now_ns,
        }
    }

    /// The leader of `ballot` was heard of at `seen_ns`.
    fn heard(&mut self, ballot: Ballot, seen_ns: u64) {
        let before_ns = core::mem::replace(&mut self.seen_ns, seen_ns);
        if core::mem::replace(&mut self.ballot, ballot) != ballot || seen_ns <= before_ns {
            return;
        }
        let interval_ns = seen_ns - before_ns;
        self.late(seen_ns, interval_ns.saturating_sub(2 * self.interval_ns));
        self.interval_ns = if interval_ns > self.interval_ns {
            interval_ns.min(self.timing.timeout_ns / BEATS)
        } else {
            self.interval_ns - (self.interval_ns - interval_ns) / 8
        };
    }

    /// Something came so much later than it should have.
    fn late(&mut self, now_ns: u64, late_ns: u64) {
        if now_ns >= self.turned_ns.saturating_add(LATE_SPAN_NS) {
            let is_recent = now_ns < self.turned_ns.saturating_add(2 * LATE_SPAN_NS);
            self.late_ns = [0, if is_recent { self.late_ns[0] } else { 0 }];
            self.turned_ns = now_ns;
        }
        // What others say of their stalls may be anything.
        let bound_ns = MAX_STRETCH * self.timing.timeout_ns;
        self.late_ns[0] = self.late_ns[0].max(late_ns.min(bound_ns));
    }

    /// The silence after which the leader's host is asked whether it still runs.
    fn suspect_ns(&self) -> u64 {
        (BEATS * self.interval_ns).max(self.timing.suspect_ns)
    }

    /// The silence after which the leader is taken for dead.
    fn silence_ns(&self) -> u64 {
        let late_ns = self.late_ns[0].max(self.late_ns[1]);
        let timeout_ns = self.timing.timeout_ns;
        (2 * late_ns).clamp(timeout_ns, MAX_STRETCH * timeout_ns)
    }
}

/// A pre-vote under way.
#[derive(Clone, Copy, Debug)]
pub struct PreVote {
    /// What would be prepared.
    pub ballot: Ballot,
    /// Who would promise.
    pub voters: Voters,
    /// Echoed by grants.
    pub nonce: u32,
    /// When it is given up.
    pub until_ns: u64,
}

/// A follower's patience.
#[derive(Debug)]
pub struct Election {
    rank: u64,
    random: Random,
    rhythm: Rhythm,
    /// Patience counts from here or from the leader's last heartbeat, whichever is later.
    since_ns: u64,
    /// The random part of the patience, in sixteenths of the rank's.
    jitter: u64,
    /// Nobody is waited for but those with a higher rank: the first election after a start.
    is_first: bool,
    /// When this host last looked whether the patience had ended.
    looked_ns: u64,
    /// The end of the patience was met late once, and put off, since the last heartbeat.
    put_off: bool,
    /// When the leader's host was last asked whether it still runs, and when one said no.
    probed_ns: u64,
    gone_ns: u64,
    /// Highest round seen anywhere.
    pub round: u64,
    /// The pre-vote under way.
    pub pre_vote: Option<PreVote>,
    /// A ballot whose leader has asked for a higher one: it leads no more, though it may be heard
    /// of as the leader of another group.
    pub ceased: Ballot,
}

impl Election {
    /// Patience of a member that `rank` others outrank. The first election comes early.
    pub fn new(timing: ElectionTiming, rank: usize, seed: u64, now_ns: u64) -> Self {
        Self {
            rank: rank as u64,
            random: Random::new(seed),
            rhythm: Rhythm::new(timing, now_ns),
            since_ns: now_ns,
            jitter: 0,
            is_first: true,
            looked_ns: now_ns,
            put_off: false,
            probed_ns: 0,
            gone_ns: 0,
            round: 0,
            pre_vote: None,
            ceased: Ballot::NONE,
        }
    }

    /// Starts to wait anew: a candidate or leader was heard of, or an own campaign failed.
    pub fn wait(&mut self, now_ns: u64) {
        self.since_ns = now_ns;
        self.pre_vote = None;
        self.is_first = false;
        self.jitter = self.random.below(16);
    }

    /// The leader of `ballot` was heard of at `seen_ns`: the next silence counts from there with
    /// full patience. An acceptor that has no room has not noted the heartbeat.
    pub fn led(&mut self, now_ns: u64, ballot: Ballot, seen_ns: u64) {
        // Awake, this host would have looked when its patience ended: it was stalled itself, and the
        // heartbeats waited for it.
        let looked_ns = self.looked_ns.max(self.rhythm.seen_ns);
        if self.put_off || seen_ns.saturating_sub(looked_ns) > self.silence_ns() {
            self.rhythm.seen_ns = seen_ns;
        }
        self.rhythm.heard(ballot, seen_ns);
        self.put_off = false;
        if self.pre_vote.is_some() || self.is_first {
            self.wait(now_ns);
        }
    }

    /// A leader, this node or another, turned out to be alive after a silence of `silence_ns`.
    pub fn was_alive(&mut self, now_ns: u64, silence_ns: u64) {
        self.rhythm.late(now_ns, silence_ns);
    }

    /// The leader's host says that nobody listens where the leader did.
    pub fn gone(&mut self, now_ns: u64) {
        self.gone_ns = now_ns;
    }

    /// Whether the leader that was last heard of at `seen_ns` is known to have died since.
    pub fn is_gone(&self, seen_ns: u64) -> bool {
        self.gone_ns > seen_ns
    }

    /// When the leader's host is to be asked whether the leader still runs.
    pub fn probe_due_ns(&self, seen_ns: u64) -> u64 {
        if self.is_gone(seen_ns) {
            return u64::MAX;
        }
        let suspect_ns = self.rhythm.suspect_ns();
        (seen_ns + suspect_ns).max(self.probed_ns + suspect_ns / 2)
    }

    /// The leader's host is asked now.
    pub fn probed(&mut self, now_ns: u64) {
        self.probed_ns = now_ns;
    }

    /// The silence after which a leader is taken for dead, in nanoseconds.
    pub fn silence_ns(&self) -> u64 {
        self.rhythm.silence_ns()
    }

    /// The silence after which a leader's host is asked whether it still runs, in nanoseconds.
    pub fn suspect_ns(&self) -> u64 {
        self.rhythm.suspect_ns()
    }

    /// How long a pre-vote may take, in nanoseconds, if the leader was last heard of at `seen_ns`.
    pub fn pre_vote_ns(&self, seen_ns: u64) -> u64 {
        if self.is_gone(seen_ns) {
            self.rhythm.timing.suspect_ns / 2
        } else {
            self.silence_ns() / 3
        }
    }

    /// When this member campaigns if the leader was last heard of at `seen_ns`.
    pub fn due_ns(&self, seen_ns: u64) -> u64 {
        let (start_ns, patience_ns, rank_ns) = if self.is_gone(seen_ns) {
            (self.gone_ns, 0, self.rhythm.timing.suspect_ns / 8)
        } else {
            let silence_ns = self.silence_ns();
            (seen_ns, silence_ns, silence_ns / 8)
        };
        let patience_ns = if self.is_first {
            rank_ns * self.rank
        } else {
            patience_ns + rank_ns * self.rank + rank_ns * self.jitter / 16
        };
        self.since_ns.max(start_ns).saturating_add(patience_ns)
    }

    /// Whether this member campaigns now. A host that looks long after the patience has ended was
    /// stalled itself, and perhaps the leader's with it: it waits once more.
    pub fn is_due(&mut self, now_ns: u64, seen_ns: u64) -> bool {
        self.looked_ns = now_ns;
        let Some(late_ns) = now_ns.checked_sub(self.due_ns(seen_ns)) else {
            return false;
        };
        let is_sure = self.is_first || self.put_off || self.is_gone(seen_ns);
        if is_sure || late_ns < self.silence_ns() / 4 {
            return true;
        }
        self.wait(now_ns);
        self.put_off = true;
        false
    }

    /// Whether the leader, last heard of at `seen_ns`, is silent enough for others to campaign.
    pub fn is_silent(&self, now_ns: u64, seen_ns: u64) -> bool {
        self.is_gone(seen_ns) || now_ns >= seen_ns.saturating_add(self.silence_ns() / 2)
    }

    /// A random nonce.
    pub fn nonce(&mut self) -> u32 {
        self.random.next() as u32
    }
}
