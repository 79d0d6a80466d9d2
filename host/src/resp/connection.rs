//! One client: bytes in, requests to the worker in a lawful order, replies out in order.

use super::parser::{Limits, Parser, ProtocolError};
use super::replies::{Replies, Waiting};
use super::reply::{self, RespError};
use super::session::{Context, Session, Verdict};
use super::tls::Stream;
use super::users::Users;
use crate::front::{Access, Failure, FrontEnd, Submission};
use crate::kv::Arguments;
use mio::event::Event;
use mio::net::TcpStream;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

/// Requests of one connection that are not answered yet; at so many it is read no further.
pub(super) const MAX_UNANSWERED: usize = 1024;
/// Bytes that a client has not taken yet; at so many it is read no further.
const MAX_OUTPUT_BYTES: usize = 1024 * 1024;
/// Bytes read from one connection before the others have their turn.
const READ_BYTES_PER_TURN: usize = 256 * 1024;
/// What a read buffer has at first, and again when a long request is over.
const INPUT_BYTES: usize = 16 * 1024;

/// A client's connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    session: Session,
    parser: Parser,
    /// What the parser's limits become once the client has said who it is.
    limits: Limits,
    input: Input,
    output: Vec<u8>,
    /// How much of `output` is written.
    written: usize,
    replies: Replies,
    commands_in_flight: usize,
    queries_in_flight: usize,
    held: Option<(Vec<u8>, Waiting)>,
    readable: bool,
    /// The client has sent its last byte; no further event will say so.
    read_closed: bool,
    /// No more requests are read; what has been asked is still answered.
    pub(super) ending: bool,
    /// Nobody reads the replies any more.
    broken: bool,
    /// A whole request has come.
    has_asked: bool,
    /// When it was accepted.
    pub(super) since: Instant,
}

/// What a turn ended with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Turn {
    /// Until the socket or the worker has something.
    Idle,
    /// There is more to read at once.
    Again,
    /// Until the front has room.
    Stalled,
    /// It can be dropped.
    Over,
}

/// What stands in the way of the next request.
#[derive(PartialEq, Eq)]
enum Need {
    /// More bytes.
    Input,
    /// Room in the front.
    Room,
    /// The answers to the queries in front of a command.
    Answers,
    /// Replies that are written, so that the connection is within its bounds.
    Space,
}

impl Connection {
    pub(super) fn new(
        stream: Stream,
        peer: SocketAddr,
        id: u64,
        limits: Limits,
        users: &Users,
    ) -> Self {
        let first = if users.is_empty() {
            limits
        } else {
            Limits::STRANGER
        };
        Self {
            stream,
            session: Session::new(id, peer),
            parser: Parser::new(first),
            limits,
            input: Input::new(),
            output: Vec::new(),
            written: 0,
            replies: Replies::default(),
            commands_in_flight: 0,
            queries_in_flight: 0,
            held: None,
            readable: true,
            read_closed: false,
            ending: false,
            broken: false,
            has_asked: false,
            since: Instant::now(),
        }
    }

    /// Whether the client has still to say who it is or, where nobody has to, to ask for anything.
    pub(super) fn is_stranger(&self, users: &Users) -> bool {
        match users.is_empty() {
            true => !self.has_asked,
            false => self.session.user.is_none(),
        }
    }

    /// Its next turn is the last.
    pub(super) fn give_up(&mut self) {
        self.broken = true;
    }

    pub(super) fn socket_mut(&mut self) -> &mut TcpStream {
        self.stream.socket_mut()
    }

    /// The socket has something to say.
    pub(super) fn ready(&mut self, event: &Event) {
        self.read_closed |= event.is_read_closed() || event.is_error();
        self.readable |= event.is_readable() || self.read_closed;
    }

    /// Reads, submits and writes as much as is possible and fair. `place` is the connection's part
    /// of its tokens.
    pub(super) fn turn(&mut self, place: u32, front: &mut FrontEnd, context: &Context<'_>) -> Turn {
        let mut budget = READ_BYTES_PER_TURN;
        loop {
            let need = if self.broken {
                self.held = None;
                Need::Input
            } else {
                self.submit_requests(place, front, context)
            };
            self.replies.drain_known(&mut self.output);
            self.write();
            if self.broken || (self.ending && self.is_settled()) {
                let in_flight = self.commands_in_flight + self.queries_in_flight;
                return if in_flight == 0 {
                    self.stream.part();
                    Turn::Over
                } else {
                    Turn::Idle
                };
            }
            match need {
                Need::Room => return Turn::Stalled,
                Need::Input if self.readable && !self.ending => {
                    if budget == 0 {
                        return Turn::Again;
                    }
                    budget = budget.saturating_sub(self.read());
                }
                Need::Space if self.may_go_on() => {}
                // A completion or the socket gives the next turn.
                Need::Input | Need::Answers | Need::Space => return Turn::Idle,
            }
        }
    }

    fn is_settled(&self) -> bool {
        let is_written = self.written == self.output.len() && self.stream.is_flushed();
        self.replies.len() == 0 && self.held.is_none() && is_written
    }

    fn may_go_on(&self) -> bool {
        let output = self.output.len() - self.written;
        self.replies.len() < MAX_UNANSWERED && output < MAX_OUTPUT_BYTES
    }

    fn submit_requests(&mut self, place: u32, front: &mut FrontEnd, context: &Context<'_>) -> Need {
        let mut known = Vec::new();
        while self.may_go_on() {
            if let Some((body, waiting)) = self.held.take() {
                if let Err((need, held)) = self.submit(body, waiting, place, front) {
                    self.held = Some(held);
                    return need;
                }
                continue;
            }
            if self.ending {
                return Need::Input;
            }
            let request = match self.parser.next(self.input.bytes()) {
                Ok(Some(request)) => request,
                Ok(None) => return Need::Input,
                Err(error) => {
                    self.refuse(&error);
                    continue;
                }
            };
            let words: Arguments<'_> = request.words().collect();
            self.has_asked = true;
            known.clear();
            let verdict = match &*words {
                [] => Verdict::Answered,
                words => self.session.request(words, context, &mut known),
            };
            let bytes = request.bytes;
            if !context.users.is_empty() {
                self.parser.limit(match self.session.user {
                    Some(_) => self.limits,
                    None => Limits::STRANGER,
                });
            }
            self.input.consume(bytes);
            match verdict {
                Verdict::Answered => self.replies.push_known(&known, &mut self.output),
                Verdict::Farewell => {
                    self.replies.push_known(&known, &mut self.output);
                    self.ending = true;
                }
                Verdict::Submit(body, waiting) => self.held = Some((body, waiting)),
            }
        }
        Need::Space
    }

    fn refuse(&mut self, error: &ProtocolError) {
        let mut text = Vec::new();
        reply::error(&mut text, &RespError::from(format!("ERR {error}")));
        self.replies.push_known(&text, &mut self.output);
        self.ending = true;
    }

    /// Commands keep their order by themselves, and queries among themselves need none. A query
    /// behind commands goes through the log with them; a command behind queries waits for their
    /// answers, as they could see it otherwise.
    fn submit(
        &mut self,
        body: Vec<u8>,
        waiting: Waiting,
        place: u32,
        front: &mut FrontEnd,
    ) -> Result<(), (Need, (Vec<u8>, Waiting))> {
        // Behind others it would be answered from an older state than they are.
        if waiting.access == Access::Query
            && waiting.parts.is_none()
            && self.commands_in_flight + self.queries_in_flight == 0
            && let Some(answer) = front.answer(waiting.group, &body)
        {
            let reply = reply::converted(answer, waiting.protocol);
            self.replies.push_known(&reply, &mut self.output);
            return Ok(());
        }
        let access = match waiting.access {
            Access::Query if self.commands_in_flight == 0 => Access::Query,
            Access::Command if self.queries_in_flight > 0 => {
                return Err((Need::Answers, (body, waiting)));
            }
            Access::Query | Access::Command => Access::Command,
        };
        let token = u64::from(place) << 32 | u64::from(self.replies.next_number());
        match front.submit(Submission {
            token,
            access,
            group: waiting.group,
            body,
        }) {
            Ok(()) => {
                *self.in_flight(access) += 1;
                self.replies.push_waiting(Waiting { access, ..waiting });
                Ok(())
            }
            Err(back) => Err((Need::Room, (back.body, waiting))),
        }
    }

    fn in_flight(&mut self, access: Access) -> &mut usize {
        match access {
            Access::Command => &mut self.commands_in_flight,
            Access::Query => &mut self.queries_in_flight,
        }
    }

    /// The worker has answered the request of that number.
    pub(super) fn complete(
        &mut self,
        number: u32,
        result: Result<Vec<u8>, Failure>,
        context: &Context<'_>,
    ) {
        let waiting = self.replies.take_waiting(number);
        debug_assert!(waiting.is_some(), "a submission is completed once");
        let Some(waiting) = waiting else { return };
        *self.in_flight(waiting.access) -= 1;
        let reply = self.session.complete(&waiting, result, context);
        self.replies.fill(number, reply);
    }

    /// The worker is gone: nothing that waits will be answered any more.
    pub(super) fn abandon(&mut self, context: &Context<'_>) {
        for number in self.replies.waiting() {
            self.complete(number, Err(Failure::OutcomeUnknown), context);
        }
        if let Some((_, waiting)) = self.held.take() {
            let reply = self
                .session
                .complete(&waiting, Err(Failure::Stopping), context);
            self.replies.push_known(&reply, &mut self.output);
        }
    }

    fn read(&mut self) -> usize {
        let room = self.input.room();
        let room_bytes = room.len();
        match self.stream.read(room) {
            Ok(0) => {
                self.ending = true;
                0
            }
            Ok(bytes) => {
                self.input.filled(bytes);
                self.readable = self.stream.may_have_more(bytes, room_bytes) || self.read_closed;
                bytes
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                0
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(_) => {
                self.broken = true;
                0
            }
        }
    }

    fn write(&mut self) {
        while !self.broken && self.written < self.output.len() {
            match self.stream.write(&self.output[self.written..]) {
                Ok(0) => self.broken = true,
                Ok(bytes) => self.written += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.broken = true,
            }
        }
        match self.stream.flush() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => self.broken = true,
            Ok(()) | Err(_) => {}
        }
        if self.written == self.output.len() {
            self.output.clear();
            self.output.shrink_to(MAX_OUTPUT_BYTES / 4);
            self.written = 0;
        } else if self.written > MAX_OUTPUT_BYTES / 4 {
            self.output.drain(..self.written);
            self.written = 0;
        }
    }
}

/// Bytes read and not yet parsed.
#[derive(Debug)]
struct Input {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    fn new() -> Self {
        Self {
            buffer: vec![0; INPUT_BYTES],
            start: 0,
            end: 0,
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    fn consume(&mut self, bytes: usize) {
        self.start += bytes;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.buffer.len() > 4 * INPUT_BYTES {
                self.buffer = vec![0; INPUT_BYTES];
            }
        }
    }

    /// Where to read to; a request that fills the buffer makes it grow, up to the parser's limit.
    fn room(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.buffer.len() {
            self.buffer.resize(2 * self.buffer.len(), 0);
        }
        &mut self.buffer[self.end..]
    }

    fn filled(&mut self, bytes: usize) {
        self.end += bytes;
    }
}
