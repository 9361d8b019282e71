//! Hashes of register files and pages, as positions and checks use them.

use machine::state::{Activity, CpuState, DescriptorTable, FpuState, Msrs, Seg, Segment};
use machine::units::PAGE_BYTES;

/// A hash of what changes most: the general-purpose registers, RIP and RFLAGS.
pub fn register_hash(cpu: &CpuState) -> u64 {
    let mut bytes = [0; 18 * 8];
    let words = cpu.gpr.iter().chain([&cpu.rip, &cpu.rflags]);
    for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
        chunk.copy_from_slice(&word.to_le_bytes());
    }
    let hash = blake3::hash(&bytes);
    u64::from_le_bytes(*hash.as_bytes().first_chunk().expect("a hash has 32 bytes"))
}

/// A hash of the whole register file, for landmarks.
///
/// Left out is what a vCPU may present in more than one way without the guest being able to tell,
/// or what a hypervisor reports unreliably: the x87 instruction and data pointers and opcode, the
/// interrupt shadow and what it holds back (no position is taken under one), the hidden part of unusable segments except
/// the bases of FS and GS.
pub fn state_digest(cpu: &CpuState) -> [u8; 16] {
    let CpuState {
        gpr,
        rip,
        rflags,
        segs,
        ldtr,
        tr,
        gdtr,
        idtr,
        cr0,
        cr2,
        cr3,
        cr4,
        cr8,
        xcr0,
        dr,
        dr6,
        dr7,
        msrs,
        fpu,
        shadow: _,
        held_breakpoints: _,
        activity,
    } = cpu;
    let mut out = Vec::with_capacity(1024);
    words(&mut out, gpr);
    words(&mut out, &[*rip, *rflags]);
    for (index, segment) in segs.iter().enumerate() {
        let keeps_base = index == Seg::Fs as usize || index == Seg::Gs as usize;
        put_segment(&mut out, segment, keeps_base);
    }
    put_segment(&mut out, ldtr, false);
    put_segment(&mut out, tr, false);
    for DescriptorTable { base, limit } in [gdtr, idtr] {
        words(&mut out, &[*base, u64::from(*limit)]);
    }
    words(&mut out, &[*cr0, *cr2, *cr3, *cr4, *cr8, *xcr0]);
    words(&mut out, dr);
    words(&mut out, &[*dr6, *dr7]);
    put_msrs(&mut out, msrs);
    put_fpu(&mut out, fpu);
    out.push(match activity {
        Activity::Running => 0,
        Activity::Halted => 1,
        Activity::Shutdown => 2,
    });
    truncated(blake3::hash(&out))
}

/// The hash of a page that landmarks carry: the first half of its BLAKE3 hash.
pub fn page_hash(page: &[u8; PAGE_BYTES as usize]) -> [u8; 16] {
    truncated(blake3::hash(page))
}

/// [`page_hash`] with bits 5 and 6 (accessed, dirty) of every quadword taken as zero.
pub fn table_hash(page: &[u8; PAGE_BYTES as usize]) -> [u8; 16] {
    let mut masked = *page;
    for entry in masked.chunks_exact_mut(8) {
        entry[0] &= !0x60;
    }
    page_hash(&masked)
}

fn truncated(hash: blake3::Hash) -> [u8; 16] {
    *hash.as_bytes().first_chunk().expect("a hash has 32 bytes")
}

fn words(out: &mut Vec<u8>, words: &[u64]) {
    for word in words {
        out.extend_from_slice(&word.to_le_bytes());
    }
}

fn put_segment(out: &mut Vec<u8>, segment: &Segment, keeps_base: bool) {
    let Segment {
        selector,
        attributes,
        limit,
        base,
    } = segment;
    let usable = segment.present();
    let (attributes, limit) = if usable {
        (*attributes, *limit)
    } else {
        (0, 0)
    };
    out.extend_from_slice(&selector.to_le_bytes());
    out.extend_from_slice(&attributes.to_le_bytes());
    out.extend_from_slice(&limit.to_le_bytes());
    words(out, &[if usable || keeps_base { *base } else { 0 }]);
}

fn put_msrs(out: &mut Vec<u8>, msrs: &Msrs) {
    let Msrs {
        efer,
        star,
        lstar,
        cstar,
        sfmask,
        kernel_gs_base,
        sysenter_cs,
        sysenter_esp,
        sysenter_eip,
        pat,
        tsc_aux,
    } = msrs;
    words(out, &[*efer, *star, *lstar, *cstar, *sfmask]);
    words(out, &[*kernel_gs_base]);
    words(out, &[*sysenter_cs, *sysenter_esp, *sysenter_eip]);
    words(out, &[*pat, *tsc_aux]);
}

fn put_fpu(out: &mut Vec<u8>, fpu: &FpuState) {
    let FpuState {
        fcw,
        fsw,
        ftw,
        fop: _,
        fip: _,
        fdp: _,
        fcs: _,
        fds: _,
        st,
        mxcsr,
        xmm,
    } = fpu;
    out.extend_from_slice(&fcw.to_le_bytes());
    out.extend_from_slice(&fsw.to_le_bytes());
    out.push(*ftw);
    out.extend_from_slice(&mxcsr.to_le_bytes());
    for register in st.iter().chain(xmm) {
        out.extend_from_slice(&register.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_state_that_counts_changes_the_digest() {
        let base = CpuState::long_mode(0x1000, 0x8000, 0x2000);
        let changes: &[fn(&mut CpuState)] = &[
            |c| c.gpr[15] ^= 1,
            |c| c.rip ^= 1,
            |c| c.rflags ^= 1,
            |c| c.segs[0].base ^= 1,
            |c| c.segs[1].attributes ^= 0x2000,
            |c| c.ldtr.selector ^= 8,
            |c| c.tr.limit ^= 1,
            |c| c.gdtr.base ^= 1,
            |c| c.idtr.limit ^= 1,
            |c| c.cr0 ^= 8,
            |c| c.cr2 ^= 1,
            |c| c.cr3 ^= 0x1000,
            |c| c.cr4 ^= 1,
            |c| c.cr8 ^= 1,
            |c| c.xcr0 ^= 2,
            |c| c.dr[3] ^= 1,
            |c| c.dr6 ^= 1,
            |c| c.dr7 ^= 1,
            |c| c.msrs.tsc_aux ^= 1,
            |c| c.fpu.st[7] ^= 1,
            |c| c.fpu.mxcsr ^= 1,
            |c| c.fpu.ftw ^= 1,
            |c| c.fpu.xmm[15] ^= 1,
            |c| c.activity = Activity::Halted,
        ];
        for (index, change) in changes.iter().enumerate() {
            let mut other = base.clone();
            change(&mut other);
            assert_ne!(state_digest(&base), state_digest(&other), "row {index}");
        }
    }

    #[test]
    fn what_the_guest_cannot_see_does_not_change_the_digest() {
        let mut base = CpuState::long_mode(0x1000, 0x8000, 0x2000);
        base.segs[Seg::Ds as usize].attributes = 0;
        let mut other = base.clone();
        other.segs[Seg::Ds as usize].limit = 5;
        other.segs[Seg::Ds as usize].base = 5;
        other.fpu.fip = 7;
        other.shadow = machine::state::Shadow::Sti;
        assert_eq!(state_digest(&base), state_digest(&other));
        base.segs[Seg::Gs as usize].attributes = 0;
        other.segs[Seg::Gs as usize].attributes = 0;
        other.segs[Seg::Gs as usize].base = 9;
        assert_ne!(state_digest(&base), state_digest(&other));
    }

    #[test]
    fn table_hashes_ignore_accessed_and_dirty_bits_and_nothing_else() {
        let page = [0; PAGE_BYTES as usize];
        let (mut accessed, mut large) = (page, page);
        accessed[16] = 0x60;
        large[16] = 0x80;
        assert_eq!(table_hash(&page), table_hash(&accessed));
        assert_ne!(table_hash(&page), table_hash(&large));
        assert_ne!(page_hash(&page), page_hash(&accessed));
    }
}
