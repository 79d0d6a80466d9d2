//! A bounded run of packets in one block of memory.

use crate::{Reason, Received, Stats, Transmit};
use std::net::SocketAddr;

/// Packets in the order they were added, back to back in memory that is reserved once.
///
/// It is the transmit queue of datapaths without rings of their own, and what wrappers keep
/// packets in.
#[derive(Debug)]
pub struct Packets {
    bytes: Vec<u8>,
    slots: Vec<Slot>,
    max_datagram_bytes: usize,
    full: u64,
    over_long: u64,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    peer: SocketAddr,
    start: usize,
    end: usize,
}

impl Packets {
    /// Room for `packets` packets of `bytes` bytes altogether, none longer than
    /// `max_datagram_bytes`.
    pub fn new(packets: usize, bytes: usize, max_datagram_bytes: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(bytes),
            slots: Vec::with_capacity(packets),
            max_datagram_bytes,
            full: 0,
            over_long: 0,
        }
    }

    /// How many packets there are.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Forgets the packets; the memory and the counts stay.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.slots.clear();
    }

    /// Peer and payload of each packet, in order.
    pub fn iter(&self) -> impl Iterator<Item = (SocketAddr, &[u8])> {
        self.slots
            .iter()
            .map(|slot| (slot.peer, &self.bytes[slot.start..slot.end]))
    }

    /// Adds the packets that did not fit to `stats`.
    pub(crate) fn count_drops(&self, stats: &mut Stats) {
        stats.dropped[Reason::Full as usize] += self.full;
        stats.dropped[Reason::OverLong as usize] += self.over_long;
    }
}

impl Received for Packets {
    fn count(&self) -> usize {
        self.len()
    }

    #[inline]
    fn packet(&self, index: usize) -> (SocketAddr, &[u8]) {
        let slot = &self.slots[index];
        (slot.peer, &self.bytes[slot.start..slot.end])
    }
}

impl Transmit for Packets {
    #[inline]
    fn send(&mut self, to: SocketAddr, head: &[u8], value: &[u8]) -> bool {
        let length = head.len() + value.len();
        if length > self.max_datagram_bytes {
            self.over_long += 1;
            return false;
        }
        let start = self.bytes.len();
        if self.slots.len() == self.slots.capacity() || self.bytes.capacity() - start < length {
            self.full += 1;
            return false;
        }
        self.bytes.extend_from_slice(head);
        self.bytes.extend_from_slice(value);
        self.slots.push(Slot {
            peer: to,
            start,
            end: start + length,
        });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9);

    fn drops(packets: &Packets) -> Stats {
        let mut stats = Stats::default();
        packets.count_drops(&mut stats);
        stats
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let mut packets = Packets::new(2, 64, 64);
        assert!(packets.send(PEER, b"a", b""));
        assert!(packets.send(PEER, b"", b"b"));
        assert!(!packets.send(PEER, b"c", b""));
        assert_eq!(drops(&packets).dropped_for(Reason::Full), 1);
        packets.clear();
        assert!(packets.send(PEER, &[0; 60], b"1234"));
        assert!(!packets.send(PEER, b"x", b""), "no byte is left");
        assert_eq!(drops(&packets).dropped_for(Reason::Full), 2);
    }

    #[test]
    fn an_over_long_packet_is_not_a_full_queue() {
        let mut packets = Packets::new(2, 64, 8);
        assert!(!packets.send(PEER, b"12345", b"6789"));
        assert_eq!(drops(&packets).dropped_for(Reason::OverLong), 1);
        assert_eq!(drops(&packets).dropped_for(Reason::Full), 0);
    }

    #[test]
    fn head_and_value_become_one_payload() {
        let mut packets = Packets::new(2, 64, 64);
        packets.send(PEER, b"head", b"value");
        packets.send(PEER, b"", b"");
        assert_eq!(packets.packet(0), (PEER, &b"headvalue"[..]));
        assert_eq!(packets.packet(1), (PEER, &b""[..]));
        assert_eq!(packets.iter().count(), packets.count());
    }
}
