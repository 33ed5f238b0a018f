use crate::sizes::{Sizes, flows_for};

#[test]
fn flow_table_suits_the_machine() {
    const GIB: u64 = 1 << 30;
    for (memory, flows) in [
        (0, 65_536),
        (GIB, 65_536),
        (8 * GIB, 65_536),
        (24 * GIB, 262_144),
        (64 * GIB, 524_288),
        (4096 * GIB, 4_194_304),
    ] {
        assert_eq!(flows_for(memory), flows, "{} GiB", memory / GIB);
    }
}

#[test]
fn maps_at_least_double_and_stay_within_their_bounds() {
    let sizes = Sizes { frontends: 100, backends: 100, ..Sizes::default() };
    let most = Sizes { frontends: 1000, backends: 50, ..Sizes::default() };
    let lacking = |frontends, backends| Sizes { frontends, backends, ..Sizes::default() };
    assert_eq!(sizes.grown(lacking(1, 0), most), Some(Sizes { frontends: 200, ..sizes }));
    assert_eq!(sizes.grown(lacking(300, 0), most), Some(Sizes { frontends: 400, ..sizes }));
    assert_eq!(sizes.grown(lacking(u32::MAX, 0), most), Some(Sizes { frontends: 1000, ..sizes }));
    assert_eq!(sizes.grown(lacking(0, 1), most), None, "larger already");
    assert_eq!(sizes.grown(lacking(0, 0), most), None);
}
