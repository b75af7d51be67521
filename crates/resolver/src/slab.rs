//! Things by small numbers, with which events name them, and by serial numbers, which are never used twice.

/// Names a thing, or nothing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Its place.
    pub place: usize,
    serial: u64,
}

/// Things.
#[derive(Debug)]
pub struct Slab<T> {
    places: Vec<Option<(u64, T)>>,
    free: Vec<usize>,
    serial: u64,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new(), serial: 0 }
    }
}

impl<T> Slab<T> {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// The key that the next one gets.
    pub fn next_key(&self) -> Key {
        Key { place: self.free.last().copied().unwrap_or(self.places.len()), serial: self.serial + 1 }
    }

    /// Adds one.
    pub fn insert(&mut self, thing: T) -> Key {
        let key = self.next_key();
        self.serial = key.serial;
        match self.free.pop() {
            Some(place) => self.places[place] = Some((key.serial, thing)),
            None => self.places.push(Some((key.serial, thing))),
        }
        key
    }

    /// The key of what is at a place now.
    pub fn key_at(&self, place: usize) -> Option<Key> {
        let (serial, _) = self.places.get(place)?.as_ref()?;
        Some(Key { place, serial: *serial })
    }

    /// One of them.
    pub fn get(&self, key: Key) -> Option<&T> {
        let (serial, thing) = self.places.get(key.place)?.as_ref()?;
        (*serial == key.serial).then_some(thing)
    }

    /// One of them, to change it.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let (serial, thing) = self.places.get_mut(key.place)?.as_mut()?;
        (*serial == key.serial).then_some(thing)
    }

    /// Takes one away.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        self.get(key)?;
        self.free.push(key.place);
        self.places[key.place].take().map(|(_, thing)| thing)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.places.iter().enumerate().filter_map(|(place, thing)| {
            thing.as_ref().map(|(serial, thing)| (Key { place, serial: *serial }, thing))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_does_not_name_what_came_after() {
        let mut slab = Slab::default();
        let first = slab.insert('a');
        assert_eq!(slab.remove(first), Some('a'));
        let second = slab.insert('b');
        assert_eq!((first.place, slab.count()), (second.place, 1));
        assert_eq!(slab.get(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!((slab.get(second), slab.key_at(0)), (Some(&'b'), Some(second)));
    }
}
