//! A bounded cache shared by threads: second chance, sixteen shards, bounded by bytes.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

const SHARDS: usize = 16;

struct Entry<V> {
    value: Arc<V>,
    bytes: usize,
    used: AtomicBool,
}

struct Shard<K, V> {
    entries: HashMap<K, Entry<V>>,
    order: VecDeque<K>,
    bytes: usize,
}

/// A cache of values that are cheap to share.
pub(crate) struct Cache<K, V> {
    shards: Vec<Mutex<Shard<K, V>>>,
    hasher: RandomState,
    most_bytes: usize,
}

impl<K: Hash + Eq + Clone, V> Cache<K, V> {
    pub(crate) fn new(most_bytes: usize) -> Self {
        let shard = || {
            Mutex::new(Shard {
                entries: HashMap::new(),
                order: VecDeque::new(),
                bytes: 0,
            })
        };
        Self {
            shards: (0..SHARDS).map(|_| shard()).collect(),
            hasher: RandomState::new(),
            most_bytes: most_bytes / SHARDS,
        }
    }

    fn shard(&self, key: &K) -> &Mutex<Shard<K, V>> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    pub(crate) fn get(&self, key: &K) -> Option<Arc<V>> {
        let shard = self
            .shard(key)
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let entry = shard.entries.get(key)?;
        entry.used.store(true, Ordering::Relaxed);
        Some(Arc::clone(&entry.value))
    }

    /// Adds a value that takes `bytes`; values used since they were last looked at stay longer.
    pub(crate) fn insert(&self, key: K, value: Arc<V>, bytes: usize) {
        let mut shard = self
            .shard(&key)
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let entry = Entry {
            value,
            bytes,
            used: AtomicBool::new(false),
        };
        match shard.entries.insert(key.clone(), entry) {
            Some(old) => shard.bytes -= old.bytes,
            None => shard.order.push_back(key.clone()),
        }
        shard.bytes += bytes;
        while shard.bytes > self.most_bytes && shard.order.len() > 1 {
            let Some(oldest) = shard.order.pop_front() else {
                break;
            };
            let used = |e: &Entry<V>| e.used.swap(false, Ordering::Relaxed);
            if oldest == key || shard.entries.get(&oldest).is_some_and(used) {
                shard.order.push_back(oldest);
            } else if let Some(gone) = shard.entries.remove(&oldest) {
                shard.bytes -= gone.bytes;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_holds_and_used_values_stay() {
        let cache = Cache::new(16 * 100);
        for i in 0..10_000u32 {
            cache.insert(i, Arc::new(i), 1);
            assert_eq!(cache.get(&0).as_deref(), Some(&0));
        }
        let kept = (0..10_000u32).filter(|i| cache.get(i).is_some()).count();
        assert!((800..=16 * 101).contains(&kept), "{kept}");
    }
}
