//! The file that holds a cluster's keys.

use consensus::auth::{Key, Keys};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A key file is read no further: it holds two lines of 32 digits at most.
const MAX_BYTES: u64 = 256;

/// A key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It cannot be read.
    #[error("read key file {}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It cannot be made.
    #[error("make key file {}: {source}", path.display())]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Others may read it.
    #[error(
        "key file {} is open to others (mode {mode:04o}): its key is no secret",
        path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It holds something else.
    #[error("key file {} does not hold a key of 32 hexadecimal digits, or two ({found})", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it holds; never the text itself.
        found: String,
    },
}

impl KeyError {
    /// What mends it.
    pub fn remedy(&self) -> String {
        match self {
            Self::Unreadable { path, .. } => {
                format!(
                    "see `ls -l {}`; the node's user must own it",
                    path.display()
                )
            }
            Self::Exposed { path, .. } => format!("chmod 600 {}", path.display()),
            Self::Malformed { path, .. } => format!(
                "copy the key of another node, or make a new one for all: rm {0}; nearwire config \
                 key {0}",
                path.display()
            ),
            Self::Unwritable { path, source } => match source.kind() {
                io::ErrorKind::AlreadyExists => format!(
                    "choose another name: what {} holds may be a cluster's key",
                    path.display()
                ),
                _ => "choose a directory that you may write to".into(),
            },
        }
    }
}

/// Makes a key and the file `path` for it, which nobody but its owner may read.
///
/// # Errors
/// The file is there already, or the system refuses.
pub fn make_key(path: &Path) -> Result<(), KeyError> {
    let make = || {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(io::Error::other)?;
        let digits = format!("{:032x}\n", u128::from_be_bytes(bytes));
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(digits.as_bytes())?;
        file.sync_all()
    };
    make().map_err(|source| KeyError::Unwritable {
        path: path.to_owned(),
        source,
    })
}

/// Reads the keys in `path`, one on each line: the first signs, a second one is taken as well.
///
/// # Errors
/// The file cannot be read, may be read by everybody, or holds no key.
pub fn read_keys(path: &Path) -> Result<Keys, KeyError> {
    let unreadable = |source| KeyError::Unreadable {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.permissions().mode() & 0o7777;
    // A group may share a key on purpose (mode 640); everybody does so by mistake.
    if mode & 0o007 != 0 {
        return Err(KeyError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    let mut text = Vec::new();
    file.take(MAX_BYTES)
        .read_to_end(&mut text)
        .map_err(unreadable)?;
    parse_lines(&text).map_err(|found| KeyError::Malformed {
        path: path.to_owned(),
        found,
    })
}

fn parse_lines(text: &[u8]) -> Result<Keys, String> {
    let lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let mut keys = Vec::new();
    for (at, line) in lines.enumerate().filter(|(_, line)| !line.is_empty()) {
        let place = if at == 0 {
            String::new()
        } else {
            format!("line {}: ", at + 1)
        };
        keys.push(parse(line).ok_or_else(|| place + &describe(line))?);
    }
    match *keys {
        [] => Err("it is empty".into()),
        [signs] => Ok(signs.into()),
        [signs, also] => Ok(Keys {
            signs,
            also: Some(also),
        }),
        _ => Err(format!("it holds {} keys", keys.len())),
    }
}

fn parse(digits: &[u8]) -> Option<Key> {
    let digits: &[u8; 32] = digits.try_into().ok()?;
    let mut bytes = [0; 16];
    for (byte, [high, low]) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
        let digit = |digit: &u8| char::from(*digit).to_digit(16);
        *byte = (digit(high)? << 4 | digit(low)?) as u8;
    }
    Some(Key::from_bytes(bytes))
}

fn describe(digits: &[u8]) -> String {
    match digits.iter().position(|byte| !byte.is_ascii_hexdigit()) {
        Some(at) => format!("character {} is no such digit", at + 1),
        None => format!("it holds {} digits", digits.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};

    fn read(text: &str, mode: u32) -> Result<Keys, KeyError> {
        let scratch = tempfile::tempdir().expect("a directory");
        let path = scratch.path().join("key");
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("set");
        read_keys(&path)
    }

    #[test]
    fn a_key_is_its_32_digits() {
        let key = read("000102030405060708090a0b0C0D0E0F\n", 0o600).expect("a key");
        let bytes = std::array::from_fn(|index| index as u8);
        assert_eq!(key, Key::from_bytes(bytes).into());
        assert!(read("000102030405060708090a0b0c0d0e0f", 0o640).is_ok());
    }

    #[test]
    fn two_lines_are_two_keys_and_the_first_signs() {
        let (a, b) = ("00".repeat(16), "ff".repeat(16));
        let keys = read(&format!("\n{a} \n\n{b}\n"), 0o600).expect("keys");
        let wanted = Keys {
            signs: Key::from_bytes([0; 16]),
            also: Some(Key::from_bytes([0xff; 16])),
        };
        assert_eq!(keys, wanted);
        for (text, found) in [
            (format!("{a}\n{b}\n{a}\n"), "it holds 3 keys"),
            (format!("{a}\n{b}0\n"), "line 2: it holds 33 digits"),
            (format!("{a} {b}\n"), "character 33 is no such digit"),
        ] {
            let error = read(&text, 0o600).expect_err("refused").to_string();
            assert!(error.ends_with(&format!("({found})")), "{error}");
        }
    }

    #[test]
    fn a_key_that_everybody_may_read_is_refused() {
        let error = read("000102030405060708090a0b0c0d0e0f", 0o644).expect_err("refused");
        assert!(
            matches!(error, KeyError::Exposed { mode: 0o644, .. }),
            "{error}"
        );
        assert!(
            error.remedy().starts_with("chmod 600 "),
            "{}",
            error.remedy()
        );
    }

    #[test]
    fn a_key_is_made_for_its_owner_alone_and_never_over_another() {
        let scratch = tempfile::tempdir().expect("a directory");
        let path = |name| scratch.path().join(name);
        make_key(&path("a")).expect("made");
        make_key(&path("b")).expect("made");
        let mode = fs::metadata(path("a")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let first = read_keys(&path("a")).expect("a key");
        assert_ne!(first, read_keys(&path("b")).expect("a key"));
        let error = make_key(&path("a")).expect_err("refused");
        assert!(error.to_string().ends_with("File exists (os error 17)"));
        assert_eq!(read_keys(&path("a")).expect("a key"), first);
    }

    #[test]
    fn what_is_no_key_is_described_but_not_repeated() {
        for (text, found) in [
            ("", "it is empty"),
            ("0011", "it holds 4 digits"),
            ("secret!", "character 1 is no such digit"),
            ("000102030405060708090a0b0c0d0e0f00", "it holds 34 digits"),
        ] {
            let error = read(text, 0o600).expect_err("refused").to_string();
            assert!(error.ends_with(&format!("({found})")), "{error}");
        }
    }
}
