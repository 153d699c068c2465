//! The word that was probably meant.

/// The nearest of the known words, when it is near: at most a third of the letters differ.
pub(super) fn nearest<'k>(text: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    // Longer texts are no typing mistakes of a known word.
    if text.is_empty() || text.len() > 64 {
        return None;
    }
    known
        .map(|word| (distance(&text.to_lowercase(), &word.to_lowercase()), word))
        .filter(|(distance, word)| *distance <= word.chars().count().max(text.chars().count()).div_ceil(3).min(3))
        .min()
        .map(|(_, word)| word)
}

/// How many letters have to be put in, taken out, replaced or exchanged with the next (optimal string alignment).
fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    // Row `i`, column `j`: from the first `i` letters to the first `j`.
    let mut rows = vec![vec![0; other.len() + 1]; one.len() + 1];
    for i in 0..=one.len() {
        for j in 0..=other.len() {
            rows[i][j] = match (i, j) {
                (0, _) => j,
                (_, 0) => i,
                _ => {
                    let replaced = rows[i - 1][j - 1] + usize::from(one[i - 1] != other[j - 1]);
                    let least = replaced.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                    if i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1] {
                        least.min(rows[i - 2][j - 2] + 1)
                    } else {
                        least
                    }
                }
            };
        }
    }
    rows[one.len()][other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognized_and_another_word_is_not() {
        let known = || ["forbid", "allow", "tagOwners"].into_iter();
        assert_eq!(nearest("alow", known()), Some("allow"));
        assert_eq!(nearest("tagowners", known()), Some("tagOwners"));
        assert_eq!(nearest("forbids", known()), Some("forbid"));
        assert_eq!(nearest("allwo", known()), Some("allow"));
        assert_eq!(nearest("deny", known()), None);
    }
}
