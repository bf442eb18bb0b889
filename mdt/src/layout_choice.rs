//! Which OSTs a new file is put on: round-robin, weighted by free space. Pure logic.
//!
//! Each choice adds every candidate's weight to its credit, takes the one with the most credit and takes the sum of all
//! weights off it ("smooth" weighted round-robin): equal weights take turns, and a target with twice the space is
//! chosen twice as often, evenly spread.

use std::collections::BTreeMap;

/// Free space of two targets that differs by less than this share counts as equal, as Lustre's `qos_threshold_rr`.
const EVEN_PERCENT: u64 = 17;

/// A target that could take an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Index of the OST.
    pub ost_index: u16,
    /// Free space.
    pub free_bytes: u64,
}

/// The rotation.
#[derive(Debug, Default)]
pub struct Chooser {
    credit: BTreeMap<u16, i64>,
}

impl Chooser {
    /// Up to `count` different targets among the candidates, best first. With `first` that one comes first and the others
    /// follow in the order of their indices.
    pub fn choose(&mut self, candidates: &[Candidate], count: usize, first: Option<u16>, chosen: &mut Vec<u16>) {
        chosen.clear();
        if let Some(first) = first {
            let start = candidates.iter().position(|candidate| candidate.ost_index >= first).unwrap_or(0);
            let order = candidates[start..].iter().chain(&candidates[..start]);
            chosen.extend(order.take(count).map(|candidate| candidate.ost_index));
            return;
        }
        if let [only] = candidates {
            chosen.extend((count > 0).then_some(only.ost_index));
            return;
        }
        for _ in 0..count.min(candidates.len()) {
            chosen.extend(self.next(candidates, chosen));
        }
    }

    fn next(&mut self, candidates: &[Candidate], taken: &[u16]) -> Option<u16> {
        let free = || candidates.iter().filter(|candidate| !taken.contains(&candidate.ost_index));
        let most = free().map(|candidate| candidate.free_bytes).max()?;
        let least = free().map(|candidate| candidate.free_bytes).min()?;
        let even = (most - least) / 100 < most / 100 * EVEN_PERCENT / 100 || most == least;
        let mut total = 0;
        let mut best: Option<(i64, u16)> = None;
        for candidate in free() {
            // MiB: sums of weights stay far below 2^63.
            let weight = if even { 1 } else { (candidate.free_bytes >> 20).max(1) as i64 };
            total += weight;
            let credit = self.credit.entry(candidate.ost_index).or_insert(0);
            *credit += weight;
            if best.is_none_or(|(most, _)| *credit > most) {
                best = Some((*credit, candidate.ost_index));
            }
        }
        let (_, index) = best?;
        if let Some(credit) = self.credit.get_mut(&index) {
            // Credit from a time of other weights must not make one target win or lose for long.
            *credit = (*credit - total).clamp(-2 * total, 2 * total);
        }
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(free_gib: &[u64]) -> Vec<Candidate> {
        let candidate = |(i, gib): (usize, &u64)| Candidate { ost_index: i as u16, free_bytes: gib << 30 };
        free_gib.iter().enumerate().map(candidate).collect()
    }

    fn counts(chooser: &mut Chooser, candidates: &[Candidate], rounds: usize) -> Vec<usize> {
        let mut counts = vec![0; candidates.len()];
        let mut chosen = Vec::new();
        for _ in 0..rounds {
            chooser.choose(candidates, 1, None, &mut chosen);
            counts[usize::from(chosen[0])] += 1;
        }
        counts
    }

    #[test]
    fn equal_targets_take_turns() {
        let mut chooser = Chooser::default();
        assert_eq!(counts(&mut chooser, &candidates(&[100, 95, 99]), 300), [100, 100, 100]);
    }

    #[test]
    fn space_attracts_files() {
        let mut chooser = Chooser::default();
        assert_eq!(counts(&mut chooser, &candidates(&[30, 10]), 400), [300, 100]);
        // Turning even again, neither is starved for having been preferred.
        assert_eq!(counts(&mut chooser, &candidates(&[10, 10]), 100), [50, 50]);
    }

    #[test]
    fn stripes_are_on_different_targets() {
        let mut chooser = Chooser::default();
        let targets = candidates(&[10, 1, 5]);
        let mut chosen = Vec::new();
        chooser.choose(&targets, 9, None, &mut chosen);
        chosen.sort_unstable();
        assert_eq!(chosen, [0, 1, 2]);
        chooser.choose(&targets, 2, Some(2), &mut chosen);
        assert_eq!(chosen, [2, 0]);
        chooser.choose(&[], 2, None, &mut chosen);
        assert!(chosen.is_empty());
    }
}
