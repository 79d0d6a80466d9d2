//! What the front answers without the machine.

use super::cluster::{self, Cluster};
use super::reply::{self, Protocol, RespError};
use super::session::{Context, Session};
use super::users;
use crate::front::Access;
use crate::kv::{Command, Local, glob, parse_integer};

const SYNTAX: RespError = RespError::fixed("ERR syntax error");
const BAD_NAME: RespError =
    RespError::fixed("ERR Client names cannot contain spaces, newlines or special characters.");
const NO_PASSWORD: RespError = RespError::fixed(
    "ERR AUTH <password> called without any password configured for the default user. \
     Are you sure your configuration is correct?",
);
const NO_USERS: RespError =
    RespError::fixed("WRONGPASS there are no users here: connect without a password");
const HELLO_FIRST: RespError = RespError::fixed(
    "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO AUTH \
     <user> <pass> option can be used to authenticate the client and select the RESP protocol \
     version at the same time",
);

/// Settings that tools ask for; what they say is so, in Redis' terms.
const SETTINGS: [(&str, &str); 6] = [
    ("appendonly", "no"),
    ("databases", "1"),
    ("maxmemory", "0"),
    ("maxmemory-policy", "noeviction"),
    ("save", ""),
    ("timeout", "0"),
];

/// Writes the reply, in RESP3.
///
/// # Errors
/// The error reply.
pub(super) fn answer(
    local: Local,
    words: &[&[u8]],
    session: &mut Session,
    context: &Context<'_>,
    out: &mut Vec<u8>,
) -> Result<(), RespError> {
    match local {
        Local::Ping => match words {
            [_] => reply::simple(out, "PONG"),
            [_, text] => reply::bulk(out, text),
            _ => {
                return Err("ERR wrong number of arguments for 'ping' command"
                    .to_owned()
                    .into());
            }
        },
        Local::Echo => reply::bulk(out, words[1]),
        Local::Hello => hello(&words[1..], session, context, out)?,
        Local::AclList => texts(out, context.users.rules().iter().map(String::as_bytes)),
        Local::AclUsers => texts(out, context.users.names().into_iter()),
        Local::AclWhoami => reply::bulk(out, context.users.name(session.user)),
        Local::Auth => {
            match words[1..] {
                [_] if context.users.is_empty() => return Err(NO_PASSWORD),
                [password] => authenticate(users::DEFAULT, password, session, context)?,
                [name, password] => authenticate(name, password, session, context)?,
                _ => return Err(SYNTAX),
            }
            reply::simple(out, "OK");
        }
        Local::Select => match parse_integer(words[1]) {
            Some(0) => reply::simple(out, "OK"),
            Some(_) => return Err(RespError::fixed("ERR DB index is out of range")),
            None => {
                return Err(RespError::fixed(
                    "ERR value is not an integer or out of range",
                ));
            }
        },
        Local::Quit | Local::Unwatch | Local::Asking | Local::Readonly | Local::Readwrite => {
            reply::simple(out, "OK");
        }
        Local::ClusterKeyslot => reply::integer(out, cluster::slot_of(words[2]).into()),
        Local::ClusterInfo
        | Local::ClusterMyid
        | Local::ClusterNodes
        | Local::ClusterShards
        | Local::ClusterSlots => about_cluster(local, context.cluster, out)?,
        Local::Reset => {
            session.reset();
            reply::simple(out, "RESET");
        }
        Local::Info => reply::verbatim(out, &(context.info)()),
        Local::ClientId => reply::integer(out, session.id as i64),
        Local::ClientGetname if session.name.is_empty() => reply::null(out),
        Local::ClientGetname => reply::bulk(out, &session.name),
        Local::ClientSetname => {
            session.name = printable(words[2]).ok_or(BAD_NAME)?;
            reply::simple(out, "OK");
        }
        Local::ClientSetinfo => client_setinfo(words, session, out)?,
        Local::ClientInfo | Local::ClientList => {
            reply::verbatim(out, &session.describe(context.users));
        }
        Local::ClientNoEvict | Local::ClientNoTouch => {
            if !words[2].eq_ignore_ascii_case(b"on") && !words[2].eq_ignore_ascii_case(b"off") {
                return Err(SYNTAX);
            }
            reply::simple(out, "OK");
        }
        Local::Command => {
            reply::array(out, Command::all().len());
            Command::all()
                .iter()
                .for_each(|command| describe(command, out));
        }
        Local::CommandCount => reply::integer(out, Command::all().len() as i64),
        Local::CommandInfo => command_info(&words[2..], out),
        Local::CommandDocs => command_docs(&words[2..], out),
        Local::CommandList => match words {
            [_, _] => {
                reply::array(out, Command::all().len());
                for command in Command::all() {
                    reply::bulk(out, command.name.as_bytes());
                }
            }
            _ => return Err(SYNTAX),
        },
        Local::ConfigGet => config_get(&words[2..], out),
    }
    Ok(())
}

/// As Redis does where there are no slots, one group refuses.
fn about_cluster(local: Local, cluster: &Cluster, out: &mut Vec<u8>) -> Result<(), RespError> {
    if !cluster.is_sharded() {
        return Err(RespError::fixed(
            "ERR This instance has cluster support disabled",
        ));
    }
    match local {
        Local::ClusterInfo => reply::verbatim(out, &cluster.info()),
        Local::ClusterMyid => reply::bulk(out, cluster.my_id().as_bytes()),
        Local::ClusterNodes => reply::verbatim(out, &cluster.nodes()),
        Local::ClusterShards => cluster.shards(out),
        _ => cluster.slots(out),
    }
    Ok(())
}

/// From here on the client is this user.
fn authenticate(
    name: &[u8],
    password: &[u8],
    session: &mut Session,
    context: &Context<'_>,
) -> Result<(), RespError> {
    if context.users.is_empty() {
        return Err(NO_USERS);
    }
    let known = context.users.authenticate(name, password).inspect_err(|_| {
        // Once for each connection: whoever guesses must not fill the log.
        if !std::mem::replace(&mut session.is_suspect, true) {
            tracing::warn!(peer = %session.peer, "a Redis client gave a wrong name or password");
        }
    })?;
    session.user = Some(known);
    Ok(())
}

fn texts<'a>(out: &mut Vec<u8>, texts: impl ExactSizeIterator<Item = &'a [u8]>) {
    reply::array(out, texts.len());
    texts.for_each(|text| reply::bulk(out, text));
}

fn hello(
    options: &[&[u8]],
    session: &mut Session,
    context: &Context<'_>,
    out: &mut Vec<u8>,
) -> Result<(), RespError> {
    let (mut protocol, mut name, mut login) = (session.protocol, None, None);
    let mut rest = options;
    if let [version, tail @ ..] = rest {
        let version = parse_integer(version).ok_or(RespError::fixed(
            "ERR Protocol version is not an integer or out of range",
        ))?;
        protocol = match version {
            2 => Protocol::Resp2,
            3 => Protocol::Resp3,
            _ => return Err(RespError::fixed("NOPROTO unsupported protocol version")),
        };
        rest = tail;
    }
    while let [option, tail @ ..] = rest {
        match tail {
            [user, password, tail @ ..] if option.eq_ignore_ascii_case(b"auth") => {
                login = Some((*user, *password));
                rest = tail;
            }
            [text, tail @ ..] if option.eq_ignore_ascii_case(b"setname") => {
                name = Some(printable(text).ok_or(BAD_NAME)?);
                rest = tail;
            }
            _ => {
                let text = [b"ERR Syntax error in HELLO option '", *option, b"'"].concat();
                return Err(RespError::quoting(text));
            }
        }
    }
    if let Some((user, password)) = login {
        authenticate(user, password, session, context)?;
    }
    if session.user.is_none() && !context.users.is_empty() {
        return Err(HELLO_FIRST);
    }
    session.protocol = protocol;
    session.name = name.unwrap_or(std::mem::take(&mut session.name));
    reply::map(out, 7);
    let protocol_number = if protocol == Protocol::Resp3 { 3 } else { 2 };
    reply::bulk(out, b"server");
    reply::bulk(out, b"nearwire");
    reply::bulk(out, b"version");
    reply::bulk(out, env!("CARGO_PKG_VERSION").as_bytes());
    reply::bulk(out, b"proto");
    reply::integer(out, protocol_number);
    reply::bulk(out, b"id");
    reply::integer(out, session.id as i64);
    reply::bulk(out, b"mode");
    let mode = match context.cluster.is_sharded() {
        true => "cluster",
        false => "standalone",
    };
    reply::bulk(out, mode.as_bytes());
    reply::bulk(out, b"role");
    reply::bulk(out, b"master");
    reply::bulk(out, b"modules");
    reply::array(out, 0);
    Ok(())
}

/// The word, if it can stand in a line of CLIENT LIST.
fn printable(word: &[u8]) -> Option<Vec<u8>> {
    word.iter()
        .all(|byte| (b'!'..=b'~').contains(byte))
        .then(|| word.to_vec())
}

fn client_setinfo(
    words: &[&[u8]],
    session: &mut Session,
    out: &mut Vec<u8>,
) -> Result<(), RespError> {
    let (field, name) = if words[2].eq_ignore_ascii_case(b"lib-name") {
        (&mut session.library, "lib-name")
    } else if words[2].eq_ignore_ascii_case(b"lib-ver") {
        (&mut session.library_version, "lib-ver")
    } else {
        return Err(RespError::quoting(
            [b"ERR Unrecognized option '", words[2], b"'"].concat(),
        ));
    };
    *field = printable(words[3]).ok_or_else(|| {
        format!("ERR {name} cannot contain spaces, newlines or special characters.")
    })?;
    reply::simple(out, "OK");
    Ok(())
}

fn command_info(names: &[&[u8]], out: &mut Vec<u8>) {
    if names.is_empty() {
        reply::array(out, Command::all().len());
        Command::all()
            .iter()
            .for_each(|command| describe(command, out));
        return;
    }
    reply::array(out, names.len());
    for name in names {
        match Command::named(name) {
            Some(command) => describe(command, out),
            None => reply::null(out),
        }
    }
}

/// One command as `COMMAND INFO` has it; there are no tips and no key specifications.
fn describe(command: &Command, out: &mut Vec<u8>) {
    reply::array(out, 10);
    reply::bulk(out, command.name.as_bytes());
    reply::integer(out, command.arity.into());
    let flags: &[&str] = match command.access() {
        Some(Access::Command) => &["write"],
        Some(Access::Query) => &["readonly", "fast"],
        None => &["fast"],
    };
    reply::set(out, flags.len());
    for flag in flags {
        reply::simple(out, flag);
    }
    let (first, last, step) = command.keys;
    for place in [first, last, step] {
        reply::integer(out, place.into());
    }
    reply::set(out, 0);
    reply::array(out, 0);
    reply::array(out, 0);
    reply::array(out, command.subcommands().len());
    for subcommand in command.subcommands() {
        describe(subcommand, out);
    }
}

fn command_docs(names: &[&[u8]], out: &mut Vec<u8>) {
    let documented: Vec<&Command> = if names.is_empty() {
        Command::all().iter().collect()
    } else {
        names
            .iter()
            .filter_map(|name| Command::named(name))
            .collect()
    };
    reply::map(out, documented.len());
    for command in documented {
        document(command, out);
    }
}

fn document(command: &Command, out: &mut Vec<u8>) {
    reply::bulk(out, command.name.as_bytes());
    let group = if command.access().is_some() {
        "string"
    } else {
        "connection"
    };
    let subcommands = command.subcommands();
    reply::map(out, 3 + usize::from(!subcommands.is_empty()));
    for (field, text) in [
        ("summary", command.summary),
        ("since", command.since),
        ("group", group),
    ] {
        reply::bulk(out, field.as_bytes());
        reply::bulk(out, text.as_bytes());
    }
    if !subcommands.is_empty() {
        reply::bulk(out, b"subcommands");
        reply::map(out, subcommands.len());
        for subcommand in subcommands {
            document(subcommand, out);
        }
    }
}

/// A setting asked for by its own name comes back under the name that was asked for.
fn config_get(patterns: &[&[u8]], out: &mut Vec<u8>) {
    let matching = |name: &'static str| {
        let pattern = patterns
            .iter()
            .find(|pattern| glob::matches(&pattern.to_ascii_lowercase(), name.as_bytes()))?;
        let named = pattern.eq_ignore_ascii_case(name.as_bytes());
        Some(if named { pattern } else { name.as_bytes() })
    };
    let found: Vec<_> = SETTINGS
        .iter()
        .filter_map(|(name, value)| Some((matching(name)?, value)))
        .collect();
    reply::map(out, found.len());
    for (name, value) in found {
        reply::bulk(out, name);
        reply::bulk(out, value.as_bytes());
    }
}
