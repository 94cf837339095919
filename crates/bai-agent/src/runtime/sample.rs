//! One measurement of a kernel, as every runtime takes it.
//!
//! Invariants: measuring never fails; what cannot be measured is zero.
//!
//! Not here: what is told of it, and how large its folder is (`stats`).

/// What a kernel has used so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Milliseconds.
    pub cpu: f64,
    /// Bytes.
    pub memory: u64,
    pub memory_peak: u64,
    /// Bytes of block devices.
    pub read: u64,
    pub written: u64,
    /// Bytes received and sent, where the kernel has a network of its own.
    pub network: Option<(u64, u64)>,
}

/// Bytes received and sent by all interfaces but the loopback in a `net/dev` of `/proc`.
pub fn network(text: &str) -> (u64, u64) {
    let interface = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers
            .split_ascii_whitespace()
            .filter_map(|number| number.parse().ok())
            .collect();
        // The first of eight each way is the number of bytes.
        (name.trim() != "lo").then_some((*numbers.first()?, *numbers.get(8)?))
    };
    let sums = text.lines().filter_map(interface);
    sums.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_does_not_count() {
        let text = "Inter-|   Receive  |  Transmit\n face |bytes packets|bytes packets\n\
                    lo: 7 1 0 0 0 0 0 0 7 1 0 0 0 0 0 0\n\
                    eth0: 100 1 0 0 0 0 0 0 20 1 0 0 0 0 0 0\n  eth1:5 1 0 0 0 0 0 0 6 1 0 0 0 0 0 0\n";
        assert_eq!(network(text), (105, 26));
    }
}
