//! Random transactions, against a sorted map.

use std::collections::BTreeMap;

use super::*;

const KEYS: [&str; 8] = ["a", "a/", "a/1", "a/1/x", "a/2", "a0", "b", "b/1"];
const PREFIXES: [&str; 7] = ["", "a", "a/", "a/1", "a/3", "b/", "c"];
const ROUNDS: usize = 600;

pub(super) async fn random_transactions_do_what_a_sorted_map_would(mut subject: Subject) {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut model = Model::default();
    let mut store = subject.store();
    let first = store.revision().await.unwrap() + 1;
    model.revision = first - 1;
    for round in 1..=ROUNDS {
        let txn = random.txn(&model);
        let outcome = store.txn(txn.clone()).await.unwrap();
        model.check(&txn, outcome);
        if round % 20 == 0 {
            for prefix in PREFIXES {
                assert!(everything(&*store, prefix).await == model.below(prefix), "below {prefix:?}");
            }
            let key = KEYS[random.below(KEYS.len())];
            assert_eq!(get(&*store, key).await, model.entries.get(key).cloned());
        }
        if round % 200 == 0 {
            drop(store);
            if round % 400 == 0 {
                subject.instance.reopen().await
            } else {
                subject.instance.crash().await
            }
            store = subject.store();
        }
    }
    let mut watch = store.watch("", first).await.unwrap();
    let mut replayed = BTreeMap::new();
    let mut last = 0;
    while last < model.revision {
        for change in next(&mut *watch).await {
            last = change.revision;
            match change.value {
                Some(value) => drop(replayed.insert(change.key, value)),
                None => assert!(replayed.remove(&change.key).is_some(), "{} was deleted twice", change.key),
            }
        }
    }
    let expected: BTreeMap<_, _> = model.entries.into_iter().map(|(key, entry)| (key, entry.value)).collect();
    assert_eq!(replayed, expected);
}

#[derive(Default)]
struct Model {
    revision: Revision,
    entries: BTreeMap<String, Entry>,
}

impl Model {
    fn below(&self, prefix: &str) -> Vec<Entry> {
        self.entries.values().filter(|entry| entry.key.starts_with(prefix)).cloned().collect()
    }

    fn holds(&self, compare: &Compare) -> bool {
        match compare {
            Compare::Absent { key } => !self.entries.contains_key(key),
            Compare::Exists { key } => self.entries.contains_key(key),
            Compare::Unchanged { key, modified } => {
                self.entries.get(key).is_some_and(|entry| entry.modified == *modified)
            }
            Compare::EmptyPrefix { prefix } => self.below(prefix).is_empty(),
        }
    }

    fn check(&mut self, txn: &Txn, outcome: TxnOutcome) {
        let failed: Vec<_> = txn
            .compares
            .iter()
            .enumerate()
            .filter(|(_, compare)| !self.holds(compare))
            .map(|(index, _)| index)
            .collect();
        let revision = match outcome {
            TxnOutcome::Conflict(found) => return assert_eq!(found, failed, "{txn:?}"),
            TxnOutcome::Committed(revision) => revision,
        };
        assert_eq!(failed, [0; 0], "{txn:?}");
        // The last op on a key is applied to what was there before the transaction.
        let last: BTreeMap<_, _> = txn
            .ops
            .iter()
            .map(|op| match op {
                Op::Put { key, value, .. } => (key, Some(value)),
                Op::Delete { key } => (key, None),
            })
            .collect();
        let changes = last.iter().any(|(key, value)| value.is_some() || self.entries.contains_key(*key));
        assert_eq!(revision > self.revision, changes, "{txn:?} got {revision} after {}", self.revision);
        self.revision = revision;
        for (key, value) in last {
            let Some(value) = value else {
                self.entries.remove(key);
                continue;
            };
            let created = self.entries.get(key).map_or(revision, |entry| entry.created);
            let entry = Entry { key: key.clone(), value: value.clone(), created, modified: revision };
            self.entries.insert(key.clone(), entry);
        }
    }
}

/// Marsaglia's xorshift64: the same sequence on every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }

    fn txn(&mut self, model: &Model) -> Txn {
        let compares = (0..self.below(3)).map(|_| self.compare(model)).collect();
        let ops = (0..self.below(5))
            .map(|_| {
                let key = KEYS[self.below(KEYS.len())];
                if self.below(3) == 0 { delete_op(key) } else { put_op(key, &self.below(1000).to_string()) }
            })
            .collect();
        Txn { compares, ops }
    }

    fn compare(&mut self, model: &Model) -> Compare {
        let key = KEYS[self.below(KEYS.len())].to_owned();
        match self.below(5) {
            0 => Compare::Absent { key },
            1 => Compare::Exists { key },
            2 => Compare::EmptyPrefix { prefix: PREFIXES[self.below(PREFIXES.len())].into() },
            _ => {
                let off = u64::from(self.below(4) == 0);
                let modified = model.entries.get(&key).map_or(1, |entry| entry.modified) + off;
                Compare::Unchanged { key, modified }
            }
        }
    }
}
