//! `nearwire offload test`.

use super::words::{self, Changed};
use super::{NodeArgs, scratch};
use crate::cli::Failure;
use crate::cli::output::{self, Output};
use crate::cli::status::cell;
use anyhow::Context as _;
use consensus::NodeId;
use consensus::frame::{self, Addresses, Mac, Own, Path};
use consensus::memory::Memory as _;
use consensus::region::{Birth, Layout, Region};
use consensus::tally::Count;
use consensus::wire::{self, Header, MAGIC, Parsed};
use nearwire::config;
use nearwire::data_directory;
use nearwire::mapping::Mapping;
use nearwire::region_place::RegionError;
use nearwire::run;
use nearwire::xdp::{Loaded, OBJECT, Settings, Verdict};
use serde_json::{Map, Value, json};
use std::fs;
use std::io::Read as _;
use std::net::Ipv4Addr;

/// Show what the program in the kernel would do with packets.
///
/// The kernel runs the program over a blank region made for the purpose (BPF_PROG_TEST_RUN): nothing
/// is attached or sent, and no live region is touched. Packets are shown one after another, so that
/// the first ones can make the state that the last one meets.
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  nearwire offload test prepare.hex accept.hex
  nearwire offload test --config node1.toml captured.hex
  xxd -p datagram | nearwire offload test --output json - | jq '.[].verdict'

A packet is text: hexadecimal digits, white space as you like, # to the end of a line for remarks. It
is a whole Ethernet frame, or a datagram that begins with nearwire's magic 4e57, which is put into
Ethernet, IPv4 and UDP.

Verdicts:
  pass  the stack gets it, and with it the node
  drop  nobody gets it; a counter says why
  send  it was turned into a reply, which goes back

The clock of the test stands still. With --config the port, the region's dimensions and the key are
the node's; so is the incarnation, if the node has ever run: requests to another one are dropped.")]
pub(crate) struct Args {
    /// Files with one packet each; - is standard input.
    #[arg(value_name = "PACKET", required = true)]
    packets: Vec<String>,
    #[command(flatten)]
    node: NodeArgs,
    /// UDP port of requests.
    #[arg(
        long,
        env = "NEARWIRE_PORT",
        value_name = "PORT",
        conflicts_with = "config",
        help_heading = "Without --config",
        default_value_t = wire::DEFAULT_PORT
    )]
    port: u16,
    /// Slots of the region.
    #[arg(
        long,
        env = "NEARWIRE_WINDOW_SLOTS",
        value_name = "N",
        conflicts_with = "config",
        help_heading = "Without --config",
        default_value_t = config::Region::default().window_slots
    )]
    window_slots: u64,
    /// Longest value in bytes.
    #[arg(
        long,
        env = "NEARWIRE_VALUE_BYTES",
        value_name = "N",
        conflicts_with = "config",
        help_heading = "Without --config",
        default_value_t = config::Region::default().value_bytes
    )]
    value_bytes: usize,
}

/// The time of the test's clock: not zero, which means never.
const NOW_NS: u64 = 1_000_000_000;
/// The port that a bare datagram is sent from.
const SOURCE_PORT: u16 = 40_000;

pub(crate) fn main(args: &Args, output: Output) -> anyhow::Result<()> {
    let mut settings = settings(args)?;
    let frames: Vec<Vec<u8>> = args
        .packets
        .iter()
        .map(|packet| Ok(framed(read(packet)?, settings.port)?))
        .collect::<anyhow::Result<_>>()?;
    // The program is at home where the first of them goes.
    if let Some(frame::Parsed::Ours(path, _)) = frames
        .first()
        .map(|frame| frame::parse(frame, settings.port))
    {
        settings.own = addressee(&path);
    }
    let object = OBJECT.ok_or(run::Error::Region(RegionError::NoObject))?;
    let mut loaded = Loaded::load(object, &settings)?;
    loaded.set_clock(NOW_NS)?;
    let mut shown = Vec::new();
    for (name, frame) in args.packets.iter().zip(frames) {
        shown.push(show(&loaded, &settings, name, frame)?);
    }
    match output {
        Output::Table => {
            let texts: Vec<String> = shown.iter().map(Shown::text).collect();
            output::line(&texts.join("\n\n"))
        }
        Output::Json => {
            let values: Vec<Value> = shown.iter().map(Shown::json).collect();
            output::json(&values)
        }
    }
}

fn settings(args: &Args) -> anyhow::Result<Settings> {
    let node = args.node.node()?;
    let Some(node) = node else {
        let layout = Layout::new(1, args.window_slots, args.value_bytes)
            .map_err(|error| Failure::usage(error.to_string()))?;
        let birth = Birth {
            cluster: 0,
            node: NodeId(1),
            nonce: 0,
            boot: 0,
        };
        return Ok(scratch(args.port, layout, birth, None));
    };
    let birth = Birth {
        cluster: data_directory::cluster_number(&node.config.cluster),
        node: NodeId(node.config.node),
        nonce: node.identity.as_ref().map_or(0, |found| found.region_nonce),
        boot: node
            .identity
            .as_ref()
            .map_or(0, |found| run::parse_boot_id(&found.boot_id)),
    };
    let port = node.config.this().address.port();
    Ok(scratch(port, node.config.layout()?, birth, node.keys))
}

/// Reads a packet.
fn read(name: &str) -> anyhow::Result<Vec<u8>> {
    let text = match name {
        "-" => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("read standard input")?;
            text
        }
        path => fs::read_to_string(path)
            .map_err(|error| Failure::usage(format!("read {path}: {error}")))?,
    };
    let packet = parse_hex(&text).map_err(|why| {
        Failure::usage(format!("read {name}: {why}"))
            .remedy("write the packet in hexadecimal digits: xxd -p FILE")
    })?;
    Ok(packet)
}

fn parse_hex(text: &str) -> Result<Vec<u8>, String> {
    let mut digits = Vec::new();
    for (line, text) in (1..).zip(text.lines()) {
        let text = text.split('#').next().unwrap_or_default();
        for character in text.chars().filter(|character| !character.is_whitespace()) {
            let digit = character.to_digit(16);
            let digit = digit.ok_or_else(|| format!("line {line}: {character:?} is no digit"))?;
            digits.push(digit as u8);
        }
    }
    match digits.as_chunks() {
        ([], []) => Err("it is empty".into()),
        (pairs, []) => Ok(pairs.iter().map(|[high, low]| high << 4 | low).collect()),
        (_, _) => Err("its number of digits is odd".into()),
    }
}

/// The frame that a packet comes in.
fn framed(packet: Vec<u8>, port: u16) -> Result<Vec<u8>, Failure> {
    if packet.get(..2) != Some(&MAGIC.to_be_bytes()) {
        let bytes = packet.len();
        // The kernel shows programs nothing shorter.
        return (bytes >= frame::ETHERNET_BYTES)
            .then_some(packet)
            .ok_or_else(|| {
                Failure::usage(format!("a packet of {bytes} bytes is no Ethernet frame"))
                    .remedy("give the whole frame, or a datagram that begins with 4e57")
            });
    }
    let path = Path {
        source_mac: Mac([2, 0, 0, 0, 0, 1]),
        destination_mac: Mac([2, 0, 0, 0, 0, 2]),
        vlan: None,
        addresses: Addresses::V4 {
            source: Ipv4Addr::new(192, 0, 2, 1),
            destination: Ipv4Addr::new(192, 0, 2, 2),
        },
        source_port: SOURCE_PORT,
        destination_port: port,
    };
    let mut frame = vec![0; path.header_bytes()];
    frame.extend(&packet);
    let written = path.write(&mut frame, packet.len());
    written.map(|_| frame).ok_or_else(|| {
        Failure::usage(format!(
            "a datagram of {} bytes fits no IPv4 packet",
            packet.len()
        ))
    })
}

/// Whom a frame is for.
fn addressee(path: &Path) -> Own {
    Own {
        mac: path.destination_mac,
        // The lower twelve bits of the control field.
        vlan: path.vlan.map(|control| control & 0xfff),
        ip: match path.addresses {
            Addresses::V4 { destination, .. } => destination.into(),
            Addresses::V6 { destination, .. } => destination.into(),
        },
    }
}

/// What came of a packet.
struct Shown {
    name: String,
    frame: Vec<u8>,
    request: Result<Header, String>,
    verdict: Verdict,
    counted: Vec<&'static str>,
    reply: Option<(Header, Vec<u8>)>,
    changed: Vec<Changed>,
}

fn show(loaded: &Loaded, settings: &Settings, name: &str, frame: Vec<u8>) -> anyhow::Result<Shown> {
    let before = copy(loaded.region());
    let counters = loaded.counters()?;
    let verdict = loaded
        .run(&frame)
        .with_context(|| format!("show {name}, a frame of {} bytes", frame.len()))?;
    let after = loaded.counters()?;
    let moved = Count::all().filter(|count| after[count.index()] != counters[count.index()]);
    let limit = settings.layout.value_bytes();
    let request = carried(&frame, settings.port, limit);
    let reply = match (&verdict, &request) {
        (Verdict::Sent(reply), Ok((path, ..))) => {
            let carried = carried(reply, path.source_port, limit);
            carried.ok().map(|(_, header, value)| (header, value))
        }
        _ => None,
    };
    Ok(Shown {
        name: name.to_owned(),
        request: request.map(|(_, header, _)| header),
        frame,
        verdict,
        counted: moved.map(Count::name).collect(),
        reply,
        changed: words::changed(&settings.layout, &before, &copy(loaded.region())),
    })
}

fn copy(region: &Region<Mapping>) -> Vec<u64> {
    let words = 0..region.layout().words();
    words.map(|word| region.load(0, word)).collect()
}

/// The datagram that a frame carries to a port, or why it carries none.
fn carried(frame: &[u8], port: u16, limit: usize) -> Result<(Path, Header, Vec<u8>), String> {
    let (path, at) = match frame::parse(frame, port) {
        frame::Parsed::Ours(path, at) => (path, at),
        frame::Parsed::NotOurs => return Err(format!("no datagram to port {port}")),
        frame::Parsed::Malformed(reason) => return Err(format!("malformed: {}", reason.name())),
    };
    match wire::parse(&frame[at], limit) {
        Parsed::Ours(header, value) => Ok((path, header, value.to_vec())),
        Parsed::NotOurs => Err("a datagram without nearwire's magic".into()),
        Parsed::Malformed(reason) => Err(format!("malformed: {}", reason.name())),
    }
}

/// The fields of a header, as they are written.
fn fields(header: &Header) -> [(&'static str, Value); 13] {
    [
        ("kind", format!("{:?}", header.kind).into()),
        ("group", header.group.0.into()),
        ("sender", header.sender.0.into()),
        ("incarnation", header.incarnation.0.into()),
        ("epoch", header.epoch.0.into()),
        ("slot", header.slot.0.into()),
        ("ballot", header.ballot.to_string().into()),
        ("vote_ballot", header.vote_ballot.to_string().into()),
        ("watermark", header.watermark.into()),
        ("length", header.length.into()),
        ("flags", header.flags.0.into()),
        ("nonce", header.nonce.into()),
        ("tag", format!("{:016x}", header.tag).into()),
    ]
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Shown {
    fn verdict(&self) -> String {
        match &self.verdict {
            Verdict::Passed => "pass".into(),
            Verdict::Dropped => "drop".into(),
            Verdict::Sent(_) => "send".into(),
            Verdict::Other(code) => format!("other {code}"),
        }
    }

    fn json(&self) -> Value {
        let object = |header: &Header| {
            let fields = fields(header).into_iter();
            let fields = fields.map(|(name, value)| (name.to_owned(), value));
            Value::Object(fields.collect::<Map<_, _>>())
        };
        let reply_frame = match &self.verdict {
            Verdict::Sent(frame) => Some(hex(frame)),
            Verdict::Passed | Verdict::Dropped | Verdict::Other(_) => None,
        };
        let (reply, value) = match &self.reply {
            Some((header, value)) => (Some(object(header)), Some(hex(value))),
            None => (None, None),
        };
        let changed: Vec<Value> = self
            .changed
            .iter()
            .map(|word| {
                json!({
                    "byte": word.at * 8,
                    "word": word.name,
                    "before": word.before,
                    "after": word.after,
                })
            })
            .collect();
        json!({
            "packet": self.name,
            "frame": hex(&self.frame),
            "verdict": self.verdict(),
            "counted": self.counted,
            "request": self.request.as_ref().ok().map(object),
            "unread": self.request.as_ref().err(),
            "reply": reply,
            "reply_value": value,
            "reply_frame": reply_frame,
            "changed": changed,
        })
    }

    fn text(&self) -> String {
        let counted = match self.counted.join(", ") {
            counted if counted.is_empty() => "nothing".to_owned(),
            counted => counted,
        };
        let mut text = format!(
            "{}, a frame of {} bytes: {}; counted: {counted}",
            self.name,
            self.frame.len(),
            self.verdict(),
        );
        match &self.request {
            Err(why) => text.push_str(&format!("\nit is {why}")),
            Ok(request) => {
                let reply = self.reply.as_ref().map(|(header, _)| fields(header));
                let rows = fields(request)
                    .into_iter()
                    .enumerate()
                    .map(|(at, (name, value))| {
                        let answered = reply.as_ref().map(|reply| cell(&reply[at].1));
                        let answered = answered.unwrap_or_else(|| "-".to_owned());
                        [name.to_owned(), cell(&value), answered]
                    });
                text.push_str("\n\n");
                text.push_str(&output::table(["field", "request", "reply"], rows));
            }
        }
        if let Some((_, value)) = self.reply.as_ref().filter(|(_, value)| !value.is_empty()) {
            text.push_str(&format!("\n\nvalue of the reply: {}", hex(value)));
        }
        if self.changed.is_empty() {
            text.push_str("\n\nno word of the region changed");
        } else {
            text.push_str("\n\n");
            text.push_str(&words::table(&self.changed));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_may_have_remarks_and_blanks() {
        let read = parse_hex("4e57 01 # magic, version\n 0A\n").expect("a packet");
        assert_eq!(read, [0x4e, 0x57, 1, 10]);
        for (text, why) in [
            ("", "empty"),
            ("# nothing\n", "empty"),
            ("4e5", "odd"),
            ("4e\n5x", "line 2"),
        ] {
            let error = parse_hex(text).expect_err("no packet");
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_bare_datagram_is_put_into_a_frame_and_found_there() {
        let header = Header::new(wire::Kind::Prepare, consensus::GroupId(0), NodeId(2));
        let frame = framed(header.to_bytes().to_vec(), 4747).expect("it is short");
        let (path, found, value) = carried(&frame, 4747, 64).expect("ours");
        assert_eq!((found, value), (header, Vec::new()));
        assert_eq!(path.source_port, SOURCE_PORT);
        assert!(carried(&frame, 4748, 64).is_err(), "another port's");
        let untouched = framed(frame.clone(), 4747).expect("a frame");
        assert_eq!(untouched, frame);
    }
}
