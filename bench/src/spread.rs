//! Load on several groups at once: one caller for each, which take turns.

use crate::cluster::ClusterCaller;
use crate::load::{Caller, Sent};
use consensus::{GroupId, wire};
use datapath::Transmit;
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Submits commands to several groups in turn.
pub struct Spread {
    callers: Vec<ClusterCaller>,
    by_group: BTreeMap<GroupId, usize>,
    next: usize,
}

impl Spread {
    /// These callers, each for the group that it comes with.
    pub fn new(callers: Vec<(GroupId, ClusterCaller)>) -> Self {
        let groups = callers.iter().map(|(group, _)| *group).zip(0..).collect();
        Self {
            callers: callers.into_iter().map(|(_, caller)| caller).collect(),
            by_group: groups,
            next: 0,
        }
    }
}

impl Caller for Spread {
    fn submit(&mut self, token: u64) -> bool {
        for _ in 0..self.callers.len() {
            let at = self.next;
            self.next = (at + 1) % self.callers.len();
            if self.callers[at].submit(token) {
                return true;
            }
        }
        false
    }

    fn take(&mut self, now_ns: u64, from: SocketAddr, datagram: &[u8]) {
        let group = wire::group_of(datagram);
        if let Some(at) = group.and_then(|group| self.by_group.get(&group)) {
            self.callers[*at].take(now_ns, from, datagram);
        }
    }

    fn give<T: Transmit>(&mut self, now_ns: u64, tx: &mut T) {
        for caller in &mut self.callers {
            caller.give(now_ns, tx);
        }
    }

    fn ended(&mut self) -> Option<(u64, bool)> {
        self.callers.iter_mut().find_map(Caller::ended)
    }

    fn due_ns(&self) -> Option<u64> {
        self.callers.iter().filter_map(Caller::due_ns).min()
    }

    fn sent(&self) -> Sent {
        let all = self.callers.iter().map(Caller::sent);
        all.fold(Sent::default(), |sum, one| Sent {
            datagrams: sum.datagrams + one.datagrams,
            requests: sum.requests + one.requests,
        })
    }
}
