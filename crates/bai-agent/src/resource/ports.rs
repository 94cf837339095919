//! Numbers that distinguish living kernels: host ports and small indices.
//!
//! Not here: opening ports (`kernel::listen`).

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

/// The host ports that kernels may have.
#[derive(Debug)]
pub struct Ports {
    range: RangeInclusive<u16>,
    used: BTreeSet<u16>,
    /// Where the search goes on, so that a port is not reused at once.
    next: u16,
}

impl Ports {
    pub fn new(range: RangeInclusive<u16>) -> Self {
        Self {
            next: *range.start(),
            range,
            used: BTreeSet::new(),
        }
    }

    /// `count` ports that nobody has; `None` (and nothing taken) if there are not so many.
    pub fn take(&mut self, count: usize) -> Option<Vec<u16>> {
        let from_next = (self.next..=*self.range.end()).chain(*self.range.start()..self.next);
        let taken: Vec<u16> = from_next
            .filter(|port| !self.used.contains(port))
            .take(count)
            .collect();
        if taken.len() < count {
            return None;
        }
        self.used.extend(&taken);
        if let Some(last) = taken.last() {
            self.next = if last == self.range.end() {
                *self.range.start()
            } else {
                last + 1
            };
        }
        Some(taken)
    }

    /// All of them, held or not.
    pub fn count(&self) -> usize {
        self.range.len()
    }

    pub fn restore(&mut self, ports: &[u16]) {
        self.used.extend(ports);
    }

    pub fn release(&mut self, ports: &[u16]) {
        for port in ports {
            self.used.remove(port);
        }
    }
}

/// Small numbers from 0, the smallest free one first.
#[derive(Debug, Default)]
pub struct Indices(BTreeSet<u32>);

impl Indices {
    pub fn take(&mut self) -> u32 {
        let free = (0..)
            .zip(&self.0)
            .find(|(free, used)| free != *used)
            .map(|(free, _)| free);
        let index = free.unwrap_or(self.0.len() as u32);
        self.0.insert(index);
        index
    }

    pub fn restore(&mut self, index: u32) {
        self.0.insert(index);
    }

    pub fn release(&mut self, index: u32) {
        self.0.remove(&index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_unique_and_come_back() {
        let mut ports = Ports::new(100..=103);
        let first = ports.take(2).expect("free");
        assert_eq!(first, [100, 101]);
        assert_eq!(ports.take(3), None);
        let second = ports.take(2).expect("free");
        assert_eq!(second, [102, 103]);
        ports.release(&first);
        assert_eq!(ports.take(1), Some(vec![100]));
        ports.restore(&[101]);
        assert_eq!(ports.take(1), None);
    }

    #[test]
    fn the_whole_range_can_be_used() {
        let mut ports = Ports::new(u16::MAX - 1..=u16::MAX);
        assert_eq!(ports.take(2), Some(vec![u16::MAX - 1, u16::MAX]));
    }

    #[test]
    fn indices_fill_gaps() {
        let mut indices = Indices::default();
        indices.restore(1);
        assert_eq!((indices.take(), indices.take()), (0, 2));
        indices.release(1);
        assert_eq!(indices.take(), 1);
    }
}
