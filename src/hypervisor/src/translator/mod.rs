//! The translator: guest x86-64 code becomes host x86-64 code.
