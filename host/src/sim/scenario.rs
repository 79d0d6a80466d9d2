//! What a seed decides before the first event.

use super::fault::{FaultKind, FaultKinds};
use super::network::{Spread, Weather};
use crate::xdp::OnHostDeath;
use consensus::auth::Key;
use consensus::catch_up::{CHUNK_BYTES, Pace};
use consensus::election::ElectionTiming;
use consensus::leader::LeaderTiming;
use consensus::local::Durability;
use consensus::random::Random;
use consensus::region::Layout;

const MS: u64 = 1_000_000;
/// Between two Decides of a leader that has news.
const DECIDE_NS: u64 = MS;

/// Most machines of a world.
const MACHINES: usize = 6;

/// A stretch of a world's time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Phase {
    pub(super) weather: Weather,
    pub(super) length_ns: u64,
    /// Mean time from one fault to the next.
    pub(super) fault_ns: u64,
    /// How often the fault points inside the code strike.
    pub(super) fault_per_mille: u16,
}

/// A cluster, its clients, and the faults they meet.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    /// Those that form the cluster.
    pub(super) nodes: usize,
    /// Those that may become members later.
    pub(super) spares: usize,
    pub(super) groups: u16,
    /// Phase 1 and phase 2; majorities if `None`.
    pub(super) quorums: Option<(usize, usize)>,
    /// Quorums that need not intersect: the code must refuse them.
    pub(super) unsound: Option<(usize, usize)>,
    pub(super) window: u64,
    pub(super) value_bytes: usize,
    pub(super) durability: Durability,
    pub(super) key: Option<Key>,
    pub(super) leader: LeaderTiming,
    pub(super) election: ElectionTiming,
    /// Between two pulses of a node, where there are several groups, and in how many it campaigns at
    /// once.
    pub(super) pulse_ns: u64,
    pub(super) campaigns: usize,
    /// How long acceptors grant leases for, and whether leaders ask for them.
    pub(super) lease_ns: u64,
    pub(super) leases: bool,
    /// Whether followers answer queries by asking a quorum, and clients ask whom they please.
    pub(super) quorum_reads: bool,
    /// How those that lag are taught: by snapshots in many small pieces, too.
    pub(super) pace: Pace,
    /// Rounds that are reserved ahead on the disk.
    pub(super) rounds_ahead: u64,
    /// Slots between two snapshots.
    pub(super) snapshot_slots: u64,
    pub(super) flush_ns: u64,
    /// From a packet's arrival to the turn that follows it.
    pub(super) batch_ns: u64,
    /// For each group.
    pub(super) clients: usize,
    pub(super) in_flight: usize,
    pub(super) think_ns: u64,
    pub(super) keys: u64,
    pub(super) body_bytes: usize,
    pub(super) drift_ppm: Vec<i64>,
    pub(super) skew_ms: Vec<i64>,
    /// Whether acceptors vote in the kernel, and if so whether they do without their processes.
    pub(super) offload: Option<OnHostDeath>,
    /// What may go wrong at all.
    pub(super) kinds: FaultKinds,
    pub(super) phases: Vec<Phase>,
}

fn one_of<T: Copy>(random: &mut Random, choices: &[T]) -> T {
    choices[random.below(choices.len() as u64) as usize]
}

impl Scenario {
    pub(super) fn draw(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x7363_656e_6172_696f);
        let r = &mut random;
        let nodes = one_of(r, &[3, 3, 3, 5]);
        let groups = one_of(r, &[1, 1, 1, 2, 3, 4]);
        let durability = one_of(
            r,
            &[Durability::Volatile, Durability::Async, Durability::Sync],
        );
        let phase1 = 1 + r.below(nodes as u64) as usize;
        let least = nodes + 1 - phase1;
        let phase2 = least + r.below((nodes + 1 - least) as u64) as usize;
        let flexible = r.below(4) == 0;
        let asks_unsound = r.below(16) == 0;
        let value_bytes = one_of(r, &[64, 64, 128, 128, 256, 256, 512, 1384, 1384, 4096]);
        let giant = r.below(64) == 0;
        let value_bytes = if giant { 32_768 } else { value_bytes };
        let window = one_of(r, &[4, 8, 16, 16, 32, 64]);
        let window = if value_bytes > 2000 {
            window.min(8)
        } else {
            window
        };
        let keyed = r.below(4) == 0;
        let key = Key([r.next(), r.next()]);
        let election_ns = one_of(r, &[30, 60, 100]) * MS;
        let heartbeat_ns = election_ns / one_of(r, &[5, 10]);
        let max_body = value_bytes - 24 - 24;
        let mut kinds = FaultKinds::NONE;
        for kind in FaultKind::ALL {
            // Most worlds have most kinds of faults; every one is missing now and then.
            let wanted = r.below(4) > 0;
            if wanted && applies(*kind, durability, keyed) {
                kinds = kinds.with(*kind);
            }
        }
        let spares = match kinds.has(FaultKind::Reconfiguration) {
            true => one_of(r, &[0, 1, 2, MACHINES - nodes]).min(MACHINES - nodes),
            false => 0,
        };
        let machines = nodes + spares;
        let drift = kinds.has(FaultKind::ClockDrift);
        let skewed = kinds.has(FaultKind::ClockStep);
        // A clock that is being set right runs up to a tenth too fast or too slow.
        let slewed = if seed.is_multiple_of(4) { 180 } else { 1 };
        let drift_ppm = (0..machines).map(|_| (r.below(1001) as i64 - 500) * slewed);
        let drift_ppm = drift_ppm.map(|ppm| if drift { ppm } else { 0 }).collect();
        let skew_ms = (0..machines).map(|_| r.below(4001) as i64 - 2000);
        let skew_ms = skew_ms.map(|ms| if skewed { ms } else { 0 }).collect();
        let count = 2 + r.below(4);
        let phases = (0..count)
            .map(|_| Phase::draw(r, kinds, election_ns))
            .collect();
        Self {
            nodes,
            spares,
            groups,
            quorums: flexible.then_some((phase1, phase2)),
            unsound: asks_unsound.then_some((phase1, nodes - phase1)),
            window,
            value_bytes,
            durability,
            key: keyed.then_some(key),
            leader: LeaderTiming::of(heartbeat_ns, DECIDE_NS, durability),
            election: ElectionTiming::of(election_ns),
            pulse_ns: election_ns / 5,
            campaigns: [1, 16][seed as usize / 4 % 2],
            lease_ns: election_ns / [2, 8][seed as usize / 2 % 2],
            leases: seed.is_multiple_of(2),
            quorum_reads: seed % 8 == 7,
            pace: Pace {
                chunk_bytes: [16, 64, CHUNK_BYTES][seed as usize / 4 % 3],
                bytes_per_s: [0, 4_000_000][seed as usize / 12 % 2],
            },
            rounds_ahead: one_of(r, &[1, 4, 1024]),
            snapshot_slots: one_of(r, &[16, 50, 200]),
            flush_ns: one_of(r, &[20_000, 100_000, 500_000]),
            batch_ns: one_of(r, &[0, 2_000, 10_000]),
            clients: one_of(r, &[1, 2, 2, 3]),
            in_flight: one_of(r, &[1, 2, 4, 8]),
            think_ns: one_of(r, &[50_000, 200_000, 1_000_000]),
            keys: one_of(r, &[1, 2, 4, 8]),
            body_bytes: one_of(r, &[16, 40, max_body, max_body]).min(max_body),
            drift_ppm,
            skew_ms,
            offload: offload(seed, durability),
            kinds,
            phases,
        }
    }

    /// Takes kinds of faults out of what was drawn, and leaves everything else as it is.
    pub(super) fn leave_out(&mut self, without: FaultKinds) {
        if without.has(FaultKind::ClockDrift) {
            self.drift_ppm.fill(0);
        }
        if without.has(FaultKind::ClockStep) {
            self.skew_ms.fill(0);
        }
        for phase in &mut self.phases {
            phase.leave_out(without);
        }
    }

    /// Everything that runs a process.
    pub(super) const fn machines(&self) -> usize {
        self.nodes + self.spares
    }

    pub(super) fn layout(&self) -> Layout {
        match Layout::new(self.groups, self.window, self.value_bytes) {
            Ok(layout) => layout,
            Err(error) => unreachable!("a scenario draws what a region takes: {error}"),
        }
    }

    /// The sizes that the cluster counts by.
    pub(super) fn quorum_sizes(&self) -> (usize, usize) {
        self.quorums
            .unwrap_or((self.nodes / 2 + 1, self.nodes / 2 + 1))
    }
}

/// Every other cluster that waits for no flush has acceptors in the kernel.
fn offload(seed: u64, durability: Durability) -> Option<OnHostDeath> {
    let mut random = Random::new(seed ^ 0x6f66_666c_6f61_6400);
    let policies = [
        None,
        None,
        Some(OnHostDeath::KeepVoting),
        Some(OnHostDeath::Seal),
    ];
    one_of(&mut random, &policies).filter(|_| durability != Durability::Sync)
}

/// Whether a kind of fault can strike such a cluster at all.
fn applies(kind: FaultKind, durability: Durability, keyed: bool) -> bool {
    let journals = durability != Durability::Volatile;
    match kind {
        FaultKind::PowerLoss | FaultKind::Blackout => durability == Durability::Sync,
        FaultKind::MemoryLoss => durability != Durability::Sync,
        FaultKind::SlowDisk
        | FaultKind::FullDisk
        | FaultKind::DiskError
        | FaultKind::TornTail
        | FaultKind::SnapshotRot => journals,
        FaultKind::Corruption => keyed,
        _ => true,
    }
}

impl Phase {
    pub(super) fn draw(r: &mut Random, kinds: FaultKinds, election_ns: u64) -> Self {
        let rate = |r: &mut Random, kind: FaultKind, choices: &[u64]| {
            let drawn = one_of(r, choices);
            if kinds.has(kind) { drawn } else { 0 }
        };
        let spread = one_of(r, &[Spread::Uniform, Spread::Exponential, Spread::LongTail]);
        let weather = Weather {
            loss_per_mille: rate(r, FaultKind::Loss, &[0, 5, 20, 100, 250]),
            repeat_per_mille: rate(r, FaultKind::Duplication, &[0, 10, 50, 200]),
            corrupt_per_mille: rate(r, FaultKind::Corruption, &[0, 5, 30]),
            least_ns: one_of(r, &[5_000, 15_000, 50_000]),
            mean_ns: one_of(r, &[5_000, 40_000, 200_000, 1_000_000]),
            spread,
            reorders: rate(r, FaultKind::Reordering, &[0, 1, 1]) == 1,
            late_per_mille: rate(r, FaultKind::LateCopies, &[0, 0, 10, 50]),
            late_ns: election_ns / one_of(r, &[1, 4, 16]),
        };
        Self {
            weather,
            length_ns: election_ns * (2 + r.below(8)),
            fault_ns: election_ns / one_of(r, &[1, 2, 4, 32]) * one_of(r, &[1, 2, 4]),
            fault_per_mille: rate(r, FaultKind::FaultPoints, &[0, 5, 30]) as u16,
        }
    }

    pub(super) fn leave_out(&mut self, without: FaultKinds) {
        let weather = &mut self.weather;
        for (kind, rate) in [
            (FaultKind::Loss, &mut weather.loss_per_mille),
            (FaultKind::Duplication, &mut weather.repeat_per_mille),
            (FaultKind::Corruption, &mut weather.corrupt_per_mille),
            (FaultKind::LateCopies, &mut weather.late_per_mille),
        ] {
            if without.has(kind) {
                *rate = 0;
            }
        }
        weather.reorders &= !without.has(FaultKind::Reordering);
        if without.has(FaultKind::FaultPoints) {
            self.fault_per_mille = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use consensus::quorum::Quorums;

    #[test]
    fn every_scenario_is_one_that_can_be() {
        for seed in 0..2_000 {
            let scenario = Scenario::draw(seed);
            scenario.layout();
            let (phase1, phase2) = scenario.quorum_sizes();
            assert!(Quorums::flexible(scenario.nodes, phase1, phase2).is_ok());
            if let Some((phase1, phase2)) = scenario.unsound {
                assert!(phase1 + phase2 <= scenario.nodes);
            }
            assert!(scenario.body_bytes >= 16 && scenario.body_bytes + 48 <= scenario.value_bytes);
        }
    }
}
