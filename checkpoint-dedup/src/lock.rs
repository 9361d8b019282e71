//! Locks and leases: small objects that name a process, found stale when that process is gone.
//!
//! Acquiring needs only put-if-absent and list: put a lock of the next free number, then list
//! again; whoever sees another live lock takes its own back and waits. Of two that run at once at
//! least one sees the other, so never both hold.

mod process;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::backend::Backend;
use crate::condemned::CondemnedId;
use crate::envelope::{LOCK, open, seal};
use crate::error::{Error, FormatError, Holder};
use crate::id::RecordingId;
use crate::wire::{Input, Output};
use process::Process;

pub(crate) use process::{is_orphan, temporary_name, unique, unix_ns};

/// Key prefix of all locks.
pub(crate) const PREFIX: &str = "locks/";

/// Exclusive: the one writer.
pub(crate) const WRITER: &str = "writer";
/// Exclusive: whoever removes objects.
pub(crate) const MAINTENANCE: &str = "maintenance";
/// Shared: a reader of a series, which keeps the series although its name may go.
pub(crate) const READING: &str = "reading";
/// Shared: a writer of a series. It holds up the deletion of condemned packs until it has
/// acknowledged them.
pub(crate) const WRITING: &str = "writing";

/// How long to wait for an exclusive lock.
#[derive(Debug, Clone, Copy, Default)]
pub struct Patience(pub Duration);

impl Patience {
    /// Enough for what takes a moment.
    pub const BRIEF: Self = Self(Duration::from_secs(10));
}

/// What a lock object says.
#[derive(Debug, Clone)]
pub(crate) struct LockInfo {
    pub(crate) key: String,
    process: Process,
    pub(crate) since_unix_ns: u64,
    pub(crate) purpose: String,
    /// The series it protects; zero for none.
    pub(crate) series: RecordingId,
    /// The lists of condemned packs that its holder no longer refers to.
    pub(crate) honours: Vec<CondemnedId>,
}

/// A series that is none.
const NO_SERIES: RecordingId = RecordingId::from_bytes([0; 16]);

impl LockInfo {
    fn new(key: String, purpose: &str, series: RecordingId, honours: Vec<CondemnedId>) -> Self {
        Self {
            key,
            process: Process::current(),
            since_unix_ns: unix_ns(SystemTime::now()),
            purpose: purpose.to_owned(),
            series,
            honours,
        }
    }

    /// Puts the object; whether its key was free.
    fn put(&self, backend: &dyn Backend) -> Result<bool, Error> {
        Ok(backend.put_if_absent(&self.key, &self.encode())?)
    }

    fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        self.process.encode(&mut body);
        body.put_u64(self.since_unix_ns);
        body.put_block(self.purpose.as_bytes());
        body.extend_from_slice(self.series.as_bytes());
        body.put_varint(self.honours.len() as u64);
        for id in &self.honours {
            body.extend_from_slice(id);
        }
        seal(&LOCK, &body)
    }

    pub(crate) fn decode(key: &str, bytes: &[u8]) -> Result<Self, FormatError> {
        let mut input = Input::new(open(&LOCK, bytes)?);
        let info = Self {
            key: key.to_owned(),
            process: Process::decode(&mut input)?,
            since_unix_ns: input.u64()?,
            purpose: input.text()?.to_owned(),
            series: RecordingId::from_bytes(input.array()?),
            honours: (0..input.count(16)?)
                .map(|_| input.array())
                .collect::<Result<_, _>>()?,
        };
        input.finish()?;
        Ok(info)
    }

    /// Whether the process may still be there. One on another host always may.
    pub(crate) fn is_live(&self) -> bool {
        self.process.may_live()
    }

    pub(crate) fn holder(&self, backend: &dyn Backend) -> Holder {
        Holder {
            host: self.process.host.clone(),
            pid: self.process.pid,
            since_unix_s: self.since_unix_ns / 1_000_000_000,
            purpose: self.purpose.clone(),
            path: backend.describe(&self.key),
        }
    }
}

/// A lock; given back when dropped.
pub(crate) struct Lock {
    backend: Arc<dyn Backend>,
    pub(crate) key: String,
}

/// A shared lock that says what it protects; given back when dropped.
pub(crate) struct Lease {
    backend: Arc<dyn Backend>,
    kind: &'static str,
    info: LockInfo,
}

impl Lease {
    /// Takes a lease.
    pub(crate) fn take(
        backend: &Arc<dyn Backend>,
        kind: &'static str,
        purpose: &str,
        series: RecordingId,
    ) -> Result<Self, Error> {
        let info = LockInfo::new(lease_key(kind), purpose, series, Vec::new());
        info.put(&**backend)?;
        Ok(Self {
            backend: Arc::clone(backend),
            kind,
            info,
        })
    }

    /// Says that the holder refers to nothing on these lists any more. The new object is there
    /// before the old one goes, so the lease never lapses.
    pub(crate) fn acknowledge(&mut self, mut ids: Vec<CondemnedId>) -> Result<(), Error> {
        ids.sort_unstable();
        if ids == self.info.honours {
            return Ok(());
        }
        let next = LockInfo {
            key: lease_key(self.kind),
            honours: ids,
            ..self.info.clone()
        };
        next.put(&*self.backend)?;
        let old = std::mem::replace(&mut self.info, next);
        self.backend.delete(&old.key)?;
        Ok(())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // As with locks.
        let _ = self.backend.delete(&self.info.key);
    }
}

fn lease_key(kind: &str) -> String {
    format!("{PREFIX}{kind}-{}", RecordingId::from_bytes(unique()))
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A lock left behind is found stale when this process is gone.
        let _ = self.backend.delete(&self.key);
    }
}

/// All locks of a kind, stale ones included. A writer's lease that is exchanged for another during
/// a listing may show in neither form, so these are listed until two listings agree. An unreadable lock object counts as held by someone
/// unknown, because taking it for free could let two writers in.
pub(crate) fn list(backend: &dyn Backend, kind: &str) -> Result<Vec<LockInfo>, Error> {
    let prefix = format!("{PREFIX}{kind}-");
    let mut before: Option<Vec<String>> = None;
    loop {
        let mut keys: Vec<String> = backend.list(PREFIX)?.into_iter().map(|o| o.key).collect();
        keys.retain(|key| key.starts_with(&prefix));
        keys.sort();
        if kind != WRITING || before.as_ref() == Some(&keys) {
            let (all, gone) = read_all(backend, &keys)?;
            if kind != WRITING || !gone {
                return Ok(all);
            }
        }
        before = Some(keys);
    }
}

/// Reads locks; also whether one is gone.
fn read_all(backend: &dyn Backend, keys: &[String]) -> Result<(Vec<LockInfo>, bool), Error> {
    let (mut out, mut gone) = (Vec::new(), false);
    for key in keys {
        let bytes = match backend.get_all(key) {
            Ok(bytes) => bytes,
            Err(e) if e.is_not_found() => {
                gone = true;
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        let info = LockInfo::decode(key, &bytes).map_err(|source| Error::Damaged {
            path: backend.describe(key),
            source,
        })?;
        out.push(info);
    }
    Ok((out, gone))
}

/// Locks of a kind whose process may still be there.
pub(crate) fn live(backend: &dyn Backend, kind: &str) -> Result<Vec<LockInfo>, Error> {
    Ok(list(backend, kind)?
        .into_iter()
        .filter(LockInfo::is_live)
        .collect())
}

/// Takes an exclusive lock, waiting as long as `patience` allows.
pub(crate) fn exclusive(
    backend: &Arc<dyn Backend>,
    kind: &'static str,
    purpose: &str,
    patience: Patience,
) -> Result<Lock, Error> {
    let deadline = Instant::now() + patience.0;
    let mut tries = 0;
    loop {
        let holder = match try_exclusive(backend, kind, purpose)? {
            Ok(lock) => return Ok(lock),
            Err(holder) => holder,
        };
        tries += 1;
        // Two that met take turns by process id; a real holder is only waited for if asked.
        let met = tries < 5;
        if !met && Instant::now() >= deadline {
            return Err(Error::Locked { lock: kind, holder });
        }
        let jitter = u64::from(std::process::id() % 16) + u64::from(unique()[0] % 16);
        std::thread::sleep(Duration::from_millis(if met {
            2 + jitter
        } else {
            100 + jitter
        }));
    }
}

fn try_exclusive(
    backend: &Arc<dyn Backend>,
    kind: &str,
    purpose: &str,
) -> Result<Result<Lock, Holder>, Error> {
    let found = list(&**backend, kind)?;
    if let Some(held) = found.iter().find(|lock| lock.is_live()) {
        return Ok(Err(held.holder(&**backend)));
    }
    let number = |lock: &LockInfo| {
        lock.key
            .rsplit('-')
            .next()
            .and_then(|n| n.parse::<u32>().ok())
    };
    let next = found
        .iter()
        .filter_map(number)
        .max()
        .unwrap_or(0)
        .wrapping_add(1);
    let info = LockInfo::new(
        format!("{PREFIX}{kind}-{next:08}"),
        purpose,
        NO_SERIES,
        Vec::new(),
    );
    if !info.put(&**backend)? {
        let found = list(&**backend, kind)?;
        return match found.iter().find(|lock| lock.is_live()) {
            Some(held) => Ok(Err(held.holder(&**backend))),
            None => try_exclusive(backend, kind, purpose),
        };
    }
    let mine = Lock {
        backend: Arc::clone(backend),
        key: info.key,
    };
    let others = list(&**backend, kind)?;
    if let Some(other) = others
        .iter()
        .find(|lock| lock.key != mine.key && lock.is_live())
    {
        return Ok(Err(other.holder(&**backend)));
    }
    // The stale ones can go: this process holds the lock now.
    for stale in others.iter().filter(|lock| lock.key != mine.key) {
        backend.delete(&stale.key)?;
    }
    Ok(Ok(mine))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Local;

    fn backend() -> (tempfile::TempDir, Arc<dyn Backend>) {
        let directory = tempfile::tempdir().unwrap();
        let backend: Arc<dyn Backend> = Arc::new(Local::new(directory.path()));
        (directory, backend)
    }

    #[test]
    fn a_second_holder_is_told_by_whom_the_lock_is_held() {
        let (_directory, backend) = backend();
        let held = exclusive(&backend, WRITER, "record boot", Patience::default()).unwrap();
        let error = exclusive(&backend, WRITER, "import", Patience::default())
            .err()
            .unwrap();
        let text = error.to_string();
        assert!(text.contains("record boot") && text.contains(&std::process::id().to_string()));
        drop(held);
        exclusive(&backend, WRITER, "import", Patience::default()).unwrap();
    }

    #[test]
    fn the_lock_of_a_process_that_is_gone_is_stale() {
        let (_directory, backend) = backend();
        let info = LockInfo {
            key: "locks/writer-00000004".into(),
            process: Process {
                pid: 1 << 22,
                started: 1,
                ..Process::current()
            },
            since_unix_ns: 1,
            purpose: "died".into(),
            series: NO_SERIES,
            honours: Vec::new(),
        };
        backend.put_if_absent(&info.key, &info.encode()).unwrap();
        let lock = exclusive(&backend, WRITER, "next", Patience::default()).unwrap();
        assert_eq!(lock.key, "locks/writer-00000005");
        assert_eq!(list(&*backend, WRITER).unwrap().len(), 1);
    }

    #[test]
    fn a_lease_says_what_it_honours() {
        let (_directory, backend) = backend();
        let series = RecordingId::from_bytes([5; 16]);
        let mut lease = Lease::take(&backend, WRITING, "record", series).unwrap();
        let of = |kind| live(&*backend, kind).unwrap();
        assert_eq!((of(WRITING).len(), of(READING).len()), (1, 0));
        lease.acknowledge(vec![[2; 16], [1; 16]]).unwrap();
        let now = of(WRITING);
        assert_eq!(now.len(), 1);
        assert_eq!(
            (now[0].series, &now[0].honours[..]),
            (series, &[[1; 16], [2; 16]][..])
        );
        drop(lease);
        assert_eq!(of(WRITING).len(), 0);
    }

    #[test]
    fn of_many_at_once_one_holds_at_a_time() {
        let (_directory, backend) = backend();
        let inside = std::sync::atomic::AtomicU32::new(0);
        let order = std::sync::atomic::Ordering::SeqCst;
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5 {
                        let patience = Patience(Duration::from_secs(60));
                        let lock = exclusive(&backend, WRITER, "race", patience).unwrap();
                        assert_eq!(inside.fetch_add(1, order), 0);
                        std::thread::yield_now();
                        inside.fetch_sub(1, order);
                        drop(lock);
                    }
                });
            }
        });
    }
}
