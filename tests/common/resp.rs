//! A small blocking Redis client.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A node that is silent for so long is left for the next.
const SILENCE: Duration = Duration::from_secs(5);

/// A reply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// A status.
    Simple(String),
    /// A refusal.
    Error(String),
    /// A number.
    Integer(i64),
    /// A string, or null.
    Bulk(Option<Vec<u8>>),
    /// Several, or null.
    Array(Option<Vec<Reply>>),
}

impl Reply {
    /// `+OK`.
    pub fn ok() -> Self {
        Self::Simple("OK".to_owned())
    }

    /// A string.
    pub fn bulk(text: &str) -> Self {
        Self::Bulk(Some(text.as_bytes().to_vec()))
    }

    /// The number, or the number that a string spells.
    pub fn number(&self) -> Option<i64> {
        match self {
            Self::Integer(number) => Some(*number),
            Self::Bulk(Some(text)) => std::str::from_utf8(text).ok()?.parse().ok(),
            _ => None,
        }
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// A connection.
#[derive(Debug)]
pub struct Resp {
    stream: BufReader<TcpStream>,
}

/// The bytes of a request.
pub fn request(words: &[&str]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        out.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
    }
    out
}

impl Resp {
    /// Connects. Replies that take long are errors.
    pub fn connect(to: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&to, SILENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Waits longer for replies.
    pub fn patient(self, patience: Duration) -> Self {
        let set = self.stream.get_ref().set_read_timeout(Some(patience));
        set.expect("an open socket");
        self
    }

    /// The socket.
    pub fn stream(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    /// Sends bytes as they are.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Sends a request.
    pub fn send(&mut self, words: &[&str]) -> io::Result<()> {
        self.send_bytes(&request(words))
    }

    /// Sends a request and waits for its reply.
    pub fn call(&mut self, words: &[&str]) -> io::Result<Reply> {
        self.send(words)?;
        self.receive()
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        match line.strip_suffix(b"\r\n") {
            Some(line) => Ok(String::from_utf8_lossy(line).into_owned()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Waits for the next reply.
    pub fn receive(&mut self) -> io::Result<Reply> {
        let line = self.line()?;
        let (kind, rest) = line.split_at_checked(1).ok_or_else(|| invalid("no kind"))?;
        let number = || rest.parse::<i64>().map_err(|_| invalid(&line));
        match kind {
            "+" => Ok(Reply::Simple(rest.to_owned())),
            "-" => Ok(Reply::Error(rest.to_owned())),
            ":" => Ok(Reply::Integer(number()?)),
            "$" => {
                let Ok(length) = usize::try_from(number()?) else {
                    return Ok(Reply::Bulk(None));
                };
                let mut text = vec![0; length + 2];
                self.stream.read_exact(&mut text)?;
                text.truncate(length);
                Ok(Reply::Bulk(Some(text)))
            }
            "*" => {
                let Ok(length) = usize::try_from(number()?) else {
                    return Ok(Reply::Array(None));
                };
                let items: io::Result<Vec<Reply>> = (0..length).map(|_| self.receive()).collect();
                Ok(Reply::Array(Some(items?)))
            }
            _ => Err(invalid(&line)),
        }
    }
}

/// A client that goes to the next node when one fails.
#[derive(Debug)]
pub struct Roaming {
    fronts: Vec<SocketAddr>,
    at: usize,
    connection: Option<Resp>,
    /// How often it went on.
    pub moves: u64,
}

impl Roaming {
    /// Begins with the `first` of `fronts`.
    pub fn new(fronts: Vec<SocketAddr>, first: usize) -> Self {
        Self {
            at: first % fronts.len(),
            fronts,
            connection: None,
            moves: 0,
        }
    }

    /// Tries once. After an error, also one that the node answered, the outcome is unknown and the
    /// next call goes to the next node.
    pub fn call(&mut self, words: &[&str]) -> io::Result<Reply> {
        let result = self.try_call(words);
        match result {
            Ok(Reply::Error(error)) => {
                self.go_on();
                Err(io::Error::other(error))
            }
            Ok(reply) => Ok(reply),
            Err(error) => {
                self.go_on();
                Err(error)
            }
        }
    }

    /// Leaves this node.
    pub fn go_on(&mut self) {
        self.connection = None;
        self.at = (self.at + 1) % self.fronts.len();
        self.moves += 1;
        // Nodes that refuse connections are not asked as fast as the machine can.
        std::thread::sleep(Duration::from_millis(5));
    }

    fn try_call(&mut self, words: &[&str]) -> io::Result<Reply> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(Resp::connect(self.fronts[self.at])?),
        };
        connection.call(words)
    }
}
