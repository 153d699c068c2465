//! Samples, taken in turn.

use serde::Serialize;

use crate::interrupt;

/// Samples of one side.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Samples(Vec<f64>);

/// What one or two sides gave, in the order in which it was taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Pairs {
    pub warren: Samples,
    pub baseline: Samples,
}

impl Samples {
    /// Needs at least one sample.
    pub fn new(samples: Vec<f64>) -> anyhow::Result<Self> {
        anyhow::ensure!(!samples.is_empty(), "nothing was measured");
        Ok(Self(samples))
    }

    pub fn median(&self) -> f64 {
        self.percentile(50.0)
    }

    pub fn percentile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        percentile(&sorted, share)
    }

    pub fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl Pairs {
    /// The ratio of each pair: both were taken next to each other, so that a slow moment meets both.
    pub fn ratios(&self) -> Samples {
        Samples(self.warren.0.iter().zip(&self.baseline.0).map(|(warren, baseline)| warren / baseline).collect())
    }

    /// How much more Warren's side of each pair is than the baseline's.
    pub fn differences(&self) -> Samples {
        Samples(self.warren.0.iter().zip(&self.baseline.0).map(|(warren, baseline)| warren - baseline).collect())
    }
}

/// Measures both sides in turn, `count` times each, after one of each that does not count.
pub fn in_turn(
    count: usize,
    mut warren: impl FnMut() -> anyhow::Result<f64>,
    mut baseline: impl FnMut() -> anyhow::Result<f64>,
) -> anyhow::Result<Pairs> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for turn in 0..=count {
        interrupt::check()?;
        let one = warren()?;
        interrupt::check()?;
        let other = baseline()?;
        if turn > 0 {
            ours.push(one);
            theirs.push(other);
        }
    }
    Ok(Pairs { warren: Samples::new(ours)?, baseline: Samples::new(theirs)? })
}

/// The value below which this share (0 to 100) of the sorted values lies; between two values, their weighted mean.
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let place = share / 100.0 * last as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_ones() {
        let samples = Samples::new(vec![4.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((samples.median(), samples.min(), samples.max()), (2.5, 1.0, 4.0));
        assert_eq!(Samples::new(vec![7.0]).unwrap().percentile(99.0), 7.0);
        assert!(Samples::new(Vec::new()).is_err());
    }

    #[test]
    fn both_sides_take_turns_and_the_first_turn_does_not_count() {
        let order = std::cell::RefCell::new(String::new());
        let side = |name, value| {
            let order = &order;
            move || {
                order.borrow_mut().push(name);
                Ok(value)
            }
        };
        let pairs = in_turn(2, side('a', 3.0), side('b', 2.0)).unwrap();
        assert_eq!(order.into_inner(), "ababab");
        assert_eq!(pairs.ratios(), Samples::new(vec![1.5, 1.5]).unwrap());
        assert_eq!(pairs.differences(), Samples::new(vec![1.0, 1.0]).unwrap());
    }
}
