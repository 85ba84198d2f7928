//! The chain of hashes: each record's hash covers all that it says, its number and the hash before it.

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};

use super::Entry;

/// What every hashed record begins with: another form of them would have another number.
const FORM: &[u8] = b"device-ota audit 1\n";
/// The hash before the first record.
const NONE: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The end of the chain so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Number of the last record; 0 before the first.
    pub number: i64,
    /// Its hash, in hex.
    pub hash: String,
}

impl Default for Head {
    fn default() -> Self {
        Self {
            number: 0,
            hash: NONE.to_owned(),
        }
    }
}

/// An entry in the chain, in the texts that the database keeps: what was tampered with must still be readable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its place: 1, 2, 3, …
    pub number: i64,
    /// When, in microseconds since 1970.
    pub at: i64,
    /// Who.
    pub subject: String,
    /// What they might do: names of roles, separated by spaces.
    pub roles: String,
    /// How they were known.
    pub authentication: String,
    /// In which request; empty where there was none.
    pub request_id: String,
    /// Where the request came from.
    pub peer: Option<String>,
    /// The name of an [`super::Act`], which a later version may have written.
    pub action: String,
    /// The name of an [`super::Entity`].
    pub entity: String,
    /// To what.
    pub entity_id: String,
    /// JSON text.
    pub before: Option<String>,
    /// JSON text.
    pub after: Option<String>,
    /// The hash of the record before.
    pub prev: String,
    /// The hash of this one.
    pub hash: String,
}

impl Record {
    /// The entry, as the record behind `head`.
    pub fn behind(head: &Head, entry: &Entry) -> Self {
        let text = |state: &Option<serde_json::Value>| state.as_ref().map(ToString::to_string);
        let mut record = Self {
            number: head.number + 1,
            at: entry.at.as_microsecond(),
            subject: entry.actor.subject.to_string(),
            roles: entry.actor.roles.to_string(),
            authentication: entry.actor.authentication.to_string(),
            request_id: entry.actor.request_id.to_string(),
            peer: entry.actor.peer.map(|peer| peer.to_string()),
            action: entry.act.name().to_owned(),
            entity: entry.act.entity().name().to_owned(),
            entity_id: entry.entity_id.clone(),
            before: text(&entry.before),
            after: text(&entry.after),
            prev: head.hash.clone(),
            hash: String::new(),
        };
        record.hash = record.hash_of_what_it_says();
        record
    }

    /// The head that the chain has with this record.
    pub fn head(&self) -> Head {
        Head {
            number: self.number,
            hash: self.hash.clone(),
        }
    }

    /// When; a time beyond all times is the last.
    pub fn at(&self) -> Timestamp {
        Timestamp::from_microsecond(self.at).unwrap_or(Timestamp::MAX)
    }

    /// SHA-256 over the form's name and then each field in its order: a byte 0 for none; or a byte 1, the length in bytes
    /// as eight bytes, the highest first, and the bytes of the text. So no two records have the same bytes.
    fn hash_of_what_it_says(&self) -> String {
        let (number, at) = (self.number.to_string(), self.at.to_string());
        let fields = [
            Some(self.prev.as_str()),
            Some(number.as_str()),
            Some(at.as_str()),
            Some(self.subject.as_str()),
            Some(self.roles.as_str()),
            Some(self.authentication.as_str()),
            Some(self.request_id.as_str()),
            self.peer.as_deref(),
            Some(self.action.as_str()),
            Some(self.entity.as_str()),
            Some(self.entity_id.as_str()),
            self.before.as_deref(),
            self.after.as_deref(),
        ];
        let mut hash = Sha256::new_with_prefix(FORM);
        for field in fields {
            match field {
                None => hash.update([0]),
                Some(text) => {
                    hash.update([1]);
                    hash.update((text.len() as u64).to_be_bytes());
                    hash.update(text);
                }
            }
        }
        hex::encode(hash.finalize())
    }
}

/// Where a chain is broken, and how.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Break {
    /// Its hash is not that of what it says.
    #[error("record {0} was changed: its hash is not that of what it says")]
    Changed(i64),
    /// Its hash fits what it says, but it does not go on from the one before.
    #[error(
        "record {0} does not follow record {before}: one of them was written anew or put in",
        before = .0 - 1
    )]
    Severed(i64),
    /// It is not there, and later ones are.
    #[error("record {0} is missing")]
    Missing(i64),
    /// It stands where the chain has no place for it.
    #[error("record {0} was put in: the chain begins with record 1")]
    PutIn(i64),
    /// The last ones are gone.
    #[error("the end was cut off: records {from} to {to} are missing")]
    Cut {
        /// The first that is missing.
        from: i64,
        /// The last that was written.
        to: i64,
    },
    /// It stands behind the end.
    #[error("record {0} was put in behind the end of the chain")]
    Beyond(i64),
    /// The last record is not the one that was written last.
    #[error("record {0}, the last, was written anew: the database remembers another hash of it")]
    LastChanged(i64),
}

/// Follows records one by one, in memory that does not grow.
#[derive(Debug, Default)]
pub struct Chain(Head);

impl Chain {
    /// The last record that was followed.
    pub fn head(&self) -> &Head {
        &self.0
    }

    /// Takes the next record in the order of numbers.
    pub fn follow(&mut self, record: &Record) -> Result<(), Break> {
        let due = self.0.number + 1;
        if record.number < due {
            return Err(Break::PutIn(record.number));
        }
        if record.number > due {
            return Err(Break::Missing(due));
        }
        if record.hash != record.hash_of_what_it_says() {
            return Err(Break::Changed(due));
        }
        if record.prev != self.0.hash {
            return Err(Break::Severed(due));
        }
        self.0 = record.head();
        Ok(())
    }

    /// Whether this is the end that the database remembers beside the records.
    pub fn ends_with(&self, head: &Head) -> Result<(), Break> {
        let last = self.0.number;
        match last.cmp(&head.number) {
            std::cmp::Ordering::Less => Err(Break::Cut {
                from: last + 1,
                to: head.number,
            }),
            std::cmp::Ordering::Greater => Err(Break::Beyond(head.number + 1)),
            std::cmp::Ordering::Equal if self.0.hash != head.hash => Err(Break::LastChanged(last)),
            std::cmp::Ordering::Equal => Ok(()),
        }
    }
}
