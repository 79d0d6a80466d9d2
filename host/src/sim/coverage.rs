//! What worlds have been through: how often each fault struck and each packet arrived.

use super::fault::FaultKind;
use super::network::Fate;
use super::scenario::Scenario;
use crate::xdp::OnHostDeath;
use consensus::simulation::{Fault, FaultTally, Faults};
use consensus::wire::Kind;
use std::collections::BTreeMap;

const KINDS: usize = 64;

/// Counts, which add up over worlds.
#[derive(Clone, Debug)]
pub struct Coverage {
    delivered: [u64; KINDS],
    kinds: [u64; FaultKind::ALL.len()],
    faults: [FaultTally; Fault::ALL.len()],
    features: BTreeMap<&'static str, u64>,
}

impl Default for Coverage {
    fn default() -> Self {
        Self {
            delivered: [0; KINDS],
            kinds: [0; FaultKind::ALL.len()],
            faults: [FaultTally::default(); Fault::ALL.len()],
            features: BTreeMap::new(),
        }
    }
}

impl Coverage {
    pub(super) fn delivered(&mut self, kind_code: u8) {
        if let Some(count) = self.delivered.get_mut(usize::from(kind_code)) {
            *count += 1;
        }
    }

    pub(super) fn fate(&mut self, fate: Fate) {
        match fate {
            Fate::Sent => {}
            Fate::Lost => self.struck(FaultKind::Loss),
            Fate::Repeated => self.struck(FaultKind::Duplication),
            Fate::CopiedLate => self.struck(FaultKind::LateCopies),
            Fate::CutOff => self.feature("packets cut off"),
        }
    }

    pub(super) const fn struck(&mut self, kind: FaultKind) {
        self.kinds[kind as usize] += 1;
    }

    pub(super) fn feature(&mut self, name: &'static str) {
        *self.features.entry(name).or_default() += 1;
    }

    pub(super) fn fault_points(&mut self, faults: &Faults) {
        for fault in Fault::ALL {
            let tally = faults.tally(*fault);
            let sum = &mut self.faults[*fault as usize];
            sum.passed += tally.passed;
            sum.struck += tally.struck;
        }
    }

    pub(super) fn scenario(&mut self, scenario: &Scenario) {
        let Scenario {
            nodes,
            groups,
            quorums,
            unsound,
            durability,
            key,
            value_bytes,
            offload,
            ..
        } = scenario;
        self.feature(if *nodes == 3 { "3 nodes" } else { "5 nodes" });
        self.feature(if *groups == 1 {
            "one group"
        } else {
            "several groups"
        });
        self.feature(match quorums {
            Some(_) => "flexible quorums",
            None => "majorities",
        });
        self.feature(durability.name());
        match offload {
            Some(OnHostDeath::KeepVoting) => self.feature("in the kernel, keeps voting"),
            Some(OnHostDeath::Seal) => self.feature("in the kernel, ends with the process"),
            None => {}
        }
        if unsound.is_some() {
            self.feature("unsound quorums asked for");
        }
        if key.is_some() {
            self.feature("authenticated");
        }
        if *value_bytes == consensus::wire::MAX_VALUE_BYTES {
            self.feature("longest values");
        }
    }

    /// Adds another world's counts.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in self.delivered.iter_mut().zip(other.delivered) {
            *sum += more;
        }
        for (sum, more) in self.kinds.iter_mut().zip(other.kinds) {
            *sum += more;
        }
        for (sum, more) in self.faults.iter_mut().zip(other.faults) {
            sum.passed += more.passed;
            sum.struck += more.struck;
        }
        for (name, more) in &other.features {
            *self.features.entry(name).or_default() += more;
        }
    }

    /// Packets that arrived, by kind.
    pub fn packets(&self) -> impl Iterator<Item = (Kind, u64)> {
        let count = |kind: Kind| self.delivered.get(kind as usize).copied().unwrap_or(0);
        Kind::ALL.iter().map(move |kind| (*kind, count(*kind)))
    }

    /// How often each kind of fault struck.
    pub fn kinds(&self) -> impl Iterator<Item = (FaultKind, u64)> {
        FaultKind::ALL
            .iter()
            .map(|one| (*one, self.kinds[*one as usize]))
    }

    /// How often each fault point was passed, and struck.
    pub fn faults(&self) -> impl Iterator<Item = (Fault, FaultTally)> {
        Fault::ALL
            .iter()
            .map(|one| (*one, self.faults[*one as usize]))
    }

    /// How often scenarios and worlds had certain features.
    pub const fn features(&self) -> &BTreeMap<&'static str, u64> {
        &self.features
    }
}
