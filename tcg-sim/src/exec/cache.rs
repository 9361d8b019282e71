//! All translations, and which frames they were made from.

use super::frames::Frames;
use super::frames::Writers;
use super::host::HostCpu;
use crate::jit::block::{Block, BlockId, BlockKey, Site};
use crate::jit::code::CodeMemory;
use crate::jit::translate::{self, MAX_HOST_BYTES, NoTranslation, Request, Translation};
use machine::units::Gfn;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::io;

/// Multiplicative hashing: keys are small integers, and the order is never observed.
#[derive(Default)]
pub(crate) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }
    fn write_u16(&mut self, value: u16) {
        self.write_u64(u64::from(value));
    }
    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(23) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

type Map<K, V> = HashMap<K, V, BuildHasherDefault<KeyHasher>>;

/// The code of one frame.
#[derive(Default)]
struct CodePage {
    blocks: Vec<BlockId>,
    /// Union of the blocks' chunks.
    chunks: u64,
}

/// Guest bytes for a translation.
pub(crate) struct GuestCode<'a> {
    /// From the block's offset on.
    pub(crate) bytes: &'a [u8],
    /// The second frame, where `bytes` reach into it.
    pub(crate) second: Option<Gfn>,
    /// Whether the frame is RAM, so that it can be watched.
    pub(crate) in_ram: bool,
    /// See [`Request::stop`].
    pub(crate) stop: Option<u16>,
    /// Number of the first counter that the block may use.
    pub(crate) first_slot: u32,
}

/// Translations.
pub(crate) struct CodeCache {
    pub(crate) code: CodeMemory,
    blocks: Vec<Block>,
    sites: Vec<Site>,
    by_key: Map<BlockKey, BlockId>,
    pages: Map<Gfn, CodePage>,
    pub(crate) decoder_options: u32,
    host: HostCpu,
    /// How often everything was dropped because memory ran out.
    pub(crate) flushes: u64,
    /// Guest instructions translated.
    pub(crate) translated: u64,
    /// Superblocks translated.
    pub(crate) made: u64,
}

impl CodeCache {
    /// An empty cache with `bytes` of code memory.
    ///
    /// # Errors
    /// What the host says.
    pub(crate) fn new(bytes: usize, decoder_options: u32, host: HostCpu) -> io::Result<Self> {
        Ok(Self {
            code: CodeMemory::new(bytes)?,
            blocks: Vec::new(),
            sites: Vec::new(),
            by_key: Map::default(),
            pages: Map::default(),
            decoder_options,
            host,
            flushes: 0,
            translated: 0,
            made: 0,
        })
    }

    pub(crate) fn find(&self, key: &BlockKey) -> Option<BlockId> {
        self.by_key.get(key).copied()
    }

    /// All blocks, those that may not be entered any more included.
    pub(crate) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    pub(crate) fn block(&self, id: BlockId) -> &Block {
        &self.blocks[id.0 as usize]
    }

    pub(crate) fn site(&self, number: u32) -> Site {
        self.sites[number as usize]
    }

    /// Whether another block of any size fits.
    pub(crate) fn has_room(&self) -> bool {
        self.code.room() > MAX_HOST_BYTES + 64
    }

    /// Drops every translation. The caller forgets all branch targets and code marks.
    pub(crate) fn clear(&mut self) {
        self.code.clear();
        self.blocks.clear();
        self.sites.clear();
        self.by_key.clear();
        self.pages.clear();
        self.flushes += 1;
    }

    /// Translates and publishes a block; says which write tags must go.
    ///
    /// # Errors
    /// See [`NoTranslation`].
    pub(crate) fn translate(
        &mut self,
        key: BlockKey,
        guest: &GuestCode<'_>,
        frames: &mut Frames,
    ) -> Result<(BlockId, [Writers; 2]), NoTranslation> {
        let id = BlockId(self.blocks.len() as u32);
        let host = self.code.next();
        let translation = translate::translate(Request {
            key,
            id,
            bytes: guest.bytes,
            host,
            leave: self.code.gates().leave,
            first_site: self.sites.len() as u32,
            stop: guest.stop,
            decoder_options: self.decoder_options,
            cpu: self.host,
            first_slot: guest.first_slot,
        })?;
        self.code.append(&translation.code);
        self.translated += translation.insns.len() as u64;
        self.made += 1;
        let mut writers = [Writers::None; 2];
        if guest.in_ram {
            writers[0] = self.register(key.gfn, id, translation.chunks, frames);
        }
        if let Some(second) = guest.second {
            // The tail of one instruction: at most 15 bytes, the first chunk.
            writers[1] = self.register(second, id, 1, frames);
        }
        self.publish(key, guest, host, translation);
        Ok((id, writers))
    }

    fn publish(
        &mut self,
        key: BlockKey,
        guest: &GuestCode<'_>,
        host: u64,
        translation: Translation,
    ) {
        let id = BlockId(self.blocks.len() as u32);
        self.blocks.push(Block {
            key,
            second: guest.second,
            insns: translation.insns,
            host,
            far: translation.far,
            near: translation.near,
            host_bytes: translation.code.len() as u32,
            chunks: translation.chunks,
            incoming: Vec::new(),
            valid: true,
            facts: translation.facts,
        });
        self.sites.extend(translation.sites);
        if guest.in_ram {
            self.by_key.insert(key, id);
        }
    }

    fn register(&mut self, gfn: Gfn, id: BlockId, chunks: u64, frames: &mut Frames) -> Writers {
        let page = self.pages.entry(gfn).or_default();
        let first = page.blocks.is_empty();
        page.blocks.push(id);
        page.chunks |= chunks;
        if first {
            frames.mark_code(gfn)
        } else {
            Writers::None
        }
    }

    /// Makes the jump whose displacement is at `link` go to a block of the same page.
    pub(crate) fn link(&mut self, link: u64, to: BlockId) {
        let near = self.block(to).near;
        let stub = self.code.target(link);
        self.code.patch(link, near);
        self.blocks[to.0 as usize].incoming.push((link, stub));
    }

    /// Whether bytes of a frame were translated.
    pub(crate) fn overlaps(&self, gfn: Gfn, offset: u64, bytes: u64) -> bool {
        self.pages
            .get(&gfn)
            .is_some_and(|page| page.chunks & chunk_mask(offset, bytes) != 0)
    }

    /// Drops the translations made from bytes of a frame. Returns whether there were any; branch
    /// caches must be flushed then.
    pub(crate) fn invalidate(
        &mut self,
        gfn: Gfn,
        offset: u64,
        bytes: u64,
        frames: &mut Frames,
    ) -> bool {
        let mask = chunk_mask(offset, bytes);
        let Some(page) = self
            .pages
            .get_mut(&gfn)
            .filter(|page| page.chunks & mask != 0)
        else {
            return false;
        };
        let all = std::mem::take(&mut page.blocks);
        page.chunks = 0;
        let mut kept = Vec::with_capacity(all.len());
        let mut chunks = 0;
        for id in all {
            let made_from = self.chunks_in(id, gfn);
            if made_from & mask != 0 {
                self.drop_block(id);
            } else if self.block(id).valid {
                chunks |= made_from;
                kept.push(id);
            }
        }
        if kept.is_empty() {
            self.pages.remove(&gfn);
            frames.unmark_code(gfn);
        } else if let Some(page) = self.pages.get_mut(&gfn) {
            (page.blocks, page.chunks) = (kept, chunks);
        }
        true
    }

    fn chunks_in(&self, id: BlockId, gfn: Gfn) -> u64 {
        let block = self.block(id);
        let first = if block.key.gfn == gfn {
            block.chunks
        } else {
            0
        };
        first | u64::from(block.second == Some(gfn))
    }

    fn drop_block(&mut self, id: BlockId) {
        let block = &mut self.blocks[id.0 as usize];
        block.valid = false;
        let key = block.key;
        let incoming = std::mem::take(&mut block.incoming);
        if self.by_key.get(&key) == Some(&id) {
            self.by_key.remove(&key);
        }
        for (link, stub) in incoming {
            self.code.patch(link, stub);
        }
    }

    /// The block that holds a host address.
    pub(crate) fn block_at(&self, host: u64) -> Option<BlockId> {
        let after = self.blocks.partition_point(|block| block.host <= host);
        let id = after.checked_sub(1)?;
        let block = &self.blocks[id];
        (host < block.host + u64::from(block.host_bytes)).then_some(BlockId(id as u32))
    }
}

/// The 64-byte chunks of a page that a range touches.
fn chunk_mask(offset: u64, bytes: u64) -> u64 {
    let first = offset / 64;
    let last = (offset + bytes - 1).min(4095) / 64;
    (u64::MAX >> (63 - (last - first))) << first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_exactly_the_touched_bytes() {
        assert_eq!(chunk_mask(0, 1), 1);
        assert_eq!(chunk_mask(63, 2), 3);
        assert_eq!(chunk_mask(4095, 1), 1 << 63);
        assert_eq!(chunk_mask(0, 4096), u64::MAX);
        assert_eq!(chunk_mask(4090, 100), 1 << 63);
    }
}
