//! Structs that are nothing but numbers, booleans and bytes: their vectors are copied in one pass that the compiler can
//! unroll, with no bounds to check and nothing to fail in between.

use super::{Decoder, Encoder};
use crate::Result;

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

impl Encoder<'_> {
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
}
