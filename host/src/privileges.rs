//! A node that is started by root goes on as another user, with no more capabilities than its
//! configuration asks for.
//!
//! It does so before it opens anything and before there are threads: what it could not open again
//! later (a key file at SIGHUP, its data directory at the next start) it cannot open now either.
#![allow(unsafe_code)]

use crate::config::Config;
use crate::xdp::Attach;
use nix::sys::prctl;
use nix::unistd::{AccessFlags, Gid, Uid, User, access, chown, geteuid, setgid, setgroups, setuid};
use std::io;
use std::path::{Path, PathBuf};

/// Numbers of `linux/capability.h`.
const CAP_NET_BIND_SERVICE: u32 = 10;
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_NICE: u32 = 23;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;
/// Ports below this one are for who may bind them (`net.ipv4.ip_unprivileged_port_start`).
const FIRST_FREE_PORT: u16 = 1024;

/// The node cannot go on as the user that is configured.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    /// Only root changes its user.
    #[error(
        "become user {user}: this process is user {found} already; start it as root, or as {user}, \
         or leave [security] out"
    )]
    NotRoot {
        /// Who is wanted.
        user: String,
        /// Who it is.
        found: Uid,
    },
    /// There is no such user.
    #[error(
        "become user {0}: there is no such user; `useradd --system --shell /usr/sbin/nologin {0}`"
    )]
    NoSuchUser(String),
    /// Root is not the way to drop root's privileges.
    #[error("become user {0}: that is root, which gives nothing up; name another one")]
    Root(String),
    /// libxdp's tools are root's.
    #[error(
        "become user {0}: [offload] attach = \"dispatcher\" runs xdp-loader, which only root may; \
         attach = \"link\", or leave [security] out"
    )]
    Dispatcher(String),
    /// What the node needs would be out of its reach.
    #[error("{doing} {} as user {user}: {source}; {remedy}", path.display())]
    OutOfReach {
        /// What it does with it.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// As whom.
        user: String,
        /// The system's answer.
        source: io::Error,
        /// The command that mends it.
        remedy: String,
    },
    /// The system refuses.
    #[error("become user {user}: {doing}: {source}")]
    System {
        /// Who is wanted.
        user: String,
        /// What was being done.
        doing: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

/// Goes on as the user of `[security]`, if there is one. No other thread may run yet.
///
/// # Errors
/// This process may not, there is no such user, or it could not open what the node needs.
pub fn drop(config: &Config) -> Result<(), PrivilegeError> {
    let Some(security) = &config.security else {
        return Ok(());
    };
    let name = &security.user;
    let system = |doing| {
        move |error: nix::Error| PrivilegeError::System {
            user: name.clone(),
            doing,
            source: error.into(),
        }
    };
    let user = User::from_name(name).map_err(system("look it up"))?;
    let user = user.ok_or_else(|| PrivilegeError::NoSuchUser(name.clone()))?;
    if user.uid.is_root() {
        return Err(PrivilegeError::Root(name.clone()));
    }
    if config
        .offload
        .as_ref()
        .is_some_and(|offload| offload.attach == Attach::Dispatcher)
    {
        return Err(PrivilegeError::Dispatcher(name.clone()));
    }
    if geteuid() != user.uid {
        if !geteuid().is_root() {
            return Err(PrivilegeError::NotRoot {
                user: name.clone(),
                found: geteuid(),
            });
        }
        give_pins(config, &user).map_err(system("own its pins in bpffs"))?;
        prctl::set_keepcaps(true).map_err(system("keep capabilities"))?;
        setgroups(&[user.gid]).map_err(system("set its groups"))?;
        setgid(user.gid).map_err(system("set its group"))?;
        setuid(user.uid).map_err(system("set its number"))?;
        keep(needed(config)).map_err(|source| PrivilegeError::System {
            user: name.clone(),
            doing: "keep the capabilities that the configuration needs",
            source,
        })?;
    }
    prctl::set_no_new_privs().map_err(system("give up new privileges"))?;
    check_reach(config, name)
}

/// The directory that pins stand in is made by whoever comes first, and bpffs is root's.
fn give_pins(config: &Config, user: &User) -> nix::Result<()> {
    let Some(offload) = &config.offload else {
        return Ok(());
    };
    let pins = offload.bpffs.join("nearwire");
    match nix::unistd::mkdir(&pins, nix::sys::stat::Mode::S_IRWXU) {
        Ok(()) | Err(nix::Error::EEXIST) => chown(&pins, Some(user.uid), Some::<Gid>(user.gid)),
        // Whoever opens them says what is wrong with bpffs.
        Err(_) => Ok(()),
    }
}

/// The capabilities that a node of this configuration uses, one bit each.
fn needed(config: &Config) -> u64 {
    let own = config.peers.iter().find(|peer| peer.node == config.node);
    let tls = config.resp_tls.as_ref().map(|tls| tls.listen);
    let listeners = own.map(|peer| peer.address).into_iter();
    let is_low = |port: u16| (1..FIRST_FREE_PORT).contains(&port);
    let binds_low = listeners
        .chain(config.resp)
        .chain(tls)
        .any(|listener| is_low(listener.port()));
    let offloads = config.offload.is_some();
    [
        (CAP_NET_BIND_SERVICE, binds_low),
        (CAP_SYS_NICE, config.worker.fifo_priority.is_some()),
        (CAP_NET_ADMIN, offloads),
        (CAP_PERFMON, offloads),
        (CAP_BPF, offloads),
    ]
    .into_iter()
    .filter(|(_, is_needed)| *is_needed)
    .fold(0, |mask, (number, _)| mask | 1 << number)
}

/// Leaves this thread these capabilities and no other; threads that it starts inherit them.
fn keep(mask: u64) -> io::Result<()> {
    #[repr(C)]
    struct Head {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Sets {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    // _LINUX_CAPABILITY_VERSION_3: two words for each set, Linux 2.6.26.
    let head = Head {
        version: 0x2008_0522,
        pid: 0,
    };
    let word = |bits: u64| Sets {
        effective: bits as u32,
        permitted: bits as u32,
        inheritable: 0,
    };
    let sets = [word(mask), word(mask >> 32)];
    // SAFETY: both structures are as capset(2) wants them, and outlive the call, which reads them.
    let refused = unsafe { libc::syscall(libc::SYS_capset, &raw const head, sets.as_ptr()) };
    match refused {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Finds out now what would fail later.
fn check_reach(config: &Config, user: &str) -> Result<(), PrivilegeError> {
    let reaches = |doing, path: &Path, flags| {
        access(path, flags).map_err(|error| PrivilegeError::OutOfReach {
            doing,
            path: path.to_owned(),
            user: user.to_owned(),
            source: error.into(),
            remedy: format!("`chown -R {user} {}`", path.display()),
        })
    };
    if let Some(path) = &config.key_file {
        reaches("read", path, AccessFlags::R_OK)?;
    }
    if let Some(tls) = &config.resp_tls {
        reaches("read", &tls.certificate_file, AccessFlags::R_OK)?;
        reaches("read", &tls.key_file, AccessFlags::R_OK)?;
    }
    let data = &config.data_directory;
    let writes = AccessFlags::R_OK | AccessFlags::W_OK | AccessFlags::X_OK;
    if !data.exists() {
        let parent = data
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new("."));
        return access(parent, writes).map_err(|error| PrivilegeError::OutOfReach {
            doing: "make",
            path: data.clone(),
            user: user.to_owned(),
            source: error.into(),
            remedy: format!("`install -d -o {user} {}`", data.display()),
        });
    }
    reaches("write to", data, writes)?;
    for entry in std::fs::read_dir(data).into_iter().flatten().flatten() {
        let flags = match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            true => writes,
            false => AccessFlags::R_OK | AccessFlags::W_OK,
        };
        reaches("write to", &entry.path(), flags)?;
    }
    Ok(())
}
