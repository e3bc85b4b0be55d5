//! Tests of the machine against a scripted ring.
//!
//! The script is a seed: sockets with small windows, peers that write, read, finish and reset when they like, and a
//! kernel that completes waiting operations late and in any order, cuts sends short, ends multishot polls and
//! hands closed slots out again at once. What it keeps to is what the real one promises: a receive and a fast send
//! are done when they are submitted, and their completions are there before the turn is settled.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use nix::libc;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use ring::{Op, Operation, SendArena, Span, Token};
use wire::{Echo, Line, Session};

use crate::conn::{Budget, Limits};
use crate::engine::uring::machine::{Event, Machine, Turn};
use crate::stats::{CloseReason, Stats};
use crate::timeouts::{Sweep, Tick, Timeouts};

const SLOTS: u32 = 6;

/// One connection's other end, and the socket between.
#[derive(Default)]
struct Peer {
    /// Not yet written by the peer.
    to_write: VecDeque<u8>,
    /// Written by the peer, not yet received by the server.
    inbound: VecDeque<u8>,
    /// Sent by the server, not yet read by the peer.
    outbound: VecDeque<u8>,
    /// Read by the peer.
    read: Vec<u8>,
    said: Vec<u8>,
    finished: bool,
    reset: bool,
    /// The server has closed.
    closed: bool,
    reads_nothing: bool,
    /// Finishes only when all has been answered: input that was forgotten shows as a standstill.
    patient: bool,
    /// Resets the connection sooner or later.
    rude: bool,
}

struct Completion {
    token: Token,
    result: i32,
    more: bool,
    input: Vec<u8>,
    span: Option<Span>,
    bytes: Option<Vec<u8>>,
}

struct Waiting {
    token: Token,
    bytes: Vec<u8>,
    from: usize,
    sent: usize,
}

struct Script {
    random: StdRng,
    window: usize,
    peers: Vec<Peer>,
    /// Which peer is in which slot.
    slots: BTreeMap<u32, usize>,
    polls: Vec<Token>,
    waiting: Vec<Waiting>,
    /// Completions that may come later.
    late: Vec<Completion>,
    /// Completions of this turn.
    now: Vec<Completion>,
}

impl Script {
    fn run(&mut self, operation: Operation, arena: &SendArena) {
        match operation {
            Operation::Poll { slot, generation } => {
                let token = Token::new(Op::Poll, slot, generation);
                assert!(!self.polls.contains(&token), "polled twice");
                self.polls.push(token);
                let peer = self.peer(slot);
                if !peer.inbound.is_empty() || peer.finished || peer.reset {
                    self.wake(slot);
                }
            }
            Operation::Recv { slot, generation } => {
                let most = self.random.random_range(1..=300);
                let peer = self.peer(slot);
                let result = match peer.inbound.len().min(most) {
                    _ if peer.reset => -libc::ECONNRESET,
                    0 if peer.finished => 0,
                    0 => -libc::EAGAIN,
                    taken => taken as i32,
                };
                let input = peer.inbound.drain(..result.max(0) as usize).collect();
                let token = Token::new(Op::Recv, slot, generation);
                self.now.push(plain(token, result).with_input(input));
            }
            Operation::Send {
                slot,
                generation,
                span,
            } => {
                let bytes = arena.bytes(span).to_vec();
                let token = Token::new(Op::Send, slot, generation);
                let sent = self.deliver(slot, &bytes);
                let result = match sent {
                    _ if self.peer(slot).reset => -libc::EPIPE,
                    sent if sent == bytes.len() => return,
                    0 => -libc::EAGAIN,
                    sent => sent as i32,
                };
                self.now.push(Completion {
                    span: Some(span),
                    ..plain(token, result)
                });
            }
            Operation::SendWait {
                slot,
                generation,
                bytes,
                from,
            } => {
                let token = Token::new(Op::SendWait, slot, generation);
                assert!(self.waiting.iter().all(|w| w.token.slot != slot));
                self.waiting.push(Waiting {
                    token,
                    bytes,
                    from,
                    sent: 0,
                });
            }
            Operation::Cancel { token } => {
                // What is between two waits is not found, and goes on.
                let missed = self.random.random_range(0..6) == 0;
                if missed {
                    let token = Token::new(Op::Cancel, token.slot, token.generation);
                    self.late.push(plain(token, -libc::EALREADY));
                } else if let Some(at) = self.polls.iter().position(|poll| *poll == token) {
                    self.polls.swap_remove(at);
                    self.late.push(Completion {
                        more: false,
                        ..plain(token, -libc::ECANCELED)
                    });
                } else if let Some(at) = self.waiting.iter().position(|w| w.token == token) {
                    let waiting = self.waiting.swap_remove(at);
                    let result = match waiting.sent {
                        0 => -libc::ECANCELED,
                        sent => sent as i32,
                    };
                    self.late.push(Completion {
                        bytes: Some(waiting.bytes),
                        ..plain(token, result)
                    });
                } else {
                    let token = Token::new(Op::Cancel, token.slot, token.generation);
                    self.late.push(plain(token, -libc::ENOENT));
                }
            }
            Operation::Close { slot, generation } => {
                let mine = |token: &Token| {
                    token.slot == slot && token.generation == generation && token.op != Op::Cancel
                };
                assert!(!self.polls.iter().any(mine), "closed while polled");
                assert!(
                    !self.waiting.iter().any(|w| mine(&w.token)),
                    "closed while sending"
                );
                assert!(
                    !self.late.iter().any(|c| mine(&c.token) && !c.more),
                    "closed before the last completion"
                );
                self.peer(slot).closed = true;
                self.slots.remove(&slot);
            }
            other => panic!("a machine does not ask for {other:?}"),
        }
    }

    /// What peers and the kernel do between two enters.
    fn happen(&mut self) {
        for slot in self.slots.keys().copied().collect::<Vec<_>>() {
            let wrote = self.random.random_range(0..=400);
            let reads = self.random.random_range(0..=300);
            let dice = self.random.random_range(0..1000);
            let peer = self.peer(slot);
            let written: Vec<u8> = {
                let most = wrote.min(peer.to_write.len());
                peer.to_write.drain(..most).collect()
            };
            if !peer.reset && !peer.finished {
                peer.said.extend(&written);
                peer.inbound.extend(&written);
            }
            if !peer.reads_nothing {
                let most = reads.min(peer.outbound.len());
                let read: Vec<u8> = peer.outbound.drain(..most).collect();
                peer.read.extend(read);
            }
            let answered = peer.inbound.is_empty() && peer.outbound.is_empty();
            let finishes = peer.to_write.is_empty()
                && (answered || !peer.patient || peer.reads_nothing)
                && !peer.finished
                && dice < 300;
            peer.finished |= finishes;
            let resets = peer.rude && dice > 990;
            peer.reset |= resets;
            if !written.is_empty() || finishes || resets {
                self.wake(slot);
            }
        }
        for mut waiting in std::mem::take(&mut self.waiting) {
            let slot = waiting.token.slot;
            let rest = waiting.bytes[waiting.from + waiting.sent..].to_vec();
            waiting.sent += self.deliver(slot, &rest);
            let done = waiting.from + waiting.sent == waiting.bytes.len();
            let reset = self.peer(slot).reset;
            let short = waiting.sent > 0 && self.random.random_range(0..3) == 0;
            if done || reset || short {
                let result = if reset {
                    -libc::EPIPE
                } else {
                    waiting.sent as i32
                };
                self.late.push(Completion {
                    bytes: Some(waiting.bytes),
                    ..plain(waiting.token, result)
                });
            } else {
                self.waiting.push(waiting);
            }
        }
        let mut still_late = Vec::new();
        for completion in std::mem::take(&mut self.late) {
            match self.random.random_range(0..3) {
                0 => still_late.push(completion),
                _ => self.now.push(completion),
            }
        }
        self.late = still_late;
        self.now.shuffle(&mut self.random);
        // What a poll says about itself comes in order: nothing after its last word.
        self.now.sort_by_key(|c| c.token.op == Op::Poll && !c.more);
    }

    fn wake(&mut self, slot: u32) {
        let Some(at) = self.polls.iter().position(|poll| poll.slot == slot) else {
            return;
        };
        let ends = self.random.random_range(0..8) == 0;
        let peer = self.peer(slot);
        let mut result = i32::from(libc::POLLIN);
        if peer.finished || peer.reset {
            result |= i32::from(libc::POLLRDHUP);
        }
        if peer.reset {
            result |= i32::from(libc::POLLHUP | libc::POLLERR);
        }
        let token = self.polls[at];
        // The kernel tells once of what has happened since it was last asked.
        if let Some(untold) = self.late.iter_mut().find(|c| c.token == token) {
            untold.result |= result;
            return;
        }
        if ends {
            self.polls.swap_remove(at);
        }
        self.late.push(Completion {
            more: !ends,
            ..plain(token, result)
        });
    }

    fn deliver(&mut self, slot: u32, bytes: &[u8]) -> usize {
        let window = self.window;
        let peer = self.peer(slot);
        if peer.reset {
            return 0;
        }
        let sent = bytes.len().min(window - peer.outbound.len().min(window));
        peer.outbound.extend(&bytes[..sent]);
        sent
    }

    fn peer(&mut self, slot: u32) -> &mut Peer {
        &mut self.peers[self.slots[&slot]]
    }
}

fn plain(token: Token, result: i32) -> Completion {
    Completion {
        token,
        result,
        more: false,
        input: Vec::new(),
        span: None,
        bytes: None,
    }
}

impl Completion {
    fn with_input(self, input: Vec<u8>) -> Completion {
        Completion { input, ..self }
    }
}

/// Plays the script of `seed` to its end, and returns the peers and what was counted.
fn play<S: Session>(
    seed: u64,
    session: fn() -> S,
    conversations: Vec<Vec<u8>>,
) -> (Vec<Peer>, Stats) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut unborn: Vec<Vec<u8>> = conversations;
    let mut script = Script {
        window: random.random_range(20..2000),
        random,
        peers: Vec::new(),
        slots: BTreeMap::new(),
        polls: Vec::new(),
        waiting: Vec::new(),
        late: Vec::new(),
        now: Vec::new(),
    };
    let mut machine: Machine<S> = Machine::new(SLOTS, 0);
    let mut arena = SendArena::new();
    let mut budget = Budget::new(Limits::default());
    let patience = Timeouts {
        idle: None,
        write: Some(Duration::from_secs(2)),
    };
    let rules = Sweep::new(patience, 0).rules(0);
    let mut stats = Stats::new();
    let (mut queued, mut ops): (Vec<Operation>, Vec<Operation>) = Default::default();
    for number in 2u32.. {
        assert!(number < 60_000, "seed {seed}: the connections do not end");
        // The enter.
        for operation in queued.drain(..) {
            script.run(operation, &arena);
        }
        arena.retire();
        script.happen();
        macro_rules! turn {
            () => {
                &mut Turn {
                    number,
                    now_ms: number,
                    tick: Tick::default(),
                    arena: &mut arena,
                    ops: &mut ops,
                    budget: &mut budget,
                    stats: &mut stats,
                }
            };
        }
        if machine.table().used() < SLOTS
            && let Some(conversation) = unborn.pop()
        {
            let slot = (0..SLOTS).find(|s| !script.slots.contains_key(s));
            let slot = slot.expect("the machine says that a slot is free");
            script.slots.insert(slot, script.peers.len());
            script.peers.push(Peer {
                to_write: conversation.into(),
                reads_nothing: script.random.random_range(0..12) == 0,
                patient: script.random.random_range(0..2) == 0,
                rude: script.random.random_range(0..8) == 0,
                ..Peer::default()
            });
            machine.accepted(slot, session(), turn!());
        }
        for completion in std::mem::take(&mut script.now) {
            let nonempty = completion.token.op == Op::Recv
                && script
                    .slots
                    .get(&completion.token.slot)
                    .is_some_and(|p| !script.peers[*p].inbound.is_empty());
            let event = Event {
                token: completion.token,
                result: completion.result,
                more: completion.more,
                input: &completion.input,
                nonempty,
                span: completion.span,
                bytes: completion.bytes,
            };
            machine.complete(event, turn!());
        }
        arena.release();
        let settled = number + 1;
        let mut turn = Turn {
            number: settled,
            now_ms: settled,
            tick: Tick::default(),
            arena: &mut arena,
            ops: &mut ops,
            budget: &mut budget,
            stats: &mut stats,
        };
        machine.settled(&mut turn);
        if script.random.random_range(0..4) == 0 {
            machine.tick(script.random.random_range(0..SLOTS), &mut turn);
        }
        machine.sweep(0..SLOTS, rules, &mut turn);
        queued.append(&mut ops);
        if unborn.is_empty() && machine.table().used() == 0 && queued.is_empty() {
            break;
        }
    }
    assert_eq!(machine.held(), 0);
    assert!(!machine.has_waiting_sends());
    assert_eq!(budget.used_bytes(), 0, "pending bytes leaked");
    assert_eq!(stats.closed.values().sum::<u64>(), stats.accepted);
    for peer in &mut script.peers {
        peer.read.extend(peer.outbound.drain(..));
    }
    (script.peers, stats)
}

#[test]
fn a_late_completion_finds_nobody() {
    let (mut arena, mut ops, mut stats) = (SendArena::new(), Vec::new(), Stats::new());
    let mut budget = Budget::new(Limits::default());
    let mut turn = Turn {
        number: 2,
        now_ms: 0,
        tick: Tick::default(),
        arena: &mut arena,
        ops: &mut ops,
        budget: &mut budget,
        stats: &mut stats,
    };
    let mut machine: Machine<Echo> = Machine::new(SLOTS, 0);
    machine.refuse(0, b"", &mut turn);
    machine.accepted(0, Echo, &mut turn);
    for op in [Op::Poll, Op::Recv, Op::Send] {
        let late = plain(Token::new(op, 0, 0), -libc::ECONNRESET);
        let event = Event {
            token: late.token,
            result: late.result,
            more: false,
            input: &[],
            nonempty: false,
            span: None,
            bytes: None,
        };
        machine.complete(event, &mut turn);
    }
    assert_eq!(machine.held(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Every byte comes back once and in order, to each peer that reads, whatever happens to the others.
    #[test]
    fn echo_loses_doubles_and_reorders_nothing(seed: u64, lengths in proptest::collection::vec(0usize..6000, 1..30)) {
        let conversations = lengths.iter().enumerate().map(|(i, n)| (0..*n).map(|b| (b * 7 + i + b / 256) as u8).collect()).collect();
        let (peers, _) = play(seed, || Echo, conversations);
        for peer in peers {
            prop_assert!(peer.closed);
            let back = &peer.read;
            prop_assert_eq!(back, &peer.said[..back.len()]);
            if !peer.reset && !peer.reads_nothing {
                prop_assert_eq!(back.len(), peer.said.len());
            }
        }
    }

    /// Lines come back whole, heartbeats between them and never within.
    #[test]
    fn heartbeats_never_split_a_line(seed: u64, counts in proptest::collection::vec(0usize..60, 1..20)) {
        let conversations: Vec<Vec<u8>> = counts.iter().map(|n| (0..*n).flat_map(|i| format!("line {i} {}\n", "x".repeat(i * 5)).into_bytes()).collect()).collect();
        let (peers, stats) = play(seed, Line::default, conversations);
        prop_assert_eq!(stats.closed.get(&CloseReason::Failed), None);
        for peer in peers {
            let text = String::from_utf8_lossy(&peer.read).into_owned();
            let mut lines = text.split_inclusive('\n').filter(|l| *l != "ok\n");
            if let Some(greeting) = lines.next() {
                prop_assert!("Welcome to the echo server! Type quit to exit.\r\n".starts_with(greeting));
            }
            let back: String = lines.collect();
            let said = String::from_utf8_lossy(&peer.said).into_owned();
            prop_assert!(said.starts_with(back.trim_end_matches("ok").trim_end_matches('o')), "{back:?} of {said:?}");
            if !peer.reset && !peer.reads_nothing {
                prop_assert_eq!(back, said);
            }
        }
    }
}
