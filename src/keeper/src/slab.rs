//! Numbered places for values, reused when freed.

/// Values by number. Each place counts how often it was freed, so that a stale number can be told from a new one.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    places: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub(crate) fn new() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }

    pub(crate) fn insert(&mut self, value: T) -> u32 {
        if let Some(number) = self.free.pop() {
            self.places[number as usize].1 = Some(value);
            return number;
        }
        self.places.push((0, Some(value)));
        (self.places.len() - 1) as u32
    }

    pub(crate) fn remove(&mut self, number: u32) -> Option<T> {
        let place = self.places.get_mut(number as usize)?;
        let value = place.1.take()?;
        place.0 = (place.0 + 1) & 0xff_ffff;
        self.free.push(number);
        Some(value)
    }

    /// How often the place was freed, below 2^24.
    pub(crate) fn generation(&self, number: u32) -> u32 {
        self.places.get(number as usize).map_or(0, |(generation, _)| *generation)
    }

    pub(crate) fn get(&self, number: u32) -> Option<&T> {
        self.places.get(number as usize)?.1.as_ref()
    }

    pub(crate) fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.places.get_mut(number as usize)?.1.as_mut()
    }

    pub(crate) fn numbers(&self) -> Vec<u32> {
        self.iter().map(|(number, _)| number).collect()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.places.iter().enumerate().filter_map(|(number, (_, value))| Some((number as u32, value.as_ref()?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_place_has_another_generation() {
        let mut slab = Slab::new();
        let a = slab.insert('a');
        let before = slab.generation(a);
        assert_eq!(slab.remove(a), Some('a'));
        assert_eq!(slab.remove(a), None);
        let b = slab.insert('b');
        assert_eq!(a, b);
        assert_ne!(before, slab.generation(b));
        assert_eq!(slab.iter().count(), 1);
    }
}
