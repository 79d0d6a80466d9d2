//! Packets in the air: lost, repeated, delayed, reordered, cut off.

use consensus::random::Random;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Where packets come from and go to: the machines first, then the clients.
pub(super) type Place = usize;

/// How the part of a delay that varies is distributed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Spread {
    /// Anything up to twice the mean.
    Uniform,
    /// Without memory.
    Exponential,
    /// Mostly short; one in 64 takes up to 64 times as long.
    LongTail,
}

/// How packets travel for a while.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    pub(super) loss_per_mille: u64,
    pub(super) repeat_per_mille: u64,
    pub(super) corrupt_per_mille: u64,
    pub(super) least_ns: u64,
    pub(super) mean_ns: u64,
    pub(super) spread: Spread,
    /// Packets of one link may overtake each other.
    pub(super) reorders: bool,
    /// How often a copy arrives late, and how late on average.
    pub(super) late_per_mille: u64,
    pub(super) late_ns: u64,
}

impl Weather {
    pub(super) const CALM: Self = Self {
        loss_per_mille: 0,
        repeat_per_mille: 0,
        corrupt_per_mille: 0,
        least_ns: 15_000,
        mean_ns: 10_000,
        spread: Spread::Uniform,
        reorders: false,
        late_per_mille: 0,
        late_ns: 0,
    };

    fn delay_ns(&self, random: &mut Random) -> u64 {
        let mean = self.mean_ns;
        let more = match self.spread {
            Spread::Uniform => random.below(2 * mean + 1),
            Spread::Exponential => exponential(random, mean),
            Spread::LongTail => {
                let draw = random.next();
                let short = (draw >> 8) % (mean + 1);
                if draw & 63 == 0 { short * 64 } else { short }
            }
        };
        self.least_ns + more
    }
}

/// Exponentially distributed, in whole halvings and a linear rest: the same on every machine.
pub(super) fn exponential(random: &mut Random, mean: u64) -> u64 {
    let draw = random.next();
    let halvings = u64::from(draw.trailing_ones().min(20));
    let rest = draw >> 44;
    // ln 2 is 0.693.
    (mean * halvings + ((mean * rest) >> 20)) * 693 / 1000
}

/// A packet in the air.
#[derive(Clone, Debug, Default)]
pub(super) struct Packet {
    pub(super) from: Place,
    pub(super) to: Place,
    pub(super) bytes: Vec<u8>,
}

/// What became of a packet when it was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    Sent,
    Lost,
    Repeated,
    CopiedLate,
    CutOff,
}

/// Everything in the air, and the links that are cut.
#[derive(Debug)]
pub(super) struct Network {
    places: usize,
    pub(super) weather: Weather,
    random: Random,
    number: u64,
    air: BinaryHeap<Reverse<(u64, u64, usize)>>,
    packets: Vec<Packet>,
    free: Vec<usize>,
    /// Until when packets from one place to another do not get through.
    cut_until_ns: Vec<u64>,
    /// When the last packet of each link arrives, for weather without reordering.
    last_ns: Vec<u64>,
}

impl Network {
    pub(super) fn new(places: usize, seed: u64) -> Self {
        Self {
            places,
            weather: Weather::CALM,
            random: Random::new(seed),
            number: 0,
            air: BinaryHeap::new(),
            packets: Vec::new(),
            free: Vec::new(),
            cut_until_ns: vec![0; places * places],
            last_ns: vec![0; places * places],
        }
    }

    pub(super) fn cut(&mut self, from: Place, to: Place, until_ns: u64) {
        let cut = &mut self.cut_until_ns[from * self.places + to];
        *cut = until_ns.max(*cut);
    }

    /// Whether nothing gets through in one of the two directions.
    pub(super) fn is_cut(&self, now_ns: u64, one: Place, other: Place) -> bool {
        let until = |from: Place, to: Place| self.cut_until_ns[from * self.places + to];
        now_ns < until(one, other).max(until(other, one))
    }

    pub(super) fn heal(&mut self) {
        self.cut_until_ns.fill(0);
    }

    /// An empty buffer for a packet.
    pub(super) fn buffer(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.packets.push(Packet::default());
            self.packets.len() - 1
        })
    }

    pub(super) fn packet_mut(&mut self, index: usize) -> &mut Packet {
        &mut self.packets[index]
    }

    /// Takes a packet's bytes out; [`Network::put_back`] returns the buffer.
    pub(super) fn take(&mut self, index: usize) -> Packet {
        std::mem::take(&mut self.packets[index])
    }

    pub(super) fn put_back(&mut self, index: usize, mut packet: Packet) {
        packet.bytes.clear();
        self.packets[index] = packet;
        self.free.push(index);
    }

    fn discard(&mut self, index: usize) {
        self.packets[index].bytes.clear();
        self.free.push(index);
    }

    /// Sends the packet that was written into buffer `index`.
    pub(super) fn send(&mut self, now_ns: u64, index: usize) -> Fate {
        let Packet { from, to, .. } = self.packets[index];
        let link = from * self.places + to;
        if now_ns < self.cut_until_ns[link] {
            self.discard(index);
            return Fate::CutOff;
        }
        let draw = self.random.next();
        if draw % 1000 < self.weather.loss_per_mille {
            self.discard(index);
            return Fate::Lost;
        }
        let repeats = (draw >> 20) % 1000 < self.weather.repeat_per_mille;
        if (draw >> 40) % 1000 < self.weather.corrupt_per_mille {
            let bytes = &mut self.packets[index].bytes;
            let bit = self.random.below(bytes.len() as u64 * 8);
            bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
        }
        let is_late = self.random.below(1000) < self.weather.late_per_mille;
        if is_late {
            let copy = self.copy(index);
            let late_ns = exponential(&mut self.random, self.weather.late_ns);
            self.push(now_ns + late_ns, copy);
        }
        if repeats {
            let copy = self.copy(index);
            self.launch(now_ns, link, copy);
        }
        self.launch(now_ns, link, index);
        match (is_late, repeats) {
            (true, _) => Fate::CopiedLate,
            (_, true) => Fate::Repeated,
            _ => Fate::Sent,
        }
    }

    fn copy(&mut self, index: usize) -> usize {
        let copy = self.buffer();
        let packet = std::mem::take(&mut self.packets[index]);
        self.packets[copy].clone_from(&packet);
        self.packets[index] = packet;
        copy
    }

    fn launch(&mut self, now_ns: u64, link: usize, index: usize) {
        let mut at_ns = now_ns + self.weather.delay_ns(&mut self.random);
        if !self.weather.reorders {
            at_ns = at_ns.max(self.last_ns[link]);
            self.last_ns[link] = at_ns;
        }
        self.push(at_ns, index);
    }

    fn push(&mut self, at_ns: u64, index: usize) {
        self.number += 1;
        self.air.push(Reverse((at_ns, self.number, index)));
    }

    /// When the next packet arrives.
    pub(super) fn next_ns(&self) -> u64 {
        self.air
            .peek()
            .map_or(u64::MAX, |Reverse((at_ns, ..))| *at_ns)
    }

    /// The packet that arrives next.
    pub(super) fn arrive(&mut self) -> Option<usize> {
        self.air.pop().map(|Reverse((_, _, index))| index)
    }
}
