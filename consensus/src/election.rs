//! When a replica campaigns.
//!
//! A follower waits from the later of the leader's last heartbeat (which the acceptor notes in the
//! region, so that no packet has to reach the host) and its own last patience, then asks the others
//! whether they would promise (pre-vote, Ongaro 2014, section 9.6): a node that was merely cut off
//! disturbs nobody. Times are random, and shorter for higher priorities.

use crate::Ballot;
use crate::quorum::Voters;
use crate::random::Random;

/// How long a follower waits, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct ElectionTiming {
    /// Silence of the leader before anyone campaigns.
    pub timeout_ns: u64,
    /// Random part on top.
    pub spread_ns: u64,
    /// More for each member with a higher priority, and the wait for the very first leader.
    pub rank_ns: u64,
    /// How long a pre-vote may take.
    pub pre_vote_ns: u64,
    /// How long phase 1 may take before the candidate gives up.
    pub campaign_ns: u64,
}

impl ElectionTiming {
    /// The times that go with a leader's silence of `timeout_ns`.
    pub const fn of(timeout_ns: u64) -> Self {
        Self {
            timeout_ns,
            spread_ns: timeout_ns / 2,
            rank_ns: timeout_ns / 8,
            pre_vote_ns: timeout_ns / 3,
            campaign_ns: timeout_ns * 2,
        }
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
    timing: ElectionTiming,
    rank: u64,
    random: Random,
    /// Patience counts from here or from the leader's last heartbeat, whichever is later.
    since_ns: u64,
    patience_ns: u64,
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
        let mut election = Self {
            timing,
            rank: rank as u64,
            random: Random::new(seed),
            since_ns: now_ns,
            patience_ns: 0,
            round: 0,
            pre_vote: None,
            ceased: Ballot::NONE,
        };
        election.patience_ns = timing.rank_ns * election.rank;
        election
    }

    /// So many members outrank this one from here on.
    pub const fn set_rank(&mut self, rank: usize) {
        self.rank = rank as u64;
    }

    /// Starts to wait anew: a candidate or leader was heard of, or an own campaign failed.
    pub fn wait(&mut self, now_ns: u64) {
        self.since_ns = now_ns;
        self.pre_vote = None;
        self.patience_ns = self.timing.timeout_ns
            + self.timing.rank_ns * self.rank
            + self.random.below(self.timing.spread_ns);
    }

    /// A live leader is about: the next silence counts from here with full patience. An acceptor
    /// that has no room has not noted the heartbeat.
    pub fn led(&mut self, now_ns: u64) {
        if self.pre_vote.is_some() || self.patience_ns < self.timing.timeout_ns {
            self.wait(now_ns);
        }
    }

    /// When this member campaigns if the leader was last heard of at `seen_ns`.
    pub fn due_ns(&self, seen_ns: u64) -> u64 {
        self.since_ns.max(seen_ns).saturating_add(self.patience_ns)
    }

    /// Whether the leader, last heard of at `seen_ns`, is silent enough for others to campaign.
    pub fn is_silent(&self, now_ns: u64, seen_ns: u64) -> bool {
        now_ns >= seen_ns.saturating_add(self.timing.timeout_ns / 2)
    }

    /// A random nonce.
    pub fn nonce(&mut self) -> u32 {
        self.random.next() as u32
    }
}
