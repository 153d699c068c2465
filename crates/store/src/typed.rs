//! Records instead of bytes.

use async_trait::async_trait;

use crate::schema::{Key, Prefix, Record};
use crate::{Compare, Entry, Op, Range, Revision, Store, StoreError, Txn, TxnOutcome};

/// How many entries one read of [`Typed::list_all`] asks for.
const CHUNK: usize = 1000;

/// A record with its key and the revision that last changed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Versioned<T> {
    pub key: String,
    pub record: T,
    pub modified: Revision,
}

impl<T: Record> Versioned<T> {
    fn parse(entry: Entry) -> Result<Self, StoreError> {
        let record = decode(&entry.key, &entry.value)?;
        Ok(Self { key: entry.key, record, modified: entry.modified })
    }
}

/// Reads a record from the bytes of a change or an entry.
pub fn decode<T: Record>(key: &str, value: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(value).map_err(|source| StoreError::Corrupt { key: key.to_owned(), source })
}

/// Typed reads of every [`Store`].
#[async_trait]
pub trait Typed {
    async fn read<T: Record>(&self, key: &Key<T>) -> Result<Option<Versioned<T>>, StoreError>;

    /// One page below the prefix: the records, and whether there are more.
    async fn list_page<T: Record>(
        &self,
        prefix: &Prefix<T>,
        after: Option<String>,
        limit: usize,
    ) -> Result<(Vec<Versioned<T>>, bool), StoreError>;

    /// Everything below the prefix, and a revision from which a watch misses nothing.
    async fn list_all<T: Record>(&self, prefix: &Prefix<T>) -> Result<(Vec<Versioned<T>>, Revision), StoreError>;
}

#[async_trait]
impl<S: Store + ?Sized> Typed for S {
    async fn read<T: Record>(&self, key: &Key<T>) -> Result<Option<Versioned<T>>, StoreError> {
        self.get(key.as_str()).await?.map(Versioned::parse).transpose()
    }

    async fn list_page<T: Record>(
        &self,
        prefix: &Prefix<T>,
        after: Option<String>,
        limit: usize,
    ) -> Result<(Vec<Versioned<T>>, bool), StoreError> {
        let page = self.list(Range { prefix: prefix.as_str().to_owned(), after, limit }).await?;
        let records = page.entries.into_iter().map(Versioned::parse).collect::<Result<_, _>>()?;
        Ok((records, page.more))
    }

    async fn list_all<T: Record>(&self, prefix: &Prefix<T>) -> Result<(Vec<Versioned<T>>, Revision), StoreError> {
        let mut records = Vec::new();
        let mut first_revision = None;
        let mut after = None;
        loop {
            let page = self.list(Range { prefix: prefix.as_str().to_owned(), after, limit: CHUNK }).await?;
            // A watch from the first page's revision also covers what changed between the pages.
            let revision = *first_revision.get_or_insert(page.revision);
            after = page.entries.last().map(|entry| entry.key.clone());
            for entry in page.entries {
                records.push(Versioned::parse(entry)?);
            }
            if !page.more {
                return Ok((records, revision));
            }
        }
    }
}

/// Puts a transaction together out of records.
#[derive(Debug, Default)]
#[must_use]
pub struct TxnBuilder {
    txn: Txn,
}

impl TxnBuilder {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn absent<T>(mut self, key: &Key<T>) -> Self {
        self.txn.compares.push(Compare::Absent { key: key.as_str().to_owned() });
        self
    }

    pub fn exists<T>(mut self, key: &Key<T>) -> Self {
        self.txn.compares.push(Compare::Exists { key: key.as_str().to_owned() });
        self
    }

    /// The record is still the one that was read.
    pub fn unchanged<T>(mut self, read: &Versioned<T>) -> Self {
        self.txn.compares.push(Compare::Unchanged { key: read.key.clone(), modified: read.modified });
        self
    }

    /// The record is still the one that was read, or still absent.
    pub fn same<T>(self, key: &Key<T>, read: Option<&Versioned<T>>) -> Self {
        match read {
            Some(read) => self.unchanged(read),
            None => self.absent(key),
        }
    }

    pub fn empty<T>(mut self, prefix: &Prefix<T>) -> Self {
        self.txn.compares.push(Compare::EmptyPrefix { prefix: prefix.as_str().to_owned() });
        self
    }

    pub fn put<T: Record>(mut self, key: &Key<T>, record: &T) -> Result<Self, StoreError> {
        let value = serde_json::to_vec(record)
            .map_err(|source| StoreError::Corrupt { key: key.as_str().to_owned(), source })?;
        self.txn.ops.push(Op::Put { key: key.as_str().to_owned(), value, lease: None });
        Ok(self)
    }

    pub fn delete<T>(mut self, key: &Key<T>) -> Self {
        self.txn.ops.push(Op::Delete { key: key.as_str().to_owned() });
        self
    }

    /// The keys that it deletes so far.
    pub(crate) fn deleted(&self) -> impl Iterator<Item = &str> {
        self.txn.ops.iter().filter_map(|op| match op {
            Op::Delete { key } => Some(key.as_str()),
            Op::Put { .. } => None,
        })
    }

    pub fn build(self) -> Txn {
        self.txn
    }

    pub async fn commit<S: Store + ?Sized>(self, store: &S) -> Result<TxnOutcome, StoreError> {
        store.txn(self.txn).await
    }
}
