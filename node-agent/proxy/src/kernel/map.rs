//! Typed access to pinned maps.

use std::{
    fs, io,
    marker::PhantomData,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use hawser_ebpf_abi::{
    Addr, Affinity, AffinityKey, Backend, Flow, FlowBucket, FlowKey, Frontend, FrontendKey, MaglevBlock,
    MemberKey, PodLink, RangeKey, Settings, XdpLinks,
};

use super::sys::{self, MapInfo};

/// A type whose every byte is part of a field, so that it may be passed to the kernel as bytes.
///
/// # Safety
/// No padding, and every bit pattern is a value.
pub(crate) unsafe trait Plain: Copy + Default {}

// SAFETY: integers and arrays of them; the abi crate asserts sizes that leave no room for padding.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl Plain for Backend {}
// SAFETY: as above.
unsafe impl Plain for Flow {}
// SAFETY: as above.
unsafe impl Plain for FlowKey {}
// SAFETY: as above.
unsafe impl Plain for FlowBucket {}
// SAFETY: as above.
unsafe impl Plain for Frontend {}
// SAFETY: as above.
unsafe impl Plain for FrontendKey {}
// SAFETY: as above.
unsafe impl Plain for MemberKey {}
// SAFETY: as above.
unsafe impl Plain for Settings {}
// SAFETY: as above.
unsafe impl Plain for MaglevBlock {}
// SAFETY: as above.
unsafe impl Plain for AffinityKey {}
// SAFETY: as above.
unsafe impl Plain for Affinity {}
// SAFETY: as above.
unsafe impl Plain for RangeKey {}
// SAFETY: as above.
unsafe impl Plain for Addr {}
// SAFETY: as above.
unsafe impl Plain for PodLink {}
// SAFETY: as above.
unsafe impl Plain for XdpLinks {}

/// A map with keys `K` and values `V`.
#[derive(Debug)]
pub(crate) struct Map<K, V> {
    fd: OwnedFd,
    info: MapInfo,
    types: PhantomData<fn(K) -> V>,
}

/// Entries in one batch: bounds the memory that the kernel copies at a time.
const BATCH: usize = 4096;

impl<K: Plain, V: Plain> Map<K, V> {
    /// Takes a map, and checks that its entries have the sizes of `K` and `V`.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let info = sys::map_info(fd.as_fd())?;
        if info.key_size as usize != size_of::<K>() || info.value_size as usize != size_of::<V>() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "entries of {} and {} bytes, not {} and {}",
                    info.key_size,
                    info.value_size,
                    size_of::<K>(),
                    size_of::<V>()
                ),
            ));
        }
        Ok(Self { fd, info, types: PhantomData })
    }

    pub(crate) fn capacity(&self) -> u32 {
        self.info.max_entries
    }

    pub(crate) fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = V::default();
        // SAFETY: `new` checked the sizes.
        let found = unsafe { sys::map_lookup(self.fd.as_fd(), bytes(key), bytes_mut(&mut value)) }?;
        Ok(found.map(|()| value))
    }

    pub(crate) fn set(&self, key: &K, value: &V) -> io::Result<()> {
        // SAFETY: `new` checked the sizes.
        unsafe { sys::map_update(self.fd.as_fd(), bytes(key), bytes(value)) }
    }

    pub(crate) fn remove(&self, key: &K) -> io::Result<()> {
        // SAFETY: `new` checked the size.
        unsafe { sys::map_delete(self.fd.as_fd(), bytes(key)) }
    }

    /// Writes many entries, a batch at a time.
    pub(crate) fn set_all(&self, entries: &[(K, V)]) -> io::Result<()> {
        for chunk in entries.chunks(BATCH) {
            if let [(key, value)] = chunk {
                return self.set(key, value);
            }
            let keys: Vec<K> = chunk.iter().map(|(key, _)| *key).collect();
            let values: Vec<V> = chunk.iter().map(|(_, value)| *value).collect();
            // SAFETY: `new` checked the sizes; both hold one element per entry.
            unsafe {
                sys::map_update_batch(
                    self.fd.as_fd(),
                    slice_bytes(&keys),
                    slice_bytes(&values),
                    chunk.len() as u32,
                )?;
            }
        }
        Ok(())
    }

    /// Writes the entries whose keys the map does not have.
    pub(crate) fn add_new(&self, entries: &[(K, V)]) -> io::Result<()> {
        for (key, value) in entries {
            // SAFETY: `new` checked the sizes.
            unsafe { sys::map_add(self.fd.as_fd(), bytes(key), bytes(value)) }?;
        }
        Ok(())
    }

    /// Reads all keys, one at a time: for small maps, and for those that a batch cannot read. Keys that are written or
    /// removed meanwhile may be in it or not.
    pub(crate) fn keys(&self) -> io::Result<Vec<K>> {
        keys(self.fd.as_fd(), self.info.max_entries)
    }

    /// Reads all entries of a hash map or array. Entries that are written meanwhile may be in it or not.
    pub(crate) fn entries(&self) -> io::Result<Vec<(K, V)>> {
        let mut entries = Vec::new();
        self.visit(|key, value| entries.push((*key, *value)))?;
        Ok(entries)
    }

    /// Passes all entries of a hash map or array on, without keeping more than a batch of them.
    pub(crate) fn visit(&self, mut visitor: impl FnMut(&K, &V)) -> io::Result<()> {
        let mut keys = vec![K::default(); BATCH];
        let mut values = vec![V::default(); BATCH];
        let mut cursor = None;
        loop {
            // SAFETY: `new` checked the sizes; both have room for a batch.
            let (count, more) = unsafe {
                sys::map_lookup_batch(
                    self.fd.as_fd(),
                    &mut cursor,
                    slice_bytes_mut(&mut keys),
                    slice_bytes_mut(&mut values),
                    BATCH as u32,
                )
            }?;
            let count = count as usize;
            keys[..count].iter().zip(&values[..count]).for_each(|(key, value)| visitor(key, value));
            if !more {
                return Ok(());
            }
        }
    }
}

/// A per-CPU map of groups of `N` counters.
#[derive(Debug)]
pub(crate) struct Counters<const N: usize> {
    fd: OwnedFd,
    capacity: u32,
    cpus: usize,
}

impl<const N: usize> Counters<N> {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let info = sys::map_info(fd.as_fd())?;
        if info.key_size != 4 || info.value_size as usize != 8 * N {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "counters of another layout"));
        }
        Ok(Self { fd, capacity: info.max_entries, cpus: possible_cpus()? })
    }

    /// Returns the sums over all CPUs; `None` where nothing was counted yet.
    pub(crate) fn get(&self, key: u32) -> io::Result<Option<[u64; N]>> {
        let mut values = vec![0u64; N * self.cpus];
        // SAFETY: a value of `N` words for each possible CPU.
        let found = unsafe { sys::map_lookup(self.fd.as_fd(), bytes(&key), slice_bytes_mut(&mut values)) }?;
        let sums = |()| std::array::from_fn(|index| values.iter().skip(index).step_by(N).sum());
        Ok(found.map(sums))
    }

    /// Copies what each CPU has counted, for as many keys as the other has room for.
    pub(crate) fn copy_to(&self, other: &Self) -> io::Result<()> {
        let mut values = vec![0u64; N * self.cpus];
        for key in self.keys()?.into_iter().take(other.capacity as usize) {
            // SAFETY: a value of `N` words for each possible CPU, in both.
            unsafe {
                if sys::map_lookup(self.fd.as_fd(), bytes(&key), slice_bytes_mut(&mut values))?.is_some() {
                    sys::map_update(other.fd.as_fd(), bytes(&key), slice_bytes(&values))?;
                }
            }
        }
        Ok(())
    }

    pub(crate) fn keys(&self) -> io::Result<Vec<u32>> {
        keys(self.fd.as_fd(), self.capacity)
    }

    pub(crate) fn remove(&self, key: u32) -> io::Result<()> {
        // SAFETY: keys have 4 bytes.
        unsafe { sys::map_delete(self.fd.as_fd(), bytes(&key)) }
    }
}

/// Reads the keys of a map with keys `K` and room for `capacity` of them.
fn keys<K: Plain>(map: BorrowedFd<'_>, capacity: u32) -> io::Result<Vec<K>> {
    let mut keys: Vec<K> = Vec::new();
    let mut next = K::default();
    // A key that is removed under way sends the kernel back to the first: the capacity bounds the walk.
    while keys.len() < capacity as usize {
        // SAFETY: the caller vouches for the size.
        let more = unsafe { sys::map_next_key(map, keys.last().map(bytes), bytes_mut(&mut next)) }?;
        if !more {
            break;
        }
        keys.push(next);
    }
    Ok(keys)
}

/// Reads the number of CPUs that per-CPU maps have room for, from a list such as `0-3` or `0,2-5`.
fn possible_cpus() -> io::Result<usize> {
    let list = fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = list.trim().rsplit([',', '-']).next().unwrap_or_default();
    let last: usize =
        last.parse().map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("CPU list {list:?}")))?;
    Ok(last + 1)
}

fn bytes<T: Plain>(value: &T) -> &[u8] {
    slice_bytes(std::slice::from_ref(value))
}

fn bytes_mut<T: Plain>(value: &mut T) -> &mut [u8] {
    slice_bytes_mut(std::slice::from_mut(value))
}

fn slice_bytes<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: plain types have no padding, so all bytes are initialised.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

fn slice_bytes_mut<T: Plain>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: as above, and every bit pattern that is written is a value.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}
