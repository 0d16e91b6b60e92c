//! Which addresses probes may connect to. Loopback always; everything else only when the daemon's configuration names it, so
//! that nobody who may apply a manifest can use the daemon to look around in a network.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An address, a network or a host name that may be checked; serialised as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Allow {
    /// The addresses that share the first bits with this one.
    Network(IpAddr, u8),
    /// A host by exactly this name, whatever it resolves to.
    Host(String),
}

impl FromStr for Allow {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is no host name, address or network; write it as db.internal, 10.1.2.3 or 10.0.0.0/8");
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        if let Ok(ip) = address.parse::<IpAddr>() {
            let most = if ip.is_ipv4() { 32 } else { 128 };
            let bits = bits.map_or(Ok(most), str::parse).map_err(|_| wrong())?;
            return if bits <= most { Ok(Self::Network(ip, bits)) } else { Err(wrong()) };
        }
        let good = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        if bits.is_some() || text.is_empty() || !text.chars().all(good) {
            return Err(wrong());
        }
        Ok(Self::Host(text.to_ascii_lowercase()))
    }
}

impl TryFrom<String> for Allow {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Allow> for String {
    fn from(allow: Allow) -> Self {
        allow.to_string()
    }
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(ip, bits) => write!(f, "{ip}/{bits}"),
            Self::Host(name) => f.write_str(name),
        }
    }
}

impl Allow {
    fn covers(&self, host: &str, ip: IpAddr) -> bool {
        match self {
            Self::Host(name) => name.eq_ignore_ascii_case(host),
            Self::Network(network, bits) => match (network, ip) {
                (IpAddr::V4(network), IpAddr::V4(ip)) => {
                    let mask = u32::MAX.checked_shl(32 - u32::from(*bits)).unwrap_or(0);
                    network.to_bits() & mask == ip.to_bits() & mask
                }
                (IpAddr::V6(network), IpAddr::V6(ip)) => {
                    let mask = u128::MAX.checked_shl(128 - u32::from(*bits)).unwrap_or(0);
                    network.to_bits() & mask == ip.to_bits() & mask
                }
                (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
            },
        }
    }
}

/// Whether an address that a host name stands for may be checked.
pub fn is_allowed(allow: &[Allow], host: &str, ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    ip.is_loopback() || allow.iter().any(|allow| allow.covers(host, ip))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_and_what_is_named_is_allowed() {
        let allow: Vec<Allow> =
            ["10.0.0.0/8", "192.168.1.7", "fd00::/8", "db.internal"].map(|it| it.parse().unwrap()).into();
        let allowed = |host: &str, ip: &str| is_allowed(&allow, host, ip.parse().unwrap());
        for ip in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "10.255.0.1", "192.168.1.7", "fdff::1"] {
            assert!(allowed("x", ip), "{ip}");
        }
        for ip in ["11.0.0.1", "192.168.1.8", "fe80::1", "0.0.0.0", "::ffff:11.0.0.1", "169.254.169.254"] {
            assert!(!allowed("x", ip), "{ip}");
        }
        assert!(allowed("DB.internal", "8.8.8.8"));
        assert!(is_allowed(&["0.0.0.0/0".parse().unwrap()], "x", "8.8.8.8".parse().unwrap()));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in ["", "10.0.0.0/33", "a b", "host/8", "10.0.0.0/x", "::1/129"] {
            assert!(text.parse::<Allow>().is_err(), "{text}");
        }
        for text in ["10.0.0.0/8", "db.internal"] {
            assert_eq!(text.parse::<Allow>().unwrap().to_string(), text);
        }
    }
}
