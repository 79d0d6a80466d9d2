//! Outcomes on their way to clients, gathered into as few datagrams as fit.

use crate::envelope::{self, Outcome};
use crate::wire::{Header, Kind, MTU_VALUE_BYTES};
use crate::{GroupId, NodeId, SessionId, Slot};
use alloc::vec::Vec;
use core::net::SocketAddr;

/// Where the answers of a session go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// The client's address.
    pub address: SocketAddr,
    /// The nonce of its newest request.
    pub nonce: u32,
}

/// One turn's outcomes.
#[derive(Debug, Default)]
pub struct Responses {
    waiting: Vec<(Route, SessionId, Vec<u8>)>,
    used: usize,
}

impl Responses {
    /// Adds an outcome for the client at `route`.
    pub fn add(&mut self, route: Route, session: SessionId, outcome: &Outcome<'_>) {
        let bytes = Outcome::encoded_bytes(outcome.body.len());
        let open = self
            .waiting
            .get_mut(..self.used)
            .unwrap_or_default()
            .iter_mut()
            .rev()
            .find(|(to, of, value)| {
                *to == route && *of == session && value.len() + bytes <= MTU_VALUE_BYTES
            });
        if let Some((_, _, value)) = open {
            outcome.append(value);
            return;
        }
        if self.used == self.waiting.len() {
            self.waiting
                .push((route, session, Vec::with_capacity(MTU_VALUE_BYTES)));
        }
        if let Some(fresh) = self.waiting.get_mut(self.used) {
            (fresh.0, fresh.1) = (route, session);
            fresh.2.clear();
            outcome.append(&mut fresh.2);
            self.used += 1;
        }
    }

    /// Hands every gathered Response to `send`.
    pub fn flush(
        &mut self,
        group: GroupId,
        node: NodeId,
        mut send: impl FnMut(SocketAddr, &Header, &[u8]),
    ) {
        for (route, session, value) in self.waiting.iter().take(self.used) {
            let header = Header {
                slot: Slot(session.0),
                nonce: route.nonce,
                length: value.len() as u16,
                ..Header::new(Kind::Response, group, node)
            };
            send(route.address, &header, value);
        }
        self.used = 0;
        debug_assert!(envelope::MAX_REPLY_BYTES < usize::from(u16::MAX));
    }
}
