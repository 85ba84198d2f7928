//! The database's side of replicas: which there are, whose gateway holds which device, and what they leave for each other
//! (ADR 20).

use async_trait::async_trait;
use device_ota_domain::DeviceId;
use device_ota_domain::device::DeviceKey;
use jiff::Timestamp;

use super::error::Result;

/// The number of a replica, from 1 on: of one run of the service, never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaKey(pub i64);

/// A run of the service on this database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replica {
    /// Its number; those that came later have higher ones.
    pub key: ReplicaKey,
    /// The name of its data folder, which the next run on it will have too.
    pub name: String,
    /// Hex SHA-256 of the payloads of its trust roots, oldest first.
    pub trust: Vec<String>,
    /// Whether its images lie where the others read them.
    pub shares_images: bool,
    /// When it is taken for dead, unless it says before that it lives.
    pub alive_until: Timestamp,
}

/// A run that begins.
#[derive(Debug, Clone)]
pub struct NewReplica<'r> {
    /// See [`Replica::name`].
    pub name: &'r str,
    /// See [`Replica::trust`].
    pub trust: &'r [String],
    /// See [`Replica::shares_images`].
    pub shares_images: bool,
    /// Now.
    pub started_at: Timestamp,
    /// See [`Replica::alive_until`].
    pub alive_until: Timestamp,
}

/// By whom, and when, it is said of devices that they came or went.
#[derive(Debug, Clone, Copy, Default)]
pub struct Here {
    /// The replica whose gateway they are connected to; `None`: nobody holds their sessions, as at a broker.
    pub replica: Option<ReplicaKey>,
    /// The present by its clock: a session that the rows know and that begins later was begun by a clock that was set back since.
    /// `None`: when the device was heard.
    pub now: Option<Timestamp>,
}

/// What a note says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    /// Something is owed to the device that was not told to it.
    Owed,
    /// The device has connected elsewhere: its session of this number, and older ones, are over.
    TakenOver(i64),
    /// Its secret was replaced, or the device was deleted: neither what was kept of it nor its session holds.
    Secret,
}

/// A note for one replica about one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Its number.
    pub number: i64,
    /// What it says.
    pub word: Word,
    /// Of which device.
    pub device: DeviceKey,
    /// Its id.
    pub device_id: DeviceId,
}

/// A device that is not connected to the gateway that is asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Away {
    /// Which.
    pub device: DeviceKey,
    /// Its last session, wherever it was.
    pub session: i64,
}

/// Reads of replicas. Each is one statement of its own.
#[async_trait]
pub trait Replicas: Send + Sync + 'static {
    /// All that have not ended, the eldest first.
    async fn replicas(&self) -> Result<Vec<Replica>>;
    /// Notes for this one, oldest first.
    async fn notes(&self, replica: ReplicaKey, limit: u32) -> Result<Vec<Note>>;
}

/// Changes of replicas within a transaction.
#[async_trait]
pub trait ReplicaChanges: Send {
    /// All that have not ended, the eldest first; until the transaction ends none begins, none is ended for another, and no device's
    /// secret is replaced. To be called before anything else is locked.
    async fn hold_replicas(&mut self) -> Result<Vec<Replica>>;
    /// Begins one.
    async fn insert_replica(&mut self, replica: &NewReplica<'_>) -> Result<ReplicaKey>;
    /// It lives; false when it was ended.
    async fn renew_replica(&mut self, replica: ReplicaKey, alive_until: Timestamp) -> Result<bool>;
    /// Ends one, unless it has said that it lives beyond `by`: the devices that it holds are offline from `at` on. False when it was
    /// ended before.
    async fn end_replica(
        &mut self,
        replica: ReplicaKey,
        by: Timestamp,
        at: Timestamp,
    ) -> Result<bool>;
    /// Says anew of sessions that the replica has, each by its device and its number, that they are there. Answers of which devices: not
    /// of those that have connected elsewhere since, have another secret since, or were deleted.
    async fn announce(
        &mut self,
        replica: ReplicaKey,
        sessions: &[(DeviceId, i64)],
    ) -> Result<Vec<DeviceId>>;
    /// Of these devices, those whose session the replica `here` does not hold; none when there is no other replica. `None`: it was ended,
    /// and holds none. It is not ended before the transaction is. To be asked before devices are locked.
    async fn away_from(
        &mut self,
        here: ReplicaKey,
        devices: &[DeviceKey],
    ) -> Result<Option<Vec<Away>>>;
    /// Leaves notes for the replicas that hold these devices, but for `here`, that something is owed to them. Answers which devices
    /// these are.
    async fn note_owed(
        &mut self,
        here: Option<ReplicaKey>,
        devices: &[DeviceKey],
    ) -> Result<Vec<DeviceKey>>;
    /// Leaves notes for all replicas but `here` that this device's secret is another one, or that it is deleted. To be called before
    /// anything else is locked.
    async fn note_secret(&mut self, here: Option<ReplicaKey>, device: &DeviceId) -> Result<()>;
    /// Takes notes away by their numbers.
    async fn forget_notes(&mut self, numbers: &[i64]) -> Result<()>;
    /// Lets a receiver's place in the outbox begin behind the newest event, unless there is one.
    async fn begin_place(&mut self, sink: &str) -> Result<()>;
    /// What all replicas share under that name: this, in hex, unless there is something.
    async fn shared_key(&mut self, name: &str, hex: &str) -> Result<String>;
    /// Forgets what they share under that name.
    async fn forget_shared_key(&mut self, name: &str) -> Result<()>;
}
