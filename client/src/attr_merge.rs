//! One set of attributes out of what the MDT knows and what each object knows.
//!
//! Size: the objects'. ctime: the newest of all. mtime: from whoever had it set last. Objects only change by writes and
//! truncates, which set mtime and ctime together, so an object's ctime says when its mtime was set; the MDT says so in
//! `rdev` (see [`Attr::rdev`]), because link, rename and chmod move its ctime alone. Ties go to the MDT: a utimens right
//! after a write within one clock tick is the later one.

use nacre_wire::{Attr, Layout, Time};

/// Merges the inode of a regular file with its objects, one for each stripe in order.
pub(crate) fn merge(inode: &Attr, layout: &Layout, objects: &[Attr]) -> Attr {
    let mut merged = Attr { size: 0, allocated_bytes: 0, rdev: 0, ..inode.clone() };
    let mut mtime_set = if inode.rdev == 0 { inode.ctime } else { Time::from_ns(inode.rdev) };
    for (stripe, object) in objects.iter().enumerate() {
        merged.size = merged.size.max(layout.file_size_from(stripe, object.size));
        merged.allocated_bytes = merged.allocated_bytes.saturating_add(object.allocated_bytes);
        merged.ctime = merged.ctime.max(object.ctime);
        if object.ctime > mtime_set {
            mtime_set = object.ctime;
            merged.mtime = object.mtime;
        }
    }
    merged
}

/// The inode of a regular file without objects.
pub(crate) fn without_objects(inode: &Attr) -> Attr {
    Attr { size: 0, allocated_bytes: 0, rdev: 0, ..inode.clone() }
}

#[cfg(test)]
mod tests {
    use nacre_wire::Fid;
    use nacre_wire::layout::Stripe;
    use proptest::prelude::*;

    use super::*;

    const UNIT: u32 = 64 << 10;

    fn layout(count: u16) -> Layout {
        let stripe = |ost_index| Stripe { ost_index, object: Fid::ost_object(ost_index, 1) };
        Layout::raid0(UNIT, (0..count).map(stripe).collect())
    }

    fn at(seconds: i64) -> Time {
        Time { seconds, nanoseconds: 0 }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Write { stripe: usize },
        Utimens { mtime: i64 },
        Chmod,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0usize..3).prop_map(|stripe| Op::Write { stripe }),
            (-5i64..500).prop_map(|mtime| Op::Utimens { mtime }),
            Just(Op::Chmod),
        ]
    }

    proptest! {
        /// The times a local filesystem would show after any series of writes, utimens and chmods.
        #[test]
        fn times_are_those_of_one_inode(ops in prop::collection::vec(op(), 0..20)) {
            let mut now = 100;
            let mut inode = Attr { mtime: at(now), ctime: at(now), rdev: at(now).to_ns(), ..Attr::default() };
            let mut objects = vec![Attr::default(); 3];
            let mut model = (at(now), at(now));
            for op in ops {
                now += 1;
                match op {
                    Op::Write { stripe } => {
                        objects[stripe].mtime = at(now);
                        objects[stripe].ctime = at(now);
                        model = (at(now), at(now));
                    }
                    Op::Utimens { mtime } => {
                        inode.mtime = at(mtime);
                        inode.ctime = at(now);
                        inode.rdev = at(now).to_ns();
                        model = (at(mtime), at(now));
                    }
                    Op::Chmod => {
                        inode.ctime = at(now);
                        model.1 = at(now);
                    }
                }
            }
            let merged = merge(&inode, &layout(3), &objects);
            prop_assert_eq!((merged.mtime, merged.ctime), model);
        }
    }

    #[test]
    fn size_and_blocks_come_from_the_objects() {
        let inode = Attr { size: 99, allocated_bytes: 99, rdev: 5, ..Attr::default() };
        let object = |size, allocated_bytes| Attr { size, allocated_bytes, ..Attr::default() };
        let merged = merge(&inode, &layout(2), &[object(UNIT.into(), 4096), object(1, 8192)]);
        assert_eq!((merged.size, merged.allocated_bytes, merged.rdev), (u64::from(UNIT) + 1, 12288, 0));
        assert_eq!(without_objects(&inode).size, 0);
    }
}
