//! Which commands there are, and what a client's words ask for.

use super::body::{Call, Op};
use super::operation::Operation;
use crate::front::Access;
use crate::resp::reply::RespError;

/// What a command is, as `COMMAND INFO` and `COMMAND DOCS` tell it.
#[derive(Debug)]
pub struct Command {
    /// Its name in lower case; a subcommand's has its container's in front: `client|id`.
    pub name: &'static str,
    /// How many words it takes with its name; at least so many if negative.
    pub arity: i32,
    /// The first key, the last (from the end if negative) and the step, as word numbers.
    pub keys: (i32, i32, i32),
    /// One line for people.
    pub summary: &'static str,
    /// Since which version Redis has it.
    pub since: &'static str,
    action: Action,
}

#[derive(Debug)]
enum Action {
    Machine(Op),
    Local(Local),
    Transaction(Step),
    /// Its subcommands, sorted by name.
    Container(&'static [Command]),
}

/// What the front answers by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "each is the command of its name")]
pub enum Local {
    AclList,
    AclUsers,
    AclWhoami,
    Auth,
    ClientGetname,
    ClientId,
    ClientInfo,
    ClientList,
    ClientNoEvict,
    ClientNoTouch,
    ClientSetinfo,
    ClientSetname,
    Command,
    CommandCount,
    CommandDocs,
    CommandInfo,
    CommandList,
    Asking,
    ClusterInfo,
    ClusterKeyslot,
    ClusterMyid,
    ClusterNodes,
    ClusterShards,
    ClusterSlots,
    ConfigGet,
    Echo,
    Hello,
    Info,
    Ping,
    Quit,
    Readonly,
    Readwrite,
    Reset,
    Select,
    Unwatch,
}

/// What moves a connection in and out of a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "each is the command of its name")]
pub enum Step {
    Multi,
    Exec,
    Discard,
    Watch,
}

/// What a client's words ask for.
#[derive(Clone, Debug)]
pub enum Parsed<'a> {
    /// The front answers.
    Local(Local),
    /// A linearizable read.
    Query(Call<'a>),
    /// Something for the log.
    Command(Call<'a>),
    /// Begins, ends or guards a transaction.
    Transaction(Step),
}

impl Command {
    /// Finds out what `words` ask for. An error here is one that also spoils a transaction; what
    /// the arguments mean is only looked at by [`Call::check`].
    ///
    /// # Errors
    /// An unknown command, an unknown subcommand or a wrong number of words, in Redis' own texts.
    pub fn parse<'a>(words: &[&'a [u8]]) -> Result<Parsed<'a>, RespError> {
        let command = Self::called(words)?;
        let arguments = words.get(1..).unwrap_or_default();
        if !command.takes(words.len()) {
            let name = command.name;
            return Err(format!("ERR wrong number of arguments for '{name}' command").into());
        }
        Ok(match command.action {
            Action::Machine(op) => {
                let call = Call {
                    op,
                    arguments: arguments.iter().copied().collect(),
                };
                match op.access() {
                    Access::Query => Parsed::Query(call),
                    Access::Command => Parsed::Command(call),
                }
            }
            Action::Local(local) => Parsed::Local(local),
            Action::Transaction(step) => Parsed::Transaction(step),
            // `COMMAND` alone; the other containers take a subcommand by their arity.
            Action::Container(_) => Parsed::Local(Local::Command),
        })
    }

    /// The command, or subcommand, that `words` begin with.
    ///
    /// # Errors
    /// As for [`parse`](Self::parse), but for the number of words.
    pub fn called(words: &[&[u8]]) -> Result<&'static Self, RespError> {
        let (name, arguments) = words.split_first().ok_or_else(|| unknown(&[]))?;
        let command = find(COMMANDS, "", name).ok_or_else(|| unknown(words))?;
        match (&command.action, arguments) {
            (Action::Container(subcommands), [sub, ..]) => {
                find(subcommands, command.name, sub).ok_or_else(|| unknown_subcommand(command, sub))
            }
            _ => Ok(command),
        }
    }

    /// Every command in the order of its name, without the subcommands.
    pub fn all() -> &'static [Self] {
        COMMANDS
    }

    /// The command of that name, `client|id` for a subcommand; letter case does not matter.
    pub fn named(name: &[u8]) -> Option<&'static Self> {
        let Some(bar) = name.iter().position(|byte| *byte == b'|') else {
            return find(COMMANDS, "", name);
        };
        let container = find(COMMANDS, "", &name[..bar])?;
        find(container.subcommands(), container.name, &name[bar + 1..])
    }

    /// Its subcommands.
    pub fn subcommands(&self) -> &'static [Self] {
        match self.action {
            Action::Container(subcommands) => subcommands,
            Action::Machine(_) | Action::Local(_) | Action::Transaction(_) => &[],
        }
    }

    /// How the worker executes it, if it does.
    pub fn access(&self) -> Option<Access> {
        match self.action {
            Action::Machine(op) => Some(op.access()),
            Action::Local(_) | Action::Transaction(_) | Action::Container(_) => None,
        }
    }

    fn takes(&self, words: usize) -> bool {
        let named = self.arity.unsigned_abs() as usize;
        if self.arity < 0 {
            words >= named
        } else {
            words == named
        }
    }
}

impl Op {
    /// How it is executed: what only reads may go round the log.
    pub const fn access(self) -> Access {
        match self {
            Self::Get
            | Self::Mget
            | Self::Exists
            | Self::Strlen
            | Self::Ttl
            | Self::Pttl
            | Self::Scan
            | Self::Dbsize
            | Self::Type => Access::Query,
            Self::Set
            | Self::Mset
            | Self::Del
            | Self::Incr
            | Self::Decr
            | Self::Incrby
            | Self::Decrby
            | Self::Append
            | Self::Getdel
            | Self::Expire
            | Self::Pexpire
            | Self::Persist => Access::Command,
        }
    }
}

impl Call<'_> {
    /// Whether the arguments make sense, as far as can be said without the state.
    ///
    /// # Errors
    /// The error reply that applying it would give.
    pub fn check(&self) -> Result<(), RespError> {
        Operation::parse(self).map(drop)
    }
}

/// Encodes the words of one command for the worker, for callers that are no RESP client.
///
/// # Errors
/// Unknown commands, commands that only a connection understands, bad arguments.
pub fn encode(words: &[&[u8]]) -> Result<(Access, Vec<u8>), RespError> {
    let (access, call) = match Command::parse(words)? {
        Parsed::Query(call) => (Access::Query, call),
        Parsed::Command(call) => (Access::Command, call),
        Parsed::Local(_) | Parsed::Transaction(_) => return Err(unknown(words)),
    };
    call.check()?;
    Ok((access, call.to_body()))
}

fn find(table: &'static [Command], container: &str, name: &[u8]) -> Option<&'static Command> {
    const LONGEST: usize = 16;
    let mut lower = [0; LONGEST];
    let lower = lower.get_mut(..name.len())?;
    lower.copy_from_slice(name);
    lower.make_ascii_lowercase();
    let skipped = if container.is_empty() {
        0
    } else {
        container.len() + 1
    };
    let found = table.binary_search_by(|command| command.name.as_bytes()[skipped..].cmp(lower));
    found.ok().map(|at| &table[at])
}

/// How many bytes of a word Redis quotes in an error.
const QUOTED_BYTES: usize = 128;

/// Redis formats words as C strings.
fn quoted(word: &[u8], limit: usize) -> &[u8] {
    let end = word
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(word.len());
    &word[..end.min(limit)]
}

fn unknown(words: &[&[u8]]) -> RespError {
    let mut text = b"ERR unknown command '".to_vec();
    let name = words.first().copied().unwrap_or_default();
    let arguments = words.get(1..).unwrap_or_default();
    text.extend_from_slice(quoted(name, QUOTED_BYTES));
    text.extend_from_slice(b"', with args beginning with: ");
    let start = text.len();
    for word in arguments {
        let so_far = text.len() - start;
        if so_far >= QUOTED_BYTES {
            break;
        }
        text.push(b'\'');
        text.extend_from_slice(quoted(word, QUOTED_BYTES - so_far));
        text.extend_from_slice(b"' ");
    }
    RespError::quoting(text)
}

fn unknown_subcommand(container: &Command, sub: &[u8]) -> RespError {
    let mut text = b"ERR unknown subcommand '".to_vec();
    text.extend_from_slice(quoted(sub, QUOTED_BYTES));
    let name = container.name.to_ascii_uppercase();
    text.extend_from_slice(format!("'. Try {name} HELP.").as_bytes());
    RespError::quoting(text)
}

const NO_KEYS: (i32, i32, i32) = (0, 0, 0);
const ONE_KEY: (i32, i32, i32) = (1, 1, 1);
const ALL_KEYS: (i32, i32, i32) = (1, -1, 1);

const fn machine(
    name: &'static str,
    arity: i32,
    keys: (i32, i32, i32),
    op: Op,
    since: &'static str,
    summary: &'static str,
) -> Command {
    Command {
        name,
        arity,
        keys,
        summary,
        since,
        action: Action::Machine(op),
    }
}

const fn local(
    name: &'static str,
    arity: i32,
    local: Local,
    since: &'static str,
    summary: &'static str,
) -> Command {
    Command {
        name,
        arity,
        keys: NO_KEYS,
        summary,
        since,
        action: Action::Local(local),
    }
}

const fn step(
    name: &'static str,
    arity: i32,
    step: Step,
    since: &'static str,
    summary: &'static str,
) -> Command {
    Command {
        name,
        arity,
        keys: NO_KEYS,
        summary,
        since,
        action: Action::Transaction(step),
    }
}

const fn container(
    name: &'static str,
    arity: i32,
    subcommands: &'static [Command],
    since: &'static str,
    summary: &'static str,
) -> Command {
    let action = Action::Container(subcommands);
    Command {
        name,
        arity,
        keys: NO_KEYS,
        summary,
        since,
        action,
    }
}

/// Sorted by name.
#[rustfmt::skip]
static COMMANDS: &[Command] = &[
    container("acl", -2, ACL, "6.0.0", "Commands about users."),
    machine("append", 3, ONE_KEY, Op::Append, "2.0.0", "Appends to a value."),
    local("asking", 1, Local::Asking, "3.0.0", "Does nothing: no slot is on its way to another node."),
    local("auth", -2, Local::Auth, "1.0.0", "Says who the client is, by a password."),
    container("client", -2, CLIENT, "2.4.0", "Commands about connections."),
    container("cluster", -2, CLUSTER, "3.0.0", "Commands about hash slots and who serves them."),
    container("command", -1, COMMAND, "2.8.13", "Describes the commands."),
    container("config", -2, CONFIG, "2.0.0", "Commands about the configuration."),
    machine("dbsize", 1, NO_KEYS, Op::Dbsize, "1.0.0", "Counts the keys."),
    machine("decr", 2, ONE_KEY, Op::Decr, "1.0.0", "Subtracts one from a number."),
    machine("decrby", 3, ONE_KEY, Op::Decrby, "1.0.0", "Subtracts from a number."),
    machine("del", -2, ALL_KEYS, Op::Del, "1.0.0", "Removes keys."),
    step("discard", 1, Step::Discard, "2.0.0", "Drops a transaction."),
    local("echo", 2, Local::Echo, "1.0.0", "Returns its argument."),
    step("exec", 1, Step::Exec, "1.2.0", "Applies a transaction."),
    machine("exists", -2, ALL_KEYS, Op::Exists, "1.0.0", "Counts which of the keys exist."),
    machine("expire", -3, ONE_KEY, Op::Expire, "1.0.0", "Sets a time to live in seconds."),
    machine("get", 2, ONE_KEY, Op::Get, "1.0.0", "Returns a value."),
    machine("getdel", 2, ONE_KEY, Op::Getdel, "6.2.0", "Returns a value and removes its key."),
    local("hello", -1, Local::Hello, "6.0.0", "Chooses the protocol."),
    machine("incr", 2, ONE_KEY, Op::Incr, "1.0.0", "Adds one to a number."),
    machine("incrby", 3, ONE_KEY, Op::Incrby, "1.0.0", "Adds to a number."),
    local("info", -1, Local::Info, "1.0.0", "Describes this node."),
    machine("mget", -2, ALL_KEYS, Op::Mget, "1.0.0", "Returns values."),
    machine("mset", -3, (1, -1, 2), Op::Mset, "1.0.1", "Sets keys."),
    step("multi", 1, Step::Multi, "1.2.0", "Begins a transaction."),
    machine("persist", 2, ONE_KEY, Op::Persist, "2.2.0", "Removes the time to live."),
    machine("pexpire", -3, ONE_KEY, Op::Pexpire, "2.6.0", "Sets a time to live in milliseconds."),
    local("ping", -1, Local::Ping, "1.0.0", "Answers."),
    machine("pttl", 2, ONE_KEY, Op::Pttl, "2.6.0", "The time to live in milliseconds."),
    local("quit", -1, Local::Quit, "1.0.0", "Closes the connection."),
    local("readonly", 1, Local::Readonly, "3.0.0", "Does nothing: only leaders serve."),
    local("readwrite", 1, Local::Readwrite, "3.0.0", "Does nothing: only leaders serve."),
    local("reset", 1, Local::Reset, "6.2.0", "Makes the connection as new."),
    machine("scan", -2, NO_KEYS, Op::Scan, "2.8.0", "Walks the keys."),
    local("select", 2, Local::Select, "1.0.0", "There is one database, 0."),
    machine("set", -3, ONE_KEY, Op::Set, "1.0.0", "Sets a key."),
    machine("strlen", 2, ONE_KEY, Op::Strlen, "2.2.0", "The length of a value."),
    machine("ttl", 2, ONE_KEY, Op::Ttl, "1.0.0", "The time to live in seconds."),
    machine("type", 2, ONE_KEY, Op::Type, "1.0.0", "The type of a value."),
    machine("unlink", -2, ALL_KEYS, Op::Del, "4.0.0", "Removes keys."),
    local("unwatch", 1, Local::Unwatch, "2.2.0", "Does nothing: nothing is watched."),
    step("watch", -2, Step::Watch, "2.2.0", "Refused."),
];

#[rustfmt::skip]
static ACL: &[Command] = &[
    local("acl|list", 2, Local::AclList, "6.0.0", "The users and what they may do."),
    local("acl|users", 2, Local::AclUsers, "6.0.0", "The users' names."),
    local("acl|whoami", 2, Local::AclWhoami, "6.0.0", "The connection's user."),
];

#[rustfmt::skip]
static CLIENT: &[Command] = &[
    local("client|getname", 2, Local::ClientGetname, "2.6.9", "The connection's name."),
    local("client|id", 2, Local::ClientId, "5.0.0", "The connection's number."),
    local("client|info", 2, Local::ClientInfo, "6.2.0", "Describes the connection."),
    local("client|list", -2, Local::ClientList, "2.4.0", "Describes the connections."),
    local("client|no-evict", 3, Local::ClientNoEvict, "7.0.0", "Does nothing: nothing is evicted."),
    local("client|no-touch", 3, Local::ClientNoTouch, "7.2.0", "Does nothing: nothing is evicted."),
    local("client|setinfo", 4, Local::ClientSetinfo, "7.2.0", "Names the client's library."),
    local("client|setname", 3, Local::ClientSetname, "2.6.9", "Names the connection."),
];

#[rustfmt::skip]
static CLUSTER: &[Command] = &[
    local("cluster|info", 2, Local::ClusterInfo, "3.0.0", "Whether every slot is served."),
    local("cluster|keyslot", 3, Local::ClusterKeyslot, "3.0.0", "The slot of a key."),
    local("cluster|myid", 2, Local::ClusterMyid, "3.0.0", "This node's name."),
    local("cluster|nodes", 2, Local::ClusterNodes, "3.0.0", "The nodes and their slots."),
    local("cluster|shards", 2, Local::ClusterShards, "7.0.0", "The nodes and their slots."),
    local("cluster|slots", 2, Local::ClusterSlots, "3.0.0", "The slots and their nodes."),
];

#[rustfmt::skip]
static COMMAND: &[Command] = &[
    local("command|count", 2, Local::CommandCount, "2.8.13", "Counts the commands."),
    local("command|docs", -2, Local::CommandDocs, "7.0.0", "Documents commands."),
    local("command|info", -2, Local::CommandInfo, "2.8.13", "Describes commands."),
    local("command|list", -2, Local::CommandList, "7.0.0", "Names the commands."),
];

#[rustfmt::skip]
static CONFIG: &[Command] = &[
    local("config|get", -3, Local::ConfigGet, "2.0.0", "Reads the configuration."),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn error(line: &str) -> String {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        Command::parse(&words)
            .expect_err("does not parse")
            .to_string()
    }

    #[test]
    fn the_tables_are_sorted_and_every_command_is_found() {
        for table in [COMMANDS, ACL, CLIENT, CLUSTER, COMMAND, CONFIG] {
            assert!(table.is_sorted_by(|a, b| a.name < b.name));
            for command in table {
                let upper = command.name.to_ascii_uppercase();
                let found = Command::named(upper.as_bytes()).expect("is found");
                assert_eq!(found.name, command.name);
            }
        }
    }

    #[test]
    fn errors_are_those_of_redis() {
        assert_eq!(
            error("FOO bar baz"),
            "ERR unknown command 'FOO', with args beginning with: 'bar' 'baz' "
        );
        assert_eq!(
            error("GET"),
            "ERR wrong number of arguments for 'get' command"
        );
        assert_eq!(
            error("get a b"),
            "ERR wrong number of arguments for 'get' command"
        );
        assert_eq!(
            error("client setname"),
            "ERR wrong number of arguments for 'client|setname' command"
        );
        assert_eq!(
            error("Client foo"),
            "ERR unknown subcommand 'foo'. Try CLIENT HELP."
        );
    }

    #[test]
    fn a_quoted_word_stops_at_128_bytes() {
        let long = "x".repeat(500);
        let text = error(&format!("{long} {long} {long}"));
        let x = "x".repeat(128);
        assert_eq!(
            text,
            format!("ERR unknown command '{x}', with args beginning with: '{x}' ")
        );
    }

    #[test]
    fn reads_are_queries_and_the_rest_is_for_the_log() {
        assert!(matches!(encode(&[b"get", b"k"]), Ok((Access::Query, _))));
        assert!(matches!(encode(&[b"INCR", b"k"]), Ok((Access::Command, _))));
        assert!(encode(&[b"ping"]).is_err());
        assert!(encode(&[b"set", b"k", b"v", b"what"]).is_err());
    }
}
