//! Who a completion is for: operation, generation and slot in the 64 bits of `user_data`.
//!
//! ```text
//!  63    60 59                  40 39              24 23                         0
//! +--------+----------------------+------------------+---------------------------+
//! |   op   |         slot         |    generation    |            aux            |
//! |   4    |          20          |        16        |            24             |
//! +--------+----------------------+------------------+---------------------------+
//! ```
//!
//! `slot` is the direct descriptor (a table has at most 1 << 20), `generation` counts the slot's reuses, so a
//! late completion finds nobody. `aux` belongs to this crate: the receive buffer of a `Recv`, the span of a
//! `Send`, the ring of a `Wake`; elsewhere it is 0, so that a user can name an operation again to cancel it.

/// What kind of operation completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    /// A multishot accept: the result is the new connection's slot.
    AcceptMulti = 1,
    /// A single accept: the result is the new connection's slot.
    AcceptOne = 2,
    /// A multishot poll of a connection: readable, or the peer has gone.
    Poll = 3,
    /// A receive that never waits.
    Recv = 4,
    /// A send that never waits. It completes only when it was cut short.
    Send = 5,
    /// A send that waits for the peer to read.
    SendWait = 6,
    /// A connect.
    Connect = 7,
    /// A cancel. It completes only when there was nothing to cancel.
    Cancel = 8,
    /// A close. It completes only when it failed.
    Close = 9,
    /// A multishot poll of an ordinary descriptor, such as a mailbox.
    Watch = 10,
    /// Another ring of the group has completions. Never leaves this crate.
    Wake = 11,
    /// A receive that throws away what is there. It completes only when there was nothing.
    Discard = 12,
    /// The end of sending.
    Shutdown = 13,
    /// An ordinary file descriptor of a direct one: the result is that, open.
    FdInstall = 14,
}

impl Op {
    const ALL: [Op; 14] = [
        Op::AcceptMulti,
        Op::AcceptOne,
        Op::Poll,
        Op::Recv,
        Op::Send,
        Op::SendWait,
        Op::Connect,
        Op::Cancel,
        Op::Close,
        Op::Watch,
        Op::Wake,
        Op::Discard,
        Op::Shutdown,
        Op::FdInstall,
    ];
}

/// One operation's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    /// What was asked.
    pub op: Op,
    /// The direct descriptor it was asked of.
    pub slot: u32,
    /// The reuse of that slot it was asked of.
    pub generation: u16,
    pub(crate) aux: u32,
}

const SLOT_BITS: u32 = 20;
const GENERATION_BITS: u32 = 16;
const AUX_BITS: u32 = 24;

impl Token {
    /// The largest slot a token can name, plus one.
    pub const MAX_SLOTS: u32 = 1 << SLOT_BITS;
    pub(crate) const AUX_MASK: u32 = (1 << AUX_BITS) - 1;

    /// The token of `op` on `slot` in its life `generation`.
    pub fn new(op: Op, slot: u32, generation: u16) -> Token {
        // A slot that spilled into the operation's bits would give one operation's memory to another.
        assert!(slot < Self::MAX_SLOTS, "slot {slot} of no table");
        Token {
            op,
            slot,
            generation,
            aux: 0,
        }
    }

    pub(crate) fn with_aux(self, aux: u32) -> Token {
        Token {
            aux: aux & Self::AUX_MASK,
            ..self
        }
    }

    pub(crate) fn encode(self) -> u64 {
        (self.op as u64) << (SLOT_BITS + GENERATION_BITS + AUX_BITS)
            | u64::from(self.slot) << (GENERATION_BITS + AUX_BITS)
            | u64::from(self.generation) << AUX_BITS
            | u64::from(self.aux)
    }

    /// None for a `user_data` that no token encodes to.
    pub(crate) fn decode(user_data: u64) -> Option<Token> {
        let op = (user_data >> (SLOT_BITS + GENERATION_BITS + AUX_BITS)) as usize;
        Some(Token {
            op: *Op::ALL.get(op.wrapping_sub(1))?,
            slot: (user_data >> (GENERATION_BITS + AUX_BITS)) as u32 & (Self::MAX_SLOTS - 1),
            generation: (user_data >> AUX_BITS) as u16,
            aux: user_data as u32 & Self::AUX_MASK,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_token_comes_back(op in 0usize..Op::ALL.len(), slot in 0..Token::MAX_SLOTS, generation: u16, aux in 0..=Token::AUX_MASK) {
            let token = Token::new(Op::ALL[op], slot, generation).with_aux(aux);
            prop_assert_eq!(Token::decode(token.encode()), Some(token));
        }
    }

    #[test]
    fn foreign_user_data_is_refused() {
        assert_eq!(Token::decode(0), None);
        assert_eq!(Token::decode(u64::MAX), None);
    }
}
