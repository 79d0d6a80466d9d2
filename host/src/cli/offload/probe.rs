//! `nearwire offload probe`.

use super::{NodeArgs, bpffs_of, nonce_text};
use crate::cli::Failure;
use crate::cli::doctor::{self, Finding};
use crate::cli::output::{self, Output};
use nearwire::region_place::RegionError;
use nearwire::run;
use nearwire::xdp::netlink::{self, Features, Interface};
use nearwire::xdp::{Attach, Bystander, Mode, OBJECT, Occupant, Pins, Sight, XdpError};
use serde_json::{Value, json};

/// Say which interfaces can have an acceptor, and what is missing.
///
/// Nothing is attached, unless --try says so: what the drivers can do is asked of the kernel (netlink
/// family netdev, Linux 6.3).
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
Examples:
  nearwire offload probe
  nearwire offload probe --interface eth0
  nearwire offload probe --interface eth0 --try         attaches a program that passes everything, and
                                                        takes it off again
  nearwire offload probe --config node1.toml            the interface, mode and bpffs of that node

Only the interfaces of this network namespace are seen: ip netns exec NAME nearwire offload probe.

Columns:
  native    yes, no, or unknown: whether the driver calls programs itself; tried: it just did
  generic   yes, or no while a native program is there: behind the driver, slower, any interface
  hardware  whether programs can run on the card
  program   what is there now; region says which node's it is, as in `nearwire offload status`

With --interface or --config the exit code is 3 if an acceptor cannot be put there.")]
pub(crate) struct Args {
    /// The interface, instead of all.
    #[arg(long, env = "NEARWIRE_INTERFACE", value_name = "IF")]
    interface: Option<String>,
    /// Attach a program natively for a moment: some drivers reset their queues for that, and lose
    /// packets.
    #[arg(long = "try", env = "NEARWIRE_TRY")]
    tries: bool,
    #[command(flatten)]
    node: NodeArgs,
}

/// A frame that a program sees in one piece is a page less what Linux keeps in it, 256 bytes in front
/// and 320 behind; 14 of it are Ethernet's.
const NATIVE_MTU: u32 = 4096 - 256 - 320 - 14;

const COLUMNS: [&str; 9] = [
    "interface",
    "driver",
    "mtu",
    "queues",
    "native",
    "generic",
    "hardware",
    "program",
    "region",
];

/// What is known of an interface.
struct Probed {
    interface: Interface,
    features: Option<Features>,
    tried: Option<Result<(), XdpError>>,
    occupants: Vec<(Occupant, Option<u64>)>,
}

pub(crate) fn main(args: &Args, output: Output) -> anyhow::Result<()> {
    let node = args.node.node()?;
    let offload = node.as_ref().and_then(|node| node.config.offload.as_ref());
    if let Some(node) = &node
        && offload.is_none()
        && args.interface.is_none()
    {
        return Err(super::change::no_offload(node).into());
    }
    let named = args
        .interface
        .as_deref()
        .or(offload.map(|offload| &*offload.interface));
    if args.tries && named.is_none() {
        return Err(Failure::usage("--try attaches to one interface: which?")
            .remedy("add --interface IF")
            .into());
    }
    let bpffs = bpffs_of(None, node.as_ref());
    let mut checks = doctor::xdp::checks(&bpffs);
    checks.push(doctor::xdp::dispatcher());
    let mut interfaces = netlink::interfaces().map_err(XdpError::Interfaces)?;
    if let Some(name) = named {
        interfaces.retain(|interface| interface.name == name);
        if interfaces.is_empty() {
            return Err(Failure::unsupported(format!(
                "there is no interface {name} in this network namespace"
            ))
            .remedy("`ip -brief link` lists them; `ip netns exec NAME nearwire …` sees another's")
            .into());
        }
    }
    // A bpffs that is not there is one of the checks.
    let pins = Pins::all(&bpffs).unwrap_or_default().into_iter();
    let regions: Vec<Sight> = pins.flat_map(Sight::of).collect();
    let probed = interfaces
        .into_iter()
        .map(|interface| probe(interface, &regions, args.tries))
        .collect::<anyhow::Result<Vec<_>>>()?;
    match output {
        Output::Json => output::json(&json!({
            "checks": checks,
            "interfaces": probed.iter().map(Probed::json).collect::<Vec<_>>(),
        }))?,
        Output::Table => {
            output::line(&output::table(COLUMNS, probed.iter().map(Probed::cells)))?;
            for probed in &probed {
                for note in probed.notes() {
                    output::line(&format!("\n{}: {note}", probed.interface.name))?;
                }
            }
            output::line("")?;
            doctor::print(&checks)?;
        }
    }
    let Some(name) = named else {
        return Ok(());
    };
    let takes_turns = offload.is_some_and(|offload| offload.attach == Attach::Dispatcher);
    let wanted = offload.map_or(Mode::Generic, |offload| offload.mode);
    let lacking: Vec<_> = checks
        .iter()
        .filter(|check| check.result != Finding::Ok && check.check != "bpf jit")
        .filter(|check| check.check != "libxdp dispatcher" || takes_turns)
        .map(|check| check.check)
        .collect();
    if !lacking.is_empty() {
        return Err(Failure::unsupported(format!(
            "no acceptor can be put on {name}: see {}",
            lacking.join(", ")
        ))
        .remedy("it stands below the row")
        .into());
    }
    let native = probed.iter().all(|probed| probed.native() != "no");
    if wanted == Mode::Native && !native {
        return Err(
            Failure::unsupported(format!("{name} takes no acceptor in native mode"))
                .remedy("see the line on it; or mode = \"generic\" in [offload]")
                .into(),
        );
    }
    Ok(())
}

fn probe(interface: Interface, regions: &[Sight], tries: bool) -> anyhow::Result<Probed> {
    let occupants = Occupant::all(&interface.programs);
    if let (true, Some(occupant)) = (tries, occupants.first()) {
        return Err(Failure::failed(format!(
            "try native mode on {}: {occupant} sits there",
            interface.name
        ))
        .remedy(occupant.remedy(&interface.name))
        .into());
    }
    let tried = tries.then(|| {
        let object = OBJECT.ok_or(run::Error::Region(RegionError::NoObject))?;
        // Dropped at once, which detaches it.
        Ok(Bystander::attach(object, &interface.name, Mode::Native).map(drop))
    });
    let tried = tried.transpose().map_err(|error: run::Error| error)?;
    let whose = |occupant: Occupant| {
        let region = regions.iter().find(|region| region.has(occupant.id));
        let region = region.and_then(|region| region.pins.nonce());
        (occupant, region)
    };
    Ok(Probed {
        // A kernel that cannot say is as good as one that refuses to.
        features: netlink::features(interface.index).unwrap_or_default(),
        occupants: occupants.into_iter().map(whose).collect(),
        interface,
        tried,
    })
}

impl Probed {
    fn is_too_long(&self) -> bool {
        self.interface.mtu > NATIVE_MTU
    }

    fn native(&self) -> &'static str {
        let is_there = |(occupant, _): &(Occupant, _)| occupant.mode == Mode::Native.name();
        match (&self.tried, self.features) {
            (Some(Ok(())), _) => "tried",
            (Some(Err(_)), _) => "no",
            (None, _) if self.occupants.iter().any(is_there) => "yes",
            (None, _) if self.is_too_long() => "no",
            (None, Some(features)) if !features.native => "no",
            (None, Some(_)) => "yes",
            (None, None) => "unknown",
        }
    }

    fn generic(&self) -> bool {
        let mut modes = self.occupants.iter().map(|(occupant, _)| occupant.mode);
        modes.all(|mode| mode == Mode::Generic.name())
    }

    fn notes(&self) -> Vec<String> {
        let Interface { name, mtu, .. } = &self.interface;
        let mut notes = Vec::new();
        if let Some(Err(error)) = &self.tried {
            notes.push(error.to_string());
        }
        let can = self.features.is_none_or(|features| features.native);
        if can && self.is_too_long() {
            notes.push(format!(
                "its MTU of {mtu} is too large for native mode, which takes {NATIVE_MTU} with most \
                 drivers: ip link set dev {name} mtu {NATIVE_MTU}"
            ));
        }
        if self.native() == "unknown" {
            notes
                .push("this kernel cannot tell of native mode: --try attaches for a moment".into());
        }
        if self.interface.driver.as_deref() == Some("veth") {
            notes.push(
                "a veth loses what a native program sends unless a native program is on its other \
                 end, too; one that passes everything will do"
                    .into(),
            );
        }
        notes
    }

    fn cells(&self) -> [String; COLUMNS.len()] {
        let interface = &self.interface;
        let yes = |is_so| if is_so { "yes" } else { "no" }.to_owned();
        let programs: Vec<String> = self
            .occupants
            .iter()
            .map(|(occupant, _)| {
                let name = occupant.name.as_deref().unwrap_or("?");
                format!("{} {name} {}", occupant.id, occupant.mode)
            })
            .collect();
        let regions: Vec<String> = self
            .occupants
            .iter()
            .map(|(_, region)| region.map_or_else(|| "-".to_owned(), nonce_text))
            .collect();
        let or_none = |texts: Vec<String>| match texts.join(", ") {
            text if text.is_empty() => "-".to_owned(),
            text => text,
        };
        [
            interface.name.clone(),
            interface.driver.clone().unwrap_or_else(|| "-".to_owned()),
            interface.mtu.to_string(),
            format!("{}/{}", interface.queues.0, interface.queues.1),
            self.native().to_owned(),
            yes(self.generic()),
            self.features
                .map_or_else(|| "unknown".to_owned(), |features| yes(features.hardware)),
            or_none(programs),
            or_none(regions),
        ]
    }

    fn json(&self) -> Value {
        let interface = &self.interface;
        let programs: Vec<Value> = self
            .occupants
            .iter()
            .map(|(occupant, region)| {
                json!({
                    "mode": occupant.mode,
                    "id": occupant.id,
                    "name": occupant.name,
                    "link": occupant.link,
                    "region": region.map(nonce_text),
                })
            })
            .collect();
        json!({
            "interface": interface.name,
            "index": interface.index,
            "driver": interface.driver,
            "mtu": interface.mtu,
            "queues_in": interface.queues.0,
            "queues_out": interface.queues.1,
            "native": self.native(),
            "generic": self.generic(),
            "hardware": self.features.map(|features| features.hardware),
            "programs": programs,
            "notes": self.notes(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probed(mtu: u32, features: Option<Features>) -> Probed {
        Probed {
            interface: Interface {
                index: 2,
                name: "eth0".into(),
                mtu,
                queues: (1, 1),
                driver: None,
                programs: Vec::new(),
            },
            features,
            tried: None,
            occupants: Vec::new(),
        }
    }

    const NATIVE: Features = Features {
        native: true,
        hardware: false,
    };

    #[test]
    fn a_frame_must_fit_a_page() {
        assert_eq!(probed(NATIVE_MTU, Some(NATIVE)).native(), "yes");
        let jumbo = probed(NATIVE_MTU + 1, Some(NATIVE));
        assert_eq!(jumbo.native(), "no");
        assert!(jumbo.notes()[0].ends_with("ip link set dev eth0 mtu 3506"));
    }

    #[test]
    fn what_nobody_says_is_unknown() {
        assert_eq!(probed(NATIVE_MTU + 1, None).native(), "no");
        let silent = probed(1500, None);
        assert_eq!(silent.native(), "unknown");
        assert!(silent.notes()[0].contains("--try"));
    }
}
