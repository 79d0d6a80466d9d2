//! Captures the packets of any datapath as pcapng.
//!
//! The file is what draft-ietf-opsawg-pcapng describes: one section header, one interface, one
//! enhanced packet block per packet. The datapath carries payloads only, so the IP and UDP headers
//! are synthesized, with right checksums, and the link type is raw IP.

use crate::{
    Capabilities, Datapath, Error, Packets, Received, Stats, Transmit, Waker, clock, frame,
};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::time::Duration;

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
/// Packets begin with an IPv4 or IPv6 header.
const LINKTYPE_RAW: u16 = 101;
/// Interface option: timestamps are in units of 10 to the minus this.
const IF_TSRESOL: u16 = 9;
const NANOSECONDS: u8 = 9;
/// Packet option whose low two bits are the direction.
const EPB_FLAGS: u16 = 2;
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// Most packets between two flushes.
const TRANSMIT_PACKETS: usize = 1024;
/// Most bytes between two flushes.
const TRANSMIT_BYTES: usize = 2 * 1024 * 1024;

/// A datapath that writes every packet, both ways, to `W`.
///
/// A packet on its way out is captured when it is flushed, whatever the network then does with it.
/// Give it a buffered writer; it is flushed before each sleep.
pub struct Capture<D, W: Write> {
    inner: D,
    outbox: Packets,
    file: File<W>,
}

/// The pcapng stream. It ends with the first failure: consensus does not stop for a full disk.
struct File<W> {
    writer: W,
    block: Vec<u8>,
    dirty: bool,
    failure: Option<io::Error>,
}

impl<D: Datapath, W: Write> Capture<D, W> {
    /// Wraps `inner` and writes the head of the file.
    ///
    /// # Errors
    /// The writer failed.
    pub fn new(inner: D, writer: W) -> Result<Self, Error> {
        let mut file = File {
            writer,
            block: Vec::new(),
            dirty: false,
            failure: None,
        };
        file.head()
            .map_err(|error| Error::system("write the head of a capture", error))?;
        let max_datagram_bytes = inner.capabilities().max_datagram_bytes;
        let outbox = Packets::new(TRANSMIT_PACKETS, TRANSMIT_BYTES, max_datagram_bytes);
        Ok(Self {
            inner,
            outbox,
            file,
        })
    }

    /// Why the capture ended early, if it did. The packets went on.
    pub fn failure(&self) -> Option<&io::Error> {
        self.file.failure.as_ref()
    }

    /// The wrapped datapath.
    pub fn inner(&self) -> &D {
        &self.inner
    }
}

impl<D: Datapath, W: Write> Datapath for Capture<D, W> {
    type Rx = D::Rx;
    type Tx = Packets;

    fn receive(&mut self) -> Result<usize, Error> {
        let count = self.inner.receive()?;
        let now_ns = if count > 0 { clock::unix_ns() } else { 0 };
        let local = self.inner.local_addr();
        let rx = self.inner.halves().0;
        for index in 0..count {
            let (from, payload) = rx.packet(index);
            self.file.packet(now_ns, from, local, payload, INBOUND);
        }
        Ok(count)
    }

    fn halves(&mut self) -> (&D::Rx, &mut Packets) {
        (self.inner.halves().0, &mut self.outbox)
    }

    fn flush(&mut self) -> Result<(), Error> {
        if !self.outbox.is_empty() {
            let now_ns = clock::unix_ns();
            let local = self.inner.local_addr();
            let tx = self.inner.halves().1;
            for (to, payload) in self.outbox.iter() {
                self.file.packet(now_ns, local, to, payload, OUTBOUND);
                tx.send(to, payload, b"");
            }
            self.outbox.clear();
        }
        self.inner.flush()
    }

    fn wait(&mut self, at_most: Duration) -> Result<(), Error> {
        self.file.flush();
        self.inner.wait(at_most)
    }

    fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr()
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }

    fn take_wakeups(&mut self) -> bool {
        self.inner.take_wakeups()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn stats(&self) -> Stats {
        let mut stats = self.inner.stats();
        self.outbox.count_drops(&mut stats);
        stats
    }
}

impl<D, W: Write> Drop for Capture<D, W> {
    fn drop(&mut self) {
        self.file.flush();
    }
}

impl<W: Write> File<W> {
    fn head(&mut self) -> io::Result<()> {
        self.begin(SECTION_HEADER);
        self.block.extend(BYTE_ORDER_MAGIC.to_le_bytes());
        self.block.extend([1, 0, 0, 0]); // Version 1.0.
        self.block.extend((-1i64).to_le_bytes()); // Section length: unknown.
        self.end()?;

        self.begin(INTERFACE_DESCRIPTION);
        self.block.extend(u32::from(LINKTYPE_RAW).to_le_bytes());
        self.block.extend([0; 4]); // Snap length: none.
        self.option(IF_TSRESOL, &[NANOSECONDS]);
        self.option(0, &[]);
        self.end()
    }

    fn packet(
        &mut self,
        now_ns: u64,
        from: SocketAddr,
        to: SocketAddr,
        payload: &[u8],
        direction: u32,
    ) {
        if self.failure.is_some() {
            return;
        }
        self.begin(ENHANCED_PACKET);
        self.block.extend([0; 4]); // Interface 0.
        self.block.extend(((now_ns >> 32) as u32).to_le_bytes());
        self.block.extend((now_ns as u32).to_le_bytes());
        let lengths = self.block.len();
        self.block.extend([0; 8]);
        let start = self.block.len();
        frame::append(&mut self.block, from, to, payload);
        let length = ((self.block.len() - start) as u32).to_le_bytes();
        self.block[lengths..lengths + 4].copy_from_slice(&length);
        self.block[lengths + 4..start].copy_from_slice(&length);
        self.pad();
        self.option(EPB_FLAGS, &direction.to_le_bytes());
        self.option(0, &[]);
        self.dirty = true;
        self.failure = self.end().err();
    }

    fn flush(&mut self) {
        if self.dirty && self.failure.is_none() {
            self.failure = self.writer.flush().err();
            self.dirty = false;
        }
    }

    fn begin(&mut self, block_type: u32) {
        self.block.clear();
        self.block.extend(block_type.to_le_bytes());
        self.block.extend([0; 4]);
    }

    fn option(&mut self, code: u16, value: &[u8]) {
        self.block.extend(code.to_le_bytes());
        self.block.extend((value.len() as u16).to_le_bytes());
        self.block.extend(value);
        self.pad();
    }

    /// Everything in a block is padded to 32 bits.
    fn pad(&mut self) {
        self.block.resize(self.block.len().next_multiple_of(4), 0);
    }

    /// Writes the block; its length stands at both ends.
    fn end(&mut self) -> io::Result<()> {
        let length = ((self.block.len() + 4) as u32).to_le_bytes();
        self.block[4..8].copy_from_slice(&length);
        self.block.extend(length);
        self.writer.write_all(&self.block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Network;
    use std::process::Command;
    use std::sync::{Arc, Mutex};

    /// A writer whose bytes the test can read while the capture goes on.
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[derive(PartialEq, Debug)]
    struct Captured {
        at_ns: u64,
        direction: u32,
        from: SocketAddr,
        to: SocketAddr,
        payload: Vec<u8>,
    }

    fn u32_le(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn parse_file(mut file: &[u8]) -> Vec<Captured> {
        let mut types = Vec::new();
        let mut packets = Vec::new();
        while !file.is_empty() {
            let length = u32_le(file, 4) as usize;
            assert_eq!(length % 4, 0);
            assert_eq!(
                u32_le(file, length - 4) as usize,
                length,
                "both lengths agree"
            );
            let block = &file[..length];
            types.push(u32_le(block, 0));
            if u32_le(block, 0) == ENHANCED_PACKET {
                let captured = u32_le(block, 20) as usize;
                assert_eq!(captured, u32_le(block, 24) as usize);
                let (from, to, payload) = frame::tests::parse(&block[28..28 + captured]);
                let options = (28 + captured).next_multiple_of(4);
                assert_eq!(u32_le(block, options), 4 << 16 | u32::from(EPB_FLAGS));
                packets.push(Captured {
                    at_ns: u64::from(u32_le(block, 12)) << 32 | u64::from(u32_le(block, 16)),
                    direction: u32_le(block, options + 4),
                    from,
                    to,
                    payload,
                });
            }
            file = &file[length..];
        }
        assert_eq!(types[..2], [SECTION_HEADER, INTERFACE_DESCRIPTION]);
        assert!(
            types[2..]
                .iter()
                .all(|&block_type| block_type == ENHANCED_PACKET)
        );
        packets
    }

    /// Sends two packets out and one in, and returns the file.
    fn conversation(a: &str, b: &str) -> Vec<u8> {
        let (a, b) = (a.parse().unwrap(), b.parse().unwrap());
        let file = Shared::default();
        let network = Network::new();
        let mut peer = network.endpoint(b).unwrap();
        let mut captured = Capture::new(network.endpoint(a).unwrap(), file.clone()).unwrap();
        captured.halves().1.send(b, b"odd", b"");
        captured.halves().1.send(b, b"even", b"");
        captured.flush().unwrap();
        assert_eq!(
            peer.receive().unwrap(),
            2,
            "a captured packet still goes out"
        );
        peer.halves().1.send(a, b"", b"");
        peer.flush().unwrap();
        assert_eq!(
            captured.receive().unwrap(),
            1,
            "a captured packet still comes in"
        );
        assert_eq!(captured.halves().0.packet(0), (b, &b""[..]));
        drop(captured);
        file.0.lock().unwrap().clone()
    }

    #[test]
    fn every_packet_is_captured_both_ways() {
        for (a, b) in [
            ("10.0.0.1:4747", "10.0.0.2:5000"),
            ("[fd4e:57::1]:4747", "[fd4e:57::2]:5000"),
        ] {
            let before_ns = clock::unix_ns();
            let packets = parse_file(&conversation(a, b));
            let (a, b) = (a.parse().unwrap(), b.parse().unwrap());
            let seen: Vec<_> = packets
                .iter()
                .map(|packet| {
                    (
                        packet.direction,
                        packet.from,
                        packet.to,
                        &packet.payload[..],
                    )
                })
                .collect();
            assert_eq!(
                seen,
                [
                    (OUTBOUND, a, b, &b"odd"[..]),
                    (OUTBOUND, a, b, b"even"),
                    (INBOUND, b, a, b"")
                ]
            );
            assert!(
                packets
                    .iter()
                    .all(|p| (before_ns..=clock::unix_ns()).contains(&p.at_ns))
            );
        }
    }

    #[test]
    fn a_full_disk_ends_the_capture_and_not_the_traffic() {
        struct FullDisk(usize);
        impl Write for FullDisk {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (a, b) = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
        let network = Network::new();
        let mut peer = network.endpoint(b).unwrap();
        let mut captured = Capture::new(network.endpoint(a).unwrap(), FullDisk(3)).unwrap();
        for _ in 0..3 {
            captured.halves().1.send(b, b"x", b"");
        }
        captured.flush().unwrap();
        assert_eq!(peer.receive().unwrap(), 3);
        assert_eq!(
            captured.failure().unwrap().kind(),
            io::ErrorKind::StorageFull
        );
    }

    #[test]
    fn wireshark_reads_the_file() {
        let path = std::env::temp_dir().join(format!("nearwire-{}.pcapng", std::process::id()));
        std::fs::write(&path, conversation("10.0.0.1:4747", "10.0.0.2:5000")).unwrap();
        let answer = Command::new("tshark")
            .args([
                "-o",
                "udp.check_checksum:TRUE",
                "-o",
                "ip.check_checksum:TRUE",
            ])
            .args([
                "-T",
                "fields",
                "-e",
                "udp.checksum.status",
                "-e",
                "ip.checksum.status",
                "-r",
            ])
            .arg(&path)
            .output();
        std::fs::remove_file(&path).unwrap();
        match answer {
            Ok(answer) => assert_eq!(String::from_utf8_lossy(&answer.stdout), "1\t1\n".repeat(3)),
            Err(_) => eprintln!("skipped: needs tshark (apt-get install tshark)"),
        }
    }
}
