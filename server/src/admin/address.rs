//! Where the admin side listens: an address and port, or a unix socket; opened before anything starts, or taken over.
//!
//! Owns: the file of a unix socket, which only its owner may use, as the control socket's.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::str::FromStr;

use socket2::SockRef;

use crate::control::Control;
use crate::privileges::Identity;

/// `--admin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An address and port; port 0 takes one from the kernel.
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        match text.parse() {
            Ok(address) => Ok(Address::Tcp(address)),
            Err(_) if text.contains('/') => Ok(Address::Unix(text.into())),
            Err(_) => Err(
                "give an ADDRESS:PORT such as 127.0.0.1:7070, or the path of a unix socket with a `/` in it"
                    .into(),
            ),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => write!(f, "{address}"),
            Address::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A listening socket that nobody serves yet.
#[derive(Debug)]
pub struct Socket {
    listener: Listener,
    file: Option<Control>,
    is_shared: bool,
}

#[derive(Debug)]
pub(super) enum Listener {
    Tcp(std::net::TcpListener),
    Unix(UnixListener),
}

impl Socket {
    /// Listens at `address`. The file that a dead server left there is replaced.
    ///
    /// # Errors
    /// The address is in use, or the file cannot be made.
    pub fn bind(address: &Address) -> io::Result<Socket> {
        let (listener, file) = match address {
            Address::Tcp(address) => (Listener::Tcp(std::net::TcpListener::bind(address)?), None),
            Address::Unix(path) => {
                let (file, listener) = Control::bind(path)?;
                (Listener::Unix(listener), Some(file))
            }
        };
        Ok(Socket {
            listener,
            file,
            is_shared: false,
        })
    }

    /// The socket of the server that is taken over, which still has it. None where it does not listen at `address`.
    pub(crate) fn inherited(socket: OwnedFd, address: &Address) -> Option<Socket> {
        let at = SockRef::from(&socket).local_addr().ok()?;
        let (listener, file) = match address {
            Address::Tcp(wanted) => {
                at.as_socket().filter(|at| at == wanted)?;
                (Listener::Tcp(socket.into()), None)
            }
            Address::Unix(wanted) => {
                at.as_pathname().filter(|at| at == wanted)?;
                let file = Control::inherited(wanted);
                (Listener::Unix(socket.into()), Some(file))
            }
        };
        Some(Socket {
            listener,
            file,
            is_shared: true,
        })
    }

    /// Makes `owner` the one who may use the file, where there is one.
    ///
    /// # Errors
    /// That of chown(2).
    pub fn give_to(&self, owner: Identity) -> io::Result<()> {
        self.file
            .as_ref()
            .map_or(Ok(()), |file| file.give_to(owner))
    }

    /// Where it listens.
    pub(super) fn address(&self) -> io::Result<Address> {
        Ok(match (&self.listener, &self.file) {
            (Listener::Tcp(listener), _) => Address::Tcp(listener.local_addr()?),
            (Listener::Unix(_), file) => Address::Unix(
                file.as_ref()
                    .map_or(PathBuf::new(), |f| f.path().to_owned()),
            ),
        })
    }

    /// Another server accepts from it for now.
    pub(super) fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// A copy to be offered, the socket itself, and its file.
    pub(super) fn into_parts(self) -> io::Result<(OwnedFd, Listener, Option<Control>)> {
        let copy = match &self.listener {
            Listener::Tcp(listener) => listener.as_fd().try_clone_to_owned()?,
            Listener::Unix(listener) => listener.as_fd().try_clone_to_owned()?,
        };
        Ok((copy, self.listener, self.file))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_port_or_a_path() {
        let tcp: Address = "[::1]:7070".parse().unwrap();
        assert_eq!(tcp.to_string(), "[::1]:7070");
        let unix: Address = "./admin".parse().unwrap();
        assert_eq!(unix, Address::Unix("./admin".into()));
        for wrong in ["7070", "localhost:7070", "", "admin"] {
            let error = wrong.parse::<Address>().unwrap_err();
            assert!(error.contains("ADDRESS:PORT"), "{error}");
        }
    }

    #[test]
    fn a_socket_is_taken_over_where_it_is_the_wanted_one() {
        let first = Socket::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
        let address = first.address().unwrap();
        let (copy, _listener, _) = first.into_parts().unwrap();
        let other = "127.0.0.1:1".parse().unwrap();
        assert!(Socket::inherited(copy.try_clone().unwrap(), &other).is_none());
        let second = Socket::inherited(copy, &address).unwrap();
        assert_eq!(
            (second.address().unwrap(), second.is_shared()),
            (address, true)
        );
    }
}
