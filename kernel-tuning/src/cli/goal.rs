//! What every command that computes settings has to be told: for how many connections, at which end, and on what host.

use std::ops::RangeInclusive;

use clap::{Args, ValueEnum};

use crate::host::Memory;
use crate::setting::{Demand, Role};

/// Many settings are numbers of 31 bits.
const MAX_CONNECTIONS: u64 = 1_000_000_000;

/// The flags that become a [`Demand`].
#[derive(Debug, Clone, Args)]
pub(super) struct Goal {
    /// Connections to be held at one time
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=MAX_CONNECTIONS), help_heading = "What for")]
    pub connections: u64,

    /// Which end of them is on this host
    #[arg(long, value_enum, default_value_t = Role::Both, help_heading = "What for")]
    pub role: Role,

    /// A port, or FIRST-LAST, that the server listens on [default: 7000; repeatable]
    #[arg(long = "port", value_name = "PORT", value_parser = ports, help_heading = "What for")]
    pub ports: Vec<RangeInclusive<u16>>,

    /// Memory of the host, where it is another than this
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..), help_heading = "What for")]
    pub ram_mib: Option<u64>,
}

impl Goal {
    /// The demand, with the memory of this host unless told otherwise.
    pub fn demand(&self) -> anyhow::Result<Demand> {
        let ram_bytes = match self.ram_mib {
            Some(mib) => mib.saturating_mul(1 << 20),
            None => Memory::read()?.total_bytes,
        };
        let listen_ports = match self.ports.as_slice() {
            [] => vec![7000..=7000],
            ports => ports.to_vec(),
        };
        Ok(Demand {
            connections: self.connections,
            role: self.role,
            ram_bytes,
            page_bytes: procfs::page_size(),
            listen_ports,
        })
    }

    /// The flags that say the same, each after a space.
    pub fn flags(&self) -> String {
        let role = self.role.to_possible_value();
        let role = role.as_ref().map_or("both", |role| role.get_name());
        let mut flags = format!(" --connections {} --role {role}", self.connections);
        for ports in &self.ports {
            let (first, last) = (ports.start(), ports.end());
            flags += &match first == last {
                true => format!(" --port {first}"),
                false => format!(" --port {first}-{last}"),
            };
        }
        if let Some(mib) = self.ram_mib {
            flags += &format!(" --ram-mib {mib}");
        }
        flags
    }
}

fn ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let port = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{text:?} is not a port from 1 to 65535")),
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    match first <= last {
        true => Ok(first..=last),
        false => Err(format!("{first} is after {last}: swap them")),
    }
}
