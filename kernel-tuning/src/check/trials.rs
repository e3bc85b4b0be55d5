//! What the doctor tries, because no file tells it: rings, tables of direct descriptors, and binding to an address.
//!
//! Leaves nothing behind: each ring and socket is closed at once, and the soft limit of locked memory, which is 0 for a
//! moment, is what it was. Raises this process's own limit of open files, as the
//! server does when it starts.

use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpListener};

use ipnet::IpNet;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use ring::Unavailable;

use crate::addresses::{self, Owned};
use crate::host::interface_addresses;
use crate::process::raise_nofile;

/// The largest table the kernel makes, IORING_MAX_FIXED_FILES of io_uring/rsrc.h.
pub(super) const LARGEST_TABLE: u64 = 1 << 20;

/// What came of trying.
#[derive(Debug)]
pub struct Trials {
    /// A ring of the kind the server uses; or why there is none.
    pub ring: Result<(), Unavailable>,
    /// Whether the kernel charges rings of this process to RLIMIT_MEMLOCK; or why that was not found out.
    pub is_charged: Result<bool, String>,
    /// Slots of the largest table of direct descriptors that was made; or why there is none.
    pub table: Result<u64, String>,
    /// Whether closing a direct descriptor closes its socket; or why that was not found out.
    pub releases: Result<bool, String>,
    /// Binding to an address of 127.0.0.0/8 that no interface has; or why not.
    pub any_loopback: Result<(), String>,
    /// Addresses of interfaces that connections to other hosts can come from.
    pub addresses: Vec<IpAddr>,
    /// Networks that `throng-tune addresses` made local.
    pub networks: Vec<IpNet>,
}

impl Trials {
    /// Tries everything.
    pub fn run() -> Self {
        let text = |error: io::Error| error.to_string();
        let ring = ring::probe();
        let (is_charged, table, releases) = match &ring {
            Err(why) => {
                let without = || "without a ring it cannot be tried".to_owned();
                let is_charged = match why {
                    Unavailable::NoMemory => Ok(true),
                    _ => Err(without()),
                };
                (is_charged, Err(without()), Err(without()))
            }
            Ok(()) => (
                is_charged().map_err(text),
                largest_table(),
                ring::direct_descriptors_release().map_err(|why| why.to_string()),
            ),
        };
        let networks = addresses::list().unwrap_or_default().into_iter();
        Self {
            ring,
            is_charged,
            table,
            releases,
            any_loopback: TcpListener::bind((Ipv4Addr::new(127, 201, 7, 93), 0))
                .map(drop)
                .map_err(text),
            addresses: interface_addresses()
                .unwrap_or_default()
                .into_iter()
                .map(|(_, address)| address)
                .filter(|address| !address.is_loopback() && !is_link_local(*address))
                .collect(),
            networks: networks
                .filter_map(|owned| match owned {
                    Owned::AnyIp { network } => Some(network),
                    Owned::Address { .. } => None,
                })
                .collect(),
        }
    }
}

/// With no locked memory allowed, a ring that is charged is refused.
fn is_charged() -> io::Result<bool> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_MEMLOCK)?;
    setrlimit(Resource::RLIMIT_MEMLOCK, 0, hard)?;
    let tried = ring::probe();
    setrlimit(Resource::RLIMIT_MEMLOCK, soft, hard)?;
    Ok(matches!(tried, Err(Unavailable::NoMemory)))
}

/// The kernel refuses a table larger than the limit of open files.
fn largest_table() -> Result<u64, String> {
    let limit = raise_nofile().map_err(|error| error.to_string())?;
    let slots = limit.soft.min(LARGEST_TABLE);
    match ring::probe::holds_table(slots as u32) {
        Ok(()) => Ok(slots),
        Err(error) => Err(format!(
            "a table of {slots} direct descriptors is refused: {error}"
        )),
    }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}
