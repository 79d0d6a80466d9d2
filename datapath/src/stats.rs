//! What a datapath counts.

/// Why a packet was dropped. The discriminant indexes [`Stats::dropped`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(u8)]
pub enum Reason {
    /// The queue had no room.
    Full = 0,
    /// Longer than the datapath carries.
    OverLong = 1,
    /// The kernel's send buffer had no room.
    Busy = 2,
    /// The network refused it: unreachable, prohibited, wrong address family.
    Refused = 3,
}

impl Reason {
    /// How many reasons there are.
    pub const COUNT: usize = 4;
    /// Every reason, in the order of the discriminants.
    pub const ALL: [Self; Self::COUNT] = [Self::Full, Self::OverLong, Self::Busy, Self::Refused];

    /// A stable name for metrics and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::OverLong => "over_long",
            Self::Busy => "busy",
            Self::Refused => "refused",
        }
    }
}

/// Counters of a datapath since it was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Packets taken from the network.
    pub received: u64,
    /// Packets that the network took.
    pub sent: u64,
    /// Packets dropped on the way out, by [`Reason`].
    pub dropped: [u64; Reason::COUNT],
    /// Packets that the kernel dropped on the way in because the receive buffer was full.
    pub overrun: u64,
    /// Errors that the network reported on receive (ICMP).
    pub receive_errors: u64,
    /// System calls that the datapath made to move packets and to sleep.
    pub syscalls: u64,
}

impl Stats {
    /// How many packets were dropped for this reason.
    pub fn dropped_for(&self, reason: Reason) -> u64 {
        self.dropped[reason as usize]
    }

    pub(crate) fn drop(&mut self, reason: Reason, packets: usize) {
        self.dropped[reason as usize] += packets as u64;
    }
}
