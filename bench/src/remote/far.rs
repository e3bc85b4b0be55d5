//! The bench's end of the connection to an agent. Every question is also a reading of the agent's clock.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

use crate::clock::monotonic_ns;
use crate::remote::look::Look;
use crate::remote::offset::Exchange;
use crate::remote::protocol::{
    Answer, Ask, Hello, LONGEST_ANSWER, Lines, Times, Unheard, VERSION, understood,
};
use crate::stop::Stop;

/// An agent, greeted.
#[derive(Debug)]
pub struct Far {
    lines: Lines,
    /// Where it is.
    pub address: SocketAddr,
    /// Where it is reached from.
    pub local: SocketAddr,
    /// Who it is.
    pub hello: Hello,
    /// Of every question since the greeting, when it was asked and answered.
    pub exchanges: Vec<Exchange>,
}

/// A close look at a host of a million sockets is answered within this, and so is all else.
const ANSWERS_WITHIN: Duration = Duration::from_secs(5);

impl Far {
    /// Connects to the agent at `address`, `HOST:PORT`, and greets it.
    ///
    /// # Errors
    /// What to tell the user.
    pub fn greet(address: &str, stop: &Stop) -> Result<Self, String> {
        let form = "it has the form HOST:PORT, such as 10.0.0.2:7070";
        let resolved = address.to_socket_addrs();
        let resolved = resolved.map_err(|error| format!("--agent {address}: {error}; {form}"))?;
        let resolved = resolved.into_iter().next();
        let at = resolved.ok_or_else(|| format!("--agent {address}: it has no address; {form}"))?;
        let stream = TcpStream::connect_timeout(&at, ANSWERS_WITHIN).map_err(|cause| {
            format!(
                "no agent answers at {at}: {cause}; start one on the server's host: throng-bench agent --listen {at} \
                 --port PORT_OF_THE_SERVER"
            )
        })?;
        let local = stream.local_addr();
        let broken = |cause| format!("the connection to {at} broke: {cause}");
        let local = local.map_err(broken)?;
        let mut lines = Lines::new(stream, LONGEST_ANSWER).map_err(broken)?;
        let hello =
            say_hello(&mut lines, stop).map_err(|why| format!("the agent at {at}: {why}"))?;
        Ok(Self {
            lines,
            address: at,
            local,
            hello,
            exchanges: Vec::new(),
        })
    }

    /// Asks for the time so many times.
    ///
    /// # Errors
    /// Why it does not answer.
    pub fn read_clock(&mut self, count: usize, stop: &Stop) -> Result<(), Lost> {
        for _ in 0..count {
            match self.ask(&Ask::Clock, stop)? {
                (Answer::Clock(times), sent, received) => self.note(times, sent, received),
                (other, ..) => return Err(odd(&other)),
            }
        }
        Ok(())
    }

    /// What it sees now.
    ///
    /// # Errors
    /// Why it does not answer.
    pub fn look(&mut self, closely: bool, stop: &Stop) -> Result<Look, Lost> {
        match self.ask(&Ask::Look { closely }, stop)? {
            (Answer::Look { times, look }, sent, received) => {
                self.note(times, sent, received);
                Ok(*look)
            }
            (other, ..) => Err(odd(&other)),
        }
    }

    /// The answer, and this host's clock before the question and after the answer.
    fn ask(&mut self, ask: &Ask, stop: &Stop) -> Result<(Answer, u64, u64), Lost> {
        let sent_ns = monotonic_ns();
        self.lines.say(ask)?;
        let line = self.lines.hear(ANSWERS_WITHIN, stop)?;
        let received_ns = monotonic_ns();
        Ok((understood(&line)?, sent_ns, received_ns))
    }

    fn note(&mut self, times: Times, near_sent_ns: u64, near_received_ns: u64) {
        self.exchanges.push(Exchange {
            near_sent_ns,
            far_received_ns: times.received_ns,
            far_sent_ns: times.sent_ns,
            near_received_ns,
        });
    }
}

/// Why an agent says no more.
#[derive(Debug)]
pub enum Lost {
    /// This run has to end, which is not its fault.
    Stopped,
    /// It is gone, or in trouble.
    Gone(String),
}

impl From<Unheard> for Lost {
    fn from(why: Unheard) -> Self {
        match why {
            Unheard::Stopped(_) => Self::Stopped,
            why => Self::Gone(why.to_string()),
        }
    }
}

fn odd(answer: &Answer) -> Lost {
    Lost::Gone(match answer {
        Answer::Refused { reason } => reason.clone(),
        other => format!("it answered another question: {other:?}"),
    })
}

/// Which it must answer in this version.
fn say_hello(lines: &mut Lines, stop: &Stop) -> Result<Hello, String> {
    let mine = env!("CARGO_PKG_VERSION");
    let hello = Ask::Hello {
        version: VERSION,
        throng_version: mine.to_owned(),
    };
    // One that refuses may have closed before it was asked: what it said is heard all the same, and why nothing is.
    let _ = lines.say(&hello);
    let answer = lines.hear(ANSWERS_WITHIN, stop);
    match answer.and_then(|line| understood(&line)) {
        Ok(Answer::Hello(hello)) if hello.version == VERSION => Ok(*hello),
        Ok(Answer::Hello(hello)) => Err(format!(
            "it speaks version {} of the protocol, of Throng {}, and this bench version {VERSION}, of Throng {mine}: run \
             the same Throng on both hosts",
            hello.version, hello.throng_version
        )),
        Ok(Answer::Refused { reason }) => Err(reason),
        Ok(_) => Err("it is no agent: it answered another question".to_owned()),
        Err(Unheard::Stopped(cause)) => Err(cause.to_string()),
        Err(why) => Err(format!(
            "{why}: that is no agent; TARGET is the server, and --agent names the port of throng-bench agent beside it"
        )),
    }
}
