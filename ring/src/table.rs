//! A table of direct descriptors, as its user counts it: what is taken, how often each slot was reused, and
//! whether there is room for a burst of accepts.
//!
//! Pure. Invariant: `used` is the number of slots opened and not yet closed, and a slot's generation changes
//! exactly when it is closed.

/// Capacity, use and generations of one ring's table.
#[derive(Debug)]
pub struct Table {
    capacity: u32,
    headroom: u32,
    used: u32,
    /// Generations of the slots ever opened: index is the slot.
    generations: Vec<u16>,
}

/// How much may still be accepted into a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// More slots are free than one pass of a multishot accept can take.
    Plenty,
    /// So many slots are free that accepts must be counted one by one.
    Counted(u32),
    /// No slot is free.
    Full,
}

impl Table {
    /// A table of `capacity` slots. A multishot accept takes a whole backlog in one pass, before its first
    /// completion is seen; `headroom` is what such a pass may take, and below it accepts are counted.
    pub fn new(capacity: u32, headroom: u32) -> Table {
        Table {
            capacity,
            headroom,
            used: 0,
            generations: Vec::with_capacity(capacity as usize),
        }
    }

    /// Slot `slot` now holds a connection. Returns its generation.
    pub fn open(&mut self, slot: u32) -> u16 {
        debug_assert!(slot < self.capacity && self.used < self.capacity);
        if self.generations.len() <= slot as usize {
            self.generations.resize(slot as usize + 1, 0);
        }
        self.used += 1;
        self.generations[slot as usize]
    }

    /// Slot `slot` is free again; completions of its old generation find nobody.
    pub fn close(&mut self, slot: u32) {
        debug_assert!(self.used > 0);
        self.used -= 1;
        let generation = &mut self.generations[slot as usize];
        *generation = generation.wrapping_add(1);
    }

    /// The generation `slot` is in, or will be in when it is opened next.
    pub fn generation(&self, slot: u32) -> u16 {
        self.generations.get(slot as usize).copied().unwrap_or(0)
    }

    /// Slots in use.
    pub fn used(&self) -> u32 {
        self.used
    }

    /// Slots in all.
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// One past the highest slot ever opened.
    pub fn high_water(&self) -> u32 {
        self.generations.len() as u32
    }

    /// What may be accepted into this table now, where as many as `unseen` connections are in it that have not been
    /// opened yet.
    pub fn room(&self, unseen: u32) -> Room {
        match self.capacity - self.used {
            0 => Room::Full,
            free if free > self.headroom.saturating_add(unseen) => Room::Plenty,
            free => Room::Counted(free),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn generations_tell_lives_apart(steps in proptest::collection::vec((0u32..8, any::<bool>()), 0..200)) {
            let mut table = Table::new(8, 3);
            let mut open = BTreeMap::new();
            let mut lives = [0u16; 8];
            for (slot, wants_open) in steps {
                match (wants_open, open.contains_key(&slot)) {
                    (true, false) => { open.insert(slot, table.open(slot)); }
                    (false, true) => {
                        let generation = open.remove(&slot);
                        table.close(slot);
                        lives[slot as usize] += 1;
                        prop_assert_ne!(generation, Some(table.generation(slot)));
                    }
                    _ => {}
                }
                prop_assert_eq!(table.used() as usize, open.len());
                prop_assert_eq!(table.generation(slot), lives[slot as usize]);
                let free = 8 - table.used();
                prop_assert_eq!(table.room(0), match free { 0 => Room::Full, 1..=3 => Room::Counted(free), _ => Room::Plenty });
            }
        }
    }
}
