//! One client: bytes in, requests to the worker in a lawful order, replies out in order.

use super::parser::{Limits, Parser, ProtocolError};
use super::replies::{Replies, Waiting};
use super::reply::{self, RespError};
use super::session::{Context, Session, Verdict};
use super::tls::Stream;
use super::users::Users;
use crate::front::{Access, Failure, FrontEnd, Submission};
use crate::kv::Arguments;
use consensus::envelope::MAX_REPLY_BYTES;
use mio::event::Event;
use mio::net::TcpStream;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

/// Requests of one connection that are not answered yet; at so many it is read no further.
pub(super) const MAX_UNANSWERED: usize = 1024;
/// Bytes that a client has not taken yet, or is expected to be answered; at so many it is read no
/// further.
const MAX_OUTPUT_BYTES: usize = 1024 * 1024;
/// Bytes that a client has not taken yet; at so many it is dropped: its answers became longer than
/// those before let expect, and it does not read them.
const MAX_HELD_BYTES: usize = 16 * MAX_OUTPUT_BYTES;
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
    /// How long a reply is expected to be: as the longest one, until many were shorter.
    expected_bytes: usize,
    held: Option<(Vec<u8>, Waiting)>,
    readable: bool,
    /// The client has sent its last byte; no further event will say so.
    read_closed: bool,
    /// No more requests are read; what has been asked is still answered.
    pub(super) ending: bool,
    /// Nobody reads the replies any more.
    broken: bool,
    /// The client has still to say who it is or, where nobody has to, to ask for anything.
    pub(super) is_stranger: bool,
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
            expected_bytes: MAX_REPLY_BYTES,
            held: None,
            readable: true,
            read_closed: false,
            ending: false,
            broken: false,
            is_stranger: true,
            since: Instant::now(),
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

    /// Bytes that the client has not taken yet.
    fn held_bytes(&self) -> usize {
        self.output.len() - self.written + self.replies.bytes()
    }

    fn may_go_on(&self) -> bool {
        let in_flight = self.commands_in_flight + self.queries_in_flight;
        let bytes = self.held_bytes() + in_flight * self.expected_bytes;
        self.replies.len() < MAX_UNANSWERED && bytes < MAX_OUTPUT_BYTES
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
            known.clear();
            let verdict = match &*words {
                [] => Verdict::Answered,
                words => self.session.request(words, context, &mut known),
            };
            self.is_stranger &= !context.users.is_empty() && self.session.user.is_none();
            let bytes = request.bytes;
            if !context.users.is_empty() {
                self.parser.limit(match self.session.user {
                    Some(_) => self.limits,
                    None => Limits::STRANGER,
                });
            }
            self.input.consume(bytes);
            self.parser.rest();
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
        let decayed = self.expected_bytes - self.expected_bytes / 8;
        self.expected_bytes = reply.len().max(decayed);
        if !self.broken {
            self.replies.fill(number, reply);
        }
        if self.held_bytes() >= MAX_HELD_BYTES {
            tracing::warn!(peer = %self.session.peer, "does not read its answers: dropped");
            self.broken = true;
            self.output = Vec::new();
            self.written = 0;
            self.replies.forget();
        }
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::cluster::{Cluster, Leaders};
    use super::*;
    use crate::front::{self, WorkerEnd};
    use std::io::Write;
    use std::net::{Ipv4Addr, TcpListener};
    use std::sync::Arc;

    const ASKED: usize = 2 * MAX_UNANSWERED;

    /// A client that has asked for much and reads nothing, and what it is served by.
    struct Scene {
        connection: Connection,
        front: FrontEnd,
        worker: WorkerEnd,
        _client: std::net::TcpStream,
    }

    impl Scene {
        fn new() -> Self {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (stream, peer) = listener.accept().unwrap();
            stream.set_nonblocking(true).unwrap();
            client.write_all(&b"GET k\r\n".repeat(ASKED)).unwrap();
            let stream = Stream::new(TcpStream::from_std(stream), None).unwrap();
            let limits = Limits {
                bulk_bytes: 1024,
                request_bytes: 4096,
                is_stranger: false,
            };
            let (front, worker) = front::attach(8192, 1, Arc::new(|| {}), Arc::new(|| {}));
            Self {
                connection: Connection::new(stream, peer, 1, limits, &Users::default()),
                front,
                worker,
                _client: client,
            }
        }

        fn with_context<T>(&mut self, act: impl FnOnce(&mut Self, &Context<'_>) -> T) -> T {
            let cluster = Cluster {
                name: 0,
                own: 1,
                members: Vec::new(),
                leaders: Leaders::new(1),
            };
            let context = Context {
                info: &String::new,
                max_command_bytes: 1024,
                users: &Users::default(),
                cluster: &cluster,
            };
            act(self, &context)
        }

        /// Has it read, until it asks for no more, and says what was asked for.
        fn turn(&mut self) -> Vec<u64> {
            self.with_context(|scene, context| {
                while scene.connection.turn(0, &mut scene.front, context) == Turn::Again {}
            });
            self.front.flush();
            let mut asked = Vec::new();
            while let Some(submission) = self.worker.poll_submission() {
                asked.push(submission.token);
            }
            asked
        }

        /// Each of these is answered by so many bytes.
        fn answer(&mut self, asked: &[u64], bytes: usize) {
            self.with_context(|scene, context| {
                for token in asked {
                    let reply = Ok(vec![b'x'; bytes]);
                    scene.connection.complete(*token as u32, reply, context);
                }
            });
        }
    }

    #[test]
    fn a_client_that_reads_nothing_is_answered_within_a_bound() {
        let mut scene = Scene::new();
        let mut answered = 0;
        loop {
            let asked = scene.turn();
            if asked.is_empty() {
                break;
            }
            assert!(asked.len() * MAX_REPLY_BYTES <= MAX_OUTPUT_BYTES + MAX_REPLY_BYTES);
            answered += asked.len();
            scene.answer(&asked, MAX_REPLY_BYTES);
        }
        let held = scene.connection.held_bytes();
        assert!(held < 2 * MAX_OUTPUT_BYTES, "{held}");
        assert!(answered < ASKED && !scene.connection.broken);
    }

    #[test]
    fn short_answers_let_many_be_asked_for_and_long_ones_after_them_end_who_does_not_read() {
        let mut scene = Scene::new();
        let mut most = scene.turn();
        while most.len() < MAX_UNANSWERED / 2 {
            scene.answer(&most, 5);
            most = scene.turn();
        }
        scene.answer(&most, MAX_REPLY_BYTES);
        assert!(scene.connection.broken);
        assert_eq!(scene.connection.held_bytes(), 0);
        scene.with_context(|scene, context| {
            let over = scene.connection.turn(0, &mut scene.front, context);
            assert_eq!(over, Turn::Over);
        });
    }
}
