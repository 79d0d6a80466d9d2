//! Where an interface is reached.

use super::XdpError;
use consensus::frame::{Mac, Own};
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use std::net::IpAddr;

/// The station that `interface`, in the network namespace of the calling thread, is at `ip`.
///
/// The address must be the interface's own. That of a VLAN above it would be served without the
/// VLAN's tag, which cards take off before the program sees a frame, and that of a bridge above it
/// under another MAC.
///
/// # Errors
/// There is no such interface, or it has not this address.
pub fn own(interface: &str, ip: IpAddr) -> Result<Own, XdpError> {
    let all = getifaddrs().map_err(|error| XdpError::Interfaces(error.into()))?;
    let of_it: Vec<_> = all
        .filter(|address| address.interface_name == interface)
        .collect();
    if of_it.is_empty() {
        return Err(XdpError::NoInterface(interface.to_owned()));
    }
    if !of_it.iter().any(|address| ip_of(address) == Some(ip)) {
        let interface = interface.to_owned();
        return Err(XdpError::NotItsAddress { interface, ip });
    }
    // Loopback's is zero; what has none, such as a tunnel, carries no Ethernet frames either.
    let mac = of_it
        .iter()
        .find_map(|address| address.address?.as_link_addr()?.addr());
    Ok(Own {
        mac: Mac(mac.unwrap_or_default()),
        vlan: None,
        ip,
    })
}

fn ip_of(address: &InterfaceAddress) -> Option<IpAddr> {
    let address = address.address?;
    let v4 = address.as_sockaddr_in().map(|address| address.ip().into());
    v4.or_else(|| Some(address.as_sockaddr_in6()?.ip().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_itself_and_no_other() {
        let ip = IpAddr::from([127, 0, 0, 1]);
        let station = Own {
            mac: Mac([0; 6]),
            vlan: None,
            ip,
        };
        assert_eq!(own("lo", ip).expect("loopback is up"), station);
        let error = own("lo", [192, 0, 2, 1].into()).expect_err("an example's address");
        assert!(error.to_string().starts_with("serve 192.0.2.1 at lo:"));
        let error = own("no\0where", ip).expect_err("no such name");
        assert!(matches!(error, XdpError::NoInterface(_)), "{error}");
    }
}
