//! Changing an input at random.

/// Values at which parsers go wrong, as numbers in text.
const LIMITS: [&str; 10] =
    ["0", "-1", "127", "255", "256", "65535", "65536", "4294967295", "4294967296", "18446744073709551616"];

/// Random numbers that are the same in every run (splitmix64).
pub struct Random(u64);

impl Random {
    pub fn new(name: &str, seed: u64) -> Self {
        let name = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        Self(name ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Less than `bound`; 0 when that is 0.
    fn below(&mut self, bound: usize) -> usize {
        (self.next() % (bound as u64).max(1)) as usize
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.below(from.len()))
    }
}

/// One of the inputs, changed in one to eight places.
pub fn next(inputs: &[Vec<u8>], words: &[&[u8]], longest: usize, random: &mut Random) -> Vec<u8> {
    let mut input = random.pick(inputs).cloned().unwrap_or_default();
    for _ in 0..=random.below(8) {
        change(&mut input, inputs, words, longest, random);
        input.truncate(longest);
    }
    input
}

fn change(input: &mut Vec<u8>, inputs: &[Vec<u8>], words: &[&[u8]], longest: usize, random: &mut Random) {
    let at = random.below(input.len() + 1);
    let most = 1 << random.below(12);
    let length = random.below((input.len() - at).min(most) + 1);
    match random.below(13) {
        0 => set(input, at, |byte| byte ^ 1 << random.below(8)),
        1 => set(input, at, |_| random.byte()),
        2 => {
            let step = random.below(16) as u8;
            set(input, at, |byte| byte.wrapping_add(step).wrapping_sub(8));
        }
        3 => put(input, at, number(random).as_slice()),
        4 => drop(input.drain(at..at + length)),
        5 => input.truncate(at),
        6 => {
            let bytes: Vec<u8> = (0..=random.below(8)).map(|_| random.byte()).collect();
            insert(input, at, &bytes);
        }
        // Once more, or many times: nesting and repetition.
        7 => {
            let doublings = if random.below(8) == 0 { 12 } else { 3 };
            let times = 1 << random.below(doublings);
            let room = longest.saturating_sub(input.len()) / length.max(1);
            let bytes = input[at..at + length].repeat(room.min(times));
            insert(input, at, &bytes);
        }
        8 => {
            let word = random.pick(words).copied().unwrap_or_default();
            insert(input, at, word);
        }
        9 => {
            let word = random.pick(words).copied().unwrap_or_default();
            put(input, at, word);
        }
        // The beginning of this one, the end of another.
        10 => {
            if let Some(other) = random.pick(inputs) {
                let from = random.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
        11 => {
            let bytes = input[at..at + length].to_vec();
            let to = random.below(input.len() + 1);
            put(input, to, &bytes);
        }
        _ => {
            let first = input[at..].iter().position(u8::is_ascii_digit).map(|first| at + first);
            if let (Some(first), Some(limit)) = (first, random.pick(&LIMITS)) {
                let digits = input[first..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                input.splice(first..first + digits, limit.bytes());
            }
        }
    }
}

/// A number at a limit, in one, two, three or four bytes.
fn number(random: &mut Random) -> Vec<u8> {
    let bits = [0, 7, 8, 14, 15, 16, 24, 31, 32];
    let limit = random.pick(&bits).map_or(0, |bits| 1u64 << bits);
    let value = limit.wrapping_add(random.below(3) as u64).wrapping_sub(1);
    let mut bytes = value.to_be_bytes()[8 - 1 - random.below(4)..].to_vec();
    if random.below(4) == 0 {
        bytes.reverse();
    }
    bytes
}

fn set(input: &mut [u8], at: usize, change: impl FnOnce(u8) -> u8) {
    if let Some(byte) = input.get_mut(at) {
        *byte = change(*byte);
    }
}

fn put(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = (at + bytes.len()).min(input.len());
    input.splice(at..end, bytes.iter().copied());
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    input.splice(at..at, bytes.iter().copied());
}
