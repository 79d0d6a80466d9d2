//! TLS under the Redis protocol: the server's certificate, and a socket that speaks it.

use mio::net::TcpStream;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A certificate or its key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// It cannot be read.
    #[error("read {what} {}: {source}", path.display())]
    Unreadable {
        /// Certificate or key.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Others may read it.
    #[error("private key {} is open to others (mode {mode:04o})", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It is no PEM of the right kind.
    #[error("{} holds no {what} in PEM", path.display())]
    Missing {
        /// Certificate or key.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// They are of no use together.
    #[error("serve TLS with certificate {} and its key: {source}", path.display())]
    Unusable {
        /// The certificate's file.
        path: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
}

impl TlsError {
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
            Self::Missing { what, path } => format!(
                "`head -1 {}` ought to say -----BEGIN {}-----",
                path.display(),
                what.to_uppercase()
            ),
            Self::Unusable { .. } => "name the certificate first in its file, then those that \
                                      signed it, and the key that belongs to it"
                .into(),
        }
    }
}

/// How a TLS listener answers: certificate chain and key, both in PEM.
///
/// # Errors
/// A file cannot be read, holds something else, or may be read by everybody; or the two do not
/// belong together.
pub fn load(certificate_file: &Path, key_file: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let text = read("certificate", certificate_file, 0)?;
    let missing = |what, path: &Path| TlsError::Missing {
        what,
        path: path.to_owned(),
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let chain = chain.unwrap_or_default();
    if chain.is_empty() {
        return Err(missing("certificate", certificate_file));
    }
    let text = read("private key", key_file, 0o007)?;
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| missing("private key", key_file))?;
    let unusable = |source| TlsError::Unusable {
        path: certificate_file.to_owned(),
        source,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_no_client_auth().with_single_cert(chain, key));
    config.map(Arc::new).map_err(unusable)
}

/// Reads a file that may have none of the `refused` permissions.
fn read(what: &'static str, path: &Path, refused: u32) -> Result<Vec<u8>, TlsError> {
    let unreadable = |source| TlsError::Unreadable {
        what,
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(unreadable)?;
    let mode = file.metadata().map_err(unreadable)?.permissions().mode() & 0o7777;
    if mode & refused != 0 {
        return Err(TlsError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    let mut text = Vec::new();
    file.read_to_end(&mut text).map_err(unreadable)?;
    Ok(text)
}

/// A client's socket, which never waits.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<Tls>),
}

/// A socket under TLS.
#[derive(Debug)]
pub(super) struct Tls {
    socket: TcpStream,
    session: ServerConnection,
}

impl Stream {
    /// The socket as it is, or under TLS.
    pub(super) fn new(
        socket: TcpStream,
        tls: Option<&Arc<ServerConfig>>,
    ) -> Result<Self, rustls::Error> {
        let Some(tls) = tls else {
            return Ok(Self::Plain(socket));
        };
        let session = ServerConnection::new(Arc::clone(tls))?;
        Ok(Self::Tls(Box::new(Tls { socket, session })))
    }

    pub(super) fn socket_mut(&mut self) -> &mut TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(tls) => &mut tls.socket,
        }
    }

    /// Reads what the client sent; 0 is its end, with TLS's farewell or without: a request says
    /// itself how long it is.
    pub(super) fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(room),
            Self::Tls(tls) => tls.read(room),
        }
    }

    /// Whether a read that filled `bytes` of `room` may have left something. A short read has
    /// emptied a socket, epoll(7): what comes later is a new event. Records say nothing of that.
    pub(super) fn may_have_more(&self, bytes: usize, room: usize) -> bool {
        match self {
            Self::Plain(_) => bytes == room,
            Self::Tls(_) => true,
        }
    }

    /// Takes some of `bytes`, at least one.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::Tls(tls) => tls.write(bytes),
        }
    }

    /// Sends what was taken and is not sent.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(tls) => tls.flush(),
        }
    }

    /// Whether all that was taken is sent.
    pub(super) fn is_flushed(&self) -> bool {
        match self {
            Self::Plain(_) => true,
            Self::Tls(tls) => !tls.session.wants_write(),
        }
    }

    /// Says that nothing follows, if the client still listens.
    pub(super) fn part(&mut self) {
        if let Self::Tls(tls) = self {
            tls.session.send_close_notify();
            let _ = tls.flush();
        }
    }
}

impl Tls {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        // Ends with the socket's bytes; rustls refuses a client that sends records without any.
        loop {
            match self.session.reader().read(room) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                done => return done,
            }
            self.session.read_tls(&mut self.socket)?;
            let processed = self.session.process_new_packets();
            // Its part of the handshake, or the reason why there is none.
            self.flush_some()?;
            processed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // rustls keeps up to 64 KiB that the socket does not take.
        self.flush()?;
        let taken = self.session.writer().write(bytes)?;
        self.flush_some()?;
        match taken {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            taken => Ok(taken),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut self.socket) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                done => drop(done?),
            }
        }
        Ok(())
    }

    fn flush_some(&mut self) -> io::Result<()> {
        match self.flush() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}
