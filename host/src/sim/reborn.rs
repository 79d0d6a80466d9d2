//! An acceptor without a host, as a card or a switch may be: when it has lost its memory it comes
//! back blank, under another incarnation, and answers whatever is fanned out to it.

use super::machine::EPOCH;
use super::memory::{Words, blank};
use super::scenario::Scenario;
use consensus::acceptor::{Acceptor, Step};
use consensus::memory::Buffers;
use consensus::region::{Birth, Region};
use consensus::wire::{Header, Kind, Parsed, parse};
use consensus::{Incarnation, NodeId, auth};

/// See the module's text.
pub(super) struct Reborn {
    acceptor: Acceptor,
    region: Region<Words>,
    scratch: Vec<u8>,
    key: Option<auth::Key>,
}

impl Reborn {
    pub(super) fn new(node: NodeId, nonce: u64, scenario: &Scenario) -> Option<Self> {
        let layout = scenario.layout();
        let birth = Birth {
            cluster: 1,
            node,
            nonce,
            boot: 0,
        };
        let words = blank(layout.words());
        let region = Region::create(words, layout, birth, EPOCH, 0).ok()?;
        Some(Self {
            acceptor: Acceptor {
                node,
                incarnation: birth.incarnation(),
                layout,
            },
            region,
            scratch: vec![0; layout.value_bytes()],
            key: scenario.key,
        })
    }

    /// Answers a datagram as if it had been fanned out, which names no incarnation.
    pub(super) fn answer(&mut self, now_ns: u64, datagram: &[u8]) -> Option<(Header, &[u8])> {
        let Parsed::Ours(request, value) = parse(datagram, self.scratch.len()) else {
            return None;
        };
        let is_authentic = |key| auth::is_authentic(key, &request, value);
        if !matches!(
            request.kind,
            Kind::Prepare | Kind::Fetch | Kind::Accept | Kind::Decide
        ) || !self.key.is_none_or(is_authentic)
        {
            return None;
        }
        let request = Header {
            incarnation: Incarnation::ANY,
            ..request
        };
        let mut payload = Buffers {
            request: value,
            reply: &mut self.scratch,
        };
        let step = self
            .acceptor
            .step(&self.region, now_ns, &request, &mut payload);
        let Step::Reply(mut reply, _) = step else {
            return None;
        };
        let value = self.scratch.get(..usize::from(reply.length))?;
        if let Some(key) = self.key {
            reply.tag = auth::tag(key, &reply, value);
        }
        Some((reply, value))
    }
}
