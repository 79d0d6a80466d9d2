//! A client's side of the conversation: what its requests ask for, without any socket.

use super::cluster::{CROSS_SLOT, Cluster};
use super::local;
use super::replies::Waiting;
use super::reply::{self, Protocol, RespError};
use super::transaction::{Part, Transaction, merge};
use super::users::{Known, Users};
use crate::front::{Access, Failure};
use crate::kv::{Call, Command, Local, Parsed, Step};
use consensus::GroupId;
use std::borrow::Cow;
use std::net::SocketAddr;

/// What all connections share.
pub(super) struct Context<'a> {
    /// The text of INFO.
    pub(super) info: &'a (dyn Fn() -> String + Send + Sync),
    pub(super) max_command_bytes: usize,
    pub(super) users: &'a Users,
    pub(super) cluster: &'a Cluster,
}

/// The state of one connection as the client knows it.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: u64,
    pub(super) peer: SocketAddr,
    pub(super) name: Vec<u8>,
    pub(super) library: Vec<u8>,
    pub(super) library_version: Vec<u8>,
    pub(super) protocol: Protocol,
    /// Who speaks, once a password has said so.
    pub(super) user: Option<Known>,
    /// A wrong password was told of in the log.
    pub(super) is_suspect: bool,
    transaction: Option<Transaction>,
}

/// What a request leads to.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The reply is written.
    Answered,
    /// The reply is written and is the last.
    Farewell,
    /// The worker is to answer.
    Submit(Vec<u8>, Waiting),
}

impl Session {
    pub(super) fn new(id: u64, peer: SocketAddr) -> Self {
        Self {
            id,
            peer,
            name: Vec::new(),
            library: Vec::new(),
            library_version: Vec::new(),
            protocol: Protocol::Resp2,
            user: None,
            is_suspect: false,
            transaction: None,
        }
    }

    /// As new, but for what RESET leaves.
    pub(super) fn reset(&mut self) {
        self.name.clear();
        self.user = None;
        self.protocol = Protocol::Resp2;
        self.transaction = None;
    }

    /// The connection's line in CLIENT LIST.
    pub(super) fn describe(&self, users: &Users) -> String {
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let queued = if self.transaction.is_some() { "x" } else { "N" };
        format!(
            "id={} addr={} name={} flags={queued} db=0 user={} resp={} lib-name={} lib-ver={}\n",
            self.id,
            self.peer,
            text(&self.name),
            String::from_utf8_lossy(users.name(self.user)),
            2 + u8::from(self.protocol == Protocol::Resp3),
            text(&self.library),
            text(&self.library_version),
        )
    }

    /// Decides on one request; a reply that is known is appended to `out` as the client wants it.
    pub(super) fn request(
        &mut self,
        words: &[&[u8]],
        context: &Context<'_>,
        out: &mut Vec<u8>,
    ) -> Verdict {
        let decided = match Command::parse(words) {
            Ok(parsed) => match context.users.permit(self.user, &parsed, words) {
                Ok(()) => match self.place(&parsed, words, context) {
                    Ok(group) => self.decide(parsed, group, words, context, out),
                    Err(error) => Err(self.spoil(words, error)),
                },
                Err(error) => Err(self.spoil(words, error)),
            },
            Err(error) => Err(self.spoil(words, error)),
        };
        decided.unwrap_or_else(|error| {
            reply::error(out, &error);
            Verdict::Answered
        })
    }

    /// The group that a request is for: within a transaction, that of its other parts.
    fn place(
        &self,
        parsed: &Parsed<'_>,
        words: &[&[u8]],
        context: &Context<'_>,
    ) -> Result<GroupId, RespError> {
        let group = context.cluster.route(parsed, words)?;
        let is_call = matches!(parsed, Parsed::Query(_) | Parsed::Command(_));
        match self.transaction.as_ref().and_then(|one| one.group) {
            Some(before) if is_call && before != group => Err(CROSS_SLOT),
            Some(_) | None => Ok(group),
        }
    }

    /// A request that is no command spoils the transaction it stands in.
    fn spoil(&mut self, words: &[&[u8]], error: RespError) -> RespError {
        if words
            .first()
            .is_some_and(|name| name.eq_ignore_ascii_case(b"exec"))
        {
            self.transaction = None;
            let text = error.text().strip_prefix(b"ERR ").unwrap_or(error.text());
            let text = [b"EXECABORT Transaction discarded because of: ", text].concat();
            return RespError::quoting(text);
        }
        if let Some(transaction) = &mut self.transaction {
            transaction.spoiled = true;
        }
        error
    }

    fn decide(
        &mut self,
        parsed: Parsed<'_>,
        group: GroupId,
        words: &[&[u8]],
        context: &Context<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Verdict, RespError> {
        match (parsed, &mut self.transaction) {
            (Parsed::Transaction(step), _) => self.step(step, context, out),
            (Parsed::Local(local @ (Local::Quit | Local::Reset)), _) => {
                self.answer(local, words, context, out);
                let last = local == Local::Quit;
                Ok(if last {
                    Verdict::Farewell
                } else {
                    Verdict::Answered
                })
            }
            (Parsed::Local(local), None) => {
                self.answer(local, words, context, out);
                Ok(Verdict::Answered)
            }
            (Parsed::Local(local), Some(transaction)) => {
                let bytes = words.iter().map(|word| word.len()).sum();
                transaction.admit(bytes, context.max_command_bytes)?;
                transaction.push_local(local, words);
                reply::simple(out, "QUEUED");
                Ok(Verdict::Answered)
            }
            (Parsed::Query(call) | Parsed::Command(call), Some(transaction)) => {
                transaction.admit(call.encoded_bytes(), context.max_command_bytes)?;
                transaction.push_call(&call);
                transaction.group = Some(group);
                reply::simple(out, "QUEUED");
                Ok(Verdict::Answered)
            }
            (Parsed::Query(call), None) => self.submit(Access::Query, group, &call, context),
            (Parsed::Command(call), None) => self.submit(Access::Command, group, &call, context),
        }
    }

    fn submit(
        &self,
        access: Access,
        group: GroupId,
        call: &Call<'_>,
        context: &Context<'_>,
    ) -> Result<Verdict, RespError> {
        let (bytes, limit) = (call.encoded_bytes(), context.max_command_bytes);
        if bytes > limit {
            return Err(too_large("value", bytes, limit));
        }
        call.check()?;
        let waiting = Waiting {
            access,
            group,
            protocol: self.protocol,
            parts: None,
        };
        Ok(Verdict::Submit(call.to_body(), waiting))
    }

    fn step(
        &mut self,
        step: Step,
        context: &Context<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Verdict, RespError> {
        let inside = self.transaction.is_some();
        match step {
            Step::Multi if inside => {
                return Err(RespError::fixed("ERR MULTI calls can not be nested"));
            }
            Step::Multi => self.transaction = Some(Transaction::new()),
            Step::Discard if inside => self.transaction = None,
            Step::Discard => return Err(RespError::fixed("ERR DISCARD without MULTI")),
            Step::Watch if inside => {
                return Err(RespError::fixed("ERR WATCH inside MULTI is not allowed"));
            }
            Step::Watch => {
                return Err(RespError::fixed(
                    "ERR WATCH is not supported; SET with NX, XX or GET and MULTI are",
                ));
            }
            Step::Exec => return self.execute(context, out),
        }
        reply::simple(out, "OK");
        Ok(Verdict::Answered)
    }

    fn execute(&mut self, context: &Context<'_>, out: &mut Vec<u8>) -> Result<Verdict, RespError> {
        let transaction = self
            .transaction
            .take()
            .ok_or(RespError::fixed("ERR EXEC without MULTI"))?;
        if transaction.spoiled {
            return Err(RespError::fixed(
                "EXECABORT Transaction discarded because of previous errors.",
            ));
        }
        let group = transaction.group.unwrap_or(GroupId(0));
        let execution = transaction.into_execution();
        let Some(body) = execution.body else {
            let merged = self.merge(&execution.parts, b"*0\r\n", context);
            reply::convert(&merged, self.protocol, out);
            return Ok(Verdict::Answered);
        };
        let (protocol, parts) = (self.protocol, Some(execution.parts));
        Ok(Verdict::Submit(
            body,
            Waiting {
                access: Access::Command,
                group,
                protocol,
                parts,
            },
        ))
    }

    fn answer(&mut self, local: Local, words: &[&[u8]], context: &Context<'_>, out: &mut Vec<u8>) {
        let mut text = Vec::new();
        if let Err(error) = local::answer(local, words, self, context, &mut text) {
            text.clear();
            reply::error(&mut text, &error);
        }
        reply::convert(&text, self.protocol, out);
    }

    fn merge(&mut self, parts: &[Part], machine: &[u8], context: &Context<'_>) -> Vec<u8> {
        merge(parts, machine, |local, words, out| {
            let start = out.len();
            if let Err(error) = local::answer(local, words, self, context, out) {
                out.truncate(start);
                reply::error(out, &error);
            }
        })
    }

    /// The reply to what `waiting` stood for, as the client wants it.
    pub(super) fn complete(
        &mut self,
        waiting: &Waiting,
        result: Result<Vec<u8>, Failure>,
        context: &Context<'_>,
    ) -> Vec<u8> {
        let mut out = Vec::new();
        match (result, &waiting.parts) {
            (Ok(machine), Some(parts)) => {
                let merged = self.merge(parts, &machine, context);
                reply::convert(&merged, waiting.protocol, &mut out);
            }
            (Ok(machine), None) => {
                return match reply::converted(&machine, waiting.protocol) {
                    Cow::Borrowed(_) => machine,
                    Cow::Owned(converted) => converted,
                };
            }
            (Err(failure), _) => reply::error(&mut out, &refusal(failure)),
        }
        out
    }
}

impl Transaction {
    fn admit(&mut self, bytes: usize, limit: usize) -> Result<(), RespError> {
        // The part's own length takes at most five bytes.
        let bytes = self.bytes() + bytes + 5;
        if bytes <= limit {
            return Ok(());
        }
        self.spoiled = true;
        Err(too_large("transaction", bytes, limit))
    }
}

fn too_large(what: &str, bytes: usize, limit: usize) -> RespError {
    format!("ERR {what} too large: {bytes} bytes, this cluster's limit is {limit}").into()
}

/// A failure as a client reads it.
fn refusal(failure: Failure) -> RespError {
    match failure {
        Failure::NoLeader => RespError::fixed("CLUSTERDOWN no leader; try again"),
        Failure::TooLarge { limit } => {
            format!("ERR value too large: this cluster's limit is {limit} bytes").into()
        }
        // Not TRYAGAIN: clients repeat that by themselves, and an INCR would count twice.
        Failure::OutcomeUnknown => {
            RespError::fixed("ERR outcome unknown: the command may or may not have been applied")
        }
        Failure::Overloaded => RespError::fixed("TRYAGAIN overloaded: the command was not applied"),
        Failure::Stopping => {
            RespError::fixed("CLUSTERDOWN this node is stopping: the command was not applied")
        }
    }
}
