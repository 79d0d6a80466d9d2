//! As much of a Redis client as the tests need.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A replica that has not answered by then is asked no longer.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Reply {
    Text(String),
    Number(u64),
    Nothing,
    Error(String),
}

pub(crate) struct Redis {
    stream: BufReader<TcpStream>,
}

impl Redis {
    pub(crate) fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::new(stream),
        })
    }

    /// Waits no longer for a reply.
    pub(crate) fn give_up_after(&mut self, patience: Duration) -> io::Result<()> {
        self.stream.get_mut().set_read_timeout(Some(patience))
    }

    pub(crate) fn send(&mut self, commands: &[Vec<String>]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for command in commands {
            write!(bytes, "*{}\r\n", command.len())?;
            for word in command {
                write!(bytes, "${}\r\n{word}\r\n", word.len())?;
            }
        }
        self.stream.get_mut().write_all(&bytes)
    }

    pub(crate) fn reply(&mut self) -> io::Result<Reply> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let line = line
            .strip_suffix("\r\n")
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        let number = |text: &str| text.parse::<i64>().map_err(io::Error::other);
        match line.split_at_checked(1) {
            Some(("+", text)) => Ok(Reply::Text(text.to_owned())),
            Some(("-", text)) => Ok(Reply::Error(text.to_owned())),
            Some((":", text)) => Ok(Reply::Number(number(text)? as u64)),
            Some(("$", "-1")) => Ok(Reply::Nothing),
            Some(("$", text)) => {
                let mut bytes = vec![0; number(text)? as usize + 2];
                self.stream.read_exact(&mut bytes)?;
                bytes.truncate(bytes.len() - 2);
                Ok(Reply::Text(
                    String::from_utf8(bytes).map_err(io::Error::other)?,
                ))
            }
            _ => Err(io::Error::other(format!("not a reply: {line:?}"))),
        }
    }

    pub(crate) fn ask(&mut self, words: &[&str]) -> io::Result<Reply> {
        self.send(&[words.iter().map(|word| (*word).to_owned()).collect()])?;
        self.reply()
    }
}
