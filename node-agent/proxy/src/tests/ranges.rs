use hawser_ebpf_abi::{RangeKey, v4_mapped};

use crate::ranges::{Lists, Ranges, SourceRange};

fn list(octets: &[u8]) -> Ranges {
    octets.iter().map(|octet| SourceRange::new(v4_mapped([*octet, 0, 0, 0]), 104)).collect()
}

fn acquire(lists: &mut Lists, octets: &[u8]) -> (Option<u32>, Vec<RangeKey>) {
    let mut new = Vec::new();
    (lists.acquire(&list(octets), &mut new), new)
}

#[test]
fn equal_ranges_are_one_value() {
    let range = |octets, bits: u32| SourceRange::new(v4_mapped(octets), 96 + bits);
    assert_eq!(range([10, 1, 2, 3], 8), range([10, 9, 9, 9], 8));
    assert_ne!(range([10, 1, 2, 3], 8), range([10, 1, 2, 3], 9));
    assert!(range([10, 0, 0, 0], 8).contains(&v4_mapped([10, 255, 0, 1])));
    assert!(!range([10, 0, 0, 0], 8).contains(&v4_mapped([11, 0, 0, 1])));
    assert!(range([0, 0, 0, 0], 0).contains(&v4_mapped([192, 0, 2, 1])));
    assert!(!range([0, 0, 0, 0], 0).contains(&[0x20; 16].into()), "all of IPv4 is nothing of IPv6");
    assert!(SourceRange::new([0x20; 16].into(), 0).contains(&[0xfe; 16].into()));
    assert!(SourceRange::new([0x20; 16].into(), 128).contains(&[0x20; 16].into()));
}

#[test]
fn list_stays_as_long_as_it_has_a_user() {
    let mut lists = Lists::new(Vec::new(), 10);
    let (first, new) = acquire(&mut lists, &[10, 11]);
    assert_eq!(new.len(), 2);
    let (second, new) = acquire(&mut lists, &[11, 10]);
    assert!(new.is_empty() && first == second && first > Some(0));
    assert_ne!(acquire(&mut lists, &[10]).0, first);
    lists.release(&list(&[10, 11]));
    assert!(lists.remove_unused().is_empty());
    lists.release(&list(&[10, 11]));
    assert_eq!(lists.remove_unused().len(), 2);
    assert!(lists.remove_unused().is_empty());
    let (again, new) = acquire(&mut lists, &[10, 11]);
    assert!(again != first && new.len() == 2, "an id is not used again while programs may still hold it");
}

#[test]
fn full_map_takes_no_list_in_part() {
    let mut lists = Lists::new(Vec::new(), 3);
    assert!(acquire(&mut lists, &[1, 2]).0.is_some());
    assert_eq!(acquire(&mut lists, &[3, 4]), (None, vec![]));
    assert!(acquire(&mut lists, &[1, 2]).0.is_some(), "one that is there needs no room");
    lists.release(&list(&[1, 2]));
    lists.release(&list(&[1, 2]));
    lists.remove_unused();
    assert!(acquire(&mut lists, &[3, 4]).0.is_some());
}

#[test]
fn restart_finds_lists_by_what_they_are() {
    let mut lists = Lists::new(Vec::new(), 10);
    let (kept, mut kernel) = acquire(&mut lists, &[10, 11]);
    kernel.extend(acquire(&mut lists, &[12]).1);
    let mut lists = Lists::new(kernel, 10);
    assert_eq!(acquire(&mut lists, &[10, 11]), (kept, vec![]));
    assert_eq!(lists.remove_unused().len(), 1, "what nobody wants goes");
    assert!(acquire(&mut lists, &[13]).0 > kept);
}
