//! What can go wrong in a world, by name.

/// A kind of fault. Each can be left out of a world, to find those that a failure needs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum FaultKind {
    /// Packets are lost.
    Loss,
    /// Packets arrive twice.
    Duplication,
    /// Packets of one link overtake each other.
    Reordering,
    /// A copy of a packet arrives long after, when others may lead.
    LateCopies,
    /// A bit of a packet flips (in clusters that authenticate).
    Corruption,
    /// A node's packets do not reach some of the others, or theirs do not reach it.
    Partition,
    /// A process stops for 10 ms to 2 s (SIGSTOP).
    Pause,
    /// A process dies; its region stays.
    Kill,
    /// A process dies between two writes of one step; its region stays, torn.
    TornStep,
    /// A machine loses power and comes back (`sync`).
    PowerLoss,
    /// All machines lose power at once and come back (`sync`).
    Blackout,
    /// A machine loses power, and with it its votes (`volatile`, `async`).
    MemoryLoss,
    /// A machine comes back without its data directory.
    DiskLoss,
    /// An acceptor without a host comes back blank and answers whatever is fanned out to it.
    Reborn,
    /// Flushes take long.
    SlowDisk,
    /// The disk is full for a while.
    FullDisk,
    /// The device returns an error; the process that sees it ends.
    DiskError,
    /// What was not flushed is cut off anywhere when a process or machine dies.
    TornTail,
    /// The newest snapshot cannot be read after a crash.
    SnapshotRot,
    /// The machines' monotonic clocks run at different rates.
    ClockDrift,
    /// The machines' wall clocks differ, and are set while they run.
    ClockStep,
    /// An operator moves the leadership.
    Transfer,
    /// Several followers take over from a leader that lives.
    Usurpation,
    /// A client gives up its session and comes back as another.
    ClientLoss,
    /// Fault points inside the code strike.
    FaultPoints,
    /// An operator changes the members, some or all at once.
    Reconfiguration,
}

impl FaultKind {
    /// Every kind.
    pub const ALL: &[Self] = &[
        Self::Loss,
        Self::Duplication,
        Self::Reordering,
        Self::LateCopies,
        Self::Corruption,
        Self::Partition,
        Self::Pause,
        Self::Kill,
        Self::TornStep,
        Self::PowerLoss,
        Self::Blackout,
        Self::MemoryLoss,
        Self::DiskLoss,
        Self::Reborn,
        Self::SlowDisk,
        Self::FullDisk,
        Self::DiskError,
        Self::TornTail,
        Self::SnapshotRot,
        Self::ClockDrift,
        Self::ClockStep,
        Self::Transfer,
        Self::Usurpation,
        Self::ClientLoss,
        Self::FaultPoints,
        Self::Reconfiguration,
    ];

    /// Its name on command lines and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Duplication => "duplication",
            Self::Reordering => "reordering",
            Self::LateCopies => "late-copies",
            Self::Corruption => "corruption",
            Self::Partition => "partition",
            Self::Pause => "pause",
            Self::Kill => "kill",
            Self::TornStep => "torn-step",
            Self::PowerLoss => "power-loss",
            Self::Blackout => "blackout",
            Self::MemoryLoss => "memory-loss",
            Self::DiskLoss => "disk-loss",
            Self::Reborn => "reborn",
            Self::SlowDisk => "slow-disk",
            Self::FullDisk => "full-disk",
            Self::DiskError => "disk-error",
            Self::TornTail => "torn-tail",
            Self::SnapshotRot => "snapshot-rot",
            Self::ClockDrift => "clock-drift",
            Self::ClockStep => "clock-step",
            Self::Transfer => "transfer",
            Self::Usurpation => "usurpation",
            Self::ClientLoss => "client-loss",
            Self::FaultPoints => "fault-points",
            Self::Reconfiguration => "reconfiguration",
        }
    }

    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|one| one.name() == name)
    }
}

/// A set of kinds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FaultKinds(u32);

const _: () = assert!(FaultKind::ALL.len() <= 32);

impl FaultKinds {
    /// None.
    pub const NONE: Self = Self(0);

    /// With one more.
    #[must_use]
    pub const fn with(self, kind: FaultKind) -> Self {
        Self(self.0 | 1 << kind as u32)
    }

    /// Whether this one is in it.
    #[must_use]
    pub const fn has(self, kind: FaultKind) -> bool {
        self.0 & 1 << kind as u32 != 0
    }

    /// Those that are in it.
    pub fn iter(self) -> impl Iterator<Item = FaultKind> {
        FaultKind::ALL
            .iter()
            .copied()
            .filter(move |one| self.has(*one))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_stands_at_its_number_and_has_a_name_of_its_own() {
        for (index, kind) in FaultKind::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, index);
            assert_eq!(FaultKind::from_name(kind.name()), Some(*kind));
        }
    }
}
