//! Which counters of transport data came already (RFC 6479), so that a packet passes once.

const WORD: u64 = 64;
/// One more than what the window holds, for the word that is being filled.
const WORDS: u64 = 128;
/// How far behind the greatest counter a packet may be, as in Linux.
pub const WINDOW: u64 = (WORDS - 1) * WORD;

/// The counters that came, of the last [`WINDOW`] below the greatest.
#[derive(Clone)]
pub struct Window {
    /// One more than the greatest that came.
    next: u64,
    words: [u64; WORDS as usize],
}

impl Default for Window {
    fn default() -> Self {
        Self { next: 0, words: [0; WORDS as usize] }
    }
}

impl Window {
    /// Whether a packet with this counter is worth being decrypted.
    pub fn admits(&self, counter: u64) -> bool {
        if counter >= self.next {
            return true;
        }
        self.next - counter <= WINDOW && self.words[place(counter)] & bit(counter) == 0
    }

    /// Marks the counter of an authentic packet; false when it came before or is too old. Counters have to be less
    /// than 2^64 - 1.
    #[must_use]
    pub fn take(&mut self, counter: u64) -> bool {
        if !self.admits(counter) {
            return false;
        }
        if counter >= self.next {
            // The words between hold counters from a whole round ago.
            let (last, now) = (self.next.saturating_sub(1) / WORD, counter / WORD);
            for word in last + 1..=now.min(last.saturating_add(WORDS)) {
                self.words[(word % WORDS) as usize] = 0;
            }
            self.next = counter + 1;
        }
        self.words[place(counter)] |= bit(counter);
        true
    }
}

fn place(counter: u64) -> usize {
    (counter / WORD % WORDS) as usize
}

fn bit(counter: u64) -> u64 {
    1 << (counter % WORD)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_counter_passes_once_and_not_when_it_is_too_old() {
        let mut window = Window::default();
        assert!(window.take(0) && !window.take(0));
        assert!(window.take(WINDOW));
        assert!(!window.admits(0), "it came");
        assert!(window.take(1));
        assert!(window.take(WINDOW + 1) && !window.take(1));
        assert!(window.take(1 << 40));
        assert!(window.admits((1 << 40) - WINDOW + 1));
        assert!(!window.admits((1 << 40) - WINDOW), "too old");
        assert!(window.take(u64::MAX - 1) && !window.take(u64::MAX - 1) && !window.take(1 << 40));
    }

    #[test]
    fn a_first_counter_far_ahead_leaves_the_older_ones_their_turn() {
        let mut window = Window::default();
        assert!(window.take(100));
        for counter in (0..100).rev() {
            assert!(window.take(counter), "{counter}");
        }
        assert!((0..=100).all(|counter| !window.admits(counter)));
    }

    proptest! {
        #[test]
        fn it_does_what_a_set_of_all_counters_does(
            steps in proptest::collection::vec((0u64..20_000, any::<bool>()), 1..400)
        ) {
            let (mut window, mut seen, mut greatest) = (Window::default(), HashSet::new(), None::<u64>);
            for (step, far) in steps {
                let counter = if far { step } else { greatest.unwrap_or(0).saturating_sub(step % 100) + step % 7 };
                let old = greatest.is_some_and(|greatest| counter + WINDOW <= greatest);
                let wanted = !old && !seen.contains(&counter);
                prop_assert_eq!(window.take(counter), wanted, "{}", counter);
                if wanted {
                    seen.insert(counter);
                    greatest = greatest.max(Some(counter));
                }
            }
        }
    }
}
