//! What clients ask of a replica, and what they are told.

use super::*;
use crate::client::encode_address;

impl<S: StateMachine> Replica<S> {
    pub(super) fn requested<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        from: SocketAddr,
        header: &Header,
        value: &[u8],
    ) {
        let serving = self.lead.as_ref().is_some_and(|lead| lead.leader.leads());
        if !serving {
            return self.redirect(turn, from, header);
        }
        let route = Route {
            address: from,
            nonce: header.nonce,
        };
        let Some(lead) = &mut self.lead else { return };
        let is_early =
            self.applied.slot() < lead.leader.inherited() && !mutated(Mutation::ServesTooEarly);
        if is_early || lead.transfer.is_some() {
            // The sessions are not known yet, or are about to be another's: the client asks again.
            self.tally.deferred += 1;
            return;
        }
        if header.flags.has(Flags::QUERY) {
            if lead.reads.len() >= MAX_READS {
                self.tally.deferred += 1;
                return;
            }
            let barrier = lead.leader.ask_barrier();
            let session = header.session();
            lead.reads.push_back(Read {
                route,
                session,
                barrier,
                body: Vec::from(value),
            });
            return;
        }
        lead.forget_closed(self.applied.sessions());
        let limit = self.config.value_bytes - ENTRY_BYTES;
        for entry in entries(value).map_while(Result::ok) {
            let bytes = Entry::encoded_bytes(entry.body.len());
            let (id, sequence) = (entry.session, entry.sequence);
            let mut refuse = |status, sequence| {
                let outcome = Outcome {
                    sequence,
                    status,
                    body: &[],
                };
                self.responses.add(route, id, &outcome);
            };
            if bytes > limit {
                refuse(Status::TooLarge, sequence);
                continue;
            }
            if !lead.leader.has_room(bytes + ENTRY_BYTES) {
                self.tally.deferred += 1;
                return;
            }
            match entry.kind {
                EntryKind::Open => {
                    if lead.openers.insert(id.0, route).is_some() {
                        continue;
                    }
                }
                EntryKind::Command => {
                    let applied = self.applied.sessions().next(id);
                    let Some(Sequence(applied)) = applied else {
                        if id.opened_in() > self.applied.slot() {
                            // A leader that was deposed without knowing it has not seen the session
                            // opened: that it is unknown here means nothing.
                            self.tally.deferred += 1;
                            return;
                        }
                        refuse(Status::UnknownSession, sequence);
                        return;
                    };
                    lead.routes.insert(id.0, route);
                    let admitted = lead.admitted.entry(id.0).or_insert(applied);
                    *admitted = (*admitted).max(applied);
                    if sequence.0 > *admitted {
                        refuse(Status::OutOfOrder, Sequence(*admitted));
                        return;
                    }
                    let is_known = sequence.0 < *admitted;
                    if is_known && strikes(Fault::CommandProposedAgain) {
                        // The log may hold a command twice; it is applied once.
                    } else if sequence.0 < applied {
                        match self.applied.sessions().reply(id, sequence) {
                            Some(body) => {
                                let outcome = Outcome {
                                    sequence,
                                    status: Status::Done,
                                    body,
                                };
                                self.responses.add(route, id, &outcome);
                            }
                            None => refuse(Status::ReplyForgotten, sequence),
                        }
                        continue;
                    } else if is_known {
                        continue;
                    } else {
                        *admitted += 1;
                    }
                }
                EntryKind::Clock | EntryKind::Query => continue,
            }
            Self::stamp(lead, turn.unix_ms);
            lead.leader.push(bytes, |batch| entry.append(batch));
        }
    }

    /// Moves the log's clock where a batch begins, at most once a millisecond.
    pub(super) fn stamp(lead: &mut Lead, unix_ms: u64) {
        if unix_ms <= lead.clock_ms || !lead.leader.batch_is_empty() {
            return;
        }
        lead.clock_ms = unix_ms;
        let clock = Entry {
            kind: EntryKind::Clock,
            session: SessionId(0),
            sequence: Sequence(unix_ms),
            behind: 0,
            body: &[],
        };
        lead.leader.push(ENTRY_BYTES, |batch| clock.append(batch));
    }

    pub(super) fn redirect<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        to: SocketAddr,
        request: &Header,
    ) {
        let members = &self.register.newest.membership;
        let leader = match self.place {
            Some(_) => self.leader(turn.now_ns, turn.local),
            // Nobody tells this node any more who leads: some voter knows, and not always the same
            // one is asked, which may be gone.
            None => {
                let is_other = |member: &&Member| {
                    member.role == MemberRole::Voter && member.node != self.config.node
                };
                let others = || members.members.iter().filter(is_other);
                let turn = (request.nonce as usize).checked_rem(others().count());
                turn.and_then(|turn| others().nth(turn))
                    .map(|member| member.node)
            }
        };
        let member = leader.and_then(|leader| members.member(leader));
        let address = member.map(|member| encode_address(member.address));
        let value = address.as_ref().map_or(&[][..], |address| address);
        let header = Header {
            slot: request.slot,
            vote_ballot: Ballot(leader.map_or(0, |leader| u64::from(leader.0))),
            length: value.len() as u16,
            nonce: request.nonce,
            ..Header::new(Kind::Redirect, self.config.group, self.config.node)
        };
        turn.io.send(to, &header, value);
    }

    pub(super) fn serve_reads(&mut self) {
        let Self {
            applied,
            responses,
            lead,
            tally,
            ..
        } = self;
        let Some(lead) = lead else { return };
        let confirmed = lead.leader.confirmed();
        let mut reply = Vec::new();
        while lead
            .reads
            .front()
            .is_some_and(|read| read.barrier <= confirmed || mutated(Mutation::ReadUnconfirmed))
        {
            let Some(read) = lead.reads.pop_front() else {
                break;
            };
            for entry in entries(&read.body).map_while(Result::ok) {
                if entry.kind != EntryKind::Query {
                    continue;
                }
                reply.clear();
                applied.query(entry.body, &mut reply);
                tally.queries += 1;
                let outcome = Outcome {
                    sequence: entry.sequence,
                    status: Status::Done,
                    body: &reply,
                };
                responses.add(read.route, read.session, &outcome);
            }
        }
    }

    /// A machine that waits for the clock (keys that expire) has it moved by the log.
    pub(super) fn stamp_for_machine<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
    ) {
        let wake_ms = self.applied.machine().wake_ms();
        let Some(lead) = &mut self.lead else { return };
        if wake_ms.is_some_and(|wake_ms| wake_ms <= turn.unix_ms)
            && self.applied.clock_ms() < turn.unix_ms
            && lead.leader.leads()
            && lead.leader.is_idle()
        {
            Self::stamp(lead, turn.unix_ms);
        }
    }
}
