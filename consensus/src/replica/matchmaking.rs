//! This node as a matchmaker.

use super::*;

impl<S: StateMachine> Replica<S> {
    /// Writes the register down. What is used before that would be forgotten by the next life.
    pub(super) fn keep_register<I: Io>(&self, io: &mut I) -> bool {
        // Who knows no members has nothing to begin with.
        let is_known = !self.register.newest.membership.members.is_empty();
        mutated(Mutation::MatchmakerForgets)
            || is_known && io.keep_register(self.config.group, &self.register.to_bytes())
    }

    /// Goes by these matchmakers from here on. False if they are not newer, or cannot be written down
    /// now.
    pub(super) fn know_matchmakers<I: Io>(&mut self, io: &mut I, newer: &Matchmakers) -> bool {
        let before = self.register.clone();
        if !self.register.know(newer) {
            return false;
        }
        let is_kept = self.keep_register(io);
        if !is_kept {
            self.register = before;
        }
        is_kept
    }

    /// Another node asks this one, or tells it, as a matchmaker.
    pub(super) fn asked_as_matchmaker<M: Memory, J: Journal, I: Io>(
        &mut self,
        turn: &mut Turn<'_, M, J, I>,
        from: SocketAddr,
        request: &Header,
        value: &[u8],
    ) {
        // Another life of this node may have been a matchmaker; this one remembers nothing of it.
        if request.incarnation != self.config.incarnation {
            return;
        }
        let Some((configuration, rest)) = Configuration::read(value) else {
            return;
        };
        self.election.round = self.election.round.max(request.ballot.round());
        if request.kind == Kind::Match {
            // What a ballot is about to use is not in use yet.
            self.know_matchmakers(turn.io, &configuration.matchmakers);
        } else {
            self.adopt(turn, configuration.clone());
        }
        let answer = self.answer_as_matchmaker(turn.io, request, &configuration, rest);
        if let Some((reply, value)) = answer {
            turn.io.send(from, &reply, &value);
        }
    }

    /// What this node answers as a matchmaker to whoever knows `configuration`.
    pub(super) fn answer_as_matchmaker<I: Io>(
        &mut self,
        io: &mut I,
        request: &Header,
        configuration: &Configuration,
        rest: &[u8],
    ) -> Option<(Header, Vec<u8>)> {
        let asked = &configuration.matchmakers;
        let known = &self.register.newest.matchmakers;
        let reply = Header {
            sender: self.config.node,
            incarnation: self.config.incarnation,
            vote_ballot: Ballot::NONE,
            ..*request
        };
        let is_successor = request.kind == Kind::HandOver;
        let is_over = match is_successor {
            true => request.slot.0 <= u64::from(known.generation),
            false => asked.generation < known.generation,
        };
        if is_over {
            // Others have taken over: they are asked from here on.
            return Some(self.refusal(reply, Ballot::NONE, configuration));
        }
        let own = (self.config.node, self.config.incarnation);
        if !is_successor && (asked.generation > known.generation || !known.has(own.0, own.1)) {
            return None;
        }
        let before = self.register.clone();
        let answer = match request.kind {
            Kind::Match => self.match_ballot(request, reply, configuration),
            Kind::Garbage => self.collect(reply),
            Kind::Stop => self.stop(reply, configuration),
            Kind::Appoint => self.appoint(reply, configuration, rest),
            Kind::HandOver => self.receive_book(reply, rest),
            _ => None,
        };
        if self.register != before && !self.keep_register(io) {
            self.register = before;
            return None;
        }
        answer
    }

    fn refusal(&self, reply: Header, ahead: Ballot, known: &Configuration) -> (Header, Vec<u8>) {
        let latest = self.register.latest();
        let is_newer = latest.version > known.version
            || latest.matchmakers.generation > known.matchmakers.generation;
        let value = match is_newer {
            true => latest.to_bytes(),
            false => Vec::new(),
        };
        let reply = Header {
            kind: Kind::Unmatched,
            vote_ballot: ahead,
            length: value.len() as u16,
            ..reply
        };
        (reply, value)
    }

    fn match_ballot(
        &mut self,
        request: &Header,
        reply: Header,
        configuration: &Configuration,
    ) -> Option<(Header, Vec<u8>)> {
        let asker = Incarnation(request.watermark as u32);
        let (ballot, leads) = (request.ballot, request.vote_ballot);
        let matchmaker = &mut self.register.matchmaker;
        let mut value = Vec::new();
        let reply = match matchmaker.handle_match(ballot, asker, leads, configuration) {
            Match::Matched {
                before,
                garbage,
                configurations,
            } => {
                for one in configurations {
                    one.append(&mut value);
                }
                Header {
                    kind: Kind::Matched,
                    vote_ballot: before,
                    watermark: garbage.0,
                    ..reply
                }
            }
            Match::Refused { highest } => {
                return Some(self.refusal(reply, highest, configuration));
            }
            Match::Full => return None,
            Match::Stopped => return Some(stopped(reply)),
        };
        let length = value.len() as u16;
        Some((Header { length, ..reply }, value))
    }

    fn collect(&mut self, reply: Header) -> Option<(Header, Vec<u8>)> {
        if Ballot(reply.watermark) > reply.ballot {
            // No configuration is newer than its leader's ballot.
            return None;
        }
        if !self.register.matchmaker.collect(Ballot(reply.watermark)) {
            return Some(stopped(reply));
        }
        let reply = Header {
            kind: Kind::Collected,
            length: 0,
            ..reply
        };
        Some((reply, Vec::new()))
    }

    fn stop(&mut self, reply: Header, known: &Configuration) -> Option<(Header, Vec<u8>)> {
        let asker = Incarnation(reply.watermark as u32);
        if let Err(ahead) = self.register.matchmaker.stop(reply.ballot, asker) {
            return Some(self.refusal(reply, ahead, known));
        }
        let (vote_ballot, next) = match self.register.matchmaker.accepted() {
            Some((ballot, next)) => (*ballot, next),
            None => (Ballot::NONE, &Matchmakers::NONE),
        };
        let mut value = Vec::new();
        next.append(&mut value);
        self.register.matchmaker.book().append(&mut value);
        let reply = Header {
            vote_ballot,
            length: value.len() as u16,
            ..stopped(reply).0
        };
        Some((reply, value))
    }

    fn appoint(
        &mut self,
        reply: Header,
        known: &Configuration,
        rest: &[u8],
    ) -> Option<(Header, Vec<u8>)> {
        let (next, _) = Matchmakers::read(rest)?;
        if next.generation != known.matchmakers.generation + 1 || next.members.is_empty() {
            return None;
        }
        let asker = Incarnation(reply.watermark as u32);
        let matchmaker = &mut self.register.matchmaker;
        if let Err(ahead) = matchmaker.appoint(reply.ballot, asker, next) {
            return Some(self.refusal(reply, ahead, known));
        }
        let reply = Header {
            kind: Kind::Appointed,
            length: 0,
            ..reply
        };
        Some((reply, Vec::new()))
    }

    fn receive_book(&mut self, reply: Header, rest: &[u8]) -> Option<(Header, Vec<u8>)> {
        let (book, _) = Book::read(rest)?;
        let generation = u32::try_from(reply.slot.0).ok()?;
        let reply = Header {
            kind: Kind::HandedOver,
            length: 0,
            ..reply
        };
        let is_next = self.register.matchmaker.take_over(generation, book);
        is_next.then_some((reply, Vec::new()))
    }
}

/// Others are to follow; whoever asks finishes that first.
fn stopped(reply: Header) -> (Header, Vec<u8>) {
    let reply = Header {
        kind: Kind::Stopped,
        length: 0,
        ..reply
    };
    (reply, Vec::new())
}
