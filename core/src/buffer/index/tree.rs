//! How the tree changes: one run in, one run out, nodes split and merged on the way back up.

use super::{ENTRIES_MAX, ENTRIES_MIN, Entry, Full, Index, LEVELS_MAX, NONE, Node, Path, Step, ZEROES};

impl Index<'_> {
    /// An empty one where there is none, which is not asked for.
    pub(super) fn node(&self, number: u32) -> &Node {
        debug_assert!((number as usize) < self.nodes.len());
        self.nodes.get(number as usize).unwrap_or(&Node::EMPTY)
    }

    fn node_mut(&mut self, number: u32) -> Option<&mut Node> {
        let node = self.nodes.get_mut(number as usize);
        debug_assert!(node.is_some());
        node
    }

    /// Two different nodes at once.
    fn pair_mut(&mut self, one: u32, other: u32) -> Option<[&mut Node; 2]> {
        let pair = self.nodes.get_disjoint_mut([one as usize, other as usize]).ok();
        debug_assert!(pair.is_some());
        pair
    }

    /// A node with nothing in it. There is one: by X3 as many runs as are let in need no more nodes than there are.
    fn take_node(&mut self) -> u32 {
        let number = if self.free == NONE {
            self.untouched += 1;
            self.untouched - 1
        } else {
            let number = self.free;
            self.free = self.node(number).next;
            number
        };
        if let Some(node) = self.node_mut(number) {
            node.len = 0;
            node.next = NONE;
        }
        number
    }

    fn give_node_back(&mut self, number: u32) {
        let free = self.free;
        if let Some(node) = self.node_mut(number) {
            node.next = free;
            self.free = number;
        }
    }

    /// The way to the leaf that `key` belongs to. In inner nodes the position is that of the child, in the leaf the
    /// number of runs that begin at or before `key`.
    fn path_to(&self, key: u64) -> Path {
        let mut path = Path::new();
        let mut node = self.root;
        for level in 0..=self.height {
            let rank = self.node(node).rank(key);
            let position = if level < self.height { rank.saturating_sub(1) } else { rank };
            // There is room for as many levels as there can be.
            if path.push(Step { node, position }).is_err() {
                break;
            }
            node = self.node(node).entry(position).slot;
        }
        path
    }

    /// Restores X2 above a node whose first entry has changed; `above` is the way to it.
    fn publish_first_key(&mut self, changed: u32, above: &[Step]) {
        let key = self.node(changed).entries[0].first;
        for step in above.iter().rev() {
            self.set_key(*step, key);
            if step.position != 0 {
                return;
            }
        }
    }

    fn set_key(&mut self, at: Step, key: u64) {
        if let Some(entry) = self.node_mut(at.node).and_then(|node| node.entries.get_mut(at.position)) {
            entry.first = key;
        }
    }

    fn count_granules(&mut self, entry: &Entry, is_added: bool) {
        let counter = if entry.slot == ZEROES { &mut self.zero_granules } else { &mut self.data_granules };
        let count = u64::from(entry.count);
        *counter = if is_added { *counter + count } else { *counter - count };
    }

    /// Changes the run that begins where `entry` does. There is one.
    pub(super) fn replace(&mut self, entry: Entry) {
        if let Some((leaf, position @ 1..)) = self.leaf_of(entry.first)
            && let Some(place) = self.node_mut(leaf).and_then(|node| node.entries.get_mut(position - 1))
        {
            let old = core::mem::replace(place, entry);
            debug_assert_eq!(old.first, entry.first);
            self.count_granules(&old, false);
            self.count_granules(&entry, true);
        }
    }

    /// What [`Index::set`] mostly does, with a single descent, since what is far apart in a large tree is not in the
    /// processor's cache: a run that overlaps none joins the one before it or is added. `None` if it overlaps one or the run
    /// behind goes on where it ends; nothing was changed then.
    pub(super) fn set_in_gap(&mut self, run: Entry) -> Option<Result<(), Full>> {
        if self.root == NONE {
            return None;
        }
        let path = self.path_to(run.first);
        let leaf = path.last()?;
        let node = self.node(leaf.node);
        let before = leaf.position.checked_sub(1).map(|position| node.entry(position));
        let after = match node.entries().get(leaf.position) {
            Some(entry) => Some(*entry),
            None if node.next == NONE => None,
            None => Some(self.node(node.next).entry(0)),
        };
        if before.is_some_and(|entry| entry.end() > run.first)
            || after.is_some_and(|entry| entry.first < run.end() || run.joined(&entry).is_some())
        {
            return None;
        }
        if let Some(joined) = before.and_then(|entry| entry.joined(&run)) {
            let position = leaf.position - 1;
            *self.node_mut(leaf.node)?.entries.get_mut(position)? = joined;
            self.count_granules(&run, true);
        } else if self.entry_count < self.entry_capacity {
            self.insert_along(&path, run);
        } else {
            return Some(Err(Full));
        }
        Some(Ok(()))
    }

    /// Adds a run that overlaps none, and for which there is room.
    pub(super) fn insert(&mut self, run: Entry) {
        if self.root != NONE {
            let path = self.path_to(run.first);
            return self.insert_along(&path, run);
        }
        self.count_granules(&run, true);
        self.entry_count += 1;
        self.root = self.take_node();
        self.insert_into(self.root, 0, run);
    }

    /// The same, where the way to its leaf is known.
    fn insert_along(&mut self, path: &[Step], run: Entry) {
        self.count_granules(&run, true);
        self.entry_count += 1;
        let (mut entry, mut shift, mut way) = (run, 0, path);
        while let Some((step, above)) = way.split_last() {
            let position = step.position + shift;
            let split = self.insert_into(step.node, position, entry);
            if position == 0 {
                self.publish_first_key(step.node, above);
            }
            let Some(right) = split else { return };
            // The right half comes after the child that was split.
            entry = Entry::child(self.node(right).entries[0].first, right);
            (shift, way) = (1, above);
        }
        self.grow(entry);
    }

    /// Puts an entry into a node; a full one is split in two halves. Gives the right half.
    fn insert_into(&mut self, number: u32, position: usize, entry: Entry) -> Option<u32> {
        let node = self.node_mut(number)?;
        if (node.len as usize) < ENTRIES_MAX {
            node.insert_at(position, entry);
            return None;
        }
        let right_number = self.take_node();
        let [left, right] = self.pair_mut(number, right_number)?;
        let goes_left = position < ENTRIES_MIN;
        let kept = if goes_left { ENTRIES_MIN - 1 } else { ENTRIES_MIN };
        let moved = ENTRIES_MAX - kept;
        right.entries[..moved].copy_from_slice(&left.entries[kept..]);
        right.len = moved as u32;
        right.next = left.next;
        left.len = kept as u32;
        left.next = right_number;
        if goes_left {
            left.insert_at(position, entry);
        } else {
            right.insert_at(position - ENTRIES_MIN, entry);
        }
        Some(right_number)
    }

    /// A new root over the old one and its new right half.
    fn grow(&mut self, right: Entry) {
        let old = self.root;
        let left = Entry::child(self.node(old).entries[0].first, old);
        let root = self.take_node();
        self.insert_into(root, 0, left);
        self.insert_into(root, 1, right);
        self.root = root;
        self.height += 1;
        debug_assert!(self.height < LEVELS_MAX);
    }

    /// Takes out the run that begins at `key`. There is one.
    pub(super) fn remove(&mut self, key: u64) {
        let path = self.path_to(key);
        let Some((leaf, mut way)) = path.split_last() else { return };
        let Some(position) = leaf.position.checked_sub(1) else { return };
        debug_assert_eq!(self.node(leaf.node).entry(position).first, key);
        let Some(node) = self.node_mut(leaf.node) else { return };
        let removed = node.remove_at(position);
        self.count_granules(&removed, false);
        self.entry_count -= 1;
        if self.entry_count == 0 {
            self.clear();
            return;
        }
        if position == 0 {
            self.publish_first_key(leaf.node, way);
        }
        let mut child = leaf;
        while let Some((parent, above)) = way.split_last() {
            if self.node(child.node).len as usize >= ENTRIES_MIN || !self.refill(*parent) {
                return;
            }
            (child, way) = (parent, above);
        }
        self.shrink();
    }

    /// Brings a child that is one entry short up to half full: by an entry of its neighbour, or by merging the two.
    /// `at` is the child's place in its parent. True if they were merged, so that the parent has one entry less.
    fn refill(&mut self, at: Step) -> bool {
        let parent = self.node(at.node);
        let has_right = at.position + 1 < parent.len as usize;
        let right_at = Step { position: at.position + usize::from(has_right), ..at };
        let left_number = parent.entry(right_at.position - 1).slot;
        let right_number = parent.entry(right_at.position).slot;
        let Some([left, right]) = self.pair_mut(left_number, right_number) else { return false };
        let (left_len, right_len) = (left.len as usize, right.len as usize);
        if left_len + right_len <= ENTRIES_MAX {
            for (place, entry) in left.entries.iter_mut().skip(left_len).zip(right.entries()) {
                *place = *entry;
            }
            left.len += right.len;
            left.next = right.next;
            self.give_node_back(right_number);
            if let Some(parent) = self.node_mut(at.node) {
                parent.remove_at(right_at.position);
            }
            return true;
        }
        if left_len < right_len {
            let moved = right.remove_at(0);
            left.insert_at(left_len, moved);
        } else {
            let moved = left.remove_at(left_len - 1);
            right.insert_at(0, moved);
        }
        let key = right.entries[0].first;
        self.set_key(right_at, key);
        false
    }

    /// A root with a single child gives way to it.
    fn shrink(&mut self) {
        if self.height > 0 && self.node(self.root).len == 1 {
            let old = self.root;
            self.root = self.node(old).entries[0].slot;
            self.height -= 1;
            self.give_node_back(old);
        }
    }
}
