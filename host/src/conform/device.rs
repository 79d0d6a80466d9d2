//! One group of a device behind a network.

use super::pulse::Pulse;
use super::{Asking, ConformError};
use consensus::auth;
use consensus::conformance::{Device, Field, Outcome, Target};
use consensus::region::Region;
use consensus::sync::AtomicU64;
use consensus::wire::{HEADER_BYTES, Header, Kind, Parsed, parse};
use consensus::{Ballot, Epoch, GroupId, NodeId, Slot};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Between two sendings of a request that is not answered.
const RESEND: Duration = Duration::from_millis(100);
/// How often a datagram is sent that must not be answered: nothing tells whether it has arrived,
/// and what comes later may depend on it.
const UNANSWERED_SENDINGS: u32 = 8;
/// Answers that differ from the first one and are kept for the report.
const MAX_CONTRADICTIONS: usize = 8;
/// Datagrams that are looked at when the time for late ones is over.
const MAX_LATE: usize = 256;
/// Longest datagram.
const MAX_DATAGRAM: usize = 65_535;

/// How long is waited for what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    answer: Duration,
    silence: Duration,
}

/// What a Read in a group that may be blank tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Probe {
    pub(super) node: u16,
    pub(super) incarnation: u32,
    pub(super) is_blank: bool,
}

/// A question, and what it was judged by.
struct Asked {
    nonce: u64,
    /// The step of the case that it belongs to.
    step: usize,
    /// `None` if nothing came.
    answer: Option<Vec<u8>>,
}

/// An answer that came after another one, or after silence, and is not the same.
pub(super) struct Contradiction {
    pub(super) step: usize,
    pub(super) first: Option<Vec<u8>>,
    pub(super) then: Vec<u8>,
}

/// One group of a device behind a network, and a socket of its own: answers that come late belong
/// to no other case.
pub(super) struct Wire<'a> {
    socket: UdpSocket,
    address: SocketAddr,
    target: Target,
    patience: Patience,
    nonce: u32,
    /// All questions so far, the last one at the end.
    asked: Vec<Asked>,
    step: usize,
    contradictions: Vec<Contradiction>,
    began: Option<Instant>,
    waited: Duration,
    late: Duration,
    pulse: &'a Pulse,
    /// What the pulse had lost when the first question was sent.
    lost_before: Duration,
    /// When the last question was done with, and what was to be waited for since.
    done: Option<(Instant, Duration)>,
    /// By how much questions were sent later than they were due.
    delay: Duration,
    room: Vec<u8>,
}

impl<'a> Wire<'a> {
    pub(super) fn connect(
        address: SocketAddr,
        target: Target,
        asking: Asking,
        pulse: &'a Pulse,
    ) -> Result<Self, ConformError> {
        let refused = |source| ConformError::Network {
            doing: "open a socket to",
            target: address,
            source,
        };
        let any: SocketAddr = match address {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        let socket = UdpSocket::bind(any).map_err(refused)?;
        socket.connect(address).map_err(refused)?;
        let random = getrandom::u32().map_err(|error| refused(std::io::Error::other(error)))?;
        // Far from the nonces that cases name.
        let first_nonce = random >> 2 | 0x4000_0000;
        Ok(Self {
            socket,
            address,
            target,
            patience: Patience {
                answer: asking.timeout,
                silence: asking.silence,
            },
            nonce: first_nonce,
            asked: Vec::new(),
            step: 0,
            contradictions: Vec::new(),
            began: None,
            waited: Duration::ZERO,
            late: Duration::ZERO,
            pulse,
            lost_before: Duration::ZERO,
            done: None,
            delay: Duration::ZERO,
            room: vec![0; MAX_DATAGRAM],
        })
    }

    /// Looks at a group; nothing if it is not there.
    pub(super) fn probe(&mut self) -> Result<Option<Probe>, ConformError> {
        // A Fetch of a ballot that was not promised is told what was.
        let (kind, sender) = if self.target.answers_read {
            (Kind::Read, NodeId::NONE)
        } else {
            (Kind::Fetch, NodeId(1))
        };
        let ballot = if self.target.answers_read {
            Ballot::NONE
        } else {
            Ballot::new(1, sender)
        };
        let mut question = Header {
            slot: Slot::FIRST,
            ballot,
            epoch: Epoch(self.target.epoch),
            nonce: self.nonce(),
            ..Header::new(kind, GroupId(self.target.group), sender)
        };
        if let Some(key) = self.target.key {
            question.tag = auth::tag(key, &question, &[]);
        }
        let Outcome::Answered(answer) = self.exchange(&question.to_bytes(), true)? else {
            return Ok(None);
        };
        let header = match parse(&answer, MAX_DATAGRAM) {
            Parsed::Ours(header, _) => header,
            Parsed::NotOurs => return Err(self.unusable("without the magic")),
            Parsed::Malformed(reason) => return Err(self.unusable(reason.name())),
        };
        let is_blank = match header.kind {
            Kind::Empty => header.ballot == Ballot::NONE && header.watermark == 0,
            Kind::Nack => header.vote_ballot == Ballot::NONE,
            _ => false,
        };
        Ok(Some(Probe {
            node: header.sender.0,
            incarnation: header.incarnation.0,
            is_blank,
        }))
    }

    fn unusable(&self, why: &str) -> ConformError {
        ConformError::Unusable {
            target: self.address,
            what: format!("what it says is no packet ({why})"),
        }
    }

    fn failed(&self, doing: &'static str) -> impl FnOnce(std::io::Error) -> ConformError + use<> {
        let target = self.address;
        move |source| ConformError::Network {
            doing,
            target,
            source,
        }
    }

    fn send(&self, datagram: &[u8]) -> Result<(), ConformError> {
        match self.socket.send(datagram) {
            // What the last datagram met is reported with this one; asking again is all there is.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
            other => other.map(drop).map_err(self.failed("send to")),
        }
    }

    /// The next datagram, whatever it answers.
    fn next(&mut self, until: Instant) -> Result<Option<Vec<u8>>, ConformError> {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket
                .set_read_timeout(Some(left))
                .map_err(self.failed("wait for"))?;
            match self.socket.recv(&mut self.room) {
                Ok(length) => return Ok(Some(self.room[..length].to_vec())),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted => {}
                    // Nobody listens there now; that may change until time is up.
                    ErrorKind::ConnectionRefused => std::thread::sleep(left.min(RESEND / 10)),
                    _ => return Err(self.failed("receive from")(error)),
                },
            }
        }
    }

    /// The next datagram that does not answer an earlier question. Those that do are compared with
    /// what came first.
    fn receive(&mut self, until: Instant) -> Result<Option<Vec<u8>>, ConformError> {
        while let Some(datagram) = self.next(until)? {
            let earlier = self.asked.len().saturating_sub(1);
            match self.question(&datagram) {
                Some(index) if index < earlier => self.compare(index, datagram),
                _ => return Ok(Some(datagram)),
            }
        }
        Ok(None)
    }

    /// Which question a datagram answers.
    fn question(&self, datagram: &[u8]) -> Option<usize> {
        let nonce = Field::Nonce.get(datagram);
        let is_whole = datagram.len() >= HEADER_BYTES;
        let found = self.asked.iter().rposition(|asked| asked.nonce == nonce);
        found.filter(|_| is_whole)
    }

    fn compare(&mut self, index: usize, datagram: Vec<u8>) {
        let asked = &self.asked[index];
        if asked.answer.as_deref() != Some(&datagram[..])
            && self.contradictions.len() < MAX_CONTRADICTIONS
        {
            self.contradictions.push(Contradiction {
                step: asked.step,
                first: asked.answer.clone(),
                then: datagram,
            });
        }
    }

    /// Waits for answers that come late, and hands out those that are not what came first.
    pub(super) fn linger(mut self, until: Instant) -> Result<Vec<Contradiction>, ConformError> {
        while let Some(datagram) = self.next(until)? {
            self.compare_late(datagram);
        }
        // What has come already is looked at however late it is.
        self.socket
            .set_nonblocking(true)
            .map_err(self.failed("wait for"))?;
        for _ in 0..MAX_LATE {
            let Ok(length) = self.socket.recv(&mut self.room) else {
                break;
            };
            self.compare_late(self.room[..length].to_vec());
        }
        Ok(self.contradictions)
    }

    fn compare_late(&mut self, datagram: Vec<u8>) {
        let last = self.asked.len().checked_sub(1);
        if let Some(index) = self.question(&datagram).or(last) {
            self.compare(index, datagram);
        }
    }

    /// How much of the lateness is this machine's own, however long the device takes to answer.
    pub(super) fn own_delay(&self) -> Duration {
        self.delay + self.pulse.lost().saturating_sub(self.lost_before)
    }
}

impl Device for Wire<'_> {
    type Error = ConformError;
    type Memory = Region<Vec<AtomicU64>>;

    fn target(&self) -> Target {
        self.target
    }

    fn begin(&mut self, step: usize) {
        self.step = step;
    }

    fn nonce(&mut self) -> u32 {
        self.nonce += 1;
        self.nonce
    }

    fn exchange(&mut self, datagram: &[u8], wants_answer: bool) -> Result<Outcome, ConformError> {
        let begin = Instant::now();
        if self.began.is_none() {
            self.lost_before = self.pulse.lost();
        }
        let began = *self.began.get_or_insert(begin);
        if let Some((done, waited)) = self.done {
            self.delay += begin.saturating_duration_since(done + waited);
        }
        self.asked.push(Asked {
            nonce: Field::Nonce.get(datagram),
            step: self.step,
            answer: None,
        });
        let (patience, between) = if wants_answer {
            (self.patience.answer, RESEND)
        } else {
            let silence = self.patience.silence;
            (silence, silence / UNANSWERED_SENDINGS)
        };
        let end = begin + patience;
        let mut outcome = Outcome::Silence(None);
        let mut next = begin;
        while Instant::now() < end {
            self.send(datagram)?;
            next += between;
            if let Some(answer) = self.receive(next.min(end))? {
                if let Some(asked) = self.asked.last_mut() {
                    asked.answer = Some(answer.clone());
                }
                outcome = Outcome::Answered(answer);
                break;
            }
        }
        self.late = began.elapsed().saturating_sub(self.waited);
        self.done = Some((Instant::now(), Duration::ZERO));
        Ok(outcome)
    }

    fn wait(&mut self, ns: u64) -> Result<(), ConformError> {
        let time = Duration::from_nanos(ns);
        self.waited += time;
        if let Some((_, waited)) = &mut self.done {
            *waited += time;
        }
        std::thread::sleep(time);
        Ok(())
    }

    fn lateness_ns(&self) -> u64 {
        u64::try_from(self.late.as_nanos()).unwrap_or(u64::MAX)
    }

    fn overlap(&mut self, _: &[u8], _: &[u8]) -> Result<(), ConformError> {
        Ok(())
    }

    fn memory(&self) -> Option<(&Self::Memory, u64)> {
        None
    }
}
