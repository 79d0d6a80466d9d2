//! Stands between the replicas and remembers what they say.

use super::Cluster;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Datagrams remembered at most; the oldest make room.
const MAX_REMEMBERED: usize = 8192;

/// A datagram that passed: the receiver's place, the sender's place, the bytes.
pub type Passed = (usize, usize, Vec<u8>);

/// A relay between the replicas of a cluster: each replica knows the others by addresses here.
#[derive(Debug)]
pub struct Relay {
    sockets: Arc<Vec<UdpSocket>>,
    replicas: Vec<SocketAddr>,
    passed: Arc<Mutex<Vec<Passed>>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Relay {
    /// Goes between the replicas of a cluster that has not been started yet.
    pub fn between(cluster: &Cluster) -> Self {
        let replicas: Vec<SocketAddr> = cluster.replicas().iter().map(|r| r.address).collect();
        let sockets: Vec<UdpSocket> = replicas
            .iter()
            .map(|_| UdpSocket::bind("127.0.0.1:0").expect("a free port"))
            .collect();
        let ours: Vec<SocketAddr> = sockets
            .iter()
            .map(|socket| socket.local_addr().expect("a bound socket"))
            .collect();
        for (place, node) in (1..=replicas.len() as u16).enumerate() {
            cluster.edit(node, |mut text| {
                for (other, (theirs, here)) in replicas.iter().zip(&ours).enumerate() {
                    if other != place {
                        text = text.replace(
                            &format!("address = \"{theirs}\""),
                            &format!("address = \"{here}\""),
                        );
                    }
                }
                text
            });
        }
        let mut relay = Self {
            sockets: Arc::new(sockets),
            replicas,
            passed: Arc::default(),
            stop: Arc::default(),
            threads: Vec::new(),
        };
        relay.threads = (0..relay.replicas.len())
            .map(|to| relay.carry(to))
            .collect();
        relay
    }

    /// Carries what is sent to replica `to`. It leaves from the address by which `to` knows the
    /// sender, so that the answer comes back the same way.
    fn carry(&self, to: usize) -> JoinHandle<()> {
        let sockets = Arc::clone(&self.sockets);
        let replicas = self.replicas.clone();
        let passed = Arc::clone(&self.passed);
        let stop = Arc::clone(&self.stop);
        std::thread::spawn(move || {
            let timeout = Some(Duration::from_millis(50));
            sockets[to]
                .set_read_timeout(timeout)
                .expect("a bound socket");
            let mut bytes = vec![0; 65_536];
            while !stop.load(Ordering::Relaxed) {
                let Ok((length, from)) = sockets[to].recv_from(&mut bytes) else {
                    continue;
                };
                let Some(sender) = replicas.iter().position(|replica| *replica == from) else {
                    continue;
                };
                let _ = sockets[sender].send_to(&bytes[..length], replicas[to]);
                let mut passed = passed.lock().expect("nobody panics with it");
                if passed.len() == MAX_REMEMBERED {
                    passed.drain(..MAX_REMEMBERED / 2);
                }
                passed.push((to, sender, bytes[..length].to_vec()));
            }
        })
    }

    /// What passed lately.
    pub fn passed(&self) -> Vec<Passed> {
        self.passed.lock().expect("nobody panics with it").clone()
    }

    /// Sends bytes to replica `to` as if replica `from` had.
    pub fn forge(&self, to: usize, from: usize, bytes: &[u8]) {
        let _ = self.sockets[from].send_to(bytes, self.replicas[to]);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
