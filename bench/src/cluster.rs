//! Load on a cluster: the client library behind the generator's face.

use crate::load::{Caller, Sent};
use consensus::auth::{self, Key};
use consensus::client::{Client, SubmitError};
use consensus::wire::{self, Parsed};
use datapath::Transmit;
use std::net::SocketAddr;

/// Writes the command number `index` into `out`, which is empty.
pub type Command = Box<dyn FnMut(u64, &mut Vec<u8>) + Send>;

/// Submits commands to a cluster.
pub struct ClusterCaller {
    client: Client,
    key: Option<Key>,
    command: Command,
    submitted: u64,
    body: Vec<u8>,
    ready: bool,
}

impl ClusterCaller {
    /// A caller that submits what `command` writes. With a `key`, every packet is tagged and every
    /// untagged answer ignored.
    pub fn new(client: Client, key: Option<Key>, command: Command) -> Self {
        Self {
            client,
            key,
            command,
            submitted: 0,
            body: Vec::new(),
            ready: false,
        }
    }

    /// The client, for its counters.
    pub fn client(&self) -> &Client {
        &self.client
    }
}

impl Caller for ClusterCaller {
    fn submit(&mut self, token: u64) -> bool {
        if !self.ready {
            self.body.clear();
            (self.command)(self.submitted, &mut self.body);
        }
        let taken = self.client.submit_command(token, &self.body);
        debug_assert_ne!(
            taken,
            Err(SubmitError::TooLarge),
            "the run checks the value's length"
        );
        // A refused command is kept: the next one is another.
        self.ready = taken.is_err();
        self.submitted += u64::from(taken.is_ok());
        taken.is_ok()
    }

    fn take(&mut self, now_ns: u64, from: SocketAddr, datagram: &[u8]) {
        let Parsed::Ours(header, value) = wire::parse(datagram, usize::from(u16::MAX)) else {
            return;
        };
        if self
            .key
            .is_none_or(|key| auth::is_authentic(key, &header, value))
        {
            self.client.handle_datagram(now_ns, from, &header, value);
        }
    }

    fn give<T: Transmit>(&mut self, now_ns: u64, tx: &mut T) {
        if self.client.poll_timeout().is_some_and(|at| at <= now_ns) {
            self.client.handle_timeout(now_ns);
        }
        while let Some(mut datagram) = self.client.poll_transmit(now_ns) {
            if let Some(key) = self.key {
                datagram.header.tag = auth::tag(key, &datagram.header, datagram.value);
            }
            // A full queue drops it; the client repeats it.
            tx.send(datagram.to, &datagram.header.to_bytes(), datagram.value);
        }
    }

    fn ended(&mut self) -> Option<(u64, bool)> {
        self.client
            .poll_event()
            .map(|event| (event.token, event.result.is_ok()))
    }

    fn due_ns(&self) -> Option<u64> {
        self.client.poll_timeout()
    }

    fn sent(&self) -> Sent {
        let counters = self.client.counters();
        Sent {
            datagrams: counters.datagrams,
            requests: counters.requests,
        }
    }
}
