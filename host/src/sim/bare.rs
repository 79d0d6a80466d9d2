//! An acceptor without a host: one that lost its memory and came back blank, as a card or a switch
//! may, and one in the kernel, which steps the region of a process that may be dead.

use super::machine::EPOCH;
use super::memory::{Life, Watched, Words, blank};
use super::scenario::Scenario;
use consensus::acceptor::{Acceptor, Step};
use consensus::memory::Buffers;
use consensus::region::{Birth, Region};
use consensus::wire::{Header, Kind, Parsed, parse};
use consensus::{Incarnation, NodeId, auth};
use std::rc::Rc;

/// See the module's text.
pub(super) struct Bare {
    acceptor: Acceptor,
    memory: Watched,
    pub(super) life: Rc<Life>,
    scratch: Vec<u8>,
    key: Option<auth::Key>,
    /// Takes every request as if it had been fanned out, which names no incarnation.
    is_for_any: bool,
}

impl Bare {
    /// Blank memory under another incarnation.
    pub(super) fn reborn(node: NodeId, nonce: u64, scenario: &Scenario) -> Option<Self> {
        let layout = scenario.layout();
        let birth = Birth {
            cluster: 1,
            node,
            nonce,
            boot: 0,
        };
        let region = Region::create(
            blank(layout.words()),
            layout,
            birth,
            EPOCH,
            scenario.lease_ns,
        )
        .ok()?;
        Some(Self {
            is_for_any: true,
            ..Self::new(region, scenario)
        })
    }

    /// Over the words that a process steps as well.
    pub(super) fn in_kernel(words: &Words, birth: Birth, scenario: &Scenario) -> Option<Self> {
        let opened = Region::open(Rc::clone(words), scenario.layout(), birth);
        opened.ok().map(|(region, _)| Self::new(region, scenario))
    }

    fn new(region: Region<Words>, scenario: &Scenario) -> Self {
        let life = Rc::<Life>::default();
        let (birth, layout) = (*region.birth(), *region.layout());
        Self {
            acceptor: Acceptor {
                node: birth.node,
                incarnation: birth.incarnation(),
                layout,
            },
            memory: Watched::new(region, Rc::clone(&life)),
            life,
            scratch: vec![0; layout.value_bytes()],
            key: scenario.key,
            is_for_any: false,
        }
    }

    /// Takes a datagram that is for an acceptor; `None` leaves it to somebody else.
    pub(super) fn take(&mut self, now_ns: u64, datagram: &[u8]) -> Option<Taken<'_>> {
        let Parsed::Ours(request, value) = parse(datagram, self.scratch.len()) else {
            return None;
        };
        if !matches!(
            request.kind,
            Kind::Prepare | Kind::Fetch | Kind::Accept | Kind::Decide | Kind::Read
        ) {
            return None;
        }
        let is_authentic = |key| auth::is_authentic(key, &request, value);
        if !self.key.is_none_or(is_authentic) {
            return Some(None);
        }
        let request = Header {
            incarnation: match self.is_for_any {
                true => Incarnation::ANY,
                false => request.incarnation,
            },
            ..request
        };
        let mut payload = Buffers {
            request: value,
            reply: &mut self.scratch,
        };
        let step = self
            .acceptor
            .step(&self.memory, now_ns, &request, &mut payload);
        let Step::Reply(mut reply, _) = step else {
            return Some(None);
        };
        let value = self.scratch.get(..usize::from(reply.length))?;
        if let Some(key) = self.key {
            reply.tag = auth::tag(key, &reply, value);
        }
        Some(Some((reply, value)))
    }
}

/// The answer, if there is one.
pub(super) type Taken<'a> = Option<(Header, &'a [u8])>;
