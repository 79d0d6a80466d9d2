//! When a replica campaigns.
//!
//! A follower waits from the later of the leader's last heartbeat (which the acceptor notes in the
//! region, so that no packet has to reach the host) and its own last patience, then asks the others
//! whether they would promise (pre-vote, Ongaro 2014, section 9.6): a node that was merely cut off
//! disturbs nobody. Times are random, and shorter for higher priorities.

use crate::Ballot;
use crate::quorum::Voters;
use crate::random::Random;

/// A leader that has nothing to say is heard of so often before the patience ends.
const BEATS: u64 = 3;
/// So many groups more make the first elections after a start take that much longer again.
const GROUPS_IN_FIRST: u64 = 64;
/// What was late once is remembered for one to two such spans, in nanoseconds.
const LATE_SPAN_NS: u64 = 2_000_000_000;
/// Once the leader is known to have died, each member waits so much longer than the one that
/// outranks it, in nanoseconds.
const RANK_NS: u64 = 250_000;
/// And for the others' answers so long, in nanoseconds: they may hear of it a little later.
const PRE_VOTE_NS: u64 = 1_000_000;
/// Campaigns that come to nothing are repeated at intervals that double so often.
const MAX_DOUBLINGS: u32 = 6;
/// Nobody's stalls make followers wait longer than so many times their patience.
const MAX_STRETCH: u64 = 8;

/// How long a follower waits, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct ElectionTiming {
    /// Silence of the leader before anyone campaigns.
    pub timeout_ns: u64,
    /// How long phase 1 may take before the candidate gives up.
    pub campaign_ns: u64,
    /// How long each member that outranks another is waited for in the first election after a start.
    pub first_ns: u64,
    /// Where one heartbeat serves several groups, the time between two. Zero if the leader of the
    /// one group is heard of in its own.
    pub pulse_ns: u64,
}

impl ElectionTiming {
    /// The times that go with a leader's silence of `timeout_ns`.
    pub const fn of(timeout_ns: u64) -> Self {
        Self {
            timeout_ns,
            campaign_ns: timeout_ns * 2,
            first_ns: timeout_ns / 8,
            pulse_ns: 0,
        }
    }

    /// The times in each of so many groups, whose leaders are heard of every `pulse_ns` together.
    #[must_use]
    pub const fn pulsed(self, pulse_ns: u64, groups: usize) -> Self {
        // Whoever is preferred in many of them has its elections behind it by then.
        let starts = 1 + groups as u64 / GROUPS_IN_FIRST;
        Self {
            first_ns: self.first_ns * starts,
            pulse_ns,
            ..self
        }
    }

    /// The longest time between two heartbeats that means nothing.
    const fn beat_ns(&self) -> u64 {
        match self.pulse_ns {
            0 => self.timeout_ns / BEATS,
            pulse_ns => pulse_ns,
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
            interval_ns: timing.beat_ns(),
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
        // Between two looks at one of many groups there may have been many heartbeats: the node
        // itself tells when one was late.
        if self.timing.pulse_ns == 0 {
            self.late(seen_ns, interval_ns.saturating_sub(2 * self.interval_ns));
        }
        self.interval_ns = if interval_ns > self.interval_ns {
            interval_ns.min(self.timing.beat_ns())
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
    /// When the leader's host was asked what it denied: whether the leader still runs.
    gone_ns: u64,
    /// Campaigns since the last heartbeat.
    attempts: u32,
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
            gone_ns: 0,
            attempts: 0,
            round: 0,
            pre_vote: None,
            ceased: Ballot::NONE,
        }
    }

    /// So many members outrank this one from here on.
    pub const fn set_rank(&mut self, rank: usize) {
        self.rank = rank as u64;
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
        self.attempts = 0;
        if self.pre_vote.is_some() || self.is_first {
            self.wait(now_ns);
        }
    }

    /// A leader, this node or another, turned out to be alive after a silence of `silence_ns`.
    pub fn was_alive(&mut self, now_ns: u64, silence_ns: u64) {
        self.rhythm.late(now_ns, silence_ns);
    }

    /// The leader's host, asked at `asked_ns`, says that nobody listens where the leader did.
    pub fn gone(&mut self, asked_ns: u64) {
        self.gone_ns = self.gone_ns.max(asked_ns);
    }

    /// Whether the leader that was last heard of at `seen_ns` is known to have died since.
    pub fn is_gone(&self, seen_ns: u64) -> bool {
        self.gone_ns > seen_ns
    }

    /// The silence after which a leader is taken for dead, in nanoseconds.
    pub fn silence_ns(&self) -> u64 {
        self.rhythm.silence_ns()
    }

    /// How long a pre-vote may take, in nanoseconds, if the leader was last heard of at `seen_ns`.
    pub fn pre_vote_ns(&self, seen_ns: u64) -> u64 {
        if self.is_gone(seen_ns) {
            PRE_VOTE_NS << self.attempts.min(MAX_DOUBLINGS)
        } else {
            self.silence_ns() / 3
        }
    }

    /// When this member campaigns if the leader was last heard of at `seen_ns`.
    pub fn due_ns(&self, seen_ns: u64) -> u64 {
        let (start_ns, patience_ns, rank_ns) = if self.is_gone(seen_ns) {
            let again_ns = (RANK_NS << self.attempts.min(MAX_DOUBLINGS)) - RANK_NS;
            (self.gone_ns, again_ns, RANK_NS)
        } else {
            let silence_ns = self.silence_ns();
            (seen_ns, silence_ns, silence_ns / 8)
        };
        let patience_ns = if self.is_first && !self.is_gone(seen_ns) {
            self.rhythm.timing.first_ns * self.rank
        } else if self.is_first {
            rank_ns * self.rank
        } else {
            patience_ns + rank_ns * self.rank + rank_ns * self.jitter / 16
        };
        self.since_ns.max(start_ns).saturating_add(patience_ns)
    }

    /// This host is awake, though the member may not campaign now.
    pub fn looked(&mut self, now_ns: u64) {
        self.looked_ns = now_ns;
    }

    /// Whether this member campaigns now. A host that looks long after the patience has ended was
    /// stalled itself, and perhaps the leader's with it: it waits once more.
    pub fn is_due(&mut self, now_ns: u64, seen_ns: u64) -> bool {
        let looked_ns = core::mem::replace(&mut self.looked_ns, now_ns);
        let due_ns = self.due_ns(seen_ns);
        if now_ns < due_ns {
            return false;
        }
        let late_ns = now_ns.saturating_sub(due_ns.max(looked_ns));
        let is_sure = self.is_first || self.put_off || self.is_gone(seen_ns);
        if is_sure || late_ns < self.silence_ns() / 4 {
            self.attempts = self.attempts.saturating_add(1);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::NodeId;

    const MS: u64 = 1_000_000;
    const TIMING: ElectionTiming = ElectionTiming::of(150 * MS);
    const LEADER: Ballot = Ballot::new(1, NodeId(1));

    /// A follower that has heard of its leader every `interval_ns` for long, and when last.
    fn follower(interval_ns: u64) -> (Election, u64) {
        let mut election = Election::new(TIMING, 0, 1, 0);
        let mut now_ns = 0;
        for _ in 0..200 {
            now_ns += interval_ns;
            election.led(now_ns, LEADER, now_ns);
            election.is_due(now_ns, now_ns);
        }
        (election, now_ns)
    }

    #[test]
    fn a_leader_that_is_gone_is_not_waited_for_and_not_campaigned_against_in_a_rush() {
        let (mut election, seen_ns) = follower(MS);
        let asked_ns = seen_ns + 1;
        election.gone(asked_ns);
        assert!(election.is_silent(asked_ns, seen_ns));
        let mut now_ns = asked_ns + MS;
        assert!(election.is_due(now_ns, seen_ns), "the highest rank");
        let mut campaigns = 1;
        while now_ns < asked_ns + 10_000 * MS {
            now_ns += election.pre_vote_ns(seen_ns);
            election.wait(now_ns);
            now_ns = election.due_ns(seen_ns);
            assert!(election.is_due(now_ns, seen_ns));
            campaigns += 1;
        }
        assert!((10..200).contains(&campaigns), "{campaigns} in ten seconds");
        // It is back.
        election.led(now_ns, LEADER, now_ns);
        assert!(!election.is_gone(now_ns) && !election.is_silent(now_ns + 1, now_ns));
    }

    #[test]
    fn an_answer_to_a_question_of_before_the_last_heartbeat_says_nothing() {
        let (mut election, seen_ns) = follower(MS);
        election.gone(seen_ns - 1);
        assert!(!election.is_gone(seen_ns));
    }

    #[test]
    fn whoever_looks_late_waits_once_more_and_only_once() {
        let (mut election, seen_ns) = follower(MS);
        let due_ns = election.due_ns(seen_ns);
        let late_ns = due_ns + TIMING.timeout_ns;
        assert!(!election.is_due(late_ns, seen_ns), "it was stalled itself");
        let again_ns = election.due_ns(seen_ns);
        assert!(again_ns >= late_ns + TIMING.timeout_ns);
        assert!(election.is_due(again_ns + TIMING.timeout_ns, seen_ns));
    }

    #[test]
    fn whoever_looked_in_time_and_only_now_learns_that_nobody_leads_does_not_wait() {
        let (mut election, seen_ns) = follower(MS);
        let now_ns = seen_ns + 10 * MS;
        assert!(!election.is_due(now_ns - MS, seen_ns));
        election.since_ns = 0;
        assert!(election.is_due(now_ns, 0));
    }

    #[test]
    fn late_heartbeats_lengthen_the_patience_within_bounds_and_for_a_while() {
        let (mut election, seen_ns) = follower(10 * MS);
        election.is_due(seen_ns + 99 * MS, seen_ns);
        let late_ns = seen_ns + 120 * MS;
        election.led(late_ns, LEADER, late_ns);
        assert!((199 * MS..=200 * MS).contains(&election.silence_ns()));
        election.was_alive(late_ns, u64::MAX);
        assert_eq!(election.silence_ns(), MAX_STRETCH * TIMING.timeout_ns);
        for beat in 1..500 {
            let now_ns = late_ns + beat * 10 * MS;
            election.led(now_ns, LEADER, now_ns);
            election.was_alive(now_ns, 0);
        }
        assert_eq!(election.silence_ns(), TIMING.timeout_ns);
    }
}
