//! Network identifiers: `ADDR[:PORT]@tcp|rdma`, as Lustre's NIDs with a port.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// NVMe-oF's I/O port, used where a NID names none.
pub const DEFAULT_PORT: u16 = 4420;

/// How a server is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Fabric {
    /// NVMe/TCP.
    Tcp,
    /// NVMe/RDMA.
    Rdma,
    /// The same process.
    Local,
}

/// Where a server listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Nid {
    /// Address and port.
    pub address: SocketAddr,
    /// Transport.
    pub fabric: Fabric,
}

impl Nid {
    /// A TCP NID.
    pub fn tcp(address: SocketAddr) -> Nid {
        Nid { address, fabric: Fabric::Tcp }
    }

    /// A NID inside this process; `number` tells servers of one simulation apart.
    pub fn local(number: u16) -> Nid {
        Nid { address: SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), number), fabric: Fabric::Local }
    }
}

impl fmt::Display for Nid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fabric {
            Fabric::Local => write!(f, "{}@local", self.address.port()),
            Fabric::Tcp | Fabric::Rdma => {
                let fabric = if self.fabric == Fabric::Tcp { "tcp" } else { "rdma" };
                match (self.address.port(), self.address.ip()) {
                    (DEFAULT_PORT, IpAddr::V4(ip)) => write!(f, "{ip}@{fabric}"),
                    (DEFAULT_PORT, IpAddr::V6(ip)) => write!(f, "[{ip}]@{fabric}"),
                    _ => write!(f, "{}@{fabric}", self.address),
                }
            }
        }
    }
}

/// A text that is not a NID.
#[derive(Debug, thiserror::Error)]
#[error("\"{text}\" is not a NID: {why}; a NID looks like 10.0.0.1@tcp, 10.0.0.1:4421@tcp or [fd00::1]:4420@rdma")]
pub struct ParseNidError {
    text: String,
    why: &'static str,
}

impl FromStr for Nid {
    type Err = ParseNidError;

    fn from_str(text: &str) -> Result<Nid, ParseNidError> {
        let wrong = |why| ParseNidError { text: text.to_owned(), why };
        let (address, fabric) = text.rsplit_once('@').ok_or_else(|| wrong("no @tcp or @rdma"))?;
        let fabric = match fabric {
            "tcp" => Fabric::Tcp,
            "rdma" => Fabric::Rdma,
            "local" => return Ok(Nid::local(address.parse().map_err(|_| wrong("bad number"))?)),
            _ => return Err(wrong("unknown network")),
        };
        if let Ok(address) = address.parse::<SocketAddr>() {
            return Ok(Nid { address, fabric });
        }
        let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
        let ip: IpAddr = bare.parse().map_err(|_| wrong("bad address"))?;
        Ok(Nid { address: SocketAddr::new(ip, DEFAULT_PORT), fabric })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        for text in ["127.0.0.1@tcp", "10.0.0.1:4421@rdma", "[::1]@tcp", "[::1]:99@tcp", "7@local"] {
            assert_eq!(text.parse::<Nid>().unwrap().to_string(), text);
        }
        for bad in ["", "127.0.0.1", "@tcp", "1.2.3@tcp", "1.2.3.4@ib", "1.2.3.4:99999@tcp", "x@local"] {
            assert!(bad.parse::<Nid>().is_err(), "{bad}");
        }
    }
}
