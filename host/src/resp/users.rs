//! Who may do what: the users of a listener, their passwords and permissions.

use super::reply::RespError;
use crate::kv::{Command, Local, Parsed};
use serde::{Deserialize, Deserializer, de};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use subtle::ConstantTimeEq;

// The texts of Redis 7.0.15.
const NO_AUTH: RespError = RespError::fixed("NOAUTH Authentication required.");
pub(super) const WRONG_PASSWORD: RespError =
    RespError::fixed("WRONGPASS invalid username-password pair or user is disabled.");

/// The user of a password without a name.
pub(super) const DEFAULT: &[u8] = b"default";

/// A user of the key-value store.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// The name. `AUTH password` is for the user `default`.
    pub name: String,
    /// SHA-256 of the password.
    pub password_sha256: PasswordHash,
    /// What the user may do.
    pub may: May,
}

/// What a user may do; each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum May {
    /// Look at keys.
    Read,
    /// Change them.
    Write,
    /// Look at users and settings.
    Admin,
}

/// SHA-256 of a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PasswordHash([u8; 32]);

impl PasswordHash {
    /// Of this password.
    pub fn of(password: &[u8]) -> Self {
        Self(Sha256::digest(password).into())
    }

    fn parse(digits: &str) -> Option<Self> {
        let digits: &[u8; 64] = digits.as_bytes().try_into().ok()?;
        let mut bytes = [0; 32];
        for (byte, [high, low]) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
            let digit = |digit: &u8| char::from(*digit).to_digit(16);
            *byte = (digit(high)? << 4 | digit(low)?) as u8;
        }
        Some(Self(bytes))
    }

    fn digits(&self) -> String {
        self.0.iter().fold(String::new(), |mut text, byte| {
            // A string takes whatever it is given.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

impl<'de> Deserialize<'de> for PasswordHash {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        // Never the text itself: it may be the password.
        Self::parse(&text).ok_or_else(|| {
            de::Error::custom(
                "this is no SHA-256 of 64 hexadecimal digits: `printf %s PASSWORD | sha256sum` \
                 prints one",
            )
        })
    }
}

/// The users of a listener. Where there are none everybody may do everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Users(Vec<User>);

/// One of the users, by place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Known(usize);

impl From<Vec<User>> for Users {
    fn from(users: Vec<User>) -> Self {
        Self(users)
    }
}

impl Users {
    /// Whether nobody is asked for a password.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The user of that name and password. Neither the time that this takes nor the error tells
    /// which of the two is wrong.
    pub(super) fn authenticate(&self, name: &[u8], password: &[u8]) -> Result<Known, RespError> {
        let found = self.0.iter().position(|user| user.name.as_bytes() == name);
        let wanted = found.map_or([0; 32], |at| self.0[at].password_sha256.0);
        let is_right = bool::from(PasswordHash::of(password).0.ct_eq(&wanted));
        let known = found.filter(|_| is_right);
        known.map(Known).ok_or(WRONG_PASSWORD)
    }

    /// Whether somebody may have these words executed.
    ///
    /// # Errors
    /// The error reply of Redis.
    pub(super) fn permit(
        &self,
        who: Option<Known>,
        parsed: &Parsed<'_>,
        words: &[&[u8]],
    ) -> Result<(), RespError> {
        let wanted = match parsed {
            _ if self.is_empty() => return Ok(()),
            Parsed::Local(Local::Auth | Local::Hello | Local::Quit | Local::Reset) => return Ok(()),
            Parsed::Local(Local::AclList | Local::AclUsers | Local::ConfigGet) => May::Admin,
            Parsed::Local(_) | Parsed::Query(_) | Parsed::Transaction(_) => May::Read,
            Parsed::Command(_) => May::Write,
        };
        let Known(at) = who.ok_or(NO_AUTH)?;
        if self.0[at].may >= wanted {
            return Ok(());
        }
        let name = Command::called(words).map_or("", |command| command.name);
        Err(format!("NOPERM this user has no permissions to run the '{name}' command").into())
    }

    /// The name of somebody who speaks; before any password it is the default user's.
    pub(super) fn name(&self, who: Option<Known>) -> &[u8] {
        who.map_or(DEFAULT, |Known(at)| self.0[at].name.as_bytes())
    }

    /// All names.
    pub(super) fn names(&self) -> Vec<&[u8]> {
        match self.0.as_slice() {
            [] => vec![DEFAULT],
            users => users.iter().map(|user| user.name.as_bytes()).collect(),
        }
    }

    /// The rules as `ACL LIST` has them.
    pub(super) fn rules(&self) -> Vec<String> {
        if self.is_empty() {
            return vec!["user default on nopass sanitize-payload ~* &* +@all".into()];
        }
        let rule = |user: &User| {
            let may = match user.may {
                May::Read => "-@all +@read +@connection +@transaction",
                May::Write => "-@all +@read +@write +@connection +@transaction",
                May::Admin => "+@all",
            };
            let (name, digits) = (&user.name, user.password_sha256.digits());
            format!("user {name} on sanitize-payload #{digits} ~* resetchannels {may}")
        };
        self.0.iter().map(rule).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users() -> Users {
        let user = |name: &str, may| User {
            name: name.into(),
            password_sha256: PasswordHash::of(name.as_bytes()),
            may,
        };
        vec![
            user("default", May::Read),
            user("w", May::Write),
            user("a", May::Admin),
        ]
        .into()
    }

    #[test]
    fn a_password_is_for_its_own_user() {
        let users = users();
        for (at, name) in ["default", "w", "a"].into_iter().enumerate() {
            let name = name.as_bytes();
            assert_eq!(users.authenticate(name, name), Ok(Known(at)));
            for wrong in [&b""[..], b"x", b"default ", b"wa"] {
                let refused = users.authenticate(name, wrong);
                assert_eq!(refused, Err(WRONG_PASSWORD), "{wrong:?}");
            }
        }
        assert_eq!(users.authenticate(b"w", b"a"), Err(WRONG_PASSWORD));
        assert_eq!(users.authenticate(b"none", b"a"), Err(WRONG_PASSWORD));
        // What nobody's hash is compared with.
        assert_eq!(users.authenticate(b"none", b""), Err(WRONG_PASSWORD));
    }

    /// Who may have which commands: nobody, the reader, the writer, the administrator.
    #[test]
    fn every_command_has_the_permission_that_it_needs() {
        let users = users();
        let who = [None, Some(Known(0)), Some(Known(1)), Some(Known(2))];
        let all = Command::all()
            .iter()
            .flat_map(|command| match command.subcommands() {
                [] => std::slice::from_ref(command),
                subcommands => subcommands,
            });
        for command in all {
            let mut words: Vec<&[u8]> = command.name.split('|').map(str::as_bytes).collect();
            words.resize(words.len().max(command.arity.unsigned_abs() as usize), b"1");
            let parsed = Command::parse(&words).expect("parses");
            let may = who.map(|who| users.permit(who, &parsed, &words).is_ok());
            let first = match command.name {
                "auth" | "hello" | "quit" | "reset" => 0,
                "acl|list" | "acl|users" | "config|get" => 3,
                "append" | "decr" | "decrby" | "del" | "expire" | "getdel" | "incr" | "incrby"
                | "mset" | "persist" | "pexpire" | "set" | "unlink" => 2,
                _ => 1,
            };
            let wanted = std::array::from_fn(|at| at >= first);
            assert_eq!(may, wanted, "{}", command.name);
        }
    }

    #[test]
    fn a_hash_is_64_digits_and_what_is_none_is_not_repeated() {
        let hash = PasswordHash::of(b"pw");
        assert_eq!(PasswordHash::parse(&hash.digits()), Some(hash));
        // `printf %s pw | sha256sum`
        let digits = "30c952fab122c3f9759f02a6d95c3758b246b4fee239957b2d4fee46e26170c4";
        assert_eq!(hash.digits(), digits);
        #[derive(Debug, Deserialize)]
        struct File {
            #[allow(dead_code, reason = "what is read is the point")]
            hash: PasswordHash,
        }
        let error = toml::from_str::<File>("hash = \"secret\"").expect_err("refused");
        assert!(!error.message().contains("secret"), "{error}");
    }
}
