//! The eBPF object, embedded in the binary.

/// Aligned as ELF structures need it: the loader reads them in place.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/datapath.o")));

/// Returns the ELF object with all programs and map definitions.
pub fn bytes() -> &'static [u8] {
    &OBJECT.0
}
