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
        let route = Route {
            address: from,
            nonce: header.nonce,
        };
        let serving = self.lead.as_ref().is_some_and(|lead| lead.leader.leads());
        if !serving {
            if header.flags.has(Flags::QUERY) && self.reads_by_quorum() {
                return self.query_follower(turn.now_ns, route, header.session(), value);
            }
            self.remember_inquirer(turn.now_ns, route, header.session());
            return self.redirect(turn, from, header);
        }
        let Some(lead) = &mut self.lead else { return };
        let is_early = lead.is_early(self.applied.slot());
        if is_early || lead.hands_over() {
            // The sessions are not known yet, or are about to be another's: the client asks again,
            // as soon as it is told of whoever serves.
            self.tally.deferred += 1;
            return self.remember_inquirer(turn.now_ns, route, header.session());
        }
        if value.is_empty() && !header.flags.has(Flags::QUERY) {
            return self.name_leader(turn, route, header.session(), self.config.node);
        }
        if header.flags.has(Flags::QUERY) {
            if lead.reads.len() >= MAX_READS {
                self.tally.deferred += 1;
                return;
            }
            let barrier = match lead.leader.holds_lease(turn.now_ns) {
                true => lead.leader.confirmed(),
                false => lead.leader.ask_barrier(),
            };
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
        let leader = match self.place {
            Some(_) => self.leader(turn.now_ns, turn.local),
            // Nobody tells this node any more who leads: some voter knows, and not always the same
            // one is asked, which may be gone.
            None => {
                let members = &self.register.newest.membership.members;
                let is_other = |member: &&Member| {
                    member.role == MemberRole::Voter && member.node != self.config.node
                };
                let others = || members.iter().filter(is_other);
                let turn = (request.nonce as usize).checked_rem(others().count());
                turn.and_then(|turn| others().nth(turn))
                    .map(|member| member.node)
            }
        };
        let route = Route {
            address: to,
            nonce: request.nonce,
        };
        self.name_leader(
            turn,
            route,
            request.session(),
            leader.unwrap_or(NodeId::NONE),
        );
    }

    /// Tells whoever is reached by `route` that `leader` leads, or that nobody is known to.
    pub(super) fn name_leader<M: Memory, J: Journal, I: Io>(
        &self,
        turn: &mut Turn<'_, M, J, I>,
        route: Route,
        session: SessionId,
        leader: NodeId,
    ) {
        let member = self.register.newest.membership.member(leader);
        let address = member.map(|member| encode_address(member.address));
        let value = address.as_ref().map_or(&[][..], |address| address);
        let header = Header {
            slot: Slot(session.0),
            vote_ballot: Ballot(u64::from(leader.0)),
            length: value.len() as u16,
            nonce: route.nonce,
            ..Header::new(Kind::Redirect, self.config.group, self.config.node)
        };
        turn.io.send(route.address, &header, value);
    }

    /// Whoever asked is told of the next leader as soon as it is known, so that a fail-over does not
    /// last until clients ask again.
    fn remember_inquirer(&mut self, now_ns: u64, route: Route, session: SessionId) {
        let inquirer = Inquirer {
            route,
            session,
            asked_ns: now_ns,
        };
        let known = |other: &&mut Inquirer| other.route.address == route.address;
        if let Some(known) = self.inquirers.iter_mut().find(known) {
            *known = inquirer;
            return;
        }
        if self.inquirers.len() >= MAX_INQUIRERS {
            self.inquirers.pop_front();
        }
        self.inquirers.push_back(inquirer);
    }

    /// Tells those who asked lately who leads in `ballot`, unless they know.
    pub(super) fn tell_inquirers<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        ballot: Ballot,
    ) {
        for inquirer in core::mem::take(&mut self.inquirers) {
            if turn.now_ns < inquirer.asked_ns.saturating_add(ASKED_NS) {
                self.name_leader(turn, inquirer.route, inquirer.session, ballot.node());
            }
        }
    }

    fn serving(&mut self) -> Option<&mut Lead> {
        let applied = self.applied.slot();
        self.lead
            .as_mut()
            .filter(|lead| lead.leader.leads() && !lead.is_early(applied) && !lead.hands_over())
    }

    /// Until when the present state may answer queries without this replica, and from when on
    /// whoever does so has the lease renewed, in nanoseconds of the monotonic clock; zeros if not.
    ///
    /// Who reads the clock after the query came, and this before, answers as the leader would.
    pub fn lease_ns(&mut self) -> (u64, u64) {
        self.serving().map_or((0, 0), |lead| lead.leader.lease_ns())
    }

    /// Queries are answered by the lease: it is to be renewed when its time has come.
    pub fn renew_lease(&mut self, now_ns: u64) {
        if let Some(lead) = self.serving() {
            lead.leader.holds_lease(now_ns);
        }
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
        while lead
            .reads
            .front()
            .is_some_and(|read| read.barrier <= confirmed || mutated(Mutation::ReadUnconfirmed))
        {
            let Some(read) = lead.reads.pop_front() else {
                break;
            };
            answer_queries(applied, responses, tally, &read);
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

/// Answers the queries of a Request from the present state.
pub(super) fn answer_queries<S: StateMachine>(
    applied: &Applied<S>,
    responses: &mut Responses,
    tally: &mut Tally,
    read: &Read,
) {
    let mut reply = Vec::new();
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
