//! Where a file's bytes are: a composite layout as in Lustre's `lov_user_md_v1`/`lov_comp_md_v1`, with the stripe
//! arithmetic as pure functions.
//!
//! ```text
//! file     0        1M       2M       3M       4M          stripe_size 1M, two stripes
//!          ├────────┼────────┼────────┼────────┤
//! stripe   0        1        0        1
//! object   0..1M    0..1M    1M..2M   1M..2M
//! ```
//!
//! Today one RAID-0 component covers a file; the form has room for mirrors, erasure coding, data on the MDT and
//! components over ranges.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{Fid, Status};

/// Smallest stripe size and the unit of it, as in Lustre (64 KiB).
pub const STRIPE_SIZE_MIN: u32 = 64 << 10;
/// Stripe size where nobody says otherwise (1 MiB).
pub const STRIPE_SIZE_DEFAULT: u32 = 1 << 20;
/// Most stripes one component has, as in Lustre.
pub const STRIPE_COUNT_MAX: usize = 2000;

/// The layout of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Grows with every change; I/O carries its low 16 bits.
    pub generation: u32,
    /// Sorted by range; ranges of one mirror do not overlap.
    pub components: Vec<Component>,
}

/// A range of a file, stored in one way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// Names the component within the file.
    pub id: u32,
    /// Copies of the same range have different mirror ids.
    pub mirror_id: u16,
    /// First byte.
    pub start: u64,
    /// First byte after; `u64::MAX` is the end of everything.
    pub end: u64,
    /// How bytes become objects.
    pub pattern: Pattern,
    /// Bytes per stripe unit.
    pub stripe_size_bytes: u32,
    /// The objects, in order.
    pub stripes: Vec<Stripe>,
}

/// How a component is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pattern {
    /// Round-robin over the stripes.
    Raid0,
    /// On the MDT itself. Reserved.
    Mdt,
    /// Data and parity. Reserved.
    ErasureCoded,
}

/// One object of a component.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stripe {
    /// Index of the OST.
    pub ost_index: u16,
    /// The object there.
    pub object: Fid,
}

/// What a directory or `lfs setstripe` asks for; `None` means the filesystem's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StripeHint {
    /// Stripes; −1: all OSTs.
    pub count: Option<i32>,
    /// Bytes per stripe unit; a multiple of 64 KiB.
    pub size_bytes: Option<u32>,
    /// Index of the first OST.
    pub offset: Option<u16>,
}

impl StripeHint {
    /// Refuses what no layout can have.
    pub fn validate(&self) -> Result<(), Status> {
        let size = self.size_bytes.unwrap_or(STRIPE_SIZE_DEFAULT);
        let count = self.count.unwrap_or(1);
        if size == 0 || !size.is_multiple_of(STRIPE_SIZE_MIN) || count < -1 || count > STRIPE_COUNT_MAX as i32 {
            return Err(Status::EINVAL);
        }
        Ok(())
    }

    /// Fields that are `None` are taken from `default`.
    pub fn or(self, default: StripeHint) -> StripeHint {
        StripeHint {
            count: self.count.or(default.count),
            size_bytes: self.size_bytes.or(default.size_bytes),
            offset: self.offset.or(default.offset),
        }
    }
}

/// A run of file bytes that is contiguous in one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Index into [`Layout::stripes`].
    pub stripe: usize,
    /// Byte offset in the object.
    pub object_offset: u64,
    /// Byte offset in the file.
    pub file_offset: u64,
    /// Bytes.
    pub length: u64,
}

impl Layout {
    /// A file in one RAID-0 component over its whole range.
    pub fn raid0(stripe_size_bytes: u32, stripes: Vec<Stripe>) -> Layout {
        let pattern = Pattern::Raid0;
        let whole = Component { id: 1, mirror_id: 0, start: 0, end: u64::MAX, pattern, stripe_size_bytes, stripes };
        Layout { generation: 1, components: vec![whole] }
    }

    /// Whether this layout is one that this version can do I/O on: exactly one RAID-0 component over everything, with at
    /// least one stripe. What comes off a wire or a disk is checked here before any arithmetic.
    pub fn validate(&self) -> Result<(), Status> {
        match &self.components[..] {
            [one] if one.pattern == Pattern::Raid0 && one.start == 0 && one.end == u64::MAX => {
                let stripes_fit = (1..=STRIPE_COUNT_MAX).contains(&one.stripes.len());
                let size_fits = one.stripe_size_bytes != 0 && one.stripe_size_bytes.is_multiple_of(STRIPE_SIZE_MIN);
                if stripes_fit && size_fits { Ok(()) } else { Err(Status::EINVAL) }
            }
            _ => Err(Status::EOPNOTSUPP),
        }
    }

    /// The objects of the file; [`Piece::stripe`] indexes them.
    pub fn stripes(&self) -> &[Stripe] {
        &self.components[0].stripes
    }

    /// Bytes per stripe unit.
    pub fn stripe_size_bytes(&self) -> u64 {
        u64::from(self.components[0].stripe_size_bytes)
    }

    /// Cuts a byte range of the file into pieces, in file order; neighbours in one object are one piece.
    pub fn split(&self, range: Range<u64>) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = Vec::new();
        let (unit, count) = (self.stripe_size_bytes(), self.stripes().len() as u64);
        if count == 1 && range.start < range.end {
            let length = range.end - range.start;
            return vec![Piece { stripe: 0, object_offset: range.start, file_offset: range.start, length }];
        }
        let mut at = range.start;
        while at < range.end {
            let number = at / unit;
            let within = at % unit;
            let length = (unit - within).min(range.end - at);
            let stripe = (number % count) as usize;
            pieces.push(Piece { stripe, object_offset: number / count * unit + within, file_offset: at, length });
            at += length;
        }
        pieces
    }

    /// The range of object `stripe` that a range of the file covers; `None` if it does not touch the object.
    /// An end of `u64::MAX` stays the end of everything.
    pub fn object_range(&self, stripe: usize, range: Range<u64>) -> Option<Range<u64>> {
        let start = self.object_size_at(stripe, range.start);
        let end = if range.end == u64::MAX { u64::MAX } else { self.object_size_at(stripe, range.end) };
        (start < end).then_some(start..end)
    }

    /// How long object `stripe` is when the file is exactly `file_size` bytes long (and has no holes at the end).
    pub fn object_size_at(&self, stripe: usize, file_size: u64) -> u64 {
        let (unit, count) = (self.stripe_size_bytes(), self.stripes().len() as u64);
        let (full_rows, rest) = (file_size / (unit * count), file_size % (unit * count));
        full_rows * unit + rest.saturating_sub(stripe as u64 * unit).min(unit)
    }

    /// How long the file is at least, when object `stripe` is `object_size` bytes long. Saturates at `u64::MAX`.
    pub fn file_size_from(&self, stripe: usize, object_size: u64) -> u64 {
        if object_size == 0 {
            return 0;
        }
        self.file_offset_of(stripe, object_size - 1).saturating_add(1)
    }

    /// The file offset of a byte of an object. Saturates at `u64::MAX`.
    pub fn file_offset_of(&self, stripe: usize, object_offset: u64) -> u64 {
        let (unit, count) = (self.stripe_size_bytes(), self.stripes().len() as u64);
        (object_offset / unit)
            .saturating_mul(count)
            .saturating_add(stripe as u64)
            .saturating_mul(unit)
            .saturating_add(object_offset % unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(count: u16) -> Layout {
        let stripe = |i| Stripe { ost_index: i, object: Fid::ost_object(i, 1) };
        Layout::raid0(STRIPE_SIZE_MIN, (0..count).map(stripe).collect())
    }

    #[test]
    fn split_covers_the_range_in_order() {
        let unit = u64::from(STRIPE_SIZE_MIN);
        let pieces = layout(2).split(unit - 1..2 * unit + 1);
        let brief: Vec<_> = pieces.iter().map(|p| (p.stripe, p.object_offset, p.file_offset, p.length)).collect();
        assert_eq!(brief, [(0, unit - 1, unit - 1, 1), (1, 0, unit, unit), (0, unit, 2 * unit, 1)]);
        assert_eq!(layout(1).split(5..u64::MAX).len(), 1);
        assert!(layout(3).split(7..7).is_empty());
    }

    #[test]
    fn sizes_and_offsets_agree_with_split() {
        let unit = u64::from(STRIPE_SIZE_MIN);
        for count in [1, 2, 3, 7] {
            let layout = layout(count);
            for size in [0, 1, unit - 1, unit, unit + 1, 3 * unit + 5, 14 * unit] {
                let mut objects = vec![0; usize::from(count)];
                for piece in layout.split(0..size) {
                    objects[piece.stripe] = piece.object_offset + piece.length;
                    assert_eq!(layout.file_offset_of(piece.stripe, piece.object_offset), piece.file_offset);
                }
                for (stripe, &object) in objects.iter().enumerate() {
                    assert_eq!(layout.object_size_at(stripe, size), object, "count {count} size {size}");
                }
                let back = objects.iter().enumerate().map(|(i, &o)| layout.file_size_from(i, o)).max();
                assert_eq!(back, Some(size));
            }
        }
        assert_eq!(layout(2).file_size_from(1, u64::MAX), u64::MAX);
    }

    #[test]
    fn layouts_that_cannot_be_used_are_refused() {
        assert_eq!(layout(1).validate(), Ok(()));
        assert_eq!(layout(0).validate(), Err(Status::EINVAL));
        let mut odd = layout(1);
        odd.components[0].stripe_size_bytes = 1000;
        assert_eq!(odd.validate(), Err(Status::EINVAL));
        odd.components.clear();
        assert_eq!(odd.validate(), Err(Status::EOPNOTSUPP));
        let hint = StripeHint { size_bytes: Some(4096), ..StripeHint::default() };
        assert_eq!(hint.validate(), Err(Status::EINVAL));
    }
}
