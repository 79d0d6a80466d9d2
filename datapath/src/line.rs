//! One direction of a bad network.

use crate::{Packets, Transmit};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

/// Most packets that one direction holds back. What is to be held beyond them is lost.
const HELD_PACKETS: usize = 1024;
/// Longest that a packet waits for another one to overtake it.
const OVERTAKE_NS: u64 = 1_000_000;

/// What goes wrong in one direction. Each is the probability, from 0 to 1, that it happens to a
/// packet; the default is a perfect network.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Faults {
    /// The packet vanishes.
    pub loss: f64,
    /// The packet arrives twice.
    pub duplication: f64,
    /// One to three of the packets behind it overtake the packet.
    pub reordering: f64,
    /// The packet is late, by anything up to [`longest_delay`](Self::longest_delay).
    pub delay: f64,
    /// Bound of a delay.
    pub longest_delay: Duration,
}

/// How often each fault happened, in packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FaultCounts {
    /// Packets that entered.
    pub entered: u64,
    /// Packets that left, copies included.
    pub left: u64,
    /// Packets that vanished, by loss or because too many were held back.
    pub lost: u64,
    /// Second copies.
    pub duplicated: u64,
    /// Packets held back so that others may overtake them.
    pub reordered: u64,
    /// Packets held back for a time.
    pub delayed: u64,
}

/// One direction of a bad network: packets in, other packets out, the same for the same seed and
/// the same times.
pub struct Line {
    faults: Faults,
    random: SplitMix,
    held: VecDeque<Held>,
    /// Buffers of packets that were held, to be used again.
    spare: Vec<Vec<u8>>,
    counts: FaultCounts,
}

struct Held {
    peer: SocketAddr,
    payload: Vec<u8>,
    due_ns: u64,
    /// Released as soon as so many packets have entered, if that is before `due_ns`.
    due_entered: u64,
}

impl Line {
    /// A line with these faults.
    ///
    /// # Panics
    /// If a probability is not within 0 and 1.
    pub fn new(faults: Faults, seed: u64) -> Self {
        for probability in [
            faults.loss,
            faults.duplication,
            faults.reordering,
            faults.delay,
        ] {
            assert!(
                (0.0..=1.0).contains(&probability),
                "{probability} is no probability"
            );
        }
        Self {
            faults,
            random: SplitMix(seed),
            held: VecDeque::new(),
            spare: Vec::new(),
            counts: FaultCounts::default(),
        }
    }

    /// A packet enters at `now_ns`; what leaves because of it is sent to `out`.
    pub fn enter(&mut self, now_ns: u64, peer: SocketAddr, payload: &[u8], out: &mut Packets) {
        self.counts.entered += 1;
        if self.random.chance(self.faults.loss) {
            self.counts.lost += 1;
        } else {
            self.pass(now_ns, peer, payload, out);
            if self.random.chance(self.faults.duplication) {
                self.counts.duplicated += 1;
                self.pass(now_ns, peer, payload, out);
            }
        }
        self.release(now_ns, out);
    }

    /// Sends to `out` what is due at `now_ns`, in the order it entered.
    pub fn release(&mut self, now_ns: u64, out: &mut Packets) {
        let mut index = 0;
        while let Some(held) = self.held.get(index) {
            if held.due_ns > now_ns && held.due_entered > self.counts.entered {
                index += 1;
                continue;
            }
            if let Some(held) = self.held.remove(index) {
                self.leave(held.peer, &held.payload, out);
                self.spare.push(held.payload);
            }
        }
    }

    /// When the next held packet is due.
    pub fn next_due_ns(&self) -> Option<u64> {
        self.held.iter().map(|held| held.due_ns).min()
    }

    /// What happened so far.
    pub fn counts(&self) -> FaultCounts {
        self.counts
    }

    fn pass(&mut self, now_ns: u64, peer: SocketAddr, payload: &[u8], out: &mut Packets) {
        if self.random.chance(self.faults.delay) {
            self.counts.delayed += 1;
            let longest_ns = self.faults.longest_delay.as_nanos() as u64;
            let due_ns = now_ns + self.random.below(longest_ns) + 1;
            self.hold(peer, payload, due_ns, u64::MAX);
        } else if self.random.chance(self.faults.reordering) {
            self.counts.reordered += 1;
            let due_entered = self.counts.entered + 1 + self.random.below(3);
            self.hold(peer, payload, now_ns + OVERTAKE_NS, due_entered);
        } else {
            self.leave(peer, payload, out);
        }
    }

    fn hold(&mut self, peer: SocketAddr, payload: &[u8], due_ns: u64, due_entered: u64) {
        if self.held.len() == HELD_PACKETS {
            self.counts.lost += 1;
            return;
        }
        let mut kept = self.spare.pop().unwrap_or_default();
        kept.clear();
        kept.extend_from_slice(payload);
        self.held.push_back(Held {
            peer,
            payload: kept,
            due_ns,
            due_entered,
        });
    }

    fn leave(&mut self, peer: SocketAddr, payload: &[u8], out: &mut Packets) {
        if out.send(peer, payload, b"") {
            self.counts.left += 1;
        } else {
            self.counts.lost += 1;
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): one word of state, and any seed will do.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, or 0.
    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    fn chance(&mut self, probability: f64) -> bool {
        ((self.next() >> 11) as f64) < probability * (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PEER: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9);

    fn faults() -> impl Strategy<Value = Faults> {
        let probability = || prop_oneof![Just(0.0), Just(1.0), 0.0..1.0];
        (
            probability(),
            probability(),
            probability(),
            probability(),
            0u64..5_000_000,
        )
            .prop_map(
                |(loss, duplication, reordering, delay, longest_ns)| Faults {
                    loss,
                    duplication,
                    reordering,
                    delay,
                    longest_delay: Duration::from_nanos(longest_ns),
                },
            )
    }

    /// Sends the numbers below `count` through a line, 100 µs apart, then lets time run out.
    fn through(faults: Faults, seed: u64, count: u32) -> (Vec<u32>, FaultCounts) {
        let mut line = Line::new(faults, seed);
        let mut out = Packets::new(4096, 65_536, 1500);
        for number in 0..count {
            let now_ns = u64::from(number) * 100_000;
            line.release(now_ns, &mut out);
            line.enter(now_ns, PEER, &number.to_be_bytes(), &mut out);
        }
        line.release(u64::MAX, &mut out);
        assert_eq!(line.next_due_ns(), None);
        let number = |payload: &[u8]| u32::from_be_bytes(payload.try_into().unwrap());
        (
            out.iter().map(|(_, payload)| number(payload)).collect(),
            line.counts(),
        )
    }

    proptest! {
        #[test]
        fn every_packet_is_accounted_for(faults in faults(), seed: u64, count in 0u32..500) {
            let (out, counts) = through(faults, seed, count);
            prop_assert_eq!(counts.entered, u64::from(count));
            prop_assert_eq!(counts.left, out.len() as u64);
            prop_assert_eq!(counts.left, counts.entered + counts.duplicated - counts.lost);
            for number in 0..count {
                prop_assert!(out.iter().filter(|&&other| other == number).count() <= 2);
            }
        }

        #[test]
        fn a_seed_decides_everything(faults in faults(), seed: u64) {
            prop_assert_eq!(through(faults, seed, 200), through(faults, seed, 200));
        }

        #[test]
        fn loss_alone_keeps_the_order(loss in 0.0..1.0, seed: u64) {
            let (out, counts) = through(Faults { loss, ..Faults::default() }, seed, 300);
            prop_assert!(out.is_sorted());
            prop_assert_eq!(counts.lost + counts.left, 300);
        }

        #[test]
        fn a_packet_is_overtaken_by_few(reordering in 0.0..1.0, seed: u64) {
            let (out, _) = through(Faults { reordering, ..Faults::default() }, seed, 300);
            prop_assert_eq!(out.len(), 300);
            for (place, number) in out.iter().enumerate() {
                prop_assert!((place as i64 - i64::from(*number)).abs() <= 3);
            }
        }
    }

    #[test]
    fn a_perfect_line_changes_nothing() {
        let (out, counts) = through(Faults::default(), 1, 500);
        assert_eq!(out, (0..500).collect::<Vec<_>>());
        assert_eq!(
            counts,
            FaultCounts {
                entered: 500,
                left: 500,
                ..FaultCounts::default()
            }
        );
    }

    #[test]
    fn a_probability_is_a_frequency() {
        let faults = Faults {
            loss: 0.25,
            duplication: 0.5,
            ..Faults::default()
        };
        let (_, counts) = through(faults, 7, 2000);
        assert!((400..600).contains(&counts.lost), "{counts:?}");
        assert!((650..850).contains(&counts.duplicated), "{counts:?}");
    }
}
