//! Structs that are nothing but numbers, booleans, enums, bits and bytes, whose vectors need no look at each member.
//!
//! Such a struct goes over the wire as a few words, each of which is members and padding: one is read and written whole, with no
//! bounds to check and nothing to fail in between. Most are in memory as they are on the wire, but for the content of padding, and for
//! booleans, which cannot hold every byte. So where there is no padding a vector is encoded by a copy, and it is decoded by a
//! copy after the padding of all elements was checked.

use super::{Decoder, Encoder};
use crate::Result;
use multiversion::multiversion;
use zerocopy::{Immutable, IntoBytes, TryFromBytes};

/// A type of `N` bytes on the wire, all inline, each a member's or padding.
pub trait Plain<const N: usize>: Sized {
    /// The bytes; padding is zero.
    fn to_wire(&self) -> [u8; N];

    /// The value of some bytes, and whether they are those of a value: booleans 0 or 1, enums with a member, and padding zero.
    fn from_wire(bytes: [u8; N]) -> (Self, bool);
}

/// Writes elements side by side. It is compiled for wider vectors, too, which gather the members of many elements at
/// once: the copy of memory that this is measured against has such versions as well.
#[multiversion(targets(
    "x86_64+avx+avx2+bmi1+bmi2+avx512f+avx512bw+avx512dq+avx512vl+avx512vbmi",
    "x86_64+avx+avx2+bmi1+bmi2"
))]
fn write_elements<T: Plain<N>, const N: usize>(places: &mut [[u8; N]], values: &[T]) {
    for (place, value) in places.iter_mut().zip(values) {
        *place = value.to_wire();
    }
}

/// Whether all words are zero where `mask` is not. Without a way out in between, as that is what makes it quick.
#[inline(always)]
fn is_zero_in_words(words: &[[u8; 8]], mask: u64) -> bool {
    words.iter().fold(0, |seen, word| seen | u64::from_ne_bytes(*word)) & mask == 0
}

/// Whether all bytes are zero where `mask`, which is repeated over and over, is not.
#[multiversion(targets(
    "x86_64+avx+avx2+bmi1+bmi2+avx512f+avx512bw+avx512dq+avx512vl+avx512vbmi",
    "x86_64+avx+avx2+bmi1+bmi2"
))]
fn is_zero_under<const N: usize>(bytes: &[u8], mask: &[u8; N]) -> bool {
    /// Words that are looked at in one go: at least one round of every mask.
    const BLOCK: usize = 128;
    let (words, mut rest) = bytes.as_chunks::<8>();
    let word_of_mask =
        |i: usize| u64::from_ne_bytes(std::array::from_fn(|k| mask[(i * 8 + k) % N]));
    if 8 % N == 0 {
        if !is_zero_in_words(words, word_of_mask(0)) {
            return false;
        }
    } else if N <= BLOCK {
        // After `N` words the mask is in the same places again.
        let mut masks = [0; BLOCK];
        let masks = &mut masks[..BLOCK / N * N];
        for i in 0..masks.len() {
            masks[i] = if i < N { word_of_mask(i) } else { masks[i - N] };
        }
        let blocks = words.chunks_exact(masks.len());
        rest = &bytes[(words.len() - blocks.remainder().len()) * 8..];
        let mut seen = 0;
        for block in blocks {
            let pairs = block.iter().zip(masks.iter());
            seen |= pairs.fold(0, |seen, (word, mask)| seen | u64::from_ne_bytes(*word) & mask);
        }
        if seen != 0 {
            return false;
        }
    } else {
        rest = bytes;
    }
    rest.iter().zip(mask.iter().cycle()).all(|(byte, mask)| byte & mask == 0)
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
        let places = self.append_with_padding(values.len() * N);
        write_elements(places.as_chunks_mut::<N>().0, values);
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

    /// Reads `count` elements side by side, of `N` bytes each, in which the bits of `zero` must be zero; `None` where one of them
    /// is not valid.
    ///
    /// # Errors
    ///
    /// [`crate::Error::OutOfRange`].
    pub fn copied_elements<T: TryFromBytes + Immutable + Copy, const N: usize>(
        &self,
        count: usize,
        offset: usize,
        zero: &[u8; N],
    ) -> Result<Option<Vec<T>>> {
        const { assert!(size_of::<T>() == N) };
        let bytes = self.slice(offset, count.saturating_mul(N))?;
        if zero.iter().any(|byte| *byte != 0) && !is_zero_under(bytes, zero) {
            return Ok(None);
        }
        Ok(match <[T]>::try_ref_from_bytes(bytes) {
            Ok(elements) => Some(elements.to_vec()),
            // They are not valid, or not where such values may be in memory.
            Err(_) => bytes.chunks_exact(N).map(|e| T::try_read_from_bytes(e).ok()).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::is_zero_under;

    #[test]
    fn every_masked_byte_is_looked_at() {
        look_with([0, 0xff, 0, 0]);
        look_with([0, 0xff, 0, 0, 0xfe, 0]);
        look_with([0, 0, 0xfe, 0, 0, 0, 0, 0, 0, 0, 0xff, 0]);
        look_with(std::array::from_fn::<u8, 40, _>(|i| if i % 7 == 3 { 0xff } else { 0 }));
    }

    fn look_with<const N: usize>(mask: [u8; N]) {
        for len in [0, 1, 3, 4, 8, 9, 33, 50, 101, 300].map(|count| count * N) {
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
