//! Structs that are nothing but numbers, booleans and bytes, whose vectors need no look at each member.
//!
//! Such a struct is in memory as it is on the wire, but for the content of padding, and for booleans, which cannot hold every byte.
//! So where there is no padding a vector is encoded by a copy, and where there is no boolean it is decoded by a copy, after the padding
//! of all elements was checked. Other vectors go through [`Plain`], in one pass that the compiler can unroll, with no bounds
//! to check and nothing to fail in between.

use super::{Decoder, Encoder};
use crate::Result;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A type of `N` bytes on the wire, all inline, each a member's or padding.
pub trait Plain<const N: usize>: Sized {
    /// The bytes; padding is zero.
    fn to_wire(&self) -> [u8; N];

    /// The value of some bytes, and whether they are those of a value: booleans 0 or 1 and padding zero.
    fn from_wire(bytes: [u8; N]) -> (Self, bool);
}

macro_rules! impl_number {
    ($($number:ty),*) => {$(
        impl Plain<{ size_of::<$number>() }> for $number {
            #[inline]
            fn to_wire(&self) -> [u8; size_of::<$number>()] {
                self.to_le_bytes()
            }

            #[inline]
            fn from_wire(bytes: [u8; size_of::<$number>()]) -> (Self, bool) {
                (Self::from_le_bytes(bytes), true)
            }
        }
    )*};
}

impl_number!(u8, u16, u32, u64, i8, i16, i32, i64, f32, f64);

impl Plain<1> for bool {
    #[inline]
    fn to_wire(&self) -> [u8; 1] {
        [u8::from(*self)]
    }

    #[inline]
    fn from_wire([byte]: [u8; 1]) -> (Self, bool) {
        (byte != 0, byte <= 1)
    }
}

impl<const N: usize> Plain<N> for [u8; N] {
    #[inline]
    fn to_wire(&self) -> [u8; N] {
        *self
    }

    #[inline]
    fn from_wire(bytes: [u8; N]) -> (Self, bool) {
        (bytes, true)
    }
}

/// Ors words to others, one to one.
#[inline]
fn merge(seen: &mut [u64], words: &[[u8; 8]]) {
    for (seen, word) in seen.iter_mut().zip(words) {
        *seen |= u64::from_ne_bytes(*word);
    }
}

/// All rows of `N` words, or-ed together, by `ROWS` rows at a time.
#[inline]
fn merge_rows<const N: usize, const ROWS: usize>(words: &[[u8; 8]]) -> [u64; N] {
    let (rows, rest) = words.as_chunks::<N>();
    let (blocks, last) = rows.as_chunks::<ROWS>();
    let mut seen = [[0; N]; ROWS];
    for block in blocks {
        seen.iter_mut().zip(block).for_each(|(seen, row)| merge(seen, row));
    }
    let mut all = [0; N];
    for row in seen {
        all.iter_mut().zip(row).for_each(|(all, word)| *all |= word);
    }
    last.iter().for_each(|row| merge(&mut all, row));
    merge(&mut all, rest);
    all
}

/// Whether all bytes are zero where `mask`, which is repeated over and over, is not.
fn is_zero_under<const N: usize>(bytes: &[u8], mask: &[u8; N]) -> bool {
    let (words, rest) = bytes.as_chunks::<8>();
    // After `N` words the mask is in the same places again. Few words would have to wait for each other.
    let seen = if N <= 8 { merge_rows::<N, 4>(words) } else { merge_rows::<N, 1>(words) };
    let mut seen = seen.iter().flat_map(|word| word.to_ne_bytes()).zip(mask.iter().cycle());
    let mut rest = rest.iter().zip(mask.iter().cycle().skip(words.len() * 8 % N));
    seen.all(|(byte, mask)| byte & mask == 0) && rest.all(|(byte, mask)| byte & mask == 0)
}

impl Encoder<'_> {
    /// Writes elements side by side, which have no padding.
    #[inline]
    pub fn append_bytes_of<T: IntoBytes + Immutable>(&mut self, values: &[T]) {
        self.append(values.as_bytes());
    }

    /// Writes elements side by side.
    #[inline]
    pub fn append_plain<T: Plain<N>, const N: usize>(&mut self, values: &[T]) {
        let places = self.allocate_mut(values.len() * N);
        let (places, _) = places.as_chunks_mut::<N>();
        for (place, value) in places.iter_mut().zip(values) {
            *place = value.to_wire();
        }
    }
}

impl Decoder<'_> {
    /// Reads `count` elements side by side; `None` where one of them is not valid.
    ///
    /// # Errors
    ///
    /// [`crate::Error::OutOfRange`].
    #[inline]
    pub fn plain_elements<T: Plain<N>, const N: usize>(
        &self,
        count: usize,
        offset: usize,
    ) -> Result<Option<Vec<T>>> {
        let (elements, _) = self.slice(offset, count.saturating_mul(N))?.as_chunks::<N>();
        let mut valid = true;
        let decode = |element: &[u8; N]| {
            let (value, right) = T::from_wire(*element);
            valid &= right;
            value
        };
        let values = elements.iter().map(decode).collect();
        Ok(valid.then_some(values))
    }

    /// Reads `count` elements side by side, of `N` bytes each, whose padding is where `padding` is not zero; `None` where
    /// that of one of them is not zero.
    ///
    /// # Errors
    ///
    /// [`crate::Error::OutOfRange`].
    pub fn copied_elements<T: FromBytes + Immutable + Copy, const N: usize>(
        &self,
        count: usize,
        offset: usize,
        padding: &[u8; N],
    ) -> Result<Option<Vec<T>>> {
        const { assert!(size_of::<T>() == N) };
        let bytes = self.slice(offset, count.saturating_mul(N))?;
        if padding.iter().any(|byte| *byte != 0) && !is_zero_under(bytes, padding) {
            return Ok(None);
        }
        Ok(Some(match <[T]>::ref_from_bytes(bytes) {
            Ok(elements) => elements.to_vec(),
            // They are not where such values may be in memory.
            Err(_) => bytes.chunks_exact(N).filter_map(|e| T::read_from_bytes(e).ok()).collect(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::is_zero_under;

    #[test]
    fn every_masked_byte_is_looked_at() {
        look_with([0, 0xff, 0, 0, 0xfe, 0]);
        look_with([0, 0, 0xfe, 0, 0, 0, 0, 0, 0, 0, 0xff, 0]);
    }

    fn look_with<const N: usize>(mask: [u8; N]) {
        for len in [0, 1, 3, 4, 8, 9, 33, 50, 101].map(|count| count * N) {
            let mut bytes = vec![0; len];
            for at in 0..len {
                for (value, zero) in [(1, mask[at % N] & 1 == 0), (0x80, mask[at % N] == 0)] {
                    bytes[at] = value;
                    assert_eq!(is_zero_under(&bytes, &mask), zero, "{value} at {at} of {len}");
                }
                bytes[at] = 0;
            }
        }
    }
}
